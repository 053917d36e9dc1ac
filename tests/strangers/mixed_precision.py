"""Answers to the exercises of chapter 15, from the words of the questions alone."""

import functools
import math
import struct
from fractions import Fraction

import numpy as np
import torch

# --- Exercise 0: descend(weight, gradient_of, rate, updates) -------------------------


def descend_copy(weight, gradient_of, rate, updates):
    copy = weight.clone()
    for _ in range(updates):
        copy -= rate * gradient_of(copy.bfloat16()).float()
    return copy


def descend_new_tensors(weight, gradient_of, rate, updates):
    master = weight.detach().clone()
    for _ in range(updates):
        gradient = gradient_of(master.to(torch.bfloat16))
        master = master - rate * gradient.to(torch.float32)
    return master


def descend_alpha(weight, gradient_of, rate, updates):
    master = torch.empty_like(weight).copy_(weight)
    low = torch.empty_like(weight, dtype=torch.bfloat16)
    for _ in range(updates):
        low.copy_(master)
        master.add_(gradient_of(low.clone()).float(), alpha=-rate)
    return master


def descend_sgd(weight, gradient_of, rate, updates):
    parameter = torch.nn.Parameter(weight.detach().clone())
    optimizer = torch.optim.SGD([parameter], lr=rate)
    for _ in range(updates):
        parameter.grad = gradient_of(parameter.detach().bfloat16()).float()
        optimizer.step()
    return parameter.detach()


def descend_numpy(weight, gradient_of, rate, updates):
    master = weight.numpy().astype(np.float32, copy=True)
    for _ in range(updates):
        gradient = gradient_of(torch.from_numpy(master).bfloat16())
        master = master - np.float32(rate) * gradient.float().numpy()
    return torch.from_numpy(master)


def descend_recursion(weight, gradient_of, rate, updates):
    if updates == 0:
        return weight.clone()
    gradient = gradient_of(weight.bfloat16()).float()
    return descend_recursion(weight - rate * gradient, gradient_of, rate, updates - 1)


def descend_reduce(weight, gradient_of, rate, updates):
    def one(master, _):
        return torch.sub(master, gradient_of(master.bfloat16()).float(), alpha=rate)

    return functools.reduce(one, range(updates), weight.clone())


class Descend:
    def __call__(self, weight, gradient_of, rate, updates):
        # the difference of two products in float32, entry by entry
        master, one = weight.detach().flatten().clone(), torch.ones(())
        left = updates
        while left > 0:
            left -= 1
            gradient = gradient_of(master.view_as(weight).bfloat16()).flatten()
            master = torch.addcmul(master, gradient.float(), one, value=-rate)
        return master.reshape(weight.shape)


def descend_all_in_bfloat16(weight, gradient_of, rate, updates):
    weight = weight.bfloat16()
    for _ in range(updates):
        weight = weight - rate * gradient_of(weight)
    return weight.float()


def descend_changes_weight(weight, gradient_of, rate, updates):
    for _ in range(updates):
        weight -= rate * gradient_of(weight.bfloat16()).float()
    return weight


def descend_float32_gradient(weight, gradient_of, rate, updates):
    copy = weight.clone()
    for _ in range(updates):
        copy -= rate * gradient_of(copy).float()
    return copy


def descend_rounds_each(weight, gradient_of, rate, updates):
    copy = weight.clone()
    for _ in range(updates):
        copy = (copy - rate * gradient_of(copy.bfloat16()).float()).bfloat16().float()
    return copy


def descend_start_gradient(weight, gradient_of, rate, updates):
    copy, low = weight.clone(), weight.bfloat16()
    for _ in range(updates):
        copy -= rate * gradient_of(low).float()
    return copy


def descend_asks_twice(weight, gradient_of, rate, updates):
    copy = weight.clone()
    for _ in range(updates):
        if gradient_of(copy.bfloat16()).isfinite().all():
            copy -= rate * gradient_of(copy.bfloat16()).float()
    return copy


