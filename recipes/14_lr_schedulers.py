"""Warm-up, a stable rate, a fall to zero (WSD) with Accelerate: resumed, or made longer.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

EPOCHS, FALLING = 10, 2  # raise EPOCHS later: training goes on from the stable part
WARMUP = 20  # updates. With FALLING = EPOCHS it falls in a line from the warm-up on
RATE, BATCH, SEED, TRAIN_ROWS = 0.01, 64, 0, 1472  # BATCH: rows of all processes together
FOLDER = Path("checkpoints")  # delete it to begin anew
EACH = TRAIN_ROWS // BATCH  # updates an epoch
UPDATES = EPOCHS * EACH
START = max(WARMUP, (EPOCHS - FALLING) * EACH)  # of the fall


def factor(t):  # on the rate of update t = 0, 1, 2, ...: a function of t and nothing else
    if t < WARMUP:
        return (t + 1) / WARMUP
    return max(0.0, min(1.0, (UPDATES - t) / (UPDATES - START)))


loading = {"split_batches": True, "use_seedable_sampler": True, "data_seed": SEED}
accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(**loading))
torch.manual_seed(SEED)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)  # is not prepared
images, labels = load_digits(return_X_y=True)
rows = TensorDataset(torch.tensor(images / 16).float(), torch.tensor(labels))
train = DataLoader(Subset(rows, range(TRAIN_ROWS)), BATCH, shuffle=True, drop_last=True)
test = DataLoader(Subset(rows, range(TRAIN_ROWS, len(rows))), 64)
model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)
accelerator.register_for_checkpointing(scheduler)  # its count goes into each checkpoint
found = [n for n in (f"falling_to_{EPOCHS}", "stable") if (FOLDER / n).exists()]
if found:
    accelerator.load_state(FOLDER / found[0])
if found == ["stable"] and scheduler.last_epoch > START:  # torch's name: counts updates
    raise SystemExit(f"the stable part is {scheduler.last_epoch} long: raise {EPOCHS=}")

for epoch in range(scheduler.last_epoch // EACH, EPOCHS):
    train.set_epoch(epoch)  # the order of this epoch, also after a resume
    for inputs, targets in train:
        accelerator.backward(F.cross_entropy(model(inputs), targets))
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()  # once an update; prepared, it may step once for each process
    name = "stable" if scheduler.last_epoch <= START else f"falling_to_{EPOCHS}"
    accelerator.save_state(FOLDER / "new")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:  # a run killed while it saves keeps what it had
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        (FOLDER / "new").rename(FOLDER / name)

with torch.no_grad():
    pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in test]
outputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
accuracy = (outputs.argmax(1) == targets).float().mean()
loss = F.cross_entropy(outputs, targets)
accelerator.print(f"test accuracy {accuracy:.4f}, test loss {loss:.4f}")
accelerator.end_training()
