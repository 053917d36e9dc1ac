"""Parallelism: several processes train one model, by splitting its data, state, layers or
time.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

Group = dist.ProcessGroup | None

# --- processes, and the bytes between them --------------------------------------------------------


@contextlib.contextmanager
def process_group(seconds: float = 30.0) -> Iterator[tuple[int, int]]:
    """Join the other processes of this launch for the block; yields (rank, processes).

    Any message that waits longer than `seconds` > 0 raises RuntimeError instead of
    hanging. Rank and address come from the environment, as torchrun or `lab.launching`
    sets it. Raises RuntimeError where there is none. Invariant: the group is gone after
    the block.
    """
    if dist.is_initialized():
        raise RuntimeError("this process is in a group already: leave that one first")
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    except ValueError as error:
        raise RuntimeError(
            "no other process to join: start them with launch(fn, 2)"
        ) from error
    try:
        yield dist.get_rank(), dist.get_world_size()
        dist.barrier()  # none leaves while another may still wait for its message
    finally:
        dist.destroy_process_group()


class SentBytes:
    """Count the bytes that this process sends through this module, within the `with`
    block.

    `total` is their number. Only what this module sends from one process to one other
    counts.
    """

    _open: list[SentBytes] = []

    def __enter__(self) -> SentBytes:
        self.total = 0
        SentBytes._open.append(self)
        return self

    def __exit__(self, *_) -> None:
        SentBytes._open.remove(self)


def _place(group: Group) -> tuple[int, int]:
    """Return (rank, processes) in the group; (0, 1) where there is no group at all."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def _isend(tensor: Tensor, to: int, group: Group, tag: int = 0):
    for counter in SentBytes._open:
        counter.total += tensor.nbytes
    peer = to if group is None else dist.get_global_rank(group, to)
    return dist.isend(tensor, peer, group=group, tag=tag)


def _irecv(tensor: Tensor, source: int, group: Group, tag: int = 0):
    peer = source if group is None else dist.get_global_rank(group, source)
    return dist.irecv(tensor, peer, group=group, tag=tag)


def _pass_on(tensor: Tensor, group: Group) -> Tensor:
    """Send `tensor` to the next process of the ring; return what the one before has sent."""
    rank, n = _place(group)
    got = torch.empty_like(tensor)
    both = [_isend(tensor, (rank + 1) % n, group), _irecv(got, (rank - 1) % n, group)]
    for message in both:
        message.wait()
    return got


def ring_reduce_scatter(flat: Tensor, group: Group = None) -> Tensor:
    """Sum `flat` (n * c,) over the n processes; return this one's chunk (c,) of the sum.

    Each process sends (n - 1) / n of the vector. Raises ValueError where n does not
    divide it.
    """
    rank, n = _place(group)
    if flat.ndim != 1 or len(flat) % n:
        raise ValueError(
            f"{tuple(flat.shape)}: give a vector of a length that {n} divides; pad it"
        )
    chunks = list(flat.detach().clone().tensor_split(n))
    for step in range(n - 1):
        chunks[(rank - step - 2) % n] += _pass_on(chunks[(rank - step - 1) % n], group)
    return chunks[rank]


def ring_all_gather(chunk: Tensor, group: Group = None) -> Tensor:
    """Return all processes' chunks (c,), joined in the order of their ranks: (n * c,).

    Each process sends (n - 1) / n of the result.
    """
    rank, n = _place(group)
    chunks = [chunk.detach().contiguous()] * n
    for step in range(n - 1):
        chunks[(rank - step - 1) % n] = _pass_on(chunks[(rank - step) % n], group)
    return torch.cat(chunks)


def ring_all_reduce(tensor: Tensor, group: Group = None) -> Tensor:
    """Return the sum of all processes' `tensor`, of any shape; the input stays as it is.

    A reduce-scatter, then an all-gather: each process sends 2 (n - 1) / n of the tensor,
    padded to a multiple of n. Source: Patarasu & Yuan (2009). Invariant: all processes
    get the same bits.
    """
    _, n = _place(group)
    flat = F.pad(tensor.detach().ravel(), (0, -tensor.numel() % n))
    whole = ring_all_gather(ring_reduce_scatter(flat, group), group)
    return whole[: tensor.numel()].reshape(tensor.shape)


def all_reduce_mean(tensors: Sequence[Tensor], group: Group = None) -> None:
    """Replace each tensor by its mean over the processes, in place, in one ring for all
    of them.

    Divides before it sums, so that float16 does not overflow on the way. Raises
    ValueError for tensors of several dtypes.
    """
    if len({tensor.dtype for tensor in tensors}) > 1:
        raise ValueError("tensors of several dtypes: call it once for each dtype")
    _, n = _place(group)
    if not tensors or n == 1:
        return
    flat = torch.cat([tensor.detach().ravel() for tensor in tensors]) / n
    parts = ring_all_reduce(flat, group).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.detach().copy_(part.view(tensor.shape))


# --- data parallel --------------------------------------------------------------------------------


