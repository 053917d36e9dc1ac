"""Range test, warm-up, then a line to zero; the scheduler steps once an update.

One process: python FILE. Four GPUs: accelerate launch --num_processes 4 FILE. Two on a CPU:
ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import copy

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BATCH = 32  # rows an update, on all processes together
RATE = None  # the highest rate of the run; None: find it with a range test
RATES = torch.logspace(-4, 1, 100).tolist()  # of the range test
MOMENTUM, EPOCHS, TRAIN_ROWS = 0.9, 5, 1472


def update(inputs, targets):  # one update; returns the mean loss of all processes
    loss = nn.functional.cross_entropy(model(inputs), targets)
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return accelerator.reduce(loss.detach(), "mean")  # a tensor: nothing waits for it


def range_test():  # train while the rate grows, put all back, return a share of a rate
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    smoothed, mean = {}, 0.0
    for rate, batch in zip(RATES, (b for _ in RATES for b in train), strict=False):
        for group, old in zip(optimizer.param_groups, state["param_groups"], strict=True):
            group["lr"] = old["lr"] * rate  # old: its share; the largest is 1
        mean = 0.9 * mean + 0.1 * update(*batch).item()
        smoothed[rate] = mean / (1 - 0.9 ** (len(smoothed) + 1))  # it began at 0
        if not smoothed[rate] < 3 * min(smoothed.values()):  # lost, or NaN
            break
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    best = min(smoothed, key=smoothed.get)  # NaN is never less
    assert RATES[9] < best < RATES[-1], "lowest at an end: widen RATES, or set RATE"
    return best / (3 if isinstance(optimizer.optimizer, torch.optim.SGD) else 10)


accelerator = Accelerator()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=MOMENTUM)
largest = max(group["lr"] for group in optimizer.param_groups)
for group in optimizer.param_groups:  # the schedule sets the rate, a group its share
    group["lr"] /= largest
images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images / 16).float(), torch.tensor(labels))
train, held = data[:TRAIN_ROWS], DataLoader(TensorDataset(*data[TRAIN_ROWS:]), 64)
rows, order = BATCH // accelerator.num_processes, torch.Generator().manual_seed(0)
assert rows * accelerator.num_processes == BATCH, "the processes must divide BATCH"
train = DataLoader(TensorDataset(*train), rows, True, generator=order, drop_last=True)
model, optimizer, train, held = accelerator.prepare(model, optimizer, train, held)
assert accelerator.gradient_accumulation_steps == 1, "count updates: see recipe 11"
total = EPOCHS * len(train)  # updates: the length of the loader *after* prepare
warmup = max(1, min(20, total // 10))
highest = RATE or min(range_test(), range_test())  # two often differ twofold or more
scheduler = torch.optim.lr_scheduler.LambdaLR(  # up in `warmup` updates, then a line to 0
    optimizer.optimizer,  # and 0 from `total` on, should you train longer
    lambda t: highest * max(0, min((t + 1) / warmup, (total - t) / (total - warmup + 1))),
)  # not prepared: then it would step once for each process
accelerator.register_for_checkpointing(scheduler)  # so that save_state keeps its count
for epoch in range(1, EPOCHS + 1):
    for inputs, targets in train:
        loss, rate = update(inputs, targets), scheduler.get_last_lr()[0]
        if not accelerator.optimizer_step_was_skipped:  # float16 leaves some out
            scheduler.step()
    accelerator.print(f"epoch {epoch}: last loss {loss:.4f} at the rate {rate:.4f}")
model.eval()
with torch.no_grad():
    right = [accelerator.gather_for_metrics(model(x).argmax(1) == y) for x, y in held]
accuracy = torch.cat(right).float().mean()  # test rows: others, once (chapter 1)
accelerator.print(f"highest rate {highest:.4f}, validation accuracy {accuracy:.4f}")
accelerator.end_training()
