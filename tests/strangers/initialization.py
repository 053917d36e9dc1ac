"""Answers by a stranger to the exercises of chapter 05_initialization."""

import copy
import functools
import math
from contextlib import ExitStack
from fractions import Fraction

import numpy as np
import torch
from scipy import integrate
from torch import nn

# Exercise 0: init(module)


def init_library(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_uniform(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_uniform_(module.weight, a=0, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            module.bias.data.fill_(0)


@torch.no_grad()
def init_by_hand(module):
    if type(module) is nn.Linear or type(module) is nn.Conv2d:
        fan_in = module.weight[0].numel()
        module.weight.normal_(0, math.sqrt(2 / fan_in))
        if module.bias is not None:
            module.bias.zero_()
    return module


def init_signs(module):
    """Plus or minus one number: mean 0, and the variance asked."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        weight = module.weight
        fan_in = weight.numel() // weight.shape[0]
        with torch.no_grad():
            weight.bernoulli_(0.5).mul_(2).sub_(1).mul_((2 / fan_in) ** 0.5)
            if module.bias is not None:
                module.bias.copy_(torch.zeros_like(module.bias))


def init_numpy(module):
    match module:
        case nn.Linear():
            fan_in = module.in_features
        case nn.Conv2d():
            fan_in = module.in_channels // module.groups * math.prod(module.kernel_size)
        case _:
            return
    draws = np.random.default_rng().normal(
        scale=np.sqrt(2 / fan_in), size=module.weight.shape
    )
    module.weight.data.copy_(torch.from_numpy(draws))
    if module.bias is not None:
        module.bias.data *= 0


class InitRows:
    """Draw the weights one output at a time."""

    kinds = (nn.Linear, nn.Conv2d)

    def __call__(self, module):
        if not isinstance(module, self.kinds):
            return
        with torch.no_grad():
            for row in module.weight:
                row.copy_(torch.randn(row.shape) * (2 / row.numel()) ** 0.5)
            if module.bias is not None:
                for i in range(len(module.bias)):
                    module.bias[i] = 0.0


init_rows = InitRows()


def init_laplace(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        fan_in, _ = nn.init._calculate_fan_in_and_fan_out(module.weight)
        scale = math.sqrt(2 / fan_in / 2)  # its variance is 2 * scale ** 2
        draws = torch.distributions.Laplace(0.0, scale).sample(module.weight.shape)
        module.weight.data = draws.to(module.weight.dtype)
        if module.bias is not None:
            nn.init.constant_(module.bias, 0)


def init_new_parameter(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        old = module.weight
        std = (2.0 / math.prod(old.shape[1:])) ** 0.5
        module.weight = nn.Parameter(torch.randn_like(old) * std)
        if module.bias is not None:
            module.bias = nn.Parameter(torch.zeros_like(module.bias))


def init_gain(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        gain = nn.init.calculate_gain("relu")
        bound = gain * math.sqrt(3 / module.weight.flatten(1).shape[1])
        nn.init.uniform_(module.weight, -bound, bound)
        if getattr(module, "bias", None) is not None:
            nn.init.uniform_(module.bias, 0, 0)


def wrong_init_given(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        fan_in = module.weight.shape[1]
        nn.init.normal_(module.weight, 0, 2 / fan_in)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_variance_as_std(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        fan_in = module.weight[0].numel()
        nn.init.normal_(module.weight, 0, 2 / fan_in)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_channels(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        fan_in = module.weight.shape[1]
        nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_in))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_fan_out(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_default_slope(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_xavier(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.xavier_normal_(module.weight, gain=nn.init.calculate_gain("relu"))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_no_bias(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def wrong_init_bias_none(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


def wrong_init_bias_small(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.constant_(module.bias, 0.01)


def wrong_init_all_biases(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


def wrong_init_every_matrix(module):
    weight = getattr(module, "weight", None)
    if weight is not None and weight.dim() > 1:
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


def wrong_init_norms(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif getattr(module, "weight", None) is not None:
        nn.init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


def wrong_init_groups(module):
    if isinstance(module, nn.Linear):
        fan_in = module.in_features
    elif isinstance(module, nn.Conv2d):
        fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
    else:
        return
    nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_in))
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def wrong_init_square_kernel(module):
    if isinstance(module, nn.Linear):
        fan_in = module.in_features
    elif isinstance(module, nn.Conv2d):
        fan_in = module.weight.shape[1] * module.kernel_size[0] ** 2
    else:
        return
    nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_in))
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def wrong_init_linear_only(module):
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_conv_only(module):
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_uniform_bound(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        bound = math.sqrt(2 / module.weight[0].numel())
        nn.init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_same_rows(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        row = module.weight[0]
        draws = torch.randn(row.shape) * math.sqrt(2 / row.numel())
        with torch.no_grad():
            module.weight.copy_(draws.expand_as(module.weight))
            if module.bias is not None:
                module.bias.zero_()


def wrong_init_seed(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        torch.manual_seed(0)
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_positive(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        module.weight.data.abs_()
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_constant(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.constant_(module.weight, math.sqrt(2 / module.weight[0].numel()))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_truncated(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        std = math.sqrt(2 / module.weight[0].numel())
        nn.init.trunc_normal_(module.weight, 0, std, -std, std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_conv1d(module):
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_average_fan(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(module.weight)
        nn.init.normal_(module.weight, 0, math.sqrt(4 / (fan_in + fan_out)))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_no_two(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.normal_(module.weight, 0, math.sqrt(1 / module.weight[0].numel()))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_all_entries(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.normal_(module.weight, 0, math.sqrt(2 / module.weight.numel()))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_not_in_place(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        weight = module.weight.detach().clone()
        weight.normal_(0, math.sqrt(2 / weight[0].numel()))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def wrong_init_orthogonal(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.orthogonal_(module.weight, gain=math.sqrt(2))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# Exercise 1: variance(fan_in, weight_std, layers)


def variance_formula(fan_in, weight_std, layers):
    return 2 * (fan_in * weight_std**2 / 2) ** layers


def variance_loop(fan_in, weight_std, layers):
    square = 1.0
    for layer in range(layers):
        if layer > 0:
            square /= 2  # what the ReLU leaves
        square *= fan_in * weight_std**2
    return square


def variance_recursive(fan_in, weight_std, layers):
    if layers == 1:
        return fan_in * weight_std * weight_std
    return fan_in * weight_std**2 * variance_recursive(fan_in, weight_std, layers - 1) / 2


def variance_tensor(fan_in, weight_std, layers):
    step = (
        torch.tensor(fan_in, dtype=torch.float64) * torch.tensor(weight_std).double() ** 2
    )
    return step * (step * 0.5).pow(layers - 1)


def variance_numpy(fan_in, weight_std, layers):
    factors = np.full(layers, np.float64(fan_in) * np.square(float(weight_std)))
    factors[1:] /= 2
    return np.prod(factors)


def variance_fraction(fan_in, weight_std, layers):
    step = Fraction(fan_in) * Fraction(weight_std) ** 2
    return float(step**layers * Fraction(1, 2) ** (layers - 1))


def variance_logs(fan_in, weight_std, layers):
    if weight_std == 0:
        return 0
    step = math.log(fan_in) + 2 * math.log(weight_std)
    return math.exp(layers * step - (layers - 1) * math.log(2))


variance_lambda = lambda n, s, k: functools.reduce(  # noqa: E731
    lambda v, _: v / 2 * n * s**2, range(k), 2.0
)


def wrong_variance_last_relu(fan_in, weight_std, layers):
    return (fan_in * weight_std**2 / 2) ** layers


def wrong_variance_no_relu(fan_in, weight_std, layers):
    return (fan_in * weight_std**2) ** layers


def wrong_variance_fewer(fan_in, weight_std, layers):
    return (fan_in * weight_std**2 / 2) ** (layers - 1)


def wrong_variance_doubled_first(fan_in, weight_std, layers):
    return 2 * (fan_in * weight_std**2 / 2) ** (layers - 1)


def wrong_variance_not_squared(fan_in, weight_std, layers):
    return 2 * (fan_in * weight_std / 2) ** layers


def wrong_variance_root(fan_in, weight_std, layers):
    return math.sqrt(2 * (fan_in * weight_std**2 / 2) ** layers)


def wrong_variance_no_fan(fan_in, weight_std, layers):
    return 2 * (weight_std**2 / 2) ** layers


def wrong_variance_one_layer(fan_in, weight_std, layers):
    return fan_in * weight_std**2


def wrong_variance_half_once(fan_in, weight_std, layers):
    step = fan_in * weight_std**2
    return step if layers == 1 else step**layers / 2


def wrong_variance_of_relu(fan_in, weight_std, layers):
    step = fan_in * weight_std**2
    kept = 0.5 - 1 / (2 * math.pi)  # the variance after a ReLU, not its mean square
    return step * (step * kept) ** (layers - 1)


def wrong_variance_fan_below(fan_in, weight_std, layers):
    return 2 * (weight_std**2 / (2 * fan_in)) ** layers


def wrong_variance_linear_in_depth(fan_in, weight_std, layers):
    return fan_in * weight_std**2 / 2 * layers


def wrong_variance_integer(fan_in, weight_std, layers):
    square = fan_in * weight_std**2
    for _ in range(layers - 1):
        square = square * fan_in * weight_std**2 // 2
    return square


def wrong_variance_simulated(fan_in, weight_std, layers):
    x = torch.randn(64, fan_in)
    for _ in range(layers):
        z = x @ (torch.randn(fan_in, fan_in) * weight_std)
        x = z.relu()
    return z.pow(2).mean().item()


def wrong_variance_rounded(fan_in, weight_std, layers):
    return round(2 * (fan_in * weight_std**2 / 2) ** layers, 2)


def wrong_variance_kaiming(fan_in, weight_std, layers):
    return 1.0


def wrong_variance_extra_layer(fan_in, weight_std, layers):
    return 2 * (fan_in * weight_std**2 / 2) ** (layers + 1)


def wrong_variance_half_after(fan_in, weight_std, layers):
    square = 1.0
    for _ in range(layers):
        square = max(square * fan_in * weight_std**2 - 0.5, 0.0)
    return square


# Exercise 2: gain(f)


def gain_draws(f):
    with torch.no_grad():
        z = torch.randn(2_000_000)
        return 1 / f(z).pow(2).mean().sqrt()


def gain_own_generator(f):
    z = torch.randn(1_000_000, generator=torch.Generator().manual_seed(3))
    z = torch.cat([z, -z])  # antithetic
    return float(f(z).detach().square().mean()) ** -0.5


def gain_grid(f):
    z = torch.linspace(-8, 8, 160_001)
    weight = torch.exp(-z.square() / 2)
    with torch.no_grad():
        second = (f(z.clone()) ** 2 * weight).sum() / weight.sum()
    return torch.rsqrt(second)


def gain_quantiles(f):
    count = 400_000
    p = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    z = torch.distributions.Normal(0.0, 1.0).icdf(p).float()
    values = f(z).detach().numpy()
    return np.float64(1 / np.sqrt(np.mean(values.astype(np.float64) ** 2)))


def gain_legendre(f):
    """Gauss and Legendre's rule of four points on each of 800 pieces."""
    nodes, weights = np.polynomial.legendre.leggauss(4)
    edges = np.linspace(-9, 9, 801)
    half = (edges[1] - edges[0]) / 2
    z = (edges[:-1, None] + half + half * nodes).astype(np.float32)
    values = f(torch.from_numpy(z)).detach().double().numpy()
    density = np.exp(-(z.astype(np.float64) ** 2) / 2) / math.sqrt(2 * math.pi)
    return (
        float(half * np.einsum("ij,ij,ij,j->", values, values, density, weights)) ** -0.5
    )


def gain_scipy(f):
    def integrand(z):
        value = float(f(torch.tensor([z], dtype=torch.float32)))
        return value**2 * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    left, _ = integrate.quad(integrand, -9, 0, limit=100)
    right, _ = integrate.quad(integrand, 0, 9, limit=100)
    return 1 / math.sqrt(left + right)


def gain_chunks(f):
    rng = np.random.default_rng(0)
    means = []
    for _ in range(20):
        z = torch.from_numpy(rng.standard_normal((200, 500)).astype(np.float32))
        with torch.inference_mode():
            means.append(torch.linalg.vector_norm(f(z)).item() ** 2 / z.numel())
    return math.sqrt(len(means) / math.fsum(means))


def gain_rescaled(f):
    """Find the gain by halving an interval instead of dividing."""
    z = torch.randn(1_000_000)
    second = f(z).detach().pow(2).mean().item()
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if middle**2 * second < 1 else (low, middle)
    return low


def wrong_gain_no_root(f):
    z = torch.randn(1_000_000)
    return 1 / f(z).detach().pow(2).mean()


def wrong_gain_inverse(f):
    z = torch.randn(1_000_000)
    return f(z).detach().pow(2).mean().sqrt()


def wrong_gain_std(f):
    z = torch.randn(1_000_000)
    return 1 / f(z).detach().std()


def wrong_gain_absolute(f):
    z = torch.randn(1_000_000)
    return 1 / f(z).detach().abs().mean()


def wrong_gain_uniform(f):
    z = torch.rand(1_000_000)
    return 1 / f(z).detach().pow(2).mean().sqrt()


def wrong_gain_uniform_wide(f):
    z = (torch.rand(1_000_000) * 2 - 1) * math.sqrt(3)
    return 1 / f(z).detach().pow(2).mean().sqrt()


def wrong_gain_slope(f):
    z = torch.randn(1_000_000, requires_grad=True)
    (slope,) = torch.autograd.grad(f(z).sum(), z)
    return 1 / slope.pow(2).mean().sqrt()


def wrong_gain_few(f):
    z = torch.randn(50, generator=torch.Generator().manual_seed(1))
    return 1 / f(z).detach().pow(2).mean().sqrt()


def wrong_gain_relu(f):
    return math.sqrt(2)


def wrong_gain_table(f):
    name = getattr(f, "__name__", "linear")
    known = ("relu", "tanh", "sigmoid", "selu")
    return nn.init.calculate_gain(name if name in known else "linear")


def wrong_gain_flat_grid(f):
    z = torch.linspace(-3, 3, 10_001)
    return 1 / f(z).detach().pow(2).mean().sqrt()


def wrong_gain_half(f):
    z = torch.randn(1_000_000).abs()
    return 1 / f(z).detach().pow(2).mean().sqrt()


def wrong_gain_square_of_mean(f):
    z = torch.randn(1_000_000)
    return 1 / f(z).detach().mean().abs()


def wrong_gain_sum(f):
    z = torch.randn(1_000_000)
    return 1 / f(z).detach().pow(2).sum().sqrt()


def wrong_gain_at_one(f):
    z = torch.tensor([-1.0, 1.0])
    return 1 / f(z).detach().pow(2).mean().sqrt()


def wrong_gain_of_square(f):
    z = torch.randn(1_000_000)
    return 1 / f(z.pow(2)).detach().mean().sqrt()


def wrong_gain_root_two(f):
    z = torch.randn(1_000_000)
    return math.sqrt(2) / f(z).detach().pow(2).mean().sqrt()


def wrong_gain_narrow(f):
    z = torch.linspace(-1, 1, 10_001)
    weight = torch.exp(-z.square() / 2)
    return ((f(z).detach() ** 2 * weight).sum() / weight.sum()) ** -0.5


def wrong_gain_density(f):
    z = torch.linspace(-8, 8, 16_001)
    weight = torch.exp(-z.square())  # the density lacks its half
    return ((f(z).detach() ** 2 * weight).sum() / weight.sum()) ** -0.5


# Exercise 3: layer_stds(model, inputs)


def layer_stds_hooks(model, inputs):
    stds, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                stds[name] = output.std().item()

            handles.append(module.register_forward_hook(hook))
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return stds


@torch.no_grad()
def layer_stds_stack(model, inputs):
    stds = {}

    def note(name, module, args, output):
        stds[name] = output.std(correction=0)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) or isinstance(module, nn.Conv2d):
                handle = module.register_forward_hook(functools.partial(note, name))
                stack.callback(handle.remove)
        model(inputs)
    return stds


def layer_stds_global(model, inputs):
    names = {
        m: n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))
    }
    outputs = {}

    def hook(module, args, output):
        if module in names:
            outputs[names[module]] = output.detach().clone()

    handle = nn.modules.module.register_module_forward_hook(hook)
    model(inputs)
    handle.remove()
    return {name: np.std(out.numpy()) for name, out in outputs.items()}


