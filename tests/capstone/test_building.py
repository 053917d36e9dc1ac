"""The parts of a run: schedules, variants of images, networks."""

from __future__ import annotations

import pytest
import torch

from dlcourse.capstone.building import (
    build_model,
    build_schedule,
    build_transform,
    initialize,
)
from dlcourse.capstone.settings import Recipe, choices
from dlcourse.lab.datasets import ImageData, Split


def weights(model) -> torch.Tensor:
    return torch.cat([value.double().ravel() for value in model.state_dict().values()])


@pytest.mark.parametrize("schedule", choices("schedule"))
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_schedules_warm_up_to_one_and_never_exceed_it(schedule, warmup):
    factor = build_schedule(Recipe(schedule=schedule, warmup=warmup), 100)
    values = [factor(t) for t in range(100)]
    assert max(values) == pytest.approx(1.0) and min(values) >= 0 and values[0] > 0
    if schedule != "constant":
        assert values[-1] < 0.25
    assert values[: round(100 * warmup)] == sorted(values[: round(100 * warmup)])


@pytest.mark.parametrize("augment", choices("augment"))
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentations_keep_shapes_and_draw_from_the_generator(augment, channels):
    g = torch.Generator().manual_seed(0)
    split = Split(torch.rand(20, channels, 16, 16, generator=g), torch.arange(20) % 4)
    mean, std = torch.full((channels,), 0.5), torch.full((channels,), 0.25)
    images = (split.images - 0.5) / 0.25
    data = ImageData("own", split, split, split, tuple("abcd"), mean, std)
    outputs = []
    for _ in range(2):
        transform = build_transform(
            Recipe(augment=augment), data, torch.Generator().manual_seed(3)
        )
        if transform is None:
            assert augment == "none"
            return
        torch.rand(3)  # the global state plays no part
        outputs.append(transform(images, split.labels))
    (one, labels), (two, _) = outputs
    assert (
        torch.equal(one, two)
        and one.shape == images.shape
        and not torch.equal(one, images)
    )
    assert labels.shape == ((20, 4) if augment == "mixup" else (20,))


@pytest.mark.parametrize("init", choices("init"))
@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_models_start_alike_from_one_seed(init, model):
    recipe = Recipe(init=init, model=model, width=4, norm="group")
    images = torch.randn(64, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    pair = [initialize(build_model(recipe, 3, 24, 5), recipe, images) for _ in range(2)]
    assert torch.equal(weights(pair[0]), weights(pair[1]))
    outputs = pair[0](images)
    assert (
        outputs.shape == (64, 5)
        and outputs.isfinite().all()
        and 0.01 < outputs.std() < 20
    )
