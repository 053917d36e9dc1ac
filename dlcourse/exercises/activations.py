"""Exercises of chapter 6, activations: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dlcourse.activations import relu
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
        with _Calls() as calls:
            values = answer(point)
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
                "left tail is lost by a clamp, or by the difference of two numbers near 1. Its "
                "logarithm is a loss.",
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
            f"The slope at 0 is {slopes[3].item():g}, wanted 0.25: abs has the slope 0 at 0, "
            "and clamp may have it at its bound. Choose between x and -x with torch.where.",
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


def _check_std(answer: Callable) -> None:
    functions = {
        "relu": relu,
        "tanh": torch.tanh,
        "gelu": torch.nn.functional.gelu,
        "silu": torch.nn.functional.silu,
    }
    for name, f in functions.items():
        for width in (64, 256):
            std = float(answer(width, f))
            expect(std > 0, f"For {name} the SD is {std}: give a number above 0.")
            sizes = [_size_after(20, width, f, std, seed) for seed in range(3)]
            size = math.prod(sizes) ** (1 / 3)
            if 0.15 < size < 7:
                continue
            what = f"20 layers of {width} {name} units: the signal's size goes from 1 to {size:.1g}. "
            narrow, wide = float(answer(64, f)), float(answer(256, f))
            if not 1.9 < narrow / wide < 2.1:
                what += "A sum over fan_in inputs grows like its root: divide by it."
            elif len({float(answer(width, other)) for other in functions.values()}) == 1:
                what += (
                    "Each activation passes on another share of its input's mean square (ReLU a "
                    "half, SiLU less): the gain must depend on it."
                )
            else:
                what += "It should stay about 1; a factor of 7 either way is allowed."
            expect(False, what)


def _size_after(
    depth: int, width: int, activation: Callable, std: float, seed: int
) -> float:
    """Return the root mean square pre-activation of the last layer, for inputs of size 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, width, generator=generator)
    for number in range(depth):
        weight = torch.randn(width, width, generator=generator)
        x = x @ weight.T * (std if number else width**-0.5)
        if number < depth - 1:
            x = activation(x)
    return x.double().square().mean().sqrt().item()


def _solve_std(fan_in, activation):
    z = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
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
            f"wanted {right.item():.4g}. A small number inside the log hides the largest errors.",
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


def _check_dead(answer: Callable) -> None:
    batches = [
        torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.5, 0.0, 1e-4]]),
        torch.tensor([[0.0, 0.0, 4.0, 0.0]]),
    ]
    got = answer(batches)
    expect(got is not None, "Return a share from 0 to 1.")
    got = float(got)
    parts = [(b == 0).all(0).float().mean().item() for b in batches]
    zeros = torch.cat([(b == 0).float().ravel() for b in batches]).mean().item()
    expect(
        abs(got - 0.75) > 1e-6,
        "Only unit 0 sleeps on all rows. 0.75 is the share of living units, or the dead of the "
        "last batch alone; but one row of any batch that wakes a unit makes it alive.",
    )
    for share in (sum(parts) / 2, (3 * parts[0] + parts[1]) / 4):
        expect(
            abs(got - share) > 1e-6,
            f"{got:.3f} is the mean of the batches' shares. A unit that sleeps in one batch may "
            "wake in another: join what is ever active first, and count at the end.",
        )
    expect(
        abs(got - zeros) > 1e-6,
        f"{got:.3f} is the share of zeros. A unit that is 0 on some rows is selective, not dead.",
    )
    expect(
        abs(got - 0.25) < 1e-6, f"One of these four units is dead, but you say {got:.3f}."
    )
    got = float(
        answer([torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 1.0]]), torch.zeros(1, 3)])
    )
    expect(abs(got - 1 / 3) < 1e-6, f"One of three units is dead, but you say {got:.3f}.")


def _solve_dead(batches):
    active = torch.stack([(batch > 0).any(0) for batch in batches]).any(0)
    return 1 - active.float().mean().item()


def _dead_mean_of_batches(batches):
    return sum((batch == 0).all(0).float().mean().item() for batch in batches) / len(
        batches
    )


def _dead_share_of_zeros(batches):
    return torch.cat([(batch == 0).float().ravel() for batch in batches]).mean().item()


def _dead_last_batch(batches):
    return (batches[-1] == 0).all(0).float().mean().item()


def _dead_anywhere(batches):
    return torch.cat([(batch == 0) for batch in batches]).any(0).float().mean().item()


EXERCISES = (
    Exercise(
        "Write your_sigmoid(x) from torch.exp: right in value and gradient at every x, also at "
        "-1000 and 1000.",
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
        "Write your_std(fan_in, activation): the SD of the weights with which the signal keeps its "
        "size through 20 layers, for ReLU, tanh, GELU and SiLU.",
        _check_std,
        _solve_std,
        {
            "ReLU cures everything": Wrong(
                _std_without_gain, "the gain must depend on it"
            ),
            "Kaiming for all": Wrong(_std_of_relu, "the gain must depend on it"),
            "one gain for all": Wrong(_std_one_gain, "the gain must depend on it"),
            "a small constant": Wrong(_std_constant, "divide by it"),
            "no fan-in": Wrong(_std_gain_without_fan, "divide by it"),
            "variance for SD": Wrong(_std_variance, "divide by it"),
        },
    ),
    Exercise(
        "Write your_loss(logits, targets) without F.cross_entropy: the mean cross entropy of class "
        "numbers, right for logits of any size.",
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
    Exercise(
        "Write your_dead_fraction(batches): a list of outputs (rows, units) after ReLU in, the "
        "share of dead units out.",
        _check_dead,
        _solve_dead,
        {
            "mean of the batches": Wrong(
                _dead_mean_of_batches, "mean of the batches' shares"
            ),
            "share of zeros": Wrong(_dead_share_of_zeros, "selective, not dead"),
            "last batch": Wrong(_dead_last_batch, "last batch alone"),
            "ever asleep": Wrong(_dead_anywhere, "One of these four"),
        },
    ),
)
