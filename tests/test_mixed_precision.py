"""Mixed precision: formats to the bit, scaler and step against torch, master weights,
memory.
"""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlcourse import mixed_precision as mp
from dlcourse.lab.launching import launch
from dlcourse.lab.models import MLP
from dlcourse.lab.training import fit, train_step, use_one_thread

use_one_thread()
X = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 3
DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "e5m2": torch.float8_e5m2,
    "e4m3": torch.float8_e4m3fn,
}
# older: NaN
E4M3_SATURATES = not torch.tensor(1e9).to(torch.float8_e4m3fn).float().isnan()


@pytest.fixture
def denormals():
    """Let the processor keep subnormal float32 numbers, which `use_one_thread` turns off."""
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(True)


def same(a, b):
    """Tell whether two tensors hold the same numbers, NaN and the sign of zero included."""
    equal = (a == b) & (torch.signbit(a) == torch.signbit(b))
    return bool((equal | (a.isnan() & b.isnan())).all())


def cast(x, name):
    return x.to(DTYPES[name]).to(x.dtype)


def wild(seed, count=20_000, dtype=torch.float32):
    """Return numbers of all sizes, from far below to far above every format, and special
    ones.
    """
    g = torch.Generator().manual_seed(seed)
    size = torch.exp2(torch.rand(count, generator=g, dtype=dtype) * 200 - 100)
    near = torch.exp2(torch.rand(count, generator=g, dtype=dtype) * 44 - 26)
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 65504, 65519.99, 65520, 448,
                            464, 465, 480, 57344, 61440, 3.3895e38, 2.0**-24, 2.0**-25,
                            1.5 * 2.0**-25, 2.0**-14, 2.0**-10, 2.0**-17], dtype=dtype)  # fmt: skip
    values = torch.cat([size, near, special])
    return values * torch.where(torch.rand(len(values), generator=g) < 0.5, -1.0, 1.0).to(
        dtype
    )


# --- formats --------------------------------------------------------------------------------------


def numbers_of(name):
    """Return what torch reads in every code of a format, the positive ones first."""
    width = mp.FORMATS[name].width
    codes = torch.arange(2**width).to(torch.uint8 if width == 8 else torch.uint16)
    return codes.view(DTYPES[name]).float().double()


@pytest.mark.parametrize("name", DTYPES)
def test_every_number_of_a_format_stays_as_it_is(name, denormals):
    numbers = numbers_of(name)
    assert same(mp.round_to(numbers, name), numbers)


@pytest.mark.parametrize("name", DTYPES)
def test_properties_equal_finfo(name, denormals):
    fmt, info = mp.FORMATS[name], torch.finfo(DTYPES[name])
    assert (fmt.width, fmt.max, fmt.tiny, fmt.eps) == (
        info.bits,
        info.max,
        info.tiny,
        info.eps,
    )
    numbers = numbers_of(name)
    assert fmt.smallest == numbers[numbers > 0].min()
    assert fmt.max == numbers[numbers.isfinite()].max()


def test_float32_and_tf32():
    fmt, info = mp.FORMATS["fp32"], torch.finfo(torch.float32)
    assert (fmt.width, fmt.max, fmt.tiny, fmt.eps) == (32, info.max, info.tiny, info.eps)
    assert mp.FORMATS["tf32"].width == 19
    x = wild(0)
    assert same(mp.round_to(x, "fp32"), x)
    kept = mp.round_to(x, "tf32").view(torch.int32)[x.isfinite()]
    assert bool((kept & 0x1FFF == 0).all())  # the lowest 13 of the 23 bits are gone


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_rounding_equals_torch(name, dtype, seed, denormals):
    x = wild(seed, dtype=dtype)
    if dtype == torch.float64:  # torch rounds twice, first to float32
        x = x.float().double()
    ours = mp.round_to(x, name, saturate=name == "e4m3" and E4M3_SATURATES)
    assert ours.dtype == dtype and same(ours, cast(x, name))


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_rounding_ties_and_their_neighbours(name, denormals):
    numbers = numbers_of(name)[: 2 ** (mp.FORMATS[name].width - 1)]
    numbers = numbers[numbers.isfinite()]
    middle = (numbers[1:] + numbers[:-1]) / 2
    for x in (
        middle,
        middle.nextafter(torch.tensor(math.inf)),
        middle.nextafter(-middle),
    ):
        x = x.float()
        assert same(mp.round_to(x, name), cast(x, name))


def test_saturation_and_overflow():
    x = torch.tensor([1e9, -1e9, math.inf, math.nan, 449.0])
    assert same(mp.round_to(x, "e4m3"), torch.tensor([math.nan] * 4 + [448.0]) * 1.0)
    full = torch.tensor([448.0, -448.0, 448.0, math.nan, 448.0])
    assert same(mp.round_to(x, "e4m3", saturate=True), full)
    assert mp.round_to(torch.tensor(1e5), "fp16", saturate=True) == 65504
    assert mp.round_to(torch.tensor(1e5), "fp16") == math.inf


