"""From a recipe to its parts: network, optimizer, schedule, variants of images, loss."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse import data_augmentation as da
from dlcourse import initialization, learning_rate_decay, lr_schedulers
from dlcourse.capstone import pretrained
from dlcourse.capstone.settings import Recipe
from dlcourse.gradient_clipping import clipping_step
from dlcourse.lab.datasets import ImageData
from dlcourse.regularization import Dropout, param_groups
from dlcourse.warmup import WarmupWrapper

ACTIVATIONS = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "gelu": nn.GELU, "silu": nn.SiLU,
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "none": nn.Identity,
}  # fmt: skip
RULES = {
    "kaiming": initialization.kaiming_normal_,
    "xavier": initialization.xavier_normal_,
    "orthogonal": initialization.orthogonal_,
}


SEEN = 32  # pixels a side that two stages of one block see (31, to be exact)
WIDEST = 4  # times the first stage's channels


class Block(nn.Module):
    """x plus twice (norm, activation, 3x3 convolution) of x."""

    def __init__(self, width: int, norm: str, activation: type[nn.Module]) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _norm(norm, width), activation(), nn.Conv2d(width, width, 3, padding=1),
            _norm(norm, width), activation(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _norm(name: str, width: int) -> nn.Module:
    if name == "group":
        return nn.GroupNorm(math.gcd(width, 4), width)
    return nn.BatchNorm2d(width) if name == "batch" else nn.Identity()


def build_model(recipe: Recipe, channels: int, size: int, classes: int) -> nn.Module:
    """Return the network of a recipe, for square images, with torch's own weights.

    The CNN has a stem, which halves the grid of images of 24 pixels or more, `blocks`
    residual blocks, a convolution that halves the grid and doubles the width, and
    `blocks` more. Above 32 pixels, further halvings with their blocks follow until an
    output sees as many pixels as the image has; four times the first width is the widest.
    """
    width, act = recipe.width, ACTIVATIONS[recipe.activation]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if recipe.pretrained:
            return pretrained.build(recipe.pretrained, classes, recipe.size)
        if recipe.model == "mlp":
            sizes = [channels * size * size] + [8 * width] * recipe.blocks
            layers: list[nn.Module] = [nn.Flatten()]
            for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
                layers += [nn.Linear(fan_in, fan_out), act()]
            layers += [Dropout(recipe.dropout), nn.Linear(sizes[-1], classes)]
        else:
            stem = nn.Conv2d(channels, width, 3, padding=1, stride=2 if size >= 24 else 1)
            layers = [stem]
            layers += [Block(width, recipe.norm, act) for _ in range(recipe.blocks)]
            wide = width
            for _ in range(1 + max(0, math.ceil(math.log2(size / SEEN)))):
                wider = min(2 * wide, WIDEST * width)
                layers += [_norm(recipe.norm, wide), act()]
                layers += [nn.Conv2d(wide, wider, 3, padding=1, stride=2)]
                layers += [Block(wider, recipe.norm, act) for _ in range(recipe.blocks)]
                wide = wider
            layers += [_norm(recipe.norm, wide), act()]
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), Dropout(recipe.dropout)]
            layers += [nn.Linear(wide, classes)]
        return nn.Sequential(*layers)


def initialize(model: nn.Module, recipe: Recipe, images: Tensor) -> nn.Module:
    """Fill the weights by the rule that the recipe names; a residual branch starts small.

    `images` (n, c, h, w) are training rows, by which "lsuv" sets the scales.
    """
    if recipe.pretrained:
        return pretrained.start(cast(pretrained.FineTuned, model), recipe.pretrained)
    generator = torch.Generator().manual_seed(recipe.seed)
    if recipe.init == "lsuv":
        return initialization.lsuv_(model, images, generator=generator)
    if recipe.init != "default":
        initialization.initialize_(model, RULES[recipe.init], generator)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, Block):
                    last = module.get_parameter("branch.5.weight")
                    last.mul_((2 * recipe.blocks) ** -0.5)
    return model


def build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer; biases, norms and the like do not decay.

    SGD has momentum .9; its decay is in the gradient, so it is times the learning rate.
    """
    groups: Any = param_groups(model, recipe.weight_decay)
    if recipe.pretrained:
        model = cast(pretrained.FineTuned, model)
        groups = pretrained.rate_groups(model, recipe.lr, recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9)


