"""The loader: batches from this process or from workers, in order."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import wait

import torch
import torch.utils.data

from dlcourse.data_loading import workers
from dlcourse.data_loading.collating import default_collate
from dlcourse.data_loading.sampling import (
    BatchSampler,
    RandomSampler,
    _check_not_empty,
    _check_whole,
    _cut,
    draw_seed,
)
from dlcourse.data_loading.workers import WorkerInfo, _seed_everything


class WorkerError(RuntimeError):
    """A worker raised or died; the message holds its traceback or exit code, and what to
    do.
    """


class DataLoader:
    """Batches of a dataset, read in this process or by `num_workers` processes ahead of
    time.

    dataset: a `Dataset`, anything with `__getitem__` and `__len__`, or an
    `IterableDataset`. batch_size: at least 1, at most the samples. shuffle: a new order
    in each pass. sampler: indices in an order of your own; batch_sampler: lists of
    indices, instead of batch_size, shuffle, sampler and drop_last. num_workers: 0 reads
    in this process. Workers are processes, started for each pass; batch k is read by
    worker k % num_workers, and batches come in order. prefetch_factor: batches that each
    worker may be ahead, at least 1. worker_init_fn(worker): runs in each worker before it
    reads, such as `seed_worker`. generator: for the order and for the workers' seeds;
    None is the global one. multiprocessing_context: "fork", "spawn" or "forkserver"; None
    is Python's default. Under the last two, dataset and functions must be importable: a
    class of a notebook cell is not.

    Raises ValueError for an empty dataset, a batch larger than the data, or settings that
    exclude each other; WorkerError where a worker raises or dies.

    Invariants: each sample once a pass, however many workers; with the same generator the
    batches, and all random draws in workers, are those of `torch.utils.data.DataLoader`;
    nothing is kept: each pass reads every sample again; no process is left behind.
    """

    def __init__(
        self,
        dataset,
        batch_size: int = 1,
        shuffle: bool = False,
        sampler: Iterable[int] | None = None,
        batch_sampler: Iterable[Sequence[int]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list], object] = default_collate,
        drop_last: bool = False,
        worker_init_fn: Callable[[int], None] | None = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int = 2,
        multiprocessing_context: str | None = None,
    ) -> None:
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
                rows = range(len(dataset))
                sampler = RandomSampler(rows, generator=generator) if shuffle else rows
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last
        self.batch_sampler, self.collate_fn, self.generator = (
            batch_sampler,
            collate_fn,
            generator,
        )
        self.num_workers, self.prefetch_factor = num_workers, prefetch_factor
        self.worker_init_fn, self.context = worker_init_fn, multiprocessing_context

    def __len__(self) -> int:
        if not self.iterable:
            return len(self.batch_sampler)
        batches, rest = divmod(len(self.dataset), self.batch_size)
        return batches + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator:
        # before the order, also without workers: as PyTorch
        base_seed = draw_seed(self.generator)
        return self._by_workers(base_seed) if self.num_workers else self._here()

    def _here(self) -> Iterator:
        batches = None if self.iterable else self.batch_sampler
        some = False
        for batch in _read(self, batches):
            some = True
            yield batch
        self._check_some(some)

    def _by_workers(self, base_seed: int) -> Iterator:
        batches = None if self.iterable else [list(batch) for batch in self.batch_sampler]
        crew: list[_Worker] = []
        some = False
        try:
            for number in range(self.num_workers):
                crew.append(_Worker(self, number, base_seed, batches))
            turn = deque(crew)
            while turn:
                worker = turn.popleft()
                kind, batch = worker.receive()
                if kind == "end":
                    continue
                turn.append(worker)
                worker.ticket()
                some = True
                yield batch
            self._check_some(some)
        finally:
            for worker in crew:
                worker.release()
            for worker in crew:
                worker.end()

    def _check_some(self, some: bool) -> None:
        if not some:
            raise ValueError(
                "no batch came: the dataset is empty, or holds fewer samples than one batch and "
                "drop_last is on. Check where its samples come from, or lower batch_size"
            )


def _check_batch(batch_size: int, samples: int) -> None:
    _check_not_empty(samples)
    if batch_size > samples:
        raise ValueError(
            f"batch_size={batch_size} is larger than the {samples} samples: use at most {samples}"
        )


def _read(loader: DataLoader, batches: Iterable[Sequence[int]] | None) -> Iterator:
    """Yield the batches with these indices, or, for None, those of the stream."""
    dataset = loader.dataset
    if batches is None:
        for samples in _cut(dataset, loader.batch_size, loader.drop_last):
            yield loader.collate_fn(samples)
        return
    together = getattr(dataset, "__getitems__", None)
    for batch in batches:
        samples = together(batch) if together else [dataset[index] for index in batch]
        yield loader.collate_fn(samples)


class _Worker:
    """One worker process, as its parent sees it: a pipe that carries tickets out, batches
    back.
    """

    def __init__(
        self, loader: DataLoader, number: int, base_seed: int, batches: list | None
    ):
        context = multiprocessing.get_context(loader.context)
        job = copy.copy(loader)
        job.batch_sampler = job.generator = None  # the worker has no use for them
        self.number, self.of = number, loader.num_workers
        # batches begun, to be read also after a death
        self.begun = context.RawValue("l", 0)
        self.batches = None if batches is None else batches[number :: self.of]
        self.pipe, other = context.Pipe()
        self.process = context.Process(
            target=_work,
            args=(other, self.pipe, job, number, base_seed, self.batches, self.begun),
            daemon=True,
        )
        try:
            self.process.start()
        except Exception as error:  # under spawn everything is pickled on the way
            raise WorkerError(
                f"worker {number} could not start: {error}. Under spawn the dataset and its "
                "functions must be importable: define them in a module, not in a cell or a function"
            ) from error
        finally:
            other.close()  # so that the worker's end closes with the worker
        for _ in range(loader.prefetch_factor):
            self.ticket()

    def ticket(self, more: bool = True) -> None:
        """Let the worker read one more batch, or none any more."""
        with contextlib.suppress(OSError):  # it has died: `receive` says so
            self.pipe.send(more)

    def receive(self) -> tuple[str, object]:
        """Return ("batch", batch) or ("end", None); raise WorkerError for anything else."""
        ready = wait([self.pipe, self.process.sentinel])
        try:
            kind, value = self.pipe.recv() if self.pipe in ready else ("died", None)
        except (EOFError, OSError):
            kind, value = "died", None
        if kind in ("batch", "end"):
            return kind, value
        where = f"worker {self.number} of {self.of}"
        what = "its part of the stream"
        if self.batches is not None and 0 < self.begun.value <= len(self.batches):
            what = f"the samples {self.batches[self.begun.value - 1]}"
        if kind == "error":
            raise WorkerError(f"{where} raised while it read {what}:\n{value}")
        self.process.join()
        code = self.process.exitcode
        cause = {-9: " (killed, often for lack of memory)", -11: " (native code crashed)"}
        raise WorkerError(
            f"{where} died with exit code {code}{cause.get(code, '')} while it read {what}. Read "
            "them with num_workers=0 to see why; with less memory, use fewer workers. A worker "
            "that dies at once under spawn could not import the dataset: define it in a module"
        )

    def release(self) -> None:
        """Tell the process that nothing more is wanted."""
        self.ticket(more=False)
        self.pipe.close()

    def end(self) -> None:
        """Wait for the process, and kill it where it is in the middle of a sample."""
        self.process.join(0.5)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()


def _work(pipe, parents, loader, number: int, base_seed: int, batches, begun) -> None:
    """Run in a worker: read batches ahead of the parent, one for each ticket."""
    parents.close()  # this copy of its end: else the pipe would outlive the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    seed = _seed_everything(base_seed, number)
    workers._worker_info = WorkerInfo(number, loader.num_workers, seed, loader.dataset)
    try:
        try:
            if loader.worker_init_fn is not None:
                loader.worker_init_fn(number)
            source, end = _read(loader, batches), object()
            while True:
                _take_ticket(pipe)
                begun.value += 1
                batch = next(source, end)
                if batch is end:
                    break
                pipe.send(("batch", batch))
            pipe.send(("end", None))
        except Exception:
            pipe.send(("error", traceback.format_exc()))
        # what was sent may live in this process's memory until the parent has it
        while True:
            _take_ticket(pipe)
    except (_NothingWanted, BrokenPipeError, ConnectionResetError):
        return


class _NothingWanted(BaseException):
    """The parent has had enough, or is gone."""


def _take_ticket(pipe) -> None:
    try:
        more = pipe.recv()
    except (EOFError, OSError):
        more = False
    if not more:
        raise _NothingWanted
