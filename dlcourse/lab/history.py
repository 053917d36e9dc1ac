"""What a run leaves: its history, and the recorder that fills it."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from dlcourse.lab.accelerator import all_reduce

if TYPE_CHECKING:
    from dlcourse.lab.training import Run


@dataclass
class History:
    """What a run recorded: one entry an update in `loss` and `lr`, more columns in
    `extra`.

    Columns in `extra` are as long as `loss`, with None where a step logged nothing.
    `validation` holds one dictionary (step, loss, accuracy, count) an evaluation.
    """

    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    extra: dict[str, list] = field(default_factory=dict)
    validation: list[dict] = field(default_factory=list)

    def columns(self) -> dict[str, list]:
        """Return every column as a plain list, all of the same length, `step` first."""
        steps = list(range(1, len(self.loss) + 1))
        return {"step": steps, "loss": self.loss, "lr": self.lr, **self.extra}

    def to_csv(self, path: str | Path) -> None:
        """Write one line an update to `path`."""
        columns = self.columns()
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def as_dict(self) -> dict:
        """Return the four fields as plain lists and dictionaries."""
        return {
            "loss": list(self.loss),
            "lr": list(self.lr),
            "extra": {name: list(values) for name, values in self.extra.items()},
            "validation": [dict(row) for row in self.validation],
        }


class Recorder:
    """Notes each update as it comes, and writes the notes into the history now and then.

    On a GPU the notes stay tensors until `flush`, because to read one is to wait for it.
    `losses` and `rates` hold the updates since the last flush.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.history = History()
        self.losses: list = []
        self.rates: list[float] = []
        self.accelerator = accelerator
        self.on_cpu = accelerator.device.type == "cpu"

    def add(self, run: Run, loss: Tensor) -> None:
        """Note the loss of an update, its learning rate, and what the step has logged."""
        self.losses.append(loss.item() if self.on_cpu else loss)
        self.rates.append(run.optimizer.param_groups[0]["lr"])
        if run.logged:
            self.add_logged(run.logged)
            run.logged = {}

    def add_logged(self, logged: dict) -> None:
        """Note each logged value in its column, after None for the updates without one."""
        before = len(self.history.loss) + len(self.losses) - 1
        for name, value in logged.items():
            if self.on_cpu and isinstance(value, Tensor):
                value = value.item()
            column = self.history.extra.setdefault(name, [])
            column.extend([None] * (before - len(column)))
            column.append(value)

    def flush(self) -> None:
        """Move the notes into the history, each loss the mean over the processes."""
        if not self.losses:
            return
        numbers = [float(loss) for loss in self.losses]
        losses = torch.tensor(numbers, dtype=torch.float64)
        if self.accelerator.num_processes > 1:  # each holds its share of the mean
            losses = all_reduce(losses.float(), self.accelerator, "mean").double().cpu()
        self.history.loss += losses.tolist()
        self.history.lr += self.rates
        self.losses.clear()
        self.rates.clear()
        for column in self.history.extra.values():
            column[:] = [None if value is None else float(value) for value in column]
            column.extend([None] * (len(self.history.loss) - len(column)))
