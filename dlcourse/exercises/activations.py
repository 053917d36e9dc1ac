"""Exercises of chapter 6, activations: questions, checks, solutions, usual mistakes.

A check knows a mistake by making it: it runs the usual wrong answers on the same problem,
and where the reader's result is that of one of them, the hint says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dlcourse.activations import moments
from dlcourse.lab.exercises import Exercise, Wrong, expect


class _Calls(TorchFunctionMode):
    """Note the names of the torch functions that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


def _check_sigmoid(answer: Callable) -> None:
    points = [-1000.0, -40.0, -1.0, 0.0, 1.0, 40.0, 1000.0, -200.0, 200.0]
    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    for point in (x, x.detach().float().requires_grad_()):
        before = point.detach().clone()
        with _Calls() as calls:
            values = answer(point)
        expect(
            torch.equal(point, before),
            "Your function has changed x itself, which others may need: work on a new tensor.",
        )
        expect(
            isinstance(values, Tensor)
            and values.shape == point.shape
            and values.dtype == point.dtype,
            "Return a tensor of the shape and the dtype that came in.",
        )
        right = torch.sigmoid(point.detach())
        bad = point[~values.isfinite()]
        expect(
            not len(bad),
            f"The value at {bad[:1].tolist()} is not finite: exp of a large number is inf, and "
            "inf / inf is NaN. Only ever take exp of a number that is not positive.",
        )
        expect(
            torch.allclose(values, right, atol=1e-6, rtol=0),
            f"The values are {values.tolist()}, wanted {right.tolist()}.",
        )
        for place in (1, 7):  # -40 and -200, where float32 has nothing left
            tail, wanted = values[place].item(), right[place].item()
            expect(
                abs(tail - wanted) <= 1e-5 * wanted,
                f"At {points[place]:g} the value should be {wanted:.1e}, yours is {tail:.1e}: the "
                "left tail is lost by a clamp, by the difference of two numbers near 1, or by "
                "rounding to another type. Its logarithm is a loss.",
            )
        expect(
            values.requires_grad,
            "The result has no gradient: use torch operations on x, and neither detach nor NumPy.",
        )
        (slopes,) = torch.autograd.grad(values.sum(), point)
        bad = point[~slopes.isfinite()]
        expect(
            not len(bad),
            f"The values are right, but the gradient at {bad[:1].tolist()} is NaN: an exp that "
            "overflowed sends back 0 * inf, also from the side of torch.where that is not used. "
            "Make the argument safe before exp, not the result after it.",
        )
        expect(
            abs(slopes[3].item() - 0.25) < 1e-6,
            f"The slope at 0 is {slopes[3].item():g}, wanted 0.25. Where it is too small: abs has "
            "the slope 0 at 0, clamp may have it at its bound, and minimum halves it; so choose "
            "between x and -x with torch.where.",
        )
        expect(
            torch.allclose(slopes, right * (1 - right), atol=1e-6, rtol=0),
            f"The slopes are {slopes.tolist()}, wanted sigmoid(x) (1 - sigmoid(x)).",
        )
        expect(
            not calls.names & {"sigmoid", "special_expit"},
            "That is right, and calls torch's sigmoid. Write it yourself, from torch.exp.",
        )


def _solve_sigmoid(x):
    positive = x >= 0
    z = torch.exp(torch.where(positive, -x, x))
    return torch.where(positive, torch.ones_like(z), z) / (1 + z)


def _sigmoid_by_formula(x):
    return 1 / (1 + torch.exp(-x))


def _sigmoid_other_formula(x):
    return torch.exp(x) / (1 + torch.exp(x))


def _sigmoid_where_after(x):
    return torch.where(x >= 0, 1 / (1 + torch.exp(-x)), torch.exp(x) / (1 + torch.exp(x)))


def _sigmoid_nan_to_num(x):
    return torch.nan_to_num(torch.exp(x) / (1 + torch.exp(x)), nan=1.0)


def _sigmoid_clamped(x):
    return 1 / (1 + torch.exp(-x.clamp(-30, 30)))


def _sigmoid_clamped_far(x):
    return 1 / (1 + torch.exp(-x.clamp(min=-80)))


def _sigmoid_by_tanh(x):
    return 0.5 * (1 + torch.tanh(x / 2))


def _sigmoid_by_abs(x):
    z = torch.exp(-x.abs())
    return torch.where(x >= 0, 1 / (1 + z), z / (1 + z))


def _sigmoid_detached(x):
    return torch.sigmoid(x.detach())


