"""Schedules by hand, schedulers against torch, one property for all, and Accelerate."""

import copy
import math
import random
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as theirs

from dlcourse import lr_schedulers as ours
from dlcourse.lab.launching import launch
from dlcourse.lab.models import MLP
from dlcourse.lab.training import fit

STEPS = 200
SEEDS = range(12)


def optimizer(seed=0, kind="sgd", rates=None):
    """Return an optimizer of three groups with random rates."""
    draw = random.Random(seed)
    rates = rates or [10 ** draw.uniform(-4, 0.5) for _ in range(3)]
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "lr": lr} for lr in rates]
    if kind == "adam":
        return torch.optim.Adam(groups, betas=(0.8, 0.95))
    return torch.optim.SGD(groups, momentum=0.9)


def run(opt, scheduler, steps, metrics=None, first=0):
    """Return, for each update, the rate and the momentum of each group."""
    rows = []
    for t in range(first, first + steps):
        rows.append(
            [group["lr"] for group in opt.param_groups]
            + [g["betas"][0] if "betas" in g else g["momentum"] for g in opt.param_groups]
        )
        opt.step()
        scheduler.step() if metrics is None else scheduler.step(metrics[t])
    return torch.tensor(rows, dtype=torch.float64)


def settings(name, draw):
    """Return random arguments of a scheduler, the same for ours and torch's."""
    gamma = draw.uniform(0.05, 1.0)
    if name == "StepLR":
        return {"step_size": draw.randint(1, 60)} | (
            {"gamma": gamma} if draw.random() < 0.7 else {}
        )
    if name == "MultiStepLR":
        milestones = [draw.randint(1, 220) for _ in range(draw.randint(0, 6))]
        return {"milestones": sorted(milestones), "gamma": gamma}
    if name == "ExponentialLR":
        return {"gamma": draw.uniform(0.8, 1.0)}
    if name == "CosineAnnealingLR":
        return {
            "T_max": draw.choice([1, 2, draw.randint(3, 260)]),
            "eta_min": draw.uniform(0, 1e-4),
        }
    if name == "CosineAnnealingWarmRestarts":
        eta_min = draw.uniform(0, 1e-4)
        return {
            "T_0": draw.randint(1, 70),
            "T_mult": draw.randint(1, 3),
            "eta_min": eta_min,
        }
    if name == "OneCycleLR":
        three = draw.random() < 0.4
        return {
            "max_lr": [draw.uniform(0.01, 2) for _ in range(3)],
            "total_steps": draw.randint(STEPS, 300),
            "pct_start": draw.uniform(0.02, 0.48 if three else 0.98),
            "anneal_strategy": draw.choice(["cos", "linear"]),
            "div_factor": draw.uniform(1.5, 40),
            "final_div_factor": 10 ** draw.uniform(0, 5),
            "three_phase": three,
            "base_momentum": [draw.uniform(0.5, 0.8) for _ in range(3)],
            "max_momentum": [draw.uniform(0.8, 0.99) for _ in range(3)],
            "cycle_momentum": draw.random() < 0.8,
        }
    assert name == "ReduceLROnPlateau"
    return {
        "mode": draw.choice(["min", "max"]),
        "factor": draw.uniform(0.1, 0.9),
        "patience": draw.randint(0, 6),
        "threshold": 10 ** draw.uniform(-5, -1),
        "threshold_mode": draw.choice(["rel", "abs"]),
        "cooldown": draw.randint(0, 4),
        "min_lr": draw.choice([0.0, [1e-5, 1e-4, 0.0]]),
        "eps": draw.choice([1e-8, 1e-4]),
    }


def noisy_metrics(seed):
    draw = random.Random(seed)
    sign = draw.choice([-1, 1])
    values = [sign * (2 / (1 + t / 30) + draw.gauss(0, 0.3)) for t in range(STEPS)]
    values[17] = math.nan
    return values


NAMES = (
    "StepLR", "MultiStepLR", "ExponentialLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts",
    "OneCycleLR", "ReduceLROnPlateau",
)  # fmt: skip


