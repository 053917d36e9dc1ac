"""Regularization: equal to torch and scikit-learn, edge cases, invariants, and the
exercises.
"""

import copy
import itertools
import math
import warnings
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.linear_model import ElasticNet
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from dlcourse import regularization as rg
from dlcourse.exercises.regularization import EXERCISES
from dlcourse.lab.launching import launch
from dlcourse.lab.models import MLP
from dlcourse.lab.training import fit, train_step, use_one_thread

use_one_thread()
DTYPES = [torch.float32, torch.float64]
CHAPTERS = Path(__file__).resolve().parent.parent / "chapters"


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_tensors(seed, dtype=torch.float32):
    """Return tensors of random shapes: scalars, empty and non-contiguous ones among them."""
    g, found = generator(seed), []
    for _ in range(4):
        ndim = int(torch.randint(0, 4, (), generator=g))
        shape = torch.randint(0, 5, (ndim,), generator=g).tolist()
        value = torch.randn(shape, generator=g, dtype=dtype) * 10.0 ** (seed % 5 - 2)
        found.append(value.transpose(0, 1) if ndim > 1 else value)
    return found


# --- penalties ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(10))
def test_penalties_are_sums_over_all_weights(seed, dtype):
    weights = random_tensors(seed, dtype)
    flat = torch.cat([w.ravel() for w in weights]).double()
    l1, l2 = flat.abs().sum(), flat.square().sum() / 2
    assert torch.allclose(rg.l1_penalty(weights).double(), l1, rtol=1e-5)
    assert torch.allclose(rg.l2_penalty(iter(weights)).double(), l2, rtol=1e-5)
    for alpha, ratio in ((0.3, 0.2), (2.0, 1.0), (1.0, 0.0), (0.0, 0.5)):
        expected = alpha * (ratio * l1 + (1 - ratio) * l2)
        got = rg.elastic_net_penalty((w for w in weights), alpha, ratio)
        assert torch.allclose(got.double(), expected, rtol=1e-5)
    scaled = [-3 * w for w in weights]
    assert torch.allclose(rg.l1_penalty(scaled), 3 * rg.l1_penalty(weights), rtol=1e-5)
    assert torch.allclose(rg.l2_penalty(scaled), 9 * rg.l2_penalty(weights), rtol=1e-5)


def test_penalties_of_nothing_of_one_tensor_and_of_bad_values():
    for penalty in (rg.l1_penalty, rg.l2_penalty, rg.elastic_net_penalty):
        assert penalty([]) == 0 and penalty([]).shape == ()
        assert penalty(torch.tensor(-2.0)) == penalty([torch.tensor(-2.0)])
        assert penalty(torch.tensor([1.0, math.nan])).isnan()
        assert penalty(torch.tensor([1.0, -math.inf])) == math.inf


def test_gradients_of_the_penalties():
    w = torch.tensor([2.0, -0.5, 0.0], requires_grad=True)
    assert torch.equal(
        torch.autograd.grad(rg.l1_penalty(w), w)[0], torch.tensor([1.0, -1.0, 0.0])
    )
    assert torch.equal(torch.autograd.grad(rg.l2_penalty(w), w)[0], w.detach())


@pytest.mark.parametrize(
    "settings", [{"alpha": -1}, {"l1_ratio": 1.1}, {"alpha": math.nan}]
)
def test_elastic_net_penalty_refuses(settings):
    with pytest.raises(ValueError, match="give"):
        rg.elastic_net_penalty([torch.ones(2)], **settings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(10))
def test_soft_threshold_equals_torch(seed, dtype):
    threshold = torch.rand((), generator=generator(seed)).item()
    for x in random_tensors(seed, dtype):
        ours = rg.soft_threshold(x, threshold)
        assert torch.equal(ours, F.softshrink(x, threshold))
        assert (ours.abs() <= x.abs()).all() and (ours * x >= 0).all()
        assert (ours[x.abs() <= threshold] == 0).all()
        assert torch.equal(
            rg.soft_threshold(x, torch.tensor(threshold, dtype=dtype)), ours
        )
    assert torch.equal(rg.soft_threshold(x, 0.0), x)


def test_soft_threshold_minimises_what_it_says():
    grid = np.linspace(-4, 4, 80_001)
    for x, t in itertools.product((-2.3, -0.4, 0.0, 0.7, 3.1), (0.0, 0.5, 1.7)):
        best = grid[((grid - x) ** 2 / 2 + t * np.abs(grid)).argmin()]
        assert rg.soft_threshold(torch.tensor(x), t).item() == pytest.approx(
            best, abs=2e-4
        )


def test_soft_threshold_at_the_edges():
    x = torch.tensor([math.inf, -math.inf, math.nan, 1e-40, -0.0])
    got = rg.soft_threshold(x, 0.1)
    assert got[0] == math.inf and got[1] == -math.inf and got[2].isnan()
    assert (got[3:] == 0).all()
    each = rg.soft_threshold(torch.ones(2, 3), torch.tensor([[0.5], [2.0]]))
    assert torch.equal(each, torch.tensor([[0.5] * 3, [0.0] * 3]))
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="at least 0"):
            rg.soft_threshold(x, bad)


# --- optimizers -----------------------------------------------------------------------------------


def trained(optimizer, seed, dtype=torch.float32, steps=20, **settings):
    """Return the weights after updates with random gradients, some missing, some zero or
    huge.
    """
    weights = [nn.Parameter(w.clone()) for w in random_tensors(seed, dtype)]
    optimizer, g = optimizer(weights, **settings), generator(seed + 1)
    for _ in range(steps):
        for number, w in enumerate(weights):
            size = 10.0 ** float(torch.randint(-4, 4, (), generator=g))
            grad = torch.randn(w.shape, generator=g, dtype=dtype) * size
            w.grad = None if number == seed % 7 else grad * (number != 1)
        optimizer.step()
    return weights


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("seed", range(8))
def test_proximal_sgd_without_strengths_is_torch_to_the_bit(seed, momentum):
    settings = {"lr": 0.03, "momentum": momentum}
    for dtype in DTYPES:
        ours = trained(rg.ProximalSGD, seed, dtype, **settings)
        assert equal(
            ours, trained(torch.optim.SGD, seed, dtype, foreach=False, **settings)
        )


@pytest.mark.parametrize("seed", range(8))
def test_adamw_equals_torch_to_the_bit(seed):
    draw = np.random.default_rng(seed)
    settings = {
        "lr": float(draw.uniform(1e-4, 1)),
        "betas": (float(draw.uniform(0, 0.99)), float(draw.uniform(0, 0.999))),
        "eps": 10.0 ** float(draw.integers(-12, -3)),
        "weight_decay": float(draw.choice([0, 0.01, 1.0])),
        "amsgrad": bool(seed % 2),
        "maximize": seed % 4 > 1,
    }
    for dtype in DTYPES:
        ours = trained(rg.AdamW, seed, dtype, **settings)
        assert equal(
            ours, trained(torch.optim.AdamW, seed, dtype, foreach=False, **settings)
        )
    assert equal(trained(rg.AdamW, seed), trained(torch.optim.AdamW, seed))


def test_adamw_shares_its_state_with_torch():
    halves = []
    for first, second in ((rg.AdamW, torch.optim.AdamW), (torch.optim.AdamW, rg.AdamW)):
        w = nn.Parameter(torch.ones(5))
        optimizer, g = first([w], lr=0.1), generator(0)
        for kind in (None, second):
            if kind is not None:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = kind([w], lr=0.1)
                optimizer.load_state_dict(state)
            for _ in range(5):
                w.grad = torch.randn(5, generator=g)
                optimizer.step()
        halves.append(w.detach())
    assert torch.equal(*halves)


def test_without_a_gradient_adamw_decays_geometrically_and_l2_in_adam_does_not():
    ends = {}
    for kind in (rg.AdamW, torch.optim.Adam):
        w = nn.Parameter(torch.tensor([1.0, -3.0], dtype=torch.float64))
        optimizer = kind([w], lr=0.01, weight_decay=0.1)
        for _ in range(100):
            w.grad = torch.zeros_like(w)
            optimizer.step()
        ends[kind] = w.detach()
    assert torch.allclose(ends[rg.AdamW], 0.999**100 * torch.tensor([1.0, -3.0]).double())
    # about the rate at each step, whatever the weight
    assert ends[torch.optim.Adam][0] < 0.3


