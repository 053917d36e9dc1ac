"""A stack of small networks, each trained with settings of its own, all in one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

WIDTH = 16  # hidden units
NAMES = ("rate", "decay", "1 - beta", "scale")


def train_stack(
    configs: Sequence[Mapping], split, seed: int, updates: int = 100, batch: int = 32
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Train one network for each config by SGD with momentum; return their outputs.

    A config names `rate`, `decay`, `1 - beta` (of the momentum) and `scale`, a factor of
    the first weights. The networks have one hidden layer of 16 units. The returned
    function takes inputs (networks, rows, pixels) and gives (networks, rows, classes).
    `split` has `tensors()`. Invariant: a network equals one that `torch.optim.SGD`
    trains on the same rows.
    """
    images, labels = split.tensors()
    images = images.flatten(1)
    classes = int(labels.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    number = len(configs)
    pixels = images.shape[1]
    columns = {}
    for name in NAMES:
        values = torch.tensor([config[name] for config in configs])
        columns[name] = values.float()[:, None, None]

    first = torch.randn(number, pixels, WIDTH, generator=generator) * pixels**-0.5
    second = torch.randn(number, WIDTH, classes, generator=generator) * WIDTH**-0.5
    weights = [first * columns["scale"], torch.zeros(number, 1, WIDTH)]
    weights += [second * columns["scale"], torch.zeros(number, 1, classes)]
    memories = [torch.zeros_like(weight) for weight in weights]

    def outputs_of(inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(torch.baddbmm(weights[1], inputs, weights[0]))
        return torch.baddbmm(weights[3], hidden, weights[2])

    for weight in weights:
        weight.requires_grad_()
    for _ in range(updates):
        rows = torch.randint(len(labels), (number, batch), generator=generator)
        outputs = outputs_of(images[rows]).flatten(0, 1)
        loss = F.cross_entropy(outputs, labels[rows].flatten(), reduction="sum") / batch
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, memory, gradient in zip(
                weights, memories, gradients, strict=True
            ):
                memory *= 1 - columns["1 - beta"]
                memory += gradient + columns["decay"] * weight
                weight -= columns["rate"] * memory
    return outputs_of


@torch.no_grad()
def errors_of(outputs_of: Callable, split, number: int) -> list[float]:
    """Return the error of each of `number` networks on `split`; nan where a run failed."""
    inputs, targets = split.tensors()
    outputs = outputs_of(inputs.flatten(1).expand(number, -1, -1))
    wrong = (outputs.argmax(2) != targets).double().mean(dim=1)
    finite = outputs.isfinite().flatten(1).all(dim=1)
    return torch.where(finite, wrong, math.nan).tolist()
