"""The same training run over many seeds at once, and what may be said of the results.

`stack`: the idea, one batched matrix product for all replicas. `run`: `run_trials`, and
the choice between the stack and a loop of runs. `arms`: techniques side by side.
`side_by_side`: many small convolutional networks as one.
`statistics`: intervals and paired differences.
"""

from dlcourse.lab.trials.arms import Arms, Choice, run_arms
from dlcourse.lab.trials.results import BestRate, Trials, best_of_rates
from dlcourse.lab.trials.run import CannotStack, run_trials
from dlcourse.lab.trials.settings import OPTIMIZERS
from dlcourse.lab.trials.side_by_side import run_side_by_side
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
    "run_side_by_side",
    "run_trials",
]
