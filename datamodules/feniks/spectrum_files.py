"""Spectra of galaxies from files, as astronomers write them.

FITS tables and images, ECSV, CSV, text, the .spec of FAST++, HDF5: whatever is in them becomes
f_nu in uJy with errors at wavelengths in vacuum, or an error that says what to do.
"""

import os
import re
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from astropy import units as u

from orrery.datamodules.feniks.spectrum_columns import (
    BRIGHT,
    EXAMPLE,
    FAINT,
    SpectrumSettings,
    is_logarithm,
    length_unit,
    missing,
    parts_of_name,
    read_unit,
    to_microjansky,
)
from orrery.datamodules.feniks.spectrum_covariance import covariance_of, with_good_pixels
from orrery.datamodules.feniks.spectrum_formats import WCS, Columns, columns_of_file
from orrery.datamodules.feniks.spectrum_resolution import resolution_of, with_pixels
from orrery.datamodules.values import LARGEST, REPEATED, equals_any, repeated_sentinels
from orrery.physics.galaxies.photometry import AB_ZERO_POINT
from orrery.physics.sps.population import in_vacuum
from orrery.tables.columns import without_maggies

FEWEST = 20  # good pixels of a spectrum
LOWEST_SIGNAL, HIGHEST_SIGNAL = 0.02, 3000.0  # over noise, of the median pixel
SCATTER_WINDOW = 101  # pixels, in which noise is taken as constant

Say = Callable[[str], None]


class ObservedSpectrum(NamedTuple):
    """Of one galaxy, with m pixels in rising order; ``flux`` is 0 and ``error`` 1 where not good.

    ``wavelength`` (m,): Angstrom in vacuum, middle of pixels; ``flux`` and ``error`` (m,): f_nu,
    uJy; ``good`` (m,): bool; ``resolution``: wavelength over FWHM, of spectrograph and pixels;
    ``covariance`` (m, m), uJy^2, of all errors, if the file has it.
    """

    wavelength: np.ndarray
    flux: np.ndarray
    error: np.ndarray
    good: np.ndarray
    resolution: float
    covariance: np.ndarray | None = None


def read_spectra(
    path: str | os.PathLike[str], settings: SpectrumSettings | None = None, say: Say = warnings.warn
) -> dict[str, ObservedSpectrum]:
    """Spectra of a file by the galaxy's id; of a file with one, which names none, by "".

    Several are in a .spec of FAST++, with columns F1 and E1 of the galaxy 1, and in a table with
    arrays per row, with a column of ids.
    """
    path, settings = os.fspath(path), settings or SpectrumSettings()
    said: dict[str, None] = {}
    spectra = {}
    for key, columns in columns_of_file(path, settings).items():
        label = f"{path}, spectrum of {key}" if key else path
        spectra[key] = observed(columns, settings, label, said.setdefault)
    for text in said:
        say(text)
    return spectra


def observed(columns: Columns, settings: SpectrumSettings, path: str, say: Say) -> ObservedSpectrum:
    """A spectrum of its columns. Raises ``ValueError`` that says what is wrong with which pixel."""
    matrix = columns.find("covariance", settings, path)
    for name in (name for name in columns.values if name != matrix):
        if columns.values[name].ndim != 1 and columns.values[name].dtype.kind in "fiu":
            raise ValueError(
                f"{path}: column '{name}' has the shape {columns.values[name].shape}; expected a "
                f"number for each pixel"
            )
    edges, name = _edges(columns, settings, path, say)
    middle = edges.mean(1)
    kept = np.isfinite(middle) & (middle > 0)  # padding has no wavelength
    order = _rising(middle, np.flatnonzero(kept), path)
    edges, middle = edges[order], middle[order]
    in_air = _in_air(columns, settings, name, say)
    flux, error, good, covariance = _measured(columns, settings, middle, order, path, say)
    if in_air:
        edges = in_vacuum(torch.from_numpy(edges)).numpy()
        middle = edges.mean(1)
    low, high = settings.wavelength_range
    inside = (middle >= low) & (middle <= high)
    _refuse_other_bands(middle, inside, settings, path)
    first, last = np.flatnonzero(inside)[[0, -1]]
    part = slice(first, last + 1)
    middle, edges, flux, error, good = (x[part] for x in (middle, edges, flux, error, good))
    if settings.error_from == "scatter":
        error = noise_of_scatter(np.where(good, flux, np.nan))
        good = good & np.isfinite(error) & (error > 0)
    _refuse_few(good, flux, order[part], path)
    _refuse_unusual(flux[good], path)
    _ask_about_noise(flux[good] / error[good], say)
    if covariance is not None:
        covariance = with_good_pixels(covariance[part, part], good, path)
    width = np.median(np.diff(edges, axis=1)[good, 0])
    line_spread = resolution_of(columns.grating, settings.resolution, path, say)
    return ObservedSpectrum(
        middle,
        np.where(good, flux, 0.0),
        np.where(good, error, 1.0),
        good,
        with_pixels(line_spread, float(np.median(middle[good])), float(width)),
        covariance,
    )


