"""What a run would do, said before it begins."""

from __future__ import annotations

from pathlib import Path

import torch

from dlcourse.capstone.ablation import FACTORS, arms
from dlcourse.capstone.building import build_model, updates
from dlcourse.capstone.own import OwnImages
from dlcourse.capstone.running import on_gpus
from dlcourse.capstone.settings import Recipe
from dlcourse.lab.datasets import ImageData
from dlcourse.lab.pixels import OnDisk


def plan(recipe: Recipe, data: ImageData, folder: Path, options) -> list[str]:
    """Return one line for each of the sixteen techniques, and the cost of the run."""
    per_epoch, epochs = updates(recipe, len(data.train))
    steps = per_epoch * epochs
    warm = round(recipe.warmup * steps)
    model = build_model(recipe, data.channels, data.size, data.num_classes)
    weights = sum(p.numel() for p in model.parameters())
    world = recipe.processes
    micro = recipe.batch_size / recipe.accumulation_steps / world
    device = torch.cuda.get_device_name() if on_gpus(recipe) else "CPU"
    stop = f"after {recipe.patience} epochs without gain" if recipe.patience else "off"
    held = f"{len(data.train)} train, {len(data.validation)} validation, {len(data.test)} test"
    penalty = (
        f"weight decay {recipe.weight_decay:g}, label smoothing "
        f"{recipe.label_smoothing:g}, dropout {recipe.dropout:g}"
    )
    rows = [
        ("data splitting", f"{getattr(data, 'how', recipe.split)}: {held}"),
        ("tuning", f"{options.tune} trials" if options.tune else "none (--tune N)"),
        ("regularization", f"{penalty}, early stopping {stop}"),
        ("gradient clipping", f"norm {recipe.max_norm:g}"),
        ("initialization", recipe.init),
        ("activation", recipe.activation),
        ("normalization", recipe.norm if recipe.model == "cnn" else "none in an MLP"),
        ("learning rate", f"peak {recipe.lr:g}, {recipe.optimizer}"),
        ("compression", ", ".join(options.compress or []) or "none (--compress)"),
        ("augmentation", recipe.augment),
        ("accumulation", f"{recipe.accumulation_steps} x {micro:g} images a process"),
        ("parallelism", f"{world} process{'es' if world > 1 else ''} on {device}"),
        ("warm-up", f"{warm} updates"),
        ("schedule", f"{recipe.schedule} over the other {steps - warm}"),
        ("precision", {"no": "float32"}.get(recipe.precision, recipe.precision)),
        ("data loading", loading(recipe, data)),
    ]
    lines = [f"{data}", f"{recipe.pretrained or recipe.model} of {weights:,} parameters"]
    lines += [f"{n:>2}  {name:<17}  {said}" for n, (name, said) in enumerate(rows, 1)]
    lines += [f"{steps} updates: {epochs} epochs of {per_epoch}"]
    if options.ablate:
        count = len(arms(recipe))
        each = f"{count} arms x {len(FACTORS)} rates or more x {options.seeds} seeds"
        lines += [f"ablation: {each} of this"]
    return [*lines, *getattr(data, "notes", ()), f"folder {folder}"]


def loading(recipe: Recipe, data: ImageData) -> str:
    """Return how images reach the network, and what memory they take."""
    workers = f"{recipe.workers} workers" if recipe.workers else ""
    if not isinstance(data, OwnImages):
        return workers or "in memory"
    stored = data.stored
    count = stored.shape[0] * data.size**2 * data.channels
    size = count * (4 if "float32" in str(stored.dtype) else 1) / 1e6
    on_disk = isinstance(stored, OnDisk)
    place = "from a file beside the run" if on_disk else "in memory"
    return ", ".join(filter(None, [workers, place, f"{size:,.1f} MB"]))
