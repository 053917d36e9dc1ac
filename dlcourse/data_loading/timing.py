"""Is the loader the bottleneck? Steps with it, and with one batch that is kept."""

from __future__ import annotations

import itertools
import time

import torch


def endless(loader):
    """Yield the batches of `loader`, pass after pass, for ever.

    Raises ValueError where a pass has no batch.
    """
    while True:
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise ValueError("no full batch in this process: give it more files")


def milliseconds_a_step(train_step, batches, steps, first):
    """Return the mean time of train_step(batch) over `steps` batches, after `first` others.

    The GPU, if there is one, is waited for before each reading of the clock.
    """
    for batch in itertools.islice(batches, first):
        train_step(batch)  # workers and kernels start here
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # its work is only queued when a call returns

    start = time.perf_counter()
    for batch in itertools.islice(batches, steps):
        train_step(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start) / steps


def steps_with_and_without(train_step, loader, steps=100):
    """Return the milliseconds of a step with `loader`, and with one batch of it that is
    kept and used again. The difference is what the loader costs.

    Give many more steps than batches that workers hold (num_workers * prefetch_factor):
    those were read during the first, slow steps, and their reading is not seen.
    """
    first = 1 + loader.num_workers * (loader.prefetch_factor or 0)
    batches = endless(loader)
    with_loader = milliseconds_a_step(train_step, batches, steps, first)
    kept = itertools.repeat(next(batches))
    return with_loader, milliseconds_a_step(train_step, kept, steps, first)
