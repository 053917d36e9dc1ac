"""The run that `dlcourse-train` makes by default, against a tuned support vector machine.

    python benchmarks/digits_svc.py [--seeds 10] [--first 100]

Both get the same rows of scikit-learn's digits. The machine's C and gamma are chosen by
five-fold cross-validation on all rows that are not test rows, from 42 pairs. The
network's settings are the defaults, which were chosen by validation rows of the splits 0
to 3; so begin later than that.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from many_seeds import machine
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from dlcourse.capstone.data import load_data
from dlcourse.capstone.running import train
from dlcourse.capstone.settings import Recipe
from dlcourse.lab.trials import interval, paired

GRID = {"C": [0.3, 1, 3, 10, 30, 100], "gamma": np.geomspace(1e-3, 1e-1, 7).tolist()}


def svc(data) -> tuple[float, float]:
    """Return (test accuracy, seconds) of the tuned machine."""
    start = time.perf_counter()
    kept = (data.train, data.validation)
    images = torch.cat([part.images for part in kept]).flatten(1).numpy()
    labels = torch.cat([part.labels for part in kept]).numpy()
    search = GridSearchCV(SVC(), GRID, cv=5).fit(images, labels)
    score = search.score(data.test.images.flatten(1).numpy(), data.test.labels.numpy())
    return score, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=100)
    options = parser.parse_args()
    rows = []
    for seed in range(options.first, options.first + options.seeds):
        recipe = Recipe(seed=seed)
        data = load_data(recipe)
        start = time.perf_counter()
        ours = train(recipe, data=data).accuracy
        took = time.perf_counter() - start
        rows.append((ours, took, *svc(data)))
    ours, took, theirs, theirs_took = np.array(rows).T
    print(
        f"# The default run and a support vector machine, {options.seeds} splits\n\n{machine()}\n"
    )
    print("| | test accuracy | seconds |\n| --- | --- | --- |")
    print(f"| network | {interval(ours)} | {np.median(took):.1f} |")
    print(
        f"| support vector machine | {interval(theirs)} | {np.median(theirs_took):.1f} |"
    )
    gap = paired(ours, theirs)
    print(f"\nNetwork minus machine: {gap}; better on {gap.wins} of {gap.n} splits.")


if __name__ == "__main__":
    main()
