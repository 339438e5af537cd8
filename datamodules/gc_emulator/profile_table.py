"""Binned profiles from tables with a row per radius: CSV, ECSV, FITS and the others."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from orrery.datamodules.columns import CatalogueColumn, Column, located
from orrery.datamodules.values import BadValue, refuse
from orrery.physics.clusters.cluster_profiles import UNITS, Profile
from orrery.tables import Catalogue, files_of, open_catalogue
from orrery.tables.columns import known_unit, refuse_unknown, resolve

MEANINGS = {
    "density": "number of stars per area, less the background",
    "los": "velocity dispersion along the line of sight",
    "radial": "dispersion of proper motions, radial on the sky",
    "tangential": "dispersion of proper motions, tangential on the sky",
    "total": "dispersion of proper motions, per component",
}
SIDES = ("error", "error_down", "error_up")
HINT = "correct it, or leave it blank"


def _declared() -> dict[str, Column]:
    columns = {"r": Column("r", "arcmin", "radius", low=0)}
    for kind, unit in UNITS.items():
        low = -np.inf if kind == "density" else 0.0  # counts less their background
        columns[kind] = Column(kind, unit, MEANINGS[kind], low, missing=np.nan, blank_only=True)
        for side in SIDES:
            name, meaning = f"{kind}_{side}", f"{side.replace('_', ' ')} of {kind}"
            columns[name] = Column(
                name, unit, meaning, 0.0, ends="()", missing=np.nan, blank_only=True, unit_of=kind
            )
    return columns


DECLARED = _declared()


def is_table(path: str) -> bool:
    """Whether profiles are in a table, or several, rather than in HDF5 as GCfit's."""
    return not path.lower().endswith((".hdf", ".hdf5", ".h5"))


def profiles_of_tables(
    path: str, columns: Mapping[str, str], units: Mapping[str, str], remarks: list[str]
) -> list[Profile]:
    """The profiles of a table, or of all that a pattern names.

    ``columns``: the column of a role of `DECLARED`; ``units``: of columns that have none, by role.
    What the user should know of the columns is added to ``remarks``. Raises ``ValueError`` for what
    is no profile, by file, column and row.
    """
    refuse_unknown(columns, {role: column.name for role, column in DECLARED.items()})
    refuse_unknown(units, {role: column.name for role, column in DECLARED.items()}, "units")
    files = files_of(path)
    if not files:
        raise FileNotFoundError(f"data.path={path}: there is no such file")
    profiles: list[Profile] = []
    for file in files:
        with open_catalogue(file) as catalogue:
            for role, unit in units.items():
                catalogue.units[columns.get(role, role)] = known_unit(unit, role)
            read = _roles(catalogue, columns)
            remarks += _remarks(catalogue, read)
            profiles += _profiles(catalogue, read)
    return profiles


def _remarks(catalogue: Catalogue, read: Mapping[str, CatalogueColumn]) -> list[str]:
    """Columns that are not read, and units that are assumed."""
    remarks = []
    if unused := [n for n in catalogue.names if n not in {c.name for c in read.values()}]:
        remarks.append(f"not used of {catalogue.path}: {', '.join(unused)}")
    if unitless := [f"{c.name} ({c.column.unit})" for c in read.values() if c.unit is None]:
        remarks.append(
            f"{catalogue.path}: columns without a unit are taken as {', '.join(unitless)}; state "
            f"another by data.units.<role>"
        )
    return remarks


def _roles(catalogue: Catalogue, columns: Mapping[str, str]) -> dict[str, CatalogueColumn]:
    """Those that are there, or that the user names: of each kind of profile values and errors."""
    roles = {role: located(DECLARED, columns, catalogue, role) for role in DECLARED}
    wanted = {r: c for r, c in roles.items() if c.name in catalogue.names or r in columns}
    wanted |= {"r": roles["r"]}
    kinds = [kind for kind in UNITS if kind in wanted]
    for kind in kinds:
        if f"{kind}_error" not in wanted:
            sides = [f"{kind}_error_down", f"{kind}_error_up"]
            needed = sides if any(side in wanted for side in sides) else [f"{kind}_error"]
            wanted |= {side: roles[side] for side in needed}
    if {"radial", "tangential"} <= set(kinds):
        kinds = [kind for kind in kinds if kind != "total"]  # it is not independent of the two
    if not kinds:
        raise ValueError(
            f"{catalogue.path} has no profile; expected a column {', '.join(UNITS)}, with its "
            f"error: map one, data.columns.los=<column> data.columns.los_error=<column>\n"
            f"  columns in the file: {', '.join(catalogue.names)}"
        )
    wanted = {r: c for r, c in wanted.items() if r == "r" or r.split("_error")[0] in kinds}
    resolve(catalogue.names, {role: column.name for role, column in wanted.items()}, catalogue.path)
    return wanted


def _profiles(catalogue: Catalogue, roles: Mapping[str, CatalogueColumn]) -> Iterator[Profile]:
    names = list(dict.fromkeys(column.name for column in roles.values()))
    (chunk,) = catalogue.chunks(names, max(1, len(catalogue)))
    try:
        values = {role: column.values(chunk[column.name], True) for role, column in roles.items()}
        for kind in (kind for kind in UNITS if kind in roles):
            there = np.isfinite(values[kind])
            if not there.any():
                raise ValueError(f"column '{roles[kind].name}' is blank in all rows")
            down = f"{kind}_error" if f"{kind}_error" in roles else f"{kind}_error_down"
            up = down.replace("_down", "_up")
            for side in dict.fromkeys((down, up)):
                missing = there & np.isnan(values[side])
                what, expected = "is no error of a value", f"errors above 0, {UNITS[kind]}"
                refuse(missing, roles[side].name, values[side], what, expected, HINT, False)
            arrays = (torch.from_numpy(values[role][there]) for role in ("r", kind, down, up))
            name = re.sub(r"\W+", "_", Path(catalogue.path).stem)
            yield Profile(f"{name}_{kind}", kind, *arrays)
    except BadValue as error:
        raise ValueError(f"{catalogue.path}: {error.at(error.first)}") from error
    except ValueError as error:
        raise ValueError(f"{catalogue.path}: {error}") from error
