"""Model compression: fewer weights, fewer bits a weight, or a smaller network taught by a
larger.

Pruning functions return masks and leave the model alone; `apply_masks` makes them last.
Quantizers map floats to whole numbers that fit in 2, 4 or 8 bits, and `pack_bits` puts
those into bytes.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
import numbers
from collections import Counter
from collections.abc import Callable, Iterator
from typing import BinaryIO

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights, parametrize, skip_init

Masks = dict[str, Tensor]  # module name -> bool, True where the weight stays
# outputs are the weight's first dimension
FOLDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
QUANTIZABLE = (nn.Linear, nn.Conv2d)

# --- pruning: single weights ----------------------------------------------------------------------


def magnitude_mask(weight: Tensor, amount: float | int) -> Tensor:
    """Return a bool mask of `weight`'s shape, False for the `amount` smallest absolute
    values.

    `amount`: a share from 0.0 to 1.0 of the entries (rounded), or a whole number of them.
    Of equal values the first go first. Raises ValueError for an amount out of range or
    weights that are not finite. Source: Han et al. (2015). Invariants: exactly `amount`
    entries are False; no entry that goes is larger than one that stays; more amount never
    brings an entry back.
    """
    count = _how_many(amount, weight.numel())
    size = _finite(weight.detach()).abs().ravel()
    mask = torch.ones_like(size, dtype=torch.bool)
    mask[size.argsort(stable=True)[:count]] = False
    return mask.view(weight.shape)


def n_m_mask(weight: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """Return a mask that keeps the `n` largest of each `m` neighbours along the last
    dimension.

    The last dimension is the one that a linear layer sums over. Raises ValueError unless
    0 <= n <= m and m >= 1 divides its size. Source: Mishra et al. (2021). Invariant: of
    all masks with at most n in m it keeps the largest sum of absolute values.
    """
    if not (0 <= n <= m and m >= 1) or weight.ndim == 0 or weight.shape[-1] % m:
        raise ValueError(
            f"cannot keep {n} of each {m} in a weight of shape {tuple(weight.shape)}: take "
            "0 <= n <= m, and an m that divides the last dimension"
        )
    groups = _finite(weight.detach()).abs().unflatten(-1, (-1, m))
    order = groups.argsort(dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return keep.view(weight.shape)


def magnitude_prune(model: nn.Module, amount: float | int) -> Masks:
    """Return a mask for each linear and convolution layer: each loses the same share of
    weights.

    Biases stay. Nothing changes until `apply_masks`.
    """
    return {name: magnitude_mask(layer.weight, amount) for name, layer in _layers(model)}


def global_prune(model: nn.Module, amount: float | int) -> Masks:
    """Return masks like `magnitude_prune`, but with one threshold for all layers
    together.

    A layer of small weights loses more than one of large weights, and may lose all.
    Invariant: as many weights go as with one tensor that holds them all.
    """
    layers = list(_layers(model))
    mask = magnitude_mask(
        torch.cat([layer.weight.detach().ravel() for _, layer in layers]), amount
    )
    parts = mask.split([layer.weight.numel() for _, layer in layers])
    return {
        n: part.view(layer.weight.shape)
        for (n, layer), part in zip(layers, parts, strict=True)
    }


def prune_n_m(model: nn.Module, n: int = 2, m: int = 4) -> Masks:
    """Return N:M masks for each linear layer whose inputs `m` divides; the others stay
    dense.
    """
    return {
        name: n_m_mask(layer.weight, n, m)
        for name, layer in _layers(model)
        if isinstance(layer, nn.Linear) and layer.in_features % m == 0
    }


def random_prune(model: nn.Module, amount: float | int, seed: int = 0) -> Masks:
    """Return masks that drop weights by lot: the baseline that any criterion must beat."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: magnitude_mask(
            torch.rand(layer.weight.shape, generator=generator), amount
        ).to(layer.weight.device)
        for name, layer in _layers(model)
    }


