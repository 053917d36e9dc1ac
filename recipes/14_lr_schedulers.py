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

EPOCHS, FALLING = 10, 2  # FALLING: a fifth. Raise both later: training goes on
RATE, WARMUP = 0.01, 20  # WARMUP: updates. With FALLING = EPOCHS the rest is one fall
BATCH, PARTS = 64, 1  # rows at once, of all processes; so many batches make an update
SEED, TRAIN_ROWS, FOLDER = 0, 1472, Path("checkpoints")  # delete the folder to begin anew
EACH = TRAIN_ROWS // (BATCH * PARTS)  # updates an epoch
START, END = max(WARMUP, (EPOCHS - FALLING) * EACH), EPOCHS * EACH  # of the fall


def factor(t):  # on the rate of update t = 0, 1, 2, ...: a function of t and nothing else
    if t < WARMUP:
        return (t + 1) / WARMUP
    return max(0.0, min(1.0, (END - t) / (END - START)))


loading = DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True)
accelerator = Accelerator(gradient_accumulation_steps=PARTS, dataloader_config=loading)
torch.manual_seed(SEED)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)  # is not prepared
images, labels = load_digits(return_X_y=True)
rows = TensorDataset(torch.tensor(images / 16).float(), torch.tensor(labels))
train = DataLoader(Subset(rows, range(EACH * BATCH * PARTS)), BATCH, shuffle=True)
test = DataLoader(Subset(rows, range(TRAIN_ROWS, len(rows))), 64)
model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)
accelerator.register_for_checkpointing(scheduler)  # its count goes into each checkpoint
found = [*sorted(FOLDER.glob("stable-*")), *sorted(FOLDER.glob(f"fall_to_{EPOCHS}-*"))]
done = int(found[-1].name[-4:]) if found else 0  # epochs
if done > EPOCHS - FALLING and "stable" in found[-1].name:
    raise SystemExit(f"the stable part is {done} epochs long: raise {EPOCHS=}")
if found:
    accelerator.load_state(found[-1])

for epoch in range(done, EPOCHS):
    train.set_epoch(epoch)  # the order of this epoch, also after a resume
    for inputs, targets in train:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(inputs), targets))
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
            scheduler.step()  # once an update, for any PARTS and any processes
    name = "stable" if epoch < EPOCHS - FALLING else f"fall_to_{EPOCHS}"
    accelerator.save_state(FOLDER / "new")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:  # the older one goes when the new one has its name
        (FOLDER / "new").rename(FOLDER / f"{name}-{epoch + 1:04}")
        for older in sorted(FOLDER.glob(f"{name}-*"))[:-1]:
            shutil.rmtree(older)

with torch.no_grad():
    right = [accelerator.gather_for_metrics(model(x).argmax(1) == y) for x, y in test]
accelerator.print(f"test accuracy {torch.cat(right).float().mean():.4f}")
accelerator.end_training()
