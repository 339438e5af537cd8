"""Write a table chunk by chunk; the final name appears only when the file is complete."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
from astropy import units as u

from orrery.files import finish, unfinished

from .fits import FitsSink
from .hdf5 import Hdf5Sink, NetcdfSink
from .parquet import ParquetSink
from .sink import Sink, TableMetadata
from .text import CsvSink, EcsvSink

SINKS: dict[str, type[Sink]] = {
    ".fits": FitsSink,
    ".fit": FitsSink,
    ".ecsv": EcsvSink,
    ".csv": CsvSink,
    ".parquet": ParquetSink,
    ".pq": ParquetSink,
    ".hdf5": Hdf5Sink,
    ".h5": Hdf5Sink,
    ".hdf": Hdf5Sink,
    ".nc": NetcdfSink,
}


class Writer:
    """A context manager that writes a table in the format of the file's ending.

    units, descriptions: by column name; stored where the format has a place (CSV has none).
    locations: HDF5 only: column -> dataset path; by default the column's name at the root.
    constants: arrays that are not one per row, by path: an HDF5 dataset, a FITS extension, JSON
        in the metadata of Parquet and ECSV (under the last part of the path), nothing in CSV.
    meta: provenance strings: FITS cards, ECSV and Parquet metadata, HDF5 root attributes.

    Rows go to a hidden file in the target's folder, which takes the target's name on a clean exit;
    after an exception it is removed and an older file under that name stays as it was. A link is
    written through to its target.
    Raises ValueError for a bad ending, unit or chunk, OSError naming the path when writing fails.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        units: Mapping[str, str] | None = None,
        descriptions: Mapping[str, str] | None = None,
        locations: Mapping[str, str] | None = None,
        constants: Mapping[str, np.ndarray] | None = None,
        meta: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        self._kind = sink_for(path)
        for column, unit in (units or {}).items():
            try:
                u.Unit(unit)
            except (ValueError, TypeError) as error:
                raise ValueError(f"column {column!r}: unknown unit {unit!r} ({error})") from error
        self._metadata = TableMetadata(
            units or {}, descriptions or {}, locations or {}, constants or {}, meta or {}
        )
        self._hidden = unfinished(path)
        self._sink: Sink | None = None
        self._layout: dict[str, tuple[object, ...]] = {}

    def __enter__(self) -> Self:
        return self

    def write(self, chunk: Mapping[str, np.ndarray]) -> None:
        """Append rows: arrays (rows,) or (rows, ...) of one length.

        The first chunk fixes names, types and shapes; raises ValueError when a later one differs.
        """
        columns = {name: _checked(name, values) for name, values in chunk.items()}
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{self.path}: a chunk needs columns of one length, got {lengths}")
        layout = {name: _layout(values) for name, values in columns.items()}
        try:
            if self._sink is None:
                self._layout = layout
                self._sink = self._kind(str(self._hidden), columns, self._metadata)
            if layout != self._layout:
                changed = _differences(layout, self._layout)
                raise ValueError(f"{self.path}: this chunk differs from the first: {changed}")
            self._sink.write({name: columns[name] for name in self._layout})
        except (OSError, RuntimeError, pa.ArrowException) as error:
            raise self._failure(error) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except (OSError, RuntimeError, pa.ArrowException) as failure:
            raise self._failure(failure) from failure
        finally:
            self._discard()

    def _finish(self) -> None:
        if self._sink is None:
            raise ValueError(f"{self.path}: nothing was written to it, not even an empty chunk")
        self._sink.close()
        self._sink = None
        finish(self._hidden, self.path)

    def _discard(self) -> None:
        """Remove the hidden file, if it is still there."""
        if self._sink is not None:
            # A full disk also refuses the last flush; the file goes anyway.
            with contextlib.suppress(OSError, RuntimeError, pa.ArrowException):
                self._sink.abort()
            self._sink = None
        self._hidden.unlink(missing_ok=True)

    def _failure(self, error: Exception) -> OSError:
        number = getattr(error, "errno", None)
        text = f"writing {self.path} failed: {error}; nothing was left under that name"
        return OSError(number, text) if number else OSError(text)


def sink_for(path: str | os.PathLike[str]) -> type[Sink]:
    """The format of a file to be written, by its ending; raises where none can be."""
    path = Path(path)
    name = path.name.lower()
    ending = next((e for e in SINKS if name.endswith(e)), None)
    if ending is None:
        also = "; write it uncompressed and gzip it" if name.endswith(".gz") else ""
        if not path.suffix:
            also = "; a folder is written of a catalogue in HATS"
        raise ValueError(f"{path}: cannot write this ending; known: {' '.join(SINKS)}{also}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; output must name a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder does not exist; make it first")
    return SINKS[ending]


def has_ending(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of a file that can be written."""
    return Path(path).name.lower().endswith(tuple(SINKS))


def refuse_taken_folder(path: str | os.PathLike[str]) -> None:
    """Raise where a folder of this name cannot be written."""
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(
            f"output={path} is there already, and not empty; remove it, or name another folder"
        )
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder does not exist; make it first")


def _checked(name: str, values: np.ndarray) -> np.ndarray:
    """Native numbers, booleans or text; nothing that a format would write wrongly."""
    if np.ma.isMaskedArray(values):
        raise ValueError(f"column {name!r} is a masked array; fill it (NaN) before writing")
    array = np.asarray(values)
    if array.dtype.kind == "M":
        array = np.datetime_as_string(array)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind == "O" and not all(isinstance(v, str) for v in array.flat):
        raise ValueError(f"column {name!r} holds Python objects that are not strings")
    if array.dtype.kind not in "biufUO" or array.ndim == 0:
        raise ValueError(f"column {name!r}: cannot write {array.dtype} of shape {array.shape}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _layout(values: np.ndarray) -> tuple[object, ...]:
    kind = "text" if values.dtype.kind in "UO" else str(values.dtype)
    return (kind, *values.shape[1:])


def _differences(now: Mapping[str, object], first: Mapping[str, object]) -> str:
    names = [n for n in {**first, **now} if now.get(n) != first.get(n)]
    parts = [f"{n}: {now.get(n, 'absent')}, at first {first.get(n, 'absent')}" for n in names]
    return "; ".join(parts)
