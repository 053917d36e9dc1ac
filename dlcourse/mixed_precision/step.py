"""The training step in mixed precision, with every cast written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dlcourse.mixed_precision.formats import OF_DTYPE
from dlcourse.mixed_precision.loss_scale import GradScaler, _weights


def mixed_precision_step(
    dtype: torch.dtype = torch.bfloat16,
    scaler: GradScaler | torch.amp.GradScaler | None = None,
    max_norm: float = math.inf,
) -> Callable:
    """Return a step for `fit`: forward under autocast to `dtype`, loss scale, clipping,
    update.

    The order is fixed: all micro-batches at one scale, unscale, clip, step, update the
    scale.
    `scaler` is ours or torch's; float16 needs one, bfloat16 does not. Logged: "grad_norm"
    (before clipping, unscaled) and "scale". Choose the precision here, or leave float32
    here and give `fit` mixed_precision=, which has its own autocast around the model.
    With float32, no scaler and max_norm=inf it is `train_step` to the bit.
    Raises ValueError for other dtypes.
    Source: PyTorch's automatic mixed precision examples.
    """
    if dtype not in OF_DTYPE:
        raise ValueError(
            f"{dtype}: choose torch.bfloat16, torch.float16 or torch.float32"
        )
    scaler = GradScaler(enabled=False) if scaler is None else scaler

    def step(run, batch) -> Tensor:
        run.optimizer.zero_grad()
        device, rows = batch.inputs.device.type, len(batch.inputs)
        pieces = min(run.accumulation_steps, rows)
        total = torch.zeros((), device=batch.inputs.device)
        for x, y in zip(
            batch.inputs.tensor_split(pieces),
            batch.targets.tensor_split(pieces),
            strict=True,
        ):
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                loss = run.loss_fn(run.model(x), y) * (batch.share * len(x) / rows)
            # outside autocast: each op in its forward's dtype
            scaler.scale(loss).backward()
            total = total + loss.detach()
        scaler.unscale_(run.optimizer)  # once, after the last micro-batch
        norm = nn.utils.clip_grad_norm_(_weights(run.optimizer), max_norm)
        run.log("grad_norm", norm)
        run.log("scale", scaler.get_scale())
        scaler.step(run.optimizer)  # left out if a gradient is not finite
        scaler.update()
        return total

    return step
