"""After training: batch norm folded into the layer before it, and its statistics anew."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from dlcourse.batch_normalization.batch_norm import is_batch_norm


@torch.no_grad()
def fold_batch_norm(layer: nn.Linear | nn.Conv1d | nn.Conv2d, bn: nn.Module) -> nn.Module:
    """Return a copy of `layer` that computes bn(layer(x)) of evaluation by itself.

    `bn` is ours or torch's. Raises TypeError for other layers, ValueError for a batch
    norm in training mode, without running statistics, or of another size.
    Invariant: the output is that of the pair, for any input.
    """
    if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) or not is_batch_norm(bn):
        raise TypeError(
            f"cannot fold {type(bn).__name__} into {type(layer).__name__}: give a Linear, Conv1d "
            "or Conv2d and the batch norm that follows it"
        )
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError(
            "this batch norm has no running statistics, so there is no fixed map"
        )
    if bn.training:
        raise ValueError("in training mode batch norm is no fixed map: call eval() first")
    if len(layer.weight) != bn.num_features:
        raise ValueError(
            f"the layer has {len(layer.weight)} outputs, the norm {bn.num_features}"
        )
    scale = (bn.running_var + bn.eps).rsqrt()
    scale = scale if bn.weight is None else scale * bn.weight
    shift = -bn.running_mean * scale + (0 if bn.bias is None else bn.bias)
    folded, weight = copy.deepcopy(layer), layer.weight
    folded.weight.copy_(weight * scale.view(-1, *(1,) * (weight.ndim - 1)))
    shift = shift if layer.bias is None else shift + layer.bias * scale
    folded.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)
    return folded


@torch.no_grad()
def recalibrate_bn(model: nn.Module, batches: Iterable) -> int:
    """Set the running statistics of `model` to the mean over `batches`; return their
    number.

    `batches`: inputs, or tuples that start with the inputs; each batch counts the same.
    Only the batch norms run in training mode meanwhile, so that dropout stays off. Modes
    and momenta are as before at the end. Raises ValueError where there is no batch, or no
    batch norm that tracks.
    Source: Wu & Johnson (2021), who call it PreciseBN. Invariant: no parameter changes.
    """
    norms = [
        m for m in model.modules() if is_batch_norm(m) and m.running_mean is not None
    ]
    if not norms:
        raise ValueError("this model has no batch norm with running statistics")
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    count = 0
    try:
        for count, batch in enumerate(batches, start=1):
            if count == 1:  # an empty iterable leaves the statistics as they were
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None
                    norm.training = True
            model(batch[0] if isinstance(batch, (tuple, list)) else batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if not count:
        raise ValueError("no batches: give at least one")
    return count
