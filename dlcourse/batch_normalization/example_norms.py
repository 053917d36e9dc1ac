"""Norms that look at one example: LayerNorm, RMSNorm, GroupNorm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlcourse.batch_normalization.standardize import (
    Standardize,
    _Affine,
    _check_dtype,
    _wide,
)


class LayerNorm(_Affine):
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
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        whole = isinstance(normalized_shape, int)
        self.normalized_shape = (normalized_shape,) if whole else tuple(normalized_shape)
        if not self.normalized_shape:
            raise ValueError(
                "normalized_shape is empty: give the sizes of the last dimensions"
            )
        self.eps, self.elementwise_affine = eps, elementwise_affine
        shifts = bias and self.center
        self._add_parameters(
            self.normalized_shape, elementwise_affine, shifts, device, dtype
        )
        self.reset_parameters()

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}"
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
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, False, device, dtype)


class GroupNorm(_Affine):
    """Standardise each example of (N, C, ...) within `num_groups` groups of channels.

    One group normalises a whole example, C groups each channel by itself. Raises
    ValueError where the groups do not divide the channels, or the input has others;
    TypeError for integers.
    Source: Wu & He (2018).
    Invariant: training and evaluation are the same, row by row.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device=None,
        dtype=None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_groups < 1 or num_channels < 1 or num_channels % num_groups:
            raise ValueError(
                f"num_groups={num_groups} does not divide num_channels={num_channels}"
            )
        self.num_groups, self.num_channels = num_groups, num_channels
        self.eps, self.affine = eps, affine
        self._add_parameters(num_channels, affine, bias, device, dtype)
        self.reset_parameters()

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"

    def forward(self, x: Tensor) -> Tensor:
        _check_dtype(x)
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            raise ValueError(
                f"the input {tuple(x.shape)} must be (batch, {self.num_channels}, ...): build the "
                "layer with num_channels of your input"
            )
        if x.numel() == self.num_groups:
            raise ValueError(
                f"the input {tuple(x.shape)} has one value a group: it would become 0; give "
                "fewer groups, or inputs with more values"
            )
        # (N, groups, channels a group, ...)
        groups = x.unflatten(1, (self.num_groups, -1))
        y, _, _ = Standardize.apply(
            groups, tuple(range(2 - groups.ndim, 0)), self.eps, True, None
        )
        y = y.flatten(1, 2)
        column = (-1,) + (1,) * (x.ndim - 2)
        y = y if self.weight is None else y * self.weight.view(column)
        y = y if self.bias is None else y + self.bias.view(column)
        return y.to(x.dtype)
