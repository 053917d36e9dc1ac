"""The one training loop of the course, on HuggingFace Accelerate.

`fit` draws batches and counts updates; a *step* turns one batch into one update. Every
technique that changes training is a step of its own with the signature `step(run, batch)
-> loss`.
"""

from __future__ import annotations

import atexit
import contextlib
import csv
import functools
import json
import math
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, synchronize_rng_states
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dlcourse.lab.progress import bar as progress_bar

CHECKPOINT_FORMAT = 1
FINGERPRINT = ("seed", "batch_size", "rows", "processes")


def use_one_thread() -> None:
    """Set the two switches that make small networks fast on a CPU: one thread, no
    denormals.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


class NonFiniteLossError(RuntimeError):
    """Raised by `fit` when the loss is NaN or infinite."""


# --------------------------------------------------------------------------- what a run leaves


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

    def to_json(self, path: str | Path) -> None:
        """Write the whole history to `path` as JSON."""
        Path(path).write_text(json.dumps(self.as_dict()), encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | Path) -> History:
        """Read what `to_json` wrote."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    def as_dict(self) -> dict:
        """Return the four fields as plain lists and dictionaries."""
        return {
            "loss": list(self.loss),
            "lr": list(self.lr),
            "extra": {name: list(values) for name, values in self.extra.items()},
            "validation": [dict(row) for row in self.validation],
        }


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
        total = torch.zeros((), device=batch.inputs.device)
        rows = len(batch.inputs)
        pieces = min(self.accumulation_steps, rows)
        parts = zip(
            batch.inputs.tensor_split(pieces),
            batch.targets.tensor_split(pieces),
            strict=True,
        )
        for number, (inputs, targets) in enumerate(parts, start=1):
            last = number == pieces
            with (
                contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)
            ):
                loss = self.loss_fn(self.model(inputs), targets)
                loss = loss * (batch.share * len(inputs) / rows)
                self.backward(loss)
            total = total + loss.detach()
        return total


@dataclass
class Batch:
    """The rows of one update that fall to this process.

    `share` is this process's rows over the mean rows a process: 1 when the split is even.
    """

    inputs: Tensor
    targets: Tensor
    share: float = 1.0


def train_step(run: Run, batch: Batch) -> Tensor:
    """Turn one batch into one update, and return the loss before it."""
    run.optimizer.zero_grad()
    loss = run.gradients(batch)
    run.optimizer.step()
    return loss


# --------------------------------------------------------------------------- batches


def epoch_order(rows: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the rows in one epoch: a permutation that `seed` and `epoch`
    fix.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(rows, generator=generator)


def as_tensors(data) -> tuple[Tensor, Tensor]:
    """Return (inputs, targets) of an `ImageData` (its training rows), a `Split` or a
    pair.
    """
    data = getattr(data, "train", data)
    inputs, targets = data.tensors() if hasattr(data, "tensors") else data
    if len(inputs) != len(targets):
        raise ValueError(
            f"{len(inputs)} inputs but {len(targets)} targets: give one target for each input"
        )
    if len(inputs) == 0:
        raise ValueError("the data has no rows: give at least one")
    return inputs, targets


class Batches:
    """Endless batches from (epoch, position) on; a tensor pair is shuffled anew each
    epoch.
    """

    def __init__(
        self, data, batch_size: int, seed: int, accelerator: Accelerator, transform
    ):
        self.seed, self.accelerator, self.transform = seed, accelerator, transform
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.loader = data if isinstance(data, DataLoader) else None
        self.epoch, self.position, self.epoch_rng = 0, 0, None
        if self.loader is None:
            inputs, targets = as_tensors(data)
            self.inputs = inputs.to(accelerator.device)
            self.targets = targets.to(accelerator.device)
            self.rows, self.batch_size = len(inputs), min(batch_size, len(inputs))
            self.length = math.ceil(self.rows / self.batch_size)
        else:
            self.rows, self.length = len(data.dataset), len(data)
            self.batch_size = data.batch_size or batch_size

    def mine(self, inputs: Tensor, targets: Tensor) -> Batch:
        """Keep this process's part of a batch that all processes have drawn alike."""
        rows = len(inputs)
        inputs, targets = (
            t.tensor_split(self.world)[self.rank] for t in (inputs, targets)
        )
        return Batch(inputs, targets, len(inputs) * self.world / rows)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            source = self.tensor_epoch() if self.loader is None else self.loader_epoch()
            for inputs, targets in source:
                if self.transform is not None:
                    inputs, targets = self.transform(inputs, targets)
                self.position += 1
                if self.position == self.length:
                    self.epoch, self.position = self.epoch + 1, 0
                if self.world == 1:
                    yield Batch(inputs, targets)
                else:
                    yield self.whole(self.mine(inputs, targets), inputs, targets)

    def whole(self, batch: Batch, inputs: Tensor, targets: Tensor) -> Batch:
        """Give a process without rows one row that counts nothing: it must still take
        part.
        """
        return batch if len(batch.inputs) else Batch(inputs[:1], targets[:1], 0.0)

    def tensor_epoch(self):
        order = epoch_order(self.rows, self.seed, self.epoch).to(self.inputs.device)
        for rows in order.split(self.batch_size)[self.position :]:
            yield self.inputs.index_select(0, rows), self.targets.index_select(0, rows)

    def loader_epoch(self):
        skip, now = self.position, None
        # resumed inside an epoch: draw the same order again, then go on as before
        if skip:
            now = rng_state()
            set_rng_state(self.epoch_rng)
        else:
            if self.world > 1:  # dropout on uneven shares has drawn unevenly
                synchronize_rng_states(["torch"])
            self.epoch_rng = rng_state()
        device = self.accelerator.device
        for number, (inputs, targets) in enumerate(self.loader):
            if number < skip:
                continue
            if now is not None:
                set_rng_state(now)
                now = None
            yield inputs.to(device), targets.to(device)


# --------------------------------------------------------------------------- randomness and files


def rng_state() -> dict:
    """Return the state of every global random generator, in types that load without code."""
    name, keys, *rest = np.random.get_state()
    version, state, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": [version, list(state), gauss],
    }


