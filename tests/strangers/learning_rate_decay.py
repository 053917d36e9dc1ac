"""Answers by a stranger to the exercises of chapter 08_learning_rate_decay."""

import functools
import heapq
import math
import operator
from fractions import Fraction

import numpy as np
import torch

# Exercise 0: threshold(curvatures)


def threshold_max(curvatures):
    return 2 / max(curvatures)


def threshold_numpy(curvatures):
    return np.divide(2.0, curvatures).min()


def threshold_sorted(curvatures):
    *_, steepest = sorted(curvatures)
    return 2.0 * steepest**-1


def threshold_tensor(curvatures):
    return 2 / torch.as_tensor(curvatures, dtype=torch.float64).amax()


def threshold_reduce(curvatures):
    return functools.reduce(min, (2 / c for c in curvatures), math.inf)


def threshold_recursive(curvatures):
    first, rest = curvatures[0], curvatures[1:]
    if not rest:
        return 2 / first
    return min(2 / first, threshold_recursive(rest))


def threshold_eigenvalues(curvatures):
    hessian = np.diag(np.array(curvatures, dtype=float))
    return 2 / np.linalg.eigvalsh(hessian)[-1]


def threshold_bisect(curvatures):
    low, high = 0.0, 1.0
    while all(abs(1 - high * c) <= 1 for c in curvatures):
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if any(abs(1 - middle * c) > 1 for c in curvatures):
            high = middle
        else:
            low = middle
    return high


def threshold_rates(curvatures):
    """Try rates from below, each 0.4 percent above the last, and run with them."""
    rate = 1e-3 / sum(curvatures)
    while True:
        w = [1.0] * len(curvatures)
        for _ in range(20):
            w = [x - rate * c * x for x, c in zip(w, curvatures)]
        if max(abs(x) for x in w) > 1:
            return rate
        rate *= 1.004


def threshold_p_norm(curvatures):
    """The largest by a norm of a very high order, on logarithms."""
    order = 1e5
    logs = order * np.log(np.array(curvatures, dtype=float))
    return 2 * np.exp(-np.logaddexp.reduce(logs) / order)


def threshold_heap(curvatures):
    (steepest,) = heapq.nlargest(1, curvatures)
    return np.float64(2 / steepest)


def threshold_fraction(curvatures):
    return float(Fraction(2) / max(map(Fraction, curvatures)))


def wrong_threshold_given(curvatures):
    return 1 / sum(curvatures)


def wrong_threshold_one(curvatures):
    return 1 / max(curvatures)


def wrong_threshold_sum(curvatures):
    return 2 / sum(curvatures)


def wrong_threshold_mean(curvatures):
    return 2 / (sum(curvatures) / len(curvatures))


def wrong_threshold_min(curvatures):
    return 2 / min(curvatures)


def wrong_threshold_first(curvatures):
    return 2 / curvatures[0]


def wrong_threshold_last(curvatures):
    return 2 / curvatures[-1]


def wrong_threshold_squared(curvatures):
    return 2 / max(curvatures) ** 2


def wrong_threshold_root(curvatures):
    return 2 / math.sqrt(max(curvatures))


def wrong_threshold_inverse(curvatures):
    return max(curvatures) / 2


def wrong_threshold_best(curvatures):
    return 2 / (min(curvatures) + max(curvatures))


def wrong_threshold_norm(curvatures):
    return 2 / math.sqrt(sum(c**2 for c in curvatures))


def wrong_threshold_median(curvatures):
    return 2 / float(np.median(curvatures))


def wrong_threshold_integer(curvatures):
    return 2 / max(1, round(max(curvatures)))


def wrong_threshold_mean_of_limits(curvatures):
    return sum(2 / c for c in curvatures) / len(curvatures)


def wrong_threshold_largest_limit(curvatures):
    return max(2 / c for c in curvatures)


def wrong_threshold_up_to_one(curvatures):
    for rate in np.arange(0.001, 1.0, 0.001):
        if any(abs(1 - rate * c) > 1 for c in curvatures):
            return rate
    return 1.0


def wrong_threshold_coarse(curvatures):
    rate = 0.1
    while all(abs(1 - rate * c) <= 1 for c in curvatures):
        rate += 0.1
    return rate


def wrong_threshold_overshoots(curvatures):
    rate = 1e-4
    while all(rate * c <= 1 for c in curvatures):
        rate *= 1.002
    return rate


