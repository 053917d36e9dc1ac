"""Exercises on model compression: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.lab.exercises import Exercise, Wrong, expect

# --- a scale for each group -----------------------------------------------------------------------


def _check_groups(answer: Callable) -> None:
    for seed, bits, group in ((0, 8, 8), (1, 4, 4), (2, 2, 16), (3, 3, 32), (4, 4, 1)):
        weight = _weight_with_odd_groups(seed, group)
        given = weight.clone()
        got = answer(given, bits, group)
        expect(got is not None, "Your function returns nothing: return the new weight.")
        expect(
            torch.equal(given, weight),
            "You changed the weight that came in: return a new one.",
        )
        got = torch.as_tensor(got, dtype=torch.float32).detach()
        expect(
            got.shape == weight.shape,
            f"A weight of shape {tuple(weight.shape)} came in, {tuple(got.shape)} came out: "
            "give the groups the weight's shape again.",
        )
        expect(
            bool(got.isfinite().all()),
            "A group of zeros became NaN or infinite: its scale is 0, so divide by "
            "something else there.",
        )
        before, after = weight.view(-1, group), got.reshape(-1, group)
        _expect_no_usual_mistake(weight, got, bits, group)
        _expect_small_errors(before, after, bits)
        _expect_one_grid(after, bits)


def _weight_with_odd_groups(seed: int, group: int) -> Tensor:
    """Return (6, 32) weights: groups of all sizes, one of zeros, one without positives."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 32, generator=generator)
    groups = weight.view(-1, group)
    sizes = 10.0 ** torch.linspace(-2, 0.5, len(groups))
    sizes = sizes[torch.randperm(len(groups), generator=generator)]
    groups *= sizes.unsqueeze(1)
    groups[1] = 0.0
    groups[2] = -groups[2].abs()
    return weight


def _expect_no_usual_mistake(weight: Tensor, got: Tensor, bits: int, group: int) -> None:
    """Reject answers that are another way of scaling, each with its own hint."""
    for usual, hint in (
        (
            _one_scale,
            "This is one scale for the whole weight: the largest group decides for all. "
            "Give each group its own.",
        ),
        (
            _scale_a_row,
            "This is one scale for each row. A row has several groups: cut it up first.",
        ),
        (
            _scale_a_column,
            "These groups run down the columns. A group is `group` neighbours in a row.",
        ),
        (
            _signed_maximum,
            "The value of largest size may be a negative one: take absolute values before the "
            "maximum.",
        ),
        (
            _codes,
            "These are the whole numbers. Multiply them by the scale again.",
        ),
    ):
        other = usual(weight, bits, group)
        if not torch.allclose(other, _solve_groups(weight, bits, group), atol=1e-6):
            expect(not torch.allclose(got, other, atol=1e-6), hint)


def _expect_small_errors(before: Tensor, after: Tensor, bits: int) -> None:
    top = 2 ** (bits - 1) - 1
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        largest = old.abs().max()
        error = (old - new).abs().max()
        half_a_step = largest / top / 2
        expect(
            bool(error <= half_a_step * 1.001 + 1e-7),
            f"Group {number} has values up to {largest:.3f} in size, so at {bits} bits a "
            f"step is {largest:.3f} / {top} and no error need be above {half_a_step:.4f}; "
            f"yours is {error:.4f}. Take the largest absolute value of the group over the "
            "largest whole number as the scale, and round to the nearest.",
        )


def _expect_one_grid(after: Tensor, bits: int) -> None:
    top = 2 ** (bits - 1) - 1
    for number, values in enumerate(after):
        expect(
            _on_one_grid(values, top),
            f"The values of group {number} are not whole numbers from {-top} to {top} times "
            f"one scale, so {bits} bits cannot hold them: divide by the scale, round, "
            "multiply by the same scale.",
        )


def _on_one_grid(values: Tensor, top: int) -> bool:
    """Tell whether the values are whole multiples, of at most `top`, of one number."""
    largest = values.abs().max()
    if largest == 0:
        return True
    for number in range(1, top + 1):
        multiples = values.double() / (largest.double() / number)
        if bool(((multiples - multiples.round()).abs() < 1e-3).all()):
            return True
    return False


def _solve_groups(weight, bits, group):
    top = 2 ** (bits - 1) - 1  # 7 for 4 bits
    groups = weight.reshape(-1, group)
    scale = groups.abs().amax(dim=1, keepdim=True) / top
    scale[scale == 0] = 1.0  # a group of zeros
    return ((groups / scale).round() * scale).reshape(weight.shape)


