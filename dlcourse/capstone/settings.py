"""The settings of one training run, each checked by its type and range.

A `Recipe` is a flat list of settings in five groups, written to and read from a TOML
file. The options of the command line are made from the same classes, by `cli`.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dlcourse import __version__

LARGEST = 1e38  # of a setting in float32


class Problem(Exception):
    """What keeps a run from starting or going on, in one line that says what to do."""


class Group(BaseModel):
    """What the groups have in common: no conversion of types, no unknown names."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


def setting(default: Any, about: str, **bounds: Any) -> Any:
    """Return a field: its default, its line in the help, and its range."""
    return Field(default, description=about, **bounds)


class Data(Group):
    """data"""

    data: Literal["digits", "mnist_5k", "mnist", "fashion_mnist", "cifar10", "folder"] = (
        setting("digits", "images; folder takes a path")
    )
    root: str | None = setting(None, "folder that holds the published sets")
    size: int | None = setting(
        None, "pixels a side to resize to; a folder gets 32 without", ge=4
    )
    labels: str | None = setting(
        None, "CSV (file, label[, split]) in place of class folders"
    )
    groups: str | None = setting(
        None, "what stays together: folder level, pattern or CSV (file, group)"
    )
    train_limit: int | None = setting(None, "use only so many training images", ge=1)
    skip_corrupt: bool = setting(False, "leave unreadable images out")
    split: Literal["stratified", "random", "group"] = setting(
        "stratified", "how rows are held out"
    )
    validation: float = setting(0.15, "share held out to choose by", ge=0.01, le=0.5)
    test: float = setting(0.15, "share held out to report", ge=0.01, le=0.5)
    balance: Literal["none", "weights", "sampling"] = setting(
        "none", "even out uneven classes"
    )
    workers: int = setting(0, "processes that read images and make batches", ge=0)
    memory: int = setting(
        500, "MB of a folder's pixels to hold; above, from a file", ge=0
    )
    augment: Literal["none", "shift", "flip", "affine", "colour", "trivial", "mixup"] = (
        setting("shift", "variants")
    )


class Model(Group):
    """model"""

    model: Literal["cnn", "mlp"] = setting("cnn", "residual CNN or MLP")
    pretrained: str | None = setting(
        None, "fine-tune efficientnet_lite0, or a timm model by its name"
    )
    width: int = setting(24, "channels (CNN), or units / 8 (MLP)", ge=1)
    blocks: int = setting(1, "residual blocks a stage, or MLP layers", ge=1)
    activation: Literal[
        "relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid", "none"
    ] = setting("relu", "between")
    norm: Literal["batch", "group", "none"] = setting("batch", "after each convolution")
    init: Literal["kaiming", "xavier", "orthogonal", "lsuv", "default"] = setting(
        "kaiming", "weights"
    )


class Regularization(Group):
    """regularization"""

    weight_decay: float = setting(0.05, "decoupled, not on biases", ge=0, le=LARGEST)
    label_smoothing: float = setting(
        0.0, "share of a label given to all classes", ge=0, le=0.9
    )
    dropout: float = setting(0.0, "before the last layer", ge=0, le=0.95)
    patience: int = setting(0, "stop after so many epochs without gain; 0: never", ge=0)


class Optimization(Group):
    """optimization"""

    optimizer: Literal["adamw", "sgd"] = setting("adamw", "which")
    lr: float = setting(0.01, "peak learning rate", ge=1e-12, le=LARGEST)
    schedule: Literal["constant", "cosine", "linear", "step", "exponential", "wsd"] = (
        setting("cosine", "of the rate")
    )
    warmup: float = setting(0.05, "share of the run", ge=0, le=0.9)
    max_norm: float = setting(1.0, "clip gradients to; inf never", ge=1e-12)
    batch_size: int = setting(64, "images an update, of all processes together", ge=1)
    epochs: int | None = setting(
        None, "passes (enough for 40,000 images, at least 3)", ge=1
    )
    seed: int = setting(0, "of split, weights, batches and noise", ge=0, le=2**31 - 1)


class Machine(Group):
    """machine"""

    precision: Literal["no", "bf16", "fp16"] = setting("no", "no is float32")
    accumulation_steps: int = setting(1, "micro-batches an update", ge=1)
    processes: int = setting(1, "data-parallel processes", ge=1)
    threads: int = setting(1, "CPU threads a process", ge=1)


GROUPS = (Data, Model, Regularization, Optimization, Machine)


