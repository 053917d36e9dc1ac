"""Take one technique away at a time, and see what that costs."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F

from dlcourse.capstone.data import load_data
from dlcourse.capstone.folder import open_folder
from dlcourse.capstone.running import train
from dlcourse.capstone.settings import Recipe
from dlcourse.capstone.studies import Table
from dlcourse.lab.datasets import ImageData
from dlcourse.lab.evaluation import evaluate
from dlcourse.lab.parts import NonFiniteLossError
from dlcourse.lab.progress import bar
from dlcourse.lab.trials import interval, paired

OFF = {  # technique: the settings that take it away
    "augmentation": {"augment": "none"},
    "batch normalization": {"norm": "none"},
    "activation (none at all)": {"activation": "none"},
    "initialization (torch's default)": {"init": "default"},
    "weight decay": {"weight_decay": 0.0},
    "label smoothing": {"label_smoothing": 0.0},
    "gradient clipping": {"max_norm": float("inf")},
    "warm-up": {"warmup": 0.0},
    "schedule (constant rate)": {"schedule": "constant"},
    "dropout": {"dropout": 0.0},
    "early stopping": {"patience": 0},
    "accumulation": {"accumulation_steps": 1},
    "mixed precision": {"precision": "no"},
}
FACTORS = (1 / 3, 1.0, 3.0)  # of the learning rate, tried in each arm
FULL = "all techniques"  # the arm to which the others are compared
VALUES = ("validation_nll", "test_accuracy", "test_nll")
STORED = Path(__file__).with_name("ablation_mnist_5k.csv")  # by benchmarks/ablation.py
WIDER = 2  # more factors, at most, where an arm is best at its lowest or highest one


Results = dict[str, dict[float, list[dict]]]  # by arm and factor, one row a seed
Estimate = tuple[float, float, float]  # mean, and the ends of its interval


def arms(recipe: Recipe) -> dict[str, dict]:
    """Return the change that takes each technique of a recipe away; first: nothing."""
    found: dict[str, dict] = {FULL: {}}
    for name, change in OFF.items():
        there = recipe.model == "cnn" or "norm" not in change  # an MLP has no norm
        used = any(getattr(recipe, key) != value for key, value in change.items())
        if there and used:
            found[name] = change
    return found


def ablate(recipe: Recipe, folder: Path, seeds: int, resume: bool) -> str:
    """Take each technique away in turn, and return a table of what that cost.

    Each arm is trained on the same seeds (of split, weights and batches) at three
    learning rates, and at a rate three times further out, twice at most, while its lowest
    or highest is its best. It is judged on the test rows at the rate that is best on the
    validation rows, on average. A run that diverges counts as one that guesses. The runs,
    in this process, stand in ablation.csv, the table in ablation.md, the picture in
    ablation.png.
    """
    open_folder(folder, recipe, resume)
    changes = arms(recipe)
    table = Table(folder / "ablation.csv", ["arm", "factor", "seed"], VALUES)
    results: Results = {arm: {} for arm in changes}

    @functools.lru_cache(maxsize=1)  # the runs of a seed come one after another
    def images(seed: int) -> ImageData:
        return load_data(recipe.changed(seed=recipe.seed + seed))

    def run(arm: str, factor: float, seed: int) -> None:
        def compute() -> dict:
            data = images(seed)
            one = recipe.changed(lr=recipe.lr * factor, **changes[arm])
            one = one.changed(seed=recipe.seed + seed)
            try:
                result = train(one, data=data, progress=False)
                nll = evaluate(result.model, data.validation, F.cross_entropy)["loss"]
                numbers = (nll, result.accuracy, result.nll)
            except NonFiniteLossError:
                guess = math.log(data.num_classes)
                numbers = (guess, 1 / data.num_classes, guess)
            return dict(zip(VALUES, numbers, strict=True))

        row = table.get((arm, f"{factor:.4g}", seed), compute)
        results[arm].setdefault(factor, []).append(row)

    wanted = [(arm, factor) for arm in changes for factor in FACTORS]
    while wanted:
        jobs = [(arm, factor, seed) for seed in range(seeds) for arm, factor in wanted]
        for job in bar(jobs, unit="run"):
            run(*job)
        wanted = [(arm, f) for arm in changes for f in _further(results[arm])]
    return _report(results, recipe, folder)


def _best(by_factor: Mapping[float, list[dict]]) -> float:
    """Return the factor with the lowest validation loss, on average over the seeds."""

    def loss(factor: float) -> float:
        return sum(row["validation_nll"] for row in by_factor[factor])

    return min(sorted(by_factor), key=loss)


def _edge(by_factor: Mapping[float, list[dict]]) -> str:
    """Return "lowest" or "highest" where the best factor is that one, else nothing."""
    return {min(by_factor): "lowest", max(by_factor): "highest"}.get(_best(by_factor), "")


def _further(by_factor: Mapping[float, list[dict]]) -> list[float]:
    """Return the factor to try next: three times further out, or none."""
    edge, more = _edge(by_factor), len(by_factor) - len(FACTORS)
    if not edge or more == WIDER:
        return []
    return [min(by_factor) / 3 if edge == "lowest" else max(by_factor) * 3]


def read(path: Path) -> Results:
    """Return what an ablation.csv holds: rows by arm and by factor of the rate."""
    results: Results = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            by_factor = results.setdefault(row["arm"], {})
            numbers = {name: float(row[name]) for name in VALUES}
            by_factor.setdefault(float(row["factor"]), []).append(numbers)
    return results


def column(results: Results, arm: str, name: str) -> list[float]:
    """Return a value of each seed, at the arm's best rate."""
    by_factor = results[arm]
    return [row[name] for row in by_factor[_best(by_factor)]]


