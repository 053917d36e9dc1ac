"""What may be said of a few numbers: their mean, its interval, and paired differences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, from `n` values."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Comparison(Interval):
    """The mean of paired differences a - b, its interval, and in how many pairs a was
    larger.
    """

    wins: int = 0


def interval(values, level: float = 0.95) -> Interval:
    """Return the mean of `values` (n,) with its confidence interval, by Student's t.

    Raises ValueError for fewer than two values, values that are not finite, or a `level`
    outside (0, 1).
    """
    from scipy.special import stdtrit  # scipy.stats would take a second to import

    values = _finite(values)
    if len(values) < 2:
        raise ValueError("an interval needs at least two values: run more seeds")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: give a share between 0 and 1, such as 0.95")
    center = float(values.mean())
    error = values.std(ddof=1) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, 0.5 + level / 2) * error)
    return Interval(center, center - half, center + half, len(values))


def paired(a, b, level: float = 0.95) -> Comparison:
    """Compare two arms run on the same seeds: the mean of a - b with its interval.

    Raises ValueError where the two have different lengths.
    """
    a, b = _finite(a), _finite(b)
    if len(a) != len(b):
        raise ValueError(
            f"{len(a)} and {len(b)} values are no pairs: run both on the same seeds"
        )
    result = interval(a - b, level)
    return Comparison(result.mean, result.low, result.high, result.n, int((a > b).sum()))


def _finite(values) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(
            f"{bad} of {len(values)} values are not finite: count those runs apart"
        )
    return values
