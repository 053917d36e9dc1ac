"""Processes played by threads of one process, for code that exchanges tensors.

It takes milliseconds where real processes take seconds, and a debugger, or a change of one
line by mutmut, reaches all of them. Only what the package asks of torch.distributed is
there, without its checks: the tests on real processes stay.
"""

from __future__ import annotations

import queue
import threading
from types import SimpleNamespace

import torch
import torch.distributed as dist

SECONDS = 15.0  # the longest wait for a message


class Threads:
    """A few threads, each with a rank; `run(function)` calls function(rank) in them all.

    Where `world` has more ranks than play, they play a group: the tuple of its ranks, in its
    order. It must then be named in each call.
    """

    def __init__(self, monkeypatch, ranks, world=None) -> None:
        self.ranks, self.here = tuple(ranks), threading.local()
        self.world = self.ranks if world is None else tuple(world)
        self.mail = {}  # by source, destination and tag
        self.barrier = threading.Barrier(len(self.ranks), timeout=SECONDS)
        self.shown = {}
        self.building = threading.RLock()  # also for what draws from the global generator
        for name in ("is_initialized", "get_rank", "get_world_size", "get_global_rank",
                     "isend", "irecv", "batch_isend_irecv", "all_reduce", "broadcast"):  # fmt: skip
            monkeypatch.setattr(dist, name, getattr(self, name))
        monkeypatch.setattr(dist, "P2POp", lambda *parts: parts)

    def run(self, function) -> list:
        """Return function(rank) of each rank, in their order; raise the first error."""
        found, errors = {}, []

        def play(rank: int) -> None:
            self.here.rank = rank
            try:
                found[rank] = function(rank)
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=play, args=[rank]) for rank in self.ranks]
        self.failed = errors
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return [found[rank] for rank in self.ranks]

    # what torch.distributed has

    def is_initialized(self) -> bool:
        return hasattr(self.here, "rank")

    def get_rank(self, group=None) -> int:
        return (group or self.world).index(self.here.rank)

    def get_world_size(self, group=None) -> int:
        return len(group or self.world)

    def get_global_rank(self, group, rank: int) -> int:
        return group[rank]

    def _playing(self, group) -> tuple:
        members = group or self.world
        if not set(members) <= set(self.ranks):
            raise RuntimeError(f"{members} do not all play: name the group")
        return members

    def isend(self, tensor, dst, group=None, tag=0):
        self._playing(group)
        self._letters(self.here.rank, dst, tag).put(tensor.detach().clone())
        return SimpleNamespace(wait=lambda: None)

    def irecv(self, tensor, src, group=None, tag=0):
        self._playing(group)
        letters = self._letters(src, self.here.rank, tag)

        def wait() -> None:
            for _ in range(int(SECONDS / 0.02)):
                try:
                    tensor.detach().copy_(letters.get(timeout=0.02))
                    return
                except queue.Empty:
                    if self.failed:
                        break
            raise TimeoutError(f"no message from {src} to {self.here.rank}")

        return SimpleNamespace(wait=wait)

    def _letters(self, *key) -> queue.SimpleQueue:
        with self.building:
            return self.mail.setdefault(key, queue.SimpleQueue())

    def batch_isend_irecv(self, batch):
        return [operation(*rest) for operation, *rest in batch]

    def all_reduce(self, tensor, op=dist.ReduceOp.SUM, group=None) -> None:
        together = torch.stack(self._of_all(tensor, group))
        largest = op == dist.ReduceOp.MAX
        tensor.copy_(together.amax(0) if largest else together.sum(0))

    def broadcast(self, tensor, src, group=None) -> None:
        place = self._playing(group).index(src)
        tensor.copy_(self._of_all(tensor, group)[place])

    def _of_all(self, tensor, group) -> list:
        members = self._playing(group)
        self.shown[self.here.rank] = tensor.detach().clone()
        self.barrier.wait()
        found = [self.shown[rank] for rank in members]
        self.barrier.wait()
        return found
