"""Batch normalisation and its kin: standardise what a layer hands on, then let it learn a
scale.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Standardize(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps), with the backward pass written out.

    `Standardize.apply(x, dims, eps, center, group)` returns (y, mean, var). `dims`:
    negative, those that a mean runs over; var is the biased variance. Without `center`,
    mean is 0 and var the mean square. With a process `group`, every mean also runs over
    its processes. Statistics are at least float32, and y has the dtype of x.
    Differentiable once, and in y only.
    Source: Ioffe & Szegedy (2015), section 3. Invariants: the gradient of x sums to zero
    over `dims`, and where eps is small against var so does the gradient times y.
    """

    @staticmethod
    def forward(
        x: Tensor, dims: tuple[int, ...], eps: float, center: bool = True, group=None
    ):
        wide = _wide(x)
        mean = _mean(wide, dims, group)
        mean = mean if center else torch.zeros_like(mean)
        var = _mean((wide - mean).square(), dims, group)
        return ((wide - mean) * (var + eps).rsqrt()).to(x.dtype), mean, var

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.dims, ctx.eps, ctx.center, ctx.group = inputs
        y, mean, var = output
        ctx.save_for_backward(y, var)
        ctx.mark_non_differentiable(mean, var)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_):
        y, var = ctx.saved_tensors
        y, wide = _wide(y), _wide(grad)
        # what only rescales x is lost
        change = wide - y * _mean(wide * y, ctx.dims, ctx.group)
        if ctx.center:
            change = change - _mean(wide, ctx.dims, ctx.group)  # and what only shifts it
        return (change * (var + ctx.eps).rsqrt()).to(grad.dtype), None, None, None, None

    @staticmethod
    def vmap(info, in_dims, x: Tensor, *settings):
        # `dims` count from the end, so one more dimension in front changes nothing
        return Standardize.apply(x.movedim(in_dims[0], 0), *settings), (0, 0, 0)


def _wide(x: Tensor) -> Tensor:
    """Return x in float32 where it has half precision: its squares would overflow or
    round off.
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


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


# --- batch normalisation --------------------------------------------------------------------------


class _BatchNorm(nn.Module):
    """What BatchNorm1d, BatchNorm2d and SyncBatchNorm share."""

    ndims: tuple[int, ...] = ()  # of the inputs that the layer takes
    running_mean: Tensor | None  # the buffers: None without track_running_stats
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features={num_features}: give the number of channels")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        tracked = (torch.zeros(num_features), torch.ones(num_features), torch.tensor(0))
        for name, value in zip(
            ("running_mean", "running_var", "num_batches_tracked"), tracked, strict=True
        ):
            self.register_buffer(name, value if track_running_stats else None)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        column = (-1,) + (1,) * (x.ndim - 2)  # (C, 1, ...): one value a channel
        if self.training or not self.track_running_stats:
            dims = (-x.ndim, *range(2 - x.ndim, 0))  # all but the channels
            group = self._group()
            count = self._count(x, group)
            y, mean, var = Standardize.apply(x, dims, self.eps, True, group)
            if self.training and self.track_running_stats:
                self._update(mean.flatten(), var.flatten() * count / (count - 1))
        else:  # a fixed map, whatever else is in the batch
            assert self.running_mean is not None and self.running_var is not None
            scale = (_wide(self.running_var) + self.eps).rsqrt()
            y = (_wide(x) - self.running_mean.view(column)) * scale.view(column)
        y = y if self.weight is None else y * self.weight.view(column)
        y = y if self.bias is None else y + self.bias.view(column)
        return y.to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, unbiased_var: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        new = self.momentum
        if new is None:
            new = 1 / self.num_batches_tracked.to(mean.dtype)
        self.running_mean.mul_(1 - new).add_(new * mean)
        self.running_var.mul_(1 - new).add_(new * unbiased_var)

    def reset_running_stats(self) -> None:
        """Forget the statistics: mean 0, variance 1, no batch seen."""
        starts = (
            (self.running_mean, 0),
            (self.running_var, 1),
            (self.num_batches_tracked, 0),
        )
        for buffer, start in starts:
            if self.track_running_stats and buffer is not None:
                buffer.fill_(start)

    def _group(self):
        return None

    def _count(self, x: Tensor, group) -> int:
        """Return the values a channel; raise where they have no variance."""
        count = x.numel() // self.num_features
        if group is not None:
            total = torch.tensor(count, device=x.device)
            dist.all_reduce(total, group=group)
            count = int(total)
        if count < 2:
            raise ValueError(
                f"training needs more than 1 value per channel, and this batch {tuple(x.shape)} "
                f"has {count}: use a larger batch, call eval(), or use LayerNorm or GroupNorm"
            )
        return count

    def _check(self, x: Tensor) -> None:
        _check_dtype(x)
        if x.ndim not in self.ndims:
            wanted = " or ".join(map(str, self.ndims))
            raise ValueError(
                f"{type(self).__name__} takes inputs of {wanted} dimensions, (batch, channels, "
                f"...), not {tuple(x.shape)}"
            )
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"the input {tuple(x.shape)} has {x.shape[1]} channels in dimension 1, this layer "
                f"has {self.num_features}: build it with num_features={x.shape[1]}"
            )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class BatchNorm1d(_BatchNorm):
    """Standardise each channel of (N, C) or (N, C, L) over the rest, then scale and shift
    it.

    In training by the batch's mean and biased variance; running averages of the mean and
    of the unbiased variance are kept, in which a new value weighs `momentum` (None: all
    batches alike). In evaluation by those averages. Parameters and buffers are named as
    torch's.
    Raises ValueError for other shapes, and in training for fewer than two values a
    channel; TypeError for integers.
    Source: Ioffe & Szegedy (2015). Invariants: in evaluation a row's output does not
    depend on the other rows; in training the output does not change when the input is
    scaled (up to eps).
    """

    ndims = (2, 3)


class BatchNorm2d(_BatchNorm):
    """The same for images (N, C, H, W): a channel's statistics run over N, H and W."""

    ndims = (4,)