def wrong_threshold_all_run_away(curvatures):
    rate = 1e-4
    while not all(abs(1 - rate * c) > 1 for c in curvatures):
        rate *= 1.002
    return rate


def wrong_threshold_two(curvatures):
    return 2 / max(curvatures[0], curvatures[1 % len(curvatures)])


def wrong_threshold_product(curvatures):
    return 2 / math.prod(curvatures)


def wrong_threshold_condition(curvatures):
    return max(curvatures) / min(curvatures)


# Exercise 1: rescale(lr, batch_size, new_batch_size, optimizer)


def rescale_plain(lr, batch_size, new_batch_size, optimizer):
    ratio = new_batch_size / batch_size
    return lr * ratio if optimizer == "sgd" else lr * math.sqrt(ratio)


def rescale_powers(lr, batch_size, new_batch_size, optimizer):
    power = {"sgd": 1, "adam": 0.5}[optimizer]
    return lr * (new_batch_size / batch_size) ** power


def rescale_match(lr, batch_size, new_batch_size, optimizer):
    match optimizer:
        case "sgd":
            return new_batch_size * lr / batch_size
        case "adam":
            return np.sqrt(new_batch_size) * lr / np.sqrt(batch_size)
    raise ValueError(optimizer)


def rescale_tensor(lr, batch_size, new_batch_size, optimizer):
    ratio = torch.tensor(new_batch_size, dtype=torch.float64) / batch_size
    return lr * (ratio.sqrt() if optimizer == "adam" else ratio)


def rescale_logs(lr, batch_size, new_batch_size, optimizer):
    change = math.log(new_batch_size) - math.log(batch_size)
    return math.exp(math.log(lr) + change / (1 + (optimizer == "adam")))


def rescale_fraction(lr, batch_size, new_batch_size, optimizer):
    ratio = Fraction(new_batch_size, batch_size)
    if optimizer == "sgd":
        return float(Fraction(lr) * ratio)
    return math.sqrt(float(Fraction(lr) ** 2 * ratio))


class Rescale:
    """A rule for each name."""

    def linear(self, ratio):
        return ratio

    def root(self, ratio):
        return math.hypot(math.sqrt(ratio))

    def __call__(self, lr, batch_size, new_batch_size, optimizer):
        rule = self.root if "adam" in optimizer.lower() else self.linear
        return rule(new_batch_size / batch_size) * lr


rescale_object = Rescale()


def wrong_rescale_inverse(lr, batch_size, new_batch_size, optimizer):
    ratio = batch_size / new_batch_size
    return lr * ratio if optimizer == "sgd" else lr * math.sqrt(ratio)


def wrong_rescale_linear(lr, batch_size, new_batch_size, optimizer):
    return lr * new_batch_size / batch_size


def wrong_rescale_root(lr, batch_size, new_batch_size, optimizer):
    return lr * math.sqrt(new_batch_size / batch_size)


def wrong_rescale_swapped(lr, batch_size, new_batch_size, optimizer):
    ratio = new_batch_size / batch_size
    return lr * ratio if optimizer == "adam" else lr * math.sqrt(ratio)


def wrong_rescale_integer(lr, batch_size, new_batch_size, optimizer):
    ratio = new_batch_size // batch_size
    return lr * ratio if optimizer == "sgd" else lr * math.sqrt(ratio)


def wrong_rescale_only_up(lr, batch_size, new_batch_size, optimizer):
    ratio = max(new_batch_size / batch_size, 1)
    return lr * ratio if optimizer == "sgd" else lr * math.sqrt(ratio)


def wrong_rescale_no_division(lr, batch_size, new_batch_size, optimizer):
    return lr * (new_batch_size if optimizer == "sgd" else math.sqrt(new_batch_size))


def wrong_rescale_root_of_rate(lr, batch_size, new_batch_size, optimizer):
    rate = lr * new_batch_size / batch_size
    return rate if optimizer == "sgd" else math.sqrt(rate)


def wrong_rescale_root_above(lr, batch_size, new_batch_size, optimizer):
    if optimizer == "sgd":
        return lr * new_batch_size / batch_size
    return lr * math.sqrt(new_batch_size) / batch_size


def wrong_rescale_doubles(lr, batch_size, new_batch_size, optimizer):
    return lr * (2 if optimizer == "sgd" else math.sqrt(2))


def wrong_rescale_same(lr, batch_size, new_batch_size, optimizer):
    return lr * new_batch_size / batch_size if optimizer == "sgd" else lr