def losses(results: Results) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Return by arm what leaving the technique out costs: accuracy lost in points, and
    likelihood lost in nats, with 95 % intervals over the seeds.
    """
    points, nats = {}, {}
    for arm in results:
        if arm == FULL:
            continue
        lost, more = (
            paired(column(results, FULL, name), column(results, arm, name))
            for name in ("test_accuracy", "test_nll")
        )
        points[arm] = (100 * lost.mean, 100 * lost.low, 100 * lost.high)
        nats[arm] = (-more.mean, -more.high, -more.low)
    return points, nats


def _report(results: Results, recipe: Recipe, folder: Path) -> str:
    import matplotlib.pyplot as plt

    from dlcourse.lab.plotting import figure, intervals

    edges = {arm: _edge(by_factor) for arm, by_factor in results.items()}

    def rate(arm: str) -> str:
        edge = f", the {edges[arm]} tried" if edges[arm] else ""
        return f"{recipe.lr * _best(results[arm]):.3g}{edge}"

    n = len(column(results, FULL, "test_nll"))
    some = f" ({recipe.train_limit} training images)" if recipe.train_limit else ""
    lines = [
        f"{recipe.data}{some}, {n} seeds, each arm at its best learning rate",
        "",
        "| without | rate | accuracy lost, points | likelihood lost, nats |",
        "| --- | --- | --- | --- |",
    ]
    points, nats = losses(results)
    for arm in points:
        cells = [_cell(points[arm], 2), _cell(nats[arm], 3)]
        lines.append(f"| {arm} | {rate(arm)} | {' | '.join(cells)} |")
    accuracy = interval(column(results, FULL, "test_accuracy"))
    nll = interval(column(results, FULL, "test_nll"))
    lines += ["", f"With all, at rate {rate(FULL)}: accuracy {accuracy}, {nll} nats."]
    if any(edges.values()):
        beyond = "a better one may lie beyond"
        lines += ["", f"Where the lowest or highest rate tried is the best, {beyond}."]
    text = "\n".join(lines) + "\n"
    (folder / "ablation.md").write_text(text, encoding="utf-8")
    fig, axes = figure(2, width=10, height=0.6 + 0.36 * len(points), sharey=True)
    title = f"without it: {recipe.data}{some}, {n} seeds"
    intervals(axes[0], points, title=title, xlabel="accuracy lost, points")
    intervals(axes[1], nats, title="", xlabel="likelihood lost, nats")
    fig.savefig(folder / "ablation.png", dpi=120)
    plt.close(fig)
    return text


def _cell(values: Estimate, digits: int) -> str:
    mean, low, high = (f"{value:+.{digits}f}" for value in values)
    return f"{mean} [{low}, {high}]"
