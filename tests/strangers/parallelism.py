"""Answers to the exercises of chapter 12, from the words of the questions alone."""

import collections
import itertools
from fractions import Fraction

import numpy as np
import torch
from torch.nn import functional as F

# --- Exercise 0: your_gradients(model, loss_fn, inputs, targets, all_reduce, n) -------


def gradients_count_first(model, loss_fn, inputs, targets, all_reduce, n):
    model.zero_grad()
    total = all_reduce(torch.tensor(float(len(targets))))
    (loss_fn(model(inputs), targets) * len(targets) / total).backward()
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = all_reduce(parameter.grad)


def gradients_divide_last(model, loss_fn, inputs, targets, all_reduce, n):
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    rows = inputs.shape[0]
    (rows * loss_fn(model(inputs), targets)).backward()
    sums = [all_reduce(parameter.grad) for parameter in parameters]
    total = all_reduce(torch.tensor([rows]))
    for parameter, s in zip(parameters, sums, strict=True):
        parameter.grad = s / total


def gradients_one_bucket(model, loss_fn, inputs, targets, all_reduce, n):
    # all gradients and the count in one vector: a single all_reduce
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = loss_fn(model(inputs), targets)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    parts = [
        torch.zeros_like(p).flatten() if g is None else g.flatten() * len(inputs)
        for p, g in zip(parameters, grads, strict=True)
    ]
    count = torch.full((1,), len(inputs), dtype=parts[0].dtype)
    *sums, total = all_reduce(torch.cat([*parts, count])).split(
        [p.numel() for p in parameters] + [1]
    )
    for parameter, s in zip(parameters, sums, strict=True):
        parameter.grad = (s / total).view_as(parameter).clone()


def gradients_scaled_mean(model, loss_fn, inputs, targets, all_reduce, n):
    # the plain mean over n processes, with each loss scaled to make it right
    model.zero_grad(set_to_none=True)
    mean_rows = all_reduce(torch.tensor(len(inputs), dtype=torch.float64)) / n
    loss = loss_fn(model(inputs), targets)
    loss.backward(torch.full_like(loss, len(inputs) / mean_rows.item()))
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):
        own = parameter.grad if parameter.grad is not None else parameter * 0
        parameter.grad = all_reduce(own.detach()) / n


def gradients_hooks(model, loss_fn, inputs, targets, all_reduce, n):
    model.zero_grad()
    share = len(targets) / all_reduce(torch.tensor(len(targets))).item()
    live = [p for p in model.parameters() if p.requires_grad]
    hooks = [p.register_hook(lambda g: g * share) for p in live]
    loss_fn(model(inputs), targets).backward()
    for hook in hooks:
        hook.remove()
    for p in live:
        p.grad = all_reduce(torch.zeros_like(p) if p.grad is None else p.grad)


def gradients_in_place(model, loss_fn, inputs, targets, all_reduce, n):
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loss_fn(model(inputs), targets).backward()
    rows = torch.ones(len(inputs)).sum()
    total = all_reduce(rows)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.grad.mul_(rows).copy_(all_reduce(parameter.grad)).div_(total)


class Gradients:
    def __call__(self, model, loss_fn, inputs, targets, all_reduce, n):
        named = [(k, p) for k, p in model.named_parameters() if p.requires_grad]
        values = {k: p.detach() for k, p in named}

        def loss_of(values):
            outputs = torch.func.functional_call(model, values, (inputs,))
            return loss_fn(outputs, targets) * inputs.size(0)

        grads = torch.func.grad(loss_of)(values)
        total = all_reduce(torch.tensor(float(inputs.size(0))))
        for k, p in reversed(named):
            p.grad = all_reduce(grads[k]).div(total)
        return None


def gradients_mean_of_means(model, loss_fn, inputs, targets, all_reduce, n):
    loss_fn(model(inputs), targets).backward()
    for parameter in model.parameters():
        parameter.grad = all_reduce(parameter.grad) / n


def gradients_sum_of_means(model, loss_fn, inputs, targets, all_reduce, n):
    loss_fn(model(inputs), targets).backward()
    for parameter in model.parameters():
        parameter.grad = all_reduce(parameter.grad)


def gradients_sum_of_rows(model, loss_fn, inputs, targets, all_reduce, n):
    (loss_fn(model(inputs), targets) * len(inputs)).backward()
    for parameter in model.parameters():
        parameter.grad = all_reduce(parameter.grad)


