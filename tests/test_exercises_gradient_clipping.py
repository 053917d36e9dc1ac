"""Exercises of chapter 4: more answers than the usual mistakes, right ones and wrong ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from answers import accepts, rejects
from torch import nn

from dlcourse import gradient_clipping as gc
from dlcourse.exercises.gradient_clipping import EXERCISES

CLIP, UPDATE, BOUNDS = EXERCISES


# --------------------------------------------------------------------------- clip


def with_plain_numbers(parameters, max_norm):
    squares = 0.0
    for p in parameters:
        if p.grad is not None:
            squares += float((p.grad.double() ** 2).sum())
    norm = math.sqrt(squares)
    if norm > max_norm:
        for p in parameters:
            if p.grad is not None:
                p.grad *= max_norm / norm
    return norm


def with_numpy(parameters, max_norm):
    grads = [p.grad.numpy() for p in parameters if p.grad is not None]
    norm = np.linalg.norm(np.concatenate([g.ravel() for g in grads]))
    for g in grads:
        g *= min(1.0, max_norm / (norm + 1e-6))  # the memory is that of .grad
    return norm


def with_new_tensors(parameters, max_norm):
    parameters = [p for p in parameters if p.grad is not None]
    norm = torch.cat([p.grad.reshape(-1) for p in parameters]).norm()
    for p in parameters:
        p.grad = p.grad / torch.clamp(norm / max_norm, min=1.0)
    return norm.reshape(1)


def by_torch(parameters, max_norm):
    return nn.utils.clip_grad_norm_(parameters, max_norm)


def min_of_tensors(parameters, max_norm):
    """min(1, m / t) of a tensor of zero is min(1, inf), which is 1: right."""
    grads = [p.grad for p in parameters if p.grad is not None]
    total = sum(g.square().sum() for g in grads) ** 0.5
    factor = min(1, max_norm / total)
    for g in grads:
        g.mul_(factor)
    return total.item()


@pytest.mark.parametrize(
    "answer",
    [
        with_plain_numbers,
        with_numpy,
        by_torch,
        min_of_tensors,
        gc.clip_grad_norm_,
    ],
    ids=lambda answer: getattr(answer, "__name__", "clip"),
)
def test_clip_accepts(answer):
    accepts(CLIP, answer)


def scales(factor_of, returned="norm"):
    """Return a clip that multiplies by factor_of(all gradients as one vector, bound)."""

    def clip(parameters, max_norm):
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        factor = factor_of(flat, max_norm)
        for g in grads:
            g.mul_(factor)
        return {"norm": flat.norm(), "factor": factor, "grads": grads}[returned]

    return clip


def usual(flat, bound):
    return min(1.0, bound / (float(flat.norm()) + 1e-6))


def changes_the_weights(parameters, max_norm):
    norm = CLIP.solve(parameters, max_norm)
    with torch.no_grad():
        for p in parameters:
            if p.grad is not None:
                p -= 0.1 * p.grad
    return norm


def drops_long_gradients(parameters, max_norm):
    norm = by_torch([p for p in parameters if p.grad is not None], math.inf)
    if norm > max_norm:
        for p in parameters:
            p.grad = None
    return norm


def zero_over_zero(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.cat([g.flatten() for g in grads]).norm()
    length = torch.clamp(norm, max=max_norm)
    for g in grads:
        g.mul_(length / norm)
    return norm


def forgets_the_last(parameters, max_norm):
    return by_torch(parameters[:-1] or parameters, max_norm)


def measures_the_first_only(parameters, max_norm):
    norm = by_torch(parameters, math.inf)
    factor = min(1.0, max_norm / float(parameters[0].grad.norm()))
    for p in parameters:
        if p.grad is not None:
            p.grad.mul_(factor)
    return norm


def only_for_the_shown(parameters, max_norm):
    for p in parameters:
        if p.grad is not None:
            p.grad.mul_(0.2)
    return 25.0


CLIP_WRONG = {
    "weights change": (changes_the_weights, "parameters themselves"),
    "long ones dropped": (drops_long_gradients, "gradient is gone"),
    "zero over zero": (zero_over_zero, "all zero must stay zero"),
    "the last is left out": (forgets_the_last, "points elsewhere"),
    "the first decides": (measures_the_first_only, "afterwards the norm"),
    "the shown numbers": (only_for_the_shown, "norm"),
    "largest entry": (
        scales(lambda flat, bound: min(1.0, bound / float(flat.abs().max()))),
        "afterwards the norm",
    ),
    "sum of entries": (
        scales(lambda flat, bound: min(1.0, bound / float(flat.abs().sum()))),
        "the norm is",
    ),
    "upside down": (
        scales(lambda flat, bound: min(1.0, float(flat.norm()) / bound)),
        "nothing has changed",
    ),
    "half of the bound": (
        scales(lambda flat, bound: min(1.0, bound / 2 / float(flat.norm() + 1e-9))),
        "norm",
    ),
    "a bound of its own": (
        scales(lambda flat, bound: min(1.0, 1.0 / float(flat.norm() + 1e-9))),
        "norm",
    ),
    "new tensors": (with_new_tensors, "Multiply in place"),
    "returns the factor": (scales(usual, "factor"), "norm before clipping is"),
    "returns the gradients": (scales(usual, "grads"), "Return one number"),
}


@pytest.mark.parametrize("name", CLIP_WRONG)
def test_clip_rejects(name):
    answer, words = CLIP_WRONG[name]
    rejects(CLIP, answer, words)


# --------------------------------------------------------------------------- update


def zeroes_first(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad(set_to_none=False)
    for loss in losses:
        scaler.scale(loss()).backward()
    scaler.unscale_(optimizer)
    for p in parameters:
        p.grad /= len(losses)
    nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def bound_times_scale(losses, parameters, optimizer, scaler, max_norm):
    """Never unscales itself: the bound is scaled instead."""
    optimizer.zero_grad()
    for loss in losses:
        (scaler.scale(loss()) / len(losses)).backward()
    nn.utils.clip_grad_norm_(parameters, max_norm * scaler.get_scale())
    scaler.step(optimizer)
    scaler.update()


def clips_by_hand(losses, parameters, optimizer, scaler, max_norm):
    for loss in reversed(losses):
        scaler.scale(loss().div(len(losses))).backward()
    scaler.unscale_(optimizer)
    squares = sum(float(p.grad.square().sum()) for p in parameters)
    factor = min(1.0, max_norm / max(math.sqrt(squares), 1e-12))
    for p in parameters:
        p.grad.mul_(factor)
    scaler.step(optimizer)
    scaler.update()
    for p in parameters:
        p.grad = None


def by_autograd_grad(losses, parameters, optimizer, scaler, max_norm):
    sums = [torch.zeros_like(p) for p in parameters]
    for loss in losses:
        grads = torch.autograd.grad(scaler.scale(loss() / len(losses)), parameters)
        for total, grad in zip(sums, grads, strict=True):
            total += grad
    for p, total in zip(parameters, sums, strict=True):
        p.grad = total
    scaler.unscale_(optimizer)
    gc.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def keeps_a_log(losses, parameters, optimizer, scaler, max_norm):
    mean = 0.0
    for number in range(len(losses)):
        loss = losses[number]() / len(losses)
        scaler.scale(loss).backward()
        mean += loss.item()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return mean, norm


@pytest.mark.parametrize(
    "answer",
    [
        zeroes_first,
        bound_times_scale,
        clips_by_hand,
        by_autograd_grad,
        keeps_a_log,
    ],
    ids=lambda answer: answer.__name__,
)
def test_update_accepts(answer):
    accepts(UPDATE, answer)


def unscales_each_time(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
        scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def clips_then_unscales(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def never_scales(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        (loss() / len(losses)).backward()
    nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    optimizer.zero_grad()


def plain_loss_with_the_scaler(losses, parameters, optimizer, scaler, max_norm):
    scaler.scale(torch.zeros(1))  # wakes it up; the losses go by unscaled
    for loss in losses:
        (loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def last_micro_batch_only(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        optimizer.zero_grad()
        scaler.scale(loss()).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def divides_by_four(losses, parameters, optimizer, scaler, max_norm):
    UPDATE.solve([lambda f=f: f() * len(losses) / 4 for f in losses], parameters,
                 optimizer, scaler, max_norm)  # fmt: skip


def clips_the_first_parameters_only(losses, parameters, optimizer, scaler, max_norm):
    UPDATE.solve(losses, parameters[:-1], optimizer, scaler, max_norm)


def does_nothing(losses, parameters, optimizer, scaler, max_norm):
    return None


def all_losses_first(losses, parameters, optimizer, scaler, max_norm):
    values = [loss() / len(losses) for loss in losses]
    UPDATE.solve([lambda v=v: v * len(losses) for v in values], parameters, optimizer,
                 scaler, max_norm)  # fmt: skip


def skips_by_itself_and_never_updates(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    for p in parameters:
        p.grad /= scaler.get_scale()
    if nn.utils.clip_grad_norm_(parameters, max_norm).isfinite():
        optimizer.step()
    optimizer.zero_grad()


def steps_by_hand(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        (loss() / len(losses)).backward()
    nn.utils.clip_grad_norm_(parameters, max_norm)
    with torch.no_grad():
        for p in parameters:
            p -= 0.1 * p.grad
            p.grad = None


UPDATE_WRONG = {
    "unscales each time": (unscales_each_time, "unscale_"),
    "clips, then unscales": (clips_then_unscales, "Unscale first"),
    "no scaler at all": (never_scales, "let the scaler"),
    "losses not scaled": (plain_loss_with_the_scaler, "not those of one update"),
    "the last only": (last_micro_batch_only, "not those of one update"),
    "divides by four": (divides_by_four, "not those of one update"),
    "a norm of some": (clips_the_first_parameters_only, "not those of one update"),
    "nothing": (does_nothing, "do not move"),
    "all losses first": (all_losses_first, "wait with their graphs"),
    "skips by itself": (skips_by_itself_and_never_updates, "scale must fall"),
    "steps by hand": (steps_by_hand, "first update is right"),
}


@pytest.mark.parametrize("name", UPDATE_WRONG)
def test_update_rejects(name):
    answer, words = UPDATE_WRONG[name]
    rejects(UPDATE, answer, words)


# --------------------------------------------------------------------------- a moving bound


def as_an_array(norms, window, quantile):
    values = np.array(norms)
    for t in range(window, len(norms)):
        values[t] = min(norms[t], np.quantile(norms[t - window : t], quantile))
    return values


def as_a_tensor(norms, window, quantile):
    given = torch.tensor(norms, dtype=torch.float64)
    clipped = given.clone()
    for t in range(window, len(given)):
        clipped[t] = torch.minimum(given[t], given[t - window : t].quantile(quantile))
    return clipped


def as_a_generator(norms, window, quantile):
    past = []
    for norm in norms:
        full = len(past) == window
        yield min(norm, np.percentile(past, 100 * quantile)) if full else norm
        past = [*past, norm][-window:]


def in_one_line(norms, window, quantile):
    bounds = [
        np.quantile(norms[t - window : t], quantile) for t in range(window, len(norms))
    ]
    return (*norms[:window], *map(min, norms[window:], bounds))


def by_sorting(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t >= window:
            past = sorted(norms[t - window : t])
            place = quantile * (window - 1)
            low = int(place)
            high = min(low + 1, window - 1)
            bound = past[low] + (place - low) * (past[high] - past[low])
            norm = torch.tensor(min(norm, bound))
        out.append(norm)
    return out


@pytest.mark.parametrize(
    "answer",
    [as_an_array, as_a_tensor, as_a_generator, in_one_line, by_sorting],
    ids=lambda answer: answer.__name__,
)
def test_bounds_accepts(answer):
    accepts(BOUNDS, answer)


def bounded(bound_of):
    def answer(norms, window, quantile):
        clipped = list(norms)
        for t in range(window, len(norms)):
            clipped[t] = min(norms[t], bound_of(norms[t - window : t], quantile))
        return clipped

    return answer


def changes_the_list(norms, window, quantile):
    for t in range(window, len(norms)):
        norms[t] = min(norms[t], np.quantile(norms[t - window : t], quantile))
    return norms


def from_the_next(norms, window, quantile):
    clipped = list(norms)
    for t in range(window, len(norms)):
        clipped[t] = min(norms[t], np.quantile(norms[t : t + window], quantile))
    return clipped


def one_late(norms, window, quantile):
    clipped = list(norms)
    for t in range(window + 1, len(norms)):
        clipped[t] = min(norms[t], np.quantile(norms[t - window - 1 : t - 1], quantile))
    return clipped


def leaves_spikes_out(norms, window, quantile):
    return [norm for norm in norms if norm < np.quantile(norms, quantile)]


def factors(norms, window, quantile):
    clipped = BOUNDS.solve(norms, window, quantile)
    return [after / before for after, before in zip(clipped, norms, strict=True)]


BOUNDS_WRONG = {
    "changes the list": (changes_the_list, "changed the list"),
    "the next window": (from_the_next, "it should become"),
    "one late": (one_late, "it should become"),
    "spikes left out": (leaves_spikes_out, "one for each update"),
    "factors": (factors, "it should become"),
    "the mean": (bounded(lambda past, q: np.mean(past)), "it should become"),
    "the largest": (bounded(lambda past, q: max(past)), "it should become"),
    "the median": (bounded(lambda past, q: np.median(past)), "it should become"),
    "the other end": (bounded(lambda past, q: np.quantile(past, 1 - q)), "it should become"),
    "quantile times largest": (bounded(lambda past, q: q * max(past)), "it should become"),
    "no interpolation": (
        bounded(lambda past, q: sorted(past)[int(q * (len(past) - 1))]),
        "it should become",
    ),
    "a number": (lambda norms, window, quantile: 1.0, "one number for each"),
    "nothing": (lambda norms, window, quantile: print(end=""), "Return the norms"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOUNDS_WRONG)
def test_bounds_rejects(name):
    answer, words = BOUNDS_WRONG[name]
    rejects(BOUNDS, answer, words)


@pytest.mark.parametrize("exercise", EXERCISES, ids=["clip", "update", "bounds"])
def test_solution_and_usual_mistakes(exercise):
    accepts(exercise, exercise.solve)
    for name, wrong in exercise.wrong.items():
        hint = exercise.hint_for(wrong.answer)
        assert hint is not None and wrong.hint in hint, (name, hint)
