"""One training run, carried out as its recipe says.

`train` takes data, network, optimizer and schedule from `building`, hands them to
`lab.training.fit`, and leaves a folder from which the run can be understood, repeated and
loaded without running code.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers, on_main_process
from torch.utils.data import DataLoader, StackDataset

from dlcourse.capstone.building import (
    build_model,
    build_optimizer,
    build_schedule,
    build_step,
    build_transform,
    initialize,
    loss_function,
    updates,
)
from dlcourse.capstone.cache import forget
from dlcourse.capstone.data import check_data, load_data
from dlcourse.capstone.fingerprint import check_same, write_table
from dlcourse.capstone.folder import CHECKPOINT, leave, open_folder
from dlcourse.capstone.own import OwnImages
from dlcourse.capstone.result import Result, examine
from dlcourse.capstone.settings import Problem, Recipe
from dlcourse.data_loading import seed_worker
from dlcourse.lab.checkpoints import replacing
from dlcourse.lab.datasets import ImageData
from dlcourse.lab.parts import NonFiniteLossError
from dlcourse.lab.training import fit
from dlcourse.regularization import EarlyStopping

OUT_OF_BOUNDS = 100.0  # nats: no network that learns anything loses so much
YEAR = 366 * 24 * 3600.0  # seconds: a launch needs a limit, and training has none


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
    place = folder if rank == 0 else None  # where this process writes
    if place is not None:
        open_folder(place, recipe, resume)
    mine = data is None
    if data is None:
        data = load_data(recipe, folder)
    else:
        check_data(data, recipe)
    if place is not None and isinstance(data, OwnImages):
        check_same(place, data)
        write_table(place, data)
    model = build_model(recipe, data.channels, data.size, data.num_classes)
    initialize(model, recipe, data.train.images[:256])
    per_epoch, epochs = updates(recipe, len(data.train))
    steps = per_epoch * epochs
    # dropout: other masks on other processes
    torch.manual_seed(recipe.seed * 1009 + rank)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    trackers = _trackers(recipe, place, log) if log and place is not None else None
    watch = Watch(recipe, generator, trackers)
    history = fit(
        model, _source(recipe, data), build_optimizer(recipe, model), steps=steps,
        batch_size=recipe.batch_size, loss_fn=loss_function(recipe, data.train.labels),
        schedule=build_schedule(recipe, steps), step=build_step(recipe, steps),
        transform=build_transform(recipe, data, generator), seed=recipe.seed,
        accumulation_steps=recipe.accumulation_steps, mixed_precision=recipe.precision,
        validation=data.validation, validate_every=per_epoch,
        checkpoint=folder and folder / CHECKPOINT, save_every=folder and max(10, per_epoch // 4),
        resume=resume, progress=progress, watch=watch,
    )  # fmt: skip
    if watch.stopper is not None and watch.stopper.best_round:
        watch.stopper.restore(model)
    result = examine(model, data, history)
    if not result.nll < OUT_OF_BOUNDS:
        raise NonFiniteLossError(out_of_bounds(result, data, recipe))
    if watch.stopper is not None:
        result.best_epoch = watch.stopper.best_round or None
    if trackers is not None:
        numbers = {"test_accuracy": result.accuracy, "test_nll": result.nll}
        trackers.log(numbers, step=len(history.loss))
        trackers.end_training()
    if place is not None:
        leave(place, recipe, data, result)
        if mine and "WORLD_SIZE" not in os.environ:
            forget(place)
    return result


def out_of_bounds(result: Result, data: ImageData, recipe: Recipe) -> str:
    """Return what to say of a network whose outputs are of no use."""
    return (
        f"the loss has left all bounds: {result.nll:.3g} nats on the test images, where "
        f"guessing gives {math.log(data.num_classes):.3g}. Lower --lr (it was "
        f"{recipe.lr:g}), clip with --max-norm 1, or add --warmup"
    )


def job(values: dict, out: str, log: list[str]) -> dict:
    """Train as one of several processes, in a folder already checked; return the numbers."""
    return train(Recipe(**values), out, resume=True, log=tuple(log)).numbers()


def run(recipe: Recipe, folder: Path, options, data: ImageData) -> dict:
    """Train here, or on the processes that the recipe asks for; return the numbers."""
    resume, log = options.resume, options.log
    if recipe.processes == 1 or "WORLD_SIZE" in os.environ:
        return train(recipe, folder, resume=resume, data=data, log=log).numbers()
    open_folder(folder, recipe, resume)
    # here, as in a notebook this import starts a helper for processes
    from dlcourse.lab.launching import launch

    arguments = {"values": recipe.model_dump(), "out": str(folder), "log": list(log)}
    return launch(
        job, recipe.processes, kwargs=arguments, timeout=YEAR, cpu=not on_gpus(recipe),
        live=True,
    )[0]  # fmt: skip


def on_gpus(recipe: Recipe) -> bool:
    """Tell whether each of the recipe's processes on this machine gets a GPU."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", recipe.processes))
    return torch.cuda.device_count() >= here


def check_machine(recipe: Recipe, log: Iterable[str] = ()) -> None:
    """Raise Problem for float16 on a CPU, and for trackers that are not installed."""
    if recipe.precision == "fp16" and not on_gpus(recipe):
        raise Problem("precision fp16 does nothing on a CPU: use --precision bf16, or no")
    available = [tracker.value for tracker in get_available_trackers()] if log else []
    for name in log:  # Accelerate leaves out, without a word, what is not installed
        if name not in ("csv", *available):
            raise Problem(
                f"--log {name}: choose from {', '.join(['csv', *available])}; another "
                "tracker has to be installed first, as in pip install tensorboard"
            )


def _source(recipe: Recipe, data: ImageData):
    """Return the images in memory, or a loader with worker processes.

    The workers start anew each epoch: lasting ones draw from the random state in their
    first epoch only, so that a resumed run would not draw alike.
    """
    if not recipe.workers:
        return data
    rows: Any = data.train.tensors()  # in memory, or in a file: both are read by row
    return DataLoader(
        StackDataset(*rows), recipe.batch_size, shuffle=True,
        num_workers=recipe.workers, worker_init_fn=seed_worker,
    )  # fmt: skip


class CSVTracker(GeneralTracker):
    """A tracker of Accelerate that keeps log.csv: step, name, value.

    What a resumed run says again replaces what it said before.
    """

    name, requires_logging_directory, tracker = "csv", False, None

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "log.csv"
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        self.values = {("step", "name"): "value"}
        for step, name, value in csv.reader(lines):
            self.values[step, name] = value

    @on_main_process
    def log(self, values: dict, step: int | None = None, **_) -> None:
        """Store the values of one step."""
        self.values |= {(str(step), name): value for name, value in values.items()}
        lines = [
            f"{step},{name},{value}\n" for (step, name), value in self.values.items()
        ]
        with replacing(self.path) as file:
            file.write("".join(lines).encode())


def _trackers(recipe: Recipe, folder: Path, log: tuple[str, ...]) -> Accelerator:
    """Return an Accelerator that writes to the named trackers."""
    known: list[Any] = [CSVTracker(folder) if name == "csv" else name for name in log]
    try:
        trackers = Accelerator(
            log_with=known, project_dir=folder, mixed_precision=recipe.precision,
            cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        settings = recipe.model_dump(exclude_none=True)
        trackers.init_trackers("trackers", config=settings)
    except (ValueError, ImportError, RuntimeError) as error:
        raise Problem(f"--log {' '.join(log)}: {' '.join(str(error).split())}") from error
    return trackers
