"""Many seeds at once: the same numbers as one by one, and honest statistics."""

import functools
import math
import warnings
from unittest.mock import ANY

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from dlcourse.lab.models import MLP, ResidualCNN, RowRNN
from dlcourse.lab.trials import (
    ELEMENTWISE,
    OPTIMIZERS,
    CannotStack,
    Comparison,
    Interval,
    Trials,
    best_each,
    interval,
    mean,
    paired,
    run_trials,
)
from dlcourse.lab.trials import stack as stack_module

G = torch.Generator().manual_seed(0)
X = torch.randn(70, 1, 4, 4, generator=G)
Y = torch.randint(0, 3, (70,), generator=G)


def build(seed):
    return MLP(16, 3, width=8, depth=2, seed=seed)


def clip(grads):
    norm = torch.sqrt(sum(g.square().sum() for g in grads))
    scale = torch.clamp(0.5 / (norm + 1e-6), max=1.0)
    return [g * scale for g in grads], {"grad_norm": norm}


def seeded(make):
    def build(seed):
        torch.manual_seed(seed)
        return make()

    return build


def sequential():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8, bias=False), nn.GELU(), nn.Linear(8, 8),
        nn.ReLU(inplace=True), nn.Linear(8, 3),
    )  # fmt: skip


def tied():
    layer = nn.Linear(8, 8)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), layer, nn.Tanh(), layer, nn.Linear(8, 3)
    )


def frozen():
    model = sequential()
    model[3].weight.requires_grad_(False)
    return model


def hooked():
    model = sequential()
    model[1].register_forward_hook(lambda module, inputs, output: output * 2)
    return model


def own_forward():
    model = sequential()
    inner = model.forward
    model.forward = lambda x: inner(x) * 2
    return model


def centred(x):
    """A function that is not elementwise: it mixes the rows of a batch."""
    return torch.tanh(x - x.mean(0)) + x.sum(1, keepdim=True) / 10


MODELS = {
    "mlp": build,
    "linear": lambda seed: MLP(16, 3, depth=0, seed=seed),
    "custom activation": lambda seed: MLP(16, 3, width=8, activation=centred, seed=seed),
    "sequential": seeded(sequential),
    "tied": seeded(tied),
    "rnn": lambda seed: RowRNN(4, 3, width=8, seed=seed),
    "frozen": seeded(frozen),
    "hooked": seeded(hooked),
    "own forward": seeded(own_forward),
    "parameter in the activation": seeded(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.PReLU(), nn.Linear(8, 3))
    ),
    "batch norm": lambda seed: ResidualCNN(
        1, 3, width=4, blocks=1, norm="batch", seed=seed
    ),
}
CHAINS = ("mlp", "linear", "custom activation", "sequential", "tied")


def assert_same(stacked, loop, rows=70, atol=2e-5):
    assert stacked.stacked and not loop.stacked
    np.testing.assert_allclose(stacked.train_loss, loop.train_loss, atol=atol)
    for part in ("validation", "test"):
        ours, theirs = getattr(stacked, part), getattr(loop, part)
        assert ours.keys() == theirs.keys()
        if ours:
            np.testing.assert_allclose(ours["loss"], theirs["loss"], atol=atol)
            np.testing.assert_allclose(
                ours["accuracy"], theirs["accuracy"], atol=1 / rows
            )
    assert stacked.logged.keys() == loop.logged.keys()
    for name in stacked.logged:
        np.testing.assert_allclose(stacked.logged[name], loop.logged[name], rtol=1e-3)


def both_ways(make, data=(X, Y), **settings):
    common = dict(seeds=[0, 3, 11], lr=[0.01, 0.003], steps=15, batch_size=16) | settings
    return run_trials(make, data, **common), run_trials(make, data, stack=False, **common)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
        {"optimizer": "adam", "weight_decay": 0.1},
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"optimizer": "sgd", "grad_transform": clip},
        {"optimizer": "sgd", "schedule": lambda t: 1 / (1 + t)},
        {"optimizer": "adamw", "weight_decay": 0.1, "schedule": lambda t: 1 / (1 + t)},
    ],
)
@pytest.mark.parametrize("model", ["mlp", "sequential", "rnn"])
def test_stacked_equals_the_loop(settings, model):
    stacked, loop = both_ways(MODELS[model], validation=(X, Y), test=(X, Y), **settings)
    # the 5th batch of an epoch has 6 rows, not 16
    assert stacked.train_loss.shape == (2, 3, 15)
    assert_same(stacked, loop)
    assert settings["optimizer"] in OPTIMIZERS


@pytest.mark.parametrize("model", MODELS)
def test_every_kind_of_model_equals_the_loop(model, monkeypatch):
    used_vmap = []
    whole = stack_module.functional_call
    monkeypatch.setattr(
        stack_module,
        "functional_call",
        lambda *args: used_vmap.append(True) or whole(*args),
    )
    stacked, loop = both_ways(MODELS[model], lr=[0.1, 0.03], test=(X[:33], Y[:33]))
    assert_same(stacked, loop, rows=33)
    assert bool(used_vmap) == (model not in CHAINS)