class DataParallelTrainer:
    """Train replicas of `model` on different rows, with one all-reduce of the gradient an
    update.

    All replicas start from process 0's weights and buffers. `loss_fn(outputs, targets)`
    is the mean over the rows. Source: Li et al. (2020), without the overlap of backward
    and all-reduce.
    Invariants: the update is that of one process with all the rows, however they are
    split (but for layers that mix rows or draw, like BatchNorm and dropout); the weights
    of all replicas stay the same to the bit; on one process it is an ordinary step.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, loss_fn: Callable,
        group: Group = None,
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.loss_fn, self.group = (
            model,
            optimizer,
            loss_fn,
            group,
        )
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.detach().copy_(_from_first(tensor, group))

    def step(
        self, inputs: Tensor, targets: Tensor, accumulation_steps: int = 1
    ) -> Tensor:
        """Make one update from this process's rows (at least one); return the mean loss
        of all.

        The all-reduce comes once, after the last of `accumulation_steps` micro-batches.
        """
        share = _row_share(len(inputs), self.group)
        self.optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        pieces = min(accumulation_steps, len(inputs))
        parts = zip(
            inputs.tensor_split(pieces), targets.tensor_split(pieces), strict=True
        )
        for x, y in parts:
            loss = self.loss_fn(self.model(x), y) * (share * len(x) / len(inputs))
            loss.backward()
            total += loss.detach()
        all_reduce_mean(
            [p.grad for p in self.model.parameters() if p.grad is not None], self.group
        )
        self.optimizer.step()
        return _over_all(total, self.group) / _place(self.group)[1]


def data_parallel_step(run, batch) -> Tensor:
    """Do for `fit` what DDP does: local gradients, one all-reduce, the same update
    everywhere.

    On one process it is `train_step` to the bit.
    """
    run.optimizer.zero_grad()
    # DDP keeps quiet, the next line does its work
    with run.accelerator.no_sync(run.model):
        loss = run.gradients(batch)
    all_reduce_mean([p.grad for p in run.model.parameters() if p.grad is not None])
    run.optimizer.step()
    return loss


def _from_first(tensor: Tensor, group: Group) -> Tensor:
    """Return process 0's values of `tensor`, on every process."""
    rank, n = _place(group)
    got = tensor.detach().clone()
    if n > 1:
        dist.broadcast(
            got, 0 if group is None else dist.get_global_rank(group, 0), group=group
        )
    return got


def _over_all(number: Tensor, group: Group) -> Tensor:
    """Return the sum of one float64 number over the processes; too small to count its
    bytes.
    """
    if dist.is_initialized():
        dist.all_reduce(number, group=group)
    return number


def _row_share(rows: int, group: Group) -> float:
    """Return this process's rows over the mean rows of a process."""
    total = _over_all(torch.tensor(float(rows), dtype=torch.float64), group)
    return rows * _place(group)[1] / total.item()


# --- ZeRO: data parallel without keeping everything n times ---------------------------------------


def shard_parameters(tensors: Sequence[Tensor], processes: int) -> list[Tensor]:
    """Return `processes` >= 1 equal chunks of all tensors read as one vector, zeros at
    the end.

    Invariant: joined and cut to the old length, they are the tensors again.
    """
    if processes < 1:
        raise ValueError(f"processes={processes}: give at least 1")
    flat = torch.cat([tensor.detach().ravel() for tensor in tensors])
    flat = F.pad(flat, (0, -len(flat) % processes))
    return list(flat.view(processes, -1).unbind(0))


class _Unit:
    """The parameters of one layer as one vector, of which this process updates a chunk."""

    def __init__(self, layer: nn.Module, stage: int, group: Group) -> None:
        self.params, self.stage, self.group = list(layer.parameters()), stage, group
        rank, n = _place(group)
        self.full = torch.cat(shard_parameters(self.params, n))
        self.full = _from_first(self.full, group)
        size, start = len(self.full) // n, 0
        self.own = slice(rank * size, (rank + 1) * size) if stage else slice(None)
        for p in self.params:
            p.data = self.full[start : start + p.numel()].view(p.shape)
            start += p.numel()
            p.register_post_accumulate_grad_hook(self.ready)
        self.shard = nn.Parameter(self.full[self.own])  # stages 0 to 2: a view of `full`
        self.waiting = len(self.params)
        if stage == 3:
            self.shard = nn.Parameter(self.full[self.own].clone())
            self.free()
            layer.register_forward_pre_hook(lambda *_: self.gather())
            layer.register_forward_hook(lambda *_: self.free())
            layer.register_full_backward_pre_hook(lambda *_: self.gather())

    def gather(self) -> None:
        """Fetch the whole parameters (stage 3: before a use; stages 1, 2: after an
        update).
        """
        self.full.untyped_storage().resize_(self.full.nbytes)
        self.full.copy_(ring_all_gather(self.shard.detach(), self.group))

    def free(self) -> None:
        self.full.untyped_storage().resize_(0)

    def ready(self, _: Tensor) -> None:
        """Note one more gradient of the backward pass; after the last, reduce them."""
        self.waiting -= 1
        if not self.waiting:
            self.reduce()

    @torch.no_grad()
    def reduce(self) -> None:
        """Sum the gradient over the processes and keep what this stage keeps of it."""
        _, n = _place(self.group)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        flat = torch.cat(shard_parameters(grads, n)) / n
        if self.stage == 0:
            self.shard.grad = ring_all_reduce(flat, self.group)
        elif self.stage == 1:
            flat[self.own] = ring_reduce_scatter(flat, self.group)
            # a view: the whole of `flat` stays in memory
            self.shard.grad = flat[self.own]
        else:
            self.shard.grad = ring_reduce_scatter(flat, self.group).clone()
        for p in self.params:
            p.grad = None
        if self.stage == 3:
            self.free()
        self.waiting = len(self.params)


