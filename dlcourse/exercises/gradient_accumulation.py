"""Exercises of chapter 11, gradient accumulation: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.gradient_accumulation import split_microbatches
from dlcourse.lab.exercises import Exercise, Wrong, expect


def _unequal_problem(sizes=(5, 2, 1)):
    generator = torch.Generator().manual_seed(0)
    rows = sum(sizes)
    inputs = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 4, (rows,), generator=generator)
    model = nn.Linear(3, 4, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).double())
    return model, split_microbatches(inputs, targets, sizes), (inputs, targets)


def _gradient(model) -> Tensor:
    parts = [p.grad for p in model.parameters()]
    expect(
        all(part is not None for part in parts),
        "There is no gradient in .grad after your function: call backward() on each share.",
    )
    return torch.cat([part.flatten() for part in parts])


def _check_unequal(answer) -> None:
    for sizes in ((4, 4), (5, 2, 1), (1, 7), (6,)):
        model, parts, (inputs, targets) = _unequal_problem(sizes)
        F.cross_entropy(model(inputs), targets).backward()
        want = _gradient(model)
        means, last = torch.zeros_like(want), want
        for x, y in parts:
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            last = _gradient(model)
            means += last / len(parts)
        model.zero_grad()
        answer(model, F.cross_entropy, parts)
        got = _gradient(model)
        if torch.allclose(got, want, rtol=1e-9, atol=1e-12):
            continue
        rows = len(inputs)
        expect(
            not torch.allclose(got, means * len(parts)),
            "You added the means up and divided by nothing: the gradient grows with the number "
            "of micro-batches.",
        )
        expect(
            not torch.allclose(got, means),
            f"You took the mean of the means. With sizes {list(sizes)} an item of the smallest "
            "micro-batch then counts more than one of the largest.",
        )
        expect(
            not torch.allclose(got, last)
            and not torch.allclose(got, last * len(parts[-1][0]) / rows),
            "Only the last micro-batch is left: something cleared .grad between the micro-batches.",
        )
        expect(
            not torch.allclose(got, want * rows),
            "This is the gradient of the sum: divide by all items of the batch.",
        )
        expect(
            False, f"With sizes {list(sizes)} the gradient is not that of the full batch."
        )


def _solve_unequal(model, loss_fn, micro_batches):
    total = sum(len(targets) for _, targets in micro_batches)
    for inputs, targets in micro_batches:
        (loss_fn(model(inputs), targets) * len(targets) / total).backward()


def _mean_of_means(model, loss_fn, micro_batches):
    for inputs, targets in micro_batches:
        (loss_fn(model(inputs), targets) / len(micro_batches)).backward()


def _no_division(model, loss_fn, micro_batches):
    for inputs, targets in micro_batches:
        loss_fn(model(inputs), targets).backward()


def _gradient_of_sum(model, loss_fn, micro_batches):
    for inputs, targets in micro_batches:
        (loss_fn(model(inputs), targets) * len(targets)).backward()


def _cleared_each_time(model, loss_fn, micro_batches):
    total = sum(len(targets) for _, targets in micro_batches)
    for inputs, targets in micro_batches:
        model.zero_grad()
        (loss_fn(model(inputs), targets) * len(targets) / total).backward()


def _check_counts(answer) -> None:
    cases = [(8, 4), (10, 4), (3, 8), (7, 1)]
    for micro_batches, steps in cases:
        got = tuple(answer(micro_batches, steps))
        expect(len(got) == 2, "Return two numbers: backward passes and optimizer steps.")
        backwards, updates = got
        expect(
            backwards == micro_batches,
            f"{micro_batches} micro-batches need {micro_batches} backward passes: each fills .grad "
            f"once, and accumulation leaves none out. You said {backwards}.",
        )
        expect(
            updates != micro_batches // steps or updates == -(-micro_batches // steps),
            f"With {micro_batches} micro-batches and windows of {steps} the last window is short, "
            "but it is a step too.",
        )
        expect(
            updates == -(-micro_batches // steps),
            f"One optimizer step a window: {micro_batches} micro-batches in windows of {steps} "
            f"do not give {updates}.",
        )


def _solve_counts(micro_batches, accumulation_steps):
    return micro_batches, -(-micro_batches // accumulation_steps)


def _fewer_backwards(micro_batches, accumulation_steps):
    windows = -(-micro_batches // accumulation_steps)
    return windows, windows


def _short_window_lost(micro_batches, accumulation_steps):
    return micro_batches, micro_batches // accumulation_steps


def _step_each_time(micro_batches, accumulation_steps):
    return micro_batches, micro_batches


def _stale_path(start, lr, delay, steps, gradient) -> list[float]:
    path = [float(start)]
    for t in range(steps):
        used = gradient(path[t - delay]) if t >= delay else 0.0
        path.append(path[-1] - lr * used)
    return path


def _check_stale(answer) -> None:
    for start, lr, delay, steps in (
        (1.0, 0.5, 0, 3),
        (1.0, 0.5, 1, 5),
        (-2.0, 0.25, 3, 9),
    ):
        for gradient in (lambda w: w, lambda w: w**3):
            got = [float(w) for w in answer(start, lr, delay, steps, gradient)]
            want = _stale_path(start, lr, delay, steps, gradient)
            expect(
                len(got) == len(want),
                f"Return the start and the weight after each of the {steps} steps: "
                f"{len(want)} numbers, not {len(got)}.",
            )
            if all(
                math.isclose(g, w, rel_tol=1e-9, abs_tol=1e-12)
                for g, w in zip(got, want, strict=True)
            ):
                continue
            fresh = _stale_path(start, lr, 0, steps, gradient)
            expect(
                not all(
                    math.isclose(g, w, abs_tol=1e-12)
                    for g, w in zip(got, fresh, strict=True)
                ),
                "Your gradient is fresh: take it at the weight of `delay` steps before.",
            )
            expect(
                got[: delay + 1] == want[: delay + 1],
                f"In the first {delay} steps no gradient has come back yet: the weight stays.",
            )
            expect(
                False, f"With delay {delay} the path should begin {want[: delay + 3]}."
            )


def _solve_stale(start, lr, delay, steps, gradient):
    path = [start]
    for t in range(steps):
        stale = gradient(path[t - delay]) if t >= delay else 0.0
        path.append(path[-1] - lr * stale)
    return path


def _always_fresh(start, lr, delay, steps, gradient):
    path = [start]
    for _ in range(steps):
        path.append(path[-1] - lr * gradient(path[-1]))
    return path


def _starts_at_once(start, lr, delay, steps, gradient):
    path = [start]
    for t in range(steps):
        path.append(path[-1] - lr * gradient(path[max(0, t - delay)]))
    return path


EXERCISES = (
    Exercise(
        "Write accumulate(model, loss_fn, micro_batches): micro_batches is a list of (inputs, "
        "targets) of unequal sizes, loss_fn the mean over the rows. Leave in .grad the gradient "
        "of the mean over all rows.",
        _check_unequal,
        _solve_unequal,
        {
            "average the means": Wrong(_mean_of_means, "mean of the means"),
            "no division": Wrong(_no_division, "divided by nothing"),
            "gradient of the sum": Wrong(_gradient_of_sum, "gradient of the sum"),
            "zero_grad inside the loop": Wrong(_cleared_each_time, "Only the last"),
        },
    ),
    Exercise(
        "Write counts(micro_batches, accumulation_steps): an epoch has that many micro-batches, "
        "and each window of accumulation_steps makes one update, the last one perhaps shorter. "
        "Return (backward passes, optimizer steps).",
        _check_counts,
        _solve_counts,
        {
            "fewer backwards": Wrong(_fewer_backwards, "backward passes"),
            "the short window is lost": Wrong(_short_window_lost, "last window is short"),
            "a step for each micro-batch": Wrong(
                _step_each_time, "One optimizer step a window"
            ),
        },
    ),
    Exercise(
        "Write stale_path(start, lr, delay, steps, gradient): gradient descent on one weight whose "
        "gradient is that of `delay` steps before; until the first one is there, the weight stays. "
        "Return the list of the start and the weight after each step.",
        _check_stale,
        _solve_stale,
        {
            "a fresh gradient": Wrong(_always_fresh, "is fresh"),
            "a gradient from the start on": Wrong(
                _starts_at_once, "no gradient has come back"
            ),
        },
    ),
)
