"""Answers to the exercises of chapter 14, from the words of the questions alone."""

import cmath
import copy
import functools
import io
import itertools
import math
import operator
import pickle
from fractions import Fraction

import numpy as np
import torch

# --- Exercise 0: wsd(t, total, warmup, cooldown) -------------------------------------


def wsd_branches(t, total, warmup, cooldown):
    if t >= total:
        return 0
    if t < warmup:
        return (t + 1) / warmup
    if t < total - cooldown:
        return 1
    return (total - t) / cooldown


def wsd_minimum(t, total, warmup, cooldown):
    rise = (t + 1) / warmup if warmup else 1.0
    fall = (total - t) / cooldown
    return max(0.0, min(rise, 1.0, fall))


def wsd_interp(t, total, warmup, cooldown):
    if t < warmup:
        return np.interp(t + 1, [0, warmup], [0.0, 1.0])
    return np.interp(t, [total - cooldown, total], [1.0, 0.0])


def wsd_median(t, total, warmup, cooldown):
    if t < warmup:
        return Fraction(t + 1, warmup)
    return sorted([0, Fraction(total - t, cooldown), 1])[1]


def wsd_zero_dim_tensor(t, total, warmup, cooldown):
    parts = [torch.tensor((total - t) / cooldown, dtype=torch.float64).clamp(0, 1)]
    if t < warmup:
        parts.append(torch.tensor((t + 1) / warmup, dtype=torch.float64))
    return torch.stack(parts).min()


def wsd_table(t, total, warmup, cooldown):
    table = [(k + 1) / warmup for k in range(warmup)]
    table += [1.0] * (total - warmup - cooldown)
    table += [k / cooldown for k in range(cooldown, 0, -1)]
    return table[t] if t < len(table) else 0.0


def wsd_mirror(t, total, warmup, cooldown):
    # product of a rise and a fall: where one of them moves, the other is 1
    rise = min(t + 1, warmup) / warmup if warmup > 0 else 1.0
    fall = 1.0 - min(max(t - (total - cooldown), 0), cooldown) / cooldown
    return rise * fall


def wsd_recursion(t, total, warmup, cooldown):
    if t > total:
        return wsd_recursion(total, total, warmup, cooldown)
    if t > total - cooldown:
        return wsd_recursion(t - 1, total, warmup, cooldown) - 1 / cooldown
    if t >= warmup:
        return 1.0
    return (t + 1) / warmup


wsd_one_line = lambda t, total, warmup, cooldown: (  # noqa: E731
    (t + 1) / warmup if t < warmup else min(1, max(total - t, 0) / cooldown)
)


