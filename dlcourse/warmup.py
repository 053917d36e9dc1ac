"""Warm-up: start with a small learning rate, and raise it to the base rate within one
run.

Every schedule here is a pure function of the update t = 0, 1, 2, ...: it returns the
factor on the optimizer's base learning rate. Use it as `fit(schedule=...)`, or as
`LambdaLR(optimizer, ...)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dlcourse.lab.exercises import Exercise, Wrong, expect

# update, from 0, to the factor on the base learning rate
Schedule = Callable[[int], float]


def linear_warmup(steps: int, start: float = 0.0) -> Schedule:
    """Return a schedule that rises in a line from `start` at update 0 to 1 at update
    `steps`.

    `steps` >= 0 counts optimizer updates, `start` is a factor in [0, 1]. From update
    `steps` on the factor is exactly 1; with `steps` = 0 it always is.
    Raises ValueError for settings out of range. Source: Goyal et al. (2017), "gradual
    warmup".
    Invariant: never falls, and stays in [start, 1].
    """
    _check_steps("steps", steps)
    _check_factor("start", start)

    def factor(t: int) -> float:
        return 1.0 if t >= steps else start + (1 - start) * t / steps

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
    warm-up ends; the warm-up rises from `start` * schedule(0) to schedule(0). Without it
    the schedule runs from update 0 and the warm-up multiplies it.
    Raises ValueError for `steps` < 0 or `start` outside [0, 1].
    Invariant: with `steps` = 0 it equals `schedule`.
    """

    schedule: Schedule
    steps: int
    start: float = 0.0
    prefix: bool = True

    def __post_init__(self) -> None:
        linear_warmup(self.steps, self.start)  # for its checks

    def __call__(self, t: int) -> float:
        at = max(t - self.steps, 0) if self.prefix else t
        return linear_warmup(self.steps, self.start)(t) * self.schedule(at)


@dataclass(frozen=True)
class WarmupCosine:
    """Rise in a line for `steps` updates, then fall along half a cosine to `end` at
    `total`.

    `steps` < `total` count optimizer updates; `start` and `end` are factors in [0, 1]. At
    update `steps` the factor is 1, at `total` and after it is `end`.
    Raises ValueError for settings out of range. Source: Loshchilov & Hutter (2017) for
    the cosine, Goyal et al. (2017) for the warm-up.
    Invariant: one peak, of 1, at update `steps`.
    """

    steps: int
    total: int
    start: float = 0.0
    end: float = 0.0

    def __post_init__(self) -> None:
        linear_warmup(self.steps, self.start)
        _check_factor("end", self.end)
        _check_steps("total", self.total)
        if self.total <= self.steps:
            raise ValueError(
                f"steps={self.steps} of warm-up and total={self.total}: `total` counts all updates "
                "of the run, warm-up included, so give more of them or a shorter warm-up"
            )

    def __call__(self, t: int) -> float:
        if t < self.steps:
            return linear_warmup(self.steps, self.start)(t)
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


# --- exercises ------------------------------------------------------------------------------------


