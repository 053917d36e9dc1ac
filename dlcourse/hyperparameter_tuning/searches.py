"""Searches that never look at what they have seen: grid, random."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dlcourse.hyperparameter_tuning.spaces import (
    Config,
    check_count,
    draw_config,
    grid_points,
)

Objective = Callable[[Config], float]


@dataclass
class Search:
    """The trials of a search in the order they ran: `configs`, and `scores` of the same
    length.
    """

    configs: list[Config] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def run(self, objective: Objective, config: Config) -> None:
        """Run one trial and record it."""
        self.scores.append(float(objective(config)))
        self.configs.append(config)

    @property
    def best(self) -> int:
        """The number of the best trial; raises ValueError where none came to an end."""
        scores = failed_as(self.scores, math.inf)
        if not np.isfinite(scores).any():
            raise ValueError(
                f"none of {len(scores)} trials gave a finite score: widen the space"
            )
        return int(scores.argmin())

    @property
    def best_config(self) -> Config:
        """The configuration of the best trial."""
        return self.configs[self.best]

    @property
    def best_score(self) -> float:
        """The score of the best trial."""
        return self.scores[self.best]


def failed_as(scores: Sequence[float] | np.ndarray, value: float) -> np.ndarray:
    """Return the scores with `value` in the place of each that is not finite."""
    scores = np.asarray(scores, dtype=float)
    return np.where(np.isfinite(scores), scores, value)


def grid_search(objective: Objective, space: Mapping[str, Sequence]) -> Search:
    """Try every combination of the listed values, in the order of `grid_points`."""
    search = Search()
    for config in grid_points(space):
        search.run(objective, config)
    return search


def random_search(objective: Objective, space: Mapping, trials: int, seed=0) -> Search:
    """Try `trials` >= 1 configurations, each one drawn from the whole of `space`.

    `seed` is an int, or a list such as [0, rank]. Source: Bergstra & Bengio (2012).
    Invariant: a longer search with the same seed begins with the trials of a shorter one.
    """
    check_count("trials", trials)
    rng = np.random.default_rng(seed)
    search = Search()
    for _ in range(trials):
        search.run(objective, draw_config(space, rng))
    return search
