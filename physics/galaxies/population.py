"""A seeded population of galaxies with survey photometry and its exact posterior p(z | fluxes).

A galaxy is (m, T, t, z): i magnitude, population (E/S0, Sbc/Scd, Irr), continuous spectral type and
redshift, with the joint density p(m) p(T | m) p(z | T, m) p(t | T). Its photometry follows
`physics.galaxies.galaxy_colours`. `simulate` and `posterior` share every one of these densities and
the same colours, so that the posterior is the true one up to its quadrature, and its metrics are
the best that any model of these data can reach. Computations are in float64; fluxes are in uJy, AB.
"""

import functools
import math

import torch
from torch import Tensor

from orrery.physics.galaxies.galaxy_colours import Z_MAX, colours
from orrery.physics.galaxies.photometry import (
    AB_ZERO_POINT,
    LSST_BANDS,
    LSST_GAMMA,
    POGSON,
    five_sigma_flux,
    is_detected,
    lsst_depth,
    lsst_flux_error,
)

# Limits of the true i magnitude. The faint one lies beyond the limit of the observed catalogue, so
# that noise brings galaxies in from both sides of it.
M_BRIGHT, M_FAINT = 18.0, 26.0
COUNTS_SLOPE = 0.31  # d log10 N / dm of i-band counts: LSST Science Book (2009), eq. 3.7

# Of the populations E/S0, Sbc/Scd and Irr: the prior of Benitez (2000, ApJ 536, 571), eqs. 22-24
# and Table 1, for I > 20; k_t as in his code BPZ.
ALPHA = (2.46, 1.81, 0.91)
Z_0 = (0.431, 0.390, 0.063)
K_M = (0.091, 0.0636, 0.123)
FRACTION = (0.35, 0.50)  # at m = 20; Irr has the rest
K_T = (0.450, 0.147)
M_0 = 20.0  # brighter galaxies have the prior of m = 20
# Spectral type t of a population: normal, cut to [0, 1]. Ours; neighbours overlap.
TYPE_CENTRE = (0.08, 0.45, 0.80)
TYPE_WIDTH = (0.05, 0.12, 0.12)

INTRINSIC_SCATTER = 0.03  # mag in each band: real galaxies are not one line in colour space
DEPTH_SCATTER = 0.10  # mag in each band: the depth differs from place to place


def simulate(
    n: int, generator: torch.Generator, years: float = 10.0, i_limit: float = 25.0
) -> dict[str, Tensor]:
    """Draw n galaxies brighter than an *observed* i magnitude, observed after some years of LSST.

    Returns flux, flux_err (n, 6), uJy; detected (n, 6), bool; and the truth, each (n,): z, t, type
    (0: E/S0, 1: Sbc/Scd, 2: Irr), mag_i. The error is the one a survey would quote: from the
    observed flux, without the intrinsic scatter.
    """
    if n < 1:
        raise ValueError(f"simulate: n must be at least 1, got {n}")
    if not M_BRIGHT < i_limit <= M_FAINT - 0.5:
        raise ValueError(
            f"simulate: i_limit must lie in ({M_BRIGHT:g}, {M_FAINT - 0.5:g}], got {i_limit:g}; "
            f"the population ends at a true magnitude of {M_FAINT:g}"
        )
    drawn: list[dict[str, Tensor]] = []
    n_bright = 0
    while n_bright < n:
        batch = _draw(2 * n, generator, years)
        bright = batch["flux"][:, LSST_BANDS.index("i")] > _amplitude(torch.tensor(i_limit))
        drawn.append({key: value[bright] for key, value in batch.items()})
        n_bright += int(bright.sum())
    return {key: torch.cat([batch[key] for batch in drawn])[:n] for key in drawn[0]}


def _draw(n: int, generator: torch.Generator, years: float) -> dict[str, Tensor]:
    """n galaxies of the population, without a magnitude cut."""

    def uniform() -> Tensor:
        return torch.rand(n, generator=generator, dtype=torch.float64)

    def normal() -> Tensor:
        shape = (n, len(LSST_BANDS))
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    slope = COUNTS_SLOPE * math.log(10.0)
    m = M_BRIGHT + torch.log1p(uniform() * math.expm1(slope * (M_FAINT - M_BRIGHT))) / slope
    population = (uniform().unsqueeze(-1) > fractions(m).cumsum(-1)[:, :2]).sum(-1)
    z = _draw_redshift(m, population, uniform())
    centre, width = torch.tensor(TYPE_CENTRE).double(), torch.tensor(TYPE_WIDTH).double()
    low, high = torch.special.ndtr(-centre / width), torch.special.ndtr((1 - centre) / width)
    quantile = low[population] + uniform() * (high - low)[population]
    t = centre[population] + width[population] * torch.special.ndtri(quantile)
    t = t.clamp(0.0, 1.0)  # rounding only

    true_flux = _amplitude(m).unsqueeze(-1) * colours(z, t)
    flux5 = _amplitude(lsst_depth(years) + DEPTH_SCATTER * normal())
    flux = true_flux + torch.sqrt(_variance(true_flux, flux5)) * normal()
    flux_err = lsst_flux_error(flux, flux5, _gamma())
    return {
        "flux": flux,
        "flux_err": flux_err,
        "detected": is_detected(flux, flux_err),
        "z": z,
        "t": t,
        "type": population,
        "mag_i": m,
    }


