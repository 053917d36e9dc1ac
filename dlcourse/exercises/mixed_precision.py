"""Exercises of chapter 15, mixed precision: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dlcourse.lab.exercises import Exercise, Wrong, expect
from dlcourse.mixed_precision import GradScaler, round_to


def _check_scaler(answer: Callable) -> None:
    start = torch.tensor([1.0, 2.0])

    def call(
        grad: list[float], scale: float = 1024.0, streak: int = 0, lr: float = 0.5
    ) -> tuple:
        got = answer(start.clone(), torch.tensor(grad), lr, scale, streak)
        triple = isinstance(got, (tuple, list)) and len(got) == 3
        expect(triple, "Return (weight, scale, streak).")
        return torch.as_tensor(got[0]), float(got[1]), int(got[2])

    weight, scale, streak = call([2048.0, -1024.0])
    expect(
        bool((weight - start).abs().max() < 10),
        "The step is about a thousand times too long: the gradient still carries the scale. "
        "Divide it out first.",
    )
    expect(
        torch.allclose(weight, torch.tensor([0.0, 2.5])),
        f"A scaled gradient (2048, -1024) at scale 1024 and rate 0.5 should move (1, 2) to "
        f"(0, 2.5), not to {weight.tolist()}.",
    )
    expect(
        scale == 1024 and streak == 1,
        "One good update: the scale stays, the streak is 1.",
    )
    for bad in (math.inf, -math.inf, math.nan):
        weight, scale, streak = call([bad, 1024.0], streak=2)
        expect(
            bool(weight.isfinite().all()),
            f"A gradient of {bad} reached the weights: leave it out.",
        )
        expect(
            torch.equal(weight, start),
            f"The gradient ({bad}, 1024) moved the weights. To ignore or repair the one bad entry "
            "is no cure: the scale is too large, and the rest may have been damaged too. Leave "
            "out the whole step.",
        )
        expect(
            scale < 1024,
            f"After a gradient of {bad} the scale stayed at {scale:g}, so that the next update "
            "overflows as well: halve it.",
        )
        expect(
            scale == 512,
            f"After a gradient of {bad} the scale is {scale:g}: halve it, to 512.",
        )
        expect(
            streak == 0,
            f"After a gradient of {bad} the count of good updates starts anew.",
        )
    _, scale, streak = call([0.0, 0.0], streak=1)
    expect(
        scale == 1024 and streak == 2,
        "Two good updates in a row: the scale does not grow yet.",
    )
    weight, scale, streak = call([2048.0, -1024.0], streak=2)
    expect(
        scale == 2048,
        f"After the third good update in a row the scale is {scale:g}, not 2048.",
    )
    expect(
        streak == 0, "When the scale has grown, the count of good updates starts anew."
    )
    expect(
        torch.allclose(weight, torch.tensor([0.0, 2.5])),
        "The gradient was made at the old scale: divide by that one, then let the scale grow.",
    )
    weight, scale, _ = call([64.0, 0.0], scale=64.0, streak=2, lr=0.25)
    expect(
        torch.allclose(weight, torch.tensor([0.75, 2.0])) and scale == 128,
        "At scale 64 and rate 0.25, a third good gradient (64, 0) should give (0.75, 2) and scale "
        f"128, not {weight.tolist()} and {scale:g}: use the lr and the scale that come in.",
    )
    expect(
        call([math.nan, 0.0], scale=64.0)[1] == 32,
        "From a scale of 64 halving leads to 32.",
    )


def _solve_scaler(weight, scaled_grad, lr, scale, streak):
    if not scaled_grad.isfinite().all():
        return weight, scale / 2, 0
    weight = weight - lr * scaled_grad / scale
    return (weight, scale * 2, 0) if streak + 1 == 3 else (weight, scale, streak + 1)


def _ignore_inf(weight, scaled_grad, lr, scale, streak):
    finite = bool(scaled_grad.isfinite().all())
    grad = scaled_grad.nan_to_num(0.0, 0.0, 0.0)
    weight, grown, count = _solve_scaler(weight, grad, lr, scale, streak)
    return (weight, grown, count) if finite else (weight, scale / 2, 0)


def _clamp_inf(weight, scaled_grad, lr, scale, streak):
    return _solve_scaler(
        weight, scaled_grad.nan_to_num(0.0, 65504.0, -65504.0), lr, scale, streak
    )


def _never_look(weight, scaled_grad, lr, scale, streak):
    weight = weight - lr * scaled_grad / scale
    return (weight, scale * 2, 0) if streak + 1 == 3 else (weight, scale, streak + 1)


def _only_inf(weight, scaled_grad, lr, scale, streak):
    if scaled_grad.isinf().any():
        return weight, scale / 2, 0
    return _never_look(weight, scaled_grad, lr, scale, streak)


def _keep_scale(weight, scaled_grad, lr, scale, streak):
    if not scaled_grad.isfinite().all():
        return weight, scale, 0
    return _solve_scaler(weight, scaled_grad, lr, scale, streak)


def _forget_to_unscale(weight, scaled_grad, lr, scale, streak):
    return _solve_scaler(weight, scaled_grad * scale, lr, scale, streak)


def _keep_streak(weight, scaled_grad, lr, scale, streak):
    if not scaled_grad.isfinite().all():
        return weight, scale / 2, streak
    return _solve_scaler(weight, scaled_grad, lr, scale, streak)


def _grow_always(weight, scaled_grad, lr, scale, streak):
    if not scaled_grad.isfinite().all():
        return weight, scale / 2, 0
    return weight - lr * scaled_grad / scale, scale * 2, streak + 1


def _check_vanish(answer: Callable) -> None:
    for w in (1.0, 3.0, 1024.0, 2.0**-13, 100.0, 1 + 2.0**-10, 2050.0, 0.0999755859375):
        h = float(answer(w))
        expect(
            h > 0 and math.frexp(h)[0] == 0.5,
            f"your function({w:g}) is {h:g}: no power of two.",
        )
        after = [
            round_to(torch.tensor(w + part, dtype=torch.float64), "fp16")
            for part in (h, h / 2)
        ]
        power = round(math.log2(h))
        expect(
            bool(after[0] != w) or power > -24,
            f"2**-24 is the smallest number that float16 holds, yet {w:g} + 2**-24 is {w:g}. The "
            "range is not the only limit: near large numbers, float16 numbers lie further apart.",
        )
        expect(
            bool(after[0] != w),
            f"{w:g} + 2**{power} is {w:g} in float16. Look at the distance between {w:g} and the "
            "next number: it grows with the number, and a tie, exactly half of it, goes to the "
            "neighbour whose last bit is 0.",
        )
        expect(
            bool(after[1] == w),
            f"2**{power} does change {w:g}, but so does the half of it. The distance to the next "
            "number depends on the number, and where the last bit is 1 a tie moves it.",
        )


def _solve_vanish(w):
    gap = 2.0 ** (math.floor(math.log2(w)) - 10)
    last_bit = int(w / gap) % 2
    return gap / 2 if last_bit else gap


def _try_all(w):
    return next(2.0**k for k in range(-24, 16) if torch.tensor(w + 2.0**k).half() != w)


def _range_only(w):
    return 2.0**-24


def _gap_of_one(w):
    return 2.0**-10


def _half_gap(w):
    return 2.0 ** (math.floor(math.log2(w)) - 11)


def _whole_gap(w):
    return 2.0 ** (math.floor(math.log2(w)) - 10)


def _check_order(answer: Callable) -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = GradScaler(init_scale=2.0**10, growth_interval=1)

    def update(*rows: list[float], max_norm: float = 2.0) -> Tensor:
        before = weight.detach().clone()
        losses = [lambda row=row: (weight * torch.tensor(row)).sum() for row in rows]
        answer(losses, [weight], optimizer, scaler, max_norm)
        return before - weight.detach()

    first = update([6.0, 0.0], [0.0, 8.0])
    expect(
        first.norm() > 0.01,
        "The update is about a thousandth of what it should be: you clipped gradients that carry "
        "the scale. Unscale first.",
    )
    expect(
        scaler.get_scale() <= 2.0**11,
        "scaler.update() ran more than once: the micro-batches of one update must share one scale. "
        "Step and update once, after the last.",
    )
    expect(
        first.norm() < 2.01,
        "The update is longer than max_norm: clip between unscale and step.",
    )
    wanted = torch.tensor([1.2, 1.6])
    expect(
        torch.allclose(first, wanted, atol=1e-3),
        f"The update is {first}, wanted {wanted}.",
    )
    expect(
        scaler.get_scale() == 2.0**11,
        "The scale did not move on: end with scaler.update().",
    )
    second = update([3.0, 0.0], [0.0, 6.0], [3.0, 6.0], max_norm=10.0)
    expect(
        torch.allclose(second, torch.tensor([2.0, 4.0]), atol=1e-3),
        f"Three micro-batches with the mean gradient (2, 4) and max_norm=10 gave {second}: divide "
        "each loss by their number, empty the old gradients first, and clip to max_norm only.",
    )
    scale = scaler.get_scale()
    moved = update([math.inf, 1.0], [1.0, 1.0])
    expect(
        bool((moved == 0).all()),
        "One micro-batch had an infinite gradient, and the weights moved: let the scaler take the "
        "step, so that it can leave it out.",
    )
    expect(scaler.get_scale() < scale, "After an infinite gradient the scale must fall.")


def _solve_order(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def _clip_before_unscale(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def _update_each_micro_batch(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        _solve_order([loss], parameters, optimizer, scaler, max_norm)


def _unscale_each_micro_batch(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
        scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def _past_the_scaler(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    scaler.update()


def _sum_of_losses(losses, parameters, optimizer, scaler, max_norm):
    _solve_order([lambda f=f: f() * len(losses) for f in losses], parameters, optimizer, scaler,
                 max_norm)  # fmt: skip


def _clip_after_step(losses, parameters, optimizer, scaler, max_norm):
    _solve_order(losses, parameters, optimizer, scaler, math.inf)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)


EXERCISES = (
    Exercise(
        "Write your_update(weight, scaled_grad, lr, scale, streak): one SGD update with a loss "
        "scale. Return (weight, scale, streak). After three good updates in a row the scale "
        "doubles; a gradient that is not finite halves it. `streak` counts the good ones.",
        _check_scaler,
        _solve_scaler,
        {
            "inf is ignored": Wrong(_ignore_inf, "the scale is too large"),
            "inf is cut": Wrong(_clamp_inf, "Leave out the whole step"),
            "inf is not looked for": Wrong(_never_look, "reached the weights"),
            "NaN is not looked for": Wrong(_only_inf, "nan reached the weights"),
            "the scale stays": Wrong(_keep_scale, "the next update overflows"),
            "the scale stays in": Wrong(_forget_to_unscale, "Divide it out"),
            "the streak goes on": Wrong(_keep_streak, "starts anew"),
            "the scale grows each time": Wrong(_grow_always, "the scale stays"),
        },
    ),
    Exercise(
        "Write your_power(w): the smallest power of two that changes w when it is added in "
        "float16. w is a float16 number from 2**-13 to 2**14. Not 2**-11 for w = 1: why?",
        _check_vanish,
        _solve_vanish,
        {
            "range is the only limit": Wrong(_range_only, "range is not the only limit"),
            "one distance for all": Wrong(_gap_of_one, "grows with the number"),
            "ties move": Wrong(_half_gap, "a tie, exactly half"),
            "ties never move": Wrong(_whole_gap, "a tie moves it"),
        },
    ),
    Exercise(
        "Write your_step(losses, parameters, optimizer, scaler, max_norm): `losses` are functions, "
        "one a micro-batch of equal size; one update for all of them, clipped to max_norm.",
        _check_order,
        _solve_order,
        {
            "clip scaled gradients": Wrong(_clip_before_unscale, "Unscale first"),
            "update each micro-batch": Wrong(_update_each_micro_batch, "share one scale"),
            "unscale each micro-batch": Wrong(
                _unscale_each_micro_batch, "unscaled already"
            ),
            "step past the scaler": Wrong(
                _past_the_scaler, "let the scaler take the step"
            ),
            "the sum, not the mean": Wrong(_sum_of_losses, "divide each loss"),
            "clip after the step": Wrong(_clip_after_step, "clip between"),
        },
    ),
)
