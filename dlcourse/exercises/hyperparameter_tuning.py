"""Exercises of chapter 2, hyperparameter tuning: questions, checks, solutions, usual mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import ndtr

from dlcourse.lab.exercises import Exercise, Wrong, expect


def _check_draw(answer: Callable) -> None:
    rates = np.asarray(answer(np.random.default_rng(0), 2000), dtype=float)
    expect(rates.shape == (2000,), "Return n learning rates, an array of shape (n,).")
    expect(
        (rates > 0).all(),
        "A learning rate must be above 0: raise 10 to the power you drew.",
    )
    expect(
        rates.min() >= 1e-5 * (1 - 1e-9) and rates.max() <= 1 + 1e-9,
        "Some rates lie outside [1e-5, 1]: the exponent goes from the log of one end to that of "
        "the other.",
    )
    expect(
        len(np.unique(rates)) > 1900,
        "The values repeat: draw from the whole range, not a list.",
    )
    again = np.asarray(answer(np.random.default_rng(1), 2000), dtype=float)
    expect(
        not np.array_equal(rates, again),
        "Another generator gave the same rates: use rng.",
    )
    small = (rates < 0.1).mean()
    expect(
        small > 0.5,
        f"Only {small:.0%} of the rates lie below 0.1, though four of the five decades do: draw "
        "the logarithm uniformly, not the rate.",
    )
    shares = np.sort((np.log10(rates) + 5) / 5)
    # Kolmogorov and Smirnov's distance
    gap = np.abs(shares - (np.arange(2000) + 0.5) / 2000).max()
    expect(
        gap < 0.045,
        "The logs of the rates, to base 10, are not spread evenly over [-5, 0]. Is the power to "
        "base 10, and the exponent uniform?",
    )


def _solve_draw(rng, n):
    return 10 ** rng.uniform(-5, 0, n)


def _draw_uniform(rng, n):
    return rng.uniform(1e-5, 1, n)


def _draw_natural_base(rng, n):
    return np.exp(rng.uniform(-5, 0, n))


def _draw_too_far(rng, n):
    return 10 ** rng.uniform(-5, 1, n)


def _draw_decades(rng, n):
    return 10.0 ** rng.integers(-5, 1, n)


def _draw_grid(rng, n):
    return np.logspace(-5, 0, n)


def _draw_normal(rng, n):
    return 10 ** np.clip(rng.normal(-2.5, 1, n), -5, 0)


def _check_improvement(answer: Callable) -> None:
    seen = answer(0.2, 0.0, 0.2)
    expect(
        seen is not None and not math.isnan(seen),
        "At a point already observed the standard deviation is 0: treat that case apart.",
    )
    worse = answer(0.7, 0.0, 0.2)
    expect(
        worse >= 0,
        "A point known to be worse improves by nothing, not by a negative amount: the mean alone "
        "is not the expected improvement.",
    )
    expect(
        abs(seen) < 1e-9 and abs(worse) < 1e-9,
        "At an observed point of value best, or worse, there is nothing to gain: return 0.",
    )
    expect(
        answer(0.7, 1.0, 0.2) > 1e-3,
        "A point with a worse mean but a large standard deviation may still improve.",
    )
    expect(
        abs(answer(0.1, 0.0, 0.2) - 0.1) < 1e-9, "Known to be better by 0.1: return 0.1."
    )
    rng = np.random.default_rng(0)
    for mean, std, best in ((0.7, 1.0, 0.2), (-0.5, 0.3, 0.0), (0.0, 2.0, 0.0)):
        sampled = np.maximum(best - rng.normal(mean, std, 200_000), 0).mean()
        got = answer(mean, std, best)
        expect(
            abs(got - sampled) < 0.02,
            f"For mean {mean}, std {std}, best {best} the average of max(best - f, 0) over many "
            f"draws is {sampled:.2f}, yours is {got:.2f}. Lower is better here.",
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


EXERCISES = (
    Exercise(
        "Write your_draw(rng, n): n random learning rates from 1e-5 to 1 for a random search, each "
        "order of magnitude with the same chance.",
        _check_draw,
        _solve_draw,
        {
            "uniform is fine": Wrong(_draw_uniform, "not the rate"),
            "another base": Wrong(_draw_natural_base, "base 10"),
            "one decade too many": Wrong(_draw_too_far, "outside"),
            "powers of ten only": Wrong(_draw_decades, "repeat"),
            "a grid": Wrong(_draw_grid, "use rng"),
            "normal in the log": Wrong(_draw_normal, "the exponent uniform"),
        },
    ),
    Exercise(
        "Write your_improvement(mean, std, best): the expected improvement, for a score of which "
        "lower is better, at one point; std may be 0, where the point has been observed.",
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
        },
    ),
)
