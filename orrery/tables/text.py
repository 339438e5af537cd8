"""CSV and ECSV, read by Arrow in blocks after one pass that counts rows and settles types."""

import csv
import io
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy.table import Table
from astropy.table.meta import get_header_from_yaml
from pyarrow import csv as arrow_csv

from .arrow import from_numpy, regroup, to_numpy
from .base import Catalogue, excerpt, open_binary
from .columns import parse_unit
from .memory import MemoryCatalogue
from .parquet import constants_as_json
from .sink import Sink, TableMetadata
from .text_layout import (
    WHITE_SPACE,
    Tabbed,
    has_byte_by_byte_description,
    layout,
    read_head,
)

# Types of ECSV files that Arrow does not know, those of GaiaXPy and of Java programs among them
ECSV_TYPES = {
    "float128": "float64", "float16": "float32", "long": "int64", "short": "int16",
    "byte": "int8", "double": "float64", "boolean": "bool", "object": "string", "char": "string",
}  # fmt: skip
_GUESSES = (pa.int64(), pa.uint64(), pa.float64(), pa.bool_())
# How blanks are spelt in number columns; text columns keep these words.
_BLANKS = ["", "nan", "NaN", "NAN", "null", "NULL", "NA", "N/A", "n/a", "None", "--"]
_NAME = r"^(0\d+|\d{21,}|[2-9]\d{19})$"  # beyond uint64, or not as a number is written
_SURVEYS: dict[tuple[str, int, int], tuple[int, dict[str, pa.DataType], dict[str, bool]]] = {}
_VECTOR = re.compile(r"(\w+)\[([\d,]+)\]")


def open_csv(path: str, group: str | None) -> Catalogue:
    """Open comma-separated values, under a line of names after optional # lines; no units.

    Semicolons, tabs and bars are found where there are no commas.
    """
    return _open(path, prefer_commas=True)


def open_text(path: str, group: str | None) -> Catalogue:
    """Open a .txt, .dat or .cat: its fields are found to be separated by commas or white space.

    Machine-readable tables of the AAS and of CDS are read by astropy, and held in memory.
    """
    if has_byte_by_byte_description(path):
        with open_binary(path) as file:
            text = file.read().decode("utf-8", "replace")
        form = "ascii.mrt" if text.lstrip().startswith("Title:") else "ascii.cds"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of units, which are kept by name
            return MemoryCatalogue(Table.read(text, format=form), path)
    return _open(path, prefer_commas=False)


def _open(path: str, prefer_commas: bool) -> Catalogue:
    head = read_head(path)
    # a bulk .csv of Gaia has a header like that of ECSV, and is read as it stands
    if not prefer_commas and head.comments and head.comments[0].startswith("# %ECSV"):
        return open_ecsv(path, None)
    names, separator, skip, units = layout(path, head, prefer_commas)
    return TextCatalogue(path, names, separator, skip, {}, {}, units, separator == WHITE_SPACE)


def open_ecsv(path: str, group: str | None) -> Catalogue:
    """Open an ECSV table (astropy's enhanced CSV), with its units and vector columns."""
    comments, header, _, skip = read_head(path)
    try:
        metadata = get_header_from_yaml([line[2:] for line in comments])
        columns = metadata["datatype"]
    except Exception as error:  # the YAML parser has its own family of errors
        raise ValueError(
            f"{path}: its '# %ECSV' header cannot be read ({excerpt(error)})"
        ) from error
    delimiter = metadata.get("delimiter", " ")
    names = [column["name"] for column in columns]
    if next(csv.reader([header], delimiter=delimiter)) != names:
        raise ValueError(f"{path}: the column line differs from the ECSV header: {header!r}")
    types: dict[str, pa.DataType] = {}
    vectors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for column in columns:
        if match := _VECTOR.fullmatch(column.get("subtype", "")):
            shape = tuple(int(n) for n in match[2].split(","))
            vectors[column["name"]] = (ECSV_TYPES.get(match[1], match[1]), shape)
        known = ECSV_TYPES.get(column["datatype"], column["datatype"])
        try:
            types[column["name"]] = pa.type_for_alias(known)
        except ValueError as error:
            raise ValueError(
                f"{path}: column {column['name']!r} has type {known!r}, which cannot be read"
            ) from error
    units = {column["name"]: column.get("unit") for column in columns}
    catalogue = TextCatalogue(path, names, delimiter, skip, types, vectors, units)
    for name, value in dict(metadata.get("meta") or {}).items():
        if isinstance(value, list) and value and all(isinstance(x, int | float) for x in value):
            catalogue.constants[name] = np.array(value)
    return catalogue


