"""Batch norm with Accelerate: the norm sees 16 rows, on 1, 2, 4 or 8 processes.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

NORM_ROWS = 16  # rows that share a mean in training: a setting of the model, on any GPUs
BATCH = 128  # rows an update: a multiple of NORM_ROWS times the processes (SYNC: of NORM_ROWS)
SYNC = False  # True if NORM_ROWS do not fit on one GPU: the processes then share them
RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
EPOCHS, TRAIN_ROWS, WIDTH = 3, 1408 // BATCH * BATCH, 16  # whole updates only


def conv(inputs):  # no bias: the norm would take it off, and has a shift of its own
    layer = nn.Conv2d(inputs, WIDTH, 3, padding=1, bias=False)
    return layer, nn.BatchNorm2d(WIDTH), nn.ReLU()


accelerator = Accelerator()
processes = accelerator.num_processes
if SYNC and NORM_ROWS % processes:
    raise SystemExit(f"{processes} processes cannot share {NORM_ROWS=} evenly")
rows = NORM_ROWS // processes if SYNC else NORM_ROWS  # of each process, at a time
if BATCH % (rows * processes):
    raise SystemExit(f"{BATCH=} is no multiple of {rows} rows in {processes} processes")
accelerator.gradient_accumulation_steps = BATCH // (rows * processes)
torch.manual_seed(0)
layers = [*conv(1), nn.MaxPool2d(2), *conv(WIDTH), *conv(WIDTH), *conv(WIDTH)]
bare = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * WIDTH, 10))
if SYNC:  # before `prepare`; torch has it for GPUs only
    bare = nn.SyncBatchNorm.convert_sync_batchnorm(bare)
decayed = {"params": [p for p in bare.parameters() if p.ndim > 1]}
spared = {"params": [p for p in bare.parameters() if p.ndim == 1], "weight_decay": 0.0}
optimizer = torch.optim.SGD([decayed, spared], RATE, MOMENTUM, weight_decay=DECAY)
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = (images / 16).float().view(-1, 1, 8, 8)
train_rows = TensorDataset(images[:TRAIN_ROWS], labels[:TRAIN_ROWS])
held_out = DataLoader(TensorDataset(images[1408:], labels[1408:]), 64)
order = torch.Generator().manual_seed(0)
train = DataLoader(train_rows, rows, shuffle=True, generator=order, drop_last=True)
mixed_order = torch.Generator().manual_seed(0)
mixed = DataLoader(train_rows, 128, shuffle=True, generator=mixed_order)
model, optimizer, train, held_out = accelerator.prepare(bare, optimizer, train, held_out)

for _ in range(EPOCHS):
    model.train()
    for inputs, targets in train:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(inputs), targets))
            optimizer.step()
            optimizer.zero_grad()
    # each process has seen other rows: measure the statistics anew, from the same rows
    update_bn(mixed, bare, device=accelerator.device)
    model.eval()
    with torch.no_grad():
        pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in held_out]
    outputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    accuracy = (outputs.argmax(1) == targets).float().mean()
    loss = F.cross_entropy(outputs, targets)
    accelerator.print(f"validation accuracy {accuracy:.4f}, validation loss {loss:.4f}")
# accelerator.save(bare.state_dict(), FILE) would store weights and statistics
accelerator.end_training()
