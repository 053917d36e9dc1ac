"""A whole model filled, and the variance that theory expects of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from dlcourse.initialization.statistics import _call, _undisturbed
from dlcourse.initialization.weights import _normal_mean, orthogonal_

LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_Layer = nn.Linear | nn.modules.conv._ConvNd  # what they have in common


def initialize_(
    model: nn.Module,
    rule: Callable[..., object],
    generator: torch.Generator | None = None,
    **settings,
) -> nn.Module:
    """Call rule(weight, generator=..., **settings) on each linear and convolution weight,
    in order.

    Their biases become zero. Embeddings, norms, recurrent modules and
    nn.MultiheadAttention's input projection keep theirs; its `out_proj` is a linear layer
    and is filled.
    Returns the model. Raises ValueError where there is no such layer, and where a layer's
    weight is computed by a parametrization (it would be computed anew). Invariant: equal
    generators give equal models; a weight used by two layers is drawn once.
    """
    layers = _layers(model)
    drawn: set[int] = set()
    for name, layer in layers.items():
        if is_parametrized(layer):
            raise ValueError(
                f"{name} is parametrized: initialize it before you parametrize it"
            )
        if id(layer.weight) not in drawn:
            rule(layer.weight, generator=generator, **settings)
        drawn.add(id(layer.weight))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return model


@torch.no_grad()
def lsuv_(
    model: nn.Module, batch, std: float = 1.0, generator: torch.Generator | None = None
) -> nn.Module:
    """Start orthogonal, then let `batch` set each layer's scale: every output has spread
    `std`.

    Layers are those of `initialize_`, in the order in which they run; one pass is enough,
    as with zero biases an output is proportional to the weight. A layer that runs several
    times is scaled at its first run with any spread. `batch` is as in `activation_stats`.
    Buffers, mode and random state stay. Raises ValueError for an output without spread,
    or a bad `std`. Source: Mishkin & Matas (2016).
    Invariant: on the same batch the standard deviation of every layer's output is `std`.
    """
    if not 0 < std < math.inf:
        raise ValueError(f"std={std}: give a finite number above 0, such as 1.0")
    initialize_(model, orthogonal_, generator)
    spreads: dict[int, float] = {}

    def scale(layer: _Layer, inputs: tuple, output: Tensor):
        if _usable(spreads.get(id(layer.weight), 0.0)):
            return None
        spread = output.double().std(correction=0).item() if output.numel() else 0.0
        spreads[id(layer.weight)] = spread
        if not _usable(spread):
            return None
        layer.weight.mul_(std / spread)
        return output * (std / spread)

    with contextlib.ExitStack() as stack:
        stack.enter_context(_undisturbed(model))
        for layer in _layers(model).values():
            stack.callback(layer.register_forward_hook(scale).remove)
        _call(model, batch)
    for name, layer in _layers(model).items():
        # a layer that never ran stays orthogonal
        spread = spreads.get(id(layer.weight), 1.0)
        if not _usable(spread):
            raise ValueError(
                f"the output of {name} has a standard deviation of {spread}: give more rows, and "
                "look for a layer before it whose outputs are all equal"
            )
    return model


def _usable(spread: float) -> bool:
    return 0 < spread < math.inf


def _layers(model: nn.Module) -> dict[str, _Layer]:
    found: dict[str, _Layer] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    }
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no linear or convolution layer to fill"
        )
    return found


def predict_variance(
    activation: Callable[[Tensor], Tensor],
    layers: int,
    weight_scale: float,
    start: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the variances, layer by layer, of pre-activations and of their gradients.

    Both are float64 (layers,), for wide square layers z = W f(z before), zero biases, and
    `weight_scale` = fan_in * Var(w): 1 for Xavier, 2 for Kaiming, 1/3 for nn.Linear's
    default.
    `start` is the mean square of the inputs. The gradients' variances are relative to the
    last layer's. Raises ValueError for bad numbers. Source: Poole et al. (2016);
    Schoenholz et al. (2017). Invariant: for ReLU each layer multiplies both by
    weight_scale / 2.
    """
    if not callable(activation):
        raise ValueError(
            f"activation={activation!r}: give the function itself, such as F.relu"
        )
    if layers < 1 or not (0 <= weight_scale < math.inf and 0 <= start < math.inf):
        raise ValueError(
            "give at least one layer, and a finite weight_scale and start from 0 up"
        )
    forward, factors = [weight_scale * start], []

    def square(z: Tensor) -> Tensor:
        return activation(z * forward[-1] ** 0.5).square()

    def square_slope(z: Tensor) -> Tensor:
        at = (z * forward[-1] ** 0.5).requires_grad_()
        return torch.autograd.grad(activation(at.clone()).sum(), at)[0].square()

    for _ in range(layers - 1):
        factors.append(weight_scale * _normal_mean(square_slope))
        forward.append(weight_scale * _normal_mean(square))
    backward = (
        torch.tensor([*factors, 1.0], dtype=torch.float64).flip(0).cumprod(0).flip(0)
    )
    return torch.tensor(forward, dtype=torch.float64), backward
