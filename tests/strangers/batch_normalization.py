"""Answers by a stranger to the exercises of chapter 07_batch_normalization."""

import copy
import functools
import math
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# Exercise 0: batch_norm(x, weight, bias, running_mean, running_var, training, ...)


def norm_plain(x, weight, bias, running_mean, running_var, training, momentum, eps):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * x.var(dim=0))
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps).sqrt() * weight + bias


def norm_lerp(x, weight, bias, running_mean, running_var, training, momentum, eps):
    if not training:
        return weight * (x - running_mean) * torch.rsqrt(running_var + eps) + bias
    var, mean = torch.var_mean(x, dim=0, correction=0)
    n = x.shape[0]
    running_mean.lerp_(mean.detach(), momentum)
    running_var.lerp_(var.detach() * n / (n - 1), momentum)
    return weight * (x - mean) * torch.rsqrt(var + eps) + bias


def norm_scale_shift(x, weight, bias, running_mean, running_var, training, momentum, eps):
    """One scale and one shift for each column."""
    mean, var = running_mean.clone(), running_var.clone()
    if training:
        mean = torch.einsum("nc->c", x) / len(x)
        var = torch.einsum("nc,nc->c", x - mean, x - mean) / len(x)
        unbiased = var.detach() * (len(x) / (len(x) - 1))
        running_mean.data += momentum * (mean.detach() - running_mean)
        running_var.data += momentum * (unbiased - running_var)
    scale = weight / torch.sqrt(var + eps)
    return x * scale + (bias - mean * scale)


def norm_layer(x, weight, bias, running_mean, running_var, training, momentum, eps):
    """The layer norm of the columns is the batch norm of the rows."""
    if training:
        y = F.layer_norm(x.t(), (x.size(0),), eps=eps).t()
        with torch.no_grad():
            running_mean.copy_((1 - momentum) * running_mean + momentum * x.mean(0))
            running_var.copy_((1 - momentum) * running_var + momentum * x.var(0))
    else:
        y = (x - running_mean) / (running_var + eps) ** 0.5
    return torch.addcmul(bias, y, weight)


def norm_columns(x, weight, bias, running_mean, running_var, training, momentum, eps):
    columns = []
    for c in range(x.shape[1]):
        column = x[:, c]
        if training:
            mean = column.sum() / column.numel()
            centred = column - mean
            var = (centred * centred).mean()
            with torch.no_grad():
                n = column.numel()
                running_mean[c] = running_mean[c] + momentum * (mean - running_mean[c])
                running_var[c] += momentum * (var * n / (n - 1) - running_var[c])
        else:
            centred, var = column - running_mean[c], running_var[c]
        columns.append(centred / torch.sqrt(var + eps) * weight[c] + bias[c])
    return torch.stack(columns, dim=1)


def norm_centring(x, weight, bias, running_mean, running_var, training, momentum, eps):
    """The mean by a matrix product."""
    n = len(x)
    if training:
        ones = torch.full((1, n), 1 / n, dtype=x.dtype)
        mean = (ones @ x).squeeze(0)
        var = (ones @ (x - mean).square()).squeeze(0)
        for running, new in ((running_mean, mean), (running_var, x.std(0).square())):
            running[...] = running * (1 - momentum) + new.detach() * momentum
        return F.linear((x - mean) / (var + eps).sqrt(), torch.diag(weight), bias)
    spread = (running_var + eps).sqrt()
    return F.linear((x - running_mean) / spread, torch.diag(weight), bias)


class Norm:
    """With the update after the result."""

    def moments(self, x):
        mean = torch.mean(x, 0, keepdim=True)
        return mean, torch.mean(torch.pow(x - mean, 2), 0, keepdim=True)

    def __call__(
        self, x, weight, bias, running_mean, running_var, training, momentum, eps
    ):
        mean, var = self.moments(x) if training else (running_mean, running_var)
        y = bias + weight * (x - mean) * (var + eps).pow(-0.5)
        if training:
            with torch.no_grad():
                old = 1 - momentum
                running_mean.mul_(old).add_(mean[0], alpha=momentum)
                running_var.mul_(old).add_(torch.var(x, 0), alpha=momentum)
        return y


norm_object = Norm()


