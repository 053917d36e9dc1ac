"""The same training run over many seeds at once, and what may be said of the results.

All replicas (one for each pair of learning rate and seed) are stacked: each parameter
gets a leading dimension, and one batched forward and backward pass serves them all. A
chain of linear layers and activations runs as batched matrix products, any other model
under `torch.vmap`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from dlcourse.lab.models import ACTIVATIONS, MLP
from dlcourse.lab.progress import bar
from dlcourse.lab.training import as_tensors, epoch_order, evaluate, fit

OPTIMIZERS = ("sgd", "adam", "adamw")
ELEMENTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity,
)  # fmt: skip


class CannotStack(UserWarning):
    """Warns that the replicas ran in a loop, because they cannot be stacked."""


@dataclass
class Trials:
    """The results of runs over learning rates x seeds.

    `train_loss`: (lrs, seeds, steps). `logged[name]`: (lrs, seeds, steps).
    `validation` and `test`: {"loss", "accuracy"}, each (lrs, seeds); empty where not
    asked for.
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
        """Return the index of the learning rate that is best on the validation rows, on
        average.
        """
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
    """Train `build(seed)` for every learning rate and seed, all at once, and return the
    results.

    Each replica has the weights of its seed and the batches that `fit(seed=...)` would
    draw, so that two techniques run on the same seeds are pairs. A replica that diverges
    goes on with NaN and harms no other. Stacking pays for small networks, where calls
    cost more than arithmetic; for wide layers and large batches `stack=False` is as fast
    or faster.

    `grad_transform(grads)` gets one replica's gradients (a list of tensors, without the
    leading dimension) and returns (grads, {"name": number}); it must be free of side
    effects.
    `optimizer`: "sgd" (with `momentum`), "adam" (L2 in the gradient) or "adamw"
    (decoupled).
    `schedule(t)`: the factor on the learning rate at update t, from 0.

    Raises ValueError for unknown optimizers and empty settings. Warns with `CannotStack`
    where the model, the loss or `grad_transform` does not stack, and then runs the
    replicas one by one.
    """
    lrs = [float(lr)] if isinstance(lr, (int, float)) else [float(value) for value in lr]
    seeds = [int(seed) for seed in seeds]
    if not lrs or not seeds or steps < 1:
        raise ValueError("give at least one learning rate, one seed and one step")
    if optimizer not in OPTIMIZERS:
        raise ValueError(
            f"optimizer={optimizer!r}: choose one of {', '.join(OPTIMIZERS)}"
        )
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
                f"this does not stack, so the {len(lrs) * len(seeds)} runs go one by one: {error}",
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
    replicas = len(job.lrs) * len(job.seeds)
    stack = _Stack(job)
    forward, loss_of = _forward(job, stack), _loss_function(job, job.targets)
    lr = torch.tensor(job.lrs, dtype=stack.flat.dtype).repeat_interleave(len(job.seeds))
    update = _Optimizer(job, stack.flat, lr.unsqueeze(1))
    transform = torch.vmap(_transform_one(job.grad_transform))
    losses, ones = torch.empty(job.steps, replicas), torch.ones_like(lr)
    logged: dict[str, Tensor] = {}
    order = _orders(job)
    for step in bar(range(job.steps), unit="update"):
        rows = next(order)  # (seeds, batch)
        if len(job.lrs) > 1:
            rows = rows.repeat(len(job.lrs), 1)
        x, y = _gather(job.inputs, rows), _gather(job.targets, rows)
        try:
            loss = loss_of(forward(stack.weights, x), y)
            grads = torch.autograd.grad(loss, stack.weights, ones)
            facts = {}
            if job.grad_transform is not None:
                grads, facts = transform(*grads)
        except RuntimeError as error:
            if step:
                raise
            raise _StackError(str(error).splitlines()[0]) from error
        for name, value in facts.items():
            logged.setdefault(name, torch.empty(job.steps, replicas))[step] = value
        update(stack.flatten(grads), 1.0 if job.schedule is None else job.schedule(step))
        losses[step] = loss.detach()

    results = {}
    for part, rows in (("validation", job.validation), ("test", job.test)):
        if rows is not None:
            results[part] = _evaluate_stacked(job, stack, forward, rows)
    shape = (len(job.lrs), len(job.seeds))
    return Trials(
        job.lrs,
        job.seeds,
        losses.T.reshape(*shape, job.steps).numpy(),
        logged={
            name: v.T.reshape(*shape, job.steps).numpy() for name, v in logged.items()
        },
        **results,
    )


