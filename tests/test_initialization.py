"""Initialization: equal to torch.nn.init, moments, edge cases; measuring changes nothing."""

import copy
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import init
from torch.nn.utils import parametrizations

from dlcourse import initialization as di
from dlcourse.lab.models import MLP, ResidualCNN, RowRNN, RowTransformer, SmallCNN
from dlcourse.lab.training import use_one_thread

use_one_thread()
X = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 10
NAMES = [
    "linear",
    "sigmoid",
    "tanh",
    "relu",
    "selu",
    "conv1d",
    "conv2d",
    "conv_transpose3d",
]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_shape(seed, least=1):
    g = seeded(seed)
    ndim = int(torch.randint(2, 6, (), generator=g))
    return torch.randint(least, 6, (ndim,), generator=g).tolist()


def cross_entropy(outputs):
    return F.cross_entropy(outputs, Y)


# --- one weight -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(25))
def test_fans_equal_torch(seed):
    weight = torch.empty(random_shape(seed, least=0))
    assert di.calculate_fan(weight) == init._calculate_fan_in_and_fan_out(weight)


def test_fans_of_layers():
    assert di.calculate_fan(nn.Linear(3, 5).weight) == (3, 5)
    assert di.calculate_fan(nn.Linear(3, 5).weight.T) == (5, 3)
    assert di.calculate_fan(nn.Conv2d(3, 5, (2, 7)).weight) == (3 * 14, 5 * 14)
    assert di.calculate_fan(nn.Conv2d(4, 8, 3, groups=2).weight) == (2 * 9, 8 * 9)
    assert di.calculate_fan(nn.ConvTranspose2d(3, 5, 2).weight) == (5 * 4, 3 * 4)
    for shape in ((), (3,)):
        with pytest.raises(ValueError, match="zeros"):
            di.calculate_fan(torch.empty(shape))


def test_gains_equal_torch():
    for name in NAMES:
        assert di.calculate_gain(name) == init.calculate_gain(name)
    for slope in (None, 0, 0.0, 0.2, 1, -3.0, math.sqrt(5)):
        assert di.calculate_gain("leaky_relu", slope) == init.calculate_gain(
            "leaky_relu", slope
        )
    number = di.calculate_gain("leaky_relu", np.float32(0.5))
    assert number == pytest.approx(math.sqrt(2 / 1.25))
    for slope in (True, "much", math.nan, math.inf):
        with pytest.raises(ValueError, match="slope"):
            di.calculate_gain("leaky_relu", slope)
    with pytest.raises(ValueError, match="F.gelu"):
        di.calculate_gain("gelu")


def test_gains_of_functions():
    assert di.calculate_gain(F.relu) == pytest.approx(math.sqrt(2), abs=1e-9)
    assert di.calculate_gain(lambda z: z) == pytest.approx(1, abs=1e-9)
    leaky = di.calculate_gain(lambda z: F.leaky_relu(z, 0.3))
    assert leaky == pytest.approx(di.calculate_gain("leaky_relu", 0.3), abs=1e-9)
    z = torch.randn(4_000_000, generator=seeded(0), dtype=torch.float64)
    for f in (F.gelu, torch.tanh, F.silu, torch.sigmoid, torch.sin):
        assert di.calculate_gain(f) == pytest.approx(
            f(z).square().mean().item() ** -0.5, rel=2e-3
        )
    assert di.calculate_gain(nn.ReLU(inplace=True)) == pytest.approx(
        math.sqrt(2), abs=1e-9
    )
    for dead in (torch.zeros_like, lambda z: z / 0):
        with pytest.raises(ValueError, match="no weight can mend"):
            di.calculate_gain(dead)


PAIRS = [
    (di.xavier_uniform_, init.xavier_uniform_, {}),
    (di.xavier_uniform_, init.xavier_uniform_, {"gain": 5 / 3}),
    (di.xavier_normal_, init.xavier_normal_, {}),
    (di.xavier_normal_, init.xavier_normal_, {"gain": 0.0}),
    (di.kaiming_uniform_, init.kaiming_uniform_, {}),
    (di.kaiming_uniform_, init.kaiming_uniform_, {"a": math.sqrt(5)}),
    (
        di.kaiming_uniform_,
        init.kaiming_uniform_,
        {"mode": "fan_out", "nonlinearity": "tanh"},
    ),
    (di.kaiming_normal_, init.kaiming_normal_, {"nonlinearity": "relu"}),
    (di.kaiming_normal_, init.kaiming_normal_, {"a": 0.1, "mode": "fan_out"}),
]


