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
        self._first = next((p for p, n in zip(paths, self._lengths, strict=True) if n), paths[0])
        self._kinds: dict[str, np.dtype | None] = {}  # of numbers; None: text

    def _filled(
        self, columns: list[str], rows: int, start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Numbers of one kind in all files: with a blank in one of them a column is of floats."""
        self._settle([c for c in columns if c not in self._kinds])
        yield from self._blocks(columns, rows, start, stop)

    def _settle(self, columns: list[str]) -> None:
        """Find the kind of these columns' numbers, by the first row of every file that has one."""
        dtypes: dict[str, dict[str, np.dtype]] = {c: {} for c in columns}
        identifiers = set()  # columns of long integers, which are text in a file with a blank one
        for path, length in zip(self._paths, self._lengths, strict=True):
            if columns and length:
                with self._opened(path) as part:
                    first = next(part.chunks(columns, 1, 0, 1))
                    for c in columns:
                        dtypes[c][path] = self._in_our_unit(first[c], c, part).dtype
                        if part.is_identifier(c):
                            identifiers.add(c)
                        if part.is_boolean(c):
                            self._boolean.add(c)
        for c, of_files in dtypes.items():
            if c in identifiers and all(kind.kind in "iuO" for kind in of_files.values()):
                self._kinds[c] = np.dtype(object)
                continue
            kinds = {kind.kind in "UO" for kind in of_files.values()}
            common = None if kinds != {False} else np.result_type(*of_files.values())
            exact = all(kind.kind in "biu" for kind in of_files.values())
            if len(kinds) > 1 or (exact and common is not None and common.kind == "f"):
                odd = next(p for p, kind in of_files.items() if kind != of_files[self._first])
                theirs, ours = (
                    "text" if kind.kind in "UO" else str(kind)
                    for kind in (of_files[odd], of_files[self._first])
                )
                raise ValueError(
                    f"{odd}: column {c!r} is of {theirs}, and of {ours} in {self._first}: they do "
                    f"not go together"
                )
            self._kinds[c] = common

    def _blocks(
        self, columns: list[str], rows: int, start: int, stop: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Chunks of ``rows`` rows, whatever the files' lengths."""
        held: dict[str, np.ndarray] = {}
        for chunk in self._between(columns, rows, start, stop):
            held = {c: np.concatenate([held[c], chunk[c]]) for c in columns} if held else chunk
            while len(held[columns[0]]) >= rows:
                yield {c: held[c][:rows] for c in columns}
                held = {c: held[c][rows:] for c in columns}
        if held and len(held[columns[0]]):
            yield held

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
                        converted = {c: self._in_our_unit(chunk[c], c, part) for c in columns}
                        yield {c: _as_kind(converted[c], self._kinds.get(c)) for c in columns}
            before += length

    def _in_our_unit(self, values: np.ndarray, column: str, part: Catalogue) -> np.ndarray:
        ours, theirs = self.units.get(column), part.units.get(column)
        if ours == theirs:
            return values
        if ours is None or theirs is None:
            raise ValueError(
                f"{part.path}: column {column!r} is in {str(theirs or 'no unit')!r}, and in "
                f"{str(ours or 'no unit')!r} in {self._paths[0]}: convert one of them"
            )
        try:
            return convert(values, theirs, ours, column)
        except ValueError as error:
            raise ValueError(f"{part.path}: {error}") from error


def _as_kind(values: np.ndarray, kind: np.dtype | None) -> np.ndarray:
    if kind is None or values.dtype == kind:
        return values
    return values.astype(str).astype(kind) if kind.kind == "O" else values.astype(kind)