def descend_one_more(weight, gradient_of, rate, updates):
    copy = weight.clone()
    for _ in range(updates + 1):
        copy -= rate * gradient_of(copy.bfloat16()).float()
    return copy


def descend_one_less(weight, gradient_of, rate, updates):
    copy = weight.clone()
    for _ in range(1, updates):
        copy -= rate * gradient_of(copy.bfloat16()).float()
    return copy


def descend_upwards(weight, gradient_of, rate, updates):
    copy = weight.clone()
    for _ in range(updates):
        copy += rate * gradient_of(copy.bfloat16()).float()
    return copy


def descend_returns_bfloat16(weight, gradient_of, rate, updates):
    copy = weight.clone()
    for _ in range(updates):
        copy -= rate * gradient_of(copy.bfloat16()).float()
    return copy.bfloat16()


def descend_returns_rounded(weight, gradient_of, rate, updates):
    copy = weight.clone()
    for _ in range(updates):
        copy -= rate * gradient_of(copy.bfloat16()).float()
    return copy.bfloat16().float()


def descend_float16(weight, gradient_of, rate, updates):
    copy = weight.clone()
    for _ in range(updates):
        copy -= rate * gradient_of(copy.half()).float()
    return copy


def descend_copy_of_rounded(weight, gradient_of, rate, updates):
    # the float32 copy starts from the rounded weight
    copy = weight.bfloat16().float()
    for _ in range(updates):
        copy -= rate * gradient_of(copy.bfloat16()).float()
    return copy


def descend_sum_in_bfloat16(weight, gradient_of, rate, updates):
    moved = torch.zeros_like(weight, dtype=torch.bfloat16)
    for _ in range(updates):
        moved += rate * gradient_of((weight - moved.float()).bfloat16())
    return weight - moved.float()


def descend_low_moves_on(weight, gradient_of, rate, updates):
    # the bfloat16 weight is updated on its own and sticks; the copy follows it
    copy, low = weight.clone(), weight.bfloat16()
    for _ in range(updates):
        gradient = gradient_of(low)
        low = low - rate * gradient
        copy -= rate * gradient.float()
    return copy


def descend_forgets_rate(weight, gradient_of, rate, updates):
    copy = weight.clone()
    for _ in range(updates):
        copy -= gradient_of(copy.bfloat16()).float()
    return copy


# --- Exercise 1: update(weight, scaled_grad, lr, scale, streak, interval) -------------


def update_isfinite(weight, scaled_grad, lr, scale, streak, interval):
    if not torch.isfinite(scaled_grad).all():
        return weight, scale / 2, 0
    weight = weight - lr * (scaled_grad.to(weight.dtype) / scale)
    streak += 1
    if streak == interval:
        return weight, scale * 2, 0
    return weight, scale, streak


def update_times_zero(weight, scaled_grad, lr, scale, streak, interval):
    # 0 * inf and 0 * NaN are NaN, and NaN is not equal to itself
    probe = (scaled_grad * 0).sum().item()
    if probe != probe:
        return weight.clone(), 0.5 * scale, 0
    moved = torch.sub(weight, scaled_grad.to(weight.dtype) / scale, alpha=lr)
    full = streak + 1 >= interval
    return moved, scale * (2 if full else 1), 0 if full else streak + 1


def update_in_place(weight, scaled_grad, lr, scale, streak, interval):
    with torch.no_grad():
        if scaled_grad.isinf().any() or scaled_grad.isnan().any():
            scale, streak = scale * 0.5, 0
        else:
            weight.sub_(scaled_grad.to(weight.dtype).div(scale).mul(lr))
            scale *= 1 + (streak + 1) // interval
            streak = (streak + 1) % interval
    return weight, scale, streak