@pytest.mark.parametrize(("ours", "theirs", "settings"), PAIRS)
def test_same_generator_same_bits(ours, theirs, settings):
    for seed in range(40):
        dtype = (torch.float32, torch.float64, torch.float16, torch.bfloat16)[seed % 4]
        a = torch.empty(random_shape(seed), dtype=dtype)
        b = torch.empty_like(a)
        if seed % 3 == 0:  # not contiguous
            a, b = (
                torch.empty(*a.shape[::-1], dtype=dtype).permute(*range(a.ndim)[::-1]),
            ) * 2
            b = a.clone(memory_format=torch.preserve_format)
        assert ours(a, generator=seeded(seed), **settings) is a
        theirs(b, generator=seeded(seed), **settings)
        assert torch.equal(a, b)
    torch.manual_seed(3)
    first = ours(torch.empty(4, 5), **settings)
    torch.manual_seed(3)
    assert torch.equal(first, theirs(torch.empty(4, 5), **settings))


@pytest.mark.parametrize("seed", range(40))
def test_orthogonal_equals_torch_and_is_orthogonal(seed):
    dtype = (torch.float32, torch.float64)[seed % 2]
    tensor = torch.empty(random_shape(seed), dtype=dtype)
    other = torch.empty_like(tensor)
    if seed % 3 == 0:
        tensor = torch.empty(*tensor.shape[::-1], dtype=dtype).permute(
            *range(tensor.ndim)[::-1]
        )
    assert di.orthogonal_(tensor, 1.7, seeded(seed)) is tensor
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    init.orthogonal_(other, 1.7, seeded(seed))
    assert torch.allclose(tensor, other, atol=tolerance)
    flat = tensor.reshape(len(tensor), -1)
    gram = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
    assert torch.allclose(
        gram, 1.7**2 * torch.eye(len(gram), dtype=dtype), atol=tolerance
    )


def test_orthogonal_is_uniform_and_takes_16_bits():
    draws = torch.stack(
        [di.orthogonal_(torch.empty(3, 3), generator=seeded(s)) for s in range(900)]
    )
    assert draws.mean(0).abs().max() < 0.09  # each entry: mean 0, variance 1/3
    assert (draws.square().mean(0) - 1 / 3).abs().max() < 0.05
    for dtype in (torch.float16, torch.bfloat16):
        weight = di.orthogonal_(
            torch.empty(6, 4, dtype=dtype), generator=seeded(0)
        ).float()
        assert torch.allclose(weight.T @ weight, torch.eye(4), atol=0.03)


def test_moments():
    g, shape = seeded(0), (300, 20, 5)  # fan_in 100, fan_out 1500
    for rule, variance in (
        (di.xavier_uniform_, 2 / 1600),
        (di.xavier_normal_, 2 / 1600),
        (di.kaiming_uniform_, 2 / 100),
        (di.kaiming_normal_, 2 / 100),
    ):
        weight = rule(torch.empty(shape), generator=g)
        assert weight.var() == pytest.approx(variance, rel=0.05)
        assert abs(weight.mean()) < 4 * math.sqrt(variance / weight.numel())
        if "uniform" in rule.__name__:
            assert weight.abs().max() <= math.sqrt(3 * variance) * 1.0001
    weight = di.kaiming_normal_(torch.empty(shape), nonlinearity=F.gelu, generator=g)
    assert weight.std() == pytest.approx(di.calculate_gain(F.gelu) / 10, rel=0.03)
    weight = di.kaiming_normal_(torch.empty(shape), mode="fan_out", generator=g)
    assert weight.var() == pytest.approx(2 / 1500, rel=0.05)


def test_torch_default_is_kaiming_uniform_with_a_root_of_five():
    for layer in (nn.Linear(7, 9), nn.Conv2d(3, 4, 3)):
        torch.manual_seed(5)
        layer.reset_parameters()
        torch.manual_seed(5)
        ours = di.kaiming_uniform_(torch.empty_like(layer.weight), a=math.sqrt(5))
        assert torch.equal(layer.weight, ours)
        fan_in = di.calculate_fan(layer.weight)[0]
        assert layer.weight.abs().max() <= 1 / math.sqrt(fan_in)


