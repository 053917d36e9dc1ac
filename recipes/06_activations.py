"""An activation, a start that fits it, a look inside, and dead units over all processes.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

ACTIVATION = nn.ReLU  # in your model a module, too: a hook does not see F.relu
UNITS = 1  # the dimension of units or channels; -1 for (rows, tokens, units)
RATE, BATCH, EPOCHS = 0.1, 32, 5  # BATCH: rows an update, on all processes together
z = torch.special.ndtri((torch.arange(100_000) + 0.5) / 100_000)  # a standard normal
GAIN = ACTIVATION()(z).square().mean().item() ** -0.5  # 1.414 for ReLU
calls, awake = [], {}  # of one forward pass; of each call, the units above 0 on some row


def start(model, gain=1.0):  # a new, plain stack: no norms, residual paths or attention
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            fan_in = layer.weight[0].numel()  # Conv2d: channels in x height x width
            nn.init.normal_(layer.weight, std=gain / fan_in**0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            gain = GAIN  # the first layer's inputs have a mean square near 1


def loss_of(logits, targets):  # (rows, classes), or (rows, tokens, classes)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def look_inside(model, inputs, targets):  # before training, and before prepare
    seen = []
    layers = [layer for layer in model.modules() if isinstance(layer, ACTIVATION)]
    hooks = [m.register_forward_hook(lambda *run: seen.append(run[2])) for m in layers]
    loss = loss_of(model(inputs), targets)
    for hook in hooks:
        hook.remove()
    assert seen, "no ACTIVATION module ran: put an nn.ReLU() in place of F.relu"
    grads = torch.autograd.grad(loss, seen)
    signal = seen[-1].std(0).mean() / seen[-1].square().mean().sqrt()  # of the last
    ratio = grads[0].norm() / grads[-1].norm()
    return f"loss {loss:.2f}, signal {signal:.2f}, gradient first / last {ratio:.2f}"


def note_awake(layer, inputs, outputs):
    if not layer.training:
        units = (outputs > 0).movedim(UNITS, 0).flatten(1).any(dim=1)
        calls.append(layer)  # one module may serve in several places
        awake[len(calls)] = awake.get(len(calls), False) | units


@torch.no_grad()
def report(name, loader):  # accuracy, and units of each layer above 0 on no row
    model.eval()
    awake.clear()
    hits = [accelerator.gather_for_metrics(model(x).argmax(-1) == y) for x, y in loader]
    right = torch.cat(hits).float().mean()
    seen = [accelerator.reduce(mask.float(), reduction="sum") for mask in awake.values()]
    dead = [int((count == 0).sum()) for count in seen]  # awake on no process
    count = f"dead units {sum(dead)} {dead}" if dead else "no module to watch"
    accelerator.print(f"{name} accuracy {right:.4f}, {count}")


accelerator = Accelerator()
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 8 - 1).float().view(-1, 1, 8, 8)
parts = random_split(TensorDataset(images, torch.tensor(labels)), [1217, 280, 300])
assert BATCH % accelerator.num_processes == 0, "BATCH: a multiple of the processes"
rows, order = BATCH // accelerator.num_processes, torch.Generator().manual_seed(0)
train = DataLoader(parts[0], rows, shuffle=True, generator=order, drop_last=True)
hidden = [nn.Conv2d(1, 16, 3), ACTIVATION(), nn.Flatten(), nn.Linear(576, 64)]
model = nn.Sequential(*hidden, ACTIVATION(), nn.Linear(64, 10))  # no softmax: logits
start(model)
accelerator.print("start:", look_inside(model, *parts[0][:256]))
model.register_forward_pre_hook(lambda *run: calls.clear())
for layer in model.modules():
    if isinstance(layer, (nn.ReLU, nn.GELU, nn.SiLU)):  # the last two: asleep, not dead
        layer.register_forward_hook(note_awake)
optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
loaders = [train, DataLoader(parts[1], 100), DataLoader(parts[2], 100)]
model, optimizer, *loaders = accelerator.prepare(model, optimizer, *loaders)
for epoch in range(1, EPOCHS + 1):
    model.train()
    for inputs, targets in loaders[0]:
        accelerator.backward(loss_of(model(inputs), targets))
        optimizer.step()
        optimizer.zero_grad()
    report(f"epoch {epoch}: validation", loaders[1])
report("test", loaders[2])
accelerator.end_training()