# --------------------------------------------------------------------------- weights that fit

FITS = 0.02  # how far from the exact SD an answer may be; the question says so


def _bent(x: Tensor) -> Tensor:
    return torch.where(x > 0, 2 * x, -0.5 * x)


ACTIVATIONS = {
    "ReLU": F.relu,
    "tanh": torch.tanh,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "2 x above zero and -x / 2 below": _bent,
}


def _number(value: object, what: str) -> float:
    """Return one number, given as a Python number, a NumPy one, or a tensor of one element."""
    expect(value is not None, f"Return {what}; your function returns nothing.")
    size = getattr(value, "numel", None)
    many = size() != 1 if size is not None else getattr(value, "size", 1) != 1
    expect(not many, f"Return {what}: one number, not several.")
    return float(value.item() if hasattr(value, "item") else value)  # type: ignore[arg-type]


def _check_std(answer: Callable) -> None:
    for name, f in ACTIVATIONS.items():
        found = {n: _number(answer(n, f), "the SD") for n in (64, 100, 256)}
        for n, std in found.items():
            expect(
                math.isfinite(std) and std > 0,
                f"For {name} and {n} inputs the SD is {std}: give a number above 0.",
            )
        wide = found[64] / found[256]
        expect(
            abs(wide - 2) < 0.1,
            f"For {name} the SD with 64 inputs is {wide:.2f} times that with 256; wanted is "
            "2. The mean square of a sum over fan_in inputs grows like fan_in. (Or did you draw "
            "too few z?)",
        )
        for n, std in found.items():
            wanted = (n * moments(f)[0]) ** -0.5
            if abs(std / wanted - 1) > FITS:
                _explain_std(std, wanted, name, f, n)


def _explain_std(std: float, wanted: float, name: str, f: Callable, n: int) -> None:
    z = torch.linspace(-8, 8, 16_001, dtype=torch.float64)
    weight = torch.exp(-z * z / 2)
    mean = float((weight * f(z)).sum() / weight.sum())
    square, slope = moments(f)
    spread = square - mean**2
    mistakes = {
        "That is 1 / sqrt(fan_in), as if you left the gain out: it keeps the size only where "
        "nothing is cut off. Take the mean of activation(z)**2 over all z.": n**-0.5,
        "That is the gain of ReLU for every activation: each passes on another share of its "
        "input's mean square.": (2 / n) ** 0.5,
        "That comes from the slope: it keeps the size of the gradient on its way back, and "
        "you were asked about the signal on its way forward.": (n * slope) ** -0.5,
        "That is about what the variance of activation(z) gives, around its mean. What the "
        "next layer sums up is the mean square, the mean included, for z from a standard "
        "normal.": (n * spread) ** -0.5,
    }
    off = f"For {name} and {n} inputs the SD should be {wanted:.4f}, yours is {std:.4f}."
    for hint, made in mistakes.items():
        if abs(std / made - 1) < FITS and abs(made / wanted - 1) > FITS:
            expect(False, f"{off} {hint}")
    left = min(20 * math.log10(std / wanted), 300)
    expect(
        False,
        f"{off} After 20 such layers the signal would be about {10**left:.2g} times as large. "
        "Take the mean of activation(z)**2 over many z from a standard normal.",
    )


def _solve_std(fan_in, activation):
    z = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    return (fan_in * activation(z).square().mean().item()) ** -0.5


def _std_without_gain(fan_in, activation):  # "ReLU has the slope 1, so nothing vanishes"
    return fan_in**-0.5


def _std_constant(fan_in, activation):
    return 0.01


def _std_of_relu(fan_in, activation):
    return (2 / fan_in) ** 0.5


def _std_one_gain(fan_in, activation):  # a gain between that of ReLU and that of SiLU
    return 1.6 / fan_in**0.5


def _std_variance(fan_in, activation):  # the variance where the SD is asked for
    z = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    return 1 / (fan_in * activation(z).square().mean().item())


def _std_gain_without_fan(fan_in, activation):
    z = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    return 0.1 * activation(z).square().mean().item() ** -0.5


def _std_of_slopes(fan_in, activation):
    z = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (slopes,) = torch.autograd.grad(activation(z).sum(), z)
    return (fan_in * slopes.square().mean().item()) ** -0.5


def _std_around_the_mean(fan_in, activation):
    z = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    return (fan_in * activation(z).var().item()) ** -0.5


# --------------------------------------------------------------------------- a loss on logits


