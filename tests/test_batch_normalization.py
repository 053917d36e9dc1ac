"""Batch normalisation: equal to torch forward, backward and in its buffers; edges;
processes.
"""

import copy
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from threads import Threads
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from dlcourse import batch_normalization as bn
from dlcourse.exercises.batch_normalization import EXERCISES
from dlcourse.lab.launching import launch
from dlcourse.lab.training import use_one_thread
from dlcourse.lab.trials import run_trials

use_one_thread()
PAIRS = {1: (bn.BatchNorm1d, nn.BatchNorm1d), 2: (bn.BatchNorm2d, nn.BatchNorm2d)}
SHAPES = {
    1: [(7, 3), (2, 5), (4, 3, 6), (1, 2, 3)],
    2: [(4, 3, 5, 2), (1, 2, 3, 3), (6, 1, 1, 1)],
}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def randomize(ours, theirs, seed=0):
    """Give both layers the same random parameters."""
    with torch.no_grad():
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        for number, (a, b) in enumerate(pairs):
            a.copy_(normal(*a.shape, seed=seed + number))
            b.copy_(a)
    return ours, theirs


def assert_same(ours, theirs, x, tol, scale=1.0):
    """Compare outputs, gradients (of the input and of each parameter) and buffers."""
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [layer(value) for layer, value in zip((ours, theirs), inputs, strict=True)]
    assert outputs[0].dtype == outputs[1].dtype
    assert torch.allclose(*outputs, rtol=tol, atol=tol)
    upstream = normal(*x.shape, seed=99).to(x.dtype)
    grads = [
        torch.autograd.grad(y, [value, *layer.parameters()], upstream)
        for y, value, layer in zip(outputs, inputs, (ours, theirs), strict=True)
    ]
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=tol, atol=tol * scale)
    assert [n for n, _ in ours.named_buffers()] == [n for n, _ in theirs.named_buffers()]
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert a.dtype == b.dtype and torch.allclose(a, b, rtol=tol, atol=tol)


