"""Pruning: masks for single weights, and layers with fewer units."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dlcourse.model_compression.layers import (
    Weighted,
    _distributed,
    _finite,
    _how_many,
    _layers,
)

Masks = dict[str, Tensor]  # module name -> bool, True where the weight stays


def magnitude_mask(weight: Tensor, amount: float | int) -> Tensor:
    """Return a bool mask of `weight`'s shape, False for the `amount` smallest absolute
    values.

    `amount`: a share from 0.0 to 1.0 of the entries (rounded), or a whole number of them.
    Of equal values the first go first. Raises ValueError for an amount out of range or
    weights that are not finite. Source: Han et al. (2015). Invariants: exactly `amount`
    entries are False; no entry that goes is larger than one that stays; more amount never
    brings an entry back.
    """
    count = _how_many(amount, weight.numel())
    size = _finite(weight.detach()).abs().ravel()
    mask = torch.ones_like(size, dtype=torch.bool)
    mask[size.argsort(stable=True)[:count]] = False
    return mask.view(weight.shape)


def n_m_mask(weight: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """Return a mask that keeps the `n` largest of each `m` neighbours along the last
    dimension.

    The last dimension is the one that a linear layer sums over. Raises ValueError unless
    0 <= n <= m and m >= 1 divides its size. Source: Mishra et al. (2021). Invariant: of
    all masks with at most n in m it keeps the largest sum of absolute values.
    """
    if not (0 <= n <= m and m >= 1) or weight.ndim == 0 or weight.shape[-1] % m:
        raise ValueError(
            f"cannot keep {n} of each {m} in a weight of shape {tuple(weight.shape)}: take "
            "0 <= n <= m, and an m that divides the last dimension"
        )
    groups = _finite(weight.detach()).abs().unflatten(-1, (-1, m))
    order = groups.argsort(dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return keep.view(weight.shape)


def magnitude_prune(model: nn.Module, amount: float | int) -> Masks:
    """Return a mask for each linear and convolution layer: each loses the same share of
    weights.

    Biases stay. Nothing changes until `apply_masks`.
    """
    return {name: magnitude_mask(layer.weight, amount) for name, layer in _layers(model)}


def global_prune(model: nn.Module, amount: float | int) -> Masks:
    """Return masks like `magnitude_prune`, but with one threshold for all layers
    together.

    A layer of small weights loses more than one of large weights, and may lose all.
    Invariant: as many weights go as with one tensor that holds them all.
    """
    layers = list(_layers(model))
    mask = magnitude_mask(
        torch.cat([layer.weight.detach().ravel() for _, layer in layers]), amount
    )
    parts = mask.split([layer.weight.numel() for _, layer in layers])
    return {
        n: part.view(layer.weight.shape)
        for (n, layer), part in zip(layers, parts, strict=True)
    }


def prune_n_m(model: nn.Module, n: int = 2, m: int = 4) -> Masks:
    """Return N:M masks for each linear layer whose inputs `m` divides; the others stay
    dense.
    """
    return {
        name: n_m_mask(layer.weight, n, m)
        for name, layer in _layers(model)
        if isinstance(layer, nn.Linear) and layer.in_features % m == 0
    }


def saliency_prune(model: nn.Module, amount: float | int, sync: bool = True) -> Masks:
    """Return masks that drop the weights of least |weight * gradient|, from the `.grad`
    held now.

    That product is how much the loss would change, to first order, if the weight became
    0. With `sync` the gradients are averaged over all processes first, so that all get
    the same masks.
    Raises ValueError where a layer has no gradient. Source: Lee, Ajanthan & Torr (2019).
    """
    masks = {}
    for name, layer in _layers(model):
        if layer.weight.grad is None:
            raise ValueError(f"{name} has no gradient: call backward() on a loss first")
        grad = layer.weight.grad.clone()
        if sync and _distributed():
            # a sum: the order of sizes is that of the mean
            torch.distributed.all_reduce(grad)
        masks[name] = magnitude_mask(layer.weight.detach() * grad, amount)
    return masks


class _Mask(nn.Module):
    """A parametrization that shows a weight times a fixed mask; its gradient is masked as
    well.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def apply_masks(model: nn.Module, masks: Masks) -> nn.Module:
    """Make the masked weights of `model` zero for good, in place, and return it.

    The layer then computes weight * mask at each use. So no optimizer can refill a zero,
    whatever momentum it brings along. The parameter behind the mask is the same object as
    before, so an optimizer built earlier goes on training it; but it now stands after the
    bias in `model.parameters()`, so load an optimizer's saved state before the masks.
    `bake` turns the result back into a plain model.
    Raises KeyError for a name that is no module, ValueError for a mask of another shape.
    """
    modules = dict(model.named_modules())
    for name, mask in masks.items():  # all are looked at before the first one acts
        weight = modules[name].weight
        assert isinstance(weight, Tensor)
        if weight.shape != mask.shape:
            raise ValueError(
                f"the mask of {name} has shape {tuple(mask.shape)}, its weight "
                f"{tuple(weight.shape)}: compute the masks from this very model"
            )
    for name, mask in masks.items():
        parametrize.register_parametrization(modules[name], "weight", _Mask(mask.clone()))
    return model


