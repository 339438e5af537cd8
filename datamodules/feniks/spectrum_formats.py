"""Formats of files of spectra: their columns as they are written, by galaxy.

FITS tables and images with a WCS, ECSV, CSV, text, the .spec of FAST++, HDF5.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits

from orrery.datamodules.feniks.spectrum_columns import (
    SpectrumSettings,
    find,
    missing,
)
from orrery.datamodules.feniks.spectrum_resolution import grating
from orrery.tables import open_catalogue
from orrery.tables.base import naming
from orrery.tables.text import open_text

TEXT = (".spec", ".asc", ".ascii", ".tbl")  # besides the endings that `open_catalogue` knows
IMAGES = (".fits", ".fit", ".fits.gz")
WCS = "the header's WCS"
FAST_COLUMN = re.compile(r"([FE])(\w+)", re.IGNORECASE)


class Columns(NamedTuple):
    """Columns of one spectrum as in its file, (m,) each, and their units as far as it says them.

    That of the role covariance, if there is one, is (m, m).

    ``in_air``: what keywords of the file say of wavelengths; ``known``: role -> column, where the
    format says it; ``grating``: see `spectrum_resolution`.
    """

    values: dict[str, np.ndarray]
    units: dict[str, Any]
    in_air: bool | None = None
    known: Mapping[str, str] = {}
    grating: str | None = None

    def find(self, role: str, settings: SpectrumSettings, path: str) -> str | None:
        """The column of a role, None if there is none."""
        return find(role, list(self.values), settings, path, self.known)


def columns_of_file(path: str, settings: SpectrumSettings) -> dict[str, Columns]:
    """Columns of the spectra of a file, by the galaxy's id, "" where it is not named."""
    name = Path(path).name.lower()
    if name.endswith(IMAGES):
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path}: there is no such file (it came from data.spectra)")
        with naming(path), fits.open(path) as hdus:
            headers = [hdu.header for hdu in hdus]
            in_air, used = _medium(headers), grating(headers)
            tables = any(isinstance(hdu, fits.BinTableHDU | fits.TableHDU) for hdu in hdus)
            images = _images(hdus, path, tables)
        if (
            any(values.ndim == 1 for values, _ in images.values())
            and not (tables and settings.group)
            and not _has_flux_table(path, settings)
        ):
            columns = _image_columns(images, settings, path, in_air)
            return {"": columns._replace(grating=used)}
    else:
        in_air, used, images = None, None, {}
    columns = _table_columns(path, settings)._replace(in_air=in_air, grating=used)
    matrix = find("covariance", [*columns.values, *images], settings, path)
    if matrix in images:  # of the spectrum in the table
        columns.values[matrix] = images[matrix][0]
    return _by_galaxy(columns, settings, path)


def _table_columns(path: str, settings: SpectrumSettings) -> Columns:
    is_text = path.lower().endswith(TEXT)
    if is_text and os.path.exists(path) and os.path.getsize(path) == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes)")
    try:
        opened = open_text(path, None) if is_text else open_catalogue(path, settings.group)
    except ValueError as error:  # which speaks of the catalogue's settings
        raise ValueError(str(error).replace("data.group", "data.spectrum.group")) from error
    with opened as table:
        parts = list(table.chunks(table.names))
        if not parts:
            raise ValueError(f"{path}: has no rows; expected a row for each pixel")
        values = {n: np.concatenate([np.asarray(p[n]) for p in parts]) for n in table.names}
        return Columns(values, {n: str(unit) for n, unit in table.units.items()})


def _has_flux_table(path: str, settings: SpectrumSettings) -> bool:
    """Whether a FITS file with images has a table of a spectrum, too."""
    try:
        columns = _table_columns(path, settings)
        return columns.find("flux", settings, path) is not None
    except (ValueError, OSError):
        return False


