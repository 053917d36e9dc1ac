"""Answers by a stranger to the exercises of chapter 03_regularization."""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.Embedding,  # spared, too
)

# Exercise 0: your_step(w, grad, lr, strength)


def step_sign(w, grad, lr, strength):
    u = w - lr * grad
    return u.sign() * (u.abs() - lr * strength).clamp(min=0)


def step_softshrink(w, grad, lr, strength):
    return F.softshrink(w - lr * grad, lr * strength)


def step_where(w, grad, lr, strength):
    moved = torch.sub(w, grad, alpha=lr)
    far = lr * strength
    nearer = torch.where(moved > 0, moved - far, moved + far)
    return torch.where(moved.abs() <= far, torch.zeros_like(moved), nearer)


def step_clamped(w, grad, lr, strength):
    u = w - grad * lr
    return u - u.clamp(-lr * strength, lr * strength)


def step_two_relus(w, grad, lr, strength):
    u, t = w - lr * grad, lr * strength
    return torch.relu(u - t) - torch.relu(-u - t)


def step_numpy(w, grad, lr, strength):
    u = w.detach().numpy() - lr * grad.detach().numpy()
    shrunk = np.sign(u) * np.maximum(np.abs(u) - lr * strength, 0)
    return torch.from_numpy(np.asarray(shrunk)).to(w.dtype)


def step_loop(w, grad, lr, strength):
    out = torch.empty_like(w)
    flat_out = out.view(-1)
    for i, (a, g) in enumerate(zip(w.flatten().tolist(), grad.flatten().tolist())):
        a -= lr * g
        if a > 0:
            a = max(a - lr * strength, 0.0)
        else:
            a = min(a + lr * strength, 0.0)
        flat_out[i] = a
    return out


def step_recursive(w, grad, lr, strength):
    if w.dim() > 0:
        if len(w) == 0:
            return w.clone()
        rows = [step_recursive(a, g, lr, strength) for a, g in zip(w, grad)]
        return torch.stack(rows)
    u, t = w - lr * grad, lr * strength
    if abs(u) <= t:
        return u * 0
    return u - t if u > 0 else u + t


@torch.no_grad()
def step_in_place(w, grad, lr, strength):
    w.sub_(lr * grad)
    w.copy_(torch.maximum(w - lr * strength, torch.minimum(w + lr * strength, w * 0)))
    return w


def step_median(w, grad, lr, strength):
    """The middle one of u - t, 0 and u + t."""
    u, t = w - lr * grad, lr * strength
    return torch.stack([u - t, torch.zeros_like(u), u + t]).median(dim=0).values


def wrong_step_given(w, grad, lr, strength):
    return w - lr * (grad + strength * w.sign())


def wrong_step_no_stop(w, grad, lr, strength):
    u = w - lr * grad
    return u - lr * strength * u.sign()


def wrong_step_no_rate(w, grad, lr, strength):
    u = w - lr * grad
    return u.sign() * (u.abs() - strength).clamp(min=0)


def wrong_step_hard(w, grad, lr, strength):
    u = w - lr * grad
    return torch.where(u.abs() <= lr * strength, torch.zeros_like(u), u)


def wrong_step_shrink_first(w, grad, lr, strength):
    shrunk = w.sign() * (w.abs() - lr * strength).clamp(min=0)
    return shrunk - lr * grad


def wrong_step_old_sign(w, grad, lr, strength):
    u = w - lr * grad
    return w.sign() * (u.abs() - lr * strength).clamp(min=0)


def wrong_step_old_size(w, grad, lr, strength):
    u = w - lr * grad
    return torch.where(w.abs() <= lr * strength, u * 0, u - lr * strength * u.sign())


def wrong_step_sign_flip(w, grad, lr, strength):
    new = w - lr * (grad + strength * w.sign())
    return torch.where(new * w < 0, torch.zeros_like(new), new)


def wrong_step_one_side(w, grad, lr, strength):
    return (w - lr * grad - lr * strength).clamp(min=0)


def wrong_step_norm(w, grad, lr, strength):
    u = w - lr * grad
    norm = u.norm()
    return u * (1 - lr * strength / norm).clamp(min=0)


