"""Spaces: ranges on a plain or a log scale, whole numbers, lists; grids and draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Config = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, evenly spread, or evenly in their logarithm if
    `log`; only whole ones if `whole`.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(
                f"low={self.low}, high={self.high}: give finite numbers, low < high"
            )
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low}: a log scale needs low > 0, such as 1e-5")
        if self.whole and (self.low != int(self.low) or self.high != int(self.high)):
            raise ValueError(
                f"low={self.low}, high={self.high}: give whole numbers, such as 1 and 8"
            )

    @property
    def ends(self) -> tuple[float, float]:
        """Where the scale begins and ends: a whole number owns the half step around it."""
        half = 0.5 if self.whole else 0.0
        return self.low - half, self.high + half

    def at(self, share: float) -> float:
        """Return the value at a `share` in [0, 1] of the way; the inverse of `share`."""
        low, high = self.ends
        if self.log:
            value = low * (high / low) ** share
        else:
            value = low + (high - low) * share
        if self.whole:
            value = math.floor(value + 0.5)
        # rounding must not leave the range
        value = min(max(value, self.low), self.high)
        return int(value) if self.whole else float(value)

    def share(self, value: float) -> float:
        """Return how far along the range `value` lies, from 0 to 1."""
        low, high = self.ends
        if self.log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    def draw(self, rng: np.random.Generator) -> float:
        """Return one random value."""
        return self.at(rng.random())


def uniform(low: float, high: float) -> Range:
    """Return the range [low, high] with equal chance for equal differences.

    Raises ValueError unless low < high and both are finite.
    """
    return Range(low, high)


def loguniform(low: float, high: float) -> Range:
    """Return the range [low, high] with equal chance for equal ratios; low > 0.

    Raises ValueError unless 0 < low < high < inf. Invariant: each decade gets the same
    share.
    """
    return Range(low, high, log=True)


def whole(low: int, high: int, log: bool = False) -> Range:
    """Return the whole numbers from `low` to `high`, both included, as for a width or a
    number of layers; with `log`, as many draws from 8 to 16 as from 16 to 32.

    Raises ValueError unless both are whole, low < high, and low > 0 with `log`.
    Invariant: without `log` all numbers have the same chance.
    """
    return Range(low, high, log=log, whole=True)


def draw_config(space: Mapping, rng: np.random.Generator) -> Config:
    """Draw every hyper-parameter of `space`, each from its own range or list,
    independently.
    """
    check_space(space)
    config: Config = {}
    for name, values in space.items():
        if isinstance(values, Range):
            config[name] = values.draw(rng)
        else:
            config[name] = values[rng.integers(len(values))]
    return config


def config_at(space: Mapping, shares: Sequence[float]) -> Config:
    """Return the configuration at the given share in [0, 1) of each range or list."""
    config: Config = {}
    for (name, values), share in zip(space.items(), shares, strict=True):
        if isinstance(values, Range):
            config[name] = values.at(float(share))
        else:
            config[name] = values[int(share * len(values))]
    return config


def grid_points(space: Mapping[str, Sequence]) -> list[Config]:
    """Return every combination of the listed values; their number is the product of the
    lengths.

    The order is that of scikit-learn's ParameterGrid: names sorted, the last one fastest.
    Raises ValueError for a Range, which has no end of values.

    >>> grid_points({"b": [1, 2], "a": ["x"]})
    [{'a': 'x', 'b': 1}, {'a': 'x', 'b': 2}]
    """
    check_space(space)
    for name, values in space.items():
        if isinstance(values, Range):
            raise ValueError(
                f"{name} is a range: a grid needs a list, such as [0.01, 0.1, 1.0]"
            )
    names = sorted(space)
    rows = itertools.product(*(space[name] for name in names))
    return [dict(zip(names, row, strict=True)) for row in rows]


def check_space(space: Mapping) -> None:
    """Raise ValueError for an empty space, or a name without values."""
    if not space:
        raise ValueError("the space is empty: name at least one hyper-parameter")
    for name, values in space.items():
        if not isinstance(values, Range) and (isinstance(values, str) or not len(values)):
            raise ValueError(f"{name}: give a range, or a list with at least one value")


def check_count(name: str, count: int) -> None:
    """Raise ValueError for a count below 1."""
    if count < 1:
        raise ValueError(f"{name}={count}: give at least 1")
