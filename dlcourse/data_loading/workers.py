"""Random numbers in worker processes."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.utils.data


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
    state: without this, all workers draw the same numbers, and again in each epoch. The
    rank of the process (`RANK`, as torchrun and Accelerate set it) is part of the seed.
    Datasets that wrap another in an attribute `dataset` are followed.

    A dataset that keeps a torch.Generator can only be handed to forks: where workers start
    otherwise, as from Python 3.14 on, PyTorch (issue 146828) ends with "unable to resize
    file". There pass multiprocessing_context="fork", or keep NumPy's.

    Raises RuntimeError outside a worker.

    Invariants: no two workers, epochs or processes draw alike; the same generator of the
    loader gives the same draws again.
    """
    info = get_worker_info()
    if info is None:
        raise RuntimeError("seed_worker runs in a worker: pass it as worker_init_fn")
    rank = int(os.environ.get("RANK", 0))  # processes may be seeded alike
    dataset, number = info.dataset, 0
    while dataset is not None:
        for name, value in list(getattr(dataset, "__dict__", {}).items()):
            source = np.random.SeedSequence([info.seed % 2**64, number, rank])
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


def keyed_transform(transform, image, seed, epoch, index):
    """Return transform(image) with torch's global draws made from (seed, epoch, index).

    For transforms that take no generator, such as torchvision's; those that draw from
    Python's or NumPy's generator are not reached.

    Invariant: the state of torch's generators is the same before and after.
    """
    words = np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[]):  # the state is put back at the end
        # of the CPU alone: torch.manual_seed would also seed the GPU, and so the dropout
        torch.default_generator.manual_seed(int(words[0]))
        return transform(image)