def saliency_prune(model: nn.Module, amount: float | int, sync: bool = True) -> Masks:
    """Return masks that drop the weights of least |weight * gradient|, from the `.grad`
    held now.

    That product is how much the loss would change, to first order, if the weight became
    0. With `sync` the gradients are averaged over all processes first, so that all get
    the same masks.
    Raises ValueError where a layer has no gradient. Source: Lee, Ajanthan & Torr (2019).
    """
    masks = {}
    for name, layer in _layers(model):
        if layer.weight.grad is None:
            raise ValueError(f"{name} has no gradient: call backward() on a loss first")
        grad = layer.weight.grad.clone()
        if sync and _distributed():
            # a sum: the order of sizes is that of the mean
            torch.distributed.all_reduce(grad)
        masks[name] = magnitude_mask(layer.weight.detach() * grad, amount)
    return masks


class Mask(nn.Module):
    """A parametrization that shows a weight times a fixed mask; its gradient is masked as
    well.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def apply_masks(model: nn.Module, masks: Masks) -> nn.Module:
    """Make the masked weights of `model` zero for good, in place, and return it.

    The layer then computes weight * mask at each use. So no optimizer can refill a zero,
    whatever momentum it brings along. `bake` turns the result back into a plain model.
    Raises KeyError for a name that is no module, ValueError for a mask of another shape.
    """
    modules = dict(model.named_modules())
    for name, mask in masks.items():  # all are looked at before the first one acts
        if modules[name].weight.shape != mask.shape:
            raise ValueError(
                f"the mask of {name} has shape {tuple(mask.shape)}, its weight "
                f"{tuple(modules[name].weight.shape)}: compute the masks from this very model"
            )
    for name, mask in masks.items():
        parametrize.register_parametrization(modules[name], "weight", Mask(mask.clone()))
    return model


def bake(model: nn.Module) -> nn.Module:
    """Return a copy whose masks are worked into plain weights. Invariant: the same
    outputs.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            # torch's own removal would break the original
            weight = module.weight.detach()
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            module._parameters = {"weight": nn.Parameter(weight), **module._parameters}
    return model


def sparsity(model: nn.Module) -> float:
    """Return the share, from 0 to 1, of weights in linear and convolution layers that are
    zero.
    """
    weights = [layer.weight for _, layer in _layers(model)]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def gradual_sparsity(final: float, steps: int, start: int = 0) -> Callable[[int], float]:
    """Return s(t): 0 up to update `start`, `final` from `start` + `steps` on, a cubic
    between.

    It prunes fast while many weights are idle, and slowly at the end. Raises ValueError
    unless 0 <= final <= 1 and steps >= 1. Source: Zhu & Gupta (2017). Invariant: s never
    falls.
    """
    if not (0 <= final <= 1 and steps >= 1):
        raise ValueError(
            f"final={final}, steps={steps}: give a share and at least one step"
        )
    return lambda t: final * (1 - (1 - min(max((t - start) / steps, 0.0), 1.0)) ** 3)


def pruning_step(
    schedule: Callable[[int], float], prune: Callable[[nn.Module, float], Masks] = global_prune,
    every: int = 10,
) -> Callable:  # fmt: skip
    """Return a step for `fit` that prunes to the share `schedule(t)`, anew each `every`
    updates.

    Masks come from the weights, which all processes share, and act after the optimizer,
    whose momentum would else refill the zeros. While the schedule is 0 it is `train_step`
    to the bit, and forgets the masks of an earlier run.
    """
    masks: Masks = {}

    def step(run, batch) -> Tensor:
        run.optimizer.zero_grad()
        loss = run.gradients(batch)
        run.unscale()
        run.optimizer.step()
        model, share = run.accelerator.unwrap_model(run.model), schedule(run.step)
        if not share > 0:
            masks.clear()
        elif run.step % every == 0 or not masks:
            masks.update(prune(model, share))
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_submodule(name).weight.mul_(mask)
        return loss

    return step


# --- pruning: whole units -------------------------------------------------------------------------


