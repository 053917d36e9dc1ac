"""An activation, the start that fits it, and a count of dead units over all processes.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

ACTIVATION = nn.ReLU
GAIN = nn.init.calculate_gain("relu")  # not in its table: 1.53 for GELU, 1.68 for SiLU
RATE, BATCH, EPOCHS = 0.1, 32, 5  # BATCH: rows an update, on all processes together
PARTS = [1217, 280, 300]  # rows for training, validation and test
accelerator = Accelerator()
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 8 - 1).float().view(-1, 1, 8, 8)
parts = random_split(TensorDataset(images, torch.tensor(labels)), PARTS)
order = torch.Generator().manual_seed(0)
rows = BATCH // accelerator.num_processes
train = DataLoader(parts[0], rows, shuffle=True, generator=order, drop_last=True)
loaders = [train, DataLoader(parts[1], 100), DataLoader(parts[2], 100)]
hidden = [nn.Conv2d(1, 16, 3), ACTIVATION(), nn.Flatten(), nn.Linear(576, 64)]
model = nn.Sequential(*hidden, ACTIVATION(), nn.Linear(64, 10))  # no softmax: logits
awake = {}  # of each activation: which of its units were not 0 on some row


def note_awake(layer, inputs, outputs):
    if not layer.training:
        units = (outputs != 0).transpose(0, 1).flatten(1).any(dim=1)  # dim 1: the units
        awake[layer] = awake[layer] | units if layer in awake else units


gain = 1.0  # of the first layer, whose inputs have a mean square near 1
for layer in model.modules():
    if isinstance(layer, (nn.Conv2d, nn.Linear)):
        nn.init.normal_(layer.weight, std=gain / layer.weight[0].numel() ** 0.5)
        nn.init.zeros_(layer.bias)
        gain = GAIN  # of all others
    if isinstance(layer, ACTIVATION):
        layer.register_forward_hook(note_awake)
optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
model, optimizer, *loaders = accelerator.prepare(model, optimizer, *loaders)


@torch.no_grad()
def report(name, loader):  # the accuracy, and the dead units of each layer
    model.eval()
    awake.clear()
    pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in loader]
    right = torch.cat([outputs.argmax(1) == y for outputs, y in pairs]).float().mean()
    seen = [accelerator.reduce(mask.float(), reduction="sum") for mask in awake.values()]
    dead = [int((count == 0).sum()) for count in seen]  # awake on no process
    accelerator.print(f"{name} accuracy {right:.4f}, dead units {sum(dead)} {dead}")


for epoch in range(1, EPOCHS + 1):
    model.train()
    for inputs, targets in loaders[0]:
        accelerator.backward(F.cross_entropy(model(inputs), targets))
        optimizer.step()
        optimizer.zero_grad()
    report(f"epoch {epoch}: validation", loaders[1])

report("test", loaders[2])
accelerator.end_training()
