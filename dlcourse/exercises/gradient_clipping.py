"""Exercises of chapter 4, gradient clipping: questions, checks, solutions, usual mistakes.

A check knows a mistake by making it: it runs the usual wrong answers on the same problem,
and where the reader's result is that of one of them, the hint says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dlcourse.lab.exercises import Exercise, Hint, Wrong, expect


def _close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    """Tell whether two vectors differ by less than `tolerance` of the wanted length."""
    if not bool(found.isfinite().all()):
        return False
    distance = (found.double() - wanted.double()).norm()
    return bool(distance <= tolerance * wanted.double().norm() + 1e-12)


# --------------------------------------------------------------------------- Your turn

# seed, shapes (None: a parameter without gradient), norm of them all, bound
CLIP_CASES = (
    (0, ((3,), (2, 2)), 5.0, 1.0),
    (1, ((4,), (4,), (4,)), 1.1, 1.0),  # each is below the bound, all together are not
    (2, ((2, 3), (), (5,)), 0.3, 2.0),
    (3, ((1,), (2, 2, 2), (7,)), 4e4, 0.25),
    (4, ((6,),), 3.0, 0.5),
    (5, ((2,), (3, 1)), 0.08, 0.01),
    (6, ((5,), (2, 3)), 0.9, 1.0),
)
ZERO_CASE = (7, ((3,), (2, 2)), 0.0, 1.0)
MISSING_CASE = (8, ((3,), None, (2, 2)), 6.0, 2.0)


def _parameters(seed: int, shapes: Sequence, norm: float) -> list[nn.Parameter]:
    """Return parameters whose gradients together have this norm."""
    generator = torch.Generator().manual_seed(seed)
    parameters = []
    for number, shape in enumerate(shapes):
        parameter = nn.Parameter(torch.randn(shape or (), generator=generator))
        if shape is not None:
            gradient = torch.randn(shape, generator=generator)
            parameter.grad = gradient * (1 + 0.5 * number) / gradient.norm()
        parameters.append(parameter)
    found = _flat(parameters).norm()
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad *= norm / found
    return parameters


def _flat(parameters: Sequence[nn.Parameter]) -> Tensor:
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def _clipped_by(answer: Callable, case: tuple) -> tuple[Tensor, object]:
    """Return (all gradients after the answer, what it returned)."""
    seed, shapes, norm, bound = case
    parameters = _parameters(seed, shapes, norm)
    returned = answer(parameters, bound)
    return _flat(parameters), returned


def _check_clip(answer: Callable) -> None:
    for case in CLIP_CASES:
        _check_one_clip(answer, case)
    try:
        found, _ = _clipped_by(answer, ZERO_CASE)
    except ZeroDivisionError:
        raise Hint(
            "All gradients may be zero, and then your code divides by a norm of 0."
        ) from None
    expect(
        bool((found == 0).all()),
        f"Gradients that are all zero must stay zero; yours became {found[0].item():g}. "
        "What do you divide by?",
    )
    try:
        _check_one_clip(answer, MISSING_CASE)
    except (AttributeError, TypeError):
        raise Hint(
            "A parameter without a gradient has .grad None, and your code stops there: "
            "leave it out."
        ) from None


def _check_one_clip(answer: Callable, case: tuple) -> None:
    seed, shapes, norm, bound = case
    parameters = _parameters(seed, shapes, norm)
    weights = [p.detach().clone() for p in parameters]
    before = _flat(parameters)
    held = [p.grad for p in parameters]
    returned = answer(parameters, bound)
    pairs = zip(parameters, weights, strict=True)
    expect(
        all(torch.equal(p.detach(), kept) for p, kept in pairs),
        "Your function changed the parameters themselves: change their .grad.",
    )
    expect(
        all(p.grad is not None for p, s in zip(parameters, shapes, strict=True) if s),
        "A gradient is gone: .grad must hold the clipped gradient afterwards.",
    )
    found = _flat(parameters)
    wanted = before * min(1.0, bound / norm)
    if not _close(found, wanted):
        _explain_clip(answer, found, before, case)
    expect(
        all(p.grad is grad for p, grad in zip(parameters, held, strict=True)),
        "The values are right, but .grad holds a new tensor: whoever kept the old one (DDP "
        "keeps views of it) does not see the clipping. Multiply in place, with mul_.",
    )
    _check_returned(returned, found, norm, bound)


def _explain_clip(answer: Callable, found: Tensor, before: Tensor, case: tuple) -> None:
    _, _, norm, bound = case
    for mistake, hint in CLIP_MISTAKES.items():
        if all(_alike(answer, mistake, other) for other in CLIP_CASES):
            raise Hint(hint)
    expect(
        norm <= bound or not torch.equal(found, before),
        f"The norm is {norm:g}, the bound {bound:g}, and nothing has changed: the gradients in "
        ".grad must become shorter, in place.",
    )
    expect(
        norm > bound,
        f"The norm is {norm:g}, below the bound {bound:g}: this gradient must stay as it is. "
        f"Its norm became {found.norm():g}.",
    )
    cosine = torch.cosine_similarity(found, before, dim=0)
    expect(
        bool(cosine > 0.9999),
        "The gradient points elsewhere afterwards: one factor for all tensors keeps the "
        f"direction (cosine {cosine:.3f}).",
    )
    raise Hint(
        f"The norm over all gradients is {norm:g} and the bound {bound:g}; afterwards the norm "
        f"is {found.norm():g}."
    )


def _alike(answer: Callable, mistake: Callable, case: tuple) -> bool:
    """Tell whether the answer leaves the gradients that a mistake leaves."""
    made, _ = _clipped_by(mistake, case)
    try:
        found, _ = _clipped_by(answer, case)
    except Exception:  # it stops on another case: not this mistake alone
        return False
    return _close(found, made)


def _check_returned(returned, found: Tensor, norm: float, bound: float) -> None:
    expect(
        returned is not None, "The gradients are right. Return the norm before clipping."
    )
    try:
        value = float(returned)
    except (TypeError, ValueError, RuntimeError):
        raise Hint(
            "The gradients are right. Return one number, the norm before clipping, not "
            f"{type(returned).__name__}."
        ) from None
    if math.isclose(value, norm, rel_tol=1e-3):
        return
    expect(
        not math.isclose(value, found.double().norm().item(), rel_tol=1e-3),
        "The gradients are right. You return the norm after clipping; the one before it is the "
        "one to log.",
    )
    raise Hint(
        f"The gradients are right. You return {value:.4g}; the norm before clipping is {norm:g}."
    )


def _solve_clip(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    total = torch.stack([grad.norm() for grad in grads]).norm()
    factor = min(1.0, max_norm / (total + 1e-6))
    for grad in grads:
        grad.mul_(factor)
    return total


def _scaled_by(factor_of: Callable) -> Callable:
    """Return a way of clipping from a function (norms of the tensors, bound) -> factor."""

    def clip(parameters, max_norm):
        grads = [p.grad for p in parameters if p.grad is not None]
        norms = torch.stack([grad.norm() for grad in grads])
        factor = factor_of(norms, max_norm)
        for grad in grads:
            grad.mul_(factor)
        return norms.norm()

    return clip


def _clips_each_tensor(parameters, max_norm):
    norms = [_solve_clip([p], max_norm) for p in parameters if p.grad is not None]
    return torch.stack(norms).norm()


def _clips_entries(parameters, max_norm):
    total = _flat(parameters).norm()
    for p in parameters:
        if p.grad is not None:
            p.grad.clamp_(-max_norm, max_norm)
    return total


def _clips_from_above(parameters, max_norm):
    total = _flat(parameters).norm()
    for p in parameters:
        if p.grad is not None:
            p.grad.clamp_(max=max_norm)
    return total


def _divides_by_zero(parameters, max_norm):
    norm = _flat(parameters).norm().item()
    factor = min(1.0, max_norm / norm)
    for p in parameters:
        if p.grad is not None:
            p.grad.mul_(factor)
    return norm


def _stops_at_none(parameters, max_norm):
    total = torch.stack([p.grad.norm() for p in parameters]).norm()
    factor = min(1.0, max_norm / (total + 1e-6))
    for p in parameters:
        p.grad.mul_(factor)
    return total


def _returns_norm_after(parameters, max_norm):
    _solve_clip(parameters, max_norm)
    return _flat(parameters).norm()


def _returns_nothing(parameters, max_norm):
    _solve_clip(parameters, max_norm)


def _not_in_place(parameters, max_norm):
    total = _flat(parameters).norm()
    factor = min(1.0, max_norm / (total + 1e-6))
    return [p.grad * factor for p in parameters]


_always_to_the_bound = _scaled_by(lambda norms, bound: bound / norms.norm())
_to_length_one = _scaled_by(
    lambda norms, bound: 1 / norms.norm() if norms.norm() > bound else 1.0
)
_by_sum_of_norms = _scaled_by(lambda norms, bound: min(1.0, bound / norms.sum()))
_by_largest_norm = _scaled_by(lambda norms, bound: min(1.0, bound / norms.max()))
_by_squared_norm = _scaled_by(lambda norms, bound: min(1.0, bound / norms.square().sum()))
_by_mean_of_norms = _scaled_by(lambda norms, bound: min(1.0, bound / norms.mean()))
_where_one_is_long = _scaled_by(
    lambda norms, bound: bound / norms.norm() if norms.max() > bound else 1.0
)

CLIP_MISTAKES = {
    _clips_each_tensor: "You bound each tensor by itself, which turns the whole gradient and "
    "may leave it too long: take one norm over all tensors together.",
    _clips_entries: "You bound each entry by itself, which turns the gradient: bound the norm "
    "of all entries together.",
    _clips_from_above: "You bound each entry from above only: large negative entries stay. "
    "Bound the norm of all entries together.",
    _always_to_the_bound: "You rescale every gradient, also one that is shorter than the "
    "bound: that one must stay as it is.",
    _to_length_one: "A long gradient gets length 1 whatever the bound is: its norm must become "
    "max_norm.",
    _by_sum_of_norms: "You add up the norms of the tensors. The norm of all of them is the "
    "root of the sum of their squares.",
    _by_mean_of_norms: "You take the mean of the tensors' norms. The norm of all of them is "
    "the root of the sum of their squares.",
    _by_largest_norm: "You take the largest of the tensors' norms. The norm of all of them is "
    "the root of the sum of their squares.",
    _by_squared_norm: "You divide by the sum of the squares: the root is missing.",
    _where_one_is_long: "You clip only where a single tensor is longer than the bound: look "
    "at the norm of all together.",
}


# --------------------------------------------------------------------------- a whole update


class _Counted(torch.autograd.Function):
    """The identity, which notes when its backward pass has been run."""

    @staticmethod
    def forward(ctx, loss, done):
        ctx.done = done
        return loss.clone()

    @staticmethod
    def backward(ctx, *grads):
        ctx.done.append(True)
        return grads[0], None


class _Problem:
    """A small network, its optimizer and scaler, and losses of micro-batches."""

    def __init__(self, seed: int, scale: float) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.normal_(generator=self.generator)
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.SGD(self.parameters, lr=0.1, momentum=0.5)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=9999)
        self.waiting = 0  # the most losses computed and not yet back-propagated

    def losses(self, sizes: Sequence[float]) -> list[Callable[[], Tensor]]:
        """Return a function for each micro-batch; a size makes its targets large."""
        done: list[bool] = []
        called: list[bool] = []
        functions = []
        for size in sizes:
            inputs = torch.randn(5, 3, generator=self.generator)
            targets = size * torch.randn(5, 1, generator=self.generator)

            def loss_of(inputs=inputs, targets=targets, size=size):
                if torch.is_grad_enabled():
                    self.waiting = max(self.waiting, len(called) - len(done) + 1)
                    called.append(True)
                loss = (self.model(inputs) - targets).square().mean()
                if math.isinf(size):
                    loss = self.model(inputs).mean() * size
                return _Counted.apply(loss, done)

            functions.append(loss_of)
        return functions

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters])

    def run(self, answer: Callable, sizes: Sequence[float], max_norm: float) -> None:
        answer(self.losses(sizes), self.parameters, self.optimizer, self.scaler, max_norm)


UPDATES = ((3.0, 3.0, 40.0), (2.0, 5.0), (1.0, 1.0, 1.0, 30.0))
# seed, scale, bound; with a scale of 2 an old gradient weighs as much as a new one
UPDATE_CASES = ((0, 2.0**16, 1.0), (1, 2.0**12, 0.1), (2, 2.0, 1e6))


def _path(answer: Callable, case: tuple) -> Tensor:
    """Return how far the weights are from the start after each update."""
    seed, scale, max_norm = case
    problem = _Problem(seed, scale)
    start = problem.weights()
    moved = []
    for sizes in UPDATES:
        problem.run(answer, sizes, max_norm)
        moved.append(problem.weights() - start)
    return torch.stack(moved)


def _check_update(answer: Callable) -> None:
    for case in UPDATE_CASES:
        found = _path(answer, case)
        wanted = _path(_solve_update, case)
        if _close(found, wanted, 5e-4):
            continue
        expect(
            bool(found.any()),
            "The weights do not move: let the scaler take a step of the optimizer.",
        )
        for mistake, hint in UPDATE_MISTAKES.items():
            if all(_same_path(answer, mistake, other) for other in UPDATE_CASES):
                raise Hint(hint)
        expect(
            not _close(found[0], wanted[0], 5e-4),
            "The first update is right and a later one is not. What do you leave in .grad for "
            "the next call?",
        )
        raise Hint(
            f"With max_norm={case[2]:g} the weights are not those of one update with the mean "
            "gradient of all micro-batches, unscaled and clipped."
        )
    _check_overflow(answer)
    problem = _Problem(3, 2.0**8)
    problem.run(answer, (1.0, 1.0, 1.0, 1.0), 1.0)
    expect(
        problem.waiting <= 1,
        f"The update is right, but {problem.waiting} losses wait with their graphs at once: "
        "call backward for each before you compute the next.",
    )


def _same_path(answer: Callable, mistake: Callable, case: tuple) -> bool:
    made = _path(mistake, case)
    found = _path(answer, case)
    both = made.isfinite() == found.isfinite()
    return bool(both.all()) and _close(found.nan_to_num(), made.nan_to_num(), 5e-4)


def _check_overflow(answer: Callable) -> None:
    problem = _Problem(4, 2.0**10)
    before = problem.weights()
    problem.run(answer, (1.0, math.inf), 1.0)
    expect(
        torch.equal(problem.weights(), before),
        "A gradient that is not finite reached the weights: let the scaler take the step, so "
        "that it can skip it.",
    )
    expect(
        problem.scaler.get_scale() < 2.0**10,
        "After a gradient that is not finite the scale must fall: end with scaler.update().",
    )
    problem.run(answer, (1.0, 2.0), 1.0)
    expect(
        bool(problem.weights().isfinite().all())
        and not torch.equal(problem.weights(), before),
        "After the skipped update the next one fails: what do you leave in .grad?",
    )


def _solve_update(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()  # accumulate

    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def _variant(
    *,
    divide: bool = True,
    unscale: bool = True,
    clip: Callable | None = torch.nn.utils.clip_grad_norm_,
    clip_each: bool = False,
    scaled_step: bool = True,
    update: bool = True,
    zero: bool = True,
    steps_each: bool = False,
) -> Callable:
    """Return the solution with one thing done wrong."""

    def end(parameters, optimizer, scaler, max_norm):
        if unscale:
            scaler.unscale_(optimizer)
        if clip is not None:
            clip(parameters, max_norm)
        if scaled_step:
            scaler.step(optimizer)
        else:
            optimizer.step()
        if update:
            scaler.update()
        else:
            scaler._per_optimizer_states.clear()  # else the next call stops in torch
        if zero:
            optimizer.zero_grad()

    def answer(losses, parameters, optimizer, scaler, max_norm):
        for loss in losses:
            value = loss() / len(losses) if divide else loss()
            scaler.scale(value).backward()
            if clip_each:  # with the bound in units of the scaled gradient
                torch.nn.utils.clip_grad_norm_(parameters, max_norm * scaler.get_scale())
            if steps_each:
                end(parameters, optimizer, scaler, max_norm)
        if not steps_each:
            end(parameters, optimizer, scaler, max_norm)

    return answer


def _each_parameter(parameters, max_norm):
    for parameter in parameters:
        torch.nn.utils.clip_grad_norm_([parameter], max_norm)


def _clips_each_alone(losses, parameters, optimizer, scaler, max_norm):
    total = [torch.zeros_like(p) for p in parameters]
    for loss in losses:
        optimizer.zero_grad()
        scaler.scale(loss()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, max_norm * scaler.get_scale())
        for sum_, p in zip(total, parameters, strict=True):
            sum_ += p.grad / len(losses)
    for sum_, p in zip(total, parameters, strict=True):
        p.grad = sum_
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def _one_graph(losses, parameters, optimizer, scaler, max_norm):
    total = sum(loss() for loss in losses) / len(losses)
    scaler.scale(total).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def _clips_after_the_step(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.zero_grad()


_clips_scaled = _variant(unscale=False)
_clips_never = _variant(clip=None)
_clips_values = _variant(clip=torch.nn.utils.clip_grad_value_)
_clips_each_parameter = _variant(clip=_each_parameter)
_clips_sum_so_far = _variant(clip_each=True)
_no_division = _variant(divide=False)
_never_zeroes = _variant(zero=False)
_steps_each = _variant(steps_each=True)
_steps_past_the_scaler = _variant(scaled_step=False)
_never_updates = _variant(update=False)

UPDATE_MISTAKES = {
    _clips_scaled: "The updates are tiny: you clip the scaled gradient, and the scale is "
    "divided out afterwards. Unscale first.",
    _clips_sum_so_far: "You clip the sum so far, inside the loop: clip once, after the last "
    "micro-batch.",
    _clips_each_alone: "You clip each micro-batch by itself, so a rare large one counts no "
    "more than the others: clip once, after the last micro-batch.",
    _clips_each_parameter: "You clip each parameter by itself: take one norm over all "
    "parameters.",
    _clips_never: "Nothing is clipped before the step: the norm of the gradient must be at "
    "most max_norm.",
    _clips_values: "You clip each value; the question asks for the norm of the whole gradient.",
    _no_division: "You add the gradients up. The update is that of the mean over the "
    "micro-batches: divide each loss by their number.",
    _never_zeroes: "The gradient of one call is still there in the next: clear it.",
    _steps_each: "You make an update for each micro-batch: step once, after the last one.",
}


# --------------------------------------------------------------------------- a moving bound


def _norms(seed: int, count: int) -> list[float]:
    """Return norms that drift down, with spikes."""
    rng = np.random.default_rng(seed)
    norms = np.linspace(3, 1, count) * rng.uniform(0.7, 1.4, count)
    spikes = rng.choice(count, max(1, count // 8), replace=False)
    norms[spikes] *= rng.uniform(5, 60, len(spikes))
    return norms.tolist()


BOUND_CASES = (
    (0, 30, 5, 0.9),
    (1, 40, 10, 0.5),
    (2, 25, 4, 1.0),
    (3, 6, 8, 0.9),  # fewer updates than the window
    (4, 50, 7, 0.75),
    (5, 20, 1, 0.9),
)


def _check_bounds(answer: Callable) -> None:
    found, wanted = [], []
    for seed, count, window, quantile in BOUND_CASES:
        norms = _norms(seed, count)
        given = list(norms)
        values = answer(given, window, quantile)
        expect(
            given == norms,
            "Your function changed the list that it was given: keep the norms before clipping.",
        )
        expect(values is not None, "Return the norms after clipping.")
        wanted.append(_solve_bounds(norms, window, quantile))
        found.append(_numbers(values, count))
    if all(map(_near, found, wanted)):
        return
    for mistake, hint in BOUND_MISTAKES.items():
        made = []
        for seed, count, window, quantile in BOUND_CASES:
            made.append(mistake(_norms(seed, count), window, quantile))
        if all(map(_near, found, made)):
            raise Hint(hint)
    for values, right, case in zip(found, wanted, BOUND_CASES, strict=True):
        wrong = [t for t in range(len(right)) if not _near([values[t]], [right[t]])]
        if wrong:
            t, (seed, count, window, quantile) = wrong[0], case
            norms = _norms(seed, count)
            past = [round(norm, 3) for norm in norms[max(0, t - window) : t]]
            raise Hint(
                f"With window={window} and quantile={quantile:g}, update {t} (from 0) has norm "
                f"{norms[t]:.3f} and before it {past}: it should become {right[t]:.4f}, and is "
                f"{values[t]:.4f}."
            )


def _near(found, wanted) -> bool:
    return len(found) == len(wanted) and np.allclose(found, wanted, rtol=1e-4, atol=1e-6)


def _numbers(values, count: int) -> list[float]:
    """Return what came as a list of numbers, whatever it is."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, RuntimeError):
        raise Hint("Return one number for each update, in their order.") from None
    expect(
        len(numbers) == count,
        f"For {count} norms you return {len(numbers)} numbers: return one for each update.",
    )
    return numbers


