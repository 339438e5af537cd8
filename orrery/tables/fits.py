"""FITS binary tables, read and written row block by row block.

astropy parses the headers. Rows are read here: on 2 million rows of 94 MB astropy's reader takes as
much CPU time but memory that grows with the file (109 against 23 MB, 179 against 24 MB of a .gz),
and 180 times the time for arrays of variable length, of which it makes an object each.
"""

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from typing import IO

import numpy as np
from astropy import units as u
from astropy.io import fits

from .base import MOST_COMPRESSED, Catalogue, open_binary, plain, spans
from .columns import parse_unit
from .heap import Heap, code, in_heap
from .several import TableInFile, chosen_tables, joined
from .sink import Sink, TableMetadata

# FITS binary table codes by numpy type (FITS standard 4.0, table 18).
_CODES = {"b1": "L", "u1": "B", "i2": "I", "i4": "J", "i8": "K", "f4": "E", "f8": "D"}
_BLOCK = 2880


def open_fits(path: str, group: str | None) -> Catalogue:
    """Open the binary table, or of several that of this EXTNAME or number (0: the primary HDU).

    Tables of the same columns are read as one.
    """
    with _opened(path) as hdus:
        found = _tables(hdus)
    if group is None:  # without the constants that `FitsSink` writes beside a table
        constants = [t for t in found if [t.name.lower()] == [name.lower() for name in t.columns]]
        found = [t for t in found if t not in constants] or found
    if not found:
        raise ValueError(
            f"{path}: no complete binary table in this FITS file; it holds an image or an ASCII "
            "table, or looks truncated"
        )
    return joined(path, chosen_tables(path, found, group), lambda table: _open_one(path, table))


@contextlib.contextmanager
def _opened(path: str) -> Iterator[fits.HDUList]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # truncation is checked later, as an error
        with fits.open(path) as hdus:
            yield hdus


def _tables(hdus: fits.HDUList) -> list[TableInFile]:
    """The binary tables of a file."""
    tables = []
    end = -1  # of the extension before; a damaged header can lead astropy back to it for ever
    for number, hdu in enumerate(hdus):
        place = hdu.fileinfo() if hasattr(hdu, "fileinfo") else None
        if place is None:
            raise OSError(f"extension {number} has a damaged header")
        if place["hdrLoc"] <= end or place["datSpan"] < 0:
            raise OSError(f"extension {number} begins within the one before it")
        end = place["hdrLoc"]
        if isinstance(hdu, fits.BinTableHDU):
            rows = int(hdu.header["NAXIS2"])
            if rows < 0:
                raise OSError(f"extension {number} has {rows} rows")
            tables.append(TableInFile(number, hdu.name, list(hdu.columns.names), rows))
    return tables


def _open_one(path: str, table: TableInFile) -> "FitsCatalogue":
    with _opened(path) as hdus:
        hdu = hdus[table.number]
        if hdu.header.get("ZTABLE"):
            raise ValueError(f"{path}: a compressed table; run funpack on it first")
        return FitsCatalogue(path, hdu.columns, hdu)


