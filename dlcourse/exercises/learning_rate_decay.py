"""Exercises of chapter 8, learning rate decay: questions, checks, solutions, usual mistakes.

A check knows a mistake by making it: where the reader's number is that of a usual wrong
answer on the same problem, the hint says so.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from dlcourse.lab.exercises import Exercise, Hint, Wrong, expect


def _number(value: object, what: str) -> float:
    """Return a Python number, whatever kind of number it was."""
    expect(value is not None, f"Your function returned None: return {what}.")
    size = getattr(value, "numel", None) or getattr(value, "size", 1)
    size = size() if callable(size) else size
    single = size == 1 and not isinstance(value, (str, list, tuple, dict))
    expect(single, f"Return {what}, a single number, not {value!r}.")
    return float(value.item() if hasattr(value, "item") else value)  # type: ignore


# --------------------------------------------------------------------------- Your turn


def _curvatures() -> list[list[float]]:
    """Return problems: one direction, equal ones, near ones, many, in no order."""
    draw = random.Random(8)
    problems = [[1.0], [4.0], [0.1, 1.0, 8.0], [5.0, 0.01], [3.0, 3.0, 3.0]]
    problems += [[2.0, 2.5], [0.5, 0.5], [0.02] * 12]
    for size in (2, 3, 6, 20):
        problems.append([draw.uniform(0.05, 1) for _ in range(size)])
        problems.append([10 ** draw.uniform(-2, 1) for _ in range(size)])
    return problems


def _check_threshold(answer) -> None:
    for curvatures in _curvatures():
        want = 2 / max(curvatures)
        got = _number(answer(list(curvatures)), "the limit of the rate")
        if not abs(got / want - 1) <= 0.01:  # NaN is wrong, too
            _explain_threshold(got, curvatures)


def _explain_threshold(got: float, curvatures: Sequence[float]) -> None:
    shown = ", ".join(f"{c:.3g}" for c in curvatures)
    case = f"With the curvature{'s' if len(curvatures) > 1 else ''} {shown}"
    expect(
        math.isfinite(got),
        "Not every rate converges, only slower or faster: with curvature c one update "
        "multiplies the distance by 1 - lr * c. What if that is below -1?",
    )
    expect(got > 0, f"{case} you said {got:g}: small rates above 0 do converge.")
    steepest = max(curvatures)
    limit = 2 / steepest
    expect(
        abs(got * steepest - 1) > 0.01,
        f"{case} you said {got:.3g}. At 1 / c one update lands on the minimum. The "
        "distance still shrinks for a while beyond: until 1 - lr * c reaches -1.",
    )
    expect(
        got <= limit,
        f"{case} you said {got:.3g}, but at {(got + limit) / 2:.3g} an update multiplies "
        f"the distance in the steepest direction by {1 - (got + limit) / 2 * steepest:.3g}: "
        "it runs away.",
    )
    mistakes = {
        "the sum of the curvatures": sum(curvatures),
        "the length of the vector of curvatures": math.hypot(*curvatures),
    }
    for name, value in mistakes.items():
        expect(
            not math.isclose(got, 2 / value, rel_tol=1e-4),
            f"{case} you took 2 over {name}. Each direction has a factor of its own, and "
            "nothing adds up.",
        )
    between = (got + limit) / 2
    factor = max(abs(1 - between * c) for c in curvatures)
    raise Hint(
        f"{case} you said {got:.3g}, but rates above it still converge: at {between:.3g} "
        f"no direction's distance is multiplied by more than {factor:.3g} in size."
    )


def _solve_threshold(curvatures):
    return 2 / max(curvatures)


def _any_rate(curvatures):
    return math.inf


def _flattest(curvatures):
    return 2 / min(curvatures)


def _newton(curvatures):
    return 1 / max(curvatures)


def _too_small(curvatures):
    return 2 / sum(curvatures)


def _by_length(curvatures):
    return 2 / math.hypot(*curvatures)


def _by_mean(curvatures):
    return 2 * len(curvatures) / sum(curvatures)


def _best_for_two(curvatures):
    return 2 / (max(curvatures) + min(curvatures))


# --------------------------------------------------------------------------- rescale


def _check_rescale(answer) -> None:
    draw = random.Random(0)
    cases = [
        (0.02, 16, 256),
        (0.4, 128, 32),
        (0.1, 64, 64),
        (0.3, 48, 72),
        (1e-3, 100, 30),
        (2e-4, 64, 256),  # at a low rate the rule is the same
    ]
    for _ in range(5):
        cases.append(
            (10 ** draw.uniform(-4, 0), draw.randint(1, 999), draw.randint(1, 999))
        )
    for lr, old, new in cases:
        for optimizer in ("sgd", "adam"):
            got = answer(lr, old, new, optimizer)
            got = _number(got, "the learning rate for the new batch")
            want = _solve_rescale(lr, old, new, optimizer)
            if not math.isclose(got, want, rel_tol=1e-5):
                _explain_rescale(got, lr, old, new, optimizer)


def _explain_rescale(got: float, lr: float, old: int, new: int, optimizer: str) -> None:
    ratio = new / old
    case = f"{optimizer}, a rate of {lr:.3g}, from {old} to {new} rows"
    expect(old != new, f"{case}: the batch is the same, so the rate is.")
    more = "more" if new > old else "fewer"
    expect(
        not math.isclose(got, lr, rel_tol=1e-5),
        f"{case}: you kept the rate, or it came out the same. It is not independent of the "
        f"batch: with {more} rows an update an epoch has another number of updates, and each "
        "another noise.",
    )
    expect(
        (got - lr) * (new - old) > 0,
        f"{case}: the wrong way round, {got:.3g}. A larger batch has less noise and takes a "
        "larger rate.",
    )
    expect(
        optimizer == "sgd" or not math.isclose(got, lr * ratio, rel_tol=1e-5),
        f"{case}: Adam divides by the gradient's size, which for small batches is mostly "
        "noise; so the rule asked for is the square root.",
    )
    expect(
        optimizer == "adam" or not math.isclose(got, lr * math.sqrt(ratio), rel_tol=1e-5),
        f"{case}: the rule for SGD is linear: k updates of lr are about one of k lr.",
    )
    raise Hint(f"{case}: {got:.3g} follows neither rule.")


def _solve_rescale(lr, batch_size, new_batch_size, optimizer):
    ratio = new_batch_size / batch_size
    return lr * (ratio if optimizer == "sgd" else ratio**0.5)


def _kept(lr, batch_size, new_batch_size, optimizer):
    return lr


def _other_way(lr, batch_size, new_batch_size, optimizer):
    return lr * batch_size / new_batch_size


def _linear_for_all(lr, batch_size, new_batch_size, optimizer):
    return lr * new_batch_size / batch_size


def _sqrt_for_all(lr, batch_size, new_batch_size, optimizer):
    return lr * (new_batch_size / batch_size) ** 0.5


def _whole_ratios_only(lr, batch_size, new_batch_size, optimizer):
    ratio = max(new_batch_size // batch_size, 1) / max(batch_size // new_batch_size, 1)
    return lr * (ratio if optimizer == "sgd" else ratio**0.5)


# --------------------------------------------------------------------------- total


def _check_total(answer) -> None:
    draw = random.Random(1)
    cases = [
        (960, 5, 8, 1, 1),
        (960, 5, 8, 4, 1),
        (960, 5, 8, 1, 2),
        (1000, 3, 8, 4, 2),
        (130, 4, 8, 4, 2),  # two rows more than two whole updates
        (5, 7, 8, 4, 2),  # fewer rows than one update takes
        (65, 3, 8, 4, 2),  # one row more than a whole update
    ]
    for _ in range(12):
        rows, epochs, micro = (
            draw.randint(1, 3000),
            draw.randint(1, 9),
            draw.randint(1, 33),
        )
        cases.append((rows, epochs, micro, draw.randint(1, 5), draw.randint(1, 4)))
    for case in cases:
        got = _number(answer(*case), "the number of updates")
        if got != _solve_total(*case):
            _explain_total(got, *case)


def _explain_total(got: float, rows, epochs, micro, pieces, processes) -> None:
    given = rows, epochs, micro, pieces, processes
    case = (
        f"{rows} rows, {epochs} epochs, micro-batches of {micro}, {pieces} an update, "
        f"{processes} processes"
    )
    both = pieces > 1 and processes > 1
    expect(
        not both or got != _alone_in_micro_batches(*given),
        f"{case}: you counted micro-batches, as if one process had all the rows. An update "
        "takes the rows of all processes and of all their micro-batches.",
    )
    expect(
        pieces == 1 or got != _micro_batches(*given),
        f"{case}: you counted micro-batches. The schedule would have done about "
        f"{1 / pieces:.0%} of its way when the run ends.",
    )
    expect(
        processes == 1 or got != _alone(*given),
        f"{case}: the processes share the rows, so each update takes those of all of them.",
    )
    expect(
        got != epochs * (rows // (micro * pieces * processes)),
        f"{case}: an epoch ends in a short update, and it counts, however few rows it has.",
    )
    expect(
        got != _over_all_epochs(*given),
        f"{case}: each epoch ends by itself, so each may have a short update at its end.",
    )
    expect(
        got != _solve_total(*given) / epochs,
        f"{case}: this is the number of updates in one epoch.",
    )
    raise Hint(f"{case}: {got:g} is not the number of updates.")


def _solve_total(rows, epochs, micro_batch_size, accumulation_steps, processes):
    rows_an_update = micro_batch_size * accumulation_steps * processes
    return epochs * -(-rows // rows_an_update)


def _micro_batches(rows, epochs, micro_batch_size, accumulation_steps, processes):
    return epochs * -(-rows // (micro_batch_size * processes))


def _alone(rows, epochs, micro_batch_size, accumulation_steps, processes):
    return epochs * -(-rows // (micro_batch_size * accumulation_steps))


def _alone_in_micro_batches(
    rows, epochs, micro_batch_size, accumulation_steps, processes
):
    return epochs * -(-rows // micro_batch_size)


def _short_lost(rows, epochs, micro_batch_size, accumulation_steps, processes):
    return epochs * (rows // (micro_batch_size * accumulation_steps * processes))


def _rounded(rows, epochs, micro_batch_size, accumulation_steps, processes):
    return epochs * round(rows / (micro_batch_size * accumulation_steps * processes))


def _over_all_epochs(rows, epochs, micro_batch_size, accumulation_steps, processes):
    return -(-epochs * rows // (micro_batch_size * accumulation_steps * processes))


EXERCISES = (
    Exercise(
        "Write threshold(curvatures): the learning rate beyond which gradient descent runs away "
        "on a quadratic loss with these curvatures (a list of numbers above 0, one a direction, "
        "in any order). Within 1 % is near enough, so you may also try rates in a loop.",
        _check_threshold,
        _solve_threshold,
        {
            "any rate converges": Wrong(_any_rate, "Not every rate converges"),
            "the flattest direction": Wrong(_flattest, "steepest direction"),
            "one over the curvature": Wrong(_newton, "lands on the minimum"),
            "the sum of the curvatures": Wrong(_too_small, "the sum of the curvatures"),
            "the length of the vector": Wrong(_by_length, "the length of the vector"),
            "the mean curvature": Wrong(_by_mean, "runs away"),
            "the best rate for two": Wrong(_best_for_two, "lands on the minimum"),
        },
    ),
    Exercise(
        "Write rescale(lr, batch_size, new_batch_size, optimizer): the rate at the new batch size "
        "by the two rules of thumb: linear where optimizer is 'sgd', the square root where it is "
        "'adam'. (Rules of thumb: for Adam the chapter found the square root better from its "
        "best rate, and the linear rule from a low one.)",
        _check_rescale,
        _solve_rescale,
        {
            "the rate is independent of the batch": Wrong(_kept, "you kept the rate"),
            "the wrong way round": Wrong(_other_way, "wrong way round"),
            "linear for Adam": Wrong(_linear_for_all, "square root"),
            "square root for SGD": Wrong(_sqrt_for_all, "linear"),
            "whole ratios only": Wrong(_whole_ratios_only, "you kept the rate"),
        },
    ),
    Exercise(
        "Write total(rows, epochs, micro_batch_size, accumulation_steps, processes): the number of "
        "updates that a schedule must be told. micro_batch_size is the rows of one process in one "
        "backward pass. Each epoch takes every row once, and what is left at its end makes a "
        "short update, which counts.",
        _check_total,
        _solve_total,
        {
            "counts micro-batches": Wrong(_micro_batches, "counted micro-batches"),
            "forgets the processes": Wrong(_alone, "share the rows"),
            "counts all by itself": Wrong(
                _alone_in_micro_batches, "counted micro-batches"
            ),
            "drops the short update": Wrong(_short_lost, "short update"),
            "rounds to the nearest": Wrong(_rounded, "however few rows"),
            "one short update in all": Wrong(_over_all_epochs, "each epoch ends"),
        },
    ),
)
