"""Parallelism: equal to one process and to torch's own, bytes against theory, schedules,
costs.
"""

import math
import threading
import time
from datetime import timedelta
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from threads import Threads
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
        nn.Sequential(nn.Linear(a, b), nn.Tanh())
        for a, b in zip(sizes, sizes[1:], strict=False)
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


def refusals(*calls):
    """Return the message of each call that raises ValueError."""
    said = []
    for call in calls:
        try:
            call()
        except ValueError as error:
            said.append(str(error))
    return said


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
                    error = (
                        (got - want).abs().max() / want.abs().max().clamp(min=1)
                    ).item()
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
    report["fully_shard"] = off(
        flat(p.full_tensor() for p in full.parameters()), alone(count=12)
    )
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
        x = torch.randn(
            (2, 3, 5) if seed % 2 else (4, 5), dtype=torch.float64, requires_grad=True
        )
        z = x.detach().clone().requires_grad_()
        want = down(F.gelu(up(x)))
        want.square().sum().backward()
        mine = (
            par.ColumnParallelLinear(up, group=group),
            par.RowParallelLinear(down, group),
        )
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
    for w, b in zip(
        whole.in_proj_weight.chunk(3), whole.in_proj_bias.chunk(3), strict=True
    ):
        parts.append(nn.Linear(8 * n, 8 * n, dtype=torch.float64))
        parts[-1].weight.data, parts[-1].bias.data = (
            w.detach().clone(),
            b.detach().clone(),
        )
    mine = par.ParallelAttention(*parts, whole.out_proj, 2 * n, group)
    x = torch.randn(2, 5, 8 * n, dtype=torch.float64, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    want, got = whole(x, x, x, need_weights=False)[0], mine(z)
    want.square().sum().backward(), got.square().sum().backward()
    report["attention"] = max(off(got.detach(), want.detach()), off(z.grad, x.grad))
    report["errors"] = refusals(
        lambda: par.ColumnParallelLinear(nn.Linear(4, 4 * n + 1), group=group),
        lambda: par.RowParallelLinear(nn.Linear(4 * n + 1, 4), group),
        lambda: par.ParallelAttention(
            *(nn.Linear(9, 9) for _ in range(4)), 3 * n + 1, group
        ),
    )
    return report


def check_pipeline(rank, n):
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    report, m = {}, 5
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 7), *(nn.Linear(7, 7) for _ in range(n - 2)), nn.Linear(7, 3)
    )
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
        stage = PipelineStage(
            net[rank], rank, n, torch.device("cpu"), input_args=(example,)
        )
        torchs = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[kind]
        runner = torchs(stage, m, loss_fn=F.cross_entropy)
        extra = {"target": y} if rank == n - 1 else {}
        runner.step(*([x] if rank == 0 else []), **extra)
        report[f"torch {kind}"] = off(flat([p.grad for p in net[rank].parameters()]), got)
    try:
        par.run_pipeline(net[rank], order[:1], xs, ys, F.cross_entropy, like)
    except ValueError as error:
        report["advice"] = str(error)
    for chunks in (2, 3):
        report[f"{chunks} chunks"] = check_interleaved(rank, n, chunks)
    return report


