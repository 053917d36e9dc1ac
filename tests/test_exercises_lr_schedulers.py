"""Exercises of chapter 14: more answers than the usual mistakes, right ones and wrong ones."""

from __future__ import annotations

import collections
import copy
import math

import numpy as np
import pytest
import torch
from answers import accepts, rejects

from dlcourse.exercises.lr_schedulers import EXERCISES

WSD, RESUME, HOLD, UPDATES = EXERCISES


def name_of(answer):
    return answer.__name__


# --------------------------------------------------------------------------- wsd


def by_three_cases(t, total, warmup, cooldown):
    if t < warmup:
        return (1 + t) / warmup
    if t < total - cooldown:
        return 1
    return 0 if t >= total else 1 - (t - (total - cooldown)) / cooldown


def smallest_of_three(t, total, warmup, cooldown):
    rise = (t + 1) / warmup if warmup else math.inf
    return max(0, min(1, rise, (total - t) / cooldown))


def a_clamped_tensor(t, total, warmup, cooldown):
    if t < warmup:
        return torch.tensor((t + 1) / warmup)
    return torch.tensor([(total - t) / cooldown]).clamp(0, 1)


def by_interpolation(t, total, warmup, cooldown):
    if t < warmup:
        return np.float32((t + 1) / warmup)
    return np.interp(t, [total - cooldown, total], [1.0, 0.0])


def step_by_step(t, total, warmup, cooldown):
    value = 1 / warmup if warmup else 1.0
    for update in range(1, min(t, total) + 1):
        if update < warmup:
            value += 1 / warmup
        if update > total - cooldown:
            value -= 1 / cooldown
    return value


@pytest.mark.parametrize(
    "answer",
    [
        by_three_cases,
        smallest_of_three,
        a_clamped_tensor,
        by_interpolation,
        step_by_step,
    ],
    ids=name_of,
)
def test_wsd_accepts(answer):
    accepts(WSD, answer)


def no_end(t, total, warmup, cooldown):
    return WSD.solve(t % total, total, warmup, cooldown)


def sqrt_cooldown(t, total, warmup, cooldown):
    value = WSD.solve(t, total, warmup, cooldown)
    return value if t < total - cooldown else 1 - math.sqrt(1 - value)


def to_a_tenth(t, total, warmup, cooldown):
    value = WSD.solve(t, total, warmup, cooldown)
    return value if t < total - cooldown else max(0.1, value)


