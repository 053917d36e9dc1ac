"""Convolutions of few channels as one matrix product for each replica."""

from __future__ import annotations

import contextlib
import functools

import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_PATCH = 27  # 3 x 3 pixels of three channels


@contextlib.contextmanager
def convolutions_as_products(model: nn.Module):
    """Within the block, the convolutions of `model` that look at small patches are matrix
    products.

    `torch.vmap` makes one grouped convolution of those of all replicas, which is slow
    where each group has few channels, as in the first layer on an image.
    """
    changed = []
    for layer in model.modules():
        if type(layer) is nn.Conv2d and _is_small(layer) and "forward" not in vars(layer):
            layer.forward = functools.partial(convolve, layer)
            changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _is_small(layer: nn.Conv2d) -> bool:
    if layer.groups != 1 or layer.padding_mode != "zeros":
        return False
    if isinstance(layer.padding, str):
        return False
    height, width = layer.kernel_size
    return layer.in_channels * height * width <= LARGEST_PATCH


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Return what `layer` makes of images x (n, c, h, w): each patch times the weights."""
    count, width = len(x), x.shape[3]
    padding = [int(size) for size in layer.padding]
    patches = F.unfold(
        x, layer.kernel_size, layer.dilation, padding, layer.stride
    )  # (n, patch, positions)
    across = _positions(layer, width, 1)
    patches = patches.transpose(0, 1).flatten(1)  # (patch, n * positions)
    outputs = layer.weight.flatten(1) @ patches
    if layer.bias is not None:
        outputs = outputs + layer.bias.unsqueeze(1)
    return outputs.unflatten(1, (count, -1, across)).transpose(0, 1)


def _positions(layer: nn.Conv2d, length: int, axis: int) -> int:
    """Return how many places the kernel takes along an axis of so many pixels."""
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
    around = 2 * int(layer.padding[axis])
    return (length + around - reach - 1) // layer.stride[axis] + 1
