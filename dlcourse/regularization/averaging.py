"""Averages of weights and flat places: EMA and SAM."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from dlcourse.regularization.checks import _check_at_least_zero, _pairs, _with_grad


class ExponentialMovingAverage(nn.Module):
    """Keep, in `module`, a copy of `model` whose weights are an average over the updates.

    Call `update_parameters(model)` once an update, after the optimizer's step; evaluate
    `module`, or call the average itself. The first call copies the weights. Each later
    one keeps the share `decay`, from 0 (the last weights) to 1 (the first), of the
    average and takes the rest from the model: it looks back over some 1 / (1 - decay)
    updates. With `warmup` call t, from 0, keeps no more than (1 + t) / (10 + t), to
    forget the first weights sooner. Buffers are copied, with `use_buffers` averaged like
    weights; integers are always copied.
    Raises ValueError for a `decay` out of range, and for a model whose tensors have other
    shapes.
    Source: torch's AveragedModel with get_ema_multi_avg_fn, which it equals to the bit;
    averages with equal shares are from Polyak & Juditsky (1992).
    Invariants: of weights that stand still it is these weights; no entry leaves the range
    of the values that it has seen; resumed from its `state_dict` it goes on to the bit.
    """

    n_averaged: Tensor  # a count, () int64

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.999,
        warmup: bool = False,
        use_buffers: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(
                f"decay={decay}: give the share to keep, from 0 to 1, such as 0.99"
            )
        self.module = copy.deepcopy(model)
        self.decay, self.warmup, self.use_buffers = decay, warmup, use_buffers
        self.register_buffer("n_averaged", torch.tensor(0))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take up the weights and buffers that `model` has now."""
        averaged = _pairs(self.module.parameters(), model.parameters())
        copied = _pairs(self.module.buffers(), model.buffers())
        if self.use_buffers:
            averaged, copied = averaged + copied, []
        t, decay = self.n_averaged.item(), self.decay
        if self.warmup:
            decay = min(decay, (1 + t) / (10 + t))
        for average, now in averaged:
            if t == 0 or not (average.is_floating_point() or average.is_complex()):
                average.copy_(now)
            else:
                average.lerp_(now.to(average), 1 - decay)
        for buffer, now in copied:
            buffer.copy_(now)
        self.n_averaged += 1

    def forward(self, *args, **kwargs):
        """Return what the averaged model makes of its inputs."""
        return self.module(*args, **kwargs)


def sam_perturbation(grads: Iterable[Tensor], rho: float) -> list[Tensor]:
    """Return the step of length `rho` along the gradient, a tensor for each of `grads`.

    The length is the Euclidean norm over all tensors together. To first order, no step of
    this length raises the loss by more. Of a gradient of zeros it is zero. Scaling the
    gradient changes nothing, so a loss scale does no harm. Source: Foret et al. (2021).
    """
    grads = list(grads)
    sizes = [grad.abs().amax() for grad in grads if grad.numel()]
    if not sizes:
        return [grad.clone() for grad in grads]
    largest = torch.stack(sizes).amax()  # divided by it, no square can overflow or vanish
    grads = [grad / torch.where(largest == 0, 1, largest) for grad in grads]
    norm = torch.stack([torch.linalg.vector_norm(grad) for grad in grads]).norm()
    return [grad * (rho / torch.where(norm == 0, 1, norm)) for grad in grads]


def sam_step(rho: float, perturbation: Callable = sam_perturbation) -> Callable:
    """Return a step for `fit` with sharpness-aware minimisation (SAM): two gradients an
    update.

    The first gradient says where the loss rises most. The weights move there by `rho` >=
    0, the second gradient is taken on the same batch, the weights go back, also where the
    loss raises an error, and the optimizer steps with the second gradient. Both are over
    all micro-batches and processes, which so change nothing. Running statistics keep what
    the first pass made of them; dropout draws anew. The loss returned is that of the
    first pass. `perturbation(grads, rho)` makes the move from the gradients of all
    weights that the optimizer trains.
    Raises ValueError for a negative `rho`. Source: Foret et al. (2021).
    Invariant: with rho = 0 it is `train_step` to the bit, with one gradient.
    """
    _check_at_least_zero("rho", rho)

    def step(run, batch) -> Tensor:
        run.optimizer.zero_grad()
        loss = run.gradients(batch)
        if rho > 0:
            groups = run.optimizer.param_groups
            weights = [
                weight for group in groups for weight in _with_grad(group["params"])
            ]
            changed = [tensor.detach() for tensor in (*weights, *run.model.buffers())]
            kept = [tensor.clone() for tensor in changed]
            try:
                moves = perturbation([weight.grad for weight in weights], rho)
                for weight, move in zip(weights, moves, strict=True):
                    weight.detach().add_(move)
                run.optimizer.zero_grad()
                run.gradients(batch)
            finally:
                for tensor, before in zip(changed, kept, strict=True):
                    tensor.copy_(before)
        run.optimizer.step()
        return loss

    return step
