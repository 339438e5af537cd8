"""Mock clusters among field stars: how far posterior means lie from the truth, over many lists.

    python -m benchmarks.gc_field                                  # ten mocks, 10 min of CPU

Each mock has the same true cluster, and its own stars, a third of them of the field, with proper
motions, parallaxes and, for every star, a velocity. A pull is the mean of a parameter's draws less
the truth, in standard deviations of the draws: of a calibrated posterior pulls have a mean of 0 and
a standard deviation of 1. All mocks are sampled at once, as groups of `models.inference.hmc.HMC`,
each with its own step size and metric; R-hat is that of all parameters but the true coordinates of
the stars. The truth of the fraction of field stars is that of every mock, so that its pulls scatter
by less than 1.
"""

import argparse
import csv
import os
import time
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import torch
from torch import Tensor

from orrery import pretrained
from orrery.benchmarks.gc_pyro import PLACE
from orrery.datamodules.gc_emulator import MOCK_TRUTH
from orrery.datamodules.gc_emulator.stars import GCStars
from orrery.models.gc_emulator.inference import sample
from orrery.models.gc_emulator.sky import SkyPosterior, star_measurements
from orrery.models.inference.diagnostics import ess, rhat
from orrery.physics.clusters.observations import SkyStars

CHAINS = 4
PARAMETERS = ("log10_mass", "log10_rh", "W0", "g", "field_share")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/gc_field.csv"))
    parser.add_argument("--mocks", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="seed of the first mock")
    parser.add_argument("--stars", type=int, default=120, help="a third of them of the field")
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--draws", type=int, default=250, help="of each of four chains")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(options.first, options.first + options.mocks)
    posterior, truth = posterior_of_mocks(seeds, options.stars)
    began = time.process_time()
    drawn = sample(posterior, CHAINS, options.warmup, options.draws, options.first)
    seconds = time.process_time() - began
    rows = [
        {"seed": seed, "stars": options.stars, "draws": options.draws}
        | row_of({name: x[i] for name, x in drawn.named.items()}, truth, drawn.u[i])
        for i, seed in enumerate(seeds)
    ]
    with open(options.out, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for name in PARAMETERS:
        pulls = torch.tensor([float(row[f"{name}_pull"]) for row in rows])
        print(f"{name}: mean pull {pulls.mean():.2f}, standard deviation {pulls.std():.2f}")
    print(f"{seconds:.0f} s of CPU, {drawn.metrics}")


def posterior_of_mocks(seeds: range, stars: int) -> tuple[SkyPosterior, dict[str, float]]:
    """The posterior of each mock, as sets of one, and the truth of all."""
    mocks = [
        GCStars(
            n_stars=stars, truth=MOCK_TRUTH | PLACE, seed=seed, field=True, radius=[1.0, 25.0],
            mock_rv_error=1.0,
        )
        for seed in seeds
    ]  # fmt: skip
    observed = [mock.observations() for mock in mocks]
    first = observed[0]
    assert isinstance(first, SkyStars)
    columns = {
        name: torch.stack([one.columns[name] for one in observed if isinstance(one, SkyStars)])
        for name in first.columns
    }
    emulator = pretrained.load("gc_emulator").emulator
    posterior = SkyPosterior(
        emulator, star_measurements(columns), first.distance, first.selection,
        has_field_stars=True, parallax_offset_error=first.parallax_offset_error,
    )  # fmt: skip
    return posterior, mocks[0].truth()


def row_of(named: dict[str, Tensor], truth: dict[str, float], u: Tensor) -> dict[str, Any]:
    """Of one mock: pulls, posterior widths and diagnostics; ``u`` (chains, draws, globals)."""
    row: dict[str, Any] = {}
    for name in PARAMETERS:
        pull = (named[name].mean() - truth[name]) / named[name].std()
        row |= {f"{name}_pull": f"{pull:.2f}", f"{name}_std": f"{named[name].std():.3g}"}
    return row | {"rhat_max": f"{rhat(u).max():.3f}", "ess_min": f"{ess(u).min():.0f}"}


if __name__ == "__main__":
    main()
