"""Activations: the functions between layers, the outputs that belong to a loss, and what
to watch.

All are written from exp, expm1, log1p and erfc, in forms that neither overflow nor turn a
gradient into NaN. PyTorch's autograd makes the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dlcourse.lab.exercises import Exercise, Wrong, expect

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


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x)), in [0, 1].

    Finite in value and gradient for every finite x, and exact to rounding in both tails.
    NaN stays NaN. Invariant: sigmoid(x) + sigmoid(-x) = 1.
    """
    positive = x >= 0
    # exp(-|x|), at most 1; not by abs, whose slope at 0 is 0
    z = torch.exp(torch.where(positive, -x, x))
    return torch.where(positive, 1.0, z) / (1 + z)


def tanh(x: Tensor) -> Tensor:
    """Return (exp(x) - exp(-x)) / (exp(x) + exp(-x)), in [-1, 1].

    Exact to rounding also near 0, where the difference of two exponentials is not.
    Invariant: tanh(x) = 2 sigmoid(2 x) - 1.
    """
    positive = x >= 0
    t = torch.expm1(torch.where(positive, -2 * x, 2 * x))  # exp(-2|x|) - 1, from -1 to 0
    return torch.where(positive, -t, t) / (2 + t)


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
        self.gate, self.up = (
            nn.utils.skip_init(nn.Linear, in_features, hidden_features, bias=bias)
            for _ in range(2)
        )
        self.down = nn.utils.skip_init(
            nn.Linear, hidden_features, out_features, bias=bias
        )
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


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Return the logarithm of softmax(x), by log-sum-exp: finite where softmax rounds to
    0.

    Invariant: exp(log_softmax(x)) sums to 1 along `dim`.
    """
    if x.numel() == 0:
        return x.clone()
    x = x - x.detach().amax(dim, keepdim=True)
    return x - torch.exp(x).sum(dim, keepdim=True).log()


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return minus the log-probability of the right class: softmax and its loss in one.

    `logits` (n, classes), `targets` (n,) class numbers int64. `reduction`: "mean", "sum",
    "none". The gradient of a row is softmax(logits) minus the one-hot target. Raises
    ValueError for other shapes, TypeError for targets that are no integers.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)}: give (n, classes) "
            "and (n,)"
        )
    if targets.dtype != torch.int64:
        raise TypeError(f"targets are {targets.dtype}: give class numbers as int64")
    losses = -log_softmax(logits, 1).gather(1, targets.unsqueeze(1)).squeeze(1)
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


def half_squared_error(
    outputs: Tensor, targets: Tensor, reduction: str = "mean"
) -> Tensor:
    """Return (outputs - targets)^2 / 2: the loss that belongs to an output without an
    activation.

    The gradient of an entry is output - target; `torch.nn.functional.mse_loss` is twice
    as large.
    Raises ValueError for shapes that differ.
    """
    if outputs.shape != targets.shape:
        raise ValueError(
            f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} differ: give one "
            "target for each output, or they would be broadcast against each other"
        )
    return _reduce(0.5 * (outputs - targets) ** 2, reduction)


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
    if not numbers:
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


def matched_init_(
    layers: Iterable[nn.Linear],
    activation: Callable[[Tensor], Tensor],
    generator: torch.Generator | None = None,
) -> None:
    """Draw the weights of a chain of layers so that every pre-activation has mean square
    1.

    Inputs of mean square 1 are assumed: the first layer has SD 1 / sqrt(fan_in), each
    later one forward_gain(activation) / sqrt(fan_in). Biases become 0. Raises TypeError,
    and changes nothing, where something is no Linear layer.
    """
    gain = 1.0
    for layer in _only_linear(layers):
        _normal_(layer, gain, generator)
        gain = forward_gain(activation)


def as_sigmoid_(layers: Iterable[nn.Linear]) -> None:
    """Rewrite a chain of layers with tanh between them, so that it computes the same with
    sigmoid.

    From tanh(x) = 2 sigmoid(2 x) - 1: all layers but the last are doubled, and all but
    the first take 2 s - 1 where they took tanh. Invariant: the outputs stay the same.
    Raises TypeError where something is no Linear layer, ValueError where a layer has no
    bias, and then changes nothing.
    """
    layers = _only_linear(layers)
    if any(layer.bias is None for layer in layers):
        raise ValueError(
            "a layer has no bias to take the half out of: build it with bias=True"
        )
    with torch.no_grad():
        for number, layer in enumerate(layers):
            if number > 0:  # W (2 s - 1) + b = 2 W s + (b - the row sums of W)
                layer.bias.sub_(layer.weight.sum(1))
                layer.weight.mul_(2)
            if number < len(layers) - 1:
                layer.weight.mul_(2)
                layer.bias.mul_(2)


def _only_linear(layers: Iterable[nn.Linear]) -> list[nn.Linear]:
    layers = list(layers)
    for layer in layers:
        if not isinstance(layer, nn.Linear):
            raise TypeError(
                f"{type(layer).__name__} among the layers: give the Linear ones alone"
            )
    return layers


def _normal_(layer: nn.Linear, gain: float, generator: torch.Generator | None) -> None:
    nn.init.normal_(
        layer.weight, std=gain / math.sqrt(layer.in_features), generator=generator
    )
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


# --- exercises ------------------------------------------------------------------------------------


class _Calls(TorchFunctionMode):
    """Note the names of the torch functions that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def _check_sigmoid(answer: Callable) -> None:
    points = [-1000.0, -40.0, -1.0, 0.0, 1.0, 40.0, 1000.0, -200.0, 200.0]
    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    for point in (x, x.detach().float().requires_grad_()):
        with _Calls() as calls:
            values = answer(point)
        expect(
            isinstance(values, Tensor)
            and values.shape == point.shape
            and values.dtype == point.dtype,
            "Return a tensor of the shape and the dtype that came in.",
        )
        right = torch.sigmoid(point.detach())
        bad = point[~values.isfinite()]
        expect(
            not len(bad),
            f"The value at {bad[:1].tolist()} is not finite: exp of a large number is inf, and "
            "inf / inf is NaN. Only ever take exp of a number that is not positive.",
        )
        expect(
            torch.allclose(values, right, atol=1e-6, rtol=0),
            f"The values are {values.tolist()}, wanted {right.tolist()}.",
        )
        for place in (1, 7):  # -40 and -200, where float32 has nothing left
            tail, wanted = values[place].item(), right[place].item()
            expect(
                abs(tail - wanted) <= 1e-5 * wanted,
                f"At {points[place]:g} the value should be {wanted:.1e}, yours is {tail:.1e}: the "
                "left tail is lost by a clamp, or by the difference of two numbers near 1. Its "
                "logarithm is a loss.",
            )
        expect(
            values.requires_grad,
            "The result has no gradient: use torch operations on x, and neither detach nor NumPy.",
        )
        (slopes,) = torch.autograd.grad(values.sum(), point)
        bad = point[~slopes.isfinite()]
        expect(
            not len(bad),
            f"The values are right, but the gradient at {bad[:1].tolist()} is NaN: an exp that "
            "overflowed sends back 0 * inf, also from the side of torch.where that is not used. "
            "Make the argument safe before exp, not the result after it.",
        )
        expect(
            abs(slopes[3].item() - 0.25) < 1e-6,
            f"The slope at 0 is {slopes[3].item():g}, wanted 0.25: abs has the slope 0 at 0, "
            "and clamp may have it at its bound. Choose between x and -x with torch.where.",
        )
        expect(
            torch.allclose(slopes, right * (1 - right), atol=1e-6, rtol=0),
            f"The slopes are {slopes.tolist()}, wanted sigmoid(x) (1 - sigmoid(x)).",
        )
        expect(
            not calls.names & {"sigmoid", "special_expit"},
            "That is right, and calls torch's sigmoid. Write it yourself, from torch.exp.",
        )


