"""The memory that a computation takes while it runs, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Watch(TorchDispatchMode):
    """Add up the bytes of the tensors that operations make and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.alive = 0
        self.peak = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        # what goes in was there before, so a view of it takes no new memory
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor):
                self.known.add(value.untyped_storage()._cdata)
        result = operation(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.alive -= size


def peak_bytes(function: Callable[..., object], *inputs: object) -> int:
    """Return the most bytes that the tensors made by function(*inputs) take at one time.

    What was there before the call (weights, inputs) is not counted, nor what an operation
    takes for itself inside. Autograd's saved tensors count, so use ``torch.no_grad()``
    to measure inference.
    """
    with _Watch() as watch:
        function(*inputs)
    return watch.peak
