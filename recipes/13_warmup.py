"""Warm-up, then cosine, counted in optimizer updates: a pre-LN transformer reads digits.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE.
"""

import math

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

BATCH, MICRO_BATCH = 64, 16  # rows an update on all processes; rows at once on each
RATE, WARMUP = 0.01, 2000  # the peak; updates of warm-up, at most a tenth of the run
EPOCHS = 10  # 200 updates, so 20 of warm-up


class Reader(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.embed, self.head = nn.Linear(16, width), nn.Linear(width, 10)
        self.position = nn.Parameter(0.02 * torch.randn(4, width))
        shape = dict(d_model=width, nhead=2, dim_feedforward=4 * width, dropout=0.0)
        layers = [nn.TransformerEncoderLayer(**shape, norm_first=True) for _ in range(2)]
        self.layers = nn.Sequential(*layers, nn.LayerNorm(width))

    def forward(self, images):  # (n, 4, 16): two rows of pixels are a token
        tokens = self.embed(images) + self.position
        return self.head(self.layers(tokens.transpose(0, 1)).mean(0))


def factor(t):  # on RATE, at update t = 0, 1, 2, ...; 1 at warmup - 1 and at warmup
    if t < warmup:
        return (t + 1) / warmup
    return (1 + math.cos(math.pi * min(1.0, (t - warmup) / (total - warmup)))) / 2


accelerator = Accelerator()
steps, rest = divmod(BATCH, MICRO_BATCH * accelerator.num_processes)
assert rest == 0, "BATCH must be a multiple of MICRO_BATCH times the processes"
accelerator.gradient_accumulation_steps = steps  # micro-batches an update
images, digits = map(torch.tensor, load_digits(return_X_y=True))
rows = TensorDataset(images.float().view(-1, 4, 16) / 16, digits)
order = torch.Generator().manual_seed(0)
train, test = random_split(rows, [1280, 517], order)  # 1280: whole batches
train = DataLoader(train, MICRO_BATCH, shuffle=True, generator=order, drop_last=True)
torch.manual_seed(0)
model = Reader()
optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
parts = model, optimizer, train, DataLoader(test, 128)
model, optimizer, train, test = accelerator.prepare(*parts)
updates = math.ceil(len(train) / steps)  # an epoch; train counts micro-batches
total = EPOCHS * updates
warmup = min(WARMUP, total // 10)  # a run of under ten updates has none
# not prepared, so on torch's own optimizer, which the prepared one wraps
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, factor)
accelerator.register_for_checkpointing(scheduler)  # else save_state leaves it out

for epoch in range(EPOCHS):
    used = []  # the rate of each update
    for inputs, targets in train:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(inputs), targets))
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients and not optimizer.step_was_skipped:
            used.append(round(optimizer.param_groups[0]["lr"], 5))
            scheduler.step()  # once an update; prepared, it would step once a process
    accelerator.print(f"epoch {epoch}: {len(used)} updates at {used[:3]} ... {used[-1]}")
model.eval()
with torch.no_grad():
    right = [accelerator.gather_for_metrics(model(x).argmax(1) == y) for x, y in test]
accelerator.print(f"test accuracy {torch.cat(right).float().mean():.4f}")
accelerator.end_training()
