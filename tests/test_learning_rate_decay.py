"""Learning-rate strategy: schedules equal to PyTorch's, limits equal to theory, tests
undone.
"""

import copy
import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, PolynomialLR

from dlcourse.lab.launching import launch
from dlcourse.lab.models import MLP
from dlcourse.lab.training import fit, use_one_thread
from dlcourse.lab.trials import run_trials
from dlcourse.learning_rate_decay import (
    LRRange,
    constant,
    exponential_decay,
    inverse_sqrt,
    inverse_time_decay,
    lr_range_test,
    max_curvature,
    noise_floor,
    polynomial_decay,
    scale_lr,
)

use_one_thread()
EACH = {
    "constant": constant(),
    "exponential": exponential_decay(0.99),
    "inverse time": inverse_time_decay(0.05),
    "inverse sqrt": inverse_sqrt(20),
    "polynomial": polynomial_decay(100, 2.0, 0.1),
}


def rates(scheduler_class, base, steps, **settings):
    weight = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=base)
    scheduler = scheduler_class(optimizer, **settings)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def problem(seed=0, rows=40, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 5, generator=generator, dtype=dtype)
    return inputs, torch.randint(0, 3, (rows,), generator=generator)


# --------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("name", EACH)
def test_schedules_start_at_one_never_rise_and_stay_positive(name):
    factors = [EACH[name](t) for t in range(300)]
    assert factors[0] == 1.0
    assert all(a >= b >= 0 for a, b in zip(factors, factors[1:], strict=False))
    assert factors == [EACH[name](t) for t in range(300)]  # pure: asking changes nothing


@pytest.mark.parametrize("seed", range(20))
def test_equal_to_torch(seed):
    draw = random.Random(seed)
    base, gamma, k = (
        draw.uniform(1e-3, 5),
        draw.uniform(0.5, 1),
        draw.choice([0, draw.random()]),
    )
    total, power, shift = (
        draw.randint(1, 150),
        draw.uniform(0.3, 4),
        draw.uniform(0.1, 500),
    )
    pairs = [
        (exponential_decay(gamma), ExponentialLR, {"gamma": gamma}),
        (
            polynomial_decay(total, power),
            PolynomialLR,
            {"total_iters": total, "power": power},
        ),
        (constant(), LambdaLR, {"lr_lambda": lambda t: 1}),
        (inverse_time_decay(k), LambdaLR, {"lr_lambda": lambda t: 1 / (1 + k * t)}),
        (inverse_sqrt(shift), LambdaLR, {"lr_lambda": lambda t: (1 + t / shift) ** -0.5}),
    ]
    for schedule, theirs, settings in pairs:
        want = rates(theirs, base, 120, **settings)
        got = [base * schedule(t) for t in range(120)]
        assert got == pytest.approx(want, rel=1e-12, abs=1e-12)


def test_closed_forms():
    assert [exponential_decay(0.5)(t) for t in range(4)] == [1, 0.5, 0.25, 0.125]
    assert [inverse_time_decay(1)(t) for t in (0, 1, 3)] == [1, 0.5, 0.25]
    assert inverse_sqrt(4)(12) == 0.5
    line = polynomial_decay(10, end=0.2)
    assert [line(t) for t in (0, 5, 10, 99)] == pytest.approx([1, 0.6, 0.2, 0.2])
    assert polynomial_decay(1)(0) == 1 and polynomial_decay(1)(1) == 0
    assert exponential_decay(0.9)(100_000) == 0.0  # underflows quietly