class ShardedTrainer:
    """ZeRO by hand: data parallel in which the processes share out what each would keep
    whole.

    Stage 0 shares nothing; 1 the optimizer's state; 2 the gradients too; 3 the parameters
    too.
    `optimizer` makes one from a list of parameters, and must work entry by entry (SGD,
    Adam). Each child of `model` with parameters (of a ModuleList, each member) is a unit:
    gathered, reduced and freed as a whole. `at_update` is `held()` at the last update.
    Source: Rajbhandari et al. (2020).
    Raises ValueError for another stage, for parameters outside the children, shared by
    two, frozen, or of several dtypes. Invariant: every stage makes the same update.
    """

    def __init__(
        self, model: nn.Module, optimizer: Callable[[list], torch.optim.Optimizer],
        loss_fn: Callable, stage: int, group: Group = None,
    ) -> None:  # fmt: skip
        if stage not in (0, 1, 2, 3):
            raise ValueError(f"stage={stage!r}: choose 0, 1, 2 or 3")
        if next(model.parameters(recurse=False), None) is not None:
            raise ValueError(
                "the model has parameters of its own: put them into a child module"
            )
        self.model, self.loss_fn, self.stage, self.group = model, loss_fn, stage, group
        layers = []
        for child in model.children():  # a ModuleList is never called: its members are
            layers += list(child) if isinstance(child, nn.ModuleList) else [child]
        layers = [layer for layer in layers if next(layer.parameters(), None) is not None]
        found = list(model.parameters())
        if len({p.dtype for p in found}) > 1 or not all(p.requires_grad for p in found):
            raise ValueError("all parameters must be of one dtype and require a gradient")
        if sum(len(list(layer.parameters())) for layer in layers) > len(found):
            raise ValueError("two layers share a parameter: give each its own")
        self.units = [_Unit(layer, stage, group) for layer in layers]
        self.optimizer = optimizer([unit.shard for unit in self.units])

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Make one update from this process's rows; return this process's loss."""
        loss = self.loss_fn(self.model(inputs), targets)
        (loss * _row_share(len(inputs), self.group)).backward()
        for unit in self.units:
            if unit.shard.grad is None:  # a layer that this loss does not use
                unit.reduce()
        self.optimizer.step()
        self.at_update = self.held()
        self.optimizer.zero_grad()
        if self.stage in (1, 2):
            for unit in self.units:
                unit.gather()
        return loss.detach()

    def held(self) -> dict[str, int]:
        """Return the bytes that this process holds now, by kind."""
        units = self.units
        storages = {
            t.untyped_storage() for unit in units for t in (unit.full, unit.shard)
        }
        grads = [unit.shard.grad for unit in units if unit.shard.grad is not None]
        state = [
            t for entry in self.optimizer.state.values() for t in entry.values() if t.ndim
        ]
        return {
            "parameters": sum({s._cdata: s.nbytes() for s in storages}.values()),
            "gradients": sum(grad.untyped_storage().nbytes() for grad in grads),
            "optimizer": sum(t.nbytes for t in state),
        }

    def weights(self) -> Tensor:
        """Return all parameters as one vector, gathered from all processes."""
        whole = []
        for unit in self.units:
            flat = unit.shard.detach()
            flat = flat if self.stage == 0 else ring_all_gather(flat, self.group)
            whole.append(flat[: sum(p.numel() for p in unit.params)])
        return torch.cat(whole)


# --- tensor parallel: a layer in pieces -----------------------------------------------------------


class _CopyToAll(torch.autograd.Function):
    """The same input on every process; on the way back, the sum of their gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ring_all_reduce(grad, ctx.group), None


