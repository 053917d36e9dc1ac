"""Exercises of chapter 5: more answers than the usual mistakes, right ones and wrong ones."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from answers import accepts, rejects
from torch import nn

from dlcourse import initialization as di
from dlcourse.exercises.initialization import EXERCISES

INIT, VARIANCE, GAIN, STDS = EXERCISES
KINDS = (nn.Linear, nn.Conv2d)


# --------------------------------------------------------------------------- init


def by_torch(module):
    if isinstance(module, KINDS):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def uniform(module):
    if isinstance(module, KINDS):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        module.bias is not None and module.bias.data.zero_()


def new_parameters(module):
    if type(module) in KINDS:
        fan_in = np.prod(module.weight.shape[1:])
        draws = torch.randn(module.weight.shape) * float(np.sqrt(2 / fan_in))
        module.weight = nn.Parameter(draws)
        if module.bias is not None:
            module.bias = nn.Parameter(torch.zeros_like(module.bias))


def signs(module):
    for name, weight in module.named_parameters(recurse=False):
        if isinstance(module, KINDS) and name == "bias":
            weight.data[:] = 0
        elif isinstance(module, KINDS):
            coins = torch.randint(2, weight.shape) * 2.0 - 1
            weight.data.copy_(coins * (2 / weight[0].numel()) ** 0.5)
    return module


def cut_and_made_up_for(module):
    if isinstance(module, KINDS):
        std = math.sqrt(2 / di.calculate_fan(module.weight)[0]) / 0.8796
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if hasattr(module, "bias") and module.bias is not None:
            with torch.no_grad():
                module.bias.fill_(0)


@pytest.mark.parametrize(
    "answer", [by_torch, uniform, new_parameters, signs, cut_and_made_up_for]
)
@pytest.mark.parametrize("seed", range(2))
def test_init_accepts(answer, seed):
    torch.manual_seed(seed)
    accepts(INIT, answer)


def scaled(factor):
    def answer(module):
        by_torch(module)
        if isinstance(module, KINDS):
            module.weight.data.mul_(factor)

    return answer


def of_weight(fill):
    def answer(module):
        by_torch(module)
        if isinstance(module, KINDS):
            with torch.no_grad():
                fill(module.weight)

    return answer


def default_with_one_layer_large(module):
    by_torch(module)
    if isinstance(module, KINDS):
        nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if module.bias is None:
            module.weight.data.mul_(170)


def same_seed_in_each(module):
    torch.manual_seed(0)
    by_torch(module)


def rows_alike(weight):
    first = torch.randn(weight[:1].shape) * math.sqrt(2 / weight[0].numel())
    weight.copy_(first.expand_as(weight))


def one_sided(weight):
    weight.uniform_(0, math.sqrt(12 * 2 / weight[0].numel()))


def cut(weight):
    std = math.sqrt(2 / weight[0].numel())
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def right_for_the_first_only(weight):
    weight.normal_(0, math.sqrt(2 / 144))


def norms_too(module):
    by_torch(module)
    if isinstance(module, nn.LayerNorm):
        nn.init.zeros_(module.bias)


def frozen(module):
    by_torch(module)
    if isinstance(module, KINDS):
        module.weight.requires_grad_(False)


def not_finite(weight):
    weight.fill_(math.nan)


WRONG = {
    "one layer large": (default_with_one_layer_large, "should be"),
    "gain of 1.2": (scaled(1.2), "should be"),
    "a tenth too large": (scaled(1.1), "should be"),
    "one seed": (same_seed_in_each, "the same numbers"),
    "units alike": (of_weight(rows_alike), "same weights"),
    "one-sided": (of_weight(one_sided), "the mean of its weights"),
    "cut at two": (of_weight(cut), "cut at two standard"),
    "Xavier": (of_weight(nn.init.xavier_normal_), "Xavier's"),
    "both mistakes of the first try": (
        of_weight(lambda w: w.normal_(0, 2 / w.shape[1])),
        "And one output",
    ),
    "fan-out": (
        of_weight(lambda w: nn.init.kaiming_normal_(w, mode="fan_out")),
        "that is the fan-out",
    ),
    "outputs for fan-in": (
        of_weight(lambda w: w.normal_(0, math.sqrt(2 / len(w)))),
        "counts the outputs",
    ),
    "torch's default, drawn anew": (
        of_weight(lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5))),
        "torch's default",
    ),
    "the number of one layer": (of_weight(right_for_the_first_only), "should be"),
    "norms too": (norms_too, "leave it"),
    "frozen": (frozen, "does not train"),
    "not finite": (of_weight(not_finite), "not finite"),
    "does nothing": (lambda module: None, "as they were"),
    "no bias expected": (lambda module: nn.init.zeros_(module.bias), "stopped with"),
}


@pytest.mark.parametrize("name", WRONG)
def test_init_rejects(name):
    answer, words = WRONG[name]
    rejects(INIT, answer, words)


# --------------------------------------------------------------------------- variance


def by_a_loop(fan_in, weight_std, layers):
    size = 1.0
    for number in range(layers):
        size = size * fan_in * weight_std * weight_std * (1.0 if number == 0 else 0.5)
    return size


@pytest.mark.parametrize(
    "answer",
    [
        by_a_loop,
        lambda n, s, k: 2 * torch.tensor(n * s * s / 2) ** k,
        lambda n, s, k: np.float32(2) * np.float32(n * s**2 / 2) ** np.float32(k),
        lambda n, s, k: di.predict_variance(F.relu, k, n * s * s)[0][-1],
        lambda n, s, k: math.exp(k * math.log(n * s**2) - (k - 1) * math.log(2)),
    ],
)
def test_variance_accepts(answer):
    accepts(VARIANCE, answer)


def simulated(n, s, layers):
    z = torch.ones(2000, n, dtype=torch.float64)
    for number in range(layers):
        z = z if number == 0 else z.relu()
        size = (z.square().sum(1, keepdim=True) * s * s).sqrt()
        z = size * torch.randn(2000, n, dtype=torch.float64)
    return z.square().mean()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda n, s, k: by_a_loop(n, s, k) * 1.15, "by a formula"),
        (lambda n, s, k: by_a_loop(n, s, k) * 0.99, "by a formula"),
        (simulated, "by a formula"),
        (lambda n, s, k: by_a_loop(n, s, k) * 2, "twice"),
        (lambda n, s, k: by_a_loop(n, s, k - 1), "twice"),
        (lambda n, s, k: 1.0, "without ReLU"),
        (lambda n, s, k: n * s * s, "without ReLU"),
        (lambda n, s, k: n * s * s * (k - 1) / 2, "multiplies"),
        (lambda n, s, k: (2 / n) ** k, "it is"),
        (lambda n, s, k: print(end=""), "Return the number"),
        (lambda n, s, k: [by_a_loop(n, s, k)] * 2, "stopped with"),
        (lambda n, s, k: 1.8626451492309570e-09, "it is"),  # right for one case
    ],
)
def test_variance_rejects(answer, words):
    rejects(VARIANCE, answer, words)


# --------------------------------------------------------------------------- gain


def by_a_grid(f):
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weights = torch.exp(-z.square() / 2)
    return ((f(z).square() * weights).sum() / weights.sum()) ** -0.5


def one_draw_after_the_other(f):
    total = 0.0
    for _ in range(20):
        total += float((f(torch.randn(100_000)) ** 2).mean()) / 20
    return np.float64(total) ** -0.5


def by_halving(f):
    square = float(f(torch.randn(1_000_000)).square().mean())
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        if middle**2 * square < 1:
            low = middle
        else:
            high = middle
    return low


@pytest.mark.parametrize(
    "answer",
    [
        di.calculate_gain,
        lambda f: torch.tensor(di.calculate_gain(f)),
        by_a_grid,
        one_draw_after_the_other,
        by_halving,
    ],
)
def test_gain_accepts(answer):
    for seed in range(2):
        torch.manual_seed(seed)
        accepts(GAIN, answer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda f: 1.0, "changes nothing"),
        (lambda f: di.calculate_gain(f) * 1.02, "wanted"),
        (lambda f: di.calculate_gain(f) ** -2, "invert, and root"),
        (lambda f: 1 / f(torch.randn(1_000_000)).abs().mean(), "mean size"),
        (lambda f: nn.init.calculate_gain("tanh"), "rule of thumb"),
        (lambda f: -di.calculate_gain(f), "wanted"),
        (lambda f: 1 / f(torch.tensor(1.0)), "changes nothing"),
        (lambda f: f(torch.randn(100)).square().mean() ** -0.5, "ReLU"),
        (lambda f: None, "Return the number"),
        (lambda f: {torch.relu: 2**0.5, torch.tanh: 1.593}.get(f, 1.534), "sigmoid"),
    ],
)
def test_gain_rejects(answer, words):
    torch.manual_seed(1)
    rejects(GAIN, answer, words)


# --------------------------------------------------------------------------- layer_stds


def named(model):
    return [(n, m) for n, m in model.named_modules() if isinstance(m, KINDS)]


def hooked(model, inputs, of, kinds=KINDS, take=None):
    """Return what `of(output)` gives, with hooks that are removed."""
    found, handles = {}, []
    for name, module in take(model) if take else model.named_modules():
        if isinstance(module, kinds):

            def note(module, given, output, name=name):
                found[name] = of(module, given[0], output)

            handles.append(module.register_forward_hook(note))
    model(inputs)
    for handle in handles:
        handle.remove()
    return found


def std_of(module, given, output):
    return output.detach().std()


def as_tensors(model, inputs):
    return hooked(model, inputs, std_of)


def as_numpy(model, inputs):
    return hooked(model, inputs, lambda m, i, o: o.detach().numpy().std())


def with_always_call(model, inputs):
    names = {module: name for name, module in named(model)}
    found = {}

    def note(module, given, output):
        if module in names:
            values = output.detach().flatten().tolist()
            mean = sum(values) / len(values)
            squares = sum((value - mean) ** 2 for value in values)
            found[names[module]] = math.sqrt(squares / len(values))

    handle = nn.modules.module.register_module_forward_hook(note)
    try:
        model(inputs)
    finally:
        handle.remove()
    return found


def by_wrapping_forward(model, inputs):
    found = {}
    for name, layer in named(model):

        def forward(x, name=name, old=layer.forward):
            output = old(x)
            found[name] = output.std(correction=0).item()
            return output

        layer.forward = forward
    with torch.no_grad():
        model(inputs)
    for _, layer in named(model):
        del layer.forward
    return found


def on_a_copy(model, inputs):  # which has copies of the hooks of others
    return as_tensors(copy.deepcopy(model), inputs)


def keeps_clones(model, inputs):
    outputs = hooked(model, inputs, lambda m, i, o: o.detach().clone())
    return {name: np.float32(output.std()) for name, output in outputs.items()}


@pytest.mark.parametrize(
    "answer",
    [
        as_tensors,
        as_numpy,
        with_always_call,
        by_wrapping_forward,
        on_a_copy,
        keeps_clones,
    ],
)
def test_stds_accepts(answer):
    accepts(STDS, answer)


def clears_all_hooks(model, inputs):
    found = as_tensors(model, inputs)
    for module in model.modules():
        module._forward_hooks.clear()
    return found


def once_a_layer(model, inputs):
    found = {}
    for name, layer in named(model):
        found |= hooked(model, inputs, std_of, take=lambda _, pair=(name, layer): [pair])
    return found


def children_only(model, inputs):
    return hooked(model, inputs, std_of, take=lambda model: model.named_children())


def all_modules(model, inputs):
    return hooked(model, inputs, std_of, kinds=(*KINDS, nn.Tanh))


def through_the_chain(model, inputs):
    found = {}
    with torch.no_grad():
        for name, layer in model.named_children():
            inputs = layer(inputs)
            if isinstance(layer, KINDS):
                found[name] = inputs.std().item()
    return found


def in_training_mode(model, inputs):
    model.train()
    return as_tensors(model, inputs)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda m, x: hooked(m, x, lambda m, i, o: o.var().item()), "is the variance"),
        (lambda m, x: hooked(m, x, lambda m, i, o: i.std().item()), "its output has"),
        (lambda m, x: hooked(m, x, lambda m, i, o: o.detach().std(0)), "one number"),
        (lambda m, x: list(as_tensors(m, x).values()), "Return a dictionary"),
        (lambda m, x: dict(enumerate(as_tensors(m, x).values())), "missing"),
        (clears_all_hooks, "was on the model before"),
        (once_a_layer, "times. Once"),
        (children_only, "missing"),
        (all_modules, "no linear layers"),
        (through_the_chain, "missing"),
        (in_training_mode, "mode"),
        (lambda m, x: {}, "never ran"),
    ],
)
def test_stds_rejects(answer, words):
    rejects(STDS, answer, words)
