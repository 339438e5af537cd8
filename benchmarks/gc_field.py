"""Mock clusters among field stars: how far posterior means lie from the truth, over many lists.

    python -m benchmarks.gc_field --mocks 6

Each mock has the same true cluster, and its own stars, a third of them of the field, with proper
motions, parallaxes and, for every star, a velocity. A pull is the mean of a parameter's draws less
the truth, in standard deviations of the draws: of a calibrated posterior pulls have a mean of 0 and
a standard deviation of 1. A row is written when its mock is done; those of the file are not run
again.
"""

import argparse
import csv
import os
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import torch

from orrery import pretrained
from orrery.benchmarks.gc_pyro import PLACE
from orrery.datamodules.gc_emulator import MOCK_TRUTH
from orrery.datamodules.gc_emulator.stars import GCStars

PARAMETERS = ("log10_mass", "log10_rh", "W0", "g")
METRICS = ("rhat_max", "ess_min", "divergences", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/gc_field.csv"))
    parser.add_argument("--mocks", type=int, default=10)
    parser.add_argument("--stars", type=int, default=120, help="a third of them of the field")
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--draws", type=int, default=400, help="of each of four chains")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    if options.out.exists():
        with open(options.out, newline="") as file:
            rows = list(csv.DictReader(file))
    done = {int(row["seed"]) for row in rows}
    for seed in (s for s in range(options.mocks) if s not in done):
        rows.append(one(seed, options))
        print(rows[-1], flush=True)
        with open(options.out, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[-1])
            writer.writeheader()
            writer.writerows(rows)
    for name in PARAMETERS:
        pulls = torch.tensor([float(row[f"{name}_pull"]) for row in rows])
        print(f"{name}: mean pull {pulls.mean():.2f}, standard deviation {pulls.std():.2f}")


def one(seed: int, options: argparse.Namespace) -> dict[str, str]:
    """Pulls and diagnostics of the mock of ``seed``."""
    model = pretrained.load("gc_emulator")
    model.chains, model.warmup, model.draws = 4, options.warmup, options.draws
    data = GCStars(
        n_stars=options.stars, truth=MOCK_TRUTH | PLACE, seed=seed, field=True,
        radius=[1.0, 25.0], mock_rv_error=1.0,
    )  # fmt: skip
    metrics = model.infer(data, None, seed).metrics
    row = {"seed": str(seed), "stars": str(options.stars), "draws": str(options.draws)}
    row |= {f"{name}_pull": f"{metrics[f'{name}_z']:.2f}" for name in PARAMETERS}
    row |= {f"{name}_std": f"{metrics[f'{name}_std']:.3g}" for name in PARAMETERS[:2]}
    return row | {name: f"{metrics[name]:.4g}" for name in METRICS}


if __name__ == "__main__":
    main()
