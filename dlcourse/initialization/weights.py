"""The scale of one weight, and draws that have it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

import torch
from torch import Tensor

GAINS = {
    "linear": 1.0,
    "sigmoid": 1.0,
    "tanh": 5 / 3,
    "relu": math.sqrt(2),
    "selu": 3 / 4,
}


GAINS |= {f"conv{kind}{n}d": 1.0 for kind in ("", "_transpose") for n in (1, 2, 3)}


def calculate_fan(weight: Tensor) -> tuple[int, int]:
    """Return (fan_in, fan_out): how many products meet in one output, and how many use
    one input.

    `weight` is (out, in, ...), as nn.Linear and nn.Conv store it; the further dimensions
    are the kernel. Two of torch's conventions: with groups, fan_out counts all groups;
    nn.ConvTranspose stores (in, out, ...), so there the two names are swapped. Raises
    ValueError for fewer than two dimensions. Invariant: transposing a matrix swaps the
    two.
    """
    if weight.ndim < 2:
        raise ValueError(
            f"a tensor of shape {tuple(weight.shape)} has no fan: start biases with zeros and norm "
            "scales with ones"
        )
    kernel = math.prod(weight.shape[2:])
    return weight.shape[1] * kernel, weight.shape[0] * kernel


def calculate_gain(
    nonlinearity: str | Callable[[Tensor], Tensor], param: float | None = None
) -> float:
    """Return the factor on 1 / sqrt(fan_in) that makes up for what the nonlinearity takes
    away.

    A name ("linear", "sigmoid", "tanh", "relu", "leaky_relu" with its slope `param`,
    "selu", or a convolution's) gets torch's number. A function f gets 1 / sqrt(E[f(z)^2])
    with z standard normal: torch has no number for GELU, and 5/3 for tanh is a rule of
    thumb. Raises ValueError for other names, a bad slope, and a function that is zero
    everywhere or not finite. Source: He et al. (2015), equation 10. Invariant: for ReLU
    the name and the function agree.
    """
    if callable(nonlinearity):
        square = _normal_mean(lambda z: nonlinearity(z).square())
        if not 0 < square < math.inf:
            raise ValueError(
                f"E[f(z)^2] is {square} for {nonlinearity}: no weight can mend that"
            )
        return square**-0.5
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        if (
            isinstance(slope, bool)
            or not isinstance(slope, numbers.Real)
            or not -1e9 < slope < 1e9
        ):
            raise ValueError(f"param={slope!r}: give the slope as a number, such as 0.01")
        return math.sqrt(2 / (1 + slope**2))
    if nonlinearity not in GAINS:
        raise ValueError(
            f"no gain is listed for {nonlinearity!r}: give the function itself, such as F.gelu, or "
            f"one of leaky_relu, {', '.join(GAINS)}"
        )
    return GAINS[nonlinearity]


def _normal_mean(f: Callable[[Tensor], Tensor]) -> float:
    """Return E[f(z)], z standard normal: a sum over z = 9 u^3, u even in (-1, 1) and
    never 0.

    The grid is finest around 0, where a tanh of large inputs does all that it does.
    """
    u = (torch.arange(6000, dtype=torch.float64) + 0.5) / 3000 - 1
    z = 9 * u**3
    weights = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * 27 * u**2 / 3000
    return (f(z) * weights).sum().item()


@torch.no_grad()
def xavier_uniform_(
    tensor: Tensor, gain: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Fill with U(-a, a), a = gain * sqrt(6 / (fan_in + fan_out)), and return the tensor.

    Raises ValueError for fewer than two dimensions or a bad gain; an empty tensor stays.
    Source: Glorot & Bengio (2010). Invariant: variance gain^2 * 2 / (fan_in + fan_out).
    """
    bound = math.sqrt(3) * _xavier_std(tensor, gain)
    return tensor.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def xavier_normal_(
    tensor: Tensor, gain: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Fill with N(0, s^2), s = gain * sqrt(2 / (fan_in + fan_out)), and return the
    tensor.

    Errors, source and invariant are those of `xavier_uniform_`.
    """
    return tensor.normal_(0, _xavier_std(tensor, gain), generator=generator)


@torch.no_grad()
def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str | Callable[[Tensor], Tensor] = "leaky_relu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill with U(-b, b), b = gain * sqrt(3 / fan), and return the tensor.

    The gain is `calculate_gain(nonlinearity, a)`; `a` is the slope of a leaky ReLU.
    `mode` is "fan_in" (keeps the size of activations) or "fan_out" (keeps that of
    gradients). Raises ValueError for fewer than two dimensions or another mode; an empty
    tensor stays. With a = sqrt(5) it is torch's default for nn.Linear: U(-1, 1) /
    sqrt(fan_in). Source: He et al. (2015). Invariant: variance gain^2 / fan.
    """
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity)
    return tensor.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str | Callable[[Tensor], Tensor] = "leaky_relu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill with N(0, s^2), s = gain / sqrt(fan), and return the tensor.

    Settings, errors, source and invariant are those of `kaiming_uniform_`.
    """
    std = _kaiming_std(tensor, a, mode, nonlinearity)
    return tensor.normal_(0, std, generator=generator)


@torch.no_grad()
def orthogonal_(
    tensor: Tensor, gain: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Fill with a random rotation times `gain`, read as (rows, all the rest), and return
    it.

    Of a matrix that is not square, the shorter side is orthonormal. 16-bit tensors are
    computed in float32. Raises ValueError for fewer than two dimensions or a bad gain; an
    empty tensor stays.
    Source: Saxe, McClelland & Ganguli (2014). Invariant: W Wt = gain^2 I, or Wt W where W
    is tall.
    """
    calculate_fan(tensor)
    _check_factor(gain)
    if tensor.numel() == 0:
        return tensor
    rows, columns = len(tensor), tensor.numel() // len(tensor)
    dtype = tensor.dtype if tensor.dtype == torch.float64 else torch.float32
    normal = torch.empty(rows, columns, dtype=dtype, device=tensor.device)
    normal.normal_(generator=generator)
    q, r = torch.linalg.qr(normal.T if rows < columns else normal)
    q = torch.where(r.diagonal() < 0, -q, q)  # makes every rotation equally likely
    return tensor.copy_((q.T if rows < columns else q).reshape(tensor.shape)).mul_(gain)


def _xavier_std(tensor: Tensor, gain: float) -> float:
    _check_factor(gain)
    return gain * math.sqrt(2 / max(1, sum(calculate_fan(tensor))))


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity) -> float:
    fans = dict(zip(("fan_in", "fan_out"), calculate_fan(tensor), strict=True))
    if mode not in fans:
        raise ValueError(f"mode={mode!r}: choose 'fan_in' or 'fan_out'")
    return calculate_gain(nonlinearity, a) / math.sqrt(max(1, fans[mode]))


def _check_factor(gain: float) -> None:
    if not 0 <= gain < math.inf:
        raise ValueError(f"gain={gain}: give a finite number of at least 0, such as 1.0")