def update_numpy(weight, scaled_grad, lr, scale, streak, interval):
    gradient = scaled_grad.detach().numpy()
    if np.isfinite(gradient).all():
        step = torch.from_numpy(gradient.astype(np.float32) / np.float32(scale))
        new = weight - lr * step
        streak = (streak + 1) % interval
        return [new, scale if streak else scale * 2, streak]
    return [weight, scale / 2, 0]


def update_loop(weight, scaled_grad, lr, scale, streak, interval):
    for value in scaled_grad.flatten().tolist():
        if math.isinf(value) or math.isnan(value):
            return weight, math.ldexp(scale, -1), 0
    new = torch.addcmul(
        weight, scaled_grad.float(), torch.ones_like(weight), value=-lr / scale
    )
    if streak == interval - 1:
        return new, math.ldexp(scale, 1), 0
    return new, scale, streak + 1


def update_optimizer(weight, scaled_grad, lr, scale, streak, interval):
    parameter = torch.nn.Parameter(weight.detach().clone())
    parameter.grad = scaled_grad.to(weight.dtype).clone() / scale
    good = bool((scaled_grad.abs() < math.inf).all())
    if good:
        torch.optim.SGD([parameter], lr=lr).step()
    streak = streak + 1 if good else 0
    if good and streak == interval:
        scale, streak = scale + scale, 0
    elif not good:
        scale = scale / 2
    return parameter.detach(), scale, streak


def update_where(weight, scaled_grad, lr, scale, streak, interval):
    good = torch.isfinite(scaled_grad).all()
    new = torch.where(good, weight - lr * scaled_grad.to(weight.dtype) / scale, weight)
    count = (streak + 1) * int(good)
    factor = 2.0 if count == interval else 1.0 if good else 0.5
    return new, scale * factor, count % interval


def update_only_nan(weight, scaled_grad, lr, scale, streak, interval):
    if scaled_grad.isnan().any():
        return weight, scale / 2, 0
    weight, streak = weight - lr * scaled_grad / scale, streak + 1
    if streak == interval:
        return weight, scale * 2, 0
    return weight, scale, streak


def update_only_inf(weight, scaled_grad, lr, scale, streak, interval):
    if scaled_grad.isinf().any():
        return weight, scale / 2, 0
    weight, streak = weight - lr * scaled_grad / scale, streak + 1
    if streak == interval:
        return weight, scale * 2, 0
    return weight, scale, streak


def update_only_positive_inf(weight, scaled_grad, lr, scale, streak, interval):
    if scaled_grad.isnan().any() or (scaled_grad == math.inf).any():
        return weight, scale / 2, 0
    weight, streak = weight - lr * scaled_grad / scale, streak + 1
    if streak == interval:
        return weight, scale * 2, 0
    return weight, scale, streak


def update_all_bad(weight, scaled_grad, lr, scale, streak, interval):
    if not torch.isfinite(scaled_grad).any():
        return weight, scale / 2, 0
    weight, streak = weight - lr * scaled_grad / scale, streak + 1
    if streak == interval:
        return weight, scale * 2, 0
    return weight, scale, streak


def update_sum_overflows(weight, scaled_grad, lr, scale, streak, interval):
    # finite entries may have an infinite sum
    if not torch.isfinite(scaled_grad.sum()):
        return weight, scale / 2, 0
    weight, streak = weight - lr * scaled_grad / scale, streak + 1
    if streak == interval:
        return weight, scale * 2, 0
    return weight, scale, streak


def update_not_unscaled(weight, scaled_grad, lr, scale, streak, interval):
    if not torch.isfinite(scaled_grad).all():
        return weight, scale / 2, 0
    weight, streak = weight - lr * scaled_grad, streak + 1
    if streak == interval:
        return weight, scale * 2, 0
    return weight, scale, streak


def update_new_scale(weight, scaled_grad, lr, scale, streak, interval):
    if not torch.isfinite(scaled_grad).all():
        return weight, scale / 2, 0
    streak += 1
    if streak == interval:
        scale, streak = scale * 2, 0
    return weight - lr * scaled_grad / scale, scale, streak


