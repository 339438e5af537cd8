"""What is no row of a table: posterior draws, as ArviZ reads them, and maps of the sky."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np

# leading dimensions of ArviZ's groups
SAMPLED = {"posterior": ("chain", "draw"), "posterior_predictive": ("chain", "draw")}


def check_draws(path: str | Path) -> None:
    """Refuse a file that `write_draws` cannot write: to be asked before there are draws."""
    path = Path(path)
    if path.suffix != ".nc":
        raise ValueError(f"output={path}: posterior draws are written as NetCDF, <name>.nc")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"output={path}: its folder does not exist; make it first")


def write_draws(
    path: str | Path,
    groups: Mapping[str, Mapping[str, np.ndarray]],
    units: Mapping[str, str],
    meta: Mapping[str, str],
) -> None:
    """Write arrays by group and name to a NetCDF file, which appears when it is whole.

    Those of the groups ``posterior`` and ``posterior_predictive`` begin with (chains, draws).
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        with h5netcdf.File(part, "w") as file:
            file.attrs.update(meta)
            for name, arrays in groups.items():
                _write_group(file.create_group(name), SAMPLED.get(name, ()), arrays, units)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write_group(
    group: h5netcdf.Group,
    leading: tuple[str, ...],
    arrays: Mapping[str, np.ndarray],
    units: Mapping[str, str],
) -> None:
    """Further dimensions get the names that ArviZ gives them: ``<name>_dim_0``."""
    first = next(iter(arrays.values()))
    group.dimensions = dict(zip(leading, first.shape, strict=False))
    for name, size in zip(leading, first.shape, strict=False):
        group.create_variable(name, (name,), data=np.arange(size))
    for name, values in arrays.items():
        dimensions = list(leading)
        for i, size in enumerate(values.shape[len(leading) :]):
            dimensions.append(f"{name}_dim_{i}")
            group.dimensions[dimensions[-1]] = size
        if values.dtype.kind in "UO":
            values, kind = values.astype(object), h5py.string_dtype()
        else:
            kind = values.dtype
        variable = group.create_variable(name, tuple(dimensions), kind, values)
        if units.get(name):
            variable.attrs["units"] = units[name]


def write_sky_map(path: str | Path, arrays: Mapping[str, Any], meta: Mapping[str, str]) -> None:
    """A map of dust in the layout that the dustmaps package reads (`Edenhofer2023Query`).

    ``arrays``: ``nside``; ``centres`` and ``boundaries`` of the shells, pc; and either ``mean`` and
    ``std`` of the extinction per pc, (shells, pixels), nested Galactic HEALPix, or ``samples``,
    (samples, shells, pixels). What is nearer than the first boundary is zero. The file appears
    when it is whole.
    """
    from astropy.io import fits

    path = Path(path)
    if path.suffix != ".fits":
        raise ValueError(f"output={path}: a map is written as FITS, <name>.fits")
    within = f"{arrays['boundaries'][0]:g} PC"
    hdus: list[Any] = [fits.PrimaryHDU()]
    hdus[0].header.update({key[:8].upper(): str(value)[:60] for key, value in meta.items()})

    def image(name: str, values: np.ndarray, contents: str) -> None:
        hdu = fits.ImageHDU(values.astype("f4"), name=name)
        hdu.header["NSIDE"], hdu.header["ORDERING"] = arrays["nside"], "NEST"
        hdu.header["CTYPE"] = contents
        hdus.append(hdu)

    inner = f"nner density integrated within {within.lower()}"
    if "samples" in arrays:
        image("SAMPLES", arrays["samples"], "extinction density")
        nothing = np.zeros_like(arrays["samples"][:, 0])
        image(f"INTEGRATED INNER {within}", nothing, f"I{inner}")
    else:
        nothing = np.zeros_like(arrays["mean"][0])
        image("MEAN", arrays["mean"], "extinction density")
        image(f"MEAN OF INTEGRATED INNER {within}", nothing, f"I{inner}")
        image("STD.", arrays["std"], "std. of extinction density")
        image(f"STD. OF INTEGRATED INNER {within}", nothing, f"std. of i{inner}")
    for what in ("centres", "boundaries"):
        name = f"radial pixel {'centers' if what == 'centres' else what}"
        column = fits.Column(name, "D", unit="pc", array=arrays[what])
        hdus.append(fits.BinTableHDU.from_columns([column], name=name.upper()))
    part = path.with_name(f".{path.name}.part")
    try:
        fits.HDUList(hdus).writeto(part, overwrite=True)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
