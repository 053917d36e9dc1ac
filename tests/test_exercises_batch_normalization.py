"""Exercises of chapter 7: more answers than the usual mistakes, right ones and wrong ones."""

from __future__ import annotations

import copy
import statistics

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from answers import accepts, rejects
from torch import nn

from dlcourse import batch_normalization as bn
from dlcourse.exercises.batch_normalization import EXERCISES

LAYER, FOLD, MERGED, GRADIENT = EXERCISES


# --------------------------------------------------------------------------- batch_norm


def by_loops(x, weight, bias, mean, var, training, momentum, eps):
    n, columns = len(x), []
    for c in range(x.shape[1]):
        m, v = mean[c].clone(), var[c].clone()
        if training:
            m = sum(x[:, c]) / n
            v = sum((x[:, c] - m) ** 2) / n
            mean.data[c] = (1 - momentum) * mean[c] + momentum * m.item()
            var.data[c] = (1 - momentum) * var[c] + momentum * v.item() * n / (n - 1)
        columns.append(weight[c] * (x[:, c] - m) / (v + eps) ** 0.5 + bias[c])
    return torch.stack(columns, 1)


def as_scale_and_shift(x, weight, bias, mean, var, training, momentum, eps):
    if training:
        batch_var, batch_mean = torch.var_mean(x, dim=0, correction=0, keepdim=True)
        unbiased = batch_var.detach() * len(x) / (len(x) - 1)
        mean[:] = mean * (1 - momentum) + batch_mean.detach().squeeze(0) * momentum
        var[:] = var * (1 - momentum) + unbiased.squeeze(0) * momentum
    else:
        batch_mean, batch_var = mean, var
    scale = weight * torch.rsqrt(batch_var + eps)
    return torch.addcmul(bias - batch_mean * scale, x, scale)


def by_a_centering_matrix(x, weight, bias, mean, var, training, momentum, eps):
    if not training:
        return F.linear((x - mean) * torch.diag(1 / (var + eps).sqrt()).diag(), torch.diag(weight), bias)  # fmt: skip
    n = len(x)
    centered = (torch.eye(n).to(x) - 1 / n) @ x
    square = torch.einsum("nc,nc->c", centered, centered)
    mean += momentum * (x.detach().mean(0) - mean)
    var += momentum * (square.detach() / (n - 1) - var)
    return centered / torch.sqrt(square / n + eps) * weight + bias


def by_mean_of_squares(x, weight, bias, mean, var, training, momentum, eps):
    m, v = mean, var
    if training:
        m = x.mean(dim=0)
        v = (x * x).mean(dim=0) - m * m
        with torch.no_grad():
            mean.copy_((1 - momentum) * mean + momentum * m)
            var.copy_((1 - momentum) * var + momentum * torch.var(x, 0, unbiased=True))
    return bias + weight * ((x - m) / torch.pow(v + eps, 0.5))


def by_layer_norm_of_the_transpose(x, weight, bias, mean, var, training, momentum, eps):
    if not training:
        return (x - mean).div((var + eps).sqrt()).mul(weight).add(bias)
    with torch.no_grad():
        mean.add_(x.mean(0) - mean, alpha=momentum)
        var.add_(x.std(0) ** 2 - var, alpha=momentum)
    return F.layer_norm(x.T, (len(x),), eps=eps).T * weight + bias


@pytest.mark.parametrize(
    "answer",
    [
        by_loops,
        as_scale_and_shift,
        by_a_centering_matrix,
        by_mean_of_squares,
        by_layer_norm_of_the_transpose,
    ],
    ids=lambda answer: answer.__name__,
)
def test_batch_norm_accepts(answer):
    accepts(LAYER, answer)


def with_torch(x, weight, bias, mean, var, training, momentum, eps):
    return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)


def with_a_layer_of_torch(x, weight, bias, mean, var, training, momentum, eps):
    norm = nn.BatchNorm1d(x.shape[1], eps, momentum).double().train(training)
    norm.running_mean, norm.running_var = mean, var
    return norm(x) * weight + bias


def graph_in_buffers(x, weight, bias, mean, var, training, momentum, eps):
    m, v = (x.mean(0), x.var(0, correction=0)) if training else (mean, var)
    if training:
        mean.lerp_(m, momentum), var.lerp_(x.var(0), momentum)
    return (x - m) / (v + eps).sqrt() * weight + bias


