"""Exercises of chapter 6: more answers than the usual mistakes, right ones and wrong ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from answers import accepts, rejects
from torch import nn

from dlcourse import activations as act
from dlcourse.exercises.activations import EXERCISES

DEAD, STD, SIGMOID, LOSS = EXERCISES


def test_usual_mistakes_get_their_hints():
    for exercise in EXERCISES:
        accepts(exercise, exercise.solve)
        for name, wrong in exercise.wrong.items():
            hint = exercise.hint_for(wrong.answer)
            assert hint is not None and wrong.hint in hint, f"{name}: {hint}"


# --------------------------------------------------------------------------- dead units


def dead_by_loops(batches):
    dead = 0
    for unit in range(batches[0].shape[1]):
        awake = False
        for batch in batches:
            for row in batch:
                if row[unit] != 0:
                    awake = True
        dead += not awake
    return dead


def dead_in_numpy(batches):
    return np.all(np.concatenate([batch.numpy() for batch in batches]) == 0, axis=0).sum()


def dead_as_a_tensor(batches):
    return (torch.cat(batches) == 0).all(dim=0).sum()


def dead_by_largest_size(batches):
    sizes = torch.stack([batch.abs().amax(0) for batch in batches]).amax(0)
    return (sizes == 0).float().sum()


def dead_by_the_package(batches):
    units = batches[0].shape[1]
    return np.float64(act.dead_fraction(iter(batches)) * units)


def dead_by_sets(batches):
    dead = set(range(batches[0].shape[1]))
    for batch in batches:
        dead -= set(batch.nonzero()[:, 1].tolist())
    return [len(dead)][0]


@pytest.mark.parametrize(
    "answer",
    [
        dead_by_loops,
        dead_in_numpy,
        dead_as_a_tensor,
        dead_by_largest_size,
        dead_by_the_package,
        dead_by_sets,
    ],
    ids=lambda answer: answer.__name__,
)
def test_dead_units_accepts(answer):
    accepts(DEAD, answer)


def per_batch(join):
    return lambda batches: join([int((b == 0).all(0).sum()) for b in batches])


def whole(count):
    return lambda batches: count(torch.cat(batches))


WRONG_DEAD = {
    "the shown plain one": (per_batch(lambda c: sum(c) / len(c)), "the mean of the"),
    "added up": (per_batch(sum), "added up the counts"),
    "the most": (per_batch(max), "the batch with the most"),
    "the fewest": (per_batch(min), "the batch with the fewest"),
    "the first batch": (per_batch(lambda c: c[0]), "first batch alone"),
    "the last batch": (per_batch(lambda c: c[-1]), "last batch alone"),
    "std is 0": (whole(lambda w: (w.std(0) == 0).sum()), "do not change"),
    "std of the population": (
        whole(lambda w: (w.var(0, unbiased=False) == 0).sum()),
        "do not change",
    ),
    "equal to the first row": (
        whole(lambda w: (w == w[0]).all(0).sum()),
        "do not change",
    ),
    "sum is 0": (whole(lambda w: (w.sum(0) == 0).sum()), "add up to 0"),
    "mean is 0": (whole(lambda w: (w.mean(0) == 0).sum()), "add up to 0"),
    "largest is not above 0": (whole(lambda w: (w.amax(0) <= 0).sum()), "gives negative"),
    "largest is 0": (whole(lambda w: (w.amax(0) == 0).sum()), "every row of every batch"),
    "awake is above 0": (whole(lambda w: (~(w > 0).any(0)).sum()), "gives negative"),
    "nearly 0": (
        whole(lambda w: (w.abs().amax(0) < 1e-3).sum()),
        "small output is not 0",
    ),
    "nearly 0 too": (
        whole(lambda w: torch.isclose(w, torch.zeros(1), atol=1e-4).all(0).sum()),
        "small output is not 0",
    ),
    "some rows": (whole(lambda w: (w == 0).any(0).sum()), "selective, not dead"),
    "rows": (whole(lambda w: (w == 0).all(1).sum()), "Units are the columns"),
    "outputs": (whole(lambda w: (w == 0).sum()), "how many outputs"),
    "alive": (whole(lambda w: (w != 0).any(0).sum()), "how many are alive"),
    "the share": (whole(lambda w: (w == 0).all(0).float().mean()), "share of the dead"),
    "per cent": (
        whole(lambda w: 100 * (w == 0).all(0).float().mean()),
        "every row of every batch",
    ),
    "the mask": (whole(lambda w: (w == 0).all(0)), "one number, not several"),
    "a list": (whole(lambda w: (w == 0).all(0).nonzero()[:, 0]), "one number"),
    "only prints": (whole(lambda w: None), "returns nothing"),
    "hard-coded": (lambda batches: 2, "every row of every batch"),
    "joins by and": (
        lambda batches: int(
            (~torch.stack([(b != 0).any(0) for b in batches]).all(0)).sum()
        ),
        "every row of every batch",
    ),
}


@pytest.mark.parametrize("name", WRONG_DEAD)
def test_dead_units_rejects(name):
    rejects(DEAD, *WRONG_DEAD[name])


# --------------------------------------------------------------------------- weights that fit


def std_by_quadrature(fan_in, activation):
    return act.forward_gain(activation) / math.sqrt(fan_in)


def std_by_trial(fan_in, activation):
    x = torch.randn(2000, fan_in, generator=torch.Generator().manual_seed(5))
    return (1 / activation(x).square().sum(1).mean()).sqrt()


def std_in_numpy(fan_in, activation):
    z = np.random.default_rng(0).normal(size=200_000)
    values = activation(torch.from_numpy(z)).numpy()
    return np.sqrt(1 / (fan_in * np.mean(values**2)))


def std_by_hermite(fan_in, activation):
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    values = activation(torch.tensor(nodes)).numpy() ** 2
    return float((fan_in * (weights * values).sum() / weights.sum()) ** -0.5)


def std_as_a_tensor(fan_in, activation):
    z = torch.randn(200_000, generator=torch.Generator().manual_seed(1))
    return torch.rsqrt(fan_in * activation(z).pow(2).mean()).reshape(1)


def std_by_a_sum(fan_in, activation):
    z = torch.linspace(-8, 8, 4001)
    density = torch.exp(-z * z / 2)
    mean = (density * activation(z) ** 2).sum() / density.sum()
    return 1 / math.sqrt(fan_in * mean)


@pytest.mark.parametrize(
    "answer",
    [
        std_by_quadrature,
        std_by_trial,
        std_in_numpy,
        std_by_hermite,
        std_as_a_tensor,
        std_by_a_sum,
    ],
    ids=lambda answer: answer.__name__,
)
def test_std_accepts(answer):
    accepts(STD, answer)


def normal(n=200_000):
    return torch.randn(n, generator=torch.Generator().manual_seed(2))


def from_mean(mean):
    return lambda n, f: (n * mean(f).item()) ** -0.5


def slope_mean(f):
    z = normal().requires_grad_()
    return torch.autograd.grad(f(z).sum(), z)[0].square().mean()


def by_name(fan_in, activation):
    known = {F.relu: "relu", torch.tanh: "tanh", torch.sigmoid: "sigmoid"}
    return nn.init.calculate_gain(known.get(activation, "relu")) / math.sqrt(fan_in)


WRONG_STD = {
    "no gain": (lambda n, f: n**-0.5, "left the gain out"),
    "ReLU's for all": (lambda n, f: (2 / n) ** 0.5, "gain of ReLU for every"),
    "the slope": (from_mean(slope_mean), "comes from the slope"),
    "the variance of f": (from_mean(lambda f: f(normal()).var()), "around its mean"),
    "PyTorch's default": (lambda n, f: (3 * n) ** -0.5, "After 20 such layers"),
    "torch's table": (by_name, "After 20 such layers"),
    "uniform inputs": (
        from_mean(lambda f: f(2 * torch.rand(200_000) - 1).square().mean()),
        "After 20 such layers",
    ),
    "the mean size": (
        lambda n, f: float(1 / (f(normal()).abs().mean() * n**0.5)),
        "After 20 such layers",
    ),
    "the inverse gain": (
        lambda n, f: float((f(normal()).square().mean() / n) ** 0.5),
        "After 20 such layers",
    ),
    "the gain squared": (
        lambda n, f: float(1 / (f(normal()).square().mean() * n**0.5)),
        "After 20 such layers",
    ),
    "the bound of a uniform": (
        lambda n, f: (3 / (n * f(normal()).square().mean().item())) ** 0.5,
        "After 20 such layers",
    ),
    "3 % too large": (lambda n, f: 1.03 * std_by_quadrature(n, f), "After 20"),
    "4 % too small": (lambda n, f: 0.96 * std_by_quadrature(n, f), "After 20"),
    "the variance": (lambda n, f: std_by_quadrature(n, f) ** 2, "grows like fan_in"),
    "no fan-in": (lambda n, f: act.forward_gain(f), "grows like fan_in"),
    "over fan-in": (lambda n, f: act.forward_gain(f) / n, "grows like fan_in"),
    "hard-coded": (lambda n, f: 0.05, "grows like fan_in"),
    "zero": (lambda n, f: 0.0, "above 0"),
    "negative": (lambda n, f: -std_by_quadrature(n, f), "above 0"),
    "nan": (lambda n, f: math.nan, "above 0"),
    "nothing": (lambda n, f: print(end=""), "returns nothing"),
    "the weights": (lambda n, f: torch.randn(n, n) * n**-0.5, "one number, not several"),
}


@pytest.mark.parametrize("name", WRONG_STD)
def test_std_rejects(name):
    rejects(STD, *WRONG_STD[name])


# --------------------------------------------------------------------------- sigmoid


def sigmoid_by_masks(x):
    y = torch.empty_like(x)
    right = x >= 0
    y[right] = 1 / (1 + torch.exp(-x[right]))
    z = torch.exp(x[~right])
    y[~right] = z / (1 + z)
    return y


def sigmoid_by_logs(x):
    return torch.exp(F.logsigmoid(x))


def sigmoid_by_two_clamps(x):
    z = torch.exp(torch.minimum(x, -x))
    return torch.where(x < 0, z, torch.ones_like(z)) / (1 + z)


def sigmoid_by_softplus(x):
    return torch.exp(-F.softplus(-x))


def sigmoid_by_logaddexp(x):
    return torch.exp(-torch.logaddexp(torch.zeros_like(x), -x))


@pytest.mark.parametrize(
    "answer",
    [
        act.sigmoid,
        sigmoid_by_masks,
        sigmoid_by_logs,
        sigmoid_by_softplus,
        sigmoid_by_logaddexp,
    ],
    ids=lambda answer: answer.__name__,
)
def test_sigmoid_accepts(answer):
    accepts(SIGMOID, answer)


WRONG_SIGMOID = {
    "clamped at 700": (lambda x: 1 / (1 + torch.exp(-x.clamp(min=-700))), "is NaN"),
    "clamped on both sides": (lambda x: 1 / (1 + torch.exp(-x.clamp(-80, 80))), "tail"),
    "three of them": (lambda x: torch.sigmoid(x)[:3], "shape"),
    "in float64": (lambda x: act.sigmoid(x.double()), "dtype"),
    "a number": (lambda x: 0.5, "Return a tensor"),
    "tanh": (torch.tanh, "wanted"),
    "the identity": (lambda x: x, "wanted"),
    "ReLU": (torch.relu, "wanted"),
    "of minus x": (lambda x: act.sigmoid(-x), "wanted"),
    "in NumPy": (
        lambda x: torch.from_numpy(1 / (1 + np.exp(-x.detach().double().numpy()))).to(x),
        "no gradient",
    ),
    "nn": (nn.Sigmoid(), "Write it yourself"),
    "F": (F.sigmoid, "Write it yourself"),
    "special": (torch.special.expit, "Write it yourself"),
    "method": (lambda x: x.sigmoid(), "Write it yourself"),
    "nothing": (lambda x: None, "Return a tensor"),
    "minimum of x and -x": (sigmoid_by_two_clamps, "0.25"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("name", WRONG_SIGMOID)
def test_sigmoid_rejects(name):
    rejects(SIGMOID, *WRONG_SIGMOID[name])


# --------------------------------------------------------------------------- loss


def loss_by_logsumexp(logits, targets):
    picked = logits.gather(1, targets[:, None])[:, 0]
    return (torch.logsumexp(logits, 1) - picked).mean()


def loss_by_nll(logits, targets):
    return F.nll_loss(logits.log_softmax(1), targets)


def loss_in_double(logits, targets):
    return act.cross_entropy(logits.double(), targets)


def loss_by_a_loop(logits, targets):
    total = logits.new_zeros(())
    for row, target in zip(logits, targets, strict=True):
        row = row - row.max().detach()
        total = total - row[target] + row.exp().sum().log()
    return total / len(targets)


def loss_by_one_hot(logits, targets):
    shifted = logits - logits.amax(1, keepdim=True)
    logs = shifted - shifted.exp().sum(1, keepdim=True).log()
    return -(logs * F.one_hot(targets, logits.shape[1])).sum() / logits.shape[0]


@pytest.mark.parametrize(
    "answer",
    [
        act.cross_entropy,
        loss_by_logsumexp,
        loss_by_nll,
        loss_in_double,
        loss_by_a_loop,
        loss_by_one_hot,
    ],
    ids=lambda answer: answer.__name__,
)
def test_loss_accepts(answer):
    accepts(LOSS, answer)


WRONG_LOSS = {
    "clamped": (lambda x, y: F.nll_loss(x.softmax(1).clamp(1e-7, 1).log(), y), "1000"),
    "log twice": (
        lambda x, y: F.nll_loss(x.log_softmax(1).softmax(1), y),
        "minus the log of softmax",
    ),
    "a row each": (lambda x, y: F.cross_entropy(x, y, reduction="none"), "mean over"),
    "over the rows": (
        lambda x, y: F.nll_loss(x.log_softmax(0), y),
        "minus the log of softmax",
    ),
    "detached": (lambda x, y: act.cross_entropy(x.detach(), y), "no gradient"),
    "torch's module": (nn.CrossEntropyLoss(), "Write it yourself"),
    "a number": (lambda x, y: F.cross_entropy(x, y).item(), "a tensor of one number"),
    "the sum": (lambda x, y: act.cross_entropy(x, y, "sum"), "divide by their number"),
    "softmax twice": (lambda x, y: F.cross_entropy(x.softmax(1), y), "softmax twice"),
    "the other sign": (
        lambda x, y: -act.cross_entropy(x, y),
        "minus the log of softmax",
    ),
    "no maximum": (
        lambda x, y: (x.exp().sum(1).log() - x.gather(1, y[:, None])[:, 0]).mean(),
        "maximum",
    ),
    "the maximum of all": (
        lambda x, y: (
            ((x - x.max()).exp().sum(1).log() + x.max()) - x.gather(1, y[:, None])[:, 0]
        ).mean(),
        "the row's maximum",
    ),
    "over the classes, too": (
        lambda x, y: act.cross_entropy(x, y) / x.shape[1],
        "minus the log of softmax",
    ),
    "squared error": (
        lambda x, y: (x.softmax(1) - F.one_hot(y, x.shape[1])).square().mean(),
        "minus the log of softmax",
    ),
}


@pytest.mark.parametrize("name", WRONG_LOSS)
def test_loss_rejects(name):
    rejects(LOSS, *WRONG_LOSS[name])
