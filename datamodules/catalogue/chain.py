"""Several files of one survey as one catalogue."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .base import Catalogue
from .columns import convert


class Chain(Catalogue):
    """The rows of ``paths`` one after the other; every file has the columns of the first.

    A file is open only while it is counted or read. What another file has in another unit is
    converted to that of the first. Raises ValueError naming a file that lacks a column of the
    first, or whose column is of another kind.
    """

    def __init__(self, name: str, paths: Sequence[str], opened: Callable[[str], Catalogue]) -> None:
        self._paths, self._opened = list(paths), opened
        self._lengths: list[int] = []
        for path in self._paths:
            with opened(path) as part:
                if not self._lengths:
                    names, units = part.names, part.units
                elif missing := [n for n in names if n not in part.names]:
                    raise ValueError(
                        f"{path}: has no column {', '.join(missing)}, as {self._paths[0]} has; "
                        f"the files of data.path={name} are read as one"
                    )
                self._lengths.append(len(part))
        super().__init__(name, names, dict(units), sum(self._lengths))
        self._blank = dict.fromkeys(names, False)  # as each file says for itself

    def _blocks(
        self, columns: list[str], rows: int, start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Chunks of ``rows`` rows, whatever the files' lengths."""
        held: dict[str, np.ndarray] = {}
        for chunk in self._between(columns, rows, start, stop):
            held = {c: self._joined(c, held[c], chunk[c]) for c in columns} if held else chunk
            while len(held[columns[0]]) >= rows:
                yield {c: held[c][:rows] for c in columns}
                held = {c: held[c][rows:] for c in columns}
        if held and len(held[columns[0]]):
            yield held

    def _joined(self, column: str, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        if not len(before):
            return after
        if len({values.dtype.kind in "UOS" for values in (before, after)}) > 1:
            raise ValueError(
                f"{self.path}: column {column!r} holds numbers in one file and text in another"
            )
        return np.concatenate([before, after])

    def _between(
        self, columns: list[str], rows: int, start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Of one file after the other, each opened once."""
        before = 0
        for path, length in zip(self._paths, self._lengths, strict=True):
            first, last = max(start - before, 0), min(stop - before, length)
            if first < last:
                with self._opened(path) as part:
                    for chunk in part.chunks(columns, rows, first, last):
                        yield {c: self._in_our_unit(chunk[c], c, part) for c in columns}
            before += length

    def _in_our_unit(self, values: np.ndarray, column: str, part: Catalogue) -> np.ndarray:
        ours, theirs = self.units.get(column), part.units.get(column)
        if ours == theirs:
            return values
        if ours is None or theirs is None:
            raise ValueError(
                f"{part.path}: column {column!r} is in {str(theirs or 'no unit')!r}, and in "
                f"{str(ours or 'no unit')!r} in {self._paths[0]}: mend one of them"
            )
        try:
            return convert(values, theirs, ours, column)
        except ValueError as error:
            raise ValueError(f"{part.path}: {error}") from error
