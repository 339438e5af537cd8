"""HDF5: a dataset per column (RAIL, qp, h5py) or a compound dataset (astropy)."""

import io
import math
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from astropy.table.meta import get_header_from_yaml

from orrery.tables.vectors import vectors

from .base import ByColumn, Catalogue, plain
from .columns import parse_unit
from .pandas_hdf5 import PandasCatalogue, frames
from .sink import Sink, TableMetadata

_META = ".__table_column_meta__"  # where astropy's Table.write keeps units


def open_hdf5(path: str, group: str | None) -> Catalogue:
    """Open the columns of `group`, or of the one place that has columns.

    Without `group`: ancil/* and data/* of a qp file, else the group `photometry` (RAIL), else the
    only group or compound dataset with columns.
    """
    file = h5py.File(path, "r", locking=False)  # as others may read it in this process
    try:
        if (frame := _frame(path, file, group)) is not None:
            return PandasCatalogue(path, file, frame)
        return Hdf5Catalogue(path, file, _find(path, file, group))
    except BaseException:
        file.close()
        raise


def _frame(path: str, file: h5py.File, group: str | None) -> h5py.Group | None:
    """The data frame of pandas that is meant, or None if the file has none of that name."""
    found = frames(file)
    if group is not None:
        return file[group] if group.strip("/") in found else None
    if len(found) > 1:
        raise ValueError(
            f"{path}: holds several data frames: {', '.join(found)}; choose one: data.group=<name>"
        )
    return file[found[0]] if found else None


def _find(path: str, file: h5py.File, group: str | None) -> dict[str, h5py.Dataset]:
    places = {"/": _columns(file)}
    file.visititems(lambda name, item: places.update({name: _columns(item)}))
    places = {name: columns for name, columns in places.items() if columns}
    if group is not None:
        place = group.strip("/") or "/"
        if place not in places:
            raise ValueError(f"{path}: no columns at data.group={group}; {_listing(places)}")
        return places[place]
    if "meta/pdf_name" in file:
        return places.get("ancil", {}) | places.get("data", {})
    if "photometry" in places:
        return places["photometry"]
    if len(places) != 1:
        raise ValueError(
            f"{path}: cannot tell which group holds the catalogue; {_listing(places)}; "
            "choose one with data.group=<name>"
        )
    return next(iter(places.values()))


def _listing(places: Mapping[str, object]) -> str:
    return f"groups with columns: {', '.join(places) or 'none'}"


def _columns(item: h5py.Group | h5py.Dataset) -> dict[str, h5py.Dataset]:
    """Column name -> dataset; for a compound dataset every field stands for the dataset."""
    if isinstance(item, h5py.Dataset):
        return dict.fromkeys(item.dtype.names or (), item) if item.ndim == 1 else {}
    return {
        name: member
        for name in item
        if isinstance(member := _member(item, name), h5py.Dataset)
        and member.ndim > 0
        and member.dtype.names is None
        and not name.endswith(_META)
        and not member.attrs.get("constant", False)
    }