@pytest.mark.parametrize("ratio", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_proximal_sgd_ends_where_scikit_learn_does(seed, ratio):
    draw = np.random.default_rng(seed)
    # more rows than features, and fewer
    rows, features = (60, 10) if seed % 2 else (15, 30)
    x = draw.standard_normal((rows, features)) * draw.uniform(0.5, 1.5, features)
    y = x[:, 0] - 2 * x[:, 1] + draw.standard_normal(rows)
    alpha = float(draw.choice([0.1, 0.5]))
    theirs = ElasticNet(
        alpha=alpha, l1_ratio=ratio, fit_intercept=False, tol=1e-12, max_iter=100_000
    )
    theirs.fit(x, y)
    w, x, y = (
        nn.Parameter(torch.zeros(features).double()),
        torch.tensor(x),
        torch.tensor(y),
    )
    rate = 1 / torch.linalg.eigvalsh(x.T @ x / rows)[-1].item()
    settings = {"l1": alpha * ratio, "l2": alpha * (1 - ratio)}
    optimizer = rg.ProximalSGD([w], lr=rate, **settings)
    for _ in range(3000):
        w.grad = x.T @ (x @ w.detach() - y) / rows
        optimizer.step()
    expected = torch.tensor(theirs.coef_)
    assert (w - expected).abs().max() < 1e-6
    assert torch.equal(w == 0, expected == 0)
    objective = (x @ w - y).square().mean() / 2 + rg.elastic_net_penalty(w, alpha, ratio)
    moved = w + 0.01 * torch.randn(
        features, generator=generator(seed), dtype=torch.float64
    )
    assert objective < (x @ moved - y).square().mean() / 2 + rg.elastic_net_penalty(
        moved, alpha, ratio
    )


def test_strengths_of_proximal_sgd_go_by_group():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = rg.ProximalSGD(
        [{"params": a, "l1": 1.0}, {"params": b, "l2": 1.0}], lr=0.1
    )
    a.grad, b.grad = torch.zeros(2), torch.zeros(2)
    optimizer.step()
    assert torch.allclose(a, torch.tensor(0.9)) and torch.allclose(
        b, torch.tensor(1 / 1.1)
    )


@pytest.mark.parametrize("kind", [rg.ProximalSGD, rg.AdamW])
def test_optimizers_take_a_closure_and_skip_missing_gradients(kind):
    w, idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = kind([w, idle], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2 and (w < 1).all() and (idle == 1).all()
    assert optimizer.step() is None


@pytest.mark.parametrize(
    "kind, settings",
    [
        (rg.ProximalSGD, {"lr": 0}),
        (rg.ProximalSGD, {"lr": 0.1, "l1": -1}),
        (rg.ProximalSGD, {"lr": 0.1, "l2": math.nan}),
        (rg.ProximalSGD, {"lr": 0.1, "momentum": -0.9}),
        (rg.AdamW, {"lr": -1.0}),
        (rg.AdamW, {"weight_decay": -0.1}),
        (rg.AdamW, {"betas": (0.9, 1.0)}),
        (rg.AdamW, {"eps": -1e-8}),
    ],
)
def test_optimizers_refuse(kind, settings):
    with pytest.raises(ValueError, match="give"):
        kind([nn.Parameter(torch.ones(2))], **settings)


# --- groups ---------------------------------------------------------------------------------------


class Tied(nn.Module):
    """A model with shared weights, several norms, and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight
        self.norms = nn.ModuleList(
            [nn.LayerNorm((3, 4)), nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.RMSNorm(4)]
        )
        self.position = nn.Parameter(torch.zeros(3, 4))
        self.scale = nn.Parameter(torch.ones(()))


def test_each_parameter_is_in_exactly_one_group():
    model = Tied()
    decayed, spared = rg.param_groups(model, 0.1)
    together = [id(w) for group in (decayed, spared) for w in group["params"]]
    assert sorted(together) == sorted(id(w) for w in model.parameters())
    assert {id(w) for w in decayed["params"]} == {
        id(model.embed.weight),
        id(model.position),
    }
    assert decayed["weight_decay"] == 0.1 and spared["weight_decay"] == 0
    (first, second) = rg.param_groups(model, 0.1, skip="position")
    assert [id(w) for w in first["params"]] == [id(model.embed.weight)]
    assert id(model.position) in {id(w) for w in second["params"]}
    # a tied tensor goes by any of its names
    (_, third) = rg.param_groups(model, 0.1, skip="head")
    assert id(model.embed.weight) in {id(w) for w in third["params"]}
    assert len(rg.param_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1
    assert rg.param_groups(nn.ReLU(), 0.1) == []


def test_groups_refuse():
    with pytest.raises(ValueError, match="is in no name"):
        rg.param_groups(MLP(4, 2, width=3), 0.1, skip=["embedding"])
    with pytest.raises(ValueError, match="at least 0"):
        rg.param_groups(MLP(4, 2, width=3), -0.1)


def test_spared_parameters_do_not_move_without_a_gradient():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    before = copy.deepcopy(model.state_dict())
    optimizer = rg.AdamW(rg.param_groups(model, 0.5), lr=0.1)
    for w in model.parameters():
        w.grad = torch.zeros_like(w)
    optimizer.step()
    for name, w in model.named_parameters():
        assert torch.equal(w, before[name] * (0.95 if name == "0.weight" else 1))


# --- dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_dropout_equals_torch_to_the_bit(p):
    for seed, dtype in itertools.product(range(5), DTYPES):
        for x in random_tensors(seed, dtype):
            outputs, grads = [], []
            for module in (rg.Dropout(p), nn.Dropout(p)):
                torch.manual_seed(seed)
                leaf = x.clone().requires_grad_()
                outputs.append(module(leaf))
                grads.append(torch.autograd.grad(outputs[-1].sum(), leaf)[0])
            assert torch.equal(*outputs) and torch.equal(*grads)


def test_dropout_is_the_identity_in_eval_mode_and_right_on_average():
    x, module = torch.randn(10, 10), rg.Dropout(0.3)
    assert module.eval()(x) is x and "p=0.3" in repr(module)
    torch.manual_seed(0)
    got = module.train()(torch.ones(100_000))
    assert got.mean().item() == pytest.approx(1, abs=0.01)
    assert (got == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert torch.allclose(got[got != 0], torch.tensor(1 / 0.7))


def test_dropout_draws_anew_for_each_replica():
    torch.manual_seed(0)
    got = torch.vmap(rg.Dropout(0.5), randomness="different")(torch.ones(2, 1000))
    assert 0.4 < (got[0] == got[1]).float().mean() < 0.6


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_dropout_refuses(p):
    with pytest.raises(ValueError, match="from 0 to 1"):
        rg.Dropout(p)


# --- cross entropy --------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_equals_torch(dtype, smoothing, reduction):
    settings = {"label_smoothing": smoothing, "reduction": reduction}
    for seed in range(10):
        g = generator(seed)
        z = torch.randn(6, 4, generator=g, dtype=dtype) * 10.0 ** (seed % 6 - 1)
        y = torch.randint(0, 4, (6,), generator=g)
        y[: seed % 3] = -100
        results = []
        for loss_fn in (rg.cross_entropy, F.cross_entropy):
            leaf = z.T.contiguous().T.clone().requires_grad_()
            loss = loss_fn(leaf, y, **settings)
            results.append((loss, torch.autograd.grad(loss.sum(), leaf)[0]))
        tolerance = {"rtol": 1e-5 if dtype == torch.float32 else 1e-12, "atol": 1e-6}
        for ours, theirs in zip(*results, strict=True):
            assert torch.allclose(ours, theirs, **tolerance)


def test_cross_entropy_at_the_edges():
    z, y = torch.tensor([[0.0, -math.inf], [1e4, -1e4]]), torch.tensor([0, 0])
    assert rg.cross_entropy(z, y) == 0 == F.cross_entropy(z, y)
    assert (
        rg.cross_entropy(z, y, 0.1)
        == math.inf
        == F.cross_entropy(z, y, label_smoothing=0.1)
    )
    nothing = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    assert (
        rg.cross_entropy(*nothing).isnan()
        and rg.cross_entropy(*nothing, reduction="sum") == 0
    )
    ignored = torch.tensor([7, 7])
    assert rg.cross_entropy(z, ignored, ignore_index=7).isnan()
    assert rg.cross_entropy(torch.full((1, 2), math.nan), torch.tensor([0])).isnan()


def test_the_smallest_smoothed_loss_is_the_entropy_of_the_target():
    share, classes = 0.3, 5
    target = torch.full((classes,), share / classes).double()
    target[2] += 1 - share
    entropy = -(target * target.log()).sum()
    y = torch.tensor([2])
    assert torch.allclose(rg.cross_entropy(target.log()[None], y, share), entropy)
    for seed in range(20):
        z = target.log() + 0.1 * torch.randn(classes, generator=generator(seed)).double()
        assert rg.cross_entropy(z[None], y, share) >= entropy


def test_cross_entropy_works_for_stacked_replicas():
    z, y = torch.randn(3, 6, 4), torch.randint(0, 4, (3, 6))
    stacked = torch.vmap(lambda z, y: rg.cross_entropy(z, y, 0.1))(z, y)
    one_by_one = torch.stack(
        [rg.cross_entropy(a, b, 0.1) for a, b in zip(z, y, strict=True)]
    )
    assert torch.allclose(stacked, one_by_one)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 1.5),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), -0.1),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(2, 3), torch.zeros(2, 3)),
        (torch.zeros(3), torch.tensor(0)),
        (torch.zeros(2, 3), torch.zeros(2)),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 0.1, -100, "max"),
    ],
)
def test_cross_entropy_refuses(arguments):
    with pytest.raises(ValueError, match="give|choose"):
        rg.cross_entropy(*arguments)


# --- early stopping -------------------------------------------------------------------------------


def stopped(values, patience, min_delta=0.0):
    """Return (the round at which to stop or None, the best round), from 1, the slow way."""
    best, at = math.inf, 0
    for number, value in enumerate(values, 1):
        if best - value > min_delta:
            best, at = value, number
        if number - at >= patience:
            return number, at
    return None, at


@pytest.mark.parametrize("seed", range(30))
def test_early_stopping_stops_and_restores(seed):
    draw = np.random.default_rng(seed)
    values = draw.standard_normal(20).cumsum() if seed % 2 else draw.standard_normal(20)
    values[draw.integers(0, 20)] = math.nan
    patience, min_delta = int(draw.integers(1, 6)), float(draw.choice([0, 0.5]))
    expected, best = stopped(values, patience, min_delta)
    for mode, sign in (("min", 1), ("max", -1)):
        stopper, model, end = (
            rg.EarlyStopping(patience, min_delta, mode),
            nn.BatchNorm1d(1),
            None,
        )
        for number, value in enumerate(values, 1):
            model.running_mean.fill_(number)
            nn.init.constant_(model.weight, -number)
            if stopper(torch.tensor(sign * value), model):
                end = number
                break
        assert end == expected and stopper.best_round == best
        if best:
            assert stopper.best == pytest.approx(sign * values[best - 1], rel=1e-5)
            stopper.restore(model)
            assert model.running_mean == best and model.weight == -best


def test_early_stopping_keeps_a_copy():
    model, stopper = nn.Linear(1, 1), rg.EarlyStopping(3)
    nn.init.ones_(model.weight)
    stopper(1.0, model)
    nn.init.zeros_(model.weight)
    stopper(2.0, model)
    stopper.restore(model)
    nn.init.zeros_(model.weight)
    stopper.restore(model)
    assert model.weight == 1 and not stopper(3.0, model) and stopper(3.0, model)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("seed", range(10))
def test_early_stopping_resumes_where_the_whole_run_would_be(tmp_path, seed, mode):
    draw = np.random.default_rng(seed)
    values, cut = draw.standard_normal(25).cumsum(), int(draw.integers(0, 10))
    ends = []
    for resume in (False, True):
        stopper, model, end = (
            rg.EarlyStopping(np.int64(4), 0.1, mode),
            nn.BatchNorm1d(1),
            None,
        )
        for number, value in enumerate(values, 1):
            if resume and number == cut + 1:
                torch.save(stopper.state_dict(), tmp_path / "state.pt")
                stopper = rg.EarlyStopping(4, 0.1, mode)
                stopper.load_state_dict(torch.load(tmp_path / "state.pt"))
            model.running_mean.fill_(number)
            nn.init.constant_(model.weight, -number)
            if stopper(value, model):
                end = number
                break
        stopper.restore(model)
        ends.append(
            (end, stopper.best, stopper.rounds, stopper.best_round, model.weight.item())
        )
        assert model.running_mean == stopper.best_round == -model.weight
    assert ends[0] == ends[1]


def test_a_state_is_not_changed_by_the_rounds_after_it():
    model, stopper = nn.Linear(1, 1), rg.EarlyStopping(3)
    assert stopper.state_dict() == {
        "best": math.inf, "rounds": 0, "best_round": 0, "weights": None
    }  # fmt: skip
    nn.init.ones_(model.weight)
    stopper(1.0, model)
    state = stopper.state_dict()
    nn.init.zeros_(model.weight)
    stopper(0.5, model)
    assert state["best"] == state["rounds"] == 1 and state["weights"]["weight"] == 1
    stopper.load_state_dict(state)
    stopper.restore(model)
    assert model.weight == 1 and stopper.best == 1


def test_early_stopping_refuses():
    for settings in ({"patience": 0}, {"patience": 2.5}, {"patience": True}):
        with pytest.raises(ValueError, match="at least 1"):
            rg.EarlyStopping(**settings)
    with pytest.raises(ValueError, match="choose"):
        rg.EarlyStopping(1, mode="lower")
    with pytest.raises(ValueError, match="at least 0"):
        rg.EarlyStopping(1, min_delta=-1)
    stopper = rg.EarlyStopping(1)
    assert stopper(math.nan, nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match="nothing to restore"):
        stopper.restore(nn.Linear(1, 1))


def stop_on_two():
    import torch
    from accelerate import Accelerator

    from dlcourse.regularization import EarlyStopping

    accelerator = Accelerator(cpu=True)
    rank, model = accelerator.process_index, torch.nn.Linear(1, 1)
    own, shared, ends = (
        EarlyStopping(2),
        EarlyStopping(2, accelerator=accelerator),
        [0, 0],
    )
    curves = [[3.0, 2.0, 2.5, 2.6, 2.7, 2.8], [3.0, 2.9, 2.0, 1.0, 1.5, 1.6]]
    for number, value in enumerate(curves[rank], 1):
        for i, stopper in enumerate((own, shared)):
            if stopper(value, model) and not ends[i]:
                ends[i] = number
    return accelerator.num_processes, ends, shared.best


@pytest.mark.parametrize("kind", ["cpu", "meta"])
def test_early_stopping_notes_the_mean_over_processes(kind):
    """The value goes to its own device first, as `accelerator.reduce` wants it."""

    class Two:
        device = torch.device(kind)

        def reduce(self, value, reduction):
            assert reduction == "mean" and value.dtype == torch.float32
            assert value.device == self.device and value.shape == ()
            assert kind == "meta" or value == 9.0
            return torch.tensor(means.pop(0))

    means = [3.0, 2.0, 2.5, 2.5]
    stopper, model = rg.EarlyStopping(2, accelerator=Two()), nn.Linear(1, 1)
    assert [stopper(9.0, model) for _ in range(4)] == [False, False, False, True]
    assert (stopper.best, stopper.best_round) == (2.0, 2)


def test_two_processes_stop_together():
    (count, first, best), (_, second, other) = launch(stop_on_two)
    assert count == 2 and (first[0], second[0]) == (4, 6)
    assert first[1] == second[1] == 6 and best == other == pytest.approx(1.8)


# --- an average of the weights --------------------------------------------------------------------


class Odd(nn.Module):
    """Tied, scalar, empty, frozen and non-contiguous weights; buffers of three kinds."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.scale, self.none = (
            nn.Parameter(torch.tensor(1.0)),
            nn.Parameter(torch.zeros(0, 2)),
        )
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)
        self.turned = nn.Parameter(torch.randn(2, 4).T)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, x):
        return self.scale * self.second(self.norm(self.first(x)))