@pytest.mark.parametrize("name", mp.FORMATS)
def test_rounding_invariants(name):
    fmt, x = mp.FORMATS[name], wild(5, dtype=torch.float64)
    x = x[x.isfinite() & (x.abs() < fmt.max / 2)]
    once = mp.round_to(x, name)
    assert same(mp.round_to(once, name), once) and same(mp.round_to(-x, name), -once)
    order = x.argsort()
    assert bool((once[order].diff() >= 0).all())
    normal = x.abs() >= fmt.tiny
    assert bool(((once - x).abs() <= x.abs() * fmt.eps / 2)[normal].all())
    assert bool(((once - x).abs() <= fmt.smallest / 2)[~normal].all())


def test_rounding_of_shapes_and_bad_input():
    for x in (torch.tensor(0.1), torch.empty(0), torch.randn(3, 4, 2).permute(2, 0, 1)):
        assert same(mp.round_to(x, "bf16"), x.bfloat16().float())
    half = torch.randn(5).half()
    assert mp.round_to(half, "e4m3").dtype == torch.float16
    with pytest.raises(TypeError, match="x.float"):
        mp.round_to(torch.arange(3), "fp16")
    with pytest.raises(ValueError, match="choose one of fp32"):
        mp.round_to(torch.ones(1), "fp12")
    assert mp.format_of("fp16") is mp.format_of(mp.FORMATS["fp16"])
    odd = mp.Format("e3m4", 3, 4)  # any other format works too
    assert odd.max == 15.5 and mp.round_to(torch.tensor(1.04), odd) == 1.0625


@pytest.mark.parametrize("name", mp.FORMATS)
def test_stochastic_rounding_is_unbiased_and_goes_to_a_neighbour(name):
    fmt = mp.FORMATS[name]
    for value in (1 + fmt.eps / 4, -1 - fmt.eps * 0.9, fmt.tiny / 3, 2.0):
        x = torch.full((40_000,), value, dtype=torch.float64)
        got = mp.round_to(
            x, name, stochastic=True, generator=torch.Generator().manual_seed(1)
        )
        low, high = got.min().item(), got.max().item()
        assert low <= value <= high
        gap = fmt.eps * (1 if abs(value) >= 1 else fmt.tiny)
        assert high - low <= gap * (1 + 1e-12)
        assert abs(got.mean().item() - value) <= 5 * gap / 2 / math.sqrt(len(x))
        assert torch.equal(mp.round_to(got, name), got)
    exact = torch.tensor([1.0, -2.0, 0.0, -0.0, math.inf])
    if fmt.infinities:
        assert same(mp.round_to(exact, name, stochastic=True), exact)


def test_stochastic_rounding_draws_53_bits():
    """So a number that is nearly on the grid rarely leaves it."""
    x = torch.full((400,), 1 + 2.0**-12, dtype=torch.float64)
    draws = torch.rand(
        400, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    want = torch.floor(x * 1024 + draws) / 1024
    generator = torch.Generator().manual_seed(3)
    found = mp.round_to(x, "fp16", stochastic=True, generator=generator)
    assert torch.equal(found, want) and 50 < (found > 1).sum() < 150


def test_underflow_fraction():
    x = torch.tensor([0.0, 1.0, 2.0**-24, 2.0**-25, -1e-9])
    # of four that are not zero; the tie goes to zero
    assert mp.underflow_fraction(x) == 0.5
    assert mp.underflow_fraction([x[:2], x[2:]]) == 0.5
    assert mp.underflow_fraction([x, x[2:]]) == 4 / 7  # lost in both
    assert mp.underflow_fraction(x, scale=2.0**16) == 0.0
    assert (
        mp.underflow_fraction(torch.zeros(3)) == 0.0 and mp.underflow_fraction([]) == 0.0
    )
    grads = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 1e-7
    half = ((grads.half() == 0) & (grads != 0)).double().mean().item()
    assert mp.underflow_fraction(grads) == half
    shares = [mp.underflow_fraction(grads, scale=2.0**k) for k in range(-4, 10, 2)]
    assert shares == sorted(shares, reverse=True)
    with pytest.raises(ValueError, match="above 0"):
        mp.underflow_fraction(x, scale=0.0)


# --- the loss scale -------------------------------------------------------------------------------


def scaler_pair(**settings):
    weights = [nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2)]
    optimizers = [torch.optim.SGD([w], lr=1e-3, momentum=0.9) for w in weights]
    return (
        weights,
        optimizers,
        (mp.GradScaler(**settings), torch.amp.GradScaler("cpu", **settings)),
    )


