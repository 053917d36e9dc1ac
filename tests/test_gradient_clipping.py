"""Gradient clipping: equal to torch, edge cases, invariants, and the order of a step."""

import copy
import functools
import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlcourse import gradient_clipping as gc
from dlcourse.lab.accelerator import make_accelerator
from dlcourse.lab.batches import Batch
from dlcourse.lab.launching import launch
from dlcourse.lab.models import MLP
from dlcourse.lab.training import Run, fit, train_step, use_one_thread

use_one_thread()
X = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 3


def random_parameters(seed, dtype=torch.float32):
    """Return parameters of random shapes, some without a gradient, some with gradients of
    zero.
    """
    g = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(int(torch.randint(1, 6, (), generator=g))):
        ndim = int(torch.randint(0, 4, (), generator=g))
        shape = torch.randint(1, 5, (ndim,), generator=g).tolist()
        weight = nn.Parameter(torch.randn(shape, generator=g, dtype=dtype))
        size = 10 ** (torch.rand((), generator=g) * 6 - 3)
        weight.grad = torch.randn(shape, generator=g, dtype=dtype) * size.to(dtype)
        kind = int(torch.randint(0, 6, (), generator=g))
        weight.grad = None if kind == 0 else weight.grad * (kind != 1)
        found.append(weight)
    return found


def grads(parameters):
    return [None if p.grad is None else p.grad.clone() for p in parameters]