def _check_loss(answer: Callable) -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]], requires_grad=True)
    targets = torch.tensor([0, 1])
    with _Calls() as calls:
        loss = answer(logits, targets)
    expect(
        isinstance(loss, Tensor) and loss.ndim == 0,
        "Return the mean over the rows: a tensor of one number, without dimensions.",
    )
    expect(
        loss.requires_grad,
        "The loss has no gradient: use torch operations on the logits, and do not detach them.",
    )
    loss = loss.float()
    right = torch.nn.functional.cross_entropy(logits, targets)
    twice = torch.nn.functional.cross_entropy(logits.softmax(1), targets)
    expect(
        not torch.allclose(loss, twice),
        "That is softmax twice: cross_entropy takes logits and does softmax itself. The loss can "
        "then never come near 0, and the gradient is many times too small.",
    )
    expect(
        not torch.allclose(loss, 2 * right, atol=1e-4),
        "That is the sum over the rows: divide by their number.",
    )
    expect(
        torch.allclose(loss, right, atol=1e-4),
        f"The loss is {loss.item():.3f}, wanted {right.item():.3f}: minus the log of softmax at "
        "the right class, mean over the rows.",
    )
    for far in (1000.0, -1000.0):  # the last row is sure, and wrong
        x = torch.tensor([[far, 0.0, 1.0], [far, far + 2, far - 1], [1000.0, 0.0, 0.0]])
        x.requires_grad_()
        y = torch.tensor([2, 0, 1])
        loss = answer(x, y).float()
        right = torch.nn.functional.cross_entropy(x, y)
        expect(
            bool(loss.isfinite()),
            f"With logits of {far:g} the loss is {loss.item()}: subtract the row's maximum before "
            "exp, and take the log of the sum, not of softmax, which rounds to 0.",
        )
        expect(
            torch.allclose(loss, right, rtol=1e-4),
            f"A row that is sure and wrong must cost about 1000; the loss is {loss.item():.4g}, "
            f"wanted {right.item():.4g}. A small number inside the log, or "
            "a bound on it, hides the largest errors.",
        )
        (grad,) = torch.autograd.grad(loss, x)
        wanted = (x.detach().softmax(1) - torch.nn.functional.one_hot(y, 3)) / 3
        expect(
            torch.allclose(grad, wanted, atol=1e-5),
            f"The gradient is {grad.tolist()}, wanted softmax minus one-hot over the rows: "
            f"{wanted.tolist()}.",
        )
    expect(
        "cross_entropy" not in calls.names,
        "That is right, and calls torch's cross_entropy. Write it yourself, from exp and log.",
    )


def _solve_loss(logits, targets):
    shifted = logits - logits.max(1, keepdim=True).values.detach()
    log_probabilities = shifted - shifted.exp().sum(1, keepdim=True).log()
    return -log_probabilities[torch.arange(len(targets)), targets].mean()


def _loss_softmax_twice(logits, targets):
    return torch.nn.functional.cross_entropy(torch.softmax(logits, 1), targets)


def _loss_log_of_softmax(logits, targets):
    return -torch.softmax(logits, 1)[torch.arange(len(targets)), targets].log().mean()


def _loss_no_maximum(logits, targets):
    right = logits[torch.arange(len(targets)), targets]
    return (logits.exp().sum(1).log() - right).mean()


def _loss_small_number(logits, targets):
    p = torch.softmax(logits, 1)[torch.arange(len(targets)), targets]
    return -(p + 1e-9).log().mean()


def _loss_sum(logits, targets):
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


def _loss_no_softmax(logits, targets):
    return -logits[torch.arange(len(targets)), targets].mean()


# --------------------------------------------------------------------------- Your turn


