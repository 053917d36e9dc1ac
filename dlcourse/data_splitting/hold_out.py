"""Train, validation and test rows, drawn once."""

from __future__ import annotations

import math

import numpy as np

from dlcourse.data_splitting.checks import Fold, _check_count, _classes, _column, _random


def hold_out_split(
    n: int, test: float | int = 0.25, *, labels=None, groups=None, seed: int = 0
) -> Fold:
    """Return (rest, held out): the numbers 0 to n - 1, cut in two at random.

    test: the share to hold out, a float in (0, 1) and rounded up, or an int from 1 to n -
    1. labels: (n,) class numbers or names; each class is then cut in proportion
    (stratified). groups: (n,) names; whole groups are then held out, and `test` counts
    groups, not rows.

    Raises ValueError where a part or a class would be empty, or `labels` and `groups` are
    given.

    Invariants: the two parts are disjoint and cover all rows; with groups none is in
    both; a class is off its proportion by less than one row in each part; equal to
    scikit-learn's ShuffleSplit, StratifiedShuffleSplit and GroupShuffleSplit with
    random_state=seed.
    """
    _check_count("n", n, 2)
    rng = _random(seed)
    if labels is not None and groups is not None:
        raise ValueError(
            "give labels or groups, not both: groups cannot be cut to fit classes"
        )
    if groups is not None:
        names, of_row = np.unique(_column("groups", groups, n), return_inverse=True)
        rest, held = _draw(len(names), test, rng, "groups")
        return np.flatnonzero(np.isin(of_row, rest)), np.flatnonzero(
            np.isin(of_row, held)
        )
    if labels is None:
        return _draw(n, test, rng, "rows")
    return _draw_by_class(_classes(labels, n), test, rng)


def train_val_test_split(
    n: int,
    validation: float | int = 0.15,
    test: float | int = 0.15,
    *,
    labels=None,
    groups=None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (train, validation, test): the numbers 0 to n - 1, cut in three at random.

    validation, test: shares of all n rows (or of all groups) in (0, 1), rounded up, or
    whole numbers. labels, groups, seed: as for `hold_out_split`.

    Raises ValueError where a part or a class would be empty.

    Invariants: disjoint and covering; the test rows depend on `test` and `seed` but not
    on `validation`, so that another validation share never moves a test row into
    training; the same as scikit-learn's train_test_split called twice.
    """
    rest, held = hold_out_split(n, test, labels=labels, groups=groups, seed=seed)
    labels, groups = (None if v is None else np.asarray(v) for v in (labels, groups))
    units = n if groups is None else len(np.unique(groups))
    size = _held_count(
        units, validation, "validation", "rows" if groups is None else "groups"
    )
    left = len(rest) if groups is None else len(np.unique(groups[rest]))
    if size >= left:
        raise ValueError(
            f"validation takes {size} and test leaves only {left}, so nothing is left to train on: "
            "choose smaller shares"
        )
    train, val = hold_out_split(
        len(rest),
        size,
        labels=None if labels is None else labels[rest],
        groups=None if groups is None else groups[rest],
        seed=seed,
    )
    return rest[train], rest[val], held


def _held_count(n: int, share: float | int, name: str, of: str) -> int:
    """Return how many of n are held out: a share rounded up, or the number itself."""
    whole = isinstance(share, (int, np.integer)) and not isinstance(share, bool)
    part = isinstance(share, (float, np.floating)) and 0 < share < 1
    if not part and not (whole and 0 < share < n):
        raise ValueError(
            f"{name}={share!r}: give a share in (0, 1) such as 0.2, or a whole number of {of} from "
            f"1 to {n - 1}"
        )
    held = int(share) if whole else math.ceil(share * n)
    if held >= n:
        raise ValueError(
            f"{name}={share!r} holds out all {n} {of}: choose a smaller share"
        )
    return held


def _draw(n: int, test: float | int, rng: np.random.RandomState, of: str) -> Fold:
    held = _held_count(n, test, "test", of)
    order = rng.permutation(n)
    return order[held:], order[:held]


def _draw_by_class(
    classes: np.ndarray, test: float | int, rng: np.random.RandomState
) -> Fold:
    counts = np.bincount(classes)
    held = _held_count(len(classes), test, "test", "rows")
    if counts.min() < 2:
        raise ValueError(
            "a class has a single row, which cannot be in both parts: merge it with another, get "
            "more rows, or leave labels out"
        )
    if min(held, len(classes) - held) < len(counts):
        raise ValueError(
            f"{held} rows held out of {len(classes)} cannot give each of {len(counts)} classes a "
            "row in both parts: change the share"
        )
    kept_of = _apportion(counts, len(classes) - held, rng)
    held_of = _apportion(counts - kept_of, held, rng)
    parts: tuple[list, list] = ([], [])
    for number, kept in enumerate(kept_of):
        rows = rng.permutation(np.flatnonzero(classes == number))
        parts[0].append(rows[:kept])
        parts[1].append(rows[kept : kept + held_of[number]])
    rest, out = (rng.permutation(np.concatenate(part)) for part in parts)
    return rest, out


def _apportion(counts: np.ndarray, seats: int, rng: np.random.RandomState) -> np.ndarray:
    """Share seats out in proportion to counts: whole parts, then largest remainders, then
    lots.
    """
    exact = counts / counts.sum() * seats
    given = np.floor(exact)
    remainder, left = exact - given, int(seats - given.sum())
    for value in np.unique(remainder)[::-1]:
        if left == 0:
            break
        tied = np.flatnonzero(remainder == value)
        lucky = rng.choice(tied, size=min(len(tied), left), replace=False)
        given[lucky] += 1
        left -= len(lucky)
    return given.astype(int)
