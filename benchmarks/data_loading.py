"""How fast data that is in memory can be loaded: a sample at a time, by the batch, and
the limit.

    python benchmarks/data_loading.py [--rounds 15] [--batch-size 128]

One shuffled pass over all rows, by four contenders that stand side by side in each round:

- PyTorch's `DataLoader` over a `TensorDataset`, a sample at a time, without workers;
- `TensorLoader`, which makes the same batches in the same order (checked before the clock
runs);
- bare `index_select` with a ready-made permutation: the gather and nothing else;
- one copy of the same rows in one piece: each byte read once and written once, the limit.

Ratios are of runs in the same round. The machine's memory bandwidth, from copying a
tensor much larger than its caches, is printed beside them: small data sets live in the
caches and exceed it.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from many_seeds import machine, spread
from torch.utils.data import DataLoader, TensorDataset

from dlcourse.data_loading import TensorLoader
from dlcourse.lab.datasets import load
from dlcourse.lab.training import use_one_thread

LARGE = 256 * 2**20  # bytes, more than the caches of the machines in use
QUICK = 9  # passes of the fast contenders a round; their median counts


def settings():
    """Yield (name, images, labels)."""
    digits = load("digits").train
    yield "digits, 8x8 float32", *digits.tensors()
    generator = torch.Generator().manual_seed(0)
    for name, shape, rows in (
        ("28x28 uint8", (1, 28, 28), 10_000),
        ("28x28 float32", (1, 28, 28), 10_000),
        ("3x32x32 float32", (3, 32, 32), 5_000),
    ):
        images = torch.randint(
            0, 256, (rows, *shape), generator=generator, dtype=torch.uint8
        )
        labels = torch.randint(0, 10, (rows,), generator=generator)
        yield name, images if "uint8" in name else images.float(), labels


def seconds(run, passes: int) -> float:
    """Return the median time of a pass."""
    times = []
    for _ in range(passes):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def bandwidth() -> float:
    """Return bytes read and written a second by a large copy."""
    source = torch.zeros(LARGE, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return 2 * LARGE / seconds(lambda: target.copy_(source), 7)


def contenders(images, labels, batch_size: int):
    """Return {name: a function that reads one shuffled pass}, after a check that two
    agree.
    """
    pairs, order = (images, labels), torch.randperm(len(images))
    copies = [tensor.clone() for tensor in pairs]
    theirs, ours = (
        kind(
            batch_size=batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(0),
        )
        for kind in (
            lambda **settings: DataLoader(TensorDataset(*pairs), **settings),
            lambda **settings: TensorLoader(*pairs, **settings),
        )
    )
    for want, found in zip(theirs, ours, strict=True):
        if not all(map(torch.equal, want, found)):
            raise SystemExit("the two loaders made different batches")

    def drain(loader):
        for _ in loader:
            pass

    def gather():
        for rows in order.split(batch_size):
            for tensor in pairs:
                tensor.index_select(0, rows)

    def copy():
        for target, tensor in zip(copies, pairs, strict=True):
            target.copy_(tensor)

    return {
        "per sample": lambda: drain(theirs),
        "TensorLoader": lambda: drain(ours),
        "index_select": gather,
        "copy": copy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    use_one_thread()
    print(machine())
    print(f"batches of {arguments.batch_size}, {arguments.rounds} rounds")
    print(f"memory: {bandwidth() / 1e9:.1f} GB/s read and written by a large copy")
    for name, images, labels in settings():
        runs = contenders(images, labels, arguments.batch_size)
        taken: dict[str, list[float]] = {contender: [] for contender in runs}
        for number in range(arguments.rounds + 1):
            names = list(runs) if number % 2 else list(runs)[::-1]
            found = {
                which: seconds(runs[which], 1 if "per" in which else QUICK)
                for which in names
            }
            if number:  # the first round warms up
                for which, value in found.items():
                    taken[which].append(value)
        took = {which: np.array(values) for which, values in taken.items()}
        moved = 2 * (images.nbytes + labels.nbytes)
        print(f"\n{name}, {len(images)} rows of {images[0].nbytes} bytes")
        print(
            "| Contender | thousand rows/s | GB/s | ratio | median | quartiles | 95 % |"
        )
        print("|---|---|---|---|---|---|---|")
        for which, over, under in (
            ("TensorLoader", "per sample", "TensorLoader"),
            ("index_select", "TensorLoader", "index_select"),
            ("copy", "TensorLoader", "copy"),
        ):
            middle = np.median(took[which])
            ratio = spread(took[over] / took[under])
            words = f"{under} over {over}" if over != under else over
            print(
                f"| {which} | {len(images) / middle / 1e3:,.0f} | {moved / middle / 1e9:.1f} "
                f"| speed of {words} | {ratio} |"
            )
        middle = np.median(took["per sample"])
        print(
            f"| per sample | {len(images) / middle / 1e3:,.0f} | {moved / middle / 1e9:.2f} | | |"
        )


if __name__ == "__main__":
    main()
