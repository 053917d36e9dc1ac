"""Answers to the exercises of chapter 13, from the words of the questions alone."""

import functools
import itertools
import math
from collections import namedtuple
from fractions import Fraction

import numpy as np
import torch

# --- Exercise 0: rate(t, peak, steps) -----------------------------------------------


def rate_minimum(t, peak, steps):
    if steps == 0:
        return peak
    return min(peak, peak * (t + 1) / steps)


def rate_numpy_clip(t, peak, steps):
    # max(steps, 1) covers steps = 0, as (t + 1) / 1 is at least 1
    return peak * np.clip((t + 1) / max(steps, 1), 0.0, 1.0)


def rate_interp(t, peak, steps):
    return np.interp(t + 1, [0, max(steps, 1)], [0.0, peak])


def rate_zero_dim_tensor(t, peak, steps):
    if steps == 0:
        return torch.tensor(peak, dtype=torch.float64)
    share = torch.tensor((t + 1) / steps, dtype=torch.float64)
    return peak * torch.clamp(share, max=1.0)


def rate_recursion(t, peak, steps):
    if t >= steps - 1:
        return peak
    if t == 0:
        return peak / steps
    return rate_recursion(t - 1, peak, steps) + peak / steps


def rate_loop(t, peak, steps):
    current = 0.0
    for _ in range(min(t + 1, steps)):
        current += peak / steps
    return current if steps else peak


def rate_table(t, peak, steps):
    table = [peak * k / steps for k in range(1, steps + 1)] + [peak]
    return table[min(t, steps)]


def rate_fraction(t, peak, steps):
    share = Fraction(t + 1, steps) if t < steps else Fraction(1)
    return float(share) * peak


rate_lambda = lambda t, peak, steps: peak if t >= steps else peak / steps * (t + 1)  # noqa: E731


class RateObject:
    def __call__(self, t, peak, steps):
        missing = max(steps - 1 - t, 0)
        return peak - missing * (peak / steps if steps else 0.0)


def rate_linear_lr(t, peak, steps):
    # PyTorch's own scheduler: it reaches the end after steps - 1 of its steps
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    if steps > 1:
        scheduler = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1 / steps, total_iters=steps - 1
        )
        for _ in range(min(t, steps)):
            optimizer.step()
            scheduler.step()
    return optimizer.param_groups[0]["lr"]


def rate_starts_at_zero(t, peak, steps):
    if steps == 0:
        return peak
    return peak * min(1.0, t / steps)


def rate_one_step_too_many(t, peak, steps):
    return peak * min(1.0, (t + 1) / (steps + 1))


def rate_divides_by_zero(t, peak, steps):
    return peak * min(1.0, (t + 1) / steps)


def rate_zero_without_warmup(t, peak, steps):
    if steps == 0:
        return 0.0
    return peak * min(1.0, (t + 1) / steps)


def rate_never_stops(t, peak, steps):
    if steps == 0:
        return peak
    return peak * (t + 1) / steps


def rate_factor_only(t, peak, steps):
    if t >= steps:
        return 1.0
    return (t + 1) / steps


def rate_quadratic(t, peak, steps):
    if t >= steps:
        return peak
    return peak * ((t + 1) / steps) ** 2


