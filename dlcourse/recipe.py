"""One training run, described by one readable setting for each technique, and carried
out.

A `Recipe` is a flat list of settings, written to and read from a TOML file. `train` turns
it into data, model, optimizer and schedule, hands them to `lab.training.fit`, and leaves
a folder from which the run can be understood, repeated and loaded without running code.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import os
import platform
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers, on_main_process
from torch import Tensor, nn

from dlcourse import __version__, initialization, learning_rate_decay, lr_schedulers
from dlcourse import data_augmentation as da
from dlcourse.data_loading import seed_worker
from dlcourse.data_splitting import train_val_test_split, wilson_interval
from dlcourse.gradient_clipping import clipping_step
from dlcourse.lab.datasets import NAMES, PUBLISHED, ImageData, load
from dlcourse.lab.training import History, fit, replacing
from dlcourse.regularization import (
    Dropout,
    EarlyStopping,
    expected_calibration_error,
    param_groups,
)
from dlcourse.report import (
    SHOWN_CLASSES,
    by_class,
    confusion_matrix,
    draw_confusion,
    draw_hardest,
    most_confused,
    write_confusion,
    write_predictions,
)
from dlcourse.warmup import WarmupWrapper

FORMAT = 1  # of the folder that a run leaves
CHECKPOINT = "resume.pt"
SEARCH = r"untuned\.toml|tune\.csv"  # what --tune leaves before the run
PART = r"\.probe\d+|.*\.part\d+"  # files that a killed process leaves half written
ACTIVATIONS = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "gelu": nn.GELU, "silu": nn.SiLU,
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "none": nn.Identity,
}  # fmt: skip
SCHEDULES = ("constant", "cosine", "linear", "step", "exponential", "wsd")
AUGMENTATIONS = ("none", "shift", "flip", "affine", "colour", "trivial", "mixup")
INITS = ("kaiming", "xavier", "orthogonal", "lsuv", "default")
RULES = {
    "kaiming": initialization.kaiming_normal_,
    "xavier": initialization.xavier_normal_,
    "orthogonal": initialization.orthogonal_,
}
LARGEST = 1e38  # of a setting in float32
AS_OPTIONS = {  # what the loader advises, and the same as options of the command
    "pass skip_corrupt=True.": "leave them out with --skip-corrupt.",
    "lay the images out as root/<class>/<image> and pass root=..., or set DLCOURSE_ROOT": (
        "put the images of each class into a folder of its own, PATH/<class>/<image>, and give "
        "--data folder PATH"
    ),
}
PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "safetensors")


class Problem(Exception):
    """What keeps a run from starting or going on, in one line that says what to do."""


# --------------------------------------------------------------------------- the settings


def _option(default, group: str, text: str, choices=None, low=None, high=None):
    about = {"group": group, "help": text, "choices": choices, "low": low, "high": high}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Recipe:
    """The settings of one run; the defaults are good ones for small images.

    Raises Problem for a setting out of range. Invariant: `from_toml(to_toml())` is the
    same recipe.
    """

    data: str = _option("digits", "data", "images; folder takes a path", NAMES)
    root: str | None = _option(None, "data", "folder that holds the published sets")
    size: int | None = _option(
        None, "data", "pixels a side to resize to; a folder gets 32 without", low=4
    )
    train_limit: int | None = _option(
        None, "data", "use only so many training images", low=1
    )
    skip_corrupt: bool = _option(False, "data", "leave unreadable images out")
    split: str = _option(
        "stratified", "data", "how rows are held out", ("stratified", "random", "group")
    )
    validation: float = _option(
        0.15, "data", "share held out to choose by", low=0.01, high=0.5
    )
    test: float = _option(0.15, "data", "share held out to report", low=0.01, high=0.5)
    workers: int = _option(0, "data", "loader processes; 0 keeps images in memory", low=0)
    augment: str = _option("shift", "data", "variants", AUGMENTATIONS)

    model: str = _option("cnn", "model", "residual CNN or MLP", ("cnn", "mlp"))
    width: int = _option(24, "model", "channels (CNN), or units / 8 (MLP)", low=1)
    blocks: int = _option(1, "model", "residual blocks a stage, or MLP layers", low=1)
    activation: str = _option("relu", "model", "between layers", tuple(ACTIVATIONS))
    norm: str = _option(
        "batch", "model", "after each convolution", ("batch", "group", "none")
    )
    init: str = _option("kaiming", "model", "weights", INITS)

    weight_decay: float = _option(
        0.05, "regularization", "decoupled, not on biases", low=0, high=LARGEST
    )
    label_smoothing: float = _option(
        0.0, "regularization", "share of a label given to all classes", low=0.0, high=0.9
    )
    dropout: float = _option(
        0.0, "regularization", "before the last layer", low=0.0, high=0.95
    )
    patience: int = _option(
        0, "regularization", "stop after so many epochs without gain; 0: never", low=0
    )

    optimizer: str = _option("adamw", "optimization", "which", ("adamw", "sgd"))
    lr: float = _option(
        0.01, "optimization", "peak learning rate", low=1e-12, high=LARGEST
    )
    schedule: str = _option("cosine", "optimization", "of the rate", SCHEDULES)
    warmup: float = _option(0.05, "optimization", "share of the run", low=0.0, high=0.9)
    max_norm: float = _option(
        1.0, "optimization", "clip gradients to; inf never", low=1e-12
    )
    batch_size: int = _option(
        64, "optimization", "images an update, of all processes together", low=1
    )
    epochs: int | None = _option(
        None, "optimization", "passes (enough for 40,000 images, at least 3)", low=1
    )
    seed: int = _option(
        0, "optimization", "of split, weights, batches and noise", low=0, high=2**31 - 1
    )

    precision: str = _option("no", "machine", "no is float32", ("no", "bf16", "fp16"))
    accumulation_steps: int = _option(1, "machine", "micro-batches an update", low=1)
    processes: int = _option(1, "machine", "data-parallel processes", low=1)
    threads: int = _option(1, "machine", "CPU threads a process", low=1)

    def __post_init__(self) -> None:
        for name, spec in FIELDS().items():
            _check(name, getattr(self, name), spec)
        if self.data == "folder" and not self.root:
            raise Problem(
                "data folder needs a path: --data folder PATH, with one folder a class"
            )
        if self.split == "group" and self.data != "digits":
            raise Problem(
                "split group needs known groups, which only digits has: use stratified"
            )
        if self.data in PUBLISHED and self.split != "stratified":
            raise Problem(f"{self.data} has its own test images: use --split stratified")
        if self.accumulation_steps > self.batch_size:
            raise Problem(
                f"accumulation_steps={self.accumulation_steps} is more than the "
                f"{self.batch_size} images of an update: lower it"
            )

    def changed(self, **settings) -> Recipe:
        """Return this recipe with other values for some settings."""
        return dataclasses.replace(self, **settings)

    def to_toml(self) -> str:
        """Return the recipe as TOML, one setting a line under a comment for each group."""
        lines, group = [f"# dlcourse {__version__}, recipe of a training run"], None
        for name, spec in FIELDS().items():
            if spec.metadata["group"] != group:
                group = spec.metadata["group"]
                lines += ["", f"# {group}"]
            value = getattr(self, name)
            lines.append(
                f"# {name} is not set" if value is None else f"{name} = {_toml(value)}"
            )
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str, where: str = "the file") -> Recipe:
        """Read what `to_toml` wrote; settings left out keep their defaults."""
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise Problem(
                f"{where} is not TOML ({error}): write lines such as lr = 0.01"
            ) from None
        return cls.from_values(values, where)

    @classmethod
    def from_values(cls, values: Mapping, where: str) -> Recipe:
        """Build a recipe from names and values; Problem names what it does not know."""
        unknown = sorted(set(values) - set(FIELDS()))
        if unknown:
            raise Problem(
                f"{where} sets {', '.join(unknown)}, which is no setting: see --help"
            )
        return cls(**values)


def FIELDS() -> dict[str, dataclasses.Field]:  # noqa: N802  reads as the constant that it is
    """Return the fields of a recipe by name, in order."""
    return {spec.name: spec for spec in dataclasses.fields(Recipe)}


def kind(spec: dataclasses.Field) -> type:
    """Return the type of a setting: str, bool, int or float."""
    word = str(spec.type).split(" |")[0]
    return {"str": str, "bool": bool, "int": int, "float": float}[word]


def _check(name: str, value, spec: dataclasses.Field) -> None:
    """Raise Problem where a value has the wrong type, is none of the choices, or out of
    range.
    """
    wanted, about = kind(spec), spec.metadata
    if value is None and "None" in str(spec.type):
        return
    allowed = (int, float) if wanted is float else (wanted,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and wanted is not bool):
        raise Problem(f"{name}={value!r} is no {wanted.__name__}: {about['help']}")
    if about["choices"] and value not in about["choices"]:
        raise Problem(f"{name}={value!r}: choose one of {', '.join(about['choices'])}")
    low, high = about["low"], about["high"]
    if low is not None and not value >= low:
        raise Problem(f"{name}={value}: give at least {low}")
    if high is not None and not value <= high:
        raise Problem(f"{name}={value}: give at most {high}")


def _toml(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


# --------------------------------------------------------------------------- the parts of a run


def load_data(recipe: Recipe) -> ImageData:
    """Return the images of a recipe, split and normalised; Problem where they cannot
    serve.
    """
    elsewhere = recipe.split != "stratified"
    try:
        data = load(
            recipe.data, recipe.root, size=recipe.size, validation=recipe.validation,
            test=recipe.test, seed=recipe.seed, skip_corrupt=recipe.skip_corrupt,
            train_limit=None if elsewhere else recipe.train_limit, normalize=not elsewhere,
        )  # fmt: skip
        if elsewhere:
            data = _cut_elsewhere(data, recipe)
    except (ValueError, OSError) as error:
        said = " ".join(str(error).split())
        for there, here in AS_OPTIONS.items():
            said = said.replace(there, here)
        raise Problem(said) from error
    check_data(data, recipe)
    return data


def _cut_elsewhere(data: ImageData, recipe: Recipe) -> ImageData:
    parts = (data.train, data.validation, data.test)
    groups = (
        torch.cat([part.groups for part in parts]) if recipe.split == "group" else None
    )
    train, *held = train_val_test_split(
        sum(map(len, parts)),
        recipe.validation,
        recipe.test,
        groups=groups,
        seed=recipe.seed,
    )
    limit = recipe.train_limit or len(train)
    if limit > len(train):
        raise Problem(
            f"train_limit={limit}: give at most {len(train)}, the training images"
        )
    return data.with_split(train[:limit], *held)


def check_data(data: ImageData, recipe: Recipe) -> None:
    """Raise Problem for images that would waste a run: NaN, labels out of range, too few
    rows.
    """
    for name in ("train", "validation", "test"):
        part = getattr(data, name)
        if len(part) == 0:
            raise Problem(
                f"there are no {name} images: hold out another share, or add images"
            )
        if not part.images.isfinite().all():
            bad = int((~part.images.flatten(1).isfinite().all(1)).sum())
            raise Problem(
                f"{bad} {name} images hold NaN or infinity: mend or remove them"
            )
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= data.num_classes:
            raise Problem(
                f"{name} labels run from {low} to {high}, but {data.num_classes} classes are "
                f"numbered 0 to {data.num_classes - 1}: renumber them"
            )
    if data.num_classes < 2 or len(data.train.labels.unique()) < 2:
        raise Problem("the training images show one class only: add images of another")
    missing = set(range(data.num_classes)) - set(data.train.labels.tolist())
    if missing:
        names = ", ".join(data.classes[number] for number in sorted(missing))
        raise Problem(
            f"no training image of class {names}: add some, or remove the class"
        )
    if len(data.train) < recipe.batch_size:
        raise Problem(
            f"{len(data.train)} training images are fewer than batch_size={recipe.batch_size}: "
            f"use --batch-size {max(1, len(data.train) // 4)}"
        )


class Block(nn.Module):
    """x plus twice (norm, activation, 3x3 convolution) of x."""

    def __init__(self, width: int, norm: str, activation: type[nn.Module]) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _norm(norm, width), activation(), nn.Conv2d(width, width, 3, padding=1),
            _norm(norm, width), activation(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def _norm(name: str, width: int) -> nn.Module:
    if name == "group":
        return nn.GroupNorm(math.gcd(width, 4), width)
    return nn.BatchNorm2d(width) if name == "batch" else nn.Identity()


def build_model(recipe: Recipe, channels: int, size: int, classes: int) -> nn.Module:
    """Return the network of a recipe, for square images, with the weights that torch
    gives it.

    The CNN has a stem, which halves the grid of images of 24 pixels or more, `blocks`
    residual blocks, a convolution that halves the grid and doubles the width, and
    `blocks` more.
    """
    width, act = recipe.width, ACTIVATIONS[recipe.activation]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if recipe.model == "mlp":
            sizes = [channels * size * size] + [8 * width] * recipe.blocks
            layers: list[nn.Module] = [nn.Flatten()]
            for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
                layers += [nn.Linear(fan_in, fan_out), act()]
            layers += [Dropout(recipe.dropout), nn.Linear(sizes[-1], classes)]
        else:
            stem = nn.Conv2d(channels, width, 3, padding=1, stride=2 if size >= 24 else 1)
            layers = [
                stem,
                *(Block(width, recipe.norm, act) for _ in range(recipe.blocks)),
            ]
            layers += [_norm(recipe.norm, width), act()]
            layers += [nn.Conv2d(width, 2 * width, 3, padding=1, stride=2)]
            layers += [Block(2 * width, recipe.norm, act) for _ in range(recipe.blocks)]
            layers += [_norm(recipe.norm, 2 * width), act()]
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), Dropout(recipe.dropout)]
            layers += [nn.Linear(2 * width, classes)]
        return nn.Sequential(*layers)


def initialize(model: nn.Module, recipe: Recipe, images: Tensor) -> nn.Module:
    """Fill the weights by the rule that the recipe names; a residual branch starts small.

    `images` (n, c, h, w) are training rows, by which "lsuv" sets the scales.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    if recipe.init == "lsuv":
        return initialization.lsuv_(model, images, generator=generator)
    if recipe.init != "default":
        initialization.initialize_(model, RULES[recipe.init], generator)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, Block):
                    module.branch[-1].weight.mul_((2 * recipe.blocks) ** -0.5)
    return model


