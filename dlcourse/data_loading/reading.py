"""One batch: from the indices, or from the stream, to what the collate function returns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence


class Reader:
    """Reads batches of a dataset, one a call; it runs in the loader or in a worker.

    A stream is opened at the first call. `read(indices)` takes the numbers of the
    samples; `read(None)` takes the next `batch_size` samples of the stream.

    Raises StopIteration at the end of a stream, and whatever the dataset raises.
    """

    def __init__(
        self, dataset, collate_fn: Callable, batch_size: int, drop_last: bool
    ) -> None:
        self.dataset, self.collate_fn = dataset, collate_fn
        self.batch_size, self.drop_last = batch_size, drop_last
        self.samples = None

    def read(self, indices: Sequence[int] | None):
        if indices is None:
            return self.collate_fn(self._next_of_the_stream())
        if hasattr(self.dataset, "__getitems__"):
            return self.collate_fn(self.dataset.__getitems__(indices))
        return self.collate_fn([self.dataset[index] for index in indices])

    def _next_of_the_stream(self) -> list:
        if self.samples is None:
            self.samples = iter(self.dataset)
        found = list(itertools.islice(self.samples, self.batch_size))
        if not found or (self.drop_last and len(found) < self.batch_size):
            raise StopIteration
        return found
