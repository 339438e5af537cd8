"""What clusters that were left out, and stars of known age, tell of the model."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor

from orrery.models.base import Evaluation, PredictedRows
from orrery.models.gyro.ages import (
    COLOURS,
    DOF,
    PERIODS,
    REACH_68,
    cumulative,
    joint,
    stretched,
    summaries,
)
from orrery.models.layers import grid
from orrery.physics.rotation import gyrochrones
from orrery.physics.rotation.seismic_stars import STARS, SUN, Star

TOLD = (0.70, 1.84)  # mag: 6,150 to 3,850 K (Pecaut & Mamajek 2013), whose periods tell ages
AT_MOST = 40  # stars of a cluster count in the mean density
CURVES = (15.0, 110.0, 430.0, 740.0, 2400.0, 3900.0)  # Myr, near which there are clusters
MEDIAN = {"age_q50": 0.5}
FEWEST = 10  # stars of a cluster that is judged


SMALLER_IS_BETTER = frozenset(("nll", "cluster_age_rms_dex", "benchmark_rms_dex"))


@torch.no_grad()
def evaluate(model: Any, rows: PredictedRows, data: Any) -> Evaluation:
    """`Evaluation` of a `models.gyro.Gyro`."""
    evaluation = Evaluation(metrics(rows))
    if not evaluation.metrics:
        return evaluation
    evaluation.fitted_parameters = model.fitted_parameters() | data.truth()
    if truth := true_rows(model, data):
        evaluation.baselines["true model"] = metrics(truth)
    evaluation.figures = {"clusters": figure_data(model, data)}
    batch = next(data.prediction_batches())
    evaluation.timings = {
        "stars_per_second": (lambda: model.predict_step(batch), len(batch["row"]))
    }
    evaluation.smaller_is_better = SMALLER_IS_BETTER
    return evaluation


def metrics(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of stars whose age is known; empty if there are none."""
    known = np.isfinite(rows.get("pit", np.empty(0)))
    if "age_true" not in rows or not known.any():
        return {}
    pit = rows["pit"][known]
    return {
        "n": int(known.sum()),
        "nll": float(np.mean(rows["nll"][known], dtype=float)),
        "star_coverage_68": float(np.mean(np.abs(pit - 0.5) < 0.34)),
    }


