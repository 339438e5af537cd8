"""Streams of globular clusters that are known to be theirs, by the shipped gems.

    python -m pip install -c constraints.txt galstreams
    python -m benchmarks.gems_streams

Tracks are those of galstreams (Mateu 2023, MNRAS 520, 5225) of streams whose cluster is named by
those who found them, where distance and proper motion vary along the track (others are
placeholders); NGC 1261's are left out, whose stars led to a term of the model. Points evenly along
each track are stars, with errors of 10% in distance, 0.05 mas/yr and 2 km/s, scattered by them,
with the track's radial velocity if there is one, and without. Points within a cluster's tidal
radius are left out. Nothing was trained on streams: tails are slower than what was. Writes
benchmarks/gems_streams.csv: of each track, the shares of points whose cluster is the likeliest host
or among the first three and five, and the median probability of the field.
"""

import argparse
import csv
import os
import warnings
from importlib.util import find_spec
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1")

import numpy as np
import torch
from astropy.table import Table

from orrery import load
from orrery.models.gems.outputs import BIT
from orrery.physics.ejections.clusters import milky_way_clusters

POINTS = 60
DISTANCE_ERROR, PM_ERROR, RV_ERROR = 0.1, 0.05, 2.0  # relative; mas/yr; km/s
HOSTS = {  # stream: cluster
    "M2": "NGC 7089", "M30": "NGC 7099", "M5": "NGC 5904", "M68": "NGC 4590",
    "M68-Fjorm": "NGC 4590", "M92": "NGC 6341", "NGC1851": "NGC 1851", "NGC2298": "NGC 2298",
    "NGC2808": "NGC 2808", "NGC288": "NGC 288", "NGC3201": "NGC 3201", "NGC3201-Gjoll": "NGC 3201",
    "NGC5466": "NGC 5466", "NGC6101": "NGC 6101", "NGC6362": "NGC 6362", "NGC6397": "NGC 6397",
    "NGC7492": "NGC 7492", "OmegaCen-Fimbulthul": "NGC 5139", "Fimbulthul": "NGC 5139",
    "Pal5": "Pal 5",
}  # fmt: skip
TRACK = ("ra", "dec", "distance", "pm_ra_cosdec", "pm_dec", "radial_velocity")
Row = dict[str, object]


def folder() -> Path:
    """Of galstreams' tracks; its import would need more packages."""
    spec = find_spec("galstreams")
    if spec is None or spec.origin is None:
        raise SystemExit("galstreams is not installed: python -m pip install galstreams")
    return Path(spec.origin).parent / "tracks"


def read_track(path: Path) -> dict[str, np.ndarray]:
    """Columns of `POINTS` points of a track; without one that is a placeholder."""
    table = Table.read(path, format="ascii.basic", delimiter=",", comment="#")
    rows = np.linspace(0, len(table) - 1, POINTS).round().astype(int)
    columns = {name: np.asarray(table[name], float)[rows] for name in TRACK}
    return {name: x for name, x in columns.items() if np.isfinite(x).all() and np.ptp(x) > 1e-6}


def observed(track: dict[str, np.ndarray], seed: int, velocity: bool) -> Table:
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((4, POINTS))
    distance_error = DISTANCE_ERROR * track["distance"]
    table = Table({
        "ra": track["ra"], "dec": track["dec"],
        "distance": track["distance"] + distance_error * normal[0],
        "distance_error": distance_error,
        "pmra": track["pm_ra_cosdec"] + PM_ERROR * normal[1],
        "pmdec": track["pm_dec"] + PM_ERROR * normal[2],
        "pmra_error": np.full(POINTS, PM_ERROR), "pmdec_error": np.full(POINTS, PM_ERROR),
    })  # fmt: skip
    if velocity:
        table["radial_velocity"] = track["radial_velocity"] + RV_ERROR * normal[3]
        table["radial_velocity_error"] = RV_ERROR
    return table


def rows_of(path: Path, seed: int) -> list[Row]:
    """With the radial velocity, if there is one, and without."""
    stream, paper = path.name.removeprefix("track.st.").removesuffix(".ecsv").split(".")[:2]
    cluster = HOSTS[stream]
    track = read_track(path)
    if not {"ra", "dec", "distance", "pm_ra_cosdec", "pm_dec"} <= set(track):
        return []
    model, names = load("gems"), milky_way_clusters()
    found = []
    for velocity in (True, False) if "radial_velocity" in track else (False,):
        with warnings.catch_warnings(action="ignore"):
            table = model.predict(observed(track, seed, velocity))
        p = np.asarray(table["p_clusters"])
        true = p[:, list(table.meta["clusters"]).index(names.names[names.index(cluster)])]
        rank = 1 + (p > true[:, None]).sum(1)
        used = (np.asarray(table["flags"]) & BIT["in_cluster"]) == 0
        used &= np.isfinite(true)
        if not used.any():
            continue
        row: Row = {"stream": stream, "paper": paper, "cluster": cluster, "seed": seed,
                    "radial_velocity": velocity, "n": int(used.sum())}  # fmt: skip
        row |= {f"top{k}": f"{np.mean(rank[used] <= k):.3f}" for k in (1, 3, 5)}
        row["median_rank"] = f"{np.median(rank[used]):.1f}"
        row["median_p_field"] = f"{np.median(np.asarray(table['p_field'])[used]):.3f}"
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/gems_streams.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    paths = [path for stream in HOSTS for path in sorted(folder().glob(f"track.st.{stream}.*.ecsv"))
             if not path.name.endswith("summary.ecsv")]  # fmt: skip
    rows: list[Row] = []
    for path in paths:
        for row in rows_of(path, options.seed):
            print(" ".join(map(str, row.values())), flush=True)
            rows.append(row)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for known in (True, False):
        chosen = [row for row in rows if row["radial_velocity"] is known]
        tops = [np.mean([float(str(row[f"top{k}"])) for row in chosen]) for k in (1, 3, 5)]
        print(f"{len(chosen)} tracks, radial velocity {known}: mean top 1, 3, 5 {tops}")


if __name__ == "__main__":
    main()
