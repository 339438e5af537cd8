"""Tables of abundances as they are published, as one row per star with canonical columns.

The columns are named by role: ``mg_h`` or ``mg_fe``, ``.._error``, ``mg_limit``,
``mg_significance``, ``mg_dteff``.., ``name``, ``structure``, ``type``. A table that has them under
other names is streamed as it is (`canonical_columns`); another is held in memory (`widened`).
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from orrery.datamodules.abundances.cells import (
    check_stars,
    elements_of,
    note_on_scale,
    read_cells,
    read_flags,
    refuse_confused_ratios,
    significance_in,
    texts,
)
from orrery.datamodules.abundances.cluster_tables import is_cluster_table, read_cluster_tables
from orrery.datamodules.abundances.long_tables import is_long, stars_of_long
from orrery.datamodules.abundances.structure_names import (
    odd_structures,
    structure_types,
    structures_of,
)
from orrery.datamodules.abundances.unreliable import (
    WithoutUnreliable,
    flags_of_quality,
    note_on_flags,
)
from orrery.physics.abundances.species import Label, is_species, read_label, read_species
from orrery.tables import Catalogue, files_of, open_catalogue, read_table
from orrery.tables.columns import resolve
from orrery.tables.derived import Derived
from orrery.tables.memory import MemoryCatalogue

__all__ = [
    "Widened",
    "as_stars",
    "canonical_columns",
    "must_be_widened",
    "open_abundances",
    "widened",
]

# Role -> names, in capitals or not; the first that a table has is taken
IDENTIFIERS = {
    "name": (
        "name", "star", "star_name", "starname", "id", "object", "objname", "target", "apogee_id",
        "sobject_id", "gaia", "source_id", "gaiadr3_source_id", "dr3_source_id", "tmass_id",
    ),
    "structure": (
        "structure", "stream", "system", "galaxy", "cluster", "host", "dwarf", "gc", "association",
    ),
    "type": ("type", "structure_type"),
}  # fmt: skip
MOST_ROWS = 10**6  # of a table that is held in memory only to choose among species


class Widened(NamedTuple):
    """Canonical columns, (stars,) each, and sentences for the user on how they came about."""

    columns: dict[str, np.ndarray]
    notes: list[str]


def canonical_columns(
    names: Sequence[str], given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Role -> column of a table with a row per star; columns of no role are left out.

    ``given``: roles that the user has named. Of an element with columns of several species the one
    of least `Species.rank` is taken; of [X/H] and [X/Fe] both, [X/H]. Roles ``x_logeps``, of log
    eps, stand beside either.

    Raises ``ValueError`` if two columns have one role, and for unknown elements in brackets.
    """
    given = dict(given or {})
    found: dict[str, list[tuple[str, Label]]] = {}
    for name in names:
        label = read_label(name)
        if label is not None and name not in given.values():
            found.setdefault(label.role, []).append((name, label))
    chosen = {role: _chosen(role, columns) for role, columns in found.items() if role not in given}
    chosen |= given
    for role in list(chosen):
        if role.endswith("_error") and role.removesuffix("_error") not in chosen:
            del chosen[role]
    for role in [r for r in chosen if r.endswith("_fe") and f"{r[:-3]}_h" in chosen]:
        x = role.removesuffix("_fe")
        if role not in given and (f"{x}_h_error" in chosen or f"{x}_fe_error" not in chosen):
            del chosen[role]
            chosen.pop(f"{role}_error", None)
    lower = {name.lower(): name for name in reversed(names)}
    for role, words in IDENTIFIERS.items():
        column = next((lower[word] for word in words if word in lower), None)
        if column is not None and role not in chosen:
            chosen[role] = column
    return chosen


def _chosen(role: str, columns: Sequence[tuple[str, Label]]) -> str:
    """The column of the preferred species."""
    least = min(label.species.rank for _, label in columns)
    names = [name for name, label in columns if label.species.rank == least]
    if len(names) > 1:
        raise ValueError(
            f"columns {', '.join(repr(n) for n in names)} may all be {role}; say which: "
            f"data.columns.{role}={names[0]}"
        )
    return names[0]


