"""Mixed precision: 16 bits where they do no harm, 32 where small numbers must be kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

# --- formats --------------------------------------------------------------------------------------


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


def scaled_round_to(x: Tensor, fmt: str | Format, margin: int = 0) -> Tensor:
    """Round `x` after a power of two has moved its largest entry near the format's
    largest.

    It lands below the largest by a factor of at most 4. One scale for the whole tensor,
    divided out again; `margin` >= 0 powers of two are left free. Raises TypeError for
    integers.
    Source: Micikevicius et al. (2022), per-tensor scaling of FP8.
    Invariant: multiplying `x` by a power of two multiplies the result by it.
    """
    fmt = format_of(fmt)
    if x.numel() == 0 or not x.is_floating_point():
        return round_to(x, fmt)  # nothing to scale, or its error
    largest = x.detach().abs().amax().double()
    power = (
        _exponent(torch.as_tensor(fmt.max, dtype=torch.float64)) - _exponent(largest) - 1
    )
    scale = torch.where(
        largest > 0, _power_of_two((power - margin).clamp(-1022, 1023)), 1.0
    )
    return (round_to(x.double() * scale, fmt, saturate=True) / scale).to(x.dtype)


def encode(x: Tensor, fmt: str | Format) -> Tensor:
    """Return the codes, int64 from 0 to 2**width - 1, of the numbers of `x` rounded to a
    format.

    Invariant: for float16, bfloat16 and float8 these are the bits that torch stores (NaN
    aside).
    """
    fmt = format_of(fmt)
    wide = round_to(x.double(), fmt)
    size = wide.abs()
    exponent = _exponent(size).clamp(min=1 - fmt.bias)
    units = (size / _power_of_two(exponent - fmt.mantissa)).nan_to_num(0.0, 0.0).long()
    # a normal number's leading 1 carries
    field = (exponent + fmt.bias - 1 << fmt.mantissa) + units
    all_ones = 2 ** (fmt.width - 1) - 1
    field = torch.where(wide.isinf(), all_ones + 1 - 2**fmt.mantissa, field)
    field = torch.where(wide.isnan(), all_ones, field)
    return field | torch.signbit(wide).long() << fmt.width - 1


def decode(codes: Tensor, fmt: str | Format) -> Tensor:
    """Return the numbers, float64, that integer `codes` from 0 to 2**width - 1 stand for.

    Raises ValueError for codes out of range. Invariant: the inverse of `encode`.
    """
    fmt = format_of(fmt)
    codes = torch.as_tensor(codes).long()
    if bool(((codes < 0) | (codes >= 2**fmt.width)).any()):
        raise ValueError(f"{fmt.name} has codes from 0 to {2**fmt.width - 1}")
    field = codes & 2 ** (fmt.width - 1) - 1
    exponent, units = field >> fmt.mantissa, field & 2**fmt.mantissa - 1
    units = torch.where(exponent > 0, units + 2**fmt.mantissa, units)
    size = units * _power_of_two(exponent.clamp(min=1) - fmt.bias - fmt.mantissa)
    all_ones = 2 ** (fmt.width - 1) - 1
    if fmt.infinities:
        size = torch.where(field >= all_ones + 1 - 2**fmt.mantissa, math.nan, size)
        size = torch.where(field == all_ones + 1 - 2**fmt.mantissa, math.inf, size)
    size = torch.where(field == all_ones, math.nan, size)
    return torch.where(codes >> fmt.width - 1 == 1, -size, size)


def bits(value: float, fmt: str | Format) -> str:
    """Return the bits of one number in a format: sign, exponent, mantissa.

    >>> bits(-1.5, "bf16")
    '1 01111111 1000000'
    """
    fmt = format_of(fmt)
    code = int(encode(torch.tensor(value, dtype=torch.float64), fmt))
    digits = f"{code:0{fmt.width}b}"
    return f"{digits[0]} {digits[1 : 1 + fmt.exponent]} {digits[1 + fmt.exponent :]}"


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


# --- the loss scale -------------------------------------------------------------------------------


class GradScaler:
    """Multiply the loss by a scale that is as large as the gradients allow.

    A gradient that is not finite: the step is left out, and the scale is multiplied by
    `backoff_factor` in (0, 1). After `growth_interval` good steps in a row it is
    multiplied by `growth_factor` > 1. `shared`: with several processes, all skip when one
    must, and all scales stay equal. Not `enabled`: all methods pass things through.

    The calls of one update, in order: `scale(loss).backward()` for each micro-batch,
    `unscale_` (where the true gradient is needed before the step), `step`, `update`.
    Raises ValueError for bad factors, RuntimeError for calls out of order.
    Source: Micikevicius et al. (2018); names and rules as in torch.amp.GradScaler.
    Invariants: scale and skipped steps follow torch's in sequence; the weights of a
    skipped step do not move.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
        shared: bool = False,
    ) -> None:
        if not 0 < _as_float32(init_scale) < math.inf:
            raise ValueError(
                f"init_scale={init_scale}: give a number above 0 within float32, such as 65536.0"
            )
        whole = growth_interval >= 1 and float(growth_interval).is_integer()
        if not (growth_factor > 1 and 0 < backoff_factor < 1 and whole):
            raise ValueError(
                f"growth_factor={growth_factor}, backoff_factor={backoff_factor}, "
                f"growth_interval={growth_interval}: give above 1, between 0 and 1, a count from 1"
            )
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval, self.enabled, self.shared = growth_interval, enabled, shared
        self.skipped = 0  # steps left out so far
        self._scale, self._streak = _as_float32(init_scale), 0
        self._found: dict[int, bool] = {}  # by optimizer: was a gradient not finite?
        self._stepped: set[int] = set()

    def get_scale(self) -> float:
        """Return the scale, or 1 where not enabled."""
        return self._scale if self.enabled else 1.0

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss times the scale; a single 16-bit number becomes float32, as in
        torch.
        """
        if not self.enabled:
            return loss
        return loss * torch.tensor(self._scale, dtype=torch.float32, device=loss.device)

    @torch.no_grad()
    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the optimizer's gradients by the scale, and note whether all are finite."""
        if not self.enabled:
            return
        if id(optimizer) in self._found:
            raise RuntimeError(
                "these gradients are unscaled already: call unscale_ once an update, after the "
                "last micro-batch, before step, and end the update with update()"
            )
        inverse = _as_float32(1 / self._scale) if self._scale else math.inf
        found = False
        for weight in _weights(optimizer):
            if weight.grad is None:
                continue
            if weight.grad.dtype == torch.float16:
                raise ValueError(
                    "the gradients are float16, in which the unscaled ones would vanish again: "
                    "keep the weights in float32 (autocast), or use MasterWeightOptimizer"
                )
            found |= not bool(weight.grad.isfinite().all())
            weight.grad.mul_(inverse)
        self._found[id(optimizer)] = _any_process(found) if self.shared else found

    def step(self, optimizer: torch.optim.Optimizer) -> object:
        """Unscale unless that was done, then step, unless a gradient was not finite."""
        if not self.enabled:
            return optimizer.step()
        if id(optimizer) in self._stepped:
            raise RuntimeError("step was called twice: end each update with update()")
        if id(optimizer) not in self._found:
            self.unscale_(optimizer)
        self._stepped.add(id(optimizer))
        if self._found[id(optimizer)]:
            self.skipped += 1
            return None
        return optimizer.step()

    def update(self) -> None:
        """Lower the scale if a step was left out, or raise it after enough good ones."""
        if not self.enabled:
            return
        if not self._found:
            raise RuntimeError("nothing to go by: call step or unscale_ before update")
        if any(self._found.values()):
            self._scale, self._streak = _as_float32(self._scale * self.backoff_factor), 0
        else:
            self._streak += 1
            if self._streak == self.growth_interval:
                larger, self._streak = _as_float32(self._scale * self.growth_factor), 0
                self._scale = larger if math.isfinite(larger) else self._scale
        self._found, self._stepped = {}, set()

    def state_dict(self) -> dict:
        """Return scale, factors and streak under torch's names; nothing where not
        enabled.
        """
        if not self.enabled:
            return {}
        return {
            "scale": self.get_scale(),
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": self._streak,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict`, ours or torch's, has returned; do nothing if not
        enabled.

        Raises ValueError for the empty state of a scaler that was not enabled.
        """
        if not self.enabled:
            return
        if not state:
            raise ValueError(
                "the state of a scaler that was not enabled is empty: start a new one"
            )
        self._scale, self._streak = float(state["scale"]), int(state["_growth_tracker"])
        self.growth_factor, self.backoff_factor = (
            state["growth_factor"],
            state["backoff_factor"],
        )
        self.growth_interval = state["growth_interval"]


def _weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _as_float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float64).float().item()


def _any_process(found: bool) -> bool:
    if not (dist.is_available() and dist.is_initialized()):
        return found
    flag = torch.tensor(float(found))
    if dist.get_backend() == "nccl":
        flag = flag.cuda()
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def compressed_mean(
    grad: Tensor, dtype: torch.dtype, divide_first: bool = True
) -> Tensor:
    """Return the mean of `grad` over all processes, sent and summed in `dtype`.

    `divide_first` divides by the number of processes before the sum, so that float16
    cannot overflow where the mean would not; the smallest numbers then vanish. The result
    has the dtype of `grad`. In one process it only rounds.
    Source: torch's fp16_compress_hook for DDP, which divides first.
    """
    sent, processes = grad.to(dtype), 1
    if dist.is_available() and dist.is_initialized():
        processes = dist.get_world_size()
        sent = sent / processes if divide_first else sent.clone()
        dist.all_reduce(sent)
    return (sent if divide_first else sent / processes).to(grad.dtype)


# --- master weights -------------------------------------------------------------------------------


class MasterWeightOptimizer:
    """Any optimizer for weights of few bits: it updates a float32 copy, and rounds that
    copy.

    `weights`: leaf tensors, float16 or bfloat16, or float32 with `fmt` naming the format
    in which their values are kept. `kind(masters, **settings)` makes the inner optimizer.
    `stochastic` rounds at random, with numbers drawn from `seed`. `master=False` forgets
    the float32 copy after each update, so that only what the few bits hold is kept.

    Each gradient moves to the float32 copy as soon as the backward pass has made it, so
    that micro-batches add up in float32, and clipping and loss scaling work on
    `param_groups`. For one process: under DDP the gradient would move before it is
    averaged.
    Raises ValueError for weights that are no leaves, whose dtype names no format, or
    whose dtype cannot hold `fmt`; RuntimeError in the backward pass where two of these
    share a weight.
    Sources: Micikevicius et al. (2018); Gupta et al. (2015) for stochastic rounding.
    Invariants: the weights are the rounded copy; with fmt="fp32" it is the inner
    optimizer.
    """

    def __init__(
        self,
        weights: Iterable[Tensor],
        kind: Callable[..., torch.optim.Optimizer],
        *,
        fmt: str | Format | None = None,
        master: bool = True,
        stochastic: bool = False,
        seed: int = 0,
        **settings,
    ) -> None:
        self.weights = list(weights)
        self.master, self.stochastic = master, stochastic
        self.generator = torch.Generator().manual_seed(seed)
        self.formats = [_format_for(weight, fmt) for weight in self.weights]
        self.masters = [w.detach().float().clone().requires_grad_() for w in self.weights]
        self.inner = kind(self.masters, **settings)
        self._round()
        for weight, wide in zip(self.weights, self.masters, strict=True):
            weight.register_post_accumulate_grad_hook(_mover(wide))

    @property
    def param_groups(self) -> list[dict]:
        """Return the inner optimizer's groups, whose parameters are the float32 copies."""
        return self.inner.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Empty the gradients."""
        self.inner.zero_grad(set_to_none)
        for weight in self.weights:
            weight.grad = None

    def step(self) -> None:
        """Update the float32 copies, and round them into the weights."""
        self.inner.step()
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        for weight, wide, fmt in zip(
            self.weights, self.masters, self.formats, strict=True
        ):
            if fmt == FORMATS.get(OF_DTYPE.get(weight.dtype)) and not self.stochastic:
                weight.copy_(wide)  # the cast rounds to the nearest by itself
            else:
                draws = {"stochastic": self.stochastic, "generator": self.generator}
                weight.copy_(round_to(wide, fmt, **draws))
            if not self.master:
                wide.copy_(weight)

    def state_dict(self) -> dict:
        """Return the inner state, the float32 copies, and the state of the random
        numbers.
        """
        return {
            "inner": self.inner.state_dict(),
            "masters": [wide.detach().clone() for wide in self.masters],
            "generator": self.generator.get_state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` has returned; the weights come from the model's
        own.
        """
        self.inner.load_state_dict(state["inner"])
        for wide, saved in zip(self.masters, state["masters"], strict=True):
            wide.copy_(saved)
        self.generator.set_state(state["generator"])


def _mover(wide: Tensor) -> Callable[[Tensor], None]:
    def move(weight: Tensor) -> None:
        if weight.grad is None:
            raise RuntimeError(
                "another MasterWeightOptimizer has taken this gradient: make one for each model, "
                "and a new model for a new optimizer"
            )
        grad = weight.grad.float()
        wide.grad = grad if wide.grad is None else wide.grad.add_(grad)
        weight.grad = None

    return move


def _format_for(weight: Tensor, fmt: str | Format | None) -> Format:
    if not isinstance(weight, Tensor) or not weight.is_leaf or not weight.requires_grad:
        raise ValueError(
            "give weights that are leaves and require a gradient: model.parameters()"
        )
    if fmt is None and weight.dtype not in OF_DTYPE:
        raise ValueError(
            f"weights of {weight.dtype}: say in fmt= which format they are kept in"
        )
    fmt = format_of(fmt if fmt is not None else OF_DTYPE[weight.dtype])
    held = FORMATS.get(OF_DTYPE.get(weight.dtype), fmt)
    if fmt.exponent > held.exponent or fmt.mantissa > held.mantissa:
        raise ValueError(
            f"weights of {weight.dtype} cannot hold {fmt.name}: use float32 weights"
        )
    return fmt


# --- the step -------------------------------------------------------------------------------------


def mixed_precision_step(
    dtype: torch.dtype = torch.bfloat16,
    scaler: GradScaler | torch.amp.GradScaler | None = None,
    max_norm: float = math.inf,
) -> Callable:
    """Return a step for `fit`: forward under autocast to `dtype`, loss scale, clipping,
    update.

    The order is fixed: all micro-batches at one scale, unscale, clip, step, update the
    scale.
    `scaler` is ours or torch's; float16 needs one, bfloat16 does not. Logged: "grad_norm"
    (before clipping, unscaled) and "scale". Choose the precision here, or leave float32
    here and give `fit` mixed_precision=, which has its own autocast around the model.
    With float32, no scaler and max_norm=inf it is `train_step` to the bit.
    Raises ValueError for other dtypes.
    Source: PyTorch's automatic mixed precision examples.
    """
    if dtype not in OF_DTYPE:
        raise ValueError(
            f"{dtype}: choose torch.bfloat16, torch.float16 or torch.float32"
        )
    scaler = GradScaler(enabled=False) if scaler is None else scaler

    def step(run, batch) -> Tensor:
        run.optimizer.zero_grad()
        device, rows = batch.inputs.device.type, len(batch.inputs)
        pieces, total = min(run.accumulation_steps, rows), 0.0
        for x, y in zip(
            batch.inputs.tensor_split(pieces),
            batch.targets.tensor_split(pieces),
            strict=True,
        ):
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                loss = run.loss_fn(run.model(x), y) * (batch.share * len(x) / rows)
            # outside autocast: each op in its forward's dtype
            scaler.scale(loss).backward()
            total = total + loss.detach()
        scaler.unscale_(run.optimizer)  # once, after the last micro-batch
        norm = nn.utils.clip_grad_norm_(_weights(run.optimizer), max_norm)
        run.log("grad_norm", norm)
        run.log("scale", scaler.get_scale())
        scaler.step(run.optimizer)  # left out if a gradient is not finite
        scaler.update()
        return total

    return step


# --- autocast -------------------------------------------------------------------------------------

_PROBES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda a, image: a @ a,
    "linear": lambda a, image: F.linear(a, a),
    "baddbmm": lambda a, image: torch.baddbmm(a[None], a[None], a[None]),
    "einsum": lambda a, image: torch.einsum("ij,jk->ik", a, a),
    "conv2d": lambda a, image: F.conv2d(image, image),
    "attention": lambda a, image: F.scaled_dot_product_attention(
        a[None], a[None], a[None]
    ),
    "relu": lambda a, image: a.relu(),
    "gelu": lambda a, image: F.gelu(a),
    "add": lambda a, image: a + a,
    "exp": lambda a, image: a.exp(),
    "log": lambda a, image: a.log(),
    "pow": lambda a, image: a**2,
    "sum": lambda a, image: a.sum(),
    "mean": lambda a, image: a.mean(),
    "norm": lambda a, image: a.norm(),
    "cumsum": lambda a, image: a.cumsum(0),
    "prod": lambda a, image: a.prod(),
    "softmax": lambda a, image: a.softmax(1),
    "log_softmax": lambda a, image: a.log_softmax(1),
    "layer_norm": lambda a, image: F.layer_norm(a, a.shape[1:]),
    "group_norm": lambda a, image: F.group_norm(image, 1),
    "batch_norm": lambda a, image: F.batch_norm(image, None, None, training=True),
    "cross_entropy": lambda a, image: F.cross_entropy(
        a, torch.zeros_like(a[0], dtype=torch.long)
    ),
    "mse_loss": lambda a, image: F.mse_loss(a, a),
}


