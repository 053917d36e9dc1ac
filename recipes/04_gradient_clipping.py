"""Clipping with Accelerate: accumulate, average, unscale, clip, step; the norms are logged.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
Not for DeepSpeed, which clips by its own settings and may return no norm. Under FSDP2 a
norm is a distributed tensor: read it as norm.full_tensor().
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BATCH = 64  # rows an update, on all processes together
STEPS = 4  # micro-batches an update, in each process
RATE, MOMENTUM = 0.05, 0.9
MAX_NORM = 1.0  # norms are logged before clipping: try twice their median
EPOCHS, TRAIN_ROWS = 8, 1472  # 23 whole updates an epoch: see chapter 11 for a rest

accelerator = Accelerator(gradient_accumulation_steps=STEPS)
rows, rest = divmod(BATCH, STEPS * accelerator.num_processes)  # of a micro-batch
if rest:
    raise SystemExit(f"{BATCH=} is no multiple of {STEPS=} times the processes")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16).float(), torch.tensor(labels)
images[:TRAIN_ROWS:500] *= 255  # three broken rows; leave this line out for your data
train = TensorDataset(images[:TRAIN_ROWS], labels[:TRAIN_ROWS])
test = DataLoader(TensorDataset(images[TRAIN_ROWS:], labels[TRAIN_ROWS:]), 64)
order = torch.Generator().manual_seed(0)
train = DataLoader(train, rows, shuffle=True, generator=order, drop_last=True)
model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)

norms = []  # of each update, before clipping; the same on all processes
for epoch in range(1, EPOCHS + 1):
    model.train()
    for inputs, targets in train:
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(inputs), targets)
            accelerator.backward(loss)  # divides by STEPS, adds to .grad
            if accelerator.sync_gradients:  # the last one: averaged over the processes
                # unscales first, where the precision is float16
                norm = accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
                norms.append(norm)  # inf or nan too: float16 starts with some
                if not norm.isfinite():  # reads it: the CPU waits, once an update
                    optimizer.zero_grad()  # no gradient: the step changes nothing
            optimizer.step()  # between two updates neither does anything
            optimizer.zero_grad()
    seen = torch.stack(norms[-len(train) // STEPS :])
    middle, largest = seen.nanmedian().item(), seen.max().item()
    left_out = int((~seen.isfinite()).sum())
    text = f"median norm {middle:.2f}, largest {largest:.2f}, {left_out} updates left out"
    accelerator.print(f"epoch {epoch}: {text}")

model.eval()
with torch.no_grad():
    pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in test]
accuracy = torch.cat([x.argmax(1) == y for x, y in pairs]).float().mean()
seen = torch.stack(norms)
seen = seen[seen.isfinite()]
share = (seen > MAX_NORM).float().mean().item()
accelerator.print(f"clipped {share:.0%}, test accuracy {accuracy:.4f}")
accelerator.end_training()
