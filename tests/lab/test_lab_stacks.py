"""A stack of networks: each equals one trained alone by torch's own SGD."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from dlcourse.lab.stacks import errors_of, train_stack


class Rows:
    """Made-up images, of two by three pixels and four classes."""

    def __init__(self, number):
        generator = torch.Generator().manual_seed(number)
        self.images = torch.randn(number, 1, 2, 3, generator=generator)
        self.labels = torch.arange(number) % 4

    def tensors(self):
        return self.images, self.labels


CONFIGS = [
    {"rate": 0.1, "decay": 0.01, "1 - beta": 0.1, "scale": 1.0},
    {"rate": 0.02, "decay": 0.3, "1 - beta": 1.0, "scale": 3.0},
]


def alone(number, split, seed, updates=20):
    """Return one network of the stack, trained by torch.optim.SGD on the same rows."""
    images, labels = split.tensors()
    config = CONFIGS[number]
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(2, 6, 16, generator=generator)[number] * 6**-0.5
    second = torch.randn(2, 16, 4, generator=generator)[number] * 16**-0.5
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[1].weight.copy_((first * config["scale"]).T)
        model[3].weight.copy_((second * config["scale"]).T)
        model[1].bias.zero_()
        model[3].bias.zero_()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config["rate"],
        momentum=1 - config["1 - beta"],
        weight_decay=config["decay"],
    )
    for _ in range(updates):
        rows = torch.randint(len(labels), (2, 32), generator=generator)[number]
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    return model


def test_each_network_is_the_one_trained_alone():
    split, other = Rows(40), Rows(24)
    together = train_stack(CONFIGS, split, seed=3, updates=20)
    errors = errors_of(together, other, 2)
    images, labels = other.tensors()
    outputs = together(images.flatten(1).expand(2, -1, -1))
    for number in range(2):
        model = alone(number, split, seed=3)
        torch.testing.assert_close(outputs[number], model(images), rtol=1e-4, atol=1e-5)
        wrong = (model(images).argmax(1) != labels).double().mean().item()
        assert errors[number] == wrong


def test_a_run_that_breaks_is_nan_and_leaves_its_neighbour_alone():
    broken = CONFIGS[0] | {"rate": 1e30}
    split = Rows(40)
    errors = errors_of(train_stack([broken, CONFIGS[1]], split, seed=3), split, 2)
    fine = errors_of(train_stack([CONFIGS[0], CONFIGS[1]], split, seed=3), split, 2)
    assert math.isnan(errors[0])
    assert errors[1] == fine[1]
