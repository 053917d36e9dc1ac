"""Exercises of chapter 5, initialization: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlcourse.initialization import calculate_gain, predict_variance
from dlcourse.initialization.weights import _normal_mean
from dlcourse.lab.exercises import Exercise, Hint, Wrong, expect


def _number(value: Any, what: str) -> float:
    expect(value is not None, f"Return {what}; your function returned nothing.")
    return float(value)


def _near(value: float, wanted: float, share: float) -> bool:
    return abs(value - wanted) <= share * abs(wanted)


# --- 1: init --------------------------------------------------------------------------

STD_SHARE = 0.03  # of the standard deviation: layers of 20,000 weights draw within 0.02


class _Net(nn.Module):
    """Layers of both kinds, some without a bias, some inside others, and other modules."""

    def __init__(self, width: int):
        super().__init__()
        self.words = nn.Embedding(40, 30)
        self.sound = nn.Conv1d(4, 6, 3)
        self.stem = nn.Conv2d(16, width, 3)
        self.body = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Sequential(nn.Conv2d(width, 20, (1, 7), bias=False), nn.ReLU()),
            nn.Conv2d(40, 3 * width, 5, groups=2),
        )
        self.first = nn.Linear(100, 2 * width)
        self.twin = nn.Linear(100, 2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(500, width, bias=False)


def _layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }


def _check_init(answer: Callable) -> None:
    for seed, width in enumerate((190, 230)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _Net(width)
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.ndim == 1:  # so that biases are not zero by chance
                        weight.add_(0.3)
            before = {name: w.detach().clone() for name, w in model.named_parameters()}
            model.apply(answer)
        _check_others(model, before)
        for name, layer in _layers(model).items():
            _check_layer(f"{name}, {layer}", layer, before[f"{name}.weight"])
        _check_spread(_layers(model))
        expect(
            not torch.equal(model.first.weight, model.twin.weight),
            "Two layers of one shape got the same numbers. Draw each anew: set no seed "
            "inside the function.",
        )


def _check_others(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Look at what is neither the weight nor the bias of a layer, and at what trains."""
    own = set()
    for name in _layers(model):
        own |= {f"{name}.weight", f"{name}.bias"}
    now = dict(model.named_parameters())
    for name, value in before.items():
        expect(
            name in now and now[name].shape == value.shape,
            f"{name} is gone, or has another shape. Fill the weights that are there.",
        )
        expect(now[name].requires_grad, f"{name} does not train any more.")
        expect(bool(now[name].isfinite().all()), f"{name} is not finite.")
        expect(
            name in own or torch.equal(now[name], value),
            f"{name} has changed, and is of no nn.Linear or nn.Conv2d: leave it.",
        )


def _check_layer(name: str, layer: nn.Linear | nn.Conv2d, before: Tensor) -> None:
    weight = layer.weight.detach()
    std = weight.std().item()
    expect(
        not torch.equal(weight, before),
        f"{name}: its weights are as they were. Linear layers and convolutions are both "
        "meant.",
    )
    expect(
        std > 1e-12,
        f"{name}: all its weights are {weight.flatten()[0]:.3g}. Then all its units "
        "compute the same and stay one: draw at random.",
    )
    rows = weight.flatten(1)
    expect(
        not torch.equal(rows[0], rows[1]),
        f"{name}: its units have the same weights. Then they compute the same and stay "
        "one: draw each weight by itself.",
    )
    expect(
        abs(weight.mean().item()) < 0.1 * std,
        f"{name}: the mean of its weights is {weight.mean():.3g}, beside a standard "
        f"deviation of {std:.3g}. It should be 0.",
    )
    expect(
        layer.bias is None or not layer.bias.detach().any(),
        f"{name}: its biases are not 0.",
    )


def _fan_in(weight: Tensor) -> int:
    return weight[0].numel()


def _fan_out(weight: Tensor) -> int:
    return len(weight) * weight[0, 0].numel()