def wrong_step_l2(w, grad, lr, strength):
    return (w - lr * grad) * (1 - lr * strength)


def wrong_step_ascent(w, grad, lr, strength):
    u = w + lr * grad
    return u.sign() * (u.abs() - lr * strength).clamp(min=0)


def wrong_step_default_shrink(w, grad, lr, strength):
    return F.softshrink(w - lr * grad)


def wrong_step_rate_squared(w, grad, lr, strength):
    u = w - lr * grad
    return u.sign() * (u.abs() - lr**2 * strength).clamp(min=0)


def wrong_step_half(w, grad, lr, strength):
    u = w - lr * grad
    return u.sign() * (u.abs() - lr * strength / 2).clamp(min=0)


def wrong_step_no_grad(w, grad, lr, strength):
    return w.sign() * (w.abs() - lr * strength).clamp(min=0)


def wrong_step_no_shrink(w, grad, lr, strength):
    return w - lr * grad


def wrong_step_vector_only(w, grad, lr, strength):
    out = []
    for a, g in zip(w, grad):
        u = float(a - lr * g)
        size = max(abs(u) - lr * strength, 0.0)
        out.append(size if u > 0 else -size)
    return torch.tensor(out)


def wrong_step_no_rate_on_grad(w, grad, lr, strength):
    u = w - grad
    return u.sign() * (u.abs() - lr * strength).clamp(min=0)


def wrong_step_nothing(w, grad, lr, strength):
    u = w - lr * grad
    u = u.sign() * (u.abs() - lr * strength).clamp(min=0)


def wrong_step_away(w, grad, lr, strength):
    u = w - lr * grad
    return u.sign() * (u.abs() + lr * strength)


def wrong_step_absolute(w, grad, lr, strength):
    return ((w - lr * grad).abs() - lr * strength).clamp(min=0)


def wrong_step_all_or_nothing(w, grad, lr, strength):
    u = w - lr * grad
    if (u.abs() <= lr * strength).all():
        return torch.zeros_like(u)
    return u - lr * strength * u.sign()


def wrong_step_grad_of_sum(w, grad, lr, strength):
    u = w - lr * (grad + strength * w.sign())
    return u.sign() * (u.abs() - lr * strength).clamp(min=0)


# Exercise 1: your_groups(model, weight_decay)


def groups_kinds(model, weight_decay):
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    decay = [m.weight for m in model.modules() if isinstance(m, layers)]
    ids = {id(p) for p in decay}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def groups_names(model, weight_decay):
    decay, rest = [], []
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            free = name.endswith("bias") or isinstance(module, NORMS)
            (rest if free else decay).append(p)
    return [
        dict(params=rest, weight_decay=0),
        dict(params=decay, weight_decay=weight_decay),
    ]


def groups_one_each(model, weight_decay):
    """One group for each parameter."""
    groups = []
    for name, p in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        is_weight = name.rpartition(".")[2] == "weight"
        decays = is_weight and not isinstance(module, NORMS)
        groups.append({"params": p, "weight_decay": weight_decay if decays else 0.0})
    return groups


def groups_tuples(model, weight_decay):
    norm_names = {
        name
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__ or isinstance(module, nn.Embedding)
    }
    free, decay = (), ()
    for name, p in model.named_parameters():
        owner, _, last = name.rpartition(".")
        if last == "bias" or owner in norm_names:
            free += (p,)
        else:
            decay += (p,)
    return (
        {"params": decay, "weight_decay": weight_decay, "name": "decay"},
        {"params": free, "weight_decay": 0.0, "name": "no decay"},
    )


def groups_three(model, weight_decay):
    """Weights, biases and scales in three groups."""
    kinds = {"weights": [], "biases": [], "scales": []}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is None:
                continue
            if isinstance(module, NORMS):
                kinds["scales"].append(p)
            elif name == "bias":
                kinds["biases"].append(p)
            else:
                kinds["weights"].append(p)
    decays = {"weights": weight_decay}
    return [
        {"params": v, "weight_decay": decays.get(k, 0)} for k, v in kinds.items() if v
    ]


