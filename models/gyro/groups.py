"""The age of a group of stars, and whether they can be of one age."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orrery.models.gyro.ages import PERIODS, joint
from orrery.models.gyro.evaluation import TOLD
from orrery.models.layers import grid
from orrery.models.layers.stack import DensityStack

LEAST_MEMBERSHIP = 0.1  # below which a star does not count in the age of its group
EVERY = {"age": 6, "period": 4}  # points of the grids by which ln p is expected
AT_ONCE = 64  # stars
# nats per star: clusters that the shipped model learned from have 0.2 at most, two of them taken
# for one 1.4 and 1.5, or 0.0 where they are of about one age (docs/gyro.md)
DOUBT = 0.4


@torch.no_grad()
def log_likelihoods(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Of stars as members of one group ln p of the period at each age, (batch, n_grid).

    ``model``: a `models.gyro.Gyro`. NaN for a star that does not count: no member, seen before, or
    of a colour that does not tell.
    """
    colour = batch["colour"]
    told = (colour > TOLD[0]) & (colour < TOLD[1]) & batch["valid"] & ~batch["repeated"]
    told = told & (batch["mem_prob"] >= LEAST_MEMBERSHIP)
    log_p = model.contaminated(model.table.log_likelihood(batch), batch)
    return torch.where(told[:, None], log_p, torch.nan)


@torch.no_grad()
def with_expectation(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """`log_likelihoods`, and beside them what they would be on average: (batch, 2 n_grid)."""
    log_p = log_likelihoods(model, batch)
    mean = torch.full_like(log_p, torch.nan)
    for some in torch.nonzero(log_p.isfinite().all(1))[:, 0].split(AT_ONCE):
        mean[some] = expected(model, {k: v[some] for k, v in batch.items()})
    return torch.cat([log_p, mean], 1)


def expected(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean of ln p over the periods that stars would have at each age, (batch, n_grid).

    By the points of the table that are nearest, and between every sixth age linear.
    """
    ages, periods = (slice(None, None, EVERY[name]) for name in ("age", "period"))
    log_p = model.table.nearest(batch)[:, periods, ages].float()  # (batch, periods, ages)
    n, log_period = len(log_p), PERIODS[periods].to(log_p)
    of_star = {k: batch[k].repeat_interleave(len(log_period)) for k in ("mem_prob", "above")}
    of_star["log_period"] = log_period.repeat(n)
    log_p = model.contaminated(log_p.flatten(0, 1), of_star).view_as(log_p)
    mean = (log_p.softmax(1) * log_p).sum(1)
    points = model.table.ages
    place = torch.arange(len(points), device=mean.device) / EVERY["age"]
    low = place.long().clamp(max=mean.shape[1] - 2)
    return torch.lerp(mean[:, low], mean[:, low + 1], place - low)


def table(
    model: Any, stacked: DensityStack, quantiles: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Of each group of stars the joint age, Gyr, widened by the discrepancy, and its shortfall.

    ``shortfall``: by how much ln p of a star, at the likeliest age, is less than that of stars that
    are as the model says, on average: 0 for stars of one age, and more where some are not.
    """
    rows: dict[str, list[Any]] = {}
    levels = torch.tensor([list(quantiles.values())])
    for name, total in sorted(stacked.sums.items()):
        n = stacked.counts[name]
        log_p, mean = total[0].chunk(2)
        cdf = joint(log_p, model.log_prior(), model.discrepancy, model.edges)
        ages = 10 ** (grid.quantile(cdf, model.edges, levels)[0] - 3)
        found = {"group": name, "n_stars": n}
        found |= dict(zip(quantiles, (ages if n else ages * torch.nan).tolist(), strict=True))
        best = log_p.argmax()
        shortfall = float(mean[best] - log_p[best]) / n if n else math.nan
        if shortfall > DOUBT:
            warnings.warn(
                f"group '{name}': its {n} stars can hardly be dwarfs of one age: their periods "
                f"are less likely than those of such stars, by {shortfall:.1f} nats a star (column "
                f"shortfall). Are they members?",
                stacklevel=2,
            )
        found["shortfall"] = shortfall
        for key, value in found.items():
            rows.setdefault(key, []).append(value)
    return {key: np.array(values) for key, values in rows.items()}
