"""Exercises of chapter 13, warmup: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from dlcourse.lab.exercises import Exercise, Wrong, expect


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
