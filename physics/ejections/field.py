"""The smooth field among which ejected stars are seen: thin disc, thick disc and stellar halo.

Positions follow measured densities, velocities Jeans' equations in the potential, so that the
field is close to equilibrium in it. There is no bulge or bar: within about 3 kpc of the centre the
discs stand for them.

- Discs: exponential in R and |z| (Bland-Hawthorn & Gerhard 2016, ARA&A 54, 529, table 2 and section
  5.1). The vertical Jeans equation of an exponential layer gives sigma_z at each star; sigma_R is
  a fixed multiple of it (their section 5.4: 35 to 25 km/s in the thin, 50 to 50 in the thick disc),
  sigma_phi follows from the epicyclic approximation and the mean rotation from the radial Jeans
  equation (asymmetric drift), with sigma_R^2 falling as the surface density.
- Halo: a broken power law of slopes 2.3 and 4.6 at 27 kpc with axis ratio 0.6 (Deason, Belokurov &
  Evans 2011, MNRAS 416, 2903), without rotation. The anisotropy beta is 0.8 within 25 kpc and falls
  to 0.3 at 100 kpc (Bird et al. 2019, AJ 157, 104); sigma_r follows from the spherical Jeans
  equation.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from orrery.physics.ejections.three_body import isotropic
from orrery.physics.milky_way.axisymmetric import acceleration
from orrery.physics.milky_way.potentials import milky_way

COMPONENTS = ("thin_disc", "thick_disc", "halo")
# A catalogue of halo stars with discs in it; by mass they are 0.83, 0.14 and 0.03 (Bland-Hawthorn &
# Gerhard 2016; Deason, Belokurov & Sanders 2019, MNRAS 490, 3426)
FRACTIONS = {"thin_disc": 0.2, "thick_disc": 0.3, "halo": 0.5}

HALO_SLOPES, HALO_BREAK, HALO_FLATTENING = (2.3, 4.6), 27.0, 0.6
HALO_MIN, HALO_MAX = 0.5, 150.0  # kpc
INNER_BETA, OUTER_BETA = (25.0, 0.8), (100.0, 0.3)  # kpc, anisotropy
MOST_ROUNDS = 100  # of drawing velocities until all are bound


class Disc(NamedTuple):
    """An exponential disc."""

    length: float  # kpc
    height: float  # kpc
    stretch: float  # sigma_R / sigma_z


DISCS = {"thin_disc": Disc(2.6, 0.3, 1.4), "thick_disc": Disc(2.0, 0.9, 1.0)}


class Potential(Protocol):
    """A static axisymmetric potential."""

    def phi(self, R: Tensor, z: Tensor) -> Tensor: ...  # (km/s)^2, from kpc
    def accelerations(
        self, x: Tensor, y: Tensor, z: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...  # (km/s)^2 / kpc


def draw_field(
    n: int,
    generator: torch.Generator,
    potential: Potential | None = None,
    fractions: Mapping[str, float] = FRACTIONS,
) -> tuple[Tensor, Tensor, Tensor]:
    """``n`` field stars: positions (n, 3), kpc, velocities (n, 3), km/s, components (n,).

    In the right-handed Galactocentric frame in which the Sun is at negative x and discs rotate to
    positive y there. ``fractions`` of the stars are in each of ``COMPONENTS``; the third output is
    their position in it. All stars are bound in the ``potential``, by default the package's base,
    and close to equilibrium in it. Float64.
    """
    potential = milky_way("mwpotential2014").axisymmetric if potential is None else potential
    if set(fractions) != set(COMPONENTS):
        raise ValueError(f"fractions are of {', '.join(fractions)}: give {', '.join(COMPONENTS)}.")
    shares = torch.tensor([float(fractions[c]) for c in COMPONENTS], dtype=torch.float64)
    if not (torch.isfinite(shares).all() and (shares >= 0).all() and abs(shares.sum() - 1) < 1e-6):
        raise ValueError(f"fractions are {shares.tolist()}: give numbers >= 0 whose sum is 1.")
    component = torch.multinomial(shares, n, replacement=True, generator=generator)
    x = torch.empty((n, 3), dtype=torch.float64)
    v = torch.empty_like(x)
    for index, name in enumerate(COMPONENTS):
        rows = (component == index).nonzero()[:, 0]
        if name == "halo":
            x[rows], v[rows] = _draw_halo(len(rows), potential, generator)
        else:
            x[rows], v[rows] = _draw_disc(len(rows), DISCS[name], potential, generator)
    return x, v, component


def _draw_disc(
    n: int, disc: Disc, potential: Potential, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    R = -disc.length * _uniform((2, n), generator).log().sum(0)  # R exp(-R / length)
    angle = 2 * math.pi * _uniform((n,), generator)
    z = -disc.height * _uniform((n,), generator).log()
    z = torch.where(torch.rand(n, generator=generator) < 0.5, z, -z)
    sine, cosine = angle.sin(), angle.cos()
    x = torch.stack([R * cosine, R * sine, z], -1)
    rotation, sigma = disc_motion(R, z, disc, potential)

    def draw(rows: Tensor) -> Tensor:
        noise = torch.randn((len(rows), 3), generator=generator, dtype=torch.float64)
        v_R, v_phi, v_z = (sigma[rows] * noise).unbind(-1)
        v_phi = v_phi + rotation[rows]  # clockwise as seen from the north
        sin, cos = sine[rows], cosine[rows]
        return torch.stack([v_R * cos + v_phi * sin, v_R * sin - v_phi * cos, v_z], -1)

    return x, _bound(x, potential, draw)


def disc_motion(R: Tensor, z: Tensor, disc: Disc, potential: Potential) -> tuple[Tensor, Tensor]:
    """Mean rotation (n,) and dispersions along R, phi and z (n, 3), km/s, at R, z, kpc."""
    nodes, weights = np.polynomial.laguerre.laggauss(24)
    s, w = torch.from_numpy(nodes), torch.from_numpy(weights)
    height = z.abs()[:, None] + disc.height * s
    rise = potential.phi(R[:, None].expand_as(height), height) - potential.phi(R, z)[:, None]
    sigma_z2 = (rise * w).sum(-1)  # integral of nu dphi/dz above z, by parts, over nu
    sigma_R2 = disc.stretch**2 * sigma_z2

    def v_circ2(R: Tensor) -> Tensor:
        x = torch.stack([R, torch.zeros_like(R), z], -1)
        return -R * acceleration(potential, x)[:, 0]

    speed2 = v_circ2(R)
    step = 0.01
    slope = (v_circ2(R * (1 + step)).log() - v_circ2(R * (1 - step)).log()) / (2 * step)
    ratio = (0.5 + 0.25 * slope).clamp(0.25, 1.0)  # kappa^2 / (4 Omega^2) = sigma_phi^2 / sigma_R^2
    drift = sigma_R2 * (1 - ratio - 2 * R / disc.length)
    rotation = (speed2 + drift).clamp_min(0).sqrt()
    return rotation, torch.stack([sigma_R2, ratio * sigma_R2, sigma_z2], -1).sqrt()


def _draw_halo(n: int, potential: Potential, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    # m^2 = R^2 + (z / q)^2 has the density m^2 rho(m); stars beyond HALO_MAX are drawn again
    parts = [torch.empty((0, 3), dtype=torch.float64)]
    missing = n
    while missing > 0:
        m = _draw_broken_power(missing + 64, generator)
        x = m[:, None] * isotropic((len(m),), generator)
        x[:, 2] *= HALO_FLATTENING
        parts.append(x[x.norm(dim=-1) < HALO_MAX][:missing])
        missing -= len(parts[-1])
    x = torch.cat(parts)
    r = x.norm(dim=-1)
    radial = x / r[:, None]
    sigma = halo_dispersion(r, potential)
    tangential = sigma * (1 - anisotropy(r)).sqrt()

    def draw(rows: Tensor) -> Tensor:
        noise = torch.randn((len(rows), 3), generator=generator, dtype=torch.float64)
        along = (noise * radial[rows]).sum(-1, keepdim=True) * radial[rows]
        return sigma[rows, None] * along + tangential[rows, None] * (noise - along)

    return x, _bound(x, potential, draw)


def _draw_broken_power(n: int, generator: torch.Generator) -> Tensor:
    """Elliptical radii, kpc, from HALO_MIN to HALO_MAX / q: density m^2 rho(m), by inversion."""
    inner, outer = (3 - slope for slope in HALO_SLOPES)
    low, high = HALO_MIN / HALO_BREAK, HALO_MAX / HALO_FLATTENING / HALO_BREAK
    inside = (1 - low**inner) / inner
    outside = (high**outer - 1) / outer
    level = (inside + outside) * _uniform((n,), generator)
    lower = (low**inner + inner * level).clamp_max(1) ** (1 / inner)
    upper = (1 + outer * (level - inside).clamp_min(0)) ** (1 / outer)
    return HALO_BREAK * torch.where(level < inside, lower, upper)


def anisotropy(r: Tensor) -> Tensor:
    """beta = 1 - sigma_t^2 / sigma_r^2 of the halo, at r, kpc: linear in ln r between two radii."""
    (near, inner), (far, outer) = INNER_BETA, OUTER_BETA
    return torch.lerp(
        torch.tensor(inner, dtype=r.dtype),
        torch.tensor(outer, dtype=r.dtype),
        ((r / near).log() / math.log(far / near)).clamp(0, 1),
    )


def halo_dispersion(r: Tensor, potential: Potential) -> Tensor:
    """Radial dispersion of the halo, km/s, at r, kpc, by the spherical Jeans equation.

    rho sigma_r^2 f = int_r rho f g dr with d ln f / d ln r = 2 beta (Binney & Tremaine 2008, eq.
    4.216); the inward pull g is averaged over the sphere.
    """
    log_r = torch.linspace(math.log(0.1 * HALO_MIN), math.log(2000.0), 1500, dtype=torch.float64)
    grid = log_r.exp()
    nodes, weights = np.polynomial.legendre.leggauss(12)
    cosine = torch.from_numpy(0.5 + 0.5 * nodes)
    zero = torch.zeros_like(cosine)
    directions = torch.stack([(1 - cosine.square()).sqrt(), zero, cosine], -1)
    pull = -(acceleration(potential, grid[:, None, None] * directions) * directions).sum(-1)
    g = pull @ torch.from_numpy(0.5 * weights)
    slope = torch.where(grid < HALO_BREAK, HALO_SLOPES[0], HALO_SLOPES[1])
    growth = 2 * anisotropy(grid) - slope  # of ln(rho f) with ln r
    steps = torch.diff(log_r)
    log_weight = torch.cat(
        [torch.zeros(1), torch.cumsum(0.5 * (growth[1:] + growth[:-1]) * steps, 0)]
    )
    integrand = log_weight.exp() * g * grid
    pieces = 0.5 * (integrand[1:] + integrand[:-1]) * steps
    above = torch.cat([pieces.flip(0).cumsum(0).flip(0), torch.zeros(1)])
    sigma = (above / log_weight.exp()).sqrt()
    return torch.from_numpy(np.interp(r.log(), log_r, sigma))


def _bound(x: Tensor, potential: Potential, draw: Callable[[Tensor], Tensor]) -> Tensor:
    """Velocities by ``draw(rows)``, again for those that are not bound."""
    rows = torch.arange(len(x))
    v = draw(rows)
    depth = -potential.phi(x[:, :2].norm(dim=-1), x[:, 2])
    for _ in range(MOST_ROUNDS):
        rows = (0.5 * v.square().sum(-1) >= depth).nonzero()[:, 0]
        if not len(rows):
            return v
        v[rows] = draw(rows)
    raise ValueError(
        f"{len(rows)} field stars are not bound after {MOST_ROUNDS} draws: the potential is too "
        "shallow for the Galaxy's stars."
    )


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """In (0, 1]."""
    return 1 - torch.rand(shape, generator=generator, dtype=torch.float64)
