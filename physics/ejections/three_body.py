"""Ejection of a star from a cluster's core by an encounter of a single star with a binary, float64.

Valtonen & Karttunen 2006 (The Three-Body Problem, chapter 7) for encounters in which the three form
a system of energy E0 < 0 that lives long enough to forget how it was made; Grondin et al. 2023 for
their population. Masses are in Msun, lengths in pc, speeds in km/s, energies in Msun (km/s)^2.

- Three masses are drawn from one power law; two of them are the binary.
- Its separation is flat in ln a (Oepik) between 4 solar radii and 2 G <m> / sigma0^2.
- The single star and the binary have, each and in each component, the core's dispersion sigma0
  (no equipartition): their relative velocity is Maxwellian with 2^(1/2) sigma0.
- They meet at r_sep, the radius of a sphere of one mean mass: with reduced mass mu,
  E0 = mu rdot^2 / 2 - G m_single m_binary / r_sep - G m_a m_b / (2 a). Encounters with E0 >= 0 do
  not make such a system and do not eject.
- Each of the three escapes with a probability proportional to m^-3 (eq. 7.23), whoever was single.
- The escaper's speed v relative to the centre of mass has (eq. 7.19, M = m_s + m_b) the density
  f(v) ~ v (|E0| + m_s M v^2 / (2 m_b))^(-9/2), whose integral is closed:
  P(> v) = (1 + v^2 / A)^(-7/2) with A = 2 m_b |E0| / (m_s M).
- The centre of mass is at rest in the core; the binary recoils with m_s v / m_b.

All encounters count equally: their rate is not weighted by the binary's cross section.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.physics.clusters.lowered_isothermal import G

MASS_SLOPE = -1.35  # of dN/dm in the core
MASS_MIN, MASS_MAX = 0.1, 1.4  # Msun
SOLAR_RADIUS = 6.957e5 / 3.0856775814913673e13  # pc; IAU 2015
SMALLEST_SEPARATION = 4 * SOLAR_RADIUS
MOST_ENCOUNTERS = 2**18  # at once: memory
RAREST = 1e-5  # ejections per encounter below which none is drawn


class Ejections(NamedTuple):
    """Ejected stars, (n, clusters), or (n,) for one cluster."""

    m_escaper: Tensor  # Msun
    m_1: Tensor  # the two that are left as a binary
    m_2: Tensor
    separation: Tensor  # pc, of the binary before the encounter
    binding_energy: Tensor  # Msun (km/s)^2, > 0, of that binary
    E0: Tensor  # Msun (km/s)^2, < 0, of the three
    v: Tensor  # km/s, in the core
    v_inf: Tensor  # outside the cluster
    direction: Tensor  # (n, clusters, 3), isotropic unit vectors
    v_esc: Tensor  # (clusters,), km/s
    probability: Tensor  # (clusters,), of encounters that eject a star

    @property
    def kick(self) -> Tensor:
        """Velocity of the star relative to the cluster, outside of it, (n, clusters, 3), km/s."""
        return self.v_inf[..., None] * self.direction

    @property
    def v_binary(self) -> Tensor:
        """Speed of the binary in the core, opposite to the star's, km/s."""
        return self.m_escaper * self.v / (self.m_1 + self.m_2)

    @property
    def v_inf_binary(self) -> Tensor:
        """Speed of the binary outside the cluster; NaN where it does not escape."""
        return (self.v_binary.square() - self.v_esc.square()).sqrt()

    @property
    def binary_escapes(self) -> Tensor:
        return self.v_binary > self.v_esc


class Encounters(NamedTuple):
    """Encounters in one core, (n,)."""

    m_escaper: Tensor
    m_1: Tensor
    m_2: Tensor
    separation: Tensor
    binding_energy: Tensor
    E0: Tensor


def draw_ejections(
    n: int,
    rho0: Tensor | float,
    sigma0: Tensor | float,
    v_esc: Tensor | float,
    generator: torch.Generator,
) -> Ejections:
    """``n`` ejected stars of each cluster: speeds above ``v_esc`` only, by weights that are exact.

    ``rho0``, Msun/pc^3, ``sigma0`` (one component) and ``v_esc``, km/s, are numbers or (clusters,).
    An encounter is kept with its probability P(> v_esc) of ejecting, then the speed is drawn from
    the rest of its distribution by inversion: v_inf^2 = (A + v_esc^2) (u^(-2/7) - 1).
    """
    core = torch.broadcast_tensors(
        *(torch.as_tensor(x, dtype=torch.float64) for x in (rho0, sigma0, v_esc))
    )
    for name, x in zip(("rho0", "sigma0", "v_esc"), core, strict=True):
        bad = ~(torch.isfinite(x) & (x > 0))
        if bad.any():
            row = int(bad.flatten().double().argmax())
            value = float(x.flatten()[row])
            raise ValueError(f"{name} of cluster {row} is {value}: give a positive number.")
    rows = torch.stack([x.flatten() for x in core], 1).tolist()
    drawn = [_draw_for_one(n, row, rho, s, v, generator) for row, (rho, s, v) in enumerate(rows)]
    columns = zip(*(encounters for encounters, _ in drawn), strict=True)
    encounters = Encounters(*(torch.stack(x, -1).view(n, *core[2].shape) for x in columns))
    A = speed_scale(encounters).square()
    u = 1 - _uniform(A.shape, generator)  # in (0, 1]
    v_inf2 = (A + core[2].square()) * torch.expm1(-2 / 7 * u.log())
    return Ejections(
        *encounters,
        v=(v_inf2 + core[2].square()).sqrt(),
        v_inf=v_inf2.sqrt(),
        direction=isotropic(A.shape, generator),
        v_esc=core[2],
        probability=torch.tensor([p for _, p in drawn], dtype=torch.float64).view(core[2].shape),
    )