def layer_stds_patched(model, inputs):
    """Wrap the forward of each layer, and take the wraps off again."""
    stds, wrapped = {}, []

    def wrap(name, module):
        inner = module.forward

        def forward(*args, **kwargs):
            out = inner(*args, **kwargs)
            stds[name] = float(out.detach().double().std())
            return out

        module.forward = forward
        wrapped.append(module)

    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            wrap(name, module)
    model(inputs)
    for module in wrapped:
        del module.forward
    return stds


class LayerStds:
    """One hook object for each layer."""

    class Note:
        def __init__(self, name, table):
            self.name, self.table = name, table

        def __call__(self, module, args, kwargs, output):
            flat = output.detach().flatten()
            mean = flat.sum() / len(flat)
            self.table[self.name] = ((flat - mean) ** 2).mean().sqrt()

    def __call__(self, model, inputs):
        table = {}
        kept = [
            module.register_forward_hook(self.Note(name, table), with_kwargs=True)
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d))
        ]
        _ = model(inputs)
        [handle.remove() for handle in kept]
        return table


layer_stds_object = LayerStds()


def layer_stds_recursive(model, inputs):
    stds, handles = {}, []

    def visit(module, path):
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            key = ".".join(path)
            handles.append(
                module.register_forward_hook(
                    lambda m, a, out: stds.__setitem__(key, torch.std(out).detach())
                )
            )
        for child_name, child in module.named_children():
            visit(child, path + [child_name])

    visit(model, [])
    model(inputs)
    while handles:
        handles.pop().remove()
    return stds


