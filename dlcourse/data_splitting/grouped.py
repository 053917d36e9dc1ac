"""Whole groups, and the classes in proportion: both at once."""

from __future__ import annotations

import numpy as np

from dlcourse.data_splitting.checks import _classes, _column, _random


def stratified_group_split(
    labels, groups, validation: float = 0.15, test: float = 0.15, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (train, validation, test) rows: whole groups, shares and classes nearly met.

    labels: (n,) class numbers or names. groups: (n,) names. validation, test: shares of
    the rows of each class, in (0, 1), that leave something to train on. The largest groups
    go first, each to the part in which it brings all shares nearest to what is wanted;
    `seed` orders groups of one size.
    Raises ValueError for other shares, and where a part would be empty.

    Invariants: disjoint and covering; no group is in two parts; where each row is its own
    group, the parts of a class are off their shares by less than two rows.
    """
    for name, share in (("validation", validation), ("test", test)):
        if not 0 < share < 1:
            raise ValueError(f"{name}={share!r}: give a share in (0, 1) such as 0.15")
    if validation + test >= 1:
        raise ValueError(
            f"validation and test take {validation + test:g} and leave nothing to train "
            "on: choose smaller shares"
        )
    counts, of_row = _classes_of_groups(labels, groups)
    totals = counts.sum(axis=0)
    order = _random(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]

    missing = np.outer([1 - validation - test, validation, test], totals)  # rows wanted
    part_of_group = np.empty(len(counts), dtype=int)
    for group in order:
        # how far (missing / totals)² falls, over all classes, if a part gets this group
        gain = ((2 * missing - counts[group]) * counts[group] / totals**2).sum(axis=1)
        part = int(gain.argmax())
        missing[part] -= counts[group]
        part_of_group[group] = part
    parts = [np.flatnonzero(part_of_group[of_row] == part) for part in range(3)]
    for name, rows in zip(("training", "validation", "test"), parts, strict=True):
        if len(rows) == 0:
            raise ValueError(
                f"{len(counts)} groups leave no {name} rows: cut the groups finer, or give "
                "larger shares"
            )
    return parts[0], parts[1], parts[2]


def _classes_of_groups(labels, groups) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of each class in each group, and the group's number of each row."""
    groups = _column("groups", groups)
    names, of_row = np.unique(groups, return_inverse=True)
    classes = _classes(labels, len(groups))
    counts = np.zeros((len(names), classes.max() + 1))
    np.add.at(counts, (of_row, classes), 1)
    return counts, of_row
