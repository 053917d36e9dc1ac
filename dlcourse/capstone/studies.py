"""What can be done around one training run; here, to search settings for it.

Each study writes every finished part to a table at once, so that one that was stopped
goes on where it was. All choices are made on the validation rows; the test rows are only
reported.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from dlcourse.capstone.folder import open_folder
from dlcourse.capstone.running import train
from dlcourse.capstone.settings import Problem, Recipe
from dlcourse.hyperparameter_tuning import bayesian_search, loguniform, uniform
from dlcourse.lab.datasets import ImageData
from dlcourse.lab.evaluation import evaluate
from dlcourse.lab.parts import NonFiniteLossError
from dlcourse.lab.progress import bar

COMPRESSIONS = ("prune", "quantize", "distil")
STUDIES = ("ablate", "tune", "compress")  # options of the command


def check(options) -> None:
    """Raise Problem for studies that cannot be; `options` are those of the command."""
    unknown = [how for how in options.compress or () if how not in COMPRESSIONS]
    if unknown:
        known = ", ".join(COMPRESSIONS)
        raise Problem(f"--compress {' '.join(unknown)}: choose from {known}")
    if options.tune is not None and options.tune < 1:
        raise Problem(f"--tune {options.tune}: give at least 1 trial")
    if options.seeds < 2:
        raise Problem(f"--seeds {options.seeds}: an interval needs at least 2 runs")
    asked = [f"--{name}" for name in STUDIES if getattr(options, name)]
    logged = ["--log"] if options.log else []
    if options.ablate and len(asked + logged) > 1:
        others = " and ".join(asked[1:] + logged)
        raise Problem(f"--ablate goes alone: leave out {others}")
    if asked and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        advice = "not under a launcher, use --processes N in its place"
        raise Problem(f"{' and '.join(asked)}: {advice}")


class Table:
    """Rows of a CSV file by their key columns: what is there is not computed again."""

    def __init__(self, path: Path, keys: Sequence[str], values: Sequence[str]) -> None:
        self.path, self.keys, self.values = path, list(keys), list(values)
        self.rows: dict[tuple, dict[str, float]] = {}
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]  # a line without end was cut short
        if whole != content:
            os.truncate(path, len(whole))
        for row in csv.DictReader(whole.decode().splitlines()):
            key = tuple(row[name] for name in self.keys)
            self.rows[key] = {name: float(row[name]) for name in self.values}
        if not whole:
            self._append(self.keys + self.values)

    def get(
        self, key: tuple, compute: Callable[[], dict[str, float]]
    ) -> dict[str, float]:
        """Return the values of a key, computed and stored where they are not there yet."""
        key = tuple(map(str, key))
        if key not in self.rows:
            values = compute()
            self._append([*key, *(repr(float(values[name])) for name in self.values)])
            self.rows[key] = values
        return self.rows[key]

    def _append(self, cells: list[str]) -> None:
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(cells)


def tune(
    recipe: Recipe, folder: Path, trials: int, resume: bool, data: ImageData
) -> Recipe:
    """Return the recipe with the rate, decay and smoothing of the best of `trials`.

    Bayesian search after five random trials; the score is the loss on the validation
    rows, without smoothing; a trial that diverges scores infinity. The trials stand in
    tune.csv, and run one after another in this process.
    """
    open_folder(folder, recipe, resume, "untuned.toml")
    space = {
        "lr": loguniform(recipe.lr / 10, recipe.lr * 10),
        "weight_decay": loguniform(1e-3, 1.0),
        "label_smoothing": uniform(0.0, 0.2),
    }
    table = Table(folder / "tune.csv", list(space), ["loss"])

    def rounded(config: dict) -> dict[str, float]:
        return {name: float(f"{config[name]:.4g}") for name in space}

    def objective(config: dict) -> float:
        settings = rounded(config)

        def compute() -> dict:
            try:
                result = train(recipe.changed(**settings), data=data, progress=False)
            except NonFiniteLossError:
                return {"loss": math.inf}
            return {"loss": evaluate(result.model, data.validation)["loss"]}

        loss = table.get(tuple(settings.values()), compute)["loss"]
        progress.update()
        return loss

    with bar(total=trials, unit="trial") as progress:
        search = bayesian_search(objective, space, trials, seed=recipe.seed)
    best = rounded(search.best_config)
    said = ", ".join(f"{name} {value:g}" for name, value in best.items())
    print(f"best of {trials}: {said}")
    return recipe.changed(**best)
