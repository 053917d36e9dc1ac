"""Early stopping: when to end, and which weights to keep."""

from __future__ import annotations

import copy
import math
from numbers import Integral

import torch
from torch import Tensor, nn

from dlcourse.regularization.checks import _check_at_least_zero


class EarlyStopping:
    """Keep the best weights seen so far, and say when `patience` rounds brought nothing
    better.

    Call it once a round with the validation value and the model; it returns True when
    training should end. `restore(model)` then puts the best weights and buffers back.
    Better is lower, or higher with mode="max", by more than `min_delta` >= 0. NaN is
    never better. With `accelerator`, the value is first averaged over all processes, so
    that all stop together; give each as many rows. Attributes: `best`, `best_round` (from
    1; 0 before any), `rounds`.
    Raises ValueError for settings out of range, RuntimeError on restoring before anything
    finite.
    """

    def __init__(
        self, patience: int, min_delta: float = 0.0, mode: str = "min", accelerator=None
    ):
        if (
            not isinstance(patience, Integral)
            or isinstance(patience, bool)
            or patience < 1
        ):
            raise ValueError(
                f"patience={patience!r}: give a number of rounds of at least 1"
            )
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode!r}: choose min (a loss) or max (an accuracy)")
        _check_at_least_zero("min_delta", min_delta)
        self.patience, self.min_delta, self.mode = patience, min_delta, mode
        self.accelerator = accelerator
        self.best = math.inf if mode == "min" else -math.inf
        self.rounds = self.best_round = 0
        self._weights: dict | None = None

    def __call__(self, value: float | Tensor, model: nn.Module) -> bool:
        """Note one round, and return whether to stop."""
        if self.accelerator is not None:
            device = self.accelerator.device
            value = torch.as_tensor(value, dtype=torch.float32, device=device)
            value = self.accelerator.reduce(value, "mean")
        value = float(value)
        self.rounds += 1
        gain = self.best - value if self.mode == "min" else value - self.best
        if gain > self.min_delta:
            self.best, self.best_round = value, self.rounds
            self._weights = copy.deepcopy(model.state_dict())
        return self.rounds - self.best_round >= self.patience

    def restore(self, model: nn.Module) -> None:
        """Put the weights and buffers of the best round back into `model`."""
        if self._weights is None:
            raise RuntimeError(
                "no finite value has been noted yet: there is nothing to restore"
            )
        model.load_state_dict(self._weights)

    def state_dict(self) -> dict:
        """Return what a checkpoint needs: "best", "rounds", "best_round", and "weights"
        or None.

        Invariant: a run resumed from it stops, and restores, where the uninterrupted one
        would.
        """
        names = ("best", "rounds", "best_round")
        return {name: getattr(self, name) for name in names} | {"weights": self._weights}

    def load_state_dict(self, state: dict) -> None:
        """Take up what `state_dict` returned; patience, min_delta and mode stay this
        object's.
        """
        self.best, self._weights = state["best"], state["weights"]
        self.rounds, self.best_round = state["rounds"], state["best_round"]
