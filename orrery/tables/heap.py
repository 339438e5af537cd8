"""Arrays of variable length behind a FITS binary table (FITS standard 4.0, section 7.3.5)."""

import shutil
import tempfile
from collections.abc import Iterable
from typing import IO

import numpy as np
from astropy.io import fits

from .base import open_binary

# Storage of the array elements by FITS code; L holds the letters T and F.
_TYPES = {"L": "i1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}


def code(column: fits.Column) -> str:
    """The type of a column's elements, of those in the heap too; P or Q of heaped bits and text."""
    kind = column.format.format
    in_heap = kind in "PQ" and column.format.p_format in _TYPES
    return str(column.format.p_format if in_heap else kind)


def in_heap(column: fits.Column) -> bool:
    """Whether the rows of this column point to arrays of numbers in the heap."""
    return column.format.format in "PQ" and code(column) in _TYPES


class Heap:
    """The arrays that a table's descriptors point to, in the `size` bytes from `start`.

    A compressed file is unpacked into a temporary one, for an array may lie anywhere.
    """

    def __init__(self, path: str, start: int, size: int) -> None:
        self._path, self._start, self._size = path, start, size
        self._lengths: dict[str, int] = {}
        self._file: IO[bytes] | None = None

    def measured(self, name: str) -> bool:
        return name in self._lengths

    def measure(self, name: str, pieces: Iterable[tuple[int, np.ndarray]]) -> None:
        """Find the one length of a column's arrays from all its (first row, descriptors)."""
        length = place = 0
        for first, descriptors in pieces:
            counts = _split(descriptors)[0]
            filled = np.flatnonzero(counts)
            if not length and len(filled):
                length, place = int(counts[filled[0]]), first + int(filled[0])
            for row in filled[counts[filled] != length].tolist():
                raise ValueError(
                    f"{self._path}: column {name!r} has an array of {length} in row {place} and "
                    f"of {counts[row]} in row {first + row}; the arrays of a column have one "
                    "length, or are empty"
                )
        self._lengths[name] = length

    def read(self, name: str, column: fits.Column, descriptors: np.ndarray) -> np.ndarray:
        """(rows, k) as stored, masked where a row is empty.

        The heap is mapped for the time of this call, so that only these arrays take memory.
        """
        counts, offsets = _split(descriptors)
        kind, k = np.dtype(_TYPES[code(column)]), self._lengths[name]
        filled = counts > 0
        array = np.zeros((len(counts), k), kind)
        if filled.any():
            width = k * kind.itemsize
            if offsets[filled].max() + width > self._size or offsets[filled].min() < 0:
                raise OSError(f"{self._path}: damaged: arrays of {name!r} lie outside the file")
            heap = np.memmap(self._open(), np.uint8, "r", self._start, (self._size,))
            everywhere = np.lib.stride_tricks.sliding_window_view(heap, width)
            array[filled] = everywhere[offsets[filled]].view(kind)
        return array if filled.all() else np.ma.array(array, mask=np.repeat(~filled[:, None], k, 1))

    def _open(self) -> IO[bytes]:
        if self._file is None and not self._path.lower().endswith(".gz"):
            self._file = open(self._path, "rb")
        if self._file is None:
            unpacked = tempfile.TemporaryFile()
            with open_binary(self._path) as packed:
                shutil.copyfileobj(packed, unpacked, 2**20)
            unpacked.flush()
            self._file = unpacked
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _split(descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of elements and place in the heap, each (rows,) int64; those of P have no sign."""
    raw = descriptors.view(">u4") if descriptors.dtype.itemsize == 4 else descriptors
    return raw[:, 0].astype(np.int64), raw[:, 1].astype(np.int64)
