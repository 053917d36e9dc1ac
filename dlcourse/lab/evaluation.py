"""Loss and accuracy of a model on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dlcourse.lab.accelerator import all_reduce
from dlcourse.lab.batches import as_tensors
from dlcourse.lab.shares import ShareLoader, can_be_cut

MOST = 1024  # rows that go through a model at a time
NUMBERS = 2**20  # of their inputs, in which large rows are fewer
FEW = 64  # rows that always may: training has as many, with all that a gradient needs


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    batch_size: int = MOST,
    accelerator: Accelerator | None = None,
) -> dict:
    """Return {"loss": mean, "accuracy": from 0 to 1, "count": rows} of `model` on `data`.

    With several processes each takes a part, and every row counts once. Of a `DataLoader`
    each reads its part only, where that can be cut (see `lab.shares`).
    """
    if data is not None and hasattr(data, "validation"):
        raise ValueError("name the rows to evaluate on: data.validation or data.test")
    data = own_share(data, accelerator)
    if isinstance(data, DataLoader):
        batches = list(data)
        data = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    if isinstance(data, ShareLoader):
        inputs, targets = _rows_of_share(data)
    else:
        inputs, targets = as_tensors(data)
    rows = torch.arange(len(inputs))
    if accelerator is None or accelerator.num_processes == 1:
        sums = _sums(model, inputs, targets, rows.split(batch_size), loss_fn)
    else:
        # DDP would send buffers in a forward pass, which a rank without rows skips
        model = accelerator.unwrap_model(model)
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
        mine = rows
        if not isinstance(data, ShareLoader):
            parts = rows.tensor_split(accelerator.num_processes)
            mine = parts[accelerator.process_index]
        sums = _sums(model, inputs, targets, mine.split(batch_size), loss_fn)
        sums = all_reduce(sums.float(), accelerator, "sum").double().cpu()
    loss, right, count = sums.tolist()
    return {"loss": loss / count, "accuracy": right / count, "count": int(count)}


def own_share(data, accelerator: Accelerator | None):
    """Return a `DataLoader` cut to what this process reads, and any other data as it is."""
    if accelerator is None or accelerator.num_processes == 1:
        return data
    if isinstance(data, DataLoader) and can_be_cut(data):
        return ShareLoader(data, accelerator.process_index, accelerator.num_processes)
    return data


def _rows_of_share(loader: ShareLoader) -> tuple[Tensor, Tensor]:
    """Return all inputs and targets that this process reads; it may have none."""
    inputs, targets = [], []
    for some_inputs, some_targets, mine, _ in loader:
        counted = len(some_inputs) if mine else 0
        inputs.append(some_inputs[:counted])
        targets.append(some_targets[:counted])
    return torch.cat(inputs), torch.cat(targets)


def _sums(model, inputs, targets, batches_of_rows, loss_fn) -> Tensor:
    """Return (sum of the losses, right answers, number) over the given rows."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    for rows in batches_of_rows:
        if len(rows) == 0:  # a process may have none
            continue
        y = targets[rows].to(device)
        outputs = outputs_of(model, inputs, rows, device)
        right = math.nan  # no classes, no accuracy
        if outputs.ndim > 1:
            right = float((outputs.argmax(-1) == y).sum())
        sums += torch.tensor([float(loss_fn(outputs, y)) * len(y), right, len(y)])
    model.train(was_training)
    return sums


def outputs_of(model: nn.Module, inputs, rows: Tensor, device: torch.device) -> Tensor:
    """Return a model's outputs for some rows; of large ones few go through at a time.

    They are put into one block: small ones that stay between large ones that go would
    leave holes, and the process would grow.
    """
    few = max(FEW, min(MOST, NUMBERS // math.prod(inputs.shape[1:])))
    outputs = torch.empty(0)
    for number, part in enumerate(rows.split(few)):
        some = model(inputs[part].to(device))
        if number == 0:
            outputs = some.new_empty(len(rows), *some.shape[1:])
        outputs[number * few : number * few + len(part)] = some
    return outputs
