"""A start that fits, a look layer by layer, and dead units, counted over all processes.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

# --- copy from here ---
LOOKED_AT = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid)  # add classes of your own
COUNTED = LOOKED_AT[:3]  # those with units that may be dead, or asleep: never above 0
UNITS = 1  # the dimension of units or channels; -1 for (rows, tokens, units)
calls, awake = [], {}  # of one forward pass; of each call, the units above 0 on some row


def start(model, activation):  # a NEW PLAIN stack: no norm, no shortcut; before prepare
    gain, z = 1.0, torch.special.ndtri(torch.arange(1, 100_000) / 100_000)  # z: normal
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            nn.init.normal_(layer.weight, std=gain / layer.weight[0].numel() ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            gain = activation(z).square().mean().item() ** -0.5  # of all but the first


def look_inside(model, inputs, targets):  # before training, and before prepare
    seen, names = [], {layer: name for name, layer in model.named_modules()}
    watched = [layer for layer in names if isinstance(layer, LOOKED_AT)]
    hooks = [m.register_forward_hook(lambda *run: seen.append(run)) for m in watched]
    logits = model(inputs).flatten(0, -2)  # (rows, classes), of tokens, too
    for hook in hooks:
        hook.remove()
    assert seen, "no module of LOOKED_AT ran: put an nn.ReLU() in place of F.relu"
    loss, guessing = (F.cross_entropy(x, targets.flatten()) for x in (logits, 0 * logits))
    lines = [f"loss {loss:.2f} (guessing: {guessing:.2f}); gradients over the last one's"]
    grads = torch.autograd.grad(loss, [outputs for _, _, outputs in seen])
    for (m, _, outputs), grad in zip(seen, grads, strict=True):
        part = outputs.std(0).mean() / outputs.square().mean().sqrt()
        ratio, zero = grad.norm() / grads[-1].norm(), (outputs == 0).float().mean()
        lines += [f"{names[m]}: signal {part:.1g}, gradient {ratio:.2g}, at 0 {zero:.2f}"]
    return "\n".join(lines)


def watch(model):  # once, before prepare
    def note_awake(layer, inputs, outputs):
        if not layer.training:
            units = (outputs > 0).movedim(UNITS, 0).flatten(1).any(dim=1)
            calls.append(layer)  # one module may serve in several places
            awake[len(calls)] = awake.get(len(calls), False) | units

    model.register_forward_pre_hook(lambda *run: calls.clear())
    for layer in model.modules():
        if isinstance(layer, COUNTED):
            layer.register_forward_hook(note_awake)


@torch.no_grad()
def report(accelerator, model, loader):  # accuracy; units of each layer above 0 nowhere
    training, join = model.training, accelerator.gather_for_metrics
    model.eval()
    awake.clear()  # below, a label of -100 gives 0/0: NaN, which does not count
    hits = [join((model(x).argmax(-1) == y) / (y != -100)).flatten() for x, y in loader]
    model.train(training)
    dead = [int((accelerator.reduce(m.float()) == 0).sum()) for m in awake.values()]
    count = f"dead units {sum(dead)} {dead}" if dead else "no module to watch"
    return f"accuracy {torch.cat(hits).nanmean():.4f}, {count}"


# --- to here ---
RATE, ROWS, EPOCHS = 0.1, 32, 5  # ROWS: of an update, on all processes together
accelerator = Accelerator()
torch.manual_seed(0)
images, labels = map(torch.tensor, load_digits(return_X_y=True))
digits = TensorDataset((images / 8 - 1).float().view(-1, 1, 8, 8), labels)
parts = random_split(digits, [1497, 300])
assert ROWS % accelerator.num_processes == 0, "ROWS: a multiple of the processes"
rows, order = ROWS // accelerator.num_processes, torch.Generator().manual_seed(0)
train = DataLoader(parts[0], rows, shuffle=True, generator=order, drop_last=True)
hidden = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 64), nn.ReLU()]
model = nn.Sequential(*hidden, nn.Linear(64, 10))  # no softmax: logits
accelerator.print("as built:", look_inside(model, *parts[0][:256]))
start(model, torch.relu)  # delete this line for a model with norms, or a trained one
accelerator.print("started:", look_inside(model, *parts[0][:256]))
watch(model)
optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
test = DataLoader(parts[1], 100)
model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)
for epoch in range(1, EPOCHS + 1):
    for inputs, targets in train:
        accelerator.backward(F.cross_entropy(model(inputs), targets))
        optimizer.step()
        optimizer.zero_grad()
    accelerator.print(f"epoch {epoch}: training", report(accelerator, model, train))
accelerator.print("test", report(accelerator, model, test))
accelerator.end_training()
