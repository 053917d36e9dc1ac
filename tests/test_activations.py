"""Activations: equal to torch in value and gradient, at the extremes too; invariants;
exercises.
"""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlcourse import activations as act
from dlcourse.exercises.activations import EXERCISES
from dlcourse.lab.launching import launch
from dlcourse.lab.models import MLP
from dlcourse.lab.training import fit, use_one_thread
from dlcourse.lab.trials import CannotStack, run_trials

use_one_thread()
PAIRS = {
    "relu": (act.relu, F.relu),
    "leaky_relu": (act.leaky_relu, F.leaky_relu),
    "leaky_relu .3": (lambda x: act.leaky_relu(x, 0.3), lambda x: F.leaky_relu(x, 0.3)),
    "leaky_relu -1": (lambda x: act.leaky_relu(x, -1.0), lambda x: F.leaky_relu(x, -1.0)),
    "sigmoid": (act.sigmoid, torch.sigmoid),
    "tanh": (act.tanh, torch.tanh),
    "gelu": (act.gelu, F.gelu),
    "gelu tanh": (lambda x: act.gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "silu": (act.silu, F.silu),
}
SOFT = {
    "softmax": (act.softmax, F.softmax),
    "log_softmax": (act.log_softmax, F.log_softmax),
}
# one unit in the last place at these points, and what float32 offers
TOLERANCE = {torch.float64: (1e-12, 1e-13), torch.float32: (1e-5, 1e-5)}
SPECIAL = [
    -math.inf, -1e300, -1000.0, -745.0, -40.0, -8.0, -1e-8, -0.0,
    0.0, 1e-8, 8.0, 40.0, 745.0, 1000.0, 1e300, math.inf, math.nan,
]  # fmt: skip


def subnormals(dtype):
    """Return subnormal numbers, by their bits: a literal 5e-324 is read as 0 where they
    are off.
    """
    bits, whole = (52, torch.int64) if dtype is torch.float64 else (23, torch.int32)
    small = torch.tensor([1, 3, 5, 1_000_003, 2**bits - 1], dtype=whole).view(dtype)
    both = torch.cat([small, -small])
    assert (both != 0).all() and both[0] + both[0] == both[0] * 2 > 0
    return both


@pytest.fixture
def keep_denormals():
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(True)


def both(pair, x, weight=None, **settings):
    """Return (value, gradient) of ours and of theirs at x."""
    results = []
    for function in pair:
        point = x.detach().clone().requires_grad_()
        value = function(point, **settings)
        weight = torch.ones_like(value) if weight is None else weight
        (grad,) = torch.autograd.grad(value, point, weight)
        results.append((value.detach(), grad))
    return results


def assert_same(pair, x, weight=None, rtol=None, atol=None, **settings):
    tolerance = TOLERANCE[x.dtype] if rtol is None else (rtol, atol)
    for ours, theirs in zip(*both(pair, x, weight, **settings), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        torch.testing.assert_close(
            ours, theirs, rtol=tolerance[0], atol=tolerance[1], equal_nan=True
        )


def random_tensor(seed, dtype=torch.float64, low=0, high=4):
    """Return a tensor of random shape (empty ones too) and size, now and then not
    contiguous.
    """
    g = torch.Generator().manual_seed(seed)
    ndim = int(torch.randint(low, high, (), generator=g))
    shape = torch.randint(0 if seed % 9 == 0 else 1, 7, (ndim,), generator=g).tolist()
    x = torch.randn(shape, generator=g, dtype=dtype) * 10.0 ** (seed % 5 - 2)
    if seed % 3 == 0 and ndim > 1:
        x = x.transpose(0, -1)
    if seed % 4 == 0 and ndim:
        x = x[..., ::2]
    return x


# --- hidden units ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_to_torch_on_random_tensors(name, dtype):
    torch.manual_seed(0)
    for seed in range(60):
        x = random_tensor(seed, dtype)
        assert_same(PAIRS[name], x, torch.randn_like(x))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_to_torch_at_special_points(name, dtype, keep_denormals):
    special = [v for v in SPECIAL if dtype is torch.float64 or abs(v) != 1e300]
    # in torch the cube overflows, and the slope is NaN; here it is not
    if name == "gelu tanh":
        special = [v for v in special if not abs(v) > 1e100]
    # torch 2.15: inf alone is inf, four are NaN
    if name == "gelu" and dtype is torch.float32:
        special.remove(math.inf)
    assert_same(
        PAIRS[name], torch.cat([torch.tensor(special, dtype=dtype), subnormals(dtype)])
    )
    if name in ("relu", "leaky_relu", "gelu", "silu"):
        assert PAIRS[name][0](torch.full((8,), math.inf, dtype=dtype)).isposinf().all()


@pytest.mark.parametrize("name", PAIRS)
def test_subnormal_values_to_the_last_place(name, keep_denormals):
    x = subnormals(torch.float64)
    (ours, slope), (theirs, their_slope) = both(PAIRS[name], x)
    assert (ours - theirs).abs().max() <= x[0]  # the smallest number there is
    assert torch.equal(slope, their_slope)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "leaky_relu .3"])