def _solve_bounds(norms, window, quantile):
    clipped = []
    for t, norm in enumerate(norms):
        past = norms[max(0, t - window) : t]  # before clipping, without the present one
        if t >= window:
            norm = min(norm, np.quantile(past, quantile))
        clipped.append(norm)
    return clipped


def _includes_the_present(norms, window, quantile):
    clipped = []
    for t, norm in enumerate(norms):
        if t >= window:
            norm = min(norm, np.quantile(norms[t - window + 1 : t + 1], quantile))
        clipped.append(norm)
    return clipped


def _window_and_the_present(norms, window, quantile):
    clipped = []
    for t, norm in enumerate(norms):
        if t >= window:
            norm = min(norm, np.quantile(norms[t - window : t + 1], quantile))
        clipped.append(norm)
    return clipped


def _from_clipped_norms(norms, window, quantile):
    clipped = []
    for t, norm in enumerate(norms):
        if t >= window:
            norm = min(norm, np.quantile(clipped[t - window :], quantile))
        clipped.append(norm)
    return clipped


def _from_all_the_past(norms, window, quantile):
    clipped = []
    for t, norm in enumerate(norms):
        if t >= window:
            norm = min(norm, np.quantile(norms[:t], quantile))
        clipped.append(norm)
    return clipped


