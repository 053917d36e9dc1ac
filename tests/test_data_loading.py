"""Data loading against torch.utils.data: orders, batches, draws in workers, shards, and
errors.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import gc
import itertools
import json
import multiprocessing
import os
import pickle
import queue
import random
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.utils.data as peer
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data._utils import worker as torch_workers
from warm import IMPORTED, environment

from dlcourse.data_loading import (
    BatchSampler,
    BucketSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    KeyedDraws,
    NumberStream,
    Probe,
    RandomDraws,
    RandomSampler,
    SequentialSampler,
    ShardedLines,
    SlowSamples,
    TensorLoader,
    WorkerError,
    WorkerInfo,
    crew,
    default_collate,
    draw_seed,
    endless,
    get_worker_info,
    keyed_transform,
    pack_sequences,
    pad_collate,
    padding_share,
    prefetch,
    seed_worker,
    shard_indices,
    steps_with_and_without,
)
from dlcourse.data_loading import loader as loader_module
from dlcourse.data_loading import workers as workers_module
from dlcourse.data_loading.reading import Reader
from dlcourse.exercises import data_loading as exercises
from dlcourse.lab import warm
from dlcourse.lab.launching import launch
from dlcourse.lab.source import source_of

# PyTorch warns of more workers than cores; that is no matter here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.usefixtures("forks_are_cheap"),
]
forked_only = pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork",
    reason="functions of a test cannot be spawned",
)


@pytest.fixture(autouse=True)
def no_process_is_left():
    """Every test here must end without a worker or a thread of its own.

    A loop that raised can go on, so its workers live as long as the error is held.
    """
    yield
    if left_behind():
        gc.collect()  # not after each test: this looks through all that has been imported
    assert left_behind() == []


def left_behind() -> list:
    """Return the workers and the prefetching threads that are still there."""
    threads = [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    return multiprocessing.active_children() + threads


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(a, b) -> bool:
    """Equal in type, dtype, shape and values, as deep as they are nested."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return (
            type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
        )
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def batches_of(loader, passes: int = 1) -> list:
    return [batch for _ in range(passes) for batch in loader]


# --------------------------------------------------------------------------- samplers


@pytest.mark.parametrize("seed", range(30))
def test_random_sampler_is_torch_s_and_leaves_the_same_state(seed):
    rng = random.Random(seed)
    length = rng.choice([1, 2, 31, 32, 33, 100])
    settings = dict(
        replacement=rng.random() < 0.5,
        num_samples=rng.choice([None, 1, length, 2 * length, 3 * length + 1]),
    )
    ours, theirs = seeded(seed), seeded(seed)
    mine = RandomSampler(range(length), generator=ours, **settings)
    want = peer.RandomSampler(range(length), generator=theirs, **settings)
    assert len(mine) == len(want)
    for _ in range(3):
        assert list(mine) == list(want)
        assert torch.equal(ours.get_state(), theirs.get_state())
    found = []
    for kind in (RandomSampler, peer.RandomSampler):  # from the global generator
        torch.manual_seed(seed)
        found.append(batches_of(kind(range(length), **settings), 2))
    assert found[0] == found[1]


@pytest.mark.parametrize("seed", range(30))
def test_batch_sampler_is_torch_s(seed):
    rng = random.Random(seed)
    length, size, drop = rng.randint(0, 30), rng.randint(1, 12), rng.random() < 0.5
    mine = BatchSampler(range(length), size, drop)
    want = peer.BatchSampler(range(length), size, drop)
    assert list(mine) == list(want) and len(mine) == len(want) == len(list(mine))
    assert list(BatchSampler(iter(range(length)), size, drop)) == list(want)


