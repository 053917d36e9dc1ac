"""Batch norm with Accelerate: the norm sees 32 rows, on one process or on many.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader, TensorDataset

NORM_ROWS = 32  # rows that share a mean in training: a setting of the model, so keep it
BATCH = 128  # rows an update: a multiple of NORM_ROWS times the processes
SYNC = False  # True, on GPUs, where one process has no room for NORM_ROWS: share them out
RATE, MOMENTUM, DECAY, KEPT = 0.1, 0.9, 5e-4, 0.9  # KEPT: of the averaged weights
EPOCHS, TRAIN_ROWS, WIDTH = 3, 1408, 16


def conv(inputs):  # the norm's shift does what a bias would do
    return nn.Conv2d(inputs, WIDTH, 3, padding=1, bias=False)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        norms = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH)
        self.branch = nn.Sequential(
            conv(WIDTH), norms[0], nn.ReLU(), conv(WIDTH), norms[1]
        )
        nn.init.zeros_(norms[1].weight)  # the block starts as the identity

    def forward(self, x):
        return F.relu(x + self.branch(x))


accelerator = Accelerator()
rows = NORM_ROWS // accelerator.num_processes if SYNC else NORM_ROWS  # of each process
steps, rest = divmod(BATCH, rows * accelerator.num_processes)  # micro-batches an update
assert rest == 0, f"{BATCH=} is no multiple of {rows} rows times the processes"
accelerator.gradient_accumulation_steps = steps
torch.manual_seed(0)
stem = [conv(1), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.MaxPool2d(2)]
bare = nn.Sequential(*stem, Block(), Block(), nn.Flatten(), nn.Linear(16 * WIDTH, 10))
if SYNC:  # before `prepare`; torch has it for GPUs only
    bare = nn.SyncBatchNorm.convert_sync_batchnorm(bare)
decayed = {"params": [p for p in bare.parameters() if p.ndim > 1]}
spared = {"params": [p for p in bare.parameters() if p.ndim == 1], "weight_decay": 0.0}
optimizer = torch.optim.SGD([decayed, spared], RATE, MOMENTUM, weight_decay=DECAY)
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = (images / 16).float().view(-1, 1, 8, 8)
train_rows = TensorDataset(images[:TRAIN_ROWS], labels[:TRAIN_ROWS])
test = DataLoader(TensorDataset(images[TRAIN_ROWS:], labels[TRAIN_ROWS:]), 64)
order = torch.Generator().manual_seed(0)
train = DataLoader(train_rows, rows, shuffle=True, generator=order, drop_last=True)
model, optimizer, train, test = accelerator.prepare(bare, optimizer, train, test)
average = AveragedModel(bare, multi_avg_fn=get_ema_multi_avg_fn(KEPT))

for _ in range(EPOCHS):
    model.train()
    for inputs, targets in train:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(inputs), targets))
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            average.update_parameters(bare)  # once an update; weights, not statistics

# statistics for the averaged weights, from all rows, the same in every process
update_bn(DataLoader(train_rows, 128), average, device=accelerator.device)
average.eval()
with torch.no_grad():
    pairs = [accelerator.gather_for_metrics((average(x), y)) for x, y in test]
outputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
accuracy = (outputs.argmax(1) == targets).float().mean()
loss = F.cross_entropy(outputs, targets)
accelerator.print(f"test accuracy {accuracy:.4f}, test loss {loss:.4f}")
accelerator.end_training()