def _numbers(columns: Columns, name: str, path: str) -> np.ndarray:
    values = columns.values[name]
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{path}: column '{name}' holds what is no number: '{values[0]}'")
    return np.asarray(values, float)


def _edges(
    columns: Columns, settings: SpectrumSettings, path: str, say: Say
) -> tuple[np.ndarray, str]:
    """Edges of pixels (m, 2), Angstrom, and the name of the column of wavelengths."""
    low, high = (columns.find(role, settings, path) for role in ("low", "high"))
    name = columns.find("wavelength", settings, path)
    if low and high and name is None:
        both = np.stack([_lengths(columns, n, settings, path, say) for n in (low, high)], 1)
        wrong = both[:, 0] >= both[:, 1]
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"{path}: '{low}' is not below '{high}' in row {row}, counted from 0: "
                f"{both[row, 0]:g} and {both[row, 1]:g} Angstrom; correct them"
            )
        return both, low
    if name is None:
        raise missing("wavelength", list(columns.values), path)
    middle = _lengths(columns, name, settings, path, say)
    usable = np.isfinite(middle) & (middle > 0)
    if usable.sum() < 2:
        raise ValueError(f"{path}: column '{name}' has no wavelengths above 0")
    width = np.full(len(middle), np.nan)
    width[usable] = np.abs(np.gradient(middle[usable]))
    return np.stack([middle - width / 2, middle + width / 2], 1), name


def _lengths(
    columns: Columns, name: str, settings: SpectrumSettings, path: str, say: Say
) -> np.ndarray:
    """A column of wavelengths in Angstrom; NaN where they are not numbers above 0."""
    values = _numbers(columns, name, path)
    stated = settings.units.get("wavelength")
    text = str(stated or columns.units.get(name) or "")
    if match := re.fullmatch(r"(?i)\s*(?:log10|log|dex)\s*\(?\s*([a-zÅ]*)\s*\)?\s*", text):
        values, text = 10**values, match[1] or "Angstrom"
    elif is_logarithm(name) and not stated:
        values, text = 10**values, text or "Angstrom"
        say(f"'{name}' is taken as log10 of wavelengths in {text}")
    usable = np.isfinite(values) & (values > 0)
    if not usable.any():
        raise ValueError(f"{path}: column '{name}' has no wavelengths above 0")
    unit, said = length_unit(text or None, values[usable], name, path)
    if said:
        say(said)
    return np.where(usable, values * unit.to(u.AA), np.nan)


def _rising(middle: np.ndarray, rows: np.ndarray, path: str) -> np.ndarray:
    """``rows`` in the order of rising wavelengths, of a spectrum that is sorted either way."""
    steps = np.diff(middle[rows])
    if (steps > 0).all():
        return rows
    if (steps < 0).all():
        return rows[::-1]
    wrong = int(np.flatnonzero(steps <= 0 if np.median(steps) > 0 else steps >= 0)[0])
    before, after = middle[rows[wrong]], middle[rows[wrong + 1]]
    raise ValueError(
        f"{path}: wavelengths are not in order: {after:.2f} Angstrom in row {rows[wrong + 1]}, "
        f"counted from 0, comes after {before:.2f}; expected each once, rising or falling: sort "
        f"the pixels, and combine orders that overlap"
    )


