"""Layers with quantized weights, and training that knows of the rounding."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.model_compression.layers import (
    QUANTIZABLE,
    _distributed,
    _quantizable,
    _replace,
    _wide,
)
from dlcourse.model_compression.pruning import bake
from dlcourse.model_compression.quantization import (
    _along,
    _range,
    choose_qparams,
    dequantize,
    pack_bits,
    qparams_from_range,
    quant_range,
    quantize,
    unpack_bits,
)


class RangeObserver(nn.Module):
    """Remember the lowest and highest value seen, as calibration needs, and pass x
    through.

    With `sync` the range is that over all processes: a process that kept its own would
    quantize otherwise than its neighbours.
    """

    low: Tensor
    high: Tensor

    def __init__(self, sync: bool = True) -> None:
        super().__init__()
        self.sync = sync
        self.register_buffer("low", torch.tensor(math.inf))
        self.register_buffer("high", torch.tensor(-math.inf))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        low, high = (value.detach().float() for value in _range(x, None))
        if self.sync and _distributed():
            torch.distributed.all_reduce(low, torch.distributed.ReduceOp.MIN)
            torch.distributed.all_reduce(high, torch.distributed.ReduceOp.MAX)
        # in place: DDP keeps hold of the buffer
        self.low.copy_(torch.minimum(self.low, low))
        self.high.copy_(torch.maximum(self.high, high))
        return x

    def seen(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and highest value. Raises ValueError if none, NaN or inf was
        seen.
        """
        if not (self.low.isfinite() and self.high.isfinite()):
            raise ValueError(
                f"the observer has seen values from {self.low} to {self.high}: calibrate or train "
                "it on finite values first"
            )
        return self.low, self.high


class FakeQuantize(nn.Module):
    """Round values to what `bits` bits can hold, in floating point, with a gradient.

    Forward: dequantize(quantize(x)). Backward: the straight-through estimator, 1 inside
    the range and 0 where x was clamped. The range is that of x itself, or with `observer`
    the one seen so far, which grows in training mode. Raises ValueError where that has
    seen nothing.
    Source: Bengio, Léonard & Courville (2013).
    Invariant: values that are on the grid stay as they are.
    """

    def __init__(
        self, bits: int = 8, symmetric: bool = True, axis: int | None = None,
        observer: RangeObserver | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        quant_range(bits, symmetric)
        self.bits, self.symmetric, self.axis, self.observer = (
            bits,
            symmetric,
            axis,
            observer,
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.observer is not None:
            if self.training:
                self.observer(x)
            low, high = self.observer.seen()
        else:
            low, high = _range(x.detach(), self.axis)
        scale, zero_point = qparams_from_range(low, high, self.bits, self.symmetric)
        return fake_quantize(x, scale, zero_point, self.bits, self.symmetric, self.axis)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8, symmetric: bool = True,
    axis: int | None = None,
) -> Tensor:  # fmt: skip
    """Return dequantize(quantize(x)) with the straight-through gradient, in x's dtype."""
    qmin, qmax = quant_range(bits, symmetric)
    scale, zero_point = _along(scale, x, axis), _along(zero_point, x, axis)
    q = (_wide(x) * (1 / scale)).round() + zero_point
    clamped = q.clamp(qmin, qmax)
    # the value 0, the gradient of x
    straight = torch.where(q == clamped, x - x.detach(), 0.0)
    return ((clamped - zero_point) * scale).detach().to(x.dtype) + straight


def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int],
    padding: tuple[int, int] | str | list[int], dilation: tuple[int, int], groups: int, mode: str,
) -> Tensor:  # fmt: skip
    """Return F.conv2d, after a padding of its own where that is not with zeros."""
    if mode != "zeros":
        assert not isinstance(padding, str)  # the margins, from `_geometry`
        padded = F.pad(x, padding, mode)
        return F.conv2d(padded, weight, bias, stride, 0, dilation, groups)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _geometry(layer: nn.Module) -> dict:
    """Return how a Conv2d, or the QAT layer made of it, moves over its input; {} for a
    linear.
    """
    if not isinstance(layer, nn.Conv2d):
        return getattr(layer, "geometry", {})
    zeros = layer.padding_mode == "zeros"  # else torch pads by hand, with these margins
    return {
        "stride": layer.stride,
        "padding": layer.padding if zeros else layer._reversed_padding_repeated_twice,
        "dilation": layer.dilation,
        "groups": layer.groups,
        "mode": layer.padding_mode,
    }


def _check_kind(made: _QATLayer | _QuantizedLayer, layer: nn.Module) -> None:
    if not isinstance(layer, made.made_of):
        names = " or ".join(kind.__name__ for kind in made.made_of)
        raise ValueError(f"{type(made).__name__} is made of a {names}, not of {layer}")


