"""Tables that are already in memory, behind the same interface."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from .arrow import to_numpy
from .base import Catalogue, plain, spans
from .columns import parse_unit


def read_table(table: Any) -> Catalogue:
    """A Catalogue over an astropy Table, a pandas/polars/pyarrow table or a dict of arrays.

    Units are taken from columns that have them (astropy Column and Quantity). Raises ValueError
    when the columns differ in length, TypeError when `table` is not a table.
    """
    if not hasattr(table, "__getitem__"):
        raise TypeError(
            "expected an astropy Table, a DataFrame or a dict of arrays, got "
            f"{type(table).__name__}"
        )
    return MemoryCatalogue(table)


class MemoryCatalogue(Catalogue):
    """Columns are converted when first asked for."""

    def __init__(self, table: Any) -> None:
        columns = {str(name): table[name] for name in _names(table)}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name} {rows}" for name, rows in lengths.items())
            raise ValueError(f"the columns of the table have unequal lengths: {shown}")
        units = {name: parse_unit(getattr(c, "unit", None)) for name, c in columns.items()}
        path = f"<{type(table).__name__} in memory>"
        super().__init__(path, list(columns), units, next(iter(lengths.values()), 0))
        self._columns = columns
        self._arrays: dict[str, np.ndarray] = {}

    def _blocks(
        self, columns: list[str], rows: int, start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        for name in columns:
            if name not in self._arrays:
                self._arrays[name] = _array(self._columns[name], f"{self.path}: column {name!r}")
        for first, last in spans(rows, start, stop):
            yield {name: self._arrays[name][first:last] for name in columns}


def _names(table: Any) -> Any:
    for attribute in ("colnames", "column_names", "columns"):  # astropy, pyarrow, pandas/polars
        if hasattr(table, attribute):
            return getattr(table, attribute)
    return table.dtype.names or () if hasattr(table, "dtype") else table.keys()


def _array(column: Any, where: str) -> np.ndarray:
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
    return plain(values, where)
