"""Exercises of chapter 11, gradient accumulation: questions, checks, solutions, usual mistakes.

A check knows a mistake by making it: it runs the usual wrong answers on the same problem,
and where the reader's result is that of one of them, the hint says so.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.gradient_accumulation import SavedBytes
from dlcourse.lab.exercises import Exercise, Hint, Wrong, expect

# --------------------------------------------------------------------------- problems


def _problem(seed: int, sizes: Sequence[int], kind: str):
    """Return (model, loss_fn, micro-batches of these sizes), all in float64."""
    generator = torch.Generator().manual_seed(seed)
    outputs = 4 if kind == "classes" else 1
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, outputs)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)

    micro_batches = []
    for size in sizes:
        inputs = torch.randn(size, 3, generator=generator, dtype=torch.float64)
        if kind == "classes":
            targets = torch.randint(0, outputs, (size,), generator=generator)
        else:
            targets = torch.randn(size, 1, generator=generator, dtype=torch.float64)
        micro_batches.append((inputs, targets))
    return model, F.cross_entropy if kind == "classes" else F.l1_loss, micro_batches


def _whole(micro_batches) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*micro_batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def _close(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found, wanted, rtol=1e-5, atol=1e-8)


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# --------------------------------------------------------------------------- Your turn


def _gradient(model: nn.Module) -> Tensor:
    parts = []
    for parameter in model.parameters():
        if parameter.grad is None:
            raise Hint(
                "There is no gradient in .grad after your function: call backward() on each "
                "share."
            )
        parts.append(parameter.grad.flatten())
    return torch.cat(parts)


def _gradient_by(answer: Callable, seed: int, sizes: Sequence[int], kind: str) -> Tensor:
    model, loss_fn, micro_batches = _problem(seed, sizes, kind)
    answer(model, loss_fn, micro_batches)
    return _gradient(model)


def _peak(run: Callable[[], object], model: nn.Module, micro_batches) -> int:
    """Return the most bytes that autograd kept for the backward pass while `run` ran."""
    given = []
    for pair in micro_batches:
        given.extend(pair)
    with SavedBytes(model, *given) as saved:
        run()
    return saved.peak


def _largest_alone(model: nn.Module, loss_fn: Callable, micro_batches) -> int:
    """Return the bytes that the largest micro-batch needs for a backward pass of its own."""
    model = copy.deepcopy(model)
    inputs, targets = max(micro_batches, key=lambda pair: len(pair[1]))
    run = lambda: loss_fn(model(inputs), targets).backward()  # noqa: E731
    return _peak(run, model, [(inputs, targets)])


def _check_accumulate(answer) -> None:
    for number, (sizes, kind) in enumerate(
        (
            ((5, 2, 1), "classes"),
            ((4, 4), "classes"),
            ((1, 7), "numbers"),
            ((6,), "classes"),
            ((2, 3, 2, 3, 2), "numbers"),
            ((1,) * 9, "classes"),
        )
    ):
        model, loss_fn, micro_batches = _problem(number, sizes, kind)
        before = _weights(model)
        calls = []

        def counted(outputs, targets, loss_fn=loss_fn, calls=calls):
            calls.append(len(targets))
            return loss_fn(outputs, targets)

        allowed = 1.25 * _largest_alone(model, loss_fn, micro_batches)
        run = lambda: answer(model, counted, micro_batches)  # noqa: B023, E731
        mode = [module.training for module in model.modules()]
        try:
            peak = _peak(run, model, micro_batches)
        except (
            RuntimeError
        ) as error:  # torch.func keeps nothing from one call to the next
            if "saved tensor hooks" not in str(error):
                raise
            model, loss_fn, micro_batches = _problem(number, sizes, kind)
            answer(model, counted, micro_batches)
            peak = 0

        expect(
            mode == [module.training for module in model.modules()],
            "Your function changed the mode of the model: in evaluation mode there would be no "
            "dropout in its gradient. Leave it.",
        )
        expect(
            torch.equal(_weights(model), before),
            "Your function changed the weights: leave the step to the caller.",
        )
        found = _gradient(model)
        expect(
            bool(calls),
            "Your function never calls loss_fn. It must work for every loss that is a mean "
            "over the rows.",
        )
        wanted = _gradient_by(_one_backward, number, sizes, kind)
        if not _close(found, wanted):
            _explain_gradient(found, wanted, number, sizes, kind)
        expect(
            peak <= allowed,
            f"The gradient is right, but with sizes {list(sizes)} autograd kept {peak:,} bytes, "
            f"and the largest micro-batch alone needs {allowed / 1.25:,.0f}. Nothing is saved: "
            "a plain backward() for each micro-batch, before the next forward pass, frees what "
            "it kept.",
        )


def _explain_gradient(found, wanted, number, sizes, kind) -> None:
    mistakes = {
        _mean_of_means: f"You took the mean of the means. With sizes {list(sizes)} an item of "
        "the smallest micro-batch then counts more than one of the largest.",
        _no_division: "You added the means up and divided by nothing: the gradient grows with "
        "the number of micro-batches.",
        _gradient_of_sum: "This is the gradient of the sum: divide by all items of the batch.",
    }
    for mistake, hint in mistakes.items():
        made = _gradient_by(mistake, number, sizes, kind)
        if _close(found, made) and not _close(made, wanted):
            raise Hint(hint)
    ratio = float(found.norm() / wanted.norm())
    expect(
        not _close(found, wanted * ratio),
        f"With sizes {list(sizes)} the direction is right, but the gradient is {ratio:.3g} times "
        "as long as that of the whole batch: look at what you divide by.",
    )
    last = _gradient_by(_only_the_last, number, sizes, kind)
    along = float(found.norm() / last.norm())
    expect(
        not _close(found, last * along),
        "Only the last micro-batch is left: something cleared .grad between the micro-batches.",
    )
    raise Hint(
        f"With sizes {list(sizes)} the gradient is not that of the mean over all rows. How much "
        "should each micro-batch count?"
    )


def _solve_accumulate(model, loss_fn, micro_batches):
    total = 0
    for _, targets in micro_batches:
        total += len(targets)

    for inputs, targets in micro_batches:
        loss = loss_fn(model(inputs), targets)
        (loss * len(targets) / total).backward()


def _one_backward(model, loss_fn, micro_batches):
    inputs, targets = _whole(micro_batches)
    loss_fn(model(inputs), targets).backward()


def _one_backward_at_the_end(model, loss_fn, micro_batches):
    total = sum(len(targets) for _, targets in micro_batches)
    loss = torch.zeros(())
    for inputs, targets in micro_batches:
        loss = loss + loss_fn(model(inputs), targets) * len(targets) / total
    loss.backward()


def _mean_of_means(model, loss_fn, micro_batches):
    for inputs, targets in micro_batches:
        (loss_fn(model(inputs), targets) / len(micro_batches)).backward()


def _no_division(model, loss_fn, micro_batches):
    for inputs, targets in micro_batches:
        loss_fn(model(inputs), targets).backward()


def _gradient_of_sum(model, loss_fn, micro_batches):
    for inputs, targets in micro_batches:
        (loss_fn(model(inputs), targets) * len(targets)).backward()


def _only_the_last(model, loss_fn, micro_batches):
    inputs, targets = micro_batches[-1]
    loss_fn(model(inputs), targets).backward()


def _cleared_each_time(model, loss_fn, micro_batches):
    total = sum(len(targets) for _, targets in micro_batches)
    for inputs, targets in micro_batches:
        model.zero_grad()
        (loss_fn(model(inputs), targets) * len(targets) / total).backward()


def _always_cross_entropy(model, loss_fn, micro_batches):
    _solve_accumulate(model, F.cross_entropy, micro_batches)


def _with_a_step(model, loss_fn, micro_batches):
    _solve_accumulate(model, loss_fn, micro_batches)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


# --------------------------------------------------------------------------- a whole update

OPTIMIZERS = {
    "SGD with momentum": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    "Adam": lambda weights: torch.optim.Adam(weights, lr=0.05),
}


def _weights_by(answer: Callable, seed: int, name: str, max_norm: float) -> Tensor:
    """Return the weights after each of three updates, (3, parameters)."""
    model, *_ = _problem(seed, (1,), "classes")
    optimizer = OPTIMIZERS[name](model.parameters())
    path = []
    for window, sizes in enumerate(((3, 3, 2), (4, 1), (2, 2, 2))):
        _, loss_fn, micro_batches = _problem(100 + 10 * seed + window, sizes, "classes")
        answer(model, loss_fn, optimizer, micro_batches, max_norm)
        path.append(_weights(model))
    return torch.stack(path)


def _check_update(answer) -> None:
    for seed, max_norm in ((0, 0.1), (1, 0.5), (2, 1000.0)):
        for name in OPTIMIZERS:
            found = _weights_by(answer, seed, name, max_norm)
            wanted = _weights_by(_solve_update, seed, name, max_norm)
            if _close(found, wanted):
                continue
            for mistake, hint in UPDATE_MISTAKES.items():
                made = _weights_by(mistake, seed, name, max_norm)
                if _close(found, made) and not _close(made, wanted):
                    raise Hint(hint)
            first = _close(found[0], wanted[0])
            expect(
                not first,
                "The first update is right and a later one is not. What do you leave in .grad "
                "for the next window?",
            )
            raise Hint(
                f"With {name} and max_norm={max_norm:g} the weights are not those of one update "
                "with the whole batch."
            )


def _solve_update(model, loss_fn, optimizer, micro_batches, max_norm):
    total = sum(len(targets) for _, targets in micro_batches)
    for inputs, targets in micro_batches:
        loss = loss_fn(model(inputs), targets)
        (loss * len(targets) / total).backward()

    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad()


def _clips_each(model, loss_fn, optimizer, micro_batches, max_norm):
    total = sum(len(targets) for _, targets in micro_batches)
    for inputs, targets in micro_batches:
        (loss_fn(model(inputs), targets) * len(targets) / total).backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad()


def _clips_never(model, loss_fn, optimizer, micro_batches, max_norm):
    _solve_update(model, loss_fn, optimizer, micro_batches, math.inf)


def _clips_values(model, loss_fn, optimizer, micro_batches, max_norm):
    _solve_accumulate(model, loss_fn, micro_batches)
    nn.utils.clip_grad_value_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad()


def _steps_each(model, loss_fn, optimizer, micro_batches, max_norm):
    for micro_batch in micro_batches:
        _solve_update(model, loss_fn, optimizer, [micro_batch], max_norm)


def _never_zeroes(model, loss_fn, optimizer, micro_batches, max_norm):
    _solve_accumulate(model, loss_fn, micro_batches)
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()


def _update_of_mean_of_means(model, loss_fn, optimizer, micro_batches, max_norm):
    _mean_of_means(model, loss_fn, micro_batches)
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad()


UPDATE_MISTAKES = {
    _clips_each: "You clip inside the loop, so the limit bites on parts of the gradient. Clip "
    "once, after the last micro-batch.",
    _clips_never: "Nothing is clipped: the norm of the whole gradient must be at most max_norm.",
    _clips_values: "You clip each value; the question asks for the norm of the whole gradient.",
    _steps_each: "You make an update for each micro-batch: step once, after the last one.",
    _never_zeroes: "The gradient of one window is still there in the next: clear it after the "
    "step.",
    _update_of_mean_of_means: "You took the mean of the means, or their sum: weight each "
    "micro-batch by its share of the rows.",
}


# --------------------------------------------------------------------------- Accelerate's factors


def _check_factors(answer) -> None:
    cases = (
        ([[5, 2, 4], [3, 3, 1]], 3),
        ([[4, 1, 2]], 3),
        ([[7]], 4),  # a last short window: one micro-batch of four
        ([[6, 2, 5], [1, 4, 3], [2, 2, 8], [9, 1, 1]], 3),
        ([[3, 9], [5, 7]], 8),
    )
    answers = []
    for items, steps in cases:
        given = [list(row) for row in items]
        found = torch.as_tensor(_plain(answer(given, steps)), dtype=torch.float64)
        wanted = _factors_by(_solve_factors, items, steps)
        expect(
            found.shape == wanted.shape,
            f"Return a factor for each micro-batch of each process: for {items} the shape is "
            f"{tuple(wanted.shape)}, not {tuple(found.shape)}.",
        )
        answers.append(found)
    if _factors_are(answers, _solve_factors, cases):
        return
    for mistake, hint in FACTOR_MISTAKES.items():
        expect(not _factors_are(answers, mistake, cases), hint)
    for found, (items, steps) in zip(answers, cases, strict=True):
        expect(
            _close(found, _factors_by(_solve_factors, items, steps)),
            f"For items={items} and steps={steps} the factors do not give the mean over all "
            f"{sum(map(sum, items))} items.",
        )


def _factors_are(answers: list[Tensor], solve, cases) -> bool:
    """Tell whether the answers to all cases are those of `solve`."""
    pairs = zip(answers, cases, strict=True)
    return all(_close(found, _factors_by(solve, *case)) for found, case in pairs)


def _plain(values):
    """Return nested lists of numbers, whatever mix of lists, arrays and tensors came."""
    if hasattr(values, "tolist"):
        return values.tolist()
    if isinstance(values, (list, tuple)):
        return [_plain(value) for value in values]
    return float(values)


def _factors_by(answer, items, steps) -> Tensor:
    return torch.tensor(answer(items, steps), dtype=torch.float64)


def _scaled(items, factor) -> list[list[float]]:
    return [[n * factor for n in row] for row in items]


def _solve_factors(items, steps):
    processes = len(items)
    total = sum(sum(row) for row in items)
    return [[n * steps * processes / total for n in row] for row in items]


def _forgets_processes(items, steps):
    return _scaled(items, steps / sum(map(sum, items)))


def _forgets_steps(items, steps):
    return _scaled(items, len(items) / sum(map(sum, items)))


def _forgets_both(items, steps):
    return _scaled(items, 1 / sum(map(sum, items)))


def _own_items_only(items, steps):
    return [[n * steps / max(sum(row), 1) for n in row] for row in items]


def _for_a_summed_loss(items, steps):
    factor = steps * len(items) / sum(map(sum, items))
    return [[factor for _ in row] for row in items]


def _as_accelerate_does(items, steps):
    return [[1.0 for _ in row] for row in items]


def _short_window_only(items, steps):
    return [[steps / len(row) for _ in row] for row in items]


def _window_for_steps(items, steps):
    return _scaled(items, len(items[0]) * len(items) / sum(map(sum, items)))


FACTOR_MISTAKES = {
    _forgets_processes: "DDP takes the mean over the processes; you need the sum. Undo it.",
    _forgets_steps: "accelerator.backward divides by `steps`. Undo it.",
    _forgets_both: "accelerator.backward divides by `steps`, and DDP by the processes. Undo both.",
    _own_items_only: "Each process divides by its own items. Where they differ, that is a mean of "
    "means again: count the items of all processes.",
    _for_a_summed_loss: "These factors are for a loss that is a sum. Here it is the mean over the "
    "items of a micro-batch.",
    _as_accelerate_does: "This leaves the loss as it is: a mean of means, and a short window is "
    "divided by too much.",
    _short_window_only: "The short window is mended, but each micro-batch still counts the same, "
    "whatever its items.",
    _window_for_steps: "accelerator.backward divides by `steps`, also in a short window: it does "
    "not look how many micro-batches come.",
}


# --------------------------------------------------------------------------- an epoch, counted


def _check_counts(answer) -> None:
    for rows, size, steps in ((64, 8, 4), (100, 8, 4), (24, 8, 8), (70, 10, 1), (9, 2, 3), (5, 8, 2)):  # fmt: skip
        found = [
            int(value) if int(value) == value else float(value)
            for value in answer(rows, size, steps)
        ]
        wanted = _solve_counts(rows, size, steps)
        expect(
            len(found) == 3,
            "Return three numbers: backward passes, optimizer steps, rows in the last update.",
        )
        case = f"{rows} rows in micro-batches of {size}, windows of {steps}"
        expect(
            found[0] == wanted[0],
            f"{case}: {wanted[0]} micro-batches, and each needs a backward pass. Accumulation "
            f"leaves none out, and a short micro-batch counts too. You said {found[0]}.",
        )
        expect(
            found[1] == wanted[1],
            f"{case}: each window makes one optimizer step, a last short one too. You said "
            f"{found[1]}.",
        )
        expect(
            found[2] == wanted[2],
            f"{case}: the last update takes the rows that the others have left. You said "
            f"{found[2]}.",
        )


def _solve_counts(rows, micro_batch_size, accumulation_steps):
    backward_passes = math.ceil(rows / micro_batch_size)
    optimizer_steps = math.ceil(backward_passes / accumulation_steps)
    full_window = micro_batch_size * accumulation_steps
    rows_in_last = rows - (optimizer_steps - 1) * full_window
    return backward_passes, optimizer_steps, rows_in_last


def _fewer_backwards(rows, micro_batch_size, accumulation_steps):
    _, updates, last = _solve_counts(rows, micro_batch_size, accumulation_steps)
    return updates, updates, last


def _short_micro_batch_lost(rows, micro_batch_size, accumulation_steps):
    _, updates, last = _solve_counts(rows, micro_batch_size, accumulation_steps)
    return rows // micro_batch_size, updates, last


def _short_window_lost(rows, micro_batch_size, accumulation_steps):
    passes, _, last = _solve_counts(rows, micro_batch_size, accumulation_steps)
    return passes, passes // accumulation_steps, last


def _step_each_time(rows, micro_batch_size, accumulation_steps):
    passes, _, last = _solve_counts(rows, micro_batch_size, accumulation_steps)
    return passes, passes, last


def _last_is_full(rows, micro_batch_size, accumulation_steps):
    passes, updates, _ = _solve_counts(rows, micro_batch_size, accumulation_steps)
    return passes, updates, micro_batch_size * accumulation_steps


def _last_by_remainder(rows, micro_batch_size, accumulation_steps):
    passes, updates, _ = _solve_counts(rows, micro_batch_size, accumulation_steps)
    return passes, updates, rows % (micro_batch_size * accumulation_steps)


EXERCISES = (
    Exercise(
        "Write accumulate(model, loss_fn, micro_batches). micro_batches is a list of (inputs, "
        "targets), perhaps of unequal sizes; loss_fn(outputs, targets) is any loss that is the "
        "mean over its rows. .grad is empty when the function is called. Leave in it the gradient "
        "of the mean over all rows, change no weight, and never keep the activations of more "
        "than one micro-batch.",
        _check_accumulate,
        _solve_accumulate,
        {
            "average the means": Wrong(_mean_of_means, "mean of the means"),
            "no division": Wrong(_no_division, "divided by nothing"),
            "gradient of the sum": Wrong(_gradient_of_sum, "gradient of the sum"),
            "zero_grad inside the loop": Wrong(_cleared_each_time, "Only the last"),
            "one backward over the whole batch": Wrong(_one_backward, "Nothing is saved"),
            "one backward at the end": Wrong(
                _one_backward_at_the_end, "Nothing is saved"
            ),
            "cross-entropy for every loss": Wrong(
                _always_cross_entropy, "never calls loss_fn"
            ),
            "a step inside": Wrong(_with_a_step, "changed the weights"),
        },
    ),
    Exercise(
        "Write update(model, loss_fn, optimizer, micro_batches, max_norm): one update, the same as "
        "with the whole batch at once, the norm of its gradient clipped to max_norm. As in Your "
        "turn, loss_fn(outputs, targets) is the mean over its rows. The function is called again "
        "and again; .grad is empty at the first call.",
        _check_update,
        _solve_update,
        {
            "clipped inside the loop": Wrong(_clips_each, "inside the loop"),
            "not clipped": Wrong(_clips_never, "Nothing is clipped"),
            "values clipped": Wrong(_clips_values, "clip each value"),
            "a step for each micro-batch": Wrong(_steps_each, "for each micro-batch"),
            "gradients left behind": Wrong(_never_zeroes, "still there"),
            "average the means": Wrong(_update_of_mean_of_means, "mean of the means"),
        },
    ),
    Exercise(
        "Write factors(items, steps). items[p][j] counts the items in micro-batch j of process p, "
        "in one window, which may be short; steps is Accelerate's gradient_accumulation_steps. For "
        "each micro-batch its process calls accelerator.backward(mean loss * factor); backward "
        "divides by steps, and DDP takes the mean over the processes. Return the factors, in the "
        "shape of items, that give the gradient of the mean over all items.",
        _check_factors,
        _solve_factors,
        {
            "forget DDP's mean": Wrong(_forgets_processes, "mean over the processes"),
            "forget Accelerate's division": Wrong(_forgets_steps, "divides by `steps`"),
            "forget both": Wrong(_forgets_both, "Undo both"),
            "each process for itself": Wrong(_own_items_only, "mean of means again"),
            "for a summed loss": Wrong(_for_a_summed_loss, "is a sum"),
            "leave it to Accelerate": Wrong(
                _as_accelerate_does, "leaves the loss as it is"
            ),
            "mend only the short window": Wrong(_short_window_only, "counts the same"),
            "the window's length for steps": Wrong(
                _window_for_steps, "also in a short window"
            ),
        },
    ),
    Exercise(
        "Write counts(rows, micro_batch_size, accumulation_steps) for one epoch. A short last "
        "micro-batch and a short last window are used, too. Return (backward passes, optimizer "
        "steps, rows in the last update).",
        _check_counts,
        _solve_counts,
        {
            "fewer backwards": Wrong(_fewer_backwards, "leaves none out"),
            "the short micro-batch is lost": Wrong(
                _short_micro_batch_lost, "short micro-batch"
            ),
            "the short window is lost": Wrong(_short_window_lost, "a last short one too"),
            "a step for each micro-batch": Wrong(_step_each_time, "one optimizer step"),
            "the last update is full": Wrong(_last_is_full, "that the others have left"),
            "the last update by remainder": Wrong(_last_by_remainder, "others have left"),
        },
    ),
)
