"""A Gaussian process: a distribution over functions, and where it expects to improve."""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.spatial.distance import cdist
from scipy.special import ndtr


class GaussianProcess:
    """A distribution over functions of `d` numbers: mean zero, Matern-5/2 covariance.

    `length_scale` > 0, one number or (d,): the distance over which values stay alike.
    `variance` > 0 of the function, `noise` >= 0 the variance of the error in each
    observation.
    Source: Rasmussen & Williams (2006), algorithm 2.1. Invariants: without noise the mean
    passes through the observations; the standard deviation never exceeds that of the
    prior.
    """

    def __init__(
        self, length_scale=0.3, variance: float = 1.0, noise: float = 1e-6
    ) -> None:
        self.length_scale = np.asarray(length_scale, dtype=float)
        if not (self.length_scale > 0).all() or not variance > 0 or not noise >= 0:
            raise ValueError("give length_scale > 0, variance > 0 and noise >= 0")
        self.variance, self.noise = variance, noise
        self.x = None

    def kernel(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the covariances (n, m) of the function at a (n, d) and b (m, d)."""
        r = math.sqrt(5) * cdist(a / self.length_scale, b / self.length_scale)
        return self.variance * (1 + r + r**2 / 3) * np.exp(-r)

    def fit(self, x, y) -> GaussianProcess:
        """Condition on observations y (n,) at x (n, d), n >= 1; return self.

        Points may repeat. Raises ValueError for values that are not finite.
        """
        x, y = np.atleast_2d(np.asarray(x, float)), np.asarray(y, float)
        if len(x) != len(y) or not len(y):
            raise ValueError(
                f"{len(x)} points and {len(y)} values: give one value for each point"
            )
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ValueError(
                "not all points and values are finite: leave failed trials out"
            )
        self.x, self.y = x, y
        self.factor = _cholesky(
            self.kernel(x, x) + self.noise * np.eye(len(x)), self.variance
        )
        self.weights = cho_solve((self.factor, True), y, check_finite=False)
        return self

    def predict(self, x) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean (m,) and standard deviation (m,) of the function at x (m, d)."""
        x = np.atleast_2d(np.asarray(x, float))
        if self.x is None:  # nothing seen yet: the prior
            return np.zeros(len(x)), np.full(len(x), math.sqrt(self.variance))
        across = self.kernel(x, self.x)
        half = solve_triangular(self.factor, across.T, lower=True, check_finite=False)
        left = self.variance - (half**2).sum(axis=0)
        return across @ self.weights, np.sqrt(left.clip(min=0))

    def log_likelihood(self) -> float:
        """Return the log of the density of the observations under the prior."""
        volume = np.log(np.diag(self.factor)).sum()
        return float(
            -self.y @ self.weights / 2 - volume - len(self.y) / 2 * math.log(2 * math.pi)
        )


def _cholesky(matrix: np.ndarray, scale: float) -> np.ndarray:
    """Factor a covariance; where points repeat it is singular, and a little jitter mends
    it.
    """
    for jitter in (0.0, 1e-12, 1e-10, 1e-8, 1e-6):
        try:
            return cholesky(
                matrix + jitter * scale * np.eye(len(matrix)),
                lower=True,
                check_finite=False,
            )
        except np.linalg.LinAlgError:
            continue
    raise ValueError("the covariance has no Cholesky factor: raise noise")


def expected_improvement(mean, std, best: float) -> np.ndarray:
    """Return E[max(best - f, 0)] for f ~ N(mean, std^2): how far below `best` f is
    expected to go.

    `std` >= 0; where it is 0 this is max(best - mean, 0). Source: Jones, Schonlau & Welch
    (1998).
    Invariants: never negative; it grows with `std` and falls with `mean`.
    """
    mean, std = np.asarray(mean, float), np.asarray(std, float)
    gain = best - mean
    with np.errstate(divide="ignore", invalid="ignore"):
        z = gain / std
        density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        value = gain * ndtr(z) + std * density
    return np.where(std > 0, value, gain).clip(min=0)
