"""Noise in units and targets: dropout and label smoothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """In training, zero each entry with probability `p` and divide the others by 1 - p.

    So the expected output is the input, and evaluation changes nothing ("inverted"
    dropout). p is from 0 to 1; raises ValueError outside. Source: Srivastava et al.
    (2014).
    Invariants: identity in eval mode and at p = 0; zeros at p = 1; with the same random
    state the output is torch's to the bit on the CPU.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p={p}: give the share to drop, from 0 to 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of x's shape."""
        if not self.training or self.p == 0:
            return x
        if self.p == 1:
            return x * 0
        keep = torch.empty_like(x).bernoulli_(1 - self.p)
        return x * keep.div_(1 - self.p)

    def extra_repr(self) -> str:
        """Return what stands between the brackets when the module is printed."""
        return f"p={self.p}"


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Return the cross entropy, in nats, of logits (n, classes) and class numbers (n,).

    A share `label_smoothing` in [0, 1] of each target is spread evenly over all classes.
    Rows with the target `ignore_index` do not count; where none counts the mean is NaN,
    as in torch.
    `reduction`: "mean", "sum" or "none" (n,). Raises ValueError for other shapes or
    settings.
    Source: Szegedy et al. (2016).
    Invariant: the smallest value it can take is the entropy of the smoothed target.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(
            f"label_smoothing={label_smoothing}: give a share from 0 to 1, such as .1"
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r}: choose mean, sum or none")
    if (
        logits.ndim != 2
        or targets.shape != logits.shape[:1]
        or targets.is_floating_point()
    ):
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} of {targets.dtype}: "
            "give (n, classes) and n class numbers"
        )
    counts = targets != ignore_index
    log_probabilities = F.log_softmax(logits, dim=1)
    picked = torch.where(counts, targets, 0).unsqueeze(1)
    loss = -log_probabilities.gather(1, picked).squeeze(1)
    if label_smoothing > 0:  # else 0 times infinity where a class is impossible
        uniform = -log_probabilities.mean(1)
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    loss = torch.where(counts, loss, 0)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / counts.sum()
