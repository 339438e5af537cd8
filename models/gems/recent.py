"""Stars that left their cluster not long ago, and are still near it in position and velocity.

Most ejected stars are anywhere on their orbit: their density in phase space is p(J) / (2 pi)^3. The
last ones are not. A cluster that throws out stars evenly over T, isotropically and with speeds w of
density f(w), has at the distance r = w t, short against its orbit,

    p(x, v) = f(w) / (w T) / (4 pi r^2) / (4 pi w^2),

where the direction of the velocity is taken as independent of the position's: errors of distances
are larger than r, and the Galaxy's tide turns stars.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.gems.hosts import Hosts
from orrery.models.gems.observation import Draws
from orrery.physics.milky_way.axisymmetric import KPC_PER_GYR
from orrery.physics.sky import sky_angle

LARGEST_ANGLE = 15.0  # deg, of a cluster from a star near it
LARGEST_DISTANCE = 0.25  # of the cluster's from the centre of the Galaxy
SLOWEST = 2.0  # km/s, of speeds: of the order of the error of clusters' velocities
LOG_TWO_PI_CUBED = 3 * math.log(2 * math.pi)


class Recent(NamedTuple):
    """Stars as recent ejections of each cluster, (batch, clusters)."""

    log_p: Tensor  # ln of the density at a star's draws, weighted and summed; -inf: cluster is far
    time: Tensor  # Myr since the ejection, distance over relative speed; NaN: cluster is far


def recent_ejections(
    ra: Tensor, dec: Tensor, draws: Draws, hosts: Hosts, duration: float
) -> Recent:
    """Of stars at ``ra`` and ``dec``, deg, (batch,), from clusters that eject over T, Gyr.

    Densities are in units of an action density over (2 pi)^3, as of `Hosts.log_likelihood`.
    """
    near = sky_angle(ra[:, None], dec[:, None], hosts.of("ra"), hosts.of("dec"))
    x, v = (torch.stack([hosts.of(f"{name}_{k}") for k in "xyz"], -1) for name in ("x", "v"))
    reach = LARGEST_DISTANCE * x.norm(dim=-1)
    depth = hosts.of("distance")
    low, high = draws.distance.amin(1)[:, None], draws.distance.amax(1)[:, None]
    near = (near < math.radians(LARGEST_ANGLE)) & (low < depth + reach) & (high > depth - reach)
    star, cluster = near.nonzero(as_tuple=True)
    x, v, reach = x[cluster, None], v[cluster, None], reach[cluster, None]
    r2 = (draws.x[star] - x).square().sum(-1)
    size = hosts.of("r_t")[cluster, None] / 1e3
    w = ((draws.v[star] - v).square().sum(-1) + SLOWEST**2).sqrt()
    mean, std = (hosts.of(name)[cluster, None] for name in ("ln_speed", "ln_speed_std"))
    log_w = w.log()
    log_f = -0.5 * ((log_w - mean) / std).square() - log_w - std.log() - 0.5 * math.log(2 * math.pi)
    path = KPC_PER_GYR * duration  # kpc of a star with 1 km/s
    log_p = log_f - 3 * log_w - (r2 + size.square()).log() - math.log(path * (4 * math.pi) ** 2)
    log_p = torch.where(r2 < reach.square(), log_p + draws.log_weight[star], -torch.inf)
    time = r2.sqrt() / (w * KPC_PER_GYR) * 1e3
    share = log_p.softmax(1)  # NaN where no draw is near enough
    shape = len(ra), hosts.table.shape[1]
    recent = Recent(log_p.new_full(shape, -torch.inf), log_p.new_full(shape, torch.nan))
    recent.log_p[star, cluster] = log_p.logsumexp(1) + LOG_TWO_PI_CUBED
    recent.time[star, cluster] = (share * time).sum(1)
    return recent
