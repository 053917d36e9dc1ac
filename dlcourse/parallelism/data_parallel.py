"""Data parallel: each process has all weights and a part of the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlcourse.parallelism.collectives import Group, _place, all_reduce_mean


class DataParallelTrainer:
    """Train replicas of `model` on different rows, with one all-reduce of the gradient an
    update.

    All replicas start from process 0's weights and buffers. `loss_fn(outputs, targets)`
    is the mean over the rows. Source: Li et al. (2020), without the overlap of backward
    and all-reduce.
    Invariants: the update is that of one process with all the rows, however they are
    split (but for layers that mix rows or draw, like BatchNorm and dropout); the weights
    of all replicas stay the same to the bit; on one process it is an ordinary step.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, loss_fn: Callable,
        group: Group = None,
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.loss_fn, self.group = (
            model,
            optimizer,
            loss_fn,
            group,
        )
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.detach().copy_(_from_first(tensor, group))

    def step(
        self, inputs: Tensor, targets: Tensor, accumulation_steps: int = 1
    ) -> Tensor:
        """Make one update from this process's rows (at least one); return the mean loss
        of all.

        The all-reduce comes once, after the last of `accumulation_steps` micro-batches.
        """
        share = _row_share(len(inputs), self.group)
        self.optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        pieces = min(accumulation_steps, len(inputs))
        parts = zip(
            inputs.tensor_split(pieces), targets.tensor_split(pieces), strict=True
        )
        for x, y in parts:
            loss = self.loss_fn(self.model(x), y) * (share * len(x) / len(inputs))
            loss.backward()
            total += loss.detach()
        all_reduce_mean(
            [p.grad for p in self.model.parameters() if p.grad is not None], self.group
        )
        self.optimizer.step()
        return _over_all(total, self.group) / _place(self.group)[1]


def data_parallel_step(run, batch) -> Tensor:
    """Do for `fit` what DDP does: local gradients, one all-reduce, the same update
    everywhere.

    On one process it is `train_step` to the bit.
    """
    run.optimizer.zero_grad()
    # DDP keeps quiet, the next line does its work
    with run.accelerator.no_sync(run.model):
        loss = run.gradients(batch)
    all_reduce_mean([p.grad for p in run.model.parameters() if p.grad is not None])
    run.optimizer.step()
    return loss


def _from_first(tensor: Tensor, group: Group) -> Tensor:
    """Return process 0's values of `tensor`, on every process."""
    rank, n = _place(group)
    got = tensor.detach().clone()
    if n > 1:
        dist.broadcast(
            got, 0 if group is None else dist.get_global_rank(group, 0), group=group
        )
    return got


def _over_all(number: Tensor, group: Group) -> Tensor:
    """Return the sum of one float64 number over the processes; too small to count its
    bytes.
    """
    if dist.is_initialized():
        dist.all_reduce(number, group=group)
    return number


def _row_share(rows: int, group: Group) -> float:
    """Return this process's rows over the mean rows of a process."""
    total = _over_all(torch.tensor(float(rows), dtype=torch.float64), group)
    return rows * _place(group)[1] / total.item()
