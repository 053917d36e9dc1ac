"""What the loop does besides training: small parts, each asked after every update."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from dlcourse.lab.accelerator import all_reduce
from dlcourse.lab.evaluation import evaluate, own_share
from dlcourse.lab.history import Recorder
from dlcourse.lab.progress import bar as progress_bar

if TYPE_CHECKING:
    from dlcourse.lab.training import Run

READ_EVERY = 20  # updates: reading a loss stalls a GPU
AGREE_EVERY = 10  # updates: asking all processes costs a message


class NonFiniteLossError(RuntimeError):
    """Raised by `fit` when the loss is NaN or infinite."""


class Part:
    """A part of the loop. Most do all their work in `after_update`."""

    def start(self, run: Run) -> None:
        """Get ready; called once, before the first update."""

    def after_update(self, run: Run) -> None:
        """Look at the run; called after each update."""

    def end(self, run: Run) -> None:
        """Put things back; called once, also after an error."""


class FiniteCheck(Part):
    """Stops a run at the first loss that is NaN or infinite.

    On a CPU each loss is looked at, on a GPU every 20th update all that are new.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.losses = recorder.losses
        self.every = 1 if recorder.on_cpu else READ_EVERY
        self.alone = recorder.accelerator.num_processes == 1
        self.at_hand = self.alone and recorder.on_cpu

    def after_update(self, run: Run) -> None:
        if self.at_hand and math.isfinite(self.losses[-1]):
            return
        if run.step % self.every and run.step != run.steps:
            return
        recent = [float(loss) for loss in self.losses[-self.every :]]
        if not self.alone:  # the mean: so all processes raise, and none waits for another
            mean = all_reduce(torch.tensor(recent), self.recorder.accelerator, "mean")
            recent = mean.tolist()
        for back, loss in enumerate(reversed(recent)):
            if not math.isfinite(loss):
                raise NonFiniteLossError(self.describe(run, loss, back))

    def describe(self, run: Run, loss: float, back: int) -> str:
        """Say what is known of the update `back` updates ago, and what to do."""
        rate = self.recorder.rates[-1 - back]
        column = self.recorder.history.extra.get("grad_norm", [])
        norms = [norm for norm in column if norm is not None]
        norm = f"{float(norms[-1]):.3g}" if norms else "not logged"
        return (
            f"the loss is {loss} at update {run.step - back}, learning rate {rate:.3g}, "
            f"last gradient norm {norm}. Lower the learning rate, clip the gradient, or "
            "look for a NaN in the data."
        )


class Progress(Part):
    """Draws a progress bar, with the loss of every 20th update."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.bar: Any = None

    def start(self, run: Run) -> None:
        self.bar = progress_bar(
            show=True, total=run.steps, initial=run.step, unit="update"
        )

    def after_update(self, run: Run) -> None:
        self.bar.update()
        if run.step % 20 == 0:
            loss = float(self.recorder.losses[-1])
            self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

    def end(self, run: Run) -> None:
        if self.bar is not None:
            self.bar.close()


class Validation(Part):
    """Evaluates the model every so many updates and at the end; `watch` may end the run."""

    def __init__(
        self,
        data,
        every: int | None,
        recorder: Recorder,
        watch: Callable[[Run, dict], bool] | None = None,
    ) -> None:
        self.data = data
        self.every = every
        self.recorder = recorder
        self.watch = watch

    def start(self, run: Run) -> None:
        self.data = own_share(self.data, run.accelerator)  # once: it may keep its workers

    def after_update(self, run: Run) -> None:
        due = self.every and run.step % self.every == 0
        if not due and run.step != run.steps:
            return
        result = evaluate(run.model, self.data, run.loss_fn, accelerator=run.accelerator)
        row = {"step": run.step, **result}
        self.recorder.history.validation.append(row)
        if self.watch is not None:
            run.ended = bool(self.watch(run, row))


class Interrupts(Part):
    """Turns the first Ctrl-C into `run.interrupted`, once the update in progress is done.

    Several processes ask each other every 10th update, so that all stop after the same
    one. A second Ctrl-C does not wait.
    """

    def __init__(self) -> None:
        self.seen = False
        self.previous = None
        self.alone = True

    def start(self, run: Run) -> None:
        self.alone = run.accelerator.num_processes == 1
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGINT, self.note)

    def note(self, number, frame) -> None:
        """Handle the signal."""
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True

    def after_update(self, run: Run) -> None:
        if self.alone:
            run.interrupted = self.seen
        elif run.step % AGREE_EVERY == 0 or run.step == run.steps:
            seen_here = torch.tensor(float(self.seen))
            seen_anywhere = all_reduce(seen_here, run.accelerator, "sum")
            run.interrupted = seen_anywhere.item() > 0

    def end(self, run: Run) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)
