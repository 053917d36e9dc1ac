"""The few small networks that chapters train: images (n, c, h, w) in, logits (n, classes)
out.

Each draws its parameters from a generator of its own, seeded with `seed`: the same seed
gives the same network, and the global random state is left alone. Weights that feed a
ReLU or its kin are kaiming-normal, all others xavier-normal, and biases zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init


def _identity(x: Tensor) -> Tensor:
    """Return x: no activation at all."""
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": _identity,
}
XAVIER = ("tanh", "sigmoid", "identity")  # the others pass about half of their input on


class MLP(nn.Module):
    """`depth` hidden layers of `width` units on the flattened image of `inputs` = c * h *
    w values.

    `activation` is a name in ACTIVATIONS or any function of one tensor, which is
    initialised for as ReLU is.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        *,
        width: int = 64,
        depth: int = 2,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        rule = "xavier" if activation in XAVIER else "kaiming"
        sizes = [inputs] + [width] * depth
        self.inputs = inputs
        self.activation = activation if callable(activation) else ACTIVATIONS[activation]
        self.layers = nn.ModuleList(
            _linear(fan_in, width, generator, rule) for fan_in in sizes[:-1]
        )
        self.head = _linear(sizes[-1], classes, generator)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        if x.shape[1] != self.inputs:
            raise ValueError(
                f"this MLP takes {self.inputs} values an image, but these images "
                f"{tuple(images.shape)} have {x.shape[1]}; build it with inputs={x.shape[1]}"
            )
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.head(x)


class SmallCNN(nn.Module):
    """Three 3x3 convolutions (the last two halve the grid), a mean over the grid, a
    linear head.
    """

    def __init__(
        self, channels: int, classes: int, *, width: int = 16, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.conv1 = _conv(channels, width, generator)
        self.conv2 = _conv(width, 2 * width, generator, stride=2)
        self.conv3 = _conv(2 * width, 4 * width, generator, stride=2)
        self.head = _linear(4 * width, classes, generator)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.conv1(images))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        return self.head(x.mean((2, 3)))


