"""What a classifier gets right and wrong: class by class, and image by image.

`running` writes these beside the weights, for the test images; `predict` prints them for new images that stand in one folder for each class.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlcourse.capstone.letters import drawable
from dlcourse.data_splitting import wilson_interval

SHOWN_CLASSES = 30  # of a table or a picture of all classes
HARDEST = 12  # images in the picture of the hardest


def confusion_matrix(true: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Return int64 (classes, classes): images of a class (row) that got a name (column).

    Labels are int64 (n,), from 0 to classes - 1; raises ValueError for others.
    Invariants: a row sums to the images of its class, the diagonal to those that are
    right.
    """
    if true.shape != predicted.shape or true.ndim != 1:
        raise ValueError(f"give two rows of labels of one length, not {(*true.shape,)} and "
                         f"{(*predicted.shape,)}")  # fmt: skip
    for labels in (true, predicted):
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(
                f"labels must lie between 0 and {classes - 1}: renumber them"
            )
    return torch.bincount(true * classes + predicted, minlength=classes**2).view(
        classes, classes
    )


def by_class(counts: Tensor, classes: Sequence[str]) -> str:
    """Return a Markdown table: images, recall with 95 % interval, precision of a class.

    Recall: the share of its images that got its name. Precision: the share of the images
    with its name that are its own. Classes without images are left out; of more than 30
    the 30 of lowest recall are shown, and the line after the table says so.
    """
    right, images, named = counts.diagonal(), counts.sum(1), counts.sum(0)
    there = [k for k in range(len(classes)) if images[k]]
    shown = there
    if len(there) > SHOWN_CLASSES:
        worst = sorted(there, key=lambda k: float(right[k] / images[k]))
        shown = sorted(worst[:SHOWN_CLASSES])
    lines = ["| class | images | recall | precision |", "| --- | --- | --- | --- |"]
    for k in shown:
        low, high = wilson_interval(int(right[k]), int(images[k]))
        recall = f"{right[k] / images[k]:.3f} [{low:.3f}, {high:.3f}]"
        precision = f"{right[k] / named[k]:.3f}" if named[k] else "never named"
        name = classes[k].replace("|", r"\|")
        lines.append(f"| {name} | {int(images[k])} | {recall} | {precision} |")
    if len(shown) < len(there):
        lines += ["", f"The {len(shown)} of {len(there)} classes with the lowest recall."]
    return "\n".join(lines)


def most_confused(counts: Tensor, classes: Sequence[str], longest: int = 5) -> list[str]:
    """Return the most frequent mistakes, at most `longest`: "cat taken for dog (3)"."""
    wrong = counts - torch.diag(counts.diagonal())
    order = wrong.flatten().argsort(descending=True, stable=True)[:longest].tolist()
    pairs = [divmod(place, len(classes)) for place in order]
    return [
        f"{classes[true]} taken for {classes[said]} ({int(wrong[true, said])})"
        for true, said in pairs
        if wrong[true, said]
    ]


def write_confusion(path: Path, counts: Tensor, classes: Sequence[str]) -> None:
    """Write the matrix as CSV: a row for each true class, a column for each name given."""
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["true", *(f"named {name}" for name in classes)])
        writer.writerows(
            [name, *row] for name, row in zip(classes, counts.tolist(), strict=True)
        )


def read_confusion(path: Path) -> tuple[Tensor, list[str]]:
    """Return (counts, classes) of a matrix that `write_confusion` wrote."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        _, *rows = csv.reader(file)
    return torch.tensor([[int(n) for n in row[1:]] for row in rows]), [
        row[0] for row in rows
    ]


def write_predictions(
    path: Path,
    names: Sequence[str],
    probabilities: Tensor,
    classes: Sequence[str],
    true: Tensor | None = None,
) -> None:
    """Write a line for each image: name, predicted class, all probabilities (n, c).

    With `true` (n,) also the true class and its probability. Four digits.
    """
    head = ["image", "predicted", "probability"]
    head += ["true", "probability_of_true"] if true is not None else []
    top, said = probabilities.max(1)
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*head, *(f"p({name})" for name in classes)])
        for row, name in enumerate(names):
            cells = [name, classes[int(said[row])], f"{top[row]:.4f}"]
            if true is not None:
                cells += [classes[int(true[row])], f"{probabilities[row, true[row]]:.4f}"]
            writer.writerow([*cells, *(f"{p:.4f}" for p in probabilities[row].tolist())])


def draw_confusion(path: Path, counts: Tensor, classes: Sequence[str]) -> None:
    """Write a PNG of the matrix: the colour is the share of a row, the number images."""
    from dlcourse.lab.plotting import figure

    side = 2 + 0.38 * len(classes)
    fig, ax = figure(width=side + 0.6, height=side)
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in zip(*np.nonzero(counts.numpy()), strict=True):
        color = "white" if shares[i, j] > 0.5 else "black"
        ax.text(
            j,
            i,
            str(int(counts[i, j])),
            ha="center",
            va="center",
            color=color,
            fontsize=8,
        )
    names, fonts, why = drawable(classes)
    names = [name if len(name) <= 18 else name[:17] + "..." for name in names]
    ax.set_xticks(
        range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0
    )
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="named", ylabel="true")
    ax.grid(False)
    _save(fig, path, fonts, why)


def draw_hardest(
    path: Path,
    images: Tensor,
    true: Tensor,
    probabilities: Tensor,
    classes: Sequence[str],
) -> None:
    """Write a PNG of the images (n, c, h, w, in [0, 1]) whose class was least probable.

    At most twelve, the hardest first. Above each stand its class and what the model said
    of it.
    """
    from dlcourse.lab.plotting import figure

    of_true = probabilities[torch.arange(len(true)), true]
    worst = of_true.argsort(stable=True)[:HARDEST].tolist()
    columns = min(6, len(worst))
    rows = -(-len(worst) // columns)
    classes, fonts, why = drawable(classes)
    fig, first = figure(width=1.7 * columns, height=1.9 * rows)
    first.remove()
    for place, row in enumerate(worst, 1):
        ax = fig.add_subplot(rows, columns, place)
        ax.imshow(
            images[row].permute(1, 2, 0).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1
        )
        said = int(probabilities[row].argmax())
        verdict = f"said {_short(classes[said])}" if said != true[row] else "right"
        title = f"{_short(classes[int(true[row])])}\n{verdict} ({probabilities[row, said]:.2f})"
        ax.set_title(title, fontsize=8, color="black" if said == true[row] else "#B00000")
        ax.axis("off")
    _save(fig, path, fonts, why)


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "..."


def _save(fig, path: Path, fonts: Sequence[str], why: str) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.text import Text

    if why:
        fig.supxlabel(why, fontsize=7)
    for text in fig.findobj(Text):
        text.set_fontfamily(fonts)
    fig.savefig(path, dpi=100)
    plt.close(fig)