class TextCatalogue(Catalogue):
    """Columns without a type in `types` get the narrowest that fits the whole file.

    `squeezed`: fields are separated by any number of spaces and tabs, and comments may follow.
    """

    def __init__(
        self,
        path: str,
        names: Sequence[str],
        delimiter: str,
        skip: int,
        types: Mapping[str, pa.DataType],
        vectors: Mapping[str, tuple[str, tuple[int, ...]]],
        units: Mapping[str, Any],
        squeezed: bool = False,
    ) -> None:
        super().__init__(path, names, {n: parse_unit(t) for n, t in units.items()}, 0)
        self._all, self._delimiter, self._skip = list(names), delimiter, skip
        self._types, self._vectors, self._squeezed = dict(types), vectors, squeezed
        status = os.stat(path)
        key = (os.path.abspath(path), status.st_mtime_ns, status.st_size)
        if key not in _SURVEYS:  # a pass over the file, shared by all who open it
            self._survey()
            _SURVEYS[key] = self._length, self._types, self._blank
        self._length, kinds, blank = _SURVEYS[key]
        self._types, self._blank = dict(kinds), dict(blank)

    def _survey(self) -> None:
        """Count the rows, and find each column's type and whether it has blanks."""
        left = {n: [self._types[n]] if n in self._types else list(_GUESSES) for n in self._all}
        blank = dict.fromkeys(self._all, False)
        for batch in self._batches(self._all):
            self._length += batch.num_rows
            for name in self._all:
                if name not in self._types and left[name] and _is_name(batch[name]):
                    left[name] = []
                casts = {t: _cast(batch[name], t) for t in left[name]}
                left[name] = [t for t, values in casts.items() if values is not None]
                if left[name]:
                    blank[name] |= casts[left[name][0]].null_count > 0
        for name, kinds in left.items():
            if not kinds and name in self._types:
                raise ValueError(
                    f"{self.path}: column {name!r} is declared {self._types[name]}, but some of "
                    "its entries are not"
                )
            if not kinds and self._delimiter == ";":
                self._refuse_decimal_commas(name)
            self._types[name] = kinds[0] if kinds else pa.string()
        self._blank.update(blank)

    def _refuse_decimal_commas(self, name: str) -> None:
        batch = next(self._batches([name]))
        if pc.any(pc.match_substring_regex(batch[name], r"^\s*[-+]?\d+,\d+\s*$")).as_py():
            raise ValueError(
                f"{self.path}: column {name!r} has commas in place of decimal points; write the "
                "file with points"
            )

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """All rows as text."""
        with open_binary(self.path) as file:
            for _ in range(self._skip):
                file.readline()
            if not file.peek(1):  # a header without rows, which Arrow refuses
                return
            try:
                reader = arrow_csv.open_csv(
                    Tabbed(file) if self._squeezed else file,
                    arrow_csv.ReadOptions(
                        use_threads=False, block_size=2**22, column_names=self._all
                    ),
                    arrow_csv.ParseOptions(
                        delimiter="\t" if self._squeezed else self._delimiter,
                        newlines_in_values=True,
                        ignore_empty_lines=len(self._all) > 1,
                    ),
                    arrow_csv.ConvertOptions(
                        column_types=dict.fromkeys(self._all, pa.string()),
                        include_columns=columns,
                        strings_can_be_null=False,
                    ),
                )
                with reader:  # its thread must not outlive the file
                    yield from reader
            except pa.ArrowInvalid as error:
                raise ValueError(
                    f"{self.path}: not a well-formed table of UTF-8 text: {excerpt(error)}"
                ) from error

    def _blocks(
        self, columns: list[str], rows: int, start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        for table in regroup(self._batches(columns), rows, start, stop):
            yield {c: self._values(c, table[c]) for c in columns}

    def _values(self, name: str, texts: pa.ChunkedArray) -> np.ndarray:
        if name not in self._vectors:
            return to_numpy(_cast(texts, self._types[name]), name)
        kind, shape = self._vectors[name]
        rows = [json.loads(text) if text else None for text in texts.to_pylist()]
        if None in rows and not kind.startswith("float"):
            raise ValueError(f"{self.path}: vector column {name!r} of {kind} has blank rows")
        blank = np.full(shape, np.nan)
        filled = [blank if row is None else row for row in rows]
        return np.array(filled, kind).reshape(len(rows), *shape)


def _is_name(texts: pa.Array) -> bool:
    """Whether any holds digits that a number would not reproduce: 0012, or more than 19."""
    texts = pc.utf8_trim_whitespace(texts)
    length = pc.utf8_length(texts)
    doubtful = pc.or_(
        pc.and_(pc.starts_with(texts, "0"), pc.greater(length, 1)), pc.greater(length, 19)
    )
    candidates = texts.filter(doubtful)
    return bool(len(candidates)) and bool(
        pc.any(pc.match_substring_regex(candidates, _NAME)).as_py()
    )


def _cast(texts: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> Any:
    """The texts as `kind`, blanks as null; None when they do not fit."""
    if kind == pa.string():
        return texts
    texts = pc.utf8_trim_whitespace(texts)
    blank = pc.is_in(texts, value_set=pa.array(_BLANKS))
    try:
        return pc.if_else(blank, None, texts).cast(kind)
    except pa.ArrowInvalid:
        return None


class CsvSink(Sink):
    """Comma-separated rows under a line of names."""

    holds_vectors = False
    delimiter = ","

    def __init__(self, path: str, first: Mapping[str, np.ndarray], metadata: TableMetadata) -> None:
        super().__init__(path, first, metadata)
        if not self.holds_vectors:
            self._refuse_vectors()
        self._file = open(path, "wb")
        self._written_head = self._head().encode()
        self._file.write(self._written_head)

    def write(self, chunk: Mapping[str, np.ndarray]) -> None:
        table = pa.table({name: self._column(values) for name, values in chunk.items()})
        options = arrow_csv.WriteOptions(include_header=False, delimiter=self.delimiter)
        arrow_csv.write_csv(table, self._file, options)

    def close(self) -> None:
        self._file.close()
        if (head := self._head().encode()) != self._written_head:  # the metadata have grown
            anew = f"{self.path}.anew"
            with open(self.path, "rb") as rows, open(anew, "wb") as file:
                rows.seek(len(self._written_head))
                file.write(head)
                shutil.copyfileobj(rows, file, 2**22)
            os.replace(anew, self.path)

    def abort(self) -> None:
        self._file.close()

    def _head(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(self.first)
        return text.getvalue()

    def _column(self, values: np.ndarray) -> pa.Array:
        return from_numpy(values)

    def _refuse_vectors(self) -> None:
        for name, values in self.first.items():
            if values.ndim > 1:
                raise ValueError(
                    f"column {name!r} has a vector of shape {values.shape[1:]} per row, which CSV "
                    "cannot hold; write .hdf5, .fits or .parquet instead"
                )


class EcsvSink(CsvSink):
    """ECSV: astropy's header over the same rows, separated by spaces; vectors as JSON."""

    holds_vectors = True
    delimiter = " "

    def _head(self) -> str:
        table = Table()
        for name, values in self.first.items():
            kind = str if values.dtype.kind in "UO" else values.dtype
            table[name] = np.zeros((1, *values.shape[1:]), kind)
            table[name].unit = self.metadata.units.get(name)
            table[name].description = self.metadata.descriptions.get(name)
        table.meta.update(dict(self.metadata.meta) | constants_as_json(self.metadata.constants))
        text = io.StringIO()
        table.write(text, format="ascii.ecsv")
        return text.getvalue().rsplit("\n", 2)[0] + "\n"

    def _column(self, values: np.ndarray) -> pa.Array:
        if values.ndim > 1:
            return pa.array([json.dumps(row.tolist()) for row in values])
        if values.dtype.kind == "b":
            return pa.array(np.where(values, "True", "False"))
        return from_numpy(values)
