"""Distillation: a small network learns from a larger one's outputs."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from dlcourse.model_compression.layers import _wide


def distillation_loss(
    student: Tensor, teacher: Tensor, targets: Tensor | None = None,
    temperature: float = 4.0, alpha: float = 0.9,
) -> Tensor:  # fmt: skip
    """Return alpha * T² * KL(teacher || student) at temperature T + (1 - alpha) * cross
    entropy.

    `student` and `teacher`: finite logits (n, classes), n >= 1; no gradient reaches the
    teacher.
    `targets` (n,): class numbers, -100 where a row has none; None leaves the second term
    out, and alpha is 1. Both terms are means over all n rows, so that parts of a batch
    add up by their rows. The arithmetic is float32 or wider; in float32 the value loses
    digits at T above some 1000. T² keeps the gradient's size as T changes. Raises
    ValueError for T not above 0 or infinite, alpha outside [0, 1], or shapes that differ.
    Source: Hinton, Vinyals & Dean (2015).
    Invariants: without targets it is 0 where the logits agree up to a constant a row, and
    positive elsewhere.
    """
    if not 0 < temperature < math.inf or not 0 <= alpha <= 1:
        raise ValueError(
            f"temperature={temperature}, alpha={alpha}: give a temperature above 0 and a share "
            "alpha from 0 to 1"
        )
    _same_classes(student, teacher)
    log_q = F.log_softmax(_wide(student) / temperature, dim=1)
    log_p = F.log_softmax(_wide(teacher.detach()) / temperature, dim=1)
    soft = (log_p.exp() * (log_p - log_q)).sum(1).mean() * temperature**2
    if targets is None:
        return soft
    hard = F.cross_entropy(
        _wide(student), targets, ignore_index=-100, reduction="none"
    ).mean()
    return alpha * soft + (1 - alpha) * hard


def _same_classes(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(
            f"logits of shape {tuple(student.shape)} and {tuple(teacher.shape)}: both must be "
            "(rows, classes), with the same classes in the same order"
        )
