"""Exercises of chapter 15, mixed precision: questions, checks, solutions, usual mistakes.

A check knows a mistake by making it: where the reader's result is that of a usual wrong
answer on the same hidden problem, the hint says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dlcourse.lab.exercises import Exercise, Hint, Wrong, expect
from dlcourse.mixed_precision import GradScaler, round_to

# --------------------------------------------------------------------------- Your turn


class _Slope:
    """The gradient of a parabola around `target`, asked for and answered in bfloat16."""

    def __init__(self, target: Tensor) -> None:
        self.target = target
        self.calls = 0

    def __call__(self, weight: Tensor) -> Tensor:
        self.calls += 1
        if not isinstance(weight, Tensor) or weight.dtype != torch.bfloat16:
            kind = getattr(weight, "dtype", type(weight).__name__)
            raise Hint(
                f"gradient_of was given {kind}: the products are in bfloat16, so give it the "
                "weight rounded to bfloat16."
            )
        if weight.shape != self.target.shape:
            raise Hint(
                f"gradient_of was given the shape {tuple(weight.shape)}, the weight has "
                f"{tuple(self.target.shape)}."
            )
        return (weight.float() - self.target).bfloat16()


def _check_descend(answer: Callable) -> None:
    # (shape, rate, updates, how far the target is): small updates, large ones, none
    cases = (
        ((3,), 1e-3, 40, 1.0),
        ((1,), 2e-3, 60, 1.0),
        ((2, 4), 5e-4, 50, 2.0),
        ((5,), 0.25, 6, 3.0),
        ((4,), 1e-3, 0, 1.0),
    )
    for number, (shape, rate, updates, far) in enumerate(cases):
        generator = torch.Generator().manual_seed(number)
        start = 1 + torch.rand(shape, generator=generator)
        signs = 2 * torch.randint(0, 2, shape, generator=generator) - 1
        target = start + far * signs * (1 + torch.rand(shape, generator=generator))
        given = start.clone()
        slope = _Slope(target)
        found = answer(given, slope, rate, updates)
        expect(
            torch.equal(given, start),
            "Your function changed the weight that it was given: work on a copy of it.",
        )
        _judge_descend(found, start, target, rate, updates, slope.calls)


def _judge_descend(found, start, target, rate, updates, calls) -> None:
    expect(isinstance(found, Tensor), "Return the weight, a tensor.")
    found = found.detach()
    expect(
        found.dtype in (torch.float32, torch.float64),
        f"You return {found.dtype}: return the float32 copy, which holds the small updates.",
    )
    expect(
        found.shape == start.shape,
        f"The weight has the shape {tuple(start.shape)}, yours {tuple(found.shape)}.",
    )
    expect(
        calls == updates,
        f"{updates} updates ask gradient_of {updates} times, once each; yours asked {calls}.",
    )

    def by(rule: Callable) -> Tensor:
        return rule(start, _Slope(target), rate, updates)

    wanted = by(_solve_descend)
    # a product rounded to bfloat16 is off by at most 1 / 256 of the way
    allowed = 0.01 * (wanted - start).abs() + 1e-6

    def near(values: Tensor) -> bool:
        return bool(((found - values).abs() <= allowed).all())

    if near(wanted):
        return
    ways = f"(rate {rate:g}, {updates} updates)"
    for rule in (_in_bf16, _master_rounded_each_time):
        expect(
            not near(by(rule)),
            f"The small updates are lost {ways}: the sum is rounded to bfloat16 after each of "
            "them.",
        )
    expect(
        not near(by(_stale)),
        f"gradient_of sees the same weight each time {ways}: round the float32 copy anew "
        "before each call.",
    )
    expect(
        not near(by(_returns_rounded)),
        f"You return the weight rounded to bfloat16 {ways}: return the float32 copy.",
    )
    expect(
        not near(by(_from_rounded)),
        f"Your copy starts from the weight rounded to bfloat16 {ways}: start from the float32 "
        "weight itself.",
    )
    expect(
        not updates or not torch.equal(found.float(), found.bfloat16().float()),
        f"Small updates are lost {ways}: each number that you return is one of bfloat16, so the "
        "sum is rounded. Add up in a float32 copy, round only what gradient_of is given.",
    )
    expect(
        not near(by(_uphill)), "The weight moves uphill: subtract rate times gradient."
    )
    expect(not near(by(_without_rate)), "The updates are not multiplied by the rate.")
    raise Hint(
        f"From {_shown(start)} your function leads to {_shown(found)}, wanted is "
        f"{_shown(wanted)} {ways}."
    )


def _shown(values: Tensor) -> str:
    return str([round(value, 5) for value in values.flatten()[:3].tolist()])


def _solve_descend(weight, gradient_of, rate, updates):
    master = weight.clone()  # float32
    for _ in range(updates):
        gradient = gradient_of(master.bfloat16())
        master = master - rate * gradient.float()
    return master


def _in_bf16(weight, gradient_of, rate, updates):
    weight = weight.bfloat16()
    for _ in range(updates):
        weight = weight - rate * gradient_of(weight)
    return weight.float()


def _master_rounded_each_time(weight, gradient_of, rate, updates):
    for _ in range(updates):
        weight = weight.bfloat16().float()
        weight = weight - rate * gradient_of(weight.bfloat16()).float()
    return weight


def _all_in_float32(weight, gradient_of, rate, updates):
    for _ in range(updates):
        weight = weight - rate * gradient_of(weight)
    return weight


def _stale(weight, gradient_of, rate, updates):
    rounded, master = weight.bfloat16(), weight.clone()
    for _ in range(updates):
        master = master - rate * gradient_of(rounded).float()
    return master


def _from_rounded(weight, gradient_of, rate, updates):
    return _solve_descend(weight.bfloat16().float(), gradient_of, rate, updates)


def _returns_rounded(weight, gradient_of, rate, updates):
    return _solve_descend(weight, gradient_of, rate, updates).bfloat16().float()


def _returns_bf16(weight, gradient_of, rate, updates):
    return _solve_descend(weight, gradient_of, rate, updates).bfloat16()


def _uphill(weight, gradient_of, rate, updates):
    return _solve_descend(weight, gradient_of, -rate, updates)


def _without_rate(weight, gradient_of, rate, updates):
    return _solve_descend(weight, gradient_of, 1.0, updates)


def _in_place(weight, gradient_of, rate, updates):
    for _ in range(updates):
        weight -= rate * gradient_of(weight.bfloat16()).float()
    return weight


# --------------------------------------------------------------------------- the loss scale


def _check_scaler(answer: Callable) -> None:
    # (scale, rate, good updates so far, interval, length)
    cases = (
        (1024.0, 0.5, 0, 3, 2),
        (2.0**16, 0.125, 1, 5, 4),
        (64.0, 0.25, 2, 3, 3),
        (8.0, 1.0, 0, 1, 1),
        (2.0**20, 0.01, 1999, 2000, 3),
        (1.0, 0.5, 0, 2, 2),  # below 1 the scale goes on being halved
    )
    for number, (scale, lr, streak, interval, length) in enumerate(cases):
        generator = torch.Generator().manual_seed(number)
        weight = torch.randn(length, generator=generator)
        gradient = torch.randn(length, generator=generator)

        def call(
            gradient, scale=scale, lr=lr, streak=streak, interval=interval, w=weight
        ):
            got = answer(w.clone(), gradient.clone(), lr, scale, streak, interval)
            return _three(got, w)

        _judge_good(call(gradient * scale), weight, gradient, scale, lr, streak, interval)
        _judge_good(call(0 * gradient), weight, 0 * gradient, scale, lr, streak, interval)
        for bad in (math.inf, -math.inf, math.nan):
            broken = gradient * scale
            broken[number % length] = bad
            _judge_bad(call(broken), weight, bad, scale)
    # each entry is finite, and their sum is not
    weight, gradient, scale = torch.ones(3), torch.full((3,), 200.0), 2.0**120
    got = answer(weight.clone(), gradient * scale, 0.5, scale, 0, 4)
    _judge_good(_three(got, weight), weight, gradient, scale, 0.5, 0, 4)


def _three(got, weight: Tensor) -> tuple[Tensor, float, float]:
    triple = isinstance(got, (tuple, list)) and len(got) == 3
    expect(triple, "Return three things: (weight, scale, streak).")
    found = torch.as_tensor(got[0]).detach().float()
    expect(
        found.shape == weight.shape,
        f"The weight has the shape {tuple(weight.shape)}, yours {tuple(found.shape)}.",
    )
    return found, float(got[1]), float(got[2])


def _judge_good(got, weight, gradient, scale, lr, streak, interval) -> None:
    found, new_scale, new_streak = got
    grows = streak + 1 == interval

    def near(values: Tensor) -> bool:
        return torch.allclose(found, values, rtol=1e-4, atol=1e-6)

    wanted = weight - lr * gradient
    if not near(wanted):
        expect(
            not near(weight - lr * gradient * scale),
            f"The step is {scale:g} times too long: the gradient still carries the scale. Divide "
            "it out first.",
        )
        expect(
            not near(weight),
            "A gradient whose entries are all finite did not move the weight. Look at the "
            "entries themselves: a sum of large ones can overflow.",
        )
        expect(
            not near(weight - lr * gradient / 2),
            "The gradient was made at the old scale: divide by that one, then let the scale grow.",
        )
        expect(not near(weight + lr * gradient), "The weight moves uphill: subtract.")
        raise Hint(
            f"At rate {lr:g} the gradient {_shown(gradient)} should move {_shown(weight)} to "
            f"{_shown(wanted)}, not to {_shown(found)}."
        )
    told = f"good update {streak + 1} in a row, interval {interval}"
    if grows:
        expect(new_scale == 2 * scale, f"{told}: the scale is {new_scale:g}: double it.")
        expect(
            new_streak == 0,
            "When the scale has grown, the count of good updates starts anew.",
        )
    else:
        expect(new_scale == scale, f"{told}: the scale stays, yours is {new_scale:g}.")
        expect(
            new_streak == streak + 1,
            f"{told}: the count is then {streak + 1}, yours {new_streak:g}.",
        )


def _judge_bad(got, weight: Tensor, bad: float, scale: float) -> None:
    found, new_scale, new_streak = got
    expect(
        bool(found.isfinite().all()),
        f"A gradient of {bad} reached the weights: leave it out.",
    )
    expect(
        torch.equal(found, weight),
        f"A gradient with one {bad} in it moved the weights. To ignore or repair the one bad "
        "entry is no cure: the scale is too large, and the rest may have been damaged too. Leave "
        "out the whole step.",
    )
    expect(
        new_scale < scale,
        f"After a gradient of {bad} the scale is {new_scale:g}, so that the next update "
        "overflows as well: halve it.",
    )
    expect(
        new_scale == scale / 2,
        f"After a gradient of {bad} the scale is {new_scale:g}: halve it, to {scale / 2:g}.",
    )
    expect(
        new_streak == 0,
        f"After a gradient of {bad} the count of good updates starts anew.",
    )


def _solve_scaler(weight, scaled_grad, lr, scale, streak, interval):
    if not scaled_grad.isfinite().all():
        return weight, scale / 2, 0
    weight = weight - lr * scaled_grad / scale
    if streak + 1 == interval:
        return weight, scale * 2, 0
    return weight, scale, streak + 1


def _ignore_inf(weight, scaled_grad, lr, scale, streak, interval):
    finite = bool(scaled_grad.isfinite().all())
    grad = scaled_grad.nan_to_num(0.0, 0.0, 0.0)
    weight, grown, count = _solve_scaler(weight, grad, lr, scale, streak, interval)
    return (weight, grown, count) if finite else (weight, scale / 2, 0)


def _clamp_inf(weight, scaled_grad, lr, scale, streak, interval):
    grad = scaled_grad.nan_to_num(0.0, 65504.0, -65504.0)
    return _solve_scaler(weight, grad, lr, scale, streak, interval)


def _never_look(weight, scaled_grad, lr, scale, streak, interval):
    weight = weight - lr * scaled_grad / scale
    return (
        (weight, scale * 2, 0) if streak + 1 == interval else (weight, scale, streak + 1)
    )


def _only_inf(weight, scaled_grad, lr, scale, streak, interval):
    if scaled_grad.isinf().any():
        return weight, scale / 2, 0
    return _never_look(weight, scaled_grad, lr, scale, streak, interval)


def _keep_scale(weight, scaled_grad, lr, scale, streak, interval):
    if not scaled_grad.isfinite().all():
        return weight, scale, 0
    return _solve_scaler(weight, scaled_grad, lr, scale, streak, interval)


def _forget_to_unscale(weight, scaled_grad, lr, scale, streak, interval):
    return _solve_scaler(weight, scaled_grad * scale, lr, scale, streak, interval)


def _keep_streak(weight, scaled_grad, lr, scale, streak, interval):
    if not scaled_grad.isfinite().all():
        return weight, scale / 2, streak + 1
    return _solve_scaler(weight, scaled_grad, lr, scale, streak, interval)


def _grow_always(weight, scaled_grad, lr, scale, streak, interval):
    if not scaled_grad.isfinite().all():
        return weight, scale / 2, 0
    return weight - lr * scaled_grad / scale, scale * 2, streak + 1


def _grow_first(weight, scaled_grad, lr, scale, streak, interval):
    if not scaled_grad.isfinite().all():
        return weight, scale / 2, 0
    streak += 1
    if streak == interval:
        scale, streak = scale * 2, 0
    return weight - lr * scaled_grad / scale, scale, streak


# --------------------------------------------------------------------------- what vanishes


def _check_vanish(answer: Callable) -> None:
    shown = [1.0, 3.0, 1024.0, 2.0**-13, 100.0, 1 + 2.0**-10, 2050.0, 0.0999755859375]
    generator = torch.Generator().manual_seed(0)
    powers = 27 * torch.rand(20, generator=generator) - 13
    more = torch.exp2(powers).half().double().tolist()
    for w in (*shown, *more):
        h = float(answer(w))
        expect(
            h > 0 and math.frexp(h)[0] == 0.5,
            f"Your function({w:g}) is {h:g}: no power of two.",
        )
        power = round(math.log2(h))
        moved, half_moved = _sum_in_fp16(w, h) != w, _sum_in_fp16(w, h / 2) != w
        expect(
            moved or power > -24,
            f"2**-24 is the smallest number that float16 holds, yet {w:g} + 2**-24 is {w:g}. The "
            "range is not the only limit: near large numbers, float16 numbers lie further apart.",
        )
        expect(
            moved,
            f"{w:g} + 2**{power} is {w:g} in float16. Look at the distance between {w:g} and the "
            "next number: it grows with the number, and a tie, exactly half of it, goes to the "
            "neighbour whose last bit is 0.",
        )
        expect(
            not half_moved,
            f"2**{power} does change {w:g}, but so does the half of it. The distance to the next "
            "number depends on the number, and where the last bit is 1 a tie moves it.",
        )


def _sum_in_fp16(w: float, h: float) -> float:
    """Return w + h rounded to float16, in arithmetic that is exact until then."""
    return float(round_to(torch.tensor(w + h, dtype=torch.float64), "fp16"))


def _solve_vanish(w):
    gap = 2.0 ** (math.floor(math.log2(w)) - 10)
    last_bit = int(w / gap) % 2
    return gap / 2 if last_bit else gap


def _range_only(w):
    return 2.0**-24


def _gap_of_one(w):
    return 2.0**-10


def _half_gap(w):
    return 2.0 ** (math.floor(math.log2(w)) - 11)


def _whole_gap(w):
    return 2.0 ** (math.floor(math.log2(w)) - 10)


# --------------------------------------------------------------------------- the order


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
        "The update is about a thousandth of what it should be. Either you clipped gradients that "
        "carry the scale: Unscale first. Or you divided by a scale that they do not carry: each "
        "loss goes through scaler.scale, and unscale_ divides once.",
    )
    expect(
        scaler.get_scale() <= 2.0**11,
        "scaler.update() ran more than once: the micro-batches of one update must share one scale. "
        "Step and update once, after the last.",
    )
    expect(
        first.norm() < 2.01,
        "The update is longer than max_norm: clip between unscale and step, and clip the norm, "
        "not each entry.",
    )
    wanted = torch.tensor([1.2, 1.6])
    expect(
        torch.allclose(first, wanted, atol=1e-3),
        f"The first update is {_shown(first)}, wanted {_shown(wanted)}: the mean of all losses, "
        "its norm clipped to max_norm.",
    )
    expect(
        scaler.get_scale() == 2.0**11,
        "The scale did not move on: end with scaler.update().",
    )
    second = update([3.0, 0.0], [0.0, 6.0], [3.0, 6.0], max_norm=10.0)
    expect(
        torch.allclose(second, torch.tensor([2.0, 4.0]), atol=1e-3),
        f"Three micro-batches with the mean gradient (2, 4) and max_norm=10 gave "
        f"{_shown(second)}: divide each loss by their number, empty the old gradients first, and "
        "clip to max_norm only what is longer.",
    )
    scale = scaler.get_scale()
    moved = update([math.inf, 1.0], [1.0, 1.0])
    expect(
        bool((moved == 0).all()),
        "One micro-batch had an infinite gradient, and the weights moved: let the scaler take the "
        "step, so that it can leave it out.",
    )
    expect(scaler.get_scale() < scale, "After an infinite gradient the scale must fall.")
    generator = torch.Generator().manual_seed(0)
    for count in (1, 4):
        rows = torch.randn(count, 2, generator=generator)
        mean = rows.mean(dim=0)
        found = update(*rows.tolist(), max_norm=0.3)
        wanted = mean * min(1.0, 0.3 / float(mean.norm()))
        expect(
            torch.allclose(found, wanted, atol=1e-3),
            f"After an infinite gradient, {count} micro-batches with the mean gradient "
            f"{_shown(mean)} and max_norm=0.3 gave {_shown(found)}, wanted {_shown(wanted)}. "
            "Empty the old gradients before each update, also those of a step that was left out.",
        )


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
    grown = [lambda loss=loss: loss() * len(losses) for loss in losses]
    _solve_order(grown, parameters, optimizer, scaler, max_norm)


def _clip_after_step(losses, parameters, optimizer, scaler, max_norm):
    _solve_order(losses, parameters, optimizer, scaler, math.inf)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)


EXERCISES = (
    Exercise(
        "Write descend(weight, gradient_of, rate, updates): gradient descent whose products are "
        "in bfloat16. weight is a float32 tensor; do not change it. gradient_of(w) takes the "
        "weight in bfloat16 and returns its gradient in bfloat16; each update asks it once. Make "
        "`updates` updates of rate times gradient, keep a float32 copy so that no small one is "
        "lost, and return that copy.",
        _check_descend,
        _solve_descend,
        {
            "the weight in bfloat16": Wrong(_in_bf16, "small updates are lost"),
            "the copy rounded each time": Wrong(
                _master_rounded_each_time, "small updates are lost"
            ),
            "everything in float32": Wrong(_all_in_float32, "products are in bfloat16"),
            "rounded once": Wrong(_stale, "sees the same weight"),
            "the rounded copy returned": Wrong(_returns_rounded, "rounded to bfloat16"),
            "bfloat16 returned": Wrong(_returns_bf16, "return the float32 copy"),
            "uphill": Wrong(_uphill, "moves uphill"),
            "no rate": Wrong(_without_rate, "multiplied by the rate"),
            "the given weight changed": Wrong(_in_place, "work on a copy"),
        },
    ),
    Exercise(
        "Write update(weight, scaled_grad, lr, scale, streak, interval): one SGD update with a "
        "loss scale. scaled_grad is the gradient of scale times the loss, and streak counts the "
        "good updates in a row before this one. A good update moves the weight and adds 1 to "
        "streak; when streak reaches interval, the scale doubles and streak starts at 0 again. A "
        "gradient with an inf or NaN in it moves nothing, halves the scale and sets streak to 0. "
        "Return (weight, scale, streak).",
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
            "grown before the step": Wrong(_grow_first, "made at the old scale"),
        },
    ),
    Exercise(
        "Write power(w): the smallest power of two that changes w when it is added in float16. "
        "w is a float16 number from 2**-13 to 2**14, given as a Python float. It is not 2**-11 "
        "for w = 1: why?",
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
        "Write step(losses, parameters, optimizer, scaler, max_norm). losses are functions, one a "
        "micro-batch of equal size: loss() runs its forward pass, autocast included, and returns "
        "its mean loss. Make one update by the gradient of the mean over all of them, its norm "
        "clipped to max_norm. scaler has the calls of torch.amp.GradScaler; gradients may be left "
        "over from the call before.",
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
