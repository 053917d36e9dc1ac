"""Learning-rate strategy: schedules as pure functions of the update, and how to find the
rate.

A schedule is a function `factor(t)` of the number of updates done, t = 0, 1, 2, ... The
optimizer's own learning rate is multiplied by it. Nothing is stored, so plotting a
schedule never changes it.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Schedule = Callable[[int], float]

# --------------------------------------------------------------------------- schedules


def constant() -> Schedule:
    """Return factor(t) = 1 for every update t >= 0.

    Invariant: the sum of the factors has no bound, and neither has the sum of their
    squares.
    """

    def factor(t: int) -> float:
        _check_update(t)
        return 1.0

    return factor


def exponential_decay(gamma: float) -> Schedule:
    """Return factor(t) = gamma ** t for updates t >= 0; gamma in (0, 1].

    Raises ValueError for other values.
    Invariant: for gamma < 1 all factors together add up to 1 / (1 - gamma), and no more.

    >>> exponential_decay(0.5)(3)
    0.125
    """
    if not 0 < gamma <= 1:
        raise ValueError(
            f"gamma={gamma!r}: give a number above 0, at most 1, such as 0.999"
        )

    def factor(t: int) -> float:
        _check_update(t)
        return gamma**t

    return factor


def inverse_time_decay(k: float) -> Schedule:
    """Return factor(t) = 1 / (1 + k t) for updates t >= 0; k at least 0, per update.

    After 1 / k updates the rate is a half. Raises ValueError for other values.
    Invariants: for k > 0 it meets Robbins and Monro's conditions (1951): the factors add
    up to any bound, slowly, and their squares to a finite sum.

    >>> inverse_time_decay(0.1)(10)
    0.5
    """
    _check_rate("k", k)

    def factor(t: int) -> float:
        _check_update(t)
        return 1 / (1 + k * t)

    return factor


def inverse_sqrt(shift: float = 1.0) -> Schedule:
    """Return factor(t) = sqrt(shift / (shift + t)) for updates t >= 0; shift above 0, in
    updates.

    After 3 * shift updates the rate is a half. Raises ValueError for other values.
    Invariant: the sum of the factors has no bound, and neither has the sum of their
    squares (so the theory of Robbins and Monro, 1951, does not cover it); the rate itself
    goes to 0.

    >>> inverse_sqrt(100)(300)
    0.5
    """
    if not 0 < shift < math.inf:
        raise ValueError(
            f"shift={shift!r}: give a number of updates above 0, such as 100"
        )

    def factor(t: int) -> float:
        _check_update(t)
        return math.sqrt(shift / (shift + t))

    return factor


def polynomial_decay(total: int, power: float = 1.0, end: float = 0.0) -> Schedule:
    """Return factor(t) = end + (1 - end) (1 - t / total) ** power, and `end` from t =
    total on.

    total: updates, at least 1. power: above 0; 1 is a straight line. end: in [0, 1].
    Raises ValueError for other values.
    Invariants: factor(0) is 1, it never rises, and stays at `end`; with end=0 it is
    PyTorch's PolynomialLR.

    >>> polynomial_decay(10)(5)
    0.5
    """
    if isinstance(total, bool) or not isinstance(total, int) or total < 1:
        raise ValueError(
            f"total={total!r}: give the updates of the run, a whole number above 0"
        )
    if not 0 < power < math.inf:
        raise ValueError(f"power={power!r}: give a number above 0; 1 is a straight line")
    if not 0 <= end <= 1:
        raise ValueError(f"end={end!r}: give the last factor, from 0 to 1")

    def factor(t: int) -> float:
        _check_update(t)
        return end + (1 - end) * (1 - min(t, total) / total) ** power

    return factor


def _check_update(t: int) -> None:
    if t < 0:
        raise ValueError(f"t={t!r}: updates are counted from 0")


def _check_rate(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value!r}: give a number of at least 0, such as 0.01")


# --------------------------------------------------------------------------- how large


def scale_lr(
    lr: float, batch_size: int, new_batch_size: int, rule: str = "linear"
) -> float:
    """Return the learning rate for another batch size, where `lr` suits `batch_size`.

    lr: above 0. Both sizes: rows an update, over all micro-batches and processes, at
    least 1. rule: "linear", as usual for SGD (Goyal et al. 2017), or "sqrt", as usual for
    Adam (Malladi et al. 2022). Both are rules for batches below the critical size;
    neither is a law.
    Raises ValueError for other values.
    Invariants: scaled back it is `lr`; scaled by k and by m it is scaled by k m.

    >>> scale_lr(0.02, 16, 256), scale_lr(0.02, 16, 256, rule="sqrt")
    (0.32, 0.08)
    """
    if not 0 < lr < math.inf:
        raise ValueError(f"lr={lr!r}: give a number above 0, such as 0.01")
    for name, size in (("batch_size", batch_size), ("new_batch_size", new_batch_size)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(
                f"{name}={size!r}: give the rows an update, a whole number above 0"
            )
    ratio = new_batch_size / batch_size
    if rule == "linear":
        return lr * ratio
    if rule == "sqrt":
        return lr * math.sqrt(ratio)
    raise ValueError(f"rule={rule!r}: choose 'linear' (SGD) or 'sqrt' (Adam)")


def noise_floor(lr: float, curvature: float = 1.0, noise: float = 1.0) -> float:
    """Return the mean squared distance to the minimum at which SGD with a fixed rate ends
    up.

    The loss is curvature / 2 * w**2, and each gradient is off by an independent error of
    standard deviation `noise`. Then E[w**2] obeys m = (1 - lr curvature)**2 m + lr**2
    noise**2.

    curvature: above 0. noise: at least 0. lr: above 0 and below 2 / curvature, else the
    distance grows without bound.
    Raises ValueError for other values.
    Invariant: with curvature and noise 1 it is lr / (2 - lr).
    """
    if not 0 < curvature < math.inf or not 0 <= noise < math.inf:
        raise ValueError(
            f"curvature={curvature!r}, noise={noise!r}: give one above 0, one from 0"
        )
    if not 0 < lr < 2 / curvature:
        raise ValueError(
            f"lr={lr!r}: with curvature {curvature:g} there is an end only for rates above 0 and "
            f"below 2 / curvature = {2 / curvature:g}"
        )
    return lr * noise**2 / (curvature * (2 - lr * curvature))


def max_curvature(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    *,
    weight_decay: float = 0.0,
    iterations: int = 500,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> float:
    """Return the largest eigenvalue of the loss's Hessian at the model's weights.

    Power iteration with products of the Hessian and a vector (Pearlmutter 1994): each
    costs two backward passes, and the Hessian is never formed. `weight_decay` is added,
    as SGD adds it to the gradient. It stops after `iterations`, or when an estimate moves
    by less than `tolerance`, relative. The model runs in the mode it is in, and its
    `.grad` stays as it is.

    Gradient descent with a fixed rate is stable near a minimum below 2 / max_curvature.
    Raises ValueError where nothing is trained or the loss is no single finite number.
    Invariants: the largest algebraically, also where the most negative one is larger in
    size;
    `weight_decay` shifts it by just that.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise ValueError(
            "no parameter of the model is trained: set requires_grad on some"
        )
    loss = loss_fn(model(inputs), targets)
    if loss.ndim or not torch.isfinite(loss):
        raise ValueError(
            "the loss must be one finite number: loss_fn returns the mean over rows"
        )
    # a weight that the loss, or the gradient, does not depend on has derivatives of 0
    grads = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
    gradient = torch.cat([grad.reshape(-1) for grad in grads])

    def product(vector: Tensor) -> Tensor:
        if not gradient.requires_grad:  # the loss is a plane
            return torch.zeros_like(vector)
        parts = torch.autograd.grad(
            gradient, weights, vector, retain_graph=True, materialize_grads=True
        )
        return torch.cat([part.reshape(-1) for part in parts]).detach()

    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(gradient.numel(), generator=generator).to(gradient)
    largest = _power_iteration(product, start, iterations, tolerance)
    if largest < 0:  # the largest in size is negative: shift all by it, and look again
        shift = -largest
        shifted = _power_iteration(
            lambda v: product(v) + shift * v, start, iterations, tolerance
        )
        largest = shifted - shift
    return largest + weight_decay


