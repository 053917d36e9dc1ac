"""Answers to the exercises of chapter 11, from the words of the questions alone."""

import copy
import itertools
import math
from fractions import Fraction

import numpy as np
import torch

# --- Exercise 0: accumulate(model, loss_fn, micro_batches) ---------------------------


def accumulate_weighted(model, loss_fn, micro_batches):
    total = sum(len(targets) for _, targets in micro_batches)
    for inputs, targets in micro_batches:
        (loss_fn(model(inputs), targets) * len(targets) / total).backward()


def accumulate_divides_at_the_end(model, loss_fn, micro_batches):
    rows = 0
    for inputs, targets in micro_batches:
        rows += inputs.shape[0]
        (inputs.shape[0] * loss_fn(model(inputs), targets)).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= rows


def accumulate_gradient_argument(model, loss_fn, micro_batches):
    sizes = np.array([x.size(0) for x, _ in micro_batches], dtype=float)
    for share, (x, y) in zip(sizes / sizes.sum(), micro_batches, strict=True):
        loss = loss_fn(model(x), y)
        loss.backward(gradient=torch.full_like(loss, float(share)))


def accumulate_autograd_grad(model, loss_fn, micro_batches):
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p) for p in parameters]
    count = 0
    for x, y in micro_batches:
        loss = loss_fn(model(x), y)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        for s, g in zip(sums, grads, strict=True):
            if g is not None:
                s += len(x) * g
        count += len(x)
    for parameter, s in zip(parameters, sums, strict=True):
        parameter.grad = s / count


def accumulate_running_mean(model, loss_fn, micro_batches):
    # after each micro-batch .grad is the gradient of the mean over the rows so far
    seen = 0
    for x, y in micro_batches:
        n = len(y)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(seen / (seen + n))
        seen += n
        (loss_fn(model(x), y) * (n / seen)).backward()


def accumulate_recursion(model, loss_fn, micro_batches):
    total = sum(x.shape[0] for x, _ in micro_batches)

    def rest(batches):
        if not batches:
            return
        x, y = batches[0]
        loss_fn(model(x), y).mul(x.shape[0]).div(total).backward()
        rest(batches[1:])

    rest(list(micro_batches))


def accumulate_loss_hook(model, loss_fn, micro_batches):
    total = sum(map(len, [y for _, y in micro_batches]))
    for x, y in reversed(micro_batches):
        loss = loss_fn(model(x), y)
        share = len(y) / total
        loss.register_hook(lambda g, share=share: g * share)
        loss.backward()


def accumulate_functional(model, loss_fn, micro_batches):
    weights = {k: p for k, p in model.named_parameters() if p.requires_grad}

    def loss_of(weights, x, y):
        return loss_fn(torch.func.functional_call(model, weights, (x,)), y)

    total = sum(len(x) for x, _ in micro_batches)
    for x, y in micro_batches:
        detached = {k: p.detach() for k, p in weights.items()}
        grads = torch.func.grad(loss_of)(detached, x, y)
        for k, p in weights.items():
            g = grads[k] * (len(x) / total)
            p.grad = g.clone() if p.grad is None else p.grad + g


def accumulate_returns_loss(model, loss_fn, micro_batches):
    # the mean loss comes back as a number; .grad is what was asked
    counts = [targets.size(dim=0) for _, targets in micro_batches]
    value = 0.0
    for count, (inputs, targets) in zip(counts, micro_batches, strict=True):
        share = Fraction(count, sum(counts))
        loss = float(share) * loss_fn(model(inputs), targets)
        torch.autograd.backward(loss)
        value += loss.item()
        del loss
    return value


def accumulate_mean_of_means(model, loss_fn, micro_batches):
    k = len(micro_batches)
    for inputs, targets in micro_batches:
        (loss_fn(model(inputs), targets) / k).backward()


def accumulate_sum_of_means(model, loss_fn, micro_batches):
    for inputs, targets in micro_batches:
        loss_fn(model(inputs), targets).backward()


def accumulate_sum_of_rows(model, loss_fn, micro_batches):
    for inputs, targets in micro_batches:
        (loss_fn(model(inputs), targets) * len(inputs)).backward()


def accumulate_one_graph(model, loss_fn, micro_batches):
    total = sum(len(y) for _, y in micro_batches)
    loss = sum(loss_fn(model(x), y) * len(y) for x, y in micro_batches)
    (loss / total).backward()


