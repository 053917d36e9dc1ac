"""The one training loop of the course, on HuggingFace Accelerate.

`fit` draws batches and counts updates; a *step* turns one batch into one update. Every
technique that changes training is a step of its own with the signature `step(run, batch)
-> loss`. What the loop does besides training is in `lab.parts` and `lab.checkpoints`.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from dlcourse.lab.accelerator import keep_precision, make_accelerator, prepared
from dlcourse.lab.batches import Batch, Batches
from dlcourse.lab.checkpoints import Checkpoint
from dlcourse.lab.history import History, Recorder
from dlcourse.lab.parts import FiniteCheck, Interrupts, Part, Progress, Validation
from dlcourse.lab.progress import show_progress


def use_one_thread() -> None:
    """Set the two switches that make small networks fast on a CPU: one thread, no
    denormals.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


# --------------------------------------------------------------------------- what a step is given


@dataclass
class Run:
    """One training run, as a step sees it."""

    model: nn.Module  # as Accelerate prepared it
    optimizer: torch.optim.Optimizer
    loss_fn: Callable[[Tensor, Tensor], Tensor]  # mean over the rows of a batch
    accelerator: Accelerator
    accumulation_steps: int = 1  # micro-batches an update
    step: int = 0  # updates done
    logged: dict[str, object] = field(default_factory=dict)
    # the last loss: while it lives, the next pass reuses its leaves
    _graph: Tensor | None = None
    steps: int = 0  # updates in all
    ended: bool = False  # by `watch`: not to be continued
    interrupted: bool = False  # by Ctrl-C

    @property
    def over(self) -> bool:
        """Whether the last update of this run is done."""
        return self.step >= self.steps or self.ended or self.interrupted

    def log(self, name: str, value: float | Tensor) -> None:
        """Record a number for this update under `name`."""
        self.logged[name] = value

    def backward(self, loss: Tensor) -> None:
        """Back-propagate `loss`, scaled when the precision is float16."""
        if self.accelerator.scaler is None:
            loss.backward()
        else:
            self.accelerator.backward(loss)

    def unscale(self) -> None:
        """Divide the gradients by the loss scale (float16); otherwise do nothing."""
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients()

    def gradients(self, batch: Batch) -> Tensor:
        """Add the gradient of the batch's mean loss to `.grad`, and return that loss.

        The mean is over all rows of the batch: each micro-batch counts by its rows, on
        every process, so that neither the number of micro-batches nor of processes
        changes the result.
        """
        if batch.share == 1.0 and self.accumulation_steps == 1:
            loss = self.loss_fn(self.model(batch.inputs), batch.targets)
            self.backward(loss)
            self._graph = loss
            return loss.detach()
        return self._gradients_in_pieces(batch)

    def _gradients_in_pieces(self, batch: Batch) -> Tensor:
        rows = len(batch.inputs)
        pieces = min(self.accumulation_steps, rows)
        inputs = batch.inputs.tensor_split(pieces)
        targets = batch.targets.tensor_split(pieces)
        total = torch.zeros((), device=batch.inputs.device)
        for number in range(pieces):
            communication = contextlib.nullcontext()
            if number < pieces - 1:  # the processes exchange gradients once, at the last
                communication = self.accelerator.no_sync(self.model)
            with communication:
                loss = self.loss_fn(self.model(inputs[number]), targets[number])
                loss = loss * (batch.share * len(inputs[number]) / rows)
                self.backward(loss)
            total = total + loss.detach()
        return total


def train_step(run: Run, batch: Batch) -> Tensor:
    """Turn one batch into one update, and return the loss before it."""
    run.optimizer.zero_grad()
    loss = run.gradients(batch)
    run.optimizer.step()
    return loss


# --------------------------------------------------------------------------- the loop


