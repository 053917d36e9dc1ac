"""The loader: batches from this process or from workers, in order."""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.utils.data
from torch import Tensor

from dlcourse.data_loading.collating import default_collate
from dlcourse.data_loading.crew import Worker, WorkerError
from dlcourse.data_loading.reading import Reader
from dlcourse.data_loading.sampling import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    _check_not_empty,
    _check_whole,
    draw_seed,
)

__all__ = ["DataLoader", "WorkerError"]

# what decides the batches: torch refuses to change it later, too
FIXED = {"batch_size", "batch_sampler", "dataset", "drop_last", "sampler"}


class DataLoader:
    """Batches of a dataset, read in this process or by `num_workers` processes ahead of
    time.

    dataset: a `Dataset`, anything with `__getitem__` and `__len__`, or an
    `IterableDataset`. batch_size: at least 1, at most the samples. shuffle: a new order
    in each pass. sampler: indices in an order of your own; batch_sampler: lists of
    indices, instead of batch_size, shuffle, sampler and drop_last. num_workers: 0 reads
    in this process. Workers are processes, started for each pass; batch k is read by
    worker k % num_workers, and batches come in order. collate_fn: None is
    `default_collate`. pin_memory: put the tensors of a batch into page-locked memory,
    where there is an accelerator. worker_init_fn(worker): runs in each worker before it
    reads, such as `seed_worker`. multiprocessing_context: "fork", "spawn" or
    "forkserver"; None is Python's default. Under the last two, dataset and functions must
    be importable: a class of a notebook cell is not. generator: for the order and for the
    workers' seeds; None is the global one. prefetch_factor: batches that each worker may
    be ahead, at least 1; None is 2.

    The length of the dataset is taken at each pass, so a dataset may grow. An error while
    a batch is read is raised where that batch would be, and the next `next()` goes on
    with the batch after it.

    Raises ValueError for an empty dataset, a batch larger than the data, or settings that
    exclude each other or come too late; WorkerError where a worker raises (it is an error
    of the raised type, too) or dies.

    Invariants: each sample once a pass, however many workers; with the same generator the
    batches, and all random draws in workers, are those of `torch.utils.data.DataLoader`;
    nothing is kept: each pass reads every sample again; no process outlives the loop.
    """

    def __init__(
        self,
        dataset,
        batch_size: int = 1,
        shuffle: bool | None = None,
        sampler: Iterable[int] | None = None,
        batch_sampler: Iterable[Sequence[int]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list], object] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        *,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: str | None = None,
        generator: torch.Generator | None = None,
        prefetch_factor: int | None = None,
    ) -> None:
        prefetch_factor = 2 if prefetch_factor is None else prefetch_factor
        _check_whole("batch_size", batch_size)
        _check_whole("prefetch_factor", prefetch_factor)
        if (
            isinstance(num_workers, bool)
            or not isinstance(num_workers, int)
            or num_workers < 0
        ):
            raise ValueError(
                f"num_workers={num_workers!r}: give a whole number, 0 for none"
            )

        self.iterable = isinstance(dataset, torch.utils.data.IterableDataset)
        if self.iterable and (
            shuffle or sampler is not None or batch_sampler is not None
        ):
            raise ValueError(
                "a stream has no numbers to shuffle or sample: shuffle where it is read, or use a "
                "dataset with __getitem__"
            )
        if batch_sampler is not None and (batch_size != 1 or shuffle or drop_last):
            raise ValueError(
                "batch_sampler decides the batches: leave out batch_size, shuffle, sampler and "
                "drop_last"
            )
        if sampler is not None and (shuffle or batch_sampler is not None):
            raise ValueError(
                "sampler decides the order: leave out shuffle and batch_sampler"
            )

        if not self.iterable and batch_sampler is None:
            if sampler is None:
                _check_batch(batch_size, len(dataset))
                if shuffle:
                    sampler = RandomSampler(dataset, generator=generator)
                else:
                    sampler = SequentialSampler(dataset)
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)

        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.sampler = sampler
        # only len() asks for its length, and a stream has none
        self.batch_sampler: Any = batch_sampler
        self.collate_fn = default_collate if collate_fn is None else collate_fn
        self.pin_memory = pin_memory
        self.generator = generator
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.worker_init_fn = worker_init_fn
        self.multiprocessing_context = multiprocessing_context

    def __setattr__(self, name: str, value) -> None:
        if name in FIXED and name in self.__dict__:
            raise ValueError(
                f"{name} decides the batches and was used when the loader was built: build "
                "another loader"
            )
        super().__setattr__(name, value)

    def __len__(self) -> int:
        if not self.iterable:
            return len(self.batch_sampler)
        batches, rest = divmod(len(self.dataset), self.batch_size)
        return batches + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator:
        # before the order, also without workers: as PyTorch
        base_seed = draw_seed(self.generator)
        if self.num_workers:
            return _FromWorkers(self, base_seed)
        return _FromHere(self)

    def _orders(self) -> Iterator:
        """Yield what is to be read: a list of indices for each batch; None for streams."""
        if self.iterable:
            return itertools.repeat(None)
        return iter(self.batch_sampler)

    def _reader(self) -> Reader:
        """Return what reads: all that a worker needs to know of the loader."""
        return Reader(self.dataset, self.collate_fn, self.batch_size, self.drop_last)