def bake(model: nn.Module) -> nn.Module:
    """Return a copy whose masks are worked into plain weights. Invariant: the same
    outputs.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            # torch's own removal would break the original
            weight = module.weight
            assert isinstance(weight, Tensor)
            weight = weight.detach()
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            module._parameters = {"weight": nn.Parameter(weight), **module._parameters}
    return model


def sparsity(model: nn.Module) -> float:
    """Return the share, from 0 to 1, of weights in linear and convolution layers that are
    zero.
    """
    weights = [layer.weight for _, layer in _layers(model)]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def gradual_sparsity(final: float, steps: int, start: int = 0) -> Callable[[int], float]:
    """Return s(t): 0 up to update `start`, `final` from `start` + `steps` on, a cubic
    between.

    It prunes fast while many weights are idle, and slowly at the end. Raises ValueError
    unless 0 <= final <= 1 and steps >= 1. Source: Zhu & Gupta (2017). Invariant: s never
    falls.
    """
    if not (0 <= final <= 1 and steps >= 1):
        raise ValueError(
            f"final={final}, steps={steps}: give a share and at least one step"
        )
    return lambda t: final * (1 - (1 - min(max((t - start) / steps, 0.0), 1.0)) ** 3)


def pruning_step(
    schedule: Callable[[int], float], prune: Callable[[nn.Module, float], Masks] = global_prune,
    every: int = 10,
) -> Callable:  # fmt: skip
    """Return a step for `fit` that prunes to the share `schedule(t)`, anew each `every`
    updates.

    Masks come from the weights, which all processes share, and act after the optimizer,
    whose momentum would else refill the zeros. While the schedule is 0 it is `train_step`
    to the bit, and forgets the masks of an earlier run.
    """
    masks: Masks = {}

    def step(run, batch) -> Tensor:
        run.optimizer.zero_grad()
        loss = run.gradients(batch)
        run.unscale()
        run.optimizer.step()
        model, share = run.accelerator.unwrap_model(run.model), schedule(run.step)
        if not share > 0:
            masks.clear()
        elif run.step % every == 0 or not masks:
            masks.update(prune(model, share))
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_submodule(name).weight.mul_(mask)
        return loss

    return step


def prune_units(model: nn.Module, amount: float | int) -> nn.Module:
    """Return a smaller copy of `model` without the `amount` hidden units of least norm a
    layer.

    A unit is a row of a linear layer or a filter of a convolution. It goes with its bias
    and with the next layer's weights for it: with several columns a filter, where a
    linear layer reads the flattened grid. The layers, in the order in which they were
    made, must form a chain; what stands between must treat each unit by itself, as
    activations and pooling do. At least one unit of each layer stays. A skip connection
    cannot be seen from the layers and would come out wrong.
    Raises ValueError for layers that are no chain, for norm layers (fold them first, as
    `batch_normalization.fold_batch_norm` does) and for grouped convolutions.
    Source: Li et al. (2017), who rank by the sum of absolute values; here it is the
    Euclidean norm.
    Invariant: it computes what `model` would with those units' outputs set to zero.
    """
    model = bake(model)
    layers = [layer for _, layer in _layers(model)]
    known = {id(p) for layer in layers for p in layer.parameters()}
    if any(id(p) not in known for p in model.parameters()):
        raise ValueError(
            "prune_units knows linear and convolution layers only: take out or fold norm layers "
            "(see batch_normalization.fold_batch_norm)"
        )
    if any(getattr(layer, "groups", 1) > 1 for layer in layers):
        raise ValueError(
            "prune_units cannot cut a grouped convolution: prune its weights instead"
        )
    for first, second in itertools.pairwise(layers):
        each, rest = divmod(second.weight.shape[1], first.weight.shape[0])
        # `each` cells of the grid a filter
        flattened = second.weight.ndim == 2 < first.weight.ndim
        if rest or each < 1 or (each > 1 and not flattened):
            raise ValueError(
                f"{first} does not feed {second}: prune_units needs layers that form a chain"
            )
    masks = [unit_mask(layer.weight, amount) for layer in layers[:-1]]
    for mask, (first, second) in zip(masks, itertools.pairwise(layers), strict=True):
        _shrink(
            first, first.weight[mask], None if first.bias is None else first.bias[mask]
        )
        by_unit = second.weight.unflatten(1, (-1, second.weight.shape[1] // len(mask)))
        _shrink(second, by_unit[:, mask].flatten(1, 2), second.bias)
    return model


def unit_mask(weight: Tensor, amount: float | int) -> Tensor:
    """Return a mask (units,), False for the `amount` rows of least Euclidean norm; one
    row stays.

    `amount` is a share of the rows or their number.
    """
    count = min(_how_many(amount, len(weight)), len(weight) - 1)
    return magnitude_mask(weight.detach().flatten(1).norm(dim=1), count)


def _shrink(layer: Weighted, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight = nn.Parameter(weight.detach().clone())
    new_bias = None if bias is None else nn.Parameter(bias.detach().clone())
    layer.register_parameter("bias", new_bias)
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    else:
        layer.out_channels, layer.in_channels = weight.shape[:2]
