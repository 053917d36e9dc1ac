"""What a trained model is worth: its outputs, and its numbers on the test images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.data_splitting import wilson_interval
from dlcourse.lab.datasets import ImageData
from dlcourse.lab.evaluation import outputs_of
from dlcourse.lab.history import History
from dlcourse.regularization import expected_calibration_error


@dataclass
class Result:
    """A trained model, its history, and its numbers on the test rows.

    `accuracy` with its Wilson interval, `nll` in nats, `ece` from 0 to 1; `probabilities`
    (count, classes) of the test rows in order; `balanced` is the mean recall of the
    classes, `majority` the accuracy of naming the most frequent one always; `best_epoch` is the one whose weights were
    kept (None: the last).
    """

    model: nn.Module
    history: History
    accuracy: float
    low: float
    high: float
    nll: float
    ece: float
    count: int
    probabilities: Tensor
    balanced: float = 0.0
    majority: float = 0.0
    best_epoch: int | None = None

    def numbers(self) -> dict:
        """Return the numbers alone: no model, no history, no row of every image."""
        skip = ("model", "history", "probabilities")
        return {name: value for name, value in vars(self).items() if name not in skip}


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return a model's outputs (n, classes), float32 on the CPU, for normalised images."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    outputs = outputs_of(model, images, torch.arange(len(images)), device)
    model.train(was_training)
    return outputs.float().cpu()


def examine(model: nn.Module, data: ImageData, history: History) -> Result:
    """Return the numbers of a model on the test rows, each row once."""
    images, labels = data.test.tensors()
    outputs = predict(model, images)
    shares = outputs.softmax(1)
    right = int((outputs.argmax(1) == labels).sum())
    low, high = wilson_interval(right, len(labels))
    ece = float(expected_calibration_error(shares, labels))
    nll = float(F.cross_entropy(outputs.double(), labels))
    counts = labels.bincount()
    recall = labels[outputs.argmax(1) == labels].bincount(minlength=len(counts)) / counts
    return Result(
        model, history, right / len(labels), low, high, nll, ece, len(labels), shares,
        float(recall[counts > 0].mean()), int(counts.max()) / len(labels),
    )  # fmt: skip
