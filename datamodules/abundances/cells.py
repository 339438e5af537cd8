"""Cells of abundance tables: limits in values and flags, their significance, what is refused."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from orrery.datamodules.values import numbers
from orrery.physics.abundances.solar import identify_scale
from orrery.physics.abundances.species import ELEMENTS

UPPER, MEASURED, LOWER = 1, 0, -1
_BLANK_WORDS = "- -- --- ... .. nan null none n/a na nd \\nodata nodata cdots $\\cdots$"
_BLANKS = frozenset(("", *_BLANK_WORDS.split()))
_FLAGS = {
    "<": UPPER, "<=": UPPER, "≤": UPPER, "ul": UPPER, "u": UPPER, "upper": UPPER,
    "upperlimit": UPPER, "upper limit": UPPER, "true": UPPER, "1": UPPER, "1.0": UPPER,
    ">": LOWER, ">=": LOWER, "≥": LOWER, "ll": LOWER, "l": LOWER, "lower": LOWER, "-1": LOWER,
    "lower limit": LOWER, "-1.0": LOWER,
    "=": MEASURED, "0": MEASURED, "0.0": MEASURED, "false": MEASURED,
}  # fmt: skip
_CELL = re.compile(
    r"(?P<limit>[<>≤≥]=?)?\s*(?P<value>[-+−]?\s?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*:?"
)
_SIGMA = re.compile(r"(\d+(?:\.\d+)?)\s*-?\s*(?:\{sigma\}|\\?sigma|σ)", re.I)

# Elements whose [X/Fe] is within some .6 dex of zero in nearly all stars, so that it tells whether
# a column is [X/H] or [X/Fe]; not so carbon, or the elements of the r- and s-process.
TRACERS = ("Mg", "Si", "Ca", "Sc", "Ti", "Cr", "Mn", "Co", "Ni")
FEW_STARS = 5
FEW_ELEMENTS = 3  # that tell a solar scale


def read_cells(cells: np.ndarray, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Values (rows,), NaN where blank, and flags (rows,): 1 upper limit, -1 lower, 0 neither.

    Text such as "<-1.2", ">0.3", "0.15:" or "..." is understood.
    """
    if np.ma.isMA(cells) and cells.dtype.kind in "UO":
        cells = np.ma.filled(cells, "")
    cells = np.asarray(cells)
    if cells.dtype.kind not in "UO":
        values = numbers(cells, column)
        return values, np.zeros(len(values), int)
    values, flags = np.full(len(cells), np.nan), np.zeros(len(cells), int)
    for row, cell in enumerate(cells):
        text = "" if cell is None else str(cell).strip()
        if text.lower() in _BLANKS:
            continue
        match = _CELL.fullmatch(text)
        if match is None:
            raise ValueError(
                f"column '{column}': '{text}' (row {row:,}, counted from 0) is no abundance; "
                f"expected a number, <1.2 or >1.2 for a limit, or a blank"
            )
        values[row] = float(match["value"].replace("−", "-").replace(" ", ""))
        if match["limit"]:
            flags[row] = _FLAGS[match["limit"]]
    return values, flags


def read_flags(cells: np.ndarray, column: str) -> np.ndarray:
    """Flags of limits (rows,): 1 upper, -1 lower, 0 a measurement; of "<", ">", 1, true, blank."""
    if np.ma.isMA(cells):
        cells = np.ma.filled(cells.astype(object), "")
    flags = np.zeros(len(cells), int)
    for row, cell in enumerate(np.asarray(cells)):
        text = "" if cell is None else str(cell).strip().lower()
        if text in _BLANKS:
            continue
        if text not in _FLAGS:
            raise ValueError(
                f"column '{column}': '{cell}' (row {row:,}, counted from 0) is no flag of a limit; "
                f"expected < or 1 (upper), > or -1 (lower), 0 or a blank (a measurement)"
            )
        flags[row] = _FLAGS[text]
    return flags


def significance_in(description: str) -> float | None:
    """Sigmas of a limit that a column's description states, "Formal 5{sigma} upper limit"."""
    match = _SIGMA.search(description)
    return float(match[1]) if match else None