def gradients_own_rows_times_n(model, loss_fn, inputs, targets, all_reduce, n):
    total = len(inputs) * n
    (loss_fn(model(inputs), targets) * len(inputs)).backward()
    for parameter in model.parameters():
        parameter.grad = all_reduce(parameter.grad) / total


def gradients_no_weight(model, loss_fn, inputs, targets, all_reduce, n):
    total = all_reduce(torch.tensor(float(len(inputs))))
    loss_fn(model(inputs), targets).backward()
    for parameter in model.parameters():
        parameter.grad = all_reduce(parameter.grad) / total


def gradients_weighted_then_n(model, loss_fn, inputs, targets, all_reduce, n):
    total = all_reduce(torch.tensor(float(len(inputs))))
    (loss_fn(model(inputs), targets) * len(inputs) / total).backward()
    for parameter in model.parameters():
        parameter.grad = all_reduce(parameter.grad) / n


def gradients_result_ignored(model, loss_fn, inputs, targets, all_reduce, n):
    total = all_reduce(torch.tensor(float(len(inputs))))
    (loss_fn(model(inputs), targets) * len(inputs) / total).backward()
    for parameter in model.parameters():
        all_reduce(parameter.grad)


def gradients_total_ignored(model, loss_fn, inputs, targets, all_reduce, n):
    total = torch.tensor(float(len(inputs)))
    all_reduce(total)
    (loss_fn(model(inputs), targets) * len(inputs)).backward()
    for parameter in model.parameters():
        parameter.grad = all_reduce(parameter.grad) / total


def gradients_returned_only(model, loss_fn, inputs, targets, all_reduce, n):
    total = all_reduce(torch.tensor(float(len(inputs))))
    loss = loss_fn(model(inputs), targets) * len(inputs) / total
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return [all_reduce(grad) for grad in grads]


def gradients_row_by_row(model, loss_fn, inputs, targets, all_reduce, n):
    # as many calls as rows: the processes do not call equally often
    total = all_reduce(torch.tensor(float(len(inputs))))
    parameters = list(model.parameters())
    sums = [torch.zeros_like(p) for p in parameters]
    for i in range(len(inputs)):
        loss = loss_fn(model(inputs[i : i + 1]), targets[i : i + 1]) / total
        grads = torch.autograd.grad(loss, parameters)
        sums = [s + all_reduce(g) for s, g in zip(sums, grads, strict=True)]
    for parameter, s in zip(parameters, sums, strict=True):
        parameter.grad = s


def gradients_averages_weights(model, loss_fn, inputs, targets, all_reduce, n):
    loss_fn(model(inputs), targets).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
            parameter.copy_(all_reduce(parameter.detach()) / n)


def gradients_also_steps(model, loss_fn, inputs, targets, all_reduce, n):
    total = all_reduce(torch.tensor(float(len(inputs))))
    (loss_fn(model(inputs), targets) * len(inputs) / total).backward()
    for parameter in model.parameters():
        parameter.grad = all_reduce(parameter.grad)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.01 * parameter.grad


def gradients_no_exchange(model, loss_fn, inputs, targets, all_reduce, n):
    total = all_reduce(torch.tensor(float(len(inputs))))
    (loss_fn(model(inputs), targets) * len(inputs) / total).backward()


def gradients_by_columns(model, loss_fn, inputs, targets, all_reduce, n):
    columns = inputs.shape[-1]
    total = all_reduce(torch.tensor(float(columns)))
    (loss_fn(model(inputs), targets) * columns / total).backward()
    for parameter in model.parameters():
        parameter.grad = all_reduce(parameter.grad)


def gradients_weights_only(model, loss_fn, inputs, targets, all_reduce, n):
    # forgets the biases: parameters of one axis stay local
    total = all_reduce(torch.tensor(float(len(inputs))))
    (loss_fn(model(inputs), targets) * len(inputs) / total).backward()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.grad = all_reduce(parameter.grad)


def gradients_reduces_loss(model, loss_fn, inputs, targets, all_reduce, n):
    # the sum that comes back from the others carries no graph of theirs
    total = all_reduce(torch.tensor(float(len(inputs))))
    loss = loss_fn(model(inputs), targets) * len(inputs) / total
    others = all_reduce(loss.detach()) - loss.detach()
    (loss + others).backward()


def gradients_small_process_waits(model, loss_fn, inputs, targets, all_reduce, n):
    # a process with one row does not take part in the gradients
    total = all_reduce(torch.tensor(float(len(inputs))))
    (loss_fn(model(inputs), targets) * len(inputs) / total).backward()
    if len(inputs) > 1:
        for parameter in model.parameters():
            parameter.grad = all_reduce(parameter.grad)