def _check_rate(answer: Callable) -> None:
    for peak, steps in ((0.4, 4), (1.0, 10)):
        rates = [answer(t, peak, steps) for t in (0, steps - 1, steps, steps + 1)]
        expect(
            all(rate is not None for rate in rates), "Return the learning rate, a number."
        )
        first, before, at, after = (float(rate) for rate in rates)
        expect(
            first == 0,
            f"At update 0 the rate is {first:g}, and the line starts at 0: the first update has "
            "number 0, so this is off by one.",
        )
        expect(
            abs(at - peak) < 1e-12 and before < at,
            f"With a warm-up of {steps} updates the rate at update {steps} is {at:g}, at the one "
            f"before {before:g}; the peak {peak:g} is reached at update {steps}, neither before "
            "nor after: off by one.",
        )
        expect(
            abs(after - peak) < 1e-12,
            f"At update {steps + 1} the rate is {after:g}: after the warm-up it stays at the peak.",
        )
        middle = float(answer(steps // 2, peak, steps))
        expect(
            abs(middle - peak / 2) < 1e-12,
            f"Half way the rate is {middle:g}, and half the peak is {peak / 2:g}: rise in a line.",
        )


def _solve_rate(t, peak, steps):
    return peak * min(1.0, t / steps)


def _rate_from_one(t, peak, steps):
    return peak * min(1.0, (t + 1) / steps)


def _rate_late(t, peak, steps):
    return peak * min(1.0, t / (steps + 1))


def _rate_without_end(t, peak, steps):
    return peak * t / steps


def _rate_in_a_jump(t, peak, steps):
    return 0.0 if t < steps else peak


def _rate_squared(t, peak, steps):
    return peak * min(1.0, (t / steps) ** 2)


class _Watched(torch.optim.SGD):
    """SGD that notes the learning rate of each update, and each reset or swap of its
    state.
    """

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.5, momentum=0.9)
        self.rates: list[float] = []

    def step(self, closure=None):
        self.rates.append(self.param_groups[0]["lr"])
        return super().step(closure)


def _check_one_run(answer: Callable) -> None:
    made, gradients, points = [], (1.0, -2.0, 0.5, 3.0, -1.0, 2.0), []
    weight = torch.nn.Parameter(torch.zeros(1))

    def make_optimizer():
        made.append(_Watched([weight]))
        return made[-1]

    def backward(t):
        points.append(weight.item())
        weight.grad = torch.tensor([gradients[t % 6]])

    answer(make_optimizer, backward, 4, 6)
    expect(bool(made), "make_optimizer() was never called: the run needs an optimizer.")
    expect(
        len(made) == 1,
        f"You made {len(made)} optimizers. Warm-up is the beginning of one run, not a training "
        "before it: the same optimizer, with its momentum, goes on.",
    )
    optimizer = made[0]
    expect(
        len(optimizer.rates) == 6,
        f"You made {len(optimizer.rates)} updates, and the run has 6: the warm-up is counted "
        "among them, it is no extra training.",
    )
    want = [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]
    expect(
        all(abs(a - b) < 1e-9 for a, b in zip(optimizer.rates, want, strict=True)),
        f"The updates had the rates {[round(rate, 4) for rate in optimizer.rates]}, and should "
        f"have {want}: set the rate of each group before each update.",
    )
    position, velocity, path = 0.0, 0.0, []
    for rate, gradient in zip(want, gradients, strict=True):
        path.append(position)
        velocity = 0.9 * velocity + gradient
        position -= rate * velocity
    path.append(position)
    points.append(weight.item())
    expect(
        len(points) == len(path)
        and all(abs(a - b) < 1e-5 for a, b in zip(points, path, strict=True)),
        "The weights are not those of one run: call backward(t) once for each update, with "
        "t = 0, 1, ..., and leave the weights and the optimizer's state alone.",
    )


def _solve_one_run(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    peak = optimizer.param_groups[0]["lr"]
    for t in range(total):
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, t / warmup)
        backward(t)
        optimizer.step()


def _train_twice(make_optimizer, backward, warmup, total):
    for start, end in ((0, warmup), (warmup, total)):
        optimizer = make_optimizer()
        peak = optimizer.param_groups[0]["lr"]
        for t in range(start, end):
            optimizer.param_groups[0]["lr"] = peak * min(1.0, t / warmup)
            backward(t)
            optimizer.step()


def _train_more(make_optimizer, backward, warmup, total):
    _solve_one_run(make_optimizer, backward, warmup, warmup + total)


def _never_warm(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    for t in range(total):
        backward(t)
        optimizer.step()


def _forget_momentum(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    peak = optimizer.param_groups[0]["lr"]
    for t in range(total):
        if t == warmup:
            optimizer.state.clear()
        optimizer.param_groups[0]["lr"] = peak * min(1.0, t / warmup)
        backward(t)
        optimizer.step()


def _check_updates(answer: Callable) -> None:
    for case in ((2, 1000, 10, 4, 2), (1, 1000, 16, 4, 1), (3, 640, 8, 1, 4)):
        epochs, rows, micro, pieces, processes = case
        got = answer(*case)
        expect(got is not None, "Return the number of optimizer updates.")
        want = epochs * math.ceil(rows / (micro * pieces * processes))
        expect(
            got != epochs * math.ceil(rows / micro) or got == want,
            f"{got} is the number of micro-batches: the warm-up counts updates, and an update has "
            f"{pieces} micro-batches on each of {processes} process(es).",
        )
        expect(
            got != epochs * math.ceil(rows / (micro * pieces)) or got == want,
            f"{got} is what one process alone would need: the {processes} processes share the "
            "rows of each update.",
        )
        expect(
            got == want,
            f"For {case} you return {got}, and it is {want}: an epoch has rows / (rows of an "
            "update) updates, the last, short one counted.",
        )


def _solve_updates(epochs, rows, micro_batch, accumulation_steps, processes):
    rows_of_an_update = micro_batch * accumulation_steps * processes
    return epochs * -(-rows // rows_of_an_update)


def _count_micro_batches(epochs, rows, micro_batch, accumulation_steps, processes):
    return epochs * -(-rows // micro_batch)


def _count_alone(epochs, rows, micro_batch, accumulation_steps, processes):
    return epochs * -(-rows // (micro_batch * accumulation_steps))


def _count_full(epochs, rows, micro_batch, accumulation_steps, processes):
    return epochs * (rows // (micro_batch * accumulation_steps * processes))


EXERCISES = (
    Exercise(
        "Write your_rate(t, peak, steps): the learning rate at update t = 0, 1, ... of a linear "
        "warm-up from 0 that reaches the peak at update `steps` and stays there.",
        _check_rate,
        _solve_rate,
        {
            "count from 1": Wrong(_rate_from_one, "off by one"),
            "one update late": Wrong(_rate_late, "off by one"),
            "no end": Wrong(_rate_without_end, "stays at the peak"),
            "a jump": Wrong(_rate_in_a_jump, "rise in a line"),
            "a parabola": Wrong(_rate_squared, "rise in a line"),
        },
    ),
    Exercise(
        "Write your_run(make_optimizer, backward, warmup, total): make_optimizer() returns an "
        "optimizer at its base rate, backward(t) fills the gradients of update t. Make `total` "
        "updates, the rate rising in a line from 0 at update 0 to the base rate at `warmup`.",
        _check_one_run,
        _solve_one_run,
        {
            "train twice": Wrong(_train_twice, "the beginning of one run"),
            "extra training": Wrong(_train_more, "no extra training"),
            "no warm-up": Wrong(_never_warm, "set the rate of each group"),
            "state thrown away": Wrong(_forget_momentum, "the optimizer's state alone"),
        },
    ),
    Exercise(
        "Write your_updates(epochs, rows, micro_batch, accumulation_steps, processes): how many "
        "optimizer updates a warm-up of `epochs` epochs has. `micro_batch` is the rows of one "
        "micro-batch on one process.",
        _check_updates,
        _solve_updates,
        {
            "count micro-batches": Wrong(_count_micro_batches, "number of micro-batches"),
            "forget the processes": Wrong(_count_alone, "share the rows"),
            "drop the short batch": Wrong(_count_full, "the last, short one"),
        },
    ),
)
