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
        groups = [job.group_of(name) for name in stack.names]

        def setting(name: str) -> float | Tensor:
            return _by_parameter([group[name] for group in groups], stack)

        lr = torch.tensor(job.lrs, dtype=weight.dtype)
        lr = lr.repeat_interleave(len(job.seeds)).unsqueeze(1)
        self.lr = lr * setting("lr_factor")  # (replicas, 1), or (replicas, parameters)
        self.weight_decay = setting("weight_decay")
        self.l1, self.l2 = setting("l1"), setting("l2")
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
        if _is_used(self.weight_decay):
            if job.optimizer == "adamw":
                weight.mul_(1 - lr * self.weight_decay)
            else:
                grad.add_(weight * self.weight_decay)
        if job.optimizer == "sgd":
            if job.momentum:
                grad = self.first.mul_(job.momentum).add_(grad)
            weight.addcmul_(lr, grad, value=-1)
        else:
            self._adam(grad, lr)
        if _is_used(self.l1):
            soft_threshold_(weight, lr * self.l1)
        if _is_used(self.l2):
            weight.div_(1 + lr * self.l2)

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


def _by_parameter(values: list[float], stack: Stack) -> float | Tensor:
    """Return one number where all parameters share it, else a row (1, parameters)."""
    if len(set(values)) == 1:
        return values[0]
    parts = []
    for value, size in zip(values, stack.sizes, strict=True):
        parts.append(torch.full((1, size), value, dtype=stack.flat.dtype))
    return torch.cat(parts, 1)


def _is_used(setting: float | Tensor) -> bool:
    return isinstance(setting, Tensor) or setting != 0
