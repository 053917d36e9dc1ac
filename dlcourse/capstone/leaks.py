"""Find copies and torn groups in a folder of images, and split it without: `dlcourse-leaks`.

ROOT holds ROOT/<class>/.../<image>. Where its folders are called train, validation (val,
valid) and test, they are a split, and the classes lie one level deeper. `--split` reads a
split from a CSV instead.

An exact copy has the same pixels once decoded, whatever its name or format. A near copy
has nearly the same perceptual hash and, seen in small, nearly the same picture: resized,
compressed anew, a little brighter. Mirrored, turned or cropped pictures are not found.

Exit codes: 0, or 1 where a copy or a group lies across splits, the same picture has two
classes, or an image could not be read, or 2 where nothing could be done.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlcourse.capstone.command import answered, check_csv, fail
from dlcourse.capstone.copies import (
    Pair,
    Picture,
    decode,
    digest,
    find_copies,
    in_small,
    perceptual_hash,
    units,
)
from dlcourse.capstone.grouping import groups_of, read_column
from dlcourse.capstone.settings import Problem
from dlcourse.data_splitting import stratified_group_split
from dlcourse.lab.images import SPLITS, below, is_image, reason
from dlcourse.lab.progress import bar

PROGRAM = "dlcourse-leaks"
SHOWN = 10  # pairs named of each kind


def read_pictures(
    root: Path, groups: str | None = None, split: Path | None = None
) -> tuple[list[Picture], list[str]]:
    """Return the pictures below `root` by name, and why each of the others is unreadable.

    groups: "2" for the second folder level below `root`, a CSV with the columns file and
    group, or a regular expression with one group, searched in the name of the file.
    split: a CSV with the columns file and split. Raises Problem for what cannot be used.
    """
    files = _image_files(root)
    names = [path.relative_to(root).as_posix() for path in files]
    group_of = groups_of(names, groups) if groups else {}
    split_of = read_column(split, "split", names) if split else {}
    tops = {file.relative_to(root).parts[0] for file in files}
    in_folders = all(top.lower() in SPLITS for top in tops)
    depth = 1 if in_folders else 0  # where the class stands in the path
    layout = f"ROOT/{'<split>/' * depth}<class>/<image>"
    pictures, unreadable = [], []
    for path, name in zip(bar(files, desc="reading", unit="image"), names, strict=True):
        parts = path.relative_to(root).parts
        if len(parts) < depth + 2:
            raise Problem(
                f"{name} lies in no class folder: lay the images out as {layout}"
            )
        try:
            image = decode(path)
        except Exception as error:  # a decoder may raise anything on a damaged file
            unreadable.append(f"{name} cannot be read as an image ({reason(error)})")
            continue
        by_folder = SPLITS[parts[0].lower()] if in_folders else None
        picture = Picture(
            file=name,
            label=parts[depth],
            split=split_of.get(name, by_folder),
            group=group_of.get(name),
            pixels=digest(image),
            hash=perceptual_hash(image),
            small=in_small(image),
        )
        pictures.append(picture)
    if not pictures:
        raise Problem(f"no image in {root} can be read: {unreadable[0]}")
    return pictures, unreadable


def _image_files(root: Path) -> list[Path]:
    """Return the image files below `root`, as `dlcourse-train` sees them, by name."""
    if not root.is_dir():
        raise Problem(f"there is no folder {root}")
    files = [path for path in below(root) if is_image(path)]
    if not files:
        raise Problem(f"{root} holds no images: lay them out as ROOT/<class>/<image>")
    return files


def write_split(
    path: Path,
    pictures: Sequence[Picture],
    names: Sequence[str],
    validation: float,
    test: float,
    seed: int,
) -> dict[str, int]:
    """Write file, class, group and split of each picture; return the images in each part.

    names: what `units` returned. Raises Problem where the units leave a part empty.
    """
    labels = [picture.label for picture in pictures]
    try:
        parts = stratified_group_split(labels, names, validation, test, seed=seed)
    except ValueError as error:
        raise Problem(str(error)) from error
    split = np.empty(len(pictures), dtype=object)
    sizes = {}
    for name, rows in zip(("train", "validation", "test"), parts, strict=True):
        split[rows] = name
        sizes[name] = len(rows)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class", "group", "split"])
        for picture, unit, part in zip(pictures, names, split, strict=True):
            writer.writerow([picture.file, picture.label, unit, part])
    return sizes


# --- the report and the command -------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What was found: the counts in one line, and the pairs and groups to name."""

    summary: str
    two_classes: list[str]
    across: list[str]


