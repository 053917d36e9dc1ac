"""Batch norms folded into the layers before them."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_weights

from dlcourse.model_compression.layers import Weighted
from dlcourse.model_compression.pruning import bake

# outputs are the weight's first dimension
FOLDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Return a copy with each batch norm worked into the linear or convolution layer
    before it.

    An Identity takes its place. The inputs of a linear layer must be rows (n, features).
    Fold before quantizing or cutting units: then the numbers that are rounded and
    compared are those that the network multiplies by.
    Raises ValueError for a batch norm that does not come right behind a linear or
    convolution layer in an nn.Sequential, has another width or no running statistics, and
    for layers used in several places. Source: Jacob et al. (2018).
    Invariants: it computes what `model` does in evaluation; with a scale for each output
    channel `quantize` finds the same whole numbers before and after, but for the sign of
    a channel whose norm has a negative weight, and for values at the edge between two
    numbers.
    """
    model = bake(model)
    uses = Counter(
        id(child) for module in model.modules() for child in module._modules.values()
    )
    for sequence in model.modules():
        if type(sequence).forward is not nn.Sequential.forward:
            continue
        for (_, layer), (name, norm) in itertools.pairwise(
            list(sequence._modules.items())
        ):
            if _is_batch_norm(norm) and isinstance(layer, FOLDS):
                if uses[id(layer)] > 1 or uses[id(norm)] > 1:
                    raise ValueError(
                        f"{layer} or its batch norm is used in several places"
                    )
                _fold(layer, norm)
                sequence._modules[name] = nn.Identity()
    for name, module in model.named_modules():
        if _is_batch_norm(module):
            raise ValueError(
                f"batch norm {name} does not come right behind a linear or convolution layer in an "
                "nn.Sequential: put the two side by side there, or fold them by hand"
            )
    return model


def _is_batch_norm(module: nn.Module | None) -> TypeGuard[_BatchNorm]:
    return isinstance(module, _BatchNorm)


def _fold(layer: Weighted, norm: _BatchNorm) -> None:
    """Make layer(x) what norm(layer(x)) was in evaluation; the arithmetic is in float64."""
    weight, bias = layer.weight, layer.bias
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or norm.num_features != len(weight):
        raise ValueError(
            f"cannot fold {norm} into {layer}: it needs running statistics, one for each output"
        )
    # of a linear layer too
    folded = fuse_conv_bn_weights(
        weight.double(),
        None if bias is None else bias.double(),
        mean.double(),
        variance.double(),
        norm.eps,
        norm.weight,
        norm.bias,
    )
    layer.weight, layer.bias = (
        nn.Parameter(values.to(weight.dtype), weight.requires_grad) for values in folded
    )