def must_be_widened(catalogue: Catalogue, given: Mapping[str, str] | None = None) -> bool:
    """Whether the table cannot be streamed by `canonical_columns`.

    It is long (a row per star and species), has abundances as text or flags of limits that are no
    numbers, two species of one element, or the names of structures in those of stars.
    """
    if is_long(catalogue):
        return True
    roles = canonical_columns(catalogue.names, given)
    if not any(map(read_label, catalogue.names)) and not given:
        return False
    if _several_species(catalogue.names) and len(catalogue) <= MOST_ROWS:
        return True
    wanted = [c for r, c in roles.items() if r not in IDENTIFIERS and c in catalogue.names]
    names = [roles["name"]] if "structure" not in roles and "name" in roles else []
    first = next(iter(catalogue.chunks([*wanted, *names])), {})
    if any(first[c].dtype.kind in "UOS" for c in wanted if c in first):
        return True
    return bool(names and first) and structures_of(texts(first[names[0]])) is not None


def _several_species(names: Sequence[str]) -> dict[str, list[str]]:
    """Role -> columns, of values that are there of several species of an element."""
    forms: dict[str, dict[str, str]] = {}
    for name in names:
        label = read_label(name)
        if label and label.quantity in ("h", "fe", "logeps"):
            forms.setdefault(label.role, {})[label.species.form] = name
    return {role: list(columns.values()) for role, columns in forms.items() if len(columns) > 1}


def open_abundances(
    path: str | os.PathLike[str],
    group: str | None = None,
    given: Mapping[str, str] | None = None,
    limit_significance: float | None = None,
    sentinels: Sequence[float] = (),
    quality_flags: bool = True,
) -> tuple[Catalogue, list[str]]:
    """A catalogue with a row per star, and sentences for the user; see `as_stars`.

    Of the .tbl files of Roediger et al. (2014) the stars are held in memory.
    """
    path = os.fspath(path)
    files = files_of(path)
    if files and all(is_cluster_table(file) for file in files):
        made = read_cluster_tables(files)
        return MemoryCatalogue(made.columns, path), list(made.notes)
    return as_stars(
        open_catalogue(path, group), given, limit_significance, sentinels, quality_flags
    )


def as_stars(
    catalogue: Catalogue,
    given: Mapping[str, str] | None = None,
    limit_significance: float | None = None,
    sentinels: Sequence[float] = (),
    quality_flags: bool = True,
) -> tuple[Catalogue, list[str]]:
    """The catalogue with a row per star, and sentences for the user.

    It streams where `must_be_widened` says that it can. Else its canonical columns are held in
    memory, and of a table that had a row per star the others go on streaming. Where there is a
    structure and no type, `structure_types` are its column ``type``.

    Abundances equal to one of ``sentinels``, and with ``quality_flags`` those whose flag is not 0
    (`flags_of_quality`), are blank.
    """
    flags = flags_of_quality(catalogue.names) if quality_flags else {}
    of_flags = note_on_flags(catalogue, flags)
    if flags or sentinels:
        catalogue = WithoutUnreliable(catalogue, flags, sentinels)
    unread = note_on_unread(catalogue.names, given)
    catalogue, notes = _as_stars(catalogue, given, limit_significance)
    return catalogue, of_flags + unread + notes


def note_on_unread(names: Sequence[str], given: Mapping[str, str] | None = None) -> list[str]:
    """That columns named by a species alone, MG1 and E_MG1 of Gaia-ESO, are not read, if any."""
    lower = {name.lower() for name in names}
    errors = ("e_{}", "{}_err", "{}_error")
    unread = [
        name for name in names
        if len(name) > 1 and name not in (given or {}).values() and is_species(name)
        and not lower.isdisjoint(form.format(name.lower()) for form in errors)
    ]  # fmt: skip
    if not unread:
        return []
    x = read_species(unread[0]).element.lower()
    return [
        f"{', '.join(unread[:12])}{' ...' * (len(unread) > 12)} are named by a species alone, and "
        f"not read, for they may be log eps, [X/H] or [X/Fe]: say which, "
        f"data.columns.{x}_logeps={unread[0]} data.columns.{x}_logeps_error=<its error>, or "
        f"{x}_h, {x}_fe"
    ]


def _as_stars(
    catalogue: Catalogue, given: Mapping[str, str] | None, limit_significance: float | None
) -> tuple[Catalogue, list[str]]:
    if must_be_widened(catalogue, given):
        wide = widened(catalogue, given, limit_significance)
        if is_long(catalogue):
            catalogue.close()
            return MemoryCatalogue(wide.columns, catalogue.path), wide.notes
        made = _WithColumns(catalogue, wide.columns)
        return made, wide.notes + _note_on_scale_of_wide(made, {c: c for c in wide.columns})
    roles, notes = canonical_columns(catalogue.names, given), []
    for role, columns in _several_species(catalogue.names).items():
        notes.append(f"{role} is '{roles[role]}' alone of {', '.join(columns)}")
    notes += _note_on_scale_of_wide(catalogue, roles)
    if "structure" in roles and "type" not in roles:
        first = next(iter(catalogue.chunks([roles["structure"]])), {})
        if first and any(structure_types(texts(first[roles["structure"]]))):
            catalogue = _WithTypes(catalogue, roles["structure"])
    return catalogue, notes


