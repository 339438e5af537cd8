"""A survey in HATS through evaluate.py: rows per second, and the peak memory of the process.

python -m benchmarks.hats [checkpoint=gyro] [rows=1000000] [partition=250000]

The rows are those of the checkpoint's simulation, or of its embedded file, over and over, each with
Gaussian noise on its magnitudes (0.01 mag) or period (0.01 d), at random places of the sky. Written
to a temporary folder; the outputs of one number per row are predicted (columns=scalars).
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


def main(checkpoint: str = "gyro", rows: str = "1000000", partition: str = "250000") -> None:
    with tempfile.TemporaryDirectory() as temporary:
        survey, out = Path(temporary, "survey"), Path(temporary, "out")
        write_survey(survey, example_table(checkpoint), int(rows), int(partition))
        start = time.monotonic()
        command = [
            "evaluate.py", f"checkpoint={checkpoint}", f"data.path={survey}", f"output={out}",
            "columns=scalars", "data.keep=[id]", f"hydra.run.dir={temporary}/run",
        ]  # fmt: skip
        subprocess.run([sys.executable, *command], check=True)
        seconds = time.monotonic() - start
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        peak = usage.ru_maxrss / 1024**2
        files = sorted(out.glob("dataset/*/*/*.parquet"))
        written = sum(pq.read_metadata(file).num_rows for file in files)
        per_row = sum(file.stat().st_size for file in files) / written
        ids = np.concatenate([pq.read_table(file, columns=["id"])["id"] for file in files[:2]])
        assert written == int(rows) and (np.diff(ids[: int(partition)]) == 1).all()
        print(
            f"{checkpoint}: {written:,} rows in {len(files)} partitions, {seconds:.0f} s, "
            f"{usage.ru_utime + usage.ru_stime:.0f} s of CPU, {per_row:.0f} bytes per row, peak "
            f"memory {peak:.2f} GB (limit {LIMIT:g})"
        )
        if peak > LIMIT:
            raise SystemExit(f"peak memory is {peak:.2f} GB, above {LIMIT:g}")


if __name__ == "__main__":
    main(**dict(word.split("=", 1) for word in sys.argv[1:]))
