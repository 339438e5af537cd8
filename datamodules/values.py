"""The numbers of a column: what masks mean, and what is refused."""

import numpy as np


def numbers(values: np.ndarray, column: str) -> np.ndarray:
    """In float64, NaN where they are masked; a copy, for those of a file may be read-only."""
    try:
        return np.array(np.ma.filled(np.ma.asarray(values, float), np.nan))
    except (TypeError, ValueError) as error:
        raise ValueError(f"column '{column}' holds what is no number: {error}") from error


def refuse(
    bad: np.ndarray, column: str, values: np.ndarray, what: str, expected: str, mend: str
) -> None:
    """Raise a ``ValueError`` about the values of ``column`` that are ``bad``, if any are."""
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"column '{column}': {values[first]} {what} ({int(bad.sum()):,} such rows, "
            f"the first is number {first} there); expected {expected}: {mend}"
        )