def _draw_redshift(m: Tensor, population: Tensor, u: Tensor) -> Tensor:
    """z from p(z | T, m) by its inverse cumulative distribution, tabulated in x = z / z_m."""
    z = torch.empty_like(m)
    z_m = redshift_scale(m)
    for k, alpha in enumerate(ALPHA):
        rows = population == k
        scale = z_m[rows, k]
        x = torch.linspace(0.0, 1.0, 20_001, dtype=torch.float64) ** 3 * (Z_MAX / Z_0[k])
        cdf = torch.special.gammainc(_shape(alpha), x**alpha)
        top = torch.special.gammainc(_shape(alpha), (Z_MAX / scale) ** alpha)
        target = u[rows] * top
        right = torch.searchsorted(cdf, target).clamp(1, len(x) - 1)
        step = (cdf[right] - cdf[right - 1]).clamp_min(torch.finfo(torch.float64).tiny)
        inside = ((target - cdf[right - 1]) / step).clamp(0.0, 1.0)
        z[rows] = scale * (x[right - 1] + inside * (x[right] - x[right - 1]))
    return z.clamp_max(Z_MAX)


def fractions(m: Tensor) -> Tensor:
    """p(T | m), (..., 3): Benitez (2000), eq. 23."""
    faintness = (m - M_0).clamp_min(0.0)
    early, spiral = (f * torch.exp(-k * faintness) for f, k in zip(FRACTION, K_T, strict=True))
    return torch.stack([early, spiral, 1 - early - spiral], dim=-1)


def redshift_scale(m: Tensor) -> Tensor:
    """z_m of each population, (..., 3): Benitez (2000), eq. 24 with the line of Table 1."""
    faintness = (m - M_0).clamp_min(0.0).unsqueeze(-1)
    return torch.tensor(Z_0).double() + torch.tensor(K_M).double() * faintness


def redshift_density(z: Tensor, m: Tensor) -> Tensor:
    """p(z | T, m), (..., 3), on [0, Z_MAX]: z^alpha exp(-(z / z_m)^alpha), normalised (eq. 24)."""
    z_m = redshift_scale(m)
    densities = []
    for k, alpha in enumerate(ALPHA):
        # With y = (z / z_m)^alpha the integral to Z_MAX is an incomplete gamma function.
        shape, scale = _shape(alpha), z_m[..., k]
        mass = torch.special.gammainc(shape, (Z_MAX / scale) ** alpha) * torch.exp(shape.lgamma())
        x = z / scale
        densities.append(alpha / scale * x**alpha * torch.exp(-(x**alpha)) / mass)
    return torch.stack(torch.broadcast_tensors(*densities), dim=-1)


def type_density(t: Tensor) -> Tensor:
    """p(t | T), (..., 3), on [0, 1]."""
    centre, width = torch.tensor(TYPE_CENTRE).double(), torch.tensor(TYPE_WIDTH).double()
    mass = torch.special.ndtr((1 - centre) / width) - torch.special.ndtr(-centre / width)
    deviation = (t.unsqueeze(-1) - centre) / width
    return torch.exp(-0.5 * deviation**2) / (math.sqrt(2 * math.pi) * width * mass)


def magnitude_density(m: Tensor) -> Tensor:
    """p(m), per mag, on [M_BRIGHT, M_FAINT]: 10^{COUNTS_SLOPE m}, normalised."""
    slope = COUNTS_SLOPE * math.log(10.0)
    return slope * torch.exp(slope * (m - M_BRIGHT)) / math.expm1(slope * (M_FAINT - M_BRIGHT))


