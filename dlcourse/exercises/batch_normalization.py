"""Exercises of chapter 7, batch normalization: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dlcourse.lab.exercises import Exercise, Wrong, expect


def _close(a: Tensor, b: Tensor, tol: float = 1e-6) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=tol)


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


def _check_layer(answer: Callable) -> None:
    x = (2 * _draw(5, 3, seed=0) + torch.tensor([1.0, -3.0, 0.5])).requires_grad_()
    weight, bias = (
        torch.tensor([2.0, 0.5, -1.0]).double(),
        torch.tensor([0.3, 0.0, 1.0]).double(),
    )
    start = (
        torch.tensor([4.0, -2.0, 1.0]).double(),
        torch.tensor([3.0, 0.5, 2.0]).double(),
    )
    mean, var = (tensor.clone() for tensor in start)
    momentum, eps = 0.2, 0.1
    center = x - x.mean(0)
    biased, unbiased = x.var(0, correction=0), x.var(0)

    def affine(y: Tensor) -> Tensor:
        return y * weight + bias

    with _ByHand():
        got = answer(x, weight, bias, mean, var, True, momentum, eps)
    expect(isinstance(got, Tensor), "Return the output, a tensor of the shape of x.")
    expect(
        got.shape == x.shape, f"The output has shape {tuple(got.shape)}, x has (5, 3)."
    )
    expect(
        not _close(got, affine(center / (unbiased + eps).sqrt())),
        "In training the output uses the biased variance of the batch, divided by N.",
    )
    expect(
        not _close(got, affine(center / (biased.sqrt() + eps))),
        "eps belongs under the square root, with the variance.",
    )
    rows = (x - x.mean(1, keepdim=True)) / (
        x.var(1, correction=0, keepdim=True) + eps
    ).sqrt()
    expect(
        not _close(got, affine(rows)),
        "You standardised each row, which is layer norm. Batch norm takes each column over the "
        "rows.",
    )
    right = affine(center / (biased + eps).sqrt())
    expect(
        _close(got, right),
        "In training: take off the batch's mean, divide by sqrt(var + eps), then weight and bias.",
    )
    _check_running(mean, var, start, x.detach().mean(0), biased, unbiased, momentum)

    grad = _draw(5, 3, seed=1)
    (wanted,) = torch.autograd.grad((right * grad).sum(), x)
    expect(got.requires_grad, "The output must carry a gradient: keep x in the graph.")
    (found,) = torch.autograd.grad((got * grad).sum(), x)
    expect(
        _close(found, wanted),
        "The output is right and its gradient is not: mean and variance depend on x, so do not "
        "detach them.",
    )
    _check_evaluation(answer, weight, bias, eps, affine)


def _check_running(mean, var, start, new_mean, biased, unbiased, momentum) -> None:
    expect(
        not (mean.requires_grad or var.requires_grad),
        "The running statistics have become part of the graph: update them under torch.no_grad().",
    )
    expect(
        not _close(mean, start[0]) and not _close(var, start[1]),
        "After a training batch running_mean and running_var must have changed, in place.",
    )
    keep = 1 - momentum
    expect(
        not _close(mean, momentum * start[0] + keep * new_mean),
        "In PyTorch momentum is the weight of the new value: 0.1 keeps nine tenths of the old one.",
    )
    expect(_close(mean, keep * start[0] + momentum * new_mean), "running_mean is wrong.")
    expect(
        not _close(var, keep * start[1] + momentum * biased),
        "The running variance takes the unbiased variance, divided by N - 1: it is an estimate for "
        "data to come.",
    )
    expect(_close(var, keep * start[1] + momentum * unbiased), "running_var is wrong.")


def _check_evaluation(answer, weight, bias, eps, affine) -> None:
    mean, var = (
        torch.tensor([4.0, -2.0, 1.0]).double(),
        torch.tensor([3.0, 0.5, 2.0]).double(),
    )
    x = _draw(4, 3, seed=2)

    def evaluate(rows: Tensor) -> Tensor:
        return answer(rows, weight, bias, mean, var, False, 0.2, eps)

    got = evaluate(x)
    expect(
        mean.tolist() == [4.0, -2.0, 1.0] and var.tolist() == [3.0, 0.5, 2.0],
        "Evaluation must leave the running statistics alone.",
    )
    expect(
        not _close(got, x) and not _close(got, affine(x)),
        "In evaluation the input is standardised too, by the running statistics.",
    )
    mates = torch.cat([x[:1], 10 * _draw(3, 3, seed=3)])
    expect(
        _close(got[:1], evaluate(mates)[:1], 1e-5)
        and _close(got[:1], evaluate(x[:1]), 1e-5),
        "In evaluation a row's output changed with the other rows: evaluation uses the running "
        "statistics, not the batch.",
    )
    wanted = affine((x - mean) / (var + eps).sqrt())
    expect(
        _close(got, wanted),
        "In evaluation: (x - running_mean) / sqrt(running_var + eps).",
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
    detach=False, eps_outside=False, update_always=False,
):  # fmt: skip
    """Return a batch norm with one mistake."""

    def layer(x, weight, bias, running_mean, running_var, training, momentum, eps):
        if not training and skip_evaluation:
            return x
        mean, var = running_mean, running_var
        if training or always_batch:
            mean, var = x.mean(0), x.var(0, correction=correction)
            mean, var = (mean.detach(), var.detach()) if detach else (mean, var)
        if training or update_always:
            with torch.no_grad():
                new = 1 - momentum if swap else momentum
                running_mean.lerp_(x.mean(0), new)
                running_var.lerp_(x.var(0, correction=running_correction), new)
        std = var.sqrt() + eps if eps_outside else (var + eps).sqrt()
        return (x - mean) / std * weight + bias

    return layer


def _layer_over_rows(x, weight, bias, *_):
    return nn.functional.layer_norm(x, x.shape[1:], weight, bias, 0.1)


def _pair(
    bias: bool = True, affine: bool = True, outputs: int = 4
) -> tuple[nn.Linear, nn.BatchNorm1d]:
    """Return a Linear and a batch norm in evaluation mode, with numbers that differ
    everywhere.
    """
    linear, norm = (
        nn.Linear(4, outputs, bias=bias),
        nn.BatchNorm1d(outputs, 0.1, affine=affine),
    )
    linear, norm = linear.double().eval(), norm.double().eval()
    with torch.no_grad():
        for seed, tensor in enumerate((*linear.parameters(), *norm.parameters())):
            tensor.copy_(_draw(*tensor.shape, seed=seed))
        mean, var = _running(norm)
        mean.copy_(_draw(outputs, seed=10))
        var.copy_(_draw(outputs, seed=11).square() + 0.2)
    return linear, norm


def _running(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance; only a norm that tracks nothing has none."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var


def _check_fold(answer: Callable) -> None:
    linear, norm = _pair()
    given = nn.Sequential(linear, norm)
    folded = answer(*given)
    x = _draw(6, 4, seed=20)
    expect(
        isinstance(folded, nn.Linear),
        f"Return one nn.Linear, not {type(folded).__name__}: in evaluation batch norm is a scale "
        "and a shift for each output, which the weights and the bias can hold. It then costs "
        "nothing.",
    )
    linear, norm = _pair()  # as they came in
    mean, var = _running(norm)
    before, after = nn.Sequential(linear, norm).state_dict(), given.state_dict()
    same = all(_close(before[name], after[name]) for name in before)
    expect(
        folded is not given[0] and same, "Build a new layer: what came in has changed."
    )
    with torch.no_grad():
        got, right = copy.deepcopy(folded).double()(x), norm(linear(x))
        scale = (var + norm.eps).rsqrt() * norm.weight
        shift = norm.bias - mean * scale
        product = x @ linear.weight.T * scale
        bare = var.rsqrt() * norm.weight
        mistakes = {
            "You left out eps: the variance gets it before the square root.": (
                linear(x) - mean) * bare + norm.bias,
            "You lost the bias of the linear layer, or did not scale it: it passes through the "
            "norm too.": (product + shift, product + linear.bias + shift),
            "You lost the running mean.": linear(x) * scale + norm.bias,
            "You lost the bias of the norm.": linear(x) * scale + shift - norm.bias,
            "You lost the weight of the norm.": norm(linear(x)) * 0 + norm.bias + (
                linear(x) - mean) * (var + norm.eps).rsqrt(),
            "You divided by the variance: take its square root.": norm.bias + norm.weight * (
                linear(x) - mean) / (var + norm.eps),
            "Scale the rows of the weight, one for each output, not its columns.": x @ (
                linear.weight * scale).T + linear.bias * scale + shift,
        }  # fmt: skip
    for hint, outputs in mistakes.items():
        for output in outputs if isinstance(outputs, tuple) else (outputs,):
            expect(not _close(got, output, 1e-5), hint)
    expect(
        _close(got, right, 1e-5),
        "The outputs differ from bn(linear(x)). Use the running statistics that bn holds, and "
        "write down what it does to one output: (z - mean) / sqrt(var + eps) * weight + bias.",
    )
    for (linear, norm), what in (
        (_pair(bias=False), "a layer built with bias=False"),
        (_pair(affine=False), "a norm built with affine=False"),
        (_pair(outputs=3), "a layer with more inputs than outputs"),
    ):
        with torch.no_grad():
            right, folded = norm(linear(x)), copy.deepcopy(answer(linear, norm)).double()
            fits = folded.in_features == linear.in_features and _close(
                folded(x), right, 1e-5
            )
            expect(fits, f"It is right for one pair, and wrong for {what}.")


def _solve_fold(linear, bn):
    scale = (bn.running_var + bn.eps).rsqrt() * (1 if bn.weight is None else bn.weight)
    old = 0 if linear.bias is None else linear.bias
    folded = nn.Linear(linear.in_features, linear.out_features).to(linear.weight.dtype)
    with torch.no_grad():
        folded.weight.copy_(linear.weight * scale[:, None])
        folded.bias.copy_(
            (old - bn.running_mean) * scale + (0 if bn.bias is None else bn.bias)
        )
    return folded


def _fold_with(eps=True, bias=True, columns=False, mean=True):
    """Return a folding with one mistake."""

    def fold(linear, bn):
        scale = (bn.running_var + (bn.eps if eps else 0)).rsqrt() * bn.weight
        folded = copy.deepcopy(linear)
        with torch.no_grad():
            folded.weight.copy_(linear.weight * (scale if columns else scale[:, None]))
            shift = bn.bias - bn.running_mean * scale * mean
            folded.bias.copy_(shift + linear.bias * scale if bias else shift)
        return folded

    return fold


def _fold_nothing(linear, bn):
    return nn.Sequential(linear, bn)


def _fold_batch_statistics(linear, bn):
    z = linear(_draw(64, linear.in_features, seed=30))
    twin = copy.deepcopy(bn)
    with torch.no_grad():
        twin.running_mean.copy_(z.mean(0))
        twin.running_var.copy_(z.var(0))
    return _solve_fold(linear, twin)


def _check_gradient(answer: Callable) -> None:
    for rows, seed in ((4, 0), (7, 5)):
        x, grad, eps = (
            1.5 * _draw(rows, 3, seed=seed) + 2,
            _draw(rows, 3, seed=seed + 1),
            0.1,
        )
        rstd = (x.var(0, correction=0) + eps).rsqrt()
        y = (x - x.mean(0)) * rstd
        with _ByHand():
            got = answer(x.clone(), grad.clone(), eps)
        expect(
            isinstance(got, Tensor) and got.shape == x.shape,
            "Return a tensor of x's shape.",
        )
        through_y = (grad * y).mean(0) * y
        mistakes = {
            "You treated the mean and the variance as constants: both depend on every row.": grad,
            "The mean's part is there, the variance's is missing: the scale depends on x too.": (
                grad - grad.mean(0)),
            "The variance's part is there, the mean's is missing.": grad - through_y,
            "Take means over the rows, not sums: each row has 1/N of the mean.": (
                grad - grad.sum(0) - (grad * y).sum(0) * y),
        }  # fmt: skip
        for hint, change in mistakes.items():
            expect(not _close(got, change * rstd), hint)
        right = (grad - grad.mean(0) - through_y) * rstd
        expect(
            not _close(got, right / rstd),
            "Divide by sqrt(var + eps) at the end: a steeper map has a larger gradient.",
        )
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
        average = (
            (lambda values: values.sum(0)) if sums else (lambda values: values.mean(0))
        )
        change = (
            grad - (average(grad) if mean else 0) - (average(grad * y) * y if var else 0)
        )
        return change * rstd if scale else change

    return gradient


EXERCISES = (
    Exercise(
        "Write your_layer(x, weight, bias, running_mean, running_var, training, momentum, eps): "
        "batch norm of x (N, C), by hand. It returns the output, and in training it updates the "
        "running statistics in place.",
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
            "layer norm": Wrong(_layer_over_rows, "which is layer norm"),
        },
    ),
    Exercise(
        "Write your_fold(linear, bn): one new nn.Linear with the outputs of bn(linear(x)), for bn "
        "in evaluation mode. linear.bias may be None, and so may bn.weight and bn.bias.",
        _check_fold,
        _solve_fold,
        {
            "batch norm costs at inference": Wrong(_fold_nothing, "one nn.Linear"),
            "forgets eps": Wrong(_fold_with(eps=False), "left out eps"),
            "forgets the bias": Wrong(_fold_with(bias=False), "bias of the linear layer"),
            "forgets the mean": Wrong(_fold_with(mean=False), "lost the running mean"),
            "scales the columns": Wrong(_fold_with(columns=True), "not its columns"),
            "batch statistics": Wrong(
                _fold_batch_statistics, "running statistics that bn holds"
            ),
        },
    ),
    Exercise(
        "Write your_gradient(x, grad, eps), without autograd: the gradient with respect to x "
        "(N, C), where grad is that with respect to y = (x - mean) / sqrt(var + eps).",
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