class _QATLayer(nn.Module):
    made_of: tuple[type, ...]
    operation: Callable[..., Tensor]  # of x, weight, bias and the geometry

    def __init__(
        self, layer: nn.Linear | nn.Conv2d, bits: int, per_channel: bool, inputs: bool
    ) -> None:
        super().__init__()
        _check_kind(self, layer)
        self.weight, self.bias, self.geometry = layer.weight, layer.bias, _geometry(layer)
        self.weight_quantizer = FakeQuantize(bits, axis=0 if per_channel else None)
        self.input_quantizer = None
        if inputs:
            self.input_quantizer = FakeQuantize(
                8, symmetric=False, observer=RangeObserver()
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        return self.operation(
            x, self.weight_quantizer(self.weight), self.bias, **self.geometry
        )


class QATLinear(_QATLayer):
    """A linear layer that computes with its weight fake-quantized, and trains the one
    behind it.

    With `inputs`, what enters is fake-quantized to 8 bits too, in the range seen in
    training.
    Raises ValueError for another kind of layer. Source: Jacob et al. (2018).
    """

    made_of = (nn.Linear,)
    operation = staticmethod(F.linear)


class QATConv2d(_QATLayer):
    """A Conv2d that computes with its weight fake-quantized, and trains the one behind
    it.

    Stride, padding, dilation and groups are those of the layer; a channel is one output.
    `inputs` and the errors are those of `QATLinear`. Source: Jacob et al. (2018).
    Invariant: outputs and gradients are those of F.conv2d with the fake-quantized weight.
    """

    made_of = (nn.Conv2d,)
    operation = staticmethod(_conv2d)


def prepare_qat(
    model: nn.Module, bits: int = 8, per_channel: bool = True, inputs: bool = False
) -> nn.Module:
    """Return a copy with a QAT layer for each linear and Conv2d layer: train it, then
    `convert` it.

    All other layers stay as they are, norm layers among them. Raises ValueError for a
    model without such a layer. Source: Jacob et al. (2018).
    """

    def fake(_, layer: nn.Linear | nn.Conv2d) -> nn.Module:
        kind = QATConv2d if isinstance(layer, nn.Conv2d) else QATLinear
        return kind(layer, bits, per_channel, inputs)

    return _replace(bake(model), fake, QUANTIZABLE)


def _observe(observer: RangeObserver) -> Callable:
    def hook(layer: nn.Module, args: tuple[Tensor]) -> None:
        observer(args[0])

    return hook


def calibrate(model: nn.Module, inputs: Tensor) -> dict[str, RangeObserver]:
    """Run `model` on `inputs` and return the range of what entered each linear and Conv2d
    layer.
    """
    observers, hooks = {}, []
    for name, layer in _quantizable(model):
        observers[name] = RangeObserver()
        hooks.append(layer.register_forward_pre_hook(_observe(observers[name])))
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()(inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return observers


def _in_groups(weight: Tensor, group: int, activations: str) -> Tensor:
    """Return the weight with a row for each `group` neighbours of an output."""
    inputs = weight[0].numel()
    if group < 1 or inputs % group:
        raise ValueError(
            f"group={group} does not divide the {inputs} weights of an output: choose one "
            "that does"
        )
    if activations != "float":
        raise ValueError("groups are for quantized weights: use activations='float'")
    return weight.reshape(-1, group)


class _QuantizedLayer(nn.Module):
    made_of: tuple[type, ...]
    operation: Callable[..., Tensor]  # of x, weight, bias and the geometry
    packed: Tensor
    input_scale: Tensor  # this and the next for static activations only
    input_zero_point: Tensor

    def __init__(
        self, layer: nn.Linear | nn.Conv2d | _QATLayer, bits: int = 8, per_channel: bool = True,
        activations: str = "float", observer: RangeObserver | None = None, input_bits: int = 8,
        group: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _check_kind(self, layer)
        if activations not in ("float", "dynamic", "static"):
            raise ValueError(
                f"activations={activations!r}: choose float, dynamic or static"
            )
        if (activations == "static") != (observer is not None):
            raise ValueError(
                "static quantization, and it alone, needs observer=: see calibrate()"
            )
        self.bits, self.activations, self.input_bits = bits, activations, input_bits
        self.shape, self.geometry = layer.weight.shape, _geometry(layer)
        self.axis = 0 if per_channel or group else None
        weight = layer.weight.detach()
        if group is not None:
            weight = _in_groups(weight, group, activations)
        axis = self.axis
        scale, zero_point = choose_qparams(weight, bits, axis=axis)
        packed = pack_bits(quantize(weight, scale, zero_point, bits, axis=axis), bits)
        self.register_buffer("packed", packed)
        self.scale = nn.Parameter(scale, requires_grad=False)
        bias = None if layer.bias is None else layer.bias.detach().clone()
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        if observer is not None:
            scale, zero_point = qparams_from_range(*observer.seen(), input_bits, False)
            self.register_buffer("input_scale", scale)
            self.register_buffer("input_zero_point", zero_point)

    @property
    def weight(self) -> Tensor:
        """The weight, outputs first, that the packed numbers stand for, in float32."""
        whole = self.whole()
        if self.axis is not None:  # a row for each scale: an output, or a group of it
            whole = whole.view(self.scale.numel(), -1)
        wide = dequantize(whole, self.scale, torch.zeros_like(self.scale), self.axis)
        return wide.view(self.shape)

    def whole(self) -> Tensor:
        """Return the weight as whole numbers, int8, outputs first."""
        return unpack_bits(self.packed, self.bits, self.shape, signed=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.activations == "float":
            return self.operation(x, self.weight.to(x.dtype), self.bias, **self.geometry)
        if self.activations == "static":
            scale, zero_point = self.input_scale, self.input_zero_point
        else:
            scale, zero_point = choose_qparams(x, self.input_bits, symmetric=False)
        q = quantize(x, scale, zero_point, self.input_bits, symmetric=False)
        # whole numbers in float64, which has them all up to 2**53: no sum is rounded
        numbers, weight = q.double() - zero_point, self.whole().double()
        sums = self.operation(numbers, weight, None, **self.geometry)
        out = sums * self._each(scale * self.scale)
        return (out if self.bias is None else out + self._each(self.bias)).to(x.dtype)

    def _each(self, values: Tensor) -> Tensor:
        """Shape values, one for each output, so that they broadcast against the outputs."""
        return values.reshape(-1, *[1] * (len(self.shape) - 2))


class QuantizedLinear(_QuantizedLayer):
    """A linear layer whose weight is held as packed whole numbers of `bits` 2, 4 or 8.

    activations "float": the weight is dequantized at each use. "dynamic": the input is
    quantized to `input_bits` by its own range (that of the whole batch), and the product
    is one of whole numbers. "static": the same with a fixed range, from `observer`.
    With `group` each run of so many neighbours in an output's weights has its own scale.
    Raises ValueError for another kind of layer and for settings that do not go together.
    """

    made_of = (nn.Linear, QATLinear)
    operation = staticmethod(F.linear)


class QuantizedConv2d(_QuantizedLayer):
    """A Conv2d whose weight (outputs, inputs / groups, height, width) is held as whole
    numbers.

    There is one scale for each output channel, or one for the whole weight. `bits`,
    `activations` and the errors are those of `QuantizedLinear`. Stride, padding (of any
    mode), dilation and groups are those of the layer. Source: Jacob et al. (2018).
    Invariants: with float activations it is F.conv2d with the dequantized weight, to the
    bit; else no sum of whole numbers is rounded, and padding adds true zeros whatever the
    zero point.
    """

    made_of = (nn.Conv2d, QATConv2d)
    operation = staticmethod(_conv2d)


def quantize_model(
    model: nn.Module, bits: int = 8, per_channel: bool = True, activations: str = "float",
    calibration: Tensor | None = None, group: int | None = None,
) -> nn.Module:  # fmt: skip
    """Return a copy whose linear and Conv2d layers hold packed weights of `bits` 2, 4 or
    8.

    There is one scale for each output (`per_channel`), for each `group` neighbours among
    an output's weights, or for the whole layer.

    Each becomes a `QuantizedLinear` or a `QuantizedConv2d`. All other layers stay as they
    are, norm layers and the other convolutions among them. `calibration` (n, ...): inputs
    from the training rows, whose ranges static quantization keeps. Raises ValueError for
    a model without a layer to quantize, for static without `calibration`, and for a group
    that does not divide an output's weights.
    """
    model = bake(model)
    observers = {}
    if activations == "static":
        if calibration is None:
            raise ValueError(
                "static quantization needs calibration=, some training inputs"
            )
        observers = calibrate(model, calibration)

    def real(name: str, layer: nn.Linear | nn.Conv2d) -> nn.Module:
        kind = QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear
        observer = observers.get(name)
        return kind(layer, bits, per_channel, activations, observer, group=group)

    return _replace(model, real, QUANTIZABLE)


def convert(model: nn.Module) -> nn.Module:
    """Return a copy with the quantized layer for which each QAT layer was trained.

    Raises ValueError for a model without QAT layers.
    Invariant: its outputs are those of `model`, but for rounding in the last bits.
    """

    def real(_, layer: _QATLayer) -> nn.Module:
        kind = QuantizedConv2d if isinstance(layer, QATConv2d) else QuantizedLinear
        seen = None if layer.input_quantizer is None else layer.input_quantizer.observer
        mode = "float" if seen is None else "static"
        bits, axis = layer.weight_quantizer.bits, layer.weight_quantizer.axis
        return kind(layer, bits, axis is not None, mode, seen)

    return _replace(bake(model), real, (QATLinear, QATConv2d))
