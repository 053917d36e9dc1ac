"""Tune AdamW with Optuna; then compare winner and start, once, on fresh seeds and rows.

Each process is a worker with trials of its own; all share the study in FILE.
One worker: python THIS. Four GPUs: torchrun --nproc_per_node 4 THIS. By hand: WORKER=0
python THIS, WORKER=1 python THIS, ...: each its own number, one of them 0.
Killed? Start it again as before, and it goes on. Delete FILE to begin anew.
"""

import os
import time
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

try:
    import optuna
    from optuna.storages import journal
    from optuna.trial import TrialState as State
except ImportError:
    raise SystemExit("Optuna is missing: python -m pip install optuna") from None

WORKER = int(os.environ.get("RANK", os.environ.get("WORKER", 0)))  # RANK: from torchrun
GPU = int(os.environ.get("LOCAL_RANK", 0))
DEVICE = torch.device("cuda", GPU) if torch.cuda.is_available() else torch.device("cpu")

# CHANGE from here: the budget, and your start, ranges, data, model and error
FILE = "02_tuning.journal"
EXPLORE = 16  # planned trials: START, then a quasi-random sequence
TRIALS = 16  # of all workers together; with 36, TPE learns from these for 20 more
EPOCHS, FIRST_LOOK = 9, 3  # of a full trial; and before one may be stopped
FINAL_SEEDS = range(100, 105)  # none of them took part in the choice
START = {"rate": 1e-3, "decay": 0.01, "1 - beta1": 0.1}  # what you would set by hand
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16).float().to(DEVICE)
labels = torch.tensor(labels).to(DEVICE)
mixed = torch.randperm(1792, generator=torch.Generator().manual_seed(0))  # of all writers
TRAIN, VALIDATION, TEST = mixed[:896], mixed[896:1344], mixed[1344:]


def settings_of(trial):
    trial.suggest_float("rate", 1e-5, 1, log=True)
    trial.suggest_float("decay", 1e-4, 1, log=True)
    trial.suggest_float("1 - beta1", 0.01, 1, log=True)
    return trial.params


def train(settings, seed, trial=None):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).to(DEVICE)
    rate, betas = settings["rate"], (1 - settings["1 - beta1"], 0.999)
    weights = model.parameters()
    optimizer = torch.optim.AdamW(weights, rate, betas, weight_decay=settings["decay"])
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for rows in TRAIN[torch.randperm(len(TRAIN))].split(64):
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
    trial.set_user_attr("worker", WORKER)
    return error_of(train(settings_of(trial), 0, trial), VALIDATION)


def final(settings):  # the one look at the test rows
    scores = [1 - error_of(train(settings, seed), TEST) for seed in FINAL_SEEDS]
    return mean(scores), stdev(scores)


TAKEN = (State.RUNNING, State.COMPLETE, State.PRUNED)  # not WAITING, not FAIL
backend = journal.JournalFileBackend(FILE, journal.JournalFileOpenLock(FILE))
study = optuna.create_study(
    study_name="tuning",
    storage=journal.JournalStorage(backend),
    load_if_exists=True,
    sampler=optuna.samplers.TPESampler(seed=WORKER, constant_liar=True),
    pruner=optuna.pruners.SuccessiveHalvingPruner(FIRST_LOOK, 3),  # a third goes on
)
if WORKER == 0 and len(study.trials) < EXPLORE:
    plan = optuna.create_study(sampler=optuna.samplers.QMCSampler(scramble=True, seed=0))
    plan.enqueue_trial(START)
    plan.optimize(lambda trial: len(settings_of(trial)), EXPLORE)  # trains nothing
    for trial in plan.trials:
        study.enqueue_trial(trial.params, skip_if_exists=True)
while len(study.trials) < EXPLORE:
    time.sleep(0.1)  # worker 0 plans
for old in study.get_trials(states=[State.RUNNING]):
    if old.user_attrs.get("worker") == WORKER:  # this worker was killed in this trial
        study.tell(old.number, state=State.FAIL)
        study.enqueue_trial(old.system_attrs.get("fixed_params", old.params))  # once more
if len(study.get_trials(states=TAKEN)) < TRIALS and "result" not in study.user_attrs:
    stop = optuna.study.MaxTrialsCallback(TRIALS, TAKEN)
    study.optimize(objective, callbacks=[stop])

if WORKER == 0:
    while study.get_trials(states=[State.RUNNING]):
        time.sleep(0.1)  # the others end their last trials
    if "result" not in study.user_attrs:  # else the test rows have been looked at
        result = [study.best_params, final(START), final(study.best_params)]
        study.set_user_attr("result", result)
    best, start, tuned = study.user_attrs["result"]
    print("winner:", ", ".join(f"{name} {value:.4g}" for name, value in best.items()))
    print(f"standard deviation over seeds: start {start[1]:.4f}, tuned {tuned[1]:.4f}")
    print(f"start test accuracy {start[0]:.4f}, tuned test accuracy {tuned[0]:.4f}")
