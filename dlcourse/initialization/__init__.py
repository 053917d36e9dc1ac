"""Initialization: starting weights that differ, and whose scale keeps signal and gradient
alive.
"""

from dlcourse.initialization.models import LAYERS, initialize_, lsuv_, predict_variance
from dlcourse.initialization.statistics import (
    ACTIVATIONS,
    FLAT,
    SAMPLE,
    LayerStats,
    activation_stats,
)
from dlcourse.initialization.weights import (
    GAINS,
    calculate_fan,
    calculate_gain,
    kaiming_normal_,
    kaiming_uniform_,
    orthogonal_,
    xavier_normal_,
    xavier_uniform_,
)

__all__ = [
    "GAINS",
    "calculate_fan",
    "calculate_gain",
    "kaiming_normal_",
    "kaiming_uniform_",
    "orthogonal_",
    "xavier_normal_",
    "xavier_uniform_",
    "LAYERS",
    "initialize_",
    "lsuv_",
    "predict_variance",
    "ACTIVATIONS",
    "FLAT",
    "LayerStats",
    "SAMPLE",
    "activation_stats",
]
