"""Data augmentation with torchvision v2: crops in the data set, MixUp in the collate function.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
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

TRAIN_ROWS = 200  # few labels: where augmentation pays most
BATCH = 40  # rows an update, on all processes together
RATE, EPOCHS = 0.005, 40
AREA = (0.7, 1.0)  # share of the image that a crop keeps; for photographs (0.08, 1)
ALPHA = 0.2  # of MixUp: most blends are nearly one image

to_floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.3], [0.37])]
crop = v2.RandomResizedCrop(8, scale=AREA, ratio=(0.8, 1.25))  # on 8 bits: cheaper
augment, evaluate = v2.Compose([crop, *to_floats]), v2.Compose(to_floats)
mix = v2.MixUp(alpha=ALPHA, num_classes=10)


class Images(TensorDataset):
    transform = evaluate  # each image goes through it by itself, anew on each access

    def __getitem__(self, row):
        image, label = super().__getitem__(row)
        return self.transform(image), label


def collate(rows):
    return mix(*default_collate(rows))  # labels become shares of the classes


accelerator = Accelerator()
set_seed(0, device_specific=True)  # each process draws crops and blends of its own
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images * 255 / 16).to(torch.uint8).view(-1, 1, 8, 8)
labels = torch.tensor(labels)
train = Images(images[:TRAIN_ROWS], labels[:TRAIN_ROWS])  # split, then augment
train.transform = augment
test = Images(images[TRAIN_ROWS:], labels[TRAIN_ROWS:])
rows, order = BATCH // accelerator.num_processes, torch.Generator().manual_seed(0)
train = DataLoader(train, rows, shuffle=True, generator=order, collate_fn=collate)
test = DataLoader(test, 256)
layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
layers += [nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()]
model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)

for _ in range(EPOCHS):
    for inputs, targets in train:
        accelerator.backward(F.cross_entropy(model(inputs), targets))
        optimizer.step()
        optimizer.zero_grad()

model.eval()
with torch.no_grad():
    pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in test]
outputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
right = (outputs.argmax(1) == targets).float().mean()
loss = F.cross_entropy(outputs, targets)
accelerator.print(f"test accuracy {right:.4f}, test loss {loss:.4f}")
accelerator.end_training()
