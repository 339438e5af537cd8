"""The numbers of a column: what masks mean, and what is refused."""

import numpy as np

NOT_NUMBERS = {"b": "true or false", "c": "complex numbers", "m": "durations", "M": "dates"}
LARGEST = 1e30  # from here on a number is a sentinel, or overflows in single precision


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
        raise ValueError(
            f"column '{column}' holds what is no number: {NOT_NUMBERS[kind]}; expected real "
            f"numbers: convert it, or name another column"
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


def refuse(
    bad: np.ndarray, column: str, values: np.ndarray, what: str, expected: str, hint: str
) -> None:
    """Raise a `BadValue` about the values of ``column`` that are ``bad``, if any are."""
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        value = f"column '{column}': {values[first]} {what}"
        raise BadValue(value, first, int(bad.sum()), f"{expected}: {hint}")
