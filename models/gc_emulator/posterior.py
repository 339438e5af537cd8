"""The posterior of a cluster given its stars, on unconstrained coordinates for HMC.

Globals (priors of arXiv:2311.03704): W0 uniform in the domain, g uniform up to its limit,
log10 M ~ N(5.85, 0.6), log10 r_h ~ N(0.7, 0.3) within (0, 1.5). With data on the sky the centre
too. Each is sampled by a number that is unit normal a priori.
Latents: the true phase-space coordinates of each star, as offsets from what was measured in units
of its error; where nothing was measured, from the centre in units of a typical value.
"""

import torch
from torch import Tensor
from torch.special import ndtr, ndtri

from models.blocks.hmc import climb
from models.gc_emulator.emulator import Cluster, IsothermalEmulator
from physics.cluster_stars import KMS_PER_MAS_YR_KPC, from_sky
from physics.lowered_isothermal import W0_MAX, W0_MIN, G, g_limit

LOG_MASS, LOG_RH, LOG_RH_TOP = (5.85, 0.6), (0.7, 0.3), 1.5
GLOBALS = ("W0", "g", "log10_mass", "log10_rh")
SKY = ("ra", "dec", "distance", "pm_ra", "pm_dec", "rv")
CENTRE = tuple(f"centre_{name}" for name in SKY)


class Stars:
    """Stars whose positions, pc, and velocities, km/s, are known, about a known centre.

    ``phase`` (sets, n, 6): a set is a data set, with a posterior of its own.
    """

    names = GLOBALS
    n_latent = 0

    def __init__(self, emulator: IsothermalEmulator, phase: Tensor) -> None:
        self.emulator = emulator
        self.r2, self.v2 = (phase[..., i : i + 3].square().sum(-1) for i in (0, 3))

    def start(self, chains: int, generator: torch.Generator) -> Tensor:
        """(sets, chains, 4) about r_h and M of the stars, by the virial theorem."""
        return _start(self.r2.sqrt().median(1).values, self.v2.mean(1), chains, generator)

    def log_prob(self, u: Tensor) -> Tensor:
        cluster, log_prior = globals_of(self.emulator, u)
        r2, v2 = (x.repeat_interleave(u.shape[1], 0) for x in (self.r2, self.v2))
        return log_prior + cluster.log_df(r2, v2).sum(1).view(u.shape[:2])

    def physical(self, u: Tensor) -> dict[str, Tensor]:
        """Named parameters, each of the shape of ``u`` without its last axis."""
        return dict(zip(GLOBALS, physical_globals(u), strict=True))


