"""Data splitting with Accelerate: whole writers are held out, and the split is kept.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE."""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

HELD = 3  # writers for validation, and as many for the test: whole writers, not rows
SPLIT_FILE = Path("split.json")  # row numbers: keep them with the results, reuse them
BATCH, RATE, EPOCHS = 64, 0.1, 12  # BATCH: rows an update, on all processes together
# the last row of each writer in scikit-learn's digits; your groups come with your data
ENDS = [129, 255, 385, 515, 645, 775, 914, 1028, 1156, 1286, 1414, 1544, 1666, 1796]


def draw_split(groups):
    """Return the row numbers of three parts; no group is in two of them."""
    names = groups.unique()
    names = names[torch.randperm(len(names), generator=torch.Generator().manual_seed(0))]
    parts = {"train": names[2 * HELD :], "validation": names[HELD : 2 * HELD]}
    parts["test"] = names[:HELD]
    return {k: torch.isin(groups, v).nonzero()[:, 0].tolist() for k, v in parts.items()}


def accuracy(model, loader):
    model.eval()  # dropout off, batch normalization by its running statistics
    with torch.no_grad():
        hit = [accelerator.gather_for_metrics(model(x).argmax(1) == y) for x, y in loader]
    return torch.cat(hit).float().mean().item()


accelerator = Accelerator()  # a download goes under its local_main_process_first()
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
writers = torch.bucketize(torch.arange(len(labels)), torch.tensor(ENDS))
if accelerator.is_main_process and not SPLIT_FILE.exists():  # one of all machines
    SPLIT_FILE.write_text(json.dumps(draw_split(writers)))
split = [json.loads(SPLIT_FILE.read_text()) if accelerator.is_main_process else None]
split = broadcast_object_list(split)[0]  # from the main process to all others
seen = images[split["train"]]  # the scale is learned from these rows, and from no others
rows = TensorDataset(((images - seen.mean()) / seen.std()).float(), labels)
train, validation, test = (Subset(rows, part) for part in split.values())
share = BATCH // accelerator.num_processes
order = torch.Generator().manual_seed(0)  # for files give each loader num_workers=4
train = DataLoader(train, share, shuffle=True, generator=order, drop_last=True)
validation, test = DataLoader(validation, 256), DataLoader(test, 256)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
prepared = accelerator.prepare(model, optimizer, train, validation, test)
model, optimizer, train, validation, test = prepared
best = -1.0
for _ in range(EPOCHS):
    model.train()
    for inputs, targets in train:
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(model(inputs), targets))
        optimizer.step()
    if (score := accuracy(model, validation)) > best:  # validation chooses the epoch
        best, weights = score, {k: v.clone() for k, v in model.state_dict().items()}
model.load_state_dict(weights)
result = accuracy(model, test)  # the test set reports, once
accelerator.print(f"validation accuracy {best:.4f}, test accuracy {result:.4f}")
accelerator.end_training()
