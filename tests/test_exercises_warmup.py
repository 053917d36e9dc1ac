"""Exercises of chapter 13: more answers than the usual mistakes, right ones and wrong ones."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from answers import accepts, rejects
from torch.optim import lr_scheduler

from dlcourse.exercises.warmup import EXERCISES

RATE, RUN, LENGTH = EXERCISES


# --------------------------------------------------------------------------- rate


def as_a_tensor(t, peak, steps):
    return torch.tensor(peak) * torch.tensor((t + 1) / max(steps, 1)).clamp(max=1)


def as_numpy(t, peak, steps):
    return np.minimum(peak, peak * np.float64(t + 1) / (steps or 1))


def added_up_in_a_loop(t, peak, steps):
    rate = 0.0
    for _ in range(min(t + 1, steps)):
        rate += peak / steps
    return rate if steps else peak


def by_interpolation(t, peak, steps):
    if steps < 2:
        return peak
    return np.interp(t, [0, steps - 1], [peak / steps, peak])


def as_a_fraction(t, peak, steps):
    return Fraction(peak) * (1 if t + 1 >= steps else Fraction(t + 1, steps))


def of_one_element(t, peak, steps):
    return torch.tensor([peak * (1 if t >= steps else (t + 1) / steps)])


def by_linear_lr(t, peak, steps):
    if steps < 2:
        return peak
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler = lr_scheduler.LinearLR(optimizer, 1 / steps, 1.0, steps - 1)
    for _ in range(t):
        optimizer.step()
        scheduler.step()
    return scheduler.get_last_lr()[0]


@pytest.mark.parametrize(
    "answer",
    [
        as_a_tensor,
        as_numpy,
        added_up_in_a_loop,
        by_interpolation,
        as_a_fraction,
        of_one_element,
        by_linear_lr,
    ],
    ids=lambda answer: answer.__name__,
)
def test_rate_accepts(answer):
    accepts(RATE, answer)


def ramp(shape):
    def answer(t, peak, steps):
        return peak if t >= steps else peak * shape(t, steps)

    return answer


def with_a_count_of_its_own():
    count = iter(range(10**9))

    def answer(t, peak, steps):
        next(count)
        return peak * (t + 1) / steps + next(count) * 1e-3 if t < steps else peak

    return answer


def table_of_the_shown_case(t, peak, steps):
    return {0: 0.1, 1: 0.2, 2: 0.3}.get(t, 0.4)


WRONG_RATES = {
    "cosine ramp": (ramp(lambda t, w: (1 - math.cos(math.pi * (t + 1) / w)) / 2), "line"),
    "constant half": (ramp(lambda t, w: 0.5), "line"),
    "constant tenth": (ramp(lambda t, w: 0.1), "line"),
    "root": (ramp(lambda t, w: math.sqrt((t + 1) / w)), "line"),
    "exponential": (ramp(lambda t, w: 1 - math.exp(-(t + 1) / w)), "line"),
    "from zero": (ramp(lambda t, w: t / w), "would move no weight"),
    "from zero, in time": (ramp(lambda t, w: t / max(w - 1, 1)), "would move no weight"),
    "one early": (ramp(lambda t, w: min(1, (t + 2) / w)), "line"),
    "integer division": (ramp(lambda t, w: (t + 1) // w), "would move no weight"),
    "no warm-up": (lambda t, peak, steps: peak, "no warm-up"),
    "the factor": (
        lambda t, peak, steps: 1.0 if t >= steps else (t + 1) / steps,
        "factor on the peak",
    ),
    "a slope for the shown peak": (
        lambda t, peak, steps: min(peak, 0.1 * (t + 1)),
        "no warm-up",
    ),
    "a table": (table_of_the_shown_case, "line"),
    "falls afterwards": (
        lambda t, peak, steps: (
            peak * (t + 1) / steps if t < steps else peak * max(steps, 1) / (t + 1)
        ),
        "stays at the peak",
    ),
    "off at zero steps": (
        lambda t, peak, steps: peak * min(1, (t + 1) / steps) if steps else 0.0,
        "no warm-up",
    ),
    "nothing": (lambda t, peak, steps: None, "returns None"),
    "a list": (lambda t, peak, steps: [peak, peak], "one number"),
    "nan": (lambda t, peak, steps: math.nan, "finite number"),
    "a count of its own": (with_a_count_of_its_own(), "other rates"),
}


@pytest.mark.parametrize("name", WRONG_RATES)
def test_rate_rejects(name):
    answer, words = WRONG_RATES[name]
    rejects(RATE, answer, words)


# --------------------------------------------------------------------------- run


def with_lambda_lr(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    scheduler = lr_scheduler.LambdaLR(
        optimizer, lambda t: 1.0 if t >= warmup else (t + 1) / warmup
    )
    for t in range(total):
        optimizer.zero_grad()
        backward(t)
        optimizer.step()
        scheduler.step()


def with_linear_lr(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    schedulers = []
    if warmup > 1:
        schedulers = [lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)]
    for t in range(total):
        backward(t)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


def two_loops(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    peaks = [group["lr"] for group in optimizer.param_groups]
    for t in range(warmup):
        backward(t)
        for peak, group in zip(peaks, optimizer.param_groups, strict=True):
            group["lr"] = np.float64(peak) * (t + 1) / warmup
        optimizer.step()
    for t in range(warmup, total):
        backward(t)
        optimizer.step()


def rate_as_tensor(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    peaks = [group["lr"] for group in optimizer.param_groups]
    factors = torch.linspace(0, 1, warmup + 1, dtype=torch.float64)[1:]
    t = 0
    while t < total:
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = peaks[number] * (factors[t].item() if t < warmup else 1)
        backward(t)
        optimizer.step()
        t += 1


def returns_something(make_optimizer, backward, warmup, total):
    RUN.solve(make_optimizer, backward, warmup, total)
    return "done"


@pytest.mark.parametrize(
    "answer",
    [with_lambda_lr, with_linear_lr, two_loops, rate_as_tensor, returns_something],
    ids=lambda answer: answer.__name__,
)
def test_run_accepts(answer):
    accepts(RUN, answer)


def run_with(
    factor, before=True, backwards=1, zero_after=False, calls=lambda t: t, extra=0
):
    def answer(make_optimizer, backward, warmup, total):
        optimizer = make_optimizer()
        peaks = [group["lr"] for group in optimizer.param_groups]
        for t in range(total + extra):

            def set_rates(t=t):
                for peak, group in zip(peaks, optimizer.param_groups, strict=True):
                    group["lr"] = peak * factor(t, warmup)

            if before:
                set_rates()
            for _ in range(backwards):
                backward(calls(t))
            if zero_after:
                optimizer.zero_grad()
            optimizer.step()
            if not before:
                set_rates()

    return answer


def linear(t, warmup):
    return 1.0 if t >= warmup else (t + 1) / warmup


def two_optimizers_at_once(make_optimizer, backward, warmup, total):
    make_optimizer()
    RUN.solve(make_optimizer, backward, warmup, total)


def an_optimizer_of_its_own(make_optimizer, backward, warmup, total):
    RUN.solve(
        lambda: torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5),
        backward,
        warmup,
        total,
    )


def compounding(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    for t in range(total):
        for group in optimizer.param_groups:
            group["lr"] *= linear(t, warmup)
        backward(t)
        optimizer.step()


def puts_the_weights_back(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    first = [weight.detach().clone() for weight in weights]
    peaks = [group["lr"] for group in optimizer.param_groups]
    for t in range(total):
        if t == warmup:
            for weight, start in zip(weights, first, strict=True):
                weight.data.copy_(start)
        for peak, group in zip(peaks, optimizer.param_groups, strict=True):
            group["lr"] = peak * linear(t, warmup)
        backward(t)
        optimizer.step()


WRONG_RUNS = {
    "from zero": (run_with(lambda t, w: min(1, t / w) if w else 1), "set the rate"),
    "rate after the step": (run_with(linear, before=False), "set the rate before"),
    "half": (run_with(lambda t, w: 0.5 if t < w else 1), "set the rate"),
    "falls": (run_with(lambda t, w: linear(t, w) / (t + 1)), "set the rate"),
    "one update more": (run_with(linear, extra=1), "no extra training"),
    "two passes an update": (run_with(linear, backwards=2), "once for each update"),
    "from t = 1": (run_with(linear, calls=lambda t: t + 1), "once for each update"),
    "always batch 0": (run_with(linear, calls=lambda t: 0), "once for each update"),
    "gradients thrown away": (run_with(linear, zero_after=True), "not those of one run"),
    "zero warm-up": (run_with(lambda t, w: min(1, (t + 1) / w)), "divides by 0"),
    "two optimizers": (two_optimizers_at_once, "You made 2 optimizers"),
    "its own optimizer": (an_optimizer_of_its_own, "never called"),
    "compounding": (compounding, "set the rate"),
    "weights put back": (puts_the_weights_back, "not those of one run"),
}


@pytest.mark.parametrize("name", WRONG_RUNS)
def test_run_rejects(name):
    answer, words = WRONG_RUNS[name]
    rejects(RUN, answer, words)


# --------------------------------------------------------------------------- length


def in_a_loop(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = 0
    for _ in range(epochs):
        left = rows
        while left > 0:
            left -= micro_batch * accumulation_steps * processes
            updates += 1
    return [updates, updates * processes]


def in_tensors(epochs, rows, micro_batch, accumulation_steps, processes):
    size = torch.tensor(micro_batch * accumulation_steps * processes)
    updates = torch.ceil(torch.tensor(rows) / size) * epochs
    return updates, updates * processes


def in_numpy(*case):
    return np.array(LENGTH.solve(*case))


def window_by_window(epochs, rows, micro_batch, accumulation_steps, processes):
    of_a_process = math.ceil(rows / processes)
    micro_batches = math.ceil(of_a_process / micro_batch)
    updates = epochs * math.ceil(micro_batches / accumulation_steps)
    return float(updates), float(updates * processes)


def one_tensor(*case):
    return torch.tensor(LENGTH.solve(*case))


@pytest.mark.parametrize(
    "answer",
    [in_a_loop, in_tensors, in_numpy, window_by_window, one_tensor],
    ids=lambda answer: answer.__name__,
)
def test_length_accepts(answer):
    accepts(LENGTH, answer)


def lengths(count, given=lambda updates, processes, pieces: updates * processes):
    def answer(epochs, rows, micro_batch, accumulation_steps, processes):
        updates = count(epochs, rows, micro_batch, accumulation_steps, processes)
        return updates, given(updates, processes, accumulation_steps)

    return answer


def right(e, r, m, a, p):
    return LENGTH.solve(e, r, m, a, p)[0]


WRONG_LENGTHS = {
    "rows": (lengths(lambda e, r, m, a, p: e * r), "you count"),
    "micro-batches": (lengths(lambda e, r, m, a, p: e * -(-r // m)), "micro-batches"),
    "no processes": (
        lengths(lambda e, r, m, a, p: e * -(-r // (m * a))),
        "share the rows",
    ),
    "no accumulation": (
        lengths(lambda e, r, m, a, p: e * -(-r // (m * p))),
        "counts each micro-batch as an update",
    ),
    "rounded down": (lengths(lambda e, r, m, a, p: e * (r // (m * a * p))), "short one"),
    "rounded at the end": (
        lengths(lambda e, r, m, a, p: math.ceil(e * r / (m * a * p))),
        "before you multiply",
    ),
    "not rounded": (
        lengths(lambda e, r, m, a, p: e * r / (m * a * p)),
        "round up before",
    ),
    "one epoch": (lengths(lambda e, r, m, a, p: -(-r // (m * a * p))), "you count"),
    "the first case": (lambda *case: (26, 52), "you count"),
    "updates given": (lengths(right, lambda u, p, a: u), "ends its warm-up"),
    "divided": (lengths(right, lambda u, p, a: u / p), "steps, not"),
    "micro-batches given": (lengths(right, lambda u, p, a: u * a), "none at the other"),
    "one number": (lambda *case: 26, "two numbers"),
    "three numbers": (lambda *case: (1, 2, 3), "two numbers"),
    "nothing": (lambda *case: None, "returns None"),
}


@pytest.mark.parametrize("name", WRONG_LENGTHS)
def test_length_rejects(name):
    answer, words = WRONG_LENGTHS[name]
    rejects(LENGTH, answer, words)