class SkyStars:
    """Stars on the sky with measurement errors, about an unknown centre; all true values sampled.

    ``observed`` and ``error`` (n, 6), as `SKY`: rad, pc, mas/yr, km/s; NaN where not measured.
    The distance is never measured star by star: ``parallax`` and ``parallax_error`` (n,), mas, are.
    """

    names = (*GLOBALS, *CENTRE)

    def __init__(
        self,
        emulator: IsothermalEmulator,
        observed: Tensor,
        error: Tensor,
        parallax: Tensor,
        parallax_error: Tensor,
        distance_prior: tuple[float, float],
    ) -> None:
        self.emulator = emulator
        self.observed, self.error = observed, error
        self.parallax, self.parallax_error = parallax, parallax_error
        self.measured = observed.isfinite() & error.isfinite()
        self.n = len(observed)
        self.n_latent = 6 * self.n
        middle = observed.nanmedian(0).values
        middle[2] = distance_prior[0]
        middle = torch.where(middle.isfinite(), middle, 0.0)
        spread = 1.4826 * (observed - middle).abs().nanmedian(0).values
        # of the sky at the distance prior: half-mass radius, dispersion, for lack of measurements
        self.typical_r = 1.3 * float(
            ((spread[:2] * torch.tensor([float(middle[1].cos()), 1.0])).mean()) * middle[2]
        )
        self.typical_v = 1e-3 * KMS_PER_MAS_YR_KPC * float(middle[2] * spread[3:5].mean())
        unit = spread.clone()
        unit[2] = distance_prior[1]
        if not bool(self.measured[:, 5].any()):
            unit[5] = 50.0  # prior of a centre's velocity that nothing measures, km/s
        self.middle, self.unit = middle, unit
        self.filled = torch.where(self.measured, observed, middle)
        scale = unit.clone()
        scale[2], scale[5] = self.typical_r, self.typical_v
        self.scale = torch.where(self.measured, error, scale)

    def start(self, chains: int, generator: torch.Generator) -> Tensor:
        """(1, chains, 10 + 6 n): the centre near the median, the stars where they were measured."""
        r, v2 = torch.tensor([self.typical_r]), torch.tensor([3 * self.typical_v**2])
        first = _start(r.double(), v2.double(), chains, generator)
        rest = torch.randn(1, chains, 6 + self.n_latent, generator=generator, dtype=torch.float64)
        return torch.cat([first, 0.05 * rest[..., :6], 0.3 * rest[..., 6:]], -1)

    def centre(self, u: Tensor) -> Tensor:
        """(..., 6) as `SKY`."""
        return self.middle + self.unit * u[..., 4:10]

    def log_prob(self, u: Tensor) -> Tensor:
        chains = u.shape[1]
        cluster, log_prior = globals_of(self.emulator, u)
        centre = self.centre(u[0])  # (chains, 6)
        # the centre: normal in distance (and in a velocity that is not measured), else uniform
        prior = torch.zeros_like(centre[0])
        prior[2] = 1.0
        prior[5] = float(not bool(self.measured[:, 5].any()))
        log_prior = log_prior - 0.5 * (prior * u[0, :, 4:10].square()).sum(-1)

        zeta = u[0, :, 10:].view(chains, self.n, 6)
        value = self.filled + self.scale * zeta
        # distances, and velocities that are not measured, are relative to the centre
        relative = (~self.measured) & torch.tensor([False, False, True, False, False, True])
        value = torch.where(relative, value - self.middle + centre[:, None], value)
        log_measured = -0.5 * (zeta.square() * self.measured).sum((1, 2))
        residual = (self.parallax - 1e3 / value[..., 2]) / self.parallax_error
        log_measured = log_measured - 0.5 * torch.where(
            residual.isfinite(), residual.square(), 0.0
        ).sum(1)
        log_volume = 4 * value[..., 2].log().sum(1)  # d^3x d^3v over the sky's coordinates
        phase = from_sky(value) - from_sky(centre)[:, None]
        r2, v2 = phase[..., :3].square().sum(-1), phase[..., 3:].square().sum(-1)
        log_f = cluster.log_df(r2, v2).sum(1)
        return log_prior + (log_f + log_measured + log_volume)[None]

    def physical(self, u: Tensor) -> dict[str, Tensor]:
        named = dict(zip(GLOBALS, physical_globals(u), strict=True))
        return named | dict(zip(CENTRE, self.centre(u).unbind(-1), strict=True))


