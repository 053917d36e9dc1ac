"""Transforms put to use: composed, on batches, on a data set, at test time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn


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
    total = sum((model(view(images)).softmax(-1) for view in views), torch.zeros(()))
    model.train(was_training)
    return total / len(views)