def _solve_sigmoid(x):
    positive = x >= 0
    z = torch.exp(torch.where(positive, -x, x))
    return torch.where(positive, torch.ones_like(z), z) / (1 + z)


def _sigmoid_by_formula(x):
    return 1 / (1 + torch.exp(-x))


def _sigmoid_other_formula(x):
    return torch.exp(x) / (1 + torch.exp(x))


def _sigmoid_where_after(x):
    return torch.where(x >= 0, 1 / (1 + torch.exp(-x)), torch.exp(x) / (1 + torch.exp(x)))


def _sigmoid_nan_to_num(x):
    return torch.nan_to_num(torch.exp(x) / (1 + torch.exp(x)), nan=1.0)


def _sigmoid_clamped(x):
    return 1 / (1 + torch.exp(-x.clamp(-30, 30)))


def _sigmoid_clamped_far(x):
    return 1 / (1 + torch.exp(-x.clamp(min=-80)))


def _sigmoid_by_tanh(x):
    return 0.5 * (1 + torch.tanh(x / 2))


def _sigmoid_by_abs(x):
    z = torch.exp(-x.abs())
    return torch.where(x >= 0, 1 / (1 + z), z / (1 + z))


def _sigmoid_detached(x):
    return torch.sigmoid(x.detach())


