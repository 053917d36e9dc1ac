"""Initialization: starting weights that differ, and whose scale keeps signal and gradient
alive.
"""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

GAINS = {
    "linear": 1.0,
    "sigmoid": 1.0,
    "tanh": 5 / 3,
    "relu": math.sqrt(2),
    "selu": 3 / 4,
}
GAINS |= {f"conv{kind}{n}d": 1.0 for kind in ("", "_transpose") for n in (1, 2, 3)}
LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus",
    "tanh", "sigmoid", "hardtanh", "hardsigmoid", "hardswish",
}  # fmt: skip
FLAT = 0.98995  # |tanh| above which its slope is less than 2 % of the largest
SAMPLE = 512  # values that a layer keeps for a histogram


# --- the scale of one weight ----------------------------------------------------------------------


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


# --- filling one weight ---------------------------------------------------------------------------


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


# --- filling a whole model ------------------------------------------------------------------------


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

    def scale(layer: nn.Module, inputs: tuple, output: Tensor):
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


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    }
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no linear or convolution layer to fill"
        )
    return found


# --- what theory says -----------------------------------------------------------------------------


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


# --- what a model does ----------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerStats:
    """What one layer put out on one batch; all runs of the layer together, if it ran
    several times.

    `kind`: class or function name. `calls`: runs. `mean`, `std`: over all entries.
    `signal`: the standard deviation from row to row of the batch (first dimension), at
    the same place in the row; near zero, the layer knows nothing of its input; NaN for a
    single row. `zeros`: share of exact zeros. `saturated`: share where tanh or sigmoid is
    flat (a slope below 2 % of the largest), NaN for other layers. `grad_std`: of the
    loss's gradient with respect to the output, NaN where none was asked for or none
    flows. `values`: up to 512 entries, float64, for a plot.
    """

    kind: str
    calls: int
    mean: float
    std: float
    signal: float
    zeros: float
    saturated: float
    grad_std: float
    values: Tensor = field(repr=False)


def activation_stats(
    model: nn.Module,
    batch,
    loss: Callable[[object], Tensor] | None = None,
    containers: bool = False,
) -> dict[str, LayerStats]:
    """Run `batch` through the model once and return what each layer put out, in order.

    `batch`: the input, a tuple of positional inputs, or a dictionary of inputs by name.
    `loss(outputs)`: a scalar; with it the gradients are measured too. A layer is a module
    inside which no other module runs; activations called as functions (F.relu,
    torch.tanh, x.sigmoid()) are layers too, named after the module that ran before them
    ("layers.0.relu"). `containers` adds the modules around them, such as whole residual
    blocks. Of several outputs the first tensor counts. The mode is the model's own: call
    model.eval() first if that is meant. Raises ValueError where no layer ran or `loss` is
    no scalar. Invariants: the model's weights, gradients, buffers, hooks and mode, and
    torch's random state, are afterwards as before.
    """
    recorder = _Recorder(model, containers)
    with (
        _undisturbed(model),
        torch.set_grad_enabled(loss is not None),
        recorder.tensor_hooks,
    ):
        with recorder.watching(model):
            outputs = _call(model, batch)
        if loss is not None:
            value = loss(outputs)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ValueError(
                    "loss(outputs) must return one number, as a tensor: take the mean"
                )
            weights = [weight for weight in model.parameters() if weight.requires_grad]
            if value.requires_grad and weights:
                torch.autograd.grad(value.sum(), weights, allow_unused=True)
    if not recorder.runs:
        raise ValueError(
            "no layer with a floating-point output ran: is this the model you mean?"
        )
    return {
        name: _pool(runs, recorder.grads.get(name))
        for name, runs in recorder.runs.items()
    }


@dataclass
class _Moments:
    """Count, mean and variance of one tensor, with what else a layer reports."""

    kind: str
    count: int
    mean: float
    var: float
    signal: float  # variance from row to row
    zeros: float
    saturated: float
    values: Tensor


