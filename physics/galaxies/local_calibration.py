"""Whether p(z) is calibrated for each kind of galaxy, not only for all of them together.

The PIT, the cumulative p(z) at the true redshift, is uniform for all galaxies together even if
p(z) is too narrow for faint ones and too wide for bright ones. After the local tests of Zhao et al.
(2021, arXiv:2102.10473) and of Cal-PIT (Dey et al. 2022, arXiv:2205.14568): the PIT is regressed on
the input, here on cells of equal number in magnitude and predicted redshift.
"""

import numpy as np
from scipy.special import chdtrc

MAX_GROUPS = 5  # of magnitude, and of redshift within each
LEAST_IN_CELL = 40  # objects: enough for means to be normal
ORDERS = 4  # of the Legendre polynomials: shift, width, skewness and tails of the PIT


def calibration_cells(mag: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Number of each object's cell, (n,): groups of equal number in magnitude, then in redshift.

    Cell ``g * i + j`` is redshift group j of magnitude group i, of g x g cells. ``z`` is predicted:
    a true redshift is no input, given which the PIT would be uniform. Objects without a magnitude
    count as the faintest. With fewer than `LEAST_IN_CELL` objects no cell is made: all are -1.
    """
    n = len(mag)
    groups = min(MAX_GROUPS, int(np.sqrt(n / LEAST_IN_CELL)))
    cells = np.full(n, -1)
    if groups:
        for i, group in enumerate(np.array_split(np.argsort(mag, kind="stable"), groups)):
            by_redshift = group[np.argsort(z[group], kind="stable")]
            for j, cell in enumerate(np.array_split(by_redshift, groups)):
                cells[cell] = groups * i + j
    return cells


def faintest(cells: np.ndarray) -> np.ndarray:
    """Objects of the faintest group of magnitude of `calibration_cells`, a mask (n,)."""
    groups = round(np.sqrt(cells.max() + 1))
    return cells >= groups * (groups - 1)


def local_pit(pit: np.ndarray, cells: np.ndarray) -> dict[str, float]:
    """Test of uniform PIT values (n,) in every cell of `calibration_cells`; empty without cells.

    - ``local_pit_p``: probability of deviations as large as these if every cell is calibrated, from
      the chi^2 of the means of `ORDERS` orthonormal polynomials in each (Neyman's smooth test).
      A large sample finds any p(z) wanting: then it is the next number that counts.
    - ``local_pit_rms``: root mean square deviation of the density of the PIT in the cells from 1,
      less that of noise. A p(z) that is everywhere too narrow by a tenth has 0.15.
    """
    known = cells >= 0
    if not known.any():
        return {}
    moments = legendre(pit[known].astype(float))
    cell, count = np.unique(cells[known], return_inverse=True, return_counts=True)[1:]
    sums = np.zeros((len(count), ORDERS))
    np.add.at(sums, cell, moments)
    statistic = float((sums**2 / count[:, None]).sum())
    freedom = sums.size
    return {
        "local_pit_p": float(chdtrc(freedom, statistic)),
        "local_pit_rms": float(np.sqrt(max(0.0, statistic - freedom) / count.sum())),
    }


def legendre(u: np.ndarray) -> np.ndarray:
    """Legendre polynomials of order 1 to `ORDERS`, orthonormal on 0 to 1, (n, ORDERS)."""
    order = np.arange(1, ORDERS + 1)
    return np.polynomial.legendre.legvander(2 * u - 1, ORDERS)[:, 1:] * np.sqrt(2 * order + 1)