def groups_named(model, weight_decay):
    """With the names, as torch takes them, too."""

    def is_decayed(name):
        module = model.get_submodule(".".join(name.split(".")[:-1]))
        return name.split(".")[-1] == "weight" and not isinstance(module, NORMS)

    named = list(model.named_parameters())
    return [
        {"params": [n for n in named if is_decayed(n[0])], "weight_decay": weight_decay},
        {"params": [n for n in named if not is_decayed(n[0])], "weight_decay": 0.0},
    ]


class Groups:
    """A walk down the tree of modules."""

    def walk(self, module, decay, rest):
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            decay.append(own.pop("weight"))
        elif isinstance(module, nn.modules.conv._ConvTransposeNd):
            decay.append(own.pop("weight"))
        rest.extend(own.values())
        for child in module.children():
            self.walk(child, decay, rest)

    def __call__(self, model, weight_decay):
        decay, rest = [], []
        self.walk(model, decay, rest)
        free = {"params": rest, "weight_decay": 0.0}
        return [free, {"params": decay, "weight_decay": float(weight_decay)}]


groups_object = Groups()


def wrong_groups_all(model, weight_decay):
    return [{"params": list(model.parameters()), "weight_decay": weight_decay}]


def wrong_groups_default(model, weight_decay):
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    decay = [m.weight for m in model.modules() if isinstance(m, layers)]
    ids = {id(p) for p in decay}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest}]


def wrong_groups_bias_name(model, weight_decay):
    decay = [p for n, p in model.named_parameters() if not n.endswith("bias")]
    rest = [p for n, p in model.named_parameters() if n.endswith("bias")]
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def wrong_groups_batch_norm_only(model, weight_decay):
    decay, rest = [], []
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            free = name == "bias" or isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
            (rest if free else decay).append(p)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def wrong_groups_norm_name(model, weight_decay):
    decay, rest = [], []
    for name, p in model.named_parameters():
        free = name.endswith("bias") or "norm" in name or "bn" in name
        (rest if free else decay).append(p)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def wrong_groups_no_norms(model, weight_decay):
    layers = [
        m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))
    ]
    return [
        {"params": [m.weight for m in layers], "weight_decay": weight_decay},
        {"params": [m.bias for m in layers if m.bias is not None], "weight_decay": 0.0},
    ]


def wrong_groups_decay_only(model, weight_decay):
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    decay = [m.weight for m in model.modules() if isinstance(m, layers)]
    return [{"params": decay, "weight_decay": weight_decay}]


def wrong_groups_swapped(model, weight_decay):
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    decay = [m.weight for m in model.modules() if isinstance(m, layers)]
    ids = {id(p) for p in decay}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [
        {"params": decay, "weight_decay": 0.0},
        {"params": rest, "weight_decay": weight_decay},
    ]


def wrong_groups_children(model, weight_decay):
    decay, rest = [], []
    for module in model.children():
        for name, p in module.named_parameters(recurse=False):
            free = name == "bias" or isinstance(module, NORMS)
            (rest if free else decay).append(p)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def wrong_groups_children_whole(model, weight_decay):
    """A block inside the model decays as a whole."""
    decay, rest = [], []
    for module in model.children():
        for name, p in module.named_parameters():
            free = name.endswith("bias") or isinstance(module, NORMS)
            (rest if free else decay).append(p)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def wrong_groups_twice(model, weight_decay):
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    decay = [m.weight for m in model.modules() if isinstance(m, layers)]
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": list(model.parameters()), "weight_decay": 0.0},
    ]


def wrong_groups_linear(model, weight_decay):
    decay = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    ids = {id(p) for p in decay}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def wrong_groups_conv2d(model, weight_decay):
    layers = (nn.Linear, nn.Conv2d)
    decay = [m.weight for m in model.modules() if isinstance(m, layers)]
    ids = {id(p) for p in decay}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def wrong_groups_matrices(model, weight_decay):
    decay = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def wrong_groups_fixed(model, weight_decay):
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    decay = [m.weight for m in model.modules() if isinstance(m, layers)]
    ids = {id(p) for p in decay}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [
        {"params": decay, "weight_decay": 0.01},
        {"params": rest, "weight_decay": 0.0},
    ]


