"""Answers by a stranger to the exercises of chapter 06_activations."""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F

# Exercise 0: dead_units(batches)


def dead_cat(batches):
    return int((torch.cat(batches) == 0).all(dim=0).sum())


def dead_running(batches):
    dead = None
    for outputs in batches:
        asleep = (outputs == 0).all(dim=0)
        dead = asleep if dead is None else dead & asleep
    return dead.sum()


def dead_numpy(batches):
    rows = np.concatenate([b.detach().numpy() for b in batches], axis=0)
    return np.count_nonzero(~rows.any(axis=0))


def dead_columns(batches):
    units = batches[0].shape[1]
    return sum(all(not b[:, unit].any() for b in batches) for unit in range(units))


def dead_sets(batches):
    alive = set()
    for outputs in batches:
        alive.update(outputs.nonzero()[:, 1].tolist())
    return len(set(range(batches[0].shape[-1])) - alive)


def dead_counts(batches):
    counts = sum(torch.count_nonzero(outputs, dim=0) for outputs in batches)
    return counts.eq(0).sum().item()


def dead_reduce(batches):
    awake = (outputs.ne(0).any(0) for outputs in batches)
    return float(functools.reduce(torch.logical_or, awake).logical_not().sum())


def dead_lists(batches):
    rows = [row for outputs in batches for row in outputs.tolist()]
    return sum(1 for column in zip(*rows) if all(value == 0 for value in column))


def dead_recursive(batches):
    def awake(rest):
        here = (rest[0].detach().abs() > 0).sum(dim=0)
        return here if len(rest) == 1 else here + awake(rest[1:])

    return int(torch.sum(awake(batches) < 1))


class DeadUnits:
    """Strike out the units that are seen awake."""

    def __call__(self, batches):
        left = torch.arange(batches[0].size(1))
        for outputs in batches:
            left = left[[bool((outputs[:, unit] == 0).all()) for unit in left.tolist()]]
        return left.numel()


dead_object = DeadUnits()


def wrong_dead_mean(batches):
    counts = []
    for outputs in batches:
        asleep = (outputs == 0).all(dim=0)
        counts.append(int(asleep.sum()))
    return sum(counts) / len(counts)


def wrong_dead_sum(batches):
    return sum(int((outputs == 0).all(dim=0).sum()) for outputs in batches)


def wrong_dead_any_batch(batches):
    dead = torch.zeros(batches[0].shape[1], dtype=torch.bool)
    for outputs in batches:
        dead |= (outputs == 0).all(dim=0)
    return int(dead.sum())


def wrong_dead_any_row(batches):
    return int((torch.cat(batches) == 0).any(dim=0).sum())


def wrong_dead_max(batches):
    return int((torch.cat(batches).amax(dim=0) == 0).sum())


def wrong_dead_not_positive(batches):
    return int((torch.cat(batches) <= 0).all(dim=0).sum())


def wrong_dead_sum_zero(batches):
    return int((torch.cat(batches).sum(dim=0) == 0).sum())


def wrong_dead_small(batches):
    return int((torch.cat(batches).abs() < 1e-3).all(dim=0).sum())


def wrong_dead_close(batches):
    rows = torch.cat(batches)
    return int(torch.isclose(rows, torch.zeros_like(rows)).all(dim=0).sum())


def wrong_dead_squares(batches):
    return int((torch.cat(batches).pow(2).sum(dim=0) == 0).sum())


def wrong_dead_last(batches):
    for outputs in batches:
        dead = (outputs == 0).all(dim=0)
    return int(dead.sum())


def wrong_dead_first(batches):
    return int((batches[0] == 0).all(dim=0).sum())


def wrong_dead_stack(batches):
    return int((torch.stack(batches) == 0).all(dim=0).all(dim=0).sum())


def wrong_dead_rows(batches):
    return int((torch.cat(batches) == 0).all(dim=1).sum())


def wrong_dead_share(batches):
    return float((torch.cat(batches) == 0).all(dim=0).float().mean())


def wrong_dead_smallest_count(batches):
    return min(int((outputs == 0).all(dim=0).sum()) for outputs in batches)