def rate_whole_division(t, peak, steps):
    if t >= steps:
        return peak
    return peak * ((t + 1) // steps)


def rate_peak_one_early(t, peak, steps):
    if t >= steps - 2:
        return peak
    return peak * (t + 1) / steps


def rate_falls_after(t, peak, steps):
    if t < steps:
        return peak * (t + 1) / steps
    return peak * math.sqrt(max(steps, 1) / (t + 1))


def rate_default_peak(t, peak, steps):
    if t >= steps:
        return 0.1
    return 0.1 * (t + 1) / steps


def rate_linear_from_tenth(t, peak, steps):
    if t >= steps:
        return peak
    return peak * (0.1 + 0.9 * (t + 1) / steps)


def rate_exponential(t, peak, steps):
    if steps == 0:
        return peak
    return peak * (1 - math.exp(-(t + 1) / steps))


def rate_linspace_from_zero(t, peak, steps):
    values = np.linspace(0.0, peak, max(steps, 1))
    return float(values[t]) if t < steps else peak


def rate_starts_again(t, peak, steps):
    if steps == 0:
        return peak
    return peak * (t % steps + 1) / steps


def rate_linear_lr_one_late(t, peak, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    if steps > 1:
        scheduler = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1 / steps, total_iters=steps
        )
        for _ in range(t):
            optimizer.step()
            scheduler.step()
    return optimizer.param_groups[0]["lr"]


def rate_half_steps(t, peak, steps):
    if t >= steps:
        return peak
    return peak * (t + 0.5) / steps


# --- Exercise 1: run(make_optimizer, backward, warmup, total) ------------------------


def run_base_rates(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    base = [group["lr"] for group in optimizer.param_groups]
    for t in range(total):
        factor = min(1.0, (t + 1) / warmup) if warmup else 1.0
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * factor
        backward(t)
        optimizer.step()


def run_lambda_lr(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(1.0, (t + 1) / max(warmup, 1))
    )
    for t in range(total):
        backward(t)
        optimizer.step()
        scheduler.step()
    return optimizer


def run_linear_lr(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    scheduler = None
    if warmup > 1:
        scheduler = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1 / warmup, total_iters=warmup - 1
        )
    for t in range(total):
        backward(t)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def run_two_loops(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    groups = optimizer.param_groups
    base = {id(group): group["lr"] for group in groups}
    for t in range(min(warmup, total)):
        backward(t)
        for group in groups:
            group["lr"] = base[id(group)] / warmup * (t + 1)
        optimizer.step()
    for group in groups:
        group["lr"] = base[id(group)]
    for t in range(warmup, total):
        backward(t)
        optimizer.step()


def run_closure(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    base = tuple(group["lr"] for group in optimizer.param_groups)
    for t in range(total):
        for k in range(len(base)):
            if t < warmup:
                optimizer.param_groups[k]["lr"] = base[k] * ((t + 1) / warmup)
            else:
                optimizer.param_groups[k]["lr"] = base[k]
        optimizer.step(functools.partial(backward, t))


def run_numpy_table(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    base = np.array([group["lr"] for group in optimizer.param_groups])
    shares = np.minimum(1.0, np.arange(1, total + 1) / max(warmup, 1))
    table = np.outer(shares, base)
    for t, row in enumerate(table):
        backward(t)
        for group, rate in zip(optimizer.param_groups, row.tolist(), strict=True):
            group["lr"] = rate
        optimizer.step()


def run_restores_each_time(make_optimizer, backward, warmup, total):
    # the base rate stands in the group between the updates
    optimizer = make_optimizer()
    for t in range(total):
        backward(t)
        kept = [group["lr"] for group in optimizer.param_groups]
        if t + 1 < warmup:
            for group in optimizer.param_groups:
                group["lr"] *= (t + 1) / warmup
        optimizer.step()
        for group, rate in zip(optimizer.param_groups, kept, strict=True):
            group["lr"] = rate


def run_sequential_lr(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    lr = torch.optim.lr_scheduler
    rising = lr.LambdaLR(optimizer, lambda t: (t + 1) / max(warmup, 1))
    flat = lr.ConstantLR(optimizer, factor=1.0, total_iters=0)
    scheduler = flat
    if warmup:
        scheduler = lr.SequentialLR(optimizer, [rising, flat], milestones=[warmup])
    for t in range(total):
        backward(t)
        optimizer.step()
        scheduler.step()


def run_step_hook(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    base = [group["lr"] for group in optimizer.param_groups]
    counter = itertools.count(1)

    def before(opt, args, kwargs):
        share = min(next(counter), warmup) / warmup if warmup else 1.0
        for group, rate in zip(opt.param_groups, base, strict=True):
            group["lr"] = share * rate

    optimizer.register_step_pre_hook(before)
    for t in range(total):
        backward(t)
        optimizer.step()


def run_first_rate_for_all(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    base = optimizer.param_groups[0]["lr"]
    for t in range(total):
        for group in optimizer.param_groups:
            group["lr"] = base * min(1.0, (t + 1) / max(warmup, 1))
        backward(t)
        optimizer.step()


def run_first_group_only(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    base = optimizer.param_groups[0]["lr"]
    for t in range(total):
        optimizer.param_groups[0]["lr"] = base * min(1.0, (t + 1) / max(warmup, 1))
        backward(t)
        optimizer.step()


def run_default_rate(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    base = optimizer.defaults["lr"]
    for t in range(total):
        for group in optimizer.param_groups:
            group["lr"] = base * min(1.0, (t + 1) / max(warmup, 1))
        backward(t)
        optimizer.step()


def run_compounds(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    for t in range(total):
        if t < warmup:
            for group in optimizer.param_groups:
                group["lr"] *= (t + 1) / warmup
        backward(t)
        optimizer.step()


def run_rate_after_step(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    base = [group["lr"] for group in optimizer.param_groups]
    for t in range(total):
        backward(t)
        optimizer.step()
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * min(1.0, (t + 1) / max(warmup, 1))


def run_starts_at_zero(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(1.0, t / max(warmup, 1))
    )
    for t in range(total):
        backward(t)
        optimizer.step()
        scheduler.step()


def run_scheduler_first(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(1.0, (t + 1) / max(warmup, 1))
    )
    for t in range(total):
        backward(t)
        scheduler.step()
        optimizer.step()


def run_divides_by_zero(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    base = [group["lr"] for group in optimizer.param_groups]
    for t in range(total):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * min(1.0, (t + 1) / warmup)
        backward(t)
        optimizer.step()


def run_zero_grad_after_backward(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    base = [group["lr"] for group in optimizer.param_groups]
    for t in range(total):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * min(1.0, (t + 1) / max(warmup, 1))
        backward(t)
        optimizer.zero_grad()
        optimizer.step()


def run_warmup_comes_on_top(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    base = [group["lr"] for group in optimizer.param_groups]
    for t in range(warmup + total):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * min(1.0, (t + 1) / max(warmup, 1))
        backward(t)
        optimizer.step()


def run_counts_from_one(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    base = [group["lr"] for group in optimizer.param_groups]
    for t in range(1, total + 1):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * min(1.0, t / max(warmup, 1))
        backward(t)
        optimizer.step()


def run_new_optimizer_after_warmup(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    base = [group["lr"] for group in optimizer.param_groups]
    for t in range(total):
        if t == warmup:
            optimizer = make_optimizer()
        if t < warmup:
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * (t + 1) / warmup
        backward(t)
        optimizer.step()


def run_never_stops(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    base = [group["lr"] for group in optimizer.param_groups]
    for t in range(total):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * (t + 1) / warmup if warmup else rate
        backward(t)
        optimizer.step()


def run_linear_lr_defaults(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=max(warmup, 1))
    for t in range(total):
        backward(t)
        optimizer.step()
        scheduler.step()


def run_linear_lr_one_late(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    scheduler = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1 / max(warmup, 1), total_iters=max(warmup, 1)
    )
    for t in range(total):
        backward(t)
        optimizer.step()
        scheduler.step()


def run_no_updates_in_warmup(make_optimizer, backward, warmup, total):
    optimizer = make_optimizer()
    for t in range(total):
        backward(t)
        if t >= warmup:
            optimizer.step()


def run_stays_at_last_warmup_rate(make_optimizer, backward, warmup, total):
    # the rates are set for t = 0 .. warmup - 2 only, and the last of them stays
    optimizer = make_optimizer()
    base = [group["lr"] for group in optimizer.param_groups]
    for t in range(total):
        if t < warmup - 1:
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * (t + 1) / warmup
        backward(t)
        optimizer.step()


# --- Exercise 2: length(epochs, rows, micro_batch, accumulation_steps, processes) ----


def length_ceil(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = epochs * math.ceil(rows / (micro_batch * accumulation_steps * processes))
    return updates, updates * processes


def length_negative_division(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = -(-rows // (micro_batch * processes * accumulation_steps)) * epochs
    return [updates, processes * updates]


def length_two_ceils(epochs, rows, micro_batch, accumulation_steps, processes):
    backwards = math.ceil(rows / (micro_batch * processes))
    updates = math.ceil(backwards / accumulation_steps) * epochs
    return updates, sum(updates for _ in range(processes))


def length_numpy(epochs, rows, micro_batch, accumulation_steps, processes):
    per_epoch = np.ceil(rows / np.prod([micro_batch, accumulation_steps, processes]))
    return per_epoch * epochs, per_epoch * epochs * processes


def length_simulation(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = scheduler_steps = 0
    for _ in range(epochs):
        left, window = rows, 0
        while left > 0:
            left -= micro_batch * processes
            window += 1
            if window == accumulation_steps or left <= 0:
                window = 0
                updates += 1
                scheduler_steps += processes
    return updates, scheduler_steps


Length = namedtuple("Length", "updates num_warmup_steps")


def length_named_tuple(epochs, rows, micro_batch, accumulation_steps, processes):
    whole, rest = divmod(rows, micro_batch * accumulation_steps * processes)
    updates = epochs * (whole + bool(rest))
    return Length(updates=updates, num_warmup_steps=updates * processes)


def length_range(epochs, rows, micro_batch, accumulation_steps, processes):
    starts = range(0, rows, micro_batch * accumulation_steps * processes)
    return epochs * len(starts), epochs * len(starts) * processes


def length_data_loader(epochs, rows, micro_batch, accumulation_steps, processes):
    loader = torch.utils.data.DataLoader(range(rows), batch_size=micro_batch * processes)
    windows = torch.arange(len(loader)).split(accumulation_steps)
    return np.int64(len(windows) * epochs), np.int64(len(windows) * epochs * processes)


def length_same_for_scheduler(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = epochs * math.ceil(rows / (micro_batch * accumulation_steps * processes))
    return updates, updates


def length_floor(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = epochs * (rows // (micro_batch * accumulation_steps * processes))
    return updates, updates * processes


def length_rounds_at_the_end(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = math.ceil(epochs * rows / (micro_batch * accumulation_steps * processes))
    return updates, updates * processes


def length_one_process(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = epochs * math.ceil(rows / (micro_batch * accumulation_steps))
    return updates, updates * processes


def length_no_accumulation(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = epochs * math.ceil(rows / (micro_batch * processes))
    return updates, updates * processes


def length_swapped(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = epochs * math.ceil(rows / (micro_batch * accumulation_steps * processes))
    return updates * processes, updates


def length_times_accumulation(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = epochs * math.ceil(rows / (micro_batch * accumulation_steps * processes))
    return updates, updates * processes * accumulation_steps


def length_scheduler_divided(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = epochs * math.ceil(rows / (micro_batch * accumulation_steps * processes))
    return updates, math.ceil(updates / processes)


def length_floor_of_ceil(epochs, rows, micro_batch, accumulation_steps, processes):
    backwards = math.ceil(rows / (micro_batch * processes))
    updates = epochs * (backwards // accumulation_steps)
    return updates, updates * processes


def length_ceil_of_floor(epochs, rows, micro_batch, accumulation_steps, processes):
    backwards = rows // (micro_batch * processes)
    updates = epochs * math.ceil(backwards / accumulation_steps)
    return updates, updates * processes


def length_one_epoch(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = math.ceil(rows / (micro_batch * accumulation_steps * processes))
    return updates, updates * processes


def length_two_processes(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = epochs * math.ceil(rows / (micro_batch * accumulation_steps * processes))
    return updates, updates * 2


def length_fraction(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = epochs * rows / (micro_batch * accumulation_steps * processes)
    return updates, updates * processes


def length_exact_counts_twice(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = epochs * (rows // (micro_batch * accumulation_steps * processes) + 1)
    return updates, updates * processes


def length_all_micro_batches(epochs, rows, micro_batch, accumulation_steps, processes):
    updates = epochs * math.ceil(rows / (micro_batch * accumulation_steps * processes))
    return updates, epochs * math.ceil(rows / micro_batch)


def length_window_runs_over(epochs, rows, micro_batch, accumulation_steps, processes):
    backwards = epochs * math.ceil(rows / (micro_batch * processes))
    updates = math.ceil(backwards / accumulation_steps)
    return updates, updates * processes


RIGHT = {
    0: [
        rate_minimum,
        rate_numpy_clip,
        rate_interp,
        rate_zero_dim_tensor,
        rate_recursion,
        rate_loop,
        rate_table,
        rate_fraction,
        rate_lambda,
        RateObject(),
        rate_linear_lr,
    ],
    1: [
        run_base_rates,
        run_lambda_lr,
        run_linear_lr,
        run_two_loops,
        run_closure,
        run_numpy_table,
        run_restores_each_time,
        run_sequential_lr,
        run_step_hook,
    ],
    2: [
        length_ceil,
        length_negative_division,
        length_two_ceils,
        length_numpy,
        length_simulation,
        length_named_tuple,
        length_range,
        length_data_loader,
    ],
}

WRONG = {
    0: [
        (rate_starts_at_zero, "update 0 has the rate 0, not peak / steps"),
        (rate_one_step_too_many, "steps + 1 in the denominator: the peak comes one late"),
        (rate_divides_by_zero, "fails with steps = 0"),
        (rate_zero_without_warmup, "with steps = 0 the rate is 0, not the peak"),
        (rate_never_stops, "goes on rising above the peak"),
        (rate_factor_only, "returns the factor, not the rate: right for peak = 1 only"),
        (rate_quadratic, "rises in unequal steps"),
        (rate_whole_division, "// makes every rate before the peak 0"),
        (rate_peak_one_early, "has the peak at update steps - 2 already"),
        (rate_falls_after, "falls after the warm-up instead of staying at the peak"),
        (rate_default_peak, "the peak is hard-coded as 0.1"),
        (rate_linear_from_tenth, "starts from a tenth of the peak"),
        (rate_exponential, "rises in a curve and never reaches the peak"),
        (rate_linspace_from_zero, "linspace from 0: update 0 has the rate 0"),
        (rate_starts_again, "t % steps starts a new warm-up after each"),
        (
            rate_linear_lr_one_late,
            "LinearLR with total_iters=steps: peak one update late",
        ),
        (rate_half_steps, "update 0 has half of peak / steps"),
    ],
    1: [
        (run_first_rate_for_all, "gives the first group's base rate to every group"),
        (run_first_group_only, "warms up the first group only"),
        (run_default_rate, "takes the default rate for the groups' own base rates"),
        (run_compounds, "multiplies the rate of the update before, so it compounds"),
        (run_rate_after_step, "sets the rate after the step: update 0 has the base rate"),
        (run_starts_at_zero, "update 0 has the rate 0"),
        (run_scheduler_first, "steps the scheduler first: update 0 has update 1's rate"),
        (run_divides_by_zero, "fails with warmup = 0"),
        (run_zero_grad_after_backward, "empties the gradients before the step"),
        (run_warmup_comes_on_top, "makes warmup + total updates"),
        (run_counts_from_one, "numbers the updates 1, 2, ...: backward gets t + 1"),
        (run_new_optimizer_after_warmup, "a new optimizer after the warm-up, state lost"),
        (run_never_stops, "the rate rises beyond the base rate"),
        (run_linear_lr_defaults, "LinearLR's default start is a third of the rate"),
        (run_linear_lr_one_late, "total_iters=warmup: the base rate comes one late"),
        (run_no_updates_in_warmup, "makes no update at all during the warm-up"),
        (
            run_stays_at_last_warmup_rate,
            "stays at (warmup - 1) / warmup of the base rate",
        ),
    ],
    2: [
        (
            length_same_for_scheduler,
            "Accelerate steps the scheduler once for each process",
        ),
        (length_floor, "drops the last, short update of each epoch"),
        (
            length_rounds_at_the_end,
            "rounds once for all epochs; each ends with an update",
        ),
        (length_one_process, "forgets that the processes share the rows"),
        (length_no_accumulation, "counts micro-batches, not updates"),
        (length_swapped, "the two numbers in the wrong order"),
        (
            length_times_accumulation,
            "the scheduler steps with updates, not micro-batches",
        ),
        (length_scheduler_divided, "divides by the processes instead of multiplying"),
        (length_floor_of_ceil, "drops the last, short window of each epoch"),
        (length_ceil_of_floor, "drops the last, short micro-batch of each epoch"),
        (length_one_epoch, "counts one epoch only"),
        (length_two_processes, "takes two processes for granted"),
        (length_fraction, "rounds nowhere, so an epoch has a broken number of updates"),
        (length_exact_counts_twice, "one update too many where the rows divide evenly"),
        (length_all_micro_batches, "gives the scheduler the number of micro-batches"),
        (length_window_runs_over, "lets a window run on from one epoch into the next"),
    ],
}

UNCLEAR = {
    0: [
        "The question sets no tolerance: `rate_loop` and `rate_linear_lr` differ from"
        " peak * (t + 1) / steps in the last bits, and from the peak at the end.",
    ],
    1: [
        "May step() be called with backward as its closure? Any torch optimizer takes"
        " one, but the question calls it an optimizer only (`run_closure` does it).",
        "With warmup > total the words ask for a part of the ramp; all answers do so.",
    ],
    2: [
        "`two numbers` may be a list, floats with whole values (np.ceil), or one NumPy"
        " array or tensor of two; the last two are not among the answers.",
        "rows = 0 is not spoken of.",
    ],
}
