"""Exercises of chapter 12: more answers than the usual mistakes, right ones and wrong ones."""

from __future__ import annotations

import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from answers import accepts, rejects

from dlcourse.exercises.parallelism import EXERCISES
from dlcourse.parallelism import pipeline_schedule, state_bytes

GRADIENTS, MEMORY, MLP, ORDER = EXERCISES


@pytest.fixture(autouse=True)
def leaves_no_thread():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


# --------------------------------------------------------------------------- gradients


def weighs_the_loss(model, loss_fn, inputs, targets, all_reduce, n):
    share = len(inputs) / float(all_reduce(torch.tensor([len(inputs)])))
    (loss_fn(model(inputs), targets) * share).backward()
    for parameter in model.parameters():
        parameter.grad.copy_(all_reduce(parameter.grad))


def in_one_vector(model, loss_fn, inputs, targets, all_reduce, n):
    loss_fn(model(inputs), targets).backward()
    rows = torch.tensor([float(len(inputs))], dtype=torch.float64)
    grads = [p.grad.flatten() * len(inputs) for p in model.parameters()]
    total = all_reduce(torch.cat([*grads, rows]))
    sizes = [p.numel() for p in model.parameters()]
    parts = total[:-1].split(sizes)
    for parameter, part in zip(model.parameters(), parts, strict=True):
        parameter.grad = (part / total[-1]).view_as(parameter)


def by_autograd_grad(model, loss_fn, inputs, targets, all_reduce, n):
    rows = all_reduce(len(inputs))  # a Python number
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss_fn(model(inputs), targets) * len(inputs), parameters)
    for parameter, grad in zip(parameters, found, strict=True):
        parameter.grad = all_reduce(grad).div(rows)


def from_the_last_to_the_first(model, loss_fn, inputs, targets, all_reduce, n):
    model.zero_grad()
    loss = loss_fn(model(inputs), targets)
    loss.backward(torch.tensor(float(inputs.shape[0]), dtype=loss.dtype))
    rows = int(all_reduce(torch.ones(len(inputs)).sum()))
    for parameter in reversed(list(model.parameters())):
        parameter.grad = all_reduce(parameter.grad) / rows
    return loss.item()


def row_by_row(model, loss_fn, inputs, targets, all_reduce, n):
    rows = np.float64(all_reduce(torch.tensor(len(inputs))))
    for row in range(len(inputs)):
        loss = loss_fn(model(inputs[row : row + 1]), targets[row : row + 1])
        (loss / rows).backward()
    for parameter in model.parameters():
        parameter.grad = all_reduce(parameter.grad)


RIGHT = [
    weighs_the_loss,
    in_one_vector,
    by_autograd_grad,
    from_the_last_to_the_first,
    row_by_row,
]


@pytest.mark.parametrize("answer", RIGHT, ids=lambda answer: answer.__name__)
def test_gradients_accepts(answer):
    accepts(GRADIENTS, answer)


def scaled(own, shared):
    """Return an answer: gradients times own(rows), summed, times shared(rows, total, n)."""

    def answer(model, loss_fn, inputs, targets, all_reduce, n):
        loss_fn(model(inputs), targets).backward()
        rows = len(inputs)
        total = float(all_reduce(torch.tensor(float(rows))))
        for parameter in model.parameters():
            grad = all_reduce(parameter.grad * own(rows))
            parameter.grad = grad * shared(rows, total, n)

    return answer


def only_the_first_reduces(model, loss_fn, inputs, targets, all_reduce, n):
    loss_fn(model(inputs), targets).backward()
    if len(inputs) > 1:  # not the same on all
        for parameter in model.parameters():
            parameter.grad = all_reduce(parameter.grad) / n


def makes_a_step(model, loss_fn, inputs, targets, all_reduce, n):
    GRADIENTS.solve(model, loss_fn, inputs, targets, all_reduce, n)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def forgets_the_biases(model, loss_fn, inputs, targets, all_reduce, n):
    GRADIENTS.solve(model, loss_fn, inputs, targets, all_reduce, n)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.grad.zero_()