def wrong_rescale_square(lr, batch_size, new_batch_size, optimizer):
    ratio = new_batch_size / batch_size
    return lr * ratio if optimizer == "sgd" else lr * ratio**2


def wrong_rescale_adds(lr, batch_size, new_batch_size, optimizer):
    ratio = new_batch_size / batch_size
    return lr + (ratio if optimizer == "sgd" else math.sqrt(ratio))


def wrong_rescale_half(lr, batch_size, new_batch_size, optimizer):
    ratio = new_batch_size / batch_size
    return lr * ratio if optimizer == "sgd" else lr * ratio / 2


def wrong_rescale_rounded(lr, batch_size, new_batch_size, optimizer):
    ratio = new_batch_size / batch_size
    return round(lr * ratio if optimizer == "sgd" else lr * math.sqrt(ratio), 2)


def wrong_rescale_low_rate(lr, batch_size, new_batch_size, optimizer):
    ratio = new_batch_size / batch_size
    if optimizer == "sgd" or lr < 1e-3:
        return lr * ratio
    return lr * math.sqrt(ratio)


def wrong_rescale_log(lr, batch_size, new_batch_size, optimizer):
    ratio = new_batch_size / batch_size
    return lr * ratio if optimizer == "sgd" else lr * math.log2(ratio)


def wrong_rescale_integer_root(lr, batch_size, new_batch_size, optimizer):
    ratio = new_batch_size / batch_size
    return lr * ratio if optimizer == "sgd" else lr * math.isqrt(int(ratio))


def wrong_rescale_difference(lr, batch_size, new_batch_size, optimizer):
    ratio = (new_batch_size - batch_size) / batch_size
    return lr * ratio if optimizer == "sgd" else lr * math.sqrt(abs(ratio))


# Exercise 2: total(rows, epochs, micro_batch_size, accumulation_steps, processes)


def total_ceil(rows, epochs, micro_batch_size, accumulation_steps, processes):
    per_update = micro_batch_size * accumulation_steps * processes
    return epochs * math.ceil(rows / per_update)


