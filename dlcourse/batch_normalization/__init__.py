"""Batch normalisation and its kin: standardise what a layer hands on, then let it learn a
scale.
"""

from dlcourse.batch_normalization.after_training import (
    fold_batch_norm,
    recalibrate_bn,
)
from dlcourse.batch_normalization.batch_norm import (
    AnyBatchNorm,
    BatchNorm1d,
    BatchNorm2d,
    SyncBatchNorm,
    is_batch_norm,
)
from dlcourse.batch_normalization.example_norms import (
    GroupNorm,
    LayerNorm,
    RMSNorm,
)
from dlcourse.batch_normalization.standardize import (
    Standardize,
)

__all__ = [
    "Standardize",
    "AnyBatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "SyncBatchNorm",
    "is_batch_norm",
    "GroupNorm",
    "LayerNorm",
    "RMSNorm",
    "fold_batch_norm",
    "recalibrate_bn",
]
