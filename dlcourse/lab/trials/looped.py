"""The runs one by one, each as a stack of one."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from dlcourse.lab.progress import bar
from dlcourse.lab.trials.results import Trials
from dlcourse.lab.trials.settings import Job
from dlcourse.lab.trials.stack import built
from dlcourse.lab.trials.stacked import run_stacked


def run_looped(job: Job) -> Trials:
    """Train one replica after the other, and return the results."""
    models = built(job.build, job.seeds, len(job.lrs))
    runs = []
    for number, model in enumerate(bar(models, unit="run")):
        runs.append(run_stacked(job.alone(number, model)))

    def joined(*parts):
        whole = torch.cat([torch.as_tensor(part) for part in parts])
        whole = whole.view(*job.shape, *whole.shape[2:])
        return whole if isinstance(parts[0], Tensor) else whole.numpy()

    def predict(inputs: Tensor, of_each_seed: bool) -> Tensor:
        outputs = []
        for number, run in enumerate(runs):
            seed = number % len(job.seeds)
            own = inputs[seed : seed + 1] if of_each_seed else inputs
            outputs.append(run.forward(own, of_each_seed))
        return torch.cat(outputs)

    return dataclasses.replace(
        runs[0],
        lrs=job.lrs,
        seeds=job.seeds,
        stacked=False,
        forward=predict,
        hand_out=lambda: [model for run in runs for model in run.hand_out()],
        **tree_map(joined, *[run.of_each_run() for run in runs]),
    )