class _SumOverAll(torch.autograd.Function):
    """The sum of the processes' outputs; on the way back, the same gradient for each."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        return ring_all_reduce(x, group)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


def _own_part(values: Tensor, dim: int, group: Group, name: str) -> nn.Parameter:
    rank, n = _place(group)
    if values.shape[dim] % n:
        raise ValueError(
            f"{name}={values.shape[dim]} does not split over {n} processes: choose a multiple"
        )
    return nn.Parameter(values.detach().chunk(n, dim)[rank].clone())


class ColumnParallelLinear(nn.Module):
    """This process's outputs of one or several `nn.Linear` layers of the same input.

    Input (..., in), the same on all processes; output (..., out / n), of several layers
    side by side. Forward needs no message, backward one all-reduce. Source: Shoeybi et
    al. (2019), who write x A, so that outputs are columns. Raises ValueError where n does
    not divide the outputs.
    Invariant: the outputs of all processes, joined, are the unsplit layer's.
    """

    def __init__(self, *linears: nn.Linear, group: Group = None) -> None:
        super().__init__()
        parts = [_own_part(layer.weight, 0, group, "out_features") for layer in linears]
        self.group, self.weight = group, nn.Parameter(torch.cat([p.data for p in parts]))
        self.bias = None
        if linears[0].bias is not None:
            parts = [_own_part(layer.bias, 0, group, "out_features") for layer in linears]
            self.bias = nn.Parameter(torch.cat([p.data for p in parts]))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_CopyToAll.apply(x, self.group), self.weight, self.bias)


class RowParallelLinear(nn.Module):
    """An `nn.Linear` of which this process holds the weights of its part of the inputs.

    Input (..., in / n), this process's part; output (..., out), the same on all
    processes. Forward needs one all-reduce, backward no message. The bias is added once,
    after the sum. Source: Shoeybi et al. (2019). Raises ValueError where n does not
    divide the inputs. Invariant: the output is the unsplit layer's.
    """

    def __init__(self, linear: nn.Linear, group: Group = None) -> None:
        super().__init__()
        self.group, self.weight = group, _own_part(linear.weight, 1, group, "in_features")
        self.bias = (
            None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())
        )

    def forward(self, x: Tensor) -> Tensor:
        total = _SumOverAll.apply(F.linear(x, self.weight), self.group)
        return total if self.bias is None else total + self.bias


class ParallelAttention(nn.Module):
    """Self-attention with heads / n heads on each process: (b, rows, width) to the same
    shape.

    `query`, `key`, `value` and `out` are the unsplit layers. One all-reduce forward, one
    backward.
    Source: Shoeybi et al. (2019). Raises ValueError where n does not divide the heads.
    Invariant: the output is the unsplit attention's.
    """

    def __init__(
        self, query: nn.Linear, key: nn.Linear, value: nn.Linear, out: nn.Linear, heads: int,
        group: Group = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _, n = _place(group)
        if heads % n or query.out_features % heads:
            raise ValueError(
                f"heads={heads} must be a multiple of the {n} processes, and divide the width "
                f"{query.out_features}"
            )
        self.heads = heads // n
        self.qkv = ColumnParallelLinear(query, key, value, group=group)
        self.out = RowParallelLinear(out, group)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        # (b, heads / n, rows, head width)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


# --- pipeline: the layers one after the other -----------------------------------------------------


class Event(NamedTuple):
    """One piece of work: `kind` "F" or "B" of a micro-batch on a stage, with start and
    end.
    """

    stage: int
    kind: str
    micro_batch: int
    start: float
    end: float
    chunk: int = 0


def pipeline_schedule(
    stages: int, micro_batches: int, kind: str = "1f1b", chunks: int = 1
) -> list[list[tuple]]:
    """Return for each stage the order of its work: a list of ("F" or "B", micro-batch).

    "gpipe": all forwards, then all backwards (Huang et al. 2019). "1f1b": a stage starts
    a backward as soon as it can, then alternates (Narayanan et al. 2019, with a flush
    2021). With several `chunks` 1F1B is interleaved (Narayanan et al. 2021): the model is
    cut into stages x chunks pieces, stage s has the pieces s, s + stages, ..., and work
    is (kind, micro-batch, chunk).
    Raises ValueError for other kinds and counts below 1, and where several chunks meet
    gpipe, one stage, or micro-batches that are no multiple of the stages. Invariants:
    each F and B occurs once, F before its B; under 1f1b stage s holds at most stages - s
    micro-batches, interleaved at most stages (chunks + 1) - 2 s - 1 micro-batches of one
    chunk.
    """
    if min(stages, micro_batches, chunks) < 1:
        counts = f"{stages} stages, {micro_batches} micro-batches, {chunks} chunks"
        raise ValueError(f"{counts}: give at least 1 of each")
    if kind not in ("gpipe", "1f1b"):
        raise ValueError(f"kind={kind!r}: choose 'gpipe' or '1f1b'")
    if chunks > 1:
        if kind == "gpipe" or stages == 1:
            raise ValueError(
                f"{chunks} chunks need kind='1f1b' and 2 stages or more: use chunks=1"
            )
        return _interleaved(stages, micro_batches, chunks)
    forwards = [("F", i) for i in range(micro_batches)]
    backwards = [("B", i) for i in range(micro_batches)]
    if kind == "gpipe":
        return [forwards + backwards for _ in range(stages)]
    ahead = [stages - stage - 1 for stage in range(stages)]
    return [_alternate(forwards, backwards, first) for first in ahead]


def _alternate(forwards: list, backwards: list, ahead: int) -> list:
    """Return `ahead` forwards, then a forward and a backward in turn, then what is left."""
    pairs = zip(forwards[ahead:], backwards, strict=False)
    steady = [work for pair in pairs for work in pair]
    return forwards[:ahead] + steady + backwards[len(steady) // 2 :]


def _interleaved(stages: int, micro_batches: int, chunks: int) -> list[list[tuple]]:
    """Return the interleaved 1F1B orders: `stages` micro-batches through each chunk in
    turn.
    """
    if micro_batches % stages:
        raise ValueError(
            f"{micro_batches} micro-batches on {stages} stages: interleaving needs a multiple of "
            f"{stages}; change micro_batches, or use chunks=1"
        )
    forwards, backwards = [], []
    for start in range(0, micro_batches, stages):
        for chunk in range(chunks):
            for i in range(start, start + stages):
                forwards.append(("F", i, chunk))
                backwards.append(("B", i, chunks - 1 - chunk))
    ahead = [(chunks - 1) * stages + 2 * (stages - stage - 1) for stage in range(stages)]
    return [_alternate(forwards, backwards, first) for first in ahead]


def _chunks(schedule: list[list[tuple]]) -> int:
    """Return the number of chunks of a schedule; work without a chunk is of chunk 0."""
    return 1 + max(
        (work[2] for order in schedule for work in order if len(work) > 2), default=0
    )


def simulate_pipeline(
    schedule: list[list[tuple]], forward: float = 1.0, backward: float = 2.0
) -> list[Event]:
    """Return the trace of a schedule where a stage's forward and backward take this many
    seconds.

    A forward waits for the piece before, a backward for the piece after; messages take no
    time. Of several chunks each takes its equal share of the seconds. Raises ValueError
    for a schedule in which the stages wait for each other for ever. Invariant: with
    `fractions.Fraction` seconds the times are exact.
    """
    stages, chunks = len(schedule), _chunks(schedule)
    seconds = {"F": forward / chunks, "B": backward / chunks}
    queues, trace, done, clock = [list(order) for order in schedule], [], {}, [0] * stages
    while any(queues):
        before = len(trace)
        for stage, queue in enumerate(queues):
            while queue:
                kind, i, chunk = (*queue[0], 0)[:3]
                piece = chunk * stages + stage
                source = (piece - 1, "F", i) if kind == "F" else (piece + 1, "B", i)
                if kind == "B" and piece == stages * chunks - 1:
                    source = (piece, "F", i)
                if source not in done and not (kind == "F" and piece == 0):
                    break
                start = max(clock[stage], done.get(source, 0))
                clock[stage] = done[piece, kind, i] = start + seconds[kind]
                trace.append(Event(stage, kind, i, start, clock[stage], chunk))
                queue.pop(0)
        if len(trace) == before:
            raise ValueError(
                "deadlock: every stage waits for a message that none will send"
            )
    return trace


def bubble_fraction(stages: int, micro_batches: int, chunks: int = 1) -> float:
    """Return the idle share of a pipeline with equal stages, (p - 1) / (v m + p - 1).

    The same for GPipe and 1F1B, where v = 1 (Huang et al. 2019). With v chunks that of
    interleaved 1F1B: Narayanan et al. (2021) state it as idle over busy time, (p - 1) /
    (v m).
    """
    return (stages - 1) / (chunks * micro_batches + stages - 1)


def idle_fraction(trace: Sequence[Event]) -> float:
    """Return the share of all stages' time, from first start to last end, without work."""
    busy = sum(event.end - event.start for event in trace)
    span = max(event.end for event in trace) - min(event.start for event in trace)
    return 1 - busy / (span * len({event.stage for event in trace}))


