"""Exercises of chapter 14, lr schedulers: questions, checks, solutions, usual mistakes.

A check knows a mistake by making it: where the reader's numbers are those of a usual wrong
answer, the hint says so.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Sequence

import torch
from torch.optim import lr_scheduler as torchs

from dlcourse.lab.exercises import Exercise, Hint, Wrong, expect
from dlcourse.lr_schedulers import CosineAnnealingLR

FAR = (2, 3, 4, 7, 50, 1001)  # how many lengths past the end a factor is asked for, too


def _number(value: object) -> float:
    """Return a Python, NumPy or tensor number as a float."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise Hint(f"Return one number, the factor; this is {value!r}.") from None


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6)  # float32 will do


def _steps(total: int) -> list[int]:
    """Return the updates at which a factor is asked for: all, and some far past the end."""
    return [*range(2 * total + 2), *(lengths * total for lengths in FAR)]


def _check_factor(answer: Callable, right: Callable, cases, mistakes) -> None:
    """Compare `answer(t, *case)` with `right`, and name the mistake where it is known."""
    asked = [(t, *case) for case in cases for t in _steps(case[0])]
    found = {arguments: _number(answer(*arguments)) for arguments in asked}
    if all(_close(found[one], right(*one)) for one in asked):
        shuffled = random.Random(0).sample(asked, len(asked))
        again = {arguments: _number(answer(*arguments)) for arguments in shuffled}
        expect(
            all(_close(again[one], found[one]) for one in asked),
            "Asked a second time, in another order, it gives other values: use the arguments "
            "alone, and keep no count.",
        )
        return
    for mistake, hint in mistakes:
        expect(not all(_close(found[one], mistake(*one)) for one in asked), hint)
    gaps = {one: abs(found[one] - right(*one)) for one in asked}
    place = max(gaps, key=lambda one: math.inf if math.isnan(gaps[one]) else gaps[one])
    rest = ", ".join(f"{value:g}" for value in place[2:])
    names = f"t = {place[0]} with a total of {place[1]} (and then {rest})"
    raise Hint(
        f"At {names}, the factor is {found[place]:.4g}, wanted {right(*place):.4g}."
    )


# --- 1: warm-up, stable, decay ------------------------------------------------------------

# total, warm-up, cool-down
WSD_CASES = ((10, 2, 4), (37, 5, 1), (50, 10, 40), (12, 0, 12), (60, 1, 9), (200, 20, 50))