class Recipe(Machine, Optimization, Regularization, Model, Data):
    """The settings of one run; the defaults are good ones for small images.

    Raises Problem for a setting out of range. Invariant: `from_toml(to_toml())` is the
    same recipe.
    """

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, values: Any, handler, info) -> Self:
        """Raise Problem, in one line of our own, for what pydantic or we refuse."""
        for name, value in dict(values).items():
            if isinstance(value, float) and math.isnan(value):  # it passes every bound
                raise Problem(f"{name}=nan is no number: give at least 0")
        try:
            recipe = handler(values)
        except ValidationError as error:
            where = (info.context or {}).get("where", "this")
            raise Problem(in_words(error, where)) from None
        recipe.check_together()
        return recipe

    def check_together(self) -> None:
        """Raise Problem where one setting does not go with another."""
        if self.data == "folder" and not self.root:
            raise Problem(
                "data folder needs a path: --data folder PATH, with one folder a class"
            )
        if self.split == "group" and self.data != "digits" and not self.groups:
            raise Problem(
                "split group needs known groups, which only digits has: use stratified, "
                "or --data folder PATH --groups HOW"
            )
        for name in ("labels", "groups"):
            if getattr(self, name) and self.data != "folder":
                raise Problem(f"--{name} goes with --data folder PATH")
        if self.data not in ("digits", "folder") and self.split != "stratified":
            raise Problem(f"{self.data} has its own test images: use --split stratified")
        if self.pretrained and self.processes > 1:
            raise Problem("--pretrained trains on one process: leave --processes out")
        if self.accumulation_steps > self.batch_size:
            raise Problem(
                f"accumulation_steps={self.accumulation_steps} is more than the "
                f"{self.batch_size} images of an update: lower it"
            )

    def changed(self, **settings) -> Recipe:
        """Return this recipe with other values for some settings."""
        return Recipe(**{**self.model_dump(), **settings})

    def to_toml(self) -> str:
        """Return the recipe as TOML, one setting a line under a comment for each group."""
        import tomlkit

        text = tomlkit.document()
        text.add(tomlkit.comment(f"dlcourse {__version__}, recipe of a training run"))
        for group in GROUPS:
            text.add(tomlkit.nl())
            text.add(tomlkit.comment(str(group.__doc__)))
            for name in group.model_fields:
                value = getattr(self, name)
                if value is None:
                    text.add(tomlkit.comment(f"{name} is not set"))
                else:
                    text.add(name, value)
        return tomlkit.dumps(text)

    @classmethod
    def from_toml(cls, text: str, where: str = "the file") -> Recipe:
        """Read what `to_toml` wrote; settings left out keep their defaults."""
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            advice = "write lines such as lr = 0.01"
            if "\\" in text:
                advice += ", and a path as 'C:\\images' or \"C:/images\""
            raise Problem(f"{where} is not TOML ({error}): {advice}") from None
        return cls.from_values(values, where)

    @classmethod
    def from_values(
        cls, values: Mapping[str, Any], where: str, *, strict: bool = True
    ) -> Recipe:
        """Build a recipe from names and values; Problem names what it does not know.

        With `strict=False` numbers may be words, as on the command line.
        """
        return cls.model_validate(values, strict=strict, context={"where": where})


def choices(name: str) -> tuple[str, ...]:
    """Return the values of a setting that takes one of a few words; else nothing."""
    hint = get_type_hints(Recipe)[name]
    return get_args(hint) if all(isinstance(word, str) for word in get_args(hint)) else ()


def in_words(error: ValidationError, where: str) -> str:
    """Return one line on what pydantic found: unknown names first, else the first value."""
    found = error.errors()
    unknown = [str(one["loc"][0]) for one in found if one["type"] == "extra_forbidden"]
    if unknown:
        names = ", ".join(sorted(unknown))
        return f"{where} sets {names}, which is no setting: see --help"
    first = found[0]
    name, value, bounds = str(first["loc"][0]), first["input"], first.get("ctx", {})
    if first["type"] == "literal_error":
        return f"{name}={value!r}: choose one of {', '.join(choices(name))}"
    if "ge" in bounds:
        return f"{name}={value}: give at least {bounds['ge']}"
    if "le" in bounds:
        return f"{name}={value}: give at most {bounds['le']}"
    about = Recipe.model_fields[name]
    wanted = first["type"].split("_")[0]  # "int_parsing", "float_type"
    wanted = {"string": "str"}.get(wanted, wanted)
    return f"{name}={value!r} is no {wanted}: {about.description}"
