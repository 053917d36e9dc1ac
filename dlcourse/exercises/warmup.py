"""Exercises of chapter 13, warmup: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dlcourse.lab.exercises import Exercise, Hint, Wrong, expect

# --------------------------------------------------------------------------- the rate

RATE_CASES = (  # (peak, updates of warm-up)
    (0.4, 4),
    (1.0, 10),
    (0.003, 7),
    (2.5, 2),
    (0.7, 1),
    (0.05, 250),
    (0.1, 0),
)


def _number(value: object, name: str) -> float:
    """Return a Python, NumPy or tensor number as a float."""
    expect(value is not None, f"Return {name}, a number: your function returns None.")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise Hint(f"Return {name}, one number, not {value!r}.") from error
    expect(math.isfinite(number), f"Return {name}, a finite number, not {number}.")
    return number


def _rates_of(answer: Callable, times: Sequence[int], peak: float, steps: int):
    try:
        return [_number(answer(t, peak, steps), "the learning rate") for t in times]
    except ZeroDivisionError as error:
        if steps:
            raise
        raise Hint(
            "With steps = 0 there is no warm-up, and every update has the peak rate: your "
            "code divides by 0."
        ) from error


def _check_rate(answer: Callable) -> None:
    for peak, steps in RATE_CASES:
        times = list(range(2 * steps + 4))
        found = _rates_of(answer, times, peak, steps)
        again = _rates_of(answer, times[::-1], peak, steps)[::-1]
        expect(
            found == again,
            "Called in another order your function gives other rates: let the rate depend on "
            "t, peak and steps alone.",
        )
        want = [peak * min(1.0, (t + 1) / steps) if steps else peak for t in times]
        tolerance = 1e-6 * peak
        wrong = [t for t in times if not abs(found[t] - want[t]) <= tolerance]
        if wrong:
            raise Hint(_what_is_wrong(found, want, wrong[0], peak, steps))


def _what_is_wrong(
    found: list[float], want: list[float], t: int, peak: float, steps: int
) -> str:
    def close(a: Sequence[float], b: Sequence[float]) -> bool:
        return all(abs(x - y) <= 1e-6 * peak for x, y in zip(a, b, strict=True))

    if steps == 0:
        return (
            f"With steps = 0 there is no warm-up, and every update has the peak rate "
            f"{peak:g}. Yours is {found[t]:g} at update {t}."
        )
    where = f"With a peak of {peak:g} and a warm-up of {steps} updates"
    if close(found, [peak] * len(found)):
        return f"{where} the rate is the peak from update 0 on: no warm-up."
    if close(found, [rate / peak for rate in want]):
        return "You return the factor on the peak: return the rate, peak times factor."
    if found[0] == 0:
        return (
            f"{where} the rate is 0 at update 0: that update would move no weight. The first "
            f"update has the number 0 and the rate peak / steps, which is {want[0]:g}."
        )
    if t >= steps:
        return (
            f"{where} the rate is {found[t]:g} at update {t}: after the warm-up it stays at "
            "the peak."
        )
    if t == steps - 1:
        return (
            f"{where} the rate is {found[t]:g} at update {t}. That is the last update of the "
            f"warm-up, because the first has the number 0: it has the peak rate."
        )
    return (
        f"{where} the rate is {found[t]:g} at update {t}, and should be {want[t]:g}: rise in "
        f"a line, in {steps} equal steps, of which update 0 makes the first."
    )


def _solve_rate(t, peak, steps):
    if t >= steps:
        return peak
    return peak * (t + 1) / steps


def _rate_from_zero(t, peak, steps):
    return peak * min(1.0, t / steps) if steps else peak


def _rate_late(t, peak, steps):
    return peak * min(1.0, (t + 1) / (steps + 1))


def _rate_without_end(t, peak, steps):
    return peak * (t + 1) / steps if steps else peak


def _rate_in_a_jump(t, peak, steps):
    return peak / steps if t < steps - 1 else peak


def _rate_squared(t, peak, steps):
    return peak * min(1.0, ((t + 1) / steps) ** 2) if steps else peak


def _rate_never_zero_steps(t, peak, steps):
    return peak * min(1.0, (t + 1) / steps)


def _rate_cosine_ramp(t, peak, steps):
    if t >= steps:
        return peak
    return peak * (1 - math.cos(math.pi * (t + 1) / steps)) / 2


# --------------------------------------------------------------------------- one run

RUN_CASES = (  # (optimizer, base rates of its groups, updates of warm-up, of the run)
    (torch.optim.SGD, (0.5,), 4, 6),
    (torch.optim.Adam, (0.1, 0.02), 3, 9),
    (torch.optim.SGD, (0.2, 0.4, 0.1), 5, 7),
    (torch.optim.SGD, (0.3,), 1, 3),
    (torch.optim.Adam, (0.05,), 8, 8),
    (torch.optim.SGD, (0.3,), 0, 4),
)


class _Scene:
    """Weights with an optimizer that notes the rates of each update."""

    def __init__(self, kind: type, base_rates: Sequence[float]):
        self.kind, self.base_rates = kind, base_rates
        draw = torch.Generator().manual_seed(len(base_rates))
        self.weights = [torch.nn.Parameter(torch.ones(3)) for _ in base_rates]
        self.slopes = torch.randn(60, len(base_rates), 3, generator=draw)
        self.made: list[torch.optim.Optimizer] = []
        self.rates: list[list[float]] = []
        self.asked: list[int] = []

    def make_optimizer(self) -> torch.optim.Optimizer:
        groups = [
            {"params": [weight], "lr": rate}
            for weight, rate in zip(self.weights, self.base_rates, strict=True)
        ]
        more: dict[str, Any] = {"momentum": 0.9} if self.kind is torch.optim.SGD else {}
        optimizer = self.kind(groups, **more)

        def note(optimizer, *unused):
            rates = [float(group["lr"]) for group in optimizer.param_groups]
            self.rates.append(rates)

        # after the step, so that a rate set by a reader's own hook is seen, too
        optimizer.register_step_post_hook(note)
        self.made.append(optimizer)
        return optimizer

    def backward(self, t: int) -> None:
        self.asked.append(int(t))
        for number, weight in enumerate(self.weights):
            weight.grad = weight.detach() + self.slopes[int(t) % 60, number]


def _check_one_run(answer: Callable) -> None:
    for kind, base_rates, warmup, total in RUN_CASES:
        theirs, ours = _Scene(kind, base_rates), _Scene(kind, base_rates)
        try:
            answer(theirs.make_optimizer, theirs.backward, warmup, total)
        except ZeroDivisionError as error:
            if warmup:
                raise
            raise Hint(
                "warmup may be 0: then every update has the base rate. Your code divides by 0."
            ) from error
        _solve_one_run(ours.make_optimizer, ours.backward, warmup, total)
        expect(
            bool(theirs.made),
            "make_optimizer() was never called: a run needs an optimizer.",
        )
        expect(
            len(theirs.made) == 1,
            f"You made {len(theirs.made)} optimizers. Warm-up is the beginning of one run, not "
            "a training before it: the same optimizer, with its momentum, goes on.",
        )
        expect(
            len(theirs.rates) == total,
            f"You made {len(theirs.rates)} updates, and the run has {total}: the warm-up is "
            "counted among them, it is no extra training.",
        )
        _check_rates_of_run(theirs.rates, ours.rates, warmup)
        expect(
            theirs.asked == ours.asked,
            f"You called backward with {theirs.asked}: call it once for each update, with "
            "t = 0, 1, 2, ...",
        )
        same = all(
            torch.allclose(a, b, atol=1e-5)
            for a, b in zip(theirs.weights, ours.weights, strict=True)
        )
        expect(
            same,
            "The rates are right, and the weights are not those of one run: fill the "
            "gradients, then step, and leave the weights and the optimizer's state alone.",
        )


def _check_rates_of_run(
    found: list[list[float]], want: list[list[float]], warmup: int
) -> None:
    def agree(group: int) -> bool:
        return all(
            abs(a[group] - b[group]) < 1e-7 for a, b in zip(found, want, strict=True)
        )

    for group in range(len(want[0])):
        seen = [round(rates[group], 4) for rates in found]
        wanted = [round(rates[group], 4) for rates in want]
        expect(
            group == 0 or agree(group) or not agree(0),
            f"The first group of the optimizer has the right rates, and group {group} has "
            f"{seen} in place of {wanted}: each group rises to a base rate of its own.",
        )
        expect(
            agree(group),
            f"With a warm-up of {warmup} the updates had the rates {seen}, and should have "
            f"{wanted}: set the rate before each update.",
        )


def _solve_one_run(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    base_rates = [group["lr"] for group in optimizer.param_groups]
    for t in range(total):
        factor = 1.0 if t >= warmup else (t + 1) / warmup
        for group, base_rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = base_rate * factor
        backward(t)
        optimizer.step()


def _train_twice(make_optimizer, backward, warmup, total):
    for start, end in ((0, warmup), (warmup, total)):
        optimizer = make_optimizer()
        peak = optimizer.param_groups[0]["lr"]
        for t in range(start, end):
            optimizer.param_groups[0]["lr"] = peak * min(1.0, (t + 1) / warmup)
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
        optimizer.param_groups[0]["lr"] = peak * min(1.0, (t + 1) / warmup)
        backward(t)
        optimizer.step()


def _one_rate_for_all(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    peak = optimizer.param_groups[0]["lr"]
    for t in range(total):
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (t + 1) / warmup)
        backward(t)
        optimizer.step()


# --------------------------------------------------------------------------- the unit

LENGTH_CASES = (  # (epochs, rows, micro_batch, accumulation_steps, processes)
    (2, 1000, 10, 4, 2),
    (1, 1000, 16, 4, 1),
    (3, 640, 8, 1, 4),
    (5, 50_000, 32, 3, 8),
    (1, 7, 4, 2, 2),
    (4, 128, 8, 2, 8),
)


def _check_length(answer: Callable) -> None:
    for case in LENGTH_CASES:
        epochs, rows, micro, pieces, processes = case
        got = answer(*case)
        expect(got is not None, "Return two numbers: your function returns None.")
        try:
            updates, given = (float(part) for part in got)
        except (TypeError, ValueError) as error:
            raise Hint(
                f"Return two numbers, (updates, num_warmup_steps), not {got!r}."
            ) from error
        want = epochs * math.ceil(rows / (micro * pieces * processes))
        if updates != want:
            raise Hint(_what_was_counted(updates, want, case))
        expect(
            given != want or processes == 1,
            f"Your updates are right. But a prepared scheduler is stepped {processes} times at "
            f"each of them, so with num_warmup_steps={given:g} it ends its warm-up after "
            f"{want / processes:g} updates.",
        )
        expect(
            given == want * processes,
            f"For {case} there are {want} updates, as you say. The prepared scheduler makes a "
            f"step for each process at each update, and none at the other micro-batches: that "
            f"is {want * processes} steps, not {given:g}.",
        )


def _what_was_counted(updates: float, want: int, case: tuple) -> str:
    epochs, rows, micro, pieces, processes = case
    names = "(epochs, rows, micro_batch, accumulation_steps, processes)"
    if updates == epochs * math.ceil(rows / micro):
        return (
            f"{updates:g} is the number of micro-batches: the warm-up counts updates, and an "
            f"update has {pieces} micro-batches on each of {processes} process(es)."
        )
    if updates == epochs * math.ceil(rows / (micro * pieces)):
        return (
            f"{updates:g} is what one process alone would need: the {processes} processes "
            "share the rows of each update."
        )
    if updates == epochs * math.ceil(rows / (micro * processes)):
        return (
            f"{updates:g} counts each micro-batch as an update: an update has {pieces} of them "
            "on each process."
        )
    if updates == epochs * (rows // (micro * pieces * processes)):
        return (
            f"For {names} = {case} you count {updates:g} updates, and it is {want}: the last, "
            "short one of each epoch is an update, too."
        )
    if updates == math.ceil(epochs * rows / (micro * pieces * processes)):
        return (
            f"For {names} = {case} you count {updates:g} updates, and it is {want}: each epoch "
            "ends with an update of its own, so round up before you multiply by the epochs."
        )
    return (
        f"For {names} = {case} you count {updates:g} updates, and it is {want}: an epoch has "
        "rows / (rows of an update) updates, rounded up."
    )


def _solve_length(epochs, rows, micro_batch, accumulation_steps, processes):
    rows_of_an_update = micro_batch * accumulation_steps * processes
    updates = epochs * math.ceil(rows / rows_of_an_update)
    return updates, updates * processes


def _count_micro_batches(epochs, rows, micro_batch, accumulation_steps, processes):
    steps = epochs * -(-rows // micro_batch)
    return steps, steps * processes


def _count_alone(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = epochs * -(-rows // (micro_batch * accumulation_steps))
    return updates, updates * processes


def _count_full(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = epochs * (rows // (micro_batch * accumulation_steps * processes))
    return updates, updates * processes


def _give_updates(epochs, rows, micro_batch, accumulation_steps, processes):
    updates, _ = _solve_length(epochs, rows, micro_batch, accumulation_steps, processes)
    return updates, updates


def _give_micro_batches(epochs, rows, micro_batch, accumulation_steps, processes):
    updates, _ = _solve_length(epochs, rows, micro_batch, accumulation_steps, processes)
    return updates, updates * processes * accumulation_steps


EXERCISES = (
    Exercise(
        "Write rate(t, peak, steps): the learning rate of update t = 0, 1, 2, ... with a "
        "linear warm-up of `steps` updates. It rises in equal steps: peak / steps at update 0, "
        "twice that at update 1, and the peak at update steps - 1. Then it stays at the peak. "
        "With steps = 0 every update has the peak rate.",
        _check_rate,
        _solve_rate,
        {
            "from zero": Wrong(_rate_from_zero, "would move no weight"),
            "one update late": Wrong(_rate_late, "rise in a line"),
            "no end": Wrong(_rate_without_end, "stays at the peak"),
            "a jump": Wrong(_rate_in_a_jump, "rise in a line"),
            "a parabola": Wrong(_rate_squared, "rise in a line"),
            "a cosine ramp": Wrong(_rate_cosine_ramp, "rise in a line"),
            "steps = 0 forgotten": Wrong(_rate_never_zero_steps, "divides by 0"),
        },
    ),
    Exercise(
        "Write run(make_optimizer, backward, warmup, total). make_optimizer() returns an "
        "optimizer with one or several parameter groups, each at its own base rate; "
        "backward(t) sets the gradients of update t anew, so there is nothing to zero. Make "
        "`total` updates, numbered 0, 1, 2, ...: the rate of each group rises in a line over "
        "the first `warmup` of them (none if it is 0), from base rate / warmup to the base "
        "rate, and stays there. What `run` returns is not looked at.",
        _check_one_run,
        _solve_one_run,
        {
            "train twice": Wrong(_train_twice, "the beginning of one run"),
            "extra training": Wrong(_train_more, "no extra training"),
            "no warm-up": Wrong(_never_warm, "set the rate before"),
            "state thrown away": Wrong(_forget_momentum, "the optimizer's state alone"),
            "one rate for all groups": Wrong(_one_rate_for_all, "a base rate of its own"),
        },
    ),
    Exercise(
        "Write length(epochs, rows, micro_batch, accumulation_steps, processes) and return two "
        "numbers: how many optimizer updates a warm-up of `epochs` whole epochs has, and the "
        "num_warmup_steps to give to a scheduler that Accelerate prepares with its usual "
        "settings. `rows` is the size of the training set, `micro_batch` the rows of one "
        "micro-batch on one process. An epoch ends with an update, even with fewer rows.",
        _check_length,
        _solve_length,
        {
            "count micro-batches": Wrong(_count_micro_batches, "number of micro-batches"),
            "forget the processes": Wrong(_count_alone, "share the rows"),
            "drop the short batch": Wrong(_count_full, "short one"),
            "give the updates": Wrong(_give_updates, "ends its warm-up after"),
            "give the micro-batches": Wrong(_give_micro_batches, "none at the other"),
        },
    ),
)
