"""The loss scale: small gradients moved into the range of float16."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class GradScaler:
    """Multiply the loss by a scale that is as large as the gradients allow.

    A gradient that is not finite: the step is left out, and the scale is multiplied by
    `backoff_factor` in (0, 1). After `growth_interval` good steps in a row it is
    multiplied by `growth_factor` > 1. `shared`: with several processes, all skip when one
    must, and all scales stay equal. Not `enabled`: all methods pass things through.
    `device` stands first as in torch, and decides nothing: each tensor has its own.

    The calls of one update, in order: `scale(loss).backward()` for each micro-batch,
    `unscale_` (where the true gradient is needed before the step), `step`, `update`.
    Raises ValueError for bad factors, RuntimeError for calls out of order, and for a step
    without a single gradient.
    Source: Micikevicius et al. (2018); names and rules as in torch.amp.GradScaler.
    Invariants: scale and skipped steps follow torch's in sequence; the weights of a
    skipped step do not move.
    """

    def __init__(
        self,
        device: str | torch.device = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
        shared: bool = False,
    ) -> None:
        try:
            torch.device(device)
        except (RuntimeError, TypeError):
            raise ValueError(
                f"device={device!r} is none: give 'cuda' or 'cpu', and the scale by its "
                "name, init_scale=65536.0"
            ) from None
        self._scale = _checked_scale("init_scale", init_scale)
        self.set_growth_factor(growth_factor)
        self.set_backoff_factor(backoff_factor)
        self.set_growth_interval(growth_interval)
        self.enabled, self.shared = enabled, shared
        self.skipped = 0  # steps left out so far
        self._streak = 0
        self._found: dict[int, bool] = {}  # by optimizer: was a gradient not finite?
        self._with_gradient: set[int] = set()
        self._stepped: set[int] = set()

    def is_enabled(self) -> bool:
        """Tell whether it scales at all."""
        return self.enabled

    def get_scale(self) -> float:
        """Return the scale, or 1 where not enabled."""
        return self._scale if self.enabled else 1.0

    def get_growth_factor(self) -> float:
        """Return what the scale is multiplied by after enough good steps."""
        return self.growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        """Set it; raise ValueError unless it is above 1."""
        if not new_factor > 1:
            raise ValueError(f"growth_factor={new_factor}: give a number above 1")
        self.growth_factor = new_factor

    def get_backoff_factor(self) -> float:
        """Return what the scale is multiplied by after a step left out."""
        return self.backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        """Set it; raise ValueError unless it lies between 0 and 1."""
        if not 0 < new_factor < 1:
            raise ValueError(
                f"backoff_factor={new_factor}: give a number between 0 and 1"
            )
        self.backoff_factor = new_factor

    def get_growth_interval(self) -> int:
        """Return how many good steps in a row raise the scale."""
        return self.growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        """Set it; raise ValueError unless it is a count from 1."""
        if not (new_interval >= 1 and float(new_interval).is_integer()):
            raise ValueError(f"growth_interval={new_interval}: give a count from 1")
        self.growth_interval = new_interval

    def scale(self, outputs: Tensor | Iterable[Tensor]) -> Any:
        """Return a loss, or each of a list or tuple, times the scale; a single 16-bit
        number becomes float32, as in torch.
        """
        if not self.enabled:
            return outputs
        if isinstance(outputs, Tensor):
            factor = torch.tensor(self._scale, dtype=torch.float32, device=outputs.device)
            return outputs * factor
        scaled = map(self.scale, outputs)
        return type(outputs)(scaled) if isinstance(outputs, (list, tuple)) else scaled

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
        seen = False
        for weight in _weights(optimizer):
            if weight.grad is None:
                continue
            seen = True
            if weight.grad.dtype == torch.float16:
                raise ValueError(
                    "the gradients are float16, in which the unscaled ones would vanish again: "
                    "keep the weights in float32 (autocast), or use MasterWeightOptimizer"
                )
            found |= not bool(weight.grad.isfinite().all())
            weight.grad.mul_(inverse)
        found = _any_process(found) if self.shared else found
        self._found[id(optimizer)] = found
        if seen:
            self._with_gradient.add(id(optimizer))

    def step(self, optimizer: torch.optim.Optimizer) -> object:
        """Unscale unless that was done, then step, unless a gradient was not finite."""
        if not self.enabled:
            return optimizer.step()
        if id(optimizer) in self._stepped:
            raise RuntimeError("step was called twice: end each update with update()")
        if id(optimizer) not in self._found:
            self.unscale_(optimizer)
        if id(optimizer) not in self._with_gradient:
            raise RuntimeError("there is no gradient: call backward before step")
        self._stepped.add(id(optimizer))
        if self._found[id(optimizer)]:
            self.skipped += 1
            return None
        return optimizer.step()

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Lower the scale if a step was left out, or raise it after enough good ones; or
        set it to `new_scale`.
        """
        if not self.enabled:
            return
        if new_scale is not None:
            self._scale = _checked_scale("new_scale", float(new_scale))
        elif not self._with_gradient:
            raise RuntimeError(
                "nothing to go by: call backward, then step or unscale_, before update"
            )
        elif any(self._found.values()):
            self._scale, self._streak = _as_float32(self._scale * self.backoff_factor), 0
        else:
            self._streak += 1
            if self._streak == self.growth_interval:
                larger, self._streak = _as_float32(self._scale * self.growth_factor), 0
                self._scale = larger if math.isfinite(larger) else self._scale
        self._found, self._with_gradient, self._stepped = {}, set(), set()

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


def _checked_scale(name: str, value: float) -> float:
    if not 0 < _as_float32(value) < math.inf:
        raise ValueError(
            f"{name}={value}: give a number above 0 within float32, such as 65536.0"
        )
    return _as_float32(value)


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
