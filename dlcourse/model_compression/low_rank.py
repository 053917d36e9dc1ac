"""Low rank: one wide layer as two thin ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from dlcourse.model_compression.layers import _finite, _replace
from dlcourse.model_compression.pruning import _shrink, bake


def low_rank_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return up (outputs, rank) and down (rank, inputs), whose product is nearest to
    `weight`.

    `down` holds the top right singular vectors, found as eigenvectors of the transposed
    weight times the weight, in float64. Raises ValueError for a rank outside 1 to
    min(weight.shape).
    Source: Eckart & Young (1936). Invariant: the squared error is the sum of the squared
    singular values left out; no product of this rank has a smaller one.
    """
    if weight.ndim != 2 or not 1 <= rank <= min(weight.shape):
        raise ValueError(
            f"rank={rank} for a weight of shape {tuple(weight.shape)}: give a matrix, and a rank "
            "from 1 to the smaller of its sides"
        )
    wide = _finite(weight.detach()).double()
    down = torch.linalg.eigh(wide.T @ wide).eigenvectors[:, -rank:].T
    return (wide @ down.T).to(weight.dtype), down.to(weight.dtype).contiguous()


def factorize(model: nn.Module, rank: int) -> nn.Module:
    """Return a copy with two thin linear layers in place of each one that this makes
    smaller.
    """

    def thin(_, linear: nn.Linear) -> nn.Module:
        outputs, inputs = linear.weight.shape
        if rank * (inputs + outputs) >= inputs * outputs:
            return linear
        up, down = low_rank_factors(linear.weight, rank)
        first = skip_init(nn.Linear, inputs, rank, bias=False)
        second = skip_init(nn.Linear, rank, outputs)
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        _shrink(first, down, None)
        _shrink(second, up, linear.bias)
        return nn.Sequential(first, second)

    return _replace(bake(model), thin, (nn.Linear,))
