"""The density of dust as a function of standard normal latents, and the extinction of stars."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from physics.extinction import Paths, mean_and_variance
from physics.gaussian_process import GaussianProcess

HYPER = 2  # latents besides the excitations: of the mean, and of ln amplitude
LN_MAX = 5.0  # ln of the density over its prior mean, beyond which nothing is told apart


class Prior(NamedTuple):
    """ln rho = m + a s, with m ~ N(mean, mean_error) and ln a ~ N(ln amplitude, error)."""

    gp: GaussianProcess
    mean: tuple[float, float]
    amplitude: tuple[float, float]

    @property
    def n_latents(self) -> int:
        return self.gp.n_excitations + HYPER


class Stars(NamedTuple):
    """Where stars are, and what their light goes through."""

    pixel: Tensor  # (stars,)
    paths: Paths


class Density:
    """ln rho, (samples, pixels, shells), and its derivative, at latents ``u`` (samples, n)."""

    def __init__(self, prior: Prior, u: Tensor) -> None:
        self.prior = prior
        k = prior.gp.n_excitations
        self.s = prior.gp.apply(u[:, :k])
        (mean, mean_error), (amplitude, self.error) = prior.mean, prior.amplitude
        self.mean_error = mean_error
        self.a = (math.log(amplitude) + self.error * u[:, k + 1]).exp()[:, None, None]
        self.m = (mean + mean_error * u[:, k])[:, None, None]

    @property
    def log(self) -> Tensor:
        return self.m + self.a * self.s

    def jvp(self, v: Tensor) -> Tensor:
        """d ln rho, of ``v`` (samples or 1, n)."""
        k = self.prior.gp.n_excitations
        d = self.a * self.prior.gp.apply(v[:, :k])
        d = d + self.mean_error * v[:, k, None, None]
        return d + (self.error * self.a * v[:, k + 1, None, None]) * self.s

    def vjp(self, g: Tensor, mean: bool = False) -> Tensor:
        """Its transpose, of ``g`` (samples, pixels, shells); with ``mean`` that over samples."""
        field = self.a * g
        hyper = torch.stack(
            [
                self.mean_error * g.sum((1, 2)),
                self.error * (self.a * self.s * g).sum((1, 2)),
            ],
            1,
        )
        if mean:
            field, hyper = field.mean(0, keepdim=True), hyper.mean(0, keepdim=True)
        return torch.cat([self.prior.gp.adjoint(field), hyper], 1)


class Extinction:
    """The extinction of stars at latents ``u``: `models.blocks.mgvi.Linear`."""

    def __init__(self, prior: Prior, stars: Stars, u: Tensor) -> None:
        self.stars, self.density = stars, Density(prior, u)
        self.rho = self.density.log.exp()
        self.through = self.rho[:, stars.pixel] * stars.paths.lengths  # (samples, stars, shells)
        self.value = self.through.sum(2)

    def jvp(self, v: Tensor) -> Tensor:
        return (self.density.jvp(v)[:, self.stars.pixel] * self.through).sum(2)

    def vjp(self, w: Tensor) -> Tensor:
        return self.density.vjp(self._spread(w))

    def vjp_mean(self, w: Tensor) -> Tensor:
        return self.density.vjp(self._spread(w), mean=True)

    def _spread(self, w: Tensor) -> Tensor:
        """By pixel and shell: what the stars behind want of it."""
        seen = w[..., None] * self.through
        total = seen.new_zeros(len(seen), *self.rho.shape[1:])
        return total.index_add_(1, self.stars.pixel, seen)

    def variance(self, widths: Tensor) -> Tensor:
        """Over the distances of the stars, (samples, stars)."""
        along = self.rho[:, self.stars.pixel]
        return mean_and_variance(along, self.stars.paths, widths)[1]
