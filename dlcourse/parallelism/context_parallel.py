"""Context parallel: a sequence in pieces, attention around a ring."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlcourse.parallelism.collectives import Group, _pass_on, _place, _require_same


def ring_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False, group: Group = None
) -> Tensor:
    """Return softmax(q k^T / sqrt(width)) v for this process's rows of one long sequence.

    All are (batch, heads, rows, width); the sequence is the rows of all processes, in the
    order of the ranks. Keys and values go once round the ring, and an online softmax
    takes them block by block. `causal`: a row sees itself and the rows before. Each
    process sends (n - 1) times its keys and values forward, 2 n - 1 times backward.
    Source: Liu et al. (2023), without the overlap of messages and computing. Scores and
    sums are float32 at least, under autocast too. Raises ValueError for shapes or dtypes
    that differ, whole numbers, no rows or no width, and for shapes that differ between
    processes. Invariants: output and gradients are those of the whole sequence on one
    process; no tensor on the way is larger than rows x rows scores of each head, or than
    one block of keys and values, however many processes there are.
    """
    shapes, dtypes = [tuple(t.shape) for t in (q, k, v)], {t.dtype for t in (q, k, v)}
    if q.ndim != 4 or len(set(shapes)) > 1 or 0 in q.shape[2:]:
        advice = "(batch, heads, rows, width), with a row and a column at least"
        raise ValueError(f"{shapes}: give q, k and v one shape, {advice}")
    if len(dtypes) > 1 or not q.is_floating_point():
        raise ValueError(
            f"{sorted(map(str, dtypes))}: give q, k and v one floating-point dtype"
        )
    _require_same(q.shape, "the shapes", q.device, group)
    with torch.autocast(q.device.type, enabled=False):
        return _RingAttention.apply(q, k, v, causal, group)


class _RingAttention(torch.autograd.Function):
    """Attention of this process's queries to the keys and values that come round the
    ring.
    """

    @staticmethod
    def forward(
        ctx, q: Tensor, k: Tensor, v: Tensor, causal: bool, group: Group
    ) -> Tensor:
        rank, n = _place(group)
        block = torch.stack([k, v])  # our own first, then that of rank - 1, rank - 2, ...
        top = torch.full_like(q[..., :1], -math.inf, dtype=_wide(q))
        total, out = torch.zeros_like(top), torch.zeros_like(q, dtype=_wide(q))
        for step in range(n):
            if step:
                block = _pass_on(block, group)
            if causal and step > rank:
                continue  # all its rows come after ours
            scores = _scores(q, block[0], causal and not step)
            higher = torch.maximum(top, scores.amax(-1, keepdim=True))
            weights, shrink = (scores - higher).exp(), (top - higher).exp()
            total = total * shrink + weights.sum(-1, keepdim=True)
            out = out * shrink + weights @ block[1].to(_wide(q))
            top = higher
        out = (out / total).to(q.dtype)
        ctx.save_for_backward(q, k, v, out, top + total.log())
        ctx.causal, ctx.group = causal, group
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, out, log_total = ctx.saved_tensors
        (rank, n), wide = _place(ctx.group), _wide(q)
        block, grad = torch.stack([k, v]), grad.to(wide)
        block_grad, q_grad = (
            torch.zeros_like(block, dtype=wide),
            torch.zeros_like(q, dtype=wide),
        )
        inner = (grad * out).sum(-1, keepdim=True)
        for step in range(n):
            if not ctx.causal or step <= rank:
                k, v = block.to(wide)
                weights = (_scores(q, k, ctx.causal and not step) - log_total).exp()
                slope = weights * (grad @ v.mT - inner) / math.sqrt(q.shape[-1])
                q_grad += slope @ k
                block_grad += torch.stack([slope.mT @ q.to(wide), weights.mT @ grad])
            if n > 1:
                # n steps: it ends where it began
                block_grad = _pass_on(block_grad, ctx.group)
            if step < n - 1:
                block = _pass_on(block, ctx.group)
        return q_grad.to(q.dtype), *block_grad.to(q.dtype), None, None


def _wide(tensor: Tensor) -> torch.dtype:
    """Return the dtype to add up in: the tensor's own, but at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _scores(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """Return q k^T / sqrt(width), with -inf where `causal` and the key's row comes after."""
    scores = q.to(_wide(q)) @ k.to(_wide(q)).mT / math.sqrt(q.shape[-1])
    if causal:
        after = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(after, -math.inf)
    return scores