def update_streak_goes_on(weight, scaled_grad, lr, scale, streak, interval):
    if not torch.isfinite(scaled_grad).all():
        return weight, scale / 2, 0
    weight, streak = weight - lr * scaled_grad / scale, streak + 1
    if streak == interval:
        scale = scale * 2
    return weight, scale, streak


def update_streak_survives(weight, scaled_grad, lr, scale, streak, interval):
    if not torch.isfinite(scaled_grad).all():
        return weight, scale / 2, streak
    weight, streak = weight - lr * scaled_grad / scale, streak + 1
    if streak == interval:
        return weight, scale * 2, 0
    return weight, scale, streak


def update_one_late(weight, scaled_grad, lr, scale, streak, interval):
    if not torch.isfinite(scaled_grad).all():
        return weight, scale / 2, 0
    weight = weight - lr * scaled_grad / scale
    if streak == interval:
        return weight, scale * 2, 0
    return weight, scale, streak + 1


def update_beyond_interval(weight, scaled_grad, lr, scale, streak, interval):
    if not torch.isfinite(scaled_grad).all():
        return weight, scale / 2, 0
    weight, streak = weight - lr * scaled_grad / scale, streak + 1
    if streak > interval:
        return weight, scale * 2, 0
    return weight, scale, streak


def update_repairs(weight, scaled_grad, lr, scale, streak, interval):
    good = torch.isfinite(scaled_grad).all()
    gradient = torch.nan_to_num(scaled_grad, 0.0, 0.0, 0.0) / scale
    weight = weight - lr * gradient
    if not good:
        return weight, scale / 2, 0
    if streak + 1 == interval:
        return weight, scale * 2, 0
    return weight, scale, streak + 1


def update_moves_anyway(weight, scaled_grad, lr, scale, streak, interval):
    weight = weight - lr * scaled_grad / scale
    if not torch.isfinite(scaled_grad).all():
        return weight, scale / 2, 0
    if streak + 1 == interval:
        return weight, scale * 2, 0
    return weight, scale, streak + 1


def update_whole_half(weight, scaled_grad, lr, scale, streak, interval):
    # // makes 0 of a scale of 1, and rounds 0.5 down
    if not torch.isfinite(scaled_grad).all():
        return weight, scale // 2, 0
    weight, streak = weight - lr * scaled_grad / scale, streak + 1
    if streak == interval:
        return weight, scale * 2, 0
    return weight, scale, streak


def update_scale_at_least_one(weight, scaled_grad, lr, scale, streak, interval):
    if not torch.isfinite(scaled_grad).all():
        return weight, max(scale / 2, 1.0), 0
    weight, streak = weight - lr * scaled_grad / scale, streak + 1
    if streak == interval:
        return weight, scale * 2, 0
    return weight, scale, streak


def update_bad_counts_one(weight, scaled_grad, lr, scale, streak, interval):
    if not torch.isfinite(scaled_grad).all():
        scale, streak = scale / 2, 0
    else:
        weight = weight - lr * scaled_grad / scale
    streak += 1
    if streak == interval:
        scale, streak = scale * 2, 0
    return weight, scale, streak


def update_doubles_always(weight, scaled_grad, lr, scale, streak, interval):
    if not torch.isfinite(scaled_grad).all():
        return weight, scale / 2, 0
    return weight - lr * scaled_grad / scale, scale * 2, streak + 1


def update_two_thousand(weight, scaled_grad, lr, scale, streak, interval):
    if not torch.isfinite(scaled_grad).all():
        return weight, scale / 2, 0
    weight, streak = weight - lr * scaled_grad / scale, streak + 1
    if streak == 2000:
        return weight, scale * 2, 0
    return weight, scale, streak


def update_order(weight, scaled_grad, lr, scale, streak, interval):
    if not torch.isfinite(scaled_grad).all():
        return weight, 0, scale / 2
    weight, streak = weight - lr * scaled_grad / scale, streak + 1
    if streak == interval:
        return weight, 0, scale * 2
    return weight, streak, scale