def same(left, right, **tolerance):
    return all(
        (a is None and b is None) or torch.allclose(a, b, equal_nan=True, **tolerance)
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("norm_type", [0.5, 1.0, 2.0, 3.0, math.inf, "inf"])
@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1.0, 50.0, math.inf])
@pytest.mark.parametrize("seed", range(8))
def test_norm_clipping_equals_torch(seed, max_norm, norm_type):
    ours = random_parameters(seed)
    theirs = copy.deepcopy(ours)
    for a, b in zip(ours, theirs, strict=True):
        b.grad = None if a.grad is None else a.grad.clone()
    before = gc.clip_grad_norm_(ours, max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    assert torch.allclose(before, expected)
    assert same(grads(ours), grads(theirs), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_norm_clipping_equals_torch_in_other_precisions(dtype):
    for seed in range(10):
        ours = random_parameters(seed, dtype)
        theirs = [nn.Parameter(p.detach().clone()) for p in ours]
        for a, b in zip(ours, theirs, strict=True):
            b.grad = None if a.grad is None else a.grad.clone()
        gc.clip_grad_norm_(ours, 0.7)
        torch.nn.utils.clip_grad_norm_(theirs, 0.7)
        assert same(grads(ours), grads(theirs), rtol=1e-2)


@pytest.mark.parametrize("seed", range(10))
def test_value_clipping_equals_torch(seed):
    for bound in (0.0, 0.1, 3.0, math.inf):
        ours = random_parameters(seed)
        theirs = [nn.Parameter(p.detach().clone()) for p in ours]
        for a, b in zip(ours, theirs, strict=True):
            b.grad = None if a.grad is None else a.grad.clone()
        gc.clip_grad_value_(ours, bound)
        if all(weight.grad is None for weight in theirs):
            continue  # torch 2.15 stops here with an internal error; ours does nothing
        torch.nn.utils.clip_grad_value_(theirs, bound)
        assert same(grads(ours), grads(theirs), rtol=0, atol=0)


def test_value_clipping_keeps_signs_and_never_grows():
    weights = random_parameters(3)
    before = grads(weights)
    gc.clip_grad_value_(weights, 0.05)
    for a, b in zip(before, grads(weights), strict=True):
        if a is not None:
            assert (b.abs() <= a.abs()).all() and (a * b >= 0).all()


@pytest.mark.parametrize("seed", range(10))
def test_total_norm_equals_torch_and_ignores_the_cuts(seed):
    found = [g for g in grads(random_parameters(seed)) if g is not None]
    for norm_type in (1.0, 2.0, math.inf):
        total = gc.get_total_norm(found, norm_type)
        assert torch.allclose(total, torch.nn.utils.get_total_norm(found, norm_type))
        if found:
            one = torch.cat([g.ravel() for g in found])
            assert torch.allclose(total, gc.get_total_norm([one], norm_type))


def test_nothing_to_clip():
    assert gc.clip_grad_norm_([], 1.0) == 0
    assert gc.clip_grad_norm_(nn.Parameter(torch.ones(2)), 1.0) == 0
    gc.clip_grad_value_([], 1.0)
    gc.adaptive_clip_grad_([])


def test_direction_stays_and_small_gradients_do_not_change():
    weights = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]
    for weight in weights:
        weight.grad = torch.randn(weight.shape, dtype=torch.float32)
    before = torch.cat([w.grad.ravel() for w in weights])
    gc.clip_grad_norm_(weights, 100.0)
    assert torch.equal(torch.cat([w.grad.ravel() for w in weights]), before)
    gc.clip_grad_norm_(weights, 0.1)
    after = torch.cat([w.grad.ravel() for w in weights])
    assert F.cosine_similarity(before, after, dim=0) == pytest.approx(1.0, abs=1e-6)
    assert after.norm() == pytest.approx(0.1, abs=1e-5)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("share", [0.3, 1.0, 1.5, 10.0])
def test_pure_form_equals_the_one_in_place(norm_type, share):
    weights = random_parameters(5)
    found = [g for g in grads(weights) if g is not None]
    max_norm = share * gc.get_total_norm(found, norm_type).item()
    clipped, norm = gc.clip_by_norm(found, max_norm, norm_type)
    assert torch.equal(norm, gc.clip_grad_norm_(weights, max_norm, norm_type))
    assert same(clipped, [g for g in grads(weights) if g is not None], rtol=0, atol=0)
    if share > 1:
        assert same(clipped, found, rtol=0, atol=0)


def test_the_factor_is_torchs_to_the_bit_for_tiny_norms():
    """Below 1e-6 or so the constant in the denominator decides."""
    weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    weight.grad = torch.tensor([3e-7, 4e-7], dtype=torch.float64)
    twin = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    twin.grad = weight.grad.clone()
    pure, _ = gc.clip_by_norm([weight.grad.clone()], 2e-7)
    gc.clip_grad_norm_(weight, 2e-7)
    torch.nn.utils.clip_grad_norm_(twin, 2e-7)
    assert torch.equal(weight.grad, twin.grad) and torch.equal(pure[0], twin.grad)


@pytest.mark.parametrize("name", ["clip_grad_norm_", "get_total_norm"])
def test_defaults_are_torchs(name):
    ours = inspect.signature(getattr(gc, name)).parameters
    theirs = inspect.signature(getattr(torch.nn.utils, name)).parameters
    shared = set(ours) & set(theirs) - {"parameters", "tensors"}
    assert {"norm_type", "error_if_nonfinite"} <= shared
    assert all(ours[one].default == theirs[one].default for one in shared)
    adaptive = inspect.signature(gc.adaptive_clip_grad_).parameters
    assert (adaptive["clip_factor"].default, adaptive["eps"].default) == (0.01, 1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_norms_that_are_not_finite(bad):
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, bad])
    twin = nn.Parameter(torch.zeros(2))
    twin.grad = weight.grad.clone()
    with pytest.raises(RuntimeError, match="skip this update"):
        gc.clip_grad_norm_(weight, 1.0, error_if_nonfinite=True)
    assert weight.grad[0] == 1
    assert not gc.get_total_norm([weight.grad]).isfinite()  # said only where asked
    gc.clip_grad_norm_(weight, 1.0)
    torch.nn.utils.clip_grad_norm_(twin, 1.0)
    assert torch.allclose(weight.grad, twin.grad, equal_nan=True)


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_bounds_that_cannot_be_meant(bad):
    weight = nn.Parameter(torch.zeros(2))
    calls = {
        "max_norm": gc.clip_grad_norm_,
        "clip_value": gc.clip_grad_value_,
        "clip_factor": gc.adaptive_clip_grad_,
        "eps": functools.partial(gc.adaptive_clip_grad_, clip_factor=0.1),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name}=.*at least 0"):
            call(weight, **{name: bad})
    with pytest.raises(ValueError, match="^max_norm=.*at least 0"):
        gc.clipping_step(bad)
    with pytest.raises(ValueError, match="above 0"):
        gc.get_total_norm([weight], norm_type=bad)
    with pytest.raises(ValueError, match="above 0"):
        gc.get_total_norm([weight], norm_type=0)


