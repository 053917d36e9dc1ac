"""Data loading: from samples on a disk or in memory to batches that are there when they
are needed.

A loader is four small parts: an order of the samples (a sampler), its cut into batches (a
batch sampler), the reading (a dataset, in this process or in workers), and the stacking
(a collate function). With the same generator the order is that of `torch.utils.data`, to
the sample.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import multiprocessing
import os
import queue
import random
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

# --------------------------------------------------------------------------- datasets


class Dataset:
    """Samples by number: `dataset[i]` for i from 0 to len(dataset) - 1, and
    `len(dataset)`.

    `__getitems__(indices)`, where there is one, returns a list of samples in one call; a
    loader prefers it. Raises NotImplementedError for whatever a subclass leaves out.
    """

    def __getitem__(self, index: int):
        raise NotImplementedError(
            f"define {type(self).__name__}.__getitem__(self, index)"
        )

    def __len__(self) -> int:
        raise NotImplementedError(f"define {type(self).__name__}.__len__(self)")


class IterableDataset(torch.utils.data.IterableDataset):
    """Samples one after another, without numbers: a stream, a log, files read from end to
    end.

    It is PyTorch's own class under our name, so that both loaders know a stream when they
    see one. Each worker iterates over a copy of its own: dividing the samples is up to
    `__iter__`, which learns from `get_worker_info` whose copy it is. Raises
    NotImplementedError without `__iter__`.
    """

    def __iter__(self) -> Iterator:
        raise NotImplementedError(f"define {type(self).__name__}.__iter__(self)")


# --------------------------------------------------------------------------- order


def draw_seed(generator: torch.Generator | None = None) -> int:
    """Return one int64 from `generator` (None: the global one), in [0, 2**63 - 1)."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