def clears_at_the_end(model, loss_fn, inputs, targets, all_reduce, n):
    GRADIENTS.solve(model, loss_fn, inputs, targets, all_reduce, n)
    model.zero_grad()


def other_shapes(model, loss_fn, inputs, targets, all_reduce, n):
    loss_fn(model(inputs), targets).backward()
    total = all_reduce(torch.ones(len(inputs))).sum()  # right for equal rows
    for parameter in model.parameters():
        parameter.grad = all_reduce(parameter.grad * len(inputs)) / total


def squared_error_for_all(model, loss_fn, inputs, targets, all_reduce, n):
    other = lambda outputs, _: outputs.square().mean()  # noqa: E731
    GRADIENTS.solve(model, other, inputs, targets, all_reduce, n)


def reduces_only_weights_of_matrices(model, loss_fn, inputs, targets, all_reduce, n):
    loss_fn(model(inputs), targets).backward()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.grad = all_reduce(parameter.grad) / n


WRONG = {
    "twice divided": (scaled(lambda r: r, lambda r, t, n: 1 / t / n), "times as long"),
    "not divided by rows": (scaled(lambda r: r, lambda r, t, n: 1.0), "times as long"),
    "divided by two": (scaled(lambda r: 1, lambda r, t, n: 1 / 2), "times as long"),
    "by its own rows": (scaled(lambda r: r, lambda r, t, n: 1 / r / n), "different"),
    "means, by rows": (scaled(lambda r: 1 / r, lambda r, t, n: r / n), "different"),
    "only some reduce": (only_the_first_reduces, "equally often"),
    "a step": (makes_a_step, "changes the weights"),
    "no biases": (forgets_the_biases, "is not that of the mean"),
    "clears": (clears_at_the_end, "no .grad"),
    "other shapes": (other_shapes, "the same shape"),
    "another loss": (squared_error_for_all, "is not that of the mean"),
    "matrices only": (reduces_only_weights_of_matrices, "different gradients"),
    "nothing": (lambda *_: None, "no .grad"),
}


@pytest.mark.parametrize("name", WRONG)
def test_gradients_rejects(name):
    rejects(GRADIENTS, *WRONG[name])


# --------------------------------------------------------------------------- memory

