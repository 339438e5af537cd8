"""The posterior of a cluster given its stars, on unconstrained coordinates for HMC.

Priors of arXiv:2311.03704: W0 uniform in the domain, g uniform up to its limit, log10 M / Msun ~
N(5.85, 0.6), log10 r_h / pc ~ N(0.7, 0.3) within (0, 1.5); of anisotropic models r_h / r_a uniform
from 0 to 1. Each parameter is sampled as a coordinate u that is unit normal a priori, so that
weakly constrained posteriors have no long tails.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.special import ndtr, ndtri

from orrery.models.gc_emulator.emulator import Cluster, IsothermalEmulator
from orrery.physics.clusters.lowered_isothermal import W0_MAX, W0_MIN, G, g_limit

LOG_MASS, LOG_RH = (5.85, 0.6), (0.7, 0.3)  # means and standard deviations of normal priors
LOG_RH_MAX = 1.5
PARAMETERS = ("W0", "g", "log10_mass", "log10_rh")
ANISOTROPY = "rh_ra"  # half-mass over anisotropy radius, where the emulator has it
UNITS = {"log10_mass": "dex(Msun)", "log10_rh": "dex(pc)"}


class PhaseSpacePosterior:
    """Of a cluster given stars of known position, pc, and velocity, km/s, about a known centre.

    ``phase`` (sets, n, 6): each data set has a posterior of its own. A `ClusterPosterior`.
    """

    n_latents, units = 0, UNITS
    accept = 0.9
    distance_index = None

    def __init__(self, emulator: IsothermalEmulator, phase: Tensor) -> None:
        self.emulator, self.names = emulator, parameter_names(emulator)
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
        yield from candidate_grid(r, self.v2.mean(1, keepdim=True), self.n_globals)

    def named(self, u: Tensor) -> dict[str, Tensor]:
        """Named parameters, each of the shape of ``u`` without its last axis."""
        return dict(zip(self.names, physical(u), strict=True))


def parameter_names(emulator: IsothermalEmulator) -> tuple[str, ...]:
    """Names of the parameters of a cluster of this emulator."""
    return PARAMETERS if emulator.shape[0] == 1 else (*PARAMETERS, ANISOTROPY)


def candidate_grid(rh: Tensor, v2: Tensor, n: int) -> Iterator[Tensor]:
    """Points u (..., n) about a half-mass radius, pc, and a mean squared speed, (km/s)^2.

    Coordinates other than the four of `PARAMETERS` are at the middle of their priors.
    """
    log_rh, log_mass = rh.log10(), (rh * v2 / (0.4 * G)).log10()  # G M = v2 r_h / 0.4
    axes = (
        torch.linspace(2, 13, 9, dtype=torch.float64),
        torch.tensor([0.1, 0.35, 0.6, 0.85], dtype=torch.float64),
        torch.linspace(-0.2, 0.4, 9, dtype=torch.float64),
        torch.linspace(-0.2, 0.3, 7, dtype=torch.float64),
    )
    for W0, g_fraction, d_log_mass, d_log_rh in torch.cartesian_prod(*axes).to(rh):
        u = whitened(W0, g_fraction, log_mass + d_log_mass, (log_rh + d_log_rh).clamp(0.05, 1.45))
        yield torch.cat([u, u.new_zeros(*u.shape[:-1], n - 4)], -1)


def physical(u: Tensor) -> tuple[Tensor, ...]:
    """W0, g, log10 M, log10 r_h, each (...), of ``u`` (..., 4); of (..., 5) also r_h / r_a."""
    W0 = W0_MIN + (W0_MAX - W0_MIN) * ndtr(u[..., 0])
    rh_ra = [ndtr(u[..., 4])] if u.shape[-1] > 4 else []
    g = g_limit(W0, *rh_ra) * ndtr(u[..., 1])
    low, high = _log_rh_quantiles()
    log_rh = LOG_RH[0] + LOG_RH[1] * ndtri(low + (high - low) * ndtr(u[..., 3]))
    return W0, g, LOG_MASS[0] + LOG_MASS[1] * u[..., 2], log_rh, *rh_ra


def whitened(
    W0: Tensor, g_fraction: Tensor, log_mass: Tensor, log_rh: Tensor, *rh_ra: Tensor
) -> Tensor:
    """The inverse of `physical`, (..., 4) or (..., 5); ``g_fraction``: g over `g_limit`."""
    low, high = _log_rh_quantiles()
    values = (
        ndtri((W0 - W0_MIN) / (W0_MAX - W0_MIN)),
        ndtri(g_fraction),
        (log_mass - LOG_MASS[0]) / LOG_MASS[1],
        ndtri((ndtr((log_rh - LOG_RH[0]) / LOG_RH[1]) - low) / (high - low)),
        *map(ndtri, rh_ra),
    )
    return torch.stack(torch.broadcast_tensors(*values), -1)


def _log_rh_quantiles() -> tuple[Tensor, Tensor]:
    """Normal quantiles at the ends of the prior of log10 r_h."""
    ends = torch.tensor([0.0, LOG_RH_MAX], dtype=torch.float64)
    low, high = ndtr((ends - LOG_RH[0]) / LOG_RH[1])
    return low, high


def cluster_of(emulator: IsothermalEmulator, u: Tensor) -> tuple[Cluster, Tensor]:
    """The cluster of each chain, (sets * chains, 1), and its log prior, (sets, chains).

    ``u`` (sets, chains, n), of which the coordinates of `parameter_names` are the first.
    """
    u = u[..., : len(parameter_names(emulator))]
    W0, g, log_mass, log_rh, *rh_ra = (x.flatten() for x in physical(u))
    rh = 10**log_rh
    ra = [rh / share for share in rh_ra]
    return emulator.cluster(W0, g, 10**log_mass, rh, *ra), -0.5 * u.square().sum(-1)