def _in_air(columns: Columns, settings: SpectrumSettings, name: str, say: Say) -> bool:
    """Whether wavelengths are in air; where nothing says it, that they are taken in vacuum."""
    by_name = parts_of_name(name)[2] if name != WCS else None
    of_file = columns.in_air if by_name is None else by_name
    words = {True: "in air", False: "in vacuum"}
    if settings.air is not None:
        if of_file is not None and of_file != settings.air:
            say(
                f"wavelengths are {words[of_file]} by the file, and taken {words[settings.air]} by "
                f"data.spectrum.air={str(settings.air).lower()}"
            )
        return settings.air
    if of_file is None:
        say(
            "nothing says whether wavelengths are in air or in vacuum: they are taken in vacuum. "
            "If they are in air, set data.spectrum.air=true (redshifts would be wrong by 0.0003 "
            "(1 + z), 82 km/s); data.spectrum.air=false says that they are not"
        )
    return bool(of_file)


def _measured(
    columns: Columns,
    settings: SpectrumSettings,
    middle: np.ndarray,
    order: np.ndarray,
    path: str,
    say: Say,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Flux and error, uJy, and whether they are good, (m,) each, of the rows in ``order``.

    And the covariance (m, m), uJy^2, if there is one.
    """
    roles = ("flux", "error", "ivar", "mask", "good")
    every = {role: columns.find(role, settings, path) for role in roles}
    found = {role: name for role, name in every.items() if name is not None}
    if "flux" not in found:
        raise missing("flux", list(columns.values), path)
    values = {role: _numbers(columns, name, path)[order] for role, name in found.items()}
    flux_unit = _density(settings, columns, "flux", found["flux"])
    factor = to_microjansky(flux_unit, middle, found["flux"], "flux", path)
    unknown = equals_any(values["flux"], settings.sentinels)
    _refuse_repeated(values["flux"], found["flux"], settings, path)
    flux = np.where(unknown, np.nan, values["flux"]) * factor
    covariance = covariance_of(columns, settings, order, factor, flux_unit, path)
    if covariance is not None:
        with np.errstate(invalid="ignore"):
            error = np.sqrt(np.diag(covariance[1]))
        if unused := found.get("error") or found.get("ivar"):
            say(f"errors are those of the covariance '{covariance[0]}', and not of '{unused}'")
    else:
        error = _errors(columns, settings, found, values, factor, middle, path, say)
    good = np.isfinite(flux) & (np.abs(flux) < LARGEST)
    good &= np.isfinite(error) & (error > 0) & (error < LARGEST)
    if "mask" in values:
        good &= values["mask"] == 0  # a mask that is blank is not 0
    if "good" in values:
        good &= np.nan_to_num(values["good"]) != 0
    zero = good & (flux == 0)  # of which noise leaves hardly one
    if zero.sum() >= REPEATED:
        say(f"{int(zero.sum()):,} pixels whose '{found['flux']}' is exactly 0 are not used")
        good &= ~zero
    return flux, error, good, covariance and covariance[1]


def _density(
    settings: SpectrumSettings, columns: Columns, role: str, name: str
) -> u.UnitBase | None:
    """The unit of fluxes, as the user states it or as in the file."""
    unit = read_unit(settings.units.get(role) or columns.units.get(name))
    return None if unit is None else without_maggies(unit)


def _errors(
    columns: Columns,
    settings: SpectrumSettings,
    found: Mapping[str, str],
    values: Mapping[str, np.ndarray],
    factor: np.ndarray,
    middle: np.ndarray,
    path: str,
    say: Say,
) -> np.ndarray:
    """Errors, uJy, (m,), of a column of them or of inverse variances; 0 or NaN: not good.

    Without a unit of their own they have that of the flux, whose ``factor`` to uJy is given; and
    so they have where the user states the flux's, but not theirs.
    """
    role = "error" if "error" in found else "ivar"
    name = found.get(role)
    if settings.error_from == "scatter":
        if name is not None:
            say(
                f"errors are estimated from the scatter of pixels, and '{name}' is not used, by "
                f"data.spectrum.error_from=scatter"
            )
        else:
            say("errors are estimated from the scatter of neighbouring pixels")
        return np.ones(len(middle))
    if name is None:
        raise ValueError(
            f"{path}: has no errors; name their column, data.spectrum.error=<column>, "
            f"data.spectrum.ivar=<column> or data.spectrum.covariance=<column>, or have them "
            f"estimated from the scatter of neighbouring pixels: data.spectrum.error_from=scatter. "
            f"Its columns: {', '.join(columns.values)}"
        )
    given = values[role]
    if (given < 0).any():
        say(f"pixels whose '{name}' is below 0 are not used")
    unit = _density(settings, columns, role, name)
    if "flux" in settings.units and role not in settings.units:
        unit = None
    if role == "ivar":
        with np.errstate(divide="ignore", invalid="ignore"):
            given = np.where(given > 0, given, np.nan) ** -0.5
    own = factor if unit is None else to_microjansky(unit, middle, name, role, path)
    return given * own


def noise_of_scatter(flux: np.ndarray) -> np.ndarray:
    """Standard deviation of noise (m,) from differences of pixels, NaN where ``flux`` (m,) is.

    Of each pixel with those two away, so that correlated neighbours do not matter, and the median
    of a window, so that lines do not: Stoehr et al. (2008, ASP Conf. 394, 505), sect. 2.
    """
    second = np.full(len(flux), np.nan)
    second[2:-2] = np.abs(2 * flux[2:-2] - flux[:-4] - flux[4:])
    half = min(SCATTER_WINDOW, len(flux)) // 2
    noise = np.full(len(flux), np.nan)
    for i in np.flatnonzero(np.isfinite(flux)):
        window = second[max(i - half, 0) : i + half + 1]
        window = window[np.isfinite(window)]
        if len(window):
            noise[i] = np.median(window)
    return 1.482602 / np.sqrt(6) * noise


# --- what is refused ----------------------------------------------------------------------------


def _refuse_other_bands(
    middle: np.ndarray, inside: np.ndarray, settings: SpectrumSettings, path: str
) -> None:
    if inside.any():
        return
    low, high = settings.wavelength_range
    raise ValueError(
        f"{path}: covers {middle[0]:,.0f} to {middle[-1]:,.0f} Angstrom, and data."
        f"wavelength_range={low:,.0f} to {high:,.0f} is expected: a spectrum of another band, or "
        f"wavelengths in another unit, which data.spectrum.units.wavelength states"
    )


def _refuse_repeated(flux: np.ndarray, name: str, settings: SpectrumSettings, path: str) -> None:
    """Raise where pixels have a number that stands for unknown."""
    if found := repeated_sentinels(flux, settings.sentinels):
        raise ValueError(
            f"{path}: column '{name}' holds {found} in several pixels, which is no flux; if it "
            f"stands for unknown, set data.sentinels=[{found}]"
        )


def _ask_about_noise(signal_to_noise: np.ndarray, say: Say) -> None:
    """Where errors are so large, or so small, that their unit is probably another."""
    median = float(np.median(np.abs(signal_to_noise)))
    if not LOWEST_SIGNAL < median < HIGHEST_SIGNAL:
        say(
            f"the median signal to noise of a pixel is {median:.2g}: are the errors in the unit of "
            f"the flux? data.spectrum.units.error=<unit> states theirs"
        )


def _refuse_few(good: np.ndarray, flux: np.ndarray, rows: np.ndarray, path: str) -> None:
    count = int(good.sum())
    if count >= FEWEST:
        return
    blank = int((~np.isfinite(flux)).sum())
    what = f"all its {len(good)} pixels are" if not count else f"{len(good) - count} pixels are"
    first = int(rows[np.flatnonzero(~good)[0]]) if not good.all() else 0
    raise ValueError(
        f"{path}: has {count} good pixels within data.wavelength_range, and {FEWEST} are expected; "
        f"{what} masked, or without a flux ({blank}) or an error above 0, the first in row "
        f"{first}, counted from 0. If the mask marks good pixels, name it "
        f"data.spectrum.good=<column>; otherwise leave the file out"
    )


def _refuse_unusual(flux: np.ndarray, path: str) -> None:
    """Raise for fluxes that no galaxy has: of a forgotten scale, or another unit."""
    size = float(np.median(np.abs(flux)))
    magnitude = AB_ZERO_POINT - 2.5 * np.log10(max(size, 1e-300))
    if not BRIGHT < magnitude < FAINT:
        raise ValueError(
            f"{path}: its median flux would be {size:.3g} uJy, {magnitude:.1f} mag (AB); expected "
            f"{BRIGHT:g} to {FAINT:g} mag: is a scale of its unit missing? State it: "
            f"data.spectrum.units.flux='{EXAMPLE}'"
        )