def wrong_norm_given(x, weight, bias, running_mean, running_var, training, momentum, eps):
    mean = x.mean(dim=0)
    var = x.var(dim=0, correction=0)
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_unbiased(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0)
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * var)
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_biased_running(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * var)
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_momentum(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
        with torch.no_grad():
            running_mean.mul_(momentum).add_((1 - momentum) * mean)
            running_var.mul_(momentum).add_((1 - momentum) * x.var(dim=0))
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_rebinds(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
        running_mean = (1 - momentum) * running_mean + momentum * mean.detach()
        running_var = (1 - momentum) * running_var + momentum * x.var(dim=0).detach()
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_eval_batch(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
    if training:
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * x.var(dim=0))
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_eval_updates(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    mean, var = running_mean.clone(), running_var.clone()
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
    with torch.no_grad():
        running_mean.mul_(1 - momentum).add_(momentum * x.mean(dim=0))
        running_var.mul_(1 - momentum).add_(momentum * x.var(dim=0))
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_train_running(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * x.mean(dim=0))
            running_var.mul_(1 - momentum).add_(momentum * x.var(dim=0))
    mean, var = running_mean.clone(), running_var.clone()
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_eps_outside(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * x.var(dim=0))
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var.sqrt() + eps) * weight + bias


def wrong_norm_eps_fixed(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * x.var(dim=0))
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def wrong_norm_momentum_fixed(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
        with torch.no_grad():
            running_mean.mul_(0.9).add_(0.1 * mean)
            running_var.mul_(0.9).add_(0.1 * x.var(dim=0))
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_no_affine(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * x.var(dim=0))
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps).sqrt()


def wrong_norm_no_affine_in_eval(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if not training:
        return (x - running_mean) / (running_var + eps).sqrt()
    mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
    with torch.no_grad():
        running_mean.mul_(1 - momentum).add_(momentum * mean)
        running_var.mul_(1 - momentum).add_(momentum * x.var(dim=0))
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_detached(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        with torch.no_grad():
            mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * x.var(dim=0))
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_in_graph(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
        running_mean.mul_(1 - momentum).add_(momentum * mean)
        running_var.mul_(1 - momentum).add_(momentum * x.var(dim=0))
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_rows(x, weight, bias, running_mean, running_var, training, momentum, eps):
    if training:
        mean = x.mean(dim=1, keepdim=True)
        var = x.var(dim=1, correction=0, keepdim=True)
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * x.mean(dim=0))
            running_var.mul_(1 - momentum).add_(momentum * x.var(dim=0))
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_all_entries(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(), x.var(correction=0)
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * x.var())
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_no_root(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * x.var(dim=0))
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps) * weight + bias


def wrong_norm_std_running(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * x.std(dim=0))
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_copies_batch(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
        with torch.no_grad():
            running_mean.copy_(mean)
            running_var.copy_(x.var(dim=0))
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_mean_only(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * mean)
    else:
        mean, var = running_mean, running_var
    return (x - mean) / (var + eps).sqrt() * weight + bias


def wrong_norm_bias_first(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * x.var(dim=0))
    else:
        mean, var = running_mean, running_var
    return ((x - mean) / (var + eps).sqrt() + bias) * weight


def wrong_norm_eps_stored(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0) + eps
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * (x.var(dim=0) + eps))
    else:
        mean, var = running_mean, running_var
    return (x - mean) / var.sqrt() * weight + bias


def wrong_norm_changes_x(
    x, weight, bias, running_mean, running_var, training, momentum, eps
):
    if training:
        mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * x.var(dim=0))
    else:
        mean, var = running_mean, running_var
    x.data.sub_(mean.detach())
    return x / (var + eps).sqrt() * weight + bias


# Exercise 1: fold(layer, bn)


def fold_copy(layer, bn):
    new = copy.deepcopy(layer)
    with torch.no_grad():
        scale = torch.rsqrt(bn.running_var + bn.eps)
        if bn.weight is not None:
            scale = scale * bn.weight
        shift = -bn.running_mean * scale
        if bn.bias is not None:
            shift = shift + bn.bias
        if layer.bias is not None:
            shift = shift + layer.bias * scale
        shape = (-1,) + (1,) * (layer.weight.dim() - 1)
        new.weight = nn.Parameter(layer.weight * scale.view(shape))
        new.bias = nn.Parameter(shift)
    return new


def fold_library(layer, bn):
    """torch's own fusion, with the affine part made up where there is none."""
    twin = copy.deepcopy(bn).eval()
    if twin.weight is None:
        twin.weight = nn.Parameter(torch.ones_like(twin.running_var))
    if twin.bias is None:
        twin.bias = nn.Parameter(torch.zeros_like(twin.running_mean))
    kind = "conv" if isinstance(layer, nn.Conv2d) else "linear"
    fuse = getattr(nn.utils.fusion, f"fuse_{kind}_bn_eval")
    return fuse(copy.deepcopy(layer).eval(), twin)


def fold_new(layer, bn):
    options = {"bias": True, "dtype": layer.weight.dtype, "device": layer.weight.device}
    if isinstance(layer, nn.Linear):
        new = nn.Linear(layer.in_features, layer.out_features, **options)
    else:
        new = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            padding_mode=layer.padding_mode,
            **options,
        )
    spread = (bn.running_var + bn.eps).sqrt()
    gamma = torch.ones_like(spread) if bn.weight is None else bn.weight.detach()
    beta = torch.zeros_like(spread) if bn.bias is None else bn.bias.detach()
    old = 0 if layer.bias is None else layer.bias.detach()
    factor = gamma / spread
    new.weight.data = torch.einsum("o...,o->o...", layer.weight.detach(), factor)
    new.bias.data = beta + (old - bn.running_mean) * factor
    return new


def fold_probe(layer, bn):
    """Ask bn itself what it does with 0 and with 1."""
    twin = copy.deepcopy(bn).double().eval()
    size = (1, bn.num_features) + (1, 1) * isinstance(bn, nn.BatchNorm2d)
    with torch.no_grad():
        at_zero = twin(torch.zeros(size, dtype=torch.float64)).flatten()
        at_one = twin(torch.ones(size, dtype=torch.float64)).flatten()
        scale = (at_one - at_zero).to(layer.weight.dtype)
        shift = at_zero.to(layer.weight.dtype)
        new = copy.deepcopy(layer)
        new.weight.copy_((layer.weight.transpose(0, -1) * scale).transpose(0, -1))
        if new.bias is None:
            new.bias = nn.Parameter(shift)
        else:
            new.bias.mul_(scale).add_(shift)
    return new


def fold_rows(layer, bn):
    """One output after the other, by numbers."""
    new = copy.deepcopy(layer)
    weight, bias = [], []
    for i, row in enumerate(layer.weight.detach()):
        gamma = 1.0 if bn.weight is None else bn.weight[i].item()
        beta = 0.0 if bn.bias is None else bn.bias[i].item()
        old = 0.0 if layer.bias is None else layer.bias[i].item()
        factor = gamma / math.sqrt(bn.running_var[i].item() + bn.eps)
        weight.append(row * factor)
        bias.append((old - bn.running_mean[i].item()) * factor + beta)
    new.weight = nn.Parameter(torch.stack(weight))
    new.bias = nn.Parameter(torch.tensor(bias, dtype=layer.weight.dtype))
    return new