def elements_of(columns: Mapping[str, object]) -> list[str]:
    """Symbols of the elements that have values among canonical columns, by atomic number."""
    return [e for e in ELEMENTS if value_role(columns, e)]


def value_role(columns: Mapping[str, object], element: str) -> str:
    """The role of the element's values among ``columns``: [X/H] before [X/Fe] before log eps."""
    roles = (f"{element.lower()}_{quantity}" for quantity in ("h", "fe", "logeps"))
    return next((role for role in roles if role in columns), "")


def check_stars(
    columns: Mapping[str, np.ndarray],
    names: Mapping[str, str] | None = None,
    limit_significance: float | None = None,
    first_row: int = 0,
) -> list[str]:
    """Refuse impossible stars, and return sentences on what is odd, but may be.

    ``columns``: canonical, (stars,); ``names``: role -> column of the file, for the messages;
    ``limit_significance``: of limits that have none of their own; ``first_row``: of the chunk.

    Raises ``ValueError`` for an error of a measurement that is zero, negative or blank, for a limit
    without a significance or with one that is not positive, and where no star has any abundance.
    """
    where = _Where(names or {}, columns, first_row)
    elements = elements_of(columns)
    if not elements:
        raise ValueError(
            "there is no column of abundances; expected names such as [Mg/Fe], MgFe, MG_FE, mg_h"
        )
    measured_any = np.zeros(len(columns[value_role(columns, elements[0])]), bool)
    for element in elements:
        x, role = element.lower(), value_role(columns, element)
        value = columns[role]
        limit = columns.get(f"{x}_limit", np.zeros(len(value)))
        limit = np.nan_to_num(np.asarray(limit, float))
        where.refuse(
            ~np.isin(limit, (UPPER, MEASURED, LOWER)), f"{x}_limit", limit,
            "is no flag of a limit", "1 (upper), -1 (lower), 0 or a blank (a measurement)",
        )  # fmt: skip
        known = np.isfinite(value)
        measured_any |= known
        where.refuse(
            known & (np.abs(value) >= (20 if role.endswith("logeps") else 9)), role, value,
            "is no abundance in dex", "values between -9 and 9; if it stands for unknown, set "
            "data.sentinels=[<value>]",
        )  # fmt: skip
        measurement, is_limit = known & (limit == MEASURED), known & (limit != MEASURED)
        error = columns.get(f"{role}_error")
        if error is None:
            if measurement.any():
                raise ValueError(
                    f"{where.name(role)} has no column of errors; expected one named "
                    f"{x}_{role.split('_')[1]}_error, e_{where.column(role)} or similar"
                )
        else:
            with np.errstate(invalid="ignore"):
                bad = measurement & ~(error > 0)
            where.refuse(
                bad, f"{role}_error", error, "is no error of a measurement",
                "a positive number in dex; blank the abundance, or state its error",
            )  # fmt: skip
        significance = columns.get(f"{x}_significance", np.full(len(value), np.nan))
        if limit_significance is not None:
            significance = np.where(np.isnan(significance), limit_significance, significance)
        with np.errstate(invalid="ignore"):
            without = is_limit & ~(significance > 0)
        where.refuse(
            without, f"{x}_significance", significance, f"is no significance of {element}'s limit",
            "sigmas of the line, such as 3: give such a column, or data.limit_significance=3",
        )  # fmt: skip
    if not measured_any.any():
        raise ValueError("no star has any abundance: every value is blank")
    blank = int((~measured_any).sum())
    if not blank:
        return []
    stars = "star has" if blank == 1 else "stars have"
    return [f"{blank:,} {stars} no abundance at all, and say nothing"]


class _Where:
    """Names columns and rows in what is refused."""

    def __init__(
        self, names: Mapping[str, str], columns: Mapping[str, np.ndarray], first_row: int
    ) -> None:
        self.names, self.stars, self.first_row = names, columns.get("name"), first_row

    def column(self, role: str) -> str:
        return self.names.get(role, role)

    def name(self, role: str) -> str:
        return f"column '{self.column(role)}'"

    def refuse(
        self, bad: np.ndarray, role: str, values: np.ndarray, what: str, expected: str
    ) -> None:
        if not bad.any():
            return
        row = int(np.flatnonzero(bad)[0])
        value = values[row]
        got = "a blank" if isinstance(value, float | np.floating) and np.isnan(value) else value
        star = f", star {self.stars[row]}" if self.stars is not None else ""
        more = f"; {int(bad.sum()) - 1:,} more like it" if bad.sum() > 1 else ""
        raise ValueError(
            f"{self.name(role)}: {got} (row {self.first_row + row:,}, counted from 0{star}) "
            f"{what}; expected {expected}{more}"
        )