def check_interleaved(rank, n, chunks):
    from torch.distributed.pipelining import PipelineStage, ScheduleInterleaved1F1B

    m = 2 * n
    torch.manual_seed(0)
    places = [
        nn.Sequential(nn.Linear(6, 6), nn.Tanh()).double() for _ in range(n * chunks)
    ]
    net = nn.Sequential(*places)
    x, y = rows(2 * m)
    xs, ys = x.split(2), y.split(2)
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    own, like = places[rank::n], torch.empty(2, 6, dtype=torch.float64)
    want = flat(p.grad for piece in own for p in piece.parameters())
    net.zero_grad()
    order = par.pipeline_schedule(n, m, chunks=chunks)
    with par.SentBytes() as sent:
        total, trace = par.run_pipeline(own, order, xs, ys, F.cross_entropy, like)
    got = flat(p.grad for piece in own for p in piece.parameters())
    assert [(event.kind, event.micro_batch, event.chunk) for event in trace] == order[
        rank
    ]
    assert total == pytest.approx(loss.item() if rank == n - 1 else 0, abs=1e-12)
    net.zero_grad()
    stages = [
        PipelineStage(piece, rank + n * k, n * chunks, torch.device("cpu"))
        for k, piece in enumerate(own)
    ]
    runner = ScheduleInterleaved1F1B(stages, m, loss_fn=F.cross_entropy)
    theirs = [
        [("FB"["BACK" in work.computation_type.name], work.microbatch_index, work.stage_index // n)
         for work in runner.pipeline_order[stage] if work]
        for stage in range(n)
    ]  # fmt: skip
    extra = {"target": y} if rank == n - 1 else {}
    runner.step(*([x] if rank == 0 else []), **extra)
    with pytest.raises(ValueError, match="`stage` 1"):
        par.run_pipeline(own[0], order, xs, ys, F.cross_entropy, like)
    return {
        "off": off(got, want),
        "torch": off(flat(p.grad for piece in own for p in piece.parameters()), got),
        "order": theirs == order,
        "messages": sent.total / like.nbytes,
    }


def whole_attention(parts, causal):
    """Return output and gradients of torch's attention on the joined rows, by torch's
    chunks.
    """
    whole = [torch.cat(each, 2).requires_grad_() for each in zip(*parts, strict=True)]
    out = F.scaled_dot_product_attention(*whole, is_causal=causal)
    out.backward(out.detach() * 0.3 + 1)
    return [t.chunk(len(parts), 2) for t in (out.detach(), *(t.grad for t in whole))]


class Largest(TorchDispatchMode):
    """Note the size of the largest tensor that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        made = op(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return made


def check_context(rank, n, group=None):
    report = {"off": 0.0, "float32": 0.0, "half": 0.0, "bytes": []}
    draw = torch.Generator().manual_seed(3)
    shapes = [(2, 3, 4, 5), (1, 1, 1, 1), (1, 2, 7, 3), (2, 1, 5, 8), (0, 2, 3, 4)]
    for shape in shapes:
        for scale, dtype in (
            (1, torch.float64),
            (300, torch.float64),
            (1, torch.float32),
        ):
            parts = [[torch.randn(shape, generator=draw, dtype=torch.float64) for _ in "qkv"]
                     for _ in range(n)]  # fmt: skip
            for part in parts:
                # scores of thousands: exp would overflow without the maximum
                part[0] *= scale
            parts = [[t.to(dtype) for t in part] for part in parts]
            for causal in (False, True):
                own = [
                    t.clone().transpose(2, 3).contiguous().transpose(2, 3)
                    for t in parts[rank]
                ]
                q, k, v = (t.requires_grad_() for t in own)  # not contiguous
                with par.SentBytes() as forward, Largest() as size:
                    out = par.ring_attention(q, k, v, causal, group)
                with par.SentBytes() as backward, size:
                    out.backward(out.detach() * 0.3 + 1)
                head = shape[2] ** 2  # the scores of one head, and the causal mask
                largest = [max(1, math.prod(shape[:2])) * head, 2 * k.numel(), 2 * k.ndim]
                assert size.numbers <= max(largest)  # scores, a block, all the shapes
                report["bytes"].append([forward.total, 2 * (n - 1) * k.nbytes])
                report["bytes"].append(
                    [backward.total, 2 * (2 * n - 1) * k.nbytes * (n > 1)]
                )
                want = [chunks[rank] for chunks in whole_attention(parts, causal)]
                pairs = zip((out.detach(), q.grad, k.grad, v.grad), want, strict=True)
                gaps = [(a - b).abs().max().item() / (1 + b.abs().max().item())
                        for a, b in pairs if a.numel()]  # fmt: skip
                key = "off" if dtype == torch.float64 else "float32"
                report[key] = max([report[key], *gaps])
    q, k, v = (torch.randn(1, 2, 6, 4, generator=draw).bfloat16() for _ in "qkv")
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    out = par.ring_attention(q, k, v, True, group)
    out.sum().backward()
    assert {out.dtype, q.grad.dtype, k.grad.dtype} == {torch.bfloat16}
    wide = [t.detach().double() for t in (q, k, v)]
    wide = [
        torch.cat([wide[0]] * n, 2),
        torch.cat([wide[1]] * n, 2),
        torch.cat([wide[2]] * n, 2),
    ]
    want = F.scaled_dot_product_attention(*wide, is_causal=True).chunk(n, 2)[rank]
    report["half"] = (out.double() - want).abs().max().item()
    wrong = ([(1, 1, 2, 3)] * 2 + [(1, 1, 2, 4)], [(2, 3)] * 3, [(1, 1, 2 + rank, 3)] * 3)
    report["errors"] = refusals(
        *(
            partial(par.ring_attention, *map(torch.zeros, shapes), group=group)
            for shapes in wrong
        )
    )
    return report


def mixture(experts, width=5, factor=1.25, seed=0, group=None):
    """Return a mixture whose experts all differ."""
    torch.manual_seed(seed)
    router = nn.Linear(width, experts).double()
    each = [nn.Sequential(nn.Linear(width, 7), nn.Tanh(), nn.Linear(7, width)).double()
            for _ in range(experts)]  # fmt: skip
    return par.MixtureOfExperts(router, each, factor, group), each


def token_by_token(router, experts, x, factor):
    """Return what the mixture must give, in plain loops, and the number of tokens
    dropped.
    """
    room = [math.ceil(factor * len(x) / len(experts))] * len(experts)
    out, dropped = [], 0
    for token in x:
        probabilities = router(token).softmax(0)
        best = int(probabilities.argmax())
        room[best] -= 1
        if room[best] < 0:
            dropped += 1
            out.append(token * 0)
        else:
            out.append(probabilities[best] * experts[best](token))
    return torch.stack(out) if out else x, dropped


def check_experts(rank, n):
    import torch.distributed as dist

    report = {"off": 0.0, "dropped": [], "bytes": []}
    draw = torch.Generator().manual_seed(rank)
    for shape in ((n,), (n, 3), (n, 2, 0), (n, 4, 2)):
        for dtype in (torch.float32, torch.float64, torch.int64):
            parts = (torch.randn(shape, generator=draw, dtype=torch.float64) * 9).to(
                dtype
            )
            want = torch.empty_like(parts)
            dist.all_to_all_single(want, parts)
            assert torch.equal(par.all_to_all(parts), want)
            assert torch.equal(par.all_to_all(par.all_to_all(parts)), parts)
            turned = parts.flip(0).transpose(0, -1).contiguous().transpose(0, -1)
            dist.all_to_all_single(want, turned.contiguous())
            assert torch.equal(par.all_to_all(turned), want)
    draw = torch.Generator().manual_seed(9)
    for seed, (each, tokens, factor) in enumerate(
        (
            (1, 6, 1.25),
            (2, 9, 1.0),
            (2, 9, 0.3),
            (3, 8, 3.0 * n),
            (2, 1, 1.0),
            (1, 0, 1.0),
        )
    ):
        layer, experts = mixture(each * n, factor=factor, seed=seed)
        _, twins = mixture(each * n, factor=factor, seed=seed)
        router = mixture(each * n, factor=factor, seed=seed)[0].router
        parts = [
            torch.randn(tokens, 5, generator=draw, dtype=torch.float64) for _ in range(n)
        ]
        x = parts[rank].clone().requires_grad_()
        with par.SentBytes() as sent:
            out = layer(x)
            (out * (rank + 1)).square().sum().backward()
        inputs = [part.clone().requires_grad_() for part in parts]
        found = [token_by_token(router, twins, part, factor) for part in inputs]
        sum((k + 1) ** 2 * y.square().sum() for k, (y, _) in enumerate(found)).backward()
        own = slice(rank * each, (rank + 1) * each)
        pairs = [(out, found[rank][0])]
        pairs += [(x.grad, inputs[rank].grad)] if tokens else []
        for mine, theirs in zip(layer.experts.parameters(), nn.ModuleList(twins[own]).parameters(),
                                strict=True):  # fmt: skip
            blank = torch.zeros_like(mine)
            pairs.append([blank if p.grad is None else p.grad for p in (mine, theirs)])
        # the router is on all of them
        total = par.ring_all_reduce(layer.router.weight.grad)
        grad = router.weight.grad
        pairs.append((total, torch.zeros_like(total) if grad is None else grad))
        gaps = [(a - b).abs().max().item() for a, b in pairs if a.numel()]
        report["off"] = max([report["off"], *gaps])
        report["dropped"].append([layer.dropped, found[rank][1]])
        # bytes of all slots
        room = each * n * math.ceil(factor * tokens / (each * n)) * 5 * 8
        report["bytes"].append([sent.total, 4 * (n - 1) * room // n])
    report["errors"] = refusals(
        lambda: mixture(n + 1)[0],
        lambda: par.MixtureOfExperts(nn.Linear(5, 2 * n), [nn.Linear(5, 5)] * n),
        lambda: mixture(n, factor=0.0)[0],
        lambda: mixture(n)[0](torch.zeros(4 + rank, 5, dtype=torch.float64)),
        lambda: par.all_to_all(torch.zeros(n + 1)),
        lambda: par.all_to_all(torch.zeros(())),
    )
    return report


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
    report["context"] = check_context(rank % 2, 2, across)  # a ring of two of the four
    report["grid"] = off(
        mine[2].weight.detach(), net.head.weight.detach().chunk(2, 1)[rank % 2]
    )
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
    for step, pieces in (
        (train_step, 1),
        (data_parallel_step, 1),
        (data_parallel_step, 3),
    ):
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
    names = (
        "collectives",
        "data_parallel",
        "sharded",
        "tensor_parallel",
        "pipeline",
    )
    names += ("context", "experts")
    return launch(on_two, 2, args=(names,), timeout=120)


@pytest.fixture(scope="module")
def three():
    names = ("pipeline", "context", "experts")
    return launch(on_two, 3, args=(names,), timeout=120)


@pytest.fixture(scope="module")
def four():
    names = (
        "collectives",
        "data_parallel",
        "sharded",
        "pipeline",
        "grid",
        "experts",
    )
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
                assert found["at_update"][kind] == times * padded // share[kind], (
                    stage,
                    kind,
                )


def test_tensor_parallel_layers_equal_the_unsplit_ones(two, four):
    for report in [r["tensor_parallel"] for r in two] + [r["grid"] for r in four]:
        assert report["mlp"] < 1e-12 and report["attention"] < 1e-12
        assert report["sent"] == report["theory"]
        assert len(report["errors"]) == 3 and all(
            "multiple" in text for text in report["errors"]
        )
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


@pytest.mark.parametrize("chunks", [2, 3])
def test_interleaved_pipeline_equals_the_whole_model_and_torch(two, three, four, chunks):
    for reports in (two, three, four):
        n = len(reports)
        found = [report["pipeline"][f"{chunks} chunks"] for report in reports]
        for one in found:
            assert one["off"] < 1e-12 and one["torch"] < 1e-12
            assert one["order"]  # the same work in the same order as torch's schedule
        assert sum(one["messages"] for one in found) == 2 * 2 * n * (n * chunks - 1)


def test_ring_attention_is_torchs_on_the_whole_sequence(two, three, four):
    found = [r["context"] for r in two + three] + [r["grid"]["context"] for r in four]
    for report in found:
        assert (
            report["off"] < 1e-12 and report["float32"] < 1e-5 and report["half"] < 0.02
        )
        assert all(sent == theory for sent, theory in report["bytes"])
        assert len(report["errors"]) == 3
        assert all("one shape" in text for text in report["errors"][:2])
        assert "make them equal" in report["errors"][2]


def test_experts_on_several_processes_equal_a_loop_over_the_tokens(two, three, four):
    for reports in (two, three, four):
        for report in (r["experts"] for r in reports):
            assert report["off"] < 1e-12
            assert all(mine == theirs for mine, theirs in report["dropped"])
            assert any(mine for mine, _ in report["dropped"])
            assert all(sent == theory for sent, theory in report["bytes"])
            advice = ["output for each expert"] * 2 + ["more than 0", "make them equal"]
            advice += ["one part for each"] * 2
            errors = zip(report["errors"], advice, strict=True)
            assert all(wanted in text for text, wanted in errors)


def test_nothing_is_left_behind(ranks):
    for report in ranks:
        assert report["left"] == [False, 0]
        assert report["alone again"] == [1, 1, 1]


def carries(backend):
    with par.process_group(20, backend):
        return par.ring_all_reduce(torch.ones(3)).tolist()


def test_the_backend_can_be_chosen():
    for backend in (None, "gloo", "cpu:gloo"):
        assert launch(carries, 2, args=[backend]) == [[2.0] * 3] * 2


def test_with_a_gpu_for_each_process_nccl_is_chosen(monkeypatch):
    asked = {}

    def init(backend, timeout):
        asked["backend"] = backend
        raise ValueError("no rendezvous")

    monkeypatch.setattr("torch.distributed.init_process_group", init)
    monkeypatch.setattr("torch.cuda.set_device", lambda gpu: asked.update(gpu=gpu))
    monkeypatch.setenv("LOCAL_RANK", "1")
    for gpus, here, wanted in (
        (2, 2, "cpu:gloo,cuda:nccl"),
        (1, 2, "gloo"),
        (0, 2, "gloo"),
    ):
        asked.clear()
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
        with pytest.raises(RuntimeError, match="no other process"), par.process_group():
            pass
        assert asked["backend"] == wanted
        assert ("gpu" in asked) == ("nccl" in wanted)


def test_a_missing_peer_raises_in_time_and_leaves_no_group():
    for kind, seconds, initialized in launch(peer_missing, 2, timeout=60):
        assert (
            kind in ("RuntimeError", "DistBackendError")
            and seconds < 20
            and not initialized
        )


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
            model,
            (x[:, None, None], y),
            optimizer,
            steps=8,
            batch_size=20,
            step=step,
            cpu=True,
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


def test_on_one_process_attention_and_mixture_are_the_ordinary_things():
    draw = torch.Generator().manual_seed(0)
    for causal in (False, True):
        parts = [
            [torch.randn(2, 3, 6, 4, generator=draw, dtype=torch.float64) for _ in "qkv"]
        ]
        own = [t.clone().requires_grad_() for t in parts[0]]
        with par.SentBytes() as sent:
            out = par.ring_attention(*own, causal)
            out.backward(out.detach() * 0.3 + 1)
        want = [chunks[0] for chunks in whole_attention(parts, causal)]
        got = [out.detach(), *(t.grad for t in own)]
        assert sent.total == 0 and all(
            off(a, b) < 1e-13 for a, b in zip(got, want, strict=True)
        )
    nan = torch.full((1, 1, 2, 3), math.nan)
    assert par.ring_attention(nan, nan, nan).isnan().all()
    own = [t.detach().float() for t in own]
    plain = par.ring_attention(*own)
    with torch.autocast("cpu", torch.bfloat16):  # it adds up in float32 all the same
        assert torch.equal(par.ring_attention(*own), plain)
    for shape in ((1, 1, 0, 3), (1, 1, 3, 0), (2, 3, 4)):
        with pytest.raises(ValueError, match="one shape"):
            par.ring_attention(*[torch.zeros(shape)] * 3)
    for dtypes in ((torch.float32, torch.float64), (torch.int64, torch.int64)):
        q, k = (torch.zeros(1, 1, 2, 3, dtype=dtype) for dtype in dtypes)
        with pytest.raises(ValueError, match="floating-point dtype"):
            par.ring_attention(q, k, k)
    for seed in range(10):
        factor = [0.2, 1.0, 1.25, 2.0, 4.0][seed % 5]
        layer, experts = mixture(4, factor=factor, seed=seed)
        x = torch.randn(13, 5, generator=draw, dtype=torch.float64)
        want, dropped = token_by_token(layer.router, experts, x, factor)
        assert off(layer(x).detach(), want.detach()) < 1e-14 and layer.dropped == dropped
        assert not (factor == 4.0 and dropped)  # a factor of E drops none
    with pytest.raises(ValueError, match="flatten"):
        layer(x[None])
    # mixed precision keeps the input's dtype
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            half = layer.float()(x.to(dtype))
        assert half.dtype == dtype and off(half.detach().double(), want.detach()) < 0.05
    assert torch.equal(par.all_to_all(torch.ones(1, 3)), torch.ones(1, 3))
    layer, _ = mixture(2, factor=1.0)
    (
        layer.router.weight.data.zero_(),
        layer.router.bias.data.copy_(torch.tensor([9.0, 0.0])),
    )
    x = torch.tensor([1.0, 2.0, math.nan, math.nan], dtype=torch.float64)[:, None].expand(
        4, 5
    )
    out = layer(x)  # all to the first expert, with room for two
    assert (
        layer.dropped == 2
        and out[:2].isfinite().all()
        and torch.equal(out[2:], 0 * x[:2])
    )


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
    trainer = par.ShardedTrainer(
        model, lambda p: torch.optim.SGD(p, lr=0.1), F.cross_entropy, 3
    )
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
    for p, m, v in ((2, 3, 2), (4, 6, 2), (3, 1, 3)):
        with pytest.raises(ValueError, match=f"multiple of {p}"):
            par.pipeline_schedule(p, m, chunks=v)
    for p, kind in ((1, "1f1b"), (2, "gpipe")):
        with pytest.raises(ValueError, match="use chunks=1"):
            par.pipeline_schedule(p, 4, kind, chunks=2)
    with pytest.raises(ValueError, match="at least 1"):
        par.pipeline_schedule(2, 2, chunks=0)
    with pytest.raises(ValueError, match="multiple of them"):
        par.Layout(8, 9, pipeline=8, chunks=2)
    with pytest.raises(ValueError, match="several stages"):
        par.Layout(8, 8, chunks=2)
    with pytest.raises(ValueError, match="deadlock"):
        par.simulate_pipeline([[("B", 0), ("F", 0)], [("F", 0), ("B", 0)]])
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
        assert par.idle_fraction(trace) == pytest.approx(
            par.bubble_fraction(p, m), abs=1e-12
        )


ROUNDS = [(p, r * p, v) for p in (2, 3, 4, 7) for r in (1, 2, 5) for v in (2, 3, 4)]


@pytest.mark.parametrize(("p", "m", "v"), ROUNDS)
def test_interleaved_schedules_keep_their_promises(p, m, v):
    orders = par.pipeline_schedule(p, m, chunks=v)
    for stage, order in enumerate(orders):
        works = [(i, c) for i in range(m) for c in range(v)]
        assert sorted(order) == sorted((k, *work) for k in "FB" for work in works)
        assert all(
            order.index(("F", *work)) < order.index(("B", *work)) for work in works
        )
        assert par.most_in_flight(order) == min(p * (v + 1) - 2 * stage - 1, m * v)
    for forward, backward in ((1, 2), (1, 1), (2, 1)):
        trace = par.simulate_pipeline(orders, Fraction(forward), Fraction(backward))
        assert len(trace) == 2 * p * m * v
        assert par.idle_fraction(trace) == Fraction(p - 1, v * m + p - 1)  # exactly
        assert par.bubble_fraction(p, m, v) == pytest.approx((p - 1) / (v * m + p - 1))
        check_trace(trace, p, v)
        span = max(event.end for event in trace)
        ideal = m * (forward + backward)
        # as Narayanan et al. state it
        assert (span - ideal) / ideal == Fraction(p - 1, v * m)


def check_trace(trace, p, v=1):
    """Nothing starts before what it needs has ended, nor while its stage does something
    else.
    """
    ends = {(e.chunk * p + e.stage, e.kind, e.micro_batch): e.end for e in trace}
    assert len(ends) == len(trace)
    for e in trace:
        piece = e.chunk * p + e.stage
        if e.kind == "F" and piece:
            assert e.start >= ends[piece - 1, "F", e.micro_batch]
        if e.kind == "B":
            before = (piece, "F") if piece == p * v - 1 else (piece + 1, "B")
            assert e.start >= ends[*before, e.micro_batch]
            assert e.start >= ends[piece, "F", e.micro_batch]
    for stage in range(p):
        own = sorted((e.start, e.end) for e in trace if e.stage == stage)
        assert all(a[1] <= b[0] + 1e-12 for a, b in zip(own, own[1:], strict=False))


@pytest.mark.parametrize("seed", range(5))
def test_traces_respect_what_must_come_first(seed):
    draw = np.random.default_rng(seed)
    p, m = draw.integers(1, 6), draw.integers(1, 9)
    forward, backward = draw.uniform(0.5, 3, 2)
    for kind in KINDS:
        trace = par.simulate_pipeline(
            par.pipeline_schedule(p, m, kind), forward, backward
        )
        check_trace(trace, p)


# --- costs ----------------------------------------------------------------------------------------

# Narayanan et al. (2021), table 1: billions of parameters, and the run. By its section 5.1
# the pipelines were interleaved; the number of chunks is not given.
PUBLISHED = [
    (1.7, par.Run(24, 2304, 24, 1, 1, 32, 512, 1, 0, 137)),
    (3.6, par.Run(30, 3072, 32, 2, 1, 64, 512, 1, 0, 138)),
    (7.5, par.Run(36, 4096, 32, 4, 1, 128, 512, 1, 0, 142)),
    (18.4, par.Run(40, 6144, 48, 8, 1, 256, 1024, 1, 0, 135)),
    (39.1, par.Run(48, 8192, 64, 8, 2, 512, 1536, 1, 0, 138)),
    (76.1, par.Run(60, 10240, 80, 8, 4, 1024, 1792, 1, 0, 140)),
    (145.6, par.Run(80, 12288, 96, 8, 8, 1536, 2304, 1, 0, 148)),
    (310.1, par.Run(96, 16384, 128, 8, 16, 1920, 2160, 1, 0, 155)),
    (529.6, par.Run(105, 20480, 128, 8, 35, 2520, 2520, 1, 0, 163)),
    (1008.0, par.Run(128, 25600, 160, 8, 64, 3072, 3072, 1, 0, 163)),
]


@pytest.mark.parametrize(("billions", "run"), PUBLISHED)
def test_cost_model_against_published_runs(billions, run):
    assert round(run.model.parameters / 1e9, 1) == billions
    layers = run.layers // run.pipeline
    fewest = next((k for k in range(2, layers + 1) if layers % k == 0), 1)
    for chunks in {1, fewest if run.pipeline > 1 else 1}:
        split = (run.tensor, run.pipeline, run.zero, run.micro_batch, chunks)
        layout = par.Layout(run.gpus, run.batch, *split)
        seconds = par.step_time(run.model, layout)["total"]
        predicted = run.model.flops(run.batch) / run.gpus / seconds / 1e12
        assert abs(predicted / run.teraflops - 1) < 0.25


def test_days_for_gpt3_are_near_the_published_estimate():
    model = par.GPT(96, 12288, 96)
    for chunks in (1, 2, 3):
        layout = par.Layout(1024, 1536, tensor=8, pipeline=16, chunks=chunks)
        seconds = par.step_time(model, layout)["total"]
        days = 300e9 / (1536 * 2048) * seconds / 86400  # for 300e9 tokens
        assert 0.8 < days / 34 < 1.25  # Narayanan et al. (2021), section 5.1


def test_messages_of_a_pipeline_are_counted():
    model = par.GPT(24, 2304, 24)
    machine = par.Machine(reached=1.0)
    assert par.step_time(model, par.Layout(8, 16), machine)["pipeline"] == 0
    outside = par.Layout(16, 16, tensor=8, pipeline=2)
    seconds = par.step_time(model, outside, machine)["pipeline"]
    each = 2 * model.sequence * model.hidden / 8  # bytes, of one of eight pieces
    assert seconds == pytest.approx(2 * 16 * each / machine.slow)
    inside = par.Layout(8, 16, tensor=4, pipeline=2)
    seconds = par.step_time(model, inside, machine)["pipeline"]
    assert seconds == pytest.approx(2 * 16 * 2 * each / machine.fast)


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
    # 4 and 1 micro-batches
    plans = [par.Layout(1024, 4096, zero=3, micro_batch=k) for k in (1, 4)]
    hidden = slow["compute"] * 4  # four times the batch of `slow`
    many, one = (
        par.step_time(model, plan, par.Machine(slow=1e9))["data"] for plan in plans
    )
    assert many + hidden == pytest.approx(4 * (one + hidden))  # each gathers and reduces


def test_interleaving_shrinks_the_bubble_and_sends_more():
    model = par.GPT(96, 12288, 96)
    plain, cut = (par.Layout(1536, 1536, 8, 12, chunks=chunks) for chunks in (1, 4))
    before, after = par.step_time(model, plain), par.step_time(model, cut)
    assert after["bubble"] == pytest.approx(before["bubble"] / 4)
    assert after["pipeline"] == pytest.approx(before["pipeline"] * 4)
    assert all(before[part] == after[part] for part in ("compute", "tensor", "data"))


def test_the_seconds_of_a_step_are_those_of_the_formulas():
    """Each part by hand, with every setting away from its default."""
    model = par.GPT(4, 64, 4, sequence=32, vocabulary=100)
    assert model.parameters == 4 * (12 * 64**2 + 13 * 64) + 132 * 64
    flops = 96 * 48 * 32 * 4 * 64**2 * (1 + 32 / (6 * 64) + 100 / (16 * 4 * 64))
    assert model.flops(48) == pytest.approx(flops, rel=1e-12)
    machine = par.Machine(1e9, 1e6, 1e5, node=4, efficiency=0.25, reached=0.5)
    layout = par.Layout(24, 48, tensor=2, pipeline=3, micro_batch=2, chunks=2)
    assert (layout.replicas, layout.micro_batches) == (4, 6)
    output = 2 * 2 * 32 * 64  # bytes of a micro-batch between two layers
    want = {
        "compute": flops / 24 / 0.25e9,
        "tensor": 6 * 4 / 3 * 6 * output * 2 / 2 / 0.5e6,  # within a node
        "pipeline": 2 * 6 * 2 * output / 2 / 0.5e5,  # two times three: beyond a node
        "data": 2 * 3 / 4 * 2 * model.parameters / 6 / 0.5e5,
    }
    want["bubble"] = 2 / (2 * 6) * (want["compute"] + want["tensor"])
    want["total"] = sum(want.values())
    assert par.step_time(model, layout, machine) == pytest.approx(want, rel=1e-12)
    assert list(par.step_time(model, layout)) == [
        "compute", "tensor", "pipeline", "bubble", "data", "total",
    ]  # fmt: skip


@pytest.mark.parametrize(("size", "slower"), [(8, False), (16, True)])
def test_what_fits_into_a_node_takes_its_fast_links(size, slower):
    model, machine = par.GPT(4, 64, 4), par.Machine()
    other = par.Machine(slow=machine.slow / 2)
    for part, layout in (
        ("tensor", par.Layout(size, size, tensor=size)),
        ("pipeline", par.Layout(size, size, tensor=2, pipeline=size // 2)),
        ("data", par.Layout(size, size)),
    ):
        seconds = [par.step_time(model, layout, m)[part] for m in (machine, other)]
        assert (seconds[1] > seconds[0] > 0) == slower


def test_idle_time_is_counted_from_the_first_start():
    trace = par.simulate_pipeline(par.pipeline_schedule(3, 4))
    later = [e._replace(start=e.start + 100, end=e.end + 100) for e in trace]
    assert par.idle_fraction(later) == pytest.approx(par.idle_fraction(trace))


def test_settings_left_out():
    assert par.GPT(1, 2, 3) == par.GPT(1, 2, 3, sequence=2048, vocabulary=51200)
    assert par.Layout(8, 8) == par.Layout(8, 8, 1, 1, 0, 1, 1)
    assert par.Machine() == par.Machine(312e12, 300e9, 25e9, 8, 0.5, 0.62)
    assert par.pipeline_schedule(3, 4) == par.pipeline_schedule(3, 4, "1f1b", 1)
    assert par.bubble_fraction(3, 4) == par.bubble_fraction(3, 4, 1) == 2 / 6
    order = par.pipeline_schedule(2, 2)
    assert par.simulate_pipeline(order) == par.simulate_pipeline(order, 1.0, 2.0)
    assert all(event.chunk == 0 for event in par.simulate_pipeline(order))
    router, experts = nn.Linear(2, 2), [nn.Linear(2, 2), nn.Linear(2, 2)]
    assert par.MixtureOfExperts(router, experts).capacity_factor == 1.25
    q, k, v = (torch.randn(1, 1, 3, 2) for _ in "qkv")
    plain = F.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(par.ring_attention(q, k, v), plain, atol=1e-6)
    model = layers()
    trainer = par.DataParallelTrainer(
        model, torch.optim.SGD(model.parameters(), lr=0.5), F.cross_entropy
    )
    x, y = rows(8)
    assert trainer.step(x, y).dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: par.pipeline_schedule(0, 1), "0 stages, 1 micro-batches, 1 chunks"),
        (lambda: par.pipeline_schedule(1, 0), "1 stages, 0 micro-batches, 1 chunks"),
        (lambda: par.pipeline_schedule(1, 1, chunks=0), "1 micro-batches, 0 chunks"),
        (lambda: par.pipeline_schedule(2, 2, "zigzag"), "kind='zigzag'"),
        (lambda: par.pipeline_schedule(2, 2, "gpipe", 2), "2 chunks need kind='1f1b'"),
        (lambda: par.pipeline_schedule(2, 3, chunks=2), "3 micro-batches on 2 stages"),
        (lambda: par.Layout(8, 9), "batch=9.*devices must be a multiple"),
        (lambda: par.Layout(8, 8, tensor=3), "tensor=3"),
        (lambda: par.Layout(4, 6, micro_batch=4), "micro_batch=4"),
        (lambda: par.Layout(8, 9, pipeline=8, chunks=2), "multiple of them, not 9"),
        (lambda: par.state_bytes(1.0, 8, 4), "stage=4"),
        (lambda: par.shard_parameters([torch.zeros(3)], 0), "processes=0"),
        (lambda: par.ShardedTrainer(layers(), None, None, 7), "stage=7"),
        (lambda: par.ring_attention(*[torch.zeros(2, 3)] * 3), r"\(2, 3\), \(2, 3\)"),
        (
            lambda: par.ring_attention(*[torch.zeros(1, 1, 2, 2).long()] * 3),
            r"\['torch.int64'\]: give q",
        ),
        (lambda: mixture(2)[0](torch.zeros(1, 2, 5)), r"\(1, 2, 5\): give \(tokens"),
        (
            lambda: par.MixtureOfExperts(nn.Linear(2, 3), [nn.Linear(2, 2)] * 2),
            "2 experts, 3 outputs of the router, 1 processes",
        ),
        (
            lambda: par.MixtureOfExperts(nn.Linear(2, 1), [nn.Linear(2, 2)], -0.5),
            "capacity_factor=-0.5",
        ),
        (
            lambda: par.MixtureOfExperts(nn.Linear(2, 1), [nn.Linear(2, 2)], 0.0),
            "capacity_factor=0.0",
        ),
    ],
)
def test_errors_name_what_was_given(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("fails", [False, True])
def test_a_group_is_joined_as_asked_and_left_in_any_case(monkeypatch, fails):
    done = []
    for name, answer in (("init_process_group", None), ("barrier", None),
                         ("destroy_process_group", None), ("get_rank", 1),
                         ("get_world_size", 3)):  # fmt: skip
        monkeypatch.setattr(
            torch.distributed,
            name,
            lambda *given, name=name, answer=answer, **named: (
                done.append((name, given, named)) or answer
            ),
        )
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    try:
        with par.process_group() as joined:
            assert joined == (1, 3)
            if fails:
                raise OSError
    except OSError:
        assert fails
    names = [name for name, *_ in done if not name.startswith("get")]
    first, last = "init_process_group", "destroy_process_group"
    # after an error nobody waits for the others
    assert names == ([first, last] if fails else [first, "barrier", last])
    assert done[0] == (first, ("gloo",), {"timeout": timedelta(seconds=30)})
    with par.process_group(2.5, "mpi"):
        pass
    again = [call for call in done if call[0] == first][1]
    assert again[1:] == (("mpi",), {"timeout": timedelta(seconds=2.5)})


def test_the_gpu_of_a_process_is_the_first_where_none_is_named(monkeypatch):
    chosen = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setattr("torch.distributed.init_process_group", refuse)
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for backend, gpus in ((None, [0]), ("nccl", [0]), ("gloo", [])):
        chosen.clear()
        with pytest.raises(RuntimeError, match="no other process to join"):
            par.process_group(1, backend).__enter__()
        assert chosen == gpus


def refuse(backend, timeout):
    raise ValueError("no rendezvous")


def test_counters_of_bytes_may_be_nested(monkeypatch):
    threads = Threads(monkeypatch, (0, 1))
    with par.SentBytes() as outer:
        threads.run(lambda rank: par.ring_all_gather(torch.ones(3)))
        with par.SentBytes() as inner:
            threads.run(lambda rank: par.ring_all_gather(torch.ones(5)))
    threads.run(lambda rank: par.ring_all_gather(torch.ones(7)))
    assert (outer.total, inner.total) == (2 * 8 * 4, 2 * 5 * 4)


# --- threads in the place of processes ------------------------------------------------------------


# who takes part, and the group: all of them, or some among others, in an order of their own
TEAMS = [((0, 1), None, None), ((0, 1, 2), None, None), ((3, 1), (3, 1), range(4))]


@pytest.fixture(params=TEAMS, ids=["two", "three", "a group"])
def team(request, monkeypatch):
    ranks, group, world = request.param
    return Threads(monkeypatch, ranks, world), group


def placed(team):
    """Return run(function): function(place in the group) in each thread."""
    threads, _ = team
    return lambda function: threads.run(lambda rank: function(threads.ranks.index(rank)))


def test_rings_of_threads_sum_and_gather_in_the_order_of_the_group(team):
    n, group = len(team[0].ranks), team[1]
    draw = torch.Generator().manual_seed(n)
    for shape in ((), (1,), (5,), (3, 4), (0,), (12,)):
        parts = [
            torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(n)
        ]
        kept = [part.clone() for part in parts]
        with par.SentBytes() as sent:  # of all threads together
            found = placed(team)(
                lambda place, parts=parts: par.ring_all_reduce(parts[place], group)
            )
        padded = math.ceil(math.prod(shape) / n) * n * 8
        assert sent.total == 2 * (n - 1) * padded
        for got, part, before in zip(found, parts, kept, strict=True):
            assert torch.equal(got, found[0]) and torch.equal(part, before)
            assert torch.allclose(got, sum(parts), atol=1e-12) and got.shape == shape
    chunks = [torch.full((2,), float(place)) for place in range(n)]
    with par.SentBytes() as sent:
        found = placed(team)(lambda place: par.ring_all_gather(chunks[place], group))
    assert all(torch.equal(whole, torch.cat(chunks)) for whole in found)
    assert sent.total == n * (n - 1) * 8
    line = torch.arange(3.0 * n)
    with par.SentBytes() as sent:
        found = placed(team)(lambda place: par.ring_reduce_scatter(line * place, group))
    assert torch.equal(torch.cat(found), line * sum(range(n)))
    assert sent.total == n * (n - 1) * 12


def test_threads_take_the_mean_of_several_tensors_in_one_ring(team):
    n, group = len(team[0].ranks), team[1]

    def mean(place):
        tensors = [torch.full((3,), float(place)), torch.full((2, 2), 40000.0).half()]
        for tensor in tensors:
            par.all_reduce_mean([tensor], group)
        pair = [torch.full((3,), 2.0 * place), torch.full((2, 2), 4.0 * place)]
        with par.SentBytes():
            par.all_reduce_mean(pair, group)
        par.all_reduce_mean([], group)
        return *tensors, *pair

    for one, half, three, four in placed(team)(mean):
        assert torch.allclose(one, torch.full((3,), (n - 1) / 2))
        assert (half - 40000).abs().max() < 50  # the sum would be infinite
        assert torch.allclose(three, torch.full((3,), n - 1.0))
        assert torch.allclose(four, torch.full((2, 2), 2.0 * (n - 1)))


@pytest.mark.parametrize("pieces", [1, 3, 9])
def test_threads_with_unequal_rows_train_as_one_process_with_all(team, pieces):
    n, group = len(team[0].ranks), team[1]
    split = [6, *[1] * (n - 1)]
    models = [layers(seed=place) for place in range(n)]  # the first one's weights win
    for place, model in enumerate(models):
        model.register_buffer("kept", torch.tensor([float(place)]))
    batches = [rows(sum(split), seed=seed) for seed in range(2)]

    def train(place):
        optimizer = torch.optim.Adam(models[place].parameters(), lr=0.01)
        trainer = par.DataParallelTrainer(
            models[place], optimizer, F.cross_entropy, group
        )
        losses = []
        for x, y in batches:
            own = x.split(split)[place], y.split(split)[place]
            losses.append(trainer.step(*own, pieces).item())
        return losses

    losses = placed(team)(train)
    whole = layers()
    want = F.cross_entropy(whole(batches[0][0]), batches[0][1]).item()
    assert all(found[0] == pytest.approx(want, rel=1e-12) for found in losses)
    for model in models:
        assert torch.equal(flat(model.parameters()), flat(models[0].parameters()))
        assert off(flat(model.parameters()), alone(2, sum(split))) < 1e-12
        assert model.kept == 0


@pytest.mark.parametrize("stage", range(4))
def test_sharding_threads_make_the_update_of_one_process(team, stage):
    n, group = len(team[0].ranks), team[1]
    models = [layers(seed=place) for place in range(n)]
    split = [6, *[1] * (n - 1)]
    count = sum(split)

    def train(place):
        trainer = par.ShardedTrainer(
            models[place], lambda p: torch.optim.Adam(p, lr=0.01), F.cross_entropy, stage, group
        )  # fmt: skip
        for seed in range(3):
            x, y = (part.split(split)[place] for part in rows(count, seed=seed))
            loss = trainer.step(x, y)
        model = models[place]
        with torch.no_grad():
            own = F.cross_entropy(model(x), y)
        return trainer, trainer.weights(), loss, own, trainer.held()

    with par.SentBytes() as sent:
        found = placed(team)(train)
    sizes = [sum(p.numel() for p in block.parameters()) for block in layers()]
    padded = 8 * sum(math.ceil(size / n) * n for size in sizes)
    shard = padded // n
    whole, part = ("parameters", "gradients", "optimizer"), [0, 0, 0]
    part = [padded if stage < 3 else shard, padded if stage < 2 else shard, 2 * padded]
    part[2] = 2 * padded if stage == 0 else 2 * shard
    for trainer, weights, loss, own, held in found:
        assert off(weights, alone(3, count)) < 1e-12
        assert loss.ndim == 0 and not loss.requires_grad and own.isfinite()
        assert trainer.at_update == dict(zip(whole, part, strict=True))
        assert held["gradients"] == 0 and held["parameters"] == part[0]
    # an all-reduce, or a reduce-scatter and as many all-gathers as the stage needs
    rounds = {0: 2, 1: 2, 2: 2, 3: 3}[stage] * 3
    rest = {0: 0, 1: 1, 2: 1, 3: 1 + 1}[stage]  # weights(), and the forward at the end
    assert sent.total == (n - 1) * padded * (rounds + rest)


def linears(n, bias, seed):
    torch.manual_seed(seed)
    up = nn.Linear(5, 4 * n, bias=bias, dtype=torch.float64)
    down = nn.Linear(4 * n, 3, bias=bias, dtype=torch.float64)
    return up, down, torch.randn(2, 3, 5, dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
def test_layers_in_pieces_on_threads_are_the_whole_layers(team, bias):
    n, group = len(team[0].ranks), team[1]
    up, down, x = linears(n, bias, seed=n)
    whole = x.clone().requires_grad_()
    want = down(F.gelu(up(whole)))
    want.square().sum().backward()

    def pieces(place):
        z = x.clone().requires_grad_()
        first = par.ColumnParallelLinear(up, group=group)
        second = par.RowParallelLinear(down, group)
        got = second(F.gelu(first(z)))
        got.square().sum().backward()
        assert off(got.detach(), want.detach()) < 1e-12
        assert off(z.grad, whole.grad) < 1e-12
        assert off(first.weight.grad, up.weight.grad.chunk(n)[place]) < 1e-12
        assert off(second.weight.grad, down.weight.grad.chunk(n, 1)[place]) < 1e-12
        if bias:
            assert off(first.bias.grad, up.bias.grad.chunk(n)[place]) < 1e-12
            assert off(second.bias.grad, down.bias.grad) < 1e-12
        else:
            assert first.bias is None and second.bias is None
        return refusals(
            lambda: par.ColumnParallelLinear(nn.Linear(4, 4 * n + 1), group=group),
            lambda: par.RowParallelLinear(nn.Linear(4 * n + 1, 4), group),
            lambda: par.ParallelAttention(
                *(nn.Linear(9, 9) for _ in range(4)), 3 * n + 1, group
            ),
            lambda: par.ParallelAttention(
                *(nn.Linear(9, 9 * n) for _ in range(4)), 2 * n, group
            ),
        )

    for said in placed(team)(pieces):
        assert f"out_features={4 * n + 1} does not split over {n} proc" in said[0]
        assert f"in_features={4 * n + 1} does not split over {n} proc" in said[1]
        assert f"heads={3 * n + 1} must be a multiple of the {n} proc" in said[2]
        if len(said) > 3:
            assert f"and divide the width {9 * n}" in said[3]


def test_attention_heads_on_threads_are_the_whole_attention(team):
    n, group = len(team[0].ranks), team[1]
    torch.manual_seed(1)
    width = 4 * n
    parts = [nn.Linear(width, width, dtype=torch.float64) for _ in range(4)]
    x = torch.randn(2, 5, width, dtype=torch.float64)
    plain = par.ParallelAttention(*parts, 2 * n)  # no group of processes here
    whole = x.clone().requires_grad_()
    want = plain(whole)
    want.square().sum().backward()

    def heads(place):
        z = x.clone().requires_grad_()
        got = par.ParallelAttention(*parts, 2 * n, group)(z)
        got.square().sum().backward()
        return max(off(got.detach(), want.detach()), off(z.grad, whole.grad))

    assert max(placed(team)(heads)) < 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_attention_around_a_ring_of_threads_is_that_of_the_whole_sequence(team, causal):
    n, group = len(team[0].ranks), team[1]
    draw = torch.Generator().manual_seed(3)
    parts = [
        [torch.randn(2, 3, 4, 5, generator=draw, dtype=torch.float64) for _ in "qkv"]
        for _ in range(n)
    ]
    parts[0][0] *= 300  # scores of thousands
    want = whole_attention(parts, causal)

    def around(place):
        q, k, v = (part.clone().requires_grad_() for part in parts[place])
        out = par.ring_attention(q, k, v, causal, group)
        out.backward(out.detach() * 0.3 + 1)
        return out.detach(), q.grad, k.grad, v.grad

    with par.SentBytes() as sent:
        found = placed(team)(around)
    # keys and values forward; then they and their gradients, which go all the way round
    assert sent.total == n * (2 * (n - 1) + 2 * (2 * n - 1)) * parts[0][1].nbytes
    for place, tensors in enumerate(found):
        for got, chunks in zip(tensors, want, strict=True):
            assert off(got, chunks[place]) < 1e-9 * (1 + chunks[place].abs().max())


def test_threads_that_differ_are_all_told(team):
    group = team[1]

    def differ(place):
        shape = torch.zeros(1, 1, 2 + place, 3)
        said = refusals(lambda: par.ring_attention(shape, shape, shape, group=group))
        with team[0].building:
            layer = mixture(len(team[0].ranks), group=group)[0]
        tokens = torch.zeros(4 + place, 5, dtype=torch.float64)
        return said + refusals(lambda: layer(tokens))

    last = len(team[0].ranks) + 1
    for shapes, tokens in placed(team)(differ):
        assert (
            f"the shapes differ between processes ([1, 1, 2, 3] to [1, 1, {last}, 3])"
            in shapes
        )
        assert (
            f"the numbers of tokens differ between processes ([4] to [{last + 2}])"
            in tokens
        )


@pytest.mark.parametrize(
    ("each", "tokens", "factor"), [(1, 6, 1.25), (2, 9, 0.3), (2, 7, 9.0)]
)
def test_experts_on_threads_are_a_loop_over_the_tokens(team, each, tokens, factor):
    n, group = len(team[0].ranks), team[1]
    draw = torch.Generator().manual_seed(9)
    inputs = [
        torch.randn(tokens, 5, generator=draw, dtype=torch.float64) for _ in range(n)
    ]
    reference, twins = mixture(each * n, factor=factor)
    wholes = [x.clone().requires_grad_() for x in inputs]
    found = [token_by_token(reference.router, twins, x, factor) for x in wholes]
    sum((k + 1) ** 2 * y.square().sum() for k, (y, _) in enumerate(found)).backward()

    def own(place):
        with team[0].building:
            layer, _ = mixture(each * n, factor=factor, group=group)
        assert len(layer.experts) == each
        x = inputs[place].clone().requires_grad_()
        out = layer(x)
        (out * (place + 1)).square().sum().backward()
        return out.detach(), x.grad, layer

    router = 0
    for place, (out, slope, layer) in enumerate(placed(team)(own)):
        want, dropped = found[place]
        assert off(out, want.detach()) < 1e-12 and layer.dropped == dropped
        assert off(slope, wholes[place].grad) < 1e-12
        mine = nn.ModuleList(twins[place * each : (place + 1) * each])
        for a, b in zip(layer.experts.parameters(), mine.parameters(), strict=True):
            pair = [torch.zeros_like(p) if p.grad is None else p.grad for p in (a, b)]
            assert off(*pair) < 1e-12
        router = router + layer.router.weight.grad
    assert off(router, reference.router.weight.grad) < 1e-12


def test_all_to_all_of_threads_is_a_transpose(team):
    n, group = len(team[0].ranks), team[1]
    table = torch.arange(n * n * 2.0).view(n, n, 2)
    with par.SentBytes() as sent:
        found = placed(team)(lambda place: par.all_to_all(table[place], group))
    assert torch.equal(torch.stack(found), table.transpose(0, 1))
    assert sent.total == n * (n - 1) * 8
    (said, *_) = placed(team)(
        lambda place: refusals(
            lambda: par.all_to_all(torch.zeros(n + 1, 2), group),
            lambda: par.all_to_all(torch.zeros(()), group),
            lambda: par.ring_reduce_scatter(torch.zeros(n + 1), group),
            lambda: par.ring_reduce_scatter(torch.zeros(n, 2), group),
        )
    )
    assert said[0].startswith(f"({n + 1}, 2): give one part for each of the {n} proc")
    assert said[1].startswith("(): give one part")
    assert said[2].startswith(f"({n + 1},): give a vector of a length that {n} divides")
    assert said[3].startswith(f"({n}, 2): give a vector")


@pytest.mark.parametrize(("kind", "chunks"), [("gpipe", 1), ("1f1b", 1), ("1f1b", 2)])
def test_a_pipeline_of_threads_has_the_gradients_of_the_whole_model(team, kind, chunks):
    n, group = len(team[0].ranks), team[1]
    torch.manual_seed(0)
    pieces = [
        nn.Sequential(nn.Linear(6, 6), nn.Tanh()).double() for _ in range(n * chunks)
    ]
    m = 2 * n
    x, y = rows(2 * m)
    want = F.cross_entropy(nn.Sequential(*pieces)(x), y)
    want.backward()
    grads = [flat(p.grad for p in piece.parameters()) for piece in pieces]
    nn.Sequential(*pieces).zero_grad()
    order = par.pipeline_schedule(n, m, kind, chunks)
    like = torch.empty(2, 6, dtype=torch.float64)

    def run(place):
        own = pieces[place::n] if chunks > 1 else pieces[place]
        total, trace = par.run_pipeline(
            own, order, x.split(2), y.split(2), F.cross_entropy, like, group
        )
        said = refusals(
            lambda: par.run_pipeline(own, order[:1], x, y, F.cross_entropy, like, group),
            lambda: par.run_pipeline(
                [pieces[0]] * 3, order, x, y, F.cross_entropy, like, group
            ),
        )
        return total, trace, said

    with par.SentBytes() as sent:
        found = placed(team)(run)
    assert sent.total == 2 * m * (n * chunks - 1) * like.nbytes
    for place, (total, trace, said) in enumerate(found):
        assert total == pytest.approx(want.item() if place == n - 1 else 0.0)
        done = [(event.kind, event.micro_batch, event.chunk) for event in trace]
        assert done == [work if chunks > 1 else (*work, 0) for work in order[place]]
        assert all(event.stage == place for event in trace)
        assert all(event.start <= event.end for event in trace)
        assert said[0].startswith(f"1 stages on {n} processes: make a schedule for {n}")
        assert said[1] == f"the schedule has {chunks} chunks, `stage` 3"
    for piece, grad in zip(pieces, grads, strict=True):
        assert off(flat(p.grad for p in piece.parameters()), grad) < 1e-12
