"""How probable is what was measured of a star, if it belongs to a cluster.

What is not measured, the depth zeta along the line of sight and mostly the velocity along it, is
counted by numbers n that are roughly unit normal and cannot leave the cluster:

    zeta = (R^2 + r_0^2 / 4)^(1/2) sinh y,  y = y_max erf(c n),     v = v_esc erf(c' n'),

where y_max is where the star's tangential velocity alone would just let it escape, and v_esc what
is left at its depth. So there is no wall for a trajectory to hit, and a star's numbers hardly know
of the cluster's. c and c' give n the width 1 (fitted over the prior: to 6 and 3%).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from models.gc_emulator.emulator import EDGE, Cluster
from physics.cluster_stars import KMS_PER_MAS_YR_KPC, axes

KMS = 1e-3 * KMS_PER_MAS_YR_KPC  # km/s of 1 mas/yr at 1 pc
MAS = math.pi / 180 / 3.6e6  # rad


class SkyStars(NamedTuple):
    """What was measured of stars, (sets, n) or (sets, n, ...); NaN where it was not."""

    direction: Tensor  # (sets, n, 3) unit vectors
    direction_error: Tensor  # (sets, n, 2) mas, east and north; 0: known
    pm: Tensor  # (sets, n, 2) mas/yr, east and north
    pm_error: Tensor
    parallax: Tensor | None = None  # (sets, n) mas; None: of no star
    parallax_error: Tensor | None = None
    rv: Tensor | None = None  # (sets, n) km/s
    rv_error: Tensor | None = None


class Centre(NamedTuple):
    """Of each chain."""

    distance: Tensor  # (chains, 1) pc
    direction: Tensor  # (chains, 1, 3)
    velocity: Tensor  # (chains, 1, 3) km/s
    pm: Tensor  # (chains, 1, 2) mas/yr


def log_members(
    s: SkyStars, typical_pm: Tensor, cluster: Cluster, centre: Centre, n: Tensor
) -> Tensor:
    """ln p(data of a star, n | cluster), (chains, stars), with ``n`` (chains, stars, 4 or 6).

    The numbers are of the depth, the velocity along the line of sight, the proper motions and,
    where directions have errors, these. Data as densities per rad^2, (mas/yr)^2, mas and km/s.
    ``typical_pm`` (chains, 1): dispersion of proper motions, mas/yr, roughly.
    """
    place = _Place(s, cluster, centre, n)
    # proper motions: as measured, drawn towards the centre's where that says little
    weak = s.pm_error**2 / (s.pm_error**2 + typical_pm[..., None] ** 2)
    pm = (1 - weak) * s.pm + weak * centre.pm + s.pm_error * (1 - weak).sqrt() * n[..., 2:4]
    log_p = (log_normal((s.pm - pm) / s.pm_error) + 0.5 * (1 - weak).log()).sum(-1)
    moving = place.moving(pm, n[..., 0])
    energy = moving.energy
    log_p = log_p + moving.log_p + place.log_p

    # velocity along the line of sight
    floor = EDGE * cluster.W0
    left = 0.5 * (energy + (energy**2 + floor**2).sqrt())
    escape = cluster.s * (2 * left).sqrt()
    precision = 1 + cluster.g + 1.27 * left * (left + 1.54) / (left + 4.86 + 1.07 * cluster.g)
    pull: Tensor | float = 0.0  # precision times mean
    if cluster.inverse_ra2 is not None:  # which prefers radial velocities
        weight = math.sqrt(2 / math.pi) * escape * cluster.inverse_ra2 / cluster.s**2
        precision = precision + math.sqrt(2 / math.pi) * weight * escape * place.R2
        mean = weight * moving.along * moving.zeta / precision
        pull = precision * 2 * torch.tanh(0.5 * mean)  # a share beyond erf(2) is no good guess
    if s.rv is not None:
        measured, rv, error = _filled(s.rv, s.rv_error)
        known = torch.where(measured, (escape / error).square() * 2 / math.pi, 0.0)
        precision = precision + known
        pull = pull + math.sqrt(math.pi / 2) * known * (rv - place.centre_rv) / escape
    share, log_share = _bounded(pull / precision + precision.rsqrt() * n[..., 1])
    v = escape * share
    log_p = log_p + escape.log() - 0.5 * precision.log() + log_share
    if s.rv is not None:
        off = (rv - place.centre_rv - v) / error
        log_p = log_p + torch.where(measured, log_normal(off) - error.log(), 0.0)
    log_f = cluster.log_lowered(energy - 0.5 * (v / cluster.s) ** 2)
    return log_p + cluster.log_f0 + log_f + cluster.log_anisotropy(place.j2(moving, v))


def log_members_without_errors(
    s: SkyStars, marginal: Cluster, cluster: Cluster, centre: Centre, n: Tensor
) -> Tensor:
    """ln p(data, n of the depth | cluster), (chains, stars), velocities taken as they are measured.

    Where none was along the line of sight f is integrated over it: ``marginal`` is the cluster
    with g + 1/2; the angular momentum is then the least that there can be, roughly. ``n``
    (chains, stars, 1).
    """
    place = _Place(s, cluster, centre, n)
    moving = place.moving(s.pm, n[..., 0])
    log_f = marginal.log_lowered(moving.energy) + cluster.s.log() + 0.5 * math.log(2 * math.pi)
    v = moving.along * moving.zeta / (place.R2 + 0.01 * cluster.r0**2)
    if s.rv is not None:
        measured, rv, _ = _filled(s.rv, s.rv_error)
        seen = rv - place.centre_rv
        v = torch.where(measured, seen, v)
        log_known = cluster.log_lowered(moving.energy - 0.5 * (seen / cluster.s) ** 2)
        log_f = torch.where(measured, log_known, log_f)
    log_f = log_f + cluster.log_anisotropy(place.j2(moving, v))
    return moving.log_p + place.log_p + cluster.log_f0 + log_f


class _Moving(NamedTuple):
    """Stars of given proper motions and depths, each (chains, stars)."""

    zeta: Tensor  # depth, pc
    energy: Tensor  # without the velocity along the line of sight, s^2
    log_p: Tensor  # of all that the depth gives
    across2: Tensor  # squared velocity across the line of sight, (km/s)^2
    along: Tensor  # projected radius times the velocity along it on the sky, pc km/s


class _Place:
    """Where stars stand to the centre, and what follows from their tangential velocity."""

    def __init__(self, s: SkyStars, cluster: Cluster, centre: Centre, n: Tensor) -> None:
        self.s, self.cluster = s, cluster
        direction, self.log_p = s.direction, torch.zeros_like(s.pm[..., 0])
        east, north, out = axes(torch.atan2(direction[..., 1], direction[..., 0]),
                                direction[..., 2].clamp(-1, 1).asin())  # fmt: skip
        if n.shape[-1] > 4:
            shift = MAS * s.direction_error * n[..., 4:]
            direction = direction + shift[..., :1] * east + shift[..., 1:] * north
            self.log_p = self.log_p + log_normal(n[..., 4:]).sum(-1)
        across = torch.linalg.cross(*torch.broadcast_tensors(direction, centre.direction))
        self.R2 = centre.distance**2 * across.square().sum(-1)
        self.along = centre.distance * (direction * centre.direction).sum(-1)
        self.offset = [
            self.along * (direction * axis).sum(-1)
            - centre.distance * (centre.direction * axis).sum(-1)
            for axis in (east, north)
        ]
        velocity = [(centre.velocity * axis).sum(-1) for axis in (east, north, out)]
        self.centre_v, self.centre_rv = velocity[:2], velocity[2]

    def across(self, distance: Tensor, pm: Tensor) -> list[Tensor]:
        """Velocities to the east and north, km/s, relative to the centre."""
        return [KMS * distance * pm[..., i] - self.centre_v[i] for i in (0, 1)]

    def moving(self, pm: Tensor, n: Tensor) -> _Moving:
        """Stars at these numbers of the depth."""
        cluster, s = self.cluster, self.s
        a, b = self.across(self.along, pm)
        zeta, log_slope = depth(cluster, self.R2, a.square() + b.square(), n)
        distance = self.along + zeta
        log_p = log_slope + 4 * distance.log() + 2 * math.log(KMS)
        if s.parallax is not None:
            measured, parallax, error = _filled(s.parallax, s.parallax_error)
            off = (parallax - 1e3 / distance) / error
            log_p = log_p + torch.where(measured, log_normal(off) - error.log(), 0.0)
        a, b = self.across(distance, pm)
        across2 = a.square() + b.square()
        energy = cluster.potential(self.R2 + zeta**2) - 0.5 * across2 / cluster.s**2
        return _Moving(zeta, energy, log_p, across2, self.offset[0] * a + self.offset[1] * b)

    def j2(self, moving: _Moving, v: Tensor) -> Tensor:
        """Squared angular momenta, (pc km/s)^2, of stars with the velocity v along the sight."""
        r2, radial = self.R2 + moving.zeta**2, moving.along + moving.zeta * v
        return r2 * (moving.across2 + v.square()) - radial.square()


def depth(cluster: Cluster, R2: Tensor, v2: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """zeta, pc, and ln |d zeta / dn| at numbers n; R2, pc^2, and v2, (km/s)^2, on the sky."""
    apocentre2 = cluster.radius2(0.5 * v2 / cluster.s**2)
    core2 = R2 + 0.25 * cluster.r0**2
    room = (apocentre2 - R2) / core2
    room = 0.5 * (room + (room**2 + 1e-4).sqrt())  # a little for those without any
    y_max = torch.asinh(room.sqrt())
    width = (1.3 + 1.5 * cluster.g + 0.2 * y_max**2).rsqrt()
    share, log_share = _bounded(width * n)
    y = y_max * share
    log_slope = 0.5 * core2.log() + torch.cosh(y).log() + y_max.log() + width.log()
    return core2.sqrt() * torch.sinh(y), log_slope + log_share


def _filled(values: Tensor, errors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Which are measured; values and errors without NaN, whose gradients would spread."""
    assert errors is not None
    measured = values.isfinite()
    return measured, torch.where(measured, values, 0.0), torch.where(measured, errors, 1.0)


def log_normal(x: Tensor) -> Tensor:
    return -0.5 * x.square() - 0.5 * math.log(2 * math.pi)


def _bounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """A share in (-1, 1), and the logarithm of its slope."""
    return torch.erf(x / math.sqrt(2)), log_normal(x) + math.log(2)
