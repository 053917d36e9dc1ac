"""Exercises of chapter 14, lr schedulers: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.optim import Optimizer

from dlcourse.lab.exercises import Exercise, Wrong, expect
from dlcourse.lr_schedulers import CosineAnnealingLR, LambdaLR, MultiStepLR, StepLR


def _optimizer(*rates: float) -> Optimizer:
    rates = rates or (0.8,)
    return torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates]
    )


def _drive(optimizer: Optimizer, scheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(
        math.isclose(x, y, abs_tol=1e-12) for x, y in zip(a, b, strict=True)
    )


def _check_halving(answer: Callable) -> None:
    optimizer = _optimizer()
    scheduler = answer(optimizer)
    expect(
        hasattr(scheduler, "step"),
        "Return the scheduler that you build on the optimizer.",
    )
    rates = _drive(optimizer, scheduler, 31)
    expect(
        not math.isclose(rates[10], 0.08),
        "After 10 updates the rate is a tenth: the default of gamma is 0.1. Name the factor.",
    )
    expect(
        rates[9] == 0.8,
        f"The rate of the 10th update is {rates[9]:g}: it should be 0.8 still.",
    )
    expect(
        not math.isclose(rates[11], 0.2),
        "The rate is halved at each update after the 10th: it should stay until the 20th.",
    )
    wanted = [0.8 * 0.5 ** (t // 10) for t in range(31)]
    expect(
        _close(rates, wanted),
        f"After 10, 20 and 30 updates the rate is {rates[10]:g}, {rates[20]:g} and {rates[30]:g}: "
        "wanted 0.4, 0.2 and 0.1.",
    )


def _solve_halving(optimizer):
    return StepLR(optimizer, step_size=10, gamma=0.5)


def _halve_by_default(optimizer):
    return StepLR(optimizer, step_size=10)


def _halve_once(optimizer):
    return MultiStepLR(optimizer, milestones=[10], gamma=0.5)


def _halve_late(optimizer):
    return StepLR(optimizer, step_size=11, gamma=0.5)


def _halve_always(optimizer):
    return LambdaLR(optimizer, lambda t: 0.5 ** max(0, t - 9))


def _resumable() -> tuple[torch.nn.Parameter, torch.optim.SGD, CosineAnnealingLR]:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.8, momentum=0.9)
    return weight, optimizer, CosineAnnealingLR(optimizer, T_max=20)


def _descend(weight, optimizer, scheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        weight.grad = weight.detach().clone()
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def _check_resume(answer: Callable) -> None:
    whole = _resumable()
    wanted = _descend(*whole, 20)
    for stop in (7, 1, 13):
        old, new = _resumable(), _resumable()
        rates = _descend(*old, stop)
        new[0].data.copy_(old[0].detach())
        answer(*old[1:], *new[1:])
        rates += _descend(*new, 20 - stop)
        expect(
            not math.isclose(rates[stop], 0.8),
            "The resumed run starts at the first rate again: a scheduler has a state, its count.",
        )
        expect(
            _close(rates, wanted),
            f"Stopped after {stop} updates, the rates go on with {rates[stop]:g}, "
            f"{rates[stop + 1]:g}; wanted {wanted[stop]:g}, {wanted[stop + 1]:g}. The rate in "
            "force is not enough: carry over the scheduler's state.",
        )
        expect(
            torch.allclose(new[0], whole[0]),
            "The rates agree and the weights do not: the optimizer has a state too, the momentum.",
        )


def _solve_resume(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(old_optimizer.state_dict())
    scheduler.load_state_dict(old_scheduler.state_dict())


def _resume_nothing(old_optimizer, old_scheduler, optimizer, scheduler):
    pass


def _resume_optimizer_only(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(old_optimizer.state_dict())


def _resume_scheduler_only(old_optimizer, old_scheduler, optimizer, scheduler):
    scheduler.load_state_dict(old_scheduler.state_dict())


def _check_hold(answer: Callable) -> None:
    for total in (10, 37):
        values = [answer(t, total) for t in range(2 * total + 1)]
        expect(
            all(isinstance(value, (int, float)) for value in values),
            "Return a number: the factor on the learning rate.",
        )
        expect(
            math.isclose(values[0], 1.0),
            f"At t = 0 the factor is {values[0]:g}, wanted 1.",
        )
        expect(
            max(values[total:]) < 0.5,
            f"At t = {2 * total} the factor is {values[-1]:g}: a cosine is a wave and rises again "
            "past the end. Hold it.",
        )
        expect(
            min(values[total:]) > -1e-9,
            f"Past the end the factor falls to {min(values):g}: a negative rate climbs. Hold 0.",
        )
        want = [
            (1 + math.cos(math.pi * min(t, total) / total)) / 2
            for t in range(2 * total + 1)
        ]
        expect(
            _close(values, want),
            f"At t = {total // 3} of {total} the factor is {values[total // 3]:g}, wanted "
            f"{want[total // 3]:g}: half a cosine wave, from 1 at t = 0 to 0 at t = total.",
        )


def _solve_hold(t, total):
    return (1 + math.cos(math.pi * min(t, total) / total)) / 2


def _never_hold(t, total):
    return (1 + math.cos(math.pi * t / total)) / 2


def _straight(t, total):
    return 1 - min(t, total) / total


def _straight_on(t, total):
    return 1 - t / total


def _quarter_wave(t, total):
    return math.cos(math.pi / 2 * min(t, total) / total)


EXERCISES = (
    Exercise(
        "Write halving(optimizer): return a scheduler that halves the learning rate every 10 "
        "updates.",
        _check_halving,
        _solve_halving,
        {
            "default halves": Wrong(_halve_by_default, "default of gamma is 0.1"),
            "a milestone": Wrong(_halve_once, "wanted 0.4, 0.2 and 0.1"),
            "one late": Wrong(_halve_late, "wanted 0.4, 0.2 and 0.1"),
            "at each update": Wrong(_halve_always, "stay until the 20th"),
        },
    ),
    Exercise(
        "Write resume(old_optimizer, old_scheduler, optimizer, scheduler): a run was stopped; "
        "carry over to the fresh pair all that it needs to go on as if nothing had happened. (The "
        "weights are already in place.)",
        _check_resume,
        _solve_resume,
        {
            "schedulers are stateless": Wrong(_resume_nothing, "a scheduler has a state"),
            "the rate is enough": Wrong(_resume_optimizer_only, "scheduler's state"),
            "the scheduler is enough": Wrong(_resume_scheduler_only, "the momentum"),
        },
    ),
    Exercise(
        "Write factor(t, total): half a cosine wave from 1 at t = 0 to 0 at t = total, and 0 for "
        "every t after that.",
        _check_hold,
        _solve_hold,
        {
            "a cosine stays down": Wrong(_never_hold, "rises again"),
            "linear": Wrong(_straight, "half a cosine wave"),
            "linear, on and on": Wrong(_straight_on, "a negative rate"),
            "a quarter wave": Wrong(_quarter_wave, "half a cosine wave"),
        },
    ),
)