RULES = [
    di.xavier_uniform_, di.xavier_normal_, di.kaiming_uniform_, di.kaiming_normal_, di.orthogonal_,
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_edges_and_bad_input(rule):
    for shape in ((0, 3), (3, 0), (0, 0), (2, 0, 4)):
        assert rule(torch.empty(shape)).shape == torch.Size(shape)
    for shape in ((), (4,)):
        with pytest.raises(ValueError, match="no fan"):
            rule(torch.empty(shape))
    weight = nn.Parameter(torch.empty(3, 2))
    assert rule(weight, generator=seeded(0)) is weight
    assert weight.requires_grad and weight.is_leaf and weight.grad_fn is None
    assert rule(torch.empty(3, 2, device="meta")).device.type == "meta"
    if "kaiming" in rule.__name__:
        with pytest.raises(ValueError, match="fan_in"):
            rule(torch.empty(2, 2), mode="fan_avg")
        with pytest.raises(ValueError, match="no gain"):
            rule(torch.empty(2, 2), nonlinearity="swish")
    else:
        for gain in (-1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="gain"):
                rule(torch.empty(2, 2), gain=gain)


# --- a whole model --------------------------------------------------------------------------------


def test_initialize_fills_layers_and_nothing_else():
    model = nn.Sequential(
        nn.Embedding(5, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2, bias=False)
    )
    before = copy.deepcopy(model.state_dict())
    assert di.initialize_(model, di.xavier_normal_, seeded(1), gain=2.0) is model
    g = seeded(1)
    for name in ("1.weight", "3.weight"):
        expected = init.xavier_normal_(torch.empty_like(before[name]), 2.0, g)
        assert torch.equal(model.state_dict()[name], expected)
    assert (model[1].bias == 0).all()
    for name in ("0.weight", "2.weight", "2.bias"):
        assert torch.equal(model.state_dict()[name], before[name])


def test_initialize_is_fixed_by_its_generator_and_draws_shared_weights_once():
    a, b = (di.initialize_(SmallCNN(1, 10), di.orthogonal_, seeded(2)) for _ in range(2))
    assert all(
        torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)
    )
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    di.initialize_(tied, di.kaiming_normal_, seeded(3))
    g = seeded(3)
    for layer in (tied[0], tied[2]):
        assert torch.equal(
            layer.weight, init.kaiming_normal_(torch.empty(4, 4), generator=g)
        )


def test_initialize_fills_only_the_output_of_attention():
    model = nn.MultiheadAttention(8, 2)
    before = model.in_proj_weight.clone()
    di.initialize_(model, di.orthogonal_, seeded(0))
    assert torch.equal(model.in_proj_weight, before)
    assert torch.allclose(
        model.out_proj.weight @ model.out_proj.weight.T, torch.eye(8), atol=1e-5
    )


def test_initialize_refuses_what_it_cannot_fill():
    with pytest.raises(ValueError, match="no linear"):
        di.initialize_(nn.LayerNorm(3), di.xavier_normal_)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="before you parametrize"):
        di.initialize_(model, di.xavier_normal_)


def outputs_of_layers(model, batch):
    stats = di.activation_stats(model, batch)
    return {name: s for name, s in stats.items() if s.kind in ("Linear", "Conv2d")}


@pytest.mark.parametrize("std", [1.0, 0.3])
@pytest.mark.parametrize(
    "model",
    [
        MLP(64, 10, depth=6),
        MLP(64, 10, depth=6, activation="tanh"),
        SmallCNN(1, 10),
        ResidualCNN(1, 10, norm="batch"),
        RowTransformer(8, 8, 10),
    ],
    ids=lambda model: type(model).__name__,
)
def test_lsuv_gives_every_layer_the_spread_asked_for(model, std):
    model = copy.deepcopy(model)
    assert di.lsuv_(model, X, std, seeded(0)) is model
    for name, layer in outputs_of_layers(model, X).items():
        assert layer.std == pytest.approx(std, rel=1e-3), name


def test_lsuv_keeps_the_directions_of_an_orthogonal_start():
    model = di.lsuv_(MLP(64, 10, depth=3), X, generator=seeded(4))
    plain = di.initialize_(MLP(64, 10, depth=3), di.orthogonal_, seeded(4))
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        if a.ndim == 2:
            assert torch.allclose(a / a.norm(), b / b.norm(), atol=1e-6)


