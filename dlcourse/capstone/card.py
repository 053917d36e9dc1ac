"""The model card of a run, and the picture of how it went."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dlcourse.capstone.report import by_class, most_confused
from dlcourse.capstone.result import Result
from dlcourse.capstone.settings import Recipe
from dlcourse.lab.datasets import PUBLISHED, ImageData
from dlcourse.lab.history import History


def draw_curves(history: History, path: Path) -> None:
    """Write a PNG of both losses, the validation accuracy and the learning rate."""
    import matplotlib.pyplot as plt

    from dlcourse.lab.plotting import COLORS, curves, figure

    fig, axes = figure(3, width=10.5, height=3.2)
    steps = history.columns()["step"]
    mean = torch.tensor(history.loss)
    width = max(1, len(mean) // 50)
    smooth = F.avg_pool1d(mean[None, None], width, 1, ceil_mode=False)[0, 0].tolist()
    curves(axes[0], steps[width - 1 :], {"training": smooth}, title="loss")
    at, held, accuracy = (
        [row[name] for row in history.validation] for name in ("step", "loss", "accuracy")
    )
    axes[0].plot(at, held, "--", color=COLORS[1], label="validation")
    axes[0].legend(frameon=False)
    title = "validation accuracy"
    curves(axes[1], at, {"validation": accuracy}, title=title, ylabel="accuracy")
    curves(axes[2], steps, {"lr": history.lr}, title="learning rate", ylabel="rate")
    fig.savefig(path, dpi=100)
    plt.close(fig)


def model_card(
    folder: Path, recipe: Recipe, data: ImageData, result: Result, counts: Tensor
) -> str:
    """Return a model card in Markdown: what it is, how well it does, what it is not for."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    size = sum(p.numel() for p in result.model.parameters())
    held = {
        "stratified": "drawn at random, each class in proportion",
        "random": "drawn at random",
        "group": "whole writers, none of whom also trains",
    }[recipe.split]
    source = data.name
    repeat = "`dlcourse-train --config recipe.toml --out another-folder`"
    if data.name != recipe.data:  # the caller brought images of their own
        held = "chosen by who trained it"
        repeat = "`dlcourse.capstone.running.train` with the same images"
    elif data.name in PUBLISHED:
        held = "the published ones"
    elif data.name == "folder":
        source = f"the folder {Path(recipe.root or '').name}"
        how = getattr(data, "how", "")
        if how == "group":
            held = f"whole groups ({recipe.groups}), none of which also trains"
        elif how == "given":
            held = "those of the given split"
    kept = "the last update"
    if result.best_epoch:
        kept = f"epoch {result.best_epoch}, the best on validation"
    search, seen = folder / "tune.csv", f"{len(data.validation)} images"
    if search.exists():
        trials = len(search.read_text(encoding="utf-8").splitlines()) - 1
        seen += f", by which the best of {trials} settings was chosen"
    classes = ", ".join(data.classes[:12]).replace("|", r"\|")
    more = " ..." if data.num_classes > 12 else ""
    scale = f"minus mean {_rounded(data.mean)}, over std {_rounded(data.std)}"
    notes = "".join(f"\n- {note}" for note in getattr(data, "notes", ()))
    found = f"\n## Found among the images\n{notes}\n" if notes else ""
    same = "within rounding" if torch.cuda.is_available() else "to the bit"
    wrong = result.count - int(counts.trace())
    mistakes = "; ".join(most_confused(counts, data.classes)) or "none"
    return f"""# Model card: {recipe.pretrained or recipe.model} on {source}

| | |
| --- | --- |
| Task | {data.num_classes} classes: {classes}{more} |
| Input | {data.channels} x {data.size} x {data.size} pixels in [0, 1], {scale} |
| Parameters | {size:,} |
| Trained on | {len(data.train)} images, {len(result.history.loss)} updates; weights of {kept} |
| Validated on | {seen} |
| Reported on | {result.count} test images, {held} |

## Result on the test images

| measure | value |
| --- | --- |
| accuracy | {result.accuracy:.4f} (95 % interval {result.low:.4f} to {result.high:.4f}) |
{beside_accuracy(result, data)}| negative log-likelihood | {result.nll:.4f} nats |
| calibration error | {result.ece:.4f} |

The interval is for new images drawn as these were. It covers neither another training seed nor
other sources of images.

{by_class(counts, data.classes)}

Recall: the share of a class's images that got its name, with its interval. Precision: the share of
the images with a name that are of that class.

Mistakes: {wrong} of {result.count}. The most frequent: {mistakes}.

`predictions.csv` has every test image, the hardest first; `hardest.png` shows twelve of them.
{found}
## Limits

Trained and tested on {source} alone. Images of another kind, size, light or source need a
test of their own. It always names one of its classes, also for an image that shows none of them.

## Use

```
python -m dlcourse.predict {shlex.quote(folder.resolve().name)} photo.png folder_of_images
```

```python
from dlcourse.predict import Classifier

classify = Classifier({folder.resolve().name!r})  # runs no code from the file
for answer in classify("photo.png"):  # brought to {data.size} x {data.size} pixels as in training
    print(answer.file, answer.label, answer.probability)
```

## Repeat

{repeat}, on the versions in `versions.json`. On the
same machine the weights come out the same {same}. sha256 of `model.safetensors`:
{digest}
"""


def beside_accuracy(result: Result, data: ImageData) -> str:
    """Return the rows that an accuracy needs beside it where classes are uneven."""
    counts = data.test.labels.bincount(minlength=data.num_classes)
    if data.name != "folder" and counts.max() < 1.5 * counts.min():
        return ""
    return (
        f"| naming the most frequent class always | {result.majority:.4f} |\n"
        f"| balanced accuracy (mean recall of the classes) | {result.balanced:.4f} |\n"
    )


def _rounded(values: Tensor) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values.tolist()) + ")"
