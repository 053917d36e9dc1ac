"""Ask a trained model about new images: `python -m dlcourse.predict RUN IMAGE ...`.

RUN is the folder that `dlcourse-train` left (or one of its `compressed` folders), IMAGE a
file or a folder, which is searched with all that is in it. Where every image lies in a
folder named like one of the classes, accuracy, recall and mistakes are printed too.

Exit codes: 0, or 1 where an image could not be read, or 2 where nothing could be done.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dlcourse.capstone.command import answered, check_csv, fail
from dlcourse.capstone.folder import load_model
from dlcourse.capstone.report import (
    by_class,
    confusion_matrix,
    most_confused,
    write_predictions,
)
from dlcourse.capstone.result import predict
from dlcourse.capstone.settings import Problem
from dlcourse.data_splitting import wilson_interval
from dlcourse.lab.datasets import read_image
from dlcourse.lab.images import below, is_image, reason

PROGRAM = "python -m dlcourse.predict"
BATCH = 256  # images in memory at a time


@dataclass(frozen=True)
class Answer:
    """What a model says of one image: its class, and the probabilities of all classes."""

    file: str
    label: str
    probability: float
    probabilities: dict[str, float]


class Classifier:
    """A trained model with what it needs to look at new images: sizes, scale, classes.

    `folder`: what `dlcourse-train` left. Raises Problem where there is no model that can
    be read; no code from the file is run. Invariant: for the test images of a folder the
    probabilities are those of its predictions.csv.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.model, facts = load_model(folder)
        self.channels, self.size = facts["channels"], facts["size"]
        self.classes = tuple(facts["classes"])
        self.mean, self.std = (
            torch.tensor(facts[k]).view(-1, 1, 1) for k in ("mean", "std")
        )

    def __repr__(self) -> str:
        shape = f"{self.channels}x{self.size}x{self.size}"
        return f"Classifier({len(self.classes)} classes, {shape})"

    def __call__(self, *images: str | os.PathLike[str]) -> list[Answer]:
        """Return an Answer for each file; a folder stands for all images in it.

        Raises Problem for a path that is not there, and for a file that is no image.
        """
        files, pixels = find_images(images), []
        for file in files:
            try:
                pixels.append(self.read(file))
            except Exception as error:  # a decoder may raise anything on a damaged file
                said = f"{file} cannot be read as an image ({reason(error)})"
                raise Problem(said) from error
        shares = self.probabilities(torch.stack(pixels)) if pixels else []
        return [self.answer(file, row) for file, row in zip(files, shares, strict=True)]

    def read(self, file: str | os.PathLike[str]) -> Tensor:
        """Return one file as float32 (channels, size, size) in [0, 1], as in training."""
        pixels = read_image(file, self.size)
        # the weights of ITU-R 601, as Pillow's "L"
        if self.channels == 1 and len(pixels) == 3:
            pixels = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)[
                None
            ]
        return pixels.expand(self.channels, -1, -1)

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return (n, classes) for float pixels (n, channels, size, size) in [0, 1].

        Raises ValueError for another shape or pixels out of range.
        """
        shape = (self.channels, self.size, self.size)
        if pixels.ndim != 4 or pixels.shape[1:] != shape:
            raise ValueError(f"give pixels (n, {', '.join(map(str, shape))}), not "
                             f"{tuple(pixels.shape)}")  # fmt: skip
        rounding = 0.01  # resizing overshoots a little
        if (
            not pixels.is_floating_point()
            or not ((pixels - 0.5).abs() <= 0.5 + rounding).all()
        ):
            raise ValueError(
                "give pixels as floats from 0 to 1: divide 8-bit ones by 255"
            )
        return predict(self.model, (pixels.float() - self.mean) / self.std).softmax(1)

    def answer(self, file: str | os.PathLike[str], shares: Tensor) -> Answer:
        """Return the probabilities (classes,) of a file as an Answer, the highest first."""
        order = shares.argsort(descending=True, stable=True).tolist()
        each = {self.classes[k]: float(shares[k]) for k in order}
        return Answer(str(file), self.classes[order[0]], float(shares[order[0]]), each)


def find_images(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the files named, and for a folder all image files in and below it, by name.

    In a folder, what training passes over is passed over too: hidden files, litter, runs
    and files that are no images. Raises Problem for what is not there, and for a folder
    without images.
    """
    files = []
    for path in map(Path, paths):
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            inside = [file for file in below(path) if is_image(file)]
            if not inside:
                raise Problem(f"{path} holds no images: name another folder, or files")
            files += inside
        else:
            raise Problem(f"there is no file or folder {path}")
    return files


