"""Draws from the posterior itself, by Hamiltonian Monte Carlo that begins at variational samples.

Latents are stretched by the inverse root of the variational metric along its leading eigenvectors,
so that a trajectory takes tens of steps in place of hundreds; what that leaves of the shape of the
posterior is up to the sampler. The likelihood of a star is the integral over its distances, which
variational samples know by its mean and variance only, and those at the variational map.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import Tensor

from orrery.models.dust.field import Density, Extinction, Stars
from orrery.models.dust.prior import CHAINS, HYPER, STIFF, Prior
from orrery.models.inference.diagnostics import ess, rhat
from orrery.models.inference.hmc import HMC
from orrery.models.inference.matrix_free import leading
from orrery.physics.dust.extinction import Distances, distances, log_marginal
from orrery.physics.gaussian_process.icr import Grid

WARM = 0.35  # share of the transitions in which chains adapt
WATCHED = 101  # every so many of the voxels are looked at for convergence


class Draws(NamedTuple):
    latents: Tensor  # (chains, draws, latents)
    rhat: float  # the worst of voxels and hyperparameters
    ess: float  # and the fewest effective draws
    gradients: int

    def some(self, n: int) -> Tensor:
        """``n`` draws of all chains and times, (n, latents)."""
        all_of_them = self.latents.transpose(0, 1).flatten(0, 1)
        return all_of_them[torch.linspace(0, len(all_of_them) - 1, n).long()]


def likelihood(
    grid: Grid, stars: Stars, batch: Mapping[str, Tensor], dof: float | None
) -> Callable[[Tensor], Tensor]:
    """Of rho (samples, pixels, shells), (samples,): over all distances of the stars.

    ``batch``: that of `models.dust.Dust`; ``dof``: of the errors of extinctions.
    """
    parallax = batch["parallax"]
    at = distances(grid.boundaries.to(parallax), parallax, batch["parallax_error"])

    def log_p(rho: Tensor) -> Tensor:
        value, error = (batch[name].to(rho) for name in ("extinction", "extinction_error"))
        here = Distances(at.shell, at.part.to(rho), at.log_weight.to(rho))
        along = rho[:, stars.pixel]
        return log_marginal(along, here, grid.widths.to(rho), value, error**2, dof).double().sum(1)

    return log_p


def draw(
    prior: Prior,
    log_likelihood: Callable[[Tensor], Tensor],
    stars: Stars,
    variance: Tensor,
    samples: Tensor,
    transitions: int,
    seed: int,
) -> Draws:
    """``transitions`` of every chain, less those of the warm-up.

    ``log_likelihood``: of rho (chains, pixels, shells), (chains,). ``samples`` (samples, latents)
    are those of the variational posterior of ``stars``, whose noise has the ``variance``.
    """
    mean = samples.mean(0, keepdim=True)
    # between the mean, where curvature is too small, and samples, which stray from the data
    at = Extinction(prior, stars, mean + 0.5 * (samples[:: max(1, len(samples) // 4)] - mean))

    values, vectors = leading(at.metric(1 / variance), samples.shape[1], STIFF, samples, seed)
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
                log_rho = density.log.requires_grad_()
                log_p = log_likelihood(log_rho.exp())
                (wanted,) = torch.autograd.grad(log_p.sum(), log_rho)
            ctx.gradient = stretch(density.vjp(wanted) - u)[None].to(y)
            return (log_p.detach() - 0.5 * u.double().square().sum(1))[None]

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0][..., None] * ctx.gradient

    some = samples[torch.linspace(0, len(samples) - 1, CHAINS).long()] - mean
    start = some + ((some @ vectors) * ((1 + values).sqrt() - 1)) @ vectors.T
    warm = round(WARM * transitions)
    sampler = HMC(LogPosterior.apply, start[None].double(), warm, seed, accept=0.8)
    found, watched = [], []
    for i in track(range(transitions), "sampling", transient=True):
        y = sampler.advance()[0]
        if i >= warm:
            found.append(latents(y.to(samples)))
            log_rho = Density(prior, found[-1]).log.flatten(1)[:, ::WATCHED]
            watched.append(torch.cat([log_rho, found[-1][:, -HYPER:]], 1).double())
    looked = torch.stack(watched, 1)
    return Draws(
        torch.stack(found, 1), float(rhat(looked).max()), float(ess(looked).min()),
        sampler.values["gradients"],
    )  # fmt: skip