# --- equal to torch -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize("kind", [1, 2])
def test_batch_norm_equals_torch(kind, momentum, affine, track, dtype):
    tol = 1e-10 if dtype == torch.float64 else 2e-5
    for seed, shape in enumerate(SHAPES[kind]):
        if math.prod(shape) // shape[1] < 2:
            continue
        settings = {"momentum": momentum, "affine": affine, "track_running_stats": track}
        layers = [c(shape[1], eps=1e-3, **settings).to(dtype) for c in PAIRS[kind]]
        ours, theirs = randomize(*layers, seed=seed)
        for step in range(3):
            x = (normal(*shape, seed=10 * seed + step) * 10 ** (step - 1) + step).to(
                dtype
            )
            assert_same(ours, theirs, x, tol)
        ours.eval(), theirs.eval()
        assert_same(ours, theirs, x, tol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_of_one_example_equal_torch(dtype):
    tol = 1e-10 if dtype == torch.float64 else 2e-5
    cases = [
        (bn.LayerNorm, nn.LayerNorm, (6,), {}, (4, 6)),
        (bn.LayerNorm, nn.LayerNorm, (6,), {"bias": False}, (2, 3, 6)),
        (bn.LayerNorm, nn.LayerNorm, ((3, 6),), {"eps": 1e-3}, (2, 3, 6)),
        (bn.LayerNorm, nn.LayerNorm, (6,), {"elementwise_affine": False}, (6,)),
        (bn.RMSNorm, nn.RMSNorm, (6,), {}, (4, 6)),
        (bn.RMSNorm, nn.RMSNorm, ((3, 6),), {"eps": 1e-3}, (2, 3, 6)),
        (bn.RMSNorm, nn.RMSNorm, (6,), {"elementwise_affine": False}, (1, 6)),
        (bn.GroupNorm, nn.GroupNorm, (2, 6), {}, (4, 6)),
        (bn.GroupNorm, nn.GroupNorm, (1, 6), {"eps": 1e-3}, (1, 6, 5)),
        (bn.GroupNorm, nn.GroupNorm, (3, 6), {"affine": False}, (2, 6, 3, 4)),
        (bn.GroupNorm, nn.GroupNorm, (6, 6), {}, (2, 6, 3, 4)),
    ]
    for seed, (own, other, args, settings, shape) in enumerate(cases):
        ours, theirs = randomize(
            *(c(*args, **settings).to(dtype) for c in (own, other)), seed=seed
        )
        for size in (1e-2, 1.0, 1e3):
            x = (size * (normal(*shape, seed=seed) + 0.5)).to(dtype)
            assert_same(ours, theirs, x, tol, scale=1 / size + 1)
        before = ours.train()(x)
        assert torch.equal(ours.eval()(x), before)


@pytest.mark.parametrize("kind", [1, 2])
def test_non_contiguous_constant_and_extreme_inputs(kind):
    shape = SHAPES[kind][0]
    ours, theirs = (c(shape[1]).double() for c in PAIRS[kind])
    x = normal(*shape, seed=1)
    strided = x.transpose(0, -1).contiguous().transpose(0, -1)
    assert not strided.is_contiguous() or x.ndim < 2
    for value in (
        strided,
        torch.full_like(x, 3.0),
        x * 1e-150,
        x * 1e100,
        x.clone().fill_(0),
    ):
        assert_same(ours, theirs, value, 1e-9, scale=1e6)
    if kind == 2:
        assert_same(ours, theirs, x.to(memory_format=torch.channels_last), 1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_spoil_their_channel_only(bad):
    ours, theirs = bn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).double()
    x = normal(5, 3)
    x[2, 1] = bad
    a, b = ours(x), theirs(x)
    assert torch.allclose(a, b, equal_nan=True) and a[:, 1].isnan().all()
    assert a[:, [0, 2]].isfinite().all() and ours.running_var[[0, 2]].isfinite().all()
    for mine, other in (
        (bn.LayerNorm(3), nn.LayerNorm(3)),
        (bn.RMSNorm(3), nn.RMSNorm(3)),
    ):
        a, b = mine.double()(x), other.double()(x)
        assert torch.allclose(a, b, equal_nan=True) and a[[0, 1, 3, 4]].isfinite().all()


def test_state_moves_between_ours_and_torchs():
    for kind, (own, other) in PAIRS.items():
        ours, theirs = randomize(own(3), other(3), seed=5)
        ours(normal(*SHAPES[kind][0], dtype=torch.float32))
        theirs.load_state_dict(ours.state_dict())
        twin = own(3)
        twin.load_state_dict(theirs.state_dict())
        for layer in (theirs, twin):
            for name, value in layer.state_dict().items():
                assert torch.equal(value, ours.state_dict()[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_computes_in_float32(dtype):
    # squares beyond float16
    x = (normal(64, 8, seed=3, dtype=torch.float32) * 2 + 300).to(dtype)
    exact = F.batch_norm(x.double(), None, None, training=True)
    norm = bn.BatchNorm1d(8, affine=False)
    got = norm(x)
    assert got.dtype == dtype and norm.running_var.dtype == torch.float32
    assert (got.double() - exact).abs().max() < 0.02
    wide = nn.BatchNorm1d(8, affine=False)
    wide(x.float())
    assert torch.allclose(norm.running_var, wide.running_var, rtol=1e-4)
    y = bn.RMSNorm(8)(x)
    assert y.dtype == dtype and torch.allclose(y, F.rms_norm(x, (8,)), atol=0.02)
    y = bn.LayerNorm(8, elementwise_affine=False)(x)
    assert (y.double() - F.layer_norm(x.double(), (8,))).abs().max() < 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_layer_in_half_precision_evaluates_in_float32(dtype):
    ours, theirs = (c(8).to(dtype) for c in PAIRS[1])
    x = (normal(64, 8, seed=3, dtype=torch.float32) * 2 + 30).to(dtype)
    for layer in (ours, theirs):
        layer(x), layer.eval()
    theirs.load_state_dict(ours.state_dict())
    assert ours(x).dtype == dtype and torch.allclose(
        ours(x), theirs(x), rtol=0.01, atol=1e-3
    )


def test_under_autocast_it_equals_torch():
    x = normal(16, 6, dtype=torch.float32)
    ours = nn.Sequential(nn.Linear(6, 4), bn.BatchNorm1d(4))
    theirs = nn.Sequential(copy.deepcopy(ours[0]), nn.BatchNorm1d(4))
    outputs = []
    for model in (ours, theirs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs.append(model(x))
        outputs[-1].float().square().sum().backward()
    assert outputs[0].dtype == outputs[1].dtype == torch.bfloat16
    assert torch.allclose(*outputs, atol=0.05)
    assert torch.allclose(ours[1].running_var, theirs[1].running_var, rtol=1e-3)


# --- the backward pass ----------------------------------------------------------------------------


@pytest.mark.parametrize("center", [True, False])
def test_gradcheck(center):
    for shape, dims in (((6, 5), (-2,)), ((4, 5), (-1,)), ((2, 3, 2, 2), (-4, -2, -1))):
        x = normal(*shape, seed=2).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x, dims=dims: bn.Standardize.apply(x, dims, 1e-3, center, None)[0], x
        )


def test_gradient_is_orthogonal_to_what_standardising_removes():
    x = normal(8, 3, seed=4).requires_grad_()
    y, mean, var = bn.Standardize.apply(x, (-2,), 0.0, True, None)
    (grad,) = torch.autograd.grad(y, x, normal(8, 3, seed=5))
    assert grad.sum(0).abs().max() < 1e-12 and (grad * y).sum(0).abs().max() < 1e-12
    assert not mean.requires_grad and not var.requires_grad
    assert torch.allclose(var[0], x.var(0, correction=0))


NORMS = {
    "batch": (bn.BatchNorm1d(3), nn.BatchNorm1d(3), (5, 3)),
    "images": (bn.BatchNorm2d(2), nn.BatchNorm2d(2), (2, 2, 2, 3)),
    "layer": (bn.LayerNorm(3), nn.LayerNorm(3), (3,)),
    "rms": (bn.RMSNorm(4), nn.RMSNorm(4), (2, 4)),
    "group": (bn.GroupNorm(2, 4), nn.GroupNorm(2, 4), (2, 4, 2)),
}


@pytest.mark.parametrize("name", NORMS)
def test_second_derivatives_equal_torch(name):
    ours, theirs, shape = NORMS[name]
    ours, theirs = randomize(
        copy.deepcopy(ours).double(), copy.deepcopy(theirs).double(), seed=3
    )
    x = normal(*shape, seed=1)
    found = []
    for layer in (ours, theirs):
        if name in ("batch", "images"):  # torch.func takes no layer that counts batches
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None

        def energy(values, layer=layer):
            return (layer(values) ** 3).sum()

        hessian = torch.autograd.functional.hessian(energy, x)
        function = torch.func.jacrev(torch.func.grad(energy))(x)
        assert torch.allclose(hessian, function, atol=1e-10)
        # a gradient penalty, as in Wasserstein networks: it reaches the layer's weights too
        inputs = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(energy(inputs), inputs, create_graph=True)
        penalty = (slope.norm() - 1) ** 2
        weights = torch.autograd.grad(penalty, (layer.weight, inputs))
        found.append((hessian, *weights))
    for own, other in zip(*found, strict=True):
        assert torch.allclose(own, other, atol=1e-9, rtol=1e-9)
    assert found[0][0].abs().max() > 1e-3


def test_third_derivatives_of_standardising():
    def standardized(x):
        return bn.Standardize.apply(x, (-1,), 0.1, True, None)[0]

    x = normal(2, 3, seed=5).requires_grad_()
    assert torch.autograd.gradgradcheck(standardized, (x,))

    def slope(x):
        (grad,) = torch.autograd.grad(standardized(x).pow(3).sum(), x, create_graph=True)
        return grad

    assert torch.autograd.gradgradcheck(slope, (x,))


def test_an_outer_gradient_through_an_inner_step_equals_torch():
    """The gradient of MAML: through one step of SGD on other rows."""
    outer = []
    for norm in (bn.LayerNorm(4).double(), nn.LayerNorm(4).double()):
        model = nn.Sequential(nn.Linear(3, 4).double(), norm, nn.Linear(4, 1).double())
        for number, parameter in enumerate(model.parameters()):
            parameter.data = normal(*parameter.shape, seed=number)
        weights = dict(model.named_parameters())
        x, later = normal(5, 3, seed=8), normal(5, 3, seed=9)
        loss = torch.func.functional_call(model, weights, (x,)).square().mean()
        slopes = torch.autograd.grad(loss, tuple(weights.values()), create_graph=True)
        stepped = {
            name: value - 0.1 * slope
            for (name, value), slope in zip(weights.items(), slopes, strict=True)
        }
        loss = torch.func.functional_call(model, stepped, (later,)).square().mean()
        outer.append(torch.autograd.grad(loss, tuple(weights.values())))
    for own, other in zip(*outer, strict=True):
        assert torch.allclose(own, other, atol=1e-10)


@pytest.mark.parametrize("name", NORMS)
def test_reset_parameters_starts_anew(name):
    norm = copy.deepcopy(NORMS[name][0])
    fresh = {key: value.clone() for key, value in norm.state_dict().items()}
    with torch.no_grad():
        for value in norm.state_dict().values():
            value.add_(2)
    norm.reset_parameters()
    for key, value in norm.state_dict().items():
        start = 1.0 if key in ("weight", "running_var") else 0.0
        assert torch.equal(value, torch.full_like(fresh[key], start)), key


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_device_and_dtype_of_a_new_layer(name, dtype):
    kinds = [type(layer) for layer in NORMS[name][:2]]
    sizes = {"batch": (3,), "images": (2,), "layer": (3,), "rms": (4,), "group": (2, 4)}
    for device in ("cpu", "meta"):
        own, other = (kind(*sizes[name], device=device, dtype=dtype) for kind in kinds)
        expected = other.state_dict()
        assert own.state_dict().keys() == expected.keys()
        for key, value in own.state_dict().items():
            assert value.dtype == expected[key].dtype
            assert value.device == expected[key].device
    assert "eps=" in repr(own) and str(sizes[name][-1]) in repr(own)


@pytest.mark.parametrize(
    "norm", [bn.BatchNorm1d(3, bias=False), bn.GroupNorm(1, 3, bias=False)]
)
def test_a_norm_without_shift(norm):
    assert norm.bias is None and list(norm.state_dict())[0] == "weight"
    with torch.no_grad():
        norm.weight.fill_(2)
    out = norm.double()(normal(6, 3))
    assert out.mean().abs() < 1e-12 and 1.9 < out.std(correction=0) < 2


def test_a_checkpoint_without_a_count_of_batches_loads():
    norm = bn.BatchNorm1d(3)
    norm(normal(6, 3).float())
    old = norm.state_dict()
    del old["num_batches_tracked"]
    fresh = bn.BatchNorm1d(3)
    fresh.load_state_dict(old)
    assert torch.equal(fresh.running_mean, norm.running_mean)
    with pytest.raises(RuntimeError, match="running_mean"):
        fresh.load_state_dict({"weight": old["weight"], "bias": old["bias"]})


def test_one_value_a_group_is_refused_as_in_torch():
    for norm in (bn.GroupNorm(4, 4), nn.GroupNorm(4, 4)):
        with pytest.raises(ValueError, match="one value a group|more than 1 value"):
            norm(torch.randn(1, 4))
        assert norm(torch.randn(2, 4)).abs().max() < 1e-4


def test_output_does_not_change_with_the_scale_of_the_input():
    norm, x = bn.BatchNorm1d(3, eps=0.0).double(), normal(9, 3)
    assert torch.allclose(norm(x), norm(50 * x + 7), atol=1e-12)


# --- modes and errors -----------------------------------------------------------------------------


def test_evaluation_looks_at_one_row():
    norm = bn.BatchNorm1d(4).double()
    norm(normal(16, 4, seed=1))
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    x, mates = normal(1, 4, seed=2), 100 * normal(5, 4, seed=3)
    alone, together = norm(x), norm(torch.cat([x, mates]))[:1]
    assert (alone - together).abs().max() < 1e-12
    assert all(
        torch.equal(value, before[name]) for name, value in norm.state_dict().items()
    )
    assert norm(torch.zeros(0, 4).double()).shape == (0, 4)


def test_one_value_a_channel_raises_as_torch_does():
    for own, other, shape in (
        (bn.BatchNorm1d, nn.BatchNorm1d, (1, 3)),
        (bn.BatchNorm1d, nn.BatchNorm1d, (1, 3, 1)),
        (bn.BatchNorm2d, nn.BatchNorm2d, (1, 3, 1, 1)),
    ):
        x = torch.zeros(shape)
        for layer, words in (
            (own(3), "more than 1 value per channel"),
            (other(3), "more than 1"),
        ):
            with pytest.raises(ValueError, match=words):
                layer(x)
            layer.eval()(x)
        with pytest.raises(ValueError, match="more than 1 value"):
            own(3, track_running_stats=False).eval()(x)
    # torch returns nothing and lets var decay
    with pytest.raises(ValueError, match="has 0"):
        bn.BatchNorm1d(3)(torch.zeros(0, 3))


def test_a_batch_that_raises_leaves_the_buffers():
    norm = bn.BatchNorm1d(3)
    with pytest.raises(ValueError):
        norm(torch.zeros(1, 3))
    assert norm.num_batches_tracked == 0 and torch.equal(norm.running_var, torch.ones(3))


def test_inputs_that_do_not_fit():
    for layer, shape, words in (
        (bn.BatchNorm1d(3), (4, 5), "num_features=5"),
        (bn.BatchNorm1d(3), (4, 3, 2, 2), "2 or 3 dimensions"),
        (bn.BatchNorm2d(3), (4, 3), "4 dimensions"),
        (bn.BatchNorm1d(3), (3,), "2 or 3 dimensions"),
        (bn.LayerNorm(3), (4, 5), r"normalized_shape=\(5,\)"),
        (bn.LayerNorm((2, 3)), (3, 3), "must end in"),
        (bn.RMSNorm(3), (4, 5), "must end in"),
        (bn.GroupNorm(2, 4), (4, 6), "num_channels"),
        (bn.GroupNorm(2, 4), (4,), "num_channels"),
    ):
        with pytest.raises(ValueError, match=words):
            layer(torch.zeros(shape))
    for groups in (0, 3, -1):
        with pytest.raises(ValueError, match="does not divide"):
            bn.GroupNorm(groups, 4)
    for layer in (bn.BatchNorm1d(2), bn.LayerNorm(2), bn.RMSNorm(2), bn.GroupNorm(1, 2)):
        with pytest.raises(TypeError, match="floating-point"):
            layer(torch.ones(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="3 dimensions or more"):
        bn.LayerNorm((2, 3, 4))(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="is empty"):
        bn.LayerNorm(())
    for size in (0, -1):
        with pytest.raises(ValueError, match="number of channels"):
            bn.BatchNorm1d(size)
        with pytest.raises(ValueError, match="does not divide"):
            bn.GroupNorm(1, size)


SAME = [
    (bn.BatchNorm1d, nn.BatchNorm1d, (4,)),
    (bn.BatchNorm2d, nn.BatchNorm2d, (4,)),
    (bn.LayerNorm, nn.LayerNorm, ((2, 4),)),
    (bn.LayerNorm, nn.LayerNorm, (4,)),
    (bn.RMSNorm, nn.RMSNorm, (4,)),
    (bn.GroupNorm, nn.GroupNorm, (2, 4)),
]


@pytest.mark.parametrize(("ours", "theirs", "arguments"), SAME)
def test_settings_left_out_are_those_of_torch(ours, theirs, arguments):
    names = ("eps", "momentum", "affine", "track_running_stats", "elementwise_affine")
    found, want = ours(*arguments), theirs(*arguments)
    for name in names:
        assert getattr(found, name, "none") == getattr(want, name, "none")
    shown = [set(layer.extra_repr().split(", ")) for layer in (found, want)]
    assert shown[0] <= shown[1]  # newer versions of torch show more
    for a, b in zip(found.state_dict().items(), want.state_dict().items(), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1])


@pytest.mark.parametrize(("ours", "theirs", "arguments"), SAME)
def test_device_and_dtype_reach_all_parameters_and_buffers(ours, theirs, arguments):
    kind = {"device": "meta", "dtype": torch.float64}
    pairs = zip(
        ours(*arguments, **kind).state_dict().values(),
        theirs(*arguments, **kind).state_dict().values(),
        strict=True,
    )
    for a, b in pairs:
        assert (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape)


def test_standardizing_centers_where_nothing_else_is_said():
    x = normal(6, 3)
    y, mean, var = bn.Standardize.apply(x, (-2,), 1e-5)
    assert torch.equal(mean, x.mean(-2, keepdim=True))
    assert torch.allclose(var, x.var(-2, keepdim=True, correction=0))
    assert torch.allclose(y, bn.Standardize.apply(x, (-2,), 1e-5, True, None)[0])


def test_errors_name_what_was_given():
    for call, words in (
        (lambda: bn.BatchNorm1d(0), "num_features=0"),
        (lambda: bn.BatchNorm1d(3)(torch.zeros(1, 3)), r"\(1, 3\) has 1: use a larger"),
        (
            lambda: bn.BatchNorm2d(3)(torch.zeros(4, 3)),
            r"BatchNorm2d takes inputs of 4 dimensions, .* not \(4, 3\)",
        ),
        (
            lambda: bn.SyncBatchNorm(3)(torch.zeros(3)),
            "SyncBatchNorm takes inputs of 2 or 3 or 4 or 5 dimensions",
        ),
        (
            lambda: bn.BatchNorm1d(3)(torch.zeros(4, 5)),
            r"the input \(4, 5\) has 5 channels in dimension 1, this layer has 3: .*=5",
        ),
        (
            lambda: bn.LayerNorm((2, 3, 4))(torch.zeros(3, 4)),
            r"the input \(3, 4\) needs 3 dimensions",
        ),
        (
            lambda: bn.LayerNorm((2, 3))(torch.zeros(7, 3, 3)),
            r"\(7, 3, 3\) must end in \(2, 3\): .* normalized_shape=\(3, 3\)",
        ),
        (lambda: bn.GroupNorm(3, 4), "num_groups=3 does not divide num_channels=4"),
        (
            lambda: bn.GroupNorm(2, 4)(torch.zeros(5, 6)),
            r"the input \(5, 6\) must be \(batch, 4",
        ),
        (
            lambda: bn.GroupNorm(4, 4)(torch.zeros(1, 4)),
            r"the input \(1, 4\) has one value a group",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="the input is torch.int64"):
        bn.LayerNorm(2)(torch.ones(3, 2, dtype=torch.long))
    with pytest.raises(TypeError, match="fold Identity into Linear"):
        bn.fold_batch_norm(nn.Linear(2, 2), nn.Identity())
    with pytest.raises(TypeError, match="fold BatchNorm1d into ReLU"):
        bn.fold_batch_norm(nn.ReLU(), bn.BatchNorm1d(2))


def test_the_smallest_layers_there_are():
    assert bn.BatchNorm1d(1)(torch.tensor([[0.0], [2.0]])).abs().min() > 0.99
    assert bn.GroupNorm(1, 1)(torch.tensor([[[0.0, 2.0]]])).abs().min() > 0.99
    assert bn.LayerNorm(2)(torch.tensor([0.0, 2.0])).abs().min() > 0.99
    assert bn.RMSNorm(1)(torch.tensor([3.0])).item() == pytest.approx(1)


def test_resetting_and_repr():
    norm = bn.BatchNorm1d(2)
    norm(normal(4, 2, dtype=torch.float32))
    norm.reset_running_stats()
    for a, b in zip(norm.buffers(), nn.BatchNorm1d(2).buffers(), strict=True):
        assert torch.equal(a, b)
    bn.BatchNorm1d(2, track_running_stats=False).reset_running_stats()
    assert "momentum=0.1" in repr(norm)


# --- many replicas at once ------------------------------------------------------------------------


def small(seed, norm=bn.BatchNorm1d):
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(6, 8, bias=False), norm(8), nn.ReLU(), nn.Linear(8, 3)
    )
    with torch.no_grad():
        for layer in (model[1], model[4]):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=g) / 2)
    nn.init.zeros_(model[4].bias)
    return model


def test_stacked_replicas_keep_their_own_statistics():
    x = normal(96, 6, dtype=torch.float32) * 3 + 1
    data = (x, (x[:, 0] > 1).long() + (x[:, 1] > 1).long())
    settings = {"seeds": [0, 1, 2], "lr": [0.05, 0.5], "steps": 20, "batch_size": 16}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # CannotStack among them
        stacked = run_trials(small, data, test=data, **settings)
    loop = run_trials(small, data, test=data, stack=False, **settings)
    theirs = run_trials(
        lambda seed: small(seed, nn.BatchNorm1d), data, test=data, stack=False, **settings
    )
    assert stacked.stacked and not loop.stacked
    for other in (loop, theirs):
        assert abs(stacked.train_loss - other.train_loss).max() < 1e-4
        assert abs(stacked.test["loss"] - other.test["loss"]).max() < 1e-4


@pytest.mark.parametrize("kind", ["layer", "rms", "group", "images", "signals"])
def test_every_norm_stacks(kind):
    def build(seed):
        g = torch.Generator().manual_seed(seed)
        layers = {
            "layer": lambda: [nn.Flatten(), bn.LayerNorm(8)],
            "rms": lambda: [nn.Flatten(), bn.RMSNorm(8)],
            "group": lambda: [bn.GroupNorm(1, 2), nn.Flatten()],
            "images": lambda: [bn.BatchNorm2d(2), nn.Flatten()],
            "signals": lambda: [
                nn.Flatten(2),
                bn.BatchNorm1d(2, momentum=None),
                nn.Flatten(),
            ],
        }[kind]()
        model = nn.Sequential(*layers, nn.Linear(8, 3))
        with torch.no_grad():
            model[-1].weight.copy_(torch.randn(3, 8, generator=g))
        nn.init.zeros_(model[-1].bias)
        return model

    x = normal(32, 2, 2, 2, dtype=torch.float32) + 1
    data, settings = (
        (x, torch.arange(32) % 3),
        {"seeds": [0, 1], "lr": [0.03, 0.1], "steps": 6},
    )
    runs = [
        run_trials(build, data, test=data, stack=s, batch_size=8, **settings)
        for s in (1, 0)
    ]
    assert runs[0].stacked and not runs[1].stacked
    assert abs(runs[0].train_loss - runs[1].train_loss).max() < 1e-4
    assert abs(runs[0].test["loss"] - runs[1].test["loss"]).max() < 1e-4


# --- after training -------------------------------------------------------------------------------


def random_norm(kind, channels, seed, **settings):
    norm = kind(channels, eps=1e-2, **settings).double()
    with torch.no_grad():
        for number, value in enumerate(norm.parameters()):
            value.copy_(normal(*value.shape, seed=seed + number))
    norm.running_mean.copy_(normal(channels, seed=seed + 7))
    norm.running_var.copy_(normal(channels, seed=seed + 8).square() + 0.01)
    return norm.eval()


def without_bias(norm):
    """Return a norm with a weight alone, as torch makes with bias=False in its later
    versions.
    """
    norm.register_parameter("bias", None)
    return norm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_folding_equals_the_pair_and_torch(bias, affine):
    torch.manual_seed(0)
    for seed in range(5):
        for own, other, layer, shape in (
            (bn.BatchNorm1d, nn.BatchNorm1d, nn.Linear(4, 6, bias=bias), (5, 4)),
            (bn.BatchNorm1d, nn.BatchNorm1d, nn.Conv1d(4, 6, 3, bias=bias), (5, 4, 7)),
            (bn.BatchNorm2d, nn.BatchNorm2d, nn.Conv2d(4, 6, 3, 2, 1, bias=bias, groups=2),
             (2, 4, 6, 6)),
        ):  # fmt: skip
            layer, x = layer.double(), normal(*shape, seed=seed)
            ours = random_norm(own, 6, seed, affine=affine)
            theirs = random_norm(other, 6, seed, affine=affine)
            folded = bn.fold_batch_norm(layer, ours)
            assert (folded(x) - ours(layer(x))).abs().max() < 1e-12
            assert (folded(x) - bn.fold_batch_norm(layer, theirs)(x)).abs().max() < 1e-12
            fuse = torch.nn.utils.fusion.fuse_linear_bn_eval
            if layer.weight.ndim > 2:
                fuse = torch.nn.utils.fusion.fuse_conv_bn_eval
            # torch 2.15 stops for a Linear without affine
            if affine or layer.weight.ndim > 2:
                assert torch.allclose(folded.weight, fuse(layer.eval(), theirs).weight)
                assert torch.allclose(folded.bias, fuse(layer.eval(), theirs).bias)
            assert (layer.bias is None) != bias and type(folded) is type(layer)
    theirs = without_bias(random_norm(nn.BatchNorm1d, 6, 0))
    layer, x = nn.Linear(4, 6, bias=bias).double(), normal(5, 4)
    assert (bn.fold_batch_norm(layer, theirs)(x) - theirs(layer(x))).abs().max() < 1e-12
    layer.weight.requires_grad_(False)
    assert not any(
        p.requires_grad for p in bn.fold_batch_norm(layer, theirs).parameters()
    )


def test_what_cannot_be_folded():
    norm = bn.BatchNorm1d(4)
    with pytest.raises(ValueError, match="eval"):
        bn.fold_batch_norm(nn.Linear(3, 4), norm)
    norm.eval()
    with pytest.raises(ValueError, match="5 outputs, the norm 4"):
        bn.fold_batch_norm(nn.Linear(3, 5), norm)
    with pytest.raises(TypeError, match="Linear, Conv1d"):
        bn.fold_batch_norm(nn.ReLU(), norm)
    with pytest.raises(TypeError, match="LayerNorm"):
        bn.fold_batch_norm(nn.Linear(3, 4), bn.LayerNorm(4))
    with pytest.raises(ValueError, match="no running statistics"):
        bn.fold_batch_norm(
            nn.Linear(3, 4), bn.BatchNorm1d(4, track_running_stats=False).eval()
        )


def test_recalibration_equals_update_bn_of_torch():
    x = normal(40, 6, dtype=torch.float32) * 2 + 1
    ours, theirs = small(3), small(3, nn.BatchNorm1d)
    ours[2].running_mean += 5
    before = [p.detach().clone() for p in ours.parameters()]
    assert bn.recalibrate_bn(ours, x.split(8)) == 5
    update_bn(DataLoader(TensorDataset(x), batch_size=8), theirs)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True))
    pairs = small(3)
    bn.recalibrate_bn(pairs, ((part, None) for part in x.split(8)))
    assert torch.equal(pairs[2].running_var, ours[2].running_var)


