"""Gaia's files of XP coefficients, converted to shards from which training streams.

    python -m orrery.datamodules.scatter_vae convert XpContinuousMeanSpectrum_*.gz --out shards

Each bulk file becomes one HDF5 shard (see `datamodules.scatter_vae.shards`), named by the HEALPix
pixels of its stars. Converted files are skipped, so that the command can be repeated after an
interruption, or be run by several processes, each with some of the files.
"""

import argparse
import contextlib
import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from orrery.datamodules.scatter_vae.export import export
from orrery.datamodules.scatter_vae.shard_rows import ValidRows
from orrery.datamodules.scatter_vae.shards import LAYOUT, Shard, check, read_shard
from orrery.tables import open_catalogue
from orrery.tables.hdf5 import Hdf5Sink
from orrery.tables.sink import TableMetadata

# source_id / 2**35 is the HEALPix pixel of level 12, nested (Gaia DR3 documentation, gaia_source);
# four pixels of a level make one of the level above. The bulk files are cut at level 8.
PIXEL = 2**35 * 4 ** (12 - 8)
CORRELATIONS = {"half": np.float16, "full": np.float32, "none": None}
ROWS_AT_ONCE = 1024  # 75 MB of text


def convert(
    files: Sequence[str | Path], out: str | Path, correlations: str = "half", skip_bad: bool = False
) -> list[Path]:
    """The shards of `files` in the folder `out`, made unless they exist.

    Files are of any format that `open_catalogue` reads, with the archive's column names;
    `correlations` are kept in "half" or "full" precision, or left out ("none"). Raises ValueError
    for a bad row, by its number and source_id, unless such rows are skipped; OSError for a file
    that is truncated, or when writing fails. No shard is left half-written.
    """
    known = _known(Path(out))
    return [_convert(Path(file), Path(out), known, correlations, skip_bad) for file in files]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, 2 when a file was refused."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    tasks = parser.add_subparsers(dest="task", required=True)
    make = tasks.add_parser("convert", help="one HDF5 shard of each file")
    make.add_argument("files", nargs="+", help="Gaia's bulk files, or others with its columns")
    make.add_argument("--out", required=True, help="folder of the shards")
    make.add_argument("--correlations", choices=CORRELATIONS, default="half")
    make.add_argument("--skip-bad", action="store_true", help="leave out invalid rows")
    verify = tasks.add_parser("check", help="compare shards with their checksums")
    verify.add_argument("shards", nargs="+")
    archived = tasks.add_parser("export", help="reconstructed spectra, as GaiaXPy reads them")
    archived.add_argument("predictions", help="HDF5 of evaluate.py, with data.keep=[source_id]")
    archived.add_argument("--out", required=True, help="a .csv")
    options = parser.parse_args(argv)
    try:
        if options.task == "check":
            print(f"{check(options.shards)} shards match their checksums")
            return 0
        if options.task == "export":
            print(f"{options.out}: {export(options.predictions, options.out):,} spectra")
            return 0
        known, failed = _known(Path(options.out)), 0
        for file in map(Path, options.files):
            try:
                _convert(file, Path(options.out), known, options.correlations, options.skip_bad)
            except (OSError, ValueError) as error:  # goes on with the other files
                print(error, file=sys.stderr)
                failed += 1
        if failed:
            print(f"{failed} of {len(options.files)} files were not converted", file=sys.stderr)
        return 2 if failed else 0
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


def _known(out: Path) -> dict[Path, Shard]:
    """The complete shards in the folder, which is made if it does not exist."""
    out.mkdir(parents=True, exist_ok=True)
    known = {}
    for path in sorted(out.glob("*.h5")):
        try:
            known[path] = read_shard(str(path))
        except (OSError, ValueError) as error:
            print(f"ignored: {error}")
    return known


def _convert(
    file: Path, out: Path, known: dict[Path, Shard], correlations: str, skip_bad: bool
) -> Path:
    if correlations not in CORRELATIONS:
        raise ValueError(f"correlations are {', '.join(CORRELATIONS)}; got {correlations!r}")
    if file.exists() and (shard := _shard_of(file, known, correlations)):
        print(f"{file}: is in {shard} already")
        return shard
    part = out / f".{file.name}.part"
    try:
        with open_catalogue(file) as catalogue:
            meta = {**_source(file), "layout": LAYOUT, "correlations": correlations}
            rows = ValidRows(catalogue, CORRELATIONS[correlations], skip_bad)
            low, high = _write(rows, part, meta)
        stem = f"xp_{low:06d}-{high:06d}"
        taken = sum(path.stem.startswith(stem) for path in known)
        target = out / (f"{stem}_{taken + 1}.h5" if taken else f"{stem}.h5")
        _synchronise(part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    known[target] = read_shard(str(target))
    dropped = "".join(f"\n  dropped {n}: {why}" for why, n in rows.dropped.most_common())
    print(f"{file}: {known[target].rows:,} stars in {target}{dropped}")
    return target


def _shard_of(file: Path, known: dict[Path, Shard], correlations: str) -> Path | None:
    """The shard that was made of this file."""
    source = _source(file)
    for path, shard in known.items():
        if source.items() <= shard.metadata.items():
            if (kept := shard.metadata["correlations"]) != correlations:
                raise ValueError(
                    f"{file}: is in {path} already, converted with --correlations {kept}; delete "
                    "that shard, or choose another folder"
                )
            return path
        if shard.metadata["source"] == source["source"]:
            print(f"note: {path} is of another file of the name {file.name}")
    return None


def _source(file: Path) -> dict[str, str]:
    """Metadata that identify a file, wherever it is."""
    with open(file, "rb") as content:
        start = zlib.crc32(content.read(2**16))
    return {
        "source": file.name,
        "source_bytes": str(file.stat().st_size),
        "source_start_crc32": str(start),
    }


def _write(rows: ValidRows, part: Path, meta: dict[str, str]) -> tuple[int, int]:
    """Write the shard and return its first and last pixel; `complete` is written last."""
    sink: Hdf5Sink | None = None
    sums: dict[str, int] = {}
    n, low, high = 0, 12 * 4**8, 0
    try:
        for chunk in rows.chunks(ROWS_AT_ONCE):
            if not len(chunk["source_id"]):
                continue
            with _writing(part):
                sink = sink or Hdf5Sink(str(part), chunk, TableMetadata({}, {}, {}, {}, meta))
                sink.write(chunk)
            n += len(chunk["source_id"])
            sums = {c: zlib.crc32(values.tobytes(), sums.get(c, 0)) for c, values in chunk.items()}
            pixels = chunk["source_id"] // PIXEL
            low, high = min(low, int(pixels.min())), max(high, int(pixels.max()))
        if sink is None:
            raise ValueError(f"{meta['source']}: none of its rows is valid")
        versions = {name: version(name) for name in ("h5py", "numpy")}
        meta |= {"rows": str(n), "dropped": str(rows.dropped.total()), "healpix": f"{low}-{high}"}
        meta |= {"crc32": json.dumps(sums), "versions": json.dumps(versions), "complete": "true"}
        with _writing(part):
            sink.close()
    except BaseException:
        if sink is not None:
            sink.abort()
        raise
    return low, high


@contextlib.contextmanager
def _writing(part: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise OSError(f"writing a shard to {part.parent} failed: {error}") from error


def _synchronise(file: Path) -> None:
    """Write the content to disk, before the file gets its name."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
