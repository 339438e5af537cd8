"""Stars thrown out of globular clusters over the last Gyr, and how a survey would observe them."""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from orrery.physics.ejections.clusters import Clusters
from orrery.physics.ejections.structure import CoreStructure, core_structure
from orrery.physics.ejections.three_body import draw_ejections, isotropic
from orrery.physics.milky_way.actions import Actions, staeckel_actions
from orrery.physics.milky_way.axisymmetric import KPC_PER_GYR
from orrery.physics.milky_way.frames import galactocentric
from orrery.physics.milky_way.orbits import Potential, default_step, integrate
from orrery.physics.milky_way.potentials import milky_way

ORBIT_DRAWS = 16  # of a cluster's position and velocity, within their errors
N_SPEEDS = 4000  # of each cluster, to know the distribution of its speeds
PERIODS, ROTATION = 30.0, 220.0  # of a cluster's orbit, at so many km/s
COARSENESS = 6.0  # of the steps of orbits, over those that err by 0.1 pc
SHORTEST_STEP = 2e-4  # Gyr
ORBIT_TIMES = 64  # on each of these orbits, at which it may eject stars


class Kick(Protocol):
    """Speeds with which stars leave clusters."""

    def __call__(self, n: int, core: CoreStructure, generator: torch.Generator) -> Tensor:
        """Velocities outside of the cluster, (n, clusters, 3), km/s."""


class Orbits(NamedTuple):
    """Places of clusters on their orbits, (n, clusters) or (n, clusters, 3)."""

    x: Tensor  # kpc
    v: Tensor  # km/s
    time: Tensor  # Gyr, negative: before today
    span: Tensor  # (clusters,) Gyr, over which they were followed
    duration: float  # Gyr, over which they eject stars


class Ejected(NamedTuple):
    """Stars when they leave their cluster, (n, clusters) or (n, clusters, 3)."""

    x: Tensor  # kpc
    v: Tensor  # km/s
    time: Tensor  # Gyr, negative: before today
    flight: Tensor  # Gyr, that moves them on to today; see `eject`


def three_body_kicks(n: int, core: CoreStructure, generator: torch.Generator) -> Tensor:
    """Of encounters of three stars in the core, see `three_body`."""
    return draw_ejections(n, core.rho0, core.sigma0, core.v_esc, generator).kick


def lognormal_kicks(median: float, sigma: float) -> Kick:
    """Isotropic kicks of a lognormal speed, the same for all clusters; ``median`` in km/s."""

    def kicks(n: int, core: CoreStructure, generator: torch.Generator) -> Tensor:
        shape = n, len(core.rho0)
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        speed = median * torch.exp(sigma * normal)
        return speed[..., None] * isotropic(shape, generator)

    return kicks


def cluster_draws(
    n: int, clusters: Clusters, generator: torch.Generator, errors: bool = True
) -> tuple[Tensor, Tensor]:
    """Positions, kpc, and velocities, km/s, (n, clusters, 3), within errors; the first without."""
    shape = n, len(clusters)
    normal = torch.randn((4, *shape), generator=generator, dtype=torch.float64)
    normal[:, 0 if errors else slice(None)] = 0
    rho = clusters.pm_corr
    across = rho * normal[1] + (1 - rho.square()).sqrt() * normal[2]
    return galactocentric(
        clusters.ra.expand(shape),
        clusters.dec.expand(shape),
        (clusters.distance + clusters.e_distance * normal[0]).clamp_min(0.1 * clusters.distance),
        clusters.pmra + clusters.e_pmra * normal[1],
        clusters.pmdec + clusters.e_pmdec * across,
        clusters.v_los + clusters.e_v_los * normal[3],
    )


def cluster_orbits(
    clusters: Clusters,
    potential: str,
    duration: float,
    generator: torch.Generator,
    errors: bool = True,
) -> Orbits:
    """Clusters at random times of the last ``duration`` Gyr: (ORBIT_DRAWS * ORBIT_TIMES, clusters).

    Orbits of `cluster_draws`, within their ``errors`` or without, each integrated back and stopped
    at a random time in each of ORBIT_TIMES equal parts. In a static potential `PERIODS` periods
    tell all of an orbit.
    """
    x, v = cluster_draws(ORBIT_DRAWS, clusters, generator, errors)
    galaxy = milky_way(potential)
    span = x.new_full((len(clusters),), duration)
    if galaxy.static:
        period = 2 * math.pi * x[0].norm(dim=-1) / (ROTATION * KPC_PER_GYR)
        span = torch.minimum(span, PERIODS * period)
    shape = x.shape[:2]
    now = torch.zeros(shape, dtype=torch.float64)
    states = []
    for part in range(ORBIT_TIMES):
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        then = -span * (part + uniform) / ORBIT_TIMES
        x, v = integrate(x, v, galaxy, now, then, coarse_step(x, v, galaxy))
        now = then
        states.append((x, v, then))
    x, v, time = (torch.cat(parts) for parts in zip(*states, strict=True))
    return Orbits(x, v, time, span, duration)