MEMORY_RIGHT = {
    "a whole number": lambda p, n, s: int(state_bytes(p, n, s)),
    "NumPy": lambda p, n, s: np.float64(state_bytes(p, n, s)),
    "a 0-d tensor": lambda p, n, s: torch.tensor(
        state_bytes(p, n, s), dtype=torch.float64
    ),
    "a tensor of one": lambda p, n, s: torch.tensor([state_bytes(p, n, s)]),
    "a fraction": lambda p, n, s: (
        Fraction(p)
        * sum(
            Fraction(size, n if s >= least else 1)
            for size, least in ((2, 3), (2, 2), (12, 1))
        )
    ),
    "a 0-d array": lambda p, n, s: np.array(state_bytes(p, n, s)),
    "rounded up": lambda p, n, s: -(-state_bytes(p, n, s) // 1),
}


@pytest.mark.parametrize("name", MEMORY_RIGHT)
def test_memory_accepts(name):
    accepts(MEMORY, MEMORY_RIGHT[name])


MEMORY_WRONG = {
    "the shown table": (lambda p, n, s: [120e9, 31.4e9, 16.6e9, 1.9e9][s], "Stage 1"),
    "gigabytes": (lambda p, n, s: state_bytes(p, n, s) / 1e9, "At stage 0"),
    "float32": (
        lambda p, n, s: p * (4 + 4 + 8 / n) if s == 1 else state_bytes(p, n, s),
        "Stage 1",
    ),
    "no gradient": (lambda p, n, s: state_bytes(p, n, s) - 2 * p, "not 14"),
    "weights only": (lambda p, n, s: 2 * p / (n if s == 3 else 1), "not 2"),
    "for 64 devices": (lambda p, n, s: state_bytes(p, 64, s), "Stage 1"),
    "stages from 1": (lambda p, n, s: state_bytes(p, n, max(0, s - 1)), "Stage 1"),
    "stage 3 is 2": (lambda p, n, s: state_bytes(p, n, min(s, 2)), "Stage 3"),
    "stage 1 is 2": (lambda p, n, s: state_bytes(p, n, 2 if s == 1 else s), "only the"),
    "text": (lambda p, n, s: str(state_bytes(p, n, s)), "a number of bytes"),
    "a list": (lambda p, n, s: [state_bytes(p, n, s), 0], "a number of bytes"),
    "None": (lambda p, n, s: None, "a number of bytes"),
}


@pytest.mark.parametrize("name", MEMORY_WRONG)
def test_memory_rejects(name):
    rejects(MEMORY, *MEMORY_WRONG[name])


# --------------------------------------------------------------------------- mlp


def first_adds_the_bias(x, up, up_bias, down, bias, rank, all_reduce):
    y = F.linear(F.relu(F.linear(x, up, up_bias)), down)
    return all_reduce(y + bias if rank == 0 else y)


def last_adds_by_zeros(x, up, up_bias, down, bias, rank, all_reduce):
    own = bias if rank == 1 else torch.zeros_like(bias)
    return all_reduce(F.linear((x @ up.T + up_bias).clamp(min=0), down, own))


def unit_by_unit(x, up, up_bias, down, bias, rank, all_reduce):
    y = torch.zeros(len(x), len(bias), dtype=x.dtype)
    for unit in range(len(up)):
        hidden = (x @ up[unit] + up_bias[unit]).relu()
        y += torch.outer(hidden, down[:, unit])
    return all_reduce(y) + bias


def flat_messages(x, up, up_bias, down, bias, rank, all_reduce):
    y = (x @ up.T + up_bias).relu() @ down.T
    return all_reduce(y.flatten()).view(y.shape).add(bias)


def by_einsum(x, up, up_bias, down, bias, rank, all_reduce):
    hidden = (torch.einsum("bi,hi->bh", x, up) + up_bias).relu()
    return bias + all_reduce(torch.einsum("bh,oh->bo", hidden, down))


MLP_RIGHT = [
    first_adds_the_bias,
    last_adds_by_zeros,
    unit_by_unit,
    flat_messages,
    by_einsum,
]


@pytest.mark.parametrize("answer", MLP_RIGHT, ids=lambda answer: answer.__name__)
def test_mlp_accepts(answer):
    accepts(MLP, answer)


def _hidden(x, up, up_bias):
    return (x @ up.T + up_bias).relu()


MLP_WRONG = {
    "half of the bias": (
        lambda x, u, ub, d, b, r, a: a(_hidden(x, u, ub) @ d.T + b / 2),
        "not that of the whole network",
    ),
    "no first bias": (
        lambda x, u, ub, d, b, r, a: a((x @ u.T).relu() @ d.T) + b,
        "not that of the whole network",
    ),
    "no relu": (
        lambda x, u, ub, d, b, r, a: a((x @ u.T + ub) @ d.T) + b,
        "not that of the whole network",
    ),
    "a mean": (
        lambda x, u, ub, d, b, r, a: a(_hidden(x, u, ub) @ d.T) / 2 + b,
        "not that of the whole network",
    ),
    "relu of the output": (
        lambda x, u, ub, d, b, r, a: (a(_hidden(x, u, ub) @ d.T) + b).relu(),
        "not that of the whole network",
    ),
    "hidden units returned": (
        lambda x, u, ub, d, b, r, a: a(_hidden(x, u, ub)),
        "The shapes are",
    ),
    "one of the others": (
        lambda x, u, ub, d, b, r, a: a(_hidden(x, u, ub) @ d.T) + (b if r == 0 else 0),
        "return different outputs",
    ),
    "reduces the input": (
        lambda x, u, ub, d, b, r, a: a(_hidden(a(x), u, ub) @ d.T) + b,
        "is enough",
    ),
    "stops": (lambda x, u, ub, d, b, r, a: 1 / 0, "ZeroDivisionError"),
    "None": (lambda x, u, ub, d, b, r, a: None, "Return the output"),
    "its part only": (
        lambda x, u, ub, d, b, r, a: _hidden(x, u, ub) @ d.T,
        "no all_reduce",
    ),
}


@pytest.mark.parametrize("name", MLP_WRONG)
def test_mlp_rejects(name):
    rejects(MLP, *MLP_WRONG[name])


# --------------------------------------------------------------------------- order


def _shortest(stage, stages, micro_batches):
    """Return what the stage would do by itself: a backward wherever one is due."""
    ahead, order, done = min(stages - stage, micro_batches), [], 0
    for i in range(micro_batches):
        order.append(("F", i))
        if i >= ahead - 1:
            order.append(("B", done))
            done += 1
    return order + [("B", i) for i in range(done, micro_batches)]


def _typed(make):
    return lambda s, p, m: [(kind, make(i)) for kind, i in pipeline_schedule(p, m)[s]]


ORDER_RIGHT = {
    "a tuple": lambda s, p, m: tuple(pipeline_schedule(p, m)[s]),
    "lists": lambda s, p, m: [list(work) for work in pipeline_schedule(p, m)[s]],
    "NumPy numbers": _typed(np.int64),
    "a generator": lambda s, p, m: (work for work in pipeline_schedule(p, m)[s]),
    "another way": _shortest,
    "0-d tensors": _typed(torch.tensor),
}


@pytest.mark.parametrize("name", ORDER_RIGHT)
def test_order_accepts(name):
    accepts(ORDER, ORDER_RIGHT[name])


def _of(kind, chunk=1):
    return lambda s, p, m: pipeline_schedule(p, m, kind)[s]


ORDER_WRONG = {
    "the shown one": (lambda s, p, m: pipeline_schedule(4, 8)[s], "exactly once"),
    "backwards only": (lambda s, p, m: [("B", i) for i in range(m)], "exactly once"),
    "from 1": (
        lambda s, p, m: [(kind, i + 1) for kind, i in pipeline_schedule(p, m)[s]],
        "exactly once",
    ),
    "twice": (lambda s, p, m: pipeline_schedule(p, m)[s] * 2, "exactly once"),
    "backwards first": (
        lambda s, p, m: [(kind, i) for kind in "BF" for i in range(m)],
        "stands before",
    ),
    "of the stage before": (
        lambda s, p, m: pipeline_schedule(p, m)[max(0, s - 1)],
        "holds",
    ),
    "of the stage after": (
        lambda s, p, m: pipeline_schedule(p, m)[min(p - 1, s + 1)],
        "forwards ahead",
    ),
    "of the last stage": (lambda s, p, m: pipeline_schedule(p, m)[-1], "forwards ahead"),
    "turned round": (lambda s, p, m: pipeline_schedule(p, m)[p - 1 - s], "holds"),
    "gpipe": (_of("gpipe"), "would do"),
    "gpipe on the first": (
        lambda s, p, m: pipeline_schedule(p, m, "1f1b" if s else "gpipe")[s],
        "would do",
    ),
    "a number": (lambda s, p, m: s + p + m, "TypeError"),
    "words": (
        lambda s, p, m: [f"{kind}{i}" for kind, i in pipeline_schedule(p, m)[s]],
        "is a pair",
    ),
    "a B before its F": (
        lambda s, p, m: (
            [("F", 0), ("B", m - 1)]
            + [("F", i) for i in range(1, m)]
            + [("B", i) for i in range(m - 1)]
        ),
        "stands before",
    ),
}


@pytest.mark.parametrize("name", ORDER_WRONG)
def test_order_rejects(name):
    rejects(ORDER, *ORDER_WRONG[name])


# --------------------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    "exercise", EXERCISES, ids=["gradients", "memory", "mlp", "order"]
)
def test_the_usual_mistakes_get_their_hints(exercise):
    accepts(exercise, exercise.solve)
    for wrong in exercise.wrong.values():
        rejects(exercise, wrong.answer, wrong.hint)
    rejects(exercise, ..., "Not started")
