"""Answers to the exercises of chapter 09, from the words of the questions alone."""

import math

import numpy as np
import torch
from torch.nn import functional as F

# --- Exercise 0: your_quantize(weight, bits, group) -----------------------------------


def quantize_reshape(weight, bits, group):
    top = 2 ** (bits - 1) - 1
    groups = weight.reshape(-1, group)
    scale = groups.abs().amax(dim=1, keepdim=True) / top
    scale[scale == 0] = 1.0
    return ((groups / scale).round() * scale).reshape(weight.shape)


def quantize_view_three_axes(weight, bits, group):
    top = 2 ** (bits - 1) - 1
    rows, columns = weight.shape
    blocks = weight.contiguous().view(rows, columns // group, group)
    scale = torch.linalg.vector_norm(blocks, ord=math.inf, dim=-1, keepdim=True) / top
    q = torch.where(scale > 0, blocks / scale, 0.0).round().clamp(-top, top)
    return (q * scale).flatten(start_dim=1)


def quantize_loops(weight, bits, group):
    result = torch.zeros_like(weight)
    top = 2 ** (bits - 1) - 1
    for r in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            part = weight[r, start : start + group]
            largest = part.abs().max().item()
            if largest > 0:
                step = largest / top
                result[r, start : start + group] = torch.round(part / step) * step
    return result


def quantize_numpy(weight, bits, group):
    values = weight.detach().numpy().astype(np.float64)
    groups = values.reshape(values.shape[0], -1, group)
    top = (1 << (bits - 1)) - 1
    largest = np.abs(groups).max(axis=2, keepdims=True)
    whole = np.rint(np.divide(groups * top, largest, where=largest > 0, out=groups * 0))
    return torch.from_numpy((whole * largest / top).reshape(values.shape)).float()


def quantize_half_up(weight, bits, group):
    # halves go up: they are off by half a step both ways
    top = 2.0 ** (bits - 1) - 1
    blocks = weight.unfold(1, group, group)
    step = blocks.abs().max(dim=-1, keepdim=True).values / top
    whole = torch.floor(blocks / step.clamp(min=1e-30) + 0.5).clamp(-top, top)
    return (whole * step).reshape_as(weight)


def quantize_nearest_level(weight, bits, group):
    # the nearest of all levels, found by trying each of them
    top = 2 ** (bits - 1) - 1
    levels = torch.arange(-top, top + 1, dtype=weight.dtype)
    parts = []
    for part in weight.split(group, dim=1):
        grid = part.abs().amax(1, keepdim=True) / top * levels
        nearest = (part[:, :, None] - grid[:, None, :]).abs().argmin(dim=-1)
        parts.append(grid.gather(1, nearest))
    return torch.cat(parts, dim=1)


def quantize_fake_quantize(weight, bits, group):
    top = 2 ** (bits - 1) - 1
    groups = weight.detach().float().reshape(-1, group)
    scale = groups.abs().amax(1) / top
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = torch.zeros(len(groups), dtype=torch.int32)
    done = torch.fake_quantize_per_channel_affine(groups, scale, zero, 0, -top, top)
    return done.reshape(weight.shape)


def quantize_integers(weight, bits, group):
    top = 2 ** (bits - 1) - 1
    largest = F.max_pool1d(weight.abs()[:, None], group).squeeze(1)
    scale = (largest / top).repeat_interleave(group, dim=1)
    whole = (weight / scale).nan_to_num(0.0).round().to(torch.int32)
    return scale * whole


def quantize_python_lists(weight, bits, group):
    top, rows = 2 ** (bits - 1) - 1, []
    for row in weight.tolist():
        new = []
        for start in range(0, len(row), group):
            part = row[start : start + group]
            step = max(map(abs, part)) / top
            new += [round(value / step) * step if step else 0.0 for value in part]
        rows.append(new)
    return torch.tensor(rows, dtype=weight.dtype)


class Quantize:
    def __call__(self, weight, bits, group):
        new = weight.clone()
        top = 2 ** (bits - 1) - 1
        for part in new.view(-1, group):
            step = part.abs().max() / top
            if step:
                part.div_(step).round_().mul_(step)
        return new


def quantize_one_scale(weight, bits, group):
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().max() / top
    return (weight / scale).round() * scale


def quantize_four_bits(weight, bits, group):
    groups = weight.reshape(-1, group)
    scale = groups.abs().amax(1, keepdim=True) / 7
    scale[scale == 0] = 1.0
    return ((groups / scale).round() * scale).reshape(weight.shape)


def quantize_scale_of_row(weight, bits, group):
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(1, keepdim=True) / top
    scale[scale == 0] = 1.0
    return (weight / scale).round() * scale


def quantize_zeros_become_nan(weight, bits, group):
    top = 2 ** (bits - 1) - 1
    groups = weight.reshape(-1, group)
    scale = groups.abs().amax(1, keepdim=True) / top
    return ((groups / scale).round() * scale).reshape(weight.shape)


def quantize_down_the_columns(weight, bits, group):
    top = 2 ** (bits - 1) - 1
    groups = weight.T.reshape(-1, group)
    scale = groups.abs().amax(1, keepdim=True) / top
    scale[scale == 0] = 1.0
    whole = (groups / scale).round()
    return (whole * scale).reshape(weight.T.shape).T


def quantize_not_neighbours(weight, bits, group):
    # every (n / group)-th value is in one group
    top = 2 ** (bits - 1) - 1
    groups = weight.reshape(group, -1)
    scale = groups.abs().amax(0, keepdim=True) / top
    scale[scale == 0] = 1.0
    return ((groups / scale).round() * scale).reshape(weight.shape)


def quantize_number_of_groups(weight, bits, group):
    # takes `group` for the number of groups in a row
    top = 2 ** (bits - 1) - 1
    rows, columns = weight.shape
    groups = weight.reshape(rows * group, columns // group)
    scale = groups.abs().amax(1, keepdim=True) / top
    scale[scale == 0] = 1.0
    return ((groups / scale).round() * scale).reshape(weight.shape)


def quantize_cuts_off(weight, bits, group):
    top = 2 ** (bits - 1) - 1
    groups = weight.reshape(-1, group)
    scale = groups.abs().amax(1, keepdim=True) / top
    scale[scale == 0] = 1.0
    return ((groups / scale).trunc() * scale).reshape(weight.shape)


def quantize_rounds_down(weight, bits, group):
    top = 2 ** (bits - 1) - 1
    groups = weight.reshape(-1, group)
    scale = groups.abs().amax(1, keepdim=True) / top
    scale[scale == 0] = 1.0
    return ((groups / scale).floor() * scale).reshape(weight.shape)


def quantize_no_abs(weight, bits, group):
    # the largest value may be small, or below 0
    top = 2 ** (bits - 1) - 1
    groups = weight.reshape(-1, group)
    scale = groups.amax(1, keepdim=True) / top
    scale[scale == 0] = 1.0
    whole = (groups / scale).round().clamp(-top, top)
    return (whole * scale).reshape(weight.shape)


def quantize_top_too_large(weight, bits, group):
    top = 2 ** (bits - 1)
    groups = weight.reshape(-1, group)
    scale = groups.abs().amax(1, keepdim=True) / top
    scale[scale == 0] = 1.0
    return ((groups / scale).round() * scale).reshape(weight.shape)


def quantize_all_bits(weight, bits, group):
    top = 2**bits - 1
    groups = weight.reshape(-1, group)
    scale = groups.abs().amax(1, keepdim=True) / top
    scale[scale == 0] = 1.0
    return ((groups / scale).round() * scale).reshape(weight.shape)


def quantize_from_least_to_largest(weight, bits, group):
    # not symmetric: levels from the least to the largest value
    groups = weight.reshape(-1, group)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    scale[scale == 0] = 1.0
    return (((groups - low) / scale).round() * scale + low).reshape(weight.shape)


def quantize_whole_numbers(weight, bits, group):
    top = 2 ** (bits - 1) - 1
    groups = weight.reshape(-1, group)
    scale = groups.abs().amax(1, keepdim=True) / top
    scale[scale == 0] = 1.0
    return (groups / scale).round().reshape(weight.shape)


def quantize_keeps_groups(weight, bits, group):
    top = 2 ** (bits - 1) - 1
    groups = weight.reshape(-1, group)
    scale = groups.abs().amax(1, keepdim=True) / top
    scale[scale == 0] = 1.0
    return (groups / scale).round() * scale


def quantize_in_place(weight, bits, group):
    top = 2 ** (bits - 1) - 1
    groups = weight.view(-1, group)
    scale = groups.abs().amax(1, keepdim=True) / top
    scale[scale == 0] = 1.0
    groups.div_(scale).round_().mul_(scale)
    return weight


def quantize_large_epsilon(weight, bits, group):
    # small weights fall below the epsilon
    top = 2 ** (bits - 1) - 1
    groups = weight.reshape(-1, group)
    scale = groups.abs().amax(1, keepdim=True) / top + 1e-3
    return ((groups / scale).round() * scale).reshape(weight.shape)


def quantize_mean_scale(weight, bits, group):
    # the scale from the mean: large values are cut
    top = 2 ** (bits - 1) - 1
    groups = weight.reshape(-1, group)
    scale = 2 * groups.abs().mean(1, keepdim=True) / top
    scale[scale == 0] = 1.0
    whole = (groups / scale).round().clamp(-top, top)
    return (whole * scale).reshape(weight.shape)


# --- Exercise 1: your_update(loss_fn, weight, mask, optimizer) ------------------------


def update_masks_after(loss_fn, weight, mask, optimizer):
    optimizer.zero_grad()
    loss_fn().backward()
    optimizer.step()
    with torch.no_grad():
        weight.mul_(mask)


def update_index(loss_fn, weight, mask, optimizer):
    optimizer.zero_grad(set_to_none=False)
    loss_fn().backward()
    optimizer.step()
    weight.data[~mask] = 0.0


def update_closure(loss_fn, weight, mask, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = loss_fn()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    weight.data.masked_fill_(torch.logical_not(mask), 0)
    return loss


def update_masks_gradient_too(loss_fn, weight, mask, optimizer):
    optimizer.zero_grad()
    loss = loss_fn()
    loss.backward()
    weight.grad.masked_fill_(~mask, 0.0)
    optimizer.step()
    with torch.no_grad():
        weight.copy_(torch.where(mask, weight, torch.zeros_like(weight)))
    return loss.item()


def update_hook(loss_fn, weight, mask, optimizer):
    # the optimizer itself masks after its step; the hook is taken off again
    @torch.no_grad()
    def after(*_):
        weight.mul_(mask)

    handle = optimizer.register_step_post_hook(after)
    try:
        optimizer.zero_grad()
        torch.autograd.backward(loss_fn())
        optimizer.step()
    finally:
        handle.remove()


def update_loop(loss_fn, weight, mask, optimizer):
    weight.grad = None
    optimizer.zero_grad()
    loss_fn().backward()
    optimizer.step()
    with torch.no_grad():
        for position in (mask == 0).nonzero().tolist():
            weight[tuple(position)] = 0.0


def update_autograd_grad(loss_fn, weight, mask, optimizer):
    optimizer.zero_grad()
    (gradient,) = torch.autograd.grad(loss_fn(), [weight])
    weight.grad = gradient
    optimizer.step()
    weight.data = weight.data * mask.to(weight.dtype)


class Update:
    def __call__(self, loss_fn, weight, mask, optimizer):
        pruned = torch.nonzero(~mask.reshape(-1)).squeeze(1)
        optimizer.zero_grad()
        loss_fn().backward()
        optimizer.step()
        weight.detach().view(-1).index_fill_(0, pruned, 0.0)


def update_gradient_only(loss_fn, weight, mask, optimizer):
    # momentum from dense training moves the pruned entries
    optimizer.zero_grad()
    loss_fn().backward()
    weight.grad.mul_(mask)
    optimizer.step()


def update_masks_before(loss_fn, weight, mask, optimizer):
    with torch.no_grad():
        weight.mul_(mask)
    optimizer.zero_grad()
    loss_fn().backward()
    optimizer.step()


def update_masks_before_step(loss_fn, weight, mask, optimizer):
    optimizer.zero_grad()
    loss_fn().backward()
    with torch.no_grad():
        weight.mul_(mask)
    optimizer.step()


def update_never_masks(loss_fn, weight, mask, optimizer):
    optimizer.zero_grad()
    loss_fn().backward()
    optimizer.step()


def update_no_zero_grad(loss_fn, weight, mask, optimizer):
    loss_fn().backward()
    optimizer.step()
    with torch.no_grad():
        weight.mul_(mask)


def update_zero_grad_late(loss_fn, weight, mask, optimizer):
    loss_fn().backward()
    optimizer.zero_grad()
    optimizer.step()
    with torch.no_grad():
        weight.mul_(mask)


def update_clears_state(loss_fn, weight, mask, optimizer):
    # the entries that are left lose their momentum, too
    optimizer.state.clear()
    optimizer.zero_grad()
    loss_fn().backward()
    optimizer.step()
    with torch.no_grad():
        weight.mul_(mask)


def update_new_optimizer(loss_fn, weight, mask, optimizer):
    fresh = torch.optim.SGD([weight], lr=optimizer.param_groups[0]["lr"])
    fresh.zero_grad()
    loss_fn().backward()
    fresh.step()
    with torch.no_grad():
        weight.mul_(mask)


def update_sgd_buffer_only(loss_fn, weight, mask, optimizer):
    # right for SGD, but Adam's moments have other names
    optimizer.zero_grad()
    loss_fn().backward()
    weight.grad.mul_(mask)
    buffer = optimizer.state[weight].get("momentum_buffer")
    if buffer is not None:
        buffer.mul_(mask)
    optimizer.step()


def update_inverted(loss_fn, weight, mask, optimizer):
    optimizer.zero_grad()
    loss_fn().backward()
    optimizer.step()
    with torch.no_grad():
        weight.masked_fill_(mask, 0.0)


def update_local_name(loss_fn, weight, mask, optimizer):
    optimizer.zero_grad()
    loss_fn().backward()
    optimizer.step()
    weight = weight * mask
    return weight


def update_kept_out_entries(loss_fn, weight, mask, optimizer):
    # restores every entry with a zero gradient: those with momentum lose it
    before = weight.detach().clone()
    optimizer.zero_grad()
    loss_fn().backward()
    weight.grad.mul_(mask)
    still = weight.grad == 0
    optimizer.step()
    with torch.no_grad():
        weight[still] = before[still]


def update_plain_descent(loss_fn, weight, mask, optimizer):
    # its own step with the rate: the optimizer's momentum does not count
    optimizer.zero_grad()
    loss_fn().backward()
    with torch.no_grad():
        weight -= optimizer.param_groups[0]["lr"] * weight.grad
        weight.mul_(mask)


def update_two_steps(loss_fn, weight, mask, optimizer):
    for _ in range(2):
        optimizer.zero_grad()
        loss_fn().backward()
        optimizer.step()
        with torch.no_grad():
            weight.mul_(mask)


def update_small_is_zero(loss_fn, weight, mask, optimizer):
    # prunes by size anew: other entries may fall away, or come back
    optimizer.zero_grad()
    loss_fn().backward()
    optimizer.step()
    with torch.no_grad():
        kept = int(mask.sum())
        border = weight.abs().flatten().sort(descending=True).values[kept - 1]
        weight.mul_(weight.abs() >= border)


def update_scales_loss(loss_fn, weight, mask, optimizer):
    # takes the share of the entries that are left into the loss
    optimizer.zero_grad()
    (loss_fn() * mask.float().mean()).backward()
    optimizer.step()
    with torch.no_grad():
        weight.mul_(mask)


def update_nearly_zero(loss_fn, weight, mask, optimizer):
    optimizer.zero_grad()
    loss_fn().backward()
    optimizer.step()
    with torch.no_grad():
        weight[~mask] *= 1e-3


def update_first_row_of_mask(loss_fn, weight, mask, optimizer):
    # takes whole columns by the first row of the mask
    optimizer.zero_grad()
    loss_fn().backward()
    optimizer.step()
    with torch.no_grad():
        weight.mul_(mask[0])


# --- Exercise 2: your_loss(student, teacher, targets, temperature, alpha) -------------


def loss_functional(student, teacher, targets, temperature, alpha):
    rows = len(targets)
    soft = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    hard = F.cross_entropy(student, targets, ignore_index=-100, reduction="sum") / rows
    return alpha * temperature**2 * soft + (1 - alpha) * hard


def loss_by_hand(student, teacher, targets, temperature, alpha):
    p = torch.softmax(teacher / temperature, dim=-1)
    log_p = torch.log_softmax(teacher / temperature, dim=-1)
    log_q = torch.log_softmax(student / temperature, dim=-1)
    soft = temperature**2 * (p * (log_p - log_q)).sum(dim=-1).mean()
    known = targets != -100
    log_student = student - student.logsumexp(dim=-1, keepdim=True)
    picked = log_student.gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    hard = -(picked * known).sum() / student.shape[0]
    return alpha * soft + (1 - alpha) * hard


def loss_distributions(student, teacher, targets, temperature, alpha):
    categorical = torch.distributions.Categorical
    teacher_t = categorical(logits=teacher / temperature)
    student_t = categorical(logits=student / temperature)
    soft = torch.distributions.kl_divergence(teacher_t, student_t).mean()
    known = targets >= 0
    likelihood = categorical(logits=student).log_prob(targets * known) * known
    return alpha * temperature**2 * soft - (1 - alpha) * likelihood.sum() / len(student)


def loss_row_by_row(student, teacher, targets, temperature, alpha):
    total = student.new_zeros(())
    for s, t, y in zip(student, teacher, targets.tolist(), strict=True):
        p = (t / temperature).softmax(0)
        entropy = torch.special.entr(p).sum()
        cross = -(p * (s / temperature).log_softmax(0)).sum()
        total = total + alpha * temperature * temperature * (cross - entropy)
        if y != -100:
            total = total + (1 - alpha) * (torch.logsumexp(s, 0) - s[y])
    return total / student.size(0)


def loss_none_reduction(student, teacher, targets, temperature, alpha):
    # cross_entropy gives 0 for the rows that it ignores
    hard = F.cross_entropy(student, targets, reduction="none").mean()
    soft = F.kl_div(
        (student / temperature).log_softmax(1),
        (teacher / temperature).softmax(1),
        reduction="none",
    )
    return torch.lerp(hard, temperature**2 * soft.sum(1).mean(), alpha)


def loss_one_hot(student, teacher, targets, temperature, alpha):
    # a row without a label has a row of zeros
    classes = torch.arange(student.shape[1])
    hot = (targets[:, None] == classes).to(student.dtype)
    n = len(hot)
    hard = -torch.einsum("nc,nc->", hot, student.log_softmax(1)) / n
    p = (teacher / temperature).softmax(1)
    ratio = (teacher / temperature).log_softmax(1) - (student / temperature).log_softmax(
        1
    )
    soft = torch.einsum("nc,nc->", p, ratio) * (temperature * temperature / n)
    return sum([alpha * soft, (1 - alpha) * hard])


def loss_weighted_mean(student, teacher, targets, temperature, alpha):
    # the mean over the rows with a label, times their share
    known = (targets != -100).nonzero().flatten()
    hard = student.sum() * 0
    if known.numel() > 0:
        share = known.numel() / targets.numel()
        hard = F.nll_loss(F.log_softmax(student[known], 1), targets[known]) * share
    divergence = torch.nn.KLDivLoss(reduction="sum", log_target=True)
    soft = divergence(
        torch.log_softmax(student.div(temperature), 1),
        torch.log_softmax(teacher.div(temperature), 1),
    )
    return (1 - alpha) * hard + alpha * soft * temperature**2 / targets.numel()


class Loss:
    def __call__(self, student, teacher, targets, temperature, alpha):
        one = torch.vmap(self.soft, in_dims=(0, 0, None))(student, teacher, temperature)
        rows = F.cross_entropy(student, targets, ignore_index=-100, reduction="none")
        return (alpha * one + (1 - alpha) * rows).mean()

    @staticmethod
    def soft(s, t, temperature):
        p, q = (t / temperature).log_softmax(0), (s / temperature).log_softmax(0)
        return temperature**2 * (p.exp() * (p - q)).sum()


def loss_mean_of_labelled(student, teacher, targets, temperature, alpha):
    p = F.softmax(teacher / temperature, 1)
    log_q = F.log_softmax(student / temperature, 1)
    soft = temperature**2 * F.kl_div(log_q, p, reduction="batchmean")
    hard = F.cross_entropy(student, targets)
    return alpha * soft + (1 - alpha) * hard


def loss_labelled_or_zero(student, teacher, targets, temperature, alpha):
    p = F.softmax(teacher / temperature, 1)
    log_q = F.log_softmax(student / temperature, 1)
    soft = temperature**2 * F.kl_div(log_q, p, reduction="batchmean")
    known = targets != -100
    hard = F.cross_entropy(student[known], targets[known]) if known.any() else 0.0
    return alpha * soft + (1 - alpha) * hard


def loss_no_square(student, teacher, targets, temperature, alpha):
    p = F.softmax(teacher / temperature, 1)
    log_q = F.log_softmax(student / temperature, 1)
    soft = F.kl_div(log_q, p, reduction="batchmean")
    hard = F.cross_entropy(student, targets, reduction="sum") / len(targets)
    return alpha * soft + (1 - alpha) * hard


def loss_temperature_once(student, teacher, targets, temperature, alpha):
    p = F.softmax(teacher / temperature, 1)
    log_q = F.log_softmax(student / temperature, 1)
    soft = temperature * F.kl_div(log_q, p, reduction="batchmean")
    hard = F.cross_entropy(student, targets, reduction="sum") / len(targets)
    return alpha * soft + (1 - alpha) * hard


def loss_mean_of_entries(student, teacher, targets, temperature, alpha):
    # "mean" divides by the classes, too
    p = F.softmax(teacher / temperature, 1)
    log_q = F.log_softmax(student / temperature, 1)
    soft = temperature**2 * (p * (p.log() - log_q)).mean()
    hard = F.cross_entropy(student, targets, reduction="sum") / len(targets)
    return alpha * soft + (1 - alpha) * hard


def loss_alpha_swapped(student, teacher, targets, temperature, alpha):
    p = F.softmax(teacher / temperature, 1)
    log_q = F.log_softmax(student / temperature, 1)
    soft = temperature**2 * F.kl_div(log_q, p, reduction="batchmean")
    hard = F.cross_entropy(student, targets, reduction="sum") / len(targets)
    return (1 - alpha) * soft + alpha * hard


def loss_soft_of_labelled(student, teacher, targets, temperature, alpha):
    known = targets != -100
    p = F.softmax(teacher[known] / temperature, 1)
    log_q = F.log_softmax(student[known] / temperature, 1)
    soft = temperature**2 * F.kl_div(log_q, p, reduction="sum") / len(targets)
    hard = F.cross_entropy(student, targets, reduction="sum") / len(targets)
    return alpha * soft + (1 - alpha) * hard


def loss_hard_with_temperature(student, teacher, targets, temperature, alpha):
    p = F.softmax(teacher / temperature, 1)
    log_q = F.log_softmax(student / temperature, 1)
    soft = temperature**2 * F.kl_div(log_q, p, reduction="batchmean")
    hard = F.cross_entropy(student / temperature, targets, reduction="sum") / len(targets)
    return alpha * soft + (1 - alpha) * hard


def loss_sums(student, teacher, targets, temperature, alpha):
    p = F.softmax(teacher / temperature, 1)
    log_q = F.log_softmax(student / temperature, 1)
    soft = temperature**2 * F.kl_div(log_q, p, reduction="sum")
    hard = F.cross_entropy(student, targets, reduction="sum")
    return alpha * soft + (1 - alpha) * hard


def loss_no_logarithm(student, teacher, targets, temperature, alpha):
    # kl_div wants the logarithm of the student's probabilities
    p = F.softmax(teacher / temperature, 1)
    q = F.softmax(student / temperature, 1)
    soft = temperature**2 * F.kl_div(q, p, reduction="batchmean")
    hard = F.cross_entropy(student, targets, reduction="sum") / len(targets)
    return alpha * soft + (1 - alpha) * hard


def loss_sharp_teacher(student, teacher, targets, temperature, alpha):
    p = F.softmax(teacher, 1)
    log_q = F.log_softmax(student / temperature, 1)
    soft = temperature**2 * F.kl_div(log_q, p, reduction="batchmean")
    hard = F.cross_entropy(student, targets, reduction="sum") / len(targets)
    return alpha * soft + (1 - alpha) * hard


def loss_over_the_batch(student, teacher, targets, temperature, alpha):
    # softmax over the rows, not over the classes
    p = F.softmax(teacher / temperature, 0)
    log_q = F.log_softmax(student / temperature, 0)
    soft = temperature**2 * F.kl_div(log_q, p, reduction="batchmean")
    hard = F.cross_entropy(student, targets, reduction="sum") / len(targets)
    return alpha * soft + (1 - alpha) * hard


def loss_class_zero(student, teacher, targets, temperature, alpha):
    # a row without a label is taken for class 0
    p = F.softmax(teacher / temperature, 1)
    log_q = F.log_softmax(student / temperature, 1)
    soft = temperature**2 * F.kl_div(log_q, p, reduction="batchmean")
    hard = F.cross_entropy(student, targets.clamp(min=0))
    return alpha * soft + (1 - alpha) * hard


def loss_teacher_label(student, teacher, targets, temperature, alpha):
    # a row without a label takes the teacher's
    p = F.softmax(teacher / temperature, 1)
    log_q = F.log_softmax(student / temperature, 1)
    soft = temperature**2 * F.kl_div(log_q, p, reduction="batchmean")
    filled = torch.where(targets == -100, teacher.argmax(1), targets)
    return alpha * soft + (1 - alpha) * F.cross_entropy(student, filled)


def loss_detached(student, teacher, targets, temperature, alpha):
    # a number without a graph: nothing to train with
    p = F.softmax(teacher / temperature, 1)
    log_q = F.log_softmax(student / temperature, 1)
    soft = temperature**2 * F.kl_div(log_q, p, reduction="batchmean")
    hard = F.cross_entropy(student, targets, reduction="sum") / len(targets)
    return (alpha * soft + (1 - alpha) * hard).detach()


def loss_cross_entropy_of_teacher(student, teacher, targets, temperature, alpha):
    # the cross entropy with the teacher: its entropy too much for a divergence
    p = F.softmax(teacher / temperature, 1)
    soft = temperature**2 * F.cross_entropy(student / temperature, p)
    hard = F.cross_entropy(student, targets, reduction="sum") / len(targets)
    return alpha * soft + (1 - alpha) * hard


def loss_nothing_without_label(student, teacher, targets, temperature, alpha):
    if (targets == -100).all():
        return student.sum() * 0
    p = F.softmax(teacher / temperature, 1)
    log_q = F.log_softmax(student / temperature, 1)
    soft = temperature**2 * F.kl_div(log_q, p, reduction="batchmean")
    hard = F.cross_entropy(student, targets, reduction="sum") / len(targets)
    return alpha * soft + (1 - alpha) * hard


def loss_squared_difference(student, teacher, targets, temperature, alpha):
    soft = ((student - teacher) / temperature).square().sum(1).mean() * temperature**2
    hard = F.cross_entropy(student, targets, reduction="sum") / len(targets)
    return alpha * soft + (1 - alpha) * hard


RIGHT = {
    0: [
        quantize_reshape,
        quantize_view_three_axes,
        quantize_loops,
        quantize_numpy,
        quantize_half_up,
        quantize_nearest_level,
        quantize_fake_quantize,
        quantize_integers,
        quantize_python_lists,
        Quantize(),
    ],
    1: [
        update_masks_after,
        update_index,
        update_closure,
        update_masks_gradient_too,
        update_hook,
        update_loop,
        update_autograd_grad,
        Update(),
    ],
    2: [
        loss_functional,
        loss_by_hand,
        loss_distributions,
        loss_row_by_row,
        loss_none_reduction,
        loss_one_hot,
        loss_weighted_mean,
        Loss(),
    ],
}

WRONG = {
    0: [
        (quantize_one_scale, "one scale for the whole weight"),
        (quantize_four_bits, "always 4 bits"),
        (quantize_scale_of_row, "one scale for each row"),
        (quantize_zeros_become_nan, "0 / 0: a group of zeros becomes NaN"),
        (quantize_down_the_columns, "groups of neighbours in a column"),
        (quantize_not_neighbours, "the values of a group are no neighbours"),
        (quantize_number_of_groups, "takes `group` for the number of groups"),
        (quantize_cuts_off, "cuts towards 0: off by up to a whole step"),
        (quantize_rounds_down, "rounds down: off by up to a whole step"),
        (quantize_no_abs, "the largest value instead of the largest absolute"),
        (quantize_top_too_large, "top = 2 ** (bits - 1): one too large"),
        (quantize_all_bits, "top = 2 ** bits - 1: one bit too many"),
        (quantize_from_least_to_largest, "not symmetric: 0 is no level"),
        (quantize_whole_numbers, "does not multiply by the scale"),
        (quantize_keeps_groups, "returns the groups, not the weight's shape"),
        (quantize_in_place, "changes the weight instead of returning a new one"),
        (quantize_large_epsilon, "an epsilon as large as a step of small weights"),
        (quantize_mean_scale, "the scale from the mean: large values are cut"),
    ],
    1: [
        (update_gradient_only, "momentum moves the pruned entries"),
        (update_masks_before, "masks before the step, which moves them again"),
        (update_masks_before_step, "masks before the step, which moves them again"),
        (update_never_masks, "does not mask at all"),
        (update_no_zero_grad, "adds to the gradient of the update before"),
        (update_zero_grad_late, "empties the gradient before the step"),
        (update_clears_state, "the entries that are left lose their momentum"),
        (update_new_optimizer, "uses an optimizer of its own"),
        (update_sgd_buffer_only, "knows SGD's buffer only: Adam's moments move them"),
        (update_inverted, "empties the entries that are to stay"),
        (update_local_name, "binds a local name; the weight keeps its values"),
        (update_kept_out_entries, "stops entries whose gradient is 0 just now"),
        (update_plain_descent, "steps by itself, without the optimizer"),
        (update_two_steps, "two updates"),
        (update_small_is_zero, "prunes anew by size, against the mask"),
        (update_scales_loss, "scales the loss and with it the step"),
        (update_nearly_zero, "small, but not 0"),
        (update_first_row_of_mask, "takes the first row of the mask for all rows"),
    ],
    2: [
        (loss_mean_of_labelled, "divides by the rows with a label; NaN without any"),
        (loss_labelled_or_zero, "divides the hard part by the rows with a label"),
        (loss_no_square, "forgets temperature ** 2"),
        (loss_temperature_once, "temperature instead of its square"),
        (loss_mean_of_entries, "divides the divergence by the classes, too"),
        (loss_alpha_swapped, "alpha and 1 - alpha exchanged"),
        (loss_soft_of_labelled, "the soft part of the rows with a label only"),
        (loss_hard_with_temperature, "the temperature in the hard part"),
        (loss_sums, "divides by nothing"),
        (loss_no_logarithm, "gives kl_div probabilities for logarithms"),
        (loss_sharp_teacher, "the teacher without the temperature"),
        (loss_over_the_batch, "softmax over the rows"),
        (loss_class_zero, "takes rows without a label for class 0"),
        (loss_teacher_label, "takes the teacher's class where a label is missing"),
        (loss_detached, "no gradient reaches the student"),
        (loss_cross_entropy_of_teacher, "a cross entropy and no divergence"),
        (loss_nothing_without_label, "without labels the soft part counts as well"),
        (loss_squared_difference, "a squared difference and no divergence"),
    ],
}

UNCLEAR = {
    0: [
        "bits = 1 gives top = 0; the question does not exclude it.",
        "A value half-way between two levels may go to either (half up or half to even).",
        "The type of the result: that of the weight, or float32? quantize_numpy and"
        " quantize_fake_quantize always return float32.",
        "Is the weight contiguous? Quantize() uses view and would fail on weight.T.",
        "Does the weight require a gradient, and should one flow? Not said.",
    ],
    1: [
        "weight * mask leaves a NaN or inf at a pruned entry (masked_fill does not).",
        "May the gradient be left from an update before? The answers empty it.",
        "May the optimizer be asked with a closure (update_closure)?",
        "update_autograd_grad leaves other parameters of the optimizer without gradient;"
        " the question speaks of one weight only.",
    ],
    2: [
        "Which way is the divergence? The answers take KL(teacher || student), as is"
        " usual; the question says `divergence` only.",
        "Must no gradient flow into the teacher? None of the answers detaches it.",
        "No rows at all: 0 / 0, not spoken of.",
    ],
}