def layer_stds_var(model, inputs):
    found = dict(model.named_modules())
    layers = {k: m for k, m in found.items() if isinstance(m, (nn.Conv2d, nn.Linear))}
    stds = dict.fromkeys(layers)
    handles = []
    for key, layer in layers.items():
        handles += [
            layer.register_forward_hook(
                lambda m, a, out, key=key: stds.update({key: out.var().sqrt().item()}),
                prepend=True,
            )
        ]
    with torch.no_grad():
        model(inputs)
    for handle in reversed(handles):
        handle.remove()
    return stds


def wrong_layer_stds_children(model, inputs):
    stds, handles = {}, []
    for name, module in model.named_children():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                stds[name] = output.std().item()

            handles.append(module.register_forward_hook(hook))
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


def wrong_layer_stds_not_removed(model, inputs):
    stds = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                stds[name] = output.std().item()

            module.register_forward_hook(hook)
    model(inputs)
    return stds


def wrong_layer_stds_clears(model, inputs):
    stds = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                stds[name] = output.std().item()

            module.register_forward_hook(hook)
    model(inputs)
    for module in model.modules():
        module._forward_hooks.clear()
    return stds


def wrong_layer_stds_last_handle(model, inputs):
    stds = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                stds[name] = output.std().item()

            handle = module.register_forward_hook(hook)
    model(inputs)
    handle.remove()
    return stds


