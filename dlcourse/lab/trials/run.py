"""`run_trials`: one call for all learning rates and seeds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.lab.trials.looped import run_looped
from dlcourse.lab.trials.results import Trials
from dlcourse.lab.trials.settings import Job
from dlcourse.lab.trials.stack import StackError
from dlcourse.lab.trials.stacked import run_stacked


class CannotStack(UserWarning):
    """Warns that the replicas ran in a loop, because they cannot be stacked."""


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
    l1: float = 0.0,
    l2: float = 0.0,
    dropout: float | None = None,
    ema: float | None = None,
    sam: float = 0.0,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    schedule: Callable[[int], float] | None = None,
    grad_transform: Callable[[list[Tensor]], tuple[list[Tensor], dict]] | None = None,
    validation=None,
    test=None,
    validate_every: int | Sequence[int] | None = None,
    order: Callable[[int, int], Tensor] | None = None,
    probe: Callable | None = None,
    stack: bool = True,
) -> Trials:
    """Train `build(seed)` for every learning rate and seed, all at once, and return the
    results.

    Each replica has the weights of its seed and the batches that `fit(seed=...)` would
    draw, so that two techniques run on the same seeds are pairs. A replica that diverges
    goes on with NaN and harms no other.

    `data`: what `fit` takes, or a function of the seed that returns (inputs, targets),
    for rows of its own for each seed.
    `optimizer`: "sgd" (with `momentum`), "adam" (L2 in the gradient) or "adamw"
    (decoupled).
    `l1`, `l2`: strengths of an elastic net, as proximal steps after each step of SGD;
    neither is part of any loss.
    `dropout`: the share that all dropout layers of the model drop; None leaves them as
    they are. The seed decides what they drop.
    `ema`: evaluate the exponential moving average of the weights, which keeps this share
    at each update.
    `sam`: the radius of sharpness-aware minimisation: two gradients an update.
    `schedule(t)`: the factor on the learning rate at update t, from 0.
    `grad_transform(grads)` gets one replica's gradients (a list of tensors, without the
    leading dimension) and returns (grads, {"name": number}); it must be free of side
    effects.
    `validate_every`: also evaluate each so many updates, or after those of a list; see
    `Trials.curves`.
    `order(seed, epoch)`: the rows of one pass as a tensor of numbers, equally many for
    each seed, in place of a new random order.
    `probe(seed)`: (inputs, targets), rows of its own for each seed, equally many. They
    are judged as the test rows are; the results are `Trials.probe` and a curve.
    `stack`: all replicas as one; False trains them one by one, which takes longer. Both
    draw the same numbers and agree within the rounding of float32; only a model or
    transform with random numbers of its own differs.

    Raises ValueError for settings that cannot work. Warns with `CannotStack` where the
    model, the loss or `grad_transform` does not stack, and then runs the replicas one by
    one.
    """
    job = Job(
        build=build,
        data=data,
        seeds=[int(seed) for seed in seeds],
        lrs=np.atleast_1d(np.asarray(lr, dtype=float)).tolist(),
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        momentum=momentum,
        weight_decay=weight_decay,
        l1=l1,
        l2=l2,
        dropout=dropout,
        ema=ema,
        sam=sam,
        loss_fn=loss_fn,
        schedule=schedule,
        grad_transform=grad_transform,
        validation=validation,
        test=test,
        validate_every=validate_every,
        order=order,
        probe=probe,
    )
    state = torch.get_rng_state()  # some models take their weights from it
    if stack:
        try:
            return run_stacked(job)
        except StackError as error:
            warnings.warn(
                f"this does not stack, so the {job.replicas} runs go one by one: {error}",
                CannotStack,
                stacklevel=2,
            )
            torch.set_rng_state(state)
    return run_looped(job)
