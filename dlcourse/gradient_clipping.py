"""Gradient clipping: bound the size of one update, so that one bad batch cannot end a
run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from dlcourse.lab.exercises import Exercise, Wrong, expect


def get_total_norm(
    tensors: Iterable[Tensor], norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Return the norm, a scalar, of all `tensors` read as one long vector.

    `norm_type` p > 0, or inf for the largest absolute value. No tensors at all: zero.
    Raises RuntimeError for a norm that is NaN or infinite where `error_if_nonfinite`.
    Invariant: cutting a tensor in pieces does not change the result.
    """
    if not norm_type > 0:
        raise ValueError(
            f"norm_type={norm_type}: give a number above 0, such as 2.0, or inf"
        )
    tensors = list(tensors)
    if not tensors:
        return torch.zeros(())
    parts = [torch.linalg.vector_norm(tensor, norm_type) for tensor in tensors]
    total = torch.linalg.vector_norm(
        torch.stack([part.to(parts[0].device) for part in parts]), norm_type
    )
    if error_if_nonfinite and not total.isfinite():
        raise RuntimeError(
            f"the gradient norm of order {norm_type} is {total.item()}: skip this update, or lower "
            "the learning rate, or look for a NaN in the data"
        )
    return total


def clip_by_norm(
    grads: list[Tensor], max_norm: float, norm_type: float = 2.0
) -> tuple[list[Tensor], Tensor]:
    """Return (clipped gradients, their norm before): all scaled by one factor of at most
    1.

    A pure function of the list, for `run_trials` and for reading; `clip_grad_norm_` works
    in place.
    """
    total = get_total_norm(grads, norm_type)
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    return [grad * factor for grad in grads], total


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients by one factor, so that their joint norm is at most `max_norm`
    >= 0.

    Returns the norm before clipping, a scalar. Parameters without a gradient are left
    out. A norm that is NaN makes every gradient NaN, an infinite one makes finite entries
    0; with `error_if_nonfinite` both raise RuntimeError and leave the gradients as they
    were. Raises ValueError for a `max_norm` that is negative or NaN.
    Source: Pascanu, Mikolov & Bengio (2013), algorithm 1; the factor max_norm / (norm +
    1e-6) is torch's. Invariants: the direction stays; a gradient below the bound does not
    change.
    """
    _check_bound("max_norm", max_norm)
    grads = _grads(parameters)
    total = get_total_norm(grads, norm_type, error_if_nonfinite)
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(factor.to(grad.device))
    return total


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Move each gradient entry into [-clip_value, clip_value]; clip_value >= 0.

    The direction of the whole gradient may change. Raises ValueError for a bad
    `clip_value`.
    Invariant: no entry grows, and none changes its sign.
    """
    _check_bound("clip_value", clip_value)
    for grad in _grads(parameters):
        grad.clamp_(-clip_value, clip_value)


def adaptive_clip_grad_(
    parameters: Tensor | Iterable[Tensor], clip_factor: float = 0.01, eps: float = 1e-3
) -> None:
    """Bound each unit's gradient norm by `clip_factor` times the norm of the unit's
    weights.

    A unit is a row of a weight (its fan-in), or the whole of a vector. `eps` > 0 stands
    in for smaller weight norms, so that zero weights can still learn. Raises ValueError
    for bad numbers.
    Source: Brock et al. (2021). Invariant: a unit's update relative to its weights is
    bounded.
    """
    _check_bound("clip_factor", clip_factor)
    _check_bound("eps", eps)
    for weight in _with_grad(parameters):
        limit = clip_factor * _unit_norm(weight.detach()).clamp(min=eps)
        norm = _unit_norm(weight.grad)
        weight.grad.mul_((limit / norm.clamp(min=1e-6)).clamp(max=1.0))


