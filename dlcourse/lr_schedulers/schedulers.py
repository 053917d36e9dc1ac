"""Schedulers with torch's names: they put a schedule's factor into an optimizer."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from dlcourse.lr_schedulers.schedules import (
    Schedule,
    _check_positive,
    _check_whole,
    _starts,
    cosine,
    cosine_restarts,
    multi_step_decay,
    one_cycle,
    one_cycle_momentum,
    step_decay,
    wsd,
)


class LambdaLR:
    """Writes eta_min + (base - eta_min) * lr_lambda(t) into each group of `optimizer`.

    `base` is the group's own learning rate at the start (kept as "initial_lr", as torch
    does) and t, here `last_epoch`, the number of calls of step(): of updates, where you
    call it once each. All other schedulers but ReduceLROnPlateau are this one with a
    schedule filled in.

    It writes a rate, it does not multiply the one that is there: a rate that somebody
    else has changed, by hand or through a second scheduler, is overwritten, and step()
    warns of it (`sequential` joins schedules; torch's schedulers can be chained). A group
    that is added later takes part from the next step, with its own rate as its base. As
    it holds functions it cannot be pickled: keep its `state_dict`.
    Warns where step() comes before the first optimizer.step().
    Invariants: reading `lrs_at` moves nothing; a resumed run has the rates of an unbroken
    one.
    """

    def __init__(
        self, optimizer: Optimizer, lr_lambda: Schedule, eta_min: float = 0.0
    ) -> None:
        _check_optimizer(optimizer)
        if not 0 <= eta_min < math.inf:
            raise ValueError(f"eta_min={eta_min}: give a learning rate of at least 0")
        self.optimizer, self.lr_lambda, self.eta_min = optimizer, lr_lambda, eta_min
        self.base_lrs: list[float] = []
        self._take_in_new_groups()
        self.last_epoch = 0
        self._updated = False  # whether the optimizer has made an update since
        plain = getattr(optimizer, "optimizer", optimizer)  # without Accelerate's wrapper
        self._first_update = plain.register_step_post_hook(self._note_update)
        self._apply(0)

    def lrs_at(self, t: int) -> list[float]:
        """Return the learning rate of each group at step t >= 0, without touching
        anything.
        """
        self._take_in_new_groups()
        factor = self.lr_lambda(t)
        return [self.eta_min + (base - self.eta_min) * factor for base in self.base_lrs]

    def step(self) -> None:
        """Go on to the next value: call it once an update, after optimizer.step()."""
        self._warn_of_misuse()
        self.last_epoch += 1
        self._apply(self.last_epoch)

    def get_last_lr(self) -> list[float]:
        """Return the learning rates in force."""
        return self.lrs_at(self.last_epoch)

    def state_dict(self) -> dict:
        """Return the count of steps and the base rates; the settings stay in your code."""
        self._take_in_new_groups()
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take up a state and write its learning rates; ValueError for another group
        count.
        """
        self._take_in_new_groups()
        if len(state_dict["base_lrs"]) != len(self.optimizer.param_groups):
            raise ValueError(
                f"the state has {len(state_dict['base_lrs'])} groups, this optimizer "
                f"{len(self.optimizer.param_groups)}: build the optimizer as it was when saved"
            )
        self.last_epoch, self.base_lrs = (
            state_dict["last_epoch"],
            list(state_dict["base_lrs"]),
        )
        self._apply(self.last_epoch)

    def _apply(self, t: int) -> None:
        self._write(t)
        self._written = _rates(self.optimizer)

    def _write(self, t: int) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.lrs_at(t), strict=True):
            _set_lr(group, lr)

    def _take_in_new_groups(self) -> None:
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:
            self.base_lrs.append(
                float(group.setdefault("initial_lr", float(group["lr"])))
            )

    def _note_update(self, *_) -> None:
        self._updated = True

    def _warn_of_misuse(self) -> None:
        if self.last_epoch == 0 and not self._updated:
            warnings.warn(
                "scheduler.step() came before the first optimizer.step(), so the first rate is "
                "never used: call optimizer.step() first",
                stacklevel=3,
            )
        self._first_update.remove()  # all is known now: no call an update any more
        for written, now in zip(self._written, _rates(self.optimizer), strict=False):
            if now != written:
                warnings.warn(
                    f"the learning rate is {now:.4g}, this scheduler had written {written:.4g}, "
                    "and now overwrites it: change the schedule instead, and join two schedules "
                    "with `sequential` or by multiplying them",
                    stacklevel=3,
                )
                return


