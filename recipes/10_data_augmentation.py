"""Data augmentation with torchvision v2: affine maps in the data set, MixUp in collate.

One GPU: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.transforms import v2

AUGMENTS, MIXES = True, False  # keep what gains on the validation images
TEST = False  # True once, at the end, when all else is decided
BATCH, RATE, EPOCHS = 20, 0.005, 20  # BATCH: rows an update, on all processes together
PARTS, WORKERS = (100, 400, 1297), 0  # train, validation, test; for photographs 4 to 8
maps = v2.RandomAffine(  # degrees, shift, scale, slant; fill=None: edges right
    15, (0.1, 0.1), (0.85, 1.15), 10, v2.InterpolationMode.BILINEAR, fill=None
)
to_floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.3], [0.37])]
augment, evaluate = v2.Compose([maps, *to_floats]), v2.Compose(to_floats)
mix = v2.MixUp(alpha=0.2, num_classes=10)  # one weight a batch, mostly near 0 or 1


class Images(TensorDataset):
    transform = evaluate  # each image goes through it by itself, anew on each access

    def __getitem__(self, row):
        image, label = super().__getitem__(row)
        return self.transform(image), label


def data_sets():  # train, validation, test; for photographs return three ImageFolders
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = (images * 255 / 16).to(torch.uint8).view(-1, 1, 8, 8)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = [Images(images[rows], labels[rows]) for rows in order.split(PARTS)]
    parts[0].transform = augment if AUGMENTS else evaluate  # the training images only
    return parts


def collate(rows):  # mixed labels become shares of the classes
    return mix(*default_collate(rows)) if MIXES else default_collate(rows)


@torch.no_grad()
def report(accelerator, model, name, loader):  # over the rows of all processes
    model.eval()
    pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in loader]
    outputs, targets = (torch.cat(part) for part in zip(*pairs, strict=True))
    right = (outputs.argmax(1) == targets).float().mean()
    loss = F.cross_entropy(outputs, targets)
    accelerator.print(f"{name} accuracy {right:.4f}, {name} loss {loss:.4f}")
    model.train()


def main():
    accelerator = Accelerator()
    set_seed(0, device_specific=True)  # each process draws maps and blends of its own
    share = BATCH // accelerator.num_processes  # rows an update of this process
    assert share * accelerator.num_processes == BATCH, "BATCH: a multiple of processes"
    parts = data_sets()
    train = DataLoader(parts[0], share, True, collate_fn=collate, num_workers=WORKERS)
    held_out = [DataLoader(part, 256, num_workers=WORKERS) for part in parts[1:]]
    layers = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    model, optimizer, train = accelerator.prepare(model, optimizer, train)
    validation, test = accelerator.prepare(*held_out)
    for epoch in range(1, EPOCHS + 1):
        for inputs, targets in train:
            loss = F.cross_entropy(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if epoch % 10 == 0 or epoch == EPOCHS:  # its loss still falls? train longer
            report(accelerator, model, "validation", validation)
    if TEST:
        report(accelerator, model, "test", test)
    accelerator.end_training()


if __name__ == "__main__":  # a worker that is spawned imports this file
    main()
