"""Which images a run began with: images.csv, by which a run that goes on sees a change."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from dlcourse.capstone.own import OwnImages
from dlcourse.capstone.settings import Problem
from dlcourse.lab.checkpoints import replacing

TABLE = "images.csv"


def changed(before: Sequence[Sequence[str]], now: Sequence[Sequence[str]]) -> str:
    """Return in words how two tables of images differ; nothing where they are alike."""
    old, new = ({row[0]: tuple(row[1:]) for row in rows} for rows in (before, now))
    both = [file for file in old if file in new]
    kinds = {
        "added": [file for file in new if file not in old],
        "gone": [file for file in old if file not in new],
        "in another class": [file for file in both if old[file][0] != new[file][0]],
        "with other pixels": [file for file in both if old[file][2] != new[file][2]],
        "in another part of the split": [
            file for file in both if old[file][1] != new[file][1]
        ],
    }
    return ", ".join(
        f"{len(files)} {what} ({files[0]}{' ...' if len(files) > 1 else ''})"
        for what, files in kinds.items()
        if files
    )


def check_same(folder: Path, data: OwnImages) -> None:
    """Raise Problem where the images are not those with which the run in `folder` began."""
    path = folder / TABLE
    if not path.exists():
        return
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        _, *before = csv.reader(file)
    said = changed(before, data.table)
    if said:
        raise Problem(
            f"the images are not those with which {folder} began: {said}; put them back, "
            "or start anew with another --out"
        )


def write_table(folder: Path, data: OwnImages) -> None:
    """Write images.csv: file, class, part and digest of each image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "class", "split", "pixels"])
    writer.writerows(data.table)
    with replacing(folder / TABLE) as file:
        file.write(text.getvalue().encode(errors="surrogateescape"))
