"""Gradient accumulation with Accelerate: batches of 128 rows in the memory of 8.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import contextlib
from itertools import islice

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BATCH = 128  # rows an update; RATE is tuned for it. A multiple of MICRO_BATCH x processes
MICRO_BATCH = 8  # rows at once in each process: as many as its memory holds
RATE, MOMENTUM, MAX_NORM = 0.1, 0.9, 1.0  # the whole gradient is clipped to MAX_NORM
EPOCHS = 5
TRAIN_ROWS = 1472  # whole micro-batches: Accelerate fills a short one with repeated rows


def windows(loader, size):
    """Yield lists of `size` micro-batches, one list an update; the last may be shorter."""
    micro_batches = iter(loader)
    while window := list(islice(micro_batches, size)):
        yield window


accelerator = Accelerator()  # no gradient_accumulation_steps: the division is done below
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16).float(), torch.tensor(labels)
train = TensorDataset(images[:TRAIN_ROWS], labels[:TRAIN_ROWS])
test = TensorDataset(images[TRAIN_ROWS:], labels[TRAIN_ROWS:])
order = torch.Generator().manual_seed(0)
train = DataLoader(train, MICRO_BATCH, shuffle=True, generator=order)
test = DataLoader(test, 64)
model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)
processes = accelerator.num_processes
steps, rest = divmod(BATCH, MICRO_BATCH * processes)  # micro-batches a window
if rest:
    raise SystemExit(f"{BATCH=} is no multiple of {MICRO_BATCH=} times {processes=}")

for _ in range(EPOCHS):
    for window in windows(train, steps):
        # all inputs of the window are on the device now; if that is too much, keep them on
        # the CPU and move each in its turn, or count from the sampler or the labels alone
        items = sum(len(targets) for _, targets in window)  # or its unmasked tokens
        items = accelerator.reduce(torch.tensor(items, device=accelerator.device))
        for number, (inputs, targets) in enumerate(window, start=1):
            last = number == len(window)  # only then do the processes exchange gradients
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                loss = F.cross_entropy(model(inputs), targets, reduction="sum")
                accelerator.backward(loss * processes / items)  # DDP divides by processes
        accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)  # once an update
        optimizer.step()
        optimizer.zero_grad()

model.eval()
with torch.no_grad():
    pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in test]
outputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
accuracy = (outputs.argmax(1) == targets).float().mean()
loss = F.cross_entropy(outputs, targets)
accelerator.print(f"test accuracy {accuracy:.4f}, test loss {loss:.4f}")
accelerator.end_training()
