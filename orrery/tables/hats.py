"""HATS: a catalogue as a folder of Parquet files, one for each pixel of the sky.

Read and written as the IVOA note says, https://www.ivoa.net/documents/Notes/HATS/, which lsdb
follows. A folder holds ``hats.properties`` (or ``properties``), ``partition_info.csv`` and
``dataset/Norder=<k>/Dir=<d>/Npix=<n>.parquet``; a *collection*, a folder with
``collection.properties``, names its main catalogue.
"""

import csv
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow.parquet as pq

from orrery.files import finish, unfinished

from .base import naming
from .multi_file import Chain
from .parquet import ParquetCatalogue
from .writer import Writer

PROPERTIES = ("hats.properties", "properties")  # of a catalogue, the first that is there
COLLECTION = "collection.properties"
# of the catalogue that is read, what holds for its predictions, too
INHERITED = (
    "dataproduct_type", "hats_col_ra", "hats_col_dec", "hats_col_healpix",
    "hats_col_healpix_order", "hats_primary_table_url", "hats_margin_threshold",
)  # fmt: skip
# Column of a chunk for `HatsWriter`: which row of the catalogue each is. It is not written.
ROW = "row of the catalogue"
_HIGHEST_ORDER = 29
_PARTITION = re.compile(r"Norder=(\d+)/Dir=\d+/Npix=(\d+)")


class Pixel(NamedTuple):
    """A pixel of the nested HEALPix scheme."""

    order: int
    number: int

    @property
    def first_index(self) -> int:
        """Of its smallest pixels, number of the first."""
        return self.number << 2 * (_HIGHEST_ORDER - self.order)

    @property
    def place(self) -> str:
        """Of its partition, in the folder of a catalogue; without an ending."""
        folder = self.number // 10_000 * 10_000
        return f"dataset/Norder={self.order}/Dir={folder}/Npix={self.number}"


