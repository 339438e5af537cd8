"""Tables in and out, streamed in constant memory: FITS, ECSV, CSV, Parquet, HDF5 and HATS.

Read only: NPZ, tables of white space, and VOTables, Avro and machine-readable tables of the AAS and
of CDS, which are held in memory.

with open_catalogue("cat.fits") as catalogue, Writer("out.hdf5") as out:
    for chunk in catalogue.chunks(["ra", "dec"]):
        out.write(chunk)
"""

import glob
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from .avro import open_avro
from .base import Catalogue, naming
from .columns import convert, resolve
from .fits import open_fits
from .hats import HatsCatalogue, HatsWriter, hats_files, is_hats, open_hats
from .hdf5 import open_hdf5
from .keyed import KeyedTables
from .memory import read_table
from .multi_file import Chain
from .npz import open_npz
from .parquet import open_parquet
from .row_filter import where
from .text import open_csv, open_ecsv, open_text
from .votable import open_votable
from .writer import Writer, sink_for

__all__ = [
    "Catalogue",
    "HatsCatalogue",
    "HatsWriter",
    "KeyedTables",
    "Writer",
    "convert",
    "files_of",
    "is_hats",
    "open_catalogue",
    "open_hats",
    "read_table",
    "resolve",
    "sha256",
    "sink_for",
    "where",
]

READERS: dict[str, Callable[[str, str | None], Catalogue]] = {
    ".fits": open_fits,
    ".fit": open_fits,
    ".fits.gz": open_fits,
    ".ecsv": open_ecsv,
    ".csv": open_csv,
    ".ecsv.gz": open_ecsv,
    ".csv.gz": open_csv,
    ".tsv": open_csv,
    ".tsv.gz": open_csv,
    ".txt": open_text,
    ".txt.gz": open_text,
    ".dat": open_text,
    ".dat.gz": open_text,
    ".cat": open_text,
    ".cat.gz": open_text,
    ".parquet": open_parquet,
    ".pq": open_parquet,
    ".hdf5": open_hdf5,
    ".h5": open_hdf5,
    ".hdf": open_hdf5,
    ".nc": open_hdf5,
    ".npz": open_npz,
    ".vot": open_votable,
    ".vot.gz": open_votable,
    ".votable": open_votable,
    ".xml": open_votable,
    ".xml.gz": open_votable,
    ".avro": open_avro,
}


def open_catalogue(path: str | os.PathLike[str], group: str | None = None) -> Catalogue:
    """Open a catalogue for reading; its format follows from the file's ending.

    `group` chooses the HDF5 group (or compound dataset), the FITS extension (EXTNAME or number) or
    the table of a VOTable (name, ID or number) that holds the columns. A pattern such as
    ``shards/*.h5`` stands for several files, which are read as one, in the order of their names;
    so are the partitions of a HATS folder, see `open_hats`. Use the result as a context manager.

    Raises FileNotFoundError, IsADirectoryError, PermissionError or OSError (truncated or not of
    its format) naming the file, and ValueError for an unknown ending or an ambiguous file.
    """
    path = os.fspath(path)
    if is_hats(path):
        if group is not None:
            raise ValueError(f"{path}: data.group={group} is given, but HATS has no groups")
        return open_hats(path)
    files = files_of(path)
    if len(files) > 1:
        return Chain(path, files, lambda file: open_catalogue(file, group))
    path = files[0] if files else path
    name = Path(path).name.lower()
    ending = next((e for e in READERS if name.endswith(e)), None)
    if os.path.isdir(path):
        raise IsADirectoryError(
            f"{path} is a folder; data.path must name a catalogue file, or a HATS catalogue: a "
            f"folder with hats.properties, properties or collection.properties"
        )
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: there is no such file (it came from data.path)")
    if ending is None:
        raise ValueError(f"{path}: unknown file ending; known endings are {' '.join(READERS)}")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path}: you have no permission to read this file")
    if os.path.getsize(path) == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes)")
    group = None if group is None else str(group)  # a number, at the command line
    if group is not None and READERS[ending] not in (open_hdf5, open_fits, open_votable):
        raise ValueError(f"{path}: data.group={group} is given, but {ending} files have no groups")
    with naming(path):
        return READERS[ending](path, group)


def files_of(path: str | os.PathLike[str]) -> list[str]:
    """The files that a path or a pattern of paths names, in the order of their names.

    Of a HATS folder its partitions, in the order of the sky.
    """
    path = os.fspath(path)
    if is_hats(path):
        return hats_files(path)
    if glob.has_magic(path) and not os.path.exists(path):
        return sorted(name for name in glob.glob(path) if os.path.isfile(name))
    return [path] if os.path.isfile(path) else []


def sha256(path: str | os.PathLike[str]) -> str:
    """Of a file; of several, that a pattern or a HATS folder names, that of their hashes."""
    hashes = []
    for name in files_of(path):
        with open(name, "rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
