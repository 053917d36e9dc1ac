"""Gradient clipping: bound the size of one update, so that one bad batch cannot end a
run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def get_total_norm(
    tensors: Iterable[Tensor],
    norm_type: float | str = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Return the norm, a scalar, of all `tensors` read as one long vector.

    `norm_type` p > 0, or inf (also "inf") for the largest absolute value. No tensors at all: zero.
    Raises RuntimeError for a norm that is NaN or infinite where `error_if_nonfinite`.
    Invariant: cutting a tensor in pieces does not change the result.
    """
    norm_type = float(norm_type)  # torch takes "inf" too
    if not norm_type > 0:
        raise ValueError(
            f"norm_type={norm_type}: give a number above 0, such as 2.0, or inf"
        )
    tensors = list(tensors)
    if not tensors:
        return torch.zeros(())
    parts = [torch.linalg.vector_norm(tensor, norm_type) for tensor in tensors]
    total = torch.linalg.vector_norm(
        torch.stack([part.to(parts[0].device) for part in parts]), norm_type
    )
    if error_if_nonfinite and not total.isfinite():
        raise RuntimeError(
            f"the gradient norm of order {norm_type} is {total.item()}: skip this update, or lower "
            "the learning rate, or look for a NaN in the data"
        )
    return total


def clip_by_norm(
    grads: list[Tensor], max_norm: float, norm_type: float = 2.0
) -> tuple[list[Tensor], Tensor]:
    """Return (clipped gradients, their norm before): all scaled by one factor of at most
    1.

    A pure function of the list, for `run_trials` and for reading; `clip_grad_norm_` works
    in place.
    """
    total = get_total_norm(grads, norm_type)
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    return [grad * factor for grad in grads], total


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float | str = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients by one factor, so that their joint norm is at most `max_norm`
    >= 0.

    Returns the norm before clipping, a scalar. Parameters without a gradient are left
    out. A norm that is NaN makes every gradient NaN, an infinite one makes finite entries
    0; with `error_if_nonfinite` both raise RuntimeError and leave the gradients as they
    were. Raises ValueError for a `max_norm` that is negative or NaN.
    Source: Pascanu, Mikolov & Bengio (2013), algorithm 1; the factor max_norm / (norm +
    1e-6) is torch's. Invariants: the direction stays; a gradient below the bound does not
    change.
    """
    _check_bound("max_norm", max_norm)
    grads = _grads(parameters)
    total = get_total_norm(grads, norm_type, error_if_nonfinite)
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(factor.to(grad.device))
    return total


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Move each gradient entry into [-clip_value, clip_value]; clip_value >= 0.

    The direction of the whole gradient may change. Raises ValueError for a bad
    `clip_value`.
    Invariant: no entry grows, and none changes its sign.
    """
    _check_bound("clip_value", clip_value)
    for grad in _grads(parameters):
        grad.clamp_(-clip_value, clip_value)


def adaptive_clip_grad_(
    parameters: Tensor | Iterable[Tensor], clip_factor: float = 0.01, eps: float = 1e-3
) -> None:
    """Bound each unit's gradient norm by `clip_factor` times the norm of the unit's
    weights.

    A unit is a row of a weight (its fan-in), or the whole of a vector. `eps` > 0 stands
    in for smaller weight norms, so that zero weights can still learn. Raises ValueError
    for bad numbers.
    Source: Brock et al. (2021). Invariant: a unit's update relative to its weights is
    bounded.
    """
    _check_bound("clip_factor", clip_factor)
    _check_bound("eps", eps)
    for weight, grad in _with_grad(parameters):
        limit = clip_factor * _unit_norm(weight.detach()).clamp(min=eps)
        norm = _unit_norm(grad)
        grad.mul_((limit / norm.clamp(min=1e-6)).clamp(max=1.0))


