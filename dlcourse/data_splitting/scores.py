"""Scores over folds, nested cross-validation, and intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from dlcourse.data_splitting.checks import Fold, _check_count


def cross_val_score(
    make: Callable[[], Any], inputs, targets, folds: Iterable[Fold]
) -> np.ndarray:
    """Return the score of each fold, (folds,): a fresh `make()` is fitted and scored for
    each.

    make(): a new object with fit(inputs, targets) and score(inputs, targets). All that is
    learned from data belongs inside it: scaling and the choice of features too.

    Invariant: fit sees rows of the training part only.
    """
    return np.array([_score(make, inputs, targets, *fold) for fold in folds])


@dataclass(frozen=True, eq=False)
class NestedScores:
    """What `nested_cross_val_score` found, one entry for each outer fold.

    `scores` (folds,): on the outer held-out rows. `chosen`: the candidate's name.
    `inner_scores` (folds,): the winner's mean inner score, which chose it and so is too
    high.
    """

    scores: np.ndarray
    chosen: list[str]
    inner_scores: np.ndarray


def nested_cross_val_score(
    candidates: Mapping[str, Callable[[], Any]],
    inputs,
    targets,
    *,
    outer: Iterable[Fold],
    inner: Callable[[np.ndarray], Iterable[Fold]],
) -> NestedScores:
    """Choose among candidates inside each outer fold, then score the choice on its
    held-out rows.

    candidates: names to functions that make a new object with fit and score. outer:
    (train, held out) pairs. inner(rows): from the outer training rows' numbers, (m,), the
    inner folds as positions 0 to m - 1 in them, such as `lambda rows:
    kfold_indices(len(rows))`. Of equal candidates the first one wins.

    Raises ValueError where there is no candidate.
    Source: Stone (1974); Varma & Simon (2006).

    Invariants: no outer held-out row takes part in a fit or a choice before it is scored;
    with one candidate the scores are those of `cross_val_score`; equal to scikit-learn's
    cross_val_score of a GridSearchCV.
    """
    if not candidates:
        raise ValueError(
            "no candidates: give at least one name with a function that makes it"
        )
    scores, chosen, inner_scores = [], [], []
    for train, held in outer:
        folds = list(inner(train))
        x, y = inputs[train], targets[train]
        means = {
            name: cross_val_score(make, x, y, folds).mean()
            for name, make in candidates.items()
        }
        best = max(means, key=lambda name: means[name])
        chosen.append(best)
        inner_scores.append(means[best])
        scores.append(_score(candidates[best], inputs, targets, train, held))
    return NestedScores(np.array(scores), chosen, np.array(inner_scores))


def _score(make: Callable[[], Any], inputs, targets, train, held) -> float:
    estimator = make()
    estimator.fit(inputs[train], targets[train])
    return float(estimator.score(inputs[held], targets[held]))


def wilson_interval(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return (low, high), in [0, 1], for the accuracy behind `correct` of `total`
    independent rows.

    correct: from 0 to total. total: at least 1. level: in (0, 1). Raises ValueError for
    others.
    Source: Wilson (1927). Rows of one writer are not independent: then count writers.

    Invariants: holds correct / total; narrows as rows are added; never leaves [0, 1].
    """
    _check_count("total", total, 1)
    if not 0 <= correct <= total:
        raise ValueError(f"correct={correct}: give a number from 0 to total={total}")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: give a share between 0 and 1, such as 0.95")
    z, share = NormalDist().inv_cdf(0.5 + level / 2), correct / total
    middle = share + z**2 / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    low, high = ((middle + sign * half) / (1 + z**2 / total) for sign in (-1, 1))
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def corrected_standard_error(
    scores: Sequence[float] | np.ndarray, train_rows: int, test_rows: int
) -> float:
    """Return the standard error of the mean of scores whose training parts overlap.

    scores: (k,), k at least 2, from k random splits of the same rows into `train_rows`
    and `test_rows`. The usual sqrt(variance / k) takes them for independent and is too
    small; here 1 / k becomes 1 / k + test_rows / train_rows.
    Raises ValueError for fewer scores or rows. Source: Nadeau & Bengio (2003).

    Invariants: larger than the usual one; does not go to 0 as k grows.
    """
    scores = np.asarray(scores, dtype=float).ravel()
    if len(scores) < 2:
        raise ValueError("a standard error needs at least two scores: make more splits")
    _check_count("train_rows", train_rows, 1)
    _check_count("test_rows", test_rows, 1)
    return math.sqrt((1 / len(scores) + test_rows / train_rows) * scores.var(ddof=1))
