"""Images a second of the batched transforms, against torchvision v2 and Kornia.

    python benchmarks/augmentation.py [--rounds 31] [--batch 128] [--kornia FOLDER]

Contenders: this package, one decision a sample; v2 called on every image; v2 called on
the batch, which takes one decision for all and so does less; and Kornia, one decision a
sample, where it is installed (FOLDER: a folder given to `pip install --target`). In each
round every contender runs once in a random order, and each ratio is of two runs of the
same round. First each one's decisions are counted: how many different results it makes of
a batch of equal images.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

import numpy as np
import torch
from many_seeds import machine, spread
from torchvision.transforms import InterpolationMode, v2

from dlcourse import data_augmentation as da
from dlcourse.lab.training import use_one_thread

SIDE = 32


def stacked(transform):
    """Return a function of a batch that calls `transform` on each image."""
    return lambda images: torch.stack([transform(image) for image in images])


def contenders(kornia):
    """Return {task: {name: function of a batch}}; the first name is this package's."""
    recipes = {
        "crop and flip": (
            da.Compose([da.RandomCrop(padding=4), da.RandomHorizontalFlip()]),
            v2.Compose([v2.RandomCrop(SIDE, padding=4), v2.RandomHorizontalFlip()]),
        ),
        "affine, bilinear": (
            da.RandomAffine(15, (0.1, 0.1), (0.9, 1.1)),
            v2.RandomAffine(
                15, (0.1, 0.1), (0.9, 1.1), interpolation=InterpolationMode.BILINEAR
            ),
        ),
        "brightness, contrast, saturation": (
            da.ColorJitter(0.4, 0.4, 0.4),
            v2.ColorJitter(0.4, 0.4, 0.4),
        ),
        "erasing": (da.RandomErasing(1.0), v2.RandomErasing(1.0)),
        "Gaussian noise": (da.GaussianNoise(0.1), v2.GaussianNoise(sigma=0.1)),
    }
    tasks = {
        task: {"dlcourse": ours, "v2 per sample": stacked(theirs), "v2 per batch": theirs}
        for task, (ours, theirs) in recipes.items()
    }
    if kornia is not None:
        k = kornia.augmentation
        crop = k.RandomCrop((SIDE, SIDE), padding=4)
        flip = k.RandomHorizontalFlip()
        tasks["crop and flip"]["Kornia"] = lambda images: flip(crop(images))
        slices = k.RandomCrop((SIDE, SIDE), padding=4, cropping_mode="slice")
        tasks["crop and flip"]["Kornia, slices"] = lambda images: flip(slices(images))
        tasks["affine, bilinear"]["Kornia"] = k.RandomAffine(
            15, (0.1, 0.1), (0.9, 1.1), p=1.0
        )
        tasks["brightness, contrast, saturation"]["Kornia"] = k.ColorJiggle(
            0.4, 0.4, 0.4, p=1.0
        )
        tasks["erasing"]["Kornia"] = k.RandomErasing(p=1.0)
        tasks["Gaussian noise"]["Kornia"] = k.RandomGaussianNoise(std=0.1, p=1.0)
    return tasks


def find_kornia(folder: str | None):
    """Return the module, or None where it is not installed."""
    if folder:
        sys.path.append(folder)
    try:
        import kornia
        import kornia.augmentation
    except ImportError as error:
        print(f"Kornia is left out: {error}")
        return None
    return kornia


def decisions(function, batch: int) -> int:
    """Return how many different results a batch of equal images has."""
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    result = function(image.expand(batch, -1, -1, -1).contiguous())
    assert result.shape == (batch, 3, SIDE, SIDE)
    return len(torch.unique(result.flatten(1), dim=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--kornia")
    arguments = parser.parse_args()
    use_one_thread()
    kornia = find_kornia(arguments.kornia)
    images = torch.rand(arguments.batch, 3, SIDE, SIDE)
    order = random.Random(0)
    print(machine() + (f", Kornia {kornia.__version__}" if kornia else ""))
    print(
        f"batch of {arguments.batch} images 3x{SIDE}x{SIDE} float32, {arguments.rounds} rounds; "
        "ratio: seconds of the other / seconds of dlcourse, above 1 means dlcourse is faster"
    )
    print(
        "\n| Task | contender | decisions | thousand images a second | ratio | quartiles |",
        end="",
    )
    print(" 95 % of the median |\n|---|---|---|---|---|---|---|")
    for task, functions in contenders(kornia).items():
        seconds = {name: [] for name in functions}
        for number in range(arguments.rounds + 2):
            for name in order.sample(list(functions), len(functions)):
                function = functions[name]
                repeats = 1 if name == "v2 per sample" else 5
                function(images[:8])  # not timed: what runs next finds warm code
                start = time.perf_counter()
                for _ in range(repeats):
                    function(images)
                if number > 1:  # two rounds warm up
                    seconds[name].append((time.perf_counter() - start) / repeats)
        ours = np.array(seconds["dlcourse"])
        for name, taken in seconds.items():
            rate = arguments.batch / np.median(taken) / 1000
            ratio = "| | " if name == "dlcourse" else spread(np.array(taken) / ours)
            different = decisions(functions[name], arguments.batch)
            print(f"| {task} | {name} | {different} | {rate:.1f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
