"""Decay and zeros inside the optimizer: AdamW, proximal SGD, parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from dlcourse.regularization.checks import (
    _call,
    _check_at_least_zero,
    _check_rate,
    _with_grad,
)
from dlcourse.regularization.penalties import soft_threshold

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class ProximalSGD(torch.optim.Optimizer):
    """SGD on the loss, then the proximal step of an elastic net with strengths `l1` and
    `l2`.

    After w - lr * gradient (with `momentum` as in torch's SGD), each weight moves towards
    0 by lr * l1 and stops there, then is divided by 1 + lr * l2. `l1`, `l2` >= 0 and lr >
    0 may differ by parameter group. The penalty stands in no loss and in no `.grad`, so
    neither accumulation nor a loss scale can change it. Raises ValueError for numbers out
    of range.
    Source: the proximal gradient method (Parikh & Boyd, 2014).
    Invariants: with l1 = l2 = 0 it is torch's SGD to the bit; its fixed points on a
    convex loss are the minima of loss + l1 * L1 + l2 * L2.
    """

    def __init__(
        self, params, lr: float, momentum: float = 0.0, l1: float = 0.0, l2: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "l1": l1, "l2": l2})
        for group in self.param_groups:
            _check_rate(group["lr"])
            for name in ("momentum", "l1", "l2"):
                _check_at_least_zero(name, group[name])

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Make one update of every parameter that has a gradient."""
        loss = _call(closure)
        for group in self.param_groups:
            lr, l1, l2 = group["lr"], group["l1"], group["l2"]
            for weight in _with_grad(group["params"]):
                grad = weight.grad
                assert grad is not None  # `_with_grad` leaves the others out
                if group["momentum"]:
                    state = self.state[weight]
                    if not state:
                        state["momentum_buffer"] = grad.clone()
                    else:
                        state["momentum_buffer"].mul_(group["momentum"]).add_(grad)
                    grad = state["momentum_buffer"]
                weight.add_(grad, alpha=-lr)
                if l1:
                    weight.copy_(soft_threshold(weight, lr * l1))
                if l2:
                    weight.div_(1 + lr * l2)
        return loss


class AdamW(torch.optim.Optimizer):
    """Adam whose weight decay does not pass through Adam: w shrinks by 1 - lr *
    weight_decay.

    lr > 0, 0 <= betas < 1, eps >= 0, weight_decay >= 0; each may differ by parameter
    group. `amsgrad` divides by the largest mean square so far instead of the last one;
    `maximize` climbs. The defaults are torch's. Raises ValueError for numbers out of
    range.
    Source: Loshchilov & Hutter (2019), amsgrad Reddi, Kale & Kumar (2018), with torch's order of operations (for-loop form),
    which it equals to the bit. Invariant: without a gradient the weights shrink as a
    geometric series.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, settings | {"amsgrad": amsgrad, "maximize": maximize})
        for group in self.param_groups:
            _check_rate(group["lr"])
            _check_at_least_zero("weight_decay", group["weight_decay"])
            _check_at_least_zero("eps", group["eps"])
            if not all(0 <= beta < 1 for beta in group["betas"]):
                raise ValueError(
                    f"betas={group['betas']}: give two numbers from 0 to below 1"
                )

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Make one update of every parameter that has a gradient."""
        loss = _call(closure)
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for weight in _with_grad(group["params"]):
                grad, state = weight.grad, self.state[weight]
                assert grad is not None  # `_with_grad` leaves the others out
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(weight)
                    state["exp_avg_sq"] = torch.zeros_like(weight)
                    if group["amsgrad"]:
                        state["max_exp_avg_sq"] = torch.zeros_like(weight)
                state["step"] += 1
                t = state["step"].item()
                grad = -grad if group["maximize"] else grad
                # the one line that makes it AdamW
                weight.mul_(1 - lr * group["weight_decay"])
                mean = state["exp_avg"].lerp_(grad, 1 - beta1)
                square = state["exp_avg_sq"].mul_(beta2)
                square.addcmul_(grad, grad, value=1 - beta2)
                if group["amsgrad"]:
                    largest = state["max_exp_avg_sq"]
                    square = torch.maximum(largest, square, out=largest)
                root = (square.sqrt() / (1 - beta2**t) ** 0.5).add_(group["eps"])
                weight.addcdiv_(mean, root, value=-lr / (1 - beta1**t))
        return loss


def param_groups(
    model: nn.Module, weight_decay: float, skip: Iterable[str] = ()
) -> list[dict]:
    """Return two parameter groups: those that decay, and those that do not (weight_decay
    0).

    What does not decay: biases and all other tensors of at most one dimension, the scales
    of torch's norm layers, and names that hold one of the strings in `skip` (any of its
    names, for a tied tensor). Raises ValueError for a negative `weight_decay`, or an
    entry of `skip` that no name holds. Invariant: each parameter of the model is in
    exactly one group, tied ones once.
    """
    _check_at_least_zero("weight_decay", weight_decay)
    skip = [skip] if isinstance(skip, str) else list(skip)
    names = {name: id(w) for name, w in model.named_parameters(remove_duplicate=False)}
    for part in skip:
        if not any(part in name for name in names):
            raise ValueError(
                f"skip={part!r} is in no name of the model: {', '.join(names)}"
            )
    skipped = {
        number for name, number in names.items() if any(part in name for part in skip)
    }
    exempt = {
        id(w)
        for m in model.modules()
        if isinstance(m, NORMS)
        for w in m.parameters(False)
    }
    decayed, spared = [], []
    for weight in model.parameters():
        spare = weight.ndim <= 1 or id(weight) in exempt | skipped
        (spared if spare else decayed).append(weight)
    groups = (
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]
