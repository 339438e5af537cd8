"""What clusters that were left out, and stars of known age, tell of the model."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.blocks import grid
from models.gyro.ages import COLOURS, PERIODS
from physics.seismic_stars import STARS, SUN, Star

AGED = (0.5, 2.0)  # mag: colours that tell a cluster's age
SCORED = (0.70, 1.84)  # mag: 6,150 to 3,850 K (Pecaut & Mamajek 2013), whose periods are scored
AT_MOST = 40  # of them of a cluster
CURVES = (50.0, 150.0, 400.0, 1000.0, 2500.0, 4500.0)  # Myr, of gyrochrones
FEWEST = 10  # stars of a cluster that is judged


def left_out(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Of each cluster, by networks that did not see it; and the discrepancy of such ages.

    (clusters, 3): median of log10 age minus its literature value, and the stated error, dex; mean
    ln p(log10 P) of its stars at that age.
    """
    found = torch.full((len(model.clusters), 3), torch.inf)
    generator = torch.Generator().manual_seed(0)
    colour = batch["colour"]
    for i, age in enumerate(model.clusters.values()):
        chosen = (batch["cluster"] == i) & (colour > AGED[0]) & (colour < AGED[1])
        if int(chosen.sum()) < FEWEST:
            continue
        stars = {k: v[chosen] for k, v in batch.items()}
        log_p = model.log_likelihood_left_out(stars, i).double()
        total = log_p.sum(0) + model.log_prior()
        mass = total.softmax(0)
        cdf = torch.nn.functional.pad(mass.cumsum(0), (1, 0)).clamp(max=1)[None].float()
        low, mid, high = grid.quantile(cdf, model.edges, torch.tensor([[0.16, 0.5, 0.84]]))[0]
        scored = (stars["colour"] > SCORED[0]) & (stars["colour"] < SCORED[1])
        few = torch.randperm(int(scored.sum()), generator=generator)[:AT_MOST]
        cell = int(torch.bucketize(torch.tensor(age), model.edges)) - 1
        mean = log_p[scored][few, min(max(cell, 0), log_p.shape[1] - 1)].mean().float()
        found[i] = torch.stack([mid - age, 0.5 * (high - low), mean])
    known = found[:, 0].isfinite() & model.judged_mask
    return found, _discrepancy(found[known, 0].double(), found[known, 1].double())


def _discrepancy(off: Tensor, stated: Tensor) -> Tensor:
    """sigma of off ~ N(0, stated^2 + sigma^2), of maximum likelihood; 0 where there are too few."""
    if len(off) < 3:
        return torch.zeros(())
    sigma = torch.logspace(-3, 0, 400, dtype=torch.float64)[:, None]
    variance = stated**2 + sigma**2
    log_p = -0.5 * (off**2 / variance + variance.log()).sum(1)
    return sigma[log_p.argmax(), 0].float()


def seismic(model: Any) -> dict[str, float]:
    """Stars with asteroseismic ages: rms of log10 age, and how many lie in the 68%."""
    off, inside = [], []
    for star in STARS:
        found = {name: float(v[0]) for name, v in model.predict_step(star_batch(star)).items()
                 if v.ndim == 1}  # fmt: skip
        off.append(np.log10(found["age_q50"] / star.age))
        inside.append(found["age_q16"] < star.age < found["age_q84"])
    rms = float(np.sqrt(np.mean(np.square(off))))
    return {"benchmark_rms_dex": rms, "benchmark_coverage_68": float(np.mean(inside))}


def shown(model: Any, data: Any) -> dict[str, np.ndarray]:
    """What the figures show: gyrochrones, stars, clusters that were left out, the Sun."""
    batch = next(data.prediction_batches())
    nothing = torch.full_like(batch["colour"], torch.nan)
    values = model.table.values.float()
    cells = [int((model.table.ages - math.log10(age)).abs().argmin()) for age in CURVES]
    cdf = values[:, :, cells].exp().cumsum(1)
    cdf = (cdf / cdf[:, -1:]).permute(2, 0, 1)  # (ages, colours, periods)
    levels = torch.tensor([0.16, 0.5, 0.84]).expand(*cdf.shape[:2], 3).contiguous()
    found = torch.searchsorted(cdf.contiguous(), levels).clamp(max=len(PERIODS) - 1)
    off, stated, _ = model.left_out.cpu().numpy().T
    sun = model.predict_step(star_batch(SUN))["log_likelihood"][0] + model.log_prior()
    return {
        "stars_colour": batch["colour"].numpy(),
        "stars_log_period": batch["log_period"].numpy(),
        "stars_log_age": batch.get("log_age", nothing).numpy(),
        "curve_ages": np.array(CURVES),
        "curve_colour": COLOURS.numpy(),
        "curves": PERIODS[found].permute(0, 2, 1).numpy(),
        "cluster_log_age": np.array(list(model.clusters.values())),
        "cluster_off": np.where(np.isfinite(off), off, np.nan),
        "cluster_stated": np.where(np.isfinite(stated), stated, np.nan),
        "cluster_judged": np.array(model.judged_of),
        "cluster_discrepancy": np.array(float(model.discrepancy)),
        "sun_log_age": model.table.ages.numpy(),
        "sun_posterior": sun.softmax(0).numpy(),
        "oldest": np.array(10 ** max(model.clusters.values()) / 1e3),
    }


def star_batch(star: Star) -> dict[str, Tensor]:
    """A batch of one star, certain to be no outlier."""
    values = {
        "log_period": math.log10(star.period),
        "log_period_error": star.period_error / star.period / math.log(10),
        "colour": star.colour,
        "colour_error": star.colour_error,
        "mem_prob": 1.0,
    }
    batch = {name: torch.tensor([value]).float() for name, value in values.items()}
    return batch | {"valid": torch.tensor([True])}