def shake(model, g):
    """Give every weight and buffer of `model` new values, some of them huge or tiny."""
    for tensor in (*model.parameters(), *model.buffers()):
        size = 10.0 ** int(torch.randint(-3, 4, (), generator=g))
        value = torch.randn(tensor.shape, generator=g) * size
        tensor.data.copy_(value.abs() if tensor.dtype == torch.long else value)


def same_state(left, right):
    left, right = left.state_dict(), right.state_dict()
    assert list(left) == list(right)
    return all(torch.equal(left[name], right[name]) for name in left)


def assert_stay_equal(ours, theirs, model, g, updates):
    """Let both averages follow a model that is shaken, and compare them after each
    update.
    """
    for _ in range(updates):
        shake(model, g)
        ours.update_parameters(model)
        theirs.update_parameters(model)
        assert same_state(ours, theirs)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.9, 0.999, 1.0])
def test_average_equals_torch_to_the_bit(decay, dtype):
    for seed in range(5):
        g, model = generator(seed), Odd().to(dtype)
        ours = rg.ExponentialMovingAverage(model, decay)
        theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        assert_stay_equal(ours, theirs, model, g, updates=12)


def test_average_of_buffers_equals_torch_but_for_integers():
    g, model = generator(0), nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    ours = rg.ExponentialMovingAverage(model, 0.7, use_buffers=True)
    multi = get_ema_multi_avg_fn(0.7)
    theirs = AveragedModel(model, multi_avg_fn=multi, use_buffers=True)
    for number in range(1, 11):
        shake(model, g)
        model[1].num_batches_tracked.fill_(number)
        ours.update_parameters(model)
        theirs.update_parameters(model)
        for name, value in theirs.module.state_dict().items():
            if value.is_floating_point():
                assert torch.equal(ours.module.state_dict()[name], value)
        # torch cuts averages of integers
        assert ours.module[1].num_batches_tracked == number


