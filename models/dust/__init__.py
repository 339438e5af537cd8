"""dust: a 3D map of interstellar dust as a variational Gaussian process."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from models.base import Batch, Component, Output
from models.blocks import mgvi
from models.dust.exact import draw, kept
from models.dust.field import HYPER, Density, Extinction, Prior, Stars
from models.dust.judged import Map, judged, known_stars
from models.dust.pictures import pictures
from models.dust.query import query, sky_map, stars_at, summary
from physics.extinction import Paths, log_normal, mean_and_variance
from physics.gaussian_process import GaussianProcess
from physics.icr import ICR, grids, matern, memory
from physics.memory import refuse_too_large
from physics.vecchia import Vecchia

MOST = 300  # steps of conjugate gradients
NEWTON = 5  # steps of an outer iteration
SLICE = 8192  # stars predicted at once
PREDECESSORS = (48, 1000)  # of a voxel in Vecchia's approximation, and those of dense Cholesky
VECCHIA_BYTES = 1600  # of a voxel: twice its matrices, for what their making takes


class Dust(Component):
    """Extinction per parsec on HEALPix x log distance, after arXiv:2308.01295.

    ln rho is a Gaussian process of Matern covariance, by Iterative Charted Refinement
    (`physics.icr`) or Vecchia's approximation (`physics.vecchia`: ``prior``), whose mean and
    amplitude are learned with it. The extinction of a star is the
    density along its sightline, over the distances that its parallax allows; their variance is
    added to that of the measurement. The posterior is found by metric Gaussian variational
    inference (`models.blocks.mgvi`): an epoch is an outer iteration, which draws ``pairs`` of
    mirrored samples and moves their mean. Processes share out the pairs. With ``guide`` = hmc the
    samples of the finished map are draws from the posterior itself, ``transitions`` of each chain
    (`models.dust.exact`), which variational ones are too close together to stand for.

    In: the batch of `datamodules.dust`: ``direction`` (batch, 3), Galactic; ``parallax`` and
    ``parallax_error`` (batch,), mas; ``extinction`` and ``extinction_error`` (batch,), E of Zhang,
    Green & Rix (2023). Out: see `outputs`; the map itself, `sky_map`.
    """

    precisions = ("32-true", "64-true")
    smaller_is_better = frozenset(("chi2", "icr_covariance_error"))

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
        amplitude: float = 1.0,
        amplitude_error: float = 0.5,
        mean_error: float = 1.0,
        guide: str = "mgvi",
        pairs: int = 4,
        draws: int = 16,
        transitions: int = 600,
        tolerance: float = 0.03,
        seed: int = 0,
        epochs: int = 12,
    ) -> None:
        super().__init__(lr=1.0, weight_decay=0.0, epochs=epochs)
        self.automatic_optimization = False
        self.pairs, self.tolerance, self.seed = pairs, tolerance, seed
        self.guide, self.draws, self.transitions = guide, draws, transitions
        self.amplitude, self.mean_error = (amplitude, amplitude_error), mean_error
        levels = grids(nside, n_radial, nearest, farthest, base_nside)
        self.kernel = matern(scale, nu)
        if guide not in ("mgvi", "hmc"):
            raise ValueError(f"model.guide is '{guide}'; it is mgvi or hmc")
        if prior not in ("icr", "vecchia"):
            raise ValueError(f"model.prior is '{prior}'; it is icr or vecchia")
        # the matrices, and latents and densities of all samples with their derivatives
        voxels = math.prod(levels[-1].shape)
        matrices = memory(levels) if prior == "icr" else VECCHIA_BYTES * voxels
        drawn = kept(transitions) if guide == "hmc" else 0
        refuse_too_large(
            matrices + 4 * voxels * (12 * pairs + 4 * draws + 12 + drawn),
            f"a map of {voxels:,} voxels" + (f" and {transitions:,} transitions" if drawn else ""),
            "model.nside=<less> model.n_radial=<less> model.pairs=<less>"
            + (" model.transitions=<less>" if drawn else ""),
        )
        self.grid = levels[-1]
        self.gp: GaussianProcess
        if prior == "vecchia":
            self.gp = Vecchia(self.grid, self.kernel, *PREDECESSORS)
        else:
            self.gp = ICR(levels, self.kernel)
        n = self.gp.n_excitations + HYPER
        self.mean = torch.nn.Parameter(torch.zeros(1, n))
        self.register_buffer("residuals", torch.zeros(pairs, n))
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
    log_density: Tensor
    even: Tensor
    n_stars: Tensor  # behind each pixel, of the training set
    widths: Tensor

    @property
    def prior(self) -> Prior:
        """Where the model is, and in its precision: matrices are no part of a checkpoint."""
        self.gp.to(self.mean.device, self.mean.dtype)
        return Prior(self.gp, (float(self.log_density), self.mean_error), self.amplitude)

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
        """The samples of the finished map: more about the mean, or those of HMC."""
        batch = {name: values.to(self.device) for name, values in data.training_batch().items()}
        stars, prior = self.stars(batch), self.prior
        found = mgvi.Data(batch["extinction"].to(self.mean), self._variance(batch, stars))
        model = partial(Extinction, prior, stars)
        e1, e2 = self._noise(range(1000, 1000 + self.draws), len(stars.pixel))
        parts = [
            mgvi.residuals(model, found, self.mean, *e, self.tolerance, MOST)
            for e in zip(e1.split(self.pairs), e2.split(self.pairs), strict=True)
        ]
        half = torch.cat(parts)
        self.posterior.copy_(torch.cat([half, -half]))
        self.elbo.fill_(mgvi.evidence_bound(model, found, self.mean, half))
        if self.guide == "hmc":
            drawn = draw(prior, stars, found, self.samples(), self.transitions, self.seed)
            some = torch.linspace(
                0, drawn.latents.shape[1] - 1, 2 * self.draws // len(drawn.latents)
            )
            self.posterior.copy_(drawn.latents[:, some.long()].flatten(0, 1) - self.mean)
            self.chains.copy_(torch.tensor([drawn.rhat, drawn.ess]))

    def samples(self) -> Tensor:
        """Latents of the posterior: (2 pairs, latents) of an iteration, or (2 draws, latents)."""
        finished = not self.training and bool(self.posterior.any())
        both = [self.posterior] if finished else [self.residuals, -self.residuals]
        return self.mean + torch.cat(both)

    @torch.no_grad()
    def learned(self) -> dict[str, float]:
        """The amplitude of ln density; of HMC how well the chains agree."""
        name, (median, error) = "amplitude", self.amplitude
        amplitude = (math.log(median) + error * self.samples()[:, -1]).exp()
        found = {name: float(amplitude.mean()), f"{name}_std": float(amplitude.std())}
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
        variance = self._variance(batch, stars)
        at = Extinction(prior, stars, self.samples())
        misfit = (at.value - batch["extinction"]).square() / variance
        return 0.5 * misfit.mean() + 0.5 * self.mean.square().sum() / self.n_stars.sum()

    @torch.no_grad()
    def _variance(self, batch: Batch, stars: Stars) -> Tensor:
        """Of the noise: that of the measurement, and that over the distances as they are now."""
        drawn = bool(self.residuals.any())
        at = Extinction(self.prior, stars, self.samples() if drawn else self.mean)
        return batch["extinction_error"].square() + at.variance(self.widths).mean(0)

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """An outer iteration: samples about the mean, then the mean among its samples."""
        world, rank = self.trainer.world_size, self.trainer.global_rank
        if self.pairs % world:
            raise ValueError(f"model.pairs={self.pairs} cannot be shared evenly by {world}")
        stars, prior = self.stars(batch), self.prior
        variance = self._variance(batch, stars)
        data = mgvi.Data(batch["extinction"], variance)
        n_stars = len(stars.pixel)
        e1, e2 = self._noise(range(rank, self.pairs, world), n_stars)

        def model(u: Tensor) -> Extinction:
            return Extinction(prior, stars, u)

        with torch.no_grad():
            mine = mgvi.residuals(model, data, self.mean, e1, e2, self.tolerance, MOST)
            both = torch.cat([mine, -mine])
            mean, energy = mgvi.newton(
                model, data, self.mean.data, both, NEWTON, self.tolerance, MOST
            )
            self.residuals.copy_(_of_all_ranks(mine, world))
            self.mean.grad = self.mean - mean
        optimizer: Any = self.optimizers()
        optimizer.step()  # of unit rate
        loss = (energy + 0.5 * variance.log().sum()) / n_stars
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)

    def _noise(self, pairs: range, n_stars: int) -> tuple[Tensor, Tensor]:
        """Unit normal numbers of these pairs, which depend on the seed and the epoch alone."""
        found = []
        for pair in pairs:
            seed = (self.seed * 1_000_003 + self._epoch()) * 1_000_003 + pair
            generator = torch.Generator().manual_seed(seed)
            n = n_stars + self.mean.shape[1]
            found.append(torch.randn(n, generator=generator, dtype=torch.float32))
        both = torch.stack(found).to(self.mean)
        return both[:, :n_stars], both[:, n_stars:]

    def _epoch(self) -> int:
        return self.current_epoch if self._trainer is not None and self.training else -1

    def configure_optimizers(self) -> torch.optim.Optimizer:  # type: ignore[override]
        return torch.optim.SGD(self.parameters(), lr=1.0)

    # --- what the rows are --------------------------------------------------------------------

    @property
    def outputs(self) -> dict[str, Output]:
        return {
            "extinction": Output("", "mean, E of Zhang, Green & Rix (2023); A_V = 2.8 E"),
            "extinction_std": Output("", "its posterior standard deviation"),
            "extinction_std_distance": Output("", "what the star's distance error adds"),
            "extinction_samples": Output("", "posterior samples, which keep sightlines together"),
            "flags": Output(
                "",
                "1 nearer than the map, 2 beyond it: extinction to its edge, 4 no star behind it",
            ),
            "log_density": Output("", "of the catalogue's extinction, if there is one"),
            "pull": Output("", "of it: deviation over all errors together"),
            "extinction_true": Output("", "of the catalogue, E"),
        }

    def rho(self) -> Tensor:
        """Extinction per pc of the samples, (2 pairs, pixels, shells)."""
        whole = self.mean.detach(), self.residuals, self.posterior
        key = tuple(float(x.square().sum()) for x in whole)
        if self._rho is None or self._rho[0] != key or self._rho[1].device != self.device:
            with torch.no_grad():
                self._rho = key, Density(self.prior, self.samples()).log.exp()
        return self._rho[1]

    def _log_density(self, batch: Batch, stars: Stars) -> Tensor:
        along = self.rho()[:, stars.pixel]
        mean, variance = mean_and_variance(along, stars.paths, self.widths)
        variance = variance + batch["extinction_error"].square()
        log_p = log_normal(batch["extinction"], mean, variance)
        return log_p.logsumexp(0) - math.log(len(along))

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        tensors = {k: v for k, v in batch.items() if isinstance(v, Tensor)}
        n = len(tensors["row"])
        parts = [
            self._predict({k: v[i : i + SLICE] for k, v in tensors.items()})
            for i in range(0, n, SLICE)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _predict(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        stars = self.stars(batch)
        mean, variance = mean_and_variance(self.rho()[:, stars.pixel], stars.paths, self.widths)
        distance = 1e3 / batch["parallax"]
        edges = self.grid.boundaries
        flags = (distance < edges[0]).short() + 2 * (distance > edges[-1]).short()
        flags = flags + 4 * (self.n_stars[stars.pixel] == 0).short()
        rows = {
            "extinction": mean.mean(0),
            "extinction_std": summary(mean, "std"),
            "extinction_std_distance": variance.mean(0).sqrt(),
            "extinction_samples": mean.T.contiguous(),
            "flags": flags,
        }
        if "extinction" in batch:
            total = rows["extinction_std"].square() + variance.mean(0)
            total = total + batch["extinction_error"].square()
            rows["log_density"] = self._log_density(batch, stars)
            rows["extinction_true"] = batch["extinction"]
            rows["pull"] = (batch["extinction"] - rows["extinction"]) / total.sqrt()
        return rows

    def metrics(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        known = np.isfinite(rows.get("log_density", np.empty(0)))
        if not known.any():
            return {}
        pull = rows["pull"][known].astype(float)
        return {
            "n": int(known.sum()),
            "heldout_lpd": float(rows["log_density"][known].mean(dtype=float)),
            "chi2": float(np.mean(pull**2)),
        }

    def query(self, coords: Any, mode: str = "mean", integrated: bool = True) -> np.ndarray:
        """Extinction from us to ``coords``, an astropy SkyCoord with distances: E.

        ``mode``: "mean", "std" or "samples"; without ``integrated`` the density there, E per pc.
        """
        return query(self.rho().cpu().float(), self.grid, coords, mode, integrated)

    def whole(self, columns: list[str] | None) -> dict[str, Any]:
        return sky_map(self.rho().cpu(), self.grid, columns)

    def judged(self, data: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The map beside the simulation's, and the prior beside its kernel; images."""
        rho = self.rho()
        self.gp.to("cpu", torch.float32)
        ours = Map(
            self.grid, self.gp, self.kernel, rho.log(), self.stars, self.guide != "hmc", self.even
        )
        stars = known_stars(data)
        if not stars:
            return {}, {}
        shown = pictures(rho.cpu().float(), self.grid, data.true_density(), stars)
        return judged(ours, data, stars), shown

    def timed(self, batch: Batch) -> dict[str, tuple[Callable[[], object], int]]:
        gp = self.prior.gp
        xi = torch.randn(8, gp.n_excitations, dtype=self.mean.dtype)
        voxels = 8 * math.prod(self.gp.shape)
        return super().timed(batch) | {"voxel_samples_per_second": (lambda: gp.apply(xi), voxels)}

    def scope(self) -> list[str]:
        edges = self.grid.boundaries
        errors = "errors are those of the posterior, drawn by HMC"
        if self.guide != "hmc":
            errors = (
                "variational errors, on a synthetic sky a quarter too small: model.guide=hmc draws "
                "from the posterior itself"
            )
        return [
            f"all directions, {float(edges[0]):.0f} to {float(edges[-1]):.0f} pc; voxels of Nside "
            f"{self.grid.nside} and {100 * self.grid.step:.1f}% of the distance",
            "structure smaller than a voxel is not resolved; `flags` say where the map ends",
            "extinction nearer than the innermost boundary is not counted",
            errors,
        ]


def _of_all_ranks(mine: Tensor, world: int) -> Tensor:
    """The residuals of all processes, pair after pair."""
    if world == 1:
        return mine
    parts = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(parts, mine)
    return torch.stack(parts, 1).flatten(0, 1)
