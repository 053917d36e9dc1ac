"""What a set of runs is told: the settings of `run_trials`, checked."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dlcourse.lab.batches import as_tensors

OPTIMIZERS = ("sgd", "adam", "adamw")


@dataclass
class Job:
    """One call of `run_trials`.

    `inputs` and `targets` are (rows, ...), or (seeds, rows, ...) where `own_rows` says
    that each seed has rows of its own.
    """

    build: Callable
    data: Any
    seeds: list[int]
    lrs: list[float]
    steps: int
    batch_size: int
    optimizer: str
    momentum: float
    weight_decay: float
    l1: float
    l2: float
    dropout: float | None
    ema: float | None
    sam: float
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    schedule: Callable[[int], float] | None
    grad_transform: Callable | None
    validation: object
    test: object
    validate_every: int | Sequence[int] | None
    order: Callable[[int, int], Tensor] | None = None
    probe: Callable | None = None

    def __post_init__(self) -> None:
        self._check()
        self.own_rows = callable(self.data)
        if self.own_rows:
            self.inputs, self.targets = rows_of_each_seed(self.data, self.seeds)
        else:
            self.inputs, self.targets = as_tensors(self.data)
        self.rows = self.inputs.shape[1] if self.own_rows else len(self.inputs)
        self.batch_size = min(self.batch_size, self.rows)
        self.held_out = {}
        for part in ("validation", "test"):
            if getattr(self, part) is not None:
                self.held_out[part] = getattr(self, part)
        if self.probe is not None:
            self.held_out["probe"] = rows_of_each_seed(self.probe, self.seeds)

    @property
    def shape(self) -> tuple[int, int]:
        """(learning rates, seeds)."""
        return len(self.lrs), len(self.seeds)

    @property
    def replicas(self) -> int:
        """How many runs there are."""
        return len(self.lrs) * len(self.seeds)

    def alone(self, number: int, model: nn.Module) -> Job:
        """Return the job of one replica, which trains `model`."""
        rate, place = divmod(number, len(self.seeds))
        one = copy.copy(self)
        one.build = lambda seed: model
        one.lrs, one.seeds = [self.lrs[rate]], [self.seeds[place]]
        own = slice(place, place + 1)
        if self.own_rows:
            one.inputs, one.targets = self.inputs[own], self.targets[own]
        if "probe" in self.held_out:
            probe = tuple(values[own] for values in self.held_out["probe"])
            one.held_out = self.held_out | {"probe": probe}
        return one

    def times(self) -> list[int]:
        """Return the updates after which the held-out rows are looked at."""
        if self.validate_every is None:
            return []
        looks = self.validate_every
        if isinstance(looks, int):
            looks = range(0, self.steps, looks)
        return sorted({*looks, self.steps})

    def _check(self) -> None:
        if not self.lrs or not self.seeds or self.steps < 1:
            raise ValueError("give at least one learning rate, one seed and one step")
        if self.optimizer not in OPTIMIZERS:
            choices = ", ".join(OPTIMIZERS)
            raise ValueError(f"optimizer={self.optimizer!r}: choose one of {choices}")
        if self.optimizer != "sgd" and self.momentum:
            raise ValueError(
                f"momentum= is for 'sgd'; {self.optimizer!r} has betas of its own"
            )
        if (self.l1 or self.l2) and self.optimizer != "sgd":
            raise ValueError(
                f"l1= and l2= are proximal steps after 'sgd'; with {self.optimizer!r} use "
                "weight_decay="
            )
        for name in ("dropout", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: give a share from 0 to 1")
        for name in ("l1", "l2", "sam", "weight_decay"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value}: give a number of at least 0")
        if self.validate_every is not None:
            if isinstance(self.validate_every, int) and self.validate_every < 1:
                raise ValueError("validate_every: give a number of updates, at least 1")
            if self.validation is None and self.test is None:
                raise ValueError("validate_every= needs validation= or test=, the rows")


def rows_of_each_seed(data: Callable, seeds: list[int]) -> tuple[Tensor, Tensor]:
    """Return what `data(seed)` gives for each seed, stacked: (seeds, rows, ...)."""
    parts = [as_tensors(data(seed)) for seed in seeds]
    lengths = sorted({len(targets) for _, targets in parts})
    if len(lengths) > 1:
        raise ValueError(
            f"there are from {lengths[0]} to {lengths[-1]} rows a seed: give each seed as "
            "many, so that all have batches of one size"
        )
    inputs = torch.stack([inputs for inputs, _ in parts])
    targets = torch.stack([targets for _, targets in parts])
    return inputs, targets
