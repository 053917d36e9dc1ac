"""Model compression: equal to torch, numpy and brute force; edge cases, invariants,
exercises.
"""

import copy
import io
import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from dlcourse import model_compression as mc
from dlcourse.batch_normalization import fold_batch_norm
from dlcourse.exercises.model_compression import EXERCISES
from dlcourse.lab.evaluation import evaluate
from dlcourse.lab.launching import launch
from dlcourse.lab.models import MLP, SmallCNN
from dlcourse.lab.training import fit, train_step, use_one_thread

use_one_thread()
X = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 3
BITS = (2, 3, 4, 5, 6, 7, 8)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_weight(seed, dtype=torch.float32, ndim=None):
    g = generator(seed)
    ndim = int(torch.randint(1, 5, (), generator=g)) if ndim is None else ndim
    shape = torch.randint(1, 7, (ndim,), generator=g).tolist()
    size = 10.0 ** float(torch.rand((), generator=g) * 6 - 3)
    return torch.randn(shape, generator=g, dtype=dtype) * size


def mlp(seed=1, width=8):
    return MLP(16, 3, width=width, seed=seed)


# --- pruning --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(25))
def test_magnitude_mask_equals_torch(seed, dtype):
    weight = random_weight(seed, dtype)
    for amount in (0.0, 0.1, 0.5, 0.77, 1.0, 0, 1, weight.numel()):
        layer = nn.Module()
        layer.weight = nn.Parameter(weight.clone())
        prune.l1_unstructured(layer, "weight", amount=amount)
        expected = layer.weight_mask.bool()
        assert torch.equal(mc.magnitude_mask(weight, amount), expected)


@pytest.mark.parametrize("seed", range(25))
def test_global_prune_equals_torch(seed):
    ours, theirs = (
        nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)) for _ in range(2)
    )
    for layer, size in ((ours[0], 1.0), (ours[2], 0.3)):
        nn.init.normal_(layer.weight, std=size, generator=generator(seed))
    theirs.load_state_dict(ours.state_dict())
    for amount in (0.0, 0.3, 0.9, 7):
        twin = copy.deepcopy(theirs)
        pairs = [(twin[0], "weight"), (twin[2], "weight")]
        prune.global_unstructured(
            pairs, pruning_method=prune.L1Unstructured, amount=amount
        )
        masks = mc.global_prune(ours, amount)
        assert torch.equal(masks["0"], twin[0].weight_mask.bool())
        assert torch.equal(masks["2"], twin[2].weight_mask.bool())
        local = mc.magnitude_prune(ours, 0.5)
        assert torch.equal(local["2"], mc.magnitude_mask(ours[2].weight, 0.5))


def test_magnitude_mask_of_odd_tensors():
    assert mc.magnitude_mask(torch.zeros(0), 0.5).shape == (0,)
    assert mc.magnitude_mask(torch.tensor(3.0), 1).shape == ()
    assert mc.magnitude_mask(torch.ones(4), 2).tolist() == [False, False, True, True]
    strided = torch.randn(6, 8, generator=generator(0))[::2].T
    assert torch.equal(
        mc.magnitude_mask(strided, 5), mc.magnitude_mask(strided.contiguous(), 5)
    )
    extreme = torch.tensor([1e-38, -1e38, 0.0, 1e-45])
    assert mc.magnitude_mask(extreme, 3).tolist() == [False, True, False, False]


def test_masks_nest_and_drop_the_smallest():
    for seed in range(20):
        weight, before = random_weight(seed), None
        for amount in (0.1, 0.3, 0.6, 0.95):
            mask = mc.magnitude_mask(weight, amount)
            assert int((~mask).sum()) == round(amount * weight.numel())
            if 0 < mask.sum() < mask.numel():
                assert weight[~mask].abs().max() <= weight[mask].abs().min()
            assert before is None or not (mask & ~before).any()
            before = mask


@pytest.mark.parametrize("bad", [-0.1, 1.5, -1, 99, math.nan])
def test_amounts_that_cannot_be_meant(bad):
    with pytest.raises(ValueError, match="share from 0.0 to 1.0"):
        mc.magnitude_mask(torch.ones(5), bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(bad):
    x = torch.tensor([[1.0, bad, 2.0, 3.0]])
    for call in (
        lambda: mc.magnitude_mask(x, 1),
        lambda: mc.n_m_mask(x),
        lambda: mc.choose_qparams(x),
        lambda: mc.low_rank_factors(x, 1),
    ):
        with pytest.raises(ValueError, match="NaN or infinity"):
            call()


@pytest.mark.parametrize(
    ("n", "m"), [(0, 2), (1, 2), (2, 4), (1, 4), (3, 4), (3, 6), (4, 4)]
)
def test_n_m_keeps_the_best_of_all_masks(n, m):
    for seed in range(10):
        weight = torch.randn(3, 2 * m, generator=generator(seed))
        mask = mc.n_m_mask(weight, n, m)
        assert mask.shape == weight.shape
        for row, kept in zip(weight.reshape(-1, m), mask.reshape(-1, m), strict=True):
            choices = itertools.combinations(range(m), n)
            best = max(
                choices, key=lambda c, row=row: sum(row[i].abs().item() for i in c)
            )
            assert kept.nonzero()[:, 0].tolist() == sorted(best)


def test_n_m_needs_groups_that_fit():
    for weight, n, m in (
        (torch.ones(2, 6), 2, 4),
        (torch.ones(2, 4), 5, 4),
        (torch.ones(()), 1, 1),
    ):
        with pytest.raises(ValueError, match="divides the last dimension"):
            mc.n_m_mask(weight, n, m)
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2))
    assert set(mc.prune_n_m(model)) == {"0"}  # 4 does not divide 6


def test_saliency_is_the_first_order_change_of_the_loss():
    model = mlp().double()
    with pytest.raises(ValueError, match="backward"):
        mc.saliency_prune(model, 0.5)
    x = X.double()
    F.cross_entropy(model(x), Y).backward()
    layer, before = model.head, F.cross_entropy(model(x), Y).item()
    change = torch.zeros_like(layer.weight)
    for i, j in itertools.product(*map(range, layer.weight.shape)):
        twin = copy.deepcopy(model)
        twin.head.weight.data[i, j] *= 1 - 1e-5
        change[i, j] = abs(F.cross_entropy(twin(x), Y).item() - before)
    mask = mc.saliency_prune(model, 0.5)["head"]
    assert change[~mask].max() <= change[mask].min() * 1.01


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_no_optimizer_refills_masked_weights(kind):
    model = mlp()
    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    fit(model, (X, Y), kind(model.parameters(), lr=0.05, **settings), steps=5)
    masks = mc.global_prune(model, 0.7)
    mc.apply_masks(model, masks)
    optimizer = kind(model.parameters(), lr=0.05, weight_decay=0.1, **settings)
    before = model.head.weight.detach().clone()
    fit(model, (X, Y), optimizer, steps=5)
    assert mc.sparsity(model) == pytest.approx(0.7, abs=0.01)
    assert all(
        (model.get_submodule(name).weight[~mask] == 0).all()
        for name, mask in masks.items()
    )
    assert not torch.equal(before, model.head.weight)
    assert torch.equal(mc.bake(model)(X), model(X))
    assert mc.bake(model).state_dict().keys() == mlp().state_dict().keys()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_an_optimizer_older_than_the_masks_trains_on(kind):
    model = mlp()
    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.05, weight_decay=0.1, **settings)
    fit(model, (X, Y), optimizer, steps=5)
    weight = model.head.weight
    mc.apply_masks(model, mc.global_prune(model, 0.7))
    assert model.head.parametrizations.weight.original is weight

    before = model.head.weight.detach().clone()
    fit(model, (X, Y), optimizer, steps=5)
    after = model.head.weight.detach()
    assert mc.sparsity(model) == pytest.approx(0.7, abs=0.01)
    assert (after != before)[before != 0].all()


def test_masks_change_the_order_of_the_parameters():
    layer = nn.Linear(8, 4)
    weight, bias = layer.parameters()
    model = mc.apply_masks(
        nn.Sequential(layer), {"0": torch.ones(4, 8, dtype=torch.bool)}
    )
    first, second = model.parameters()
    assert first is bias
    assert second is weight


def test_masked_weights_train_as_torchs_own_do():
    ours, theirs = mlp(), mlp()
    masks = mc.magnitude_prune(ours, 0.6)
    mc.apply_masks(ours, masks)
    for name, mask in masks.items():
        prune.custom_from_mask(theirs.get_submodule(name), "weight", mask)
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        fit(model, (X, Y), optimizer, steps=20)
    assert torch.equal(ours(X), theirs(X))


@pytest.mark.parametrize("kind", [np.int64, np.int32, int])
def test_numpys_whole_numbers_are_counts_too(kind):
    weight = torch.randn(4, 5, generator=generator(0))
    for count in (0, 1, 7):
        assert int((~mc.magnitude_mask(weight, kind(count))).sum()) == count
    assert int((~mc.magnitude_mask(weight, np.float32(0.5))).sum()) == 10


def test_masks_that_do_not_fit():
    with pytest.raises(ValueError, match="this very model"):
        mc.apply_masks(mlp(), {"head": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(KeyError):
        mc.apply_masks(mlp(), {"nothing": torch.ones(2, 2, dtype=torch.bool)})
    model = mlp()
    with pytest.raises(KeyError):
        mc.apply_masks(
            model, {**mc.global_prune(model, 0.5), "nothing": torch.ones(2, 2)}
        )
    assert mc.sparsity(model) == 0  # nothing was done by halves
    with pytest.raises(ValueError, match="no linear or convolution"):
        mc.global_prune(nn.ReLU(), 0.5)


def test_gradual_sparsity():
    s = mc.gradual_sparsity(0.9, 100, start=20)
    values = [s(t) for t in range(200)]
    assert values[20] == 0 and values[120] == 0.9 == values[-1]
    assert all(a <= b for a, b in itertools.pairwise(values))
    assert s(70) == pytest.approx(0.9 * (1 - 0.5**3))
    for bad in ((1.1, 10), (0.5, 0), (-0.1, 5)):
        with pytest.raises(ValueError, match="a share and at least one step"):
            mc.gradual_sparsity(*bad)


def trained(step, **settings):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    history = fit(
        model, (X, Y), optimizer, steps=30, batch_size=20, step=step, **settings
    )
    return model, history


def test_the_pruning_step_switched_off_is_train_step_to_the_bit():
    plain, history = trained(train_step)
    off, same = trained(mc.pruning_step(lambda t: 0.0))
    assert history.loss == same.loss
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.parameters(), off.parameters(), strict=True)
    )


