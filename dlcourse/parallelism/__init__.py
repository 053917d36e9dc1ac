"""Parallelism: several processes train one model, by splitting its data, state, layers or
time.
"""

from dlcourse.parallelism.collectives import (
    Group,
    SentBytes,
    all_reduce_mean,
    process_group,
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
)
from dlcourse.parallelism.context_parallel import ring_attention
from dlcourse.parallelism.cost_model import (
    GPT,
    Layout,
    Machine,
    state_bytes,
    step_time,
)
from dlcourse.parallelism.data_parallel import DataParallelTrainer, data_parallel_step
from dlcourse.parallelism.experts import MixtureOfExperts, all_to_all
from dlcourse.parallelism.pipeline import (
    Event,
    bubble_fraction,
    idle_fraction,
    most_in_flight,
    pipeline_schedule,
    run_pipeline,
    simulate_pipeline,
)
from dlcourse.parallelism.published import ZERO_3, Run
from dlcourse.parallelism.sharding import ShardedTrainer, shard_parameters
from dlcourse.parallelism.tensor_parallel import (
    ColumnParallelLinear,
    ParallelAttention,
    RowParallelLinear,
)

__all__ = [
    "Group",
    "SentBytes",
    "all_reduce_mean",
    "process_group",
    "ring_all_gather",
    "ring_all_reduce",
    "ring_reduce_scatter",
    "DataParallelTrainer",
    "data_parallel_step",
    "ShardedTrainer",
    "shard_parameters",
    "ColumnParallelLinear",
    "ParallelAttention",
    "RowParallelLinear",
    "Event",
    "bubble_fraction",
    "idle_fraction",
    "most_in_flight",
    "pipeline_schedule",
    "run_pipeline",
    "simulate_pipeline",
    "ring_attention",
    "MixtureOfExperts",
    "all_to_all",
    "GPT",
    "Layout",
    "Machine",
    "state_bytes",
    "step_time",
    "ZERO_3",
    "Run",
]
