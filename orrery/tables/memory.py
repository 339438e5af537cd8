"""Tables that are already in memory, behind the same interface."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.utils.masked import Masked
from astropy.utils.shapes import ShapedLikeNDArray

from orrery.tables.vectors import vectors

from .arrow import to_numpy
from .base import Catalogue, plain, refuse_twice, spans
from .columns import parse_unit

_ARRAYS = (np.ndarray, list, tuple)
_NAMES = ("colnames", "column_names", "columns")  # of astropy, pyarrow, pandas and polars


def read_table(table: Any) -> Catalogue:
    """A Catalogue over an astropy Table, a pandas/polars/pyarrow table or a dict of arrays.

    Units are taken from columns that have them (astropy Column and Quantity). Raises ValueError
    when the columns differ in length, TypeError when `table` is not a table.
    """
    if not any(hasattr(table, name) for name in (*_NAMES, "dtype", "keys")):
        got = f"{type(table).__name__} {table!r:.60}"
        raise TypeError(
            f"expected an astropy Table, a DataFrame or a dict of arrays, got {got}; "
            "of a file, give what astropy.table.Table.read returns"
        )
    return MemoryCatalogue(table)


class MemoryCatalogue(Catalogue):
    """Columns are converted when first asked for; `path` is the file that they came from."""

    def __init__(self, table: Any, path: str | None = None) -> None:
        path = path or f"<{type(table).__name__} in memory>"
        refuse_twice([str(name) for name in _names(table)], path)
        columns = {str(name): table[name] for name in _names(table)}
        try:
            lengths = {name: len(column) for name, column in columns.items()}
        except TypeError as error:
            raise ValueError(
                "expected columns with an entry per object, got single numbers; of one object, "
                "give table[i : i + 1], or a dict of arrays of length 1"
            ) from error
        if len(set(lengths.values())) > 1:
            sizes = ", ".join(f"{name} {rows}" for name, rows in lengths.items())
            raise ValueError(f"the columns of the table have unequal lengths: {sizes}")
        units = {name: parse_unit(getattr(c, "unit", None)) for name, c in columns.items()}
        super().__init__(path, list(columns), units, next(iter(lengths.values()), 0))
        described = {name: getattr(c, "description", None) for name, c in columns.items()}
        self.descriptions = {n: str(d) for n, d in described.items() if isinstance(d, str) and d}
        self._columns = columns
        self._arrays: dict[str, np.ndarray] = {}

    def _blocks(
        self, columns: list[str], rows: int, start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        for name in columns:
            if name not in self._arrays:
                self._arrays[name] = _array(self._columns[name], self.path, name)
        for first, last in spans(rows, start, stop):
            yield {name: self._arrays[name][first:last] for name in columns}


def _names(table: Any) -> Any:
    for attribute in _NAMES:
        if hasattr(table, attribute):
            return getattr(table, attribute)
    return table.dtype.names or () if hasattr(table, "dtype") else table.keys()


def _array(column: Any, path: str, name: str) -> np.ndarray:
    """A numpy array, masked where there are blanks."""
    where = f"{path}: column {name!r}"
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return to_numpy(column, where)
    if hasattr(column, "to_arrow"):  # polars
        return to_numpy(column.to_arrow(), where)
    if hasattr(column, "isna"):  # pandas, also with its nullable types
        kind = column.dtype
        if not isinstance(kind, np.dtype) or kind.kind == "O":
            return _of_objects(column, where, name)
        return plain(column.to_numpy(), where)
    if isinstance(column, ShapedLikeNDArray):
        raise ValueError(
            f"{where} is a {type(column).__name__} of astropy, not an array of numbers; give what "
            "is wanted of it as a column of its own, such as coordinates.ra or time.mjd"
        )
    values = _masked(column)
    if values.dtype.kind == "O":
        return _of_objects(values, where, name)
    return plain(values, where)


def _masked(column: Any) -> np.ndarray:
    """The array of a Column, a Quantity or a list; masked if one of astropy's masks is on it."""
    if isinstance(column, Masked):
        bare = column.unmasked
        return np.ma.array(getattr(bare, "value", bare), mask=column.mask)
    if isinstance(column, list | tuple) and any(cell is np.ma.masked for cell in column):
        column = np.array([None if cell is np.ma.masked else cell for cell in column], object)
    values = getattr(column, "value", column)
    return values if np.ma.isMaskedArray(values) else np.asarray(values)


def _of_objects(column: Any, where: str, name: str) -> np.ndarray:
    """Of a column of Python objects: numbers or texts with None among them, or arrays."""
    if isinstance(column, np.ndarray):
        if any(isinstance(cell, _ARRAYS) for cell in np.ma.getdata(column).flat):
            return vectors(column, name)
        blank = np.ma.getmaskarray(column).ravel()
        cells = [None if b else c for b, c in zip(blank, np.ma.getdata(column).flat, strict=True)]
        if column.ndim > 1:
            raise ValueError(f"{where} holds Python objects; make it an array of numbers")
    else:
        cells = column
    try:
        return to_numpy(pa.array(cells, from_pandas=True), where)
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"{where}: mixed or unknown types ({error})") from error