def _note_on_scale_of_wide(catalogue: Catalogue, roles: Mapping[str, str]) -> list[str]:
    """By the first rows of a table that has both log eps and [X/H]."""
    both = [
        x for x in elements_of(roles) if {f"{x.lower()}_h", f"{x.lower()}_logeps"} <= set(roles)
    ]
    pairs = [(roles[f"{x.lower()}_logeps"], roles[f"{x.lower()}_h"]) for x in both]
    columns = [name for pair in pairs for name in pair]
    first = next(iter(catalogue.chunks(columns)), {}) if both else {}
    if not first or any(values.dtype.kind not in "iuf" for values in first.values()):
        return []
    log_eps, x_h = (np.concatenate([first[pair[i]] for pair in pairs]) for i in (0, 1))
    return note_on_scale(np.repeat(both, len(log_eps) // len(both)).tolist(), log_eps, x_h)


class _WithColumns(Derived):
    """A catalogue with columns in memory, (rows,), in place of its own abundances."""

    def __init__(self, catalogue: Catalogue, columns: Mapping[str, np.ndarray]) -> None:
        others = [n for n in catalogue.names if n not in columns and read_label(n) is None]
        super().__init__(catalogue, [*columns, *others], list(columns))
        self._here = MemoryCatalogue(dict(columns), catalogue.path)

    def chunks(
        self,
        columns: Sequence[str],
        rows: int = 65_536,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        resolve(self.names, {c: c for c in columns}, self.path)
        here = [c for c in columns if c in self._here.names]
        there = [c for c in columns if c not in self._here.names]
        if not there:
            yield from self._here.chunks(here, rows, start, stop)
            return
        for chunk in self._catalogue.chunks(there, rows, start, stop):
            end = start + len(chunk[there[0]])
            ours = next(iter(self._here.chunks(here, rows, start, end)), {}) if here else {}
            yield {c: ours[c] if c in ours else chunk[c] for c in columns}
            start = end


class _WithTypes(Derived):
    """A catalogue with a column ``type``, which follows from that of structures."""

    def __init__(self, catalogue: Catalogue, structure: str) -> None:
        super().__init__(catalogue, [*catalogue.names, "type"], ["type"])
        self._structure = structure

    def chunks(
        self,
        columns: Sequence[str],
        rows: int = 65_536,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        needed = dict.fromkeys(self._structure if c == "type" else c for c in columns)
        for chunk in self._catalogue.chunks(list(needed), rows, start, stop):
            if "type" in columns:
                chunk["type"] = structure_types(texts(chunk[self._structure]))
            yield {c: chunk[c] for c in columns}


def widened(
    table: Any,
    given: Mapping[str, str] | None = None,
    limit_significance: float | None = None,
) -> Widened:
    """Canonical columns of any table of abundances, long or wide; it is read into memory.

    ``table``: a `Catalogue`, an astropy Table, a DataFrame or a dict of arrays; ``given``: role ->
    column, as in `canonical_columns`; ``limit_significance``: sigmas of limits of which the table
    does not say it.

    Of an element with several species the preferred one is taken (`Species.rank`), and for stars
    where that is missing or only a limit, the next that is better. Raises ``ValueError`` as
    `check_stars` and `refuse_confused_ratios` do.
    """
    catalogue = table if isinstance(table, Catalogue) else read_table(table)
    if not len(catalogue):
        raise ValueError(f"{catalogue.path} has no rows")
    try:
        if is_long(catalogue):
            made = stars_of_long(catalogue, given)
        else:
            made = _stars_of_wide(catalogue, given)
        columns, names, notes = made
        notes += _add_structures(columns)
        notes += check_stars(columns, names, limit_significance)
        refuse_confused_ratios(columns, names)
    except ValueError as error:
        if str(catalogue.path) in str(error):
            raise
        raise ValueError(f"{catalogue.path}: {error}") from error
    return Widened(columns, notes)


def _stars_of_wide(
    catalogue: Catalogue, given: Mapping[str, str] | None
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Columns, names of the columns by role, sentences; of a table with a row per star."""
    roles = canonical_columns(catalogue.names, given)
    others = _other_species(catalogue.names, roles, given)
    wanted = list(dict.fromkeys([*roles.values(), *(c for o in others for c in o.values())]))
    parts = list(catalogue.chunks(wanted))
    cells = {name: np.concatenate([part[name] for part in parts]) for name in wanted}
    columns = _read_wide(roles, cells, catalogue)
    notes = _repeated_stars(columns)
    for other in others:
        value = next(r for r in other if not r.endswith(("_error", "_limit", "_significance")))
        if value in columns:
            notes += _fill(columns, _read_wide(other, cells, catalogue), value, other, roles)
    return columns, roles, notes


def _read_wide(
    roles: Mapping[str, str], cells: Mapping[str, np.ndarray], catalogue: Catalogue
) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    limits: dict[str, np.ndarray] = {}
    for role, name in roles.items():
        if role in IDENTIFIERS:
            columns[role] = texts(cells[name])
        elif role.endswith("_limit"):
            flags = read_flags(cells[name], name)
            limits[role] = limits.get(role, 0) + flags * (limits.get(role, 0) == 0)
            stated = significance_in(catalogue.descriptions.get(name, ""))
            if stated is not None:
                x = role.removesuffix("_limit")
                columns.setdefault(f"{x}_significance", np.where(flags != 0, stated, np.nan))
        else:
            values, flags = read_cells(cells[name], name)
            columns[role] = values
            if flags.any():
                role = f"{role.split('_')[0]}_limit"
                limits[role] = np.where(flags != 0, flags, limits.get(role, 0))
    return columns | {role: flags.astype(float) for role, flags in limits.items()}


def _other_species(
    names: Sequence[str], roles: Mapping[str, str], given: Mapping[str, str] | None
) -> list[dict[str, str]]:
    """Role -> column, of each species that is not the one chosen, by rank."""
    found: dict[tuple[str, int, str], dict[str, str]] = {}
    for name in names:
        label = read_label(name)
        if label is None or name in roles.values() or label.role in (given or {}):
            continue
        key = (label.species.element, label.species.rank, label.species.form)
        found.setdefault(key, {})[label.role] = name
    return [
        columns for _, columns in sorted(found.items()) if any(r in roles for r in columns)
        and any(not r.endswith(("_error", "_limit", "_significance")) for r in columns)
    ]  # fmt: skip


def _fill(
    columns: dict[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    value: str,
    names: Mapping[str, str],
    roles: Mapping[str, str],
) -> list[str]:
    """Take another species of an element where the first is missing, or a limit and it is not."""
    x = value.split("_")[0]
    limit = f"{x}_limit"
    none = np.zeros(len(columns[value]))
    ours, theirs = columns.get(limit, none) != 0, other.get(limit, none) != 0
    here, there = np.isfinite(columns[value]), np.isfinite(other[value])
    take = there & (~here | (ours & ~theirs))
    if not take.any():
        return []
    for role in {value, f"{value}_error", limit, f"{x}_significance"}:
        blank = none if role == limit else np.full(len(none), np.nan)
        if role in columns or role in other:
            columns[role] = np.where(take, other.get(role, blank), columns.get(role, blank))
    return [
        f"'{roles[value]}' is '{names[value]}' for {int(take.sum()):,} stars where it is missing "
        f"or only a limit"
    ]


def _repeated_stars(columns: Mapping[str, np.ndarray]) -> list[str]:
    """That a star has several rows, if one has; structures may have stars of one name."""
    if "name" not in columns:
        return []
    none = np.full(len(columns["name"]), "")
    stars = list(zip(columns["name"], columns.get("structure", none), strict=True))
    several = [star for star, count in Counter(stars).items() if count > 1 and star[0]]
    if not several:
        return []
    star = "star has" if len(several) == 1 else "stars have"
    return [
        f"{len(several):,} {star} several rows, such as {several[0][0]}: they are kept apart, each "
        f"with its own measurement"
    ]


def _add_structures(columns: dict[str, np.ndarray]) -> list[str]:
    """The structure in the names of stars, and the type of structures, where there is no column."""
    notes = []
    if "structure" not in columns and "name" in columns:
        structures = structures_of(columns["name"])
        if structures is not None:
            columns["structure"] = structures
            count = len(set(structures) - {""})
            notes.append(
                f"the structure is taken from the names of stars, such as {columns['name'][0]}: "
                f"{count:,} structures"
            )
            notes += odd_structures(structures)
    if "structure" in columns and "type" not in columns:
        types = structure_types(columns["structure"])
        if any(types):
            columns["type"] = types
    return notes