def prior(m: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """p(m, z, t), summed over populations; the three broadcast."""
    weight = fractions(m) * redshift_density(z, m) * type_density(t)
    return magnitude_density(m) * weight.sum(-1)


def posterior(
    flux: Tensor,
    flux_err: Tensor,
    z_grid: Tensor,
    n_types: int = 161,
    n_mags: int = 7,
    drop: float = 14.0,
    chunk: int = 16,
) -> Tensor:
    """Density p(z | flux, flux_err) on z_grid, (batch, grid), of unit integral (trapezoid).

    flux, flux_err: (batch, 6), uJy, as `simulate` gives them; NaN in either means that the band was
    not observed. z_grid: (grid,), increasing, in [0, Z_MAX]; a step of 0.01 resolves the densities.

    The likelihood of a template flux F is normal with the variance of the noise at F, so the depth
    is needed, which follows from (flux, flux_err). The quoted error is a function of the data, and
    so is the cut on the *observed* i magnitude: neither adds information on z, and the cut cancels
    in p(z | data).

    Type and magnitude are marginalised by the trapezoid rule on n_types nodes and on n_mags nodes
    within 4 sigma of the best magnitude at each (z, t). Cells (z, t) whose estimated posterior is
    below exp(-drop) of the best one are left out, for speed.
    """
    flux, flux_err, z_grid = flux.double(), flux_err.double(), z_grid.double()
    _check_data(flux, flux_err, z_grid)
    # Even steps in sqrt(t): the colours of red galaxies change fastest with t.
    root_t = torch.linspace(0.0, 1.0, n_types, dtype=torch.float64)
    t = root_t**2
    cells = colours(z_grid.unsqueeze(-1), t).reshape(-1, len(LSST_BANDS))
    log_prior = _log_prior_table(z_grid, t, 2 * root_t)
    density = torch.cat(
        [
            _posterior_chunk(f, e, cells, log_prior, len(z_grid), n_mags, drop)
            for f, e in zip(flux.split(chunk), flux_err.split(chunk), strict=True)
        ]
    )
    mass = torch.trapezoid(density, z_grid, dim=-1)
    if not bool((mass > 0).all()):
        row = int((~(mass > 0)).nonzero()[0])
        raise ValueError(
            f"posterior: no galaxy of the population has the fluxes {flux[row].tolist()} uJy of "
            f"row {row}; expected an i magnitude of {M_BRIGHT:g} to {M_FAINT:g}. Check the units"
        )
    return density / mass.unsqueeze(-1)


_PRIOR_STEP = 0.05  # mag; ln p(m, z, t) is nearly linear in m over this


def _log_prior_table(z: Tensor, t: Tensor, t_weight: Tensor) -> Tensor:
    """ln of p(m, z, t) times the quadrature weight of t, (magnitudes, z * t)."""
    n_m = round((M_FAINT - M_BRIGHT) / _PRIOR_STEP) + 1
    m = torch.linspace(M_BRIGHT, M_FAINT, n_m, dtype=torch.float64)
    p_mz = magnitude_density(m)[:, None, None] * redshift_density(z, m.unsqueeze(-1))
    p_mz = p_mz * fractions(m).unsqueeze(1)
    p_t = type_density(t) * t_weight.unsqueeze(-1)
    p_t[[0, -1]] *= 0.5
    return torch.log(torch.einsum("mzk,tk->mzt", p_mz, p_t).clamp_min(1e-300)).flatten(1)


def _posterior_chunk(
    flux: Tensor,
    flux_err: Tensor,
    cells: Tensor,
    log_prior: Tensor,
    n_z: int,
    n_mags: int,
    drop: float,
) -> Tensor:
    """Posterior on the z grid, (batch, n_z), times a constant of each object."""
    observed = torch.isfinite(flux) & torch.isfinite(flux_err)
    flux, flux_err = torch.where(observed, flux, 0.0), torch.where(observed, flux_err, 1.0)
    flux5 = five_sigma_flux(flux, flux_err, _gamma())

    # Survey all cells with the variance at the observed flux: quadratic in the amplitude.
    inverse = observed / _variance(flux, flux5)
    cross, square = (flux * inverse) @ cells.T, inverse @ (cells**2).T
    best = (cross / square).clamp(_FLUX_FAINT, _FLUX_BRIGHT)
    nearest = ((_magnitude(best) - M_BRIGHT) / _PRIOR_STEP).round().long()
    score = best * cross - 0.5 * best**2 * square + torch.gather(log_prior, 0, nearest)
    row, cell = (score > score.amax(1, keepdim=True) - drop).nonzero(as_tuple=True)

    log_mass = torch.cat(
        [
            _integrate_magnitude(
                flux[r], flux5[r], observed[r], cells[c], best[r, c], log_prior, c, n_mags
            )
            for r, c in zip(row.split(4096), cell.split(4096), strict=True)
        ]
    )
    peak = torch.full((len(flux),), -torch.inf, dtype=torch.float64)
    peak = peak.scatter_reduce(0, row, log_mass, "amax")
    density = torch.zeros(len(flux) * n_z, dtype=torch.float64)
    z_index = cell // (len(cells) // n_z)
    density.index_add_(0, row * n_z + z_index, torch.exp(log_mass - peak[row]))
    return density.reshape(len(flux), n_z)


def _integrate_magnitude(
    flux: Tensor,
    flux5: Tensor,
    observed: Tensor,
    colour: Tensor,
    amplitude: Tensor,
    log_prior: Tensor,
    cell: Tensor,
    n_mags: int,
) -> Tensor:
    """ln of the integral over m of likelihood times prior, (cells,); flux and colour (cells, 6)."""
    for _ in range(2):  # refine the amplitude with the variance at the template's flux
        inverse = observed / _variance(amplitude.unsqueeze(-1) * colour, flux5)
        square = (colour**2 * inverse).sum(-1)
        amplitude = ((flux * colour * inverse).sum(-1) / square).clamp(_FLUX_FAINT, _FLUX_BRIGHT)
    reach = 4.0 / torch.sqrt(square)
    bright = _magnitude((amplitude + reach).clamp_max(_FLUX_BRIGHT))
    faint = _magnitude((amplitude - reach).clamp_min(_FLUX_FAINT))
    node = torch.linspace(0.0, 1.0, n_mags, dtype=torch.float64)
    m = bright.unsqueeze(-1) + (faint - bright).unsqueeze(-1) * node  # (cells, nodes)

    template = _amplitude(m).unsqueeze(-1) * colour.unsqueeze(-2)
    variance = _variance(template, flux5.unsqueeze(-2))
    term = (flux.unsqueeze(-2) - template) ** 2 / variance + torch.log(variance)
    log_like = -0.5 * (term * observed.unsqueeze(-2)).sum(-1)

    position = (m - M_BRIGHT) / _PRIOR_STEP
    left = position.long().clamp(0, log_prior.shape[0] - 2)
    low = log_prior[left, cell.unsqueeze(-1)]
    high = log_prior[left + 1, cell.unsqueeze(-1)]
    log_like = log_like + low + (position - left) * (high - low)
    weight = torch.ones(n_mags, dtype=torch.float64)
    weight[[0, -1]] = 0.5
    return torch.logsumexp(log_like + torch.log(weight), -1) + torch.log(faint - bright)


def _check_data(flux: Tensor, flux_err: Tensor, z_grid: Tensor) -> None:
    n_bands = len(LSST_BANDS)
    if flux.ndim != 2 or flux.shape[1] != n_bands or flux.shape != flux_err.shape:
        raise ValueError(
            f"posterior: flux and flux_err must both be (batch, {n_bands}), got "
            f"{tuple(flux.shape)} and {tuple(flux_err.shape)}; give unobserved bands as NaN"
        )
    if bool((flux_err <= 0).any()):
        raise ValueError("posterior: flux_err must be positive; give unobserved bands as NaN")
    blind = ~(torch.isfinite(flux) & torch.isfinite(flux_err)).any(1)
    if bool(blind.any()):
        raise ValueError(f"posterior: row {int(blind.nonzero()[0])} has no observed band; drop it")
    inside = bool((z_grid >= 0).all() and (z_grid <= Z_MAX).all())
    if z_grid.ndim != 1 or len(z_grid) < 2 or not inside or not bool((z_grid.diff() > 0).all()):
        raise ValueError(f"posterior: z_grid must increase within [0, {Z_MAX:g}]")


def _variance(flux: Tensor, flux5: Tensor) -> Tensor:
    """Variance of the observed flux around the template's flux, uJy^2."""
    scatter = INTRINSIC_SCATTER / POGSON * flux.clamp_min(0.0)
    return lsst_flux_error(flux, flux5, _gamma()) ** 2 + scatter**2


def _amplitude(mag: Tensor) -> Tensor:
    return 10.0 ** (-0.4 * (mag.double() - AB_ZERO_POINT))


def _magnitude(flux: Tensor) -> Tensor:
    return AB_ZERO_POINT - 2.5 * torch.log10(flux)


_FLUX_BRIGHT = float(_amplitude(torch.tensor(M_BRIGHT)))
_FLUX_FAINT = float(_amplitude(torch.tensor(M_FAINT)))


@functools.cache
def _gamma() -> Tensor:
    return torch.tensor(LSST_GAMMA, dtype=torch.float64)


def _shape(alpha: float) -> Tensor:
    return torch.tensor(1 + 1 / alpha, dtype=torch.float64)
