"""Folds: shuffled, stratified, by group, by time."""

from __future__ import annotations

import warnings

import numpy as np

from dlcourse.data_splitting.checks import (
    Fold,
    _check_count,
    _check_splits,
    _classes,
    _column,
    _random,
)


def kfold_indices(
    n: int, n_splits: int = 5, *, shuffle: bool = False, seed: int = 0
) -> list[Fold]:
    """Return n_splits pairs (train, held out): each row of 0 to n - 1 is held out exactly
    once.

    n_splits: from 2 to n. Without `shuffle` the folds are runs of neighbouring rows.
    Raises ValueError for other numbers. Source: Stone (1974).

    Invariants: train and held out are sorted, disjoint and cover all rows; the sizes of
    the folds differ by at most one; equal to scikit-learn's KFold.

    >>> [held.tolist() for _, held in kfold_indices(5, 2)]
    [[0, 1, 2], [3, 4]]
    """
    _check_count("n", n, 1)
    _check_splits(n_splits, n, "rows")
    order = np.arange(n)
    if shuffle:
        _random(seed).shuffle(order)
    fold_of = np.empty(n, dtype=int)
    for number, rows in enumerate(np.array_split(order, n_splits)):
        fold_of[rows] = number
    return _folds(fold_of, n_splits)


def stratified_kfold_indices(
    labels, n_splits: int = 5, *, shuffle: bool = False, seed: int = 0
) -> list[Fold]:
    """Return n_splits pairs (train, held out), each fold with the classes in proportion.

    labels: (n,) class numbers or names. n_splits: at least 2, at most the rows of the
    largest class. Warns where a class has fewer rows than there are folds: some folds
    then lack it.
    Raises ValueError for other numbers, or for labels that are no classes.

    Invariants: as for `kfold_indices`; the rows of one class in two folds differ by at
    most one; equal to scikit-learn's StratifiedKFold.
    """
    classes = _classes(labels)
    _check_splits(n_splits, len(classes), "rows")
    counts = np.bincount(classes)
    if n_splits > counts.max():
        raise ValueError(
            f"{n_splits} folds, but the largest class has {counts.max()} rows: use fewer folds"
        )
    if n_splits > counts.min():
        warnings.warn(
            f"a class has {counts.min()} rows, fewer than the {n_splits} folds: some folds lack it",
            UserWarning,
            stacklevel=2,
        )
    rng = _random(seed)
    # Deal the rows, sorted by class, to the folds in turn, as cards: the share of every
    # class in every fold is then right to within one row, and so is every fold's size.
    dealt = np.arange(len(classes)) % n_splits
    in_order = np.sort(classes)
    fold_of = np.empty(len(classes), dtype=int)
    for number in range(len(counts)):
        folds = np.sort(dealt[in_order == number])
        if shuffle:
            rng.shuffle(folds)
        fold_of[classes == number] = folds
    return _folds(fold_of, n_splits)


def group_kfold_indices(
    groups, n_splits: int = 5, *, shuffle: bool = False, seed: int = 0
) -> list[Fold]:
    """Return n_splits pairs (train, held out) with every group whole in one fold.

    groups: (n,) names or numbers: the writer, patient, user, shop or machine of each row.
    n_splits: from 2 to the number of groups. Without `shuffle` the groups go, largest
    first, to the fold that has the fewest rows; with it, equal numbers of groups go to
    the folds by lot.
    Raises ValueError for other numbers.

    Invariants: disjoint and covering; no group is in two folds; without `shuffle` two
    folds differ by at most the rows of the largest group; equal to scikit-learn's
    GroupKFold.
    """
    names, of_row = np.unique(_column("groups", groups), return_inverse=True)
    _check_splits(n_splits, len(names), "groups")
    fold_of_group = np.empty(len(names), dtype=int)
    if shuffle:
        order = _random(seed).permutation(len(names))
        for number, members in enumerate(np.array_split(order, n_splits)):
            fold_of_group[members] = number
    else:
        sizes, filled = np.bincount(of_row), np.zeros(n_splits)
        for group in np.argsort(sizes, kind="stable")[::-1]:
            lightest = filled.argmin()
            fold_of_group[group] = lightest
            filled[lightest] += sizes[group]
    return _folds(fold_of_group[of_row], n_splits)


def time_series_split(
    n: int,
    n_splits: int = 5,
    *,
    gap: int = 0,
    test_size: int | None = None,
    max_train_size: int | None = None,
) -> list[Fold]:
    """Return n_splits pairs (train, held out) for rows in order of time: learn first,
    test later.

    gap: the rows left out between the two, 0 or more. A label that looks h rows ahead
    needs h. test_size: the rows of each test, by default n // (n_splits + 1).
    max_train_size: the most recent rows to train on, by default all.
    Raises ValueError where the first training part would be empty, or a number is out of
    range.

    Invariants: every training row is more than `gap` rows before every test row; the
    tests do not overlap and end with the last row; equal to scikit-learn's
    TimeSeriesSplit (which does not refuse a negative gap).

    >>> [(train.tolist(), held.tolist()) for train, held in time_series_split(6, 2, gap=1)]
    [([0], [2, 3]), ([0, 1, 2], [4, 5])]
    """
    _check_count("n", n, 1)
    _check_splits(n_splits, n - 1, "rows after the first")
    _check_count("gap", gap, 0)
    if max_train_size is not None:
        _check_count("max_train_size", max_train_size, 1)
    size = n // (n_splits + 1) if test_size is None else test_size
    _check_count("test_size", size, 1)
    first = n - n_splits * size
    if first - gap < 1:
        raise ValueError(
            f"{n_splits} tests of {size} rows and a gap of {gap} leave nothing of {n} rows to "
            "train on: use fewer splits, a smaller test_size or a smaller gap"
        )
    rows, folds = np.arange(n), []
    for start in range(first, n, size):
        end = start - gap
        begin = 0 if max_train_size is None else max(0, end - max_train_size)
        folds.append((rows[begin:end], rows[start : start + size]))
    return folds


def _folds(fold_of: np.ndarray, n_splits: int) -> list[Fold]:
    return [
        (np.flatnonzero(fold_of != number), np.flatnonzero(fold_of == number))
        for number in range(n_splits)
    ]