# --- Exercise 2: power(w) -------------------------------------------------------------


def power_search(w):
    value = torch.tensor(w, dtype=torch.float16)
    step = 2.0**-24
    while value + torch.tensor(step, dtype=torch.float16) == value:
        step *= 2
    return step


def power_numpy(w):
    w = np.float16(w)
    powers = (np.float16(2.0**k) for k in range(-24, 16))
    return next(power for power in powers if np.float16(w + power) != w)


def power_parity(w):
    # a tie goes to the even neighbour: half a step moves an odd number only
    mantissa, exponent = math.frexp(w)
    whole = int(mantissa * 2048)
    step = 2.0 ** (exponent - 11)
    return step / 2 if whole % 2 else step


def power_bits(w):
    (bits,) = struct.unpack("<H", struct.pack("<e", w))
    exponent = (bits >> 10) - 15 - 10 - (bits & 1)
    return Fraction(2) ** exponent


def power_spacing(w):
    w = np.float16(w)
    step = np.spacing(w)
    half = step / np.float16(2)
    return float(half) if w + half > w else float(step)


def power_downwards(w):
    value, power = np.float16(w), 2.0**15
    while value + np.float16(power / 2) != value:
        power /= 2
    return power


def power_binary_search(w):
    low, high = -25, 15  # 2**low changes nothing, 2**high does
    value = torch.tensor([w], dtype=torch.float16)
    while high - low > 1:
        middle = (low + high) // 2
        if torch.equal(value + torch.full_like(value, 2.0**middle), value):
            low = middle
        else:
            high = middle
    return 2.0**high


def power_nextafter(w):
    here = torch.tensor(w, dtype=torch.float16)
    step = (torch.nextafter(here, here + here) - here).item()
    odd = int(w / step) & 1
    return math.ldexp(step, -odd)


def power_table(w):
    powers = torch.ldexp(torch.tensor(1.0), torch.arange(-24, 16)).half()
    value = torch.tensor(w).half()
    return powers[(value + powers != value).nonzero()[0, 0]]


def power_recursion(w, exponent=-24):
    rounded = np.array([w, 2.0**exponent], dtype=np.float16).sum(dtype=np.float16)
    return 2.0**exponent if rounded != w else power_recursion(w, exponent + 1)


def power_machine_epsilon(w):
    return 2.0**-10


def power_whole_step(w):
    return 2.0 ** (math.floor(math.log2(w)) - 10)


def power_half_step(w):
    return 2.0 ** (math.floor(math.log2(w)) - 11)


def power_parity_reversed(w):
    mantissa, exponent = math.frexp(w)
    step = 2.0 ** (exponent - 11)
    return step if int(mantissa * 2048) % 2 else step / 2


def power_times_w(w):
    return w * 2.0**-10


def power_exponent(w):
    value, exponent = np.float16(w), -24
    while value + np.float16(2.0**exponent) == value:
        exponent += 1
    return exponent


def power_rounded_log(w):
    return 2.0 ** (round(math.log2(w)) - 10)


def power_last_without_change(w):
    value, power = np.float16(w), 2.0**15
    while value + np.float16(power) != value:
        power /= 2
    return power


def power_float32(w):
    value, power = np.float32(w), 2.0**-40
    while value + np.float32(power) == value:
        power *= 2
    return power


def power_bfloat16(w):
    value, power = torch.tensor(w, dtype=torch.bfloat16), 2.0**-24
    while value + torch.tensor(power, dtype=torch.bfloat16) == value:
        power *= 2
    return power


def power_python_float(w):
    power = 1.0
    while w + power / 2 != w:
        power /= 2
    return power


def power_from_smallest_normal(w):
    # starts at the smallest normal number and misses the subnormal ones
    value, power = np.float16(w), 2.0**-14
    while value + np.float16(power) == value:
        power *= 2
    return power