@keep_precision()
def fit(
    model: nn.Module,
    data,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 32,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    schedule: Callable[[int], float] | None = None,
    step: Callable[[Run, Batch], Tensor] = train_step,
    transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    seed: int = 0,
    accumulation_steps: int | None = None,
    mixed_precision: str | None = None,
    cpu: bool | None = None,
    validation=None,
    validate_every: int | None = None,
    checkpoint: str | Path | None = None,
    save_every: int | None = None,
    resume: bool = False,
    progress: bool | None = None,
    stop_on_nan: bool = True,
    watch: Callable[[Run, dict], bool] | None = None,
) -> History:
    """Train `model` in place for a number of updates, and return the history.

    `data`: an `ImageData`, a `Split`, a pair (inputs, targets) or a `DataLoader`. Of a
    `DataLoader` each process reads its own rows of every batch, and the result is that of
    one process. A data set that draws at random (crops) draws otherwise than in one
    process: each process draws from a stream of its own, with which a resumed run goes on.
    (A generator that the data set keeps itself is the same on every process: seed it by
    the rank.) Every process reads all rows where these cannot be cut: with `transform=`,
    which is given whole batches, and from an `IterableDataset`, where only the data set
    knows which row is next, so that none can be passed over unread.
    `batch_size`: rows an update, over all processes and micro-batches together.
    `loss_fn(outputs, targets)`: the mean over the rows.
    `schedule(t)`: the factor on each learning rate at update t (from 0); a pure function
    of t.
    `step(run, batch)`: makes one update and returns the loss.
    `accumulation_steps`, `mixed_precision`: by default what `accelerate launch` was
    given; an Accelerator made before or after keeps its own precision.
    `checkpoint`: the file to save to, every `save_every` updates, at the end and at
    Ctrl-C; with `resume=True` an existing file is continued, to the bit (but see the
    warning for a `DataLoader` with persistent workers).
    `stop_on_nan`: switch it off to watch a run diverge.
    `watch(run, row)`: called after each validation with its row of the history; the run
    ends where it returns True. Its `state_dict`, if it has one, is kept in the
    checkpoint, and a run that it has ended is not continued.

    Raises ValueError for settings that cannot work, FileExistsError rather than overwrite
    a checkpoint, and NonFiniteLossError at the first loss that is NaN or infinite.
    """
    micro_batches = accumulation_steps or int(
        os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", 1)
    )
    _check_settings(steps, epochs, batch_size, micro_batches)
    _check_checkpoint(checkpoint, save_every, resume)
    if watch is not None and validation is None:
        raise ValueError(
            "watch= looks at validation results: give validation=, the rows to use"
        )
    accelerator = make_accelerator(mixed_precision, cpu)
    batches = Batches(data, batch_size, seed, accelerator, transform)
    rates = Rates(optimizer, schedule)
    recorder = Recorder(accelerator)
    updates = steps if epochs is None else epochs * batches.length

    with prepared(model, optimizer, accelerator) as (wrapped_model, wrapped_optimizer):
        run = Run(wrapped_model, wrapped_optimizer, loss_fn, accelerator, micro_batches)
        run.steps = cast(int, updates)
        parts = []
        if stop_on_nan:
            parts.append(FiniteCheck(recorder))
        wants_bar = show_progress() if progress is None else progress
        if wants_bar and accelerator.is_main_process:
            parts.append(Progress(recorder))
        if validation is not None:
            parts.append(Validation(validation, validate_every, recorder, watch))
        parts.append(Interrupts())
        if checkpoint is not None:
            saver = Checkpoint(
                checkpoint, save_every, model, optimizer, batches, recorder, watch
            )
            parts.append(saver)  # last: it saves what the others have decided
            _warn_of_workers(batches)
            if resume and Path(checkpoint).exists():
                saver.restore(run)
        _loop(run, batches, rates, step, recorder, parts)
    return recorder.history


def _loop(
    run: Run,
    batches: Batches,
    rates: Rates,
    step: Callable[[Run, Batch], Tensor],
    recorder: Recorder,
    parts: list[Part],
) -> None:
    """Draw a batch, set the rate, step, record; then each part looks at the run."""
    draw = iter(batches)
    after_each = [part.after_update for part in parts]
    try:
        for part in parts:
            part.start(run)
        while not run.over:
            batch = next(draw)
            rates.set(run.step)
            loss = step(run, batch)
            run.step += 1
            recorder.add(run, loss)
            for after_update in after_each:
                after_update(run)
    finally:
        for part in parts:
            part.end(run)
    recorder.flush()
    if run.interrupted:
        raise KeyboardInterrupt(f"stopped after update {run.step}")


class Rates:
    """Sets the learning rate of each group: its first rate times `schedule(t)`."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.first_rates: list[float] = []
        for group in optimizer.param_groups:
            self.first_rates.append(group.setdefault("initial_lr", group["lr"]))

    def set(self, t: int) -> None:
        """Set the rates of update `t` (from 0); without a schedule leave them."""
        if self.schedule is None:
            return
        factor = self.schedule(t)
        for group, first in zip(
            self.optimizer.param_groups, self.first_rates, strict=True
        ):
            group["lr"] = first * factor


# --------------------------------------------------------------------------- settings


def _check_settings(
    steps: int | None, epochs: int | None, batch_size: int, micro_batches: int
) -> None:
    if (steps is None) == (epochs is None):
        raise ValueError("give either steps= (updates) or epochs=, and not both")
    for name, value in (("steps", steps), ("epochs", epochs), ("batch_size", batch_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
    if not 1 <= micro_batches <= batch_size:
        raise ValueError(
            f"accumulation_steps={micro_batches} with batch_size={batch_size}: each micro-batch "
            "needs at least one row, so give a number from 1 to batch_size"
        )


def _check_checkpoint(
    path: str | Path | None, save_every: int | None, resume: bool
) -> None:
    if path is None and (save_every or resume):
        raise ValueError("save_every= and resume= need checkpoint=, the file to use")
    if path is not None and not resume and Path(path).exists():
        raise FileExistsError(
            f"{path} exists: pass resume=True to continue that run, or delete the file"
        )


def _warn_of_workers(batches: Batches) -> None:
    if batches.loader is not None and batches.loader.persistent_workers:
        warnings.warn(
            "the DataLoader has persistent_workers=True: their random draws go on from epoch to "
            "epoch and are in no checkpoint, so a resumed run differs where the data set draws. "
            "Use persistent_workers=False to continue to the bit.",
            stacklevel=4,  # the line that called fit
        )