def wsd_no_plateau_bound(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    return (total - t) / cooldown


def wsd_below_zero(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    return min(1.0, (total - t) / cooldown)


def wsd_starts_at_zero(t, total, warmup, cooldown):
    if t < warmup:
        return t / warmup
    return min(1.0, max(0.0, (total - t) / cooldown))


def wsd_zero_one_early(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    return min(1.0, max(0.0, (total - t - 1) / cooldown))


def wsd_divides_by_zero(t, total, warmup, cooldown):
    return max(0.0, min((t + 1) / warmup, 1.0, (total - t) / cooldown))


def wsd_ends_at_one_step(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    if t < total - cooldown:
        return 1.0
    return max(0.0, (total - t) / (cooldown + 1))


def wsd_cosine(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    share = min(max(t - (total - cooldown), 0) / cooldown, 1.0)
    return (1 + math.cos(math.pi * share)) / 2


def wsd_square_root(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    share = min(max(t - (total - cooldown), 0) / cooldown, 1.0)
    return 1 - math.sqrt(share)


def wsd_back_to_one(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    if total - cooldown <= t <= total:
        return (total - t) / cooldown
    return 1.0


def wsd_trapezoid_no_stable(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    return max(0.0, (total - t) / (total - warmup))


def wsd_above_one(t, total, warmup, cooldown):
    if t <= warmup and warmup > 0:
        return (t + 1) / warmup
    return min(1.0, max(0.0, (total - t) / cooldown))


def wsd_absolute(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    return min(1.0, abs(total - t) / cooldown)


def wsd_whole_division(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) // warmup
    return min(1, max(0, (total - t) // cooldown))


def wsd_cooldown_after_total(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    if t < total:
        return 1.0
    return max(0.0, (total + cooldown - t) / cooldown)


def wsd_warmup_counted_twice(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    t = t - warmup
    return min(1.0, max(0.0, (total - t) / cooldown))


def wsd_one_too_many(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / (warmup + 1)
    return min(1.0, max(0.0, (total - t) / cooldown))


def wsd_tenth_left(t, total, warmup, cooldown):
    if t < warmup:
        return (t + 1) / warmup
    return min(1.0, max(0.1, (total - t) / cooldown))


def wsd_list_index(t, total, warmup, cooldown):
    table = [(k + 1) / warmup for k in range(warmup)]
    table += [1.0] * (total - warmup - cooldown)
    table += [k / cooldown for k in range(cooldown, -1, -1)]
    return table[t]


# --- Exercise 1: resume(old_optimizer, old_scheduler, optimizer, scheduler) ----------


def resume_two_dicts(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(old_optimizer.state_dict())
    scheduler.load_state_dict(old_scheduler.state_dict())


def resume_other_order(old_optimizer, old_scheduler, optimizer, scheduler):
    scheduler.load_state_dict(copy.deepcopy(old_scheduler.state_dict()))
    optimizer.load_state_dict(copy.deepcopy(old_optimizer.state_dict()))


def resume_through_a_file(old_optimizer, old_scheduler, optimizer, scheduler):
    buffer = io.BytesIO()
    saved = {"o": old_optimizer.state_dict(), "s": old_scheduler.state_dict()}
    torch.save(saved, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    optimizer.load_state_dict(saved["o"])
    scheduler.load_state_dict(saved["s"])


def resume_pairs(old_optimizer, old_scheduler, optimizer, scheduler):
    pairs = zip((old_optimizer, old_scheduler), (optimizer, scheduler), strict=True)
    for old, new in pairs:
        new.load_state_dict(old.state_dict())
    return optimizer, scheduler


def resume_pickle(old_optimizer, old_scheduler, optimizer, scheduler):
    get = operator.methodcaller("state_dict")
    saved = pickle.dumps([get(old_optimizer), get(old_scheduler)])
    for new, state in zip([optimizer, scheduler], pickle.loads(saved), strict=True):
        new.load_state_dict(state)


def resume_by_hand(old_optimizer, old_scheduler, optimizer, scheduler):
    # the optimizer's numbers and buffers without its state_dict
    groups = zip(old_optimizer.param_groups, optimizer.param_groups, strict=True)
    for old_group, group in groups:
        for key, value in old_group.items():
            if key != "params":
                group[key] = copy.deepcopy(value)
        both = zip(old_group["params"], group["params"], strict=True)
        for old_parameter, parameter in both:
            if old_parameter in old_optimizer.state:
                state = old_optimizer.state[old_parameter]
                optimizer.state[parameter] = copy.deepcopy(state)
    scheduler.load_state_dict(old_scheduler.state_dict())


class Resume:
    def __call__(self, old_optimizer, old_scheduler, optimizer, scheduler):
        states = [copy.deepcopy(x.state_dict()) for x in (old_scheduler, old_optimizer)]
        scheduler.load_state_dict(states[0])
        optimizer.load_state_dict(states[1])
        return None


def resume_optimizer_only(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(old_optimizer.state_dict())


def resume_scheduler_only(old_optimizer, old_scheduler, optimizer, scheduler):
    scheduler.load_state_dict(old_scheduler.state_dict())


def resume_wrong_direction(old_optimizer, old_scheduler, optimizer, scheduler):
    old_optimizer.load_state_dict(optimizer.state_dict())
    old_scheduler.load_state_dict(scheduler.state_dict())


def resume_names_only(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer = old_optimizer
    scheduler = old_scheduler
    return optimizer, scheduler


def resume_rates_only(old_optimizer, old_scheduler, optimizer, scheduler):
    for old, new in zip(old_optimizer.param_groups, optimizer.param_groups, strict=True):
        new["lr"] = old["lr"]
    scheduler.load_state_dict(old_scheduler.state_dict())


def resume_last_epoch_only(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(old_optimizer.state_dict())
    scheduler.last_epoch = old_scheduler.last_epoch


def resume_replays(old_optimizer, old_scheduler, optimizer, scheduler):
    for _ in range(old_scheduler.last_epoch):
        scheduler.step()


def resume_one_step_more(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(old_optimizer.state_dict())
    scheduler.load_state_dict(old_scheduler.state_dict())
    scheduler.step()


def resume_rate_from_the_start(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(old_optimizer.state_dict())
    scheduler.load_state_dict(old_scheduler.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]


def resume_no_momentum(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(old_optimizer.state_dict())
    scheduler.load_state_dict(old_scheduler.state_dict())
    optimizer.state.clear()


def resume_fresh_groups(old_optimizer, old_scheduler, optimizer, scheduler):
    state = optimizer.state_dict()
    state["state"] = old_optimizer.state_dict()["state"]
    optimizer.load_state_dict(state)
    scheduler.load_state_dict(old_scheduler.state_dict())


def resume_whole_scheduler(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(old_optimizer.state_dict())
    scheduler.__dict__.update(old_scheduler.__dict__)


def resume_one_group(old_optimizer, old_scheduler, optimizer, scheduler):
    old, new = old_optimizer.state_dict(), optimizer.state_dict()
    new["state"] = old["state"]
    new["param_groups"][0] = old["param_groups"][0]
    optimizer.load_state_dict(new)
    scheduler.load_state_dict(old_scheduler.state_dict())


def resume_scheduler_counts_anew(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(old_optimizer.state_dict())
    scheduler.load_state_dict(old_scheduler.state_dict())
    scheduler.last_epoch = 0


def resume_one_behind(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(old_optimizer.state_dict())
    scheduler.load_state_dict(old_scheduler.state_dict())
    scheduler.last_epoch -= 1


def resume_asks_the_new(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(optimizer.state_dict())
    scheduler.load_state_dict(scheduler.state_dict())


def resume_reads_the_dicts(old_optimizer, old_scheduler, optimizer, scheduler):
    # state_dict() gives a new dict each time: the update goes nowhere
    optimizer.state_dict().update(old_optimizer.state_dict())
    scheduler.state_dict().update(old_scheduler.state_dict())


def resume_zero_buffers(old_optimizer, old_scheduler, optimizer, scheduler):
    optimizer.load_state_dict(copy.deepcopy(old_optimizer.state_dict()))
    scheduler.load_state_dict(old_scheduler.state_dict())
    for state in optimizer.state.values():
        for value in state.values():
            if torch.is_tensor(value):
                value.zero_()


# --- Exercise 2: factor(t, total, floor) ---------------------------------------------


def factor_cosine(t, total, floor):
    share = min(t, total) / total
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))


def factor_half_angle(t, total, floor):
    if t >= total:
        return floor
    square = math.sin(math.pi * t / (2 * total)) ** 2
    return (1 - square) + floor * square


def factor_numpy(t, total, floor):
    x = np.clip(np.float64(t) / total, 0, 1)
    wave = np.cos(np.pi * x)
    return np.interp(wave, [-1.0, 1.0], [floor, 1.0])


def factor_complex(t, total, floor):
    wave = cmath.exp(1j * cmath.pi * min(t, total) / total).real
    return (1 + floor) / 2 + (1 - floor) / 2 * wave


def factor_lerp(t, total, floor):
    angle = torch.tensor(math.pi * min(t / total, 1.0), dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    return torch.lerp(one, torch.full_like(one, floor), (1 - torch.cos(angle)) / 2)


def factor_recursion(t, total, floor):
    # cos((k + 1) a) = 2 cos(a) cos(k a) - cos((k - 1) a), no deeper than `total`
    @functools.cache
    def wave(k):
        if k < 2:
            return math.cos(math.pi / total) if k else 1.0
        return 2 * wave(1) * wave(k - 1) - wave(k - 2)

    if t > total:
        return factor_recursion(total, total, floor)
    return floor + (1 - floor) * (1 + wave(t)) / 2


def factor_sine(t, total, floor):
    t = sorted((0, t, total))[1]
    return 1 - (1 - floor) * (1 + math.sin(math.pi * (t / total - 0.5))) / 2


class Factor:
    def __call__(self, t, total, floor):
        past = t // total >= 1
        wave = -1.0 if past else math.cos(t * math.pi / total)
        return 0.5 * ((1 + floor) + (1 - floor) * wave)


factor_builtin_window = lambda t, total, floor: (  # noqa: E731
    floor
    + (1 - floor) * (np.hanning(2 * total + 1)[total + t].item() if t < total else 0.0)
)


def factor_rises_again(t, total, floor):
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * t / total))


def factor_floor_on_top(t, total, floor):
    return floor + 0.5 * (1 + math.cos(math.pi * min(t, total) / total))


def factor_cut_at_floor(t, total, floor):
    return max(floor, 0.5 * (1 + math.cos(math.pi * min(t, total) / total)))


def factor_whole_wave(t, total, floor):
    share = min(t, total) / total
    return floor + (1 - floor) * 0.5 * (1 + math.cos(2 * math.pi * share))


def factor_quarter_wave(t, total, floor):
    return floor + (1 - floor) * math.cos(math.pi / 2 * min(t, total) / total)


def factor_one_ahead(t, total, floor):
    share = min(t + 1, total) / total
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))


def factor_zero_after(t, total, floor):
    if t > total:
        return 0.0
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * t / total))


def factor_restarts(t, total, floor):
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (t % total) / total))


def factor_linear(t, total, floor):
    return 1 - (1 - floor) * min(t, total) / total


def factor_total_minus_one(t, total, floor):
    share = min(t / max(total - 1, 1), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))


def factor_degrees(t, total, floor):
    return floor + (1 - floor) * 0.5 * (1 + math.cos(180 * min(t, total) / total))


def factor_no_floor(t, total, floor):
    return 0.5 * (1 + math.cos(math.pi * min(t, total) / total))


def factor_whole_division(t, total, floor):
    share = min(t // total, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))


def factor_no_half(t, total, floor):
    return floor + (1 - floor) * math.cos(math.pi * min(t, total) / total)


def factor_scaled_floor(t, total, floor):
    return (1 + floor) * 0.5 * (1 + math.cos(math.pi * min(t, total) / total))


def factor_late_again(t, total, floor):
    # only the first second half of the wave is caught
    if total < t < 2 * total:
        return floor
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * t / total))


def factor_tenth(t, total, floor=0.1):
    share = min(t, total) / total
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share))


def factor_total_of_hundred(t, total, floor):
    share = min(t, 100) / 100
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))


# --- Exercise 3: updates(lengths, cooldowns) -----------------------------------------


def updates_max_difference(lengths, cooldowns):
    stable = max(n - c for n, c in zip(lengths, cooldowns, strict=True))
    return stable + sum(cooldowns), sum(lengths)


def updates_numpy(lengths, cooldowns):
    n, c = np.asarray(lengths), np.asarray(cooldowns)
    return (n - c).max() + c.sum(), n.sum()


def updates_tensors(lengths, cooldowns):
    n, c = torch.tensor(lengths), torch.tensor(cooldowns)
    return [(n - c).amax().item() + c.sum().item(), int(n.sum())]


def updates_sorted_branches(lengths, cooldowns):
    done = made = 0
    branches = sorted(map(operator.sub, lengths, cooldowns))
    for branch in branches:
        made += branch - done
        done = branch
    return made + sum(cooldowns), sum(lengths)


def updates_counting_sets(lengths, cooldowns):
    stable, own = set(), 0
    for n, c in zip(lengths, cooldowns, strict=True):
        stable |= set(range(n - c))
        own += n
    return len(stable) + sum(cooldowns), own


def updates_recursion(lengths, cooldowns):
    def walk(i, stable, cooled, own):
        if i == len(lengths):
            return stable + cooled, own
        branch = lengths[i] - cooldowns[i]
        stable = branch if branch > stable else stable
        return walk(i + 1, stable, cooled + cooldowns[i], own + lengths[i])

    return walk(0, 0, 0, 0)


def updates_saved(lengths, cooldowns):
    # all the runs, less the stable parts that need not be repeated
    branches = [n - c for n, c in zip(lengths, cooldowns, strict=True)]
    repeated = sum(branches) - max(branches)
    own = functools.reduce(operator.add, lengths)
    return own - repeated, own


def updates_accumulate(lengths, cooldowns):
    branches = [a - b for a, b in zip(lengths, cooldowns, strict=True)]
    *_, stable = itertools.accumulate(branches, max)
    return float(stable + math.fsum(cooldowns)), math.fsum(lengths)


def updates_longest_length(lengths, cooldowns):
    return max(lengths) + sum(cooldowns), sum(lengths)


def updates_of_longest_run(lengths, cooldowns):
    i = lengths.index(max(lengths))
    return lengths[i] - cooldowns[i] + sum(cooldowns), sum(lengths)


def updates_of_last_run(lengths, cooldowns):
    return lengths[-1] - cooldowns[-1] + sum(cooldowns), sum(lengths)


def updates_max_less_max(lengths, cooldowns):
    return max(lengths) - max(cooldowns) + sum(cooldowns), sum(lengths)


def updates_max_less_min(lengths, cooldowns):
    return max(lengths) - min(cooldowns) + sum(cooldowns), sum(lengths)


def updates_same_cooldown(lengths, cooldowns):
    stable = max(lengths) - cooldowns[0]
    return stable + cooldowns[0] * len(lengths), sum(lengths)


def updates_swapped(lengths, cooldowns):
    stable = max(n - c for n, c in zip(lengths, cooldowns, strict=True))
    return sum(lengths), stable + sum(cooldowns)


def updates_stable_only(lengths, cooldowns):
    return max(n - c for n, c in zip(lengths, cooldowns, strict=True)), sum(lengths)


def updates_cooldown_on_top(lengths, cooldowns):
    stable = max(n - c for n, c in zip(lengths, cooldowns, strict=True))
    return stable + sum(cooldowns), sum(lengths) + sum(cooldowns)


def updates_no_sharing(lengths, cooldowns):
    stable = sum(n - c for n, c in zip(lengths, cooldowns, strict=True))
    return stable + sum(cooldowns), sum(lengths)


def updates_each_cooldown_once(lengths, cooldowns):
    stable = max(n - c for n, c in zip(lengths, cooldowns, strict=True))
    return stable + sum(set(cooldowns)), sum(lengths)


def updates_longest_cooldown(lengths, cooldowns):
    stable = max(n - c for n, c in zip(lengths, cooldowns, strict=True))
    return stable + max(cooldowns), sum(lengths)


def updates_longest_times_runs(lengths, cooldowns):
    stable = max(n - c for n, c in zip(lengths, cooldowns, strict=True))
    return stable + sum(cooldowns), max(lengths) * len(lengths)


def updates_saving(lengths, cooldowns):
    stable = max(n - c for n, c in zip(lengths, cooldowns, strict=True))
    return stable + sum(cooldowns), sum(lengths) - stable - sum(cooldowns)


def updates_shortest_branch(lengths, cooldowns):
    stable = min(n - c for n, c in zip(lengths, cooldowns, strict=True))
    return stable + sum(cooldowns), sum(lengths)


def updates_stable_is_one_longer(lengths, cooldowns):
    stable = max(n - c for n, c in zip(lengths, cooldowns, strict=True))
    return stable + 1 + sum(cooldowns), sum(lengths)


def updates_longest_pays_nothing(lengths, cooldowns):
    # the longest run is the stable run, the others pay their cool-downs
    longest = lengths.index(max(lengths))
    others = sum(c for i, c in enumerate(cooldowns) if i != longest)
    return lengths[longest] + others, sum(lengths)


RIGHT = {
    0: [
        wsd_branches,
        wsd_minimum,
        wsd_interp,
        wsd_median,
        wsd_zero_dim_tensor,
        wsd_table,
        wsd_mirror,
        wsd_recursion,
        wsd_one_line,
    ],
    1: [
        resume_two_dicts,
        resume_other_order,
        resume_through_a_file,
        resume_pairs,
        resume_pickle,
        resume_by_hand,
        Resume(),
    ],
    2: [
        factor_cosine,
        factor_half_angle,
        factor_numpy,
        factor_complex,
        factor_lerp,
        factor_recursion,
        factor_sine,
        Factor(),
        factor_builtin_window,
    ],
    3: [
        updates_max_difference,
        updates_numpy,
        updates_tensors,
        updates_sorted_branches,
        updates_counting_sets,
        updates_recursion,
        updates_saved,
        updates_accumulate,
    ],
}

WRONG = {
    0: [
        (
            wsd_no_plateau_bound,
            "above 1 between warm-up and cool-down, below 0 at the end",
        ),
        (wsd_below_zero, "goes below 0 after t = total"),
        (wsd_starts_at_zero, "0 at t = 0 instead of 1 / warmup"),
        (wsd_zero_one_early, "0 at total - 1, and below 1 at total - cooldown"),
        (wsd_divides_by_zero, "fails with warmup = 0"),
        (wsd_ends_at_one_step, "jumps down at total - cooldown: cooldown + 1 below"),
        (wsd_cosine, "falls along a cosine, not in a line"),
        (wsd_square_root, "falls as 1 - sqrt, not in a line"),
        (wsd_back_to_one, "1 again after t = total"),
        (wsd_trapezoid_no_stable, "falls from the end of the warm-up on"),
        (wsd_above_one, "t <= warmup: (warmup + 1) / warmup at t = warmup"),
        (wsd_absolute, "rises again after t = total"),
        (wsd_whole_division, "// leaves only 0 and 1"),
        (wsd_cooldown_after_total, "cools down after `total` instead of before it"),
        (wsd_warmup_counted_twice, "the cool-down comes `warmup` updates late"),
        (wsd_one_too_many, "divides the warm-up by warmup + 1"),
        (wsd_tenth_left, "falls to 0.1 and not to 0"),
        (wsd_list_index, "fails for t > total"),
    ],
    1: [
        (resume_optimizer_only, "the scheduler counts from 0 again"),
        (resume_scheduler_only, "the optimizer's state and rates are lost"),
        (resume_wrong_direction, "loads the fresh state into the old pair"),
        (resume_names_only, "binds local names; the fresh pair stays fresh"),
        (resume_rates_only, "the optimizer's state (momentum, Adam) is lost"),
        (resume_last_epoch_only, "the scheduler has more than its last_epoch"),
        (resume_replays, "the scheduler is there, the optimizer's state is not"),
        (resume_one_step_more, "one scheduler step too many"),
        (resume_rate_from_the_start, "the next update has the initial rate"),
        (resume_no_momentum, "throws the optimizer's state away"),
        (resume_fresh_groups, "the groups keep the fresh rates"),
        (resume_whole_scheduler, "the new scheduler then drives the old optimizer"),
        (resume_one_group, "carries the settings of the first group only"),
        (resume_scheduler_counts_anew, "sets the scheduler's count to 0"),
        (resume_one_behind, "the scheduler is one step behind"),
        (resume_asks_the_new, "loads the fresh pair into itself"),
        (resume_reads_the_dicts, "changes dicts that nobody reads"),
        (resume_zero_buffers, "the momentum buffers are zero"),
    ],
    2: [
        (factor_rises_again, "rises again after t = total"),
        (factor_floor_on_top, "starts at 1 + floor"),
        (factor_cut_at_floor, "a wave to 0, cut off at the floor"),
        (factor_whole_wave, "a whole wave: 1 again at t = total"),
        (factor_quarter_wave, "a quarter of a wave"),
        (factor_one_ahead, "below 1 at t = 0"),
        (factor_zero_after, "0 instead of the floor after t = total"),
        (factor_restarts, "starts again at t = total"),
        (factor_linear, "a line and no cosine"),
        (factor_total_minus_one, "at the floor at t = total - 1 already"),
        (factor_degrees, "degrees where cos takes radians"),
        (factor_no_floor, "falls to 0 and forgets the floor"),
        (factor_whole_division, "// leaves only 1 and the floor"),
        (factor_no_half, "falls to floor - (1 - floor)"),
        (factor_scaled_floor, "starts at 1 + floor and falls to 0"),
        (factor_late_again, "rises again for t beyond 2 * total"),
        (factor_tenth, "the floor is hard-coded"),
        (factor_total_of_hundred, "the total is hard-coded"),
    ],
    3: [
        (updates_longest_length, "the longest run's cool-down is counted twice"),
        (updates_of_longest_run, "the longest run need not branch last"),
        (updates_of_last_run, "takes the last run for the one that branches last"),
        (updates_max_less_max, "the longest run need not have the longest cool-down"),
        (updates_max_less_min, "the longest run need not have the shortest cool-down"),
        (updates_same_cooldown, "takes all cool-downs for equal"),
        (updates_swapped, "the two numbers in the wrong order"),
        (updates_stable_only, "forgets the cool-downs"),
        (updates_cooldown_on_top, "a length contains its cool-down"),
        (updates_no_sharing, "shares no stable update at all"),
        (updates_each_cooldown_once, "two equal cool-downs are two cool-downs"),
        (updates_longest_cooldown, "counts one cool-down only"),
        (updates_longest_times_runs, "gives each run of its own the longest length"),
        (updates_saving, "returns the saving in place of the second number"),
        (updates_shortest_branch, "the stable run ends at the first branch"),
        (updates_stable_is_one_longer, "trains the stable run one update too far"),
        (updates_longest_pays_nothing, "the longest run is taken as the stable one"),
    ],
}

UNCLEAR = {
    0: [],
    1: [
        "May the fresh optimizer share buffers with the old one? load_state_dict does not"
        " copy tensors of the right dtype, so the old one, used again, would disturb it.",
        "Replacing optimizer.state and param_groups by the old ones is right only if both"
        " optimizers hold the same parameters; the question does not say if they do.",
    ],
    2: [
        "total = 0 is not spoken of.",
    ],
    3: [
        "Two runs that are equal in both numbers: one model or two? All here count two.",
        "`a run of its own for each length`: with equal lengths and unequal cool-downs,"
        " is that one run (sum(set(lengths))) or two? All answers here count two.",
        "No run at all (empty lists): max() fails, and the question does not say (0, 0).",
    ],
}
