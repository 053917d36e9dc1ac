"""Exercises of chapter 12, parallelism: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import contextlib
import copy
import math
import threading
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.lab.exercises import Exercise, Wrong, expect
from dlcourse.parallelism import (
    bubble_fraction,
    idle_fraction,
    most_in_flight,
    simulate_pipeline,
    state_bytes,
)

PATIENCE = 5.0  # seconds until a process that waits for the others waits for ever


def _number(value: object) -> float | None:
    """Return a number of Python, NumPy or torch (one element); None for anything else."""
    if isinstance(value, (str, bytes)):
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return None


class _Threads:
    """Run a function as n processes would, with an all-reduce that counts its calls."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.calls = [0] * n
        self.slots: dict[int, Tensor] = {}  # what each process has put in, by rank
        self.errors: list[Exception] = []
        self.barrier = threading.Barrier(n, timeout=PATIENCE)

    def all_reduce(self, rank: int) -> Callable[[Tensor], Tensor]:
        def reduce(tensor: Tensor) -> Tensor:
            self.calls[rank] += 1
            self.slots[rank] = torch.as_tensor(tensor).detach().clone()
            self.barrier.wait()
            parts = [self.slots[one] for one in range(self.n)]
            shapes = [tuple(part.shape) for part in parts]
            expect(
                len(set(shapes)) == 1,
                f"In one all_reduce the processes give tensors of the shapes {shapes}. All must "
                "give the same shape.",
            )
            total = torch.stack(parts).sum(0)
            self.barrier.wait()
            return total

        return reduce

    def run(self, fn: Callable[[int], object]) -> list:
        results: list = [None] * self.n

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


def _problem(seed: int, rows: int, classes: int) -> tuple:
    """Return (model, loss, inputs, targets); classes 0 is a regression."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 5, generator=draw, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        outputs = classes or 2
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, outputs)).double()
    if classes:
        return model, F.cross_entropy, inputs, torch.arange(rows) % classes
    targets = torch.randn(rows, 2, generator=draw, dtype=torch.float64)
    return model, F.mse_loss, inputs, targets


def _gradient(model: nn.Module, loss_fn: Callable, inputs, targets) -> Tensor:
    model.zero_grad()
    loss_fn(model(inputs), targets).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _check_gradients(answer: Callable) -> None:
    cases = (((4, 4), 0), ((2, 2, 2), 3), ((3, 1), 0), ((2, 5, 1), 3), ((1, 2, 3, 6), 0))
    for seed, (rows, classes) in enumerate(cases):
        model, loss_fn, x, y = _problem(seed, sum(rows), classes)
        want = _gradient(model, loss_fn, x, y)
        parts = list(zip(x.split(rows), y.split(rows), strict=True))
        alone = [_gradient(model, loss_fn, *part) for part in parts]
        model.zero_grad()
        copies, n = [copy.deepcopy(model) for _ in rows], len(rows)
        together = _Threads(n)

        def on(
            rank: int, copies=copies, loss_fn=loss_fn, parts=parts, together=together, n=n
        ) -> None:
            inputs, targets = (part.clone() for part in parts[rank])
            reduce = together.all_reduce(rank)
            answer(copies[rank], loss_fn, inputs, targets, reduce, n)

        together.run(on)
        _judge_gradients(model, copies, want, alone, rows, max(together.calls))


def _judge_gradients(
    model: nn.Module,
    copies: Sequence[nn.Module],
    want: Tensor,
    alone: Sequence[Tensor],
    rows: tuple[int, ...],
    calls: int,
) -> None:
    """Say what is wrong with the gradients that the processes' copies of `model` hold."""
    n = len(rows)
    expect(
        all(torch.equal(_weights(one), _weights(model)) for one in copies),
        "Your function changes the weights. Leave the update to the optimizer, and average the "
        "gradients: averaged weights are equal only for plain SGD.",
    )
    expect(
        all(p.grad is not None for one in copies for p in one.parameters()),
        "A parameter has no .grad at the end: call backward(), and put the result in .grad.",
    )
    found = [
        torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None])
        for one in copies
    ]
    near = lambda a, b: torch.allclose(a, b, rtol=1e-5, atol=1e-9)  # noqa: E731
    own = all(near(a, b) for a, b in zip(found, alone, strict=True))
    expect(
        not own or calls > 0,
        "There is no all_reduce: each process keeps the gradient of its own rows, and the copies "
        "drift apart.",
    )
    expect(
        not own,
        "You drop what all_reduce returns: each process ends with the gradient of its own rows. "
        "all_reduce leaves its argument as it was; use the sum that it gives back.",
    )
    expect(
        all(near(one, found[0]) for one in found),
        f"With {rows} rows the processes end with different gradients. Each .grad, those of the "
        "biases too, must be made of what all_reduce returns, and after the all_reduce all must "
        "do the same to the same numbers.",
    )
    length = float(found[0] @ want / (want @ want))
    why = "all_reduce gives a sum, and a mean is wanted."
    if length < 1:
        why = "You divide too often, or by too much: what does the sum hold, and what is the mean?"
    expect(
        near(found[0], want) or not near(found[0], length * want),
        f"With {rows} rows on the {n} processes the gradient has the right direction and is "
        f"{length:.3g} times as long as it should be. {why}",
    )
    mean = torch.stack(list(alone)).mean(0)
    expect(
        near(found[0], want) or not near(found[0], mean),
        f"With {rows} rows each process counts alike, so a row counts more where there are few. "
        "Count by rows.",
    )
    expect(
        near(found[0], want),
        f"With {rows} rows the gradient is not that of the mean over all {sum(rows)} rows. How "
        "much should a process with few rows count?",
    )


