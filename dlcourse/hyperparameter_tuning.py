"""Hyper-parameter tuning: which settings to try next, and what a search may claim.

A space is a dictionary from names to a `Range` or a list of values. An objective takes
one configuration, a dictionary from the same names to values, and returns a number: lower
is better. A trial that returns NaN or an infinity has failed; a search counts it and goes
on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.spatial.distance import cdist
from scipy.special import ndtr

Config = dict[str, object]
Objective = Callable[[Config], float]


# --- spaces ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, evenly spread, or evenly in their logarithm if
    `log`.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(
                f"low={self.low}, high={self.high}: give finite numbers, low < high"
            )
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low}: a log scale needs low > 0, such as 1e-5")

    def at(self, share: float) -> float:
        """Return the value at a `share` in [0, 1] of the way; the inverse of `share`."""
        if self.log:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + (self.high - self.low) * share
        # rounding must not leave the range
        return float(min(max(value, self.low), self.high))

    def share(self, value: float) -> float:
        """Return how far along the range `value` lies, from 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def draw(self, rng: np.random.Generator) -> float:
        """Return one random value."""
        return self.at(rng.random())


def uniform(low: float, high: float) -> Range:
    """Return the range [low, high] with equal chance for equal differences.

    Raises ValueError unless low < high and both are finite.
    """
    return Range(low, high)


def loguniform(low: float, high: float) -> Range:
    """Return the range [low, high] with equal chance for equal ratios; low > 0.

    Raises ValueError unless 0 < low < high < inf. Invariant: each decade gets the same
    share.
    """
    return Range(low, high, log=True)


def draw_config(space: Mapping, rng: np.random.Generator) -> Config:
    """Draw every hyper-parameter of `space`, each from its own range or list,
    independently.
    """
    _check_space(space)
    return {
        name: values.draw(rng)
        if isinstance(values, Range)
        else values[rng.integers(len(values))]
        for name, values in space.items()
    }


def grid_points(space: Mapping[str, Sequence]) -> list[Config]:
    """Return every combination of the listed values; their number is the product of the
    lengths.

    The order is that of scikit-learn's ParameterGrid: names sorted, the last one fastest.
    Raises ValueError for a Range, which has no end of values.

    >>> grid_points({"b": [1, 2], "a": ["x"]})
    [{'a': 'x', 'b': 1}, {'a': 'x', 'b': 2}]
    """
    _check_space(space)
    for name, values in space.items():
        if isinstance(values, Range):
            raise ValueError(
                f"{name} is a range: a grid needs a list, such as [0.01, 0.1, 1.0]"
            )
    names = sorted(space)
    rows = itertools.product(*(space[name] for name in names))
    return [dict(zip(names, row, strict=True)) for row in rows]


# --- what a search leaves -------------------------------------------------------------------------


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
        scores = _failed_as(self.scores, math.inf)
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

    @property
    def best_so_far(self) -> np.ndarray:
        """The best score after each trial (trials,), inf before the first that did not
        fail.
        """
        return np.minimum.accumulate(_failed_as(self.scores, math.inf))


def _failed_as(scores: Sequence[float], value: float) -> np.ndarray:
    scores = np.asarray(scores, dtype=float)
    return np.where(np.isfinite(scores), scores, value)


# --- grid and random ------------------------------------------------------------------------------


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
    _check_count("trials", trials)
    rng, search = np.random.default_rng(seed), Search()
    for _ in range(trials):
        search.run(objective, draw_config(space, rng))
    return search


# --- Bayesian optimisation ------------------------------------------------------------------------