def is_hats(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a HATS catalogue, or a collection of them."""
    return any(os.path.isfile(os.path.join(path, name)) for name in (*PROPERTIES, COLLECTION))


def open_hats(path: str | os.PathLike[str]) -> "HatsCatalogue":
    """Open a catalogue, or the main catalogue of a collection, as one table.

    The rows are those of one partition after the other, in the order of their pixels' HEALPix
    index, as lsdb has them. A file is open only while it is read, and only the columns asked for
    are read of it. Raises FileNotFoundError, OSError or ValueError naming the partition at fault.
    """
    return HatsCatalogue(os.fspath(path))


class HatsCatalogue(Chain):
    """``pixels``: of the partitions, in order; ``ends``: number of rows up to the end of each."""

    def __init__(self, path: str) -> None:
        folder, self.properties, partitions = _partitions(path)
        super().__init__(path, [file for files in partitions.values() for file in files], _open)
        self.folder = folder
        self.pixels = list(partitions)
        last = np.cumsum([len(files) for files in partitions.values()]) - 1
        self.ends = np.cumsum(self._lengths)[last]

    @property
    def position_columns(self) -> list[str]:
        """Those that a HATS catalogue has to have: its HEALPix index, right ascension, declination.

        Raises ValueError where the properties name no position, or one that is not there.
        """
        sky = [self.properties.get(f"hats_col_{name}", "") for name in ("ra", "dec")]
        if missing := [name for name in sky if name not in self.names]:
            raise ValueError(
                f"{self.path}: hats_col_ra and hats_col_dec of its properties are {sky}; no column "
                f"is called {missing[0]!r}, and predictions in HATS need a position: name a file, "
                f"such as output=predictions.parquet"
            )
        index = self.properties.get("hats_col_healpix", "_healpix_29")
        return [index, *sky] if index in self.names else sky


def hats_files(path: str | os.PathLike[str]) -> list[str]:
    """The Parquet files of a HATS folder, in the order in which their rows are read."""
    return [file for files in _partitions(os.fspath(path))[2].values() for file in files]


def _open(file: str) -> ParquetCatalogue:
    with naming(file):
        return ParquetCatalogue(file)


def _partitions(path: str) -> tuple[Path, dict[str, str], dict[Pixel, list[str]]]:
    """(folder, properties, files by pixel in order) of a catalogue, or a collection's main one."""
    folder = Path(path)
    properties = _properties(folder)
    if properties is None:
        main = _read_properties(folder / COLLECTION).get("hats_primary_table_url")
        if not main:
            raise ValueError(f"{folder / COLLECTION}: hats_primary_table_url names no catalogue")
        folder = folder / main
        properties = _properties(folder)
        if properties is None:
            raise FileNotFoundError(
                f"{folder}, the main catalogue of the collection {path}, has no {PROPERTIES[0]}"
            )
    suffix = properties.get("hats_npix_suffix", ".parquet")
    pixels = sorted(set(_pixels(folder)), key=lambda pixel: pixel.first_index)
    if not pixels:
        raise FileNotFoundError(f"{folder}: no partition (dataset/Norder=*/Dir=*/Npix=*) is there")
    return folder, properties, {pixel: _files(folder / pixel.place, suffix) for pixel in pixels}


def _pixels(folder: Path) -> Iterator[Pixel]:
    """Of the catalogue's list of partitions; without one, of the files that are there."""
    listed = folder / "partition_info.csv"
    if listed.exists():
        with open(listed, newline="") as file:
            for row in csv.DictReader(file):
                try:
                    yield Pixel(int(row["Norder"]), int(row["Npix"]))
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(
                        f"{listed}: expected whole numbers in the columns Norder and Npix, got "
                        f"{row}"
                    ) from error
        return
    for found in folder.glob("dataset/Norder=*/Dir=*/Npix=*"):
        if match := _PARTITION.search(found.as_posix()):
            yield Pixel(int(match[1]), int(match[2]))


def _files(place: Path, suffix: str) -> list[str]:
    """The file of a partition, or those in its folder where the suffix is a slash."""
    file = Path(f"{place}{suffix}")
    files = sorted(f for f in file.glob("*") if f.is_file()) if suffix == "/" else [file]
    if not files or not files[0].exists():
        raise FileNotFoundError(f"{file}: this partition of the HATS catalogue is not there")
    return [str(f) for f in files]


def _properties(folder: Path) -> dict[str, str] | None:
    for name in PROPERTIES:
        if (folder / name).is_file():
            return _read_properties(folder / name)
    return None


def _read_properties(path: Path) -> dict[str, str]:
    """Lines ``key = value``."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and line.strip()[0] not in "#!")
    return {key.strip(): value.strip() for key, _, value in pairs}


class HatsWriter:
    """Writes rows into the partitions of ``source``, the catalogue that they belong to.

    A context manager, as `Writer`, with its arguments. Each chunk has a column `ROW`, rising
    through all chunks: of a row its number in ``source``. A partition without rows is not written.
    The folder appears when it is complete; it must not be there before, or be empty.
    """

    def __init__(
        self, path: str | os.PathLike[str], source: HatsCatalogue, **of_a_file: Any
    ) -> None:
        self.path, self.source = Path(path), source
        self._meta: Mapping[str, str] = of_a_file.pop("meta", None) or {}
        self._of_a_file = of_a_file
        self._hidden = unfinished(path)
        self._rows: dict[Pixel, int] = {}  # written, by partition
        self._schema: Any = None
        self._number = -1  # of the partition that is written
        self._writer: Writer | None = None

    def __enter__(self) -> Self:
        return self

    def write(self, chunk: Mapping[str, np.ndarray]) -> None:
        """Append rows: arrays (rows,) or (rows, ...) of one length, `ROW` among them."""
        numbers = np.searchsorted(self.source.ends, chunk[ROW], side="right")
        for number in np.unique(numbers).tolist():
            if number < self._number:
                raise ValueError(f"{self.path}: rows come in the order of the catalogue")
            if number > self._number:
                self._end_partition()
                self._begin_partition(number)
            assert self._writer is not None
            mine = numbers == number
            self._writer.write({name: v[mine] for name, v in chunk.items() if name != ROW})
            self._rows[self.source.pixels[number]] += int(mine.sum())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
            elif self._writer is not None:
                self._writer.__exit__(kind, error, trace)
        finally:
            shutil.rmtree(self._hidden, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self._hidden / f"{self.source.pixels[number].place}.parquet"

    def _begin_partition(self, number: int) -> None:
        self._file(number).parent.mkdir(parents=True, exist_ok=True)
        self._writer = Writer(self._file(number), meta=dict(self._meta), **self._of_a_file)
        self._writer.__enter__()
        self._rows[self.source.pixels[number]] = 0
        self._number = number

    def _end_partition(self) -> None:
        if self._writer is None:
            return
        self._writer.__exit__(None, None, None)
        self._writer = None
        schema = pq.read_schema(self._file(self._number))
        self._schema = self._schema or schema
        if not schema.equals(self._schema):
            raise ValueError(
                f"{self.path}: {self.source.pixels[self._number].place} has the columns {schema}, "
                f"and the first partition {self._schema}"
            )

    def _finish(self) -> None:
        self._end_partition()
        if not self._rows:
            raise ValueError(f"{self.path}: nothing was written to it, not even an empty chunk")
        known = self._schema.metadata or {}
        meta = known | {key.encode(): text.encode() for key, text in self._meta.items()}
        pq.write_metadata(
            self._schema.with_metadata(meta), self._hidden / "dataset" / "_common_metadata"
        )
        lines = [f"{pixel.order},{pixel.number}\n" for pixel in self._rows]
        (self._hidden / "partition_info.csv").write_text("".join(["Norder,Npix\n", *lines]))
        text = "".join(f"{key}={value}\n" for key, value in self._properties().items())
        for name in PROPERTIES:
            (self._hidden / name).write_text(f"#HATS catalog\n{text}", encoding="utf-8")
        finish(self._hidden, self.path)

    def _properties(self) -> dict[str, Any]:
        inherited = {k: v for k, v in self.source.properties.items() if k in INHERITED}
        return {
            "obs_collection": self.path.resolve().name,
            **inherited,
            "hats_nrows": sum(self._rows.values()),
            "hats_max_rows": max(self._rows.values()),
            "hats_order": max(pixel.order for pixel in self._rows),
            "hats_npix_suffix": ".parquet",
            "hats_builder": f"orrery, {self._meta.get('model', '')}".rstrip(", "),
            "hats_creation_date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MUTC"),
            "hats_version": "v1.0",
        }
