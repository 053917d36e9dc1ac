"""Exercises of chapter 16, data loading: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.utils.data

from dlcourse.lab.exercises import Exercise, Wrong, expect


def _check_rng(answer) -> None:
    seed, epochs, workers = 7, 3, 2

    def draws(epoch, worker, seed=seed):
        return tuple(int(x) for x in answer(seed, epoch, worker).integers(2**31, size=8))

    table = {(e, w): draws(e, w) for e in range(epochs) for w in range(workers)}
    expect(
        table == {place: draws(*place) for place in table},
        "The same seed, epoch and worker drew other numbers the second time: a run cannot be "
        "repeated. Build the generator from the three numbers alone.",
    )
    distinct = len({*table[0, 0], *table[0, 1]})
    expect(
        distinct == 16,
        f"Two workers drew {distinct} distinct numbers out of 16: one seed for all of them is not "
        "enough, the worker's number must go in.",
    )
    expect(
        table[0, 0] != table[1, 0],
        "The second epoch repeats the first: the epoch must go in too.",
    )
    expect(
        len(set(table.values())) == len(table),
        "Two pairs of epoch and worker share a stream: a sum of the two cannot tell 0 + 1 from "
        "1 + 0. A SeedSequence takes a list of numbers and keeps them apart.",
    )
    expect(draws(0, 0, seed=8) != table[0, 0], "Another seed must give other numbers.")


def _solve_rng(seed, epoch, worker):
    return np.random.default_rng([seed, epoch, worker])


def _one_seed(seed, epoch, worker):
    return np.random.default_rng(seed)


def _no_epoch(seed, epoch, worker):
    return np.random.default_rng([seed, worker])


def _sum_of_seeds(seed, epoch, worker):
    return np.random.default_rng(seed + epoch + worker)


def _entropy(seed, epoch, worker):
    return np.random.default_rng()


def _check_shard(answer) -> None:
    for length, replicas, workers in ((8, 1, 2), (11, 2, 2), (3, 2, 3), (13, 3, 1)):
        items = [f"item {i}" for i in range(length)]
        parts = [
            list(answer(iter(items), rank, replicas, worker, workers))
            for rank in range(replicas)
            for worker in range(workers)
        ]
        got = sorted(itertools.chain(*parts))
        case = f"{length} items, {replicas} processes of {workers} workers"
        expect(
            not all(part == items for part in parts),
            f"{case}: every worker reads everything, so each item comes {len(parts)} times. "
            "Workers do not split a stream by themselves.",
        )
        expect(
            len(got) <= length or len(set(got)) < len(got) == length * replicas,
            f"{case}: {len(got)} items came instead of {length}, some of them repeatedly.",
        )
        expect(
            len(got) != length * replicas or replicas == 1,
            f"{case}: the workers of a process split the items, but each process reads them all. "
            "Count the processes too.",
        )
        expect(
            got == sorted(items),
            f"{case}: {length - len(set(got))} items reach nobody. Every item needs one reader.",
        )
        sizes = [len(part) for part in parts]
        expect(
            max(sizes) - min(sizes) <= 1,
            f"{case}: the readers get {sizes} items: differ by one at most.",
        )


def _solve_shard(items, rank, num_replicas, worker, num_workers):
    reader, readers = rank * num_workers + worker, num_replicas * num_workers
    return itertools.islice(items, reader, None, readers)


def _everybody_reads_all(items, rank, num_replicas, worker, num_workers):
    return items


def _workers_only(items, rank, num_replicas, worker, num_workers):
    return itertools.islice(items, worker, None, num_workers)


def _rest_is_lost(items, rank, num_replicas, worker, num_workers):
    items = list(items)
    size = len(items) // (num_replicas * num_workers)
    start = (rank * num_workers + worker) * size
    return items[start : start + size]


def _check_order(answer) -> None:
    for length, seed in ((10, 0), (33, 5)):
        got = [int(index) for index in answer(length, seed)]
        generator = torch.Generator().manual_seed(seed)
        plain = torch.randperm(length, generator=generator).tolist()
        loader = torch.utils.data.DataLoader(
            range(length), shuffle=True, generator=torch.Generator().manual_seed(seed)
        )
        want = [int(batch) for batch in loader]
        expect(
            got != plain,
            "This is the generator's first permutation. The loader has drawn one int64 before "
            "it, the seed of its workers, even if it has none.",
        )
        expect(
            sorted(got) == list(range(length)),
            f"Give each index below {length} exactly once.",
        )
        expect(
            got == want, f"For seed {seed} the order begins {want[:5]}, yours {got[:5]}."
        )


def _solve_order(length, seed):
    generator = torch.Generator().manual_seed(seed)
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    return torch.randperm(length, generator=generator).tolist()


def _plain_order(length, seed):
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()


def _with_replacement(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(length, (length,), generator=generator).tolist()


EXERCISES = (
    Exercise(
        "Write worker_rng(seed, epoch, worker): return a NumPy generator for one worker in one "
        "epoch. Two workers that draw 8 numbers each draw 16 distinct ones, epochs differ, and the "
        "same three numbers give the same draws again.",
        _check_rng,
        _solve_rng,
        {
            "one seed suffices": Wrong(_one_seed, "one seed for all"),
            "the epoch does not matter": Wrong(_no_epoch, "second epoch repeats"),
            "add the numbers up": Wrong(_sum_of_seeds, "share a stream"),
            "fresh entropy": Wrong(_entropy, "cannot be repeated"),
        },
    ),
    Exercise(
        "Write shard(items, rank, num_replicas, worker, num_workers): items is an iterator of "
        "unknown length, the same for every reader. Return those that this worker of this process "
        "reads, so that all readers together read each item once, with sizes that differ by one "
        "at most.",
        _check_shard,
        _solve_shard,
        {
            "workers split automatically": Wrong(_everybody_reads_all, "by themselves"),
            "processes are forgotten": Wrong(_workers_only, "Count the processes"),
            "the rest is lost": Wrong(_rest_is_lost, "reach nobody"),
        },
    ),
    Exercise(
        "Write first_order(length, seed): the order in which PyTorch's DataLoader reads `length` "
        "samples in its first epoch with shuffle=True and a generator seeded with `seed`, as a "
        "list, without a loader.",
        _check_order,
        _solve_order,
        {
            "the first permutation": Wrong(_plain_order, "one int64"),
            "draws with replacement": Wrong(_with_replacement, "exactly once"),
        },
    ),
)
