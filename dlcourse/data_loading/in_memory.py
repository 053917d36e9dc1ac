"""Batches from tensors in memory, without a call for each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.utils.data
from torch import Tensor

from dlcourse.data_loading.loader import _check_batch
from dlcourse.data_loading.sampling import _check_whole, draw_seed


class TensorLoader:
    """Batches of tensors that are in memory, each gathered in one call: no samples, no
    Python loop.

    tensors: each (n, ...), all with the same n. A batch is a tuple, one tensor for each.
    batch_size: from 1 to n. shuffle: a new order in each pass. drop_last: without a
    shorter last. transform(*batch): runs on whole batches, such as a cast to float32, and
    returns the batch. generator: on the CPU; None is the global one. The tensors may be
    on any device, and so are the batches.

    Raises ValueError for no or unequal rows, or a batch larger than the data.

    Invariant: the batches are those of `torch.utils.data.DataLoader` over a
    `TensorDataset`, and the generator is left in the same state, pass after pass.
    """

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        transform: Callable | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        rows = {len(tensor) for tensor in tensors}
        if len(rows) != 1:
            raise ValueError(
                f"tensors with {sorted(rows)} rows: give at least one, all with equally many"
            )
        _check_whole("batch_size", batch_size)
        _check_batch(batch_size, *rows)
        self.tensors, self.rows, self.batch_size = tensors, rows.pop(), batch_size
        self.shuffle, self.drop_last, self.transform = shuffle, drop_last, transform
        self.generator = generator

    def __len__(self) -> int:
        batches, rest = divmod(self.rows, self.batch_size)
        return batches + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        draw_seed(self.generator)  # PyTorch's loader draws its workers' seed first
        generator = self.generator
        if not self.shuffle:
            order = torch.arange(self.rows)
        else:
            if generator is None:
                generator = torch.Generator().manual_seed(draw_seed())
            order = torch.randperm(self.rows, generator=generator)
        order = order.to(self.tensors[0].device)
        for rows in order.split(self.batch_size)[: len(self)]:
            batch = tuple([tensor.index_select(0, rows) for tensor in self.tensors])
            yield batch if self.transform is None else self.transform(*batch)
        if self.shuffle and self.generator is not None:
            # as RandomSampler does at its end
            torch.randperm(self.rows, generator=generator)