# --- Exercise 1: your_memory(parameters, devices, stage) ------------------------------


def memory_branches(parameters, devices, stage):
    if stage == 0:
        return 16 * parameters
    if stage == 1:
        return 4 * parameters + 12 * parameters / devices
    if stage == 2:
        return 2 * parameters + 14 * parameters / devices
    return 16 * parameters / devices


def memory_split_where(parameters, devices, stage):
    weights, grads, state = 2, 2, 4 + 4 + 4
    per = (
        weights / (devices if stage >= 3 else 1)
        + grads / (devices if stage >= 2 else 1)
        + state / (devices if stage >= 1 else 1)
    )
    return per * parameters


def memory_table(parameters, devices, stage):
    shared = {0: 0, 1: 12, 2: 14, 3: 16}[stage]
    return parameters * (16 - shared) + Fraction(parameters * shared, devices)


def memory_numpy(parameters, devices, stage):
    bytes_each = np.array([12.0, 2.0, 2.0])  # state, gradients, weights
    divided = np.arange(3) < stage
    return parameters * (bytes_each / np.where(divided, devices, 1)).sum()


def memory_tensor(parameters, devices, stage):
    sizes = torch.tensor([12, 2, 2], dtype=torch.float64) * parameters
    sizes[:stage] /= devices
    return sizes.sum()


def memory_accumulated(parameters, devices, stage):
    cut = [0, *itertools.accumulate((12, 2, 2))][stage]
    return 16 * parameters - cut * parameters * (devices - 1) / devices


memory_polynomial = lambda parameters, devices, stage: (  # noqa: E731
    parameters * (16 * devices - (devices - 1) * (0, 12, 14, 16)[stage]) / devices
)


def memory_recursion(parameters, devices, stage):
    if stage == 0:
        return float(16 * parameters)
    moved = (12, 2, 2)[stage - 1] * parameters
    return memory_recursion(parameters, devices, stage - 1) - moved + moved / devices


def memory_no_master(parameters, devices, stage):
    kept = [12, 4, 2, 0][stage] * parameters
    return kept + (12 * parameters - kept) / devices


def memory_state_of_16_bits(parameters, devices, stage):
    weights, grads, state = 2 * parameters, 2 * parameters, 6 * parameters
    state = state / devices if stage >= 1 else state
    grads = grads / devices if stage >= 2 else grads
    weights = weights / devices if stage >= 3 else weights
    return weights + grads + state


def memory_all_in_32_bits(parameters, devices, stage):
    weights, grads, state = 4 * parameters, 4 * parameters, 8 * parameters
    state = state / devices if stage >= 1 else state
    grads = grads / devices if stage >= 2 else grads
    weights = weights / devices if stage >= 3 else weights
    return weights + grads + state


def memory_grads_before_state(parameters, devices, stage):
    weights, grads, state = 2 * parameters, 2 * parameters, 12 * parameters
    grads = grads / devices if stage >= 1 else grads
    state = state / devices if stage >= 2 else state
    weights = weights / devices if stage >= 3 else weights
    return weights + grads + state


def memory_grads_stay(parameters, devices, stage):
    weights, grads, state = 2 * parameters, 2 * parameters, 12 * parameters
    state = state / devices if stage >= 1 else state
    weights = weights / devices if stage >= 3 else weights
    return weights + grads + state


def memory_master_stays(parameters, devices, stage):
    # the 32-bit copy is kept whole on every device
    weights, grads, moments = 2 * parameters, 2 * parameters, 8 * parameters
    moments = moments / devices if stage >= 1 else moments
    grads = grads / devices if stage >= 2 else grads
    weights = weights / devices if stage >= 3 else weights
    return weights + grads + moments + 4 * parameters


def memory_only_one_part(parameters, devices, stage):
    # each stage divides its own part and no longer that of the stage before
    parts = [12 * parameters, 2 * parameters, 2 * parameters]
    if stage:
        parts[stage - 1] /= devices
    return sum(parts)


def memory_one_stage_late(parameters, devices, stage):
    weights, grads, state = 2 * parameters, 2 * parameters, 12 * parameters
    state = state / devices if stage > 1 else state
    grads = grads / devices if stage > 2 else grads
    weights = weights / devices if stage > 3 else weights
    return weights + grads + state


def memory_always_divided(parameters, devices, stage):
    return 16 * parameters / devices


def memory_of_all_devices(parameters, devices, stage):
    weights, grads, state = 2 * parameters, 2 * parameters, 12 * parameters
    state = state if stage >= 1 else state * devices
    grads = grads if stage >= 2 else grads * devices
    weights = weights if stage >= 3 else weights * devices
    return weights + grads + state


