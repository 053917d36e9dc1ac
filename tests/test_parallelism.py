"""Parallelism: equal to one process and to torch's own, bytes against theory, schedules, costs."""

import math
import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlcourse import parallelism as par
from dlcourse.lab.launching import launch
from dlcourse.lab.models import MLP, RowTransformer
from dlcourse.lab.training import fit, train_step, use_one_thread

use_one_thread()

KINDS = ("gpipe", "1f1b")


def layers(seed=0, dtype=torch.float64):
    """Return a network of four blocks, the blocks of unequal sizes that no count divides."""
    torch.manual_seed(seed)
    sizes = [6, 11, 7, 5, 3]
    blocks = [
        nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in zip(sizes, sizes[1:], strict=False)
    ]
    return nn.Sequential(*blocks).to(dtype)


def rows(count, seed=1, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=draw, dtype=torch.float64)
    return x.to(dtype), torch.randint(0, 3, (count,), generator=draw)


def flat(tensors):
    return torch.cat([tensor.detach().ravel() for tensor in tensors])


def off(a, b):
    """Return the largest difference; infinite where the shapes differ."""
    return float((a - b).abs().max()) if a.shape == b.shape and a.numel() else math.inf


def alone(steps=3, count=8, make=lambda p: torch.optim.Adam(p, lr=0.01)):
    """Return the weights after some updates on one process with all the rows."""
    model = layers()
    optimizer = make(model.parameters())
    for step in range(steps):
        x, y = rows(count, seed=step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return flat(model.parameters())


# --- what runs on the processes -------------------------------------------------------------------


def check_collectives(rank, n):
    import torch.distributed as dist

    report = {"worst": 0.0, "same": True, "bytes": []}
    draw = torch.Generator().manual_seed(7 + rank)
    shapes = [(), (1,), (n - 1,), (5,), (3, 4), (2, 3, 7), (0,), (64,)]
    for dtype in (torch.float32, torch.float64, torch.int64):
        for shape in shapes:
            x = (torch.randn(shape, generator=draw, dtype=torch.float64) * 9).to(dtype)
            for tensor in (x, x.transpose(0, -1) if x.ndim > 1 else x):  # not contiguous
                before, want = tensor.clone(), tensor.clone().contiguous()
                dist.all_reduce(want)
                with par.SentBytes() as sent:
                    got = par.ring_all_reduce(tensor)
                assert got.shape == want.shape and got.dtype == want.dtype
                assert torch.equal(tensor, before)
                if got.numel():
                    error = ((got - want).abs().max() / want.abs().max().clamp(min=1)).item()
                    report["worst"] = max(report["worst"], error)
                padded = math.ceil(tensor.numel() / n) * n * tensor.element_size()
                report["bytes"].append([sent.total, 2 * (n - 1) * padded // n])
                everywhere = [None] * n
                dist.all_gather_object(everywhere, got.flatten().tolist())
                report["same"] &= all(values == everywhere[0] for values in everywhere)
    for bad in (math.nan, math.inf):
        got = par.ring_all_reduce(torch.tensor([bad if rank else 1.0, 1.0]))
        assert str(got[0].item()) == str(bad) and got[1] == n
    pair = [torch.full((3,), float(rank)), torch.full((2, 2), 2.0 * rank)]
    par.all_reduce_mean(pair)
    assert torch.equal(pair[0], torch.full((3,), (n - 1) / 2))
    assert torch.equal(pair[1], torch.full((2, 2), n - 1.0))
    half = [torch.tensor([40000.0], dtype=torch.float16)]
    par.all_reduce_mean(half)
    assert half[0].item() == 40000  # the sum would be infinite
    par.all_reduce_mean([])
    chunk = par.ring_reduce_scatter(torch.arange(3.0 * n))
    assert torch.equal(chunk, n * torch.arange(3.0 * rank, 3.0 * rank + 3))
    try:
        par.ring_reduce_scatter(torch.zeros(n + 1))
    except ValueError as error:
        report["advice"] = str(error)
    return report


def check_data_parallel(rank, n):
    from torch.nn.parallel import DistributedDataParallel

    def trained(split, step):
        model = layers(seed=rank)  # process 0's weights must win
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        update = step(model, optimizer)
        losses = []
        for seed in range(3):
            x, y = (t.split(split)[rank] for t in rows(sum(split), seed=seed))
            losses.append(float(update(x, y)))
        return flat(model.parameters()), losses

    def ours(pieces):
        def make(model, optimizer):
            trainer = par.DataParallelTrainer(model, optimizer, F.cross_entropy)
            return lambda x, y: trainer.step(x, y, pieces)

        return make

    def torchs(model, optimizer):
        wrapped = DistributedDataParallel(model)

        def update(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(wrapped(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return update

    even, uneven = [12 // n] * n, [9] + [1] * (n - 1)
    (a, losses), (b, _) = trained(even, ours(1)), trained(even, torchs)
    (c, _), (d, _) = trained(uneven, ours(1)), trained(even, ours(3))
    e, _ = trained(uneven, ours(4))  # more micro-batches than some processes have rows
    return {
        "ddp": off(a, b),
        "whole": off(a, alone(count=12)),
        "uneven": max(off(w, alone(count=9 + n - 1)) for w in (c, e)),
        "pieces": off(d, a),
        "weights": a.tolist(),
        "losses": losses,
    }


def check_sharded(rank, n):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.distributed.tensor.debug import CommDebugMode
    from torch.nn.parallel import DistributedDataParallel

    adam = lambda p: torch.optim.Adam(p, lr=0.01)  # noqa: E731
    report = {}
    for stage in range(4):
        model = layers(seed=rank)
        trainer = par.ShardedTrainer(model, adam, F.cross_entropy, stage)
        for seed in range(3):
            x, y = (t.split(12 // n)[rank] for t in rows(12, seed=seed))
            with par.SentBytes() as sent:
                trainer.step(x, y)
        with torch.no_grad():
            outputs = model(rows(4)[0])
        report[f"stage {stage}"] = {
            "off": off(trainer.weights(), alone(count=12)),
            "sent": sent.total,
            "at_update": trainer.at_update,
            "outputs": outputs.tolist(),
            "weights": trainer.weights().tolist(),
        }
        x, y = rows(7 if rank else 5, seed=0)  # uneven shares count by their rows
        trainer.step(x, y)

    model = layers()
    wrapped = DistributedDataParallel(model)
    zero = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.01)
    full = layers()
    for block in full:
        fully_shard(block)
    fully_shard(full)
    sharded = adam(full.parameters())
    for seed in range(3):
        x, y = (t.split(12 // n)[rank] for t in rows(12, seed=seed))
        for net, optimizer in ((wrapped, zero), (full, sharded)):
            optimizer.zero_grad()
            with CommDebugMode() as calls:
                F.cross_entropy(net(x), y).backward()
            optimizer.step()
    counts = {str(op).split(".")[-1]: k for op, k in calls.get_comm_counts().items()}
    report["ZeroRedundancyOptimizer"] = off(flat(model.parameters()), alone(count=12))
    report["fully_shard"] = off(flat(p.full_tensor() for p in full.parameters()), alone(count=12))
    report["collectives"] = counts
    return report


def check_tensor_parallel(rank, n, group=None):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    report, worst = {}, 0.0
    for seed in range(4):
        torch.manual_seed(seed)
        bias = seed != 3
        up = nn.Linear(5, 4 * n, bias=bias, dtype=torch.float64)
        down = nn.Linear(4 * n, 3, bias=bias, dtype=torch.float64)
        x = torch.randn((2, 3, 5) if seed % 2 else (4, 5), dtype=torch.float64, requires_grad=True)
        z = x.detach().clone().requires_grad_()
        want = down(F.gelu(up(x)))
        want.square().sum().backward()
        mine = par.ColumnParallelLinear(up, group=group), par.RowParallelLinear(down, group)
        with par.SentBytes() as forward:
            got = mine[1](F.gelu(mine[0](z)))
        with par.SentBytes() as backward:
            got.square().sum().backward()
        pairs = [(got, want), (z.grad, x.grad)]
        pairs += [(mine[0].weight.grad, up.weight.grad.chunk(n)[rank])]
        pairs += [(mine[1].weight.grad, down.weight.grad.chunk(n, 1)[rank])]
        if bias:
            pairs += [(mine[0].bias.grad, up.bias.grad.chunk(n)[rank])]
            pairs += [(mine[1].bias.grad, down.bias.grad)]
        worst = max(worst, *(off(a.detach(), b.detach()) for a, b in pairs))
    report["mlp"] = worst
    padded = [math.ceil(t.numel() / n) * n * t.element_size() for t in (got, z)]
    report["sent"] = [forward.total, backward.total]
    report["theory"] = [2 * (n - 1) * size // n for size in padded]
    if group is None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 4 * n), nn.GELU(), nn.Linear(4 * n, 3)).double()
        mine = par.ColumnParallelLinear(net[0]), par.RowParallelLinear(net[2])
        x = torch.randn(4, 5, dtype=torch.float64)
        got = mine[1](F.gelu(mine[0](x)))
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        theirs = parallelize_module(net, init_device_mesh("cpu", (n,)), plan)
        report["torch"] = off(got.detach(), theirs(x).detach())

    torch.manual_seed(1)
    whole = nn.MultiheadAttention(8 * n, 2 * n, batch_first=True, dtype=torch.float64)
    nn.init.normal_(whole.in_proj_bias)
    nn.init.normal_(whole.out_proj.bias)
    parts = []
    for w, b in zip(whole.in_proj_weight.chunk(3), whole.in_proj_bias.chunk(3), strict=True):
        parts.append(nn.Linear(8 * n, 8 * n, dtype=torch.float64))
        parts[-1].weight.data, parts[-1].bias.data = w.detach().clone(), b.detach().clone()
    mine = par.ParallelAttention(*parts, whole.out_proj, 2 * n, group)
    x = torch.randn(2, 5, 8 * n, dtype=torch.float64, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    want, got = whole(x, x, x, need_weights=False)[0], mine(z)
    want.square().sum().backward(), got.square().sum().backward()
    report["attention"] = max(off(got.detach(), want.detach()), off(z.grad, x.grad))
    errors = []
    for make in (
        lambda: par.ColumnParallelLinear(nn.Linear(4, 4 * n + 1), group=group),
        lambda: par.RowParallelLinear(nn.Linear(4 * n + 1, 4), group),
        lambda: par.ParallelAttention(*(nn.Linear(9, 9) for _ in range(4)), 3 * n + 1, group),
    ):
        try:
            make()
        except ValueError as error:
            errors.append(str(error))
    report["errors"] = errors
    return report


def check_pipeline(rank, n):
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    report, m = {}, 5
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 7), *(nn.Linear(7, 7) for _ in range(n - 2)), nn.Linear(7, 3))
    net = net.double()
    x, y = rows(2 * m)
    xs, ys = x.split(2), y.split(2)
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    want = flat([p.grad for p in net[rank].parameters()])
    for kind in KINDS:
        net.zero_grad()
        order = par.pipeline_schedule(n, m, kind)
        like = torch.empty(2, 7, dtype=torch.float64)
        total, trace = par.run_pipeline(net[rank], order, xs, ys, F.cross_entropy, like)
        got = flat([p.grad for p in net[rank].parameters()])
        report[kind] = off(got, want)
        assert [(event.kind, event.micro_batch) for event in trace] == order[rank]
        if rank == n - 1:
            assert total == pytest.approx(loss.item(), abs=1e-12)
        net.zero_grad()
        example = xs[0] if rank == 0 else like
        stage = PipelineStage(net[rank], rank, n, torch.device("cpu"), input_args=(example,))
        torchs = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[kind]
        runner = torchs(stage, m, loss_fn=F.cross_entropy)
        extra = {"target": y} if rank == n - 1 else {}
        runner.step(*([x] if rank == 0 else []), **extra)
        report[f"torch {kind}"] = off(flat([p.grad for p in net[rank].parameters()]), got)
    try:
        par.run_pipeline(net[rank], order[:1], xs, ys, F.cross_entropy, like)
    except ValueError as error:
        report["advice"] = str(error)
    return report


def check_server(rank, n):
    target = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)

    def gradient(weights):
        time.sleep(0.002 * (1 + (rank == 1)))
        return weights - target

    weights, order = par.parameter_server(torch.zeros(3, dtype=torch.float64), gradient, 120, 0.1)
    return {"order": order, "off": off(weights, target)}


def check_grid(rank, n):
    """Tensor parallel in the rows of a 2 x 2 grid, data parallel in its columns."""
    import torch.distributed as dist

    ranks = torch.arange(n).view(2, -1)
    lines = [dist.new_group(line.tolist()) for line in ranks]
    columns = [dist.new_group(line.tolist()) for line in ranks.T]
    across, down = lines[rank // 2], columns[rank % 2]
    report = check_tensor_parallel(rank % 2, 2, across)
    torch.manual_seed(0)
    net = MLP(6, 3, width=8, depth=1, seed=0).double()
    mine = nn.Sequential(
        par.ColumnParallelLinear(net.layers[0], group=across), nn.ReLU(),
        par.RowParallelLinear(net.head, across),
    )  # fmt: skip
    x, y = rows(8)
    mine_x, mine_y = (t.chunk(2)[rank // 2] for t in (x, y))
    trainer = par.DataParallelTrainer(
        mine, torch.optim.SGD(mine.parameters(), lr=0.5), F.cross_entropy, down
    )
    loss = trainer.step(mine_x, mine_y)
    want = F.cross_entropy(net(x), y)
    want.backward()
    torch.optim.SGD(net.parameters(), lr=0.5).step()
    report["grid"] = off(mine[2].weight.detach(), net.head.weight.detach().chunk(2, 1)[rank % 2])
    report["loss"] = abs(float(loss) - want.item())
    return report


def on_two(which):
    import torch.distributed as dist

    torch.set_num_threads(1)
    before = threading.active_count()
    report = {}
    with par.process_group(20) as (rank, n):
        with pytest.raises(RuntimeError, match="already"), par.process_group():
            pass
        for name in which:
            report[name] = globals()[f"check_{name}"](rank, n)
    report["left"] = [dist.is_initialized(), threading.active_count() - before]
    report["alone again"] = par.ring_all_reduce(torch.ones(3)).tolist()
    return report


def on_fit():
    from accelerate import Accelerator

    from dlcourse.parallelism import data_parallel_step

    accelerator, reports = Accelerator(cpu=True), []
    assert accelerator.num_processes == 2
    x, y = rows(60, dtype=torch.float32)
    for step, pieces in ((train_step, 1), (data_parallel_step, 1), (data_parallel_step, 3)):
        model = MLP(6, 3, width=8, seed=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        fit(
            model, (x[:, None, None], y), optimizer, steps=8, batch_size=20, step=step,
            accumulation_steps=pieces, cpu=True,
        )  # fmt: skip
        reports.append(flat(model.parameters()).tolist())
    return reports


def peer_missing():
    import torch.distributed as dist

    started = time.monotonic()
    try:
        with par.process_group(1) as (rank, _):
            if rank == 0:
                par.ring_all_reduce(torch.ones(4))  # the other never takes part
            time.sleep(2)
    except RuntimeError as error:
        return [type(error).__name__, time.monotonic() - started, dist.is_initialized()]
    return ["no error", time.monotonic() - started, dist.is_initialized()]


@pytest.fixture(scope="module")
def two():
    names = ("collectives", "data_parallel", "sharded", "tensor_parallel", "pipeline", "server")
    return launch(on_two, 2, args=(names,), timeout=120)


@pytest.fixture(scope="module")
def four():
    names = ("collectives", "data_parallel", "sharded", "pipeline", "server", "grid")
    return launch(on_two, 4, args=(names,), timeout=120)


@pytest.fixture(params=["two", "four"])
def ranks(request):
    """Return each process's report, once from two processes and once from four."""
    return request.getfixturevalue(request.param)


# --- several processes ----------------------------------------------------------------------------


def test_ring_all_reduce_equals_torch_in_all_shapes_and_dtypes(ranks):
    for report in ranks:
        assert report["collectives"]["worst"] < 1e-6
        assert report["collectives"]["same"]
        assert "pad it" in report["collectives"]["advice"]


def test_ring_bytes_are_those_of_the_theory(ranks):
    for report in ranks:
        for sent, theory in report["collectives"]["bytes"]:
            assert sent == theory


def test_data_parallel_equals_ddp_and_the_whole_batch(ranks):
    for report in ranks:
        found = report["data_parallel"]
        for name in ("ddp", "whole", "uneven", "pieces"):
            assert found[name] < 1e-12, name
        assert found["weights"] == ranks[0]["data_parallel"]["weights"]
        assert found["losses"] == ranks[0]["data_parallel"]["losses"]


@pytest.mark.parametrize("stage", range(4))
def test_every_stage_makes_the_same_update_as_one_process(ranks, stage):
    for report in ranks:
        found = report["sharded"][f"stage {stage}"]
        assert found["off"] < 1e-12
        assert found["weights"] == ranks[0]["sharded"][f"stage {stage}"]["weights"]
        want = report["sharded"]["stage 0"]["outputs"]
        assert np.allclose(found["outputs"], want, atol=1e-12)


def test_stages_against_torch(ranks):
    for report in ranks:
        assert report["sharded"]["ZeroRedundancyOptimizer"] < 1e-12
        assert report["sharded"]["fully_shard"] < 1e-12
        calls = report["sharded"]["collectives"]
        gathers = sum(k for op, k in calls.items() if "gather" in op)
        scatters = sum(k for op, k in calls.items() if "reduce_scatter" in op)
        assert (gathers, scatters) == (8, 4)  # four layers: gathered twice, reduced once


def test_stages_hold_and_send_what_the_theory_says(ranks):
    n, sizes = len(ranks), [p.numel() for p in layers().parameters()]
    units = [sum(pair) for pair in zip(sizes[::2], sizes[1::2], strict=True)]
    padded = 8 * sum(math.ceil(unit / n) * n for unit in units)  # bytes
    for report in ranks:
        for stage in range(4):
            found = report["sharded"][f"stage {stage}"]
            rounds = 3 if stage == 3 else 2
            assert found["sent"] == rounds * (n - 1) * padded // n
            share = {
                "parameters": n if stage == 3 else 1,
                "gradients": n if stage >= 2 else 1,
                "optimizer": n if stage >= 1 else 1,
            }
            for kind, times in (("parameters", 1), ("gradients", 1), ("optimizer", 2)):
                assert found["at_update"][kind] == times * padded // share[kind], (stage, kind)


def test_tensor_parallel_layers_equal_the_unsplit_ones(two, four):
    for report in [r["tensor_parallel"] for r in two] + [r["grid"] for r in four]:
        assert report["mlp"] < 1e-12 and report["attention"] < 1e-12
        assert report["sent"] == report["theory"]
        assert len(report["errors"]) == 3 and all("multiple" in text for text in report["errors"])
    assert all(report["tensor_parallel"]["torch"] < 1e-6 for report in two)


def test_tensor_and_data_parallel_together(four):
    for report in four:
        assert report["grid"]["grid"] < 1e-12 and report["grid"]["loss"] < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_pipeline_equals_the_whole_model_and_torch(ranks, kind):
    for report in ranks:
        assert report["pipeline"][kind] < 1e-12
        assert report["pipeline"][f"torch {kind}"] < 1e-12
        assert "make a schedule for" in report["pipeline"]["advice"]


def test_parameter_server_applies_what_comes_and_counts_staleness(ranks):
    server, *workers = (report["server"] for report in ranks)
    assert len(server["order"]) == 120 and server["off"] < 1e-3
    assert all(worker["order"] == [] and worker["off"] < 1e-3 for worker in workers)
    assert set(server["order"]) == set(range(1, len(ranks)))
    mean = np.mean(par.staleness(server["order"]))
    assert len(workers) - 1.5 < mean <= len(workers) - 1


def test_nothing_is_left_behind(ranks):
    for report in ranks:
        assert report["left"] == [False, 0]
        assert report["alone again"] == [1, 1, 1]


def test_a_missing_peer_raises_in_time_and_leaves_no_group():
    for kind, seconds, initialized in launch(peer_missing, 2, timeout=60):
        assert kind in ("RuntimeError", "DistBackendError") and seconds < 20 and not initialized


def test_step_for_fit_equals_ddp_and_one_process():
    ours = launch(on_fit, 2, timeout=60)
    x, y = rows(60, dtype=torch.float32)
    model = MLP(6, 3, width=8, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    fit(model, (x[:, None, None], y), optimizer, steps=8, batch_size=20, cpu=True)
    for report in ours:
        assert report == ours[0]
        for weights in report:
            assert np.allclose(weights, flat(model.parameters()), atol=1e-5)


# --- one process ----------------------------------------------------------------------------------


def test_switched_off_the_step_is_train_step_to_the_bit():
    found = []
    for step in (train_step, par.data_parallel_step):
        model = MLP(6, 3, width=8, seed=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        x, y = rows(60, dtype=torch.float32)
        history = fit(
            model, (x[:, None, None], y), optimizer, steps=8, batch_size=20, step=step, cpu=True
        )
        found.append((flat(model.parameters()), history.loss))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def test_on_one_process_everything_is_the_ordinary_thing():
    x, y = rows(8, seed=0)
    model = layers()
    trainer = par.DataParallelTrainer(
        model, torch.optim.Adam(model.parameters(), lr=0.01), F.cross_entropy
    )
    with par.SentBytes() as sent:
        trainer.step(x, y)
    assert sent.total == 0 and torch.equal(flat(model.parameters()), alone(steps=1))
    for stage in range(4):
        model = layers()
        sharded = par.ShardedTrainer(
            model, lambda p: torch.optim.Adam(p, lr=0.01), F.cross_entropy, stage
        )
        sharded.step(x, y)
        assert off(sharded.weights(), alone(steps=1)) < 1e-15
    linear = nn.Linear(4, 6)
    z = torch.randn(3, 4)
    assert torch.equal(par.ColumnParallelLinear(linear)(z), linear(z))
    assert torch.allclose(par.RowParallelLinear(linear)(z), linear(z), atol=1e-6)
    attention = RowTransformer(8, 8, 10, width=16, heads=4).blocks[0].attention
    names = attention.query, attention.key, attention.value, attention.out
    z = torch.randn(2, 5, 16)
    assert torch.allclose(par.ParallelAttention(*names, 4)(z), attention(z), atol=1e-5)


def test_a_unit_without_a_gradient_is_reduced_all_the_same():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(6, 3).double(), nn.Linear(4, 2).double()

        def forward(self, x):
            return self.used(x)

    for stage in range(4):
        torch.manual_seed(0)
        model = Skips()
        idle = flat(model.idle.parameters())
        trainer = par.ShardedTrainer(
            model, lambda p: torch.optim.SGD(p, lr=0.1), F.cross_entropy, stage
        )
        trainer.step(*rows(8))
        assert torch.equal(trainer.weights()[-10:], idle)


def test_the_members_of_a_module_list_are_units():
    model = MLP(6, 3, width=8, depth=2, seed=0).double()
    twin = MLP(6, 3, width=8, depth=2, seed=0).double()
    trainer = par.ShardedTrainer(model, lambda p: torch.optim.SGD(p, lr=0.1), F.cross_entropy, 3)
    assert len(trainer.units) == 3
    trainer.step(*rows(8))
    F.cross_entropy(twin(rows(8)[0]), rows(8)[1]).backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert off(trainer.weights(), flat(twin.parameters())) < 1e-15


def test_bad_settings_say_what_to_do():
    with pytest.raises(RuntimeError, match="launch"), par.process_group(1):
        pass
    with pytest.raises(ValueError, match="several dtypes"):
        par.all_reduce_mean([torch.zeros(1), torch.zeros(1, dtype=torch.float64)])
    with pytest.raises(ValueError, match="choose 0, 1, 2 or 3"):
        par.ShardedTrainer(layers(), torch.optim.SGD, F.cross_entropy, 4)
    with pytest.raises(ValueError, match="child module"):
        par.ShardedTrainer(nn.Linear(2, 2), torch.optim.SGD, F.cross_entropy, 1)
    for spoil in (lambda net: net[0].float(), lambda net: net[0].requires_grad_(False)):
        model = layers()
        spoil(model)
        with pytest.raises(ValueError, match="one dtype and require a gradient"):
            par.ShardedTrainer(model, torch.optim.SGD, F.cross_entropy, 1)
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="share a parameter"):
        par.ShardedTrainer(tied, torch.optim.SGD, F.cross_entropy, 1)
    with pytest.raises(ValueError, match="at least 1"):
        par.shard_parameters([torch.zeros(3)], 0)
    with pytest.raises(ValueError, match="gpipe"):
        par.pipeline_schedule(2, 2, "zigzag")
    with pytest.raises(ValueError, match="at least 1"):
        par.pipeline_schedule(2, 0)
    with pytest.raises(ValueError, match="deadlock"):
        par.simulate_pipeline([[("B", 0), ("F", 0)], [("F", 0), ("B", 0)]])
    with pytest.raises(ValueError, match="above 0"):
        par.push_times([1.0, 0.0], 3)
    with pytest.raises(ValueError, match="needs a worker"):
        par.parameter_server(torch.zeros(2), lambda w: w, 3, 0.1)
    with pytest.raises(ValueError, match="choose 0, 1, 2 or 3"):
        par.state_bytes(1e9, 8, 4)
    with pytest.raises(ValueError, match="multiple"):
        par.Layout(8, 16, tensor=3)
    with pytest.raises(ValueError, match="multiple"):
        par.Layout(8, 9)


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 16])
def test_shards_joined_are_the_tensors(processes):
    tensors = [torch.randn(3, 2).T, torch.randn(()), torch.randn(5), torch.randn(0)]
    shards = par.shard_parameters(tensors, processes)
    assert len({len(shard) for shard in shards}) == 1 and len(shards) == processes
    joined = torch.cat(shards)
    assert torch.equal(joined[:12], flat(tensors)) and not joined[12:].any()


SIZES = [(p, m) for p in (1, 2, 3, 4, 8) for m in (1, 2, 3, 4, 7, 16)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_schedules_keep_their_promises(p, m, kind):
    orders = par.pipeline_schedule(p, m, kind)
    for stage, order in enumerate(orders):
        assert sorted(order) == sorted((k, i) for k in "FB" for i in range(m))
        assert all(order.index(("F", i)) < order.index(("B", i)) for i in range(m))
        limit = m if kind == "gpipe" else min(p - stage, m)
        assert par.most_in_flight(order) == limit
    for forward, backward in ((1, 2), (1, 1), (2, 1)):
        trace = par.simulate_pipeline(orders, forward, backward)
        assert len(trace) == 2 * p * m
        assert par.idle_fraction(trace) == pytest.approx(par.bubble_fraction(p, m), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_traces_respect_what_must_come_first(seed):
    draw = np.random.default_rng(seed)
    p, m = draw.integers(1, 6), draw.integers(1, 9)
    forward, backward = draw.uniform(0.5, 3, 2)
    for kind in KINDS:
        trace = par.simulate_pipeline(par.pipeline_schedule(p, m, kind), forward, backward)
        ends = {(e.stage, e.kind, e.micro_batch): e.end for e in trace}
        for e in trace:
            if e.kind == "F" and e.stage:
                assert e.start >= ends[e.stage - 1, "F", e.micro_batch]
            if e.kind == "B" and e.stage < p - 1:
                assert e.start >= ends[e.stage + 1, "B", e.micro_batch]
        for stage in range(p):
            own = sorted((e.start, e.end) for e in trace if e.stage == stage)
            assert all(a[1] <= b[0] + 1e-12 for a, b in zip(own, own[1:], strict=False))


def test_workers_push_in_proportion_to_their_speed():
    order = [worker for _, worker in par.push_times([1.0, 2.0, 4.0], 700, jitter=0.3, seed=1)]
    counts = np.bincount(order) / 100
    assert np.allclose(counts, [4, 2, 1], atol=0.5)
    times = [when for when, _ in par.push_times([1.0, 1.5], 50, 0.5)]
    assert times == sorted(times)
    assert par.push_times([1.0], 3) == [(1.0, 0), (2.0, 0), (3.0, 0)]


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_equal_workers_in_turn_are_stale_by_all_the_others(n):
    stale = par.staleness([k % n for k in range(10 * n)])
    assert stale[n:] == [n - 1] * (9 * n) and stale[:n] == list(range(n))


def test_one_worker_is_plain_sgd_and_delay_is_a_delay():
    curve = torch.tensor([1.0, 0.1, 3.0], dtype=torch.float64)
    start, lr = torch.ones(3, dtype=torch.float64), 0.2
    got = par.async_sgd(start, lambda w, k: curve * w, [0] * 30, lr)
    assert torch.allclose(got, start * (1 - lr * curve) ** 30, atol=1e-14)
    path = [start]
    for k in range(30):  # three workers in turn: the gradient is two updates old
        path.append(path[-1] - lr * curve * path[max(k - 2, 0)])
    got = par.async_sgd(start, lambda w, k: curve * w, [k % 3 for k in range(30)], lr)
    assert torch.allclose(got, path[-1], atol=1e-14)


# --- costs ----------------------------------------------------------------------------------------

WEAK_SCALING = [  # Narayanan et al. (2021), table 1: layers, hidden, heads, tensor, pipeline,
    # GPUs, batch, parameters in 1e9, teraFLOP/s a GPU
    (24, 2304, 24, 1, 1, 32, 512, 1.7, 137),
    (30, 3072, 32, 2, 1, 64, 512, 3.6, 138),
    (36, 4096, 32, 4, 1, 128, 512, 7.5, 142),
    (40, 6144, 48, 8, 1, 256, 1024, 18.4, 135),
    (48, 8192, 64, 8, 2, 512, 1536, 39.1, 138),
    (60, 10240, 80, 8, 4, 1024, 1792, 76.1, 140),
    (80, 12288, 96, 8, 8, 1536, 2304, 145.6, 148),
    (96, 16384, 128, 8, 16, 1920, 2160, 310.1, 155),
    (105, 20480, 128, 8, 35, 2520, 2520, 529.6, 163),
    (128, 25600, 160, 8, 64, 3072, 3072, 1008.0, 163),
]


@pytest.mark.parametrize("row", WEAK_SCALING)
def test_cost_model_against_published_runs(row):
    layers, hidden, heads, t, p, gpus, batch, billions, teraflops = row
    model, layout = par.GPT(layers, hidden, heads), par.Layout(gpus, batch, t, p)
    assert round(model.parameters / 1e9, 1) == billions
    predicted = model.flops(batch) / gpus / par.step_time(model, layout)["total"] / 1e12
    assert abs(predicted / teraflops - 1) < 0.25
    assert par.memory_per_device(model, layout) < par.Machine().memory  # they ran


def test_state_bytes_are_the_published_ones():
    found = [round(par.state_bytes(7.5e9, 64, stage) / 1e9, 1) for stage in range(4)]
    assert found == [120.0, 31.4, 16.6, 1.9]  # Rajbhandari et al. (2020), figure 1
    assert par.state_bytes(1e9, 1, 3) == par.state_bytes(1e9, 512, 0) == 16e9


def test_layout_counts():
    layout = par.Layout(64, 512, tensor=8, pipeline=2, micro_batch=4)
    assert (layout.replicas, layout.micro_batches) == (4, 32)
    model = par.GPT(24, 2304, 24)
    slow = par.step_time(model, par.Layout(1024, 1024, zero=3), par.Machine(slow=1e9))
    fast = par.step_time(model, par.Layout(1024, 1024, zero=3), par.Machine(slow=1e12))
    assert slow["data"] > 0 and fast["data"] == 0 and slow["compute"] == fast["compute"]
    plans = [par.Layout(1024, 4096, zero=3, micro_batch=k) for k in (1, 4)]  # 4 and 1 micro-batches
    hidden = slow["compute"] * 4  # four times the batch of `slow`
    many, one = (par.step_time(model, plan, par.Machine(slow=1e9))["data"] for plan in plans)
    assert many + hidden == pytest.approx(4 * (one + hidden))  # each gathers and reduces


# --- exercises ------------------------------------------------------------------------------------


@pytest.mark.parametrize("exercise", par.EXERCISES, ids=["mlp", "memory", "ring", "order"])
def test_exercise(exercise):
    threads = threading.active_count()
    assert exercise.hint_for(exercise.solve) is None
    assert "Not started" in exercise.hint_for(...)
    for name, wrong in exercise.wrong.items():
        assert wrong.hint in (exercise.hint_for(wrong.answer) or ""), name
    assert threading.active_count() == threads


def test_other_right_answers_pass():
    mlp, memory, ring, order = par.EXERCISES

    def first_adds(x, up, up_bias, down, bias, rank, all_reduce):
        y = F.linear(F.relu(F.linear(x, up, up_bias)), down)
        return all_reduce(y + bias if rank == 0 else y)

    assert mlp.hint_for(first_adds) is None
    assert memory.hint_for(lambda p, n, s: int(par.state_bytes(p, n, s))) is None
    assert memory.hint_for(lambda p, n, s: np.int64(par.state_bytes(p, n, s))) is None
    assert ring.hint_for(lambda rank, step, n: (rank - step - 1) % n) is None
    assert ring.hint_for(lambda rank, step, n: np.mod(rank - step, n)) is None
    assert ring.hint_for(lambda rank, step, n: (rank - step + 5) % n) is None
    assert order.hint_for(lambda s, p, m: tuple(par.pipeline_schedule(p, m)[s])) is None
    assert order.hint_for(lambda s, p, m: [list(w) for w in par.pipeline_schedule(p, m)[s]]) is None


def test_answers_that_only_look_right_are_rejected():
    mlp, memory, ring, order = par.EXERCISES

    def half_of_the_bias(x, up, up_bias, down, bias, rank, all_reduce):
        return all_reduce((x @ up.T + up_bias).relu() @ down.T + bias / 2)  # right for n = 2 only

    def stops(x, up, up_bias, down, bias, rank, all_reduce):
        raise ZeroDivisionError("mine")

    assert mlp.hint_for(half_of_the_bias)
    assert "ZeroDivisionError: mine" in mlp.hint_for(stops)
    assert mlp.hint_for(lambda *_: None)
    assert memory.hint_for(lambda p, n, s: [120e9, 31.4e9, 16.6e9, 1.9e9][s])
    assert memory.hint_for(lambda p, n, s: None)
    assert ring.hint_for(lambda rank, step, n: (rank - step) % 2)
    assert ring.hint_for(lambda rank, step, n: n)
    assert ring.hint_for(lambda rank, step, n: 0)
    assert order.hint_for(lambda s, p, m: [("B", i) for i in range(m)])
    backwards_first = lambda s, p, m: [(k, i) for k in "BF" for i in range(m)]  # noqa: E731
    assert "deadlock" in order.hint_for(backwards_first)