# Usual mistakes: the standard deviation that each gives a layer, and what is wrong with it.
MISTAKES: tuple[tuple[Callable[[Tensor], float], str], ...] = (
    (
        lambda w: math.sqrt(2 / w.shape[1]),
        "one output of a convolution sums over its kernel, too, and not over the input "
        "channels alone.",
    ),
    (
        lambda w: 2 / w.shape[1],
        "2 / fan_in is the variance, and a standard deviation is its root. And one output "
        "of a convolution sums over its kernel, too.",
    ),
    (
        lambda w: 2 / _fan_in(w),
        "2 / fan_in is the variance: the standard deviation is its root.",
    ),
    (
        lambda w: math.sqrt(1 / _fan_in(w)),
        "the variance is then 1 / fan_in. The ReLU takes half of the mean square in each "
        "layer: that is what the 2 is for.",
    ),
    (
        lambda w: math.sqrt(1 / (3 * _fan_in(w))),
        "the variance is then 1 / (3 fan_in), torch's default.",
    ),
    (
        lambda w: math.sqrt(2 / (_fan_in(w) + _fan_out(w))),
        "the variance is then Xavier's, 2 / (fan_in + fan_out).",
    ),
    (lambda w: math.sqrt(2 / _fan_out(w)), "that is the fan-out, not the fan-in."),
    (
        lambda w: math.sqrt(2 / len(w)),
        "that counts the outputs, not what one of them sums.",
    ),
    (
        lambda w: 0.8796 * math.sqrt(2 / _fan_in(w)),
        "a normal distribution that is cut at two standard deviations has 0.88 of the "
        "spread. Make up for it.",
    ),
)


def _check_spread(layers: Mapping[str, nn.Linear | nn.Conv2d]) -> None:
    """Look at the standard deviations; a mistake is named where it explains all layers."""
    weights = [layer.weight.detach() for layer in layers.values()]
    stds = [weight.std().item() for weight in weights]
    wanted = [math.sqrt(2 / _fan_in(weight)) for weight in weights]
    pairs = zip(stds, wanted, strict=True)
    wrong = [not _near(std, right, STD_SHARE) for std, right in pairs]
    if not any(wrong):
        return
    at = wrong.index(True)
    name, layer = list(layers.items())[at]
    case = f"{name}, {layer}: the standard deviation of its weights is {stds[at]:.4f}"
    for mistake, words in MISTAKES:
        pairs = zip(stds, map(mistake, weights), strict=True)
        if all(_near(std, value, STD_SHARE) for std, value in pairs):
            raise Hint(f"{case}; {words}")
    raise Hint(
        f"{case}. One output sums {_fan_in(weights[at])} values, so it should be "
        f"{wanted[at]:.4f}."
    )


def _solve_init(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        fan_in = module.weight[0].numel()  # what one output sums
        nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_in))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _filled(std: Callable[[Tensor], float]) -> Callable[[nn.Module], None]:
    """Return an init that is right but for the standard deviation of the weights."""

    def init(module):
        _solve_init(module)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, 0, std(module.weight))

    return init


def _init_channels_only(module):
    _filled(lambda weight: math.sqrt(2 / weight.shape[1]))(module)


def _init_variance_for_std(module):
    _filled(lambda weight: 2 / weight[0].numel())(module)


def _init_without_relu(module):
    _filled(lambda weight: weight[0].numel() ** -0.5)(module)


def _init_small(module):
    _filled(lambda weight: 0.01)(module)


def _init_zeros(module):
    _solve_init(module)
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.zeros_(module.weight)


def _init_linear_only(module):
    if isinstance(module, nn.Linear):
        _solve_init(module)