class StepLR(LambdaLR):
    """`step_decay` on an optimizer: times gamma (default 0.1, not a half) every step_size
    steps.
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        super().__init__(optimizer, step_decay(step_size, gamma))


class MultiStepLR(LambdaLR):
    """`multi_step_decay` on an optimizer: times gamma at each milestone."""

    def __init__(
        self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1
    ) -> None:
        super().__init__(optimizer, multi_step_decay(milestones, gamma))


class ExponentialLR(LambdaLR):
    """Times gamma, in (0, 1], at every step: `step_decay` with step_size=1."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        super().__init__(optimizer, step_decay(1, gamma))


class CosineAnnealingLR(LambdaLR):
    """`cosine` on an optimizer, from each base rate to the rate `eta_min`; rises past
    T_max.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        super().__init__(optimizer, cosine(T_max), eta_min)


class CosineAnnealingWarmRestarts(LambdaLR):
    """`cosine_restarts` on an optimizer, each wave from the base rate towards `eta_min`."""

    def __init__(
        self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0
    ) -> None:
        super().__init__(optimizer, cosine_restarts(T_0, T_mult), eta_min)


class WSDLR(LambdaLR):
    """`wsd` on an optimizer; PyTorch has no such class."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 0,
        cooldown_steps: int = 0,
        cooldown: str = "linear",
    ) -> None:
        super().__init__(
            optimizer, wsd(total_steps, warmup_steps, cooldown_steps, cooldown)
        )


class OneCycleLR(LambdaLR):
    """`one_cycle` on an optimizer; the optimizer's own learning rate is replaced by
    `max_lr`.

    With `cycle_momentum` it also writes the momentum (beta1 for Adam). `max_lr` and the
    momenta are one number, or one a group. Where torch raises after total_steps, the last
    value stays.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
    ) -> None:
        _check_optimizer(optimizer)
        shape = (total_steps, pct_start, anneal_strategy)
        factor = one_cycle(*shape, div_factor, final_div_factor, three_phase)
        peaks = _each_group(optimizer, "max_lr", max_lr)
        self.momenta = None
        if cycle_momentum:
            if not {"momentum", "betas"} & optimizer.defaults.keys():
                raise ValueError(
                    f"{type(optimizer).__name__} has no momentum: pass cycle_momentum=False"
                )
            low = _each_group(optimizer, "base_momentum", base_momentum)
            high = _each_group(optimizer, "max_momentum", max_momentum)
            self.momenta = [
                one_cycle_momentum(*shape, three_phase, *pair)
                for pair in zip(low, high, strict=True)
            ]
        for peak in peaks:
            _check_positive("max_lr", peak)
        super().__init__(optimizer, factor)
        self.base_lrs = peaks
        self._apply(0)

    def momenta_at(self, t: int) -> list[float] | None:
        """Return the momentum of each group at step t, or None without cycle_momentum."""
        if self.momenta is None:
            return None
        return [momentum(t) for momentum in self.momenta]

    def _write(self, t: int) -> None:
        super()._write(t)
        groups, momenta = self.optimizer.param_groups, self.momenta_at(t) or []
        momenta += momenta[-1:] * (len(groups) - len(momenta))  # groups added later
        for group, momentum in zip(groups, momenta, strict=False):
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum


class SequentialLR(LambdaLR):
    """One scheduler after the other, each from its own step 0 at its milestone, as
    `sequential`.

    Raises ValueError for schedulers of different optimizers, or where `sequential` does.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LambdaLR],
        milestones: Sequence[int],
    ) -> None:
        self.starts, self.schedulers = _starts(schedulers, milestones), list(schedulers)
        for scheduler in schedulers:
            if not isinstance(scheduler, LambdaLR):
                raise ValueError(
                    f"{type(scheduler).__name__} is no function of the step: it cannot be a part"
                )
            if scheduler.optimizer is not optimizer:
                raise ValueError(
                    "all schedulers must be built on the optimizer given here"
                )
        super().__init__(optimizer, lambda t: 1.0)

    def _part(self, t: int) -> tuple[LambdaLR, int]:
        number = bisect_right(self.starts, t) - 1
        return self.schedulers[number], t - self.starts[number]

    def lrs_at(self, t: int) -> list[float]:
        """Return the learning rate of each group at step t, as the part in charge has it."""
        scheduler, own = self._part(t)
        return scheduler.lrs_at(own)

    def _write(self, t: int) -> None:
        scheduler, own = self._part(t)
        scheduler._write(own)  # a part may write momenta too