@pytest.mark.parametrize("seed", range(6))
def test_scaler_follows_torch_in_sequence(seed):
    rng = np.random.default_rng(seed)
    settings = [
        {},
        {"init_scale": 8.0, "growth_interval": 2},
        {"growth_interval": 5},
        {"growth_factor": 1.7, "backoff_factor": 0.3, "growth_interval": 3},
        {"init_scale": 2.0**126, "growth_interval": 1},
        {"init_scale": 3e-5, "backoff_factor": 0.7, "growth_interval": 4},
    ][seed]
    weights, optimizers, scalers = scaler_pair(**settings)
    chance = 0.02 if seed == 4 else 0.2
    for update in range(200):
        bad = rng.random() < chance
        row = torch.tensor(
            [rng.choice([math.inf, -math.inf, math.nan]) if bad else 0.5, 0.25]
        )
        early = rng.random() < 0.5
        for weight, optimizer, scaler in zip(weights, optimizers, scalers, strict=True):
            optimizer.zero_grad()
            scaler.scale((weight * row * 1e-3).sum()).backward()
            if early:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert scalers[0].get_scale() == scalers[1].get_scale(), update
        assert same(weights[0].detach(), weights[1].detach())
    ours, theirs = (scaler.state_dict() for scaler in scalers)
    assert ours == theirs
    assert seed == 4 or scalers[0].skipped > 10


def test_scaler_with_two_optimizers_lowers_once():
    results = []
    for scaler in (
        mp.GradScaler(init_scale=8.0),
        torch.amp.GradScaler("cpu", init_scale=8.0),
    ):
        weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
        optimizers = [torch.optim.SGD([w], lr=1.0) for w in weights]
        row = torch.tensor([math.inf])
        scaler.scale((weights[0] * row + weights[1]).sum()).backward()
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        results.append((scaler.get_scale(), weights[0].item(), weights[1].item()))
    assert results[0] == results[1] == (4.0, 1.0, 0.0)


def test_scaler_states_pass_between_ours_and_torchs():
    weights, optimizers, scalers = scaler_pair(growth_interval=4)
    for _ in range(3):
        for weight, optimizer, scaler in zip(weights, optimizers, scalers, strict=True):
            scaler.scale(weight.sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    fresh = mp.GradScaler(init_scale=2.0)
    fresh.load_state_dict(scalers[1].state_dict())
    assert fresh.state_dict() == scalers[0].state_dict()


def test_scaler_refuses_calls_out_of_order_and_bad_settings():
    weight = nn.Parameter(torch.ones(1))
    optimizer, scaler = torch.optim.SGD([weight], lr=1.0), mp.GradScaler()
    with pytest.raises(RuntimeError, match="before update"):
        scaler.update()
    scaler.scale(weight.sum()).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="once an update"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="twice"):
        scaler.step(optimizer)
    half = nn.Parameter(torch.ones(1).half())
    half.grad = torch.ones(1).half()
    with pytest.raises(ValueError, match="MasterWeightOptimizer"):
        mp.GradScaler().unscale_(torch.optim.SGD([half], lr=1.0))
    with pytest.raises(RuntimeError, match="no gradient: call backward"):
        mp.GradScaler().step(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0))
    for settings in ({"init_scale": 0.0}, {"device": 65536.0}, {"device": "here"}, {"growth_factor": 1.0}, {"backoff_factor": 1.0},
                     {"growth_interval": 0}, {"growth_interval": 2.5}, {"init_scale": math.nan},
                     {"init_scale": 1e39}, {"init_scale": 1e-50}):  # fmt: skip
        with pytest.raises(ValueError, match="give"):
            mp.GradScaler(**settings)


def test_scaler_is_set_and_read_as_torchs():
    ours, theirs = mp.GradScaler("cpu", 8.0), torch.amp.GradScaler("cpu", 8.0)
    weight = nn.Parameter(torch.ones(1))
    for scaler in (ours, theirs):
        scaler.set_growth_factor(3.0)
        scaler.set_backoff_factor(0.25)
        scaler.set_growth_interval(1)
        scaled = scaler.scale([weight, (weight * 2,)])
        assert type(scaled) is list and type(scaled[1]) is tuple
        assert [scaled[0].item(), scaled[1][0].item()] == [8.0, 16.0]
        scaled[0].backward()
        scaler.step(torch.optim.SGD([weight], lr=0.0))
        scaler.update()
        assert scaler.get_scale() == 24.0
        scaler.update(4.0)
        assert scaler.get_scale() == 4.0
        scaler.update(torch.tensor(2.0))
    for name in ("get_scale", "get_growth_factor", "get_backoff_factor",
                 "get_growth_interval", "is_enabled", "state_dict"):  # fmt: skip
        assert getattr(ours, name)() == getattr(theirs, name)(), name
    with pytest.raises(ValueError, match="new_scale=0"):
        ours.update(0.0)


