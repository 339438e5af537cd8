"""The dust map's variational posterior beside a long HMC run on the same density.

    python train.py model=dust experiment=dust_reference hydra.run.dir=outputs/mgvi
    python -m benchmarks.dust_hmc outputs/mgvi/best.ckpt                    # 16 min of CPU

Both have the data and the prior, and the chains begin at the samples of the finished map. What the
variational samples miss, the draws have, and what stars say whose distances are uncertain: the
chains have the integral over those, MGVI its mean and variance. One thread; figures of the
synthetic sky's truth, and of its held-out stars.
"""

import argparse
import csv
import math
import os
import time
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import torch
from torch import Tensor

import zoo
from configs.command_line import data_for
from models.checkpoint import read_checkpoint, restore
from models.dust.exact import draw, likelihood
from models.dust.field import Density
from models.dust.judged import known_stars, seen_voxels
from models.dust.prior import HYPER
from physics.extinction import log_normal, mean_and_variance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="of a map whose guide is mgvi")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/dust_hmc.csv"))
    parser.add_argument("--transitions", type=int, default=900)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = restore(read_checkpoint(zoo.find(options.checkpoint))).requires_grad_(False)
    data = data_for(model.record, {})
    data.setup("fit")
    training = data.training_batch()
    stars, prior, samples = model.stars(training), model.prior, model.samples()
    variance = model._variance(training, stars)
    log_p = likelihood(model.grid, stars, training, model.noise_dof)
    began = time.process_time()
    drawn = draw(prior, log_p, stars, variance, samples, options.transitions, seed=0)
    seconds = time.process_time() - began

    truth = data.true_density().log().float()
    seen = seen_voxels(stars, len(truth), model.widths)
    data.setup("test")
    held_out = known_stars(data)
    rows: list[dict[str, Any]] = []
    log_rho = []
    for name, found in (("mgvi", samples), ("hmc", drawn.latents.flatten(0, 1))):
        log_rho.append(torch.cat([Density(prior, u).log for u in found.split(64)]))
        a = (math.log(prior.amplitude[0]) + prior.amplitude[1] * found[:, 1 - HYPER]).exp()
        row = judged(log_rho[-1], truth, seen, model, held_out)
        rows.append({"method": name, **row, "amplitude": float(a.mean()),
                     "amplitude_std": float(a.std())})  # fmt: skip
    variational, exact = rows
    key = "lnrho_correlation_seen"
    variational["correlation_over_hmc"] = variational[key] / exact[key]
    ratio = (log_rho[1].std(0) / log_rho[0].std(0))[seen]
    exact |= {
        "std_over_mgvi": float(ratio.median()),
        "rhat_max": drawn.rhat,
        "ess_min": drawn.ess,
        "gradients": drawn.gradients,
        "seconds": seconds,
    }
    names = list(dict.fromkeys(name for row in rows for name in row))
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: v if isinstance(v, str) else f"{v:.4g}" for k, v in row.items()})
            print(row)


def judged(
    log_rho: Tensor, truth: Tensor, seen: Tensor, model: Any, held_out: dict[str, Tensor]
) -> dict[str, float]:
    """Of draws (draws, pixels, shells)."""
    mean, std = log_rho.mean(0)[seen], log_rho.std(0)[seen]
    z = (truth[seen] - mean) / std
    stars = model.stars(held_out)
    parts = []
    for rho in log_rho.exp().split(64):
        a, variance = mean_and_variance(rho[:, stars.pixel].double(), stars.paths, model.widths)
        variance = variance + held_out["extinction_error"].square()
        parts.append(log_normal(held_out["extinction"], a, variance))
    log_p = torch.cat(parts)
    return {
        "draws": float(len(log_rho)),
        "lnrho_correlation_seen": float(torch.corrcoef(torch.stack([mean, truth[seen]]))[0, 1]),
        "coverage_68": float((z.abs() < 1).double().mean()),
        "z_std": float(z.std()),
        "heldout_lpd": float((log_p.logsumexp(0) - math.log(len(log_p))).mean()),
    }


if __name__ == "__main__":
    main()
