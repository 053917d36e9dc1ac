"""AdamW, dropout, averaged weights and early stopping with Accelerate, for few labels.

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
RATE, DECAY = 0.01, 0.3  # a weight forgets its past in 1 / (RATE * DECAY) updates
DROPOUT = 0.3
AVERAGE = 0.9  # the average looks back over 1 / (1 - AVERAGE) updates
EPOCHS, PATIENCE = 30, 4  # stop after so many epochs without a lower validation loss
TRAIN, VALIDATION = 320, 480  # few labels to train on; the other 997 rows are the test

accelerator = Accelerator()
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
rows = TensorDataset(torch.tensor(images / 16).float(), torch.tensor(labels))
parts = random_split(rows, [TRAIN, VALIDATION, len(rows) - TRAIN - VALIDATION])
order = torch.Generator().manual_seed(0)
train = DataLoader(parts[0], BATCH // accelerator.num_processes, True, generator=order)
validation, test = DataLoader(parts[1], 256), DataLoader(parts[2], 256)
hidden = [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(DROPOUT)]
bare = nn.Sequential(*hidden, nn.Linear(64, 10))
matrices = [weight for weight in bare.parameters() if weight.ndim > 1]
others = [weight for weight in bare.parameters() if weight.ndim <= 1]  # biases, norms
groups = [{"params": matrices, "weight_decay": DECAY}]
groups += [{"params": others, "weight_decay": 0.0}]  # AdamW's default would be 0.01
optimizer = torch.optim.AdamW(groups, lr=RATE)
model, optimizer = accelerator.prepare(bare, optimizer)
train, validation, test = accelerator.prepare(train, validation, test)
take_up = get_ema_multi_avg_fn(AVERAGE)
average = AveragedModel(bare, multi_avg_fn=take_up, use_buffers=True)  # batch norm's, too
torch.manual_seed(accelerator.process_index)  # so that each process drops other units


def evaluate(net, loader):  # (loss, accuracy) over the rows of all processes
    net.eval()
    with torch.no_grad():
        pairs = [accelerator.gather_for_metrics((net(x), y)) for x, y in loader]
    outputs, targets = (torch.cat(column) for column in zip(*pairs, strict=True))
    accuracy = (outputs.argmax(1) == targets).float().mean()
    return F.cross_entropy(outputs, targets).item(), accuracy.item()


best, best_epoch = float("inf"), 0
for epoch in range(EPOCHS):
    model.train()
    for inputs, targets in train:
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(model(inputs), targets))
        optimizer.step()
        average.update_parameters(bare)  # once an update, after the step
    loss, _ = evaluate(average, validation)
    if loss < best:  # the best checkpoint; accelerator.save(kept, FILE) would store it
        best, best_epoch, kept = loss, epoch, copy.deepcopy(average.state_dict())
    if accelerator.is_main_process and epoch - best_epoch >= PATIENCE:
        accelerator.set_trigger()  # one process judges,
    if accelerator.check_trigger():  # and all leave the loop together
        break

average.load_state_dict(kept)
loss, accuracy = evaluate(average, test)
accelerator.print(f"test accuracy {accuracy:.4f}, test loss {loss:.4f}")
accelerator.end_training()