def _from_the_first_norms(norms, window, quantile):
    bound = np.quantile(norms[:window], quantile)
    kept = list(norms[:window])
    return kept + [min(norm, bound) for norm in norms[window:]]


def _from_the_whole_run(norms, window, quantile):
    bound = np.quantile(norms, quantile)
    kept = list(norms[:window])
    return kept + [min(norm, bound) for norm in norms[window:]]


def _clips_at_once(norms, window, quantile):
    clipped = list(norms[:1])
    for t in range(1, len(norms)):
        past = norms[max(0, t - window) : t]
        clipped.append(min(norms[t], np.quantile(past, quantile)))
    return clipped


def _returns_the_bound(norms, window, quantile):
    bounds = list(norms[:window])
    for t in range(window, len(norms)):
        bounds.append(np.quantile(norms[t - window : t], quantile))
    return bounds


def _returns_the_norms(norms, window, quantile):
    return list(norms)


BOUND_MISTAKES = {
    _returns_the_norms: "Nothing is clipped: these are the norms that came in.",
    _includes_the_present: "The present norm is in its own window, so a spike raises the bound "
    "that should hold it: take only the norms before it.",
    _window_and_the_present: "The present norm is in its own window, so a spike raises the "
    "bound that should hold it: take only the norms before it.",
    _from_clipped_norms: "Your window holds norms after clipping. Each clip then lowers the "
    "next bound, and the bound can only sink: keep the norms before clipping.",
    _from_all_the_past: "You take all norms of the past: take the last `window` of them.",
    _from_the_first_norms: "Your bound comes from the first norms and stays: move the window "
    "with the updates.",
    _from_the_whole_run: "Your bound uses norms that come later, which no run can know: take "
    "those before the update.",
    _clips_at_once: "You clip before the window is full: leave the first `window` updates as "
    "they are.",
    _returns_the_bound: "You return the bound also where the norm is below it: such an update "
    "keeps its norm.",
}


