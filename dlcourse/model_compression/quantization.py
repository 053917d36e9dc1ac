"""Quantization of tensors: floats to whole numbers of few bits, and back."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dlcourse.model_compression.layers import _finite, _wide


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
    half = 2 ** (bits - 1)
    return ((flat ^ half) - half).to(torch.int8)  # two's complement: the top bit is -half


def _check_packing(bits: int) -> None:
    if bits not in (1, 2, 4, 8):
        raise ValueError(f"bits={bits}: numbers of 1, 2, 4 or 8 bits fill bytes evenly")


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