class _Stack:
    """The parameters of all replicas: `weights`, each (replicas, ...), are views of
    `flat`.

    `flat` is (replicas, parameters a replica), so that an optimizer has one tensor to
    update.
    """

    def __init__(self, job: _Job):
        models = [job.build(seed) for _ in job.lrs for seed in job.seeds]
        self.skeleton = models[0].train()
        try:
            params, self.buffers = stack_module_state(models)
        except (RuntimeError, ValueError) as error:
            raise _StackError(str(error).splitlines()[0]) from error
        trained = {name: p.detach() for name, p in params.items() if p.requires_grad}
        self.names = list(trained)
        self.frozen = {name: p for name, p in params.items() if name not in trained}
        if len({p.dtype for p in trained.values()}) != 1:
            raise _StackError("its trained parameters are not all of one dtype")
        self.flat = torch.cat([p.reshape(len(models), -1) for p in trained.values()], 1)
        parts = self.flat.split([p[0].numel() for p in trained.values()], dim=1)
        self.weights = [
            part.view(p.shape).detach().requires_grad_()
            for part, p in zip(parts, trained.values(), strict=True)
        ]
        self.grad = torch.empty_like(self.flat)

    def flatten(self, grads) -> Tensor:
        """Return the gradients in the shape of `flat`, in a buffer that the next call
        reuses.
        """
        parts = [grad.reshape(len(self.flat), -1) for grad in grads]
        return torch.cat(parts, 1, out=self.grad)


def _transform_one(grad_transform):
    def transform(*grads):
        grads, facts = grad_transform(list(grads))
        return grads, {name: torch.as_tensor(value) for name, value in facts.items()}

    return transform


def _gather(values: Tensor, rows: Tensor) -> Tensor:
    """Return values[rows]; for many small rows this is several times faster."""
    return values.index_select(0, rows.ravel()).view(*rows.shape, *values.shape[1:])


def _orders(job: _Job):
    """Yield (seeds, batch) row numbers: for each seed what `fit` with that seed would
    draw.
    """
    epoch = 0
    while True:
        orders = torch.stack(
            [epoch_order(len(job.inputs), seed, epoch) for seed in job.seeds]
        )
        yield from orders.split(job.batch_size, dim=1)
        epoch += 1


def _forward(job: _Job, stack: _Stack) -> Callable[[list[Tensor], Tensor], Tensor]:
    """Return a function of the stacked weights and x (replicas, batch, ...) to all
    outputs.
    """
    chain = _chain(stack)
    if chain is not None:
        # for the model's own words on inputs that do not fit
        stack.skeleton(job.inputs[:1])
        return chain

    def forward_one(values, frozen, buffers, x):
        weights = dict(zip(stack.names, values, strict=True))
        return functional_call(stack.skeleton, (weights, frozen, buffers), x)

    forward = torch.vmap(forward_one, randomness="different")
    return lambda weights, x: forward(weights, stack.frozen, stack.buffers, x)