def test_recalibration_keeps_modes_momenta_and_dropout_off():
    model = nn.Sequential(
        nn.Dropout(0.5), bn.BatchNorm1d(6, momentum=0.3), bn.BatchNorm1d(6)
    )
    model.train()
    model[2].eval()
    x = normal(64, 6, dtype=torch.float32)
    bn.recalibrate_bn(model, [x])
    assert torch.allclose(model[1].running_mean, x.mean(0), atol=1e-6)
    assert torch.allclose(model[1].running_var, x.var(0), atol=1e-5)
    assert [m.training for m in model] == [True, True, False] and model[1].momentum == 0.3
    model[1].running_mean.fill_(2)
    with pytest.raises(ValueError, match="no batches"):
        bn.recalibrate_bn(model, [])
    assert (model[1].running_mean == 2).all() and model.training
    with pytest.raises(ValueError, match="no batch norm"):
        bn.recalibrate_bn(nn.Linear(2, 2), [x])
    with pytest.raises(ValueError, match="more than 1 value"):
        bn.recalibrate_bn(model, [x[:1]])
    assert model[1].momentum == 0.3 and model[1].training and not model[2].training


def test_which_modules_count_as_batch_norm():
    for module in (
        bn.BatchNorm1d(2),
        bn.BatchNorm2d(2),
        bn.SyncBatchNorm(2),
        nn.BatchNorm3d(2),
    ):
        assert bn.is_batch_norm(module)
    for module in (
        bn.LayerNorm(2),
        bn.GroupNorm(1, 2),
        bn.RMSNorm(2),
        nn.InstanceNorm1d(2),
    ):
        assert not bn.is_batch_norm(module)


