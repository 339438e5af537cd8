"""Numpy's .npz archives: an array per column, read from the archive row by row."""

import math
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.lib import format as npy

from .base import Catalogue, plain, spans


def open_npz(path: str, group: str | None) -> Catalogue:
    """Open the arrays of one length, that of most of them; others, such as a grid, are left out."""
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        heads = {name.removesuffix(".npy"): _head(archive, name) for name in members}
        for name, (shape, _, kind) in heads.items():
            size = archive.getinfo(f"{name}.npy").file_size
            if kind.itemsize * math.prod(shape) > size and not kind.hasobject:
                raise OSError(
                    f"{path}: looks damaged: array {name!r} is to have the shape {shape}, which "
                    f"{size:,} bytes do not hold"
                )
    lengths = Counter(shape[0] for shape, *_ in heads.values() if shape)
    if not lengths:
        raise ValueError(f"{path}: holds no arrays with a row per object")
    length = max(lengths, key=lambda n: (lengths[n], n))
    columns = {n: head for n, head in heads.items() if head[0] and head[0][0] == length}
    for name, (_, _, kind) in columns.items():
        if kind.hasobject or kind.names:
            what = "Python objects" if kind.hasobject else "records"
            raise ValueError(
                f"{path}: array {name!r} holds {what}; save plain arrays, and text as str"
            )
    catalogue = NpzCatalogue(path, columns, length)
    others = [n for n, (shape, _, kind) in heads.items() if n not in columns and not kind.hasobject]
    with np.load(path, allow_pickle=False) as archive:
        catalogue.constants = {name: archive[name] for name in others if heads[name][0]}
    return catalogue


Head = tuple[tuple[int, ...], bool, np.dtype]  # shape, whether in Fortran order, type


def _head(archive: zipfile.ZipFile, name: str) -> Head:
    with archive.open(name) as file:
        return _read_head(file)


def _read_head(file: IO[bytes]) -> Head:
    """What stands before the numbers; they follow in `file`."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read(file)


class NpzCatalogue(Catalogue):
    """Each pass opens the archive anew; arrays in Fortran order are read whole."""

    def __init__(self, path: str, columns: dict[str, Head], length: int) -> None:
        super().__init__(path, list(columns), {}, length)
        self._heads = columns
        self._blank.update({n: False for n in self.names if n not in self._masks})

    def _blocks(
        self, columns: list[str], rows: int, start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        with zipfile.ZipFile(self.path) as archive:
            readers = {name: self._rows(archive, name, rows, start, stop) for name in columns}
            for _ in spans(rows, start, stop):
                yield {name: next(reader) for name, reader in readers.items()}

    def _rows(
        self, archive: zipfile.ZipFile, name: str, rows: int, start: int, stop: int
    ) -> Iterator[np.ndarray]:
        shape, fortran, kind = self._heads[name]
        where = f"{self.path}: array {name!r}"
        with archive.open(f"{name}.npy") as file:
            if fortran:
                whole = npy.read_array(file, allow_pickle=False)
                for first, last in spans(rows, start, stop):
                    yield plain(np.ascontiguousarray(whole[first:last]), where)
                return
            _read_head(file)
            width = kind.itemsize * int(np.prod(shape[1:], dtype=int))
            file.seek(start * width, 1)
            for first, last in spans(rows, start, stop):
                raw = bytearray(file.read((last - first) * width))
                yield plain(np.frombuffer(raw, kind).reshape(last - first, *shape[1:]), where)
