"""Chapter 7's network for longer and on other batches: with batch norm, and without.

    python benchmarks/batch_norm.py [--seeds 5] [--first 100] [--epochs 5]

The chapter compares rates after 150 updates. Here the same eight convolutions train on for
several epochs, and then, with batch norm and with group norm, for 150 updates of 2 to 32
images.
Every arm is shown at the rate that is best for it on half of the validation images; a
star marks a best rate at an edge of the grid.
"""

from __future__ import annotations

import argparse
import functools

import torch
from many_seeds import machine
from torch import nn

from dlcourse.lab.datasets import load
from dlcourse.lab.training import use_one_thread
from dlcourse.lab.trials import interval, paired, run_trials

WIDTH = 8
PER_ROW = [0.0002, 0.0006, 0.002, 0.006]  # rates, times the rows of a batch


def new_model(norm, seed: int) -> nn.Sequential:
    """Return the chapter's network, with its first weights."""
    layers: list[nn.Module] = []
    channels = 1
    for number in range(8):
        stride = 2 if number < 2 else 1
        layers.append(nn.Conv2d(channels, WIDTH, 3, stride, 1, bias=norm is None))
        layers += [nn.ReLU()] if norm is None else [norm(WIDTH), nn.ReLU()]
        channels = WIDTH
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTH * 16, 10))
    torch.manual_seed(seed)
    for layer in model:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def group_norm(channels: int) -> nn.GroupNorm:
    """Return group norm with two groups."""
    return nn.GroupNorm(2, channels)


def best(run):
    """Return (best rate as text, test accuracy of each seed there)."""
    chosen = run.best_rate()
    edge = "*" if chosen.at_edge else ""
    return f"{chosen.lr:.4g}{edge}", run.test["accuracy"][chosen.index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    use_one_thread()
    data = load("mnist_5k", size=14)
    half = [part[:375] for part in data.validation.tensors()]
    seeds = range(options.first, options.first + options.seeds)
    settings = {"seeds": seeds, "momentum": 0.9, "validation": half, "test": data.test}
    print(f"# Batch norm, {options.seeds} seeds\n\n{machine()}\n")

    epoch = len(data.train.images) // 16
    steps = options.epochs * epoch
    runs = {}
    for name, norm in {"no norm": None, "batch norm": nn.BatchNorm2d}.items():
        runs[name] = run_trials(
            functools.partial(new_model, norm),
            data,
            lr=[0.002, 0.008, 0.03, 0.1],
            steps=steps,
            batch_size=16,
            validate_every=(150, epoch, 2 * epoch),
            **settings,
        )
    print("| updates | no norm | rate | batch norm | rate | difference |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for updates in (150, epoch, 2 * epoch, steps):
        rate, plain = best(runs["no norm"].after(updates))
        its_rate, normed = best(runs["batch norm"].after(updates))
        row = [updates, interval(plain), rate, interval(normed), its_rate]
        print("|", " | ".join(map(str, [*row, paired(normed, plain)])), "|", flush=True)

    print("\n| images a batch | batch norm | rate | group norm | rate | difference |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for size in (2, 4, 8, 16, 32):
        row = [size]
        found = []
        for norm in (nn.BatchNorm2d, group_norm):
            rate, accuracies = best(
                run_trials(
                    functools.partial(new_model, norm),
                    data,
                    lr=[size * rate for rate in PER_ROW],
                    steps=150,
                    batch_size=size,
                    **settings,
                )
            )
            found.append(accuracies)
            row += [interval(accuracies), rate]
        print("|", " | ".join(map(str, [*row, paired(*found)])), "|", flush=True)


if __name__ == "__main__":
    main()