def _images(
    hdus: fits.HDUList, path: str, beside_table: bool
) -> dict[str, tuple[np.ndarray, fits.Header]]:
    """Images of a file with one axis, or square, by name of the extension; of others an error."""
    images: dict[str, tuple[np.ndarray, fits.Header]] = {}
    shapes = []
    for number, hdu in enumerate(hdus):
        if isinstance(hdu, fits.BinTableHDU | fits.TableHDU) or hdu.header.get("NAXIS", 0) == 0:
            continue
        data = np.squeeze(np.asarray(hdu.data))
        shapes.append(data.shape)
        is_square = data.ndim == 2 and data.shape[0] == data.shape[1] > 1
        if is_square or (data.ndim == 1 and len(data) > 1):
            name = hdu.name if hdu.name and hdu.name not in images else str(number)
            images[name] = data.astype(float), hdu.header.copy()
    if shapes and not beside_table and all(x.ndim == 2 for x, _ in images.values()):
        raise ValueError(
            f"{path}: its image has the shape {shapes[0]}; expected a spectrum of one axis: "
            f"extract one from the two-dimensional spectrum"
        )
    return images


def _image_columns(
    images: Mapping[str, tuple[np.ndarray, fits.Header]],
    settings: SpectrumSettings,
    path: str,
    in_air: bool | None,
) -> Columns:
    """Extensions as columns; wavelengths are those of the flux's WCS unless an extension has them.

    The flux is the extension of that name, or the only one that is no error, mask or wavelength.
    """
    names = list(images)
    roles = ("error", "ivar", "mask", "good", "covariance")
    others = [find(role, names, settings, path) for role in roles]
    wavelength = find("wavelength", names, settings, path)
    flux = find("flux", names, settings, path)
    if flux is None:
        free = [n for n in names if n not in (*others, wavelength)]
        if len(free) != 1:
            raise missing("flux", names, path)
        flux = free[0]
    used = [name for name in (flux, wavelength, *others) if name is not None]
    size = len(images[flux][0])
    for name in used:
        if len(images[name][0]) != size:
            raise ValueError(
                f"{path}: extension '{name}' has {len(images[name][0])} pixels, and '{flux}' has "
                f"{size}; expected one length"
            )
    values = {n: images[n][0] for n in used}
    units = {n: images[n][1].get("BUNIT") for n in used}
    known = {"flux": flux}
    if wavelength is None:
        values[WCS], units[WCS] = _world_coordinates(images[flux][1], size, path)
        known["wavelength"] = WCS
    return Columns(values, {n: unit for n, unit in units.items() if unit}, in_air, known)


def _world_coordinates(header: fits.Header, size: int, path: str) -> tuple[np.ndarray, str | None]:
    """Wavelengths (pixels,) of an image's header, and their unit (FITS standard 4.0, 8.4)."""
    start, step = header.get("CRVAL1"), header.get("CD1_1", header.get("CDELT1"))
    kind = str(header.get("CTYPE1", "")).strip().upper()
    if start is None or step is None:
        raise ValueError(
            f"{path}: an image without wavelengths: its header has no CRVAL1 and CDELT1, and no "
            f"extension has them; name one: data.spectrum.wavelength=<extension>"
        )
    base, _, algorithm = kind.partition("-")
    offset = (np.arange(size) + 1 - float(header.get("CRPIX1", 1))) * float(step)
    unit = header.get("CUNIT1")
    if header.get("DC-FLAG") == 1 or kind in ("LOG-LAMBDA", "WAVE-LOG10", "LOGLAM"):  # IRAF's
        return 10 ** (float(start) + offset), unit or "Angstrom"
    if base not in ("", "WAVE", "AWAV", "LINEAR", "LAMBDA", "WAVELENGTH"):
        raise ValueError(
            f"{path}: the axis of its image is CTYPE1='{kind}'; expected wavelengths, WAVE or AWAV"
        )
    if algorithm == "LOG":
        return float(start) * np.exp(offset / float(start)), unit
    if algorithm:
        raise ValueError(
            f"{path}: the axis of its image is CTYPE1='{kind}'; expected one that is linear in "
            f"wavelength or in its logarithm: write wavelengths into a table"
        )
    return float(start) + offset, unit