# --- several processes ----------------------------------------------------------------------------


def test_without_processes_it_is_batch_norm():
    x = normal(6, 3, 2, 2)
    a, b = bn.SyncBatchNorm(3).double(), bn.BatchNorm2d(3).double()
    assert torch.equal(a(x), b(x)) and torch.equal(a.running_var, b.running_var)
    assert a(normal(4, 3)).shape == (4, 3)


def test_conversion_shares_weights_and_reaches_every_layer():
    model = nn.Sequential(
        nn.BatchNorm1d(3), nn.Sequential(bn.BatchNorm2d(2)), nn.ReLU()
    ).eval()
    weight, buffer = model[0].weight, model[0].running_mean
    new = bn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(new[0]) is type(new[1][0]) is bn.SyncBatchNorm and not new[0].training
    assert new[0].weight is weight and new[0].running_mean is buffer
    assert bn.SyncBatchNorm.convert_sync_batchnorm(new)[0] is new[0]
    assert (
        type(bn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm1d(2)))
        is bn.SyncBatchNorm
    )
    plain = nn.BatchNorm1d(2, affine=False, track_running_stats=False)
    assert bn.SyncBatchNorm.convert_sync_batchnorm(plain).running_mean is None
    plain, x = without_bias(nn.BatchNorm1d(2)), normal(5, 2, dtype=torch.float32)
    new = bn.SyncBatchNorm.convert_sync_batchnorm(plain)
    assert new.bias is None and torch.allclose(new(x), plain(x), atol=1e-6)


