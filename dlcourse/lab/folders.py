"""A folder of images: which classes and splits it holds, and all its pixels in one store."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from dlcourse.lab.images import (
    SPLITS,
    below,
    is_image,
    pixels_of,
    read_table,
    reason,
    summed_up,
    visible,
)
from dlcourse.lab.pixels import OnDisk, Store
from dlcourse.lab.progress import bar

LAYOUT = (
    "lay the images out as root/<class>/<image> and pass root=..., or set DLCOURSE_ROOT"
)
BATCH = 32  # images that a worker reads in one go


@dataclass(frozen=True)
class Item:
    """An image file; `file` is its path below the root, `split` None where none is given."""

    path: Path
    file: str
    label: str
    split: str | None = None


@dataclass
class Listing:
    """The images of a folder, its classes by name, and the files that are passed over."""

    root: Path
    items: list[Item] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    others: list[str] = field(default_factory=list)  # no images
    beside: list[str] = field(default_factory=list)  # images of no class

    def add(self, path: Path, file: str, label: str, split: str | None = None) -> None:
        """Take up a file, unless it is no image; `file`: its path below the root."""
        if is_image(path):
            self.items.append(Item(path, file, label, split))
        else:
            self.others.append(file)

    def notes(self) -> list[str]:
        """Return one line for each kind of file that is passed over."""
        kinds = ((self.others, "files that are no images passed over"),
                 (self.beside, "images of no class passed over"))  # fmt: skip
        return [summed_up(files, what) for files, what in kinds if files]


def list_folder(root: Path, *, nested: bool = False) -> Listing:
    """Return the images of root/<class>/<image>, or of root/<split>/<class>/<image>.

    The folders train, val (valid, validation, dev) and test are taken for a split where
    train and another one are there. `nested`: images may lie deeper below their class.
    Hidden files, runs of this course and litter are passed over.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root.resolve()}; {LAYOUT}")
    tops, loose = visible(root)
    listing = Listing(root)
    splits = {top: SPLITS[top.name.lower()] for top in tops if top.name.lower() in SPLITS}
    if _are_a_split(root, tops, splits):
        classes = set()
        for top, split in splits.items():
            folders, files = visible(top)
            if not folders:
                raise ValueError(
                    f"{top} holds no class folders: lay the images out as "
                    f"{root.name}/{top.name}/<class>/<image>, or name the class of each "
                    "file in a CSV (file, label)"
                )
            loose += files
            classes |= {folder.name for folder in folders}
            for folder in folders:
                _add_class(listing, folder, split, nested)
        listing.classes = tuple(sorted(classes))
    else:
        if len(tops) < 2:
            inside = visible(tops[0])[0] if tops else []
            hint = f" (or did you mean {tops[0]}?)" if len(inside) > 1 else ""
            raise ValueError(
                f"{root} holds {len(tops)} class folder(s), two are needed{hint}; {LAYOUT}"
            )
        for folder in tops:
            _add_class(listing, folder, None, nested)
        listing.classes = tuple(folder.name for folder in tops)
    for path in loose:
        kind = listing.beside if is_image(path) else listing.others
        kind.append(path.relative_to(root).as_posix())
    return listing


def _are_a_split(root: Path, tops: Sequence[Path], splits: dict[Path, str]) -> bool:
    """Tell whether the top folders are a split; raise ValueError where it is unclear."""
    kinds = set(splits.values())
    others = [top.name for top in tops if top not in splits]
    if "train" not in kinds or len(kinds) == 1:
        if len(kinds) > 1 and not others:
            raise ValueError(
                f"{root} holds {' and '.join(top.name for top in splits)}, but no train: "
                "put the images to train on into train/<class>/<image>"
            )
        return False
    if others:
        raise ValueError(
            f"{root} holds {' and '.join(top.name for top in splits)}, which look like a "
            f"split, and also {', '.join(others[:3])}: keep either train/<class>/<image>, "
            "val/... and test/..., or one folder a class"
        )
    return True


def _add_class(listing: Listing, folder: Path, split: str | None, nested: bool) -> None:
    folders, files = visible(folder)
    if folders and not nested:
        names = ", ".join(path.name for path in folders[:3])
        raise ValueError(
            f"{folder} holds folders ({names}), not images; {LAYOUT}; where each of them is "
            "one patient, film or the like, give --groups 2"
        )
    top = folder.relative_to(listing.root).as_posix()
    for path in below(folder) if folders else files:
        name = path.relative_to(folder).as_posix() if folders else path.name
        listing.add(path, f"{top}/{name}", folder.name, split)