@pytest.mark.parametrize("seed", range(10))
def test_adaptive_clipping_follows_the_formula(seed):
    weights = random_parameters(seed, torch.float64)
    expected = []
    for weight in weights:
        if weight.grad is None:
            expected.append(None)
            continue
        w, g = weight.detach().numpy(), weight.grad.numpy().copy()
        rows = [(w, g)] if w.ndim <= 1 else list(zip(w, g, strict=True))
        for unit, gradient in rows:
            limit = 0.02 * max(np.sqrt((unit**2).sum()), 1e-3)
            norm = np.sqrt((gradient**2).sum())
            if norm > limit:
                gradient *= limit / norm
        expected.append(torch.from_numpy(np.asarray(g)))
    gc.adaptive_clip_grad_(weights, 0.02)
    assert same(grads(weights), expected, rtol=1e-9)


def test_adaptive_clipping_equals_timm():
    timm = pytest.importorskip("timm.utils.agc", reason="timm is not installed")
    for seed in range(5):
        ours, theirs = random_parameters(seed), random_parameters(seed)
        ours, theirs = ([p for p in ps if p.grad is not None] for ps in (ours, theirs))
        gc.adaptive_clip_grad_(ours)
        timm.adaptive_clip_grad(theirs)
        assert same(grads(ours), grads(theirs), rtol=1e-5)


# --- the step -------------------------------------------------------------------------------------


