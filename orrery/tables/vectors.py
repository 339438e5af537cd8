"""Columns that hold an array per row, as files and programs spell them, as (rows, k) numbers.

"(1.0, 2.0)" is a cell of a DataLink CSV, "[1.0,2.0]" of a bulk ECSV file, "[1. 2.]" what numpy
prints, and a data frame may hold lists, tuples, arrays or any of those texts.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

_BLANK_CELLS = {"", "null", "none", "nan", "--", "()", "[]"}
_BLANK_NUMBERS = ["", "null", "NULL", "None", "nan", "NaN", "NAN", "--", "masked"]
_BLANK_NUMBERS += [f" {blank}" for blank in _BLANK_NUMBERS]  # after a comma
# What Python writes around the numbers of an array: "array([1., 2.], dtype=float32)" and
# "[np.float64(1.0), np.float64(2.0)]".
_ARRAY = re.compile(r"(?:np\.)?array\((.*?)(?:,\s*dtype=[\w.]+)?\)", re.DOTALL)
_SCALAR = re.compile(r"np\.float\d+\(([^()]*)\)")
_BRACKETS = {("(", ")"), ("[", "]"), ("{", "}")}


def vectors(values: Any, column: str, size: int | None = None) -> np.ndarray:
    """(rows, k) float64 of a column of arrays or of their texts; a blank row becomes NaN.

    `size` is the k expected; by default it is that of the first row that is not blank, and k is 0
    where all rows are. Blank are None, a masked cell, "", "null", an array of length 0 or of NaN
    alone. Raises ValueError, naming the column and the row within `values`, for rows of another
    length and for text that is not an array of numbers.
    """
    numbers, counts = flatten(values, column)
    lengths = counts
    if len(np.unique(counts[counts > 0])) > 1 or size not in (None, *counts.tolist()):
        rows = np.split(numbers, np.cumsum(counts))[:-1]
        lengths = np.array([0 if np.isnan(row).all() else len(row) for row in rows], int)
    if size is None:
        size = int(lengths[lengths > 0][0]) if lengths.any() else 0
    for row in np.flatnonzero((lengths != size) & (lengths > 0)).tolist():
        raise ValueError(
            f"column '{column}', row {row}: an array of {lengths[row]} numbers, where {size} are "
            "expected; the arrays of a column have one length, or are blank"
        )
    whole = lengths == size
    if whole.all() and lengths is counts:
        return numbers.reshape(len(counts), size)
    array = np.full((len(counts), size), np.nan)
    array[whole] = numbers[np.repeat(whole, counts)].reshape(-1, size)
    return array


def flatten(values: Any, column: str, spoilt: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of all rows one after the other, how many each row has), of rows of any length.

    A blank row has 0. Text that is not an array of numbers raises ValueError; where `spoilt` rows
    are allowed it has -1, and no numbers.
    """
    if isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind in "biuf":
        array: np.ndarray = np.array(np.ma.filled(np.ma.asarray(values, float), np.nan))
        return array.ravel(), np.full(len(array), array.shape[1])
    cells = list(np.ma.getdata(values) if np.ma.isMaskedArray(values) else values)
    if np.ma.is_masked(values):
        gone = np.ma.getmaskarray(values)
        cells = [None if g else cell for g, cell in zip(gone, cells, strict=True)]
    if any(isinstance(cell, str) for cell in cells):
        return _read_texts(cells, column, spoilt)
    rows = [_row(cell, column, i) for i, cell in enumerate(cells)]
    return np.concatenate([np.zeros(0), *rows]), np.array([len(row) for row in rows], int)


def _row(cell: Any, column: str, number: int) -> np.ndarray:
    """(k,) float64 of one array; of None or NaN, (0,)."""
    if cell is None or cell is np.ma.masked:
        return np.zeros(0)
    try:
        row: np.ndarray = np.array(np.ma.filled(np.ma.asarray(cell, float), np.nan))
    except (TypeError, ValueError) as error:
        raise _no_array(column, number, cell) from error
    if row.ndim == 0 and np.isnan(row):
        return np.zeros(0)
    if row.ndim != 1:
        raise _no_array(column, number, cell)
    return row


def _read_texts(cells: Sequence[Any], column: str, spoilt: bool) -> tuple[np.ndarray, np.ndarray]:
    texts = [_between_commas(cell, column, i) for i, cell in enumerate(cells)]
    numbers = None if None in texts else _parse([text for text in texts if text])
    wrong: list[int] = []
    if numbers is None:  # find the rows that are at fault
        wrong = [i for i, t in enumerate(texts) if t is None or (t and _parse([t]) is None)]
        if not spoilt:
            raise _no_array(column, wrong[0], cells[wrong[0]])
        for i in wrong:
            texts[i] = ""
        numbers = _parse([text for text in texts if text])
        assert numbers is not None
    lengths = np.array([text.count(",") + 1 if text else 0 for text in texts], int)
    lengths[wrong] = -1
    return numbers, lengths


def _between_commas(cell: Any, column: str, number: int) -> str | None:
    """The "1.0, 2.0" of "(1.0, 2.0)"; "" of a blank, None of what is no array."""
    if not isinstance(cell, str):
        return ",".join(map(repr, _row(cell, column, number).tolist()))
    text = cell.strip()
    if text.lower() in _BLANK_CELLS:
        return ""
    if "array(" in text and (match := _ARRAY.fullmatch(text)):
        text = match[1].strip()
    if "np.float" in text:
        text = _SCALAR.sub(r"\1", text)
    if (text[0], text[-1]) not in _BRACKETS:
        return None
    text = text[1:-1].strip()
    if "," not in text:  # as numpy prints
        return ",".join(text.split())
    if "\n" in text:
        text = " ".join(text.split())
    return text.removesuffix(",")


def _parse(texts: Sequence[str]) -> np.ndarray | None:
    """(total,) float64 of numbers between commas; None where one of them is no number.

    Arrow's reader of a CSV file of one column takes half the time of np.fromstring.
    """
    if not texts:
        return np.zeros(0)
    lines = ",".join(texts).replace(",", "\n").encode()
    try:
        table = csv.read_csv(
            pa.py_buffer(lines),
            csv.ReadOptions(use_threads=False, column_names=["x"], block_size=2**22),
            csv.ParseOptions(delimiter="\1", quote_char=False, ignore_empty_lines=False),
            csv.ConvertOptions(column_types={"x": pa.float64()}, null_values=_BLANK_NUMBERS),
        )
    except pa.ArrowInvalid:
        return None
    return np.array(table["x"].to_numpy())


def _no_array(column: str, row: int, cell: Any) -> ValueError:
    text = str(cell)
    excerpt = text if len(text) <= 60 else f"{text[:60]}..."
    what = f"column '{column}', row {row}: {excerpt!r} is not an array of numbers"
    if isinstance(cell, str) and "..." in text:
        return ValueError(
            f"{what}, but one that numpy shortened with '...' when it printed it; those numbers "
            "are lost: write the column anew, from lists (tolist())"
        )
    if np.ndim(cell) > 1:
        return ValueError(
            f"column '{column}', row {row}: an array of shape {np.shape(cell)}; expected one row "
            f"of numbers, such as the upper triangle of a matrix, column by column"
        )
    return ValueError(f"{what}; expected a text such as '(1.0, 2.0)' or '[1.0, 2.0]'")