def wrong_groups_bias_decays(model, weight_decay):
    decay, rest = [], []
    for module in model.modules():
        for p in module.parameters(recurse=False):
            (rest if isinstance(module, NORMS) else decay).append(p)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def wrong_groups_frozen(model, weight_decay):
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    decay = [m.weight for m in model.modules() if isinstance(m, layers)]
    ids = {id(p) for p in decay}
    rest = [p.requires_grad_(False) for p in model.parameters() if id(p) not in ids]
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def wrong_groups_copies(model, weight_decay):
    decay, rest = [], []
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            free = name == "bias" or isinstance(module, NORMS)
            (rest if free else decay).append(nn.Parameter(p.detach().clone()))
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def wrong_groups_strings(model, weight_decay):
    decay, rest = [], []
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(prefix, recurse=False):
            free = name.endswith("bias") or isinstance(module, NORMS)
            (rest if free else decay).append(name)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def wrong_groups_affine_pairs(model, weight_decay):
    """The bias of a norm is free, but its scale decays, if it has no bias."""
    decay, rest = [], []
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        for name, p in own.items():
            free = name == "bias" or (isinstance(module, NORMS) and "bias" in own)
            (rest if free else decay).append(p)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


# Exercise 2: your_update(w, grad, adam, lr, weight_decay)


def update_plain(w, grad, adam, lr, weight_decay):
    return w - adam(grad) - lr * weight_decay * w


def update_shrunk(w, grad, adam, lr, weight_decay):
    return w * (1 - lr * weight_decay) - adam(grad)


def update_torch(w, grad, adam, lr, weight_decay):
    return torch.add(w.mul(1 - lr * weight_decay), adam(grad), alpha=-1)


@torch.no_grad()
def update_in_place(w, grad, adam, lr, weight_decay):
    step = adam(grad)
    w.mul_(1 - lr * weight_decay).sub_(step)
    return w


def update_lerp(w, grad, adam, lr, weight_decay):
    return torch.lerp(w, torch.zeros_like(w), lr * weight_decay) - adam(grad)


def update_sum(w, grad, adam, lr, weight_decay):
    return sum((w, -adam(grad), -(lr * weight_decay) * w))


def update_order(w, grad, adam, lr, weight_decay):
    moved = w.clone()
    moved -= adam(grad.clone())
    return torch.addcmul(moved, w, torch.full_like(w, lr * weight_decay), value=-1)


def update_numpy(w, grad, adam, lr, weight_decay):
    old = w.detach().numpy()
    new = old * (1 - lr * weight_decay) - adam(grad).detach().numpy()
    return torch.as_tensor(new, dtype=w.dtype)


update_lambda = lambda w, grad, adam, lr, weight_decay: (  # noqa: E731
    -(adam(grad) + (weight_decay * lr - 1) * w)
)


def wrong_update_l2(w, grad, adam, lr, weight_decay):
    return w - adam(grad + weight_decay * w)


def wrong_update_both(w, grad, adam, lr, weight_decay):
    return w * (1 - lr * weight_decay) - adam(grad + weight_decay * w)


def wrong_update_no_rate(w, grad, adam, lr, weight_decay):
    return w * (1 - weight_decay) - adam(grad)


def wrong_update_rate_twice(w, grad, adam, lr, weight_decay):
    return w * (1 - lr * weight_decay) - lr * adam(grad)


def wrong_update_no_decay(w, grad, adam, lr, weight_decay):
    return w - adam(grad)


def wrong_update_adam_twice(w, grad, adam, lr, weight_decay):
    adam(grad)
    return w * (1 - lr * weight_decay) - adam(grad)


def wrong_update_plus(w, grad, adam, lr, weight_decay):
    return w * (1 - lr * weight_decay) + adam(grad)


def wrong_update_grows(w, grad, adam, lr, weight_decay):
    return w * (1 + lr * weight_decay) - adam(grad)


def wrong_update_sign(w, grad, adam, lr, weight_decay):
    return w - adam(grad) - lr * weight_decay * w.sign()


def wrong_update_decays_step(w, grad, adam, lr, weight_decay):
    return w - adam(grad) * (1 - lr * weight_decay)


def wrong_update_step_only(w, grad, adam, lr, weight_decay):
    return adam(grad) + lr * weight_decay * w