def _one_scale(weight, bits, group):
    scale = weight.abs().max() / (2 ** (bits - 1) - 1)
    return (weight / scale).round() * scale


def _scale_a_row(weight, bits, group):
    return _solve_groups(weight, bits, weight.shape[1])


def _scale_a_column(weight, bits, group):
    return _solve_groups(weight.T.reshape(-1), bits, group).view(weight.T.shape).T


def _codes(weight, bits, group):
    top = 2 ** (bits - 1) - 1
    groups = weight.reshape(-1, group)
    scale = groups.abs().amax(dim=1, keepdim=True).clamp(min=1e-9) / top
    return (groups / scale).round().reshape(weight.shape)


def _never_round(weight, bits, group):
    return weight.clone()


def _divide_by_zero(weight, bits, group):
    groups = weight.reshape(-1, group)
    scale = groups.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((groups / scale).round() * scale).reshape(weight.shape)


def _always_seven(weight, bits, group):
    return _solve_groups(weight, 4, group)


def _signed_maximum(weight, bits, group):
    groups = weight.reshape(-1, group)
    scale = groups.amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    scale[scale == 0] = 1.0
    return ((groups / scale).round() * scale).reshape(weight.shape)


def _round_down(weight, bits, group):
    top = 2 ** (bits - 1) - 1
    groups = weight.reshape(-1, group)
    scale = groups.abs().amax(dim=1, keepdim=True).clamp(min=1e-9) / top
    return ((groups / scale).floor() * scale).reshape(weight.shape)


def _left_in_groups(weight, bits, group):
    return _solve_groups(weight.reshape(-1, group), bits, group)


# --- a mask that stays ----------------------------------------------------------------------------


def _check_masked_update(answer: Callable) -> None:
    for kind, settings in (
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
    ):
        got = _weights_after_updates(answer, kind, settings)
        wanted = _weights_after_updates(_solve_masked_update, kind, settings)
        mask = _mask()
        refilled = got[:, ~mask].abs().max()
        expect(
            bool(refilled == 0),
            f"After your update with {kind.__name__} a pruned weight is {refilled:.3g}. Zeros "
            "that were set once are refilled by the gradient, and with masked gradients by the "
            "momentum of earlier updates: put the mask on the weight after the step.",
        )
        expect(
            not torch.equal(got[0], got[1]),
            "The weights that stay do not move: the update must still train them.",
        )
        expect(
            torch.allclose(got[:, mask], wanted[:, mask], atol=1e-5),
            "The weights that stay move otherwise than without pruning: empty the old "
            "gradients, call loss_fn().backward(), let the optimizer step, and keep its memory. "
            "Momentum moves also an entry whose gradient is 0 just now.",
        )


def _mask() -> Tensor:
    return torch.tensor([True, False, True, False, True])


def _weights_after_updates(update: Callable, kind: type, settings: dict) -> Tensor:
    """Return (3, 5): the weight after each of three updates that follow dense training."""
    weight = nn.Parameter(torch.tensor([3.0, -0.2, 2.0, 0.1, -1.0]))
    optimizer = kind([weight], lr=0.1, **settings)
    loss_fn = _distance(weight)
    # dense training: the optimizer has a memory when pruning comes
    for _ in range(2):
        optimizer.zero_grad()
        loss_fn().backward()
        optimizer.step()
    optimizer.zero_grad()  # so that emptying the gradients last is right as well
    mask = _mask()
    with torch.no_grad():
        weight.mul_(mask)
    loss_fn = _distance(weight, torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]))
    steps = []
    for _ in range(3):
        update(loss_fn, weight, mask, optimizer)
        steps.append(weight.detach().clone())
    return torch.stack(steps)


def _distance(weight: Tensor, counts: Tensor | float = 1.0) -> Callable[[], Tensor]:
    return lambda: (counts * (weight - 1.0) ** 2).sum()


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


# --- distillation with few labels -----------------------------------------------------------------