class ResidualCNN(nn.Module):
    """`blocks` residual blocks of two 3x3 convolutions, `width` channels wide, on the
    full grid.

    `norm` is "group" (four groups where they divide the width) or "batch". The branches'
    last weights are divided by sqrt(blocks), so that their sum stays of the stem's size.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        width: int = 16,
        blocks: int = 3,
        norm: str = "group",
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.stem = _conv(channels, width, generator)
        self.blocks = nn.ModuleList(
            _ResidualBlock(width, norm, generator, scale=blocks**-0.5)
            for _ in range(blocks)
        )
        self.norm = _norm(norm, width)
        self.head = _linear(width, classes, generator)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class _ResidualBlock(nn.Module):
    """x plus twice (norm, ReLU, 3x3 convolution) of x."""

    def __init__(
        self, width: int, norm: str, generator: torch.Generator, scale: float
    ) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(norm, width), _conv(width, width, generator)
        self.norm2, self.conv2 = _norm(norm, width), _conv(width, width, generator)
        with torch.no_grad():
            self.conv2.weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(branch)))


class RowTransformer(nn.Module):
    """A transformer over the image's `rows` rows, each of `row_size` = c * w values.

    `norm` is "pre" (normalise each branch's input) or "post" (normalise each sum, as
    first published). The head reads the mean over the rows.
    """

    def __init__(
        self,
        row_size: int,
        rows: int,
        classes: int,
        *,
        width: int = 32,
        heads: int = 2,
        depth: int = 2,
        norm: str = "pre",
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.row_size, self.rows = row_size, rows
        self.embed = _linear(row_size, width, generator)
        self.position = nn.Parameter(torch.empty(rows, width))
        nn.init.normal_(self.position, std=0.02, generator=generator)
        self.blocks = nn.ModuleList(
            _TransformerBlock(width, heads, norm, generator) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width) if norm == "pre" else nn.Identity()
        self.head = _linear(width, classes, generator)

    def forward(self, images: Tensor) -> Tensor:
        rows = _rows(images, self.row_size)
        if rows.shape[1] != self.rows:
            raise ValueError(
                f"this model takes {self.rows} rows, but these images {tuple(images.shape)} have "
                f"{rows.shape[1]}; build it with rows={rows.shape[1]}"
            )
        x = self.embed(rows) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class _TransformerBlock(nn.Module):
    """Attention, then a GELU layer of four times the width, each added to its input."""

    def __init__(
        self, width: int, heads: int, norm: str, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.pre = norm == "pre"
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads, generator)
        self.up = _linear(width, 4 * width, generator, "kaiming")
        self.down = _linear(4 * width, width, generator)

    def forward(self, x: Tensor) -> Tensor:
        if self.pre:
            x = x + self.attention(self.norm1(x))
            return x + self.feed_forward(self.norm2(x))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.feed_forward(x))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class _Attention(nn.Module):
    """Every row looks at every row: (n, rows, width) to the same shape, in `heads` parts."""

    def __init__(self, width: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.query = _linear(width, width, generator)
        self.key = _linear(width, width, generator)
        self.value = _linear(width, width, generator)
        self.out = _linear(width, width, generator)

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:  # to (n, heads, rows, width / heads)
            return y.unflatten(2, (self.heads, -1)).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
        # written out, since this form also works under vmap
        mixed = scores.softmax(3) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))


class RowRNN(nn.Module):
    """A recurrent network that reads the image row by row, each of `row_size` = c * w
    values.

    The recurrent weights start as a random rotation.
    """

    def __init__(
        self, row_size: int, classes: int, *, width: int = 32, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.row_size = row_size
        self.input = _linear(row_size, width, generator)
        recurrent = skip_init(nn.Linear, width, width, bias=False)
        self.recurrent = cast(nn.Linear, recurrent)
        nn.init.orthogonal_(self.recurrent.weight, generator=generator)
        self.head = _linear(width, classes, generator)

    def forward(self, images: Tensor) -> Tensor:
        # (n, rows, width), all rows at once
        driven = self.input(_rows(images, self.row_size))
        state = torch.zeros_like(driven[:, 0])
        for row in driven.unbind(1):
            state = torch.tanh(row + self.recurrent(state))
        return self.head(state)


# -- building blocks ------------------------------------------------------------------------------


def _linear(
    inputs: int, outputs: int, generator: torch.Generator, rule: str = "xavier"
) -> nn.Linear:
    return _initialize(skip_init(nn.Linear, inputs, outputs), generator, rule)


def _conv(
    inputs: int, outputs: int, generator: torch.Generator, stride: int = 1
) -> nn.Conv2d:
    conv = skip_init(nn.Conv2d, inputs, outputs, 3, stride=stride, padding=1)
    return _initialize(conv, generator, "kaiming")


def _initialize(layer, generator: torch.Generator, rule: str) -> Any:
    """Fill a layer made by skip_init, which has drawn nothing from the global random
    state.
    """
    if rule == "kaiming":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    else:
        nn.init.xavier_normal_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _norm(norm: str, width: int) -> nn.Module:
    """Return the layer called `norm`; its scale starts at one and its shift at zero."""
    group, batch = nn.GroupNorm(math.gcd(width, 4), width), nn.BatchNorm2d(width)
    return {"group": group, "batch": batch}[norm]


def _rows(images: Tensor, row_size: int) -> Tensor:
    """Turn images (n, c, h, w) into rows (n, h, c * w)."""
    rows = images.transpose(1, 2).flatten(2)
    if rows.shape[2] != row_size:
        raise ValueError(
            f"this model takes rows of {row_size} values, but these images {tuple(images.shape)} "
            f"have channels x width = {rows.shape[2]}; build it with row_size={rows.shape[2]}"
        )
    return rows
