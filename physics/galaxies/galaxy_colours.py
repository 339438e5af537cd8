"""Colours of galaxies against redshift and type, from an analytic family of spectra.

The family f_nu(lambda; t) runs from an elliptical (t = 0) to a starburst (t = 1): an old population
(cool black body with a 4000 A break) and a young one (hot black body with Balmer and Lyman breaks)
in a ratio that follows t, reddened by dust and crossed by four emission lines that follow t too.
The intergalactic medium absorbs the far ultraviolet.

It serves a simulation with realistic colours whose exact posterior can be computed, and is not a
stellar population model: there are no absorption lines, no metallicity or age besides t, no
evolution of a type with redshift and no nuclear activity; one number sets the spectrum.
Ellipticals are 0.1 to 0.2 mag too blue in i - z at z = 0, and beyond z = 1 the types t > 0.3 have
nearly one colour in g - r (dust makes up for age).
Wavelengths are in Angstrom, computations in float64.
"""

import functools
import math

import torch
from torch import Tensor

from orrery.physics.galaxies.photometry import LSST_BANDS, POGSON

Z_MAX = 3.0

# Half-power edges of the LSST filters (Ivezic et al. 2019, ApJ 873, 111, section 2.6). u starts at
# the atmosphere and y ends at the silicon, so both have a softer outer edge.
BAND_EDGES = {
    "u": (3400.0, 4000.0),
    "g": (4000.0, 5520.0),
    "r": (5520.0, 6910.0),
    "i": (6910.0, 8180.0),
    "z": (8180.0, 9220.0),
    "y": (9220.0, 10400.0),
}
EDGE_WIDTH = 40.0  # scale of the logistic edges: about 180 A from 10 % to 90 %
SOFT_EDGE_WIDTH = 80.0

OLD_TEMPERATURE = 4600.0  # K
YOUNG_TEMPERATURE = 30000.0
# Rest wavelength and rest equivalent width at t = 1; [O III] is the pair with its 1:3 ratio. The
# widths are those of a strong local starburst, cf. Kennicutt (1992, ApJS 79, 255).
EMISSION_LINES = (
    (3727.0, 60.0),
    (4861.0, 20.0),
    (4959.0, 20.0),
    (5007.0, 60.0),
    (6563.0, 120.0),
)
LINE_SIGMA = 12.0  # far below a band's width, and resolved by the wavelength grid

_N_Z, _N_T = 301, 61
_WAVELENGTH_STEP = 10.0


def colours(z: Tensor, t: Tensor) -> Tensor:
    """Flux in each LSST band over the flux in i, (..., 6), for redshift z and type t, (...).

    Cubic (Catmull-Rom) interpolation of the logarithm in a table: smooth and differentiable.
    Redshifts lie in [0, Z_MAX] and types in [0, 1].
    """
    z, t = torch.broadcast_tensors(torch.as_tensor(z), torch.as_tensor(t))
    table = colour_table().to(z.device)
    z_index, z_weight = _cubic_weights(z.double() / Z_MAX * (_N_Z - 1), _N_Z)
    t_index, t_weight = _cubic_weights(t.double() * (_N_T - 1), _N_T)
    log_flux = torch.zeros(*z.shape, len(LSST_BANDS), dtype=torch.float64, device=z.device)
    for a in range(4):
        for b in range(4):
            weight = z_weight[..., a] * t_weight[..., b]
            log_flux = log_flux + weight.unsqueeze(-1) * table[z_index[..., a], t_index[..., b]]
    return torch.exp(log_flux)


@functools.cache
def colour_table() -> Tensor:
    """ln(flux / flux in i), (z, t, band), on regular grids over [0, Z_MAX] and [0, 1]."""
    wavelength = torch.arange(2800.0, 11200.0, _WAVELENGTH_STEP, dtype=torch.float64)
    types = torch.linspace(0.0, 1.0, _N_T, dtype=torch.float64).unsqueeze(-1)
    # AB flux of a photon-counting detector: <f_nu> = int f_nu T dlam/lam / int T dlam/lam.
    weights = passbands(wavelength) / wavelength
    weights = (weights / weights.sum(-1, keepdim=True)).T
    flux = torch.stack(
        [
            (spectrum(wavelength / (1 + z), types) * igm_transmission(wavelength, z)) @ weights
            for z in torch.linspace(0.0, Z_MAX, _N_Z, dtype=torch.float64)
        ]
    )
    i_band = LSST_BANDS.index("i")
    # The floor, 20 mag below i, only keeps the logarithm of a fully absorbed band finite.
    return torch.log((flux / flux[..., i_band : i_band + 1]).clamp_min(1e-8))


def passbands(wavelength: Tensor) -> Tensor:
    """Transmission (6, wavelengths) of top-hat bands with logistic edges."""
    bands = []
    for name in LSST_BANDS:
        blue, red = BAND_EDGES[name]
        blue_width = SOFT_EDGE_WIDTH if name == "u" else EDGE_WIDTH
        red_width = SOFT_EDGE_WIDTH if name == "y" else EDGE_WIDTH
        rise = torch.sigmoid((wavelength - blue) / blue_width)
        bands.append(rise * torch.sigmoid((red - wavelength) / red_width))
    return torch.stack(bands)