def _chain(stack: _Stack) -> Callable[[list[Tensor], Tensor], Tensor] | None:
    """Return the same function as batched matrix products, or None where the model is no
    chain.

    It holds the values as (replicas, units, batch): so the gradients of the weights come
    out contiguous, and the softmax runs over a dimension that is not the last, which is
    many times faster for few classes.
    """
    pieces = _pieces(stack.skeleton)
    position = {name: number for number, name in enumerate(stack.names)}
    names = {id(p): name for name, p in stack.skeleton.named_parameters()}
    steps: list[Any] = []
    for piece in pieces:
        if type(piece) is nn.Linear:
            pair = [names[id(p)] for p in (piece.weight, piece.bias) if p is not None]
            if any(name not in position for name in pair):  # frozen
                return None
            steps.append([position[name] for name in pair])
        elif isinstance(piece, nn.Module) and type(piece) not in ELEMENTWISE:
            return None
        elif type(piece) in ELEMENTWISE or piece in ACTIVATIONS.values():
            steps.append(piece)
        else:  # somebody's function, which may mix units or rows but never replicas
            steps.append(_one_by_one(piece))
    if not steps:
        return None

    def forward(weights, x):
        x = x.flatten(2).mT
        for step in steps:
            if not isinstance(step, list):
                x = step(x)
            elif len(step) == 2:
                x = torch.baddbmm(weights[step[1]].unsqueeze(2), weights[step[0]], x)
            else:
                x = torch.bmm(weights[step[0]], x)
        return x.mT

    return forward


def _one_by_one(activation) -> Callable[[Tensor], Tensor]:
    activation = torch.vmap(activation, randomness="different")
    return lambda x: activation(x.mT).mT


def _pieces(model: nn.Module) -> list:
    """Return the layers and functions that a model applies to flat rows, or [] if it has
    others.
    """
    own_forward = any("forward" in vars(module) for module in model.modules())
    if own_forward or any(_has_hooks(module) for module in model.modules()):
        return []
    if type(model) is MLP:
        hidden = [piece for layer in model.layers for piece in (layer, model.activation)]
        return [*hidden, model.head]
    if type(model) is nn.Sequential and len(model) and _is_flatten(model[0]):
        return list(model)[1:]
    return []


def _has_hooks(module: nn.Module) -> bool:
    names = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
    )
    return any(getattr(module, name) for name in names)


def _is_flatten(module: nn.Module) -> bool:
    return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)


def _loss_function(job: _Job, targets: Tensor) -> Callable[[object, Tensor], Tensor]:
    """Return a function of outputs (replicas, batch, ...) and y (replicas, batch) to
    (replicas,).

    Cross entropy of class numbers is done for all replicas in one call.
    """
    each = torch.vmap(job.loss_fn, randomness="different")
    if (
        job.loss_fn is not F.cross_entropy
        or targets.ndim != 1
        or targets.dtype != torch.int64
    ):
        return each
    if targets.min() < 0:  # -100 marks rows that do not count
        return each

    def cross_entropy(outputs, y):
        if outputs.ndim != 3:
            return each(outputs, y)
        return F.cross_entropy(outputs.mT, y, reduction="none").mean(1)

    return cross_entropy


class _Optimizer:
    """SGD, Adam and AdamW on the flat weights of all replicas, with learning rates `lr`
    (n, 1).
    """

    def __init__(self, job: _Job, weight: Tensor, lr: Tensor):
        self.job, self.weight, self.lr, self.count = job, weight, lr, 0
        if job.optimizer != "sgd" or job.momentum:
            self.first = torch.zeros_like(weight)
        if job.optimizer != "sgd":
            self.second, self.scratch = torch.zeros_like(weight), torch.empty_like(weight)

    @torch.no_grad()
    def __call__(self, grad: Tensor, factor: float) -> None:
        """Make one update; `grad` is changed on the way."""
        job, weight = self.job, self.weight
        self.count += 1
        lr = self.lr if factor == 1 else self.lr * factor
        if job.weight_decay and job.optimizer == "adamw":
            weight.mul_(1 - lr * job.weight_decay)
        elif job.weight_decay:
            grad.add_(weight, alpha=job.weight_decay)
        if job.optimizer == "sgd":
            if job.momentum:
                grad = self.first.mul_(job.momentum).add_(grad)
            weight.addcmul_(lr, grad, value=-1)
            return
        correction1, correction2 = 1 - 0.9**self.count, 1 - 0.999**self.count
        self.first.lerp_(grad, 0.1)
        self.second.mul_(0.999).addcmul_(grad, grad, value=0.001)
        torch.sqrt(self.second, out=self.scratch).div_(math.sqrt(correction2)).add_(1e-8)
        torch.div(self.first, self.scratch, out=self.scratch)
        weight.addcmul_(lr, self.scratch, value=-1 / correction1)


