"""What a set of runs leaves, and which learning rate was best."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dlcourse.lab.claims import record

HELD_OUT = ("validation", "test", "probe")
OF_EACH_RUN = ("train_loss", "logged", "curves", "weights", *HELD_OUT)


@dataclass(frozen=True)
class BestRate:
    """The learning rate that is best on the validation rows, and where in its grid.

    `at_edge`: it is the smallest or the largest of the grid (or the only one), so that a
    better one may lie outside.
    """

    index: int
    lr: float
    at_edge: bool

    def inside(self, name: str = "this arm") -> BestRate:
        """Return this rate; raises ValueError where it lies at the edge of its grid."""
        if self.at_edge:
            raise ValueError(
                f"{name}: the best rate, {self.lr:g}, lies at the edge of its grid: give "
                "rates beyond it"
            )
        return self


@dataclass
class Trials:
    """The results of runs over learning rates x seeds.

    `train_loss`: (lrs, seeds, steps). `logged[name]`: (lrs, seeds, steps).
    `validation`, `test` and `probe`: {"loss", "accuracy"}, each (lrs, seeds); empty where
    not asked for.
    `curves["validation"]` and `curves["test"]`: the same after the updates `times`, each
    (lrs, seeds, times); empty without validate_every=.
    `weights[name]`: the trained parameters (or their average), each (lrs, seeds, ...).
    `stacked`: whether the replicas ran as one.
    """

    lrs: list[float]
    seeds: list[int]
    train_loss: np.ndarray
    validation: dict[str, np.ndarray] = field(default_factory=dict)
    test: dict[str, np.ndarray] = field(default_factory=dict)
    probe: dict[str, np.ndarray] = field(default_factory=dict)
    logged: dict[str, np.ndarray] = field(default_factory=dict)
    stacked: bool = True
    times: list[int] = field(default_factory=list)
    curves: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict, repr=False)
    forward: Callable[[Tensor, bool], Tensor] | None = field(default=None, repr=False)
    hand_out: Callable[[], list[nn.Module]] | None = field(default=None, repr=False)

    def best_lr(self, metric: str = "accuracy") -> int:
        """Return the index of the learning rate that is best on the validation rows, on
        average.
        """
        values = self.validation_mean(metric)
        if metric == "accuracy":
            best = int(np.nanargmax(values))
        else:
            best = int(np.nanargmin(np.where(np.isfinite(values), values, np.inf)))
        if len(self.lrs) > 1 and self.lrs[best] in (min(self.lrs), max(self.lrs)):
            record({"edge": self.lrs[best], "grid": list(self.lrs)})
        return best

    def validation_mean(self, metric: str = "accuracy") -> np.ndarray:
        """Return the mean over the seeds on the validation rows: (lrs,)."""
        if not self.validation:
            raise ValueError("no validation results: give run_trials validation=")
        return self.validation[metric].mean(axis=1)

    def best_rate(self, metric: str = "accuracy") -> BestRate:
        """Return the learning rate that is best on the validation rows, on average, and
        whether it lies at the edge of its grid.
        """
        index = self.best_lr(metric)
        lr = self.lrs[index]
        return BestRate(index, lr, lr in (min(self.lrs), max(self.lrs)))

    def at(self, lr: float) -> Trials:
        """Return the results of one learning rate of `lrs`."""
        if lr not in self.lrs:
            raise ValueError(f"no runs at the rate {lr:g}, only at {self.lrs}")
        only = slice(self.lrs.index(lr), self.lrs.index(lr) + 1)
        kept = tree_map(lambda values: values[only], self.of_each_run())
        return dataclasses.replace(self, lrs=[lr], forward=None, hand_out=None, **kept)

    def of_each_run(self) -> dict:
        """Return what begins with the dimensions (lrs, seeds)."""
        return {name: getattr(self, name) for name in OF_EACH_RUN}

    def after(self, updates: int) -> Trials:
        """Return the results as if each run had ended after so many updates, one of
        `times`.
        """
        if updates not in self.times:
            raise ValueError(f"no look after {updates} updates, only after {self.times}")
        place = self.times.index(updates)
        found = {}
        for part, curves in self.curves.items():
            found[part] = {name: values[:, :, place] for name, values in curves.items()}
        losses = self.train_loss[:, :, :updates]
        early = self._without_models(found)
        return dataclasses.replace(early, train_loss=losses, times=[], curves={})

    def stopped_early(self, metric: str = "loss") -> Trials:
        """Return the results as if each run had stopped where it was best on the
        validation rows; these are then part of the choice, the test rows are not.
        """
        if "validation" not in self.curves:
            raise ValueError("no curves: give run_trials validation= and validate_every=")
        seen = self.curves["validation"][metric]
        if metric == "accuracy":
            best = np.where(np.isfinite(seen), seen, -np.inf).argmax(axis=2)
        else:
            best = np.where(np.isfinite(seen), seen, np.inf).argmin(axis=2)
        found = {}
        for part, curves in self.curves.items():
            found[part] = {}
            for name, values in curves.items():
                picked = np.take_along_axis(values, best[:, :, None], axis=2)
                found[part][name] = picked[:, :, 0]
        return self._without_models(found)

    def _without_models(self, found: dict) -> Trials:
        """Return earlier results, whose weights are gone."""
        return dataclasses.replace(self, weights={}, forward=None, hand_out=None, **found)

    def predict(self, inputs: Tensor, of_each_seed: bool = False) -> Tensor:
        """Return what each trained model makes of `inputs`: (lrs, seeds, rows, ...).

        `inputs` is (rows, ...) for all, or (seeds, rows, ...) with `of_each_seed`.
        """
        if self.forward is None:
            raise ValueError("these results hold no models: ask the trials they are from")
        outputs = self.forward(inputs, of_each_seed)
        return outputs.unflatten(0, (len(self.lrs), len(self.seeds)))

    @property
    def networks(self) -> list[list[nn.Module]]:
        """Each trained model, lrs x seeds."""
        if self.hand_out is None:
            raise ValueError("these results hold no models: ask the trials they are from")
        models, seeds = self.hand_out(), len(self.seeds)
        return [models[i : i + seeds] for i in range(0, len(models), seeds)]

    def accuracy_on(self, inputs: Tensor, targets: Tensor) -> np.ndarray:
        """Return the share of these rows that each trained model gets right: (lrs, seeds)."""
        right = self.predict(inputs).argmax(-1) == targets
        return right.double().mean(-1).numpy()


def best_of_rates(
    arms: Mapping[str, Trials], metric: str = "accuracy"
) -> dict[str, BestRate]:
    """Return the best learning rate of each arm by the validation rows.

    Each result says `at_edge`; its `inside(name)` raises where it is.
    """
    return {name: trials.best_rate(metric) for name, trials in arms.items()}


def check_pairs(a: Sequence[int], b: Sequence[int]) -> None:
    """Raise ValueError where two arms were run on different seeds."""
    if list(a) != list(b):
        raise ValueError("the two were run on different seeds: run both on the same ones")
