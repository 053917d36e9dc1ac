"""The folder of a run: what may go into it, and what a finished run leaves there."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dlcourse import __version__
from dlcourse.capstone.building import build_model
from dlcourse.capstone.card import draw_curves, model_card
from dlcourse.capstone.report import (
    HARDEST,
    SHOWN_CLASSES,
    confusion_matrix,
    draw_confusion,
    draw_hardest,
    write_confusion,
    write_predictions,
)
from dlcourse.capstone.result import Result
from dlcourse.capstone.settings import Problem, Recipe
from dlcourse.lab.checkpoints import replacing
from dlcourse.lab.datasets import ImageData

FORMAT = 1  # of the folder that a run leaves
CHECKPOINT = "resume.pt"
SEARCH = r"untuned\.toml|tune\.csv|images\.cache|images\.json"  # before the run
PART = r"\.probe\d+|.*\.part\d+"  # files that a killed process leaves half written
PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "safetensors")


def refuse_used(folder: Path, resume: bool, name: str = "recipe.toml") -> None:
    """Raise Problem where a run cannot go into a folder because of what it holds."""
    if (folder / name).exists():
        if not resume:
            raise Problem(
                f"{folder} holds a run: continue it with --resume, or choose another --out"
            )
        return
    there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if not all(re.fullmatch(rf"{SEARCH}|{PART}", name) for name in there):
        raise Problem(f"{folder} holds other files: choose a new folder with --out")


def check_writable(folder: Path) -> None:
    """Raise Problem where a folder may not be made or written; leave nothing there."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe{os.getpid()}"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
        for path in missing:
            path.rmdir()
    except OSError as error:
        raise Problem(
            f"cannot write to {folder} ({error.strerror}): choose another folder with --out"
        ) from error


def open_folder(
    folder: Path, recipe: Recipe, resume: bool, name: str = "recipe.toml"
) -> None:
    """Store the recipe in a new folder, or see that it is the one stored there.

    Raises Problem where it is another one, or where the folder may not be written.
    """
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    refuse_used(folder, resume, name)
    stored = folder / name
    begun = stored.exists()
    if begun:
        before = Recipe.from_toml(stored.read_text(encoding="utf-8"), str(stored))
        old, new = before.model_dump(), recipe.model_dump()
        changes = [f"{key} was {old[key]!r}" for key in new if old[key] != new[key]]
        if changes:
            raise Problem(
                f"{folder} holds a run of another recipe ({', '.join(changes)}): leave such "
                "options out to go on with it, or choose another --out"
            )
    for path in folder.rglob("*"):
        if re.fullmatch(PART, path.name):
            path.unlink(missing_ok=True)
    if not begun:
        with replacing(stored) as file:
            file.write(recipe.to_toml().encode())


def save_model(model: nn.Module, path: Path, facts: Mapping) -> None:
    """Write weights and buffers to a safetensors file, with `facts` in its header."""
    state = model.state_dict()
    state = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    with replacing(path) as file:
        # one entry: their order varies
        file.write(save(state, {"dlcourse": json.dumps(facts)}))


def load_model(folder: str | os.PathLike[str]) -> tuple[nn.Module, dict]:
    """Return (model in evaluation mode, facts) of a run; no code of the file is run.

    Raises Problem where the file is missing, cut short, foreign, or of another version.
    """
    folder = Path(folder)
    path = folder / "model.safetensors"
    if not path.exists():
        raise Problem(
            f"{folder} has no model.safetensors: train with --out, or finish with --resume"
        )
    try:
        with safe_open(str(path), "pt") as file:
            facts = json.loads((file.metadata() or {}).get("dlcourse", "null"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise Problem(
            f"{path} is no whole safetensors file ({error}): train again"
        ) from error
    if not isinstance(facts, dict) or "format" not in facts:
        raise Problem(f"{path} was not written by dlcourse: train with --out to make one")
    advice = f"install dlcourse {facts.get('version', 'of the time')}, or train again"
    if facts["format"] != FORMAT:
        raise Problem(
            f"{path} has format {facts['format']}, this version reads {FORMAT}: {advice}"
        )
    try:
        recipe = Recipe.from_values(facts["recipe"], "its recipe")
        classes = len(facts["classes"])
        model = build_model(recipe, facts["channels"], facts["size"], classes)
        model.load_state_dict(state)
    except (Problem, KeyError, TypeError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0]
        raise Problem(f"{path} is of another version ({why}): {advice}") from error
    return model.eval(), facts


def leave(folder: Path, recipe: Recipe, data: ImageData, result: Result) -> None:
    """Write all that a finished run leaves beside its recipe and its checkpoint."""
    # to hand on, without paths
    paths = {name: getattr(recipe, name) for name in ("root", "labels", "groups")}
    shown = recipe.changed(**{n: path and Path(path).name for n, path in paths.items()})
    facts = {
        "format": FORMAT, "version": __version__, "recipe": shown.model_dump(),
        "channels": data.channels, "size": data.size, "classes": list(data.classes),
        "mean": data.mean.tolist(), "std": data.std.tolist(),
    }  # fmt: skip
    save_model(result.model, folder / "model.safetensors", facts)
    result.history.to_csv(folder / "history.csv")
    with open(folder / "validation.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", "loss", "accuracy", "count"])
        writer.writeheader()
        writer.writerows(result.history.validation)
    for name, values in (("versions", versions()), ("result", result.numbers())):
        text = json.dumps(values, indent=2) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    draw_curves(result.history, folder / "curves.png")
    counts = leave_report(folder, data, result)
    card = model_card(folder, recipe, data, result, counts)
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")


def leave_report(folder: Path, data: ImageData, result: Result) -> Tensor:
    """Write which test images are wrong; return the confusion matrix of the classes.

    predictions.csv has the images, the hardest first; the others are confusion and
    hardest.
    """
    images, labels = data.test.tensors()
    shares = result.probabilities
    counts = confusion_matrix(labels, shares.argmax(1), data.num_classes)
    order = shares[torch.arange(len(labels)), labels].argsort(stable=True)
    files = data.test.files or [f"test row {row}" for row in range(len(labels))]
    names = [files[row] for row in order.tolist()]
    write_predictions(
        folder / "predictions.csv", names, shares[order], data.classes, labels[order]
    )
    write_confusion(folder / "confusion.csv", counts, data.classes)
    if data.num_classes <= SHOWN_CLASSES:
        draw_confusion(folder / "confusion.png", counts, data.classes)
    rows = order[:HARDEST]
    shown = data.denormalize(images[rows])
    draw_hardest(folder / "hardest.png", shown, labels[rows], shares[rows], data.classes)
    return counts


def versions() -> dict:
    """Return what the run depended on: Python, packages, machine."""
    found = {"dlcourse": __version__, "python": platform.python_version()}
    found |= {name: version(name) for name in PACKAGES}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return found | {"system": platform.platform(), "device": device}
