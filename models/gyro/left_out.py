"""Ages of clusters by the networks that hold them out, and the model's discrepancy from them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.models.gyro.discrepancy import (
    COLOUR_OFFSETS,
    NONE,
    cumulative,
    fitted_discrepancies,
    joint_cdf,
    mean_scale_and_turnover,
    without_colour_offset,
)
from orrery.models.layers import grid
from orrery.progress import counted

if TYPE_CHECKING:
    from orrery.models.gyro import Gyro

AGE_SENSITIVE_COLOURS = (0.70, 1.84)  # mag: 6,150 to 3,850 K (Pecaut & Mamajek 2013)
MIN_STARS = 10  # of a cluster whose age is scored
MAX_WEIGHT = 40  # stars of a cluster that count in means over stars of all clusters


class LeftOutScores(NamedTuple):
    """Scores of each cluster by networks that hold it out, (clusters,); inf where not scored."""

    offset: Tensor  # median of log10 age minus its literature value, dex, without discrepancy
    low: Tensor  # ends of the 68% interval minus the literature's age, dex,
    high: Tensor  # with the discrepancy from all other clusters
    log_density: Tensor  # mean ln p(log10 P) of its stars at the literature's age, per dex
    weight: Tensor  # its stars, MAX_WEIGHT at most
    star_coverage_68: Tensor  # fraction of its stars whose 68% interval holds the literature's age


def informative(colour: Tensor) -> Tensor:
    """Mask of the colours (n,), mag, at which periods depend on age."""
    return (colour > AGE_SENSITIVE_COLOURS[0]) & (colour < AGE_SENSITIVE_COLOURS[1])


def left_out_scores(model: "Gyro", batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Columns of `LeftOutScores`, (clusters, 6), and discrepancies, (clusters + 1, candidates): of
    each cluster that from all others, at the end that from all clusters.

    ``batch``: training stars.
    """
    discrepancies = NONE.repeat(len(model.clusters) + 1, 1)
    scores = torch.full((len(model.clusters), len(LeftOutScores._fields)), torch.inf)
    log_age = torch.tensor([*model.clusters.values()])
    prior, joint = model.cluster_log_prior(), {}
    for i in counted(range(len(log_age)), "leaving out clusters", "clusters"):
        mask = (batch["cluster"] == i) & informative(batch["colour"])
        if int(mask.sum()) < MIN_STARS:
            continue
        stars = {name: values[mask] for name, values in batch.items()}
        log_p = model.log_likelihood_left_out(stars, i)
        shifted = [
            model.log_likelihood_left_out({**stars, "colour": stars["colour"] + offset}, i).sum(0)
            for offset in COLOUR_OFFSETS
        ]
        joint[i] = without_colour_offset(torch.stack(shifted), model.field_scatter)
        age = log_age[i]
        cell = int(torch.bucketize(age, model.edges)) - 1
        log_density = log_p[:, min(max(cell, 0), log_p.shape[1] - 1)].mean()
        star_cdf = cumulative((log_p + prior).softmax(1))
        pit = grid.scores(star_cdf, model.edges, age.expand(len(log_p)))["pit"]
        scores[i, 3] = log_density
        scores[i, 4] = mask.sum().clamp(max=MAX_WEIGHT)
        scores[i, 5] = ((pit - 0.5).abs() < 0.34).float().mean()
    if not joint:
        return scores, discrepancies
    scored = torch.tensor([*joint])
    discrepancies[scored], discrepancies[-1] = fitted_discrepancies(
        torch.stack([*joint.values()]), log_age[scored], prior, model.edges
    )
    for i in joint:
        of_others = discrepancies[i]
        for column, level, width in ((0, 0.5, NONE), (1, 0.16, of_others), (2, 0.84, of_others)):
            cdf = joint_cdf(joint[i], prior, width, model.edges)
            quantile = grid.quantile(cdf, model.edges, torch.tensor([[level]]))[0, 0]
            scores[i, column] = quantile - log_age[i]
    return scores, discrepancies


def left_out_metrics(model: "Gyro") -> dict[str, float]:
    """Metrics of the scored clusters, ``cluster_*``; ``*_all`` of those not among the benchmark
    too. Empty if none is scored."""
    scores = LeftOutScores(*model.left_out_scores.cpu().numpy().T)
    scored = np.isfinite(scores.offset)
    benchmark = scored & np.array(model.is_benchmark)
    if not benchmark.any():
        return {}
    offset, weight = np.abs(scores.offset), scores.weight[benchmark]
    with np.errstate(invalid="ignore"):  # inf where not scored
        pull = np.abs(scores.low + scores.high) / (scores.high - scores.low)
    scale, turnover = mean_scale_and_turnover(model.discrepancies[-1])
    return {
        "cluster_age_rms_dex": float(np.sqrt(np.mean(scores.offset[benchmark] ** 2))),
        "cluster_age_bias_dex": float(np.median(scores.offset[benchmark])),
        "cluster_age_median_dex": float(np.median(offset[benchmark])),
        "cluster_coverage_68": float(np.mean(pull[benchmark] < 1)),
        "cluster_coverage_68_all": float(np.mean(pull[scored] < 1)),
        "cluster_worst_pull": float(np.max(pull[benchmark])),
        "cluster_discrepancy_dex": scale,
        "cluster_discrepancy_turnover_myr": turnover,
        "cluster_log_density": float(np.average(scores.log_density[benchmark], weights=weight)),
        "cluster_star_coverage_68": float(
            np.average(scores.star_coverage_68[benchmark], weights=weight)
        ),
        "cluster_age_median_dex_all": float(np.median(offset[scored])),
    }
