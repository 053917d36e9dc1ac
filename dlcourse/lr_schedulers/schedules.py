"""Schedules as pure functions of the step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

Schedule = Callable[[int], float]


ANNEALING = ("cos", "linear")


COOLDOWNS = ("linear", "sqrt")


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