def most_in_flight(order: Sequence[tuple]) -> int:
    """Return the most micro-batches (of one chunk each) whose activations a stage holds
    at once.
    """
    held = most = 0
    for kind, *_ in order:
        held += 1 if kind == "F" else -1
        most = max(most, held)
    return most


def run_pipeline(
    stage: nn.Module | Sequence[nn.Module], schedule: list[list[tuple]], inputs: Sequence[Tensor],
    targets: Sequence[Tensor], loss_fn: Callable, like: Tensor, group: Group = None,
) -> tuple[float, list[Event]]:  # fmt: skip
    """Run one batch through the processes, one a stage; return (mean loss or 0, own
    trace).

    `inputs` and `targets` hold micro-batches of one size; `like` has the shape and dtype
    of what one piece hands to the next. For an interleaved schedule `stage` lists this
    process's chunks. Gradients add up in `.grad`. The loss is the last stage's. Sends do
    not block, so that no two stages wait for each other. Raises ValueError where stages
    or chunks do not fit the schedule.
    Invariant: the gradients are those of the whole model on the whole batch.
    """
    rank, n = _place(group)
    chunks = [stage] if isinstance(stage, nn.Module) else list(stage)
    saved, sent, trace, total, last = {}, [], [], 0.0, n * len(chunks) - 1
    if len(schedule) != n:
        raise ValueError(
            f"{len(schedule)} stages on {n} processes: make a schedule for {n}"
        )
    if _chunks(schedule) != len(chunks):
        raise ValueError(
            f"the schedule has {_chunks(schedule)} chunks, `stage` {len(chunks)}"
        )

    def tag(kind: str, piece: int, i: int) -> int:
        return 2 * (piece * len(inputs) + i) + (kind == "B")

    def receive(source: int, tag: int) -> Tensor:
        got = torch.empty_like(like)
        _irecv(got, source % n, group, tag).wait()
        return got

    for work in schedule[rank]:
        kind, i, chunk = (*work, 0)[:3]
        piece = chunk * n + rank  # of all n * chunks pieces of the model
        if kind == "F":
            first = piece == 0
            x = (
                inputs[i]
                if first
                else receive(rank - 1, tag("F", piece, i)).requires_grad_()
            )
            start = time.monotonic()
            y = chunks[chunk](x)
            if piece == last:
                y = loss_fn(y, targets[i]) / len(inputs)
                total += y.item()
            saved[piece, i] = x, y
        else:
            x, y = saved.pop((piece, i))
            grad = None if piece == last else receive(rank + 1, tag("B", piece, i))
            start = time.monotonic()
            y.backward(grad)
        trace.append(Event(rank, kind, i, start, time.monotonic(), chunk))
        if kind == "F" and piece < last:
            sent.append(_isend(y.detach(), (rank + 1) % n, group, tag("F", piece + 1, i)))
        if kind == "B" and piece > 0:
            sent.append(_isend(x.grad, (rank - 1) % n, group, tag("B", piece - 1, i)))
    for message in sent:
        message.wait()
    return total, trace


# --- context parallel: a sequence in pieces -------------------------------------------------------


def ring_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False, group: Group = None
) -> Tensor:
    """Return softmax(q k^T / sqrt(width)) v for this process's rows of one long sequence.

    All are (batch, heads, rows, width); the sequence is the rows of all processes, in the
    order of the ranks. Keys and values go once round the ring, and an online softmax
    takes them block by block. `causal`: a row sees itself and the rows before. Each
    process sends (n - 1) times its keys and values forward, 2 n - 1 times backward.
    Source: Liu et al. (2023), without the overlap of messages and computing. Scores and
    sums are float32 at least, under autocast too. Raises ValueError for shapes or dtypes
    that differ, whole numbers, no rows or no width, and for shapes that differ between
    processes. Invariants: output and gradients are those of the whole sequence on one
    process; no tensor on the way is larger than rows x rows scores of each head, or than
    one block of keys and values, however many processes there are.
    """
    shapes, dtypes = [tuple(t.shape) for t in (q, k, v)], {t.dtype for t in (q, k, v)}
    if q.ndim != 4 or len(set(shapes)) > 1 or 0 in q.shape[2:]:
        advice = "(batch, heads, rows, width), with a row and a column at least"
        raise ValueError(f"{shapes}: give q, k and v one shape, {advice}")
    if len(dtypes) > 1 or not q.is_floating_point():
        raise ValueError(
            f"{sorted(map(str, dtypes))}: give q, k and v one floating-point dtype"
        )
    _require_same(q.shape, "the shapes", q.device, group)
    with torch.autocast(q.device.type, enabled=False):
        return _RingAttention.apply(q, k, v, causal, group)


