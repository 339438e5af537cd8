"""Shards of XP coefficients, which `datamodules.scatter_vae.convert` writes: opened, counted and
checked.

A shard is an HDF5 file with a dataset per column, under the archive's names: `source_id`, and for
bp and rp `_coefficients` (n, k) in e-/s, `_coefficient_errors` (n, k) likewise and
`_coefficient_correlations` (n, k(k-1)/2), the upper triangle column by column. A band that a star
lacks is NaN.
"""

import glob
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

CONVERT = "python -m orrery.datamodules.scatter_vae convert"  # the command that makes shards
BANDS = ("bp", "rp")
LAYOUT = "1"  # of the shards, to be raised when it changes
Paths = str | Path | Sequence[str | Path]
Part = tuple[float, float]
ALL_ROWS: Part = (0.0, 1.0)
# Rows that are read together where rows are drawn at random: a sample has neighbours on the sky.
PIECE = 64


@dataclass(frozen=True)
class Shard:
    """One shard: `columns` are name -> (type, shape of a row)."""

    path: str
    rows: int
    columns: dict[str, tuple[np.dtype, tuple[int, ...]]]
    metadata: dict[str, str]

    def open(self) -> h5py.File:
        return _open(self.path)

    def span(self, part: Part) -> tuple[int, int]:
        """First and last row of a part of this shard, whose rows are in order of sky position."""
        return round(part[0] * self.rows), round(part[1] * self.rows)

    def read(
        self, file: h5py.File, first: int, last: int, columns: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Rows first..last."""
        try:
            return {name: file[name][first:last] for name in columns}
        except (OSError, KeyError) as error:
            raise OSError(
                f"{self.path}: cannot read rows {first} to {last}; the shard looks truncated or "
                f"damaged ({error}): convert its source, {self.metadata['source']}, again"
            ) from error


def find(paths: Paths, columns: Sequence[str] | None = None) -> tuple[list[Shard], list[str]]:
    """The shards that a path, folder, glob or list of these names, and the columns to read.

    Raises FileNotFoundError where there are none, OSError or ValueError naming a shard that is
    truncated or unfinished, and ValueError where shards differ in the columns to read.
    """
    wanted = [paths] if isinstance(paths, str | Path) else list(paths)
    names: set[str] = set()
    for pattern in map(str, wanted):
        pattern = str(Path(pattern) / "*.h5") if Path(pattern).is_dir() else pattern
        files = [pattern] if Path(pattern).is_file() else glob.glob(pattern)
        if not files:
            raise FileNotFoundError(
                f"{pattern}: no shards here; `{CONVERT}` makes them from Gaia's bulk files"
            )
        names.update(files)
    shards = [read_shard(name) for name in sorted(names)]
    chosen = list(shards[0].columns if columns is None else columns)
    for shard in shards:
        if missing := [name for name in chosen if name not in shard.columns]:
            raise ValueError(
                f"{shard.path}: no {', '.join(missing)} in this shard, which {shards[0].path} "
                "has or which was requested; convert all with the same --correlations"
            )
        for name in chosen:
            if shard.columns[name] != (first := shards[0].columns[name]):
                shape = _described(*shard.columns[name])
                raise ValueError(
                    f"{shard.path}: {name} is {shape} a star, where in {shards[0].path} it is "
                    f"{_described(*first)}; shards of one kind are read together"
                )
    return shards, chosen


def read_shard(path: str) -> Shard:
    """Open a shard and check that it is complete."""
    with _open(path) as file:
        metadata = {key: str(value) for key, value in file.attrs.items()}
        if metadata.get("complete") != "true":
            raise ValueError(f"{path}: not a shard of `{CONVERT}`, or an unfinished one")
        if metadata["layout"] != LAYOUT:
            raise ValueError(
                f"{path}: a shard of layout {metadata['layout']}, where this version reads "
                f"{LAYOUT}; convert its source again"
            )
        columns = {name: (item.dtype, item.shape[1:]) for name, item in file.items()}
        return Shard(path, int(metadata["rows"]), columns, metadata)


def count(paths: Paths, part: Part = ALL_ROWS) -> int:
    """How many stars there are in (a part of each of) the shards."""
    shards, _ = find(paths, ())
    return sum(last - first for first, last in (shard.span(part) for shard in shards))


def read_rows(
    paths: Paths, n: int, seed: int, columns: Sequence[str] | None = None, part: Part = ALL_ROWS
) -> dict[str, np.ndarray]:
    """`n` stars, or all where there are fewer, spread over (a part of each of) the shards.

    They are drawn in pieces of up to 64 neighbours, and are in random order.
    """
    shards, names = find(paths, columns)
    pieces = [
        (shard, first, min(first + PIECE, shard.span(part)[1]))
        for shard in shards
        for first in range(*shard.span(part), PIECE)
    ]
    random = np.random.default_rng(seed)
    order = random.permutation(len(pieces))
    sizes = np.array([pieces[i][2] - pieces[i][1] for i in order], int)
    used = sorted(order[: int(np.searchsorted(np.cumsum(sizes), n)) + 1].tolist())
    read = list(_read_pieces([pieces[i] for i in used], names))
    rows = random.permutation(sum(pieces[i][2] - pieces[i][1] for i in used))[:n]
    return {name: np.concatenate([piece[name] for piece in read])[rows] for name in names}


def _read_pieces(
    pieces: Sequence[tuple[Shard, int, int]], columns: Sequence[str]
) -> Iterator[dict[str, np.ndarray]]:
    """The rows of pieces that are in the order of their shards, each of which is opened once."""
    file: h5py.File | None = None
    try:
        for i, (shard, first, last) in enumerate(pieces):
            if file is None or shard is not pieces[i - 1][0]:
                if file is not None:
                    file.close()
                file = shard.open()
            yield shard.read(file, first, last, columns)
    finally:
        if file is not None:
            file.close()


def check(paths: Paths) -> int:
    """Compare every column with its checksum; returns the number of shards.

    Raises OSError naming the first shard and column that differ.
    """
    shards, _ = find(paths, ())
    for shard in shards:
        sums = json.loads(shard.metadata["crc32"])
        with shard.open() as file:
            for name in shard.columns:
                checksum = 0
                for first in range(0, shard.rows, 4096):
                    block = shard.read(file, first, min(first + 4096, shard.rows), [name])
                    checksum = zlib.crc32(block[name].tobytes(), checksum)
                if checksum != sums.get(name):
                    raise OSError(
                        f"{shard.path}: {name} differs from its checksum; the shard is damaged: "
                        f"delete it and convert its source, {shard.metadata['source']}, again"
                    )
    return len(shards)


def _open(path: str) -> h5py.File:
    """For reading, without a lock: a shard never changes once it has its name."""
    try:
        return h5py.File(path, "r", locking=False, rdcc_nbytes=0)
    except OSError as error:
        raise OSError(
            f"{path}: not a readable shard, or it looks truncated ({error}); delete it and convert "
            "its source again"
        ) from error


def _described(kind: Any, shape: tuple[int, ...]) -> str:
    return " x ".join([*map(str, shape), str(kind)])
