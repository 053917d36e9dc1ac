"""Processes, the bytes between them, and the ring all-reduce."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

Group = dist.ProcessGroup | None


@contextlib.contextmanager
def process_group(
    seconds: float = 30.0, backend: str | None = None
) -> Iterator[tuple[int, int]]:
    """Join the other processes of this launch for the block; yields (rank, processes).

    Any message that waits longer than `seconds` > 0 raises RuntimeError instead of
    hanging. Rank and address come from the environment, as torchrun or `lab.launching`
    sets it. `backend` is torch's name for what carries the messages. None means gloo;
    where each process of the machine has a GPU of its own, NCCL for tensors on the GPUs,
    and the process's GPU becomes the current one. Raises RuntimeError where there is no
    launch. Invariant: the group is gone after the block.
    """
    if dist.is_initialized():
        raise RuntimeError("this process is in a group already: leave that one first")
    gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if backend is None:
        backend = "cpu:gloo,cuda:nccl" if 0 < here <= gpus else "gloo"
    if "nccl" in backend and gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
    except ValueError as error:
        raise RuntimeError(
            "no other process to join: start them with launch(fn, 2)"
        ) from error
    try:
        yield dist.get_rank(), dist.get_world_size()
        dist.barrier()  # none leaves while another may still wait for its message
    finally:
        dist.destroy_process_group()


class SentBytes:
    """Count the bytes that this process sends through this module, within the `with`
    block.

    `total` is their number. Only what this module sends from one process to one other
    counts.
    """

    _open: list[SentBytes] = []

    def __enter__(self) -> SentBytes:
        self.total = 0
        SentBytes._open.append(self)
        return self

    def __exit__(self, *_) -> None:
        SentBytes._open.remove(self)


def _place(group: Group) -> tuple[int, int]:
    """Return (rank, processes) in the group; (0, 1) where there is no group at all."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def _isend(tensor: Tensor, to: int, group: Group, tag: int = 0) -> dist.Work:
    _count(tensor)
    message = dist.isend(tensor, _global(to, group), group=group, tag=tag)
    assert message is not None, "this process is not in the group"
    return message


def _irecv(tensor: Tensor, source: int, group: Group, tag: int = 0) -> dist.Work:
    message = dist.irecv(tensor, _global(source, group), group=group, tag=tag)
    assert message is not None, "this process is not in the group"
    return message


def _count(tensor: Tensor) -> None:
    for counter in SentBytes._open:
        counter.total += tensor.nbytes


def _global(rank: int, group: Group) -> int:
    """Return the rank among all processes of one that has `rank` in the group."""
    return rank if group is None else dist.get_global_rank(group, rank)


def _exchange(
    sent: Sequence[tuple[Tensor, int]], got: Sequence[tuple[Tensor, int]], group: Group
) -> None:
    """Send and receive (tensor, rank in the group) all at once, and wait for them all.

    As one batch, because NCCL takes messages in their order: two processes that each
    began with a send of their own would wait for each other for ever.
    """
    for tensor, _ in sent:
        _count(tensor)
    batch = []
    for operation, messages in ((dist.isend, sent), (dist.irecv, got)):
        for tensor, peer in messages:
            batch.append(dist.P2POp(operation, tensor, _global(peer, group), group))
    for message in dist.batch_isend_irecv(batch):
        message.wait()


def _pass_on(tensor: Tensor, group: Group) -> Tensor:
    """Send `tensor` to the next process of the ring; return what the one before has sent."""
    rank, n = _place(group)
    got = torch.empty_like(tensor)
    _exchange([(tensor, (rank + 1) % n)], [(got, (rank - 1) % n)], group)
    return got


def ring_reduce_scatter(flat: Tensor, group: Group = None) -> Tensor:
    """Sum `flat` (n * c,) over the n processes; return this one's chunk (c,) of the sum.

    Each process sends (n - 1) / n of the vector. Raises ValueError where n does not
    divide it.
    """
    rank, n = _place(group)
    if flat.ndim != 1 or len(flat) % n:
        raise ValueError(
            f"{tuple(flat.shape)}: give a vector of a length that {n} divides; pad it"
        )
    chunks = list(flat.detach().clone().tensor_split(n))
    for step in range(n - 1):
        chunks[(rank - step - 2) % n] += _pass_on(chunks[(rank - step - 1) % n], group)
    return chunks[rank]


def ring_all_gather(chunk: Tensor, group: Group = None) -> Tensor:
    """Return all processes' chunks (c,), joined in the order of their ranks: (n * c,).

    Each process sends (n - 1) / n of the result.
    """
    rank, n = _place(group)
    chunks = [chunk.detach().contiguous()] * n
    for step in range(n - 1):
        chunks[(rank - step - 1) % n] = _pass_on(chunks[(rank - step) % n], group)
    return torch.cat(chunks)


def ring_all_reduce(tensor: Tensor, group: Group = None) -> Tensor:
    """Return the sum of all processes' `tensor`, of any shape; the input stays as it is.

    A reduce-scatter, then an all-gather: each process sends 2 (n - 1) / n of the tensor,
    padded to a multiple of n. Source: Patarasu & Yuan (2009). Invariant: all processes
    get the same bits.
    """
    _, n = _place(group)
    flat = F.pad(tensor.detach().ravel(), (0, -tensor.numel() % n))
    whole = ring_all_gather(ring_reduce_scatter(flat, group), group)
    return whole[: tensor.numel()].reshape(tensor.shape)


def all_reduce_mean(tensors: Sequence[Tensor], group: Group = None) -> None:
    """Replace each tensor by its mean over the processes, in place, in one ring for all
    of them.

    Divides before it sums, so that float16 does not overflow on the way. Raises
    ValueError for tensors of several dtypes.
    """
    if len({tensor.dtype for tensor in tensors}) > 1:
        raise ValueError("tensors of several dtypes: call it once for each dtype")
    _, n = _place(group)
    if not tensors or n == 1:
        return
    flat = torch.cat([tensor.detach().ravel() for tensor in tensors]) / n
    parts = ring_all_reduce(flat, group).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.detach().copy_(part.view(tensor.shape))


def _require_same(
    numbers: Sequence[int], what: str, device: torch.device, group: Group
) -> None:
    """Raise ValueError, on every process, unless all have the same numbers.

    `device` is one on which the group can send: that of what it sends afterwards.
    """
    both = torch.tensor([*numbers, *(-number for number in numbers)], device=device)
    if dist.is_initialized():
        dist.all_reduce(both, dist.ReduceOp.MAX, group=group)
    most, least = both.chunk(2)
    if not torch.equal(most, -least):
        least, most = (-least).tolist(), most.tolist()
        raise ValueError(
            f"{what} differ between processes ({least} to {most}): make them equal"
        )
