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

from dlcourse import regularization as rg
from dlcourse.lab.evaluation import evaluate
from dlcourse.lab.models import MLP, ResidualCNN, RowRNN, SmallCNN
from dlcourse.lab.training import fit
from dlcourse.lab.trials import (
    ELEMENTWISE,
    OPTIMIZERS,
    Arms,
    CannotStack,
    Comparison,
    Interval,
    Trials,
    best_of_rates,
    interval,
    paired,
    run_arms,
    run_trials,
)
from dlcourse.lab.trials import stack as stack_module
from dlcourse.lab.trials.noise import DropoutNoise

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
    stacked = run_trials(make, data, **common)
    return stacked, run_trials(make, data, stack=False, **common)


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


def backwards(seed, epoch):
    return (torch.arange(70).flip(0) + seed + 10 * epoch) % 70


def test_an_order_of_ones_own_is_followed():
    trials = run_trials(
        build,
        (X, Y),
        seeds=[0, 3],
        lr=[0.1, 0.5],
        steps=7,
        batch_size=16,
        order=backwards,
    )
    for number, seed in enumerate(trials.seeds):
        model = build(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        rows = [r for epoch in (0, 1) for r in backwards(seed, epoch).split(16)]
        losses = []
        for batch in rows[:7]:  # the fifth is short, and begins no new pass
            loss = F.cross_entropy(model(X[batch]), Y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert trials.train_loss[1, number] == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize("make", [build, lambda seed: Unstackable(seed)])
def test_an_order_is_followed_one_by_one_too(make):
    settings = dict(seeds=[0, 3], lr=[0.1, 0.5], steps=7, batch_size=16, order=backwards)
    stacked = run_trials(build, (X, Y), stack=True, **settings)
    loop = run_trials(make, (X, Y), stack=False, **settings)
    if make is build:
        assert_same(stacked, loop)
    assert loop.train_loss.shape == (2, 2, 7)


OPTIMIZED = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
}


@seeded
def normed():  # no bias before the norm: it has no gradient, and Adam steps by its rounding
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


@pytest.mark.parametrize("stack", [True, False])
@pytest.mark.parametrize(
    "model", ["mlp", "sequential", "tied", "rnn", "frozen", "normed"]
)
@pytest.mark.parametrize("optimizer", OPTIMIZED)
def test_both_ways_train_as_fit_does_with_the_optimizers_of_torch(
    optimizer, model, stack
):
    make = {**MODELS, "normed": normed}[model]
    settings = {"optimizer": optimizer}
    if optimizer == "momentum":
        settings = {"momentum": 0.9}
    if optimizer != "sgd":
        settings["weight_decay"] = 0.1

    def schedule(t):
        return 1 / (1 + t)

    def transformed(run, batch):
        run.optimizer.zero_grad()
        loss = run.gradients(batch)
        weights = [weight for weight in run.model.parameters() if weight.requires_grad]
        grads, facts = clip([weight.grad for weight in weights])
        for weight, grad in zip(weights, grads, strict=True):
            weight.grad = grad
        run.log("grad_norm", facts["grad_norm"])
        run.optimizer.step()
        return loss

    trials = run_trials(
        make, (X, Y), seeds=[4, 3], lr=[0.01, 0.1], steps=15, batch_size=16,
        schedule=schedule, grad_transform=clip, test=(X, Y), stack=stack, **settings,
    )  # fmt: skip
    alone = make(3)
    own = OPTIMIZED[optimizer]([p for p in alone.parameters() if p.requires_grad])
    history = fit(
        alone, (X, Y), own, steps=15, batch_size=16, seed=3, schedule=schedule,
        step=transformed, cpu=True,
    )  # fmt: skip
    np.testing.assert_allclose(trials.train_loss[1, 1], history.loss, atol=1e-4)
    norms = trials.logged["grad_norm"][1, 1]
    np.testing.assert_allclose(norms, history.extra["grad_norm"], rtol=2e-3)
    loss = evaluate(alone, (X, Y))["loss"]
    assert trials.test["loss"][1, 1] == pytest.approx(loss, abs=1e-4)
    trained = trials.networks[1][1].eval()
    for name, value in alone.eval().state_dict().items():
        theirs = trained.state_dict()[name]
        torch.testing.assert_close(theirs, value, atol=2e-4, rtol=2e-3)


def test_double_precision_equals_the_loop_closely():
    stacked, loop = both_ways(lambda seed: build(seed).double(), (X.double(), Y))
    assert_same(stacked, loop, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_diverging_replica_harms_no_other(model, optimizer):
    settings = dict(seeds=[1], steps=40, optimizer=optimizer, test=(X, Y))
    make = NETWORKS[model]
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


def test_models_that_do_not_stack_run_one_by_one_and_say_so():
    with pytest.warns(CannotStack, match="one by one"):
        result = run_trials(Unstackable, (X, Y), seeds=[0, 1], lr=0.1, steps=3)
    assert not result.stacked and np.isfinite(result.train_loss).all()


def test_a_parameter_that_is_not_used_stays():
    stacked, loop = both_ways(unused)
    assert_same(stacked, loop)
    for trials in (stacked, loop):
        assert (trials.weights["spare"] == 1).all()


def test_parameters_of_two_types_are_refused():
    with pytest.raises(RuntimeError, match="not all of one dtype"):
        run_trials(two_dtypes, (X, Y), seeds=[0], lr=0.1, steps=3, stack=False)


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


def test_intervals_and_comparisons_print_as_mean_and_bounds():
    assert interval([0.0, 1.0, 2.0]) == Interval(
        1.0, pytest.approx(-1.484, abs=1e-3), ANY, 3
    )
    assert str(Interval(0.5, 0.25, 0.75, 4)) == "0.500 [0.250, 0.750]"
    assert str(Comparison(0.5, 0.25, 0.75, 4, wins=3)) == "0.500 [0.250, 0.750]"


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        got = interval(rng.normal(size=20), 0.9)
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
        (lambda: paired([1, 2], [1, 2, 3]), "no pairs"),
    ],
)
def test_statistics_that_cannot_be_had(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --------------------------------------------------------------- what an arm may change


def with_dropout(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )


class ConvolutionalDropout(nn.Module):
    """Two layers of dropout, one on images, and a batch norm: no chain."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        # a bias has no gradient before a norm, and Adam makes steps of the rounding
        self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.drop1, self.drop2 = nn.Dropout(0.2), rg.Dropout(0.5)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.drop1(F.relu(self.norm(self.conv(x))))
        return self.head(self.drop2(x.flatten(1)))


ARMS = {
    "proximal": {"l1": 0.05, "l2": 0.1, "momentum": 0.9},
    "decay and L1": {"l1": 0.05, "weight_decay": 0.1},
    "AdamW": {"optimizer": "adamw", "weight_decay": 0.5},
    "average": {"ema": 0.8, "momentum": 0.9},
    "sharpness": {"sam": 0.1},
    "sharpness, clipped": {"sam": 0.1, "grad_transform": clip},
    "falling rate": {"schedule": lambda t: 1 - t / 15, "l1": 0.05},
}
NETWORKS = {
    "mlp": build,
    "cnn": lambda seed: SmallCNN(1, 3, width=4, seed=seed),
    "dropout": with_dropout,
    "dropout in a cnn": ConvolutionalDropout,
}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_arm_is_the_same_both_ways(arm, network):
    settings = dict(validation=(X, Y), test=(X[:33], Y[:33]), validate_every=6)
    stacked, loop = both_ways(NETWORKS[network], **settings, **ARMS[arm])
    assert_same(stacked, loop, rows=33, atol=1e-4)
    assert stacked.times == loop.times == [0, 6, 12, 15]
    for part in ("validation", "test"):
        ours, theirs = stacked.curves[part]["loss"], loop.curves[part]["loss"]
        assert ours.shape == (2, 3, 4)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        np.testing.assert_allclose(ours[..., -1], getattr(stacked, part)["loss"])
    assert stacked.weights.keys() == loop.weights.keys()
    for name, weight in stacked.weights.items():
        torch.testing.assert_close(weight, loop.weights[name], atol=1e-4, rtol=1e-3)
    outputs = stacked.predict(X)
    assert outputs.shape == (2, 3, 70, 3)
    torch.testing.assert_close(outputs, loop.predict(X), atol=1e-3, rtol=1e-3)
    accuracy = (outputs[:, :, :33].argmax(-1) == Y[:33]).double().mean(-1)
    np.testing.assert_allclose(accuracy.numpy(), stacked.test["accuracy"])


def test_the_proximal_steps_are_those_of_the_technique():
    settings = dict(steps=20, batch_size=16, seed=3)
    model = with_dropout(3).eval()
    model[3] = nn.Identity()
    optimizer = rg.ProximalSGD(model.parameters(), 0.1, momentum=0.9, l1=0.05, l2=0.1)
    fit(model, (X, Y), optimizer, cpu=True, **settings)
    trials = run_trials(
        with_dropout, (X, Y), seeds=[3], lr=0.1, steps=20, batch_size=16, momentum=0.9,
        l1=0.05, l2=0.1, dropout=0.0,
    )  # fmt: skip
    ours = trials.weights["1.weight"][0, 0]
    theirs = model[1].weight.detach()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert torch.equal(ours == 0, theirs == 0) and (ours == 0).any()


def test_the_steps_of_sharpness_and_the_average_are_those_of_the_techniques():
    model, averages = build(3), []

    def step(run, batch):
        loss = rg.sam_step(0.2)(run, batch)
        if not averages:
            averages.append(rg.ExponentialMovingAverage(run.model, 0.8))
        averages[0].update_parameters(run.model)
        return loss

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    history = fit(model, (X, Y), optimizer, steps=20, seed=3, step=step, cpu=True)
    trials = run_trials(build, (X, Y), seeds=[3], lr=0.1, steps=20, sam=0.2, ema=0.8)
    np.testing.assert_allclose(trials.train_loss[0, 0], history.loss, atol=1e-5)
    for name, weight in averages[0].module.named_parameters():
        torch.testing.assert_close(trials.weights[name][0, 0], weight.detach())


@pytest.mark.parametrize("make", [with_dropout, ConvolutionalDropout])
def test_the_seed_alone_decides_what_dropout_drops(make):
    settings = dict(lr=[0.1, 0.1], steps=5, dropout=0.5)
    runs = run_trials(make, (X, Y), seeds=[0, 1], **settings).train_loss
    torch.manual_seed(99)
    alone = run_trials(make, (X, Y), seeds=[1], stack=False, **settings).train_loss
    np.testing.assert_allclose(runs[0], runs[1], atol=1e-6)
    np.testing.assert_allclose(runs[:, 1:], alone, atol=1e-5)
    whole = run_trials(make, (X, Y), seeds=[1], **{**settings, "dropout": 0.0})
    assert abs(whole.train_loss - alone).max() > 0.01


def test_dropout_drops_the_share_and_keeps_the_mean():
    noise = DropoutNoise([0, 1], 1, 0.3)
    model = nn.Sequential(nn.Flatten(), nn.Dropout())
    ones = torch.ones(500, 1, 4, 4)
    with noise.installed(model):
        noise.draw(model, ones)
        with noise.handed_out([numbers[0] for numbers in noise.rest()]):
            dropped = model(ones)
    assert (dropped == 0).float().mean() == pytest.approx(0.3, abs=0.02)
    assert dropped.mean() == pytest.approx(1.0, abs=0.03)
    assert type(model[1]) is nn.Dropout and model[1].p == 0.5


def test_each_seed_may_have_rows_of_its_own():
    def rows(seed):
        order = torch.randperm(70, generator=torch.Generator().manual_seed(seed))[:40]
        return X[order], Y[order]

    stacked, loop = both_ways(build, rows, test=(X, Y))
    assert_same(stacked, loop)
    alone = run_trials(build, rows(3), seeds=[3], lr=0.01, steps=15, batch_size=16)
    np.testing.assert_allclose(
        stacked.train_loss[0, 1], alone.train_loss[0, 0], atol=1e-5
    )
    own = torch.stack([rows(seed)[0] for seed in (0, 3, 11)])
    outputs = stacked.predict(own, of_each_seed=True)
    torch.testing.assert_close(outputs[:, 1], stacked.predict(own[1])[:, 1])
    torch.testing.assert_close(outputs, loop.predict(own, True), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_each_seed_may_be_judged_by_rows_of_its_own(ema):
    def own(seed):
        order = torch.randperm(70, generator=torch.Generator().manual_seed(seed))[:30]
        return X[order], Y[order]

    stacked, loop = both_ways(
        build, (X, Y), test=(X, Y), probe=own, validate_every=5, ema=ema
    )
    for trials in (stacked, loop):
        assert trials.probe["accuracy"].shape == trials.test["accuracy"].shape
        last = trials.curves["probe"]["accuracy"][:, :, -1]
        np.testing.assert_allclose(last, trials.probe["accuracy"])
        for place, seed in enumerate(trials.seeds):
            alone = trials.accuracy_on(*own(seed))[:, place]
            np.testing.assert_allclose(alone, trials.probe["accuracy"][:, place])
        whole = trials.accuracy_on(X, Y)
        np.testing.assert_allclose(whole, trials.test["accuracy"])
    np.testing.assert_allclose(stacked.probe["loss"], loop.probe["loss"], atol=1e-4)
    early = stacked.after(5)
    np.testing.assert_array_equal(
        early.probe["accuracy"], stacked.curves["probe"]["accuracy"][:, :, 1]
    )
    with pytest.raises(ValueError, match="as many"):
        run_trials(
            build,
            lambda seed: (X[: 9 + seed], Y[: 9 + seed]),
            seeds=[0, 1],
            lr=1,
            steps=1,
        )


# ------------------------------------------------------------------ the choice of a way


def test_the_two_ways_draw_the_same_weights_from_the_global_random_state():
    def unseeded(seed):
        return sequential()

    runs = []
    for stack in (True, False):
        torch.manual_seed(5)
        settings = dict(seeds=[0, 1], lr=0.1, steps=15, batch_size=16, test=(X, Y))
        runs.append(run_trials(unseeded, (X, Y), stack=stack, **settings))
    assert_same(*runs)


def test_a_looped_run_puts_the_callers_models_back():
    models = [build(seed) for seed in range(2)]
    runs = [
        run_trials(
            lambda seed: models[seed],
            (X, Y),
            seeds=[0, 1],
            lr=[0.1, 0.3],
            steps=9,
            stack=s,
        )
        for s in (True, False)
    ]
    np.testing.assert_allclose(runs[0].train_loss, runs[1].train_loss, atol=2e-5)
    assert torch.equal(models[0].head.weight, build(0).head.weight)


# ---------------------------------------------------------------------- arms and rates


def test_arms_are_tuned_on_validation_and_compared_on_test():
    common = dict(seeds=[0, 1, 2], lr=[0.01, 0.1, 3.0], steps=20, batch_size=16)
    common |= dict(validation=(X[:30], Y[:30]), test=(X[30:], Y[30:]))
    arms = {
        "none": {},
        "L2": [{"l2": 0.01}, {"l2": 1.0}],
        "dropout": {"build": with_dropout, "dropout": 0.5, "lr": [0.1, 0.3]},
    }
    done = run_arms(arms, build, (X, Y), **common)
    best = done.best("L2", "loss")
    own = [run_trials(build, (X, Y), l2=strength, **common) for strength in (0.01, 1.0)]
    lowest = [t.validation["loss"].mean(1).min() for t in own]
    assert best.setting == int(np.argmin(lowest))
    at = best.rate.index
    expected = own[best.setting].test["loss"][at]
    np.testing.assert_allclose(best.test["loss"], expected)
    found = done.difference("L2", "none", "loss")
    plain = done.best("none", "loss").test["loss"]
    assert found.mean == pytest.approx((expected - plain).mean()) and found.n == 3
    assert done.result("L2", "loss").mean == pytest.approx(expected.mean())
    # of two rates each lies at an edge
    with pytest.raises(ValueError, match="edge of its grid for .*dropout"):
        done.check_rates("loss")


def with_validation(values):
    values = np.array(values, dtype=float)[:, None].repeat(2, 1)
    lrs = [0.01, 0.1, 1.0][: len(values)]
    return Trials(lrs, [0, 1], np.zeros((len(lrs), 2, 1)), {"accuracy": values})


def test_a_best_rate_at_the_edge_of_its_grid_shows():
    best = best_of_rates(
        {
            "low": with_validation([0.9, 0.5, 0.1]),
            "inside": with_validation([0.5, 0.9, 0.1]),
            "high": with_validation([0.5, 0.6, 0.9]),
            "only one": with_validation([0.5]),
        }
    )
    assert {name: rate.at_edge for name, rate in best.items()} == {
        "low": True, "inside": False, "high": True, "only one": True,
    }  # fmt: skip
    assert best["inside"].inside("inside").lr == 0.1
    with pytest.raises(ValueError, match="high: the best rate, 1, lies at the edge"):
        best["high"].inside("high")


def test_a_run_stopped_early_is_the_one_with_the_lowest_validation_loss():
    settings = dict(seeds=[0, 1], lr=[0.1, 3.0], steps=20, validation=(X[:30], Y[:30]))
    runs = run_trials(build, (X, Y), test=(X, Y), validate_every=4, **settings)
    early = runs.stopped_early()
    seen = runs.curves["validation"]["loss"]
    np.testing.assert_array_equal(early.validation["loss"], np.nanmin(seen, axis=2))
    at = int(np.nanargmin(seen[1, 0]))
    assert early.test["loss"][1, 0] == runs.curves["test"]["loss"][1, 0, at]
    with pytest.raises(ValueError, match="hold no models"):
        early.predict(X)
    with pytest.raises(ValueError, match="no curves"):
        run_trials(build, (X, Y), **settings).stopped_early()


def test_arms_at_one_rate_and_stopped_early_hold_the_runs_they_are_from():
    common = dict(seeds=[0, 1], lr=[0.1, 0.3, 3.0], steps=20, validate_every=4)
    common |= {"validation": (X[:30], Y[:30]), "test": (X, Y)}
    arms = run_arms({"none": {}, "L2": {"l2": 0.1}}, build, (X, Y), **common)
    at, early = arms.at(0.3), arms.stopped_early("accuracy")
    for name, (runs,) in arms.trials.items():
        (one,), (stopped,) = at.trials[name], early.trials[name]
        alone = run_arms(
            {name: arms.settings[name]}, build, (X, Y), **common | {"lr": 0.3}
        )
        for key, values in runs.test.items():
            np.testing.assert_array_equal(one.test[key], values[[1]])
            np.testing.assert_allclose(one.test[key], alone.trials[name][0].test[key])
        assert one.lrs == [0.3] and one.train_loss.shape == (1, 2, 20)
        expected = runs.stopped_early("accuracy").test["accuracy"]
        np.testing.assert_array_equal(stopped.test["accuracy"], expected)
    gain = paired(*[at.trials[name][0].test["accuracy"][0] for name in ("L2", "none")])
    assert at.difference("L2", "none") == gain
    with pytest.raises(ValueError, match="no runs at the rate 0.2, only at"):
        arms.at(0.2)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"optimizer": "adam", "l1": 0.1}, "use weight_decay="),
        ({"optimizer": "adamw", "l2": 0.1}, "use weight_decay="),
        ({"dropout": 0.5}, "it has none"),
        ({"dropout": 50}, "from 0 to 1"),
        ({"ema": 1.5}, "from 0 to 1"),
        ({"l2": -1.0}, "at least 0"),
        ({"validate_every": 5}, "needs validation="),
        ({"validate_every": 0, "test": (X, Y)}, "at least 1"),
    ],
)
@pytest.mark.parametrize("stack", [True, False])
def test_settings_of_arms_that_cannot_work(settings, message, stack):
    with pytest.raises(ValueError, match=message):
        run_trials(
            build,
            (X, Y),
            **{"seeds": [0], "lr": 0.1, "steps": 1, "stack": stack, **settings},
        )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: run_arms({}, build, (X, Y)), "no arms"),
        (lambda: run_arms({"none": []}, build, (X, Y)), "no settings"),
        (lambda: Arms({}, {}).best("L2"), "no arm 'L2'"),
    ],
)
def test_arms_that_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_stack_builds_the_model_of_a_seed_once_for_all_rates():
    built = []

    def counted(seed):
        built.append(seed)
        torch.manual_seed(seed)
        return sequential()

    run_trials(counted, (X, Y), seeds=[3, 4], lr=[0.1, 0.2, 0.3], steps=2, stack=True)
    state = torch.get_rng_state()
    assert built == [3, 4, 3]  # the last tells whether the seed alone decides
    counted(4)  # the random state is that after the last seed, as in a loop
    assert torch.equal(state, torch.get_rng_state())


def test_a_model_without_a_seed_is_another_for_each_rate():
    settings = dict(seeds=[0, 1], lr=[0.1, 0.2], steps=3, batch_size=16)
    losses = []
    for stack in (True, False):
        torch.manual_seed(5)
        trials = run_trials(lambda seed: sequential(), (X, Y), stack=stack, **settings)
        losses.append(trials.train_loss)
    np.testing.assert_allclose(*losses, atol=2e-5)
