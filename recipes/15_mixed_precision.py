"""Mixed precision with Accelerate: bfloat16, float16 with its loss scale, and TF32 products.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

PRECISION = "bf16"  # "no"; or, on a GPU without bfloat16, "fp16"
RATE, MAX_NORM = 0.01, 1.0
EPOCHS, BATCH, TRAIN_ROWS = 10, 64, 1472  # BATCH: rows of all processes together

torch.set_float32_matmul_precision("high")  # on NVIDIA GPUs: TF32 in what stays float32
loading = DataLoaderConfiguration(split_batches=True)  # the processes share a batch
accelerator = Accelerator(mixed_precision=PRECISION, dataloader_config=loading)
if PRECISION == "fp16" and accelerator.device.type == "cpu":
    raise SystemExit("Accelerate trains in float32 here: float16 needs a GPU")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))  # stays float32
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16).float(), torch.tensor(labels)
train = TensorDataset(images[:TRAIN_ROWS], labels[:TRAIN_ROWS])
test = DataLoader(TensorDataset(images[TRAIN_ROWS:], labels[TRAIN_ROWS:]), 64)
order = torch.Generator().manual_seed(0)
train = DataLoader(train, BATCH, shuffle=True, generator=order, drop_last=True)
updates = EPOCHS * len(train)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
model, optimizer, train, test, scheduler = accelerator.prepare(
    model, optimizer, train, test, scheduler
)

for epoch in range(1, EPOCHS + 1):
    model.train()
    skipped = 0
    total = torch.zeros((), device=accelerator.device)  # float32: a long sum
    for inputs, targets in train:
        outputs = model(inputs)  # computed under autocast, returned in float32
        loss = F.cross_entropy(outputs, targets)
        accelerator.backward(loss)  # float16: of the loss times the scale
        accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)  # unscales first
        optimizer.step()  # float16: left out where a gradient is not finite
        optimizer.zero_grad()
        scheduler.step()  # once an update; not where one was left out
        skipped += accelerator.optimizer_step_was_skipped
        total += loss.detach()
    mean = accelerator.reduce(total, reduction="mean") / len(train)
    accelerator.print(
        f"epoch {epoch}: training loss {mean:.4f}, {skipped} updates left out"
    )

model.eval()
with torch.no_grad():
    pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in test]
outputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
accuracy = (outputs.argmax(1) == targets).float().mean()
loss = F.cross_entropy(outputs, targets)
accelerator.print(f"test accuracy {accuracy:.4f}, test loss {loss:.4f}")
accelerator.end_training()