def a_late_fall(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    return max(0.0, min(1.0, (total + 1 - t) / cooldown))


def of_the_shown_run(t, total, warmup, cooldown):
    return WSD.solve(t, 10, 2, 4)


def divides_by_the_warmup(t, total, warmup, cooldown):
    return max(0.0, min(1.0, (t + 1) / warmup, (total - t) / cooldown))


def a_whole_number(t, total, warmup, cooldown):
    return round(WSD.solve(t, total, warmup, cooldown))


def a_percentage(t, total, warmup, cooldown):
    return 100 * WSD.solve(t, total, warmup, cooldown)


def no_number(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    return None


def prints_it(t, total, warmup, cooldown):
    WSD.solve(t, total, warmup, cooldown)


def nan_at_the_end(t, total, warmup, cooldown):
    return math.nan if t == total else WSD.solve(t, total, warmup, cooldown)


def keeps_a_count():
    asked = collections.Counter()

    def answer(*arguments):
        asked[arguments] += 1
        return WSD.solve(*arguments) if asked[arguments] < 3 else 0.0

    return answer


WRONG_WSD = {
    "begins anew": (no_end, "the factor is"),
    "another cool-down": (sqrt_cooldown, "the factor is"),
    "to a tenth": (to_a_tenth, "the factor is"),
    "late": (a_late_fall, "the factor is"),
    "the shown case": (of_the_shown_run, "the factor is"),
    "zero division": (divides_by_the_warmup, "warmup may be 0"),
    "rounded": (a_whole_number, "the factor is"),
    "in percent": (a_percentage, "the factor is"),
    "None later": (no_number, "Return one number"),
    "returns nothing": (prints_it, "Return one number"),
    "NaN": (nan_at_the_end, "the factor is nan"),
    "a list": (lambda t, *rest: [1.0, 2.0], "Return one number"),
    "no function": (0.5, "Give a function"),
}


@pytest.mark.parametrize("name", WRONG_WSD)
def test_wsd_rejects(name):
    answer, words = WRONG_WSD[name]
    rejects(WSD, answer, words)


def test_an_answer_that_keeps_a_count_is_refused():
    rejects(WSD, keeps_a_count(), "in another order")


# --------------------------------------------------------------------------- resume


def scheduler_first(old_optimizer, old_scheduler, optimizer, scheduler):
    scheduler.load_state_dict(old_scheduler.state_dict())
    optimizer.load_state_dict(old_optimizer.state_dict())


def through_a_file(old_optimizer, old_scheduler, optimizer, scheduler):
    states = {"o": old_optimizer.state_dict(), "s": old_scheduler.state_dict()}
    states = copy.deepcopy(states)
    optimizer.load_state_dict(states["o"])
    scheduler.load_state_dict(states["s"])


def in_a_loop(old_optimizer, old_scheduler, *new):
    for old, fresh in zip((old_optimizer, old_scheduler), new, strict=True):
        fresh.load_state_dict(old.state_dict())


def by_stepping(old_optimizer, old_scheduler, optimizer, scheduler):
    for _ in range(old_scheduler.last_epoch):
        scheduler.step()
    optimizer.load_state_dict(old_optimizer.state_dict())


def returns_them_too(old_optimizer, old_scheduler, optimizer, scheduler):
    RESUME.solve(old_optimizer, old_scheduler, optimizer, scheduler)
    return optimizer, scheduler


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "answer",
    [scheduler_first, through_a_file, in_a_loop, by_stepping, returns_them_too],
    ids=name_of,
)
def test_resume_accepts(answer):
    accepts(RESUME, answer)


def takes_the_old_ones(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer, scheduler = old_optimizer, old_scheduler
    return optimizer, scheduler


def copies_the_attributes(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(old_optimizer.state_dict())
    scheduler.__dict__.update(old_scheduler.__dict__)  # drives the old optimizer


def copies_the_rate(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.param_groups[0]["lr"] = old_optimizer.param_groups[0]["lr"]


def copies_the_count(old_optimizer, old_scheduler, optimizer, scheduler):
    scheduler.last_epoch = old_scheduler.last_epoch


def the_state_by_hand(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.state = old_optimizer.state  # its keys are the old weights
    scheduler_first(old_optimizer, old_scheduler, optimizer, scheduler)
    optimizer.state.clear()


def one_step_more(old_optimizer, old_scheduler, optimizer, scheduler):
    RESUME.solve(old_optimizer, old_scheduler, optimizer, scheduler)
    scheduler.step()


def one_step_less(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(old_optimizer.state_dict())
    for _ in range(old_scheduler.last_epoch - 1):
        scheduler.step()


def the_wrong_way_round(old_optimizer, old_scheduler, optimizer, scheduler):
    old_optimizer.load_state_dict(optimizer.state_dict())
    old_scheduler.load_state_dict(scheduler.state_dict())


def for_seven_updates(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(old_optimizer.state_dict())
    for _ in range(7):
        scheduler.step()


def an_empty_state(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(old_optimizer.state_dict())
    scheduler.load_state_dict({})


WRONG_RESUME = {
    takes_the_old_ones: "into the scheduler given",
    copies_the_attributes: "",
    copies_the_rate: "has a state",
    copies_the_count: "",
    the_state_by_hand: "the weights do not",
    one_step_more: "has counted 10 steps, the old one 9",
    one_step_less: "has counted 8 steps, the old one 9",
    the_wrong_way_round: "has a state",
    for_seven_updates: "has counted 7 steps, the old one 9",
    an_empty_state: "has counted 0 steps",
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("answer", WRONG_RESUME, ids=name_of)
def test_resume_rejects(answer):
    rejects(RESUME, answer, WRONG_RESUME[answer])


# --------------------------------------------------------------------------- factor


def by_the_square_of_a_cosine(t, total, floor):
    if t >= total:
        return floor
    return floor + (1 - floor) * math.cos(math.pi * t / (2 * total)) ** 2


def by_torch(t, total, floor):
    done = torch.tensor(t / total).clamp(max=1.0)
    return floor + (1 - floor) * 0.5 * (1 + torch.cos(torch.pi * done))


def by_numpy(t, total, floor):
    return np.float64(floor) + (1 - floor) * (1 + np.cos(np.pi * min(1, t / total))) / 2


def by_a_table(t, total, floor):
    table = [(1 + math.cos(math.pi * i / total)) / 2 for i in range(total + 1)]
    return table[min(t, total)] * (1 - floor) + floor


def as_one_tensor(t, total, floor):
    return torch.tensor([HOLD.solve(t, total, floor)])


@pytest.mark.parametrize(
    "answer",
    [by_the_square_of_a_cosine, by_torch, by_numpy, by_a_table, as_one_tensor],
    ids=name_of,
)
def test_factor_accepts(answer):
    accepts(HOLD, answer)


def up_from(lengths):
    def answer(t, total, floor):
        return 1.0 if t > lengths * total else HOLD.solve(t, total, floor)

    return answer


WRONG_FACTOR = {
    "1 after 2 lengths": (up_from(2), "above 2 total"),
    "1 after 3 lengths": (up_from(3), "wanted"),
    "1 after 50 lengths": (up_from(50), "wanted"),
    "the floor is 0": (lambda t, n, floor: HOLD.solve(t, n, 0.0), "floor is forgotten"),
    "the floor is a tenth": (lambda t, n, floor: HOLD.solve(t, n, 0.1), "wanted"),
    "total is 10": (lambda t, n, floor: HOLD.solve(t, 10, floor), "wanted"),
    "constant": (lambda t, n, floor: 1.0, "wanted"),
    "exponential": (lambda t, n, floor: max(floor, 0.9**t), "wanted"),
    "sine": (
        lambda t, n, floor: floor + (1 - floor) * math.sin(math.pi / 2 * min(t, n) / n),
        "wanted",
    ),
    "degrees": (
        lambda t, n, floor: floor + (1 - floor) * (1 + math.cos(180 * min(t, n) / n)) / 2,
        "wanted",
    ),
    "None": (lambda t, n, floor: None, "Return one number"),
}


@pytest.mark.parametrize("name", WRONG_FACTOR)
def test_factor_rejects(name):
    answer, words = WRONG_FACTOR[name]
    rejects(HOLD, answer, words)


# --------------------------------------------------------------------------- updates


def in_a_walk(lengths, cooldowns):
    trained = done = 0
    plan = sorted(zip(lengths, cooldowns, strict=True), key=lambda run: run[0] - run[1])
    for length, cooldown in plan:
        trained += max(0, length - cooldown - done) + cooldown
        done = max(done, length - cooldown)
    return [trained, sum(lengths)]


def with_arrays(lengths, cooldowns):
    lengths, cooldowns = np.array(lengths), np.array(cooldowns)
    return np.array([(lengths - cooldowns).max() + cooldowns.sum(), lengths.sum()])


def with_tensors(lengths, cooldowns):
    lengths, cooldowns = torch.tensor(lengths), torch.tensor(cooldowns)
    return (lengths - cooldowns).max() + cooldowns.sum(), lengths.sum()


def with_a_set(lengths, cooldowns):
    made = set()
    for number, (length, cooldown) in enumerate(zip(lengths, cooldowns, strict=True)):
        made |= {("stable", t) for t in range(length - cooldown)}
        made |= {(number, t) for t in range(length - cooldown, length)}
    return len(made), sum(lengths)


def as_one_tensor_of_floats(lengths, cooldowns):
    return torch.tensor(UPDATES.solve(lengths, cooldowns), dtype=torch.float32)


@pytest.mark.parametrize(
    "answer",
    [in_a_walk, with_arrays, with_tensors, with_a_set, as_one_tensor_of_floats],
    ids=name_of,
)
def test_updates_accepts(answer):
    accepts(UPDATES, answer)


WRONG_UPDATES = {
    "the shown case": (lambda a, b: (460, 700), "For lengths"),
    "one number": (lambda a, b: UPDATES.solve(a, b)[0], "Return two numbers"),
    "three numbers": (lambda a, b: (*UPDATES.solve(a, b), 0), "Return two numbers"),
    "nothing": (lambda a, b: None, "Return two numbers"),
    "the longest cool-down": (lambda a, b: (max(a) - max(b) + sum(b), sum(a)), "lengths"),
    "the last of the list": (lambda a, b: (a[-1] - b[-1] + sum(b), sum(a)), "For len"),
    "a fifth each": (lambda a, b: (max(a) * 0.8 + sum(a) * 0.2, sum(a)), "For lengths"),
    "different lengths only": (
        lambda a, b: (UPDATES.solve(a, b)[0], sum(set(a))),
        "For lengths [64, 64, 64]",
    ),
    "what is saved": (
        lambda a, b: (UPDATES.solve(a, b)[0], sum(a) - UPDATES.solve(a, b)[0]),
        "For lengths",
    ),
    "stable parts in a row": (
        lambda a, b: (sum(x - y for x, y in zip(a, b, strict=True)), sum(a)),
        "For lengths",
    ),
}


@pytest.mark.parametrize("name", WRONG_UPDATES)
def test_updates_rejects(name):
    answer, words = WRONG_UPDATES[name]
    rejects(UPDATES, answer, words)
