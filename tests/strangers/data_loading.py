"""Answers to the exercises of chapter 16, from the words of the questions alone."""

import bisect
import collections
import concurrent.futures
import functools
import hashlib
import itertools
import queue
import random
import threading
import zlib
from multiprocessing.pool import ThreadPool

import numpy as np
import torch

# --- Exercise 0: read_ahead(batches, depth) ------------------------------------------


def read_ahead_pairs(batches, depth):
    ready = queue.Queue(maxsize=depth)

    def fill():
        try:
            for batch in batches:
                ready.put(("batch", batch))
        except BaseException as error:
            ready.put(("error", error))
        else:
            ready.put(("end", None))

    threading.Thread(target=fill, daemon=True).start()
    while True:
        kind, value = ready.get()
        if kind == "end":
            return
        if kind == "error":
            raise value
        yield value


def read_ahead_sentinel(batches, depth):
    end, errors, ready = object(), [], queue.Queue(depth)

    def fill():
        try:
            for batch in batches:
                ready.put(batch)
        except BaseException as error:
            errors.append(error)
        finally:
            ready.put(end)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := ready.get()) is not end:
        yield batch
    for error in errors:
        raise error


def read_ahead_condition(batches, depth):
    waiting, state = collections.deque(), {"done": False, "error": None}
    changed = threading.Condition()

    def fill():
        try:
            for batch in batches:
                with changed:
                    changed.wait_for(lambda: len(waiting) < depth)
                    waiting.append(batch)
                    changed.notify_all()
        except BaseException as error:
            state["error"] = error
        with changed:
            state["done"] = True
            changed.notify_all()

    threading.Thread(target=fill, daemon=True).start()
    while True:
        with changed:
            changed.wait_for(lambda: waiting or state["done"])
            if not waiting:
                break
            batch = waiting.popleft()
            changed.notify_all()
        yield batch
    if state["error"] is not None:
        raise state["error"]


def read_ahead_semaphore(batches, depth):
    # never reads before there is a place: at most `depth` ahead
    places, ready = threading.Semaphore(depth), queue.SimpleQueue()

    def fill():
        iterator = iter(batches)
        while True:
            places.acquire()
            try:
                item = (next(iterator),)
            except StopIteration:
                ready.put(())
                return
            except BaseException as error:
                ready.put(error)
                return
            ready.put(item)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        item = ready.get()
        if isinstance(item, BaseException):
            raise item
        if not item:
            return
        places.release()
        yield item[0]


class ReadAhead:
    """An iterator of its own, and no generator: its thread starts at the call."""

    def __init__(self, batches, depth):
        self.ready = queue.Queue(maxsize=depth)
        self.finished = False
        threading.Thread(target=self.fill, args=(batches,), daemon=True).start()

    def fill(self, batches):
        error = None
        try:
            for batch in batches:
                self.ready.put((True, batch))
        except BaseException as caught:
            error = caught
        self.ready.put((False, error))

    def __iter__(self):
        return self

    def __next__(self):
        if self.finished:
            raise StopIteration
        good, value = self.ready.get()
        if good:
            return value
        self.finished = True
        raise StopIteration if value is None else value


def read_ahead_executor(batches, depth):
    iterator, end = iter(batches), object()
    state = {"over": False}

    def read():
        if state["over"]:
            return end
        try:
            return next(iterator)
        except StopIteration:
            state["over"] = True
            return end
        except BaseException:
            state["over"] = True
            raise

    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        futures = collections.deque(pool.submit(read) for _ in range(depth))
        while True:
            batch = futures.popleft().result()
            if batch is end:
                return
            futures.append(pool.submit(read))
            yield batch


def read_ahead_closures(batches, depth):
    # the queue holds functions that return or raise
    ready = queue.Queue(maxsize=depth)

    def throw(error):
        raise error

    def fill():
        try:
            for batch in batches:
                ready.put(functools.partial(lambda value: value, batch))
        except BaseException as error:
            ready.put(functools.partial(throw, error))
            return
        ready.put(None)

    threading.Thread(target=fill, daemon=True).start()
    while (get := ready.get()) is not None:
        yield get()


def read_ahead_ring(batches, depth):
    # a ring of `depth` places, with two semaphores
    ring, free, full = [None] * depth, threading.Semaphore(depth), threading.Semaphore(0)
    last = {}

    def fill():
        count = 0
        try:
            for batch in batches:
                free.acquire()
                ring[count % depth] = batch
                count += 1
                full.release()
        except BaseException as error:
            last["error"] = error
        last["count"] = count
        full.release()

    threading.Thread(target=fill, daemon=True).start()
    for position in itertools.count():
        full.acquire()
        if last.get("count") == position:
            break
        batch = ring[position % depth]
        ring[position % depth] = None
        free.release()
        yield batch
    if "error" in last:
        raise last["error"]


