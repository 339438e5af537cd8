"""The posterior of stars on the sky, with measurement errors, about an unknown centre.

The cluster's parameters are joined by those of its centre, and by the true coordinates of every
star. What is not measured, the depth zeta along the line of sight and mostly the velocity along it,
is sampled by numbers that are roughly unit normal and cannot leave the cluster:

    zeta = (R^2 + r_0^2 / 4)^(1/2) sinh y,  y = y_max erf(c n),     v = v_esc erf(c' n'),

where y_max is where the star's tangential velocity alone would just let it escape, and v_esc what
is left at its depth. So there is no wall for a trajectory to hit, and a star's numbers hardly know
of the cluster's.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor
from torch.nn import functional as F

from models.gc_emulator.emulator import EDGE, Cluster, IsothermalEmulator
from models.gc_emulator.posterior import PARAMETERS, cluster_of, grid, physical
from physics.cluster_stars import KMS_PER_MAS_YR_KPC, axes, to_sky

KMS = 1e-3 * KMS_PER_MAS_YR_KPC  # km/s of 1 mas/yr at 1 pc
MAS = math.pi / 180 / 3.6e6  # rad
CENTRE = ("ra", "dec", "distance", "pm_ra", "pm_dec", "rv")
RV_PRIOR = 200.0  # km/s, of a centre's velocity that nothing measures
NODES = 12  # of the quadratures over a star's unit normal numbers


class SkyStars(NamedTuple):
    """What was measured of n stars; NaN where it was not."""

    direction: Tensor  # (n, 3) unit vectors
    direction_error: Tensor  # (n, 2) mas, east and north; 0: known
    pm: Tensor  # (n, 2) mas/yr
    pm_error: Tensor
    parallax: Tensor  # (n,) mas
    parallax_error: Tensor
    rv: Tensor  # (n,) km/s
    rv_error: Tensor
    distance: tuple[float, float]  # of the centre, pc: mean and error of its normal prior


class Centre(NamedTuple):
    """Of each chain; (chains, 1) or (chains, 3)."""

    distance: Tensor  # pc
    direction: Tensor
    velocity: Tensor  # km/s
    pm: Tensor  # (chains, 2) mas/yr


class Sky:
    """One data set, ``stars``, and its posterior; see `models.gc_emulator.start.Posterior`.

    Globals: `PARAMETERS`, then the centre: offsets east and north of ``middle``, distance, proper
    motions and line-of-sight velocity, in units of ``unit``. Latents of a star: zeta, the velocity
    along the line of sight, the proper motions, and the direction if it has errors.
    """

    n_globals = 10

    def __init__(self, emulator: IsothermalEmulator, stars: SkyStars) -> None:
        self.emulator, self.stars = emulator, stars
        n = len(stars.rv)
        self.per_star = 6 if bool((stars.direction_error > 0).any()) else 4
        self.n_latents = self.per_star * n
        self.has_rv = bool(stars.rv.isfinite().any())

        out = F.normalize(stars.direction.mean(0), dim=0)
        ra, dec = torch.atan2(out[1], out[0]), out[2].asin()
        self.tangent = torch.stack(axes(ra, dec))  # east, north, out
        offset = stars.direction @ self.tangent[:2].T
        offset = offset - offset.median(0).values
        pm, rv = stars.pm.median(0).values, stars.rv.nanmedian()
        scatter = 1.4826 * (stars.pm - pm).abs().median(0).values.mean()
        error = stars.pm_error.square().mean().sqrt()
        self.typical_pm = torch.maximum((scatter**2 - error**2).clamp_min(0).sqrt(), 0.3 * scatter)
        distance = torch.tensor(stars.distance, dtype=torch.float64)
        self.typical_r = 1.3 * float(offset.norm(dim=1).median() * distance[0])
        self.middle = torch.cat([torch.zeros(2), distance[:1], pm, rv[None]]).nan_to_num()
        few = n**-0.5
        angle = few * self.typical_r / distance[0]
        speed = KMS * distance[0] * scatter * few if self.has_rv else torch.tensor(RV_PRIOR)
        self.unit = torch.stack([angle, angle, distance[1], scatter * few, scatter * few, speed])
        # what the quadrature of `marginal` needs
        nodes, weights = _gauss_hermite(NODES)
        self.repeated = SkyStars(
            *(x.repeat_interleave(NODES, 0) for x in stars[:-1]), distance=stars.distance
        )
        self.nodes = torch.zeros(1, n * NODES, 4, dtype=torch.float64)
        self.nodes[..., 0] = nodes.repeat(n)
        self.log_weights = weights.log() - _log_normal(nodes)

    # --- the parts ----------------------------------------------------------------------------

    def centre(self, u: Tensor) -> tuple[Centre, Tensor]:
        """The centre and its log prior, (chains,); u (chains, 10)."""
        x = self.middle + self.unit * u[:, 4:10]
        tangent = torch.cat([x[:, :2], torch.ones_like(x[:, :1])], 1)
        direction = F.normalize(tangent @ self.tangent, dim=1)
        east = F.normalize(
            torch.stack([-direction[:, 1], direction[:, 0], torch.zeros_like(x[:, 0])], 1), dim=1
        )
        north = torch.linalg.cross(direction, east)
        speed = KMS * x[:, 2:3] * x[:, 3:5]
        velocity = speed[:, :1] * east + speed[:, 1:] * north + x[:, 5:6] * direction
        prior = u[:, 6].square() + (0.0 if self.has_rv else u[:, 9].square())
        return Centre(x[:, 2:3], direction, velocity, x[:, 3:5]), -0.5 * prior

    def members(
        self, s: SkyStars, cluster: Cluster, centre: Centre, n: Tensor, integrated: bool = False
    ) -> Tensor:
        """ln p(data of a star, n | cluster), (chains, stars), with n (chains, stars, 4 or 6).

        Densities per rad^2, (mas/yr)^2, mas and km/s. ``integrated``: over the velocity along the
        line of sight instead, where it is not measured, and with known proper motions.
        """
        log_p = torch.zeros((), dtype=torch.float64)
        direction = s.direction
        east, north, out = axes(
            torch.atan2(direction[:, 1], direction[:, 0]), direction[:, 2].asin()
        )
        if n.shape[-1] > 4:
            shift = MAS * s.direction_error * n[..., 4:]
            direction = direction + shift[..., :1] * east + shift[..., 1:] * north
            log_p = log_p + _log_normal(n[..., 4:]).sum(-1)
        c = centre.direction[:, None]
        across = torch.linalg.cross(*torch.broadcast_tensors(direction, c))
        R2 = centre.distance**2 * across.square().sum(-1)
        along = centre.distance * (direction * c).sum(-1)

        # proper motions: what was measured, drawn towards the centre's where it says little
        weak = s.pm_error**2 / (s.pm_error**2 + self.typical_pm**2)
        pm = (1 - weak) * s.pm + weak * centre.pm[:, None]
        if not integrated:
            width = s.pm_error * (1 - weak).sqrt()
            pm = pm + width * n[..., 2:4]
            log_p = log_p + (_log_normal((s.pm - pm) / s.pm_error) + (1 - weak).sqrt().log()).sum(
                -1
            )
        of_centre = [centre.velocity @ axis.T for axis in (east, north, out)]

        def tangential(distance: Tensor) -> Tensor:
            return sum((KMS * distance * pm[..., i] - of_centre[i]).square() for i in (0, 1))

        zeta, log_slope = depth(cluster, R2, tangential(along), n[..., 0])
        distance = along + zeta
        log_p = log_p + log_slope + 4 * distance.log() + 2 * math.log(KMS)
        plx = (s.parallax - 1e3 / distance) / s.parallax_error
        log_p = log_p + torch.where(plx.isfinite(), _log_normal(plx) - s.parallax_error.log(), 0.0)
        energy = cluster.potential(R2 + zeta**2) - 0.5 * tangential(distance) / cluster.s**2
        measured = s.rv.isfinite()
        if integrated:
            v = torch.where(measured, s.rv - of_centre[2], 0.0)
            marginal = self.emulator.lowered(cluster, 0.5)
            log_f = marginal.log_lowered(energy) + cluster.s.log() + 0.5 * math.log(2 * math.pi)
            if self.has_rv:
                known = cluster.log_lowered(energy - 0.5 * (v / cluster.s) ** 2)
                log_f = torch.where(measured, known, log_f)
            return log_p + cluster.log_f0 + log_f
        # velocity along the line of sight
        floor = EDGE * cluster.W0
        left = 0.5 * (energy + (energy**2 + floor**2).sqrt())
        escape = cluster.s * (2 * left).sqrt()
        # variances of star after star in f, to 6%
        precision = 1 + cluster.g + 1.27 * left * (left + 1.54) / (left + 4.86 + 1.07 * cluster.g)
        eta, ratio = 0.0, torch.zeros_like(s.rv)
        if self.has_rv:
            error = torch.where(measured, s.rv_error, 1.0)
            seen = math.sqrt(math.pi / 2) * torch.where(measured, s.rv - of_centre[2], 0.0) / escape
            ratio = torch.where(measured, (escape / error).square() * 2 / math.pi, 0.0)
            eta = ratio * seen / (precision + ratio)
        width = (precision + ratio).rsqrt()
        eta = eta + width * n[..., 1]
        share, log_share = _bounded(eta)
        v = escape * share
        log_p = log_p + escape.log() + width.log() + log_share
        if self.has_rv:
            gone = torch.where(measured, (s.rv - of_centre[2] - v) / error, 0.0)
            log_p = log_p + torch.where(measured, _log_normal(gone) - error.log(), 0.0)
        log_f = cluster.log_lowered(energy - 0.5 * (v / cluster.s) ** 2)
        return log_p + cluster.log_f0 + log_f

    # --- the posterior ------------------------------------------------------------------------

    def log_prob(self, u: Tensor) -> Tensor:
        cluster, log_prior = cluster_of(self.emulator, u[..., :4])
        centre, log_centre = self.centre(u.flatten(0, 1))
        n = u[..., 10:].reshape(u.shape[1], -1, self.per_star)
        log_p = self.members(self.stars, cluster, centre, n).sum(1)
        return log_prior + (log_p + log_centre)[None]

    def marginal(self, u: Tensor) -> Tensor:
        """Quadrature over the depths; measured velocities are taken as they are."""
        cluster, log_prior = cluster_of(self.emulator, u[..., :4])
        centre, log_centre = self.centre(u.flatten(0, 1))
        log_p = self.members(self.repeated, cluster, centre, self.nodes, integrated=True)
        log_p = (log_p.unflatten(1, (-1, NODES)) + self.log_weights).logsumexp(2).sum(1)
        return log_prior + (log_p + log_centre)[None]

    def candidates(self) -> Iterator[Tensor]:
        r = torch.tensor([[self.typical_r]], dtype=torch.float64)
        v2 = 3 * (KMS * self.middle[2] * self.typical_pm) ** 2
        for u in grid(r, v2.expand_as(r)):
            yield torch.cat([u, torch.zeros(1, 1, 6, dtype=torch.float64)], -1)

    def named(self, u: Tensor) -> dict[str, Tensor]:
        centre, _ = self.centre(u.reshape(-1, u.shape[-1]))
        sky = to_sky(torch.cat([centre.distance * centre.direction, centre.velocity], -1))
        sky = sky.view(*u.shape[:-1], 6)
        sky = torch.cat([sky[..., :2].rad2deg(), sky[..., 2:]], -1)
        names = [*PARAMETERS, *(f"centre_{name}" for name in CENTRE)]
        return dict(zip(names, [*physical(u), *sky.unbind(-1)], strict=True))


def depth(cluster: Cluster, R2: Tensor, v2: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """zeta, pc, and ln |d zeta / dn| of stars at projected R^2 with tangential v^2, at numbers n."""
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


def _bounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """2 Phi(x) - 1, in (-1, 1), and the logarithm of its slope."""
    return torch.erf(x / math.sqrt(2)), _log_normal(x) + math.log(2)


def _log_normal(x: Tensor) -> Tensor:
    return -0.5 * x.square() - 0.5 * math.log(2 * math.pi)


def _gauss_hermite(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the integral over a unit normal."""
    x, w = (torch.from_numpy(a) for a in hermegauss(n))
    return x, w / w.sum()
