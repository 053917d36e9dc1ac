"""Many seeds at once: the same numbers as one by one, and honest statistics."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from dlcourse.lab.models import MLP, RowRNN
from dlcourse.lab.trials import CannotStack, Trials, best_each, interval, mean, paired, run_trials

G = torch.Generator().manual_seed(0)
X = torch.randn(70, 1, 4, 4, generator=G)
Y = torch.randint(0, 3, (70,), generator=G)


def build(seed):
    return MLP(16, 3, width=8, depth=2, seed=seed)


def clip(grads):
    norm = torch.sqrt(sum(g.square().sum() for g in grads))
    scale = torch.clamp(0.5 / (norm + 1e-6), max=1.0)
    return [g * scale for g in grads], {"grad_norm": norm}


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01},
        {"optimizer": "adam", "weight_decay": 0.1},
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"optimizer": "sgd", "grad_transform": clip},
        {"optimizer": "sgd", "schedule": lambda t: 1 / (1 + t)},
    ],
)
@pytest.mark.parametrize("model", ["mlp", "rnn"])
def test_stacked_equals_the_loop(settings, model):
    make = build if model == "mlp" else lambda seed: RowRNN(4, 3, width=8, seed=seed)
    common = dict(
        seeds=[0, 3, 11], lr=[0.01, 0.003], steps=15, batch_size=16, validation=(X, Y), test=(X, Y)
    )
    stacked = run_trials(make, (X, Y), **common, **settings)
    loop = run_trials(make, (X, Y), stack=False, **common, **settings)
    assert stacked.stacked and not loop.stacked
    assert stacked.train_loss.shape == (2, 3, 15)
    np.testing.assert_allclose(stacked.train_loss, loop.train_loss, atol=2e-5)
    np.testing.assert_allclose(stacked.test["loss"], loop.test["loss"], atol=2e-5)
    np.testing.assert_allclose(stacked.test["accuracy"], loop.test["accuracy"], atol=1 / 70)
    assert stacked.logged.keys() == loop.logged.keys()
    for name in stacked.logged:
        np.testing.assert_allclose(stacked.logged[name], loop.logged[name], rtol=1e-3)


def test_a_diverging_replica_harms_no_other():
    alone = run_trials(build, (X, Y), seeds=[1], lr=0.01, steps=40)
    beside = run_trials(build, (X, Y), seeds=[1], lr=[0.01, 1e30], steps=40)
    np.testing.assert_allclose(beside.train_loss[0], alone.train_loss[0], atol=1e-6)
    assert math.isnan(beside.train_loss[1, 0, -1])


class Unstackable(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.inner = build(seed)

    def forward(self, x):
        return self.inner(x) * (1.0 if x.sum().item() > 0 else 2.0)


def test_models_that_do_not_stack_run_one_by_one_and_say_so():
    with pytest.warns(CannotStack, match="one by one"):
        result = run_trials(Unstackable, (X, Y), seeds=[0, 1], lr=0.1, steps=3)
    assert not result.stacked and np.isfinite(result.train_loss).all()


def test_models_that_stack_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_trials(build, (X, Y), seeds=[0, 1], lr=0.1, steps=3)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"optimizer": "lion"}, "choose one of sgd, adam, adamw"),
        ({"optimizer": "adam", "momentum": 0.9}, "betas"),
        ({"lr": []}, "at least one learning rate"),
        ({"seeds": []}, "one seed"),
        ({"steps": 0}, "one step"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        run_trials(build, (X, Y), **{"seeds": [0], "lr": 0.1, "steps": 1, **settings})


def test_t_interval_is_scipys():
    rng = np.random.default_rng(0)
    for n in (2, 3, 10, 100):
        values = rng.normal(size=n)
        ours = interval(values, 0.9)
        low, high = stats.t.interval(0.9, n - 1, values.mean(), stats.sem(values))
        assert (ours.low, ours.high) == pytest.approx((low, high))
        assert mean(values) == pytest.approx(values.mean())


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(1)
    for method in ("t", "bootstrap"):
        hits = 0
        for _ in range(400):
            got = interval(rng.normal(size=20), 0.9, method, resamples=500)
            hits += got.low <= 0 <= got.high
        assert 0.84 < hits / 400 < 0.95


def test_paired_difference():
    rng = np.random.default_rng(2)
    base = rng.normal(size=12) * 10
    result = paired(base + 1 + 0.01 * rng.normal(size=12), base)
    assert result.wins == 12 and result.low < 1 < result.high and result.high - result.low < 0.05


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: interval([1.0]), "more seeds"),
        (lambda: interval([1.0, math.nan]), "not finite"),
        (lambda: interval([1.0, 2.0], level=95), "between 0 and 1"),
        (lambda: interval([1.0, 2.0], method="guess"), "bootstrap"),
        (lambda: paired([1, 2], [1, 2, 3]), "no pairs"),
    ],
)
def test_statistics_that_cannot_be_had(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_best_each_chooses_on_validation_and_reports_on_test():
    def trials(validation, test):
        return Trials(
            [0.1, 1.0], [0, 1], np.zeros((2, 2, 1)),
            {"accuracy": np.array(validation)}, {"accuracy": np.array(test)},
        )  # fmt: skip

    a = trials([[0.5, 0.5], [0.9, 0.9]], [[0.99, 0.99], [0.8, 0.9]])
    b = trials([[0.9, 0.9], [0.5, 0.5]], [[0.7, 0.7], [0.99, 0.99]])
    assert best_each(a, b).mean == pytest.approx(0.15)
    with pytest.raises(ValueError, match="no test results"):
        best_each(a, Trials([1.0], [0, 1], np.zeros((1, 2, 1)), a.validation))
