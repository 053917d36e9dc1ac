"""Data splitting with Accelerate: folds of whole writers, each of them tested once.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE."""

import json
import random
import statistics
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

FOLDS = 5  # one fold tests, the next one validates, the others train
SPLIT_FILE = Path("split.json")  # names, not row numbers: keep it with the results
BATCH, RATE, EPOCHS = 64, 0.1, 12  # BATCH: rows an update, on all processes together
STUDENT = 2.16  # Student's t for 95 % intervals over 14 groups; 2.78 for 5, 2.0 for 60
# the last row of each block of the digits; with your data comes a list of names instead
ENDS = [129, 255, 385, 515, 645, 775, 914, 1028, 1156, 1286, 1414, 1544, 1666, 1796]


def draw_split(groups):
    names = sorted(set(groups))
    random.Random(0).shuffle(names)
    return {"rows": len(groups), "folds": [names[k::FOLDS] for k in range(FOLDS)]}


def check_split(split, groups):
    stored = sorted(sum(split["folds"], []))
    if (split["rows"], stored) != (len(groups), sorted(set(groups))):
        raise SystemExit(
            f"{SPLIT_FILE} is of other data: {split['rows']} rows of {len(stored)} "
            f"groups; these are {len(groups)} of {len(set(groups))}, or other names. "
            "Use the data that it was drawn from, or delete it and report a new test"
        )


def which_are_right(model, loader):
    """Return whether each row is right, in the order of the rows, from all processes."""
    model.eval()  # dropout off, batch normalization by its running statistics
    with torch.no_grad():
        hit = [accelerator.gather_for_metrics(model(x).argmax(1) == y) for x, y in loader]
    return torch.cat(hit).float().cpu()


def rows_of(names):
    return [row for row, name in enumerate(writers) if name in names]


def train_and_test(train, validation, test):
    """Return which test rows are right, the best epoch and its validation accuracy."""
    seen = images[train]  # the scale is learned from these rows, and from no others
    data = TensorDataset((images - seen.mean()) / seen.std(), labels)
    share = BATCH // accelerator.num_processes
    order = torch.Generator().manual_seed(0)  # for files give each loader num_workers=4
    shuffled = {"shuffle": True, "generator": order, "drop_last": True}
    train = DataLoader(Subset(data, train), share, **shuffled)
    validation = DataLoader(Subset(data, validation), 256)
    test = DataLoader(Subset(data, test), 256)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    prepared = accelerator.prepare(model, optimizer, train, validation, test)
    model, optimizer, train, validation, test = prepared
    best = -1.0
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for inputs, targets in train:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(model(inputs), targets))
            optimizer.step()
        score = which_are_right(model, validation).mean().item()
        if score > best:  # validation chooses the epoch
            best, chosen = score, epoch
            weights = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(weights)
    return which_are_right(model, test), chosen, best  # the test rows report, once


accelerator = Accelerator()  # a download goes under its local_main_process_first()
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float()
blocks = torch.bucketize(torch.arange(len(labels)), torch.tensor(ENDS))
writers = [f"w{block:02d}" for block in blocks.tolist()]  # a name for each row
if accelerator.is_main_process and not SPLIT_FILE.exists():  # one of all machines
    SPLIT_FILE.write_text(json.dumps(draw_split(writers)))
split = [json.loads(SPLIT_FILE.read_text()) if accelerator.is_main_process else None]
split = broadcast_object_list(split)[0]  # from the main process to all others
check_split(split, writers)

of_writer, epochs, validated = {}, [], []
for k in range(FOLDS):
    tested, judging = split["folds"][k], split["folds"][(k + 1) % FOLDS]
    others = set(writers) - {*tested, *judging}
    right, chosen, best = train_and_test(
        train=rows_of(others), validation=rows_of(judging), test=rows_of(tested)
    )
    for name in tested:
        own = [writers[row] == name for row in rows_of(tested)]
        of_writer[name] = right[torch.tensor(own)].mean().item()
    epochs.append(chosen)
    validated.append(best)

n, trained_on = len(of_writer), len(of_writer) * (FOLDS - 2) / FOLDS
mean, spread = statistics.mean(of_writer.values()), statistics.stdev(of_writer.values())
reach = STUDENT * spread * (1 / n + 1 / trained_on) ** 0.5  # the trainings share writers
accelerator.print(f"to ship: all rows, {statistics.median(epochs):.0f} epochs")
accelerator.print(
    f"validation accuracy {statistics.mean(validated):.4f}, test accuracy {mean:.4f}, "
    f"from {mean - reach:.4f}, up to {mean + reach:.4f}"
)
accelerator.end_training()
