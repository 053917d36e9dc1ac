"""Flips, crops and affine maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dlcourse.data_augmentation.decisions import (
    _between,
    _check_batch,
    _check_range,
    _check_share,
    _filled,
    _per_image,
    _rand,
)


def horizontal_flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror left and right the images of which `flipped` (n,) is true."""
    return _pick_mirrored(images, flipped, -1)


def vertical_flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror top and bottom the images of which `flipped` (n,) is true."""
    return _pick_mirrored(images, flipped, -2)


def _pick_mirrored(images: Tensor, flipped: Tensor, dim: int) -> Tensor:
    _check_batch(images)
    kept = 1 - _per_image(flipped, images, "flipped")
    # with weights of 0 and 1 this is exact for finite pixels, and several times as fast
    # as where()
    return images.flip(dim).lerp_(images, kept)


def pad(images: Tensor, padding: int, fill=0.0) -> Tensor:
    """Add `padding` >= 0 pixels of `fill` (a number, or one a channel) on all four sides."""
    _check_batch(images)
    if padding < 0:
        raise ValueError(f"padding={padding}: give 0 or more pixels")
    n, c, h, w = images.shape
    padded = _filled(images, fill, h + 2 * padding, w + 2 * padding).contiguous()
    padded[..., padding : padding + h, padding : padding + w] = images
    return padded


def crop(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a window of `size` (height, width) at its own `top` and `left` (n,) out of each
    image.

    Raises ValueError where a window reaches over the edge.
    """
    _check_batch(images)
    n, c, h, w = images.shape
    height, width = size
    if not (0 < height <= h and 0 < width <= w):
        raise ValueError(
            f"a window of {tuple(size)} does not fit into {h} x {w}: pad first"
        )
    for name, start, last in (("top", top, h - height), ("left", left, w - width)):
        if start.shape != (n,) or (n and not (start.min() >= 0 and start.max() <= last)):
            raise ValueError(f"{name} must be ({n},) whole numbers from 0 to {last}")
    if n == 0:
        return images[..., :height, :width].clone()
    # A row of a window is `width` neighbours in memory. So view the batch as all its runs
    # of that length, which overlap and cost nothing, and copy the n * c * height runs
    # that are asked for.
    images = images.contiguous()
    runs = images.as_strided(
        (images.numel() - width + 1, width), (1, 1), images.storage_offset()
    )
    planes = torch.arange(n * c, device=images.device).view(n, c, 1) * h
    rows = planes + top.view(n, 1, 1) + torch.arange(height, device=images.device)
    starts = rows * w + left.view(n, 1, 1)
    return runs.index_select(0, starts.flatten()).view(n, c, height, width)


class RandomHorizontalFlip:
    """Mirror each image left and right with probability `p`.

    Raises ValueError for `p` outside [0, 1]. Invariant: each image comes out as it was or
    mirrored.
    """

    def __init__(self, p: float = 0.5) -> None:
        _check_share("p", p)
        self.p = p

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        return horizontal_flip(images, _rand(images, generator) < self.p)


class RandomVerticalFlip(RandomHorizontalFlip):
    """Mirror each image top and bottom with probability `p`."""

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        return vertical_flip(images, _rand(images, generator) < self.p)


class RandomCrop:
    """Pad by `padding` pixels of `fill`, then cut a window of `size` at a random place.

    size: (height, width), or None for the size of the image; with padding=1 that is a
    shift by at most one pixel in each direction.

    Invariant: every window of the padded image is equally likely.
    """

    def __init__(
        self, size: tuple[int, int] | None = None, padding: int = 0, fill=0.0
    ) -> None:
        if padding < 0 or (size is not None and min(size) < 1):
            raise ValueError(
                f"size={size}, padding={padding}: give at least 1, and at least 0"
            )
        self.size, self.padding, self.fill = size, padding, fill

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        height, width = images.shape[-2:]
        size = self.size or (height, width)
        if self.padding:
            images = pad(images, self.padding, self.fill)
        places = [max(images.shape[-2 + side] - size[side] + 1, 1) for side in (0, 1)]
        draws = _rand(images, generator, 2)
        top, left = (
            (draws[:, side] * places[side]).long().clamp(max=places[side] - 1)
            for side in (0, 1)
        )
        return crop(images, top, left, size)


class RandomErasing:
    """Fill a random rectangle of each image with `value`, with probability `p`.

    scale: the range of the rectangle's share of the area. ratio: the range of height over
    width, drawn evenly on a log scale. A side that would be longer than the image is cut
    to it. value: a number, or one a channel. Source: Zhong et al., Random Erasing (2017).

    Invariants: pixels outside the rectangle are as they were; the rectangle lies in the
    image.
    """

    def __init__(self, p=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0.0) -> None:
        _check_share("p", p)
        self.p, self.value = p, value
        self.scale, self.ratio = (
            _check_range("scale", scale, 0),
            _check_range("ratio", ratio, 1e-6),
        )

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        _check_batch(images)
        h, w = images.shape[-2:]
        area = _between(images, generator, *self.scale) * h * w
        ratio = _between(images, generator, *map(math.log, self.ratio)).exp()
        height = (area * ratio).sqrt().round().clamp(1, h)
        width = (area / ratio).sqrt().round().clamp(1, w)
        place = _rand(images, generator, 2)
        top = (place[:, 0] * (h - height + 1)).floor().clamp(max=h - 1)
        left = (place[:, 1] * (w - width + 1)).floor().clamp(max=w - 1)
        chosen = _rand(images, generator) < self.p
        return erase(images, top, left, height * chosen, width, self.value)


