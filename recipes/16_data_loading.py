"""Data loading with Accelerate: workers that stay, and draws that no worker can repeat.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

BATCH = 64  # rows an update of all processes together: a multiple of their number
WORKERS = 2  # for each process. These digits need none: they stand for files to decode
SEED, RATE, MOMENTUM, EPOCHS, TRAIN_ROWS = 0, 0.05, 0.9, 30, 1472


class ShiftedDigits(Dataset):
    """Digits moved by up to one pixel, drawn from seed, epoch and index alone."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels  # (n, 8, 8) and (n,)
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # workers see it

    def __getitem__(self, index):
        draws = np.random.default_rng([SEED, int(self.epoch), index])  # its own
        down, right = divmod(int(draws.integers(9)), 3)  # each 0, 1 or 2
        framed = F.pad(self.images[index], (1, 1, 1, 1))  # zeros move in at the edge
        return framed[down : down + 8, right : right + 8], self.labels[index]

    def __len__(self):
        return len(self.labels)


def main():
    order = {"use_seedable_sampler": True, "data_seed": SEED}  # of SEED and epoch alone
    loading = DataLoaderConfiguration(split_batches=True, non_blocking=True, **order)
    accelerator = Accelerator(dataloader_config=loading)
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
    images, labels = (images[rows] / 16).float().view(-1, 8, 8), labels[rows]
    data = ShiftedDigits(images[:TRAIN_ROWS], labels[:TRAIN_ROWS])
    held_out = TensorDataset(images[TRAIN_ROWS:], labels[TRAIN_ROWS:])
    ahead = {"num_workers": WORKERS, "persistent_workers": WORKERS > 0}
    ahead["pin_memory"] = torch.cuda.is_available()
    train = DataLoader(data, BATCH, shuffle=True, drop_last=True, **ahead)
    test = DataLoader(held_out, BATCH, **ahead)
    model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)
    for epoch in range(EPOCHS):
        data.epoch.fill_(epoch)  # before the loop asks the workers for the first batch
        for inputs, targets in train:
            accelerator.backward(F.cross_entropy(model(inputs), targets))
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():  # gather_for_metrics drops the rows that filled the last batch
        pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in test]
    outputs, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    accuracy = (outputs.argmax(1) == labels).float().mean()
    loss = F.cross_entropy(outputs, labels)
    accelerator.print(f"test accuracy {accuracy:.4f}, test loss {loss:.4f}")
    accelerator.end_training()


if __name__ == "__main__":  # a worker that is spawned imports this file
    main()
