"""The images of a recipe: how they are split, and which are refused before any work."""

from __future__ import annotations

import math

import pytest
import torch

from dlcourse.capstone.data import load_data
from dlcourse.capstone.folder import CHECKPOINT
from dlcourse.capstone.running import train
from dlcourse.capstone.settings import Problem, Recipe
from dlcourse.lab.datasets import ImageData, Split, load

SMALL = Recipe(model="mlp", width=2, epochs=2, augment="shift", train_limit=320)


def test_split_by_group_keeps_writers_apart():
    data = load_data(Recipe(split="group", validation=0.2, test=0.2))
    train_groups, test_groups = (
        set(data.train.groups.tolist()),
        set(data.test.groups.tolist()),
    )
    assert train_groups.isdisjoint(test_groups) and len(test_groups) >= 2
    flat = data.train.images.double()
    assert abs(flat.mean()) < 1e-5 and abs(flat.std(correction=0) - 1) < 1e-5


@pytest.mark.parametrize("split", ["random", "group"])
def test_the_limit_on_training_images_holds_for_every_split(split):
    whole = load_data(Recipe(split=split))
    data = load_data(Recipe(split=split, train_limit=320))
    assert len(data.train) == 320 and len(data.train.labels.unique()) == 10
    assert torch.equal(data.test.labels, whole.test.labels)
    with pytest.raises(Problem, match=f"at most {len(whole.train)}"):
        load_data(Recipe(split=split, train_limit=1700))


def test_with_split_refuses_rows_used_twice_and_normalised_images():
    raw = load("digits", normalize=False)
    with pytest.raises(ValueError, match="two parts"):
        raw.with_split([0, 1], [1, 2], [3])
    with pytest.raises(ValueError, match="normalize=False"):
        load("digits").with_split([0, 1], [2], [3])


def own(images=None, labels=None, classes="ab"):
    images = torch.rand(80, 1, 8, 8) if images is None else images
    labels = torch.arange(80) % 2 if labels is None else labels
    split = Split(images, labels)
    return ImageData(
        "own", split, split, split, tuple(classes), torch.zeros(1), torch.ones(1)
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (own(images=torch.full((80, 1, 8, 8), math.nan)), "80 train images hold NaN"),
        (own(images=torch.full((80, 1, 8, 8), math.inf)), "hold NaN or infinity"),
        (own(labels=torch.arange(80) % 3), "labels run from 0 to 2, but 2 classes"),
        (own(labels=torch.arange(80) % 2 - 1), "labels run from -1 to 0"),
        (own(labels=torch.zeros(80, dtype=torch.long)), "one class only"),
        (own(classes="abc"), "no training image of class c"),
        (own(torch.rand(20, 1, 8, 8), torch.arange(20) % 2), "use --batch-size 5"),
        (own(torch.rand(0, 1, 8, 8), torch.arange(0)), "no train images"),
    ],
    ids=[
        "nan",
        "inf",
        "label too high",
        "label below 0",
        "one class",
        "empty class",
        "few",
        "none",
    ],
)
def test_data_that_would_waste_a_run_is_refused_before_it(data, words, tmp_path):
    with pytest.raises(Problem, match=words):
        train(SMALL, tmp_path / "run", data=data)
    assert not (tmp_path / "run" / CHECKPOINT).exists()