def wrong_layer_stds_per_unit(model, inputs):
    stds, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                stds[name] = output.std(dim=0).mean().item()

            handles.append(module.register_forward_hook(hook))
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


def wrong_layer_stds_variance(model, inputs):
    stds, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                stds[name] = output.var().item()

            handles.append(module.register_forward_hook(hook))
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


def wrong_layer_stds_eval(model, inputs):
    stds, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                stds[name] = output.std().item()

            handles.append(module.register_forward_hook(hook))
    model.eval()
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


def wrong_layer_stds_eval_train(model, inputs):
    stds, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                stds[name] = output.std().item()

            handles.append(module.register_forward_hook(hook))
    was_training = model.training
    model.eval()
    model(inputs)
    model.train(was_training)
    for handle in handles:
        handle.remove()
    return stds


def wrong_layer_stds_twice(model, inputs):
    stds, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                stds[name] = output.std().item()

            handles.append(module.register_forward_hook(hook))
    model(inputs)
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


def wrong_layer_stds_all_modules(model, inputs):
    stds, handles = {}, []
    for name, module in model.named_modules():

        def hook(module, args, output, name=name):
            stds[name] = output.std().item()

        handles.append(module.register_forward_hook(hook))
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


def wrong_layer_stds_no_conv(model, inputs):
    stds, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):

            def hook(module, args, output, name=name):
                stds[name] = output.std().item()

            handles.append(module.register_forward_hook(hook))
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


