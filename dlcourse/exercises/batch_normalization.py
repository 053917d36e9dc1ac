"""Exercises of chapter 7, batch normalization: questions, checks, solutions, usual mistakes.

A check knows a mistake by making it: it runs the usual wrong answers on the same inputs,
and where the reader's result is that of one of them, the hint says so.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dlcourse.lab.exercises import Exercise, Hint, Wrong, expect


def _close(a: Tensor, b: Tensor, tol: float = 1e-6) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=tol, atol=tol)


def _draw(*shape: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


class _ByHand(TorchFunctionMode):
    """Refuse the calls that would be the whole answer."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        expect(
            not name.endswith("batch_norm"), f"Write it yourself, without torch's {name}."
        )
        expect(
            name not in ("grad", "backward"), "Write the formula down, without autograd."
        )
        return func(*args, **(kwargs or {}))


# --------------------------------------------------------------------------- Your turn

CASES = (  # rows, columns, momentum, eps
    (5, 3, 0.2, 0.1),
    (2, 4, 0.1, 1e-3),
    (16, 1, 0.35, 0.01),
    (3, 2, 1.0, 0.5),
)


class _Call:
    """The arguments of one call in training, and of one in evaluation after it."""

    def __init__(self, number: int):
        rows, columns, self.momentum, self.eps = CASES[number]
        seed = 100 * number
        self.x = 2 * _draw(rows, columns, seed=seed) + _draw(columns, seed=seed + 1)
        self.later = 3 * _draw(4, columns, seed=seed + 2) + 1
        self.weight = _draw(columns, seed=seed + 3) + 2
        self.bias = _draw(columns, seed=seed + 4)
        self.mean = 3 * _draw(columns, seed=seed + 5)
        self.var = _draw(columns, seed=seed + 6).square() + 0.3
        self.upstream = _draw(rows, columns, seed=seed + 7)

    def train(self, answer: Callable) -> dict:
        """Return what a training call gives, changes and hands back."""
        leaves = [t.clone().requires_grad_() for t in (self.x, self.weight, self.bias)]
        running = self.mean.clone(), self.var.clone()
        with _ByHand():
            y = answer(*leaves, *running, True, self.momentum, self.eps)
        expect(isinstance(y, Tensor), "Return the output, a tensor of the shape of x.")
        expect(
            y.shape == self.x.shape,
            f"The output has shape {tuple(y.shape)}, x has {tuple(self.x.shape)}.",
        )
        expect(
            not (running[0].requires_grad or running[1].requires_grad),
            "The running statistics have become part of the graph: update them under "
            "torch.no_grad().",
        )
        expect(y.requires_grad, "The output must carry a gradient: keep x in the graph.")
        given = self.x, self.weight, self.bias
        expect(
            all(torch.equal(a.detach(), b) for a, b in zip(leaves, given, strict=True)),
            "Your function changed x, weight or bias: make new tensors.",
        )
        grads = torch.autograd.grad(y, leaves, self.upstream, allow_unused=True)
        return {"y": y.detach(), "mean": running[0], "var": running[1], "grads": grads}

    def evaluate(self, answer: Callable, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output of an evaluation call, and the running statistics after it."""
        mean, var = self.mean.clone(), self.var.clone()
        settings = False, self.momentum, self.eps
        with _ByHand():
            y = answer(rows.clone(), self.weight, self.bias, mean, var, *settings)
        expect(
            isinstance(y, Tensor) and y.shape == rows.shape,
            "In evaluation, too, return a tensor of the shape of x.",
        )
        return y.detach(), mean, var


def _check_layer(answer: Callable) -> None:
    for number in range(len(CASES)):
        call = _Call(number)
        _check_training(call, call.train(answer), call.train(_solve_layer))
    for number in range(len(CASES)):
        _check_evaluation(_Call(number), answer)


def _check_training(call: _Call, found: dict, wanted: dict) -> None:
    for mistake, hint in OUTPUT_MISTAKES.items():
        made = call.train(mistake)["y"]
        expect(not _close(found["y"], made) or _close(made, wanted["y"]), hint)
    expect(
        _close(found["y"], wanted["y"]),
        f"The output of a training batch of {len(call.x)} rows is wrong: take off the batch's "
        "mean, divide by sqrt(var + eps), then times weight, plus bias.",
    )
    momentum = call.momentum
    expect(
        not _close(found["mean"], call.mean) and not _close(found["var"], call.var),
        "After a training batch running_mean and running_var must have changed, in place: "
        "write into the tensors that came in.",
    )
    for name in ("mean", "var"):
        new = (wanted[name] - (1 - momentum) * getattr(call, name)) / momentum
        swapped = momentum * getattr(call, name) + (1 - momentum) * new
        expect(
            not _close(found[name], swapped) or _close(swapped, wanted[name]),
            "In PyTorch momentum is the weight of the new value: 0.1 keeps nine tenths of the "
            "old one.",
        )
    expect(
        _close(found["mean"], wanted["mean"]),
        "running_mean is wrong: it becomes (1 - momentum) * old + momentum * the batch's mean.",
    )
    biased = call.train(_layer_with(running_correction=0))["var"]
    expect(
        not _close(found["var"], biased),
        "The running variance takes the unbiased variance, divided by N - 1: it is an estimate "
        "for data to come.",
    )
    expect(
        _close(found["var"], wanted["var"]),
        "running_var is wrong: it becomes (1 - momentum) * old + momentum * the batch's unbiased "
        "variance.",
    )
    for name, got, right in zip(
        ("x", "weight", "bias"), found["grads"], wanted["grads"], strict=True
    ):
        if got is not None and _close(got, right):
            continue
        expect(
            name == "x",
            f"The output is right, and no gradient, or a wrong one, reaches {name}: it is "
            "learned, so keep it in the graph.",
        )
        raise Hint(
            "The output is right and its gradient is not: mean and variance depend on x, so do "
            "not detach them."
        )


def _check_evaluation(call: _Call, answer: Callable) -> None:
    x = call.later
    got, mean, var = call.evaluate(answer, x)
    expect(
        torch.equal(mean, call.mean) and torch.equal(var, call.var),
        "Evaluation must leave the running statistics alone.",
    )
    expect(
        not _close(got, x) and not _close(got, x * call.weight + call.bias),
        "In evaluation the input is standardised too, by the running statistics.",
    )
    mates = torch.cat([x[:1], 10 * _draw(3, x.shape[1], seed=3)])
    among_others, alone = call.evaluate(answer, mates)[0], call.evaluate(answer, x[:1])[0]
    expect(
        _close(got[:1], among_others[:1]) and _close(got[:1], alone),
        "In evaluation a row's output changed with the other rows: evaluation uses the running "
        "statistics, not the batch.",
    )
    expect(
        _close(got, call.evaluate(_solve_layer, x)[0]),
        "In evaluation: (x - running_mean) / sqrt(running_var + eps), then times weight, plus "
        "bias.",
    )


def _solve_layer(x, weight, bias, running_mean, running_var, training, momentum, eps):
    if training:
        mean, var = x.mean(0), x.var(0, correction=0)
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(x.var(0), momentum)
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps).sqrt() * weight + bias


def _layer_with(
    correction=0, running_correction=1, swap=False, always_batch=False, skip_evaluation=False,
    detach=False, eps_outside=False, update_always=False, never_updates=False,
):  # fmt: skip
    """Return a batch norm with one mistake."""

    def layer(x, weight, bias, running_mean, running_var, training, momentum, eps):
        if not training and skip_evaluation:
            return x
        mean, var = running_mean, running_var
        if training or always_batch:
            mean, var = x.mean(0), x.var(0, correction=correction)
            mean, var = (mean.detach(), var.detach()) if detach else (mean, var)
        if (training or update_always) and not never_updates:
            with torch.no_grad():
                new = 1 - momentum if swap else momentum
                running_mean.lerp_(x.mean(0), new)
                running_var.lerp_(x.var(0, correction=running_correction), new)
        std = var.sqrt() + eps if eps_outside else (var + eps).sqrt()
        return (x - mean) / std * weight + bias

    return layer


def _layer_over_rows(x, weight, bias, running_mean, running_var, training, momentum, eps):
    center = x - x.mean(1, keepdim=True)
    std = (x.var(1, correction=0, keepdim=True) + eps).sqrt()
    return center / std * weight + bias


def _layer_over_all(x, weight, bias, running_mean, running_var, training, momentum, eps):
    return (x - x.mean()) / (x.var(correction=0) + eps).sqrt() * weight + bias


def _layer_without_root(x, weight, bias, *rest):
    return (x - x.mean(0)) / (x.var(0, correction=0) + rest[-1]) * weight + bias


def _layer_by_running(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    return (x - running_mean) / (running_var + eps).sqrt() * weight + bias


def _layer_without_affine(x, weight, bias, *rest):
    y = (x - x.mean(0)) / (x.var(0, correction=0) + rest[-1]).sqrt()
    return y + 0 * (weight + bias)


OUTPUT_MISTAKES = {
    _layer_with(
        correction=1
    ): "In training the output uses the biased variance of the batch, divided by N.",
    _layer_with(
        eps_outside=True
    ): "eps belongs under the square root, with the variance.",
    _layer_over_rows: "You standardised each row, which is layer norm. Batch norm takes each "
    "column over the rows.",
    _layer_over_all: "You took one mean over the whole batch. Each column has its own.",
    _layer_without_root: "You divided by the variance: take its square root.",
    _layer_by_running: "In training the batch's own mean and variance standardise, not the "
    "running ones.",
    _layer_without_affine: "weight and bias are missing: times weight, plus bias.",
}


# --------------------------------------------------------------------------- folding


def _pair(
    kind: str, seed: int = 0, bias: bool = True, affine: bool = True, mode: Any = "zeros"
):
    """Return a layer and its batch norm in evaluation mode, all numbers different."""
    layer: nn.Module
    if kind == "linear":
        layer, outputs = nn.Linear(4, 4, bias=bias), 4
    elif kind == "narrow":
        layer, outputs = nn.Linear(4, 3, bias=bias), 3
    else:
        layer, outputs = nn.Conv2d(4, 6, 3, 2, 1, 1, 2, bias, mode), 6
    norm_kind = nn.BatchNorm2d if kind == "conv" else nn.BatchNorm1d
    norm: Any = norm_kind(outputs, 0.1, affine=affine)
    layer, norm = layer.double().eval(), norm.double().eval()
    with torch.no_grad():
        for number, tensor in enumerate((*layer.parameters(), *norm.parameters())):
            tensor.copy_(_draw(*tensor.shape, seed=seed + number))
        norm.running_mean.copy_(_draw(outputs, seed=seed + 10))
        norm.running_var.copy_(_draw(outputs, seed=seed + 11).square() + 0.2)
    return layer, norm


def _inputs(kind: str, seed: int = 20) -> Tensor:
    return _draw(6, 4, 5, 5, seed=seed) if kind == "conv" else _draw(6, 4, seed=seed)


FOLDS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("linear", {}, "the first pair"),
    ("linear", {"seed": 50}, "another Linear"),
    ("narrow", {}, "a layer with more inputs than outputs"),
    ("linear", {"bias": False}, "a layer built with bias=False"),
    ("linear", {"affine": False}, "a norm built with affine=False"),
    ("conv", {}, "a Conv2d with stride 2, padding 1 and 2 groups"),
    ("conv", {"bias": False}, "a Conv2d built with bias=False"),
    ("conv", {"mode": "reflect"}, "a Conv2d built with padding_mode='reflect'"),
)


def _check_fold(answer: Callable) -> None:
    for kind, settings, what in FOLDS:
        layer, norm = _pair(kind, **settings)
        given = nn.Sequential(layer, norm)
        before = copy.deepcopy(given.state_dict())
        folded = answer(layer, norm)
        expect(
            isinstance(folded, type(layer)),
            f"For {what}: return one nn.{type(layer).__name__}, not {type(folded).__name__}. In "
            "evaluation batch norm is a scale and a shift for each output, which the weights "
            "and the bias can hold. It then costs nothing.",
        )
        after = given.state_dict()
        same = all(torch.equal(before[name], after[name]) for name in before)
        expect(
            folded is not layer and same, "Build a new layer: what came in has changed."
        )
        layer, norm = _pair(kind, **settings)  # as they came in
        x = _inputs(kind)
        with torch.no_grad():
            right = norm(layer(x))
            _check_folded(folded, kind, settings, what, x, right)


def _check_folded(folded, kind, settings, what, x, right) -> None:
    layer, _ = _pair(kind, **settings)
    expect(
        folded.weight.shape == layer.weight.shape,
        f"For {what}: the new weight has shape {tuple(folded.weight.shape)}; it must be that of "
        "the layer that came in.",
    )
    expect(
        folded.weight.dtype == layer.weight.dtype,
        f"For {what}: the new weight is {folded.weight.dtype}, the one that came in "
        f"{layer.weight.dtype}.",
    )
    sizes = [getattr(one, "in_features", 0) for one in (folded, layer)]
    expect(
        sizes[0] == sizes[1],
        f"For {what}: the new layer says in_features={sizes[0]}, and the one that came in has "
        f"{sizes[1]}.",
    )
    got = copy.deepcopy(folded).double().eval()(x)
    if _close(got, right, 1e-5):
        return
    for mistake, hint in FOLD_MISTAKES.items():
        try:
            made = mistake(*_pair(kind, **settings))(x)
        except (RuntimeError, TypeError, AttributeError):
            continue  # this mistake is none for such a pair
        expect(not _close(got, made, 1e-5) or _close(made, right, 1e-5), hint)
    first = kind == "linear" and not settings
    expect(
        first,
        f"It is right for other pairs, and wrong for {what}.",
    )
    raise Hint(
        "The outputs differ from bn(layer(x)). Use the running statistics that bn holds, and "
        "write down what it does to one output: (z - mean) / sqrt(var + eps) * weight + bias."
    )


def _solve_fold(layer, bn):
    scale = (bn.running_var + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight
    shift = -bn.running_mean * scale
    if bn.bias is not None:
        shift = shift + bn.bias
    if layer.bias is not None:
        shift = shift + layer.bias * scale

    folded = copy.deepcopy(layer)
    one_an_output = (-1,) + (1,) * (layer.weight.ndim - 1)
    folded.weight = nn.Parameter((layer.weight * scale.view(one_an_output)).detach())
    folded.bias = nn.Parameter(shift.detach())
    return folded


def _fold_with(eps=True, bias=True, scaled_bias=True, columns=False, mean=True, norm_bias=True,
               norm_weight=True, root=True):  # fmt: skip
    """Return a folding with one mistake."""

    def fold(layer, bn):
        scale = bn.running_var + (bn.eps if eps else 0)
        scale = scale.rsqrt() if root else 1 / scale
        if norm_weight and bn.weight is not None:
            scale = scale * bn.weight
        folded = _solve_fold(layer, bn)
        tail = (1,) * (layer.weight.ndim - 1)
        with torch.no_grad():
            column = (1, -1) + tail[1:] if columns else (-1, *tail)
            folded.weight.copy_(layer.weight * scale.view(column))
            shift = -bn.running_mean * scale * mean
            if norm_bias and bn.bias is not None:
                shift = shift + bn.bias
            if bias and layer.bias is not None:
                shift = shift + layer.bias * (scale if scaled_bias else 1)
            folded.bias.copy_(shift)
        return folded

    return fold


def _fold_nothing(layer, bn):
    return nn.Sequential(layer, bn)


def _fold_in_place(layer, bn):
    folded = _solve_fold(layer, bn)
    layer.weight, layer.bias = folded.weight, folded.bias
    return layer


def _fold_batch_statistics(layer, bn):
    shape = (64, 4, 5, 5) if layer.weight.ndim > 2 else (64, layer.in_features)
    twin = copy.deepcopy(bn).train()
    twin.momentum = 1.0
    twin(layer(_draw(*shape, seed=30)))
    return _solve_fold(layer, twin)


FOLD_MISTAKES = {
    _fold_with(
        eps=False
    ): "You left out eps, or took another one: bn.eps joins the variance before the square root.",
    _fold_with(
        bias=False
    ): "You lost the bias of the layer: it passes through the norm, too.",
    _fold_with(
        scaled_bias=False
    ): "You kept the bias of the layer as it was. It passes through "
    "the norm, too, so scale it.",
    _fold_with(mean=False): "You lost the running mean.",
    _fold_with(norm_bias=False): "You lost the bias of the norm.",
    _fold_with(norm_weight=False): "You lost the weight of the norm.",
    _fold_with(root=False): "You divided by the variance: take its square root.",
    _fold_with(
        columns=True
    ): "Scale the rows of the weight, one for each output, not its columns.",
}


# --------------------------------------------------------------------------- several shares


def _shares(seed: int, sizes: tuple[int, ...], spread: float):
    """Return the means, biased variances and sizes of shares, and those of all rows."""
    rows = _draw(sum(sizes), seed=seed)
    parts = list(rows.split(list(sizes)))
    for number, part in enumerate(parts):
        parts[number] = part * (1 + number / 2) + spread * number
    whole = torch.cat(parts)
    means = [part.mean().item() for part in parts]
    variances = [part.var(correction=0).item() for part in parts]
    right = whole.mean().item(), whole.var(correction=0).item()
    return means, variances, list(sizes), right


SHARES = (
    (0, (4, 4), 1.0),
    (1, (6, 2), 3.0),
    (2, (1, 5, 2), 2.0),
    (3, (3, 9, 1, 7), 0.5),
    (4, (5,), 1.0),
)


def _number(value) -> float:
    return float(value.reshape(()) if hasattr(value, "reshape") else value)


def _two(returned: Any) -> list:
    """Return the two entries of a tuple, list, array or tensor."""
    try:
        parts = list(returned)
    except TypeError:  # a number
        parts = []
    expect(
        len(parts) == 2 and not isinstance(returned, dict),
        "Return two numbers: the mean and the biased variance of all rows.",
    )
    return parts


def _check_merged(answer: Callable) -> None:
    for seed, sizes, spread in SHARES:
        means, variances, counts, right = _shares(seed, sizes, spread)
        parts = _two(answer(list(means), list(variances), list(counts)))
        found = _number(parts[0]), _number(parts[1])
        if all(
            math.isclose(a, b, rel_tol=1e-4) for a, b in zip(found, right, strict=True)
        ):
            continue
        case = f"for shares of {counts} rows with means {_shown(means)}"
        expect(
            not math.isclose(found[0], right[1], rel_tol=1e-4),
            f"{case} your first number is the variance of all rows: return the mean first.",
        )
        why = ": a larger share counts more." if len(set(counts)) > 1 else "."
        expect(
            math.isclose(found[0], right[0], rel_tol=1e-4),
            f"{case} the mean of all rows is {right[0]:.3f}, and you said {found[0]:.3f}{why}",
        )
        for mistake, hint in MERGE_MISTAKES.items():
            made = mistake(means, variances, counts)[1]
            expect(not math.isclose(found[1], made, rel_tol=1e-4), hint)
        raise Hint(
            f"{case} and variances {_shown(variances)} the variance of all rows is "
            f"{right[1]:.3f}, and you said {found[1]:.3f}. It is the mean of the squared "
            "distances from the mean of ALL rows."
        )


def _shown(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:.2f}" for value in values) + "]"


def _solve_merged(means, variances, counts):
    total = sum(counts)
    mean = sum(n * m for n, m in zip(counts, means, strict=True)) / total
    variance = 0.0
    for n, m, v in zip(counts, means, variances, strict=True):
        variance += n * (v + (m - mean) ** 2) / total
    return mean, variance


def _mean_of_variances(means, variances, counts):
    mean, _ = _solve_merged(means, variances, counts)
    weighted = sum(n * v for n, v in zip(counts, variances, strict=True))
    return mean, weighted / sum(counts)


def _plain_means(means, variances, counts):
    return sum(means) / len(means), sum(variances) / len(variances)


def _unbiased(means, variances, counts):
    mean, variance = _solve_merged(means, variances, counts)
    return mean, variance * sum(counts) / (sum(counts) - 1)


def _deviation(means, variances, counts):
    mean, variance = _solve_merged(means, variances, counts)
    return mean, variance**0.5


def _mean_square(means, variances, counts):
    mean, variance = _solve_merged(means, variances, counts)
    return mean, variance + mean**2


def _spread_of_means_alone(means, variances, counts):
    mean, _ = _solve_merged(means, variances, counts)
    pairs = zip(counts, means, strict=True)
    return mean, sum(n * (m - mean) ** 2 for n, m in pairs) / sum(counts)


def _plain_mean_of_variances(means, variances, counts):
    mean, _ = _solve_merged(means, variances, counts)
    return mean, sum(variances) / len(variances)


MERGE_MISTAKES = {
    _mean_of_variances: "You averaged the variances. That misses how far the means of the shares "
    "lie from each other: naive averaging makes the variance too small.",
    _plain_mean_of_variances: "You averaged the variances, each share alike. A larger share "
    "counts more, and how far the means of the shares lie apart belongs to it, too.",
    _unbiased: "Return the biased variance, divided by the number of rows.",
    _deviation: "Return the variance, not its square root.",
    _mean_square: "This is the mean of the squares: take off the square of the mean.",
    _spread_of_means_alone: "This is how far the means of the shares lie apart. The variance "
    "within each share belongs to it, too.",
}


# --------------------------------------------------------------------------- the gradient


def _check_gradient(answer: Callable) -> None:
    for rows, columns, eps, seed in ((4, 3, 0.1, 0), (7, 2, 0.01, 5), (2, 5, 0.5, 9)):
        x = 1.5 * _draw(rows, columns, seed=seed) + 2
        grad = _draw(rows, columns, seed=seed + 1)
        with _ByHand():
            got = answer(x.clone(), grad.clone(), eps)
        got = torch.as_tensor(got)
        expect(got.shape == x.shape, "Return a tensor of x's shape.")
        got = got.detach().double()
        right = _solve_gradient(x, grad, eps)
        for mistake, hint in GRADIENT_MISTAKES.items():
            made = mistake(x, grad, eps)
            expect(not _close(got, made) or _close(made, right), hint)
        expect(
            _close(got, right),
            "Not the gradient. Write y = (x - mean) / sqrt(var + eps) and follow x on its three "
            "ways to y: by itself, through the mean, and through the variance.",
        )


def _solve_gradient(x, grad, eps):
    rstd = (x.var(0, correction=0) + eps).rsqrt()
    y = (x - x.mean(0)) * rstd
    return (grad - grad.mean(0) - (grad * y).mean(0) * y) * rstd


def _gradient_with(mean=True, var=True, sums=False, scale=True):
    """Return a backward pass with one mistake."""

    def gradient(x, grad, eps):
        rstd = (x.var(0, correction=0) + eps).rsqrt()
        y = (x - x.mean(0)) * rstd
        average = torch.sum if sums else torch.mean
        change = grad
        if mean:
            change = change - average(grad, 0)
        if var:
            change = change - average(grad * y, 0) * y
        return change * rstd if scale else change

    return gradient


GRADIENT_MISTAKES = {
    _gradient_with(
        mean=False, var=False
    ): "You treated the mean and the variance as constants: both depend on every row.",
    _gradient_with(
        var=False
    ): "The mean's part is there, the variance's is missing or comes to 0: the scale "
    "depends on x too.",
    _gradient_with(mean=False): "The variance's part is there, the mean's is missing.",
    _gradient_with(
        sums=True
    ): "Take means over the rows, not sums: each row has 1/N of the mean.",
    _gradient_with(
        scale=False
    ): "Divide by sqrt(var + eps) at the end: a steeper map has a larger gradient.",
}


EXERCISES = (
    Exercise(
        "Write batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps) for "
        "x of shape (N, C), in tensor operations, so that autograd can follow. With training=True, "
        "standardise each column by the batch's mean and biased variance, eps under the root, then "
        "times weight, plus bias; and update the running statistics in place: momentum is the "
        "weight of the new value, and running_var takes the unbiased variance. With training=False, "
        "standardise by the running statistics, and leave them as they are.",
        _check_layer,
        _solve_layer,
        {
            "evaluation uses the batch": Wrong(
                _layer_with(always_batch=True), "not the batch"
            ),
            "no standardisation at test": Wrong(
                _layer_with(skip_evaluation=True), "standardised too"
            ),
            "unbiased in the output": Wrong(
                _layer_with(correction=1), "biased variance of"
            ),
            "biased in the running variance": Wrong(
                _layer_with(running_correction=0), "takes the unbiased"
            ),
            "momentum weights the old": Wrong(
                _layer_with(swap=True), "weight of the new value"
            ),
            "statistics are constants": Wrong(_layer_with(detach=True), "do not detach"),
            "eps beside the root": Wrong(
                _layer_with(eps_outside=True), "under the square root"
            ),
            "evaluation updates": Wrong(
                _layer_with(update_always=True), "leave the running"
            ),
            "the running statistics never change": Wrong(
                _layer_with(never_updates=True), "must have changed"
            ),
            "layer norm": Wrong(_layer_over_rows, "which is layer norm"),
            "one mean for all": Wrong(_layer_over_all, "Each column has its own"),
            "divides by the variance": Wrong(_layer_without_root, "square root"),
            "trains on the running statistics": Wrong(
                _layer_by_running, "not the running ones"
            ),
            "no scale and shift": Wrong(_layer_without_affine, "are missing"),
        },
    ),
    Exercise(
        "Write fold(layer, bn): one new layer with the outputs of bn(layer(x)), for bn in "
        "evaluation mode. layer is an nn.Linear or an nn.Conv2d, and so must the new one be. "
        "layer.bias may be None, and so may bn.weight and bn.bias. Change neither layer nor bn.",
        _check_fold,
        _solve_fold,
        {
            "batch norm costs at inference": Wrong(_fold_nothing, "one nn.Linear"),
            "forgets eps": Wrong(_fold_with(eps=False), "left out eps"),
            "forgets the bias": Wrong(_fold_with(bias=False), "bias of the layer"),
            "does not scale the bias": Wrong(_fold_with(scaled_bias=False), "scale it"),
            "forgets the mean": Wrong(_fold_with(mean=False), "lost the running mean"),
            "forgets the shift": Wrong(_fold_with(norm_bias=False), "bias of the norm"),
            "forgets the scale": Wrong(
                _fold_with(norm_weight=False), "weight of the norm"
            ),
            "forgets the root": Wrong(_fold_with(root=False), "square root"),
            "scales the columns": Wrong(_fold_with(columns=True), "not its columns"),
            "in place": Wrong(_fold_in_place, "new layer"),
            "batch statistics": Wrong(
                _fold_batch_statistics, "running statistics that bn holds"
            ),
        },
    ),
    Exercise(
        "Synchronised batch norm needs the statistics of all rows, and each process knows only "
        "those of its own. Write merged(means, variances, counts), three lists with an entry for "
        "each process: the mean, the biased variance and the number of its rows, for one channel. "
        "Return (mean, biased variance) of all rows together.",
        _check_merged,
        _solve_merged,
        {
            "average the variances": Wrong(_mean_of_variances, "averaged the variances"),
            "each share alike": Wrong(_plain_means, "averaged the variances"),
            "unbiased": Wrong(_unbiased, "biased variance"),
            "standard deviation": Wrong(_deviation, "not its square root"),
            "mean square": Wrong(_mean_square, "square of the mean"),
            "the means alone": Wrong(_spread_of_means_alone, "within each share"),
        },
    ),
    Exercise(
        "Write gradient(x, grad, eps), without autograd: the gradient with respect to x (N, C), "
        "where grad is that with respect to y = (x - mean) / sqrt(var + eps), with the mean and "
        "the biased variance of each column.",
        _check_gradient,
        _solve_gradient,
        {
            "statistics are constants": Wrong(
                _gradient_with(mean=False, var=False), "constants"
            ),
            "forgets the variance": Wrong(
                _gradient_with(var=False), "the variance's is missing"
            ),
            "forgets the mean": Wrong(
                _gradient_with(mean=False), "the mean's is missing"
            ),
            "sums": Wrong(_gradient_with(sums=True), "not sums"),
            "forgets the scale": Wrong(_gradient_with(scale=False), "at the end"),
        },
    ),
)