def wrong_update_nothing(w, grad, adam, lr, weight_decay):
    w = w * (1 - lr * weight_decay) - adam(grad)


def wrong_update_inside_adam(w, grad, adam, lr, weight_decay):
    return w - adam(grad + lr * weight_decay * w)


def wrong_update_two_steps(w, grad, adam, lr, weight_decay):
    return w - adam(grad) - adam(weight_decay * w)


def wrong_update_scaled_grad(w, grad, adam, lr, weight_decay):
    return w * (1 - lr * weight_decay) - adam(lr * grad) / lr


def wrong_update_plain_gradient(w, grad, adam, lr, weight_decay):
    return w * (1 - lr * weight_decay) - lr * grad


def wrong_update_half(w, grad, adam, lr, weight_decay):
    return w * (1 - lr * weight_decay / 2) - adam(grad)


def wrong_update_squared(w, grad, adam, lr, weight_decay):
    return w - adam(grad) - lr * weight_decay * w**2


def wrong_update_adam_of_decayed(w, grad, adam, lr, weight_decay):
    return w - adam(grad * (1 - lr * weight_decay))


def wrong_update_grad_changed(w, grad, adam, lr, weight_decay):
    grad.add_(w, alpha=weight_decay)
    return w - adam(grad)


def wrong_update_mean(w, grad, adam, lr, weight_decay):
    return w - adam(grad) - lr * weight_decay * w.mean()


def wrong_update_divides(w, grad, adam, lr, weight_decay):
    return w - adam(grad) - weight_decay / lr * w


# Exercise 3: your_dropout(x, p, training)


def dropout_library(x, p, training):
    return F.dropout(x, p, training)


def dropout_mask(x, p, training):
    if not training:
        return x
    keep = torch.rand_like(x) >= p
    return x * keep / max(1 - p, 1e-12)


def dropout_bernoulli(x, p, training):
    if not training or p == 0:
        return x
    if p == 1:
        return x * 0
    return x * torch.bernoulli(torch.full_like(x, 1 - p)).div(1 - p)


def dropout_where(x, p, training):
    if training:
        scaled = x / (1 - p) if p < 1 else x
        x = torch.where(torch.rand(x.shape) < p, torch.zeros((), dtype=x.dtype), scaled)
    return x


def dropout_module(x, p, training):
    layer = nn.Dropout(p=p)
    return layer.train(training)(x)


def dropout_fill(x, p, training):
    if not training:
        return x.clone()
    drop = torch.empty(x.shape).uniform_().lt(p)
    out = x.masked_fill(drop, 0.0)
    return out if p == 1 else out.mul(1 / (1 - p))


def dropout_numpy(x, p, training):
    if training:
        keep = np.random.default_rng().random(tuple(x.shape)) >= p
        factor = np.divide(keep, 1 - p, out=np.zeros(keep.shape), where=keep)
        return x * torch.as_tensor(factor, dtype=x.dtype)
    return x


def dropout_chosen(x, p, training):
    """Decide for one entry after the other."""
    if not training:
        return x
    draws = torch.rand(x.numel()).tolist()
    keep = [0.0 if draw < p else 1 / (1 - p) for draw in draws]
    return torch.einsum("i,i->i", x.reshape(-1), x.new_tensor(keep)).reshape(x.shape)


class DropoutByFunction(torch.autograd.Function):
    """With a backward pass of its own."""

    @staticmethod
    def forward(ctx, x, p):
        factor = (torch.rand(x.shape) >= p).to(x.dtype)
        if p < 1:
            factor = factor / (1 - p)
        ctx.save_for_backward(factor)
        return x * factor

    @staticmethod
    def backward(ctx, grad):
        (factor,) = ctx.saved_tensors
        return grad * factor, None


def dropout_function(x, p, training):
    return DropoutByFunction.apply(x, p) if training else x


dropout_partial = functools.partial(F.dropout, inplace=False)


def wrong_dropout_unscaled(x, p, training):
    if not training:
        return x
    return x * (torch.rand_like(x) >= p)


def wrong_dropout_scaled_by_p(x, p, training):
    if not training or p == 0:
        return x
    return x * (torch.rand_like(x) >= p) / p