def starting_points(
    posterior: Stars | SkyStars, chains: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Where the chains begin, (sets, chains, dim), and the covariance of the globals there.

    The likelihood has several maxima and walls where a star is no longer bound: a grid of the
    globals finds the highest, Adam climbs it, and every chain starts from there, scattered by the
    inverse Hessian of the globals.
    """
    u = posterior.start(chains if posterior.n_latent else 1, generator)
    u = torch.cat([_best_of_grid(posterior, u), u[..., 4:]], -1)
    u = climb(posterior.log_prob, u, 200, 0.01)
    top = posterior.log_prob(u).detach().argmax(1)
    best = u[torch.arange(len(u)), top][:, None]
    k = len(posterior.names)
    hessian = _hessian(posterior, best, k)
    values, vectors = torch.linalg.eigh(hessian)
    # a direction that the data do not hold has the width of the prior
    covariance = vectors @ torch.diag_embed(1 / values.clamp_min(0.3)) @ vectors.mT
    noise = torch.randn(len(u), chains, k, generator=generator, dtype=torch.float64)
    shift = noise @ torch.linalg.cholesky(covariance).mT
    while not bool((fine := _not_lost(posterior, best, shift)).all()):
        shift = torch.where(fine[..., None], shift, 0.5 * shift)
    latents = u[..., k:].expand(-1, chains, -1)
    return torch.cat([best[..., :k] + shift, latents], -1), covariance


def _best_of_grid(posterior: Stars | SkyStars, u: Tensor) -> Tensor:
    """The best globals of a grid about those of ``u``, (sets, chains, 4), with its latents."""
    best, value = u[..., :4], posterior.log_prob(u).detach()
    _, _, log_mass, log_rh = physical_globals(u)
    axes = (
        torch.linspace(2, 13, 9).double(),
        torch.tensor([0.1, 0.35, 0.6, 0.85]).double(),
        torch.linspace(-0.2, 0.4, 9).double(),
        torch.linspace(-0.2, 0.3, 7).double(),
    )
    for W0, share, more_mass, more_rh in torch.cartesian_prod(*axes):
        first = unit_globals(W0, share, log_mass + more_mass, (log_rh + more_rh).clamp(0.05, 1.45))
        with torch.no_grad():
            found = posterior.log_prob(torch.cat([first, u[..., 4:]], -1))
        better = found > value
        value = torch.where(better, found, value)
        best = torch.where(better[..., None], first, best)
    return best


def _not_lost(posterior: Stars | SkyStars, best: Tensor, shift: Tensor) -> Tensor:
    """Whether a chain starts no more than 20 below the best in ln p, (sets, chains)."""
    k, latents = shift.shape[-1], best.expand(-1, shift.shape[1], -1)
    u = torch.cat([best[..., :k] + shift, latents[..., k:]], -1)
    return posterior.log_prob(u) > posterior.log_prob(best) - 20


def _hessian(posterior: Stars | SkyStars, u: Tensor, k: int, step: float = 1e-4) -> Tensor:
    """-d^2 ln p of the first ``k`` coordinates, (sets, k, k), by differences of gradients."""

    def gradient(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(posterior.log_prob(at).sum(), at)[0][:, 0, :k]

    rows = []
    for i in range(k):
        shift = torch.zeros_like(u)
        shift[..., i] = step
        rows.append((gradient(u - shift) - gradient(u + shift)) / (2 * step))
    hessian = torch.stack(rows, 1)
    return 0.5 * (hessian + hessian.mT)


def physical_globals(u: Tensor) -> tuple[Tensor, ...]:
    """W0, g, log10 M and log10 r_h of ``u`` (..., 4 or more), whose prior is unit normal."""
    W0 = W0_MIN + (W0_MAX - W0_MIN) * ndtr(u[..., 0])
    g = g_limit(W0) * ndtr(u[..., 1])
    low, high = _rh_shares()
    log_rh = LOG_RH[0] + LOG_RH[1] * ndtri(low + (high - low) * ndtr(u[..., 3]))
    return W0, g, LOG_MASS[0] + LOG_MASS[1] * u[..., 2], log_rh


def unit_globals(W0: Tensor, share: Tensor, log_mass: Tensor, log_rh: Tensor) -> Tensor:
    """The inverse of `physical_globals`, (..., 4); ``share``: g over its limit."""
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


def globals_of(emulator: IsothermalEmulator, u: Tensor) -> tuple[Cluster, Tensor]:
    """The cluster of each chain, flattened, and the log prior of ``u`` (sets, chains, ...)."""
    W0, g, log_mass, log_rh = physical_globals(u)
    cluster = emulator.cluster(*(x.flatten() for x in (W0, g, 10**log_mass, 10**log_rh)))
    return cluster, -0.5 * u[..., :4].square().sum(-1)


def _start(r: Tensor, v2: Tensor, chains: int, generator: torch.Generator) -> Tensor:
    """Globals about r_h = ``r`` and M = r v2 / (0.4 G), (sets, chains, 4)."""
    log_rh, log_mass = r.log10().clamp(0.1, 1.4), (r * v2 / (0.4 * G)).log10()
    u = unit_globals(torch.full_like(r, 5.0), torch.full_like(r, 0.5), log_mass, log_rh)
    noise = torch.randn(len(r), chains, 4, generator=generator, dtype=torch.float64)
    return u[:, None] + noise * torch.tensor([0.2, 0.2, 0.03, 0.03], dtype=torch.float64)
