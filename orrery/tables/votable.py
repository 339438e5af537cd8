"""VOTables, what archives send by default; read by astropy, and held in memory."""

import os
import warnings
from xml.parsers import expat

from astropy.io.votable import parse
from astropy.io.votable.tree import TableElement

from .base import MOST_COMPRESSED, Catalogue, open_binary
from .memory import MemoryCatalogue
from .several import TableInFile, chosen_tables, joined


def open_votable(path: str, group: str | None) -> Catalogue:
    """Open the table: the one of this name, ID or number (from 0), if there are more.

    Tables of the same columns are read as one.
    """
    _refuse_unreadable(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # archives stretch the standard
        tables = [table for table in parse(path).iter_tables() if len(table.fields)]
    if not tables:
        raise ValueError(f"{path}: a VOTable without a table")
    found = [
        TableInFile(i, str(t.name or t.ID or ""), _names(t), len(t.array))
        for i, t in enumerate(tables)
    ]
    chosen = chosen_tables(path, found, group)
    return joined(path, chosen, lambda table: _in_memory(path, tables[table.number]))


def _in_memory(path: str, table: TableElement) -> MemoryCatalogue:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MemoryCatalogue(table.to_table(use_names_over_ids=True), path)


def _names(table: TableElement) -> list[str]:
    return [str(field.name or field.ID) for field in table.fields]


def _refuse_unreadable(path: str) -> None:
    """Raise for what astropy would do: open another file, or make room for rows that are not there.

    A row takes a byte or more.
    """
    most = os.path.getsize(path) * (MOST_COMPRESSED if path.lower().endswith(".gz") else 1)

    def element(name: str, attributes: dict[str, str]) -> None:
        rows = attributes.get("nrows", "")
        if rows.isdecimal() and int(rows) > most:
            raise OSError(f"{path}: looks damaged: it promises {rows} rows, more than it can hold")
        if name.rpartition(":")[2].upper() == "STREAM" and "href" in map(str.lower, attributes):
            raise ValueError(
                f"{path}: its numbers are not in the file but in {next(iter(attributes.values()))}"
                ", which is not opened; save the table with its data"
            )

    parser = expat.ParserCreate()
    parser.StartElementHandler = element
    with open_binary(path) as file:
        parser.ParseFile(file)