def wrong_dead_mask(batches):
    return (torch.cat(batches) == 0).all(dim=0)


def wrong_dead_zeros(batches):
    return int((torch.cat(batches) == 0).sum())


def wrong_dead_alive(batches):
    return int((torch.cat(batches) != 0).any(dim=0).sum())


def wrong_dead_constant(batches):
    rows = torch.cat(batches)
    return int((rows == rows[0]).all(dim=0).sum())


def wrong_dead_batch_means(batches):
    means = torch.stack([outputs.mean(dim=0) for outputs in batches])
    return int((means == 0).all(dim=0).sum())


def wrong_dead_most(batches):
    rows = torch.cat(batches) == 0
    return int((rows.float().mean(dim=0) > 0.99).sum())


def wrong_dead_list(batches):
    dead = (torch.cat(batches) == 0).all(dim=0)
    return dead.nonzero().flatten().tolist()


def wrong_dead_min(batches):
    return int((torch.cat(batches).amin(dim=0) == 0).sum())


# Exercise 1: std(fan_in, activation)


def std_draws(fan_in, activation):
    with torch.no_grad():
        second = activation(torch.randn(1_000_000)).pow(2).mean()
    return 1 / (fan_in * second).sqrt()


def std_float(fan_in, activation):
    z = torch.randn(500_000, generator=torch.Generator().manual_seed(1))
    values = activation(torch.cat([z, -z])).detach()
    return float(values.square().mean() * fan_in) ** -0.5


def std_grid(fan_in, activation):
    z = torch.linspace(-8.0, 8.0, 100_001)
    density = torch.softmax(-z * z / 2, dim=0)
    second = torch.einsum("i,i,i->", activation(z), activation(z), density)
    return (fan_in**-0.5) * second.item() ** -0.5


def std_numpy(fan_in, activation):
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.standard_normal(1_000_000).astype(np.float32))
    values = activation(z).detach().numpy().astype(np.float64)
    return np.sqrt(1 / fan_in) / np.sqrt(np.mean(values**2))


def std_rows(fan_in, activation):
    """Rows of fan_in numbers, as a layer has them."""
    total, rows = 0.0, 1 + 500_000 // fan_in
    for _ in range(2):
        signal = activation(torch.randn(rows, fan_in)).detach()
        total += signal.pow(2).sum(dim=1).mean().item() / 2
    return math.sqrt(1 / total)


def std_quantiles(fan_in, activation):
    p = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    z = torch.special.ndtri(p).float()
    rms = torch.linalg.vector_norm(activation(z).detach()) / math.sqrt(len(z))
    return 1.0 / (rms * math.sqrt(fan_in))


class Std:
    """The mean square of a few long draws, kept in a list."""

    draws = 10

    def __call__(self, fan_in, activation):
        squares = []
        for _ in range(self.draws):
            values = activation(torch.normal(0.0, 1.0, size=(100_000,)))
            squares += [torch.dot(values, values).item() / 100_000]
        return (len(squares) / sum(squares) / fan_in) ** 0.5


std_object = Std()


def wrong_std_variance(fan_in, activation):
    second = activation(torch.randn(1_000_000)).detach().pow(2).mean()
    return 1 / (fan_in * second)


def wrong_std_gain(fan_in, activation):
    second = activation(torch.randn(1_000_000)).detach().pow(2).mean()
    return 1 / second.sqrt()


def wrong_std_spread(fan_in, activation):
    values = activation(torch.randn(1_000_000)).detach()
    return 1 / (math.sqrt(fan_in) * values.std())


def wrong_std_inverse(fan_in, activation):
    second = activation(torch.randn(1_000_000)).detach().pow(2).mean()
    return (second / fan_in).sqrt()


def wrong_std_kaiming(fan_in, activation):
    return math.sqrt(2 / fan_in)


def wrong_std_xavier(fan_in, activation):
    return math.sqrt(1 / fan_in)


def wrong_std_absolute(fan_in, activation):
    values = activation(torch.randn(1_000_000)).detach()
    return 1 / (math.sqrt(fan_in) * values.abs().mean())