def test_sums_are_those_of_robbins_and_monro():
    def sums(schedule, updates):
        factors = [schedule(t) for t in range(updates)]
        return sum(factors), sum(factor**2 for factor in factors)

    total, _ = sums(exponential_decay(0.9), 5000)
    assert total == pytest.approx(1 / (1 - 0.9))
    # 1/t: each tenfold adds log(10) / k to the sum, and ever less to the squares
    (a, a2), (b, b2), (c, c2) = (
        sums(inverse_time_decay(0.1), n) for n in (10**3, 10**4, 10**5)
    )
    assert c - b == pytest.approx(math.log(10) / 0.1, rel=0.01)
    assert b - a > 20 and c2 - b2 < 0.2 * (b2 - a2) and c2 < 11
    # 1 / sqrt(t): the squares have no bound either
    (_, a2), (_, b2), (_, c2) = (sums(inverse_sqrt(1), n) for n in (10**2, 10**3, 10**4))
    assert c2 - b2 == pytest.approx(b2 - a2, rel=0.02)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: exponential_decay(0), "gamma"),
        (lambda: exponential_decay(1.1), "gamma"),
        (lambda: exponential_decay(math.nan), "gamma"),
        (lambda: inverse_time_decay(-0.1), "k="),
        (lambda: inverse_time_decay(math.inf), "k="),
        (lambda: inverse_sqrt(0), "shift"),
        (lambda: inverse_sqrt(math.inf), "shift"),
        (lambda: polynomial_decay(5, power=math.inf), "power"),
        (lambda: polynomial_decay(0), "total"),
        (lambda: polynomial_decay(True), "total"),
        (lambda: polynomial_decay(5.0), "total"),
        (lambda: polynomial_decay(5, power=0), "power"),
        (lambda: polynomial_decay(5, end=1.5), "end"),
    ],
)
def test_bad_schedules_are_refused(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_the_ends_of_the_ranges_are_taken():
    assert exponential_decay(1.0)(7) == polynomial_decay(5, end=1.0)(3) == 1
    assert inverse_sqrt()(3) == 0.5  # shift 1


@pytest.mark.parametrize("name", EACH)
def test_negative_updates_are_refused(name):
    with pytest.raises(ValueError, match="counted from 0"):
        EACH[name](-1)


def test_fit_and_trials_take_a_schedule():
    data = problem(dtype=torch.float32)
    model = MLP(5, 3, width=4, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    history = fit(
        model, data, optimizer, steps=9, schedule=exponential_decay(0.8), cpu=True
    )
    assert history.lr == pytest.approx([0.2 * 0.8**t for t in range(9)])
    trials = run_trials(
        lambda seed: MLP(5, 3, width=4, seed=seed), data, seeds=[0], lr=0.2, steps=9,
        schedule=exponential_decay(0.8),
    )  # fmt: skip
    assert trials.train_loss[0, 0].tolist() == pytest.approx(history.loss, abs=1e-5)


# --------------------------------------------------------------------------- how large


@pytest.mark.parametrize("rule", ["linear", "sqrt"])
def test_scale_lr_composes_and_inverts(rule):
    draw = random.Random(0)
    for _ in range(50):
        lr, a, b, c = draw.uniform(1e-4, 1), *(draw.randint(1, 4096) for _ in range(3))
        direct = scale_lr(lr, a, c, rule)
        assert scale_lr(scale_lr(lr, a, b, rule), b, c, rule) == pytest.approx(direct)
        assert scale_lr(direct, c, a, rule) == pytest.approx(lr)
        assert scale_lr(lr, a, a, rule) == lr
    assert scale_lr(0.02, 16, 256) == pytest.approx(0.32)
    assert scale_lr(0.02, 16, 256, "sqrt") == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ((0, 1, 2), "lr="),
        ((math.nan, 1, 2), "lr="),
        ((math.inf, 1, 2), "lr="),
        ((0.1, 0, 2), "batch_size"),
        ((0.1, 2, 1.5), "new_batch_size"),
        ((0.1, True, 2), "batch_size"),
        ((0.1, 1, 2, "cube"), "rule"),
    ],
)
def test_scale_lr_refuses(args, word):
    with pytest.raises(ValueError, match=word):
        scale_lr(*args)


@pytest.mark.parametrize(
    ("lr", "curvature", "noise"), [(0.1, 1, 1), (0.5, 2, 3), (1.9, 1, 0.5), (0.1, 0.3, 2)]
)
def test_noise_floor_is_the_fixed_point_and_what_sgd_reaches(lr, curvature, noise):
    floor = noise_floor(lr, curvature, noise)
    assert (1 - lr * curvature) ** 2 * floor + (lr * noise) ** 2 == pytest.approx(floor)
    generator = torch.Generator().manual_seed(0)
    w = torch.zeros(4000, dtype=torch.float64)
    total, count = 0.0, 0
    for t in range(600):
        error = noise * torch.randn(w.shape, generator=generator, dtype=w.dtype)
        w -= lr * (curvature * w + error)
        if t >= 300:
            total, count = total + float((w**2).mean()), count + 1
    assert total / count == pytest.approx(floor, rel=0.03)
    assert noise_floor(0.1) == pytest.approx(0.1 / 1.9)


