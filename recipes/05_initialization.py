"""Starting weights by fan-in and gain: drawn once before `prepare`, looked at, trained.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import math

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn

GAIN = 2**0.5  # of layers that read a ReLU; tanh 1.593, GELU 1.534
RATE, BATCH, UPDATES, TRAIN = 0.01, 32, 100, 1472


@torch.no_grad()
def start(model):  # the rule, for plain networks: no shortcuts past the layers
    gain = 1.0  # of the first layer, which reads no activation
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            fan_in = layer.weight[0].numel()  # a convolution's kernel included
            layer.weight.normal_(0, gain / fan_in**0.5)
            if layer.bias is not None:
                layer.bias.zero_()
            gain = GAIN  # of all others


def look(model, layers, inputs, targets):  # layers: the hidden ones, or residual blocks
    seen = []
    hooks = [m.register_forward_hook(lambda *run: seen.append(run[2])) for m in layers]
    scores = model(inputs).flatten(0, -2)  # of images, or of all tokens of a text
    for hook in hooks:
        hook.remove()
    loss, chance = F.cross_entropy(scores, targets.flatten()), math.log(len(scores[0]))
    gradients = [g.square().mean().sqrt() for g in torch.autograd.grad(loss, seen)]
    signals = [outputs.detach().std(0).mean() for outputs in seen]  # over the examples
    warnings = [] if loss < chance + 1.5 else [f"first loss {loss:.1f}, not {chance:.1f}"]
    for name, sizes in (("signal", signals), ("gradient", gradients)):
        if not max(sizes) <= 10 * min(sizes):
            warnings += [f"{name}: first {sizes[0]:.1g}, last {sizes[-1]:.1g}"]
    return loss.item(), warnings


def train(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    model, optimizer = accelerator.prepare(model, optimizer)
    sums = torch.stack([weight.detach().sum() for weight in model.parameters()])
    if not (accelerator.gather(sums[None]) == sums).all():  # in DDP all hold the same
        accelerator.print("warning: the processes hold different weights")
    order = torch.Generator().manual_seed(0)
    for batch in torch.randint(TRAIN, (UPDATES, BATCH), generator=order):
        share = batch[accelerator.process_index :: accelerator.num_processes]
        accelerator.backward(F.cross_entropy(model(images[share]), labels[share]))
        optimizer.step()
        optimizer.zero_grad()
    return (model(images[TRAIN:]).argmax(1) == labels[TRAIN:]).float().mean().item()


def network(depth=8):
    hidden = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 1):
        hidden += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Flatten(), nn.Linear(512, 10))


accelerator = Accelerator()
images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = (images / 8 - 1).float().view(-1, 1, 8, 8).to(accelerator.device)
labels = labels.to(accelerator.device)
torch.manual_seed(0)  # the same in every process
model = network().to(accelerator.device)
start(model)  # once, and before prepare
model[-1].weight.data.mul_(0.1)  # a small last layer: the first loss is near guessing
first, warnings = look(model, model[:-2:2], images[:256], labels[:256])
accelerator.print("\n".join(warnings) or "no warning")
accelerator.print(f"first loss {first:.4f}, test accuracy {train(model):.4f}")
accelerator.end_training()
