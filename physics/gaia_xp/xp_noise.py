"""Simulated errors of BP/RP coefficients and their correlations.

The coefficients of a star are a least-squares fit to its transits, so that their covariance follows
from the flux of each sample: hence the pattern of the correlations, which differs from star to
star. Their size, and the errors themselves, follow eleven real spectra of DR3 (GaiaXPy's examples,
G 7.6 to 18.3): the fit alone would make them twice as correlated.
"""

import numpy as np

from orrery.physics.gaia_xp import xp

# error of the first coefficient / coefficient, at G
FIRST_ERROR = {
    "bp": ((11.4, 13.1, 15.3, 17.8), (1.0e-3, 4.5e-4, 1.4e-3, 4.6e-3)),
    "rp": ((7.6, 13.4, 14.3, 18.3), (4.0e-4, 4.4e-4, 7.0e-4, 1.1e-2)),
}
N_FLAT = 10  # coefficients whose errors equal the first one's; beyond them errors fall
E_FOLD = {"bp": 22.0, "rp": 34.0}  # coefficients in which they fall by e; +- 40% between stars
N_LAST, LAST_FACTOR = 4, 0.25  # of the last coefficients errors are smaller by this factor
ERROR_SCATTER = 0.18  # of ln error from coefficient to coefficient
SHRINKAGE = {"bp": (0.25, 0.75), "rp": (0.2, 0.7)}  # range of the factor of the fit's correlations
DEGREES = (90, 900)  # of freedom of a patternless part: rms 1 / sqrt(degrees)
PIXELS = np.linspace(-9.8, 9.4, 118)  # of theta, half a sample each
FLOOR = 0.02  # of the largest flux: background and readout
VARIANCE_SCATTER = 1.0  # of ln variance along the spectrum, from missing transits


def errors(
    band: str, first: np.ndarray, n: int, magnitude: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Errors (batch, n) of coefficients whose first is ``first`` (batch,); G ``magnitude``."""
    at, ratio = FIRST_ERROR[band]
    base = np.exp(np.interp(magnitude, at, np.log(ratio))) * np.abs(first)
    order = np.arange(n)
    fall = E_FOLD[band] * np.exp(0.4 * random.normal(size=(len(first), 1)))
    profile = np.exp(-(order - N_FLAT).clip(0) / fall)
    profile[:, -N_LAST:] *= LAST_FACTOR
    scatter = np.exp(ERROR_SCATTER * random.normal(size=profile.shape))
    return base[:, None] * profile * scatter


def correlations(band: str, coefficients: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Correlation matrices (batch, n, n) of the errors of ``coefficients`` (batch, n)."""
    functions = xp.instrument()[band].functions
    design = functions @ xp.hermite(functions.shape[1], PIXELS)  # (n, pixels)
    photons = (coefficients @ design).clip(min=0)
    variance = photons / photons.max(1, keepdims=True) + FLOOR
    weight = np.exp(VARIANCE_SCATTER * _smooth(len(coefficients), random)) / variance
    fit = np.linalg.inv(np.einsum("np,bp,mp->bnm", design, weight, design, optimize=True))
    sigma = np.sqrt(np.einsum("bnn->bn", fit))
    shrinkage = random.uniform(*SHRINKAGE[band], (len(coefficients), 1, 1))
    matrix = shrinkage * fit / (sigma[:, :, None] * sigma[:, None, :])
    n = matrix.shape[1]
    matrix[:, range(n), range(n)] = 1
    low, high = (np.log(d) for d in DEGREES)
    degrees = np.exp(random.uniform(low, high, (len(matrix), 1, 1)))
    root = np.linalg.cholesky(matrix) @ _wishart_root(len(matrix), n, degrees, random)
    root /= np.sqrt(np.einsum("bnm,bnm->bn", root, root))[:, :, None]
    return root @ root.transpose(0, 2, 1)


def _wishart_root(
    batch: int, n: int, degrees: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Bartlett's factor (batch, n, n) of Wishart matrices of mean 1; ``degrees`` (batch, 1, 1)."""
    root = np.tril(random.normal(size=(batch, n, n)), -1)
    root[:, range(n), range(n)] = np.sqrt(random.chisquare(degrees[:, 0] - np.arange(n)))
    return root / np.sqrt(degrees)


def _smooth(batch: int, random: np.random.Generator, knots: int = 15) -> np.ndarray:
    """Normal numbers (batch, pixels) that vary along the spectrum on a scale of a 15th of it."""
    drawn = random.normal(size=(batch, knots))
    position = np.linspace(0, knots - 1, len(PIXELS))
    left = position.astype(int).clip(max=knots - 2)
    share = position - left
    mixed = drawn[:, left] * (1 - share) + drawn[:, left + 1] * share
    return mixed / np.hypot(share, 1 - share)


def pack(matrix: np.ndarray) -> np.ndarray:
    """The archive's order of correlations (batch, n (n - 1) / 2): the upper triangle by columns."""
    columns, rows = np.tril_indices(matrix.shape[1], -1)
    return matrix[:, rows, columns]


def unpack(packed: np.ndarray, n: int) -> np.ndarray:
    """The inverse of `pack`: (batch, n, n)."""
    matrix = np.zeros((len(packed), n, n), packed.dtype)
    columns, rows = np.tril_indices(n, -1)
    matrix[:, rows, columns] = matrix[:, columns, rows] = packed
    matrix[:, range(n), range(n)] = 1
    return matrix