def wrong_std_uniform(fan_in, activation):
    second = activation(torch.rand(1_000_000)).detach().pow(2).mean()
    return 1 / (fan_in * second).sqrt()


def wrong_std_few(fan_in, activation):
    z = torch.randn(fan_in, generator=torch.Generator().manual_seed(0))
    return 1 / (fan_in * activation(z).detach().pow(2).mean()).sqrt()


def wrong_std_outside(fan_in, activation):
    z = torch.randn(1_000_000)
    second = activation(z.pow(2)).detach().mean()
    return 1 / (fan_in * second).sqrt()


def wrong_std_fan_not_rooted(fan_in, activation):
    second = activation(torch.randn(1_000_000)).detach().pow(2).mean()
    return 1 / (fan_in * second.sqrt())


def wrong_std_slope(fan_in, activation):
    z = torch.randn(1_000_000, requires_grad=True)
    (slope,) = torch.autograd.grad(activation(z).sum(), z)
    return 1 / (fan_in * slope.pow(2).mean()).sqrt()


def wrong_std_grid(fan_in, activation):
    z = torch.linspace(-3, 3, 100_001)
    second = activation(z).detach().pow(2).mean()
    return 1 / (fan_in * second).sqrt()


def wrong_std_scaled_input(fan_in, activation):
    z = torch.randn(1_000_000) / math.sqrt(fan_in)
    second = activation(z).detach().pow(2).mean()
    return 1 / (fan_in * second).sqrt()