def memory_gibibytes(parameters, devices, stage):
    weights, grads, state = 2 * parameters, 2 * parameters, 12 * parameters
    state = state / devices if stage >= 1 else state
    grads = grads / devices if stage >= 2 else grads
    weights = weights / devices if stage >= 3 else weights
    return (weights + grads + state) / 2**30


def memory_bits(parameters, devices, stage):
    weights, grads, state = 16 * parameters, 16 * parameters, 96 * parameters
    state = state / devices if stage >= 1 else state
    grads = grads / devices if stage >= 2 else grads
    weights = weights / devices if stage >= 3 else weights
    return weights + grads + state


def memory_eight_devices(parameters, devices, stage):
    weights, grads, state = 2 * parameters, 2 * parameters, 12 * parameters
    state = state / 8 if stage >= 1 else state
    grads = grads / 8 if stage >= 2 else grads
    weights = weights / 8 if stage >= 3 else weights
    return weights + grads + state


def memory_state_only(parameters, devices, stage):
    return 12 * parameters / (devices if stage >= 1 else 1)


def memory_one_moment(parameters, devices, stage):
    weights, grads, state = 2 * parameters, 2 * parameters, 8 * parameters
    state = state / devices if stage >= 1 else state
    grads = grads / devices if stage >= 2 else grads
    weights = weights / devices if stage >= 3 else weights
    return weights + grads + state


def memory_stage_three_keeps_weights(parameters, devices, stage):
    weights, grads, state = 2 * parameters, 2 * parameters, 12 * parameters
    state = state / devices if stage >= 1 else state
    grads = grads / devices if stage >= 2 else grads
    return weights + grads + state


# --- Exercise 2: your_mlp(x, up, up_bias, down, bias, rank, all_reduce) ---------------


def mlp_bias_after(x, up, up_bias, down, bias, rank, all_reduce):
    hidden = torch.relu(x @ up.T + up_bias)
    return all_reduce(hidden @ down.T) + bias


def mlp_bias_of_rank_zero(x, up, up_bias, down, bias, rank, all_reduce):
    part = F.linear(F.relu(F.linear(x, up, up_bias)), down, bias if rank == 0 else None)
    return all_reduce(part)


def mlp_einsum(x, up, up_bias, down, bias, rank, all_reduce):
    hidden = (torch.einsum("...i,hi->...h", x, up) + up_bias).clamp(min=0)
    return bias.add(all_reduce(torch.einsum("...h,oh->...o", hidden, down)))


def mlp_masked_bias(x, up, up_bias, down, bias, rank, all_reduce):
    hidden = torch.maximum(torch.matmul(x, up.t()) + up_bias, torch.zeros(()).to(x))
    return all_reduce(hidden.matmul(down.t()) + bias * float(rank == 0))


def mlp_by_neurons(x, up, up_bias, down, bias, rank, all_reduce):
    # one hidden neuron after the other
    part = torch.zeros(*x.shape[:-1], down.shape[0], dtype=x.dtype)
    for row, b, column in zip(up, up_bias, down.T, strict=True):
        part = part + F.relu(x @ row + b)[..., None] * column
    return bias + all_reduce(part)


def mlp_bias_as_column(x, up, up_bias, down, bias, rank, all_reduce):
    # the first bias as a column of ones next to x
    ones = torch.ones_like(x[..., :1])
    wide = torch.cat([x, ones], dim=-1) @ torch.cat([up, up_bias[:, None]], dim=1).mT
    return all_reduce(torch.where(wide > 0, wide, 0) @ down.mT) + bias


def mlp_transposed(x, up, up_bias, down, bias, rank, all_reduce):
    flat = x.reshape(-1, x.shape[-1])
    hidden = torch.addmm(up_bias[:, None], up, flat.T).relu()
    total = all_reduce((down @ hidden).T.contiguous())
    return (total + bias).reshape(*x.shape[:-1], -1)


class Mlp:
    def __call__(self, x, up, up_bias, down, bias, rank, all_reduce):
        first = torch.nn.Linear(up.shape[1], up.shape[0], dtype=x.dtype)
        first.weight, first.bias = torch.nn.Parameter(up), torch.nn.Parameter(up_bias)
        with torch.no_grad():
            return all_reduce(torch.nn.ReLU()(first(x)) @ down.T) + bias


def mlp_bias_on_every_rank(x, up, up_bias, down, bias, rank, all_reduce):
    hidden = torch.relu(x @ up.T + up_bias)
    return all_reduce(hidden @ down.T + bias)


