"""Activations: the functions between layers, the outputs that belong to a loss, and what
to watch.

All are written from exp, expm1, log1p and erfc, in forms that neither overflow nor turn a
gradient into NaN. PyTorch's autograd makes the gradients.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def _rounded_once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compute 16-bit inputs in float32 and round the result, as torch does."""

    @functools.wraps(function)
    def widened(x: Tensor, *args, **settings) -> Tensor:
        if x.dtype not in (torch.float16, torch.bfloat16):
            return function(x, *args, **settings)
        return function(x.float(), *args, **settings).to(x.dtype)

    return widened


# --- hidden units ---------------------------------------------------------------------------------


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0), entry by entry; the slope at 0 is 0.

    Source: Nair & Hinton (2010); Glorot, Bordes & Bengio (2011). Invariant: relu(c x) = c
    relu(x) for c > 0. NaN stays NaN.
    """
    # not x > 0: NaN fails every comparison, and must stay
    return torch.where(x <= 0, 0.0, x)


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """Return x where x > 0, else `negative_slope` * x; the slope at 0 is
    `negative_slope`.

    Source: Maas, Hannun & Ng (2013). Invariant: with slope 1 it is the identity.
    """
    return torch.where(x > 0, x, negative_slope * x)


@_rounded_once
def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x)), in [0, 1].

    Finite in value and gradient for every finite x, and exact to rounding in both tails.
    NaN stays NaN. Invariant: sigmoid(x) + sigmoid(-x) = 1.
    """
    positive = x >= 0
    # exp(-|x|), at most 1; not by abs, whose slope at 0 is 0
    z = torch.exp(torch.where(positive, -x, x))
    return torch.where(positive, 1.0, z) / (1 + z)


@_rounded_once
def tanh(x: Tensor) -> Tensor:
    """Return (exp(x) - exp(-x)) / (exp(x) + exp(-x)), in [-1, 1].

    Exact to rounding also near 0, where the difference of two exponentials is not.
    Invariant: tanh(x) = 2 sigmoid(2 x) - 1.
    """
    positive = x >= 0
    t = torch.expm1(torch.where(positive, -2 * x, 2 * x))  # exp(-2|x|) - 1, from -1 to 0
    return torch.where(positive, -t, t) / (2 + t)