# --------------------------------------------------------------------------- the same as torch's


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("name", NAMES)
def test_equals_torch_with_groups_and_resume(name, kind):
    """Over 200 updates, also where ours is stopped, saved and taken up anywhere."""
    for seed in SEEDS:
        draw = random.Random(f"{name} {kind} {seed}")
        arguments = settings(name, draw)
        metrics = noisy_metrics(seed) if name == "ReduceLROnPlateau" else None
        first, second, third = (optimizer(seed, kind) for _ in range(3))
        want = run(first, getattr(theirs, name)(first, **arguments), STEPS, metrics)
        mine = getattr(ours, name)
        scheduler, stop = mine(second, **arguments), draw.randint(0, STEPS - 1)
        found = run(second, scheduler, stop, metrics)
        resumed = mine(third, **arguments)
        third.load_state_dict(copy.deepcopy(second.state_dict()))
        resumed.load_state_dict(copy.deepcopy(scheduler.state_dict()))
        assert resumed.get_last_lr() == [group["lr"] for group in third.param_groups]
        found = torch.cat([found, run(third, resumed, STEPS - stop, metrics, stop)])
        torch.testing.assert_close(
            found, want, rtol=0, atol=1e-12, msg=f"{name} {arguments}"
        )


NEEDED = {
    "StepLR": {"step_size": 3},
    "MultiStepLR": {"milestones": [20, 50]},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 70},
    "CosineAnnealingWarmRestarts": {"T_0": 20},
    "OneCycleLR": {"max_lr": 0.5, "total_steps": 130},
    "ReduceLROnPlateau": {},
}


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("name", NAMES)
def test_settings_left_out_are_those_of_torch(name, kind):
    first, second = optimizer(0, kind), optimizer(0, kind)
    metrics = None
    if name == "ReduceLROnPlateau":  # no gain, a small one, then none until no rate falls
        metrics = [1.0] * 8 + [0.99995] * 6 + [0.9] * 116
    want = run(first, getattr(theirs, name)(first, **NEEDED[name]), 130, metrics)
    found = run(second, getattr(ours, name)(second, **NEEDED[name]), 130, metrics)
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-15)


def test_functions_and_schedulers_have_the_same_defaults():
    opt = optimizer(rates=[1.0])
    cycle = ours.OneCycleLR(opt, 1.0, 20)
    pairs = [
        (ours.step_decay(3), ours.StepLR(opt, 3)),
        (ours.multi_step_decay([2, 5]), ours.MultiStepLR(opt, [2, 5])),
        (ours.cosine_restarts(4), ours.CosineAnnealingWarmRestarts(opt, 4)),
        (ours.wsd(9, 2, 4), ours.WSDLR(opt, 9, 2, 4)),
        (ours.wsd(9), ours.WSDLR(opt, 9)),
        (ours.one_cycle(20), cycle),
    ]
    for schedule, scheduler in pairs:
        assert [schedule(t) for t in range(25)] == [
            scheduler.lrs_at(t)[0] for t in range(25)
        ]
    momentum = ours.one_cycle_momentum(20)
    assert [[momentum(t)] for t in range(25)] == [cycle.momenta_at(t) for t in range(25)]


