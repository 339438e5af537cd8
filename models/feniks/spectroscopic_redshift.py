"""p(z) of a spectrum, from templates and a prior in z, and draws of it with their templates.

- ``spectrum_posterior(spectrum, library, log_prior, model) -> RedshiftPosterior``: ``log_prior`` a
  function of z (k,) -> ln of the prior density in z (k,), such as `gaussian_prior` of a photometric
  redshift, or `PhotometricNodes.log_density`, with which it is the joint p(z).
- ``joint_draws(spectrum, library, posterior, n, seed, model) -> Draws``: of p(z, parameters).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.models.feniks.observed_spectrum import Spectrum
from orrery.models.feniks.redshift import NODE_STEP, RedshiftPosterior
from orrery.models.feniks.rest_spectra import STEP, at_own_redshift
from orrery.models.feniks.spectrum_fit import DEFAULT, SpectrumModel, log_likelihood
from orrery.models.feniks.templates import Library
from orrery.physics.sps.emission import H_BETA, O_III, seen

COARSE = 4  # cells, of which one is evaluated at first
COUNTS = 12.0  # below the highest ln p: cells there are negligible
NEGLIGIBLE = 8.0  # below the highest ln prior
BEND = 0.4  # of ln p over `COARSE` cells: less is interpolated
PEAK = 1.0  # below the highest ln p: all cells are evaluated
BROAD_SHARE = 0.1  # of galaxies have broad lines, a priori
BROAD_TEMPLATES = 24


def gaussian_prior(z: float, sigma: float) -> Callable[[Tensor], Tensor]:
    """ln of a normal density of redshift, up to a constant."""
    return lambda x: -0.5 * ((x - z) / sigma).square()


def spectrum_posterior(
    spectrum: Spectrum,
    library: Library,
    log_prior: Callable[[Tensor], Tensor],
    model: SpectrumModel = DEFAULT,
    best: bool = False,
    broad_share: float = BROAD_SHARE,
) -> RedshiftPosterior:
    """p(z) from a spectrum and a prior density in z.

    ``broad_share``: prior probability of broad lines of H beta and [O III], of which the likelihood
    is that of every `COARSE` cell and of `BROAD_TEMPLATES` templates.
    ``best``: the likelihood is that of the best template, not the mean. Redshifts whose prior is
    below that of the best by e^-`NEGLIGIBLE` are left out. Others are
    evaluated every `COARSE` cells, and between these where ln p bends and counts.
    """
    centres = library.log_ratio
    width = float(centres[1] - centres[0]) if len(centres) > 1 else NODE_STEP
    per_node = COARSE * max(1, round(width / STEP / COARSE))
    offsets = width * ((torch.arange(per_node, dtype=torch.float64) + 0.5) / per_node - 0.5)
    log_ratio = (centres[:, None] + offsets).flatten()
    node = torch.arange(len(centres)).repeat_interleave(per_node)
    # a cell of ln(1 + z) holds (1 + z) of z
    prior = log_prior(torch.expm1(log_ratio)) + log_ratio
    wanted = prior > prior.max() - NEGLIGIBLE
    log_l = torch.full_like(log_ratio, torch.nan)

    def with_broad(chosen: Tensor) -> Tensor:
        values = torch.full_like(log_ratio, torch.nan)
        for i in node[chosen].unique().tolist():
            rows = (chosen & (node == i)).nonzero()[:, 0]
            some = slice(None, None, max(1, len(library.log_weight[i]) // BROAD_TEMPLATES))
            found = log_likelihood(
                spectrum,
                library.grids[i],
                library.templates[i][:, some].contiguous(),
                log_ratio[rows],
                model,
                broad=True,
            )
            weight = library.log_weight[i][some]
            weight = weight - weight.logsumexp(0)
            values[rows] = (found.double() + weight).logsumexp(1)
        return _filled(values)

    def evaluate(chosen: Tensor) -> None:
        for i in node[chosen].unique().tolist():
            rows = (chosen & (node == i)).nonzero()[:, 0]
            found = log_likelihood(
                spectrum, library.grids[i], library.templates[i], log_ratio[rows], model
            )
            weighted = found.double() + library.log_weight[i]
            log_l[rows] = weighted.amax(1) if best else weighted.logsumexp(1)

    first = torch.zeros_like(wanted)
    first[COARSE // 2 :: COARSE] = True
    evaluate(wanted & first)
    found = _filled(log_l)
    evaluate(wanted & ~first & _worth(found + prior))
    plain = torch.where(wanted, _filled(log_l) + prior, -torch.inf)
    z, log_plain = torch.expm1(log_ratio), plain - plain.logsumexp(0)
    low = float(spectrum.wavelength[0]) / (1 + float(z[wanted].max()))
    high = float(spectrum.wavelength[-1]) / (1 + float(z[wanted].min()))
    if broad_share == 0 or not seen((H_BETA, O_III), low, high):
        return RedshiftPosterior(z, log_plain, log_plain)
    log_b = torch.where(wanted, with_broad(wanted & first) + prior, -torch.inf)
    log_p = torch.logaddexp(plain + math.log1p(-broad_share), log_b + math.log(broad_share))
    return RedshiftPosterior(z, log_p - log_p.logsumexp(0), log_plain)


def _filled(values: Tensor) -> Tensor:
    """Values (k,) with linear interpolation where they are NaN, constant beyond the ends."""
    known = (~values.isnan()).nonzero()[:, 0]
    filled = np.interp(np.arange(len(values)), known.numpy(), values[known].numpy())
    return torch.from_numpy(filled)


def _worth(log_p: Tensor) -> Tensor:
    """Which cells (k,) are to be evaluated themselves, of an interpolated ln p (k,)."""
    # a coarse cell and its neighbours
    near = [log_p.roll(shift) for shift in (-COARSE, 0, COARSE)]
    highest = torch.stack(near).amax(0)
    bend = (near[0] + near[2] - 2 * near[1]).abs()
    counts = highest > log_p.max() - COUNTS
    return counts & ((bend > BEND) | (highest > log_p.max() - PEAK))


class Draws(NamedTuple):
    """Of the joint posterior: ``z`` (n,), ``parameters`` (n, p), ``sigma_v`` (n,), km/s.

    ``shapes`` (n, m): the templates at the pixels of the spectrum, of any scale. ``log_weight``
    (n,): ln of p(z) without broad lines over that with them, from which draws are.
    """

    z: Tensor
    parameters: Tensor
    sigma_v: Tensor
    shapes: Tensor
    log_weight: Tensor


@torch.no_grad()
def joint_draws(
    spectrum: Spectrum,
    library: Library,
    posterior: RedshiftPosterior,
    n: int,
    seed: int = 0,
    model: SpectrumModel = DEFAULT,
) -> Draws:
    """Draws of p(z, template): z evenly in its distribution, each with a template of its node."""
    generator = torch.Generator().manual_seed(seed)
    total = posterior.log_p.exp().cumsum(0)
    place = (torch.arange(n) + torch.rand(n, generator=generator)).double() / n * total[-1]
    cell = torch.searchsorted(total, place).clamp_max(len(total) - 1)
    log_ratio = torch.log1p(posterior.z)
    node = (log_ratio[cell][:, None] - library.log_ratio).abs().argmin(1)
    log_wavelength = spectrum.wavelength.double().log()
    parameters, sigma_v, shapes = [], [], []
    for i in node.unique().tolist():
        cells, rows = cell[node == i].unique(return_inverse=True)
        log_l = log_likelihood(
            spectrum, library.grids[i], library.templates[i], log_ratio[cells], model
        )
        p = (log_l.double() + library.log_weight[i]).softmax(1)[rows]
        t = torch.multinomial(p, 1, generator=generator)[:, 0]
        at = log_ratio[cell[node == i]]
        parameters.append(library.parameters[i][t])
        sigma_v.append(library.sigma_v[i][t])
        flux = library.templates[i][:, t].T
        shapes.append(at_own_redshift(flux, library.grids[i], log_wavelength, at))
    z, log_weight = posterior.z[cell], torch.zeros_like(place)
    if posterior.log_plain is not None:
        log_weight = (posterior.log_plain - posterior.log_p)[cell]
    return Draws(z, torch.cat(parameters), torch.cat(sigma_v), torch.cat(shapes), log_weight)
