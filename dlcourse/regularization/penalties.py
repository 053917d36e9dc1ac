"""Penalties on weights: L1, L2, both, and the proximal step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dlcourse.regularization.checks import _check_at_least_zero, _tensors


def l1_penalty(weights: Tensor | Iterable[Tensor]) -> Tensor:
    """Return the sum of absolute values of all `weights`, a scalar; of no weights, zero.

    Times a strength, it is added to the loss. Its gradient at 0 is 0, so that gradient
    steps leave exact zeros alone and do not make any. Source: Tibshirani (1996).
    Invariant: scaling the weights by c scales it by |c|.
    """
    return sum((weight.abs().sum() for weight in _tensors(weights)), torch.zeros(()))


def l2_penalty(weights: Tensor | Iterable[Tensor]) -> Tensor:
    """Return half the sum of squares of all `weights`, a scalar; of no weights, zero.

    The half makes its gradient the weight itself, so that a strength means what
    `weight_decay` means in torch. Invariant: scaling the weights by c scales it by c
    squared.
    """
    return (
        sum((weight.square().sum() for weight in _tensors(weights)), torch.zeros(())) / 2
    )


def elastic_net_penalty(
    weights: Tensor | Iterable[Tensor], alpha: float = 1.0, l1_ratio: float = 0.5
) -> Tensor:
    """Return alpha * (l1_ratio * L1 + (1 - l1_ratio) * L2), a scalar, as scikit-learn
    counts it.

    `alpha` >= 0 is the strength and `l1_ratio`, from 0 (all L2) to 1 (all L1), the mix.
    Raises ValueError outside these ranges. Source: Zou & Hastie (2005).
    Invariants: l1_ratio=1 is alpha * l1_penalty, l1_ratio=0 is alpha * l2_penalty.
    """
    _check_at_least_zero("alpha", alpha)
    if not 0 <= l1_ratio <= 1:
        raise ValueError(f"l1_ratio={l1_ratio}: give the share of L1, from 0 to 1")
    weights = list(_tensors(weights))
    return alpha * (l1_ratio * l1_penalty(weights) + (1 - l1_ratio) * l2_penalty(weights))


def soft_threshold(x: Tensor, threshold: float | Tensor) -> Tensor:
    """Move every entry of `x` towards 0 by `threshold` >= 0, and stop there: zeros are
    exact.

    It is the w that makes (w - x)**2 / 2 + threshold * |w| smallest. `threshold` is a
    number or a tensor that broadcasts (its signs are not checked). NaN stays NaN. Raises
    ValueError for a number below 0.
    Invariants: no entry grows or changes its sign; what is at most `threshold` long
    becomes 0.
    """
    if isinstance(threshold, Tensor):
        return x - x.clamp(-threshold, threshold)
    _check_at_least_zero("threshold", threshold)
    return x - x.clamp(-threshold, threshold)
