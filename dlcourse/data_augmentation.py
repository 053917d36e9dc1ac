"""Data augmentation: fresh, label-preserving variants of the training images, drawn on
the fly.

Images are a batch (n, c, h, w). Every random transform is called as `transform(images,
generator)`, takes one decision for each image and has no loop over the images. It never
changes its input. Without a generator it draws from torch's global one.

Geometry (flips, crops, affine maps, erasing) takes images in any range; `fill` is the
value of the new pixels, so give it the value that black has after normalising. Colour
takes images in [0, 1] and raises otherwise: normalise after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

# the shares of red, green and blue in a grey value (ITU-R 601)
GREY = (0.2989, 0.587, 0.114)

# --------------------------------------------------------------------------- decisions


def rank_generator(seed: int, rank: int) -> Generator:
    """Return a generator of its own for process `rank` >= 0: other ranks draw other
    numbers.

    Raises ValueError for a negative seed or rank.

    Invariants: the same pair gives the same stream; two ranks, or two seeds, give
    different ones.
    """
    if seed < 0 or rank < 0:
        raise ValueError(f"seed={seed}, rank={rank}: give whole numbers of at least 0")
    state = np.random.SeedSequence(seed, spawn_key=(rank,)).generate_state(1, np.uint64)[
        0
    ]
    return Generator().manual_seed(int(state >> np.uint64(1)))


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


# --------------------------------------------------------------------------- flips and crops


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
        size = self.size or tuple(images.shape[-2:])
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


# --------------------------------------------------------------------------- affine maps


def affine(
    images: Tensor,
    angle=0.0,
    translate=(0.0, 0.0),
    scale=1.0,
    shear=(0.0, 0.0),
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


# --------------------------------------------------------------------------- colour


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


# --------------------------------------------------------------------------- noise


class GaussianNoise:
    """Add independent normal noise of standard deviation `sigma` to every pixel.

    sigma: a number >= 0, or a range from which each image draws its own. With `clip` the
    result is cut to [0, 1]; switch it off for normalised images.
    """

    def __init__(self, sigma=0.1, clip: bool = True) -> None:
        pair = (sigma, sigma) if isinstance(sigma, (int, float)) else sigma
        self.sigma, self.clip = _check_range("sigma", pair, 0), clip

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        _check_batch(images)
        device = images.device if generator is None else generator.device
        noise = torch.randn(
            images.shape, generator=generator, device=device, dtype=images.dtype
        )
        sigma = _per_image(_between(images, generator, *self.sigma), images, "sigma")
        noisy = images + sigma * noise.to(images.device)
        return noisy.clamp(0, 1) if self.clip else noisy


class SaltAndPepper:
    """Set a share of the pixels to `low` (pepper) or `high` (salt), half each, on all
    channels.

    amount: the share in [0, 1], or a range from which each image draws its own.
    """

    def __init__(self, amount=0.05, low: float = 0.0, high: float = 1.0) -> None:
        pair = (amount, amount) if isinstance(amount, (int, float)) else amount
        self.amount, self.low, self.high = _check_range("amount", pair, 0), low, high
        _check_share("amount", self.amount[1])

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        _check_batch(images)
        draw = _rand(images, generator, 1, *images.shape[-2:])
        amount = _between(images, generator, *self.amount).view(-1, 1, 1, 1)
        values = torch.full_like(images, self.low).masked_fill(
            draw < amount / 2, self.high
        )
        return torch.where(draw < amount, values, images)


# --------------------------------------------------------------------------- two images into one


def mixup(
    images, labels, num_classes: int, alpha: float = 1.0, generator=None, weight=None
):
    """Blend each image with the one before it in the batch, and their labels alike.

    labels: class numbers (n,), or shares (n, num_classes) with the sum 1. Returns the
    images and targets (n, num_classes): weight w of the own label and 1 - w of the other,
    each image with a w of its own from Beta(alpha, alpha), alpha > 0, or from `weight`
    (n,) in [0, 1].
    Source: Zhang et al. (2018). A batch of one image has no other and comes back as it
    is.

    Invariants: each row of the targets sums to 1; the batch's mean target stays in
    expectation.
    """
    _check_batch(images)
    weight = beta_weights(images, alpha, generator) if weight is None else weight
    w = _per_image(weight, images, "weight")
    return images.roll(1, 0).lerp(images, w), _mix_labels(labels, num_classes, w)


def cutmix(
    images,
    labels,
    num_classes: int,
    alpha: float = 1.0,
    generator=None,
    weight=None,
    center=None,
):
    """Paste a rectangle of the image before it in the batch into each image.

    The rectangle has the share 1 - w of the area, with w as for `mixup`, around a random
    `center` (n, 2), (row, column) in pixels, and is cut off at the edge. The label of
    each image counts by the pixels that are left of it. Source: Yun et al. (2019).

    Invariant: the own label's weight is the share of pixels that stayed.
    """
    _check_batch(images)
    h, w = images.shape[-2:]
    weight = beta_weights(images, alpha, generator) if weight is None else weight
    side = (1 - weight).clamp(min=0).sqrt()
    if center is None:
        center = (
            _rand(images, generator, 2) * torch.tensor([h, w], device=images.device)
        ).floor()
    half = torch.stack([(side * h / 2).floor(), (side * w / 2).floor()], 1).to(center)
    low = (center - half).clamp(min=0)
    high = torch.minimum(center + half, torch.tensor([h, w]).to(center))
    inside = _box(images, low[:, 0], low[:, 1], *(high - low).unbind(1))
    kept = 1 - inside.to(images.dtype).mean((1, 2, 3), keepdim=True)
    return torch.where(inside, images.roll(1, 0), images), _mix_labels(
        labels, num_classes, kept
    )


def beta_weights(
    images: Tensor, alpha: float, generator: Generator | None = None
) -> Tensor:
    """Return one draw from Beta(alpha, alpha) an image, (n,) float32 in [0, 1].

    Raises ValueError for alpha that is not above 0.
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha={alpha!r}: give a number above 0, such as 0.2 or 1")
    device = images.device if generator is None else generator.device
    shape = torch.full((len(images), 2), alpha + 1.0, device=device, dtype=torch.float64)
    # the share of two gammas; as logarithms, since gammas of small alpha round to zero. A
    # gamma of alpha is one of alpha + 1 times a uniform number to the power of 1 / alpha.
    logs = torch._standard_gamma(shape, generator=generator).log()
    uniform = torch.rand(
        shape.shape, generator=generator, device=device, dtype=torch.float64
    )
    logs = logs + uniform.clamp(min=1e-300).log() / alpha
    return torch.sigmoid(logs[:, 0] - logs[:, 1]).float().to(images.device)


