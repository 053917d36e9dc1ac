"""Two images into one: mixup, CutMix, erasing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dlcourse.data_augmentation.decisions import _check_batch, _per_image, _rand
from dlcourse.data_augmentation.geometry import _box


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
    gamma = torch._standard_gamma  # pyright: ignore[reportPrivateImportUsage]
    logs = gamma(shape, generator=generator).log()
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