def test_lsuv_scales_a_layer_that_runs_often_once_and_leaves_the_rest():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    model = di.lsuv_(RowRNN(8, 10), X, generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), state)
    # the first state is zero: the second run sets the scale
    driven = model.input(X[:, 0])
    second = model.recurrent(torch.tanh(driven[:, 0]))
    assert second.detach().std(correction=0) == pytest.approx(1, rel=1e-5)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(64, 64), nn.BatchNorm1d(64)

        def forward(self, x):
            return self.layer(self.norm(self.layer(x.flatten(1))))

    model = di.lsuv_(Twice(), X, generator=seeded(0))
    assert model.layer(X.flatten(1)).detach().std(correction=0) == pytest.approx(
        1, rel=1e-5
    )
    assert (model.norm.running_mean == 0).all() and model.norm.num_batches_tracked == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_lsuv_refuses():
    with pytest.raises(ValueError, match="standard deviation of inf"):
        di.lsuv_(MLP(64, 10).double(), X.double() * 1e200)
    for batch in (X[:1] * 0, X * math.nan, X[:0]):
        with pytest.raises(ValueError, match="standard deviation"):
            di.lsuv_(MLP(64, 10), batch)
    for std in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="above 0"):
            di.lsuv_(MLP(64, 10), X, std)


# --- prediction -----------------------------------------------------------------------------------


def test_prediction_for_relu_is_a_power():
    for scale in (0.5, 1.0, 2.0, 3.0):
        forward, backward = di.predict_variance(F.relu, 12, scale, start=0.7)
        steps = torch.arange(12, dtype=torch.float64)
        assert torch.allclose(forward, 0.7 * scale * (scale / 2) ** steps, rtol=1e-6)
        assert torch.allclose(backward, ((scale / 2) ** steps).flip(0), rtol=1e-6)


def test_prediction_for_large_weights_is_the_limit():
    # E[sech^4(s z)] is (4 / 3) / (s sqrt(2 pi)) for large s
    for scale in (1e4, 1e6, 1e8):
        forward, backward = di.predict_variance(torch.tanh, 2, scale)
        slope = scale**0.5 * 4 / 3 / math.sqrt(2 * math.pi)
        assert backward[0].item() == pytest.approx(slope, rel=1e-3)
        assert forward[1].item() == pytest.approx(scale, rel=0.02)
    inplace = di.predict_variance(nn.ReLU(inplace=True), 3, 2.0)
    assert torch.allclose(
        torch.stack(inplace), torch.stack(di.predict_variance(F.relu, 3, 2.0))
    )
    with pytest.raises(ValueError, match="F.relu"):
        di.predict_variance("relu", 3, 2.0)


def test_prediction_for_no_activation_and_for_one_layer():
    forward, backward = di.predict_variance(lambda z: z, 5, 1.5)
    assert torch.allclose(
        forward, 1.5 ** torch.arange(1, 6, dtype=torch.float64), rtol=1e-6
    )
    assert torch.allclose(
        backward, 1.5 ** torch.arange(4, -1, -1, dtype=torch.float64), rtol=1e-6
    )
    forward, backward = di.predict_variance(torch.tanh, 1, 2.0, 3.0)
    assert forward.tolist() == [6.0] and backward.tolist() == [1.0]
    for bad in ((0, 1.0), (3, -1.0), (3, math.nan), (3, 1.0, math.inf)):
        with pytest.raises(ValueError, match="finite weight_scale"):
            di.predict_variance(F.relu, *bad)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("activation", [torch.tanh, F.gelu, F.silu])
def test_prediction_is_what_wide_networks_do(activation, scale):
    forward, backward = di.predict_variance(activation, 6, scale)
    measured, gradients = [], []
    for seed in range(6):
        g, n = seeded(seed), 512
        x = torch.randn(64, n, generator=g)
        weights = [torch.randn(n, n, generator=g) * (scale / n) ** 0.5 for _ in range(6)]
        z, kept = x, []
        for number, weight in enumerate(weights):
            z = (activation(z) if number else z).requires_grad_() @ weight
            kept.append(z)
            z.retain_grad()
        (z * torch.randn(z.shape, generator=g)).sum().backward()
        measured.append([z.var().item() for z in kept])
        gradients.append([(z.grad.var() / kept[-1].grad.var()).item() for z in kept])
    assert np.allclose(np.mean(measured, 0), forward, rtol=0.06)
    assert np.allclose(np.mean(gradients, 0), backward, rtol=0.12)


# --- activation_stats -----------------------------------------------------------------------------


