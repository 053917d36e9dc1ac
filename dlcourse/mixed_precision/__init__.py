"""Mixed precision: 16 bits where they do no harm, 32 where small numbers must be kept."""

from dlcourse.mixed_precision.autocast import autocast_policy
from dlcourse.mixed_precision.formats import (
    FORMATS,
    OF_DTYPE,
    Format,
    format_of,
    round_to,
    underflow_fraction,
)
from dlcourse.mixed_precision.loss_scale import GradScaler
from dlcourse.mixed_precision.master_weights import MasterWeightOptimizer
from dlcourse.mixed_precision.memory import RECIPES, Recipe, memory_estimate
from dlcourse.mixed_precision.step import mixed_precision_step

__all__ = [
    "FORMATS",
    "Format",
    "OF_DTYPE",
    "format_of",
    "round_to",
    "underflow_fraction",
    "GradScaler",
    "MasterWeightOptimizer",
    "mixed_precision_step",
    "autocast_policy",
    "RECIPES",
    "Recipe",
    "memory_estimate",
]
