"""Fitting galaxies with the emulator: maximum, Laplace's approximation and HMC, in batches.

Parameters are functions of standard normal numbers x, one each (`Priors.from_normal`), so that the
prior of x is a unit normal whatever that of the parameters. Fluxes are compared linearly, with the
covariance of the measurement plus that of the emulator.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from orrery.models.base import Batch
from orrery.models.inference.hmc import HMC
from orrery.models.sed_emulator.covariance import Errors, woodbury
from orrery.models.sed_emulator.networks import POGSON
from orrery.physics.galaxies.photometry import AB_ZERO_POINT
from orrery.physics.sps.priors import Priors

STEPS = 14  # of Levenberg and Marquardt
DAMPING = 1e-2
LIBRARY = 4096  # galaxies of the prior among which a fit begins
LIBRARY_SEED = 1
LIBRARY_ERROR = 0.1  # relative, of the fluxes of that comparison
Z_TOLERANCE = 0.03  # of ln(1 + z): library galaxies at a known redshift
N_MODES = 4  # of free redshifts: fits that begin apart
MODE_DISTANCE = 0.15  # of ln(1 + z), between these
LARGEST_X = 4.5  # standard normal numbers are kept within


class Emulator(Protocol):
    """What fitting needs of the model."""

    priors: Priors

    def emulate(self, parameters: Tensor) -> Tensor:
        """AB magnitudes (n, bands) of parameters (n, p)."""

    def derivatives(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """These, and their derivatives by parameters, (n, bands, p)."""

    def errors(self, parameters: Tensor) -> Errors:
        """Covariance of the emulator's error."""


class Photometry(NamedTuple):
    """Fluxes of galaxies, uJy, (n, bands).

    ``is_limit``: the flux is an upper limit, whose ``error`` is the width of its edge. ``zred``
    (n,): a known redshift, NaN where it is not known; ``zred_error`` (n,): its error, 0 if exact.
    """

    flux: Tensor
    error: Tensor
    observed: Tensor
    is_limit: Tensor
    zred: Tensor
    zred_error: Tensor

    def rows(self, index: Tensor) -> "Photometry":
        return Photometry(*(values[index] for values in self))

    @property
    def fixed_zred(self) -> Tensor:
        """The redshift where it is exact, else NaN, (n,)."""
        return torch.where(self.zred_error > 0, torch.nan, self.zred)

    @property
    def measured(self) -> Tensor:
        return self.observed & ~self.is_limit

    @property
    def limited(self) -> Tensor:
        return self.observed & self.is_limit


def photometry(batch: Batch) -> Photometry:
    """The photometry in a batch of `datamodules.sed_emulator`."""
    error = batch.get("zred_error", torch.zeros_like(batch["zred"]))
    flux, observed = batch["flux"], batch["observed"]
    return Photometry(flux, batch["flux_error"], observed, batch["is_limit"], batch["zred"], error)


class Mode(NamedTuple):
    """A maximum of the posterior of galaxies, and its normal approximation.

    ``x`` (n, p): standard normal numbers of the parameters; ``precision`` (n, p, p): of x;
    ``log_p`` (n,): posterior density there; ``chi2`` (n,); ``constraint`` (n,): how many parameters
    the data determine, 0 to p.
    """

    x: Tensor
    precision: Tensor
    log_p: Tensor
    chi2: Tensor
    constraint: Tensor

    def log_evidence(self) -> Tensor:
        """ln of the evidence by Laplace's approximation, up to a constant, (n,)."""
        root = torch.linalg.cholesky(self.precision)
        return self.log_p - root.diagonal(dim1=1, dim2=2).log().sum(1)


# --- the posterior ----------------------------------------------------------------------------


def to_parameters(priors: Priors, x: Tensor, zred: Tensor) -> Tensor:
    """Parameters (n, p) of standard normal numbers x (n, p), at the known redshifts (n,)."""
    parameters = priors.from_normal(x.clamp(-LARGEST_X, LARGEST_X))
    i = priors.names.index("zred")
    known = torch.where(zred.isnan(), parameters[:, i], zred)
    return torch.cat([parameters[:, :i], known[:, None], parameters[:, i + 1 :]], 1)