def _draw_for_one(
    n: int, row: int, rho0: float, sigma0: float, v_esc: float, generator: torch.Generator
) -> tuple[Encounters, float]:
    """``n`` encounters that eject a star, and the probability of it among all encounters."""
    kept: list[Encounters] = []
    tried, missing, total = 0, n, 0.0
    while missing > 0:
        probability = total / tried if tried else 0.2
        if tried * RAREST > 10 and probability < RAREST:
            raise ValueError(
                f"Cluster {row}: fewer than {RAREST:g} of the encounters eject a star at v_esc = "
                f"{v_esc:g} km/s and sigma0 = {sigma0:g} km/s. Check their units."
            )
        size = min(MOST_ENCOUNTERS, int(1.1 * missing / max(probability, 1e-9)) + 1024)
        encounters = draw_encounters(size, rho0, sigma0, generator)
        escaping = survival(encounters, v_esc)
        tried, total = tried + size, total + float(escaping.sum())
        rows = (_uniform((size,), generator) < escaping).nonzero()[:missing, 0]
        kept.append(Encounters(*(x[rows] for x in encounters)))
        missing -= len(rows)
    return Encounters(*(torch.cat(x) for x in zip(*kept, strict=True))), total / tried


def draw_encounters(n: int, rho0: float, sigma0: float, generator: torch.Generator) -> Encounters:
    """Encounters of single stars with binaries, those with E0 >= 0 too."""
    m_a, m_b, single = m = draw_masses((3, n), generator)
    mean = mean_mass()
    widest = 2 * G * mean / sigma0**2
    if widest <= SMALLEST_SEPARATION:
        raise ValueError(
            f"sigma0 = {sigma0:g} km/s leaves no binaries in the core. Check its unit."
        )
    span = math.log(widest / SMALLEST_SEPARATION)
    separation = SMALLEST_SEPARATION * torch.exp(span * _uniform((n,), generator))
    binding = G * m_a * m_b / (2 * separation)
    r_sep = (3 * mean / (4 * math.pi * rho0)) ** (1 / 3)
    components = torch.randn((3, n), generator=generator, dtype=torch.float64)
    rdot2 = 2 * sigma0**2 * components.square().sum(0)
    binary = m_a + m_b
    total = binary + single
    E0 = single * binary * (rdot2 / (2 * total) - G / r_sep) - binding

    rates = 1 / (m * m * m)  # of escape, eq. 7.23
    level = _uniform((n,), generator) * rates.sum(0)
    escaper = (level > rates[0]).long() + (level > rates[0] + rates[1]).long()
    first, second = (escaper + 1) % 3, (escaper + 2) % 3
    m_s, m_1, m_2 = (m.gather(0, i[None])[0] for i in (escaper, first, second))
    return Encounters(m_s, m_1, m_2, separation, binding, E0)


def speed_scale(encounters: Encounters) -> Tensor:
    """A^(1/2), km/s: the speed at which P(> v) has fallen to 2^(-7/2)."""
    e = encounters
    left = e.m_1 + e.m_2
    return (2 * left * e.E0.abs() / (e.m_escaper * (e.m_escaper + left))).sqrt()


def survival(encounters: Encounters, v: Tensor | float) -> Tensor:
    """Probability that the star leaves with more than ``v`` km/s; 0 where E0 >= 0."""
    ratio = 1 + (v / speed_scale(encounters)) ** 2
    return torch.where(encounters.E0 < 0, 1 / (ratio**3 * ratio.sqrt()), 0.0)


def draw_masses(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Masses of stars in the core, Msun: a power law, by inversion."""
    power = MASS_SLOPE + 1
    low, high = MASS_MIN**power, MASS_MAX**power
    return (low + (high - low) * _uniform(shape, generator)) ** (1 / power)


def mean_mass() -> float:
    """Of `draw_masses`, Msun."""
    a, b = MASS_SLOPE + 1, MASS_SLOPE + 2
    return (MASS_MAX**b - MASS_MIN**b) / (MASS_MAX**a - MASS_MIN**a) * a / b


def isotropic(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Unit vectors (*shape, 3)."""
    z = 2 * _uniform(shape, generator) - 1
    angle = 2 * math.pi * _uniform(shape, generator)
    R = (1 - z.square()).sqrt()
    return torch.stack([R * angle.cos(), R * angle.sin(), z], -1)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)
