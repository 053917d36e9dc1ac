"""Exercises of chapter 10, data augmentation: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from dlcourse.data_augmentation import (
    Compose,
    GaussianNoise,
    RandomCrop,
    RandomHorizontalFlip,
    expand,
    horizontal_flip,
)
from dlcourse.lab.exercises import Exercise, Wrong, expect


def _one_row_images(n: int) -> Tensor:
    """Return images (n, 1, 2, 3), each with pixels of its own."""
    return torch.arange(n * 6, dtype=torch.float32).view(n, 1, 2, 3) / (n * 6)


def _check_flip(answer: Callable) -> None:
    images, first = _one_row_images(64), Generator().manual_seed(1)
    before = images.clone()
    result = answer(images, first)
    expect(torch.equal(images, before), "The given images have changed: make new ones.")
    expect(
        result.shape == images.shape,
        f"The result is {tuple(result.shape)}: keep (n, c, h, w).",
    )
    mirrored = images.flip(-1)
    as_was = (result == images).flatten(1).all(1)
    turned = (result == mirrored).flatten(1).all(1)
    expect(
        not (result == images.flip(-2)).flatten(1).all(1).any(),
        "Some images stand on their head: the last dimension is the one from left to right.",
    )
    expect(
        bool((as_was | turned).all()),
        "Some images are neither as they were nor mirrored: the pixels of one image go together.",
    )
    expect(
        0 < int(turned.sum()) < len(images),
        "All images took the same decision: draw one number for each image, not one for the batch.",
    )
    again = answer(images, Generator().manual_seed(1))
    expect(
        torch.equal(again, result),
        "The same seed gave other images: draw from `generator`.",
    )


def _solve_flip(images, generator):
    flipped = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)


def _flip_whole_batch(images, generator):
    return images.flip(-1) if torch.rand(1, generator=generator) < 0.5 else images.clone()


def _flip_upside_down(images, generator):
    flipped = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(-2), images)


def _flip_each_pixel(images, generator):
    return torch.where(
        torch.rand(images.shape, generator=generator) < 0.5, images.flip(-1), images
    )


def _flip_in_place(images, generator):
    flipped = torch.rand(len(images), generator=generator) < 0.5
    images[flipped] = images[flipped].flip(-1)
    return images


def _flip_from_global(images, generator):
    return _solve_flip(images, None)


def _check_epochs(answer: Callable) -> None:
    images = _one_row_images(16)
    before, shift = images.clone(), RandomCrop(padding=1)
    calls = []

    def transform(batch, generator):
        calls.append(batch.clone())
        return shift(batch, generator)

    seen = list(answer(images, transform, 3, True, Generator().manual_seed(0)))
    expect(torch.equal(images, before), "The given images have changed: make new ones.")
    expect(len(seen) == 3, f"{len(seen)} epochs came back, 3 were asked for.")
    expect(bool(calls), "In training no image was transformed.")
    expect(
        not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2]),
        "Two epochs are alike: transform anew in each epoch, not once before the first.",
    )
    expect(
        all(torch.equal(batch, before) for batch in calls),
        "An epoch started from transformed images: shifts of shifts drift away. Start each epoch "
        "from the originals.",
    )
    calls.clear()
    held = list(answer(images, transform, 2, False, Generator().manual_seed(0)))
    expect(
        all(torch.equal(epoch, before) for epoch in held),
        "Evaluation saw transformed images: the measure itself is then random. Leave them alone.",
    )


def _solve_epochs(images, transform, epochs, training, generator):
    for _ in range(epochs):
        yield transform(images, generator) if training else images


def _augment_once(images, transform, epochs, training, generator):
    once = transform(images, generator) if training else images
    return [once for _ in range(epochs)]


def _augment_always(images, transform, epochs, training, generator):
    return [transform(images, generator) for _ in range(epochs)]


def _augment_on_top(images, transform, epochs, training, generator):
    for _ in range(epochs):
        images = transform(images, generator) if training else images
        yield images


def _arrow_score() -> Callable[[Sequence[Callable]], float]:
    """Return score(transforms): validation accuracy of nearest neighbours on left/right
    arrows.
    """
    arrow = torch.zeros(1, 1, 7, 9)
    arrow[..., 3, 1:8] = 1  # the shaft
    # the head, left
    arrow[..., 2, 2] = arrow[..., 4, 2] = arrow[..., 1, 3] = arrow[..., 5, 3] = 1
    draw = Generator().manual_seed(0)

    def sample(rows, wander):
        labels = torch.arange(rows) % 2
        images = horizontal_flip(arrow.expand(rows, -1, -1, -1), labels)
        images = RandomCrop(padding=wander)(images, draw)
        return GaussianNoise(0.05)(images, draw), labels

    train, validation = sample(12, 0), sample(400, 2)

    def score(transforms: Sequence[Callable]) -> float:
        fresh = Generator().manual_seed(1)
        images, labels = expand(*train, Compose(transforms), 40, fresh)
        distance = torch.cdist(validation[0].flatten(1), images.flatten(1))
        return (labels[distance.argmin(1)] == validation[1]).float().mean().item()

    return score


def _check_choose(answer: Callable) -> None:
    candidates = {
        "flip": RandomHorizontalFlip(),
        "shift": RandomCrop(padding=2),
        "noise": GaussianNoise(0.02),
    }
    score, asked = _arrow_score(), []

    def counted(transforms):
        asked.append([name for name, t in candidates.items() if t in transforms])
        return score(transforms)

    chosen = set(answer(dict(candidates), counted))
    expect(
        chosen <= set(candidates),
        f"{chosen} holds names that are not among the candidates.",
    )
    expect(
        "flip" not in chosen,
        "A flipped arrow points the other way but keeps its label, and the score falls. More "
        "transforms are not better: leave out each one whose score is below that of none.",
    )
    expect(
        "shift" in chosen,
        "Shifts raise the score from that of no transform, and you left them out.",
    )
    expect(
        [] in asked,
        "Ask for score([]) too: without it you cannot tell better from worse.",
    )
    expect(
        "noise" in chosen, "Noise costs nothing here: keep what does not lower the score."
    )


def _solve_choose(candidates, score):
    plain = score([])
    return {
        name
        for name, transform in candidates.items()
        if score([transform]) >= plain - 0.03
    }


def _choose_all(candidates, score):
    return set(candidates)


def _choose_none(candidates, score):
    return set()


def _choose_half_right(candidates, score):
    return {
        name for name, transform in candidates.items() if score([transform]) > 0.5
    } - {"flip"}


EXERCISES = (
    Exercise(
        "Write flip(images, generator): mirror each image (n, c, h, w) left and right with "
        "probability one half, each by its own draw, without a loop.",
        _check_flip,
        _solve_flip,
        {
            "one decision a batch": Wrong(_flip_whole_batch, "not one for the batch"),
            "the other axis": Wrong(_flip_upside_down, "on their head"),
            "one decision a pixel": Wrong(_flip_each_pixel, "go together"),
            "in place": Wrong(_flip_in_place, "have changed"),
            "another generator": Wrong(_flip_from_global, "draw from `generator`"),
        },
    ),
    Exercise(
        "Write epochs(images, transform, count, training, generator): the images of each of "
        "`count` epochs, as a list or by yield. transform(images, generator) is for training only.",
        _check_epochs,
        _solve_epochs,
        {
            "augment once": Wrong(_augment_once, "anew in each epoch"),
            "augment at test": Wrong(_augment_always, "Leave them alone"),
            "augment the augmented": Wrong(_augment_on_top, "from the originals"),
        },
    ),
    Exercise(
        "Write choose(candidates, score): candidates is a dict of transforms by name, and "
        "score([transform, ...]) the validation accuracy after training with them. Return the "
        "names of those that may be used, since alone they cost at most three points.",
        _check_choose,
        _solve_choose,
        {
            "more is better": Wrong(_choose_all, "More transforms are not better"),
            "none is safe": Wrong(_choose_none, "left them out"),
            "without a baseline": Wrong(_choose_half_right, "score([])"),
        },
    ),
)