def test_piecewise_linear_ones_are_equal_to_the_bit(name):
    x = torch.cat([torch.randn(1000), torch.zeros(3), torch.tensor([math.nan, math.inf])])
    for ours, theirs in zip(*both(PAIRS[name], x), strict=True):
        assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))


def test_slopes_at_zero():
    x = torch.zeros(1, requires_grad=True)
    wanted = {"relu": 0.0, "leaky_relu": 0.01, "sigmoid": 0.25, "tanh": 1.0, "gelu": 0.5}
    for name, slope in (wanted | {"silu": 0.5, "gelu tanh": 0.5}).items():
        (grad,) = torch.autograd.grad(PAIRS[name][0](x), x)
        assert grad.item() == pytest.approx(slope, abs=1e-7), name


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_are_those_of_the_values(name):
    x = torch.linspace(-6, 6, 13, dtype=torch.float64) + 0.03
    assert torch.autograd.gradcheck(PAIRS[name][0], x.requires_grad_())


@pytest.mark.parametrize("name", PAIRS)
def test_second_gradients(name):
    x = (torch.linspace(-6, 6, 13, dtype=torch.float64) + 0.03).requires_grad_()
    assert torch.autograd.gradgradcheck(PAIRS[name][0], x)


@pytest.mark.parametrize("name", PAIRS)
def test_the_input_is_left_alone_and_half_precisions_work(name):
    ours, theirs = PAIRS[name]
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.linspace(-12, 12, 101).to(dtype)
        before = x.clone()
        value = ours(x)
        assert torch.equal(x, before) and value.dtype == dtype and value.isfinite().all()
        gap = (value.double() - theirs(x.double())).abs().max()
        assert gap <= 0.15 if dtype is torch.bfloat16 else gap <= 0.02


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_gradients_of_huge_numbers_are_finite(dtype):
    far = [40.0, 200.0, 1000.0, 6e4] if dtype is torch.float16 else [200.0, 1e4, 1e30]
    x = torch.tensor(far + [-v for v in far], dtype=dtype)
    for name, (ours, _) in PAIRS.items():
        point = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(ours(point).sum(), point)
        assert grad.isfinite().all(), name


def test_both_tails_are_exact():
    x = torch.tensor([20.0, 40.0, 700.0], dtype=torch.float64)
    assert torch.allclose(act.sigmoid(-x), torch.exp(-x), rtol=1e-8, atol=0)
    small = torch.tensor([1e-5, 1e-10, 1e-300], dtype=torch.float64)
    assert torch.allclose(act.tanh(small), small, rtol=1e-9, atol=0)
    reference = torch.special.log_ndtr(-x[:1] / 2).exp() * -x[:1] / 2  # x = -10
    assert torch.allclose(act.gelu(-x[:1] / 2), reference, rtol=1e-10, atol=0)