class GaussianProcess:
    """A distribution over functions of `d` numbers: mean zero, Matern-5/2 covariance.

    `length_scale` > 0, one number or (d,): the distance over which values stay alike.
    `variance` > 0 of the function, `noise` >= 0 the variance of the error in each
    observation.
    Source: Rasmussen & Williams (2006), algorithm 2.1. Invariants: without noise the mean
    passes through the observations; the standard deviation never exceeds that of the
    prior.
    """

    def __init__(
        self, length_scale=0.3, variance: float = 1.0, noise: float = 1e-6
    ) -> None:
        self.length_scale = np.asarray(length_scale, dtype=float)
        if not (self.length_scale > 0).all() or not variance > 0 or not noise >= 0:
            raise ValueError("give length_scale > 0, variance > 0 and noise >= 0")
        self.variance, self.noise = variance, noise
        self.x = None

    def kernel(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the covariances (n, m) of the function at a (n, d) and b (m, d)."""
        r = math.sqrt(5) * cdist(a / self.length_scale, b / self.length_scale)
        return self.variance * (1 + r + r**2 / 3) * np.exp(-r)

    def fit(self, x, y) -> GaussianProcess:
        """Condition on observations y (n,) at x (n, d), n >= 1; return self.

        Points may repeat. Raises ValueError for values that are not finite.
        """
        x, y = np.atleast_2d(np.asarray(x, float)), np.asarray(y, float)
        if len(x) != len(y) or not len(y):
            raise ValueError(
                f"{len(x)} points and {len(y)} values: give one value for each point"
            )
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ValueError(
                "not all points and values are finite: leave failed trials out"
            )
        self.x, self.y = x, y
        self.factor = _cholesky(
            self.kernel(x, x) + self.noise * np.eye(len(x)), self.variance
        )
        self.weights = cho_solve((self.factor, True), y, check_finite=False)
        return self

    def predict(self, x) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean (m,) and standard deviation (m,) of the function at x (m, d)."""
        x = np.atleast_2d(np.asarray(x, float))
        if self.x is None:  # nothing seen yet: the prior
            return np.zeros(len(x)), np.full(len(x), math.sqrt(self.variance))
        across = self.kernel(x, self.x)
        half = solve_triangular(self.factor, across.T, lower=True, check_finite=False)
        left = self.variance - (half**2).sum(axis=0)
        return across @ self.weights, np.sqrt(left.clip(min=0))

    def log_likelihood(self) -> float:
        """Return the log of the density of the observations under the prior."""
        volume = np.log(np.diag(self.factor)).sum()
        return float(
            -self.y @ self.weights / 2 - volume - len(self.y) / 2 * math.log(2 * math.pi)
        )


def _cholesky(matrix: np.ndarray, scale: float) -> np.ndarray:
    """Factor a covariance; where points repeat it is singular, and a little jitter mends
    it.
    """
    for jitter in (0.0, 1e-12, 1e-10, 1e-8, 1e-6):
        try:
            return cholesky(
                matrix + jitter * scale * np.eye(len(matrix)),
                lower=True,
                check_finite=False,
            )
        except np.linalg.LinAlgError:
            continue
    raise ValueError("the covariance has no Cholesky factor: raise noise")


def expected_improvement(mean, std, best: float) -> np.ndarray:
    """Return E[max(best - f, 0)] for f ~ N(mean, std^2): how far below `best` f is
    expected to go.

    `std` >= 0; where it is 0 this is max(best - mean, 0). Source: Jones, Schonlau & Welch
    (1998).
    Invariants: never negative; it grows with `std` and falls with `mean`.
    """
    mean, std = np.asarray(mean, float), np.asarray(std, float)
    gain = best - mean
    with np.errstate(divide="ignore", invalid="ignore"):
        z = gain / std
        density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        value = gain * ndtr(z) + std * density
    return np.where(std > 0, value, gain).clip(min=0)


LENGTH_SCALES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # in shares of each range
NOISES = (1e-6, 1e-4, 1e-2, 1e-1)  # in shares of the variance of the scores


def surrogate(x: np.ndarray, y: np.ndarray) -> GaussianProcess:
    """Fit a process to standardised values y (n,) at x (n, d) in the unit cube.

    Length scales and noise are those of the largest likelihood, improved one after the
    other. A direction that does not matter gets a long scale.
    """
    scales, noise = [0.4] * x.shape[1], 1e-4
    for _ in range(2):
        for axis in range(len(scales)):
            tries = [scales[:axis] + [s] + scales[axis + 1 :] for s in LENGTH_SCALES]
            fits = [
                GaussianProcess(s, noise=noise).fit(x, y).log_likelihood() for s in tries
            ]
            scales = tries[int(np.argmax(fits))]
        fits = [
            GaussianProcess(scales, noise=n).fit(x, y).log_likelihood() for n in NOISES
        ]
        noise = NOISES[int(np.argmax(fits))]
    return GaussianProcess(scales, noise=noise).fit(x, y)


def suggest(
    space: Mapping[str, Range],
    configs: Sequence[Config],
    scores: Sequence[float],
    rng: np.random.Generator,
    pending: Sequence[Config] = (),
) -> Config:
    """Return the configuration of largest expected improvement, given the trials so far.

    A failed trial (NaN, inf) counts as bad as the worst that ended, so that its
    surroundings are avoided. `pending` are trials still running elsewhere: each is given
    the best score so far as a lie (Ginsbourger et al. 2010), so that it is not suggested
    again. Without any score: a draw.
    Raises ValueError for a list in `space`, which has no distances.
    """
    _check_space(space)
    for name, values in space.items():
        if not isinstance(values, Range):
            raise ValueError(
                f"{name} is a list: use uniform or loguniform, or random_search"
            )
    good = [score for score in scores if math.isfinite(score)]
    if not good:
        return draw_config(space, rng)
    y = np.append(_failed_as(scores, max(good)), [min(good)] * len(pending))
    y = (y - y.mean()) / (y.std() or 1.0)
    x = np.array(
        [[r.share(c[n]) for n, r in space.items()] for c in [*configs, *pending]]
    )
    process = surrogate(x, y)
    mean, _ = process.predict(x)
    near = x[mean.argmin()] + rng.normal(size=(500, x.shape[1])) * rng.choice(
        [0.1, 0.02], (500, 1)
    )
    tries = np.concatenate([rng.random((1000, x.shape[1])), near.clip(0, 1)])
    # the predicted best, not the observed: with noise the luckiest observation is too
    # good
    gain = expected_improvement(*process.predict(tries), mean.min())
    chosen = tries[gain.argmax()]
    return {
        name: r.at(share) for (name, r), share in zip(space.items(), chosen, strict=True)
    }


def bayesian_search(
    objective: Objective,
    space: Mapping[str, Range],
    trials: int,
    initial: int = 5,
    seed=0,
) -> Search:
    """Try `initial` random configurations, then what `suggest` says, `trials` >= 1 in
    all.

    Source: Snoek, Larochelle & Adams (2012).
    Invariant: the first `initial` trials are those of `random_search` with the same seed.
    """
    _check_count("trials", trials)
    _check_count("initial", initial)
    search = random_search(objective, space, min(initial, trials), seed)
    rng = np.random.default_rng([1, *np.atleast_1d(seed)])
    while len(search.scores) < trials:
        search.run(objective, suggest(space, search.configs, search.scores, rng))
    return search


# --- successive halving ---------------------------------------------------------------------------


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
    _check_count("budget", budget)
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
        order = np.argsort(_failed_as(scores, math.inf), kind="stable")
        left = [left[i] for i in order[: max(1, len(left) // factor)]]
        budget *= factor


# --- checks ---------------------------------------------------------------------------------------


def _check_space(space: Mapping) -> None:
    if not space:
        raise ValueError("the space is empty: name at least one hyper-parameter")
    for name, values in space.items():
        if not isinstance(values, Range) and (isinstance(values, str) or not len(values)):
            raise ValueError(f"{name}: give a range, or a list with at least one value")


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name}={count}: give at least 1")