def _solve_wsd(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    return max(0.0, min(1.0, (total - t) / cooldown))


def _above_one(t, total, warmup, cooldown):
    return (t + 1) / warmup if t < warmup else (total - t) / cooldown


def _above_one_held(t, total, warmup, cooldown):
    return max(0.0, _above_one(t, total, warmup, cooldown))


def _below_zero(t, total, warmup, cooldown):
    return min(1.0, _above_one(t, total, warmup, cooldown))


def _starts_at_zero(t, total, warmup, cooldown):
    return t / warmup if t < warmup else _solve_wsd(t, total, warmup, cooldown)


def _one_too_many(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / (warmup + 1)
    return _solve_wsd(t, total, warmup, cooldown)


def _no_stable_part(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    return max(0.0, (total - t) / (total - warmup))


def _no_cooldown(t, total, warmup, cooldown):
    return (t + 1) / warmup if t < warmup else 1.0


def _no_warmup(t, total, warmup, cooldown):
    return _solve_wsd(t, total, 0, cooldown)


def _up_again(t, total, warmup, cooldown):
    return 1.0 if t > total else _solve_wsd(t, total, warmup, cooldown)


def _ends_early(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    return max(0.0, min(1.0, (total - 1 - t) / cooldown))


def _cosine_cooldown(t, total, warmup, cooldown):
    if t < total - cooldown:
        return _solve_wsd(t, total, warmup, cooldown)
    done = min(1.0, (t - total + cooldown) / cooldown)
    return (1 + math.cos(math.pi * done)) / 2


NEVER_ABOVE = (
    "Before the cool-down (total - t) / cooldown is above 1, and so the rate above its peak: "
    "take the smaller of it and 1."
)
NEVER_BELOW = (
    "Past the end the factor is below 0, and a negative rate climbs the loss: hold 0."
)
WSD_HINTS = (
    (_above_one, NEVER_ABOVE),
    (_above_one_held, NEVER_ABOVE),
    (_below_zero, NEVER_BELOW),
    (_starts_at_zero, "At t = 0 the factor is 0: the first update would change nothing."),
    (
        _one_too_many,
        "The warm-up has one step too many: its last update, t = warmup - 1, has 1.",
    ),
    (
        _no_stable_part,
        "It falls from the warm-up on: before the cool-down it stays at 1.",
    ),
    (_no_cooldown, "It never falls: the cool-down is missing."),
    (_no_warmup, "It starts at full height: the warm-up is missing."),
    (_up_again, "Past the end it is back at 1: hold 0 for every t from total on."),
    (_ends_early, "The fall is one update early: it is still 1 at t = total - cooldown."),
    (_cosine_cooldown, "The cool-down is a cosine; the question asks for a line."),
)


def _check_wsd(answer: Callable) -> None:
    expect(callable(answer), "Give a function of t, total, warmup and cooldown.")
    try:
        answer(0, *WSD_CASES[3])
    except ZeroDivisionError:
        raise Hint("warmup may be 0: then there is nothing to divide by.") from None
    _check_factor(answer, _solve_wsd, WSD_CASES, WSD_HINTS)


# --- 2: resume ----------------------------------------------------------------------------


def _lambda(optimizer):
    return torchs.LambdaLR(optimizer, lambda t: 1 / (1 + t))


def _one_cycle(optimizer):
    return torchs.OneCycleLR(optimizer, 0.3, total_steps=40)


def _restarts(optimizer):
    return torchs.CosineAnnealingWarmRestarts(optimizer, 5, 2)


RESUMED = (  # optimizer, scheduler, updates before the stop
    ("sgd", lambda optimizer: torchs.StepLR(optimizer, 4, 0.5), 9),
    ("sgd", lambda optimizer: CosineAnnealingLR(optimizer, 20), 7),
    ("adam", _lambda, 1),
    ("sgd", _one_cycle, 5),
    ("adam", lambda optimizer: torchs.CosineAnnealingLR(optimizer, 20), 13),
    ("sgd", _restarts, 8),
    ("two groups", lambda optimizer: torchs.StepLR(optimizer, 4, 0.5), 9),
)


def _fresh(kind: str, build: Callable):
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    if kind == "adam":
        optimizer = torch.optim.Adam([weight], lr=0.1)
    elif kind == "two groups":
        other = {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.03}
        optimizer = torch.optim.SGD([other, {"params": [weight]}], lr=0.1, momentum=0.9)
    else:
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    return weight, optimizer, build(optimizer)


def _descend(weight, optimizer, scheduler, updates: int) -> list[float]:
    rates = []
    for _ in range(updates):
        weight.grad = weight.detach() * torch.tensor([1.0, 4.0])
        rates.append(float(optimizer.param_groups[-1]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def _check_resume(answer: Callable) -> None:
    with warnings.catch_warnings():  # a wrong answer makes schedulers complain
        warnings.simplefilter("ignore")
        _check_resumed_runs(answer)


def _check_resumed_runs(answer: Callable) -> None:
    for kind, build, stop in RESUMED:
        whole, old, new = (_fresh(kind, build) for _ in range(3))
        wanted = _descend(*whole, 20)
        rates = _descend(*old, stop)
        new[0].data.copy_(old[0].detach())
        answer(*old[1:], *new[1:])

        count = new[2].last_epoch
        rate = float(new[1].param_groups[-1]["lr"])
        rates += _descend(*new, 20 - stop)
        same = all(map(_close, rates, wanted))
        if same and torch.allclose(new[0], whole[0], rtol=1e-4, atol=1e-6):
            continue
        name = type(new[2]).__name__
        expect(
            count == stop,
            f"After your function the new {name} has counted {count} steps, the old one "
            f"{stop}. A scheduler has a state: carry it over, into the scheduler given.",
        )
        expect(
            _close(rate, wanted[stop]),
            f"With {name} the rate in the new optimizer is {rate:.4g}, it should be "
            f"{wanted[stop]:.4g}: {name} goes on from the rate that stands in the optimizer, "
            "and that is part of the optimizer's state.",
        )
        expect(
            same,
            f"With {name} the resumed run starts at the right rate, and then goes another way: "
            "carry over all of both states.",
        )
        raise Hint(
            f"With {kind} and {name} the rates agree and the weights do not: the optimizer "
            "has a state too, such as the momentum."
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
    for group, rate in zip(
        optimizer.param_groups, old_scheduler.get_last_lr(), strict=True
    ):
        group["lr"] = rate


def _resume_scheduler_without_rates(old_optimizer, old_scheduler, optimizer, scheduler):
    scheduler.load_state_dict(old_scheduler.state_dict())


# --- 3: a cosine that stays down -----------------------------------------------------------

HOLD_CASES = ((10, 0.0), (37, 0.1), (24, 0.25), (2, 0.5))  # total, floor


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


def _solve_hold(t, total, floor):
    wave = (1 + math.cos(math.pi * min(t, total) / total)) / 2
    return floor + (1 - floor) * wave


def _never_hold(t, total, floor):
    return floor + (1 - floor) * _cosine(t / total)


def _hold_for_one_length(t, total, floor):
    return 1.0 if t > 2 * total else _solve_hold(t, total, floor)


def _cut_off(t, total, floor):
    return max(floor, _cosine(min(t, total) / total))


def _floor_forgotten(t, total, floor):
    return _cosine(min(t, total) / total)


def _zero_past_the_end(t, total, floor):
    return 0.0 if t > total else _solve_hold(t, total, floor)


def _floor_on_top(t, total, floor):
    return floor + _cosine(min(t, total) / total)


def _straight(t, total, floor):
    return floor + (1 - floor) * (1 - min(t, total) / total)


def _straight_on(t, total, floor):
    return floor + (1 - floor) * (1 - t / total)


def _quarter_wave(t, total, floor):
    return floor + (1 - floor) * math.cos(math.pi / 2 * min(t, total) / total)


HOLD_HINTS = (
    (_never_hold, "A cosine is a wave and rises again past the end: hold the floor."),
    (
        _hold_for_one_length,
        "For t above 2 total it is 1 again: hold the floor for every t from total on.",
    ),
    (
        _cut_off,
        "The wave is cut off at the floor, and reaches it too early: squeeze it between 1 and "
        "the floor.",
    ),
    (_floor_forgotten, "It falls to 0: the floor is forgotten."),
    (_zero_past_the_end, "Past the end it is 0: hold the floor."),
    (
        _floor_on_top,
        "It starts above 1: add the floor, and shrink the wave to 1 - floor.",
    ),
    (_straight, "This is a straight line; the question asks for half a cosine wave."),
    (_straight_on, "This is a straight line, and past the end it goes on below 0."),
    (_quarter_wave, "This is a quarter of a wave: half a wave ends level, too."),
)


def _check_hold(answer: Callable) -> None:
    expect(callable(answer), "Give a function of t, total and floor.")
    _check_factor(answer, _solve_hold, HOLD_CASES, HOLD_HINTS)


# --- 4: what the branches cost --------------------------------------------------------------

Plan = Sequence[int]
PLANS: tuple[tuple[Plan, Plan], ...] = (
    ((100, 200, 400), (20, 40, 80)),
    ((400, 100, 200), (80, 20, 40)),
    ((100, 90), (50, 5)),  # the shorter run is stable for longer
    ((70,), (30,)),
    ((64, 64, 64), (8, 16, 32)),
    ((30, 60, 90), (10, 10, 10)),
    ((500, 40), (500, 10)),  # linear to zero from the start
)


def _solve_updates(lengths, cooldowns):
    starts = [
        length - cooldown for length, cooldown in zip(lengths, cooldowns, strict=True)
    ]
    return max(starts) + sum(cooldowns), sum(lengths)


def _whole_longest(lengths, cooldowns):
    return max(lengths) + sum(cooldowns), sum(lengths)


def _start_of_the_longest(lengths, cooldowns):
    number = list(lengths).index(max(lengths))
    return lengths[number] - cooldowns[number] + sum(cooldowns), sum(lengths)


def _longest_only(lengths, cooldowns):
    return max(lengths), sum(lengths)


def _stable_only(lengths, cooldowns):
    return _solve_updates(lengths, cooldowns)[0] - sum(cooldowns), sum(lengths)


def _all_starts(lengths, cooldowns):
    return sum(lengths), sum(lengths)


def _swapped(lengths, cooldowns):
    return tuple(reversed(_solve_updates(lengths, cooldowns)))


UPDATES_HINTS = (
    (
        _whole_longest,
        "The stable run need not go to the end of the longest run: it is left where the last "
        "branch begins.",
    ),
    (
        _start_of_the_longest,
        "The last branch need not be that of the longest run: with lengths 100 and 90 and "
        "cool-downs of 50 and 5 the shorter run branches later, at 85.",
    ),
    (
        _longest_only,
        "Only the longest run is counted: each length has a cool-down of its own.",
    ),
    (_stable_only, "The cool-downs are not counted: they are training, too."),
    (
        _all_starts,
        "Each branch is counted from update 0: the stable part is run once for all.",
    ),
    (_swapped, "The two numbers are swapped: first with branches, then without."),
)


def _check_updates(answer: Callable) -> None:
    found = []
    for lengths, cooldowns in PLANS:
        got = answer(list(lengths), list(cooldowns))
        try:
            pair = [float(part) for part in got]
        except TypeError:
            pair = []
        expect(len(pair) == 2, "Return two numbers: with branches, and without.")
        found.append(pair)

    def same(function: Callable) -> bool:
        return all(
            all(map(_close, pair, function(*plan)))
            for pair, plan in zip(found, PLANS, strict=True)
        )

    if same(_solve_updates):
        return
    for mistake, hint in UPDATES_HINTS:
        expect(not same(mistake), hint)
    for pair, plan in zip(found, PLANS, strict=True):
        wanted = _solve_updates(*plan)
        expect(
            all(map(_close, pair, wanted)),
            f"For lengths {list(plan[0])} and cool-downs {list(plan[1])} you said "
            f"{pair[0]:g} and {pair[1]:g}; wanted {wanted[0]} and {wanted[1]}.",
        )


EXERCISES = (
    Exercise(
        "Write wsd(t, total, warmup, cooldown): the factor on the learning rate at update t = 0, "
        "1, 2, ... In the first `warmup` updates it rises, (t + 1) / warmup. Then it is 1. In "
        "the last `cooldown` updates it falls in a line, from 1 at t = total - cooldown to 0 at "
        "t = total, and for every later t it is 0. warmup may be 0; cooldown is at least 1; the "
        "two together are at most total.",
        _check_wsd,
        _solve_wsd,
        {
            "a line without a top": Wrong(_above_one, "smaller of it and 1"),
            "a line with a bottom only": Wrong(_above_one_held, "smaller of it and 1"),
            "on and on": Wrong(_below_zero, "hold 0"),
            "from zero": Wrong(_starts_at_zero, "would change nothing"),
            "warm-up one too long": Wrong(_one_too_many, "one step too many"),
            "linear to zero": Wrong(_no_stable_part, "stays at 1"),
            "no cool-down": Wrong(_no_cooldown, "never falls"),
            "no warm-up": Wrong(_no_warmup, "warm-up is missing"),
            "up again": Wrong(_up_again, "back at 1"),
            "one update early": Wrong(_ends_early, "one update early"),
            "a cosine": Wrong(_cosine_cooldown, "asks for a line"),
        },
    ),
    Exercise(
        "Write resume(old_optimizer, old_scheduler, optimizer, scheduler): a run was stopped; "
        "carry over to the fresh pair all that it needs to go on as if nothing had happened. (The "
        "weights are already in place.)",
        _check_resume,
        _solve_resume,
        {
            "schedulers are stateless": Wrong(_resume_nothing, "A scheduler has a state"),
            "the rate is enough": Wrong(
                _resume_optimizer_only, "A scheduler has a state"
            ),
            "scheduler and rate are enough": Wrong(
                _resume_scheduler_only, "the weights do not"
            ),
            "the scheduler is enough": Wrong(
                _resume_scheduler_without_rates, "part of the optimizer's state"
            ),
        },
    ),
    Exercise(
        "Write factor(t, total, floor): half a cosine wave from 1 at t = 0 to floor at t = total, "
        "and floor for every t after that, however late.",
        _check_hold,
        _solve_hold,
        {
            "a cosine stays down": Wrong(_never_hold, "rises again"),
            "held for one length": Wrong(_hold_for_one_length, "above 2 total"),
            "cut off at the floor": Wrong(_cut_off, "cut off"),
            "no floor": Wrong(_floor_forgotten, "floor is forgotten"),
            "zero past the end": Wrong(_zero_past_the_end, "Past the end it is 0"),
            "floor on top": Wrong(_floor_on_top, "above 1"),
            "linear": Wrong(_straight, "straight line"),
            "linear, on and on": Wrong(_straight_on, "below 0"),
            "a quarter wave": Wrong(_quarter_wave, "quarter of a wave"),
        },
    ),
    Exercise(
        "Write updates(lengths, cooldowns). You want the finished model of several runs: run i is "
        "lengths[i] updates long, and its last cooldowns[i] updates are a cool-down. All branch "
        "from one stable run, which is trained as far as it is needed and no further. Return two "
        "numbers: the updates made in all, and the updates that a run of its own for each length "
        "would take.",
        _check_updates,
        _solve_updates,
        {
            "the whole longest run": Wrong(_whole_longest, "need not go to the end"),
            "branch of the longest": Wrong(_start_of_the_longest, "shorter run branches"),
            "the longest only": Wrong(_longest_only, "cool-down of its own"),
            "the stable run only": Wrong(_stable_only, "not counted"),
            "each from the start": Wrong(_all_starts, "run once for all"),
            "swapped": Wrong(_swapped, "swapped"),
        },
    ),
)