@pytest.mark.parametrize(
    "args",
    [
        (2.0,),
        (0.0,),
        (1.0, 2.0),
        (0.1, 0.0),
        (0.1, math.inf),
        (0.1, 1.0, -1.0),
        (0.1, 1.0, math.inf),
    ],
)
def test_noise_floor_refuses(args):
    with pytest.raises(ValueError, match="give|below"):
        noise_floor(*args)


def test_noise_floor_names_the_limit_and_takes_no_noise():
    assert noise_floor(0.1, noise=0.0) == 0
    with pytest.raises(
        ValueError, match=r"with curvature 4 .* below 2 / curvature = 0\.5"
    ):
        noise_floor(1.0, curvature=4.0)


def hessian(model, inputs, targets, loss_fn):
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    parts = dict(model.named_parameters())
    sizes = [parts[name].numel() for name in names]

    def loss(flat):
        pieces = flat.split(sizes)
        given = {n: v.view_as(parts[n]) for n, v in zip(names, pieces, strict=True)}
        return loss_fn(torch.func.functional_call(model, given, (inputs,)), targets)

    flat = torch.cat([parts[name].detach().flatten() for name in names])
    return torch.func.hessian(loss)(flat)


@pytest.mark.parametrize("seed", range(6))
def test_max_curvature_is_the_largest_eigenvalue(seed):
    inputs, targets = problem(seed)
    model = MLP(5, 3, width=4, depth=1, activation="tanh", seed=seed).double()
    for sign in (1, -1):  # with -1 the largest in size is negative

        def loss_fn(outputs, y, sign=sign):
            return sign * F.cross_entropy(outputs, y)

        want = float(torch.linalg.eigvalsh(hessian(model, inputs, targets, loss_fn))[-1])
        settings = {"iterations": 20_000, "tolerance": 1e-12}
        got = max_curvature(model, loss_fn, inputs, targets, **settings)
        assert got == pytest.approx(want, rel=1e-4)
        more = max_curvature(
            model, loss_fn, inputs, targets, weight_decay=0.3, **settings
        )
        assert more == pytest.approx(want + 0.3, rel=1e-4)
    assert all(weight.grad is None for weight in model.parameters())


def test_max_curvature_of_least_squares_is_the_largest_of_the_features():
    inputs, _ = problem(1)
    model = nn.Linear(5, 1, bias=False, dtype=torch.float64)
    got = max_curvature(model, F.mse_loss, inputs, inputs[:, :1] * 2)
    want = float(torch.linalg.eigvalsh(2 * inputs.T @ inputs / len(inputs))[-1])
    assert got == pytest.approx(want, rel=1e-4)
    # and it is where gradient descent begins to diverge
    for share, converges in ((0.98, True), (1.02, False)):
        nn.init.ones_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=share * 2 / got)
        history = fit(
            model, (inputs, inputs[:, :1] * 2), optimizer, steps=800, batch_size=40,
            loss_fn=F.mse_loss, cpu=True,
        )  # fmt: skip
        assert (history.loss[-1] < history.loss[0]) == converges


def test_max_curvature_starts_from_its_own_seed():
    inputs, targets = problem()
    model = MLP(5, 3, width=4, depth=1, seed=0).double()

    def after_one(seed, torchs):
        torch.manual_seed(torchs)
        before = torch.get_rng_state()
        found = max_curvature(
            model, F.cross_entropy, inputs, targets, iterations=1, seed=seed
        )
        assert torch.equal(before, torch.get_rng_state())
        return found

    assert after_one(0, 0) == after_one(0, 1) != after_one(1, 1)


def test_max_curvature_of_a_plane_is_zero():
    inputs, targets = problem()
    model = nn.Linear(5, 1, dtype=torch.float64)
    flat = max_curvature(model, lambda o, y: o.mean(), inputs, targets, weight_decay=0.2)
    assert flat == 0.2
    deeper = nn.Sequential(nn.Linear(5, 1, dtype=torch.float64), nn.Tanh())
    idle = nn.ModuleList([deeper, nn.Linear(2, 2, dtype=torch.float64)])
    idle.forward = deeper.forward
    alone, beside = (
        max_curvature(one, lambda o, y: (o**2).mean(), inputs, targets, tolerance=1e-12)
        for one in (deeper, idle)
    )
    assert alone == pytest.approx(beside)


