"""Expert parallel: a layer for each kind of token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.parallelism.collectives import Group, _exchange, _place, _require_same


def all_to_all(parts: Tensor, group: Group = None) -> Tensor:
    """Send parts[j] to process j; return what each has sent here, (n, ...) to the same
    shape.

    Each process sends (n - 1) / n of `parts`. Raises ValueError for another first size
    than n.
    Invariant: twice is nothing done.
    """
    rank, n = _place(group)
    if not parts.ndim or len(parts) != n:
        raise ValueError(
            f"{tuple(parts.shape)}: give one part for each of the {n} processes"
        )
    parts = parts.detach().contiguous()
    got, others = parts.clone(), [peer for peer in range(n) if peer != rank]
    if others:
        sent = [(parts[peer], peer) for peer in others]
        _exchange(sent, [(got[peer], peer) for peer in others], group)
    return got


class _Exchange(torch.autograd.Function):
    """All-to-all; the gradients go back the way that the tokens came."""

    @staticmethod
    def forward(ctx, parts: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return all_to_all(parts, group)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return all_to_all(grad, ctx.group), None


class MixtureOfExperts(nn.Module):
    """A layer in which each token uses one of E experts, E / n of them on each process.

    Input (tokens, width), as many tokens on each process; output the same shape. `router`
    is an `nn.Linear(width, E)`, the same on all processes; `experts` are all E modules,
    width to width, of which this process keeps its own. A token's output is its likeliest
    expert's, times the router's probability. An expert takes ceil(capacity_factor *
    tokens / E) tokens from a process, in their order; it drops the others, whose output
    is 0 (`dropped` counts those of the last call). A factor of E drops none. Gradients of
    experts add up over the processes, those of the router are this process's part.
    Source: Fedus et al. (2021), without their balancing loss.
    Raises ValueError where E and the router or the processes do not fit, for a factor of
    0 or less, for other shapes, and for unequal tokens. Invariant: output and gradients
    are those of the same mixture on one process that gets each process's tokens in a call
    of their own.
    """

    def __init__(
        self, router: nn.Linear, experts: Sequence[nn.Module], capacity_factor: float = 1.25,
        group: Group = None,
    ) -> None:  # fmt: skip
        super().__init__()
        rank, n = _place(group)
        if len(experts) != router.out_features or len(experts) % n:
            raise ValueError(
                f"{len(experts)} experts, {router.out_features} outputs of the router, {n} "
                "processes: give an output for each expert, and a multiple of the processes"
            )
        if not capacity_factor > 0:
            raise ValueError(f"capacity_factor={capacity_factor}: give more than 0")
        self.capacity_factor, self.group, self.dropped = capacity_factor, group, 0
        own = len(experts) // n
        self.router = router
        self.experts = nn.ModuleList(list(experts)[rank * own : (rank + 1) * own])

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2:
            raise ValueError(
                f"{tuple(x.shape)}: give (tokens, width), with x.flatten(0, -2)"
            )
        _require_same([len(x)], "the numbers of tokens", x.device, self.group)
        (_, n), experts = _place(self.group), self.router.out_features
        capacity = math.ceil(self.capacity_factor * len(x) / experts)
        gate, choice = self.router(x).softmax(-1).max(-1)
        queue = F.one_hot(choice, experts).cumsum(0) - 1
        # how many came to its expert before it
        place = queue.gather(1, choice[:, None])[:, 0]
        kept = place < capacity
        self.dropped = len(x) - int(kept.sum())
        slot = choice[kept], place[kept]
        sent = x.new_zeros(experts, capacity, x.shape[-1]).index_put(slot, x[kept])
        came = _Exchange.apply(sent.unflatten(0, (n, -1)), self.group)
        # (n, capacity, width) for each
        pairs = zip(self.experts, came.unbind(1), strict=True)
        done = torch.stack([expert(tokens) for expert, tokens in pairs], 1)
        # (experts, capacity, width)
        back = _Exchange.apply(done, self.group).flatten(0, 1)
        scaled = (gate[kept, None] * back[slot]).to(x.dtype)
        return torch.zeros_like(x).masked_scatter(kept[:, None], scaled)
