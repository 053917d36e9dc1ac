"""How much faster `run_trials` trains 16 seeds at once than a loop of single runs.

    python benchmarks/many_seeds.py [--rounds 21] [--steps 200]

Both arms are the same call, the second with `stack=False`, so both count building the
models. They run in turn, and each ratio is of two runs that stand side by side.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dlcourse.lab.datasets import load
from dlcourse.lab.models import MLP, RowRNN, SmallCNN
from dlcourse.lab.training import use_one_thread
from dlcourse.lab.trials import run_trials

SEEDS = range(16)
# the largest difference of two training losses that still counts as the same run
AGREE = 1e-3


def mlp(width: int, depth: int):
    """Return a function that builds the MLP of a seed, for digits."""
    return lambda seed: MLP(64, 10, width=width, depth=depth, seed=seed)


def dropout_network(seed: int) -> nn.Module:
    """Return a hidden layer of 64 units with dropout, for digits."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10)
    )


# name, model, batch size, share of --steps, further settings
SETTINGS = [
    ("MLP 32 x 1, batch 32", mlp(32, 1), 32, 1.0, {}),
    ("MLP 32 x 2, batch 32", mlp(32, 2), 32, 1.0, {}),
    (
        "MLP 32 x 1, batch 32, Adam",
        mlp(32, 1),
        32,
        1.0,
        {"optimizer": "adam", "lr": 0.001},
    ),
    ("MLP 64 x 2, batch 32", mlp(64, 2), 32, 1.0, {}),
    ("MLP 64 x 2, batch 128", mlp(64, 2), 128, 1.0, {}),
    ("MLP 32 x 10, batch 32", mlp(32, 10), 32, 0.5, {}),
    ("MLP 512 x 3, batch 128", mlp(512, 3), 128, 0.1, {}),
    ("RowRNN 32, batch 32", lambda seed: RowRNN(8, 10, width=32, seed=seed), 32, 0.5, {}),
    (
        "SmallCNN 8, batch 32",
        lambda seed: SmallCNN(1, 10, width=8, seed=seed),
        32,
        0.1,
        {},
    ),
    (
        "MLP 256 x 3, batch 32, 32 seeds",
        mlp(256, 3),
        32,
        0.5,
        {"seeds": range(32)},
    ),
    (
        "SmallCNN 32, batch 128",
        lambda seed: SmallCNN(1, 10, width=32, seed=seed),
        128,
        0.1,
        {},
    ),
    ("dropout 0.5 in 64, batch 50", dropout_network, 50, 1.0, {"dropout": 0.5}),
    ("L1 and L2 on 64 x 2, batch 50", mlp(64, 2), 50, 1.0, {"l1": 0.003, "l2": 0.03}),
    ("SAM on 64 x 2, batch 50", mlp(64, 2), 50, 1.0, {"sam": 0.1}),
]


def machine() -> str:
    """Return the processor, its cores, and the versions, in one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [
        line.split(":")[1].strip() for line in lines if line.startswith("model name")
    ]
    cpu = names[0] if names else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{datetime.date.today()}, {cpu}, {os.cpu_count()} cores, {gpu}, one thread, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def spread(ratios) -> str:
    """Return the median of ratios, their quartiles, and a 95 % interval of the median."""
    values = np.sort(np.asarray(ratios))
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    n = len(values)  # the interval: order statistics of the binomial, by its normal form
    reach = 0.98 * math.sqrt(n)
    first, last = math.floor(n / 2 - reach), math.ceil(n / 2 + reach) - 1
    first, last = max(first, 0), min(last, n - 1)
    return f"{middle:.3f} | {low:.3f} to {high:.3f} | {values[first]:.3f} to {values[last]:.3f}"


def seconds(build, data, stack: bool, **settings):
    """Train all seeds, and return the seconds it took and the training losses."""
    start = time.perf_counter()
    trials = run_trials(build, data, stack=stack, **{"seeds": SEEDS, **settings})
    took = time.perf_counter() - start
    assert trials.stacked == stack
    return took, trials.train_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    use_one_thread()
    data = load()
    print(machine())
    print(
        f"{len(SEEDS)} seeds, {arguments.rounds} rounds; ratio: loop / stack, above 1 is faster"
    )
    print()
    print(
        "| Setting | steps | loop, s | stack, s | ratio | quartiles | 95 % of the median |",
        end="",
    )
    print(" largest difference of losses |")
    print("|---|---|---|---|---|---|---|---|")
    for name, build, batch_size, share, more in SETTINGS:
        settings = {"lr": 0.02, "steps": max(2, round(arguments.steps * share))}
        settings |= {"batch_size": batch_size} | more
        difference, loops, stacks = 0.0, [], []
        for number in range(arguments.rounds + 1):
            order = (True, False) if number % 2 else (False, True)
            runs = {stack: seconds(build, data, stack, **settings) for stack in order}
            difference = max(
                difference, float(np.abs(runs[True][1] - runs[False][1]).max())
            )
            if number:  # the first round warms up
                loops.append(runs[False][0])
                stacks.append(runs[True][0])
        if not difference < AGREE:
            raise SystemExit(f"{name}: the losses differ by {difference:.2g}")
        ratio = spread(np.array(loops) / stacks)
        medians = f"{np.median(loops):.3f} | {np.median(stacks):.3f}"
        steps = settings["steps"]
        print(
            f"| {name} | {steps} | {medians} | {ratio} | {difference:.0e} |", flush=True
        )


if __name__ == "__main__":
    main()
