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

WIDTH, BLOCKS, STD = 32, 4, 0.02  # 0.02 is GPT-2's, whose width is 768 and more
RATE, BATCH, EPOCHS, TRAIN_ROWS = 0.003, 64, 8, 1472
SETTINGS = {"dropout": 0.0, "batch_first": True, "norm_first": True}


class Reader(nn.Module):  # the 8 rows of an image are its tokens
    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Linear(8, WIDTH), nn.Embedding(8, WIDTH)
        block, sizes = nn.TransformerEncoderLayer, (WIDTH, 2, 4 * WIDTH)
        self.blocks = nn.Sequential(*[block(*sizes, **SETTINGS) for _ in range(BLOCKS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, rows):
        x = self.blocks(self.embed(rows) + self.place.weight)
        return self.head(self.norm(x).mean(1))


def init(module):  # for model.apply, which calls it with every module
    if isinstance(module, nn.LayerNorm):
        module.reset_parameters()  # ones and zeros
    for name, weight in module.named_parameters(recurse=False):
        if weight.ndim == 2:  # Linear, Embedding, in_proj_weight of attention
            nn.init.trunc_normal_(weight, 0, STD, -3 * STD, 3 * STD)
        elif "bias" in name:
            nn.init.zeros_(weight)


def start(model):
    for tensor in model.state_dict().values():
        tensor.fill_(math.nan)  # what init forgets stays NaN, and so is the loss
    model.apply(init)
    with torch.no_grad():
        for block in model.blocks:  # two branches a block add up: each a little smaller
            block.self_attn.out_proj.weight /= math.sqrt(2 * BLOCKS)
            block.linear2.weight /= math.sqrt(2 * BLOCKS)
        model.head.weight.zero_()  # at first all classes are equally likely


accelerator = Accelerator()
torch.manual_seed(0)  # the same in every process
with torch.device("meta"):  # shapes only: no memory, and no numbers drawn
    model = Reader()
start(model.to_empty(device=accelerator.device))
images, labels = load_digits(return_X_y=True)
rows, labels = torch.tensor(images / 16).float().view(-1, 8, 8), torch.tensor(labels)
train = TensorDataset(rows[:TRAIN_ROWS], labels[:TRAIN_ROWS])
order = torch.Generator().manual_seed(0)
share = BATCH // accelerator.num_processes  # rows of one process
train = DataLoader(train, share, shuffle=True, generator=order, drop_last=True)
test = DataLoader(TensorDataset(rows[TRAIN_ROWS:], labels[TRAIN_ROWS:]), 64)

spreads = []  # of the stream after each block, before training
watch = [b.register_forward_hook(lambda *a: spreads.append(a[2].std())) for b in model.blocks]
with torch.no_grad():
    loss = F.cross_entropy(model(rows[:256].to(accelerator.device)).cpu(), labels[:256])
for hook in watch:
    hook.remove()
sums = accelerator.gather(torch.stack([w.sum() for w in model.parameters()])[None])
if not abs(loss - math.log(10)) < 0.1 or max(spreads) > 3 * min(spreads):
    raise SystemExit(f"a bad start: loss {loss:.2f}, after the blocks {spreads}")
if (sums != sums[0]).any():
    raise SystemExit("the processes start with different weights")

optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)
for _ in range(EPOCHS):
    model.train()
    for inputs, targets in train:
        accelerator.backward(F.cross_entropy(model(inputs), targets))
        optimizer.step()
        optimizer.zero_grad()
model.eval()
with torch.no_grad():
    pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in test]
outputs, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
accuracy, final = (outputs.argmax(1) == labels).float().mean(), F.cross_entropy(outputs, labels)
accelerator.print(f"first loss {loss:.4f}, test accuracy {accuracy:.4f}, test loss {final:.4f}")
accelerator.end_training()