def build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer; biases, norms and the like do not decay.

    SGD has momentum .9, and decays in the gradient, where the decay is times the learning
    rate.
    """
    groups = param_groups(model, recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9)


def build_schedule(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """Return the factor on the learning rate for each of `steps` updates: warm-up, then
    decay.
    """
    warm = round(recipe.warmup * steps)
    left = max(1, steps - warm)
    shapes = {
        "constant": lambda: learning_rate_decay.constant(),
        "cosine": lambda: lr_schedulers.cosine(left),
        "linear": lambda: learning_rate_decay.polynomial_decay(left),
        "step": lambda: lr_schedulers.multi_step_decay(
            [max(1, left // 2), max(1, left * 3 // 4)], 0.1
        ),
        "exponential": lambda: learning_rate_decay.exponential_decay(0.01 ** (1 / left)),
        "wsd": lambda: lr_schedulers.wsd(left, cooldown_steps=left // 5),
    }
    return WarmupWrapper(shapes[recipe.schedule](), warm, start=1 / (warm + 1))


def build_transform(recipe: Recipe, data: ImageData, generator: torch.Generator):
    """Return what `fit` does to each batch, or None: every image gets a decision of its
    own.

    All processes draw whole batches, so `generator` must be seeded alike on all of them.
    """
    if recipe.augment == "none":
        return None
    if recipe.augment == "mixup":

        def mix(images, labels, generator):
            return da.mixup(
                images, labels, data.num_classes, alpha=0.2, generator=generator
            )

        return da.on_batches(mix=mix, generator=generator)
    black = ((0 - data.mean) / data.std).tolist()
    side = max(1, data.size // 8)
    share = side / data.size
    shift = da.RandomCrop(padding=side, fill=black)
    colours = {"colour": da.ColorJitter(0.3, 0.3, 0.3), "trivial": da.TrivialAugment()}

    def colour(images: Tensor, generator: torch.Generator) -> Tensor:  # it wants [0, 1]
        mean, std = (v.to(images).view(-1, 1, 1) for v in (data.mean, data.std))
        pixels = colours[recipe.augment]((images * std + mean).clamp(0, 1), generator)
        return (pixels - mean) / std

    steps = {
        "shift": [shift],
        "flip": [shift, da.RandomHorizontalFlip()],
        "affine": [da.RandomAffine(10, (share, share), (0.9, 1.1), fill=black)],
        "colour": [colour, shift],
        "trivial": [colour, shift],
    }
    return da.on_batches(da.Compose(steps[recipe.augment]), generator=generator)


def updates(recipe: Recipe, rows: int) -> tuple[int, int]:
    """Return (updates an epoch, epochs): by default 3 epochs, or as many as 40,000 images
    take.
    """
    epochs = recipe.epochs or max(3, round(40_000 / rows))
    return math.ceil(rows / recipe.batch_size), epochs


def loss_function(recipe: Recipe) -> Callable[[Tensor, Tensor], Tensor]:
    """Return cross entropy, smoothed as the recipe says; mixup's targets are
    probabilities.
    """

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, label_smoothing=recipe.label_smoothing)

    return loss


# --------------------------------------------------------------------------- the run


class Watch:
    """Looks at each validation: logs it, keeps the best weights, says when to stop.

    Its state goes into the checkpoint, so that a resumed run remembers them.
    """

    def __init__(
        self, recipe: Recipe, generator: torch.Generator, trackers: Accelerator | None
    ):
        self.stopper = EarlyStopping(recipe.patience) if recipe.patience else None
        self.generator, self.trackers = generator, trackers

    def __call__(self, run, row: dict) -> bool:
        if self.trackers is not None:
            values = {f"validation_{name}": row[name] for name in ("loss", "accuracy")}
            values["lr"] = run.optimizer.param_groups[0]["lr"]
            self.trackers.log(values, step=row["step"])
        model = run.accelerator.unwrap_model(run.model)
        return self.stopper is not None and self.stopper(row["loss"], model)

    def state_dict(self) -> dict:
        """Return the generator's state, and what early stopping remembers."""
        stopper = self.stopper.state_dict() if self.stopper else None
        return {"generator": self.generator.get_state(), "stopper": stopper}

    def load_state_dict(self, state: dict) -> None:
        """Take up what `state_dict` returned."""
        self.generator.set_state(state["generator"])
        if self.stopper and state["stopper"]:
            self.stopper.load_state_dict(state["stopper"])


