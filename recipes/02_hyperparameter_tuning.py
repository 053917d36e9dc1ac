"""Search AdamW's settings, a line over the rate first; test on fresh seeds, once.

One worker: python THIS. Four GPUs, a worker each: torchrun --nproc_per_node 4 THIS.
All share the study in FILE. Killed? When all workers have ended, start it again as before:
trials that were running are run again. Delete FILE to begin anew.
"""

import os
from datetime import timedelta
from statistics import mean

import optuna  # python -m pip install optuna
import torch
import torch.distributed as dist
import torch.nn.functional as F
from optuna.storages import journal
from optuna.trial import FixedTrial
from optuna.trial import TrialState as State
from sklearn.datasets import load_digits
from torch import nn

WORKER = int(os.environ.get("RANK", 0))  # torchrun sets these three
WORKERS = int(os.environ.get("WORLD_SIZE", 1))
GPU = int(os.environ.get("LOCAL_RANK", 0))
DEVICE = torch.device("cuda", GPU) if torch.cuda.is_available() else torch.device("cpu")

# CHANGE from here: the budget, and your start, ranges, data, model and error
FILE = "02_tuning.journal"
TRIALS, RANDOM = 25, 15  # of all workers, line and all; TPE learns from the first RANDOM
EPOCHS, FIRST_LOOK = 9, 1  # of a full trial; and before one may be stopped
FINAL_SEEDS = range(100, 105)  # not those of the search; (): end before the test
START = {"rate": 1e-3, "decay": 0.01, "1 - beta1": 0.1}  # names as asked for below
LINE = [START, *(START | {"rate": rate} for rate in (1e-4, 1e-2, 1e-1, 1.0))]
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16).float().view(-1, 1, 8, 8).to(DEVICE)
labels = torch.tensor(labels).to(DEVICE)
mixed = torch.randperm(1792, generator=torch.Generator().manual_seed(0))
TRAIN, VALIDATION, TEST = mixed[:896], mixed[896:1344], mixed[1344:]


def settings_of(trial):
    rate = trial.suggest_float("rate", 1e-4, 1, log=True)
    decay = trial.suggest_float("decay", 1e-4, 1, log=True)
    beta1 = 1 - trial.suggest_float("1 - beta1", 0.01, 1, log=True)
    return {"rate": rate, "decay": decay, "beta1": beta1}  # what train needs


def train(settings, seed, trial=None):
    torch.manual_seed(seed)
    first, last = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.Linear(16 * 4 * 4, 10)
    model = nn.Sequential(first, nn.ReLU(), nn.Flatten(), last).to(DEVICE)
    rate, betas = settings["rate"], (settings["beta1"], 0.999)
    rest = {"weight_decay": settings["decay"], "fused": True}  # fused: one call an update
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas, **rest)
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for rows in TRAIN[torch.randperm(len(TRAIN))].split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
        if trial is not None:
            trial.report(error_of(model, VALIDATION), epoch)
            stop = epoch < EPOCHS and trial.should_prune()
            if stop and "line" not in trial.user_attrs:  # the line runs in full
                raise optuna.TrialPruned
    return model


@torch.no_grad()
def error_of(model, rows):  # at most 1, also where the loss is nan
    model.eval()
    return (model(images[rows]).argmax(1) != labels[rows]).float().mean().item()


# CHANGE up to here
def objective(trial):
    return error_of(train(settings_of(trial), 0, trial), VALIDATION)


def from_all(value):  # one value of each worker of torchrun; all wait for the slowest
    values = [value] * WORKERS
    if WORKERS > 1:
        dist.all_gather_object(values, value)
    return values


for settings in LINE:
    settings_of(trial := FixedTrial(settings))  # stops here if a name is missing,
    assert trial.params.keys() == settings.keys(), settings  # or here if one is not asked
if WORKERS > 1:
    dist.init_process_group("gloo", timeout=timedelta(days=7))
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
    for trial in study.get_trials(states=[State.RUNNING]):  # a kill left it: once more
        settings = trial.system_attrs.get("fixed_params", trial.params)
        study.enqueue_trial(settings, trial.user_attrs | {"again": trial.number})
        study.tell(trial.number, state=State.FAIL)
    for settings in LINE:
        study.enqueue_trial(settings, {"line": True}, skip_if_exists=True)
to_do = "tests" not in from_all(study.user_attrs)[0]  # else the test has been looked at

ended = State.COMPLETE, State.PRUNED, State.FAIL
limit = TRIALS + sum("again" in trial.user_attrs for trial in study.trials)
if to_do and len(study.get_trials(states=ended)) < limit:
    enough = optuna.study.MaxTrialsCallback(limit, ended)  # those killed do not count
    study.optimize(objective, callbacks=[enough], catch=torch.OutOfMemoryError)
from_all("has ended its last trial")

full = sorted(study.get_trials(states=[State.COMPLETE]), key=lambda trial: trial.value)
line = [trial for trial in full if "line" in trial.user_attrs]
assert line, "no trial of LINE has run to its end: does it fit the memory?"
chosen = {"start": START, "line": line[0].params, "tuned": full[0].params}
if WORKER == 0:
    print("line:", chosen["line"], "\ntuned:", chosen["tuned"])
if to_do and FINAL_SEEDS:
    runs = [(name, seed) for name in chosen for seed in FINAL_SEEDS]
    tests = []
    for name, seed in runs[WORKER::WORKERS]:  # shared among the workers
        model = train(settings_of(FixedTrial(chosen[name])), seed)
        tests.append((name, seed, 1 - error_of(model, TEST)))
    tests = sorted(sum(from_all(tests), []))
    if WORKER == 0:
        by_name = {name: [t for n, _, t in tests if n == name] for name in chosen}
        study.set_user_attr("tests", by_name)
if WORKER == 0 and "tests" in study.user_attrs:
    tests = study.user_attrs["tests"]
    print(", ".join(f"{name} test accuracy {mean(tests[name]):.4f}" for name in chosen))
if WORKERS > 1:
    dist.destroy_process_group()