@torch.no_grad()
def fold_matrix(layer, bn):
    """The scale as a diagonal matrix on the flattened weights."""
    new = copy.deepcopy(layer)
    factor = 1 / (bn.running_var + bn.eps) ** 0.5
    factor = factor if bn.weight is None else factor.mul(bn.weight)
    new.weight.data = (torch.diag(factor) @ layer.weight.flatten(1)).view_as(layer.weight)
    terms = [-bn.running_mean * factor, bn.bias]
    if layer.bias is not None:
        terms.append(layer.bias * factor)
    new.bias = nn.Parameter(sum(term for term in terms if term is not None))
    return new


class Fold:
    """By the state dictionary of a new layer made from the old one's settings."""

    def __call__(self, layer, bn):
        new = copy.deepcopy(layer)
        channels = layer.weight.shape[0]
        if new.bias is None:
            new.bias = nn.Parameter(layer.weight.new_zeros(channels))
        state = {k: v.clone() for k, v in new.state_dict().items()}
        norm = {"weight": torch.ones(channels), "bias": torch.zeros(channels)}
        norm.update(bn.state_dict())
        scale = norm["weight"] / torch.sqrt(norm["running_var"] + bn.eps)
        state["weight"] = (
            state["weight"] * scale[(...,) + (None,) * (new.weight.dim() - 1)]
        )
        state["bias"] = norm["bias"] + scale * (state["bias"] - norm["running_mean"])
        new.load_state_dict(state)
        return new


fold_object = Fold()


def wrong_fold_in_place(layer, bn):
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / (bn.running_var + bn.eps).sqrt()
        old = layer.bias if layer.bias is not None else torch.zeros_like(shift)
        bias = shift + (old - bn.running_mean) * scale
        layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias = nn.Parameter(bias)
    return layer


def wrong_fold_shared(layer, bn):
    """A shallow copy: its weight is that of the layer."""
    new = copy.copy(layer)
    new._parameters = dict(layer._parameters)
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / (bn.running_var + bn.eps).sqrt()
        old = layer.bias if layer.bias is not None else torch.zeros_like(shift)
        new.bias = nn.Parameter(shift + (old - bn.running_mean) * scale)
        new.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    return new


def wrong_fold_bare_library(layer, bn):
    kind = "conv" if isinstance(layer, nn.Conv2d) else "linear"
    fuse = getattr(nn.utils.fusion, f"fuse_{kind}_bn_eval")
    return fuse(copy.deepcopy(layer).eval(), copy.deepcopy(bn).eval())


def wrong_fold_needs_bias(layer, bn):
    new = copy.deepcopy(layer)
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / (bn.running_var + bn.eps).sqrt()
        new.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        new.bias.copy_(shift + (layer.bias - bn.running_mean) * scale)
    return new


def wrong_fold_skips_bias(layer, bn):
    new = copy.deepcopy(layer)
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / (bn.running_var + bn.eps).sqrt()
        new.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        if new.bias is not None:
            new.bias.copy_(shift + (layer.bias - bn.running_mean) * scale)
    return new


def wrong_fold_needs_affine(layer, bn):
    new = copy.deepcopy(layer)
    with torch.no_grad():
        scale = bn.weight / (bn.running_var + bn.eps).sqrt()
        old = layer.bias if layer.bias is not None else torch.zeros_like(scale)
        new.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        new.bias = nn.Parameter(bn.bias + (old - bn.running_mean) * scale)
    return new


def wrong_fold_no_mean(layer, bn):
    new = copy.deepcopy(layer)
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / (bn.running_var + bn.eps).sqrt()
        old = layer.bias if layer.bias is not None else torch.zeros_like(shift)
        new.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        new.bias = nn.Parameter(shift + old * scale)
    return new


def wrong_fold_bias_unscaled(layer, bn):
    new = copy.deepcopy(layer)
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / (bn.running_var + bn.eps).sqrt()
        old = layer.bias if layer.bias is not None else torch.zeros_like(shift)
        new.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        new.bias = nn.Parameter(shift + old - bn.running_mean * scale)
    return new


def wrong_fold_mean_unscaled(layer, bn):
    new = copy.deepcopy(layer)
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / (bn.running_var + bn.eps).sqrt()
        old = layer.bias if layer.bias is not None else torch.zeros_like(shift)
        new.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        new.bias = nn.Parameter(shift + old * scale - bn.running_mean)
    return new


def wrong_fold_inputs_scaled(layer, bn):
    new = copy.deepcopy(layer)
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / (bn.running_var + bn.eps).sqrt()
        old = layer.bias if layer.bias is not None else torch.zeros_like(shift)
        if layer.weight.dim() == 2:
            new.weight.copy_(layer.weight * scale)  # along the inputs
        else:
            new.weight.copy_(layer.weight * scale.view(1, -1, 1, 1))
        new.bias = nn.Parameter(shift + (old - bn.running_mean) * scale)
    return new


def wrong_fold_no_eps(layer, bn):
    new = copy.deepcopy(layer)
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / bn.running_var.sqrt()
        old = layer.bias if layer.bias is not None else torch.zeros_like(shift)
        new.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        new.bias = nn.Parameter(shift + (old - bn.running_mean) * scale)
    return new


def wrong_fold_eps_fixed(layer, bn):
    new = copy.deepcopy(layer)
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / (bn.running_var + 1e-5).sqrt()
        old = layer.bias if layer.bias is not None else torch.zeros_like(shift)
        new.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        new.bias = nn.Parameter(shift + (old - bn.running_mean) * scale)
    return new


def wrong_fold_no_root(layer, bn):
    new = copy.deepcopy(layer)
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / (bn.running_var + bn.eps)
        old = layer.bias if layer.bias is not None else torch.zeros_like(shift)
        new.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        new.bias = nn.Parameter(shift + (old - bn.running_mean) * scale)
    return new


def wrong_fold_conv_defaults(layer, bn):
    channels, inputs = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        new = nn.Linear(inputs, channels, dtype=layer.weight.dtype)
    else:
        size = layer.kernel_size
        new = nn.Conv2d(inputs, channels, size, dtype=layer.weight.dtype)
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / (bn.running_var + bn.eps).sqrt()
        old = layer.bias if layer.bias is not None else torch.zeros_like(shift)
        shape = (-1, *[1] * (layer.weight.dim() - 1))
        new.weight.copy_(layer.weight * scale.view(shape))
        new.bias.copy_(shift + (old - bn.running_mean) * scale)
    return new


