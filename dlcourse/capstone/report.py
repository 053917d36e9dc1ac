"""What a classifier gets right and wrong: class by class, and image by image.

`folder` writes these beside the weights, for the test images; `predict` prints them for
new images that stand in one folder for each class.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
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

    Labels are int64 (n,), from 0 to classes - 1. Invariants: a row sums to the images of
    its class, the diagonal to those that are right.
    """
    pairs = torch.bincount(true * classes + predicted, minlength=classes**2)
    return pairs.view(classes, classes)


def with_interval(right: int, count: int, digits: int = 4) -> str:
    """Return a share with its 95 % interval.

    >>> with_interval(9, 10)
    '0.9000 [0.5958, 0.9821]'
    """
    shares = (right / count, *wilson_interval(right, count))
    share, low, high = (f"{value:.{digits}f}" for value in shares)
    return f"{share} [{low}, {high}]"


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
        recall = with_interval(int(right[k]), int(images[k]), digits=3)
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


def write_table(path: Path, head: Sequence, rows: Iterable[Sequence]) -> None:
    """Write a CSV; names of files and classes may be in any letters."""
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def write_confusion(path: Path, counts: Tensor, classes: Sequence[str]) -> None:
    """Write the matrix as CSV: a row for each true class, a column for each name given."""
    head = ["true", *(f"named {name}" for name in classes)]
    rows = zip(classes, counts.tolist(), strict=True)
    write_table(path, head, ([name, *row] for name, row in rows))


def read_confusion(path: Path) -> tuple[Tensor, list[str]]:
    """Return (counts, classes) of a matrix that `write_confusion` wrote."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        _, *rows = csv.reader(file)
    counts = [list(map(int, row[1:])) for row in rows]
    return torch.tensor(counts), [row[0] for row in rows]


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
    if true is not None:
        head += ["true", "probability_of_true"]

    def rows() -> Iterator[list[str]]:
        for place, (name, shares) in enumerate(zip(names, probabilities, strict=True)):
            cells = [name]
            for label in [shares.argmax()] + ([] if true is None else [true[place]]):
                cells += [classes[int(label)], f"{shares[label]:.4f}"]
            yield cells + [f"{share:.4f}" for share in shares.tolist()]

    write_table(path, [*head, *(f"p({name})" for name in classes)], rows())


def draw_confusion(path: Path, counts: Tensor, classes: Sequence[str]) -> None:
    """Write a PNG of the matrix: the colour is the share of a row, the number images."""
    from dlcourse.lab.plotting import figure

    side = 2 + 0.38 * len(classes)
    fig, ax = figure(width=side + 0.6, height=side)
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    centred = {"ha": "center", "va": "center", "fontsize": 8}
    for i, j in np.argwhere(counts.numpy()):
        color = "white" if shares[i, j] > 0.5 else "black"
        ax.text(j, i, str(int(counts[i, j])), color=color, **centred)
    names, fonts, why = drawable(classes)
    names = [_short(name, 18) for name in names]
    places = range(len(names))
    ax.set_xticks(places, names, rotation=90 if max(map(len, names)) > 2 else 0)
    ax.set_yticks(places, names)
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
        pixels = images[row].permute(1, 2, 0).squeeze(2).numpy()
        ax.imshow(pixels, cmap="gray", vmin=0, vmax=1)
        label, said = int(true[row]), int(probabilities[row].argmax())
        right = said == label
        verdict = "right" if right else f"said {_short(classes[said], 14)}"
        title = (
            f"{_short(classes[label], 14)}\n{verdict} ({probabilities[row, said]:.2f})"
        )
        ax.set_title(title, fontsize=8, color="black" if right else "#B00000")
        ax.axis("off")
    _save(fig, path, fonts, why)


def _short(name: str, longest: int) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "..."


def _save(fig, path: Path, fonts: Sequence[str], why: str) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.text import Text

    if why:
        fig.supxlabel(why, fontsize=7)
    for text in fig.findobj(Text):
        text.set_fontfamily(fonts)
    fig.savefig(path, dpi=100)
    plt.close(fig)