class RandomSampler:
    """Yields `num_samples` indices of `data_source` in random order, new in each pass.

    replacement: draw each index anew from all; otherwise each pass over the data is a
    permutation. num_samples: at least 1; None is len(data_source). generator: None draws
    a seed from the global one for each pass.

    Raises ValueError for an empty source or fewer than one sample.

    Invariant: the indices, and the state in which the generator is left, are those of
    `torch.utils.data.RandomSampler`.
    """

    def __init__(
        self,
        data_source: Sequence,
        replacement: bool = False,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        _check_not_empty(len(data_source))
        if num_samples is not None:
            _check_whole("num_samples", num_samples)
        self.data_source, self.replacement, self.generator = (
            data_source,
            replacement,
            generator,
        )
        self.num_samples = num_samples or len(data_source)

    def __iter__(self) -> Iterator[int]:
        generator = self.generator or torch.Generator().manual_seed(draw_seed())
        n = len(self.data_source)
        if self.replacement:
            # in pieces of 32, as PyTorch draws them
            full, rest = divmod(self.num_samples, 32)
            for size in [*[32] * full, rest]:
                yield from torch.randint(n, (size,), generator=generator).tolist()
            return
        passes, rest = divmod(self.num_samples, n)
        # PyTorch draws the last one even if it takes none of it
        for size in [*[n] * passes, rest]:
            yield from torch.randperm(n, generator=generator).tolist()[:size]

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler:
    """Cuts a sampler's indices into lists of `batch_size`, the last one shorter or
    dropped.

    Raises ValueError where batch_size is no whole number of at least 1.

    Invariant: the batches joined are the sampler's indices, but for a dropped last one.
    """

    def __init__(
        self, sampler: Iterable[int], batch_size: int, drop_last: bool = False
    ) -> None:
        _check_whole("batch_size", batch_size)
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last

    def __iter__(self) -> Iterator[list[int]]:
        return _cut(self.sampler, self.batch_size, self.drop_last)

    def __len__(self) -> int:
        batches, rest = divmod(len(self.sampler), self.batch_size)
        return batches + (rest > 0 and not self.drop_last)


class BucketSampler:
    """Batches of samples of similar length, in random order: less padding, still
    shuffled.

    The indices are shuffled and cut into pools of `pool` batches; each pool is sorted by
    length and cut into batches; then all batches are shuffled (sequence bucketing,
    Khomenko et al. 2017).

    lengths: one a sample. batch_size, pool: at least 1. pool=1 is plain shuffling; a pool
    of all batches pads least and leaves the batches nearly the same in each pass.
    generator: None draws a seed from the global one for each pass.

    Raises ValueError for no lengths, or sizes below 1.

    Invariants: without drop_last each index comes once; the batches of a pool do not
    overlap in length but at their ends; at most one batch is shorter than batch_size.
    """

    def __init__(
        self,
        lengths: Sequence[int] | Tensor,
        batch_size: int,
        pool: int = 50,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        _check_not_empty(len(lengths))
        _check_whole("batch_size", batch_size)
        _check_whole("pool", pool)
        self.lengths, self.batch_size, self.pool = (
            torch.as_tensor(lengths),
            batch_size,
            pool,
        )
        self.drop_last, self.generator = drop_last, generator

    def __iter__(self) -> Iterator[list[int]]:
        generator = self.generator or torch.Generator().manual_seed(draw_seed())
        order = torch.randperm(len(self.lengths), generator=generator)
        batches = []
        for members in order.split(self.batch_size * self.pool):
            by_length = members[self.lengths[members].argsort(stable=True)]
            batches += by_length.split(self.batch_size)
        if self.drop_last and len(batches[-1]) < self.batch_size:
            batches.pop()
        for number in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[number].tolist()

    def __len__(self) -> int:
        batches, rest = divmod(len(self.lengths), self.batch_size)
        return batches + (rest > 0 and not self.drop_last)


def padding_share(
    lengths: Sequence[int] | Tensor, batches: Iterable[Sequence[int]]
) -> float:
    """Return which share of the padded batches is padding, in [0, 1).

    >>> padding_share([1, 2], [[0, 1]])
    0.25
    """
    lengths = torch.as_tensor(lengths)
    total = sum(int(lengths[batch].max()) * len(batch) for batch in map(list, batches))
    return 1 - int(lengths.sum()) / total


def shard_indices(
    length: int,
    rank: int,
    num_replicas: int,
    *,
    shuffle: bool = True,
    seed: int = 0,
    epoch: int = 0,
    uneven: str = "pad",
) -> list[int]:
    """Return the indices, of `length` samples, that fall to one of `num_replicas`
    readers.

    All readers draw the same permutation, from seed + epoch, and take every
    num_replicas-th index. uneven says what happens to a rest: "pad" repeats indices from
    the start, so that all readers have as many, as training under DDP needs; "drop"
    leaves the rest out; "keep" lets readers differ by one, so that each sample is counted
    once, as evaluation needs.

    Raises ValueError for no samples, a rank out of range, or another word.

    Invariants: "pad" and "drop" are `torch.utils.data.DistributedSampler` with drop_last
    False and True; under "keep" the shards are disjoint and cover all; another epoch is
    another order.
    """
    _check_not_empty(length)
    _check_whole("num_replicas", num_replicas)
    if not 0 <= rank < num_replicas:
        raise ValueError(f"rank={rank}: give one from 0 to {num_replicas - 1}")
    if uneven not in ("pad", "drop", "keep"):
        raise ValueError(f'uneven={uneven!r}: choose "pad", "drop" or "keep"')
    order = list(range(length))
    if shuffle:
        order = torch.randperm(
            length, generator=torch.Generator().manual_seed(seed + epoch)
        )
        order = order.tolist()
    if uneven == "pad":
        total = math.ceil(length / num_replicas) * num_replicas
        order = list(itertools.islice(itertools.cycle(order), total))
    elif uneven == "drop":
        order = order[: length // num_replicas * num_replicas]
    return order[rank::num_replicas]


def _cut(items: Iterable, size: int, drop_last: bool) -> Iterator[list]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        if len(batch) == size or not drop_last:
            yield batch


def _check_whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: give a whole number of at least 1")


def _check_not_empty(length: int) -> None:
    if length < 1:
        raise ValueError(
            "the dataset is empty: check the path, the pattern or the filter that finds its samples"
        )


# --------------------------------------------------------------------------- samples to batch


def default_collate(samples: Sequence):
    """Stack a list of samples into one batch, as deep as they are nested.

    Tensors and NumPy arrays (...) become a tensor (n, ...), numbers a tensor (n,) (a
    Python float becomes float64), strings stay a list, and mappings, named tuples, tuples
    and lists are stacked field by field; a plain tuple comes back as a list.

    Raises ValueError for no samples or samples of unequal shapes, TypeError for other
    types.

    Invariant: equal to `torch.utils.data.default_collate` in values, dtypes and types.
    """
    if not len(samples):
        raise ValueError("a batch without samples cannot be stacked: give at least one")
    first = samples[0]
    if isinstance(first, np.ndarray) and first.dtype.kind not in "OSU":
        samples = [torch.as_tensor(sample) for sample in samples]
        first = samples[0]
    if isinstance(first, Tensor):
        shapes = list(dict.fromkeys(tuple(sample.shape) for sample in samples))
        if len(shapes) > 1:
            raise ValueError(
                f"samples of shapes {shapes[0]} and {shapes[1]} do not stack: make them equal in "
                "__getitem__, or pass collate_fn=pad_collate to pad the first dimension"
            )
        return torch.stack(list(samples))
    if isinstance(first, float):
        return torch.tensor(samples, dtype=torch.float64)
    if isinstance(first, (int, np.number, np.bool_)):
        return torch.as_tensor(samples)
    if isinstance(first, (str, bytes)):
        return samples
    if isinstance(first, Mapping):
        batch = copy.copy(first)
        batch.update(
            {key: default_collate([sample[key] for sample in samples]) for key in first}
        )
        return batch
    if isinstance(first, Sequence):
        lengths = {len(sample) for sample in samples}
        if len(lengths) > 1:
            raise ValueError(
                f"samples have from {min(lengths)} to {max(lengths)} fields: return equally many, "
                "or a tensor for each sequence and pass collate_fn=pad_collate"
            )
        fields = [default_collate(field) for field in zip(*samples, strict=True)]
        return type(first)(*fields) if hasattr(first, "_fields") else fields
    raise TypeError(
        f"a sample holds a {type(first).__name__}, which does not stack: return tensors, arrays, "
        "numbers, strings, or tuples, lists and dicts of them, or pass a collate_fn"
    )


def pad_collate(samples: Sequence, padding_value: float = 0.0):
    """Stack sequences of unequal length into (padded, lengths), or (padded, lengths,
    rest...).

    A sample is a tensor (length, ...), or a tuple that begins with one; the other fields
    are stacked by `default_collate`. padded: (n, longest, ...), `padding_value` behind
    each end. lengths: int64 (n,); a mask is `torch.arange(longest) < lengths[:, None]`.

    Raises ValueError for no samples, TypeError where the sequence is no tensor.

    Invariants: equal to `torch.nn.utils.rnn.pad_sequence(batch_first=True)`; cut at their
    lengths the rows are the samples.
    """
    if not len(samples):
        raise ValueError("a batch without samples cannot be stacked: give at least one")
    alone = not isinstance(samples[0], (tuple, list))
    sequences = list(samples) if alone else [sample[0] for sample in samples]
    for sequence in sequences:
        if not isinstance(sequence, Tensor) or sequence.ndim == 0:
            raise TypeError(
                f"pad_collate pads tensors (length, ...), not a {type(sequence).__name__}: return "
                "one from __getitem__, first in a tuple if there is more"
            )
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    shape = (len(sequences), int(lengths.max()), *sequences[0].shape[1:])
    padded = sequences[0].new_full(shape, padding_value)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    if alone:
        return padded, lengths
    rest = [
        default_collate(field) for field in zip(*(s[1:] for s in samples), strict=True)
    ]
    return (padded, lengths, *rest)


# --------------------------------------------------------------------------- randomness in workers


@dataclass
class WorkerInfo:
    """Who a worker is: `id` from 0 to `num_workers` - 1, its `seed`, and its copy of
    `dataset`.
    """

    id: int
    num_workers: int
    seed: int
    dataset: object


_worker_info: WorkerInfo | None = None


def get_worker_info():
    """Return the `WorkerInfo` of this process, PyTorch's own in a PyTorch worker, else
    None.
    """
    return _worker_info or torch.utils.data.get_worker_info()


def seed_worker(worker_id: int) -> None:
    """Give every random generator that is stored on this worker's dataset a seed of its
    own.

    For `worker_init_fn=`, here and in PyTorch. A worker has a copy of the dataset, and a
    generator (NumPy's, Python's or torch's) kept in an attribute is copied with its
    state: without this, all workers draw the same numbers, and again in each epoch.
    Datasets that wrap another in an attribute `dataset` are followed.

    Raises RuntimeError outside a worker.

    Invariants: no two workers and no two epochs draw alike; the same generator of the
    loader gives the same draws again.
    """
    info = get_worker_info()
    if info is None:
        raise RuntimeError("seed_worker runs in a worker: pass it as worker_init_fn")
    dataset, number = info.dataset, 0
    while dataset is not None:
        for name, value in list(getattr(dataset, "__dict__", {}).items()):
            source = np.random.SeedSequence([info.seed % 2**64, number])
            if isinstance(value, np.random.Generator):
                setattr(dataset, name, np.random.default_rng(source))
            elif isinstance(value, random.Random):
                value.seed(int(source.generate_state(1, np.uint64)[0]))
            elif isinstance(value, torch.Generator):
                value.manual_seed(int(source.generate_state(1, np.uint64)[0] >> 1))
            else:
                continue
            number += 1
        dataset = getattr(dataset, "dataset", None)


def _seed_everything(base_seed: int, worker: int) -> int:
    """Seed Python, torch and NumPy as a PyTorch worker does since 1.9 (pull request
    56488).
    """
    seed = base_seed + worker
    random.seed(seed)
    torch.manual_seed(seed)
    words = [worker, base_seed & 0xFFFFFFFF, base_seed >> 32, 0]
    np.random.seed(np.random.SeedSequence(words).generate_state(4))
    return seed


# --------------------------------------------------------------------------- the loader


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
    global _worker_info
    parents.close()  # this copy of its end: else the pipe would outlive the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    seed = _seed_everything(base_seed, number)
    _worker_info = WorkerInfo(number, loader.num_workers, seed, loader.dataset)
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


# --------------------------------------------------------------------------- ahead of time


def prefetch(
    batches: Iterable, depth: int = 2, transform: Callable | None = None
) -> Iterator:
    """Yield what `batches` yields, read by one thread while the caller works on the last
    one.

    depth: at least 1; at most that many batches are read and not yet asked for.
    transform(batch): also runs in the thread, such as pinning memory or a copy to a
    device. It helps where the reading waits or leaves Python's lock (files, network,
    copies, most of NumPy and torch); for Python code, use worker processes.

    Raises ValueError for a depth below 1; an error of `batches` is raised where its batch
    would be.

    Invariants: the same batches in the same order; the thread ends with the loop.
    """
    _check_whole("depth", depth)
    return _ahead(batches, depth, transform or (lambda batch: batch))


def _ahead(batches: Iterable, depth: int, transform: Callable) -> Iterator:
    ready, free, done = queue.SimpleQueue(), threading.Semaphore(depth), threading.Event()

    def fill() -> None:
        try:
            source = iter(batches)
            while free.acquire() and not done.is_set():
                batch = next(source, done)
                if batch is done:
                    break
                ready.put(("batch", transform(batch)))
            ready.put(("end", None))
        except BaseException as error:  # it belongs to the caller
            ready.put(("error", error))

    thread = threading.Thread(target=fill, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            free.release()
            yield value
    finally:
        done.set()
        free.release()
        thread.join()


# --------------------------------------------------------------------------- in memory


class TensorLoader:
    """Batches of tensors that are in memory, each gathered in one call: no samples, no
    Python loop.

    tensors: each (n, ...), all with the same n. A batch is a tuple, one tensor for each.
    batch_size: from 1 to n. shuffle: a new order in each pass. drop_last: without a
    shorter last. transform(*batch): runs on whole batches, such as a cast to float32, and
    returns the batch. generator: on the CPU; None is the global one. The tensors may be
    on any device, and so are the batches.

    Raises ValueError for no or unequal rows, or a batch larger than the data.

    Invariant: the batches are those of `torch.utils.data.DataLoader` over a
    `TensorDataset`, and the generator is left in the same state, pass after pass.
    """

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        transform: Callable | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        rows = {len(tensor) for tensor in tensors}
        if len(rows) != 1:
            raise ValueError(
                f"tensors with {sorted(rows)} rows: give at least one, all with equally many"
            )
        _check_whole("batch_size", batch_size)
        _check_batch(batch_size, *rows)
        self.tensors, self.rows, self.batch_size = tensors, rows.pop(), batch_size
        self.shuffle, self.drop_last, self.transform = shuffle, drop_last, transform
        self.generator = generator

    def __len__(self) -> int:
        batches, rest = divmod(self.rows, self.batch_size)
        return batches + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        draw_seed(self.generator)  # PyTorch's loader draws its workers' seed first
        generator = self.generator
        if not self.shuffle:
            order = torch.arange(self.rows)
        else:
            if generator is None:
                generator = torch.Generator().manual_seed(draw_seed())
            order = torch.randperm(self.rows, generator=generator)
        order = order.to(self.tensors[0].device)
        for rows in order.split(self.batch_size)[: len(self)]:
            batch = tuple([tensor.index_select(0, rows) for tensor in self.tensors])
            yield batch if self.transform is None else self.transform(*batch)
        if self.shuffle and self.generator is not None:
            # as RandomSampler does at its end
            torch.randperm(self.rows, generator=generator)


# --------------------------------------------------------------------------- demonstrations
#
# Small datasets that the chapter, the tests and the benchmark show things on. They stand
# here, and not in a notebook, because a worker that is spawned (macOS, Windows) must be
# able to import them.


class Probe(Dataset):
    """Sample i is (i, the id of the process that read it); `calls` counts the reads made
    here.
    """

    def __init__(self, length: int) -> None:
        self.length, self.calls = length, 0

    def __getitem__(self, index: int) -> tuple[int, int]:
        self.calls += 1
        return index, os.getpid()

    def __len__(self) -> int:
        return self.length


class RandomDraws(Dataset):
    """Sample i is a random int in [0, 2**31) from one `source`, whatever i is.

    source: "numpy", "python" or "torch" (each library's global generator), or "stored" (a
    NumPy generator made once, here, and kept on the dataset).
    """

    def __init__(self, length: int, source: str = "stored", seed: int = 0) -> None:
        self.length, self.source, self.rng = length, source, np.random.default_rng(seed)

    def __getitem__(self, index: int) -> int:
        if self.source == "stored":
            return int(self.rng.integers(2**31))
        if self.source == "numpy":
            return int(np.random.randint(2**31))
        if self.source == "python":
            return random.randrange(2**31)
        return int(torch.randint(2**31, ()))

    def __len__(self) -> int:
        return self.length


class NumberStream(IterableDataset):
    """The numbers from 0 to length - 1 as a stream; `shard` divides them among all
    readers.

    shard: "no", "workers" (of this process only) or "all" (workers and processes). rank
    and num_replicas say which of the processes this is.
    """

    def __init__(
        self, length: int, shard: str = "no", rank: int = 0, num_replicas: int = 1
    ):
        self.length, self.shard, self.rank, self.num_replicas = (
            length,
            shard,
            rank,
            num_replicas,
        )

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if self.shard == "no":
            worker, workers = 0, 1
        if self.shard == "all":
            worker, workers = self.rank * workers + worker, self.num_replicas * workers
        yield from range(worker, self.length, workers)


class RowStream(IterableDataset):
    """Endless material: `length` row numbers below `rows` a pass, drawn by a stored
    generator.
    """

    def __init__(self, rows: int, length: int, seed: int = 0) -> None:
        self.rows, self.length, self.rng = rows, length, np.random.default_rng(seed)

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        for _ in range(self.length // (info.num_workers if info else 1)):
            yield int(self.rng.integers(self.rows))


class SlowSamples(Dataset):
    """Sample i is i, after a wait of `wait` seconds (as for a disk) and `spin` turns of a
    loop.
    """

    def __init__(self, length: int, wait: float = 0.0, spin: int = 0) -> None:
        self.length, self.wait, self.spin = length, wait, spin

    def __getitem__(self, index: int) -> int:
        if self.wait:
            time.sleep(self.wait)
        for _ in range(self.spin):
            pass
        return index

    def __len__(self) -> int:
        return self.length


class FaultySamples(Dataset):
    """Sample i is i, but for one: reading it raises ("raise") or ends the process
    ("die").
    """

    def __init__(self, length: int, at: int, how: str = "raise") -> None:
        self.length, self.at, self.how = length, at, how

    def __getitem__(self, index: int) -> int:
        if index == self.at and self.how == "die":
            os._exit(3)  # as the system does to a process that takes too much memory
        if index == self.at:
            raise OSError(f"sample {index} cannot be read")
        return index

    def __len__(self) -> int:
        return self.length
