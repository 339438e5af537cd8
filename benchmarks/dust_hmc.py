"""The dust map's variational posterior beside a long HMC run on the same density.

    python -m benchmarks.dust_hmc                 # hours: the reference sky, checkpoints/dust.ckpt

Both have the data, the prior and the variances of the finished map; the chains begin at its
samples. What the variational samples miss, the draws have. One thread; figures of the synthetic
sky's truth, and of its held-out stars.
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
from rich.progress import track
from torch import Tensor

import zoo
from configs.command_line import data_for
from models.blocks.diagnostics import ess, rhat
from models.blocks.hmc import HMC
from models.checkpoint import read_checkpoint, restore
from models.dust.field import Density, Extinction, Prior, Stars
from models.dust.judged import known_stars, seen_voxels
from physics.extinction import log_normal, mean_and_variance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="dust")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/dust_hmc.csv"))
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--draws", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = restore(read_checkpoint(zoo.find(options.checkpoint))).requires_grad_(False)
    data = data_for(model.record, {})
    data.setup("fit")
    training = data.training_batch()
    stars, prior = model.stars(training), model.prior
    variance = model._variance(training, stars)
    target = posterior(prior, stars, training["extinction"].float(), variance)

    samples = model.samples()
    began = time.process_time()
    some = samples[torch.linspace(0, len(samples) - 1, options.chains).long()].double()
    sampler = HMC(target, some[None], options.warmup, accept=0.8)
    draws, hyper = [], []
    for i in track(range(options.warmup + options.draws), "sampling"):
        u = sampler.advance()[0]
        if i >= options.warmup:
            draws.append(Density(prior, u.float()).log)
            hyper.append(u[:, -2:])
    seconds = time.process_time() - began
    log_rho = torch.stack(draws, 1)  # (chains, draws, pixels, shells)
    watched = torch.cat([log_rho.flatten(2)[..., ::101].double(), torch.stack(hyper, 1)], 2)

    truth = data.true_density().log().float()
    seen = seen_voxels(stars, len(truth), model.widths)
    held_out = known_stars(data)
    rows: list[dict[str, Any]] = []
    for name, found in (("mgvi", Density(prior, samples).log.float()), ("hmc", log_rho)):
        found = found.reshape(-1, *truth.shape)
        rows.append({"method": name, **judged(found, truth, seen, model, held_out)})
    amplitude = [math.log(prior.amplitude[0]) + prior.amplitude[1] * u[..., -1]
                 for u in (samples, torch.stack(hyper))]  # fmt: skip
    for row, a in zip(rows, amplitude, strict=True):
        row |= {"amplitude": float(a.exp().mean()), "amplitude_std": float(a.exp().std())}
    rows[1] |= {
        "rhat_max": float(rhat(watched).max()),
        "ess_min": float(ess(watched).min()),
        "gradients": sampler.values["gradients"],
        "acceptance": float(sampler.values["accepted"].mean() / options.draws),
        "seconds": seconds,
    }
    rows[0]["correlation_of_hmc"] = (
        rows[0]["lnrho_correlation_seen"] / rows[1]["lnrho_correlation_seen"]
    )
    ratio = (log_rho.flatten(0, 1).std(0) / Density(prior, samples).log.float().std(0))[seen]
    rows[1]["std_over_mgvi"] = float(ratio.median())
    names = list(dict.fromkeys(name for row in rows for name in row))
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: v if isinstance(v, str) else f"{v:.4g}" for k, v in row.items()})
            print(row)


def posterior(prior: Prior, stars: Stars, value: Tensor, variance: Tensor) -> Any:
    """ln posterior of latents (1, chains, n) with variances as they are, for `HMC`."""

    class LogDensity(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, u: Tensor) -> Tensor:  # type: ignore[override]
            at = Extinction(prior, stars, u[0].float())
            off = (at.value - value) / variance
            ctx.gradient = -(at.vjp(off) + u[0])[None]
            return -0.5 * (off.square() * variance).double().sum(1)[None] - 0.5 * u.square().sum(2)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0][..., None] * ctx.gradient

    return LogDensity.apply


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