@pytest.mark.parametrize("seed", SEEDS)
def test_sequential_equals_torch(seed):
    """Several parts with random milestones, one of them a function."""
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(2, 190), 3))
    arguments = {name: settings(name, draw) for name in NAMES[:5]}
    arguments["CosineAnnealingLR"]["T_max"] = 200
    picked = draw.sample(["StepLR", "ExponentialLR", "CosineAnnealingLR"], 3)

    def build(module):
        opt = optimizer(seed)
        parts = [getattr(module, name)(opt, **arguments[name]) for name in picked]
        parts.insert(draw_at, module.LambdaLR(opt, lambda t: 1 / (1 + t)))
        return opt, module.SequentialLR(opt, parts, steps)

    draw_at = draw.randint(0, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = run(*build(theirs), STEPS)
    torch.testing.assert_close(run(*build(ours), STEPS), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_wsd_equals_torch_parts(seed):
    draw = random.Random(seed)
    warmup, cooldown = draw.randint(2, 50), draw.randint(1, 90)
    first, second = optimizer(seed), optimizer(seed)
    scheduler = theirs.SequentialLR(
        first,
        [
            theirs.LinearLR(first, 1 / warmup, 1.0, warmup - 1),
            theirs.ConstantLR(first, 1.0),
            theirs.LinearLR(first, 1.0, 0.0, cooldown),
        ],
        [warmup, 180 - cooldown],
    )
    want = run(first, scheduler, STEPS)
    found = run(second, ours.WSDLR(second, 180, warmup, cooldown), STEPS)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)


def test_wsd_by_hand():
    factor = ours.wsd(10, warmup_steps=2, cooldown_steps=4)
    assert [factor(t) for t in range(12)] == [
        0.5,
        1,
        1,
        1,
        1,
        1,
        1,
        0.75,
        0.5,
        0.25,
        0,
        0,
    ]
    factor = ours.wsd(10, cooldown_steps=4, cooldown="sqrt")
    assert [factor(t) for t in (0, 5, 6, 7, 10, 11)] == [1, 1, 1, 0.5, 0, 0]
    assert {ours.wsd(5)(t) for t in range(20)} == {1.0}


def test_schedules_by_hand():
    assert [ours.step_decay(2)(t) for t in range(5)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )
    halves = ours.multi_step_decay([4, 1, 1], gamma=0.5)
    assert [halves(t) for t in range(5)] == [1, 0.25, 0.25, 0.25, 0.125]
    assert [ours.cosine(2)(t) for t in range(5)] == pytest.approx([1, 0.5, 0, 0.5, 1])
    restarts = ours.cosine_restarts(2, 2)
    assert [restarts(t) for t in range(7)] == pytest.approx(
        [1, 0.5, *map(ours.cosine(4), range(4)), 1]
    )
    cycle = ours.one_cycle(11, 4 / 11, "linear", div_factor=10, final_div_factor=10)
    assert [cycle(t) for t in (0, 3, 10, 11, 99)] == pytest.approx(
        [0.1, 1, 0.01, 0.01, 0.01]
    )
    momentum = ours.one_cycle_momentum(11, 4 / 11, "linear")
    assert [momentum(t) for t in (0, 3, 10, 99)] == pytest.approx(
        [0.95, 0.85, 0.95, 0.95]
    )


def test_one_cycle_edges():
    """A rise of no steps starts at the peak, where torch divides by zero; past the end it
    stays.
    """
    assert ours.one_cycle(10, 0.1)(0) == 1.0 and ours.one_cycle(10, 0.0)(
        9
    ) == pytest.approx(4e-6)
    with pytest.raises(ZeroDivisionError):
        theirs.OneCycleLR(optimizer(), 1.0, total_steps=10, pct_start=0.1)
    assert ours.one_cycle(10, 1.0)(9) == 1.0
    opt = optimizer()
    scheduler = ours.OneCycleLR(opt, 1.0, 5)
    for _ in range(9):
        opt.step()
        scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([4e-6] * 3)
    assert scheduler.momenta_at(2) != scheduler.momenta_at(9) == pytest.approx([0.95] * 3)


# --------------------------------------------------------------------------- one property for all


def parts_of(opt):
    head = ours.LambdaLR(opt, lambda t: (t + 1) / 10)
    return ours.SequentialLR(opt, [head, ours.CosineAnnealingLR(opt, 50)], [10])


ALL = {
    "lambda": lambda opt: ours.LambdaLR(opt, lambda t: 1 / (1 + t)),
    "step": lambda opt: ours.StepLR(opt, 7, 0.6),
    "multi step": lambda opt: ours.MultiStepLR(opt, [5, 60, 61], 0.3),
    "exponential": lambda opt: ours.ExponentialLR(opt, 0.97),
    "cosine": lambda opt: ours.CosineAnnealingLR(opt, 45, eta_min=1e-4),
    "restarts": lambda opt: ours.CosineAnnealingWarmRestarts(opt, 9, 2),
    "one cycle": lambda opt: ours.OneCycleLR(opt, [0.01, 0.1, 1.0], 90),
    "three phases": lambda opt: ours.OneCycleLR(
        opt, [0.01, 0.1, 1.0], 90, three_phase=True
    ),
    "wsd": lambda opt: ours.WSDLR(opt, 90, 10, 30),
    "wsd sqrt": lambda opt: ours.WSDLR(opt, 90, 10, 30, "sqrt"),
    "sequential": parts_of,
    "plateau": lambda opt: ours.ReduceLROnPlateau(
        opt, patience=3, factor=0.5, min_lr=1e-4
    ),
}
RATES = [0.01, 0.1, 1.0]


def test_every_scheduler_is_in_the_property_test():
    kinds = {type(build(optimizer(rates=RATES))) for build in ALL.values()}
    public = {
        v
        for n, v in vars(ours).items()
        if isinstance(v, type) and v.__module__.startswith(ours.__name__)
    }
    assert kinds == public


@pytest.mark.parametrize("name", ALL)
def test_property_of_every_schedule(name):
    """Finite, within [0, base rate]; plotting moves nothing; resumed anywhere, the same
    rates.
    """
    build, metrics = ALL[name], noisy_metrics(3) if name == "plateau" else None

    def fresh():
        opt = optimizer(rates=RATES)
        return opt, build(opt)

    opt, scheduler = fresh()
    unbroken = run(opt, scheduler, 120, metrics)
    rates = unbroken[:, :3]
    assert rates.isfinite().all() and (rates >= 0).all()
    assert (rates <= torch.tensor(RATES, dtype=torch.float64) * (1 + 1e-12)).all()
    for stop in range(120):
        opt, scheduler = fresh()
        if metrics is None:
            run(opt, scheduler, stop)
            groups, state = (
                copy.deepcopy(opt.param_groups),
                copy.deepcopy(scheduler.state_dict()),
            )
            plotted = torch.tensor(
                [scheduler.lrs_at(t) for t in range(120)], dtype=torch.float64
            )
            assert torch.equal(plotted, rates)
            assert scheduler.state_dict() == state
            for now, then in zip(opt.param_groups, groups, strict=True):
                assert {k: v for k, v in now.items() if k != "params"} == {
                    k: v for k, v in then.items() if k != "params"
                }
        else:
            run(opt, scheduler, stop, metrics)
        other, resumed = fresh()
        resumed.load_state_dict(
            copy.deepcopy(scheduler.state_dict())
        )  # the optimizer's is not needed
        rest = run(other, resumed, 120 - stop, metrics, stop)
        assert torch.equal(rest, unbroken[stop:])


PURE = {
    "step": ours.step_decay(7, 0.6),
    "multi step": ours.multi_step_decay([5, 60], 0.3),
    "cosine": ours.cosine(45),
    "restarts": ours.cosine_restarts(9, 3),
    "one cycle": ours.one_cycle(90),
    "momentum": ours.one_cycle_momentum(90),
    "wsd": ours.wsd(90, 10, 30, "sqrt"),
    "sequential": ours.sequential(
        [ours.wsd(9, 9), ours.cosine(60), lambda t: 0.0], [9, 69]
    ),
}


@pytest.mark.parametrize("name", PURE)
def test_pure_schedules(name):
    """In any order of calls the same values, within [0, 1], also far past the end."""
    order = [*range(300), 10**6]
    want = {t: PURE[name](t) for t in order}
    random.Random(0).shuffle(order)
    assert {t: PURE[name](t) for t in order} == want
    assert all(0 <= value <= 1 for value in want.values())


def test_sequential_holds_a_cosine_and_the_plain_one_rises():
    held = ours.sequential([ours.cosine(50), lambda t: 0.0], [50])
    assert held(49) == ours.cosine(50)(49) and {held(t) for t in range(50, 200)} == {0.0}
    assert ours.cosine(50)(100) == 1.0


def test_fit_takes_a_schedule_and_equals_the_scheduler():
    draw = torch.Generator().manual_seed(1)
    data = (
        torch.randn(40, 1, 4, 4, generator=draw),
        torch.randint(0, 3, (40,), generator=draw),
    )
    model = MLP(16, 3, width=8, seed=0)
    opt = torch.optim.SGD(model.parameters(), lr=0.2)
    history = fit(model, data, opt, steps=20, batch_size=8, schedule=ours.cosine(20))
    opt = optimizer(rates=[0.2])
    scheduler = ours.CosineAnnealingLR(opt, 20)
    assert history.lr == pytest.approx(
        [scheduler.lrs_at(t)[0] for t in range(20)], abs=1e-15
    )


def test_micro_batches_do_not_change_the_rates_of_fit():
    draw = torch.Generator().manual_seed(1)
    data = (torch.randn(40, 4, generator=draw), torch.zeros(40, dtype=torch.long))
    rates = []
    for micro_batches in (1, 4):
        model = nn.Linear(4, 2)
        opt = torch.optim.SGD(model.parameters(), lr=0.3)
        history = fit(
            model,
            data,
            opt,
            steps=30,
            batch_size=16,
            schedule=ours.cosine(30),
            accumulation_steps=micro_batches,
        )
        rates.append(history.lr)
    assert rates[0] == rates[1] and len(set(rates[0])) == 30


def test_a_branch_is_the_run_made_for_its_length():
    """Until the cool-down a WSD schedule does not depend on its length."""
    longest = ours.wsd(10_000, 30, 1)
    for total, cooldown in ((150, 30), (300, 60), (600, 120)):
        factor = ours.wsd(total, 30, cooldown)
        assert [factor(t) for t in range(total - cooldown + 1)] == [
            longest(t) for t in range(total - cooldown + 1)
        ]


def test_linear_to_zero_is_wsd_without_a_stable_part():
    line = ours.wsd(600, 30, 570)
    assert [line(t) for t in range(30)] == [(t + 1) / 30 for t in range(30)]
    assert [line(t) for t in range(30, 601)] == pytest.approx(
        [(600 - t) / 570 for t in range(30, 601)], abs=1e-15
    )


LATER = {
    "cosine": lambda optimizer: ours.CosineAnnealingLR(optimizer, 10, eta_min=0.01),
    "one cycle": lambda optimizer: ours.OneCycleLR(optimizer, 1.0, 10),
    "sequential": lambda optimizer: ours.SequentialLR(
        optimizer,
        [ours.StepLR(optimizer, 2), ours.CosineAnnealingLR(optimizer, 5)],
        [5],
    ),
    "plateau": lambda optimizer: ours.ReduceLROnPlateau(
        optimizer, patience=0, factor=0.5
    ),
}


def sgd(lr=0.1, groups=1):
    parameters = [{"params": [torch.ones(1, requires_grad=True)]} for _ in range(groups)]
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


@pytest.mark.parametrize("name", LATER)
def test_a_group_that_is_added_later_takes_part(name):
    """The usual way to unfreeze a layer in the middle of a run."""
    optimizer, both = sgd(), sgd(groups=2)
    scheduler, reference = LATER[name](optimizer), LATER[name](both)
    for t in range(9):
        if t == 3:
            added = {"params": [torch.ones(1, requires_grad=True)], "lr": 0.1}
            optimizer.add_param_group(added)
        optimizer.step(), both.step()
        for each in (scheduler, reference):
            each.step(1.0) if name == "plateau" else each.step()
        if t < 3:
            continue
        rates = [group["lr"] for group in optimizer.param_groups]
        expected = [group["lr"] for group in both.param_groups]
        if name == "plateau":  # the new rate starts at 0.1 when it comes
            assert rates[0] == expected[0] and rates[1] == pytest.approx(
                0.1 * 0.5 ** (t - 2)
            )
        elif name == "one cycle":  # from its own rate, and with the others' momentum
            assert rates[0] == expected[0] and rates[1] == pytest.approx(0.1 * rates[0])
            assert len({group["momentum"] for group in optimizer.param_groups}) == 1
        else:
            assert rates == expected == scheduler.get_last_lr()
    assert len(scheduler.state_dict().get("base_lrs", [0, 0])) in (0, 2)


def test_a_group_too_many_for_min_lr_is_refused_before_a_rate_is_written():
    optimizer = sgd()
    scheduler = ours.ReduceLROnPlateau(optimizer, patience=0, min_lr=[0.01])
    scheduler.step(1.0)
    optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)]})
    with pytest.raises(ValueError, match="append to min_lrs"):
        scheduler.step(2.0)
    assert optimizer.param_groups[0]["lr"] == 0.1
    scheduler.min_lrs.append(0.01)
    scheduler.step(2.0)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.01)