def test_the_pruning_step_prunes_and_keeps_its_zeros():
    step = mc.pruning_step(mc.gradual_sparsity(0.8, 20), every=5)
    model, _ = trained(step)
    assert mc.sparsity(model) == pytest.approx(0.8, abs=0.01)
    parts, _ = trained(
        mc.pruning_step(mc.gradual_sparsity(0.8, 20), every=5), accumulation_steps=4
    )
    assert torch.allclose(model.head.weight, parts.head.weight, atol=1e-4)


def test_the_pruning_step_forgets_an_earlier_run():
    once, reused = (
        mc.pruning_step(mc.gradual_sparsity(0.8, 20), every=5) for _ in range(2)
    )
    first, _ = trained(once)
    trained(reused)
    second, _ = trained(reused)
    assert torch.equal(first(X), second(X))


def pruned_run():
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from dlcourse import model_compression as mc
    from dlcourse.lab.models import MLP
    from dlcourse.lab.training import fit

    x = torch.randn(61, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = MLP(16, 3, width=8, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    step = mc.pruning_step(mc.gradual_sparsity(0.8, 10), every=4)
    fit(model, (x, torch.arange(61) % 3), optimizer, epochs=5, batch_size=21, step=step)
    weights = [p.detach().ravel().tolist() for p in model.parameters()]

    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine = x[:60].tensor_split(world)[rank]
    seen, fresh = mc.RangeObserver(), MLP(16, 3, width=8, seed=2)
    seen(mine)
    fresh(mine).square().mean().backward()
    masks = {n: m.tolist() for n, m in mc.saliency_prune(fresh, 0.5).items()}
    if world > 1:  # DDP sends the first process's buffers around
        quantizer = mc.FakeQuantize(8, symmetric=False, observer=mc.RangeObserver())
        wrapped = DistributedDataParallel(
            torch.nn.Sequential(quantizer, torch.nn.Linear(1, 1))
        )
        for value in (100.0 if rank else 1.0, 2.0):
            wrapped(torch.full((3, 1), value)).sum().backward()
        assert quantizer.observer.high == 100.0
    return weights, mc.sparsity(model), [seen.low.item(), seen.high.item(), masks]


def test_two_processes_prune_and_observe_as_one_does():
    ((weights, share, ranges),) = launch(pruned_run, processes=1)
    both = launch(pruned_run, processes=2)
    assert both[0] == both[1]
    assert share == both[0][1] == pytest.approx(0.8, abs=0.01)
    assert ranges == both[0][2]
    for a, b in zip(weights, both[0][0], strict=True):
        assert np.allclose(a, b, atol=1e-4)


# --- pruning whole units --------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [0.0, 0.25, 0.9, 1.0, 3])
def test_fewer_units_compute_what_masked_units_would(amount):
    for make in (mlp, lambda seed: SmallCNN(1, 3, width=4, seed=seed)):
        for seed in range(4):
            model = make(seed)
            for p in model.parameters():
                if p.ndim == 1:
                    nn.init.normal_(p, generator=generator(seed))
            small, masked = mc.prune_units(model, amount), copy.deepcopy(model)
            for _, layer in list(mc.layers._layers(masked))[:-1]:
                gone = ~mc.unit_mask(layer.weight, amount)
                layer.weight.data[gone] = 0
                layer.bias.data[gone] = 0
            images = (
                torch.randn(9, 1, 8, 8, generator=generator(seed))
                if make is not mlp
                else X
            )
            assert torch.allclose(small(images), masked(images), atol=1e-5)
            sizes = [sum(p.numel() for p in m.parameters()) for m in (small, model)]
            assert sizes[0] < sizes[1] or amount == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_units_go_by_the_norm_as_in_torch(seed):
    weight = torch.randn(9, 5, generator=generator(seed))
    layer = nn.Linear(5, 9)
    layer.weight.data = weight.clone()
    prune.ln_structured(layer, "weight", amount=4, n=2, dim=0)
    assert torch.equal(mc.unit_mask(weight, 4), layer.weight_mask[:, 0].bool())


def test_units_of_what_is_no_chain():
    with pytest.raises(ValueError, match="chain"):
        mc.prune_units(nn.Sequential(nn.Linear(4, 5), nn.Linear(6, 2)), 0.5)
    with pytest.raises(ValueError, match="grouped"):
        mc.prune_units(
            nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)), 0.5
        )
    with pytest.raises(ValueError, match="fold norm"):
        mc.prune_units(
            nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)), 0.5
        )


def test_one_unit_stays_and_the_model_trains_on():
    small = mc.prune_units(mlp(), 1.0)
    assert small.layers[0].out_features == small.head.in_features == 1
    fit(small, (X, Y), torch.optim.SGD(small.parameters(), lr=0.1), steps=2)


def test_units_of_what_only_looks_like_a_chain():
    for first, second in (
        (nn.Linear(4, 5), nn.Linear(10, 2)),
        (nn.Linear(4, 5), nn.Linear(4, 2)),
    ):
        with pytest.raises(ValueError, match="chain"):
            mc.prune_units(nn.Sequential(first, second), 0.5)
    with pytest.raises(ValueError, match="chain"):
        mc.prune_units(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(8, 2, 1)), 0.5)
    with pytest.raises(ValueError, match="chain"):
        mc.prune_units(
            nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten(), nn.Linear(9, 2)), 0.5
        )


@pytest.mark.parametrize("amount", [0.0, 0.3, 0.5, 3, 1.0])
def test_a_filter_goes_with_all_cells_of_its_grid(amount):
    for seed in range(6):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2, bias=seed % 2),
            nn.ReLU(), nn.Flatten(), nn.Linear(5 * 3 * 2, 7), nn.ReLU(), nn.Linear(7, 3),
        )  # fmt: skip
        x = torch.randn(4, 1, 8, 6, generator=generator(seed))
        small, masked = mc.prune_units(model, amount), copy.deepcopy(model)
        for layer in (masked[0], masked[2], masked[5]):
            gone = ~mc.unit_mask(layer.weight, amount)
            layer.weight.data[gone] = 0
            if layer.bias is not None:
                layer.bias.data[gone] = 0
        assert torch.allclose(small(x), masked(x), atol=1e-5)
        assert small[5].in_features == small[2].out_channels * 6


# --- batch norms ----------------------------------------------------------------------------------


def test_a_network_is_folded_then_cut_and_quantized():
    model = cnn(3).eval()
    model[1].running_var.uniform_(0.1, 3)
    folded = copy.deepcopy(model)
    folded[0], folded[1] = fold_batch_norm(model[0], model[1]), nn.Identity()
    assert torch.allclose(folded(X), model(X), atol=1e-5)
    assert mc.model_size(folded) < mc.model_size(model)
    small = mc.quantize_model(folded, 8, activations="static", calibration=X)
    assert (small(X) - model(X)).abs().max() < 0.05
    chain = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 3),
    )
    with pytest.raises(ValueError, match="fold_batch_norm"):
        mc.prune_units(chain, 0.5)
    chain[0], chain[1] = fold_batch_norm(chain[0], chain[1].eval()), nn.Identity()
    assert mc.prune_units(chain, 0.5)[0].out_channels == 3


# --- quantization ---------------------------------------------------------------------------------


def test_ranges():
    assert mc.quant_range(8, True) == (-127, 127) and mc.quant_range(8, False) == (0, 255)
    assert mc.quant_range(2, True) == (-1, 1) and mc.quant_range(2, False) == (0, 3)
    for bad in (1, 9, 0, 4.5):
        with pytest.raises(ValueError, match="from 2 to 8"):
            mc.quant_range(bad, True)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_qparams_equal_torchs_observers(bits, symmetric):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated")
        from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver
    qmin, qmax = mc.quant_range(bits, symmetric)
    kind = "symmetric" if symmetric else "affine"
    common = {"dtype": torch.qint8 if symmetric else torch.quint8, "quant_min": qmin,
              "quant_max": qmax, "eps": torch.finfo(torch.float32).tiny}  # fmt: skip
    for seed in range(12):
        x = random_weight(seed, ndim=2) + seed % 3 - 1
        whole = MinMaxObserver(qscheme=getattr(torch, f"per_tensor_{kind}"), **common)
        rows = PerChannelMinMaxObserver(
            0, qscheme=getattr(torch, f"per_channel_{kind}"), **common
        )
        for observer, axis in ((whole, None), (rows, 0)):
            observer(x)
            scale, zero_point = mc.choose_qparams(x, bits, symmetric, axis)
            expected = observer.calculate_qparams()
            assert torch.allclose(scale, expected[0].view(scale.shape), rtol=1e-6)
            assert (zero_point - expected[1].view(scale.shape)).abs().max() <= 0


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("seed", range(6))
def test_fake_quantize_equals_torch_to_the_bit(seed, bits, symmetric):
    qmin, qmax = mc.quant_range(bits, symmetric)
    for dtype, layout in itertools.product(
        (torch.float32, torch.float64), ("plain", "transposed")
    ):
        x = random_weight(seed, dtype, ndim=2) + (seed % 3 - 1)
        x = x.T if layout == "transposed" else x
        # a scale that clips, one that fits, one that wastes
        factor = (0.5, 1.0, 2.0)[seed % 3]
        for axis in (None, 0, 1, -1):
            scale, zero_point = mc.choose_qparams(x, bits, symmetric, axis)
            scale = scale * factor
            ours, theirs = (x.clone().requires_grad_() for _ in range(2))
            got = mc.fake_quantize(ours, scale, zero_point, bits, symmetric, axis)
            if axis is None:
                want = torch.fake_quantize_per_tensor_affine(
                    theirs, float(scale), int(zero_point), qmin, qmax
                )
            else:
                want = torch.fake_quantize_per_channel_affine(
                    theirs, scale, zero_point, axis % 2, qmin, qmax
                )
            if dtype == torch.float32 or axis is not None:
                assert torch.equal(got, want)
            else:  # torch multiplies in float32 here and returns float64
                assert torch.allclose(got, want, rtol=1e-6, atol=1e-12)
            upstream = torch.randn(x.shape, generator=generator(seed), dtype=dtype)
            got.backward(upstream)
            want.backward(upstream)
            assert torch.equal(ours.grad, theirs.grad)
            if dtype == torch.float32:
                q = mc.quantize(x, scale, zero_point, bits, symmetric, axis)
                assert torch.equal(mc.dequantize(q, scale, zero_point, axis), want)