def read_ahead_unbounded(batches, depth):
    ready, end = queue.Queue(), object()

    def fill():
        try:
            for batch in batches:
                ready.put((batch, None))
            ready.put((end, None))
        except BaseException as error:
            ready.put((end, error))

    threading.Thread(target=fill, daemon=True).start()
    while True:
        batch, error = ready.get()
        if batch is end:
            if error is not None:
                raise error
            return
        yield batch


def read_ahead_none_ends(batches, depth):
    ready = queue.Queue(maxsize=depth)
    errors = []

    def fill():
        try:
            for batch in batches:
                ready.put(batch)
        except BaseException as error:
            errors.append(error)
        ready.put(None)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := ready.get()) is not None:
        yield batch
    if errors:
        raise errors[0]


def read_ahead_falsy_ends(batches, depth):
    ready = queue.Queue(maxsize=depth)
    errors = []

    def fill():
        try:
            for batch in batches:
                ready.put(batch)
        except BaseException as error:
            errors.append(error)
        ready.put(False)

    threading.Thread(target=fill, daemon=True).start()
    while batch := ready.get():
        yield batch
    if errors:
        raise errors[0]


def read_ahead_error_lost(batches, depth):
    ready, end = queue.Queue(maxsize=depth), object()

    def fill():
        try:
            for batch in batches:
                ready.put(batch)
        except BaseException:
            pass
        ready.put(end)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := ready.get()) is not end:
        yield batch


def read_ahead_waits_for_ever(batches, depth):
    ready, end = queue.Queue(maxsize=depth), object()

    def fill():
        for batch in batches:
            ready.put(batch)
        ready.put(end)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := ready.get()) is not end:
        yield batch


def read_ahead_error_first(batches, depth):
    ready, end, errors = queue.Queue(maxsize=depth), object(), []

    def fill():
        try:
            for batch in batches:
                ready.put(batch)
        except BaseException as error:
            errors.append(error)
        ready.put(end)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        if errors:
            raise errors[0]
        batch = ready.get()
        if batch is end:
            if errors:
                raise errors[0]
            return
        yield batch


def read_ahead_all_at_once(batches, depth):
    box = {}

    def fill():
        box["all"] = []
        try:
            for batch in batches:
                box["all"].append(batch)
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
    yield from box["all"]
    if "error" in box:
        raise box["error"]


def read_ahead_no_thread(batches, depth):
    waiting = collections.deque()
    for batch in batches:
        waiting.append(batch)
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


def read_ahead_only_yields(batches, depth):
    yield from batches


def read_ahead_one_too_many(batches, depth):
    ready, end = queue.Queue(maxsize=depth + 1), object()

    def fill():
        try:
            for batch in batches:
                ready.put((batch, None))
            ready.put((end, None))
        except BaseException as error:
            ready.put((end, error))

    threading.Thread(target=fill, daemon=True).start()
    while True:
        batch, error = ready.get()
        if error is not None:
            raise error
        if batch is end:
            return
        yield batch


def read_ahead_depth_less_one(batches, depth):
    # Queue(0) has no bound, so depth = 1 reads everything
    ready, end = queue.Queue(maxsize=depth - 1), object()

    def fill():
        try:
            for batch in batches:
                ready.put((batch, None))
            ready.put((end, None))
        except BaseException as error:
            ready.put((end, error))

    threading.Thread(target=fill, daemon=True).start()
    while True:
        batch, error = ready.get()
        if error is not None:
            raise error
        if batch is end:
            return
        yield batch


def read_ahead_always_one(batches, depth):
    ready, end = queue.Queue(maxsize=1), object()

    def fill():
        try:
            for batch in batches:
                ready.put((batch, None))
            ready.put((end, None))
        except BaseException as error:
            ready.put((end, error))

    threading.Thread(target=fill, daemon=True).start()
    while True:
        batch, error = ready.get()
        if error is not None:
            raise error
        if batch is end:
            return
        yield batch


def read_ahead_yields_error(batches, depth):
    ready, end = queue.Queue(maxsize=depth), object()

    def fill():
        try:
            for batch in batches:
                ready.put(batch)
        except BaseException as error:
            ready.put(error)
        ready.put(end)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := ready.get()) is not end:
        yield batch


def read_ahead_raises_batches(batches, depth):
    ready, end = queue.Queue(maxsize=depth), object()

    def fill():
        try:
            for batch in batches:
                ready.put(batch)
        except BaseException as error:
            ready.put(error)
        ready.put(end)

    threading.Thread(target=fill, daemon=True).start()
    while (batch := ready.get()) is not end:
        if isinstance(batch, BaseException):
            raise batch
        yield batch