def _check_few_labels(answer: Callable) -> None:
    def in_float32(*inputs) -> Tensor:
        value = answer(*inputs)
        expect(
            isinstance(value, Tensor) and value.ndim == 0,
            "Return one number, as a scalar tensor.",
        )
        return value.float()

    for seed, rows, classes in ((0, 8, 5), (1, 13, 3)):
        generator = torch.Generator().manual_seed(seed)
        student, teacher = torch.randn(2, rows, classes, generator=generator) * 3
        targets = torch.randint(0, classes, (rows,), generator=generator)
        targets[rows // 3 :] = -100
        _check_soft_part(in_float32, student, teacher)
        _check_hard_part(in_float32, student, teacher, targets)
        _check_both_parts(in_float32, student, teacher, targets)
        _check_no_labels(in_float32, student, teacher)


def _check_soft_part(answer: Callable, student: Tensor, teacher: Tensor) -> None:
    """With alpha 1 the labels have no say: the loss is the teacher's term alone."""
    nobody = torch.full((len(student),), -100)
    value = answer(student.clone(), teacher.clone(), nobody, 4.0, 1.0)
    expect(
        bool(value.isfinite()),
        "Where no row has a label your loss is not finite, even at alpha 1: the hard part "
        "divides by the number of labelled rows. Divide by all rows.",
    )
    wanted = _solve_few_labels(student, teacher, nobody, 4.0, 1.0)
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
        (
            _swapped,
            "This is the divergence the wrong way round: the teacher's probabilities are the "
            "weights of the sum. F.kl_div takes the student's log-probabilities first.",
        ),
        (
            _soft_cross_entropy,
            "Where both agree the soft part must be 0. A cross entropy with soft targets "
            "still holds the teacher's own entropy; the divergence does not.",
        ),
    ):
        like = usual(student, teacher, nobody, 4.0, 1.0)
        for factor in (1.0, 4.0**-2):
            expect(not torch.allclose(value, factor * like, rtol=1e-4), hint)
    expect(
        bool(value != 0),
        "With alpha 1 and no label at all your loss is 0 although student and teacher differ. The "
        "soft part counts every row, with a label or without, and alpha is the teacher's share of "
        "the loss, 1 - alpha that of the labels.",
    )
    expect(
        bool(value > 0),
        f"Student and teacher differ, and your loss is {float(value):.3f}. Whoever lowers it "
        "pushes the outputs apart without end. Pull them together.",
    )
    _check_gradient_of_soft_part(answer, student, teacher, nobody)
    expect(
        torch.allclose(value, wanted, rtol=1e-4),
        "At alpha 1 the loss is T squared times the divergence of the softened outputs, "
        f"{float(wanted):.4f} here; yours is {float(value):.4f}.",
    )


def _check_gradient_of_soft_part(
    answer: Callable, student: Tensor, teacher: Tensor, nobody: Tensor
) -> None:
    for temperature in (2.0, 4.0, 16.0):
        got = _gradient(answer, student, teacher, nobody, temperature)
        wanted = _gradient(_solve_few_labels, student, teacher, nobody, temperature)
        where = f"At T={temperature:g}"
        for factor, hint in (
            (
                temperature**2,
                f"{where} the gradient is {1 / temperature**2:g} of what it is to be: "
                "multiply by T squared, or the soft term fades as T grows.",
            ),
            (
                temperature,
                f"{where} the gradient is too small by the factor T: it is T squared that is "
                "needed.",
            ),
            (
                student.shape[1],
                "The gradient is too small by the number of classes: take the mean over the "
                "rows only (reduction='batchmean').",
            ),
            (
                1 / len(student),
                "The gradient grows with the number of rows: take the mean over the rows.",
            ),
        ):
            expect(not torch.allclose(got * factor, wanted, atol=1e-5), hint)
        expect(
            torch.allclose(got, wanted, atol=1e-5),
            f"{where} the gradient is wrong. Both sets of logits are divided by T before "
            "softmax, and the student's enter as logarithms.",
        )


def _gradient(
    loss: Callable, student: Tensor, teacher: Tensor, targets: Tensor, temperature: float
) -> Tensor:
    leaf = student.clone().requires_grad_()
    value = loss(leaf, teacher.clone(), targets.clone(), temperature, 1.0)
    expect(
        value.requires_grad, "No gradient reaches the student: do not detach its logits."
    )
    return torch.autograd.grad(value, leaf)[0]


