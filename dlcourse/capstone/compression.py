"""Make smaller models of a trained one: prune it, quantize it, or distil it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dlcourse.capstone.building import (
    build_model,
    build_optimizer,
    build_schedule,
    build_transform,
    initialize,
    loss_function,
    updates,
)
from dlcourse.capstone.folder import load_model, save_model
from dlcourse.capstone.report import with_interval
from dlcourse.capstone.result import predict
from dlcourse.capstone.settings import Recipe
from dlcourse.lab.datasets import ImageData
from dlcourse.lab.training import fit
from dlcourse.model_compression import (
    choose_qparams,
    dequantize,
    distillation_loss,
    gradual_sparsity,
    model_size,
    pruning_step,
    quantize,
)

BYTES = """
Bytes are those of a file that leaves zeros out and stores 8-bit weights as such. The files here
hold every number as float32, so that `load_model` reads them like any other.
"""


def compress(folder: Path, how: Sequence[str], data: ImageData) -> str:
    """Make smaller models of the one in `folder`; return a table of bytes and accuracy.

    prune: 80 % of the weights go while training continues for a third of the run, at a
    third of the peak rate. quantize: weights become 8-bit numbers, one scale an output
    channel. distil: a network of half the width learns from this one's outputs and the
    labels. Each acts on the original, and is stored at once in the folder `compressed`,
    where `load_model` reads it; what is there is not made again.
    """
    model, facts = load_model(folder)
    recipe = Recipe.from_values(facts["recipe"], str(folder))
    makers = {"prune": _prune, "quantize": _quantize, "distil": _distil}
    images, labels = data.test.tensors()
    models = {"as trained": model}
    for name in how:
        path = folder / "compressed" / name / "model.safetensors"
        if not path.exists():
            small, own = makers[name](model, recipe, data)
            save_model(small, path, facts | {"recipe": own.model_dump()})
        models[name] = load_model(path.parent)[0]
    lines = [
        "| model | bytes | test accuracy | test images named otherwise |",
        "| --- | --- | --- | --- |",
    ]
    before = predict(model, images).argmax(1)
    for name, small in models.items():
        said = predict(small, images).argmax(1)
        score = with_interval(int((said == labels).sum()), len(labels))
        size = model_size(small)
        if name == "quantize":
            size -= sum(_saved(layer) for layer in _layers(small))
        lines.append(f"| {name} | {size:,} | {score} | {int((said != before).sum())} |")
    text = "\n".join(lines) + "\n"
    (folder / "compressed" / "README.md").write_text(text + BYTES, encoding="utf-8")
    return text


def _prune(model: nn.Module, recipe: Recipe, data: ImageData) -> tuple[nn.Module, Recipe]:
    model = copy.deepcopy(model)
    steps = max(2, math.prod(updates(recipe, len(data.train))) // 3)
    every = max(1, min(10, steps // 20))
    generator = torch.Generator().manual_seed(recipe.seed + 2)
    fit(
        model, data, build_optimizer(recipe.changed(lr=recipe.lr / 3), model), steps=steps,
        batch_size=recipe.batch_size, loss_fn=loss_function(recipe, data.train.labels),
        schedule=build_schedule(recipe, steps), seed=recipe.seed,
        step=pruning_step(gradual_sparsity(0.8, steps // 2), every=every),
        transform=build_transform(recipe, data, generator),
    )  # fmt: skip
    return model, recipe


def _quantize(
    model: nn.Module, recipe: Recipe, _data: ImageData
) -> tuple[nn.Module, Recipe]:
    """Return a copy whose linear and convolution weights lie on a grid of 8 bits."""
    model = copy.deepcopy(model)
    for layer in _layers(model):
        scale, zero_point = choose_qparams(layer.weight.detach(), 8, axis=0)
        q = quantize(layer.weight.detach(), scale, zero_point, 8, axis=0)
        layer.weight.data = dequantize(q, scale, zero_point, 0)
    return model, recipe


def _layers(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def _saved(layer: nn.Linear | nn.Conv2d) -> int:
    """Return the bytes saved by one a weight, with a scale of four an output channel."""
    return 3 * layer.weight.numel() - 4 * len(layer.weight)


def _distil(teacher: nn.Module, recipe: Recipe, data: ImageData):
    """Return a student of half the width, taught by soft outputs (.75) and labels."""
    own = recipe.changed(width=max(1, recipe.width // 2), pretrained=None)
    teacher = copy.deepcopy(teacher)
    student = build_model(own, data.channels, data.size, data.num_classes)
    initialize(student, own, data.train.images[:256])
    steps = math.prod(updates(own, len(data.train)))
    generator = torch.Generator().manual_seed(recipe.seed + 3)

    def step(run, batch) -> Tensor:
        run.optimizer.zero_grad()
        with torch.no_grad():
            soft = teacher.to(batch.inputs.device)(batch.inputs)
        # mixup's are probabilities
        hard = batch.targets if batch.targets.ndim == 1 else None
        outputs = run.model(batch.inputs)
        loss = distillation_loss(outputs, soft, hard, temperature=4.0, alpha=0.75)
        run.backward(loss)
        run.optimizer.step()
        return loss.detach()

    torch.manual_seed(recipe.seed)
    fit(
        student, data, build_optimizer(own, student), steps=steps, batch_size=own.batch_size,
        schedule=build_schedule(own, steps), seed=own.seed, step=step,
        transform=build_transform(own, data, generator),
    )  # fmt: skip
    return student, own