class _RingAttention(torch.autograd.Function):
    """Attention of this process's queries to the keys and values that come round the
    ring.
    """

    @staticmethod
    def forward(
        ctx, q: Tensor, k: Tensor, v: Tensor, causal: bool, group: Group
    ) -> Tensor:
        rank, n = _place(group)
        block = torch.stack([k, v])  # our own first, then that of rank - 1, rank - 2, ...
        top = torch.full_like(q[..., :1], -math.inf, dtype=_wide(q))
        total, out = torch.zeros_like(top), torch.zeros_like(q, dtype=_wide(q))
        for step in range(n):
            if step:
                block = _pass_on(block, group)
            if causal and step > rank:
                continue  # all its rows come after ours
            scores = _scores(q, block[0], causal and not step)
            higher = torch.maximum(top, scores.amax(-1, keepdim=True))
            weights, shrink = (scores - higher).exp(), (top - higher).exp()
            total = total * shrink + weights.sum(-1, keepdim=True)
            out = out * shrink + weights @ block[1].to(_wide(q))
            top = higher
        out = (out / total).to(q.dtype)
        ctx.save_for_backward(q, k, v, out, top + total.log())
        ctx.causal, ctx.group = causal, group
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, out, log_total = ctx.saved_tensors
        (rank, n), wide = _place(ctx.group), _wide(q)
        block, grad = torch.stack([k, v]), grad.to(wide)
        block_grad, q_grad = (
            torch.zeros_like(block, dtype=wide),
            torch.zeros_like(q, dtype=wide),
        )
        inner = (grad * out).sum(-1, keepdim=True)
        for step in range(n):
            if not ctx.causal or step <= rank:
                k, v = block.to(wide)
                weights = (_scores(q, k, ctx.causal and not step) - log_total).exp()
                slope = weights * (grad @ v.mT - inner) / math.sqrt(q.shape[-1])
                q_grad += slope @ k
                block_grad += torch.stack([slope.mT @ q.to(wide), weights.mT @ grad])
            if n > 1:
                # n steps: it ends where it began
                block_grad = _pass_on(block_grad, ctx.group)
            if step < n - 1:
                block = _pass_on(block, ctx.group)
        return q_grad.to(q.dtype), *block_grad.to(q.dtype), None, None


def _wide(tensor: Tensor) -> torch.dtype:
    """Return the dtype to add up in: the tensor's own, but at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _scores(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """Return q k^T / sqrt(width), with -inf where `causal` and the key's row comes after."""
    scores = q.to(_wide(q)) @ k.to(_wide(q)).mT / math.sqrt(q.shape[-1])
    if causal:
        after = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(after, -math.inf)
    return scores


def _require_same(
    numbers: Sequence[int], what: str, device: torch.device, group: Group
) -> None:
    """Raise ValueError, on every process, unless all have the same numbers.

    `device` is one on which the group can send: that of what it sends afterwards.
    """
    both = torch.tensor([*numbers, *(-number for number in numbers)], device=device)
    if dist.is_initialized():
        dist.all_reduce(both, dist.ReduceOp.MAX, group=group)
    most, least = both.chunk(2)
    if not torch.equal(most, -least):
        least, most = (-least).tolist(), most.tolist()
        raise ValueError(
            f"{what} differ between processes ({least} to {most}): make them equal"
        )


# --- expert parallel: a layer for each kind of token ----------------------------------------------


def all_to_all(parts: Tensor, group: Group = None) -> Tensor:
    """Send parts[j] to process j; return what each has sent here, (n, ...) to the same
    shape.

    Each process sends (n - 1) / n of `parts`. Raises ValueError for another first size
    than n.
    Invariant: twice is nothing done.
    """
    rank, n = _place(group)
    if not parts.ndim or len(parts) != n:
        raise ValueError(
            f"{tuple(parts.shape)}: give one part for each of the {n} processes"
        )
    parts = parts.detach().contiguous()
    got, messages = parts.clone(), []
    for peer in range(n):
        if peer != rank:
            messages += [_isend(parts[peer], peer, group), _irecv(got[peer], peer, group)]
    for message in messages:
        message.wait()
    return got


