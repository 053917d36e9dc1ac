"""Exercises of chapter 12, parallelism: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import math
import numbers
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from dlcourse.lab.exercises import Exercise, Wrong, expect
from dlcourse.parallelism import (
    bubble_fraction,
    idle_fraction,
    most_in_flight,
    simulate_pipeline,
    state_bytes,
)


class _Threads:
    """Run a function as n processes would, with an all-reduce that counts its calls."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.calls = [0] * n
        self.slots: dict[int, Tensor] = {}  # what each process has put in, by rank
        self.errors: list[Exception] = []
        self.barrier = threading.Barrier(n, timeout=5.0)

    def all_reduce(self, rank: int) -> Callable[[Tensor], Tensor]:
        def reduce(tensor: Tensor) -> Tensor:
            self.calls[rank] += 1
            self.slots[rank] = tensor.clone()
            self.barrier.wait()
            total = torch.stack([self.slots[one] for one in range(self.n)]).sum(0)
            self.barrier.wait()
            return total

        return reduce

    def run(self, fn: Callable[[int], Tensor]) -> list:
        results: list[Tensor | None] = [None] * self.n

        def work(rank: int) -> None:
            try:
                results[rank] = fn(rank)
            except Exception as error:
                self.errors.append(error)
            if self.errors or not self.calls[rank]:
                self.barrier.abort()  # the others need not wait

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        own = [e for e in self.errors if not isinstance(e, threading.BrokenBarrierError)]
        if own:
            raise own[0]
        expect(
            not self.errors and len(set(self.calls)) == 1,
            "The processes did not all call all_reduce equally often. In a real run the others "
            "would wait for ever.",
        )
        return results


def _check_mlp(answer: Callable) -> None:
    draw = torch.Generator().manual_seed(0)
    for n in (2, 3):
        sizes = (5, 4), (12, 4), (12,), (3, 12), (3,)
        x, up, up_bias, down, bias = (
            torch.randn(size, generator=draw, dtype=torch.float64) for size in sizes
        )
        want = (x @ up.T + up_bias).relu() @ down.T + bias
        parts = list(zip(up.chunk(n), up_bias.chunk(n), down.chunk(n, 1), strict=True))
        together = _Threads(n)

        def on(rank: int, n=n, x=x, parts=parts, bias=bias, together=together) -> Tensor:
            return answer(
                x.clone(), *parts[rank], bias.clone(), rank, together.all_reduce(rank)
            )

        found = together.run(on)
        calls = max(together.calls)
        expect(
            all(isinstance(y, Tensor) for y in found),
            "Return the output of the two layers.",
        )
        right = all(y.shape == want.shape and torch.allclose(y, want) for y in found)
        expect(
            calls > 0,
            "There is no all_reduce: each process has the sum over its own hidden units only.",
        )
        expect(
            calls == 1,
            f"You call all_reduce {calls} times. The activation works unit by unit, so the hidden "
            "units can stay where they are: one, after the second layer, is enough.",
        )
        shapes = [tuple(y.shape) for y in found]
        wanted = tuple(want.shape)
        expect(
            shapes == [wanted] * n,
            f"The shapes are {shapes}, not {wanted} on each process.",
        )
        alone = [(x @ u.T + b).relu() @ d.T + bias for u, b, d in parts]
        expect(
            not all(torch.allclose(y, one) for y, one in zip(found, alone, strict=True)),
            "You drop what all_reduce returns. It leaves its argument as it was: use the sum that "
            "it gives back.",
        )
        expect(
            not all(torch.allclose(y, want + (n - 1) * bias) for y in found),
            f"The output contains the second bias {n} times: every process added it before the "
            "sum. Add it once, after the all_reduce.",
        )
        expect(
            not all(torch.allclose(y, want - bias) for y in found),
            "The second bias is missing: add it once, after the all_reduce.",
        )
        expect(
            right,
            "The output is not that of the whole network: apply the first weight and bias, relu, "
            "the second weight, then sum.",
        )


def _solve_mlp(x, up, up_bias, down, bias, rank, all_reduce):
    hidden = (x @ up.T + up_bias).relu()  # our hidden units
    return all_reduce(hidden @ down.T) + bias


def _mlp_bias_per_rank(x, up, up_bias, down, bias, rank, all_reduce):
    return all_reduce((x @ up.T + up_bias).relu() @ down.T + bias)


def _mlp_without_reduce(x, up, up_bias, down, bias, rank, all_reduce):
    return (x @ up.T + up_bias).relu() @ down.T + bias


def _mlp_reduce_twice(x, up, up_bias, down, bias, rank, all_reduce):
    return all_reduce(all_reduce(x @ up.T + up_bias).relu() @ down.T) + bias


def _mlp_one_rank_reduces(x, up, up_bias, down, bias, rank, all_reduce):
    y = (x @ up.T + up_bias).relu() @ down.T
    return (all_reduce(y) if rank == 0 else y) + bias


