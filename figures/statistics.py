"""Uncertainties in figures: chance bands, running means, bootstrap errors.

scipy.stats is imported where it is used: alone it takes as long to import as all of matplotlib.
"""

from collections.abc import Callable

import numpy as np


def binomial_band(
    n: int | np.ndarray, p: float | np.ndarray, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Central interval of counts holding at least `level` of Binomial(n, p); each as n and p."""
    from scipy.stats import binom

    low, high = binom.interval(level, n, p)
    return low, high


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
    from scipy.stats import chi2

    k = np.quantile(dof, np.linspace(0, 1, 101))[:, None]
    return chi2.pdf(x, k, scale=1 / k).mean(0)


def chi2_quantile(dof: np.ndarray, sigma: float) -> float:
    """Of chi^2 per degree of freedom, of the median `dof`, at a normal's `sigma`."""
    from scipy.stats import chi2, norm

    k = np.median(dof)
    return float(chi2.ppf(norm.cdf(sigma), k) / k)