def report(pictures: Sequence[Picture], pairs: Sequence[Pair]) -> Report:
    """Return what the pairs and groups say of classes and splits."""
    two_classes, across = [], []
    for pair in pairs:
        one, other = pictures[pair.first], pictures[pair.second]
        said = f"{one.file} and {other.file} ({pair.kind})"
        if one.label != other.label:
            two_classes.append(said)
        if one.split != other.split:
            across.append(said)
    copies = len(across)
    splits_of: dict[str, set] = {}
    for picture in pictures:
        if picture.group is not None:
            splits_of.setdefault(picture.group, set()).add(picture.split)
    torn = [name for name, found in splits_of.items() if len(found) > 1]
    for name in torn:
        across.append(f"group {name} in {', '.join(sorted(map(str, splits_of[name])))}")

    exact = len({pair.second for pair in pairs if pair.kind == "exact"})
    near = len({pair.second for pair in pairs if pair.kind == "near"})
    classes = len({picture.label for picture in pictures})
    grouped = f", {_count(len(splits_of), 'group')}" if splits_of else ""
    summary = (
        f"{_count(len(pictures), 'image')}, {_count(classes, 'class', 'classes')}{grouped}: "
        f"{_count(exact, 'exact copy', 'exact copies')}, "
        f"{_count(near, 'near copy', 'near copies')}, {len(two_classes)} in two classes"
    )
    if any(picture.split is not None for picture in pictures):
        summary += f"; across splits: {_count(copies, 'pair')} of copies"
        summary += f", {_count(len(torn), 'group')}" if splits_of else ""
    return Report(summary, two_classes, across)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line; leave with 2 where they are wrong."""
    about = "Find copies and torn groups in a folder of images, and split it without."
    parser = argparse.ArgumentParser(prog=PROGRAM, description=about, allow_abbrev=False)
    add = parser.add_argument
    layout = "ROOT/<class>/... or ROOT/<split>/<class>/..."
    add("root", metavar="ROOT", type=Path, help=layout)
    how = (
        "what names a group: a folder level below ROOT (2), a regular expression on the "
        "file's name ('^([^_]+)_'), or a CSV (file, group)"
    )
    add("--groups", metavar="HOW", help=how)
    add("--split", type=Path, metavar="CSV", help="judge this split (file, split)")
    add("--csv", type=Path, metavar="FILE", help="write a split without leaks to FILE")
    for name in ("validation", "test"):
        add(f"--{name}", type=float, default=0.15, metavar="SHARE", help="of it (0.15)")
    add("--seed", type=int, default=0, metavar="N", help="of it (0)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, 1 (something was found) or 2 (nothing can be done)."""
    options = parse(arguments)
    return answered(PROGRAM, lambda: look(options))


def look(options: argparse.Namespace) -> int:
    """Read, compare, print and write as the options say; return the exit code."""
    check_csv(options.csv)
    if options.seed < 0:
        raise Problem(f"--seed {options.seed}: give 0 or more")
    pictures, unreadable = read_pictures(options.root, options.groups, options.split)
    pairs = find_copies(pictures)
    found = report(pictures, pairs)
    print(found.summary)
    named = {"two classes": found.two_classes, "across splits": found.across}
    for title, items in named.items():
        for item in items[:SHOWN]:
            print(f"  {title}: {item}")
        if len(items) > SHOWN:
            print(f"  {title}: {len(items) - SHOWN} more")
    if options.csv:
        names = units(pictures, pairs)
        sizes = write_split(
            options.csv, pictures, names, options.validation, options.test, options.seed
        )
        said = ", ".join(f"{size} {name}" for name, size in sizes.items())
        print(f"{options.csv}: {said}; no copy and no group is on two sides")
    for problem in unreadable:
        fail(PROGRAM, problem, 1)
    return int(bool(found.two_classes or found.across or unreadable))


if __name__ == "__main__":
    raise SystemExit(main())