def _mlp_without_bias(x, up, up_bias, down, bias, rank, all_reduce):
    return all_reduce((x @ up.T + up_bias).relu() @ down.T)


def _mlp_drops_the_sum(x, up, up_bias, down, bias, rank, all_reduce):
    y = (x @ up.T + up_bias).relu() @ down.T
    all_reduce(y)
    return y + bias


def _mlp_reduce_before_relu(x, up, up_bias, down, bias, rank, all_reduce):
    return all_reduce((x @ up.T + up_bias) @ down.T).relu() + bias


def _check_memory(answer: Callable) -> None:
    near = lambda a, b: math.isclose(a, b, rel_tol=1e-4)  # noqa: E731
    for parameters, n in ((7_500_000_000, 64), (3_000_000, 5), (1_300_000_000, 8)):
        got = [answer(parameters, n, stage) for stage in range(4)]
        expect(all(isinstance(b, numbers.Real) for b in got), "Return a number of bytes.")
        want = [state_bytes(parameters, n, stage) for stage in range(4)]
        expect(
            not near(got[0], want[0] / n),
            "At stage 0 you divide by the devices. Plain data parallelism splits the data, not the "
            "model: each device keeps all of it.",
        )
        expect(
            not near(got[0], 12 * parameters) and not near(got[0], 4 * parameters),
            "Adam in mixed precision keeps three 32-bit numbers a parameter: the mean, the "
            "variance, and a 32-bit copy of the weight. That is 12 bytes beside the 2 + 2.",
        )
        expect(
            near(got[0], want[0]),
            f"At stage 0 a parameter takes 2 + 2 + 12 = 16 bytes, not {got[0] / parameters:g}.",
        )
        expect(
            not near(got[1], want[2]) and not near(got[1], want[3]),
            "Stage 1 shares out only the optimizer's state. Gradients follow at stage 2, "
            "parameters at stage 3.",
        )
        for stage in (1, 2, 3):
            expect(
                near(got[stage], want[stage]),
                f"Stage {stage} with {n} devices: {got[stage] / parameters:.4g} bytes a parameter, "
                f"wanted {want[stage] / parameters:.4g}. What is divided, and what is kept whole?",
            )


def _solve_memory(parameters, devices, stage):
    optimizer = 12 / devices if stage >= 1 else 12
    gradient = 2 / devices if stage >= 2 else 2
    weight = 2 / devices if stage >= 3 else 2
    return parameters * (weight + gradient + optimizer)


def _memory_data_parallel_splits(parameters, devices, stage):
    return 16 * parameters / devices


def _memory_without_master(parameters, devices, stage):
    optimizer = 8 / devices if stage >= 1 else 8
    gradient = 2 / devices if stage >= 2 else 2
    return parameters * ((2 / devices if stage >= 3 else 2) + gradient + optimizer)


def _memory_stage_one_is_all(parameters, devices, stage):
    return 16 * parameters / (devices if stage else 1)


def _memory_parameters_first(parameters, devices, stage):
    weight = 2 / devices if stage >= 1 else 2
    gradient = 2 / devices if stage >= 2 else 2
    return parameters * (weight + gradient + (12 / devices if stage >= 3 else 12))


def _check_ring(answer: Callable) -> None:
    for n in (3, 2, 4, 6):
        held = [[{(rank, c)} for c in range(n)] for rank in range(n)]
        full = [{(rank, c) for rank in range(n)} for c in range(n)]
        for step in range(2 * n - 2):
            sends = [answer(rank, step, n) for rank in range(n)]
            expect(
                all(isinstance(c, numbers.Integral) and 0 <= int(c) < n for c in sends),
                f"Return a whole number from 0 to n - 1; step {step} of n={n} gave {sends}.",
            )
            moving = [set(held[rank][c]) for rank, c in enumerate(sends)]
            for rank, c in enumerate(sends):
                to = held[(rank + 1) % n]
                double = to[c] & moving[rank]
                expect(
                    step >= n - 1 or not double,
                    f"n={n}, step {step}: process {rank} sends chunk {c}, of which process "
                    f"{(rank + 1) % n} already holds a part, and that part would count twice. Send "
                    "on the chunk that has just come in.",
                )
                to[c] = to[c] | moving[rank] if step < n - 1 else moving[rank]
            if step == n - 2:
                done = sum(
                    held[rank][c] == full[c] for rank in range(n) for c in range(n)
                )
                expect(
                    done >= n,
                    f"n={n}: after {n - 1} steps only {done} chunks are complete. Send on the "
                    "chunk that has just come in, with your own part added.",
                )
        wrong = sum(held[rank][c] != full[c] for rank in range(n) for c in range(n))
        expect(
            not wrong,
            f"n={n}: at the end {wrong} chunks are not the full sum. In the second half the "
            "complete chunks go round: start with the one that you completed.",
        )


def _solve_ring(rank, step, n):
    return (rank - step) % n


def _ring_own_chunk(rank, step, n):
    return rank


def _ring_wrong_way(rank, step, n):
    return (rank + step) % n