def names_it_anew(x, weight, bias, mean, var, training, momentum, eps):
    m, v = (x.mean(0), x.var(0, correction=0)) if training else (mean, var)
    if training:
        mean = (1 - momentum) * mean + momentum * m
        var = (1 - momentum) * var + momentum * x.var(0)
    return (x - m) / (v + eps).sqrt() * weight + bias


def changed(settings=None, training=None, evaluation=None):
    """Return the solution with another output, or called with other settings."""

    def answer(x, weight, bias, mean, var, is_training, momentum, eps):
        given = {"momentum": momentum, "eps": eps} | (settings or {})
        y = LAYER.solve(x, weight, bias, mean, var, is_training, *given.values())
        change = training if is_training else evaluation
        return y if change is None else change(x, weight, bias, mean, var, eps)

    return answer


def running_deviation(x, weight, bias, mean, var, training, momentum, eps):
    before = var.clone()
    y = LAYER.solve(x, weight, bias, mean, var, training, momentum, eps)
    if training:
        var.copy_(before.lerp(x.detach().std(0), momentum))
    return y


WRONG_LAYERS = {
    "torch's function": (with_torch, "without torch's batch_norm"),
    "torch's layer": (with_a_layer_of_torch, "without torch's batch_norm"),
    "the graph in the buffers": (graph_in_buffers, "part of the graph"),
    "not in place": (names_it_anew, "must have changed, in place"),
    "a fixed momentum": (changed({"momentum": 0.1}), "running_mean is wrong"),
    "a fixed eps": (changed({"eps": 1e-5}), "is wrong: take off"),
    "the running deviation": (running_deviation, "running_var is wrong"),
    "weight out of the graph": (
        changed(
            training=lambda x, w, b, m, v, eps: (
                (x - x.mean(0)) / (x.var(0, correction=0) + eps).sqrt() * w.detach() + b
            )
        ),
        "reaches weight",
    ),
    "bias before weight": (
        changed(
            training=lambda x, w, b, m, v, eps: (
                ((x - x.mean(0)) / (x.var(0, correction=0) + eps).sqrt() + b) * w
            )
        ),
        "is wrong: take off",
    ),
    "the mean is a constant": (
        changed(
            training=lambda x, w, b, m, v, eps: (
                (x - x.mean(0).detach()) / (x.var(0, correction=0) + eps).sqrt() * w + b
            )
        ),
        "do not detach them",
    ),
    "NumPy": (
        changed(training=lambda x, w, b, m, v, eps: x.detach().numpy()),
        "a tensor of the shape of x",
    ),
    "evaluation without scale": (
        changed(evaluation=lambda x, w, b, m, v, eps: (x - m) / (v + eps).sqrt()),
        "In evaluation: (x - running_mean)",
    ),
    "evaluation without eps": (
        changed(evaluation=lambda x, w, b, m, v, eps: (x - m) / v.sqrt() * w + b),
        "In evaluation: (x - running_mean)",
    ),
    "evaluation takes the batch's mean": (
        changed(
            evaluation=lambda x, w, b, m, v, eps: (
                (x - x.mean(0)) / (v + eps).sqrt() * w + b
            )
        ),
        "not the batch",
    ),
    "evaluation by the unbiased running variance": (
        changed(
            evaluation=lambda x, w, b, m, v, eps: (
                (x - m) / (v * len(x) / (len(x) - 1 + (len(x) == 1)) + eps).sqrt() * w + b
            )
        ),
        "changed with the other rows",
    ),
}


@pytest.mark.parametrize("name", WRONG_LAYERS)
def test_batch_norm_rejects(name):
    rejects(LAYER, *WRONG_LAYERS[name])


# --------------------------------------------------------------------------- fold


def with_numpy(layer, norm):
    scale = 1 / np.sqrt(norm.running_var.numpy() + norm.eps)
    shift = -norm.running_mean.numpy() * scale
    if norm.weight is not None:
        weight = norm.weight.detach().numpy()
        scale, shift = scale * weight, shift * weight + norm.bias.detach().numpy()
    if layer.bias is not None:
        shift = shift + layer.bias.detach().numpy() * scale
    folded = copy.deepcopy(layer)
    turned = np.moveaxis(layer.weight.detach().numpy(), 0, -1) * scale
    folded.weight.data = torch.from_numpy(np.moveaxis(turned, -1, 0).copy())
    folded.bias = nn.Parameter(torch.from_numpy(shift))
    return folded


def in_float32(layer, norm):
    layer, norm = copy.deepcopy(layer).float(), copy.deepcopy(norm).float()
    return FOLD.solve(layer, norm)


