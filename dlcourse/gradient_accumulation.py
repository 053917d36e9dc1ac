"""Gradient accumulation: the gradient of a large batch from micro-batches that fit into
memory.

The mean over all items is the mean of the micro-batches' means, each weighted by its
items. So the update is that of the large batch, and only the activations of one
micro-batch are in memory.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# --------------------------------------------------------------------------- sizes


def effective_batch_size(
    micro_batch_size: int, accumulation_steps: int = 1, processes: int = 1
) -> int:
    """Return the items behind one update: the product of three whole numbers of at least
    1.

    Raises ValueError for anything else.

    >>> effective_batch_size(8, accumulation_steps=4, processes=2)
    64
    """
    for name, value in (
        ("micro_batch_size", micro_batch_size),
        ("accumulation_steps", accumulation_steps),
        ("processes", processes),
    ):
        _check_whole(name, value)
    return micro_batch_size * accumulation_steps * processes


def split_microbatches(
    inputs: Tensor, targets: Tensor, micro_batches: int | Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """Cut a batch into (inputs, targets) pairs along the first dimension, in order.

    inputs: (n, ...). targets: (n, ...). micro_batches: how many, from 1 to n, whose sizes
    then differ by at most one; or their sizes, each at least 1, with the sum n.

    Raises ValueError where the rows do not match or cannot be cut so.

    Invariants: the pieces joined are the batch, and no piece is empty.
    """
    rows = len(inputs)
    if len(targets) != rows:
        raise ValueError(
            f"{rows} inputs but {len(targets)} targets: give one target for each"
        )
    if isinstance(micro_batches, int):
        _check_whole("micro_batches", micro_batches)
        if micro_batches > rows:
            raise ValueError(
                f"{micro_batches} micro-batches of {rows} rows leave one empty: ask for {rows} "
                "at most"
            )
        pieces = inputs.tensor_split(micro_batches), targets.tensor_split(micro_batches)
    else:
        sizes = list(micro_batches)
        for size in sizes:
            _check_whole("each size in micro_batches", size)
        if sum(sizes) != rows:
            raise ValueError(
                f"sizes {sizes} add up to {sum(sizes)}, but the batch has {rows} rows: make them "
                "add up"
            )
        pieces = inputs.split(sizes), targets.split(sizes)
    return list(zip(*pieces, strict=True))


# --------------------------------------------------------------------------- a batch at hand


def accumulate_gradients(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    micro_batches: int | Sequence[int] = 1,
    *,
    count: Callable[[Tensor], int] = len,
    total: float | None = None,
    no_sync: Callable[[], contextlib.AbstractContextManager] | None = None,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Tensor:
    """Add the gradient of the mean loss over all items of a batch to `.grad`; return that
    loss.

    loss_fn(outputs, targets): the mean over the items, a scalar. micro_batches: how many,
    or their sizes, as for `split_microbatches`. count(targets): the items in a
    micro-batch: its rows, or the tokens that are not masked. total: what to divide by,
    above 0; None is the items of this batch. With several processes it is the items of
    all of them over the number of processes, since DDP takes the mean. no_sync: makes the
    context that leaves the all-reduce out, used for all but the last micro-batch; None
    takes the model's own, as DDP has it. backward: what to call on each share of the
    loss, such as `accelerator.backward`.

    Raises ValueError where no item counts or the loss is no scalar.

    Invariants: without batch norm or dropout the result depends neither on the number nor
    on the sizes of the micro-batches, up to rounding; with one micro-batch it is that of
    a plain backward pass, to the bit; a micro-batch without items adds nothing.
    """
    parts = split_microbatches(inputs, targets, micro_batches)
    items = [int(count(part_targets)) for _, part_targets in parts]
    if total is None:
        total = sum(items)
    if not total > 0:
        raise ValueError(
            f"there are {total} items to take the mean over: at least one must count"
        )
    if no_sync is None:
        no_sync = getattr(model, "no_sync", contextlib.nullcontext)
    assert no_sync is not None

    mean_loss: Any = 0.0
    for number, (part_inputs, part_targets) in enumerate(parts):
        last = number == len(parts) - 1
        with contextlib.nullcontext() if last else no_sync():
            loss = _mean_loss(model, loss_fn, part_inputs, part_targets, items[number])
            share = loss * (items[number] / total)
            backward(share)
        mean_loss = mean_loss + share.detach()
    return mean_loss


# --------------------------------------------------------------------------- a stream


class GradientAccumulator:
    """Sums gradients over micro-batches as they come, and divides by all items at the
    end.

    For streams whose number of items is not known before the last micro-batch. Between an
    `optimizer.zero_grad()` and the `optimizer.step()`, call `add` for each micro-batch
    and then `finish`.

    loss_fn, count, no_sync, backward: as for `accumulate_gradients`.
    Attributes: `items` and `micro_batches` since the last `finish`.

    The sums are larger than the mean by the number of items, which may overflow in
    float16: use `accumulate_gradients` there.

    Invariants: `finish` leaves what one backward pass over all rows would, up to
    rounding, in any order and with any sizes, also in a last short window;
    `load_state_dict` in the middle of a window goes on to the bit.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        *,
        count: Callable[[Tensor], int] = len,
        no_sync: Callable[[], contextlib.AbstractContextManager] | None = None,
        backward: Callable[[Tensor], None] = Tensor.backward,
    ) -> None:
        self.model = model
        self.loss_fn = loss_fn
        self.count = count
        self.backward = backward
        self.no_sync = no_sync or getattr(model, "no_sync", None)
        self._reset()

    def _reset(self) -> None:
        self.items = 0
        self.micro_batches = 0
        self.loss_sum = 0.0
        self.synced = False

    def add(self, inputs: Tensor, targets: Tensor, last: bool = False) -> Tensor:
        """Add the gradient of the summed loss of one micro-batch; return its mean loss.

        `last` says that no further one follows in this window: only then do processes
        exchange gradients. One process needs not say it.

        Raises RuntimeError where old gradients are still there, or the window has had its
        last.
        """
        if self.synced:
            raise RuntimeError(
                "this window has had its last micro-batch: call finish() first"
            )
        if not self.micro_batches:
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None and parameter.grad.any():
                    raise RuntimeError(
                        f"{name} still has a gradient: call optimizer.zero_grad() before the first "
                        "micro-batch of a window"
                    )
        n = int(self.count(targets))
        context = self.no_sync
        if context is None or last:
            context = contextlib.nullcontext
        with context():
            loss = _mean_loss(self.model, self.loss_fn, inputs, targets, n)
            self.backward(loss * n)
        self.items += n
        self.micro_batches += 1
        self.loss_sum += float(loss.detach()) * n
        self.synced = last
        return loss.detach()

    def finish(self) -> float:
        """Divide the gradients by the items of all processes; return this process's mean
        loss.

        Raises RuntimeError where no item came, or where several processes were not told
        the last.
        """
        items = self.items
        processes = 1
        if self.no_sync is not None:
            if self.micro_batches and not self.synced:
                raise RuntimeError(
                    "pass last=True with the last micro-batch: gradients are apart"
                )
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                # DDP has taken the mean over the processes: undo it, and divide by all
                # items
                device = next(self.model.parameters()).device
                everywhere = torch.tensor(
                    float(items), dtype=torch.float64, device=device
                )
                torch.distributed.all_reduce(everywhere)
                items, processes = everywhere.item(), torch.distributed.get_world_size()
        if items == 0:
            raise RuntimeError(
                "no item came since the last finish(): call add() before it"
            )
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(processes / items)
        mean = self.loss_sum / max(self.items, 1)
        self._reset()
        return mean

    def state_dict(self) -> dict:
        """Return the unfinished window: counts, loss and gradients."""
        return {
            "items": self.items,
            "micro_batches": self.micro_batches,
            "loss_sum": self.loss_sum,
            "synced": self.synced,
            "gradients": {
                name: parameter.grad.clone()
                for name, parameter in self.model.named_parameters()
                if parameter.grad is not None
            },
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict`. Raises ValueError where the gradients fit another
        model.
        """
        parameters = dict(self.model.named_parameters())
        for name, gradient in state["gradients"].items():
            if name not in parameters or parameters[name].shape != gradient.shape:
                raise ValueError(
                    f"the saved gradient {name} {tuple(gradient.shape)} has no parameter here: "
                    "load it with the model it was saved with"
                )
        for name, parameter in parameters.items():
            gradient = state["gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.clone().to(parameter)
        self.items = state["items"]
        self.micro_batches = state["micro_batches"]
        self.loss_sum = state["loss_sum"]
        self.synced = state["synced"]


def _mean_loss(model, loss_fn, inputs: Tensor, targets: Tensor, items: int) -> Tensor:
    outputs = model(inputs)
    # a mean over nothing is NaN; a zero still takes part in DDP's exchange
    if items == 0:
        return outputs.sum() * 0.0
    loss = loss_fn(outputs, targets)
    if loss.ndim:
        raise ValueError(
            f"the loss has shape {tuple(loss.shape)}: loss_fn must return the mean over the items, "
            "one number"
        )
    return loss


# --------------------------------------------------------------------------- stale gradients


class DelayedSGD(torch.optim.Optimizer):
    """SGD whose step applies the gradient of `delay` steps before: asynchronous SGD, made
    regular.

    In asynchronous SGD (Recht et al. 2011, Dean et al. 2012) workers read weights,
    compute, and write when they are done; by then others have written. With delay + 1
    workers that take turns, each gradient is `delay` updates old. Here one process plays
    them all, so a run repeats.

    lr: above 0. delay: a whole number of at least 0, counted in steps.
    The first `delay` steps change nothing, since no gradient has come back yet.

    Raises ValueError for other values.

    Invariants: delay=0 is `torch.optim.SGD`, to the bit; on a quadratic of curvature c it
    converges exactly where lr < critical_learning_rate(delay, c); a loaded state goes on
    to the bit.
    """

    def __init__(self, params, lr: float = 1e-2, delay: int = 0) -> None:
        if not 0 < lr < math.inf:
            raise ValueError(f"lr={lr!r}: give a number above 0, such as 0.01")
        if isinstance(delay, bool) or not isinstance(delay, int) or delay < 0:
            raise ValueError(f"delay={delay!r}: give a whole number of steps, 0 or more")
        super().__init__(params, {"lr": lr, "delay": delay})

    @torch.no_grad()
    def step(self, closure=None):
        """Keep the present gradients, and apply those of `delay` steps before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                waiting = self.state[parameter].setdefault("waiting", [])
                waiting.append(parameter.grad.clone())
                if len(waiting) > group["delay"]:
                    parameter.add_(waiting.pop(0), alpha=-group["lr"])
        return loss


def critical_learning_rate(delay: int, curvature: float = 1.0) -> float:
    """Return the learning rate from which `DelayedSGD` no longer converges on a
    quadratic.

    The error obeys e[t+1] = e[t] - lr * curvature * e[t - delay]. Its characteristic
    polynomial reaches the unit circle first at lr = 2 sin(pi / (4 delay + 2)) /
    curvature.

    delay: 0 or more steps. curvature: the second derivative, above 0.
    Raises ValueError for other values.

    Invariant: without delay it is 2 / curvature, the limit of gradient descent.

    >>> critical_learning_rate(0)
    2.0
    """
    if isinstance(delay, bool) or not isinstance(delay, int) or delay < 0:
        raise ValueError(f"delay={delay!r}: give a whole number of steps, 0 or more")
    if not 0 < curvature < math.inf:
        raise ValueError(f"curvature={curvature!r}: give a number above 0")
    return 2 * math.sin(math.pi / (4 * delay + 2)) / curvature


# --------------------------------------------------------------------------- memory


class SavedBytes:
    """Count the bytes that autograd keeps for the backward pass: the activations.

    A context: `live` is what is kept now, `peak` the most there was, in bytes. A tensor
    that several operations keep counts once. The parameters and the tensors `given`, such
    as the batch itself, are in memory anyway and do not count. What an operation needs
    only while it runs is not seen.

    Invariants: after the backward pass `live` is 0; of a linear layer on rows of its own
    the peak is the bytes of those rows.
    """

    def __init__(self, model: nn.Module, *given: Tensor) -> None:
        self.live = self.peak = 0
        there = [*model.parameters(), *given]
        self._own = {tensor.untyped_storage().data_ptr() for tensor in there}
        self._holders: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> _Kept:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        kept = _Kept(tensor)
        if place in self._own:
            return kept
        if place not in self._holders:
            self.live += size
            self.peak = max(self.peak, self.live)
        self._holders[place] = self._holders.get(place, 0) + 1
        weakref.finalize(kept, self._release, place, size)
        return kept

    def _release(self, place: int, size: int) -> None:
        self._holders[place] -= 1
        if not self._holders[place]:
            del self._holders[place]
            self.live -= size

    @staticmethod
    def _unpack(kept: _Kept) -> Tensor:
        return kept.tensor

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._hooks.__exit__(*error)


class _Kept:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _check_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}: give a whole number of at least 1")
