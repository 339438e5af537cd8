"""Stars of a lowered isothermal cluster, and how they appear on the sky; float64."""

import torch
from torch import Tensor

from physics.lowered_isothermal import G, Model, at_radius, lowered_exponential, radius_of_mass

KMS_PER_MAS_YR_KPC = 4.740470464  # 1 au / 1 Julian year in km/s
SPLIT = 2.0  # potential above which speeds are proposed from a Maxwellian


def draw(model: Model, mass: Tensor, rh: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n stars of each isotropic model: (models, n, 6), x y z in pc and their velocities in km/s.

    ``mass`` (models,), Msun; ``rh`` (models,), pc. Radii by the exact inverse of M(<r), speeds by
    rejection from a Maxwellian where the potential is deep and from a sphere where it is not.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    models = len(model.W0)
    r = radius_of_mass(model, uniform(models, n))
    phi, _ = at_radius(model, r)
    k = torch.full_like(phi, torch.nan)  # v^2 / 2 in units of s^2
    g = model.g[:, None].expand_as(phi)
    while bool((missing := k.isnan()).any()):
        depth, index = phi[missing], g[missing]
        deep = depth > SPLIT
        gamma = 0.5 * torch.randn(len(depth), 3, generator=generator, dtype=torch.float64).square()
        tried = torch.where(deep, gamma.sum(1), depth * uniform(len(depth)) ** (2 / 3))
        # f / e^(phi - k) for the Maxwellian, f for the sphere, each over its largest value
        top = lowered_exponential(index, depth)
        value = lowered_exponential(index, (depth - tried).clamp_min(0)) / top
        value = torch.where(deep, value * tried.exp(), value) * (tried < depth)
        k[missing] = torch.where(uniform(len(depth)) < value, tried, torch.nan)
    r0 = rh / model.rh
    s = (G * mass / (r0 * model.mt)).sqrt()

    def sphere() -> Tensor:
        x = torch.randn(models, n, 3, generator=generator, dtype=torch.float64)
        return x / x.norm(dim=-1, keepdim=True)

    position = (r * r0[:, None])[..., None] * sphere()
    return torch.cat([position, ((2 * k).sqrt() * s[:, None])[..., None] * sphere()], -1)


def from_sky(sky: Tensor) -> Tensor:
    """Barycentric position, pc, and velocity, km/s, (..., 6), from what is seen.

    ``sky`` (..., 6): right ascension and declination, rad; distance, pc; proper motions mu_alpha*
    and mu_delta, mas/yr; line-of-sight velocity, km/s.
    """
    ra, dec, distance, pm_ra, pm_dec, rv = sky.unbind(-1)
    east, north, out = axes(ra, dec)
    scale = 1e-3 * KMS_PER_MAS_YR_KPC * distance
    velocity = (
        (scale * pm_ra)[..., None] * east
        + (scale * pm_dec)[..., None] * north
        + rv[..., None] * out
    )
    return torch.cat([distance[..., None] * out, velocity], -1)


def to_sky(phase: Tensor) -> Tensor:
    """The inverse of `from_sky`."""
    position, velocity = phase[..., :3], phase[..., 3:]
    distance = position.norm(dim=-1)
    ra = torch.atan2(position[..., 1], position[..., 0])
    dec = torch.asin(position[..., 2] / distance)
    along = [(velocity * axis).sum(-1) for axis in axes(ra, dec)]
    scale = 1e-3 * KMS_PER_MAS_YR_KPC * distance
    return torch.stack([ra, dec, distance, along[0] / scale, along[1] / scale, along[2]], -1)


def axes(ra: Tensor, dec: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors to the east, to the north and away from us, each (..., 3)."""
    sin_ra, cos_ra, sin_dec, cos_dec = ra.sin(), ra.cos(), dec.sin(), dec.cos()
    zero = torch.zeros_like(ra)
    east = torch.stack([-sin_ra, cos_ra, zero], -1)
    north = torch.stack([-sin_dec * cos_ra, -sin_dec * sin_ra, cos_dec], -1)
    out = torch.stack([cos_dec * cos_ra, cos_dec * sin_ra, sin_dec], -1)
    return east, north, out
