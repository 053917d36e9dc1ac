"""What arguments may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def _tensors(weights: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
    return [weights] if isinstance(weights, Tensor) else weights


def _pairs(
    ours: Iterable[Tensor], theirs: Iterable[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    ours, theirs = list(ours), list(theirs)
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the average holds tensors of shapes {shapes[0]}, the model {shapes[1]}: give the "
            "model that it was made from"
        )
    return list(zip(ours, theirs, strict=True))


def _with_grad(weights: Iterable[Tensor]) -> list[Tensor]:
    return [weight for weight in weights if weight.grad is not None]


def _call(closure: Callable | None):
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _check_rate(lr: float) -> None:
    if not 0 < lr < math.inf:
        raise ValueError(f"lr={lr}: give a learning rate above 0, such as 0.01")


def _check_at_least_zero(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value}: give a number of at least 0, such as 0.01")