def test_invariants():
    x = torch.randn(1000, dtype=torch.float64) * 5
    one = torch.ones_like(x)
    assert torch.allclose(act.sigmoid(x) + act.sigmoid(-x), one, atol=1e-15)
    assert torch.allclose(act.tanh(x), 2 * act.sigmoid(2 * x) - 1, atol=1e-14)
    assert torch.allclose(act.gelu(x) - act.gelu(-x), x, atol=1e-14)
    assert torch.allclose(act.silu(x) - act.silu(-x), x, atol=1e-14)
    assert torch.equal(act.relu(4 * x), 4 * act.relu(x))
    assert torch.equal(act.leaky_relu(x, 1.0), x)
    for function, low, high in ((act.sigmoid, 0, 1), (act.tanh, -1, 1)):
        values = function(x * 100)
        assert values.min() >= low and values.max() <= high


def test_tanh_form_of_gelu():
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    gap = (act.gelu(x) - act.gelu(x, "tanh")).abs().max().item()
    assert 4e-4 < gap < 5e-4
    ends = act.gelu(torch.tensor([math.inf, -math.inf]), "tanh")
    assert ends[0] == math.inf and ends[1].isnan()
    with pytest.raises(ValueError, match="'none' or 'tanh'"):
        act.gelu(x, "erf")