def test_scaler_not_enabled_passes_through():
    weight = nn.Parameter(torch.ones(1))
    optimizer, scaler = torch.optim.SGD([weight], lr=1.0), mp.GradScaler(enabled=False)
    loss = weight.sum()
    assert scaler.scale(loss) is loss and scaler.get_scale() == 1.0
    loss.backward()
    scaler.unscale_(optimizer)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert weight.item() == 0.0
    assert (
        scaler.state_dict()
        == {}
        == torch.amp.GradScaler("cpu", enabled=False).state_dict()
    )
    scaler.load_state_dict(mp.GradScaler(init_scale=2.0).state_dict())
    assert scaler.get_scale() == 1.0
    with pytest.raises(ValueError, match="not enabled"):
        mp.GradScaler().load_state_dict(scaler.state_dict())


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_scaled_loss_has_torchs_dtype_and_value(dtype):
    for loss in (torch.tensor(3.0, dtype=dtype), torch.tensor([1.5, -2.0], dtype=dtype)):
        theirs = torch.amp.GradScaler("cpu").scale(loss)
        ours = mp.GradScaler().scale(loss)
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_scale_that_has_fallen_to_zero_still_skips():
    weight = nn.Parameter(torch.ones(1))
    optimizer, scaler = torch.optim.SGD([weight], lr=1.0), mp.GradScaler(init_scale=1e-37)
    for _ in range(40):
        weight.grad = torch.tensor([math.nan])
        scaler.step(optimizer)
        scaler.update()
    assert weight.item() == 1.0 and scaler.skipped == 40


def on_two_processes():
    import torch
    from accelerate import Accelerator
    from torch import nn

    from dlcourse.mixed_precision import GradScaler

    rank, seen = Accelerator(cpu=True).process_index, {}
    for name, shared in (("shared", True), ("alone", False)):
        weight, scaler = (
            nn.Parameter(torch.ones(1)),
            GradScaler(init_scale=8.0, shared=shared),
        )
        optimizer = torch.optim.SGD([weight], lr=1.0)
        seen[name] = []
        for bad in ((), (0,), (1,), (0, 1), ()):
            weight.grad = torch.tensor([float("inf") if rank in bad else 8.0])
            scaler.step(optimizer)
            scaler.update()
            seen[name].append([scaler.get_scale(), weight.item()])
    return seen


def test_two_processes_share_skips():
    first, second = launch(on_two_processes)
    assert first["shared"] == second["shared"]
    assert [scale for scale, _ in first["shared"]] == [8, 4, 2, 1, 1]
    assert first["alone"] != second["alone"]


# --- master weights -------------------------------------------------------------------------------