def wrong_layer_stds_late_name(model, inputs):
    stds, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output):
                stds[name] = output.std().item()

            handles.append(module.register_forward_hook(hook))
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


def wrong_layer_stds_inputs(model, inputs):
    stds, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                stds[name] = args[0].std().item()

            handles.append(module.register_forward_hook(hook))
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


def wrong_layer_stds_weights(model, inputs):
    model(inputs)
    return {
        name: module.weight.std().item()
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }


def wrong_layer_stds_after(model, inputs):
    outputs, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                outputs[name] = output.detach()

            handles.append(module.register_forward_hook(hook))
    model(inputs)
    for handle in handles:
        handle.remove()
    return {name: out.std().item() for name, out in outputs.items()}


def wrong_layer_stds_short_names(model, inputs):
    stds, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name.split(".")[-1]):
                stds[name] = output.std().item()

            handles.append(module.register_forward_hook(hook))
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


def wrong_layer_stds_modules(model, inputs):
    stds, handles = {}, []
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output):
                stds[module] = output.std().item()

            handles.append(module.register_forward_hook(hook))
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


def wrong_layer_stds_root_mean_square(model, inputs):
    stds, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                stds[name] = output.pow(2).mean().sqrt().item()

            handles.append(module.register_forward_hook(hook))
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


