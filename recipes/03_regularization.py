"""AdamW, dropout, averaged weights and early stopping with Accelerate, on poor labels.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import copy

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset, random_split

BATCH = 32  # rows an update, on all processes together: RATE is tuned for this number
RATE, DECAY = 0.01, 1.0  # a weight forgets its past in 1 / (RATE * DECAY) updates
DROPOUT, EMA = 0.5, 0.98  # the average looks back over 1 / (1 - EMA) updates
EPOCHS, PATIENCE = 30, 4  # stop after so many epochs without a higher accuracy
TRAIN, VALIDATION, TEST = 480, 320, 997  # rows

accelerator = Accelerator()
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16).float(), torch.tensor(labels)
parts = random_split(TensorDataset(images, labels), [TRAIN, VALIDATION, TEST])
noisy = parts[0].indices[::3]  # a third of the training labels becomes noise;
labels[noisy] = torch.randint(10, (len(noisy),))  # leave these two lines out
order = torch.Generator().manual_seed(0)
train = DataLoader(parts[0], BATCH // accelerator.num_processes, True, generator=order)
loaders = accelerator.prepare(train, *[DataLoader(part, 256) for part in parts[1:]])
hidden = [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(DROPOUT)]
bare = nn.Sequential(*hidden, nn.Linear(64, 10))
matrices = [weight for weight in bare.parameters() if weight.ndim > 1]
others = [weight for weight in bare.parameters() if weight.ndim <= 1]  # biases, norms
groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=RATE, weight_decay=DECAY)
model, optimizer = accelerator.prepare(bare, optimizer)
average = AveragedModel(bare, multi_avg_fn=get_ema_multi_avg_fn(EMA), use_buffers=True)
torch.manual_seed(accelerator.process_index)  # so that each process drops other units
best, best_epoch = 0.0, 0


def evaluate(loader):  # the averaged network, on the rows of all processes
    average.eval()
    with torch.no_grad():
        pairs = [accelerator.gather_for_metrics((average(x), y)) for x, y in loader]
    scores, targets = (torch.cat(column) for column in zip(*pairs, strict=True))
    return F.cross_entropy(scores, targets), (scores.argmax(1) == targets).float().mean()


for epoch in range(EPOCHS):
    model.train()
    for inputs, targets in loaders[0]:
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(model(inputs), targets))
        optimizer.step()
        average.update_parameters(bare)  # once an update, after the step
    _, found = evaluate(loaders[1])  # validation accuracy, the same on all processes
    if found > best:  # the best checkpoint; accelerator.save(kept, FILE) would store it
        best, best_epoch, kept = found, epoch, copy.deepcopy(average.state_dict())
    if accelerator.is_main_process and epoch - best_epoch >= PATIENCE:
        accelerator.set_trigger()  # one process judges,
    if accelerator.check_trigger():  # and all leave the loop together
        break
average.load_state_dict(kept)
loss, accuracy = evaluate(loaders[2])
accelerator.print(f"test accuracy {accuracy:.4f}, test loss {loss:.4f}")
accelerator.end_training()
