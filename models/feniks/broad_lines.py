"""Is there a broad component of H beta and [O III], as in an active nucleus?

The evidence of a spectrum with a broad, shifted component over that without, with all else
integrated over: template and redshift by draws of their posterior without the component, the
polynomial and narrow lines exactly, and the component's shift, width and ratio of lines on a grid.

- ``broad_component(spectrum, draws, model) -> Broad``: ``log_bayes_factor``, and the most probable
  shift and FWHM, km/s; NaN where neither line is in the spectrum.
- ``probability(log_bayes_factor, prior) -> float``: of the component.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.feniks.observed_spectrum import Spectrum
from orrery.models.feniks.spectroscopic_redshift import Draws
from orrery.models.feniks.spectrum_fit import DEFAULT, Data, Fit, SpectrumModel, prepared
from orrery.physics.sps.emission import FWHM, H_BETA, O_III, instrument_sigma, line_shapes, seen

SHIFTS = tuple(range(-3000, 3001, 500))  # km/s
WIDTHS = (1000.0, 1500.0, 2200.0, 3200.0, 4500.0, 6000.0)  # FWHM, km/s
ANGLES = tuple(math.pi / 8 * i for i in range(5))  # H beta: cosine, [O III]: sine of it
EQUIVALENT_WIDTH = 40.0  # Angstrom at rest: scale of the half normal prior
PRIOR = 0.1  # probability of a broad component


class Broad(NamedTuple):
    log_bayes_factor: float
    shift: float
    fwhm: float


@torch.no_grad()
def broad_component(spectrum: Spectrum, draws: Draws, model: SpectrumModel = DEFAULT) -> Broad:
    """The evidence of a broad component over none: its mean over ``draws`` of none."""
    data = prepared(spectrum, model.order)
    log_ratio = torch.log1p(draws.z)
    ends = data.log_wavelength[0] - log_ratio.median(), data.log_wavelength[-1] - log_ratio.median()
    if not seen((H_BETA, O_III), *(float(end.exp()) for end in ends)):
        return Broad(math.nan, math.nan, math.nan)
    fit = Fit.of(data, draws.shapes, log_ratio, model)
    share = fit.log_likelihoods().softmax(0)  # of values of the jitter
    profiles = _profiles(data, log_ratio)  # (n, m, components, 2)
    total = torch.stack(
        [
            each.log()[:, None] + _log_gain(fit, profiles, jitter)
            for each, jitter in zip(share, model.jitter, strict=True)
        ]
    ).logsumexp(0)  # (n, components)
    n, n_components = total.shape
    total = total + draws.log_weight[:, None]
    by_component = total.logsumexp(0) - math.log(n)
    best = int(by_component.argmax())
    return Broad(
        float(by_component.logsumexp(0)) - math.log(n_components),
        float(SHIFTS[best // len(WIDTHS)]),
        WIDTHS[best % len(WIDTHS)],
    )


def _profiles(data: Data, log_ratio: Tensor) -> Tensor:
    """Lines of 1 A of all shifts and widths, uJy, (n, m, components, 2)."""
    instrument = instrument_sigma(data.resolution)
    wavelength = data.log_wavelength.exp()
    shapes = [
        line_shapes(
            (H_BETA, O_III), wavelength, log_ratio, math.hypot(width / FWHM, instrument), shift
        )
        for shift in SHIFTS
        for width in WIDTHS
    ]
    return torch.stack(shapes, 2) * data.mean


def _log_gain(fit: Fit, profiles: Tensor, jitter: float) -> Tensor:
    """ln of the evidence with each component over that without, (n, components)."""
    root, gain = fit.root(jitter)
    components = profiles.shape[2]
    white = fit.data.whitened(profiles.flatten(2)) / jitter
    columns = fit.data.whitened(fit.columns) / jitter
    residual = fit.data.whitened((fit.data.flux - fit.shapes)[..., None])[..., 0] / jitter
    y = torch.linalg.solve_triangular(root, columns.mT @ white, upper=False)
    pull = (white.mT @ residual[..., None] - y.mT @ gain[..., None])[..., 0]
    pull = pull.unflatten(1, (components, 2))
    w, y = white.unflatten(2, (components, 2)), y.unflatten(2, (components, 2))
    gram = torch.einsum("nmci,nmcj->ncij", w, w) - torch.einsum("nqci,nqcj->ncij", y, y)
    angle = torch.tensor(ANGLES, dtype=torch.float64)
    direction = torch.stack([angle.cos(), angle.sin()], 1)  # (angles, 2)
    f = pull @ direction.T  # (n, components, angles)
    h = torch.einsum("ai,ncij,aj->nca", direction, gram, direction) + EQUIVALENT_WIDTH**-2
    value = 0.5 * f.square() / h - 0.5 * (h * EQUIVALENT_WIDTH**2).log()
    value = value + math.log(2) + torch.special.log_ndtr(f / h.sqrt())
    return value.logsumexp(2) - math.log(len(ANGLES))


def probability(log_bayes_factor: float, prior: float = PRIOR) -> float:
    """Of a broad component."""
    odds = log_bayes_factor + math.log(prior / (1 - prior))
    return 1 / (1 + math.exp(-odds))
