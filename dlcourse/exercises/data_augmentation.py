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
from dlcourse.lab.exercises import Exercise, Hint, Wrong, expect


def _pictures(n: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return images whose pixels all differ, so that any mixing shows."""
    draw = Generator().manual_seed(seed)
    return torch.rand(n, channels, height, width, generator=draw)


def _seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------- 1, flip


def _which_are_mirrored(images: Tensor, result, before: Tensor) -> Tensor:
    """Return for each image whether it came back mirrored (n,), or raise a hint."""
    expect(torch.equal(images, before), "The given images have changed: make new ones.")
    expect(
        isinstance(result, Tensor),
        f"A {type(result).__name__} came back: return the images as one tensor.",
    )
    expect(
        result.shape == images.shape,
        f"The result is {tuple(result.shape)}: keep (n, c, h, w).",
    )
    as_was = (result == images).flatten(1).all(1)
    mirrored = (result == images.flip(-1)).flatten(1).all(1)
    upside_down = (result == images.flip(-2)).flatten(1).all(1)
    expect(
        not bool(upside_down.any()),
        "Some images stand on their head: the last dimension is the one from left to "
        "right.",
    )
    expect(
        bool((as_was | mirrored).all()),
        "Some images are neither as they were nor mirrored: the pixels and channels of "
        "one image go together, and images keep their places.",
    )
    return mirrored


def _check_flip(answer: Callable) -> None:
    for seed, shape in enumerate([(64, 1, 2, 3), (7, 3, 5, 4), (1, 2, 3, 3)]):
        images = _pictures(*shape)
        before = images.clone()
        first = answer(images, 0.5, _seeded(seed))
        _which_are_mirrored(images, first, before)
        again = answer(images, 0.5, _seeded(seed))
        expect(
            torch.equal(first, again),
            "The same seed gave other images: draw from `generator`.",
        )
    images = _pictures(24, 1, 2, 3)
    before = images.clone()
    for p, hint in (
        (0.0, "With p = 0 some images are mirrored."),
        (1.0, "With p = 1 some images are not mirrored."),
    ):
        mirrored = _which_are_mirrored(images, answer(images, p, _seeded(0)), before)
        expect(float(mirrored.double().mean()) == p, f"{hint} p is the probability.")

    batches = 300
    for p in (0.5, 0.2, 0.8):
        draw = _seeded(5)  # one stream through all batches
        rows = []
        for _ in range(batches):
            rows.append(_which_are_mirrored(images, answer(images, p, draw), before))
        _look_at_draws(torch.stack(rows).double(), p)


def _look_at_draws(mirrored: Tensor, p: float) -> None:
    """Raise a hint where the decisions (batches, images) are no independent draws."""
    batches, n = mirrored.shape
    counts = mirrored.sum(1)
    expect(
        not bool(((counts == 0) | (counts == n)).all()),
        "All images took the same decision: draw one number for each image, not one for "
        "the batch.",
    )
    expect(
        not bool((mirrored == mirrored[0]).all()),
        "Every batch had the same images mirrored: draw anew in each call.",
    )
    share = mirrored.mean(0)  # of each place in the batch
    expect(
        bool(((share > 0) & (share < 1)).all()),
        "Some places in the batch are always mirrored, or never: each image needs a draw "
        "of its own.",
    )
    overall = float(mirrored.mean())
    margin = 5 * (p * (1 - p) / mirrored.numel()) ** 0.5
    if abs(overall - p) > margin:
        raise Hint(
            f"With p = {p} a share of {overall:.2f} of the images was mirrored: each image "
            "should be with probability p."
        )
    margin = 5 * (p * (1 - p) / batches) ** 0.5
    expect(
        bool(((share - p).abs() < margin).all()),
        "Some places in the batch are mirrored more often than others: each image has "
        "the same probability p.",
    )
    ratio = float(counts.var()) / (n * p * (1 - p))  # 1 for independent draws
    expect(
        ratio > 0.5,
        "The number of mirrored images hardly changes from batch to batch: decide for "
        "each image by a draw of its own, whatever the others do.",
    )
    expect(
        ratio < 2,
        "Images of a batch decide together: draw one number for each image.",
    )


def _solve_flip(images, p, generator):
    draws = torch.rand(len(images), generator=generator)  # one number an image
    flipped = draws < p
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)


def _flip_whole_batch(images, p, generator):
    if torch.rand(1, generator=generator) < p:
        images = images.flip(-1)
    return images


def _flip_upside_down(images, p, generator):
    flipped = torch.rand(len(images), generator=generator) < p
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(-2), images)


def _flip_each_pixel(images, p, generator):
    draws = torch.rand(images.shape, generator=generator)
    return torch.where(draws < p, images.flip(-1), images)


def _flip_in_place(images, p, generator):
    flipped = torch.rand(len(images), generator=generator) < p
    images[flipped] = images[flipped].flip(-1)
    return images


def _flip_from_global(images, p, generator):
    return _solve_flip(images, p, None)


def _flip_every_second(images, p, generator):
    result = images.clone()
    result[::2] = result[::2].flip(-1)
    return result if 0 < p < 1 else _solve_flip(images, p, generator)


def _flip_rarely(images, p, generator):
    return _solve_flip(images, p if p in (0, 1) else 0.1, generator)


def _flip_by_half(images, p, generator):
    return _solve_flip(images, p if p in (0, 1) else 0.5, generator)


def _flip_an_exact_share(images, p, generator):
    chosen = torch.randperm(len(images), generator=generator)[: round(p * len(images))]
    result = images.clone()
    result[chosen] = result[chosen].flip(-1)
    return result


# ----------------------------------------------------------------------------------- 2, epochs


def _as_epochs(found, count: int, images: Tensor) -> list[Tensor]:
    """Return the epochs as tensors of their own, or raise a hint."""
    expect(
        not isinstance(found, Tensor) or found.dim() != images.dim(),
        "One tensor (n, c, h, w) came back: return, or yield, one for each epoch.",
    )
    epochs = [torch.as_tensor(epoch).clone() for epoch in found]
    expect(
        len(epochs) == count, f"{len(epochs)} epochs came back, {count} were asked for."
    )
    for epoch in epochs:
        expect(
            epoch.shape == images.shape,
            f"An epoch is {tuple(epoch.shape)}, the images are {tuple(images.shape)}: "
            "each epoch holds every image once.",
        )
    return epochs


def _check_epochs(answer: Callable) -> None:
    for count, shape in ((3, (6, 1, 2, 3)), (5, (4, 3, 3, 2)), (1, (1, 1, 4, 4))):
        images = 10 * torch.arange(float(shape[0])).view(-1, 1, 1, 1)
        images = images + _pictures(*shape)
        _check_training(answer, images, count)
        _check_evaluation(answer, images, count)


def _check_training(answer: Callable, images: Tensor, count: int) -> None:
    before = images.clone()
    given = []

    def jitter(batch: Tensor, generator) -> Tensor:
        if not isinstance(batch, Tensor) or batch.shape[1:] != images.shape[1:]:
            raise Hint(
                "transform was given something else than images (n, c, h, w): for a "
                "single image call transform(image[None], generator)."
            )
        given.append(batch.clone())
        return batch + 0.1 + torch.rand(batch.shape, generator=generator)

    def run(seed: int) -> list[Tensor]:
        found = answer(images, jitter, count, True, _seeded(seed))
        return _as_epochs(found, count, images)

    seen = run(0)
    expect(torch.equal(images, before), "The given images have changed: make new ones.")
    expect(bool(given), "In training no image was transformed.")
    for batch in given:
        known = (batch[:, None] == before[None]).flatten(2).all(2).any(1)
        expect(
            bool(known.all()),
            "An epoch started from transformed images: changes of changes drift away. "
            "Start each epoch from the originals.",
        )
    for epoch in seen:
        distance = (epoch - before).flatten(1).mean(1)  # the jitter adds 0.1 to 1.1
        expect(
            bool(((distance > -5) & (distance < 5)).all()),
            "An image is not in its place any more: keep the order, as labels[i] "
            "belongs to images[i].",
        )
        expect(
            not bool((epoch == before).flatten(1).all(1).any()),
            "In training some images came back as they are: transform each of them in "
            "every epoch.",
        )
    for number, epoch in enumerate(seen):
        for other in seen[:number]:
            again = (epoch[:, None] == other[None]).flatten(2).all(2).any()
            expect(
                not bool(again),
                "The same version of an image came twice: transform anew in each epoch, "
                "not once before the first, and let the generator move on.",
            )
    expect(
        all(torch.equal(a, b) for a, b in zip(seen, run(0), strict=True)),
        "The same seed gave other images: hand `generator` to transform.",
    )
    expect(
        not any(torch.equal(a, b) for a, b in zip(seen, run(1), strict=True)),
        "Another seed gave the same images: hand `generator` itself to transform.",
    )


def _check_evaluation(answer: Callable, images: Tensor, count: int) -> None:
    before = images.clone()

    def jitter(batch: Tensor, generator) -> Tensor:
        return batch + 0.1 + torch.rand(batch.shape, generator=generator)

    held = _as_epochs(answer(images, jitter, count, False, _seeded(0)), count, images)
    expect(torch.equal(images, before), "The given images have changed: make new ones.")
    for epoch in held:
        expect(
            torch.equal(epoch, before),
            "Evaluation saw transformed images: the measure itself is then random. Leave "
            "them alone.",
        )


def _solve_epochs(images, transform, count, training, generator):
    for _ in range(count):
        yield transform(images, generator) if training else images


def _augment_once(images, transform, count, training, generator):
    once = transform(images, generator) if training else images
    return [once for _ in range(count)]


def _augment_once_and_shuffle(images, transform, count, training, generator):
    once = transform(images, generator) if training else images
    for _ in range(count):
        order = torch.randperm(len(images), generator=generator)
        yield once[order] if training else images


def _augment_always(images, transform, count, training, generator):
    return [transform(images, generator) for _ in range(count)]


def _augment_on_top(images, transform, count, training, generator):
    for _ in range(count):
        images = transform(images, generator) if training else images
        yield images


def _augment_from_global(images, transform, count, training, generator):
    for _ in range(count):
        yield transform(images, None) if training else images


def _augment_from_own_seed(images, transform, count, training, generator):
    for number in range(count):
        yield transform(images, _seeded(number)) if training else images


def _augment_all_but_the_first(images, transform, count, training, generator):
    for number in range(count):
        yield transform(images, generator) if training and number else images


# ----------------------------------------------------------------------------------- 3, choose


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


class _Played:
    """A transform of a played case: what it changes the score by, and nothing else."""

    def __init__(self, effect: float) -> None:
        self.effect = effect

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        return images


# the score of no transform, and what each candidate changes it by
_CASES = (
    (0.81, {"crop": -0.01, "spin": 0.04, "blur": -0.09, "mirror": 0.0, "cut": -0.05}),
    (0.42, {"mirror": 0.02, "noise": -0.02, "crop": 0.3}),
    (0.93, {"noise": -0.08, "flip": -0.2, "shift": -0.05}),
    (0.66, {"a": 0.005, "b": 0.02, "c": -0.01, "d": 0.05}),
    (0.55, {"flip": 0.08, "shift": -0.11, "noise": -0.04}),
    (0.44, {"flip": 0.004, "noise": 0.03, "crop": -0.04}),  # too little is no gain
)


def _check_choose(answer: Callable) -> None:
    for plain, effects in _CASES:
        played = {name: _Played(effect) for name, effect in effects.items()}

        def score(transforms, plain=plain):
            return plain + sum(transform.effect for transform in transforms)

        _check_choice(answer, played, score)
    arrows = {
        "noise": GaussianNoise(0.02),
        "flip": RandomHorizontalFlip(),
        "shift": RandomCrop(padding=2),
    }
    _check_choice(answer, arrows, _arrow_score())


def _check_choice(answer: Callable, candidates: dict, score: Callable) -> None:
    known = list(candidates.values())

    def asked(transforms) -> float:
        expect(
            isinstance(transforms, (list, tuple, set, frozenset)),
            "score takes a list of transforms: score([transform]), and score([]) for none.",
        )
        expect(
            all(transform in known for transform in transforms),
            "score was given something that is no candidate: hand it the transforms "
            "themselves, not their names.",
        )
        return score(list(transforms))

    found = answer(dict(candidates), asked)
    expect(
        not isinstance(found, str) and hasattr(found, "__iter__"),
        "Return the names, as a set or a list.",
    )
    chosen = set(found)
    expect(
        chosen <= set(candidates),
        "Something that you return is not the name of a candidate: names are the keys of "
        "`candidates`.",
    )
    plain = score([])
    for name, transform in candidates.items():
        alone = score([transform])
        compared = f"{name!r} scores {alone:.3f}, none scores {plain:.3f}"
        if alone < plain + 0.01:
            expect(
                name not in chosen,
                f"{compared}: it gains less than one point, so leave it out. More "
                "transforms are not better. Compare each, alone, with score([]).",
            )
        else:
            expect(
                name in chosen,
                f"{compared}: it gains more than one point, so keep it. Compare each "
                "candidate, alone, with score([]).",
            )


def _solve_choose(candidates, score):
    plain = score([])
    return {
        name
        for name, transform in candidates.items()
        if score([transform]) >= plain + 0.01
    }


def _choose_all(candidates, score):
    return set(candidates)


def _choose_none(candidates, score):
    return set()


def _choose_above_half(candidates, score):
    return {name for name, transform in candidates.items() if score([transform]) > 0.5}


def _choose_by_name(candidates, score):
    return {name for name in candidates if name in ("shift", "noise")}


def _choose_top_two(candidates, score):
    return sorted(candidates, key=lambda name: score([candidates[name]]))[-2:]


def _choose_any_gain(candidates, score):
    plain = score([])
    return {name for name, one in candidates.items() if score([one]) > plain}


def _choose_harmless(candidates, score):
    plain = score([])
    return {name for name, one in candidates.items() if score([one]) >= plain - 0.03}


# -------------------------------------------------------------------------------------- 4, mix


def _check_mix(answer: Callable) -> None:
    for n, classes, seed in ((4, 3, 0), (7, 5, 1), (2, 2, 2), (3, 6, 3)):
        images = _pictures(n, 3, 2, 4, seed)
        labels = torch.arange(n) % classes
        weights = torch.rand(n, generator=_seeded(seed))
        before = images.clone()
        found = answer(images, labels, weights, classes)
        expect(
            torch.equal(images, before), "The given images have changed: make new ones."
        )
        expect(
            isinstance(found, (tuple, list)) and len(found) == 2,
            "Return two things: the mixed images and the mixed targets.",
        )
        mixed, targets = (torch.as_tensor(part) for part in found)
        expect(
            mixed.shape == images.shape,
            f"The mixed images are {tuple(mixed.shape)}: keep (n, c, h, w).",
        )
        expect(
            targets.shape == (n, classes),
            f"The targets are {tuple(targets.shape)}: give each image a share of every "
            f"class, here ({n}, {classes}).",
        )
        _compare_mixed(mixed, targets, images, labels, weights)


def _compare_mixed(mixed, targets, images, labels, weights) -> None:
    classes = targets.shape[1]
    own = weights.view(-1, 1, 1, 1)
    hot = torch.eye(classes)[labels]
    wanted = own * images + (1 - own) * images.roll(1, 0)
    swapped = (1 - own) * images + own * images.roll(1, 0)
    other = own * images + (1 - own) * images.roll(-1, 0)

    def close(a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), atol=1e-5)

    expect(
        not close(mixed, swapped),
        "The weights are the wrong way round: weights[i] is the share of image i itself.",
    )
    expect(
        close(mixed, wanted) or not close(mixed, other),
        "The partner is the image after: take the one before, of the first the last.",
    )
    expect(
        close(mixed, wanted),
        "The images are not weights[i] of image i plus the rest of the image before it.",
    )
    own = weights.view(-1, 1)
    wanted = own * hot + (1 - own) * hot.roll(1, 0)
    expect(
        not close(targets, hot),
        "The images are mixed and the targets are not: a blend of two classes has two "
        "labels.",
    )
    expect(
        bool(((targets.sum(1) - 1).abs() < 1e-4).all()),
        "The shares of a row do not add up to 1.",
    )
    expect(
        close(targets, wanted),
        "The targets are not mixed as the images are: the same weights, the same partner.",
    )


def _solve_mix(images, labels, weights, classes):
    own = weights.view(-1, 1, 1, 1)
    mixed = own * images + (1 - own) * images.roll(1, 0)

    targets = torch.eye(classes)[labels]  # one-hot (n, classes)
    own = weights.view(-1, 1)
    return mixed, own * targets + (1 - own) * targets.roll(1, 0)


def _mix_images_only(images, labels, weights, classes):
    return _solve_mix(images, labels, weights, classes)[0], torch.eye(classes)[labels]


def _mix_the_wrong_way(images, labels, weights, classes):
    return _solve_mix(images, labels, 1 - weights, classes)


def _mix_with_the_next(images, labels, weights, classes):
    own = weights.view(-1, 1, 1, 1)
    mixed = own * images + (1 - own) * images.roll(-1, 0)
    return mixed, _solve_mix(images, labels, weights, classes)[1]


def _mix_by_one_weight(images, labels, weights, classes):
    return _solve_mix(images, labels, weights[:1].expand(len(images)), classes)


def _mix_label_numbers(images, labels, weights, classes):
    mixed, _ = _solve_mix(images, labels, weights, classes)
    return mixed, weights * labels + (1 - weights) * labels.roll(1)


EXERCISES = (
    Exercise(
        "Write flip(images, p, generator): mirror each image of (n, c, h, w) left and right "
        "with probability p, and return them as one tensor. Every image takes a decision of "
        "its own, drawn from `generator`, and the given images stay as they are.",
        _check_flip,
        _solve_flip,
        {
            "one decision a batch": Wrong(_flip_whole_batch, "not one for the batch"),
            "the other axis": Wrong(_flip_upside_down, "on their head"),
            "one decision a pixel": Wrong(_flip_each_pixel, "go together"),
            "in place": Wrong(_flip_in_place, "have changed"),
            "another generator": Wrong(_flip_from_global, "draw from `generator`"),
            "every second image": Wrong(_flip_every_second, "anew in each call"),
            "p is ignored": Wrong(_flip_by_half, "with probability p"),
            "p of one tenth": Wrong(_flip_rarely, "with probability p"),
            "an exact share": Wrong(_flip_an_exact_share, "whatever the others do"),
        },
    ),
    Exercise(
        "Write epochs(images, transform, count, training, generator): return, or yield, the "
        "images (n, c, h, w) of each of `count` epochs, in their order. In training each "
        "epoch shows a fresh version of every image, made by transform(images, generator), "
        "which takes any number of images (n, c, h, w) and decides for each; otherwise "
        "each epoch shows the images as they are.",
        _check_epochs,
        _solve_epochs,
        {
            "augment once": Wrong(_augment_once, "anew in each epoch"),
            "augment once, shuffled": Wrong(_augment_once_and_shuffle, "in its place"),
            "augment at test": Wrong(_augment_always, "Leave them alone"),
            "augment the augmented": Wrong(_augment_on_top, "from the originals"),
            "another generator": Wrong(_augment_from_global, "hand `generator`"),
            "a seed of its own": Wrong(_augment_from_own_seed, "`generator` itself"),
            "the first epoch plain": Wrong(_augment_all_but_the_first, "as they are"),
        },
    ),
    Exercise(
        "Write choose(candidates, score): candidates is a dict {name: transform}, and "
        "score([transform, ...]) the validation accuracy after training with these "
        "transforms, score([]) that without any. Return the names of the candidates that, "
        "used alone, gain at least one point (0.01) over no transform.",
        _check_choose,
        _solve_choose,
        {
            "more is better": Wrong(_choose_all, "More transforms are not better"),
            "none is safe": Wrong(_choose_none, "keep it"),
            "without a baseline": Wrong(_choose_above_half, "less than one point"),
            "known names": Wrong(_choose_by_name, "keep it"),
            "the two best": Wrong(_choose_top_two, "less than one point"),
            "any gain": Wrong(_choose_any_gain, "less than one point"),
            "whatever does little harm": Wrong(_choose_harmless, "less than one point"),
        },
    ),
    Exercise(
        "Write mix(images, labels, weights, classes), which is mixup with given weights. "
        "Image i becomes weights[i] times image i plus 1 - weights[i] times the image "
        "before it in the batch (before the first stands the last). Return the mixed "
        "images (n, c, h, w) and the targets (n, classes), mixed in the same way.",
        _check_mix,
        _solve_mix,
        {
            "labels stay": Wrong(_mix_images_only, "the targets are not"),
            "the wrong way round": Wrong(_mix_the_wrong_way, "wrong way round"),
            "the image after": Wrong(_mix_with_the_next, "the image after"),
            "one weight for all": Wrong(_mix_by_one_weight, "weights[i] of image i"),
            "mixed class numbers": Wrong(_mix_label_numbers, "share of every class"),
        },
    ),
)
