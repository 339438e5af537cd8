"""The posterior of a cluster given its stars, on unconstrained coordinates for HMC.

Priors of arXiv:2311.03704: W0 uniform in the domain, g uniform up to its limit, log10 M / Msun ~
N(5.85, 0.6), log10 r_h / pc ~ N(0.7, 0.3) within (0, 1.5). Each parameter is sampled by a number u
that is unit normal a priori, which leaves no long tails where the data say little.
"""

import torch
from torch import Tensor
from torch.special import ndtr, ndtri

from models.blocks.hmc import climb
from models.gc_emulator.emulator import Cluster, IsothermalEmulator
from physics.lowered_isothermal import W0_MAX, W0_MIN, G, g_limit

LOG_MASS, LOG_RH, LOG_RH_TOP = (5.85, 0.6), (0.7, 0.3), 1.5
PARAMETERS = ("W0", "g", "log10_mass", "log10_rh")


class Stars:
    """Stars whose positions, pc, and velocities, km/s, are known, about a known centre.

    ``phase`` (sets, n, 6): a set is a data set, with a posterior of its own.
    """

    def __init__(self, emulator: IsothermalEmulator, phase: Tensor) -> None:
        self.emulator = emulator
        self.r2, self.v2 = (phase[..., i : i + 3].square().sum(-1) for i in (0, 3))

    def log_prob(self, u: Tensor) -> Tensor:
        """ln posterior, (sets, chains), of ``u`` (sets, chains, 4)."""
        cluster, log_prior = cluster_of(self.emulator, u)
        r2, v2 = (x.repeat_interleave(u.shape[1], 0) for x in (self.r2, self.v2))
        return log_prior + cluster.log_df(r2, v2).sum(1).view(u.shape[:2])

    def named(self, u: Tensor) -> dict[str, Tensor]:
        """Named parameters, each of the shape of ``u`` without its last axis."""
        return dict(zip(PARAMETERS, physical(u), strict=True))


def starting_points(
    posterior: Stars, chains: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Where the chains begin, (sets, chains, 4), and the covariance there, (sets, 4, 4).

    The likelihood has several maxima and walls where a star is no longer bound: a grid of the
    parameters finds the highest, Adam climbs it, and every chain starts from there, scattered by
    the inverse Hessian.
    """
    best = climb(posterior.log_prob, _best_of_grid(posterior), 200, 0.01)
    values, vectors = torch.linalg.eigh(_hessian(posterior, best))
    # a direction that the data do not hold has the width of the prior
    covariance = vectors @ torch.diag_embed(1 / values.clamp_min(0.3)) @ vectors.mT
    noise = torch.randn(len(best), chains, 4, generator=generator, dtype=torch.float64)
    shift = noise @ torch.linalg.cholesky(covariance).mT
    lowest = posterior.log_prob(best).detach() - 20
    while bool((lost := posterior.log_prob(best + shift) < lowest).any()):
        shift = torch.where(lost[..., None], 0.5 * shift, shift)
    return best + shift, covariance


def _best_of_grid(posterior: Stars) -> Tensor:
    """The best of a grid about the virial mass and the median radius of the stars, (sets, 1, 4)."""
    r, v2 = posterior.r2.sqrt().median(1, keepdim=True).values, posterior.v2.mean(1, keepdim=True)
    log_rh, log_mass = r.log10(), (r * v2 / (0.4 * G)).log10()  # G M = v2 r_h / 0.4
    grid = torch.cartesian_prod(
        torch.linspace(2, 13, 9, dtype=torch.float64),
        torch.tensor([0.1, 0.35, 0.6, 0.85], dtype=torch.float64),
        torch.linspace(-0.2, 0.4, 9, dtype=torch.float64),
        torch.linspace(-0.2, 0.3, 7, dtype=torch.float64),
    )
    best, value = torch.zeros(len(r), 1, 4, dtype=torch.float64), torch.full_like(r, -torch.inf)
    for W0, share, more_mass, more_rh in grid:
        u = whitened(W0, share, log_mass + more_mass, (log_rh + more_rh).clamp(0.05, 1.45))
        with torch.no_grad():
            found = posterior.log_prob(u)
        best = torch.where((found > value)[..., None], u, best)
        value = torch.maximum(found, value)
    return best


def _hessian(posterior: Stars, u: Tensor, step: float = 1e-4) -> Tensor:
    """-d^2 ln p, (sets, 4, 4), at ``u`` (sets, 1, 4), by differences of gradients."""

    def gradient(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(posterior.log_prob(at).sum(), at)[0][:, 0]

    rows = []
    for i in range(4):
        shift = torch.zeros_like(u)
        shift[..., i] = step
        rows.append((gradient(u - shift) - gradient(u + shift)) / (2 * step))
    hessian = torch.stack(rows, 1)
    return 0.5 * (hessian + hessian.mT)


def physical(u: Tensor) -> tuple[Tensor, ...]:
    """W0, g, log10 M and log10 r_h of ``u`` (..., 4), whose prior is unit normal."""
    W0 = W0_MIN + (W0_MAX - W0_MIN) * ndtr(u[..., 0])
    g = g_limit(W0) * ndtr(u[..., 1])
    low, high = _rh_shares()
    log_rh = LOG_RH[0] + LOG_RH[1] * ndtri(low + (high - low) * ndtr(u[..., 3]))
    return W0, g, LOG_MASS[0] + LOG_MASS[1] * u[..., 2], log_rh


def whitened(W0: Tensor, share: Tensor, log_mass: Tensor, log_rh: Tensor) -> Tensor:
    """The inverse of `physical`, (..., 4); ``share``: g over its limit."""
    low, high = _rh_shares()
    values = (
        ndtri((W0 - W0_MIN) / (W0_MAX - W0_MIN)),
        ndtri(share),
        (log_mass - LOG_MASS[0]) / LOG_MASS[1],
        ndtri((ndtr((log_rh - LOG_RH[0]) / LOG_RH[1]) - low) / (high - low)),
    )
    return torch.stack(torch.broadcast_tensors(*values), -1)


def _rh_shares() -> tuple[Tensor, Tensor]:
    """Cumulative normal at the ends of the prior of log10 r_h."""
    ends = torch.tensor([0.0, LOG_RH_TOP], dtype=torch.float64)
    low, high = ndtr((ends - LOG_RH[0]) / LOG_RH[1])
    return low, high


def cluster_of(emulator: IsothermalEmulator, u: Tensor) -> tuple[Cluster, Tensor]:
    """The cluster of each chain, flattened, and the log prior of ``u`` (sets, chains, 4)."""
    W0, g, log_mass, log_rh = physical(u)
    cluster = emulator.cluster(*(x.flatten() for x in (W0, g, 10**log_mass, 10**log_rh)))
    return cluster, -0.5 * u.square().sum(-1)
