"""Tables that are already in memory, behind the same interface."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from orrery.tables.vectors import vectors

from .arrow import to_numpy
from .base import Catalogue, plain, spans
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
        path = path or f"<{type(table).__name__} in memory>"
        super().__init__(path, list(columns), units, next(iter(lengths.values()), 0))
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
    where = f"{path}: column {name!r}"
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return to_numpy(column, where)
    if hasattr(column, "to_arrow"):  # polars
        return to_numpy(column.to_arrow(), where)
    if hasattr(column, "isna"):  # pandas, also with its nullable types
        try:
            return to_numpy(pa.array(column, from_pandas=True), where)
        except pa.ArrowException as error:
            raise ValueError(f"{where}: mixed or unknown types ({error})") from error
    values = getattr(column, "value", column)  # Quantity and astropy Column
    values = values if np.ma.isMaskedArray(values) else np.asarray(values)
    if values.dtype.kind == "O" and any(isinstance(cell, _ARRAYS) for cell in values.flat):
        return vectors(values, name)
    return plain(values, where)
