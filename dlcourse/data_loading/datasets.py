"""Data sets: by index, or as a stream."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.utils.data


class Dataset:
    """Samples by number: `dataset[i]` for i from 0 to len(dataset) - 1, and
    `len(dataset)`.

    `__getitems__(indices)`, where there is one, returns a list of samples in one call; a
    loader prefers it. Raises NotImplementedError for whatever a subclass leaves out.
    """

    def __getitem__(self, index: int):
        raise NotImplementedError(
            f"define {type(self).__name__}.__getitem__(self, index)"
        )

    def __len__(self) -> int:
        raise NotImplementedError(f"define {type(self).__name__}.__len__(self)")


class IterableDataset(torch.utils.data.IterableDataset):
    """Samples one after another, without numbers: a stream, a log, files read from end to
    end.

    It is PyTorch's own class under our name, so that both loaders know a stream when they
    see one. Each worker iterates over a copy of its own: dividing the samples is up to
    `__iter__`, which learns from `get_worker_info` whose copy it is. Raises
    NotImplementedError without `__iter__`.
    """

    def __iter__(self) -> Iterator:
        raise NotImplementedError(f"define {type(self).__name__}.__iter__(self)")
