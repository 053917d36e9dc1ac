"""Number formats of 8 to 32 bits: ranges, gaps, rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Format:
    """A floating-point format: one sign bit, `exponent` bits, `mantissa` bits.

    With `infinities` the highest exponent is kept for inf and NaN, as in IEEE 754.
    Without, only the code of all ones is NaN, and the rest of that exponent holds numbers
    (FP8 E4M3).
    Sources: IEEE 754; Micikevicius et al. (2022) for the FP8 formats.
    Invariants: `max`, `tiny`, `smallest` and `eps` are exact, and equal torch.finfo's.
    """

    name: str
    exponent: int
    mantissa: int
    infinities: bool = True

    @property
    def width(self) -> int:
        """Return the number of bits."""
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        """Return what is taken off the exponent field."""
        return 2 ** (self.exponent - 1) - 1

    @property
    def max(self) -> float:
        """Return the largest finite number."""
        if self.infinities:
            return (2 - 2.0**-self.mantissa) * 2.0**self.bias
        return (2 - 2.0 ** (1 - self.mantissa)) * 2.0 ** (self.bias + 1)

    @property
    def tiny(self) -> float:
        """Return the smallest normal number: below it, digits are lost one by one."""
        return 2.0 ** (1 - self.bias)

    @property
    def smallest(self) -> float:
        """Return the smallest number above zero, a subnormal one."""
        return self.tiny * self.eps

    @property
    def eps(self) -> float:
        """Return the distance from 1 to the next number."""
        return 2.0**-self.mantissa


FORMATS = {
    "fp32": Format("fp32", 8, 23),
    "tf32": Format("tf32", 8, 10),
    "fp16": Format("fp16", 5, 10),
    "bf16": Format("bf16", 8, 7),
    "e5m2": Format("e5m2", 5, 2),
    "e4m3": Format("e4m3", 4, 3, infinities=False),
}


OF_DTYPE = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def format_of(name: str | Format) -> Format:
    """Return the format called `name`, or the format itself.

    Raises ValueError for a name that is not in FORMATS.
    """
    if isinstance(name, Format):
        return name
    if name not in FORMATS:
        raise ValueError(f"no format {name!r}: choose one of {', '.join(FORMATS)}")
    return FORMATS[name]


def _exponent(x: Tensor) -> Tensor:
    """Return floor(log2 |x|) of float64 numbers, from their own bits; -1023 for zero."""
    return (x.view(torch.int64) >> 52 & 0x7FF) - 1023


def _power_of_two(exponent: Tensor) -> Tensor:
    """Return 2 ** exponent as float64, exactly; -1022 to 1023."""
    return (exponent + 1023 << 52).view(torch.float64)


def round_to(
    x: Tensor,
    fmt: str | Format,
    *,
    stochastic: bool = False,
    generator: torch.Generator | None = None,
    saturate: bool = False,
) -> Tensor:
    """Round each number of `x` (any shape, floating) to the nearest one of a format.

    Ties go to the even neighbour. `stochastic`: up or down at random, so that the mean is
    `x`. Beyond the largest number comes inf, or NaN where the format has none, or with
    `saturate` the largest number. NaN stays NaN. The result has the dtype and shape of
    `x`; the arithmetic is float64, in which every step is exact. Raises TypeError for
    integers.
    Source: IEEE 754; Gupta et al. (2015) for stochastic rounding.
    Invariants: idempotent; odd in x; nearest rounding never changes an order; the error
    of a normal number is at most |x| eps / 2.
    """
    fmt = format_of(fmt)
    if not x.is_floating_point():
        raise TypeError(
            f"round_to needs floating-point numbers, not {x.dtype}: use x.float()"
        )
    wide = x.double()
    finite = wide.isfinite()
    size = torch.where(finite, wide.abs(), 0.0)
    # below 2 ** lowest the step no longer shrinks: subnormal numbers
    lowest = 1 - fmt.bias
    step = _power_of_two(_exponent(size).clamp(min=lowest) - fmt.mantissa)
    if stochastic:
        draw = torch.rand(size.shape, dtype=torch.float64, generator=generator)
        size = torch.floor(size / step + draw.to(size.device)) * step
    else:
        size = torch.round(size / step) * step  # half to even
    size = torch.where(finite, size, wide.abs())
    beyond = fmt.max if saturate else math.inf if fmt.infinities else math.nan
    size = torch.where(size > fmt.max, beyond, size)
    return torch.copysign(size, wide).to(x.dtype)


def underflow_fraction(
    tensors: Tensor | Iterable[Tensor], fmt: str | Format = "fp16", scale: float = 1.0
) -> float:
    """Return the share, 0 to 1, of the entries that are not zero but become zero in a
    format.

    `scale` > 0 multiplies them first, as a loss scale does. No such entries at all: 0.
    Raises ValueError for a bad scale. Invariant: a larger scale never loses more.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"scale={scale}: give a number above 0, such as 65536.0")
    tensors = [tensors] if isinstance(tensors, Tensor) else tensors
    lost = there = 0
    for tensor in tensors:
        values = tensor.detach().double()
        lost += int(((round_to(values * scale, fmt) == 0) & (values != 0)).sum())
        there += int((values != 0).sum())
    return lost / there if there else 0.0
