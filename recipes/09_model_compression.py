"""Distillation with Accelerate: a large teacher trains a small student.

The teacher saw all labels, the student 64 of them; a second student has no teacher.
One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. CPU, two:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BATCH = 64  # rows an update, on all processes together: RATE is tuned for this number
RATE, MOMENTUM, UPDATES = 0.1, 0.9, 230
TRAIN_ROWS = 1472  # whole batches: Accelerate fills a short one with repeated rows
LABELLED = 64  # so many of them have a label for the student
TEMPERATURE = 4.0  # 2 to 8: how soft the teacher's answers become
ALPHA = 0.9  # the teacher's share of the loss; the labels have the rest

accelerator = Accelerator()
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = (images / 16).float()
few_labels = labels.where(torch.arange(len(labels)) < LABELLED, -100)  # -100: none
test = DataLoader(TensorDataset(images[TRAIN_ROWS:], labels[TRAIN_ROWS:]), 64)
test = accelerator.prepare(test)


def train(width, loss_fn, labels, rows):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    data, order = TensorDataset(images[:rows], labels[:rows]), torch.Generator()
    own = BATCH // accelerator.num_processes  # rows an update in each process
    batches = DataLoader(data, own, shuffle=True, generator=order.manual_seed(0))
    wrapped, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    for _ in range(UPDATES // len(batches)):  # epochs
        for inputs, targets in batches:
            optimizer.zero_grad()
            accelerator.backward(loss_fn(wrapped(inputs), inputs, targets))
            optimizer.step()
    return accelerator.unwrap_model(wrapped).eval()


def from_labels(outputs, inputs, targets):  # a mean over all rows: so parts add up
    return F.cross_entropy(outputs, targets, reduction="none").mean()


def from_teacher(outputs, inputs, targets):
    with torch.no_grad():  # the teacher does not learn
        log_p = F.log_softmax(teacher(inputs).float() / TEMPERATURE, dim=1)
    log_q = F.log_softmax(outputs.float() / TEMPERATURE, dim=1)
    soft = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    hard = from_labels(outputs, inputs, targets)
    return ALPHA * TEMPERATURE**2 * soft + (1 - ALPHA) * hard


@torch.no_grad()
def accuracy(model):
    pairs = [accelerator.gather_for_metrics((model(x).argmax(1), y)) for x, y in test]
    return torch.cat([found == wanted for found, wanted in pairs]).float().mean()


teacher = train(128, from_labels, labels, TRAIN_ROWS)
taught = train(8, from_teacher, few_labels, TRAIN_ROWS)
untaught = train(8, from_labels, few_labels, LABELLED)
found = [accuracy(teacher), accuracy(taught), accuracy(untaught)]
accelerator.print("teacher {:.4f}, taught {:.4f}, untaught {:.4f}".format(*found))
accelerator.end_training()
