"""Exercises of chapter 5, initialization: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dlcourse.initialization import (
    activation_stats,
    calculate_gain,
    initialize_,
    kaiming_normal_,
    predict_variance,
    xavier_normal_,
)
from dlcourse.initialization.weights import _normal_mean
from dlcourse.lab.exercises import Exercise, Hint, Wrong, expect


def _number(value: Any) -> float:
    expect(value is not None, "Return the number.")
    return float(value)


def _near(value: float, wanted: float, share: float) -> bool:
    return abs(value - wanted) <= share * abs(wanted)


def _check_variance(answer: Callable) -> None:
    for fan_in, variance, layers in ((64, 1 / 64, 30), (100, 0.02, 30), (50, 0.03, 10)):
        got = _number(answer(fan_in, variance**0.5, layers))
        scale = fan_in * variance
        wanted = predict_variance(torch.relu, layers, scale)[0][-1].item()
        case = (
            f"fan_in {fan_in}, standard deviation {variance**0.5:.3f}, {layers} layers: "
        )
        expect(
            not _near(got, scale**layers, 0.01),
            f"{case}{got:.3g} would be right without ReLU. Each ReLU sets half of the entries to "
            "zero, and with them half of the mean square. So Xavier's 1 / fan_in does not suit it.",
        )
        for other, hint in (
            (
                wanted / 2,
                "is half of it: the first layer sees inputs, which no ReLU has halved.",
            ),
            (wanted**0.5, "is the standard deviation: the variance was asked for."),
            (
                scale * (scale * (0.5 - 0.5 / math.pi)) ** (layers - 1),
                "counts the variance of ReLU's output. The next layer sums its values, not their "
                "distances from a mean: count the mean square, which is half of the variance "
                "before.",
            ),
            (scale * 0.5 * (layers - 1), "adds up. Each layer multiplies."),
        ):
            expect(not _near(got, other, 0.01), f"{case}{got:.3g} {hint}")
        expect(
            _near(got, wanted, 0.2),
            f"{case}got {got:.3g}; wide networks show {wanted:.3g}.",
        )


def _solve_variance(fan_in, weight_std, layers):
    scale = fan_in * weight_std**2
    return scale * (scale / 2) ** (layers - 1)


def _variance_without_relu(fan_in, weight_std, layers):
    return (fan_in * weight_std**2) ** layers


def _variance_one_layer_more(fan_in, weight_std, layers):
    return (fan_in * weight_std**2 / 2) ** layers


def _spread_for_variance(fan_in, weight_std, layers):
    return _solve_variance(fan_in, weight_std, layers) ** 0.5


def _variance_about_the_mean(fan_in, weight_std, layers):
    scale = fan_in * weight_std**2
    return scale * (scale * (0.5 - 0.5 / math.pi)) ** (layers - 1)


def _network() -> nn.Sequential:
    """Return six ReLU layers of 128 units on 64 inputs, and a head for 10 classes."""
    sizes = [64] + [128] * 6
    hidden = [
        layer
        for a, b in zip(sizes, sizes[1:], strict=False)
        for layer in (nn.Linear(a, b), nn.ReLU())
    ]
    return nn.Sequential(*hidden, nn.Linear(128, 10))


def _check_init(answer: Callable) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 64, generator=generator)
    targets = inputs[:, :10].argmax(1)
    with torch.random.fork_rng(devices=[]):
        model = _network()
        result = answer(model)
    expect(
        result is model or not isinstance(result, nn.Module),
        "Your function returned another model. Fill the one that it is given, in place.",
    )
    outputs = model(inputs)
    expect(
        bool(outputs.isfinite().all()),
        "The outputs are not finite: the weights are too large.",
    )
    share = outputs.softmax(1)
    expect(
        bool((share - 0.1).abs().max() < 1e-3),
        f"At the start one class gets up to {share.max():.2f}: all should get 0.10. Which layer "
        "alone may be zero?",
    )
    last = activation_stats(model, inputs)["10"]
    variance, share_of_signal = last.std**2, (last.signal / max(last.std, 1e-30)) ** 2
    expect(
        not 0.2 < variance < 20 or share_of_signal > 0.1,
        f"Of the last hidden layer's variance {share_of_signal:.0%} changes with the input, the "
        "rest comes from the biases: start them at zero.",
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        losses.append(loss.item())
        if len(losses) == 2:  # at the first update a head of zeros stops the gradient
            own = []  # the share of the units that have a gradient of their own, by layer
            for layer in model[:-1:2]:
                assert isinstance(layer, nn.Linear)  # a ReLU follows it
                grad = layer.weight.grad
                if grad is None:
                    raise Hint("Leave every layer trainable.")
                near = (grad[:, None] - grad).abs().amax(2) <= 1e-6 * grad.abs().max()
                own.append(len(near.float().argmax(1).unique()) / len(grad))
            copies = (
                f"In a hidden layer {min(own):.0%} of the units have a gradient of their own, the "
                "others stay copies. Zeros are not neutral there, nor is any constant: draw hidden "
                "weights at random."
            )
            expect(min(own) > 0.1, copies)
            expect(
                variance > 0.2,
                f"The last hidden layer's variance is {variance:.1e} for inputs of variance 1: the "
                "signal fades. Give the weights a variance of 2 / fan_in.",
            )
            expect(
                variance < 20,
                f"The last hidden layer's variance is {variance:.1e} for inputs of variance 1: the "
                "signal grows. Give the weights a variance of 2 / fan_in.",
            )
            expect(min(own) > 0.75, copies)
        optimizer.step()
    expect(
        losses[-1] < 0.9 * losses[0],
        f"After 40 updates the loss is {losses[-1]:.2f}, from {losses[0]:.2f}: it hardly learns.",
    )


def _solve_init(model):
    *hidden, head = [layer for layer in model if isinstance(layer, nn.Linear)]
    for layer in hidden:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)


def _init_zeros(model):
    for weight in model.parameters():
        nn.init.zeros_(weight)


def _init_constants(model):
    for weight in model.parameters():
        nn.init.constant_(weight, 0.01)


def _init_kaiming_everywhere(model):
    initialize_(model, kaiming_normal_)


def _init_xavier_and_zero_head(model):
    initialize_(model, xavier_normal_)
    nn.init.zeros_(model[-1].weight)


def _init_small_and_zero_head(model):
    initialize_(model, lambda weight, generator: weight.data.normal_(0, 0.01))
    nn.init.zeros_(model[-1].weight)


def _init_standard_normal_and_zero_head(model):
    initialize_(model, lambda weight, generator: weight.data.normal_(0, 1))
    nn.init.zeros_(model[-1].weight)


def _init_head_only(model):
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)


def _check_gain(answer: Callable) -> None:
    functions = {
        "ReLU": torch.relu,
        "tanh": torch.tanh,
        "GELU": nn.functional.gelu,
        "sigmoid": torch.sigmoid,
        "3 z": lambda z: 3 * z,
    }
    for name, f in functions.items():
        got, wanted = _number(answer(f)), calculate_gain(f)
        square = wanted**-2
        spread = (square - _normal_mean(f) ** 2) ** 0.5
        if _near(got, wanted, 0.03):
            continue
        expect(
            not _near(got, 1 / spread, 0.01),
            f"{name}: {got:.3f} makes up for the variance of f(z). The next layer sums values, not "
            "their distances from a mean: use the mean square.",
        )
        expect(
            not (name == "tanh" and _near(got, 5 / 3, 0.005)),
            "tanh: 5/3 is a rule of thumb. The gain that keeps a variance of 1 is a little less.",
        )
        expect(
            not _near(got, math.sqrt(2), 0.005),
            f"{name}: the square root of 2 is ReLU's gain. This function takes away another share.",
        )
        expect(
            not _near(got, 1 / square, 0.01),
            f"{name}: {got:.3f} is the factor on the variance. The gain multiplies the weights' "
            "standard deviation: take the root.",
        )
        expect(
            not _near(got, square**0.5, 0.01),
            f"{name}: {got:.3f} is what the function leaves. The gain makes up for it: invert.",
        )
        expect(
            False,
            f"{name}: got {got:.3f}, wanted {wanted:.3f} within 3 percent, so that gain^2 "
            "E[f(z)^2] is one. An average over random z needs some 100,000 of them.",
        )


def _solve_gain(f):
    z = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    return 1 / f(z).square().mean().sqrt().item()


def _gain_of_the_variance(f):
    z = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    return 1 / f(z).std().item()


def _gain_without_root(f):
    return _solve_gain(f) ** 2


def _gain_upside_down(f):
    return 1 / _solve_gain(f)


def _gain_of_relu(f):
    return math.sqrt(2)


def _gain_of_torch(f):
    return 5 / 3 if f is torch.tanh else _solve_gain(f)


EXERCISES = (
    Exercise(
        "Write your_variance(fan_in, weight_std, layers): the variance that enters the last ReLU "
        "of `layers` wide ReLU layers without biases, for inputs of mean square 1.",
        _check_variance,
        _solve_variance,
        {
            "Xavier suits ReLU": Wrong(_variance_without_relu, "does not suit it"),
            "one ReLU too many": Wrong(_variance_one_layer_more, "is half of it"),
            "standard deviation": Wrong(
                _spread_for_variance, "the variance was asked for"
            ),
            "variance about the mean": Wrong(
                _variance_about_the_mean, "count the mean square"
            ),
        },
    ),
    Exercise(
        "Write your_init(model): fill an nn.Sequential of six ReLU layers of 128 units and a head "
        "(nn.Linear and nn.ReLU in turn) so that at first all classes are equally likely, the last "
        "hidden layer's variance is near that of the inputs, and the network learns.",
        _check_init,
        _solve_init,
        {
            "zeros are neutral": Wrong(_init_zeros, "Zeros are not neutral"),
            "constants": Wrong(_init_constants, "nor is any constant"),
            "the head is random": Wrong(_init_kaiming_everywhere, "may be zero"),
            "Xavier suits ReLU": Wrong(_init_xavier_and_zero_head, "the signal fades"),
            "small is safe": Wrong(_init_small_and_zero_head, "the signal fades"),
            "standard normal": Wrong(
                _init_standard_normal_and_zero_head, "the signal grows"
            ),
            "torch's default": Wrong(_init_head_only, "the signal fades"),
        },
    ),
    Exercise(
        "Write your_gain(f): the factor on 1 / sqrt(fan_in) that keeps the variance 1 from layer "
        "to layer when f, such as F.gelu, stands between them.",
        _check_gain,
        _solve_gain,
        {
            "variance, not mean square": Wrong(
                _gain_of_the_variance, "use the mean square"
            ),
            "no root": Wrong(_gain_without_root, "take the root"),
            "upside down": Wrong(_gain_upside_down, "invert"),
            "ReLU's for all": Wrong(_gain_of_relu, "is ReLU's gain"),
            "torch's for tanh": Wrong(_gain_of_torch, "rule of thumb"),
        },
    ),
)
