"""The same training run over many seeds at once, and what may be said of the results.

`stack`: the idea, one batched matrix product for all replicas. `run`: `run_trials`, which
stacks, or loops over the runs. `arms`: techniques side by side. `statistics`: intervals and paired differences.
"""

from dlcourse.lab.trials.arms import Arms, Choice, run_arms
from dlcourse.lab.trials.results import BestRate, Trials, best_of_rates
from dlcourse.lab.trials.run import CannotStack, run_trials
from dlcourse.lab.trials.settings import OPTIMIZERS
from dlcourse.lab.trials.stack import ELEMENTWISE
from dlcourse.lab.trials.statistics import Comparison, Interval, interval, paired

__all__ = [
    "Arms",
    "BestRate",
    "CannotStack",
    "Choice",
    "Comparison",
    "ELEMENTWISE",
    "Interval",
    "OPTIMIZERS",
    "Trials",
    "best_of_rates",
    "interval",
    "paired",
    "run_arms",
    "run_trials",
]
