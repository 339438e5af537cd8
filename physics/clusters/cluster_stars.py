"""Stars energies from a lowered isothermal cluster, and coordinates on the sky; float64."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from orrery.physics.clusters.lowered_isothermal import (
    G,
    Model,
    at_radius,
    lowered_exponential,
    radius_of_mass,
)
from orrery.physics.constants import KM_S_PER_AU_YR


def draw(model: Model, mass: Tensor, rh: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n stars of each model: (models, n, 6), x y z in pc and their velocities in km/s.

    ``mass`` (models,), Msun; ``rh`` (models,), pc. Radii by the exact inverse of M(<r). At a radius
    the energy k across, v_t^2 / 2, is distributed as e^(-k p2) E_gamma(g + 1/2, phi - k), the
    integral of f over v_r, and given k the energy h along as E_gamma(g, phi - k - h) over v_r.
    E_gamma(a, x) falls faster than e^x, so that an exponential and a normal distribution, cut at
    escape, lie above them: rejection is exact.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    models = len(model.W0)
    r = radius_of_mass(model, uniform(models, n))
    phi = at_radius(model, r)[0].clamp_min(1e-300)
    g = model.g[:, None].expand_as(phi)
    rate = torch.ones_like(phi) if model.ra is None else 1 + (r / model.ra[:, None]) ** 2

    def energies(a: Tensor, depth: Tensor, propose: Callable[[Tensor], Tensor]) -> Tensor:
        """Energies x of density E_gamma(a, depth - x), from proposals of density e^-x."""
        energy = torch.full_like(depth, torch.nan)
        while bool((missing := energy.isnan()).any()):
            order, below = a[missing], depth[missing]
            proposed = propose(missing).clamp(max=below)
            ratio = lowered_exponential(order, below - proposed)
            ratio = ratio / lowered_exponential(order, below)
            accepted = uniform(len(below)) < ratio * proposed.exp()
            energy[missing] = torch.where(accepted, proposed, torch.nan)
        return energy

    def exponential(missing: Tensor) -> Tensor:
        cut = torch.expm1(-rate[missing] * phi[missing])
        return -torch.log1p(uniform(len(cut)) * cut) / rate[missing]

    across = energies(g + 0.5, phi, exponential)
    left = (phi - across).clamp_min(1e-300)

    def normal(missing: Tensor) -> Tensor:
        top = left[missing].sqrt().erf()
        return torch.erfinv(uniform(len(top)) * top).square()

    along = energies(g, left, normal)
    r0 = rh / model.rh
    s = (G * mass / (r0 * model.mt)).sqrt()[:, None, None]

    def sphere() -> Tensor:
        x = torch.randn(models, n, 3, generator=generator, dtype=torch.float64)
        return x / x.norm(dim=-1, keepdim=True)

    out, other = sphere(), sphere()
    side = torch.linalg.cross(out, other)
    side = side / side.norm(dim=-1, keepdim=True)
    sign = torch.where(uniform(models, n) < 0.5, -1.0, 1.0)
    velocity = (sign * (2 * along).sqrt())[..., None] * out + (2 * across).sqrt()[..., None] * side
    return torch.cat([(r * r0[:, None])[..., None] * out, s * velocity], -1)


def from_sky(sky: Tensor) -> Tensor:
    """Barycentric position, pc, and velocity, km/s, (..., 6), from coordinates on the sky.

    ``sky`` (..., 6): right ascension and declination, rad; distance, pc; proper motions mu_alpha*
    and mu_delta, mas/yr; line-of-sight velocity, km/s.
    """
    ra, dec, distance, pm_ra, pm_dec, rv = sky.unbind(-1)
    east, north, out = axes(ra, dec)
    scale = 1e-3 * KM_S_PER_AU_YR * distance
    velocity = (
        (scale * pm_ra)[..., None] * east
        + (scale * pm_dec)[..., None] * north
        + rv[..., None] * out
    )
    return torch.cat([distance[..., None] * out, velocity], -1)


def to_sky(phase: Tensor) -> Tensor:
    """The inverse of `from_sky`; right ascensions from 0 to 2 pi."""
    position, velocity = phase[..., :3], phase[..., 3:]
    distance = position.norm(dim=-1)
    ra = torch.atan2(position[..., 1], position[..., 0]).remainder(2 * math.pi)
    dec = torch.asin(position[..., 2] / distance)
    along = [(velocity * axis).sum(-1) for axis in axes(ra, dec)]
    scale = 1e-3 * KM_S_PER_AU_YR * distance
    return torch.stack([ra, dec, distance, along[0] / scale, along[1] / scale, along[2]], -1)


def axes(ra: Tensor, dec: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors to the east, to the north and outwards, each (..., 3)."""
    sin_ra, cos_ra, sin_dec, cos_dec = ra.sin(), ra.cos(), dec.sin(), dec.cos()
    zero = torch.zeros_like(ra)
    east = torch.stack([-sin_ra, cos_ra, zero], -1)
    north = torch.stack([-sin_dec * cos_ra, -sin_dec * sin_ra, cos_dec], -1)
    out = torch.stack([cos_dec * cos_ra, cos_dec * sin_ra, sin_dec], -1)
    return east, north, out
