"""A second table for each row of a catalogue, by key: the spectrum of a galaxy."""

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from astropy import units as u


class KeyedTables(Mapping[str, dict[str, np.ndarray]]):
    """Tables by key, read when asked for.

    ``path`` is a pattern such as ``spec/*.fits``: a file per key, which is the file's name without
    its ending, with a table of any length. Or it is one file, with a row per key: ``key`` names the
    column of keys, and the other columns hold an array per row. A key is text: 20115 and "20115"
    are the same.

    Raises ``FileNotFoundError`` if there is no such file, ``ValueError`` for two tables of one key.
    """

    def __init__(self, path: str | os.PathLike[str], key: str = "id") -> None:
        from . import files_of, open_catalogue

        self.path = os.fspath(path)
        files = files_of(path)
        if not files:
            raise FileNotFoundError(f"{self.path}: there is no such file")
        self._files: dict[str, str] = {}
        self._rows: dict[str, int] = {}
        self._columns: dict[str, np.ndarray] = {}
        self._units: dict[str, u.UnitBase] = {}
        if len(files) > 1 or "*" in self.path:
            keys = [Path(name).name.partition(".")[0] for name in files]
            self._files = dict(zip(keys, files, strict=True))
        else:
            with open_catalogue(files[0]) as catalogue:
                if key not in catalogue.names:
                    raise ValueError(
                        f"{self.path}: no column '{key}' of keys; its columns: "
                        f"{', '.join(catalogue.names)}"
                    )
                parts = list(catalogue.chunks(catalogue.names))
                self._columns = {n: np.concatenate([p[n] for p in parts]) for n in catalogue.names}
                self._units = dict(catalogue.units)
            keys = [_text(value) for value in self._columns.pop(key)]
            self._rows = {name: row for row, name in enumerate(keys)}
        if len(set(keys)) < len(keys):
            twice = next(name for name in keys if keys.count(name) > 1)
            raise ValueError(f"{self.path}: two tables of the key '{twice}'")

    def __len__(self) -> int:
        return len(self._files or self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files or self._rows)

    def __contains__(self, key: object) -> bool:
        return _text(key) in (self._files or self._rows)

    def __getitem__(self, key: object) -> dict[str, np.ndarray]:
        """Columns of the table of ``key``. Raises ``KeyError`` that names near keys."""
        from . import open_catalogue

        name = _text(key)
        if name not in self:
            near = get_close_matches(name, list(self), 3)
            hint = f"; near: {', '.join(near)}" if near else ""
            raise KeyError(f"{self.path}: no table of '{name}'{hint}")
        if self._rows:
            return {n: values[self._rows[name]] for n, values in self._columns.items()}
        with open_catalogue(self._files[name]) as catalogue:
            parts = list(catalogue.chunks(catalogue.names))
            return {n: np.concatenate([part[n] for part in parts]) for n in catalogue.names}

    def units(self, key: object) -> dict[str, u.UnitBase]:
        """Units of the columns of the table of ``key`` that name one."""
        from . import open_catalogue

        if self._rows:
            return dict(self._units)
        with open_catalogue(self._files[_text(key)]) as catalogue:
            return dict(catalogue.units)


def _text(key: object) -> str:
    """'3' for 3, 3.0 and b'3'."""
    if isinstance(key, bytes):
        key = key.decode()
    if isinstance(key, float | np.floating) and float(key).is_integer():
        key = int(key)
    return str(key).strip()
