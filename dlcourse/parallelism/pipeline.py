"""Pipeline: the layers one after the other, on several processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dlcourse.parallelism.collectives import Group, _irecv, _isend, _place


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
    return 1 + max((_parts(work)[2] for order in schedule for work in order), default=0)


def _parts(work: tuple) -> tuple[str, int, int]:
    """Return (kind, micro-batch, chunk) of a piece of work."""
    kind, i, *chunk = work
    return kind, i, chunk[0] if chunk else 0


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
    queues = [list(order) for order in schedule]
    trace: list[Event] = []
    done: dict[tuple[int, str, int], float] = {}  # when a piece of work has ended
    clock: list[float] = [0] * stages
    while any(queues):
        before = len(trace)
        for stage, queue in enumerate(queues):
            while queue:
                kind, i, chunk = _parts(queue[0])
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
    not block, so that no two stages wait for each other; that, and the tags by which
    messages are told apart, are gloo's (NCCL has neither). Raises ValueError where stages
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
        kind, i, chunk = _parts(work)
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
            assert x.grad is not None, "the stage's output does not depend on its input"
            sent.append(_isend(x.grad, (rank - 1) % n, group, tag("B", piece - 1, i)))
    for message in sent:
        message.wait()
    return total, trace
