"""Starting weights of a transformer with Accelerate: drawn by rule, looked at, trained.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn

WIDTH, BLOCKS, RATE, BATCH, EPOCHS, TRAIN_ROWS = 32, 4, 0.001, 64, 4, 1472
ENDS = ("out_proj", "linear2")  # the last layers of the two branches of a block


@torch.no_grad()
def start(model):  # fills in place, so that an optimizer keeps its weights
    for name, module in model.named_modules():
        own = {**dict(module.named_parameters(recurse=False)), **module._buffers}
        for kind, weight in own.items():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
                branches = 2 * BLOCKS if name.endswith(ENDS) else 1
                fan_in = weight[0].numel()  # a row makes one output
                weight.normal_(0, 0 if "bias" in kind else (fan_in * branches) ** -0.5)
            elif isinstance(module, nn.LayerNorm):
                weight.fill_(kind == "weight")  # scales 1, shifts 0
            elif isinstance(module, nn.Embedding):
                weight.normal_(0, 1)  # looked up, not summed: no fan-in
            else:
                raise SystemExit(f"start has no rule for {name} {kind}")


@torch.no_grad()
def look(model, blocks, inputs, targets):  # one batch, before training
    seen = []  # a hook notes of each block: itself, what goes in, what comes out
    hooks = [b.register_forward_hook(lambda *run: seen.append(run)) for b in blocks]
    loss = F.cross_entropy(model(inputs), targets)
    for hook in hooks:
        hook.remove()
    into = seen[0][1][0].std()
    added = torch.stack([(y - x).std(0).mean() / x.std(0).mean() for _, (x,), y in seen])
    least, most = added.min() * BLOCKS**0.5, added.max()
    sums = torch.stack([weight.sum() for weight in model.parameters()])
    equal = (accelerator.gather(sums[None]) == sums).all()  # in all processes
    if not (loss < 4 and 0.2 < into < 5 and 0.2 < least and most < 2 and equal):
        raise SystemExit(f"a bad start: {loss=} {into=} {least=} {most=} {equal=}")
    return loss.item()


accelerator = Accelerator()
torch.manual_seed(0)  # the same in every process
how = {"dropout": 0.0, "batch_first": True, "norm_first": True}
with torch.device("meta"):  # shapes only: no memory, and no numbers drawn
    block = nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, **how)
    body = nn.TransformerEncoder(block, BLOCKS, nn.LayerNorm(WIDTH), False)
    layers = [nn.Linear(8, WIDTH), body, nn.Flatten(), nn.Linear(8 * WIDTH, 10)]
model = nn.Sequential(*layers).to_empty(device=accelerator.device)
start(model)  # before prepare, and not after it
images, labels = load_digits(return_X_y=True)  # the 8 rows of an image are its tokens
rows = torch.tensor(images / 8 - 1).float().view(-1, 8, 8).to(accelerator.device)
labels = torch.tensor(labels).to(accelerator.device)
first = look(model, body.layers, rows[:256], labels[:256])
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
model, optimizer = accelerator.prepare(model, optimizer)
torch.manual_seed(accelerator.process_index)  # from here on dropout is to differ,
order = torch.Generator().manual_seed(0)  # but not the order of the rows
for _ in range(EPOCHS):
    for batch in torch.randperm(TRAIN_ROWS, generator=order).split(BATCH):
        share = batch[accelerator.process_index :: accelerator.num_processes]
        accelerator.backward(F.cross_entropy(model(rows[share]), labels[share]))
        optimizer.step()
        optimizer.zero_grad()
with torch.no_grad():
    right = model.eval()(rows[TRAIN_ROWS:]).argmax(1) == labels[TRAIN_ROWS:]
accelerator.print(f"first loss {first:.4f}, test accuracy {right.float().mean():.4f}")
accelerator.end_training()
