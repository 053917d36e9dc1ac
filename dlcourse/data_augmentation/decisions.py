"""One random decision a sample: who is changed, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def _rand(images: Tensor, generator: Generator | None, *shape: int) -> Tensor:
    """Return uniform float32 numbers (n, *shape), drawn where the generator lives."""
    device = images.device if generator is None else generator.device
    return torch.rand(len(images), *shape, generator=generator, device=device).to(
        images.device
    )


def _between(images, generator, low, high) -> Tensor:
    return low + (high - low) * _rand(images, generator)


def _per_image(values, images: Tensor, name: str) -> Tensor:
    """Return one value an image as (n, 1, 1, 1), in the images' dtype."""
    values = torch.as_tensor(values, device=images.device)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != len(images)):
        raise ValueError(
            f"{name} has shape {tuple(values.shape)} for {len(images)} images: give one for each"
        )
    return values.to(images.dtype).expand(len(images)).view(-1, 1, 1, 1)


def _check_batch(images: Tensor) -> None:
    if images.ndim != 4:
        raise ValueError(
            f"images must be (n, c, h, w), not {tuple(images.shape)}: for one image, images[None]"
        )
    if not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype}: divide by 255 to get floats in [0, 1]"
        )


def _check_colour(images: Tensor) -> None:
    _check_batch(images)
    if images.shape[1] not in (1, 3):
        raise ValueError(f"{images.shape[1]} channels: colour needs 1 (grey) or 3 (RGB)")
    low, high = images.aminmax() if images.numel() else (0, 1)
    if not (low >= 0 and high <= 1):  # also for NaN
        raise ValueError(
            f"pixels from {low:.3g} to {high:.3g}: colour needs [0, 1]. Change colours before "
            "normalising, or load(normalize=False)."
        )


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r}: give a number from 0 to 1")


def _check_range(name: str, pair: Sequence[float], least: float = -math.inf) -> tuple:
    pair = tuple(float(value) for value in pair)
    if len(pair) != 2 or not least <= pair[0] <= pair[1] < math.inf:
        said = "" if least == -math.inf else f" of at least {least:g}"
        raise ValueError(
            f"{name}={pair!r}: give (low, high), two numbers{said} in this order"
        )
    return pair


def _filled(images: Tensor, fill, height: int, width: int) -> Tensor:
    """Return images of `fill`, a number or one a channel, in the shape (n, c, height,
    width).
    """
    fill = torch.as_tensor(fill, dtype=images.dtype, device=images.device)
    channels = images.shape[1]
    if fill.ndim > 1 or fill.numel() not in (1, channels):
        raise ValueError(
            f"fill has {fill.numel()} values for {channels} channels: give 1 or each"
        )
    fill = fill.expand(channels) if fill.numel() == 1 else fill
    return fill.view(-1, 1, 1).expand(len(images), -1, height, width)