@_rounded_once
def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Return x * Phi(x), with Phi the share of a standard normal below x.

    `approximate="tanh"` is the older formula with tanh, within 5e-4 of it. As in torch,
    -inf gives NaN (it is -inf times 0). Raises ValueError for another `approximate`.
    Source: Hendrycks & Gimpel (2016). Invariant: gelu(x) - gelu(-x) = x.
    """
    if approximate == "none":
        # 1 + erf would lose the left tail
        return x * (0.5 * torch.erfc(x * -math.sqrt(0.5)))
    if approximate == "tanh":
        # beyond that tanh is 1, and in float16 the cube would overflow
        y = x.clamp(-20, 20)
        return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    raise ValueError(f"approximate={approximate!r}: choose 'none' or 'tanh'")


@_rounded_once
def silu(x: Tensor) -> Tensor:
    """Return x * sigmoid(x), also called swish; as in torch, -inf gives NaN.

    Source: Hendrycks & Gimpel (2016); Elfwing, Uchibe & Doya (2018). Invariant:
    silu(x) - silu(-x) = x.
    """
    return x * sigmoid(x)


class SwiGLU(nn.Module):
    """The gated feed-forward layer down(silu(gate(x)) * up(x)) on the last dimension.

    `gate` and `up` are in_features x hidden_features, `down` leads to `out_features`
    (default: in_features). Three matrices instead of two: with hidden_features = 2/3 of a
    plain layer's width the number of weights is the same. Weights are normal, scaled so
    that inputs of mean square 1 give outputs of mean square 1; biases, if any, are 0.
    Raises ValueError for sizes below 1.
    Source: Shazeer (2020).
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        bias: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        out_features = in_features if out_features is None else out_features
        if min(in_features, hidden_features, out_features) < 1:
            raise ValueError("give sizes of at least 1")
        self.gate = _empty_linear(in_features, hidden_features, bias)
        self.up = _empty_linear(in_features, hidden_features, bias)
        self.down = _empty_linear(hidden_features, out_features, bias)
        for layer, gain in (
            (self.gate, 1.0),
            (self.up, 1.0),
            (self.down, forward_gain(silu)),
        ):
            _normal_(layer, gain, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Turn x (..., in_features) into (..., out_features)."""
        return self.down(silu(self.gate(x)) * self.up(x))


# --- outputs and their losses ---------------------------------------------------------------------


@_rounded_once
def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Return exp(x) over its sum along `dim`: numbers in [0, 1] that sum to 1.

    The largest entry is subtracted first, which changes nothing but the size of the
    numbers. An entry of -inf gets 0; a row of nothing but -inf, or with +inf or NaN, gets
    NaN, as in torch.
    Invariant: softmax(x + c) = softmax(x).
    """
    if x.numel() == 0:
        return x.clone()
    z = torch.exp(x - x.detach().amax(dim, keepdim=True))
    return z / z.sum(dim, keepdim=True)


@_rounded_once
def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Return the logarithm of softmax(x), by log-sum-exp: finite where softmax rounds to
    0.

    Invariant: exp(log_softmax(x)) sums to 1 along `dim`.
    """
    if x.numel() == 0:
        return x.clone()
    x = x - x.detach().amax(dim, keepdim=True)
    return x - torch.exp(x).sum(dim, keepdim=True).log()


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """Return minus the log-probability of the right class: softmax and its loss in one.

    `logits` (n, classes), `targets` (n,) class numbers int64. `reduction`: "mean", "sum",
    "none". The gradient of a row is softmax(logits) minus the one-hot target. A row whose
    target is `ignore_index` has loss 0 and does not count in the mean. Raises ValueError
    for other shapes, TypeError for targets that are no integers.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)}: give (n, classes) "
            "and (n,)"
        )
    if targets.dtype != torch.int64:
        raise TypeError(f"targets are {targets.dtype}: give class numbers as int64")
    counted = targets != ignore_index
    column = torch.where(counted, targets, 0).unsqueeze(1)
    losses = -log_softmax(logits, 1).gather(1, column).squeeze(1)
    losses = torch.where(counted, losses, 0.0)
    if reduction == "mean":
        return losses.sum() / counted.sum()
    return _reduce(losses, reduction)


def binary_cross_entropy_with_logits(
    logits: Tensor, targets: Tensor, reduction: str = "mean"
) -> Tensor:
    """Return -y log p - (1 - y) log(1 - p) with p = sigmoid(logits): sigmoid and its loss
    in one.

    `targets` y in [0, 1], of the shape of `logits`. Computed as max(x, 0) - x y + log(1 +
    e^-|x|), so it is finite for every finite logit. The gradient of an entry is
    sigmoid(logit) - y. Raises ValueError for shapes that differ.
    """
    if logits.shape != targets.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ: give one "
            "target for each logit, or they would be broadcast against each other"
        )
    positive = logits >= 0
    z = torch.exp(torch.where(positive, -logits, logits))
    losses = torch.where(positive, logits, 0.0) - logits * targets + torch.log1p(z)
    return _reduce(losses, reduction)


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    if reduction in ("mean", "sum"):
        return getattr(losses, reduction)()
    raise ValueError(f"reduction={reduction!r}: choose 'mean', 'sum' or 'none'")


# --- what to watch --------------------------------------------------------------------------------


def ever_active(outputs: Tensor, dim: int = -1) -> Tensor:
    """Return for each unit whether it is not 0 on at least one row; bool (units,).

    `outputs` are those after the activation; `dim` is the dimension of the units, and all
    others count as rows (for images (n, c, h, w): dim=1). NaN counts as active. Masks of
    batches or of processes are joined by "or". Raises ValueError for a single number.
    Invariant: joined masks of parts equal the mask of the whole.
    """
    if outputs.ndim == 0:
        raise ValueError("outputs is a single number: give outputs (rows, units)")
    active = (outputs != 0).movedim(dim, -1)
    return active if active.ndim == 1 else active.flatten(0, -2).any(0)


