"""The density of dust as a function of standard normal latents, and the extinction of stars."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.dust.prior import HYPER, Prior
from orrery.physics.dust.extinction import Paths, mean_and_variance

Product = Callable[[Tensor], Tensor]

GRAM = 4  # matrices of the pixels are used where their rows are at most so many times the stars
LARGEST = 2**28  # numbers in all of them, 1 GB: beyond what is asked for before the start
AT_ONCE = 64  # pixels


class Stars(NamedTuple):
    """Where stars are, and what their light goes through."""

    pixel: Tensor  # (stars,)
    paths: Paths


class Density:
    """ln rho = m + a s, (samples, pixels, shells), at latents ``u`` (samples, n)."""

    def __init__(self, prior: Prior, u: Tensor) -> None:
        self.prior = prior
        excitations, hyper = u[:, :-HYPER], u[:, -HYPER:, None, None]
        (mean, mean_error), (amplitude, error) = prior.mean, prior.amplitude
        self.m = mean + mean_error * hyper[:, 0]
        self.a = (math.log(amplitude) + error * hyper[:, 1]).exp()
        self.s = prior.gp.apply(excitations)
        if prior.by_scale:
            self.by_scale = prior.by_scale.apply(excitations)  # d s / d ln scale
            self.off = prior.scale[1] * hyper[:, 2] - prior.scale[0]
            self.s = self.s + self.off * self.by_scale

    @property
    def log(self) -> Tensor:
        return self.m + self.a * self.s

    def vjp(self, g: Tensor, over_samples: Product = lambda g: g) -> Tensor:
        """From what wants ln rho to grow, ``g`` (samples, pixels, shells), to latents."""
        prior, by_s = self.prior, self.a * g
        field = prior.gp.adjoint(over_samples(by_s))
        hyper = g.new_zeros(len(g), HYPER)
        hyper[:, 0] = prior.mean[1] * g.sum((1, 2))
        hyper[:, 1] = prior.amplitude[1] * (by_s * self.s).sum((1, 2))
        if prior.by_scale:
            hyper[:, 2] = prior.scale[1] * (by_s * self.by_scale).sum((1, 2))
            field = field + prior.by_scale.adjoint(over_samples(self.off * by_s))
        return torch.cat([field, over_samples(hyper)], 1)


class Extinction:
    """The extinction of stars at latents ``u`` (samples, n): `models.inference.mgvi.Linear`.

    Of the latents a star knows the field s in the shells of its pixel, and the hyperparameters:
    ``slope`` (samples, stars, shells + HYPER) is its derivative by those.
    """

    def __init__(self, prior: Prior, stars: Stars, u: Tensor) -> None:
        self.prior, self.stars = prior, stars
        self.density = density = Density(prior, u)
        self.rho = density.log.exp()
        self.through = through = self.rho[:, stars.pixel] * stars.paths.lengths
        self.value = through.sum(2)  # (samples, stars), of (samples, stars, shells)
        by_s = density.a * through
        hyper = torch.zeros_like(by_s[..., :HYPER])
        hyper[..., 0] = prior.mean[1] * self.value
        hyper[..., 1] = prior.amplitude[1] * (by_s * density.s[:, stars.pixel]).sum(2)
        if prior.by_scale:
            hyper[..., 2] = prior.scale[1] * (by_s * density.by_scale[:, stars.pixel]).sum(2)
        self.slope = torch.cat([by_s, hyper], 2)

    def jvp(self, v: Tensor) -> Tensor:
        field = self._field(v)
        if self.prior.by_scale:
            more = self.density.off * self.prior.by_scale.apply(v[:, :-HYPER])
            field = field + torch.nn.functional.pad(more, (0, HYPER))
        return (field[:, self.stars.pixel] * self.slope).sum(2)

    def vjp(self, w: Tensor) -> Tensor:
        return self.density.vjp(self._wanted(w))

    def vjp_mean(self, w: Tensor) -> Tensor:
        return self.density.vjp(self._wanted(w), lambda g: g.mean(0, keepdim=True))

    def metric(self, weight: Tensor) -> Product:
        """v -> J^T ``weight`` J v, the mean over samples; v (any, n).

        Where stars are many, they are summed up before: a matrix for every pixel. That the scale of
        a sample is not that of the matrices is left out.
        """
        samples, n_stars, width = self.slope.shape
        rows_of_all = width * self.rho.shape[1]
        if rows_of_all > GRAM * samples * n_stars or rows_of_all * width > LARGEST:
            if samples == 1:
                return lambda v: self.vjp(weight * self.jvp(v))
            return lambda v: torch.cat(
                [self.vjp_mean(weight * self.jvp(one)) for one in v[:, None]]
            )
        rows = self.slope * (weight / samples).sqrt()[:, None]
        gram = by_pixel(rows, self.stars.pixel, self.rho.shape[1])
        return lambda v: self._latents((self._field(v).transpose(0, 1) @ gram).transpose(0, 1))

    def variance(self, widths: Tensor) -> Tensor:
        """Over the distances of the stars, (samples, stars)."""
        along = self.rho[:, self.stars.pixel]
        return mean_and_variance(along, self.stars.paths, widths)[1]

    def _wanted(self, w: Tensor) -> Tensor:
        """Of ln rho, (samples, pixels, shells), by the stars behind that want ``w``."""
        by_star = w[..., None] * self.through
        total = by_star.new_zeros(len(by_star), *self.rho.shape[1:])
        return total.index_add_(1, self.stars.pixel, by_star)

    def _field(self, v: Tensor) -> Tensor:
        """s of latents ``v`` (any, n), and the others beside it: (any, pixels, shells + HYPER)."""
        s = self.prior.gp.apply(v[:, :-HYPER])
        return torch.cat([s, v[:, None, -HYPER:].expand(-1, s.shape[1], -1)], 2)

    def _latents(self, g: Tensor) -> Tensor:
        """The transpose of `_field`."""
        field, hyper = g[..., :-HYPER].contiguous(), g[..., -HYPER:].sum(1)
        return torch.cat([self.prior.gp.adjoint(field), hyper], 1)


def by_pixel(rows: Tensor, pixel: Tensor, pixels: int) -> Tensor:
    """Sums over samples and stars of r r^T, (pixels, n, n), of ``rows`` (samples, stars, n)."""
    order = torch.argsort(pixel)
    count = torch.bincount(pixel, minlength=pixels)
    first = count.cumsum(0) - count
    gram = rows.new_zeros(pixels, rows.shape[2], rows.shape[2])
    for some in torch.argsort(count).split(AT_ONCE):  # of about as many stars each
        place = torch.arange(int(count[some].max()), device=pixel.device)
        star = order[(first[some, None] + place).clamp(max=len(order) - 1)]
        inside = rows[:, star] * (place < count[some, None])[..., None]
        inside = inside.transpose(0, 1).flatten(1, 2)  # (some, samples x stars, n)
        gram[some] = inside.mT @ inside
    return gram
