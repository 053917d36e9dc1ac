"""TrivialAugment: one transform of many, at one random strength."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dlcourse.data_augmentation.color import (
    _blend,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
)
from dlcourse.data_augmentation.decisions import _check_colour, _per_image, _rand
from dlcourse.data_augmentation.geometry import affine


def adjust_sharpness(images: Tensor, factor) -> Tensor:
    """Blend each image in [0, 1] with its blur: 0 is the blur, 1 the image, 2 sharper."""
    _check_colour(images)
    n, c, h, w = images.shape
    if min(h, w) < 3 or n == 0:
        return images
    kernel = torch.full((c, 1, 3, 3), 1 / 13, dtype=images.dtype, device=images.device)
    kernel[:, :, 1, 1] = 5 / 13
    blurred = images.clone()
    blurred[..., 1:-1, 1:-1] = F.conv2d(images, kernel, groups=c)
    return _blend(images, blurred, factor, "sharpness")


def posterize(images: Tensor, bits) -> Tensor:
    """Keep 2**bits levels of each image in [0, 1], bits from 1 to 8."""
    _check_colour(images)
    levels = 2 ** _per_image(bits, images, "bits")
    return torch.minimum((images * levels).floor(), levels - 1) / levels


def solarize(images: Tensor, threshold) -> Tensor:
    """Invert the pixels in [0, 1] from their image's threshold on."""
    _check_colour(images)
    return torch.where(
        images >= _per_image(threshold, images, "threshold"), 1 - images, images
    )


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel of each image to [0, 1]; a channel of one value stays."""
    _check_colour(images)
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = low == high
    return (images - low.masked_fill(flat, 0)) / (high - low).masked_fill(flat, 1)


def equalize(images: Tensor) -> Tensor:
    """Make the grey values of each channel about equally frequent, in 256 levels, as
    Pillow does.

    A channel that has too few pixels besides its brightest value stays.
    """
    _check_colour(images)
    levels = (images * 255.999).long().flatten(2)
    pixels = levels.shape[2]
    counts = levels.new_zeros(*levels.shape[:2], 256).scatter_add_(
        2, levels, levels * 0 + 1
    )
    sums = counts.cumsum(2)
    brightest = counts.gather(2, sums.argmax(2, keepdim=True))
    step = (pixels - brightest) // 255
    table = ((sums - counts + step // 2) // step.clamp(min=1)).clamp(max=255)
    found = torch.where(step > 0, table.gather(2, levels), levels)
    return (found / 255).to(images.dtype).view_as(images)


def _shift_x(images, strength, fill):
    return affine(
        images, translate=((strength * images.shape[3]).round(), 0.0), fill=fill
    )


def _shift_y(images, strength, fill):
    return affine(
        images, translate=(0.0, (strength * images.shape[2]).round()), fill=fill
    )


# name: (function of images, strength (n,) and fill; strongest; whether the sign is
# random)
TRIVIAL_OPS: dict[str, tuple[Callable[..., Tensor], float, bool]] = {
    "Identity": (lambda x, s, fill: x, 0.0, False),
    "ShearX": (
        lambda x, s, f: affine(x, shear=(s.atan().rad2deg(), 0.0), fill=f),
        0.99,
        True,
    ),
    "ShearY": (
        lambda x, s, f: affine(x, shear=(0.0, s.atan().rad2deg()), fill=f),
        0.99,
        True,
    ),
    "TranslateX": (_shift_x, 1.0, True),
    "TranslateY": (_shift_y, 1.0, True),
    "Rotate": (lambda x, s, f: affine(x, angle=-s, fill=f), 135.0, True),
    "Brightness": (lambda x, s, f: adjust_brightness(x, 1 + s), 0.99, True),
    "Color": (lambda x, s, f: adjust_saturation(x, 1 + s), 0.99, True),
    "Contrast": (lambda x, s, f: adjust_contrast(x, 1 + s), 0.99, True),
    "Sharpness": (lambda x, s, f: adjust_sharpness(x, 1 + s), 0.99, True),
    "Posterize": (lambda x, s, f: posterize(x, 8 - s.round()), 6.0, False),
    "Solarize": (lambda x, s, f: solarize(x, 1 - s), 1.0, False),
    "AutoContrast": (lambda x, s, f: autocontrast(x), 0.0, False),
    "Equalize": (lambda x, s, f: equalize(x), 0.0, False),
}


class TrivialAugment:
    """Apply to each image in [0, 1] one operation at one strength, both drawn evenly.

    The fourteen operations and their wide ranges are those of Mueller & Hutter (2021);
    shifts go up to the whole side, which is 32 pixels for their images of 32. `ops`: the
    names to draw from, of TRIVIAL_OPS, so that those that change the label can be left
    out. bins: levels of strength.

    The images are grouped by operation: the loop is over operations, never over images.
    """

    def __init__(
        self, ops: Sequence[str] = tuple(TRIVIAL_OPS), bins: int = 31, fill=0.0
    ) -> None:
        unknown = [name for name in ops if name not in TRIVIAL_OPS]
        if unknown or not ops or bins < 2:
            raise ValueError(
                f"ops={list(ops)}, bins={bins}: name some of {', '.join(TRIVIAL_OPS)}, and at "
                "least 2 bins"
            )
        self.ops, self.bins, self.fill = tuple(ops), bins, fill

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        _check_colour(images)
        draws = _rand(images, generator, 3)
        chosen = (draws[:, 0] * len(self.ops)).long().clamp(max=len(self.ops) - 1)
        level = (draws[:, 1] * self.bins).floor().clamp(max=self.bins - 1) / (
            self.bins - 1
        )
        sign = torch.where(draws[:, 2] < 0.5, -1.0, 1.0)
        result = images.clone()
        for number, name in enumerate(self.ops):
            apply, strongest, signed = TRIVIAL_OPS[name]
            rows = (chosen == number).nonzero().squeeze(1)
            strength = level[rows] * strongest * (sign[rows] if signed else 1)
            result[rows] = apply(images[rows], strength, self.fill)
        return result