def dead_fraction(outputs: Tensor | Iterable[Tensor], dim: int = -1) -> float:
    """Return the share of units, from 0 to 1, that are 0 on every row of every batch.

    `outputs`: one tensor (rows, ..., units) after the activation, or an iterable of them,
    one a batch. Raises ValueError where there is nothing to count (no batch, row or
    unit), and where the batches differ in their units.
    Invariant: cutting the rows into batches does not change the result.
    """
    alive, numbers = None, 0
    for batch in [outputs] if isinstance(outputs, Tensor) else outputs:
        mask, numbers = ever_active(batch, dim), numbers + batch.numel()
        if alive is not None and len(alive) != len(mask):
            raise ValueError(
                f"batches of {len(alive)} and of {len(mask)} units: give one layer's"
            )
        alive = mask if alive is None else alive | mask
    if alive is None or not numbers:
        raise ValueError(
            "no units to count: give outputs (rows, units), at least one row"
        )
    return 1 - alive.double().mean().item()


def gradient_ratio(module: nn.Module) -> float:
    """Return the root mean square gradient of the first weight matrix over that of the
    last.

    Reads the `.grad` of the parameters with two dimensions or more, in the module's
    order; call it after `backward`. Far below 1 the gradient vanishes on its way down,
    far above 1 it explodes. Where the last gradient is 0 the ratio is inf, or NaN if the
    first is 0 too. Raises ValueError where fewer than two weight matrices have a
    gradient.
    Invariant: scaling the loss does not change it.
    """
    grads = [p.grad for p in module.parameters() if p.ndim >= 2 and p.grad is not None]
    if len(grads) < 2:
        raise ValueError(
            f"{len(grads)} weight matrices have a gradient, two are needed: call backward first"
        )
    first, last = (grad.double().square().mean().sqrt() for grad in (grads[0], grads[-1]))
    return (first / last).item()


# --- a start that fits the activation -------------------------------------------------------------


def moments(activation: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Return the mean squares of f(z) and of its slope f'(z), for z standard normal.

    By the midpoint rule on 40,000 points from -10 to 10; `activation` works entry by
    entry, in place or not.
    """
    z = torch.arange(-10 + 2.5e-4, 10, 5e-4, dtype=torch.float64).requires_grad_()
    with torch.enable_grad():
        values = activation(z.clone())
        # a constant has slope 0
        (slopes,) = torch.autograd.grad(values.sum() + 0 * z.sum(), z)
    weight = torch.exp(-0.5 * z.detach() ** 2) * (5e-4 / math.sqrt(2 * math.pi))
    return (weight * values.detach() ** 2).sum().item(), (weight * slopes**2).sum().item()


def forward_gain(activation: Callable[[Tensor], Tensor]) -> float:
    """Return the gain g for which weights of SD g / sqrt(fan_in) keep the signal's mean
    square.

    Source: He et al. (2015) for ReLU, where it is sqrt(2). Invariant: g^2 times the mean
    square of f(z) is 1 for z standard normal. Raises ValueError for a function that is 0
    everywhere, or not finite on [-10, 10].
    """
    size = moments(activation)[0]
    if not math.isfinite(size):
        raise ValueError("this activation is not finite on [-10, 10]: give one that is")
    if size == 0:
        raise ValueError(
            "this activation is 0 everywhere: no gain can keep a signal that is gone"
        )
    return size**-0.5


def gradient_factor(activation: Callable[[Tensor], Tensor]) -> float:
    """Return by what one layer multiplies the size of the gradient on its way back.

    For wide layers whose weights have the SD forward_gain / sqrt(fan_in). Invariant: it
    is 1 for ReLU and for the identity.
    """
    return forward_gain(activation) * math.sqrt(moments(activation)[1])


def _empty_linear(in_features: int, out_features: int, bias: bool) -> nn.Linear:
    """Return a layer whose weights are still to be drawn, without drawing torch's own."""
    layer = nn.Linear(in_features, out_features, bias=bias, device="meta")
    return layer.to_empty(device="cpu")


def _normal_(layer: nn.Linear, gain: float, generator: torch.Generator | None) -> None:
    nn.init.normal_(
        layer.weight, std=gain / math.sqrt(layer.in_features), generator=generator
    )
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