class _Recorder(TorchFunctionMode):
    """Note every layer's output, by module hooks, and by watching calls of activation
    functions.
    """

    def __init__(self, model: nn.Module, containers: bool):
        super().__init__()
        self.containers = containers
        self.names = {module: name for name, module in model.named_modules()}
        self.runs: dict[str, list[_Moments]] = {}
        self.grads: dict[str, list[_Moments]] = {}
        # modules that run now: [module, whether one ran inside]
        self.open: list[list] = []
        self.before = "input"
        self.tensor_hooks = contextlib.ExitStack()

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for module in self.names:
                stack.callback(module.register_forward_pre_hook(self.enter).remove)
                stack.callback(module.register_forward_hook(self.leave).remove)
            stack.enter_context(self)
            yield

    def enter(self, module: nn.Module, inputs: tuple) -> None:
        if self.open:
            self.open[-1][1] = True
        self.open.append([module, False])

    def leave(self, module: nn.Module, inputs: tuple, output) -> None:
        _, ran_inside = self.open.pop()
        name = self.names[module] or type(module).__name__
        if self.containers or not ran_inside:
            self.note(name, type(module).__name__, output)
        if not ran_inside:
            self.before = name

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        kind = getattr(func, "__name__", "").rstrip("_")
        if kind in ACTIVATIONS and not (self.open and _is_torch_leaf(self.open[-1][0])):
            self.note(f"{self.before}.{kind}", kind, output)
        return output

    def note(self, name: str, kind: str, output) -> None:
        output = _first_tensor(output)
        if output is None:
            return
        self.runs.setdefault(name, []).append(_moments(kind, output))
        if output.requires_grad:
            grads = self.grads.setdefault(name, [])
            hook = output.register_hook(lambda grad: grads.append(_moments(kind, grad)))
            self.tensor_hooks.callback(hook.remove)


def _is_torch_leaf(module: nn.Module) -> bool:
    """Tell whether a module is one of torch's own without parts: its output is noted
    anyway.
    """
    return type(module).__module__.startswith("torch.nn.") and not any(module.children())


def _moments(kind: str, tensor: Tensor) -> _Moments:
    rows = tensor.detach().cpu().double()  # float32 squares end at 1e-38, these do not
    values, count = rows.ravel(), rows.numel()
    if not count:
        return _Moments(kind, 0, math.nan, math.nan, math.nan, math.nan, math.nan, values)
    var, mean = torch.var_mean(values, correction=0)
    signal = (
        rows.var(0, correction=0).mean().item()
        if rows.ndim > 1 and len(rows) > 1
        else math.nan
    )
    zeros = (values == 0).double().mean().item()
    centered = {"tanh": values, "sigmoid": 2 * values - 1}.get(kind.lower())
    flat = (
        math.nan if centered is None else (centered.abs() > FLAT).double().mean().item()
    )
    golden = torch.arange(min(count, SAMPLE), dtype=torch.float64) * 0.6180339887498949
    # spread out, and in step with no dimension
    sample = values[((golden % 1) * count).long()]
    return _Moments(kind, count, mean.item(), var.item(), signal, zeros, flat, sample)


def _pool(runs: list[_Moments], grads: list[_Moments] | None) -> LayerStats:
    runs_with = [run for run in runs if run.count]
    mean, var = _pooled(runs_with)
    total = sum(run.count for run in runs_with)
    signal, zeros, saturated = (
        sum(getattr(run, name) * run.count for run in runs_with) / total
        if total
        else math.nan
        for name in ("signal", "zeros", "saturated")
    )
    values = torch.cat([run.values for run in runs])
    values = values[:: math.ceil(len(values) / SAMPLE) or 1]
    return LayerStats(
        runs[0].kind, len(runs), mean, var**0.5, signal**0.5, zeros, saturated,
        _pooled(grads)[1] ** 0.5 if grads else math.nan, values,
    )  # fmt: skip


def _pooled(runs: list[_Moments]) -> tuple[float, float]:
    """Return mean and variance of the values of all runs together."""
    total = sum(run.count for run in runs)
    if not total:
        return math.nan, math.nan
    mean = sum(run.mean * run.count for run in runs) / total
    return mean, sum(
        (run.var + (run.mean - mean) ** 2) * run.count for run in runs
    ) / total


def _first_tensor(output) -> Tensor | None:
    """Return the first floating-point tensor in a tensor, tuple, list, dictionary or data
    class.
    """
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, dict):
        output = list(output.values())
    found = (
        (_first_tensor(part) for part in output)
        if isinstance(output, (tuple, list))
        else ()
    )
    return next((tensor for tensor in found if tensor is not None), None)


def _call(model: nn.Module, batch):
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Put the buffers and torch's random state back at the end."""
    saved = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffers, name, buffer, copy in saved:
                    buffers[name] = buffer
                    buffer.copy_(copy)