class FitsCatalogue(Catalogue):
    """One binary table; each pass opens the file anew and reads whole rows.

    Arrays of variable length (formats P and Q) are read as (rows, k) where all rows of the file
    have one length or none, which is a blank.
    """

    def __init__(self, path: str, columns: fits.ColDefs, hdu: fits.BinTableHDU) -> None:
        units = {c.name: parse_unit(c.unit) for c in columns}
        super().__init__(path, columns.names, units, int(hdu.header["NAXIS2"]))
        self._columns = {c.name: c for c in columns}
        self._rows = columns.dtype.newbyteorder(">")
        self._offset = hdu.fileinfo()["datLoc"]
        table = len(self) * self._rows.itemsize
        whole = table + int(hdu.header.get("PCOUNT", 0))
        heap = int(hdu.header.get("THEAP", table))
        self._heap = Heap(path, self._offset + heap, whole - heap)
        self._blank.update(
            {
                c.name: False
                for c in columns
                if c.null is None and code(c) != "L" and (code(c) in "ED" or not in_heap(c))
            }
        )
        needed, size = self._offset + whole, os.path.getsize(path)
        packed = path.lower().endswith(".gz")
        if needed > (size * MOST_COMPRESSED if packed else size):
            raise OSError(
                f"{path}: looks truncated: its table of {len(self)} rows needs {needed} bytes, the "
                f"file has {size}{' compressed ones' if packed else ''}; copy or download it again"
            )

    def close(self) -> None:
        self._heap.close()

    def _blocks(
        self, columns: list[str], rows: int, start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        for name in columns:
            if code(self._columns[name]) in "PQX":
                raise ValueError(
                    f"{self.path}: column {name!r} has bits, or text of variable length (format "
                    f"{self._columns[name].format}), which cannot be read as a plain array"
                )
            if in_heap(self._columns[name]) and not self._heap.measured(name):
                pieces = self._tables(65_536, 0, len(self))
                self._heap.measure(name, ((first, table[name]) for first, table in pieces))
        for _, table in self._tables(rows, start, stop):
            yield {name: self._read(table[name], name) for name in columns}

    def _tables(self, rows: int, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first row, rows as they are in the file)."""
        width = self._rows.itemsize
        with open_binary(self.path) as file:
            file.seek(self._offset + start * width)
            for first, last in spans(rows, start, stop):
                raw = file.read((last - first) * width)
                if len(raw) < (last - first) * width:
                    raise OSError(f"{self.path}: looks truncated: it ends before row {last}")
                yield first, np.frombuffer(raw, self._rows)

    def _read(self, raw: np.ndarray, name: str) -> np.ndarray:
        if not in_heap(self._columns[name]):
            return self._decode(raw, name)
        stored = self._heap.read(name, self._columns[name], raw)
        values = self._decode(np.ma.getdata(stored), name)
        if not np.ma.isMaskedArray(stored):
            return values
        return np.ma.array(values, mask=stored.mask | np.ma.getmaskarray(values))

    def _decode(self, raw: np.ndarray, name: str) -> np.ndarray:
        """Physical values: text, TNULL, unsigned integers and TSCAL/TZERO (standard, 7.3.2)."""
        column = self._columns[name]
        values = plain(raw, f"{self.path}: column {name!r}")
        if values.dtype.kind == "U":
            return np.char.rstrip(values)
        if code(column) == "L":
            return np.ma.array(values == ord("T"), mask=values == 0)
        blank = None if column.null is None else values == column.null
        scale, zero = column.bscale or 1, column.bzero or 0
        bits = 8 * values.dtype.itemsize
        if values.dtype.kind == "i" and scale == 1 and zero == 2 ** (bits - 1):
            values = values.view(f"u{bits // 8}") ^ np.array(zero, f"u{bits // 8}")
        elif (scale, zero) != (1, 0):
            values = values * float(scale) + float(zero)
        return values if blank is None else np.ma.array(values, mask=blank)


class FitsSink(Sink):
    """Rows go straight to disk; NAXIS2 is patched at the end."""

    def __init__(self, path: str, first: Mapping[str, np.ndarray], metadata: TableMetadata) -> None:
        super().__init__(path, first, metadata)
        self._encoded_types = {name: _encode(name, v).dtype for name, v in first.items()}
        self._count = 0
        self._file: IO[bytes] = open(path, "w+b")
        self._start()

    def write(self, chunk: Mapping[str, np.ndarray]) -> None:
        encoded = {name: _encode(name, values) for name, values in chunk.items()}
        wider = {n: v.dtype for n, v in encoded.items() if v.dtype.kind == "S"}
        wider = {n: t for n, t in wider.items() if t.itemsize > self._encoded_types[n].itemsize}
        if wider:
            self._widen(wider)
        table = np.empty(len(next(iter(encoded.values()))), self._dtype)
        for name, values in encoded.items():
            table[name] = values
        self._file.write(table.tobytes())
        self._count += len(table)

    def close(self) -> None:
        size = self._count * self._dtype.itemsize
        self._file.write(b"\0" * (-size % _BLOCK))
        header = self._make_header()  # with the metadata as they are now
        header["NAXIS2"] = self._count
        if len(header.tostring()) == len(self._header.tostring()):
            self._file.seek(_BLOCK)
            self._file.write(header.tostring().encode("ascii"))
        else:
            self._lay_out_anew(header)
        self._file.close()
        if self.metadata.constants:
            with fits.open(self.path, mode="append") as hdus:
                for place, values in self.metadata.constants.items():
                    name = place.rsplit("/", 1)[-1]
                    values = np.atleast_1d(values)
                    rows = np.zeros(len(values), [(name, values.dtype, values.shape[1:])])
                    rows[name] = values
                    hdus.append(fits.BinTableHDU(rows, name=name))

    def abort(self) -> None:
        self._file.close()

    def _lay_out_anew(self, header: fits.Header) -> None:
        """Copy the rows behind a header of another length."""
        old, data = self._file, self._data
        os.unlink(self.path)  # the open handle `old` still reads it
        self._file = open(self.path, "w+b")
        self._write_headers(header)
        old.seek(data)
        with old:
            shutil.copyfileobj(old, self._file, 2**22)

    def _start(self) -> None:
        """Write the headers for the present column widths."""
        self._dtype = np.dtype(
            [(n, self._encoded_types[n], v.shape[1:]) for n, v in self.first.items()]
        ).newbyteorder(">")
        self._header = self._make_header()
        self._write_headers(self._header)
        self._data = self._file.tell()

    def _write_headers(self, header: fits.Header) -> None:
        primary = fits.PrimaryHDU().header
        primary["EXTEND"] = True
        self._file.write(primary.tostring().encode("ascii"))
        self._file.write(header.tostring().encode("ascii"))

    def _make_header(self) -> fits.Header:
        columns = []
        for name, values in self.first.items():
            kind, shape = self._encoded_types[name], values.shape[1:]
            text = kind.kind == "S"
            code = "A" if text else "L" if values.dtype.kind == "b" else _CODES[kind.str[1:]]
            count = kind.itemsize if text else int(np.prod(shape))
            unsigned = values.dtype.kind == "u" and values.dtype.itemsize > 1
            columns.append(
                fits.Column(
                    name,
                    f"{count}{code}",
                    unit=_spelling(self.metadata.units.get(name)),
                    dim=str(shape[::-1]).replace(" ", "") if len(shape) > 1 else None,
                    bzero=2 ** (8 * kind.itemsize - 1) if unsigned else None,
                )
            )
        header = fits.BinTableHDU.from_columns(columns, nrows=0).header
        for number, name in enumerate(self.first, start=1):
            if description := self.metadata.descriptions.get(name):
                # TOPCAT's convention, of any length; astropy puts it into the table's meta
                header.set(f"TCOMM{number}", _ascii(description), after=f"TFORM{number}")
        for key, entry in self.metadata.meta.items():
            _add_card(header, _ascii(key), _ascii(entry))
        return header

    def _widen(self, wider: Mapping[str, np.dtype]) -> None:
        """Lay the rows out anew, for text longer than any before."""
        old_dtype, old_data, old = self._dtype, self._data, self._file
        self._encoded_types.update(
            {
                n: np.dtype(f"S{max(t.itemsize, 2 * old_dtype[n].itemsize)}")
                for n, t in wider.items()
            }
        )
        os.unlink(self.path)  # the open handle `old` still reads it
        self._file = open(self.path, "w+b")
        self._start()
        old.seek(old_data)
        with old:
            for first, last in spans(65_536, 0, self._count):
                rows = np.frombuffer(old.read((last - first) * old_dtype.itemsize), old_dtype)
                self._file.write(rows.astype(self._dtype).tobytes())


def _encode(name: str, values: np.ndarray) -> np.ndarray:
    """The FITS storage of a column: text as ASCII, booleans as T/F, unsigned with TZERO."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind in "UO":
        if values.ndim > 1:
            raise ValueError(f"column {name!r}: FITS output of text must be one string per row")
        try:
            text = np.char.encode(values.astype(str), "ascii")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"column {name!r}: FITS holds ASCII text only ({error}); write .hdf5 or .parquet"
            ) from error
        return text.astype(f"S{max(text.dtype.itemsize, 1)}")
    if kind == "b":
        return np.where(values, ord("T"), ord("F")).astype(np.int8)
    if kind == "u" and size > 1:
        shifted: np.ndarray = values ^ np.array(2 ** (8 * size - 1), values.dtype)
        return shifted.view(f"i{size}")
    if (kind, size) in (("i", 1), ("f", 2)):  # FITS has no such types
        return values.astype(f"{kind}{2 * size}")
    return values


def _ascii(text: object) -> str:
    return " ".join(str(text).split()).encode("ascii", "backslashreplace").decode()


def _add_card(header: fits.Header, key: str, text: str) -> None:
    """A keyword where it fits on a card (HIERARCH for long names), otherwise HISTORY."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            card = fits.Card(key if len(key) <= 8 else f"HIERARCH {key}", text)
            str(card)
            header.append(card, end=True)
        except ValueError:
            header.add_history(f"{key} = {text}")


def _spelling(unit: str | None) -> str | None:
    """A unit as the FITS standard writes it, where it has one: solMass for Msun.

    Of dex(Msun) and its like, which readers warn of, none is written.
    """
    if not unit:
        return unit
    try:
        parsed = u.Unit(unit)
        return None if isinstance(parsed, u.DexUnit) else str(parsed.to_string("fits"))
    except ValueError:
        return unit
