"""Posteriors of a few parameters, of many data sets at once, by Hamiltonian Monte Carlo.

A parameter is a function of a standard normal number, so that the prior is the same for all and has
no edges.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from orrery.models.inference.hmc import HMC, Target, climb

LONGEST = 12  # leapfrog steps of a trajectory
ACCEPT = 0.65  # aim of the step size; after a short warm-up more is accepted


class Prior(NamedTuple):
    """normal (mean, sd); lognormal (median, sd in dex); uniform in the value or in its log."""

    kind: Literal["normal", "lognormal", "uniform", "log-uniform"]
    a: float
    b: float

    def of(self, z: Tensor) -> Tensor:
        """The value whose rank in the prior is that of z in a standard normal distribution."""
        if self.kind == "normal":
            return self.a + self.b * z
        if self.kind == "lognormal":
            return self.a * torch.exp(math.log(10) * self.b * z)
        if self.kind == "uniform":
            return self.a + (self.b - self.a) * torch.special.ndtr(z)
        return self.a * torch.exp(math.log(self.b / self.a) * torch.special.ndtr(z))


def from_normal(z: Tensor, names: Sequence[str], priors: Mapping[str, Prior]) -> dict[str, Tensor]:
    """Parameters (...) by name of standard normal numbers (..., names): the prior's draws."""
    return {name: priors[name].of(x) for name, x in zip(names, z.unbind(-1), strict=True)}


def sample(
    target: Target,
    groups: int,
    dim: int,
    seed: int,
    chains: int,
    warmup: int,
    draws: int,
    device: torch.device,
) -> Tensor:
    """Draws (groups, chains, draws, dim) of the posterior ``target`` of standard normal numbers.

    Chains climb from the likeliest of a few draws of the prior; the metric is first that of the
    curvature at the best of them.
    """
    start = _start(target, groups, chains, dim, seed).to(device)
    start = climb(target, start, steps=60, rate=0.1)
    covariance = _laplace(target, start)
    sampler = HMC(target, start, warmup, seed, ACCEPT, covariance, max_steps=LONGEST)
    for _ in range(warmup):
        sampler.advance()
    return torch.stack([sampler.advance() for _ in range(draws)], 2)


def _start(
    target: Target, groups: int, chains: int, dim: int, seed: int, tries: int = 16
) -> Tensor:
    """For each chain the likeliest of a few draws of the prior (groups, chains, dim)."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(tries, groups, chains, dim, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        best = torch.stack([target(one) for one in z]).argmax(0)
    return z.gather(0, best[None, ..., None].expand(1, -1, -1, dim))[0]


def _laplace(target: Target, start: Tensor, width: float = 0.02) -> Tensor:
    """Covariance (groups, dim, dim) at the best of the starts (groups, chains, dim).

    From differences of the gradient; nowhere wider than the prior, whose variance is 1.
    """
    with torch.no_grad():
        best = target(start).argmax(1)
    top = start[torch.arange(len(start)), best][:, None]
    shift = width * torch.eye(start.shape[2]).to(start)
    points = torch.cat([top + shift, top - shift], 1).requires_grad_()
    (gradient,) = torch.autograd.grad(target(points).sum(), points)
    after, before = gradient.chunk(2, 1)
    precision = (before - after) / (2 * width)
    values, vectors = torch.linalg.eigh(0.5 * (precision + precision.mT))
    return vectors @ torch.diag_embed(1 / values.clamp_min(1)) @ vectors.mT