class Zoo(nn.Module):
    """Batch norm, dropout, a layer used twice, in-place and functional activations,
    buffers.
    """

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.twice = nn.Linear(36, 36)
        self.tanh, self.head = nn.Tanh(), nn.Linear(36, 10)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("none", None)

    def forward(self, x):
        self.seen = self.seen + 1
        x = self.relu(self.norm(self.conv(x))).mean(1).flatten(1)
        x = F.leaky_relu(self.twice(x), inplace=True)
        x = self.drop(self.tanh(self.twice(x)))
        return self.head(x)


def everything(model):
    """Return all that a measurement must not change."""
    hooks = [
        len(hooks)
        for module in model.modules()
        for hooks in (
            module._forward_hooks, module._forward_pre_hooks, module._backward_hooks,
            module._backward_pre_hooks,
        )
    ]  # fmt: skip
    return {
        "state": [(name, value.clone()) for name, value in model.state_dict().items()],
        "buffers": [(name, id(value)) for name, value in model.named_buffers()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "needs": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": hooks,
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "grad_mode": torch.is_grad_enabled(),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("loss", [None, cross_entropy])
@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_all_as_it_was(training, loss, fails):
    torch.manual_seed(0)
    model = Zoo().train(training)
    model.norm.eval()
    model.norm.train(training)
    F.cross_entropy(model(X), Y).backward()
    model.conv.weight.requires_grad_(False)
    before = everything(model)
    if fails:
        with pytest.raises(RuntimeError):
            di.activation_stats(model, torch.randn(3, 2, 8, 8), loss)
        before["torch"] = torch.get_rng_state()  # randn above
    else:
        di.activation_stats(model, X, loss)
    after = everything(model)
    for name in before:
        assert same(before[name], after[name]), name


def test_a_user_hook_and_the_batch_stay_too():
    model, calls = nn.Sequential(nn.Identity(), nn.Linear(64, 3)), []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    batch = X.flatten(1).clone().requires_grad_()
    di.activation_stats(model, batch, lambda out: out.sum())
    assert len(model[1]._forward_hooks) == 1 and calls == [1]
    assert batch.grad is None and not batch._backward_hooks
    model(batch).sum().backward()
    assert batch.grad is not None


def test_numbers_are_those_of_a_run_by_hand():
    torch.manual_seed(0)
    model = Zoo().eval()
    stats = di.activation_stats(model, X, cross_entropy)
    assert list(stats) == [
        "conv", "norm", "relu", "twice", "twice.leaky_relu", "tanh", "drop", "head",
    ]  # fmt: skip
    conv = model.conv(X)
    relu = model.norm(conv).relu()
    first = model.twice(relu.mean(1).flatten(1))
    leaky = F.leaky_relu(first)
    second = model.twice(leaky)
    tanh = second.tanh()
    head = model.head(tanh)
    for value in (conv, relu, first, second, tanh, head):
        value.retain_grad()
    F.cross_entropy(head, Y).backward()
    both = torch.cat([first, second]).detach().double()
    assert stats["twice"].calls == 2 and stats["conv"].calls == 1
    assert stats["twice"].mean == pytest.approx(both.mean().item(), abs=1e-7)
    assert stats["twice"].std == pytest.approx(both.std(correction=0).item(), rel=1e-6)
    grads = torch.cat([first.grad, second.grad])
    assert stats["twice"].grad_std == pytest.approx(
        grads.std(correction=0).item(), rel=1e-5
    )
    for name, value in (("conv", conv), ("relu", relu), ("tanh", tanh), ("head", head)):
        assert stats[name].std == pytest.approx(value.std(correction=0).item(), rel=1e-5)
        assert stats[name].grad_std == pytest.approx(
            value.grad.std(correction=0).item(), rel=1e-5
        )
    expected = head.detach().var(0, correction=0).mean().sqrt()
    assert stats["head"].signal == pytest.approx(expected.item(), rel=1e-5)
    expected = torch.stack([first, second]).detach().var(1, correction=0).mean().sqrt()
    assert stats["twice"].signal == pytest.approx(expected.item(), rel=1e-5)
    assert stats["relu"].zeros == pytest.approx((relu == 0).float().mean().item())
    assert 0.2 < stats["relu"].zeros < 0.8 and stats["conv"].zeros == 0
    assert math.isnan(stats["relu"].saturated) and stats["tanh"].saturated == 0
    assert (
        stats["norm"].kind == "BatchNorm2d"
        and stats["twice.leaky_relu"].kind == "leaky_relu"
    )


def test_saturation_counts_flat_ends():
    z = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    slope = 1 - z.tanh().square()
    for module, at, flat in (
        (nn.Tanh(), z, slope < 0.02),
        (nn.Sigmoid(), 2 * z, slope < 0.02),
    ):
        stats = di.activation_stats(module, at)[type(module).__name__]
        assert stats.saturated == pytest.approx(flat.double().mean().item(), abs=1e-3)

    class Functions(nn.Module):
        def forward(self, x):
            return (
                torch.sigmoid(x),
                x.tanh(),
                F.tanh(x),
                x.clone().tanh_(),
                x.clone().relu_(),
            )

    stats = di.activation_stats(Functions(), z)
    assert stats["input.tanh"].calls == 3
    assert stats["input.tanh"].saturated == pytest.approx(
        (slope < 0.02).double().mean().item()
    )
    assert stats["input.relu"].zeros == pytest.approx(0.5, abs=1e-3)


def test_every_kind_of_model():
    rnn = di.activation_stats(RowRNN(8, 10), X, cross_entropy)
    assert isinstance(rnn["recurrent"], di.LayerStats)
    assert rnn["recurrent"].calls == rnn["recurrent.tanh"].calls == 8
    # it starts from a state of zeros
    assert rnn["recurrent"].zeros == pytest.approx(1 / 8)
    transformer = di.activation_stats(RowTransformer(8, 8, 10), X, cross_entropy)
    assert "blocks.1.attention.query" in transformer and "blocks.0.up.gelu" in transformer
    assert all(s.grad_std > 0 for s in transformer.values())
    assert {"conv1.relu", "head"} <= set(di.activation_stats(SmallCNN(1, 10), X))
    whole = di.activation_stats(ResidualCNN(1, 10, norm="batch"), X, containers=True)
    assert {"blocks.0", "blocks.0.conv2", "ResidualCNN"} <= set(whole)
    assert "blocks.0" not in di.activation_stats(ResidualCNN(1, 10), X)
    lstm = di.activation_stats(nn.LSTM(8, 5, batch_first=True), X[:, 0])
    assert lstm["LSTM"].kind == "LSTM"
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert {"self_attn", "linear1", "norm2"} <= set(di.activation_stats(layer, X[:, 0]))
    assert "self_attn" in di.activation_stats(layer.eval(), X[:, 0])

    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 2)

        def forward(self, tokens, scale):
            return {"ids": tokens, "logits": self.head(self.embed(tokens)) * scale}

    tokens = torch.arange(5)
    by_name = di.activation_stats(Many(), {"tokens": tokens, "scale": 2.0})
    by_place = di.activation_stats(Many(), (tokens, 2.0), lambda out: out["logits"].sum())
    assert set(by_name) == set(by_place) == {"embed", "head"}
    assert by_place["head"].grad_std == 0 and by_place["embed"].grad_std > 0


def test_numbers_far_from_one():
    tiny = nn.Sequential(
        nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    ).double()
    with torch.no_grad():
        for layer in tiny:
            layer.weight.copy_(torch.eye(4) * 1e-30)
    stats = di.activation_stats(tiny, torch.randn(50, 4, dtype=torch.float64))
    assert stats["0"].std == pytest.approx(1e-30, rel=0.3)
    assert stats["1"].std == pytest.approx(1e-60, rel=0.3)
    half = nn.Linear(4, 4).half()
    stats = di.activation_stats(half, torch.full((2, 4), 6e4, dtype=torch.float16))
    assert math.isfinite(stats["Linear"].mean) or not math.isfinite(stats["Linear"].std)
    broken = di.activation_stats(nn.Identity(), torch.tensor([1.0, math.nan]))
    assert math.isnan(broken["Identity"].mean)
    empty = di.activation_stats(nn.Linear(4, 4), torch.empty(0, 4))["Linear"]
    assert math.isnan(empty.std) and len(empty.values) == 0


def test_signal_is_what_depends_on_the_rows():
    layer = nn.Linear(64, 8)
    with torch.no_grad():
        layer.weight.zero_()
    stats = di.activation_stats(layer, X.flatten(1))["Linear"]
    assert stats.signal == 0 and stats.std > 0.01
    for one in (X[0].ravel(), X[:1].flatten(1)):
        assert math.isnan(di.activation_stats(layer, one)["Linear"].signal)


def test_no_gradient_is_nan():
    frozen = MLP(64, 10).requires_grad_(False)
    assert all(
        math.isnan(s.grad_std)
        for s in di.activation_stats(frozen, X, cross_entropy).values()
    )
    with torch.no_grad():  # asked for, so measured
        assert di.activation_stats(MLP(64, 10), X, cross_entropy)["head"].grad_std > 0
    assert all(
        math.isnan(s.grad_std) for s in di.activation_stats(MLP(64, 10), X).values()
    )


def test_kept_values_are_few_and_fair():
    model = nn.Sequential(nn.Linear(64, 512))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.arange(512.0))  # each unit has its own value
    stats = di.activation_stats(model, X.flatten(1))["0"]
    assert len(stats.values) == di.SAMPLE and len(stats.values.unique()) > 300
    assert stats.values.mean() == pytest.approx(stats.mean, rel=0.1)
    assert len(di.activation_stats(RowRNN(8, 10), X)["recurrent"].values) <= di.SAMPLE


