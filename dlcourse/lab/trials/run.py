"""`run_trials`: one call for all learning rates and seeds."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.lab.trials.looped import OneRun, run_looped
from dlcourse.lab.trials.results import Trials
from dlcourse.lab.trials.settings import Job
from dlcourse.lab.trials.stack import StackError
from dlcourse.lab.trials.stacked import run_stacked

# weights x rows of an update: below this a call costs more than its arithmetic
SURELY_SMALL = 2_000_000
PROBED = 5  # updates of each way, of which all but the first are timed


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
    validate_every: int | None = None,
    order: Callable[[int, int], Tensor] | None = None,
    probe: Callable | None = None,
    stack: bool | None = None,
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
    `validate_every`: also evaluate each so many updates; see `Trials.curves`.
    `order(seed, epoch)`: the rows of one pass as a tensor of numbers, equally many for
    each seed, in place of a new random order. Such runs are always stacked.
    `probe(seed)`: (inputs, targets), rows of its own for each seed, equally many. They
    are judged as the test rows are; the results are `Trials.probe` and a curve.
    `stack`: by default the faster way of the two is chosen: all replicas as one, or one
    by one. Both draw the same numbers and agree within the rounding of float32. Only a
    model or transform with random numbers of its own differs, and it is always stacked.

    Raises ValueError for settings that cannot work. Warns with `CannotStack` where the
    model, the loss or `grad_transform` does not stack, and then runs the replicas one by
    one.
    """
    job = Job(
        build=build,
        data=data,
        seeds=[int(seed) for seed in seeds],
        lrs=_rates(lr),
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
    if order is not None:
        return _in_order(job, stack)
    if stack is not None and not stack:
        return run_looped(job)
    try:
        return _faster(job, always_stack=bool(stack))
    except StackError as error:
        warnings.warn(
            f"this does not stack, so the {job.replicas} runs go one by one: {error}",
            CannotStack,
            stacklevel=2,
        )
    return run_looped(job)


def _in_order(job: Job, stack: bool | None) -> Trials:
    """Run the job in its own order of the rows, which only the stack knows."""
    if stack is not None and not stack:
        raise ValueError("order= needs the stack: leave stack= out")
    try:
        return _faster(job, always_stack=True)
    except StackError as error:
        raise ValueError(f"order= needs a model that stacks: {error}") from error


def _rates(lr: float | Sequence[float]) -> list[float]:
    if isinstance(lr, (int, float)):
        return [float(lr)]
    return [float(value) for value in lr]


def _faster(job: Job, always_stack: bool) -> Trials:
    """Run the job the faster way.

    Small models are stacked. For others the first updates are timed: the stack's, which
    goes on if it is the faster way, and those of one replica alone.
    """
    state = torch.get_rng_state()  # some models take their weights from it
    watch = None
    no_choice = always_stack or job.replicas == 1 or job.steps <= 2 * PROBED
    if not no_choice and not _is_small(job):
        watch = _Race(job)
    torch.set_rng_state(state)
    trials = run_stacked(job, watch)
    if trials is not None:
        return trials
    torch.set_rng_state(state)
    return run_looped(job)


def _is_small(job: Job) -> bool:
    """Tell whether each weight is used once a row, and there are few of them."""
    model = job.build(job.seeds[0])
    shared = any(isinstance(layer, nn.Conv2d) for layer in model.modules())
    values = sum(weight.numel() for weight in model.parameters())
    return not shared and values * job.batch_size <= SURELY_SMALL


class _Race:
    """Asked after each update of the stack, with its seconds: is it the faster way?"""

    def __init__(self, job: Job):
        self.job = job
        self.seconds: list[float] = []

    def __call__(self, step: int, seconds: float) -> bool:
        if step >= PROBED:
            return True
        if step == 0:  # the first update warms up
            self.state = torch.get_rng_state()
            return True
        self.seconds.append(seconds)
        if step < PROBED - 1:
            return True
        if not torch.equal(self.state, torch.get_rng_state()):
            return True  # it draws numbers of its own: the choice would change them
        return min(self.seconds) <= self.job.replicas * seconds_alone(self.job)


def seconds_alone(job: Job) -> float:
    """Return the seconds that an update of one replica takes in a run of its own.

    They are of the processor, not of the clock: so other work on the machine counts
    little.
    """
    short = copy.copy(job)
    short.steps = PROBED + 1
    short.held_out, short.validate_every = {}, None
    short.build = lambda seed: copy.deepcopy(job.build(seed))
    starts: list[float] = []
    state = torch.get_rng_state()
    one = OneRun(short, job.lrs[0], 0)
    step = one.step

    def timed(run, batch):
        starts.append(time.thread_time())
        return step(run, batch)

    one.step = timed
    one.train()
    torch.set_rng_state(state)
    return float(np.diff(starts)[1:].min())