def set_rng_state(state: dict) -> None:
    """Set every global random generator to what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


@contextlib.contextmanager
def replacing(path: str | Path):
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


def save_atomically(state: dict, path: str | Path) -> None:
    """Write `state` to `path` as torch does, in one step."""
    with replacing(path) as file:
        torch.save(state, file)


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


class _Interrupt:
    """Turn the first Ctrl-C into a flag, so that the step in progress can end."""

    def __enter__(self):
        self.seen = False
        self.previous = None
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number, frame):
        if self.seen:  # the second one does not wait
            raise KeyboardInterrupt
        self.seen = True

    def __exit__(self, *_):
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)


# --------------------------------------------------------------------------- the loop


@functools.cache  # registered once a process
def _close_group_at_exit() -> None:
    """Close the group of CPU processes as Python ends: left open, gloo's threads may
    abort it.
    """

    @atexit.register
    def close() -> None:
        if torch.distributed.is_initialized():  # else the script has closed it
            torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _keep_precision() -> Iterator[None]:
    """Put the process's precision back at the end: Accelerate has one for all
    Accelerators.
    """
    shared = AcceleratorState._shared_state
    before = shared.get(
        "_mixed_precision", os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    )
    try:
        yield
    finally:
        if shared:
            shared["_mixed_precision"] = before


def make_accelerator(
    mixed_precision: str | None = None, cpu: bool | None = None
) -> Accelerator:
    """Return an Accelerator of the asked precision, also where one of another precision
    exists.

    By default the precision is that of the process: of an earlier Accelerator, or what
    `accelerate launch` was given. The loop divides the loss itself (by rows, not by
    micro-batches), so Accelerate must not.
    """
    shared = AcceleratorState._shared_state
    if shared and mixed_precision:
        # else Accelerate refuses another one
        shared["_mixed_precision"] = mixed_precision
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=bool(cpu))
    if accelerator.distributed_type is DistributedType.MULTI_CPU:
        _close_group_at_exit()
    accelerator.gradient_accumulation_steps = 1
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise ValueError(
            f"float16 training does nothing on {accelerator.device}: Accelerate runs float32 "
            "there without a word. Use mixed_precision='bf16', or a GPU."
        )
    return accelerator


@_keep_precision()
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

    `data`: an `ImageData`, a `Split`, a pair (inputs, targets) or a `DataLoader`.
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
    pieces = accumulation_steps or int(
        os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", 1)
    )
    _check_settings(steps, epochs, batch_size, pieces, checkpoint, save_every, resume)
    if watch is not None and validation is None:
        raise ValueError(
            "watch= looks at validation results: give validation=, the rows to use"
        )
    accelerator = make_accelerator(mixed_precision, cpu)
    batches = Batches(data, batch_size, seed, accelerator, transform)
    if checkpoint and batches.loader is not None and batches.loader.persistent_workers:
        warnings.warn(
            "the DataLoader has persistent_workers=True: their random draws go on from epoch to "
            "epoch and are in no checkpoint, so a resumed run differs where the data set draws. "
            "Use persistent_workers=False to continue to the bit.",
            stacklevel=3,
        )
    steps = steps if steps is not None else epochs * batches.length

    original, was_training = model, model.training
    first_rates = [
        group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups
    ]
    model = accelerator.prepare_model(model.train())
    raw_optimizer = optimizer
    if accelerator.scaler is not None:
        optimizer = accelerator.prepare_optimizer(optimizer)
    run = Run(model, optimizer, loss_fn, accelerator, pieces)
    history = History()
    facts = dict(
        zip(
            FINGERPRINT,
            (seed, batches.batch_size, batches.rows, batches.world),
            strict=True,
        )
    )
    if resume and Path(checkpoint).exists():
        saved = load_checkpoint(checkpoint)
        _restore(saved, facts, original, raw_optimizer, run, batches, history, checkpoint)
        if hasattr(watch, "load_state_dict") and saved.get("watch"):
            watch.load_state_dict(saved["watch"])
        if saved.get("ended"):
            steps = run.step

    def save(ended: bool = False) -> None:
        states = [rng_state()]
        if batches.world > 1:
            states = _gather(states)
        if accelerator.is_main_process:
            save_atomically(
                {
                    "format": CHECKPOINT_FORMAT,
                    "facts": facts,
                    "step": run.step,
                    "model": original.state_dict(),
                    "optimizer": raw_optimizer.state_dict(),
                    "scaler": accelerator.scaler and accelerator.scaler.state_dict(),
                    "rng": states,
                    "epoch": batches.epoch,
                    "position": batches.position,
                    "epoch_rng": batches.epoch_rng,
                    "history": history.as_dict(),
                    "watch": watch.state_dict() if hasattr(watch, "state_dict") else None,
                    "ended": ended,
                },
                checkpoint,
            )
        # else another process may look before the file is there
        accelerator.wait_for_everyone()

    try:
        _loop(
            run, batches, history, steps, schedule, first_rates, step, validation, validate_every,
            save if checkpoint else None, save_every, progress, stop_on_nan, watch,
        )  # fmt: skip
    finally:
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        original.train(was_training)
        optimizer.zero_grad()
    return history


def _check_settings(
    steps, epochs, batch_size, pieces, checkpoint, save_every, resume
) -> None:
    if (steps is None) == (epochs is None):
        raise ValueError("give either steps= (updates) or epochs=, and not both")
    for name, value in (("steps", steps), ("epochs", epochs), ("batch_size", batch_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
    if not 1 <= pieces <= batch_size:
        raise ValueError(
            f"accumulation_steps={pieces} with batch_size={batch_size}: each micro-batch needs at "
            "least one row, so give a number from 1 to batch_size"
        )
    if checkpoint is None and (save_every or resume):
        raise ValueError("save_every= and resume= need checkpoint=, the file to use")
    if checkpoint is not None and not resume and Path(checkpoint).exists():
        raise FileExistsError(
            f"{checkpoint} exists: pass resume=True to continue that run, or delete the file"
        )


def _restore(saved, facts, model, optimizer, run, batches, history, path) -> None:
    for name, now in facts.items():
        if saved["facts"].get(name) != now:
            raise ValueError(
                f"{path} was written with {name}={saved['facts'].get(name)}, this run has "
                f"{name}={now}: use the same, or start anew under another file name"
            )
    try:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} belongs to another model or optimizer: {error}"
        ) from error
    if run.accelerator.scaler is not None and saved["scaler"]:
        run.accelerator.scaler.load_state_dict(saved["scaler"])
    run.step = saved["step"]
    batches.epoch, batches.position = saved["epoch"], saved["position"]
    batches.epoch_rng = saved["epoch_rng"]
    for name, value in saved["history"].items():
        setattr(history, name, value)
    set_rng_state(saved["rng"][run.accelerator.process_index])


def _gather(values: list) -> list:
    """Return the lists of all processes, joined in the order of their ranks."""
    gathered = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, values)
    return [value for part in gathered for value in part]


def _loop(
    run, batches, history, steps, schedule, first_rates, step, validation, validate_every,
    save, save_every, progress, stop_on_nan, watch,
) -> None:  # fmt: skip
    groups, losses, rates = run.optimizer.param_groups, [], []
    validate_every = validate_every or steps
    on_cpu = run.accelerator.device.type == "cpu"
    check_every = 1 if on_cpu else 20  # reading a loss stalls a GPU
    outer = sys.exc_info()[1]  # what the caller is handling, if anything
    shown = progress if run.accelerator.is_main_process else False
    bar = progress_bar(show=shown, total=steps, initial=run.step, unit="update")
    ended = False

    def flush() -> None:
        if not losses:
            return
        values = torch.tensor([float(value) for value in losses], dtype=torch.float64)
        if batches.world > 1:  # each process holds its share of the mean
            device = run.accelerator.device
            values = (
                run.accelerator.reduce(values.float().to(device), "mean").double().cpu()
            )
        history.loss += values.tolist()
        history.lr += rates
        for name, column in history.extra.items():
            numbers = [None if value is None else float(value) for value in column]
            history.extra[name] = numbers + [None] * (len(history.loss) - len(numbers))
        losses.clear(), rates.clear()

    def record(loss: Tensor) -> None:
        losses.append(loss.item() if on_cpu else loss)
        rates.append(groups[0]["lr"])
        if run.logged:
            done = len(history.loss) + len(losses)
            for name, value in run.logged.items():
                column = history.extra.setdefault(name, [])
                column.extend([None] * (done - 1 - len(column)))
                column.append(
                    value.item() if isinstance(value, Tensor) and on_cpu else value
                )
            run.logged = {}

    def check_finite() -> None:
        if on_cpu and batches.world == 1 and math.isfinite(losses[-1]):
            return
        recent = (
            losses[-check_every:] if on_cpu else [float(x) for x in losses[-check_every:]]
        )
        # the mean: so all processes raise, and none waits for another
        if batches.world > 1:
            recent = torch.tensor(recent, device=run.accelerator.device)
            recent = run.accelerator.reduce(recent, "mean").tolist()
        for back, loss in enumerate(reversed(recent)):
            if not math.isfinite(loss):
                norms = [n for n in history.extra.get("grad_norm", []) if n is not None]
                norm = f"{float(norms[-1]):.3g}" if norms else "not logged"
                raise NonFiniteLossError(
                    f"the loss is {loss} at update {run.step - back}, learning rate "
                    f"{rates[-1 - back]:.3g}, last gradient norm {norm}. Lower the learning rate, "
                    "clip the gradient, or look for a NaN in the data."
                )

    try:
        with _Interrupt() as interrupt:
            for batch in batches:
                if run.step >= steps:
                    break
                if schedule is not None:
                    factor = schedule(run.step)
                    for group, first in zip(groups, first_rates, strict=True):
                        group["lr"] = first * factor
                loss = step(run, batch)
                run.step += 1
                record(loss)
                if stop_on_nan and (run.step % check_every == 0 or run.step == steps):
                    check_finite()
                bar.update()
                if run.step % 20 == 0 and not bar.disable:
                    bar.set_postfix(loss=f"{float(losses[-1]):.3f}", refresh=False)
                if validation is not None and (
                    run.step % validate_every == 0 or run.step == steps
                ):
                    row = evaluate(
                        run.model, validation, run.loss_fn, accelerator=run.accelerator
                    )
                    history.validation.append({"step": run.step, **row})
                    ended = watch is not None and bool(watch(run, history.validation[-1]))
                stop = interrupt.seen
                # stop together
                if batches.world > 1 and (run.step % 10 == 0 or run.step == steps):
                    flag = torch.tensor(float(stop), device=run.accelerator.device)
                    stop = run.accelerator.reduce(flag, "sum").item() > 0
                elif batches.world > 1:
                    stop = False
                last = ended or run.step == steps
                if save and (stop or last or (save_every and not run.step % save_every)):
                    flush()
                    save(ended)
                if stop:
                    raise KeyboardInterrupt(f"stopped after update {run.step}")
                if last:
                    break
    finally:
        bar.close()
        if batches.world == 1 or sys.exc_info()[1] is outer:
            flush()


# --------------------------------------------------------------------------- evaluation


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    batch_size: int = 1024,
    accelerator: Accelerator | None = None,
) -> dict:
    """Return {"loss": mean, "accuracy": from 0 to 1, "count": rows} of `model` on `data`.

    With several processes each takes a part, and every row counts once.
    """
    if data is not None and hasattr(data, "validation"):
        raise ValueError("name the rows to evaluate on: data.validation or data.test")
    if isinstance(data, DataLoader):
        batches = list(data)
        data = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    inputs, targets = as_tensors(data)
    device = next(model.parameters()).device
    rank, world = (
        (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    )
    # DDP would send buffers in a forward pass, which a rank without rows skips
    if world > 1:
        model = accelerator.unwrap_model(model)
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    bounds = torch.arange(len(inputs)).tensor_split(world)[rank]
    for rows in bounds.split(batch_size):
        if len(rows) == 0:
            continue
        x, y = inputs[rows].to(device), targets[rows].to(device)
        outputs = model(x)
        right = (
            (outputs.argmax(-1) == y).sum()
            if outputs.ndim > 1
            else torch.tensor(math.nan)
        )
        sums += torch.tensor([float(loss_fn(outputs, y)) * len(x), float(right), len(x)])
    model.train(was_training)
    if world > 1:
        sums = accelerator.reduce(sums.to(device, torch.float32), "sum").double().cpu()
    loss, right, count = sums.tolist()
    return {"loss": loss / count, "accuracy": right / count, "count": int(count)}
