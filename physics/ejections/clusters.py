"""Globular clusters: where they are, how they move and what they are made of.

The Galaxy's are in clusters.ecsv, whose columns name their sources; `read_clusters` reads a
table of the same columns.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from astropy import units as u
from astropy.table import Table
from torch import Tensor

TABLE = Path(__file__).with_name("clusters.ecsv")
# column: unit, lowest and highest value
ORBIT = {
    "ra": ("deg", 0.0, 360.0),
    "dec": ("deg", -90.0, 90.0),
    "distance": ("kpc", 1e-3, 1e4),
    "e_distance": ("kpc", 0.0, 1e4),
    "pmra": ("mas / yr", -1e4, 1e4),
    "e_pmra": ("mas / yr", 0.0, 1e3),
    "pmdec": ("mas / yr", -1e4, 1e4),
    "e_pmdec": ("mas / yr", 0.0, 1e3),
    "v_los": ("km / s", -3e3, 3e3),
    "e_v_los": ("km / s", 0.0, 1e3),
}
STRUCTURE = {
    "mass": ("solMass", 1.0, 1e9),
    "r_core": ("pc", 1e-4, 1e3),
    "r_half": ("pc", 1e-4, 1e3),
    "r_tidal": ("pc", 1e-4, 1e4),
    "W0": ("", 0.05, 15.9),
    "g": ("", 0.0, 3.5),
    "r_half_mass": ("pc", 1e-4, 1e3),
}
OPTIONAL = {"pm_corr": ("", -1.0, 1.0), "structure_distance": ("kpc", 1e-3, 1e4)}
LIMEPY = "W0, g and r_half_mass"
KING_TIDAL = "r_core and r_tidal"
KING_HALF = "r_core and r_half"
NO_VELOCITY = "it has no line-of-sight velocity"
NO_STRUCTURE = "it has no mass or radii"
NO_PROPER_MOTION = "it has no proper motion"
# spellings of the first word of a name
_PREFIXES = {
    "messier": "m",
    "palomar": "pal",
    "terzan": "ter",
    "ruprecht": "rup",
    "tonantzintla": "ton",
    "djorgovski": "djorg",
    "koposov": "ko",
    "arp-madore": "am",
    "ω": "omega",
}


@dataclass(frozen=True)
class Clusters:
    """Clusters, a row each: tensors (clusters,), float64. NaN: a structure that is not known.

    Mass and radii hold at ``distance``. ``structure_source`` says what the structure follows from:
    ``LIMEPY``, ``KING_TIDAL`` or ``KING_HALF``, in this order of preference.
    """

    names: tuple[str, ...]
    other_names: tuple[tuple[str, ...], ...]
    ra: Tensor  # deg, ICRS
    dec: Tensor
    distance: Tensor  # kpc
    e_distance: Tensor
    pmra: Tensor  # mas / yr, with cos dec
    e_pmra: Tensor
    pmdec: Tensor
    e_pmdec: Tensor
    pm_corr: Tensor  # of pmra and pmdec
    v_los: Tensor  # km / s
    e_v_los: Tensor
    mass: Tensor  # Msun
    r_core: Tensor  # pc, where the surface density is half the central one
    r_half: Tensor  # pc, projected
    r_tidal: Tensor  # pc, 10^c r_core
    W0: Tensor  # of the lowered isothermal model (LIMEPY)
    g: Tensor
    r_half_mass: Tensor  # pc, in three dimensions
    structure_source: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)  # clusters that are not here, and why

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Row of the cluster of this name: "NGC 6205", "ngc6205", "M13", "NGC_6205_M_13", ...

        Raises ``ValueError`` with near matches where there is none.
        """
        rows: dict[str, int] = {}
        for row, (plain, others) in enumerate(zip(self.names, self.other_names, strict=True)):
            spellings = (plain, *others, *(plain + other for other in others))
            rows |= {_key(spelling): row for spelling in spellings}
        key = _key(name)
        if key in rows:
            return rows[key]
        for other, reason in self.left_out.items():
            if key == _key(other):
                raise ValueError(f"{other} cannot be a host: {reason}. Give it in your own table.")
        near = [self.names[rows[k]] for k in difflib.get_close_matches(key, rows, 4, 0.7)]
        hint = f"Near matches: {', '.join(dict.fromkeys(near))}." if near else "See `names`."
        raise ValueError(f"No cluster is named {name!r} among {len(self)}. {hint}")

    def select(self, chosen: Sequence[str | int]) -> "Clusters":
        """The clusters of these names or rows, in this order."""
        rows = [c if isinstance(c, int) else self.index(c) for c in chosen]
        changes: dict[str, Tensor | tuple] = {}
        for column in fields(self):
            value = getattr(self, column.name)
            if isinstance(value, Tensor):
                changes[column.name] = value[rows]
            elif isinstance(value, tuple):
                changes[column.name] = tuple(value[row] for row in rows)
        return replace(self, **changes)  # type: ignore[arg-type]


def milky_way_clusters() -> Clusters:
    """The Galaxy's globular clusters with six coordinates and a structure: 150.

    Those of the catalogues that lack either are named in ``left_out``.
    """
    table = cluster_table()
    columns = {c: _values(table, c, "", TABLE) for c in ("v_los", "mass")}
    names = [str(name) for name in table["name"]]
    left_out = {name: NO_PROPER_MOTION for name in table.meta["without_proper_motion"]}
    for name, v_los, mass in zip(names, columns["v_los"], columns["mass"], strict=True):
        if np.isnan(v_los):
            left_out[name] = NO_VELOCITY
        elif np.isnan(mass):
            left_out[name] = NO_STRUCTURE
    kept = [name not in left_out for name in names]
    return replace(_clusters(table[kept], TABLE), left_out=left_out)