def wrong_std_sum_first(fan_in, activation):
    z = torch.randn(1 + 500_000 // fan_in, fan_in)
    second = activation(z.sum(dim=1)).detach().pow(2).mean()
    return 1 / second.sqrt()


def wrong_std_mean_squared(fan_in, activation):
    values = activation(torch.randn(1_000_000)).detach()
    return 1 / (math.sqrt(fan_in) * values.mean().abs())


def wrong_std_positive(fan_in, activation):
    z = torch.randn(1_000_000).abs()
    second = activation(z).detach().pow(2).mean()
    return 1 / (fan_in * second).sqrt()


def wrong_std_fan_above(fan_in, activation):
    second = activation(torch.randn(1_000_000)).detach().pow(2).mean()
    return (fan_in / second).sqrt()


def wrong_std_of_weights_too(fan_in, activation):
    z = torch.randn(1 + 500_000 // fan_in, fan_in)
    signal = activation(z).detach() @ torch.full((fan_in,), 1.0)
    return 1 / signal.pow(2).mean().sqrt()


def wrong_std_doubled(fan_in, activation):
    second = activation(torch.randn(1_000_000)).detach().pow(2).mean()
    return (2 / (fan_in * second)).sqrt()


# Exercise 2: sigmoid(x)


def sigmoid_sign(x):
    side = torch.where(x < 0, 1.0, -1.0).to(x)
    e = torch.exp(side * x)
    return torch.where(x < 0, e, torch.ones_like(e)) / (1 + e)


def sigmoid_double_where(x):
    up = x >= 0
    zero = torch.zeros_like(x)
    e = torch.exp(torch.where(up, -x, zero))
    f = torch.exp(torch.where(up, zero, x))
    return torch.where(up, 1 / (1 + e), f / (1 + f))


def sigmoid_shifted(x):
    """A softmax over x and 0, less the larger of the two."""
    shift = x.detach().clamp(min=0)
    e = torch.exp(x - shift)
    return e / (e + torch.exp(-shift))


def sigmoid_masks(x):
    out = torch.empty_like(x)
    up = x > 0
    out[up] = 1 / (1 + torch.exp(-x[up]))
    e = torch.exp(x[~up])
    out[~up] = e / (1 + e)
    return out


def sigmoid_loop(x):
    def one(value):
        if value < 0:
            e = torch.exp(value)
            return e / (e + 1)
        return 1 / (torch.exp(-value) + 1)

    return torch.stack([one(value) for value in x.reshape(-1)]).reshape(x.shape)


class SigmoidFunction(torch.autograd.Function):
    """With the slope s (1 - s), both factors from the same exponential."""

    @staticmethod
    def forward(ctx, x):
        e = torch.exp(-x.abs())
        ctx.save_for_backward(e)
        return torch.where(x < 0, e, torch.ones_like(e)) / (1 + e)

    @staticmethod
    def backward(ctx, grad):
        (e,) = ctx.saved_tensors
        return grad * e / (1 + e) ** 2


def sigmoid_function(x):
    return SigmoidFunction.apply(x)


def sigmoid_log(x):
    return torch.exp(-torch.logaddexp(torch.zeros_like(x), -x))


def sigmoid_stacked(x):
    pair = torch.stack([torch.zeros_like(x), x])
    e = torch.exp(pair - pair.detach().amax(dim=0))
    return e[1] / e.sum(dim=0)


def sigmoid_products(x):
    """Each half by a float mask, from exponents that are never above 0."""
    up = (x.detach() >= 0).to(x.dtype)
    e = torch.exp(x * (1 - 2 * up))
    return (up + (1 - up) * e) / (1 + e)


def wrong_sigmoid_plain(x):
    return 1 / (1 + torch.exp(-x))


def wrong_sigmoid_other(x):
    return torch.exp(x) / (1 + torch.exp(x))


def wrong_sigmoid_where(x):
    e = torch.exp(x)
    return torch.where(x >= 0, 1 / (1 + torch.exp(-x)), e / (1 + e))


def wrong_sigmoid_absolute(x):
    e = torch.exp(-x.abs())
    return torch.where(x >= 0, 1 / (1 + e), e / (1 + e))


def wrong_sigmoid_relu(x):
    low, high = torch.exp(-torch.relu(-x)), torch.exp(-torch.relu(x))
    return torch.where(x >= 0, 1 / (1 + high), low / (1 + low))


def wrong_sigmoid_two_clamps(x):
    low, high = torch.exp(x.clamp(max=0)), torch.exp(-x.clamp(min=0))
    return torch.where(x >= 0, 1 / (1 + high), low / (1 + low))


def wrong_sigmoid_minimum(x):
    low = torch.exp(torch.minimum(x, torch.zeros_like(x)))
    high = torch.exp(-torch.maximum(x, torch.zeros_like(x)))
    return torch.where(x >= 0, 1 / (1 + high), low / (1 + low))


def wrong_sigmoid_clamped(x):
    return 1 / (1 + torch.exp(-x.clamp(-5, 5)))


def wrong_sigmoid_wide_clamp(x):
    return 1 / (1 + torch.exp(-x.clamp(-500, 500)))


def wrong_sigmoid_detached(x):
    with torch.no_grad():
        e = torch.exp(-x.abs())
        return torch.where(x >= 0, 1 / (1 + e), e / (1 + e))


def wrong_sigmoid_float32(x):
    y = x.float()
    shift = y.detach().clamp(min=0)
    e = torch.exp(y - shift)
    return (e / (e + torch.exp(-shift))).to(x.dtype)


def wrong_sigmoid_nan_to_num(x):
    e = torch.exp(x)
    return torch.nan_to_num(e / (1 + e), nan=1.0)


def wrong_sigmoid_epsilon(x):
    e = torch.exp(-x.clamp(min=-80))
    return 1 / (1 + e + 1e-3)


def wrong_sigmoid_hard(x):
    return (x / 6 + 0.5).clamp(0, 1)


def wrong_sigmoid_tanh(x):
    side = torch.where(x < 0, 2.0, -2.0).to(x)
    e = torch.exp(side * x)
    return torch.where(x < 0, e - 1, 1 - e) / (1 + e)


def wrong_sigmoid_scalar(x):
    if x >= 0:
        return 1 / (1 + torch.exp(-x))
    e = torch.exp(x)
    return e / (1 + e)


def wrong_sigmoid_one_shift(x):
    shift = x.detach().max().clamp(min=0)
    e = torch.exp(x - shift)
    return e / (e + torch.exp(-shift))


def wrong_sigmoid_flipped(x):
    shift = x.detach().clamp(max=0)
    e = torch.exp(shift - x)
    return e / (e + torch.exp(shift))


def wrong_sigmoid_gap(x):
    out = torch.zeros_like(x)
    up, down = x > 0, x < 0
    out[up] = 1 / (1 + torch.exp(-x[up]))
    e = torch.exp(x[down])
    out[down] = e / (1 + e)
    return out


def wrong_sigmoid_torch(x):
    return torch.sigmoid(x)


def wrong_sigmoid_numpy(x):
    y = x.detach().numpy()
    e = np.exp(-np.abs(y))
    return torch.from_numpy(np.where(y >= 0, 1 / (1 + e), e / (1 + e)))


def wrong_sigmoid_steps(x):
    inside = 1 / (1 + torch.exp(-x.clamp(-20, 20)))
    outside = (x > 0).to(x.dtype)
    return torch.where(x.abs() <= 3, inside, outside)


def wrong_sigmoid_in_place(x):
    x.data.clamp_(-80, 80)
    return 1 / (1 + torch.exp(-x))


class WrongSlope(torch.autograd.Function):
    """A slope that forgets the factor 1 - s."""

    @staticmethod
    def forward(ctx, x):
        e = torch.exp(-x.abs())
        s = torch.where(x < 0, e, torch.ones_like(e)) / (1 + e)
        ctx.save_for_backward(s)
        return s

    @staticmethod
    def backward(ctx, grad):
        (s,) = ctx.saved_tensors
        return grad * s


def wrong_sigmoid_slope(x):
    return WrongSlope.apply(x)


# Exercise 3: loss(logits, targets)


def loss_logsumexp(logits, targets):
    right = logits[torch.arange(len(logits)), targets]
    return (torch.logsumexp(logits, dim=1) - right).mean()


def loss_nll(logits, targets):
    return F.nll_loss(F.log_softmax(logits, dim=-1), targets)


def loss_shifted(logits, targets):
    z = logits - logits.max(dim=1, keepdim=True).values
    log_sum = z.exp().sum(dim=1).log()
    return (log_sum - z.gather(1, targets[:, None]).squeeze(1)).sum() / len(targets)


def loss_one_hot(logits, targets):
    logs = logits - logits.logsumexp(1, keepdim=True)
    chosen = F.one_hot(targets, logits.shape[1]).to(logits.dtype)
    return -torch.einsum("rc,rc->", logs, chosen) / logits.shape[0]


def loss_loop(logits, targets):
    total = 0.0
    for row, target in zip(logits, targets.tolist()):
        top = row.detach().max()
        total = total + top + torch.log(torch.sum(torch.exp(row - top))) - row[target]
    return total / len(logits)


def loss_categorical(logits, targets):
    return torch.distributions.Categorical(logits=logits).log_prob(targets).mean().neg()


def loss_pairwise(logits, targets):
    """Adds the classes one by one, on logarithms."""
    columns = logits.unbind(dim=1)
    log_sum = functools.reduce(torch.logaddexp, columns)
    return torch.mean(log_sum - torch.take_along_dim(logits, targets[:, None], 1)[:, 0])


def loss_differences(logits, targets):
    """How far the other logits are from the right one."""
    return (logits - logits.gather(1, targets.view(-1, 1))).logsumexp(dim=1).mean()


class LossFunction(torch.autograd.Function):
    """With the gradient by hand: (softmax - one hot) / rows."""

    @staticmethod
    def forward(ctx, logits, targets):
        z = logits - logits.amax(dim=1, keepdim=True)
        e = z.exp()
        total = e.sum(dim=1, keepdim=True)
        ctx.save_for_backward(e / total, targets)
        return (total.log() - z.gather(1, targets.unsqueeze(1))).mean()

    @staticmethod
    def backward(ctx, grad):
        p, targets = ctx.saved_tensors
        p = p.clone()
        p[torch.arange(len(p)), targets] -= 1
        return grad * p / len(p), None


loss_function = functools.partial(LossFunction.apply)


def wrong_loss_log_of_softmax(logits, targets):
    p = torch.softmax(logits, dim=1)
    return -p[torch.arange(len(p)), targets].log().mean()


def wrong_loss_exp(logits, targets):
    right = logits[torch.arange(len(logits)), targets]
    return (logits.exp().sum(dim=1).log() - right).mean()


def wrong_loss_epsilon(logits, targets):
    p = torch.softmax(logits, dim=1)
    return -(p[torch.arange(len(p)), targets] + 1e-9).log().mean()


def wrong_loss_clamped(logits, targets):
    p = torch.softmax(logits, dim=1).clamp(min=1e-12)
    return -p[torch.arange(len(p)), targets].log().mean()


def wrong_loss_sum(logits, targets):
    right = logits[torch.arange(len(logits)), targets]
    return (torch.logsumexp(logits, dim=1) - right).sum()


def wrong_loss_rows(logits, targets):
    right = logits[torch.arange(len(logits)), targets]
    return torch.logsumexp(logits, dim=1) - right


def wrong_loss_all_entries(logits, targets):
    logs = torch.log_softmax(logits, dim=1)
    return -(logs * F.one_hot(targets, logits.shape[1])).mean()


def wrong_loss_one_shift(logits, targets):
    z = logits - logits.max()
    right = z[torch.arange(len(z)), targets]
    return (z.exp().sum(dim=1).log() - right).mean()


def wrong_loss_columns(logits, targets):
    logs = torch.log_softmax(logits, dim=0)
    return -logs[torch.arange(len(logs)), targets].mean()


def wrong_loss_clamped_logits(logits, targets):
    z = logits.clamp(-50, 50)
    right = z[torch.arange(len(z)), targets]
    return (z.exp().sum(dim=1).log() - right).mean()


def wrong_loss_sign(logits, targets):
    right = logits[torch.arange(len(logits)), targets]
    return (right - torch.logsumexp(logits, dim=1)).mean()


def wrong_loss_argmax(logits, targets):
    right = logits[torch.arange(len(logits)), logits.argmax(dim=1)]
    return (torch.logsumexp(logits, dim=1) - right).mean()


def wrong_loss_bits(logits, targets):
    right = logits[torch.arange(len(logits)), targets]
    return (torch.logsumexp(logits, dim=1) - right).mean() / math.log(2)


def wrong_loss_number(logits, targets):
    right = logits[torch.arange(len(logits)), targets]
    return (torch.logsumexp(logits, dim=1) - right).mean().item()


def wrong_loss_squares(logits, targets):
    p = torch.softmax(logits, dim=1)
    return (p - F.one_hot(targets, logits.shape[1])).pow(2).sum(dim=1).mean()


def wrong_loss_shift_lost(logits, targets):
    top = logits.max(dim=1, keepdim=True).values
    right = logits[torch.arange(len(logits)), targets]
    return ((logits - top).exp().sum(dim=1).log() - right).mean()


def wrong_loss_nll_softmax(logits, targets):
    return F.nll_loss(torch.softmax(logits, dim=1), targets)


def wrong_loss_all_pairs(logits, targets):
    right = logits[:, targets]
    return (torch.logsumexp(logits, dim=1, keepdim=True) - right).mean()


def wrong_loss_smoothed(logits, targets):
    logs = torch.log_softmax(logits, dim=1)
    right = logs[torch.arange(len(logs)), targets]
    return -(0.9 * right + 0.1 * logs.mean(dim=1)).mean()


def wrong_loss_softmax_twice(logits, targets):
    logs = torch.log_softmax(torch.softmax(logits, dim=1), dim=1)
    return -logs[torch.arange(len(logs)), targets].mean()


def wrong_loss_detached_sum(logits, targets):
    right = logits[torch.arange(len(logits)), targets]
    return (torch.logsumexp(logits.detach(), dim=1) - right).mean()


def wrong_loss_nan_to_num(logits, targets):
    p = torch.softmax(logits, dim=1)
    logs = torch.nan_to_num(p.log(), neginf=0.0)
    return -logs[torch.arange(len(p)), targets].mean()


def wrong_loss_library(logits, targets):
    return F.cross_entropy(logits, targets)


def wrong_loss_binary(logits, targets):
    chosen = F.one_hot(targets, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, chosen)


RIGHT = {
    0: [
        dead_cat,
        dead_running,
        dead_numpy,
        dead_columns,
        dead_sets,
        dead_counts,
        dead_reduce,
        dead_lists,
        dead_recursive,
        dead_object,
    ],
    1: [
        std_draws,
        std_float,
        std_grid,
        std_numpy,
        std_rows,
        std_quantiles,
        std_object,
    ],
    2: [
        sigmoid_sign,
        sigmoid_double_where,
        sigmoid_shifted,
        sigmoid_masks,
        sigmoid_loop,
        sigmoid_function,
        sigmoid_log,
        sigmoid_stacked,
        sigmoid_products,
    ],
    3: [
        loss_logsumexp,
        loss_nll,
        loss_shifted,
        loss_one_hot,
        loss_loop,
        loss_categorical,
        loss_pairwise,
        loss_differences,
        loss_function,
    ],
}

WRONG = {
    0: [
        (wrong_dead_mean, "The given code: a mean of the counts of batches."),
        (wrong_dead_sum, "It adds the counts of batches."),
        (wrong_dead_any_batch, "Zero on one batch is enough for it."),
        (wrong_dead_any_row, "Zero on one row is enough for it."),
        (wrong_dead_max, "A unit with outputs below 0 and a 0 counts as dead."),
        (wrong_dead_not_positive, "Negative outputs count as dead."),
        (wrong_dead_sum_zero, "Outputs of both signs can add up to 0."),
        (wrong_dead_small, "Small outputs count as 0."),
        (wrong_dead_close, "Outputs below 1e-8 count as 0."),
        (wrong_dead_squares, "The squares of tiny outputs become 0."),
        (wrong_dead_last, "It looks at the last batch."),
        (wrong_dead_first, "It looks at the first batch."),
        (wrong_dead_stack, "Batches of different sizes do not stack."),
        (wrong_dead_rows, "It counts rows."),
        (wrong_dead_share, "It returns a share."),
        (wrong_dead_smallest_count, "The least count is not that of all batches."),
        (wrong_dead_mask, "It returns a mask."),
        (wrong_dead_zeros, "It counts entries."),
        (wrong_dead_alive, "It counts the others."),
        (wrong_dead_constant, "A unit stuck at another number counts as dead."),
        (wrong_dead_batch_means, "Outputs of both signs can have the mean 0."),
        (wrong_dead_most, "Zero on most rows is enough for it."),
        (wrong_dead_list, "It returns a list of the units."),
        (wrong_dead_min, "A unit with one 0 counts as dead."),
    ],
    1: [
        (wrong_std_variance, "It returns the variance."),
        (wrong_std_gain, "It leaves out fan_in."),
        (wrong_std_spread, "It subtracts the mean of the activation."),
        (wrong_std_inverse, "The mean square is above, not below."),
        (wrong_std_kaiming, "Right for a ReLU only."),
        (wrong_std_xavier, "Right without an activation only."),
        (wrong_std_absolute, "The mean size in place of the root mean square."),
        (wrong_std_uniform, "z is uniform."),
        (wrong_std_few, "It draws fan_in numbers only, not within 2 %."),
        (wrong_std_outside, "It squares z, not the activation."),
        (wrong_std_fan_not_rooted, "fan_in is not under the root."),
        (wrong_std_slope, "It uses the slope of the activation."),
        (wrong_std_grid, "A grid without the weights of the normal."),
        (wrong_std_scaled_input, "z is not standard normal."),
        (wrong_std_sum_first, "It sums before the activation."),
        (wrong_std_mean_squared, "The mean in place of the root mean square."),
        (wrong_std_positive, "It takes positive z only."),
        (wrong_std_fan_above, "fan_in is above, not below."),
        (wrong_std_of_weights_too, "Equal weights: the means add up."),
        (wrong_std_doubled, "It has a factor of sqrt(2) too much."),
    ],
    2: [
        (wrong_sigmoid_plain, "The gradient is nan at -1000."),
        (wrong_sigmoid_other, "It is nan at 1000."),
        (wrong_sigmoid_where, "The branch not taken makes the gradient nan."),
        (wrong_sigmoid_absolute, "The gradient at 0 is 0: that of abs."),
        (wrong_sigmoid_relu, "The gradient at 0 is 0: that of relu."),
        (wrong_sigmoid_two_clamps, "The gradient at 0 is 0: that of torch 2.15's clamp."),
        (wrong_sigmoid_minimum, "The gradient at 0 is 1/8: both sides get a half."),
        (wrong_sigmoid_clamped, "It is constant beyond 5."),
        (wrong_sigmoid_wide_clamp, "exp(500) overflows in float32."),
        (wrong_sigmoid_detached, "It has no gradient."),
        (wrong_sigmoid_float32, "In float64 it has the digits of float32."),
        (wrong_sigmoid_nan_to_num, "The value is mended, the gradient is nan."),
        (wrong_sigmoid_epsilon, "It is off by up to 0.001."),
        (wrong_sigmoid_hard, "Straight pieces are no sigmoid."),
        (wrong_sigmoid_tanh, "This is tanh."),
        (wrong_sigmoid_scalar, "It works for a single number only."),
        (wrong_sigmoid_one_shift, "One shift for all: nan next to a 1000."),
        (wrong_sigmoid_flipped, "This is sigmoid(-x)."),
        (wrong_sigmoid_gap, "It is 0 at 0."),
        (wrong_sigmoid_torch, "It is not written from torch.exp."),
        (wrong_sigmoid_numpy, "It has no gradient."),
        (wrong_sigmoid_steps, "It jumps to 0 and 1 at 3."),
        (wrong_sigmoid_in_place, "It changes x."),
        (wrong_sigmoid_slope, "The gradient lacks the factor 1 - s."),
    ],
    3: [
        (wrong_loss_log_of_softmax, "The logarithm of 0 for large logits."),
        (wrong_loss_exp, "It overflows for large logits."),
        (wrong_loss_epsilon, "It stops at 21, without a gradient."),
        (wrong_loss_clamped, "It stops at 28, without a gradient."),
        (wrong_loss_sum, "It is the sum."),
        (wrong_loss_rows, "It returns a loss for each row."),
        (wrong_loss_all_entries, "The mean is over rows and classes."),
        (wrong_loss_one_shift, "One shift for all: rows far below become inf."),
        (wrong_loss_columns, "The softmax is over the rows."),
        (wrong_loss_clamped_logits, "Logits beyond 50 are cut off."),
        (wrong_loss_sign, "It has the wrong sign."),
        (wrong_loss_argmax, "It takes the largest logit for the target."),
        (wrong_loss_bits, "It is in bits."),
        (wrong_loss_number, "It returns a number without a gradient."),
        (wrong_loss_squares, "This is a squared error."),
        (wrong_loss_shift_lost, "The shift is not put back."),
        (wrong_loss_nll_softmax, "nll_loss wants logarithms."),
        (wrong_loss_all_pairs, "Each row meets the targets of all rows."),
        (wrong_loss_smoothed, "The labels are smoothed."),
        (wrong_loss_softmax_twice, "It takes the softmax twice."),
        (wrong_loss_detached_sum, "Half of the gradient is missing."),
        (wrong_loss_nan_to_num, "A target of probability 0 costs nothing."),
        (wrong_loss_library, "It uses F.cross_entropy."),
        (wrong_loss_binary, "Binary losses, one for each class."),
    ],
}

UNCLEAR = {
    0: [
        "An empty list of batches, or a batch without rows.",
        "May the number be a tensor of 0 dims, or a float? I count both as right.",
    ],
    1: [
        "The shape and dtype of what the activation gets ('any function of a tensor').",
        "An activation that changes its input, such as an in-place ReLU.",
    ],
    2: [
        "Far below 0: right to how many digits (1e-44 at -100 in float32)?",
        "(1 + tanh(x / 2)) / 2 from exponentials is near 0 with an error of 1e-8.",
        "Must the second derivative be right, too?",
        "The slope of clamp at its edge, where it decides, is 1 in older torch.",
        "Are torch.logaddexp and a shift of x 'from torch.exp'? I say yes.",
    ],
    3: [
        "nn.CrossEntropyLoss calls F.cross_entropy: is that 'without' it?",
        "Logits of -inf (masked classes) are not said to come.",
    ],
}