GROUP = (3, 1)  # of four processes; the others take no part


@pytest.mark.parametrize("sizes", [(5, 2), (6, 0), (3, 1)])
def test_threads_with_unequal_rows_norm_as_one_batch(monkeypatch, sizes):
    threads = Threads(monkeypatch, GROUP, world=range(4))
    x, upstream = normal(sum(sizes), 3, 2), normal(sum(sizes), 3, 2, seed=1)
    layers = [bn.SyncBatchNorm(3, process_group=GROUP).double() for _ in "ab"]
    whole = nn.BatchNorm1d(3).double()
    for layer in (*layers, whole):
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([2.0, 0.5, -1.0]))
    rows = x.clone().requires_grad_()
    want = whole(rows)
    want.backward(upstream)

    def norm(rank):
        place = GROUP.index(rank)
        own = x.split(sizes)[place].clone().requires_grad_()
        y = layers[place](own)
        y.backward(upstream.split(sizes)[place])
        return y.detach(), own.grad

    found = threads.run(norm)
    assert torch.allclose(torch.cat([y for y, _ in found]), want, atol=1e-12)
    assert torch.allclose(torch.cat([slope for _, slope in found]), rows.grad, atol=1e-12)
    for layer in layers:
        for a, b in zip(layer.buffers(), whole.buffers(), strict=True):
            assert torch.allclose(a, b, atol=1e-12)
    slopes = sum(layer.weight.grad for layer in layers)
    assert torch.allclose(slopes, whole.weight.grad, atol=1e-12)
    # evaluation asks nobody: here one thread would wait for ever
    layers[0].eval()
    threads.run(lambda rank: layers[0](x) if rank == 3 else None)