def test_average_of_complex_weights():
    model = nn.ParameterList([torch.zeros(3, dtype=torch.complex64)])
    average = rg.ExponentialMovingAverage(model, 0.75)
    for value in (0, 4 + 8j):
        model[0].data.fill_(value)
        average.update_parameters(model)
    assert torch.allclose(average.module[0].detach(), torch.tensor(1 + 2j))


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_warmup_equals_torch_with_that_decay(decay):
    def average(mean, now, t):
        return mean.lerp(now, 1 - min(decay, (1 + t.item()) / (10 + t.item())))

    g, model = generator(1), Odd()
    ours = rg.ExponentialMovingAverage(model, decay, warmup=True)
    theirs = AveragedModel(model, avg_fn=average)
    assert_stay_equal(ours, theirs, model, g, updates=30)


def test_average_is_the_weighted_mean_that_it_should_be():
    model, values = (
        nn.Linear(1, 1, bias=False).double(),
        torch.randn(40, generator=generator(2)),
    )
    average = rg.ExponentialMovingAverage(model, 0.9)
    for value in values.double():
        model.weight.data.fill_(value)
        average.update_parameters(model)
    shares = 0.1 * 0.9 ** torch.arange(39, -1, -1, dtype=torch.float64)
    shares[0] = 0.9**39
    assert shares.sum() == pytest.approx(1)
    got = average.module.weight.item()
    assert got == pytest.approx((shares * values).sum().item(), abs=1e-12)
    assert values.min() <= got <= values.max()


@pytest.mark.parametrize("warmup", [False, True])
def test_average_keeps_what_stands_still_and_at_the_ends_of_decay(warmup):
    model, g = Odd(), generator(3)
    shake(model, g)
    still = rg.ExponentialMovingAverage(model, 0.99, warmup)
    first = copy.deepcopy(model)
    last = rg.ExponentialMovingAverage(model, 0.0, warmup)
    frozen = rg.ExponentialMovingAverage(model, 1.0)
    for _ in range(5):
        still.update_parameters(model)
    assert same_state(still.module, first)
    for average in (last, frozen):
        average.update_parameters(model)
    shake(model, g)
    last.update_parameters(model)
    frozen.update_parameters(model)
    assert same_state(last.module, model)
    frozen_weights, first_weights = frozen.module.parameters(), first.parameters()
    assert all(
        torch.equal(a, b) for a, b in zip(frozen_weights, first_weights, strict=True)
    )
    assert torch.equal(frozen.module.norm.running_mean, model.norm.running_mean)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_average_resumes_to_the_bit_and_leaves_the_model_alone(tmp_path, use_buffers):
    g, model = generator(4), Odd()
    settings = {"decay": 0.95, "warmup": True, "use_buffers": use_buffers}
    whole = rg.ExponentialMovingAverage(model, **settings)
    for number in range(20):
        shake(model, g)
        before = copy.deepcopy(model)
        whole.update_parameters(model)
        assert same_state(model, before)
        if number == 9:
            torch.save(whole.state_dict(), tmp_path / "half.pt")
            resumed = rg.ExponentialMovingAverage(Odd(), **settings)
            resumed.load_state_dict(torch.load(tmp_path / "half.pt", weights_only=True))
        elif number > 9:
            resumed.update_parameters(model)
    assert same_state(whole, resumed) and whole.n_averaged == 20


def test_average_in_float32_of_bfloat16_weights_moves_where_bfloat16_does_not():
    model = nn.Linear(2, 2).bfloat16()
    for weight in model.parameters():
        nn.init.ones_(weight)
    low, high = (
        rg.ExponentialMovingAverage(model, 0.999),
        rg.ExponentialMovingAverage(model, 0.999),
    )
    high.module.float()
    for number in range(1000):
        low.update_parameters(model)
        high.update_parameters(model)
        if not number:
            for weight in model.parameters():
                nn.init.constant_(weight, 1.25)
    assert (low.module.weight == 1).all()
    assert torch.allclose(
        high.module.weight, torch.tensor(1.25 - 0.25 * 0.999**999), rtol=1e-3
    )


def test_average_refuses():
    for decay in (-0.1, 1.01, math.nan):
        with pytest.raises(ValueError, match="from 0 to 1"):
            rg.ExponentialMovingAverage(nn.Linear(1, 1), decay)
    average = rg.ExponentialMovingAverage(nn.Linear(2, 3))
    for other in (nn.Linear(3, 2), nn.Linear(2, 3, bias=False), nn.Linear(1, 1)):
        with pytest.raises(ValueError, match="made from"):
            average.update_parameters(other)
    assert average.n_averaged == 0
    x = torch.ones(1, 2)
    assert torch.equal(average(x), average.module(x))


def test_average_with_batch_norm_is_usable_with_copied_buffers_and_after_update_bn():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    x = 3 + torch.randn(64, 4, generator=generator(0))
    average = rg.ExponentialMovingAverage(model, 0.9)
    for _ in range(50):
        model(x)
        average.update_parameters(model)
    wanted = model.eval()(x)
    assert torch.allclose(average.eval()(x), wanted, atol=1e-5)
    update_bn([x], average)  # torch's own helper takes it
    assert average.module[1].num_batches_tracked == 1


# --- sharpness-aware minimisation -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(10))
def test_perturbation_is_the_gradient_with_another_length(seed, dtype):
    grads = random_tensors(seed, dtype)
    moves = rg.sam_perturbation(iter(grads), 0.3)
    flat, moved = (
        torch.cat([t.ravel() for t in parts]).double() for parts in (grads, moves)
    )
    if flat.norm() > 0:
        assert torch.allclose(moved, 0.3 * flat / flat.norm(), rtol=1e-5)
    assert [m.shape for m in moves] == [g.shape for g in grads]
    assert all(m.dtype == dtype for m in moves)
    larger = rg.sam_perturbation([2.0**16 * g for g in grads], 0.3)  # a loss scale
    assert all(torch.allclose(a, b) for a, b in zip(moves, larger, strict=True))