def cluster_table() -> Table:
    """The table of the Galaxy's clusters as published, with units and sources: 170 rows."""
    return Table.read(TABLE, format="ascii.ecsv")


def read_clusters(path: str | Path) -> Clusters:
    """Clusters of an ECSV table: ``name``, position, motion, their errors and a structure.

    Columns are those of `Clusters`; a column with a unit is converted. Needed are ``name``, all of
    ``ORBIT``, ``mass``, and of each cluster one of W0, g and r_half_mass; r_core and r_tidal;
    r_core and r_half. ``pm_corr`` is 0 if it is not there; ``other_names`` (by semicolons) and
    ``structure_distance``, kpc, at which mass and radii hold if not at ``distance``, are optional.
    Raises ``ValueError`` that names file, column and row.
    """
    path = Path(path)
    try:
        table = Table.read(path, format="ascii.ecsv")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # astropy's readers raise many kinds
        raise ValueError(f"{path} is not an ECSV table: {error}") from error
    return _clusters(table, path)


def _clusters(table: Table, path: Path) -> Clusters:
    known = {"name", "other_names", *ORBIT, *STRUCTURE, *OPTIONAL}
    for column in ("name", *ORBIT, "mass"):
        if column not in table.colnames:
            near = difflib.get_close_matches(column, set(table.colnames) - known, 3)
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise ValueError(f"{path} has no column {column!r}, which clusters need.{hint}")
    if not len(table):
        raise ValueError(f"{path} has no rows: give at least one cluster.")
    names = tuple(_text(table["name"]))
    _check_names(names, path)
    values = {}
    for column, (unit, low, high) in (ORBIT | STRUCTURE | OPTIONAL).items():
        x = _values(table, column, unit, path)
        needed = column in ORBIT or column == "mass"
        bad = ~((x >= low) & (x <= high)) & (~np.isnan(x) | needed)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"{path}, column {column!r}, row {row + 1} ({names[row]}): {x[row]:g} is not "
                f"between {low:g} and {high:g}{' ' + unit if unit else ''}."
            )
        values[column] = x
    if "pm_corr" in table.colnames and np.isnan(values["pm_corr"]).any():
        row = int(np.isnan(values["pm_corr"]).argmax())
        raise ValueError(f"{path}, column 'pm_corr', row {row + 1} ({names[row]}): no value.")
    values["pm_corr"] = np.nan_to_num(values["pm_corr"])
    nearer = values.pop("structure_distance")
    scale = np.where(np.isnan(nearer), 1.0, values["distance"] / nearer)
    for column in ("r_core", "r_half", "r_tidal", "r_half_mass"):
        values[column] = values[column] * scale  # an angle is measured
    values["mass"] = values["mass"] * scale**2  # a flux is measured
    others = _text(table["other_names"]) if "other_names" in table.colnames else [""] * len(names)
    return Clusters(
        names=names,
        other_names=tuple(tuple(filter(None, map(str.strip, x.split(";")))) for x in others),
        structure_source=tuple(_source(values, row, names, path) for row in range(len(names))),
        **{column: torch.from_numpy(x) for column, x in values.items()},  # type: ignore[arg-type]
    )


def _check_names(names: tuple[str, ...], path: Path) -> None:
    seen: dict[str, int] = {}
    for row, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"{path}, column 'name', row {row + 1}: no name.")
        if (first := seen.setdefault(_key(name), row)) != row:
            raise ValueError(
                f"{path}, column 'name': rows {first + 1} and {row + 1} are both {name!r}."
            )


def _source(values: dict[str, np.ndarray], row: int, names: tuple[str, ...], path: Path) -> str:
    def has(*columns: str) -> bool:
        return not any(np.isnan(values[column][row]) for column in columns)

    for source, columns in (
        (LIMEPY, ("W0", "g", "r_half_mass")),
        (KING_TIDAL, ("r_core", "r_tidal")),
        (KING_HALF, ("r_core", "r_half")),
    ):
        if has(*columns):
            smaller, larger = (values[c][row] for c in columns[-2:])
            if source != LIMEPY and not smaller < larger:
                raise ValueError(
                    f"{path}, column {columns[1]!r}, row {row + 1} ({names[row]}): {larger:g} pc "
                    f"is not above {columns[0]} = {smaller:g} pc."
                )
            return source
    raise ValueError(
        f"{path}, row {row + 1} ({names[row]}): the structure is not known. Give {LIMEPY}, or "
        f"{KING_TIDAL}, or {KING_HALF}."
    )


def _values(table: Table, column: str, unit: str, path: Path) -> np.ndarray:
    """Float64, (rows,), in ``unit``; NaN where blank or where there is no such column."""
    if column not in table.colnames:
        return np.full(len(table), np.nan)
    try:
        x = np.ma.filled(np.ma.asarray(table[column]).astype(float), np.nan)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}, column {column!r}: not numbers ({error}).") from error
    given = table[column].unit
    if given is None or not unit:
        return x
    try:
        return np.asarray(u.Quantity(x, given).to_value(unit))
    except u.UnitConversionError as error:
        raise ValueError(
            f"{path}, column {column!r}: its unit {given} does not convert to {unit}."
        ) from error


def _text(column: np.ndarray) -> list[str]:
    return [str(x) for x in np.ma.filled(np.ma.asarray(column).astype(object), "")]


def _key(name: str) -> str:
    """Of a name, without case, spaces and punctuation, its catalogue's name abbreviated."""
    text = name.casefold().strip()
    for long, short in _PREFIXES.items():
        if text.startswith(long):
            text = short + text[len(long) :]
    return re.sub(r"[^0-9a-z]", "", text)
