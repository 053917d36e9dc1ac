"""In which order rows come: shuffled, in batches, by length, by process."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch import Tensor


def draw_seed(generator: torch.Generator | None = None) -> int:
    """Return one int64 from `generator` (None: the global one), in [0, 2**63 - 1)."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


class SequentialSampler:
    """Yields the indices of `data_source` from first to last, as many as there are now."""

    def __init__(self, data_source: Sequence) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler:
    """Yields `num_samples` indices of `data_source` in random order, new in each pass.

    replacement: draw each index anew from all; otherwise each pass over the data is a
    permutation. num_samples: at least 1; None is len(data_source), taken at each pass. generator: None draws
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
        self.data_source = data_source
        self.replacement = replacement
        self.generator = generator
        self._num_samples = num_samples

    @property
    def num_samples(self) -> int:
        """How many indices a pass has; the length of the source is taken anew."""
        if self._num_samples is None:
            return len(self.data_source)
        return self._num_samples

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
        self.sampler: Any = sampler  # only len() asks for its length
        self.batch_size, self.drop_last = batch_size, drop_last

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
    drop_last: leave out the last few of the shuffled indices, whatever their length.
    The order is drawn from seed and `epoch`: set that before each pass. Several processes
    that have the same seed have the same order, whatever else they draw.

    Raises ValueError for no lengths, or sizes below 1.

    Invariants: without drop_last each index comes once; the batches of a pool do not
    overlap in length but at their ends; at most one batch is shorter than batch_size; the
    same seed and epoch give the same batches.
    """

    def __init__(self, lengths, batch_size, pool=50, drop_last=False, seed=0):
        if not len(lengths):
            raise ValueError("the dataset is empty: check where its lengths come from")
        for name, value in (("batch_size", batch_size), ("pool", pool)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
        self.lengths = torch.as_tensor(lengths)
        self.batch_size = batch_size  # this and drop_last are read by Accelerate, too
        self.drop_last = drop_last
        self.pool = pool  # batches that are sorted together
        self.seed = seed
        self.epoch = 0  # set it before each pass

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        order = torch.from_numpy(rng.permutation(len(self.lengths)))
        if self.drop_last:  # before sorting: after it, the longest would be dropped
            order = order[: len(self) * self.batch_size]

        batches = []
        for members in order.split(self.batch_size * self.pool):
            by_length = members[self.lengths[members].argsort(stable=True)]
            batches += by_length.split(self.batch_size)
        for place in rng.permutation(len(batches)):
            yield batches[place].tolist()

    def __len__(self):
        full, rest = divmod(len(self.lengths), self.batch_size)
        return full + (rest > 0 and not self.drop_last)


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


def pack_sequences(lengths: Sequence[int] | Tensor, capacity: int) -> list[list[int]]:
    """Return which sequences go together into rows of `capacity` tokens: lists of indices.

    First fit, longest first (Johnson 1973): each sequence goes into the first row that has
    room, and opens a new one where none has.

    Raises ValueError for no lengths, or one that is longer than the capacity.

    Invariants: each index comes once; no row exceeds the capacity; no two rows would fit
    into one.
    """
    lengths = torch.as_tensor(lengths)
    _check_not_empty(len(lengths))
    _check_whole("capacity", capacity)
    if int(lengths.max()) > capacity:
        raise ValueError(
            f"a sequence of {int(lengths.max())} does not fit into rows of {capacity}: cut it first"
        )
    rows: list[list[int]] = []
    room: list[int] = []
    for index in lengths.argsort(descending=True, stable=True).tolist():
        length = int(lengths[index])
        fitting = (row for row, free in enumerate(room) if length <= free)
        row = next(fitting, len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= length
    return rows


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