def _check_hard_part(
    answer: Callable, student: Tensor, teacher: Tensor, targets: Tensor
) -> None:
    """With alpha 0 only the labels count, and each weighs one over all rows."""
    got = answer(student.clone(), teacher.clone(), targets.clone(), 4.0, 0.0)
    wanted = _solve_few_labels(student, teacher, targets, 4.0, 0.0)
    labelled = F.cross_entropy(student, targets, ignore_index=-100)
    hot = _solve_few_labels(student / 4.0, teacher, targets, 4.0, 0.0)
    expect(
        not torch.allclose(got, labelled, rtol=1e-4),
        "This is the mean over the rows that have a label. In a part of a batch with a "
        "single label that label would weigh as much as many: divide by all rows.",
    )
    expect(
        not torch.allclose(got, wanted * len(student), rtol=1e-4),
        "This is the sum over the rows: divide by their number.",
    )
    for factor in (1.0, 4.0**2):
        expect(
            not torch.allclose(got, factor * hot, rtol=1e-4),
            "The hard part compares with labels: take the student's logits at T=1 there.",
        )
    expect(
        torch.allclose(got, wanted, rtol=1e-4),
        "At alpha 0 the loss is the cross entropy with the labels, summed over the rows that "
        f"have one and divided by all rows: {float(wanted):.4f} here, yours is "
        f"{float(got):.4f}.",
    )


def _check_both_parts(
    answer: Callable, student: Tensor, teacher: Tensor, targets: Tensor
) -> None:
    for alpha in (0.25, 0.9):
        got = answer(student.clone(), teacher.clone(), targets.clone(), 2.0, alpha)
        wanted = _solve_few_labels(student, teacher, targets, 2.0, alpha)
        other = _solve_few_labels(student, teacher, targets, 2.0, 1 - alpha)
        expect(
            not torch.allclose(got, other, rtol=1e-4),
            "Alpha is the teacher's share, and 1 - alpha that of the labels.",
        )
        expect(
            torch.allclose(got, wanted, rtol=1e-4),
            f"At alpha {alpha:g} the loss should be alpha times the soft part plus 1 - alpha "
            f"times the hard part, {float(wanted):.4f}; yours is {float(got):.4f}.",
        )


def _check_no_labels(answer: Callable, student: Tensor, teacher: Tensor) -> None:
    nobody = torch.full((len(student),), -100)
    got = answer(student.clone(), teacher.clone(), nobody, 4.0, 0.5)
    expect(
        bool(got.isfinite()),
        "Where no row has a label your loss is not finite: divide by all rows.",
    )


def _solve_few_labels(student, teacher, targets, temperature, alpha):
    log_q = F.log_softmax(student / temperature, dim=1)
    p = F.softmax(teacher / temperature, dim=1)
    soft = F.kl_div(log_q, p, reduction="batchmean") * temperature**2
    # cross_entropy gives 0 for a row without a label, and the mean is over all rows
    hard = F.cross_entropy(student, targets, reduction="none").mean()
    return alpha * soft + (1 - alpha) * hard


def _with_soft(soft: Callable) -> Callable:
    """Return an answer whose soft part is `soft(student, teacher, temperature)`."""

    def answer(student, teacher, targets, temperature, alpha):
        hard = F.cross_entropy(student, targets, reduction="none").mean()
        return alpha * soft(student, teacher, temperature) + (1 - alpha) * hard

    return answer


def _kl(student, teacher, temperature):
    log_q = F.log_softmax(student / temperature, dim=1)
    p = F.softmax(teacher / temperature, dim=1)
    return F.kl_div(log_q, p, reduction="batchmean")


_swapped = _with_soft(lambda s, t, T: _kl(t, s, T) * T**2)
_push_apart = _with_soft(lambda s, t, T: -_kl(s, t, T) * T**2)
_forget_t_squared = _with_soft(_kl)
_one_t = _with_soft(lambda s, t, T: _kl(s, t, T) * T)
_mean_of_all = _with_soft(lambda s, t, T: _kl(s, t, T) * T**2 / s.shape[1])
_sum_of_rows = _with_soft(lambda s, t, T: _kl(s, t, T) * T**2 * len(s))
_hot_student_only = _with_soft(lambda s, t, T: _kl(s, t * T, T) * T**2)
_hot_teacher_only = _with_soft(lambda s, t, T: _kl(s * T, t, T) * T**2)
_soft_cross_entropy = _with_soft(
    lambda s, t, T: F.cross_entropy(s / T, F.softmax(t / T, dim=1)) * T**2
)
_probabilities_first = _with_soft(
    lambda s, t, T: (
        F.kl_div((s / T).softmax(1), (t / T).softmax(1), reduction="batchmean") * T**2
    )
)


