"""The same training run over many seeds at once, and what may be said of the results.

All replicas (one for each pair of learning rate and seed) are stacked: each parameter gets a
leading dimension, and one batched forward and backward pass serves them all.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from dlcourse.lab.training import as_tensors, epoch_order, evaluate, fit

OPTIMIZERS = ("sgd", "adam", "adamw")


class CannotStack(UserWarning):
    """Warns that a model ran as a loop over replicas, because it cannot be stacked."""


@dataclass
class Trials:
    """The results of runs over learning rates x seeds.

    `train_loss`: (lrs, seeds, steps). `logged[name]`: (lrs, seeds, steps).
    `validation` and `test`: {"loss", "accuracy"}, each (lrs, seeds); empty where not asked for.
    `stacked`: whether the replicas ran as one.
    """

    lrs: list[float]
    seeds: list[int]
    train_loss: np.ndarray
    validation: dict[str, np.ndarray] = field(default_factory=dict)
    test: dict[str, np.ndarray] = field(default_factory=dict)
    logged: dict[str, np.ndarray] = field(default_factory=dict)
    stacked: bool = True

    def best_lr(self, metric: str = "accuracy") -> int:
        """Return the index of the learning rate that is best on the validation rows, on average."""
        if not self.validation:
            raise ValueError("no validation results: give run_trials validation=")
        values = self.validation[metric].mean(axis=1)
        if metric == "accuracy":
            return int(np.nanargmax(values))
        return int(np.nanargmin(np.where(np.isfinite(values), values, np.inf)))


def run_trials(
    build: Callable[[int], nn.Module],
    data,
    *,
    seeds: Sequence[int],
    lr: float | Sequence[float],
    steps: int,
    batch_size: int = 32,
    optimizer: str = "sgd",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    schedule: Callable[[int], float] | None = None,
    grad_transform: Callable[[list[Tensor]], tuple[list[Tensor], dict]] | None = None,
    validation=None,
    test=None,
    stack: bool = True,
) -> Trials:
    """Train `build(seed)` for every learning rate and seed, all at once, and return the results.

    Each replica has the weights of its seed and the batches that `fit(seed=...)` would draw, so
    that two techniques run on the same seeds are pairs. A replica that diverges goes on with NaN
    and harms no other.

    `grad_transform(grads)` gets one replica's gradients (a list of tensors, without the leading
    dimension) and returns (grads, {"name": number}); it must be free of side effects.
    `optimizer`: "sgd" (with `momentum`), "adam" (L2 in the gradient) or "adamw" (decoupled).
    `schedule(t)`: the factor on the learning rate at update t, from 0.

    Raises ValueError for unknown optimizers and empty settings. Warns with `CannotStack` where
    the model does not stack, and then runs the replicas one by one.
    """
    lrs = [float(lr)] if isinstance(lr, (int, float)) else [float(value) for value in lr]
    seeds = [int(seed) for seed in seeds]
    if not lrs or not seeds or steps < 1:
        raise ValueError("give at least one learning rate, one seed and one step")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer={optimizer!r}: choose one of {', '.join(OPTIMIZERS)}")
    if optimizer != "sgd" and momentum:
        raise ValueError(f"momentum= is for 'sgd'; {optimizer!r} has betas of its own")
    inputs, targets = as_tensors(data)
    job = _Job(
        build, inputs, targets, seeds, lrs, steps, min(batch_size, len(inputs)), optimizer,
        momentum, weight_decay, loss_fn, schedule, grad_transform, validation, test,
    )  # fmt: skip
    if stack:
        try:
            return _run_stacked(job)
        except _StackError as error:
            warnings.warn(
                f"this model does not stack, so the {len(lrs) * len(seeds)} runs go one by one: "
                f"{error}",
                CannotStack,
                stacklevel=2,
            )
    return _run_loop(job)


@dataclass
class _Job:
    build: Callable
    inputs: Tensor
    targets: Tensor
    seeds: list[int]
    lrs: list[float]
    steps: int
    batch_size: int
    optimizer: str
    momentum: float
    weight_decay: float
    loss_fn: Callable
    schedule: Callable | None
    grad_transform: Callable | None
    validation: object
    test: object


class _StackError(RuntimeError):
    pass


# --------------------------------------------------------------------------- all at once


def _run_stacked(job: _Job) -> Trials:
    grid = [(lr, seed) for lr in job.lrs for seed in job.seeds]
    replicas = len(grid)
    models = [job.build(seed) for _, seed in grid]
    skeleton = models[0]
    try:
        params, buffers = stack_module_state(models)
    except (RuntimeError, ValueError) as error:
        raise _StackError(str(error).splitlines()[0]) from error
    names = list(params)
    weights = [params[name].detach().requires_grad_() for name in names]
    base_lr = torch.tensor([lr for lr, _ in grid], dtype=torch.float64)
    update = _Optimizer(job, weights, base_lr)

    def forward(values, buffer_values, x):
        return functional_call(skeleton, (dict(zip(names, values, strict=True)), buffer_values), x)

    def loss_one(values, buffer_values, x, y):
        return job.loss_fn(forward(values, buffer_values, x), y)

    loss_all = torch.vmap(loss_one, randomness="different")
    transform = torch.vmap(lambda *grads: job.grad_transform(list(grads)))
    losses = torch.empty(job.steps, replicas)
    logged: dict[str, Tensor] = {}
    order = _orders(job)
    for step in range(job.steps):
        rows = next(order)  # (seeds, batch)
        rows = rows.repeat(len(job.lrs), 1)
        x, y = job.inputs[rows], job.targets[rows]
        try:
            loss = loss_all(weights, buffers, x, y)
        except RuntimeError as error:
            if step:
                raise
            raise _StackError(str(error).splitlines()[0]) from error
        grads = list(torch.autograd.grad(loss.sum(), weights))
        if job.grad_transform is not None:
            grads, facts = transform(*grads)
            for name, value in facts.items():
                logged.setdefault(name, torch.empty(job.steps, replicas))[step] = value
        update(grads, 1.0 if job.schedule is None else job.schedule(step))
        losses[step] = loss.detach()

    results = {}
    for part, rows in (("validation", job.validation), ("test", job.test)):
        if rows is not None:
            results[part] = _evaluate_stacked(job, skeleton, forward, weights, buffers, rows)
    shape = (len(job.lrs), len(job.seeds))
    return Trials(
        job.lrs,
        job.seeds,
        losses.T.reshape(*shape, job.steps).numpy(),
        logged={name: v.T.reshape(*shape, job.steps).numpy() for name, v in logged.items()},
        **results,
    )


def _orders(job: _Job):
    """Yield (seeds, batch) row numbers: for each seed what `fit` with that seed would draw."""
    epoch = 0
    while True:
        orders = torch.stack([epoch_order(len(job.inputs), seed, epoch) for seed in job.seeds])
        yield from orders.split(job.batch_size, dim=1)
        epoch += 1


class _Optimizer:
    """SGD, Adam and AdamW on stacked weights, with a learning rate for each replica."""

    def __init__(self, job: _Job, weights: list[Tensor], base_lr: Tensor):
        self.job, self.weights, self.base_lr, self.count = job, weights, base_lr, 0
        self.first: list[Tensor] = []
        self.second = [torch.zeros_like(w) for w in weights] if job.optimizer != "sgd" else []

    @torch.no_grad()
    def __call__(self, grads: list[Tensor], factor: float) -> None:
        job = self.job
        self.count += 1
        lr = self.base_lr * factor
        if job.weight_decay:
            if job.optimizer == "adamw":
                for weight in self.weights:
                    weight.mul_(_spread(1 - lr * job.weight_decay, weight))
            else:
                grads = [g + job.weight_decay * w for g, w in zip(grads, self.weights, strict=True)]
        if job.optimizer == "sgd":
            if job.momentum:
                if not self.first:
                    self.first = [g.clone() for g in grads]
                else:
                    torch._foreach_mul_(self.first, job.momentum)
                    torch._foreach_add_(self.first, grads)
                grads = self.first
            for weight, grad in zip(self.weights, grads, strict=True):
                weight.addcmul_(_spread(-lr, weight), grad)
            return
        if not self.first:
            self.first = [torch.zeros_like(g) for g in grads]
        correction1, correction2 = 1 - 0.9**self.count, 1 - 0.999**self.count
        for weight, grad, m, v in zip(self.weights, grads, self.first, self.second, strict=True):
            m.lerp_(grad, 0.1)
            v.mul_(0.999).addcmul_(grad, grad, value=0.001)
            denominator = (v.sqrt() / math.sqrt(correction2)).add_(1e-8)
            weight.addcmul_(_spread(-lr / correction1, weight), m / denominator)


def _spread(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


@torch.no_grad()
def _evaluate_stacked(job, skeleton, forward, weights, buffers, data) -> dict[str, np.ndarray]:
    inputs, targets = as_tensors(data)
    replicas = len(weights[0])
    loss_sum, right = torch.zeros(replicas, dtype=torch.float64), torch.zeros(replicas)
    was_training = skeleton.training
    skeleton.eval()
    chunk = max(1, 16_384 // replicas)
    for x, y in zip(inputs.split(chunk), targets.split(chunk), strict=True):
        outputs = torch.vmap(forward, in_dims=(0, 0, None))(weights, buffers, x)
        losses = torch.vmap(job.loss_fn, in_dims=(0, None))(outputs, y)
        loss_sum += losses.double() * len(x)
        if outputs.ndim > 2:
            right += (outputs.argmax(-1) == y).sum(-1)
        else:
            right += math.nan
    skeleton.train(was_training)
    shape = (len(job.lrs), len(job.seeds))
    return {
        "loss": (loss_sum / len(inputs)).reshape(shape).numpy(),
        "accuracy": (right.double() / len(inputs)).reshape(shape).numpy(),
    }


# --------------------------------------------------------------------------- one by one


def _run_loop(job: _Job) -> Trials:
    shape = (len(job.lrs), len(job.seeds))
    losses = np.full((*shape, job.steps), np.nan, dtype=np.float32)
    logged: dict[str, np.ndarray] = {}
    results = {
        part: {name: np.full(shape, np.nan) for name in ("loss", "accuracy")}
        for part in ("validation", "test")
        if getattr(job, part) is not None
    }
    for i, lr in enumerate(job.lrs):
        for j, seed in enumerate(job.seeds):
            model = job.build(seed)
            history = _fit_one(job, model, lr, seed)
            losses[i, j, : len(history.loss)] = history.loss
            for name, values in history.extra.items():
                column = logged.setdefault(name, np.full_like(losses, np.nan))
                column[i, j, : len(values)] = values
            for part in results:
                row = evaluate(model, getattr(job, part), job.loss_fn)
                for name in ("loss", "accuracy"):
                    results[part][name][i, j] = row[name]
    return Trials(job.lrs, job.seeds, losses, logged=logged, stacked=False, **results)


def _fit_one(job: _Job, model: nn.Module, lr: float, seed: int):
    if job.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            model.parameters(), lr=lr, momentum=job.momentum, weight_decay=job.weight_decay
        )
    else:
        kind = torch.optim.Adam if job.optimizer == "adam" else torch.optim.AdamW
        optimizer = kind(model.parameters(), lr=lr, weight_decay=job.weight_decay)

    def step(run, batch):
        run.optimizer.zero_grad()
        loss = run.gradients(batch)
        if job.grad_transform is not None:
            weights = [weight for weight in run.model.parameters() if weight.grad is not None]
            grads, facts = job.grad_transform([weight.grad for weight in weights])
            for weight, grad in zip(weights, grads, strict=True):
                weight.grad = grad
            for name, value in facts.items():
                run.log(name, value)
        run.optimizer.step()
        return loss

    return fit(
        model, (job.inputs, job.targets), optimizer, steps=job.steps, batch_size=job.batch_size,
        loss_fn=job.loss_fn, schedule=job.schedule, step=step, seed=seed, cpu=True,
        progress=False, stop_on_nan=False,
    )  # fmt: skip


# --------------------------------------------------------------------------- what may be said


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, from `n` values."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Comparison(Interval):
    """The mean of paired differences a - b, its interval, and in how many pairs a was larger."""

    wins: int = 0


def mean(values) -> float:
    """Return the mean of `values`, which must be finite."""
    return float(_finite(values).mean())


def interval(
    values, level: float = 0.95, method: str = "t", resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the mean of `values` (n,) with its confidence interval, by Student's t or bootstrap.

    Raises ValueError for fewer than two values, values that are not finite, or a `level` outside
    (0, 1).
    """
    values = _finite(values)
    if len(values) < 2:
        raise ValueError("an interval needs at least two values: run more seeds")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: give a share between 0 and 1, such as 0.95")
    center = float(values.mean())
    if method == "t":
        from scipy.stats import t

        error = values.std(ddof=1) / math.sqrt(len(values))
        half = float(t.ppf(0.5 + level / 2, len(values) - 1) * error)
        return Interval(center, center - half, center + half, len(values))
    if method == "bootstrap":
        rng = np.random.default_rng(seed)
        draws = rng.integers(0, len(values), (resamples, len(values)))
        low, high = np.quantile(values[draws].mean(axis=1), [0.5 - level / 2, 0.5 + level / 2])
        return Interval(center, float(low), float(high), len(values))
    raise ValueError(f"method={method!r}: choose 't' or 'bootstrap'")


def paired(a, b, level: float = 0.95, method: str = "t") -> Comparison:
    """Compare two arms run on the same seeds: the mean of a - b with its interval.

    Raises ValueError where the two have different lengths.
    """
    a, b = _finite(a), _finite(b)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values are no pairs: run both on the same seeds")
    result = interval(a - b, level, method)
    return Comparison(result.mean, result.low, result.high, result.n, int((a > b).sum()))


def best_each(a: Trials, b: Trials, metric: str = "accuracy", level: float = 0.95) -> Comparison:
    """Compare two techniques, each at the learning rate that is best for it, on the test rows.

    The rates are chosen by the validation mean, so the test rows have no part in the choice.
    """
    if a.seeds != b.seeds:
        raise ValueError("the two were run on different seeds: run both on the same ones")
    if not a.test or not b.test:
        raise ValueError("no test results: give run_trials test=")
    return paired(a.test[metric][a.best_lr(metric)], b.test[metric][b.best_lr(metric)], level)


def _finite(values) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(f"{bad} of {len(values)} values are not finite: count those runs apart")
    return values
