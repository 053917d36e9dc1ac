"""Successive halving: many configurations on a small budget, few on a large one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dlcourse.hyperparameter_tuning.searches import failed_as
from dlcourse.hyperparameter_tuning.spaces import Config, check_count


@dataclass
class Rung:
    """One round of halving: each of `configs` got `budget`; `scores` has the same length."""

    budget: int
    configs: list[Config]
    scores: list[float]


@dataclass
class Halving:
    """The rounds of a successive halving, the largest field first."""

    rungs: list[Rung] = field(default_factory=list)

    @property
    def best_config(self) -> Config:
        """The configuration that was left at the end."""
        return self.rungs[-1].configs[0]

    @property
    def best_score(self) -> float:
        """Its score with the largest budget."""
        return self.rungs[-1].scores[0]

    def cost(self, resume: bool = True) -> int:
        """Return the budget spent; with `resume`, a survivor pays only for what it trains
        on.
        """
        spent, before = 0, 0
        for rung in self.rungs:
            spent += len(rung.configs) * (rung.budget - before)
            before = rung.budget if resume else 0
        return spent


def successive_halving(
    objective: Callable[[Config, int], float],
    configs: Sequence[Config],
    budget: int = 1,
    factor: int = 3,
) -> Halving:
    """Give all `configs` a small `budget`, keep the best 1/factor, give those factor
    times as much.

    Ends when one is left and has had its round. objective(config, budget) is the score
    after `budget` (updates, epochs, rows); lower is better, NaN is worst. `factor` >= 2,
    `budget` >= 1.
    Source: Jamieson & Talwalkar (2016). Invariant: each round has 1/factor of the last,
    rounded down, at least one.
    """
    check_count("budget", budget)
    if factor < 2:
        raise ValueError(f"factor={factor}: give 2 or more, such as 3")
    if not len(configs):
        raise ValueError("no configurations: give at least one")
    halving, left = Halving(), list(configs)
    while True:
        scores = [float(objective(config, budget)) for config in left]
        halving.rungs.append(Rung(budget, left, scores))
        if len(left) == 1:
            return halving
        order = np.argsort(failed_as(scores, math.inf), kind="stable")
        left = [left[i] for i in order[: max(1, len(left) // factor)]]
        budget *= factor