def read_ahead_other_error(batches, depth):
    ready, end = queue.Queue(maxsize=depth), object()

    def fill():
        try:
            for batch in batches:
                ready.put((batch, None))
            ready.put((end, None))
        except BaseException as error:
            ready.put((end, str(error)))

    threading.Thread(target=fill, daemon=True).start()
    while True:
        batch, message = ready.get()
        if message is not None:
            raise RuntimeError(message)
        if batch is end:
            return
        yield batch


def read_ahead_compares_end(batches, depth):
    # a batch may be equal to the mark, and == on a tensor is no bool
    ready, errors = queue.Queue(maxsize=depth), []

    def fill():
        try:
            for batch in batches:
                ready.put(batch)
        except BaseException as error:
            errors.append(error)
        ready.put("end")

    threading.Thread(target=fill, daemon=True).start()
    while True:
        batch = ready.get()
        if batch == "end":
            break
        yield batch
    if errors:
        raise errors[0]


def read_ahead_reversed(batches, depth):
    ready, end = queue.LifoQueue(maxsize=depth), object()
    over, errors = threading.Event(), []

    def fill():
        try:
            for batch in batches:
                ready.put(batch)
        except BaseException as error:
            errors.append(error)
        over.set()

    threading.Thread(target=fill, daemon=True).start()
    while not (over.is_set() and ready.empty()):
        try:
            batch = ready.get(timeout=0.05)
        except queue.Empty:
            batch = end
        if batch is not end:
            yield batch
    if errors:
        raise errors[0]


def read_ahead_imap(batches, depth):
    # imap's own thread reads its whole input, whatever the caller does
    pool = ThreadPool(1)
    yield from pool.imap(lambda batch: batch, batches)


def read_ahead_on_demand(batches, depth):
    # the thread reads when the caller asks, and not while the caller works
    iterator, end = iter(batches), object()
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        while (batch := pool.submit(next, iterator, end).result()) is not end:
            yield batch


def read_ahead_in_chunks(batches, depth):
    # the thread reads a chunk only when the chunk before it is used up
    iterator = iter(batches)
    while True:
        chunk, errors = [], []

        def fill(chunk=chunk, errors=errors):
            try:
                chunk.extend(itertools.islice(iterator, depth))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=fill, daemon=True)
        thread.start()
        thread.join()
        yield from chunk
        if errors:
            raise errors[0]
        if not chunk:
            return


def read_ahead_thread_for_each(batches, depth):
    batches = list(batches)
    results = {}

    def read(i):
        results[i] = batches[i]

    for i in range(len(batches)):
        thread = threading.Thread(target=read, args=(i,))
        thread.start()
        thread.join()
        yield results[i]


# --- Exercise 1: worker_rng(seed, epoch, worker) -------------------------------------


def worker_rng_list(seed, epoch, worker):
    return np.random.default_rng([seed, epoch, worker])


def worker_rng_spawn_key(seed, epoch, worker):
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch, worker)))


def worker_rng_one_number(seed, epoch, worker):
    base = 1_000_001
    return np.random.default_rng((seed * base + epoch) * base + worker)


