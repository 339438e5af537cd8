"""Fluxes of one band as catalogues hold them: what is missing, and what is an upper limit.

Fluxes are f_nu in uJy. Missing are NaN, -99 and its like (which are NaN here already), a value
without an error, and a flux of 0 with an error of 0. Negative fluxes are measurements.
"""

from typing import NamedTuple

import numpy as np

from orrery.datamodules.photometry import BandColumns, flux_from_flux, flux_from_mag
from orrery.datamodules.values import refuse

SAME = 1e-6  # relative: a flux that is its error, also in single precision


class Measured(NamedTuple):
    """Of one band, (n,) each: flux and its error, uJy, NaN where not observed.

    Where ``is_limit``, flux is an upper limit and ``error`` its standard deviation.
    """

    flux: np.ndarray
    error: np.ndarray
    is_limit: np.ndarray


def lacks_error(kind: str, value: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Mask of the values whose error is not known: they are taken as not observed."""
    measured = np.isfinite(value) if kind == "flux" else is_magnitude(value)
    return np.asarray(measured & np.isnan(error))


def is_magnitude(value: np.ndarray) -> np.ndarray:
    """Mask of what is neither 99, not detected, nor -99, not observed."""
    return np.asarray(np.abs(value) < 90)


def from_fluxes(
    columns: BandColumns,
    flux: np.ndarray,
    error: np.ndarray,
    zero_point: float,
    limit_sigma: float | None,
) -> Measured:
    """Of fluxes and errors, uJy, or inverse variances; ``zero_point``, mag, is added.

    With ``limit_sigma``, a negative error, or one that equals the flux, makes a limit of that many
    sigma: of the flux, or of the error's amount where the flux is not above 0. A negative error
    that differs from the flux in its amount is sigma itself, as in CIGALE. Raises ``ValueError``
    for impossible errors, and without ``limit_sigma`` for negative ones.
    """
    if columns.error_kind == "ivar":
        flux, error, _ = flux_from_flux(columns, flux, error, zero_point)
        return Measured(flux, error, np.zeros(len(flux), bool))
    missing = np.isnan(flux) | np.isnan(error) | ((flux == 0) & (error == 0))
    size = np.abs(error)
    same = np.isclose(flux, size, rtol=SAME, atol=0)
    is_limit = np.zeros(len(flux), bool)
    if limit_sigma is None:
        _refuse_negative(columns, error, ~missing & (error < 0))
    else:
        is_limit = ~missing & ((error < 0) | (same & (flux > 0)))
        limit = np.where(flux > 0, flux, size)
        sigma = np.where(same | (flux <= 0), limit / limit_sigma, size)
        flux, error = np.where(is_limit, limit, flux), np.where(is_limit, sigma, error)
    flux, error, _ = flux_from_flux(columns, np.where(missing, np.nan, flux), error, zero_point)
    return Measured(flux, error, is_limit)


def from_magnitudes(
    columns: BandColumns,
    mag: np.ndarray,
    error: np.ndarray,
    zero_point: float,
    limit: float | np.ndarray,
    limit_sigma: float | None,
) -> Measured:
    """Of AB magnitudes and errors; see `flux_from_mag` for 99 and -99.

    What is not detected, 99, has flux 0 and the flux of its limiting magnitude as error. With
    ``limit_sigma`` it is a limit of that many sigma, and so is a magnitude with a negative error.
    """
    mag = np.where(lacks_error("mag", mag, error), np.nan, mag)
    negative = is_magnitude(mag) & (error < 0)
    if limit_sigma is None:
        _refuse_negative(columns, error, negative)
    usable = np.where(negative, 1.0, error)
    flux, sigma, detected = flux_from_mag(columns, mag, usable, zero_point, limit)
    if limit_sigma is None:
        return Measured(flux, sigma, np.zeros(len(flux), bool))
    undetected = np.isfinite(flux) & (detected == 0)
    is_limit = undetected | negative
    flux = np.where(undetected, sigma, flux)
    return Measured(flux, np.where(is_limit, flux / limit_sigma, sigma), is_limit)


def _refuse_negative(columns: BandColumns, error: np.ndarray, negative: np.ndarray) -> None:
    refuse(
        negative,
        columns.error,
        error,
        "is negative, which CIGALE and others write for an upper limit",
        "errors above 0",
        f"if '{columns.value}' is a limit of 3 sigma there, set data.limit_sigma=3; otherwise set "
        f"'{columns.value}' to NaN (not observed)",
    )