def mlp_no_exchange(x, up, up_bias, down, bias, rank, all_reduce):
    return torch.relu(x @ up.T + up_bias) @ down.T + bias


def mlp_reduces_hidden(x, up, up_bias, down, bias, rank, all_reduce):
    hidden = all_reduce(torch.relu(x @ up.T + up_bias))
    return hidden @ down.T + bias


def mlp_relu_at_the_end(x, up, up_bias, down, bias, rank, all_reduce):
    return torch.relu(all_reduce((x @ up.T + up_bias) @ down.T) + bias)


def mlp_no_relu(x, up, up_bias, down, bias, rank, all_reduce):
    return all_reduce((x @ up.T + up_bias) @ down.T) + bias


def mlp_no_up_bias(x, up, up_bias, down, bias, rank, all_reduce):
    return all_reduce(torch.relu(x @ up.T) @ down.T) + bias


def mlp_up_bias_of_rank_zero(x, up, up_bias, down, bias, rank, all_reduce):
    hidden = x @ up.T
    if rank == 0:
        hidden = hidden + up_bias
    return all_reduce(torch.relu(hidden) @ down.T) + bias


def mlp_bias_on_rank_zero_after(x, up, up_bias, down, bias, rank, all_reduce):
    # the others return a result without the bias
    total = all_reduce(torch.relu(x @ up.T + up_bias) @ down.T)
    return total + bias if rank == 0 else total


def mlp_no_bias(x, up, up_bias, down, bias, rank, all_reduce):
    return all_reduce(torch.relu(x @ up.T + up_bias) @ down.T)


def mlp_two_exchanges(x, up, up_bias, down, bias, rank, all_reduce):
    part = all_reduce(torch.relu(x @ up.T + up_bias) @ down.T)
    return all_reduce(part) + bias


def mlp_result_ignored(x, up, up_bias, down, bias, rank, all_reduce):
    part = torch.relu(x @ up.T + up_bias) @ down.T
    all_reduce(part)
    return part + bias


def mlp_rank_zero_only(x, up, up_bias, down, bias, rank, all_reduce):
    part = torch.relu(x @ up.T + up_bias) @ down.T
    if rank == 0:
        return all_reduce(part) + bias
    return part + bias


def mlp_bias_over_rank(x, up, up_bias, down, bias, rank, all_reduce):
    part = torch.relu(x @ up.T + up_bias) @ down.T
    return all_reduce(part + bias / (rank + 1))


def mlp_relu_of_sum(x, up, up_bias, down, bias, rank, all_reduce):
    # relu(x up^T) + up_bias in place of relu(x up^T + up_bias)
    return all_reduce((torch.relu(x @ up.T) + up_bias) @ down.T) + bias


def mlp_not_transposed(x, up, up_bias, down, bias, rank, all_reduce):
    # fails unless the parts happen to be square
    return all_reduce(torch.relu(x @ up + up_bias) @ down) + bias


def mlp_mean(x, up, up_bias, down, bias, rank, all_reduce):
    part = torch.relu(x @ up.T + up_bias) @ down.T
    n = all_reduce(torch.ones_like(part))
    return all_reduce(part) / n + bias


def mlp_gelu(x, up, up_bias, down, bias, rank, all_reduce):
    return all_reduce(F.gelu(x @ up.T + up_bias) @ down.T) + bias


# --- Exercise 3: your_order(stage, stages, micro_batches) -----------------------------


def order_three_parts(stage, stages, micro_batches):
    ahead = min(stages - stage - 1, micro_batches)
    order = [("F", i) for i in range(ahead)]
    for i in range(ahead, micro_batches):
        order += [("F", i), ("B", i - ahead)]
    order += [("B", i) for i in range(micro_batches - ahead, micro_batches)]
    return order


def order_backward_first(stage, stages, micro_batches):
    # fill up to the limit, then each backward makes room for a forward
    held = min(stages - stage, micro_batches)
    order = [("F", i) for i in range(held)]
    for i in range(micro_batches):
        order.append(("B", i))
        if i + held < micro_batches:
            order.append(("F", i + held))
    return order


def order_counters(stage, stages, micro_batches):
    order, forwards, backwards = [], 0, 0
    while backwards < micro_batches:
        if forwards < micro_batches and forwards - backwards < stages - stage:
            order.append(("F", forwards))
            forwards += 1
        else:
            order.append(("B", backwards))
            backwards += 1
    return order