def looks_like_ratio_to_iron(x_h: np.ndarray, fe_h: np.ndarray) -> str:
    """How one sees that values labelled [X/H] are [X/Fe]; "" where they may be [X/H].

    ``x_h``, ``fe_h``: (stars,) measured values; NaN is unknown. Of an element of `TRACERS`, whose
    [X/Fe] is near zero; only metal-poor stars tell.
    """
    return _confused(x_h, fe_h, "[X/H]", "[X/Fe]")


def looks_like_ratio_to_hydrogen(x_fe: np.ndarray, fe_h: np.ndarray) -> str:
    """How one sees that values labelled [X/Fe] are [X/H]; "" where they may be [X/Fe]."""
    return _confused(x_fe, fe_h, "[X/Fe]", "[X/H]")


def _confused(values: np.ndarray, fe_h: np.ndarray, label: str, other: str) -> str:
    known = np.isfinite(values) & np.isfinite(fe_h)
    values, fe_h = values[known], fe_h[known]
    if len(values) < FEW_STARS or np.median(np.abs(fe_h)) < 0.7:
        return ""
    from_zero, from_iron = np.median(np.abs(values)), np.median(np.abs(values - fe_h))
    near, far = (from_zero, from_iron) if label == "[X/H]" else (from_iron, from_zero)
    if near > 0.6 or far < 2 * near:
        return ""
    close, apart = ("zero", "[Fe/H]") if label == "[X/H]" else ("[Fe/H]", "zero")
    return (
        f"its values are labelled {label} but lie within {near:.2f} dex of {close} (median of "
        f"{len(values):,} stars), {far:.2f} dex from {apart}, as {other} does"
    )


def refuse_confused_ratios(
    columns: Mapping[str, np.ndarray], names: Mapping[str, str] | None = None
) -> None:
    """Raise ``ValueError`` where [X/H] and [X/Fe] are confused; says by which element, and how."""
    fe_h = columns.get("fe_h")
    if fe_h is None:
        return
    for element in TRACERS:
        x = element.lower()
        measured = np.nan_to_num(np.asarray(columns.get(f"{x}_limit", np.zeros(len(fe_h))))) == 0
        for quantity, test, right in (
            ("h", looks_like_ratio_to_iron, "fe"),
            ("fe", looks_like_ratio_to_hydrogen, "h"),
        ):
            role = f"{x}_{quantity}"
            if role not in columns:
                continue
            if how := test(np.where(measured, columns[role], np.nan), fe_h):
                name = (names or {}).get(role, role)
                raise ValueError(
                    f"column '{name}' confuses [X/H] and [X/Fe]: {how}; rename it, or say "
                    f"data.columns.{x}_{right}={name}"
                )


def note_on_scale(elements: Sequence[str], log_eps: np.ndarray, x_h: np.ndarray) -> list[str]:
    """A suggestion of the solar scale that log eps - [X/H] (rows,) is, if it is a known one."""
    known = np.isfinite(np.asarray(log_eps) - np.asarray(x_h))
    if len({x for x, k in zip(elements, known, strict=True) if k}) < FEW_ELEMENTS:
        return []
    scale = identify_scale(elements, log_eps, x_h)
    return [f"by log eps - [X/H] the solar scale is {scale}: data.solar={scale}"] if scale else []


def texts(cells: Sequence[object] | np.ndarray) -> np.ndarray:
    """Identifiers as text without the blanks around them, (rows,)."""
    if np.ma.isMA(cells):
        cells = np.ma.filled(cells.astype(object), "")
    cells = np.asarray(cells)
    if cells.dtype.kind == "S":
        cells = np.char.decode(cells, "utf-8")
    return np.array(["" if c is None else str(c).strip() for c in cells], dtype=str)
