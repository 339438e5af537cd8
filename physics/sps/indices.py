"""Indices of spectra: the break at 4,000 Angstrom and the absorption line H delta.

Bands are published in air, and taken at the same wavelengths in vacuum.
"""

import torch
from torch import Tensor

from orrery.physics.sps.population import LIGHT, in_vacuum

D4000 = ((3850.0, 3950.0), (4000.0, 4100.0))  # Balogh et al. (1999, ApJ 527, 54), air
# Worthey & Ottaviani (1997, ApJS 111, 377), H delta_A: the line, and the continuum on both sides
H_DELTA = ((4083.50, 4122.25), (4041.60, 4081.50), (4128.50, 4161.00))


def d4000(wavelength: Tensor, l_nu: Tensor) -> Tensor:
    """D_n(4000) (n,): mean L_nu redward of the break over that blueward.

    ``wavelength`` (pixels,): at rest in vacuum, Angstrom, rising; ``l_nu`` (n, pixels).
    """
    blue, red = (_mean(wavelength, l_nu, *band) for band in D4000)
    return red / blue


def h_delta(wavelength: Tensor, l_nu: Tensor) -> Tensor:
    """Equivalent width of H delta_A, Angstrom, (n,): positive in absorption.

    Arguments as of `d4000`.
    """
    flux = l_nu * (LIGHT / wavelength.square())
    line, blue, red = H_DELTA
    levels = [_mean(wavelength, flux, *band) for band in (blue, red)]
    middles = [0.5 * float(_edges(*band).sum()) for band in (blue, red)]
    slope = (levels[1] - levels[0]) / (middles[1] - middles[0])
    continuum = levels[0][:, None] + slope[:, None] * (wavelength - middles[0])
    low, high = _edges(*line).tolist()
    return _mean(wavelength, 1 - flux / continuum, *line) * (high - low)


def _edges(low: float, high: float) -> Tensor:
    return in_vacuum(torch.tensor([low, high], dtype=torch.float64))


def _mean(wavelength: Tensor, values: Tensor, low: float, high: float) -> Tensor:
    """Mean over wavelength (n,) of values (n, pixels) between two wavelengths in air."""
    low, high = _edges(low, high).tolist()
    middle = 0.5 * (wavelength[1:] + wavelength[:-1])
    edges = torch.cat([wavelength[:1], middle, wavelength[-1:]])
    covered = edges[1:].clamp_max(high) - edges[:-1].clamp_min(low)
    weight = covered.clamp_min(0)
    return values @ (weight / weight.sum())