def test_stats_refuse():
    class Nothing(nn.Module):
        def forward(self, x):
            return (x > 0).long()

    with pytest.raises(ValueError, match="no layer"):
        di.activation_stats(Nothing(), X)
    for loss in (lambda out: out, lambda out: 1.0):
        with pytest.raises(ValueError, match="take the mean"):
            di.activation_stats(MLP(64, 10), X, loss)


# --- what the chapter says ------------------------------------------------------------------------


def test_a_product_of_rotations_keeps_every_length():
    for seed in range(5):
        g = seeded(seed)
        product = torch.eye(32, dtype=torch.float64)
        for _ in range(16):
            matrix = torch.empty(32, 32, dtype=torch.float64)
            product = di.orthogonal_(matrix, generator=g) @ product
        values = torch.linalg.svdvals(product)
        assert (values - 1).abs().max() < 1e-12


@pytest.mark.parametrize("factor", [1.0, 16**-0.5, 0.0])
def test_residual_branches_multiply_the_mean_square(factor):
    grown = []
    for seed in range(4):
        g = seeded(seed)
        x = torch.randn(64, 512, generator=g)
        start = x.square().mean()
        for _ in range(16):
            first = di.kaiming_normal_(torch.empty(512, 512), generator=g)
            last = di.xavier_normal_(torch.empty(512, 512), factor, generator=g)
            x = x + (x @ first.T).relu() @ last.T
        grown.append((x.square().mean() / start).item())
    assert np.mean(grown) == pytest.approx((1 + factor**2) ** 16, rel=0.15)


