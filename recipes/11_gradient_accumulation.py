"""Gradient accumulation with Accelerate: batches of 128 rows in the memory of 8.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import contextlib
import math
from itertools import islice

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BATCH = 128  # rows an update: a multiple of MICRO_BATCH times processes
MICRO_BATCH = 8  # rows at once in each process: few, but enough to keep it busy
RATE, MOMENTUM, MAX_NORM = 0.4, 0.9, 1.0  # search RATE anew when you change BATCH
EPOCHS, TRAIN_ROWS = 5, 1472


def sums_of_rows(outputs, targets):
    # (n, classes) and (n), or (n, tokens, classes) and (n, tokens); target -100 is padding
    losses = F.cross_entropy(outputs.movedim(-1, 1), targets, reduction="none")
    parts = losses, (outputs.argmax(-1) == targets).float(), (targets != -100).float()
    return torch.stack([part.reshape(len(part), -1).sum(1) for part in parts], dim=1)


accelerator = Accelerator()  # no gradient_accumulation_steps: the division is done below
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16).float(), torch.tensor(labels)
train = TensorDataset(images[:TRAIN_ROWS], labels[:TRAIN_ROWS])
test = DataLoader(TensorDataset(images[TRAIN_ROWS:], labels[TRAIN_ROWS:]), 64)
order = torch.Generator().manual_seed(0)
# drop_last: else Accelerate repeats rows until all processes have full micro-batches
train = DataLoader(train, MICRO_BATCH, shuffle=True, generator=order, drop_last=True)
model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)
torch.manual_seed(accelerator.process_index)  # each process its own dropout masks
processes = accelerator.num_processes
steps, rest = divmod(BATCH, MICRO_BATCH * processes)  # micro-batches a window
if rest:
    raise SystemExit(f"{BATCH=} is no multiple of {MICRO_BATCH=} times {processes=}")
updates = EPOCHS * math.ceil(len(train) / steps)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer.optimizer, updates)

for epoch in range(1, EPOCHS + 1):
    model.train()
    totals = torch.zeros(3, device=accelerator.device)  # loss, right answers, items
    micro_batches = iter(train)
    while window := list(islice(micro_batches, steps)):  # the epoch's last may be short
        items = sum((targets != -100).sum() for _, targets in window)  # rows, or tokens
        items = accelerator.reduce(items, reduction="sum").clamp(min=1)  # of them all
        for number, (inputs, targets) in enumerate(window, start=1):
            last = number == len(window)  # only then do the processes exchange gradients
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                sums = sums_of_rows(model(inputs), targets).sum(0)
                accelerator.backward(sums[0] * processes / items)  # DDP takes the mean
            totals += sums.detach()
        accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)  # once an update
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()  # once an update; prepared, it would step once for each process
    loss, right, items = accelerator.reduce(totals, reduction="sum")  # of the whole epoch
    accelerator.print(f"epoch {epoch}: training loss {loss / items:.4f}")

model.eval()
with torch.no_grad():  # sums of rows, not outputs: with a large vocabulary those are huge
    rows = [accelerator.gather_for_metrics(sums_of_rows(model(x), y)) for x, y in test]
loss, right, items = torch.cat(rows).sum(0)
accelerator.print(f"test accuracy {right / items:.4f}, test loss {loss / items:.4f}")
accelerator.end_training()
