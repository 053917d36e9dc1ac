"""What can be done around one training run: search settings, take techniques away,
compress.

Each study writes every finished part to a file at once, so that one that was stopped goes
on where it was. All choices are made on the validation rows; the test rows are only
reported.
"""

from __future__ import annotations

import copy
import csv
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.data_splitting import wilson_interval
from dlcourse.hyperparameter_tuning import bayesian_search, loguniform, uniform
from dlcourse.lab.datasets import ImageData
from dlcourse.lab.progress import bar
from dlcourse.lab.training import NonFiniteLossError, evaluate, fit
from dlcourse.lab.trials import interval, paired
from dlcourse.model_compression import (
    choose_qparams,
    dequantize,
    distillation_loss,
    gradual_sparsity,
    model_size,
    pruning_step,
    quantize,
)
from dlcourse.recipe import (
    Problem,
    Recipe,
    build_model,
    build_optimizer,
    build_schedule,
    build_transform,
    initialize,
    load_data,
    load_model,
    loss_function,
    open_folder,
    predict,
    save_model,
    train,
    updates,
)

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
WIDER = 2  # more factors, at most, where an arm is best at its lowest or highest one
COMPRESSIONS = ("prune", "quantize", "distil")
BYTES = """
Bytes are those of a file that leaves zeros out and stores 8-bit weights as such. The files here
hold every number as float32, so that `load_model` reads them like any other.
"""


def check(options) -> None:
    """Raise Problem for studies that cannot be; `options` are those of the command."""
    unknown = [how for how in options.compress or () if how not in COMPRESSIONS]
    if unknown:
        raise Problem(
            f"--compress {' '.join(unknown)}: choose from {', '.join(COMPRESSIONS)}"
        )
    if options.tune is not None and options.tune < 1:
        raise Problem(f"--tune {options.tune}: give at least 1 trial")
    if options.seeds < 2:
        raise Problem(f"--seeds {options.seeds}: an interval needs at least 2 runs")
    around = [
        f"--{name}" for name in ("tune", "compress", "log") if getattr(options, name)
    ]
    if options.ablate and around:
        raise Problem(f"--ablate goes alone: leave out {' and '.join(around)}")
    studies = [
        f"--{name}" for name in ("ablate", "tune", "compress") if getattr(options, name)
    ]
    if studies and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise Problem(
            f"{' and '.join(studies)}: not under a launcher, use --processes N in its place"
        )


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


# --------------------------------------------------------------------------- tuning


def tune(
    recipe: Recipe, folder: Path, trials: int, resume: bool, data: ImageData
) -> Recipe:
    """Return the recipe with the learning rate, weight decay and smoothing of the best of
    `trials`.

    Bayesian search after five random trials; the score is the loss on the validation
    rows, without smoothing; a trial that diverges scores infinity. The trials stand in
    tune.csv, and run one after another in this process.
    """
    open_folder(folder, recipe, resume, "untuned.toml")
    table = Table(
        folder / "tune.csv", ["lr", "weight_decay", "label_smoothing"], ["loss"]
    )
    space = {
        "lr": loguniform(recipe.lr / 10, recipe.lr * 10),
        "weight_decay": loguniform(1e-3, 1.0),
        "label_smoothing": uniform(0.0, 0.2),
    }

    def objective(config: dict) -> float:
        settings = {name: float(f"{config[name]:.4g}") for name in space}

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
    best = {name: float(f"{search.best_config[name]:.4g}") for name in space}
    print(
        f"best of {trials}: "
        + ", ".join(f"{name} {value:g}" for name, value in best.items())
    )
    return recipe.changed(**best)


# --------------------------------------------------------------------------- ablation


def arms(recipe: Recipe) -> dict[str, dict]:
    """Return what to change to take each technique away that the recipe uses; first:
    nothing.
    """
    used = {
        name: change
        for name, change in OFF.items()
        if recipe.model == "cnn" or "norm" not in change
    }
    return {"all techniques": {}} | {
        name: change
        for name, change in used.items()
        if any(getattr(recipe, key) != value for key, value in change.items())
    }