class _Exchange(torch.autograd.Function):
    """All-to-all; the gradients go back the way that the tokens came."""

    @staticmethod
    def forward(ctx, parts: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return all_to_all(parts, group)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return all_to_all(grad, ctx.group), None


class MixtureOfExperts(nn.Module):
    """A layer in which each token uses one of E experts, E / n of them on each process.

    Input (tokens, width), as many tokens on each process; output the same shape. `router`
    is an `nn.Linear(width, E)`, the same on all processes; `experts` are all E modules,
    width to width, of which this process keeps its own. A token's output is its likeliest
    expert's, times the router's probability. An expert takes ceil(capacity_factor *
    tokens / E) tokens from a process, in their order; it drops the others, whose output
    is 0 (`dropped` counts those of the last call). A factor of E drops none. Gradients of
    experts add up over the processes, those of the router are this process's part.
    Source: Fedus et al. (2021), without their balancing loss.
    Raises ValueError where E and the router or the processes do not fit, for a factor of
    0 or less, for other shapes, and for unequal tokens. Invariant: output and gradients
    are those of the same mixture on one process that gets each process's tokens in a call
    of their own.
    """

    def __init__(
        self, router: nn.Linear, experts: Sequence[nn.Module], capacity_factor: float = 1.25,
        group: Group = None,
    ) -> None:  # fmt: skip
        super().__init__()
        rank, n = _place(group)
        if len(experts) != router.out_features or len(experts) % n:
            raise ValueError(
                f"{len(experts)} experts, {router.out_features} outputs of the router, {n} "
                "processes: give an output for each expert, and a multiple of the processes"
            )
        if not capacity_factor > 0:
            raise ValueError(f"capacity_factor={capacity_factor}: give more than 0")
        self.capacity_factor, self.group, self.dropped = capacity_factor, group, 0
        own = len(experts) // n
        self.router = router
        self.experts = nn.ModuleList(list(experts)[rank * own : (rank + 1) * own])

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2:
            raise ValueError(
                f"{tuple(x.shape)}: give (tokens, width), with x.flatten(0, -2)"
            )
        _require_same([len(x)], "the numbers of tokens", x.device, self.group)
        (_, n), experts = _place(self.group), self.router.out_features
        capacity = math.ceil(self.capacity_factor * len(x) / experts)
        gate, choice = self.router(x).softmax(-1).max(-1)
        queue = F.one_hot(choice, experts).cumsum(0) - 1
        # how many came to its expert before it
        place = queue.gather(1, choice[:, None])[:, 0]
        kept = place < capacity
        self.dropped = len(x) - int(kept.sum())
        slot = choice[kept], place[kept]
        sent = x.new_zeros(experts, capacity, x.shape[-1]).index_put(slot, x[kept])
        came = _Exchange.apply(sent.unflatten(0, (n, -1)), self.group)
        # (n, capacity, width) for each
        pairs = zip(self.experts, came.unbind(1), strict=True)
        done = torch.stack([expert(tokens) for expert, tokens in pairs], 1)
        # (experts, capacity, width)
        back = _Exchange.apply(done, self.group).flatten(0, 1)
        scaled = (gate[kept, None] * back[slot]).to(x.dtype)
        return torch.zeros_like(x).masked_scatter(kept[:, None], scaled)


# --- asynchronous: nobody waits -------------------------------------------------------------------


def push_times(
    seconds: Sequence[float], pushes: int, jitter: float = 0.0, seed: int = 0
) -> list[tuple[float, int]]:
    """Return (time, worker) of the first `pushes` gradients to reach a server, in order.

    Worker k needs `seconds[k]` > 0 for a gradient, times a lognormal factor of spread
    `jitter`. Workers never wait. Raises ValueError for no worker, or a time of 0 or less.
    Invariant: in the long run each pushes in proportion to its speed.
    """
    if not seconds or min(seconds) <= 0:
        raise ValueError(f"seconds={list(seconds)}: give each worker a time above 0")
    draw = torch.Generator().manual_seed(seed)

    def takes(worker: int) -> float:
        return seconds[worker] * math.exp(jitter * torch.randn((), generator=draw).item())

    queue, order = [(takes(worker), worker) for worker in range(len(seconds))], []
    heapq.heapify(queue)
    while len(order) < pushes:
        now, worker = heapq.heappop(queue)
        order.append((now, worker))
        heapq.heappush(queue, (now + takes(worker), worker))
    return order


def staleness(order: Sequence[int]) -> list[int]:
    """Return for each push how many others came since that worker last read the weights.

    `order` holds the worker of each push. All read at the start. Invariant: with n
    workers in turn it is n - 1 from the second round on.
    """
    read: dict[int, int] = {}
    found = []
    for now, worker in enumerate(order):
        found.append(now - read.get(worker, 0))
        read[worker] = now + 1
    return found


def async_sgd(
    weights: Tensor, gradient: Callable[[Tensor, int], Tensor], order: Sequence[int], lr
) -> Tensor:
    """Return the weights after a server has applied the pushes of `order`, one after the
    other.

    `gradient(weights, k)` is the gradient of push k at the weights that its worker read
    after its own last push. Source: Dean et al. (2012). Invariant: one worker alone is
    plain SGD.
    """
    read = {worker: weights for worker in set(order)}
    for k, worker in enumerate(order):
        weights = weights - lr * gradient(read[worker], k)
        read[worker] = weights
    return weights


def parameter_server(
    weights: Tensor, gradient: Callable[[Tensor], Tensor], pushes: int, lr: float,
    group: Group = None,
) -> tuple[Tensor, list[int]]:  # fmt: skip
    """Run process 0 as server and the others as workers; the server returns (weights,
    order).

    A worker computes `gradient(weights)`, sends it, and gets the newest weights back,
    until the server has applied `pushes` >= 1 of them in the order of arrival. Workers
    return their last weights and []. Raises ValueError for fewer than two processes.
    """
    rank, n = _place(group)
    if n < 2 or pushes < 1:
        raise ValueError(
            f"{n} processes, {pushes} pushes: a server needs a worker and a push"
        )
    weights, order = weights.detach().clone(), []
    if rank:
        reply = torch.cat([weights, weights.new_zeros(1)])
        while not reply[-1]:  # the last entry says whether this was the end
            _isend(gradient(reply[:-1]), 0, group).wait()
            _irecv(reply, 0, group).wait()
        return reply[:-1], order
    grad, waiting = torch.empty_like(weights), n - 1
    while waiting:
        worker = dist.recv(grad, group=group)  # from whoever comes first
        over = len(order) >= pushes
        if not over:
            weights -= lr * grad
            order.append(worker)
        waiting -= over
        reply = torch.cat([weights, weights.new_full((1,), float(over))])
        _isend(
            reply, worker if group is None else dist.get_group_rank(group, worker), group
        ).wait()
    return weights, order


# --- what it would take on other machines ---------------------------------------------------------


@dataclass(frozen=True)
class GPT:
    """The sizes of a transformer language model; `sequence` and `vocabulary` in tokens."""

    layers: int
    hidden: int
    heads: int
    sequence: int = 2048
    vocabulary: int = 51200

    @property
    def parameters(self) -> float:
        """The number of parameters. Source: Narayanan et al. (2021), equation 2."""
        h = self.hidden
        return self.layers * (12 * h * h + 13 * h) + (self.vocabulary + self.sequence) * h

    def flops(self, batch: int) -> float:
        """Return the operations of an update on `batch` sequences, each layer's forward
        run twice.

        Source: Narayanan et al. (2021), equation 3.
        """
        s, h, ends = (
            self.sequence,
            self.hidden,
            self.vocabulary / (16 * self.layers * self.hidden),
        )
        return 96 * batch * s * self.layers * h * h * (1 + s / (6 * h) + ends)


@dataclass(frozen=True)
class Layout:
    """How `devices` share out a model: in `tensor` pieces of each layer times `pipeline`
    stages.

    The rest of the devices are data parallel, at ZeRO stage `zero`. `batch` is in
    sequences, over all devices. `chunks` > 1 interleaves the stages. Raises ValueError
    where the numbers do not divide each other.
    """

    devices: int
    batch: int
    tensor: int = 1
    pipeline: int = 1
    zero: int = 0
    micro_batch: int = 1
    chunks: int = 1

    def __post_init__(self) -> None:
        model = self.tensor * self.pipeline
        if self.devices % model or self.batch % (
            self.devices // model * self.micro_batch
        ):
            raise ValueError(
                f"{self}: devices must be a multiple of tensor x pipeline, and batch of the "
                "replicas x micro_batch"
            )
        if self.chunks > 1 and (self.pipeline == 1 or self.micro_batches % self.pipeline):
            raise ValueError(
                f"{self}: chunks > 1 needs several stages, and micro-batches that are a multiple "
                f"of them, not {self.micro_batches}"
            )

    @property
    def replicas(self) -> int:
        """The number of copies of the model."""
        return self.devices // (self.tensor * self.pipeline)

    @property
    def micro_batches(self) -> int:
        """The number of micro-batches that each copy works through in an update."""
        return self.batch // (self.replicas * self.micro_batch)


@dataclass(frozen=True)
class Machine:
    """A cluster: speeds a device in FLOP/s and bytes/s, as on the data sheet.

    `fast` joins the devices of one node, `slow` the nodes. `efficiency` is the share of
    `flops` that the kernels reach, `reached` the share of the links' speed. The defaults
    are an 80 GB A100, with the two shares read off one published run each.
    """

    flops: float = 312e12
    memory: float = 80e9
    fast: float = 300e9
    slow: float = 25e9
    node: int = 8
    efficiency: float = 0.5
    reached: float = 0.62


def state_bytes(parameters: float, devices: int, stage: int) -> float:
    """Return the bytes a device for parameters, gradients and Adam's state in mixed
    precision.

    Per parameter 2 (16-bit weight) + 2 (16-bit gradient) + 12 (32-bit weight, mean,
    variance); ZeRO divides the last by `devices` at stage 1, the second too at 2, all at
    3. Raises ValueError for another stage. Source: Rajbhandari et al. (2020). Invariant:
    stage 0 does not depend on `devices`.
    """
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"stage={stage!r}: choose 0, 1, 2 or 3")
    kept = [1 if stage < least else devices for least in (3, 2, 1)]
    return sum(
        bytes_ * parameters / share
        for bytes_, share in zip((2, 2, 12), kept, strict=True)
    )