def _member(group: h5py.Group, name: str) -> Any:
    """A member of a group; raises ``ValueError`` for a link that leads to another file.

    Soft links are followed here by their path, for the library would follow one out of the file.
    """
    for part in filter(None, name.split("/")):
        link = group.get(part, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(_elsewhere(group.file.filename, name, link.filename))
        if isinstance(link, h5py.SoftLink):
            start = group.file["/"] if link.path.startswith("/") else group
            group = _member(start, link.path)
        else:
            group = group[part] if isinstance(group, h5py.Group) and part in group else None
        if group is None:
            return None
    return group


def _elsewhere(path: str, name: str, other: str) -> str:
    return (
        f"{path}: {name!r} is not in the file but in {other}, which is not opened; copy the data "
        "into the file (h5repack, or h5py), or give the other file"
    )


def _refuse_absent(path: str, name: str, dataset: h5py.Dataset) -> None:
    """Raise if the numbers of a dataset are in other files, or were never written."""
    if dataset.is_virtual:
        if others := [s.file_name for s in dataset.virtual_sources() if s.file_name != "."]:
            raise ValueError(_elsewhere(path, name, others[0]))
        return
    if dataset.external:
        raise ValueError(_elsewhere(path, name, str(dataset.external[0][0])))
    if dataset.chunks:
        expected = math.prod(-(-n // k) for n, k in zip(dataset.shape, dataset.chunks, strict=True))
        whole = dataset.id.get_num_chunks() >= expected
    else:
        whole = dataset.id.get_storage_size() >= dataset.size * dataset.dtype.itemsize
    filled = dataset.id.get_create_plist().fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED
    if not whole and not filled:
        raise OSError(
            f"{path}: {name!r} has {len(dataset):,} rows, not all of which were written; the file "
            "is damaged, or the program that wrote it was interrupted"
        )


class Hdf5Catalogue(ByColumn):
    """Columns by name, each a dataset or a field of a compound dataset."""

    def __init__(self, path: str, file: h5py.File, columns: dict[str, h5py.Dataset]) -> None:
        lengths = {name: len(dataset) for name, dataset in columns.items()}
        if len(set(lengths.values())) > 1:
            sizes = ", ".join(f"{n} {rows}" for n, rows in list(lengths.items())[:20])
            raise ValueError(f"{path}: columns of unequal length ({sizes}); set data.group=<name>")
        for name, dataset in columns.items():
            _refuse_absent(path, name, dataset)
        units = {n: d.attrs.get("unit", d.attrs.get("units")) for n, d in columns.items()}
        for dataset in set(columns.values()):
            if dataset.dtype.names and f"{dataset.name}{_META}" in file:
                lines = [line.decode() for line in file[f"{dataset.name}{_META}"][:]]
                header = get_header_from_yaml(lines)
                units |= {c["name"]: c.get("unit") for c in header["datatype"]}
        length = next(iter(lengths.values()), 0)
        super().__init__(path, list(columns), {n: parse_unit(t) for n, t in units.items()}, length)
        self._file = file
        self._datasets = columns
        self._blank.update({n: False for n in self.names if n not in self._masks})

    def close(self) -> None:
        self._file.close()

    def _read(self, name: str, first: int, last: int) -> np.ndarray:
        dataset = self._datasets[name]
        if dataset.dtype.names:
            values = dataset.fields(name)[first:last]
        elif h5py.check_string_dtype(dataset.dtype):
            values = dataset[first:last]
        else:
            values = dataset[first:last]
            return vectors(values, name) if values.dtype.kind == "O" else plain(values, name)
        if values.dtype.kind == "O":
            return np.array([v.decode() if isinstance(v, bytes) else v for v in values], object)
        return plain(values, f"{self.path}: column {name!r}")


class Hdf5Sink(Sink):
    """A growing dataset per column, at its location."""

    def __init__(self, path: str, first: Mapping[str, np.ndarray], metadata: TableMetadata) -> None:
        super().__init__(path, first, metadata)
        self._raw = _Deferred(path)
        self._file = h5py.File(self._raw, "w", track_order=True)
        self._columns = {name: self._create(name, values) for name, values in first.items()}
        for place, values in metadata.constants.items():
            values = np.asarray(values)
            if values.dtype.kind == "U":
                values = values.astype(h5py.string_dtype())
            self._file.create_dataset(place, data=values).attrs["constant"] = True

    def write(self, chunk: Mapping[str, np.ndarray]) -> None:
        for name, dataset in self._columns.items():
            before = len(dataset)
            dataset.resize(before + len(chunk[name]), axis=0)
            dataset[before:] = chunk[name]
        self._raw.check()

    def close(self) -> None:
        self._file.attrs.update(dict(self.metadata.meta))  # as it is now that all rows are written
        self._file.close()
        self._raw.close()
        self._raw.check()

    def abort(self) -> None:
        self._raw.drop = True
        self._file.close()
        self._raw.close()

    def _create(self, name: str, values: np.ndarray) -> h5py.Dataset:
        shape = values.shape[1:]
        text = values.dtype.kind in "UO"
        row_bytes = 16 if text else max(values.dtype.itemsize * int(np.prod(shape)), 1)
        dataset = self._file.create_dataset(
            self.metadata.locations.get(name, name),
            shape=(0, *shape),
            maxshape=(None, *shape),
            dtype=h5py.string_dtype() if text else values.dtype,
            chunks=(max(2**18 // row_bytes, 1), *shape),
        )
        for key, words in (
            ("unit", self.metadata.units),
            ("description", self.metadata.descriptions),
        ):
            if name in words:
                dataset.attrs[key] = words[name]
        return dataset


class NetcdfSink(Hdf5Sink):
    """HDF5 whose axes have names, as NetCDF 4 wants them: ``rows``, and ``<column>_dim_1``..."""

    def close(self) -> None:
        self._add_dimension("rows", {name: (d, 0) for name, d in self._columns.items()})
        for name, dataset in self._columns.items():
            for axis in range(1, dataset.ndim):
                self._add_dimension(f"{name}_dim_{axis}", {name: (dataset, axis)})
        for place in self.metadata.constants:
            name, dataset = place.replace("/", "_"), self._file[place]
            for axis in range(dataset.ndim):
                self._add_dimension(f"{name}_dim_{axis}", {name: (dataset, axis)})
        super().close()

    def _add_dimension(self, name: str, axes: Mapping[str, tuple[h5py.Dataset, int]]) -> None:
        """A dimension without coordinates, shared by the ``axes`` of datasets."""
        first, axis = next(iter(axes.values()))
        scale = self._file.create_dataset(name, data=np.arange(first.shape[axis]))
        scale.make_scale(name)
        scale.attrs["constant"] = True  # no column of a table that is read back
        for dataset, axis in axes.values():
            dataset.dims[axis].attach_scale(scale)


class _Deferred(io.FileIO):
    """A file that keeps its first write error for `check` instead of raising it.

    The HDF5 library (1.14) segfaults when it closes a file that can no longer be written, as on a
    full disk; here it never learns of the failure, and its later writes are dropped.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, "w+")
        self.drop = False
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`, or pretend to."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest) and not self.drop:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._fail(error)
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the size; HDF5 does this when it closes."""
        try:
            return super().truncate(size) if not self.drop else size or 0
        except OSError as error:
            self._fail(error)
            return size or 0

    def check(self) -> None:
        """Raise what went wrong so far."""
        if self._error:
            raise self._error

    def _fail(self, error: OSError) -> None:
        self._error, self.drop = self._error or error, True
