"""The images of a recipe: read, split, normalised, and checked before any work begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dlcourse.capstone.own import load_own
from dlcourse.capstone.pretrained import SCALE
from dlcourse.capstone.settings import Problem, Recipe
from dlcourse.data_splitting import train_val_test_split
from dlcourse.lab.datasets import PARTS, ImageData, load

AS_OPTIONS = {  # what the loader advises, and the same as options of the command
    "pass skip_corrupt=True.": "leave them out with --skip-corrupt.",
    "lay the images out as root/<class>/<image> and pass root=..., or set DLCOURSE_ROOT": (
        "put the images of each class into a folder of its own, PATH/<class>/<image>, and give "
        "--data folder PATH"
    ),
}


def load_data(recipe: Recipe, beside: Path | None = None) -> ImageData:
    """Return the images of a recipe, split and normalised; else raise Problem.

    beside: the folder of the run, for the pixels of a folder that memory shall not hold.
    """
    settings = recipe.model_dump(include={"root", "size", "validation", "test", "seed"})
    try:
        if recipe.data == "folder":
            data = load_own(recipe, beside)
        elif recipe.split == "stratified":
            data = load(recipe.data, **settings, train_limit=recipe.train_limit)
        else:
            data = cut_elsewhere(load(recipe.data, **settings, normalize=False), recipe)
    except (ValueError, OSError) as error:
        said = " ".join(str(error).split())
        for there, here in AS_OPTIONS.items():
            said = said.replace(there, here)
        raise Problem(said) from error
    data = for_network(data, recipe)
    check_data(data, recipe)
    return data


def for_network(data: ImageData, recipe: Recipe) -> ImageData:
    """Return the images at the scale that a pretrained network expects."""
    if not recipe.pretrained:
        return data
    mean, std = (torch.full((data.channels,), SCALE) for _ in range(2))
    parts = {}
    for name in PARTS:
        part = getattr(data, name)
        if isinstance(part.images, Tensor):
            images = (data.denormalize(part.images) - SCALE) / SCALE
        else:
            images = part.images.normalized(mean, std)
        parts[name] = replace(part, images=images)
    return replace(data, mean=mean, std=std, **parts)


def cut_elsewhere(data: ImageData, recipe: Recipe) -> ImageData:
    """Return the images split at random, or by their groups."""
    parts = (data.train, data.validation, data.test)
    groups = None
    if recipe.split == "group":
        known = [part.groups for part in parts if part.groups is not None]
        groups = torch.cat(known)
    shares = recipe.validation, recipe.test
    count = sum(map(len, parts))
    train, *held = train_val_test_split(count, *shares, groups=groups, seed=recipe.seed)
    limit = recipe.train_limit or len(train)
    if limit > len(train):
        raise Problem(
            f"train_limit={limit}: give at most {len(train)}, the training images"
        )
    return data.with_split(train[:limit], *held)


def check_data(data: ImageData, recipe: Recipe) -> None:
    """Raise Problem for images that would waste a run: NaN, wrong labels, too few."""
    for name in PARTS:
        part = getattr(data, name)
        if len(part) == 0:
            raise Problem(
                f"there are no {name} images: hold out another share, or add images"
            )
        if isinstance(part.images, Tensor):
            finite = part.images.flatten(1).isfinite().all(1)
            bad = len(finite) - int(finite.sum())
            if bad:
                raise Problem(
                    f"{bad} {name} images hold NaN or infinity: mend or remove them"
                )
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= data.num_classes:
            count = data.num_classes
            raise Problem(
                f"{name} labels run from {low} to {high}, but {count} classes are "
                f"numbered 0 to {count - 1}: renumber them"
            )
    if data.num_classes < 2 or len(data.train.labels.unique()) < 2:
        raise Problem("the training images show one class only: add images of another")
    missing = set(range(data.num_classes)) - set(data.train.labels.tolist())
    if missing:
        names = ", ".join(data.classes[number] for number in sorted(missing))
        raise Problem(
            f"no training image of class {names}: add some, or remove the class"
        )
    count = len(data.train)
    if count < recipe.batch_size:
        raise Problem(
            f"{count} training images are fewer than batch_size={recipe.batch_size}: use "
            f"--batch-size {max(1, count // 4)}"
        )