def test_what_somebody_else_wrote_is_overwritten_with_a_warning():
    optimizer = sgd()
    first, second = ours.StepLR(optimizer, 2, 0.5), ours.ExponentialLR(optimizer, 0.9)
    optimizer.step()
    first.step()
    second.step()
    with pytest.warns(UserWarning, match="had written 0.1, and now overwrites"):
        first.step()
    alone = sgd()
    scheduler = ours.StepLR(alone, 2, 0.5)
    alone.step()
    alone.param_groups[0]["lr"] = 0.02
    with pytest.warns(UserWarning, match="is 0.02, this scheduler had written 0.1"):
        scheduler.step()
    assert alone.param_groups[0]["lr"] == 0.1


def test_warnings_point_to_the_line_that_called_step():
    optimizer = sgd()
    scheduler = ours.StepLR(optimizer, 2)
    with pytest.warns(UserWarning) as found:
        scheduler.step()  # before the optimizer's
        optimizer.param_groups[0]["lr"] = 0.02
        scheduler.step()  # over somebody else's rate
    assert [warning.filename for warning in found] == [__file__] * 2


def test_the_order_of_steps_is_warned_of_once():
    optimizer = sgd()
    scheduler = ours.ExponentialLR(optimizer, 0.9)
    with pytest.warns(UserWarning, match="before the first optimizer.step"):
        scheduler.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()  # only once
        other = sgd()
        scheduler = ours.ExponentialLR(other, 0.9)
        for _ in range(3):
            other.step()
            scheduler.step()
        state = scheduler.state_dict()
        again = ours.ExponentialLR(other, 0.9)
        again.load_state_dict(state)
        again.step()


