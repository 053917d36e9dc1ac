"""Looks for leaks between training and test rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dlcourse.data_splitting.checks import _column, _rows


@dataclass(frozen=True, eq=False)
class Leak:
    """One way in which test rows are known to the training: `kind`, the test `rows`,
    `message`.

    `kind`: "shared row", "duplicate", "near-duplicate", "group", "time" or "statistics".
    `rows`: int64 (m,), the numbers of the test rows concerned; all of them for
    statistics.
    """

    kind: str
    rows: np.ndarray
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


def check_leakage(
    inputs,
    train,
    test,
    *,
    near: float = 0.1,
    groups=None,
    times=None,
    gap: float = 0,
    statistics: Mapping[str, object] | None = None,
) -> list[Leak]:
    """Return what of the test rows is known in training: a list of `Leak`, empty if none
    is found.

    inputs: (n, ...) numbers. train, test: row numbers. near: rows are near-duplicates
    whose distance is at most this share of the root-mean-square distance of two training
    rows; 0 looks for exact copies only. Bring the columns to like scales first. groups:
    (n,) names that may not be on both sides. times: (n,) numbers; every training time
    must be more than `gap` before the first test time. statistics: "mean", "std", "min"
    or "max" with the values that scaled the data, computed on these same inputs: one for
    each column (n's other axes), each channel (axis 1) or one for all.

    Raises ValueError for row numbers out of range, shapes that do not match or unknown
    names.
    Source: Kapoor & Narayanan (2023) collect such leaks. What it cannot see: a column
    that holds the answer, or tests that were looked at too often.

    Invariants: the kinds do not overlap (a shared row is not also a duplicate); the order
    of rows does not matter; a clean split gives an empty list.
    """
    inputs = np.asarray(inputs)
    n = len(inputs)
    train, test = (
        _rows(name, rows, n) for name, rows in (("train", train), ("test", test))
    )
    if not 0 <= near < 1:
        raise ValueError(f"near={near}: give a share from 0 up to 1, such as 0.1")
    leaks = _copies(inputs.reshape(n, -1), train, test, near)
    if groups is not None:
        groups = _column("groups", groups, n)
        rows = test[np.isin(groups[test], groups[train])]
        shared = len(np.unique(groups[rows]))
        leaks.append(
            Leak(
                "group",
                rows,
                f"test rows of {shared} groups that also train: {len(rows)}",
            )
        )
    if times is not None:
        if gap < 0:
            raise ValueError(f"gap={gap}: give 0 or more, in the units of times")
        times = _column("times", times, n)
        late = int((times[train] + gap >= times[test].min()).sum())
        rows = test[times[test] <= times[train].max() + gap]
        where = "at the time of the first test row or later"
        if gap:
            where = f"without a gap of more than {gap:g} to the first test row"
        text = f"training rows {where}: {late}"
        leaks.append(Leak("time", rows, text))
    for name, values in (statistics or {}).items():
        leaks.append(
            _fitted_elsewhere(name, np.asarray(values, dtype=float), inputs, train, test)
        )
    return [leak for leak in leaks if len(leak.rows)]


def _copies(
    flat: np.ndarray, train: np.ndarray, test: np.ndarray, near: float
) -> list[Leak]:
    shared = np.isin(test, train)
    flat = flat + 0  # -0.0 becomes 0.0, which has other bytes
    known = {flat[row].tobytes() for row in train}
    copied = (
        np.array([flat[row].tobytes() in known for row in test], dtype=bool) & ~shared
    )
    close = np.zeros(len(test), dtype=bool)
    left = np.flatnonzero(~shared & ~copied)
    if near > 0:
        close[left] = _closest(flat, train, test[left]) <= near
    return [
        Leak("shared row", test[shared], f"rows in both parts: {shared.sum()}"),
        Leak(
            "duplicate",
            test[copied],
            f"test rows equal to a training row: {copied.sum()}",
        ),
        Leak(
            "near-duplicate",
            test[close],
            f"test rows nearly equal to a training row: {close.sum()}",
        ),
    ]


def _closest(flat: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return each test row's distance to its nearest training row, over that of two at
    random.
    """
    known = flat[train].astype(float)
    center = known.mean(axis=0)
    known -= center
    squares = (known**2).sum(axis=1)
    # the mean square distance of two rows drawn at random
    scale = math.sqrt(2 * squares.mean())
    if not scale > 0:
        return np.full(len(test), np.inf)
    found = []
    # bounds the memory
    for rows in np.array_split(test, max(1, math.ceil(len(test) / 256))):
        x = flat[rows] - center
        gaps = squares - 2 * x @ known.T + (x**2).sum(axis=1, keepdims=True)
        found.append(gaps.min(axis=1))
    return np.sqrt(np.maximum(np.concatenate(found), 0)) / scale


STATISTICS = {
    "mean": np.mean,
    "std": np.std,
    "min": np.min,
    "max": np.max,
}


def _fitted_elsewhere(name: str, values: np.ndarray, inputs, train, test) -> Leak:
    if name not in STATISTICS:
        raise ValueError(f"statistics has {name!r}: choose from {', '.join(STATISTICS)}")
    if values.shape == inputs.shape[1:]:
        axis = (0,)
    elif inputs.ndim > 2 and values.shape == inputs.shape[1:2]:
        axis = (0, *range(2, inputs.ndim))
    elif values.shape == ():
        axis = tuple(range(inputs.ndim))
    else:
        raise ValueError(
            f"{name} has the shape {values.shape}: give one value for each column "
            f"{inputs.shape[1:]}, each channel {inputs.shape[1:2]}, or one for all"
        )
    unit = float(np.std(inputs[train])) or 1.0

    def differs(rows) -> bool:
        part = inputs[rows].astype(float)
        wanted = [STATISTICS[name](part, axis=axis)]
        count = math.prod(part.shape[a] for a in axis)
        if name == "std" and count > 1:  # both conventions, over n and over n - 1
            wanted.append(wanted[0] * math.sqrt(count / (count - 1)))
        return min(float(np.abs(values - want).max()) for want in wanted) > 1e-5 * unit

    if not differs(train):
        return Leak("statistics", test[:0], "")
    source = "are not those of the training rows"
    if not differs(np.union1d(train, test)):
        source = "were computed on training and test rows together"
    elif not differs(test):
        source = "were computed on the test rows"
    return Leak("statistics", test, f"the values of {name} {source}")