def wrong_layer_stds_sequential(model, inputs):
    stds = {}
    x = inputs
    for name, module in model.named_children():
        x = module(x)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            stds[name] = x.std().item()
    return stds


def wrong_layer_stds_changes(model, inputs):
    stds, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                stds[name] = output.std().item()
                return output / stds[name]

            handles.append(module.register_forward_hook(hook))
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


def wrong_layer_stds_list(model, inputs):
    stds, handles = [], []
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output):
                stds.append(output.std().item())

            handles.append(module.register_forward_hook(hook))
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


def wrong_layer_stds_copy(model, inputs):
    stds = {}
    twin = copy.deepcopy(model).eval()
    for name, module in twin.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                stds[name] = output.std().item()

            module.register_forward_hook(hook)
    twin(inputs)
    return stds


def wrong_layer_stds_first_row(model, inputs):
    stds, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                stds[name] = output[0].std().item()

            handles.append(module.register_forward_hook(hook))
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


def wrong_layer_stds_no_root(model, inputs):
    stds, handles = {}, []
    for name, module in model.named_modules():
        if name and isinstance(module, (nn.Linear, nn.Conv2d)):

            def hook(module, args, output, name=name):
                stds[name] = output.std().item()

            handles.append(module.register_forward_hook(hook))
    model(inputs)
    for handle in handles:
        handle.remove()
    return stds


