"""Warm-up: start with a small learning rate, and raise it to the base rate within one
run.

Every schedule here is a pure function of the update t = 0, 1, 2, ...: it returns the
factor on the optimizer's base learning rate. Use it as `fit(schedule=...)`, or as
`LambdaLR(optimizer, ...)`.

The convention of the whole course: a linear warm-up of `steps` updates has the factor
(t + 1) / steps. So the first update has a small rate and not 0, and the last update of the
warm-up, number steps - 1, is the first at the full rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

# update, from 0, to the factor on the base learning rate
Schedule = Callable[[int], float]


def linear_warmup(steps: int) -> Schedule:
    """Return a schedule that rises in a line: (t + 1) / steps, and 1 from update
    `steps` - 1 on.

    `steps` >= 0 counts optimizer updates; with `steps` = 0 or 1 the factor always is 1.
    It equals LinearLR(start_factor=1 / steps, total_iters=steps - 1).
    Raises ValueError for `steps` out of range. Source: Goyal et al. (2017), "gradual
    warmup".
    Invariant: never falls, and stays in (0, 1].
    """
    _check_steps("steps", steps)

    def factor(t: int) -> float:
        return 1.0 if t >= steps else (t + 1) / steps

    return factor


def constant_warmup(steps: int, start: float) -> Schedule:
    """Return a schedule that is `start` for the first `steps` updates and 1 from then on.

    `steps` >= 0 counts optimizer updates, `start` is a factor in [0, 1].
    Raises ValueError for settings out of range. Source: He et al. (2016), who used a
    tenth.
    Invariant: takes two values only, so it has one jump.
    """
    _check_steps("steps", steps)
    _check_factor("start", start)

    def factor(t: int) -> float:
        return 1.0 if t >= steps else start

    return factor


@dataclass(frozen=True)
class WarmupWrapper:
    """Put a linear warm-up of `steps` updates before `schedule`, any pure function of the
    update.

    With `prefix` (as torch's SequentialLR) the schedule starts at its own 0 when the
    warm-up ends, at update `steps`; the warm-up rises to schedule(0). Without it the
    schedule runs from update 0 and the warm-up multiplies it.
    Raises ValueError for `steps` < 0.
    Invariant: with `steps` = 0 it equals `schedule`.
    """

    schedule: Schedule
    steps: int
    prefix: bool = True

    def __post_init__(self) -> None:
        linear_warmup(self.steps)  # for its checks

    def __call__(self, t: int) -> float:
        at = max(t - self.steps, 0) if self.prefix else t
        return linear_warmup(self.steps)(t) * self.schedule(at)


@dataclass(frozen=True)
class WarmupCosine:
    """Rise in a line for `steps` updates, then fall along half a cosine to `end` at
    `total`.

    `steps` < `total` count optimizer updates; `end` is a factor in [0, 1]. At the updates
    `steps` - 1 and `steps` the factor is 1, at `total` and after it is `end`.
    Raises ValueError for settings out of range. Source: Loshchilov & Hutter (2017) for
    the cosine, Goyal et al. (2017) for the warm-up.
    Invariant: rises up to update `steps` - 1, and falls from update `steps` on.
    """

    steps: int
    total: int
    end: float = 0.0

    def __post_init__(self) -> None:
        linear_warmup(self.steps)
        _check_factor("end", self.end)
        _check_steps("total", self.total)
        if self.total <= self.steps:
            raise ValueError(
                f"steps={self.steps} of warm-up and total={self.total}: `total` counts all updates "
                "of the run, warm-up included, so give more of them or a shorter warm-up"
            )

    def __call__(self, t: int) -> float:
        if t < self.steps:
            return linear_warmup(self.steps)(t)
        done = min(1.0, (t - self.steps) / (self.total - self.steps))
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class NoamLR:
    """Rise in a line for `steps` updates, then fall as one over the square root of the
    update.

    The factor is width^-0.5 * min(n^-0.5, n * steps^-1.5) with n = t + 1, the number of
    the update counted from 1; so the peak is (width * steps)^-0.5, and the optimizer's
    base rate is 1.
    `steps` >= 1 counts optimizer updates, `width` >= 1 is the model's. Raises ValueError
    for less.
    Source: Vaswani et al. (2017), section 5.3; "Noam" is Noam Shazeer.
    Invariant: the two branches meet at n = steps, the peak.
    """

    width: int
    steps: int

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("steps", self.steps)):
            _check_steps(name, value, least=1)

    def __call__(self, t: int) -> float:
        # the first update is number 1: at 0 the second branch would give a rate of 0
        n = t + 1
        return self.width**-0.5 * min(n**-0.5, n * self.steps**-1.5)


def warmup_updates(epochs: float, rows: int, batch_size: int) -> int:
    """Return how many optimizer updates `epochs` epochs of warm-up are, rounded to the
    nearest.

    `rows` >= 1 are the training rows; `batch_size` >= 1 the rows of one update, over all
    micro-batches and all processes together. The last, short batch of an epoch is an
    update too.
    Raises ValueError for a negative `epochs` or counts below 1.
    """
    if not (epochs >= 0 and math.isfinite(epochs)):
        raise ValueError(
            f"epochs={epochs}: give a number of at least 0, such as 5 or 0.5"
        )
    _check_steps("rows", rows, least=1)
    _check_steps("batch_size", batch_size, least=1)
    return round(epochs * math.ceil(rows / batch_size))


def stable_lr_range(
    lrs: Sequence[float], values, at_least: float, share: float = 1.0
) -> tuple[float, float] | None:
    """Return the lowest and the highest learning rate of the widest range that trains, or
    None.

    `values` (learning rates, seeds) holds a result of each run, such as accuracy; a run
    trains when it reaches `at_least` (NaN never does), a rate when a `share` in (0, 1] of
    its runs does. `lrs` are positive and rising. A range has no failing rate inside; the
    widest is the one of the largest highest / lowest, of equals the first.
    Raises ValueError for rates that do not rise, or another number of rates than of rows.
    Invariant: lowering `at_least` or `share` never makes the range narrower.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    rates = [float(lr) for lr in lrs]
    if values.ndim != 2 or values.shape[1] == 0 or len(values) != len(rates):
        raise ValueError(
            f"{len(rates)} learning rates and values of shape {tuple(values.shape)}: give one row "
            "a learning rate and one column a seed"
        )
    if (
        not rates
        or rates[0] <= 0
        or any(b <= a for a, b in zip(rates, rates[1:], strict=False))
    ):
        raise ValueError(
            f"the learning rates {rates} must be positive and rise: sort them"
        )
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: give a part of the seeds above 0 and at most 1")
    trained = ((values >= at_least).double().mean(1) >= share).tolist()
    widest = None
    for i in range(len(rates)):
        for j in range(i, len(rates)):
            wider = widest is None or rates[j] / rates[i] > widest[1] / widest[0]
            if all(trained[i : j + 1]) and wider:
                widest = rates[i], rates[j]
    return widest


def _check_steps(name: str, value: int, least: int = 0) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: give a whole number of at least {least}")


def _check_factor(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(
            f"{name}={value!r}: give a factor on the base learning rate, from 0 to 1, such as 0.1"
        )
