"""The batches of a run: which rows, in which order, and which of them on this process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import synchronize_rng_states
from torch import Tensor
from torch.utils.data import DataLoader

from dlcourse.lab.randomness import rng_state, set_rng_state


@dataclass
class Batch:
    """The rows of one update that fall to this process.

    `share` is this process's rows over the mean rows a process: 1 when the split is even.
    """

    inputs: Tensor
    targets: Tensor
    share: float = 1.0


def epoch_order(rows: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the rows in one epoch: a permutation that `seed` and `epoch`
    fix.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(rows, generator=generator)


def as_tensors(data) -> tuple[Tensor, Tensor]:
    """Return (inputs, targets) of an `ImageData` (its training rows), a `Split` or a
    pair.
    """
    data = getattr(data, "train", data)
    inputs, targets = data.tensors() if hasattr(data, "tensors") else data
    if len(inputs) != len(targets):
        raise ValueError(
            f"{len(inputs)} inputs but {len(targets)} targets: give one target for each input"
        )
    if len(inputs) == 0:
        raise ValueError("the data has no rows: give at least one")
    return inputs, targets


class Batches:
    """Endless batches from (epoch, position) on; a tensor pair is shuffled anew each
    epoch.
    """

    def __init__(
        self,
        data,
        batch_size: int,
        seed: int,
        accelerator: Accelerator,
        transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None,
    ) -> None:
        self.seed = seed
        self.transform = transform
        self.device = accelerator.device
        self.rank = accelerator.process_index
        self.world = accelerator.num_processes
        self.epoch = 0
        self.position = 0  # batches of this epoch that are drawn
        self.epoch_rng: dict = {}  # the generators where a loader's epoch began
        self.loader = data if isinstance(data, DataLoader) else None
        if self.loader is None:
            inputs, targets = as_tensors(data)
            self.inputs = inputs.to(self.device)
            self.targets = targets.to(self.device)
            self.rows = len(inputs)
            self.batch_size = min(batch_size, self.rows)
            self.length = math.ceil(self.rows / self.batch_size)
        else:
            self.rows = len(cast(Sized, self.loader.dataset))
            self.batch_size = self.loader.batch_size or batch_size
            self.length = len(self.loader)

    def facts(self) -> dict[str, int]:
        """Return what a run and its continuation must have in common."""
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "rows": self.rows,
            "processes": self.world,
        }

    def __iter__(self) -> Iterator[Batch]:
        while True:
            for inputs, targets in self.rest_of_epoch():
                if self.transform is not None:
                    inputs, targets = self.transform(inputs, targets)
                self.position += 1
                if self.position == self.length:
                    self.epoch += 1
                    self.position = 0
                if self.world == 1:
                    yield Batch(inputs, targets)
                else:
                    yield self.mine(inputs, targets)

    def mine(self, inputs: Tensor, targets: Tensor) -> Batch:
        """Keep this process's part of a batch that all processes have drawn alike.

        A process without rows is given one that counts nothing: it must still take part.
        """
        my_inputs = inputs.tensor_split(self.world)[self.rank]
        my_targets = targets.tensor_split(self.world)[self.rank]
        if len(my_inputs) == 0:
            return Batch(inputs[:1], targets[:1], 0.0)
        return Batch(my_inputs, my_targets, len(my_inputs) * self.world / len(inputs))

    def rest_of_epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the whole batches of this epoch that are still to come."""
        if self.loader is None:
            return self.from_tensors()
        return self.from_loader(self.loader)

    def from_tensors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of a shuffled epoch, from `position` on."""
        order = epoch_order(self.rows, self.seed, self.epoch).to(self.device)
        for rows in order.split(self.batch_size)[self.position :]:
            yield self.inputs.index_select(0, rows), self.targets.index_select(0, rows)

    def from_loader(self, loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the loader's batches, from `position` on.

        Inside an epoch the same order is drawn again, then the generators go on as before.
        """
        skip = self.position
        now = None
        if skip:
            now = rng_state()
            set_rng_state(self.epoch_rng)
        else:
            if self.world > 1:  # dropout on uneven shares has drawn unevenly
                synchronize_rng_states(["torch"])
            self.epoch_rng = rng_state()
        for number, (inputs, targets) in enumerate(loader):
            if number < skip:
                continue
            if now is not None:
                set_rng_state(now)
                now = None
            yield inputs.to(self.device), targets.to(self.device)