def _ring_starts_again(rank, step, n):
    return (rank - step % (n - 1)) % n


def _check_order(answer: Callable) -> None:
    for p, m in ((2, 4), (4, 8), (3, 7), (4, 2), (1, 3)):
        orders = [[tuple(work) for work in answer(stage, p, m)] for stage in range(p)]
        for stage, order in enumerate(orders):
            expect(
                sorted(order) == sorted((kind, i) for kind in "FB" for i in range(m)),
                f"Stage {stage} of {p}, {m} micro-batches: each ('F', i) and ('B', i) must occur "
                "exactly once.",
            )
        try:
            trace = simulate_pipeline(orders)
        except ValueError as error:
            expect(False, f"{p} stages, {m} micro-batches: {error}. Is a B before its F?")
        idle = idle_fraction(trace)
        expect(
            idle < bubble_fraction(p, m) + 1e-9,
            f"{p} stages, {m} micro-batches: {idle:.2f} of the time is idle, and "
            f"{bubble_fraction(p, m):.2f} would do. The early stages need some forwards ahead, so "
            "that the later ones have work.",
        )
        for stage, order in enumerate(orders):
            held = most_in_flight(order)
            expect(
                held <= max(1, p - stage),
                f"Stage {stage} of {p} holds {held} micro-batches, and {p - stage} would do: after "
                "its first backward, let one forward and one backward alternate.",
            )


def _solve_order(stage, stages, micro_batches):
    ahead = min(stages - stage - 1, micro_batches)
    order = [("F", i) for i in range(ahead)]
    for i in range(micro_batches):
        if ahead + i < micro_batches:
            order.append(("F", ahead + i))
        order.append(("B", i))
    return order


def _order_gpipe(stage, stages, micro_batches):
    return [("F", i) for i in range(micro_batches)] + [
        ("B", i) for i in range(micro_batches)
    ]


def _order_without_warmup(stage, stages, micro_batches):
    return [(kind, i) for i in range(micro_batches) for kind in "FB"]


def _order_same_for_all(stage, stages, micro_batches):
    return _solve_order(0, stages, micro_batches)


EXERCISES = (
    Exercise(
        "Write your_mlp(x, up, up_bias, down, bias, rank, all_reduce): relu(x up^T + up_bias) "
        "down^T + bias, with this process's rows of `up` and `up_bias`, its columns of `down`, and "
        "the whole second `bias`. all_reduce(tensor) returns the sum over the processes.",
        _check_mlp,
        _solve_mlp,
        {
            "bias per rank": Wrong(_mlp_bias_per_rank, "every process added it"),
            "no all-reduce": Wrong(_mlp_without_reduce, "no all_reduce"),
            "all-reduce after each layer": Wrong(_mlp_reduce_twice, "is enough"),
            "only rank 0 reduces": Wrong(_mlp_one_rank_reduces, "wait for ever"),
            "no second bias": Wrong(_mlp_without_bias, "second bias is missing"),
            "drops the sum": Wrong(_mlp_drops_the_sum, "drop what all_reduce returns"),
            "relu after the sum": Wrong(
                _mlp_reduce_before_relu, "not that of the whole network"
            ),
        },
    ),
    Exercise(
        "Write your_memory(parameters, devices, stage): the bytes that a device keeps for weights, "
        "gradients and Adam's state in mixed precision, under ZeRO stage 0 (plain data parallel), "
        "1, 2 or 3.",
        _check_memory,
        _solve_memory,
        {
            "data parallelism splits the model": Wrong(
                _memory_data_parallel_splits, "splits the data, not the model"
            ),
            "no 32-bit weights": Wrong(_memory_without_master, "32-bit copy"),
            "stage 1 shares everything": Wrong(
                _memory_stage_one_is_all, "only the optimizer"
            ),
            "parameters first": Wrong(_memory_parameters_first, "What is divided"),
        },
    ),
    Exercise(
        "Write your_chunk(rank, step, n): the chunk, 0 to n - 1, that a process sends to process "
        "rank + 1 at a step of a ring all-reduce. In steps 0 to n - 2 the receiver adds it, in "
        "steps n - 1 to 2 n - 3 it replaces its own.",
        _check_ring,
        _solve_ring,
        {
            "always its own chunk": Wrong(_ring_own_chunk, "chunk that has just come in"),
            "the wrong way round": Wrong(_ring_wrong_way, "chunk that has just come in"),
            "second half starts again": Wrong(
                _ring_starts_again, "the one that you completed"
            ),
        },
    ),
    Exercise(
        "Write your_order(stage, stages, micro_batches): the list of ('F', i) and ('B', i) of a "
        "stage under 1F1B.",
        _check_order,
        _solve_order,
        {
            "all forwards first": Wrong(
                _order_gpipe, "would do: after its first backward"
            ),
            "no forwards ahead": Wrong(_order_without_warmup, "forwards ahead"),
            "the same for all stages": Wrong(_order_same_for_all, "forwards ahead"),
        },
    ),
)
