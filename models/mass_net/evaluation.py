"""Metrics of masses against known ones, their theoretical floor, and of pairs' motions."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from orrery.models.base import Batch, Data, Evaluation, Metrics, PredictedRows, or_nothing
from orrery.models.mass_net import figure_data
from orrery.models.mass_net.likelihood import pair_density

if TYPE_CHECKING:
    from orrery.models.mass_net import MassNet

FAINT = 10.0, 13.5  # M_G, mag: late M dwarfs
MIN_STARS = 50  # of a bin of M_G, to compare with the floor
SHIFT = 0.02  # of ln M and of the outliers' logit, for derivatives
SUN = 0.82, 4.67  # BP - RP and M_G, mag: Casagrande & VandenBerg (2018, MNRAS 479, L102)
SEPARATIONS = (3.0, 97.0)  # percentiles of those between which alpha is compared
SMALLER_IS_BETTER = frozenset(("nll", "lnm_rms_over_floor"))


@torch.no_grad()
def evaluate(model: "MassNet", rows: PredictedRows, data: Data) -> Evaluation:
    """`Evaluation` of masses, where they are known, and of pairs."""
    evaluation = Evaluation(mass_metrics(rows) | pair_metrics(rows))
    if not evaluation.metrics:
        return evaluation
    evaluation.fitted_parameters = fitted_parameters(model) | data.truth()
    pairs = test_pairs(data) if "nll" in rows else {}
    if pairs:
        evaluation.metrics |= alpha_metrics(model, pairs, data)
        if "mass" in pairs:
            evaluation.metrics |= floor_metrics(model, pairs)
            nll = -log_density(model, pairs, pairs["mass"].sum(1).log()).double().mean()
            evaluation.baselines["true masses"] = {"nll": float(nll)}
    evaluation.figures = or_nothing("figures", lambda: figure_data.figure_data(model, pairs, data))
    batch = next(data.prediction_batches())
    bp_rp, abs_g = (batch[name].reshape(len(batch["row"]), -1)[:, 0] for name in ("bp_rp", "abs_g"))
    star = {"bp_rp": bp_rp, "abs_g": abs_g, "valid": torch.ones_like(bp_rp).bool()}
    star |= {f"{name}_error": torch.zeros_like(bp_rp) for name in ("bp_rp", "abs_g")}
    evaluation.timings = {
        "stars_per_second": (lambda: model.predict_step(star), len(bp_rp)),
        "means_per_second": (lambda: model.mean_log_mass(bp_rp, abs_g), len(bp_rp)),
    }
    evaluation.smaller_is_better = SMALLER_IS_BETTER
    return evaluation


def mass_metrics(rows: Mapping[str, np.ndarray]) -> Metrics:
    """Of stars of known mass, both stars of pairs among them; empty if there are none."""
    columns = [
        np.stack([rows[f"{name}{s}"] for name in ("mass", "lnm_std")] + [rows[f"mass_true{s}"]])
        for s in ("", "_2")
        if f"mass_true{s}" in rows
    ]
    if not columns:
        return {}
    mass, std, true = np.concatenate(columns, 1).astype(float)
    known = np.isfinite(mass) & (true > 0)
    if not known.any():
        return {}
    error = np.log(mass[known] / true[known])
    return {
        "n_stars": int(known.sum()),
        "lnm_bias": float(error.mean()),
        "lnm_rms": float(np.sqrt(np.mean(error**2))),
        "coverage_68": float(np.mean(np.abs(error) < std[known])),
    }


def pair_metrics(rows: Mapping[str, np.ndarray]) -> Metrics:
    """Of pairs with a relative motion."""
    known = np.isfinite(rows.get("nll", np.empty(0)))
    if not known.any():
        return {}
    return {
        "n": int(known.sum()),
        "nll": float(rows["nll"][known].mean(dtype=float)),
        "outlier_fraction": float(rows["p_outlier"][known].mean(dtype=float)),
    }


def fitted_parameters(model: "MassNet") -> Metrics:
    """The mass of a star like the Sun."""
    return {"sun_mass": float(model.mass(*SUN)["mass"])}


def test_pairs(data: Data) -> Batch:
    """All pairs to predict that have a motion, as one batch."""
    batches = list(data.prediction_batches())
    names = [name for name in batches[0] if name != "row"]
    pairs = {name: torch.cat([batch[name] for batch in batches]) for name in names}
    kept = pairs["moves"] & pairs["valid"].all(1)
    return {name: values[kept] for name, values in pairs.items()}


def alpha_metrics(model: "MassNet", pairs: Batch, data: Data) -> Metrics:
    """Largest error of alpha over the separations of all but the outermost pairs."""
    low, high = np.percentile(pairs["log_separation"].numpy(), SEPARATIONS)
    x = np.linspace(low, high, 50)
    true = data.true_alpha(x) if isinstance(data, figure_data.HasTrueAlpha) else None
    if true is None:
        return {}
    return {"alpha_bias": float(np.abs(model.statistics_at(x)["alpha"] - true).max())}


def log_density(
    model: "MassNet", pairs: Batch, log_mass: Tensor, outlier_logit: float = 0.0
) -> Tensor:
    """ln p of pairs' motions, (n,), at total masses ln M (n,); the outliers' logit is shifted."""
    statistics = copy.deepcopy(model.statistics)
    statistics.outlier_logit.data += outlier_logit
    parts = []
    for i in range(0, len(log_mass), 4096):
        part = {name: values[i : i + 4096] for name, values in pairs.items()}
        mass = log_mass[i : i + 4096].expand(model.network.members, -1)
        density = pair_density(statistics, part, mass, model.largest_circular_mass)
        parts.append(density.log_p.double().logsumexp(0) - np.log(model.network.members))
    return torch.cat(parts)


def floor_metrics(model: "MassNet", pairs: Batch) -> Metrics:
    """The error of ln m in bins of one magnitude over the least that is possible.

    The floor is from Fisher's information, at the true masses, of ln m in each bin of M_G and of
    the fraction of outliers, of as many pairs as were trained on. Smoothness between bins, which
    the network assumes and the floor does not, can make the ratio less than one.
    """
    true, abs_g = pairs["mass"].double(), pairs["abs_g"]
    log_mass = true.sum(1).log()
    log_p = {
        (m, f): log_density(model, pairs, log_mass + m * SHIFT, f * SHIFT)
        for m, f in ((1, 0), (-1, 0), (0, 1), (0, -1))
    }
    by_mass = (log_p[1, 0] - log_p[-1, 0]) / (2 * SHIFT)
    by_fraction = (log_p[0, 1] - log_p[0, -1]) / (2 * SHIFT)
    bins = abs_g.floor().long()
    bins = bins - int(bins.min())
    n_bins = int(bins.max()) + 1
    score = torch.zeros(len(true), n_bins + 1, dtype=torch.float64)
    shares = true / true.sum(1, keepdim=True)
    for i in (0, 1):
        score.scatter_add_(1, bins[:, i : i + 1], (shares[:, i] * by_mass)[:, None])
    score[:, -1] = by_fraction
    count = torch.bincount(bins.flatten(), minlength=n_bins)
    used = torch.cat([count >= MIN_STARS, torch.tensor([True])])
    information = score[:, used].T @ score[:, used] / len(true) * int(model.n_pairs)
    floor = torch.linalg.inv(information).diagonal()[:-1].sqrt()
    predicted = torch.stack([model.mean_log_mass(x, y) for x, y in model.places(pairs)], 1)
    error = (predicted.double() - true.log()).flatten()
    total = torch.zeros(n_bins, dtype=torch.float64).index_add_(0, bins.flatten(), error)
    mean = (total / count.clamp_min(1))[used[:-1]]
    faint = ((abs_g >= FAINT[0]) & (abs_g < FAINT[1])).flatten()
    metrics = {}
    if len(floor):
        metrics["lnm_rms_over_floor"] = float((mean / floor).square().mean().sqrt())
    if faint.any():
        metrics["lnm_bias_faint"] = float(error[faint].mean())
    return metrics