def _check_std(answer: Callable) -> None:
    functions = {
        "relu": relu,
        "tanh": torch.tanh,
        "gelu": torch.nn.functional.gelu,
        "silu": torch.nn.functional.silu,
    }
    for name, f in functions.items():
        for width in (64, 256):
            std = float(answer(width, f))
            expect(std > 0, f"For {name} the SD is {std}: give a number above 0.")
            sizes = [_size_after(20, width, f, std, seed) for seed in range(3)]
            size = math.prod(sizes) ** (1 / 3)
            if 0.15 < size < 7:
                continue
            what = f"20 layers of {width} {name} units: the signal's size goes from 1 to {size:.1g}. "
            narrow, wide = float(answer(64, f)), float(answer(256, f))
            if not 1.9 < narrow / wide < 2.1:
                what += "A sum over fan_in inputs grows like its root: divide by it."
            elif len({float(answer(width, other)) for other in functions.values()}) == 1:
                what += (
                    "Each activation passes on another share of its input's mean square (ReLU a "
                    "half, SiLU less): the gain must depend on it."
                )
            else:
                what += "It should stay about 1; a factor of 7 either way is allowed."
            expect(False, what)


def _size_after(
    depth: int, width: int, activation: Callable, std: float, seed: int
) -> float:
    """Return the root mean square pre-activation of the last layer, for inputs of size 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, width, generator=generator)
    for number in range(depth):
        weight = torch.randn(width, width, generator=generator)
        x = x @ weight.T * (std if number else width**-0.5)
        if number < depth - 1:
            x = activation(x)
    return x.double().square().mean().sqrt().item()


def _solve_std(fan_in, activation):
    z = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    return (fan_in * activation(z).square().mean().item()) ** -0.5


def _std_without_gain(fan_in, activation):  # "ReLU has the slope 1, so nothing vanishes"
    return fan_in**-0.5


def _std_constant(fan_in, activation):
    return 0.01


def _std_of_relu(fan_in, activation):
    return (2 / fan_in) ** 0.5


def _std_one_gain(fan_in, activation):  # a gain between that of ReLU and that of SiLU
    return 1.6 / fan_in**0.5


def _std_variance(fan_in, activation):  # the variance where the SD is asked for
    z = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    return 1 / (fan_in * activation(z).square().mean().item())


def _std_gain_without_fan(fan_in, activation):
    z = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    return 0.1 * activation(z).square().mean().item() ** -0.5


def _check_loss(answer: Callable) -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]], requires_grad=True)
    targets = torch.tensor([0, 1])
    with _Calls() as calls:
        loss = answer(logits, targets)
    expect(
        isinstance(loss, Tensor) and loss.ndim == 0,
        "Return the mean over the rows: a tensor of one number, without dimensions.",
    )
    expect(
        loss.requires_grad,
        "The loss has no gradient: use torch operations on the logits, and do not detach them.",
    )
    loss = loss.float()
    right = torch.nn.functional.cross_entropy(logits, targets)
    twice = torch.nn.functional.cross_entropy(logits.softmax(1), targets)
    expect(
        not torch.allclose(loss, twice),
        "That is softmax twice: cross_entropy takes logits and does softmax itself. The loss can "
        "then never come near 0, and the gradient is many times too small.",
    )
    expect(
        not torch.allclose(loss, 2 * right, atol=1e-4),
        "That is the sum over the rows: divide by their number.",
    )
    expect(
        torch.allclose(loss, right, atol=1e-4),
        f"The loss is {loss.item():.3f}, wanted {right.item():.3f}: minus the log of softmax at "
        "the right class, mean over the rows.",
    )
    for far in (1000.0, -1000.0):  # the last row is sure, and wrong
        x = torch.tensor([[far, 0.0, 1.0], [far, far + 2, far - 1], [1000.0, 0.0, 0.0]])
        x.requires_grad_()
        y = torch.tensor([2, 0, 1])
        loss = answer(x, y).float()
        right = torch.nn.functional.cross_entropy(x, y)
        expect(
            bool(loss.isfinite()),
            f"With logits of {far:g} the loss is {loss.item()}: subtract the row's maximum before "
            "exp, and take the log of the sum, not of softmax, which rounds to 0.",
        )
        expect(
            torch.allclose(loss, right, rtol=1e-4),
            f"A row that is sure and wrong must cost about 1000; the loss is {loss.item():.4g}, "
            f"wanted {right.item():.4g}. A small number inside the log hides the largest errors.",
        )
        (grad,) = torch.autograd.grad(loss, x)
        wanted = (x.detach().softmax(1) - torch.nn.functional.one_hot(y, 3)) / 3
        expect(
            torch.allclose(grad, wanted, atol=1e-5),
            f"The gradient is {grad.tolist()}, wanted softmax minus one-hot over the rows: "
            f"{wanted.tolist()}.",
        )
    expect(
        "cross_entropy" not in calls.names,
        "That is right, and calls torch's cross_entropy. Write it yourself, from exp and log.",
    )


def _solve_loss(logits, targets):
    shifted = logits - logits.max(1, keepdim=True).values.detach()
    log_probabilities = shifted - shifted.exp().sum(1, keepdim=True).log()
    return -log_probabilities[torch.arange(len(targets)), targets].mean()


def _loss_softmax_twice(logits, targets):
    return torch.nn.functional.cross_entropy(torch.softmax(logits, 1), targets)


def _loss_log_of_softmax(logits, targets):
    return -torch.softmax(logits, 1)[torch.arange(len(targets)), targets].log().mean()


def _loss_no_maximum(logits, targets):
    right = logits[torch.arange(len(targets)), targets]
    return (logits.exp().sum(1).log() - right).mean()


def _loss_small_number(logits, targets):
    p = torch.softmax(logits, 1)[torch.arange(len(targets)), targets]
    return -(p + 1e-9).log().mean()


def _loss_sum(logits, targets):
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


def _loss_no_softmax(logits, targets):
    return -logits[torch.arange(len(targets)), targets].mean()


def _check_dead(answer: Callable) -> None:
    batches = [
        torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.5, 0.0, 1e-4]]),
        torch.tensor([[0.0, 0.0, 4.0, 0.0]]),
    ]
    got = answer(batches)
    expect(got is not None, "Return a share from 0 to 1.")
    got = float(got)
    parts = [(b == 0).all(0).float().mean().item() for b in batches]
    zeros = torch.cat([(b == 0).float().ravel() for b in batches]).mean().item()
    expect(
        abs(got - 0.75) > 1e-6,
        "Only unit 0 sleeps on all rows. 0.75 is the share of living units, or the dead of the "
        "last batch alone; but one row of any batch that wakes a unit makes it alive.",
    )
    for share in (sum(parts) / 2, (3 * parts[0] + parts[1]) / 4):
        expect(
            abs(got - share) > 1e-6,
            f"{got:.3f} is the mean of the batches' shares. A unit that sleeps in one batch may "
            "wake in another: join what is ever active first, and count at the end.",
        )
    expect(
        abs(got - zeros) > 1e-6,
        f"{got:.3f} is the share of zeros. A unit that is 0 on some rows is selective, not dead.",
    )
    expect(
        abs(got - 0.25) < 1e-6, f"One of these four units is dead, but you say {got:.3f}."
    )
    got = float(
        answer([torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 1.0]]), torch.zeros(1, 3)])
    )
    expect(abs(got - 1 / 3) < 1e-6, f"One of three units is dead, but you say {got:.3f}.")


def _solve_dead(batches):
    active = torch.stack([(batch > 0).any(0) for batch in batches]).any(0)
    return 1 - active.float().mean().item()


def _dead_mean_of_batches(batches):
    return sum((batch == 0).all(0).float().mean().item() for batch in batches) / len(
        batches
    )


def _dead_share_of_zeros(batches):
    return torch.cat([(batch == 0).float().ravel() for batch in batches]).mean().item()


def _dead_last_batch(batches):
    return (batches[-1] == 0).all(0).float().mean().item()


def _dead_anywhere(batches):
    return torch.cat([(batch == 0) for batch in batches]).any(0).float().mean().item()


EXERCISES = (
    Exercise(
        "Write your_sigmoid(x) from torch.exp: right in value and gradient at every x, also at "
        "-1000 and 1000.",
        _check_sigmoid,
        _solve_sigmoid,
        {
            "the formula suffices": Wrong(
                _sigmoid_by_formula, "gradient at [-1000.0] is NaN"
            ),
            "the other formula": Wrong(_sigmoid_other_formula, "value at [1000.0]"),
            "where mends it": Wrong(_sigmoid_where_after, "not the result after it"),
            "replace the NaN": Wrong(_sigmoid_nan_to_num, "not the result after it"),
            "clamp": Wrong(_sigmoid_clamped, "left tail is lost"),
            "clamp further out": Wrong(_sigmoid_clamped_far, "left tail is lost"),
            "torch's own": Wrong(torch.sigmoid, "calls torch's sigmoid"),
            "by tanh": Wrong(_sigmoid_by_tanh, "left tail is lost"),
            "by abs": Wrong(_sigmoid_by_abs, "abs has the slope 0"),
            "without gradient": Wrong(_sigmoid_detached, "no gradient"),
        },
    ),
    Exercise(
        "Write your_std(fan_in, activation): the SD of the weights with which the signal keeps its "
        "size through 20 layers, for ReLU, tanh, GELU and SiLU.",
        _check_std,
        _solve_std,
        {
            "ReLU cures everything": Wrong(
                _std_without_gain, "the gain must depend on it"
            ),
            "Kaiming for all": Wrong(_std_of_relu, "the gain must depend on it"),
            "one gain for all": Wrong(_std_one_gain, "the gain must depend on it"),
            "a small constant": Wrong(_std_constant, "divide by it"),
            "no fan-in": Wrong(_std_gain_without_fan, "divide by it"),
            "variance for SD": Wrong(_std_variance, "divide by it"),
        },
    ),
    Exercise(
        "Write your_loss(logits, targets) without F.cross_entropy: the mean cross entropy of class "
        "numbers, right for logits of any size.",
        _check_loss,
        _solve_loss,
        {
            "softmax before cross_entropy": Wrong(_loss_softmax_twice, "softmax twice"),
            "log of softmax": Wrong(_loss_log_of_softmax, "rounds to 0"),
            "no maximum": Wrong(_loss_no_maximum, "subtract the row's maximum"),
            "a small number in the log": Wrong(
                _loss_small_number, "hides the largest errors"
            ),
            "sum": Wrong(_loss_sum, "divide by their number"),
            "no softmax": Wrong(_loss_no_softmax, "minus the log of softmax"),
            "torch's own": Wrong(
                torch.nn.functional.cross_entropy, "calls torch's cross_entropy"
            ),
        },
    ),
    Exercise(
        "Write your_dead_fraction(batches): a list of outputs (rows, units) after ReLU in, the "
        "share of dead units out.",
        _check_dead,
        _solve_dead,
        {
            "mean of the batches": Wrong(
                _dead_mean_of_batches, "mean of the batches' shares"
            ),
            "share of zeros": Wrong(_dead_share_of_zeros, "selective, not dead"),
            "last batch": Wrong(_dead_last_batch, "last batch alone"),
            "ever asleep": Wrong(_dead_anywhere, "One of these four"),
        },
    ),
)