def build_schedule(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """Return the factor on the rate for each of `steps` updates: warm-up, then decay."""
    warm = round(recipe.warmup * steps)
    left = max(1, steps - warm)
    drops = [max(1, left // 2), max(1, left * 3 // 4)]
    shapes = {
        "constant": lambda: learning_rate_decay.constant(),
        "cosine": lambda: lr_schedulers.cosine(left),
        "linear": lambda: learning_rate_decay.polynomial_decay(left),
        "step": lambda: lr_schedulers.multi_step_decay(drops, 0.1),
        "exponential": lambda: learning_rate_decay.exponential_decay(0.01 ** (1 / left)),
        "wsd": lambda: lr_schedulers.wsd(left, cooldown_steps=left // 5),
    }
    return WarmupWrapper(shapes[recipe.schedule](), warm)


def build_step(recipe: Recipe, steps: int):
    """Return the step of a recipe: clipped, and fine-tuning's last layer first."""
    step = clipping_step(recipe.max_norm)
    if not recipe.pretrained:
        return step
    return pretrained.unfreezing(step, round(pretrained.FROZEN * steps))


def build_transform(recipe: Recipe, data: ImageData, generator: torch.Generator):
    """Return what `fit` does to a batch, or None; each image has a decision of its own.

    All processes draw whole batches, so `generator` must be seeded alike on all of them.
    """
    if recipe.augment == "none":
        return None
    if recipe.augment == "mixup":
        mix = functools.partial(da.mixup, num_classes=data.num_classes, alpha=0.2)
        return da.on_batches(mix=mix, generator=generator)
    black: Any = ((0 - data.mean) / data.std).tolist()
    side = max(1, data.size // 8)
    share = side / data.size
    shift = da.RandomCrop(padding=side, fill=black)
    colours = {"colour": da.ColorJitter(0.3, 0.3, 0.3), "trivial": da.TrivialAugment()}

    def colour(images: Tensor, generator: torch.Generator) -> Tensor:  # it wants [0, 1]
        mean, std = (v.to(images).view(-1, 1, 1) for v in (data.mean, data.std))
        pixels = colours[recipe.augment]((images * std + mean).clamp(0, 1), generator)
        return (pixels - mean) / std

    steps = {
        "shift": [shift],
        "flip": [shift, da.RandomHorizontalFlip()],
        "affine": [da.RandomAffine(10, (share, share), (0.9, 1.1), fill=black)],
        "colour": [colour, shift],
        "trivial": [colour, shift],
    }
    return da.on_batches(da.Compose(steps[recipe.augment]), generator=generator)


def updates(recipe: Recipe, rows: int) -> tuple[int, int]:
    """Return (updates an epoch, epochs): those of the recipe, or for 40,000 images.

    A pretrained network needs fewer: 3,000.
    """
    enough = pretrained.ENOUGH if recipe.pretrained else 40_000
    epochs = recipe.epochs or max(3, round(enough / rows))
    return math.ceil(rows / recipe.batch_size), epochs


def loss_function(
    recipe: Recipe, labels: Tensor | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return cross entropy, smoothed as the recipe says; targets may be probabilities.

    labels: of the training rows, by which `balance="weights"` gives each class the same
    weight in all; the mean weight of a training row is 1.
    """
    cross_entropy = functools.partial(
        F.cross_entropy, label_smoothing=recipe.label_smoothing
    )
    if recipe.balance != "weights" or labels is None:
        return cross_entropy
    counts = labels.bincount()
    weight = len(labels) / (len(counts) * counts.clamp(min=1))

    def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
        of_class = weight.to(outputs)
        of_row = of_class[targets] if targets.ndim == 1 else targets @ of_class
        return (cross_entropy(outputs, targets, reduction="none") * of_row).mean()

    return weighted
