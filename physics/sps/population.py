"""Simple stellar populations: spectra of stars of one age and one metallicity, on a common grid."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LIGHT = 2.99792458e18  # Angstrom / s
L_SUN = 3.828e33  # erg / s (IAU 2015)

# Bins of age, yr: 0.1 dex about 10^6, 10^6.1, ... 10^10.1; the first begins at 0.
LOG_AGES = tuple(6 + 0.1 * i for i in range(42))
# log10 Z / Z_sun at which models keep the surviving share of populations of any metallicities
LOG_Z = np.linspace(-2.5, 1.0, 71)
N_YOUNG = 11  # bins up to that which holds 10 Myr, the age of birth clouds
# The common grid: uniform in ln of the rest wavelength in Angstrom, 300 A to 100 um
LOG_STEP = 0.0025
LOG_START = math.log(300.0)
N_PIXELS = 3253
# The fine grid of the optical, of the resolution of MILES: 3,000 to 7,500 A, 60 km/s a pixel
FINE_STEP = 0.0002
FINE_START = math.log(3000.0)
N_FINE = 4582
FINE_FWHM = 2.5  # Angstrom, of spectra on it (Falcon-Barroso et al. 2011, A&A 532, A95)


class Population(NamedTuple):
    """Spectra of simple stellar populations, of 1 Msun formed, in bins of age.

    - ``z_sun``: what metallicities are relative to.
    - ``metallicity``: Z / Z_sun, rising.
    - ``luminosity``: L_nu, Lsun / Hz, (metallicities, ages, pixels), the mean over a bin of age.
    - ``surviving``: share of the mass formed that is left, (metallicities, ages): in living stars,
      without remnants, of BC03; NaN where a file has none.
    - ``log_u``: log10 of ionisation parameters.
    - ``nebular``: L_nu of the gas that the stars of a bin of age ionise, lines and continuum,
      (metallicities of the gas, ionisation parameters, young ages, pixels).
    - ``dust``: L_nu, 1 / Hz, of the dust's emission, whose integral over frequency is 1, (pixels,).
    - ``fine``: ``luminosity`` on the fine grid, (metallicities, ages, fine pixels).
    - ``lines``: luminosity, Lsun, of the gas's lines, which are in ``nebular`` too, (metallicities
      of the gas, ionisation parameters, young ages, lines), with their names, as Cloudy writes
      them (by ion and wavelength in air), and their wavelengths in vacuum, Angstrom.

    Pixels are those of `wavelengths`, fine ones of `fine_wavelengths`: in vacuum.
    """

    name: str
    description: str
    z_sun: float
    metallicity: Tensor
    luminosity: Tensor
    surviving: Tensor
    log_u: Tensor
    nebular: Tensor
    dust: Tensor
    fine: Tensor = torch.zeros(0, 0, 0)
    lines: Tensor = torch.zeros(0, 0, 0, 0)
    line_names: tuple[str, ...] = ()
    line_wavelength: Tensor = torch.zeros(0)


def wavelengths() -> Tensor:
    """Rest wavelengths, Angstrom, of the common grid, (pixels,), float64."""
    return torch.exp(LOG_START + LOG_STEP * torch.arange(N_PIXELS, dtype=torch.float64))


def fine_wavelengths() -> Tensor:
    """Rest wavelengths, Angstrom, of the fine grid, (fine pixels,), float64."""
    return torch.exp(FINE_START + FINE_STEP * torch.arange(N_FINE, dtype=torch.float64))


def in_vacuum(wavelength: Tensor) -> Tensor:
    """Wavelengths in vacuum, Angstrom, of those in air: Ciddor (1996, Appl. Opt. 35, 1566), eq. 1.

    Below 2,000 A they are given in vacuum anyway.
    """
    x = (1e4 / wavelength) ** 2
    index = 1 + 5.792105e-2 / (238.0185 - x) + 1.67917e-3 / (57.362 - x)
    return torch.where(wavelength > 2000, wavelength * index, wavelength)


def age_edges() -> Tensor:
    """Edges of the bins of age, Gyr, (ages + 1,), float64."""
    middle = torch.tensor(LOG_AGES, dtype=torch.float64)
    edges = 10 ** (torch.cat([middle - 0.05, middle[-1:] + 0.05]) - 9)
    edges[0] = 0.0
    return edges


def add_line(spectrum: Tensor, wavelength: float, luminosity: Tensor) -> None:
    """Add a line of ``luminosity`` (...), Lsun, to L_nu (..., pixels), in place, in two pixels."""
    place = (math.log(wavelength) - LOG_START) / LOG_STEP
    i, share = math.floor(place), place - math.floor(place)
    if not 0 <= i < N_PIXELS - 1:
        return
    for pixel, part in ((i, 1 - share), (i + 1, share)):
        frequency = LIGHT / math.exp(LOG_START + LOG_STEP * pixel)
        spectrum[..., pixel] += part * luminosity / (frequency * LOG_STEP)