def list_labels(root: Path, table: Path) -> Listing:
    """Return the images that a CSV names: the columns file (below root) and label.

    A column class does in place of label (`dlcourse-leaks --csv` writes it), and a column
    split (train, validation, test) is kept.
    """
    rows = read_table(table)
    column = "label" if rows and "label" in rows[0] else "class"
    if not rows or not {"file", column} <= set(rows[0]):
        raise ValueError(
            f"{table}: give a CSV with a first line that names file and label"
        )
    listing, named, missing, bare = Listing(root), set(), [], []
    for row in rows:
        file = (row["file"] or "").replace("\\", "/").removeprefix("./")
        label, split = row[column], (row.get("split") or "").lower()
        if not label:
            bare.append(file)
        elif split and split not in SPLITS:
            raise ValueError(f"{table}: {file} has split {split}: write train, validation "
                             "or test")  # fmt: skip
        elif file in named:
            raise ValueError(f"{table} names {file} twice: give each file one line")
        elif not (root / file).is_file():
            missing.append(file)
        else:
            listing.add(root / file, file, label, SPLITS.get(split))
        named.add(file)
    for problems, what in ((missing, f"files of {table} are not in {root}"),
                           (bare, f"files of {table} have no label")):  # fmt: skip
        if problems:
            raise ValueError(summed_up(problems, what) + "; mend the table")
    without = [item.file for item in listing.items if item.split is None]
    if without and len(without) < len(listing.items):
        raise ValueError(summed_up(without, f"files of {table} have no split"))
    listing.classes = tuple(sorted({item.label for item in listing.items}))
    if len(listing.classes) < 2:
        raise ValueError(
            f"{table} names {len(listing.classes)} class(es), two are needed"
        )
    for path in below(root):
        file = path.relative_to(root).as_posix()
        if file not in named and path != table.absolute() and is_image(path):
            listing.beside.append(file)
    return listing


# --- reading ----------------------------------------------------------------------------------


class Reader:
    """A data set of files: each its pixels, or in words why they cannot be read."""

    def __init__(self, items: Sequence[Item], size: int) -> None:
        self.items, self.size = items, size

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> np.ndarray | str:
        try:
            return pixels_of(self.items[row].path, self.size)
        except Exception as error:  # a decoder may raise anything on a damaged file
            return f"{self.items[row].file} ({reason(error)})"


def _each(reader: Reader, workers: int) -> Iterator[np.ndarray | str]:
    """Yield what the reader gives, in order; `workers` processes read."""
    if not workers:
        yield from (reader[row] for row in range(len(reader)))
        return
    from torch.utils.data import DataLoader

    loader = DataLoader(reader, BATCH, num_workers=workers, collate_fn=list)  # pyright: ignore
    for batch in loader:
        yield from batch


def read_pixels(
    listing: Listing,
    size: int,
    *,
    skip_corrupt: bool = False,
    workers: int = 0,
    budget: float = float("inf"),
    at: Path | None = None,
) -> tuple[Tensor | OnDisk, list[Item], list[str]]:
    """Return (pixels, their items, why the other files cannot be read).

    One channel where all images are grey, else three. Above `budget` bytes the pixels go
    to the file `at`, by default one that goes with this process. Raises ValueError for
    what cannot be read, unless `skip_corrupt`, and for a class without an image.
    """
    keeper = None
    if at is None:
        keeper = tempfile.TemporaryDirectory(prefix="dlcourse-")
        at = Path(keeper.name) / "images.cache"
    store = Store(len(listing.items), size, budget, at)
    kept, bad = [], []
    reading = _each(Reader(listing.items, size), workers)
    lines = bar(listing.items, desc="reading", unit="image")
    for item, image in zip(lines, reading, strict=True):
        if isinstance(image, str):
            bad.append(image)
        else:
            store.add(image)
            kept.append(item)
    stored = store.close()
    if keeper is not None and isinstance(stored, OnDisk):
        weakref.finalize(stored, keeper.cleanup)
    if bad and not skip_corrupt:
        raise ValueError(
            f"{summed_up(bad, f'file(s) in {listing.root} cannot be read as images')}. "
            "Mend or remove them, or pass skip_corrupt=True."
        )
    present = {item.label for item in kept}
    empty = [name for name in listing.classes if name not in present]
    if empty:
        raise ValueError(
            f"no readable image for {', '.join(empty)} in {listing.root}; add images or "
            "remove the folder"
        )
    return stored, kept, bad
