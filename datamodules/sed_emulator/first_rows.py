"""Doubts about a catalogue's photometry that its first rows raise: which unit, and upper limits."""

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from orrery.datamodules.columns import FEW, CatalogueColumn
from orrery.datamodules.photometry import BandColumns
from orrery.datamodules.sed_emulator.photometry import SAME, is_magnitude
from orrery.physics.galaxies.photometry import AB_ZERO_POINT
from orrery.physics.sps.filters import load_filter, pivot_wavelength

if TYPE_CHECKING:
    from orrery.datamodules.sed_emulator import SedEmulatorData

DETECTED = 3.0  # sigma
# AB: between these is the median of the detected galaxies of a catalogue
TYPICAL_MAGNITUDES = (14.0, 30.5)
MAX_LIMITS = 0.2  # share of a band's rows that equal their error, by chance
LIKE_MAGNITUDES = 2.0  # ratio of the 99% and 1% quantiles: fluxes of galaxies differ by more
LARGEST_COLOUR = 6.0  # mag: of neighbouring bands that both detect galaxies, their median


def check_photometry(
    data: "SedEmulatorData",
    roles: Mapping[str, CatalogueColumn],
    values: Mapping[str, np.ndarray],
) -> None:
    """Raise where a unit is doubtful, and warn of what looks like limits.

    ``values``: role -> the first rows of its column.
    """
    if data.error_floor.any():
        floors = ", ".join(f"{floor:.3g}" for floor in np.unique(data.error_floor))
        data.print_once(
            f"{data.label}: errors are taken with {floors} of the flux in quadrature, by "
            f"data.error_floor"
        )
    unitless = []
    fluxes: dict[str, np.ndarray] = {}
    for band, columns in data.band_columns.items():
        role = f"{columns.kind}_{band}"
        value, error = values[role], values[f"{columns.kind}_{columns.error_kind}_{band}"]
        _warn_of_limits(data, columns, value, error)
        if roles[role].unit is not None or data.flux_zero_point is not None:
            continue
        if question := _question_of_unit(columns, value, error):
            raise ValueError(f"{data.label}: {question}")
        if columns.kind == "flux":
            unitless.append(columns.value)
            fluxes[band] = _detected_flux(columns, value, error)
    if question := _question_of_colours(_by_wavelength(data, fluxes)):
        raise ValueError(f"{data.label}: {question}")
    if unitless:
        data.warn_once(
            f"{data.label}: column {unitless[0]} and {len(unitless) - 1} more have no unit: "
            f"taken as uJy. data.flux_zero_point=25 is for catalogues of EAZY, 23.9 says that "
            f"they are uJy, and data.units.flux=mJy states another unit"
        )


def _by_wavelength(
    data: "SedEmulatorData", fluxes: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Column -> fluxes, of bands from blue to red; none where a filter's file is not here."""
    try:
        pivot = {band: pivot_wavelength(load_filter(data.bands[band])) for band in fluxes}
    except (ValueError, OSError):
        return {}
    return {data.band_columns[b].value: fluxes[b] for b in sorted(fluxes, key=pivot.__getitem__)}


def _warn_of_limits(
    data: "SedEmulatorData", columns: BandColumns, value: np.ndarray, error: np.ndarray
) -> None:
    if data.limit_sigma is not None or (columns.kind, columns.error_kind) != ("flux", "err"):
        return
    if share := _looks_like_limits(value, error):
        data.warn_once(
            f"{data.label}: '{columns.value}' equals its error in {share:.0%} of the rows, as "
            f"upper limits are written; they are taken as measured. If they are limits of 3 "
            f"sigma, set data.limit_sigma=3"
        )


def _question_of_unit(columns: BandColumns, value: np.ndarray, error: np.ndarray) -> str:
    """Question about a column without a unit whose values are unusual as AB magnitudes or uJy.

    ``value`` and ``error`` (n,) as they are understood, magnitudes or uJy; "" for usual ones.
    """
    low, high = TYPICAL_MAGNITUDES
    if columns.kind == "mag":
        magnitude = value[is_magnitude(value)]
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


def _detected_flux(columns: BandColumns, flux: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Fluxes (n,), NaN where they are not detected."""
    with np.errstate(invalid="ignore", divide="ignore"):
        sigma = 1 / np.sqrt(error) if columns.error_kind == "ivar" else error
        return np.where((sigma > 0) & (flux > DETECTED * sigma), flux, np.nan)


def _question_of_colours(fluxes: Mapping[str, np.ndarray]) -> str:
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


def _looks_like_limits(flux: np.ndarray, error: np.ndarray) -> float:
    """Share of the observed rows whose flux equals its error, if that is no chance; or 0."""
    observed = np.isfinite(flux) & (error > 0)
    same = np.isclose(flux[observed], error[observed], rtol=SAME, atol=0)
    share = float(same.mean()) if len(same) else 0.0
    return share if share > MAX_LIMITS else 0.0
