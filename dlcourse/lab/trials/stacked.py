"""The runs all at once."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.lab.batches import as_tensors, epoch_order
from dlcourse.lab.progress import bar
from dlcourse.lab.trials.noise import DropoutNoise
from dlcourse.lab.trials.results import Trials
from dlcourse.lab.trials.settings import Job
from dlcourse.lab.trials.stack import Stack, StackError, built, each, stacked_forward
from dlcourse.lab.trials.updates import StackedOptimizer

EVALUATED_ROWS = 16_384  # of all replicas in one pass


def run_stacked(job: Job) -> Trials:
    """Train all replicas as one, and return the results.

    Raises StackError where model, loss or transform do not stack.
    """
    replicas = _Replicas(job)
    with contextlib.ExitStack() as block:
        block.enter_context(replicas.noise.installed(replicas.skeleton))
        replicas.prepare()
        progress = block.enter_context(bar(total=job.steps, unit="update"))
        batches = _batches(job)
        for step in range(job.steps):
            x, y = next(batches)
            replicas.update(step, x, y)
            replicas.look(step + 1)
            progress.update()
        return replicas.results()


class _Replicas:
    """All runs of a job, and what they have recorded."""

    def __init__(self, job: Job):
        self.job = job
        self.stack = Stack(built(job.build, job.seeds, len(job.lrs)))
        self.skeleton = self.stack.skeleton
        self.noise = DropoutNoise(job.seeds, len(job.lrs), job.dropout)
        self.ones = torch.ones(job.replicas, dtype=self.stack.flat.dtype)
        self.losses = torch.empty(job.steps, job.replicas)
        self.logged: dict[str, Tensor] = {}
        self.curves: dict[str, list[dict]] = {part: [] for part in job.held_out}
        self.times = job.times()
        self.average: Tensor | None = None

    def prepare(self) -> None:
        job = self.job
        self.forward = stacked_forward(job, self.stack, self.noise)
        self.loss_of = stacked_loss(job.loss_fn, job.targets, job.replicas)
        self.optimizer = StackedOptimizer(job, self.stack)
        self.transform = each(_transform_one(job.grad_transform), job.replicas)
        self.look(0)

    def update(self, step: int, x: Tensor, y: Tensor) -> None:
        """Make update number `step`, from 0, of all replicas."""
        job, stack = self.job, self.stack
        try:
            grads = self.gradients(x, y, step)
            facts = {}
            if job.grad_transform is not None:
                grads, facts = self.transform(*grads)
        except RuntimeError as error:
            if step or job.replicas == 1:
                raise
            raise StackError(str(error).splitlines()[0]) from error
        for name, value in facts.items():
            column = torch.empty(job.steps, job.replicas)
            self.logged.setdefault(name, column)[step] = value
        factor = 1.0 if job.schedule is None else job.schedule(step)
        self.optimizer(stack.flatten(grads), factor)
        if job.ema is not None:
            if self.average is None:
                self.average = stack.flat.clone()
            self.average.lerp_(stack.flat, 1 - job.ema)

    def gradients(self, x: Tensor, y: Tensor, step: int):
        """Return the gradients of the batch; with SAM, those at the perturbed weights."""
        loss, grads = self._pass(x, y)
        self.losses[step] = loss
        if not self.job.sam:
            return grads
        flat = self.stack.flat
        kept = flat.clone()
        buffers = {name: value.clone() for name, value in self.stack.buffers.items()}
        slope = self.stack.flatten(grads)
        length = torch.linalg.vector_norm(slope, dim=1, keepdim=True)
        flat.addcmul_(slope, self.job.sam / torch.where(length == 0, 1, length))
        _, grads = self._pass(x, y)
        flat.copy_(kept)
        for name, value in buffers.items():
            self.stack.buffers[name].copy_(value)
        return grads

    def _pass(self, x: Tensor, y: Tensor):
        self.noise.draw(self.skeleton, x[0])
        loss = self.loss_of(self.forward(self.stack.weights, x), y)
        grads = torch.autograd.grad(
            loss, self.stack.weights, self.ones, materialize_grads=True
        )
        return loss.detach(), grads

    def look(self, updates: int) -> None:
        """Evaluate on the held-out rows, where that is due after so many updates."""
        if updates in self.times:
            for part, rows in self.job.held_out.items():
                self.curves[part].append(self.evaluate(rows, part == "probe"))

    def weights_now(self) -> list[Tensor]:
        """Return the weights to evaluate: the last ones, or their average."""
        if self.average is None:
            return [weight.detach() for weight in self.stack.weights]
        return self.stack.views(self.average)

    def evaluate(self, data, of_each_seed: bool = False) -> dict[str, np.ndarray]:
        """Return {"loss", "accuracy"}, each (lrs, seeds).

        With `of_each_seed` the rows are (seeds, rows, ...), else (rows, ...) for all.
        """
        inputs, targets = as_tensors(data)
        loss_of = stacked_loss(self.job.loss_fn, targets, self.job.replicas)
        loss_sum = torch.zeros(self.job.replicas, dtype=torch.float64)
        right = torch.zeros(self.job.replicas, dtype=torch.float64)
        chunk = max(1, EVALUATED_ROWS // self.job.replicas)
        inputs = self.of_all(inputs, of_each_seed)
        targets = self.of_all(targets, of_each_seed)
        for x, y in zip(inputs.split(chunk, 1), targets.split(chunk, 1), strict=True):
            outputs = self.outputs(x)
            loss_sum += loss_of(outputs, y).double() * y.shape[1]
            right += (outputs.argmax(-1) == y).sum(-1) if outputs.ndim > 2 else math.nan
        return {
            "loss": (loss_sum / inputs.shape[1]).reshape(self.job.shape).numpy(),
            "accuracy": (right / inputs.shape[1]).reshape(self.job.shape).numpy(),
        }

    def of_all(self, rows: Tensor, of_each_seed: bool) -> Tensor:
        """Return rows for every replica: (replicas, rows, ...)."""
        if of_each_seed:
            return rows.repeat(len(self.job.lrs), *[1] * (rows.ndim - 1))
        return rows.expand(self.job.replicas, *rows.shape)

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        """Return the outputs of all replicas in evaluation, of x (replicas, rows, ...)."""
        self.skeleton.eval()
        try:
            return self.forward(self.weights_now(), x)
        finally:
            self.skeleton.train()

    def predict(self, inputs: Tensor, of_each_seed: bool) -> Tensor:
        inputs = self.of_all(inputs, of_each_seed)
        chunk = max(1, EVALUATED_ROWS // self.job.replicas)
        return torch.cat([self.outputs(part) for part in inputs.split(chunk, 1)], 1)

    def networks(self) -> list[nn.Module]:
        """Return every trained model, as one of its own."""
        values = dict(zip(self.stack.names, self.weights_now(), strict=True))
        values |= self.stack.frozen | self.stack.buffers
        models = []
        for number in range(self.job.replicas):
            model = copy.deepcopy(self.skeleton)
            own = {name: value[number] for name, value in values.items()}
            model.load_state_dict(own, strict=False)  # one tensor may have two names
            models.append(model)
        return models

    def results(self) -> Trials:
        job = self.job

        def over_steps(values: Tensor) -> np.ndarray:
            return values.T.reshape(*job.shape, job.steps).numpy()

        weights = {}
        for name, weight in zip(self.stack.names, self.weights_now(), strict=True):
            weights[name] = weight.unflatten(0, job.shape)
        held_out: dict[str, Any] = {
            part: self.evaluate(rows, part == "probe")
            for part, rows in job.held_out.items()
        }
        return Trials(
            job.lrs,
            job.seeds,
            over_steps(self.losses),
            logged={name: over_steps(values) for name, values in self.logged.items()},
            times=self.times,
            curves=join_curves(self.curves) if self.times else {},
            weights=weights,
            forward=self.predict,
            hand_out=self.networks,
            **held_out,
        )


def join_curves(curves: dict[str, list[dict]]) -> dict[str, dict[str, np.ndarray]]:
    """Turn a list of results (lrs, seeds) into arrays (lrs, seeds, times)."""
    joined = {}
    for part, looks in curves.items():
        joined[part] = {}
        for name in ("loss", "accuracy"):
            joined[part][name] = np.stack([look[name] for look in looks], axis=-1)
    return joined


def _transform_one(grad_transform):
    def transform(*grads):
        grads, facts = grad_transform(list(grads))
        return grads, {name: torch.as_tensor(value) for name, value in facts.items()}

    return transform


def _batches(job: Job) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batch of each update: for each seed the rows that `fit` would draw."""
    inputs, targets = job.inputs, job.targets
    first_rows = 0
    if job.own_rows:  # the rows of all seeds below each other
        inputs, targets = inputs.flatten(0, 1), targets.flatten(0, 1)
        first_rows = torch.arange(len(job.seeds)).unsqueeze(1) * job.rows
    for rows in rows_drawn(job.rows, job.seeds, job.batch_size, job.order):
        rows = (rows + first_rows).repeat(len(job.lrs), 1)
        yield _gather(inputs, rows), _gather(targets, rows)


