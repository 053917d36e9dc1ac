"""Regularization: small or few weights, noise, softer targets, averages, flat places, a
stop.
"""

from dlcourse.regularization.averaging import (
    ExponentialMovingAverage,
    sam_perturbation,
    sam_step,
)
from dlcourse.regularization.calibration import (
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from dlcourse.regularization.early_stopping import EarlyStopping
from dlcourse.regularization.noise import Dropout, cross_entropy
from dlcourse.regularization.optimizers import NORMS, AdamW, ProximalSGD, param_groups
from dlcourse.regularization.penalties import (
    elastic_net_penalty,
    l1_penalty,
    l2_penalty,
    soft_threshold,
)

__all__ = [
    "AdamW",
    "NORMS",
    "ProximalSGD",
    "param_groups",
    "elastic_net_penalty",
    "l1_penalty",
    "l2_penalty",
    "soft_threshold",
    "Dropout",
    "cross_entropy",
    "ExponentialMovingAverage",
    "sam_perturbation",
    "sam_step",
    "EarlyStopping",
    "expected_calibration_error",
    "fit_temperature",
    "reliability",
]