def test_round_trip_keeps_zero_and_stays_within_half_a_step():
    for seed, bits, symmetric in itertools.product(range(6), (2, 4, 8), (True, False)):
        x = random_weight(seed, ndim=2)
        x[0, 0] = 0.0
        scale, zero_point = mc.choose_qparams(x, bits, symmetric)
        q = mc.quantize(x, scale, zero_point, bits, symmetric)
        back = mc.dequantize(q, scale, zero_point)
        # the zero point is rounded, so an end may lie outside
        slack = 0.5 if symmetric else 1.0
        assert ((x - back).abs() <= slack * scale * (1 + 1e-5)).all() and back[0, 0] == 0
        assert q.dtype == (torch.int8 if symmetric else torch.uint8)
        assert torch.allclose(mc.FakeQuantize(bits, symmetric)(back), back, rtol=1e-5)


def test_quantizing_16_bit_values_computes_in_32():
    for dtype, symmetric in itertools.product(
        (torch.float16, torch.bfloat16), (True, False)
    ):
        x = (torch.randn(40, generator=generator(3)) + 1).to(dtype)
        scale, zero_point = mc.choose_qparams(x, 8, symmetric)
        q = mc.quantize(x, scale, zero_point, 8, symmetric)
        assert torch.equal(q, mc.quantize(x.float(), scale, zero_point, 8, symmetric))
        assert mc.fake_quantize(x, scale, zero_point, 8, symmetric).dtype == dtype


def test_a_scale_for_each_channel_is_never_worse_in_the_worst_case():
    for seed in range(30):
        x = torch.randn(6, 9, generator=generator(seed)) * torch.logspace(
            -2, 0, 6
        ).unsqueeze(1)
        for bits in (2, 4, 8):
            bound = []
            for axis in (None, 0):
                scale, _ = mc.choose_qparams(x, bits, axis=axis)
                error = (mc.FakeQuantize(bits, axis=axis)(x) - x).square().sum()
                bound.append((scale.max(), error))
            assert (mc.choose_qparams(x, bits, axis=0)[0] <= bound[0][0]).all()
            assert bound[1][1] <= bound[0][1]


def test_quantizing_odd_tensors():
    for shape in ((), (1,), (0, 3)):
        x = torch.zeros(shape)
        if not x.numel():
            with pytest.raises(ValueError, match="at least one value"):
                mc.choose_qparams(x)
            continue
        scale, zero_point = mc.choose_qparams(x)
        assert scale == 1 and mc.quantize(x, scale, zero_point).abs().sum() == 0
    big = torch.tensor([3e38, -1e-30, 1.0])
    scale, zero_point = mc.choose_qparams(big)
    assert (
        mc.dequantize(mc.quantize(big, scale, zero_point), scale, zero_point)
        .isfinite()
        .all()
    )
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.3])
    q = mc.quantize(x[1:], torch.tensor(0.1), torch.tensor(0))
    assert q.tolist() == [127, -127, 3]
    half = torch.tensor([0.5, 1.5, 2.5, -0.5])  # ties go to the even neighbour
    assert mc.quantize(half, torch.tensor(1.0), torch.tensor(0)).tolist() == [0, 2, 2, 0]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_packing_returns_every_number(bits):
    for seed, count in itertools.product(range(5), (0, 1, 2, 3, 7, 8, 9, 33)):
        values = torch.randint(0, 2**bits, (count,), generator=generator(seed)).to(
            torch.uint8
        )
        packed = mc.pack_bits(values, bits)
        assert packed.dtype == torch.uint8 and len(packed) == math.ceil(count * bits / 8)
        assert torch.equal(mc.unpack_bits(packed, bits, (count,)), values)
        if bits > 1:
            signed = (
                values.to(torch.int8) - 2 ** (bits - 1)
                if bits < 8
                else values.view(torch.int8)
            )
            again = mc.unpack_bits(
                mc.pack_bits(signed, bits), bits, (count,), signed=True
            )
            assert torch.equal(again, signed) and again.dtype == torch.int8
        wide = np.unpackbits(values.numpy()[:, None], axis=1, bitorder="little")[:, :bits]
        assert packed.tolist() == np.packbits(wide.ravel(), bitorder="little").tolist()


def test_packing_keeps_shapes_and_refuses_what_does_not_fit():
    values = torch.randint(-7, 8, (3, 5), generator=generator(0))
    packed = mc.pack_bits(values.T, 4)
    assert torch.equal(mc.unpack_bits(packed, 4, (5, 3), signed=True), values.T)
    assert mc.pack_bits(torch.tensor([True, False, True]), 1).tolist() == [5]
    with pytest.raises(ValueError, match="quantize the values first"):
        mc.pack_bits(torch.tensor([1.7]), 8)
    for bad, bits in (
        ([16], 4), ([-9], 4), ([2], 1), ([-1], 1), ([-1, 255], 8), ([65541], 8),
    ):  # fmt: skip
        bad = torch.tensor(bad)
        with pytest.raises(ValueError, match="do not fit"):
            mc.pack_bits(bad, bits)
    for call in (mc.pack_bits, lambda v, b: mc.unpack_bits(v, b, (1,))):
        with pytest.raises(ValueError, match="fill bytes"):
            call(torch.zeros(1, dtype=torch.uint8), 3)


