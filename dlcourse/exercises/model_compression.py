"""Exercises of chapter 9, model compression: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.lab.exercises import Exercise, Wrong, expect
from dlcourse.model_compression import distillation_loss


def _check_distillation(answer: Callable) -> None:
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 5, generator=g) * 3
    value = answer(student.clone(), teacher.clone(), 4.0)
    expect(
        isinstance(value, Tensor) and value.ndim == 0,
        "Return one number, as a scalar tensor.",
    )
    value = value.float()
    for usual, hint in (
        (
            _probabilities_first,
            "F.kl_div takes the student's side as logarithms: log_softmax.",
        ),
        (
            _hot_student_only,
            "Divide the teacher's logits by T as well, not the student's alone.",
        ),
        (
            _hot_teacher_only,
            "Divide the student's logits by T as well, not the teacher's alone.",
        ),
    ):
        for factor in (1.0, 4.0**-2):
            like = factor * usual(student, teacher, 4.0)
            expect(not torch.allclose(value, like, rtol=1e-4), hint)
    expect(
        bool(value > 0),
        f"Student and teacher differ, and your loss is {float(value):.3f}. Whoever lowers it "
        "pushes the outputs apart without end. Pull them together.",
    )
    equal = answer(teacher.clone(), teacher.clone(), 4.0)
    expect(
        bool(equal.abs() < 1e-4),
        f"Where both agree the loss must be 0, yours is {float(equal):.3f}. A cross entropy with "
        "soft targets still holds the teacher's own entropy; the divergence does not.",
    )
    shifted = answer(teacher + 2.0, teacher.clone(), 4.0)
    expect(
        bool(shifted.abs() < 1e-3),
        "The same number added to all logits of a row changes no probability, but changes your "
        "loss: compare the outputs of softmax, not the logits.",
    )
    for temperature in (1.0, 4.0, 16.0):
        got, wanted, swapped = (
            _gradient(loss, student, teacher, temperature)
            for loss in (answer, _soft_loss, _swapped)
        )
        where = f"At T={temperature:g}"
        expect(
            not torch.allclose(got * temperature**2, wanted, atol=1e-5)
            or temperature == 1,
            f"{where} the gradient is {1 / temperature**2:g} of what it is to be: multiply by T "
            "squared, or the soft term fades as T grows.",
        )
        expect(
            not torch.allclose(got * temperature, wanted, atol=1e-5) or temperature == 1,
            f"{where} the gradient is too small by the factor T: it is T squared that is needed. "
            "One T comes from the student's softmax, one from the nearness of the two outputs.",
        )
        expect(
            not torch.allclose(got * student.shape[1], wanted, atol=1e-5),
            "The gradient is too small by the number of classes: take the mean over the rows only "
            "(reduction='batchmean').",
        )
        expect(
            not torch.allclose(got, wanted * len(student), atol=1e-5),
            "The gradient grows with the number of rows: take the mean over the rows.",
        )
        expect(
            not torch.allclose(got, swapped, atol=1e-5),
            f"{where} this is the divergence the wrong way round: the teacher's probabilities are "
            "the weights of the sum. F.kl_div takes the student's log-probabilities first.",
        )
        expect(
            torch.allclose(got, wanted, atol=1e-5),
            f"{where} the gradient is wrong. Both sets of logits are divided by T before softmax, "
            "and the student's enter as logarithms.",
        )


def _soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return distillation_loss(student, teacher, temperature=temperature)


def _gradient(
    loss: Callable, student: Tensor, teacher: Tensor, temperature: float
) -> Tensor:
    leaf = student.clone().requires_grad_()
    value = loss(leaf, teacher.clone(), temperature)
    expect(
        value.requires_grad, "No gradient reaches the student: do not detach its logits."
    )
    return torch.autograd.grad(value, leaf)[0]


def _solve_distillation(student, teacher, temperature):
    log_q = F.log_softmax(student / temperature, dim=1)
    p = F.softmax(teacher / temperature, dim=1)
    return F.kl_div(log_q, p, reduction="batchmean") * temperature**2


def _swapped(student, teacher, temperature):
    return _solve_distillation(teacher, student, temperature)


def _push_apart(student, teacher, temperature):
    return -_solve_distillation(student, teacher, temperature)


def _forget_t_squared(student, teacher, temperature):
    return _solve_distillation(student, teacher, temperature) / temperature**2


def _mean_of_all(student, teacher, temperature):
    return _solve_distillation(student, teacher, temperature) / student.shape[1]


def _sum_of_rows(student, teacher, temperature):
    return _solve_distillation(student, teacher, temperature) * len(student)


def _soft_cross_entropy(student, teacher, temperature):
    p = F.softmax(teacher / temperature, dim=1)
    return F.cross_entropy(student / temperature, p) * temperature**2


def _squared_logits(student, teacher, temperature):
    return F.mse_loss(student, teacher)


def _probabilities_first(student, teacher, temperature):
    q, p = (
        F.softmax(student / temperature, dim=1),
        F.softmax(teacher / temperature, dim=1),
    )
    return F.kl_div(q, p, reduction="batchmean") * temperature**2


def _hot_student_only(student, teacher, temperature):
    log_q = F.log_softmax(student / temperature, dim=1)
    return (
        F.kl_div(log_q, F.softmax(teacher, dim=1), reduction="batchmean") * temperature**2
    )


def _hot_teacher_only(student, teacher, temperature):
    p = F.softmax(teacher / temperature, dim=1)
    return (
        F.kl_div(F.log_softmax(student, dim=1), p, reduction="batchmean") * temperature**2
    )


def _one_t(student, teacher, temperature):
    return _solve_distillation(student, teacher, temperature) / temperature


def _check_channels(answer: Callable) -> None:
    g = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1.0, 0.1, 0.01, 0.0, 0.5])
    weight = torch.randn(5, 64, generator=g) * sizes.unsqueeze(1)
    # no value above 0: amax() alone is not the largest in size
    weight[4] = -weight[4].abs()
    for bits in (8, 4, 2):
        given = weight.clone()
        got = answer(given, bits)
        expect(
            isinstance(got, Tensor) and got.shape == weight.shape,
            f"Return a weight of the shape that came in, {tuple(weight.shape)}.",
        )
        expect(
            torch.equal(given, weight),
            "You changed the weight that came in: return a new one.",
        )
        expect(
            bool(got.isfinite().all()),
            "A row of zeros became NaN: its scale is 0, so divide by something else.",
        )
        levels = max(len(row.unique()) for row in got)
        expect(
            levels <= 2**bits,
            f"A row has {levels} different values. {bits} bits can tell {2**bits} apart: round to "
            "whole numbers, clamp, and multiply by the scale again.",
        )
        for row, (before, after) in enumerate(zip(weight, got, strict=True)):
            largest = before.abs().max()
            error, limit = (
                (before - after).abs().max(),
                largest / (2 ** (bits - 1) - 1) / 2,
            )
            whole = _one_scale(weight, bits)
            expect(
                bool(error <= limit * 1.02) or not torch.allclose(got, whole, atol=1e-6),
                f"Row {row} has values up to {largest:.3f}, and an error of {error:.3f} at {bits} "
                "bits. One scale for all rows lets the largest row decide. The number of bits "
                "alone does not set the error: give each row its own scale.",
            )
            expect(
                bool(error <= limit * 1.02),
                f"Row {row} has values up to {largest:.3f}, so with {bits} bits no error need be "
                f"above {limit:.4f}; yours is {error:.4f}. A row (an output) has its own scale: "
                "its largest absolute value over the largest whole number.",
            )


def _solve_channels(weight, bits):
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1, keepdim=True) / top
    scale = torch.where(scale > 0, scale, 1.0)
    return (weight / scale).round().clamp(-top, top) * scale


def _one_scale(weight, bits):
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().max() / top
    return (weight / scale).round().clamp(-top, top) * scale


def _scale_a_column(weight, bits):
    return _solve_channels(weight.T, bits).T


def _never_round(weight, bits):
    return weight.clone()


def _divide_by_zero(weight, bits):
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1, keepdim=True) / top
    return (weight / scale).round() * scale


def _return_whole_numbers(weight, bits):
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / top
    return (weight / scale).round()


def _check_masked_update(answer: Callable) -> None:
    for kind, settings in (
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
    ):
        results = []
        for update in (answer, _solve_masked_update):
            weight = nn.Parameter(torch.tensor([3.0, -0.2, 2.0, 0.1]))
            optimizer = kind([weight], lr=0.1, **settings)
            loss = _distance(weight)
            # dense training: the optimizer has a memory when pruning comes
            for _ in range(2):
                optimizer.zero_grad()
                loss().backward()
                optimizer.step()
            optimizer.zero_grad()  # so that emptying the gradients last is right as well
            mask = torch.tensor([True, False, True, False])
            with torch.no_grad():
                weight.mul_(mask)
            steps = []
            for _ in range(3):
                update(loss, weight, mask, optimizer)
                steps.append(weight.detach().clone())
            results.append(torch.stack(steps))
        got, wanted = results
        refilled = got[:, ~mask].abs().max()
        expect(
            bool(refilled == 0),
            f"After your update with {kind.__name__} a pruned weight is {refilled:.2f}. Zeros that "
            "were set once are refilled by the gradient, and with masked gradients by the momentum "
            "of earlier updates: put the mask on the weight after the step.",
        )
        expect(
            not torch.equal(got[0], got[1]),
            "The weights that stay do not move: the update must still train them.",
        )
        expect(
            torch.allclose(got[:, mask], wanted[:, mask], atol=1e-5),
            "The weights that stay move otherwise than without pruning: empty the old gradients, "
            "call loss_fn().backward(), let the optimizer step, and keep its memory.",
        )


def _distance(weight: Tensor) -> Callable[[], Tensor]:
    return lambda: ((weight - 1.0) ** 2).sum()


def _solve_masked_update(loss_fn, weight, mask, optimizer):
    optimizer.zero_grad()
    loss_fn().backward()
    optimizer.step()
    with torch.no_grad():
        weight.mul_(mask)


def _prune_once(loss_fn, weight, mask, optimizer):
    optimizer.zero_grad()
    loss_fn().backward()
    optimizer.step()


def _mask_the_gradient(loss_fn, weight, mask, optimizer):
    optimizer.zero_grad()
    loss_fn().backward()
    weight.grad.mul_(mask)
    optimizer.step()


def _mask_before_the_step(loss_fn, weight, mask, optimizer):
    optimizer.zero_grad()
    with torch.no_grad():
        weight.mul_(mask)
    loss_fn().backward()
    optimizer.step()


def _never_step(loss_fn, weight, mask, optimizer):
    with torch.no_grad():
        weight.mul_(mask)


def _keep_old_gradients(loss_fn, weight, mask, optimizer):
    loss_fn().backward()
    optimizer.step()
    with torch.no_grad():
        weight.mul_(mask)


def _lose_the_memory(loss_fn, weight, mask, optimizer):
    optimizer.state.clear()
    _solve_masked_update(loss_fn, weight, mask, optimizer)


EXERCISES = (
    Exercise(
        "Write your_loss(student, teacher, temperature): the soft part of the distillation loss. "
        "Both are logits (rows, classes); return a scalar tensor that is 0 where they agree.",
        _check_distillation,
        _solve_distillation,
        {
            "push apart": Wrong(_push_apart, "Pull them together"),
            "forget T squared": Wrong(_forget_t_squared, "multiply by T squared"),
            "mean over classes too": Wrong(_mean_of_all, "batchmean"),
            "sum over rows": Wrong(_sum_of_rows, "mean over the rows"),
            "wrong way round": Wrong(_swapped, "wrong way round"),
            "cross entropy": Wrong(_soft_cross_entropy, "entropy"),
            "compare logits": Wrong(_squared_logits, "not the logits"),
            "probabilities for logarithms": Wrong(_probabilities_first, "as logarithms"),
            "teacher at T=1": Wrong(_hot_student_only, "the teacher's logits by T"),
            "student at T=1": Wrong(_hot_teacher_only, "the student's logits by T"),
            "T, not squared": Wrong(_one_t, "the factor T"),
        },
    ),
    Exercise(
        "Write your_quantize(weight, bits): the weight (outputs, inputs) as it reads after "
        "symmetric quantization to `bits` bits, in floating point, with the least error you can.",
        _check_channels,
        _solve_channels,
        {
            "bits alone matter": Wrong(_one_scale, "its own scale"),
            "a scale for each input": Wrong(_scale_a_column, "A row (an output)"),
            "no rounding": Wrong(_never_round, "can tell"),
            "a row of zeros": Wrong(_divide_by_zero, "NaN"),
            "whole numbers returned": Wrong(
                _return_whole_numbers, "no error need be above"
            ),
        },
    ),
    Exercise(
        "Write your_update(loss_fn, weight, mask, optimizer): one training update of a pruned "
        "weight, after which every entry where `mask` is False is 0. `loss_fn()` returns the loss.",
        _check_masked_update,
        _solve_masked_update,
        {
            "prune once": Wrong(_prune_once, "refilled"),
            "mask the gradient": Wrong(_mask_the_gradient, "momentum"),
            "mask before the step": Wrong(_mask_before_the_step, "after the step"),
            "no training": Wrong(_never_step, "do not move"),
            "old gradients stay": Wrong(_keep_old_gradients, "empty the old gradients"),
            "a new memory each time": Wrong(_lose_the_memory, "keep its memory"),
        },
    ),
)