def by_asking_the_norm(layer, norm):
    """What does the norm make of zero, and of one?"""
    shape = (1, norm.num_features) + (1, 1) * (layer.weight.ndim > 2)
    with torch.no_grad():
        at_zero = norm(torch.zeros(shape).double()).flatten()
        slope = norm(torch.ones(shape).double()).flatten() - at_zero
        weight = torch.einsum("o...,o->o...", layer.weight, slope)
        bias = 0 if layer.bias is None else layer.bias
    if isinstance(layer, nn.Linear):
        folded = nn.Linear(layer.in_features, layer.out_features)
    else:
        folded = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride,
            layer.padding, layer.dilation, layer.groups, True, layer.padding_mode,
        )  # fmt: skip
    folded.double().load_state_dict({"weight": weight, "bias": bias * slope + at_zero})
    return folded


def of_the_package(layer, norm):
    return bn.fold_batch_norm(layer, norm)


def of_torch(layer, norm):
    if isinstance(layer, nn.Conv2d):
        return torch.nn.utils.fusion.fuse_conv_bn_eval(layer, norm)
    norm = copy.deepcopy(norm)
    if norm.weight is None:
        norm.weight = nn.Parameter(torch.ones_like(norm.running_var))
        norm.bias = nn.Parameter(torch.zeros_like(norm.running_var))
    return torch.nn.utils.fusion.fuse_linear_bn_eval(layer, norm)


@pytest.mark.parametrize(
    "answer",
    [with_numpy, by_asking_the_norm, of_the_package, of_torch],
    ids=lambda answer: answer.__name__,
)
def test_fold_accepts(answer):
    accepts(FOLD, answer)


def after(change):
    """Return the solution with something done to what came in, or to the result."""

    def answer(layer, norm):
        folded = FOLD.solve(layer, norm)
        found = change(layer, norm, folded)
        return folded if found is None else found

    return answer


def shift_times(factor):
    def answer(layer, norm):
        folded = FOLD.solve(layer, norm)
        folded.bias.data.mul_(factor)
        return folded

    return answer


def other_way_round(layer, norm):
    folded = FOLD.solve(layer, norm)
    if isinstance(layer, nn.Linear):
        turned = nn.Linear(layer.out_features, layer.in_features).double()
        turned.weight.data, turned.bias.data = folded.weight.data, folded.bias.data
        return turned
    return folded


def needs_a_bias(layer, norm):
    scale = (norm.running_var + norm.eps).rsqrt() * norm.weight
    folded = copy.deepcopy(layer)
    with torch.no_grad():
        folded.weight.mul_(scale.view(-1, *(1,) * (layer.weight.ndim - 1)))
        folded.bias.sub_(norm.running_mean).mul_(scale).add_(norm.bias)
    return folded


def for_linear_only(layer, norm):
    if isinstance(layer, nn.Conv2d):
        layer = copy.deepcopy(layer)
    return FOLD.solve(layer, norm) if isinstance(layer, nn.Linear) else layer


def forgets_the_stride(layer, norm):
    folded = FOLD.solve(layer, norm)
    if isinstance(layer, nn.Conv2d):
        folded.stride = (1, 1)
    return folded


@torch.no_grad()
def in_place_of_the_layer(layer, norm):
    folded = FOLD.solve(layer, norm)
    layer.weight.copy_(folded.weight)
    if layer.bias is not None:
        layer.bias.copy_(folded.bias)
    return layer


WRONG_FOLDS = {
    "the weights on their side": (other_way_round, "in_features=3"),
    "needs a bias": (needs_a_bias, "NoneType"),
    "convolutions left alone": (for_linear_only, "wrong for a Conv2d"),
    "the stride is lost": (forgets_the_stride, "wrong for a Conv2d"),
    "into the layer itself": (in_place_of_the_layer, "Build a new layer"),
    "empties the norm": (
        after(lambda layer, norm, folded: norm.reset_running_stats()),
        "what came in has changed",
    ),
    "the weights alone": (
        after(lambda layer, norm, folded: folded.weight.data),
        "not Tensor",
    ),
    "a pair of tensors": (
        after(lambda layer, norm, folded: (folded.weight, folded.bias)),
        "not tuple",
    ),
    "the layer as it was": (
        after(lambda layer, norm, folded: copy.deepcopy(layer)),
        "write down what it does to one output",
    ),
    "the shift twice": (shift_times(2.0), "write down"),
    "in float32": (in_float32, "the one that came in"),
    "a bias of zero": (shift_times(0.0), "write down"),
}


