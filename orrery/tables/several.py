"""Several tables in one file: which of them is meant, and when they are read as one."""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .base import Catalogue
from .multi_file import Chain

_SHOWN = 8  # columns and tables, in messages


class TableInFile(NamedTuple):
    """One table of a file: its number there, its name ("" if it has none), and what it holds."""

    number: int
    name: str
    columns: list[str]
    rows: int

    def __str__(self) -> str:
        more = ", ..." if len(self.columns) > _SHOWN else ""
        return (
            f"{self.number} ({self.name or 'without a name'}, {self.rows:,} rows: "
            f"{', '.join(self.columns[:_SHOWN])}{more})"
        )


def chosen_tables(
    path: str, tables: Sequence[TableInFile], group: str | None
) -> Sequence[TableInFile]:
    """The table that ``data.group`` names, by name or number, or all that have the same columns.

    Tables without rows are passed over where others have some. Raises ``ValueError`` that lists
    the tables if none is named so, or if their columns differ.
    """
    listed = "; ".join(map(str, tables[:_SHOWN])) or "none"
    listed += f" ... and {len(tables) - _SHOWN} more" if len(tables) > _SHOWN else ""
    found = tables
    if group is not None:
        found = [t for t in tables if t.name and t.name.lower() == group.lower()]
        found = found or [t for t in tables if str(t.number) == group]
        if not found:
            raise ValueError(f"{path}: no table data.group={group}; its tables: {listed}")
    found = [t for t in found if t.rows] or found[:1]
    if len({frozenset(t.columns) for t in found}) > 1:
        raise ValueError(
            f"{path}: holds {len(found)} tables of different columns: {listed}; choose one by "
            "its name or number: data.group=<name or number>"
        )
    return found


def joined(
    path: str, tables: Sequence[TableInFile], opened: Callable[[TableInFile], Catalogue]
) -> Catalogue:
    """Several tables of a file as one, with a warning that says so."""
    if len(tables) == 1:
        return opened(tables[0])
    warnings.warn(
        f"{path}: its {len(tables)} tables have the same columns, and are read as one, of "
        f"{sum(t.rows for t in tables):,} rows; data.group=<name or number> chooses one",
        stacklevel=2,
    )
    by_label = {f"{path}, table {t.number} {t.name}".strip(): t for t in tables}
    return Chain(path, list(by_label), lambda label: opened(by_label[label]))
