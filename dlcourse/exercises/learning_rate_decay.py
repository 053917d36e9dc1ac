"""Exercises of chapter 8, learning rate decay: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import math

from dlcourse.lab.exercises import Exercise, Wrong, expect


def _stays(curvatures, lr) -> bool:
    return all(abs(1 - lr * c) <= 1 for c in curvatures)


def _check_threshold(answer) -> None:
    for curvatures in ((1.0,), (4.0,), (0.1, 1.0, 8.0), (5.0, 0.01)):
        got, want = float(answer(list(curvatures))), 2 / max(curvatures)
        if abs(got / want - 1) <= 0.01:
            continue
        name = list(curvatures)
        expect(
            math.isfinite(got) and got > 0,
            "Not every rate converges, only slower or faster: with curvature c one update "
            "multiplies the error by 1 - lr * c. What if that is below -1?",
        )
        expect(
            abs(got * max(curvatures) - 1) > 0.01,
            "At 1 / c one update lands on the minimum. The error still shrinks for a while beyond: "
            "until 1 - lr * c reaches -1.",
        )
        expect(
            _stays(curvatures, 0.99 * got),
            f"With curvatures {name} and a rate just below {got:g} the steepest direction already "
            "diverges: the largest curvature sets the limit.",
        )
        expect(False, f"With curvatures {name} rates above {got:g} still converge.")


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


def _check_rescale(answer) -> None:
    for lr, old, new in ((0.02, 16, 256), (0.4, 128, 32), (0.1, 64, 64)):
        ratio = new / old
        for optimizer, want in (("sgd", lr * ratio), ("adam", lr * math.sqrt(ratio))):
            got = float(answer(lr, old, new, optimizer))
            if math.isclose(got, want, rel_tol=1e-6):
                continue
            case = f"{optimizer}, from {old} to {new} rows"
            expect(
                not math.isclose(got, lr),
                f"{case}: you kept the rate. It is not independent of the batch: {ratio:g} times "
                "the rows make fewer updates an epoch, each from a quieter gradient.",
            )
            expect(
                (got - lr) * (new - old) > 0,
                f"{case}: the wrong way round. A larger batch has less noise and allows more.",
            )
            expect(
                optimizer == "sgd" or not math.isclose(got, lr * ratio),
                f"{case}: Adam divides by the gradient's size, so the usual rule for it is the "
                "square root.",
            )
            expect(
                optimizer == "adam" or not math.isclose(got, lr * math.sqrt(ratio)),
                f"{case}: the usual rule for SGD is linear: k updates of lr are about one of k lr.",
            )
            expect(False, f"{case}: {got:g} follows neither rule.")


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


def _check_total(answer) -> None:
    for rows, epochs, micro, pieces, processes in (
        (960, 5, 8, 1, 1), (960, 5, 8, 4, 1), (960, 5, 8, 1, 2), (1000, 3, 8, 4, 2),
    ):  # fmt: skip
        got = answer(rows, epochs, micro, pieces, processes)
        want = epochs * -(-rows // (micro * pieces * processes))
        if got == want:
            continue
        case = f"{rows} rows, {epochs} epochs, {micro} rows x {pieces} x {processes} processes"
        expect(
            pieces == 1 or got != epochs * -(-rows // (micro * processes)),
            f"{case}: you counted micro-batches. The schedule would be at its first "
            f"{1 / pieces:.0%} when the run ends.",
        )
        expect(
            processes == 1 or got != epochs * -(-rows // (micro * pieces)),
            f"{case}: the processes share the rows, so each update takes those of all of them.",
        )
        expect(
            got != epochs * (rows // (micro * pieces * processes)),
            f"{case}: an epoch ends in a short batch, which is an update too.",
        )
        expect(False, f"{case}: {got!r} is not the number of optimizer steps.")


def _solve_total(rows, epochs, micro_batch_size, accumulation_steps, processes):
    rows_an_update = micro_batch_size * accumulation_steps * processes
    return epochs * -(-rows // rows_an_update)


def _micro_batches(rows, epochs, micro_batch_size, accumulation_steps, processes):
    return epochs * -(-rows // (micro_batch_size * processes))


def _alone(rows, epochs, micro_batch_size, accumulation_steps, processes):
    return epochs * -(-rows // (micro_batch_size * accumulation_steps))


def _short_lost(rows, epochs, micro_batch_size, accumulation_steps, processes):
    return epochs * (rows // (micro_batch_size * accumulation_steps * processes))


EXERCISES = (
    Exercise(
        "Write threshold(curvatures): the learning rate from which gradient descent diverges on a "
        "quadratic loss with these curvatures (a list of numbers above 0, one a direction).",
        _check_threshold,
        _solve_threshold,
        {
            "any rate converges": Wrong(_any_rate, "Not every rate converges"),
            "the flattest direction": Wrong(_flattest, "steepest direction"),
            "one over the curvature": Wrong(_newton, "lands on the minimum"),
            "the sum of the curvatures": Wrong(_too_small, "still converge"),
        },
    ),
    Exercise(
        "Write rescale(lr, batch_size, new_batch_size, optimizer): the usual first guess for the "
        "rate at the new batch size; optimizer is 'sgd' or 'adam'.",
        _check_rescale,
        _solve_rescale,
        {
            "the rate is independent of the batch": Wrong(_kept, "you kept the rate"),
            "the wrong way round": Wrong(_other_way, "wrong way round"),
            "linear for Adam": Wrong(_linear_for_all, "square root"),
            "square root for SGD": Wrong(_sqrt_for_all, "linear"),
        },
    ),
    Exercise(
        "Write total(rows, epochs, micro_batch_size, accumulation_steps, processes): the number of "
        "updates that a schedule must be told. micro_batch_size is the rows of one process in one "
        "backward pass; an epoch's last batch may be short.",
        _check_total,
        _solve_total,
        {
            "counts micro-batches": Wrong(_micro_batches, "counted micro-batches"),
            "forgets the processes": Wrong(_alone, "share the rows"),
            "drops the short batch": Wrong(_short_lost, "short batch"),
        },
    ),
)