def rows_drawn(
    count: int, seeds: Sequence[int], batch_size: int, order: Callable | None = None
) -> Iterator[Tensor]:
    """Yield the rows of each update, (seeds, batch): those of `count` that `fit` draws,
    or those of `order(seed, epoch)`.
    """
    order = order or functools.partial(epoch_order, count)
    epoch = 0
    while True:
        orders = [order(seed, epoch) for seed in seeds]
        yield from torch.stack(orders).split(batch_size, dim=1)
        epoch += 1


def _gather(values: Tensor, rows: Tensor) -> Tensor:
    """Return values[rows]; for many small rows this is several times faster."""
    return values.index_select(0, rows.ravel()).view(*rows.shape, *values.shape[1:])


def stacked_loss(
    loss_fn: Callable, targets: Tensor, replicas: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function of outputs (replicas, batch, ...) and y (replicas, batch) to
    (replicas,).

    Cross entropy of class numbers is done for all replicas in one call.
    """
    of_each = each(loss_fn, replicas)
    plain = getattr(loss_fn, "func", loss_fn)
    settings = getattr(loss_fn, "keywords", {})
    if plain is not F.cross_entropy or set(settings) - {"label_smoothing"}:
        return of_each
    if getattr(loss_fn, "args", ()) or targets.dtype != torch.int64:
        return of_each
    if targets.min() < 0:  # -100 marks rows that do not count
        return of_each

    def cross_entropy(outputs, y):
        if outputs.ndim != 3 or y.ndim != 2:
            return of_each(outputs, y)
        return F.cross_entropy(outputs.mT, y, reduction="none", **settings).mean(1)

    return cross_entropy