def worker_rng_sha(seed, epoch, worker):
    digest = hashlib.sha256(f"{seed}/{epoch}/{worker}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def worker_rng_philox(seed, epoch, worker):
    return np.random.Generator(np.random.Philox(key=[seed, epoch * 2**32 + worker]))


def worker_rng_mersenne(seed, epoch, worker):
    sequence = np.random.SeedSequence((worker, epoch, seed))
    return np.random.Generator(np.random.MT19937(sequence))


def worker_rng_shifts(seed, epoch, worker):
    return np.random.default_rng(seed << 40 | epoch << 20 | worker)


worker_rng_sfc = lambda *triple: np.random.Generator(  # noqa: E731
    np.random.SFC64(np.random.SeedSequence(list(triple)))
)


class WorkerRng:
    def __call__(self, seed, epoch, worker):
        return np.random.default_rng(np.array([seed, epoch, worker], dtype=np.uint32))


def worker_rng_sum(seed, epoch, worker):
    return np.random.default_rng(seed + epoch + worker)


def worker_rng_seed_plus_worker(seed, epoch, worker):
    return np.random.default_rng((seed + worker, epoch))


def worker_rng_no_epoch(seed, epoch, worker):
    return np.random.default_rng((seed, worker))


def worker_rng_no_worker(seed, epoch, worker):
    return np.random.default_rng([seed, epoch])


def worker_rng_thousands(seed, epoch, worker):
    return np.random.default_rng(seed * 1_000_000 + epoch * 1_000 + worker)


def worker_rng_base_too_small(seed, epoch, worker):
    return np.random.default_rng((seed * 1_000_000 + epoch) * 1_000_000 + worker)


def worker_rng_glued_digits(seed, epoch, worker):
    return np.random.default_rng(int(f"{seed}{epoch}{worker}"))


@functools.cache
def worker_rng_cached(seed, epoch, worker):
    return np.random.default_rng([seed, epoch, worker])


def worker_rng_legacy(seed, epoch, worker):
    return np.random.RandomState([seed, epoch, worker])


def worker_rng_fresh(seed, epoch, worker):
    return np.random.default_rng()


def worker_rng_exclusive_or(seed, epoch, worker):
    return np.random.default_rng(seed ^ (epoch << 8) ^ (worker << 16))


def worker_rng_sorted(seed, epoch, worker):
    return np.random.default_rng(sorted([seed, epoch, worker]))


def worker_rng_product(seed, epoch, worker):
    return np.random.default_rng((seed + 1) * (epoch + 1) * (worker + 1))


def worker_rng_crc(seed, epoch, worker):
    # 32 bits are too few for 10**18 triples
    return np.random.default_rng(zlib.crc32(f"{seed}-{epoch}-{worker}".encode()))


def worker_rng_sixteen_bits(seed, epoch, worker):
    words = np.array([seed, epoch, worker]).astype(np.uint16)
    return np.random.default_rng(words)


def worker_rng_torch(seed, epoch, worker):
    number = (seed * 1_000_001 + epoch) * 1_000_001 + worker
    return torch.Generator().manual_seed(number % 2**63)


def worker_rng_epoch_spawns(seed, epoch, worker):
    return np.random.default_rng(
        np.random.SeedSequence(seed + epoch).spawn(worker + 1)[-1]
    )


def worker_rng_skips(seed, epoch, worker):
    # one stream for all workers, read from different places: they overlap
    rng = np.random.default_rng([seed, epoch])
    rng.random(worker % 1000)
    return rng


def worker_rng_global(seed, epoch, worker):
    np.random.seed((seed + 31 * epoch + 997 * worker) % 2**32)
    return np.random.default_rng(np.random.randint(2**31))


# --- Exercise 2: shard(items, rank, num_replicas, worker, num_workers) ---------------


def shard_islice(items, rank, num_replicas, worker, num_workers):
    first = rank * num_workers + worker
    return itertools.islice(items, first, None, num_replicas * num_workers)


def shard_other_numbering(items, rank, num_replicas, worker, num_workers):
    reader, readers = worker * num_replicas + rank, num_workers * num_replicas
    for i, item in enumerate(items):
        if i % readers == reader:
            yield item


def shard_nested(items, rank, num_replicas, worker, num_workers):
    of_process = itertools.islice(items, rank, None, num_replicas)
    yield from itertools.islice(of_process, worker, None, num_workers)


def shard_cycle(items, rank, num_replicas, worker, num_workers):
    readers = itertools.product(range(num_replicas), range(num_workers))
    turns = itertools.cycle(readers)
    # the turn is drawn second, so that no item is lost
    return (item for item, turn in zip(items, turns) if turn == (rank, worker))  # noqa: B905


def shard_next(items, rank, num_replicas, worker, num_workers):
    items, end = iter(items), object()
    for turn in itertools.cycle(range(num_replicas * num_workers)):
        item = next(items, end)
        if item is end:
            return
        if divmod(turn, num_workers) == (rank, worker):
            yield item


def shard_rounds(items, rank, num_replicas, worker, num_workers):
    # a round is one item for each reader; the last round may be short
    reader, readers = rank + worker * num_replicas, num_replicas * num_workers
    iterator = iter(items)
    while one_round := list(itertools.islice(iterator, readers)):
        yield from one_round[reader : reader + 1]


class Shard:
    def __call__(self, items, rank, num_replicas, worker, num_workers):
        pattern = [False] * (num_replicas * num_workers)
        pattern[rank * num_workers + worker] = True
        return itertools.compress(items, itertools.cycle(pattern))


def shard_backwards(items, rank, num_replicas, worker, num_workers):
    # the last reader takes the first item
    first = num_replicas * num_workers - 1 - (rank * num_workers + worker)
    return map(
        lambda pair: pair[1],
        filter(
            lambda pair: pair[0] % (num_replicas * num_workers) == first, enumerate(items)
        ),
    )


def shard_list(items, rank, num_replicas, worker, num_workers):
    return list(items)[rank * num_workers + worker :: num_replicas * num_workers]


def shard_rank_only(items, rank, num_replicas, worker, num_workers):
    return itertools.islice(items, rank, None, num_replicas)


def shard_worker_only(items, rank, num_replicas, worker, num_workers):
    return itertools.islice(items, worker, None, num_workers)


def shard_both_conditions(items, rank, num_replicas, worker, num_workers):
    for i, item in enumerate(items):
        if i % num_replicas == rank and i % num_workers == worker:
            yield item


def shard_wrong_stride(items, rank, num_replicas, worker, num_workers):
    first = rank * num_replicas + worker
    return itertools.islice(items, first, None, num_replicas * num_workers)


def shard_sum_of_numbers(items, rank, num_replicas, worker, num_workers):
    return itertools.islice(items, rank + worker, None, num_replicas * num_workers)


def shard_blocks(items, rank, num_replicas, worker, num_workers):
    items = list(items)
    readers = num_replicas * num_workers
    size = -(-len(items) // readers)
    reader = rank * num_workers + worker
    return items[reader * size : (reader + 1) * size]


def shard_drops_last_round(items, rank, num_replicas, worker, num_workers):
    reader, readers = rank * num_workers + worker, num_replicas * num_workers
    iterator = iter(items)
    while len(one_round := list(itertools.islice(iterator, readers))) == readers:
        yield one_round[reader]


def shard_pads(items, rank, num_replicas, worker, num_workers):
    reader, readers = rank * num_workers + worker, num_replicas * num_workers
    iterator = iter(items)
    while one_round := list(itertools.islice(iterator, readers)):
        yield one_round[reader % len(one_round)]


def shard_from_one(items, rank, num_replicas, worker, num_workers):
    reader, readers = rank * num_workers + worker, num_replicas * num_workers
    for i, item in enumerate(items, start=1):
        if i % (readers + 1) == reader + 1:
            yield item


def shard_length(items, rank, num_replicas, worker, num_workers):
    for i in range(rank * num_workers + worker, len(items), num_replicas * num_workers):
        yield items[i]


def shard_hash(items, rank, num_replicas, worker, num_workers):
    for item in items:
        if hash(str(item)) % (num_replicas * num_workers) == rank * num_workers + worker:
            yield item


def shard_random(items, rank, num_replicas, worker, num_workers):
    for item in items:
        if random.randrange(num_replicas * num_workers) == rank * num_workers + worker:
            yield item


def shard_everything(items, rank, num_replicas, worker, num_workers):
    yield from items


def shard_stride_of_workers(items, rank, num_replicas, worker, num_workers):
    return itertools.islice(items, rank * num_workers + worker, None, num_workers)


def shard_runs_of_items(items, rank, num_replicas, worker, num_workers):
    # a run of ten items for each reader in turn: the numbers differ by up to ten
    reader, readers = rank * num_workers + worker, num_replicas * num_workers
    for i, item in enumerate(items):
        if i // 10 % readers == reader:
            yield item


def shard_loses_one(items, rank, num_replicas, worker, num_workers):
    # next() takes the first item away from the count
    iterator = iter(items)
    next(iterator, None)
    first = rank * num_workers + worker
    return itertools.islice(iterator, first, None, num_replicas * num_workers)


# --- Exercise 3: pack(lengths, capacity) ---------------------------------------------


def pack_first_fit(lengths, capacity):
    rows, used = [], []
    for i, n in enumerate(lengths):
        for r in range(len(rows)):
            if used[r] + n <= capacity:
                rows[r].append(i)
                used[r] += n
                break
        else:
            rows.append([i])
            used.append(n)
    return rows


def pack_decreasing(lengths, capacity):
    rows = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        for row in rows:
            if sum(lengths[j] for j in row) + lengths[i] <= capacity:
                row.append(i)
                break
        else:
            rows.append([i])
    return rows


def pack_best_fit(lengths, capacity):
    rooms = []  # (room, row), in the order of the room
    for i, n in enumerate(lengths):
        at = bisect.bisect_left(rooms, n, key=lambda pair: pair[0])
        room, row = rooms.pop(at) if at < len(rooms) else (capacity, [])
        row.append(i)
        bisect.insort(rooms, (room - n, row), key=lambda pair: pair[0])
    return [row for _, row in rooms]


def pack_worst_fit_numpy(lengths, capacity):
    rows, rooms = [], np.zeros(0, dtype=int)
    for i in np.argsort(lengths, kind="stable"):
        if rooms.size and rooms.max() >= lengths[i]:
            r = int(rooms.argmax())
            rows[r].append(i)
            rooms[r] -= lengths[i]
        else:
            rows.append([i])
            rooms = np.append(rooms, capacity - lengths[i])
    return rows


def pack_merges(lengths, capacity):
    rows = [[i] for i in range(len(lengths))]
    merged = True
    while merged:
        merged = False
        for a, b in itertools.combinations(rows, 2):
            if sum(lengths[i] for i in a + b) <= capacity:
                rows = [row for row in rows if row is not a and row is not b] + [a + b]
                merged = True
                break
    return rows


def pack_row_by_row(lengths, capacity):
    # fill one row from all that is left, then the next
    left, rows = list(range(len(lengths))), []
    while left:
        row, room = [], capacity
        for i in list(left):
            if lengths[i] <= room:
                row.append(i)
                room -= lengths[i]
                left.remove(i)
        rows.append(row)
    return rows


def pack_recursion(lengths, capacity):
    def put(i, rows):
        if i < 0:
            return rows
        fitting = (r for r in rows if lengths[i] + sum(lengths[j] for j in r) <= capacity)
        row = next(fitting, None)
        if row is None:
            return put(i - 1, rows + [[i]])
        return put(i - 1, [r + [i] if r is row else r for r in rows])

    return put(len(lengths) - 1, [])


def pack_tensor(lengths, capacity):
    lengths = torch.as_tensor(lengths)
    room = torch.full((len(lengths),), capacity)
    rows = [[] for _ in range(len(lengths))]
    for i in range(len(lengths)):
        r = int((room >= lengths[i]).nonzero()[0])
        room[r] -= lengths[i]
        rows[r].append(i)
    return [row for row in rows if row]


def pack_next_fit(lengths, capacity):
    rows, used = [], capacity + 1
    for i, n in enumerate(lengths):
        if used + n <= capacity:
            rows[-1].append(i)
            used += n
        else:
            rows.append([i])
            used = n
    return rows


def pack_one_each(lengths, capacity):
    return [[i] for i in range(len(lengths))]


def pack_lengths_not_indices(lengths, capacity):
    rows = []
    for n in lengths:
        for row in rows:
            if sum(row) + n <= capacity:
                row.append(n)
                break
        else:
            rows.append([n])
    return rows


def pack_strict(lengths, capacity):
    rows, used = [], []
    for i, n in enumerate(lengths):
        for r in range(len(rows)):
            if used[r] + n < capacity:
                rows[r].append(i)
                used[r] += n
                break
        else:
            rows.append([i])
            used.append(n)
    return rows


def pack_one_over(lengths, capacity):
    rows, used = [], []
    for i, n in enumerate(lengths):
        for r in range(len(rows)):
            if used[r] < capacity:
                rows[r].append(i)
                used[r] += n
                break
        else:
            rows.append([i])
            used.append(n)
    return rows


def pack_index_of_length(lengths, capacity):
    rows, used = [], []
    for n in lengths:
        for r in range(len(rows)):
            if used[r] + n <= capacity:
                rows[r].append(lengths.index(n))
                used[r] += n
                break
        else:
            rows.append([lengths.index(n)])
            used.append(n)
    return rows


def pack_indices_of_sorted(lengths, capacity):
    rows, used = [], []
    for i, n in enumerate(sorted(lengths, reverse=True)):
        for r in range(len(rows)):
            if used[r] + n <= capacity:
                rows[r].append(i)
                used[r] += n
                break
        else:
            rows.append([i])
            used.append(n)
    return rows


def pack_cuts(lengths, capacity):
    stream = [i for i, n in enumerate(lengths) for _ in range(n)]
    pieces = [stream[s : s + capacity] for s in range(0, len(stream), capacity)]
    return [sorted(set(piece)) for piece in pieces]


def pack_empty_row_first(lengths, capacity):
    rows, used = [[]], [0]
    for i, n in enumerate(lengths):
        if used[-1] + n > capacity or i == 0:
            rows.append([])
            used.append(0)
        rows[-1].append(i)
        used[-1] += n
    return rows


def pack_pairs(lengths, capacity):
    # the longest with the shortest: a row never has more than two
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    rows, low, high = [], 0, len(order) - 1
    while low <= high:
        if low < high and lengths[order[low]] + lengths[order[high]] <= capacity:
            rows.append([order[high], order[low]])
            low += 1
        else:
            rows.append([order[high]])
        high -= 1
    return rows


def pack_next_fit_decreasing(lengths, capacity):
    rows, used = [], capacity + 1
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if used + lengths[i] <= capacity:
            rows[-1].append(i)
            used += lengths[i]
        else:
            rows.append([i])
            used = lengths[i]
    return rows


def pack_last_two_rows(lengths, capacity):
    rows, used = [], []
    for i, n in enumerate(lengths):
        for r in range(max(len(rows) - 2, 0), len(rows)):
            if used[r] + n <= capacity:
                rows[r].append(i)
                used[r] += n
                break
        else:
            rows.append([i])
            used.append(n)
    return rows


def pack_forgets_last_row(lengths, capacity):
    rows, row, used = [], [], 0
    for i, n in enumerate(lengths):
        if used + n > capacity:
            rows.append(row)
            row, used = [], 0
        row.append(i)
        used += n
    return rows


def pack_equal_counts(lengths, capacity):
    per_row = max(capacity // max(lengths, default=1), 1)
    indices = list(range(len(lengths)))
    return [indices[s : s + per_row] for s in range(0, len(indices), per_row)]


def pack_fewest_rows(lengths, capacity):
    # as many rows as the tokens need at least, filled in turn
    count = -(-sum(lengths) // capacity)
    return [list(range(r, len(lengths), count)) for r in range(count)]


def pack_skips_long(lengths, capacity):
    rows, used = [], []
    for i, n in enumerate(lengths):
        if n >= capacity:
            continue
        for r in range(len(rows)):
            if used[r] + n <= capacity:
                rows[r].append(i)
                used[r] += n
                break
        else:
            rows.append([i])
            used.append(n)
    return rows


def pack_padded_count(lengths, capacity):
    # counts each sequence as long as the longest in the row
    rows = []
    for i, n in enumerate(lengths):
        for row in rows:
            longest = max([n] + [lengths[j] for j in row])
            if longest * (len(row) + 1) <= capacity:
                row.append(i)
                break
        else:
            rows.append([i])
    return rows


RIGHT = {
    0: [
        read_ahead_pairs,
        read_ahead_sentinel,
        read_ahead_condition,
        read_ahead_semaphore,
        ReadAhead,
        read_ahead_executor,
        read_ahead_closures,
        read_ahead_ring,
    ],
    1: [
        worker_rng_list,
        worker_rng_spawn_key,
        worker_rng_one_number,
        worker_rng_sha,
        worker_rng_philox,
        worker_rng_mersenne,
        worker_rng_shifts,
        worker_rng_sfc,
        WorkerRng(),
    ],
    2: [
        shard_islice,
        shard_other_numbering,
        shard_nested,
        shard_cycle,
        shard_next,
        shard_rounds,
        Shard(),
        shard_backwards,
    ],
    3: [
        pack_first_fit,
        pack_decreasing,
        pack_best_fit,
        pack_worst_fit_numpy,
        pack_merges,
        pack_row_by_row,
        pack_recursion,
        pack_tensor,
    ],
}

WRONG = {
    0: [
        (read_ahead_unbounded, "the queue has no bound: reads everything ahead"),
        (read_ahead_none_ends, "a batch that is None ends the loop"),
        (read_ahead_falsy_ends, "a batch that is false (None, 0, '') ends the loop"),
        (read_ahead_error_lost, "the error is lost: the caller sees a short epoch"),
        (read_ahead_waits_for_ever, "after an error the caller waits for ever"),
        (read_ahead_error_first, "the error comes before the batches that wait"),
        (read_ahead_all_at_once, "the thread reads all before the first yield"),
        (read_ahead_no_thread, "the caller reads; no thread does"),
        (read_ahead_only_yields, "no thread, and nothing is read ahead"),
        (read_ahead_one_too_many, "depth + 1 wait, and one more is in the hand"),
        (read_ahead_depth_less_one, "depth - 1 wait, and depth = 1 has no bound"),
        (read_ahead_always_one, "never more than one waits, whatever the depth"),
        (read_ahead_yields_error, "hands the error over as if it were a batch"),
        (read_ahead_raises_batches, "raises a batch that happens to be an exception"),
        (read_ahead_other_error, "raises a RuntimeError and not the error itself"),
        (read_ahead_compares_end, "== 'end': a batch may be 'end', or a tensor"),
        (read_ahead_reversed, "a stack: the newest batch comes first"),
        (read_ahead_imap, "imap reads its whole input without a bound"),
        (read_ahead_on_demand, "reads on demand only, not while the caller works"),
        (read_ahead_in_chunks, "waits for each chunk, nothing is read meanwhile"),
        (read_ahead_thread_for_each, "list() reads it all, in the caller's thread"),
    ],
    1: [
        (worker_rng_sum, "seed + epoch + worker is equal for many triples"),
        (worker_rng_seed_plus_worker, "(1, e, 0) and (0, e, 1) are the same stream"),
        (worker_rng_no_epoch, "every epoch has the same draws"),
        (worker_rng_no_worker, "every worker has the same draws"),
        (worker_rng_thousands, "1000 workers of one epoch run into the next epoch"),
        (worker_rng_base_too_small, "(0, 0, 1000000) is the same as (0, 1, 0)"),
        (worker_rng_glued_digits, "(1, 11, 1) is the same as (11, 1, 1)"),
        (worker_rng_cached, "the same Generator again, which has moved on"),
        (worker_rng_legacy, "a RandomState and no Generator"),
        (worker_rng_fresh, "has no seed: the draws never come again"),
        (worker_rng_exclusive_or, "the shifted numbers overlap: (0, 1, 0), (256, 0, 0)"),
        (worker_rng_sorted, "the order of the three does not count"),
        (worker_rng_product, "a product is equal for many triples"),
        (worker_rng_crc, "32 bits: among 10**18 triples many share a seed"),
        (worker_rng_sixteen_bits, "cuts the numbers to 16 bits"),
        (worker_rng_torch, "a torch.Generator and not a NumPy one"),
        (worker_rng_epoch_spawns, "(1, 0, w) and (0, 1, w) are the same stream"),
        (worker_rng_skips, "the workers read one stream, shifted by one draw"),
        (worker_rng_global, "31 bits of a global seed that collides"),
    ],
    2: [
        (shard_list, "an endless iterator never becomes a list"),
        (shard_rank_only, "the workers of a process read the same items"),
        (shard_worker_only, "all processes read the same items"),
        (shard_both_conditions, "2 x 2: readers (0, 1) and (1, 0) get nothing"),
        (shard_wrong_stride, "rank * num_replicas: right if both numbers agree"),
        (shard_sum_of_numbers, "(0, 1) and (1, 0) read the same items"),
        (shard_blocks, "needs the end of the iterator, and the last block is short"),
        (shard_drops_last_round, "drops a last round that is short"),
        (shard_pads, "reads items twice to fill the last round"),
        (shard_from_one, "a stride of readers + 1 leaves items out"),
        (shard_length, "an iterator has no len() and no []"),
        (shard_hash, "the numbers differ by more than one"),
        (shard_random, "each reader draws on its own: some twice, some never"),
        (shard_everything, "every reader reads everything"),
        (shard_stride_of_workers, "the stride forgets the processes"),
        (shard_runs_of_items, "the numbers differ by up to ten"),
        (shard_loses_one, "nobody reads the first item"),
    ],
    3: [
        (pack_next_fit, "looks at the last row only; earlier rows have room"),
        (pack_one_each, "a row for each: two of them may fit into one"),
        (pack_lengths_not_indices, "lengths in place of indices"),
        (pack_strict, "< capacity: does not fill a row to the last token"),
        (pack_one_over, "checks the row before it adds: rows run over"),
        (pack_index_of_length, "index() finds the first of two equal lengths"),
        (pack_indices_of_sorted, "indices into the sorted list, not into lengths"),
        (pack_cuts, "cuts sequences at the end of a row"),
        (pack_empty_row_first, "an empty row, and earlier rows with room"),
        (pack_pairs, "at most two in a row, so that rows stay half empty"),
        (pack_next_fit_decreasing, "sorted, but with the last row only: 6, 6, 4, 1"),
        (pack_last_two_rows, "looks at the last two rows only"),
        (pack_forgets_last_row, "the last row is never put into the list"),
        (pack_equal_counts, "the same number in each row, however short they are"),
        (pack_fewest_rows, "the least number of rows, filled beyond capacity"),
        (pack_skips_long, "leaves out a sequence as long as the capacity"),
        (pack_padded_count, "counts padding: rows that would fit stay apart"),
    ],
}

UNCLEAR = {
    0: [
        "Does the thread start at the call or at the first next()? A generator function"
        " starts it late, the class ReadAhead at once.",
        "May the thread take a place before it reads (then it is never more than depth"
        " ahead), as read_ahead_semaphore and read_ahead_executor do?",
        "What becomes of the thread when the caller stops early is not said; most of the"
        " answers leave a daemon thread that waits in put().",
        "Must errors that are no Exception (KeyboardInterrupt, SystemExit) come through?",
        "depth = 0 is not spoken of.",
    ],
    1: [
        "Is hash(str) of the triple forbidden? It is the same within a process, but not"
        " across runs (PYTHONHASHSEED); `the same draws again` does not say where.",
        "Philox or SFC64 give a Generator, too, with streams that differ from PCG64's.",
    ],
    2: [
        "Which reader gets which items is open, and so is their order in time.",
        "May a reader hold one round of items (shard_rounds) before it yields its own?",
    ],
    3: [
        "`a list of rows, each a list`: would tuples or NumPy integers as indices do?"
        " pack_worst_fit_numpy returns np.int64 indices.",
        "Sequences of length 0 are not excluded: they fit into any row.",
        "May `lengths` be sorted in place? (No answer here does.)",
    ],
}