def wrong_fold_no_groups(layer, bn):
    if isinstance(layer, nn.Linear):
        new = copy.deepcopy(layer)
    else:
        new = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            dtype=layer.weight.dtype,
        )
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / (bn.running_var + bn.eps).sqrt()
        old = layer.bias if layer.bias is not None else torch.zeros_like(shift)
        shape = (-1, *[1] * (layer.weight.dim() - 1))
        new.weight.copy_(layer.weight * scale.view(shape))
        new.bias = nn.Parameter(shift + (old - bn.running_mean) * scale)
    return new


def wrong_fold_no_padding_mode(layer, bn):
    if isinstance(layer, nn.Linear):
        new = copy.deepcopy(layer)
    else:
        new = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            dtype=layer.weight.dtype,
        )
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / (bn.running_var + bn.eps).sqrt()
        old = layer.bias if layer.bias is not None else torch.zeros_like(shift)
        shape = (-1, *[1] * (layer.weight.dim() - 1))
        new.weight.copy_(layer.weight * scale.view(shape))
        new.bias = nn.Parameter(shift + (old - bn.running_mean) * scale)
    return new


def wrong_fold_sequential(layer, bn):
    return nn.Sequential(copy.deepcopy(layer), copy.deepcopy(bn).eval())


def wrong_fold_linear_only(layer, bn):
    new = nn.Linear(layer.in_features, layer.out_features, dtype=layer.weight.dtype)
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / (bn.running_var + bn.eps).sqrt()
        old = layer.bias if layer.bias is not None else torch.zeros_like(shift)
        new.weight.copy_(layer.weight * scale[:, None])
        new.bias.copy_(shift + (old - bn.running_mean) * scale)
    return new


def wrong_fold_double_to_float(layer, bn):
    new = copy.deepcopy(layer).float()
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / (bn.running_var + bn.eps).sqrt()
        old = layer.bias if layer.bias is not None else torch.zeros_like(shift)
        new.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)).float())
        new.bias = nn.Parameter((shift + (old - bn.running_mean) * scale).float())
    return new


def wrong_fold_weight_ignored(layer, bn):
    new = copy.deepcopy(layer)
    with torch.no_grad():
        scale = 1 / (bn.running_var + bn.eps).sqrt()
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        old = layer.bias if layer.bias is not None else torch.zeros_like(shift)
        new.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        new.bias = nn.Parameter(shift + (old - bn.running_mean) * scale)
    return new


def wrong_fold_shift_scaled(layer, bn):
    new = copy.deepcopy(layer)
    with torch.no_grad():
        scale = bn.weight if bn.weight is not None else torch.ones_like(bn.running_var)
        shift = bn.bias if bn.bias is not None else torch.zeros_like(bn.running_var)
        scale = scale / (bn.running_var + bn.eps).sqrt()
        old = layer.bias if layer.bias is not None else torch.zeros_like(shift)
        new.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        new.bias = nn.Parameter((shift + old - bn.running_mean) * scale)
    return new


# Exercise 2: merged(means, variances, counts)


def merged_python(means, variances, counts):
    rows = sum(counts)
    mean = sum(n * m for n, m in zip(counts, means)) / rows
    var = (
        sum(n * (v + (m - mean) ** 2) for n, m, v in zip(counts, means, variances)) / rows
    )
    return mean, var


def merged_numpy(means, variances, counts):
    mean = np.average(means, weights=counts)
    within = np.average(variances, weights=counts)
    between = np.average((np.asarray(means) - mean) ** 2, weights=counts)
    return mean, within + between


def merged_torch(means, variances, counts):
    m, v, n = (
        torch.tensor(list(a), dtype=torch.float64) for a in (means, variances, counts)
    )
    share = n / n.sum()
    mean = share @ m
    return mean, torch.einsum("i,i->", share, v + (m - mean).square())


def merged_pairs(means, variances, counts):
    """Two at a time, by the formula of Chan."""

    def two(a, b):
        (mean_a, sum_a, n_a), (mean_b, sum_b, n_b) = a, b
        n = n_a + n_b
        gap = mean_b - mean_a
        return mean_a + gap * n_b / n, sum_a + sum_b + gap**2 * n_a * n_b / n, n

    parts = [(m, v * n, n) for m, v, n in zip(means, variances, counts)]
    mean, total, rows = functools.reduce(two, parts)
    return mean, total / rows


def merged_fractions(means, variances, counts):
    """Exact, by the mean of the squares."""
    n = [Fraction(int(c)) for c in counts]
    m = [Fraction(float(x)) for x in means]
    squares = [Fraction(float(v)) + x * x for v, x in zip(variances, m)]
    rows = sum(n)
    mean = sum(a * b for a, b in zip(n, m)) / rows
    var = sum(a * b for a, b in zip(n, squares)) / rows - mean**2
    return float(mean), float(var)


def merged_recursive(means, variances, counts):
    if len(means) == 1:
        return [means[0], variances[0]]
    mean, var = merged_recursive(means[1:], variances[1:], counts[1:])
    n, rest = counts[0], sum(counts[1:])
    share = n / (n + rest)
    middle = share * means[0] + (1 - share) * mean
    spread = share * variances[0] + (1 - share) * var
    return [middle, spread + share * (1 - share) * (means[0] - mean) ** 2]


def merged_differences(means, variances, counts):
    """The spread of the means by the differences of all pairs of processes."""
    rows = math.fsum(counts)
    shares = [n / rows for n in counts]
    mean = math.fsum(map(float.__mul__, shares, map(float, means)))
    var = math.fsum(s * v for s, v in zip(shares, variances))
    for s, a in zip(shares, means):
        for t, b in zip(shares, means):
            var += s * t * (a - b) ** 2 / 2
    return np.array([mean, var])


