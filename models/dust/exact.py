"""Draws from the posterior itself, by Hamiltonian Monte Carlo that begins at variational samples.

Latents are stretched by the inverse root of the variational metric along its leading eigenvectors,
so that a trajectory takes tens of steps in place of hundreds; what that leaves of the shape of the
posterior is up to the sampler. The variances of the stars are those of the variational map.
"""

from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import Tensor

from models.blocks.diagnostics import ess, rhat
from models.blocks.hmc import HMC
from models.blocks.mgvi import Data
from models.blocks.spectrum import leading
from models.dust.field import Density, Extinction, Stars
from models.dust.prior import CHAINS, HYPER, STIFF, Prior

WARM = 0.35  # share of the transitions in which chains adapt
WATCHED = 101  # every so many of the voxels are looked at for convergence


class Draws(NamedTuple):
    latents: Tensor  # (chains, draws, latents)
    rhat: float  # the worst of voxels and hyperparameters
    ess: float  # and the fewest effective draws
    gradients: int


def draw(
    prior: Prior, stars: Stars, data: Data, samples: Tensor, transitions: int, seed: int
) -> Draws:
    """``transitions`` of every chain, less those of the warm-up.

    ``samples`` (samples, latents): of the variational posterior.
    """
    mean = samples.mean(0, keepdim=True)
    # between the mean, where curvature is too small, and samples, which stray from the data
    at = Extinction(prior, stars, mean + 0.5 * (samples[:: max(1, len(samples) // 4)] - mean))

    values, vectors = leading(at.metric(1 / data.variance), samples.shape[1], STIFF, samples, seed)
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
            there = Extinction(prior, stars, u)
            off = there.value - data.value
            ctx.gradient = -stretch(there.vjp(off / data.variance) + u)[None].to(y)
            misfit = (off.square() / data.variance).double().sum(1)
            return -0.5 * (misfit + u.double().square().sum(1))[None]

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
