"""The images of a folder: found, read, looked at for copies, split and normalised."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from dlcourse.capstone.cache import read_once
from dlcourse.capstone.copies import look_at, pairs_of
from dlcourse.capstone.pretrained import SIZE
from dlcourse.capstone.settings import Recipe
from dlcourse.capstone.sides import choose, evened, uneven
from dlcourse.lab.datasets import FOLDER_SIZE, PARTS, SMALLEST_STD, ImageData, Split
from dlcourse.lab.folders import Listing, list_folder, list_labels
from dlcourse.lab.images import summed_up
from dlcourse.lab.pixels import FEW, OnDisk, Pixels

DEEP_STD = 1e-9  # the least std of images with more than 8 bits


@dataclass(frozen=True, eq=False, repr=False)
class OwnImages(ImageData):
    """The images of a folder, with what was found among them.

    `notes`: lines to print and to keep in the card. `table`: (file, class, part, digest)
    of each image that is used, by which a later run sees whether they are the same. `how`:
    "given", "group", "stratified" or "random".
    """

    notes: tuple[str, ...] = ()
    table: tuple[tuple[str, str, str, str], ...] = ()
    how: str = "stratified"

    @property
    def stored(self) -> Tensor | OnDisk:
        """All pixels, in memory or in a file."""
        return cast(Pixels, self.train.images).stored


def load_own(recipe: Recipe, beside: Path | None = None) -> OwnImages:
    """Return the images of the recipe's folder, split and normalised.

    beside: the folder of the run, which takes up the pixels above the recipe's budget of
    memory. Raises ValueError, OSError or Problem for what cannot be used.
    """
    listing = find(recipe)
    size = recipe.size or (SIZE if recipe.pretrained else FOLDER_SIZE)
    stored, items, bad = read_once(listing, recipe, size, beside)
    notes = listing.notes()
    if bad:
        notes.append(summed_up(bad, "file(s) cannot be read and are left out"))
        warnings.warn(notes[-1], stacklevel=2)
    pixels = Pixels(stored)
    files = [item.file for item in items]
    number = {name: label for label, name in enumerate(listing.classes)}
    labels = torch.tensor([number[item.label] for item in items])
    each = torch.arange(len(items)).split(FEW)
    digests, waves = look_at(pixels.raw(rows).numpy() for rows in each)
    pairs = pairs_of(digests, waves, lambda rows: pixels.raw(torch.tensor(rows)).numpy())
    parts, said = choose(recipe, items, labels, listing.classes, pairs)
    if recipe.train_limit:
        parts[0] = parts[0][: recipe.train_limit]
    notes += said + uneven(labels[parts[0]], listing.classes, recipe.balance)
    table = [
        (files[row], items[row].label, name, digests[row].hex())
        for name, rows in zip(PARTS, parts, strict=True)
        for row in rows.tolist()
    ]
    least = DEEP_STD if "float" in str(stored.dtype) else SMALLEST_STD
    mean, std = pixels.at(parts[0]).statistics(least)
    pixels = pixels.normalized(mean, std)
    if recipe.balance == "sampling":
        parts[0] = evened(parts[0], labels, recipe.seed)
    train, validation, test = (
        Split(pixels.at(rows), labels[rows], files=tuple(map(files.__getitem__, rows)))
        for rows in parts
    )
    how = "group" if recipe.groups else recipe.split
    if any(item.split for item in items):
        how = "given"
    return OwnImages(
        "folder", train, validation, test, listing.classes, mean, std,
        notes=tuple(notes), table=tuple(sorted(table)), how=how,
    )  # fmt: skip


def find(recipe: Recipe) -> Listing:
    """Return the images that a recipe means, by folders or by its table of labels."""
    root = Path(recipe.root or "")
    if recipe.labels:
        return list_labels(root, Path(recipe.labels))
    return list_folder(root, nested=recipe.groups is not None)
