"""The density of dust as a function of standard normal latents, and the extinction of stars."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.dust.prior import N_HYPER, Prior
from orrery.models.inference.matrix_free import LinearOperator
from orrery.physics.dust.extinction import Paths, mean_and_variance

# A matrix per pixel is used where these have at most so many rows per star and sample, and at most
# so many numbers: 1 GB, beyond the memory that is checked before the start.
MAX_ROWS_PER_STAR, MAX_NUMBERS = 4, 2**28
PIXELS_AT_ONCE = 64


class Stars(NamedTuple):
    """Where stars are, and the paths of their light."""

    pixel: Tensor  # (stars,)
    paths: Paths


class Density:
    """ln rho = m + a s, (samples, pixels, shells), at latents ``u`` (samples, n)."""

    def __init__(self, prior: Prior, u: Tensor) -> None:
        self.prior = prior
        excitations, hyper = u[:, :-N_HYPER], u[:, -N_HYPER:, None, None]
        (mean, mean_error), (amplitude, error) = prior.mean, prior.amplitude
        self.m = mean + mean_error * hyper[:, 0]
        self.a = (math.log(amplitude) + error * hyper[:, 1]).exp()
        self.s = prior.gp.apply(excitations)
        if prior.by_scale:
            self.by_scale = prior.by_scale.apply(excitations)  # d s / d ln scale
            self.scale_offset = prior.scale[1] * hyper[:, 2] - prior.scale[0]  # of ln scale
            self.s = self.s + self.scale_offset * self.by_scale

    @property
    def log(self) -> Tensor:
        """ln of the density, 1/pc."""
        return self.m + self.a * self.s

    def vjp(
        self, gradient: Tensor, over_samples: Callable[[Tensor], Tensor] = lambda g: g
    ) -> Tensor:
        """Gradient by latents, (samples, n), of that by ln rho, (samples, pixels, shells).

        ``over_samples``: a reduction over samples, such as their mean.
        """
        prior, by_s = self.prior, self.a * gradient
        field = prior.gp.adjoint(over_samples(by_s))
        hyper = gradient.new_zeros(len(gradient), N_HYPER)
        hyper[:, 0] = prior.mean[1] * gradient.sum((1, 2))
        hyper[:, 1] = prior.amplitude[1] * (by_s * self.s).sum((1, 2))
        if prior.by_scale:
            hyper[:, 2] = prior.scale[1] * (by_s * self.by_scale).sum((1, 2))
            field = field + prior.by_scale.adjoint(over_samples(self.scale_offset * by_s))
        return torch.cat([field, over_samples(hyper)], 1)


class Extinction:
    """The extinction of stars at latents ``u`` (samples, n): `models.inference.mgvi.Linear`.

    It depends on the field s in the shells of a star's pixel, and on the hyperparameters:
    ``slope`` (samples, stars, shells + N_HYPER) is its derivative by those.
    """

    def __init__(self, prior: Prior, stars: Stars, u: Tensor) -> None:
        self.prior, self.stars = prior, stars
        self.density = density = Density(prior, u)
        self.rho = density.log.exp()
        self.by_shell = by_shell = self.rho[:, stars.pixel] * stars.paths.lengths
        self.value = by_shell.sum(2)  # (samples, stars), of (samples, stars, shells)
        by_s = density.a * by_shell
        hyper = torch.zeros_like(by_s[..., :N_HYPER])
        hyper[..., 0] = prior.mean[1] * self.value
        hyper[..., 1] = prior.amplitude[1] * (by_s * density.s[:, stars.pixel]).sum(2)
        if prior.by_scale:
            hyper[..., 2] = prior.scale[1] * (by_s * density.by_scale[:, stars.pixel]).sum(2)
        self.slope = torch.cat([by_s, hyper], 2)

    def jvp(self, v: Tensor) -> Tensor:
        field = self._field(v)
        if self.prior.by_scale:
            change = self.density.scale_offset * self.prior.by_scale.apply(v[:, :-N_HYPER])
            field = field + torch.nn.functional.pad(change, (0, N_HYPER))
        return (field[:, self.stars.pixel] * self.slope).sum(2)

    def vjp(self, w: Tensor) -> Tensor:
        return self.density.vjp(self._log_rho_gradient(w))

    def vjp_mean(self, w: Tensor) -> Tensor:
        return self.density.vjp(self._log_rho_gradient(w), lambda g: g.mean(0, keepdim=True))

    def metric(self, weight: Tensor) -> LinearOperator:
        """v -> J^T ``weight`` J v, the mean over samples; v (any, n).

        Many stars are summed up before, to a matrix for every pixel. Not in it: that the scale of a
        sample is not that of the matrices.
        """
        samples, n_stars, width = self.slope.shape
        n_rows = width * self.rho.shape[1]
        if n_rows > MAX_ROWS_PER_STAR * samples * n_stars or n_rows * width > MAX_NUMBERS:
            if samples == 1:
                return lambda v: self.vjp(weight * self.jvp(v))
            return lambda v: torch.cat(
                [self.vjp_mean(weight * self.jvp(one)) for one in v[:, None]]
            )
        rows = self.slope * (weight / samples).sqrt()[:, None]
        gram = gram_by_pixel(rows, self.stars.pixel, self.rho.shape[1])
        return lambda v: self._latents((self._field(v).transpose(0, 1) @ gram).transpose(0, 1))

    def variance(self, widths: Tensor) -> Tensor:
        """Over the distances of the stars, (samples, stars)."""
        rho_of_star = self.rho[:, self.stars.pixel]
        return mean_and_variance(rho_of_star, self.stars.paths, widths)[1]

    def _log_rho_gradient(self, w: Tensor) -> Tensor:
        """By ln rho, (samples, pixels, shells), of ``w`` (samples, stars), that by extinction."""
        by_star = w[..., None] * self.by_shell
        total = by_star.new_zeros(len(by_star), *self.rho.shape[1:])
        return total.index_add_(1, self.stars.pixel, by_star)

    def _field(self, v: Tensor) -> Tensor:
        """s of latents ``v`` (any, n), then hyperparameters: (any, pixels, shells + N_HYPER)."""
        s = self.prior.gp.apply(v[:, :-N_HYPER])
        return torch.cat([s, v[:, None, -N_HYPER:].expand(-1, s.shape[1], -1)], 2)

    def _latents(self, g: Tensor) -> Tensor:
        """The transpose of `_field`."""
        field, hyper = g[..., :-N_HYPER].contiguous(), g[..., -N_HYPER:].sum(1)
        return torch.cat([self.prior.gp.adjoint(field), hyper], 1)


def gram_by_pixel(rows: Tensor, pixel: Tensor, n_pixels: int) -> Tensor:
    """Sums over samples and stars of r r^T, (pixels, n, n), of ``rows`` (samples, stars, n)."""
    order = torch.argsort(pixel)
    count = torch.bincount(pixel, minlength=n_pixels)
    first = count.cumsum(0) - count
    gram = rows.new_zeros(n_pixels, rows.shape[2], rows.shape[2])
    for pixels in torch.argsort(count).split(PIXELS_AT_ONCE):  # of about as many stars each
        place = torch.arange(int(count[pixels].max()), device=pixel.device)
        star = order[(first[pixels, None] + place).clamp(max=len(order) - 1)]
        inside = rows[:, star] * (place < count[pixels, None])[..., None]
        inside = inside.transpose(0, 1).flatten(1, 2)  # (pixels, samples x stars, n)
        gram[pixels] = inside.mT @ inside
    return gram
