"""Potentials of the Milky Way, by name: a static axisymmetric base and six variations.

Lengths are in kpc, velocities in km/s, times in Gyr (0 is today, the past is negative), potentials
in (km/s)^2, accelerations in (km/s)^2 / kpc: times `KPC_PER_GYR` they are km/s per Gyr.

The axes are those of astropy's Galactocentric frame: the Sun is at x = -8.122 kpc and moves to
positive y. So discs rotate with x v_y - y v_x < 0, and the angular momentum is counted as
**L_z = y v_x - x v_y**, positive for stars of the disc, everywhere in this package.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from orrery.physics.milky_way.axisymmetric import KPC_PER_GYR, Axisymmetric
from orrery.physics.milky_way.magellanic_cloud import WithCloud, cloud_orbit
from orrery.physics.milky_way.radial_tables import RadialTable
from orrery.physics.milky_way.rotating import Bar, SpiralArms

__all__ = ["KPC_PER_GYR", "POTENTIALS", "Potential", "milky_way"]

POTENTIALS = ("mwpotential2014", "bar", "spiral", "lmc", "heavy_halo", "oblate", "prolate")
Potential = Axisymmetric | Bar | SpiralArms | WithCloud

# MWPotential2014 of Bovy (2015, ApJS 216, 29), Table 1: the circular velocity at 8 kpc is 220 km/s,
# and bulge, disc and halo contribute these fractions of its square.
REFERENCE_RADIUS, REFERENCE_VELOCITY = 8.0, 220.0  # kpc, km/s
BULGE_FRACTION, DISC_FRACTION, HALO_FRACTION = 0.05, 0.60, 0.35
BULGE_SLOPE, BULGE_CUTOFF = 1.8, 1.9  # density r^-1.8 exp(-(r / 1.9 kpc)^2)
DISC_LENGTH, DISC_HEIGHT = 3.0, 0.28  # kpc
HALO_SCALE = 16.0  # kpc

HEAVY = 1.5  # times the mass of the halo, about the range of its estimates
# A density 1 + beta P_2(cos theta) times the spherical one, which falls as r^-2 at its scale
# radius, is there constant on ellipses of axis ratio q, with q^2 = (1 + beta) / (1 - beta / 2).
OBLATE, PROLATE = 0.8, 1.2

Function = Callable[[Tensor], Tensor]


def milky_way(name: str) -> Potential:
    """The potential of that name, one of `POTENTIALS`."""
    if name not in POTENTIALS:
        raise ValueError(f"no potential {name!r}: choose one of {', '.join(POTENTIALS)}")
    return _potential(name)


@cache
def _potential(name: str) -> Potential:
    if name == "heavy_halo":
        return _base(halo=HEAVY)
    if name in ("oblate", "prolate"):
        return _base(axis_ratio=OBLATE if name == "oblate" else PROLATE)
    base = _base() if name == "mwpotential2014" else _potential("mwpotential2014").axisymmetric
    if name == "bar":
        return Bar(base)
    if name == "spiral":
        return SpiralArms(base)
    if name == "lmc":
        return WithCloud(base, cloud_orbit(base))
    return base


def _base(halo: float = 1.0, axis_ratio: float = 1.0) -> Axisymmetric:
    """MWPotential2014 with ``halo`` times the mass of its halo, which is flattened."""
    square = torch.tensor([REFERENCE_RADIUS**2], dtype=torch.float64)
    speed = REFERENCE_VELOCITY**2
    # the square of the circular velocity is 2 r^2 dphi/d(r^2)
    bulge_mass = BULGE_FRACTION * speed / float(2 * square * bulge(1.0)[1](square))
    halo_mass = halo * HALO_FRACTION * speed / float(2 * square * nfw_halo(1.0)[1](square))
    reach = REFERENCE_RADIUS**2 + (DISC_LENGTH + DISC_HEIGHT) ** 2
    bulge_phi, bulge_slope = bulge(bulge_mass)
    halo_phi, halo_slope = nfw_halo(halo_mass)
    strength, strength_slope = None, None
    if axis_ratio != 1:
        beta = (axis_ratio**2 - 1) / (1 + 0.5 * axis_ratio**2)
        strength, strength_slope = map(RadialTable.of, nfw_quadrupole(beta * halo_mass))
    return Axisymmetric(
        spherical=RadialTable.of(lambda y: bulge_phi(y) + halo_phi(y)),
        spherical_slope=RadialTable.of(lambda y: bulge_slope(y) + halo_slope(y)),
        disc_mass=DISC_FRACTION * speed * reach**1.5 / REFERENCE_RADIUS**2,
        disc_length=DISC_LENGTH,
        disc_height=DISC_HEIGHT,
        quadrupole=strength,
        quadrupole_slope=strength_slope,
    )


def bulge(mass: float) -> tuple[Function, Function]:
    """Potential, and its slope, of r^2; ``mass`` is G times the total, kpc (km/s)^2."""
    p, q = (3 - BULGE_SLOPE) / 2, (2 - BULGE_SLOPE) / 2
    outer = mass / BULGE_CUTOFF * _gamma(q) / _gamma(p)

    def inner_fraction(y: Tensor) -> Tensor:
        return torch.special.gammainc(torch.full_like(y, p), y / BULGE_CUTOFF**2)

    def phi(y: Tensor) -> Tensor:
        outside = torch.special.gammaincc(torch.full_like(y, q), y / BULGE_CUTOFF**2)
        return -mass * inner_fraction(y) / y.sqrt() - outer * outside

    def slope(y: Tensor) -> Tensor:
        return 0.5 * mass * inner_fraction(y) * y**-1.5

    return phi, slope


def nfw_halo(mass: float) -> tuple[Function, Function]:
    """Potential, and its slope, of r^2, of Navarro, Frenk & White (1997, ApJ 490, 493).

    ``mass`` is G times 4 pi rho_s r_s^3, kpc (km/s)^2.
    """

    def phi(y: Tensor) -> Tensor:
        return -mass * torch.log1p(y.sqrt() / HALO_SCALE) / y.sqrt()

    def slope(y: Tensor) -> Tensor:
        s = y.sqrt() / HALO_SCALE
        near = sum((-1) ** k * (k - 1) / k * s**k for k in range(2, 16))
        inside = torch.where(s < 0.05, near, torch.log1p(s) - s / (1 + s))
        return 0.5 * mass * inside * y**-1.5

    return phi, slope


def nfw_quadrupole(mass: float) -> tuple[Function, Function]:
    """Potential over r^2 P_2(cos theta), and its slope, of r^2, of an NFW density times P_2.

    Binney & Tremaine (2008), eq. 2.95; series where the terms of the closed integrals cancel.
    """

    def inner(s: Tensor) -> Tensor:  # int_0^s t^3 / (1 + t)^2 dt
        near = sum((-1) ** k * (k + 1) / (k + 4) * s ** (k + 4) for k in range(24))
        closed = s * s / 2 - 2 * s + 3 * torch.log1p(s) + 1 / (1 + s) - 1
        return torch.where(s < 0.2, near, closed)

    def outer(s: Tensor) -> Tensor:  # int_s^inf t^-2 / (1 + t)^2 dt
        far = sum((-1) ** k * (k + 1) / (k + 3) * s ** -(k + 3) for k in range(24))
        return torch.where(s > 6, far, 1 / s + 1 / (1 + s) - 2 * torch.log1p(1 / s))

    def strength(y: Tensor) -> Tensor:
        s = y.sqrt() / HALO_SCALE
        return -mass / (5 * HALO_SCALE**3) * (inner(s) * s**-5 + outer(s))

    def slope(y: Tensor) -> Tensor:
        s = y.sqrt() / HALO_SCALE
        return mass / (2 * HALO_SCALE**5) * inner(s) * s**-7

    return strength, slope


def _gamma(p: float) -> float:
    return float(torch.lgamma(torch.tensor(p, dtype=torch.float64)).exp())
