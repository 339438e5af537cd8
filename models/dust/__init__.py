"""dust: a 3D map of interstellar dust as a variational Gaussian process."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orrery.models.base import Batch, Component, Evaluation, Fit, Output, PredictedRows
from orrery.models.dust.evaluation import evaluate
from orrery.models.dust.field import Density, Extinction, Stars
from orrery.models.dust.hmc import Draws, draw, likelihood
from orrery.models.dust.noise import normal, of_all_ranks, some_of
from orrery.models.dust.outputs import OUTPUTS, log_density, rows
from orrery.models.dust.prior import HYPER, Prior, Processes, refuse_too_large_map
from orrery.models.dust.query import map_arrays, query, stars_at
from orrery.models.dust.variational import Here, inverse
from orrery.models.inference import mgvi
from orrery.models.layers.slices import in_slices
from orrery.physics.dust.extinction import Paths
from orrery.physics.gaussian_process.icr import grids
from orrery.physics.gaussian_process.kernel import clumpy
from orrery.physics.gaussian_process.linear_map import GaussianProcess

GUIDES, PRIORS = ("curved", "mgvi", "hmc", "meanfield"), ("icr", "vecchia")
NEWTON = 5  # steps of an outer iteration at most
ROUGH = 4  # first iterations, of noise that is 2^4, 2^3, ... times as large as it is
PROBES = 64  # random vectors for the diagonal of the metric
FARTHEST = 0.3  # that ln scale goes in an iteration: its derivative is that of where it was
BOUND = 4  # pairs that the evidence bound is taken of
EXACT = 0.01  # and their tolerance
SLICE = 8192  # stars predicted at once


class Dust(Component):
    """Extinction per parsec on HEALPix x log distance, after arXiv:2308.01295.

    ln rho is a Gaussian process of Matern covariance, by Iterative Charted Refinement
    (`physics.gaussian_process.icr`) or Vecchia's approximation (`physics.gaussian_process.vecchia`:
    ``prior``), whose mean and amplitude are learned with it. The extinction of a star is the
    density along its sightline, over the distances that its parallax allows; their variance is
    added to that of the measurement. The posterior is found by metric Gaussian variational
    inference (`models.inference.mgvi`): an epoch is an outer iteration, which draws ``pairs`` of
    samples of opposite noise and moves their mean. Processes share out the pairs. The ``guide``
    curved bends samples to the data, which the straight ones of mgvi leave, so that those are too
    close together and of too small an amplitude; its map keeps the samples of several iterations.
    With hmc the map is made of draws from the posterior itself, ``transitions`` of each chain, with
    all that stars of uncertain distance tell (`models.dust.hmc`). meanfield, a baseline, takes
    latents for independent (`models.inference.meanfield`).

    Of the variance of ln rho the share ``clumps`` has half the scale: clouds are sharper than the
    rest. With a ``scale_error`` above 0, of its logarithm, the scale is learned too. With
    ``noise_dof`` the errors of extinctions have Student's distribution of so many degrees of
    freedom, and stars far off count less.

    In: the batch of `datamodules.dust`: ``direction`` (batch, 3), Galactic; ``parallax`` and
    ``parallax_error`` (batch,), mas; ``extinction`` and ``extinction_error`` (batch,), E of Zhang,
    Green & Rix (2023). Out: see `outputs`; the map itself, `sky_map`.
    """

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
        clumps: float = 0.0,  # as in checkpoints that do not say
        amplitude: float = 1.0,
        amplitude_error: float = 0.5,
        mean_error: float = 1.0,
        noise_dof: float | None = None,
        guide: str = "curved",
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
        if guide not in GUIDES:
            raise ValueError(f"model.guide is '{guide}'; it is one of {', '.join(GUIDES)}")
        if prior not in PRIORS:
            raise ValueError(f"model.prior is '{prior}'; it is icr or vecchia")
        self.pairs, self.tolerance, self.seed = pairs, tolerance, seed
        self.guide, self.draws, self.transitions = guide, draws, transitions
        self.amplitude, self.mean_error = (amplitude, amplitude_error), mean_error
        self.scale, self.scale_error, self.noise_dof = scale, scale_error, noise_dof
        levels = grids(nside, n_radial, nearest, farthest, base_nside)
        # latents and densities of all samples with their derivatives
        vectors = 32 * pairs + 4 * draws + 12
        drawn = transitions if guide == "hmc" else 0
        refuse_too_large_map(prior, levels, vectors, drawn, scale_error > 0)
        self.grid = levels[-1]
        self.kernel = partial(clumpy, nu=nu, clumps=clumps)
        self._processes = Processes(prior, levels, self.kernel, scale_error > 0)
        self.register_buffer("log_scale", torch.tensor(0.0))  # where it is now, from its median
        n = self.gp.n_excitations + HYPER
        self.mean = torch.nn.Parameter(torch.zeros(1, n))
        self.register_buffer("residuals", torch.zeros(2 * pairs, n))
        # samples of the finished map, from the mean; of HMC the worst R-hat and fewest effective
        self.register_buffer("posterior", torch.zeros(2 * draws, n))
        self.register_buffer("chains", torch.zeros(2))
        self.register_buffer("elbo", torch.tensor(0.0))  # of the variational posterior
        # of the prior: ln of the mean density, a first guess, 1/pc
        self.register_buffer("log_density", torch.tensor(-8.0))
        # the constant density that fits the stars best, and the scatter about it
        self.register_buffer("even", torch.tensor([1e-4, 0.1]))
        self.register_buffer("n_stars", torch.zeros(self.grid.shape[0], dtype=torch.int32))
        self.register_buffer("widths", self.grid.widths.float(), persistent=False)
        self._rho: tuple[tuple[float, ...], Tensor] | None = None

    residuals: Tensor
    posterior: Tensor
    chains: Tensor
    elbo: Tensor
    log_scale: Tensor
    log_density: Tensor
    even: Tensor
    n_stars: Tensor  # behind each pixel, of the training set
    widths: Tensor

    @property
    def scale_now(self) -> float:
        """Of the kernel, pc."""
        return self.scale * math.exp(float(self.log_scale))

    @property
    def gp(self) -> GaussianProcess:
        return self._processes.at(self.scale_now)[0]

    @property
    def prior(self) -> Prior:
        """Where the model is, and in its precision."""
        gp, by_scale = self._processes.at(self.scale_now)
        for one in (gp, by_scale):
            if one:
                one.to(self.mean.device, self.mean.dtype)
        mean, scale = float(self.log_density), float(self.log_scale)
        return Prior(
            gp, (mean, self.mean_error), self.amplitude, (scale, self.scale_error), by_scale
        )

    # --- the fit ------------------------------------------------------------------------------

    def prepare(self, data: Any) -> None:
        """A first guess of the density: that of an even medium."""
        batch = data.training_batch()
        paths, extinction = self.stars(batch).paths.lengths.sum(1), batch["extinction"]
        density = extinction.mean() / paths.mean()
        if not bool(density > 0):
            raise ValueError(
                f"the stars have a mean extinction of {float(extinction.mean()):.2g}; expected "
                f"above 0: are these extinctions?"
            )
        scatter = (extinction - density * paths).square() - batch["extinction_error"].square()
        self.even.copy_(torch.stack([density, scatter.mean().clamp_min(0).sqrt()]))
        spread = 0.5 * self.amplitude[0] ** 2  # of ln: the mean of exp(s) over its median
        self.log_density.copy_(density.log() - spread)
        pixel = self.stars(batch).pixel
        self.n_stars.copy_(torch.bincount(pixel, minlength=len(self.n_stars)))

    def stars(self, batch: Batch) -> Stars:
        """Pixels, and paths through the shells."""
        place = (batch[name] for name in ("direction", "parallax", "parallax_error"))
        found = stars_at(self.grid, *place)
        return Stars(found.pixel, Paths(*(x.to(self.mean.dtype) for x in found.paths)))

    @torch.no_grad()
    def calibrate(self, data: Any) -> None:
        """The samples of the finished map: of further iterations, or those of HMC."""
        batch = {name: values.to(self.device) for name, values in data.training_batch().items()}
        stars, mean, samples = self.stars(batch), self.mean.detach(), self.mean + self.residuals
        n = self._n_noise(batch)
        here, found = self._here(batch, stars, mean, samples), []
        for pairs in some_of(range(1000, 1000 + self.draws), self.pairs):
            both = here.residuals(self._noise(pairs, n), self.tolerance)[1]
            found.append(here.mean + both)
            if here.bends:
                mean = here.newton(both, 1, self.tolerance)[0]
                here = self._here(batch, stars, mean, found[-1])
        # of exact draws, which the map's are not; of bent ones an estimate
        exact = self._noise(range(3000, 3000 + BOUND), n)
        self.elbo.fill_(here.evidence_bound(*here.residuals(exact, min(EXACT, self.tolerance))))
        samples = torch.cat(found)
        if self.guide == "hmc":
            drawn = self.exact(batch, samples)
            samples = drawn.some(2 * self.draws)
            self.chains.copy_(torch.tensor([drawn.rhat, drawn.ess]))
        self.posterior.copy_(samples - self.mean)

    def exact(self, batch: Batch, start: Tensor) -> Draws:
        """From the posterior itself, by HMC that begins at ``start``, draws of the variational."""
        stars = self.stars(batch)
        log_p = likelihood(self.grid, stars, batch, self.noise_dof)
        variance = self._variance(batch, stars, start)
        return draw(self.prior, log_p, stars, variance, start, self.transitions, self.seed)

    def samples(self) -> Tensor:
        """Latents of the posterior: (2 pairs, latents) of an iteration, or (2 draws, latents)."""
        finished = not self.training and bool(self.posterior.any())
        return self.mean + (self.posterior if finished else self.residuals)

    @torch.no_grad()
    def fitted_parameters(self) -> dict[str, float]:
        """The amplitude of ln density and, if learned, the scale, pc; how well chains agree."""
        hyper = self.samples()[:, -HYPER:].double()
        numbers = {"amplitude": self.amplitude[0] * (self.amplitude[1] * hyper[:, 1]).exp()}
        if self.scale_error:
            numbers["scale_pc"] = self.scale * (self.scale_error * hyper[:, 2]).exp()
        found: dict[str, float] = {}
        for name, values in numbers.items():
            found |= {name: float(values.mean()), f"{name}_std": float(values.std())}
        if self.noise_dof is None:
            found["elbo"] = float(self.elbo)
        if self.guide == "hmc":
            found |= dict(zip(("rhat_max", "ess_min"), self.chains.tolist(), strict=True))
        return found

    def loss(self, batch: Batch) -> Tensor:
        """In training the energy per star, averaged over samples: minus ln of the posterior.

        In validation minus the mean log density of the stars' extinctions.
        """
        stars, prior = self.stars(batch), self.prior
        if not self.training:
            return -self._log_density(batch, stars).mean()
        variance = self._variance(batch, stars, self.samples())
        at = Extinction(prior, stars, self.samples())
        misfit = (at.value - batch["extinction"]).square() / variance
        return 0.5 * misfit.mean() + 0.5 * self.mean.square().sum() / self.n_stars.sum()

    @torch.no_grad()
    def _variance(self, batch: Batch, stars: Stars, samples: Tensor) -> Tensor:
        """Of the noise: that of the measurement, and that over the distances as they are now.

        With Student's distribution the one of a normal that counts a star as much as it deserves.
        """
        at = Extinction(self.prior, stars, samples)
        variance = batch["extinction_error"].square() + at.variance(self.widths).mean(0)
        if self.noise_dof is None or not bool(self.residuals.any()):
            return variance
        square = (at.value - batch["extinction"]).square().mean(0) / variance
        return variance * (self.noise_dof + square) / (self.noise_dof + 1)

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """An outer iteration: samples about the mean, then the mean among its samples."""
        world, rank = self.trainer.world_size, self.trainer.global_rank
        if self.pairs % world:
            raise ValueError(f"model.pairs={self.pairs} cannot be shared evenly by {world}")
        if self.scale_error:
            wanted = self.scale_error * self.mean.detach()[0, -1] - self.log_scale
            self.log_scale += wanted.clamp(-FARTHEST, FARTHEST)
        with torch.no_grad():
            rough = max(0, min(ROUGH, self.fit.epochs - 1) - self.current_epoch)
            here = self._here(batch, self.stars(batch), self.mean, self.samples(), 2.0**rough)
            noise = self._noise(range(rank, self.pairs, world), self._n_noise(batch))
            mine = here.residuals(noise, self.tolerance)[1]
            steps = 1 if here.bends and not rough else NEWTON
            mean, energy = here.newton(mine, steps, self.tolerance)
            self.residuals.copy_(torch.cat([of_all_ranks(x, world) for x in mine.chunk(2)]))
            # in the second half ever less, so that the mean is that over many sets of samples
            late = 0 if here.bends else max(0, self.current_epoch - self.fit.epochs // 2)
            self.mean.grad = (self.mean - mean) / (1 + late)
        optimizer: Any = self.optimizers()
        optimizer.step()  # of unit rate
        loss = (energy + 0.5 * here.data.variance.log().sum()) / len(here.data.value)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)

    def _here(
        self, batch: Batch, stars: Stars, mean: Tensor, samples: Tensor, rough: float = 1.0
    ) -> Here:
        """An iteration about ``mean`` (1, latents), with ``rough`` times the variance of the noise
        that ``samples`` tell: from afar the amplitude would go too far, and be long in coming back.
        """
        variance = rough * self._variance(batch, stars, samples)
        data = mgvi.Data(batch["extinction"].to(mean), variance)
        model = partial(Extinction, self.prior, stars)
        here = Here(self.guide, model, data, mean, inverse(model, data, mean))
        if self.guide != "meanfield":
            return here
        # the same in all processes
        probes = self._noise(range(2000, 2000 + PROBES), len(data.value))
        return here._replace(std=mgvi.deviations(model, data, mean, probes))

    def _n_noise(self, batch: Batch) -> int:
        """Numbers that a pair of samples is drawn from."""
        return len(batch["extinction"]) + self.mean.shape[1]

    def _noise(self, which: Sequence[int], n: int) -> Tensor:
        training = self._trainer is not None and self.training
        epoch = self.current_epoch if training else -1
        return normal(self.seed * 1_000_003 + epoch, which, n).to(self.mean)

    def configure_optimizers(self) -> torch.optim.Optimizer:  # type: ignore[override]
        return torch.optim.SGD(self.parameters(), lr=1.0)

    # --- what the rows are --------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output]:
        return OUTPUTS

    def rho(self) -> Tensor:
        """Extinction per pc of the samples, (2 pairs, pixels, shells)."""
        whole = self.mean.detach(), self.residuals, self.posterior
        key = tuple(float(x.square().sum()) for x in whole)
        if self._rho is None or self._rho[0] != key or self._rho[1].device != self.device:
            with torch.no_grad():
                self._rho = key, Density(self.prior, self.samples()).log.exp()
        return self._rho[1]

    def _log_density(self, batch: Batch, stars: Stars) -> Tensor:
        return log_density(self.rho(), self.widths, stars, batch, self.noise_dof)

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        return in_slices(self._rows, batch, SLICE)

    def _rows(self, batch: Batch) -> dict[str, Tensor]:
        stars = self.stars(batch)
        predicted = rows(self.rho(), self.grid.boundaries, self.n_stars, stars, batch)
        if "extinction" in batch:
            predicted["log_density"] = self._log_density(batch, stars)
        return predicted

    def evaluate(self, rows: PredictedRows, data: Any) -> Evaluation:
        return evaluate(self, rows, data)

    def query(self, coords: Any, mode: str = "mean", integrated: bool = True) -> np.ndarray:
        """Extinction from us to ``coords``, an astropy SkyCoord with distances: E.

        ``mode``: "mean", "std" or "samples"; without ``integrated`` the density there, E per pc.
        """
        return query(self.rho().cpu().float(), self.grid, coords, mode, integrated)

    def sky_map(self, columns: list[str] | None) -> dict[str, Any]:
        """The map as arrays: mean and std, or with ``columns=["samples"]`` the samples."""
        return map_arrays(self.rho().cpu(), self.grid, columns)

    def domain_of_validity(self) -> list[str]:
        edges = self.grid.boundaries
        errors = {
            "hmc": "errors are those of the posterior, drawn by HMC",
            "curved": "variational errors: 68% intervals hold 67% on average on ten synthetic "
            "skies, 59 to 76% on one of them, and less in compact clouds",
        }
        small = "variational errors, too small: model.guide=hmc has better ones"
        return [
            f"all directions, {float(edges[0]):.0f} to {float(edges[-1]):.0f} pc; voxels of Nside "
            f"{self.grid.nside} and {100 * self.grid.step:.1f}% of the distance",
            "structure smaller than a voxel is not resolved; `flags` say where the map ends",
            "extinction nearer than the innermost boundary is not counted",
            errors.get(self.guide, small),
        ]
