"""Maxima of the posterior of galaxies: where fits begin, and Levenberg and Marquardt's steps."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.sed_emulator.covariance import Errors, cholesky
from orrery.models.sed_emulator.networks import POGSON
from orrery.models.sed_emulator.posterior import (
    LARGEST_X,
    Emulator,
    Mode,
    Photometry,
    log_posterior_at,
    redshift_pull,
    to_flux,
    to_parameters,
)

STEPS = 8  # of Levenberg and Marquardt in a round
PADDING = 16  # rows, of whose multiples batches of fits are
ROUNDS = 4
STILL = 0.02  # gain of ln posterior that the next step promises, of a fit that is at an end
STUCK = 1e5  # damping of a fit that finds no step up
DAMPING = 1.0  # at first, in units of the prior's precision
BEND_AT = 0.2  # of a step, where the model's curvature along it is measured
MAX_BEND = 0.75  # of the length of a step
LIBRARY = 4096  # galaxies of the prior among which a fit begins
LIBRARY_SEED = 1
LIBRARY_SHARE = 0.5  # of its x but redshift and mass, at which a fit begins
LIBRARY_ERROR = 0.1  # relative, of the fluxes of that comparison
Z_TOLERANCE = 0.03  # of ln(1 + z): library galaxies at a known redshift
N_MODES = 4  # of free redshifts: fits that begin apart
MODE_DISTANCE = 0.15  # of ln(1 + z), between these


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
    i, i_zred = (emulator.priors.names.index(name) for name in ("logmass", "zred"))
    prior, middle = emulator.priors.each[i], emulator.priors.from_normal(library.x[:1])[0, i]
    found = []
    for _ in range(n):
        best = misfit.argmin(1)
        x = LIBRARY_SHARE * library.x[best]
        x[:, i_zred] = library.x[best, i_zred]
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
    zred_index: int

    def emulator_variance(self) -> Tensor:
        """Of the fluxes, (n, bands), uJy^2."""
        return (self.flux / POGSON).square() * self.errors.total()

    def weighted(self, data: Photometry, vectors: Tensor) -> Tensor:
        """The inverse covariance of the measured bands times vectors (n, bands, k), float64."""
        vectors = vectors.double()
        slope = (self.flux / POGSON).double()
        variance = data.error.double().square() + slope.square() * self.errors.variance
        weight = torch.where(data.measured, 1 / variance, 0.0)[..., None]
        factor = slope[..., None] * self.errors.factor
        scaled = factor * weight
        inner = torch.eye(factor.shape[-1]).to(factor) + factor.mT @ scaled
        solved = torch.cholesky_solve(scaled.mT @ vectors, cholesky(inner))
        return weight * vectors - scaled @ solved

    def log_posterior(self, data: Photometry, x: Tensor) -> Tensor:
        """At the same x."""
        return log_posterior_at(data, x, self.flux, self.errors, self.zred)

    def where(self, better: Tensor, other: "Linear") -> "Linear":
        """``other`` for the galaxies in the mask ``better`` (n,)."""

        def pick(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(better.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        errors = Errors(*(pick(a, b) for a, b in zip(other.errors, self.errors, strict=True)))
        return Linear(
            pick(other.flux, self.flux),
            errors,
            pick(other.slopes, self.slopes),
            pick(other.zred, self.zred),
            pick(other.zred_slope, self.zred_slope),
            self.zred_index,
        )


def linearise(emulator: Emulator, data: Photometry, x: Tensor) -> Linear:
    """The model and its derivatives at x (n, p)."""
    priors = emulator.priors
    parameters = to_parameters(priors, x, data.fixed_zred)
    by_x = priors.normal_slope(x, parameters)
    i = priors.names.index("zred")
    by_x[:, i] = torch.where(data.fixed_zred.isnan(), by_x[:, i], 0.0)
    magnitude, slopes = emulator.derivatives(parameters)
    flux = to_flux(magnitude)
    slopes = -flux[..., None] / POGSON * slopes * by_x[:, None]
    return Linear(flux, emulator.errors(parameters), slopes, parameters[:, i], by_x[:, i], i)


@torch.no_grad()
def maximise(emulator: Emulator, data: Photometry, x: Tensor) -> Mode:
    """The maximum near x (n, p), by Levenberg and Marquardt's steps.

    Galaxies of which the next step promises more take another round.
    """
    x, log_p = x.clone(), torch.full_like(x[:, 0], -torch.inf)
    damping = torch.full_like(log_p, DAMPING)
    moving = torch.arange(len(x), device=x.device)
    for _ in range(ROUNDS):
        if not len(moving):
            break
        padded = torch.cat([moving, moving[:1].expand(-len(moving) % PADDING)])
        climbed = _climb(emulator, data.rows(padded), x[padded], damping[padded])
        x[moving], damping[moving], log_p[moving], decrement = (
            values[: len(moving)] for values in climbed
        )
        moving = moving[(decrement > STILL) & (damping[moving] < STUCK)]
    linear = linearise(emulator, data, x)
    _, precision = _normal_equations(data, x, linear)
    covariance = torch.cholesky_inverse(cholesky(precision))
    free = x.shape[1] - covariance.diagonal(dim1=1, dim2=2).sum(1).to(x)
    return Mode(x, precision, log_p, _chi2(data, linear), free)


def _climb(
    emulator: Emulator, data: Photometry, x: Tensor, damping: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, damping, ln posterior after a round of steps, and what a step would gain, to first order.

    Steps are bent along the curvature of the model (Transtrum & Sethna 2012, arXiv:1201.5885).
    """
    linear = linearise(emulator, data, x)
    log_p = linear.log_posterior(data, x)
    for _ in range(STEPS):
        gradient, precision = _normal_equations(data, x, linear)
        root = cholesky(precision + torch.diag_embed(damping[:, None].expand_as(x)))
        step = torch.cholesky_solve(gradient[..., None], root)[..., 0].to(x)
        step = step + _bend(emulator, data, x, linear, step, root)
        trial = (x + step.clamp(-2, 2)).clamp(-LARGEST_X, LARGEST_X)
        other = linearise(emulator, data, trial)
        log_q = other.log_posterior(data, trial)
        better = log_q > log_p
        x = torch.where(better[:, None], trial, x)
        linear = linear.where(better, other)
        log_p = torch.where(better, log_q, log_p)
        damping = torch.where(better, damping / 4, damping * 3).clamp(1e-6, 1e6)
    gradient, precision = _normal_equations(data, x, linear)
    step = torch.cholesky_solve(gradient[..., None], cholesky(precision))[..., 0]
    return x, damping, log_p, 0.5 * (gradient * step).sum(1)


