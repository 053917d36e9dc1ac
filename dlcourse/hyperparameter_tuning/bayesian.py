"""Bayesian optimisation: model the scores, try where the model expects to improve most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dlcourse.hyperparameter_tuning.gaussian_process import (
    GaussianProcess,
    expected_improvement,
)
from dlcourse.hyperparameter_tuning.searches import (
    Objective,
    Search,
    failed_as,
    random_search,
)
from dlcourse.hyperparameter_tuning.spaces import (
    Config,
    Range,
    check_count,
    check_space,
    config_at,
    draw_config,
)

LENGTH_SCALES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # in shares of each range
NOISES = (1e-6, 1e-4, 1e-2, 1e-1)  # in shares of the variance of the scores


def surrogate(x: np.ndarray, y: np.ndarray) -> GaussianProcess:
    """Fit a process to standardised values y (n,) at x (n, d) in the unit cube.

    Length scales and noise are those of the largest likelihood, improved one after the
    other. A direction that does not matter gets a long scale.
    """
    scales = [0.4] * x.shape[1]
    noise = 1e-4
    for _ in range(2):
        for axis in range(len(scales)):
            likely = []
            for scale in LENGTH_SCALES:
                scales[axis] = scale
                process = GaussianProcess(scales, noise=noise).fit(x, y)
                likely.append(process.log_likelihood())
            scales[axis] = LENGTH_SCALES[int(np.argmax(likely))]
        likely = []
        for level in NOISES:
            process = GaussianProcess(scales, noise=level).fit(x, y)
            likely.append(process.log_likelihood())
        noise = NOISES[int(np.argmax(likely))]
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
    check_space(space)
    for name, values in space.items():
        if not isinstance(values, Range):
            raise ValueError(
                f"{name} is a list: use uniform, loguniform or whole, or random_search"
            )
    good = [score for score in scores if math.isfinite(score)]
    if not good:
        return draw_config(space, rng)

    x = _places(space, [*configs, *pending])
    y = np.append(failed_as(scores, max(good)), [min(good)] * len(pending))
    process = surrogate(x, (y - y.mean()) / (y.std() or 1.0))

    mean, _ = process.predict(x)
    tries = _candidates(space, x[mean.argmin()], rng)
    # the predicted best, not the observed: with noise the luckiest observation is too
    # good
    gain = expected_improvement(*process.predict(tries), mean.min())
    return config_at(space, tries[gain.argmax()])


def _places(space: Mapping[str, Range], configs: Sequence[Config]) -> np.ndarray:
    """Return where the configurations lie in the unit cube, (trials, names)."""
    rows = []
    for config in configs:
        rows.append([values.share(config[name]) for name, values in space.items()])
    return np.array(rows)


def _candidates(
    space: Mapping[str, Range], center: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return random places of the unit cube, a third of them near `center`.

    A place of a whole number is that number's own, so that the process is asked about
    what would be tried.
    """
    steps = rng.normal(size=(500, len(center)))
    widths = rng.choice([0.1, 0.02], (500, 1))
    anywhere = rng.random((1000, len(center)))
    tries = np.concatenate([anywhere, (center + widths * steps).clip(0, 1)])
    for axis, values in enumerate(space.values()):
        if values.whole:
            tries[:, axis] = [values.share(values.at(s)) for s in tries[:, axis]]
    return tries


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
    check_count("trials", trials)
    check_count("initial", initial)
    search = random_search(objective, space, min(initial, trials), seed)
    rng = np.random.default_rng([1, *np.atleast_1d(seed)])
    while len(search.scores) < trials:
        config = suggest(space, search.configs, search.scores, rng)
        search.run(objective, config)
    return search
