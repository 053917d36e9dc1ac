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
TOKENS, POSITIONS = ("tokens", "wte"), ("positions", "wpe")  # ... embeddings of each
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention)


@torch.no_grad()
def start(model, ends=2 * BLOCKS):  # fills in place: an optimizer keeps its weights
    found = sum(name.endswith(ENDS) for name, _ in model.named_modules())
    if found != ends:
        raise SystemExit(f"{found} ends of branches by the names {ENDS}, not {ends}")
    summed = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    for name, module in model.named_modules():
        own = {**dict(module.named_parameters(recurse=False)), **module._buffers}
        for kind, weight in own.items():
            if isinstance(module, LINEAR):
                square = 2 if name.endswith(READS_RELU) else 1
                square /= ends if name.endswith(ENDS) else 1
                fan_in = weight[0].numel()  # a row makes one output
                weight.normal_(0, 0 if "bias" in kind else (square / fan_in) ** 0.5)
            elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                weight.fill_(kind == "weight")  # scales 1, shifts 0
            elif isinstance(module, nn.Embedding) and name.endswith(TOKENS + POSITIONS):
                if id(weight) not in summed:  # if shared, the last layer's rule holds
                    weight.normal_(0, 0.02 if name.endswith(POSITIONS) else 1)
                if module.padding_idx is not None:
                    weight[module.padding_idx] = 0
            else:
                raise SystemExit(f"start has no rule for {name} {kind}")


@torch.no_grad()
def look(model, blocks, loss_of, classes):  # loss_of() runs the model on one batch
    seen, add = [], lambda *run: seen.append(run)
    hooks = [block.register_forward_hook(add, with_kwargs=True) for block in blocks]
    loss, at_most = loss_of(), math.log(classes) + 1.5
    for hook in hooks:
        hook.remove()
    into, added = [], []
    for _, args, named, out in seen:  # the stream comes first, going in and coming out
        x, y = (*args, *named.values())[0], out[0] if isinstance(out, tuple) else out
        into.append(x.std())
        added.append((y - x).std(0).mean() / x.std(0).mean())
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
images, labels = load_digits(return_X_y=True)  # the 8 rows of an image are its tokens
rows = torch.tensor(images / 8 - 1).float().view(-1, 8, 8).to(accelerator.device)
labels = torch.tensor(labels).to(accelerator.device)


def build():  # shapes only: no memory, and no numbers drawn
    how = {"dropout": 0.0, "batch_first": True, "norm_first": True}
    with torch.device("meta"):
        block = nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, **how)
        body = nn.TransformerEncoder(block, BLOCKS, nn.LayerNorm(WIDTH), False)
        ends = nn.Flatten(), nn.Linear(8 * WIDTH, 10)
        model = nn.Sequential(nn.Linear(8, WIDTH), body, *ends)
    return model.to_empty(device=accelerator.device)


def loss_of(model, chosen):  # a language model: flatten batch and tokens into one
    return F.cross_entropy(model(rows[chosen]), labels[chosen])


def train(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    model, optimizer = accelerator.prepare(model, optimizer)
    torch.manual_seed(accelerator.process_index)  # from here on dropout is to differ,
    order = torch.Generator().manual_seed(0)  # but not the order of the rows
    for _ in range(EPOCHS):
        for batch in torch.randperm(TRAIN_ROWS, generator=order).split(BATCH):
            share = batch[accelerator.process_index :: accelerator.num_processes]
            accelerator.backward(loss_of(model, share))
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        right = model.eval()(rows[TRAIN_ROWS:]).argmax(1) == labels[TRAIN_ROWS:]
    return right.float().mean().item()


torch.manual_seed(0)  # the same in every process
model = build()
start(model)  # before prepare, and not after it
first = look(model, model[1].layers, lambda: loss_of(model, slice(256)), classes=10)
right = train(model)
accelerator.print(f"first loss {first:.4f}, test accuracy {right:.4f}")
accelerator.end_training()
