"""Calibration: are the probabilities true?"""

from __future__ import annotations

import torch
from torch import Tensor


def reliability(
    probabilities: Tensor, targets: Tensor, bins: int = 10
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (confidence, accuracy, count), each (bins,), by the probability of the
    chosen class.

    `probabilities` is (n, classes), `targets` (n,). Bin b holds confidences in (b/bins,
    (b+1)/bins]; the mean of an empty bin is NaN, and so is that of the last one if a
    value is NaN.
    Raises ValueError for other shapes, for values below 0 or above 1 (logits), and for
    bins < 1.
    Invariant: the counts add up to n.
    """
    if probabilities.ndim != 2 or targets.shape != probabilities.shape[:1]:
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)} and targets {tuple(targets.shape)}: give "
            "(n, classes) and (n,)"
        )
    if bins < 1:
        raise ValueError(f"bins={bins}: give at least 1")
    if ((probabilities < 0) | (probabilities > 1 + 1e-6)).any():
        raise ValueError(
            "not all values are from 0 to 1: give probabilities, logits.softmax(1)"
        )
    confidence, chosen = probabilities.detach().double().max(1)
    right = (chosen == targets).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    number = torch.bucketize(confidence, edges[1:-1])
    count = torch.bincount(number, minlength=bins)
    means = [
        torch.bincount(number, values, minlength=bins) / count
        for values in (confidence, right)
    ]
    return means[0], means[1], count


def expected_calibration_error(
    probabilities: Tensor, targets: Tensor, bins: int = 10
) -> Tensor:
    """Return the mean distance of confidence and accuracy over the bins, from 0 to 1, a
    scalar.

    Each bin counts by its rows. It is never below 0, so with few rows it is above 0 also
    for a perfectly calibrated model. Shapes and errors as in `reliability`; NaN of no
    rows, or of NaN.
    Source: Guo et al. (2017).
    """
    confidence, accuracy, count = reliability(probabilities, targets, bins)
    gaps = torch.where(count > 0, (confidence - accuracy).abs() * count, 0)
    return gaps.sum() / count.sum()


def fit_temperature(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the T from 0.01 to 100 for which the cross entropy of logits / T is
    smallest.

    `logits` (..., n, classes) and `targets` (..., n) are of validation rows, not of
    training rows; the result is (...), one T for each set of rows. Dividing by T changes
    no accuracy. The loss is convex in 1 / T, so bisection on its slope finds the minimum.
    Raises ValueError for other shapes, no rows, or logits that are not finite. Source:
    Guo et al. (2017).
    """
    if (
        targets.shape != logits.shape[:-1]
        or not logits.numel()
        or not logits.isfinite().all()
    ):
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)}: give finite logits "
            "(..., n, classes) and class numbers (..., n), of at least one row"
        )
    # softmax is slow over a short last axis
    logits = logits.detach().double().mT.contiguous()
    wanted = logits.gather(-2, targets.unsqueeze(-2)).mean((-2, -1))
    low, high = torch.full_like(wanted, 1e-2), torch.full_like(wanted, 1e2)  # of 1 / T
    for _ in range(40):
        middle = (low * high).sqrt()
        scaled = logits * middle[..., None, None]
        # the loss, as 1 / T grows
        falls = (scaled.softmax(-2) * logits).sum(-2).mean(-1) < wanted
        low, high = torch.where(falls, middle, low), torch.where(falls, high, middle)
    return 1 / (low * high).sqrt()