def _power_iteration(product, vector: Tensor, iterations: int, tolerance: float) -> float:
    """Return the eigenvalue of largest size of the symmetric matrix behind `product`."""
    value = 0.0
    for _ in range(iterations):
        vector = vector / vector.norm().clamp(min=1e-300)
        image = product(vector)
        before, value = value, float(vector @ image)
        if abs(value - before) <= tolerance * abs(value):
            break
        vector = image
    return value


# --------------------------------------------------------------------------- the range test


@dataclass(frozen=True)
class LRRange:
    """What a range test saw: one entry an update in `lrs`, `losses` and `smoothed`.

    `stopped_at` is the learning rate at which the loss had run away, or None where it
    never did.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    stopped_at: float | None

    @property
    def lowest(self) -> float:
        """The learning rate at which the smoothed loss was lowest: the loss rises beyond
        it.
        """
        return self.lrs[min(range(len(self.lrs)), key=lambda i: self.smoothed[i])]

    @property
    def suggestion(self) -> float:
        """A rate to start from: a third of `lowest`, which was already at the edge.

        With Adam a tenth is safer.
        """
        return self.lowest / 3


def lr_range_test(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    lr_min: float = 1e-4,
    lr_max: float = 10.0,
    steps: int = 100,
    smoothing: float = 0.9,
    stop_factor: float = 3.0,
) -> LRRange:
    """Train for `steps` updates while the rate grows from lr_min to lr_max, then undo it
    all.

    Smith's range test (2017), with a rate that grows by the same factor each update.
    `batches` yields (inputs, targets) and is begun again when it ends. The groups of the
    optimizer keep the ratio of their rates; the first one has the rates recorded.
    `smoothing` in [0, 1) is the weight of the past in the running mean. The test ends
    early where the running mean exceeds `stop_factor` > 1 times its lowest value, or is
    not finite.

    Raises ValueError for settings that cannot work and for batches that are empty.
    Invariants: weights, buffers, gradients, mode, optimizer and torch's random state are
    afterwards what they were, to the bit, also where the test raises.
    """
    if not 0 < lr_min < lr_max < math.inf:
        raise ValueError(
            f"lr_min={lr_min!r}, lr_max={lr_max!r}: give 0 < lr_min < lr_max"
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ValueError(
            f"steps={steps!r}: give a whole number of at least 2, such as 100"
        )
    if not 0 <= smoothing < 1 or not stop_factor > 1:
        raise ValueError(
            f"{smoothing=}, {stop_factor=}: give one from 0 to below 1, one above 1"
        )
    groups = optimizer.param_groups
    if not all(group["lr"] > 0 for group in groups):
        raise ValueError("a group of the optimizer has the rate 0: give each one above 0")
    ratios = [group["lr"] / groups[0]["lr"] for group in groups]
    kept = [(weight, weight.grad) for weight in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    model_state = copy.deepcopy(model.state_dict())
    optimizer_state = copy.deepcopy(optimizer.state_dict())
    devices = {weight.device for weight, _ in kept if weight.device.type == "cuda"}
    lrs, losses, smoothed, running, stopped_at = [], [], [], 0.0, None
    try:
        with torch.random.fork_rng(devices=devices):
            model.train()
            for weight, _ in kept:
                weight.grad = None
            rows = itertools.islice(_again_and_again(batches), steps)
            for t, (inputs, targets) in enumerate(rows):
                lr = lr_min * (lr_max / lr_min) ** (t / (steps - 1))
                for group, ratio in zip(groups, ratios, strict=True):
                    group["lr"] = lr * ratio
                optimizer.zero_grad()
                loss = loss_fn(model(inputs), targets)
                loss.backward()
                optimizer.step()
                running = smoothing * running + (1 - smoothing) * loss.item()
                mean = running / (1 - smoothing ** (t + 1))
                if not math.isfinite(mean) or mean > stop_factor * min([mean, *smoothed]):
                    stopped_at = lr
                    break
                lrs.append(lr)
                losses.append(loss.item())
                smoothed.append(mean)
    finally:
        model.load_state_dict(model_state)
        optimizer.load_state_dict(optimizer_state)
        for weight, grad in kept:
            weight.grad = grad
        for module, training in modes:
            module.training = training
    if not lrs:
        raise ValueError(
            "the loss was not finite at the first update: look at the data first"
        )
    return LRRange(lrs, losses, smoothed, stopped_at)


def _again_and_again(batches):
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "batches is empty, or a generator that has ended: give a list or a DataLoader"
            )
