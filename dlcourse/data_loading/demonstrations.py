"""Small data sets that the chapter, the tests and the benchmark show things on.

They stand here, and not in a notebook, because a worker that is spawned (macOS, Windows)
must be able to import them.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.utils.data

from dlcourse.data_loading.datasets import Dataset, IterableDataset
from dlcourse.data_loading.workers import get_worker_info


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


class KeyedDraws(Dataset):
    """Sample i is a random int in [0, 2**31), drawn from (seed, epoch, i) and nothing else.

    `epoch` lies in shared memory, so that workers that stay see it change.
    """

    def __init__(self, length: int, seed: int = 0) -> None:
        self.length, self.seed = length, seed
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def __getitem__(self, index: int) -> int:
        rng = np.random.default_rng([self.seed, int(self.epoch), index])
        return int(rng.integers(2**31))

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
        self.length, self.shard = length, shard
        self.rank, self.num_replicas = rank, num_replicas

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if self.shard == "no":
            worker, workers = 0, 1
        if self.shard == "all":
            worker, workers = self.rank * workers + worker, self.num_replicas * workers
        yield from range(worker, self.length, workers)


class ShardedLines(IterableDataset):
    """The lines of text files as a stream, shuffled anew in each epoch, each read once.

    The files (shards), sorted, come in an order of seed and epoch, alike for all readers;
    each reader takes every readers-th file, and gives its lines through a buffer of
    `buffer_size` lines, always one of them at random. A reader is a worker of a process;
    rank and world_size say which process this is and of how many. `epoch` lies in shared
    memory: fill it before each pass. With fewer files than readers some read nothing.

    Raises ValueError for no files, a rank out of range or a buffer below 1.
    """

    def __init__(self, files, seed=0, rank=0, world_size=1, buffer_size=100):
        if not len(files):
            raise ValueError("no files: check the folder and the pattern")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}: give one from 0 to {world_size - 1}")
        if buffer_size < 1:
            raise ValueError(f"buffer_size={buffer_size}: give at least 1")
        self.files, self.seed = sorted(files), seed
        self.rank, self.world_size = rank, world_size
        self.buffer_size = buffer_size
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def __iter__(self):
        info = get_worker_info()  # None where there are no workers
        worker = info.id if info else 0
        workers = info.num_workers if info else 1
        reader = self.rank * workers + worker  # from 0 to readers - 1
        readers = self.world_size * workers

        # the order is the same for all readers, the buffer's draws are not
        keys = [self.seed, int(self.epoch)]
        order = np.random.default_rng([*keys, 0]).permutation(len(self.files))
        draws = np.random.default_rng([*keys, 1 + reader])

        held = []
        for number in order[reader::readers]:
            with open(self.files[number], encoding="utf-8") as lines:
                for line in lines:
                    held.append(line.rstrip("\n"))
                    if len(held) > self.buffer_size:
                        yield held.pop(draws.integers(len(held)))
        draws.shuffle(held)
        yield from held


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