def test_convolutions_sum_over_the_kernel():
    weight = di.kaiming_normal_(torch.empty(200, 16, 3, 3), generator=seeded(0))
    assert weight.var() == pytest.approx(2 / (9 * 16), rel=0.03)


def test_a_run_on_no_rows_leaves_the_other_runs_as_they_are():
    """As where a mixture gives an expert no rows."""

    class Often(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 3)

        def forward(self, x):
            return torch.cat([self.layer(part) for part in (x[:9], x[:0], x[9:])])

    model, batch = Often(), X.flatten(1)
    found = di.activation_stats(model, batch, cross_entropy_of_three)["layer"]
    want = di.activation_stats(model.layer, batch, cross_entropy_of_three)["Linear"]
    assert found.calls == 3
    for name in ("mean", "std", "zeros", "grad_std"):
        assert getattr(found, name) == pytest.approx(getattr(want, name), rel=1e-6)


def cross_entropy_of_three(outputs):
    return F.cross_entropy(outputs, Y % 3)


def test_a_loss_is_one_number_and_some_layer_runs():
    for loss in (lambda out: out, lambda out: 1.0, lambda out: out[:0].sum(1)):
        with pytest.raises(ValueError, match="must return one number, as a tensor"):
            di.activation_stats(nn.Linear(64, 2), X.flatten(1), loss)
    one = di.activation_stats(nn.Linear(64, 2), X.flatten(1), lambda out: out.sum()[None])
    assert one["Linear"].grad_std == 0
    with pytest.raises(ValueError, match="no layer with a floating-point output ran"):
        di.activation_stats(nn.Identity(), torch.arange(3))