def test_max_curvature_refuses():
    inputs, targets = problem()
    model = MLP(5, 3, width=4).double()
    with pytest.raises(ValueError, match="one finite number"):
        max_curvature(
            model, lambda o, y: F.cross_entropy(o, y, reduction="none"), inputs, targets
        )
    for weight in model.parameters():
        weight.requires_grad_(False)
    with pytest.raises(ValueError, match="trained"):
        max_curvature(model, F.cross_entropy, inputs, targets)


# --------------------------------------------------------------------------- the range test


def a_run(optimizer_class=torch.optim.SGD, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)
    )
    optimizer = optimizer_class(model.parameters(), lr=0.05, **settings)
    inputs, targets = problem(dtype=torch.float32)
    batches = list(zip(inputs.split(8), targets.split(8), strict=True))
    for x, y in batches[:2]:  # an optimizer in the middle of a run
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, optimizer, batches


def everything(model, optimizer):
    return copy.deepcopy(
        [
            model.state_dict(),
            optimizer.state_dict(),
            [weight.grad for weight in model.parameters()],
            [module.training for module in model.modules()],
            torch.get_rng_state(),
        ]
    )


@pytest.mark.parametrize(
    ("optimizer_class", "settings"),
    [
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adam, {}),
    ],
)
def test_range_test_restores_everything(optimizer_class, settings):
    model, optimizer, batches = a_run(optimizer_class, **settings)
    model[2].eval()
    before = everything(model, optimizer)
    found = lr_range_test(
        model, optimizer, batches, F.cross_entropy, lr_max=1e3, steps=60
    )
    torch.testing.assert_close(everything(model, optimizer), before, rtol=0, atol=0)
    assert len(found.lrs) == len(found.losses) == len(found.smoothed) <= 60

    def broken(outputs, targets):
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        lr_range_test(model, optimizer, batches, broken)
    torch.testing.assert_close(everything(model, optimizer), before, rtol=0, atol=0)


def test_range_test_grows_geometrically_and_keeps_the_groups_ratio():
    model, _, batches = a_run()
    optimizer = torch.optim.SGD(
        [
            {"params": model[0].parameters(), "lr": 0.1},
            {"params": model[3].parameters(), "lr": 0.01},
        ]
    )
    seen = []
    optimizer.register_step_post_hook(
        lambda o, args, kwargs: seen.append([group["lr"] for group in o.param_groups])
    )
    found = lr_range_test(
        model, optimizer, batches, F.cross_entropy, lr_min=1e-4, lr_max=1e-2, steps=5
    )
    assert found.lrs == pytest.approx([10 ** (-4 + t / 2) for t in range(5)])
    assert [first for first, _ in seen] == pytest.approx(found.lrs)
    assert all(second == pytest.approx(first / 10) for first, second in seen)
    assert found.stopped_at is None


def test_range_test_finds_the_limit_of_a_quadratic():
    weight = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(weight.weight)
    ones = torch.ones(1, 1, dtype=torch.float64)
    optimizer = torch.optim.SGD(weight.parameters(), lr=1.0)
    found = lr_range_test(
        weight, optimizer, [(ones, 0 * ones)], lambda o, y: 2 * ((o - y) ** 2).mean(),
        lr_min=0.4, lr_max=2.0, steps=80, smoothing=0.0,
    )  # fmt: skip
    # curvature 4, so the loss grows from the first rate above 2 / 4 on
    assert 0.5 < found.lowest <= 0.5 * (2.0 / 0.4) ** (1 / 79) + 1e-12
    assert found.stopped_at > found.lowest
    assert found.suggestion == pytest.approx(found.lowest / 3)


def test_range_test_left_alone_takes_100_updates_from_1e_4_to_10():
    """And stops where the smoothed loss is three times its lowest."""
    weight = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(weight.weight)
    optimizer = torch.optim.SGD(weight.parameters(), lr=1.0)
    ones = torch.ones(1, 1, dtype=torch.float64)
    given = weight, optimizer, [(ones, 0 * ones)], lambda o, y: (o - y).abs().mean()
    found = lr_range_test(*given)
    want = lr_range_test(
        *given, lr_min=1e-4, lr_max=10.0, steps=100, smoothing=0.9, stop_factor=3.0
    )
    assert found == want and found.stopped_at is not None
    assert found != lr_range_test(*given, stop_factor=4.0)


