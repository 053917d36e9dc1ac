"""Memory and CPU time of one epoch on a folder of images, beside a plain ImageFolder loop.

    python benchmarks/own_images.py --images 10000 --sizes 32 64 --model mlp --rounds 3
    python benchmarks/own_images.py --images 50000 --sizes 64 --model mlp --rounds 3
    python benchmarks/own_images.py --large            # one JPEG of 12 megapixels, ms
    python benchmarks/own_images.py --dots             # two dots far apart, at 64 pixels

Both arms are processes of their own on one thread. They read all images, train the same
network on 70 % of them for one epoch in batches of 64, and look at the other 30 % once.
Further options, such as --memory 0, go to `dlcourse-train`.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

PLAIN = """
import sys
import time
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, random_split
from torchvision import transforms as T
from torchvision.datasets import ImageFolder
from dlcourse.capstone.building import build_model
from dlcourse.capstone.settings import Recipe

root, size = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
torch.set_flush_denormal(True)
fresh = torch.nn.Linear(2, 2)  # what is imported at the first update is not counted
fresh(torch.zeros(2, 2)).sum().backward()
torch.optim.AdamW(fresh.parameters()).step()
begun = time.process_time()
steps = [T.Resize((size, size)), T.ToTensor(), T.Normalize([0.5] * 3, [0.5] * 3)]
data = ImageFolder(root, T.Compose(steps))
train, held = random_split(data, [0.7, 0.3])
recipe = Recipe(model=sys.argv[3])
model = build_model(recipe, 3, size, len(data.classes))
optimizer = torch.optim.AdamW(model.parameters(), 0.001)
for images, labels in DataLoader(train, 64, shuffle=True):
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
model.eval()
with torch.no_grad():
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in DataLoader(held, 256))
print(time.process_time() - begun)
"""

OURS = """
import sys
import time
from dlcourse.capstone.data import load_data
from dlcourse.capstone.running import train
from dlcourse.capstone.settings import Recipe

recipe = Recipe(data="folder", root=sys.argv[1], size=int(sys.argv[2]), model=sys.argv[3],
                epochs=1, augment="none")
train(Recipe(train_limit=64, epochs=1), progress=False)  # for what is imported
begun = time.process_time()
train(recipe, data=load_data(recipe), progress=False)
print(time.process_time() - begun)
"""


def write(root: Path, count: int) -> None:
    """Write so many JPEGs of 160x120, in ten classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / str(number % 10)
        folder.mkdir(parents=True, exist_ok=True)
        patches = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        patches.resize((160, 120), Image.Resampling.BICUBIC).save(
            folder / f"{number}.jpg"
        )


def cost(command: list[str]) -> tuple[str, float, float]:
    """Return (what a command prints, its peak in MB, that of its own memory alone).

    Own memory has no pages of files, of which libraries have more or fewer in memory as
    the system likes. It is looked at every 10 ms, as Linux tells it.
    """
    env = os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DLCOURSE_PROGRESS": "0",
    }  # fmt: skip
    own = 0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=env, stdout=said, stderr=said)
        pid = 0
        while not pid:
            facts = Path(f"/proc/{process.pid}/status").read_text()
            own = max([own, *map(int, re.findall(r"RssAnon:\s+(\d+)", facts))])
            time.sleep(0.01)
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
        said.seek(0)
        text = said.read()
    if status:
        raise SystemExit(text[-2000:])
    return text, used.ru_maxrss * 1024 / 1e6, own * 1024 / 1e6


def compare(root: Path, size: int, rounds: int, model: str, extra: list[str]) -> None:
    """Print a row for one size: both arms in turn; medians, of memory the extremes, too.

    CPU time is without imports.
    """
    words = [str(root), str(size), model]
    measured = []
    for number in range(rounds):
        out = str(root.parent / f"run-{model}-{size}-{number}")
        command = [sys.executable, "-m", "dlcourse.train", "--data", "folder", str(root),
                   "--size", str(size), "--epochs", "1", "--augment", "none", "--model",
                   model, "--out", out, *extra]  # fmt: skip
        text, *theirs = cost([sys.executable, "-c", PLAIN, *words])
        mine, *_ = cost([sys.executable, "-c", OURS, *words])
        _, *ours = cost(command)
        seconds = [float(text), float(mine.split()[-1])]
        measured.append([*seconds, theirs[0], ours[0], theirs[1], ours[1]])
    files = sum(1 for _ in root.rglob("*.jpg"))
    row = f"| {files:,} | {size} | {model} "
    for place in (0, 2, 4):
        pair = [sorted(each) for each in zip(*measured, strict=True)][place : place + 2]
        middle = [statistics.median(each) for each in pair]
        for each, value in zip(pair, middle, strict=True):
            row += f"| {value:,.1f} " if place == 0 else f"| {value:,.0f} "
            row += f"({each[0]:,.0f} to {each[-1]:,.0f}) " if place and rounds > 1 else ""
        row += f"| {middle[1] / middle[0]:.2f} "
    print(row + "|", flush=True)


def large(folder: Path) -> None:
    """Print the milliseconds to read a JPEG of 12 megapixels at 32 and 64 pixels."""
    from torchvision import transforms as T

    from dlcourse.lab.images import pixels_of

    rng = np.random.default_rng(0)
    patches = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    patches.resize((4000, 3000), Image.Resampling.BICUBIC).save(
        folder / "a.jpg", quality=90
    )

    def theirs(size: int):
        image = Image.open(folder / "a.jpg").convert("RGB")
        return T.ToTensor()(T.Resize((size, size))(image))

    for size in (32, 64):
        times = []
        for read in (theirs, lambda size: pixels_of(folder / "a.jpg", size)):
            each = []
            for _ in range(7):
                start = time.process_time()
                read(size)
                each.append(1000 * (time.process_time() - start))
            times.append(statistics.median(each))
        print(f"| {size} | {times[0]:.0f} | {times[1]:.0f} |")


def dots(folder: Path) -> None:
    """Print test accuracies: are two dots 33 to 52 pixels apart in a row or a column?"""
    from dlcourse.capstone.running import train
    from dlcourse.capstone.settings import Recipe

    rng = np.random.default_rng(0)
    for number in range(1500):
        pixels = np.zeros((64, 64), dtype=np.uint8)
        apart = rng.integers(33, 53)
        start, other = rng.integers(0, 60 - apart), rng.integers(0, 60)
        for place in (start, start + apart):
            pixels[place : place + 4, other : other + 4] = 255
        kind = number % 2
        path = folder / ("column", "row")[kind] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.T if kind else pixels).save(path)
    for seed in range(3):
        recipe = Recipe(data="folder", root=str(folder), size=64, epochs=8, seed=seed,
                        augment="none")  # fmt: skip
        print(f"seed {seed}: {train(recipe, progress=False).accuracy:.3f}", flush=True)


def main() -> None:
    """Read the options and print the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--dots", action="store_true")
    options, extra = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.large:
            large(Path(folder))
        elif options.dots:
            dots(Path(folder))
        else:
            write(Path(folder) / "images", options.images)
            for size in options.sizes:
                compare(
                    Path(folder) / "images", size, options.rounds, options.model, extra
                )


if __name__ == "__main__":
    main()