def _bend(
    emulator: Emulator, data: Photometry, x: Tensor, linear: Linear, step: Tensor, root: Tensor
) -> Tensor:
    """Second-order part (n, p) of a step, 0 where it is not small compared with the step.

    ``root``: Cholesky factor of the damped precision.
    """
    ahead = (x + BEND_AT * step).clamp(-LARGEST_X, LARGEST_X)
    parameters = to_parameters(emulator.priors, ahead, data.fixed_zred)
    change = (to_flux(emulator.emulate(parameters)) - linear.flux) / BEND_AT
    second = 2 / BEND_AT * (change - (linear.slopes @ step[..., None])[..., 0])
    force = linear.slopes.double().mT @ linear.weighted(data, second[..., None])
    bend = -0.5 * torch.cholesky_solve(force, root)[..., 0].to(x)
    is_small = bend.norm(dim=1) < MAX_BEND * step.norm(dim=1)
    return torch.where(is_small[:, None], bend, 0.0)


def _normal_equations(data: Photometry, x: Tensor, linear: Linear) -> tuple[Tensor, Tensor]:
    """Gradient (n, p) of ln posterior and its Gauss-Newton precision (n, p, p).

    The covariance is taken as constant. float64: stiff and loose directions differ by 10^6.
    """
    slopes = linear.slopes.double()
    residual = torch.where(data.measured, data.flux - linear.flux, 0.0)
    weighted = linear.weighted(data, torch.cat([slopes, residual[..., None]], 2))
    gradient = (slopes.mT @ weighted[..., -1:])[..., 0] - x
    precision = slopes.mT @ weighted[..., :-1]
    if bool(data.limited.any()):  # d and d^2 of ln Phi(t), t = (limit - flux) / width
        width = (data.error.square() + linear.emulator_variance()).sqrt()
        t = (data.flux - linear.flux) / width
        ratio = math.sqrt(2 / math.pi) / torch.special.erfcx(-t / math.sqrt(2))
        first = torch.where(data.limited, -ratio / width, 0.0)
        second = torch.where(data.limited, ratio * (ratio + t) / width.square(), 0.0)
        gradient = gradient + (slopes.mT @ first[..., None].double())[..., 0]
        precision = precision + slopes.mT @ (second.clamp_min(0)[..., None] * slopes)
    pull, pull_weight = redshift_pull(data, linear.zred)
    slope = pull_weight * linear.zred_slope
    gradient[:, linear.zred_index] += pull * slope
    precision = precision + torch.eye(x.shape[1]).to(precision)
    precision[:, linear.zred_index, linear.zred_index] += slope.square()
    return gradient, precision


def _chi2(data: Photometry, linear: Linear) -> Tensor:
    """Squared distance of measured fluxes from the model's in units of their covariance, (n,)."""
    residual = torch.where(data.measured, data.flux - linear.flux, 0.0)[..., None]
    return (residual * linear.weighted(data, residual)).sum((1, 2)).to(linear.flux)


@torch.no_grad()
def predicted_fluxes(emulator: Emulator, data: Photometry, mode: Mode) -> tuple[Tensor, Tensor]:
    """Fluxes of the model at a mode, uJy, and their errors, with the emulator's: (n, bands) each.

    The errors are those of the model that is linear about the mode, as in its precision: draws of
    Laplace's approximation, put into the model, scatter by more than the data allow, because the
    model is not linear along the directions that only the prior constrains.
    """
    linear = linearise(emulator, data, mode.x)
    root = cholesky(mode.precision)
    slopes = linear.slopes.mT.to(root)
    scatter = torch.linalg.solve_triangular(root, slopes, upper=False).square().sum(1).to(mode.x)
    return linear.flux, (scatter + linear.emulator_variance()).sqrt()