def test_a_rate_that_is_a_tensor_stays_the_same_tensor():
    rate = torch.tensor(0.5)
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = ours.StepLR(opt, 1, 0.5)
    scheduler.step()
    assert opt.param_groups[0]["lr"] is rate and rate.item() == 0.25


def test_one_cycle_leaves_the_base_rate_to_other_parts():
    opt = optimizer(rates=[0.5])
    cycle = ours.OneCycleLR(opt, 2.0, 10)
    both = ours.SequentialLR(opt, [cycle, ours.StepLR(opt, 5)], [10])
    assert both.lrs_at(10) == [0.5] and max(both.lrs_at(t)[0] for t in range(10)) == 2.0
    momenta = run(opt, both, 4)[:, 1].tolist()
    assert momenta == [cycle.momenta_at(t)[0] for t in range(4)]  # a part writes them too
    other = optimizer(rates=[0.5])
    # the optimizer first, then all anew
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    parts = [ours.OneCycleLR(other, 2.0, 10), ours.StepLR(other, 5)]
    again = ours.SequentialLR(other, parts, [10])
    again.load_state_dict(both.state_dict())
    assert torch.equal(run(other, again, 20), run(opt, both, 20))


# --------------------------------------------------------------------------- the order of calls


def test_scheduler_first_skips_the_first_value():
    used = {}
    for order in ("right", "wrong"):
        opt = optimizer(rates=[1.0])
        scheduler = ours.ExponentialLR(opt, 0.5)
        used[order] = []
        for _ in range(3):
            if order == "wrong":
                scheduler.step()
            used[order].append(opt.param_groups[0]["lr"])
            opt.step()
            if order == "right":
                scheduler.step()
    assert used == {"right": [1, 0.5, 0.25], "wrong": [0.5, 0.25, 0.125]}


