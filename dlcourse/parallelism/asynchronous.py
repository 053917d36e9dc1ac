"""Asynchronous SGD: nobody waits, and gradients come late."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.parallelism.collectives import Group, _irecv, _isend, _place


def push_times(
    seconds: Sequence[float], pushes: int, jitter: float = 0.0, seed: int = 0
) -> list[tuple[float, int]]:
    """Return (time, worker) of the first `pushes` gradients to reach a server, in order.

    Worker k needs `seconds[k]` > 0 for a gradient, times a lognormal factor of spread
    `jitter`. Workers never wait. Raises ValueError for no worker, or a time of 0 or less.
    Invariant: in the long run each pushes in proportion to its speed.
    """
    if not seconds or min(seconds) <= 0:
        raise ValueError(f"seconds={list(seconds)}: give each worker a time above 0")
    draw = torch.Generator().manual_seed(seed)

    def takes(worker: int) -> float:
        return seconds[worker] * math.exp(jitter * torch.randn((), generator=draw).item())

    queue, order = [(takes(worker), worker) for worker in range(len(seconds))], []
    heapq.heapify(queue)
    while len(order) < pushes:
        now, worker = heapq.heappop(queue)
        order.append((now, worker))
        heapq.heappush(queue, (now + takes(worker), worker))
    return order


def staleness(order: Sequence[int]) -> list[int]:
    """Return for each push how many others came since that worker last read the weights.

    `order` holds the worker of each push. All read at the start. Invariant: with n
    workers in turn it is n - 1 from the second round on.
    """
    read: dict[int, int] = {}
    found = []
    for now, worker in enumerate(order):
        found.append(now - read.get(worker, 0))
        read[worker] = now + 1
    return found


def async_sgd(
    weights: Tensor, gradient: Callable[[Tensor, int], Tensor], order: Sequence[int], lr
) -> Tensor:
    """Return the weights after a server has applied the pushes of `order`, one after the
    other.

    `gradient(weights, k)` is the gradient of push k at the weights that its worker read
    after its own last push. Source: Dean et al. (2012). Invariant: one worker alone is
    plain SGD.
    """
    read = {worker: weights for worker in set(order)}
    for k, worker in enumerate(order):
        weights = weights - lr * gradient(read[worker], k)
        read[worker] = weights
    return weights


def parameter_server(
    weights: Tensor, gradient: Callable[[Tensor], Tensor], pushes: int, lr: float,
    group: Group = None,
) -> tuple[Tensor, list[int]]:  # fmt: skip
    """Run process 0 as server and the others as workers; the server returns (weights,
    order).

    A worker computes `gradient(weights)`, sends it, and gets the newest weights back,
    until the server has applied `pushes` >= 1 of them in the order of arrival. Workers
    return their last weights and []. It takes a message from whoever comes first, which
    gloo allows and NCCL does not. Raises ValueError for fewer than two processes.
    """
    rank, n = _place(group)
    if n < 2 or pushes < 1:
        raise ValueError(
            f"{n} processes, {pushes} pushes: a server needs a worker and a push"
        )
    weights, order = weights.detach().clone(), []
    if rank:
        reply = torch.cat([weights, weights.new_zeros(1)])
        while not reply[-1]:  # the last entry says whether this was the end
            _isend(gradient(reply[:-1]), 0, group).wait()
            _irecv(reply, 0, group).wait()
        return reply[:-1], order
    grad, waiting = torch.empty_like(weights), n - 1
    while waiting:
        worker = dist.recv(grad, group=group)  # from whoever comes first
        over = len(order) >= pushes
        if not over:
            weights -= lr * grad
            order.append(worker)
        waiting -= over
        reply = torch.cat([weights, weights.new_full((1,), float(over))])
        _isend(
            reply, worker if group is None else dist.get_group_rank(group, worker), group
        ).wait()
    return weights, order
