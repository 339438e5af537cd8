"""One galaxy, fitted to its photometry and its spectrum together."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.base import Batch
from orrery.models.feniks.broad_lines import LIKELY, probability
from orrery.models.feniks.joint_posterior import joint_target, sample
from orrery.models.feniks.observed_spectrum import Spectrum, rebinned
from orrery.models.feniks.photometric_redshift import (
    PhotometricNodes,
    known_redshift,
    photometric_nodes,
)
from orrery.models.feniks.redshift import NODE_STEP, WINDOW, Mode, RedshiftPosterior
from orrery.models.feniks.spectroscopic_redshift import Draws, joint_draws, spectrum_posterior
from orrery.models.feniks.spectrum_fit import DEFAULT, Fit, SpectrumModel, prepared
from orrery.models.feniks.templates import joint_library
from orrery.models.sed_emulator import fitting
from orrery.models.sed_emulator.posterior import Emulator, Photometry
from orrery.models.sed_emulator.spectra import SpectrumNetwork

SECOND_MODE = 0.05  # probability of a redshift that is not ruled out
LEAST_WIDTH = 1e-4  # of redshift
WIDER = 1.5  # in which walkers begin
FEWEST_PIXELS = 20  # good ones, of a spectrum that is fitted
REACH = 5.0  # of its errors, beyond which no redshift is tried
FEWEST_NODES = 3  # at which photometry is fitted


class JointFit(NamedTuple):
    """``photometry``: p(z) without the spectrum; ``posterior``: with it. ``draws``: of parameters.

    ``spectrum``: what was fitted, good pixels in bins, with broad lines if ``model`` has them;
    ``error_scale``: factor by which its errors are too small, mean of the posterior.
    """

    photometry: RedshiftPosterior
    posterior: RedshiftPosterior
    draws: Draws
    spectrum: Spectrum
    model: SpectrumModel
    error_scale: float
    rhat: float  # of ensembles, the worst; NaN without


def spectrum_of(batch: Batch, row: int) -> Spectrum | None:
    """The spectrum of a row, or None if it has too few good pixels."""
    good = batch["spectrum_good"][row].bool()
    if int(good.sum()) < FEWEST_PIXELS:
        return None
    names = ("spectrum_wavelength", "spectrum_flux", "spectrum_error")
    wavelength, flux, error = (batch[name][row].double().cpu() for name in names)
    resolution = batch["spectrum_resolution"][row].cpu()
    covariance = batch.get("spectrum_covariance")
    if covariance is not None:
        covariance = covariance[row].double().cpu()
    return Spectrum(wavelength, flux, error, good.cpu(), resolution, covariance)


@torch.no_grad()
def fit_jointly(
    emulator: Emulator,
    network: SpectrumNetwork,
    start: fitting.Library,
    data: Photometry,
    spectrum: Spectrum,
    n_templates: int,
    n_draws: int,
    seed: int,
    inference: str = "ensemble",
) -> JointFit:
    """Redshift and parameters of one galaxy, ``data`` (1, bands), on the CPU.

    ``start``: `fitting.library` of the emulator; ``n_templates``: at each node of redshift. A known
    redshift counts as a measurement. Draws of "ensemble" are of walkers near each redshift that is
    possible; of "templates" they are chosen among the templates, of which few may fit.
    """
    spectrum = rebinned(spectrum)
    nodes = _nodes(emulator, start, data)
    ends = float(spectrum.wavelength[0]), float(spectrum.wavelength[-1])
    resolution = float(spectrum.resolution)
    library = joint_library(network, emulator, data, nodes, resolution, ends, n_templates, seed)

    def log_prior(z: Tensor) -> Tensor:
        zred, error = known_redshift(data)
        pull = torch.zeros_like(z) if math.isnan(zred) else (z - zred) / error
        return nodes.log_density(z) - 0.5 * pull.square()

    posterior = spectrum_posterior(spectrum, library, log_prior)
    model, broad = DEFAULT, posterior.broad
    if probability(broad.log_bayes_factor) >= LIKELY:
        model = model._replace(broad=(broad.log_ratio, broad.fwhm))
    draws = joint_draws(spectrum, library, posterior, n_draws, seed, model)
    scale, worst = _error_scale(spectrum, draws, model), math.nan
    if inference == "ensemble":
        near = _near_modes(posterior, draws)
        total = sum(mode.weight for mode, _ in near)
        found = []
        for mode, of_mode in near:
            target = joint_target(network, emulator, data, spectrum, mode.z, _width(of_mode), model)
            node = int((library.log_ratio - math.log1p(mode.z)).abs().argmin())
            n = max(1, round(n_draws * mode.weight / total))
            found.append(sample(target, library.parameters[node], n, seed))
        draws = Draws(*(torch.cat(each) for each in zip(*(f.draws for f in found), strict=True)))
        worst = max(each.rhat for each in found)
    return JointFit(nodes.posterior(), posterior, draws, spectrum, model, scale, worst)


def _near_modes(posterior: RedshiftPosterior, draws: Draws) -> list[tuple[Mode, Draws]]:
    """Redshifts that are not ruled out, each with the draws near it."""
    modes = [mode for mode in posterior.modes() if mode.weight > SECOND_MODE]
    near = []
    for mode in modes or posterior.modes(1):
        mask = (draws.z - mode.z).abs() < WINDOW
        if int(mask.sum()) > 1:
            near.append((mode, Draws(*(values[mask] for values in draws))))
    return near


def _width(draws: Draws) -> float:
    """Of redshift, above its standard deviation."""
    return WIDER * max(float(draws.z.std()), LEAST_WIDTH)


def _nodes(emulator: Emulator, start: fitting.Library, data: Photometry) -> PhotometricNodes:
    """Fits at all redshifts of the prior, or at those that a known redshift leaves."""
    i = emulator.priors.names.index("zred")
    low, high = float(emulator.priors.low[i]), float(emulator.priors.high[i])
    zred, error = known_redshift(data)
    if math.isnan(zred):
        return photometric_nodes(emulator, data, start, (low, high))
    near = min(max(zred, low), high)  # it may be beyond by an error or so
    low, high = max(near - REACH * error, low), min(near + REACH * error, high)
    step = min(NODE_STEP, math.log((1 + high) / (1 + low)) / FEWEST_NODES)
    return photometric_nodes(emulator, data, start, (low, high), step)


def _error_scale(spectrum: Spectrum, draws: Draws, model: SpectrumModel) -> float:
    """Mean of the posterior of the factor of the errors."""
    data = prepared(spectrum, model.order)
    fit = Fit.of(data, draws.shapes, torch.log1p(draws.z), model)
    share = fit.log_likelihoods().softmax(0).mean(1)
    return float(share @ torch.tensor(model.jitter).to(share))
