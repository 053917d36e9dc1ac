"""Data splitting: which rows a model learns from, which choose it, and which judge it
once.

Every splitter returns row numbers (int64 arrays), never data. They draw from NumPy's
`RandomState`, whose numbers are frozen for good: a split made today is the same on any
machine and in any year. With the same seed they return the rows that scikit-learn's
splitters return.
"""

from dlcourse.data_splitting.checks import Fold
from dlcourse.data_splitting.folds import (
    group_kfold_indices,
    kfold_indices,
    stratified_kfold_indices,
    time_series_split,
)
from dlcourse.data_splitting.grouped import stratified_group_split
from dlcourse.data_splitting.hold_out import hold_out_split, train_val_test_split
from dlcourse.data_splitting.leakage import STATISTICS, Leak, check_leakage
from dlcourse.data_splitting.scores import (
    NestedScores,
    corrected_standard_error,
    cross_val_score,
    nested_cross_val_score,
    wilson_interval,
)

__all__ = [
    "Fold",
    "hold_out_split",
    "train_val_test_split",
    "group_kfold_indices",
    "kfold_indices",
    "stratified_kfold_indices",
    "stratified_group_split",
    "time_series_split",
    "NestedScores",
    "corrected_standard_error",
    "cross_val_score",
    "nested_cross_val_score",
    "wilson_interval",
    "Leak",
    "STATISTICS",
    "check_leakage",
]
