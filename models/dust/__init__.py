"""dust: a 3D map of interstellar dust as a Gaussian process."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from orrery.models.base import Batch, Component, Data, Evaluation, Fit, Output, PredictedRows
from orrery.models.dust.evaluation import evaluate
from orrery.models.dust.field import Density, Extinction
from orrery.models.dust.groups import StarGroups, group_stars
from orrery.models.dust.hmc import Draws, draw, likelihood
from orrery.models.dust.migrations import inference_setting, no_substructure_nearer_dust_or_disc
from orrery.models.dust.noise import all_gather, chunks, normal
from orrery.models.dust.outputs import OUTPUTS, log_density, predicted_rows
from orrery.models.dust.prior import N_HYPER, Prior, Processes, refuse_too_large_map
from orrery.models.dust.query import edges, locate_stars, map_arrays, query
from orrery.models.dust.stars import Stars
from orrery.models.dust.variational import Linearisation, preconditioner, share_within_voxels
from orrery.models.inference import mgvi
from orrery.models.layers.slices import in_slices
from orrery.physics.dust.extinction import Paths
from orrery.physics.gaussian_process.icr import grids
from orrery.physics.gaussian_process.kernel import clumpy
from orrery.physics.gaussian_process.linear_map import GaussianProcess

INFERENCE, PRIORS = ("geovi", "mgvi", "hmc", "meanfield"), ("icr", "vecchia")
MAX_NEWTON_STEPS = 5  # of an outer iteration
TEMPERED_ITERATIONS = 4  # the first ones, of a noise variance 2^4, 2^3, ... times the true one
METRIC_PROBES = 64  # random vectors for the diagonal of the metric
# largest step of ln(scale) per iteration: its gradient is taken at the old scale
MAX_LOG_SCALE_STEP = 0.3
ELBO_PAIRS, ELBO_TOLERANCE = 4, 0.01  # pairs of samples, and the tolerance of their solutions
STARS_AT_ONCE = 8192  # predicted together


class Dust(Component):
    """Extinction per parsec on HEALPix x log distance, after arXiv:2308.01295.

    ln rho is a Gaussian process of Matern covariance, whose mean and amplitude are learned with it.
    The extinction of a star is the integral of the density along its sightline, averaged over the
    distances that its parallax allows; their variance is added to that of the measurement, and that
    of structure within voxels: a share, learned, of the extinction of each voxel. An epoch
    is an outer iteration of variational inference: it draws samples about the mean and moves the
    mean to the least energy. Processes share out the samples.

    In: the batch of `datamodules.dust`: ``direction`` (batch, 3), Galactic; ``parallax`` and
    ``parallax_error`` (batch,), mas; ``extinction`` and ``extinction_error`` (batch,), E of Zhang,
    Green & Rix (2023). Out: see `outputs`; the map itself, `sky_map`.

    Args:
        nside: HEALPix resolution; 12 nside^2 pixels, nested.
        n_radial: shells of equal steps in ln distance.
        nearest, farthest: boundaries of the map, pc.
        prior: "icr", Iterative Charted Refinement (`physics.gaussian_process.icr`), or "vecchia",
            Vecchia's approximation, more exact locally and slower.
        base_nside: resolution of the coarsest grid, whose covariance is exact.
        nu: smoothness of the Matern kernel: 0.5, 1.5 or 2.5.
        scale, scale_error: of the kernel, pc; the error of ln scale, with which the scale is
            learned, or 0.
        clumps: share of the variance of ln rho that has half the scale: clouds are sharper.
        amplitude, amplitude_error: median of the standard deviation of ln rho; error of its ln, a
            small one: with 0.5 the amplitude runs away where clouds are much smaller than voxels.
        mean_error: of the mean of ln rho, about that of a constant density.
        decline_error: of the decline of ln rho with height above the Galactic plane, 1/pc, about 0:
            1 over the scale height of the disc; 0: no disc.
        nearer_error: of ln of the density inside the inner boundary, about the same; 0: no dust
            there.
        noise_dof: degrees of freedom of Student's distribution of extinctions, since structure
            within voxels has tails, and catalogues have outliers; None: normal.
        inference: "geovi", geometric variational inference (arXiv:2105.10470): samples follow the
            data where the model is nonlinear; those of the last iterations make the map. "mgvi",
            metric Gaussian variational inference (arXiv:1901.11033): linear samples, which stray
            from the data, so that errors are too small. "hmc": draws of the posterior itself, from
            geovi's on, with the full distribution of distances. "meanfield": independent latents,
            a baseline.
        pairs: pairs of samples of an outer iteration, of noise of opposite sign.
        draws: pairs of samples of the finished map.
        transitions: of each chain of HMC, a third of which are warm-up.
        tolerance: relative residual of conjugate gradients.
        seed: of the noise of samples.
        epochs: outer iterations.
    """

    migrations: ClassVar = (inference_setting, no_substructure_nearer_dust_or_disc)

    def __init__(
        self,
        nside: int,
        n_radial: int,
        nearest: float,
        farthest: float,
        prior: str = "icr",
        base_nside: int = 4,
        nu: float = 1.5,
        scale: float = 150.0,
        scale_error: float = 0.0,
        clumps: float = 0.1,
        amplitude: float = 1.0,
        amplitude_error: float = 0.03,
        mean_error: float = 1.0,
        nearer_error: float = 1.0,
        decline_error: float = 0.01,
        noise_dof: float | None = 4.0,
        inference: str = "geovi",
        pairs: int = 4,
        draws: int = 32,
        transitions: int = 600,
        tolerance: float = 0.03,
        seed: int = 0,
        epochs: int = 8,
    ) -> None:
        # the result is the mean of many iterations
        super().__init__(Fit(epochs=epochs, result="last", precisions=("32-true", "64-true")))
        self.automatic_optimization = False
        if inference not in INFERENCE:
            raise ValueError(
                f"model.inference is '{inference}'; it is one of {', '.join(INFERENCE)}"
            )
        if prior not in PRIORS:
            raise ValueError(f"model.prior is '{prior}'; it is icr or vecchia")
        self.pairs, self.tolerance, self.seed = pairs, tolerance, seed
        self.inference, self.draws, self.transitions = inference, draws, transitions
        self.amplitude, self.mean_error = (amplitude, amplitude_error), mean_error
        self.nearer_error, self.decline_error = nearer_error, decline_error
        self.scale, self.scale_error, self.noise_dof = scale, scale_error, noise_dof
        levels = grids(nside, n_radial, nearest, farthest, base_nside)
        # latents and densities of all samples with their derivatives
        vectors = 32 * pairs + 4 * draws + 12
        hmc_transitions = transitions if inference == "hmc" else 0
        refuse_too_large_map(prior, levels, vectors, hmc_transitions, scale_error > 0)
        self.grid = levels[-1]
        self.kernel = partial(clumpy, nu=nu, clumps=clumps)
        self.processes = Processes(prior, levels, self.kernel, scale_error > 0)
        self.register_buffer("log_scale", torch.tensor(0.0))  # ln (current scale / its median)
        n = self.gp.n_excitations + N_HYPER
        self.mean = torch.nn.Parameter(torch.zeros(1, n))
        self.register_buffer("residuals", torch.zeros(2 * pairs, n))
        # samples of the finished map, minus the mean
        self.register_buffer("posterior", torch.zeros(2 * draws, n))
        self.register_buffer("diagnostics", torch.zeros(2))  # of HMC: largest R-hat, least ESS
        self.register_buffer("elbo", torch.tensor(0.0))  # of the variational posterior, nats
        # of the prior: ln of the mean density, 1/pc, as first guessed
        self.register_buffer("log_mean_density", torch.tensor(-8.0))
        self.register_buffer("substructure", torch.tensor(0.0))
        # the constant density that fits the stars best, 1/pc, and the scatter about it
        self.register_buffer("constant_density", torch.tensor([1e-4, 0.1]))
        self.register_buffer("n_stars", torch.zeros(self.grid.shape[0], dtype=torch.int32))
        self.register_buffer("widths", edges(self.grid).diff().float(), persistent=False)
        height = self.grid.positions[..., 2].abs().float()
        self.register_buffer("height", height, persistent=False)
        self._cached_rho: tuple[tuple[float, ...], Tensor] | None = None

    residuals: Tensor
    posterior: Tensor
    substructure: Tensor  # standard deviation of the extinction within a voxel, over its mean
    diagnostics: Tensor
    elbo: Tensor
    log_scale: Tensor
    log_mean_density: Tensor
    constant_density: Tensor
    n_stars: Tensor  # of the training set, by pixel
    height: Tensor  # of the voxels above or below the Galactic plane, pc, (pixels, shells)
    widths: Tensor  # of the shells from the Sun to the edge of the map, pc

    @property
    def current_scale(self) -> float:
        """Of the kernel, pc."""
        return self.scale * math.exp(float(self.log_scale))

    @property
    def gp(self) -> GaussianProcess:
        return self.processes.at(self.current_scale)[0]

    @property
    def prior(self) -> Prior:
        """At the current scale, on the model's device and in its precision."""
        gp, by_scale = self.processes.at(self.current_scale)
        for process in (gp, by_scale):
            if process:
                process.to(self.mean.device, self.mean.dtype)
        mean, scale = float(self.log_mean_density), float(self.log_scale)
        nearer = (-math.inf, 0.0)
        if self.nearer_error:
            nearer = math.log(float(self.constant_density[0])), self.nearer_error
        means = (mean, self.mean_error), self.amplitude, (scale, self.scale_error)
        return Prior(gp, *means, by_scale, nearer, self.decline_error * self.height)

    # --- the fit ------------------------------------------------------------------------------

    def prepare(self, data: Data) -> None:
        """A first guess of the density, constant in space, and the stars behind each pixel."""
        batch = data.training_batch()
        everywhere = torch.ones(1, *self.widths.shape).expand(1, self.grid.shape[0], -1)
        paths = self.star_groups(batch).integral(everywhere.to(self.mean))[0]
        extinction = batch["extinction"]
        density = extinction.mean() / paths.mean()
        if not bool(density > 0):
            raise ValueError(
                f"the stars have a mean extinction of {float(extinction.mean()):.2g}; expected "
                f"above 0: are these extinctions?"
            )
        scatter = (extinction - density * paths).square() - batch["extinction_error"].square()
        self.constant_density.copy_(torch.stack([density, scatter.mean().clamp_min(0).sqrt()]))
        spread = 0.5 * self.amplitude[0] ** 2  # of ln: the mean of exp(s) over its median
        self.log_mean_density.copy_(density.log() - spread)
        pixel = self.grid.voxel(batch["direction"], torch.ones_like(batch["parallax"]))[0]
        self.n_stars.copy_(torch.bincount(pixel, minlength=len(self.n_stars)))

    def star_groups(self, batch: Batch) -> StarGroups:
        """The stars of a fit, in the precision of the model."""
        direction, parallax, error = (
            batch[name] for name in ("direction", "parallax", "parallax_error")
        )
        return group_stars(self.grid, direction, parallax, error, self.mean.dtype)

    def stars(self, batch: Batch, by_prior: bool = False) -> Stars:
        """Pixels, and paths through the shells, in the precision of the model.

        ``by_prior``: see `locate_stars`.
        """
        direction, parallax, error = (
            batch[name] for name in ("direction", "parallax", "parallax_error")
        )
        stars = locate_stars(self.grid, direction, parallax, error, by_prior)
        return stars._replace(paths=Paths(*(x.to(self.mean.dtype) for x in stars.paths)))

    @torch.no_grad()
    def calibrate(self, data: Data) -> None:
        """The samples of the finished map: of further iterations, or those of HMC."""
        batch = {name: values.to(self.device) for name, values in data.training_batch().items()}
        stars, mean, samples = (
            self.star_groups(batch),
            self.mean.detach(),
            self.mean + self.residuals,
        )
        n = self._n_noise(batch)
        local, parts = self._linearise(batch, stars, mean, samples), []
        for pairs in chunks(range(1000, 1000 + self.draws), self.pairs):
            residuals = local.residuals(self._noise(pairs, n), self.tolerance)[1]
            parts.append(local.mean + residuals)
            if local.nonlinear:
                mean = local.newton(residuals, 1, self.tolerance)[0]
                local = self._linearise(batch, stars, mean, parts[-1])
        # needs exact draws, which the map's are not; of nonlinear ones it is an estimate
        noise = self._noise(range(3000, 3000 + ELBO_PAIRS), n)
        tolerance = min(ELBO_TOLERANCE, self.tolerance)
        self.elbo.fill_(local.evidence_bound(*local.residuals(noise, tolerance)))
        samples = torch.cat(parts)
        if self.inference == "hmc":
            drawn = self.hmc_draws(batch, samples)
            samples = drawn.thinned(2 * self.draws)
            self.diagnostics.copy_(torch.tensor([drawn.rhat, drawn.ess]))
        self.posterior.copy_(samples - self.mean)

    def hmc_draws(self, batch: Batch, start: Tensor) -> Draws:
        """From the posterior itself; chains begin at variational samples ``start``."""
        within, stars = float(self.substructure), self.star_groups(batch)
        log_p = likelihood(self.grid, self.stars(batch), batch, self.noise_dof, within)
        variance = self._variance(batch, stars, start)
        return draw(self.prior, log_p, stars, variance, start, self.transitions, self.seed)

    def samples(self) -> Tensor:
        """Latents of the posterior: (2 pairs, latents) of an iteration, or (2 draws, latents)."""
        finished = not self.training and bool(self.posterior.any())
        return self.mean + (self.posterior if finished else self.residuals)

    @torch.no_grad()
    def fitted_parameters(self) -> dict[str, float]:
        """Amplitude of ln density, scale if learned, pc, ELBO, and diagnostics of chains."""
        hyper = self.samples()[:, -N_HYPER:].double()
        nearer = self.rho_from_sun()[:, 0, 0].double() * self.widths[0]
        numbers = {"amplitude": self.amplitude[0] * (self.amplitude[1] * hyper[:, 1]).exp()}
        if self.scale_error:
            numbers["scale_pc"] = self.scale * (self.scale_error * hyper[:, 2]).exp()
        if self.nearer_error:
            numbers["extinction_nearer"] = nearer
        if self.decline_error:
            numbers["decline"] = self.decline_error * hyper[:, 4]
        fitted = {"substructure": float(self.substructure)}
        for name, values in numbers.items():
            fitted |= {name: float(values.mean()), f"{name}_std": float(values.std())}
        if self.noise_dof is None:
            fitted["elbo"] = float(self.elbo)
        if self.inference == "hmc":
            fitted |= dict(zip(("rhat_max", "ess_min"), self.diagnostics.tolist(), strict=True))
        return fitted

    def loss(self, batch: Batch) -> Tensor:
        """In training the energy per star, averaged over samples: -ln of the posterior, nats.

        In validation minus the mean log density of the stars' extinctions.
        """
        if not self.training:
            return -self._log_density(batch, self.stars(batch)).mean()
        stars, prior = self.star_groups(batch), self.prior
        variance = self._variance(batch, stars, self.samples())
        at = Extinction(prior, stars, self.samples())
        misfit = (at.value - batch["extinction"]).square() / variance
        return 0.5 * misfit.mean() + 0.5 * self.mean.square().sum() / self.n_stars.sum()

    @torch.no_grad()
    def _variance(self, batch: Batch, stars: StarGroups, samples: Tensor) -> Tensor:
        """Variance (stars,) of the measurement and, for the current samples, over the distances
        and within voxels.

        With Student's distribution that of the normal which gives a star the same weight.
        """
        at = Extinction(self.prior, stars, samples)
        distances, squares = (x.mean(0) for x in at.scatter())
        variance = batch["extinction_error"].square() + distances
        variance = variance + self.substructure.square() * squares
        if self.noise_dof is None or not bool(self.residuals.any()):
            return variance
        square = (at.value - batch["extinction"]).square().mean(0) / variance
        return variance * (self.noise_dof + square) / (self.noise_dof + 1)

    @torch.no_grad()
    def _learn_substructure(self, batch: Batch, stars: StarGroups, samples: Tensor) -> None:
        """The most probable one for the current samples: a step of expectation maximisation."""
        at = Extinction(self.prior, stars, samples)
        distances, squares = (x.mean(0) for x in at.scatter())
        misfit = (at.value - batch["extinction"]).square().mean(0)
        variance = batch["extinction_error"].square() + distances
        share = share_within_voxels(misfit, variance, squares, self.noise_dof)
        self.substructure.copy_(share)

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """An outer iteration: samples about the mean, then the mean of the least energy."""
        world, rank = self.trainer.world_size, self.trainer.global_rank
        if self.pairs % world:
            raise ValueError(
                f"model.pairs={self.pairs} cannot be shared evenly by {world} processes"
            )
        if self.scale_error:
            step = self.scale_error * self.mean.detach()[0, 2 - N_HYPER] - self.log_scale
            self.log_scale += step.clamp(-MAX_LOG_SCALE_STEP, MAX_LOG_SCALE_STEP)
        with torch.no_grad():
            tempered = min(TEMPERED_ITERATIONS, self.fit.epochs - 1) - self.current_epoch
            inflation = 2.0 ** max(0, tempered)
            stars = self.star_groups(batch)
            local = self._linearise(batch, stars, self.mean, self.samples(), inflation)
            noise = self._noise(range(rank, self.pairs, world), self._n_noise(batch))
            mine = local.residuals(noise, self.tolerance)[1]
            max_steps = 1 if local.nonlinear and tempered <= 0 else MAX_NEWTON_STEPS
            mean, energy = local.newton(mine, max_steps, self.tolerance)
            self.residuals.copy_(torch.cat([all_gather(x, world) for x in mine.chunk(2)]))
            # shorter steps in the second half, so that the mean averages over sets of samples
            late = 0 if local.nonlinear else max(0, self.current_epoch - self.fit.epochs // 2)
            self.mean.grad = (self.mean - mean) / (1 + late)
        optimizer: Any = self.optimizers()
        optimizer.step()  # of unit rate
        loss = (energy + 0.5 * local.data.variance.log().sum()) / len(local.data.value)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)

    def _linearise(
        self, batch: Batch, stars: StarGroups, mean: Tensor, samples: Tensor, inflation: float = 1.0
    ) -> Linearisation:
        """About ``mean`` (1, latents), with the noise variance at ``samples`` times ``inflation``.

        Far from the solution the amplitude would overshoot without it, and return slowly.
        """
        self._learn_substructure(batch, stars, samples)
        variance = inflation * self._variance(batch, stars, samples)
        data = mgvi.Data(batch["extinction"].to(mean), variance)
        model = partial(Extinction, self.prior, stars)
        local = Linearisation(self.inference, model, data, mean, preconditioner(model, data, mean))
        if self.inference != "meanfield":
            return local
        # the same in all processes
        probes = self._noise(range(2000, 2000 + METRIC_PROBES), len(data.value))
        return local._replace(std=mgvi.standard_deviations(model, data, mean, probes))

    def _n_noise(self, batch: Batch) -> int:
        """Numbers that a pair of samples is drawn from."""
        return len(batch["extinction"]) + self.mean.shape[1]

    def _noise(self, numbers: Sequence[int], n: int) -> Tensor:
        """Unit normal, (numbers, n): the same for a number in any process."""
        training = self._trainer is not None and self.training
        epoch = self.current_epoch if training else -1
        return normal(self.seed * 1_000_003 + epoch, numbers, n).to(self.mean)

    def configure_optimizers(self) -> torch.optim.Optimizer:  # type: ignore[override]
        return torch.optim.SGD(self.parameters(), lr=1.0)

    # --- predictions --------------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output]:
        return OUTPUTS

    def rho(self) -> Tensor:
        """Extinction per pc of the samples, (2 pairs, pixels, shells)."""
        return self.rho_from_sun()[..., 1:]

    def rho_from_sun(self) -> Tensor:
        """`rho` after the shell inside the inner boundary, (2 pairs, pixels, shells + 1)."""
        state = self.mean.detach(), self.residuals, self.posterior
        key = tuple(float(x.square().sum()) for x in state)
        cached = self._cached_rho
        if cached is None or cached[0] != key or cached[1].device != self.device:
            with torch.no_grad():
                cached = self._cached_rho = (
                    key,
                    Density(self.prior, self.samples()).log_from_sun.exp(),
                )
        return cached[1]

    def _log_density(self, batch: Batch, stars: Stars) -> Tensor:
        within = float(self.substructure)
        return log_density(self.rho_from_sun(), self.widths, stars, batch, self.noise_dof, within)

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        return in_slices(self._rows, batch, STARS_AT_ONCE)

    def _rows(self, batch: Batch) -> dict[str, Tensor]:
        stars = self.stars(batch, by_prior=True)
        within = float(self.substructure)
        predicted = predicted_rows(
            self.rho_from_sun(), edges(self.grid), self.n_stars, stars, batch, within
        )
        if "extinction" in batch:
            predicted["log_density"] = self._log_density(batch, stars)
        return predicted

    def evaluate(self, rows: PredictedRows, data: Data) -> Evaluation:
        return evaluate(self, rows, data)

    def query(self, coords: Any, mode: str = "mean", integrated: bool = True) -> np.ndarray:
        """Extinction E from the Sun to ``coords``, an astropy SkyCoord with distances, (...).

        ``mode``: "mean", "std" or "samples", (samples, ...); without ``integrated`` the density
        at that place, E per pc.
        """
        return query(self.rho_from_sun().cpu().float(), self.grid, coords, mode, integrated)

    def sky_map(self, columns: list[str] | None) -> dict[str, Any]:
        """The map as arrays: mean and std, or with ``columns=["samples"]`` the samples."""
        return map_arrays(self.rho_from_sun().cpu(), self.grid, columns)

    def domain_of_validity(self) -> list[str]:
        bounds = self.grid.boundaries
        errors = {
            "hmc": "errors are those of the posterior, drawn by HMC",
            "geovi": "variational errors, of the mean over a voxel: see docs/dust.md for what "
            "68% intervals hold; within compact clouds they hold less",
        }
        too_small = "variational errors, too small: model.inference=hmc has better ones"
        with_stars = 100 * float((self.n_stars > 0).float().mean())
        return [
            f"{float(bounds[0]):.0f} to {float(bounds[-1]):.0f} pc; voxels of Nside "
            f"{self.grid.nside} and {100 * self.grid.step:.1f}% of the distance",
            f"directions with a training star in their pixel: {with_stars:.0f}% of the sky. In the "
            f"others, marked empty_pixel in `flags`, and behind the last star of any, there is no "
            f"map: extinctions are those of the prior",
            "structure smaller than a voxel is not resolved; `flags` say where the map ends",
            "nearer than the innermost boundary "
            + ("dust has one density in all directions" if self.nearer_error else "is no dust"),
            errors.get(self.inference, too_small),
        ]
