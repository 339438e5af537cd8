"""Avro, one record per object, as Gaia's pipelines and GaiaXPy write it; held in memory.

Read by fastavro, which the extra ``avro`` brings.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

from .base import Catalogue
from .memory import MemoryCatalogue

RECORDS_AT_ONCE = 1000  # as Python objects, of which a number takes 32 bytes


def open_avro(path: str, group: str | None) -> Catalogue:
    """Open the records as a table (`group` is not used by this format).

    Fields of a record within the record are columns too, ``<outer>.<inner>``.
    """
    try:
        import fastavro
    except ImportError as error:
        raise ValueError(f"{path}: reading Avro needs a package: pip install fastavro") from error
    with open(path, "rb") as file:
        records = fastavro.reader(file)
        schema: Any = records.writer_schema
        if not isinstance(schema, dict) or schema.get("type") != "record":
            raise ValueError(f"{path}: its entries are not records; expected one of named fields")
        names = [field["name"] for field in schema["fields"]]
        table = pa.concat_tables(_parts(records, names), promote_options="permissive")
    while any(pa.types.is_struct(kind) for kind in table.schema.types):
        table = table.flatten()
    return MemoryCatalogue(table, path)


def _parts(records: Iterator[Any], names: list[str]) -> Iterator[pa.Table]:
    """The first is there also of a file without records."""
    while True:
        part = list(islice(records, RECORDS_AT_ONCE))
        columns = [pa.array([record[name] for record in part]) for name in names]
        yield pa.table(columns, names)
        if len(part) < RECORDS_AT_ONCE:
            return
