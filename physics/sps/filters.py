"""Filters: transmission curves, means of f_nu through them, and Galactic extinction.

A curve is a photon-counting response, linear between its samples and zero outside, so that the AB
flux through it is the mean of f_nu by T dlnlambda (Fukugita et al. 1996, AJ 111, 1748, eq. 7).
"""

import difflib
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

TOPHAT = "tophat:"
EAZY = "eazy:"
EAZY_FILE = "examples/FILTER.RES.txt"  # EAZY's collection, in the package ppxf
LARGEST_NEGATIVE = 0.01  # of the peak: noise of a measured curve; more is no transmission
SHORTEST, LONGEST = 1.1e3, 1e8  # Angstrom: no filter of galaxies has its pivot outside
LYMAN_LIMIT = 911.75  # Angstrom

# Fitzpatrick (1999, PASP 111, 63) for R_V = 3.1: anchors of the spline, 1/micron and
# A(lambda) / E(B-V), Table 3; and the curve of its appendix beyond the last two of them
ANCHORS = np.array([0.0, 0.377, 0.820, 1.667, 1.828, 2.141, 2.433, 3.704, 3.846])
ANCHOR_VALUES = np.array([0.0, 0.265, 0.829, 2.688, 3.055, 3.806, 4.315, 6.265, 6.591])
R_V = 3.1
# A(1 micron) per E(B-V) as read from the map of Schlegel, Finkbeiner & Davis (1998): that of the
# map, times the recalibration of Schlafly & Finkbeiner (2011, ApJ 737, 103), their section 5
AT_1_MICRON = 1.32 * 0.78


class Filter(NamedTuple):
    """A transmission curve: wavelengths (n,), Angstrom, ascending, and transmission (n,)."""

    name: str
    wavelength: np.ndarray
    transmission: np.ndarray


def load_filter(text: str) -> Filter:
    """A filter of astro-sedpy by name, of a file of two columns, ``tophat:2700:3100`` or EAZY's.

    ``eazy:<number>`` is a filter of EAZY's FILTER.RES, by whose numbers many catalogues name their
    bands; it is read from the package ppxf, which carries that file. Files of two columns hold
    wavelength, Angstrom, and photon-counting transmission of any normalisation. Raises
    ``ValueError`` for what is none of these.
    """
    text = str(text)
    if text.startswith(TOPHAT):
        return _tophat(text)
    if text.startswith(EAZY):
        return _eazy(text)
    known = _collection()
    if text in known:
        return _of_collection(text)
    if Path(text).is_file():
        return _read(text, Path(text))
    if not known:
        raise ValueError(
            f"filter '{text}': no file has this name, and the collection of astro-sedpy is not "
            f"installed: pip install astro-sedpy, or give a file of two columns"
        )
    by_lower = {name.lower(): name for name in known}
    near = [by_lower[n] for n in difflib.get_close_matches(text.lower(), by_lower, 5, 0.5)]
    hint = f"; similar: {', '.join(near)}" if near else ""
    raise ValueError(
        f"filter '{text}' is neither one of the {len(known)} of astro-sedpy nor a file{hint}. "
        f"Expected a name, a file of wavelength (Angstrom) and transmission, tophat:2700:3100, or "
        f"eazy:<number>"
    )


def filter_matrix(filters: Sequence[Filter], log_wavelength: Tensor) -> Tensor:
    """Weights (pixels, filters), float64, with which f_nu of pixels gives its means by filter.

    ``log_wavelength`` (pixels,): centres of the pixels, ln(Angstrom), equally spaced, in the
    observed frame. Within a pixel f_nu is constant; each curve is integrated over it exactly, so
    that filters may be narrower than a pixel. Each column sums to 1.
    """
    centres = log_wavelength.detach().cpu().double().numpy()
    steps = np.diff(centres)
    if not (len(steps) and np.all(steps > 0) and np.allclose(steps, steps.mean(), rtol=1e-3)):
        raise ValueError("filter_matrix: expected an ascending, equally spaced grid of ln(lambda)")
    step = (centres[-1] - centres[0]) / len(steps)
    edges = np.exp(np.append(centres - step / 2, centres[-1] + step / 2))
    columns = []
    for band in filters:
        low, high = band.wavelength[0], band.wavelength[-1]
        if low < edges[0] or high > edges[-1]:
            raise ValueError(
                f"filter '{band.name}' lies at {low:.6g} to {high:.6g} Angstrom, and spectra at "
                f"{edges[0]:.6g} to {edges[-1]:.6g}: leave it out"
            )
        within = np.diff(_integral(band, edges))
        columns.append(within / within.sum())
    return torch.from_numpy(np.stack(columns, 1)).to(log_wavelength.device)