def test_over_threads_there_is_a_first_derivative_only(monkeypatch):
    threads = Threads(monkeypatch, GROUP, world=range(4))
    x = normal(7, 3)
    rows = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(bn.BatchNorm1d(3).double()(rows).pow(3).sum(), rows)

    def slope(rank):
        own = x.split((5, 2))[GROUP.index(rank)].clone().requires_grad_()
        y = bn.SyncBatchNorm(3, process_group=GROUP).double()(own)
        (first,) = torch.autograd.grad(y.pow(3).sum(), own, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            first.sum().backward()
        # neither by the inputs alone nor by the gradient that came in
        factor = torch.ones_like(y, requires_grad=True)
        for upstream, asked in ((torch.ones_like(y), own), (factor, factor)):
            y = bn.SyncBatchNorm(3, process_group=GROUP).double()(own)
            (second,) = torch.autograd.grad(y, own, upstream, create_graph=True)
            with pytest.raises(RuntimeError, match="no second derivative"):
                torch.autograd.grad(second.sum(), asked)
        return first.detach()

    assert torch.allclose(torch.cat(threads.run(slope)), want, atol=1e-12)


def test_a_group_of_one_exchanges_nothing_and_no_group_is_all(monkeypatch):
    x = normal(5, 3, dtype=torch.float32)
    one = Threads(monkeypatch, (0,))
    one.all_reduce = lambda *given, **named: pytest.fail("nobody is there")
    monkeypatch.setattr(torch.distributed, "all_reduce", one.all_reduce)
    one.run(lambda rank: bn.SyncBatchNorm(3, process_group=(0,))(x))
    two = Threads(monkeypatch, (0, 1))
    monkeypatch.setattr(torch.distributed, "group", SimpleNamespace(WORLD=(0, 1)))
    found = two.run(lambda rank: bn.SyncBatchNorm(3)(x[rank : 3 + 2 * rank]))
    want = bn.BatchNorm1d(3)(torch.cat([x[:3], x[1:5]]))
    assert torch.allclose(torch.cat(found), want, atol=1e-5)
    with pytest.raises(ValueError, match=r"this batch \([01], 3\) has 1"):
        two.run(lambda rank: bn.SyncBatchNorm(3)(x[: 1 - rank]))


def test_conversion_hands_settings_and_group_to_every_layer():
    inner = nn.BatchNorm2d(2, eps=0.5, momentum=None, affine=False)
    model = nn.Sequential(nn.Sequential(inner, bn.BatchNorm1d(3, 0.1, 0.3)))
    new = bn.SyncBatchNorm.convert_sync_batchnorm(model, process_group="pair")[0]
    assert [layer.process_group for layer in new] == ["pair", "pair"]
    assert [(layer.eps, layer.momentum) for layer in new] == [(0.5, None), (0.1, 0.3)]
    assert [layer.affine for layer in new] == [False, True]
    assert all(layer.track_running_stats for layer in new)
    assert bn.SyncBatchNorm(3).process_group is None


def on_one_rank(sizes):
    import copy

    import torch
    import torch.distributed as dist

    from dlcourse import batch_normalization as bn

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(sum(sizes), 3, generator=g, dtype=torch.float64) * 2 + 1
    upstream = torch.randn(sum(sizes), 3, generator=g, dtype=torch.float64)
    mine = x.split(sizes)[rank].clone().requires_grad_()
    norm = bn.SyncBatchNorm(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 0.5, -1.0]))
    y = norm(mine)
    y.backward(upstream.split(sizes)[rank])
    weight = norm.weight.grad
    dist.all_reduce(weight)
    try:
        torch.nn.SyncBatchNorm(3)(mine.detach().float())
        refusal = "none"
    except ValueError as error:
        refusal = str(error)
    inputs = x.split(sizes)[rank].clone().requires_grad_()
    (slope,) = torch.autograd.grad(
        copy.deepcopy(norm)(inputs).pow(3).sum(), inputs, create_graph=True
    )
    try:
        slope.sum().backward()
        second = "none"
    except RuntimeError as error:
        second = str(error)
    dist.barrier()
    return {
        "second": second,
        "y": y.tolist(),
        "grad": mine.grad.tolist(),
        "weight": weight.tolist(),
        "buffers": [b.tolist() for b in norm.buffers()],
        "refusal": refusal,
    }