def ablate(recipe: Recipe, folder: Path, seeds: int, resume: bool) -> str:
    """Take each technique away in turn, and return a table of what that cost, with
    intervals.

    Each arm is trained on the same seeds (of split, weights and batches) at three
    learning rates, and at a rate three times further out, twice at most, while its lowest
    or highest is its best. It is judged on the test rows at the rate that is best on the
    validation rows, on average. A run that diverges counts as one that guesses. The runs,
    in this process, stand in ablation.csv, the table in ablation.md, the picture in
    ablation.png.
    """
    open_folder(folder, recipe, resume)
    changes = arms(recipe)
    values = ["validation_nll", "test_accuracy", "test_nll"]
    table = Table(folder / "ablation.csv", ["arm", "factor", "seed"], values)
    results: dict[str, dict[float, list[dict]]] = {arm: {} for arm in changes}

    @functools.lru_cache(maxsize=1)  # the runs of a seed come one after another
    def images(seed: int) -> ImageData:
        return load_data(recipe.changed(seed=recipe.seed + seed))

    def run(arm: str, factor: float, seed: int) -> None:
        one = recipe.changed(
            seed=recipe.seed + seed, lr=recipe.lr * factor, **changes[arm]
        )

        def compute() -> dict:
            data = images(seed)
            try:
                result = train(one, data=data, progress=False)
                nll = evaluate(result.model, data.validation, F.cross_entropy)["loss"]
                numbers = (nll, result.accuracy, result.nll)
            except NonFiniteLossError:
                guess = math.log(data.num_classes)
                numbers = (guess, 1 / data.num_classes, guess)
            return dict(zip(values, numbers, strict=True))

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
    return min(
        sorted(by_factor),
        key=lambda f: sum(row["validation_nll"] for row in by_factor[f]),
    )


def _edge(by_factor: Mapping[float, list[dict]]) -> str:
    """Return "lowest" or "highest" where the best factor is that of those tried, else
    nothing.
    """
    return {min(by_factor): "lowest", max(by_factor): "highest"}.get(_best(by_factor), "")


def _further(by_factor: Mapping[float, list[dict]]) -> list[float]:
    """Return the factor to try next: three times further out, or none."""
    edge, more = _edge(by_factor), len(by_factor) - len(FACTORS)
    if not edge or more == WIDER:
        return []
    return [min(by_factor) / 3 if edge == "lowest" else max(by_factor) * 3]


def _report(results: dict, recipe: Recipe, folder: Path) -> str:
    import matplotlib.pyplot as plt

    from dlcourse.lab.plotting import figure, intervals

    best = {arm: by_factor[_best(by_factor)] for arm, by_factor in results.items()}
    edges = {arm: _edge(by_factor) for arm, by_factor in results.items()}

    def column(arm: str, name: str) -> list[float]:
        return [row[name] for row in best[arm]]

    def rate(arm: str) -> str:
        edge = f", the {edges[arm]} tried" if edges[arm] else ""
        return f"{recipe.lr * _best(results[arm]):.3g}{edge}"

    full = "all techniques"
    n = len(best[full])
    some = f" ({recipe.train_limit} training images)" if recipe.train_limit else ""
    lines = [
        f"{recipe.data}{some}, {n} seeds, each arm at its best learning rate",
        "",
        "| without | rate | accuracy lost, points | likelihood lost, nats |",
        "| --- | --- | --- | --- |",
    ]
    points, nats = {}, {}
    for arm in results:
        if arm == full:
            continue
        lost = paired(column(full, "test_accuracy"), column(arm, "test_accuracy"))
        more = paired(column(arm, "test_nll"), column(full, "test_nll"))
        points[arm] = tuple(100 * v for v in (lost.mean, lost.low, lost.high))
        nats[arm] = (more.mean, more.low, more.high)
        cells = [_cell(points[arm], 2), _cell(nats[arm], 3)]
        lines.append(f"| {arm} | {rate(arm)} | {' | '.join(cells)} |")
    accuracy = interval(column(full, "test_accuracy"))
    nll = interval(column(full, "test_nll"))
    lines += ["", f"With all, at rate {rate(full)}: accuracy {accuracy}, {nll} nats."]
    if any(edges.values()):
        lines += [
            "",
            "Where the lowest or highest rate tried is the best, a better one may lie beyond.",
        ]
    text = "\n".join(lines) + "\n"
    (folder / "ablation.md").write_text(text, encoding="utf-8")
    fig, axes = figure(2, width=10, height=0.6 + 0.36 * len(points), sharey=True)
    title = f"without it: {recipe.data}{some}, {n} seeds"
    intervals(axes[0], points, title=title, xlabel="accuracy lost, points")
    intervals(axes[1], nats, title="", xlabel="likelihood lost, nats")
    fig.savefig(folder / "ablation.png", dpi=120)
    plt.close(fig)
    return text


def _cell(values: tuple[float, float, float], digits: int) -> str:
    mean, low, high = (f"{value:+.{digits}f}" for value in values)
    return f"{mean} [{low}, {high}]"


# --------------------------------------------------------------------------- compression


