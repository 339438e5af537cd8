"""Ages of clusters by the networks that hold them out, and the model's discrepancy from them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor

from orrery.models.gyro.ages import (
    STUDENT_DOF,
    STUDENT_HALF_68,
    cumulative,
    discrepancy_growth,
    joint_cdf,
)
from orrery.models.layers import grid

if TYPE_CHECKING:
    from orrery.models.gyro import Gyro

AGE_SENSITIVE_COLOURS = (0.70, 1.84)  # mag: 6,150 to 3,850 K (Pecaut & Mamajek 2013)
MIN_STARS = 10  # of a cluster whose age is scored
MAX_WEIGHT = 40  # stars of a cluster that count in means over stars of all clusters


class LeftOutScores(NamedTuple):
    """Scores of each cluster by networks that hold it out, (clusters,); inf where not scored."""

    offset: Tensor  # median of log10 age minus its literature value, dex
    stated_error: Tensor  # half of the 68% interval, dex
    log_density: Tensor  # mean ln p(log10 P) of its stars at the literature's age, per dex
    weight: Tensor  # its stars, MAX_WEIGHT at most
    discrepancy: Tensor  # of the model, from all other clusters, dex
    star_coverage_68: Tensor  # fraction of its stars whose 68% interval holds the literature's age


def informative(colour: Tensor) -> Tensor:
    """Mask of the colours (n,), mag, at which periods depend on age."""
    return (colour > AGE_SENSITIVE_COLOURS[0]) & (colour < AGE_SENSITIVE_COLOURS[1])


def left_out_scores(model: "Gyro", batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Columns of `LeftOutScores`, (clusters, 6), and the discrepancy from all clusters, dex.

    ``batch``: training stars.
    """
    scores = torch.full((len(model.clusters), len(LeftOutScores._fields)), torch.inf)
    prior = model.cluster_log_prior()
    for i, age in enumerate(model.clusters.values()):
        mask = (batch["cluster"] == i) & informative(batch["colour"])
        if int(mask.sum()) < MIN_STARS:
            continue
        stars = {name: values[mask] for name, values in batch.items()}
        log_p = model.log_likelihood_left_out(stars, i)
        cdf = joint_cdf(log_p.sum(0), prior, torch.zeros(()), model.edges)
        low, mid, high = grid.quantile(cdf, model.edges, torch.tensor([[0.16, 0.5, 0.84]]))[0]
        cell = int(torch.bucketize(torch.tensor(age), model.edges)) - 1
        log_density = log_p[:, min(max(cell, 0), log_p.shape[1] - 1)].mean()
        star_cdf = cumulative((log_p + prior).softmax(1))
        pit = grid.scores(star_cdf, model.edges, torch.full((len(log_p),), age))["pit"]
        coverage = ((pit - 0.5).abs() < 0.34).float().mean()
        weight = mask.sum().clamp(max=MAX_WEIGHT)
        scores[i] = torch.stack(
            [mid - age, 0.5 * (high - low), log_density, weight, torch.zeros(()), coverage]
        )
    known = scores[:, 0].isfinite()
    growth = discrepancy_growth(torch.tensor([*model.clusters.values()]))
    offset, stated_error = (scores[:, :2] / growth[:, None]).T
    for i in range(len(scores)):
        others = known & (torch.arange(len(known)) != i)
        scores[i, 4] = _discrepancy(offset[others], stated_error[others])
    return scores, _discrepancy(offset[known], stated_error[known])


def _discrepancy(offset: Tensor, stated_error: Tensor) -> Tensor:
    """Half of the 68% of the error of ages besides their stated errors, dex; 0 of fewer than three.

    Of Student's distribution, a normal one of random width, for a few clusters are off by far more
    than the rest. The mean of the posterior of its scale, flat in the scale. Errors of the
    literature's ages are included.
    """
    if len(offset) < 3:
        return torch.zeros(())
    offset, stated_error = (x.double()[:, None] for x in (offset, stated_error))
    probability = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    width = (STUDENT_DOF / torch.from_numpy(chi2.ppf(probability.numpy(), STUDENT_DOF))).sqrt()
    sigma = torch.linspace(1e-3, 0.5, 500, dtype=torch.float64)
    log_p = []
    for scale in sigma / STUDENT_HALF_68:
        variance = stated_error**2 + (scale * width) ** 2
        log_normal = -0.5 * (offset**2 / variance + variance.log())
        log_p.append(log_normal.logsumexp(1).sum())
    return (torch.stack(log_p).softmax(0) @ sigma).float()


def left_out_metrics(model: "Gyro") -> dict[str, float]:
    """Metrics of the scored clusters, ``cluster_*``; ``*_all`` of those not among the benchmark
    too. Empty if none is scored."""
    scores = LeftOutScores(*model.left_out_scores.cpu().numpy().T)
    scored = np.isfinite(scores.offset)
    benchmark = scored & np.array(model.is_benchmark)
    if not benchmark.any():
        return {}
    growth = discrepancy_growth(torch.tensor([*model.clusters.values()])).numpy()
    offset, weight = np.abs(scores.offset), scores.weight[benchmark]
    pull = offset / np.hypot(scores.stated_error, scores.discrepancy * growth)
    return {
        "cluster_age_rms_dex": float(np.sqrt(np.mean(scores.offset[benchmark] ** 2))),
        "cluster_age_median_dex": float(np.median(offset[benchmark])),
        "cluster_coverage_68": float(np.mean(pull[benchmark] < 1)),
        "cluster_coverage_68_all": float(np.mean(pull[scored] < 1)),
        "cluster_worst_pull": float(np.max(pull[benchmark])),
        "cluster_discrepancy_dex": float(model.discrepancy),
        "cluster_log_density": float(np.average(scores.log_density[benchmark], weights=weight)),
        "cluster_star_coverage_68": float(
            np.average(scores.star_coverage_68[benchmark], weights=weight)
        ),
        "cluster_age_median_dex_all": float(np.median(offset[scored])),
    }
