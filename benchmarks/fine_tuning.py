"""Fine-tuning against training from nothing, on few images of what the install offers.

    pip install "dlcourse[pretrained]"
    python benchmarks/fine_tuning.py --seeds 5

For each set and each number of training images: test accuracy of both, from the same
splits, and the mean difference with its 95 % interval over the seeds. Each seed draws
other images. All settings are the defaults of the command.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from PIL import Image, ImageDraw

from dlcourse.capstone.data import for_network
from dlcourse.capstone.running import train
from dlcourse.capstone.settings import Recipe
from dlcourse.lab.datasets import ImageData, Split, load
from dlcourse.lab.trials import interval, paired

COUNTS = (20, 100, 500)
HELD = 300  # test images
ARMS = ("from nothing", "fine-tuned")


def shapes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy colour drawings of discs, squares and stripes, 32x32, and classes."""
    rng = np.random.default_rng(seed)
    images, labels = [], rng.integers(0, 3, count)
    for label in labels:
        image = Image.new("RGB", (32, 32), tuple(rng.integers(0, 100, 3).tolist()))
        pen, ink = ImageDraw.Draw(image), tuple(rng.integers(150, 256, 3).tolist())
        radius = int(rng.integers(4, 12))
        left, top = (int(rng.integers(0, 32 - 2 * radius)) for _ in range(2))
        box = (left, top, left + 2 * radius, top + 2 * radius)
        if label == 0:
            pen.ellipse(box, fill=ink)
        elif label == 1:
            pen.rectangle(box, fill=ink)
        else:
            for x in range(box[0], box[2], 4):
                pen.line((x, box[1], x, box[3]), fill=ink, width=2)
        noisy = np.asarray(image) + rng.normal(0, 25, (32, 32, 3))
        images.append(noisy.clip(0, 255).astype(np.float32) / 255)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.from_numpy(labels)


def photographs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 64x64 pieces of scikit-learn's two photographs, turned grey, and which."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    whole = [photograph.mean(2) for photograph in load_sample_images().images]
    images = []
    for label in labels:
        photograph = whole[label]
        top, left = (int(rng.integers(0, side - 64)) for side in photograph.shape)
        images.append(photograph[top : top + 64, left : left + 64] / 255)
    return torch.from_numpy(np.stack(images)).float()[:, None], torch.from_numpy(labels)


def rows_of(name: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return more than enough images in [0, 1] of a set, in an order that the seed draws."""
    if name == "shapes":
        return shapes(1000, seed)
    if name == "photographs":
        return photographs(1000, seed)
    data = load(name, normalize=False, seed=seed)
    parts = (data.train, data.validation, data.test)
    images, labels = (
        torch.cat([getattr(p, k) for p in parts]) for k in ("images", "labels")
    )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return images[order], labels[order]


def cut(name: str, count: int, seed: int, recipe: Recipe) -> ImageData:
    """Return `count` images to train on, a fifth as many to choose by, and 300 to test."""
    images, labels = rows_of(name, seed)
    one_hot = torch.nn.functional.one_hot(labels)
    rank = (one_hot.cumsum(0) * one_hot).sum(1)  # the how-manieth of its class
    order = rank.argsort(stable=True)  # so the classes take turns
    images, labels = images[order], labels[order]
    held = max(20, count // 5)
    bounds = [0, count, count + held, count + held + HELD]
    mean, std = images[:count].mean((0, 2, 3)), images[:count].std((0, 2, 3))
    parts = [
        Split((images[a:b] - mean.view(-1, 1, 1)) / std.view(-1, 1, 1), labels[a:b])
        for a, b in zip(bounds, bounds[1:], strict=False)
    ]
    classes = tuple(map(str, range(int(labels.max()) + 1)))
    return for_network(ImageData(name, *parts, classes, mean, std), recipe)


def accuracy(arm: str, name: str, count: int, seed: int, side: int) -> float:
    """Return the test accuracy of an arm."""
    recipe = Recipe(seed=seed, batch_size=min(32, count // 2))
    if arm == "fine-tuned":
        recipe = recipe.changed(pretrained="efficientnet_lite0", size=side)
    data = cut(name, count, seed, recipe)
    return train(recipe, data=data, progress=False).accuracy


def main() -> None:
    """Print a row for each set and number of images."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument(
        "--sets", nargs="+", default=["digits", "mnist_5k", "shapes", "photographs"]
    )
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    options = parser.parse_args()
    print("| set | images | from nothing | fine-tuned | difference | seconds of one |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in options.sets:
        for count in options.counts:
            found: dict[str, list[float]] = {}
            begun = time.process_time()
            for arm in ARMS:
                found[arm] = [
                    accuracy(arm, name, count, seed, options.side)
                    for seed in range(options.seeds)
                ]
            spent = (time.process_time() - begun) / options.seeds / 2
            nothing, tuned = found.values()
            gap = paired(tuned, nothing)
            print(
                f"| {name} | {count} | {interval(nothing).mean:.3f} | "
                f"{interval(tuned).mean:.3f} | {gap.mean:+.3f} [{gap.low:+.3f}, "
                f"{gap.high:+.3f}] | {spent:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
