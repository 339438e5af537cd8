"""Broad-band photometry of a catalogue: its columns, and the meaning of special values."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
import torch

from orrery.datamodules.values import equals_any, refuse
from orrery.physics.galaxies.photometry import mag_to_flux

# 99 and -99 are the convention of BPZ, which RAIL follows; the others are how surveys vary it.
NOT_DETECTED, NOT_OBSERVED = (99.0, 99.9, 99.99), (-99.0, -99.9, -99.99, -999.0)
# The error column of a non-detection may hold its limiting magnitude; other values are sentinels.
POSSIBLE_LIMITS = (10.0, 90.0)
POSSIBLE_MAGNITUDES = (-5.0, 45.0)
NO_BAND = "none"  # data.columns.mag_u=none: the band was not observed


class BandColumns(NamedTuple):
    """The columns of a band; ``kind`` is "mag" or "flux".

    ``error_kind``: "err", or "ivar" where the column of errors holds inverse variances of fluxes.
    ``limit``: the column of limiting magnitudes of non-detections, if there is one.
    """

    kind: str
    value: str
    error: str
    error_kind: str = "err"
    limit: str = ""


KINDS = (("mag", "err"), ("flux", "err"), ("flux", "ivar"))  # of values, and of their errors
FLUX_FIRST = (("flux", "err"), ("flux", "ivar"), ("mag", "err"))


def band_columns(
    names: Sequence[str],
    patterns: Mapping[str, Any],
    bands: Sequence[str],
    kinds: Sequence[tuple[str, str]] = KINDS,
) -> dict[str, BandColumns]:
    """Band -> its columns, of those of ``bands`` (if empty, of all bands) that are there.

    ``patterns`` holds ``mag`` and ``mag_err`` (or ``flux`` and ``flux_err`` or ``flux_ivar``) and
    ``mag_lim``, column names in which "{band}" stands for a band, in small or in capital letters,
    and names of single columns such as ``mag_u``, of which `NO_BAND` is none. The kind that covers
    more bands is taken; of equals the first of ``kinds``.
    """
    found = [_columns_of(names, patterns, bands, *kind) for kind in kinds]

    def complete(columns: Mapping[str, BandColumns]) -> int:
        return sum(c.value in names and c.error in names for c in columns.values())

    return max(found, key=lambda columns: (complete(columns), len(columns)))  # of equals the first


def column_of_band(names: Sequence[str], patterns: Mapping[str, Any], role: str, band: str) -> str:
    """The column of ``role``, such as mag_err, in ``band``: that of `band_columns`.

    As named by the user, or by the pattern with the band as it is, or in other letters.
    """
    if f"{role}_{band}" in patterns:
        return str(patterns[f"{role}_{band}"])
    pattern = str(patterns.get(role, role + "_{band}"))
    spelled = [pattern.replace("{band}", b) for b in (band, band.upper(), band.lower())]
    return next((name for name in spelled if name in names), spelled[0])


def _columns_of(
    names: Sequence[str], patterns: Mapping[str, Any], bands: Sequence[str], kind: str, error: str
) -> dict[str, BandColumns]:
    error_role = f"{kind}_{error}"

    def column(role: str, band: str) -> str:
        return column_of_band(names, patterns, role, band)

    columns = {}
    for band in bands or _discovered_bands(names, patterns, kind, error_role):
        # a column named explicitly that is not there is refused later, with near matches
        explicit = f"{kind}_{band}" in patterns or f"{error_role}_{band}" in patterns
        value, of_error, limit = (column(r, band) for r in (kind, error_role, f"{kind}_lim"))
        here = of_error in names if error == "ivar" else value in names or of_error in names
        if value != NO_BAND and (here or explicit):
            limit = limit if limit in names and kind == "mag" else ""
            columns[band] = BandColumns(kind, value, of_error, error, limit)
    return columns


def _discovered_bands(
    names: Sequence[str], patterns: Mapping[str, Any], kind: str, error_role: str
) -> list[str]:
    """Bands whose value and error columns both match the patterns, or that are named explicitly."""
    value = str(patterns.get(kind, kind + "_{band}"))
    error = str(patterns.get(error_role, error_role + "_{band}"))
    before, _, after = value.partition("{band}")
    bands = []
    for name in names:
        if name.startswith(before) and name.endswith(after):
            band = name[len(before) : len(name) - len(after)]
            if band and error.replace("{band}", band) in names:
                bands.append(band)
    explicit = (key.removeprefix(f"{kind}_") for key in patterns if key.startswith(f"{kind}_"))
    others = ("err", "ivar", "lim")  # quantities, not bands
    return [*dict.fromkeys([*bands, *(b for b in explicit if not b.startswith(others))])]


def near_column(column: str, names: Sequence[str], taken: Sequence[str]) -> str | None:
    """A column outside ``taken`` whose name is similar to ``column``: probably a misnamed one."""
    free = {name.lower(): name for name in names if name not in taken}
    near = get_close_matches(column.lower(), free, 1, 0.8)
    return free[near[0]] if near else None


def is_limit(mag: np.ndarray) -> np.ndarray:
    """Mask of the values that can be limiting magnitudes."""
    return (mag > POSSIBLE_LIMITS[0]) & (mag < POSSIBLE_LIMITS[1])


def flux_from_mag(
    columns: BandColumns,
    mag: np.ndarray,
    error: np.ndarray,
    zero_point: float,
    limit: float | np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux and error (uJy) and whether it is detected, each (n,), from AB magnitudes.

    - NaN or -99, and 99 without a limit: not observed, flux and error are NaN.
    - 99 or inf: observed, not detected; flux 0, and as error the flux of the limiting magnitude
      (1 sigma): the error column's value where it is in `POSSIBLE_LIMITS`, else ``limit``, of all
      objects or (n,).

    -99.9, -99.99 and -999 are as -99; 99.9 and 99.99 are as 99, also in single precision.
    ``zero_point`` is added to the magnitudes. Raises ``ValueError`` for impossible values.
    """
    undetected = equals_any(mag, NOT_DETECTED) | (mag == np.inf)
    limits = np.where(is_limit(error), error, limit)
    absent = np.isnan(mag) | equals_any(mag, NOT_OBSERVED) | (undetected & ~np.isfinite(limits))
    measured = ~absent & ~undetected
    low, high = POSSIBLE_MAGNITUDES
    refuse(
        measured & ~((mag > low) & (mag < high)),
        columns.value,
        mag,
        "is not a valid magnitude",
        f"{low:g} to {high:g}, 99 (99.9, 99.99) where not detected, NaN or -99 (-99.9, -99.99, "
        "-999) where not observed",
        "replace other sentinels by these",
    )
    _check_errors(columns, error, measured)
    nan = np.nan
    flux, flux_err = mag_to_flux(
        torch.from_numpy(np.where(measured, mag + zero_point, nan)),
        torch.from_numpy(np.where(measured, error, nan)),
    )
    limit_flux, _ = mag_to_flux(torch.from_numpy(limits + zero_point), torch.tensor(1.0))
    limited = undetected & ~absent
    return (
        np.where(limited, 0.0, flux.numpy()),
        np.where(limited, limit_flux.numpy(), flux_err.numpy()),
        measured.astype(float),
    )