@pytest.mark.parametrize("sizes", [[4, 4], [5, 1], [6, 0]])
def test_two_processes_give_what_the_whole_batch_gives(sizes):
    results = launch(on_one_rank, processes=2, args=[sizes])
    g = torch.Generator().manual_seed(0)
    x = torch.randn(sum(sizes), 3, generator=g, dtype=torch.float64) * 2 + 1
    upstream = torch.randn(sum(sizes), 3, generator=g, dtype=torch.float64)
    norm = nn.BatchNorm1d(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 0.5, -1.0]))
    y = norm(x.requires_grad_())
    y.backward(upstream)

    def joined(name):
        return torch.tensor(
            sum((result[name] for result in results), []), dtype=torch.float64
        )

    assert torch.allclose(joined("y"), y, atol=1e-12)
    assert torch.allclose(joined("grad"), x.grad, atol=1e-12)
    for result in results:
        assert "no second derivative" in result["second"]
        assert torch.allclose(
            torch.tensor(result["weight"]).double(), norm.weight.grad, atol=1e-6
        )
        for a, b in zip(result["buffers"], norm.buffers(), strict=True):
            assert torch.allclose(
                torch.tensor(a, dtype=torch.float64), b.double(), atol=1e-12
            )
        assert "GPU" in result["refusal"]  # torch's own does not run here