def power_up_to_one(w):
    value = np.float16(w)
    for exponent in range(-24, 0):
        if value + np.float16(2.0**exponent) != value:
            return 2.0**exponent
    return 1.0


def power_relative_to_one(w):
    # asks 1 + power, whatever w is
    value, power = np.float16(1.0), 2.0**-24
    while value + np.float16(power) == value:
        power *= 2
    return power


def power_subtracts(w):
    value, power = np.float16(w), 2.0**-24
    while value - np.float16(power) == value:
        power *= 2
    return power


def power_any_step(w):
    # the smallest float16 that changes w, and no power of two
    value = np.float16(w)
    step = np.spacing(value) / np.float16(2)
    return float(np.nextafter(step, np.float16(np.inf)))


# --- Exercise 3: step(losses, parameters, optimizer, scaler, max_norm) ----------------


def step_usual(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def step_divides_later(losses, parameters, optimizer, scaler, max_norm):
    parameters = list(parameters)
    for parameter in parameters:
        parameter.grad = None
    for loss in losses:
        scaler.scale(loss()).backward()
    scaler.unscale_(optimizer)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(len(losses))
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def step_clips_scaled(losses, parameters, optimizer, scaler, max_norm):
    # scaler.step unscales by itself, if nobody has: clip to scale times the norm
    optimizer.zero_grad(set_to_none=True)
    share = 1.0 / len(losses)
    for loss in losses:
        scaler.scale(share * loss()).backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm * scaler.get_scale())
    scaler.step(optimizer)
    scaler.update()


def step_clips_by_hand(losses, parameters, optimizer, scaler, max_norm):
    parameters = list(parameters)
    optimizer.zero_grad(set_to_none=False)
    for k in range(len(losses)):
        scaler.scale(losses[k]().div(len(losses))).backward()
    scaler.unscale_(optimizer)
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.stack([g.norm() for g in grads]).norm()
    if norm > max_norm:
        for grad in grads:
            grad *= max_norm / norm
    scaler.step(optimizer)
    scaler.update()


