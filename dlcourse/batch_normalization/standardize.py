"""Standardising: subtract the mean, divide by the standard deviation, both ways through."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Standardize(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps), with the backward pass written out.

    `Standardize.apply(x, dims, eps, center, group)` returns (y, mean, var). `dims`:
    negative, those that a mean runs over; var is the biased variance. Without `center`,
    mean is 0 and var the mean square. With a process `group`, every mean also runs over
    its processes. Statistics are at least float32, and y has the dtype of x.
    Differentiable in y only; as often as you like, but once with a process group, where
    a second derivative raises RuntimeError.
    Source: Ioffe & Szegedy (2015), section 3. Invariants: the gradient of x sums to zero
    over `dims`, and where eps is small against var so does the gradient times y.
    """

    @staticmethod
    def forward(
        x: Tensor, dims: tuple[int, ...], eps: float, center: bool = True, group=None
    ):
        wide = _wide(x)
        mean, var = _statistics(wide, dims, center, group)
        return ((wide - mean) * (var + eps).rsqrt()).to(x.dtype), mean, var

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.dims, ctx.eps, ctx.center, ctx.group = inputs
        _, mean, var = output
        ctx.save_for_backward(x, mean, var)
        ctx.mark_non_differentiable(mean, var)

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        x, mean, var = ctx.saved_tensors
        wide = _wide(x)
        again = torch.is_grad_enabled()  # this gradient may be differentiated itself
        if again and ctx.group is None:
            mean, var = _statistics(wide, ctx.dims, ctx.center, None)
        with torch.set_grad_enabled(again and ctx.group is None):
            inverse = (var + ctx.eps).rsqrt()
            y = (wide - mean) * inverse
            grad_y = _wide(grad)
            # what only rescales x is lost
            change = grad_y - y * _mean(grad_y * y, ctx.dims, ctx.group)
            if ctx.center:  # and what only shifts it
                change = change - _mean(grad_y, ctx.dims, ctx.group)
            grad_x = (change * inverse).to(grad.dtype)
        if again and ctx.group is not None:
            grad_x = _Once.apply(grad_x, x, grad)
        return grad_x, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, x: Tensor, *settings):
        # `dims` count from the end, so one more dimension in front changes nothing
        return Standardize.apply(x.movedim(in_dims[0], 0), *settings), (0, 0, 0)


class _Once(torch.autograd.Function):
    """Hands a gradient on, and refuses to have it differentiated again."""

    @staticmethod
    def forward(gradient: Tensor, x: Tensor, grad: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "a norm over several processes has no second derivative: each process would need "
            "the others' gradients of the gradient; use LayerNorm or GroupNorm, or one process"
        )


def _wide(x: Tensor) -> Tensor:
    """Return x in float32 where it has half precision: its squares would overflow or
    round off.
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _statistics(
    wide: Tensor, dims: tuple[int, ...], center: bool, group
) -> tuple[Tensor, Tensor]:
    """Return (mean, biased variance) over `dims`; without `center` (0, mean square)."""
    mean = _mean(wide, dims, group)
    mean = mean if center else torch.zeros_like(mean)
    return mean, _mean((wide - mean).square(), dims, group)


def _check_dtype(x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"the input is {x.dtype}: convert it to a floating-point dtype")


def _mean(values: Tensor, dims: tuple[int, ...], group) -> Tensor:
    """Return the mean over `dims`, and over the processes of `group`: each value counts
    once.
    """
    if group is None:
        return values.mean(dims, keepdim=True)
    total = values.sum(dims, keepdim=True)
    count = total.new_tensor([values.numel() // total.numel()])
    sums = torch.cat([total.ravel(), count])
    dist.all_reduce(sums, group=group)
    return (sums[:-1] / sums[-1]).view_as(total)


class _Affine(nn.Module):
    """A layer with a scale, `weight`, and a shift, `bias`: each a parameter, or None."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def _add_parameters(self, shape, weight: bool, bias: bool, device, dtype) -> None:
        for name, wanted in (("weight", weight), ("bias", weight and bias)):
            value = torch.empty(shape, device=device, dtype=dtype) if wanted else None
            self.register_parameter(name, None if value is None else nn.Parameter(value))

    def reset_parameters(self) -> None:
        """Start anew: scale 1, shift 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