def order_sorted(stage, stages, micro_batches):
    # F i at 2 i, B i right after F (i + p - s - 1)
    times = [((2 * i, 0), ("F", i)) for i in range(micro_batches)]
    late = 2 * (stages - stage - 1) + 1
    times += [((2 * i + late, 1), ("B", i)) for i in range(micro_batches)]
    return [work for _, work in sorted(times)]


def order_queue(stage, stages, micro_batches):
    order, held = [], collections.deque()
    for i in range(micro_batches):
        order.append(("F", i))
        held.append(i)
        if len(held) == stages - stage:
            order.append(("B", held.popleft()))
    order.extend(("B", i) for i in held)
    return order


def order_zip(stage, stages, micro_batches):
    ahead = stages - stage - 1
    forwards = [("F", i) for i in range(micro_batches)] + [None] * ahead
    backwards = [None] * ahead + [("B", i) for i in range(micro_batches)]
    pairs = zip(forwards, backwards, strict=True)
    return [work for pair in pairs for work in pair if work is not None]


def order_recursion(stage, stages, micro_batches):
    def rest(f, b):
        if b == micro_batches:
            return []
        if f < min(micro_batches, b + stages - stage):
            return [("F", f), *rest(f + 1, b)]
        return [("B", b), *rest(f, b + 1)]

    return rest(0, 0)


def order_numpy(stage, stages, micro_batches):
    number = np.arange(micro_batches)
    when = np.concatenate([2 * number, 2 * (number + stages - stage) - 1])
    kinds = np.repeat(["F", "B"], micro_batches)
    both = np.concatenate([number, number])
    return [(str(kinds[k]), int(both[k])) for k in np.argsort(when, kind="stable")]


def order_all_forwards_first(stage, stages, micro_batches):
    order = [("F", i) for i in range(micro_batches)]
    return order + [("B", i) for i in range(micro_batches)]


def order_all_forwards_reversed(stage, stages, micro_batches):
    order = [("F", i) for i in range(micro_batches)]
    return order + [("B", i) for i in reversed(range(micro_batches))]


def order_no_fill(stage, stages, micro_batches):
    return [(kind, i) for i in range(micro_batches) for kind in ("F", "B")]


def order_one_too_many(stage, stages, micro_batches):
    ahead = min(stages - stage, micro_batches)
    order = [("F", i) for i in range(ahead)]
    for i in range(ahead, micro_batches):
        order += [("F", i), ("B", i - ahead)]
    return order + [("B", i) for i in range(micro_batches - ahead, micro_batches)]


def order_one_too_few(stage, stages, micro_batches):
    ahead = min(max(stages - stage - 2, 0), micro_batches)
    order = [("F", i) for i in range(ahead)]
    for i in range(ahead, micro_batches):
        order += [("F", i), ("B", i - ahead)]
    return order + [("B", i) for i in range(micro_batches - ahead, micro_batches)]


def order_stages_reversed(stage, stages, micro_batches):
    ahead = min(stage, micro_batches)
    order = [("F", i) for i in range(ahead)]
    for i in range(ahead, micro_batches):
        order += [("F", i), ("B", i - ahead)]
    return order + [("B", i) for i in range(micro_batches - ahead, micro_batches)]


def order_same_for_all(stage, stages, micro_batches):
    ahead = min(stages - 1, micro_batches)
    order = [("F", i) for i in range(ahead)]
    for i in range(ahead, micro_batches):
        order += [("F", i), ("B", i - ahead)]
    return order + [("B", i) for i in range(micro_batches - ahead, micro_batches)]


def order_few_micro_batches(stage, stages, micro_batches):
    # no minimum: with few micro-batches it names some that do not exist
    ahead = stages - stage - 1
    order = [("F", i) for i in range(ahead)]
    for i in range(ahead, micro_batches):
        order += [("F", i), ("B", i - ahead)]
    return order + [("B", i) for i in range(max(micro_batches - ahead, 0), micro_batches)]


def order_forgets_the_end(stage, stages, micro_batches):
    ahead = min(stages - stage - 1, micro_batches)
    order = [("F", i) for i in range(ahead)]
    for i in range(ahead, micro_batches):
        order += [("F", i), ("B", i - ahead)]
    return order


def order_stack_at_the_end(stage, stages, micro_batches):
    # the last backwards in reverse: the stages wait for each other
    ahead = min(stages - stage - 1, micro_batches)
    order = [("F", i) for i in range(ahead)]
    for i in range(ahead, micro_batches):
        order += [("F", i), ("B", i - ahead)]
    return order + [
        ("B", i) for i in range(micro_batches - 1, micro_batches - ahead - 1, -1)
    ]


