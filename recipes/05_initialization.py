"""Starting weights of a language model with Accelerate: drawn by rule, looked at, trained.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn

WIDTH, BLOCKS, RATE, BATCH, UPDATES, TRAIN_ROWS = 64, 2, 0.01, 16, 40, 1472
ENDS = ("out_proj", "linear2")  # names end so: last layers of the two branches of a block
READS_RELU = ("linear2",)  # ... layers that read a ReLU
TOKENS, POSITIONS = ("tokens", "wte"), ("positions", "wpe")  # ... embeddings of each
TIED = 0.02  # standard deviation of token weights that the last layer shares
SUMS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention)


@torch.no_grad()
def start(model, ends=2 * BLOCKS):  # fills in place: an optimizer keeps its weights
    found = sum(name.endswith(ENDS) for name, _ in model.named_modules())
    if found != ends:
        raise SystemExit(f"{found} ends of branches by the names {ENDS}, not {ends}")
    looked_up = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    summed = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    tied = {id(weight) for weight in looked_up} & {id(weight) for weight in summed}
    for name, module in model.named_modules():
        own = {**dict(module.named_parameters(recurse=False)), **module._buffers}
        for kind, weight in own.items():
            if id(weight) in tied:
                if isinstance(module, nn.Embedding):  # once, and not in the last layer
                    weight.normal_(0, TIED)
            elif isinstance(module, SUMS):
                variance = 1 / weight[0].numel()  # a row makes one output: its fan-in
                if name.endswith(READS_RELU):
                    variance *= 2
                if name.endswith(ENDS):
                    variance /= ends
                weight.normal_(0, 0 if "bias" in kind else variance**0.5)
            elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                weight.fill_(kind == "weight")  # scales 1, shifts 0
            elif isinstance(module, nn.Embedding) and name.endswith(TOKENS + POSITIONS):
                weight.normal_(0, 0.02 if name.endswith(POSITIONS) else 1)
            else:
                raise SystemExit(f"start has no rule for {name} {kind}")
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx] = 0


def look(model, blocks, loss_of, classes, gather=lambda sums: sums):
    outputs = []

    def keep(block, inputs, output):  # a row for each example, first of a tuple
        outputs.append(output[0] if isinstance(output, tuple) else output)
        outputs[-1].retain_grad()

    hooks = [block.register_forward_hook(keep) for block in blocks]
    loss = loss_of()  # runs the model on one batch
    loss.backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    first, last = outputs[0], outputs[-1]
    signal = last.std(0).mean() / first.std(0).mean()  # std over the examples
    back = first.grad.std() / last.grad.std()  # 0 / 0 with a last layer at zero: passes
    at_most = math.log(classes) + 1.5
    said = f"first loss {loss:.2f} (at most {at_most:.2f}), signal at the last over "
    said += f"first block {signal:.2g}, gradient at the first over last {back:.2g}"
    sums = torch.stack([weight.detach().sum() for weight in model.parameters()])
    equal = bool((gather(sums[None]) == sums).all())
    said += f" (at least 0.1), {equal=} in all processes"
    if not (loss < at_most and signal > 0.1 and not back < 0.1 and equal):
        raise SystemExit(f"a bad start: {said}")
    return loss.item(), said


class Language(nn.Module):  # guesses each next token; here tokens are gray values
    def __init__(self):
        super().__init__()
        how = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        block = partial(nn.TransformerEncoderLayer, WIDTH, 4, 4 * WIDTH, **how)
        self.wte, self.wpe = nn.Embedding(17, WIDTH), nn.Embedding(31, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 17, bias=False)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe.weight
        mask = torch.ones(31, 31, device=x.device).triu(1).bool()  # True: not to be seen
        for block in self.blocks:
            x = block(x, src_mask=mask)
        return self.head(self.norm(x))


accelerator = Accelerator()
pixels = torch.tensor(load_digits().data[:, 16:48]).long()  # 4 rows of 8, from 0 to 16
pixels = pixels.to(accelerator.device)


def build():
    with torch.device("meta"):  # shapes only: no memory, and no numbers drawn
        model = Language()
    model = model.to_empty(device=accelerator.device)
    model.head.weight = model.wte.weight  # tied here: to_empty unties
    return model


def loss_of(model, chosen):
    guesses = model(pixels[chosen, :-1]).flatten(0, 1)
    return F.cross_entropy(guesses, pixels[chosen, 1:].flatten())


def train(model, rate=RATE):
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model, optimizer = accelerator.prepare(model, optimizer)
    torch.manual_seed(accelerator.process_index)  # from here on dropout is to differ,
    order = torch.Generator().manual_seed(0)  # but not the order of the rows
    batches = torch.randperm(TRAIN_ROWS, generator=order).split(BATCH)
    for batch in batches[:UPDATES]:
        share = batch[accelerator.process_index :: accelerator.num_processes]
        accelerator.backward(loss_of(model, share))
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return loss_of(model.eval(), slice(TRAIN_ROWS, None)).item()


torch.manual_seed(0)  # the same in every process
model = build()
start(model)  # before prepare, and not after it
batch_loss = partial(loss_of, model, slice(64))
first, said = look(model, model.blocks, batch_loss, 17, accelerator.gather)
accelerator.print(said)
test = train(model)
accelerator.print(f"first loss {first:.4f}, test loss {test:.4f}")
accelerator.end_training()
