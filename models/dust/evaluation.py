"""Scores of a dust map: held-out stars, the truth of a simulation, and its prior's covariance."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from scipy import stats
from scipy.spatial import cKDTree
from torch import Tensor

from orrery.models.base import Batch, Data, Evaluation, PredictedRows, or_nothing
from orrery.models.dust.figure_data import figure_data
from orrery.models.dust.outputs import BIT
from orrery.models.dust.query import edges
from orrery.models.dust.stars import Stars
from orrery.models.dust.variational import NONLINEAR_INFERENCE
from orrery.physics.densities import log_normal
from orrery.physics.dust.extinction import mean_and_variance
from orrery.physics.gaussian_process.icr import Grid
from orrery.physics.gaussian_process.kernel import Kernel
from orrery.physics.gaussian_process.linear_map import GaussianProcess

if TYPE_CHECKING:
    from orrery.models.dust import Dust

COVARIANCE_ROWS = 64  # that are compared with the kernel, drawn with seed 0
CROSSED_SHARE = 0.5  # of a voxel's depth that the light of a star crosses, for it to be observed
FIGURE_STARS = 20_000  # at most, from which the figure of a sightline is drawn

LEFT_OUT = BIT["nearer"] | BIT["beyond"] | BIT["poor_distance"]  # of the metrics
# of `coarse_map_warnings`: stars, correlation of their residuals, errors beyond which those are cut
MIN_PAIRS, ALIKE, LARGEST_PULL = 100, 0.15, 4.0
SMALLER_IS_BETTER = frozenset(("chi2", "icr_covariance_error"))


@runtime_checkable
class HasTrueDensity(Protocol):
    def setup(self, stage: str | None = None) -> None:
        """Read the training stars, for ``stage`` "fit"."""

    def true_density(self) -> Tensor | None:
        """Extinction per pc of the voxels, (pixels, shells); None where it is unknown."""


class MapPosterior(NamedTuple):
    """The posterior of a map, its prior, and the best constant density as a baseline."""

    grid: Grid
    gp: GaussianProcess
    kernel: Kernel
    log_rho: Tensor  # (samples, pixels, shells)
    stars: Callable[[Batch], Stars]
    mirrored: bool  # whether the samples come in pairs about their mean
    constant_density: Tensor  # (2,): 1/pc, and the scatter of extinctions about it


def evaluate(model: "Dust", rows: PredictedRows, data: Data) -> Evaluation:
    """`Evaluation` of held-out stars, and of the map where the true one is known."""
    evaluation = Evaluation(metrics(rows))
    if not evaluation.metrics:
        return evaluation
    rho = model.rho()
    model.gp.to("cpu", torch.float32)
    posterior = MapPosterior(
        model.grid,
        model.gp,
        model.kernel(model.current_scale),
        rho.log(),
        model.stars,
        model.inference not in NONLINEAR_INFERENCE,
        model.constant_density,
    )
    evaluation.metrics |= map_metrics(posterior, data)
    truth, stars = true_density(data), sampled_stars(data, FIGURE_STARS)
    evaluation.warnings = coarse_map_warnings(model, stars)
    evaluation.figures = or_nothing(
        "figures", lambda: figure_data(model.rho_from_sun().cpu().float(), model.grid, truth, stars)
    )
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
    """Of stars in the map whose extinction is known; empty if there are none."""
    known = np.isfinite(rows.get("log_density", np.empty(0)))
    if known.any():  # as in training, stars without a distance or outside of the map are left out
        known &= rows["flags"] & LEFT_OUT == 0
    if not known.any():
        return {}
    pull = rows["pull"][known].astype(float)
    return {
        "n": int(known.sum()),
        "heldout_lpd": float(rows["log_density"][known].mean(dtype=float)),
        "chi2": float(np.mean(pull**2)),
    }


def coarse_map_warnings(model: "Dust", stars: dict[str, Tensor]) -> list[str]:
    """A sentence if residuals of neighbouring ``stars`` correlate: the map is too coarse."""
    rows = model.predict_step(stars)
    used = (rows["flags"] & LEFT_OUT == 0) & rows["pull"].isfinite()
    n = int(used.sum())
    if n < MIN_PAIRS:
        return []
    xyz = (stars["direction"] * (1e3 / stars["parallax"].clamp_min(1e-6))[:, None])[used].cpu()
    nearest = cKDTree(xyz.numpy()).query(xyz.numpy(), 2)[1][:, 1]
    pull = rows["pull"][used].double().cpu().clamp(-LARGEST_PULL, LARGEST_PULL).numpy()
    correlation = float(np.corrcoef(pull, pull[nearest])[0, 1])
    if correlation < max(ALIKE, 3 / n**0.5):
        return []
    nside = 2 * model.grid.nside
    return [
        f"residuals of neighbouring stars are alike (correlation {correlation:.2f}): structure "
        f"that stars resolve is smaller than the voxels; try finer ones, model.nside={nside} "
        f"model.n_radial={4 * nside + 4}"
    ]


def true_density(data: Data) -> Tensor | None:
    """Of a simulation, (pixels, shells), extinction per pc."""
    return data.true_density() if isinstance(data, HasTrueDensity) else None


def stars_with_extinction(data: Data) -> Iterator[dict[str, Tensor]]:
    """The stars to predict whose extinction is known, batch by batch."""
    for batch in data.prediction_batches():
        known = batch["extinction"].isfinite() if "extinction" in batch else torch.zeros(0)
        if known.any():
            yield {name: values[known] for name, values in batch.items()}


def sampled_stars(data: Data, n: int) -> dict[str, Tensor]:
    """At most ``n`` of `stars_with_extinction`, evenly spread over them."""
    stride = -(-data.n_predicted() // n)
    parts: list[dict[str, Tensor]] = []
    first = 0  # number of the batch's first star
    for batch in stars_with_extinction(data):
        chosen = slice(-first % stride, None, stride)
        parts.append({name: values[chosen].clone() for name, values in batch.items()})
        first += len(batch["row"])
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def map_metrics(posterior: MapPosterior, data: Data) -> dict[str, float]:
    """Metrics of the map; those that need the truth only where ``data`` is a simulation."""
    truth = true_density(data)
    metrics = {
        "icr_covariance_error": covariance_error(posterior.gp, posterior.grid, posterior.kernel)
    }
    metrics |= reference_densities(posterior, truth, stars_with_extinction(data))
    if truth is None or not isinstance(data, HasTrueDensity):
        return metrics
    data.setup("fit")
    training_stars = posterior.stars(data.training_batch())
    observed = observed_voxels(
        training_stars, len(truth), posterior.grid.widths.to(posterior.log_rho)
    )
    return metrics | truth_metrics(
        posterior.log_rho.cpu(), truth.log(), observed, posterior.mirrored
    )


def reference_densities(
    posterior: MapPosterior, truth: Tensor | None, batches: Iterator[dict[str, Tensor]]
) -> dict[str, float]:
    """Mean log density of the stars' extinctions for the best constant density, and for the truth.

    Sums are taken batch by batch, so that memory does not grow with the number of stars.
    """
    widths = edges(posterior.grid).diff().to(posterior.log_rho)
    density, scatter = posterior.constant_density.tolist()
    sums: dict[str, float] = {}
    n = 0
    for batch in batches:
        stars = posterior.stars(batch)
        constant = torch.full_like(stars.paths.lengths, density)
        references = {
            "heldout_lpd_constant": (constant, scatter),
            "heldout_lpd_constant_without_scatter": (constant, 0.0),
        }
        if truth is not None:
            from_sun = torch.nn.functional.pad(truth[None], (1, 0))  # nearer there is no dust
            references["heldout_lpd_truth"] = stars.along(from_sun.to(posterior.log_rho))[0], 0.0
        for name, (rho, added_scatter) in references.items():
            mean, variance = mean_and_variance(rho, stars.paths, widths)
            total = variance + batch["extinction_error"].square() + added_scatter**2
            log_p = log_normal(batch["extinction"], mean, total)
            sums[name] = sums.get(name, 0.0) + float(log_p.mean()) * len(log_p)
        n += len(batch["row"])
    return {name: total / n for name, total in sums.items()}


def observed_voxels(stars: Stars, n_pixels: int, widths: Tensor) -> Tensor:
    """Mask of the voxels that the light of any of ``stars`` crosses, (pixels, shells).

    ``widths`` (shells,): of the map's shells, pc.
    """
    observed = torch.zeros(n_pixels, len(widths), dtype=torch.bool)
    crossed = stars.paths.lengths[:, 1:] > CROSSED_SHARE * widths
    pixel, shell = stars.pixel[:, None].expand(crossed.shape), torch.arange(len(widths))
    observed[pixel[crossed], shell.expand(crossed.shape)[crossed]] = True
    return observed


def truth_metrics(
    log_rho: Tensor, true_log_rho: Tensor, observed: Tensor, mirrored: bool
) -> dict[str, float]:
    """In the ``observed`` voxels; log_rho (samples, ...), in mirrored pairs or independent."""
    samples, truth = log_rho[:, observed].double(), true_log_rho[observed]
    mean, std = samples.mean(0), samples.std(0, correction=0)
    z = (truth - mean) / std
    n = len(samples)
    # n / 2 pairs have so many degrees of freedom, and their mean no error of its own
    expected = (
        student_coverage(n // 2, 1.0) if mirrored else student_coverage(n - 1, (n - 1) / (n + 1))
    )
    return {
        "voxels_seen": float(observed.double().mean()),
        "lnrho_correlation_seen": float(torch.corrcoef(torch.stack([mean, truth]))[0, 1]),
        "coverage_68": float((z.abs() < 1).double().mean()),
        "coverage_68_expected": expected,
    }


def student_coverage(n: int, square: float) -> float:
    """P(t^2 < ``square``) of Student's t of n degrees of freedom."""
    return float(2 * stats.t.cdf(square**0.5, n) - 1)


def covariance_error(
    gp: GaussianProcess, grid: Grid, kernel: Kernel, n_rows: int = COVARIANCE_ROWS
) -> float:
    """Error of A A^T against the kernel: relative Frobenius norm over ``n_rows`` random rows."""
    positions = grid.positions.flatten(0, 1)
    generator = torch.Generator().manual_seed(0)
    error = total = 0.0
    for voxels in torch.randperm(len(positions), generator=generator)[:n_rows].split(16):
        unit = torch.zeros(len(voxels), len(positions))
        unit[torch.arange(len(voxels)), voxels] = 1
        implied = gp.apply(gp.adjoint(unit.view(-1, *grid.shape))).flatten(1)
        exact = kernel(torch.cdist(positions[voxels], positions))
        error += float((implied - exact).square().sum())
        total += float(exact.square().sum())
    return (error / total) ** 0.5