# --- what a norm does in a network ----------------------------------------------------------------


def deep_network(norm, seed):
    """Four hidden layers with a norm behind each, in float64."""
    torch.manual_seed(seed)
    layers = []
    for inputs in (6, 12, 12, 12):
        layers += [nn.Linear(inputs, 12, bias=False), norm(12), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(12, 3)).double()


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_bias_before_the_norm_does_nothing(kind):
    x = normal(16, 3, 5, 5) if kind == "convolution" else normal(16, 3)
    layer = nn.Conv2d(3, 8, 3) if kind == "convolution" else nn.Linear(3, 8)
    norm = bn.BatchNorm2d(8) if kind == "convolution" else bn.BatchNorm1d(8)
    pair = nn.Sequential(layer, norm).double()
    nn.init.zeros_(layer.bias)
    without = pair(x)
    nn.init.constant_(layer.bias, 5.0)
    assert (pair(x) - without).abs().max() < 1e-12
    pair(x).sin().sum().backward()
    assert layer.bias.grad.abs().max() < 1e-8 < layer.weight.grad.abs().max()


@pytest.mark.parametrize("norm", [bn.BatchNorm1d, nn.BatchNorm1d, bn.LayerNorm])
def test_weights_times_ten_at_a_hundred_times_their_rate_train_alike(norm):
    """Van Laarhoven (2017): the effective rate is the rate over the squared length."""
    x, targets = normal(64, 6, seed=1), torch.arange(64) % 3
    found = []
    for scale in (1.0, 10.0):
        model = deep_network(norm, seed=0)
        hidden = [layer.weight for layer in model[:-1] if isinstance(layer, nn.Linear)]
        others = [p for p in model.parameters() if all(p is not w for w in hidden)]
        for layer in model:
            if hasattr(layer, "eps"):
                layer.eps = 1e-12
        with torch.no_grad():
            for weight in hidden:
                weight.mul_(scale)
        groups = [{"params": hidden, "lr": 0.1 * scale**2}, {"params": others}]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        losses = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), targets)
            loss.backward()
            cosine = F.cosine_similarity(hidden[0].ravel(), hidden[0].grad.ravel(), dim=0)
            assert (
                abs(cosine) < 1e-8
            )  # the gradient stands at right angles to the weights
            optimizer.step()
            losses.append(loss.item())
        found.append(losses)
    assert max(abs(a - b) for a, b in zip(*found, strict=True)) < 1e-6
    assert found[0][0] - found[0][-1] > 0.01


@pytest.mark.parametrize("size", [8, 32])
def test_the_gradient_behind_a_norm_over_few_values_is_larger(size):
    """For n normal values its mean square grows by (n - 2) / (n - 3) on average."""
    g = torch.Generator().manual_seed(0)
    x, upstream = torch.randn(2, 2**16, size, generator=g)
    y = bn.Standardize.apply(x.requires_grad_(), (-1,), 0.0, True, None)[0]
    square = torch.autograd.grad(y, x, upstream)[0].square().mean().item()
    assert abs(square / ((size - 2) / (size - 3)) - 1) < 0.02


def test_accumulated_gradients_need_a_norm_that_sees_one_row():
    x, targets = normal(64, 6, seed=2), torch.arange(64) % 3
    errors = {}
    for norm in (bn.BatchNorm1d, bn.LayerNorm, lambda width: bn.GroupNorm(4, width)):
        gradients = []
        for pieces in (1, 8):
            model = deep_network(norm, seed=1)
            parts = zip(x.chunk(pieces), targets.chunk(pieces), strict=True)
            for inputs, labels in parts:
                (F.cross_entropy(model(inputs), labels) / pieces).backward()
            gradients.append(torch.cat([p.grad.ravel() for p in model.parameters()]))
        whole, in_pieces = gradients
        errors[type(model[1])] = ((in_pieces - whole).norm() / whole.norm()).item()
        if norm is bn.BatchNorm1d:
            assert model[1].num_batches_tracked == 8
    assert errors[bn.BatchNorm1d] > 0.1
    assert max(errors[bn.LayerNorm], errors[bn.GroupNorm]) < 1e-12


def test_a_frozen_norm_keeps_its_statistics_while_the_weights_train():
    model = deep_network(bn.BatchNorm1d, seed=2)
    model(normal(32, 6, seed=3))
    before = model[1].running_mean.clone(), model[0].weight.clone()
    for norm in filter(bn.is_batch_norm, model.train().modules()):
        norm.eval()
    model(normal(2, 6, seed=4)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    assert torch.equal(model[1].running_mean, before[0])
    assert not torch.equal(model[0].weight, before[1])


def test_a_plain_average_of_the_batches():
    norm = bn.BatchNorm1d(1, momentum=None)
    for values in ([1.0, 3.0, 8.0], [9.0, 11.0]):  # means 4 and 10, variances 13 and 2
        norm(torch.tensor(values)[:, None])
    assert norm.running_mean.item() == pytest.approx(7)
    assert norm.running_var.item() == pytest.approx(7.5)


# --- exercises ------------------------------------------------------------------------------------


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.question[:16])
def test_exercises(exercise, capsys):
    assert exercise.hint_for(exercise.solve) is None
    assert "Not started" in exercise.hint_for(...)
    for name, wrong in exercise.wrong.items():
        hint = exercise.hint_for(wrong.answer)
        assert hint is not None and wrong.hint in hint, (name, hint)
    assert exercise.check(exercise.solve)
    exercise.solution()
    assert "def _solve" in capsys.readouterr().out
    assert not exercise.check(lambda *arguments: None)