def trained(step, lr=0.5, **settings):
    model = MLP(16, 3, width=8, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    history = fit(
        model, (X, Y), optimizer, steps=12, batch_size=20, step=step, **settings
    )
    return torch.cat([p.detach().ravel() for p in model.parameters()]), history


def test_switched_off_it_is_train_step_to_the_bit():
    plain, history = trained(train_step)
    for off in (gc.clipping_step(math.inf), gc.clipping_step(1e9, skip_nonfinite=True)):
        weights, clipped = trained(off)
        assert torch.equal(weights, plain) and clipped.loss == history.loss
        assert len(clipped.extra["grad_norm"]) == 12


def test_accumulation_does_not_change_what_is_clipped():
    whole, one = trained(gc.clipping_step(0.1))
    parts, four = trained(gc.clipping_step(0.1), accumulation_steps=4)
    assert torch.allclose(whole, parts, atol=1e-5)
    assert np.allclose(one.extra["grad_norm"], four.extra["grad_norm"], rtol=1e-4)


def test_order_is_unscale_clip_step_then_schedule():
    calls = []

    class Optimizer(torch.optim.SGD):
        def step(self, closure=None):
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
            calls.append(("step", round(norm.item(), 4), self.param_groups[0]["lr"]))

    class Spy(Run):
        def unscale(self):
            calls.append(("unscale",))

    model = MLP(16, 3, width=8, seed=1)
    optimizer = Optimizer(model.parameters(), lr=1.0)
    seen_step = gc.clipping_step(0.05)

    def step(run, batch):
        spy = Spy(run.model, run.optimizer, run.loss_fn, run.accelerator)
        return seen_step(spy, batch)

    def schedule(t):
        calls.append(("schedule", t))
        return 0.5**t

    fit(model, (X, Y), optimizer, steps=2, batch_size=20, step=step, schedule=schedule)
    assert calls == [
        ("schedule", 0), ("unscale",), ("step", 0.05, 1.0),
        ("schedule", 1), ("unscale",), ("step", 0.05, 0.5),
    ]  # fmt: skip


def test_steps_that_are_not_finite_may_be_skipped():
    model = MLP(16, 3, width=8, seed=1)
    before = [p.detach().clone() for p in model.parameters()]
    run = Run(model, torch.optim.SGD(model.parameters(), lr=1.0), F.cross_entropy,
              make_accelerator(cpu=True))  # fmt: skip
    batch = Batch(torch.full((2, 1, 4, 4), math.nan), torch.zeros(2, dtype=torch.long))
    gc.clipping_step(1.0, skip_nonfinite=True)(run, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    gc.clipping_step(1.0)(run, batch)
    assert all(p.isnan().all() for p in model.parameters())


def test_a_loss_scale_falls_although_steps_are_skipped():
    class Scaled:  # what Accelerate does in float16, on the CPU
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

        def backward(self, loss):
            self.scaler.scale(loss).backward()

        def unscale_gradients(self):
            self.scaler.unscale_(optimizer)

    class Wrapped:
        zero_grad = staticmethod(lambda: optimizer.zero_grad())

        @staticmethod
        def step():
            Scaled.scaler.step(optimizer)
            Scaled.scaler.update()

    model = MLP(16, 3, width=8, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run, step = (
        Run(model, Wrapped(), F.cross_entropy, Scaled()),
        gc.clipping_step(1.0, True),
    )
    before = model.head.weight.detach().clone()
    step(run, Batch(torch.full((2, 1, 4, 4), math.nan), Y[:2]))
    assert torch.equal(model.head.weight, before) and Scaled.scaler.get_scale() == 4.0
    step(run, Batch(X[:2], Y[:2]))
    assert not torch.equal(model.head.weight, before)


def clipped_run():
    import torch

    from dlcourse.gradient_clipping import clipping_step
    from dlcourse.lab.models import MLP
    from dlcourse.lab.training import fit

    x = torch.randn(61, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = MLP(16, 3, width=8, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    data = (x, torch.arange(61) % 3)
    history = fit(
        model, data, optimizer, epochs=2, batch_size=21, step=clipping_step(0.1)
    )
    return [p.detach().ravel().tolist() for p in model.parameters()], history.extra[
        "grad_norm"
    ]


def test_two_processes_clip_as_one_does():
    ((weights, norms),) = launch(clipped_run, processes=1)
    both = launch(clipped_run, processes=2)
    assert both[0] == both[1]
    for a, b in zip(weights, both[0][0], strict=True):
        assert np.allclose(a, b, atol=1e-5)
    assert np.allclose(norms, both[0][1], rtol=1e-3)


def sharded_run(max_norm):
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    inputs = torch.randn(6, 4)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    rank = dist.get_rank()
    model(inputs[3 * rank : 3 * rank + 3]).square().mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    grads = [p.grad.full_tensor().flatten().tolist() for p in model.parameters()]
    return norm.full_tensor().item(), sum(grads, [])


def test_torch_clips_what_fsdp2_has_sharded():
    both = launch(sharded_run, processes=2, args=[0.01])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    inputs = torch.randn(6, 4)
    model(inputs).square().mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    grads = torch.cat([p.grad.flatten() for p in model.parameters()])
    for found_norm, found in both:
        assert found_norm == pytest.approx(norm.item(), rel=1e-5)
        assert torch.allclose(torch.tensor(found), grads, rtol=1e-4, atol=1e-8)


def test_unscaled_before_it_is_clipped_a_scaled_run_is_the_run_without_scale():
    scaler = torch.amp.GradScaler("cpu")  # the scale starts at 65536

    def scaled(run, batch):
        run.optimizer.zero_grad()
        loss = run.loss_fn(run.model(batch.inputs), batch.targets)
        scaler.scale(loss).backward()
        scaler.unscale_(run.optimizer)
        gc.clip_grad_norm_(run.model.parameters(), 0.1)
        scaler.step(run.optimizer)
        scaler.update()
        return loss.detach()

    plain, history = trained(gc.clipping_step(0.1))
    weights, other = trained(scaled)
    assert torch.allclose(weights, plain, atol=1e-6)
    assert np.allclose(other.loss, history.loss, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_update_is_left_out_where_there_is_no_gradient(kind):
    """What the recipe does with a norm that is not finite."""
    model = MLP(16, 3, width=8, seed=1)
    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.1, **settings)
    fit(model, (X, Y), optimizer, steps=3)
    before = [p.detach().clone() for p in model.parameters()]
    F.cross_entropy(model(X * math.inf), Y).backward()
    if not gc.clip_grad_norm_(model.parameters(), 1.0).isfinite():
        optimizer.zero_grad()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# --- logging and freezing -------------------------------------------------------------------------


def test_logger():
    logger = gc.GradNormLogger()
    for call in (lambda: logger.quantile(0.5), lambda: logger.clipped_share(1.0)):
        with pytest.raises(ValueError, match="train some updates"):
            call()
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model(torch.ones(4, 2)).sum().backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
    assert logger(model) == pytest.approx(expected)
    assert set(logger.layers) == {name for name, _ in model.named_parameters()}
    parts = [norms[0] for norms in logger.layers.values()]
    assert math.hypot(*parts) == pytest.approx(expected, rel=1e-5)
    logger = gc.GradNormLogger()
    logger.add(1.0, 2.0, 3.0, math.nan)
    assert logger.quantile(0.5) == 2.0 and logger.quantile(1.0) == 3.0
    logger.add(0.1)
    assert logger.quantile(0.0) == 0.1  # in double precision
    logger.norms.pop()
    assert logger.clipped_share(2.0) == 0.5 and logger.clipped_share(math.inf) == 0.25


def test_logger_keeps_layers_that_come_late_in_line():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    logger = gc.GradNormLogger()
    model[0](torch.ones(4, 2)).sum().backward()
    logger(model)
    (2 * model(torch.ones(4, 2)).sum()).backward()
    logger(model)
    assert math.isnan(logger.layers["1.weight"][0]) and len(logger.norms) == 2
    assert logger.layers["1.weight"][1] == model[1].weight.grad.norm().item()
    only_late = gc.GradNormLogger()
    only_late.add(1.0, 2.0)
    only_late(model)
    for name, weight in model.named_parameters():
        norms = only_late.layers[name]
        assert len(norms) == 3 and norms[2] == weight.grad.norm().item()
        assert all(math.isnan(norm) for norm in norms[:2])


def test_freezing_drops_gradients_and_unfreezing_keeps_them():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model(torch.ones(4, 2)).sum().backward()
    assert gc.unfreeze(model) == 13
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
    assert gc.freeze(model[0]) == 9
    assert all(not p.requires_grad and p.grad is None for p in model[0].parameters())
    assert all(p.requires_grad and p.grad is not None for p in model[1].parameters())


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_no_optimizer_moves_frozen_weights(kind):
    model = MLP(16, 3, width=8, seed=1)
    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.1, **settings)
    fit(model, (X, Y), optimizer, steps=3)
    assert gc.freeze(model.layers) == sum(p.numel() for p in model.layers.parameters())
    frozen = [p.detach().clone() for p in model.layers.parameters()]
    head = model.head.weight.detach().clone()
    fit(model, (X, Y), optimizer, steps=3)
    assert all(
        torch.equal(a, b) for a, b in zip(frozen, model.layers.parameters(), strict=True)
    )
    assert not torch.equal(head, model.head.weight)
    gc.unfreeze(model.layers)
    fit(model, (X, Y), optimizer, steps=1)
    assert not torch.equal(frozen[0], next(model.layers.parameters()))
