"""Data loading: from samples on a disk or in memory to batches that are there when they
are needed.

A loader is four small parts: an order of the samples (a sampler), its cut into batches (a
batch sampler), the reading (a dataset, in this process or in workers), and the stacking
(a collate function). With the same generator the order is that of `torch.utils.data`, to
the sample.
"""

from dlcourse.data_loading.collating import default_collate, pad_collate
from dlcourse.data_loading.datasets import Dataset, IterableDataset
from dlcourse.data_loading.demonstrations import (
    KeyedDraws,
    NumberStream,
    Probe,
    RandomDraws,
    ShardedLines,
    SlowSamples,
)
from dlcourse.data_loading.in_memory import TensorLoader
from dlcourse.data_loading.loader import DataLoader, WorkerError
from dlcourse.data_loading.prefetching import prefetch
from dlcourse.data_loading.sampling import (
    BatchSampler,
    BucketSampler,
    RandomSampler,
    SequentialSampler,
    draw_seed,
    pack_sequences,
    padding_share,
    shard_indices,
)
from dlcourse.data_loading.timing import (
    endless,
    milliseconds_a_step,
    steps_with_and_without,
)
from dlcourse.data_loading.workers import (
    WorkerInfo,
    get_worker_info,
    keyed_transform,
    seed_worker,
)

__all__ = [
    "Dataset",
    "IterableDataset",
    "BatchSampler",
    "BucketSampler",
    "RandomSampler",
    "SequentialSampler",
    "draw_seed",
    "pack_sequences",
    "padding_share",
    "shard_indices",
    "default_collate",
    "pad_collate",
    "WorkerInfo",
    "get_worker_info",
    "keyed_transform",
    "seed_worker",
    "endless",
    "milliseconds_a_step",
    "steps_with_and_without",
    "DataLoader",
    "WorkerError",
    "prefetch",
    "TensorLoader",
    "KeyedDraws",
    "NumberStream",
    "Probe",
    "RandomDraws",
    "ShardedLines",
    "SlowSamples",
]