def merged_rows(means, variances, counts):
    """Makes up rows with these statistics, and measures them."""
    values, weights = [], []
    for m, v, n in zip(means, variances, counts):
        values += [m - math.sqrt(v), m + math.sqrt(v)]
        weights += [n, n]
    mean = np.average(values, weights=weights)
    return mean, np.average(np.square(np.subtract(values, mean)), weights=weights)


def wrong_merged_plain_means(means, variances, counts):
    k = len(means)
    return sum(means) / k, sum(variances) / k


def wrong_merged_no_between(means, variances, counts):
    rows = sum(counts)
    mean = sum(n * m for n, m in zip(counts, means)) / rows
    return mean, sum(n * v for n, v in zip(counts, variances)) / rows


def wrong_merged_unbiased(means, variances, counts):
    rows = sum(counts)
    mean = sum(n * m for n, m in zip(counts, means)) / rows
    total = sum(n * (v + (m - mean) ** 2) for n, m, v in zip(counts, means, variances))
    return mean, total / (rows - 1)


def wrong_merged_from_unbiased(means, variances, counts):
    rows = sum(counts)
    mean = sum(n * m for n, m in zip(counts, means)) / rows
    within = sum((n - 1) * v for n, v in zip(counts, variances))
    between = sum(n * (m - mean) ** 2 for n, m in zip(counts, means))
    return mean, (within + between) / rows


def wrong_merged_equal_processes(means, variances, counts):
    k = len(means)
    mean = sum(means) / k
    var = sum(v + (m - mean) ** 2 for m, v in zip(means, variances)) / k
    return mean, var


def wrong_merged_between_unweighted(means, variances, counts):
    rows = sum(counts)
    mean = sum(n * m for n, m in zip(counts, means)) / rows
    within = sum(n * v for n, v in zip(counts, variances)) / rows
    return mean, within + sum((m - mean) ** 2 for m in means) / len(means)


def wrong_merged_within_unweighted(means, variances, counts):
    rows = sum(counts)
    mean = sum(n * m for n, m in zip(counts, means)) / rows
    between = sum(n * (m - mean) ** 2 for n, m in zip(counts, means)) / rows
    return mean, sum(variances) / len(variances) + between


def wrong_merged_between_minus(means, variances, counts):
    rows = sum(counts)
    mean = sum(n * m for n, m in zip(counts, means)) / rows
    var = sum(n * (v - (m - mean) ** 2) for n, m, v in zip(counts, means, variances))
    return mean, var / rows


def wrong_merged_std(means, variances, counts):
    rows = sum(counts)
    mean = sum(n * m for n, m in zip(counts, means)) / rows
    total = sum(n * (v + (m - mean) ** 2) for n, m, v in zip(counts, means, variances))
    return mean, math.sqrt(total / rows)


def wrong_merged_swapped(means, variances, counts):
    rows = sum(counts)
    mean = sum(n * m for n, m in zip(counts, means)) / rows
    total = sum(n * (v + (m - mean) ** 2) for n, m, v in zip(counts, means, variances))
    return total / rows, mean


def wrong_merged_first_mean(means, variances, counts):
    rows = sum(counts)
    mean = sum(n * m for n, m in zip(counts, means)) / rows
    total = sum(
        n * (v + (m - means[0]) ** 2) for n, m, v in zip(counts, means, variances)
    )
    return mean, total / rows


def wrong_merged_two(means, variances, counts):
    n_a, n_b = counts[0], counts[1]
    rows = n_a + n_b
    mean = (n_a * means[0] + n_b * means[1]) / rows
    within = (n_a * variances[0] + n_b * variances[1]) / rows
    return mean, within + n_a * n_b * (means[0] - means[1]) ** 2 / rows**2


def wrong_merged_sums(means, variances, counts):
    rows = sum(counts)
    mean = sum(n * m for n, m in zip(counts, means)) / rows
    return mean, sum(
        n * (v + (m - mean) ** 2) for n, m, v in zip(counts, means, variances)
    )


def wrong_merged_not_squared(means, variances, counts):
    rows = sum(counts)
    mean = sum(n * m for n, m in zip(counts, means)) / rows
    total = sum(n * (v + abs(m - mean)) for n, m, v in zip(counts, means, variances))
    return mean, total / rows


def wrong_merged_squares(means, variances, counts):
    rows = sum(counts)
    mean = sum(n * m for n, m in zip(counts, means)) / rows
    return mean, sum(n * (v + m**2) for n, m, v in zip(counts, means, variances)) / rows


def wrong_merged_pairwise_halves(means, variances, counts):
    mean, var = means[0], variances[0]
    for m, v in zip(means[1:], variances[1:]):
        var = (var + v) / 2 + (mean - m) ** 2 / 4
        mean = (mean + m) / 2
    return mean, var


def wrong_merged_count_not_added(means, variances, counts):
    mean, var, n = means[0], variances[0], counts[0]
    for m, v, k in zip(means[1:], variances[1:], counts[1:]):
        share = k / (n + k)  # n stays that of the first process
        var = (1 - share) * var + share * v + share * (1 - share) * (mean - m) ** 2
        mean = (1 - share) * mean + share * m
    return mean, var


def wrong_merged_integer(means, variances, counts):
    rows = sum(counts)
    mean = sum(n * m for n, m in zip(counts, means)) // rows
    total = sum(n * (v + (m - mean) ** 2) for n, m, v in zip(counts, means, variances))
    return mean, total / rows


def wrong_merged_mean_of_means(means, variances, counts):
    rows = sum(counts)
    mean = sum(means) / len(means)
    total = sum(n * (v + (m - mean) ** 2) for n, m, v in zip(counts, means, variances))
    return mean, total / rows


def wrong_merged_largest(means, variances, counts):
    biggest = max(range(len(counts)), key=counts.__getitem__)
    return means[biggest], variances[biggest]


