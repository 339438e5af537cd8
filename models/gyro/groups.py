"""The age of a group of stars, and how well its stars agree with a single age."""

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from orrery.models.gyro.ages import LOG_PERIOD_GRID
from orrery.models.gyro.discrepancy import (
    COLOUR_OFFSETS,
    joint_cdf,
    without_colour_offset,
)
from orrery.models.gyro.left_out import informative
from orrery.models.layers import grid
from orrery.models.layers.stack import DensityStack

if TYPE_CHECKING:
    from orrery.models.gyro import Gyro

MIN_MEMBERSHIP = 0.1  # of a star that counts in the age of its group
AGE_STRIDE, PERIOD_STRIDE = 6, 4  # of the table, for expectations of ln p
STARS_AT_ONCE = 64
# Per star: the training clusters of the shipped model have 0.2 at most; two of them merged into one
# group 1.4 and 1.5, or 0.0 where they are of about the same age (docs/gyro.md).
MAX_SHORTFALL_NATS = 0.4


@torch.no_grad()
def log_likelihoods(model: "Gyro", batch: Mapping[str, Tensor]) -> Tensor:
    """ln p of the period at each age of stars as members of a group, (batch, offsets, n_grid).

    ``offsets``: `COLOUR_OFFSETS`, that all stars of the group share. NaN for a star that does not
    count: a non-member, a duplicate, or one of a colour at which periods do not depend on age.
    """
    counts = informative(batch["colour"]) & batch["valid"] & ~batch["is_duplicate"]
    counts = counts & (batch["mem_prob"] >= MIN_MEMBERSHIP)
    log_p = [
        model.with_contamination(
            model.table.log_likelihood({**batch, "colour": batch["colour"] + offset}), batch
        )
        for offset in COLOUR_OFFSETS.to(batch["colour"])
    ]
    return torch.where(counts[:, None, None], torch.stack(log_p, 1), torch.nan)


@torch.no_grad()
def with_expectation(model: "Gyro", batch: Mapping[str, Tensor]) -> Tensor:
    """`log_likelihoods`, and their expectations at the end: (batch, (offsets + 1) n_grid)."""
    log_p = log_likelihoods(model, batch).flatten(1)
    mean = log_p.new_full((len(log_p), len(model.table.ages)), torch.nan)
    for rows in torch.nonzero(log_p.isfinite().all(1))[:, 0].split(STARS_AT_ONCE):
        mean[rows] = expected_log_likelihoods(model, {k: v[rows] for k, v in batch.items()})
    return torch.cat([log_p, mean], 1)


def expected_log_likelihoods(model: "Gyro", batch: Mapping[str, Tensor]) -> Tensor:
    """Mean of ln p over the periods that stars would have at each age, (batch, n_grid).

    By the nearest points of the table, and linear between every sixth age.
    """
    ages, periods = slice(None, None, AGE_STRIDE), slice(None, None, PERIOD_STRIDE)
    log_p = model.table.nearest(batch)[:, periods, ages].float()  # (batch, periods, ages)
    n, log_period = len(log_p), LOG_PERIOD_GRID[periods].to(log_p)
    repeated = {
        k: batch[k].repeat_interleave(len(log_period)) for k in ("mem_prob", "overluminosity")
    }
    repeated["log_period"] = log_period.repeat(n)
    log_p = model.with_contamination(log_p.flatten(0, 1), repeated).view_as(log_p)
    mean = (log_p.softmax(1) * log_p).sum(1)
    points = model.table.ages
    position = torch.arange(len(points), device=mean.device) / AGE_STRIDE
    low = position.long().clamp(max=mean.shape[1] - 2)
    return torch.lerp(mean[:, low], mean[:, low + 1], position - low)


def group_cdf(model: "Gyro", log_p: Tensor) -> Tensor:
    """Cumulative posterior (1, n_grid + 1) of a group; ``log_p`` (offsets, n_grid), of its stars'
    sums."""
    marginal = without_colour_offset(log_p, model.field_scatter)
    return joint_cdf(marginal, model.cluster_log_prior(), model.discrepancies[-1], model.edges)


def age_table(
    model: "Gyro", stacked: DensityStack, quantiles: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Of each group the joint age of its stars, Gyr, widened by the discrepancy, and a shortfall.

    ``shortfall``: by how many nats ln p of a star, at the likeliest age, is below its expectation
    under the model, in the mean: 0 for dwarfs of one age, more if some are not.
    """
    columns: dict[str, list[Any]] = {}
    levels = torch.tensor([list(quantiles.values())])
    for name, total in sorted(stacked.sums.items()):
        n = stacked.counts[name]
        *shifted, mean = total[0].view(-1, len(model.table.ages))
        log_p = shifted[len(COLOUR_OFFSETS) // 2]
        cdf = group_cdf(model, torch.stack(shifted))
        ages = 10 ** (grid.quantile(cdf, model.edges, levels)[0] - 3)
        row = {"group": name, "n_stars": n}
        row |= dict(zip(quantiles, (ages if n else ages * torch.nan).tolist(), strict=True))
        best = log_p.argmax()
        shortfall = float(mean[best] - log_p[best]) / n if n else math.nan
        if shortfall > MAX_SHORTFALL_NATS:
            warnings.warn(
                f"group '{name}': its {n} stars are unlikely to be dwarfs of one age: their "
                f"periods are less likely than those of such stars, by {shortfall:.1f} nats per "
                f"star (column shortfall). Are they members?",
                stacklevel=2,
            )
        row["shortfall"] = shortfall
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
    return {key: np.array(values) for key, values in columns.items()}