# --- SwiGLU ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_swiglu_equals_its_formula_in_torch(bias):
    layer = act.SwiGLU(
        6, 4, 3, bias=bias, generator=torch.Generator().manual_seed(0)
    ).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p))

    def theirs(x):
        gate = F.linear(x, layer.gate.weight, layer.gate.bias)
        up = F.linear(x, layer.up.weight, layer.up.bias)
        return F.linear(F.silu(gate) * up, layer.down.weight, layer.down.bias)

    for shape in ((6,), (5, 6), (2, 3, 6), (0, 6)):
        x = torch.randn(shape, dtype=torch.float64)
        assert_same((layer, theirs), x, torch.randn(*shape[:-1], 3, dtype=torch.float64))
        for ours, other in zip(
            torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())),
            torch.autograd.grad(theirs(x).square().sum(), list(layer.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-12)


def test_swiglu_counts_start_and_errors():
    plain = 2 * 48 * 96
    assert sum(p.numel() for p in act.SwiGLU(48, 96 * 2 // 3).parameters()) == plain
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 256, generator=g)
    size = act.SwiGLU(256, 512, generator=g)(x).square().mean().item()
    assert size == pytest.approx(1.0, rel=0.1)
    first, second = (
        act.SwiGLU(4, 4, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first.down.weight, second.down.weight)
    assert act.SwiGLU(1, 1, 1)(torch.ones(2, 1)).shape == (2, 1)
    for sizes in ((0, 4), (4, 0), (4, 4, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            act.SwiGLU(*sizes)


@pytest.mark.parametrize("given", [True, False])
def test_starts_draw_from_the_given_generator_alone(given):
    def drawn(seed):
        g = torch.Generator().manual_seed(3) if given else None
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        layer = act.SwiGLU(4, 4, generator=g).down
        kept = torch.equal(torch.get_rng_state(), before)
        return layer.weight, kept

    (first, kept), (second, _) = drawn(0), drawn(1)
    assert torch.equal(first, second) == kept == given


# --- outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_soft_functions_equal_torch(name, dtype):
    torch.manual_seed(0)
    for seed in range(60):
        x = random_tensor(seed, dtype)
        for dim in range(-x.ndim, x.ndim) if x.ndim else (0, -1):
            assert_same(SOFT[name], x, torch.randn_like(x), dim=dim)


@pytest.mark.parametrize("name", SOFT)
def test_soft_functions_at_special_rows(name, keep_denormals):
    inf, nan = math.inf, math.nan
    rows = [
        [1000.0, 0.0, -1000.0], [-1000.0, -1000.0, -1001.0], [0.0, 0.0, 0.0], [1e300, -1e300, 0.0],
        subnormals(torch.float64)[:3].tolist(), [-inf, 0.0, 1.0], [-inf, -inf, -inf],
        [inf, 0.0, 1.0],
        [nan, 0.0, 1.0], [inf, inf, 0.0], [-inf, -inf, 3.0],
    ]  # fmt: skip
    x = torch.tensor(rows, dtype=torch.float64)
    weight = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64).expand_as(x)
    assert_same(SOFT[name], x, weight, dim=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_numbers_are_rounded_once(dtype):
    x = torch.linspace(-6, 6, 2000).to(dtype)
    for name in ("sigmoid", "tanh", "gelu", "silu"):
        ours, theirs = PAIRS[name]
        assert ulps(ours(x), theirs(x.double()).to(dtype)) <= 1, name
    exact = F.gelu(x.double(), approximate="tanh").to(dtype)
    off = (act.gelu(x, approximate="tanh") - exact).abs()
    # 1 + tanh cancels on the left, in torch's formula too
    assert (off <= torch.finfo(dtype).eps * exact.abs() + 1e-6).all()
    rows = x.view(20, 100)
    for ours, theirs in SOFT.values():
        exact = theirs(rows.double(), dim=1).to(dtype)
        assert ulps(ours(rows, dim=1), exact) <= 1


def ulps(ours, theirs):
    """Return how many 16-bit numbers lie between the two, at most."""
    return (ours.view(torch.int16).int() - theirs.view(torch.int16).int()).abs().max()


def test_softmax_invariants():
    x = torch.randn(50, 7, dtype=torch.float64) * 10
    ones = torch.ones(50, dtype=torch.float64)
    assert torch.allclose(act.softmax(x).sum(1), ones, atol=1e-14)
    assert torch.allclose(act.log_softmax(x).exp().sum(1), ones, atol=1e-13)
    assert torch.allclose(act.softmax(x + 1e4), act.softmax(x), atol=1e-11)


def random_logits(seed):
    g = torch.Generator().manual_seed(seed)
    n, c = (int(torch.randint(1, 9, (), generator=g)) for _ in range(2))
    logits = torch.randn(n, c, generator=g, dtype=torch.float64) * 10.0 ** (seed % 5 - 1)
    return (
        logits,
        torch.randint(0, c, (n,), generator=g),
        torch.rand(n, c, generator=g).double(),
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_equal_torch(reduction):
    for seed in range(80):
        logits, classes, soft = random_logits(seed)
        for ours, theirs, targets in (
            (act.cross_entropy, F.cross_entropy, classes),
            (
                act.binary_cross_entropy_with_logits,
                F.binary_cross_entropy_with_logits,
                soft,
            ),
        ):
            pair = (
                lambda x, f=ours, t=targets: f(x, t, reduction),
                lambda x, f=theirs, t=targets: f(x, t, reduction=reduction),
            )
            assert_same(pair, logits, rtol=1e-12, atol=1e-12)


def test_ignored_targets_count_for_nothing():
    logits = torch.randn(5, 3, dtype=torch.float64)
    targets = torch.tensor([0, -100, 2, -100, 1])
    for reduction in ("mean", "sum", "none"):
        pair = (
            lambda x, r=reduction: act.cross_entropy(x, targets, r),
            lambda x, r=reduction: F.cross_entropy(x, targets, reduction=r),
        )
        assert_same(pair, logits, rtol=1e-12, atol=1e-12)
    one_class = torch.randn(2, 1)  # an ignored row has no other place to look
    assert act.cross_entropy(one_class, torch.tensor([0, -100])) == 0
    other = targets.where(targets != -100, 1)
    assert act.cross_entropy(logits, other, ignore_index=1).allclose(
        F.cross_entropy(logits, other, ignore_index=1)
    )


def test_losses_at_special_points(keep_denormals):
    x = torch.tensor([v for v in SPECIAL if abs(v) < 1e100], dtype=torch.float64)
    x = torch.cat([x, subnormals(torch.float64)])
    for target in (0.0, 0.3, 1.0):
        y = torch.full_like(x, target)
        pair = (
            lambda v, y=y: act.binary_cross_entropy_with_logits(v, y, "none"),
            lambda v, y=y: F.binary_cross_entropy_with_logits(v, y, reduction="none"),
        )
        assert_same(pair, x)
    logits = torch.tensor(
        [[1000.0, 0.0], [0.0, 0.0], [-1000.0, 1000.0]], dtype=torch.float64
    )
    for c in (0, 1):
        y = torch.full((3,), c)
        pair = (
            lambda v, y=y: act.cross_entropy(v, y),
            lambda v, y=y: F.cross_entropy(v, y),
        )
        assert_same(pair, logits)


def test_gradient_is_output_minus_target():
    logits, classes, soft = random_logits(7)
    x = logits.requires_grad_()
    one_hot = F.one_hot(classes, logits.shape[1]).double()
    for loss, wanted in (
        (act.cross_entropy(x, classes, "sum"), act.softmax(x) - one_hot),
        (act.binary_cross_entropy_with_logits(x, soft, "sum"), act.sigmoid(x) - soft),
    ):
        (grad,) = torch.autograd.grad(loss, x)
        torch.testing.assert_close(grad, wanted.detach(), rtol=1e-12, atol=1e-13)


def test_losses_refuse_what_cannot_be_meant():
    x = torch.zeros(3, 2)
    for targets in (
        torch.zeros(2, dtype=torch.long),
        torch.zeros(3, 2, dtype=torch.long),
    ):
        with pytest.raises(ValueError, match=r"give \(n, classes\) and \(n,\)"):
            act.cross_entropy(x, targets)
    with pytest.raises(TypeError, match="int64"):
        act.cross_entropy(x, torch.zeros(3))
    with pytest.raises(ValueError, match="broadcast"):
        act.binary_cross_entropy_with_logits(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="'mean', 'sum' or 'none'"):
        act.binary_cross_entropy_with_logits(x, x, reduction="max")
    with pytest.raises(ValueError, match="'mean', 'sum' or 'none'"):
        act.cross_entropy(x, torch.zeros(3, dtype=torch.long), "max")


# --- what to watch --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_dead_units_do_not_depend_on_the_cuts(seed):
    g = torch.Generator().manual_seed(seed)
    outputs = torch.relu(torch.randn(40, 12, generator=g) - torch.linspace(0, 5, 12))
    dead = act.dead_fraction(outputs)
    assert dead == pytest.approx(np.mean((outputs.numpy() == 0).all(0)))
    for size in (1, 7, 40):
        assert act.dead_fraction(outputs.split(size)) == dead
        masks = [act.ever_active(part) for part in outputs.split(size)]
        assert torch.equal(torch.stack(masks).any(0), act.ever_active(outputs))


def test_dead_units_of_images_sequences_and_nan():
    images = torch.zeros(2, 3, 4, 4)
    images[1, 2, 0, 3] = -0.5
    assert act.ever_active(images, dim=1).tolist() == [False, False, True]
    assert act.dead_fraction(images, dim=1) == pytest.approx(2 / 3)
    assert act.ever_active(torch.tensor([[[0.0, math.nan]], [[0.0, 0.0]]])).tolist() == [
        False,
        True,
    ]
    assert act.ever_active(torch.tensor([0.0, 2.0])).tolist() == [False, True]
    assert act.dead_fraction([torch.zeros(0, 3), torch.eye(3)[:2]]) == pytest.approx(
        1 / 3
    )
    for nothing in ([], torch.zeros(3, 0), torch.zeros(0, 3)):
        with pytest.raises(ValueError, match="no units"):
            act.dead_fraction(nothing)
    with pytest.raises(ValueError, match="3 and of 1 units"):
        act.dead_fraction([torch.zeros(2, 3), torch.ones(2, 1)])
    with pytest.raises(ValueError, match="single number"):
        act.dead_fraction(torch.tensor(0.0))


def test_gradient_ratio():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4))
    with pytest.raises(ValueError, match="call backward first"):
        act.gradient_ratio(model)
    model(torch.ones(5, 2)).square().sum().backward()
    first, last = (model[i].weight.grad.square().mean().sqrt() for i in (0, 2))
    ratio = act.gradient_ratio(model)
    assert ratio == pytest.approx((first / last).item(), rel=1e-6)
    for p in model.parameters():
        p.grad *= 1e-3
    assert act.gradient_ratio(model) == pytest.approx(ratio, rel=1e-6)
    model[2].weight.grad.zero_()
    assert act.gradient_ratio(model) == math.inf
    model[0].weight.grad.zero_()
    assert math.isnan(act.gradient_ratio(model))


# --- a start that fits ----------------------------------------------------------------------------


def test_moments_equal_quadrature():
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    z = torch.from_numpy(nodes).requires_grad_()
    for f in (torch.tanh, F.gelu, F.silu, torch.sigmoid):
        value, slope = act.moments(f)
        (grad,) = torch.autograd.grad(f(z).sum(), z)
        for found, exact in ((value, f(z).detach() ** 2), (slope, grad**2)):
            wanted = (weights * exact.numpy()).sum() / math.sqrt(2 * math.pi)
            assert found == pytest.approx(wanted, rel=1e-6)
    assert act.moments(act.relu) == pytest.approx((0.5, 0.5), rel=1e-9)
    assert act.moments(lambda x: act.leaky_relu(x, 0.2))[0] == pytest.approx(
        0.52, rel=1e-9
    )
    assert act.moments(lambda x: 3 * x) == pytest.approx((9.0, 9.0), rel=1e-9)


def test_gains():
    assert act.forward_gain(F.relu) == pytest.approx(nn.init.calculate_gain("relu"))
    leaky = nn.init.calculate_gain("leaky_relu", 0.2)
    assert act.forward_gain(lambda x: F.leaky_relu(x, 0.2)) == pytest.approx(leaky)
    for f in (act.relu, act.leaky_relu, lambda x: 1 * x):
        assert act.gradient_factor(f) == pytest.approx(1.0)
    for nothing in (lambda x: 0 * x, torch.zeros_like):
        with pytest.raises(ValueError, match="0 everywhere"):
            act.forward_gain(nothing)
    with pytest.raises(ValueError, match="not finite"):
        act.forward_gain(torch.sqrt)
    assert act.gradient_factor(torch.ones_like) == 0
    assert act.moments(nn.ReLU(inplace=True)) == act.moments(F.relu)
    assert (
        act.gradient_factor(torch.sigmoid) < 0.4 and act.gradient_factor(torch.tanh) < 1.1
    )


# --- in training ----------------------------------------------------------------------------------


def test_training_with_ours_equals_training_with_torch():
    x = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(60) % 3
    for ours, theirs in (
        PAIRS[name] for name in ("relu", "tanh", "gelu", "silu", "sigmoid")
    ):
        ends = []
        for f, loss in ((ours, act.cross_entropy), (theirs, F.cross_entropy)):
            model = MLP(16, 3, width=8, activation=f, seed=1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            fit(model, (x, y), optimizer, steps=20, loss_fn=loss)
            ends.append(torch.cat([p.detach().ravel() for p in model.parameters()]))
        assert torch.allclose(*ends, atol=1e-5)


def test_everything_stacks_in_run_trials():
    x = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def build(seed):
        return nn.Sequential(
            nn.Flatten(),
            act.SwiGLU(16, 8, generator=torch.Generator().manual_seed(seed)),
            nn.Linear(16, 3),
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error", CannotStack)
        for f in (act.relu, act.leaky_relu, act.sigmoid, act.tanh, act.gelu, act.silu):
            run_trials(
                lambda seed, f=f: MLP(16, 3, width=4, activation=f, seed=seed),
                (x, torch.arange(60) % 3),
                seeds=range(2),
                lr=0.1,
                steps=2,
                loss_fn=act.cross_entropy,
            )
        torch.manual_seed(0)
        run_trials(build, (x, torch.arange(60) % 3), seeds=range(2), lr=0.1, steps=2)


def test_a_dead_unit_of_the_first_layer_stays_as_it_is():
    x = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for f, still in ((act.relu, True), (act.leaky_relu, False)):
        model = MLP(16, 3, width=8, activation=f, seed=1)
        with torch.no_grad():
            model.layers[0].bias[3] = -100.0
        weights = model.layers[0].weight.detach()[3].clone()
        fit(
            model,
            (x, torch.arange(60) % 3),
            torch.optim.SGD(model.parameters(), lr=0.3),
            steps=20,
        )
        assert torch.equal(model.layers[0].weight.detach()[3], weights) == still


def counted():
    import torch
    from accelerate import Accelerator

    from dlcourse.activations import dead_fraction, ever_active

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    rows = torch.relu(
        torch.randn(16, 40, generator=torch.Generator().manual_seed(0)) - 1.5
    )
    mine = rows[accelerator.process_index :: 2]
    joined = accelerator.reduce(ever_active(mine).float(), "sum") > 0
    return dead_fraction(mine), 1 - joined.double().mean().item(), dead_fraction(rows)


def test_masks_join_over_processes():
    for alone, joined, whole in launch(counted):
        assert joined == whole and alone > whole


# --- what the chapter says ------------------------------------------------------------------------


def test_layers_without_activation_are_one_matrix():
    torch.manual_seed(0)
    layers = nn.Sequential(*[nn.Linear(6, 6) for _ in range(10)]).double()
    matrix = torch.eye(6, dtype=torch.float64)
    shift = torch.zeros(1, 6, dtype=torch.float64)
    for layer in layers:
        matrix = layer.weight @ matrix
        shift = layer(shift)
    x = torch.randn(50, 6, dtype=torch.float64)
    torch.testing.assert_close(layers(x), x @ matrix.T + shift, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_micro_batches_change_no_gradient(activation):
    x = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    y = torch.arange(64) % 3
    grads = []
    for pieces in (1, 4):
        model = MLP(16, 3, width=8, depth=4, activation=activation).double()
        for a, b in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
            (act.cross_entropy(model(a), b) / pieces).backward()
        grads.append(torch.cat([p.grad.ravel() for p in model.parameters()]))
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("activation", [torch.sigmoid, torch.tanh, F.relu, F.gelu])
def test_gradient_factor_predicts_the_gradient_through_depth(activation):
    """Measured over 18 layers at the start, the factor of one layer is within .08."""
    x = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(256) % 10
    logs = []
    for seed in range(8):
        model = MLP(64, 10, width=64, depth=20, activation=activation, seed=seed)
        layers = [*model.layers, model.head]
        g = torch.Generator().manual_seed(seed)
        gain = 1.0  # of inputs of mean square 1
        for layer in layers:
            nn.init.normal_(layer.weight, std=gain * layer.in_features**-0.5, generator=g)
            nn.init.zeros_(layer.bias)
            gain = act.forward_gain(activation)
        F.cross_entropy(model(x), y).backward()
        logs.append(math.log(act.gradient_ratio(model.layers[1:])))
    factor = math.exp(np.mean(logs) / 18)
    assert factor == pytest.approx(act.gradient_factor(activation), abs=0.08)


def test_the_accepted_deviation_trains_at_depth_20_and_the_plain_one_does_not():
    x = torch.randn(256, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = (x.flatten(1)[:, :3]).argmax(1)
    ends = {}
    for name, std in (("solution", EXERCISES[1].solve), ("plain", lambda n, f: n**-0.5)):
        losses = []
        for seed in range(5):
            model = MLP(16, 3, width=32, depth=20, activation="relu", seed=seed)
            g = torch.Generator().manual_seed(seed)
            for layer in model.layers:
                deviation = std(layer.in_features, F.relu)
                nn.init.normal_(layer.weight, std=deviation, generator=g)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
            history = fit(model, (x, y), optimizer, steps=150, stop_on_nan=False)
            losses.append(np.mean(history.loss[-10:]))
        ends[name] = np.mean(losses)
    assert ends["plain"] > 1.05 and ends["solution"] < 0.9


# --- what is left out, and what is wrong ----------------------------------------------------------


def test_settings_left_out_are_those_of_torch():
    x = torch.linspace(-3, 3, 12, dtype=torch.float64).view(3, 4)
    y = torch.tensor([0, 3, -100])
    pairs = [
        (act.leaky_relu(x), F.leaky_relu(x)),
        (act.gelu(x), F.gelu(x)),
        (act.softmax(x), x.softmax(-1)),
        (act.log_softmax(x), x.log_softmax(-1)),
        (act.cross_entropy(x, y), F.cross_entropy(x, y)),
        (
            act.binary_cross_entropy_with_logits(x, x.sigmoid()),
            F.binary_cross_entropy_with_logits(x, x.sigmoid()),
        ),
    ]
    for ours, theirs in pairs:
        assert torch.allclose(ours, theirs, atol=1e-12)
    layer = act.SwiGLU(4, 6)
    assert layer.down.out_features == 4
    assert all(part.bias is None for part in (layer.gate, layer.up, layer.down))
    layer = act.SwiGLU(4, 6, bias=True)
    assert all((part.bias == 0).all() for part in (layer.gate, layer.up, layer.down))
    assert act.ever_active(torch.tensor([[0.0, 1.0]])).tolist() == [False, True]
    assert act.dead_fraction(torch.tensor([[0.0, 1.0, 2.0, 0.0]])) == 0.5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: act.gelu(torch.ones(1), "erf"), "approximate='erf'"),
        (lambda: act.SwiGLU(0, 1), "at least 1"),
        (lambda: act.SwiGLU(0, 1, 1), "at least 1"),
        (lambda: act.SwiGLU(1, 0), "at least 1"),
        (lambda: act.SwiGLU(1, 1, 0), "at least 1"),
        (
            lambda: act.cross_entropy(torch.zeros(2, 3), torch.zeros(4).long()),
            r"logits \(2, 3\) and targets \(4,\)",
        ),
        (
            lambda: act.cross_entropy(torch.zeros(2, 3), torch.zeros(2).long(), "max"),
            "reduction='max'",
        ),
        (
            lambda: act.binary_cross_entropy_with_logits(torch.zeros(2), torch.zeros(3)),
            r"logits \(2,\) and targets \(3,\) differ",
        ),
        (
            lambda: act.dead_fraction([torch.ones(1, 3), torch.ones(1, 2)]),
            "batches of 3 and of 2 units",
        ),
        (lambda: act.gradient_ratio(nn.Linear(2, 2)), "^0 weight matrices have"),
        (lambda: act.forward_gain(lambda z: z / 0), "not finite on"),
    ],
)
def test_errors_name_what_was_given(call, words):
    with pytest.raises(ValueError, match=words):
        call()
    with pytest.raises(TypeError, match="targets are torch.float32"):
        act.cross_entropy(torch.zeros(2, 3), torch.zeros(2))
