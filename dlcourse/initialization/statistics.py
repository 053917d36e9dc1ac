"""What a model does with a batch: spread of outputs and gradients, layer by layer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus",
    "tanh", "sigmoid", "hardtanh", "hardsigmoid", "hardswish",
}  # fmt: skip


FLAT = 0.98995  # |tanh| above which its slope is less than 2 % of the largest


SAMPLE = 512  # values that a layer keeps for a histogram


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
        with recorder.watching():
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
    values: Tensor
    # of no entries at all, nothing more is known
    mean: float = math.nan
    var: float = math.nan
    signal: float = math.nan  # variance from row to row
    zeros: float = math.nan
    saturated: float = math.nan


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
    def watching(self) -> Iterator[None]:
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
        return _Moments(kind, 0, values)
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
    return _Moments(kind, count, sample, mean.item(), var.item(), signal, zeros, flat)


def _pool(runs: list[_Moments], grads: list[_Moments] | None) -> LayerStats:
    runs_with = [run for run in runs if run.count]
    grads_with = [run for run in grads or [] if run.count]
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
        _pooled(grads_with)[1] ** 0.5, values,
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