@pytest.mark.parametrize("name", WRONG_FOLDS)
def test_fold_rejects(name):
    rejects(FOLD, *WRONG_FOLDS[name])


# --------------------------------------------------------------------------- merged


def with_numpy_average(means, variances, counts):
    means, variances = np.array(means), np.array(variances)
    mean = np.average(means, weights=counts)
    return np.array([mean, np.average(variances + (means - mean) ** 2, weights=counts)])


def with_tensors(means, variances, counts):
    n, m, v = (torch.tensor(part).double() for part in (counts, means, variances))
    mean = (n * m).sum() / n.sum()
    return torch.stack([mean, (n * (v + m**2)).sum() / n.sum() - mean**2])


def one_after_the_other(means, variances, counts):
    total, mean, square = 0, 0.0, 0.0
    while counts:
        n, m, v = counts.pop(), means.pop(), variances.pop()
        gap = m - mean
        square += n * v + gap**2 * n * total / (total + n)
        total += n
        mean += gap * n / total
    return [mean, square / total]


def by_rows_that_have_these_statistics(means, variances, counts):
    rows = []
    for n, m, v in zip(counts, means, variances, strict=True):
        rows += [m + v**0.5, m - v**0.5] * n
    return statistics.fmean(rows), statistics.pvariance(rows)


def in_float32_and_0d(means, variances, counts):
    mean, variance = MERGED.solve(means, variances, counts)
    return torch.tensor(mean), np.float32(variance)


@pytest.mark.parametrize(
    "answer",
    [
        with_numpy_average,
        with_tensors,
        one_after_the_other,
        by_rows_that_have_these_statistics,
        in_float32_and_0d,
    ],
    ids=lambda answer: answer.__name__,
)
def test_merged_accepts(answer):
    accepts(MERGED, answer)


def solved(change):
    return lambda m, v, n: change(*MERGED.solve(m, v, n), m, v, n)


WRONG_MERGES = {
    "the mean alone": (solved(lambda mean, var, m, v, n: mean), "Return two numbers"),
    "nothing": (lambda m, v, n: None, "Return two numbers"),
    "three numbers": (
        solved(lambda mean, var, m, v, n: (mean, var, sum(n))),
        "Return two numbers",
    ),
    "the other way round": (
        solved(lambda mean, var, m, v, n: (var, mean)),
        "return the mean first",
    ),
    "the shown case": (lambda m, v, n: (4.0, 8.67), "the mean of all rows is"),
    "the first share": (lambda m, v, n: (m[0], v[0]), "the mean of all rows is"),
    "equal shares": (
        lambda m, v, n: (np.mean(m), np.mean(v) + np.var(m)),
        "a larger share counts more",
    ),
    "pooled, as in a t test": (
        solved(
            lambda mean, var, m, v, n: (
                mean,
                sum(k * x for k, x in zip(n, v, strict=True)) / (sum(n) - len(n)),
            )
        ),
        "from the mean of ALL rows",
    ),
    "the spread of the means twice": (
        solved(
            lambda mean, var, m, v, n: (mean, 2 * var - np.average(v, weights=n)),
        ),
        "from the mean of ALL rows",
    ),
    "distances from the mean of means": (
        solved(
            lambda mean, var, m, v, n: (mean, var + (mean - np.mean(m)) ** 2),
        ),
        "from the mean of ALL rows",
    ),
    "weights squared, as for the error of a mean": (
        solved(
            lambda mean, var, m, v, n: (
                mean,
                sum((k / sum(n)) ** 2 * x for k, x in zip(n, v, strict=True)),
            )
        ),
        "from the mean of ALL rows",
    ),
    "not a number": (
        solved(lambda mean, var, m, v, n: (mean, float("nan"))),
        "you said nan",
    ),
}


@pytest.mark.parametrize("name", WRONG_MERGES)
def test_merged_rejects(name):
    rejects(MERGED, *WRONG_MERGES[name])


# --------------------------------------------------------------------------- gradient


def gradient_with_numpy(x, grad, eps):
    x, g = x.numpy(), grad.numpy()
    n, std = len(x), (x.var(0) + eps) ** 0.5
    y = (x - x.mean(0)) / std
    return (n * g - g.sum(0) - y * (g * y).sum(0)) / (n * std)