@pytest.mark.parametrize("activation", ELEMENTWISE)
def test_each_activation_of_a_chain_is_elementwise(activation):
    x = torch.randn(3, 4, 5, generator=G)
    whole = activation()(x)
    assert torch.allclose(whole.mT, activation()(x.mT), atol=1e-6)
    assert torch.allclose(whole[1, 2:], activation()(x[1, 2:]), atol=1e-6)


def squared_error(outputs, y):
    return ((outputs.softmax(-1) - F.one_hot(y, 3)) ** 2).sum(-1).mean()


# cross entropy leaves those out
Y_MARKED = torch.where(torch.arange(len(Y)) % 5 == 0, -100, Y)


@pytest.mark.parametrize("model", ["mlp", "rnn"])
@pytest.mark.parametrize(
    "loss_fn, targets",
    [
        (squared_error, Y),
        (functools.partial(F.cross_entropy, label_smoothing=0.1), Y),
        (F.cross_entropy, F.one_hot(Y, 3).float() * 0.9 + 0.1 / 3),
        (F.cross_entropy, Y_MARKED),
    ],
)
def test_every_kind_of_loss_equals_the_loop(loss_fn, targets, model):
    stacked, loop = both_ways(MODELS[model], (X, targets), loss_fn=loss_fn)
    assert_same(stacked, loop)


@pytest.mark.parametrize("model", ["mlp", "rnn"])
def test_a_regression_equals_the_loop(model):
    def loss_fn(outputs, y):
        return F.mse_loss(outputs.sum(1), y)

    stacked, loop = both_ways(MODELS[model], (X, Y.float()), loss_fn=loss_fn)
    assert_same(stacked, loop)


def test_double_precision_equals_the_loop_closely():
    stacked, loop = both_ways(lambda seed: build(seed).double(), (X.double(), Y))
    assert_same(stacked, loop, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["mlp", "rnn"])
def test_a_diverging_replica_harms_no_other(model, optimizer):
    settings = dict(seeds=[1], steps=40, optimizer=optimizer, test=(X, Y))
    make = MODELS[model]
    if model == "rnn":
        make = lambda seed: RowRNN(4, 3, width=8, nonlinearity="relu", seed=seed)  # noqa: E731
    alone = run_trials(make, (X, Y), lr=0.01, **settings)
    beside = run_trials(make, (X, Y), lr=[0.01, 1e30], **settings)
    np.testing.assert_allclose(beside.train_loss[0], alone.train_loss[0], atol=1e-6)
    np.testing.assert_allclose(beside.test["loss"][0], alone.test["loss"][0], atol=1e-6)
    assert math.isnan(beside.train_loss[1, 0, -1])
    assert math.isnan(beside.test["loss"][1, 0])


class Unstackable(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.inner = build(seed)

    def forward(self, x):
        return self.inner(x) * (1.0 if x.sum().item() > 0 else 2.0)


def unused(seed):
    model = RowRNN(4, 3, width=8, seed=seed)
    model.spare = nn.Parameter(torch.ones(3))
    return model


def two_dtypes(seed):
    model = build(seed)
    model.spare = nn.Parameter(torch.ones(3, dtype=torch.float64))
    return model


@pytest.mark.parametrize("make", [Unstackable, unused, two_dtypes])
def test_models_that_do_not_stack_run_one_by_one_and_say_so(make):
    with pytest.warns(CannotStack, match="one by one"):
        result = run_trials(make, (X, Y), seeds=[0, 1], lr=0.1, steps=3)
    assert not result.stacked and np.isfinite(result.train_loss).all()


def test_a_transform_that_does_not_stack_runs_one_by_one_and_says_so():
    def transform(grads):
        return [g * 0.5 for g in grads] if float(grads[0].sum()) > 0 else grads, {}

    with pytest.warns(CannotStack, match="one by one"):
        result = run_trials(
            build, (X, Y), seeds=[0, 1], lr=0.1, steps=3, grad_transform=transform
        )
    assert not result.stacked


def test_a_transform_may_log_plain_numbers():
    stacked, loop = both_ways(
        build, grad_transform=lambda grads: (grads, {"count": len(grads)})
    )
    assert_same(stacked, loop)
    assert (stacked.logged["count"] == 6).all()


def test_the_model_names_inputs_that_do_not_fit():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="takes 16 values"):
            run_trials(build, (X[..., :3], Y), seeds=[0], lr=0.1, steps=1)


def test_the_callers_models_and_data_stay_as_they_were():
    models = [build(seed) for seed in range(2)]
    before = [p.clone() for model in models for p in model.parameters()]
    x, y = X.clone(), Y.clone()
    run_trials(
        lambda seed: models[seed], (x, y), seeds=[0, 1], lr=0.1, steps=3, test=(x, y)
    )
    after = [p for model in models for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(x, X) and torch.equal(y, Y)


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


def test_intervals_and_comparisons_print_as_mean_and_bounds():
    assert interval([0.0, 1.0, 2.0]) == Interval(
        1.0, pytest.approx(-1.484, abs=1e-3), ANY, 3
    )
    assert str(Interval(0.5, 0.25, 0.75, 4)) == "0.500 [0.250, 0.750]"
    assert str(Comparison(0.5, 0.25, 0.75, 4, wins=3)) == "0.500 [0.250, 0.750]"


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
    assert (
        result.wins == 12
        and result.low < 1 < result.high
        and result.high - result.low < 0.05
    )


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