def test_smoothing_is_the_corrected_running_mean():
    model, optimizer, batches = a_run()
    found = lr_range_test(
        model, optimizer, batches, F.cross_entropy, steps=7, lr_max=0.01
    )
    running = 0.0
    for t, loss in enumerate(found.losses):
        running = 0.9 * running + 0.1 * loss
        assert found.smoothed[t] == pytest.approx(running / (1 - 0.9 ** (t + 1)))
    assert LRRange([1.0, 2.0, 3.0], [3, 1, 2], [3, 1, 2], None).lowest == 2.0


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"lr_min": 0}, "lr_min"),
        ({"lr_min": 2, "lr_max": 1}, "lr_min"),
        ({"lr_min": 1, "lr_max": 1}, "lr_min"),
        ({"lr_max": math.inf}, "lr_max"),
        ({"steps": 1}, "steps"),
        ({"steps": 5.0}, "steps"),
        ({"steps": True}, "steps"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"stop_factor": 1.0}, "stop_factor"),
    ],
)
def test_range_test_refuses(settings, word):
    model, optimizer, batches = a_run()
    with pytest.raises(ValueError, match=word):
        lr_range_test(model, optimizer, batches, F.cross_entropy, **settings)


def test_range_test_takes_two_steps_and_a_low_stop():
    model, optimizer, batches = a_run()
    found = lr_range_test(
        model, optimizer, batches, F.cross_entropy, steps=2, lr_max=1e-3, stop_factor=1.9
    )
    assert found.lrs == pytest.approx([1e-4, 1e-3])
    constant = lr_range_test(
        model, optimizer, batches, lambda o, y: 0 * o.sum(), steps=3, smoothing=0.0
    )
    assert constant.stopped_at is None and constant.losses == [0, 0, 0]


def test_range_test_refuses_what_cannot_be_trained_on():
    model, optimizer, batches = a_run()
    for given in ([], iter(batches)):
        with pytest.raises(ValueError, match="empty"):
            lr_range_test(model, optimizer, given, F.cross_entropy)
    with pytest.raises(ValueError, match="not finite"):
        lr_range_test(
            model, optimizer, [(batches[0][0] * math.nan, batches[0][1])], F.cross_entropy
        )
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(ValueError, match="rate 0"):
        lr_range_test(model, optimizer, batches, F.cross_entropy)


# --------------------------------------------------------------------------- what the chapter says


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_limit_with_momentum_is_two_times_one_plus_beta_over_the_curvature(momentum):
    inputs, _ = problem(2)
    targets = inputs[:, :1] * 2
    model = nn.Linear(5, 1, bias=False, dtype=torch.float64)
    curvature = max_curvature(model, F.mse_loss, inputs, targets, tolerance=1e-10)
    limit = 2 * (1 + momentum) / curvature
    for share, converges in ((0.98, True), (1.02, False)):
        nn.init.ones_(model.weight)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=share * limit, momentum=momentum
        )
        losses = []
        for _ in range(1500):
            optimizer.zero_grad()
            loss = F.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert (losses[-1] < losses[0]) == converges


def test_the_limit_near_the_minimum_of_a_network():
    inputs, targets = problem(3, rows=30)
    model = MLP(5, 3, width=6, depth=1, activation="tanh", seed=0).double()
    decay = 0.03

    def slope():
        model.zero_grad()
        penalty = sum((weight**2).sum() for weight in model.parameters())
        loss = F.cross_entropy(model(inputs), targets) + decay / 2 * penalty
        loss.backward()
        return loss

    solver = torch.optim.LBFGS(
        model.parameters(), max_iter=500, history_size=30, tolerance_grad=1e-10,
        tolerance_change=1e-16, line_search_fn="strong_wolfe",
    )  # fmt: skip
    solver.step(slope)
    minimum = nn.utils.parameters_to_vector(model.parameters()).detach()
    curvature = max_curvature(
        model, F.cross_entropy, inputs, targets, weight_decay=decay, iterations=5000,
        tolerance=1e-10,
    )  # fmt: skip
    push = torch.randn(len(minimum), generator=torch.Generator().manual_seed(0)).double()
    for share, converges in ((0.98, True), (1.02, False)):
        nn.utils.vector_to_parameters(minimum + 1e-5 * push, model.parameters())
        optimizer = torch.optim.SGD(model.parameters(), lr=share * 2 / curvature)
        norms = []
        for _ in range(150):
            slope()
            grads = [weight.grad for weight in model.parameters()]
            norms.append(float(nn.utils.get_total_norm(grads)))
            optimizer.step()
        assert (norms[-1] < norms[75]) == converges


