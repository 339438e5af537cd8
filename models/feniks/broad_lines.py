"""Broad H beta and [O III], as of an active nucleus: their evidence in a spectrum.

The profile has a place and a width on a grid, the same for all redshifts of the galaxy, of which
those within `SHIFT` count. Equivalent widths of both are half normal a priori, and integrated over,
as are the polynomial and narrow lines of the fit.

- ``broad_profiles(data, low, high) -> Profiles``: of all places that redshifts can need.
- ``log_evidence(fit, profiles) -> Tensor (k, T, c)``: ln of the likelihood with each profile.
- `Broad`: what a spectrum says of them; ``probability(log_bayes_factor, prior) -> float``.
"""

import math
from typing import NamedTuple

import torch
from scipy.special import expit
from torch import Tensor

from orrery.models.feniks.spectrum_fit import Data, Fit, broad_lines
from orrery.physics.sps.cosmology import LIGHT_SPEED

SHIFT = 3000.0  # km/s, at most
STEP = 300.0  # km/s, of places
WIDTHS = tuple(1000.0 * 6 ** (i / 6) for i in range(7))  # FWHM, km/s
PRIOR = 0.1  # probability of a broad component
LIKELY = 0.5  # of which the posterior of the galaxy allows for one


class Broad(NamedTuple):
    """ln of the evidence with broad lines over that without, and the likeliest of them.

    Their ln(1 + z), and from that of the galaxy, km/s, their shift; their FWHM, km/s.
    """

    log_bayes_factor: float
    log_ratio: float
    shift: float
    fwhm: float


UNKNOWN = Broad(*4 * (math.nan,))  # lines are not in the spectrum


class Profiles(NamedTuple):
    """``log_ratio`` (c,): ln(1 + z) of the lines; ``fwhm`` (c,), km/s.

    ``heavy`` (c, 2, m): the inverse covariance of the pixels times lines of 1 A, 1 / uJy; ``gram``
    (c, 2, 2): products of the lines by it.
    """

    log_ratio: Tensor
    fwhm: Tensor
    heavy: Tensor
    gram: Tensor

    def near(self, log_ratio: float) -> "Profiles":
        """Those that are shifted by at most `SHIFT` from ln(1 + z)."""
        rows = (self.log_ratio - log_ratio).abs() <= SHIFT / LIGHT_SPEED
        return Profiles(*(values[rows] for values in self))


def broad_profiles(data: Data, low: float, high: float) -> Profiles:
    """Of all widths, at places for galaxies at ln(1 + z) ``low`` to ``high``."""
    reach, step = SHIFT / LIGHT_SPEED, STEP / LIGHT_SPEED
    places = torch.arange(low - reach, high + reach, step, dtype=torch.float64)
    lines = torch.cat([broad_lines(data, places, width) for width in WIDTHS])  # (c, m, 2)
    white = data.whitened(lines)
    whitening = data.whitening
    heavy = whitening.mT @ white if whitening.ndim == 2 else whitening[:, None] * white
    gram = lines.mT @ heavy
    fwhm = torch.tensor(WIDTHS, dtype=torch.float64).repeat_interleave(len(places))
    return Profiles(places.repeat(len(WIDTHS)), fwhm, heavy.mT.float(), gram.float())


@torch.no_grad()
def log_evidence(fit: Fit, profiles: Profiles) -> Tensor:
    """ln likelihood of each of k redshifts, T templates and c profiles, (k, T, c).

    ``fit``: of shapes (k, T, m).
    """
    shapes, polynomials = fit.shapes, fit.data.polynomials.to(fit.shapes)
    n, c = polynomials.shape[1], len(profiles.fwhm)
    heavy = profiles.heavy.to(shapes).flatten(0, 1).T  # (m, 2 c)
    by_polynomials = (polynomials[:, :, None] * heavy[:, None]).flatten(1)
    products = (shapes @ by_polynomials).unflatten(-1, (n, 2 * c))
    pull = fit.data.flux.to(shapes) @ heavy - products[..., 0, :]  # of the residual
    if fit.lines.shape[-1]:
        by_lines = (fit.lines.mT @ heavy)[:, None].expand(-1, shapes.shape[1], -1, -1)
        products = torch.cat([products, by_lines], -2)
    gram = profiles.gram.to(shapes)
    each = [
        fit.log_likelihood_of(jitter)[..., None] + _log_gain(fit, products, pull, gram, jitter)
        for jitter in fit.model.jitter
    ]
    return torch.stack(each).logsumexp(0) - math.log(len(each))


def _log_gain(fit: Fit, products: Tensor, pull: Tensor, gram: Tensor, jitter: float) -> Tensor:
    """ln of the evidence with each profile over that without, (k, T, c).

    Of both lines' ``products`` (k, T, q, 2 c) with the fit's columns, ``pull`` (k, T, 2 c) of its
    residual and ``gram`` (c, 2, 2). The probability that both coefficients are positive is that of
    independent ones.
    """
    root, gain = fit.root(jitter)
    y = torch.linalg.solve_triangular(root, products / jitter**2, upper=False)
    force = pull / jitter**2 - (gain[..., None, :] @ y)[..., 0, :]
    f, y = force.unflatten(-1, (-1, 2)), y.unflatten(-1, (-1, 2))
    gram = gram / jitter**2
    precision = fit.model.broad_width**-2
    a = gram[:, 0, 0] - y[..., 0].square().sum(-2) + precision
    b = gram[:, 0, 1] - (y[..., 0] * y[..., 1]).sum(-2)
    d = gram[:, 1, 1] - y[..., 1].square().sum(-2) + precision
    determinant = a * d - b * b
    first = (d * f[..., 0] - b * f[..., 1]) / determinant  # most probable coefficients
    second = (a * f[..., 1] - b * f[..., 0]) / determinant
    value = 0.5 * (first * f[..., 0] + second * f[..., 1])
    value = value - 0.5 * (determinant / precision**2).log() + 2 * math.log(2)
    value = value + torch.special.log_ndtr(first * (determinant / d).sqrt())
    return value + torch.special.log_ndtr(second * (determinant / a).sqrt())


def probability(log_bayes_factor: float, prior: float = PRIOR) -> float:
    """Of a broad component."""
    odds = log_bayes_factor + math.log(prior / (1 - prior))
    return float(expit(odds))
