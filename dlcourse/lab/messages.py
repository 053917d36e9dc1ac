"""Count what a process sends through torch's own messages, without a change to them."""

from __future__ import annotations

import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode


class RingBytes(TorchDispatchMode):
    """Count the bytes that this process sends for each message, if all travel by rings.

    `total` is their number within the `with` block, those of the backward pass included
    (on a CPU, where it runs in the same thread). A ring of n sends (n - 1)/n of the whole
    for an all-gather or a reduce-scatter, and twice that for an all-reduce. Broadcasts, by
    which DDP sets itself up, do not count. Raises NotImplementedError for other messages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "c10d":
            self.total += self._sent(op.overloadpacket.__name__, args)
        return op(*args, **(kwargs or {}))

    def _sent(self, name: str, args: tuple) -> float:
        n = dist.get_world_size()
        if name == "allreduce_":  # (list of tensors, ...)
            return 2 * (n - 1) / n * sum(tensor.nbytes for tensor in args[0])
        if name in ("_allgather_base_", "_reduce_scatter_base_"):  # (output, input, ...)
            return (n - 1) / n * max(args[0].nbytes, args[1].nbytes)
        if name == "send":
            return sum(tensor.nbytes for tensor in args[0])
        if name in ("recv_", "barrier", "broadcast_"):
            return 0.0
        raise NotImplementedError(f"{name} is not counted: add it to lab/messages.py")
