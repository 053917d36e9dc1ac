"""Hyper-parameter tuning: which settings to try next, and what a search may claim.

A space is a dictionary from names to a `Range` or a list of values. An objective takes
one configuration, a dictionary from the same names to values, and returns a number: lower
is better. A trial that returns NaN or an infinity has failed; a search counts it and goes
on.

`spaces`: ranges, grids, draws. `searches`: grid, random. `gaussian_process`: the model of
the scores. `bayesian`: the search that uses it. `halving`: stop early.
"""

from dlcourse.hyperparameter_tuning.bayesian import (
    bayesian_search,
    suggest,
    surrogate,
)
from dlcourse.hyperparameter_tuning.gaussian_process import (
    GaussianProcess,
    expected_improvement,
)
from dlcourse.hyperparameter_tuning.halving import Halving, Rung, successive_halving
from dlcourse.hyperparameter_tuning.searches import (
    Search,
    grid_search,
    random_search,
)
from dlcourse.hyperparameter_tuning.spaces import (
    Config,
    Range,
    draw_config,
    grid_points,
    loguniform,
    uniform,
    whole,
)

__all__ = [
    "Config",
    "GaussianProcess",
    "Halving",
    "Range",
    "Rung",
    "Search",
    "bayesian_search",
    "draw_config",
    "expected_improvement",
    "grid_points",
    "grid_search",
    "loguniform",
    "random_search",
    "successive_halving",
    "suggest",
    "surrogate",
    "uniform",
    "whole",
]
