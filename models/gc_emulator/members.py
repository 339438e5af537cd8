"""The likelihood of a star's measurements if the star is a member of a cluster.

Coordinates that are not measured (the depth zeta along the line of sight, usually the velocity
along it, sometimes those across) are parametrised by latent numbers n that are roughly unit normal
and cannot make the star unbound:

    zeta = (R^2 + r_0^2 / 4)^(1/2) sinh y,  y = y_max erf(c n),     v = v_esc erf(c' n'),

where y_max is the depth at which the star's tangential velocity alone would just let it escape, and
v_esc the speed that is still bound at its depth (of a velocity across: at zero depth). So there is
no wall for a trajectory to hit, and a star's latent numbers hardly correlate with the cluster's
parameters. c and c' give n the width 1 (fitted over the prior: to 6 and 3%), which also makes a
Gauss-Hermite rule of few nodes accurate.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from orrery.models.gc_emulator.emulator import EDGE_ENERGY, Cluster
from orrery.physics.constants import KM_S_PER_AU_YR
from orrery.physics.densities import HALF_LOG_2PI, log_standard_normal

KMS = 1e-3 * KM_S_PER_AU_YR  # km/s of 1 mas/yr at 1 pc
MAS = math.pi / 180 / 3.6e6  # rad


class StarMeasurements(NamedTuple):
    """Measurements of stars, (sets, n) or (sets, n, ...); NaN where a star was not measured."""

    frame: Tensor  # (sets, n, 3, 3) unit vectors to the east, the north and outwards
    direction_error: Tensor  # (sets, n, 2) mas, east and north; 0: exact
    pm: Tensor | None = None  # (sets, n, 2) mas/yr, east and north; None: no star has one
    pm_error: Tensor | None = None
    parallax: Tensor | None = None  # (sets, n) mas
    parallax_error: Tensor | None = None
    rv: Tensor | None = None  # (sets, n) km/s
    rv_error: Tensor | None = None
    complete_pm: bool = False  # whether every star has a proper motion, or none has

    @property
    def direction(self) -> Tensor:
        """Unit vectors, (sets, n, 3)."""
        return self.frame[..., 2, :]

    def map(self, function: Callable[[Tensor], Tensor]) -> "StarMeasurements":
        """``function`` of each of the columns."""
        columns = {name: function(x) for name, x in self._asdict().items() if torch.is_tensor(x)}
        return self._replace(**columns)  # type: ignore[arg-type]


class Centre(NamedTuple):
    """The centre of the cluster of each chain."""

    distance: Tensor  # (chains, 1) pc
    direction: Tensor  # (chains, 1, 3)
    velocity: Tensor  # (chains, 1, 3) km/s
    pm: Tensor  # (chains, 1, 2) mas/yr


def log_members(
    s: StarMeasurements,
    typical_pm: Tensor,
    cluster: Cluster,
    centre: Centre,
    n: Tensor,
    along: Cluster | None = None,
) -> Tensor:
    """ln p(measurements of a star, n | cluster), (chains, stars), ``n`` (chains, stars, 4 or 6).

    The latent numbers are those of the depth, the velocity along the line of sight, the proper
    motions and, where directions have errors, the directions. Measurements are densities per rad^2,
    (mas/yr)^2, mas and km/s. ``typical_pm`` (chains, 1): rough dispersion of proper motions, in
    mas/yr.

    ``along``: the cluster with g + 1/2, if f is to be integrated over the velocity along the line
    of sight in closed form: for isotropic clusters and stars of which none has that velocity
    measured. Its latent number is then ignored.
    """
    place = _Place(s, cluster, centre, n)
    pm, log_p = _proper_motions(place, typical_pm, centre, n[..., 2:4])
    motion = place.motion(pm, n[..., 0])
    energy = motion.energy
    log_p = log_p + motion.log_p + place.log_p + cluster.log_f0
    if along is not None:
        return log_p + along.log_lowered(energy) + cluster.s.log() + HALF_LOG_2PI

    # velocity along the line of sight
    left, escape = _escape(cluster, energy)
    precision = _precision(left, cluster.g)
    pull: Tensor | float = 0.0  # precision times mean
    if cluster.inverse_ra2 is not None:  # an anisotropic f prefers radial velocities
        weight = math.sqrt(2 / math.pi) * escape * cluster.inverse_ra2 / cluster.s**2
        precision = precision + math.sqrt(2 / math.pi) * weight * escape * place.R2
        mean = weight * motion.along * motion.zeta / precision
        pull = precision * 2 * torch.tanh(0.5 * mean)  # limited to erf(2) of the escape velocity
    if s.rv is not None:
        measured, rv, error = _filled(s.rv, s.rv_error)
        known = torch.where(measured, (escape / error).square() * 2 / math.pi, 0.0)
        precision = precision + known
        pull = pull + math.sqrt(math.pi / 2) * known * (rv - place.centre_rv) / escape
    fraction, log_fraction_slope = _bounded(pull / precision + precision.rsqrt() * n[..., 1])
    v = escape * fraction
    log_p = log_p + escape.log() - 0.5 * precision.log() + log_fraction_slope
    if s.rv is not None:
        residual = (rv - place.centre_rv - v) / error
        log_p = log_p + torch.where(measured, log_standard_normal(residual) - error.log(), 0.0)
    log_f = cluster.log_lowered(energy - 0.5 * (v / cluster.s) ** 2)
    return log_p + log_f + cluster.log_anisotropy(place.j2(motion, v))


def nodes(depths: int, speeds: int, corners: int) -> tuple[Tensor, Tensor]:
    """Nodes n (nodes, 4) and ln weights (nodes,) of a quadrature of exp(`log_members`) over n.

    Gauss-Hermite over the depth and the velocity along the line of sight (``speeds`` = 0: not over
    that velocity). Over proper motions the centre and a hexagon (``corners`` = 6, of degree 5), a
    triangle (3, of degree 2), or the measured value alone (0).
    """
    angle = torch.arange(corners, dtype=torch.float64) * (2 * math.pi / max(corners, 1))
    ring = torch.stack([angle.cos(), angle.sin()], -1)
    centre = torch.zeros(1, 2, dtype=torch.float64)
    pm, pm_weight = {
        0: (centre, torch.ones(1)),
        3: (math.sqrt(2) * ring, torch.full((3,), 1 / 3)),
        6: (torch.cat([centre, 2 * ring]), torch.tensor([1 / 2, *6 * [1 / 12]])),
    }[corners]
    (depth, depth_weight), (speed, speed_weight) = (
        (torch.from_numpy(x), torch.from_numpy(w) / w.sum())
        for x, w in map(hermegauss, (depths, max(speeds, 1)))
    )
    i, j, k = torch.meshgrid(*map(torch.arange, (depths, len(speed), len(pm))), indexing="ij")
    i, j, k = i.flatten(), j.flatten(), k.flatten()
    n = torch.cat([depth[i, None], speed[j, None], pm[k]], -1)
    integrated = n if speeds else n[:, [0, 2, 3]]
    weight = depth_weight[i] * speed_weight[j] * pm_weight.double()[k]
    return n, weight.log() - log_standard_normal(integrated).sum(-1)


class _Motion(NamedTuple):
    """Motions of stars of given proper motions and depths, each (chains, stars)."""

    zeta: Tensor  # depth, pc
    energy: Tensor  # binding energy without the velocity along the line of sight, s^2
    log_p: Tensor  # of depth and parallax
    across2: Tensor  # squared velocity across the line of sight, (km/s)^2
    along: Tensor  # projected radius times the velocity along it on the sky, pc km/s


class _Place:
    """Positions of stars relative to the centre, and what follows from their proper motions."""

    def __init__(self, s: StarMeasurements, cluster: Cluster, centre: Centre, n: Tensor) -> None:
        self.s, self.cluster = s, cluster
        self.log_p: Tensor | float = 0.0
        # the centre's direction and velocity in each star's frame, (chains, stars, 3, 2)
        vectors = torch.cat([centre.direction, centre.velocity], 1).mT
        components = (s.frame.flatten(1, 2) @ vectors).unflatten(1, (-1, 3))
        c_east, c_north, c_out = components[..., 0].unbind(-1)
        v_east, v_north, self.centre_rv = components[..., 1].unbind(-1)
        self.centre_v = [v_east, v_north]
        east: Tensor | float = 0.0  # direction of the star in its frame; 1 outwards
        north: Tensor | float = 0.0
        if n.shape[-1] > 4:
            east, north = (MAS * s.direction_error * n[..., 4:]).unbind(-1)
            self.log_p = log_standard_normal(n[..., 4]) + log_standard_normal(n[..., 5])
        across2 = (
            (north * c_out - c_north).square()
            + (c_east - east * c_out).square()
            + (east * c_north - north * c_east).square()
        )
        self.R2 = centre.distance.square() * across2
        self.along = centre.distance * (east * c_east + north * c_north + c_out)
        self.offset = [
            self.along * x - centre.distance * c for x, c in ((east, c_east), (north, c_north))
        ]

    def across(self, distance: Tensor, pm: Tensor) -> list[Tensor]:
        """Velocities to the east and north, km/s, relative to the centre."""
        return [KMS * distance * pm[..., i] - self.centre_v[i] for i in (0, 1)]

    def unmeasured(self, n: Tensor) -> tuple[Tensor, Tensor]:
        """Unmeasured proper motions of latent numbers n (chains, stars, 2); ln slope."""
        cluster, pm = self.cluster, []
        energy = cluster.potential(self.R2)
        log_slope = -2 * (KMS * self.along).log()
        for i, increment in ((0, 1.0), (1, 0.5)):  # of g, by the velocities still to integrate over
            left, escape = _escape(cluster, energy)
            precision = _precision(left, cluster.g + increment)
            fraction, log_fraction_slope = _bounded(precision.rsqrt() * n[..., i])
            v = escape * fraction
            energy = energy - 0.5 * (v / cluster.s) ** 2
            log_slope = log_slope + escape.log() - 0.5 * precision.log() + log_fraction_slope
            pm.append((v + self.centre_v[i]) / (KMS * self.along))
        return torch.stack(pm, -1), log_slope

    def motion(self, pm: Tensor, n: Tensor) -> _Motion:
        """Stars at depths of the latent numbers ``n`` (chains, stars)."""
        cluster, s = self.cluster, self.s
        a, b = self.across(self.along, pm)
        zeta, log_slope = depth(cluster, self.R2, a.square() + b.square(), n)
        distance = self.along + zeta
        log_p = log_slope + 4 * distance.log() + 2 * math.log(KMS)
        if s.parallax is not None:
            measured, parallax, error = _filled(s.parallax, s.parallax_error)
            residual = (parallax - 1e3 / distance) / error
            log_p = log_p + torch.where(measured, log_standard_normal(residual) - error.log(), 0.0)
        a, b = self.across(distance, pm)
        across2 = a.square() + b.square()
        energy = cluster.potential(self.R2 + zeta**2) - 0.5 * across2 / cluster.s**2
        return _Motion(zeta, energy, log_p, across2, self.offset[0] * a + self.offset[1] * b)

    def j2(self, motion: _Motion, v: Tensor) -> Tensor:
        """Squared angular momenta, (pc km/s)^2; ``v``: velocity along the line of sight, km/s."""
        r2, radial = self.R2 + motion.zeta**2, motion.along + motion.zeta * v
        return r2 * (motion.across2 + v.square()) - radial.square()


def _proper_motions(
    place: _Place, typical_pm: Tensor, centre: Centre, n: Tensor
) -> tuple[Tensor, Tensor]:
    """Proper motions at latent numbers n (chains, stars, 2), and ln p(measured, n | them)."""
    s = place.s
    if s.pm is None:
        return place.unmeasured(n)
    # as measured, shrunk towards the centre's where the error is large
    measured, observed, error = _filled(s.pm, s.pm_error)
    shrinkage = error**2 / (error**2 + typical_pm[..., None] ** 2)
    pm = (1 - shrinkage) * observed + shrinkage * centre.pm + error * (1 - shrinkage).sqrt() * n
    log_each = log_standard_normal((observed - pm) / error) + 0.5 * (1 - shrinkage).log()
    log_p = log_each[..., 0] + log_each[..., 1]
    if s.complete_pm:
        return pm, log_p
    free, log_free = place.unmeasured(n)
    both = measured.all(-1)
    return torch.where(both[..., None], pm, free), torch.where(both, log_p, log_free)


def depth(cluster: Cluster, R2: Tensor, v2: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """zeta, pc, and ln |d zeta / dn| at latent numbers n; R2, pc^2, v2, (km/s)^2, on the sky."""
    apocentre2 = cluster.radius2(0.5 * v2 / cluster.s**2)
    core2 = R2 + 0.25 * cluster.r0**2
    room = (apocentre2 - R2) / core2
    room = 0.5 * (room + (room**2 + 1e-4).sqrt())  # slightly above 0 where negative
    y_max = torch.asinh(room.sqrt())
    width = (1.3 + 1.5 * cluster.g + 0.2 * y_max**2).rsqrt()
    fraction, log_fraction_slope = _bounded(width * n)
    y = y_max * fraction
    log_slope = 0.5 * core2.log() + torch.cosh(y).log() + y_max.log() + width.log()
    return core2.sqrt() * torch.sinh(y), log_slope + log_fraction_slope


def _escape(cluster: Cluster, energy: Tensor) -> tuple[Tensor, Tensor]:
    """Energy still bound, s^2, slightly above 0 where negative, and its escape speed, km/s."""
    floor = EDGE_ENERGY * cluster.W0
    left = 0.5 * (energy + (energy**2 + floor**2).sqrt())
    return left, cluster.s * (2 * left).sqrt()


def _precision(left: Tensor, g: Tensor) -> Tensor:
    """Inverse variance of n if its bounded velocity has the density E_g(left - v^2 / 2)."""
    return 1 + g + 1.27 * left * (left + 1.54) / (left + 4.86 + 1.07 * g)


def _filled(values: Tensor, errors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mask of those measured; values and errors without NaN, which would spread in gradients."""
    assert errors is not None
    measured = values.isfinite()
    return measured, torch.where(measured, values, 0.0), torch.where(measured, errors, 1.0)


def _bounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """erf(x / sqrt 2), in (-1, 1), and the logarithm of its slope."""
    return torch.erf(x / math.sqrt(2)), log_standard_normal(x) + math.log(2)
