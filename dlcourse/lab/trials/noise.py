"""Dropout whose masks the seed of a run decides, so that both ways drop the same units."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

# apart from the numbers that the same seed draws for weights and batches
STREAM = 7_368_787


def is_dropout(layer: object) -> bool:
    """Tell whether a layer is dropout: `nn.Dropout`, or another class of that name with a
    share `p`.
    """
    if not isinstance(layer, nn.Module) or type(layer).__name__ != "Dropout":
        return False
    return isinstance(getattr(layer, "p", None), (int, float))


class DropoutNoise:
    """Random numbers for the dropout layers of a model, from a generator for each seed.

    Runs that differ only in the learning rate drop the same units, as they see the same
    batches.
    """

    def __init__(self, seeds: Sequence[int], rates: int, share: float | None):
        self.generators = [torch.Generator().manual_seed(STREAM + seed) for seed in seeds]
        self.rates, self.share = rates, share
        self.shapes: dict[int, list[torch.Size]] = {}  # of each call, by rows of a batch
        self.queue: Iterator[Tensor] = iter(())
        self.measuring: list[torch.Size] | None = None
        self.used = False

    @contextlib.contextmanager
    def installed(self, model: nn.Module):
        """Within the block, the dropout layers of `model` take their numbers from here."""
        replaced = []
        for parent in model.modules():
            for name, layer in parent.named_children():
                if is_dropout(layer):
                    replaced.append((parent, name, layer))
        if self.share is not None and not replaced:
            raise ValueError(
                "dropout= sets the share of the model's dropout layers, and it has none: "
                "put nn.Dropout() where units should be dropped"
            )
        for parent, name, layer in replaced:
            own = layer.p if self.share is None else self.share
            self.used = self.used or own > 0
            setattr(parent, name, Dropout(own, self).train(layer.training))
        try:
            yield
        finally:
            for parent, name, layer in replaced:
                getattr(parent, name).eval()  # a chain may still hold it
                setattr(parent, name, layer)

    def draw(self, model: nn.Module, x: Tensor) -> None:
        """Draw the numbers for one pass of a batch `x` (rows, ...), for all replicas."""
        if not self.used:
            return
        if len(x) not in self.shapes:
            self.measure(model, x)
        drawn = []
        for shape in self.shapes[len(x)]:
            of_seeds = [torch.rand(shape, generator=g) for g in self.generators]
            drawn.append(torch.stack(of_seeds).repeat(self.rates, *[1] * len(shape)))
        self.queue = iter(drawn)

    def measure(self, model: nn.Module, x: Tensor) -> None:
        """Note the shape that each dropout layer meets in a pass of `x`."""
        kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self.measuring = []
        with torch.no_grad():
            model(x)
        for buffer, before in kept:
            buffer.copy_(before)
        self.shapes[len(x)], self.measuring = self.measuring, None

    def rest(self) -> list[Tensor]:
        """Return the numbers that are drawn and not used yet."""
        return list(self.queue)

    @contextlib.contextmanager
    def handed_out(self, numbers: list[Tensor]):
        """Within the block, the layers take these numbers, in their order."""
        self.queue = iter(numbers)
        yield


class Dropout(nn.Module):
    """Dropout with the numbers of a `DropoutNoise`."""

    def __init__(self, p: float, noise: DropoutNoise):
        super().__init__()
        self.p, self.noise = p, noise

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.noise.measuring is not None:
            self.noise.measuring.append(x.shape)
            return x
        return drop(x, next(self.noise.queue), self.p)

    def in_chain(self, x: Tensor) -> Tensor:
        """Do the same to the values of a chain, (replicas, units, batch)."""
        if not self.training or self.p == 0:
            return x
        return drop(x, next(self.noise.queue).mT, self.p)


def drop(x: Tensor, numbers: Tensor, p: float) -> Tensor:
    """Zero the entries of x whose number is below p, and divide the others by 1 - p."""
    kept = (numbers >= p).to(x.dtype)
    return x * kept if p == 1 else x * (kept / (1 - p))
