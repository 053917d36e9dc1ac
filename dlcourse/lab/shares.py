"""The part of a `DataLoader` that one process reads: the rows that fall to it, no others.

In one process, and where a loader cannot be cut, the loader is read as it is.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler

# what the rebuilt loader has from the one it was made of
KEPT = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
)


def part_of(rows: list, rank: int, world: int) -> list:
    """Return the rows of a batch that fall to process `rank`, as `tensor_split` cuts."""
    size, left = divmod(len(rows), world)
    start = rank * size + min(rank, left)
    return rows[start : start + size + (rank < left)]


def can_be_cut(loader: DataLoader) -> bool:
    """Tell whether a process can be given its rows of each batch, and only these.

    Not where the data set is an `IterableDataset` (it alone knows what comes next, so a
    row that is not read cannot be passed over), where the loader makes no batches of
    rows, gives them in no fixed order, or is of a class of its own.
    """
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return False
    if not getattr(loader, "in_order", True):
        return False
    return loader.batch_sampler is not None or isinstance(loader.sampler, BatchSampler)


class Share(Sampler):
    """The batches of a sampler, each cut to the rows of one process.

    Every process draws the same batches, so they need no word of each other. `sizes` has
    (rows of this process, rows of the batch) for each batch drawn and not yet used. A
    process without rows is given the first one: it must still take part.
    """

    def __init__(self, batches: Iterable[list], rank: int, world: int) -> None:
        self.batches = batches
        self.rank = rank
        self.world = world
        self.sizes: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list]:
        self.sizes.clear()
        for batch in self.batches:
            rows = list(batch)
            mine = part_of(rows, self.rank, self.world)
            self.sizes.append((len(mine), len(rows)))
            yield mine or rows[:1]


class ShareLoader:
    """A `DataLoader` that reads the rows of one process.

    Iterating gives (inputs, targets, rows of this process, rows of the whole batch).
    """

    def __init__(self, loader: DataLoader, rank: int, world: int) -> None:
        settings: dict[str, Any] = {name: getattr(loader, name) for name in KEPT}
        dataset: Dataset = loader.dataset
        self.stream = OwnStream(rank)
        if loader.num_workers == 0:
            dataset = OwnDraws(dataset, self.stream)
            settings["collate_fn"] = functools.partial(
                _collate, self.stream, loader.collate_fn
            )
        else:
            settings["worker_init_fn"] = SeedWorker(rank, loader.worker_init_fn)
        if loader.batch_sampler is not None:
            self.share = Share(loader.batch_sampler, rank, world)
            settings["batch_sampler"] = self.share
        else:  # the data set is asked for a whole batch at once
            self.share = Share(loader.sampler, rank, world)
            settings |= {"sampler": self.share, "batch_size": None}
        self.loader = DataLoader(dataset, **settings)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int, int]]:
        self.stream.begin()
        for inputs, targets in self.loader:
            mine, whole = self.share.sizes.popleft()
            if len(inputs) == 0 or len(inputs) % max(1, mine):
                raise ValueError(
                    f"the loader made {len(inputs)} rows of {mine} drawn: with several "
                    "processes collate_fn must keep every row (or make the same number "
                    "of each), as no process can know what the others have left out"
                )
            yield inputs, targets, mine, whole


# ------------------------------------------------------------------ random draws of a data set


class OwnStream:
    """The random draws with which one process reads its rows.

    All processes hold torch's generator alike. Drawn from it, the crop of one process's
    first row would be the crop of every process's first row. So each epoch begins a
    stream of its own on each process; the global generators stay as they were.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.state: tuple = ()

    def begin(self) -> None:
        """Start the stream of an epoch, from the state of torch's generator."""
        generator = torch.Generator()
        generator.set_state(torch.get_rng_state())  # a copy: the original is not moved
        seed = int(torch.randint(2**62, (), generator=generator))
        before = _states()
        _seed(seed + self.rank)
        self.state = _states()
        _set_states(before)

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Let the global generators be this stream for a while."""
        before = _states()
        _set_states(self.state)
        try:
            yield
        finally:
            self.state = _states()
            _set_states(before)


class OwnDraws(Dataset):
    """A data set that draws from a process's own stream."""

    def __init__(self, dataset: Any, stream: OwnStream) -> None:
        self.dataset = dataset
        self.stream = stream

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, rows: Any) -> Any:
        with self.stream.drawing():
            return self.dataset[rows]

    def __getitems__(self, rows: list) -> list:
        with self.stream.drawing():
            if callable(getattr(self.dataset, "__getitems__", None)):
                return self.dataset.__getitems__(rows)
            return [self.dataset[row] for row in rows]


class SeedWorker:
    """Seeds a worker of process `rank`, then calls the loader's own `worker_init_fn`.

    torch seeds the first worker of every process alike; process 0 keeps that seed.
    """

    def __init__(self, rank: int, then: Callable[[int], object] | None) -> None:
        self.rank = rank
        self.then = then

    def __call__(self, worker: int) -> None:
        if self.rank:
            _seed(torch.initial_seed() + self.rank * 1_000_003)
        if self.then is not None:
            self.then(worker)


def _collate(stream: OwnStream, collate_fn: Callable, rows: Any) -> Any:
    with stream.drawing():
        return collate_fn(rows)


def _seed(seed: int) -> None:
    seed %= 2**63
    torch.default_generator.manual_seed(seed)  # not CUDA's: a data set reads on the CPU
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _states() -> tuple:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _set_states(states: tuple) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
