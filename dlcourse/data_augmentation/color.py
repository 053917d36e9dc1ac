"""Brightness, contrast, saturation."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dlcourse.data_augmentation.decisions import (
    _between,
    _check_colour,
    _check_range,
    _per_image,
)

# the shares of red, green and blue in a grey value (ITU-R 601)
GREY = (0.2989, 0.587, 0.114)


def _blend(images: Tensor, other, factor, name: str) -> Tensor:
    factor = _per_image(factor, images, name)
    if (factor < 0).any():
        raise ValueError(f"{name} factor below 0: 0 removes, 1 keeps, 2 doubles")
    return torch.lerp(other, images, factor).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    shares = torch.tensor(GREY, dtype=images.dtype, device=images.device).view(-1, 1, 1)
    return (images * shares).sum(1, keepdim=True)


def adjust_brightness(images: Tensor, factor) -> Tensor:
    """Multiply each image in [0, 1] by its factor >= 0, and clip."""
    _check_colour(images)
    return _blend(images, images.new_zeros(()), factor, "brightness")


def adjust_contrast(images: Tensor, factor) -> Tensor:
    """Scale each image in [0, 1] about its mean grey value by its factor >= 0, and clip."""
    _check_colour(images)
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), factor, "contrast")


def adjust_saturation(images: Tensor, factor) -> Tensor:
    """Scale each pixel in [0, 1] about its own grey value by its image's factor >= 0, and
    clip.

    Images of one channel have no saturation and come back as they are, as in torchvision.
    """
    _check_colour(images)
    return (
        _blend(images, _grey(images), factor, "saturation")
        if images.shape[1] == 3
        else images
    )


class ColorJitter:
    """Change brightness, contrast and saturation of each image in [0, 1], in this order.

    Each is the range (low, high) of a factor >= 0, or a number v for (1 - v, 1 + v), 0 at
    least.
    """

    def __init__(self, brightness=0.0, contrast=0.0, saturation=0.0) -> None:
        self.steps = []
        for name, value, adjust in (
            ("brightness", brightness, adjust_brightness),
            ("contrast", contrast, adjust_contrast),
            ("saturation", saturation, adjust_saturation),
        ):
            if isinstance(value, (int, float)):
                value = (max(0.0, 1 - value), 1 + value)
            low, high = _check_range(name, value, 0)
            if (low, high) != (1, 1):
                self.steps.append((adjust, low, high))

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        _check_colour(images)
        for adjust, low, high in self.steps:
            images = adjust(images, _between(images, generator, low, high))
        return images