def torch_dynamic(model, per_channel):
    """Return torch's dynamically quantized copy, with our weight range -127 to 127."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated")
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
        from torch.ao import quantization as tq

        kind = tq.PerChannelMinMaxObserver if per_channel else tq.MinMaxObserver
        scheme = (
            torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric
        )
        weight = kind.with_args(
            dtype=torch.qint8, qscheme=scheme, quant_min=-127, quant_max=127
        )
        activation = tq.default_dynamic_quant_observer
        config = {nn.Linear: tq.QConfig(activation=activation, weight=weight)}
        return tq.quantize_dynamic(model, config, dtype=torch.qint8)


@pytest.mark.parametrize("per_channel", [False, True])
def test_quantized_linear_equals_torchs_dynamic_one(per_channel):
    for seed in range(20):
        linear = nn.Linear(24, 11, bias=seed % 2 == 0)
        nn.init.normal_(linear.weight, generator=generator(seed))
        x = torch.randn(13, 24, generator=generator(100 + seed)) + seed % 3
        theirs = torch_dynamic(nn.Sequential(linear), per_channel)
        ours = mc.QuantizedLinear(linear, 8, per_channel, "dynamic", input_bits=7)
        assert torch.equal(theirs[0].weight().int_repr(), ours.whole())
        assert torch.allclose(ours.weight, theirs[0].weight().dequantize(), rtol=1e-6)
        # torch takes 7 bits for the input here; its zero point may differ from ours by
        # one
        step = float(mc.choose_qparams(x, 7, symmetric=False)[0])
        assert (ours(x) - theirs(x)).abs().max() <= 2 * step * ours.weight.abs().max()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantized_linear_computes_with_the_rounded_weight(bits, per_channel):
    linear = nn.Linear(9, 5)
    x = torch.randn(7, 9, generator=generator(0))
    layer = mc.QuantizedLinear(linear, bits, per_channel)
    rounded = mc.FakeQuantize(bits, axis=0 if per_channel else None)(linear.weight)
    assert torch.allclose(layer.weight, rounded, atol=1e-7)
    assert torch.allclose(layer(x), F.linear(x, rounded, linear.bias), atol=1e-6)
    assert layer.packed.numel() == math.ceil(45 * bits / 8)
    for activations in ("dynamic", "static"):
        seen = mc.RangeObserver()
        seen(x)
        observer = seen if activations == "static" else None
        layer = mc.QuantizedLinear(linear, bits, per_channel, activations, observer)
        coarse = mc.FakeQuantize(8, symmetric=False)(x)
        assert torch.allclose(layer(x), F.linear(coarse, rounded, linear.bias), atol=1e-5)


def test_quantized_linear_settings():
    linear = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="float, dynamic or static"):
        mc.QuantizedLinear(linear, activations="int8")
    with pytest.raises(ValueError, match="calibrate"):
        mc.QuantizedLinear(linear, activations="static")
    with pytest.raises(ValueError, match="training inputs"):
        mc.quantize_model(mlp(), activations="static")


def test_quantize_model_replaces_each_linear_and_leaves_the_original():
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    for settings in (
        {},
        {"activations": "dynamic"},
        {"activations": "static", "calibration": X},
    ):
        small = mc.quantize_model(model, **settings)
        assert sum(isinstance(m, mc.QuantizedLinear) for m in small.modules()) == 3
        assert (small(X) - model(X)).abs().max() < 0.1
        assert evaluate(small, (X, Y))["count"] == 60
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert isinstance(mc.quantize_model(nn.Linear(3, 2)), mc.QuantizedLinear)


def test_calibration_sees_what_enters_each_layer():
    model = mlp()
    seen = mc.calibrate(model, X)
    assert set(seen) == {"layers.0", "layers.1", "head"}
    assert seen["layers.0"].low == X.min() and seen["layers.0"].high == X.max()
    assert seen["head"].low >= 0  # after ReLU
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("inputs", [False, True])
def test_convert_computes_what_was_trained(inputs):
    for bits in (2, 4, 8):
        model = mc.prepare_qat(mlp(), bits, per_channel=bits != 4, inputs=inputs)
        assert isinstance(model.head, mc.QATLinear)
        fit(model, (X, Y), torch.optim.SGD(model.parameters(), lr=0.1), steps=10)
        model.eval()
        small = mc.convert(model).eval()
        assert torch.allclose(small(X), model(X), atol=1e-4)
        assert small.head.activations == ("static" if inputs else "float")


def test_observers_grow_in_training_only():
    quantizer = mc.FakeQuantize(8, symmetric=False, observer=mc.RangeObserver())
    quantizer(torch.tensor([-1.0, 2.0]))
    quantizer.eval()
    assert quantizer(torch.tensor([9.0])) == pytest.approx(2.0, abs=0.01)
    assert quantizer.observer.high == 2.0
    quantizer.train()(torch.tensor([9.0]))
    assert quantizer.observer.high == 9.0 and quantizer.observer.low == -1.0


def test_quantizers_refuse_what_no_whole_number_stands_for():
    x = torch.randn(4, 4, generator=generator(0))
    scale, zero = mc.choose_qparams(x, axis=0)
    for call in (mc.quantize, mc.fake_quantize):
        with pytest.raises(ValueError, match="4 scales"):
            call(x, scale, zero)  # axis= forgotten: would pass on a square weight
        with pytest.raises(ValueError, match="2 dimensions"):
            call(x, scale, zero, axis=2)
    with pytest.raises(ValueError, match="4 scales"):
        mc.dequantize(mc.quantize(x, scale, zero, axis=0), scale, zero)
    with pytest.raises(ValueError, match="2 dimensions"):
        mc.choose_qparams(x, axis=-3)
    for bad, step in ((math.nan, 1.0), (1.0, 0.0), (1.0, -1.0), (1.0, math.nan)):
        with pytest.raises(ValueError, match="NaN, or a scale"):
            mc.quantize(torch.tensor([bad]), torch.tensor(step), torch.tensor(0))
    for huge in (
        torch.tensor([-3e38, 3e38]),
        torch.tensor([1e300, 0.0], dtype=torch.float64),
    ):
        with pytest.raises(ValueError, match="wider than float32"):
            mc.choose_qparams(huge, symmetric=False)


def test_an_observer_that_saw_nothing_is_no_range():
    empty, spoilt = mc.RangeObserver(), mc.RangeObserver()
    spoilt(torch.tensor([1.0, math.nan]))
    for observer in (empty, spoilt):
        with pytest.raises(ValueError, match="finite values first"):
            mc.QuantizedLinear(nn.Linear(2, 2), activations="static", observer=observer)
        with pytest.raises(ValueError, match="finite values first"):
            mc.FakeQuantize(observer=observer).eval()(torch.ones(2))
    with pytest.raises(ValueError, match="finite values first"):
        mc.convert(mc.prepare_qat(mlp(), inputs=True))


def test_calibration_leaves_no_hook_and_no_mode_behind():
    model = mlp()
    model.head.eval()
    mc.calibrate(model, X)
    assert model.training and not model.head.training
    with pytest.raises(ValueError, match="this MLP takes"):
        mc.calibrate(model, X[:, :, :2])
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert model.training and not model.head.training


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activations", ["float", "dynamic"])
def test_quantized_layers_answer_in_the_dtype_of_the_model(dtype, activations):
    linear, x = nn.Linear(9, 5), torch.randn(7, 9, generator=generator(0))
    wide = mc.QuantizedLinear(linear, activations=activations)(x)
    got = mc.QuantizedLinear(linear.to(dtype), activations=activations)(x.to(dtype))
    assert got.dtype == dtype
    assert torch.allclose(got.float(), wide, atol=0.05)


# --- quantization: convolutions -------------------------------------------------------------------


def random_conv(seed, dtype=torch.float32):
    """Return a Conv2d of random shape, an input for it, and the settings of F.conv2d."""
    g = generator(seed)

    def one_of(*choices):
        return choices[int(torch.randint(0, len(choices), (), generator=g))]

    groups, inputs, outputs = one_of(
        (1, 1, 1), (1, 3, 5), (2, 4, 6), (4, 4, 4), (3, 6, 9)
    )
    kernel = one_of((1, 1), (3, 3), (2, 3), (1, 3), (5, 5))
    stride, dilation = (
        one_of((1, 1), (2, 2), (1, 2), (3, 1)),
        one_of((1, 1), (2, 2), (1, 2)),
    )
    padding = one_of(
        (0, 0), (1, 1), (2, 1), "valid", "same" if stride == (1, 1) else (3, 3)
    )
    conv = nn.Conv2d(
        inputs,
        outputs,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias=one_of(True, False),
    ).to(dtype)
    sizes = 10.0 ** (4 * torch.rand(outputs, generator=g) - 2).view(-1, 1, 1, 1)
    conv.weight.data = (torch.randn(conv.weight.shape, generator=g) * sizes).to(dtype)
    if conv.bias is not None:
        conv.bias.data = torch.randn(outputs, generator=g).to(dtype)
    x = torch.randn(one_of(1, 3), inputs, 11, 10, generator=g).to(dtype) + seed % 3
    return (
        conv,
        x,
        {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
    )


def torch_rounded(weight, bits, per_channel=True):
    """Return torch's own fake quantization of a weight, outputs first."""
    top = 2 ** (bits - 1) - 1
    largest = weight.detach().abs().flatten(1).amax(1)
    if per_channel:
        zero = torch.zeros(len(weight), dtype=torch.int32)
        scale = largest.float() / top
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -top, top)
    return torch.fake_quantize_per_tensor_affine(
        weight, float(largest.max() / top), 0, -top, top
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_quantized_convolutions_equal_torchs_to_the_bit(bits, per_channel):
    for seed in range(60):
        conv, x, how = random_conv(seed)
        rounded = torch_rounded(conv.weight, bits, per_channel).detach()
        layer = mc.QuantizedConv2d(conv, bits, per_channel)
        assert torch.equal(layer.weight, rounded)
        assert torch.equal(layer(x), F.conv2d(x, rounded, conv.bias, **how))
        assert layer.packed.numel() == math.ceil(rounded.numel() * bits / 8)
        # another kernel: another order of the sum
        last = x.to(memory_format=torch.channels_last)
        expected = F.conv2d(last, rounded, conv.bias, **how)
        assert torch.allclose(layer(last), expected, rtol=1e-4, atol=1e-4)
        alone = layer(x[0])  # an image without a batch
        assert torch.allclose(alone, expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per_channel", [True, False])
def test_qat_convolutions_equal_torchs_with_their_gradients(per_channel):
    for seed, bits in itertools.product(range(40), (2, 4, 8)):
        conv, x, how = random_conv(seed)
        twin = copy.deepcopy(conv)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        got = mc.QATConv2d(conv, bits, per_channel, inputs=False)(ours)
        rounded = torch_rounded(twin.weight, bits, per_channel)
        want = F.conv2d(theirs, rounded, twin.bias, **how)
        assert torch.equal(got, want)
        upstream = torch.randn(got.shape, generator=generator(seed))
        got.backward(upstream)
        want.backward(upstream)
        assert torch.equal(ours.grad, theirs.grad)
        assert torch.equal(conv.weight.grad, twin.weight.grad)
        assert conv.bias is None or torch.equal(conv.bias.grad, twin.bias.grad)


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_convolutions_of_whole_numbers_are_exact(activations):
    for seed, bits in itertools.product(range(30), (2, 4, 8)):
        conv, x, how = random_conv(seed)
        seen = mc.RangeObserver()
        seen(x if activations == "dynamic" else 0.7 * x)  # the second clamps
        observer = seen if activations == "static" else None
        layer = mc.QuantizedConv2d(conv, bits, True, activations, observer)
        scale, zero = mc.qparams_from_range(*seen.seen(), 8, False)
        coarse = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), 0, 255)
        rounded = torch_rounded(conv.weight, bits).double()
        expected = F.conv2d(coarse.double(), rounded, None, **how)
        if conv.bias is not None:
            expected += conv.bias.double().view(-1, 1, 1)
        room = 1e-6 * expected.abs().max()  # the reference rounds each value to float32
        assert (layer(x) - expected).abs().max() <= room


def test_whole_numbers_of_many_inputs_are_summed_without_rounding():
    conv = nn.Conv2d(600, 2, 3, bias=False)
    nn.init.ones_(conv.weight)
    conv.weight.data[1, 0, 0, 0] = 1 / 127  # one step of 8 bits
    x = torch.full((1, 600, 3, 3), 255.0)
    x[0, 0, 0, 0] = 1.0
    got = mc.QuantizedConv2d(conv, 8, activations="dynamic")(x).ravel()
    assert got.tolist() == pytest.approx([255 * 5399 + 1, 255 * 5399 + 1 / 127], rel=1e-7)
    numbers = torch.tensor([[255 * 127.0] * 5399 + [1.0]])
    assert numbers.sum() != numbers.double().sum()  # what float32 would have made of it