def wrong_merged_variance_of_means(means, variances, counts):
    mean = np.average(means, weights=counts)
    within = np.average(variances, weights=counts)
    return mean, within + np.var(means, ddof=1)


# Exercise 3: gradient(x, grad, eps)


def gradient_formula(x, grad, eps):
    mean = x.mean(dim=0)
    spread = (x.var(dim=0, correction=0) + eps).sqrt()
    y = (x - mean) / spread
    return (grad - grad.mean(dim=0) - y * (grad * y).mean(dim=0)) / spread


def gradient_chain(x, grad, eps):
    """The three paths: directly, by the variance and by the mean."""
    n = x.shape[0]
    mean = x.sum(0) / n
    centred = x - mean
    var = (centred**2).sum(0) / n
    inverse = (var + eps) ** -0.5
    by_var = (grad * centred).sum(0) * -0.5 * inverse**3
    by_mean = -(grad * inverse).sum(0) + by_var * (-2 * centred).sum(0) / n
    return grad * inverse + by_var * 2 * centred / n + by_mean / n


def gradient_matrix(x, grad, eps):
    """The matrix of all derivatives of each column."""
    n, columns = x.shape
    eye = torch.eye(n, dtype=x.dtype)
    out = torch.zeros_like(x)
    for c in range(columns):
        centred = x[:, c] - x[:, c].mean()
        square = centred.square().mean() + eps
        slope = eye - 1 / n - torch.outer(centred, centred) / (n * square)
        out[:, c] = slope @ grad[:, c] / square.sqrt()
    return out


def gradient_numpy(x, grad, eps):
    a, g = x.detach().numpy(), grad.detach().numpy()
    spread = np.sqrt(a.var(axis=0) + eps)
    y = (a - a.mean(axis=0)) / spread
    n = len(a)
    out = (n * g - g.sum(axis=0) - y * np.einsum("nc,nc->c", g, y)) / (n * spread)
    return torch.from_numpy(out).to(x.dtype)


def gradient_loop(x, grad, eps):
    rows = []
    columns, grads = x.t().tolist(), grad.t().tolist()
    for values, slopes in zip(columns, grads):
        n = len(values)
        mean = sum(values) / n
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / n + eps)
        y = [(v - mean) / spread for v in values]
        a = sum(slopes) / n
        b = sum(s * t for s, t in zip(slopes, y)) / n
        rows.append([(s - a - t * b) / spread for s, t in zip(slopes, y)])
    return torch.tensor(rows, dtype=x.dtype).t()


def gradient_projection(x, grad, eps):
    """Centre the gradient first: the mean of y is 0, so the product is the same."""
    var, mean = torch.var_mean(x, dim=0, correction=0, keepdim=True)
    centred, slopes = x - mean, grad - grad.mean(0, keepdim=True)
    along = torch.linalg.vecdot(slopes, centred, dim=0) / len(x)
    return torch.rsqrt(var + eps) * (slopes - centred * along / (var + eps))


def gradient_native(x, grad, eps):
    """torch's own backward pass of batch norm, called by hand."""
    var, mean = torch.var_mean(x, dim=0, correction=0)
    inverse = torch.rsqrt(var + eps)
    return torch.ops.aten.native_batch_norm_backward(
        grad, x, None, None, None, mean, inverse, True, eps, [True, False, False]
    )[0]


class Gradient:
    """Column by column, stacked."""

    def column(self, x, g, eps):
        centred = x - torch.mean(x)
        square = torch.dot(centred, centred) / x.numel() + eps
        share = torch.dot(g, centred) / x.numel() / square
        return (g - torch.mean(g) - share * centred) / torch.sqrt(square)

    def __call__(self, x, grad, eps):
        pairs = zip(x.unbind(1), grad.unbind(1))
        return torch.stack([self.column(a, g, eps) for a, g in pairs], dim=1)


gradient_object = Gradient()


def wrong_gradient_divided(x, grad, eps):
    return grad / (x.var(dim=0, correction=0) + eps).sqrt()


def wrong_gradient_no_mean(x, grad, eps):
    spread = (x.var(dim=0, correction=0) + eps).sqrt()
    y = (x - x.mean(dim=0)) / spread
    return (grad - y * (grad * y).mean(dim=0)) / spread


def wrong_gradient_no_variance(x, grad, eps):
    spread = (x.var(dim=0, correction=0) + eps).sqrt()
    return (grad - grad.mean(dim=0)) / spread


def wrong_gradient_unbiased(x, grad, eps):
    spread = (x.var(dim=0) + eps).sqrt()
    y = (x - x.mean(dim=0)) / spread
    return (grad - grad.mean(dim=0) - y * (grad * y).mean(dim=0)) / spread


def wrong_gradient_no_eps(x, grad, eps):
    spread = x.var(dim=0, correction=0).sqrt()
    y = (x - x.mean(dim=0)) / spread
    return (grad - grad.mean(dim=0) - y * (grad * y).mean(dim=0)) / spread


def wrong_gradient_eps_fixed(x, grad, eps):
    spread = (x.var(dim=0, correction=0) + 1e-5).sqrt()
    y = (x - x.mean(dim=0)) / spread
    return (grad - grad.mean(dim=0) - y * (grad * y).mean(dim=0)) / spread


def wrong_gradient_eps_half(x, grad, eps):
    var = x.var(dim=0, correction=0)
    y = (x - x.mean(dim=0)) / var.sqrt()
    inner = grad - grad.mean(dim=0) - y * (grad * y).mean(dim=0)
    return inner / (var + eps).sqrt()


def wrong_gradient_rows(x, grad, eps):
    spread = (x.var(dim=1, correction=0, keepdim=True) + eps).sqrt()
    y = (x - x.mean(dim=1, keepdim=True)) / spread
    inner = grad - grad.mean(dim=1, keepdim=True)
    return (inner - y * (grad * y).mean(dim=1, keepdim=True)) / spread


