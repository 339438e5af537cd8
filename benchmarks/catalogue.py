"""Stream ten million rows out and in again, per format, and print the peak resident memory.

    python -m benchmarks.catalogue [rows]

Each format runs in a process of its own. Writes about a gigabyte at a time in the temporary
folder, and removes it.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from orrery.tables import Writer, open_catalogue

ENDINGS = (".fits", ".parquet", ".hdf5", ".csv", ".ecsv")
ROWS = 10_000_000
LIMIT_GB = 2.0


def main() -> None:
    rows = sys.argv[1] if len(sys.argv) > 1 else str(ROWS)
    print(f"{rows} rows: id, ra, dec, 6 magnitudes, name")
    print(f"{'format':10}{'file GB':>9}{'write s':>9}{'read s':>9}{'peak resident GB':>18}")
    for ending in ENDINGS:
        command = [sys.executable, "-m", "benchmarks.catalogue", "one", ending, rows]
        subprocess.run(command, check=True)


def one(ending: str, rows: int) -> None:
    """Write and read one format; exits with an error above LIMIT_GB."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"catalogue{ending}")
        begin = time.process_time()
        with Writer(path, units={"ra": "deg", "dec": "deg"}) as out:
            for first in range(0, rows, 65_536):
                out.write(simulate(first, min(65_536, rows - first)))
        written = time.process_time()
        with open_catalogue(path) as catalogue:
            seen = 0
            for chunk in catalogue.chunks(catalogue.names):
                if not np.array_equal(chunk["id"], np.arange(seen, seen + len(chunk["id"]))):
                    raise SystemExit(f"{ending}: rows out of order after {seen}")
                seen += len(chunk["id"])
        if seen != rows:
            raise SystemExit(f"{ending}: {seen} rows came back of {rows}")
        read = time.process_time()
        size = os.path.getsize(path) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{ending:10}{size:9.2f}{written - begin:9.1f}{read - written:9.1f}{peak:18.2f}")
    if peak > LIMIT_GB:
        raise SystemExit(f"{ending}: more than {LIMIT_GB} GB")


def simulate(first: int, rows: int) -> dict[str, np.ndarray]:
    """Rows first..first+rows of a made-up photometric catalogue."""
    rng = np.random.default_rng(first)
    ids = np.arange(first, first + rows)
    table: dict[str, np.ndarray] = {
        "id": ids,
        "ra": rng.uniform(0, 360, rows),
        "dec": rng.uniform(-90, 90, rows),
    }
    table |= {f"mag_{band}": rng.normal(22, 2, rows).astype(np.float32) for band in "ugrizy"}
    table["name"] = np.char.add("J", ids.astype(str))
    return table


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], int(sys.argv[3]))
    else:
        main()