def clipping_step(max_norm: float, skip_nonfinite: bool = False) -> Callable:
    """Return a step for `fit` that clips the whole gradient to `max_norm`, once an
    update.

    The order is fixed: all micro-batches and processes first, then unscale, clip, step.
    The norm before clipping is logged as "grad_norm". `skip_nonfinite` leaves out updates
    whose norm is NaN or infinite. With max_norm=inf it is `train_step` to the bit.
    """
    _check_bound("max_norm", max_norm)

    def step(run, batch) -> Tensor:
        run.optimizer.zero_grad()
        loss = run.gradients(batch)  # summed over micro-batches, averaged over processes
        run.unscale()  # float16 only: the norm is that of the true gradient
        norm = clip_grad_norm_(run.model.parameters(), max_norm)
        run.log("grad_norm", norm)
        # a scaler skips by itself, and must see it
        scaled = run.accelerator.scaler is not None
        if scaled or not skip_nonfinite or norm.isfinite():
            run.optimizer.step()
        return loss

    return step


class GradNormLogger:
    """Record gradient norms before clipping, and say what a bound would do.

    Call it with a model after each backward pass, or `add` norms measured elsewhere.
    `norms` is a list of floats, `layers` maps each parameter's name to a list as long.
    Non-finite norms are kept in the lists and counted as clipped.
    """

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.layers: dict[str, list[float]] = {}

    def __call__(self, model: nn.Module) -> float:
        """Record and return the norm of the gradient that `model` holds now."""
        for name, weight in model.named_parameters():
            norm = math.nan if weight.grad is None else weight.grad.norm().item()
            self.layers.setdefault(name, [math.nan] * len(self.norms)).append(norm)
        self.add(get_total_norm(_grads(model.parameters())).item())
        return self.norms[-1]

    def add(self, *norms: float) -> None:
        """Append norms that were measured elsewhere."""
        self.norms.extend(float(norm) for norm in norms)

    def quantile(self, q: float) -> float:
        """Return the norm that a share `q` in [0, 1] of the finite norms does not exceed.

        Raises ValueError where nothing finite has been recorded.
        """
        finite = torch.tensor(
            [n for n in self.norms if math.isfinite(n)], dtype=torch.float64
        )
        if not len(finite):
            raise ValueError("no finite norm recorded yet: train some updates first")
        return torch.quantile(finite, q).item()

    def clipped_share(self, max_norm: float) -> float:
        """Return the share of updates, from 0 to 1, that a bound of `max_norm` changes."""
        if not self.norms:
            raise ValueError("no norm recorded yet: train some updates first")
        return sum(not norm <= max_norm for norm in self.norms) / len(self.norms)


def freeze(module: nn.Module) -> int:
    """Stop training `module`, and return how many numbers that leaves out.

    Their gradients become None: a gradient of zeros would still let momentum and weight
    decay move the weights. Running statistics of norm layers go on unless the module is
    in eval mode. Freeze before `fit`, so that several processes agree on which gradients
    to exchange.
    Invariant: no optimizer moves a frozen weight.
    """
    return _set_trainable(module, False)


def unfreeze(module: nn.Module) -> int:
    """Undo `freeze`, and return how many numbers that brings back."""
    return _set_trainable(module, True)


def _set_trainable(module: nn.Module, trainable: bool) -> int:
    for weight in module.parameters():
        weight.requires_grad_(trainable)
        if not trainable:
            weight.grad = None
    return sum(weight.numel() for weight in module.parameters())


def _with_grad(
    parameters: Tensor | Iterable[Tensor],
) -> list[tuple[Tensor, Tensor]]:
    """Return (parameter, its gradient) for each that has one."""
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    return [(weight, weight.grad) for weight in parameters if weight.grad is not None]


def _grads(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [grad for _, grad in _with_grad(parameters)]


def _unit_norm(values: Tensor) -> Tensor:
    """Return the norm of each row (its shape broadcasts against `values`), or of a
    vector.
    """
    if values.ndim <= 1:
        return torch.linalg.vector_norm(values)
    return torch.linalg.vector_norm(
        values, dim=tuple(range(1, values.ndim)), keepdim=True
    )


def _check_bound(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(
            f"{name}={value}: give a bound of at least 0, such as 1.0, or inf for none"
        )