class ReduceLROnPlateau:
    """Times `factor` when a metric has not improved for more than `patience` calls of
    step(metric).

    It is a function of the metrics seen, not of the step: nobody can plot it in advance.
    `mode` "min" or "max"; better means by `threshold`, "rel" to the best or "abs"; after
    a drop, the next `cooldown` calls do not count; no rate falls below `min_lr`, or by
    less than `eps`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        _check_optimizer(optimizer)
        if mode not in ("min", "max") or threshold_mode not in ("rel", "abs"):
            raise ValueError(
                f"mode={mode!r}, threshold_mode={threshold_mode!r}: choose 'min' or 'max', and "
                "'rel' or 'abs'"
            )
        if not 0 < factor < 1:
            raise ValueError(
                f"factor={factor}: give a number above 0 and below 1, to reduce"
            )
        _check_whole("patience", patience, 0)
        _check_whole("cooldown", cooldown, 0)
        self.optimizer, self.mode, self.factor, self.patience = (
            optimizer,
            mode,
            factor,
            patience,
        )
        self.threshold, self.threshold_mode, self.cooldown = (
            threshold,
            threshold_mode,
            cooldown,
        )
        self.min_lrs, self.eps = _each_group(optimizer, "min_lr", min_lr), eps
        self.one_min_lr = not isinstance(min_lr, (list, tuple))
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = self.last_epoch = 0

    def step(self, metrics: float) -> None:
        """Take in the metric of one evaluation; NaN counts as no improvement."""
        current = float(metrics)
        self._take_in_new_groups()
        self.last_epoch += 1
        if self._is_better(current):
            self.best, self.num_bad_epochs = current, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            for group, least in zip(
                self.optimizer.param_groups, self.min_lrs, strict=True
            ):
                old = float(group["lr"])
                new = max(old * self.factor, least)
                if old - new > self.eps:
                    _set_lr(group, new)
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def _take_in_new_groups(self) -> None:
        new = len(self.optimizer.param_groups) - len(self.min_lrs)
        if new and not self.one_min_lr:
            raise ValueError(
                f"min_lr has {len(self.min_lrs)} values, and {new} groups were added to the "
                "optimizer: give one number as min_lr, or append to min_lrs"
            )
        self.min_lrs += self.min_lrs[-1:] * new

    def _is_better(self, current: float) -> bool:
        sign = -1 if self.mode == "min" else 1
        if self.threshold_mode == "abs":
            return sign * current > sign * self.best + self.threshold
        return sign * current > sign * self.best * (1 + sign * self.threshold)

    def get_last_lr(self) -> list[float]:
        """Return the learning rates in force."""
        return _rates(self.optimizer)

    def state_dict(self) -> dict:
        """Return what has been seen so far and the learning rates; the settings stay in
        code.
        """
        names = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
        return {name: getattr(self, name) for name in names} | {"lrs": self.get_last_lr()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take up a state and write its learning rates."""
        state = dict(state_dict)
        for group, lr in zip(self.optimizer.param_groups, state.pop("lrs"), strict=True):
            _set_lr(group, lr)
        for name, value in state.items():
            setattr(self, name, value)


def _check_optimizer(optimizer: object) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"{type(optimizer).__name__} is no optimizer: give the one whose rates shall change"
        )


def _each_group(optimizer: Optimizer, name: str, value) -> list[float]:
    groups = len(optimizer.param_groups)
    values = list(value) if isinstance(value, (list, tuple)) else [value] * groups
    if len(values) != groups:
        raise ValueError(
            f"{name} has {len(values)} values for {groups} groups: give one a group"
        )
    return values


def _rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def _set_lr(group: dict, lr: float) -> None:
    if isinstance(group["lr"], Tensor):  # a compiled optimizer reads this very tensor
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr
