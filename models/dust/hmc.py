"""Draws from the posterior itself, by Hamiltonian Monte Carlo that begins at variational samples.

Latents are stretched by the inverse root of the variational metric along its leading eigenvectors,
so that a trajectory takes tens of steps instead of hundreds; the rest of the posterior's shape is
left to the sampler. The likelihood of a star is the integral over its distances, of which
variational samples know the mean and variance only.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orrery.models.base import Batch
from orrery.models.dust.field import Density, Extinction
from orrery.models.dust.groups import StarGroups
from orrery.models.dust.prior import HMC_EIGENVECTORS, N_CHAINS, N_HYPER, Prior
from orrery.models.dust.query import edges
from orrery.models.dust.stars import Stars
from orrery.models.inference.diagnostics import ess, rhat
from orrery.models.inference.hmc import HMC
from orrery.models.inference.matrix_free import leading_eigenvectors
from orrery.physics.dust.extinction import Distances, distances, log_marginal, voxel_squares
from orrery.physics.gaussian_process.icr import Grid
from orrery.progress import counted

WARM_UP = 0.35  # share of the transitions in which chains adapt
DIAGNOSED_STRIDE = 101  # every so many voxels enter R-hat and the effective sample size


class Draws(NamedTuple):
    latents: Tensor  # (chains, draws, latents)
    rhat: float  # the largest of voxels and hyperparameters
    ess: float  # the least effective sample size of them
    gradients: int  # evaluations

    def thinned(self, n: int) -> Tensor:
        """``n`` draws, evenly spread over chains and time, (n, latents)."""
        draws = self.latents.transpose(0, 1).flatten(0, 1)
        return draws[torch.linspace(0, len(draws) - 1, n).long()]


def likelihood(
    grid: Grid, stars: Stars, batch: Batch, dof: float | None, substructure: float
) -> Callable[[Tensor], Tensor]:
    """rho (samples, pixels, shells from the Sun) -> ln likelihood (samples,), over all distances.

    ``batch``: that of `models.dust.Dust`; ``dof``: of the errors of extinctions;
    ``substructure``: see `models.dust.Dust`.
    """
    parallax = batch["parallax"]
    paths = stars.paths
    at = distances(edges(grid).to(parallax), parallax, batch["parallax_error"])

    def log_p(rho: Tensor) -> Tensor:
        value, error = (batch[name].to(rho) for name in ("extinction", "extinction_error"))
        at_rho = Distances(at.shell, at.part.to(rho), at.log_weight.to(rho))
        rho_of_star, widths = stars.along(rho), edges(grid).diff().to(rho)
        variance = error**2 + substructure**2 * voxel_squares(rho_of_star, paths)
        return log_marginal(rho_of_star, at_rho, widths, value, variance, dof).double().sum(1)

    return log_p


def draw(
    prior: Prior,
    log_likelihood: Callable[[Tensor], Tensor],
    stars: StarGroups,
    variance: Tensor,
    samples: Tensor,
    transitions: int,
    seed: int,
) -> Draws:
    """``transitions`` of every chain, of which the warm-up is discarded.

    ``log_likelihood``: of rho (chains, pixels, shells from the Sun), (chains,). ``samples``
    (samples, latents) are those of the variational posterior of ``stars``, whose noise has the
    ``variance`` (stars,).
    """
    mean = samples.mean(0, keepdim=True)
    # between the mean, where curvature is too small, and samples, which stray from the data
    at = Extinction(prior, stars, mean + 0.5 * (samples[:: max(1, len(samples) // 4)] - mean))

    metric, n = at.metric(1 / variance), samples.shape[1]
    values, vectors = leading_eigenvectors(metric, n, HMC_EIGENVECTORS, samples, seed)
    shrink = (1 + values).rsqrt() - 1

    def stretch(y: Tensor) -> Tensor:
        return y + ((y @ vectors) * shrink) @ vectors.T

    def latents(y: Tensor) -> Tensor:
        return mean + stretch(y)

    class LogPosterior(torch.autograd.Function):
        """ln of the posterior of y (1, chains, latents), with its gradient by hand."""

        @staticmethod
        def forward(ctx: Any, y: Tensor) -> Tensor:  # type: ignore[override]
            u = latents(y[0].to(samples))
            density = Density(prior, u)
            with torch.enable_grad():
                log_rho = density.log_from_sun.requires_grad_()
                log_p = log_likelihood(log_rho.exp())
                (by_log_rho,) = torch.autograd.grad(log_p.sum(), log_rho)
            ctx.gradient = stretch(density.vjp(by_log_rho) - u)[None].to(y)
            return (log_p.detach() - 0.5 * u.double().square().sum(1))[None]

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0][..., None] * ctx.gradient

    starts = samples[torch.linspace(0, len(samples) - 1, N_CHAINS).long()] - mean
    starts = starts + ((starts @ vectors) * ((1 + values).sqrt() - 1)) @ vectors.T
    warm_up = round(WARM_UP * transitions)
    sampler = HMC(LogPosterior.apply, starts[None].double(), warm_up, seed, accept=0.8)
    draws, diagnosed = [], []
    for i in counted(range(transitions), "sampling", "transitions"):
        y = sampler.advance()[0]
        if i >= warm_up:
            draws.append(latents(y.to(samples)))
            log_rho = Density(prior, draws[-1]).log.flatten(1)[:, ::DIAGNOSED_STRIDE]
            diagnosed.append(torch.cat([log_rho, draws[-1][:, -N_HYPER:]], 1).double())
    numbers = torch.stack(diagnosed, 1)
    return Draws(
        torch.stack(draws, 1), float(rhat(numbers).max()), float(ess(numbers).min()),
        sampler.values["gradients"],
    )  # fmt: skip
