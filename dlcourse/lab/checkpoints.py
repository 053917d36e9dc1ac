"""Checkpoints: what is in one, how a run is put back from it, and how it is written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from torch import nn

from dlcourse.lab.batches import Batches
from dlcourse.lab.history import Recorder
from dlcourse.lab.parts import Part
from dlcourse.lab.randomness import rng_state, set_rng_state

if TYPE_CHECKING:
    from dlcourse.lab.training import Run

CHECKPOINT_FORMAT = 1


class Checkpoint(Part):
    """Saves a run every so many updates and where it ends, and puts it back.

    `model` and `optimizer` are the plain ones, without what Accelerate adds to them.
    """

    def __init__(
        self,
        path: str | Path,
        every: int | None,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        recorder: Recorder,
        watch: Callable | None = None,
    ) -> None:
        self.path = path
        self.every = every
        self.model = model
        self.optimizer = optimizer
        self.batches = batches
        self.recorder = recorder
        self.watch = watch

    def after_update(self, run: Run) -> None:
        due = self.every and run.step % self.every == 0
        if due or run.over:
            self.save(run)

    def save(self, run: Run) -> None:
        """Write the whole run to the file; every process must call."""
        self.recorder.flush()
        states = _gather(rng_state(), run)
        if run.accelerator.is_main_process:
            save_atomically(self.contents(run, states), self.path)
        # else another process may look before the file is there
        run.accelerator.wait_for_everyone()

    def contents(self, run: Run, rng_states: list[dict]) -> dict:
        """Return what the file holds; `rng_states` has one entry a process."""
        scaler = run.accelerator.scaler
        watch_state = getattr(self.watch, "state_dict", None)
        return {
            "format": CHECKPOINT_FORMAT,
            "facts": self.batches.facts(),
            "step": run.step,
            "ended": run.ended,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "rng": rng_states,
            "epoch": self.batches.epoch,
            "position": self.batches.position,
            "epoch_rng": self.batches.epoch_rng,
            "loader_rng": self.batches.loader_rng(),
            "history": self.recorder.history.as_dict(),
            "watch": None if watch_state is None else watch_state(),
        }

    def restore(self, run: Run) -> None:
        """Put the run back where the file left it.

        Raises ValueError where the file belongs to another run, model or optimizer.
        """
        saved = load_checkpoint(self.path)
        self.check_facts(saved["facts"])
        try:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.path} belongs to another model or optimizer: {error}"
            ) from error
        if run.accelerator.scaler is not None and saved["scaler"]:
            run.accelerator.scaler.load_state_dict(saved["scaler"])
        run.step = saved["step"]
        run.ended = saved.get("ended", False)
        self.batches.epoch = saved["epoch"]
        self.batches.position = saved["position"]
        self.batches.epoch_rng = saved["epoch_rng"]
        self.batches.set_loader_rng(saved.get("loader_rng"))
        for name, value in saved["history"].items():
            setattr(self.recorder.history, name, value)
        load_watch = getattr(self.watch, "load_state_dict", None)
        if load_watch is not None and saved.get("watch"):
            load_watch(saved["watch"])
        set_rng_state(saved["rng"][run.accelerator.process_index])

    def check_facts(self, saved: dict) -> None:
        """Raise ValueError where this run draws other batches than the saved one did."""
        for name, now in self.batches.facts().items():
            if saved.get(name) != now:
                raise ValueError(
                    f"{self.path} was written with {name}={saved.get(name)}, this run has "
                    f"{name}={now}: use the same, or start anew under another file name"
                )


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint of `fit` without running code from it.

    Raises ValueError where the file is no checkpoint, is cut short, or has another
    format.
    """
    advice = "Delete the file to start anew, or name another one."
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}). {advice}"
        ) from error
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError(f"{path} is not a checkpoint of dlcourse. {advice}")
    if state["format"] != CHECKPOINT_FORMAT:
        raise ValueError(
            f"{path} has format {state['format']}, this version reads {CHECKPOINT_FORMAT}. {advice}"
        )
    return state


def save_atomically(state: dict, path: str | Path) -> None:
    """Write `state` to `path` as torch does, in one step."""
    with replacing(path) as file:
        torch.save(state, file)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for bytes that takes the place of `path` once it is whole and on the
    disk.

    A reader finds the old file or the new one, never a part, also where the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _gather(value: dict, run: Run) -> list[dict]:
    """Return the values of all processes, in the order of their ranks."""
    if run.accelerator.num_processes == 1:
        return [value]
    gathered = [{} for _ in range(run.accelerator.num_processes)]
    torch.distributed.all_gather_object(gathered, value)
    return gathered