class SyncBatchNorm(_BatchNorm):
    """Batch norm whose statistics in training run over all processes of `process_group`.

    (N, C, ...) of two to five dimensions; N may differ between processes, and may be 1.
    Works on the CPU with gloo, where torch's refuses. Without processes it is plain batch
    norm.
    Invariant: n processes with equal shares give the outputs and gradients of the whole
    batch.
    """

    ndims = (2, 3, 4, 5)

    def __init__(self, num_features: int, *args, process_group=None, **kwargs) -> None:
        super().__init__(num_features, *args, **kwargs)
        self.process_group = process_group

    def _group(self):
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return None
        group = self.process_group or dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group=None) -> nn.Module:
        """Return `module` with each batch norm, ours or torch's, replaced; weights are
        shared.
        """
        if is_batch_norm(module) and not isinstance(module, cls):
            new = cls(
                module.num_features, module.eps, module.momentum, module.affine,
                module.track_running_stats, process_group=process_group,
            )  # fmt: skip
            for name in (
                "weight",
                "bias",
                "running_mean",
                "running_var",
                "num_batches_tracked",
            ):
                setattr(new, name, getattr(module, name))  # None where it has none
            return new.train(module.training)
        for name, child in module.named_children():
            setattr(module, name, cls.convert_sync_batchnorm(child, process_group))
        return module


AnyBatchNorm = _BatchNorm | nn.modules.batchnorm._BatchNorm


def is_batch_norm(module: nn.Module) -> TypeGuard[AnyBatchNorm]:
    """Tell whether `module` is a batch norm layer, ours or torch's."""
    return isinstance(module, (_BatchNorm, nn.modules.batchnorm._BatchNorm))


# --- norms that look at one example ---------------------------------------------------------------


class LayerNorm(nn.Module):
    """Standardise each example over its last dimensions `normalized_shape`, then scale
    and shift.

    Raises ValueError where the input does not end in `normalized_shape`, or that is
    empty; TypeError for integers. Source: Ba, Kiros & Hinton (2016). Invariant: training
    and evaluation are the same, row by row.
    """

    center = True

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        whole = isinstance(normalized_shape, int)
        self.normalized_shape = (normalized_shape,) if whole else tuple(normalized_shape)
        if not self.normalized_shape:
            raise ValueError(
                "normalized_shape is empty: give the sizes of the last dimensions"
            )
        self.eps = eps
        ones, zeros = (
            torch.ones(self.normalized_shape),
            torch.zeros(self.normalized_shape),
        )
        self.weight = nn.Parameter(ones) if elementwise_affine else None
        self.bias = (
            nn.Parameter(zeros) if elementwise_affine and bias and self.center else None
        )

    def forward(self, x: Tensor) -> Tensor:
        _check_dtype(x)
        size = len(self.normalized_shape)
        if x.ndim < size:
            raise ValueError(
                f"the input {tuple(x.shape)} needs {size} dimensions or more"
            )
        if x.shape[-size:] != self.normalized_shape:
            raise ValueError(
                f"the input {tuple(x.shape)} must end in {self.normalized_shape}: build the layer "
                f"with normalized_shape={tuple(x.shape[-size:])}"
            )
        eps = torch.finfo(_wide(x).dtype).eps if self.eps is None else self.eps
        y, _, _ = Standardize.apply(x, tuple(range(-size, 0)), eps, self.center, None)
        y = y if self.weight is None else y * self.weight
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype)


