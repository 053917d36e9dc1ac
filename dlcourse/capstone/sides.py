"""On which side of the split each image of a folder stands.

Copies of a picture, and groups that the reader names, stay on one side. A split that is
given is kept: what shows a picture that is held out is left out of training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlcourse.capstone.copies import Pair, firsts_of
from dlcourse.capstone.grouping import groups_of
from dlcourse.capstone.settings import Recipe
from dlcourse.data_splitting import stratified_group_split, train_val_test_split
from dlcourse.lab.datasets import PARTS, given_split, split_rows
from dlcourse.lab.folders import Item
from dlcourse.lab.images import summed_up

UNEVEN = 10  # times as many images in one class as in another are worth a line


def choose(
    recipe: Recipe,
    items: Sequence[Item],
    labels: Tensor,
    classes: Sequence[str],
    pairs: Sequence[Pair],
) -> tuple[list[Tensor], list[str]]:
    """Return ([training, validation, test] rows, and lines on copies and groups)."""
    files = [item.file for item in items]
    groups = groups_of(files, recipe.groups) if recipe.groups else {}
    group_of = [groups.get(file) for file in files]
    notes = on_copies(items, pairs)
    given = [item.split for item in items]
    try:
        roots = torch.tensor(firsts_of(pairs, group_of))
        parts = cut(recipe, given, labels, classes, roots, bool(groups))
    except ValueError:
        exact = [pair for pair in pairs if pair.kind == "exact"]
        if len(exact) == len(pairs):
            raise
        roots = torch.tensor(firsts_of(exact, group_of))
        parts = cut(recipe, given, labels, classes, roots, bool(groups))
        many = "near copies are too many to be kept on one side: only exact ones are"
        notes.append(many)
    if any(given):
        parts, left_out = without_copies(parts, roots)
        if left_out:
            notes.append(
                f"{left_out} images of the given split are left out: they show the same "
                "picture (or group) as one that is held out"
            )
    elif pairs or groups:
        what = " and ".join(["copies"] * bool(pairs) + ["groups"] * bool(groups))
        notes.append(f"{what} are kept on one side of the split")
    if groups:
        notes.append(f"{len(set(groups.values()))} groups by {recipe.groups}")
    return parts, notes


def cut(
    recipe: Recipe,
    given: Sequence[str | None],
    labels: Tensor,
    classes: Sequence[str],
    roots: Tensor,
    grouped: bool,
) -> list[Tensor]:
    """Return [training, validation, test] rows: those given, or drawn by the recipe.

    roots: for each row the first of those that stay together with it.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    shares = recipe.validation, recipe.test
    if grouped and not any(given):
        names = [str(root) for root in roots.tolist()]
        parts = stratified_group_split(labels.tolist(), names, *shares, seed=recipe.seed)
        mixed = [torch.from_numpy(part) for part in parts]
        return [part[torch.randperm(len(part), generator=generator)] for part in mixed]
    firsts = roots.unique()  # one row of each picture is drawn, its copies follow
    if any(given):
        parts = given_split(firsts, given, labels, *shares, classes, generator)
    elif recipe.split == "random":
        parts = train_val_test_split(len(firsts), *shares, seed=recipe.seed)
        parts = [firsts[torch.as_tensor(part).long()] for part in parts]
    else:
        parts = split_rows(labels[firsts], shares, classes, generator)
        parts = [firsts[part] for part in parts]
    return with_copies(parts, given, roots)


def with_copies(
    drawn: Sequence[Tensor], given: Sequence[str | None], roots: Tensor
) -> list[Tensor]:
    """Return the parts with the other rows of each picture, or group, at their ends.

    They follow the row that was drawn; where a split is given they stay where it has
    them, unless that row was drawn from training for a part that is missing.
    """
    part_of = {row: place for place, part in enumerate(drawn) for row in part.tolist()}
    there = set(given)
    parts: list[list[int]] = [part.tolist() for part in drawn]
    for row, root in enumerate(roots.tolist()):
        if row == root:
            continue
        place, own = part_of[root], given[row]
        if own is not None and (own != "train" or PARTS[place] in there):
            place = PARTS.index(own)
        parts[place].append(row)
    return [torch.tensor(part).long() for part in parts]


def without_copies(parts: Sequence[Tensor], roots: Tensor) -> tuple[list[Tensor], int]:
    """Return the parts without what a later part holds too, and how many that are."""
    kept: list[Tensor] = []
    seen = torch.tensor([]).long()
    for part in reversed(parts):  # test, validation, training
        mine = part[~torch.isin(roots[part], seen)]
        seen = torch.cat([seen, roots[mine]])
        kept.insert(0, mine)
    return kept, sum(map(len, parts)) - sum(map(len, kept))


def on_copies(items: Sequence[Item], pairs: Sequence[Pair]) -> list[str]:
    """Return a line with the number of copies, and one that names two classes of one."""
    if not pairs:
        return []
    exact = sum(pair.kind == "exact" for pair in pairs)
    notes = [
        f"copies: {len(pairs)} of {len(items)} images show a picture that is there already "
        f"({exact} exactly, {len(pairs) - exact} nearly)"
    ]
    wrong = []
    for pair in pairs:
        one, other = items[pair.first], items[pair.second]
        if one.label != other.label:
            wrong.append(f"{one.file} and {other.file} ({pair.kind})")
    if wrong:
        what = "pictures stand in two classes, so a label is wrong"
        notes.append(summed_up(wrong, what))
    return notes


def uneven(labels: Tensor, classes: Sequence[str], balance: str) -> list[str]:
    """Return a line where one class has many times the training images of another."""
    counts = labels.bincount(minlength=len(classes))
    most, least = int(counts.argmax()), int(counts.argmin())
    if counts[most] < UNEVEN * counts[least]:
        return []
    advice = "" if balance != "none" else "; --balance weights or sampling evens them"
    return [
        f"uneven classes: {int(counts[most])} training images of {classes[most]}, "
        f"{int(counts[least])} of {classes[least]}; to name {classes[most]} always is right "
        f"for {int(counts[most]) / len(labels):.4f}{advice}"
    ]


def evened(rows: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Return the rows with those of smaller classes repeated, until all have as many."""
    generator = torch.Generator().manual_seed(seed)
    of_class = [rows[labels[rows] == label] for label in labels[rows].unique()]
    most = max(map(len, of_class))
    each = torch.cat([part.repeat(-(-most // len(part)))[:most] for part in of_class])
    return each[torch.randperm(len(each), generator=generator)]
