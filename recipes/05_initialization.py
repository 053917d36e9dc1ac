"""Starting weights of a transformer with Accelerate: made on meta, filled, checked, trained.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import math

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

WIDTH, BLOCKS, RATE, BATCH, EPOCHS, TRAIN_ROWS = 32, 4, 0.001, 64, 6, 1472
STD = WIDTH**-0.5  # GPT-2, 768 wide and more, takes 0.02
BRANCH_ENDS = ("out_proj.weight", "linear2.weight")  # two to a block


class Reader(nn.Module):  # the 8 rows of an image are its tokens
    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Linear(8, WIDTH), nn.Embedding(8, WIDTH)
        how = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        block = nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, **how)
        self.blocks = nn.TransformerEncoder(block, BLOCKS, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, rows):
        x = self.blocks(self.embed(rows) + self.place.weight)
        return self.head(self.norm(x).mean(1))


@torch.no_grad()
def init(module):  # for model.apply, which calls it with every module
    for name, weight in module.named_parameters(recurse=False):
        if weight.ndim == 2:  # Linear, Embedding, and in_proj_weight of attention
            nn.init.trunc_normal_(weight, 0, STD, -3 * STD, 3 * STD)
        else:  # norms start as 1 and 0, biases as 0
            weight.fill_(name == "weight")


@torch.no_grad()
def start(model):
    for tensor in model.state_dict().values():
        tensor.fill_(math.nan)  # what init forgets stays NaN, and so does the loss
    model.apply(init)
    for name, weight in model.named_parameters():
        if name.endswith(BRANCH_ENDS):
            weight /= math.sqrt(2 * BLOCKS)
    model.head.weight.zero_()  # at first all classes are equally likely


@torch.no_grad()
def check(model, inputs, targets):  # before training
    spreads = []

    def note(module, given, stream):  # a hook sees what goes in and what comes out
        spreads.append(stream.std().item())

    hooks = [block.register_forward_hook(note) for block in model.blocks.layers]
    loss = F.cross_entropy(model(inputs), targets).item()
    for hook in hooks:
        hook.remove()
    if not abs(loss - math.log(10)) < 0.1 or max(spreads) > 3 * min(spreads):
        raise SystemExit(f"a bad start: loss {loss:.2f}, stream {spreads}")
    sums = torch.stack([weight.sum() for weight in model.parameters()])
    if (accelerator.gather(sums[None]) != sums).any():
        raise SystemExit("the processes start with different weights")
    return loss


accelerator = Accelerator()
torch.manual_seed(0)  # the same in every process
with torch.device("meta"):  # shapes only: no memory, and no numbers drawn
    model = Reader()
start(model.to_empty(device=accelerator.device))  # before prepare, and not after it
images, labels = load_digits(return_X_y=True)
rows, labels = torch.tensor(images / 16).float().view(-1, 8, 8), torch.tensor(labels)
train = TensorDataset(rows[:TRAIN_ROWS], labels[:TRAIN_ROWS])
test = DataLoader(TensorDataset(rows[TRAIN_ROWS:], labels[TRAIN_ROWS:]), 64)
order, share = torch.Generator().manual_seed(0), BATCH // accelerator.num_processes
train = DataLoader(train, share, shuffle=True, generator=order, drop_last=True)
first = check(model, *(part[:256].to(accelerator.device) for part in (rows, labels)))
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)
for _ in range(EPOCHS):
    for inputs, targets in train:
        accelerator.backward(F.cross_entropy(model(inputs), targets))
        optimizer.step()
        optimizer.zero_grad()
model.eval()
with torch.no_grad():
    pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in test]
outputs, answers = (torch.cat(parts) for parts in zip(*pairs, strict=True))
accuracy = (outputs.argmax(1) == answers).float().mean()
loss = F.cross_entropy(outputs, answers)
accelerator.print(
    f"first loss {first:.4f}, test accuracy {accuracy:.4f}, test loss {loss:.4f}"
)
accelerator.end_training()
