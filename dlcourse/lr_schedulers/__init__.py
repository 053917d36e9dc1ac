"""Learning-rate schedulers: a schedule is a pure function of the step, a scheduler
applies it.

A *schedule* is made by a function of this module, such as `cosine(100)`. It maps the
update number t = 0, 1, 2, ... to a factor on the base learning rate, and remembers
nothing. `fit(schedule=...)` takes it as it is. A *scheduler* has PyTorch's names and
arguments. It holds one number, the count of its steps, and writes the schedule's value
into an optimizer.
"""

from dlcourse.lr_schedulers.schedulers import (
    WSDLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from dlcourse.lr_schedulers.schedules import (
    ANNEALING,
    COOLDOWNS,
    Schedule,
    cosine,
    cosine_restarts,
    multi_step_decay,
    one_cycle,
    one_cycle_momentum,
    sequential,
    step_decay,
    wsd,
)

__all__ = [
    "ANNEALING",
    "COOLDOWNS",
    "Schedule",
    "cosine",
    "cosine_restarts",
    "multi_step_decay",
    "one_cycle",
    "one_cycle_momentum",
    "sequential",
    "step_decay",
    "wsd",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "ExponentialLR",
    "LambdaLR",
    "MultiStepLR",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
    "WSDLR",
]
