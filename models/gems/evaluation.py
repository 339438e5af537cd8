"""Metrics of hosts against the true ones, of the mixture with the field, and figure data."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from orrery.models.base import Data, Evaluation, Metrics, PredictedRows, or_nothing
from orrery.models.gems import figure_data
from orrery.physics.milky_way.actions import FAST, staeckel_actions
from orrery.physics.milky_way.orbits import integrate
from orrery.physics.milky_way.potentials import milky_way

if TYPE_CHECKING:
    from orrery.models.gems import Gems

N_BINS = 10  # of probability, for the calibration
ORBIT = 0.1  # Gyr, of the test of speed
LEAST_MOMENTUM = 400.0  # kpc km/s, of its stars: others pass near the centre, by short steps
SMALLER_IS_BETTER = frozenset(("log_loss", "ece", "field_log_loss", "field_ece"))


def evaluate(model: "Gems", rows: PredictedRows, data: Data) -> Evaluation:
    """`Evaluation` of predicted hosts; empty where no truth is known."""
    evaluation = Evaluation(host_metrics(rows) | field_metrics(rows, len(model.names)))
    if not evaluation.metrics:
        return evaluation
    evaluation.figures = or_nothing("figures", lambda: figure_data.figure_data(model, rows, data))
    evaluation.smaller_is_better = SMALLER_IS_BETTER
    batch = next(data.prediction_batches())
    x, v = figure_data.mean_phase_space(batch)
    usual = torch.linalg.vector_norm(torch.linalg.cross(x, v), dim=-1) > LEAST_MOMENTUM
    usual &= staeckel_actions(x, v, milky_way(model.potential).axisymmetric).bound
    if not usual.any():
        return evaluation
    x, v = x[usual], v[usual]
    n, galaxy = len(x), milky_way(model.potential)
    static = galaxy.axisymmetric
    evaluation.timings = {
        "stars_per_second": (lambda: model.predict_step(batch), len(batch["row"])),
        "actions_us": (lambda: staeckel_actions(x, v, static), n),
        "fast_actions_us": (lambda: staeckel_actions(x, v, static, precision=FAST), n),
        "orbit_gyr_per_second": (lambda: integrate(x, v, galaxy, 0.0, ORBIT), ORBIT * n),
    }
    return evaluation


def host_metrics(rows: Mapping[str, np.ndarray]) -> Metrics:
    """Of stars of clusters, among the clusters: the field is left out of the probabilities."""
    if "rank_true" not in rows:
        return {}
    known = np.isfinite(rows["rank_true"])
    if not known.any():
        return {}
    rank = rows["rank_true"][known]
    of_clusters = (1 - rows["p_field"][known]).clip(1e-30)
    p_true = (rows["p_true"][known] / of_clusters).clip(1e-30, 1)
    p_host = (rows["p_host"][known] / of_clusters).clip(0, 1)
    return {
        "n_ejected": int(known.sum()),
        "top1": float(np.mean(rank == 1)),
        "top5": float(np.mean(rank <= 5)),
        "log_loss": float(-np.log(p_true, dtype=float).mean()),
        "ece": calibration_error(p_host, rank == 1),
    }


def field_metrics(rows: Mapping[str, np.ndarray], n_clusters: int) -> Metrics:
    """Of all stars: which are of clusters, where the truth has field stars too."""
    if "host_true" not in rows:
        return {}
    true = rows["host_true"]
    known = (true >= 0) & np.isfinite(rows["p_field"])
    if not known.any() or not (true[known] == n_clusters).any():
        return {}
    ejected = true[known] < n_clusters
    if not ejected.any():
        return {}
    p = 1 - rows["p_field"][known].astype(float)
    p_correct = np.where(ejected, p, 1 - p).clip(1e-12)
    return {
        "n": int(known.sum()),
        "field_purity_at_half": purity_at(p, ejected, 0.5),
        "field_log_loss": float(-np.log(p_correct).mean()),
        "field_ece": calibration_error(p, ejected),
        "log_loss_all": float(-np.log(rows["p_true"][known].astype(float).clip(1e-30)).mean()),
    }


def calibration_error(p: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error: mean |frequency - probability| over ten bins of probability."""
    bins = np.minimum((p * N_BINS).astype(int), N_BINS - 1)
    count = np.bincount(bins, minlength=N_BINS)
    gap = np.bincount(bins, correct - p, minlength=N_BINS)
    return float(np.abs(gap).sum() / count.sum())


def purity_at(p: np.ndarray, positive: np.ndarray, completeness: float) -> float:
    """Share of true positives among the likeliest stars, as many as hold this share of them."""
    purity, complete = purity_and_completeness(p, positive)
    return float(purity[np.searchsorted(complete, completeness)])


def purity_and_completeness(p: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both of the 1, 2, ... likeliest stars, (n,) each."""
    true = positive[np.argsort(-p, kind="stable")].cumsum()
    return true / np.arange(1, len(p) + 1), true / max(1, true[-1])