# --------------------------------------------------------------------------- Accelerate


def accelerated_rates(pieces, updates):
    """Return each update's rate: ours once an update, torch's prepared, torch's at every
    call.
    """
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    from dlcourse.lr_schedulers import ExponentialLR

    # one arm does so on purpose
    warnings.filterwarnings("ignore", message="Detected call of")
    accelerator = Accelerator(gradient_accumulation_steps=pieces, cpu=True)
    rows = pieces * updates * accelerator.num_processes * 2
    report = {"processes": accelerator.num_processes}
    for name in ("ours", "prepared", "every call"):
        model = nn.Linear(1, 1)
        opt = torch.optim.SGD(model.parameters(), lr=1.0)
        kind = ExponentialLR if name == "ours" else torch.optim.lr_scheduler.ExponentialLR
        scheduler = kind(opt, 0.5)
        loader = DataLoader(TensorDataset(torch.ones(rows, 1)), batch_size=2)
        model, wrapped, loader = accelerator.prepare(model, opt, loader)
        if name == "prepared":
            scheduler = accelerator.prepare(scheduler)
        used = []
        for (x,) in loader:
            with accelerator.accumulate(model):
                rate = opt.param_groups[0]["lr"]
                accelerator.backward(model(x).mean())
                wrapped.step()
                wrapped.zero_grad()
                if accelerator.sync_gradients:
                    used.append(rate)
                if name == "ours":
                    # by hand: where an update was made, and float16 left it standing
                    skipped = accelerator.optimizer_step_was_skipped
                    if accelerator.sync_gradients and not skipped:
                        scheduler.step()
                else:
                    scheduler.step()
        report[name] = used
    return report


def on_two_processes(pieces, updates):
    from test_lr_schedulers import accelerated_rates

    return accelerated_rates(pieces, updates)


def test_one_step_an_update_on_two_processes_with_micro_batches():
    want = [0.5**t for t in range(4)]
    for report in launch(on_two_processes, processes=2, args=(3, 4), timeout=120):
        assert report["processes"] == 2
        assert report["ours"] == want
        # the trap: twice an update
        assert report["prepared"] == [0.25**t for t in range(4)]
        # and thrice
        assert report["every call"] == [0.5**2 * 0.5 ** (3 * t) for t in range(4)]


