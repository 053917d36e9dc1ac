"""Tune AdamW with Optuna; compare the winner with the start, once, on fresh rows and seeds.

Run it again to go on after a stop; delete STUDY and RESULT to begin anew. Several workers:
start it several times, with WORKER=0, 1, ... in the environment; they share both files.
One process: python FILE. Four GPUs on each trial: accelerate launch --num_processes 4 FILE.
CPU: ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 FILE.
"""

import os
from datetime import datetime, timedelta
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list as on_all  # what the main process has
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

try:
    import optuna
    from optuna.storages import journal
    from optuna.trial import TrialState as State
except ImportError:
    raise SystemExit("Optuna is missing: python -m pip install optuna") from None

STUDY, RESULT = "02_tuning.journal", Path("02_tuning.result")
WORKER = int(os.environ.get("WORKER", 0))  # the seed of its search
TRIALS = 16  # of all workers and all starts together
EPOCHS = 9  # of a trial in full
FIRST_LOOK = 3  # epochs before a trial may be stopped; EPOCHS: none is stopped
LONGEST = timedelta(hours=1)  # a trial that has run for longer was killed
BATCH = 64  # rows of an update, on all processes together
FINAL_SEEDS = range(100, 105)  # none of them took part in the choice

# CHANGE from here: what you would set by hand, the ranges, your data and model
START = {"rate": 1e-3, "decay": 0.01, "1 - beta1": 0.1}  # torch's defaults; trial 0
images, labels = load_digits(return_X_y=True)
mixed = torch.randperm(1792, generator=torch.Generator().manual_seed(0))  # of all writers
images, labels = torch.tensor(images / 16).float(), torch.tensor(labels)
data = TensorDataset(images[mixed], labels[mixed])
TRAIN, VALIDATION, TEST = range(896), range(896, 1344), range(1344, 1792)


def settings_of(trial):
    rate = trial.suggest_float("rate", 1e-5, 1, log=True)
    decay = trial.suggest_float("decay", 1e-4, 1, log=True)
    return rate, decay, trial.suggest_float("1 - beta1", 0.01, 1, log=True)


def new_model(rate, decay, memory):
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    betas = (1 - memory, 0.999)
    return model, torch.optim.AdamW(model.parameters(), rate, betas, weight_decay=decay)


# CHANGE up to here
def train(settings, seed):  # yields the model after each epoch, as long as it is asked
    accelerator.free_memory()  # of the last trial
    torch.manual_seed(seed)
    model, optimizer = new_model(*settings)
    share, order = BATCH // accelerator.num_processes, torch.Generator().manual_seed(seed)
    rows = DataLoader(Subset(data, TRAIN), share, shuffle=True, generator=order)
    model, optimizer, rows = accelerator.prepare(model, optimizer, rows)
    for _ in range(EPOCHS):
        for inputs, targets in rows:
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(model(inputs), targets))
            optimizer.step()
        yield model


def accuracy(model, part):
    rows = accelerator.prepare(DataLoader(Subset(data, part), 128))
    model.eval()
    with torch.no_grad():
        right = [accelerator.gather_for_metrics(model(x).argmax(1) == y) for x, y in rows]
    model.train()
    return torch.cat(right).float().mean().item()


def count(*states, before=None):
    return sum(trial.state in states for trial in study.trials[:before])


def next_trial():  # None where all are taken
    for old in study.trials:
        if old.state == State.RUNNING and datetime.now() - old.datetime_start > LONGEST:
            study.tell(old.number, state=State.FAIL)  # another takes its place
    if count(State.RUNNING, *ENDED) < TRIALS:
        trial = study.ask()
        if count(State.RUNNING, *ENDED, before=trial.number) < TRIALS:
            return trial
        study.tell(trial, state=State.FAIL)  # another worker took the last one


def final():  # start and winner, if all trials have ended and nobody has looked before
    if count(*ENDED) >= TRIALS and not RESULT.exists():
        RESULT.touch(exist_ok=False)  # of two workers one stops here
        begin = optuna.trial.FixedTrial(START)
        return [settings_of(begin), settings_of(study.best_trial)]


ENDED = (State.COMPLETE, State.PRUNED)
accelerator = Accelerator()
main = accelerator.is_main_process  # it alone has the study, the others only train
if main:
    backend = journal.JournalFileBackend(STUDY, journal.JournalFileOpenLock(STUDY))
    storage = journal.JournalStorage(backend)
    study = optuna.create_study(study_name="digits", storage=storage, load_if_exists=True)
    study.sampler = optuna.samplers.QMCSampler(scramble=True, seed=WORKER)
    study.pruner = optuna.pruners.SuccessiveHalvingPruner(
        FIRST_LOOK, 3
    )  # a third goes on
    if WORKER == 0:
        study.enqueue_trial(START, skip_if_exists=True)
while True:
    trial = next_trial() if main else None
    [settings] = on_all([settings_of(trial) if trial else None])
    if settings is None:
        break
    for epoch, model in enumerate(train(settings, seed=0), 1):
        error = 1 - accuracy(model, VALIDATION)  # at most 1, also where the loss is nan
        if main:
            trial.report(error, epoch)
        [stop] = on_all([main and epoch < EPOCHS and trial.should_prune()])
        if stop:
            break
    if main:
        study.tell(trial, None if stop else error, State.PRUNED if stop else None)

[pair] = on_all([final() if main else None])
means = []
for settings in pair or []:
    scores = [accuracy([*train(settings, seed)][-1], TEST) for seed in FINAL_SEEDS]
    means.append(sum(scores) / len(scores))
if main and pair:
    line = "start test accuracy {:.4f}, tuned test accuracy {:.4f}".format(*means)
    RESULT.write_text(f"best of {TRIALS}: {study.best_params}\n{line}\n")
if main:
    found = RESULT.exists() and RESULT.read_text()
    print(found or "No result yet: other workers are still training.")
accelerator.end_training()