def accumulate_one_batch(model, loss_fn, micro_batches):
    inputs = torch.cat([x for x, _ in micro_batches])
    targets = torch.cat([y for _, y in micro_batches])
    loss_fn(model(inputs), targets).backward()


def accumulate_first_size(model, loss_fn, micro_batches):
    total = len(micro_batches[0][0]) * len(micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(x) / total).backward()


def accumulate_zero_in_between(model, loss_fn, micro_batches):
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        model.zero_grad()
        (loss_fn(model(x), y) * len(y) / total).backward()


def accumulate_also_moves(model, loss_fn, micro_batches):
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y) / total).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad


def accumulate_feature_count(model, loss_fn, micro_batches):
    total = sum(x.shape[-1] for x, _ in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * x.shape[-1] / total).backward()


def accumulate_drops_short(model, loss_fn, micro_batches):
    full = max(len(y) for _, y in micro_batches)
    kept = [(x, y) for x, y in micro_batches if len(y) == full]
    for x, y in kept:
        (loss_fn(model(x), y) / len(kept)).backward()


def accumulate_so_far(model, loss_fn, micro_batches):
    # divides by the rows seen so far, not by all of them
    seen = 0
    for x, y in micro_batches:
        seen += len(y)
        (loss_fn(model(x), y) * len(y) / seen).backward()


def accumulate_retains(model, loss_fn, micro_batches):
    total = sum(len(y) for _, y in micro_batches)
    losses = []
    for x, y in micro_batches:
        loss = loss_fn(model(x), y) * len(y) / total
        loss.backward(retain_graph=True)
        losses.append(loss)
    return losses


def accumulate_evaluation(model, loss_fn, micro_batches):
    model.eval()
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y) / total).backward()


def accumulate_clips(model, loss_fn, micro_batches):
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y) / total).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def accumulate_returns_only(model, loss_fn, micro_batches):
    total = sum(len(y) for _, y in micro_batches)
    parameters = list(model.parameters())
    sums = [torch.zeros_like(p) for p in parameters]
    for x, y in micro_batches:
        loss = loss_fn(model(x), y) * len(y) / total
        grads = torch.autograd.grad(loss, parameters)
        sums = [s + g for s, g in zip(sums, grads, strict=True)]
    return sums


def accumulate_forgets_to_add(model, loss_fn, micro_batches):
    total = sum(len(y) for _, y in micro_batches)
    parameters = list(model.parameters())
    for x, y in micro_batches:
        loss = loss_fn(model(x), y) * len(y) / total
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = g


def accumulate_empties_at_the_end(model, loss_fn, micro_batches):
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y) / total).backward()
    model.zero_grad()


# --- Exercise 1: update(model, loss_fn, optimizer, micro_batches, max_norm) ----------


def update_zero_first(model, loss_fn, optimizer, micro_batches, max_norm):
    optimizer.zero_grad()
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y) / total).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()


def update_zero_last(model, loss_fn, optimizer, micro_batches, max_norm):
    total = sum(x.shape[0] for x, _ in micro_batches)
    for x, y in micro_batches:
        loss = loss_fn(model(x), y)
        loss.backward(torch.tensor(x.shape[0] / total, dtype=loss.dtype))
    torch.nn.utils.clip_grad_norm_(list(model.parameters()), max_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def update_clips_by_hand(model, loss_fn, optimizer, micro_batches, max_norm):
    for parameter in model.parameters():
        parameter.grad = None
    rows = 0
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(x)).backward()
        rows += len(x)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = math.sqrt(sum(float((g / rows).square().sum()) for g in grads))
    factor = min(1.0, max_norm / norm) if norm > 0 else 1.0
    for grad in grads:
        grad.mul_(factor / rows)
    optimizer.step()


def update_closure(model, loss_fn, optimizer, micro_batches, max_norm):
    total = sum(len(y) for _, y in micro_batches)

    def closure():
        optimizer.zero_grad()
        value = 0.0
        for x, y in micro_batches:
            loss = loss_fn(model(x), y) * (len(y) / total)
            loss.backward()
            value += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        return value

    return optimizer.step(closure)