def prune_units(model: nn.Module, amount: float | int) -> nn.Module:
    """Return a smaller copy of `model` without the `amount` hidden units of least norm a
    layer.

    A unit is a row of a linear layer or a filter of a convolution. It goes with its bias
    and with the next layer's weights for it: with several columns a filter, where a
    linear layer reads the flattened grid. The layers, in the order in which they were
    made, must form a chain; what stands between must treat each unit by itself, as
    activations and pooling do. At least one unit of each layer stays. A skip connection
    cannot be seen from the layers and would come out wrong.
    Raises ValueError for layers that are no chain, for norm layers (`fold_batch_norms`
    takes them away) and for grouped convolutions.
    Source: Li et al. (2017), who rank by the sum of absolute values; here it is the
    Euclidean norm.
    Invariant: it computes what `model` would with those units' outputs set to zero.
    """
    model = bake(model)
    layers = [layer for _, layer in _layers(model)]
    known = {id(p) for layer in layers for p in layer.parameters()}
    if any(id(p) not in known for p in model.parameters()):
        raise ValueError(
            "prune_units knows linear and convolution layers only: take out or fold norm layers "
            "(see fold_batch_norms)"
        )
    if any(getattr(layer, "groups", 1) > 1 for layer in layers):
        raise ValueError(
            "prune_units cannot cut a grouped convolution: prune its weights instead"
        )
    for first, second in itertools.pairwise(layers):
        each, rest = divmod(second.weight.shape[1], first.weight.shape[0])
        # `each` cells of the grid a filter
        flattened = second.weight.ndim == 2 < first.weight.ndim
        if rest or each < 1 or (each > 1 and not flattened):
            raise ValueError(
                f"{first} does not feed {second}: prune_units needs layers that form a chain"
            )
    masks = [unit_mask(layer.weight, amount) for layer in layers[:-1]]
    for mask, (first, second) in zip(masks, itertools.pairwise(layers), strict=True):
        _shrink(
            first, first.weight[mask], None if first.bias is None else first.bias[mask]
        )
        by_unit = second.weight.unflatten(1, (-1, second.weight.shape[1] // len(mask)))
        _shrink(second, by_unit[:, mask].flatten(1, 2), second.bias)
    return model


def unit_mask(weight: Tensor, amount: float | int) -> Tensor:
    """Return a mask (units,), False for the `amount` rows of least Euclidean norm; one
    row stays.

    `amount` is a share of the rows or their number.
    """
    count = min(_how_many(amount, len(weight)), len(weight) - 1)
    return magnitude_mask(weight.detach().flatten(1).norm(dim=1), count)


def _shrink(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight = nn.Parameter(weight.detach().clone())
    layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    else:
        layer.out_channels, layer.in_channels = weight.shape[:2]


# --- batch norms ----------------------------------------------------------------------------------


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Return a copy with each batch norm worked into the linear or convolution layer
    before it.

    An Identity takes its place. The inputs of a linear layer must be rows (n, features).
    Fold before quantizing or cutting units: then the numbers that are rounded and
    compared are those that the network multiplies by.
    Raises ValueError for a batch norm that does not come right behind a linear or
    convolution layer in an nn.Sequential, has another width or no running statistics, and
    for layers used in several places. Source: Jacob et al. (2018).
    Invariants: it computes what `model` does in evaluation; with a scale for each output
    channel `quantize` finds the same whole numbers before and after, but for the sign of
    a channel whose norm has a negative weight, and for values at the edge between two
    numbers.
    """
    model = bake(model)
    uses = Counter(
        id(child) for module in model.modules() for child in module._modules.values()
    )
    for sequence in model.modules():
        if type(sequence).forward is not nn.Sequential.forward:
            continue
        for (_, layer), (name, norm) in itertools.pairwise(
            list(sequence._modules.items())
        ):
            if _is_batch_norm(norm) and isinstance(layer, FOLDS):
                if uses[id(layer)] > 1 or uses[id(norm)] > 1:
                    raise ValueError(
                        f"{layer} or its batch norm is used in several places"
                    )
                _fold(layer, norm)
                sequence._modules[name] = nn.Identity()
    for name, module in model.named_modules():
        if _is_batch_norm(module):
            raise ValueError(
                f"batch norm {name} does not come right behind a linear or convolution layer in an "
                "nn.Sequential: put the two side by side there, or fold them by hand"
            )
    return model


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    """Make layer(x) what norm(layer(x)) was in evaluation; the arithmetic is in float64."""
    weight = layer.weight
    if norm.running_mean is None or norm.num_features != len(weight):
        raise ValueError(
            f"cannot fold {norm} into {layer}: it needs running statistics, one for each output"
        )
    given = (weight, layer.bias, norm.running_mean, norm.running_var)
    wide = [None if values is None else values.double() for values in given]
    # of a linear layer too
    folded = fuse_conv_bn_weights(*wide, norm.eps, norm.weight, norm.bias)
    layer.weight, layer.bias = (
        nn.Parameter(values.to(weight.dtype), weight.requires_grad) for values in folded
    )


# --- quantization: numbers ------------------------------------------------------------------------


def quant_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """Return the lowest and highest whole number: -7 to 7 (symmetric) or 0 to 15 for 4
    bits.

    Raises ValueError for `bits` outside 2 to 8.
    """
    if bits not in range(2, 9):
        raise ValueError(f"bits={bits}: give a whole number from 2 to 8")
    return (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


def choose_qparams(
    x: Tensor, bits: int = 8, symmetric: bool = True, axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return scale > 0 (float32) and zero point (int32) that cover the range of `x`.

    One pair for the tensor, or one for each index of dimension `axis`. Symmetric: the
    zero point is 0 and the largest absolute value gets the largest number. Affine: the
    lowest and highest value get the ends of the range, which is widened to contain 0. An
    x of zeros gets scale 1.
    Raises ValueError for x that is empty, not finite or too large for float32, and for an
    axis that x has not. Source: Jacob et al. (2018). Invariant: zero is represented
    exactly.
    """
    if not x.numel():
        raise ValueError("an empty tensor has no range: give at least one value")
    scale, zero_point = qparams_from_range(*_range(_finite(x), axis), bits, symmetric)
    if not scale.isfinite().all():
        raise ValueError(
            "the range of x is wider than float32 can hold: divide x by a constant"
        )
    return scale, zero_point


def qparams_from_range(
    low: Tensor, high: Tensor, bits: int = 8, symmetric: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point for values from `low` to `high`, in float32.

    The scale is float32 also for a 16-bit x: rounded to 16 bits it would move every
    value.
    """
    qmin, qmax = quant_range(bits, symmetric)
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    scale = torch.maximum(-low, high) / qmax if symmetric else (high - low) / qmax
    scale = torch.where(scale > 0, scale, 1.0).clamp(min=torch.finfo(torch.float32).tiny)
    zero_point = torch.zeros_like(low) if symmetric else (qmin - (low / scale).round())
    return scale, zero_point.clamp(qmin, qmax).int()


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int = 8, symmetric: bool = True,
    axis: int | None = None,
) -> Tensor:  # fmt: skip
    """Return round(x / scale) + zero_point, clamped to `quant_range`: int8, or uint8 if
    affine.

    Halves go to the even neighbour. Raises ValueError for NaN, which no whole number
    stands for, for scales that are not above 0, and for several of them without an axis
    (as do `dequantize` and `fake_quantize`). Invariant: inside the range the error of the
    round trip is at most scale / 2.
    """
    qmin, qmax = quant_range(bits, symmetric)
    scale, zero_point = _along(scale, x, axis), _along(zero_point, x, axis)
    if x.isnan().any() or not (scale > 0).all():
        raise ValueError(
            "NaN, or a scale that is not above 0: look for a run that diverged"
        )
    q = (_wide(x) * (1 / scale)).round() + zero_point
    return q.clamp(qmin, qmax).to(torch.int8 if symmetric else torch.uint8)


def dequantize(
    q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None
) -> Tensor:
    """Return (q - zero_point) * scale in float32: the values that `q` stands for."""
    return (q.float() - _along(zero_point, q, axis)) * _along(scale, q, axis)


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Return uint8 (ceil(n * bits / 8),) that holds n whole numbers of `bits` 1, 2, 4 or
    8 each.

    The first number takes the lowest bits; negative ones are kept in two's complement.
    Raises ValueError for other `bits`, for floats, and for numbers that do not fit.
    Invariant: `unpack_bits` returns the numbers (`signed` if one of them is negative).
    """
    _check_packing(bits)
    if values.is_floating_point():
        raise ValueError("pack_bits takes whole numbers: quantize the values first")
    low, high = (int(v) for v in values.aminmax()) if values.numel() else (0, 0)
    half = 2 ** (bits - 1)
    if not (0 <= low and high < 2 * half) and not (
        bits > 1 and -half <= low and high < half
    ):
        raise ValueError(f"numbers from {low} to {high} do not fit in {bits} bits")
    each = 8 // bits
    flat = values.ravel().to(torch.int16) & (2**bits - 1)
    flat = F.pad(flat, (0, -len(flat) % each)).view(-1, each)
    return (flat << torch.arange(0, 8, bits, device=flat.device)).sum(1).to(torch.uint8)


def unpack_bits(
    packed: Tensor, bits: int, shape: tuple[int, ...] | torch.Size, signed: bool = False
) -> Tensor:
    """Return the numbers that `pack_bits` packed, in `shape`: int8 if `signed`, else
    uint8.
    """
    _check_packing(bits)
    shifts = torch.arange(0, 8, bits, device=packed.device)
    flat = (packed.to(torch.int16).unsqueeze(1) >> shifts) & (2**bits - 1)
    flat = flat.ravel()[: math.prod(shape)].view(shape)
    if not signed:
        return flat.to(torch.uint8)
    return torch.where(flat >= 2 ** (bits - 1), flat - 2**bits, flat).to(torch.int8)


def _check_packing(bits: int) -> None:
    if bits not in (1, 2, 4, 8):
        raise ValueError(f"bits={bits}: numbers of 1, 2, 4 or 8 bits fill bytes evenly")


# --- quantization: layers -------------------------------------------------------------------------


class RangeObserver(nn.Module):
    """Remember the lowest and highest value seen, as calibration needs, and pass x
    through.

    With `sync` the range is that over all processes: a process that kept its own would
    quantize otherwise than its neighbours.
    """

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
        x, padding = F.pad(x, padding, mode), 0
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


def _check_kind(made: nn.Module, layer: nn.Module) -> None:
    if not isinstance(layer, made.made_of):
        names = " or ".join(kind.__name__ for kind in made.made_of)
        raise ValueError(f"{type(made).__name__} is made of a {names}, not of {layer}")


class _QATLayer(nn.Module):
    made_of: tuple[type, ...]
    operation: Callable[..., Tensor]  # of x, weight, bias and the geometry

    def __init__(
        self, layer: nn.Module, bits: int, per_channel: bool, inputs: bool
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

    def fake(_, layer: nn.Module) -> nn.Module:
        kind = QATConv2d if isinstance(layer, nn.Conv2d) else QATLinear
        return kind(layer, bits, per_channel, inputs)

    return _replace(bake(model), fake)


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


class _QuantizedLayer(nn.Module):
    made_of: tuple[type, ...]
    operation: Callable[..., Tensor]  # of x, weight, bias and the geometry

    def __init__(
        self, layer: nn.Module, bits: int = 8, per_channel: bool = True,
        activations: str = "float", observer: RangeObserver | None = None, input_bits: int = 8,
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
        weight, axis = layer.weight.detach(), 0 if per_channel else None
        scale, zero_point = choose_qparams(weight, bits, axis=axis)
        self.bits, self.axis, self.shape, self.geometry = (
            bits,
            axis,
            weight.shape,
            _geometry(layer),
        )
        self.activations, self.input_bits = activations, input_bits
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
        return dequantize(
            self.whole(), self.scale, torch.zeros_like(self.scale), self.axis
        )

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
    calibration: Tensor | None = None,
) -> nn.Module:  # fmt: skip
    """Return a copy whose linear and Conv2d layers hold packed weights of `bits` 2, 4 or
    8.

    Each becomes a `QuantizedLinear` or a `QuantizedConv2d`. All other layers stay as they
    are, norm layers and the other convolutions among them. `calibration` (n, ...): inputs
    from the training rows, whose ranges static quantization keeps. Raises ValueError for
    a model without a layer to quantize, and for static without `calibration`.
    """
    model = bake(model)
    observers = {}
    if activations == "static":
        if calibration is None:
            raise ValueError(
                "static quantization needs calibration=, some training inputs"
            )
        observers = calibrate(model, calibration)

    def real(name: str, layer: nn.Module) -> nn.Module:
        kind = QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear
        return kind(layer, bits, per_channel, activations, observers.get(name))

    return _replace(model, real)


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


# --- distillation ---------------------------------------------------------------------------------


def distillation_loss(
    student: Tensor, teacher: Tensor, targets: Tensor | None = None,
    temperature: float = 4.0, alpha: float = 0.9,
) -> Tensor:  # fmt: skip
    """Return alpha * T² * KL(teacher || student) at temperature T + (1 - alpha) * cross
    entropy.

    `student` and `teacher`: finite logits (n, classes), n >= 1; no gradient reaches the
    teacher.
    `targets` (n,): class numbers, -100 where a row has none; None leaves the second term
    out, and alpha is 1. Both terms are means over all n rows, so that parts of a batch
    add up by their rows. The arithmetic is float32 or wider; in float32 the value loses
    digits at T above some 1000. T² keeps the gradient's size as T changes. Raises
    ValueError for T not above 0 or infinite, alpha outside [0, 1], or shapes that differ.
    Source: Hinton, Vinyals & Dean (2015).
    Invariants: without targets it is 0 where the logits agree up to a constant a row, and
    positive elsewhere.
    """
    if not 0 < temperature < math.inf or not 0 <= alpha <= 1:
        raise ValueError(
            f"temperature={temperature}, alpha={alpha}: give a temperature above 0 and a share "
            "alpha from 0 to 1"
        )
    _same_classes(student, teacher)
    log_q = F.log_softmax(_wide(student) / temperature, dim=1)
    log_p = F.log_softmax(_wide(teacher.detach()) / temperature, dim=1)
    soft = (log_p.exp() * (log_p - log_q)).sum(1).mean() * temperature**2
    if targets is None:
        return soft
    hard = F.cross_entropy(
        _wide(student), targets, ignore_index=-100, reduction="none"
    ).mean()
    return alpha * soft + (1 - alpha) * hard


def hard_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the cross entropy of `student` with the class that `teacher` ranks first.

    Both are logits (n, classes). Raises ValueError for shapes that differ.
    """
    _same_classes(student, teacher)
    return F.cross_entropy(student, teacher.detach().argmax(1))


def _same_classes(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(
            f"logits of shape {tuple(student.shape)} and {tuple(teacher.shape)}: both must be "
            "(rows, classes), with the same classes in the same order"
        )


# --- low rank -------------------------------------------------------------------------------------


def low_rank_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return up (outputs, rank) and down (rank, inputs), whose product is nearest to
    `weight`.

    `down` holds the top right singular vectors, found as eigenvectors of the transposed
    weight times the weight, in float64. Raises ValueError for a rank outside 1 to
    min(weight.shape).
    Source: Eckart & Young (1936). Invariant: the squared error is the sum of the squared
    singular values left out; no product of this rank has a smaller one.
    """
    if weight.ndim != 2 or not 1 <= rank <= min(weight.shape):
        raise ValueError(
            f"rank={rank} for a weight of shape {tuple(weight.shape)}: give a matrix, and a rank "
            "from 1 to the smaller of its sides"
        )
    wide = _finite(weight.detach()).double()
    down = torch.linalg.eigh(wide.T @ wide).eigenvectors[:, -rank:].T
    return (wide @ down.T).to(weight.dtype), down.to(weight.dtype).contiguous()


def factorize(model: nn.Module, rank: int) -> nn.Module:
    """Return a copy with two thin linear layers in place of each one that this makes
    smaller.
    """

    def thin(_, linear: nn.Linear) -> nn.Module:
        outputs, inputs = linear.weight.shape
        if rank * (inputs + outputs) >= inputs * outputs:
            return linear
        up, down = low_rank_factors(linear.weight, rank)
        first = skip_init(nn.Linear, inputs, rank, bias=False)
        second = skip_init(nn.Linear, rank, outputs)
        _shrink(first, down, None)
        _shrink(second, up, linear.bias)
        return nn.Sequential(first, second)

    return _replace(bake(model), thin, (nn.Linear,))


# --- bytes ----------------------------------------------------------------------------------------


def save_compact(model: nn.Module, file: BinaryIO) -> None:
    """Write the numbers of `model` to an open binary file, tensors with many zeros
    sparsely.

    A header in JSON, then raw bytes. A tensor of n entries with k that are not zero goes
    as n bits and k entries where that is shorter. Nothing is lost: `load_compact` returns
    every number.
    """
    table, data = [], []
    for name, tensor in bake(model).state_dict().items():
        mask, size = tensor != 0, tensor.element_size()
        short = (
            math.ceil(tensor.numel() / 8) + int(mask.sum()) * size < tensor.numel() * size
        )
        parts = [pack_bits(mask, 1), tensor[mask]] if short else [tensor]
        table.append([name, str(tensor.dtype).split(".")[1], list(tensor.shape), short])
        data += [
            part.reshape(-1).view(torch.uint8).cpu().numpy().tobytes() for part in parts
        ]
    header = json.dumps(table, separators=(",", ":")).encode()
    file.write(len(header).to_bytes(8, "little") + header + b"".join(data))


def load_compact(model: nn.Module, file: BinaryIO) -> nn.Module:
    """Read what `save_compact` wrote into a model of the same structure, and return it."""
    table = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    state = {}
    for name, kind, shape, short in table:
        dtype, count = getattr(torch, kind), math.prod(shape)
        if short:
            mask = _read(file, math.ceil(count / 8), torch.uint8)
            mask = unpack_bits(mask, 1, shape).bool()
            state[name] = torch.zeros(shape, dtype=dtype)
            state[name][mask] = _read(file, int(mask.sum()), dtype)
        else:
            state[name] = _read(file, count, dtype).view(shape)
    model.load_state_dict(state)
    return model


def _read(file: BinaryIO, count: int, dtype: torch.dtype) -> Tensor:
    data = bytearray(file.read(count * dtype.itemsize))
    return torch.frombuffer(data, dtype=dtype) if count else torch.empty(0, dtype=dtype)


def model_size(model: nn.Module) -> int:
    """Return the bytes of the file that `save_compact` writes for `model`."""
    file = io.BytesIO()
    save_compact(model, file)
    return file.getbuffer().nbytes


# --- helpers --------------------------------------------------------------------------------------


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
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
    model: nn.Module, make: Callable[[str, nn.Module], nn.Module],
    kinds: tuple[type, ...] = QUANTIZABLE,
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


def _range(x: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    if axis is None:
        return x.amin(), x.amax()
    others = [dim for dim in range(x.ndim) if dim != _dimension(axis, x)]
    return (x.amin(others), x.amax(others)) if others else (x, x)


def _dimension(axis: int, x: Tensor) -> int:
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(
            f"axis={axis}: the tensor has {x.ndim} dimensions, counted from 0"
        )
    return axis % x.ndim


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """Shape `values` (one, or one for each index of `axis`) so that they broadcast
    against x.
    """
    count = 1 if axis is None else x.shape[_dimension(axis, x)]
    if values.numel() not in (1, count):
        raise ValueError(
            f"{values.numel()} scales or zero points for shape {tuple(x.shape)}, axis={axis}: give "
            "one, or one for each index of `axis`"
        )
    if axis is None:
        return values
    return values.reshape([-1 if dim == axis % x.ndim else 1 for dim in range(x.ndim)])
