"""Model compression with Accelerate: round, train on where that lost, save, load, run packed.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. CPU, two:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import copy
import os

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, TensorDataset

BATCH, RATE, EPOCHS = 64, 0.03, 20  # BATCH: rows an update, on all processes together
BITS = 4  # 8, 4 or 2: what the device has room for
ALLOWED = 0.0  # accuracy that rounding may lose on validation rows; more: train on
LATER_RATE, LATER_EPOCHS = 0.01, 5  # of training on with the rounding in the loop
ROWS = 8  # outputs of a layer that are unpacked at a time: fewer is smaller and slower
PARTS = (
    1216,
    256,
    325,
)  # train (whole batches: a short one is filled up), validation, test
SEEDS, FILE = (0, 1, 2), "packed.safetensors"  # printed accuracies are means over SEEDS


def rounded(weight, bits):  # (outputs, inputs): a scale a row, and whole numbers
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / top
    return scale, (weight / scale).round()


class Packed(nn.Module):  # a layer whose weight stays in few bits, also while it runs
    def __init__(self, layer, bits):
        super().__init__()
        self.bits, self.shape, self.place = bits, layer.weight.shape, None  # None: linear
        if isinstance(layer, nn.Conv2d):
            assert layer.padding_mode == "zeros", "pad before the layer: zeros only here"
            self.place = layer.stride, layer.padding, layer.dilation, layer.groups
        # a filter is a row; scales in float32, whatever the weight is in
        scale, whole = rounded(layer.weight.detach().float().flatten(1), bits)
        whole = F.pad(whole + 2 ** (bits - 1), (0, -whole.shape[1] % (8 // bits)))
        apart = whole.unflatten(1, (-1, 8 // bits)).to(torch.uint8)  # those of one byte
        shifted = apart << torch.arange(
            0, 8, bits, dtype=torch.uint8, device=apart.device
        )
        self.register_buffer("packed", shifted.sum(dim=2, dtype=torch.uint8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def weight(self, rows, dtype):  # of these outputs only
        shifts = torch.arange(
            0, 8, self.bits, dtype=torch.uint8, device=self.packed.device
        )
        apart = (self.packed[rows].unsqueeze(2) >> shifts) & (2**self.bits - 1)
        whole = apart.flatten(1)[:, : self.shape[1:].numel()]
        weight = (whole.float() - 2 ** (self.bits - 1)) * self.scale[rows]
        return weight.unflatten(1, self.shape[1:]).to(dtype)

    def forward(self, x):
        grouped = self.place is not None and self.place[-1] > 1  # all its filters at once
        step = self.shape[0] if grouped else ROWS
        outputs = []
        for start in range(0, self.shape[0], step):
            rows = slice(start, start + step)
            bias = None if self.bias is None else self.bias[rows].to(x.dtype)
            weight = self.weight(rows, x.dtype)
            if self.place is None:
                outputs.append(F.linear(x, weight, bias))
            else:
                outputs.append(F.conv2d(x, weight, bias, *self.place))
        return torch.cat(outputs, dim=-1 if self.place is None else -3)


def layers(model):
    pairs = list(model.named_modules())
    return [(n, m) for n, m in pairs if isinstance(m, (nn.Linear, nn.Conv2d))]


def pack(model, bits):  # a copy; the file is its state_dict
    model = copy.deepcopy(model)
    for name, layer in layers(model):
        model.set_submodule(name, Packed(layer, bits))
    return model.eval()


def load_packed(new_model, bits, file, device):  # the floats are never in memory
    with torch.device("meta"):  # shapes without numbers
        model = pack(new_model(), bits)
    model.load_state_dict(load_file(file), assign=True)
    return model.to(device)


class Rounding(nn.Module):  # forward rounded, backward as if not: straight-through
    def forward(self, weight):
        scale, whole = rounded(weight.float().flatten(1), BITS)
        return weight + ((scale * whole).view_as(weight) - weight).detach()


def new_model():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def train(accelerator, model, rows, rate, epochs, seed):
    # rows: images with labels; or without, with the answers (probabilities) of a teacher
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    own = BATCH // accelerator.num_processes  # rows an update in each process
    order = torch.Generator().manual_seed(seed)
    batches = DataLoader(rows, own, shuffle=True, generator=order)
    wrapped, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    wrapped.train()
    for _ in range(epochs):
        for inputs, wanted in batches:
            loss = F.cross_entropy(wrapped(inputs).float(), wanted)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
    return accelerator.unwrap_model(wrapped).eval()


@torch.no_grad()
def accuracy(accelerator, model, rows, dtype=torch.float32):
    pairs = []
    for inputs, wanted in accelerator.prepare(DataLoader(rows, 64)):
        answers = model(inputs.to(dtype)).argmax(dim=1)
        pairs.append(accelerator.gather_for_metrics((answers, wanted)))
    return torch.cat([found == wanted for found, wanted in pairs]).float().mean().item()


def main():
    accelerator = Accelerator()
    assert BATCH % accelerator.num_processes == 0, f"processes must divide {BATCH} rows"
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16).float().view(-1, 1, 8, 8)
    parts = zip(images.split(PARTS), torch.tensor(labels).split(PARTS), strict=True)
    rows, validation, test = [TensorDataset(*part) for part in parts]
    results = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = train(accelerator, new_model(), rows, RATE, EPOCHS, seed)
        half = copy.deepcopy(model).bfloat16()
        packed = pack(model, BITS)
        found = [accuracy(accelerator, model, test)]
        found += [accuracy(accelerator, half, test, torch.bfloat16)]
        found += [accuracy(accelerator, some, test) for some in (pack(model, 8), packed)]
        before, after = [accuracy(accelerator, m, validation) for m in (model, packed)]
        if before - after > ALLOWED:  # leave this block out if you cannot train
            for _, layer in layers(model):
                parametrize.register_parametrization(layer, "weight", Rounding())
            model = train(accelerator, model, rows, LATER_RATE, LATER_EPOCHS, seed)
            for _, layer in layers(model):
                parametrize.remove_parametrizations(layer, "weight")
            packed = pack(model, BITS)
        if accelerator.is_main_process:
            save_file(packed.state_dict(), FILE)
        accelerator.wait_for_everyone()
        loaded = load_packed(new_model, BITS, FILE, accelerator.device)
        found += [accuracy(accelerator, loaded, test)]
        accelerator.wait_for_everyone()  # before the next seed writes FILE
        results.append(found)
    names = ("float", "bfloat16", "int8", "packed", "trained on")
    means = torch.tensor(results).mean(dim=0).tolist()
    line = ", ".join(
        f"{name} {mean:.4f}" for name, mean in zip(names, means, strict=True)
    )
    accelerator.print(f"{line}, bytes {os.path.getsize(FILE)}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
