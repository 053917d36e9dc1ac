"""Exercises of chapter 2, hyper-parameter tuning: questions, checks, solutions, usual
mistakes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.integrate import quad
from scipy.special import ndtr
from scipy.stats import kstest, norm

from dlcourse.lab.exercises import Exercise, Wrong, expect

# --- a random search -----------------------------------------------------------------------------

RATE = (-4, 1)  # powers of ten
DECAY = (-6, 0)


class _Runs:
    """Stands in for the training: notes every call, and gives the next of its scores."""

    def __init__(self, scores):
        self.scores = scores
        self.pairs: list[tuple[float, float]] = []

    def train(self, rate, decay):
        expect(
            len(self.pairs) < len(self.scores),
            f"trials is {len(self.scores)}, but train was called more often: once for each "
            "pair, and a failed run counts as a trial, too.",
        )
        self.pairs.append((float(rate), float(decay)))
        return self.scores[len(self.pairs) - 1]


def _run(answer: Callable, scores, seed: int):
    """Run a search on the given scores; return (its answer, the pairs that it tried)."""
    runs = _Runs([float(score) for score in scores])
    found = answer(runs.train, len(scores), np.random.default_rng(seed))
    expect(
        len(runs.pairs) == len(scores),
        f"trials is {len(scores)}, but train was called {len(runs.pairs)} times: once for "
        "each pair.",
    )
    return found, np.array(runs.pairs)


def _check_scale(name: str, values: np.ndarray, powers: tuple[int, int]) -> None:
    low, high = powers
    expect(
        bool((values > 0).all()),
        f"A {name} must be above 0: raise 10 to the power that you drew.",
    )
    expect(
        bool(
            (values >= 10.0**low * (1 - 1e-9)).all()
            and (values <= 10.0**high * (1 + 1e-9)).all()
        ),
        f"A {name} lies outside the range from 1e{low} to 1e{high}: its logarithm goes from "
        "that of one end to that of the other.",
    )
    expect(
        len(np.unique(values)) > 0.95 * len(values),
        f"The {name} takes the same values again and again: draw it anew from the whole range "
        "in each trial.",
    )
    logs = np.log10(values)
    # how many draws lie in the last decade; even logarithms put one in (high - low) there
    last = (logs > high - 1).mean()
    expect(
        last < 0.5,
        f"{last:.0%} of the draws of the {name} lie in the largest decade: draw its logarithm "
        "uniformly, not the value itself.",
    )
    inside = logs - np.floor(logs)
    decades = np.floor(logs).clip(low, high - 1)
    counts = np.array([(decades == d).mean() for d in range(low, high)])
    if kstest((logs - low) / (high - low), "uniform").statistic > 0.045:
        expect(
            bool(abs(counts - 1 / (high - low)).max() > 0.04),
            f"Each decade of the {name} gets its share, but within a decade the values are "
            f"spread, not their logarithms: {(inside < 0.5).mean():.0%} lie in the lower half "
            "of the logarithm.",
        )
        expect(
            False,
            f"The logarithms of the {name}, to base 10, are not spread evenly from {low} to "
            f"{high}. Is the power one of 10, and is it uniform?",
        )


def _check_draws(answer: Callable) -> None:
    count = 2000
    found, pairs = _run(answer, np.linspace(2, 1, count), seed=11)
    _, again = _run(answer, np.linspace(2, 1, count), seed=11)
    _, others = _run(answer, np.linspace(2, 1, count), seed=12)
    expect(
        np.array_equal(pairs, again),
        "Two generators with the same seed gave different trials: take all numbers from rng.",
    )
    for column, (name, powers) in enumerate({"rate": RATE, "decay": DECAY}.items()):
        values = pairs[:, column]
        _check_scale(name, values, powers)
        expect(
            not np.allclose(np.sort(values), np.sort(others[:, column])),
            f"Two generators with different seeds gave the same values of the {name}, perhaps "
            "in another order: draw them with rng, do not list them.",
        )
        shares = (np.log10(values) - powers[0]) / (powers[1] - powers[0])
        bins = np.bincount((shares * count).astype(int).clip(0, count - 1))
        expect(
            (bins > 0).sum() < 0.75 * count,
            f"The values of the {name} lie too evenly for independent draws, which leave gaps "
            "and clusters: draw each by itself.",
        )
    logs = np.log10(pairs)
    expect(
        abs(np.corrcoef(logs.T)[0, 1]) < 0.12,
        "Rate and decay go up and down together: draw each of them by itself.",
    )
    following = np.corrcoef(logs[:-1, 0], logs[1:, 0])[0, 1]
    expect(
        abs(following) < 0.12,
        "Each rate depends on the one before: draw each trial by itself.",
    )


def _check_choice(answer: Callable) -> None:
    nan, inf = math.nan, math.inf
    cases = [
        ([0.4, 0.2, 0.3, 0.5], 1),
        ([0.7], 0),
        ([0.1, 0.6, 0.8], 0),
        ([0.9, 0.6, 0.5], 2),
        ([2e9, 1e9, 3e9], 1),
        ([-1.0, -3.0, 2.0], 1),
        ([nan, 0.4, 0.2, 0.3], 2),
        ([0.4, nan, 0.6], 0),
        ([inf, nan, inf, 0.9, nan], 3),
        ([nan, inf, 5e9], 2),
    ]
    for number, (scores, best) in enumerate(cases):
        found, pairs = _run(answer, scores, seed=20 + number)
        expect(found is not None, "Return the best pair, (rate, decay).")
        if isinstance(found, dict):
            found = list(found.values())
        parts: list[Any] = list(found) if hasattr(found, "__len__") else [found]
        expect(
            len(parts) == 2 and all(np.ndim(part) == 0 for part in parts),
            "Return the pair alone, (rate, decay), without its score.",
        )
        found = np.array([float(part) for part in parts])
        given = [np.allclose(found, pair, rtol=1e-9, atol=0) for pair in pairs]
        expect(
            any(given),
            "The pair that you return was never tried: return one that train was called with, "
            "as (rate, decay).",
        )
        chosen = given.index(True)
        expect(
            math.isfinite(scores[chosen]),
            f"The scores {scores} gave the pair whose score is {scores[chosen]}, a failed run. "
            "nan is neither smaller nor larger than anything, so min and sort can keep it.",
        )
        expect(
            chosen == best,
            f"The scores {scores} gave the pair with {scores[chosen]}; the lowest is "
            f"{scores[best]}, and lower is better.",
        )


def _check_search(answer: Callable) -> None:
    _check_draws(answer)
    _check_choice(answer)


def _solve_search(train, trials, rng):
    best_score = math.inf
    best = None
    for _ in range(trials):
        rate = 10 ** rng.uniform(-4, 1)
        decay = 10 ** rng.uniform(-6, 0)
        score = train(rate, decay)
        if score < best_score:  # never true for nan
            best_score = score
            best = (rate, decay)
    return best


def _search_with(draw: Callable) -> Callable:
    """Return a search that is right except for its draw(rng) of a pair."""

    def search(train, trials, rng):
        pairs = [draw(rng) for _ in range(trials)]
        scores = np.array([train(*pair) for pair in pairs])
        return pairs[int(np.nanargmin(np.where(np.isinf(scores), np.nan, scores)))]

    return search


def _with_min(train, trials, rng):
    tried = []
    for _ in range(trials):
        pair = (10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0))
        tried.append((train(*pair), pair))
    return min(tried)[1]


def _one_draw(rng):
    share = rng.uniform()
    return 10 ** (-4 + 5 * share), 10 ** (-6 + 6 * share)


def _own_generator(train, trials, rng):
    return _solve_search(train, trials, np.random.default_rng())


def _fixed_seed(train, trials, rng):
    return _solve_search(train, trials, np.random.default_rng(0))


def _highest(train, trials, rng):
    def turned(rate, decay):
        return -train(rate, decay)

    return _solve_search(turned, trials, rng)


def _below_one(train, trials, rng):
    best_score, best = 1.0, None
    for _ in range(trials):
        pair = (10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0))
        score = train(*pair)
        if score < best_score:
            best_score, best = score, pair
    return best


def _again_after_failure(train, trials, rng):
    tried = []
    while len(tried) < trials:
        pair = (10 ** rng.uniform(-4, 1), 10 ** rng.uniform(-6, 0))
        score = train(*pair)
        if math.isfinite(score):
            tried.append((score, pair))
    return min(tried)[1]


# --- the expected improvement --------------------------------------------------------------------


def _expected(mean: float, std: float, best: float) -> float:
    """Return E[max(best - f, 0)] by numerical integration."""
    if std == 0:
        return max(best - mean, 0.0)
    low = min(mean - 12 * std, best)
    middle = [point for point in (mean, mean - 3 * std) if low < point < best]
    value, _ = quad(
        lambda f: (best - f) * norm.pdf(f, mean, std),
        low,
        best,
        points=middle or None,
        limit=200,
    )
    return float(value)


def _number(answer: Callable, mean: float, std: float, best: float) -> float:
    got = answer(mean, std, best)
    expect(got is not None, "Return the expected improvement, a number.")
    return float(got)


def _check_improvement(answer: Callable) -> None:
    seen = _number(answer, 0.2, 0.0, 0.2)
    expect(
        not math.isnan(seen),
        "At a point already observed the standard deviation is 0: treat that case apart.",
    )
    worse = _number(answer, 0.7, 0.0, 0.2)
    expect(
        worse > -1e-6,
        "A point known to be worse improves by nothing, not by a negative amount: the mean "
        "alone is not the expected improvement.",
    )
    expect(
        abs(seen) < 1e-6 and abs(worse) < 1e-6,
        "At an observed point of value best, or worse, there is nothing to gain: return 0.",
    )
    better = _number(answer, 0.1, 0.0, 0.2)
    expect(
        abs(better - 0.1) < 1e-6,
        f"Known to be better by 0.1, so the improvement is 0.1; yours is {better:.4f}.",
    )
    expect(
        _number(answer, 0.7, 1.0, 0.2) > 1e-3,
        "A point with a worse mean but a large standard deviation may still improve.",
    )
    rng = np.random.default_rng(3)
    cases = [(0.7, 1.0, 0.2), (-0.5, 0.3, 0.0), (0.0, 2.0, 0.0), (5.0, 3.0, 8.0)]
    for _ in range(20):
        mean, best = rng.normal(0, 2, 2)
        cases.append((float(mean), float(rng.uniform(0.2, 3)), float(best)))
    for mean, std, best in cases:
        wanted = _expected(mean, std, best)
        got = _number(answer, mean, std, best)
        expect(
            abs(got - wanted) <= 1e-4 + 1e-3 * wanted,
            f"For mean {mean:.3f}, std {std:.3f}, best {best:.3f} the average of "
            f"max(best - f, 0) over many draws of f is {wanted:.4f}, yours is {got:.4f}. "
            "Lower is better here, and there is no margin.",
        )
    far = _number(answer, 60.0, 1.0, 0.0)
    expect(
        -1e-9 < far < 1e-6,
        f"60 standard deviations above best there is nothing to gain; yours is {far}.",
    )


def _solve_improvement(mean, std, best):
    if std == 0:
        return max(best - mean, 0.0)
    z = (best - mean) / std
    below = (1 + math.erf(z / math.sqrt(2))) / 2
    density = math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return (best - mean) * below + std * density


def _improvement_is_mean(mean, std, best):
    return best - mean


def _improvement_of_mean(mean, std, best):
    return max(best - mean, 0.0)


def _improvement_divides(mean, std, best):
    z = np.float64(best - mean) / np.float64(std) if std else math.nan
    return float(
        (best - mean) * ndtr(z) + std * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    )


def _probability_of_improvement(mean, std, best):
    return float(ndtr((best - mean) / std)) if std else max(best - mean, 0.0)


def _improvement_upwards(mean, std, best):
    return _solve_improvement(-mean, std, -best) if std else max(best - mean, 0.0)


def _with_margin(mean, std, best):
    return _solve_improvement(mean, std, best - 0.01) if std else max(best - mean, 0.0)


def _std_is_variance(mean, std, best):
    return _solve_improvement(mean, math.sqrt(std), best)


def _without_std(mean, std, best):
    if std == 0:
        return max(best - mean, 0.0)
    z = (best - mean) / std
    return (best - mean) * float(norm.cdf(z)) + float(norm.pdf(z))


# --- a space with conditions ---------------------------------------------------------------------


class _Trial:
    """Stands in for a trial of Optuna that draws at random, and notes what it was asked."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.asked: dict[str, tuple] = {}
        self.values: dict[str, object] = {}

    def _give(self, name, kind: tuple, value):
        known = self.asked.setdefault(name, kind)
        expect(
            known == kind,
            f"{name!r} is asked for twice with different ranges: Optuna wants one range a "
            "name.",
        )
        return self.values.setdefault(name, value)

    def suggest_float(self, name, low, high, *, step=None, log=False):
        low, high = float(low), float(high)
        expect(low < high, f"{name!r}: low must be below high.")
        expect(not log or low > 0, f"{name!r}: a log scale needs low > 0.")
        expect(
            step is None or not log, f"{name!r}: Optuna allows a step or log, not both."
        )
        share = self.rng.uniform()
        value = low * (high / low) ** share if log else low + (high - low) * share
        if step is not None:
            value = low + round((value - low) / step) * step
        return self._give(name, ("float", low, high, step, log), float(value))

    def suggest_int(self, name, low, high, *, step=1, log=False):
        expect(
            int(low) == low and int(high) == high and low < high,
            f"{name!r}: suggest_int needs two whole numbers, low < high.",
        )
        expect(not log or low > 0, f"{name!r}: a log scale needs low > 0.")
        expect(step == 1 or not log, f"{name!r}: Optuna allows a step or log, not both.")
        if log:
            a, b = math.log(low - 0.5), math.log(high + 0.5)
            value = math.floor(math.exp(self.rng.uniform(a, b)) + 0.5)
        else:
            value = low + step * int(self.rng.integers((high - low) // step + 1))
        value = int(min(max(value, low), high))
        return self._give(name, ("int", low, high, step, log), value)

    def suggest_categorical(self, name, choices):
        choices = list(choices)
        value = choices[int(self.rng.integers(len(choices)))]
        return self._give(name, ("choice", *map(str, choices)), value)


COMMON = {"rate", "layers", "width", "optimizer"}
OWN = {"sgd": "momentum", "adam": "beta2"}


def _draw_settings(answer: Callable, count: int = 1500) -> list[tuple[dict, _Trial]]:
    drawn = []
    kinds: dict[str, tuple] = {}
    for seed in range(count):
        trial = _Trial(seed)
        settings = answer(trial)
        expect(isinstance(settings, dict), "Return the settings as a dictionary.")
        for name, kind in trial.asked.items():
            known = kinds.setdefault(name, kind)
            expect(
                known == kind,
                f"{name!r} has one range in some trials and another in others: Optuna wants "
                "one range a name, so give each setting a name of its own.",
            )
        drawn.append((settings, trial))
    return drawn


def _check_log(name: str, values: np.ndarray, low: float, high: float, what: str) -> None:
    expect(
        bool((values >= low * (1 - 1e-6)).all() and (values <= high * (1 + 1e-6)).all()),
        f"{what} goes from {low:g} to {high:g}; yours was {values.min():.3g} to "
        f"{values.max():.3g}.",
    )
    shares = np.log(values / low) / math.log(high / low)
    expect(
        kstest(shares, "uniform").statistic < 0.09,
        f"{what} should be log-uniform: half of the draws below {math.sqrt(low * high):.3g}. "
        f"Of yours it is {(values < math.sqrt(low * high)).mean():.0%}.",
    )


def _check_space(answer: Callable) -> None:
    drawn = _draw_settings(answer)
    kinds = {settings.get("optimizer") for settings, _ in drawn}
    expect(
        kinds == set(OWN),
        f"optimizer should be 'sgd' or 'adam'; over many trials yours was {kinds}.",
    )
    for settings, trial in drawn:
        own = OWN[settings["optimizer"]]
        wanted = COMMON | {own}
        other = (set(OWN.values()) - {own}).pop()
        expect(
            other not in settings,
            f"With {settings['optimizer']} there is no {other}: leave it out of the "
            "dictionary.",
        )
        expect(
            set(settings) == wanted,
            f"With {settings['optimizer']} the dictionary should hold {sorted(wanted)}; yours "
            f"holds {sorted(map(str, settings))}.",
        )
        expect(
            len(trial.asked) <= len(wanted),
            f"With {settings['optimizer']} the trial was asked for {sorted(trial.asked)}: ask "
            f"for {other} only where it is used, or the sampler learns from a number without "
            "effect.",
        )
        expect(
            len(trial.asked) == len(wanted),
            f"The trial was asked for {sorted(trial.asked)} only: every setting comes from "
            "the trial, or it cannot be tuned.",
        )
    columns = {name: np.array([s[name] for s, _ in drawn]) for name in COMMON}
    share = (columns["optimizer"] == "sgd").mean()
    expect(0.4 < share < 0.6, "Both optimizers should have the same chance.")
    for name in ("layers", "width"):
        expect(
            all(float(value).is_integer() for value in columns[name]),
            f"{name} must be a whole number.",
        )
    rates = columns["rate"].astype(float)
    _check_log("rate", rates, 1e-5, 1.0, "rate")
    layers = columns["layers"].astype(int)
    expect(
        layers.min() == 1 and layers.max() == 6,
        f"layers goes from 1 to 6, both included; yours from {layers.min()} to "
        f"{layers.max()}.",
    )
    counts = np.bincount(layers, minlength=7)[1:] / len(layers)
    expect(
        bool((abs(counts - 1 / 6) < 0.06).all()),
        "Each number of layers from 1 to 6 should have the same chance.",
    )
    widths = columns["width"].astype(float)
    expect(
        len(np.unique(widths)) > 100,
        f"width may be any whole number from 16 to 512; yours took only "
        f"{len(np.unique(widths))} values.",
    )
    _check_log("width", widths, 16, 512, "width")
    momenta = np.array([s["momentum"] for s, _ in drawn if "momentum" in s], dtype=float)
    betas = np.array([s["beta2"] for s, _ in drawn if "beta2" in s], dtype=float)
    for name, values in (("momentum", momenta), ("beta2", betas)):
        expect(
            bool((values >= -1e-9).all() and (values < 1).all()),
            f"{name} must be at least 0 and below 1; yours goes from {values.min():.4g} to "
            f"{values.max():.4g}. Draw 1 - {name}, and return {name}.",
        )
    _check_log("momentum", 1 - momenta, 1e-3, 1.0, "1 - momentum")
    _check_log("beta2", 1 - betas, 1e-4, 1e-1, "1 - beta2")


def _solve_space(trial):
    settings = {
        "rate": trial.suggest_float("rate", 1e-5, 1.0, log=True),
        "layers": trial.suggest_int("layers", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam"]),
    }
    if settings["optimizer"] == "sgd":
        memory = trial.suggest_float("1 - momentum", 1e-3, 1.0, log=True)
        settings["momentum"] = 1 - memory
    else:
        memory = trial.suggest_float("1 - beta2", 1e-4, 1e-1, log=True)
        settings["beta2"] = 1 - memory
    return settings


def _space_always_both(trial):
    settings = _solve_space(trial)
    if settings["optimizer"] == "sgd":
        trial.suggest_float("1 - beta2", 1e-4, 1e-1, log=True)
    else:
        trial.suggest_float("1 - momentum", 1e-3, 1.0, log=True)
    return settings


def _space_keeps_both(trial):
    settings = _space_always_both(trial)
    return {"momentum": 0.9, "beta2": 0.999} | settings


def _space_plain_momentum(trial):
    settings = _solve_space(trial)
    if "momentum" in settings:
        trial.asked.pop("1 - momentum")
        settings["momentum"] = trial.suggest_float("momentum", 0.0, 0.999)
    return settings


def _space_log_of_momentum(trial):
    settings = _solve_space(trial)
    if "momentum" in settings:
        trial.asked.pop("1 - momentum")
        settings["momentum"] = trial.suggest_float("momentum", 1e-3, 1.0, log=True)
    return settings


def _space_plain_width(trial):
    settings = _solve_space(trial)
    trial.asked.pop("width")
    trial.values.pop("width")
    return settings | {"width": trial.suggest_int("width", 16, 512)}


def _space_powers(trial):
    settings = _solve_space(trial)
    trial.asked.pop("width")
    trial.values.pop("width")
    return settings | {"width": 2 ** trial.suggest_int("power", 4, 9)}


def _space_one_name(trial):
    settings = _solve_space(trial)
    for name in ("momentum", "beta2"):
        if name in settings:
            trial.asked.pop(f"1 - {name}")
            low, high = (1e-3, 1.0) if name == "momentum" else (1e-4, 1e-1)
            settings[name] = 1 - trial.suggest_float("memory", low, high, log=True)
    return settings


EXERCISES = (
    Exercise(
        "Write search(train, trials, rng), a random search over two settings. "
        "train(rate, decay) trains once and returns a score; lower is better, and a score "
        "of nan or inf is a failed run, which can never be the best (at least one run does "
        "not fail). Draw `trials` pairs, each number by itself and log-uniform, that is, "
        "with a uniform logarithm: the rate from 1e-4 to 10, the decay from 1e-6 to 1. Take "
        "all random numbers from rng, a NumPy generator. Call train once for each pair, and "
        "return the best pair, (rate, decay).",
        _check_search,
        _solve_search,
        {
            "uniform is fine": Wrong(
                _search_with(lambda rng: (rng.uniform(1e-4, 10), rng.uniform(1e-6, 1))),
                "not the value itself",
            ),
            "uniform decay": Wrong(
                _search_with(
                    lambda rng: (10 ** rng.uniform(-4, 1), rng.uniform(1e-6, 1))
                ),
                "of the decay lie in the largest decade",
            ),
            "another base": Wrong(
                _search_with(
                    lambda rng: (np.exp(rng.uniform(-4, 1)), np.exp(rng.uniform(-6, 0)))
                ),
                "one of 10",
            ),
            "one decade too many": Wrong(
                _search_with(
                    lambda rng: (10 ** rng.uniform(-4, 2), 10 ** rng.uniform(-6, 0))
                ),
                "outside",
            ),
            "powers of ten only": Wrong(
                _search_with(
                    lambda rng: (10.0 ** rng.integers(-4, 2), 10.0 ** rng.integers(-6, 1))
                ),
                "again and again",
            ),
            "uniform within a decade": Wrong(
                _search_with(
                    lambda rng: (
                        rng.uniform(1, 10) * 10.0 ** rng.integers(-4, 1),
                        rng.uniform(1, 10) * 10.0 ** rng.integers(-6, 0),
                    )
                ),
                "within a decade",
            ),
            "one draw for both": Wrong(
                _search_with(_one_draw), "go up and down together"
            ),
            "a generator of its own": Wrong(_own_generator, "take all numbers from rng"),
            "a fixed seed": Wrong(_fixed_seed, "do not list them"),
            "min keeps nan": Wrong(_with_min, "a failed run"),
            "highest wins": Wrong(_highest, "lower is better"),
            "scores lie below 1": Wrong(_below_one, "Return the best pair"),
            "another try after a failure": Wrong(
                _again_after_failure, "counts as a trial"
            ),
        },
    ),
    Exercise(
        "Write improvement(mean, std, best): the expected improvement, E[max(best - f, 0)], "
        "of a score f that is normally distributed with this mean and standard deviation; "
        "lower is better. All three are numbers. std may be 0, where the point has been "
        "observed without noise: f is then the mean itself.",
        _check_improvement,
        _solve_improvement,
        {
            "EI is just the mean": Wrong(_improvement_is_mean, "the mean alone"),
            "the mean, cut at 0": Wrong(_improvement_of_mean, "may still improve"),
            "divide by 0": Wrong(_improvement_divides, "treat that case apart"),
            "the probability instead": Wrong(
                _probability_of_improvement, "over many draws"
            ),
            "higher is better": Wrong(_improvement_upwards, "Lower is better"),
            "a margin": Wrong(_with_margin, "no margin"),
            "the variance": Wrong(_std_is_variance, "over many draws"),
            "the density without std": Wrong(_without_std, "over many draws"),
        },
    ),
    Exercise(
        "Write settings(trial): the settings of one training as a dictionary, all drawn from "
        "an Optuna trial with trial.suggest_float(name, low, high, log=...), "
        "trial.suggest_int(name, low, high, log=...) and "
        "trial.suggest_categorical(name, choices). "
        "rate: log-uniform from 1e-5 to 1. layers: 1 to 6, each with the same chance. "
        "width: any whole number from 16 to 512, log-uniform. optimizer: 'sgd' or 'adam'. "
        "momentum, with sgd only: 1 - momentum is log-uniform from 0.001 to 1. "
        "beta2, with adam only: 1 - beta2 is log-uniform from 0.0001 to 0.1. "
        "A setting that the optimizer does not use is neither asked for nor in the "
        "dictionary.",
        _check_space,
        _solve_space,
        {
            "asks for both": Wrong(_space_always_both, "only where it is used"),
            "keeps both": Wrong(_space_keeps_both, "leave it out"),
            "momentum uniform": Wrong(_space_plain_momentum, "1 - momentum should be"),
            "log of momentum": Wrong(_space_log_of_momentum, "1 - momentum should be"),
            "width uniform": Wrong(_space_plain_width, "width should be log-uniform"),
            "powers of two": Wrong(_space_powers, "any whole number"),
            "one name, two ranges": Wrong(_space_one_name, "a name of its own"),
        },
    ),
)
