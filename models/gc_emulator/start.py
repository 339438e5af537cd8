"""Starting points of the chains.

The likelihood has several maxima, and walls where a star is no longer bound: Adam and then
Newton's method climb from the best point of a coarse grid, and every chain starts at the maximum,
scattered by the inverse Hessian.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from orrery.models.inference.hmc import Target, climb

CANDIDATES_PER_BATCH = 9


class ClusterPosterior(Protocol):
    """What is sampled: coordinates of a cluster (``n_globals``), then latent ones of its stars."""

    n_globals: int
    n_latents: int
    accept: float  # acceptance rate that HMC aims at; near 1 where the posterior is a curved ridge

    @property
    def units(self) -> Mapping[str, str]:
        """Units of the parameters of `named`, in astropy's spelling."""

    @property
    def distance_index(self) -> int | None:
        """Of a distance with a normal prior among the globals; None: there is none."""

    def log_prob(self, u: Tensor) -> Tensor:
        """ln posterior, (sets, chains), of ``u`` (sets, chains, n_globals + n_latents)."""

    def marginal(self, u: Tensor) -> Tensor:
        """The same of the globals alone, (sets, chains, n_globals), approximately."""

    def candidates(self) -> Iterator[Tensor]:
        """Points of a coarse grid of the globals, each (sets, 1, n_globals)."""

    def named(self, u: Tensor) -> dict[str, Tensor]:
        """Named parameters, each of the shape of ``u`` without its last axis."""


def starting_points(
    posterior: ClusterPosterior, chains: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The points, (sets, chains, dim), and the covariance of the globals there."""
    target = posterior.marginal
    best = newton(target, climb(target, _best(posterior), 200, 0.01))
    values, vectors = torch.linalg.eigh(_hessian(target, best))
    # a direction that the data do not constrain has the width of the prior
    covariance = vectors @ torch.diag_embed(1 / values.clamp_min(0.3)) @ vectors.mT
    shape = (len(best), chains)

    def normal(n: int) -> Tensor:
        return torch.randn(*shape, n, generator=generator, dtype=torch.float64).to(best)

    shift = normal(posterior.n_globals) @ torch.linalg.cholesky(covariance).mT
    lowest = target(best).detach() - 20
    while bool((too_low := target(best + shift) < lowest).any()):
        shift = torch.where(too_low[..., None], 0.5 * shift, shift)
    return torch.cat([best + shift, normal(posterior.n_latents)], -1), covariance


@torch.no_grad()
def _best(posterior: ClusterPosterior) -> Tensor:
    """The best of the candidates, (sets, 1, n_globals)."""
    candidates = posterior.candidates()
    best = next(candidates)
    value = posterior.marginal(best)
    while batch := list(islice(candidates, CANDIDATES_PER_BATCH)):
        u = torch.cat(batch, 1)
        highest, index = posterior.marginal(u).max(1, keepdim=True)
        better = highest > value
        u = u.gather(1, index[..., None].expand(-1, -1, u.shape[-1]))
        best, value = torch.where(better[..., None], u, best), torch.maximum(highest, value)
    return best


def newton(target: Target, u: Tensor, steps: int = 10) -> Tensor:
    """The maximum near ``u``, (sets, 1, k), by Newton's method: Adam is slow along ridges.

    A step that does not increase the target is halved, up to ten times.
    """
    for _ in range(steps):
        at = u.detach().requires_grad_()
        value = target(at)
        (gradient,) = torch.autograd.grad(value.sum(), at)
        values, vectors = torch.linalg.eigh(_hessian(target, u))
        whitened = gradient @ vectors / values.abs().clamp_min(0.3)[:, None]
        step = whitened @ vectors.mT
        with torch.no_grad():
            for _ in range(10):
                if bool((rises := target(u + step) >= value).all()):
                    break
                step = torch.where(rises[..., None], step, 0.5 * step)
            else:
                rises = target(u + step) >= value
            if not bool(rises.any()):  # nor would the next step, which is the same
                break
            u = torch.where(rises[..., None], u + step, u).detach()
    return u


def _hessian(target: Target, u: Tensor, step: float = 1e-4) -> Tensor:
    """-d^2 ln p, (sets, k, k), at ``u`` (sets, 1, k), by differences of gradients."""

    def gradient(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(target(at).sum(), at)[0]

    shifts = step * torch.eye(u.shape[-1]).to(u)
    points = u + torch.cat([-shifts, shifts])  # (sets, 2 k, k)
    batches = points.split(CANDIDATES_PER_BATCH, 1)
    low, high = torch.cat([gradient(batch) for batch in batches], 1).chunk(2, 1)
    hessian = (low - high) / (2 * step)
    return 0.5 * (hessian + hessian.mT)
