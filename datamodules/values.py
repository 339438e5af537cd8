"""The numbers of a column: what masks mean, and what is refused."""

from collections.abc import Sequence

import numpy as np

NOT_NUMBERS = {"b": "true or false", "c": "complex numbers", "m": "durations", "M": "dates"}
LARGEST = 1e30  # from here on a number is a sentinel, or overflows in single precision


# What surveys publish for "unknown", with either sign
SENTINELS = (9.0, 99.0, 99.9, 99.99, 999.0, 999.9, 999.99, 9999.0, 9999.99, 99999.0)

# Of these, and of -99 and its like, hardly any is measured in several objects
UNLIKELY = (999.0, 999.9, 999.99, 9999.0, 9999.99, 99999.0)
UNLIKELY_NEGATIVE = (-99.0, -99.9, -99.99)
REPEATED = 3  # rows with one value, and this many times more than other values have


class BadValue(ValueError):
    """A value of a column that is refused; ``first`` is its place among the values at hand."""

    def __init__(self, value: str, first: int, count: int, expected: str) -> None:
        self.value, self.first, self.count, self.expected = value, first, count, expected
        super().__init__(self.at(first))

    def at(self, row: int) -> str:
        """The message for ``first`` being row number ``row`` of a catalogue."""
        more = f", and {self.count - 1:,} like it in this chunk" if self.count > 1 else ""
        return f"{self.value} (row {row:,}, counted from 0{more}); expected {self.expected}"


def refuse_other_types(values: np.ndarray, column: str) -> None:
    """Raise a ``ValueError`` for booleans, complex numbers, dates and durations."""
    kind = values.dtype.kind
    if kind == "O" and any(isinstance(cell, bool | np.bool_) for cell in values.flat):
        kind = "b"
    if kind in NOT_NUMBERS:
        raise ValueError(no_numbers(column, kind))


def no_numbers(column: str, kind: str) -> str:
    """That a column is of ``kind``, one of `NOT_NUMBERS`."""
    return (
        f"column '{column}' holds what is no number: {NOT_NUMBERS[kind]}; expected real numbers: "
        f"convert it, or name another column"
    )


def numbers(values: np.ndarray, column: str) -> np.ndarray:
    """(rows,) float64, NaN where they are masked; a copy, for those of a file may be read-only."""
    refuse_other_types(np.ma.getdata(np.ma.asarray(values)), column)
    try:
        array: np.ndarray = np.array(np.ma.filled(np.ma.asarray(values, float), np.nan))
    except (TypeError, ValueError) as error:
        raise ValueError(f"column '{column}' holds what is no number: {error}") from error
    if array.ndim != 1:
        raise ValueError(
            f"column '{column}' holds what is no number: arrays of shape {array.shape[1:]}; "
            f"expected one number per row"
        )
    return array


def equals_any(values: np.ndarray, sentinels: Sequence[float]) -> np.ndarray:
    """Mask of the values that are one of ``sentinels``, also if they were in single precision."""
    mask = np.zeros(np.shape(values), bool)
    for sentinel in sentinels:
        mask |= np.isclose(values, sentinel, rtol=1e-6, atol=0)
    return mask


def refuse(
    bad: np.ndarray,
    column: str,
    values: np.ndarray,
    what: str,
    expected: str,
    hint: str,
    accepts_unknown: bool = True,
) -> None:
    """Raise a `BadValue` about the values of ``column`` that are ``bad``, if any are.

    Where the column ``accepts_unknown`` values, those that look like a sentinel are proposed as
    ``data.sentinels``.
    """
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        value = f"column '{column}': {values[first]} {what}"
        if accepts_unknown and (found := _likely_sentinels(values[bad])):
            hint = (
                f"{hint}. If {found} stands for unknown, set data.sentinels=[{found}]; this "
                "applies to every column"
            )
        raise BadValue(value, first, int(bad.sum()), f"{expected}: {hint}")


def _likely_sentinels(values: np.ndarray) -> str:
    """Refused values that occur three times or more, and that surveys use for "unknown"."""
    if values.dtype.kind not in "iuf":
        return ""
    distinct, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    likely = distinct[(counts >= 3) & equals_any(np.abs(distinct), SENTINELS)]
    return ",".join(f"{value:.6g}" for value in likely)


def repeated_sentinels(cells: np.ndarray, known: Sequence[float] = ()) -> str:
    """Numbers for "unknown" that several rows (rows,) hold, more than hold others; "" if none.

    ``known``: those of which it is known already.
    """
    values = np.ma.filled(np.ma.asarray(cells), np.nan) if cells.dtype.kind == "f" else cells
    if values.dtype.kind not in "if" or values.ndim != 1:
        return ""
    unlikely = np.array([*UNLIKELY, *(-x for x in UNLIKELY), *UNLIKELY_NEGATIVE])
    mask = np.isin(values, [*unlikely, *unlikely.astype(np.float32)])
    mask &= ~equals_any(values, known)
    if mask.sum() < REPEATED:
        return ""
    usual = np.unique(values[np.isfinite(values) & ~mask], return_counts=True)[1]
    least = REPEATED * max(1, float(np.median(usual)) if len(usual) else 1)
    distinct, counts = np.unique(values[mask], return_counts=True)
    return ",".join(f"{value:.6g}" for value in distinct[counts >= least])