@torch.no_grad()
def _evaluate_stacked(job: _Job, stack: _Stack, forward, data) -> dict[str, np.ndarray]:
    inputs, targets = as_tensors(data)
    loss_of, replicas = _loss_function(job, targets), len(stack.flat)
    loss_sum = torch.zeros(replicas, dtype=torch.float64)
    right = torch.zeros(replicas, dtype=torch.float64)
    stack.skeleton.eval()
    chunk = max(1, 16_384 // replicas)
    for x, y in zip(inputs.split(chunk), targets.split(chunk), strict=True):
        x, y = x.expand(replicas, *x.shape), y.expand(replicas, *y.shape)
        outputs = forward(stack.weights, x)
        loss_sum += loss_of(outputs, y).double() * y.shape[1]
        right += (outputs.argmax(-1) == y).sum(-1) if outputs.ndim > 2 else math.nan
    stack.skeleton.train()
    shape = (len(job.lrs), len(job.seeds))
    return {
        "loss": (loss_sum / len(inputs)).reshape(shape).numpy(),
        "accuracy": (right / len(inputs)).reshape(shape).numpy(),
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
    runs = bar(total=len(job.lrs) * len(job.seeds), unit="run")
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
            runs.update()
    runs.close()
    return Trials(job.lrs, job.seeds, losses, logged=logged, stacked=False, **results)


def _fit_one(job: _Job, model: nn.Module, lr: float, seed: int):
    if job.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=lr,
            momentum=job.momentum,
            weight_decay=job.weight_decay,
        )
    else:
        kind = torch.optim.Adam if job.optimizer == "adam" else torch.optim.AdamW
        optimizer = kind(model.parameters(), lr=lr, weight_decay=job.weight_decay)

    def step(run, batch):
        run.optimizer.zero_grad()
        loss = run.gradients(batch)
        if job.grad_transform is not None:
            weights = [
                weight for weight in run.model.parameters() if weight.grad is not None
            ]
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
    """The mean of paired differences a - b, its interval, and in how many pairs a was
    larger.
    """

    wins: int = 0


def mean(values) -> float:
    """Return the mean of `values`, which must be finite."""
    return float(_finite(values).mean())


def interval(
    values, level: float = 0.95, method: str = "t", resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the mean of `values` (n,) with its confidence interval, by Student's t or
    bootstrap.

    Raises ValueError for fewer than two values, values that are not finite, or a `level`
    outside (0, 1).
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
        low, high = np.quantile(
            values[draws].mean(axis=1), [0.5 - level / 2, 0.5 + level / 2]
        )
        return Interval(center, float(low), float(high), len(values))
    raise ValueError(f"method={method!r}: choose 't' or 'bootstrap'")


def paired(a, b, level: float = 0.95, method: str = "t") -> Comparison:
    """Compare two arms run on the same seeds: the mean of a - b with its interval.

    Raises ValueError where the two have different lengths.
    """
    a, b = _finite(a), _finite(b)
    if len(a) != len(b):
        raise ValueError(
            f"{len(a)} and {len(b)} values are no pairs: run both on the same seeds"
        )
    result = interval(a - b, level, method)
    return Comparison(result.mean, result.low, result.high, result.n, int((a > b).sum()))


def best_each(
    a: Trials, b: Trials, metric: str = "accuracy", level: float = 0.95
) -> Comparison:
    """Compare two techniques, each at the learning rate that is best for it, on the test
    rows.

    The rates are chosen by the validation mean, so the test rows have no part in the
    choice.
    """
    if a.seeds != b.seeds:
        raise ValueError("the two were run on different seeds: run both on the same ones")
    if not a.test or not b.test:
        raise ValueError("no test results: give run_trials test=")
    return paired(
        a.test[metric][a.best_lr(metric)], b.test[metric][b.best_lr(metric)], level
    )


def _finite(values) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(
            f"{bad} of {len(values)} values are not finite: count those runs apart"
        )
    return values