def wrong_gradient_sums(x, grad, eps):
    spread = (x.var(dim=0, correction=0) + eps).sqrt()
    y = (x - x.mean(dim=0)) / spread
    return (grad - grad.sum(dim=0) - y * (grad * y).sum(dim=0)) / spread


def wrong_gradient_sign(x, grad, eps):
    spread = (x.var(dim=0, correction=0) + eps).sqrt()
    y = (x - x.mean(dim=0)) / spread
    return (grad - grad.mean(dim=0) + y * (grad * y).mean(dim=0)) / spread


def wrong_gradient_no_root(x, grad, eps):
    var = x.var(dim=0, correction=0) + eps
    y = (x - x.mean(dim=0)) / var.sqrt()
    return (grad - grad.mean(dim=0) - y * (grad * y).mean(dim=0)) / var


def wrong_gradient_raw_x(x, grad, eps):
    spread = (x.var(dim=0, correction=0) + eps).sqrt()
    y = (x - x.mean(dim=0)) / spread
    return (grad - grad.mean(dim=0) - y * (grad * x).mean(dim=0)) / spread


def wrong_gradient_centred(x, grad, eps):
    spread = (x.var(dim=0, correction=0) + eps).sqrt()
    centred = x - x.mean(dim=0)
    inner = grad - grad.mean(dim=0) - centred * (grad * centred).mean(dim=0)
    return inner / spread


def wrong_gradient_n_minus_one(x, grad, eps):
    n = len(x)
    spread = (x.var(dim=0, correction=0) + eps).sqrt()
    y = (x - x.mean(dim=0)) / spread
    inner = grad - grad.sum(dim=0) / (n - 1) - y * (grad * y).sum(dim=0) / (n - 1)
    return inner / spread


def wrong_gradient_autograd(x, grad, eps):
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        y = (x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + eps).sqrt()
        return torch.autograd.grad(y, x, grad)[0]


def wrong_gradient_forward(x, grad, eps):
    spread = (x.var(dim=0, correction=0) + eps).sqrt()
    return grad * (x - x.mean(dim=0)) / spread


def wrong_gradient_all_entries(x, grad, eps):
    spread = (x.var(correction=0) + eps).sqrt()
    y = (x - x.mean()) / spread
    return (grad - grad.mean() - y * (grad * y).mean()) / spread


def wrong_gradient_eps_outside(x, grad, eps):
    spread = x.var(dim=0, correction=0).sqrt() + eps
    y = (x - x.mean(dim=0)) / spread
    return (grad - grad.mean(dim=0) - y * (grad * y).mean(dim=0)) / spread


def wrong_gradient_changes_grad(x, grad, eps):
    spread = (x.var(dim=0, correction=0) + eps).sqrt()
    y = (x - x.mean(dim=0)) / spread
    grad -= grad.mean(dim=0)
    grad -= y * (grad * y).sum(dim=0)
    return grad / spread


def wrong_gradient_mean_product(x, grad, eps):
    spread = (x.var(dim=0, correction=0) + eps).sqrt()
    y = (x - x.mean(dim=0)) / spread
    return (grad - grad.mean(dim=0) - y * grad.mean(dim=0) * y.mean(dim=0)) / spread


def wrong_gradient_half(x, grad, eps):
    spread = (x.var(dim=0, correction=0) + eps).sqrt()
    y = (x - x.mean(dim=0)) / spread
    return (grad - grad.mean(dim=0) - y * (grad * y).mean(dim=0) / 2) / spread


def wrong_gradient_rough(x, grad, eps, step=0.1):
    """One-sided differences with a step that is much too long."""

    def loss(a):
        y = (a - a.mean(dim=0)) / (a.var(dim=0, correction=0) + eps).sqrt()
        return (y * grad).sum()

    out = torch.zeros_like(x)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            moved = x.clone()
            moved[i, j] += step
            out[i, j] = (loss(moved) - loss(x)) / step
    return out


RIGHT = {
    0: [
        norm_plain,
        norm_lerp,
        norm_scale_shift,
        norm_layer,
        norm_columns,
        norm_centring,
        norm_object,
    ],
    1: [
        fold_copy,
        fold_library,
        fold_new,
        fold_probe,
        fold_rows,
        fold_matrix,
        fold_object,
    ],
    2: [
        merged_python,
        merged_numpy,
        merged_torch,
        merged_pairs,
        merged_fractions,
        merged_recursive,
        merged_differences,
        merged_rows,
    ],
    3: [
        gradient_formula,
        gradient_chain,
        gradient_matrix,
        gradient_numpy,
        gradient_loop,
        gradient_projection,
        gradient_native,
        gradient_object,
    ],
}