def _layer_outputs(seed: int, rows: tuple[int, ...], dead: int) -> list[Tensor]:
    """Return batches of outputs of which `dead` units are 0 on all rows.

    The living ones: 0 but for one row; constant; never above 0; adding up to 0; tiny.
    """
    g = torch.Generator().manual_seed(seed)
    total = sum(rows)
    columns = [torch.zeros(total) for _ in range(dead)]
    for place in {0, total // 2, total - 1}:  # awake on a single row
        column = torch.zeros(total)
        column[place] = 0.5
        columns.append(column)
    columns.append(torch.full((total,), 0.25))
    columns.append(torch.full((total,), -0.01))
    columns.append(torch.where(torch.arange(total) % 2 == 0, 0.0, -0.125))
    columns += [torch.full((total,), 1e-6)] * (1 + seed % 2)
    columns.append(torch.full((total,), 1e-30))  # its square is 0, and it is not
    if total % 2 == 0:
        columns.append(torch.where(torch.arange(total) % 2 == 0, 1.0, -1.0))
    units = torch.stack(columns, 1)
    units = units[:, torch.randperm(units.shape[1], generator=g)]
    return list(units.split(list(rows)))


DEAD_CASES = (  # rows of each batch, dead units
    ((3, 2), 2),
    ((4, 4, 4), 1),
    ((5,), 3),
    ((1, 6, 3), 0),
    ((2, 2), 6),
    ((1, 1, 1, 1, 1), 4),
    ((300, 200), 2),
)


def _check_dead(answer: Callable) -> None:
    found, problems = [], []
    for seed, (rows, dead) in enumerate(DEAD_CASES):
        batches = _layer_outputs(seed, rows, dead)
        problems.append(batches)
        copies = [batch.clone() for batch in batches]
        found.append(_number(answer(copies), "how many units are dead"))
    for (rows, dead), number in zip(DEAD_CASES, found, strict=True):
        if abs(number - dead) < 1e-6:
            continue
        said = f"With batches of {list(rows)} rows {dead} units are dead, and you say {number:g}"
        for mistake, hint in DEAD_MISTAKES.items():
            made = [mistake(batches) for batches in problems]
            if all(abs(a - b) < 1e-6 for a, b in zip(made, found, strict=True)):
                expect(False, f"{said}: {hint}")
        expect(
            False,
            f"{said}. Dead is a unit, a column, that is exactly 0 on every row of every batch.",
        )


def _solve_dead(batches):
    alive = torch.zeros(batches[0].shape[1], dtype=torch.bool)
    for batch in batches:  # (rows, units)
        alive |= (batch != 0).any(dim=0)
    return int((~alive).sum())


def _dead_mean_of_batches(batches):
    return sum((batch == 0).all(0).sum().item() for batch in batches) / len(batches)


def _dead_added_up(batches):
    return sum((batch == 0).all(0).sum().item() for batch in batches)


def _dead_most(batches):
    return max((batch == 0).all(0).sum().item() for batch in batches)


def _dead_fewest(batches):
    return min((batch == 0).all(0).sum().item() for batch in batches)


def _dead_share(batches):
    return _solve_dead(batches) / batches[0].shape[1]


def _alive(batches):
    return batches[0].shape[1] - _solve_dead(batches)


def _dead_zeros(batches):
    return sum((batch == 0).sum().item() for batch in batches)


def _dead_first_batch(batches):
    return (batches[0] == 0).all(0).sum().item()


def _dead_last_batch(batches):
    return (batches[-1] == 0).all(0).sum().item()


def _dead_anywhere(batches):
    return torch.cat(batches).eq(0).any(0).sum().item()


def _dead_rows(batches):
    return torch.cat(batches).eq(0).all(1).sum().item()


def _dead_constant(batches):
    return (torch.cat(batches).std(0) == 0).sum().item()


def _dead_sum(batches):
    return (torch.cat(batches).sum(0) == 0).sum().item()


def _dead_not_above_zero(batches):
    return (torch.cat(batches) <= 0).all(0).sum().item()


def _dead_small(batches):
    return (torch.cat(batches).abs() < 1e-3).all(0).sum().item()


DEAD_MISTAKES = {
    _dead_share: "that is the share of the dead. Return how many there are.",
    _alive: "that is how many are alive.",
    _dead_constant: "you counted the units that do not change. One that gives the same number "
    "on all rows is alive where that number is not 0: it has a slope, and can learn.",
    _dead_sum: "outputs may be negative, and add up to 0 while none of them is 0. Ask of each "
    "output whether it is 0.",
    _dead_not_above_zero: "a unit that gives negative numbers is not dead: leaky ReLU, GELU "
    "and SiLU have a slope there. Ask whether the output is exactly 0.",
    _dead_small: "a small output is not 0. Ask whether it is exactly 0.",
    _dead_anywhere: "a unit that is 0 on some rows is selective, not dead.",
    _dead_rows: "you counted rows. Units are the columns.",
    _dead_zeros: "that is how many outputs are 0. A unit that is 0 on some rows is selective, "
    "not dead.",
    _dead_added_up: "you added up the counts of the batches. A unit that sleeps in one batch "
    "may wake in another, and a dead one is counted once for each batch.",
    _dead_mean_of_batches: "that is the mean of the batches' counts. A unit that sleeps in one "
    "batch may wake in another: join what is ever active first, and count at the end.",
    _dead_most: "you took the batch with the most. Join the batches first.",
    _dead_fewest: "you took the batch with the fewest. A unit may sleep in one batch and wake "
    "in another, so join what is ever active first.",
    _dead_last_batch: "you counted in the last batch alone. A unit that sleeps there may have "
    "been awake before.",
    _dead_first_batch: "you counted in the first batch alone. A unit that sleeps there may wake "
    "later.",
}


EXERCISES = (
    Exercise(
        "Write dead_units(batches). `batches` is a list of the outputs of one layer, after its "
        "activation: tensors of (rows, units), with any number of rows. The activation may be "
        "any, so outputs may be negative. Return how many units are dead, as one number: those "
        "that are exactly 0 on every row of every batch.",
        _check_dead,
        _solve_dead,
        {
            "mean of the batches": Wrong(
                _dead_mean_of_batches, "the mean of the batches"
            ),
            "share": Wrong(_dead_share, "the share of the dead"),
            "zeros": Wrong(_dead_zeros, "how many outputs are 0"),
            "last batch": Wrong(_dead_last_batch, "last batch alone"),
            "ever asleep": Wrong(_dead_anywhere, "selective, not dead"),
            "std is 0": Wrong(_dead_constant, "do not change"),
            "sum is 0": Wrong(_dead_sum, "add up to 0"),
            "never above 0": Wrong(_dead_not_above_zero, "gives negative numbers"),
        },
    ),
    Exercise(
        "Write std(fan_in, activation): the SD of normal weights, of mean 0, for which a layer "
        "keeps the size of its numbers. That is: where z has fan_in numbers from a standard "
        "normal, the sum of weight * activation(z) has the mean square 1. `activation` is any "
        "function of a tensor, number by number. Within 2 %, which some 100,000 draws give.",
        _check_std,
        _solve_std,
        {
            "ReLU cures everything": Wrong(_std_without_gain, "left the gain out"),
            "Kaiming for all": Wrong(_std_of_relu, "gain of ReLU for every"),
            "one gain for all": Wrong(_std_one_gain, "After 20 such layers"),
            "a small constant": Wrong(_std_constant, "grows like fan_in"),
            "no fan-in": Wrong(_std_gain_without_fan, "grows like fan_in"),
            "variance for SD": Wrong(_std_variance, "grows like fan_in"),
            "from the slope": Wrong(_std_of_slopes, "comes from the slope"),
            "around the mean": Wrong(_std_around_the_mean, "variance of activation(z)"),
        },
    ),
    Exercise(
        "Write sigmoid(x) from torch.exp: right in value and gradient at every x, also at -1000 "
        "and 1000, in float32 and float64.",
        _check_sigmoid,
        _solve_sigmoid,
        {
            "the formula suffices": Wrong(
                _sigmoid_by_formula, "gradient at [-1000.0] is NaN"
            ),
            "the other formula": Wrong(_sigmoid_other_formula, "value at [1000.0]"),
            "where mends it": Wrong(_sigmoid_where_after, "not the result after it"),
            "replace the NaN": Wrong(_sigmoid_nan_to_num, "not the result after it"),
            "clamp": Wrong(_sigmoid_clamped, "left tail is lost"),
            "clamp further out": Wrong(_sigmoid_clamped_far, "left tail is lost"),
            "torch's own": Wrong(torch.sigmoid, "calls torch's sigmoid"),
            "by tanh": Wrong(_sigmoid_by_tanh, "left tail is lost"),
            "by abs": Wrong(_sigmoid_by_abs, "abs has the slope 0"),
            "without gradient": Wrong(_sigmoid_detached, "no gradient"),
        },
    ),
    Exercise(
        "Write loss(logits, targets) without F.cross_entropy: the mean cross entropy, right in "
        "value and gradient for logits of any size. `logits` are (rows, classes), `targets` are "
        "class numbers.",
        _check_loss,
        _solve_loss,
        {
            "softmax before cross_entropy": Wrong(_loss_softmax_twice, "softmax twice"),
            "log of softmax": Wrong(_loss_log_of_softmax, "rounds to 0"),
            "no maximum": Wrong(_loss_no_maximum, "subtract the row's maximum"),
            "a small number in the log": Wrong(
                _loss_small_number, "hides the largest errors"
            ),
            "sum": Wrong(_loss_sum, "divide by their number"),
            "no softmax": Wrong(_loss_no_softmax, "minus the log of softmax"),
            "torch's own": Wrong(
                torch.nn.functional.cross_entropy, "calls torch's cross_entropy"
            ),
        },
    ),
)
