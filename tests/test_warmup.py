"""Warm-up: equal to torch's schedulers, edge cases, invariants, and what counts as an
update.
"""

import math
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from dlcourse import warmup as wu
from dlcourse.lab.launching import launch
from dlcourse.lab.models import MLP
from dlcourse.lab.training import fit, use_one_thread

use_one_thread()
X = torch.randn(48, 1, 3, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(48) % 3


def sgd(lr=0.7):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def rates(optimizer, scheduler, updates):
    """Return the learning rate of each update, as torch's scheduler sets it."""
    seen = []
    for _ in range(updates):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            # SequentialLR's own use of a deprecated argument
            warnings.simplefilter("ignore")
            scheduler.step()
    return seen


def ours(schedule, updates, lr=0.7):
    return [lr * schedule(t) for t in range(updates)]


# --- the same as torch ----------------------------------------------------------------------------


def rising(optimizer, steps):
    """Return torch's scheduler that rises from 1 / steps to 1 at update steps - 1."""
    return lr_scheduler.LinearLR(optimizer, 1 / steps, total_iters=steps - 1)


@pytest.mark.parametrize("seed", range(12))
def test_linear_and_constant_equal_torch(seed):
    rng = random.Random(seed)
    steps, start = rng.randint(2, 30), rng.uniform(0.01, 1)
    optimizer = sgd()
    expected = rates(optimizer, rising(optimizer, steps), 60)
    assert np.allclose(ours(wu.linear_warmup(steps), 60), expected, atol=1e-12, rtol=0)
    optimizer = sgd()
    torch_constant = lr_scheduler.ConstantLR(optimizer, factor=start, total_iters=steps)
    expected = rates(optimizer, torch_constant, 60)
    assert np.allclose(
        ours(wu.constant_warmup(steps, start), 60), expected, atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("seed", range(12))
def test_cosine_equals_linear_then_cosine_of_torch(seed):
    rng = random.Random(seed)
    steps, end = rng.randint(2, 20), rng.choice([0.0, 0.1])
    total = steps + rng.randint(1, 40)
    optimizer = sgd()
    parts = [
        rising(optimizer, steps),
        lr_scheduler.CosineAnnealingLR(optimizer, total - steps, eta_min=0.7 * end),
    ]
    expected = rates(
        optimizer, lr_scheduler.SequentialLR(optimizer, parts, [steps]), total + 1
    )
    schedule = wu.WarmupCosine(steps, total, end)
    assert np.allclose(ours(schedule, total + 1), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("seed", range(12))
def test_cosine_equals_that_of_transformers_but_for_its_start_at_zero(seed):
    rng = random.Random(seed)
    warm = rng.randint(0, 20)
    total = warm + rng.randint(1, 40)
    schedule = wu.WarmupCosine(warm, total)
    for t in range(warm, total + 1):
        progress = (t - warm) / max(1, total - warm)
        theirs = max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))
        assert schedule(t) == pytest.approx(theirs, abs=1e-12)
    for t in range(warm):  # theirs is t / warm: one update later
        assert schedule(t) == pytest.approx((t + 1) / warm)


@pytest.mark.parametrize("seed", range(12))
def test_wrapper_equals_sequential_of_torch(seed):
    rng = random.Random(seed)
    steps, gamma = rng.randint(2, 20), rng.uniform(0.5, 1)
    optimizer = sgd()
    parts = [rising(optimizer, steps), lr_scheduler.ExponentialLR(optimizer, gamma)]
    expected = rates(optimizer, lr_scheduler.SequentialLR(optimizer, parts, [steps]), 60)
    schedule = wu.WarmupWrapper(lambda t: gamma**t, steps)
    assert np.allclose(ours(schedule, 60), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("schedule", [
    wu.linear_warmup(7), wu.constant_warmup(5, 0.1), wu.WarmupCosine(5, 30), wu.NoamLR(16, 8),
    wu.WarmupWrapper(lambda t: 0.9**t, 6, prefix=False),
])  # fmt: skip
def test_works_in_lambda_lr_and_in_fit(schedule):
    optimizer = sgd()
    expected = rates(optimizer, lr_scheduler.LambdaLR(optimizer, schedule), 40)
    assert np.allclose(ours(schedule, 40), expected, atol=1e-12, rtol=0)
    model = MLP(9, 3, width=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.7)
    history = fit(model, (X, Y), optimizer, steps=20, batch_size=16, schedule=schedule)
    assert np.allclose(history.lr, ours(schedule, 20), atol=1e-12, rtol=0)


@pytest.mark.parametrize("width,steps", [(1, 1), (64, 10), (512, 4000)])
def test_noam_equals_the_paper(width, steps):
    schedule = wu.NoamLR(width, steps)
    for n in (1, 2, steps, steps + 1, 10 * steps):
        paper = width**-0.5 * min(n**-0.5, n * steps**-1.5)
        assert schedule(n - 1) == pytest.approx(paper, abs=1e-15)
    assert schedule(steps - 1) == pytest.approx((width * steps) ** -0.5)


# --- exact values, edges and invariants -----------------------------------------------------------


def test_the_corners_are_exact():
    for steps in (1, 3, 7, 100):
        line = wu.linear_warmup(steps)
        assert [line(0), line(steps - 1), line(steps)] == [1 / steps, 1.0, 1.0]
        assert steps == 1 or line(steps - 2) < 1
        jump = wu.constant_warmup(steps, 0.1)
        assert [jump(0), jump(steps - 1), jump(steps)] == [0.1, 0.1, 1.0]
        cosine = wu.WarmupCosine(steps, 2 * steps, end=0.25)
        assert [cosine(0), cosine(steps - 1), cosine(steps)] == [1 / steps, 1, 1]
        assert [cosine(2 * steps), cosine(9 * steps)] == [0.25, 0.25]


def test_a_fall_to_one_is_no_fall():
    schedule = wu.WarmupCosine(2, 5, end=1.0)
    assert [schedule(t) for t in range(7)] == [0.5, 1, 1, 1, 1, 1, 1]


def test_no_steps_is_no_warmup():
    decay = lambda t: 1 / (1 + t)  # noqa: E731
    for t in range(20):
        assert wu.linear_warmup(0)(t) == 1 and wu.linear_warmup(1)(t) == 1
        assert wu.constant_warmup(0, 0.1)(t) == 1
        assert wu.WarmupWrapper(decay, 0)(t) == decay(t)
        assert wu.WarmupWrapper(decay, 0, prefix=False)(t) == decay(t)
    assert wu.WarmupCosine(0, 10)(0) == 1


def test_prefix_waits_and_the_other_multiplies():
    decay = lambda t: 0.5 ** (t + 1)  # noqa: E731
    waits, multiplies = (wu.WarmupWrapper(decay, 4, prefix=p) for p in (True, False))
    line = wu.linear_warmup(4)
    assert [waits(t) for t in range(4, 12)] == [decay(t) for t in range(8)]
    assert [multiplies(t) for t in range(12)] == [line(t) * decay(t) for t in range(12)]
    assert waits(0) == pytest.approx(decay(0) / 4)


@pytest.mark.parametrize("seed", range(10))
def test_invariants_and_purity(seed):
    rng = random.Random(seed)
    steps, start = rng.randint(1, 50), rng.random()
    for schedule in (wu.linear_warmup(steps), wu.constant_warmup(steps, start)):
        values = [schedule(t) for t in range(2 * steps)]
        assert values == sorted(values) and 0 < min(values) and max(values) <= 1
    assert len({wu.constant_warmup(steps, start)(t) for t in range(2 * steps)}) == 2
    for schedule in (wu.WarmupCosine(steps, 3 * steps, start), wu.NoamLR(8, steps)):
        values = [schedule(t) for t in range(3 * steps)]
        peak = int(np.argmax(values))
        assert peak == steps - 1
        assert values[: peak + 1] == sorted(values[: peak + 1])
        assert values[peak:] == sorted(values[peak:], reverse=True)
        shuffled = list(range(3 * steps))
        rng.shuffle(shuffled)
        assert {t: schedule(t) for t in shuffled} == dict(enumerate(values))


@pytest.mark.parametrize("make,word", [
    (lambda: wu.linear_warmup(-1), "steps"),
    (lambda: wu.linear_warmup(2.5), "whole number"),
    (lambda: wu.constant_warmup(5, 1.5), "from 0 to 1"),
    (lambda: wu.constant_warmup(5, math.nan), "start"),
    (lambda: wu.constant_warmup(5, -0.1), "start"),
    (lambda: wu.constant_warmup(True, 0.1), "steps"),
    (lambda: wu.WarmupCosine(10, 10), "warm-up included"),
    (lambda: wu.WarmupCosine(1, 5, end=2), "end"),
    (lambda: wu.WarmupCosine(1, 5.0), "total"),
    (lambda: wu.WarmupWrapper(abs, -2), "steps"),
    (lambda: wu.NoamLR(0, 5), "width"),
    (lambda: wu.NoamLR(8, 0), "steps"),
    (lambda: wu.warmup_updates(-1, 5, 5), "epochs"),
    (lambda: wu.warmup_updates(1, 0, 5), "rows"),
    (lambda: wu.warmup_updates(1, 5, 0), "batch_size"),
])  # fmt: skip
def test_bad_settings_say_what_to_do(make, word):
    with pytest.raises(ValueError, match=word):
        make()


# --- updates, not micro-batches -------------------------------------------------------------------


def test_warmup_updates_counts_what_fit_makes():
    for epochs, batch_size in ((1, 48), (2, 20), (3, 7)):
        model = MLP(9, 3, width=4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        history = fit(model, (X, Y), optimizer, epochs=epochs, batch_size=batch_size)
        assert len(history.loss) == wu.warmup_updates(epochs, len(X), batch_size)
    assert wu.warmup_updates(3, 1, 1) == 3  # the least of both
    assert wu.warmup_updates(0.5, 1000, 10) == 50 and wu.warmup_updates(0, 10, 10) == 0


def test_micro_batches_do_not_change_the_schedule():
    runs = []
    for pieces in (1, 4):
        model = MLP(9, 3, width=4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        history = fit(
            model, (X, Y), optimizer, steps=10, batch_size=16, accumulation_steps=pieces,
            schedule=wu.linear_warmup(6),
        )  # fmt: skip
        runs.append((history.lr, history.loss))
    assert runs[0][0] == runs[1][0]
    assert np.allclose(runs[0][1], runs[1][1], atol=1e-5)


def rates_on_each_process():
    import torch

    from dlcourse.lab.models import MLP
    from dlcourse.lab.training import fit
    from dlcourse.warmup import linear_warmup

    x = torch.randn(48, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    model = MLP(9, 3, width=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return fit(
        model, (x, torch.arange(48) % 3), optimizer, steps=8, batch_size=16,
        schedule=linear_warmup(4),
    ).lr  # fmt: skip


def test_two_processes_make_the_same_warmup():
    first, second = launch(rates_on_each_process)
    assert first == second == [0.5 * min(1, (t + 1) / 4) for t in range(8)]


# --- the stable range -----------------------------------------------------------------------------


def test_stable_range_by_hand():
    table = [[0.9, 0.2], [0.9, 0.9], [0.8, 0.9], [math.nan, 0.9], [0.1, 0.1]]
    lrs = [0.01, 0.1, 0.3, 1.0, 3.0]
    assert wu.stable_lr_range(lrs, table, 0.7) == (0.1, 0.3)
    assert wu.stable_lr_range(lrs, table, 0.7, share=0.5) == (0.01, 1.0)
    assert wu.stable_lr_range(lrs, table, 0.95) is None
    assert wu.stable_lr_range([1, 2, 30, 40, 400], [[1], [1], [0], [1], [1]], 1) == (
        40,
        400,
    )
    assert wu.stable_lr_range([0.5], [[1.0]], 1.0) == (0.5, 0.5)
    two_of_a_width = [1, 2, 3, 4, 8], [[1], [1], [0], [1], [1]]
    assert wu.stable_lr_range(*two_of_a_width, 1) == (1, 2)  # the first of them


@pytest.mark.parametrize("seed", range(10))
def test_stable_range_grows_as_the_demand_falls(seed):
    rng = np.random.default_rng(seed)
    lrs, table = np.cumsum(rng.random(6) + 0.01), rng.random((6, 5))

    def width(at_least, share):
        found = wu.stable_lr_range(lrs, table, at_least, share)
        return 0 if found is None else found[1] / found[0]

    for share in (0.2, 0.6, 1.0):
        widths = [width(level, share) for level in (0.9, 0.6, 0.3, 0.0)]
        assert widths == sorted(widths)
    assert width(0.5, 1.0) <= width(0.5, 0.6) <= width(0.5, 0.2)
    assert width(0.0, 1.0) == pytest.approx(lrs[-1] / lrs[0])


@pytest.mark.parametrize("lrs,table,share,word", [
    ([1, 2], [[1]], 1.0, "one row"), ([2, 1], [[1], [1]], 1.0, "rise"),
    ([0, 1], [[1], [1]], 1.0, "positive"), ([1], [[1]], 0.0, "share"),
    ([1], [[1]], 1.5, "share"), ([1, 1], [[1], [1]], 1.0, "rise"), ([1], [1.0], 1.0, "one row"),
])  # fmt: skip
def test_stable_range_errors(lrs, table, share, word):
    with pytest.raises(ValueError, match=word):
        wu.stable_lr_range(lrs, table, 0.5, share)
