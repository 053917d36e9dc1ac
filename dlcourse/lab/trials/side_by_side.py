"""Many small networks as one, side by side in its channels.

A convolution with `groups=` keeps groups of channels apart, and so do batch norm, group
norm and ReLU. So R networks of width w are one network of width R * w with R groups.
Their linear layers are one batched matrix product, a layer norm is a group norm.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.lab.training import as_tensors
from dlcourse.lab.trials.results import Trials
from dlcourse.lab.trials.stack import built
from dlcourse.lab.trials.stacked import join_curves, rows_drawn

EVALUATED_ROWS = 8192  # of all networks in one pass
KINDS = (
    "Conv2d, BatchNorm2d, GroupNorm, ReLU, AdaptiveAvgPool2d, Flatten, and after it "
    "Linear, BatchNorm1d, LayerNorm"
)


class LinearLayers(nn.Module):
    """The linear layers of all networks: (rows, networks * in) -> (rows, networks * out).

    `weight`: (networks, out, in), `bias`: (networks, 1, out) or None.
    """

    def __init__(self, layers: Sequence[Any]):
        super().__init__()
        weights: list[Tensor] = [layer.weight for layer in layers]
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        self.weight = nn.Parameter(torch.stack(weights))
        self.bias = nn.Parameter(torch.stack(biases)[:, None]) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(len(x), len(self.weight), -1).transpose(0, 1)  # (networks, rows, in)
        y = x @ self.weight.mT
        if self.bias is not None:
            y = y + self.bias
        return y.transpose(0, 1).flatten(1)


def run_side_by_side(
    build: Callable[[int], nn.Sequential],
    data,
    *,
    seeds: Sequence[int],
    lr: Sequence[float],
    steps: int,
    batch_size: int = 32,
    momentum: float = 0.0,
    falling: bool = False,
    validation=None,
    test=None,
    looks: Sequence[int] = (),
    channels_last: bool = False,
) -> Trials:
    """Train `build(seed)` for every learning rate and seed by SGD, and return the results.

    `build(seed)` is an nn.Sequential of Conv2d, BatchNorm2d, GroupNorm, ReLU and
    AdaptiveAvgPool2d, then Flatten, then Linear, BatchNorm1d, LayerNorm of the units and
    ReLU, all of torch; it may begin with Flatten. `data`, `validation` and
    `test` are what `run_trials` takes, and so are the batches: the rows that `fit(seed=...)`
    draws. `falling`: each rate falls to zero along a line. `looks`: updates after which to
    evaluate, too; see `Trials.after`. `channels_last`: the layout of the images in memory,
    in which few narrow networks take a fifth less time; it changes rounding alone.
    `networks[rate][seed]` of the results: each network, trained.
    A network that diverges goes on with NaN and harms no other.
    Raises ValueError for other layers.
    Invariant: each network is trained as it would be alone, up to rounding.
    """
    networks = [copy.deepcopy(first) for first in built(build, seeds, len(lr))]
    count = len(networks)
    model = join(networks)
    rates = torch.tensor([rate for rate in lr for _ in seeds])
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=1.0, momentum=momentum, foreach=True)
    inputs, targets = as_tensors(data)
    shape = (len(lr), len(seeds))
    held_out = {"validation": validation, "test": test}
    held_out = {name: rows for name, rows in held_out.items() if rows is not None}
    curves: dict[str, list[dict]] = {name: [] for name in held_out}
    losses = []

    batches = rows_drawn(len(inputs), seeds, batch_size)
    for step, rows in enumerate(islice(batches, steps), start=1):
        if falling:
            optimizer.param_groups[0]["lr"] = 1 - (step - 1) / steps
        rows = rows.repeat(len(lr), 1)  # (networks, batch)
        x = inputs[rows].transpose(0, 1).flatten(1, 2)  # (batch, networks * c, h, w)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        outputs = model(x).view(len(x), count, -1)
        loss = F.cross_entropy(outputs.movedim(0, 2), targets[rows], reduction="none")
        loss = loss.mean(1)  # of each network
        loss.sum().backward()
        # rates differ: the gradient takes the network's own
        grads = [cast(Tensor, p.grad).view(count, -1) for p in parameters]
        own = [rates[:, None]] * len(grads)
        torch._foreach_mul_(grads, own)  # pyright: ignore[reportPrivateImportUsage]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if step in looks or step == steps:
            for name, rows_held_out in held_out.items():
                curves[name].append(evaluate_all(model, rows_held_out, shape))

    hand_back(model, networks)
    return Trials(
        list(lr),
        list(seeds),
        torch.stack(losses, 1).view(*shape, steps).numpy(),
        times=sorted({*looks, steps}),
        curves=join_curves(curves),
        validation=curves["validation"][-1] if "validation" in curves else {},
        test=curves["test"][-1] if "test" in curves else {},
        networks=[networks[i : i + len(seeds)] for i in range(0, count, len(seeds))],
    )


def join(networks: Sequence[nn.Sequential]) -> nn.Sequential:
    """Return one network that holds all of them, each in its own group of channels."""
    layers = zip(*networks, strict=True)
    return nn.Sequential(*[_joined_layer(each) for each in layers])


@torch.no_grad()
def hand_back(model: nn.Sequential, networks: Sequence[nn.Sequential]) -> None:
    """Give each network its own share of the numbers of the joined one."""
    joined = model.state_dict()
    for i, network in enumerate(networks):
        for name, own in network.state_dict().items():
            whole = joined[name]
            # what is one number is the same for all: a count of batches
            shares = whole.view(len(networks), *own.shape) if whole.ndim else None
            own.copy_(whole if shares is None else shares[i])


def _joined_layer(layers: tuple[nn.Module, ...]) -> nn.Module:
    first: Any = layers[0]
    count = len(layers)
    joined: nn.Module
    if isinstance(first, nn.Conv2d):
        shape: Any = first.kernel_size, first.stride, first.padding
        joined = nn.Conv2d(
            count * first.in_channels,
            count * first.out_channels,
            *shape,
            groups=count * first.groups,
            bias=first.bias is not None,
        )
    elif isinstance(first, (nn.BatchNorm1d, nn.BatchNorm2d)):
        size = count * first.num_features
        joined = type(first)(size, first.eps, first.momentum)
    elif isinstance(first, nn.GroupNorm):
        sizes = count * first.num_groups, count * first.num_channels
        joined = nn.GroupNorm(*sizes, first.eps)
    elif isinstance(first, nn.LayerNorm) and len(first.normalized_shape) == 1:
        joined = nn.GroupNorm(count, count * first.normalized_shape[0], first.eps)
    elif isinstance(first, nn.Linear):
        return LinearLayers(layers)
    elif isinstance(first, (nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten)):
        return first
    else:
        raise ValueError(f"cannot join {type(first).__name__}: use {KINDS}")
    with torch.no_grad():
        for name, value in joined.named_parameters():
            parts = [getattr(layer, name) for layer in layers]
            value.copy_(torch.cat(parts).view(value.shape))
    return joined


@torch.no_grad()
def evaluate_all(model: nn.Sequential, data, shape: tuple[int, int]) -> dict:
    """Return {"loss", "accuracy"} of each network in evaluation mode, each of `shape`."""
    inputs, targets = as_tensors(data)
    count = shape[0] * shape[1]
    right = torch.zeros(count, dtype=torch.float64)
    losses = torch.zeros(count, dtype=torch.float64)
    model.eval()
    pieces = max(1, EVALUATED_ROWS // count)
    for x, y in zip(inputs.split(pieces), targets.split(pieces), strict=True):
        outputs = model(x.repeat(1, count, 1, 1)).view(len(x), count, -1).movedim(0, 2)
        y = y.expand(count, -1)
        losses += F.cross_entropy(outputs, y, reduction="none").sum(1).double()
        right += (outputs.argmax(1) == y).sum(1)
    model.train()
    found = {"loss": losses / len(inputs), "accuracy": right / len(inputs)}
    return {name: values.view(shape).numpy() for name, values in found.items()}