def clipping_step(max_norm: float, skip_nonfinite: bool = False) -> Callable:
    """Return a step for `fit` that clips the whole gradient to `max_norm`, once an
    update.

    The order is fixed: all micro-batches and processes first, then unscale, clip, step.
    The norm before clipping is logged as "grad_norm". `skip_nonfinite` leaves out updates
    whose norm is NaN or infinite. With max_norm=inf it is `train_step` to the bit.
    """
    _check_bound("max_norm", max_norm)

    def step(run, batch) -> Tensor:
        run.optimizer.zero_grad()
        loss = run.gradients(batch)  # summed over micro-batches, averaged over processes
        run.unscale()  # float16 only: the norm is that of the true gradient
        norm = clip_grad_norm_(run.model.parameters(), max_norm)
        run.log("grad_norm", norm)
        # a scaler skips by itself, and must see it
        scaled = run.accelerator.scaler is not None
        if scaled or not skip_nonfinite or norm.isfinite():
            run.optimizer.step()
        return loss

    return step


class GradNormLogger:
    """Record gradient norms before clipping, and say what a bound would do.

    Call it with a model after each backward pass, or `add` norms measured elsewhere.
    `norms` is a list of floats, `layers` maps each parameter's name to a list as long.
    Non-finite norms are kept in the lists and counted as clipped.
    """

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.layers: dict[str, list[float]] = {}

    def __call__(self, model: nn.Module) -> float:
        """Record and return the norm of the gradient that `model` holds now."""
        for name, weight in model.named_parameters():
            norm = math.nan if weight.grad is None else weight.grad.norm().item()
            self.layers.setdefault(name, [math.nan] * len(self.norms)).append(norm)
        self.add(get_total_norm(_grads(model.parameters())).item())
        return self.norms[-1]

    def add(self, *norms: float) -> None:
        """Append norms that were measured elsewhere."""
        self.norms.extend(float(norm) for norm in norms)

    def quantile(self, q: float) -> float:
        """Return the norm that a share `q` in [0, 1] of the finite norms does not exceed.

        Raises ValueError where nothing finite has been recorded.
        """
        finite = torch.tensor(
            [n for n in self.norms if math.isfinite(n)], dtype=torch.float64
        )
        if not len(finite):
            raise ValueError("no finite norm recorded yet: train some updates first")
        return torch.quantile(finite, q).item()

    def clipped_share(self, max_norm: float) -> float:
        """Return the share of updates, from 0 to 1, that a bound of `max_norm` changes."""
        if not self.norms:
            raise ValueError("no norm recorded yet: train some updates first")
        return sum(not norm <= max_norm for norm in self.norms) / len(self.norms)


def freeze(module: nn.Module) -> int:
    """Stop training `module`, and return how many numbers that leaves out.

    Their gradients become None: a gradient of zeros would still let momentum and weight
    decay move the weights. Running statistics of norm layers go on unless the module is
    in eval mode. Freeze before `fit`, so that several processes agree on which gradients
    to exchange.
    Invariant: no optimizer moves a frozen weight.
    """
    return _set_trainable(module, False)


def unfreeze(module: nn.Module) -> int:
    """Undo `freeze`, and return how many numbers that brings back."""
    return _set_trainable(module, True)


def _set_trainable(module: nn.Module, trainable: bool) -> int:
    for weight in module.parameters():
        weight.requires_grad_(trainable)
        if not trainable:
            weight.grad = None
    return sum(weight.numel() for weight in module.parameters())


