"""Data loading with Accelerate: workers that stay, and draws that no worker can repeat.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import random

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

BATCH = 128  # rows an update: split_batches gives each process an equal part of them
WORKERS = 2  # for each process: raise it until the model no longer waits
SEED, RATE, MOMENTUM, EPOCHS, TRAIN_ROWS = 0, 0.1, 0.9, 10, 1472


class ShiftedDigits(Dataset):
    """Digits moved by up to one pixel, drawn from seed, epoch and index alone."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels  # (n, 8, 8) and (n,)
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # workers see it

    def __getitem__(self, index):
        draws = random.Random(f"{SEED} {int(self.epoch)} {index}")  # of this sample alone
        shift = draws.randint(-1, 1), draws.randint(-1, 1)
        return self.images[index].roll(shift, (0, 1)), self.labels[index]

    def __len__(self):
        return len(self.labels)


def main():
    loading = DataLoaderConfiguration(
        split_batches=True, use_seedable_sampler=True, data_seed=SEED, non_blocking=True
    )  # the order depends on SEED and the epoch alone
    accelerator = Accelerator(dataloader_config=loading)
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    images = images.view(-1, 8, 8).float() / 16
    data = ShiftedDigits(images[:TRAIN_ROWS], labels[:TRAIN_ROWS])
    gpu = torch.cuda.is_available()
    ahead = {"num_workers": WORKERS, "persistent_workers": True, "pin_memory": gpu}
    train = DataLoader(data, BATCH, shuffle=True, drop_last=True, **ahead)
    test = DataLoader(TensorDataset(images[TRAIN_ROWS:], labels[TRAIN_ROWS:]), 64)
    model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)
    for epoch in range(EPOCHS):
        data.epoch.fill_(epoch)  # before the loop asks the workers for the first batch
        for inputs, targets in train:
            accelerator.backward(F.cross_entropy(model(inputs), targets))
            optimizer.step()
            optimizer.zero_grad()

    with torch.no_grad():  # gather_for_metrics drops the rows that filled the last batch
        pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in test]
    outputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    accuracy = (outputs.argmax(1) == targets).float().mean()
    test_loss = F.cross_entropy(outputs, targets)
    accelerator.print(f"test accuracy {accuracy:.4f}, test loss {test_loss:.4f}")
    accelerator.end_training()


if __name__ == "__main__":  # a worker that is spawned imports this file
    main()
