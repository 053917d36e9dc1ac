"""Exercises of chapter 15: more answers than the usual mistakes, right ones and wrong ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from answers import accepts, rejects
from torch import nn

from dlcourse.exercises.mixed_precision import EXERCISES

DESCEND, UPDATE, POWER, STEP = EXERCISES


@pytest.mark.parametrize("exercise", EXERCISES)
def test_solution_and_usual_mistakes(exercise):
    assert exercise.hint_for(...) is not None
    accepts(exercise, exercise.solve)
    for wrong in exercise.wrong.values():
        rejects(exercise, wrong.answer, wrong.hint)


def name_of(answer):
    return answer.__name__


# --------------------------------------------------------------------------- descend


def in_float64(weight, gradient_of, rate, updates):
    master = weight.double()
    for _ in range(updates):
        master -= rate * gradient_of(master.to(torch.bfloat16)).double()
    return master


def product_in_bf16(weight, gradient_of, rate, updates):
    master = weight.detach().clone()
    while updates > 0:
        master.add_(gradient_of(master.bfloat16()), alpha=-rate)
        updates -= 1
    return master


def with_a_parameter_and_an_optimizer(weight, gradient_of, rate, updates):
    master = nn.Parameter(weight.clone())
    optimizer = torch.optim.SGD([master], lr=rate)
    for _ in range(updates):
        master.grad = gradient_of(master.detach().bfloat16()).to(master.dtype)
        optimizer.step()
    return master


def with_numpy(weight, gradient_of, rate, updates):
    master = weight.numpy().copy()
    for _ in range(updates):
        gradient = gradient_of(torch.tensor(master).bfloat16())
        master = master - np.float32(rate) * gradient.float().numpy()
    return torch.as_tensor(master)


def what_rounding_left_is_kept(weight, gradient_of, rate, updates):
    rounded = weight.bfloat16()
    left = weight - rounded.float()  # the master copy, in two parts
    for _ in range(updates):
        left = left - rate * gradient_of(rounded).float()
        whole = rounded.float() + left
        rounded = whole.bfloat16()
        left = whole - rounded.float()
    return rounded.float() + left


@pytest.mark.parametrize(
    "answer",
    [
        in_float64,
        product_in_bf16,
        with_a_parameter_and_an_optimizer,
        with_numpy,
        what_rounding_left_is_kept,
    ],
    ids=name_of,
)
def test_descend_accepts(answer):
    accepts(DESCEND, answer)


def descend(before=None, start=None, step=None, end=None):
    """Return a descent with one of its parts replaced by a wrong one."""

    def answer(weight, gradient_of, rate, updates):
        master = start(weight) if start else weight.clone()
        updates = before(updates) if before else updates
        for number in range(updates):
            gradient = gradient_of(master.bfloat16()).float()
            master = master - (step(rate, gradient, number) if step else rate * gradient)
        return end(master) if end else master

    return answer


WRONG = {
    "one update too few": (descend(before=lambda n: max(n - 1, 0)), "once each"),
    "one update too many": (descend(before=lambda n: n + 1), "once each"),
    "the start rounded": (
        descend(start=lambda w: w.bfloat16().float()),
        "starts from the weight rounded",
    ),
    "rate squared": (descend(step=lambda r, g, n: r * r * g), "leads to"),
    "the rate falls": (descend(step=lambda r, g, n: r * g / (n + 1)), "leads to"),
    "only the sign": (descend(step=lambda r, g, n: r * g.sign()), "leads to"),
    "a list": (descend(end=lambda w: w.tolist()), "a tensor"),
    "float16": (descend(end=lambda w: w.half()), "return the float32 copy"),
    "flat": (descend(end=lambda w: w.reshape(-1)[None]), "has the shape"),
    "the start": (lambda w, gradient_of, rate, updates: w, "once each"),
    "nothing": (lambda w, gradient_of, rate, updates: None, "a tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_descend_rejects(name):
    rejects(DESCEND, *WRONG[name])


def asks_twice(weight, gradient_of, rate, updates):
    for _ in range(updates):
        gradient_of(weight.bfloat16())
        weight = weight - rate * gradient_of(weight.bfloat16()).float()
    return weight


def in_float16(weight, gradient_of, rate, updates):
    return descend()(weight, lambda w: gradient_of(w.half()), rate, updates)


def weight_kept_in_float16(weight, gradient_of, rate, updates):
    weight = weight.half()
    for _ in range(updates):
        weight = weight - rate * gradient_of(weight.bfloat16()).half()
    return weight.float()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (asks_twice, "once each"),
        (in_float16, "products are in bfloat16"),
        (weight_kept_in_float16, "leads to"),
    ],
)
def test_descend_rejects_more(answer, words):
    rejects(DESCEND, answer, words)


# --------------------------------------------------------------------------- update


def in_place(weight, scaled_grad, lr, scale, streak, interval):
    if torch.isfinite(scaled_grad).all():
        weight -= lr * scaled_grad / scale
        streak += 1
    else:
        scale, streak = scale * 0.5, 0
    if streak >= interval:
        scale, streak = scale * 2, 0
    return [weight, torch.tensor(scale), np.int64(streak)]


def in_numpy(weight, scaled_grad, lr, scale, streak, interval):
    gradient = scaled_grad.numpy()
    if np.isnan(gradient).any() or np.isinf(gradient).any():
        return weight.numpy(), np.float32(scale) / 2, 0
    weight = weight.numpy() - np.float32(lr / scale) * gradient
    full = (streak + 1) // interval
    return weight, scale * 2**full, (streak + 1) % interval


def number_by_number(weight, scaled_grad, lr, scale, streak, interval):
    moved = []
    for w, g in zip(weight.tolist(), scaled_grad.tolist(), strict=True):
        if not math.isfinite(g):
            return weight, scale / 2, 0
        moved.append(w - lr * (g / scale))
    if streak == interval - 1:
        return moved, 2 * scale, 0
    return moved, scale, streak + 1


def with_a_mask(weight, scaled_grad, lr, scale, streak, interval):
    good = scaled_grad.isfinite().all()
    step = torch.where(good, scaled_grad / scale, 0.0)
    count = torch.where(good, streak + 1, 0)
    factor = torch.where(good, torch.where(count == interval, 2.0, 1.0), 0.5)
    return weight - lr * step, scale * factor, count * (count != interval)


def with_torchs_scaler(weight, scaled_grad, lr, scale, streak, interval):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=interval)
    scaler.load_state_dict(scaler.state_dict() | {"_growth_tracker": streak})
    parameter = nn.Parameter(weight)
    optimizer = torch.optim.SGD([parameter], lr=lr)
    scaler.scale(torch.zeros(1))
    parameter.grad = scaled_grad
    scaler.step(optimizer)
    scaler.update()
    return parameter, scaler.get_scale(), scaler.state_dict()["_growth_tracker"]


@pytest.mark.parametrize(
    "answer",
    [in_place, in_numpy, number_by_number, with_a_mask, with_torchs_scaler],
    ids=name_of,
)
def test_update_accepts(answer):
    accepts(UPDATE, answer)


def update(**changed):
    """Return the right update, called with other numbers in place of those given."""

    def answer(weight, scaled_grad, lr, scale, streak, interval):
        given = {"lr": lr, "scale": scale, "streak": streak, "interval": interval}
        return UPDATE.solve(weight, scaled_grad, **given | changed)

    return answer


def quarters(weight, scaled_grad, lr, scale, streak, interval):
    weight, new, count = UPDATE.solve(weight, scaled_grad, lr, scale, streak, interval)
    return weight, new / 2 if new < scale else new, count


def multiplies(weight, scaled_grad, lr, scale, streak, interval):
    return UPDATE.solve(weight, -scaled_grad, lr, scale, streak, interval)


def streak_runs_on(weight, scaled_grad, lr, scale, streak, interval):
    weight, new, count = UPDATE.solve(weight, scaled_grad, lr, scale, streak, interval)
    return weight, new, streak + 1 if new > scale else count


def zero_is_bad(weight, scaled_grad, lr, scale, streak, interval):
    if not scaled_grad.any():
        return weight, scale / 2, 0
    return UPDATE.solve(weight, scaled_grad, lr, scale, streak, interval)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (update(scale=1024.0), "should move"),
        (update(lr=0.5), "should move"),
        (update(interval=3), "interval"),
        (update(streak=0), "the count is then"),
        (quarters, "halve it, to"),
        (multiplies, "uphill"),
        (streak_runs_on, "starts anew"),
        (zero_is_bad, "the scale stays"),
        (lambda w, g, lr, scale, streak, interval: (w, scale, streak), "did not move"),
        (lambda w, g, lr, scale, streak, interval: w, "three things"),
        (lambda w, g, lr, scale, streak, interval: None, "three things"),
        (lambda w, g, lr, scale, streak, interval: (w[:0], scale, 0), "has the shape"),
    ],
)
def test_update_rejects(answer, words):
    rejects(UPDATE, answer, words)


# --------------------------------------------------------------------------- power


def tries_all(w):
    return next(2.0**k for k in range(-24, 16) if torch.tensor(w + 2.0**k).half() != w)


def from_the_neighbour(w):
    high = np.nextafter(np.float16(w), np.float16(np.inf))
    gap = float(high) - w
    return gap / 2 if np.float16(w + gap / 2) != np.float16(w) else gap


def by_halving(w):
    h = np.float16(2.0**14)
    while np.float16(w) + h / np.float16(2) != np.float16(w):
        h = h / np.float16(2)
    return h


def from_the_bits(w):
    code = int(np.float16(w).view(np.uint16))
    gap = 2.0 ** ((code >> 10) - 25)
    return torch.tensor(gap / 2 if code & 1 else gap)


def from_finfo(w):
    _, exponent = math.frexp(w)
    gap = torch.finfo(torch.float16).eps * 2.0 ** (exponent - 1)
    return gap / 2 if (w / gap) % 2 == 1 else gap


@pytest.mark.parametrize(
    "answer",
    [tries_all, from_the_neighbour, by_halving, from_the_bits, from_finfo],
    ids=name_of,
)
def test_power_accepts(answer):
    accepts(POWER, answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda w: 2.0 ** math.floor(math.log2(w * 1e-3)), "the half of it"),
        (lambda w: 2.0**-10 if w == 1 else 2.0**-11, "grows with the number"),
        (lambda w: w * 2.0**-10, "no power of two"),
        (lambda w: -1, "no power of two"),
        (lambda w: 0.0, "no power of two"),
        (lambda w: 2.0**-11, "a tie, exactly half"),
        (lambda w: 2.0**-8, "the half of it"),
        (lambda w: 2.0 ** math.ceil(math.log2(w)) * 2.0**-10, "the half of it"),
        (lambda w: 2.0 ** (math.floor(math.log2(w)) - 7), "the half of it"),
        (lambda w: 2.0 ** (math.floor(math.log2(w)) - 23), "in float16"),
        (lambda w: 1.0, "the half of it"),
    ],
)
def test_power_rejects(answer, words):
    rejects(POWER, answer, words)


def test_every_power_is_the_smallest_that_float16_arithmetic_sees():
    every = torch.arange(0x0800, 0x7400, 7, dtype=torch.int16).view(torch.float16)
    for w in (*every.tolist(), 2.0**-13, 2.0**14):
        h = np.float16(POWER.solve(w))
        assert np.float16(w) + h != np.float16(w) == np.float16(w) + h / np.float16(2)


# --------------------------------------------------------------------------- step


def clips_at_the_scaled_norm(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    nn.utils.clip_grad_norm_(parameters, max_norm * scaler.get_scale())
    scaler.step(optimizer)
    scaler.update()


def zeroes_at_the_end(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        (scaler.scale(loss()) / len(losses)).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def one_backward(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad(set_to_none=False)
    total = sum(loss() for loss in losses) / len(losses)
    scaler.scale(total).backward()
    scaler.unscale_(optimizer)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in parameters))
    for parameter in parameters:
        if norm > max_norm:
            parameter.grad *= max_norm / norm
    scaler.step(optimizer)
    scaler.update()


def divides_the_gradients(losses, parameters, optimizer, scaler, max_norm):
    for parameter in parameters:
        parameter.grad = None
    for loss in reversed(losses):
        scaler.scale(loss()).backward()
    scaler.unscale_(optimizer)
    for parameter in parameters:
        parameter.grad.div_(len(losses))
    nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def by_autograd_grad(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        found = torch.autograd.grad(scaler.scale(loss() / len(losses)), parameters)
        for parameter, gradient in zip(parameters, found, strict=True):
            held = parameter.grad
            parameter.grad = gradient if held is None else held + gradient
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize(
    "answer",
    [
        clips_at_the_scaled_norm,
        zeroes_at_the_end,
        one_backward,
        divides_the_gradients,
        by_autograd_grad,
    ],
    ids=name_of,
)
def test_step_accepts(answer):
    accepts(STEP, answer)


def fixed_norm(losses, parameters, optimizer, scaler, max_norm):
    STEP.solve(losses, parameters, optimizer, scaler, 2.0)


def never_steps(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()


def never_scales(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        (loss() / len(losses)).backward()
    nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()


def never_updates(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)


def never_clips(losses, parameters, optimizer, scaler, max_norm):
    STEP.solve(losses, parameters, optimizer, scaler, math.inf)


def never_zeroes(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def only_the_first(losses, parameters, optimizer, scaler, max_norm):
    STEP.solve(losses[:1], parameters, optimizer, scaler, max_norm)


def only_the_last(losses, parameters, optimizer, scaler, max_norm):
    STEP.solve(losses[-1:], parameters, optimizer, scaler, max_norm)


def clips_values(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_value_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def always_two(losses, parameters, optimizer, scaler, max_norm):
    halves = [lambda loss=loss: loss() * len(losses) / 2 for loss in losses]
    STEP.solve(halves, parameters, optimizer, scaler, max_norm)


def leftovers_after_a_skip(losses, parameters, optimizer, scaler, max_norm):
    scale = scaler.get_scale()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    if scaler.get_scale() > scale:
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (fixed_norm, "divide each loss"),
        (never_steps, ""),
        (never_scales, ""),
        (never_updates, "did not move on"),
        (never_clips, "longer than max_norm"),
        (never_zeroes, "Empty the old gradients"),
        (only_the_first, "the mean of all losses"),
        (only_the_last, "the mean of all losses"),
        (clips_values, "longer than max_norm"),
        (always_two, "divide each loss"),
        (leftovers_after_a_skip, "Empty the old gradients"),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_step_rejects(answer, words):
    rejects(STEP, answer, words)