RIGHT = {
    0: [
        init_library,
        init_uniform,
        init_by_hand,
        init_signs,
        init_numpy,
        init_rows,
        init_laplace,
        init_new_parameter,
        init_gain,
    ],
    1: [
        variance_formula,
        variance_loop,
        variance_recursive,
        variance_tensor,
        variance_numpy,
        variance_fraction,
        variance_logs,
        variance_lambda,
    ],
    2: [
        gain_draws,
        gain_own_generator,
        gain_grid,
        gain_quantiles,
        gain_legendre,
        gain_scipy,
        gain_chunks,
        gain_rescaled,
    ],
    3: [
        layer_stds_hooks,
        layer_stds_stack,
        layer_stds_global,
        layer_stds_patched,
        layer_stds_object,
        layer_stds_recursive,
        layer_stds_var,
    ],
}

WRONG = {
    0: [
        (wrong_init_given, "The given code: no kernel in fan_in, variance as SD."),
        (wrong_init_variance_as_std, "The variance is taken for the SD."),
        (wrong_init_channels, "fan_in leaves out the size of the kernel."),
        (wrong_init_fan_out, "It takes fan_out."),
        (wrong_init_default_slope, "torch's default has the variance 1 / (3 fan_in)."),
        (wrong_init_xavier, "Xavier takes the mean of fan_in and fan_out."),
        (wrong_init_no_bias, "The biases stay random."),
        (wrong_init_bias_none, "It breaks where there is no bias."),
        (wrong_init_bias_small, "The biases become 0.01."),
        (wrong_init_all_biases, "It clears the biases of other modules, too."),
        (wrong_init_every_matrix, "It changes other modules, such as nn.Embedding."),
        (wrong_init_norms, "It resets norm layers and embeddings."),
        (wrong_init_groups, "fan_in ignores the groups of a convolution."),
        (wrong_init_square_kernel, "It takes every kernel for a square."),
        (wrong_init_linear_only, "It leaves out nn.Conv2d."),
        (wrong_init_conv_only, "It leaves out nn.Linear."),
        (wrong_init_uniform_bound, "Uniform within one SD: a third of the variance."),
        (wrong_init_same_rows, "All outputs get the same weights."),
        (wrong_init_seed, "The same seed for each layer: not independent."),
        (wrong_init_positive, "The mean is not 0."),
        (wrong_init_constant, "The weights are not random."),
        (wrong_init_truncated, "Cut at one SD, the variance is too small."),
        (wrong_init_conv1d, "It changes nn.Conv1d and other convolutions, too."),
        (wrong_init_average_fan, "It takes the mean of fan_in and fan_out."),
        (wrong_init_no_two, "The variance is 1 / fan_in."),
        (wrong_init_all_entries, "It divides by all weights of the layer."),
        (wrong_init_not_in_place, "The draws never reach the module."),
        (wrong_init_orthogonal, "Orthogonal rows: not independent, other variance."),
    ],
    1: [
        (wrong_variance_last_relu, "It counts the last ReLU."),
        (wrong_variance_no_relu, "It forgets that a ReLU halves the mean square."),
        (wrong_variance_fewer, "It stops one layer early, after the ReLU."),
        (wrong_variance_doubled_first, "It lacks the last layer."),
        (wrong_variance_not_squared, "It takes the SD of the weights for a variance."),
        (wrong_variance_root, "It returns the root."),
        (wrong_variance_no_fan, "It leaves out fan_in."),
        (wrong_variance_one_layer, "Right for one layer only."),
        (wrong_variance_half_once, "It halves once, whatever the depth."),
        (wrong_variance_of_relu, "It takes the variance after a ReLU, without mean."),
        (wrong_variance_fan_below, "It divides by fan_in."),
        (wrong_variance_linear_in_depth, "It multiplies by the number of layers."),
        (wrong_variance_integer, "The division rounds down."),
        (wrong_variance_simulated, "A simulation, far from 0.1 percent."),
        (wrong_variance_rounded, "It rounds to two places."),
        (wrong_variance_kaiming, "Always 1, whatever is given."),
        (wrong_variance_extra_layer, "One layer too many."),
        (wrong_variance_half_after, "It subtracts a half instead of halving."),
    ],
    2: [
        (wrong_gain_no_root, "The square root is missing."),
        (wrong_gain_inverse, "It is the inverse of the gain."),
        (wrong_gain_std, "It subtracts the mean of f(z)."),
        (wrong_gain_absolute, "It takes the mean size for the root mean square."),
        (wrong_gain_uniform, "z is uniform, not normal."),
        (wrong_gain_uniform_wide, "z is uniform of variance 1, not normal."),
        (wrong_gain_slope, "It uses the slope of f."),
        (wrong_gain_few, "Fifty draws are not within 1 percent."),
        (wrong_gain_relu, "Right for a ReLU only."),
        (wrong_gain_table, "A table that knows few names, and tanh by rule of thumb."),
        (wrong_gain_flat_grid, "A grid without the weights of the normal."),
        (wrong_gain_half, "It takes positive z only."),
        (wrong_gain_square_of_mean, "It takes the mean, not the mean square."),
        (wrong_gain_sum, "It takes the sum of the squares."),
        (wrong_gain_at_one, "It looks at z = -1 and 1 only."),
        (wrong_gain_of_square, "It squares z, not f(z)."),
        (wrong_gain_root_two, "It has a factor of sqrt(2) too much."),
        (wrong_gain_narrow, "It leaves out z beyond 1."),
        (wrong_gain_density, "The weights are of a normal of variance 1/2."),
    ],
    3: [
        (wrong_layer_stds_children, "It finds the top layers only."),
        (wrong_layer_stds_not_removed, "Its hooks stay."),
        (wrong_layer_stds_clears, "It removes the hooks of others."),
        (wrong_layer_stds_last_handle, "It removes its last hook only."),
        (wrong_layer_stds_per_unit, "It takes the mean of the SDs of the units."),
        (wrong_layer_stds_variance, "It returns the variance."),
        (wrong_layer_stds_eval, "The model is left in evaluation mode."),
        (wrong_layer_stds_eval_train, "The model does not run as it is."),
        (wrong_layer_stds_twice, "It runs the model twice."),
        (wrong_layer_stds_all_modules, "It has other modules in it, too."),
        (wrong_layer_stds_no_conv, "It leaves out nn.Conv2d."),
        (wrong_layer_stds_late_name, "All hooks write under the last name."),
        (wrong_layer_stds_inputs, "It measures the inputs."),
        (wrong_layer_stds_weights, "It measures the weights."),
        (wrong_layer_stds_after, "An in-place ReLU changes what it measures."),
        (wrong_layer_stds_short_names, "The names lack the path, and may collide."),
        (wrong_layer_stds_modules, "The keys are modules."),
        (wrong_layer_stds_root_mean_square, "It does not subtract the mean."),
        (wrong_layer_stds_sequential, "It works for a flat nn.Sequential only."),
        (wrong_layer_stds_changes, "Its hook changes what the next layer gets."),
        (wrong_layer_stds_list, "It returns a list."),
        (wrong_layer_stds_copy, "It runs a copy in evaluation mode."),
        (wrong_layer_stds_first_row, "It measures the first row only."),
        (wrong_layer_stds_no_root, "It leaves out a model that is itself a layer."),
    ],
}

UNCLEAR = {
    0: [
        "Must the parameter stay the same object (an optimizer may hold it)?",
        "Does a subclass of nn.Linear or nn.Conv2d count (in nn.MultiheadAttention)?",
        "A truncated normal whose variance is set right: any distribution will do?",
        "torch.manual_seed once before apply: reproducible draws are not forbidden.",
    ],
    1: [
        "layers = 0 is not said to be impossible.",
        "Is a loop over the layers 'a formula'? I count it as right.",
    ],
    2: [
        "The dtype and shape of what f gets, if f is picky (float64, 0 dims).",
        "The sign: -gain meets gain^2 * mean = 1, too.",
        "f with f(z) = 0 everywhere has no gain.",
    ],
    3: [
        "SD with or without the correction: for small outputs they differ.",
        "In training mode 'as it is' changes running statistics of batch norm.",
        "May it run a deep copy of the model, as it is?",
        "Output before or after what another's hook makes of it?",
        "Must the hooks go also when the model raises an error?",
        "Numbers or tensors, with or without a graph, as values of the dictionary.",
    ],
}
