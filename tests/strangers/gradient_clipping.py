"""Answers by a stranger to the exercises of chapter 04_gradient_clipping."""

import functools
import math
from collections import deque

import numpy as np
import pandas as pd
import torch

# Exercise 0: clip(parameters, max_norm)


def clip_library(parameters, max_norm):
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)


clip_partial = functools.partial(torch.nn.utils.clip_grad_norm_, norm_type=2.0)


def clip_float(parameters, max_norm):
    total = 0.0
    for p in parameters:
        if p.grad is not None:
            total += float(p.grad.double().pow(2).sum())
    norm = math.sqrt(total)
    if norm > max_norm:
        for p in parameters:
            if p.grad is not None:
                p.grad.mul_(max_norm / norm)
    return norm


def clip_foreach(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.tensor(0.0)
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    factor = (max_norm / norm).clamp(max=1.0)  # max_norm / 0 is inf, and becomes 1
    torch._foreach_mul_(grads, factor)
    return norm


def clip_numpy(parameters, max_norm):
    views = [p.grad.numpy() for p in parameters if p.grad is not None]
    norm = np.sqrt(sum(np.sum(np.square(v, dtype=np.float64)) for v in views))
    if norm > max_norm:
        for v in views:
            v *= max_norm / norm
    return np.float64(norm)


def clip_hypot(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = math.hypot(*[g.norm().item() for g in grads])
    factor = 1.0 if norm <= max_norm else max_norm / norm
    for g in grads:
        g *= factor
    return norm


class ClipFlat:
    """Clip one long vector, and copy its pieces back into the gradients."""

    def __call__(self, parameters, max_norm):
        grads = [p.grad for p in parameters if p.grad is not None]
        if not grads:
            return 0
        flat = torch.cat([g.reshape(-1) for g in grads])
        norm = flat.dot(flat).sqrt()
        if norm > max_norm:
            flat = flat / norm * max_norm
            for g, piece in zip(grads, flat.split([g.numel() for g in grads])):
                g.copy_(piece.view_as(g))
        return norm


clip_flat = ClipFlat()


def clip_recursive(parameters, max_norm):
    def square(rest):
        if not rest:
            return torch.zeros(())
        head = rest[0].grad
        if head is None:
            return square(rest[1:])
        return torch.einsum("i,i->", head.flatten(), head.flatten()) + square(rest[1:])

    norm = square(list(parameters)).sqrt()
    if norm > max_norm:
        for p in parameters:
            if p.grad is not None:
                p.grad.div_(norm / max_norm)
    return norm


def clip_two_steps(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    total = torch.nn.utils.get_total_norm(grads)
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    return total


def clip_floor(parameters, max_norm):
    grads = [p.grad.data for p in parameters if p.grad is not None]
    norm = sum((g**2).sum() for g in grads) ** 0.5
    for g in grads:
        g[...] = g * min(1.0, max_norm / max(float(norm), 1e-30))
    return norm


def wrong_clip_each(parameters, max_norm):
    total = 0.0
    for p in parameters:
        if p.grad is None:
            continue
        norm = p.grad.norm()
        total += float(norm) ** 2
        if norm > max_norm:
            p.grad.mul_(max_norm / norm)
    return math.sqrt(total)


def wrong_clip_no_root(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = sum(g.pow(2).sum() for g in grads)
    if norm > max_norm:
        for g in grads:
            g.mul_(max_norm / norm)
    return norm


def wrong_clip_always(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.sqrt(sum(g.pow(2).sum() for g in grads))
    if norm > 0:
        for g in grads:
            g.mul_(max_norm / norm)
    return norm


def wrong_clip_sum_of_norms(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = sum(g.norm() for g in grads)
    if norm > max_norm:
        for g in grads:
            g.mul_(max_norm / norm)
    return norm


def wrong_clip_value(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.sqrt(sum(g.pow(2).sum() for g in grads))
    for g in grads:
        g.clamp_(-max_norm, max_norm)
    return norm


def wrong_clip_none(parameters, max_norm):
    norm = torch.sqrt(sum(p.grad.pow(2).sum() for p in parameters))
    if norm > max_norm:
        for p in parameters:
            p.grad.mul_(max_norm / norm)
    return norm


def wrong_clip_returns_after(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.sqrt(sum(g.pow(2).sum() for g in grads))
    if norm > max_norm:
        for g in grads:
            g.mul_(max_norm / norm)
    return torch.sqrt(sum(g.pow(2).sum() for g in grads))


def wrong_clip_returns_none(parameters, max_norm):
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def wrong_clip_new_tensor(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.sqrt(sum(g.pow(2).sum() for g in grads))
    if norm > max_norm:
        for p in parameters:
            if p.grad is not None:
                p.grad = p.grad * (max_norm / norm)
    return norm


def wrong_clip_zero(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(g.pow(2).sum().item() for g in grads))
    factor = min(1.0, max_norm / norm)
    for g in grads:
        g.mul_(factor)
    return norm


def wrong_clip_zero_nan(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.sqrt(sum(g.pow(2).sum() for g in grads))
    for g in grads:
        g.copy_(g / norm * torch.clamp(norm, max=max_norm))
    return norm


def wrong_clip_weights(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.sqrt(sum(g.pow(2).sum() for g in grads))
    if norm > max_norm:
        for p in parameters:
            p.data.mul_(max_norm / norm)
    return norm


def wrong_clip_largest(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = max((g.abs().max() for g in grads), default=torch.tensor(0.0))
    if norm > max_norm:
        for g in grads:
            g.mul_(max_norm / norm)
    return norm


def wrong_clip_l1(parameters, max_norm):
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type=1)


def wrong_clip_rms(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    norm = flat.pow(2).mean().sqrt()
    if norm > max_norm:
        for g in grads:
            g.mul_(max_norm / norm)
    return norm


def wrong_clip_break(parameters, max_norm):
    grads = []
    for p in parameters:
        if p.grad is None:
            break
        grads.append(p.grad)
    norm = torch.sqrt(sum((g.pow(2).sum() for g in grads), torch.zeros(())))
    if norm > max_norm:
        for g in grads:
            g.mul_(max_norm / norm)
    return norm


def wrong_clip_one(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.sqrt(sum(g.pow(2).sum() for g in grads))
    if norm > 1:
        for g in grads:
            g.mul_(max_norm / norm)
    return norm


def wrong_clip_running(parameters, max_norm):
    total = 0.0
    for p in parameters:
        if p.grad is None:
            continue
        total += float(p.grad.pow(2).sum())
        if math.sqrt(total) > max_norm:
            p.grad.mul_(max_norm / math.sqrt(total))
    return math.sqrt(total)


def wrong_clip_weights_norm(parameters, max_norm):
    norm = torch.sqrt(sum(p.detach().pow(2).sum() for p in parameters))
    for p in parameters:
        if p.grad is not None and norm > max_norm:
            p.grad.mul_(max_norm / norm)
    return norm


def wrong_clip_biggest_tensor(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = max((g.norm() for g in grads), default=torch.tensor(0.0))
    if norm > max_norm:
        for g in grads:
            g.mul_(max_norm / norm)
    return norm


def wrong_clip_root_factor(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.sqrt(sum(g.pow(2).sum() for g in grads))
    if norm > max_norm:
        for g in grads:
            g.mul_((max_norm / norm) ** 0.5)
    return norm


def wrong_clip_subtracts(parameters, max_norm):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.sqrt(sum(g.pow(2).sum() for g in grads))
    if norm > max_norm:
        for g in grads:
            g.sub_(norm - max_norm)
    return norm


# Exercise 1: update(losses, parameters, optimizer, scaler, max_norm)


def update_plain(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def update_zeros(losses, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad(set_to_none=False)
    for loss in losses:
        (scaler.scale(loss()) / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=False)


def update_divide_late(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss()).backward()
    scaler.unscale_(optimizer)
    for p in parameters:
        if p.grad is not None:
            p.grad.div_(len(losses))
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    for p in parameters:
        p.grad = None


def update_sum_bound(losses, parameters, optimizer, scaler, max_norm):
    count = len(losses)
    for loss in losses:
        scaler.scale(loss()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm * count)
    for p in parameters:
        if p.grad is not None:
            p.grad /= count
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def update_seed(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        value = loss()
        seed = scaler.scale(torch.full_like(value, 1 / len(losses)))
        value.backward(gradient=seed)
    scaler.unscale_(optimizer)
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.stack([g.norm() for g in grads]).norm()
    for g in grads:
        g.mul_((max_norm / norm).clamp(max=1.0))
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def update_scaled_bound(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm * scaler.get_scale())
    scaler.step(optimizer)  # unscales by itself
    scaler.update()
    optimizer.zero_grad()


def update_recursive(losses, parameters, optimizer, scaler, max_norm):
    def back(rest):
        if rest:
            scaler.scale(rest[0]().mul(1 / len(losses))).backward()
            back(rest[1:])

    optimizer.zero_grad()
    back(losses)
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(list(parameters), max_norm, foreach=False)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


class UpdateByGrad:
    """Sum the gradients in lists of its own, by torch.autograd.grad."""

    def __call__(self, losses, parameters, optimizer, scaler, max_norm):
        parameters = list(parameters)
        total = [None] * len(parameters)
        for loss in losses:
            scaled = scaler.scale(loss()) / len(losses)
            grads = torch.autograd.grad(scaled, parameters, allow_unused=True)
            for i, g in enumerate(grads):
                if g is not None:
                    total[i] = g if total[i] is None else total[i] + g
        for p, g in zip(parameters, total):
            p.grad = g
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        scaler.step(optimizer)
        scaler.update()
        for p in parameters:
            p.grad = None


update_by_grad = UpdateByGrad()


def update_returns(losses, parameters, optimizer, scaler, max_norm):
    n = len(losses)
    total = 0.0
    left = deque(losses)
    while left:
        loss = left.popleft()() / n
        scaler.scale(loss).backward()
        total += loss.item()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return total, norm


def wrong_update_sum(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_no_unscale(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_clip_first(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_no_update(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    optimizer.zero_grad()


def wrong_update_one_backward(losses, parameters, optimizer, scaler, max_norm):
    mean = sum(loss() for loss in losses) / len(losses)
    scaler.scale(mean).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_keeps_grad(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()


def wrong_update_clip_each_batch(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
        bound = max_norm * scaler.get_scale()
        torch.nn.utils.clip_grad_norm_(parameters, bound)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_plain_step(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    scaler.update()
    optimizer.zero_grad()


def wrong_update_every_batch(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def wrong_update_zero_in_loop(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        optimizer.zero_grad()
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_no_clip(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_clip_each_tensor(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    for p in parameters:
        torch.nn.utils.clip_grad_norm_([p], max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_unscale_in_loop(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
        scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_clip_late(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_value(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_value_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_early_return(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    if not torch.isfinite(norm):
        optimizer.zero_grad()
        return
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_four(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / 4).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_clip_before_mean(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    for p in parameters:
        if p.grad is not None:
            p.grad.div_(len(losses))
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_drops_bad(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        value = loss()
        if torch.isfinite(value):
            scaler.scale(value / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_last_only(losses, parameters, optimizer, scaler, max_norm):
    scaler.scale(losses[-1]()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_nan_to_num(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    for p in parameters:
        if p.grad is not None:
            p.grad.nan_to_num_(0.0, 0.0, 0.0)
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_step_twice(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        scaler.scale(loss() / len(losses)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    scaler.step(optimizer)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def wrong_update_unscaled_loss(losses, parameters, optimizer, scaler, max_norm):
    for loss in losses:
        (loss() / len(losses)).backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    optimizer.zero_grad()


# Exercise 2: clipped(norms, window, quantile)


def clipped_plain(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t >= window:
            norm = min(norm, np.quantile(norms[t - window : t], quantile))
        out.append(norm)
    return out


def clipped_views(norms, window, quantile):
    norms = np.array(norms, dtype=float)
    out = norms.copy()
    if len(norms) > window:
        views = np.lib.stride_tricks.sliding_window_view(norms, window)[:-1]
        bounds = np.quantile(views, quantile, axis=1)
        out[window:] = np.minimum(out[window:], bounds)
    return out


def clipped_sorted(norms, window, quantile):
    out = list(norms[:window])
    for t in range(window, len(norms)):
        past = sorted(norms[t - window : t])
        place = quantile * (window - 1)
        low = math.floor(place)
        high = min(low + 1, window - 1)
        bound = past[low] + (place - low) * (past[high] - past[low])
        out.append(norms[t] if norms[t] < bound else bound)
    return tuple(out)


def clipped_deque(norms, window, quantile):
    past = deque(maxlen=window)
    out = []
    for norm in norms:
        full = len(past) == window
        bound = np.percentile(list(past), 100 * quantile) if full else math.inf
        out.append(float(np.minimum(norm, bound)))
        past.append(norm)
    return out


def clipped_torch(norms, window, quantile):
    raw = torch.as_tensor(norms, dtype=torch.float64)
    if len(raw) <= window:
        return raw.tolist()
    bounds = torch.quantile(raw.unfold(0, window, 1)[:-1], quantile, dim=1)
    return torch.cat([raw[:window], torch.minimum(raw[window:], bounds)]).tolist()


def clipped_pandas(norms, window, quantile):
    raw = pd.Series(list(norms), dtype=float)
    bounds = raw.rolling(window).quantile(quantile).shift(1)
    return raw.where(~(raw > bounds), bounds).tolist()


def clipped_recursive(norms, window, quantile):
    if len(norms) <= window:
        return list(norms)
    bound = np.quantile(norms[-window - 1 : -1], quantile)
    before = clipped_recursive(norms[:-1], window, quantile)
    return before + [norms[-1] if norms[-1] <= bound else bound]


def clipped_lambda_body(norms, window, quantile):
    bound = lambda t: np.quantile(norms[t - window : t], quantile)  # noqa: E731
    late = range(window, len(norms))
    return [*norms[:window], *(sorted((norms[t], bound(t)))[0] for t in late)]


def clipped_array(norms, window, quantile):
    bounds = np.full(len(norms), np.inf)
    for t in range(len(norms)):
        if t - window >= 0:
            bounds[t] = np.quantile(np.take(norms, range(t - window, t)), quantile)
    return np.fmin(norms, bounds)


def wrong_clipped_with_own(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t >= window:
            norm = min(norm, np.quantile(norms[t - window : t + 1], quantile))
        out.append(norm)
    return out


def wrong_clipped_shifted(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t >= window:
            norm = min(norm, np.quantile(norms[t - window + 1 : t + 1], quantile))
        out.append(norm)
    return out


def wrong_clipped_history(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t >= window:
            norm = min(norm, np.quantile(out[-window:], quantile))
        out.append(norm)
    return out


def wrong_clipped_in_place(norms, window, quantile):
    for t in range(window, len(norms)):
        norms[t] = min(norms[t], np.quantile(norms[t - window : t], quantile))
    return norms


def wrong_clipped_mean(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t >= window:
            norm = min(norm, quantile * np.mean(norms[t - window : t]))
        out.append(norm)
    return out


def wrong_clipped_all_past(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t >= window:
            norm = min(norm, np.quantile(norms[:t], quantile))
        out.append(norm)
    return out


def wrong_clipped_early(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t > 0:
            norm = min(norm, np.quantile(norms[max(0, t - window) : t], quantile))
        out.append(norm)
    return out


def wrong_clipped_one_late(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t > window:
            norm = min(norm, np.quantile(norms[t - window : t], quantile))
        out.append(norm)
    return out


def wrong_clipped_window_plus(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t >= window:
            past = norms[max(0, t - window - 1) : t]
            norm = min(norm, np.quantile(past, quantile))
        out.append(norm)
    return out


def wrong_clipped_window_minus(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t >= window:
            past = norms[t - max(window - 1, 1) : t]
            norm = min(norm, np.quantile(past, quantile))
        out.append(norm)
    return out


def wrong_clipped_missing_start(norms, window, quantile):
    out = []
    for t in range(window, len(norms)):
        out.append(min(norms[t], np.quantile(norms[t - window : t], quantile)))
    return out


def wrong_clipped_max(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t >= window:
            norm = max(norm, np.quantile(norms[t - window : t], quantile))
        out.append(norm)
    return out


def wrong_clipped_lower(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t >= window:
            past = norms[t - window : t]
            norm = min(norm, np.quantile(past, quantile, method="lower"))
        out.append(norm)
    return out


def wrong_clipped_sorted_index(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t >= window:
            past = sorted(norms[t - window : t])
            norm = min(norm, past[min(int(quantile * window), window - 1)])
        out.append(norm)
    return out


def wrong_clipped_percent(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t >= window:
            norm = min(norm, np.percentile(norms[t - window : t], quantile))
        out.append(norm)
    return out


def wrong_clipped_zero_start(norms, window, quantile):
    out = [0.0] * min(window, len(norms))
    for t in range(window, len(norms)):
        out.append(min(norms[t], np.quantile(norms[t - window : t], quantile)))
    return out


def wrong_clipped_global(norms, window, quantile):
    bound = np.quantile(norms, quantile)
    return [n if t < window else min(n, bound) for t, n in enumerate(norms)]


def wrong_clipped_first_window(norms, window, quantile):
    bound = np.quantile(norms[:window], quantile)
    return [n if t < window else min(n, bound) for t, n in enumerate(norms)]


def wrong_clipped_blocks(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        start = (t // window - 1) * window
        if start >= 0:
            past = norms[start : start + window]
            norm = min(norm, np.quantile(past, quantile))
        out.append(norm)
    return out


def wrong_clipped_bounds(norms, window, quantile):
    out = list(norms[:window])
    for t in range(window, len(norms)):
        out.append(np.quantile(norms[t - window : t], quantile))
    return out


def wrong_clipped_factors(norms, window, quantile):
    out = [1.0] * min(window, len(norms))
    for t in range(window, len(norms)):
        bound = np.quantile(norms[t - window : t], quantile)
        out.append(min(1.0, bound / norms[t]))
    return out


def wrong_clipped_upper_tail(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t >= window:
            norm = min(norm, np.quantile(norms[t - window : t], 1 - quantile))
        out.append(norm)
    return out


def wrong_clipped_median(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t >= window:
            norm = min(norm, np.median(norms[t - window : t]))
        out.append(norm)
    return out


def wrong_clipped_dropped(norms, window, quantile):
    out = []
    for t, norm in enumerate(norms):
        if t < window or norm <= np.quantile(norms[t - window : t], quantile):
            out.append(norm)
    return out


RIGHT = {
    0: [
        clip_library,
        clip_partial,
        clip_float,
        clip_foreach,
        clip_numpy,
        clip_hypot,
        clip_flat,
        clip_recursive,
        clip_two_steps,
        clip_floor,
    ],
    1: [
        update_plain,
        update_zeros,
        update_divide_late,
        update_sum_bound,
        update_seed,
        update_scaled_bound,
        update_recursive,
        update_by_grad,
        update_returns,
    ],
    2: [
        clipped_plain,
        clipped_views,
        clipped_sorted,
        clipped_deque,
        clipped_torch,
        clipped_pandas,
        clipped_recursive,
        clipped_lambda_body,
        clipped_array,
    ],
}

WRONG = {
    0: [
        (wrong_clip_each, "Each tensor is clipped by its own norm."),
        (wrong_clip_no_root, "The norm lacks its square root."),
        (wrong_clip_always, "Short gradients are stretched to max_norm."),
        (wrong_clip_sum_of_norms, "The norms of the tensors are added."),
        (wrong_clip_value, "It clips each entry by value."),
        (wrong_clip_none, "It breaks at a parameter whose gradient is None."),
        (wrong_clip_returns_after, "It returns the norm after clipping."),
        (wrong_clip_returns_none, "It returns nothing."),
        (wrong_clip_new_tensor, "The gradient is replaced, not changed in place."),
        (wrong_clip_zero, "All gradients zero: it divides by zero."),
        (wrong_clip_zero_nan, "All gradients zero: they become nan."),
        (wrong_clip_weights, "It scales the weights, not the gradients."),
        (wrong_clip_largest, "It takes the largest entry for the norm."),
        (wrong_clip_l1, "It takes the sum of absolute values for the norm."),
        (wrong_clip_rms, "It takes the root of the mean square for the norm."),
        (wrong_clip_break, "It stops at the first gradient that is None."),
        (wrong_clip_one, "It compares the norm with 1, not with max_norm."),
        (wrong_clip_running, "It scales inside the loop that sums the norm."),
        (wrong_clip_weights_norm, "It measures the norm of the weights."),
        (wrong_clip_biggest_tensor, "It takes the largest norm of one tensor."),
        (wrong_clip_root_factor, "The factor is the root of the right one."),
        (wrong_clip_subtracts, "It subtracts the excess from every entry."),
    ],
    1: [
        (wrong_update_sum, "It takes the sum of the losses, not the mean."),
        (wrong_update_no_unscale, "It clips the scaled gradient."),
        (wrong_update_clip_first, "It clips before it unscales."),
        (wrong_update_no_update, "The scale is never lowered."),
        (wrong_update_one_backward, "It computes all losses before one backward."),
        (wrong_update_keeps_grad, "The gradient stays for the next call."),
        (wrong_update_clip_each_batch, "It clips after every micro-batch."),
        (wrong_update_plain_step, "The optimizer steps also if not finite."),
        (wrong_update_every_batch, "It makes an update for each micro-batch."),
        (wrong_update_zero_in_loop, "Only the last micro-batch counts."),
        (wrong_update_no_clip, "It does not clip."),
        (wrong_update_clip_each_tensor, "It clips each tensor by its own norm."),
        (wrong_update_unscale_in_loop, "It unscales once for each micro-batch."),
        (wrong_update_clip_late, "It clips after the step."),
        (wrong_update_value, "It clips by value."),
        (wrong_update_early_return, "A skipped update does not lower the scale."),
        (wrong_update_four, "It divides by 4, whatever the number of losses."),
        (wrong_update_clip_before_mean, "It clips the sum before it divides."),
        (wrong_update_drops_bad, "It drops a bad loss and updates all the same."),
        (wrong_update_last_only, "It takes the last loss only."),
        (wrong_update_nan_to_num, "It mends the gradient and does not skip."),
        (wrong_update_step_twice, "It steps twice, and torch refuses that."),
        (wrong_update_unscaled_loss, "It does not use the scaler at all."),
    ],
    2: [
        (wrong_clipped_with_own, "The norm itself is one of its window."),
        (wrong_clipped_shifted, "The window ends with the norm itself."),
        (wrong_clipped_history, "The window holds norms after clipping."),
        (wrong_clipped_in_place, "It writes clipped norms into its input."),
        (wrong_clipped_mean, "It takes a share of the mean, not a quantile."),
        (wrong_clipped_all_past, "It takes all norms before, not the window."),
        (wrong_clipped_early, "It clips the first updates, too."),
        (wrong_clipped_one_late, "The update after the first window is free."),
        (wrong_clipped_window_plus, "The window is one too long."),
        (wrong_clipped_window_minus, "The window is one too short."),
        (wrong_clipped_missing_start, "The first norms are not returned."),
        (wrong_clipped_max, "It takes the larger of norm and bound."),
        (wrong_clipped_lower, "The quantile is not interpolated."),
        (wrong_clipped_sorted_index, "The quantile is an entry of the sorted list."),
        (wrong_clipped_percent, "The quantile is taken for a percentage."),
        (wrong_clipped_zero_start, "The first norms come back as 0."),
        (wrong_clipped_global, "One bound from all norms, also later ones."),
        (wrong_clipped_first_window, "The bound does not move."),
        (wrong_clipped_blocks, "The bound moves once per block only."),
        (wrong_clipped_bounds, "It returns the bounds."),
        (wrong_clipped_factors, "It returns the factors."),
        (wrong_clipped_upper_tail, "It takes the quantile from the top."),
        (wrong_clipped_median, "It takes the median, whatever the quantile."),
        (wrong_clipped_dropped, "It drops the long ones, so some are missing."),
    ],
}

UNCLEAR = {
    0: [
        "A factor smaller than needed also brings the norm to 'at most' max_norm.",
        "A gradient that holds inf or nan, or max_norm 0: nothing is said.",
        "May a gradient that is None become zeros ('leave these out')?",
        "No parameter has a gradient, or the list is empty: the norm is 0, I think.",
        "Must a short gradient stay bit for bit? clip_grad_norm_ adds 1e-6.",
    ],
    1: [
        "A gradient of zeros at the end (set_to_none=False): I count it as right.",
        "Gradients already there before the first call: use them or drop them?",
        "Whether the function returns anything is left open.",
        "Must each function of `losses` be called exactly once?",
        "May the backward pass be torch.autograd.grad? I count it as right.",
    ],
    2: [
        "The kind of the returned sequence: list, tuple, array, tensor?",
        "May the input list be changed, if the numbers returned are right?",
        "window 0 is not said to be impossible.",
    ],
}
