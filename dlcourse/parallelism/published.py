"""Speeds of large training runs, as published: what the cost model is held against."""

from __future__ import annotations

from typing import NamedTuple

from dlcourse.parallelism.cost_model import GPT, Layout


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

    @property
    def fewest_chunks(self) -> int:
        """The fewest chunks a stage with which it is interleaved: the least divisor above 1
        of its layers; 1 without a pipeline.
        """
        if self.pipeline == 1:
            return 1
        layers = self.layers // self.pipeline
        return next((k for k in range(2, layers + 1) if layers % k == 0), 1)

    def layout(self, chunks: int = 1) -> Layout:
        """Return how the run was split; `chunks` a stage are not in the tables."""
        return Layout(
            self.gpus,
            self.batch,
            self.tensor,
            self.pipeline,
            self.zero,
            self.micro_batch,
            chunks if self.pipeline > 1 else 1,
        )


# Narayanan et al. (2021), table 1. By its section 5.1 these runs used the interleaved
# schedule; the number of chunks is not given.
WEAK_SCALING = (
    Run(24, 2304, 24, 1, 1, 32, 512, 1, 0, 137),
    Run(30, 3072, 32, 2, 1, 64, 512, 1, 0, 138),
    Run(36, 4096, 32, 4, 1, 128, 512, 1, 0, 142),
    Run(40, 6144, 48, 8, 1, 256, 1024, 1, 0, 135),
    Run(48, 8192, 64, 8, 2, 512, 1536, 1, 0, 138),
    Run(60, 10240, 80, 8, 4, 1024, 1792, 1, 0, 140),
    Run(80, 12288, 96, 8, 8, 1536, 2304, 1, 0, 148),
    Run(96, 16384, 128, 8, 16, 1920, 2160, 1, 0, 155),
    Run(105, 20480, 128, 8, 35, 2520, 2520, 1, 0, 163),
    Run(128, 25600, 160, 8, 64, 3072, 3072, 1, 0, 163),
)

# The same, table 2: ZeRO stage 3 beside tensor, pipeline and data parallelism at once.
ZERO_3 = (
    Run(96, 12288, 96, 1, 1, 384, 1536, 4, 3, 144),
    Run(96, 12288, 96, 1, 1, 768, 1536, 2, 3, 88),
    Run(96, 12288, 96, 1, 1, 1536, 1536, 1, 3, 44),
    Run(105, 20480, 128, 1, 1, 640, 2560, 4, 3, 138),
    Run(105, 20480, 128, 1, 1, 1120, 2240, 2, 3, 98),
    Run(105, 20480, 128, 1, 1, 2240, 2240, 1, 3, 48),
)
THREE_WAY = (
    Run(96, 12288, 96, 8, 12, 384, 1536, 1, 0, 153),
    Run(96, 12288, 96, 8, 12, 768, 1536, 1, 0, 149),
    Run(96, 12288, 96, 8, 12, 1536, 1536, 1, 0, 141),
    Run(105, 20480, 128, 8, 35, 560, 2240, 1, 0, 171),
    Run(105, 20480, 128, 8, 35, 1120, 2240, 1, 0, 167),
    Run(105, 20480, 128, 8, 35, 2240, 2240, 1, 0, 159),
)
