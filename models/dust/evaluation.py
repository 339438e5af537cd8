"""The map beside what a simulation knows, and its prior beside the kernel."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from orrery.models.base import Evaluation, PredictedRows
from orrery.models.dust.field import Stars
from orrery.models.dust.figure_data import pictures
from orrery.models.dust.variational import BENT
from orrery.physics.densities import log_normal
from orrery.physics.dust.extinction import mean_and_variance
from orrery.physics.gaussian_process.icr import Grid
from orrery.physics.gaussian_process.kernel import Kernel
from orrery.physics.gaussian_process.linear_map import GaussianProcess

ROWS = 64  # of the covariance, drawn with seed 0
CROSSED = 0.5  # share of a voxel's depth that the light of a star crosses, for it to be seen


SMALLER_IS_BETTER = frozenset(("chi2", "icr_covariance_error"))


def evaluate(model: Any, rows: PredictedRows, data: Any) -> Evaluation:
    """`Evaluation` of a `models.dust.Dust`: of held-out stars, and of the map where it is known."""
    evaluation = Evaluation(metrics(rows))
    if not evaluation.metrics:
        return evaluation
    rho = model.rho()
    model.gp.to("cpu", torch.float32)
    prior = model.grid, model.gp, model.kernel(model.scale_now)
    ours = Map(*prior, rho.log(), model.stars, model.guide not in BENT, model.even)
    stars = known_stars(data)
    evaluation.metrics |= map_metrics(ours, data, stars)
    evaluation.figures = {
        "map": pictures(rho.cpu().float(), model.grid, data.true_density(), stars)
    }
    evaluation.fitted_parameters = model.fitted_parameters() | data.truth()
    gp, batch = model.prior.gp, next(data.prediction_batches())
    xi = torch.randn(8, gp.n_excitations, dtype=model.mean.dtype)
    evaluation.timings = {
        "objects_per_second": (lambda: model.predict_step(batch), len(batch["row"])),
        "voxel_samples_per_second": (lambda: gp.apply(xi), 8 * math.prod(gp.shape)),
    }
    evaluation.smaller_is_better = SMALLER_IS_BETTER
    return evaluation


def metrics(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of stars whose extinction is known; empty if there are none."""
    known = np.isfinite(rows.get("log_density", np.empty(0)))
    if not known.any():
        return {}
    pull = rows["pull"][known].astype(float)
    return {
        "n": int(known.sum()),
        "heldout_lpd": float(rows["log_density"][known].mean(dtype=float)),
        "chi2": float(np.mean(pull**2)),
    }


class Map(NamedTuple):
    """What is judged."""

    grid: Grid
    gp: GaussianProcess
    kernel: Kernel
    log_rho: Tensor  # (samples, pixels, shells)
    stars: Callable[[Mapping[str, Tensor]], Stars]
    mirrored: bool  # whether the samples come in pairs about their mean
    even: Tensor  # (2,): the best constant density, 1/pc, and the scatter about it


def known_stars(data: Any) -> dict[str, Tensor]:
    """All held-out stars whose extinction is known; empty if there are none."""
    parts = list(data.prediction_batches())
    batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if "extinction" not in batch:
        return {}
    known = batch["extinction"].isfinite()
    return {name: values[known] for name, values in batch.items()}


def map_metrics(ours: Map, data: Any, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """Figures of merit; those that need the truth only where ``data`` is a simulation.

    ``batch``: `known_stars`.
    """
    metrics = {"icr_covariance_error": covariance_error(ours.gp, ours.grid, ours.kernel)}
    stars, widths = ours.stars(batch), ours.grid.widths.to(ours.log_rho)
    density, scatter = ours.even.tolist()

    def lpd(rho: Tensor, more: float = 0.0) -> float:
        mean, variance = mean_and_variance(rho, stars.paths, widths)
        total = variance + batch["extinction_error"].square() + more**2
        return float(log_normal(batch["extinction"], mean, total).mean())

    even = torch.full_like(stars.paths.lengths, density)
    metrics |= {
        "heldout_lpd_constant": lpd(even, scatter),
        "heldout_lpd_constant_without_scatter": lpd(even),
    }
    truth = data.true_density()
    if truth is None:
        return metrics
    metrics["heldout_lpd_truth"] = lpd(truth.to(ours.log_rho)[stars.pixel])
    data.setup("fit")
    seen = seen_voxels(ours.stars(data.training_batch()), len(truth), widths)
    return metrics | against_truth(ours.log_rho.cpu(), truth.log(), seen, ours.mirrored)


def seen_voxels(stars: Stars, pixels: int, widths: Tensor) -> Tensor:
    """Which voxels the light of any of ``stars`` crosses, (pixels, shells)."""
    seen = torch.zeros(pixels, len(widths), dtype=torch.bool)
    crossed = stars.paths.lengths > CROSSED * widths
    pixel, shell = stars.pixel[:, None].expand(crossed.shape), torch.arange(len(widths))
    seen[pixel[crossed], shell.expand(crossed.shape)[crossed]] = True
    return seen


def against_truth(log_rho: Tensor, truth: Tensor, seen: Tensor, mirrored: bool) -> dict[str, float]:
    """In the voxels that are ``seen``; log_rho (samples, ...), in mirrored pairs or independent."""
    samples = log_rho[:, seen].double()
    mean, std = samples.mean(0), samples.std(0, correction=0)
    z = (truth[seen] - mean) / std
    n = len(samples)
    # n / 2 pairs have so many degrees of freedom, and their mean no error of its own
    expected = student_inside(n // 2, 1.0) if mirrored else student_inside(n - 1, (n - 1) / (n + 1))
    return {
        "voxels_seen": float(seen.double().mean()),
        "lnrho_correlation_seen": float(torch.corrcoef(torch.stack([mean, truth[seen]]))[0, 1]),
        "coverage_68": float((z.abs() < 1).double().mean()),
        "coverage_68_expected": expected,
    }


def student_inside(n: int, square: float) -> float:
    """P(t^2 < ``square``) of Student's t of n degrees of freedom."""
    return float(2 * stats.t.cdf(square**0.5, n) - 1)


def covariance_error(gp: GaussianProcess, grid: Grid, kernel: Kernel, rows: int = ROWS) -> float:
    """Of A A^T against the kernel: relative Frobenius norm over some random rows."""
    places = grid.positions.flatten(0, 1)
    chosen = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:rows]
    wrong = total = 0.0
    for some in chosen.split(16):
        unit = torch.zeros(len(some), len(places))
        unit[torch.arange(len(some)), some] = 1
        found = gp.apply(gp.adjoint(unit.view(-1, *grid.shape))).flatten(1)
        exact = kernel(torch.cdist(places[some], places))
        wrong += float((found - exact).square().sum())
        total += float(exact.square().sum())
    return (wrong / total) ** 0.5
