"""p(z) of a spectrum, from templates and a prior in z, and draws of it with their templates.

- ``spectrum_posterior(spectrum, library, log_prior, model) -> RedshiftPosterior``: ``log_prior`` a
  function of z (k,) -> ln of the prior density in z (k,), such as `gaussian_prior` of a photometric
  redshift, or `PhotometricNodes.log_density`, with which it is the joint p(z).
- ``joint_draws(spectrum, library, posterior, n, seed, model) -> Draws``: of p(z, parameters).
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.models.feniks.broad_lines import PRIOR, Broad, broad_profiles, log_evidence
from orrery.models.feniks.observed_spectrum import Spectrum
from orrery.models.feniks.redshift import NODE_STEP, RedshiftPosterior
from orrery.models.feniks.rest_spectra import STEP, at_own_redshift, shifted
from orrery.models.feniks.spectrum_fit import (
    DEFAULT,
    Fit,
    SpectrumModel,
    log_likelihood,
    prepared,
)
from orrery.models.feniks.templates import Library
from orrery.physics.sps.cosmology import LIGHT_SPEED
from orrery.physics.sps.emission import H_BETA, O_III, seen

COARSE = 4  # cells, of which one is evaluated at first
COUNTS = 12.0  # below the highest ln p: cells there are negligible
NEGLIGIBLE = 8.0  # below the highest ln prior
BEND = 0.4  # of ln p over `COARSE` cells: less is interpolated
PEAK = 1.0  # below the highest ln p: all cells are evaluated
BROAD_TEMPLATES = 24
# cells of which one is evaluated with broad lines -> how far ln p is below the highest, at most
BROAD_STEPS = {8: math.inf, 4: 12.0, 2: 6.0}
NOTICED = 4.0  # below the highest ln p without broad lines: less is interpolated


def gaussian_prior(z: float, sigma: float) -> Callable[[Tensor], Tensor]:
    """ln of a normal density of redshift, up to a constant."""
    return lambda x: -0.5 * ((x - z) / sigma).square()


def spectrum_posterior(
    spectrum: Spectrum,
    library: Library,
    log_prior: Callable[[Tensor], Tensor],
    model: SpectrumModel = DEFAULT,
    best: bool = False,
    broad_share: float = PRIOR,
) -> RedshiftPosterior:
    """p(z) from a spectrum and a prior density in z.

    ``broad_share``: prior probability of broad lines of H beta and [O III]. ``best``: the
    likelihood is that of the best template, not the mean. Redshifts whose prior is below that of
    the best by e^-`NEGLIGIBLE` are left out. Others are evaluated every `COARSE` cells, and between
    these where ln p bends and counts; see `_with_broad_lines` for those with broad lines.
    """
    centres = library.log_ratio
    width = float(centres[1] - centres[0]) if len(centres) > 1 else NODE_STEP
    per_node = COARSE * max(1, round(width / STEP / COARSE))
    offsets = width * ((torch.arange(per_node, dtype=torch.float64) + 0.5) / per_node - 0.5)
    log_ratio = (centres[:, None] + offsets).flatten()
    # a cell of ln(1 + z) holds (1 + z) of z
    prior = log_prior(torch.expm1(log_ratio)) + log_ratio
    wanted = prior > prior.max() - NEGLIGIBLE
    log_l = torch.full_like(log_ratio, torch.nan)

    def evaluate(chosen: Tensor) -> None:
        for i, rows in _by_node(chosen, per_node):
            found = log_likelihood(
                spectrum, library.grids[i], library.templates[i], log_ratio[rows], model
            )
            weighted = found.double() + library.log_weight[i]
            log_l[rows] = weighted.amax(1) if best else weighted.logsumexp(1)

    first = _every(COARSE, wanted)
    evaluate(first)
    evaluate(wanted & ~first & _worth(_filled(log_l) + prior))
    z, plain = torch.expm1(log_ratio), torch.where(wanted, _filled(log_l) + prior, -torch.inf)
    log_p = plain - plain.logsumexp(0)
    if broad_share == 0 or not _sees_lines(spectrum, z[wanted]):
        return RedshiftPosterior(z, log_p)
    broad, likeliest = _with_broad_lines(
        spectrum, library, log_ratio, prior, wanted, plain - math.log(broad_share), model
    )
    log_p = torch.logaddexp(plain + math.log1p(-broad_share), broad + math.log(broad_share))
    found = RedshiftPosterior(z, log_p - log_p.logsumexp(0))
    if not _sees_lines(spectrum, z.new_tensor([found.quantile(0.5)])):
        return found
    log_bayes = float(broad.logsumexp(0) - plain.logsumexp(0))
    return found._replace(broad=Broad(log_bayes, *likeliest))


def _with_broad_lines(
    spectrum: Spectrum,
    library: Library,
    log_ratio: Tensor,
    prior: Tensor,
    wanted: Tensor,
    plain: Tensor,
    model: SpectrumModel,
) -> tuple[Tensor, tuple[float, float, float]]:
    """ln p (k,) of cells ``log_ratio`` (k,) if there are broad lines, and the likeliest lines.

    By `BROAD_TEMPLATES` templates, every `BROAD_STEPS` cells: the first of these for all that are
    ``wanted`` (k,), the others near those whose ln p is not far below the highest, also of
    ``plain`` (k,), that without broad lines, with the odds of both.
    """
    data = prepared(spectrum, model.order)
    ends = log_ratio[wanted][[0, -1]].tolist()
    profiles = broad_profiles(data, *ends)
    log_l = torch.full_like(log_ratio, torch.nan)
    likeliest: dict[int, tuple[float, float, float]] = {}
    for step, below in BROAD_STEPS.items():
        chosen = _every(step, wanted) & log_l.isnan()
        if likeliest:
            log_p = _filled(log_l) + prior
            chosen &= log_p > torch.maximum(log_p[wanted].max() - below, plain.max() - NOTICED)
        elif not bool(chosen.any()):  # a prior narrower than a step
            chosen = wanted
        for i, rows in _by_node(chosen, len(log_ratio) // len(library.log_ratio)):
            some = slice(None, None, math.ceil(len(library.log_weight[i]) / BROAD_TEMPLATES))
            weight = library.log_weight[i][some].log_softmax(0)
            templates = library.templates[i][:, some].contiguous()
            for row in rows.tolist():
                at, near = log_ratio[row : row + 1], profiles.near(float(log_ratio[row]))
                shapes = shifted(templates, library.grids[i], data.log_wavelength, at)
                found = log_evidence(Fit.of(data, shapes, at, model), near)[0].double()
                by_profile = (found + weight[:, None]).logsumexp(0)
                log_l[row] = by_profile.logsumexp(0) - math.log(len(by_profile))
                best = int(by_profile.argmax())
                place, fwhm = float(near.log_ratio[best]), float(near.fwhm[best])
                likeliest[row] = place, LIGHT_SPEED * (place - float(at)), fwhm
    log_p = torch.where(wanted, _filled(log_l) + prior, -torch.inf)
    return log_p, likeliest[max(likeliest, key=lambda row: float(log_p[row]))]


def _by_node(chosen: Tensor, per_node: int) -> Iterator[tuple[int, Tensor]]:
    """Places of the ``chosen`` cells (k,) by node, of which each has ``per_node``."""
    for i, rows in enumerate(chosen.split(per_node)):
        if bool(rows.any()):
            yield i, i * per_node + rows.nonzero()[:, 0]


def _every(step: int, wanted: Tensor) -> Tensor:
    """Those of the ``wanted`` cells (k,) whose place is the middle of ``step`` ones."""
    is_middle = torch.zeros_like(wanted)
    is_middle[step // 2 :: step] = True
    return wanted & is_middle


def _sees_lines(spectrum: Spectrum, z: Tensor) -> bool:
    """Whether H beta or [O III] lies in the spectrum at any of the redshifts (k,)."""
    low = float(spectrum.wavelength[0]) / (1 + float(z.max()))
    high = float(spectrum.wavelength[-1]) / (1 + float(z.min()))
    return bool(seen((H_BETA, O_III), low, high))


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

    ``shapes`` (n, m): the templates at the pixels of the spectrum, of any scale.
    """

    z: Tensor
    parameters: Tensor
    sigma_v: Tensor
    shapes: Tensor


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
    return Draws(posterior.z[cell], torch.cat(parameters), torch.cat(sigma_v), torch.cat(shapes))