@pytest.mark.parametrize("pieces", [1, 3])
def test_one_step_an_update_in_one_process(pieces):
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    report = accelerated_rates(pieces, 4)
    assert report["ours"] == report["prepared"] == [0.5**t for t in range(4)]
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ours.step_decay(0), "step_size must be a whole number of at least 1"),
        (lambda: ours.step_decay(5, 0.0), "gamma=0.0: give a factor"),
        (lambda: ours.step_decay(5, 1.1), "give LambdaLR"),
        (lambda: ours.step_decay(5, math.nan), "gamma=nan"),
        (lambda: ours.multi_step_decay([1, 0]), "each milestone"),
        (lambda: ours.multi_step_decay([1.5]), "each milestone"),
        (lambda: ours.cosine(0), "T_max must"),
        (lambda: ours.cosine(True), "T_max must"),
        (lambda: ours.cosine_restarts(1.0), "T_0 must"),
        (lambda: ours.cosine_restarts(1, 0), "T_mult must"),
        (lambda: ours.one_cycle(1), "total_steps must"),
        (lambda: ours.one_cycle(10, 1.2), "pct_start=1.2"),
        (lambda: ours.one_cycle(10, 0.7, three_phase=True), "0.5 with three phases"),
        (lambda: ours.one_cycle(10, anneal_strategy="exp"), "choose one of cos, linear"),
        (lambda: ours.one_cycle(10, div_factor=0.0), "div_factor=0.0"),
        (lambda: ours.one_cycle(10, final_div_factor=math.inf), "final_div_factor=inf"),
        (lambda: ours.one_cycle_momentum(10, max_momentum=1.0), "max_momentum=1.0"),
        (lambda: ours.wsd(0), "total_steps must"),
        (lambda: ours.wsd(10, -1), "warmup_steps must"),
        (lambda: ours.wsd(10, 6, 5), "do not fit"),
        (lambda: ours.wsd(10, cooldown="cosine"), "choose one of linear, sqrt"),
        (lambda: ours.sequential([], []), "give one milestone between"),
        (lambda: ours.sequential([ours.cosine(3)], [3]), "give one milestone between"),
        (lambda: ours.sequential([ours.cosine(3)] * 3, [5, 5]), "must come after"),
        (lambda: ours.LambdaLR(optimizer(), ours.cosine(3), -0.1), "eta_min=-0.1"),
        (lambda: ours.OneCycleLR(optimizer(), [0.1, 0.2], 10), "2 values for 3 groups"),
        (lambda: ours.OneCycleLR(optimizer(), -1.0, 10), "max_lr=-1.0"),
        (lambda: ours.ReduceLROnPlateau(optimizer(), "least"), "choose 'min' or 'max'"),
        (lambda: ours.ReduceLROnPlateau(optimizer(), factor=1.0), "factor=1.0"),
        (lambda: ours.ReduceLROnPlateau(optimizer(), factor=0.0), "factor=0.0"),
        (lambda: ours.ReduceLROnPlateau(optimizer(), patience=-1), "patience must"),
        (lambda: ours.ReduceLROnPlateau(optimizer(), cooldown=-1), "cooldown must"),
        (
            lambda: ours.ReduceLROnPlateau(optimizer(), threshold_mode="ratio"),
            "threshold_mode='ratio': choose",
        ),
        (
            lambda: ours.ReduceLROnPlateau(optimizer(), min_lr=[0.0]),
            "min_lr has 1 values for 3 groups",
        ),
        (lambda: ours.wsd(10, 0, -1), "cooldown_steps must"),
        (lambda: ours.step_decay(5, -0.1), "gamma=-0.1"),
        (lambda: ours.one_cycle(10, -0.1), "pct_start=-0.1"),
        (lambda: ours.one_cycle(10, div_factor=math.inf), "div_factor=inf"),
        (lambda: ours.one_cycle(10, final_div_factor=0.0), "final_div_factor=0.0"),
        (lambda: ours.one_cycle_momentum(10, base_momentum=-0.1), "base_momentum=-0.1"),
        (lambda: ours.one_cycle_momentum(10, base_momentum=1.0), "base_momentum=1.0"),
        (lambda: ours.one_cycle_momentum(10, max_momentum=-0.1), "max_momentum=-0.1"),
        (lambda: ours.LambdaLR(optimizer(), ours.cosine(3), math.inf), "eta_min=inf"),
        (lambda: ours.OneCycleLR(optimizer(), 0.0, 10), "max_lr=0.0"),
        (
            lambda: ours.OneCycleLR(optimizer(), 1.0, 10, base_momentum=[0.8]),
            "base_momentum has 1 values",
        ),
        (
            lambda: ours.OneCycleLR(optimizer(), 1.0, 10, max_momentum=(0.9, 0.9)),
            "max_momentum has 2 values",
        ),
        (lambda: ours.sequential([ours.cosine(3)] * 2, [0]), "each milestone must"),
        (lambda: ours.sequential([ours.cosine(3)] * 3, [5]), "3 schedules and 1 mile"),
    ],
)
def test_errors_say_what_to_do(build, words):
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize(
    ("make", "t", "value"),
    [
        (lambda: ours.step_decay(1, 1.0), 9, 1.0),
        (lambda: ours.multi_step_decay([]), 9, 1.0),
        (lambda: ours.multi_step_decay([1]), 1, 0.1),
        (lambda: ours.cosine(1), 1, 0.0),
        (lambda: ours.cosine_restarts(1, 1), 9, 1.0),
        (lambda: ours.one_cycle(2), 1, 4e-6),
        (lambda: ours.one_cycle(10, 0.5, three_phase=True), 4, 1.0),
        (lambda: ours.one_cycle_momentum(10, base_momentum=0.0), 2, 0.0),
        (lambda: ours.one_cycle_momentum(10, max_momentum=0.0), 9, 0.0),
        (lambda: ours.wsd(1), 0, 1.0),
        (lambda: ours.wsd(4, cooldown_steps=4), 1, 0.75),
        (lambda: ours.wsd(10, 5, 5), 4, 1.0),
        (lambda: ours.sequential([ours.cosine(4)], []), 2, 0.5),
        (lambda: ours.sequential([ours.cosine(4)] * 2, [1]), 3, 0.5),
    ],
)
def test_settings_at_the_edge_of_their_range_are_taken(make, t, value):
    assert make()(t) == pytest.approx(value)


