"""Exercises of chapter 4, gradient clipping: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dlcourse.lab.exercises import Exercise, Wrong, expect


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
