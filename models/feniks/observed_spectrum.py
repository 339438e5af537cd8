"""One observed spectrum, and its good pixels, averaged in wider ones."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.physics.sps.cosmology import LIGHT_SPEED
from orrery.physics.sps.emission import FWHM, instrument_sigma

REBINNED = 240.0  # km/s: wider pixels lose what galaxies of 200 km/s show


class Spectrum(NamedTuple):
    """One observed spectrum.

    ``wavelength`` (m,): Angstrom in vacuum, float64, rising; ``flux`` and ``error`` (m,): f_nu,
    uJy; ``good`` (m,): pixels that count; ``resolution`` (): wavelength over FWHM; ``covariance``
    (m, m), uJy^2, of all errors; None: pixels are independent.
    """

    wavelength: Tensor
    flux: Tensor
    error: Tensor
    good: Tensor
    resolution: Tensor
    covariance: Tensor | None = None


def usable(spectrum: Spectrum) -> Spectrum:
    """The good pixels alone."""
    good = spectrum.good
    return Spectrum(
        spectrum.wavelength[good],
        spectrum.flux[good],
        spectrum.error[good],
        good[good],
        spectrum.resolution,
        None if spectrum.covariance is None else spectrum.covariance[good][:, good],
    )


def rebinned(spectrum: Spectrum, width: float = REBINNED) -> Spectrum:
    """Good pixels, averaged with their weights in bins of at most ``width``, km/s.

    The width of a bin counts as a loss of resolution: the variance of a box is width^2 / 12.
    """
    spectrum = usable(spectrum)
    log_wavelength = spectrum.wavelength.double().log()
    pixel = float(log_wavelength.diff().median()) * LIGHT_SPEED
    n = int(width / pixel)
    if n < 2:
        return spectrum
    bins = ((log_wavelength - log_wavelength[0]) / (n * pixel / LIGHT_SPEED) + 1e-6).long()
    weight = 1 / spectrum.error.double().square()
    size = int(bins[-1]) + 1

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(size).index_add(0, bins, values)

    total = summed(weight)
    kept = total > 0
    total = total[kept]
    error, covariance = total.rsqrt(), None
    if spectrum.covariance is not None:
        mean = torch.zeros(size, len(weight), dtype=torch.float64)
        mean[bins, torch.arange(len(weight))] = weight
        mean = mean[kept] / total[:, None]
        covariance = mean @ spectrum.covariance.double() @ mean.T
        error = covariance.diagonal().sqrt()
    sigma = math.hypot(instrument_sigma(float(spectrum.resolution)), n * pixel / math.sqrt(12))
    return Spectrum(
        summed(weight * spectrum.wavelength)[kept] / total,
        summed(weight * spectrum.flux)[kept] / total,
        error,
        torch.ones_like(total, dtype=torch.bool),
        spectrum.resolution.new_tensor(LIGHT_SPEED / (FWHM * sigma)),
        covariance,
    )