def gradient_by_loops(x, grad, eps):
    columns = []
    for values, slopes in zip(x.T.tolist(), grad.T.tolist(), strict=True):
        n = len(values)
        mean = sum(values) / n
        std = (sum((v - mean) ** 2 for v in values) / n + eps) ** 0.5
        y = [(v - mean) / std for v in values]
        along = sum(g * z for g, z in zip(slopes, y, strict=True)) / n
        level = sum(slopes) / n
        columns.append(
            [(g - level - z * along) / std for g, z in zip(slopes, y, strict=True)]
        )
    return [list(row) for row in zip(*columns, strict=True)]


def gradient_by_the_jacobian(x, grad, eps):
    n, columns = len(x), []
    for c in range(x.shape[1]):
        std = torch.sqrt(x[:, c].var(correction=0) + eps)
        y = (x[:, c] - x[:, c].mean()) / std
        jacobian = (torch.eye(n) - 1 / n - torch.outer(y, y) / n) / std
        columns.append(jacobian.T @ grad[:, c])
    return torch.stack(columns, dim=1)


def gradient_through_mean_and_variance(x, grad, eps):
    n = len(x)
    centered = x - x.mean(0)
    std = (centered.pow(2).mean(0) + eps).sqrt()
    grad_var = (grad * centered * -0.5 / std**3).sum(0)
    grad_mean = -(grad / std).sum(0) - 2 * grad_var * centered.mean(0)
    return grad / std + grad_var * 2 * centered / n + grad_mean / n


def gradient_by_differences(x, grad, eps):
    def loss(x):
        y = (x - x.mean(0)) / (x.var(0, correction=0) + eps).sqrt()
        return (y * grad).sum()

    found = torch.zeros_like(x)
    for index in np.ndindex(*x.shape):
        step = torch.zeros_like(x)
        step[index] = 1e-5
        found[index] = (loss(x + step) - loss(x - step)) / 2e-5
    return found


@pytest.mark.parametrize(
    "answer",
    [
        gradient_with_numpy,
        gradient_by_loops,
        gradient_by_the_jacobian,
        gradient_through_mean_and_variance,
        gradient_by_differences,
    ],
    ids=lambda answer: answer.__name__,
)
def test_gradient_accepts(answer):
    accepts(GRADIENT, answer)


def through_autograd(x, grad, eps):
    x = x.requires_grad_()
    y = (x - x.mean(0)) / (x.var(0, correction=0) + eps).sqrt()
    return torch.autograd.grad(y, x, grad)[0]


def through_backward(x, grad, eps):
    x = x.requires_grad_()
    ((x - x.mean(0)) / (x.var(0, correction=0) + eps).sqrt()).backward(grad)
    return x.grad


def through_torch(x, grad, eps):
    return F.batch_norm(x, None, None, training=True, eps=eps)


def solve_gradient(x, grad, eps):
    return GRADIENT.solve(x, grad, eps)


WRONG_GRADIENTS = {
    "autograd": (through_autograd, "without autograd"),
    "backward": (through_backward, "without autograd"),
    "torch's batch norm": (through_torch, "without torch's batch_norm"),
    "zero": (lambda x, grad, eps: 0.0, "x's shape"),
    "the gradient that came in": (lambda x, grad, eps: grad, "Not the gradient"),
    "without eps": (
        lambda x, grad, eps: solve_gradient(x, grad, 0.0),
        "Not the gradient",
    ),
    "over the columns": (
        lambda x, grad, eps: solve_gradient(x.T, grad.T, eps).T,
        "Not the gradient",
    ),
    "the unbiased variance": (
        lambda x, grad, eps: solve_gradient(
            x, grad, eps + (x.var(0) - x.var(0, correction=0))
        ),
        "Not the gradient",
    ),
    "the sign": (
        lambda x, grad, eps: -solve_gradient(x, grad, eps),
        "Not the gradient",
    ),
    "the mean of the rows": (
        lambda x, grad, eps: solve_gradient(x, grad, eps).mean(0),
        "x's shape",
    ),
    "divided by the variance": (
        lambda x, grad, eps: (
            solve_gradient(x, grad, eps) / (x.var(0, correction=0) + eps).sqrt()
        ),
        "Not the gradient",
    ),
    "the shown shape only": (
        lambda x, grad, eps: solve_gradient(x[:4, :3], grad[:4, :3], eps),
        "x's shape",
    ),
}


@pytest.mark.parametrize("name", WRONG_GRADIENTS)
def test_gradient_rejects(name):
    rejects(GRADIENT, *WRONG_GRADIENTS[name])
