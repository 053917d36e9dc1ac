"""Tensor parallel: one layer in pieces."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.parallelism.collectives import Group, _place, ring_all_reduce


class _CopyToAll(torch.autograd.Function):
    """The same input on every process; on the way back, the sum of their gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ring_all_reduce(grad, ctx.group), None


class _SumOverAll(torch.autograd.Function):
    """The sum of the processes' outputs; on the way back, the same gradient for each."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        return ring_all_reduce(x, group)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


def _own_part(values: Tensor, dim: int, group: Group, name: str) -> nn.Parameter:
    rank, n = _place(group)
    if values.shape[dim] % n:
        raise ValueError(
            f"{name}={values.shape[dim]} does not split over {n} processes: choose a multiple"
        )
    return nn.Parameter(values.detach().chunk(n, dim)[rank].clone())


class ColumnParallelLinear(nn.Module):
    """This process's outputs of one or several `nn.Linear` layers of the same input.

    Input (..., in), the same on all processes; output (..., out / n), of several layers
    side by side. Forward needs no message, backward one all-reduce. Source: Shoeybi et
    al. (2019), who write x A, so that outputs are columns. Raises ValueError where n does
    not divide the outputs.
    Invariant: the outputs of all processes, joined, are the unsplit layer's.
    """

    def __init__(self, *linears: nn.Linear, group: Group = None) -> None:
        super().__init__()
        parts = [_own_part(layer.weight, 0, group, "out_features") for layer in linears]
        self.group, self.weight = group, nn.Parameter(torch.cat([p.data for p in parts]))
        self.bias = None
        if linears[0].bias is not None:
            parts = [_own_part(layer.bias, 0, group, "out_features") for layer in linears]
            self.bias = nn.Parameter(torch.cat([p.data for p in parts]))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_CopyToAll.apply(x, self.group), self.weight, self.bias)


class RowParallelLinear(nn.Module):
    """An `nn.Linear` of which this process holds the weights of its part of the inputs.

    Input (..., in / n), this process's part; output (..., out), the same on all
    processes. Forward needs one all-reduce, backward no message. The bias is added once,
    after the sum. Source: Shoeybi et al. (2019). Raises ValueError where n does not
    divide the inputs. Invariant: the output is the unsplit layer's.
    """

    def __init__(self, linear: nn.Linear, group: Group = None) -> None:
        super().__init__()
        self.group, self.weight = group, _own_part(linear.weight, 1, group, "in_features")
        self.bias = (
            None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())
        )

    def forward(self, x: Tensor) -> Tensor:
        total = _SumOverAll.apply(F.linear(x, self.weight), self.group)
        return total if self.bias is None else total + self.bias


class ParallelAttention(nn.Module):
    """Self-attention with heads / n heads on each process: (b, rows, width) to the same
    shape.

    `query`, `key`, `value` and `out` are the unsplit layers. One all-reduce forward, one
    backward.
    Source: Shoeybi et al. (2019). Raises ValueError where n does not divide the heads.
    Invariant: the output is the unsplit attention's.
    """

    def __init__(
        self, query: nn.Linear, key: nn.Linear, value: nn.Linear, out: nn.Linear, heads: int,
        group: Group = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _, n = _place(group)
        if heads % n or query.out_features % heads:
            raise ValueError(
                f"heads={heads} must be a multiple of the {n} processes, and divide the width "
                f"{query.out_features}"
            )
        self.heads = heads // n
        self.qkv = ColumnParallelLinear(query, key, value, group=group)
        self.out = RowParallelLinear(out, group)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        # (b, heads / n, rows, head width)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))