def memory_per_device(model: GPT, layout: Layout) -> float:
    """Return the bytes a device: its state, the inputs of its layers, and one layer at
    work.

    Only each layer's input is kept, of every micro-batch in flight; the rest is computed
    again on the way back. Source: Korthikanti et al. (2022) for a layer's activations.
    """
    t, h, s = layout.tensor, model.hidden, model.sequence
    tokens = s * layout.micro_batch * h
    held = min(layout.pipeline, layout.micro_batches)  # micro-batches, on the first stage
    if layout.chunks > 1:
        held = min(held + (layout.pipeline - 1) / layout.chunks, layout.micro_batches)
    kept = 2 * tokens * model.layers / layout.pipeline * held
    working = tokens * (10 + 24 / t + 5 * model.heads * s / (h * t))
    own = model.parameters / (t * layout.pipeline)
    return state_bytes(own, layout.replicas, layout.zero) + kept + working


def step_time(
    model: GPT, layout: Layout, machine: Machine = Machine()
) -> dict[str, float]:  # noqa: B008
    """Return the seconds of one update: "compute", "tensor", "bubble", "data", and their
    "total".

    Tensor: six all-reduces of a layer's output a micro-batch, two of them for the second
    forward pass. Data: a ring all-reduce of 16-bit gradients after the last backward
    pass; at ZeRO stage 3, half as much again for each micro-batch, hidden behind the
    computing as far as that lasts. The messages between pipeline stages are left out, so
    that interleaving costs nothing here.
    """
    t, p, d, m = layout.tensor, layout.pipeline, layout.replicas, layout.micro_batches
    compute = (
        model.flops(layout.batch) / layout.devices / (machine.flops * machine.efficiency)
    )
    output = 2 * layout.micro_batch * model.sequence * model.hidden
    link = machine.reached * (machine.fast if t <= machine.node else machine.slow)
    tensor = 6 * model.layers / p * m * output * 2 * (t - 1) / t / link
    link = machine.reached * (
        machine.fast if layout.devices <= machine.node else machine.slow
    )
    data = 2 * (d - 1) / d * 2 * model.parameters / (t * p) / link
    if layout.zero == 3:
        data = max(0.0, 1.5 * m * data - compute)
    bubble = (p - 1) / (layout.chunks * m) * (compute + tensor)
    parts = {"compute": compute, "tensor": tensor, "bubble": bubble, "data": data}
    return parts | {"total": sum(parts.values())}
