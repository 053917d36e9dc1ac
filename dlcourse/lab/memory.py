"""The most memory that a piece of code needs, measured on this process."""

from __future__ import annotations

import threading


class PeakMemory:
    """Measure how much more memory this process holds at its peak than at the start.

    A context; afterwards `added` is that difference in bytes, at least 0. A thread looks
    about once a millisecond, so what lasts much shorter can be missed. Where the system
    tells them apart (Linux), pages of files, such as libraries, do not count. Memory that
    earlier code has let go and Python still holds is not seen when it is used again: so
    measure in a fresh process.
    """

    def __enter__(self) -> PeakMemory:
        import psutil

        self._process = psutil.Process()
        self._start = self._peak = self._held()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._over.set()
        self._thread.join()
        self._peak = max(self._peak, self._held())
        self.added = self._peak - self._start

    def _held(self) -> int:
        memory = self._process.memory_info()
        return memory.rss - getattr(memory, "shared", 0)

    def _watch(self) -> None:
        while not self._over.wait(0.001):
            self._peak = max(self._peak, self._held())