def _solve_gradients(model, loss_fn, inputs, targets, all_reduce, n):
    loss_fn(model(inputs), targets).backward()  # the mean over this process's rows
    total = all_reduce(torch.tensor(float(len(inputs))))  # the rows of all
    for parameter in model.parameters():
        parameter.grad = all_reduce(parameter.grad * len(inputs)) / total


def _gradients_alone(model, loss_fn, inputs, targets, all_reduce, n):
    loss_fn(model(inputs), targets).backward()


def _gradients_summed(model, loss_fn, inputs, targets, all_reduce, n):
    loss_fn(model(inputs), targets).backward()
    for parameter in model.parameters():
        parameter.grad = all_reduce(parameter.grad)


def _gradients_mean_of_means(model, loss_fn, inputs, targets, all_reduce, n):
    loss_fn(model(inputs), targets).backward()
    for parameter in model.parameters():
        parameter.grad = all_reduce(parameter.grad) / n


def _gradients_dropped(model, loss_fn, inputs, targets, all_reduce, n):
    loss_fn(model(inputs), targets).backward()
    for parameter in model.parameters():
        all_reduce(parameter.grad)
        parameter.grad /= 1


def _gradients_weights(model, loss_fn, inputs, targets, all_reduce, n):
    loss_fn(model(inputs), targets).backward()
    for parameter in model.parameters():
        parameter.data -= 0.1 * parameter.grad
        parameter.data = all_reduce(parameter.data) / n


def _gradients_of_the_loss(model, loss_fn, inputs, targets, all_reduce, n):
    (all_reduce(loss_fn(model(inputs), targets)) / n).backward()


def _check_mlp(answer: Callable) -> None:
    draw = torch.Generator().manual_seed(0)
    for n, outputs in ((2, 3), (3, 3), (4, 2)):
        sizes = (5, 4), (12, 4), (12,), (outputs, 12), (outputs,)
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
            all(torch.allclose(y, found[0]) for y in found),
            "The processes return different outputs. Each must end with that of the whole network: "
            "after the all_reduce, all do the same.",
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
        got: list[float] = []
        for stage in range(4):
            value = _number(answer(parameters, n, stage))
            expect(value is not None, "Return a number of bytes.")
            assert value is not None  # for the type checker
            got.append(value)
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


def _work(one: Sequence) -> tuple[str, int]:
    """Return one piece of work as ("F" or "B", micro-batch)."""
    number = _number(one[1]) if len(one) == 2 else None
    expect(
        number is not None and number.is_integer(),
        f"Each piece of work is a pair, ('F', i) or ('B', i) with a whole number i, not {one!r}.",
    )
    return one[0], int(number or 0)