def step_one_sum(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(torch.stack([loss() for loss in losses]).mean()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def step_autograd_grad(losses, parameters, optimizer, scaler, max_norm):
    parameters = [p for p in parameters if p.requires_grad]
    sums = [torch.zeros_like(p) for p in parameters]
    for loss in losses:
        scaled = scaler.scale(loss())
        for s, g in zip(sums, torch.autograd.grad(scaled, parameters), strict=True):
            s.add_(g, alpha=1 / len(losses))
    for parameter, s in zip(parameters, sums, strict=True):
        parameter.grad = s
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def step_zero_at_both_ends(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    values = []
    for loss in reversed(losses):
        value = loss()
        values.append(value.item())
        scaler.scale(value).mul(1 / len(losses)).backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm=max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return sum(values) / len(values), norm


def step_not_unscaled(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def step_no_zero(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def step_sum(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def step_each(losses, parameters, optimizer, scaler, max_norm):
    parameters = list(parameters)
    for loss in losses:
        optimizer.zero_grad()
        scaler.scale(loss() / len(losses)).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        scaler.step(optimizer)
        scaler.update()


def step_unscales_each(losses, parameters, optimizer, scaler, max_norm):
    # unscale_ may be called once in an update
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
        scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def step_clips_each(losses, parameters, optimizer, scaler, max_norm):
    parameters = list(parameters)
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
        bound = max_norm * scaler.get_scale()
        torch.nn.utils.clip_grad_norm_(parameters, bound)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


def step_no_update(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)


def step_past_the_scaler(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    scaler.update()


def step_zero_in_between(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        optimizer.zero_grad()
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def step_not_scaled(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        (loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def step_clips_after(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.update()


def step_clips_values(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_value_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def step_skips_by_itself(losses, parameters, optimizer, scaler, max_norm):
    # on an overflow it returns before update(): the scale is never halved
    parameters = list(parameters)
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    if not torch.isfinite(norm):
        return
    scaler.step(optimizer)
    scaler.update()


def step_unscaled_by_hand_too(losses, parameters, optimizer, scaler, max_norm):
    # divides by the scale, and scaler.step divides once more
    parameters = list(parameters)
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad /= scaler.get_scale()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def step_last_loss(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    for loss in losses:
        value = loss()
    scaler.scale(value).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def step_zero_after_backward(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    optimizer.zero_grad()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def step_always_to_norm(losses, parameters, optimizer, scaler, max_norm):
    parameters = list(parameters)
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    for parameter in parameters:
        parameter.grad *= max_norm / norm
    scaler.step(optimizer)
    scaler.update()


def step_updates_first(losses, parameters, optimizer, scaler, max_norm):
    # update() before step(): a scaler that has unscaled nothing has no record
    optimizer.zero_grad()
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
        scaler.update()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)


RIGHT = {
    0: [
        descend_copy,
        descend_new_tensors,
        descend_alpha,
        descend_sgd,
        descend_numpy,
        descend_recursion,
        descend_reduce,
        Descend(),
    ],
    1: [
        update_isfinite,
        update_times_zero,
        update_in_place,
        update_numpy,
        update_loop,
        update_optimizer,
        update_where,
    ],
    2: [
        power_search,
        power_numpy,
        power_parity,
        power_bits,
        power_spacing,
        power_downwards,
        power_binary_search,
        power_nextafter,
        power_table,
        power_recursion,
    ],
    3: [
        step_usual,
        step_divides_later,
        step_clips_scaled,
        step_clips_by_hand,
        step_one_sum,
        step_autograd_grad,
        step_zero_at_both_ends,
    ],
}

WRONG = {
    0: [
        (descend_all_in_bfloat16, "small updates are rounded away in bfloat16"),
        (descend_changes_weight, "changes the weight that it was given"),
        (descend_float32_gradient, "gradient_of gets a float32 weight"),
        (descend_rounds_each, "rounds the copy to bfloat16 after each update"),
        (descend_start_gradient, "asks for the gradient at the start every time"),
        (descend_asks_twice, "asks for the gradient twice in each update"),
        (descend_one_more, "one update too many"),
        (descend_one_less, "one update too few"),
        (descend_upwards, "goes up the gradient"),
        (descend_returns_bfloat16, "returns bfloat16 and not the float32 copy"),
        (descend_returns_rounded, "returns the rounded copy"),
        (descend_float16, "gradient_of gets float16"),
        (descend_copy_of_rounded, "the copy starts from the rounded weight"),
        (descend_sum_in_bfloat16, "adds the updates up in bfloat16, where they stick"),
        (descend_low_moves_on, "the gradient is taken at a weight that sticks"),
        (descend_forgets_rate, "forgets the rate"),
    ],
    1: [
        (update_only_nan, "takes an inf for a good gradient"),
        (update_only_inf, "takes a NaN for a good gradient"),
        (update_only_positive_inf, "takes minus infinity for good"),
        (update_all_bad, "bad only if every entry is inf or NaN"),
        (update_sum_overflows, "the sum of finite entries may be inf"),
        (update_not_unscaled, "does not divide by the scale"),
        (update_new_scale, "divides by the scale after it is doubled"),
        (update_streak_goes_on, "streak is not 0 after the doubling"),
        (update_streak_survives, "a bad update does not set streak to 0"),
        (update_one_late, "compares before it adds 1: doubles one late"),
        (update_beyond_interval, "> interval: doubles one update late"),
        (update_repairs, "moves the entries that are finite"),
        (update_moves_anyway, "moves the weight by inf or NaN"),
        (update_whole_half, "// 2 makes 0 of a scale of 1"),
        (update_scale_at_least_one, "a scale of 1 is not halved"),
        (update_bad_counts_one, "streak is 1 after a bad update"),
        (update_doubles_always, "doubles at each good update"),
        (update_two_thousand, "the interval is hard-coded"),
        (update_order, "returns streak before scale"),
    ],
    2: [
        (power_machine_epsilon, "right for even numbers in 1 .. 2 only"),
        (power_whole_step, "an odd number moves by half a step already"),
        (power_half_step, "half a step leaves an even number (w = 1) as it is"),
        (power_parity_reversed, "even and odd exchanged"),
        (power_times_w, "no power of two unless w is one"),
        (power_exponent, "returns the exponent"),
        (power_rounded_log, "rounds the logarithm up from 1.42 on"),
        (power_last_without_change, "the largest one that changes nothing"),
        (power_float32, "adds in float32"),
        (power_bfloat16, "adds in bfloat16"),
        (power_python_float, "adds in Python's 64 bits"),
        (power_from_smallest_normal, "misses the subnormal powers below 2**-14"),
        (power_up_to_one, "finds no power above 1"),
        (power_relative_to_one, "asks for 1 and not for w"),
        (power_subtracts, "takes it away: below a power of two steps are finer"),
        (power_any_step, "a number that is no power of two"),
    ],
    3: [
        (step_not_unscaled, "clips gradients that are still scaled"),
        (step_no_zero, "adds to the gradients that are left over"),
        (step_sum, "the sum over the micro-batches, not the mean"),
        (step_each, "an update for each micro-batch"),
        (step_unscales_each, "unscales more than once"),
        (step_clips_each, "clips after each micro-batch"),
        (step_no_update, "scaler.update() is missing"),
        (step_past_the_scaler, "optimizer.step() steps on inf and NaN, too"),
        (step_zero_in_between, "keeps the last micro-batch's gradient only"),
        (step_not_scaled, "the loss is not scaled, but its gradient unscaled"),
        (step_clips_after, "clips when the step is made already"),
        (step_clips_values, "clips each entry and not the norm"),
        (step_skips_by_itself, "after an overflow the scale stays as it is"),
        (step_unscaled_by_hand_too, "divides by the scale twice"),
        (step_last_loss, "the gradient of the last loss only"),
        (step_zero_after_backward, "empties the gradients before the step"),
        (step_always_to_norm, "scales a small gradient up to max_norm"),
        (step_updates_first, "update() in the loop, and none after the step"),
    ],
}

UNCLEAR = {
    0: [
        "May rate * gradient be rounded to bfloat16 before it is taken from the float32"
        " copy (copy -= rate * gradient_of(...))? `products in bfloat16` could mean it.",
        "A copy in float64, returned as float32: the words ask for float32.",
        "No tolerance is given: another order of float32 operations may round to another"
        " bfloat16 weight, and the runs then part a little.",
        "With updates = 0: a copy, or may the given tensor itself come back?",
    ],
    1: [
        "May the weight be changed in place? `moves the weight` allows it;"
        " update_in_place does so.",
        "scaled_grad may be float16: dividing in 16 bits loses small entries, but the"
        " question names no type (the answers here convert to the weight's first).",
        "Is a streak beyond the interval at the call possible? Then == and >= differ.",
    ],
    2: [
        "The power may come back as float, np.float16, Fraction or a 0-dim tensor.",
        "`It is not 2**-11 for w = 1: why?` asks for words that no function returns.",
    ],
    3: [
        "`parameters` may be an iterator such as model.parameters(); answers that walk"
        " over it twice without list() fail then. The question does not say.",
        "All losses in one sum with one backward pass (step_one_sum) is the same update,"
        " with more memory; the question forbids it nowhere.",
        "Gradients emptied at the end of the call only: right from the second call on,"
        " wrong if the first call finds some; `left over from the call before` is open.",
        "That update() is called once in each call, overflow or not, follows only from"
        " what a GradScaler needs; the question does not name it.",
        "Clipping to max_norm * scale before scaler.step (step_clips_scaled) relies on"
        " the real GradScaler, which unscales in step() if nobody has.",
    ],
}