def to_flux(magnitude: Tensor) -> Tensor:
    """uJy."""
    return torch.exp((AB_ZERO_POINT - magnitude) / POGSON)


def log_posterior(emulator: Emulator, data: Photometry, x: Tensor) -> Tensor:
    """ln posterior density (n,) of x (n, p), up to a constant."""
    parameters = to_parameters(emulator.priors, x, data.fixed_zred)
    flux = to_flux(emulator.emulate(parameters))
    errors = emulator.errors(parameters)
    prior = -0.5 * x.square().sum(1)
    zred = parameters[:, emulator.priors.names.index("zred")]
    pull = _pull(data, zred)[0]
    return prior - 0.5 * pull.square() + _log_likelihood(data, flux, errors)


def _pull(data: Photometry, zred: Tensor) -> tuple[Tensor, Tensor]:
    """(known redshift - zred) in its errors, (n,), and 1 / error; 0 where it is exact or free."""
    counted = (data.zred_error > 0) & ~data.zred.isnan()
    weight = torch.where(counted, 1 / data.zred_error, 0.0)
    return torch.where(counted, (data.zred - zred) * weight, 0.0), weight


def _log_likelihood(data: Photometry, flux: Tensor, errors: Errors) -> Tensor:
    slope = flux / POGSON  # |d flux / d mag|
    variance = data.error.square() + slope.square() * errors.variance
    variance = torch.where(data.measured, variance, torch.inf)
    residual = torch.where(data.measured, data.flux - flux, 0.0)
    measured = woodbury(residual, variance, slope[..., None] * errors.factor)
    width = (data.error.square() + slope.square() * errors.total()).sqrt()
    below = torch.special.log_ndtr((data.flux - flux) / width)
    return measured + torch.where(data.limited, below, 0.0).sum(1)


# --- where fits begin -------------------------------------------------------------------------


class Library(NamedTuple):
    """Galaxies drawn from the prior: x (k, p), ln(1 + z) (k,), fluxes (k, bands), uJy."""

    x: Tensor
    log_ratio: Tensor
    flux: Tensor


@torch.no_grad()
def library(emulator: Emulator, device: torch.device) -> Library:
    priors = emulator.priors
    generator = torch.Generator().manual_seed(LIBRARY_SEED)
    x = torch.randn(LIBRARY, len(priors.names), generator=generator).to(device)
    x[:, priors.names.index("logmass")] = 0
    parameters = priors.from_normal(x)
    log_ratio = torch.log1p(parameters[:, priors.names.index("zred")])
    flux = torch.cat([to_flux(emulator.emulate(part)) for part in parameters.split(4096)])
    return Library(x, log_ratio, flux)


@torch.no_grad()
def starts(emulator: Emulator, data: Photometry, library: Library, n: int) -> Tensor:
    """x of the library's best galaxies with a mass of their own, (n modes, galaxies, p)."""
    weight = data.error.square() + (LIBRARY_ERROR * data.flux).square()
    weight = torch.where(data.observed, 1 / weight, 0.0)
    limit = torch.where(data.is_limit, 0.0, data.flux)
    cross = (weight * limit) @ library.flux.T
    norm = (weight @ library.flux.square().T).clamp_min(1e-30)
    amplitude = (cross / norm).clamp_min(1e-6)
    misfit = norm * amplitude.square() - 2 * cross * amplitude
    known = torch.log1p(data.zred)[:, None] - library.log_ratio
    tolerance = torch.hypot(data.zred_error / (1 + data.zred), torch.tensor(Z_TOLERANCE).to(known))
    penalty = torch.where(known.isnan(), 0.0, (known / tolerance[:, None]).square())
    misfit = misfit + penalty * (1 + misfit.abs().amin(1, keepdim=True))
    i = emulator.priors.names.index("logmass")
    prior, middle = emulator.priors.each[i], emulator.priors.from_normal(library.x[:1])[0, i]
    found = []
    for _ in range(n):
        best = misfit.argmin(1)
        x = library.x[best].clone()
        mass = middle + amplitude.gather(1, best[:, None])[:, 0].log10()
        unit = prior.to_unit(mass).clamp(1e-3, 1 - 1e-3)
        x[:, i] = torch.special.ndtri(unit)
        found.append(x)
        near = (library.log_ratio - library.log_ratio[best][:, None]).abs() < MODE_DISTANCE
        misfit = torch.where(near, torch.inf, misfit)
    return torch.stack(found)


