"""A survey in HATS through evaluate.py: its time, the peak memory of a process, the order of rows.

python -m benchmarks.hats [checkpoint=gyro] [rows=1000000] [partition=250000] [workers=1]

The rows are those of the checkpoint's simulation, or of its embedded file, over and over, each with
Gaussian noise on its magnitudes (0.01 mag) or period (0.01 d), at random places of the sky. Written
to a temporary folder; the outputs of one number per row are predicted (columns=scalars). The rows
of all partitions must come back in order, and those of the last partition must be what
``load(checkpoint).predict`` makes of them in this process. The peak memory is that of the largest
of the processes.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LIMIT = 2.0  # GB of a worker
NOISY = ("mag_", "prot_d")  # beginnings of names


def write_survey(folder: Path, table: dict[str, np.ndarray], rows: int, partition: int) -> None:
    """A HATS catalogue of ``rows`` rows, in neighbouring pixels of order 6."""
    from astropy import units as u
    from astropy_healpix import healpix_to_lonlat

    random = np.random.default_rng(0)
    n = len(next(iter(table.values())))
    pixels = range(-(-rows // partition))
    for pixel in pixels:
        size = min(partition, rows - pixel * partition)
        number = pixel * partition + np.arange(size)
        columns: dict[str, np.ndarray] = {"id": number}
        for name, values in table.items():
            columns[name] = values[number % n]
            if name.startswith(NOISY) and "err" not in name:
                columns[name] = columns[name] + 0.01 * random.standard_normal(size)
        index = np.sort(random.integers(pixel << 46, (pixel + 1) << 46, size))
        lon, lat = healpix_to_lonlat(index, 2**29, order="nested")
        place = folder / f"dataset/Norder=6/Dir={pixel // 10_000 * 10_000}/Npix={pixel}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        position = {"sky_lon": lon.to_value(u.deg), "sky_lat": lat.to_value(u.deg)}
        pq.write_table(
            pa.table({"_healpix_29": index, **position, **columns}), place, row_group_size=2**16
        )
    listed = "".join(f"6,{pixel}\n" for pixel in pixels)
    (folder / "partition_info.csv").write_text(f"Norder,Npix\n{listed}")
    (folder / "hats.properties").write_text(
        f"obs_collection=survey\ndataproduct_type=object\nhats_nrows={rows}\n"
        "hats_col_ra=sky_lon\nhats_col_dec=sky_lat\nhats_col_healpix=_healpix_29\n"
        "hats_col_healpix_order=29\nhats_npix_suffix=.parquet\n"
    )


def example_table(checkpoint: str) -> dict[str, np.ndarray]:
    """The columns of numbers of the checkpoint's simulation."""
    from orrery import load
    from orrery.checkpoint import build

    data = build(load(checkpoint).record["config"]["data"])
    table = {name: np.asarray(values) for name, values in data.simulate("test").items()}
    return {n: v for n, v in table.items() if v.ndim == 1 and v.dtype.kind in "iuf"}


def number_of_pixel(path: Path) -> int:
    return int(path.stem.removeprefix("Npix="))


def check_order(files: list[Path], rows: int) -> None:
    """The identifiers of all partitions are those of the survey, in its order."""
    ids = np.concatenate([pq.read_table(file, columns=["id"])["id"] for file in files])
    if not np.array_equal(ids, np.arange(rows)):
        raise SystemExit(f"{len(ids):,} rows of {rows:,} were written, or in another order")


def check_against_one_process(checkpoint: str, survey: Path, written: Path) -> int:
    """Columns of numbers of one partition, each equal to that of ``load(checkpoint).predict``."""
    from orrery import load

    place = survey / written.relative_to(written.parents[3])
    table = load(checkpoint).predict(pq.read_table(place).to_pandas(), outputs="scalars")
    there = pq.read_table(written)
    names = [n for n in table if n in there.column_names and table[n].dtype.kind in "iufb"]
    for name in names:
        ours, theirs = table[name].to_numpy(), there[name].to_numpy()
        if not np.allclose(ours, theirs, rtol=1e-5, equal_nan=True):
            worst = np.nanmax(np.abs(ours - theirs))
            raise SystemExit(f"{written}: {name} differs by up to {worst:g} from one process")
    if not names:
        raise SystemExit(f"{written} shares no column with load({checkpoint!r}).predict")
    return len(names)


def main(
    checkpoint: str = "gyro", rows: str = "1000000", partition: str = "250000", workers: str = "1"
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        survey, out = Path(temporary, "survey"), Path(temporary, "out")
        write_survey(survey, example_table(checkpoint), int(rows), int(partition))
        start = time.monotonic()
        command = [
            "evaluate.py", f"checkpoint={checkpoint}", f"data.path={survey}", f"output={out}",
            "columns=scalars", "data.keep=[id]", f"hydra.run.dir={temporary}/run",
        ]  # fmt: skip
        if int(workers) > 1:
            command += ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={workers}"]
        subprocess.run([sys.executable, *command], check=True)
        seconds = time.monotonic() - start
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        peak = usage.ru_maxrss / 1024**2
        files = sorted(out.glob("dataset/*/*/*.parquet"), key=number_of_pixel)
        per_row = sum(file.stat().st_size for file in files) / int(rows)
        check_order(files, int(rows))
        same = check_against_one_process(checkpoint, survey, files[-1])
        print(
            f"{checkpoint}: {int(rows):,} rows in {len(files)} partitions by {workers} processes, "
            f"{seconds:.0f} s, {usage.ru_utime + usage.ru_stime:.0f} s of CPU, "
            f"{per_row:.0f} bytes per row, peak memory {peak:.2f} GB "
            f"(limit {LIMIT:g}); in order, {same} columns as of one process"
        )
        if peak > LIMIT:
            raise SystemExit(f"peak memory is {peak:.2f} GB, above {LIMIT:g}")


if __name__ == "__main__":
    main(**dict(word.split("=", 1) for word in sys.argv[1:]))
