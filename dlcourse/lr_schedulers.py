"""Learning-rate schedulers: a schedule is a pure function of the step, a scheduler
applies it.

A *schedule* is made by a function of this module, such as `cosine(100)`. It maps the
update number t = 0, 1, 2, ... to a factor on the base learning rate, and remembers
nothing. `fit(schedule=...)` takes it as it is. A *scheduler* has PyTorch's names and
arguments. It holds one number, the count of its steps, and writes the schedule's value
into an optimizer.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.optim import Optimizer

Schedule = Callable[[int], float]
ANNEALING = ("cos", "linear")
COOLDOWNS = ("linear", "sqrt")


# --------------------------------------------------------------------------- pure schedules


def step_decay(step_size: int, gamma: float = 0.1) -> Schedule:
    """Return gamma ** (t // step_size): one drop every `step_size` >= 1 steps, gamma in
    (0, 1].

    With step_size=1 this is the exponential schedule. Raises ValueError for other
    settings.
    """
    _check_whole("step_size", step_size, 1)
    _check_gamma(gamma)
    return lambda t: gamma ** (t // step_size)


def multi_step_decay(milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """Return gamma ** n, where n counts the `milestones` (each >= 1, repeats count) up to
    t.

    Raises ValueError for a milestone that is no whole number, or gamma outside (0, 1].
    """
    for milestone in milestones:
        _check_whole("each milestone", milestone, 1)
    _check_gamma(gamma)
    ordered = sorted(milestones)
    return lambda t: gamma ** bisect_right(ordered, t)


def cosine(T_max: int) -> Schedule:
    """Return (1 + cos(pi t / T_max)) / 2: from 1 at t = 0 down to 0 at t = T_max >= 1.

    It is a wave: past T_max it rises again, as torch's does. Put `sequential` around it
    to hold 0.
    Source: Loshchilov and Hutter, 2017, without the restarts.
    """
    _check_whole("T_max", T_max, 1)
    return lambda t: (1 + math.cos(math.pi * t / T_max)) / 2


def cosine_restarts(T_0: int, T_mult: int = 1) -> Schedule:
    """Return half cosine waves from 1 towards 0, of T_0, T_0 T_mult, T_0 T_mult^2, ...
    steps each.

    Each wave starts anew at 1. T_0 and T_mult >= 1. Source: SGDR, Loshchilov and Hutter,
    2017.
    """
    _check_whole("T_0", T_0, 1)
    _check_whole("T_mult", T_mult, 1)

    def factor(t: int) -> float:
        length = T_0
        if T_mult == 1:
            t %= T_0
        while t >= length:
            t -= length
            length *= T_mult
        return cosine(length)(t)

    return factor


def one_cycle(
    total_steps: int,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> Schedule:
    """Return the factor on the peak rate: 1/div_factor, up to 1, down to 1/(div *
    final_div).

    `pct_start` in [0, 1] is the share of the `total_steps` >= 2 that rise. `three_phase`
    falls to the start first, as slowly as it rose, and then to the end. Past the last
    step it stays there.
    Source: Smith and Topin, 2018; phases as in torch.
    """
    _check_positive("div_factor", div_factor)
    _check_positive("final_div_factor", final_div_factor)
    low, end = 1 / div_factor, 1 / div_factor / final_div_factor
    ends = _phase_ends(total_steps, pct_start, three_phase)
    levels = [low, 1.0, low, end] if three_phase else [low, 1.0, end]
    return _piecewise(ends, levels, anneal_strategy)


def one_cycle_momentum(
    total_steps: int,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    three_phase: bool = False,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
) -> Schedule:
    """Return the momentum that goes with `one_cycle`: lowest where the learning rate is
    highest.

    Both momenta lie in [0, 1). Raises ValueError for settings out of range.
    """
    for name, value in (("base_momentum", base_momentum), ("max_momentum", max_momentum)):
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value}: give a number of at least 0 and below 1")
    ends = _phase_ends(total_steps, pct_start, three_phase)
    levels = [max_momentum, base_momentum, max_momentum, max_momentum][: len(ends) + 1]
    return _piecewise(ends, levels, anneal_strategy)


def wsd(
    total_steps: int,
    warmup_steps: int = 0,
    cooldown_steps: int = 0,
    cooldown: str = "linear",
) -> Schedule:
    """Return warm-up, stable, decay: 1/warmup up to 1, then 1, then down to 0 at
    `total_steps`.

    `cooldown` is "linear", or "sqrt" for 1 - sqrt(share of the cool-down done). The two
    parts together fit in `total_steps`. Source: Hu et al., 2024; cool-down shapes:
    Haegele et al., 2024.
    """
    _check_whole("total_steps", total_steps, 1)
    _check_whole("warmup_steps", warmup_steps, 0)
    _check_whole("cooldown_steps", cooldown_steps, 0)
    if cooldown not in COOLDOWNS:
        raise ValueError(f"cooldown={cooldown!r}: choose one of {', '.join(COOLDOWNS)}")
    start = total_steps - cooldown_steps
    if warmup_steps > start:
        raise ValueError(
            f"warmup_steps={warmup_steps} and cooldown_steps={cooldown_steps} do not fit in "
            f"total_steps={total_steps}: shorten one of them"
        )

    def factor(t: int) -> float:
        if t < warmup_steps:
            return (t + 1) / warmup_steps
        if t < start or not cooldown_steps:
            return 1.0
        done = min((t - start) / cooldown_steps, 1.0)
        return 1 - (done if cooldown == "linear" else math.sqrt(done))

    return factor


def sequential(schedules: Sequence[Schedule], milestones: Sequence[int]) -> Schedule:
    """Return one schedule after the other; each counts from 0 at its milestone, the first
    from 0.

    Raises ValueError unless there is one rising milestone (>= 1) between each two
    schedules.
    """
    starts = _starts(schedules, milestones)

    def factor(t: int) -> float:
        number = bisect_right(starts, t) - 1
        return schedules[number](t - starts[number])

    return factor


def _starts(parts: Sequence, milestones: Sequence[int]) -> list[int]:
    if not parts or len(milestones) != len(parts) - 1:
        raise ValueError(
            f"{len(parts)} schedules and {len(milestones)} milestones: give one milestone between "
            "each two schedules"
        )
    for milestone in milestones:
        _check_whole("each milestone", milestone, 1)
    starts = [0, *milestones]
    if any(b <= a for a, b in zip(starts, starts[1:], strict=False)):
        raise ValueError(
            f"milestones={list(milestones)}: each must come after the one before it"
        )
    return starts


def _phase_ends(total_steps: int, pct_start: float, three_phase: bool) -> list[float]:
    """Return the last step of each phase; torch lets a phase end between two steps."""
    _check_whole("total_steps", total_steps, 2)
    if not 0 <= pct_start <= (0.5 if three_phase else 1):
        raise ValueError(
            f"pct_start={pct_start}: give a share from 0 to 1, or to 0.5 with three phases"
        )
    if three_phase:
        return [
            pct_start * total_steps - 1,
            2 * pct_start * total_steps - 2,
            total_steps - 1,
        ]
    return [pct_start * total_steps - 1, total_steps - 1]


def _piecewise(ends: list[float], levels: list[float], strategy: str) -> Schedule:
    """Return a curve through `levels`, reaching levels[i + 1] at step ends[i]."""
    if strategy not in ANNEALING:
        raise ValueError(
            f"anneal_strategy={strategy!r}: choose one of {', '.join(ANNEALING)}"
        )

    def value(t: int) -> float:
        begin = 0.0
        for end, first, last in zip(ends, levels[:-1], levels[1:], strict=True):
            if t <= end and end > begin:
                done = (t - begin) / (end - begin)
                if strategy == "linear":
                    return first + (last - first) * done
                return last + (first - last) * (1 + math.cos(math.pi * done)) / 2
            begin = end
        return levels[-1]

    return value


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}, not {value!r}"
        )


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value}: give a number above 0")


def _check_gamma(gamma: float) -> None:
    if not 0 < gamma <= 1:
        raise ValueError(
            f"gamma={gamma}: give a factor above 0 and at most 1; for a rate that rises, give "
            "LambdaLR a function of your own"
        )


# --------------------------------------------------------------------------- schedulers


class LambdaLR:
    """Writes eta_min + (base - eta_min) * lr_lambda(t) into each group of `optimizer`.

    `base` is the group's own learning rate at the start (kept as "initial_lr", as torch
    does) and t, here `last_epoch`, the number of calls of step(): of updates, where you
    call it once each. All other schedulers but ReduceLROnPlateau are this one with a
    schedule filled in.
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
        self.base_lrs = [
            float(group.setdefault("initial_lr", float(group["lr"])))
            for group in optimizer.param_groups
        ]
        self.last_epoch = 0
        self._write(0)

    def lrs_at(self, t: int) -> list[float]:
        """Return the learning rate of each group at step t >= 0, without touching
        anything.
        """
        factor = self.lr_lambda(t)
        return [self.eta_min + (base - self.eta_min) * factor for base in self.base_lrs]

    def step(self) -> None:
        """Go on to the next value: call it once an update, after optimizer.step()."""
        self.last_epoch += 1
        self._write(self.last_epoch)

    def get_last_lr(self) -> list[float]:
        """Return the learning rates in force."""
        return self.lrs_at(self.last_epoch)

    def state_dict(self) -> dict:
        """Return the count of steps and the base rates; the settings stay in your code."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take up a state and write its learning rates; ValueError for another group
        count.
        """
        if len(state_dict["base_lrs"]) != len(self.optimizer.param_groups):
            raise ValueError(
                f"the state has {len(state_dict['base_lrs'])} groups, this optimizer "
                f"{len(self.optimizer.param_groups)}: build the optimizer as it was when saved"
            )
        self.last_epoch, self.base_lrs = (
            state_dict["last_epoch"],
            list(state_dict["base_lrs"]),
        )
        self._write(self.last_epoch)

    def _write(self, t: int) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.lrs_at(t), strict=True):
            _set_lr(group, lr)


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
        self._write(0)

    def momenta_at(self, t: int) -> list[float] | None:
        """Return the momentum of each group at step t, or None without cycle_momentum."""
        return self.momenta and [momentum(t) for momentum in self.momenta]

    def _write(self, t: int) -> None:
        super()._write(t)
        momenta = self.momenta_at(t) or []
        for group, momentum in zip(self.optimizer.param_groups, momenta, strict=False):
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
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = self.last_epoch = 0

    def step(self, metrics: float) -> None:
        """Take in the metric of one evaluation; NaN counts as no improvement."""
        current = float(metrics)
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

    def _is_better(self, current: float) -> bool:
        sign = -1 if self.mode == "min" else 1
        if self.threshold_mode == "abs":
            return sign * current > sign * self.best + self.threshold
        return sign * current > sign * self.best * (1 + sign * self.threshold)

    def get_last_lr(self) -> list[float]:
        """Return the learning rates in force."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

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


def step_scheduler(accelerator, scheduler) -> bool:
    """Step `scheduler` where Accelerate has made an update, else leave it; return which.

    Call it after each micro-batch, with a scheduler that was not prepared. It is one step
    an update for any number of processes and micro-batches, and none where a float16
    overflow made the update fall away.
    """
    updated = accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped
    if updated:
        scheduler.step()
    return updated


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


def _set_lr(group: dict, lr: float) -> None:
    if isinstance(group["lr"], Tensor):  # a compiled optimizer reads this very tensor
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr
