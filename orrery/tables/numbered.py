"""Vectors of which a table has a column per number: ``bp_coefficients_0``, ``_1``, ..."""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .base import Catalogue
from .derived import Derived

FEWEST = 3  # columns that are taken for an array


def numbered_columns(names: Sequence[str], stem: str) -> list[str]:
    """The columns ``stem_0``, ``stem_1``, ... in order, also from 1 or without the underscore.

    Empty if there are fewer than three. Raises ``ValueError`` if one between them is not there.
    """
    pattern = re.compile(rf"{re.escape(stem)}_?(\d+)")
    found = {int(match[1]): name for name in names if (match := pattern.fullmatch(name))}
    numbers = sorted(found)
    if len(numbers) < FEWEST or numbers[0] > 1:
        return []
    if missing := sorted(set(range(numbers[0], numbers[-1])) - set(numbers)):
        raise ValueError(
            f"the columns {found[numbers[0]]} to {found[numbers[-1]]} are the numbers of an array, "
            f"and number {missing[0]} is not there: add it, or name the array's column"
        )
    return [found[number] for number in numbers]


class NumberedColumns(Derived):
    """A catalogue with ``vectors``, (rows, k) each, which are joined of k columns of another."""

    def __init__(self, catalogue: Catalogue, vectors: Mapping[str, Sequence[str]]) -> None:
        units = {name: catalogue.units.get(columns[0]) for name, columns in vectors.items()}
        super().__init__(catalogue, [*catalogue.names, *vectors], list(vectors), units)
        self._vectors = vectors

    def is_boolean(self, column: str) -> bool:
        return any(map(self._catalogue.is_boolean, self._vectors.get(column, [column])))

    def chunks(
        self,
        columns: Sequence[str],
        rows: int = 65_536,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        needed = dict.fromkeys(n for c in columns for n in self._vectors.get(c, [c]))
        for chunk in self._catalogue.chunks(list(needed), rows, start, stop):
            yield {
                column: np.stack([chunk[name] for name in self._vectors[column]], 1)
                if column in self._vectors
                else chunk[column]
                for column in columns
            }