def _mean_over_labelled(student, teacher, targets, temperature, alpha):
    soft = _kl(student, teacher, temperature) * temperature**2
    hard = F.cross_entropy(student, targets, ignore_index=-100)
    return alpha * soft + (1 - alpha) * hard


def _labels_of_those_alone(student, teacher, targets, temperature, alpha):
    known = targets != -100
    soft = _kl(student, teacher, temperature) * temperature**2
    hard = F.cross_entropy(student[known], targets[known]) if known.any() else 0.0
    return alpha * soft + (1 - alpha) * hard


def _shares_swapped(student, teacher, targets, temperature, alpha):
    return _solve_few_labels(student, teacher, targets, temperature, 1 - alpha)


def _hot_labels(student, teacher, targets, temperature, alpha):
    soft = _kl(student, teacher, temperature) * temperature**2
    hard = F.cross_entropy(student / temperature, targets, reduction="none").mean()
    return alpha * soft + (1 - alpha) * hard


EXERCISES = (
    Exercise(
        "Write your_quantize(weight, bits, group): symmetric quantization of a weight (rows, "
        "columns), with a scale for each group. A group is `group` neighbours in a row, and "
        "`group` divides the columns. Return a new weight of the same shape, in floating "
        "point: in each group whole numbers from -top to top times the group's scale, where "
        "top = 2 ** (bits - 1) - 1. No value may be off by more than half a step, and a step "
        "is the group's largest absolute value over top. A group of zeros stays zeros.",
        _check_groups,
        _solve_groups,
        {
            "one scale": Wrong(_one_scale, "one scale for the whole weight"),
            "a scale for each row": Wrong(_scale_a_row, "one scale for each row"),
            "groups down the columns": Wrong(_scale_a_column, "down the columns"),
            "whole numbers returned": Wrong(_codes, "Multiply them by the scale"),
            "no rounding": Wrong(_never_round, "cannot hold them"),
            "a group of zeros": Wrong(_divide_by_zero, "its scale is 0"),
            "always 4 bits": Wrong(_always_seven, "at 8 bits a step is"),
            "maximum without absolute value": Wrong(
                _signed_maximum, "absolute values before"
            ),
            "rounded down": Wrong(_round_down, "round to the nearest"),
            "left in groups": Wrong(_left_in_groups, "the weight's shape again"),
        },
    ),
    Exercise(
        "Write your_update(loss_fn, weight, mask, optimizer): one training update of a pruned "
        "weight, after which every entry where `mask` is False is 0, while the others move as "
        "the optimizer wants. `loss_fn()` returns the loss. The optimizer comes from dense "
        "training and may have momentum.",
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
    Exercise(
        "Write your_loss(student, teacher, targets, temperature, alpha): the distillation loss "
        "where only some rows have a label. Student and teacher are logits (rows, classes); "
        "targets (rows,) are class numbers, and -100 where a row has none. Return the scalar "
        "alpha * soft + (1 - alpha) * hard: soft is temperature ** 2 times the divergence, "
        "summed over all rows, hard the cross entropy, summed over the rows with a label, and "
        "each sum is divided by the number of all rows, so that parts of a batch add up. No "
        "label at all is no error.",
        _check_few_labels,
        _solve_few_labels,
        {
            "push apart": Wrong(_push_apart, "Pull them together"),
            "forget T squared": Wrong(_forget_t_squared, "multiply by T squared"),
            "T, not squared": Wrong(_one_t, "the factor T"),
            "mean over classes too": Wrong(_mean_of_all, "batchmean"),
            "sum over rows": Wrong(_sum_of_rows, "mean over the rows"),
            "wrong way round": Wrong(_swapped, "wrong way round"),
            "cross entropy": Wrong(_soft_cross_entropy, "entropy"),
            "probabilities for logarithms": Wrong(_probabilities_first, "as logarithms"),
            "teacher at T=1": Wrong(_hot_student_only, "the teacher's logits by T"),
            "student at T=1": Wrong(_hot_teacher_only, "the student's logits by T"),
            "mean over labelled rows": Wrong(_mean_over_labelled, "divide"),
            "labelled rows alone": Wrong(_labels_of_those_alone, "divide by all rows"),
            "shares swapped": Wrong(_shares_swapped, "the teacher's share"),
            "labels at T": Wrong(_hot_labels, "at T=1"),
        },
    ),
)