WRONG = {
    0: [
        (wrong_norm_given, "The given code: no update, and no evaluation."),
        (wrong_norm_unbiased, "It standardises by the unbiased variance."),
        (wrong_norm_biased_running, "running_var takes the biased variance."),
        (wrong_norm_momentum, "momentum is the weight of the old value."),
        (wrong_norm_rebinds, "The running statistics are not changed in place."),
        (wrong_norm_eval_batch, "Evaluation standardises by the batch."),
        (wrong_norm_eval_updates, "Evaluation updates the running statistics."),
        (wrong_norm_train_running, "Training standardises by running statistics."),
        (wrong_norm_eps_outside, "eps is not under the root."),
        (wrong_norm_eps_fixed, "eps is always 1e-5."),
        (wrong_norm_momentum_fixed, "momentum is always 0.1."),
        (wrong_norm_no_affine, "weight and bias are ignored."),
        (wrong_norm_no_affine_in_eval, "Evaluation ignores weight and bias."),
        (wrong_norm_detached, "Autograd cannot follow mean and variance."),
        (wrong_norm_in_graph, "The running statistics become part of the graph."),
        (wrong_norm_rows, "It standardises each row."),
        (wrong_norm_all_entries, "It standardises all columns together."),
        (wrong_norm_no_root, "It divides by the variance."),
        (wrong_norm_std_running, "running_var takes the SD."),
        (wrong_norm_copies_batch, "The old running statistics are lost."),
        (wrong_norm_mean_only, "running_var is not updated."),
        (wrong_norm_bias_first, "The weight multiplies the bias, too."),
        (wrong_norm_eps_stored, "eps goes into running_var."),
        (wrong_norm_changes_x, "It changes x."),
    ],
    1: [
        (wrong_fold_in_place, "It changes the layer."),
        (wrong_fold_shared, "The new layer shares the weight it changes."),
        (wrong_fold_bare_library, "torch's fusion breaks for a Linear, bn.weight None."),
        (wrong_fold_needs_bias, "It breaks where the layer has no bias."),
        (wrong_fold_skips_bias, "Without a bias the shift is lost."),
        (wrong_fold_needs_affine, "It breaks where bn has no weight or bias."),
        (wrong_fold_no_mean, "The running mean is ignored."),
        (wrong_fold_bias_unscaled, "The layer's bias is not scaled."),
        (wrong_fold_mean_unscaled, "The running mean is not scaled."),
        (wrong_fold_inputs_scaled, "It scales the inputs, not the outputs."),
        (wrong_fold_no_eps, "eps is ignored."),
        (wrong_fold_eps_fixed, "eps is always 1e-5."),
        (wrong_fold_no_root, "It divides by the variance."),
        (wrong_fold_conv_defaults, "Stride, padding and the rest are lost."),
        (wrong_fold_no_groups, "The groups are lost."),
        (wrong_fold_no_padding_mode, "The mode of the padding is lost."),
        (wrong_fold_sequential, "It is no single layer."),
        (wrong_fold_linear_only, "It breaks with nn.Conv2d."),
        (wrong_fold_double_to_float, "A layer in float64 becomes float32."),
        (wrong_fold_weight_ignored, "bn.weight is ignored."),
        (wrong_fold_shift_scaled, "bn.bias is scaled, too."),
    ],
    2: [
        (wrong_merged_plain_means, "The counts are ignored, and so is the spread."),
        (wrong_merged_no_between, "The spread of the means is missing."),
        (wrong_merged_unbiased, "It divides by one row less."),
        (wrong_merged_from_unbiased, "It takes the variances for unbiased ones."),
        (wrong_merged_equal_processes, "The counts are ignored."),
        (wrong_merged_between_unweighted, "The spread of means ignores counts."),
        (wrong_merged_within_unweighted, "The variances ignore the counts."),
        (wrong_merged_between_minus, "The spread of the means is subtracted."),
        (wrong_merged_std, "It returns the SD."),
        (wrong_merged_swapped, "It returns (variance, mean)."),
        (wrong_merged_first_mean, "The spread is around the first mean."),
        (wrong_merged_two, "It takes two processes only."),
        (wrong_merged_sums, "The variance is not divided by the rows."),
        (wrong_merged_not_squared, "The distances are not squared."),
        (wrong_merged_squares, "This is the mean square, not the variance."),
        (wrong_merged_pairwise_halves, "Each pair counts half and half."),
        (wrong_merged_count_not_added, "The count of what is merged stays."),
        (wrong_merged_integer, "The mean is rounded down."),
        (wrong_merged_mean_of_means, "The mean ignores the counts."),
        (wrong_merged_largest, "It takes the largest process."),
        (wrong_merged_variance_of_means, "The spread of means: unbiased, unweighted."),
    ],
    3: [
        (wrong_gradient_divided, "Mean and variance are taken for constants."),
        (wrong_gradient_no_mean, "The path by the mean is missing."),
        (wrong_gradient_no_variance, "The path by the variance is missing."),
        (wrong_gradient_unbiased, "It takes the unbiased variance."),
        (wrong_gradient_no_eps, "eps is ignored."),
        (wrong_gradient_eps_fixed, "eps is always 1e-5."),
        (wrong_gradient_eps_half, "eps is missing in y."),
        (wrong_gradient_rows, "It works along the rows."),
        (wrong_gradient_sums, "Sums in place of means."),
        (wrong_gradient_sign, "The path by the variance has the wrong sign."),
        (wrong_gradient_no_root, "It divides by the variance."),
        (wrong_gradient_raw_x, "The product is with x, not with y."),
        (wrong_gradient_centred, "The product is not divided by the variance."),
        (wrong_gradient_n_minus_one, "The means divide by n - 1."),
        (wrong_gradient_autograd, "It uses autograd."),
        (wrong_gradient_forward, "It multiplies grad by the output."),
        (wrong_gradient_all_entries, "It takes all columns together."),
        (wrong_gradient_eps_outside, "eps is not under the root."),
        (wrong_gradient_changes_grad, "It changes grad, and sums where it must average."),
        (wrong_gradient_mean_product, "The product of means, not the mean product."),
        (wrong_gradient_half, "Half of the path by the variance."),
        (wrong_gradient_rough, "Differences with a long step are far off."),
    ],
}

UNCLEAR = {
    0: [
        "One row in training: the unbiased variance is nan; an error, or what?",
        "Is F.batch_norm 'in tensor operations'? I left it out of both lists.",
        "weight and bias as None, and momentum None, are not said to come.",
    ],
    1: [
        "The mode (train or eval) and requires_grad of the new layer.",
        "bn without running statistics (track_running_stats=False).",
        "May the new one be a subclass of nn.Linear or nn.Conv2d, or hold bn in a hook?",
    ],
    2: [
        "A process with no rows: is its mean a number, or nan?",
        "E[x^2] - mean^2 in floats is right on paper, and bad for a large mean.",
        "A list or an array of two in place of the tuple: I count both as right.",
    ],
    3: [
        "Central differences: no autograd, but how near must it be?",
        "May x and grad be changed? I think not, but the question does not say.",
        "torch's own native_batch_norm_backward: 'without autograd'? I say yes.",
    ],
}
