"""The photometric-redshift scores of `benchmarks.zephyr`, in plain numpy.

They share no code with the metrics of the zoo itself, so that one checks the other. Every method is
scored by its p(z) on the same grid, a row per object.
"""

import numpy as np
from numpy.typing import NDArray

from orrery.physics.galaxies.redshift_scores import OUTLIER

Array = NDArray[np.float64]

# p(z) is mixed with this much of a uniform density for the log score, so that one object with
# p(z_true) = 0 does not make the mean infinite.
UNIFORM_FLOOR = 1e-3


def photoz_metrics(pdf: Array, grid: Array, redshift: Array) -> dict[str, float]:
    """Score p(z) against the true redshifts.

    Args:
        pdf: (n, g), density on `grid`, non-negative; it is normalised here.
        grid: (g,), redshift, rising.
        redshift: (n,), the truth, inside the grid.

    Returns:
        `bias`, `nmad`, `outlier_fraction` of the median of p(z), with dz / (1 + z);
        `crps` (in redshift), `nll` (nats, of 0.999 p + 0.001 uniform) and `cde_loss` (Izbicki & Lee
        2017, eq. 7), lower is better; `pit_ks`, distance of the probability integral transforms
        from uniform; `coverage_68` and `coverage_95` of the central intervals.

    Raises:
        ValueError: if shapes differ, p(z) is not a density, or a truth lies off the grid.
    """
    pdf, grid, z = np.asarray(pdf, float), np.asarray(grid, float), np.asarray(redshift, float)
    if pdf.shape != (len(z), len(grid)):
        raise ValueError(f"p(z) has shape {pdf.shape}, expected {(len(z), len(grid))}")
    if not np.isfinite(pdf).all() or (pdf < 0).any():
        raise ValueError("p(z) holds negative, infinite or NaN values")
    if z.min() < grid[0] or z.max() > grid[-1]:
        raise ValueError(
            f"true redshifts {z.min()}..{z.max()} leave the grid {grid[0]}..{grid[-1]}: widen it"
        )
    cell = np.diff(grid)
    cdf = np.zeros_like(pdf)
    np.cumsum(0.5 * (pdf[:, 1:] + pdf[:, :-1]) * cell, axis=1, out=cdf[:, 1:])
    norm = cdf[:, -1:]
    if (norm <= 0).any():
        raise ValueError(f"p(z) of {int((norm <= 0).sum())} objects is zero on the whole grid")
    pdf, cdf = pdf / norm, cdf / norm

    row = np.arange(len(z))
    k = np.clip(np.searchsorted(grid, z, side="right") - 1, 0, len(grid) - 2)  # cell of the truth
    t = (z - grid[k]) / cell[k]
    p_true = (1 - t) * pdf[row, k] + t * pdf[row, k + 1]
    pit = (1 - t) * cdf[row, k] + t * cdf[row, k + 1]
    dz = (_median(cdf, grid) - z) / (1 + z)
    floored = (1 - UNIFORM_FLOOR) * p_true + UNIFORM_FLOOR / (grid[-1] - grid[0])
    squared = ((pdf[:, 1:] ** 2 + pdf[:, :-1] ** 2) * 0.5 * cell).sum(axis=1)
    return {
        "bias": float(np.median(dz)),
        "nmad": float(1.4826 * np.median(np.abs(dz - np.median(dz)))),
        "outlier_fraction": float((np.abs(dz) > OUTLIER).mean()),
        "crps": float(_crps(cdf, cell, k, t, pit).mean()),
        "nll": float(-np.log(floored).mean()),
        "cde_loss": float((squared - 2 * p_true).mean()),
        "pit_ks": _distance_from_uniform(pit),
        "coverage_68": float((np.abs(pit - 0.5) <= 0.34).mean()),
        "coverage_95": float((np.abs(pit - 0.5) <= 0.475).mean()),
    }


def _median(cdf: Array, grid: Array) -> Array:
    """Where each CDF (n, g) crosses one half, linear inside the cell: (n,)."""
    row = np.arange(len(cdf))
    k = np.clip((cdf < 0.5).sum(axis=1) - 1, 0, len(grid) - 2)
    low, high = cdf[row, k], cdf[row, k + 1]
    t = np.clip((0.5 - low) / np.maximum(high - low, 1e-300), 0, 1)
    return grid[k] + t * (grid[k + 1] - grid[k])


def _crps(cdf: Array, cell: Array, k: NDArray[np.intp], t: Array, pit: Array) -> Array:
    """Integral of (F(z) - [z > truth])^2, exact for a CDF that is linear within each cell: (n,)."""
    row = np.arange(len(cdf))
    left = _square(cdf[:, :-1], cdf[:, 1:]) * cell  # where the step is still zero
    right = _square(1 - cdf[:, :-1], 1 - cdf[:, 1:]) * cell
    before = np.arange(cdf.shape[1] - 1) < k[:, None]
    after = np.arange(cdf.shape[1] - 1) > k[:, None]
    inside = _square(cdf[row, k], pit) * t + _square(1 - pit, 1 - cdf[row, k + 1]) * (1 - t)
    return (left * before).sum(axis=1) + (right * after).sum(axis=1) + inside * cell[k]


def _square(a: Array, b: Array) -> Array:
    """Mean of the square of a line from a to b."""
    return (a * a + a * b + b * b) / 3


def _distance_from_uniform(pit: Array) -> float:
    """Kolmogorov-Smirnov distance of (n,) values from the uniform law on 0..1."""
    ordered, n = np.sort(pit), len(pit)
    return float(max((np.arange(1, n + 1) / n - ordered).max(), (ordered - np.arange(n) / n).max()))
