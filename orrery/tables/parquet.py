"""Parquet, a row group at a time."""

import json
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table.meta import get_header_from_yaml

from .arrow import from_numpy, regroup, to_numpy
from .base import Catalogue
from .columns import parse_unit
from .sink import Sink, TableMetadata


def open_parquet(path: str, group: str | None) -> Catalogue:
    """Open a Parquet file (`group` is not used by this format)."""
    return ParquetCatalogue(path)


class ParquetCatalogue(Catalogue):
    """Units come from the field metadata `unit`, or from astropy's `table_meta_yaml`."""

    def __init__(self, path: str) -> None:
        self._file = pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
        schema = self._file.schema_arrow
        units = {field.name: (field.metadata or {}).get(b"unit") for field in schema}
        if astropy_header := (schema.metadata or {}).get(b"table_meta_yaml"):
            header = get_header_from_yaml(astropy_header.decode().splitlines())
            units |= {c["name"]: c["unit"] for c in header["datatype"] if "unit" in c}
        super().__init__(
            path,
            schema.names,
            {name: parse_unit(text) for name, text in units.items()},
            self._file.metadata.num_rows,
        )
        self._blank.update(dict.fromkeys(self._without_blanks(), False))

    def close(self) -> None:
        self._file.close()

    def _without_blanks(self) -> set[str]:
        """Columns without blanks, by the file's statistics."""
        without_blanks = set(self.names) - set(self._masks)
        for number in range(self._file.metadata.num_row_groups):
            group = self._file.metadata.row_group(number)
            for index in range(group.num_columns):
                chunk = group.column(index)
                declared = self._file.schema.column(index).physical_type
                if chunk.physical_type != declared:  # of which the statistics end the process
                    raise OSError(f"a column is of {declared} and of {chunk.physical_type}")
                counts = chunk.statistics
                if counts is None or not counts.has_null_count or counts.null_count:
                    without_blanks.discard(chunk.path_in_schema.split(".")[0])
                    without_blanks.discard(chunk.path_in_schema)
        return without_blanks

    def _blocks(
        self, columns: list[str], rows: int, start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        groups: list[int] = []
        before = 0
        offset = start
        for number in range(self._file.metadata.num_row_groups):
            count = self._file.metadata.row_group(number).num_rows
            if before + count > start and before < stop:
                if not groups:
                    offset = start - before
                groups.append(number)
            before += count
        # One row group at a time: iter_batches over several keeps all of them in memory.
        batches = (
            batch
            for number in groups
            for batch in self._file.iter_batches(
                batch_size=rows, row_groups=[number], columns=columns, use_threads=False
            )
        )
        for table in regroup(batches, rows, offset, offset + stop - start):
            yield {c: to_numpy(table[c], f"{self.path}: column {c!r}") for c in columns}


class ParquetSink(Sink):
    """A row group per chunk; constants are JSON in the file metadata."""

    def __init__(self, path: str, first: Mapping[str, np.ndarray], metadata: TableMetadata) -> None:
        super().__init__(path, first, metadata)
        fields = []
        for name, values in first.items():
            words = {
                "unit": metadata.units.get(name),
                "description": metadata.descriptions.get(name),
            }
            known = {key: word for key, word in words.items() if word}
            fields.append(pa.field(name, from_numpy(values).type, metadata=known))
        meta = dict(metadata.meta) | constants_as_json(metadata.constants)
        self._schema = pa.schema(fields, metadata=meta)
        self._known = set(self._schema.metadata or {})
        self._file = open(path, "wb")
        text = [name for name, values in first.items() if values.dtype.kind in "UO"]
        self._writer = pq.ParquetWriter(self._file, self._schema, use_dictionary=text or False)

    def write(self, chunk: Mapping[str, np.ndarray]) -> None:
        arrays = [from_numpy(chunk[name]) for name in self._schema.names]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        found = {k: v for k, v in self.metadata.meta.items() if k.encode() not in self._known}
        self._writer.add_key_value_metadata(found)  # since the file was begun
        self._writer.close()
        self._file.close()

    def abort(self) -> None:
        try:
            self._writer.close()
        finally:
            self._file.close()


def constants_as_json(constants: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Name (last part of the path) -> JSON of the array; bytes are read as UTF-8."""
    texts = {}
    for place, values in constants.items():
        values = np.asarray(values)
        values = np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
        texts[place.rsplit("/", 1)[-1]] = json.dumps(values.tolist())
    return texts