def _init_biases_stay(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def _init_all_that_has_a_weight(module):
    _solve_init(module)
    if isinstance(module, nn.Embedding):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


# --- 2: variance ----------------------------------------------------------------------


def _check_variance(answer: Callable) -> None:
    cases = ((64, 0.125, 30), (100, 0.1414, 30), (50, 0.17, 10), (7, 0.9, 1), (300, 1, 4))
    for fan_in, weight_std, layers in cases:
        got = _number(answer(fan_in, weight_std, layers), "the number")
        scale = fan_in * weight_std**2
        wanted = predict_variance(torch.relu, layers, scale)[0][-1].item()
        case = f"fan_in {fan_in}, weight_std {weight_std}, layers {layers}: "
        if _near(got, wanted, 1e-3):
            continue
        for other, hint in (
            (
                scale**layers,
                "would be right without ReLU. Each ReLU sets half of the entries to "
                "zero, and with them half of the mean square.",
            ),
            (
                wanted / 2,
                "is half of it: one halving too many. The first layer sees inputs, which no "
                "ReLU has halved, and the last one's outputs are taken before any ReLU.",
            ),
            (wanted * 2, "is twice it: one ReLU is missing."),
            (wanted**0.5, "is its root: the mean square was asked for."),
            (
                fan_in * weight_std * (fan_in * weight_std / 2) ** (layers - 1),
                "takes the standard deviation for the variance: square it.",
            ),
            (
                scale * (scale * (0.5 - 0.5 / math.pi)) ** (layers - 1),
                "counts the variance of ReLU's output. The next layer sums its values, "
                "not their distances from a mean: count the mean square, which is half "
                "of that before.",
            ),
            (scale * 0.5 * (layers - 1), "adds up. Each layer multiplies."),
        ):
            expect(not _near(got, other, 1e-3), f"{case}{got:.6g} {hint}")
        raise Hint(f"{case}got {got:.6g}; it is {wanted:.6g}, by a formula.")


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


def _variance_not_squared(fan_in, weight_std, layers):
    scale = fan_in * weight_std
    return scale * (scale / 2) ** (layers - 1)


# --- 3: gain --------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ReLU": torch.relu,
    "tanh": torch.tanh,
    "GELU": nn.functional.gelu,
    "sigmoid": torch.sigmoid,
    "3 z": lambda z: 3 * z,
    "cosine": torch.cos,
}


def _check_gain(answer: Callable) -> None:
    for name, f in FUNCTIONS.items():
        got, wanted = _number(answer(f), "the number"), calculate_gain(f)
        square = wanted**-2
        if _near(got, wanted, 0.01):
            continue
        spread = (square - _normal_mean(f) ** 2) ** 0.5
        size = _normal_mean(lambda z, f=f: f(z).abs())
        for other, hint in (
            (
                1 / spread,
                "makes up for the variance of f(z). The next layer sums values, not "
                "their distances from a mean: use the mean square.",
            ),
            (
                1 / square,
                "is the factor on the variance. The gain multiplies the weights' "
                "standard deviation: take the root.",
            ),
            (
                square**0.5,
                "is what the function leaves. The gain makes up for it: invert.",
            ),
            (square, "is the mean square that the function leaves: invert, and root."),
            (1 / size, "makes up for the mean size, |f(z)|: use the mean square."),
            (
                math.sqrt(2),
                "is ReLU's gain. This function takes away another share.",
            ),
            (1.0, "changes nothing, but this function changes the mean square."),
            (5 / 3, "is a rule of thumb for tanh. It does not keep the mean square."),
        ):
            expect(not _near(got, other, 0.005), f"{name}: {got:.3f} {hint}")
        raise Hint(
            f"{name}: got {got:.3f}, wanted {wanted:.3f} within 1 percent, so that "
            "gain^2 E[f(z)^2] is one. If you draw z, draw a million from a standard "
            "normal; without draws, weight each z by the density of that normal."
        )


def _solve_gain(f):
    z = torch.randn(1_000_000)
    return 1 / f(z).square().mean().sqrt().item()


def _gain_of_the_variance(f):
    return 1 / f(torch.randn(1_000_000)).std().item()


def _gain_without_root(f):
    return _solve_gain(f) ** 2


def _gain_upside_down(f):
    return 1 / _solve_gain(f)


def _gain_of_relu(f):
    return math.sqrt(2)


def _gain_of_torch(f):
    return 5 / 3 if f is torch.tanh else _solve_gain(f)


# --- 4: layer_stds --------------------------------------------------------------------