def test_a_plateau_counts_as_torchs_does():
    names = ("last_epoch", "num_bad_epochs", "cooldown_counter", "best")
    both = []
    for module in (ours, theirs):
        opt = optimizer(rates=[1.0])
        # a fall by `eps` exactly is too small
        settings = {"factor": 0.5, "patience": 1, "cooldown": 2, "eps": 0.25}
        scheduler = module.ReduceLROnPlateau(opt, **settings)
        rows = [[getattr(scheduler, name) for name in names]]
        for metric in (2.0, 1.0, 1.0, 3.0, *[2.0] * 9):
            opt.step()
            scheduler.step(metric)
            rows.append([getattr(scheduler, name) for name in names])
        both.append((rows, opt.param_groups[0]["lr"]))
    assert both[0] == both[1] and both[0][1] == 0.5


def test_a_plateau_is_resumed_with_as_many_groups_only():
    state = ours.ReduceLROnPlateau(sgd(groups=2)).state_dict()
    for groups in (1, 3):
        with pytest.raises(ValueError, match="argument 2 is"):
            ours.ReduceLROnPlateau(sgd(groups=groups)).load_state_dict(state)


def test_errors_of_schedulers():
    for build in (lambda: ours.StepLR(nn.Linear(1, 1), 3), lambda: ours.OneCycleLR(None, 1.0, 3),
                  lambda: ours.ReduceLROnPlateau("sgd")):  # fmt: skip
        with pytest.raises(TypeError, match="(Linear|NoneType|str) is no optimizer"):
            build()
    with pytest.raises(TypeError, match="Linear is no optimizer"):
        ours.ReduceLROnPlateau(nn.Linear(1, 1))
    plain = torch.optim.Adagrad([nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="Adagrad has no .* cycle_momentum=False"):
        ours.OneCycleLR(plain, 1.0, 10)
    assert ours.OneCycleLR(plain, 1.0, 10, cycle_momentum=False).momenta_at(3) is None
    opt = optimizer()
    with pytest.raises(ValueError, match="OnPlateau is no function of the step"):
        ours.SequentialLR(opt, [ours.ReduceLROnPlateau(opt)], [])
    with pytest.raises(ValueError, match="built on the optimizer"):
        ours.SequentialLR(opt, [ours.StepLR(optimizer(), 3)], [])
    one = ours.StepLR(optimizer(rates=[1.0]), 3)
    with pytest.raises(ValueError, match="the state has 3 groups, this optimizer 1"):
        one.load_state_dict(ours.StepLR(optimizer(), 3).state_dict())