def update_autograd_grad(model, loss_fn, optimizer, micro_batches, max_norm):
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = sum(len(y) for _, y in micro_batches)
    sums = None
    for x, y in micro_batches:
        loss = len(y) / total * loss_fn(model(x), y)
        grads = torch.autograd.grad(loss, parameters)
        sums = (
            grads if sums is None else [s + g for s, g in zip(sums, grads, strict=True)]
        )
    norm = torch.cat([g.flatten() for g in sums]).norm()
    for p, g in zip(parameters, sums, strict=True):
        p.grad = g * max_norm / norm if norm > max_norm else g
    optimizer.step()


def update_two_step_clip(model, loss_fn, optimizer, micro_batches, max_norm):
    model.zero_grad(set_to_none=False)
    sizes = torch.tensor([len(y) for _, y in micro_batches], dtype=torch.float64)
    for w, (x, y) in zip((sizes / sizes.sum()).tolist(), micro_batches, strict=True):
        torch.mul(loss_fn(model(x), y), w).backward()
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    optimizer.step()
    return norm.item()


def update_scaled_max_norm(model, loss_fn, optimizer, micro_batches, max_norm):
    # sums over the rows, clipped to rows * max_norm, then divided
    optimizer.zero_grad()
    rows = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        loss_fn(model(x), y).mul(len(y)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm * rows)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.div_(rows)
    optimizer.step()


def update_clips_each(model, loss_fn, optimizer, micro_batches, max_norm):
    optimizer.zero_grad()
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y) / total).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()


def update_never_zeroes(model, loss_fn, optimizer, micro_batches, max_norm):
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y) / total).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()


def update_clips_values(model, loss_fn, optimizer, micro_batches, max_norm):
    optimizer.zero_grad()
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y) / total).backward()
    torch.nn.utils.clip_grad_value_(model.parameters(), max_norm)
    optimizer.step()


def update_clips_each_tensor(model, loss_fn, optimizer, micro_batches, max_norm):
    optimizer.zero_grad()
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y) / total).backward()
    for parameter in model.parameters():
        torch.nn.utils.clip_grad_norm_([parameter], max_norm)
    optimizer.step()


def update_mean_of_means(model, loss_fn, optimizer, micro_batches, max_norm):
    optimizer.zero_grad()
    for x, y in micro_batches:
        (loss_fn(model(x), y) / len(micro_batches)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()


def update_zero_in_between(model, loss_fn, optimizer, micro_batches, max_norm):
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        optimizer.zero_grad()
        (loss_fn(model(x), y) * len(y) / total).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()


def update_steps_each(model, loss_fn, optimizer, micro_batches, max_norm):
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        optimizer.zero_grad()
        (loss_fn(model(x), y) * len(y) / total).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()


def update_clips_after_step(model, loss_fn, optimizer, micro_batches, max_norm):
    optimizer.zero_grad()
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y) / total).backward()
    optimizer.step()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)


def update_always_scales(model, loss_fn, optimizer, micro_batches, max_norm):
    optimizer.zero_grad()
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y) / total).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.cat([g.flatten() for g in grads]).norm()
    for grad in grads:
        grad.mul_(max_norm / norm)
    optimizer.step()


def update_clips_sum(model, loss_fn, optimizer, micro_batches, max_norm):
    optimizer.zero_grad()
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= total
    optimizer.step()


def update_largest_entry(model, loss_fn, optimizer, micro_batches, max_norm):
    optimizer.zero_grad()
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y) / total).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm, norm_type=math.inf)
    optimizer.step()


def update_no_clipping(model, loss_fn, optimizer, micro_batches, max_norm):
    optimizer.zero_grad()
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y) / total).backward()
    optimizer.step()


def update_squared_norm(model, loss_fn, optimizer, micro_batches, max_norm):
    optimizer.zero_grad()
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y) / total).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = sum(g.square().sum() for g in grads)  # no square root
    for grad in grads:
        grad.mul_(torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    optimizer.step()


def update_zero_before_step(model, loss_fn, optimizer, micro_batches, max_norm):
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y) / total).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.zero_grad()
    optimizer.step()


def update_sum_of_means(model, loss_fn, optimizer, micro_batches, max_norm):
    optimizer.zero_grad()
    for x, y in micro_batches:
        loss_fn(model(x), y).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()