# --- the maximum ------------------------------------------------------------------------------


class Linear(NamedTuple):
    """The model about x (n, p): fluxes (n, bands) and redshifts (n,) with derivatives by x.

    ``errors``: of the emulator. ``slopes``: d flux / d x, (n, bands, p); ``zred_slope``: d zred / d
    its own x, (n,).
    """

    flux: Tensor
    errors: Errors
    slopes: Tensor
    zred: Tensor
    zred_slope: Tensor


def linearise(emulator: Emulator, data: Photometry, x: Tensor) -> Linear:
    """The model and its derivatives at x (n, p)."""
    priors = emulator.priors

    def parameters_of(x: Tensor) -> Tensor:
        return to_parameters(priors, x, data.fixed_zred)

    # each parameter is a function of its own x alone, so that all derivatives are one
    parameters, by_x, *_ = torch.func.jvp(parameters_of, (x,), (torch.ones_like(x),))
    magnitude, slopes = emulator.derivatives(parameters)
    flux = to_flux(magnitude)
    slopes = -flux[..., None] / POGSON * slopes * by_x[:, None]
    i = priors.names.index("zred")
    return Linear(flux, emulator.errors(parameters), slopes, parameters[:, i], by_x[:, i])


@torch.no_grad()
def maximise(emulator: Emulator, data: Photometry, x: Tensor) -> Mode:
    """The maximum near x (n, p), by Levenberg and Marquardt's steps."""
    damping = torch.full_like(x[:, 0], DAMPING)
    log_p = log_posterior(emulator, data, x)
    for _ in range(STEPS):
        gradient, precision = _normal_equations(emulator, data, x, linearise(emulator, data, x))
        diagonal = precision.diagonal(dim1=1, dim2=2)
        damped = precision + torch.diag_embed(damping[:, None] * diagonal)
        step = torch.cholesky_solve(gradient[..., None], torch.linalg.cholesky(damped))[..., 0]
        trial = (x + step.clamp(-2, 2)).clamp(-LARGEST_X, LARGEST_X)
        log_q = log_posterior(emulator, data, trial)
        better = log_q > log_p
        x = torch.where(better[:, None], trial, x)
        log_p = torch.where(better, log_q, log_p)
        damping = torch.where(better, damping / 4, damping * 5).clamp(1e-6, 1e6)
    linear = linearise(emulator, data, x)
    _, precision = _normal_equations(emulator, data, x, linear)
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
    free = x.shape[1] - covariance.diagonal(dim1=1, dim2=2).sum(1)
    return Mode(x, precision, log_p, _chi2(data, linear), free)


def _normal_equations(
    emulator: Emulator, data: Photometry, x: Tensor, linear: Linear
) -> tuple[Tensor, Tensor]:
    """Gradient (n, p) of ln posterior and its Gauss-Newton precision (n, p, p).

    The covariance is taken as constant.
    """
    flux, errors, slopes = linear.flux, linear.errors, linear.slopes
    magnitudes = flux / POGSON
    variance = data.error.square() + magnitudes.square() * errors.variance
    weight = torch.where(data.measured, 1 / variance, 0.0)
    factor = magnitudes[..., None] * errors.factor
    scaled = factor * weight[..., None]
    inner = torch.eye(factor.shape[-1]).to(factor) + factor.mT @ scaled
    residual = torch.where(data.measured, data.flux - flux, 0.0)
    design = torch.cat([slopes, residual[..., None]], 2)
    across = scaled.mT @ design
    solved = torch.cholesky_solve(across, torch.linalg.cholesky(inner))
    whitened = weight[..., None] * design - scaled @ solved
    gradient = (slopes.mT @ whitened[..., -1:])[..., 0] - x
    precision = slopes.mT @ whitened[..., :-1]
    if bool(data.limited.any()):  # d and d^2 of ln Phi(t), t = (limit - flux) / width
        width = (data.error.square() + magnitudes.square() * errors.total()).sqrt()
        t = (data.flux - flux) / width
        ratio = torch.exp(-0.5 * t.square() - torch.special.log_ndtr(t)) / math.sqrt(2 * math.pi)
        first = torch.where(data.limited, -ratio / width, 0.0)
        second = torch.where(data.limited, ratio * (ratio + t) / width.square(), 0.0)
        gradient = gradient + (slopes.mT @ first[..., None])[..., 0]
        precision = precision + slopes.mT @ (second.clamp_min(0)[..., None] * slopes)
    pull, pull_weight = _pull(data, linear.zred)
    slope = pull_weight * linear.zred_slope
    i = emulator.priors.names.index("zred")
    gradient[:, i] += pull * slope
    precision = precision + torch.eye(x.shape[1]).to(x)
    precision[:, i, i] += slope.square()
    return gradient, precision


