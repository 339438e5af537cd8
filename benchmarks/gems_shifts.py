"""How far the actions of what clusters eject depend on the Galaxy's potential.

    python -m benchmarks.gems_shifts             # 20 stars of each cluster in seven potentials

The same kicks at the same times, in each potential moved on to today. Actions are those of the base
potential, as a user of the shipped checkpoint computes them: an error of the potential, its change
with time and its lack of symmetry are all in the shift of a cluster's median (in spreads of its
stars in the base potential) and in the spread (in the same unit). Prints medians, and writes
benchmarks/gems_shifts.csv, a row for each cluster and potential, and a figure of it.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from orrery.figures import gems as figures
from orrery.physics.ejections import population
from orrery.physics.ejections.clusters import Clusters, milky_way_clusters
from orrery.physics.ejections.structure import core_structure
from orrery.physics.milky_way.actions import staeckel_actions
from orrery.physics.milky_way.potentials import POTENTIALS, milky_way

BASE = "mwpotential2014"
ACTIONS = ("J_R", "L_z", "J_z")
Row = dict[str, object]


def actions_of_today(
    n: int, clusters: Clusters, potential: str, duration: float, seed: int
) -> np.ndarray:
    """Of ``n`` stars of each cluster, in the base potential: (n, clusters, 3); NaN: unbound."""
    generator = torch.Generator().manual_seed(seed)
    orbits = population.cluster_orbits(clusters, potential, duration, generator)
    kick = population.three_body_kicks
    stars = population.eject(n, orbits, core_structure(clusters), kick, generator)
    x, v = population.to_today(stars, potential)
    actions = staeckel_actions(x, v, milky_way(BASE).axisymmetric)
    return population.action_vector(actions).numpy()


def median_and_spread(J: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median, and half of the interval of 68%, over the stars: (clusters, 3) each."""
    q16, middle, q84 = np.nanquantile(J, (0.16, 0.5, 0.84), axis=0)
    return middle, 0.5 * (q84 - q16)


def rows(n: int, clusters: Clusters, duration: float, seed: int) -> Iterator[Row]:
    base, spread = median_and_spread(actions_of_today(n, clusters, BASE, duration, seed))
    for potential in POTENTIALS:
        if potential == BASE:
            continue
        J = actions_of_today(n, clusters, potential, duration, seed)
        median, width = median_and_spread(J)
        shift, ratio = (median - base) / spread, width / spread
        for i, name in enumerate(clusters.names):
            row: Row = {"potential": potential, "cluster": name, "n": n}
            for kind, values in (("shift", shift), ("spread", ratio)):
                row |= {f"{kind}_{a}": f"{v:.3g}" for a, v in zip(ACTIONS, values[i], strict=True)}
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stars", type=int, default=20, help="of each cluster")
    parser.add_argument("--duration", type=float, default=1.0, help="Gyr, of the ejections")
    parser.add_argument("--clusters", nargs="*", help="names; none: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/gems_shifts.csv"))
    parser.add_argument("--figure", type=Path, default=Path("figures/gallery/gems_shifts.png"))
    options = parser.parse_args()
    clusters = milky_way_clusters()
    if options.clusters:
        clusters = clusters.select(options.clusters)
    table = list(rows(options.stars, clusters, options.duration, options.seed))
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    arrays = {name: np.array([row[name] for row in table]) for name in table[0]}
    arrays |= {
        k: values.astype(float) for k, values in arrays.items() if k[:5] in ("shift", "sprea")
    }
    figures.style.save(figures.shifts(arrays), options.figure)
    summary(arrays)


def summary(arrays: dict[str, np.ndarray]) -> None:
    """Prints medians over the clusters as a Markdown table."""
    columns = [f"{kind}_{action}" for kind in ("shift", "spread") for action in ACTIONS]
    print(f"| potential | {' | '.join(f'median of {c}' for c in columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for potential in dict.fromkeys(arrays["potential"]):
        chosen = arrays["potential"] == potential
        cells = []
        for name in columns:
            values = arrays[name][chosen]
            values = np.abs(values) if name.startswith("shift") else values
            cells.append(f"{np.median(values):.2f}")
        print(f"| {potential} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