class RMSNorm(LayerNorm):
    """Divide each example by its root mean square over the last dimensions; no mean, no
    shift.

    eps None is the machine epsilon. Raises as LayerNorm does.
    Source: Zhang & Sennrich (2019).
    """

    center = False

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias=False)


class GroupNorm(nn.Module):
    """Standardise each example of (N, C, ...) within `num_groups` groups of channels.

    One group normalises a whole example, C groups each channel by itself. Raises
    ValueError where the groups do not divide the channels, or the input has others;
    TypeError for integers.
    Source: Wu & He (2018).
    Invariant: training and evaluation are the same, row by row.
    """

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels < 1 or num_channels % num_groups:
            raise ValueError(
                f"num_groups={num_groups} does not divide num_channels={num_channels}"
            )
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        _check_dtype(x)
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            raise ValueError(
                f"the input {tuple(x.shape)} must be (batch, {self.num_channels}, ...): build the "
                "layer with num_channels of your input"
            )
        # (N, groups, channels a group, ...)
        groups = x.unflatten(1, (self.num_groups, -1))
        y, _, _ = Standardize.apply(
            groups, tuple(range(2 - groups.ndim, 0)), self.eps, True, None
        )
        y = y.flatten(1, 2)
        if self.weight is not None and self.bias is not None:
            column = (-1,) + (1,) * (x.ndim - 2)
            y = y * self.weight.view(column) + self.bias.view(column)
        return y.to(x.dtype)


# --- after training -------------------------------------------------------------------------------


@torch.no_grad()
def fold_batch_norm(layer: nn.Linear | nn.Conv1d | nn.Conv2d, bn: nn.Module) -> nn.Module:
    """Return a copy of `layer` that computes bn(layer(x)) of evaluation by itself.

    `bn` is ours or torch's. Raises TypeError for other layers, ValueError for a batch
    norm in training mode, without running statistics, or of another size.
    Invariant: the output is that of the pair, for any input.
    """
    if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) or not is_batch_norm(bn):
        raise TypeError(
            f"cannot fold {type(bn).__name__} into {type(layer).__name__}: give a Linear, Conv1d "
            "or Conv2d and the batch norm that follows it"
        )
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError(
            "this batch norm has no running statistics, so there is no fixed map"
        )
    if bn.training:
        raise ValueError("in training mode batch norm is no fixed map: call eval() first")
    if len(layer.weight) != bn.num_features:
        raise ValueError(
            f"the layer has {len(layer.weight)} outputs, the norm {bn.num_features}"
        )
    scale = (bn.running_var + bn.eps).rsqrt()
    scale = scale if bn.weight is None else scale * bn.weight
    shift = -bn.running_mean * scale + (0 if bn.bias is None else bn.bias)
    folded, weight = copy.deepcopy(layer), layer.weight
    folded.weight.copy_(weight * scale.view(-1, *(1,) * (weight.ndim - 1)))
    shift = shift if layer.bias is None else shift + layer.bias * scale
    folded.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)
    return folded


@torch.no_grad()
def recalibrate_bn(model: nn.Module, batches: Iterable) -> int:
    """Set the running statistics of `model` to the mean over `batches`; return their
    number.

    `batches`: inputs, or tuples that start with the inputs; each batch counts the same.
    Only the batch norms run in training mode meanwhile, so that dropout stays off. Modes
    and momenta are as before at the end. Raises ValueError where there is no batch, or no
    batch norm that tracks.
    Source: Wu & Johnson (2021), who call it PreciseBN. Invariant: no parameter changes.
    """
    norms = [
        m for m in model.modules() if is_batch_norm(m) and m.running_mean is not None
    ]
    if not norms:
        raise ValueError("this model has no batch norm with running statistics")
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    count = 0
    try:
        for count, batch in enumerate(batches, start=1):
            if count == 1:  # an empty iterable leaves the statistics as they were
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None
                    norm.training = True
            model(batch[0] if isinstance(batch, (tuple, list)) else batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if not count:
        raise ValueError("no batches: give at least one")
    return count