def left_out(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Of each cluster, by networks that did not see it; and the discrepancy of such ages.

    (clusters, 6): median of log10 age minus its literature value, and the stated error, dex; mean
    ln p(log10 P) of its stars at that age, and how many count; the discrepancy by all others; the
    share of its stars whose 68% hold that age.
    """
    found = torch.full((len(model.clusters), 6), torch.inf)
    colour, prior = batch["colour"], model.log_prior()
    for i, age in enumerate(model.clusters.values()):
        chosen = (batch["cluster"] == i) & (colour > TOLD[0]) & (colour < TOLD[1])
        if int(chosen.sum()) < FEWEST:
            continue
        stars = {k: v[chosen] for k, v in batch.items()}
        log_p = model.log_likelihood_left_out(stars, i)
        cdf = joint(log_p.sum(0), prior, torch.zeros(()), model.edges)
        low, mid, high = grid.quantile(cdf, model.edges, torch.tensor([[0.16, 0.5, 0.84]]))[0]
        cell = int(torch.bucketize(torch.tensor(age), model.edges)) - 1
        mean = log_p[:, min(max(cell, 0), log_p.shape[1] - 1)].mean()
        of_stars = cumulative((log_p + prior).softmax(1))
        pit = grid.scores(of_stars, model.edges, torch.full((len(log_p),), age))["pit"]
        inside = ((pit - 0.5).abs() < 0.34).float().mean()
        count = chosen.sum().clamp(max=AT_MOST)
        found[i] = torch.stack(
            [mid - age, 0.5 * (high - low), mean, count, torch.zeros(()), inside]
        )
    known = found[:, 0].isfinite()
    off, stated = (found[:, :2] / stretched(torch.tensor([*model.clusters.values()]))[:, None]).T
    for i in range(len(found)):
        others = known & (torch.arange(len(known)) != i)
        found[i, 4] = _discrepancy(off[others], stated[others])
    return found, _discrepancy(off[known], stated[known])


def _discrepancy(off: Tensor, stated: Tensor) -> Tensor:
    """Half of the 68% of what ages are off by besides their stated errors, dex; 0 of too few.

    By Student's distribution, for a few clusters are off by far more than the rest: a normal one of
    random width. The mean of the posterior of its scale, flat in that. What the literature's ages
    are off by is in it.
    """
    if len(off) < 3:
        return torch.zeros(())
    off, stated = (x.double()[:, None] for x in (off, stated))
    share = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    width = (DOF / torch.from_numpy(chi2.ppf(share.numpy(), DOF))).sqrt()
    sigma = torch.linspace(1e-3, 0.5, 500, dtype=torch.float64)
    log_p = []
    for scale in sigma / REACH_68:
        variance = stated**2 + (scale * width) ** 2
        each = -0.5 * (off**2 / variance + variance.log())
        log_p.append(each.logsumexp(1).sum())
    return (torch.stack(log_p).softmax(0) @ sigma).float()


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


def figure_data(model: Any, data: Any) -> dict[str, np.ndarray]:
    """Gyrochrones, stars, clusters that were left out, the Sun."""
    batch = data.training_batch() if data.rows else next(data.prediction_batches())
    nothing = torch.full_like(batch["colour"], torch.nan)
    cells = [int((model.table.ages - math.log10(age)).abs().argmin()) for age in CURVES]
    off, stated, _, _, others, _ = model.left_out.cpu().T
    lit = torch.tensor([*model.clusters.values()])
    of_sun = star_batch(SUN)
    sun = model.predict_step(of_sun)["log_likelihood"] + model.log_prior_of(of_sun["colour"])
    return {
        "stars_colour": batch["colour"].numpy(),
        "stars_log_period": batch["log_period"].numpy(),
        "stars_log_age": batch.get("log_age", nothing).numpy(),
        "curve_ages": np.array(CURVES),
        "curve_colour": COLOURS.numpy(),
        "curve_log_period": PERIODS.numpy(),
        "curves": model.table.values[:, :, cells].float().permute(2, 1, 0).numpy(),
        "cluster_log_age": lit.numpy(),
        "cluster_log_age_error": _literature_errors(batch, len(lit)),
        "cluster_off": off.numpy(),
        "cluster_stated": stated.numpy(),
        "cluster_judged": np.array(model.judged_of),
        "cluster_discrepancy": (others * stretched(lit)).numpy(),
        "sun_log_age": model.table.ages.numpy(),
        "sun_posterior": sun[0].softmax(0).numpy(),
        "oldest": np.array(10 ** max(model.clusters.values()) / 1e3),
    }


def _literature_errors(batch: Mapping[str, Tensor], n: int) -> np.ndarray:
    """Of log10 age, of each cluster, dex: as training takes them; NaN of a catalogue without."""
    found = np.full(n, np.nan)
    if "log_age_error" in batch:
        for i in range(n):
            found[i] = batch["log_age_error"][batch["cluster"] == i].mean()
    return found


def star_batch(star: Star) -> dict[str, Tensor]:
    """A batch of one star, certain to be no outlier."""
    values = {
        "log_period": math.log10(star.period),
        "log_period_error": star.period_error / star.period / math.log(10),
        "colour": star.colour,
        "colour_error": star.colour_error,
        "mem_prob": 1.0,
        "above": 0.0,
    }
    batch = {name: torch.tensor([value]).float() for name, value in values.items()}
    facts = {"valid": True, "evolved": False, "repeated": False, "row": 0}
    return batch | {name: torch.tensor([value]) for name, value in facts.items()}


def true_rows(model: Any, data: Any) -> dict[str, np.ndarray]:
    """What the true density of the simulation says of its stars, under the same prior."""
    if data.path is not None or data.table is not None:
        return {}
    ages, rows = model.table.ages.double().numpy(), []
    for batch in data.prediction_batches():
        inputs = ("log_period", "colour", "log_period_error", "colour_error", "mem_prob")
        at = batch["log_age"].numpy()[:, None]
        period, colour, *errors = (batch[name].double().numpy()[:, None] for name in inputs)
        log_p = gyrochrones.log_density(period, ages, colour, *errors)
        found = summaries(
            torch.from_numpy(log_p).float(),
            model.log_prior_of(batch["colour"]),
            model.edges,
            MEDIAN,
        )
        scored = {
            "age_q50": found["age_q50"],
            "age_true": 10 ** (batch["log_age"] - 3),
            "pit": grid.scores(found["cdf"], model.edges, batch["log_age"])["pit"],
            "flags": torch.zeros(len(at), dtype=torch.int16),
        }
        nll = -gyrochrones.log_density(period, at, colour, *errors)[:, 0]
        rows.append({name: v.numpy() for name, v in scored.items()} | {"nll": nll})
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