@pytest.mark.parametrize("seed", range(20))
def test_bucket_sampler_invariants(seed):
    rng = random.Random(seed)
    length, size, pool = rng.randint(1, 200), rng.randint(1, 20), rng.randint(1, 6)
    lengths = torch.randint(1, 50, (length,), generator=seeded(seed))
    drop = rng.random() < 0.5
    sampler = BucketSampler(lengths, size, pool, drop, seed)
    first, repeated = list(sampler), list(sampler)
    sampler.epoch = 1
    second = list(sampler)
    again = list(BucketSampler(lengths, size, pool, drop, seed))
    assert first == repeated == again and len(first) == len(sampler)
    if length > 30:
        assert first != second
    for batches in (first, second):
        flat = [index for batch in batches for index in batch]
        assert len(set(flat)) == len(flat)
        assert len(flat) == (length // size * size if drop else length)
        assert sum(len(batch) < size for batch in batches) <= 1
    # one pool: the batches do not overlap in length
    if not drop and pool * size >= length:
        spans = sorted((int(lengths[b].min()), int(lengths[b].max())) for b in first)
        assert all(
            high <= low for (_, high), (low, _) in zip(spans, spans[1:], strict=False)
        )
        assert padding_share(lengths, first) <= padding_share(
            lengths, BatchSampler(range(length), size)
        )


def test_bucketing_drops_no_longest_samples():
    """What is left out was drawn at random, and is another in each pass."""
    lengths = torch.arange(50)
    for pool in (2, 5, 20):
        sampler = BucketSampler(lengths, 8, pool, drop_last=True)
        left = []
        for sampler.epoch in range(40):
            left += set(range(50)) - {i for batch in sampler for i in batch}
        assert len(left) == 80 and len(set(left)) > 30
        assert 15 < sum(left) / len(left) < 34


def test_bucketing_cuts_the_padding():
    for seed in range(5):
        lengths = torch.distributions.Exponential(1 / 20)
        torch.manual_seed(seed)
        lengths = lengths.sample((2000,)).ceil().long()
        plain = BatchSampler(RandomSampler(lengths, generator=seeded(seed)), 32)
        bucketed = BucketSampler(lengths, 32, seed=seed)
        assert (
            padding_share(lengths, plain) > 0.5 > 0.2 > padding_share(lengths, bucketed)
        )
    assert padding_share([1, 3], [[0], [1]]) == 0
    assert padding_share([1, 3], [[0, 1]]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(20))
def test_packing_invariants(seed):
    rng = random.Random(seed)
    capacity = rng.randint(1, 60)
    lengths = [rng.randint(0, capacity) for _ in range(rng.randint(1, 80))]
    rows = pack_sequences(torch.tensor(lengths) if seed % 2 else lengths, capacity)
    assert sorted(sum(rows, [])) == list(range(len(lengths)))
    tokens = sorted(sum(lengths[index] for index in row) for row in rows)
    assert tokens[-1] <= capacity
    assert len(tokens) < 2 or tokens[0] + tokens[1] > capacity
    least = -(-sum(lengths) // capacity)
    assert (
        len(rows) <= 11 / 9 * max(least, 1) + 1
    )  # Johnson's bound holds for the optimum


def test_packing_errors():
    with pytest.raises(ValueError, match="a sequence of 7 does not fit into rows of 6"):
        pack_sequences([1, 7], 6)
    with pytest.raises(ValueError, match="the dataset is empty"):
        pack_sequences([], 6)
    with pytest.raises(ValueError, match="capacity"):
        pack_sequences([1], 0)


@pytest.mark.parametrize("seed", range(40))
def test_shards_are_those_of_distributed_sampler(seed):
    rng = random.Random(seed)
    length, replicas = rng.randint(1, 40), rng.randint(1, 7)
    settings = dict(shuffle=rng.random() < 0.7, seed=rng.randint(0, 99))
    epoch = rng.randint(0, 5)
    for uneven in ("pad", "drop"):
        if uneven == "drop" and length < replicas:
            continue  # torch itself counts wrongly there
        for rank in range(replicas):
            want = peer.DistributedSampler(
                range(length), replicas, rank, drop_last=uneven == "drop", **settings
            )
            want.set_epoch(epoch)
            mine = shard_indices(
                length, rank, replicas, epoch=epoch, uneven=uneven, **settings
            )
            assert mine == list(want)
    parts = [
        shard_indices(length, rank, replicas, epoch=epoch, uneven="keep", **settings)
        for rank in range(replicas)
    ]
    assert sorted(sum(parts, [])) == list(range(length))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert shard_indices(50, 0, 2, epoch=0) != shard_indices(50, 0, 2, epoch=1)


# --------------------------------------------------------------------------- collate

Point = collections.namedtuple("Point", "x y")


def random_sample_maker(rng: random.Random, depth: int = 0):
    """Return a function that makes samples of one random structure."""
    kinds = ["tensor", "array", "float", "int", "bool", "str", "numpy"]
    if depth < 3:
        kinds += ["tuple", "list", "dict", "ordered", "point"] * 2
    kind = rng.choice(kinds)
    shape = tuple(rng.randint(0, 3) for _ in range(rng.randint(0, 3)))
    dtype = rng.choice(
        [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]
    )
    if kind == "tensor":
        return lambda: torch.randint(0, 9, shape).to(dtype)
    if kind == "array":
        return lambda: torch.randint(0, 9, shape).to(dtype).numpy()
    if kind == "numpy":
        return lambda: np.float32(rng.random())
    plain = {
        "float": rng.random,
        "int": lambda: rng.randint(-9, 9),
        "bool": lambda: rng.random() < 0.5,
        "str": lambda: str(rng.random()),
    }
    if kind in plain:
        return plain[kind]
    inner = [random_sample_maker(rng, depth + 1) for _ in range(2)]
    build = {
        "tuple": tuple,
        "list": list,
        "dict": lambda parts: dict(zip("ab", parts, strict=True)),
        "ordered": lambda parts: collections.OrderedDict(zip("ba", parts, strict=True)),
        "point": lambda parts: Point(*parts),
    }[kind]
    return lambda: build([make() for make in inner])


@pytest.mark.parametrize("seed", range(80))
def test_default_collate_is_torch_s(seed):
    rng = random.Random(seed)
    make = random_sample_maker(rng)
    samples = [make() for _ in range(rng.randint(1, 5))]
    assert same(default_collate(samples), peer.default_collate(samples))


def test_collate_errors():
    with pytest.raises(ValueError, match="collate_fn=pad_collate"):
        default_collate([torch.zeros(3), torch.zeros(5)])
    with pytest.raises(ValueError, match="shapes \\(3,\\) and \\(5,\\)"):
        default_collate([{"x": np.zeros(3)}, {"x": np.zeros(5)}])
    with pytest.raises(ValueError, match="from 1 to 2 fields.*pad_collate"):
        default_collate([[1], [1, 2]])
    with pytest.raises(TypeError, match="NoneType, which does not stack"):
        default_collate([None, None])
    with pytest.raises(TypeError, match="ndarray, which does not stack"):
        default_collate([np.array(["a"])])
    for collate in (default_collate, pad_collate):
        with pytest.raises(ValueError, match="at least one"):
            collate([])
    for sample in ([1, 2], 3, (5, torch.zeros(2)), torch.zeros(())):
        with pytest.raises(TypeError, match="pads tensors"):
            pad_collate([sample])


@pytest.mark.parametrize("seed", range(20))
def test_pad_collate_is_pad_sequence(seed):
    rng = random.Random(seed)
    tail = tuple(rng.randint(1, 3) for _ in range(rng.randint(0, 2)))
    sequences = [torch.randn(rng.randint(0, 7), *tail) for _ in range(rng.randint(1, 6))]
    value = rng.choice([0.0, -1.0])
    padded, lengths = pad_collate(sequences, value)
    want = pad_sequence(sequences, batch_first=True, padding_value=value)
    assert same(padded, want) and lengths.dtype == torch.int64
    rows = zip(padded, lengths, sequences, strict=True)
    assert all(torch.equal(row[:n], sequence) for row, n, sequence in rows)
    labelled = [(sequence, number, "x") for number, sequence in enumerate(sequences)]
    padded, lengths, numbers, names = pad_collate(labelled, value)
    assert same(padded, want) and numbers.tolist() == list(range(len(sequences)))
    assert list(names) == ["x"] * len(sequences)


# --------------------------------------------------------------------------- the loader


class Rows(Dataset):
    def __init__(self, *tensors):
        self.tensors = tensors

    def __getitem__(self, index):
        return tuple(tensor[index] for tensor in self.tensors)

    def __len__(self):
        return len(self.tensors[0])


class FastRows(Rows):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


@pytest.mark.parametrize("seed", range(40))
def test_batches_are_torch_s_pass_after_pass(seed):
    rng = random.Random(seed)
    length = rng.randint(1, 60)
    tensors = torch.randn(length, 2, 3), torch.arange(length)
    settings = dict(
        batch_size=rng.randint(1, length),
        shuffle=rng.random() < 0.7,
        drop_last=rng.random() < 0.5,
    )
    generators = [seeded(seed) if rng.random() < 0.7 else None] * 3
    makers = (
        lambda g: peer.DataLoader(peer.TensorDataset(*tensors), generator=g, **settings),
        lambda g: DataLoader(
            rng.choice([Rows, FastRows])(*tensors), generator=g, **settings
        ),
        lambda g: TensorLoader(*tensors, generator=g, **settings),
    )
    found, states = [], []
    for make, generator in zip(makers, generators, strict=True):
        torch.manual_seed(seed)
        generator = generator and generator.manual_seed(seed)
        loader = make(generator)
        found.append([list(batch) for batch in batches_of(loader, 3)])
        assert len(found[-1]) == 3 * len(loader)
        states.append((generator or torch.default_generator).get_state())
    for batches, state in zip(found[1:], states[1:], strict=True):
        assert same(batches, found[0]) and torch.equal(state, states[0])


def test_order_parity_needs_one_draw_before_the_permutation():
    order = torch.cat(
        list(peer.DataLoader(range(50), shuffle=True, generator=seeded(3)))
    ).tolist()
    plain = torch.randperm(50, generator=seeded(3)).tolist()
    generator = seeded(3)
    draw_seed(generator)
    assert order == torch.randperm(50, generator=generator).tolist() != plain


@pytest.mark.parametrize("settings", [dict(), dict(batch_size=4), dict(batch_size=7)])
def test_samplers_can_be_given(settings):
    own = DataLoader(range(20), sampler=range(0, 20, 2), **settings)
    want = peer.DataLoader(range(20), sampler=range(0, 20, 2), **settings)
    assert same(batches_of(own), batches_of(want)) and len(own) == len(want)
    batches = [[1, 2], [19], [0, 0, 0]]
    own = DataLoader(range(20), batch_sampler=batches)
    assert [batch.tolist() for batch in own] == batches and len(own) == 3


def test_nothing_is_cached():
    for kind in (DataLoader, peer.DataLoader):
        probe = Probe(4)
        batches_of(kind(probe, batch_size=2), 2)
        assert probe.calls == 8


@pytest.mark.parametrize("length", [1, 7, 8])
@pytest.mark.parametrize("drop_last", [False, True])
def test_streams_are_torch_s(length, drop_last):
    settings = dict(batch_size=1 if length == 1 else 3, drop_last=drop_last)
    own, want = (
        kind(NumberStream(length), **settings) for kind in (DataLoader, peer.DataLoader)
    )
    assert same(batches_of(own, 2), batches_of(want, 2))
    with pytest.raises(TypeError):
        len(own)
    sized = NumberStream(length)
    type(sized).__len__ = lambda self: self.length
    try:
        assert len(DataLoader(sized, **settings)) == len(
            peer.DataLoader(sized, **settings)
        )
    finally:
        del type(sized).__len__


class Growing(Dataset):
    """Sample i is i; `length` may be set anew."""

    def __init__(self, length):
        self.length = length

    def __getitem__(self, index):
        if index >= self.length:
            raise IndexError(index)
        return index

    def __len__(self):
        return self.length


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_length_is_taken_at_each_pass(shuffle, workers):
    found = []
    for kind in (DataLoader, peer.DataLoader):
        dataset = Growing(6)
        loader = kind(dataset, 4, shuffle, num_workers=workers, generator=seeded(1))
        found.append([])
        for length in (6, 11, 3, 4):
            dataset.length = length
            found[-1].append([len(loader), [batch.tolist() for batch in loader]])
    assert found[0] == found[1]
    assert sorted(sum(found[0][1][1], [])) == list(range(11))


def test_samplers_take_the_length_at_each_pass():
    source = list(range(5))
    for replacement in (False, True):
        pairs = [
            (kind(source, replacement, generator=seeded(0)))
            for kind in (RandomSampler, peer.RandomSampler)
        ]
        for length in (5, 40, 2):
            source[:] = range(length)
            assert len(pairs[0]) == pairs[0].num_samples == length
            assert list(pairs[0]) == list(pairs[1])
    source[:] = range(7)
    fixed = RandomSampler(source, num_samples=3)
    source[:] = range(9)
    assert len(fixed) == len(list(fixed)) == 3
    assert list(SequentialSampler(source)) == list(peer.SequentialSampler(source))


def outcomes(loader) -> list:
    """Return the batches of a loop that goes on after errors, with "error" in their place."""
    iterator = iter(loader)
    found = []
    while len(found) < 100:
        try:
            found.append(next(iterator).tolist())
        except StopIteration:
            assert next(iterator, "over") == "over"
            return found
        except OSError:
            found.append("error")
    raise AssertionError("it does not end")


class BreakingStream(IterableDataset):
    def __iter__(self):
        yield from range(5)
        raise OSError("the line is down")


class StubbornStream(IterableDataset):
    """A stream that goes on after its error."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.position += 1
        if self.position == 4:
            raise OSError("once")
        if self.position > 8:
            raise StopIteration
        return self.position


class FaultySamples(Dataset):
    """Sample i is i, but for one: reading it raises, or ends the process ("die")."""

    def __init__(self, length, at, how="raise"):
        self.length, self.at, self.how = length, at, how

    def __getitem__(self, index):
        if index == self.at and self.how == "die":
            os._exit(3)  # as the system does to a process that takes too much memory
        if index == self.at:
            raise OSError(f"sample {index} cannot be read")
        return index

    def __len__(self):
        return self.length


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_after_an_error_the_next_batch_comes(workers, shuffle):
    found = []
    for kind in (DataLoader, peer.DataLoader):
        dataset = FaultySamples(23, 5)
        loader = kind(dataset, 4, shuffle, num_workers=workers, generator=seeded(3))
        found.append([outcomes(loader), outcomes(loader)])
    assert found[0] == found[1]
    assert all(len(batches) == 6 and "error" in batches for batches in found[0])


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("stream", [BreakingStream, StubbornStream])
def test_after_an_error_a_stream_is_torch_s(workers, stream):
    found = [
        outcomes(kind(stream(), 2, num_workers=workers))
        for kind in (DataLoader, peer.DataLoader)
    ]
    assert found[0] == found[1] and "error" in found[0]


class Picky(Exception):
    def __init__(self, first, second):
        super().__init__(first, second)


class Raises(Dataset):
    def __init__(self, error):
        self.error = error

    def __getitem__(self, index):
        raise self.error

    def __len__(self):
        return 2


@pytest.mark.parametrize(
    "error", [KeyError("k"), UnicodeDecodeError("utf8", b"x", 0, 1, "?"), Picky(1, 2),
              StopIteration(), FileNotFoundError(2, "no", "name"), ValueError("v")]
)  # fmt: skip
def test_an_error_of_a_worker_is_of_the_raised_type_where_it_can_be(error):
    iterator = iter(DataLoader(Raises(error), num_workers=1))
    for _ in range(2):
        with pytest.raises(WorkerError, match="worker 0 of 1 raised") as caught:
            next(iterator)
        assert type(error).__name__ in str(caught.value)
        if type(error) in (KeyError, FileNotFoundError, ValueError):
            assert isinstance(caught.value, type(error))
    assert next(iterator, None) is None


def test_a_dead_worker_ends_the_loop():
    iterator = iter(DataLoader(FaultySamples(16, 1, "die"), 4, num_workers=2))
    with pytest.raises(WorkerError, match="died"):
        next(iterator)
    assert multiprocessing.active_children() == []
    assert next(iterator, None) is None


def test_what_decides_the_batches_cannot_be_set_later():
    for kind in (DataLoader, peer.DataLoader):
        loader = kind(range(10), batch_size=4)
        for name in ("batch_size", "batch_sampler", "sampler", "drop_last", "dataset"):
            with pytest.raises(ValueError, match=name):
                setattr(loader, name, getattr(loader, name))
    loader = DataLoader(range(10), batch_size=4)
    loader.num_workers = 1  # decides who reads, not what
    assert [len(batch) for batch in loader] == [4, 4, 2]


def test_the_sampler_can_be_asked_for():
    own = list(range(4))
    assert DataLoader(own, sampler=own).sampler is own
    assert isinstance(DataLoader(own).sampler, SequentialSampler)
    assert isinstance(DataLoader(own, shuffle=True).sampler, RandomSampler)
    assert DataLoader(own, 2).batch_sampler.sampler.data_source is own


@pytest.mark.parametrize("workers", [0, 1])
def test_torch_s_defaults_may_be_written_out(workers):
    settings = dict(
        shuffle=None, sampler=None, batch_sampler=None, num_workers=workers,
        collate_fn=None, pin_memory=False, drop_last=False, worker_init_fn=None,
        multiprocessing_context=None, generator=None, prefetch_factor=None,
    )  # fmt: skip
    found = [batches_of(kind(range(5), 2, **settings)) for kind in
             (DataLoader, peer.DataLoader)]  # fmt: skip
    assert same(*found)
    positional = (range(5), 2, None, None, None, workers, None, False, True)
    assert same(
        batches_of(DataLoader(*positional)), batches_of(peer.DataLoader(*positional))
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_pinned_memory(workers):
    samples = [{"x": torch.ones(2), "y": (torch.zeros(1), "name")}] * 4
    loader = DataLoader(samples, 2, pin_memory=True, num_workers=workers)
    if torch.accelerator.is_available():
        batches = batches_of(loader)
        assert all(b["x"].is_pinned() and b["y"][0].is_pinned() for b in batches)
        assert batches[0]["y"][1] == ["name", "name"]
    else:  # as PyTorch: a warning, and the same batches
        with pytest.warns(UserWarning, match="without an accelerator"):
            batches = batches_of(loader)
        assert same(batches, batches_of(DataLoader(samples, 2)))


def test_pinning_goes_as_deep_as_the_batch(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    samples = [{"x": 1, "y": (Point(2, "a"), [3.0])}] * 2
    batch = next(iter(DataLoader(samples, 2, pin_memory=True)))
    assert batch["x"].tolist() == [2, 2]
    point, numbers = batch["y"]
    assert point.x.tolist() == [3, 3] and list(point.y) == ["a", "a"]
    assert numbers[0].tolist() == [4.0, 4.0]


# --------------------------------------------------------------------------- workers


@pytest.mark.parametrize("source", ["numpy", "python", "torch", "stored"])
@pytest.mark.parametrize("workers, size", [(1, 4), (2, 4), (3, 5)])
def test_draws_in_workers_are_torch_s(source, workers, size):
    found = []
    for kind in (DataLoader, peer.DataLoader):
        dataset, generator = RandomDraws(22, source), seeded(5)
        loader = kind(
            dataset,
            batch_size=size,
            shuffle=True,
            num_workers=workers,
            generator=generator,
        )
        found.append(batches_of(loader, 2) + [generator.get_state()])
    assert same(*found)


@pytest.mark.parametrize("seed", range(6))
def test_workers_read_what_one_process_reads_in_the_same_order(seed):
    rng = random.Random(seed)
    length = rng.randint(1, 40)
    tensors = torch.randn(length, 3), torch.arange(length)
    settings = dict(
        batch_size=rng.randint(1, length), shuffle=True, prefetch_factor=seed % 3 + 1
    )
    loaders = [
        DataLoader(FastRows(*tensors), num_workers=n, generator=seeded(seed), **settings)
        for n in (0, rng.randint(1, 4))
    ]
    assert same(batches_of(loaders[0]), batches_of(loaders[1]))


def test_workers_are_processes():
    for kind in (DataLoader, peer.DataLoader):
        readers = {
            int(pid) for _, pids in kind(Probe(8), 1, num_workers=2) for pid in pids
        }
        assert len(readers) == 2 and os.getpid() not in readers
        readers = {int(pid) for _, pids in kind(Probe(8), 1) for pid in pids}
        assert readers == {os.getpid()}


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("shard", ["no", "workers"])
def test_streams_in_workers(workers, shard):
    for length in (6, 12):
        own, want = (
            [
                batch.tolist()
                for batch in kind(NumberStream(length, shard), 2, num_workers=workers)
            ]
            for kind in (DataLoader, peer.DataLoader)
        )
        assert own == want
        times = workers if shard == "no" else 1
        assert sorted(sum(own, [])) == sorted(list(range(length)) * times)


def test_a_worker_without_samples_is_no_error():
    got = [
        batch.tolist()
        for batch in DataLoader(NumberStream(2, "workers"), 2, num_workers=3)
    ]
    assert sorted(sum(got, [])) == [0, 1]
    assert len(batches_of(DataLoader(range(3), 2, num_workers=4))) == 2


def test_shards_over_workers_and_processes():
    for workers in (0, 2):
        got = []
        for rank in range(3):
            stream = NumberStream(14, "all", rank, 3)
            got += sum(
                (b.tolist() for b in DataLoader(stream, 2, num_workers=workers)), []
            )
        assert sorted(got) == list(range(14))


def draws_of(kind, generator, **settings):
    loader = kind(
        RandomDraws(16), batch_size=4, num_workers=2, generator=generator, **settings
    )
    return [torch.cat(list(loader)).tolist() for _ in range(2)]


@pytest.mark.parametrize("kind", [DataLoader, peer.DataLoader])
def test_seed_worker_mends_a_stored_generator(kind):
    first, second = draws_of(kind, seeded(0))
    assert len(set(first)) == 8 and first == second  # the trap
    mended = draws_of(kind, seeded(0), worker_init_fn=seed_worker)
    assert len({*mended[0], *mended[1]}) == 32
    assert mended == draws_of(kind, seeded(0), worker_init_fn=seed_worker)
    assert mended != draws_of(kind, seeded(1), worker_init_fn=seed_worker)


class ThreeKinds(Dataset):
    """Draws from a Python, a NumPy and a torch generator that it keeps."""

    def __init__(self):
        self.a, self.b, self.c = random.Random(0), np.random.default_rng(0), seeded(0)

    def __getitem__(self, index):
        values = self.a.random(), self.b.random(), float(torch.rand((), generator=self.c))
        return torch.tensor(values, dtype=torch.float64)

    def __len__(self):
        return 8


class Wrapped(Dataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, index):
        return self.dataset[index]

    def __len__(self):
        return len(self.dataset)


def test_seed_worker_finds_all_kinds_also_inside():
    settings = dict(batch_size=2, num_workers=2)
    if sys.platform == "linux":  # a torch.Generator reaches only forks
        settings["multiprocessing_context"] = "fork"
    for dataset, rows in ((ThreeKinds(), 4), (Wrapped(ThreeKinds()), 4)):
        assert (
            len(torch.cat(batches_of(DataLoader(dataset, **settings))).unique(dim=0))
            == rows
        )
        mended = DataLoader(dataset, worker_init_fn=seed_worker, **settings)
        values = torch.cat(batches_of(mended))
        assert all(len(column.unique()) == 8 for column in values.T)
    with pytest.raises(RuntimeError, match="worker_init_fn"):
        seed_worker(0)


def test_draws_from_seed_epoch_and_index_do_not_depend_on_the_workers():
    found = []
    for workers, stay in ((0, False), (1, True), (2, True), (2, False)):
        dataset = KeyedDraws(12, seed=3)
        loader = peer.DataLoader(
            dataset, 4, num_workers=workers, persistent_workers=stay
        )  # fmt: skip
        found.append([])
        for epoch in range(3):
            dataset.epoch.fill_(epoch)
            found[-1] += torch.cat(list(loader)).tolist()
    assert found[0] == found[1] == found[2] == found[3]
    assert len(set(found[0])) == 36
    assert found[0][:12] != [KeyedDraws(12, seed=4)[i] for i in range(12)]


def test_persistent_workers_change_torch_s_order_from_the_second_epoch_on():
    """The chapter and its recipe say so: the seed of the workers is drawn only once."""
    found = []
    for stay in (False, True):
        loader = peer.DataLoader(
            range(20), shuffle=True, generator=seeded(0), num_workers=1,
            persistent_workers=stay,
        )  # fmt: skip
        found.append([[int(i) for i in loader] for _ in range(2)])
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1]


class WhoAmI(Dataset):
    def __getitem__(self, index):
        info = get_worker_info()
        assert isinstance(info, (WorkerInfo, peer._utils.worker.WorkerInfo))
        return info.id, info.num_workers, info.seed, torch.get_num_threads()

    def __len__(self):
        return 4


def test_worker_info_is_torch_s():
    assert get_worker_info() is None
    found = [
        [
            torch.stack(b).tolist()
            for b in kind(WhoAmI(), 1, num_workers=2, generator=seeded(1))
        ]
        for kind in (DataLoader, peer.DataLoader)
    ]
    assert found[0] == found[1]
    assert [row[0] for row in found[0]] == [[0], [1], [0], [1]]


def test_spawned_workers_too():
    loader = DataLoader(
        RandomDraws(8), 2, num_workers=1, generator=seeded(0), worker_init_fn=seed_worker,
        multiprocessing_context="spawn",
    )  # fmt: skip
    forked = DataLoader(
        RandomDraws(8), 2, num_workers=1, generator=seeded(0), worker_init_fn=seed_worker
    )
    assert same(batches_of(loader), batches_of(forked))


@forked_only
def test_large_batches_pass_also_where_nobody_reads():
    data = torch.randn(64, 20_000)
    loader = DataLoader(Rows(data), 8, num_workers=2, prefetch_factor=4)
    assert torch.equal(torch.cat([batch[0] for batch in loader]), data)
    for batch in loader:  # a break in the middle must not hang on a full pipe
        assert batch[0].shape == (8, 20_000)
        break
    plain = DataLoader(
        Rows(data), 8, num_workers=2, collate_fn=lambda s: [r[0].tolist() for r in s]
    )
    for rows in plain:
        assert len(rows) == 8
        break
    pairs = zip(loader, DataLoader(Rows(data), 8, num_workers=2), strict=True)
    assert all(torch.equal(a[0], b[0]) for a, b in pairs)  # two sets of workers at once


@forked_only
def test_workers_run_ahead_but_not_further():
    """Worker 0 reads batches 0, 2, 4...: with a factor of 2 it waits before the third."""
    counter = multiprocessing.Value("i", 0)

    class Counting(Dataset):
        def __getitem__(self, index):
            with counter.get_lock():
                counter.value += 1
            return index

        def __len__(self):
            return 40

    iterator = iter(DataLoader(Counting(), 1, num_workers=2, prefetch_factor=2))
    taken = 0
    for _ in range(5):
        next(iterator)
        taken += 1
        assert taken <= counter.value <= taken + 2 * 2
    iterator.close()


ABANDONED = """
import os, signal
from dlcourse.data_loading import DataLoader, SlowSamples
if __name__ == "__main__":
    batches = iter(DataLoader(SlowSamples(1000, wait=0.01), 4, num_workers=3))
    next(batches)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@forked_only
def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "abandoned.py"
    script.write_text(ABANDONED)
    # The workers hold the far end of this pipe: it is at its end when the last of them is
    # gone.
    here, there = os.pipe()
    parent = warm.start(
        [sys.executable, str(script)],
        environment(),
        imports=IMPORTED,
        stdin=subprocess.DEVNULL,
        stdout=there,
    )
    os.close(there)
    with open(here, "rb") as pipe:
        try:
            assert select.select([pipe], [], [], 60)[0] and pipe.read() == b""
        finally:
            parent.kill()
    parent.wait(60)
    assert parent.returncode == -signal.SIGKILL


# --------------------------------------------------------------------------- errors


def test_a_dead_worker_is_named_with_its_samples():
    loader = DataLoader(FaultySamples(16, 9, "die"), 4, num_workers=2)
    words = "worker 0 of 2 died with exit code 3 while it read"
    with pytest.raises(WorkerError, match=words) as error:
        batches_of(loader)
    assert "[8, 9, 10, 11]" in str(error.value) and "num_workers=0" in str(error.value)


@forked_only
def test_an_error_in_a_worker_brings_its_traceback():
    loader = DataLoader(FaultySamples(16, 5), 4, num_workers=2)
    with pytest.raises(WorkerError, match="worker 1 of 2 raised.*4, 5, 6, 7") as error:
        batches_of(loader)
    assert "OSError: sample 5 cannot be read" in str(error.value)
    with pytest.raises(OSError, match="sample 5"):
        batches_of(DataLoader(FaultySamples(16, 5), 4))

    def fails(worker):
        raise RuntimeError("no such disk")

    with pytest.raises(WorkerError, match="no such disk"):
        batches_of(DataLoader(range(4), num_workers=1, worker_init_fn=fails))


def test_the_garbage_collector_may_close_the_pipes_before_it_ends_the_pass(monkeypatch):
    unraisable: list = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    pipes: list = []  # before the ring, so the collector reaches what is in it first
    ring: list = [iter(DataLoader(range(16), 4, num_workers=2))]
    ring.append(ring)
    next(ring[0])
    pipes += [worker.pipe for worker in ring[0].crew]
    gc.collect()  # from now on they come before the pass
    del pipes, ring
    gc.collect()
    assert multiprocessing.active_children() == []
    assert unraisable == []


@forked_only
def test_a_batch_that_cannot_be_sent_is_an_error():
    loader = DataLoader(
        range(4), num_workers=1, collate_fn=lambda samples: lambda: samples
    )
    with pytest.raises(WorkerError, match="[Pp]ickle"):
        batches_of(loader)


def test_what_cannot_be_spawned_says_so():
    class Local(Probe):
        pass

    loader = DataLoader(Local(4), num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(WorkerError, match="define them in a module"):
        batches_of(loader)


def test_empty_datasets():
    for make in (
        lambda: DataLoader([]),
        lambda: RandomSampler([]),
        lambda: BucketSampler([], 4),
        lambda: shard_indices(0, 0, 1),
        lambda: TensorLoader(torch.zeros(0, 3)),
    ):
        with pytest.raises(ValueError, match="the dataset is empty: check"):
            make()
    for workers in (0, 2):
        for loader in (
            DataLoader(NumberStream(0), 2, num_workers=workers),
            DataLoader(NumberStream(2), 4, drop_last=True, num_workers=workers),
            DataLoader(range(3), batch_sampler=[], num_workers=workers),
        ):
            with pytest.raises(ValueError, match="no batch came"):
                batches_of(loader)


def test_a_batch_larger_than_the_data():
    for make in (
        lambda: DataLoader(range(10), 64),
        lambda: DataLoader(range(10), 64, drop_last=True),
        lambda: TensorLoader(torch.zeros(10), batch_size=64),
    ):
        with pytest.raises(
            ValueError, match="larger than the 10 samples: use at most 10"
        ):
            make()


def test_ragged_samples_without_padding():
    ragged = [torch.ones(3), torch.ones(5)]
    with pytest.raises(ValueError, match="pass collate_fn=pad_collate"):
        batches_of(DataLoader(ragged, 2))
    with pytest.raises(WorkerError, match="pass collate_fn=pad_collate"):
        batches_of(DataLoader(ragged, 2, num_workers=1))
    padded, lengths = batches_of(DataLoader(ragged, 2, collate_fn=pad_collate))[0]
    assert padded.shape == (2, 5) and lengths.tolist() == [3, 5]


def test_settings_that_do_not_go_together():
    stream = NumberStream(4)
    for settings in (dict(shuffle=True), dict(sampler=[0]), dict(batch_sampler=[[0]])):
        with pytest.raises(ValueError, match="a stream has no numbers"):
            DataLoader(stream, **settings)
    for settings in (dict(batch_size=2), dict(shuffle=True), dict(drop_last=True)):
        with pytest.raises(ValueError, match="batch_sampler decides"):
            DataLoader(range(4), batch_sampler=[[0]], **settings)
    with pytest.raises(ValueError, match="sampler decides the order"):
        DataLoader(range(4), sampler=[0], shuffle=True)
    with pytest.raises(ValueError, match="sampler decides the order"):
        DataLoader(range(4), sampler=[0], batch_sampler=[[0]])
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="batch_size=.*whole number"):
            DataLoader(range(4), bad)
        with pytest.raises(ValueError, match="whole number"):
            DataLoader(range(4), prefetch_factor=bad)
        with pytest.raises(ValueError, match="whole number"):
            RandomSampler(range(4), num_samples=bad)
        with pytest.raises(ValueError, match="pool"):
            BucketSampler([1, 2], 1, pool=bad)
        with pytest.raises(ValueError, match="depth"):
            prefetch([], depth=bad)
    for bad in (-1, 1.5, True):
        with pytest.raises(ValueError, match="num_workers"):
            DataLoader(range(4), num_workers=bad)
    for rank in (-1, 2):
        with pytest.raises(ValueError, match="from 0 to 1"):
            shard_indices(4, rank, 2)
    with pytest.raises(ValueError, match='"pad", "drop" or "keep"'):
        shard_indices(4, 0, 2, uneven="cut")
    for tensors in ((), (torch.zeros(2), torch.zeros(3))):
        with pytest.raises(ValueError, match="equally many"):
            TensorLoader(*tensors)


def test_a_dataset_must_say_what_it_holds():
    with pytest.raises(NotImplementedError, match="define Dataset.__getitem__"):
        Dataset()[0]
    with pytest.raises(NotImplementedError, match="define Dataset.__len__"):
        len(Dataset())
    with pytest.raises(NotImplementedError, match="define IterableDataset.__iter__"):
        iter(IterableDataset())


# --------------------------------------------------------------------------- ahead of time


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_prefetch_reads_so_far_ahead_and_no_further(depth):
    drawn = []

    def source():
        for number in range(30):
            drawn.append(number)
            yield number

    got, moved = [], threading.Event()
    for number in prefetch(source(), depth, transform=lambda n: 10 * n):
        moved.wait(0.002)
        got.append(number)
        assert len(drawn) <= len(got) + depth
    assert got == list(range(0, 300, 10))


def test_prefetch_reads_while_the_caller_works():
    third = threading.Event()

    def source():
        yield 1
        yield 2
        third.set()
        yield 3

    batches = prefetch(source(), depth=2)
    assert next(batches) == 1
    assert third.wait(10)  # read without having been asked for
    assert list(batches) == [2, 3]


def test_prefetch_ends_with_the_loop_and_passes_errors_on():
    def source():
        yield 1
        raise OSError("disk gone")

    batches = prefetch(source())
    assert next(batches) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(batches)
    endless = prefetch(iter(int, 1), depth=3)
    assert next(endless) == 0
    (thread,) = (each for each in threading.enumerate() if each.name == "prefetch")
    assert thread.daemon  # a program that ends does not wait for it
    endless.close()  # the fixture sees that the thread is gone
    assert list(prefetch([])) == []
    loader = DataLoader(SlowSamples(6, wait=0.001, spin=10), 2, num_workers=1)
    assert [batch.tolist() for batch in prefetch(loader)] == [[0, 1], [2, 3], [4, 5]]


def test_transform_of_the_tensor_loader():
    pixels = torch.arange(10, dtype=torch.uint8)
    loader = TensorLoader(pixels, batch_size=5, transform=lambda x: (x.float() / 10,))
    assert torch.equal(torch.cat([x for (x,) in loader]), pixels.float() / 10)


# --------------------------------------------------------------------------- two processes


def in_each_process(length):
    """Runs in each process: what it reads of a stream and of a sampler, with two workers."""
    import os

    from dlcourse.data_loading import DataLoader, NumberStream, shard_indices

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    read = {}
    for shard in ("no", "workers", "all"):
        stream = NumberStream(length, shard, rank, world)
        read[shard] = sum((b.tolist() for b in DataLoader(stream, 2, num_workers=2)), [])
    sampler = shard_indices(length, rank, world, epoch=1)
    loader = DataLoader(range(length), 2, sampler=sampler, num_workers=2)
    read["sampler"] = sum((b.tolist() for b in loader), [])
    return read


def test_two_processes_of_two_workers():
    results = launch(in_each_process, processes=2, args=(10,), timeout=120)
    for name, times in (("no", 4), ("workers", 2), ("all", 1), ("sampler", 1)):
        got = sorted(results[0][name] + results[1][name])
        assert got == sorted(list(range(10)) * times), name


def draws_in_each_process(length):
    """Runs in each process, all seeded alike: draws of a stored generator, in two workers."""
    import torch
    from torch.utils.data import DataLoader

    from dlcourse.data_loading import RandomDraws, seed_worker

    draws = []
    for mended in (False, True):
        torch.manual_seed(0)
        init = seed_worker if mended else None
        loader = DataLoader(RandomDraws(length), 2, num_workers=2, worker_init_fn=init)
        draws.append(torch.cat(list(loader)).tolist())
    return draws


def test_seed_worker_keeps_processes_apart_that_are_seeded_alike():
    first, second = launch(draws_in_each_process, processes=2, args=(8,), timeout=120)
    assert first[0] == second[0]  # the trap
    assert len({*first[1], *second[1]}) == 16


# --------------------------------------------------------------------------- what the chapter prints

CHAPTER = Path(__file__).resolve().parent.parent / "chapters" / "16_data_loading.ipynb"


def cells_of_the_chapter(kind: str) -> list[str]:
    book = json.loads(CHAPTER.read_text(encoding="utf-8"))
    return [
        "".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind
    ]


def fenced(holds: str) -> str:
    """Return the one fenced Python block of the chapter's prose that holds this text."""
    text = "\n".join(cells_of_the_chapter("markdown"))
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if holds in block]
    return found


def write_shards(folder, sizes) -> list[str]:
    paths = [str(folder / f"{number}.txt") for number in range(len(sizes))]
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        lines = [f"{number}.{line}\n" for line in range(size)]
        Path(path).write_text("".join(lines), encoding="utf-8")
    return paths


def sharded_lines_from_its_print():
    """The stream as a reader pastes it: the printed source, and PyTorch's own names."""
    names = {
        "IterableDataset": peer.IterableDataset,
        "get_worker_info": peer.get_worker_info,
        "np": np,
        "torch": torch,
    }
    exec(source_of(ShardedLines), names)
    return names["ShardedLines"]


@pytest.mark.parametrize(
    "kind",
    [ShardedLines, pytest.param(sharded_lines_from_its_print, marks=forked_only)],
    ids=["the package's", "pasted"],
)
def test_sharded_lines(tmp_path, kind):
    kind = kind if isinstance(kind, type) else kind()
    paths = write_shards(tmp_path, [1, 5, 0, 7, 3])
    wanted = sorted(
        f"{n}.{i}" for n, size in enumerate([1, 5, 0, 7, 3]) for i in range(size)
    )
    for world_size, workers in ((1, 2), (3, 0), (2, 2)):
        epochs = []
        for epoch in (0, 1, 0):
            read = []
            for rank in range(world_size):
                stream = kind(paths, 5, rank, world_size, buffer_size=2)
                stream.epoch.fill_(epoch)
                loader = peer.DataLoader(stream, 2, num_workers=workers)
                read += itertools.chain(*loader)
            assert sorted(read) == wanted
            epochs.append(read)
        assert epochs[0] == epochs[2] != epochs[1]


def test_sharded_lines_learn_the_epoch_in_workers_that_stay(tmp_path):
    stream = ShardedLines(write_shards(tmp_path, [4, 4, 4, 4]))
    loader = peer.DataLoader(stream, 2, num_workers=2, persistent_workers=True)
    for epoch in range(3):
        stream.epoch.fill_(epoch)
        fresh = ShardedLines(stream.files)
        fresh.epoch.fill_(epoch)
        assert list(loader) == list(peer.DataLoader(fresh, 2, num_workers=2))


def test_sharded_lines_go_through_a_buffer(tmp_path):
    paths = write_shards(tmp_path, [60])
    assert list(ShardedLines(paths, buffer_size=1)) != [f"0.{i}" for i in range(60)]
    for size in (1, 4, 16):
        read = [int(line[2:]) for line in ShardedLines(paths, buffer_size=size)]
        early = max(number - place for place, number in enumerate(read))
        assert 0 < early <= size
    for settings in ({"rank": 1}, {"buffer_size": 0}):
        with pytest.raises(ValueError, match="give"):
            ShardedLines(paths, **settings)
    with pytest.raises(ValueError, match="no files"):
        ShardedLines([])


def test_shared_epoch_reaches_a_spawned_worker():
    dataset = KeyedDraws(4)
    loader = peer.DataLoader(
        dataset,
        4,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    for epoch in range(2):
        dataset.epoch.fill_(epoch)
        assert next(iter(loader)).tolist() == [dataset[i] for i in range(4)]


class FirstIsSlow(Dataset):
    def __init__(self):
        self.another = multiprocessing.Event()  # has been read, by the other worker

    def __getitem__(self, index):
        if index == 0:
            self.another.wait(60)
            time.sleep(0.5)
        self.another.set()
        return index

    def __len__(self):
        return 4


@forked_only
def test_a_slow_sample_holds_up_all_unless_order_does_not_matter():
    found = [
        [int(i) for i in peer.DataLoader(FirstIsSlow(), 1, num_workers=2, in_order=order)]
        for order in (True, False)
    ]
    assert found[0] == [0, 1, 2, 3]
    assert sorted(found[1]) == [0, 1, 2, 3] and found[1][0] != 0


def test_a_worker_that_hangs_is_an_error_with_a_timeout():
    loader = peer.DataLoader(SlowSamples(1, wait=3.0), num_workers=1, timeout=1)
    with pytest.raises(RuntimeError, match="timed out"):
        next(iter(loader))


@forked_only
def test_short_seed_worker_of_the_chapter():
    names = {"torch": torch, "os": os, "np": np}
    exec(fenced("def seed_worker"), names)
    loader = peer.DataLoader(
        RandomDraws(16), 4, num_workers=2, worker_init_fn=names["seed_worker"]
    )
    assert len({int(i) for _ in range(2) for batch in loader for i in batch}) == 32


def buckets_in_each_process():
    """Runs in each process: the batch sampler under Accelerate, in 12 epochs."""
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from dlcourse.data_loading import BucketSampler

    lengths = torch.randint(1, 50, (75,), generator=torch.Generator().manual_seed(0))
    accelerator = Accelerator(cpu=True)
    found = []
    for drop_last in (True, False):
        buckets = BucketSampler(lengths, 4, pool=3, drop_last=drop_last)
        loader = DataLoader(range(75), batch_sampler=buckets)
        assert len(loader) == len(list(loader))
        prepared = accelerator.prepare(loader)
        found.append([])
        for epoch in range(12):
            buckets.epoch = epoch
            found[-1].append([batch.tolist() for batch in prepared])
    return found


def test_buckets_under_accelerate():
    first, second = launch(buckets_in_each_process, timeout=120)
    for mine, other in zip(first[0], second[0], strict=True):
        assert len(mine) == len(other) == 9
        assert len(set(sum(mine + other, []))) == 72
    assert first[0][0] != first[0][1]
    lost = [
        75 - len(set(sum(mine + other, [])))
        for mine, other in zip(first[1], second[1], strict=True)
    ]
    assert max(lost) > 0  # the trap: why the chapter asks for drop_last


def to_tensors(lines):  # here, where a worker that is no fork finds it
    values = torch.tensor([[float(line)] for line in lines])
    return values, 2 * values


def training_on_a_stream(source, files):
    """Runs in each process: the chapter's loop over a stream that divides itself."""
    import itertools

    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from dlcourse.data_loading import ShardedLines

    class OnTheCPU(Accelerator):
        def __init__(self):
            super().__init__(cpu=True)

    from dlcourse.data_loading import endless

    seen = []

    def note(loader):
        for inputs, targets in endless(loader):
            seen.append([f"{value:.1f}" for value in inputs.flatten().tolist()])
            yield inputs, targets

    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    names = {
        "Accelerator": OnTheCPU, "DataLoader": DataLoader, "ShardedLines": ShardedLines,
        "itertools": itertools, "torch": torch, "to_tensors": to_tensors, "endless": note,
        "loss_fn": torch.nn.functional.mse_loss, "files": files, "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "SEED": 0, "BATCH": 2, "EPOCHS": 3, "WORKERS": 2, "LINES": 4,
    }  # fmt: skip
    exec(source, names)
    return seen, names["model"].module.weight.item()


def test_the_chapters_loop_over_a_stream_takes_equally_many_steps(tmp_path):
    files = write_shards(tmp_path, [4, 4, 4, 4])
    (first, weight), (second, other) = launch(
        training_on_a_stream,
        args=(fenced("stream.epoch.fill_(epoch)"), files),
        timeout=120,
    )
    assert len(first) == len(second) == 12
    assert weight == other
    wanted = sorted(
        str(float(f"{file}.{line}")) for file in range(4) for line in range(4)
    )
    epochs = [sum(first[i : i + 4] + second[i : i + 4], []) for i in (0, 4, 8)]
    for lines in epochs:  # files of equal size, one a reader: each line once
        assert sorted(lines) == wanted
    assert epochs[0] != epochs[1]


def test_endless_begins_again_and_needs_a_batch():
    assert list(itertools.islice(endless([1, 2]), 5)) == [1, 2, 1, 2, 1]
    with pytest.raises(ValueError, match="no full batch"):
        next(endless([]))


def test_steps_with_and_without_a_loader():
    loader = peer.DataLoader(SlowSamples(64, wait=0.01), 2)
    taken = []
    slow, kept = steps_with_and_without(taken.append, loader, steps=4)
    assert slow > 20 > kept
    assert len(taken) == 2 * (1 + 4)
    assert all(torch.equal(batch, taken[5]) for batch in taken[5:])


@pytest.mark.parametrize(("workers", "ahead"), [(0, None), (2, 3)])
def test_no_batch_that_workers_hold_is_in_the_time(workers, ahead):
    """Of a hundred steps, where nothing else is said."""

    class Loader(list):
        num_workers, prefetch_factor = workers, ahead

    seen = []
    steps_with_and_without(seen.append, Loader(range(1000)), steps=5)
    first = 1 + workers * (ahead or 0)
    # the first steps are not timed; then one batch is used again and again
    kept = first + 5
    assert seen == [*range(kept), *[kept] * kept]
    seen.clear()
    steps_with_and_without(seen.append, Loader(range(1000)))
    assert len(seen) == 2 * (first + 100)


def test_equal_sequences_are_packed_in_their_order():
    assert pack_sequences([2] * 40, 2) == [[index] for index in range(40)]
    assert pack_sequences([1, 2] * 20, 3)[0] == [1, 0]


def test_keyed_transform_draws_from_its_key_alone():
    def transform(image):
        return image + torch.randn_like(image)

    image, found = torch.zeros(2, 3), {}
    for key in itertools.product((0, 1), repeat=3):
        torch.manual_seed(0)
        found[key] = keyed_transform(transform, image, *key)
        after = torch.rand(())
        torch.manual_seed(0)
        assert torch.rand(()) == after
        torch.manual_seed(9)
        assert torch.equal(found[key], keyed_transform(transform, image, *key))
    assert len({tuple(noisy.flatten().tolist()) for noisy in found.values()}) == 8


@forked_only
def test_files_of_the_chapter(tmp_path):
    from PIL import Image

    def transform(image):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.float() + torch.rand(())

    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:03d}.jpg")
    names = {"Dataset": peer.Dataset, "Image": Image, "np": np, "torch": torch, "SEED": 0}
    names["keyed_transform"] = keyed_transform
    exec(fenced("class Files"), names)
    paths = sorted(map(str, tmp_path.glob("*.jpg")))
    data = names["Files"](paths, range(8), transform)
    epochs = []
    for workers in (0, 2):
        loader = peer.DataLoader(
            data, 4, num_workers=workers, persistent_workers=workers > 0
        )
        for epoch in (0, 1):
            data.epoch.fill_(epoch)
            images, labels = map(torch.cat, zip(*loader, strict=True))
            assert images.shape == (8, 3, 16, 16) and labels.tolist() == list(range(8))
            epochs.append(images)
    assert torch.equal(epochs[0], epochs[2]) and torch.equal(epochs[1], epochs[3])
    assert not torch.equal(epochs[0], epochs[1])


def prepared_in_each_process():
    """Runs in each process: what Accelerate gives, and what it reads, of nine rows."""
    from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
    from torch.utils.data import DataLoader

    from dlcourse.data_loading import Probe

    accelerator = Accelerator(cpu=True)
    found = []
    for settings in ({"dispatch_batches": True}, {"even_batches": False}):
        accelerator.dataloader_config = DataLoaderConfiguration(**settings)
        probe = Probe(9)
        loader = accelerator.prepare(DataLoader(probe, 2))
        found.append([[numbers.tolist() for numbers, _ in loader], probe.calls])
    accelerator.dataloader_config = DataLoaderConfiguration()
    probe = Probe(9)
    rest = list(skip_first_batches(accelerator.prepare(DataLoader(probe, 2)), 1))
    found.append([len(rest), probe.calls])
    return found


def test_what_the_chapter_says_of_accelerate_s_settings():
    first, second = launch(prepared_in_each_process, timeout=120)
    assert first[0][1] == 9 and second[0][1] == 0  # process 0 reads for both
    assert len(first[0][0]) == len(second[0][0])
    assert len(first[1][0]) == len(second[1][0]) + 1
    assert first[2] == second[2] == [2, 4]  # what is skipped is not read
    assert sorted(sum(first[1][0] + second[1][0], [])) == list(range(9))


def test_what_the_chapter_says_of_distributed_sampler():
    sampler = peer.DistributedSampler(range(20), 2, 0, seed=0)
    first = list(sampler)
    assert list(sampler) == first  # set_epoch is forgotten
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(sampler) == list(peer.DistributedSampler(range(20), 2, 0, seed=1))


# --------------------------------------------------------------------------- exercises

READ_AHEAD, WORKER_RNG, SHARD, PACK = exercises.EXERCISES


def by_deque(batches, depth):
    """Another right answer: a deque and a condition, and an iterator that is no generator."""
    state, held, ended = threading.Condition(), collections.deque(), []

    def fill():
        error = None
        try:
            for batch in batches:
                with state:
                    state.wait_for(lambda: len(held) < depth)
                    held.append(batch)
                    state.notify_all()
        except Exception as caught:
            error = caught
        with state:
            ended.append(error)
            state.notify_all()

    class Ahead:
        def __init__(self):
            threading.Thread(target=fill, daemon=True).start()

        def __iter__(self):
            return self

        def __next__(self):
            with state:
                state.wait_for(lambda: held or ended)
                if held:
                    batch = held.popleft()
                    state.notify_all()
                    return batch
            raise ended[0] or StopIteration

    return Ahead()


@pytest.mark.parametrize(
    "exercise, answer",
    [
        (READ_AHEAD, exercises._read_ahead_by_futures),
        (READ_AHEAD, by_deque),
        (READ_AHEAD, prefetch),
        (WORKER_RNG, exercises._spawned_rng),
        (WORKER_RNG, lambda s, e, w: np.random.Generator(np.random.Philox([w, s, e]))),
        (WORKER_RNG, lambda s, e, w: np.random.default_rng(s * 10**14 + e * 10**7 + w)),
        (SHARD, exercises._shard_worker_first),
        (SHARD, lambda i, r, n, w, m: (x for k, x in enumerate(i) if k % (n * m) == w * n + r)),
        (PACK, exercises._best_fit),
        (PACK, lambda lengths, capacity: tuple(map(np.array, pack_sequences(lengths, capacity)))),
    ],
)  # fmt: skip
def test_other_right_answers_pass(exercise, answer):
    assert exercise.hint_for(answer) is None


def reads_all_first(batches, depth):
    yield from list(batches)


def thread_then_list(batches, depth):
    found = []
    thread = threading.Thread(target=lambda: found.extend(batches))
    thread.start()
    thread.join()
    return found


def twice_the_depth(batches, depth):
    return exercises._solve_read_ahead(batches, 2 * depth + 1)


def error_first(batches, depth):
    """Raises as soon as the thread has failed, before the batches that came earlier."""
    ready, end, errors = queue.Queue(maxsize=depth), object(), []

    def fill():
        try:
            for batch in batches:
                ready.put(batch)
        except Exception as error:
            errors.append(error)
        ready.put(end)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        batch = ready.get()
        time.sleep(0.01)
        if errors:
            raise errors[0]
        if batch is end:
            return
        yield batch


def no_end(batches, depth):
    ready = queue.Queue(maxsize=depth)
    threading.Thread(target=lambda: [ready.put(b) for b in batches], daemon=True).start()
    while True:
        yield ready.get()


def reordered(batches, depth):
    return iter(sorted(batches, key=str))


def swallows_none(batches, depth):
    return (b for b in exercises._solve_read_ahead(batches, depth) if b is not None)


def a_thread_for_each(batches, depth):
    source, end = iter(batches), object()
    with concurrent.futures.ThreadPoolExecutor(depth) as pool:
        for due in [pool.submit(next, source, end) for _ in range(100)]:
            if due.result() is end:
                return
            yield due.result()


@pytest.mark.parametrize(
    "exercise, answer, hint",
    [
        (READ_AHEAD, reads_all_first, "by the caller itself"),
        (READ_AHEAD, thread_then_list, "without bound"),
        (READ_AHEAD, twice_the_depth, "more than depth says"),
        (READ_AHEAD, error_first, "behind the batches"),
        (READ_AHEAD, no_end, "waits for ever"),
        (READ_AHEAD, reordered, "in their order"),
        (READ_AHEAD, swallows_none, "also None"),
        (READ_AHEAD, lambda batches, depth: [], "All must come"),
        (WORKER_RNG, lambda s, e, w: np.random.default_rng([e, w]), "seed must go in"),
        (WORKER_RNG, lambda s, e, w: np.random.default_rng(s ^ e ^ w), "share"),
        (WORKER_RNG, lambda s, e, w: np.random.default_rng(s + 10 * e + w), "share"),
        (WORKER_RNG, lambda s, e, w: np.random.default_rng(s * 10**6 + e * 1000 + w), "share"),
        (WORKER_RNG, lambda s, e, w: np.random.default_rng(sorted([s, e, w])), "share"),
        (WORKER_RNG, lambda s, e, w: np.random.default_rng((s + 1) * (e + 2) * (w + 3)), "share"),
        (SHARD, lambda i, r, n, w, m: itertools.islice(i, r + w, None, n * m), "times"),
        (SHARD, lambda i, r, n, w, m: itertools.islice(i, r * n + w, None, n * m), "times"),
        (SHARD, lambda i, r, n, w, m: [], "reach nobody"),
        (PACK, lambda lengths, capacity: [], "exactly once"),
        (PACK, lambda lengths, capacity: [list(range(len(lengths)))], "more than"),
        (PACK, lambda lengths, capacity: [[0, 1], [2, 3, 4, 5]], "would fit|exactly|more"),
    ],
)  # fmt: skip
def test_other_wrong_answers_get_a_hint(exercise, answer, hint):
    found = exercise.hint_for(answer)
    assert found is not None and re.search(hint, found), found


# --------------------------------------------------------------------------- inside a worker


class Orders:
    """A worker's end of its pipe: hands out orders, and keeps what is sent.

    After the last order the parent is gone, as an end of the file says.
    """

    def __init__(self, *orders, refuses=()):
        self.orders, self.refuses, self.sent = list(orders), list(refuses), []

    def recv(self):
        if not self.orders:
            raise EOFError
        return self.orders.pop(0)

    def send(self, answer):
        if self.refuses:
            raise self.refuses.pop(0)
        self.sent.append(answer)

    def close(self):
        self.sent.append("closed")


@pytest.fixture
def alone(monkeypatch):
    """What a worker changes in its process, put back; what it sets, noted."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    noted = []
    monkeypatch.setattr(crew.signal, "signal", lambda *given: noted.append(given))
    monkeypatch.setattr(torch, "set_num_threads", noted.append)
    monkeypatch.setattr(workers_module, "_worker_info", None)
    yield noted
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def work(pipe, dataset, init=None, batch_size=2, number=1, collate=list):
    """Run a worker's loop here; return its own end, the orders begun, and its info."""
    reader = Reader(dataset, collate, batch_size, False)
    parents, begun = Orders(), SimpleNamespace(value=0)
    info = WorkerInfo(number, 3, 0, None)
    crew._work(pipe, parents, begun, reader, init, info, 100)
    return parents, begun.value, info


def test_a_worker_answers_each_order_and_ends_with_its_parent(alone):
    seen = []
    pipe = Orders((True, [3, 1]), (True, [0]))
    numbers = [10, 11, 12, 13]
    parents, begun, info = work(pipe, numbers, lambda worker: seen.append(worker))
    assert pipe.sent == [("batch", [13, 11]), ("batch", [10])] and begun == 2
    assert parents.sent == ["closed"]  # its copy of the parent's end
    assert seen == [1] and workers_module._worker_info is info
    assert (info.dataset, info.seed, info.num_workers) == (numbers, 101, 3)
    assert torch.initial_seed() == 101
    # Ctrl-C is the parent's, and one thread a worker is enough
    assert alone == [(signal.SIGINT, signal.SIG_IGN), 1]


def test_a_worker_that_is_no_longer_wanted_reads_nothing(alone):
    pipe = Orders((False, None), (True, [0]))
    assert work(pipe, range(4))[1] == 0 and pipe.sent == []
    for error in (BrokenPipeError(), ConnectionResetError()):
        assert work(Orders((True, [0]), refuses=[error]), range(4))[1] == 1


def test_a_worker_goes_on_after_an_error_and_says_where_a_stream_ends(alone):
    class Faulty:
        def __getitem__(self, index):
            raise {0: OSError("disk"), 1: StopIteration("early")}[index]

    pipe = Orders((True, [0]), (True, [1]), (True, [2]))
    assert work(pipe, Faulty())[1] == 3
    (first, second, third) = pipe.sent
    assert first[0] == second[0] == third[0] == "error"
    assert [answer[1][0] for answer in pipe.sent] == [OSError, RuntimeError, KeyError]
    assert "OSError: disk" in first[1][1] and "early" in second[1][1]
    pipe = Orders((True, None), (True, None), (True, None))
    work(pipe, NumberStream(3))
    assert pipe.sent == [("batch", [0, 1]), ("batch", [2]), ("end", None)]


@pytest.mark.parametrize("error", [TypeError, AttributeError, pickle.PicklingError])
def test_a_worker_that_cannot_send_a_batch_sends_why(alone, error):
    pipe = Orders((True, [0]), refuses=[error("no way to send")])
    work(pipe, range(4))
    ((kind, (found, text)),) = pipe.sent
    assert kind == "error" and found is error and "no way to send" in text


def test_a_worker_that_could_not_begin_says_so_and_reads_nothing_before(alone):
    def fails(worker):
        raise OSError("no such disk")

    pipe = Orders((True, [0]))
    work(pipe, range(4), fails)
    kind, (found, text) = pipe.sent[0]
    assert kind == "failed" and found is OSError and "no such disk" in text


def test_an_error_is_told_by_a_type_that_the_parent_knows():
    class Local(Exception):
        pass

    class Ends(StopIteration):
        pass

    for error, kind in (
        (ValueError("why"), ValueError),
        (Local("why"), RuntimeError),
        (StopIteration("why"), RuntimeError),
        (Ends("why"), RuntimeError),
    ):
        try:
            raise error
        except Exception as caught:
            found, text = crew._told(caught)
        assert found is kind and text.rstrip().endswith("why")
        assert text.startswith("Traceback")


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 5])
@pytest.mark.parametrize("worker", [0, 3])
def test_all_generators_of_a_worker_are_seeded_as_torch_does(alone, seed, worker):
    assert workers_module._seed_everything(seed, worker) == seed + worker
    found = random.random(), torch.rand(()), np.random.rand()
    random.seed(seed + worker)
    torch.manual_seed(seed + worker)
    np.random.seed(torch_workers._generate_state(seed, worker))
    assert found == (random.random(), torch.rand(()), np.random.rand())