@dataclass
class Result:
    """A trained model, its history, and its numbers on the test rows.

    `accuracy` with its Wilson interval, `nll` in nats, `ece` from 0 to 1; `probabilities`
    (count, classes) of the test rows in order; `best_epoch` is the one whose weights were
    kept (None: the last).
    """

    model: nn.Module
    history: History
    accuracy: float
    low: float
    high: float
    nll: float
    ece: float
    count: int
    probabilities: Tensor
    best_epoch: int | None = None

    def numbers(self) -> dict:
        """Return the numbers alone: no model, no history, no row of every image."""
        skip = ("model", "history", "probabilities")
        return {name: value for name, value in vars(self).items() if name not in skip}


def train(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    data: ImageData | None = None,
    log: tuple[str, ...] = (),
    progress: bool | None = None,
) -> Result:
    """Carry out a recipe in this process (or as one of several), and return the result.

    `out`: a folder for all that the run leaves; None leaves nothing. With `resume` a run
    that was cut short is continued from its last checkpoint, to the bit. `data`: images
    of your own, in place of those that the recipe names. `log`: trackers of Accelerate,
    such as "tensorboard".

    Raises Problem for what cannot work, before any work is done. Invariants: the same
    recipe gives the same weights to the bit on the same CPU; so does a run that was
    killed and resumed.
    """
    check_machine(recipe, log)
    torch.set_num_threads(recipe.threads)
    torch.set_flush_denormal(True)
    folder = None if out is None else Path(out)
    rank = int(os.environ.get("RANK", 0))
    main = rank == 0
    if folder is not None and main:
        open_folder(folder, recipe, resume)
    if data is None:
        data = load_data(recipe)
    else:
        check_data(data, recipe)
    model = build_model(recipe, data.channels, data.size, data.num_classes)
    initialize(model, recipe, data.train.images[:256])
    per_epoch, epochs = updates(recipe, len(data.train))
    steps = per_epoch * epochs
    # dropout: other masks on other processes
    torch.manual_seed(recipe.seed * 1009 + rank)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    trackers = (
        _trackers(recipe, folder, log) if log and folder is not None and main else None
    )
    watch = Watch(recipe, generator, trackers)
    history = fit(
        model, _source(recipe, data), build_optimizer(recipe, model), steps=steps,
        batch_size=recipe.batch_size, loss_fn=loss_function(recipe),
        schedule=build_schedule(recipe, steps), step=clipping_step(recipe.max_norm),
        transform=build_transform(recipe, data, generator), seed=recipe.seed,
        accumulation_steps=recipe.accumulation_steps, mixed_precision=recipe.precision,
        validation=data.validation, validate_every=per_epoch,
        checkpoint=folder and folder / CHECKPOINT, save_every=folder and max(10, per_epoch // 4),
        resume=resume, progress=progress, watch=watch,
    )  # fmt: skip
    if watch.stopper is not None and watch.stopper.best_round:
        watch.stopper.restore(model)
    result = examine(model, data, history)
    if watch.stopper is not None:
        result.best_epoch = watch.stopper.best_round or None
    if trackers is not None:
        numbers = {"test_accuracy": result.accuracy, "test_nll": result.nll}
        trackers.log(numbers, step=len(history.loss))
        trackers.end_training()
    if folder is not None and main:
        leave(folder, recipe, data, result)
    return result


def on_gpus(recipe: Recipe) -> bool:
    """Tell whether each of the recipe's processes on this machine gets a GPU."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", recipe.processes))
    return torch.cuda.device_count() >= here


def check_machine(recipe: Recipe, log: Iterable[str] = ()) -> None:
    """Raise Problem for what cannot be done here: float16 on a CPU, trackers not
    installed.
    """
    if recipe.precision == "fp16" and not on_gpus(recipe):
        raise Problem("precision fp16 does nothing on a CPU: use --precision bf16, or no")
    ready = (
        ["csv", *(tracker.value for tracker in get_available_trackers())] if log else []
    )
    for name in log:  # Accelerate leaves out, without a word, what is not installed
        if name not in ready:
            raise Problem(
                f"--log {name}: choose from {', '.join(ready)}; another tracker has to be "
                f"installed first, as in pip install tensorboard"
            )


def _source(recipe: Recipe, data: ImageData):
    """Return the images in memory, or a loader with worker processes.

    The workers start anew each epoch: lasting ones draw from the random state in their
    first epoch only, so that a resumed run would not draw alike.
    """
    if not recipe.workers:
        return data
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*data.train.tensors()), recipe.batch_size, shuffle=True,
        num_workers=recipe.workers, worker_init_fn=seed_worker,
    )  # fmt: skip


class CSVTracker(GeneralTracker):
    """A tracker of Accelerate that keeps log.csv, with a line (step, name, value) a
    value.

    What a resumed run says again replaces what it said before.
    """

    name, requires_logging_directory, tracker = "csv", False, None

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path, self.rows = folder / "log.csv", {("step", "name"): "value"}
        if self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                self.rows |= {
                    (step, name): value for step, name, value in csv.reader(file)
                }

    @on_main_process
    def log(self, values: dict, step: int | None = None, **_) -> None:
        """Store the values of one step."""
        self.rows |= {(str(step), name): value for name, value in values.items()}
        text = "".join(
            f"{step},{name},{value}\n" for (step, name), value in self.rows.items()
        )
        with replacing(self.path) as file:
            file.write(text.encode())


def _trackers(recipe: Recipe, folder: Path, log: tuple[str, ...]) -> Accelerator:
    """Return an Accelerator that writes to the named trackers."""
    known = [CSVTracker(folder) if name == "csv" else name for name in log]
    try:
        trackers = Accelerator(
            log_with=known, project_dir=folder, mixed_precision=recipe.precision,
            cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        settings = {
            name: value for name, value in vars(recipe).items() if value is not None
        }
        trackers.init_trackers("trackers", config=settings)
    except (ValueError, ImportError, RuntimeError) as error:
        raise Problem(f"--log {' '.join(log)}: {' '.join(str(error).split())}") from error
    return trackers


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return a model's outputs (n, classes), float32 on the CPU, for normalised images."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    outputs = torch.cat(
        [model(part.to(device)).float().cpu() for part in images.split(1024)]
    )
    model.train(was_training)
    return outputs


def examine(model: nn.Module, data: ImageData, history: History) -> Result:
    """Return the numbers of a model on the test rows, each row once."""
    images, labels = data.test.tensors()
    outputs = predict(model, images)
    shares = outputs.softmax(1)
    right = int((outputs.argmax(1) == labels).sum())
    low, high = wilson_interval(right, len(labels))
    ece = float(expected_calibration_error(shares, labels))
    nll = float(F.cross_entropy(outputs.double(), labels))
    return Result(
        model, history, right / len(labels), low, high, nll, ece, len(labels), shares
    )


# --------------------------------------------------------------------------- the folder it leaves


def refuse_used(folder: Path, resume: bool, name: str = "recipe.toml") -> None:
    """Raise Problem where a run cannot go into a folder because of what it holds."""
    if (folder / name).exists():
        if not resume:
            raise Problem(
                f"{folder} holds a run: continue it with --resume, or choose another --out"
            )
    elif folder.is_dir():
        if not all(
            re.fullmatch(rf"{SEARCH}|{PART}", path.name) for path in folder.iterdir()
        ):
            raise Problem(f"{folder} holds other files: choose a new folder with --out")


def open_folder(
    folder: Path, recipe: Recipe, resume: bool, name: str = "recipe.toml"
) -> None:
    """Store the recipe in a new folder, or see that it is the one stored; else raise
    Problem.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe{os.getpid()}"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        raise Problem(
            f"cannot write to {folder} ({error.strerror}): choose another folder with --out"
        ) from error
    stored = folder / name
    begun = stored.exists()
    refuse_used(folder, resume, name)
    if begun:
        before = Recipe.from_toml(stored.read_text(encoding="utf-8"), str(stored))
        other = [
            name for name in FIELDS() if getattr(before, name) != getattr(recipe, name)
        ]
        if other:
            changes = ", ".join(f"{n} was {getattr(before, n)!r}" for n in other)
            raise Problem(
                f"{folder} holds a run of another recipe ({changes}): leave such options out to "
                f"go on with it, or choose another --out"
            )
    for path in folder.rglob("*"):
        if re.fullmatch(PART, path.name):
            path.unlink(missing_ok=True)
    if not begun:
        with replacing(stored) as file:
            file.write(recipe.to_toml().encode())