EXERCISES = (
    Exercise(
        "Write clip(parameters, max_norm). `parameters` is a list; .grad of some, never of all, "
        "may be None: leave these out. Multiply all gradients, in place, by one factor, so that "
        "their norm over all parameters together is at most max_norm (a 1e-6 in a denominator "
        "does no harm). A gradient that is short enough stays as it is, and so does one that is "
        "all zero. Return the norm before clipping, as a number or a tensor.",
        _check_clip,
        _solve_clip,
        {
            "clip each tensor": Wrong(_clips_each_tensor, "each tensor by itself"),
            "clip each entry": Wrong(_clips_entries, "each entry by itself"),
            "clip from above": Wrong(_clips_from_above, "from above only"),
            "always rescale": Wrong(_always_to_the_bound, "rescale every gradient"),
            "to length 1": Wrong(_to_length_one, "length 1"),
            "sum of norms": Wrong(_by_sum_of_norms, "add up the norms"),
            "mean of norms": Wrong(_by_mean_of_norms, "mean of the tensors' norms"),
            "largest norm": Wrong(_by_largest_norm, "largest of the tensors' norms"),
            "root forgotten": Wrong(_by_squared_norm, "the root is missing"),
            "look at single tensors": Wrong(_where_one_is_long, "a single tensor"),
            "a zero gradient": Wrong(_divides_by_zero, "a norm of 0"),
            "no gradient": Wrong(_stops_at_none, "without a gradient"),
            "not in place": Wrong(_not_in_place, "in place"),
            "return the norm after": Wrong(_returns_norm_after, "norm after clipping"),
            "return nothing": Wrong(_returns_nothing, "Return the norm before"),
        },
    ),
    Exercise(
        "Write update(losses, parameters, optimizer, scaler, max_norm): one update. `losses` is "
        "a list of functions; each call computes the mean loss of one micro-batch, and all "
        "micro-batches have the same size. `scaler` is a torch.amp.GradScaler. The update is "
        "that of the mean loss over all micro-batches, with the true gradient clipped to "
        "max_norm by its norm over all parameters. Each loss must be back-propagated before "
        "the next is computed. Let the scaler skip an update that is not finite, and lower its "
        "scale. Leave no gradient behind for the next call.",
        _check_update,
        _solve_update,
        {
            "clip scaled gradients": Wrong(_clips_scaled, "Unscale first"),
            "clip the sum so far": Wrong(_clips_sum_so_far, "clip once"),
            "clip each micro-batch": Wrong(_clips_each_alone, "clip once"),
            "clip each parameter": Wrong(
                _clips_each_parameter, "each parameter by itself"
            ),
            "clip values": Wrong(_clips_values, "clip each value"),
            "no clipping": Wrong(_clips_never, "Nothing is clipped"),
            "clip after the step": Wrong(_clips_after_the_step, "before the step"),
            "the sum, not the mean": Wrong(_no_division, "divide each loss"),
            "old gradients stay": Wrong(_never_zeroes, "clear it"),
            "a step each": Wrong(_steps_each, "step once"),
            "step past the scaler": Wrong(_steps_past_the_scaler, "let the scaler"),
            "no update of the scale": Wrong(_never_updates, "the scale must fall"),
            "one graph of all": Wrong(_one_graph, "wait with their graphs"),
        },
    ),
    Exercise(
        "A bound that moves with the run. Write clipped(norms, window, quantile). `norms` lists "
        "the norm before clipping of each update. The bound of an update is the given quantile "
        "(as numpy.quantile computes it) of the `window` norms just before it, as they were "
        "before clipping. The first `window` updates are not clipped. Return the norms after "
        "clipping, one for each update.",
        _check_bounds,
        _solve_bounds,
        {
            "the present counts": Wrong(_includes_the_present, "in its own window"),
            "the present as well": Wrong(_window_and_the_present, "in its own window"),
            "clipped norms in the window": Wrong(_from_clipped_norms, "can only sink"),
            "all the past": Wrong(_from_all_the_past, "the last `window`"),
            "a fixed bound": Wrong(_from_the_first_norms, "move the window"),
            "the future": Wrong(_from_the_whole_run, "come later"),
            "clip too early": Wrong(_clips_at_once, "before the window is full"),
            "always the bound": Wrong(_returns_the_bound, "below it"),
            "nothing": Wrong(_returns_the_norms, "Nothing is clipped"),
        },
    ),
)