def eject(
    n: int, orbits: Orbits, core: CoreStructure, kick: Kick, generator: torch.Generator
) -> Ejected:
    """``n`` stars of each cluster as they leave it, at random places of its ``orbits``."""
    return released(orbits, kick(n, core, generator), generator)


def released(orbits: Orbits, kicks: Tensor, generator: torch.Generator) -> Ejected:
    """Stars with ``kicks`` (n, clusters, 3), km/s, at random places of their clusters' orbits.

    Those from before the span of the orbits are moved on by a half to a whole span, after which
    their phases are mixed as well as after their age.
    """
    shape = kicks.shape[:2]
    chosen = torch.randint(len(orbits.time), (shape[0],), generator=generator)
    u = torch.rand((3, *shape), generator=generator, dtype=torch.float64)
    old = u[0] * orbits.duration > orbits.span
    time = orbits.time[chosen]
    age = orbits.span + u[1] * (orbits.duration - orbits.span)
    return Ejected(
        orbits.x[chosen],
        orbits.v[chosen] + kicks,
        torch.where(old, -age, time),
        torch.where(old, 0.5 * (1 + u[2]) * orbits.span, -time),
    )


def sprayed_actions(
    n: int,
    clusters: Clusters,
    potential: str,
    duration: float,
    kick: Kick,
    seed: int,
    errors: bool = True,
) -> Tensor:
    """Actions (J_R, L_z, J_z) of ``n`` stars of each cluster, (n, clusters, 3), kpc km/s.

    At the ejection; in a static axisymmetric potential they are those of today. NaN: unbound.
    """
    generator = torch.Generator().manual_seed(seed)
    orbits = cluster_orbits(clusters, potential, duration, generator, errors)
    stars = eject(n, orbits, core_structure(clusters), kick, generator)
    galaxy = milky_way(potential).axisymmetric
    return action_vector(staeckel_actions(stars.x, stars.v, galaxy))


def action_vector(actions: Actions) -> Tensor:
    """(J_R, L_z, J_z), (..., 3); NaN for unbound stars."""
    J = torch.stack([actions.J_R, actions.L_z, actions.J_z], -1)
    return torch.where(actions.bound[..., None], J, torch.nan)


def to_today(stars: Ejected, potential: str) -> tuple[Tensor, Tensor]:
    """Positions, kpc, and velocities, km/s, of today, shaped as the ``stars``."""
    galaxy = milky_way(potential)
    step = coarse_step(stars.x, stars.v, galaxy)
    return integrate(stars.x, stars.v, galaxy, -stars.flight, torch.zeros(()), step)


def coarse_step(x: Tensor, v: Tensor, galaxy: Potential) -> Tensor:
    """Steps, Gyr, by which most orbits are right to tens of pc after some Gyr.

    That is all that sprays need. Orbits through the centre, of a few clusters, change their energy
    by some per cent.
    """
    return (COARSENESS * default_step(x, v, galaxy)).clamp_min(SHORTEST_STEP)


def cluster_table(clusters: Clusters, kick: Kick) -> Tensor:
    """What is known of clusters, a row each, (15, clusters).

    ra, dec (deg), distance, its error (kpc), r_t (pc), mass (Msun), rate; position (kpc) and
    velocity (km/s), three rows each; mean and standard deviation of ln(speed of ejection, km/s).
    The rate of ejections is density^2 core radius^3 / dispersion, in any unit: that of encounters
    in a core where the fraction of binaries is the same everywhere (Valtonen & Karttunen 2006).
    """
    c, core = clusters, core_structure(clusters)
    rate = core.rho0.square() * core.r0**3 / core.sigma0
    x, v = (part[0].T for part in cluster_draws(1, clusters, torch.Generator()))
    log_speed = kick(N_SPEEDS, core, torch.Generator().manual_seed(0)).norm(dim=-1).log()
    speed = torch.stack([log_speed.mean(0), log_speed.std(0)])
    table = torch.stack([c.ra, c.dec, c.distance, c.e_distance, core.r_t, c.mass, rate])
    return torch.cat([table, x, v, speed])
