"""The correlations of the errors of sampled spectra, which the archive does not give.

A sampled spectrum is a linear function of the coefficients, which are a least-squares fit to the
star's transits. Errors of a spectrum of 343 samples therefore have about 70 degrees of freedom. The
pattern follows from the functions of the bands and the photon noise, and hardly differs from star
to star: of the residuals of 20 principal components of 400 real stars the correlations between
samples correlate with those predicted here by 0.80; black bodies of 4,000 or 8,000 K give the same.
"""

import numpy as np

from orrery.physics.gaia_xp import xp
from orrery.physics.gaia_xp.xp_noise import FLOOR, PIXELS

TEMPERATURE = 5000.0  # K, of the black body whose photon noise the fit is weighted by
MIN_VARIANCE = 0.1  # of a mode, of errors of variance 1: those below it are no noise of a fit


def covers(wavelength: np.ndarray) -> bool:
    """Whether `error_modes` knows the errors of spectra at ``wavelength`` (k,), nm."""
    low, high = xp.BP_RANGE[0], xp.RP_RANGE[1]
    return bool(len(wavelength) > 1 and (wavelength >= low).all() and (wavelength <= high).all())


def error_correlations(wavelength: np.ndarray) -> np.ndarray:
    """Correlations (k, k) of the errors of spectra at ``wavelength`` (k,), nm."""
    fine = np.arange(320.0, 1101.0, 2.0)
    black_body = fine**-5.0 / np.expm1(1.4388e7 / (fine * TEMPERATURE))
    covariance = np.zeros((len(wavelength), len(wavelength)))
    for band, instrument in xp.instrument().items():
        functions = instrument.functions
        design = functions @ xp.hermite(functions.shape[1], PIXELS)  # (n, pixels)
        photons = (xp.projection(band, fine) @ black_body @ design).clip(min=0)
        variance = photons / photons.max() + FLOOR
        fit = np.linalg.inv((design / variance) @ design.T)
        matrix = xp.sampling(band, wavelength) * xp.overlap(band, wavelength)
        covariance += matrix.T @ fit @ matrix
    sigma = np.sqrt(np.diag(covariance))
    return covariance / sigma[:, None] / sigma


def error_modes(wavelength: np.ndarray) -> np.ndarray:
    """W (modes, k): W r are independent and of variance 1, of errors r in units of their sizes."""
    variance, modes = np.linalg.eigh(error_correlations(wavelength))
    kept = variance > MIN_VARIANCE
    return (modes[:, kept] / np.sqrt(variance[kept])).T[::-1].copy()