def brute_force(x, weight, stride, padding, dilation, groups):
    """Return the convolution of whole numbers, by its definition."""
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    outputs, each, kh, kw = weight.shape
    height = (x.shape[2] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    width = (x.shape[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = np.zeros((len(x), outputs, height, width), dtype=np.int64)
    for o, c, i, j in itertools.product(
        range(outputs), range(each), range(kh), range(kw)
    ):
        source = x[:, o // (outputs // groups) * each + c]
        rows = i * dilation[0] + stride[0] * np.arange(height)
        columns = j * dilation[1] + stride[1] * np.arange(width)
        out[:, o] += weight[o, c, i, j] * source[:, rows[:, None], columns]
    return out


def test_dynamic_convolutions_equal_the_definition():
    for seed in range(40):
        conv, x, how = random_conv(seed)
        if isinstance(how["padding"], str):
            continue
        layer = mc.QuantizedConv2d(conv, 4, True, "dynamic")
        scale, zero = mc.choose_qparams(x, 8, symmetric=False)
        q = mc.quantize(x, scale, zero, 8, symmetric=False).numpy().astype(
            np.int64
        ) - int(zero)
        sums = brute_force(q, layer.whole().numpy().astype(np.int64), **how)
        steps = (layer.scale * scale).double().numpy()[:, None, None]
        bias = 0 if conv.bias is None else conv.bias.detach().numpy()[:, None, None]
        got = layer(x).numpy()
        assert got.shape == sums.shape
        assert np.allclose(got, sums * steps + bias, rtol=1e-6, atol=1e-6)


def test_quantized_convolutions_equal_torchs_kernel():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
        for seed in range(60):
            conv, x, how = random_conv(seed)
            if isinstance(how["padding"], str):
                continue
            seen = mc.RangeObserver()
            seen(x)
            layer = mc.QuantizedConv2d(conv, 8, True, "static", seen, input_bits=7)
            zero = torch.zeros(len(layer.scale), dtype=torch.int64)
            weight = torch.quantize_per_channel(
                conv.weight.detach(), layer.scale.double(), zero, 0, torch.qint8
            )
            assert torch.equal(weight.int_repr(), layer.whole())
            packed = torch.ops.quantized.conv2d_prepack(
                weight,
                conv.bias,
                how["stride"],
                how["padding"],
                how["dilation"],
                how["groups"],
            )
            scale, zero = float(layer.input_scale), int(layer.input_zero_point)
            whole = torch.quantize_per_tensor(x, scale, zero, torch.quint8)
            got = layer(x)
            # torch rounds its answer
            step, middle = mc.choose_qparams(got, 8, symmetric=False)
            theirs = torch.ops.quantized.conv2d(whole, packed, float(step), int(middle))
            assert whole.int_repr().max() <= 127
            assert (got - theirs.dequantize()).abs().max() <= 0.51 * step


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_convolutions_pad_as_the_layer_did(mode):
    for padding, activations in itertools.product(
        (2, (1, 2), "same"), ("float", "dynamic")
    ):
        conv = nn.Conv2d(3, 4, 3, padding=padding, padding_mode=mode)
        x = torch.randn(2, 3, 7, 6, generator=generator(0))
        layer = mc.QuantizedConv2d(conv, 8, activations=activations)
        twin = copy.deepcopy(conv)
        twin.weight.data = layer.weight
        inputs = x if activations == "float" else mc.FakeQuantize(8, symmetric=False)(x)
        assert torch.allclose(layer(x), twin(inputs), atol=1e-5)
        assert torch.allclose(mc.QATConv2d(conv, 8, True, False)(x), twin(x), atol=1e-5)


def test_padding_adds_zeros_also_where_the_zero_point_is_not_zero():
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.full((1, 1, 2, 2), -3.0)  # the range is -3 to 0: the zero point is 255
    for activations in ("dynamic", "static"):
        seen = mc.RangeObserver()
        seen(x)
        observer = seen if activations == "static" else None
        layer = mc.QuantizedConv2d(conv, 8, activations=activations, observer=observer)
        assert torch.allclose(layer(x), torch.full((1, 1, 2, 2), -12.0), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activations", ["float", "dynamic"])
def test_quantized_convolutions_answer_in_the_dtype_of_the_model(dtype, activations):
    conv, x = nn.Conv2d(3, 5, 3), torch.randn(2, 3, 6, 6, generator=generator(0))
    wide = mc.QuantizedConv2d(conv, activations=activations)(x)
    got = mc.QuantizedConv2d(conv.to(dtype), activations=activations)(x.to(dtype))
    assert got.dtype == dtype
    assert torch.allclose(got.float(), wide, atol=0.05)


def test_odd_convolutions():
    conv = nn.Conv2d(2, 3, 3)
    nn.init.zeros_(conv.weight[1])
    layer = mc.QuantizedConv2d(conv, 2)
    assert layer.scale[1] == 1 and layer.weight[1].abs().sum() == 0
    assert layer(torch.empty(0, 2, 5, 5)).shape == (0, 3, 3, 3)
    last = copy.deepcopy(conv).to(memory_format=torch.channels_last)
    assert torch.equal(mc.QuantizedConv2d(last, 2).packed, layer.packed)
    conv.weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        mc.QuantizedConv2d(conv)
    for wrong in (nn.Linear(2, 2), nn.ConvTranspose2d(2, 2, 3), nn.Conv1d(2, 2, 3)):
        with pytest.raises(ValueError, match="is made of a Conv2d or QATConv2d"):
            mc.QuantizedConv2d(wrong)
    for wrong in (nn.Linear(2, 2), nn.Conv1d(2, 2, 3)):
        with pytest.raises(ValueError, match="QATConv2d is made of a Conv2d, not of"):
            mc.QATConv2d(wrong, 8, True, False)
    with pytest.raises(ValueError, match="QATLinear is made of a Linear, not of"):
        mc.QATLinear(nn.Conv2d(2, 2, 1), 8, True, False)
    with pytest.raises(ValueError, match="is made of a Linear or QATLinear"):
        mc.QuantizedLinear(nn.Conv2d(2, 2, 1))
    with pytest.raises(ValueError, match="calibrate"):
        mc.QuantizedConv2d(nn.Conv2d(2, 2, 1), activations="static")


def cnn(seed=0):
    """Return a network with every kind of layer that matters here."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=2, dilation=2, groups=2), nn.ReLU(),
        nn.Conv2d(8, 8, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


@pytest.mark.parametrize("settings", [
    {}, {"activations": "dynamic"}, {"activations": "static", "calibration": X},
])  # fmt: skip
def test_quantize_model_takes_convolutions_too(settings):
    model = cnn().eval()
    before = copy.deepcopy(model.state_dict())
    small = mc.quantize_model(model, **settings)
    kinds = [type(layer) for layer in small]
    assert kinds.count(mc.QuantizedConv2d) == 3 and kinds.count(mc.QuantizedLinear) == 1
    assert kinds.count(nn.BatchNorm2d) == 1
    assert (small(X) - model(X)).abs().max() < 0.05
    assert evaluate(small, (X, Y))["count"] == 60
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    last = X.to(memory_format=torch.channels_last)
    assert torch.allclose(small(last), small(X), atol=1e-5)


@pytest.mark.parametrize("inputs", [False, True])
def test_convolutions_train_with_the_rounding_and_convert(inputs):
    for bits in (2, 4, 8):
        model = mc.prepare_qat(cnn(bits), bits, per_channel=bits != 4, inputs=inputs)
        assert [type(layer) for layer in model].count(mc.QATConv2d) == 3
        before = model[3].weight.detach().clone()
        fit(model, (X, Y), torch.optim.SGD(model.parameters(), lr=0.05), steps=10)
        assert not torch.equal(before, model[3].weight)
        model.eval()
        small = mc.convert(model).eval()
        assert torch.allclose(small(X), model(X), atol=1e-4)
        assert small[3].activations == ("static" if inputs else "float")
        assert isinstance(small[3], mc.QuantizedConv2d) and isinstance(
            model[3], mc.QATConv2d
        )


def test_calibration_sees_what_enters_each_convolution():
    model = cnn().eval()
    seen = mc.calibrate(model, X)
    assert set(seen) == {"0", "3", "5", "8"}
    assert seen["0"].low == X.min() and seen["0"].high == X.max() and seen["3"].low >= 0
    assert seen["5"].high == model[:5](X).max()


def test_a_layer_with_two_names_is_replaced_under_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 1, 3, padding=1)
            self.second = self.first

        def forward(self, x):
            return self.second(self.first(x))

    model = Twice()
    small = mc.quantize_model(model, 8, activations="static", calibration=X)
    assert isinstance(small.second, mc.QuantizedConv2d) and small.first is small.second
    assert (small(X) - model(X)).abs().max() < 0.1
    assert mc.prepare_qat(model).second.weight is not model.second.weight


def test_models_without_a_layer_to_quantize_say_so():
    for call in (mc.quantize_model, mc.prepare_qat):
        with pytest.raises(ValueError, match="no Linear or Conv2d layer"):
            call(nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU()))
    with pytest.raises(ValueError, match="no QATLinear or QATConv2d layer"):
        mc.convert(cnn())
    with pytest.raises(ValueError, match="no Linear layer"):
        mc.factorize(nn.Conv2d(1, 1, 1), 1)


def test_bytes_of_quantized_convolutions_are_counted():
    model = SmallCNN(1, 3, width=8)
    for p in model.parameters():
        p.data += p.ndim == 1
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    rest = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    for bits in (8, 4, 2):
        size = mc.model_size(mc.quantize_model(model, bits))
        assert weights * bits // 8 < size < weights * bits // 8 + rest * 8 + 1100
    file, small = io.BytesIO(), mc.quantize_model(model, 4)
    mc.save_compact(small, file)
    file.seek(0)
    other = mc.load_compact(mc.quantize_model(SmallCNN(1, 3, width=8, seed=1), 4), file)
    images = torch.randn(3, 1, 8, 8, generator=generator(0))
    assert torch.equal(small(images), other(images))
    again = io.BytesIO()
    torch.save(small, again)  # the whole object, as some do
    again.seek(0)
    assert torch.equal(torch.load(again, weights_only=False)(images), small(images))


@pytest.mark.parametrize("seed", range(8))
def test_channels_are_cut_from_any_chain_of_convolutions(seed):
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    dims = 1 + seed % 3
    torch.manual_seed(seed)
    model = nn.Sequential(
        kinds[dims - 1](2, 6, 3, stride=2, padding=1, bias=seed % 2 == 0), nn.ReLU(),
        (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2),
        kinds[dims - 1](6, 5, 2, dilation=2, padding=2), nn.Tanh(),
        kinds[dims - 1](5, 4, 1, bias=False),
    )  # fmt: skip
    x = torch.randn(3, 2, *[9] * dims, generator=generator(seed))
    for amount in (0.0, 0.5, 2, 1.0):
        masked = copy.deepcopy(model)
        for layer in (masked[0], masked[3]):
            count = min(round(amount * len(layer.weight)) if isinstance(amount, float) else amount,
                        len(layer.weight) - 1)  # fmt: skip
            prune.ln_structured(layer, "weight", count, n=2, dim=0)
            if layer.bias is not None:
                layer.bias.data *= layer.weight_mask.flatten(1)[:, 0]
        small = mc.prune_units(model, amount)
        assert torch.allclose(small(x), masked(x), atol=1e-5)
        assert small[0].out_channels == small[3].in_channels == len(small[0].weight)


# --- distillation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(10))
def test_distillation_equals_kl_div(seed, dtype):
    g = generator(seed)
    student, teacher = torch.randn(2, 7, 4, generator=g, dtype=dtype) * 10 ** (
        seed % 4 - 1
    )
    targets = torch.randint(0, 4, (7,), generator=g)
    for t in (0.5, 1.0, 4.0, 20.0):
        ours, theirs = (student.clone().requires_grad_() for _ in range(2))
        got = mc.distillation_loss(ours, teacher, targets, t, alpha=0.7)
        log_q, log_p = (F.log_softmax(z / t, dim=1) for z in (theirs, teacher))
        soft = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        want = 0.7 * t**2 * soft + 0.3 * F.cross_entropy(theirs, targets)
        tight = 1e-4 if dtype == torch.float32 else 1e-10
        assert torch.allclose(got, want, rtol=tight, atol=tight)
        got.backward()
        want.backward()
        assert torch.allclose(ours.grad, theirs.grad, rtol=tight, atol=tight)


def test_distillation_gradient_is_right_and_none_reaches_the_teacher():
    g = generator(0)
    student = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, -100, 2])
    assert torch.autograd.gradcheck(
        lambda s: mc.distillation_loss(s, teacher.detach(), targets, 3.0, 0.4), (student,)
    )
    mc.distillation_loss(student, teacher).backward()
    assert teacher.grad is None and student.grad is not None


def test_distillation_is_zero_at_equality_and_positive_elsewhere():
    for seed in range(30):
        student, teacher = torch.randn(
            2, 5, 6, generator=generator(seed), dtype=torch.float64
        )
        assert mc.distillation_loss(student, teacher) > 0
        assert mc.distillation_loss(teacher + 3.0, teacher).abs() < 1e-12
    extreme = torch.tensor([[1e4, -1e4, 0.0]])
    assert mc.distillation_loss(extreme, -extreme).isfinite()


def test_rows_without_a_target_and_parts_of_a_batch():
    student, teacher = torch.randn(2, 10, 4, generator=generator(0), dtype=torch.float64)
    targets = torch.tensor([0, -100, 1, 2, -100, -100, -100, -100, 3, -100])
    whole = mc.distillation_loss(student, teacher, targets)
    pieces = zip(*(t.split([3, 5, 2]) for t in (student, teacher, targets)), strict=True)
    total = sum(mc.distillation_loss(*piece) * len(piece[0]) / 10 for piece in pieces)
    assert torch.allclose(whole, total, atol=1e-12)
    nobody = torch.full((10,), -100)
    assert mc.distillation_loss(student, teacher, nobody, alpha=0.0) == 0


def test_distillation_in_16_bits_computes_in_32():
    student, teacher = torch.randn(2, 8, 10, generator=generator(1))
    for dtype in (torch.float16, torch.bfloat16):
        low = [z.to(dtype) for z in (student, teacher)]
        wide = mc.distillation_loss(*(z.float() for z in low))
        assert mc.distillation_loss(*low) == wide and wide.dtype == torch.float32


def test_distillation_settings():
    logits = torch.zeros(2, 3)
    for settings in (
        {"temperature": 0.0}, {"alpha": 1.5}, {"temperature": math.nan}, {"temperature": math.inf},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="temperature above 0"):
            mc.distillation_loss(logits, logits, **settings)
    with pytest.raises(ValueError, match="same classes"):
        mc.distillation_loss(logits, torch.zeros(2, 4))


# --- low rank -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_low_rank_factors_equal_the_svd(seed):
    g = generator(seed)
    shape = torch.randint(2, 12, (2,), generator=g).tolist()
    weight = torch.randn(shape, generator=g, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    for rank in range(1, min(shape) + 1):
        up, down = mc.low_rank_factors(weight, rank)
        assert up.shape == (shape[0], rank) and down.shape == (rank, shape[1])
        expected = u[:, :rank] * s[:rank] @ vh[:rank]
        assert torch.allclose(up @ down, expected, atol=1e-8)
        error = (weight - up @ down).square().sum()
        assert torch.allclose(error, s[rank:].square().sum(), atol=1e-8)


def test_factorize_only_where_it_saves():
    model = MLP(16, 3, width=32, seed=0)
    small = mc.factorize(model, 4)
    assert isinstance(small.layers[1], nn.Sequential) and isinstance(
        small.head, nn.Linear
    )
    assert mc.model_size(small) < mc.model_size(model)
    full = mc.factorize(model, 3)
    up, down = mc.low_rank_factors(model.layers[1].weight, 3)
    x = torch.randn(5, 32, generator=generator(0))
    expected = F.linear(x, up @ down, model.layers[1].bias)
    assert torch.allclose(full.layers[1](x), expected, atol=1e-5)
    for bad in (0, 4):
        with pytest.raises(ValueError, match="smaller of its sides"):
            mc.low_rank_factors(torch.ones(3, 5), bad)


# --- bytes ----------------------------------------------------------------------------------------


def variants():
    model = mlp(width=32)
    yield "dense", model
    yield (
        "pruned",
        mc.bake(mc.apply_masks(copy.deepcopy(model), mc.global_prune(model, 0.9))),
    )
    yield (
        "all gone",
        mc.bake(mc.apply_masks(copy.deepcopy(model), mc.global_prune(model, 1.0))),
    )
    yield "int8", mc.quantize_model(model, 8)
    yield "int2", mc.quantize_model(model, 2, per_channel=False)
    yield "static", mc.quantize_model(model, 8, activations="static", calibration=X)
    yield "double", copy.deepcopy(model).double()
    yield "bfloat16", copy.deepcopy(model).bfloat16()
    yield "cnn", SmallCNN(1, 3, width=4)
    yield "cnn, int4", mc.quantize_model(SmallCNN(1, 3, width=4), 4)


@pytest.mark.parametrize(
    ("name", "model"), list(variants()), ids=lambda v: v if v is str else ""
)
def test_what_is_saved_is_read_back(name, model):
    file = io.BytesIO()
    mc.save_compact(model, file)
    assert file.tell() == mc.model_size(model)
    file.seek(0)
    other = copy.deepcopy(model)
    for tensor in other.state_dict().values():
        tensor.zero_()
    mc.load_compact(other, file)
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value) and not (name == "x")


def test_sizes_are_as_counted():
    model = mlp(width=32)
    for p in model.parameters():
        p.data += p.ndim == 1  # a bias of zeros would be stored in fewer bytes
    weights = 16 * 32 + 32 * 32 + 32 * 3
    floats = 4 * (weights + 67)
    assert floats < mc.model_size(model) < floats + 600
    pruned = mc.apply_masks(copy.deepcopy(model), mc.magnitude_prune(model, 0.75))
    # a bit each, the rest, the biases
    expected = weights // 8 + weights // 4 * 4 + 4 * 67
    assert expected < mc.model_size(pruned) < expected + 800
    for bits in (8, 4):
        small = mc.model_size(mc.quantize_model(model, bits))
        assert weights * bits // 8 < small < weights * bits // 8 + 67 * 8 + 900


def test_a_tensor_is_saved_in_the_shorter_of_its_two_forms():
    lengths = {}
    for there in (1, 699, 700, 705, 800):
        model = nn.Module()
        numbers = (torch.arange(800) < there).to(torch.int8)
        model.register_buffer("numbers", numbers)
        lengths[there] = mc.model_size(model)
    # n bits and the entries that are not 0, or all entries
    assert lengths[699] - lengths[1] == 698
    assert lengths[700] == lengths[705] == lengths[800]


def test_a_file_on_disk(tmp_path):
    model = mlp()
    with open(tmp_path / "model", "wb") as file:
        mc.save_compact(model, file)
    assert (tmp_path / "model").stat().st_size == mc.model_size(model)


# --- exercises ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(EXERCISES)))
def test_exercises_accept_the_solution_and_name_each_mistake(number):
    exercise = EXERCISES[number]
    assert exercise.hint_for(exercise.solve) is None
    assert exercise.hint_for(...).startswith("Not started")
    for name, wrong in exercise.wrong.items():
        hint = exercise.hint_for(wrong.answer)
        assert hint and wrong.hint in hint, f"{name}: {hint}"


def test_groups_accept_other_right_answers():
    exercise = EXERCISES[0]

    def with_a_loop(weight, bits, group):
        top = 2 ** (bits - 1) - 1
        out = torch.empty_like(weight)
        for i, row in enumerate(weight):
            for start in range(0, len(row), group):
                part = row[start : start + group]
                step = float(part.abs().max()) / top or 1.0
                out[i, start : start + group] = torch.round(part / step) * step
        return out

    def in_numpy(weight, bits, group):
        rows = weight.numpy().reshape(-1, group).astype(np.float64)
        step = np.abs(rows).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
        whole = np.divide(rows, step, out=np.zeros_like(rows), where=step > 0).round()
        return (whole * step).reshape(weight.shape)

    def in_three_dimensions(weight, bits, group):
        parts = weight.unflatten(1, (-1, group))
        top = 2 ** (bits - 1) - 1
        scale = (parts.abs().amax(2, keepdim=True) / top).clamp(min=1e-20)
        return (parts / scale).round().clamp(-top, top).mul(scale).flatten(1)

    def finer_than_asked(weight, bits, group):  # the ends are clamped, by half a step
        top = 2 ** (bits - 1) - 1
        rows = weight.reshape(-1, group)
        scale = (rows.abs().amax(1, keepdim=True) / (top + 0.5)).clamp(min=1e-20)
        return ((rows / scale).round().clamp(-top, top) * scale).view_as(weight)

    def by_the_package(weight, bits, group):
        rows = weight.view(-1, group)
        return mc.FakeQuantize(bits, axis=0)(rows).view_as(weight)

    def by_chunks(weight, bits, group):
        parts = [exercise.solve(part, bits, group) for part in weight.split(group, dim=1)]
        return torch.cat(parts, dim=1)

    for answer in (
        with_a_loop, in_numpy, in_three_dimensions, finer_than_asked, by_the_package, by_chunks,
    ):  # fmt: skip
        assert exercise.hint_for(answer) is None, answer.__name__


def test_groups_reject_wrong_answers():
    exercise = EXERCISES[0]
    solve = exercise.solve

    def affine(weight, bits, group):  # marks that do not lie around 0
        rows = weight.reshape(-1, group)
        scale, zero_point = mc.choose_qparams(rows, bits, False, axis=0)
        codes = mc.quantize(rows, scale, zero_point, bits, False, 0)
        return mc.dequantize(codes, scale, zero_point, 0).view_as(weight)

    def in_place(weight, bits, group):
        weight.copy_(solve(weight, bits, group))
        return weight

    def one_mark_too_many(weight, bits, group):
        rows = weight.reshape(-1, group)
        scale = (rows.abs().amax(1, keepdim=True) / 2 ** (bits - 1)).clamp(min=1e-20)
        return ((rows / scale).round() * scale).view_as(weight)

    def one_bit_more(weight, bits, group):
        return solve(weight, bits + 1, group)

    def eights_only(weight, bits, group):
        return solve(weight, bits, 8)

    def mean_scale(weight, bits, group):
        rows = weight.reshape(-1, group)
        scale = rows.abs().mean(1, keepdim=True).clamp(min=1e-20) / (2 ** (bits - 1) - 1)
        return ((rows / scale).round() * scale).view_as(weight)

    def truncated(weight, bits, group):
        rows = weight.reshape(-1, group)
        scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-20) / (2 ** (bits - 1) - 1)
        return ((rows / scale).trunc() * scale).view_as(weight)

    def zeros_filled(weight, bits, group):
        out = solve(weight, bits, group)
        return torch.where(weight == 0, 0.1, out)

    def nothing(weight, bits, group):
        solve(weight, bits, group)

    def all_zero(weight, bits, group):
        return torch.zeros_like(weight)

    def transposed(weight, bits, group):
        return solve(weight, bits, group).T

    for answer in (
        affine, in_place, one_mark_too_many, one_bit_more, eights_only, mean_scale, truncated,
        zeros_filled, nothing, all_zero, transposed,
    ):  # fmt: skip
        assert exercise.hint_for(answer) is not None, answer.__name__


def test_masked_updates_accept_other_right_answers():
    exercise = EXERCISES[1]

    def masks_twice(loss_fn, weight, mask, optimizer):
        optimizer.zero_grad()
        loss_fn().backward()
        weight.grad *= mask
        optimizer.step()
        weight.data *= mask

    def empties_last(loss_fn, weight, mask, optimizer):
        loss_fn().backward()
        optimizer.step()
        weight.data = weight.data * mask
        optimizer.zero_grad()

    def fills(loss_fn, weight, mask, optimizer):
        weight.grad = None
        loss = loss_fn()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            weight.masked_fill_(~mask, 0.0)

    for answer in (masks_twice, empties_last, fills):
        assert exercise.hint_for(answer) is None, answer.__name__
    for answer in (
        lambda f, w, m, o: w.data.zero_(),
        lambda f, w, m, o: None,
        lambda f, w, m, o: w.data.mul_(m).sub_(0.1 * m),
    ):
        assert exercise.hint_for(answer) is not None


def test_few_labels_accept_other_right_answers():
    exercise = EXERCISES[2]

    def by_hand(student, teacher, targets, temperature, alpha):
        p = (teacher / temperature).softmax(1)
        q = (student / temperature).softmax(1)
        soft = temperature**2 * (p * (p.log() - q.log())).sum(1).mean()
        known = targets != -100
        losses = -student.log_softmax(1)[known, targets[known]]
        return alpha * soft + (1 - alpha) * losses.sum() / len(targets)

    def in_float64(student, teacher, targets, temperature, alpha):
        return by_hand(student.double(), teacher.double(), targets, temperature, alpha)

    def by_the_package(student, teacher, targets, temperature, alpha):
        return mc.distillation_loss(student, teacher, targets, temperature, alpha)

    def as_a_sum(student, teacher, targets, temperature, alpha):
        log_q = F.log_softmax(student / temperature, dim=1)
        log_p = F.log_softmax(teacher / temperature, dim=1)
        soft = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        hard = F.cross_entropy(student, targets, reduction="sum")
        return (alpha * soft * temperature**2 + (1 - alpha) * hard) / len(student)

    for answer in (by_hand, in_float64, by_the_package, as_a_sum):
        assert exercise.hint_for(answer) is None, answer.__name__


def test_few_labels_reject_wrong_answers():
    exercise = EXERCISES[2]
    right = exercise.solve
    for answer in (
        lambda s, t, y, T, a: s.sum() * 0,
        lambda s, t, y, T, a: 1.0,
        lambda s, t, y, T, a: right(s, t, y, 1.0, a),
        lambda s, t, y, T, a: right(s, t, y, 4.0, a),
        lambda s, t, y, T, a: right(s.detach(), t, y, T, a),
        lambda s, t, y, T, a: right(s, t, y, T, 1.0),
        lambda s, t, y, T, a: right(s, t, y, T, a) * 2,
        lambda s, t, y, T, a: right(s, t, y.clamp(min=0), T, a),
        lambda s, t, y, T, a: right(s, t, t.argmax(1), T, a),
        lambda s, t, y, T, a: right(s, t, y, T, 0.9),
    ):
        assert exercise.hint_for(answer) is not None


# --- a scale for each group -----------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group", [1, 2, 4, 12])
def test_groups_equal_torchs_channels_of_that_size(bits, group):
    layer = nn.Linear(12, 5)
    groups = layer.weight.detach().reshape(-1, group)
    scale, zero_point = mc.choose_qparams(groups, bits, axis=0)
    top = 2 ** (bits - 1) - 1
    expected = torch.fake_quantize_per_channel_affine(
        groups, scale, zero_point, 0, -top, top
    )
    small = mc.QuantizedLinear(layer, bits, group=group)
    assert torch.equal(small.weight, expected.view(5, 12))
    x = torch.randn(3, 12, generator=generator(0))
    assert torch.equal(small(x), F.linear(x, small.weight, layer.bias))


def test_groups_of_a_model_are_saved_and_read_back():
    model = mlp(width=32)
    small = mc.quantize_model(model, 4, group=8)
    whole_rows = mc.quantize_model(model, 4)
    assert mc.model_size(small) > mc.model_size(whole_rows)
    file = io.BytesIO()
    mc.save_compact(small, file)
    file.seek(0)
    other = mc.load_compact(mc.quantize_model(mlp(seed=2, width=32), 4, group=8), file)
    assert torch.equal(small(X), other(X))


def test_finer_groups_have_smaller_errors():
    torch.manual_seed(0)
    layer = nn.Linear(64, 16)
    errors = []
    for group in (64, 16, 4):
        small = mc.QuantizedLinear(layer, 4, group=group)
        errors.append((small.weight - layer.weight).square().mean().item())
    assert errors[0] > errors[1] > errors[2]


def test_groups_that_cannot_be():
    for group in (5, 0, -4, 24):
        with pytest.raises(ValueError, match="does not divide the 12 weights"):
            mc.QuantizedLinear(nn.Linear(12, 5), 4, group=group)
    with pytest.raises(ValueError, match="activations='float'"):
        mc.QuantizedLinear(nn.Linear(12, 5), 4, activations="dynamic", group=4)


# --- the recipe's layers --------------------------------------------------------------------------


def convolutions_and_odd_columns():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),  # 9 weights a filter
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=3, stride=2),
        nn.Flatten(),
        nn.Linear(54, 11, bias=False),
        nn.Linear(11, 10),
    ).eval()


def test_the_recipes_packed_layers_equal_the_packages():
    path = Path(__file__).resolve().parent.parent / "recipes/09_model_compression.py"
    recipe = {"__name__": "recipe"}  # its functions; nothing is trained
    exec(path.read_text(encoding="utf-8").partition("accelerator = Accel")[0], recipe)
    model = convolutions_and_odd_columns()
    x = torch.randn(5, 1, 8, 8, generator=generator(1))
    packed = recipe["pack"](copy.deepcopy(model))
    torch.testing.assert_close(packed(x), mc.quantize_model(model, 4)(x))

    with torch.device("meta"):
        loaded = recipe["pack"](convolutions_and_odd_columns())
    loaded.load_state_dict(packed.state_dict(), assign=True)
    assert torch.equal(loaded(x), packed(x))
    held = sum(values.nbytes for values in loaded.state_dict().values())
    weights = sum(layer.weight.numel() for layer in model if hasattr(layer, "weight"))
    assert held <= weights * 4 / 8 + 33 * 4 + 22 * 4 + 40  # scales, biases, padding


# --- what is left out, what is wrong, and the other processes -------------------------------------


@pytest.fixture
def other_process(monkeypatch):
    """Another process that has seen -7 to 9, and has gradients of 5 everywhere."""
    calls = []

    def all_reduce(tensor, op=torch.distributed.ReduceOp.SUM):
        calls.append(op)
        if op == torch.distributed.ReduceOp.MIN:
            tensor.clamp_(max=-7.0)
        elif op == torch.distributed.ReduceOp.MAX:
            tensor.clamp_(min=9.0)
        else:
            tensor.add_(5.0)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return calls


def test_observers_take_the_range_over_all_processes(other_process):
    observer, alone = mc.RangeObserver(), mc.RangeObserver(sync=False)
    for each in (observer, alone):
        each(torch.tensor([-1.0, 2.0]))
    assert [value.item() for value in observer.seen()] == [-7.0, 9.0]
    assert [value.item() for value in alone.seen()] == [-1.0, 2.0]
    assert len(other_process) == 2


def test_saliency_takes_the_gradients_of_all_processes(other_process):
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    model.weight.grad = torch.tensor([[9.0, -4.9, -4.9, -4.9]])
    (shared,) = mc.saliency_prune(model, 1).values()
    (alone,) = mc.saliency_prune(model, 1, sync=False).values()
    # 14, 0.2, 0.3, 0.4 beside 9, 9.8, 14.7, 19.6
    assert shared.tolist() == [[True, False, True, True]]
    assert alone.tolist() == [[False, True, True, True]]
    assert model.weight.grad[0, 0] == 9.0 and len(other_process) == 1


def test_settings_left_out():
    weight = torch.randn(6, 8, generator=generator(0))
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    assert torch.equal(mc.n_m_mask(weight), mc.n_m_mask(weight, 2, 4))
    assert mc.n_m_mask(weight).sum() == 24
    found, given = mc.prune_n_m(model), mc.prune_n_m(model, 2, 4)
    assert list(found) == list(given) == ["0"] and torch.equal(found["0"], given["0"])
    low, high = weight.amin(), weight.amax()
    pairs = [
        (mc.choose_qparams(weight), mc.choose_qparams(weight, 8, True, None)),
        (mc.qparams_from_range(low, high), mc.qparams_from_range(low, high, 8, True)),
    ]
    for found, given in pairs:
        assert all(torch.equal(a, b) for a, b in zip(found, given, strict=True))
    scale, zero = mc.choose_qparams(weight)
    q = mc.quantize(weight, scale, zero)
    assert torch.equal(q, mc.quantize(weight, scale, zero, 8, True)) and q.max() == 127
    found = mc.fake_quantize(weight, scale, zero)
    assert torch.equal(found, mc.fake_quantize(weight, scale, zero, 8, True))
    assert torch.equal(found, mc.FakeQuantize()(weight))
    assert mc.unpack_bits(mc.pack_bits(q, 8), 8, q.shape).dtype == torch.uint8
    for make in (mc.QuantizedLinear, mc.QuantizedConv2d):
        layer = make(
            nn.Linear(4, 3) if make is mc.QuantizedLinear else nn.Conv2d(4, 3, 1)
        )
        assert (layer.bits, layer.activations, layer.input_bits) == (8, "float", 8)
        assert layer.scale.shape == (3,)
    quantized = mc.quantize_model(model)
    assert (quantized[0].bits, quantized[0].activations) == (8, "float")
    assert quantized[2].scale.shape == (3,)
    prepared = mc.prepare_qat(model)[0]
    assert (prepared.weight_quantizer.bits, prepared.weight_quantizer.axis) == (8, 0)
    assert prepared.input_quantizer is None
    student, teacher = (torch.randn(5, 3, generator=generator(i)) for i in (1, 2))
    targets = torch.arange(5) % 3
    assert mc.distillation_loss(student, teacher, targets) == mc.distillation_loss(
        student, teacher, targets, 4.0, 0.9
    )
    assert mc.gradual_sparsity(0.9, 10)(5) == mc.gradual_sparsity(0.9, 10, 0)(5)


def test_the_pruning_step_prunes_globally_at_every_tenth_update():
    asked = []

    def prune(model, share):
        asked.append(share)
        return mc.global_prune(model, share)

    trained(mc.pruning_step(lambda t: (t + 1) / 100 if t > 3 else 0.0, prune))
    # as soon as there is a share, then at updates 10 and 20
    assert asked == [0.05, 0.11, 0.21]
    plain, _ = trained(mc.pruning_step(lambda t: 0.5))
    given, _ = trained(mc.pruning_step(lambda t: 0.5, mc.global_prune, 10))
    assert torch.equal(plain.head.weight, given.head.weight)
    assert mc.sparsity(plain) == pytest.approx(0.5, abs=0.01)


def four_by_four():
    return nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mc.magnitude_mask(torch.ones(3), 4), "amount=4 of 3"),
        (lambda: mc.magnitude_mask(torch.ones(3), -0.1), "amount=-0.1 of 3"),
        (lambda: mc.n_m_mask(torch.ones(6), 2, 4), r"keep 2 of each 4 .* \(6,\)"),
        (lambda: mc.n_m_mask(torch.ones(4), 3, 2), "keep 3 of each 2"),
        (lambda: mc.n_m_mask(torch.ones(4), 0, 0), "keep 0 of each 0"),
        (lambda: mc.saliency_prune(four_by_four(), 0.5, sync=False), "has no gradient"),
        (lambda: mc.gradual_sparsity(1.5, 9), "final=1.5, steps=9"),
        (lambda: mc.gradual_sparsity(-0.5, 9), "final=-0.5, steps=9"),
        (lambda: mc.gradual_sparsity(0.5, 0), "final=0.5, steps=0"),
        (
            lambda: mc.apply_masks(mlp(), {"head": torch.ones(2, 2)}),
            r"mask of head has shape \(2, 2\), its weight\s+\(3, 8\)",
        ),
        (
            lambda: mc.prune_units(nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 1)), 0.5),
            r"Linear\(in_features=2.* does not feed Linear\(in_features=4",
        ),
        (lambda: mc.quant_range(1, True), "bits=1"),
        (lambda: mc.quant_range(9, False), "bits=9"),
        (lambda: mc.FakeQuantize(9), "bits=9"),
        (lambda: mc.choose_qparams(torch.ones(2, 2), axis=2), "axis=2: .* 2 dimensions"),
        (lambda: mc.choose_qparams(torch.ones(2, 2), axis=-3), "axis=-3"),
        (
            lambda: mc.dequantize(torch.ones(2, 3), torch.ones(2), torch.ones(2)),
            r"2 scales or zero points for shape \(2, 3\), axis=None",
        ),
        (
            lambda: mc.dequantize(torch.ones(2, 3), torch.ones(3), torch.ones(3), 0),
            r"3 scales or zero points for shape \(2, 3\), axis=0",
        ),
        (lambda: mc.pack_bits(torch.tensor([0, 16]), 4), "from 0 to 16 do not fit in 4"),
        (lambda: mc.pack_bits(torch.tensor([-9, 7]), 4), "from -9 to 7 do not fit in 4"),
        (lambda: mc.pack_bits(torch.tensor([-1, 8]), 4), "from -1 to 8 do not fit in 4"),
        (lambda: mc.pack_bits(torch.tensor([-1]), 1), "from -1 to -1 do not fit in 1"),
        (lambda: mc.pack_bits(torch.tensor([1]), 3), "bits=3"),
        (lambda: mc.unpack_bits(torch.zeros(1, dtype=torch.uint8), 3, (1,)), "bits=3"),
        (lambda: mc.RangeObserver().seen(), "from inf to -inf"),
        (
            lambda: mc.QuantizedLinear(four_by_four(), activations="none"),
            "activations='none'",
        ),
        (lambda: mc.QuantizedLinear(four_by_four(), group=3), "group=3 .* the 4 weights"),
        (lambda: mc.QuantizedLinear(four_by_four(), group=0), "group=0"),
        (lambda: mc.QuantizedConv2d(four_by_four()), r"not of Linear\(in_features=4"),
        (
            lambda: mc.QATLinear(nn.ReLU(), 8, True, False),
            r"QATLinear is made of a Linear, not of ReLU\(\)",
        ),
        (
            lambda: mc.distillation_loss(torch.ones(2, 3), torch.ones(2, 4)),
            r"\(2, 3\) and \(2, 4\)",
        ),
        (
            lambda: mc.distillation_loss(torch.ones(3), torch.ones(3)),
            r"\(3,\) and \(3,\)",
        ),
        (
            lambda: mc.distillation_loss(*[torch.ones(2, 3)] * 2, temperature=0.0),
            "temperature=0.0, alpha=0.9",
        ),
        (
            lambda: mc.distillation_loss(*[torch.ones(2, 3)] * 2, alpha=1.5),
            "temperature=4.0, alpha=1.5",
        ),
        (
            lambda: mc.distillation_loss(*[torch.ones(2, 3)] * 2, temperature=math.inf),
            "temperature=inf",
        ),
        (lambda: mc.low_rank_factors(torch.ones(3, 4), 4), r"rank=4 .* \(3, 4\)"),
        (lambda: mc.low_rank_factors(torch.ones(3, 4), 0), "rank=0"),
        (lambda: mc.low_rank_factors(torch.ones(3), 1), r"shape \(3,\)"),
    ],
)
def test_errors_name_what_was_given(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_numbers_at_the_edge_are_taken():
    weight = torch.tensor([[3.0, 1.0], [2.0, 4.0]])
    assert not mc.magnitude_mask(weight, 4).any() and mc.magnitude_mask(weight, 0).all()
    assert not mc.magnitude_mask(weight, 1.0).any()
    assert mc.n_m_mask(weight, 1, 1).all() and not mc.n_m_mask(weight, 0, 2).any()
    assert mc.quant_range(2, True) == (-1, 1) and mc.quant_range(8, False) == (0, 255)
    assert mc.gradual_sparsity(1.0, 1)(1) == 1.0 and mc.gradual_sparsity(0.0, 1)(9) == 0.0
    logits = torch.tensor([[1.0, 2.0]])
    for alpha in (0.0, 1.0):
        loss = mc.distillation_loss(logits, logits, torch.tensor([1]), alpha=alpha)
        assert loss == (1 - alpha) * F.cross_entropy(logits, torch.tensor([1]))
    up, down = mc.low_rank_factors(weight, 2)
    assert torch.allclose(up @ down, weight)
    assert mc.pack_bits(torch.tensor([-8, 7]), 4).tolist() == [0x78]
    assert mc.pack_bits(torch.tensor([0, 15]), 4).tolist() == [0xF0]
    assert mc.QuantizedLinear(four_by_four(), group=1).scale.numel() == 16


def test_a_smaller_layer_says_its_own_size():
    chain = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(54, 3)
    )
    small = mc.prune_units(chain, 0.5)
    assert (small[0].out_channels, small[2].in_channels) == (2, 2)
    assert (small[2].out_channels, small[4].in_features) == (3, 27)
    assert small[4].out_features == 3 and small(torch.ones(1, 2, 3, 3)).shape == (1, 3)
    thin = mc.factorize(nn.Sequential(nn.Linear(20, 30)), 2)[0]
    assert (thin[0].out_features, thin[1].in_features) == (2, 2)
    assert thin[0].bias is None and thin[1].bias is not None
