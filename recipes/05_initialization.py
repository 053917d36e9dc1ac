"""Starting weights of a transformer with Accelerate: drawn by rule, looked at, trained.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import math

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn

WIDTH, BLOCKS, RATE, BATCH, EPOCHS, TRAIN_ROWS = 32, 4, 0.001, 64, 4, 1472
ENDS = ("out_proj", "linear2")  # names end so: last layers of the two branches of a block
READS_RELU = ("linear2",)  # ... layers that read a ReLU


@torch.no_grad()
def start(model, ends=2 * BLOCKS):  # fills in place: an optimizer keeps its weights
    found = sum(name.endswith(ENDS) for name, _ in model.named_modules())
    if found != ends:
        raise SystemExit(f"{found} ends of branches by the names {ENDS}, not {ends}")
    for name, module in model.named_modules():
        own = {**dict(module.named_parameters(recurse=False)), **module._buffers}
        for kind, weight in own.items():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
                square = 2 if name.endswith(READS_RELU) else 1
                square /= ends if name.endswith(ENDS) else 1
                fan_in = weight[0].numel()  # a row makes one output
                weight.normal_(0, 0 if "bias" in kind else (square / fan_in) ** 0.5)
            elif isinstance(module, nn.LayerNorm):
                weight.fill_(kind == "weight")  # scales 1, shifts 0
            elif isinstance(module, nn.Embedding):
                weight.normal_(0, 1)  # looked up, not summed: no fan-in
            else:
                raise SystemExit(f"start has no rule for {name} {kind}")


@torch.no_grad()
def look(model, blocks, inputs, targets):  # one batch, before training
    seen, add = [], lambda *run: seen.append(run)
    hooks = [block.register_forward_hook(add, with_kwargs=True) for block in blocks]
    outputs = model(inputs)
    for hook in hooks:
        hook.remove()
    into, added = [], []
    for _, args, named, out in seen:  # the stream comes first, going in and coming out
        x, y = (*args, *named.values())[0], out[0] if isinstance(out, tuple) else out
        into.append(x.std())
        added.append((y - x).std(0).mean() / x.std(0).mean())
    loss, at_most = F.cross_entropy(outputs, targets), math.log(outputs.shape[-1]) + 1.5
    least, most, at_least = min(added), max(added), 0.2 / len(added) ** 0.5
    sums = torch.stack([weight.sum() for weight in model.parameters()])
    equal = bool((accelerator.gather(sums[None]) == sums).all())  # in all processes
    good = loss < at_most and 0.2 < into[0] < 5 and at_least < least and most < 2
    if not (good and equal):
        said = f"first loss {loss:.2f} (below {at_most:.2f}), {equal=}, into the blocks "
        said += f"{into[0]:.3f} (0.2 to 5), added {least:.2f} to {most:.2f} "
        raise SystemExit(f"a bad start: {said}({at_least:.2f} to 2)")
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
