"""Speeds of large training runs, as published: what the cost model is held against."""

from __future__ import annotations

from typing import NamedTuple

from dlcourse.parallelism.cost_model import GPT


class Run(NamedTuple):
    """One run on A100 GPUs of 80 GB: the model, how it was split, and its teraFLOP/s a GPU."""

    layers: int
    hidden: int
    heads: int
    tensor: int
    pipeline: int
    gpus: int
    batch: int
    micro_batch: int
    zero: int
    teraflops: int

    @property
    def model(self) -> GPT:
        """The model that was trained."""
        return GPT(self.layers, self.hidden, self.heads)


# Narayanan et al. (2021), table 2: ZeRO stage 3 alone.
ZERO_3 = (
    Run(96, 12288, 96, 1, 1, 384, 1536, 4, 3, 144),
    Run(96, 12288, 96, 1, 1, 768, 1536, 2, 3, 88),
    Run(96, 12288, 96, 1, 1, 1536, 1536, 1, 3, 44),
    Run(105, 20480, 128, 1, 1, 640, 2560, 4, 3, 138),
    Run(105, 20480, 128, 1, 1, 1120, 2240, 2, 3, 98),
    Run(105, 20480, 128, 1, 1, 2240, 2240, 1, 3, 48),
)