def pivot_wavelength(band: Filter) -> float:
    """Angstrom: lambda_p^2 = integral of T lambda dlambda over that of T dlambda / lambda."""
    x, t = band.wavelength, band.transmission
    middle = (x[1:] + x[:-1]) * (t[1:] + t[:-1])  # 4 times x T halfway: Simpson's rule is exact
    first = float(np.sum(np.diff(x) * (x[1:] * t[1:] + middle + x[:-1] * t[:-1]))) / 6
    return float(np.sqrt(first / _integral(band, x[-1:])[0]))


def galactic_extinction(filters: Sequence[Filter]) -> np.ndarray:
    """A_b / E(B-V) (filters,) of the Milky Way's dust, for E(B-V) as read from the SFD map.

    Of a source of constant f_nu, in the limit of little dust. The law is that of Fitzpatrick
    (1999), R_V = 3.1, at the normalisation of Schlafly & Finkbeiner (2011): see
    `physics.galaxies.photometry`.
    """
    scale = AT_1_MICRON / fitzpatrick(np.array([1e4]))[0]
    values = []
    for band in filters:
        if band.wavelength[0] < LYMAN_LIMIT:
            raise ValueError(
                f"filter '{band.name}' begins at {band.wavelength[0]:.6g} Angstrom, where the law "
                f"of Galactic extinction is not known; expected {LYMAN_LIMIT} or above"
            )
        # mean over sub-intervals of the curve, each with the law in its middle
        edges = np.geomspace(band.wavelength[0], band.wavelength[-1], 2001)
        weight = np.diff(_integral(band, edges))
        law = fitzpatrick(np.sqrt(edges[1:] * edges[:-1]))
        values.append(scale * (weight @ law) / weight.sum())
    return np.array(values)


def fitzpatrick(wavelength: np.ndarray) -> np.ndarray:
    """A(lambda) / E(B-V) of Fitzpatrick (1999), R_V = 3.1; Angstrom, above `LYMAN_LIMIT`."""
    x = 1e4 / np.asarray(wavelength, float)
    c2 = -0.824 + 4.717 / R_V
    c1 = 2.030 - 3.007 * c2
    drude = x**2 / ((x**2 - 4.596**2) ** 2 + (0.99 * x) ** 2)
    beyond = np.clip(x - 5.9, 0, None)
    rise = 0.5392 * beyond**2 + 0.05644 * beyond**3
    ultraviolet = R_V + c1 + c2 * x + 3.23 * drude + 0.41 * rise
    spline = CubicSpline(ANCHORS, ANCHOR_VALUES, bc_type="natural")
    return np.where(x > ANCHORS[-2], ultraviolet, spline(x))


def _integral(band: Filter, at: np.ndarray) -> np.ndarray:
    """Integral of T dlnlambda from the first sample up to each wavelength ``at``, Angstrom."""
    x, t = band.wavelength, band.transmission
    slope = np.diff(t) / np.diff(x)
    level = t[:-1] - slope * x[:-1]  # of T = level + slope lambda between two samples
    parts = level * np.log(x[1:] / x[:-1]) + np.diff(t)
    total = np.append(0.0, np.cumsum(parts))
    at = np.clip(at, x[0], x[-1])
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(slope) - 1)
    return np.asarray(total[i] + level[i] * np.log(at / x[i]) + slope[i] * (at - x[i]))


@functools.cache
def _collection() -> dict[str, Path]:
    """Name -> file of astro-sedpy's filters, without importing it; empty if it is not there."""
    spec = importlib.util.find_spec("sedpy")
    folders = spec.submodule_search_locations if spec else None
    files = (
        path for folder in folders or () for path in Path(folder, "data/filters").glob("*.par")
    )
    return {path.stem: path for path in files}


def _tophat(text: str) -> Filter:
    try:
        low, high = (float(part) for part in text.removeprefix(TOPHAT).split(":"))
    except ValueError:
        low = high = np.nan
    if not 0 < low < high < np.inf:
        raise ValueError(
            f"filter '{text}': expected tophat:<from>:<to> in Angstrom, such as tophat:2700:3100"
        )
    band = Filter(text, np.array([low, high]), np.ones(2))
    _refuse_other_units(band)
    return band


def _eazy(text: str) -> Filter:
    number, curves = text.removeprefix(EAZY), _eazy_curves()
    if not number.isdigit() or not 1 <= int(number) <= len(curves):
        raise ValueError(
            f"filter '{text}': expected eazy:<number>, the number 1 to {len(curves)} of a filter "
            f"in EAZY's FILTER.RES, such as eazy:88"
        )
    first_line, rows = curves[int(number) - 1]
    wavelength, transmission = np.array([row.split()[1:3] for row in rows], float).T
    lines = range(first_line, first_line + len(rows))
    return _checked(text, wavelength, transmission, lines)


