"""Template spectra at rest, from the network of spectra, as a spectrograph would see them.

- ``rest_grid(low, high) -> Tensor (n,)``: ln rest wavelength, in steps of `STEP` (60 km/s).
- ``rest_spectra(network, parameters, sigma_v, resolution, grid) -> Tensor (T, n)``: broadened f_nu
  at rest of any scale, which can be differentiated; ``rest_templates``: the same as columns.
- ``shifted(templates, grid, log_wavelength, log_ratio) -> Tensor (k, T, m)``: at observed pixels,
  each seen from k redshifts; ``at_own_redshift(...) -> Tensor (n, m)``: each from its own.
"""

import math

import torch
from torch import Tensor

from orrery.models.sed_emulator.spectra import SpectrumNetwork
from orrery.physics.sps.attenuation import behind_dust
from orrery.physics.sps.cosmology import LIGHT_SPEED
from orrery.physics.sps.emission import FWHM, instrument_sigma
from orrery.physics.sps.observed import line_profiles
from orrery.physics.sps.population import (
    FINE_FWHM,
    FINE_START,
    FINE_STEP,
    LOG_START,
    LOG_STEP,
    N_FINE,
    N_PIXELS,
)
from orrery.physics.sps.synthesis import DUST

STEP = FINE_STEP  # of ln wavelength, and of ln(1 + z)
TAILS = 4.0  # sigma, at which a Gaussian ends


def rest_grid(low: float, high: float) -> Tensor:
    """ln of rest wavelengths between ``low`` and ``high``, Angstrom, pixels of the fine grid."""
    first = math.floor((math.log(low) - FINE_START) / STEP)
    last = math.ceil((math.log(high) - FINE_START) / STEP)
    return FINE_START + STEP * torch.arange(first, last + 1, dtype=torch.float64)


@torch.no_grad()
def rest_templates(
    network: SpectrumNetwork, parameters: Tensor, sigma_v: Tensor, resolution: float, grid: Tensor
) -> Tensor:
    """`rest_spectra` as columns, (n, T)."""
    parts = [
        rest_spectra(network, parameters[rows], sigma_v[rows], resolution, grid)
        for rows in torch.arange(len(parameters)).split(128)
    ]
    return torch.cat(parts).T.contiguous()


def rest_spectra(
    network: SpectrumNetwork, parameters: Tensor, sigma_v: Tensor, resolution: float, grid: Tensor
) -> Tensor:
    """L_nu at rest, (T, n), of galaxies (T, p) on a `rest_grid` (n,), with their lines.

    ``sigma_v`` (T,): velocity dispersion of stars and gas, km/s; ``resolution`` of the
    spectrograph. Of 1 Msun formed. Beyond 3,000 to 7,500 A spectra have pixels of 750 km/s. Can be
    differentiated by parameters and dispersions.
    """
    light = network.light(parameters)
    first = round((float(grid[0]) - FINE_START) / STEP)
    start, stop = max(first, 0), min(first + len(grid), N_FINE)
    dust = [network.column(parameters, name) for name in DUST]
    if start == first and stop == first + len(grid):
        pixels = slice(N_PIXELS + start, N_PIXELS + stop)
        basis = network.basis[:, pixels]
        bright, clouds = light.bright @ basis, light.clouds @ basis
        flux = behind_dust(network.wavelength[pixels], bright, clouds, *dust)
    else:
        coarse = network.common_spectrum(parameters, light, slice(0, N_PIXELS), True, False)
        flux = _stitched(network.rest_spectrum(parameters, light), coarse, grid)
    flux = broadened(flux, grid, sigma_v, resolution)
    if network.lines:
        sigma = torch.hypot(sigma_v, sigma_v.new_tensor(instrument_sigma(resolution)))
        place = network.line_wavelength
        near = (place.log() > grid[0]) & (place.log() < grid[-1])
        strength = network.rest_lines(parameters, light)[:, near]
        zero = torch.zeros_like(sigma)
        width = sigma / LIGHT_SPEED
        flux = flux + line_profiles(strength, place[near], grid.exp(), zero, width)
    return flux


def _stitched(fine: Tensor, coarse: Tensor, grid: Tensor) -> Tensor:
    """``fine`` where it is, else ``coarse``, (T, n) on ``grid`` (n,)."""
    place = (grid - LOG_START) / LOG_STEP
    low = place.floor().long().clamp(0, N_PIXELS - 2)
    values = torch.lerp(coarse[:, low], coarse[:, low + 1], (place - low).to(coarse))
    pixel = ((grid - FINE_START) / STEP).round().long()
    inside = (pixel >= 0) & (pixel < N_FINE)
    values[:, inside] = fine[:, pixel[inside]]
    return values


def broadened(flux: Tensor, grid: Tensor, sigma_v: Tensor, resolution: float) -> Tensor:
    """Spectra (T, n) on ``grid`` seen at ``resolution`` with dispersions ``sigma_v`` (T,), km/s.

    Those of the library have a FWHM of 2.5 A already. At the ends the last pixel is repeated.
    """
    sigma = torch.hypot(sigma_v, sigma_v.new_tensor(instrument_sigma(resolution))) / LIGHT_SPEED
    own = (FINE_FWHM / FWHM * (-grid).exp()).to(flux)
    width = (sigma.square()[:, None] - own.square()).clamp_min((0.5 * STEP) ** 2).sqrt() / STEP
    reach = math.ceil(TAILS * float(width.detach().max()))
    padded = torch.nn.functional.pad(flux[None], (reach, reach), mode="replicate")[0]
    # weights exp(-k^2 / (2 width^2)) of successive k, each from the last one
    ratio, weight = torch.exp(-0.5 / width.square()), torch.ones_like(flux)
    square = ratio.square()
    total, norm = flux.clone(), torch.ones_like(flux)
    n = flux.shape[1]
    for k in range(1, reach + 1):
        weight, ratio = weight * ratio, ratio * square
        total += weight * (
            padded[:, reach - k : reach - k + n] + padded[:, reach + k : reach + k + n]
        )
        norm += 2 * weight
    return total / norm


def at_own_redshift(
    flux: Tensor, grid: Tensor, log_wavelength: Tensor, log_ratio: Tensor
) -> Tensor:
    """Rest spectra (n, pixels) at ln wavelengths (m,), each from its ln(1 + z) (n,): (n, m)."""
    place = (log_wavelength - log_ratio.double()[:, None] - grid[0]) / STEP
    low = place.detach().floor().long().clamp(0, len(grid) - 2)
    share = place - low
    return torch.lerp(flux.gather(1, low).double(), flux.gather(1, low + 1).double(), share)


def shifted(templates: Tensor, grid: Tensor, log_wavelength: Tensor, log_ratio: Tensor) -> Tensor:
    """Templates (n, T) at observed ln wavelengths (m,) seen from ln(1 + z) (k,): (k, T, m)."""
    place = (log_wavelength - log_ratio.double()[:, None] - grid[0]) / STEP
    low = place.floor().long().clamp(0, len(grid) - 2)
    share = (place - low).to(templates)[..., None]
    return torch.lerp(templates[low], templates[low + 1], share).mT