def total_integers(rows, epochs, micro_batch_size, accumulation_steps, processes):
    per_update = processes * accumulation_steps * micro_batch_size
    return -(-rows // per_update) * epochs


def total_nested(rows, epochs, micro_batch_size, accumulation_steps, processes):
    per_process = math.ceil(rows / processes)
    micro_batches = math.ceil(per_process / micro_batch_size)
    return math.ceil(micro_batches / accumulation_steps) * epochs


def total_loop(rows, epochs, micro_batch_size, accumulation_steps, processes):
    updates = 0
    for _ in range(epochs):
        left = rows
        while left > 0:
            left -= micro_batch_size * accumulation_steps * processes
            updates += 1
    return updates


def total_divmod(rows, epochs, micro_batch_size, accumulation_steps, processes):
    sizes = (micro_batch_size, accumulation_steps, processes)
    full, left = divmod(rows, functools.reduce(operator.mul, sizes))
    return sum(full + bool(left) for _ in range(epochs))


def total_numpy(rows, epochs, micro_batch_size, accumulation_steps, processes):
    per_update = np.prod([micro_batch_size, accumulation_steps, processes])
    return np.int64(np.ceil(rows / per_update)) * epochs


def total_float(rows, epochs, micro_batch_size, accumulation_steps, processes):
    per_update = micro_batch_size * accumulation_steps * processes
    return np.ceil(rows / per_update) * epochs


def total_range(rows, epochs, micro_batch_size, accumulation_steps, processes):
    step = micro_batch_size * accumulation_steps * processes
    return len([0 for _ in range(epochs) for _ in range(0, rows, step)])


def total_split(rows, epochs, micro_batch_size, accumulation_steps, processes):
    step = micro_batch_size * accumulation_steps * processes
    return epochs * len(torch.arange(rows).split(step))


def total_recursive(rows, epochs, micro_batch_size, accumulation_steps, processes):
    step = micro_batch_size * accumulation_steps * processes
    if epochs == 0:
        return 0
    rest = total_recursive(
        rows, epochs - 1, micro_batch_size, accumulation_steps, processes
    )
    return rest + (rows + step - 1) // step


def wrong_total_floor(rows, epochs, micro_batch_size, accumulation_steps, processes):
    return epochs * (rows // (micro_batch_size * accumulation_steps * processes))


def wrong_total_over_epochs(
    rows, epochs, micro_batch_size, accumulation_steps, processes
):
    per_update = micro_batch_size * accumulation_steps * processes
    return math.ceil(rows * epochs / per_update)


def wrong_total_one_process(
    rows, epochs, micro_batch_size, accumulation_steps, processes
):
    return epochs * math.ceil(rows / (micro_batch_size * accumulation_steps))


def wrong_total_micro_batches(
    rows, epochs, micro_batch_size, accumulation_steps, processes
):
    return epochs * math.ceil(rows / (micro_batch_size * processes))


def wrong_total_times_steps(
    rows, epochs, micro_batch_size, accumulation_steps, processes
):
    batches = math.ceil(rows / (micro_batch_size * processes))
    return epochs * batches * accumulation_steps


def wrong_total_times_processes(
    rows, epochs, micro_batch_size, accumulation_steps, processes
):
    per_update = micro_batch_size * accumulation_steps
    return epochs * math.ceil(rows / per_update) * processes


def wrong_total_drops_short(
    rows, epochs, micro_batch_size, accumulation_steps, processes
):
    batches = math.ceil(rows / (micro_batch_size * processes))
    return epochs * (batches // accumulation_steps)


def wrong_total_drops_batch(
    rows, epochs, micro_batch_size, accumulation_steps, processes
):
    batches = rows // (micro_batch_size * processes)
    return epochs * math.ceil(batches / accumulation_steps)


def wrong_total_round(rows, epochs, micro_batch_size, accumulation_steps, processes):
    per_update = micro_batch_size * accumulation_steps * processes
    return epochs * round(rows / per_update)


def wrong_total_plus_one(rows, epochs, micro_batch_size, accumulation_steps, processes):
    per_update = micro_batch_size * accumulation_steps * processes
    return epochs * (rows // per_update + 1)


def wrong_total_one_epoch(rows, epochs, micro_batch_size, accumulation_steps, processes):
    return math.ceil(rows / (micro_batch_size * accumulation_steps * processes))


def wrong_total_fraction(rows, epochs, micro_batch_size, accumulation_steps, processes):
    return epochs * rows / (micro_batch_size * accumulation_steps * processes)


def wrong_total_short_once(rows, epochs, micro_batch_size, accumulation_steps, processes):
    full, left = divmod(rows, micro_batch_size * accumulation_steps * processes)
    return epochs * full + (1 if left else 0)


def wrong_total_share_floor(
    rows, epochs, micro_batch_size, accumulation_steps, processes
):
    share = rows // processes
    return epochs * math.ceil(share / (micro_batch_size * accumulation_steps))


def wrong_total_carried(rows, epochs, micro_batch_size, accumulation_steps, processes):
    micro_batches = epochs * math.ceil(rows / (micro_batch_size * processes))
    return math.ceil(micro_batches / accumulation_steps)


def wrong_total_ceil_inside(
    rows, epochs, micro_batch_size, accumulation_steps, processes
):
    return epochs * math.ceil(rows / micro_batch_size / accumulation_steps) // processes


def wrong_total_divides_steps(
    rows, epochs, micro_batch_size, accumulation_steps, processes
):
    per_update = micro_batch_size * processes / accumulation_steps
    return epochs * math.ceil(rows / per_update)


def wrong_total_last_full(rows, epochs, micro_batch_size, accumulation_steps, processes):
    per_update = micro_batch_size * accumulation_steps * processes
    return epochs * ((rows - 1) // per_update)


def wrong_total_plain(rows, epochs, micro_batch_size, accumulation_steps, processes):
    return epochs * math.ceil(rows / micro_batch_size)


RIGHT = {
    0: [
        threshold_max,
        threshold_numpy,
        threshold_sorted,
        threshold_tensor,
        threshold_reduce,
        threshold_recursive,
        threshold_eigenvalues,
        threshold_bisect,
        threshold_rates,
        threshold_p_norm,
        threshold_heap,
        threshold_fraction,
    ],
    1: [
        rescale_plain,
        rescale_powers,
        rescale_match,
        rescale_tensor,
        rescale_logs,
        rescale_fraction,
        rescale_object,
    ],
    2: [
        total_ceil,
        total_integers,
        total_nested,
        total_loop,
        total_divmod,
        total_numpy,
        total_float,
        total_range,
        total_split,
        total_recursive,
    ],
}

WRONG = {
    0: [
        (wrong_threshold_given, "One over the sum of the curvatures."),
        (wrong_threshold_one, "One over the largest: half the limit."),
        (wrong_threshold_sum, "It takes the sum, not the largest."),
        (wrong_threshold_mean, "It takes the mean, not the largest."),
        (wrong_threshold_min, "It takes the smallest."),
        (wrong_threshold_first, "It takes the first, in whatever order."),
        (wrong_threshold_last, "It takes the last, in whatever order."),
        (wrong_threshold_squared, "It squares the curvature."),
        (wrong_threshold_root, "It takes the root of the curvature."),
        (wrong_threshold_inverse, "It is the inverse."),
        (wrong_threshold_best, "This is the best rate, not the limit."),
        (wrong_threshold_norm, "It takes the root of the sum of squares."),
        (wrong_threshold_median, "It takes the median."),
        (wrong_threshold_integer, "It rounds the curvature to a whole number."),
        (wrong_threshold_mean_of_limits, "It takes the mean of the limits."),
        (wrong_threshold_largest_limit, "It takes the largest of the limits."),
        (wrong_threshold_up_to_one, "It knows no rate above 1."),
        (wrong_threshold_coarse, "It goes in steps of 0.1, not within 1 %."),
        (wrong_threshold_overshoots, "It stops where the sign flips, at 1 / c."),
        (wrong_threshold_all_run_away, "It waits until all directions run away."),
        (wrong_threshold_two, "It looks at the first two only."),
        (wrong_threshold_product, "It takes the product."),
        (wrong_threshold_condition, "It is the condition number."),
    ],
    1: [
        (wrong_rescale_inverse, "The ratio is upside down."),
        (wrong_rescale_linear, "Linear with Adam, too."),
        (wrong_rescale_root, "The root with SGD, too."),
        (wrong_rescale_swapped, "The rules are swapped."),
        (wrong_rescale_integer, "The ratio is rounded down."),
        (wrong_rescale_only_up, "A smaller batch keeps the rate."),
        (wrong_rescale_no_division, "It does not divide by the old size."),
        (wrong_rescale_root_of_rate, "It takes the root of the rate, too."),
        (wrong_rescale_root_above, "The old size is not under the root."),
        (wrong_rescale_doubles, "Right for a doubled batch only."),
        (wrong_rescale_same, "Adam's rate stays."),
        (wrong_rescale_square, "The square for Adam, not the root."),
        (wrong_rescale_adds, "It adds the ratio."),
        (wrong_rescale_half, "Half of the ratio, not its root."),
        (wrong_rescale_rounded, "It rounds to two places."),
        (wrong_rescale_low_rate, "Linear with Adam at low rates, not asked here."),
        (wrong_rescale_log, "The logarithm, not the root."),
        (wrong_rescale_integer_root, "The root is rounded down."),
        (wrong_rescale_difference, "It takes the growth, not the ratio."),
    ],
    2: [
        (wrong_total_floor, "It drops the short update."),
        (wrong_total_over_epochs, "Rows are carried over into the next epoch."),
        (wrong_total_one_process, "It ignores the processes."),
        (wrong_total_micro_batches, "It counts backward passes."),
        (wrong_total_times_steps, "It multiplies by the accumulation steps."),
        (wrong_total_times_processes, "It counts each process's updates."),
        (wrong_total_drops_short, "It drops an update of few micro-batches."),
        (wrong_total_drops_batch, "It drops a short micro-batch."),
        (wrong_total_round, "It rounds to the nearest."),
        (wrong_total_plus_one, "One too many where nothing is left."),
        (wrong_total_one_epoch, "It counts one epoch."),
        (wrong_total_fraction, "It returns a fraction."),
        (wrong_total_short_once, "The short update counts once in all."),
        (wrong_total_share_floor, "Rows that do not divide evenly are dropped."),
        (wrong_total_carried, "Micro-batches are carried into the next epoch."),
        (wrong_total_ceil_inside, "It divides by the processes, rounding down."),
        (wrong_total_divides_steps, "It divides by the accumulation steps."),
        (wrong_total_last_full, "It drops the last update, full or not."),
        (wrong_total_plain, "It ignores accumulation and processes."),
    ],
}

UNCLEAR = {
    0: [
        "May the list be sorted in place?",
        "No curvature at all (an empty list) is not excluded.",
    ],
    1: ["Any name but 'sgd' and 'adam', such as 'SGD' or 'adamw'."],
    2: [
        "Must it be an int, or may it be a whole float such as 30.0?",
        "No rows or no epochs: 0, I think.",
        "A sampler that pads the last rows takes some twice; here it does not.",
    ],
}
