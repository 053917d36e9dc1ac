"""Exercises of chapter 16, data loading: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import queue
import threading
import time
from unittest import mock

import numpy as np

from dlcourse.lab.exercises import Exercise, Hint, Wrong, expect

PATIENCE = 3.0  # seconds until an answer that waits counts as waiting for ever


def _within_time(work, hint: str):
    """Return work(), run in a thread that is given up, with the hint, if it hangs."""
    outcome: queue.Queue = queue.Queue()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except Exception as error:  # the reader's, to be raised here
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = outcome.get(timeout=PATIENCE)
    except queue.Empty:
        raise Hint(hint) from None
    if error is not None:
        raise error
    return result


class _Source:
    """Yields numbers, and knows how many were read and by which threads."""

    def __init__(self, items, error_at: int | None = None) -> None:
        self.items, self.error_at = list(items), error_at
        self.read, self.threads = 0, set()

    def __iter__(self):
        for place, item in enumerate(self.items):
            self.threads.add(threading.get_ident())
            if place == self.error_at:
                raise OSError("the disk is gone")
            self.read += 1
            yield item

    def settle(self, wanted: int) -> None:
        """Wait until `wanted` are read, at most a second, and then until no more come."""
        until = time.monotonic() + 1.0
        while self.read < wanted and time.monotonic() < until:
            time.sleep(0.001)
        before = -1
        while before != self.read:
            before = self.read
            time.sleep(0.02)


def _check_read_ahead(answer) -> None:
    never_ends = (
        "It waits for ever. When the thread has nothing more to give, it must say so, and the "
        "caller must understand it."
    )
    for items in ([10, 11, 12, 13, 14], [0, None, False, "", 5], []):
        for depth in (1, 3):
            got = _within_time(lambda: list(answer(list(items), depth)), never_ends)  # noqa: B023
            expect(
                got == items,
                f"From the batches {items} came {got}. All must come, in their order, and a batch "
                "may be anything, also None: mark the end with an object of your own and "
                "compare with `is`.",
            )
    for depth in (1, 4, 2):
        _within_time(lambda: _count_ahead(answer, depth), never_ends)  # noqa: B023
    _check_error(answer)
    _check_odd_batches(answer, never_ends)


def _check_odd_batches(answer, never_ends: str) -> None:
    odd = [KeyError("a batch"), mock.ANY, 7]  # ANY is equal to everything

    def collect() -> list:
        got = []
        try:
            for item in answer(list(odd), 2):
                got.append(item)
        except KeyError:
            got.append("an error")
        return got

    got = _within_time(collect, never_ends)
    expect(
        len(got) == len(odd) and all(a is b for a, b in zip(got, odd, strict=True)),
        f"From the batches {odd} came {got}. A batch may be anything, also an exception that "
        "nobody raised, or an object equal to everything. Hand over pairs, such as (batch, "
        "error), or compare with `is`.",
    )


def _count_ahead(answer, depth: int) -> None:
    source = _Source(range(14))
    for taken, _ in enumerate(answer(source, depth), start=1):
        if taken > 4:
            continue
        source.settle(taken + depth)
        ahead = source.read - taken
        expect(
            threading.get_ident() not in source.threads,
            "The batches are read by the caller itself, so nothing is read while it trains. "
            "Read them in a thread.",
        )
        expect(
            ahead <= depth + 1,
            f"With depth={depth} the thread was {ahead} batches ahead: it reads on without "
            "bound, or holds more than depth says. A queue has a maxsize.",
        )
        expect(
            ahead >= depth,
            f"With depth={depth} and a caller that takes its time, only {ahead} batches were "
            "read ahead. Let the thread go on until depth of them wait.",
        )
    expect(len(source.threads) == 1, "One thread alone should read.")


def _check_error(answer) -> None:
    for at in (0, 3):
        source = _Source(range(6), error_at=at)
        got = []

        def consume(source=source, got=got) -> str:
            try:
                for item in answer(source, 2):
                    got.append(item)
                    time.sleep(0.05)  # meanwhile the thread comes to the error
            except OSError:
                return "raised"
            except Exception as error:
                if "the disk is gone" not in str(error):
                    raise  # a mistake of the answer's own
                return type(error).__name__
            return "ended"

        hook = threading.excepthook
        threading.excepthook = lambda details: None  # no traceback under the cell
        try:
            how = _within_time(
                consume,
                "The source raised an OSError, and the caller waits for ever: the thread died "
                "with the error, and nobody puts anything any more. Catch it in the thread and "
                "hand it over.",
            )
        finally:
            threading.excepthook = hook
        expect(
            how in ("raised", "ended"),
            f"The source raised an OSError, and the caller got a {how}. Raise the error itself.",
        )
        expect(
            how == "raised",
            "The source raised an OSError, and the loop ended as if all batches had come. Hand "
            "the error over, and raise it in the caller.",
        )
        expect(
            got == list(range(at)),
            f"The source raised after {at} batches, and the caller got {len(got)} of them: the "
            "error belongs behind the batches that were read before it.",
        )


def _solve_read_ahead(batches, depth):
    ready = queue.Queue(maxsize=depth)
    end = object()

    def fill():
        try:
            for batch in batches:
                ready.put((batch, None))
            ready.put((end, None))
        except Exception as error:
            ready.put((end, error))

    threading.Thread(target=fill, daemon=True).start()
    while True:
        batch, error = ready.get()
        if error is not None:
            raise error
        if batch is end:
            return
        yield batch


def _unbounded(batches, depth):
    ready = queue.Queue()

    def fill():
        for batch in batches:
            ready.put(batch)
        ready.put(None)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := ready.get()) is not None:
        yield batch


def _own_mark_unbounded(batches, depth):
    ready, end = queue.Queue(), object()

    def fill():
        for batch in batches:
            ready.put(batch)
        ready.put(end)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := ready.get()) is not end:
        yield batch


def _forgets_errors(batches, depth):
    ready, end = queue.Queue(maxsize=depth), object()

    def fill():
        for batch in batches:
            ready.put(batch)
        ready.put(end)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := ready.get()) is not end:
        yield batch


def _ends_in_silence(batches, depth):
    ready, end = queue.Queue(maxsize=depth), object()

    def fill():
        try:
            for batch in batches:
                ready.put(batch)
        finally:
            ready.put(end)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := ready.get()) is not end:
        yield batch


def _no_thread(batches, depth):
    yield from batches


def _depth_one_always(batches, depth):
    return _solve_read_ahead(batches, 1)


def _read_ahead_by_futures(batches, depth):
    """Another right answer: one thread of a pool, and `depth` calls of next in advance."""
    source, end = iter(batches), object()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        due = collections.deque(pool.submit(next, source, end) for _ in range(depth))
        while True:
            batch = due.popleft().result()
            if batch is end:
                return
            due.append(pool.submit(next, source, end))
            yield batch


# numbers that sums, products and digits written side by side confuse
SMALL: tuple[int, ...] = (0, 1, 2, 3, 7, 10)
LARGE: tuple[int, ...] = (100, 256, 1000, 1024, 10_000, 65_536, 1_000_000)
PLACES: tuple[int, ...] = SMALL + LARGE


def _check_rng(answer) -> None:
    def draws(*place):
        return tuple(int(value) for value in answer(*place).integers(2**62, size=4))

    table = {place: draws(*place) for place in itertools.product(SMALL, repeat=3)}
    for place in ((0, 0, 0), (7, 2, 1), (10, 3, 10)):
        expect(
            table[place] == draws(*place) == draws(*place),
            "The same seed, epoch and worker drew other numbers the second time: a run cannot "
            "be repeated. Build a new generator from the three numbers alone.",
        )
    expect(
        table[7, 2, 0] != table[7, 2, 1],
        "Two workers of the same epoch draw the same numbers: one seed for all of them is not "
        "enough, the worker's number must go in.",
    )
    expect(
        table[7, 0, 1] != table[7, 1, 1],
        "The second epoch repeats the first: the epoch must go in too.",
    )
    expect(
        table[7, 2, 1] != table[10, 2, 1],
        "Another seed must give other numbers: the seed must go in too.",
    )
    _expect_apart(table)  # a mistake shows first in small numbers
    places = list(itertools.product(PLACES, repeat=3))
    _expect_apart({place: draws(*place) for place in places})
    seeds = [getattr(answer(*place).bit_generator, "seed_seq", None) for place in places]
    expect(
        not all(_has_32_bits(seed) for seed in seeds),
        "Your seeds have 32 bits at most. Of about 100,000 triples, two are likely to get the "
        "same one, and with it the same stream. A SeedSequence takes a list of numbers and "
        "keeps them apart.",
    )


def _has_32_bits(seed) -> bool:
    """Tell whether a SeedSequence was made of one number below 2**32 and nothing else."""
    entropy, key = getattr(seed, "entropy", None), getattr(seed, "spawn_key", None)
    return bool(isinstance(entropy, (int, np.integer)) and entropy < 2**32 and key == ())


def _expect_apart(table: dict[tuple, tuple]) -> None:
    owner: dict[int, tuple] = {}
    for place, values in table.items():
        for value in values:
            other = owner.setdefault(value, place)
            expect(
                other == place,
                f"(seed, epoch, worker) = {other} and {place} share a stream. In a sum, a product or "
                "digits side by side, one number can pass for another, and in too few bits there "
                "is no room for all. A SeedSequence takes a list of numbers and keeps them apart.",
            )


def _solve_rng(seed, epoch, worker):
    return np.random.default_rng([seed, epoch, worker])


def _spawned_rng(seed, epoch, worker):
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch, worker)))


def _one_seed(seed, epoch, worker):
    return np.random.default_rng([seed, epoch])


def _no_epoch(seed, epoch, worker):
    return np.random.default_rng([seed, worker])


def _sum_of_seeds(seed, epoch, worker):
    return np.random.default_rng(seed + 2 * epoch + worker)


def _weighted_sum(seed, epoch, worker):
    return np.random.default_rng(seed + 1_000 * epoch + 1_000_000 * worker)


def _digits(seed, epoch, worker):
    return np.random.default_rng(int(f"{seed}{epoch}{worker}"))


def _entropy(seed, epoch, worker):
    return np.random.default_rng()


class _Watched:
    """An endless or long stream that does not let itself be read to the end."""

    def __init__(self, most: int) -> None:
        self.position, self.most = 0, most

    def __iter__(self):
        return self

    def __next__(self):
        expect(
            self.position < self.most,
            f"It read {self.most} items before it gave its first three: an endless stream would "
            "fill the memory. Take the items as they come.",
        )
        self.position += 1
        return self.position - 1


def _check_shard(answer) -> None:
    for length, replicas, workers in ((8, 1, 2), (11, 2, 2), (3, 2, 3), (13, 3, 1)):
        items = [f"item {i}" for i in range(length)]
        readers = list(itertools.product(range(replicas), range(workers)))
        parts = [
            list(answer(iter(items), rank, replicas, worker, workers))
            for rank, worker in readers
        ]
        _check_parts(items, parts, replicas, workers)
    first = list(itertools.islice(answer(_Watched(100), 1, 2, 1, 2), 3))
    expect(len(first) == 3, "An endless stream must go on giving items to each reader.")


def _check_parts(items, parts, replicas: int, workers: int) -> None:
    got = sorted(itertools.chain(*parts))
    length, copies = len(items), collections.Counter(got)
    case = f"{length} items, {replicas} processes of {workers} workers"
    expect(
        not all(part == items for part in parts),
        f"{case}: every worker reads everything, so each item comes {len(parts)} times. "
        "Workers do not split a stream by themselves.",
    )
    expect(
        replicas == 1 or set(copies.values()) != {replicas} or len(copies) < length,
        f"{case}: each item comes {replicas} times. The workers of a process split the items, but "
        "each process reads them all. Count the processes too.",
    )
    expect(
        max(copies.values(), default=1) == 1,
        f"{case}: some items come {max(copies.values(), default=1)} times. Every item needs "
        "one reader.",
    )
    expect(
        got == sorted(items),
        f"{case}: {length - len(copies)} items reach nobody. Every item needs one reader.",
    )
    sizes = [len(part) for part in parts]
    expect(
        max(sizes) - min(sizes) <= 1,
        f"{case}: the readers get {sizes} items: differ by one at most.",
    )


def _solve_shard(items, rank, num_replicas, worker, num_workers):
    reader, readers = rank * num_workers + worker, num_replicas * num_workers
    return itertools.islice(items, reader, None, readers)


def _shard_worker_first(items, rank, num_replicas, worker, num_workers):
    for place, item in enumerate(items):
        if place % num_workers == worker and place // num_workers % num_replicas == rank:
            yield item


def _everybody_reads_all(items, rank, num_replicas, worker, num_workers):
    return items


def _workers_only(items, rank, num_replicas, worker, num_workers):
    return itertools.islice(items, worker, None, num_workers)


def _processes_only(items, rank, num_replicas, worker, num_workers):
    return itertools.islice(items, rank, None, num_replicas)


def _rest_is_lost(items, rank, num_replicas, worker, num_workers):
    items = list(items)
    size = len(items) // (num_replicas * num_workers)
    start = (rank * num_workers + worker) * size
    return items[start : start + size]


def _from_a_list(items, rank, num_replicas, worker, num_workers):
    return list(items)[rank * num_workers + worker :: num_replicas * num_workers]


def _check_pack(answer) -> None:
    cases = [
        ([5, 5, 4, 3, 2, 1], 10),
        ([7], 8),
        ([4, 4], 8),
        ([1] * 9, 4),
        ([3, 3, 3], 3),
    ]
    rng = np.random.default_rng(0)
    for capacity in (16, 100, 33):
        for count in (25, 120):
            lengths = rng.exponential(capacity / 5, count).clip(1, capacity)
            cases.append((lengths.astype(int).tolist(), capacity))
    for lengths, capacity in cases:
        rows = [[int(index) for index in row] for row in answer(list(lengths), capacity)]
        short = f"{len(lengths)} sequences, rows of {capacity}"
        found = sorted(itertools.chain(*rows))
        expect(
            found == list(range(len(lengths))),
            f"{short}: each index from 0 to {len(lengths) - 1} must come exactly once, and your "
            f"rows hold {found}. (Rows hold indices, not lengths.)",
        )
        sums = [sum(lengths[index] for index in row) for row in rows]
        expect(
            max(sums) <= capacity,
            f"{short}: one row holds {max(sums)} tokens, more than its capacity.",
        )
        lowest = sorted(sums)[:2]
        expect(
            len(sums) < 2 or sum(lowest) > capacity,
            f"{short}: two of your {len(sums)} rows hold {lowest} tokens, so they would fit into "
            "one. Look at all open rows, not only at the last one, and fill them to the brim.",
        )


def _solve_pack(lengths, capacity):
    rows, room = [], []
    for index, length in enumerate(lengths):
        for row in range(len(rows)):
            if length <= room[row]:
                rows[row].append(index)
                room[row] -= length
                break
        else:
            rows.append([index])
            room.append(capacity - length)
    return rows


def _best_fit(lengths, capacity):
    rows, room = [], []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [row for row, free in enumerate(room) if free >= lengths[index]]
        if not fitting:
            rows.append([])
            room.append(capacity)
            fitting = [len(rows) - 1]
        row = min(fitting, key=lambda row: room[row])
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def _one_each(lengths, capacity):
    return [[index] for index in range(len(lengths))]


def _next_fit(lengths, capacity):
    rows, free = [], 0
    for index, length in enumerate(lengths):
        if length > free:
            rows.append([])
            free = capacity
        rows[-1].append(index)
        free -= length
    return rows


def _too_full(lengths, capacity):
    rows, total = [[]], 0
    for index, length in enumerate(lengths):
        if total >= capacity:
            rows.append([])
            total = 0
        rows[-1].append(index)
        total += length
    return rows


def _lengths_not_indices(lengths, capacity):
    return [[lengths[index] for index in row] for row in _solve_pack(lengths, capacity)]


EXERCISES = (
    Exercise(
        "Write read_ahead(batches, depth), which yields what `batches` yields, in the same order, "
        "read by one thread while the caller works. The thread goes on until `depth` batches "
        "wait, and is never more than depth + 1 ahead (one may be in its hand). A batch may be "
        "anything, also None. If `batches` raises, the caller gets the batches before it, "
        "and then the error.",
        _check_read_ahead,
        _solve_read_ahead,
        {
            "the loop as it stands": Wrong(_unbounded, "also None"),
            "a queue without a bound": Wrong(_own_mark_unbounded, "maxsize"),
            "the thread dies": Wrong(_forgets_errors, "waits for ever"),
            "the error is lost": Wrong(_ends_in_silence, "as if all batches had come"),
            "no thread at all": Wrong(_no_thread, "by the caller itself"),
            "depth is not used": Wrong(_depth_one_always, "only"),
        },
    ),
    Exercise(
        "Write worker_rng(seed, epoch, worker): return a new NumPy Generator for one worker in one "
        "epoch. The same triple of numbers from 0 to 1,000,000 gives the same draws again. Two "
        "different triples give independent streams: their first draws (62 bits each) differ.",
        _check_rng,
        _solve_rng,
        {
            "one seed suffices": Wrong(_one_seed, "one seed for all"),
            "the epoch does not matter": Wrong(_no_epoch, "second epoch repeats"),
            "add the numbers up": Wrong(_sum_of_seeds, "share a stream"),
            "far enough apart": Wrong(_weighted_sum, "share a stream"),
            "digits side by side": Wrong(_digits, "share a stream"),
            "fresh entropy": Wrong(_entropy, "cannot be repeated"),
        },
    ),
    Exercise(
        "Write shard(items, rank, num_replicas, worker, num_workers): items is an iterator, the "
        "same for every reader, and perhaps endless. Return (or yield) those that worker number "
        "`worker` of process number `rank` reads, so that all readers of all processes together "
        "read each item once, with numbers that differ by one at most.",
        _check_shard,
        _solve_shard,
        {
            "workers split automatically": Wrong(_everybody_reads_all, "by themselves"),
            "processes are forgotten": Wrong(_workers_only, "Count the processes"),
            "workers are forgotten": Wrong(_processes_only, "by themselves"),
            "the rest is lost": Wrong(_rest_is_lost, "reach nobody"),
            "the whole stream in a list": Wrong(_from_a_list, "as they come"),
        },
    ),
    Exercise(
        "Write pack(lengths, capacity): put sequences together into rows of at most `capacity` "
        "tokens. Return a list of rows, each a list of indices into `lengths`, so that each "
        "sequence is in one row, whole, and no two rows would fit into one. (No sequence is "
        "longer than the capacity.)",
        _check_pack,
        _solve_pack,
        {
            "a row for each": Wrong(_one_each, "would fit into one"),
            "only the last row": Wrong(_next_fit, "Look at all open rows"),
            "until it is full": Wrong(_too_full, "more than its capacity"),
            "lengths instead of indices": Wrong(_lengths_not_indices, "not lengths"),
        },
    ),
)