def update_max_norm_one(model, loss_fn, optimizer, micro_batches, max_norm):
    optimizer.zero_grad()
    total = sum(len(y) for _, y in micro_batches)
    for x, y in micro_batches:
        (loss_fn(model(x), y) * len(y) / total).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def update_clips_last_micro_batch(model, loss_fn, optimizer, micro_batches, max_norm):
    optimizer.zero_grad()
    total = sum(len(y) for _, y in micro_batches)
    for i, (x, y) in enumerate(micro_batches):
        if i == len(micro_batches) - 1:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        (loss_fn(model(x), y) * len(y) / total).backward()
    optimizer.step()


# --- Exercise 2: factors(items, steps) -----------------------------------------------


def factors_comprehension(items, steps):
    total = sum(map(sum, items))
    return [[n * steps * len(items) / total for n in row] for row in items]


def factors_numpy(items, steps):
    items = np.array(items, dtype=float)
    return items * (steps * items.shape[0] / items.sum())


def factors_tensor(items, steps):
    items = torch.tensor(items, dtype=torch.float64)
    return items / items.sum() * steps * len(items)


def factors_fractions(items, steps):
    total = sum(itertools.chain.from_iterable(items))
    unit = Fraction(steps * len(items), total)
    return tuple(tuple(unit * n for n in row) for row in items)


def factors_copy(items, steps):
    result = copy.deepcopy(items)
    total = 0
    for row in items:
        for n in row:
            total += n
    for p in range(len(items)):
        for k in range(len(items[p])):
            result[p][k] = steps * len(items) * items[p][k] / total
    return result


def factors_over_the_mean(items, steps):
    # an item's share against that of an average window of `steps` micro-batches
    average = sum(sum(row) for row in items) / (len(items) * steps)
    return [[n / average for n in row] for row in items]


def factors_map(items, steps):
    scale = len(items) * steps / math.fsum(n for row in items for n in row)
    return list(map(lambda row: list(map(scale.__mul__, map(float, row))), items))


def factors_einsum(items, steps):
    matrix = np.asarray(items, dtype=np.float64)
    total = np.einsum("pk->", matrix)
    return np.einsum("pk,,->pk", matrix, float(steps * len(matrix)), 1 / total).tolist()


def factors_short_window(items, steps):
    total = sum(map(sum, items))
    return [[n * len(row) * len(items) / total for n in row] for row in items]


def factors_no_processes(items, steps):
    total = sum(map(sum, items))
    return [[n * steps / total for n in row] for row in items]


def factors_own_total(items, steps):
    return [[n * steps / sum(row) for n in row] for row in items]


def factors_no_steps(items, steps):
    total = sum(map(sum, items))
    return [[n * len(items) / total for n in row] for row in items]


def factors_share_only(items, steps):
    total = sum(map(sum, items))
    return [[n / total for n in row] for row in items]


def factors_by_column(items, steps):
    columns = [sum(column) for column in zip(*items, strict=True)]
    return [[n * len(items) / columns[k] for k, n in enumerate(row)] for row in items]


def factors_all_one(items, steps):
    return [[1.0 for _ in row] for row in items]


def factors_inverse(items, steps):
    total = sum(map(sum, items))
    return [[total / (n * steps * len(items)) for n in row] for row in items]


def factors_divided_by_steps(items, steps):
    total = sum(map(sum, items))
    return [[n * len(items) / (total * steps) for n in row] for row in items]


