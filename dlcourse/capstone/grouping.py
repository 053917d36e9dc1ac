"""Which images belong to one person, film or machine: by folder, by name, or by a table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dlcourse.capstone.settings import Problem
from dlcourse.lab.images import read_table


def groups_of(files: Sequence[str], how: str) -> dict[str, str]:
    """Return the group of each file, which is named by its path below the images' root.

    how: "2" for the second folder level below the root, a CSV with the columns file and
    group, or a regular expression with one group, searched in the name of the file.
    Raises Problem where a file has no group.
    """
    if how.lower().endswith(".csv"):
        return read_column(Path(how), "group", files)
    if how.isdecimal():
        return _by_level(files, int(how))
    return _by_pattern(files, how)


def _by_level(files: Sequence[str], level: int) -> dict[str, str]:
    found = {}
    for file in files:
        parts = file.split("/")
        if not 1 <= level < len(parts):
            raise Problem(
                f"--groups {level}: {file} lies {len(parts) - 1} folders deep: give the "
                "number of a folder level, from 1"
            )
        found[file] = parts[level - 1]
    return found


def _by_pattern(files: Sequence[str], how: str) -> dict[str, str]:
    try:
        pattern = re.compile(how)
    except re.error as error:
        raise Problem(f"--groups {how}: no regular expression ({error})") from error
    if pattern.groups != 1:
        raise Problem(
            f"--groups {how}: put what names the group in one pair of brackets, as in "
            r"'^([^_]+)_'"
        )
    found = {}
    for file in files:
        match = pattern.search(file.rpartition("/")[2])
        if match is None or match[1] is None:
            raise Problem(f"--groups {how}: does not fit the name of {file}")
        found[file] = match[1]
    return found


def read_column(path: Path, column: str, files: Sequence[str]) -> dict[str, str]:
    """Return {file: value} of a CSV with the columns file and `column`."""
    try:
        rows = read_table(path)
    except ValueError as error:
        raise Problem(str(error)) from error
    if not rows or not {"file", column} <= set(rows[0]):
        raise Problem(
            f"{path}: give a CSV with a first line that names file and {column}"
        )
    found = {(row["file"] or "").replace("\\", "/"): row[column] or "" for row in rows}
    for file in files:
        if not found.get(file):
            raise Problem(f"{path} names no {column} for {file}")
    return found
