"""The runs one by one, each with `fit`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dlcourse.lab.progress import bar
from dlcourse.lab.training import evaluate, fit
from dlcourse.lab.trials.noise import DropoutNoise
from dlcourse.lab.trials.results import Trials
from dlcourse.lab.trials.settings import Job
from dlcourse.lab.trials.stacked import join_curves
from dlcourse.lab.trials.updates import soft_threshold_


def run_looped(job: Job) -> Trials:
    """Train one replica after the other, and return the results."""
    losses = np.full((*job.shape, job.steps), np.nan, dtype=np.float32)
    logged: dict[str, np.ndarray] = {}
    results = {part: _table(job.shape) for part in job.held_out}
    looks = {part: [_table(job.shape) for _ in job.times()] for part in job.held_out}
    replicas: list[tuple[nn.Module, dict[str, Tensor]]] = []
    with bar(total=job.replicas, unit="run") as progress:
        for i, lr in enumerate(job.lrs):
            for j in range(len(job.seeds)):
                one = OneRun(job, lr, j)
                history = one.train()
                losses[i, j, : len(history.loss)] = history.loss
                for name, values in history.extra.items():
                    column = logged.setdefault(name, np.full_like(losses, np.nan))
                    column[i, j, : len(values)] = values
                for part in job.held_out:
                    _enter(results[part], (i, j), one.results[part])
                    for table, row in zip(looks[part], one.looks[part], strict=True):
                        _enter(table, (i, j), row)
                replicas.append((one.model, one.trained))
                progress.update()
    return Trials(
        job.lrs,
        job.seeds,
        losses,
        logged=logged,
        stacked=False,
        times=job.times(),
        curves=join_curves(looks) if job.times() else {},
        weights=_joined_weights(job, replicas),
        forward=_prediction(job, replicas),
        validation=results.get("validation", {}),
        test=results.get("test", {}),
        probe=results.get("probe", {}),
    )


class OneRun:
    """The run of one learning rate and of the seed at place `number`."""

    def __init__(self, job: Job, lr: float, number: int):
        self.job, self.number, self.seed = job, number, job.seeds[number]
        self.model = job.build(self.seed)
        self.noise = DropoutNoise([self.seed], 1, job.dropout)
        self.looks: dict[str, list[dict]] = {part: [] for part in job.held_out}
        self.average: list[Tensor] | None = None
        self.weights = [
            weight for weight in self.model.parameters() if weight.requires_grad
        ]
        weights, decay = self.weights, job.weight_decay
        if job.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(
                weights, lr, job.momentum, weight_decay=decay
            )
        elif job.optimizer == "adam":
            self.optimizer = torch.optim.Adam(weights, lr, weight_decay=decay)
        else:
            self.optimizer = torch.optim.AdamW(weights, lr, weight_decay=decay)

    def train(self):
        """Train the model, keep what is learned in `trained`, and put the model back."""
        job = self.job
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        with self.noise.installed(self.model):
            self._look(0)
            history = fit(
                self.model, job.rows_for(self.number), self.optimizer, steps=job.steps,
                batch_size=job.batch_size, loss_fn=job.loss_fn,
                schedule=job.schedule, step=self.step, seed=self.seed, cpu=True,
                progress=False, stop_on_nan=False,
            )  # fmt: skip
            self.results = self._held_out()
        with self._averaged():
            state = self.model.state_dict()
            self.trained = {name: value.clone() for name, value in state.items()}
        self.model.load_state_dict(before)
        return history

    def step(self, run, batch) -> Tensor:
        """Make one update, in the order: gradient, transform, step, penalty, average."""
        job = self.job
        self.noise.draw_one(self.model, batch.inputs)
        run.optimizer.zero_grad()
        loss = run.gradients(batch)
        if job.sam:
            self._perturbed_gradients(run, batch)
        if job.grad_transform is not None:
            self._transform(run, job.grad_transform)
        run.optimizer.step()
        self._penalise(run.optimizer.param_groups[0]["lr"])
        if job.ema is not None:
            self._average(job.ema)
        self._look(run.step + 1)
        return loss

    def _perturbed_gradients(self, run, batch) -> None:
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        kept = [weight.detach().clone() for weight in self.weights]
        lengths = [torch.linalg.vector_norm(weight.grad) for weight in self.weights]
        length = torch.stack(lengths).norm()
        factor = self.job.sam / torch.where(length == 0, 1, length)
        for weight in self.weights:
            weight.detach().add_(weight.grad * factor)
        run.optimizer.zero_grad()
        self.noise.draw_one(self.model, batch.inputs)
        run.gradients(batch)
        for weight, before in zip(self.weights, kept, strict=True):
            weight.detach().copy_(before)
        for buffer, before in buffers:
            buffer.copy_(before)

    def _transform(self, run, transform) -> None:
        weights = [weight for weight in self.weights if weight.grad is not None]
        grads, facts = transform([weight.grad for weight in weights])
        for weight, grad in zip(weights, grads, strict=True):
            weight.grad = grad
        for name, value in facts.items():
            run.log(name, value)

    @torch.no_grad()
    def _penalise(self, lr: float) -> None:
        for weight in self.weights:
            if self.job.l1:
                soft_threshold_(weight, lr * self.job.l1)
            if self.job.l2:
                weight.div_(1 + lr * self.job.l2)

    @torch.no_grad()
    def _average(self, share: float) -> None:
        if self.average is None:
            self.average = [weight.detach().clone() for weight in self.weights]
        for average, weight in zip(self.average, self.weights, strict=True):
            average.lerp_(weight, 1 - share)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within the block, the model has the average of its weights, if there is one."""
        if self.average is None:
            yield
            return
        kept = [weight.detach().clone() for weight in self.weights]
        for weight, average in zip(self.weights, self.average, strict=True):
            weight.detach().copy_(average)
        yield
        for weight, before in zip(self.weights, kept, strict=True):
            weight.detach().copy_(before)

    def _look(self, updates: int) -> None:
        if updates in self.job.times():
            for part, row in self._held_out().items():
                self.looks[part].append(row)

    def _held_out(self) -> dict[str, dict]:
        with self._averaged():
            found = {}
            for part in self.job.held_out:
                rows = self.job.held_out_for(part, self.number)
                found[part] = evaluate(self.model, rows, self.job.loss_fn)
            return found


def _table(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    return {name: np.full(shape, np.nan) for name in ("loss", "accuracy")}


def _enter(table: dict[str, np.ndarray], place: tuple[int, int], row: dict) -> None:
    for name, values in table.items():
        values[place] = row[name]


def _joined_weights(job: Job, replicas: list) -> dict[str, Tensor]:
    weights = {}
    model, _ = replicas[0]
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            every = torch.stack([trained[name] for _, trained in replicas])
            weights[name] = every.unflatten(0, job.shape)
    return weights


def _prediction(job: Job, replicas: list):
    @torch.no_grad()
    def predict(inputs: Tensor, of_each_seed: bool) -> Tensor:
        outputs = []
        for number, (model, trained) in enumerate(replicas):
            x = inputs[number % len(job.seeds)] if of_each_seed else inputs
            was_training = model.training
            outputs.append(functional_call(model.eval(), trained, x))
            model.train(was_training)
        return torch.stack(outputs)

    return predict
