"""Batches ahead of time, from a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator

from dlcourse.data_loading.sampling import _check_whole


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