def test_perturbation_at_the_edges():
    zero = rg.sam_perturbation([torch.zeros(3), torch.tensor(0.0)], 0.1)
    assert torch.equal(zero[0], torch.zeros(3)) and zero[1] == 0
    assert (
        rg.sam_perturbation([], 0.1) == []
        and len(rg.sam_perturbation([torch.zeros(0)], 1)) == 1
    )
    for size in (1e-30, 1e30):  # whose squares are no float32
        move = rg.sam_perturbation([torch.full((4,), size)], 1.0)[0]
        assert torch.allclose(move, torch.full((4,), 0.5))
    for bad in (math.nan, math.inf):  # not hidden: the second loss is NaN too
        assert rg.sam_perturbation([torch.tensor([bad, 1.0])], 0.1)[0].isnan().any()
    half = rg.sam_perturbation([torch.full((100_000,), 60_000.0).half()], 1.0)[0]
    assert half.float().norm().item() == pytest.approx(1, abs=1e-2)
    g = (
        torch.randn(4, 3, 2, generator=generator(0)),
        torch.randn(4, 5, generator=generator(1)),
    )
    each = torch.vmap(lambda *grads: rg.sam_perturbation(grads, 0.2))(*g)
    for number in range(4):
        alone = rg.sam_perturbation([part[number] for part in g], 0.2)
        assert all(torch.allclose(a, b[number]) for a, b in zip(alone, each, strict=True))


def half_squares(outputs, y):
    return (outputs - y).square().sum(1).mean() / 2


@pytest.mark.parametrize("rho", [0.01, 0.5, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_sam_on_a_quadratic_is_the_closed_form(seed, rho):
    g = generator(seed)
    x, y = (torch.randn(20, n, generator=g, dtype=torch.float64) for n in (6, 1))
    a, b = x.T @ x / 20, (x.T @ y / 20)[:, 0]
    model = nn.Linear(6, 1, bias=False).double()
    w = model.weight.detach()[0].clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, (x, y), optimizer, steps=15, batch_size=20, loss_fn=half_squares,
        step=rg.sam_step(rho))  # fmt: skip
    for _ in range(15):
        slope = a @ w - b
        w = w - 0.1 * (slope + rho * a @ slope / slope.norm())
    assert torch.allclose(model.weight.detach()[0], w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_sam_equals_a_version_by_hand(seed):
    g = generator(seed)
    x, y = (
        torch.randn(30, 4, generator=g).double(),
        torch.randint(0, 3, (30,), generator=g),
    )
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    weights = {name: w.detach().clone() for name, w in model.named_parameters()}
    speeds = {name: torch.zeros_like(w) for name, w in weights.items()}

    def slope(at):
        at = {name: w.clone().requires_grad_() for name, w in at.items()}
        loss = F.cross_entropy(functional_call(model, at, (x,)), y)
        return dict(
            zip(at, torch.autograd.grad(loss, list(at.values())), strict=True)
        ), loss

    losses = []
    for _ in range(10):
        up, loss = slope(weights)
        losses.append(loss.item())
        length = math.sqrt(sum(part.square().sum().item() for part in up.values()))
        up, _ = slope({name: w + 0.2 * up[name] / length for name, w in weights.items()})
        speeds = {name: 0.9 * speed + up[name] for name, speed in speeds.items()}
        weights = {name: w - 0.1 * speeds[name] for name, w in weights.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    history = fit(
        model, (x, y), optimizer, steps=10, batch_size=30, step=rg.sam_step(0.2)
    )
    # before the move, not after it
    assert history.loss == pytest.approx(losses, abs=1e-12)
    for name, w in model.named_parameters():
        assert torch.allclose(w.detach(), weights[name], rtol=0, atol=1e-12)


def noisy(seed=0):
    torch.manual_seed(seed)
    hidden = nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5)
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(8, 3))


def test_sam_with_rho_zero_is_the_plain_step_to_the_bit():
    found = []
    for step in (train_step, rg.sam_step(0.0), rg.sam_step(1e-3)):
        model = noisy()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        torch.manual_seed(1)
        fit(model, (X, Y), optimizer, steps=10, batch_size=20, step=step)
        found.append(model)
    assert same_state(found[0], found[1]) and not same_state(found[0], found[2])


def test_sam_keeps_the_running_statistics_of_the_first_pass():
    plain, sharp = noisy(), noisy()
    for model, step in ((plain, train_step), (sharp, rg.sam_step(0.5))):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        fit(model, (X, Y), optimizer, steps=1, batch_size=20, step=step)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.buffers(), sharp.buffers(), strict=True)
    )
    assert sharp[2].num_batches_tracked == 1


@pytest.mark.parametrize("fails_at", [1, 2])
def test_sam_puts_the_weights_back_where_the_loss_raises(fails_at):
    model, calls = noisy(), []
    before = copy.deepcopy(model)

    def loss_fn(outputs, targets):
        calls.append(torch.equal(model[1].weight, before[1].weight))
        if len(calls) == fails_at:
            raise RuntimeError("the loss failed")
        return F.cross_entropy(outputs, targets)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="the loss failed"):
        fit(model, (X, Y), optimizer, steps=3, batch_size=20, loss_fn=loss_fn,
            step=rg.sam_step(0.5))  # fmt: skip
    assert calls == [True, False][:fails_at]  # the second is at other weights
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_sam_without_a_slope_makes_the_plain_step():
    model = nn.Linear(16, 3).requires_grad_(True)
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def flat(outputs, targets):
        return 0 * outputs.sum()

    history = fit(model, (X.flatten(1), Y), optimizer, steps=3, batch_size=20, loss_fn=flat,
                  step=rg.sam_step(0.5))  # fmt: skip
    assert same_state(model, before) and history.loss == [0.0] * 3


def test_sam_moves_only_what_the_optimizer_trains():
    model, seen = noisy(), []
    before = copy.deepcopy(model)

    def loss_fn(outputs, targets):
        seen.append([w.detach().clone() for w in model.parameters()])
        return F.cross_entropy(outputs, targets)

    trained = list(model[5].parameters())
    fit(model, (X, Y), torch.optim.SGD(trained, lr=0.1), steps=1, batch_size=20,
        loss_fn=loss_fn, step=rg.sam_step(0.5))  # fmt: skip
    moved = [
        (a - b).norm() ** 2 for a, b in zip(seen[1], before.parameters(), strict=True)
    ]
    assert moved[:4] == [0] * 4 and sum(moved).sqrt().item() == pytest.approx(
        0.5, rel=1e-4
    )


@pytest.mark.parametrize("pieces", [2, 3, 20])
def test_sam_does_not_depend_on_the_micro_batches(pieces):
    found = []
    for number in (1, pieces):
        model = MLP(16, 3, width=8, seed=1).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        fit(model, (X.double(), Y), optimizer, steps=10, batch_size=20, step=rg.sam_step(0.3),
            accumulation_steps=number)  # fmt: skip
        found.append(torch.cat([w.detach().ravel() for w in model.parameters()]))
    assert torch.allclose(*found, rtol=0, atol=1e-12)


def chapters_sam_step():
    """Return the `sam_step` that chapter 3 shows, for a reader to paste."""
    book = nbformat.read(CHAPTERS / "03_regularization.ipynb", as_version=4)
    sources = [c.source for c in book.cells if c.source.startswith("def sam_step(")]
    names = {"copy": copy, "nn": nn, "torch": torch}
    exec(sources[0], names)
    return names["sam_step"]


def test_the_chapters_sam_is_the_packages():
    ours, shown = noisy(), noisy()
    ours[4].p = shown[4].p = 0.0  # the two would draw other masks
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    fit(ours, (X, Y), optimizer, steps=8, batch_size=len(X), step=rg.sam_step(0.3))
    optimizer = torch.optim.SGD(shown.parameters(), lr=0.1, momentum=0.9)
    sam_step = chapters_sam_step()
    for _ in range(8):
        sam_step(shown, lambda: F.cross_entropy(shown(X), Y), optimizer, 0.3)
    assert shown[2].num_batches_tracked == 8
    pairs = zip(ours.state_dict().values(), shown.state_dict().values(), strict=True)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-4) for a, b in pairs)


