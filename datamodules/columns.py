"""Columns of a catalogue, declared once: name, unit, possible values, and when they are needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from astropy import units as u

from orrery.datamodules.values import LARGEST, equals_any, numbers, refuse, refuse_other_types
from orrery.tables import Catalogue, convert
from orrery.tables.vectors import vectors

Need = Literal["required", "optional", "named", "chosen", "unused"]
Kind = Literal["number", "vector", "text", "flag"]

FEW = 20  # values, of which not the median, but all must be unusual
HINT = "drop those rows or correct them"
WHEN = {  # in training, in prediction
    ("required", "required"): "always",
    ("required", "optional"): "training; optional in prediction",
    ("required", "unused"): "training",
    ("unused", "required"): "prediction",
    ("optional", "optional"): "optional",
    ("optional", "unused"): "optional, in training",
    ("named", "named"): "if named",
    ("named", "chosen"): "if named",
    ("chosen", "chosen"): "one of several",
    ("chosen", "unused"): "training, one of several",
    ("unused", "chosen"): "prediction, one of several",
    ("required", "chosen"): "training; optional in prediction",
    ("unused", "optional"): "optional, in prediction",
    ("unused", "named"): "prediction, if named",
    ("unused", "unused"): "optional, selects training rows",
}


@dataclass(frozen=True)
class Column:
    """A column that a component reads, whichever catalogue it comes from.

    - ``name``: what it is called unless the user says ``data.columns.<role>=``. In a family,
      ``mag_{band}``, a part in braces stands for what `CatalogueData.roles` finds.
    - ``unit``: what values are converted to; "": none; None: they are taken as they are.
    - ``low``, ``high``: possible values lie between; ``ends`` says whether these are possible
      themselves: "[]" both, "()" neither. NaN, inf and 1e30 are never possible.
    - ``missing``: what takes the place of a value that is blank or impossible, and of an optional
      column that is not there. None: such a value is a ``ValueError``.
    - ``strict``: training refuses such values all the same.
    - ``truth``: needed and refused in training; in prediction it is optional, and NaN is unknown.
    - ``training``, ``prediction``: whether it is read there: "required"; "optional", where it is
      there; "named", where the user names it; "chosen", where `CatalogueData.roles` says;
      "unused". ``prediction`` None: as in training, and of truth "optional".
    - ``unit_of``: the role whose unit it has if it has none of its own, such as that of an error.
    - ``required_with``: the role that is not to come without it.
    - ``kind``: "number"; "vector", an array per row; "text", any values; "flag", 0 or 1.
    - ``blank_only``: whether ``missing`` is for blanks alone, and impossible values are refused.
    - ``above_high``: a hint; values above ``high`` are refused with it rather than ``missing``.
    - ``typical``: between which values the median of a catalogue lies; of a column without a unit
      whose median lies elsewhere, it is asked by ``typical_hint``.
    - ``special``: what special values mean to `to_batch`, which then checks the values itself.
    """

    name: str
    unit: str | None = None
    meaning: str = ""
    low: float = -np.inf
    high: float = np.inf
    ends: Literal["[]", "()", "[)", "(]"] = "[]"
    missing: float | None = None
    strict: bool = False
    truth: bool = False
    training: Need = "required"
    prediction: Need | None = None
    unit_of: str | None = None
    required_with: str | None = None
    kind: Kind = "number"
    blank_only: bool = False
    above_high: str = ""
    typical: tuple[float, float] | None = None
    typical_hint: str = ""
    special: str = ""

    def need(self, training: bool) -> Need:
        if training:
            return self.training
        return self.prediction or ("optional" if self.truth else self.training)

    def replacement(self, training: bool) -> float | None:
        """Replacement of an impossible value; None: it is refused."""
        if training and (self.truth or self.strict):
            return None
        return np.nan if self.truth and self.missing is None else self.missing

    def possible(self, values: np.ndarray) -> np.ndarray:
        """Mask of the values that can be right."""
        above = values >= self.low if self.ends[0] == "[" else values > self.low
        below = values <= self.high if self.ends[1] == "]" else values < self.high
        return np.asarray(above & below & (np.abs(values) < LARGEST))

    def interval(self) -> str:
        """The possible values in words."""
        low, high = np.isfinite(self.low), np.isfinite(self.high)
        if low and high:
            return f"{self.low:g} to {self.high:g}"
        if low:
            return f"{self.low:g} or more" if self.ends[0] == "[" else f"above {self.low:g}"
        if high:
            return f"{self.high:g} or less" if self.ends[1] == "]" else f"below {self.high:g}"
        return "finite numbers"


@dataclass(frozen=True)
class CatalogueColumn:
    """A declared column under the name and with the unit that it has in one catalogue."""

    column: Column
    name: str
    unit: u.UnitBase | None = None
    sentinels: Sequence[float] = ()  # values in the catalogue that mean unknown, in its unit

    def values(self, cells: np.ndarray, training: bool) -> np.ndarray:
        """Float64 in the declared unit, (rows,) or of vectors (rows, k); text as it is.

        Raises ``ValueError`` for what is no number, for a unit that does not convert and, by
        `BadValue`, for impossible values that are not to be replaced.
        """
        column = self.column
        if column.kind == "text":
            text: np.ndarray = np.asarray(cells)
            if text.ndim != 1:
                raise ValueError(
                    f"column '{self.name}' holds arrays of shape {text.shape[1:]}; expected one "
                    f"text per row"
                )
            return text
        if column.kind == "flag":
            return self._without_sentinels(np.asarray(cells, float), training)
        if column.kind == "vector":
            refuse_other_types(np.ma.getdata(np.ma.asarray(cells)), self.name)
            values = vectors(cells, self.name)
        else:
            values = numbers(cells, self.name)
        values = self._without_sentinels(values, training)
        if column.unit is not None:
            values = np.asarray(convert(values, self.unit, column.unit, self.name), float)
        if column.special:  # but a number that no column can hold is none of them
            huge = np.isfinite(values) & (np.abs(values) >= LARGEST)
            what = f"is not a valid {column.meaning or column.name}"
            refuse(*_by_row(huge, self.name, values), what, column.special, HINT)
            return values
        return self.checked(values, training)

    def unit_is_doubtful(self, values: np.ndarray) -> str:
        """A question about the unit, where it is assumed and ``values`` are not typical of it."""
        known = values[np.isfinite(values)] if self.column.typical else values[:0]
        if self.unit is not None or self.column.typical is None or not len(known):
            return ""
        (low, high), median = self.column.typical, float(np.median(known))
        if low <= median <= high or (len(known) < FEW and np.any((known >= low) & (known <= high))):
            return ""
        return (
            f"column '{self.name}' has no unit, is taken as {self.column.unit}, and its median is "
            f"{median:.4g}: {self.column.typical_hint}"
        )

    def _without_sentinels(self, values: np.ndarray, training: bool) -> np.ndarray:
        """NaN in place of ``data.sentinels``; refused where the column has to have a value."""
        column = self.column
        found = equals_any(values, self.sentinels)
        if not found.any():
            return values
        if not column.special and column.kind != "flag" and column.replacement(training) is None:
            what = "is unknown, by data.sentinels, which this column must not be"
            expected = column.interval()
            refuse(*_by_row(found, self.name, values), what, expected, HINT, accepts_unknown=False)
        return np.where(found, np.nan, values)

    def checked(self, values: np.ndarray, training: bool) -> np.ndarray:
        """Numbers with impossible ones replaced, or refused by `BadValue`."""
        column = self.column
        bad = np.asarray(~column.possible(values))
        if not bad.any():
            return values
        hint = HINT
        if column.typical_hint and self.unit is None:
            unit = "data.units.<role>=<unit> states it"
            hint = f"{HINT}; there is no unit: {column.typical_hint} {unit}"
        what = f"is not a valid {column.meaning or column.name}"
        expected = ", ".join(filter(None, (column.unit, column.interval())))
        if column.blank_only:
            impossible = np.asarray(bad & ~np.isnan(values))
            refuse(*_by_row(impossible, self.name, values), what, expected, hint)
        if column.above_high:
            above = np.asarray(values > column.high)
            refuse(*_by_row(above, self.name, values), what, expected, column.above_high)
        instead = column.replacement(training)
        if instead is None:
            refuse(*_by_row(bad, self.name, values), what, expected, hint, accepts_unknown=False)
            instead = np.nan
        return np.where(bad, instead, values)


def _by_row(bad: np.ndarray, name: str, values: np.ndarray) -> tuple[np.ndarray, str, np.ndarray]:
    """For `refuse`, of vectors the first bad value of each row."""
    if bad.ndim == 1 or not bad.any():
        return bad, name, values
    first = np.asarray(values[np.arange(len(bad)), bad.argmax(1)])
    return np.asarray(bad.any(1)), name, first


def located(
    declared: Mapping[str, Column], user: Mapping[str, str], catalogue: Catalogue, role: str
) -> CatalogueColumn:
    """The column of ``role`` in a catalogue, whether it is there or not."""
    column = declared[role]
    name = str(user.get(role, column.name))
    unit = catalogue.units.get(name)
    if column.unit_of is not None:
        other = declared[column.unit_of]
        if unit is None:
            unit = catalogue.units.get(str(user.get(column.unit_of, other.name)))
        column = replace(column, unit=other.unit if column.unit is None else column.unit)
    return CatalogueColumn(column, name, unit)


def columns_to_read(
    declared: Mapping[str, Column], user: Mapping[str, str], catalogue: Catalogue, training: bool
) -> dict[str, CatalogueColumn]:
    """Role -> column, of those that are required, optional and there, or named by the user.

    Columns that are required or named are among them even if the catalogue lacks them, which
    `orrery.tables.resolve` then refuses; but a truth that prediction can do without is not.
    """
    found = {}
    for role, column in declared.items():
        need = column.need(training)
        if need in ("unused", "chosen"):
            continue
        here = located(declared, user, catalogue, role)
        named = role in user and (training or not column.truth)
        if need == "required" or named or (need == "optional" and here.name in catalogue.names):
            found[role] = here
    for role, column in declared.items():
        other = found.get(column.required_with or "")
        here = located(declared, user, catalogue, role)
        if other and other.name in catalogue.names and here.name not in catalogue.names:
            raise ValueError(
                f"{catalogue.path}: column '{other.name}' needs its companion: there is no column "
                f"'{here.name}'; map it: data.columns.{role}=<column>\n"
                f"  columns in the file: {', '.join(catalogue.names)}"
            )
    return found


def columns_table(data: type) -> str:
    """A data module's columns as a Markdown table."""
    lines = ["| role | column | unit | possible values | needed | meaning |", "|---" * 6 + "|"]
    declared: Mapping[str, Column] = data.declared  # type: ignore[attr-defined]
    for role, column in declared.items():
        unit = column.unit
        if unit is None and column.unit_of:
            unit = declared[column.unit_of].unit
        when = WHEN[column.need(True), column.need(False)]
        values = column.special or ("" if column.kind in ("text", "flag") else column.interval())
        cells = (f"`{role}`", f"`{column.name}`", unit or "", values, when, column.meaning)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
