"""The dust map's variational posteriors and a long HMC run on the same sky, on several skies.

    python train.py -m model=dust experiment=dust_reference seed=0,1,2 model.inference=geovi,mgvi \\
      hydra.sweep.dir=skies
    python train.py -m model=dust experiment=dust_reference data.clouds=0 model.clumps=0 \\
      model.inference=geovi,mgvi hydra.sweep.dir=smooth
    python -m benchmarks.dust_hmc {skies,smooth}/*/best.ckpt          # 15-20 min of CPU a sky
    python train.py -m model=dust experiment=dust_reference \\
      seed=13,14,15,16,17,18,19,20,21,22 hydra.sweep.dir=more
    python -m benchmarks.dust_hmc --transitions 0 --out benchmarks/dust_skies.csv more/*/best.ckpt

The last two are of variational maps alone, on skies by which nothing was tuned. All methods have
the same data and prior; chains begin at draws of the first map of a sky. For stars of uncertain
distance the chains have the likelihood's integral over distances, the others its mean and variance.
Without clouds and clumps the prior is that of the sky: no other map can come nearer to its held-out
stars on average. One thread; figures of the synthetic sky's truth, and of its held-out stars.
"""

import argparse
import csv
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import torch
from torch import Tensor

from orrery import load
from orrery.models.dust.evaluation import (
    MapPosterior,
    map_metrics,
    observed_voxels,
    stars_with_extinction,
)
from orrery.models.dust.field import Density
from orrery.models.dust.prior import N_HYPER
from orrery.physics.densities import log_normal
from orrery.physics.dust.extinction import mean_and_variance, voxel_squares
from orrery.runs import data_for

Score = Callable[[Tensor, Tensor, bool], dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", nargs="+", help="of variational maps")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/dust_hmc.csv"))
    parser.add_argument("--transitions", type=int, default=500, help="of a chain; 0: no chains")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    chains: dict[tuple[int, int], dict[str, Any]] = {}
    for path in options.checkpoints:
        model = load(path).requires_grad_(False)
        data = data_for(model.record, {})
        sky = data.seed, data.clouds
        if options.transitions and sky not in chains:
            chains[sky] = hmc(model, data, options.transitions)
            rows.append(chains[sky])
        rows.append(metrics_row(model, data, model.samples(), model.inference))
        if sky in chains:
            key = "lnrho_correlation_seen"
            rows[-1]["correlation_over_hmc"] = rows[-1][key] / chains[sky][key]
            rows[-1]["std_over_hmc"] = rows[-1]["std"] / chains[sky]["std"]
        names = list(dict.fromkeys(name for row in rows for name in row))
        write_rows(options.out, rows, names)
        print(*rows[-2:], sep="\n", flush=True)


def hmc(model: Any, data: Any, transitions: int) -> dict[str, Any]:
    """The row of chains that begin at the samples of ``model``."""
    data.setup("fit")
    began = time.process_time()
    model.transitions = transitions
    drawn = model.hmc_draws(data.training_batch(), model.samples())
    seconds = time.process_time() - began
    return metrics_row(model, data, drawn.latents.flatten(0, 1), "hmc") | {
        "rhat_max": drawn.rhat,
        "ess_min": drawn.ess,
        "gradients": drawn.gradients,
        "seconds": seconds,
    }


def metrics_row(model: Any, data: Any, samples: Tensor, method: str) -> dict[str, Any]:
    """Of ``samples`` (draws, latents)."""
    log_rho = torch.cat([Density(model.prior, u).log_from_sun for u in samples.split(64)])
    median, error = model.amplitude
    amplitude = (math.log(median) + error * samples[:, 1 - N_HYPER]).exp()
    sky = {"seed": data.seed, "clouds": data.clouds, "method": method, "draws": len(samples)}
    metrics = score_of(model, data, float(model.substructure))(log_rho, amplitude, method == "mgvi")
    return sky | metrics | {"std": float(log_rho[..., 1:].std(0).median())}


def score_of(model: Any, data: Any, substructure: float = 0.0) -> Score:
    """A function that scores a posterior by the truth and by held-out stars.

    Of ``log_rho`` (draws, pixels, shells from the Sun) and ``amplitude`` (draws,); ``mirrored``:
    the draws are pairs about their mean; ``substructure``: see `models.dust.Dust`.
    """
    data.setup("fit")
    truth = data.true_density().log().float()
    observed = observed_voxels(model.stars(data.training_batch()), len(truth), model.widths[1:])
    data.setup("test")
    batches = list(stars_with_extinction(data))
    held_out = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    kernel, stars = model.kernel(model.current_scale), model.stars(held_out)

    def score(log_rho: Tensor, amplitude: Tensor, mirrored: bool) -> dict[str, float]:
        posterior = MapPosterior(
            model.grid, model.gp, kernel, log_rho[..., 1:], model.stars, mirrored,
            model.constant_density,
        )  # fmt: skip
        row = map_metrics(posterior, data)
        for other in ("icr_covariance_error", "heldout_lpd_constant_without_scatter"):
            del row[other]
        parts = []
        for rho in log_rho.exp().split(64):
            along = stars.along(rho).double()
            a, variance = mean_and_variance(along, stars.paths, model.widths)
            variance = variance + substructure**2 * voxel_squares(along, stars.paths)
            variance = variance + held_out["extinction_error"].square()
            parts.append(log_normal(held_out["extinction"], a, variance))
        log_p = torch.cat(parts)
        row["heldout_lpd"] = float((log_p.logsumexp(0) - math.log(len(log_p))).mean())
        constant, best = row["heldout_lpd_constant"], row["heldout_lpd_truth"]
        row["gap_closed"] = (row["heldout_lpd"] - constant) / (best - constant)
        z = (truth - log_rho[..., 1:].mean(0)) / log_rho[..., 1:].std(0)
        row["z_std"] = float(z[observed].std())
        return row | {"amplitude": float(amplitude.mean()), "amplitude_std": float(amplitude.std())}

    return score


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """A CSV file of columns ``names``, numbers with four digits."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            plain = {k: v if isinstance(v, str | int) else f"{v:.4g}" for k, v in row.items()}
            writer.writerow(plain)


if __name__ == "__main__":
    main()