@functools.cache
def _eazy_curves() -> list[tuple[int, list[str]]]:
    """Curves of EAZY's FILTER.RES, in its order: number of the first line, and rows.

    A line of the number of rows and a description comes before the rows of each filter, which hold
    their own number, the wavelength, Angstrom, and the photon-counting transmission.
    """
    spec = importlib.util.find_spec("ppxf")
    folders = spec.submodule_search_locations if spec else None
    path = next((p for f in folders or () if (p := Path(f, EAZY_FILE)).is_file()), None)
    if path is None:
        raise ValueError(
            f"filters eazy:<number> are read from {EAZY_FILE} of the package ppxf, which is not "
            f"installed: pip install ppxf"
        )
    lines = path.read_text().splitlines()
    curves, place = [], 0
    while place < len(lines):
        head = lines[place].split()
        place += 1
        if head and not head[0].startswith("#"):
            n_rows = int(head[0])
            curves.append((place + 1, lines[place : place + n_rows]))
            place += n_rows
    return curves


@functools.cache
def _of_collection(name: str) -> Filter:
    return _read(name, _collection()[name])


def _read(name: str, path: Path) -> Filter:
    """A checked curve of a file, whose columns beyond the second only astro-sedpy may have."""
    lines = [line.split("#")[0].replace(",", " ").split() for line in path.read_text().splitlines()]
    rows = [(number, cells) for number, cells in enumerate(lines, 1) if cells]
    expected = "expected two columns, wavelength in Angstrom and transmission"
    values = []
    for number, cells in rows:
        if len(cells) < 2 or (len(cells) > 2 and path.suffix != ".par"):
            raise ValueError(
                f"filter '{name}', line {number}: {len(cells)} columns; {expected} (a first "
                f"column that counts the rows, as in EAZY's FILTER.RES, is to be removed)"
            )
        try:
            values.append([float(cell) for cell in cells[:2]])
        except ValueError as error:
            raise ValueError(
                f"filter '{name}', line {number}: {error}; {expected}, and '#' before other lines"
            ) from error
    if len(values) < 2:
        raise ValueError(f"filter '{name}' has {len(values)} rows; {expected} in at least 2 rows")
    wavelength, transmission = np.array(values).T
    bad = ~(np.isfinite(wavelength) & np.isfinite(transmission) & (wavelength > 0))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"filter '{name}', line {rows[first][0]}: {values[first]} are no wavelength and "
            f"transmission; {expected}"
        )
    return _checked(name, wavelength, transmission, [number for number, _ in rows])


def _checked(
    name: str, wavelength: np.ndarray, transmission: np.ndarray, lines: Sequence[int]
) -> Filter:
    """A curve whose edges, where there is no more than noise, are trimmed; see `_read`."""
    if not np.all(np.diff(wavelength) > 0):
        first = int(np.flatnonzero(np.diff(wavelength) <= 0)[0]) + 1
        raise ValueError(
            f"filter '{name}', line {lines[first]}: the wavelength {wavelength[first]:.8g} follows "
            f"{wavelength[first - 1]:.8g}; expected ascending wavelengths: sort the rows"
        )
    peak, lowest = transmission.max(), transmission.min()
    if peak <= 0:
        raise ValueError(f"filter '{name}' has no transmission above 0")
    if lowest < -LARGEST_NEGATIVE * peak:
        first = int(transmission.argmin())
        raise ValueError(
            f"filter '{name}', line {lines[first]}: the transmission {lowest:.4g} is negative; "
            f"expected 0 or more (is it in magnitudes?)"
        )
    # a measured curve with negative values has noise of that size: no light beyond its edges
    inside = np.flatnonzero(transmission > max(0.0, -lowest))
    first, last = max(inside[0] - 1, 0), min(inside[-1] + 1, len(wavelength) - 1)
    curve = np.clip(transmission[first : last + 1], 0, None)
    if first < inside[0]:
        curve[0] = 0.0
    if last > inside[-1]:
        curve[-1] = 0.0
    band = Filter(name, wavelength[first : last + 1], curve)
    _refuse_other_units(band)
    return band


def _refuse_other_units(band: Filter) -> None:
    pivot = pivot_wavelength(band)
    if not SHORTEST <= pivot <= LONGEST:
        looks_like = "nm or micron" if pivot < SHORTEST else "a frequency"
        raise ValueError(
            f"filter '{band.name}' lies about {pivot:.4g}, which looks like {looks_like}; expected "
            f"wavelengths in Angstrom"
        )
