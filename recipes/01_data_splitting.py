"""Data splitting with Accelerate: folds of whole writers choose, other writers test once.

Choose, train the final model, save it: python FILE. When nothing will be chosen any more, look
at the test writers, once: python FILE --test. Four GPUs: accelerate launch --num_processes 4
FILE. Two processes on a CPU: ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone
--nproc_per_node 2 FILE."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from scipy.stats import t as student
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

TEST, FOLDS = 4, 5  # writers that test; folds of the others, 2 or more; of many test 20 %
BATCH, RATE, EPOCHS = 64, 0.2, 16  # BATCH: rows an update, on all processes together
SPLIT_FILE, MODEL_FILE = Path("split.json"), Path("model.pt")
# the last row of each writer's sheet; with your data comes a list of names instead
ENDS = [129, 255, 385, 515, 645, 775, 914, 1028, 1156, 1286, 1414, 1544, 1666, 1796]


def network():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def rows_of(names):
    return np.flatnonzero(np.isin(writers, names))


def loader_of(rows, scale, size, **settings):  # of files: Subset(dataset, rows)
    inputs = (images[rows] - scale["mean"]) / scale["std"]
    loader = DataLoader(TensorDataset(inputs, labels[rows]), size, **settings)
    return accelerator.prepare(loader)


def which_are_right(model, rows, scale):  # 1 or 0 for each row, from all processes
    model.eval()  # dropout off, batch normalization by its running statistics
    with torch.no_grad():
        loader = loader_of(rows, scale, 256)
        hit = [accelerator.gather_for_metrics(model(x).argmax(1) == y) for x, y in loader]
    return torch.cat(hit).double().cpu().numpy()


def train(rows, epochs):
    """Yield the model and its scale after each epoch."""
    scale = {"mean": images[rows].mean(), "std": images[rows].std()}  # of no other rows
    order, share = torch.Generator().manual_seed(0), BATCH // accelerator.num_processes
    loader = loader_of(rows, scale, share, shuffle=True, generator=order, drop_last=True)
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    model, optimizer = accelerator.prepare(model, optimizer)
    for _ in range(epochs):
        model.train()
        for inputs, targets in loader:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.cross_entropy(model(inputs), targets))
            optimizer.step()
        yield model, scale
    accelerator.free_memory()  # else it keeps the models of all folds


def report(part, right, rows, overlap):
    values = [right[writers[rows] == name].mean() for name in np.unique(writers[rows])]
    k, mean = len(values), np.mean(values)  # groups are counted, not rows
    error = np.std(values, ddof=1) * (1 / k + overlap) ** 0.5
    reach = student.ppf(0.975, k - 1) * error
    ends = f"from {mean - reach:.4f}, up to {min(1, mean + reach):.4f}"
    accelerator.print(f"{part} accuracy {mean:.4f}, {ends}")


accelerator = Accelerator()  # a download goes under its local_main_process_first()
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images, sheets = images.float(), np.searchsorted(ENDS, np.arange(len(labels)))
writers = np.array([f"w{sheet:02d}" for sheet in sheets])  # a name for each row
names = np.unique(writers).tolist()  # names last, row numbers change with each sorting
if accelerator.is_main_process and not SPLIT_FILE.exists():  # one process of all machines
    order = random.Random(0).sample(names, len(names))
    folds = [order[TEST + k :: FOLDS] for k in range(FOLDS)]
    split = {"rows": len(writers), "test": order[:TEST], "folds": folds}
    SPLIT_FILE.write_text(json.dumps(split))
split = [json.loads(SPLIT_FILE.read_text()) if accelerator.is_main_process else None]
split = broadcast_object_list(split)[0]  # from the main process to all others
stored = set(sum(split["folds"], split["test"]))
if split["rows"] > len(writers) or not stored <= set(names):
    found = f"{split['rows']} rows of {len(stored)} groups"
    raise SystemExit(f"{SPLIT_FILE} is of other data, {found}: delete it and train anew")
for name in sorted(set(names) - stored):  # of data that grew: the test stays as it was
    min(split["folds"], key=len).append(name)
if accelerator.is_main_process:
    SPLIT_FILE.write_text(json.dumps(split | {"rows": len(writers)}))

if "--test" in sys.argv:  # the saved model, and writers that nothing has seen
    saved, test = torch.load(MODEL_FILE, map_location="cpu"), rows_of(split["test"])
    model = network()
    model.load_state_dict(saved["model"])
    right = which_are_right(model.to(accelerator.device), test, saved)
    report("test", right, test, overlap=0)  # one training: none overlap
else:
    known_names = sum(split["folds"], [])
    known = rows_of(known_names)
    right = np.zeros((EPOCHS, len(writers)))
    for held in map(rows_of, split["folds"]):
        for epoch, now in enumerate(train(np.setdiff1d(known, held), EPOCHS)):
            right[epoch, held] = which_are_right(now[0], held, now[1])
    right = right[:, known]
    best = right.mean(axis=1).argmax()  # one choice, by all folds together
    *_, (model, scale) = train(known, best + 1)  # the final one: all rows but the test's
    weights = accelerator.unwrap_model(model).state_dict()
    accelerator.save({"model": weights, **scale}, MODEL_FILE)
    accelerator.print(
        f"{MODEL_FILE}: {best + 1} epochs of at most {EPOCHS}, chosen by this:"
    )
    overlap = FOLDS / (FOLDS - 1) / len(known_names)
    report("validation", right[best], known, overlap)
accelerator.end_training()
