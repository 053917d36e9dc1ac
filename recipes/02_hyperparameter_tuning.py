"""Tune three settings with Optuna, then train the winner again on fresh seeds.

The file STUDY keeps all trials: start again to go on; start twice, and two workers share them.
One process: python FILE. Four GPUs on each trial: accelerate launch --num_processes 4 FILE.
CPU: ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list as on_all  # what the main process has
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

try:
    import optuna
    from optuna.storages import journal
except ImportError:
    raise SystemExit("Optuna is missing: python -m pip install optuna") from None

STUDY = "02_tuning.journal"  # another file for other data or other ranges
TRIALS = 16  # of all workers and all starts together
EPOCHS = 9  # in full; halving stops most trials after 1 or 3
BATCH = 64  # rows of an update, on all processes together
FINAL_SEEDS = range(100, 105)  # none of them took part in the choice
images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images / 16).float(), torch.tensor(labels))


def train(settings, seed):  # yields the model after each epoch, as long as it is asked
    accelerator.free_memory()  # of the last trial
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), **settings)
    rows, share = TensorDataset(*data[:512]), BATCH // accelerator.num_processes
    order = torch.Generator().manual_seed(seed)
    rows = DataLoader(rows, share, shuffle=True, generator=order)
    model, optimizer, rows = accelerator.prepare(model, optimizer, rows)
    for _ in range(EPOCHS):
        for inputs, targets in rows:
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(model(inputs), targets))
            optimizer.step()
        yield model


def evaluate(model, start, stop):  # on these rows: loss and accuracy
    rows = accelerator.prepare(DataLoader(TensorDataset(*data[start:stop]), 128))
    model.eval()
    with torch.no_grad():
        pairs = [accelerator.gather_for_metrics((model(x), y)) for x, y in rows]
    model.train()
    outputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    right = outputs.argmax(1) == targets
    return F.cross_entropy(outputs, targets).item(), right.float().mean().item()


def settings_of(trial):
    rate = trial.suggest_float("rate", 1e-4, 10, log=True)
    decay = trial.suggest_float("decay", 1e-6, 1, log=True)
    momentum = 1 - trial.suggest_float("1 - momentum", 0.01, 1, log=True)
    return {"lr": rate, "weight_decay": decay, "momentum": momentum}


accelerator = Accelerator()
main = accelerator.is_main_process  # it alone has the study, the others only train
if main:
    backend = journal.JournalFileBackend(STUDY, journal.JournalFileOpenLock(STUDY))
    storage = journal.JournalStorage(backend)
    study = optuna.create_study(study_name="digits", storage=storage, load_if_exists=True)
    study.pruner = optuna.pruners.SuccessiveHalvingPruner(1, 3)
while True:
    settings = None
    if main and sum(trial.state.is_finished() for trial in study.trials) < TRIALS:
        study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
        trial = study.ask()
        settings = settings_of(trial)
    [settings] = on_all([settings])
    if settings is None:
        break
    for epoch, model in enumerate(train(settings, seed=0), 1):
        loss, _ = evaluate(model, 512, 1024)
        if main:
            trial.report(loss, epoch)
        [stop] = on_all([main and trial.should_prune()])  # also stops where loss is nan
        if stop:
            break
    if main and stop:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    elif main:
        study.tell(trial, loss)

[settings] = on_all([settings_of(study.best_trial) if main else None])
accuracies = []
for seed in FINAL_SEEDS:  # and fresh rows
    *_, model = train(settings, seed)
    accuracies.append(evaluate(model, 1024, 1792)[1])
mean, worst = sum(accuracies) / len(accuracies), min(accuracies)
accelerator.print("settings:", settings)
accelerator.print(f"mean test accuracy {mean:.4f}, worst test accuracy {worst:.4f}")
accelerator.end_training()
