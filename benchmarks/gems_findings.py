"""Two findings of Grondin et al. (2023); the first one is of `benchmarks.gems_shifts`.

    python -m benchmarks.gems_findings streams     # do ejected stars contaminate streams?
    python -m benchmarks.gems_findings matching    # which field stars of a mock have a host?

`streams`: the share of a cluster's ejected stars that are, today, within 2 deg of its orbit of the
last and next 300 Myr, and within 10% of its distance and 30 km/s of its velocity on the sky there,
against the pericentre. `matching`: of a mock of 10 field stars per ejected one, by the shipped
checkpoint, how many stars have a host of a probability above .5, and how many of these are right.
Writes benchmarks/gems_findings.csv.
"""

import argparse
import csv
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1")

import numpy as np
import torch
from torch import Tensor

from orrery import load
from orrery.datamodules.gems import GemsData
from orrery.physics.constants import KM_S_PER_AU_YR
from orrery.physics.ejections import population
from orrery.physics.ejections.clusters import milky_way_clusters
from orrery.physics.ejections.structure import core_structure
from orrery.physics.milky_way.frames import galactocentric, observed
from orrery.physics.milky_way.orbits import snapshots
from orrery.physics.milky_way.potentials import milky_way
from orrery.physics.sky import sky_angle

Row = dict[str, object]
COLUMNS = ("finding", "case", "quantity", "n", "value")
BASE, DURATION = "mwpotential2014", 1.0
N_STARS = 100  # of each cluster
TRACK, TRACK_POINTS = 0.3, 301  # Gyr, back and on
NEAR_ANGLE, NEAR_DISTANCE, NEAR_SPEED = 2.0, 0.1, 30.0  # deg, relative, km/s
PERICENTRE = 5.0  # kpc


def sprayed(seed: int) -> tuple[Tensor, Tensor]:
    """Positions and velocities of today of ``N_STARS`` of each cluster, (n, clusters, 3) each."""
    clusters = milky_way_clusters()
    generator = torch.Generator().manual_seed(seed)
    orbits = population.cluster_orbits(clusters, BASE, DURATION, generator)
    core = core_structure(clusters)
    stars = population.eject(N_STARS, orbits, core, population.three_body_kicks, generator)
    return population.to_today(stars, BASE)


def streams(seed: int) -> Iterator[Row]:
    clusters, galaxy = milky_way_clusters(), milky_way(BASE)
    x, v = sprayed(seed)
    stars = observed(x, v)
    c = clusters
    place = galactocentric(c.ra, c.dec, c.distance, c.pmra, c.pmdec, c.v_los)
    tracks = [snapshots(*place, galaxy, 0.0, end, TRACK_POINTS) for end in (-TRACK, TRACK)]
    track = observed(*(torch.cat(parts, 1) for parts in zip(*tracks, strict=True)))
    share = torch.zeros(len(c), dtype=torch.float64)
    for i in range(len(c)):
        star = [column[:, i, None] for column in stars]
        orbit = [column[i] for column in track]
        near = sky_angle(star[0], star[1], orbit[0], orbit[1]) < np.deg2rad(NEAR_ANGLE)
        near &= (star[2] / orbit[2] - 1).abs() < NEAR_DISTANCE
        motion = torch.hypot(star[3] - orbit[3], star[4] - orbit[4])
        near &= motion * star[2] * KM_S_PER_AU_YR < NEAR_SPEED
        share[i] = near.any(1).double().mean()
    full = snapshots(*place, galaxy, 0.0, -5.0, 2001)[0]
    pericentre = full.norm(dim=-1).amin(1)
    outer = pericentre > PERICENTRE
    for case, which in (("pericentre above 5 kpc", outer), ("below", ~outer)):
        values = share[which]
        for quantity, value in (
            ("median share near the orbit", values.median()),
            ("clusters with a fifth or more", (values > 0.2).double().mean()),
        ):
            yield {
                "finding": "streams", "case": case, "quantity": quantity, "n": len(values),
                "value": float(value),
            }  # fmt: skip
    best = share.argsort(descending=True)[:10]
    for i in best.tolist():
        yield {
            "finding": "streams", "case": clusters.names[i], "quantity": "share near the orbit",
            "n": N_STARS, "value": float(share[i]),
        }  # fmt: skip


def matching(seed: int) -> Iterator[Row]:
    model = load("gems")
    data = GemsData(seed=seed)
    with torch.inference_mode():
        parts = [model.predict_step(batch) for batch in data.prediction_batches()]
    names = ("p_host", "p_field", "host", "host_true")
    rows = {name: torch.cat([part[name] for part in parts]).numpy() for name in names}
    chosen = rows["p_host"] > 0.5
    ejected = rows["host_true"] < len(data.clusters)
    right = rows["host"] == rows["host_true"]
    for quantity, value in (
        ("stars with a host above .5", float(chosen.sum())),
        ("of these with the right host", float(right[chosen].mean())),
        ("of these from any cluster", float(ejected[chosen].mean())),
        ("mean probability of their host", float(rows["p_host"][chosen].mean())),
    ):
        yield {
            "finding": "matching", "case": "ten field stars per ejected one", "quantity": quantity,
            "n": len(ejected), "value": value,
        }  # fmt: skip


FINDINGS = {"streams": streams, "matching": matching}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("finding", choices=FINDINGS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/gems_findings.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for row in FINDINGS[options.finding](options.seed):
        rows.append(row | {"value": f"{row['value']:.4g}"})
        print(rows[-1], flush=True)
    kept: list[Row] = []
    if options.out.exists():
        with options.out.open() as file:
            kept = [r for r in csv.DictReader(file) if r["finding"] != options.finding]
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])


if __name__ == "__main__":
    main()
