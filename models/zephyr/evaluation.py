"""Metrics of photometric redshifts, ours and the true model's, and warnings about a catalogue."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.stats import kstest
from torch import Tensor
from torch.nn import functional as F

from orrery.models.base import Evaluation, PredictedRows
from orrery.models.layers import grid
from orrery.models.zephyr.photometry import UNLIKE
from orrery.physics.galaxies.redshift_scores import nmad, outlier_fraction

MANY_UNLIKE = 0.1  # share of objects unlike the training set, of which 0.1% would be by chance


SMALLER_IS_BETTER = frozenset(
    ("nmad", "outlier_fraction", "crps", "nll", "cde_loss", "pit_ks", "pit_ks_raw")
)


def evaluate(model: Any, rows: PredictedRows, data: Any) -> Evaluation:
    """`Evaluation` of a `models.zephyr.Zephyr`; the figure data are what sources add to p(z)."""
    evaluation = Evaluation(metrics(rows), warnings=warnings(rows))
    if not evaluation.metrics:
        return evaluation
    with torch.inference_mode():
        parts = model.parts({k: v.to(model.device) for k, v in rows.examples.items()})
    evaluation.figures["parts"] = {f"pz_{name}": pz.cpu().numpy() for name, pz in parts.items()}
    evaluation.fitted_parameters = model.fitted_parameters() | data.truth()
    if truth := true_rows(data, model.edges):
        evaluation.baselines["true model"] = metrics(truth)
    evaluation.smaller_is_better = SMALLER_IS_BETTER
    return evaluation


def metrics(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of the rows whose redshift is known; empty if there are none."""
    known = np.isfinite(rows.get("z_true", np.empty(0)))
    if not known.any():
        return {}
    rows = {name: values[known] for name, values in rows.items() if len(values) == len(known)}
    z, pit = rows["z_true"].astype(float), rows["pit"].astype(float)
    dz = (rows["z_median"] - z) / (1 + z)
    found = {
        "n": len(z),
        "bias": float(np.median(dz)),
        "nmad": nmad(dz),
        "outlier_fraction": outlier_fraction(dz),
        "crps": float(np.mean(rows["crps"], dtype=float)),
        "nll": float(np.mean(rows["nll"], dtype=float)),
        "cde_loss": float(np.mean(rows["cde_loss"], dtype=float)),
        "pit_ks": _ks(pit),
        "coverage_68": float(np.mean(np.abs(pit - 0.5) < 0.34)),
        "coverage_95": float(np.mean(np.abs(pit - 0.5) < 0.475)),
    }
    if "pit_raw" in rows:  # of a model, not of the truth
        found["pit_ks_raw"] = _ks(rows["pit_raw"].astype(float))
        found["ood_fraction"] = float(np.mean(rows["flags"] & UNLIKE > 0))
    return found


def _ks(pit: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of PIT values from uniform."""
    return float(kstest(pit, "uniform", method="asymp").statistic)


def true_rows(data: Any, edges: Tensor) -> dict[str, np.ndarray]:
    """What `metrics` needs, from the posterior that a simulation knows; empty for a catalogue."""
    z, pdf = data.true_posterior(grid.centres(edges).double())
    if z is None:
        return {}
    mass = (pdf / pdf.sum(1, keepdim=True)).float()
    cdf = F.pad(mass.cumsum(1), (1, 0))
    rows = {"z_true": z.float(), **grid.scores(cdf, edges, z.float())}
    rows["z_median"] = grid.quantile(cdf, edges, torch.tensor([[0.5]]))[:, 0]
    return {name: values.numpy() for name, values in rows.items()}


def warnings(rows: Mapping[str, np.ndarray]) -> list[str]:
    """A sentence if many objects are unlike the training set."""
    unlike = float(np.mean(rows["flags"] & UNLIKE > 0))
    if unlike < MANY_UNLIKE:
        return []
    return [
        f"{unlike:.0%} of the objects are unlike 99.9% of those that the model was trained on: "
        f"see the columns ood (> 0.999) and flags ({UNLIKE}), and the model card"
    ]
