"""Master weights: 16-bit weights with a wide copy that keeps small updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dlcourse.mixed_precision.formats import (
    FORMATS,
    OF_DTYPE,
    Format,
    format_of,
    round_to,
)


class MasterWeightOptimizer:
    """Any optimizer for weights of few bits: it updates a float32 copy, and rounds that
    copy.

    `weights`: leaf tensors, float16 or bfloat16, or float32 with `fmt` naming the format
    in which their values are kept. `kind(masters, **settings)` makes the inner optimizer.
    `stochastic` rounds at random, with numbers drawn from `seed`. `master=False` forgets
    the float32 copy after each update, so that only what the few bits hold is kept.

    Each gradient moves to the float32 copy as soon as the backward pass has made it, so
    that micro-batches add up in float32, and clipping and loss scaling work on
    `param_groups`. For one process: under DDP the gradient would move before it is
    averaged.
    Raises ValueError for weights that are no leaves, whose dtype names no format, or
    whose dtype cannot hold `fmt`; RuntimeError in the backward pass where two of these
    share a weight.
    Sources: Micikevicius et al. (2018); Gupta et al. (2015) for stochastic rounding.
    Invariants: the weights are the rounded copy; with fmt="fp32" it is the inner
    optimizer.
    """

    def __init__(
        self,
        weights: Iterable[Tensor],
        kind: Callable[..., torch.optim.Optimizer],
        *,
        fmt: str | Format | None = None,
        master: bool = True,
        stochastic: bool = False,
        seed: int = 0,
        **settings,
    ) -> None:
        self.weights = list(weights)
        self.master, self.stochastic = master, stochastic
        self.generator = torch.Generator().manual_seed(seed)
        self.formats = [_format_for(weight, fmt) for weight in self.weights]
        self.masters = [w.detach().float().clone().requires_grad_() for w in self.weights]
        self.inner = kind(self.masters, **settings)
        self._round()
        for weight, wide in zip(self.weights, self.masters, strict=True):
            weight.register_post_accumulate_grad_hook(_mover(wide))

    @property
    def param_groups(self) -> list[dict]:
        """Return the inner optimizer's groups, whose parameters are the float32 copies."""
        return self.inner.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Empty the gradients."""
        self.inner.zero_grad(set_to_none)
        for weight in self.weights:
            weight.grad = None

    def step(self) -> None:
        """Update the float32 copies, and round them into the weights."""
        self.inner.step()
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        for weight, wide, fmt in zip(
            self.weights, self.masters, self.formats, strict=True
        ):
            if fmt == _own_format(weight.dtype) and not self.stochastic:
                weight.copy_(wide)  # the cast rounds to the nearest by itself
            else:
                draws = {"stochastic": self.stochastic, "generator": self.generator}
                weight.copy_(round_to(wide, fmt, **draws))
            if not self.master:
                wide.copy_(weight)

    def state_dict(self) -> dict:
        """Return the inner state, the float32 copies, and the state of the random
        numbers.
        """
        return {
            "inner": self.inner.state_dict(),
            "masters": [wide.detach().clone() for wide in self.masters],
            "generator": self.generator.get_state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` has returned; the weights come from the model's
        own.
        """
        self.inner.load_state_dict(state["inner"])
        for wide, saved in zip(self.masters, state["masters"], strict=True):
            wide.copy_(saved)
        self.generator.set_state(state["generator"])


def _mover(wide: Tensor) -> Callable[[Tensor], None]:
    def move(weight: Tensor) -> None:
        if weight.grad is None:
            raise RuntimeError(
                "another MasterWeightOptimizer has taken this gradient: make one for each model, "
                "and a new model for a new optimizer"
            )
        grad = weight.grad.float()
        wide.grad = grad if wide.grad is None else wide.grad.add_(grad)
        weight.grad = None

    return move


def _own_format(dtype: torch.dtype) -> Format | None:
    """Return the format that numbers of `dtype` have; None for one without a name here."""
    return FORMATS[OF_DTYPE[dtype]] if dtype in OF_DTYPE else None


def _format_for(weight: Tensor, fmt: str | Format | None) -> Format:
    if not isinstance(weight, Tensor) or not weight.is_leaf or not weight.requires_grad:
        raise ValueError(
            "give weights that are leaves and require a gradient: model.parameters()"
        )
    if fmt is None and weight.dtype not in OF_DTYPE:
        raise ValueError(
            f"weights of {weight.dtype}: say in fmt= which format they are kept in"
        )
    fmt = format_of(fmt if fmt is not None else OF_DTYPE[weight.dtype])
    held = _own_format(weight.dtype) or fmt
    if fmt.exponent > held.exponent or fmt.mantissa > held.mantissa:
        raise ValueError(
            f"weights of {weight.dtype} cannot hold {fmt.name}: use float32 weights"
        )
    return fmt