def wrong_dropout_kept_with_p(x, p, training):
    if not training or p == 0:
        return x
    return x * (torch.rand_like(x) < p) / p


def wrong_dropout_at_one(x, p, training):
    if not training:
        return x
    return x * (torch.rand_like(x) >= p) / (1 - p)


def wrong_dropout_at_one_tensor(x, p, training):
    if not training:
        return x
    keep = torch.bernoulli(torch.full_like(x, 1 - p))
    return x * keep / torch.tensor(1 - p, dtype=x.dtype)


def wrong_dropout_in_place(x, p, training):
    if not training or p == 1:
        return x if not training else x * 0
    x.data.mul_(torch.rand_like(x) >= p).div_(1 - p)
    return x


def wrong_dropout_rows(x, p, training):
    if not training or p == 1:
        return x if not training else x * 0
    keep = torch.rand(x.shape[:1] + (1,) * (x.dim() - 1)) >= p
    return x * keep / (1 - p)


def wrong_dropout_columns(x, p, training):
    if not training or p == 1:
        return x if not training else x * 0
    keep = torch.rand(x.shape[-1:]) >= p
    return x * keep / (1 - p)


def wrong_dropout_seed(x, p, training):
    if not training or p == 1:
        return x if not training else x * 0
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(x.shape, generator=generator) >= p
    return x * keep / (1 - p)


def wrong_dropout_detached(x, p, training):
    if not training or p == 1:
        return x if not training else x * 0
    return x.detach() * (torch.rand_like(x) >= p) / (1 - p)


def wrong_dropout_always(x, p, training):
    if p == 1:
        return x * 0
    return x * (torch.rand_like(x) >= p) / (1 - p)


def wrong_dropout_functional(x, p, training):
    return F.dropout(x, p)


def wrong_dropout_module(x, p, training):
    return nn.Dropout(p)(x)


def wrong_dropout_never(x, p, training):
    return x


def wrong_dropout_eval_scaled(x, p, training):
    if not training:
        return x * (1 - p)
    return x * (torch.rand_like(x) >= p)


def wrong_dropout_flipped(x, p, training):
    if training or p == 1:
        return x if training else x * 0
    return x * (torch.rand_like(x) >= p) / (1 - p)


def wrong_dropout_exact(x, p, training):
    if not training or p == 1:
        return x if not training else x * 0
    mask = torch.ones(x.numel(), dtype=x.dtype)
    mask[torch.randperm(x.numel())[: round(p * x.numel())]] = 0
    return x * mask.view(x.shape) / (1 - p)


def wrong_dropout_gaussian(x, p, training):
    if not training or p == 1:
        return x if not training else x * 0
    return x * (1 + torch.randn_like(x) * (p / (1 - p)) ** 0.5)


def wrong_dropout_half(x, p, training):
    return F.dropout(x, 0.5, training)


def wrong_dropout_channels(x, p, training):
    if x.dim() < 2:
        return F.dropout(x, p, training)
    return F.dropout2d(x.reshape(*x.shape, 1, 1)[None, ..., 0], p, training)[0, ..., 0]


def wrong_dropout_two_dims(x, p, training):
    if not training or p == 1:
        return x if not training else x * 0
    keep = torch.rand(x.shape[0], x.shape[1]) >= p
    return x * keep / (1 - p)


def wrong_dropout_root(x, p, training):
    if not training or p == 1:
        return x if not training else x * 0
    return x * (torch.rand_like(x) >= p) / (1 - p) ** 0.5


def wrong_dropout_no_graph(x, p, training):
    with torch.no_grad():
        return F.dropout(x, p, training)


def wrong_dropout_eval_detached(x, p, training):
    if not training:
        return x.detach()
    return F.dropout(x, p)


def wrong_dropout_alpha(x, p, training):
    return F.alpha_dropout(x, p, training)


def wrong_dropout_counted(x, p, training):
    if not training:
        return x
    keep = torch.rand_like(x) >= p
    return x * keep * (x.numel() / keep.sum())  # nan where all are dropped


def wrong_dropout_normal(x, p, training):
    if not training or p == 1:
        return x if not training else x * 0
    return x * (torch.randn_like(x) >= p) / (1 - p)


