"""Fluxes of one band as catalogues hold them: what is missing, what is a limit, which unit it is.

Fluxes are f_nu in uJy. Missing are NaN, -99 and its like (which are NaN here already), a value
without an error, and a flux of 0 with an error of 0. Negative fluxes are measurements.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from orrery.datamodules.columns import FEW
from orrery.datamodules.photometry import BandColumns, flux_from_flux, flux_from_mag
from orrery.datamodules.values import refuse
from orrery.physics.galaxies.photometry import AB_ZERO_POINT

DETECTED = 3.0  # sigma
# AB: between these is the median of the detected galaxies of a catalogue
TYPICAL_MAGNITUDES = (14.0, 30.5)
MAX_LIMITS = 0.2  # share of a band's rows that equal their error, by chance
LIKE_MAGNITUDES = 2.0  # ratio of the 99% and 1% quantiles: fluxes of galaxies differ by more
LARGEST_COLOUR = 6.0  # mag: of neighbouring bands that both detect galaxies, their median
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
    measured = np.isfinite(value) if kind == "flux" else _is_magnitude(value)
    return np.asarray(measured & np.isnan(error))


def _is_magnitude(value: np.ndarray) -> np.ndarray:
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
    negative = _is_magnitude(mag) & (error < 0)
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


def question_of_unit(columns: BandColumns, value: np.ndarray, error: np.ndarray) -> str:
    """Question about a column without a unit whose values are unusual as AB magnitudes or uJy.

    ``value`` and ``error`` (n,) as they are understood, magnitudes or uJy; "" for usual ones.
    """
    low, high = TYPICAL_MAGNITUDES
    if columns.kind == "mag":
        magnitude = value[_is_magnitude(value)]
    else:
        with np.errstate(invalid="ignore", divide="ignore"):
            if columns.error_kind == "ivar":
                error = 1 / np.sqrt(error)
            detected = (error > 0) & (value > DETECTED * error)
        magnitude = AB_ZERO_POINT - 2.5 * np.log10(value[detected])
        text = _question_of_magnitudes(columns, value[detected])
        if text:
            return text
    if not len(magnitude):
        return ""
    median = float(np.median(magnitude))
    usual = (magnitude > low) & (magnitude < high)
    if low < median < high or (len(magnitude) < FEW and usual.any()):
        return ""
    if columns.kind == "mag":
        return (
            f"column '{columns.value}' is taken as AB magnitudes, and its median is {median:.4g}: "
            f"if they are fluxes, name them by data.columns.flux and data.columns.flux_err; if "
            f"they are magnitudes, say so: data.units.mag=mag"
        )
    return (
        f"column '{columns.value}' has no unit and is taken as uJy, in which the median detected "
        f"galaxy has {median:.4g} mag (AB). State the unit, data.units.flux=mJy (or mgy, for "
        f"maggies), or the AB magnitude of a flux of 1, such as EAZY's data.flux_zero_point=25; "
        f"data.flux_zero_point=23.9 confirms uJy"
    )


def detected_flux(columns: BandColumns, flux: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Fluxes (n,), NaN where they are not detected."""
    with np.errstate(invalid="ignore", divide="ignore"):
        sigma = 1 / np.sqrt(error) if columns.error_kind == "ivar" else error
        return np.where((sigma > 0) & (flux > DETECTED * sigma), flux, np.nan)


def question_of_colours(fluxes: Mapping[str, np.ndarray]) -> str:
    """Whether neighbouring bands are in different units; "" if their colours are those of galaxies.

    ``fluxes``: column -> detected fluxes (n,), NaN where they are not, from blue to red.
    """
    for (blue, first), (red, second) in pairwise(fluxes.items()):
        with np.errstate(invalid="ignore", divide="ignore"):
            colour = -2.5 * np.log10(first / second)
        known = colour[np.isfinite(colour)]
        if len(known) and abs(median := float(np.median(known))) > LARGEST_COLOUR:
            return (
                f"'{blue}' and '{red}' have no unit, and their median colour would be {median:.1f} "
                f"mag, a factor of {10 ** (0.4 * abs(median)):,.0f} in flux: are they in different "
                f"units? Each has its own by data.units.flux_<band>=nJy"
            )
    return ""


def _question_of_magnitudes(columns: BandColumns, flux: np.ndarray) -> str:
    """Whether fluxes are magnitudes: detected, all alike, and as many as magnitudes are."""
    low, high = TYPICAL_MAGNITUDES
    if len(flux) < FEW:
        return ""
    first, last = np.quantile(flux, [0.01, 0.99])
    if not (low < first and last < high and last < LIKE_MAGNITUDES * first):
        return ""
    return (
        f"column '{columns.value}' has no unit, is taken as uJy, and holds {first:.4g} to "
        f"{last:.4g}, as AB magnitudes do: if they are, name them by data.columns.mag and "
        f"data.columns.mag_err; data.flux_zero_point=23.9 confirms uJy"
    )


def looks_like_limits(flux: np.ndarray, error: np.ndarray) -> float:
    """Share of the observed rows whose flux equals its error, if that is no chance; or 0."""
    observed = np.isfinite(flux) & (error > 0)
    same = np.isclose(flux[observed], error[observed], rtol=SAME, atol=0)
    share = float(same.mean()) if len(same) else 0.0
    return share if share > MAX_LIMITS else 0.0