def order_from_one(stage, stages, micro_batches):
    ahead = min(stages - stage - 1, micro_batches)
    order = [("F", i) for i in range(1, ahead + 1)]
    for i in range(ahead + 1, micro_batches + 1):
        order += [("F", i), ("B", i - ahead)]
    return order + [("B", i) for i in range(micro_batches - ahead + 1, micro_batches + 1)]


def order_same_micro_batch(stage, stages, micro_batches):
    # B i next to F i after the fill: the first ones come at the end
    ahead = min(stages - stage - 1, micro_batches)
    order = [("F", i) for i in range(ahead)]
    for i in range(ahead, micro_batches):
        order += [("F", i), ("B", i)]
    return order + [("B", i) for i in range(ahead)]


def order_backward_before_forward(stage, stages, micro_batches):
    # holds one micro-batch less in the steady state, and waits for it
    ahead = min(stages - stage - 1, micro_batches)
    order = [("F", i) for i in range(ahead)]
    for i in range(ahead, micro_batches):
        order += [("B", i - ahead), ("F", i)]
    return order + [("B", i) for i in range(micro_batches - ahead, micro_batches)]


def order_strings(stage, stages, micro_batches):
    ahead = min(stages - stage - 1, micro_batches)
    order = [f"F{i}" for i in range(ahead)]
    for i in range(ahead, micro_batches):
        order += [f"F{i}", f"B{i - ahead}"]
    return order + [f"B{i}" for i in range(micro_batches - ahead, micro_batches)]


def order_stage_from_one(stage, stages, micro_batches):
    ahead = min(stages - stage + 1, micro_batches)
    order = [("F", i) for i in range(ahead)]
    for i in range(ahead, micro_batches):
        order += [("F", i), ("B", i - ahead)]
    return order + [("B", i) for i in range(micro_batches - ahead, micro_batches)]


def order_in_rounds(stage, stages, micro_batches):
    # rounds of p - s forwards and as many backwards: the stages wait at each round
    order = []
    for start in range(0, micro_batches, stages - stage):
        part = range(start, min(start + stages - stage, micro_batches))
        order += [("F", i) for i in part] + [("B", i) for i in part]
    return order


def order_four_stages(stage, stages, micro_batches):
    ahead = min(max(4 - stage - 1, 0), micro_batches)
    order = [("F", i) for i in range(ahead)]
    for i in range(ahead, micro_batches):
        order += [("F", i), ("B", i - ahead)]
    return order + [("B", i) for i in range(micro_batches - ahead, micro_batches)]


RIGHT = {
    0: [
        gradients_count_first,
        gradients_divide_last,
        gradients_one_bucket,
        gradients_scaled_mean,
        gradients_hooks,
        gradients_in_place,
        Gradients(),
    ],
    1: [
        memory_branches,
        memory_split_where,
        memory_table,
        memory_numpy,
        memory_tensor,
        memory_accumulated,
        memory_polynomial,
        memory_recursion,
    ],
    2: [
        mlp_bias_after,
        mlp_bias_of_rank_zero,
        mlp_einsum,
        mlp_masked_bias,
        mlp_by_neurons,
        mlp_bias_as_column,
        mlp_transposed,
        Mlp(),
    ],
    3: [
        order_three_parts,
        order_backward_first,
        order_counters,
        order_sorted,
        order_queue,
        order_zip,
        order_recursion,
        order_numpy,
    ],
}

