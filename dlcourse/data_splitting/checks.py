"""What arguments may be, and arrays made of them."""

from __future__ import annotations

import numpy as np

Fold = tuple[np.ndarray, np.ndarray]


def _check_count(name: str, value: object, least: int) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, np.integer))
        or value < least
    ):
        raise ValueError(f"{name}={value!r}: give a whole number of at least {least}")


def _check_splits(n_splits: int, most: int, of: str) -> None:
    _check_count("n_splits", n_splits, 2)
    if n_splits > most:
        raise ValueError(
            f"n_splits={n_splits}, but there are only {most} {of}: use fewer splits"
        )


def _random(seed: int) -> np.random.RandomState:
    _check_count("seed", seed, 0)
    return np.random.RandomState(seed)


def _column(name: str, values, n: int | None = None) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or (n is not None and len(values) != n):
        want = "(n,)" if n is None else f"({n},)"
        raise ValueError(
            f"{name} has the shape {values.shape}: give one for each row, {want}"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity: every row needs one")
    return values


def _classes(labels, n: int | None = None) -> np.ndarray:
    """Number the classes 0, 1, ... in order of appearance for folds, or of name for a
    draw.
    """
    labels = _column("labels", labels, n)
    if labels.dtype.kind == "f" and (labels != np.round(labels)).any():
        raise ValueError("labels are fractions, not classes: cut them into classes first")
    _, first, of_row = np.unique(labels, return_index=True, return_inverse=True)
    return of_row if n is not None else np.argsort(np.argsort(first))[of_row]


def _rows(name: str, rows, n: int) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.ndim != 1 or len(rows) == 0 or rows.dtype.kind not in "iu":
        raise ValueError(f"{name} must be row numbers, one or more whole numbers")
    if rows.min() < 0 or rows.max() >= n:
        raise ValueError(f"{name} has row numbers outside 0 to {n - 1}")
    return rows