def autocast_policy(
    device_type: str = "cpu", dtype: torch.dtype = torch.bfloat16
) -> dict[str, str]:
    """Run some ops under autocast on this device, and say in which precision each
    answered.

    Returns {op: "16-bit" | "float32" | "as its inputs" | "widens" | "refuses"}: "16-bit"
    also from float32 inputs, "float32" also from 16-bit ones, "refuses" where the op
    raises. The lists differ between devices and versions of PyTorch; this looks instead
    of remembering.
    Raises ValueError for a dtype that has not 16 bits.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"{dtype}: choose torch.bfloat16 or torch.float16")
    policy = {}
    for name, probe in _PROBES.items():
        found = []
        for given in (torch.float32, dtype):
            a = torch.ones(4, 4, device=device_type, dtype=given)
            image = torch.ones(2, 2, 3, 3, device=device_type, dtype=given)
            try:
                with torch.autocast(device_type, dtype):
                    found.append(probe(a, image).dtype)
            except RuntimeError:
                found.append(None)
        policy[name] = {
            (dtype, dtype): "16-bit",
            (torch.float32, torch.float32): "float32",
            (torch.float32, dtype): "as its inputs",
        }.get(tuple(found), "refuses" if None in found else "widens")
    return policy


# --- memory ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """Bytes a number, by what it is: weight, gradient, master copy, optimizer state,
    activation.

    `copies`: bytes a weight for the 16-bit copy that autocast keeps for the backward
    pass.
    """

    weights: int
    gradients: int
    master: int
    states: int
    activations: int
    copies: int = 0


RECIPES = {
    "float32": Recipe(4, 4, 0, 4, 4),
    "autocast": Recipe(4, 4, 0, 4, 2, copies=2),
    "master": Recipe(2, 2, 4, 4, 2),
    "master, gradients moved": Recipe(2, 4, 4, 4, 2),  # MasterWeightOptimizer
    "16-bit only": Recipe(2, 2, 0, 2, 2),
}


def memory_estimate(
    parameters: int, recipe: str | Recipe, *, states: int = 2, activations: int = 0
) -> dict[str, int]:
    """Return the bytes that training takes, by part, with their "total".

    `parameters`: numbers in the model. `states`: numbers an optimizer keeps for each
    (Adam 2, momentum 1, SGD 0). `activations`: numbers saved for the backward pass. Not
    counted: the data, workspace, and what the allocator keeps. Raises ValueError for
    unknown recipes and counts below 0. Source: Rajbhandari et al. (2020), whose 16 bytes
    a parameter are recipe "master".
    Invariant: "total" is the sum of the others; it is linear in the counts.
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"no recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    if min(parameters, states, activations) < 0:
        raise ValueError("parameters, states and activations are counts: give 0 or more")
    parts = {
        "weights": parameters * recipe.weights,
        "gradients": parameters * recipe.gradients,
        "master": parameters * recipe.master,
        "states": parameters * states * recipe.states,
        "activations": activations * recipe.activations,
        "copies": parameters * recipe.copies,
    }
    return parts | {"total": sum(parts.values())}


def tensor_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Return the bytes of the tensors' numbers; None counts nothing."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def training_bytes(model: nn.Module, optimizer: object) -> dict[str, int]:
    """Return the bytes of the tensors that are there now, under the names of
    `memory_estimate`.

    Weights, gradients, master copies (of MasterWeightOptimizer) and the optimizer's
    state; counts of steps and other scalars are left out.
    """
    weights, masters = list(model.parameters()), list(getattr(optimizer, "masters", ()))
    state = getattr(optimizer, "inner", optimizer).state
    kept = [value for values in state.values() for value in values.values()]
    return {
        "weights": tensor_bytes(weights),
        "gradients": tensor_bytes(weight.grad for weight in (*weights, *masters)),
        "master": tensor_bytes(masters),
        "states": tensor_bytes(t for t in kept if isinstance(t, Tensor) and t.ndim > 0),
    }


def saved_bytes(forward: Callable[[], Tensor], besides: Iterable[Tensor] = ()) -> int:
    """Run `forward()` and return the bytes of the tensors that autograd saves for the
    backward.

    Each storage counts once, and those of the tensors in `besides` (weights, data) not at
    all.
    Invariant: nothing is saved under no_grad.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in besides}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in known:
            saved[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
        size = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del result
    return size
