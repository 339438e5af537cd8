"""Posterior draws in a NetCDF file that ArviZ reads."""

from collections.abc import Mapping
from pathlib import Path

import h5netcdf
import h5py
import numpy as np

from orrery.files import written_atomically

# leading dimensions of ArviZ's groups
SAMPLED = {"posterior": ("chain", "draw"), "posterior_predictive": ("chain", "draw")}


def check_draws(path: str | Path) -> None:
    """Raise for a file that `write_draws` could not write, before the draws are computed."""
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
    """Write arrays by group and name to a NetCDF file, which appears when it is complete.

    Those of the groups ``posterior`` and ``posterior_predictive`` begin with (chains, draws).
    """
    with written_atomically(path) as part, h5netcdf.File(part, "w") as file:
        file.attrs.update(meta)
        for name, arrays in groups.items():
            _write_group(file.create_group(name), SAMPLED.get(name, ()), arrays, units)


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
