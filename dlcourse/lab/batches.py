"""The batches of a run: which rows, in which order, and which of them on this process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import synchronize_rng_states
from torch import Tensor
from torch.utils.data import DataLoader

from dlcourse.lab.randomness import rng_state, set_rng_state
from dlcourse.lab.shares import ShareLoader, can_be_cut


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
        self.share_loader: ShareLoader | None = None
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
            # a transform is given whole batches (it may mix their rows), so these are read
            if self.world > 1 and transform is None and can_be_cut(self.loader):
                self.share_loader = ShareLoader(self.loader, self.rank, self.world)

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
            for batch in self.rest_of_epoch():
                self.position += 1
                if self.position == self.length:
                    self.epoch += 1
                    self.position = 0
                yield batch

    def rest_of_epoch(self) -> Iterator[Batch]:
        """Yield this process's part of each batch of this epoch that is still to come."""
        if self.share_loader is not None:
            yield from self.from_shares(self.share_loader)
            return
        if self.loader is None:
            whole_batches = self.from_tensors()
        else:
            whole_batches = self.from_loader(self.loader)
        for inputs, targets in whole_batches:
            if self.transform is not None:
                inputs, targets = self.transform(inputs, targets)
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

    def from_tensors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of a shuffled epoch, from `position` on."""
        order = epoch_order(self.rows, self.seed, self.epoch).to(self.device)
        for rows in order.split(self.batch_size)[self.position :]:
            yield self.inputs.index_select(0, rows), self.targets.index_select(0, rows)

    def from_loader(self, loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the loader's whole batches, from `position` on."""
        for inputs, targets in self.drawn_from(loader):
            yield inputs.to(self.device), targets.to(self.device)

    def from_shares(self, loader: ShareLoader) -> Iterator[Batch]:
        """Yield this process's part of the loader's batches, from `position` on."""
        for inputs, targets, mine, whole in self.drawn_from(loader):
            share = mine * self.world / whole
            yield Batch(inputs.to(self.device), targets.to(self.device), share)

    def drawn_from(self, loader: Iterable[tuple]) -> Iterator[tuple]:
        """Yield what a loader gives, from `position` on.

        Inside an epoch the same order is drawn again, then the generators go on as before.
        """
        if self.position == 0:
            if self.world > 1:  # dropout on uneven shares has drawn unevenly
                synchronize_rng_states(["torch"])
            self.epoch_rng = rng_state() | {"loader": self.loader_rng()}
            yield from loader
            return
        now = rng_state()
        set_rng_state(self.epoch_rng)
        self.set_loader_rng(self.epoch_rng.get("loader"))
        rest = iter(loader)
        for _ in range(self.position):
            next(rest)
        set_rng_state(now)  # where the data set draws too, the next row goes on from here
        yield from rest

    def loader_rng(self) -> Tensor | None:
        """Return the state of the loader's own generator, where it has one."""
        generator = self.loader_generator()
        return None if generator is None else generator.get_state()

    def set_loader_rng(self, state: Tensor | None) -> None:
        """Set the loader's own generator to what `loader_rng` returned."""
        generator = self.loader_generator()
        if generator is not None and state is not None:
            generator.set_state(state)

    def loader_generator(self) -> torch.Generator | None:
        """Return the generator from which the loader draws its order, None for torch's."""
        if self.loader is None:
            return None
        return self.loader.generator or getattr(self.loader.sampler, "generator", None)