def erase(images: Tensor, top, left, height, width, value=0.0) -> Tensor:
    """Fill in each image its own rectangle, four numbers of pixels (n,), with `value`."""
    _check_batch(images)
    inside = _box(images, top, left, height, width)
    return torch.where(inside, _filled(images, value, *images.shape[-2:]), images)


def _box(images: Tensor, top, left, height, width) -> Tensor:
    """Return (n, 1, h, w): whether a pixel lies in the rectangle of its image."""
    y, x = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    y, x = y.view(-1, 1), x.view(1, -1)
    top, left, height, width = (
        torch.as_tensor(value, device=images.device).view(-1, 1, 1, 1)
        for value in (top, left, height, width)
    )
    return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)


def affine(
    images: Tensor,
    angle: float | Tensor = 0.0,
    translate: Sequence[float | Tensor] = (0.0, 0.0),
    scale: float | Tensor = 1.0,
    shear: Sequence[float | Tensor] = (0.0, 0.0),
    fill=0.0,
    interpolation: str = "bilinear",
) -> Tensor:
    """Turn, shift, scale and shear each image about its centre, by its own numbers.

    Each number is one for all or a tensor (n,): `angle` and the two of `shear` in
    degrees, clockwise; the two of `translate` in pixels to the right and down; `scale`
    above 0. interpolation: "bilinear" or "nearest". Pixels from outside are `fill`.

    Invariants: whole-pixel shifts move pixels unchanged; without change the image comes
    back.
    """
    _check_batch(images)
    if interpolation not in ("bilinear", "nearest"):
        raise ValueError(
            f"interpolation={interpolation!r}: choose 'bilinear' or 'nearest'"
        )
    n, c, h, w = images.shape
    if n == 0:
        return images.clone()
    exact = images.double() if images.dtype == torch.float64 else images.float()
    numbers = (angle, *translate, scale, *shear)
    names = ("angle", "translate x", "translate y", "scale", "shear x", "shear y")
    angle, right, down, scale, shear_x, shear_y = (
        _per_image(value, exact, name)[..., 0]
        for value, name in zip(numbers, names, strict=True)
    )
    angle, shear_x, shear_y = (torch.deg2rad(v) for v in (angle, shear_x, shear_y))
    if (scale <= 0).any():
        raise ValueError("scale must be above 0")
    # the map of a point of the input; its inverse says where each pixel of the output
    # comes from
    a = torch.cos(angle - shear_y) / torch.cos(shear_y)
    b = -a * torch.tan(shear_x) - torch.sin(angle)
    e = torch.sin(angle - shear_y) / torch.cos(shear_y)
    d = -e * torch.tan(shear_x) + torch.cos(angle)
    y = (
        torch.arange(h, dtype=exact.dtype, device=images.device).view(1, -1, 1)
        - (h - 1) / 2
        - down
    )
    x = (
        torch.arange(w, dtype=exact.dtype, device=images.device).view(1, 1, -1)
        - (w - 1) / 2
    )
    x = x - right
    # written out, since a matrix product would run in bfloat16 under autocast
    grid = torch.stack(
        [(d * x - b * y) / scale * 2 / w, (a * y - e * x) / scale * 2 / h], dim=-1
    )
    fill = _filled(exact, fill, 1, 1)
    moved = F.grid_sample(exact - fill, grid, mode=interpolation, align_corners=False)
    return (moved + fill).to(images.dtype)


class RandomAffine:
    """Turn, shift, scale and shear each image by numbers of its own.

    degrees: a number d for (-d, d), or the range (low, high), clockwise. translate: the
    largest shift as a share of (width, height), in [0, 1]. scale: a range above 0. shear:
    a number or range of degrees, along x. fill, interpolation: as for `affine`.

    Raises ValueError for ranges that are none.
    """

    def __init__(
        self,
        degrees,
        translate=None,
        scale=None,
        shear=None,
        fill=0.0,
        interpolation="bilinear",
    ) -> None:
        self.degrees = _symmetric("degrees", degrees)
        self.shear = _symmetric("shear", shear or 0.0)
        self.translate = tuple(translate or (0.0, 0.0))
        for share in self.translate:
            _check_share("translate", share)
        self.scale = _check_range("scale", scale or (1.0, 1.0), 1e-6)
        self.fill, self.interpolation = fill, interpolation

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        _check_batch(images)
        h, w = images.shape[-2:]
        angle = _between(images, generator, *self.degrees)
        right, down = (
            # whole pixels: no blur
            (_between(images, generator, -share, share) * side).round()
            for share, side in zip(self.translate, (w, h), strict=True)
        )
        scale = _between(images, generator, *self.scale)
        shear = _between(images, generator, *self.shear)
        return affine(
            images,
            angle,
            (right, down),
            scale,
            (shear, 0.0),
            self.fill,
            self.interpolation,
        )


class RandomRotation(RandomAffine):
    """Turn each image by an angle of its own from `degrees`, as for `RandomAffine`."""

    def __init__(self, degrees, fill=0.0, interpolation="bilinear") -> None:
        super().__init__(degrees, fill=fill, interpolation=interpolation)


def _symmetric(name: str, value) -> tuple:
    if isinstance(value, (int, float)):
        if value < 0:
            raise ValueError(f"{name}={value}: give 0 or more, or a range (low, high)")
        value = (-value, value)
    return _check_range(name, value)