class _Residual(nn.Module):
    """A branch of two layers, its activation in place, beside a way around it."""

    def __init__(self, width: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * self.branch(x)


def _models() -> list[tuple[nn.Module, Tensor]]:
    flat = nn.Sequential(nn.Linear(6, 40), nn.ReLU(inplace=True), nn.Linear(40, 3))
    images = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(72, 16), _Residual(16), nn.LayerNorm(16), _Residual(16),
    )  # fmt: skip
    dropping = nn.Sequential(nn.Linear(6, 20), nn.Dropout(0.5), nn.Linear(20, 3))
    return [
        (flat, torch.randn(50, 6)),
        (images.eval(), torch.randn(20, 2, 5, 5)),
        (dropping, torch.randn(50, 6)),  # in training: it must run as it is
        (nn.Linear(6, 4), torch.randn(50, 6)),  # the model is itself a layer
    ]


def _wanted_stds(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    found: dict[str, float] = {}

    def note_as(name: str) -> Callable:
        def note(layer, inputs, outputs) -> None:
            found[name] = outputs.std().item()

        return note

    with torch.no_grad():
        handles = [
            layer.register_forward_hook(note_as(name))
            for name, layer in _layers(model).items()
        ]
        model(inputs)
    for handle in handles:
        handle.remove()
    return found


def _check_stds(answer: Callable) -> None:
    for seed in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for model, inputs in _models():
                _check_stds_of(answer, model, inputs)


def _check_stds_of(answer: Callable, model: nn.Module, inputs: Tensor) -> None:
    torch.manual_seed(7)  # for the masks of dropout
    wanted = _wanted_stds(model, inputs)
    layers = _layers(model)
    outside: list[int] = []  # a hook of somebody else's, which must stay
    handle = layers[next(iter(wanted))].register_forward_hook(
        lambda *_: outside.append(1)
    )
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    training = [module.training for module in model.modules()]
    torch.manual_seed(7)
    got = answer(model, inputs)
    runs = len(outside)
    with torch.no_grad():
        model(inputs)
    expect(
        len(outside) == runs + 1,
        "A hook that was on the model before is gone. Remove those that you set: keep "
        "what register_forward_hook returns, and call its remove().",
    )
    handle.remove()
    left = sum(len(module._forward_hooks) for module in model.modules())
    left += sum(len(module._forward_pre_hooks) for module in model.modules())
    expect(
        left == 0,
        f"{left} hooks are left on the model. register_forward_hook returns a handle: "
        "call its remove() after the run.",
    )
    expect(
        all(
            torch.equal(value, weights[name])
            for name, value in model.state_dict().items()
        )
        and training == [module.training for module in model.modules()],
        "The model is not as it was: its weights or its mode have changed.",
    )
    expect(runs > 0, "The model never ran. Call model(inputs) once the hooks are set.")
    expect(runs == 1, f"The model ran {runs} times. Once is enough: set all hooks first.")
    expect(isinstance(got, Mapping), "Return a dictionary {name: standard deviation}.")
    missing = [name for name in wanted if name not in got]
    extra = [name for name in got if name not in wanted]
    expect(
        not missing,
        f"{missing} are missing; you have {list(got)}. model.named_modules() gives "
        "the names, also of layers inside other modules.",
    )
    expect(not extra, f"{extra} are no linear layers or convolutions.")
    evaluated = _wanted_stds(copy.deepcopy(model).eval(), inputs)
    for name, std in wanted.items():
        _check_std(name, got[name], std, evaluated[name], layers[name])


def _check_std(
    name: str, value: Any, std: float, evaluated: float, layer: nn.Module
) -> None:
    size = value.numel() if isinstance(value, Tensor) else getattr(value, "size", 1)
    expect(size == 1, f"{name}: one number a layer, over all entries of its output.")
    number = float(value)
    if _near(number, std, 0.01):
        return
    weight = layer.weight.detach().std().item()  # type: ignore[union-attr]
    expect(
        not _near(number, std**2, 0.01),
        f"{name}: {number:.4f} is the variance: take the standard deviation.",
    )
    expect(
        not _near(number, weight, 0.01),
        f"{name}: {number:.4f} is that of its weights. Its outputs were asked for.",
    )
    expect(
        not _near(number, evaluated, 0.01),
        f"{name}: {number:.4f} is that of the model in evaluation mode. Run it as it is.",
    )
    raise Hint(
        f"{name}: got {number:.4f}, its output has {std:.4f}. A hook gets (module, "
        "inputs, output); take the number there and then, over all entries: an "
        "activation that works in place changes the output afterwards."
    )


def _solve_stds(model, inputs):
    stds = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def note(module, inputs, output, name=name):
                stds[name] = output.std().item()

            handles.append(module.register_forward_hook(note))

    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return stds


def _stds_hooks_left(model, inputs):
    stds = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def note(module, inputs, output, name=name):
                stds[name] = output.std().item()

            module.register_forward_hook(note)
    model(inputs)
    return stds


def _stds_taken_later(model, inputs):
    outputs = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def note(module, inputs, output, name=name):
                outputs[name] = output

            handles.append(module.register_forward_hook(note))
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return {name: output.std().item() for name, output in outputs.items()}


def _stds_of_weights(model, inputs):
    model(inputs)
    return {name: layer.weight.std().item() for name, layer in _layers(model).items()}


def _stds_without_a_name(model, inputs):
    stds = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def note(module, inputs, output):
                stds[name] = output.std().item()  # noqa: B023  the mistake that it shows

            handles.append(module.register_forward_hook(note))
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


EXERCISES = (
    Exercise(
        "Write init(module), to be used as model.apply(init), for networks with ReLU. In "
        "every nn.Linear and every nn.Conv2d the weights become independent random draws "
        "with mean 0 and variance 2 / fan_in, where fan_in is how many values one output "
        "sums; the biases, where there are any, become 0. Every other module stays as it "
        "is.",
        _check_init,
        _solve_init,
        {
            "fan-in without the kernel": Wrong(_init_channels_only, "kernel"),
            "variance for standard deviation": Wrong(_init_variance_for_std, "root"),
            "no factor for ReLU": Wrong(_init_without_relu, "takes half"),
            "small is safe": Wrong(_init_small, "should be"),
            "zeros are neutral": Wrong(_init_zeros, "stay one"),
            "convolutions forgotten": Wrong(_init_linear_only, "both"),
            "biases stay": Wrong(_init_biases_stay, "biases are not 0"),
            "embeddings too": Wrong(_init_all_that_has_a_weight, "leave it"),
        },
    ),
    Exercise(
        "Write variance(fan_in, weight_std, layers). A network has `layers` linear "
        "layers without biases, each followed by a ReLU; each unit sums fan_in values, "
        "and fan_in is large. The weights are independent, with mean 0 and the standard "
        "deviation weight_std; the inputs have the mean square 1. Return the mean square "
        "of what enters the last ReLU, by a formula, within 0.1 percent.",
        _check_variance,
        _solve_variance,
        {
            "ReLU takes nothing": Wrong(_variance_without_relu, "without ReLU"),
            "one ReLU too many": Wrong(_variance_one_layer_more, "is half of it"),
            "standard deviation": Wrong(_spread_for_variance, "mean square was asked"),
            "variance about the mean": Wrong(
                _variance_about_the_mean, "count the mean square"
            ),
            "not squared": Wrong(_variance_not_squared, "square it"),
        },
    ),
    Exercise(
        "Write gain_of(f), where f takes and returns a tensor, such as F.gelu. Return the "
        "factor on 1 / sqrt(fan_in), the standard deviation of the weights, that keeps a "
        "mean square of 1 when f stands before the layer: with z standard normal, "
        "gain^2 times the mean of f(z)^2 is 1. Within 1 percent.",
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
    Exercise(
        "Write layer_stds(model, inputs). Run model(inputs) once, as it is, and return a "
        "dictionary: for every nn.Linear and nn.Conv2d in the model, however deep inside, "
        "its name in model.named_modules() and the standard deviation of its output, over "
        "all entries. Each layer runs once. Afterwards no hook of yours is left, and "
        "those of others are.",
        _check_stds,
        _solve_stds,
        {
            "hooks left": Wrong(_stds_hooks_left, "hooks are left"),
            "taken after the run": Wrong(_stds_taken_later, "in place"),
            "of the weights": Wrong(_stds_of_weights, "Its outputs"),
            "one name for all": Wrong(_stds_without_a_name, "missing"),
        },
    ),
)
