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


class BandColumns(NamedTuple):
    """The two columns of a band; ``kind`` is "mag" or "flux"."""

    kind: str
    value: str
    error: str


def band_columns(
    names: Sequence[str], patterns: Mapping[str, Any], bands: Sequence[str]
) -> dict[str, BandColumns]:
    """Band -> its columns, of those of ``bands`` (if empty, of all bands) that are there.

    ``patterns`` holds ``mag`` and ``mag_err`` (or ``flux`` and ``flux_err``), column names in which
    "{band}" stands for a band, and names of single columns such as ``mag_u``. If there are both,
    the kind that covers more bands is taken; magnitudes, if they are equal.
    """
    by_kind = []
    for kind in ("mag", "flux"):
        value = patterns.get(kind, kind + "_{band}")
        error = patterns.get(f"{kind}_err", kind + "_err_{band}")
        columns = {}
        for band in bands or _discovered_bands(names, patterns, kind, value, error):
            v = patterns.get(f"{kind}_{band}", value.replace("{band}", band))
            e = patterns.get(f"{kind}_err_{band}", error.replace("{band}", band))
            # a column named explicitly that is not there is refused later, with near matches
            explicit = f"{kind}_{band}" in patterns or f"{kind}_err_{band}" in patterns
            if v in names or e in names or explicit:
                columns[band] = BandColumns(kind, v, e)
        by_kind.append(columns)
    return max(by_kind, key=len)  # of equals the first


def _discovered_bands(
    names: Sequence[str], patterns: Mapping[str, Any], kind: str, value: str, error: str
) -> list[str]:
    """Bands whose value and error columns both match the patterns, or that are named explicitly."""
    before, _, after = value.partition("{band}")
    bands = []
    for name in names:
        if name.startswith(before) and name.endswith(after):
            band = name[len(before) : len(name) - len(after)]
            if band and error.replace("{band}", band) in names:
                bands.append(band)
    explicit = (key.removeprefix(f"{kind}_") for key in patterns if key.startswith(f"{kind}_"))
    return [*dict.fromkeys([*bands, *(b for b in explicit if not b.startswith("err"))])]


def near_column(column: str, names: Sequence[str], taken: Sequence[str]) -> str | None:
    """A column outside ``taken`` whose name is similar to ``column``: probably a misnamed one."""
    free = {name.lower(): name for name in names if name not in taken}
    near = get_close_matches(column.lower(), free, 1, 0.8)
    return free[near[0]] if near else None


def flux_from_mag(
    columns: BandColumns, mag: np.ndarray, error: np.ndarray, zero_point: float, limit: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux and error (uJy) and whether it is detected, each (n,), from AB magnitudes.

    - NaN or -99, and 99 without a limit: not observed, flux and error are NaN.
    - 99 or inf: observed, not detected; flux 0, and as error the flux of the limiting magnitude
      (1 sigma): the error column's value where it is in `POSSIBLE_LIMITS`, else ``limit``.

    -99.9, -99.99 and -999 are as -99; 99.9 and 99.99 are as 99, also in single precision.
    ``zero_point`` is added to the magnitudes. Raises ``ValueError`` for impossible values.
    """
    undetected = equals_any(mag, NOT_DETECTED) | (mag == np.inf)
    brightest, faintest = POSSIBLE_LIMITS
    limits = np.where((error > brightest) & (error < faintest), error, limit)
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
    """The same from fluxes in uJy; NaN: not observed; zero or negative: not detected."""
    observed = ~np.isnan(flux)
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