def _mix_labels(labels: Tensor, num_classes: int, own: Tensor) -> Tensor:
    if labels.ndim == 1 and not labels.is_floating_point():
        labels = F.one_hot(labels, num_classes)
    if labels.shape != (len(own), num_classes):
        raise ValueError(
            f"labels are {tuple(labels.shape)}: give ({len(own)},) class numbers, or shares "
            f"({len(own)}, {num_classes})"
        )
    own = own.view(-1, 1)
    return own * labels.to(own.dtype) + (1 - own) * labels.roll(1, 0).to(own.dtype)


# --------------------------------------------------------------------------- one of many


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


# --------------------------------------------------------------------------- putting to use


class Normalize:
    """Take `mean` (c,) off and divide by `std` (c,) > 0: the last of a chain of
    transforms.
    """

    def __init__(self, mean, std) -> None:
        self.mean, self.std = torch.as_tensor(mean).view(-1, 1, 1), torch.as_tensor(std)
        self.std = self.std.view(-1, 1, 1)
        if not (self.std > 0).all():
            raise ValueError("std must be above 0 in each channel")

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        _check_batch(images)
        return (images - self.mean.to(images)) / self.std.to(images)


class Compose:
    """Apply transforms one after the other, each with the same generator."""

    def __init__(self, transforms: Sequence[Callable]) -> None:
        self.transforms = list(transforms)

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        for transform in self.transforms:
            images = transform(images, generator)
        return images


def on_batches(
    transform: Callable | None = None,
    mix: Callable | None = None,
    generator: Generator | None = None,
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return a function of (inputs, targets) for `fit(transform=)`: first `transform`,
    then `mix`.

    transform(images, generator) returns images. mix(images, labels, generator=generator)
    returns both, as `mixup` does once its number of classes is set. `fit` calls it on the
    whole batch, with all rows of all processes, so there a generator must be the same on
    every process.
    """

    def augment(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if transform is not None:
            inputs = transform(inputs, generator)
        if mix is not None:
            inputs, targets = mix(inputs, targets, generator=generator)
        return inputs, targets

    return augment


def expand(
    images: Tensor, labels: Tensor, transform: Callable, copies: int, generator=None
):
    """Return `copies` >= 1 augmented versions of each row, (copies * n, ...): augment
    once, ahead.

    Kept for comparison: it takes memory and the network sees the same versions again.
    """
    if copies < 1:
        raise ValueError(f"copies={copies}: give at least 1")
    parts = [transform(images, generator) for _ in range(copies)]
    return torch.cat(parts), labels.repeat(copies)


@torch.no_grad()
def predict_views(model: nn.Module, images: Tensor, views: Sequence[Callable]) -> Tensor:
    """Return the class probabilities (n, classes), averaged over views: test-time
    augmentation.

    views: functions of images, which should be fixed, so that a prediction repeats, and
    hold the identity. The model is put into evaluation mode and back.

    Raises ValueError without a view. Invariant: with the identity alone it is the model's
    softmax.
    """
    if not views:
        raise ValueError(
            "give at least one view, such as the identity: lambda images: images"
        )
    was_training = model.training
    model.eval()
    total = sum(model(view(images)).softmax(-1) for view in views)
    model.train(was_training)
    return total / len(views)