def factors_whole_division(items, steps):
    total = sum(map(sum, items))
    return [[n * steps * len(items) // total for n in row] for row in items]


def factors_transposed(items, steps):
    total = sum(map(sum, items))
    rows = [[n * steps * len(items) / total for n in row] for row in items]
    return [list(column) for column in zip(*rows, strict=True)]


def factors_flat(items, steps):
    total = sum(map(sum, items))
    return [n * steps * len(items) / total for row in items for n in row]


def factors_two_processes(items, steps):
    total = sum(map(sum, items))
    return [[n * steps * 2 / total for n in row] for row in items]


def factors_over_largest(items, steps):
    largest = max(map(max, items))
    return [[n / largest for n in row] for row in items]


def factors_items_per_micro_batch(items, steps):
    average = sum(map(sum, items)) / sum(map(len, items))
    return [[n / average for n in row] for row in items]


def factors_first_process_total(items, steps):
    total = sum(items[0])
    return [[n * steps / total for n in row] for row in items]


def factors_of_window_only(items, steps):
    # right for one process and a full window
    k = len(items[0])
    total = sum(map(sum, items))
    return [[n * k / total for n in row] for row in items]


# --- Exercise 3: counts(rows, micro_batch_size, accumulation_steps) -------------------


def counts_ceil(rows, micro_batch_size, accumulation_steps):
    backwards = math.ceil(rows / micro_batch_size)
    steps = math.ceil(backwards / accumulation_steps)
    return backwards, steps, rows - (steps - 1) * micro_batch_size * accumulation_steps


def counts_or(rows, micro_batch_size, accumulation_steps):
    window = micro_batch_size * accumulation_steps
    return -(-rows // micro_batch_size), -(-rows // window), rows % window or window


def counts_simulation(rows, micro_batch_size, accumulation_steps):
    backwards = steps = in_window = waiting = 0
    left = rows
    while left > 0:
        taken = min(left, micro_batch_size)
        left -= taken
        backwards += 1
        waiting += 1
        in_window += taken
        if waiting == accumulation_steps or left == 0:
            last, in_window, waiting = in_window, 0, 0
            steps += 1
    return [backwards, steps, last]


def counts_split(rows, micro_batch_size, accumulation_steps):
    micro_batches = torch.arange(rows).split(micro_batch_size)
    starts = range(0, len(micro_batches), accumulation_steps)
    last = torch.cat(micro_batches[starts[-1] :])
    return len(micro_batches), len(starts), last.numel()


def counts_ranges(rows, micro_batch_size, accumulation_steps):
    window = micro_batch_size * accumulation_steps
    windows = range(0, rows, window)
    return len(range(0, rows, micro_batch_size)), len(windows), rows - windows[-1]


def counts_numpy(rows, micro_batch_size, accumulation_steps):
    update_of_row = np.arange(rows) // (micro_batch_size * accumulation_steps)
    sizes = np.bincount(update_of_row)
    backwards = np.unique(np.arange(rows) // micro_batch_size).size
    return np.int64(backwards), np.int64(sizes.size), sizes[-1]


def counts_recursion(rows, micro_batch_size, accumulation_steps):
    window = micro_batch_size * accumulation_steps
    if rows <= window:
        return (rows + micro_batch_size - 1) // micro_batch_size, 1, rows
    b, s, last = counts_recursion(rows - window, micro_batch_size, accumulation_steps)
    return b + accumulation_steps, s + 1, last


def counts_off_by_one_down(rows, micro_batch_size, accumulation_steps):
    window = micro_batch_size * accumulation_steps
    whole, rest = divmod(rows - 1, window)
    return (rows - 1) // micro_batch_size + 1, whole + 1, rest + 1


def counts_floor(rows, micro_batch_size, accumulation_steps):
    backwards = rows // micro_batch_size
    steps = backwards // accumulation_steps
    return backwards, steps, micro_batch_size * accumulation_steps


def counts_rest_zero(rows, micro_batch_size, accumulation_steps):
    window = micro_batch_size * accumulation_steps
    return math.ceil(rows / micro_batch_size), math.ceil(rows / window), rows % window


def counts_drops_window(rows, micro_batch_size, accumulation_steps):
    backwards = math.ceil(rows / micro_batch_size)
    steps = backwards // accumulation_steps
    window = micro_batch_size * accumulation_steps
    return backwards, steps, rows % window or window


def counts_last_micro_batch(rows, micro_batch_size, accumulation_steps):
    backwards = math.ceil(rows / micro_batch_size)
    steps = math.ceil(backwards / accumulation_steps)
    return backwards, steps, rows % micro_batch_size or micro_batch_size


def counts_last_in_micro_batches(rows, micro_batch_size, accumulation_steps):
    backwards = math.ceil(rows / micro_batch_size)
    steps = math.ceil(backwards / accumulation_steps)
    return backwards, steps, backwards - (steps - 1) * accumulation_steps


def counts_last_all_full(rows, micro_batch_size, accumulation_steps):
    backwards = math.ceil(rows / micro_batch_size)
    steps = math.ceil(backwards / accumulation_steps)
    return backwards, steps, micro_batch_size * accumulation_steps


def counts_short_batch_is_full(rows, micro_batch_size, accumulation_steps):
    backwards = math.ceil(rows / micro_batch_size)
    steps = math.ceil(backwards / accumulation_steps)
    left = backwards - (steps - 1) * accumulation_steps
    return backwards, steps, left * micro_batch_size


def counts_order(rows, micro_batch_size, accumulation_steps):
    window = micro_batch_size * accumulation_steps
    backwards, steps = math.ceil(rows / micro_batch_size), math.ceil(rows / window)
    return steps, backwards, rows % window or window


def counts_plus_one(rows, micro_batch_size, accumulation_steps):
    window = micro_batch_size * accumulation_steps
    return rows // micro_batch_size + 1, rows // window + 1, rows % window or window


def counts_broken_numbers(rows, micro_batch_size, accumulation_steps):
    window = micro_batch_size * accumulation_steps
    return rows / micro_batch_size, rows / window, rows % window or window


def counts_round(rows, micro_batch_size, accumulation_steps):
    backwards = round(rows / micro_batch_size)
    steps = round(backwards / accumulation_steps)
    return backwards, steps, rows - (steps - 1) * micro_batch_size * accumulation_steps


def counts_steps_from_rows(rows, micro_batch_size, accumulation_steps):
    backwards = math.ceil(rows / micro_batch_size)
    steps = math.ceil(rows / accumulation_steps)
    window = micro_batch_size * accumulation_steps
    return backwards, steps, rows % window or window


def counts_step_each(rows, micro_batch_size, accumulation_steps):
    backwards = math.ceil(rows / micro_batch_size)
    window = micro_batch_size * accumulation_steps
    return backwards, backwards, rows % window or window


def counts_average_rows(rows, micro_batch_size, accumulation_steps):
    backwards = math.ceil(rows / micro_batch_size)
    steps = math.ceil(backwards / accumulation_steps)
    return backwards, steps, rows // steps


def counts_backwards_by_window(rows, micro_batch_size, accumulation_steps):
    window = micro_batch_size * accumulation_steps
    steps = math.ceil(rows / window)
    return steps * accumulation_steps, steps, rows % window or window


def counts_two_of_three(rows, micro_batch_size, accumulation_steps):
    window = micro_batch_size * accumulation_steps
    return math.ceil(rows / micro_batch_size), math.ceil(rows / window)


RIGHT = {
    0: [
        accumulate_weighted,
        accumulate_divides_at_the_end,
        accumulate_gradient_argument,
        accumulate_autograd_grad,
        accumulate_running_mean,
        accumulate_recursion,
        accumulate_loss_hook,
        accumulate_functional,
        accumulate_returns_loss,
    ],
    1: [
        update_zero_first,
        update_zero_last,
        update_clips_by_hand,
        update_closure,
        update_autograd_grad,
        update_two_step_clip,
        update_scaled_max_norm,
    ],
    2: [
        factors_comprehension,
        factors_numpy,
        factors_tensor,
        factors_fractions,
        factors_copy,
        factors_over_the_mean,
        factors_map,
        factors_einsum,
    ],
    3: [
        counts_ceil,
        counts_or,
        counts_simulation,
        counts_split,
        counts_ranges,
        counts_numpy,
        counts_recursion,
        counts_off_by_one_down,
    ],
}

WRONG = {
    0: [
        (accumulate_mean_of_means, "the mean of the means: wrong for unequal sizes"),
        (accumulate_sum_of_means, "divides by nothing"),
        (accumulate_sum_of_rows, "the gradient of the sum over the rows"),
        (accumulate_one_graph, "keeps the activations of all micro-batches"),
        (accumulate_one_batch, "runs all rows at once and keeps all activations"),
        (accumulate_first_size, "takes all micro-batches to be as large as the first"),
        (accumulate_zero_in_between, "leaves the last micro-batch's gradient only"),
        (accumulate_also_moves, "changes the weights"),
        (accumulate_feature_count, "weighs by the features and not by the rows"),
        (accumulate_drops_short, "leaves the short micro-batches out"),
        (accumulate_so_far, "divides by the rows so far, not by all"),
        (accumulate_retains, "retain_graph and the list keep all activations"),
        (accumulate_evaluation, "switches to eval: no dropout in the gradient"),
        (accumulate_clips, "clips the gradient, which nobody asked"),
        (accumulate_returns_only, "returns the gradient and leaves .grad empty"),
        (accumulate_forgets_to_add, "the last micro-batch overwrites the others"),
        (accumulate_empties_at_the_end, "empties .grad at the end"),
    ],
    1: [
        (update_clips_each, "clips after every micro-batch, not once"),
        (update_never_zeroes, "the second call adds to the first one's gradient"),
        (update_clips_values, "clips each entry and not the norm"),
        (update_clips_each_tensor, "clips each tensor's own norm"),
        (update_mean_of_means, "the mean of the means: wrong for unequal sizes"),
        (update_zero_in_between, "keeps the last micro-batch's gradient only"),
        (update_steps_each, "makes an update for each micro-batch"),
        (update_clips_after_step, "clips when the step is made already"),
        (update_always_scales, "scales a small gradient up to max_norm, too"),
        (update_clips_sum, "clips the sum over the rows, and divides then"),
        (update_largest_entry, "the norm is the largest entry, not the 2-norm"),
        (update_no_clipping, "does not clip"),
        (update_squared_norm, "forgets the square root in the norm"),
        (update_zero_before_step, "empties the gradient before the step"),
        (update_sum_of_means, "divides by nothing"),
        (update_max_norm_one, "the norm is hard-coded as 1"),
        (update_clips_last_micro_batch, "clips before the last micro-batch is in"),
    ],
    2: [
        (factors_short_window, "takes the window's length for steps: wrong if short"),
        (factors_no_processes, "forgets that DDP takes the mean over the processes"),
        (factors_own_total, "divides by the items of its own process only"),
        (factors_no_steps, "forgets that backward divides by steps"),
        (factors_share_only, "undoes neither of the two divisions"),
        (factors_by_column, "divides by the items of one micro-batch number"),
        (factors_all_one, "leaves the mean of the means"),
        (factors_inverse, "upside down"),
        (factors_divided_by_steps, "divides by steps once more"),
        (factors_whole_division, "// rounds the factors down"),
        (factors_transposed, "returns them in the transposed shape"),
        (factors_flat, "returns one flat list"),
        (factors_two_processes, "two processes are taken for granted"),
        (factors_over_largest, "divides by the largest micro-batch"),
        (factors_items_per_micro_batch, "takes the micro-batches there are for steps"),
        (factors_first_process_total, "takes all processes to be like the first"),
        (factors_of_window_only, "right for one process and a full window only"),
    ],
    3: [
        (counts_floor, "drops the short micro-batch and the short window"),
        (counts_rest_zero, "0 rows in the last update where all are full"),
        (counts_drops_window, "makes no step for the short window"),
        (counts_last_micro_batch, "the rows of the last micro-batch, not update"),
        (counts_last_in_micro_batches, "counts micro-batches in place of rows"),
        (counts_last_all_full, "takes the last update to be full"),
        (counts_short_batch_is_full, "takes the last micro-batch to be full"),
        (counts_order, "the steps before the backward passes"),
        (counts_plus_one, "one too many where the rows divide evenly"),
        (counts_broken_numbers, "rounds nowhere"),
        (counts_round, "rounds to the nearest instead of up"),
        (counts_steps_from_rows, "divides the rows by the accumulation steps"),
        (counts_step_each, "a step for every backward pass"),
        (counts_average_rows, "the mean of the rows of an update"),
        (counts_backwards_by_window, "fills the short window up"),
        (counts_two_of_three, "leaves the rows of the last update out"),
    ],
}

UNCLEAR = {
    0: [
        "Row by row (each row a micro-batch of its own) keeps even less and gives the"
        " same gradient, but not for a model with batch normalization.",
        "In the plain loop the names `outputs` and `loss` hold the last micro-batch's"
        " output during the next forward pass: is that `keeping activations`?",
        "Is the number of rows len(inputs)? For a loss over tokens or pixels the mean is"
        " over more than the first axis (the same unless their number differs).",
    ],
    1: [
        "All rows in one torch.cat give the right update; the ban on keeping more than"
        " one micro-batch's activations stands in exercise 0 only.",
        "That sizes may differ and that loss_fn is a mean is said in exercise 0 only.",
        "Clip the parameters of the model or of the optimizer, where they differ?",
        "clip_grad_norm_ divides by norm + 1e-6, clipping by hand does not.",
    ],
    2: [
        "May the processes have different numbers of micro-batches (a ragged list)? The"
        " answers factors_numpy, factors_tensor and factors_einsum take it to be even.",
        "`in the shape of items`: is an array or a tensor as good as nested lists?",
    ],
    3: [
        "rows = 0 is not spoken of.",
    ],
}
