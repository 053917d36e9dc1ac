"""Starting weights of a transformer with Accelerate: filled on meta, looked at, trained.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import math

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

WIDTH, BLOCKS, RATE, BATCH, EPOCHS, TRAIN_ROWS = 32, 4, 0.001, 64, 6, 1472
ENDS = ("out_proj.weight", "linear2.weight")  # of the branches, two to a block


def scale(name, weight):  # a row makes one output, its size is the fan-in
    branches = 2 * BLOCKS if name.endswith(ENDS) else 1
    return 1 / math.sqrt(weight[0].numel() * branches)


@torch.no_grad()
def start(model):  # in place, so that an optimizer keeps its weights
    for name, _ in model.named_buffers():
        raise SystemExit(f"start has no rule for {name}: fill masks and statistics here")
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.normal_(0, scale(name, weight))
        elif name.endswith("bias"):
            weight.zero_()
        elif "norm" in name:
            weight.fill_(1)
        else:
            raise SystemExit(f"start has no rule for {name}")


def look(model, blocks, inputs, targets):  # one pass, before training
    added, grads = [], []

    def note(block, given, stream):  # std(0): from row to row
        before, after = given[0].detach(), stream.detach()
        added.append(((after - before).std(0).mean() / before.std(0).mean()).item())
        stream.register_hook(lambda grad: grads.append(grad.std().item()))

    hooks = [block.register_forward_hook(note) for block in blocks]
    loss = F.cross_entropy(model(inputs), targets)
    loss.backward()
    model.zero_grad()
    for hook in hooks:
        hook.remove()
    weights = [(n, w) for n, w in model.named_parameters() if w.ndim > 1]
    gains = [w.std().item() / scale(n, w) for n, w in weights]  # 1: as the rule has it
    least = 0.2 / math.sqrt(BLOCKS)  # of what a block adds
    flows = least < min(added) <= max(added) < 2 and max(grads) < 10 * min(grads)
    if not (flows and 0.25 < min(gains) <= max(gains) < 4 and loss < math.log(10) + 2):
        raise SystemExit(f"a bad start: {loss=:.2f}, {added=}, {grads=}, {gains=}")
    sums = torch.stack([weight.sum() for weight in model.parameters()])
    if (accelerator.gather(sums[None]) != sums).any():
        raise SystemExit("the processes start with different weights")
    return loss.item()


accelerator = Accelerator()
set_seed(0)  # the same in every process
how = {"dropout": 0.0, "batch_first": True, "norm_first": True}
with torch.device("meta"):  # shapes only: no memory, and no numbers drawn
    block = nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, **how)
    body = nn.TransformerEncoder(block, BLOCKS, nn.LayerNorm(WIDTH), False)
    layers = [nn.Linear(8, WIDTH), body, nn.Flatten(), nn.Linear(8 * WIDTH, 10)]
model = nn.Sequential(*layers).to_empty(device=accelerator.device)
start(model)  # before prepare, and not after it
images, labels = load_digits(return_X_y=True)  # the 8 rows of an image are its tokens
rows = torch.tensor(images / 16).float().view(-1, 8, 8).to(accelerator.device)
labels = torch.tensor(labels).to(accelerator.device)
train = TensorDataset(rows[:TRAIN_ROWS], labels[:TRAIN_ROWS])
test = DataLoader(TensorDataset(rows[TRAIN_ROWS:], labels[TRAIN_ROWS:]), 64)
order, share = torch.Generator().manual_seed(0), BATCH // accelerator.num_processes
train = DataLoader(train, share, shuffle=True, generator=order, drop_last=True)
first = look(model, body.layers, rows[:256], labels[:256])
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)
set_seed(0, device_specific=True)  # from here on dropout is to differ by process
for _ in range(EPOCHS):
    for inputs, targets in train:
        accelerator.backward(F.cross_entropy(model(inputs), targets))
        optimizer.step()
        optimizer.zero_grad()
model.eval()
with torch.no_grad():
    pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in test]
accuracy = torch.cat([x.argmax(1) == y for x, y in pairs]).float().mean()
accelerator.print(f"first loss {first:.4f}, test accuracy {accuracy:.4f}")
accelerator.end_training()