def stored():
    return SimpleNamespace(
        first=np.random.default_rng(0),
        words="no generator",
        second=random.Random(0),
        dataset=SimpleNamespace(third=torch.Generator(), dataset=None),
    )


def drawn(seed, rank=None):
    """Return what three stored generators draw after `seed_worker`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RANK", raising=False)
        if rank is not None:
            patch.setenv("RANK", str(rank))
        dataset = stored()
        info = WorkerInfo(0, 1, seed, dataset)
        patch.setattr(workers_module, "_worker_info", info)
        seed_worker(0)
    return [
        dataset.first.random(),
        dataset.second.random(),
        torch.rand((), generator=dataset.dataset.third).item(),
    ]


def test_a_stored_generator_draws_by_its_seed_its_place_and_the_rank():
    def words(seed, place, rank):
        return np.random.SeedSequence([seed, place, rank])

    def first_word(*key):
        return int(words(*key).generate_state(1, np.uint64)[0])

    for seed, rank in ((5, 0), (2**64 - 3, 2)):
        want = [
            np.random.default_rng(words(seed, 0, rank)).random(),
            random.Random(first_word(seed, 1, rank)).random(),
            torch.rand((), generator=seeded(first_word(seed, 2, rank) >> 1)).item(),
        ]
        assert drawn(seed, rank) == want
    assert drawn(5) == drawn(5, 0) != drawn(5, 1)
    assert drawn(-3) == drawn(2**64 - 3)


# --------------------------------------------------------------------------- what is left out


def test_settings_left_out_are_those_of_torch():
    loader, theirs = DataLoader(range(6)), peer.DataLoader(range(6))
    for name in ("batch_size", "num_workers", "pin_memory", "drop_last", "generator",
                 "worker_init_fn", "multiprocessing_context"):  # fmt: skip
        assert getattr(loader, name) == getattr(theirs, name), name
    assert loader.prefetch_factor == 2 and isinstance(loader.sampler, SequentialSampler)
    named = DataLoader([0], multiprocessing_context="forkserver")
    assert named.multiprocessing_context == "forkserver"
    sampler = RandomSampler(range(6))
    assert (sampler.replacement, sampler.generator, len(sampler)) == (False, None, 6)
    assert BatchSampler(range(6), 4).drop_last is False
    buckets = BucketSampler([1, 2, 3], 2)
    assert (buckets.pool, buckets.drop_last, buckets.seed) == (50, False, 0)
    rows = TensorLoader(torch.arange(6))
    assert (rows.batch_size, rows.shuffle, rows.drop_last) == (1, False, False)
    assert (rows.transform, rows.generator) == (None, None)
    assert shard_indices(10, 1, 3) == shard_indices(
        10, 1, 3, shuffle=True, seed=0, epoch=0, uneven="pad"
    )
    padded, _ = pad_collate([torch.ones(1), torch.ones(2)])
    assert padded.tolist() == [[1.0, 0.0], [1.0, 1.0]]


def test_the_small_data_sets_left_alone(tmp_path):
    draws = RandomDraws(3)
    assert draws[0] == int(np.random.default_rng(0).integers(2**31)) and len(draws) == 3
    assert RandomDraws(3, seed=5)[0] == int(np.random.default_rng(5).integers(2**31))
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    found = [RandomDraws(3, name)[1] for name in ("torch", "numpy", "python")]
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    assert found == [
        int(torch.randint(2**31, ())),
        int(np.random.randint(2**31)),
        random.randrange(2**31),
    ]
    keyed = KeyedDraws(4)
    assert keyed[2] == int(np.random.default_rng([0, 0, 2]).integers(2**31))
    assert len(keyed) == 4 and int(keyed.epoch) == 0 and keyed.epoch.is_shared()
    assert list(NumberStream(3)) == [0, 1, 2]
    assert list(NumberStream(7, "all", 1, 3)) == [1, 4]
    assert list(NumberStream(4, "workers", 1, 3)) == [0, 1, 2, 3]
    slow = SlowSamples(3)
    assert (slow.wait, slow.spin, slow[2], len(slow)) == (0.0, 0, 2, 3)
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"{number}\n" for number in range(120)))
    lines = ShardedLines([path])
    given = ShardedLines([path], 0, 0, 1, 100)
    assert list(lines) == list(given) and sorted(map(int, lines)) == list(range(120))
    assert lines.epoch.is_shared() and lines.epoch == 0
    assert lines.epoch.dtype == keyed.epoch.dtype == torch.int64
    assert len(list(ShardedLines([path], buffer_size=1))) == 120
    for settings, words in (
        ({"rank": 2, "world_size": 2}, "rank=2: give one from 0 to 1"),
        ({"rank": -1}, "rank=-1: give one from 0 to 0"),
        ({"buffer_size": 0}, "buffer_size=0"),
    ):
        with pytest.raises(ValueError, match=words):
            ShardedLines([path], **settings)


def test_sharded_lines_draw_the_order_alike_and_the_buffer_apart(tmp_path):
    files = []
    for number in range(5):
        files.append(tmp_path / f"{number}.txt")
        files[-1].write_text("".join(f"{number} {line}\n" for line in range(6)))
    for epoch, rank in ((0, 0), (3, 1)):
        lines = ShardedLines(files[::-1], 7, rank, 2, buffer_size=4)
        lines.epoch.fill_(epoch)
        order = np.random.default_rng([7, epoch, 0]).permutation(5)[rank::2]
        draws = np.random.default_rng([7, epoch, 1 + rank])
        held, want = [], []
        for number in order:
            for line in range(6):
                held.append(f"{number} {line}")
                if len(held) == 5:
                    want.append(held.pop(draws.integers(5)))
        draws.shuffle(held)
        assert list(lines) == want + held


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: DataLoader(range(4), 0), "batch_size=0"),
        (lambda: DataLoader(range(4), 5), "batch_size=5 is larger than the 4 samples"),
        (lambda: DataLoader(range(4), prefetch_factor=0), "prefetch_factor=0"),
        (lambda: DataLoader(range(4), num_workers=-1), "num_workers=-1"),
        (lambda: RandomSampler(range(4), num_samples=0), "num_samples=0"),
        (lambda: BatchSampler(range(4), 0), "batch_size=0"),
        (lambda: BucketSampler([1], 0), "batch_size=0"),
        (lambda: BucketSampler([1], 1, pool=1.5), "pool=1.5"),
        (lambda: TensorLoader(torch.zeros(2), batch_size=0), "batch_size=0"),
        (lambda: TensorLoader(torch.zeros(2), torch.zeros(3)), r"with \[2, 3\] rows"),
        (lambda: prefetch([], 0), "depth=0"),
        (lambda: pack_sequences([1], 0), "capacity=0"),
        (lambda: pack_sequences([3, 9], 8), "sequence of 9 does not fit into rows of 8"),
        (lambda: shard_indices(4, 0, 0), "num_replicas=0"),
        (lambda: shard_indices(4, 3, 3), "rank=3: give one from 0 to 2"),
        (lambda: shard_indices(4, -1, 3), "rank=-1"),
        (lambda: shard_indices(4, 0, 3, uneven="cut"), "uneven='cut'"),
    ],
)
def test_errors_name_what_was_given(call, words):
    with pytest.raises(ValueError, match=words):
        call()
    with pytest.raises(TypeError, match="not a str"):
        pad_collate(["words", "more words"])


def test_numbers_at_the_edge_are_taken():
    assert batches_of(DataLoader(range(2), 2))[0].tolist() == [0, 1]
    assert len(batches_of(TensorLoader(torch.zeros(2), batch_size=2))) == 1
    assert list(RandomSampler(range(1), num_samples=1)) == [0]
    assert list(prefetch([5], 1)) == [5] and pack_sequences([3], 3) == [[0]]
    assert shard_indices(1, 0, 1) == [0] and list(BucketSampler([4], 1, 1)) == [[0]]


def test_what_a_dead_worker_read_is_named_by_what_it_had_begun():
    class Gone:
        exitcode, sentinel = -9, None

        def join(self):
            pass

    for begun, received, named in ((1, 0, [1]), (2, 1, [2]), (2, 0, [2]), (0, 0, [1])):
        worker = crew.Worker.__new__(crew.Worker)
        worker.number, worker.of = 1, 2
        worker.pipe, worker.process = Orders(), Gone()
        worker.begun, worker.received = SimpleNamespace(value=begun), received
        worker.ordered = deque([[1], [2], None][received:])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(crew, "wait", lambda ready: [])
            with pytest.raises(WorkerError, match="lack of memory") as error:
                worker.receive()
        text = str(error.value)
        assert "worker 1 of 2 died with exit code -9" in text
        assert f"while it read the samples {named}." in text
    assert crew._named(None) == "its part of the stream"


def test_nothing_sent_by_a_worker_that_died_is_taken_for_a_batch():
    """The end of a pipe, and a pipe that broke, are the death of the worker."""
    for broken in (Orders(), BrokenRead()):
        worker = crew.Worker.__new__(crew.Worker)
        worker.number, worker.of, worker.received = 0, 1, 0
        worker.pipe, worker.ordered = broken, deque([None])
        worker.begun = SimpleNamespace(value=1)
        worker.process = SimpleNamespace(exitcode=-11, sentinel=None, join=int)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(crew, "wait", lambda ready: [ready[0]])
            with pytest.raises(WorkerError, match="native code crashed"):
                worker.receive()


class BrokenRead(Orders):
    def recv(self):
        raise OSError


def test_a_stream_is_divided_among_all_workers_of_all_processes(alone, monkeypatch):
    read = {}
    for worker, rank in itertools.product(range(2), range(3)):
        info = WorkerInfo(worker, 2, 0, None)
        monkeypatch.setattr(workers_module, "_worker_info", info)
        read[rank, worker] = list(NumberStream(20, "all", rank, 3))
        assert list(NumberStream(6, "workers", rank, 3)) == [*range(worker, 6, 2)]
        assert list(NumberStream(3, "no", rank, 3)) == [0, 1, 2]
    for (rank, worker), numbers in read.items():
        assert numbers == list(range(2 * rank + worker, 20, 6))


def a_worker(pipe, **more):
    """Return a worker as its parent sees it, without a process."""
    worker = crew.Worker.__new__(crew.Worker)
    worker.number, worker.of, worker.pipe = 0, 1, pipe
    worker.received, worker.ordered = 0, deque()
    worker.process = SimpleNamespace(sentinel=None, **more)
    return worker


def test_orders_go_out_and_answers_come_in_one_for_one(monkeypatch):
    answers = Orders(("batch", "first"), ("end", None))
    worker = a_worker(answers)
    monkeypatch.setattr(crew, "wait", lambda ready: [ready[0]])
    worker.order([1, 2])
    worker.order(None)
    assert answers.sent == [(True, [1, 2]), (True, None)]
    assert list(worker.ordered) == [[1, 2], None]
    assert worker.receive() == ("batch", "first")
    assert (worker.received, list(worker.ordered)) == (1, [None])
    assert worker.receive() == ("end", None) and worker.received == 2
    worker.release()  # the worker is told, and its pipe is closed
    assert answers.sent[2:] == [(False, None), "closed"]
    worker.pipe = Orders(refuses=[OSError("it has died")])
    worker.order([3])  # `receive` will say so


def test_a_stream_goes_on_where_one_worker_has_nothing_more(monkeypatch):
    monkeypatch.setattr(crew, "wait", lambda ready: [ready[0]])
    empty, full = a_worker(Orders()), a_worker(Orders())
    empty.pipe.orders = [("end", None)]
    full.pipe.orders = [("batch", 1), ("batch", 2), ("batch", 3), ("end", None)]
    one_pass = loader_module._FromWorkers.__new__(loader_module._FromWorkers)
    one_pass.pin, one_pass.came, one_pass.crew = False, False, []
    one_pass.orders, one_pass.due = itertools.repeat(None), deque()
    for worker in (empty, full, empty, full):
        one_pass._order_from(worker)
    assert list(one_pass) == [1, 2, 3]


def test_a_worker_that_could_not_begin_raises_what_it_raised(monkeypatch):
    monkeypatch.setattr(crew, "wait", lambda ready: [ready[0]])
    for kind in (OSError, WorkerError):
        worker = a_worker(Orders(("failed", (OSError, "no such disk"))))
        with pytest.raises(kind, match="worker 0 of 1 could not begin:\nno such disk"):
            worker.receive()


def test_a_pass_of_errors_alone_ends_as_any_other():
    class Faulty(Dataset):
        def __getitem__(self, index):
            raise OSError(f"sample {index}")

        def __len__(self):
            return 2

    batches = iter(DataLoader(Faulty()))
    for index in range(2):
        with pytest.raises(OSError, match=f"sample {index}"):
            next(batches)
    assert next(batches, "end") == "end"


def test_a_worker_in_the_middle_of_a_sample_is_killed():
    for exitcode, want in ((0, [0.5]), (None, [0.5, "killed", None])):
        done = []
        process = SimpleNamespace(
            exitcode=exitcode,
            join=lambda seconds=None, done=done: done.append(seconds),
            kill=lambda done=done: done.append("killed"),
        )
        worker = a_worker(Orders())
        worker.process = process
        worker.end()
        assert done == want


def test_a_reader_asks_for_a_whole_batch_where_it_can():
    class Batched:
        asked = []

        def __getitems__(self, indices):
            self.asked.append(indices)
            return [10 * index for index in indices]

    reader = Reader(Batched(), list, 2, False)
    assert reader.read([1, 3]) == [10, 30] and Batched.asked == [[1, 3]]
    for drop_last, ends in ((False, [[0, 1], [2]]), (True, [[0, 1]])):
        reader = Reader(range(3), list, 2, drop_last)
        found = []
        with contextlib.suppress(StopIteration):
            while True:
                found.append(reader.read(None))
        assert found == ends


@pytest.mark.skipif(torch.accelerator.is_available(), reason="here memory is pinned")
def test_the_warning_of_memory_not_pinned_points_to_the_line_of_the_loop():
    with pytest.warns(UserWarning, match="without an accelerator") as found:
        iter(DataLoader(range(2), pin_memory=True))
    assert [warning.filename for warning in found] == [__file__]
