"""The same training run over many seeds at once, and what may be said of the results.

`stack`: the idea, one batched matrix product for all replicas. `run`: `run_trials`, and
the choice between the stack and a loop of runs. `arms`: techniques side by side.
`statistics`: intervals and paired differences.
"""

from dlcourse.lab.trials.arms import Arms, Choice, run_arms
from dlcourse.lab.trials.results import BestRate, Trials, best_each, best_of_rates
from dlcourse.lab.trials.run import CannotStack, run_trials
from dlcourse.lab.trials.settings import BIASES_SPARED, OPTIMIZERS
from dlcourse.lab.trials.stack import ELEMENTWISE
from dlcourse.lab.trials.statistics import Comparison, Interval, interval, mean, paired

__all__ = [
    "Arms",
    "BIASES_SPARED",
    "BestRate",
    "CannotStack",
    "Choice",
    "Comparison",
    "ELEMENTWISE",
    "Interval",
    "OPTIMIZERS",
    "Trials",
    "best_each",
    "best_of_rates",
    "interval",
    "mean",
    "paired",
    "run_arms",
    "run_trials",
]