def save_model(model: nn.Module, path: Path, facts: Mapping) -> None:
    """Write weights and buffers to a safetensors file in one step, with `facts` in its
    header.
    """
    from safetensors.torch import save

    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    with replacing(path) as file:
        # one entry: their order varies
        file.write(save(state, {"dlcourse": json.dumps(facts)}))


def load_model(folder: str | Path) -> tuple[nn.Module, dict]:
    """Return (model in evaluation mode, facts) from the folder of a run, without running
    code.

    Raises Problem where the file is missing, cut short, foreign, or of another version.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    path = folder / "model.safetensors"
    if not path.exists():
        raise Problem(
            f"{folder} has no model.safetensors: train with --out, or finish with --resume"
        )
    try:
        with safe_open(str(path), "pt") as file:
            facts = json.loads((file.metadata() or {}).get("dlcourse", "null"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise Problem(
            f"{path} is no whole safetensors file ({error}): train again"
        ) from error
    if not isinstance(facts, dict) or "format" not in facts:
        raise Problem(f"{path} was not written by dlcourse: train with --out to make one")
    advice = f"install dlcourse {facts.get('version', 'of the time')}, or train again"
    if facts["format"] != FORMAT:
        raise Problem(
            f"{path} has format {facts['format']}, this version reads {FORMAT}: {advice}"
        )
    try:
        recipe = Recipe.from_values(facts["recipe"], "its recipe")
        model = build_model(
            recipe, facts["channels"], facts["size"], len(facts["classes"])
        )
        model.load_state_dict(state)
    except (Problem, KeyError, TypeError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0]
        raise Problem(f"{path} is of another version ({why}): {advice}") from error
    return model.eval(), facts


def leave(folder: Path, recipe: Recipe, data: ImageData, result: Result) -> None:
    """Write all that a finished run leaves beside its recipe and its checkpoint."""
    # to hand on, without paths
    shown = recipe.changed(root=recipe.root and Path(recipe.root).name)
    facts = {
        "format": FORMAT, "version": __version__, "recipe": dataclasses.asdict(shown),
        "channels": data.channels, "size": data.size, "classes": list(data.classes),
        "mean": data.mean.tolist(), "std": data.std.tolist(),
    }  # fmt: skip
    save_model(result.model, folder / "model.safetensors", facts)
    result.history.to_csv(folder / "history.csv")
    with open(folder / "validation.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", "loss", "accuracy", "count"])
        writer.writeheader()
        writer.writerows(result.history.validation)
    for name, values in (("versions", versions()), ("result", result.numbers())):
        (folder / f"{name}.json").write_text(
            json.dumps(values, indent=2) + "\n", encoding="utf-8"
        )
    draw_curves(result.history, folder / "curves.png")
    counts = leave_report(folder, data, result)
    card = model_card(folder, recipe, data, result, counts)
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")


def leave_report(folder: Path, data: ImageData, result: Result) -> Tensor:
    """Write which test images are wrong; return the confusion matrix, int64 (classes,
    classes).

    predictions.csv has the images, the hardest first; the others are confusion and
    hardest.
    """
    images, labels = data.test.tensors()
    shares = result.probabilities
    counts = confusion_matrix(labels, shares.argmax(1), data.num_classes)
    order = shares[torch.arange(len(labels)), labels].argsort(stable=True)
    files = data.test.files or [f"test row {row}" for row in range(len(labels))]
    names = [files[row] for row in order.tolist()]
    write_predictions(
        folder / "predictions.csv", names, shares[order], data.classes, labels[order]
    )
    write_confusion(folder / "confusion.csv", counts, data.classes)
    if data.num_classes <= SHOWN_CLASSES:
        draw_confusion(folder / "confusion.png", counts, data.classes)
    draw_hardest(
        folder / "hardest.png", data.denormalize(images), labels, shares, data.classes
    )
    return counts


def versions() -> dict:
    """Return what the run depended on: Python, packages, machine."""
    found = {"dlcourse": __version__, "python": platform.python_version()}
    found |= {name: version(name) for name in PACKAGES}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return found | {"system": platform.platform(), "device": device}


def draw_curves(history: History, path: Path) -> None:
    """Write a PNG of both losses, the validation accuracy and the learning rate."""
    import matplotlib.pyplot as plt

    from dlcourse.lab.plotting import COLORS, curves, figure

    fig, axes = figure(3, width=10.5, height=3.2)
    steps = history.columns()["step"]
    mean = torch.tensor(history.loss)
    width = max(1, len(mean) // 50)
    smooth = F.avg_pool1d(mean[None, None], width, 1, ceil_mode=False)[0, 0].tolist()
    curves(axes[0], steps[width - 1 :], {"training": smooth}, title="loss")
    at = [row["step"] for row in history.validation]
    held = [row["loss"] for row in history.validation]
    axes[0].plot(at, held, "--", color=COLORS[1], label="validation")
    axes[0].legend(frameon=False)
    accuracy = [row["accuracy"] for row in history.validation]
    curves(
        axes[1],
        at,
        {"validation": accuracy},
        title="validation accuracy",
        ylabel="accuracy",
    )
    curves(axes[2], steps, {"lr": history.lr}, title="learning rate", ylabel="rate")
    fig.savefig(path, dpi=100)
    plt.close(fig)


def model_card(
    folder: Path, recipe: Recipe, data: ImageData, result: Result, counts: Tensor
) -> str:
    """Return a model card in Markdown: what it is, how well it does, what it is not for."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    size = sum(p.numel() for p in result.model.parameters())
    held = {
        "stratified": "drawn at random, each class in proportion",
        "random": "drawn at random",
        "group": "whole writers, none of whom also trains",
    }[recipe.split]
    source, repeat = (
        data.name,
        "`dlcourse-train --config recipe.toml --out another-folder`",
    )
    if data.name != recipe.data:  # the caller brought images of their own
        held, repeat = (
            "chosen by who trained it",
            "`dlcourse.recipe.train` with the same images",
        )
    elif data.name in PUBLISHED:
        held = "the published ones"
    elif data.name == "folder":
        source = f"the folder {Path(recipe.root).name}"
    kept = (
        f"epoch {result.best_epoch}, the best on validation"
        if result.best_epoch
        else "the last update"
    )
    search, seen = folder / "tune.csv", f"{len(data.validation)} images"
    if search.exists():
        trials = len(search.read_text(encoding="utf-8").splitlines()) - 1
        seen += f", by which the best of {trials} settings was chosen"
    classes = ", ".join(data.classes[:12]).replace("|", r"\|")
    more = " ..." if data.num_classes > 12 else ""
    scale = f"minus mean {_rounded(data.mean)}, over std {_rounded(data.std)}"
    same = "within rounding" if torch.cuda.is_available() else "to the bit"
    wrong = result.count - int(counts.trace())
    mistakes = "; ".join(most_confused(counts, data.classes)) or "none"
    return f"""# Model card: {recipe.model} on {source}

| | |
| --- | --- |
| Task | {data.num_classes} classes: {classes}{more} |
| Input | {data.channels} x {data.size} x {data.size} pixels in [0, 1], {scale} |
| Parameters | {size:,} |
| Trained on | {len(data.train)} images, {len(result.history.loss)} updates; weights of {kept} |
| Validated on | {seen} |
| Reported on | {result.count} test images, {held} |

## Result on the test images

| measure | value |
| --- | --- |
| accuracy | {result.accuracy:.4f} (95 % interval {result.low:.4f} to {result.high:.4f}) |
| negative log-likelihood | {result.nll:.4f} nats |
| calibration error | {result.ece:.4f} |

The interval is for new images drawn as these were. It covers neither another training seed nor
other sources of images.

{by_class(counts, data.classes)}

Recall: the share of a class's images that got its name, with its interval. Precision: the share of
the images with a name that are of that class.

Mistakes: {wrong} of {result.count}. The most frequent: {mistakes}.

`predictions.csv` has every test image, the hardest first; `hardest.png` shows twelve of them.

## Limits

Trained and tested on {source} alone. Images of another kind, size, light or source need a
test of their own. It always names one of its classes, also for an image that shows none of them.

## Use

```
python -m dlcourse.predict {shlex.quote(folder.resolve().name)} photo.png folder_of_images
```

```python
from dlcourse.predict import Classifier

classify = Classifier({folder.resolve().name!r})  # runs no code from the file
for answer in classify("photo.png"):  # brought to {data.size} x {data.size} pixels as in training
    print(answer.file, answer.label, answer.probability)
```

## Repeat

{repeat}, on the versions in `versions.json`. On the
same machine the weights come out the same {same}. sha256 of `model.safetensors`:
{digest}
"""


def _rounded(values: Tensor) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values.tolist()) + ")"
