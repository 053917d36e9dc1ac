"""A recipe is what it says in its file, and refuses what cannot be in one line."""

from __future__ import annotations

import math
import random

import pytest

from dlcourse.capstone.building import ACTIVATIONS
from dlcourse.capstone.settings import Problem, Recipe, choices
from dlcourse.lab.datasets import NAMES


def test_the_choices_are_what_there_is():
    assert choices("data") == NAMES
    assert choices("activation") == tuple(ACTIVATIONS)
    assert choices("lr") == choices("root") == choices("size") == ()


@pytest.mark.parametrize("seed", range(20))
def test_toml_gives_the_same_recipe_back(seed):
    rng = random.Random(seed)
    values = {}
    for name, field in Recipe.model_fields.items():
        bounds = [bound.ge for bound in field.metadata if hasattr(bound, "ge")]
        if name in ("data", "split", "root", "labels", "groups", "pretrained"):
            continue
        if choices(name):
            values[name] = rng.choice(choices(name))
        elif name == "skip_corrupt":
            values[name] = rng.random() < 0.5
        elif "int" in str(field.annotation):
            values[name] = bounds[0] + rng.randrange(5)
        else:
            values[name] = bounds[0] + rng.random() * 0.4
    values |= {
        "max_norm": math.inf,
        "root": 'a "quoted" \\ path\twith é 😀 \x7f',
        "accumulation_steps": 1,
    }
    one = Recipe(**values)
    assert Recipe.from_toml(one.to_toml()) == one


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": 0.0}, "lr=0.0: give at least"),
        ({"lr": "fast"}, "is no float"),
        ({"lr": math.nan}, "give at least"),
        ({"lr": math.inf}, "give at most"),
        ({"weight_decay": math.inf}, "give at most"),
        ({"seed": 2**63}, "give at most"),
        ({"epochs": True}, "is no int"),
        ({"epochs": 0}, "give at least 1"),
        ({"augment": "rotate"}, "choose one of none, shift"),
        ({"validation": 0.7}, "give at most"),
        ({"data": "folder"}, "needs a path"),
        ({"data": "mnist", "split": "group"}, "split group"),
        ({"data": "mnist", "split": "random"}, "its own test images"),
        ({"accumulation_steps": 65}, "lower it"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(Problem, match=words):
        Recipe(**settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr = ", "is not TOML"),
        ("rate = 1.0", "sets rate, which is no setting"),
        ("lr=1", ""),
    ],
)
def test_files_that_are_no_recipe_are_refused(text, words):
    if not words:
        assert Recipe.from_toml(text).lr == 1
        return
    with pytest.raises(Problem, match=words):
        Recipe.from_toml(text, "recipe.toml")