def _with_grad(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    return [weight for weight in parameters if weight.grad is not None]


def _grads(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [weight.grad for weight in _with_grad(parameters)]


def _unit_norm(values: Tensor) -> Tensor:
    """Return the norm of each row (its shape broadcasts against `values`), or of a
    vector.
    """
    if values.ndim <= 1:
        return torch.linalg.vector_norm(values)
    return torch.linalg.vector_norm(
        values, dim=tuple(range(1, values.ndim)), keepdim=True
    )


def _check_bound(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(
            f"{name}={value}: give a bound of at least 0, such as 1.0, or inf for none"
        )


# --- exercises ------------------------------------------------------------------------------------


def _check_clip(answer: Callable) -> None:
    small = [torch.tensor([0.3, -0.4]), torch.tensor([[0.0]])]
    got = answer([grad.clone() for grad in small], 1.0)
    expect(got is not None, "Return the list of clipped gradients.")
    expect(
        [grad.shape for grad in got] == [grad.shape for grad in small],
        "Return tensors of the shapes that came in.",
    )
    expect(
        all(torch.allclose(a, b) for a, b in zip(got, small, strict=True)),
        "This gradient is shorter than the bound and must stay as it is: clip, do not normalise.",
    )
    together = (
        "became {}, which points elsewhere: bound one norm over all the tensors together, not "
        "each tensor or entry by itself."
    )
    for first, second, bound in (((3.0, 0.0), -4.0, 2.0), ((0.9, 0.0), -1.2, 1.25)):
        given = torch.tensor([*first, second])
        got = answer([torch.tensor(first), torch.tensor([[second]])], bound)
        values = torch.cat([grad.ravel() for grad in got])
        expect(
            values[-1] > second or bound < 2,
            f"The entry {second:g} is still there: the bound holds on both sides of zero.",
        )
        cosine = torch.nn.functional.cosine_similarity(values, given, dim=0)
        expect(
            bool(cosine > 0.9999), f"{given.tolist()} {together.format(values.tolist())}"
        )
        expect(
            torch.allclose(values, given * (bound / given.norm()), atol=1e-4),
            f"{given.tolist()} has norm {given.norm():g}, the bound is {bound:g}, and the result "
            f"has norm {values.norm():g}.",
        )


def _solve_clip(grads, max_norm):
    total = torch.cat([grad.ravel() for grad in grads]).norm()
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    return [grad * factor for grad in grads]


def _clip_each_tensor(grads, max_norm):
    return [_solve_clip([grad], max_norm)[0] for grad in grads]


def _clip_where_one_is_long(grads, max_norm):
    return (
        _solve_clip(grads, max_norm) if max(g.norm() for g in grads) > max_norm else grads
    )


def _rescale_to_one(grads, max_norm):
    total = torch.cat([grad.ravel() for grad in grads]).norm()
    return [grad / total if total > max_norm else grad for grad in grads]


def _clip_values(grads, max_norm):
    return [grad.clamp(-max_norm, max_norm) for grad in grads]


def _clip_above(grads, max_norm):
    return [grad.clamp(max=max_norm) for grad in grads]


def _normalise(grads, max_norm):
    total = torch.cat([grad.ravel() for grad in grads]).norm()
    return [grad * max_norm / total for grad in grads]


def _check_scaled(answer: Callable) -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def update(*row: float) -> Tensor:
        before, values = weight.detach().clone(), torch.tensor(row)
        answer(lambda: (weight * values).sum(), [weight], optimizer, scaler, 2.0)
        return weight.detach() - before

    first = update(3.0, 4.0)
    expect(
        first.norm() > 0.01,
        "The update is about a thousandth of what it should be: you clipped the scaled gradient, "
        "and the scale was divided out afterwards. Unscale first.",
    )
    expect(
        first.norm() < 2.01,
        "The update is longer than max_norm: the gradient is not clipped.",
    )
    wanted = torch.tensor([-1.2, -1.6])
    expect(
        torch.allclose(first, wanted, atol=1e-4),
        f"The update is {first}, wanted {wanted}.",
    )
    expect(
        torch.allclose(update(0.3, 0.4), torch.tensor([-0.3, -0.4]), atol=1e-4),
        "A second, short gradient gave a wrong update: empty the old gradients first, and leave a "
        "short gradient alone.",
    )
    scale = scaler.get_scale()
    expect(
        bool((update(math.inf, 1.0) == 0).all()),
        "An infinite gradient reached the weights: let the scaler take the step, so that it can "
        "skip it.",
    )
    expect(
        scaler.get_scale() < scale,
        "After an infinite gradient the scale must fall: scale the loss, and end with "
        "scaler.update().",
    )


def _solve_scaled(loss_fn, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss_fn()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def _clip_scaled(loss_fn, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss_fn()).backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def _step_without_scaler(loss_fn, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss_fn()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    scaler.update()


def _forget_update(loss_fn, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss_fn()).backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm * scaler.get_scale())
    scaler.step(optimizer)
    # else the next call stops with torch's own error
    scaler._per_optimizer_states.clear()


def _forget_zero_grad(loss_fn, parameters, optimizer, scaler, max_norm):
    scaler.scale(loss_fn()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def _never_clip(loss_fn, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss_fn()).backward()
    scaler.step(optimizer)
    scaler.update()


def _check_accumulated(answer: Callable) -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)

    def update(*rows: list[float]) -> Tensor:
        before = weight.detach().clone()
        losses = [lambda row=row: (weight * torch.tensor(row)).sum() for row in rows]
        answer(losses, [weight], optimizer, 2.0)
        return before - weight.detach()

    first, mean = update([8.0, 0.0], [0.0, 0.6]), torch.tensor([4.0, 0.3])
    expect(
        bool(torch.nn.functional.cosine_similarity(first, mean, dim=0) > 0.9999),
        "You clipped each micro-batch, or the sum so far. The rare large one then counts no more "
        "than the others: clip once, after the last.",
    )
    expect(
        first.norm() < 2.01, "The update is longer than max_norm: clip before the step."
    )
    wanted = 2 * mean / mean.norm()
    expect(
        torch.allclose(first, wanted, atol=1e-3),
        f"The update is {first}, wanted {wanted}.",
    )
    second = update([0.3, 0.0], [0.0, 0.6], [0.3, 0.6])
    expect(
        torch.allclose(second, torch.tensor([0.2, 0.4]), atol=1e-4),
        f"Three micro-batches with the mean gradient (0.2, 0.4) gave {second}: divide each loss by "
        "their number, and empty the old gradients first.",
    )


def _solve_accumulated(losses, parameters, optimizer, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        (loss() / len(losses)).backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()


def _clip_each_micro_batch(losses, parameters, optimizer, max_norm):
    total = [torch.zeros_like(weight) for weight in parameters]
    for loss in losses:
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        for sum_, weight in zip(total, parameters, strict=True):
            sum_ += weight.grad / len(losses)
    for sum_, weight in zip(total, parameters, strict=True):
        weight.grad = sum_
    optimizer.step()


def _clip_the_sum_so_far(losses, parameters, optimizer, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        (loss() / len(losses)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()


def _sum_without_division(losses, parameters, optimizer, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        loss().backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()


def _clip_after_step(losses, parameters, optimizer, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        (loss() / len(losses)).backward()
    optimizer.step()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)


EXERCISES = (
    Exercise(
        "Write your_clip(grads, max_norm): a list of tensors in, the clipped list out.",
        _check_clip,
        _solve_clip,
        {
            "clip per tensor": Wrong(_clip_each_tensor, "over all the tensors together"),
            "clip per entry": Wrong(_clip_values, "over all the tensors together"),
            "clip above only": Wrong(_clip_above, "both sides"),
            "look at single tensors": Wrong(_clip_where_one_is_long, "has norm 1.5"),
            "always to length 1": Wrong(_rescale_to_one, "has norm 1."),
            "always rescale": Wrong(_normalise, "do not normalise"),
        },
    ),
    Exercise(
        "Write your_step(loss_fn, parameters, optimizer, scaler, max_norm): one update with a loss "
        "scale, clipped to max_norm.",
        _check_scaled,
        _solve_scaled,
        {
            "clip scaled gradients": Wrong(_clip_scaled, "Unscale first"),
            "step past the scaler": Wrong(
                _step_without_scaler, "let the scaler take the step"
            ),
            "no clipping": Wrong(_never_clip, "not clipped"),
            "old gradients stay": Wrong(_forget_zero_grad, "empty the old gradients"),
            "no update of the scale": Wrong(_forget_update, "the scale must fall"),
        },
    ),
    Exercise(
        "Write your_update(losses, parameters, optimizer, max_norm): `losses` are functions, one a "
        "micro-batch of equal size; one clipped update for all of them.",
        _check_accumulated,
        _solve_accumulated,
        {
            "clip each micro-batch": Wrong(_clip_each_micro_batch, "clip once"),
            "clip the sum so far": Wrong(_clip_the_sum_so_far, "clip once"),
            "the sum, not the mean": Wrong(_sum_without_division, "divide each loss"),
            "clip after the step": Wrong(_clip_after_step, "before the step"),
        },
    ),
)
