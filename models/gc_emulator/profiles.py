"""The posterior of a cluster given its binned profiles, on unconstrained coordinates for HMC.

The likelihood is that of GCfit (Dickson et al. 2023), with two differences. Dispersions are normal
with the error of the side on which the model lies, normalised over both sides together, so that
the posterior is continuous where the model crosses a datum. The amplitude of a number density is
marginalised over a flat prior of its logarithm, not maximised: the number of stars per mass is not
known, so that the profile does not constrain the mass. Its constant extra error, GCfit's s^2,
allows for an uncertain background.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from orrery.models.gc_emulator.emulator import IsothermalEmulator
from orrery.models.gc_emulator.posterior import UNITS, parameter_names, physical, whitened
from orrery.physics.clusters.cluster_profiles import (
    PC_PER_ARCMIN_KPC,
    Profile,
    model_profile,
    projected_radius,
)
from orrery.physics.clusters.cluster_projection import Projected
from orrery.physics.clusters.lowered_isothermal import G, g_limit
from orrery.physics.constants import KM_S_PER_AU_YR

LOG_EXTRA = (-1.0, 1.0)  # prior of log10 of the extra error, 1/arcmin2; GCfit's is below 0.6


class ProfileFit(NamedTuple):
    """Models compared with a profile, (models, n)."""

    model: Tensor  # in the unit of the profile
    amplitude: Tensor  # of a number density, (models, 1), 1/arcmin2 per Msun/pc2; else 1
    error: Tensor  # of the side on which the model lies, with the extra error
    chi2: Tensor  # (models,)
    log_likelihood: Tensor  # (models,)


class ProfilesPosterior:
    """Of a cluster given its profiles, whose distance, kpc, has a normal prior: (mean, sigma).

    A `ClusterPosterior`. Globals: those of `parameter_names`, the distance and, if there is a
    number density, the logarithm of its extra error. Radii are angles, so that the model is
    evaluated at a new radius, pc, for each distance.
    """

    n_latents = 0
    accept = 0.98  # without a number density the posterior is a curved ridge
    units: ClassVar = {**UNITS, "distance": "kpc", "log10_extra": "dex(1/arcmin2)"}

    def __init__(
        self,
        emulator: IsothermalEmulator,
        profiles: Sequence[Profile],
        distance: tuple[float, float],
    ) -> None:
        self.emulator, self.profiles, self.distance = emulator, list(profiles), distance
        self.cluster_names = parameter_names(emulator)
        self.names: tuple[str, ...] = (*self.cluster_names, "distance")
        if any(profile.kind == "density" for profile in profiles):
            self.names += ("log10_extra",)
        self.n_globals, self.distance_index = len(self.names), len(self.cluster_names)
        # profiles share radii
        self.r, index = torch.cat([p.r for p in profiles]).unique(return_inverse=True)
        self.index = index.split([len(p.r) for p in profiles])

    def log_prob(self, u: Tensor) -> Tensor:
        """ln posterior, (1, chains), of ``u`` (1, chains, n_globals)."""
        fits = self.compare({name: value.flatten() for name, value in self.named(u).items()})
        log_likelihood = torch.stack([fit.log_likelihood for fit in fits]).sum(0)
        return log_likelihood.view(u.shape[:2]) - 0.5 * u.square().sum(-1)

    marginal = log_prob

    def compare(self, named: Mapping[str, Tensor]) -> list[ProfileFit]:
        """Models of these parameters, each (models,), compared with every profile."""
        model, distance = self.projected(named, self.r), named["distance"][:, None]
        extra = 10 ** named["log10_extra"][:, None] if "log10_extra" in named else 0 * distance
        fits = []
        for profile, index in zip(self.profiles, self.index, strict=True):
            at_radii = Projected(*(x[:, index] for x in model))
            values = model_profile(profile.kind, at_radii, distance)
            fits.append(compare_profile(profile, values, extra))
        return fits

    def projected(self, named: Mapping[str, Tensor], r: Tensor) -> Projected:
        """Models of these parameters, each (models,), at angles ``r`` (n,), arcmin."""
        W0, g, log_mass, log_rh, *rh_ra = (named[name] for name in self.cluster_names)
        rh = 10**log_rh
        cluster = self.emulator.cluster(W0, g, 10**log_mass, rh, *(rh / x for x in rh_ra))
        return cluster.projected(projected_radius(r, named["distance"][:, None]).square())

    def candidates(self) -> Iterator[Tensor]:
        """Points (1, 1, n_globals) of a grid about the radii and dispersions of the data."""
        rh, v2 = self._estimates()
        axes = (
            torch.tensor([2.5, 4, 5.5, 7, 8, 9, 10, 11.5, 13], dtype=torch.float64),
            torch.tensor([0.1, 0.35, 0.6, 0.85], dtype=torch.float64),
            torch.linspace(-0.3, 0.3, 5, dtype=torch.float64),
            torch.linspace(-0.3, 0.3, 5, dtype=torch.float64),
        )
        log_rh, log_mass = math.log10(rh), math.log10(3 * rh * v2 / (0.4 * G))  # virial
        for W0, g_fraction, d_log_mass, d_log_rh in torch.cartesian_prod(*axes):
            log_rh_in = (log_rh + d_log_rh).clamp(0.05, 1.45)
            four = whitened(W0, g_fraction, log_mass + d_log_mass, log_rh_in)
            yield torch.cat([four, four.new_zeros(self.n_globals - 4)])[None, None]

    def _estimates(self) -> tuple[float, float]:
        """Half-mass radius, pc, and a mean squared velocity in one dimension, (km/s)^2."""
        rh, v2 = 10**0.7, []
        for profile in self.profiles:
            r, value = profile.r, profile.value
            if profile.kind == "density":
                order = r.argsort()
                counts = torch.cumulative_trapezoid((r * value.clamp_min(0))[order], r[order])
                half = torch.searchsorted(counts, 0.5 * counts[-1:]).clamp_max(len(counts) - 1)
                projected_rh = float(r[order][half + 1])
                rh = 4 / 3 * float(PC_PER_ARCMIN_KPC * self.distance[0] * projected_rh)
            else:
                unit = 1.0 if profile.kind == "los" else KM_S_PER_AU_YR * self.distance[0]
                v2.append(float((unit * value).square().median()))
        return min(max(rh, 1.2), 25.0), sum(v2) / len(v2) if v2 else 50.0

    def named(self, u: Tensor) -> dict[str, Tensor]:
        """Named parameters, each of the shape of ``u`` without its last axis."""
        (mean, sigma), k = self.distance, len(self.cluster_names)
        values = [*physical(u[..., :k]), mean + sigma * u[..., k]]
        if "log10_extra" in self.names:
            values.append(LOG_EXTRA[0] + LOG_EXTRA[1] * u[..., k + 1])
        return dict(zip(self.names, values, strict=True))

    def whitened(self, named: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `named`, (..., n_globals)."""
        W0, g, log_mass, log_rh, *rh_ra = (named[name] for name in self.cluster_names)
        first = whitened(W0, g / g_limit(W0, *rh_ra), log_mass, log_rh, *rh_ra)
        others = [(named["distance"] - self.distance[0]) / self.distance[1]]
        if "log10_extra" in self.names:
            others.append((named["log10_extra"] - LOG_EXTRA[0]) / LOG_EXTRA[1])
        return torch.cat([first, torch.stack(others, -1)], -1)


def compare_profile(profile: Profile, model: Tensor, extra: Tensor) -> ProfileFit:
    """Models (models, n) of a profile, (n,); those of a number density are scaled to it.

    ``extra`` (models, 1): the extra error of a number density.
    """
    if profile.kind == "density":
        variance = profile.down**2 + extra**2
        projection = (profile.value * model / variance).sum(1)
        norm = (model**2 / variance).sum(1)
        # for K = projection / norm: int exp(-chi^2 / 2) dln K, whose width is 1 / (K sqrt(norm))
        amplitude = projection.clamp_min(1e-300) / norm
        scaled = amplitude[:, None] * model
        chi2 = ((profile.value - scaled) ** 2 / variance).sum(1)
        log_l = -0.5 * (chi2 + variance.log().sum(1) + norm.log()) - amplitude.log()
        return ProfileFit(scaled, amplitude[:, None], variance.sqrt(), chi2, log_l)
    error = torch.where(model > profile.value, profile.up, profile.down)
    chi2 = ((profile.value - model) / error).square().sum(1)
    norm = (0.5 * (profile.up + profile.down)).log().sum()
    return ProfileFit(model, torch.ones_like(model[:, :1]), error, chi2, -0.5 * chi2 - norm)