def _chi2(data: Photometry, linear: Linear) -> Tensor:
    """Squared distance of measured fluxes from the model's in units of their covariance, (n,)."""
    slope = linear.flux / POGSON
    variance = data.error.square() + slope.square() * linear.errors.variance
    variance = torch.where(data.measured, variance, torch.inf)
    factor = slope[..., None] * linear.errors.factor
    residual = torch.where(data.measured, data.flux - linear.flux, 0.0)
    zero = torch.zeros_like(residual)
    return 2 * (woodbury(zero, variance, factor) - woodbury(residual, variance, factor))


# --- draws ------------------------------------------------------------------------------------


def laplace_draws(modes: list[Mode], n_draws: int, seed: int) -> Tensor:
    """Draws of x, (galaxies, draws, p), from the modes' normals, in proportion to evidence."""
    first = modes[0]
    n, p = first.x.shape
    generator = torch.Generator().manual_seed(seed)
    weight = torch.stack([mode.log_evidence() for mode in modes], 1).softmax(1)
    edges = weight.cumsum(1)
    place = torch.rand(n_draws, generator=generator).to(edges) + torch.arange(n_draws).to(edges)
    chosen = torch.searchsorted(edges, (place / n_draws).expand(n, -1).contiguous())
    chosen = chosen.clamp_max(len(modes) - 1)
    noise = torch.randn(n_draws, p, generator=generator).to(first.x)
    draws = torch.zeros(n, n_draws, p).to(first.x)
    for i, mode in enumerate(modes):
        root = torch.linalg.cholesky(mode.precision)
        step = torch.linalg.solve_triangular(root.mT, noise.T.expand(n, -1, -1), upper=True)
        mine = mode.x[:, None] + step.mT
        draws = torch.where((chosen == i)[..., None], mine, draws)
    return draws.clamp(-LARGEST_X, LARGEST_X)


def hmc_draws(
    emulator: Emulator,
    data: Photometry,
    modes: list[Mode],
    chains: int,
    warmup: int,
    n_draws: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Draws of x, (galaxies, draws, p), by HMC from Laplace's approximation, and split R-hat.

    Chains begin in the modes in proportion to their evidence, and do not pass between them.
    """
    start = laplace_draws(modes, chains, seed).double()
    best = torch.stack([mode.log_evidence() for mode in modes], 1).argmax(1)
    precision = torch.stack([mode.precision for mode in modes], 1)
    chosen = precision[torch.arange(len(best)), best].double()
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(chosen))
    repeated = data.rows(torch.arange(len(best)).repeat_interleave(chains))

    def target(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1).float()
        return log_posterior(emulator, repeated, flat).double().reshape(x.shape[:2])

    sampler = HMC(target, start, warmup, seed, covariance=covariance, max_steps=32)
    for _ in range(warmup):
        sampler.advance()
    kept = [sampler.advance() for _ in range(math.ceil(n_draws / chains))]
    draws = torch.stack(kept, 2)  # (galaxies, chains, iterations, p)
    return draws.flatten(1, 2).float(), draws