def _check_order(answer: Callable) -> None:
    for p, m in ((2, 4), (4, 8), (3, 7), (4, 2), (1, 3)):
        orders = [[_work(one) for one in answer(stage, p, m)] for stage in range(p)]
        for stage, order in enumerate(orders):
            expect(
                sorted(order) == sorted((kind, i) for kind in "FB" for i in range(m)),
                f"Stage {stage} of {p}, {m} micro-batches: each ('F', i) and ('B', i) must occur "
                "exactly once.",
            )
        for stage, order in enumerate(orders):
            for i in range(m):
                expect(
                    order.index(("F", i)) < order.index(("B", i)),
                    f"Stage {stage} of {p}: ('B', {i}) stands before ('F', {i}).",
                )
        for stage, order in enumerate(orders):
            held = most_in_flight(order)
            expect(
                held <= max(1, p - stage),
                f"Stage {stage} of {p} holds {held} micro-batches at once, and {p - stage} would "
                "do. Does it do more forwards before a backward than the stages after it need?",
            )
        trace = None
        with contextlib.suppress(ValueError):
            trace = simulate_pipeline(orders)
        expect(
            trace is not None,
            f"{p} stages, {m} micro-batches: the stages wait for each other for ever. A stage can "
            "do B of a micro-batch after its own F, and after the next stage has done B, for which "
            "that stage needs its F first.",
        )
        idle = idle_fraction(trace or [])
        expect(
            idle < bubble_fraction(p, m) + 1e-9,
            f"{p} stages, {m} micro-batches: {idle:.2f} of the time is idle, and "
            f"{bubble_fraction(p, m):.2f} would do. The early stages need some forwards ahead, so "
            "that the later ones have work, and the backwards the order of the forwards.",
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
        "Write your_gradients(model, loss_fn, inputs, targets, all_reduce, n): the part of one of n "
        "processes in a data-parallel update, up to the optimizer's step. `inputs` and `targets` "
        "are its own rows; the processes may have different numbers of them, each at least one. "
        "loss_fn(outputs, targets) is the mean over the rows it is given. all_reduce(tensor) "
        "returns the sum of the tensors that the processes give, and leaves its argument as it "
        "was; all must call it equally often. At the end each parameter's .grad must be, on every "
        "process, the gradient of the mean over all rows of all processes. Change no weight.",
        _check_gradients,
        _solve_gradients,
        {
            "no all-reduce": Wrong(_gradients_alone, "There is no all_reduce"),
            "the sum": Wrong(_gradients_summed, "2 times as long"),
            "the mean of the means": Wrong(_gradients_mean_of_means, "Count by rows"),
            "drops the sum": Wrong(_gradients_dropped, "drop what all_reduce returns"),
            "averages weights": Wrong(_gradients_weights, "changes the weights"),
            "reduces the loss": Wrong(_gradients_of_the_loss, "does not require grad"),
        },
    ),
    Exercise(
        "Write your_memory(parameters, devices, stage): the bytes that one of `devices` keeps for "
        "weights and gradients in 16 bits, and for Adam's state in mixed precision (the 32-bit copy "
        "of the weights counts as state), under ZeRO stage 0 (plain data parallel), 1, 2 or 3. "
        "Activations do not count.",
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
        "Write your_order(stage, stages, micro_batches): the work of one stage of a pipeline under "
        "1F1B, as a list of ('F', i) and ('B', i), the forward and backward of micro-batch i = 0, "
        "1, ... Each occurs once. With a forward of one second and a backward of two, the stages "
        "together must not be idle for longer than (p - 1)/(m + p - 1) of the time, and stage s, "
        "counted from 0, may hold at most p - s micro-batches at once.",
        _check_order,
        _solve_order,
        {
            "all forwards first": Wrong(_order_gpipe, "more forwards before a backward"),
            "no forwards ahead": Wrong(_order_without_warmup, "forwards ahead"),
            "the same for all stages": Wrong(
                _order_same_for_all, "more forwards before a backward"
            ),
        },
    ),
)
