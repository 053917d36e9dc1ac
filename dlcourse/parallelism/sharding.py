"""ZeRO: data parallel without keeping everything n times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.parallelism.collectives import (
    Group,
    _place,
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
)
from dlcourse.parallelism.data_parallel import _from_first, _row_share


def shard_parameters(tensors: Sequence[Tensor], processes: int) -> list[Tensor]:
    """Return `processes` >= 1 equal chunks of all tensors read as one vector, zeros at
    the end.

    Invariant: joined and cut to the old length, they are the tensors again.
    """
    if processes < 1:
        raise ValueError(f"processes={processes}: give at least 1")
    flat = torch.cat([tensor.detach().ravel() for tensor in tensors])
    flat = F.pad(flat, (0, -len(flat) % processes))
    return list(flat.view(processes, -1).unbind(0))


class _Unit:
    """The parameters of one layer as one vector, of which this process updates a chunk."""

    def __init__(self, layer: nn.Module, stage: int, group: Group) -> None:
        self.params, self.stage, self.group = list(layer.parameters()), stage, group
        rank, n = _place(group)
        self.full = torch.cat(shard_parameters(self.params, n))
        self.full = _from_first(self.full, group)
        size, start = len(self.full) // n, 0
        self.own = slice(rank * size, (rank + 1) * size) if stage else slice(None)
        for p in self.params:
            p.data = self.full[start : start + p.numel()].view(p.shape)
            start += p.numel()
            p.register_post_accumulate_grad_hook(self.ready)
        self.shard = nn.Parameter(self.full[self.own])  # stages 0 to 2: a view of `full`
        self.waiting = len(self.params)
        if stage == 3:
            self.shard = nn.Parameter(self.full[self.own].clone())
            self.free()
            layer.register_forward_pre_hook(lambda *_: self.gather())
            layer.register_forward_hook(lambda *_: self.free())
            layer.register_full_backward_pre_hook(lambda *_: self.gather())

    def gather(self) -> None:
        """Fetch the whole parameters (stage 3: before a use; stages 1, 2: after an
        update).
        """
        self.full.untyped_storage().resize_(self.full.nbytes)
        self.full.copy_(ring_all_gather(self.shard.detach(), self.group))

    def free(self) -> None:
        self.full.untyped_storage().resize_(0)

    def ready(self, _: Tensor) -> None:
        """Note one more gradient of the backward pass; after the last, reduce them."""
        self.waiting -= 1
        if not self.waiting:
            self.reduce()

    @torch.no_grad()
    def reduce(self) -> None:
        """Sum the gradient over the processes and keep what this stage keeps of it."""
        _, n = _place(self.group)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        flat = torch.cat(shard_parameters(grads, n)) / n
        if self.stage == 0:
            self.shard.grad = ring_all_reduce(flat, self.group)
        elif self.stage == 1:
            flat[self.own] = ring_reduce_scatter(flat, self.group)
            # a view: the whole of `flat` stays in memory
            self.shard.grad = flat[self.own]
        else:
            self.shard.grad = ring_reduce_scatter(flat, self.group).clone()
        for p in self.params:
            p.grad = None
        if self.stage == 3:
            self.free()
        self.waiting = len(self.params)


class ShardedTrainer:
    """ZeRO by hand: data parallel in which the processes share out what each would keep
    whole.

    Stage 0 shares nothing; 1 the optimizer's state; 2 the gradients too; 3 the parameters
    too.
    `optimizer` makes one from a list of parameters, and must work entry by entry (SGD,
    Adam). Each child of `model` with parameters (of a ModuleList, each member) is a unit:
    gathered, reduced and freed as a whole. `at_update` is `held()` at the last update.
    Source: Rajbhandari et al. (2020).
    Raises ValueError for another stage, for parameters outside the children, shared by
    two, frozen, or of several dtypes. Invariant: every stage makes the same update.
    """

    def __init__(
        self, model: nn.Module, optimizer: Callable[[list], torch.optim.Optimizer],
        loss_fn: Callable, stage: int, group: Group = None,
    ) -> None:  # fmt: skip
        if stage not in (0, 1, 2, 3):
            raise ValueError(f"stage={stage!r}: choose 0, 1, 2 or 3")
        if next(model.parameters(recurse=False), None) is not None:
            raise ValueError(
                "the model has parameters of its own: put them into a child module"
            )
        self.model, self.loss_fn, self.stage, self.group = model, loss_fn, stage, group
        layers = []
        for child in model.children():  # a ModuleList is never called: its members are
            layers += list(child) if isinstance(child, nn.ModuleList) else [child]
        layers = [layer for layer in layers if next(layer.parameters(), None) is not None]
        found = list(model.parameters())
        if len({p.dtype for p in found}) > 1 or not all(p.requires_grad for p in found):
            raise ValueError("all parameters must be of one dtype and require a gradient")
        if sum(len(list(layer.parameters())) for layer in layers) > len(found):
            raise ValueError("two layers share a parameter: give each its own")
        self.units = [_Unit(layer, stage, group) for layer in layers]
        self.optimizer = optimizer([unit.shard for unit in self.units])

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Make one update from this process's rows; return this process's loss."""
        loss = self.loss_fn(self.model(inputs), targets)
        (loss * _row_share(len(inputs), self.group)).backward()
        for unit in self.units:
            if unit.shard.grad is None:  # a layer that this loss does not use
                unit.reduce()
        self.optimizer.step()
        self.at_update = self.held()
        self.optimizer.zero_grad()
        if self.stage in (1, 2):
            for unit in self.units:
                unit.gather()
        return loss.detach()

    def held(self) -> dict[str, int]:
        """Return the bytes that this process holds now, by kind."""
        units = self.units
        storages = {
            t.untyped_storage() for unit in units for t in (unit.full, unit.shard)
        }
        grads = [unit.shard.grad for unit in units if unit.shard.grad is not None]
        state = [
            t for entry in self.optimizer.state.values() for t in entry.values() if t.ndim
        ]
        return {
            "parameters": sum({s._cdata: s.nbytes() for s in storages}.values()),
            "gradients": sum(grad.untyped_storage().nbytes() for grad in grads),
            "optimizer": sum(t.nbytes for t in state),
        }

    def weights(self) -> Tensor:
        """Return all parameters as one vector, gathered from all processes."""
        whole = []
        for unit in self.units:
            flat = unit.shard.detach()
            flat = flat if self.stage == 0 else ring_all_gather(flat, self.group)
            whole.append(flat[: sum(p.numel() for p in unit.params)])
        return torch.cat(whole)
