"""What every catalogue shares: the streaming interface and the treatment of blanks."""

import contextlib
import gzip
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from astropy import units as u

from .columns import resolve

# What a blank becomes, by the kind of the column; of numbers NaN.
_BLANKS: dict[str, Any] = {"U": "", "O": "", "M": np.datetime64("NaT"), "m": np.timedelta64("NaT")}
MOST_COMPRESSED = 1032  # bytes from one byte of gzip: its format allows no more
# Integers beyond 2**53 are not exact in float64.
_EXACT = 2**53


class Catalogue:
    """A table that is read in chunks; a context manager.

    `names` are the columns in file order, `units` holds only columns that have one, and
    `len(catalogue)` is the number of rows. Formats subclass it with `_blocks`.
    """

    def __init__(
        self,
        path: str,
        names: Sequence[str],
        units: Mapping[str, u.UnitBase | None],
        length: int,
    ) -> None:
        self.path = path
        refuse_twice(names, path)
        # astropy serialises a masked column `x` (HDF5, Parquet) as the pair `x`, `x.mask`.
        self._masks = {n: f"{n}.mask" for n in names if f"{n}.mask" in names}
        self.names = [n for n in names if n not in self._masks.values()]
        self.units = {n: unit for n in self.names if (unit := units.get(n)) is not None}
        self._length = length
        self.constants: dict[str, np.ndarray] = {}  # arrays that are not one per row, if known
        self.descriptions: dict[str, str] = {}  # of columns, where the reader keeps them
        # Whether a column has blanks anywhere; columns not listed are scanned when asked for.
        self._blank: dict[str, bool] = {}
        self._boolean: set[str] = set()
        self._as_text: dict[str, bool] = {}  # whether a column with blanks has longer integers

    def __len__(self) -> int:
        return self._length

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""

    def chunks(
        self,
        columns: Sequence[str],
        rows: int = 65_536,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Stream `columns` over rows start..stop, in order, `rows` at a time (the last is shorter).

        Arrays are (rows,) or (rows, ...) in native byte order. Blank numbers become NaN: an
        integer or boolean column with a blank anywhere in the file is float64 in every chunk, and
        text where float64 cannot hold its numbers exactly, such as long identifiers. Blank strings
        are "". Raises ValueError for missing columns.
        """
        resolve(self.names, {c: c for c in columns}, self.path)
        if rows < 1 or start < 0:
            raise ValueError(f"chunks need rows >= 1 and start >= 0, got {rows=} and {start=}")
        stop = len(self) if stop is None else min(stop, len(self))
        blocks = self._filled(list(dict.fromkeys(columns)), rows, start, stop)
        return self._counted(blocks, start, stop) if os.path.isfile(self.path) else blocks

    def _counted(
        self, blocks: Iterator[dict[str, np.ndarray]], start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """The chunks of a file, which is named in what is raised; also if rows are missing."""
        row = start
        with naming(self.path):
            for block in blocks:
                row += len(next(iter(block.values()), ()))
                yield block
            if row < stop:
                raise OSError(
                    f"{self.path}: looks truncated or damaged: it ends after row {row:,} of "
                    f"{len(self):,}; copy or download it again"
                )

    def _filled(
        self, columns: list[str], rows: int, start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        if unknown := [c for c in columns if c not in self._blank]:
            has_blanks = dict.fromkeys(unknown, False)
            for block in self._masked_blocks(unknown, rows, 0, len(self)):
                for column, values in block.items():
                    has_blanks[column] |= bool(np.ma.is_masked(values))
            self._blank.update(has_blanks)
        if unknown := [c for c in columns if self._blank[c] and c not in self._as_text]:
            self._as_text.update(self._have_long_integers(unknown, rows))
        for block in self._masked_blocks(columns, rows, start, stop):
            yield {c: self._fill(c, block[c]) for c in columns}

    def is_boolean(self, column: str) -> bool:
        """Whether a column that was read is of true and false, also where blanks make it floats."""
        return column in self._boolean

    def is_identifier(self, column: str) -> bool:
        """Whether a column that was read is text for the sake of its long integers."""
        return self._as_text.get(column, False)

    def _have_long_integers(self, columns: list[str], rows: int) -> dict[str, bool]:
        """By column, in one pass, which ends where no column is left that could."""
        found, left = dict.fromkeys(columns, False), list(columns)
        for block in self._masked_blocks(columns, rows, 0, len(self)):
            for column in list(left):
                values = np.ma.compressed(block[column])
                if values.dtype.kind not in "iu" or values.dtype.itemsize < 8:
                    left.remove(column)
                elif np.any(values > _EXACT) or (
                    values.dtype.kind == "i" and np.any(values < -_EXACT)
                ):
                    found[column] = True
                    left.remove(column)
            if not left:
                break
        return found

    def _masked_blocks(
        self, columns: list[str], rows: int, start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        masks = [self._masks[c] for c in columns if c in self._masks]
        for block in self._blocks(columns + masks, rows, start, stop):
            for column in columns:
                if column in self._masks:
                    mask = block[self._masks[column]]
                    block[column] = np.ma.array(block[column], mask=mask)
            yield {c: block[c] for c in columns}

    def _fill(self, column: str, values: np.ndarray) -> np.ndarray:
        if values.dtype.kind == "b":
            self._boolean.add(column)
        if self._blank[column] and values.dtype.kind in "biu":
            if self._as_text[column]:
                mask = np.ma.getmaskarray(values)
                return np.where(mask, "", np.ma.getdata(values).astype(str)).astype(object)
            values = values.astype(np.float64)
        if isinstance(values, np.ma.MaskedArray):
            blank = _BLANKS.get(values.dtype.kind, np.nan)
            return values.filled(blank) if values.mask.any() else values.data
        return values

    def _blocks(
        self, columns: list[str], rows: int, start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield the same as `chunks`, but with masked arrays where there may be blanks."""
        raise NotImplementedError


def refuse_twice(names: Sequence[str], path: str) -> None:
    """Raise ``ValueError`` if two columns have one name."""
    if len(set(names)) < len(names):
        twice = ", ".join(repr(name) for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"{path}: column names occur twice: {twice}; rename one of them")


class ByColumn(Catalogue):
    """A catalogue each column of which is read by itself."""

    def _blocks(
        self, columns: list[str], rows: int, start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        for first, last in spans(rows, start, stop):
            yield {name: self._read(name, first, last) for name in columns}

    def _read(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows ``first`` to ``last`` of a column, a masked array where there may be blanks."""
        raise NotImplementedError


def open_binary(path: str) -> gzip.GzipFile | io.BufferedReader:
    """Open for reading, unpacking gzip."""
    return gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb")


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Name the file in whatever a library raises while it is read: an ``OSError``, of damage.

    Messages of ours, which name the file or the column, stay as they are.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        ours = isinstance(error, OSError | ValueError)
        if ours and path in str(error):
            raise
        if ours and str(error).startswith("column "):
            raise ValueError(f"{path}: {error}") from error
        raise OSError(
            f"{path}: looks truncated or damaged, or its ending is wrong "
            f"({type(error).__name__}: {excerpt(error)}); copy or download it again"
        ) from error


def excerpt(error: BaseException) -> str:
    """The beginning of a message; some libraries quote the file's bytes in theirs."""
    text = str(error)
    return text if len(text) <= 200 else f"{text[:200]}..."


def spans(rows: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut start..stop into pieces of `rows`."""
    for first in range(start, stop, rows):
        yield first, min(first + rows, stop)


def plain(values: np.ndarray, where: str) -> np.ndarray:
    """Native byte order, and bytes decoded to str; `where` names the column in errors."""
    if values.dtype.kind == "S":
        try:
            return np.char.decode(values, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: text that is not UTF-8 ({error})") from error
    return values.astype(values.dtype.newbyteorder("="), copy=False)
