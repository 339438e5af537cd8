"""What figures need to say how sure they are: chance bands, running means, bootstrap errors."""

import math
from collections.abc import Callable

import numpy as np


def binomial_band(n: int, p: float, level: float = 0.95) -> tuple[int, int]:
    """Central interval of counts holding at least `level` of Binomial(n, p), 0 < p < 1; exact."""
    k = np.arange(n + 1)
    log_factorial = np.r_[0.0, np.cumsum(np.log(np.arange(1, n + 1)))]
    log_choose = log_factorial[n] - log_factorial - log_factorial[::-1]
    cumulative = np.cumsum(np.exp(log_choose + k * np.log(p) + (n - k) * np.log1p(-p)))
    low, high = np.searchsorted(cumulative, [(1 - level) / 2, (1 + level) / 2])
    return int(low), int(min(high, n))


def running_mean(
    x: np.ndarray, values: np.ndarray, points: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of `values`, shape (k, n), over windows of n/20 neighbours (at least 20) in sorted `x`.

    Returns the mean x, shape (points,), and the means, shape (k, points); fewer if n < points.
    """
    n = len(x)
    half = max(n // 20, 20) // 2
    at = np.unique(np.linspace(0, n - 1, points).astype(int))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, n)
    summed = np.cumsum(np.c_[np.zeros(len(values) + 1), np.vstack([x, values])], axis=1)
    means = (summed[:, high] - summed[:, low]) / (high - low)
    return means[0], means[1:]


def equal_groups(x: np.ndarray, most: int = 10, least: int = 50) -> list[np.ndarray]:
    """Indices of finite `x` in up to `most` groups of equal number, `least` or more in each."""
    order = np.argsort(x)[: int(np.isfinite(x).sum())]  # argsort puts NaN last
    return np.array_split(order, int(np.clip(len(order) // least, 1, most)))


def bootstrap_error(
    measure: Callable[[np.ndarray], float], values: np.ndarray, draws: int = 100
) -> float:
    """Standard deviation of `measure(values)` over resamples of `values`; the seed is fixed."""
    generator = np.random.default_rng(0)
    n = len(values)
    return float(np.std([measure(values[generator.integers(n, size=n)]) for _ in range(draws)]))


def chi2_density(x: np.ndarray, dof: np.ndarray) -> np.ndarray:
    """Density, at `x`, of chi^2 per degree of freedom, averaged over the objects' `dof`."""
    k = np.quantile(dof, np.linspace(0, 1, 101))[:, None] / 2
    log_gamma = np.array([[math.lgamma(float(v))] for v in k[:, 0]])
    return np.exp(k * np.log(k) + (k - 1) * np.log(x) - k * x - log_gamma).mean(0)


def chi2_quantile(dof: np.ndarray, sigma: float) -> float:
    """Of chi^2 per degree of freedom, at a normal's `sigma`; Wilson & Hilferty (1931)."""
    width = 2 / (9 * float(np.median(dof)))
    return (1 - width + sigma * width**0.5) ** 3