def compress(
    folder: Path, how: Sequence[str], data: ImageData, progress: bool | None = None
) -> str:
    """Make smaller models of the one in `folder`, and return a table of bytes and
    accuracy.

    prune: 80 % of the weights go while training continues for a third of the run, at a
    third of the peak rate. quantize: weights become 8-bit numbers, one scale an output
    channel. distil: a network of half the width learns from this one's outputs and the
    labels. Each acts on the original, and is stored at once in the folder `compressed`,
    where `load_model` reads it; what is there is not made again.
    """
    model, facts = load_model(folder)
    recipe = Recipe.from_values(facts["recipe"], str(folder))
    makers = {"prune": _prune, "quantize": _quantize, "distil": _distil}
    images, labels = data.test.tensors()
    models = {"as trained": model}
    for name in how:
        path = folder / "compressed" / name / "model.safetensors"
        if not path.exists():
            small, own = makers[name](model, recipe, data, progress)
            save_model(small, path, facts | {"recipe": vars(own)})
        models[name] = load_model(path.parent)[0]
    lines = [
        "| model | bytes | test accuracy | test images named otherwise |",
        "| --- | --- | --- | --- |",
    ]
    before = predict(model, images).argmax(1)
    for name, small in models.items():
        said = predict(small, images).argmax(1)
        right = int((said == labels).sum())
        low, high = wilson_interval(right, len(labels))
        score = f"{right / len(labels):.4f} [{low:.4f}, {high:.4f}]"
        size = model_size(small) if name != "quantize" else _quantized_size(small)
        lines.append(f"| {name} | {size:,} | {score} | {int((said != before).sum())} |")
    text = "\n".join(lines) + "\n"
    (folder / "compressed" / "README.md").write_text(text + BYTES, encoding="utf-8")
    return text


def _prune(
    model: nn.Module, recipe: Recipe, data: ImageData, progress
) -> tuple[nn.Module, Recipe]:
    model = copy.deepcopy(model)
    per_epoch, epochs = updates(recipe, len(data.train))
    steps = max(2, per_epoch * epochs // 3)
    step = pruning_step(
        gradual_sparsity(0.8, steps // 2), every=max(1, min(10, steps // 20))
    )
    optimizer = build_optimizer(recipe.changed(lr=recipe.lr / 3), model)
    generator = torch.Generator().manual_seed(recipe.seed + 2)
    fit(
        model, data, optimizer, steps=steps, batch_size=recipe.batch_size, step=step,
        loss_fn=loss_function(recipe), schedule=build_schedule(recipe, steps), seed=recipe.seed,
        transform=build_transform(recipe, data, generator), progress=progress,
    )  # fmt: skip
    return model, recipe


def _quantize(
    model: nn.Module, recipe: Recipe, data: ImageData, _
) -> tuple[nn.Module, Recipe]:
    """Return a copy whose linear and convolution weights lie on a grid of 8 bits."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            weight = module.weight.detach()
            scale, zero_point = choose_qparams(weight, 8, axis=0)
            q = quantize(weight, scale, zero_point, 8, axis=0)
            module.weight.data = dequantize(q, scale, zero_point, 0)
    return model, recipe


def _quantized_size(model: nn.Module) -> int:
    """Return the bytes of a model whose linear and convolution weights take one byte
    each.
    """
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return model_size(model) - sum(
        3 * m.weight.numel() - 4 * len(m.weight) for m in layers
    )


def _distil(teacher: nn.Module, recipe: Recipe, data: ImageData, progress):
    """Return a student of half the width, taught by soft outputs (three quarters) and
    labels.
    """
    own = recipe.changed(width=max(1, recipe.width // 2))
    teacher = copy.deepcopy(teacher)
    student = build_model(own, data.channels, data.size, data.num_classes)
    initialize(student, own, data.train.images[:256])
    steps = math.prod(updates(own, len(data.train)))
    generator = torch.Generator().manual_seed(recipe.seed + 3)

    def step(run, batch) -> Tensor:
        run.optimizer.zero_grad()
        with torch.no_grad():
            soft = teacher.to(batch.inputs.device)(batch.inputs)
        # mixup's are probabilities
        hard = batch.targets if batch.targets.ndim == 1 else None
        loss = distillation_loss(
            run.model(batch.inputs), soft, hard, temperature=4.0, alpha=0.75
        )
        run.backward(loss)
        run.optimizer.step()
        return loss.detach()

    torch.manual_seed(recipe.seed)
    fit(
        student, data, build_optimizer(own, student), steps=steps, batch_size=own.batch_size,
        schedule=build_schedule(own, steps), seed=own.seed, step=step,
        transform=build_transform(own, data, generator), progress=progress,
    )  # fmt: skip
    return student, own
