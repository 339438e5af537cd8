"""The density of dust as a function of standard normal latents, and the extinction of stars."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from orrery.models.dust.groups import StarGroups
from orrery.models.dust.prior import N_HYPER, Prior
from orrery.models.inference.matrix_free import LinearOperator


class Density:
    """ln rho = m - d |z| + a s, (samples, pixels, shells), at latents ``u`` (samples, n).

    ``log_nearer`` (samples, 1, 1) is that inside the inner boundary. With it as the first
    shell of every pixel there are shells + 1 of them from the Sun to the edge of the map.
    """

    def __init__(self, prior: Prior, u: Tensor) -> None:
        self.prior = prior
        excitations, hyper = u[:, :-N_HYPER], u[:, -N_HYPER:, None, None]
        (mean, mean_error), (amplitude, error) = prior.mean, prior.amplitude
        self.m = mean + mean_error * hyper[:, 0] - prior.decline * hyper[:, 4]
        self.a = (math.log(amplitude) + error * hyper[:, 1]).exp()
        self.log_nearer = prior.nearer[0] + prior.nearer[1] * hyper[:, 3]
        self.s = prior.gp.apply(excitations)
        if prior.by_scale:
            self.by_scale = prior.by_scale.apply(excitations)  # d s / d ln scale
            self.scale_offset = prior.scale[1] * hyper[:, 2] - prior.scale[0]  # of ln scale
            self.s = self.s + self.scale_offset * self.by_scale

    @property
    def log(self) -> Tensor:
        """ln of the density, 1/pc."""
        return self.m + self.a * self.s

    @property
    def log_from_sun(self) -> Tensor:
        """`log` after the shell inside the inner boundary, (samples, pixels, shells + 1)."""
        return after(self.log_nearer, self.log)

    def jvp(self, v: Tensor) -> Tensor:
        """The change of `log_from_sun` with latents, ``v`` (samples or 1, n)."""
        prior, hyper = self.prior, v[:, -N_HYPER:, None, None]
        s = prior.gp.apply(v[:, :-N_HYPER])
        if prior.by_scale:
            s = s + self.scale_offset * prior.by_scale.apply(v[:, :-N_HYPER])
            s = s + prior.scale[1] * hyper[:, 2] * self.by_scale
        mean, amplitude = prior.mean[1] * hyper[:, 0], prior.amplitude[1] * hyper[:, 1]
        mean = mean - prior.decline * hyper[:, 4]
        change = mean + self.a * s + amplitude * (self.a * self.s)
        return after(prior.nearer[1] * hyper[:, 3], change)

    def vjp(
        self, gradient: Tensor, over_samples: Callable[[Tensor], Tensor] = lambda g: g
    ) -> Tensor:
        """Gradient by latents, (samples, n), from the gradient by `log_from_sun`.

        ``over_samples``: a reduction over samples, such as their mean.
        """
        prior, nearer, gradient = self.prior, gradient[..., 0], gradient[..., 1:]
        by_s = self.a * gradient
        field = prior.gp.adjoint(over_samples(by_s))
        hyper = gradient.new_zeros(len(gradient), N_HYPER)
        hyper[:, 0] = prior.mean[1] * gradient.sum((1, 2))
        hyper[:, 1] = prior.amplitude[1] * (by_s * self.s).sum((1, 2))
        hyper[:, 3] = prior.nearer[1] * nearer.sum(1)
        hyper[:, 4] = -(prior.decline * gradient).sum((1, 2))
        if prior.by_scale:
            hyper[:, 2] = prior.scale[1] * (by_s * self.by_scale).sum((1, 2))
            field = field + prior.by_scale.adjoint(over_samples(self.scale_offset * by_s))
        return torch.cat([field, over_samples(hyper)], 1)


def after(first: Tensor, shells: Tensor) -> Tensor:
    """``shells`` (samples, pixels, shells) after ``first`` (samples or 1, 1, 1) in every pixel."""
    return torch.cat([first.expand(*shells.shape[:2], 1), shells], 2)


class Extinction:
    """The extinction of stars at latents ``u`` (samples, n): `models.inference.mgvi.Linear`."""

    def __init__(self, prior: Prior, stars: StarGroups, u: Tensor) -> None:
        self.stars, self.latents = stars, u
        self.density = Density(prior, u)
        self.rho = self.density.log_from_sun.exp()
        self.value = stars.integral(self.rho)  # (samples, stars)

    def jvp(self, v: Tensor) -> Tensor:
        return self.stars.integral(self.rho * self.density.jvp(v))

    def vjp(self, w: Tensor) -> Tensor:
        return self.density.vjp(self._log_rho_gradient(w))

    def vjp_mean(self, w: Tensor) -> Tensor:
        return self.density.vjp(self._log_rho_gradient(w), lambda g: g.mean(0, keepdim=True))

    def metric(self, weight: Tensor) -> LinearOperator:
        """v -> J^T ``weight`` J v, the mean over samples; v (any, n)."""
        if len(self.rho) == 1:
            return lambda v: self.vjp(weight * self.jvp(v))

        def product(v: Tensor) -> Tensor:
            if len(v) <= len(self.rho):
                return torch.cat([self.vjp_mean(weight * self.jvp(one)) for one in v[:, None]])
            each = [Extinction(self.density.prior, self.stars, u) for u in self.latents[:, None]]
            return torch.stack([at.vjp(weight * at.jvp(v)) for at in each]).mean(0)

        return product

    def scatter(self) -> tuple[Tensor, Tensor]:
        """Variance over the distances of the stars, and `voxel_squares`, (samples, stars)."""
        return self.stars.scatter(self.rho)

    def _log_rho_gradient(self, w: Tensor) -> Tensor:
        """By `Density.log_from_sun` of ``w`` (samples, stars), that by extinction."""
        return self.rho * self.stars.integral_adjoint(w)
