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
    with_interval,
    write_predictions,
)
from dlcourse.capstone.result import predict
from dlcourse.capstone.settings import Problem
from dlcourse.lab.datasets import read_image
from dlcourse.lab.images import below, is_image, reason

PROGRAM = "python -m dlcourse.predict"
BATCH = 256  # images in memory at a time
GREY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R 601, as Pillow's "L"


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
        answers = []
        for file, found in self.look(find_images(images)):
            if isinstance(found, str):
                raise Problem(unreadable(file, found))
            answers.append(self.answer(file, found))
        return answers

    def look(self, files: Sequence[Path]) -> Iterator[tuple[Path, Tensor | str]]:
        """Yield each file with its probabilities (classes,), or why it cannot be read."""
        for start in range(0, len(files), BATCH):
            some = files[start : start + BATCH]
            read = [self._pixels_or_why(file) for file in some]
            pixels = [image for image in read if not isinstance(image, str)]
            shares = iter(self.probabilities(torch.stack(pixels)) if pixels else ())
            for file, image in zip(some, read, strict=True):
                yield file, image if isinstance(image, str) else next(shares)

    def _pixels_or_why(self, file: Path) -> Tensor | str:
        try:
            return self.read(file)
        except Exception as error:  # a decoder may raise anything on a damaged file
            return reason(error)

    def read(self, file: str | os.PathLike[str]) -> Tensor:
        """Return one file as float32 (channels, size, size) in [0, 1], as in training."""
        pixels = read_image(file, self.size)
        if self.channels == 1 and len(pixels) == 3:
            weights = torch.tensor(GREY).view(3, 1, 1)
            pixels = (pixels * weights).sum(0, keepdim=True)
        return pixels.expand(self.channels, -1, -1)

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return (n, classes) for float pixels (n, channels, size, size) in [0, 1].

        Raises ValueError for another shape or pixels out of range.
        """
        shape = (self.channels, self.size, self.size)
        if pixels.ndim != 4 or pixels.shape[1:] != shape:
            raise ValueError(f"give pixels (n, {', '.join(map(str, shape))}), not "
                             f"{tuple(pixels.shape)}")  # fmt: skip
        in_range = ((pixels - 0.5).abs() <= 0.51).all()  # resizing overshoots a little
        if not pixels.is_floating_point() or not in_range:
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


def unreadable(file: Path, why: str) -> str:
    """Return what to say of a file that is no image."""
    return f"{file} cannot be read as an image ({why})"


def line(answer: Answer, true: str | None, top: int) -> str:
    """Return one line: the file, its most probable classes, and "wrong" where known."""
    best = list(answer.probabilities.items())[:top]
    said = ", ".join(f"{name} {share:.3f}" for name, share in best)
    wrong = f"   wrong: {true}" if true not in (None, answer.label) else ""
    return f"{answer.file}   {said}{wrong}"


def verdict(true: Tensor, shares: Tensor, classes: Sequence[str]) -> str:
    """Return accuracy with interval, the mistakes and the table of known classes."""
    said = shares.argmax(1)
    accuracy = with_interval(int((said == true).sum()), len(true))
    counts = confusion_matrix(true, said, len(classes))
    mistakes = "; ".join(most_confused(counts, classes)) or "none"
    return (
        f"accuracy {accuracy} on {len(true)} images\n"
        f"most frequent mistakes: {mistakes}\n\n{by_class(counts, classes)}"
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line; leave with 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Ask a trained model about new images.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the folder that dlcourse-train left")
    add("image", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    top = "classes to print for an image (3)"
    add("--top", type=int, default=3, metavar="N", help=top)
    add("--csv", type=Path, metavar="FILE", help="write all probabilities to FILE")
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
    classes = list(classify.classes)
    files = find_images(options.image)
    class_of = {file: Path(os.path.abspath(file)).parent.name for file in files}
    known = set(class_of.values()) <= set(classes)
    names, found, bad = [], [], 0
    for file, shares in classify.look(files):
        if isinstance(shares, str):
            bad = fail(PROGRAM, unreadable(file, shares), 1)
            continue
        true = class_of[file] if known else None
        print(line(classify.answer(file, shares), true, options.top), flush=True)
        names.append(file)
        found.append(shares)
    if not names:
        return bad
    shares, labels = torch.stack(found), None
    if known:
        labels = torch.tensor([classes.index(class_of[name]) for name in names])
        print(f"\n{verdict(labels, shares, classes)}")
    if options.csv:
        write_predictions(options.csv, list(map(str, names)), shares, classes, labels)
    return bad