def look(
    classify: Classifier, files: Sequence[Path]
) -> Iterator[tuple[Path, Tensor | str]]:
    """Yield each file with its probabilities (classes,), or why it cannot be read."""
    for start in range(0, len(files), BATCH):
        read: dict[Path, Tensor | str] = {}
        for file in files[start : start + BATCH]:
            try:
                read[file] = classify.read(file)
            except Exception as error:  # a decoder may raise anything on a damaged file
                read[file] = reason(error)
        pixels = [image for image in read.values() if not isinstance(image, str)]
        shares = iter(classify.probabilities(torch.stack(pixels)) if pixels else ())
        for file, image in read.items():
            yield file, image if isinstance(image, str) else next(shares)


def line(
    name: str, shares: Tensor, classes: Sequence[str], true: str | None, top: int
) -> str:
    """Return one line: the file, its most probable classes, and "wrong" where known."""
    best = shares.argsort(descending=True, stable=True)[:top].tolist()
    said = ", ".join(f"{classes[k]} {shares[k]:.3f}" for k in best)
    wrong = f"   wrong: {true}" if true not in (None, classes[best[0]]) else ""
    return f"{name}   {said}{wrong}"


def verdict(true: Tensor, shares: Tensor, classes: Sequence[str]) -> str:
    """Return accuracy with interval, the mistakes and the table of known classes."""
    said = shares.argmax(1)
    right, count = int((said == true).sum()), len(true)
    low, high = wilson_interval(right, count)
    counts = confusion_matrix(true, said, len(classes))
    mistakes = "; ".join(most_confused(counts, classes)) or "none"
    return (
        f"accuracy {right / count:.4f} [{low:.4f}, {high:.4f}] on {count} images\n"
        f"most frequent mistakes: {mistakes}\n\n{by_class(counts, classes)}"
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line; leave with 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Ask a trained model about new images.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="the folder that dlcourse-train left")
    parser.add_argument(
        "image", nargs="+", metavar="IMAGE", help="image files, or folders of them"
    )
    parser.add_argument(
        "--top",
        type=int,
        default=3,
        metavar="N",
        help="classes to print for an image (3)",
    )
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="write all probabilities to FILE"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, 1 (an image cannot be read) or 2 (nothing can be done)."""
    options = parse(arguments)
    return answered(PROGRAM, lambda: answer(options))


def answer(options: argparse.Namespace) -> int:
    """Print what the model says of each image, and a verdict; return the exit code."""
    if options.top < 1:
        raise Problem(f"--top {options.top}: give at least 1")
    check_csv(options.csv)
    classify = Classifier(options.run)
    number = {name: k for k, name in enumerate(classify.classes)}
    files = find_images(options.image)
    class_of = {file: Path(os.path.abspath(file)).parent.name for file in files}
    known = all(name in number for name in class_of.values())
    names, shares, bad = [], [], 0
    for file, found in look(classify, files):
        if isinstance(found, str):
            bad = fail(PROGRAM, f"{file} cannot be read as an image ({found})", 1)
            continue
        true = class_of[file] if known else None
        print(line(str(file), found, classify.classes, true, options.top), flush=True)
        names.append(file)
        shares.append(found)
    if not names:
        return bad
    true = torch.tensor([number[class_of[name]] for name in names]) if known else None
    if true is not None:
        print(f"\n{verdict(true, torch.stack(shares), classify.classes)}")
    if options.csv:
        shown = [str(name) for name in names]
        write_predictions(options.csv, shown, torch.stack(shares), classify.classes, true)
    return bad
