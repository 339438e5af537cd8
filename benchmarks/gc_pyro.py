"""The posterior of a cluster's stars: our HMC against Pyro's NUTS, on the same density.

    pip install -c constraints.txt -e ".[bench]"
    python -m benchmarks.gc_pyro                  # 1,000 stars in phase space, 4 parameters
    python -m benchmarks.gc_pyro --sky --stars 200

Both start at the same points and draw from the same function, on one thread. Ours moves 8 chains
at once; NUTS, with Pyro's settings but a dense metric of the cluster's parameters, runs them in
turn. `seconds` is process CPU time, and effective draws are the minimum over all coordinates.
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

from orrery import load
from orrery.datamodules.gc_emulator import MOCK_TRUTH
from orrery.datamodules.gc_emulator.stars import GCStars
from orrery.models.gc_emulator.inference import posterior_of, sample
from orrery.models.gc_emulator.start import ClusterPosterior, starting_points
from orrery.models.inference.diagnostics import ess, rhat

PLACE = {"ra": 57.3, "dec": 28.6, "distance": 1.0, "pm_ra": 5.0, "pm_dec": -3.0, "rv": 20.0}
METRICS = ("rhat_max", "ess_min", "divergences", "gradients", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/gc_pyro.csv"))
    parser.add_argument("--stars", type=int, default=1000)
    parser.add_argument("--sky", action="store_true", help="proper motions, with all latents")
    parser.add_argument("--chains", type=int, default=2, help="of NUTS")
    options = parser.parse_args()
    torch.set_num_threads(1)
    posterior = mock_posterior(options.stars, options.sky)
    rows = []
    for name, run in (("zoo", ours), ("pyro NUTS", lambda p: nuts(p, options.chains))):
        settings, metrics, named = run(posterior)
        row: dict[str, Any] = {
            "method": name,
            "posterior": "sky" if options.sky else "phase space",
            "stars": options.stars,
            "dim": posterior.n_globals + posterior.n_latents,
            **settings,
            **{key: f"{metrics[key]:.4g}" for key in METRICS},
        }
        for key in MOCK_TRUTH:
            row |= {key: f"{named[key].mean():.5g}", f"{key}_std": f"{named[key].std():.3g}"}
        rows.append(row)
        print(row)
    write(rows, options.out)


def mock_posterior(n: int, sky: bool) -> ClusterPosterior:
    """The posterior of a mock cluster, seed 0."""
    emulator = load("gc_emulator").requires_grad_(False).emulator
    data = GCStars(n_stars=n, truth=MOCK_TRUTH | (PLACE if sky else {}), seed=0)
    return posterior_of(emulator, data.observations())


def ours(posterior: ClusterPosterior) -> tuple[dict[str, int], dict[str, float], dict[str, Tensor]]:
    draws = sample(posterior, chains=8, warmup=300, draws=1000, seed=0)
    # a gradient of eight chains is eight gradients
    metrics = {**draws.metrics, "gradients": 8 * draws.metrics["gradients"]}
    return {"chains": 8, "warmup": 300, "draws": 1000}, metrics, draws.named


def nuts(
    posterior: ClusterPosterior, chains: int, warmup: int = 300, n: int = 1000
) -> tuple[dict[str, int], dict[str, float], dict[str, Tensor]]:
    """``n`` draws of each chain."""
    from pyro.infer.mcmc import MCMC, NUTS

    settings = {"chains": chains, "warmup": warmup, "draws": n}
    began = time.process_time()
    start, _ = starting_points(posterior, chains, torch.Generator().manual_seed(0))
    k, calls = posterior.n_globals, 0

    def potential(u: dict[str, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        point = torch.cat(list(u.values()), -1)
        return -posterior.log_prob(point[None, None])[0, 0]

    draws, divergences = [], 0
    for chain in range(chains):
        torch.manual_seed(chain)
        kernel = NUTS(potential_fn=potential, full_mass=[("cluster",)])
        first = {"cluster": start[0, chain, :k], "latents": start[0, chain, k:]}
        first = {name: values for name, values in first.items() if len(values)}
        run = MCMC(
            kernel,
            num_samples=settings["draws"],
            warmup_steps=settings["warmup"],
            initial_params={name: values.clone() for name, values in first.items()},
            disable_progbar=True,
        )
        run.run()
        draws.append(torch.cat(list(run.get_samples().values()), -1))
        divergences += len(run.diagnostics()["divergences"]["chain 0"])
    u = torch.stack(draws)  # (chains, draws, dim)
    metrics = {
        "rhat_max": float(rhat(u).max()),
        "ess_min": float(ess(u).min()),
        "divergences": divergences,
        "gradients": calls,
        "seconds": time.process_time() - began,
    }
    return settings, metrics, posterior.named(u[None, ..., :k])


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Replace the rows of the same posterior in the table, and leave the others."""
    kept: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [
                row
                for row in csv.DictReader(file)
                if (row["posterior"], row["stars"]) != (rows[0]["posterior"], str(rows[0]["stars"]))
            ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + rows)


if __name__ == "__main__":
    main()
