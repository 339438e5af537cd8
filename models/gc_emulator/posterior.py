"""The posterior of a cluster given its stars, on unconstrained coordinates for HMC.

Priors of arXiv:2311.03704: W0 uniform in the domain, g uniform up to its limit, log10 M / Msun ~
N(5.85, 0.6), log10 r_h / pc ~ N(0.7, 0.3) within (0, 1.5); of anisotropic models r_h / r_a uniform
from 0 to 1. Each parameter is sampled by a number u that is unit normal a priori, which leaves no
long tails where the data say little.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.special import ndtr, ndtri

from orrery.models.gc_emulator.emulator import Cluster, IsothermalEmulator
from orrery.physics.clusters.lowered_isothermal import W0_MAX, W0_MIN, G, g_limit

LOG_MASS, LOG_RH, LOG_RH_TOP = (5.85, 0.6), (0.7, 0.3), 1.5
PHASE = ("x", "y", "z", "vx", "vy", "vz")
PARAMETERS = ("W0", "g", "log10_mass", "log10_rh")
ANISOTROPY = "rh_ra"  # half-mass over anisotropy radius, where the emulator has it
UNITS = {"log10_mass": "dex(Msun)", "log10_rh": "dex(pc)"}


class Stars:
    """Stars whose positions, pc, and velocities, km/s, are known, about a known centre.

    ``phase`` (sets, n, 6): a set is a data set, with a posterior of its own.
    """

    n_latents, units = 0, UNITS
    accept = 0.9
    distance_index = None

    def __init__(self, emulator: IsothermalEmulator, phase: Tensor) -> None:
        self.emulator, self.names = emulator, parameters(emulator)
        self.n_globals, self.n_stars = len(self.names), phase.shape[1]
        position, velocity = phase[..., :3], phase[..., 3:]
        self.r2, self.v2, self.j2 = (
            x.square().sum(-1) for x in (position, velocity, torch.linalg.cross(position, velocity))
        )

    def log_prob(self, u: Tensor) -> Tensor:
        """ln posterior, (sets, chains), of ``u`` (sets, chains, n_globals)."""
        cluster, log_prior = cluster_of(self.emulator, u)
        r2, v2, j2 = (x.repeat_interleave(u.shape[1], 0) for x in (self.r2, self.v2, self.j2))
        return log_prior + cluster.log_df(r2, v2, j2).sum(1).view(u.shape[:2])

    marginal = log_prob

    def candidates(self) -> Iterator[Tensor]:
        """Points (sets, 1, n_globals) of a grid about the virial mass and the median radius."""
        r = self.r2.sqrt().median(1, keepdim=True).values
        yield from grid(r, self.v2.mean(1, keepdim=True), self.n_globals)

    def named(self, u: Tensor) -> dict[str, Tensor]:
        """Named parameters, each of the shape of ``u`` without its last axis."""
        return dict(zip(self.names, physical(u), strict=True))


def parameters(emulator: IsothermalEmulator) -> tuple[str, ...]:
    """What describes a cluster of this emulator."""
    return PARAMETERS if emulator.shape[0] == 1 else (*PARAMETERS, ANISOTROPY)


def grid(rh: Tensor, v2: Tensor, n: int) -> Iterator[Tensor]:
    """Points u (..., n) about a half-mass radius, pc, and a mean squared speed, (km/s)^2.

    All but the four of `PARAMETERS` are in the middle of their priors.
    """
    log_rh, log_mass = rh.log10(), (rh * v2 / (0.4 * G)).log10()  # G M = v2 r_h / 0.4
    axes = (
        torch.linspace(2, 13, 9, dtype=torch.float64),
        torch.tensor([0.1, 0.35, 0.6, 0.85], dtype=torch.float64),
        torch.linspace(-0.2, 0.4, 9, dtype=torch.float64),
        torch.linspace(-0.2, 0.3, 7, dtype=torch.float64),
    )
    for W0, share, more_mass, more_rh in torch.cartesian_prod(*axes).to(rh):
        u = whitened(W0, share, log_mass + more_mass, (log_rh + more_rh).clamp(0.05, 1.45))
        yield torch.cat([u, u.new_zeros(*u.shape[:-1], n - 4)], -1)


def physical(u: Tensor) -> tuple[Tensor, ...]:
    """W0, g, log10 M, log10 r_h of ``u`` (..., 4), whose prior is unit normal; of 5 r_h / r_a."""
    W0 = W0_MIN + (W0_MAX - W0_MIN) * ndtr(u[..., 0])
    anisotropy = [ndtr(u[..., 4])] if u.shape[-1] > 4 else []
    g = g_limit(W0, *anisotropy) * ndtr(u[..., 1])
    low, high = _rh_shares()
    log_rh = LOG_RH[0] + LOG_RH[1] * ndtri(low + (high - low) * ndtr(u[..., 3]))
    return W0, g, LOG_MASS[0] + LOG_MASS[1] * u[..., 2], log_rh, *anisotropy


def whitened(
    W0: Tensor, share: Tensor, log_mass: Tensor, log_rh: Tensor, *anisotropy: Tensor
) -> Tensor:
    """The inverse of `physical`, (..., 4) or (..., 5); ``share``: g over its limit."""
    low, high = _rh_shares()
    values = (
        ndtri((W0 - W0_MIN) / (W0_MAX - W0_MIN)),
        ndtri(share),
        (log_mass - LOG_MASS[0]) / LOG_MASS[1],
        ndtri((ndtr((log_rh - LOG_RH[0]) / LOG_RH[1]) - low) / (high - low)),
        *map(ndtri, anisotropy),
    )
    return torch.stack(torch.broadcast_tensors(*values), -1)


def _rh_shares() -> tuple[Tensor, Tensor]:
    """Cumulative normal at the ends of the prior of log10 r_h."""
    ends = torch.tensor([0.0, LOG_RH_TOP], dtype=torch.float64)
    low, high = ndtr((ends - LOG_RH[0]) / LOG_RH[1])
    return low, high


def cluster_of(emulator: IsothermalEmulator, u: Tensor) -> tuple[Cluster, Tensor]:
    """The cluster of each chain, flattened, and the log prior of its `parameters`.

    ``u`` (sets, chains, n), of which these are the first.
    """
    u = u[..., : len(parameters(emulator))]
    W0, g, log_mass, log_rh, *anisotropy = (x.flatten() for x in physical(u))
    rh = 10**log_rh
    ra = [rh / share for share in anisotropy]
    return emulator.cluster(W0, g, 10**log_mass, rh, *ra), -0.5 * u.square().sum(-1)
