"""Data augmentation with torchvision v2: crops in the data set, MixUp in the collation.

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

CROPS, MIXES = True, False  # keep what gains on the validation images
TEST = False  # True once, at the end, when all else is decided
BATCH, RATE, EPOCHS = 40, 0.005, 30  # BATCH: rows an update, on all processes together
PARTS, WORKERS = (200, 400, 1197), 0  # train, validation, test; for photographs 4 to 8
crop = v2.RandomResizedCrop(8, scale=(0.7, 1), ratio=(0.8, 1.25))  # on bytes: faster
to_floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.3], [0.37])]
augment, evaluate = v2.Compose([crop, *to_floats]), v2.Compose(to_floats)
mix = v2.MixUp(alpha=0.2, num_classes=10)  # one weight a batch, mostly near 0 or 1


class Images(TensorDataset):
    transform = evaluate  # each image goes through it by itself, anew on each access

    def __getitem__(self, row):
        image, label = super().__getitem__(row)
        return self.transform(image), label


def collate(rows):  # mixed labels become shares of the classes
    return mix(*default_collate(rows)) if MIXES else default_collate(rows)


def main():
    accelerator = Accelerator()
    set_seed(0, device_specific=True)  # each process draws crops and blends of its own
    share = BATCH // accelerator.num_processes  # rows an update of this process
    assert share * accelerator.num_processes == BATCH, "BATCH: a multiple of processes"
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = (images * 255 / 16).to(torch.uint8).view(-1, 1, 8, 8)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = [Images(images[chosen], labels[chosen]) for chosen in order.split(PARTS)]
    parts[0].transform = augment if CROPS else evaluate  # of the training images only
    train = DataLoader(parts[0], share, True, collate_fn=collate, num_workers=WORKERS)
    loaders = [train, *(DataLoader(part, 256) for part in parts[1:])]
    layers = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    model, optimizer, *loaders = accelerator.prepare(model, optimizer, *loaders)
    for epoch in range(1, EPOCHS + 1):
        for inputs, targets in loaders[0]:
            loss = F.cross_entropy(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if epoch % 10 == 0:  # of the last batch; still falling at the end? train longer
            accelerator.print(f"epoch {epoch}: training loss {loss.item():.4f}")

    model.eval()
    for name, loader in [("validation", loaders[1]), ("test", loaders[2])][: 1 + TEST]:
        with torch.no_grad():
            pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in loader]
        outputs, targets = (torch.cat(part) for part in zip(*pairs, strict=True))
        right = (outputs.argmax(1) == targets).float().mean()
        loss = F.cross_entropy(outputs, targets)
        accelerator.print(f"{name} accuracy {right:.4f}, {name} loss {loss:.4f}")
    accelerator.end_training()


if __name__ == "__main__":  # a worker that is spawned imports this file
    main()
