"""The posterior of a cluster given its stars, on unconstrained coordinates for HMC.

Priors of arXiv:2311.03704: W0 uniform in the domain, g uniform up to its limit, log10 M / Msun ~
N(5.85, 0.6), log10 r_h / pc ~ N(0.7, 0.3) within (0, 1.5); of anisotropic models r_h / r_a uniform
from 0 to 1. Each parameter is sampled as a coordinate u that is unit normal a priori, so that
weakly constrained posteriors have no long tails.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.special import ndtr, ndtri

from orrery.models.gc_emulator.emulator import Cluster, IsothermalEmulator
from orrery.physics.clusters.lowered_isothermal import W0_MAX, W0_MIN, G, g_limit

LOG_MASS, LOG_RH = (5.85, 0.6), (0.7, 0.3)  # means and standard deviations of normal priors
LOG_RH_MAX = 1.5
# outliers: prior of the logit of their fraction over the largest one (median 0.3%); their scale
MAX_OUTLIER_FRACTION, OUTLIER_LOGIT, OUTLIER_SCALE = 0.1, (-3.5, 1.5), 3.0
DRAWS_AT_ONCE = 8
PARAMETERS = ("W0", "g", "log10_mass", "log10_rh")
ANISOTROPY = "rh_ra"  # half-mass over anisotropy radius, where the emulator has it
UNITS = {"log10_mass": "dex(Msun)", "log10_rh": "dex(pc)"}


class PhaseSpacePosterior:
    """Of a cluster given stars of known position, pc, and velocity, km/s, about a known centre.

    ``phase`` (sets, n, 6): each data set has a posterior of its own. A `ClusterPosterior`. With
    ``has_outliers`` a fraction of the stars, the last of the globals, is not of the cluster: their
    density, of positions and of velocities, is broad and falls as r^-4, on scales that are
    `OUTLIER_SCALE` times the medians of the data.
    """

    n_latents, units = 0, UNITS
    accept = 0.9
    distance_index = None

    def __init__(
        self, emulator: IsothermalEmulator, phase: Tensor, has_outliers: bool = False
    ) -> None:
        self.emulator, self.names = emulator, parameter_names(emulator)
        self.n_cluster, self.n_stars = len(self.names), phase.shape[1]
        self.has_outliers = has_outliers
        self.n_globals = self.n_cluster + has_outliers
        position, velocity = phase[..., :3], phase[..., 3:]
        self.r2, self.v2, self.j2 = (
            x.square().sum(-1) for x in (position, velocity, torch.linalg.cross(position, velocity))
        )
        self.log_outlier = _log_broad(self.r2) + _log_broad(self.v2)  # (sets, n)

    def log_prob(self, u: Tensor) -> Tensor:
        """ln posterior, (sets, chains), of ``u`` (sets, chains, n_globals)."""
        members, outliers, log_prior = self._log_terms(u)
        log_p = members if outliers is None else torch.logaddexp(members, outliers)
        return log_prior + log_p.sum(-1)

    def _log_terms(self, u: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """ln p of stars as members and as outliers, (sets, chains, n), and the log prior."""
        cluster, log_prior = cluster_of(self.emulator, u)
        r2, v2, j2 = (x.repeat_interleave(u.shape[1], 0) for x in (self.r2, self.v2, self.j2))
        members = cluster.log_df(r2, v2, j2).unflatten(0, u.shape[:2])
        if not self.has_outliers:
            return members, None, log_prior
        fraction = self._outlier_fraction(u)[..., None]
        members = members + torch.log1p(-fraction)
        outliers = self.log_outlier[:, None] + fraction.log()
        return members, outliers, log_prior - 0.5 * u[..., self.n_cluster].square()

    def _outlier_fraction(self, u: Tensor) -> Tensor:
        middle, width = OUTLIER_LOGIT
        return MAX_OUTLIER_FRACTION * torch.sigmoid(middle + width * u[..., self.n_cluster])

    @torch.no_grad()
    def mean_membership(self, u: Tensor) -> Tensor:
        """Probability that each star is a member, (n,), mean over ``u`` (1, draws, n_globals)."""
        total = torch.zeros_like(self.r2[0])
        for part in u.split(DRAWS_AT_ONCE, 1):
            members, outliers, _ = self._log_terms(part)
            if outliers is None:
                return torch.ones_like(total)
            total += torch.sigmoid(members - outliers)[0].sum(0)
        return total / u.shape[1]

    marginal = log_prob

    def candidates(self) -> Iterator[Tensor]:
        """Points (sets, 1, n_globals) of a grid about the virial mass and the median radius."""
        r = self.r2.sqrt().median(1, keepdim=True).values
        v2 = self.v2.mean(1, keepdim=True)
        if self.has_outliers:  # of a normal distribution the mean square is 1.27 of the median
            v2 = 1.27 * self.v2.median(1, keepdim=True).values
        yield from candidate_grid(r, v2, self.n_globals)

    def named(self, u: Tensor) -> dict[str, Tensor]:
        """Named parameters, each of the shape of ``u`` without its last axis."""
        named = dict(zip(self.names, physical(u[..., : self.n_cluster]), strict=True))
        if self.has_outliers:
            named["outlier_fraction"] = self._outlier_fraction(u)
        return named


def _log_broad(x2: Tensor) -> Tensor:
    """ln density in three dimensions of Student's t of one degree of freedom, (sets, n).

    ``x2`` (sets, n): squared lengths, of whose medians its scale is `OUTLIER_SCALE` times the root.
    """
    scale2 = OUTLIER_SCALE**2 * x2.median(1, keepdim=True).values.clamp_min(1e-12)
    return -2 * torch.log1p(x2 / scale2) - 1.5 * scale2.log() - 2 * math.log(math.pi)


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
