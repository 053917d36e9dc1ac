"""Images as they were read, 8 bits a pixel, which become numbers batch by batch.

They lie in one array in memory, or above a budget in one file, from which the rows of a
batch are read: what a process holds then does not grow with the number of images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FEW = 64  # rows handled at a time, whose numbers stay in a processor's cache


def in_unit(images: Tensor) -> Tensor:
    """Return 8-bit images as float32 in [0, 1]; deeper ones lie there already."""
    return images.float() if images.is_floating_point() else images.float().div_(255)


class Store:
    """Takes up rows of one shape, one after another; what came before is widened.

    A row is (1 or 3, size, size) of uint8 or float32. `at`: the file that takes them up
    where all `rows` would need more than `budget` bytes.
    """

    def __init__(self, rows: int, size: int, budget: float, at: Path) -> None:
        self.rows, self.size, self.budget, self.at = rows, size, budget, at
        self.count, self.kind = 0, (0, np.dtype(np.uint8))
        self.array: np.ndarray | None = None
        self.file: Any = None

    def add(self, row: np.ndarray) -> None:
        """Store one row."""
        kind = max(self.kind[0], len(row)), np.promote_types(self.kind[1], row.dtype)
        if kind != self.kind:
            self._widen(kind)
        self._put(row[None])

    def _put(self, rows: np.ndarray) -> None:
        channels, dtype = self.kind
        if rows.dtype != dtype:
            rows = rows.astype(dtype) / 255
        shape = (len(rows), channels, self.size, self.size)
        rows = np.broadcast_to(rows, shape)
        if self.array is not None:
            self.array[self.count : self.count + len(rows)] = rows
        else:
            self.file.write(np.ascontiguousarray(rows))
        self.count += len(rows)

    def _widen(self, kind: tuple[int, np.dtype]) -> None:
        """Begin anew for more channels or deeper pixels, with the rows that are there."""
        before, old = self.rows_so_far(), self.count
        self.kind, self.count, self.array = kind, 0, None
        if self.file is not None:
            self.file.close()
            self.at.replace(self.at.with_suffix(".old"))
        shape = (self.rows, kind[0], self.size, self.size)
        if np.prod(shape) * kind[1].itemsize <= self.budget:
            self.array = np.empty(shape, kind[1])
        else:
            self.at.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.at, "wb")  # noqa: SIM115
        for start in range(0, old, FEW):
            if isinstance(before, np.ndarray):
                self._put(before[start : start + FEW])
            elif before is not None:
                rows = torch.arange(start, min(old, start + FEW))
                self._put(before.moved_to(self.at.with_suffix(".old")).take(rows).numpy())
        self.at.with_suffix(".old").unlink(missing_ok=True)

    def rows_so_far(self) -> np.ndarray | OnDisk | None:
        """Return what is stored."""
        if self.array is not None or self.file is None:
            return self.array if self.array is None else self.array[: self.count]
        self.file.flush()
        return OnDisk(self.at, (self.count, self.kind[0], self.size, self.size),
                      self.kind[1].name)  # fmt: skip

    def close(self) -> Tensor | OnDisk:
        """Return what was stored; nothing can be added afterwards."""
        stored = self.rows_so_far()
        if self.file is not None:
            self.file.close()
        if stored is None:
            return torch.empty(0, 1, self.size, self.size, dtype=torch.uint8)
        return torch.from_numpy(stored) if isinstance(stored, np.ndarray) else stored


@dataclass(frozen=True)
class OnDisk:
    """Rows in a file."""

    path: Path
    shape: tuple[int, ...]
    dtype: str

    def moved_to(self, path: Path) -> OnDisk:
        """Return the same rows under another name."""
        return replace(self, path=path)

    def take(self, rows: Tensor) -> Tensor:
        """Return some rows; raise OSError where the file lacks them.

        They are read, not mapped: a map brings in pages around them, as the system likes,
        and all count as memory of this process.
        """
        taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
        with open(self.path, "rb", buffering=0) as file:
            for place, row in zip(taken, rows.tolist(), strict=True):
                file.seek(row * place.nbytes)
                if file.readinto(place) != place.nbytes:
                    raise OSError(f"{self.path} is cut short: start the run anew")
        return torch.from_numpy(taken)


class Pixels:
    """A view of some rows of a store, which reads like a float32 tensor (n, c, h, w).

    Indexing gives float32 in [0, 1], or normalised by `mean` and `std` where they are
    given, the same to the bit as if all rows had been normalised before.
    """

    ndim, dtype = 4, torch.float32

    def __init__(self, stored: Tensor | OnDisk, rows: Tensor | None = None) -> None:
        self.stored = stored
        self.rows = torch.arange(stored.shape[0]) if rows is None else rows
        self.mean: Tensor | None = None
        self.std: Tensor | None = None
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor that this stands for."""
        return torch.Size((len(self.rows), *self.stored.shape[1:]))

    def _copy(self, **changes) -> Pixels:
        copy = Pixels(self.stored, self.rows)
        copy.__dict__.update(self.__dict__ | changes)
        return copy

    def at(self, rows: Tensor) -> Pixels:
        """Return a view of some of these rows; nothing is read."""
        return self._copy(rows=self.rows[rows])

    def normalized(self, mean: Tensor, std: Tensor) -> Pixels:
        """Return a view that takes off the mean (c,) and divides by the std (c,)."""
        return self._copy(mean=mean, std=std)

    def to(self, device: torch.device | str) -> Pixels:
        """Return a view whose rows come on a device; a store in memory moves there."""
        stored = self.stored
        if isinstance(stored, Tensor):
            stored = stored.to(device)
        return self._copy(stored=stored, device=torch.device(device))

    def raw(self, rows: Tensor) -> Tensor:
        """Return rows as they are stored."""
        rows = self.rows[rows.cpu()]
        if isinstance(self.stored, Tensor):
            return self.stored.index_select(0, rows.to(self.stored.device))
        return self.stored.take(rows).to(self.device)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return rows as float32, as torch does for dim 0."""
        images = in_unit(self.raw(index))
        if self.mean is None or self.std is None:
            return images
        mean, std = (v.to(images).view(-1, 1, 1) for v in (self.mean, self.std))
        return images.sub_(mean).div_(std)

    def __getitem__(self, rows) -> Tensor:
        if isinstance(rows, int):
            return self.index_select(0, torch.tensor([rows]))[0]
        if isinstance(rows, slice):
            rows = torch.arange(len(self))[rows]
        return self.index_select(0, torch.as_tensor(rows))

    def statistics(self, smallest: float) -> tuple[Tensor, Tensor]:
        """Return mean (c,) and std (c,) of the pixels in [0, 1], the std at least so much.

        The variance is the mean of those of the images plus that of their means.
        """
        each, within = torch.empty(2, *self.shape[:2])  # one block, see outputs_of
        pixels, rows = self._copy(mean=None, std=None), torch.arange(len(self))
        for some in rows.split(FEW):
            images = pixels.index_select(0, some)
            mean = images.mean((2, 3), keepdim=True)
            within[some] = images.sub_(mean).square_().mean((2, 3))
            each[some] = mean[:, :, 0, 0]
        each, within = each.double(), within.double()
        std = (within.mean(0) + each.var(0, correction=0)).sqrt()
        return each.mean(0).float(), std.float().clamp(min=smallest)
