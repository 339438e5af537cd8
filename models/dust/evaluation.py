"""The map beside what a simulation knows, and its prior beside the kernel."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orrery.models.dust.field import Stars
from orrery.physics.dust.extinction import log_normal, mean_and_variance
from orrery.physics.gaussian_process.icr import Grid
from orrery.physics.gaussian_process.kernel import Kernel
from orrery.physics.gaussian_process.linear_map import GaussianProcess

ROWS = 64  # of the covariance, drawn with seed 0
CROSSED = 0.5  # share of a voxel's depth that the light of a star crosses, for it to be seen


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
    parts = [{k: v for k, v in b.items() if k not in ("keep", "group")}
             for b in data.prediction_batches()]  # fmt: skip
    batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if "extinction" not in batch:
        return {}
    known = batch["extinction"].isfinite()
    return {name: values[known] for name, values in batch.items()}


def judged(ours: Map, data: Any, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """Figures of merit; those that need the truth only where ``data`` is a simulation.

    ``batch``: `known_stars`.
    """
    facts = {"icr_covariance_error": covariance_error(ours.gp, ours.grid, ours.kernel)}
    stars, widths = ours.stars(batch), ours.grid.widths.to(ours.log_rho)
    density, scatter = ours.even.tolist()

    def lpd(rho: Tensor, more: float = 0.0) -> float:
        mean, variance = mean_and_variance(rho, stars.paths, widths)
        total = variance + batch["extinction_error"].square() + more**2
        return float(log_normal(batch["extinction"], mean, total).mean())

    even = torch.full_like(stars.paths.lengths, density)
    facts |= {
        "heldout_lpd_constant": lpd(even, scatter),
        "heldout_lpd_constant_without_scatter": lpd(even),
    }
    truth = data.true_density()
    if truth is None:
        return facts
    facts["heldout_lpd_truth"] = lpd(truth.to(ours.log_rho)[stars.pixel])
    data.setup("fit")
    seen = seen_voxels(ours.stars(data.training_batch()), len(truth), widths)
    return facts | beside_truth(ours.log_rho.cpu(), truth.log(), seen, ours.mirrored)


def seen_voxels(stars: Stars, pixels: int, widths: Tensor) -> Tensor:
    """Which voxels the light of any of ``stars`` crosses, (pixels, shells)."""
    seen = torch.zeros(pixels, len(widths), dtype=torch.bool)
    crossed = stars.paths.lengths > CROSSED * widths
    pixel, shell = stars.pixel[:, None].expand(crossed.shape), torch.arange(len(widths))
    seen[pixel[crossed], shell.expand(crossed.shape)[crossed]] = True
    return seen


def beside_truth(log_rho: Tensor, truth: Tensor, seen: Tensor, mirrored: bool) -> dict[str, float]:
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
    """P(t^2 < ``square``) of Student's t of n degrees of freedom, by t = sqrt(n) tan x."""
    angle = torch.linspace(0, 1, 2001, dtype=torch.float64)
    within, all_of_it = (
        float(torch.trapezoid((top * angle).cos().pow(n - 1), top * angle))
        for top in (math.atan((square / n) ** 0.5), 0.5 * math.pi)
    )
    return within / all_of_it


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