def trained(model, optimizer, steps=20, data=(X, Y), **settings):
    history = fit(model, data, optimizer, steps=steps, batch_size=20, **settings)
    return torch.cat([p.detach().ravel().float() for p in model.parameters()]), history


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_in_float32_it_is_the_inner_optimizer(kind):
    model = MLP(16, 3, width=8, seed=1)
    plain, _ = trained(model, kind(model.parameters(), lr=0.01))
    for master in (True, False):
        model = MLP(16, 3, width=8, seed=1)
        wrapped = mp.MasterWeightOptimizer(
            model.parameters(), kind, master=master, lr=0.01
        )
        weights, _ = trained(model, wrapped, accumulation_steps=1)
        assert torch.equal(weights, plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_the_rounded_copy(dtype):
    model = MLP(16, 3, width=8, seed=1).to(dtype)
    wrapped = mp.MasterWeightOptimizer(model.parameters(), torch.optim.Adam, lr=1e-4)
    trained(model, wrapped, data=(X.to(dtype), Y))
    off = 0
    for weight, wide in zip(wrapped.weights, wrapped.masters, strict=True):
        assert weight.dtype == dtype and wide.dtype == torch.float32
        assert torch.equal(weight.detach(), wide.detach().to(dtype))
        off += int((weight.float() != wide).sum())
    assert off > 100  # the copy holds what the weights cannot


def test_small_updates_vanish_without_a_copy_and_add_up_with_one():
    ends = {}
    for name, settings in {"none": {"master": False}, "master": {},
                           "random": {"master": False, "stochastic": True}}.items():  # fmt: skip
        weight = nn.Parameter(torch.ones(400, dtype=torch.bfloat16))
        optimizer = mp.MasterWeightOptimizer(
            [weight], torch.optim.SGD, lr=1e-3, **settings
        )
        for _ in range(100):
            weight.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends[name] = weight.detach().float()
    assert bool((ends["none"] == 1).all())
    assert bool((ends["master"] == torch.tensor(0.9).bfloat16()).all())
    assert abs(ends["random"].mean().item() - 0.9) < 0.01 and ends["random"].std() > 0.001


def test_gradients_add_up_in_float32_and_scaler_and_clipping_see_them():
    weight = nn.Parameter(torch.zeros(2, dtype=torch.float16))
    optimizer = mp.MasterWeightOptimizer([weight], torch.optim.SGD, lr=1.0)
    scaler = mp.GradScaler(init_scale=2.0**10)
    for _ in range(3000):
        scaler.scale((weight * torch.tensor([1e-3, 0.0]).half()).sum() / 3000).backward()
    assert weight.grad is None
    (wide,) = (w for group in optimizer.param_groups for w in group["params"])
    scaler.unscale_(optimizer)
    assert wide.grad[0].item() == pytest.approx(1e-3, rel=2e-3)
    nn.utils.clip_grad_norm_([wide], 1e-4)
    scaler.step(optimizer)
    assert wide[0].item() == pytest.approx(-1e-4, rel=1e-3)
    with pytest.raises(ValueError, match="leaves"):
        mp.MasterWeightOptimizer([weight * 1], torch.optim.SGD, lr=1.0)
    with pytest.raises(ValueError, match="leaves"):
        mp.MasterWeightOptimizer([{"params": [weight]}], torch.optim.SGD, lr=1.0)
    with pytest.raises(ValueError, match="cannot hold bf16"):
        mp.MasterWeightOptimizer([weight], torch.optim.SGD, fmt="bf16", lr=1.0)
    # a second one on the same weight
    mp.MasterWeightOptimizer([weight], torch.optim.SGD, lr=1.0)
    with pytest.raises(RuntimeError, match="make one for each model"):
        weight.sum().backward()
    with pytest.raises(ValueError, match="fmt="):
        double = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        mp.MasterWeightOptimizer([double], torch.optim.SGD, lr=1.0)


def test_float32_weights_on_a_coarse_grid():
    model = MLP(16, 3, width=8, seed=1)
    wrapped = mp.MasterWeightOptimizer(
        model.parameters(),
        torch.optim.SGD,
        fmt="e4m3",
        master=False,
        stochastic=True,
        lr=0.1,
    )
    weights, _ = trained(model, wrapped)
    assert weights.dtype == torch.float32
    assert torch.equal(mp.round_to(weights, "e4m3"), weights)


def test_master_state_continues_to_the_bit():
    def make():
        model = MLP(16, 3, width=8, seed=1).bfloat16()
        return model, mp.MasterWeightOptimizer(
            model.parameters(), torch.optim.Adam, lr=1e-3, stochastic=True, master=False
        )

    def updates(model, optimizer, start):
        for step in range(start, start + 5):
            rows = slice(10 * (step % 6), 10 * (step % 6) + 10)
            F.cross_entropy(model(X[rows].bfloat16()).float(), Y[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = make()
    updates(model, optimizer, 0)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    updates(model, optimizer, 5)
    again, other = make()
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    updates(again, other, 5)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


# --- the step -------------------------------------------------------------------------------------


def run_step(step, steps=20, **settings):
    model = MLP(16, 3, width=8, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    return trained(model, optimizer, steps, step=step, **settings)


def test_switched_off_it_is_train_step_to_the_bit():
    plain, history = run_step(train_step)
    # powers of two are exact
    for scaler in (None, mp.GradScaler(), torch.amp.GradScaler("cpu")):
        weights, off = run_step(mp.mixed_precision_step(torch.float32, scaler))
        assert torch.equal(weights, plain) and off.loss == history.loss
    assert set(off.extra) == {"grad_norm", "scale"}


def test_bfloat16_step_equals_accelerate():
    weights, history = run_step(mp.mixed_precision_step(torch.bfloat16))
    theirs, accelerate = run_step(train_step, mixed_precision="bf16")
    assert torch.allclose(weights, theirs, atol=1e-6)
    assert np.allclose(history.loss, accelerate.loss, atol=1e-6)


def test_float16_step_with_our_scaler_equals_torchs():
    for accumulation in (1, 4):
        results = []
        for scaler in (
            mp.GradScaler(init_scale=2.0**22, growth_interval=3),
            torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=3),
        ):
            step = mp.mixed_precision_step(torch.float16, scaler, max_norm=0.5)
            results.append(run_step(step, accumulation_steps=accumulation))
        (ours, history), (theirs, other) = results
        assert torch.equal(ours, theirs)
        for name, values in history.extra.items():
            assert np.array_equal(values, other.extra[name], equal_nan=True)
        assert history.extra["scale"][0] > min(history.extra["scale"])  # it has skipped


def test_a_resumed_run_needs_its_scale(tmp_path):
    """With the scaler's state it goes on to the bit; without, it skips anew."""

    def scaler():
        return mp.GradScaler(init_scale=2.0**26, growth_interval=20)

    def run(steps, scaler, **more):
        step = mp.mixed_precision_step(torch.float16, scaler)
        return run_step(step, steps=steps, **more)[0]

    unbroken = scaler()
    whole = run(20, unbroken)
    for keep in (True, False):
        first, second = scaler(), scaler()
        where = {"checkpoint": tmp_path / f"{keep}.pt", "resume": True}
        run(10, first, **where)
        if keep:
            second.load_state_dict(first.state_dict())
        ended = run(20, second, **where)
        skipped = first.skipped + second.skipped
        assert first.skipped > 0
        assert torch.equal(ended, whole) == keep
        assert (skipped == unbroken.skipped) == keep


def test_clipping_before_unscaling_leaves_almost_nothing():
    moved = {}
    for order in ("right", "too early"):
        weight = nn.Parameter(torch.zeros(3))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        scaler = mp.GradScaler(init_scale=2.0**16)
        scaler.scale((weight * torch.tensor([3.0, 0.0, 4.0])).sum()).backward()
        if order == "right":
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([weight], 1.0)
        scaler.step(optimizer)
        scaler.update()
        moved[order] = weight.detach().norm().item()
    assert moved["right"] == pytest.approx(1.0, rel=1e-4)
    assert moved["too early"] == pytest.approx(2.0**-16, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_accumulation_changes_little(dtype):
    ends = []
    for pieces in (1, 4):
        scaler = mp.GradScaler(init_scale=2.0**8) if dtype == torch.float16 else None
        step = mp.mixed_precision_step(dtype, scaler, 0.5)
        ends.append(run_step(step, steps=3, accumulation_steps=pieces))
    (whole, one), (parts, four) = ends
    close = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    assert torch.allclose(whole, parts, atol=close)
    assert np.allclose(one.extra["grad_norm"], four.extra["grad_norm"], rtol=close)


def test_order_is_unscale_clip_step_update():
    calls = []

    class Spy(mp.GradScaler):
        def scale(self, loss):
            calls.append("scale")
            return super().scale(loss)

        def unscale_(self, optimizer):
            calls.append("unscale")
            super().unscale_(optimizer)

        def step(self, optimizer):
            norm = torch.nn.utils.get_total_norm(
                [p.grad for p in mp.loss_scale._weights(optimizer)]
            )
            calls.append(f"step {norm:.2f}")
            super().step(optimizer)

        def update(self):
            calls.append("update")
            super().update()

    step = mp.mixed_precision_step(torch.float16, Spy(init_scale=2.0**8), max_norm=0.05)
    run_step(step, steps=2, accumulation_steps=2)
    assert calls == ["scale", "scale", "unscale", "step 0.05", "update"] * 2


def test_step_with_master_weights_in_float16():
    model = MLP(16, 3, width=8, seed=1).half()
    optimizer = mp.MasterWeightOptimizer(model.parameters(), torch.optim.SGD, lr=0.5)
    step = mp.mixed_precision_step(
        torch.float16, mp.GradScaler(init_scale=2.0**8), max_norm=1.0
    )
    weights, history = trained(model, optimizer, 40, step=step)
    reference, plain = run_step(train_step, 40)
    assert history.loss[-1] < history.loss[0] and max(history.extra["grad_norm"]) > 0
    with pytest.raises(ValueError, match="choose torch.bfloat16"):
        mp.mixed_precision_step(torch.float64)


def test_fit_refuses_float16_on_the_cpu():
    model = MLP(16, 3, width=8, seed=1)
    with pytest.raises(ValueError, match="does nothing on cpu"):
        trained(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            mixed_precision="fp16",
            cpu=True,
        )


def two_process_step():
    import torch

    from dlcourse.lab.models import MLP
    from dlcourse.lab.training import fit
    from dlcourse.mixed_precision import GradScaler, mixed_precision_step

    x = torch.randn(61, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = MLP(16, 3, width=8, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    step = mixed_precision_step(torch.float16, GradScaler(init_scale=2.0**8), 0.5)
    fit(model, (x, torch.arange(61) % 3), optimizer, epochs=2, batch_size=21, step=step,
        accumulation_steps=2)  # fmt: skip
    return [p.detach().ravel().tolist() for p in model.parameters()]


def test_two_processes_step_as_one_does():
    alone = two_process_step()
    both = launch(two_process_step, processes=2)
    assert both[0] == both[1]
    for a, b in zip(alone, both[0], strict=True):
        assert np.allclose(a, b, atol=0.02)


# --- autocast and memory --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_policy_on_the_cpu(dtype):
    policy = mp.autocast_policy("cpu", dtype)
    for name in ("matmul", "linear", "conv2d", "baddbmm", "einsum", "attention"):
        assert policy[name] == "16-bit"
    for name in ("cross_entropy", "mse_loss"):
        assert policy[name] == "float32"
    for name in ("relu", "add", "sum"):
        assert policy[name] == "as its inputs"
    assert set(policy.values()) <= {
        "16-bit",
        "float32",
        "as its inputs",
        "widens",
        "refuses",
    }
    with pytest.raises(ValueError, match="choose torch.bfloat16"):
        mp.autocast_policy("cpu", torch.float32)


def test_memory_estimate():
    for recipe in mp.RECIPES:
        one = mp.memory_estimate(1000, recipe, activations=50)
        assert one["total"] == sum(
            value for part, value in one.items() if part != "total"
        )
        two = mp.memory_estimate(2000, recipe, activations=100)
        assert two["total"] == 2 * one["total"]
    assert mp.memory_estimate(7, "float32")["total"] == 7 * 16
    # Rajbhandari et al.: 16 bytes
    assert mp.memory_estimate(7, "master")["total"] == 7 * 16
    assert mp.memory_estimate(7, "16-bit only", states=0)["total"] == 7 * 4
    assert mp.memory_estimate(0, "float32")["total"] == 0
    with pytest.raises(ValueError, match="choose one of"):
        mp.memory_estimate(1, "fp64")
    with pytest.raises(ValueError, match="0 or more"):
        mp.memory_estimate(-1, "float32")


def bytes_there(model, optimizer):
    """Return the bytes of the tensors that are there now, named as in the estimate."""
    weights, masters = list(model.parameters()), []
    if isinstance(optimizer, mp.MasterWeightOptimizer):
        optimizer, masters = optimizer.inner, optimizer.masters
    gradients = [w.grad for w in (*weights, *masters) if w.grad is not None]
    kept = [value for values in optimizer.state.values() for value in values.values()]
    parts = {"weights": weights, "gradients": gradients, "master": masters}
    parts["states"] = [tensor for tensor in kept if tensor.ndim > 0]
    return {part: sum(t.nbytes for t in tensors) for part, tensors in parts.items()}


@pytest.mark.parametrize("recipe", ["float32", "autocast", "master, gradients moved"])
def test_memory_estimate_equals_what_is_there(recipe):
    model = MLP(16, 3, width=64, depth=3, seed=1)
    parameters = sum(p.numel() for p in model.parameters())
    if recipe.startswith("master"):
        model = model.bfloat16()
        optimizer = mp.MasterWeightOptimizer(
            model.parameters(), torch.optim.Adam, lr=1e-3
        )
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe == "autocast"):
        F.cross_entropy(model(X.to(model.head.weight.dtype)).float(), Y).backward()
    optimizer.step()
    estimate = mp.memory_estimate(parameters, recipe)
    there = bytes_there(model, optimizer)
    assert there == {part: estimate[part] for part in there}
    optimizer.zero_grad()
    assert bytes_there(model, optimizer)["gradients"] == 0


# --- what is left out, what is wrong, and the other processes -------------------------------------


@pytest.mark.parametrize("other", [0.0, 1.0])
@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_a_shared_scaler_skips_where_another_process_must(monkeypatch, backend, other):
    moved = []

    def all_reduce(flag, op):
        assert op == torch.distributed.ReduceOp.MAX and flag.dtype == torch.float32
        flag.clamp_(min=other)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda flag: moved.append(flag) or flag)
    for own in (1.0, math.inf):
        weight = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        scaler = mp.GradScaler(init_scale=8.0, shared=True)
        weight.grad = torch.tensor([own])
        scaler.step(optimizer)
        scaler.update()
        assert scaler.skipped == (other == 1 or own == math.inf)
        assert scaler.get_scale() == (4.0 if scaler.skipped else 8.0)
    # NCCL exchanges what lies on a GPU only
    assert len(moved) == (2 if backend == "nccl" else 0)
    weight.grad = torch.tensor([1.0])
    alone = mp.GradScaler(init_scale=8.0)
    alone.step(optimizer)
    assert alone.skipped == 0


def test_settings_left_out_are_those_of_torch():
    ours, theirs = mp.GradScaler(), torch.amp.GradScaler("cpu")
    assert ours.state_dict() == theirs.state_dict()
    assert ours.is_enabled() and not ours.shared
    x = torch.tensor([1.0, 2.0**-25])
    assert mp.underflow_fraction(x) == mp.underflow_fraction(x, "fp16", 1.0) == 0.5
    assert mp.underflow_fraction(x, "bf16") == 0.0
    assert mp.memory_estimate(5, "float32") == mp.memory_estimate(
        5, "float32", states=2, activations=0
    )
    assert mp.Format("any", 5, 10) == mp.Format("any", 5, 10, infinities=True)
    weight = nn.Parameter(torch.ones(9, dtype=torch.bfloat16))
    optimizer = mp.MasterWeightOptimizer([weight], torch.optim.SGD, lr=0.1)
    assert (optimizer.master, optimizer.stochastic) == (True, False)
    seeded = torch.Generator().manual_seed(0)
    assert torch.equal(optimizer.generator.get_state(), seeded.get_state())
    assert mp.autocast_policy() == mp.autocast_policy("cpu", torch.bfloat16)


def test_the_step_left_alone_is_bfloat16_without_clipping():
    given = mp.mixed_precision_step(torch.bfloat16, None, math.inf)
    weights = [run_step(step, 3)[0] for step in (mp.mixed_precision_step(), given)]
    assert torch.equal(*weights)


def half_weight(dtype=torch.float16):
    return nn.Parameter(torch.ones(1, dtype=dtype))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: mp.format_of("fp12"),
            "'fp12': choose one of fp32, tf32, fp16, bf16, e5",
        ),
        (lambda: mp.underflow_fraction([], scale=-1.0), "scale=-1.0"),
        (lambda: mp.underflow_fraction([], scale=math.inf), "scale=inf"),
        (lambda: mp.autocast_policy("cpu", torch.float64), "torch.float64: choose"),
        (lambda: mp.mixed_precision_step(torch.float64), "torch.float64: choose"),
        (
            lambda: mp.memory_estimate(1, "fp64"),
            "'fp64': choose one of float32, autocast",
        ),
        (lambda: mp.memory_estimate(1, "master", states=-1), "give 0 or more"),
        (lambda: mp.memory_estimate(1, "master", activations=-1), "give 0 or more"),
        (lambda: mp.GradScaler(65536.0), "device=65536.0 is none"),
        (lambda: mp.GradScaler("here"), "device='here' is none"),
        (lambda: mp.GradScaler(init_scale=0.0), "init_scale=0.0"),
        (lambda: mp.GradScaler(init_scale=math.inf), "init_scale=inf"),
        (lambda: mp.GradScaler(init_scale=1e39), r"init_scale=1e\+39"),
        (lambda: mp.GradScaler(growth_factor=1.0), "growth_factor=1.0"),
        (lambda: mp.GradScaler(backoff_factor=1.0), "backoff_factor=1.0"),
        (lambda: mp.GradScaler(backoff_factor=0.0), "backoff_factor=0.0"),
        (lambda: mp.GradScaler(growth_interval=0), "growth_interval=0"),
        (lambda: mp.GradScaler(growth_interval=1.5), "growth_interval=1.5"),
        (lambda: mp.GradScaler().update(math.inf), "new_scale=inf"),
        (
            lambda: mp.MasterWeightOptimizer(
                [half_weight(torch.float64)], torch.optim.SGD, lr=1.0
            ),
            "weights of torch.float64: say in fmt=",
        ),
        (
            lambda: mp.MasterWeightOptimizer(
                [half_weight()], torch.optim.SGD, fmt="bf16", lr=1.0
            ),
            "weights of torch.float16 cannot hold bf16",
        ),
        (
            lambda: mp.MasterWeightOptimizer(
                [half_weight(torch.bfloat16)], torch.optim.SGD, fmt="fp16", lr=1.0
            ),
            "weights of torch.bfloat16 cannot hold fp16",
        ),
        (
            lambda: mp.MasterWeightOptimizer([torch.ones(1)], torch.optim.SGD, lr=1.0),
            "leaves and require a gradient",
        ),
    ],
)
def test_errors_name_what_was_given(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_integers_are_not_rounded():
    with pytest.raises(TypeError, match="not torch.int64: use x.float"):
        mp.round_to(torch.arange(3), "fp16")


def test_each_answer_of_autocast_has_its_name(monkeypatch):
    def always(dtype):
        return lambda a, image: a.to(dtype)

    def refuses(a, image):
        raise RuntimeError("no such kernel")

    def refuses_16_bits(a, image):
        assert torch.is_autocast_enabled("cpu")
        assert a.shape == (4, 4) and image.shape == (2, 2, 3, 3)
        assert a.dtype == image.dtype and (a == 1).all() and (image == 1).all()
        return refuses(a, image) if a.dtype == torch.float16 else a

    probes = {
        "16-bit": always(torch.float16),
        "float32": always(torch.float32),
        "as its inputs": lambda a, image: image,
        "widens": always(torch.float64),
        "refuses": refuses_16_bits,
    }
    monkeypatch.setattr(mp.autocast, "_PROBES", probes | {"never": refuses})
    found = mp.autocast_policy("cpu", torch.float16)
    assert found == {name: name for name in probes} | {"never": "refuses"}


def test_numbers_of_any_dtype_are_rounded_to_other_formats():
    """Float64 weights may be kept in any format, and float32 ones in the fp32 they have."""
    for dtype, fmt in ((torch.float64, "fp32"), (torch.float32, "fp32")):
        weight = nn.Parameter(torch.full((3,), 0.1, dtype=dtype))
        optimizer = mp.MasterWeightOptimizer([weight], torch.optim.SGD, fmt=fmt, lr=0.5)
        weight.sum().backward()
        optimizer.step()
        want = (torch.full((3,), 0.1) - 0.5).to(dtype)
        assert torch.equal(weight.detach(), want)
    optimizer.zero_grad(set_to_none=False)
    assert (optimizer.masters[0].grad == 0).all() and weight.grad is None
    weight.sum().backward()
    optimizer.zero_grad()
    assert optimizer.masters[0].grad is None


def test_a_state_is_a_copy_and_fits_as_many_weights_only():
    weight = half_weight()
    optimizer = mp.MasterWeightOptimizer([weight], torch.optim.SGD, lr=0.5)
    state = optimizer.state_dict()
    weight.sum().backward()
    optimizer.step()
    assert state["masters"][0].item() == 1.0 and not state["masters"][0].requires_grad
    with pytest.raises(ValueError, match="argument 2 is"):
        optimizer.load_state_dict(state | {"masters": state["masters"] * 2})
