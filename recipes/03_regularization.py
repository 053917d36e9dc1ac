"""Dropout, weight decay, averaged weights, early stopping: beside plain AdamW, three seeds.

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

ARMS = {  # rate, decay, dropout, and the share that the average keeps (0 is no average)
    "plain": (0.001, 0.0, 0.0, 0.0),  # the best of the rates 0.0005, 0.001, 0.002
    "methods": (0.008, 1.0, 0.3, 0.97),  # as in the chapter, not tuned for this data
}
SEEDS, BATCH = 3, 32  # rows an update, on all processes together
EPOCHS, PATIENCE = 20, 10  # stop after so many epochs without a higher accuracy
PARTS = [480, 320, 997]  # rows for training, validation and test

accelerator = Accelerator()
images, digits = load_digits(return_X_y=True)
images = torch.tensor(images / 16).float()


def evaluate(model, loader):  # accuracy on the rows of all processes
    model.eval()
    with torch.no_grad():
        pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in loader]
    return torch.cat([x.argmax(1) == y for x, y in pairs]).float().mean().item()


def train(seed, rate, decay, dropout, kept):
    torch.manual_seed(seed)
    labels = torch.tensor(digits)
    train_part, *held_out = random_split(TensorDataset(images, labels), PARTS)
    noisy = train_part.indices[::3]  # a third of the training labels becomes noise;
    labels[noisy] = torch.randint(10, (len(noisy),))  # leave these two lines out
    order = torch.Generator().manual_seed(seed)
    rows = BATCH // accelerator.num_processes  # a process
    loader = DataLoader(train_part, rows, shuffle=True, generator=order)
    loaders = accelerator.prepare(loader, *[DataLoader(part, 256) for part in held_out])
    hidden = [nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Dropout(dropout)]
    bare = nn.Sequential(*hidden, nn.Linear(64, 10))  # batch norm: see the chapter
    decays = [part.weight for part in bare.modules() if isinstance(part, nn.Linear)]
    spared = [w for w in bare.parameters() if all(w is not other for other in decays)]
    groups = [{"params": decays}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=decay)
    model, optimizer = accelerator.prepare(bare, optimizer)
    average = AveragedModel(bare, multi_avg_fn=get_ema_multi_avg_fn(kept))
    torch.manual_seed(1000 * seed + accelerator.process_index)  # each drops other units
    best, best_epoch = -1.0, 0
    for epoch in range(EPOCHS):
        model.train()
        for inputs, targets in loaders[0]:
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(model(inputs), targets))
            optimizer.step()
            average.update_parameters(bare)  # once an update, after the step
        found = evaluate(average, loaders[1])
        if found > best:  # accelerator.save(weights, FILE) would store it
            best, best_epoch = found, epoch
            weights = copy.deepcopy(average.state_dict())
        if accelerator.is_main_process and epoch - best_epoch >= PATIENCE:
            accelerator.set_trigger()  # one process judges,
        if accelerator.check_trigger():  # and all leave the loop together
            break
    average.load_state_dict(weights)
    accelerator.free_memory()
    return evaluate(average, loaders[2])


results = {name: [train(s, *arm) for s in range(SEEDS)] for name, arm in ARMS.items()}
means = [f"{name} {sum(found) / SEEDS:.4f}" for name, found in results.items()]
accelerator.print("test accuracy:", ", ".join(means))
accelerator.end_training()