def spectrum(rest: Tensor, t: Tensor) -> Tensor:
    """f_nu at rest wavelengths, arbitrary units, of galaxies of type t; the two broadcast."""
    young_share = 0.006 + 0.844 * t**1.5  # of the flux at 5500 A before dust
    continuum = (1 - young_share) * old_population(rest) + young_share * young_population(rest)
    ebv = 0.10 * t + 1.2 * t**2 * (1 - t)  # most dust in late spirals, a little in starbursts
    dusty = continuum * torch.exp(-ebv * calzetti(rest) / POGSON)
    lines = torch.zeros_like(rest)
    for centre, width in EMISSION_LINES:
        profile = torch.exp(-0.5 * ((rest - centre) / LINE_SIGMA) ** 2)
        lines = lines + width * profile / (LINE_SIGMA * math.sqrt(2 * math.pi))
    return dusty * (1 + t**2 * lines)


def old_population(rest: Tensor) -> Tensor:
    """Cool black body with a 4000 A break of a factor two; f_nu, one at 5500 A."""
    break_4000 = 0.55 + 0.45 * torch.sigmoid((rest - 3950.0) / 60.0)
    return planck(rest, OLD_TEMPERATURE) * break_4000


def young_population(rest: Tensor) -> Tensor:
    """Hot black body with Balmer (3646 A) and Lyman (912 A) breaks; f_nu, one at 5500 A."""
    balmer = 0.60 + 0.40 * torch.sigmoid((rest - 3700.0) / 50.0)
    lyman = torch.sigmoid((rest - 912.0) / 5.0)
    return planck(rest, YOUNG_TEMPERATURE) * balmer * lyman


def planck(wavelength: Tensor, temperature: float) -> Tensor:
    """Black-body B_nu, scaled to one at 5500 A."""
    x = 1.438777e8 / (wavelength * temperature)  # h c / k in Angstrom K (CODATA 2018)
    x_0 = 1.438777e8 / (5500.0 * temperature)
    return (5500.0 / wavelength) ** 3 * math.expm1(x_0) / torch.expm1(x)


def calzetti(wavelength: Tensor) -> Tensor:
    """Attenuation k(lambda) = A / E(B-V) of starbursts: Calzetti et al. 2000 (ApJ 533, 682), eq. 4.

    The ultraviolet form, fitted above 1200 A, is carried on to 912 A.
    """
    x = 1e4 / wavelength.clamp_min(912.0)  # per micron
    red = -1.857 + 1.040 * x
    blue = -2.156 + 1.509 * x - 0.198 * x**2 + 0.011 * x**3
    return 2.659 * torch.where(wavelength < 6300.0, blue, red) + 4.05


def igm_transmission(observed: Tensor, z: Tensor) -> Tensor:
    """Mean transmission of the intergalactic medium: Madau 1995 (ApJ 441, 18).

    Lyman alpha to delta (eqs. 12, 15) and the photoelectric optical depth (footnote 3); metals and
    the higher Lyman lines are left out. observed: Angstrom; broadcasts against z.
    """
    tau = torch.zeros(torch.broadcast_shapes(observed.shape, z.shape), dtype=observed.dtype)
    for line, strength in ((1216.0, 3.6e-3), (1026.0, 1.7e-3), (973.0, 1.2e-3), (950.0, 9.3e-4)):
        tau = tau + torch.where(observed < line * (1 + z), strength * (observed / line) ** 3.46, 0)
    emitted = 1 + z
    # The fit holds for absorbers between the observer and the source: 1 <= x_c <= 1 + z.
    x_c = torch.minimum((observed / 912.0).clamp_min(1.0), emitted)
    photoelectric = (
        0.25 * x_c**3 * (emitted**0.46 - x_c**0.46)
        + 9.4 * x_c**1.5 * (emitted**0.18 - x_c**0.18)
        - 0.7 * x_c**3 * (x_c**-1.32 - emitted**-1.32)
        - 0.023 * (emitted**1.68 - x_c**1.68)
    )
    return torch.exp(-tau - photoelectric)


def _cubic_weights(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Indices and Catmull-Rom weights (..., 4) of the nodes around a fractional index."""
    start = position.detach().floor().clamp(0, size - 2)
    u = position - start
    weights = torch.stack(
        [
            0.5 * (-u + 2 * u**2 - u**3),
            0.5 * (2 - 5 * u**2 + 3 * u**3),
            0.5 * (u + 4 * u**2 - 3 * u**3),
            0.5 * (-(u**2) + u**3),
        ],
        dim=-1,
    )
    offsets = torch.arange(-1, 3, device=position.device)
    # At the border the outermost node is repeated.
    return (start.long().unsqueeze(-1) + offsets).clamp(0, size - 1), weights