@pytest.mark.parametrize("size", [0.0, math.inf, math.nan])
def test_the_chapters_sam_does_not_walk_without_a_direction(size):
    model, calls = nn.Linear(3, 2), []
    before = copy.deepcopy(model)

    def loss_of():
        calls.append(size)
        return (size * model.weight).sum() + size * model.bias.sum()

    class Scaler(torch.optim.SGD):
        def step(self, closure=None):  # a loss scaler skips an infinite gradient
            grads = [w.grad for w in model.parameters()]
            if all(grad.isfinite().all() for grad in grads):
                super().step()

    chapters_sam_step()(model, loss_of, Scaler(model.parameters(), lr=0.1), 0.3)
    assert calls == [size] and same_state(model, before)


def test_decay_in_pure_bfloat16_rounds_away():
    left = {}
    for dtype in (torch.bfloat16, torch.float32):
        weight = nn.Parameter(torch.ones(3, dtype=dtype))
        weight.grad = torch.zeros(3, dtype=dtype)
        optimizer = torch.optim.AdamW([weight], lr=0.01, weight_decay=0.1)
        for _ in range(100):
            optimizer.step()
        left[dtype] = weight[0].item()
    assert left[torch.bfloat16] == 1
    assert left[torch.float32] == pytest.approx(0.999**100, abs=1e-4)


def test_sam_refuses():
    for rho in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="at least 0"):
            rg.sam_step(rho)


def sam_and_average():
    import torch
    from accelerate import Accelerator

    from dlcourse import regularization as rg
    from dlcourse.lab.models import MLP
    from dlcourse.lab.training import fit

    g, sam = torch.Generator().manual_seed(0), rg.sam_step(0.3)
    x, y = torch.randn(50, 1, 4, 4, generator=g).double(), torch.arange(50) % 3
    model = MLP(16, 3, width=8, seed=1).double()
    average = rg.ExponentialMovingAverage(model, 0.8)

    def step(run, batch):
        loss = sam(run, batch)
        average.update_parameters(run.model)
        return loss

    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    fit(model, (x, y), optimizer, steps=8, batch_size=21, step=step, cpu=True)
    both = [
        torch.cat([w.detach().ravel() for w in m.parameters()]) for m in (model, average)
    ]
    return Accelerator(cpu=True).num_processes, [part.tolist() for part in both]


def test_sam_and_the_average_on_two_processes_are_those_on_one():
    one = sam_and_average()[1]
    for count, both in launch(sam_and_average):
        assert count == 2
        for ours, whole in zip(both, one, strict=True):
            assert torch.allclose(
                torch.tensor(ours), torch.tensor(whole), rtol=0, atol=1e-6
            )


# --- calibration ----------------------------------------------------------------------------------


def answers(seed, rows=300, classes=4):
    draw = np.random.default_rng(seed)
    probabilities = torch.tensor(draw.dirichlet(np.full(classes, 0.7), rows))
    return probabilities, torch.tensor(draw.integers(0, classes, rows))


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
@pytest.mark.parametrize("seed", range(5))
def test_reliability_equals_scikit_learn(seed, bins):
    probabilities, y = answers(seed)
    confidence, accuracy, count = rg.reliability(probabilities, y, bins)
    chosen = probabilities.max(1)
    right = (chosen.indices == y).numpy()
    expected = calibration_curve(
        right, chosen.values.numpy(), n_bins=bins, strategy="uniform"
    )
    filled = count > 0
    assert np.allclose(accuracy[filled], expected[0]) and np.allclose(
        confidence[filled], expected[1]
    )
    assert count.sum() == len(y) and confidence[~filled].isnan().all()
    error = 0.0
    for low in range(bins):
        inside = (chosen.values > low / bins) & (chosen.values <= (low + 1) / bins)
        if inside.any():
            gap = (
                chosen.values[inside].mean() - torch.tensor(right)[inside].double().mean()
            )
            error += abs(gap.item()) * inside.double().mean().item()
    got = rg.expected_calibration_error(probabilities, y, bins)
    assert got.item() == pytest.approx(error, abs=1e-12) and 0 <= got <= 1


def test_calibration_at_the_edges():
    sure = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert rg.expected_calibration_error(sure, torch.tensor([0, 1])) == 0
    assert rg.expected_calibration_error(sure, torch.tensor([1, 0])) == 1
    half = torch.full((2, 2), 0.5)
    assert rg.expected_calibration_error(half, torch.tensor([0, 1])) == 0
    # (0, 0.5]
    assert rg.reliability(half, torch.tensor([0, 1]), bins=2)[2].tolist() == [2, 0]
    nothing = torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)
    assert rg.expected_calibration_error(*nothing).isnan()
    with pytest.raises(ValueError, match="give"):
        rg.reliability(sure, torch.tensor([0]))
    with pytest.raises(ValueError, match="at least 1"):
        rg.reliability(sure, torch.tensor([0, 1]), bins=0)
    for logits in (torch.tensor([[2.0, 0.5]]), torch.tensor([[0.5, -0.5]])):
        with pytest.raises(ValueError, match="give probabilities"):
            rg.expected_calibration_error(logits, torch.tensor([0]))
    broken = torch.tensor([[0.9, 0.1], [math.nan, math.nan]])  # of a run that diverged
    assert rg.expected_calibration_error(broken, torch.tensor([0, 0])).isnan()


@pytest.mark.parametrize("seed", range(10))
def test_temperature_equals_scipy(seed):
    g = generator(seed)
    z = torch.randn(200, 5, generator=g, dtype=torch.float64) * 10.0 ** (seed % 3 - 0.5)
    y = torch.multinomial((z * 0.4).softmax(1), 1, generator=g)[:, 0]
    found = minimize_scalar(
        lambda b: F.cross_entropy(z * math.exp(b), y).item(),
        bounds=(-4.6, 4.6),
        method="bounded",
        options={"xatol": 1e-9},
    )
    temperature = rg.fit_temperature(z, y)
    assert temperature.item() == pytest.approx(math.exp(-found.x), rel=1e-5)
    assert rg.fit_temperature(3 * z, y).item() == pytest.approx(
        3 * temperature.item(), rel=1e-6
    )
    stacked = rg.fit_temperature(torch.stack([z, 3 * z]), y.expand(2, -1))
    assert torch.allclose(stacked, temperature * torch.tensor([1.0, 3.0]).double())


def test_temperature_stays_in_its_range():
    z, y = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 0])
    # always right: as cold as float64 can tell apart
    temperature = rg.fit_temperature(z, y)
    assert 0.01 <= temperature <= 0.05 and F.cross_entropy(z / temperature, y) < 1e-9
    # always wrong
    assert rg.fit_temperature(z, 1 - y).item() == pytest.approx(100, rel=1e-3)


@pytest.mark.parametrize(
    "z, y",
    [
        (torch.tensor([[0.0, -math.inf]]), torch.tensor([0])),
        (torch.tensor([[math.nan, 0.0]]), torch.tensor([0])),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.long)),
    ],
)
def test_temperature_refuses(z, y):
    with pytest.raises(ValueError, match="give finite logits"):
        rg.fit_temperature(z, y)


# --- in the loop ----------------------------------------------------------------------------------

X = torch.randn(60, 1, 4, 4, generator=generator(0))
Y = torch.arange(60) % 3


def weights_after(optimizer, loss_fn=None, **settings):
    model = MLP(16, 3, width=8, seed=1)

    def penalised(outputs, targets):
        return F.cross_entropy(outputs, targets) + 0.1 * rg.l2_penalty(model.parameters())

    fit(
        model, (X, Y), optimizer(model.parameters()), steps=10, batch_size=20,
        loss_fn=penalised if loss_fn else F.cross_entropy, **settings,
    )  # fmt: skip
    return torch.cat([w.detach().ravel() for w in model.parameters()])


def test_switched_off_a_run_is_the_plain_one_to_the_bit():
    plain = weights_after(lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9))
    assert torch.equal(
        weights_after(lambda p: rg.ProximalSGD(p, lr=0.3, momentum=0.9)), plain
    )


