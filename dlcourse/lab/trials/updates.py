"""One update of all replicas at once, on their flat weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlcourse.lab.trials.settings import Job
from dlcourse.lab.trials.stack import Stack


class StackedOptimizer:
    """SGD, Adam and AdamW on weights (replicas, parameters), with rates (replicas, 1)."""

    def __init__(self, job: Job, stack: Stack):
        weight = stack.flat
        self.job, self.weight, self.count = job, weight, 0
        lr = torch.tensor(job.lrs, dtype=weight.dtype)
        self.lr = lr.repeat_interleave(len(job.seeds)).unsqueeze(1)
        if job.optimizer != "sgd" or job.momentum:
            self.first = torch.zeros_like(weight)
        if job.optimizer != "sgd":
            self.second, self.scratch = torch.zeros_like(weight), torch.empty_like(weight)

    @torch.no_grad()
    def __call__(self, grad: Tensor, factor: float) -> None:
        """Make one update; `grad` is changed on the way."""
        job, weight = self.job, self.weight
        self.count += 1
        lr = self.lr if factor == 1 else self.lr * factor
        if job.weight_decay:
            if job.optimizer == "adamw":
                weight.mul_(1 - lr * job.weight_decay)
            else:
                grad.add_(weight * job.weight_decay)
        if job.optimizer == "sgd":
            if job.momentum:
                grad = self.first.mul_(job.momentum).add_(grad)
            weight.addcmul_(lr, grad, value=-1)
        else:
            self._adam(grad, lr)
        if job.l1:
            soft_threshold_(weight, lr * job.l1)
        if job.l2:
            weight.div_(1 + lr * job.l2)

    def _adam(self, grad: Tensor, lr: Tensor) -> None:
        correction1, correction2 = 1 - 0.9**self.count, 1 - 0.999**self.count
        self.first.lerp_(grad, 0.1)
        self.second.mul_(0.999).addcmul_(grad, grad, value=0.001)
        torch.sqrt(self.second, out=self.scratch).div_(math.sqrt(correction2)).add_(1e-8)
        torch.div(self.first, self.scratch, out=self.scratch)
        self.weight.addcmul_(lr, self.scratch, value=-1 / correction1)


def soft_threshold_(weight: Tensor, threshold: float | Tensor) -> None:
    """Move each weight towards 0 by `threshold`, and stop there: the proximal step of L1.

    Source: Parikh & Boyd, Proximal Algorithms (2014).
    """
    weight.copy_(weight.sign() * (weight.abs() - threshold).clamp(min=0))
