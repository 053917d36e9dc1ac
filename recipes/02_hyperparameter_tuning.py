"""Tune AdamW with Optuna; train the best anew on fresh seeds; test winner and START once.

One worker: python THIS. Four GPUs, a worker each: torchrun --nproc_per_node 4 THIS.
All share the study in FILE. Killed? Start it again as before. Delete FILE to begin anew.
"""

import os
from statistics import mean, stdev

import optuna  # python -m pip install optuna
import torch
import torch.nn.functional as F
from optuna.storages import journal
from optuna.trial import TrialState as State
from sklearn.datasets import load_digits
from torch import nn

WORKER = int(os.environ.get("RANK", 0))  # from torchrun, or set by hand
GPU = int(os.environ.get("LOCAL_RANK", 0))
DEVICE = torch.device("cuda", GPU) if torch.cuda.is_available() else torch.device("cpu")

# CHANGE from here: the budget, and your start, ranges, data, model and error
FILE = "02_tuning.journal"
TRIALS, RANDOM = 20, 10  # of all workers together; TPE learns from the first RANDOM
EPOCHS, FIRST_LOOK = 9, 1  # of a full trial; and before one may be stopped
FINALISTS, FINAL_SEEDS = 2, range(100, 105)  # seeds that took no part in the search
START = {"rate": 1e-3, "decay": 0.01, "1 - beta1": 0.1}  # names as in settings_of
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16).float().view(-1, 1, 8, 8).to(DEVICE)
labels = torch.tensor(labels).to(DEVICE)
mixed = torch.randperm(1792, generator=torch.Generator().manual_seed(0))  # of all writers
TRAIN, VALIDATION, TEST = mixed[:896], mixed[896:1344], mixed[1344:]


def settings_of(trial):
    trial.suggest_float("rate", 1e-4, 1, log=True)
    trial.suggest_float("decay", 1e-4, 1, log=True)
    trial.suggest_float("1 - beta1", 0.01, 1, log=True)
    return trial.params


def train(settings, seed, trial=None):
    torch.manual_seed(seed)
    first, second = nn.Conv2d(1, 16, 3, 2, padding=1), nn.Conv2d(16, 32, 3, 2, padding=1)
    layers = [first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)]
    model = nn.Sequential(*layers).to(DEVICE)
    rate, betas = settings["rate"], (1 - settings["1 - beta1"], 0.999)
    weights = model.parameters()
    optimizer = torch.optim.AdamW(weights, rate, betas, weight_decay=settings["decay"])
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for rows in TRAIN[torch.randperm(len(TRAIN))].split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
        if trial is not None:
            trial.report(error_of(model, VALIDATION), epoch)
            if epoch < EPOCHS and trial.should_prune():
                raise optuna.TrialPruned
    return model


@torch.no_grad()
def error_of(model, rows):  # at most 1, also where the loss is nan
    model.eval()
    return (model(images[rows]).argmax(1) != labels[rows]).float().mean().item()


# CHANGE up to here
def objective(trial):
    return error_of(train(settings_of(trial), 0, trial), VALIDATION)


def trained_anew(settings):
    return [train(settings, seed) for seed in FINAL_SEEDS]


def accuracy(models, rows):  # mean and standard deviation
    scores = [1 - error_of(model, rows) for model in models]
    return mean(scores), stdev(scores)


settings_of(optuna.trial.FixedTrial(START))  # stops here if START lacks a name
backend = journal.JournalFileBackend(FILE, journal.JournalFileOpenLock(FILE))
study = optuna.create_study(
    study_name="tuning",
    storage=journal.JournalStorage(backend),
    load_if_exists=True,
    pruner=optuna.pruners.SuccessiveHalvingPruner(FIRST_LOOK, 3),  # a third goes on
)
seed = 1000 * len(study.trials) + WORKER  # a new start must not draw the same again
study.sampler = optuna.samplers.TPESampler(
    n_startup_trials=RANDOM, constant_liar=True, seed=seed
)
if WORKER == 0:
    study.enqueue_trial(START, skip_if_exists=True)
if "result" not in study.user_attrs:  # else the test rows have been looked at
    ended = State.COMPLETE, State.PRUNED, State.FAIL
    enough = optuna.study.MaxTrialsCallback(TRIALS, ended)
    study.optimize(objective, callbacks=[enough], catch=torch.OutOfMemoryError)
if WORKER == 0 and "result" not in study.user_attrs:
    full = study.get_trials(states=[State.COMPLETE])
    full.sort(key=lambda trial: trial.value)
    finalists = [(trained_anew(trial.params), trial.params) for trial in full[:FINALISTS]]
    models, best = max(finalists, key=lambda pair: accuracy(pair[0], VALIDATION))
    scores = [accuracy(group, TEST) for group in (trained_anew(START), models)]
    study.set_user_attr("result", [best, *scores])
if WORKER == 0:
    best, start, tuned = study.user_attrs["result"]
    print("winner:", ", ".join(f"{name} {value:.4g}" for name, value in best.items()))
    print(f"standard deviation over seeds: start {start[1]:.4f}, tuned {tuned[1]:.4f}")
    print(f"start test accuracy {start[0]:.4f}, tuned test accuracy {tuned[0]:.4f}")
