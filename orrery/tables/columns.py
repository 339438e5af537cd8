"""The user's column map and the units of columns."""

import difflib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatch
from functools import lru_cache

import numpy as np
from astropy import units as u

_SHOWN = 20
_LISTS = ("keep", "group_by", "train_where", "cuts")  # settings that name columns by themselves


def resolve(names: Sequence[str], wanted: Mapping[str, str], path: str | os.PathLike[str]) -> None:
    """Check that every wanted column is there.

    `wanted` maps a role ("redshift") to a column name ("ZSPEC"); a column that is only carried
    along has the role "keep:<name>". Raises one ValueError naming every missing column, its role,
    near matches among the columns without a role, and how to map it.
    """
    missing = {role: column for role, column in wanted.items() if column not in names}
    if not missing:
        return
    lines = [f"{path}: {len(missing)} column(s) not found"]
    free = [name for name in names if name not in wanted.values()]
    for role, column in missing.items():
        role = role.partition(":")[0]
        by_name = role.partition(".")[0] in _LISTS
        near = _near(free, column) or ([] if by_name else _near(free, role))
        hint = f"near matches: {', '.join(near)}; " if near else ""
        fix = f"map it: data.columns.{role}={near[0] if near else '<column>'}"
        if by_name:
            fix = f"correct data.{role}"
        lines.append(f"  {role}: no column {column!r}; {hint}{fix}")
    more = f" ... and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    lines.append(f"  columns in the file: {', '.join(names[:_SHOWN])}{more}")
    raise ValueError("\n".join(lines))


def refuse_unknown(
    columns: Mapping[str, str], known: Mapping[str, str], setting: str = "columns"
) -> None:
    """Raise for a role in the user's ``columns`` that is none of the ``known``, if any are."""
    for role in columns:
        if known and not any(fnmatch(role, pattern) for pattern in known):
            near = _near([name for name in known if "*" not in name], role) or list(known)
            raise ValueError(
                f"data.{setting}.{role} is none of the roles that a column can have; near: "
                f"{', '.join(near)}"
            )


def unused(
    names: Sequence[str],
    wanted: Mapping[str, str],
    columns: Mapping[str, str],
    known: Mapping[str, str],
    keep: Sequence[str],
    if_named: Collection[str] = (),
) -> list[str]:
    """Warnings about columns that are not read and differ from a known one by case alone.

    ``if_named``: roles that are read only if the user names a column, whatever it is called.
    """
    texts = []
    read = {*wanted.values(), *keep}
    free = [(name, name.lower()) for name in names if name not in read]
    for role, default in known.items():
        if role not in wanted and role not in columns:
            like = {default.lower(), role.lower()}
            texts += [
                f"column {name!r} is not used; if it is {default}, set data.columns.{role}={name}"
                for name, lower in free
                if lower in like and (name != default or role in if_named)
            ]
    return texts


def is_unknown(unit: u.UnitBase) -> bool:
    """Whether a unit is one that no reader knows, such as counts/sec."""
    return isinstance(unit, u.UnrecognizedUnit)


QUANTITIES = {  # part of a name -> what kind of quantity the column holds
    "ivar": "inverse variance", "invvar": "inverse variance", "weight": "weight", "wht": "weight",
    "flag": "flag", "mask": "flag", "err": "error", "sigma": "error", "unc": "error",
}  # fmt: skip


def quantity(name: str) -> str:
    """What kind of quantity a column holds by its name: an error, a flag... or "" for a value."""
    return next((kind for part, kind in QUANTITIES.items() if part in name.lower()), "")


def _near(names: Sequence[str], word: str) -> list[str]:
    """The names that are spelled nearly like ``word``, of the same kind of quantity."""
    lowered: dict[str, str] = {}
    for name in names:
        if quantity(name) == quantity(word):
            lowered.setdefault(name.lower(), name)
    return [lowered[m] for m in difflib.get_close_matches(word.lower(), lowered, n=3)]


def convert(
    values: np.ndarray, unit_in: u.UnitBase | None, unit_out: u.UnitBase | str, column: str
) -> np.ndarray:
    """Convert a column to the unit the model expects.

    `unit_in` None means that the values are taken to be in `unit_out` already. Plain "mag" and
    "mag(AB)" stand for each other; other magnitude systems must be convertible by astropy.
    Raises ValueError naming the column, its unit and the expected one.
    """
    wanted = _unit(unit_out)
    if unit_in is None or unit_in == wanted or {unit_in, wanted} == {u.mag, u.ABmag}:
        return np.asarray(values)
    try:
        return np.asarray(without_maggies(unit_in).to(wanted, values))
    except (u.UnitsError, ValueError) as error:
        raise ValueError(
            f"column {column!r} is in {str(unit_in)!r}, which does not convert to the expected "
            f"{str(wanted)!r}; convert the column, or correct its unit in the file"
        ) from error


@lru_cache  # to parse a text takes astropy a millisecond, for each column of each chunk
def _unit(unit: u.UnitBase | str) -> u.UnitBase:
    return u.Unit(unit)


def without_maggies(unit: u.UnitBase) -> u.UnitBase:
    """The unit with maggies (AB, of SDSS and the Legacy Surveys) as Jansky."""
    if is_unknown(unit) or "mgy" not in str(unit):
        return unit
    simple = unit.decompose()
    product = u.Unit(simple.scale)
    for base, power in zip(simple.bases, simple.powers, strict=True):
        product *= (u.Unit(AB_ZERO_POINT) if base == u.Unit("mgy") else base) ** power
    return product


# As astropy does not.
SPELLED = {"days": "d", "hours": "h", "hr": "h", "hrs": "h", "maggies": "mgy"}
NANOMAGGY = re.compile(r"nano-?magg(?:y|ies)", re.I)
AB_ZERO_POINT = 3631 * u.Jy  # of a maggy


def known_unit(text: str, role: str) -> u.UnitBase:
    """The unit that a user states for a role; raises for one that is not known."""
    unit = parse_unit(text)
    if unit is None or is_unknown(unit):
        raise ValueError(
            f"data.units.{role}={text} is no known unit; expected one such as h or kpc"
        )
    return unit


def parse_unit(text: object) -> u.UnitBase | None:
    """Read a unit as catalogues spell it; an unknown one is kept by name, a blank one is None."""
    text = text.decode() if isinstance(text, bytes) else str(text or "")
    if not text.strip():
        return None
    text = SPELLED.get(text.strip().lower(), text)
    text = NANOMAGGY.sub("nmgy", text)
    for style in (None, "fits", "cds", "vounit"):
        try:
            return u.Unit(text, format=style, parse_strict="raise")
        except (ValueError, TypeError):
            continue
    return u.Unit(text, parse_strict="silent")
