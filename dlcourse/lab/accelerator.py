"""The Accelerator of a run: its precision, and what its processes do together."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
from collections.abc import Iterator
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor, nn


def make_accelerator(
    mixed_precision: str | None = None, cpu: bool | None = None
) -> Accelerator:
    """Return an Accelerator of the asked precision, also where one of another precision
    exists.

    By default the precision is that of the process: of an earlier Accelerator, or what
    `accelerate launch` was given. The loop divides the loss itself (by rows, not by
    micro-batches), so Accelerate must not.
    """
    shared = AcceleratorState._shared_state
    if shared and mixed_precision:
        # else Accelerate refuses another one
        shared["_mixed_precision"] = mixed_precision
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=bool(cpu))
    if accelerator.distributed_type is DistributedType.MULTI_CPU:
        _close_group_at_exit()
    accelerator.gradient_accumulation_steps = 1
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise ValueError(
            f"float16 training does nothing on {accelerator.device}: Accelerate runs float32 "
            "there without a word. Use mixed_precision='bf16', or a GPU."
        )
    return accelerator


@contextlib.contextmanager
def keep_precision() -> Iterator[None]:
    """Put the process's precision back at the end: Accelerate has one for all
    Accelerators.
    """
    shared = AcceleratorState._shared_state
    before = shared.get(
        "_mixed_precision", os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    )
    try:
        yield
    finally:
        if shared:
            shared["_mixed_precision"] = before


@contextlib.contextmanager
def prepared(
    model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> Iterator[tuple[nn.Module, torch.optim.Optimizer]]:
    """Give (model, optimizer) as Accelerate wraps them for training.

    At the end the model is plain again, in the mode it came in, and without gradients.
    """
    was_training = model.training
    wrapped_model = accelerator.prepare_model(model.train())
    wrapped_optimizer = optimizer
    if accelerator.scaler is not None:  # only float16 needs it
        wrapped_optimizer = accelerator.prepare_optimizer(optimizer)
    try:
        yield wrapped_model, wrapped_optimizer
    finally:
        accelerator.unwrap_model(wrapped_model, keep_fp32_wrapper=False)
        model.train(was_training)
        wrapped_optimizer.zero_grad()


def all_reduce(values: Tensor, accelerator: Accelerator, how: str) -> Tensor:
    """Return the "sum" or the "mean" of each value over the processes; all must call."""
    values = values.to(accelerator.device)
    return cast(Tensor, accelerator.reduce(values, how))


@functools.cache  # registered once a process
def _close_group_at_exit() -> None:
    """Close the group of CPU processes as Python ends: left open, gloo's threads may
    abort it.
    """

    @atexit.register
    def close() -> None:
        if torch.distributed.is_initialized():  # else the script has closed it
            torch.distributed.destroy_process_group()