RIGHT = {
    0: [
        step_sign,
        step_softshrink,
        step_where,
        step_clamped,
        step_two_relus,
        step_numpy,
        step_loop,
        step_recursive,
        step_in_place,
        step_median,
    ],
    1: [
        groups_kinds,
        groups_names,
        groups_one_each,
        groups_tuples,
        groups_three,
        groups_named,
        groups_object,
    ],
    2: [
        update_plain,
        update_shrunk,
        update_torch,
        update_in_place,
        update_lerp,
        update_sum,
        update_order,
        update_numpy,
        update_lambda,
    ],
    3: [
        dropout_library,
        dropout_mask,
        dropout_bernoulli,
        dropout_where,
        dropout_module,
        dropout_fill,
        dropout_numpy,
        dropout_chosen,
        dropout_function,
        dropout_partial,
    ],
}

WRONG = {
    0: [
        (wrong_step_given, "The given code: the sign in the gradient, no stop."),
        (wrong_step_no_stop, "It runs past 0."),
        (wrong_step_no_rate, "It moves by strength, not by lr * strength."),
        (wrong_step_hard, "Entries that stay are not moved towards 0."),
        (wrong_step_shrink_first, "It shrinks before the gradient step."),
        (wrong_step_old_sign, "It takes the sign before the gradient step."),
        (wrong_step_old_size, "It stops by the size before the gradient step."),
        (wrong_step_sign_flip, "The move goes by the old sign."),
        (wrong_step_one_side, "Negative entries are lost."),
        (wrong_step_norm, "It shrinks the whole by its norm, not each entry."),
        (wrong_step_l2, "It shrinks by a factor, as an L2 penalty does."),
        (wrong_step_ascent, "It goes up the gradient."),
        (wrong_step_default_shrink, "It moves by 0.5, softshrink's default."),
        (wrong_step_rate_squared, "It moves by lr squared times strength."),
        (wrong_step_half, "It moves half as far."),
        (wrong_step_no_grad, "The gradient step is missing."),
        (wrong_step_no_shrink, "It does not shrink."),
        (wrong_step_vector_only, "It works for vectors only."),
        (wrong_step_no_rate_on_grad, "The gradient step lacks lr."),
        (wrong_step_nothing, "It returns nothing."),
        (wrong_step_away, "It moves away from 0."),
        (wrong_step_absolute, "Negative entries come out positive."),
        (wrong_step_all_or_nothing, "It stops only where all entries stop."),
        (wrong_step_grad_of_sum, "The penalty counts twice."),
    ],
    1: [
        (wrong_groups_all, "All decay."),
        (wrong_groups_default, "Without weight_decay, AdamW's 0.01 applies."),
        (wrong_groups_bias_name, "The scales of norm layers decay."),
        (wrong_groups_batch_norm_only, "It knows two kinds of norm layers only."),
        (wrong_groups_norm_name, "A norm layer may have any name, such as '1'."),
        (wrong_groups_no_norms, "The norm layers are not trained."),
        (wrong_groups_decay_only, "Biases and scales are not trained."),
        (wrong_groups_swapped, "The decays are swapped."),
        (wrong_groups_children, "Layers inside blocks are not trained."),
        (wrong_groups_children_whole, "Norm layers inside blocks decay."),
        (wrong_groups_twice, "Weights are in two groups, which torch refuses."),
        (wrong_groups_linear, "Convolutions do not decay."),
        (wrong_groups_conv2d, "Other convolutions than Conv2d do not decay."),
        (wrong_groups_matrices, "Convolutions do not decay: they have 3 dims or more."),
        (wrong_groups_fixed, "It decays by 0.01, whatever is asked."),
        (wrong_groups_bias_decays, "Biases decay."),
        (wrong_groups_frozen, "Biases and scales are frozen."),
        (wrong_groups_copies, "It holds copies, so the model is not trained."),
        (wrong_groups_strings, "It holds names."),
        (wrong_groups_affine_pairs, "Norms without a bias, as RMSNorm, decay."),
    ],
    2: [
        (wrong_update_l2, "An L2 penalty in the gradient, not decoupled."),
        (wrong_update_both, "Decoupled, and in the gradient once more."),
        (wrong_update_no_rate, "The decay lacks the rate."),
        (wrong_update_rate_twice, "Adam's step has the rate already."),
        (wrong_update_no_decay, "It does not decay."),
        (wrong_update_adam_twice, "It calls adam twice."),
        (wrong_update_plus, "It adds Adam's step."),
        (wrong_update_grows, "The weights grow."),
        (wrong_update_sign, "It decays by the sign, as an L1 penalty."),
        (wrong_update_decays_step, "It shrinks the step, not the weights."),
        (wrong_update_step_only, "It returns the step."),
        (wrong_update_nothing, "It returns nothing."),
        (wrong_update_inside_adam, "The decay goes through adam."),
        (wrong_update_two_steps, "The decay is a second call of adam."),
        (wrong_update_scaled_grad, "adam gets another gradient, and is divided."),
        (wrong_update_plain_gradient, "It does not use adam."),
        (wrong_update_half, "It decays half as much."),
        (wrong_update_squared, "It decays by the square."),
        (wrong_update_adam_of_decayed, "It shrinks the gradient."),
        (wrong_update_grad_changed, "It adds the decay to the gradient, in place."),
        (wrong_update_mean, "All entries decay by their mean."),
        (wrong_update_divides, "It divides by the rate."),
    ],
    3: [
        (wrong_dropout_unscaled, "The others are not scaled."),
        (wrong_dropout_scaled_by_p, "It divides by p."),
        (wrong_dropout_kept_with_p, "p is the probability to stay."),
        (wrong_dropout_at_one, "p = 1 divides by zero."),
        (wrong_dropout_at_one_tensor, "p = 1 gives nan."),
        (wrong_dropout_in_place, "It changes x."),
        (wrong_dropout_rows, "Whole rows are dropped."),
        (wrong_dropout_columns, "The same columns are dropped in all rows."),
        (wrong_dropout_seed, "Every call drops the same entries."),
        (wrong_dropout_detached, "No gradient passes."),
        (wrong_dropout_always, "It drops in evaluation, too."),
        (wrong_dropout_functional, "It drops in evaluation: the default is True."),
        (wrong_dropout_module, "A new module is in training mode."),
        (wrong_dropout_never, "It never drops."),
        (wrong_dropout_eval_scaled, "It scales in evaluation, not in training."),
        (wrong_dropout_flipped, "Training and evaluation are swapped."),
        (wrong_dropout_exact, "An exact number is dropped: not each on its own."),
        (wrong_dropout_gaussian, "It multiplies by noise; nothing is 0."),
        (wrong_dropout_half, "p is always 0.5."),
        (wrong_dropout_channels, "It drops whole rows."),
        (wrong_dropout_two_dims, "It works for two dimensions only."),
        (wrong_dropout_root, "It keeps the mean square, not the mean."),
        (wrong_dropout_no_graph, "No gradient passes."),
        (wrong_dropout_eval_detached, "No gradient passes in evaluation."),
        (wrong_dropout_alpha, "Alpha dropout does not set to 0."),
        (wrong_dropout_counted, "nan where all are dropped, as at p = 1."),
        (wrong_dropout_normal, "The draws are normal, so p is no probability."),
    ],
}

UNCLEAR = {
    0: [
        "May w be changed in place and returned? I count it as right.",
        "Is w a tensor or an array? The given code says tensor, the question does not.",
    ],
    1: [
        "Other parameters (nn.Embedding, nn.PReLU, nn.MultiheadAttention): decay or not?",
        "Parameters with requires_grad False: in a group or left out?",
        "A weight that two layers share must stand in one group only, I think.",
        "Any number of groups, other keys, or params as (name, tensor): I say yes.",
    ],
    2: [
        "May w be changed in place and returned? I count it as right.",
        "Decay after the step, (w - step) * (1 - lr * decay), differs by lr^2 only.",
    ],
    3: [
        "At p = 1, torch.zeros_like(x) has no graph: must backward still work?",
        "nan or inf in x at a dropped entry: 0 by the words, nan by x * mask.",
        "Must evaluation return x itself, or is a copy 'unchanged', too?",
        "Scaling by the share really kept, instead of by 1 - p, also 'keeps the mean'.",
    ],
}