def test_values_for_a_plot_are_spread_over_all_entries_and_runs():
    counts = {}
    for entries in (1, 512, 513, 5000):
        batch = torch.arange(float(entries), dtype=torch.float64)
        values = di.activation_stats(nn.Identity(), batch)["Identity"].values
        counts[entries] = len(values)
        assert values.dtype == torch.float64 and values.isfinite().all()
        if entries > 9:  # a histogram of ten bars is flat
            bars = torch.histc(values, 10, 0, entries)
            assert bars.max() - bars.min() <= 5
    assert counts == {1: 1, 512: 512, 513: 512, 5000: 512}
    rnn = di.activation_stats(RowRNN(8, 10), X)["recurrent.tanh"]
    assert 256 < len(rnn.values) <= di.SAMPLE


def test_errors_name_what_was_given():
    class Named(nn.Module):
        pass

    for call, words in (
        (lambda: di.calculate_fan(torch.empty(3)), r"shape \(3,\) has no fan"),
        (
            lambda: di.calculate_gain("gelu"),
            "'gelu'.* one of leaky_relu, linear, sigmoid",
        ),
        (lambda: di.calculate_gain("leaky_relu", "much"), "param='much'"),
        (lambda: di.calculate_gain("leaky_relu", 1e9), "param=1000000000.0"),
        (lambda: di.calculate_gain("leaky_relu", -1e9), "param=-1000000000.0"),
        (lambda: di.calculate_gain(torch.zeros_like), r"\^2\] is 0.0 for .*zeros_like"),
        (lambda: di.calculate_gain(lambda z: z / 0), r"E\[f\(z\)\^2\] is (inf|nan)"),
        (lambda: di.xavier_normal_(torch.empty(2, 2), -1.0), "gain=-1.0"),
        (lambda: di.kaiming_normal_(torch.empty(2, 2), mode="fan"), "mode='fan'"),
        (lambda: di.initialize_(Named(), di.orthogonal_), "Named has no linear"),
        (
            lambda: di.initialize_(
                nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))),
                di.orthogonal_,
            ),
            "0 is parametrized",
        ),
        (lambda: di.lsuv_(MLP(64, 10), X, 0.0), "std=0.0"),
        (
            lambda: di.lsuv_(nn.Sequential(nn.Linear(64, 2)), X.flatten(1) * 0),
            "output of 0 has a standard deviation of 0.0",
        ),
        (lambda: di.predict_variance("relu", 3, 2.0), "activation='relu'"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_numbers_at_the_edge_are_taken():
    zero = di.predict_variance(F.relu, 1, 0.0, 0.0)
    assert [part.tolist() for part in zero] == [[0.0], [1.0]]
    assert di.calculate_fan(torch.empty(4, 3)) == (3, 4)
    assert (di.orthogonal_(torch.ones(2, 2), 0.0) == 0).all()
    assert di.predict_variance(F.relu, 2, 2.0)[0].tolist() == pytest.approx([2.0, 2.0])


def test_lsuv_leaves_a_layer_that_never_runs_orthogonal():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(64, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.used(x)

    model = di.lsuv_(Idle(), X.flatten(1), 0.1, seeded(0))
    weight = model.idle.weight.detach()
    assert torch.allclose(weight @ weight.T, torch.eye(6), atol=1e-5)


class TwoHeads(nn.Module):
    """Returns a dictionary, and has a head that never runs."""

    def __init__(self):
        super().__init__()
        self.body, self.idle = nn.Linear(64, 3), nn.Linear(64, 3)

    def forward(self, x):
        return {"rows": torch.arange(len(x)), "logits": self.body(x), "none": x[:0]}


def test_outputs_in_a_dictionary_and_weights_that_take_no_part():
    batch = X.flatten(1)
    stats = di.activation_stats(
        TwoHeads(), batch, lambda out: out["logits"].square().sum(), containers=True
    )
    assert list(stats) == ["body", "TwoHeads"]  # the first that holds fractions
    assert stats["TwoHeads"].std == stats["body"].std and stats["body"].grad_std > 0
    nothing = di.activation_stats(TwoHeads(), batch[:0])["body"]
    assert nothing.kind == "Linear" and math.isnan(nothing.zeros)


def test_a_loss_of_nothing_that_learns_has_no_gradient():
    batch = X.flatten(1)
    constant = di.activation_stats(nn.Linear(64, 3), batch, lambda out: torch.tensor(1.0))
    assert math.isnan(constant["Linear"].grad_std)
    frozen, asked = nn.Linear(64, 3).requires_grad_(False), batch.clone().requires_grad_()
    stats = di.activation_stats(frozen, asked, lambda out: out.sum())
    assert math.isnan(stats["Linear"].grad_std) and asked.grad is None
