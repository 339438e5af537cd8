"""Posterior draws in a file that ArviZ reads: ``arviz.from_netcdf(path)``."""

import os
from collections.abc import Mapping
from pathlib import Path

import h5netcdf
import numpy as np


def write_draws(
    path: str | Path,
    draws: Mapping[str, np.ndarray],
    units: Mapping[str, str],
    meta: Mapping[str, str],
) -> None:
    """Write draws, (chains, draws) each, as the group ``posterior`` of a NetCDF file.

    The final name appears when the file is whole.
    """
    path = Path(path)
    if path.suffix != ".nc":
        raise ValueError(f"output={path}: posterior draws are written as NetCDF, <name>.nc")
    part = path.with_name(f".{path.name}.part")
    try:
        with h5netcdf.File(part, "w") as file:
            file.attrs.update(meta)
            group = file.create_group("posterior")
            chains, n = next(iter(draws.values())).shape
            group.dimensions = {"chain": chains, "draw": n}
            for name, size in (("chain", chains), ("draw", n)):
                group.create_variable(name, (name,), data=np.arange(size))
            for name, values in draws.items():
                variable = group.create_variable(name, ("chain", "draw"), data=values)
                if units.get(name):
                    variable.attrs["units"] = units[name]
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