def test_in_plain_sgd_l2_in_the_loss_equals_weight_decay():
    penalised = weights_after(lambda p: torch.optim.SGD(p, lr=0.3), loss_fn=True)
    decayed = weights_after(lambda p: torch.optim.SGD(p, lr=0.3, weight_decay=0.1))
    assert torch.allclose(penalised, decayed, atol=1e-6)


def test_accumulation_counts_penalties_and_proximal_steps_once():
    def sgd(p):
        return torch.optim.SGD(p, lr=0.3)

    def proximal(p):
        return rg.ProximalSGD(p, lr=0.3, l1=0.02, l2=0.1)

    whole = weights_after(sgd, loss_fn=True)
    assert torch.allclose(
        weights_after(sgd, loss_fn=True, accumulation_steps=4), whole, atol=1e-5
    )
    whole = weights_after(proximal)
    assert torch.allclose(weights_after(proximal, accumulation_steps=4), whole, atol=1e-5)
    assert (whole == 0).float().mean() > 0.1


# --- exercises ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(EXERCISES)))
def test_exercise_accepts_its_solution_and_names_each_mistake(number):
    exercise = EXERCISES[number]
    assert exercise.hint_for(exercise.solve) is None
    assert "Not started" in exercise.hint_for(...)
    assert exercise.hint_for(lambda *args: None) is not None
    for name, wrong in exercise.wrong.items():
        hint = exercise.hint_for(wrong.answer)
        assert hint is not None and wrong.hint in hint, f"{name}: {hint}"


def accepts(number, answer):
    return EXERCISES[number].hint_for(answer) is None


def test_other_right_answers_are_accepted():
    def stop_at_the_crossing(w, grad, lr, strength):
        w = w - lr * grad
        moved = w - lr * strength * w.sign()
        return torch.where(moved * w > 0, moved, 0)

    def by_numpy_alone(w, grad, lr, strength):
        v = w.numpy() - lr * grad.numpy()
        return np.sign(v) * np.maximum(np.abs(v) - lr * strength, 0)

    def by_two_parts(w, grad, lr, strength):
        v = w - lr * grad
        return (v - lr * strength).clamp(min=0) - (-v - lr * strength).clamp(min=0)

    def entry_by_entry(w, grad, lr, strength):
        new = torch.zeros_like(w)
        for place in np.ndindex(tuple(w.shape)):
            v = w[place] - lr * grad[place]
            if v > lr * strength:
                new[place] = v - lr * strength
            elif v < -lr * strength:
                new[place] = v + lr * strength
        return new

    def in_place(w, grad, lr, strength):
        w -= lr * grad
        w.copy_(F.softshrink(w, lr * strength))
        return w

    def by_module(model, weight_decay):
        words = [n for n, m in model.named_modules() if isinstance(m, nn.Embedding)]
        return rg.param_groups(model, weight_decay, [f"{name}.weight" for name in words])

    def one_group_each(model, weight_decay):
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        decayed = {id(m.weight) for m in model.modules() if isinstance(m, kinds)}
        return [
            {"params": [w], "weight_decay": weight_decay if id(w) in decayed else 0}
            for w in model.parameters()
        ]

    def decay_last(w, grad, adam, lr, weight_decay):
        return (w - adam(grad)) * (1 - lr * weight_decay)

    def paper(w, grad, adam, lr, weight_decay):
        return w - adam(grad) - lr * weight_decay * w

    assert accepts(0, stop_at_the_crossing) and accepts(0, in_place)
    assert accepts(0, by_numpy_alone) and accepts(0, by_two_parts)
    assert accepts(0, entry_by_entry)
    assert accepts(0, lambda w, g, lr, s: rg.soft_threshold(w - lr * g, lr * s))
    assert accepts(1, by_module) and accepts(1, one_group_each)
    assert accepts(2, decay_last) and accepts(2, paper)
    assert accepts(3, lambda x, p, training: F.dropout(x, p, training))
    assert accepts(3, lambda x, p, training: rg.Dropout(p).train(training)(x))

    def by_numpy(x, p, training):  # float64
        if not training:
            return x
        keep = np.random.rand(*x.shape) >= p
        return x * torch.tensor(keep / max(1 - p, 1e-9))

    def by_where(x, p, training):
        if training and p < 1:
            return torch.where(torch.rand(x.shape) < p, 0, x / (1 - p))
        return torch.zeros_like(x) * x if training else x.clone()

    def by_bernoulli(x, p, training):
        keep = torch.bernoulli(torch.full_like(x, 1 - p if training else 1.0))
        return x * keep if not training or p == 1 else x * keep / (1 - p)

    assert accepts(3, by_where) and accepts(3, by_bernoulli)
    assert accepts(3, by_numpy)


def test_the_hint_shows_an_entry_that_is_wrong():
    def rate_twice(w, grad, lr, strength):  # right where lr is 1
        return F.softshrink(w - lr * grad, lr * lr * strength)

    hint = EXERCISES[0].hint_for(rate_twice)
    words = hint.replace(",", "").split()
    assert words[words.index("gave") + 1] != words[words.index("wanted") + 1]


def test_other_groups_are_accepted():
    def by_layer(model, weight_decay):
        decayed = {}
        for layer in model.modules():
            if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                decayed[id(layer.weight)] = layer.weight
        rest = [w for w in model.parameters() if id(w) not in decayed]
        yield {"params": rest, "weight_decay": 0}
        yield {"params": list(decayed.values()), "weight_decay": weight_decay}

    def with_names(model, weight_decay):
        groups = []
        others = {
            f"{name}.weight"
            for name, layer in model.named_modules()
            if isinstance(layer, (nn.Embedding, nn.LayerNorm))
        }
        for name, weight in model.named_parameters():
            spared = weight.dim() == 1 or name in others or name.endswith("bias")
            own = 0.0 if spared else weight_decay
            groups.append({"params": [weight], "weight_decay": own, "name": name})
        return tuple(groups)

    assert accepts(1, by_layer) and accepts(1, with_names)


def spare_by_the_names_of_the_example(model, weight_decay):
    names = ("0.bias", "1.weight", "1.bias", "3.bias", "4.weight", "4.bias")
    spared = [w for name, w in model.named_parameters() if name in names]
    ids = {id(w) for w in spared}
    decayed = [w for w in model.parameters() if id(w) not in ids]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]


def test_lazy_answers_are_not():
    lazy = [
        (0, lambda w, grad, lr, strength: w * 0),
        (0, lambda w, grad, lr, strength: w),
        (0, lambda w, grad, lr, strength: F.softshrink(w, lr * strength)),
        (0, lambda w, grad, lr, strength: F.softshrink(w + lr * grad, lr * strength)),
        (0, lambda w, grad, lr, strength: torch.where(w.abs() < 0.01, 0, w - lr * grad)),
        (1, lambda model, weight_decay: list(model.parameters())),
        (1, lambda model, weight_decay: []),
        (
            1,
            lambda model, weight_decay: [
                {"params": model.parameters(), "weight_decay": 0.0}
            ],
        ),
        (2, lambda w, grad, adam, lr, weight_decay: w * (1 - lr * weight_decay)),
        (
            2,
            lambda w, grad, adam, lr, weight_decay: (
                w * (1 - lr * weight_decay) - lr * grad
            ),
        ),
        (
            2,
            lambda w, grad, adam, lr, weight_decay: (
                w - adam(grad) - adam(weight_decay * w)
            ),
        ),
        (0, lambda w, grad, lr, strength: F.softshrink(w - lr * grad, lr * 0.1)),
        (0, lambda w, grad, lr, strength: F.hardshrink(w - lr * grad, lr * strength)),
        (0, lambda w, grad, lr, strength: (w - lr * grad).round(decimals=1)),
        (2, lambda w, grad, adam, lr, weight_decay: w - adam(grad - weight_decay * w)),
        (3, lambda x, p, training: x + torch.randn_like(x) * p if training else x),
        (3, lambda x, p, training: F.alpha_dropout(x, p, training)),
        (3, lambda x, p, training: F.dropout(x, p, training, inplace=True)),
        (3, lambda x, p, training: F.dropout(x.detach(), p, training)),
        (3, lambda x, p, training: F.dropout(x, p, training) * (1 - p)),
        (3, lambda x, p, training: x),
        (3, lambda x, p, training: x * 0 if training else x),
        (3, lambda x, p, training: F.dropout(x, 0.2, training)),
        (3, lambda x, p, training: F.dropout(x, p, True)),
        (3, lambda x, p, training: F.dropout1d(x[None], p, training)[0]),
        (
            0,
            lambda w, grad, lr, strength: rg.soft_threshold(
                w - lr * grad, 0.1 * strength
            ),
        ),
        (0, lambda w, grad, lr, strength: rg.soft_threshold(w - lr * grad, 0.01)),
        (1, lambda model, weight_decay: rg.param_groups(model, 0.1)),
        (1, spare_by_the_names_of_the_example),
        (2, lambda w, grad, adam, lr, weight_decay: 0.999 * w - adam(grad)),
        (3, lambda x, p, training: F.dropout(x, 0.2, training) if p else x),
    ]
    for number, answer in lazy:
        assert not accepts(number, answer), (number, answer)


