"""What every kind of compression needs: which layers there are, and how to replace them."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

QUANTIZABLE = (nn.Linear, nn.Conv2d)

Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
AnyLayer = TypeVar("AnyLayer", bound=nn.Module)


def _layers(model: nn.Module) -> Iterator[tuple[str, Weighted]]:
    """Yield (name, layer) of each linear and convolution layer."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    found = [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, kinds)
    ]
    if not found:
        raise ValueError("this model has no linear or convolution layer to compress")
    yield from found


def _quantizable(model: nn.Module, kinds: tuple[type, ...] = QUANTIZABLE) -> list:
    """Return (name, layer) of each layer of these kinds; one that has two names comes
    twice.
    """
    modules = model.named_modules(remove_duplicate=False)
    return [(name, layer) for name, layer in modules if isinstance(layer, kinds)]


def _replace(
    model: nn.Module, make: Callable[[str, AnyLayer], nn.Module],
    kinds: tuple[type[AnyLayer], ...],
) -> nn.Module:  # fmt: skip
    """Put make(name, layer) in the place of each layer of these kinds, and return the
    model.
    """
    found = _quantizable(model, kinds)
    if not found:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"this model has no {names} layer: there is nothing to replace")
    made = {}
    for name, layer in found:
        if layer not in made:
            made[layer] = make(name, layer)
        parent, _, child = name.rpartition(".")
        if not name:
            return made[layer]
        setattr(model.get_submodule(parent), child, made[layer])
    return model


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _how_many(amount: float | int, total: int) -> int:
    # NumPy's too
    whole = isinstance(amount, numbers.Integral) and not isinstance(amount, bool)
    if not 0 <= amount <= (total if whole else 1):
        raise ValueError(
            f"amount={amount} of {total}: give a share from 0.0 to 1.0, or a whole number of "
            "entries that is not more than there are"
        )
    return int(amount) if whole else round(float(amount) * total)


def _finite(x: Tensor) -> Tensor:
    if not x.isfinite().all():
        raise ValueError("the tensor holds NaN or infinity: look for a run that diverged")
    return x


def _wide(x: Tensor) -> Tensor:
    """Return x in float32 or wider: in 16 bits, a rounding would come before the
    rounding.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