WRONG = {
    0: [
        (gradients_mean_of_means, "the mean of the means: wrong for unequal rows"),
        (gradients_sum_of_means, "divides by nothing"),
        (gradients_sum_of_rows, "the gradient of the sum over all rows"),
        (gradients_own_rows_times_n, "takes the others to have as many rows"),
        (gradients_no_weight, "divides by all rows, but does not weigh its own"),
        (gradients_weighted_then_n, "divides by n on top of the weights"),
        (gradients_result_ignored, "all_reduce leaves its argument as it was"),
        (gradients_total_ignored, "divides by its own rows, not by all"),
        (gradients_returned_only, "returns the gradients and leaves .grad empty"),
        (gradients_row_by_row, "calls all_reduce once for each row"),
        (gradients_averages_weights, "averages weights, and changes them"),
        (gradients_also_steps, "changes the weights"),
        (gradients_no_exchange, "each process keeps its own share"),
        (gradients_by_columns, "weighs by the columns and not by the rows"),
        (gradients_weights_only, "the biases' gradients stay local"),
        (gradients_reduces_loss, "exchanges the loss and no gradient"),
        (gradients_small_process_waits, "a process with one row does not call"),
    ],
    1: [
        (memory_no_master, "forgets the 32-bit copy of the weights"),
        (memory_state_of_16_bits, "Adam's state in 16 bits"),
        (memory_all_in_32_bits, "weights and gradients in 32 bits"),
        (memory_grads_before_state, "stage 1 divides the state, not the gradients"),
        (memory_grads_stay, "stages 2 and 3 do not divide the gradients"),
        (memory_master_stays, "does not divide the 32-bit copy"),
        (memory_only_one_part, "a stage divides what the stages before did, too"),
        (memory_one_stage_late, "each stage does what the one before should"),
        (memory_always_divided, "divides everything at every stage"),
        (memory_of_all_devices, "the bytes of all devices together"),
        (memory_gibibytes, "GiB and not bytes"),
        (memory_bits, "bits and not bytes"),
        (memory_eight_devices, "the number of devices is hard-coded"),
        (memory_state_only, "leaves weights and gradients out"),
        (memory_one_moment, "Adam has two moments, not one"),
        (memory_stage_three_keeps_weights, "stage 3 divides the weights, too"),
    ],
    2: [
        (mlp_bias_on_every_rank, "adds the second bias once for each process"),
        (mlp_no_exchange, "returns its own part only"),
        (mlp_reduces_hidden, "adds different neurons up"),
        (mlp_relu_at_the_end, "the relu is in the wrong place"),
        (mlp_no_relu, "forgets the relu"),
        (mlp_no_up_bias, "forgets the first bias"),
        (mlp_up_bias_of_rank_zero, "each process must add its part of the first bias"),
        (mlp_bias_on_rank_zero_after, "the other ranks return it without the bias"),
        (mlp_no_bias, "forgets the second bias"),
        (mlp_two_exchanges, "the second sum multiplies the result by n"),
        (mlp_result_ignored, "all_reduce returns the sum; the argument is no sum"),
        (mlp_rank_zero_only, "only rank 0 calls all_reduce: it waits for ever"),
        (mlp_bias_over_rank, "adds the bias 1 + 1/2 + ... times"),
        (mlp_relu_of_sum, "the first bias comes after the relu"),
        (mlp_not_transposed, "forgets the transposes: fails, or wrong if square"),
        (mlp_mean, "the mean over the processes in place of the sum"),
        (mlp_gelu, "GELU and no relu"),
    ],
    3: [
        (order_all_forwards_first, "holds all micro-batches at once"),
        (order_all_forwards_reversed, "holds all micro-batches at once"),
        (order_no_fill, "one at a time through all stages: idle for long"),
        (order_one_too_many, "holds p - s + 1 micro-batches"),
        (order_one_too_few, "too few ahead: idle for longer"),
        (order_stages_reversed, "the last stage fills up instead of the first"),
        (order_same_for_all, "every stage holds p micro-batches"),
        (order_few_micro_batches, "names micro-batches that do not exist"),
        (order_forgets_the_end, "the last backwards are missing"),
        (order_stack_at_the_end, "the last backwards in the reverse order"),
        (order_from_one, "counts the micro-batches from 1"),
        (order_same_micro_batch, "holds the first micro-batches to the end"),
        (order_backward_before_forward, "one less in flight: idle for longer"),
        (order_strings, "strings and no pairs"),
        (order_stage_from_one, "counts the stages from 1: holds two too many"),
        (order_in_rounds, "empties the pipeline after each round"),
        (order_four_stages, "the number of stages is hard-coded"),
    ],
}

UNCLEAR = {
    0: [
        "May .grad be left over from the update before? The answers here empty it first,"
        " but the function shown in the chapter does not.",
        "A parameter that the loss does not reach has .grad None: must it be zeros at the"
        " end, and may it differ between processes? The question does not say.",
        "Is the order of the calls of all_reduce the same on every process? Only their"
        " number is asked, but the tensors must match.",
    ],
    1: [
        "If the devices do not divide the parameters: the broken number, or rounded up?"
        " All answers here leave it broken.",
    ],
    2: [
        "May gradients flow through the result? Mlp() does without them.",
        "Whether all_reduce leaves its argument as it was is said in exercise 0 only.",
        "x may have more than two axes; all right answers here allow for it.",
    ],
    3: [
        "The same schedule with the micro-batches renumbered on all stages (the last one"
        " first) keeps both limits; is it still 1F1B with i = 0, 1, ...?",
        "Lists [kind, i] in place of tuples, or NumPy integers: not among the answers.",
    ],
}
