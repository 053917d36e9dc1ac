"""Techniques side by side: each tuned on the validation rows, compared on the test rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from dlcourse.lab.trials.results import BestRate, Trials, check_pairs
from dlcourse.lab.trials.run import run_trials
from dlcourse.lab.trials.statistics import Comparison, Interval, interval, paired


@dataclass(frozen=True)
class Choice:
    """The setting and the learning rate of an arm that are best on the validation rows.

    `setting`: the place in the arm's list of settings. `rate`: see `BestRate`.
    `test`: {"loss", "accuracy"}, each (seeds,).
    `weights[name]`: the trained parameters, each (seeds, ...).
    """

    setting: int
    rate: BestRate
    test: dict[str, np.ndarray]
    weights: dict[str, Tensor] = field(default_factory=dict, repr=False)


@dataclass
class Arms:
    """The results of `run_arms`: `trials[name]` holds one `Trials` a setting of the arm."""

    trials: dict[str, list[Trials]]
    settings: dict[str, list[dict]]

    def best(self, name: str, metric: str = "accuracy") -> Choice:
        """Return the setting and rate of an arm that are best on the validation rows."""
        if name not in self.trials:
            raise ValueError(f"no arm {name!r}: there are {', '.join(self.trials)}")
        scores = []
        for trials in self.trials[name]:
            value = trials.validation_mean(metric)[trials.best_lr(metric)]
            scores.append(value if metric == "accuracy" else -value)
        setting = int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))
        trials = self.trials[name][setting]
        rate = trials.best_rate(metric)
        test = {key: values[rate.index] for key, values in trials.test.items()}
        weights = {key: values[rate.index] for key, values in trials.weights.items()}
        return Choice(setting, rate, test, weights)

    def result(self, name: str, metric: str = "accuracy") -> Interval:
        """Return the test result of an arm at its best, with its interval."""
        return interval(self._test(name, metric))

    def difference(self, a: str, b: str, metric: str = "accuracy") -> Comparison:
        """Compare two arms on the test rows, each at its best: the mean of a - b over
        the seeds, with its interval.
        """
        check_pairs(self.trials[a][0].seeds, self.trials[b][0].seeds)
        return paired(self._test(a, metric), self._test(b, metric))

    def at(self, lr: float) -> Arms:
        """Return the results of one learning rate, the same for all arms."""
        return self._each(lambda trials: trials.at(lr))

    def stopped_early(self, metric: str = "loss") -> Arms:
        """Return the results as if each run had stopped where it was best on the
        validation rows (`Trials.stopped_early`).
        """
        return self._each(lambda trials: trials.stopped_early(metric))

    def check_rates(self, metric: str = "accuracy") -> None:
        """Raise ValueError where the best learning rate of an arm lies at the edge.

        Such an arm is not tuned yet: a better rate may lie outside.
        """
        best = {name: self.best(name, metric).rate for name in self.trials}
        found = [f"{name} ({rate.lr:g})" for name, rate in best.items() if rate.at_edge]
        if found:
            raise ValueError(
                f"the best rate lies at the edge of its grid for {', '.join(found)}: give "
                "these arms rates beyond it"
            )

    def _each(self, change: Callable[[Trials], Trials]) -> Arms:
        changed = {
            name: [change(one) for one in arm] for name, arm in self.trials.items()
        }
        return Arms(changed, self.settings)

    def _test(self, name: str, metric: str) -> np.ndarray:
        test = self.best(name, metric).test
        if not test:
            raise ValueError("no test results: give run_arms test=")
        return test[metric]


def run_arms(
    arms: Mapping[str, Mapping | Sequence[Mapping]],
    build: Callable[[int], nn.Module],
    data,
    **common,
) -> Arms:
    """Train every arm with `run_trials` on the same seeds, and return all results.

    `arms`: {"name": settings}, where the settings are those of `run_trials` in which the
    arm differs from `common`, also "build" and "data". An arm with several strengths is
    a list of such dictionaries; the validation rows choose among them as among rates.

        run_arms(
            {"none": {}, "L2": [{"l2": 0.03}, {"l2": 0.1}], "dropout": {"dropout": 0.4}},
            network, data, seeds=range(8), lr=[0.03, 0.1, 0.3], steps=120,
            validation=data.validation, test=data.test,
        )

    Raises ValueError for no arms, or an arm without settings.
    """
    if not arms:
        raise ValueError("no arms: give at least one, such as {'none': {}}")
    done: dict[str, list[Trials]] = {}
    settings: dict[str, list[dict]] = {}
    for name, arm in arms.items():
        several = [arm] if isinstance(arm, Mapping) else list(arm)
        if not several:
            raise ValueError(
                f"arm {name!r} has no settings: {{}} stands for the common ones"
            )
        settings[name] = [dict(one) for one in several]
        done[name] = []
        for one in settings[name]:
            whole = {"build": build, "data": data, **common, **one}
            model, rows = whole.pop("build"), whole.pop("data")
            done[name].append(run_trials(model, rows, **whole))
    return Arms(done, settings)