def flux_from_flux(
    columns: BandColumns, flux: np.ndarray, error: np.ndarray, zero_point: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same from fluxes in uJy; NaN: not observed; zero or negative: not detected.

    Where ``error`` holds inverse variances, 0 means not observed, too.
    """
    observed = ~np.isnan(flux)
    if columns.error_kind == "ivar":
        refuse(
            observed & ~((error >= 0) & np.isfinite(error)),
            columns.error,
            error,
            "is not a valid inverse variance",
            "0 (not observed) or above",
            "correct those rows",
        )
        observed &= error > 0
        flux = np.where(observed, flux, np.nan)
        error = 1 / np.sqrt(np.where(observed, error, np.nan))
    refuse(
        np.isinf(flux),
        columns.value,
        flux,
        "is not a valid flux",
        "finite numbers or NaN",
        "correct those rows, or set them to NaN (not observed)",
    )
    _check_errors(columns, error, observed)
    scale = 10 ** (-0.4 * zero_point)
    error = np.where(observed, error * scale, np.nan)
    return flux * scale, error, (observed & (flux > 0)).astype(float)


def _check_errors(columns: BandColumns, error: np.ndarray, measured: np.ndarray) -> None:
    refuse(
        measured & ~((error > 0) & np.isfinite(error)),
        columns.error,
        error,
        f"is not a valid error of a measured {columns.kind}",
        "finite numbers above 0",
        f"set '{columns.value}' of those rows to NaN (not observed), or give the error a floor",
    )
