"""Gaussian noise, salt and pepper."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dlcourse.data_augmentation.decisions import (
    _between,
    _check_batch,
    _check_range,
    _check_share,
    _per_image,
    _rand,
)


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
