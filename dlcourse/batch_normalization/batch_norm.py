"""Batch normalisation: each channel by the statistics of the batch."""

from __future__ import annotations

from typing import TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlcourse.batch_normalization.standardize import (
    Standardize,
    _Affine,
    _check_dtype,
    _wide,
)

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class _BatchNorm(_Affine):
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
        device=None,
        dtype=None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features={num_features}: give the number of channels")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        kind = {"device": device, "dtype": dtype}
        self._add_parameters(num_features, affine, bias, device, dtype)
        for name in BUFFERS:
            self.register_buffer(name, None)
        if track_running_stats:
            self.running_mean = torch.empty(num_features, **kind)
            self.running_var = torch.empty(num_features, **kind)
            self.num_batches_tracked = torch.tensor(0, device=device)
        self.reset_parameters()

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

    def reset_parameters(self) -> None:
        """Start anew: scale 1, shift 0, and no statistics."""
        self.reset_running_stats()
        super().reset_parameters()

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        # checkpoints from before torch 0.4.1 do not count their batches
        count = prefix + "num_batches_tracked"
        holds_statistics = prefix + "running_mean" in state_dict
        if self.track_running_stats and holds_statistics and count not in state_dict:
            state_dict[count] = self.num_batches_tracked
        super()._load_from_state_dict(state_dict, prefix, *rest)

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
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, track_running_stats={self.track_running_stats}"
        )


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
            for name in ("weight", "bias", *BUFFERS):
                setattr(new, name, getattr(module, name))  # None where it has none
            return new.train(module.training)
        for name, child in module.named_children():
            setattr(module, name, cls.convert_sync_batchnorm(child, process_group))
        return module


AnyBatchNorm = _BatchNorm | nn.modules.batchnorm._BatchNorm


def is_batch_norm(module: nn.Module) -> TypeGuard[AnyBatchNorm]:
    """Tell whether `module` is a batch norm layer, ours or torch's."""
    return isinstance(module, (_BatchNorm, nn.modules.batchnorm._BatchNorm))