def _medium(headers: list[fits.Header]) -> bool | None:
    """Whether wavelengths are in air by the keywords of a file; None if it does not say."""
    for header in headers:
        kind = str(header.get("CTYPE1", "")).upper()
        if kind.startswith(("AWAV", "WAVE-", "WAVE ")) or kind == "WAVE":
            return kind.startswith("AWAV")
        if isinstance(vacuum := header.get("VACUUM"), bool | int):
            return not vacuum
        text = str(header.get("AIRORVAC", header.get("VACAIR", ""))).lower()
        if text.startswith(("air", "vac")):
            return text.startswith("air")
    return None


def _by_galaxy(columns: Columns, settings: SpectrumSettings, path: str) -> dict[str, Columns]:
    """A file's columns by galaxy: of FAST++, or of a table with arrays in its rows."""
    names = list(columns.values)
    of_fast = _fast_galaxies(names) if settings.flux is None else {}
    if of_fast:
        common = [n for n in names if not any(n in pair for pair in of_fast.values())]
        return {
            key: _joined_bins(
                columns._replace(
                    values={n: columns.values[n] for n in (*common, flux, error)},
                    known={"flux": flux, "error": error},
                ),
                path,
            )
            for key, (flux, error) in of_fast.items()
        }
    covariance = columns.find("covariance", settings, path)
    arrays = [n for n in names if columns.values[n].ndim > 1]
    if not arrays or (arrays == [covariance] and columns.values[arrays[0]].ndim == 2):
        return {"": columns}
    rows = len(columns.values[names[0]])
    keys = [""]
    if rows > 1:
        key = columns.find("id", settings, path)
        if key is None:
            raise ValueError(
                f"{path}: a table with {rows} rows of arrays needs a column of galaxies' ids: "
                f"data.spectrum.id=<column>; its columns: {', '.join(names)}"
            )
        keys = [text_of(value) for value in columns.values[key]]
        if len(set(keys)) < len(keys):
            twice = next(name for name in keys if keys.count(name) > 1)
            raise ValueError(f"{path}: two spectra of '{twice}'; expected one of each galaxy")
    return {
        name: columns._replace(values={n: columns.values[n][row] for n in arrays})
        for row, name in enumerate(keys)
    }


def _fast_galaxies(names: list[str]) -> dict[str, tuple[str, str]]:
    """Galaxy's id -> columns of its flux and error, such as F12 and E12 of FAST++."""
    found = {}
    for name in names:
        match = FAST_COLUMN.fullmatch(name)
        if match and match[1].upper() == "F":
            error = next((n for n in (f"E{match[2]}", f"e{match[2]}") if n in names), None)
            if error:
                found[match[2]] = name, error
    return found


def _joined_bins(columns: Columns, path: str) -> Columns:
    """With FAST's ``bin``: rows of one bin averaged by inverse variance; ``tr`` 0 leaves out."""
    lowered = {name.lower(): name for name in columns.values}
    if "bin" not in lowered:
        return columns
    values = {name.lower(): np.asarray(x, float) for name, x in columns.values.items()}
    if "wl_low" in values:
        low, high = values["wl_low"], values["wl_up"]
    elif "wl" in values:
        half = np.gradient(values["wl"]) / 2
        low, high = values["wl"] - half, values["wl"] + half
    else:
        raise missing("wavelength", list(columns.values), path)
    flux, error = (values[columns.known[role].lower()] for role in ("flux", "error"))
    with np.errstate(divide="ignore", invalid="ignore"):
        usable = np.isfinite(flux) & np.isfinite(error) & (error > 0) & (values.get("tr", 1) != 0)
        weight = np.where(usable, 1 / error**2, 0.0)
    bins, index = np.unique(values["bin"], return_inverse=True)
    total = np.bincount(index, weight)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(index, np.where(usable, weight * flux, 0.0)) / total
        sigma = total**-0.5
    parts = [index == i for i in range(len(bins))]
    joined = {
        "wl_low": np.array([low[part].min() for part in parts]),
        "wl_up": np.array([high[part].max() for part in parts]),
        columns.known["flux"]: mean,
        columns.known["error"]: sigma,
    }
    return columns._replace(values=joined)


def text_of(key: object) -> str:
    """An id as text: "3" for 3, 3.0 and b"3"."""
    if isinstance(key, bytes):
        key = key.decode()
    if isinstance(key, float | np.floating) and float(key).is_integer():
        key = int(key)
    return str(key).strip()
