"""Exercises of chapter 8: more answers than the usual mistakes, right ones and wrong ones."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from answers import accepts, rejects

from dlcourse.exercises.learning_rate_decay import EXERCISES

THRESHOLD, RESCALE, TOTAL = EXERCISES


def name_of(answer):
    return getattr(answer, "__name__", "answer")


# --------------------------------------------------------------------------- threshold


def with_torch(curvatures):
    return 2 / torch.tensor(curvatures).max()


def with_numpy(curvatures):
    return np.divide(2.0, np.asarray(curvatures, dtype=np.float32).max(keepdims=True))


def in_a_loop(curvatures):
    steepest = 0.0
    for curvature in curvatures:
        if curvature > steepest:
            steepest = curvature
    return 2 * steepest**-1


def by_sorting_in_place(curvatures):
    curvatures.sort(reverse=True)
    return str(2 / curvatures[0]) and 2 / curvatures[0]


def by_an_eigenvalue(curvatures):
    return 2 / torch.linalg.eigvalsh(torch.diag(torch.tensor(curvatures)))[-1]


def by_trying_rates(curvatures):
    low, high = 0.0, 1e4
    for _ in range(40):
        middle = (low + high) / 2
        distance = [1.0] * len(curvatures)
        for _ in range(2000):
            distance = [
                w - middle * c * w for w, c in zip(distance, curvatures, strict=True)
            ]
            if max(map(abs, distance)) > 1e6:
                break
        grows = max(map(abs, distance)) > 1
        low, high = (low, middle) if grows else (middle, high)
    return low


@pytest.mark.parametrize(
    "answer",
    [
        with_torch,
        with_numpy,
        in_a_loop,
        by_sorting_in_place,
        by_an_eigenvalue,
        by_trying_rates,
    ],
    ids=name_of,
)
def test_threshold_accepts(answer):
    accepts(THRESHOLD, answer)


def only_for_different_ones(curvatures):
    different = sorted(set(curvatures))
    return 2 / (different[-1] + (0 if len(different) == len(curvatures) else 1))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda c: math.inf, "Not every rate converges"),
        (lambda c: math.nan, "Not every rate converges"),
        (lambda c: -2 / max(c), "small rates above 0"),
        (lambda c: 0, "small rates above 0"),
        (lambda c: 1 / max(c), "lands on the minimum"),
        (lambda c: 2 / min(c), "steepest direction"),
        (lambda c: 2 / c[0], "steepest direction"),
        (lambda c: 2 / c[-1], "steepest direction"),
        (lambda c: 2 / np.median(c), "steepest direction"),
        (lambda c: 2 / sum(c), "sum of the curvatures"),
        (lambda c: 2 / math.hypot(*c), "length of the vector"),
        (lambda c: 4 / max(c), "runs away"),
        (lambda c: 2 * max(c), "runs away"),
        (lambda c: 2 / max(c) ** 2, "still converge"),
        (lambda c: 2 / sum(x**4 for x in c) ** 0.25, "still converge"),
        (lambda c: 1.95 / max(c), "still converge"),
        (lambda c: 2, "runs away"),
        (lambda c: {1.0: 2, 4.0: 0.5, 8.0: 0.25, 5.0: 0.4}.get(max(c), 1), "you said 1"),
        (only_for_different_ones, "still converge"),
        (lambda c: [2 / x for x in c], "a single number"),
        (lambda c: 2 / torch.tensor(c), "a single number"),
        (lambda c: print(end=""), "returned None"),
    ],
)
def test_threshold_rejects(answer, words):
    rejects(THRESHOLD, answer, words)


# --------------------------------------------------------------------------- rescale


def with_a_table(lr, batch_size, new_batch_size, optimizer):
    power = {"sgd": 1, "adam": 0.5}[optimizer]
    return np.float64(lr) * np.power(new_batch_size / batch_size, power)


def with_tensors(lr, batch_size, new_batch_size, optimizer):
    ratio = torch.tensor(new_batch_size) / torch.tensor(batch_size)
    return torch.tensor(lr) * (ratio.sqrt() if optimizer == "adam" else ratio)


def by_logarithms(lr, batch_size, new_batch_size, optimizer):
    share = 1.0 if optimizer == "sgd" else 0.5
    grown = math.log(new_batch_size) - math.log(batch_size)
    return math.exp(math.log(lr) + share * grown)


def with_fractions(lr, batch_size, new_batch_size, optimizer):
    ratio = Fraction(new_batch_size, batch_size)
    return lr * float(ratio) if optimizer.startswith("s") else lr * math.sqrt(ratio)


def a_rate_a_row(lr, batch_size, new_batch_size, optimizer):
    if optimizer == "sgd":
        return np.array([lr / batch_size * new_batch_size])
    return (lr**2 / batch_size * new_batch_size) ** 0.5


@pytest.mark.parametrize(
    "answer",
    [with_a_table, with_tensors, by_logarithms, with_fractions, a_rate_a_row],
    ids=name_of,
)
def test_rescale_accepts(answer):
    accepts(RESCALE, answer)


def off_for_equal_sizes(lr, batch_size, new_batch_size, optimizer):
    if batch_size == new_batch_size:
        return 2 * lr
    return RESCALE.solve(lr, batch_size, new_batch_size, optimizer)


def doubles(lr, old, new, optimizer):
    times = math.log2(new / old)
    if times != int(times):
        times = round(times)
    return lr * (2**times if optimizer == "sgd" else 2 ** (times / 2))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda lr, old, new, opt: lr, "you kept the rate"),
        (lambda lr, old, new, opt: lr * old / new, "wrong way round"),
        (lambda lr, old, new, opt: lr * math.sqrt(old / new), "wrong way round"),
        (lambda lr, old, new, opt: lr * new / old, "square root"),
        (lambda lr, old, new, opt: lr * math.sqrt(new / old), "linear"),
        (lambda lr, old, new, opt: lr * (new // old or old // new), "square root"),
        (lambda lr, old, new, opt: lr + new / old, "neither rule"),
        (lambda lr, old, new, opt: lr * (new - old), "neither rule"),
        (lambda lr, old, new, opt: new / old, "neither rule"),
        (lambda lr, old, new, opt: 0.32 if opt == "sgd" else 0.08, "neither rule"),
        (lambda lr, old, new, opt: lr * (1 + math.log2(new / old)), "neither rule"),
        (
            lambda lr, old, new, opt: RESCALE.solve(
                lr, old, new, "sgd" if opt == "adam" else "adam"
            ),
            "linear",
        ),
        (off_for_equal_sizes, "the batch is the same"),
        (doubles, "neither rule"),
        (lambda *given: None, "returned None"),
    ],
)
def test_rescale_rejects(answer, words):
    rejects(RESCALE, answer, words)


# --------------------------------------------------------------------------- total


def in_a_loop_over_rows(rows, epochs, micro_batch_size, accumulation_steps, processes):
    updates = 0
    for _ in range(epochs):
        left = rows
        while left > 0:
            left -= micro_batch_size * accumulation_steps * processes
            updates += 1
    return updates


def with_ceil(rows, epochs, micro_batch_size, accumulation_steps, processes):
    return math.ceil(rows / (micro_batch_size * accumulation_steps * processes)) * epochs


def ceiling_after_ceiling(rows, epochs, micro_batch_size, accumulation_steps, processes):
    each = math.ceil(rows / processes)
    micro_batches = math.ceil(each / micro_batch_size)
    return np.int64(epochs) * math.ceil(micro_batches / accumulation_steps)


def with_divmod(rows, epochs, micro_batch_size, accumulation_steps, processes):
    whole, rest = divmod(rows, micro_batch_size * accumulation_steps * processes)
    return float((whole + bool(rest)) * epochs)


def by_splitting(rows, epochs, micro_batch_size, accumulation_steps, processes):
    taken = micro_batch_size * accumulation_steps * processes
    return torch.tensor(epochs * len(torch.empty(rows).split(taken)))


@pytest.mark.parametrize(
    "answer",
    [
        in_a_loop_over_rows,
        with_ceil,
        ceiling_after_ceiling,
        with_divmod,
        by_splitting,
    ],
    ids=name_of,
)
def test_total_accepts(answer):
    accepts(TOTAL, answer)


def total_by(updates_an_epoch):
    def answer(rows, epochs, micro, pieces, processes):
        return epochs * updates_an_epoch(rows, micro, pieces, processes)

    return answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (total_by(lambda n, m, k, p: -(-n // (m * p))), "counted micro-batches"),
        (total_by(lambda n, m, k, p: -(-n // m)), "counted micro-batches"),
        (total_by(lambda n, m, k, p: -(-n // (m * k))), "share the rows"),
        (total_by(lambda n, m, k, p: n // (m * k * p)), "short update"),
        (total_by(lambda n, m, k, p: round(n / (m * k * p))), "however few rows"),
        (total_by(lambda n, m, k, p: n // (m * k * p) + 1), "not the number"),
        (total_by(lambda n, m, k, p: n / (m * k * p)), "not the number"),
        (total_by(lambda n, m, k, p: p * -(-n // (m * k * p))), "share the rows"),
        (total_by(lambda n, m, k, p: n), "not the number"),
        (total_by(lambda n, m, k, p: max(n // (m * k * p), 1)), "short update"),
        (total_by(lambda n, m, k, p: -(-(n // m) // (k * p))), "short update"),
        (lambda n, e, m, k, p: -(-e * n // (m * k * p)), "each epoch ends"),
        (lambda n, e, m, k, p: -(-n // (m * k * p)), "in one epoch"),
        (lambda n, e, m, k, p: 600, "counted micro-batches"),
        (lambda n, e, m, k, p: None, "returned None"),
        (lambda n, e, m, k, p: [1] * e, "a single number"),
    ],
)
def test_total_rejects(answer, words):
    rejects(TOTAL, answer, words)
