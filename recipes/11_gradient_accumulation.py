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
MICRO_BATCH = 8  # rows at once in each process: as many as its memory holds
RATE, MOMENTUM, MAX_NORM = 0.4, 0.9, 1.0  # search RATE anew when you change BATCH
EPOCHS, TRAIN_ROWS = 5, 1472

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
processes = accelerator.num_processes
steps, rest = divmod(BATCH, MICRO_BATCH * processes)  # micro-batches a window
if rest:
    raise SystemExit(f"{BATCH=} is no multiple of {MICRO_BATCH=} times {processes=}")
updates = EPOCHS * math.ceil(len(train) / steps)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer.optimizer, updates)

for epoch in range(1, EPOCHS + 1):
    micro_batches = iter(train)
    while window := list(islice(micro_batches, steps)):  # its inputs, on the device
        # rows or, of targets (n, tokens), tokens; padding, target -100, does not count
        items = sum((targets != -100).sum() for _, targets in window)
        items = accelerator.reduce(items, reduction="sum")  # of all processes
        mean_loss = 0.0
        for number, (inputs, targets) in enumerate(window, start=1):
            last = number == len(window)  # only then do the processes exchange gradients
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                outputs = model(inputs).flatten(0, -2)  # (rows or tokens, classes)
                loss = F.cross_entropy(outputs, targets.flatten(), reduction="sum")
                accelerator.backward(loss * processes / items)  # DDP divides by processes
            mean_loss += loss.detach() / items
        accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)  # once an update
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()  # once an update; prepared, it would step once for each process
    mean_loss = accelerator.reduce(mean_loss, reduction="sum")  # of the last window
    accelerator.print(f"epoch {epoch}: training loss {mean_loss:.4f}")

model.eval()
with torch.no_grad():
    pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in test]
outputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
accuracy = (outputs.argmax(-1) == targets).float().mean()
loss = F.cross_entropy(outputs, targets)
accelerator.print(f"test accuracy {accuracy:.4f}, test loss {loss:.4f}")
accelerator.end_training()
