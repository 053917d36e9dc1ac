"""Exercises of chapter 11: more answers than the usual mistakes, right ones and wrong ones."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from answers import accepts, rejects
from torch import nn

from dlcourse.exercises.gradient_accumulation import EXERCISES

ACCUMULATE, UPDATE, FACTORS, COUNTS = EXERCISES


def rows_of(micro_batches):
    return sum(len(targets) for _, targets in micro_batches)


# --------------------------------------------------------------------------- accumulate


def divides_at_the_end(model, loss_fn, micro_batches):
    for inputs, targets in micro_batches:
        (loss_fn(model(inputs), targets) * len(targets)).backward()
    for parameter in model.parameters():
        parameter.grad /= rows_of(micro_batches)


def from_the_last_to_the_first(model, loss_fn, micro_batches):
    for inputs, targets in reversed(micro_batches):
        share = np.float64(inputs.shape[0]) / rows_of(micro_batches)
        loss_fn(model(inputs), targets).mul(float(share)).backward()


def by_autograd_grad(model, loss_fn, micro_batches):
    parameters = list(model.parameters())
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for inputs, targets in micro_batches:
        gradients = torch.autograd.grad(loss_fn(model(inputs), targets), parameters)
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient * len(targets)
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total / rows_of(micro_batches)


def a_running_mean(model, loss_fn, micro_batches):
    seen = 0
    for inputs, targets in micro_batches:
        n = len(targets)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad *= seen / (seen + n)
        (loss_fn(model(inputs), targets) * n / (seen + n)).backward()
        seen += n


def with_tensors_and_a_log(model, loss_fn, micro_batches):
    model.zero_grad()
    sizes = torch.tensor([targets.size(0) for _, targets in micro_batches])
    log = []
    for (inputs, targets), share in zip(micro_batches, sizes / sizes.sum(), strict=True):
        loss = loss_fn(model(inputs), targets)
        loss.backward(share.to(loss.dtype))
        log.append(loss)  # the graph is freed all the same
    return sum(log)


RIGHT = [
    divides_at_the_end,
    from_the_last_to_the_first,
    by_autograd_grad,
    a_running_mean,
    with_tensors_and_a_log,
]


@pytest.mark.parametrize("answer", RIGHT, ids=lambda answer: answer.__name__)
def test_accumulate_accepts(answer):
    accepts(ACCUMULATE, answer)


def weighted(share):
    def answer(model, loss_fn, micro_batches):
        sizes = [len(targets) for _, targets in micro_batches]
        for (inputs, targets), n in zip(micro_batches, sizes, strict=True):
            (loss_fn(model(inputs), targets) * share(n, sizes)).backward()

    return answer


def on_a_copy(model, loss_fn, micro_batches):
    ACCUMULATE.solve(copy.deepcopy(model), loss_fn, micro_batches)


def keeps_all_graphs(model, loss_fn, micro_batches):
    kept = []
    for inputs, targets in micro_batches:
        loss = loss_fn(model(inputs), targets) * len(targets) / rows_of(micro_batches)
        loss.backward(retain_graph=True)
        kept.append(loss)


def all_forward_passes_first(model, loss_fn, micro_batches):
    outputs = [model(inputs) for inputs, _ in micro_batches]
    for output, (_, targets) in zip(outputs, micro_batches, strict=True):
        (loss_fn(output, targets) * len(targets) / rows_of(micro_batches)).backward()


def only_for_the_shown_sizes(model, loss_fn, micro_batches):
    weighted(lambda n, sizes: n / 8)(model, loss_fn, micro_batches)


def mean_squared_error_for_all(model, loss_fn, micro_batches):
    ACCUMULATE.solve(
        model, lambda outputs, targets: outputs.square().mean(), micro_batches
    )


def asks_loss_fn_and_ignores_it(model, loss_fn, micro_batches):
    inputs, targets = micro_batches[0]
    with torch.no_grad():
        loss_fn(model(inputs), targets)
    other = F.cross_entropy if targets.dtype == torch.int64 else F.mse_loss
    ACCUMULATE.solve(model, other, micro_batches)


def clears_at_the_end(model, loss_fn, micro_batches):
    ACCUMULATE.solve(model, loss_fn, micro_batches)
    model.zero_grad()


WRONG = {
    "divided by the largest": (
        weighted(lambda n, sizes: n / max(sizes)),
        "times as long",
    ),
    "by micro-batches as well": (
        weighted(lambda n, sizes: n / sum(sizes) / len(sizes)),
        "times as long",
    ),
    "shares upside down": (
        weighted(lambda n, sizes: 1 / n / len(sizes)),
        "How much should",
    ),
    "roots of the sizes": (
        weighted(lambda n, sizes: math.sqrt(n / sum(sizes))),
        "How much should",
    ),
    "on a copy": (on_a_copy, "no gradient in .grad"),
    "all graphs kept": (keeps_all_graphs, "autograd kept"),
    "all forward passes first": (all_forward_passes_first, "autograd kept"),
    "the shown sizes only": (only_for_the_shown_sizes, "times as long"),
    "another loss": (mean_squared_error_for_all, "never calls loss_fn"),
    "loss_fn asked, not used": (asks_loss_fn_and_ignores_it, "How much should"),
    "cleared at the end": (clears_at_the_end, "no gradient in .grad"),
}


@pytest.mark.parametrize("name", WRONG)
def test_accumulate_rejects(name):
    answer, words = WRONG[name]
    rejects(ACCUMULATE, answer, words)


# --------------------------------------------------------------------------- update


def clips_by_hand(model, loss_fn, optimizer, micro_batches, max_norm):
    optimizer.zero_grad(set_to_none=False)  # at the start instead of the end
    divides_at_the_end(model, loss_fn, micro_batches)
    squares = sum(float(p.grad.square().sum()) for p in model.parameters())
    for parameter in model.parameters():
        parameter.grad *= min(1.0, max_norm / math.sqrt(squares))
    optimizer.step()


def clips_the_first_only(model, loss_fn, optimizer, micro_batches, max_norm):
    for number, (inputs, targets) in enumerate(micro_batches):
        n, total = len(targets), rows_of(micro_batches)
        (loss_fn(model(inputs), targets) * n / total).backward()
        if number == 0:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad()


def clips_after_the_step(model, loss_fn, optimizer, micro_batches, max_norm):
    ACCUMULATE.solve(model, loss_fn, micro_batches)
    optimizer.step()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.zero_grad()


def clips_each_layer(model, loss_fn, optimizer, micro_batches, max_norm):
    ACCUMULATE.solve(model, loss_fn, micro_batches)
    for parameter in model.parameters():
        nn.utils.clip_grad_norm_([parameter], max_norm)
    optimizer.step()
    optimizer.zero_grad()


def plain_gradient_descent(model, loss_fn, optimizer, micro_batches, max_norm):
    ACCUMULATE.solve(model, loss_fn, micro_batches)
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    model.zero_grad()


def test_update_accepts():
    accepts(UPDATE, clips_by_hand)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (clips_the_first_only, "one update"),
        (clips_after_the_step, "Nothing is clipped"),
        (clips_each_layer, "one update"),
        (plain_gradient_descent, "first update is right"),
    ],
)
def test_update_rejects(answer, words):
    rejects(UPDATE, answer, words)


# --------------------------------------------------------------------------- factors, counts


@pytest.mark.parametrize("make", [np.array, torch.tensor, tuple])
def test_factors_in_any_form(make):
    assert (
        FACTORS.hint_for(lambda items, steps: make(FACTORS.solve(items, steps))) is None
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda items, steps: FACTORS.solve(items, steps)[0], "the shape is"),
        (lambda items, steps: [[5 / 3, 2 / 3, 4 / 3], [1, 1, 1 / 3]], "the shape is"),
        (lambda items, steps: np.array(FACTORS.solve(items, steps)) ** 2, "do not give"),
        (lambda items, steps: steps, "the shape is"),
    ],
)
def test_factors_rejects(answer, words):
    rejects(FACTORS, answer, words)


def counted_in_a_loop(rows, micro_batch_size, accumulation_steps):
    passes = updates = in_window = waiting = 0
    last = 0
    while rows > 0:
        taken = min(rows, micro_batch_size)
        rows -= taken
        passes, in_window, waiting = passes + 1, in_window + 1, waiting + taken
        if in_window == accumulation_steps or rows == 0:
            updates, last, in_window, waiting = updates + 1, waiting, 0, 0
    return [passes, updates, torch.tensor(last)]


def test_counts_accepts_a_loop():
    accepts(COUNTS, counted_in_a_loop)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            lambda rows, size, steps: (rows // size, rows // size // steps),
            "three numbers",
        ),
        (lambda rows, size, steps: (8, 2, 32), "You said 8"),
        (lambda rows, size, steps: (-(-rows // size), 1, rows), "one optimizer step"),
    ],
)
def test_counts_rejects(answer, words):
    rejects(COUNTS, answer, words)