def test_late_updates_are_lost_in_bfloat16_weights():
    model = MLP(20, 5, width=16, depth=1, seed=0)
    inputs = torch.randn(64, 20, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(model(inputs), torch.arange(64) % 5).backward()
    weight, slope = model.layers[0].weight.detach(), model.layers[0].weight.grad
    lost = {}
    for dtype in (torch.float32, torch.bfloat16):
        stored = weight.to(dtype)
        for rate in (0.1, 0.001):
            same = stored - (rate * slope).to(dtype) == stored
            lost[dtype, rate] = same[slope != 0].double().mean().item()
    assert lost[torch.bfloat16, 0.001] > 0.8 > 0.6 > lost[torch.bfloat16, 0.1]
    assert lost[torch.float32, 0.001] < 0.03


def train_on_each_process(cases):
    import torch
    from accelerate import Accelerator, DataLoaderConfiguration
    from torch.utils.data import DataLoader, TensorDataset

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(160, 6, generator=generator, dtype=torch.float64)
    rows = TensorDataset(inputs, inputs[:, :3].argmax(1))
    report = []
    for case in cases:
        accelerator = Accelerator(
            cpu=True,
            step_scheduler_with_optimizer=case.get("with_optimizer", True),
            gradient_accumulation_steps=case.get("pieces", 1),
            dataloader_config=DataLoaderConfiguration(
                split_batches=case.get("split", False)
            ),
        )
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 3, dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=case.get("rate", 1.0))
        k = case.get("k", 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + k * t))  # noqa: B023
        loader = DataLoader(rows, batch_size=case["rows"])
        wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        if case.get("prepared"):
            schedule = accelerator.prepare(schedule)
        used = []
        for x, y in loader:
            with accelerator.accumulate(wrapped):
                rate = optimizer.param_groups[0]["lr"]
                accelerator.backward(torch.nn.functional.cross_entropy(wrapped(x), y))
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                used.append(rate)
            if accelerator.sync_gradients or case.get("each_micro_batch"):
                schedule.step()
        weights = [value for row in model.weight.tolist() for value in row]
        report.append({"rates": used, "weights": weights})
    return report


def test_on_two_processes_the_rate_goes_with_the_update():
    one = [{"rows": 16, "rate": 0.02, "k": 0}]
    two = [
        {"rows": 8, "rate": 0.02, "k": 0},  # the same 16 rows an update
        {"rows": 16, "rate": 0.02, "k": 0},  # 32 rows, the rate kept
        {"rows": 16, "rate": scale_lr(0.02, 16, 32), "k": 0},
        {"rows": 8, "pieces": 2, "rate": scale_lr(0.02, 16, 32), "k": 0},
        {"rows": 16, "prepared": True},
        {"rows": 16, "prepared": True, "with_optimizer": False},
        {"rows": 32, "prepared": True, "split": True},
        {"rows": 16},
        {"rows": 8, "pieces": 2},
        {"rows": 8, "pieces": 2, "each_micro_batch": True},
    ]
    alone = launch(train_on_each_process, processes=1, args=(one,))[0][0]
    found = launch(train_on_each_process, processes=2, args=(two,))[0]
    weights = [torch.tensor(run["weights"]) for run in found]
    want = torch.tensor(alone["weights"])
    torch.testing.assert_close(weights[0], want, rtol=0, atol=1e-12)
    torch.testing.assert_close(weights[3], weights[2], rtol=0, atol=1e-12)
    kept, scaled = (weights[1] - want).norm(), (weights[2] - want).norm()
    assert scaled < kept / 5
    by_updates = [1 / (1 + t) for t in range(5)]
    assert found[4]["rates"] == pytest.approx([1 / (1 + 2 * t) for t in range(5)])
    for run in found[5:9]:
        assert run["rates"] == pytest.approx(by_updates)
    assert found[9]["rates"] == pytest.approx([1 / (2 + 2 * t) for t in range(5)])
