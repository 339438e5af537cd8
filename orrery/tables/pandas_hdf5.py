"""HDF5 as pandas' ``to_hdf`` writes it: the columns of one type are one array, a block.

The fixed format has a dataset per block, ``block0_values`` (rows, columns), and its names in
``block0_items``. The table format has one compound dataset, whose fields are blocks or columns, and
their names as pickles in its attributes. The index is not read.
"""

import io
import pickle
from collections.abc import Iterator
from typing import Any, NamedTuple

import h5py
import numpy as np

from .base import ByColumn, plain


def frames(file: h5py.File) -> list[str]:
    """Paths of the data frames in a file."""
    found: list[str] = []

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if _word(item.attrs.get("pandas_type")) in ("frame", "frame_table"):
            found.append(name)

    file.visititems(visit)
    return found


class _Column(NamedTuple):
    dataset: h5py.Dataset
    field: str | None  # of a compound dataset
    place: int | None  # in its block
    kind: str  # pandas' name of the type: "bool", "datetime64[ns]"...; "" as it is
    blank: str  # of text


class PandasCatalogue(ByColumn):
    """One data frame of an HDF5 file."""

    def __init__(self, path: str, file: h5py.File, group: h5py.Group) -> None:
        is_table = _word(group.attrs["pandas_type"]) == "frame_table"
        columns = list((_of_table if is_table else _of_blocks)(path, group))
        super().__init__(path, [name for name, _ in columns], {}, _length(columns))
        self._file, self._columns = file, dict(columns)
        self._blank.update(dict.fromkeys(self.names, False))

    def close(self) -> None:
        self._file.close()

    def _read(self, name: str, first: int, last: int) -> np.ndarray:
        dataset, field, place, kind, blank = self._columns[name]
        where = f"{self.path}: column {name!r}"
        if dataset.dtype == object or kind == "category":
            raise ValueError(
                f"{where} is text or a category, which pandas' to_hdf writes in a form of its own; "
                "write the file with DataFrame.to_parquet"
            )
        values = dataset[first:last] if field is None else dataset.fields(field)[first:last]
        values = values if place is None else values[:, place]
        if kind == "bool":
            values = values.astype(bool)
        elif kind.startswith(("datetime64", "timedelta64")):
            values = values.astype(np.int64).view(kind if "[" in kind else f"{kind}[ns]")
        values = plain(np.ascontiguousarray(values), where)
        return np.where(values == blank, "", values) if values.dtype.kind == "U" else values


def _of_table(path: str, group: h5py.Group) -> Iterator[tuple[str, _Column]]:
    dataset = group["table"]
    attributes = {name: _word(text) for name, text in dataset.attrs.items()}
    for field in dataset.dtype.names:
        if field == "index" or field.startswith("level_"):
            continue
        names = _unpickled(path, attributes[f"{field}_kind"])
        kind, meta = attributes.get(f"{field}_dtype", ""), attributes.get(f"{field}_meta", "")
        kind = "category" if meta == "category" else kind
        for place, name in enumerate(names):
            in_block = place if dataset.dtype[field].shape else None
            blank = attributes.get(f"{field}_nan_rep", "nan")
            yield str(name), _Column(dataset, field, in_block, kind, blank)


def _of_blocks(path: str, group: h5py.Group) -> Iterator[tuple[str, _Column]]:
    for number in range(int(group.attrs["nblocks"])):
        dataset, items = group[f"block{number}_values"], group[f"block{number}_items"]
        text = dataset.dtype == object
        if not text and (not dataset.attrs.get("transposed") or dataset.shape[1] != len(items)):
            raise ValueError(f"{path}: the data frame {group.name} is not as to_hdf writes one")
        kind = _word(dataset.attrs.get("value_type"))
        if isinstance(dataset.id.get_type(), h5py.h5t.TypeBitfieldID):
            kind = "bool"
        for place, name in enumerate(items[:]):
            column = _Column(dataset, None, place, kind, "nan")
            yield name.decode() if isinstance(name, bytes) else str(name), column


def _length(columns: list[tuple[str, _Column]]) -> int:
    """Rows; a block of text, which is not read, has them all in one cell."""
    lengths = [len(c.dataset) for _, c in columns if c.dataset.dtype != object]
    return lengths[0] if lengths else 0


def _word(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")


class _PlainPickle(pickle.Unpickler):
    """Lists, tuples, texts and numbers; nothing that would run code of the file's."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"a pickle of {module}.{name}")


def _unpickled(path: str, text: str) -> list[Any]:
    names = _PlainPickle(io.BytesIO(text.encode("latin-1"))).load()
    if not isinstance(names, list):
        raise ValueError(f"{path}: the names of its columns are no list, but {names!r:.60}")
    return names