class _Pass:
    """One pass over a loader. After an error it goes on with the next batch."""

    def __init__(self, loader: DataLoader) -> None:
        self.pin = _can_pin() if loader.pin_memory else False
        self.came = False  # a batch, or the error in its place

    def __iter__(self) -> Iterator:
        return self

    def __next__(self):
        try:
            batch = self._next()
        except StopIteration:
            self.close()
            if not self.came:
                self.came = True
                raise ValueError(
                    "no batch came: the dataset is empty, or holds fewer samples than one "
                    "batch and drop_last is on. Check where its samples come from, or lower "
                    "batch_size"
                ) from None
            raise
        except Exception:
            self.came = True
            raise
        self.came = True
        return _pinned(batch) if self.pin else batch

    def _next(self):
        raise NotImplementedError

    def close(self) -> None:
        """End the pass early."""


class _FromHere(_Pass):
    """A pass that reads in this process."""

    def __init__(self, loader: DataLoader) -> None:
        super().__init__(loader)
        self.reader = loader._reader()
        self.orders = loader._orders()

    def _next(self):
        return self.reader.read(next(self.orders))

    def close(self) -> None:
        self.orders = iter(())


class _FromWorkers(_Pass):
    """A pass that is read by worker processes, in turn.

    `due` holds, batch by batch, who reads what. Whenever a batch is taken its worker gets
    another order, so each worker is `prefetch_factor` batches ahead and no further.
    """

    def __init__(self, loader: DataLoader, base_seed: int) -> None:
        super().__init__(loader)
        self.orders = loader._orders()
        self.due: deque = deque()
        self.crew: list[Worker] = []
        # not __del__: the garbage collector may have closed the workers' pipes before it
        weakref.finalize(self, _dismiss, self.crew).atexit = False
        try:
            for number in range(loader.num_workers):
                self.crew.append(Worker(loader, number, base_seed))
            for _ in range(loader.prefetch_factor):
                for worker in self.crew:
                    self._order_from(worker)
        except BaseException:
            self.close()
            raise

    def _order_from(self, worker: Worker) -> None:
        try:
            indices = next(self.orders)
        except StopIteration:
            return
        if indices is not None:
            indices = list(indices)
        worker.order(indices)
        self.due.append((worker, indices))

    def _next(self):
        while self.due:
            worker, indices = self.due.popleft()
            try:
                kind, value = worker.receive()
            except WorkerError:  # it is dead, and the order of the rest with it
                self.close()
                raise
            if kind == "end":  # of this worker's part of a stream
                self.due = deque(pair for pair in self.due if pair[0] is not worker)
                continue
            self._order_from(worker)
            if kind == "error":
                raise worker.error(indices, *value)
            return value
        raise StopIteration

    def close(self) -> None:
        self.orders, self.due = iter(()), deque()
        _dismiss(self.crew)


def _dismiss(crew: list[Worker]) -> None:
    """Let all workers go, then wait for each."""
    for worker in crew:
        worker.release()
    for worker in crew:
        worker.end()
    crew.clear()


def _check_batch(batch_size: int, samples: int) -> None:
    _check_not_empty(samples)
    if batch_size > samples:
        raise ValueError(
            f"batch_size={batch_size} is larger than the {samples} samples: use at most {samples}"
        )


def _can_pin() -> bool:
    if torch.accelerator.is_available():
        return True
    warnings.warn(
        "pin_memory=True without an accelerator: the memory is not pinned", stacklevel=5
    )
    return False


def _pinned(batch):
    """Return the batch with all tensors, as deep as they are nested, in pinned memory."""
    if isinstance(batch, Tensor):
        return batch.pin_memory()
    if isinstance(batch, Mapping):
        from_dict = cast(Callable[[dict], Mapping], type(batch))
        return from_dict({key: _pinned(value) for key, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*[_pinned(value) for value in batch])
    if isinstance(batch, (list, tuple)):
        return type(batch)([_pinned(value) for value in batch])
    return batch