# --- what is left out, and what is wrong ----------------------------------------------------------


def test_settings_left_out_are_those_of_torch_and_scikit_learn():
    weights = torch.tensor([1.0, -2.0])
    assert rg.elastic_net_penalty(weights) == rg.elastic_net_penalty(weights, 1.0, 0.5)
    assert rg.Dropout().p == nn.Dropout().p
    logits, targets = torch.randn(9, 3, generator=generator(0)), torch.arange(9) % 3
    targets[2] = -100
    ours, theirs = rg.cross_entropy(logits, targets), F.cross_entropy(logits, targets)
    assert torch.allclose(ours, theirs)
    probabilities, targets = logits.softmax(1), targets.clamp(min=0)
    assert len(rg.reliability(probabilities, targets)[0]) == 10
    error = rg.expected_calibration_error(probabilities, targets)
    assert error == rg.expected_calibration_error(probabilities, targets, bins=10)
    adamw = torch.optim.AdamW([weights]).defaults
    found = rg.AdamW([weights]).defaults
    assert found == {name: adamw[name] for name in found}
    proximal = rg.ProximalSGD([weights], 0.1).defaults
    assert proximal == {"lr": 0.1, "momentum": 0.0, "l1": 0.0, "l2": 0.0}
    average = rg.ExponentialMovingAverage(nn.Linear(3, 2))
    assert (average.decay, average.warmup, average.use_buffers) == (0.999, False, False)
    stopper = rg.EarlyStopping(1)
    assert (stopper.min_delta, stopper.mode, stopper.accelerator) == (0.0, "min", None)


def test_an_average_passes_all_inputs_to_its_model():
    class Named(nn.Module):
        def forward(self, x, *, scale=1.0):
            return x * scale

    assert rg.ExponentialMovingAverage(Named())(3.0, scale=2.0) == 6.0


def two_rows():
    return torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rg.elastic_net_penalty(torch.ones(2), -1.0), "alpha=-1.0"),
        (lambda: rg.elastic_net_penalty(torch.ones(2), 1.0, 1.5), "l1_ratio=1.5"),
        (lambda: rg.elastic_net_penalty(torch.ones(2), 1.0, -0.5), "l1_ratio=-0.5"),
        (lambda: rg.soft_threshold(torch.ones(2), -1.0), "threshold=-1.0"),
        (lambda: rg.soft_threshold(torch.ones(2), math.inf), "threshold=inf"),
        (lambda: rg.ProximalSGD([torch.ones(2)], 0.0), "lr=0.0"),
        (lambda: rg.ProximalSGD([torch.ones(2)], math.inf), "lr=inf"),
        (lambda: rg.ProximalSGD([torch.ones(2)], 0.1, -1.0), "momentum=-1.0"),
        (lambda: rg.ProximalSGD([torch.ones(2)], 0.1, l1=-1.0), "l1=-1.0"),
        (lambda: rg.ProximalSGD([torch.ones(2)], 0.1, l2=-1.0), "l2=-1.0"),
        (lambda: rg.AdamW([torch.ones(2)], lr=-1.0), "lr=-1.0"),
        (lambda: rg.AdamW([torch.ones(2)], eps=-1.0), "eps=-1.0"),
        (lambda: rg.AdamW([torch.ones(2)], weight_decay=-1.0), "weight_decay=-1.0"),
        (lambda: rg.AdamW([torch.ones(2)], betas=(-0.1, 0.9)), r"betas=\(-0.1, 0.9\)"),
        (lambda: rg.AdamW([torch.ones(2)], betas=(0.9, 1.0)), r"betas=\(0.9, 1.0\)"),
        (lambda: rg.param_groups(nn.Linear(2, 2), -0.1), "weight_decay=-0.1"),
        (
            lambda: rg.param_groups(nn.Linear(2, 2), 0.1, "norm"),
            "'norm' .*: weight, bias",
        ),
        (lambda: rg.Dropout(1.5), "p=1.5"),
        (lambda: rg.Dropout(-0.5), "p=-0.5"),
        (lambda: rg.cross_entropy(*two_rows(), 1.5), "label_smoothing=1.5"),
        (lambda: rg.cross_entropy(*two_rows(), reduction="max"), "reduction='max'"),
        (
            lambda: rg.cross_entropy(torch.zeros(2, 3), torch.zeros(4)),
            r"logits \(2, 3\) and targets \(4,\) of torch.float32",
        ),
        (lambda: rg.EarlyStopping(0), "patience=0"),
        (lambda: rg.EarlyStopping(1.5), "patience=1.5"),
        (lambda: rg.EarlyStopping(True), "patience=True"),
        (lambda: rg.EarlyStopping(1, -0.1), "min_delta=-0.1"),
        (lambda: rg.EarlyStopping(1, mode="low"), "mode='low'"),
        (lambda: rg.ExponentialMovingAverage(nn.Linear(1, 1), 1.5), "decay=1.5"),
        (lambda: rg.sam_step(-0.1), "rho=-0.1"),
        (lambda: rg.sam_step(math.inf), "rho=inf"),
        (
            lambda: rg.ExponentialMovingAverage(nn.Linear(2, 3)).update_parameters(
                nn.Linear(1, 3)
            ),
            r"shapes \[\(3, 2\), \(3,\)\], the model \[\(3, 1\), \(3,\)\]",
        ),
        (
            lambda: rg.reliability(torch.zeros(2, 3), torch.zeros(4)),
            r"probabilities \(2, 3\) and targets \(4,\)",
        ),
        (lambda: rg.reliability(*two_rows(), bins=0), "bins=0"),
        (
            lambda: rg.fit_temperature(torch.zeros(2, 3), torch.zeros(4)),
            r"logits \(2, 3\) and targets \(4,\)",
        ),
    ],
)
def test_errors_name_what_was_given(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_numbers_at_the_edge_are_taken():
    probabilities, targets = two_rows()
    assert rg.elastic_net_penalty(torch.ones(2), 0.0, 0.0) == 0
    assert rg.elastic_net_penalty(torch.ones(2), 1.0, 1.0) == 2
    assert rg.cross_entropy(probabilities, targets, 1.0).isfinite()
    one_class = rg.cross_entropy(torch.ones(2, 1), torch.tensor([0, -100]))
    assert one_class == 0  # also where the other row does not count
    assert rg.reliability(probabilities, targets, bins=1)[2].tolist() == [2]
    sure = torch.tensor([[1 + 1e-7, 0.0]]), torch.tensor([0])  # a softmax rounds up
    assert rg.expected_calibration_error(*sure) < 1e-6
    zeros = rg.AdamW(
        [torch.ones(2)], betas=(0.0, 0.0), eps=0.0, weight_decay=0.0
    ).defaults
    assert zeros["betas"] == (0.0, 0.0)
    assert rg.EarlyStopping(1)(1.0, nn.Linear(1, 1)) is False
    assert rg.soft_threshold(torch.ones(2), 0.0).tolist() == [1.0, 1.0]


def test_our_functions_do_not_leave_torch_to_guess_a_dimension():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rg.cross_entropy(*two_rows(), label_smoothing=0.1)
        rg.fit_temperature(*two_rows())
