"""Dust: two screens, and what they absorb as infrared emission.

Stars older than 10 Myr lie behind the diffuse dust, younger ones behind that of their birth cloud
too (Charlot & Fall 2000, ApJ 539, 718), as in FSPS and Prospector-alpha.
"""

import torch
from torch import Tensor

from orrery.physics.sps.population import LIGHT, LOG_STEP

BIRTH_CLOUD_AGE = 0.01  # Gyr
BIRTH_CLOUD_SLOPE = -1.0  # of the optical depth against wavelength
V_BAND = 5500.0  # Angstrom: optical depths are those at this wavelength
R_V = 4.05  # Calzetti et al. 2000
DUST_TEMPERATURE = 35.0  # K, of the modified black body that emits what is absorbed
DUST_BETA = 1.8  # its emissivity rises as frequency to this power
HC_OVER_K = 1.438776877e8  # Angstrom K


def calzetti(wavelength: Tensor) -> Tensor:
    """A(lambda)/A(5500 A) of starbursts, ``wavelength`` in Angstrom.

    Calzetti et al. (2000, ApJ 533, 682), eqs. 4a and 4b, from 0.12 to 2.2 um; below 1200 A as
    wavelength^-0.77, beyond 2.2 um by the same formula, and zero from 3.1 um, where it is negative.
    """
    x = 1e4 / wavelength  # 1 / um
    blue = 2.659 * (-2.156 + 1.509 * x - 0.198 * x**2 + 0.011 * x**3) + R_V
    red = 2.659 * (-1.857 + 1.040 * x) + R_V
    edge = x.new_full((), 1e4 / 1200.0)
    at_edge = 2.659 * (-2.156 + 1.509 * edge - 0.198 * edge**2 + 0.011 * edge**3) + R_V
    far = at_edge * (wavelength / 1200.0) ** -0.77
    curve = torch.where(wavelength < 1200, far, torch.where(wavelength < 6300, blue, red))
    return curve.clamp_min(0.0) / _calzetti_v()


def calzetti_slope(wavelength: Tensor) -> Tensor:
    """d `calzetti` / d ln wavelength."""
    x = 1e4 / wavelength
    blue = -2.659 * (1.509 * x - 2 * 0.198 * x**2 + 3 * 0.011 * x**3)
    red = -2.659 * 1.040 * x
    curve = calzetti(wavelength)
    slope = torch.where(wavelength < 6300, blue, red) / _calzetti_v()
    slope = torch.where(wavelength < 1200, -0.77 * curve, slope)
    return torch.where(curve > 0, slope, 0.0)


def _calzetti_v() -> float:
    x = 1e4 / V_BAND
    return 2.659 * (-2.156 + 1.509 * x - 0.198 * x**2 + 0.011 * x**3) + R_V


def diffuse_depth(wavelength: Tensor, dust2: Tensor, dust_index: Tensor) -> Tensor:
    """Optical depth (n, pixels) of diffuse dust: Calzetti's curve times a power law.

    ``dust2``: depth at 5500 A, (n,); ``dust_index``: exponent of the power law in wavelength, (n,):
    negative is steeper. As in Noll et al. (2009, A&A 507, 1793), eq. 5, without a bump.
    """
    slope = dust_index[:, None] * (wavelength / V_BAND).log()
    return dust2[:, None] * calzetti(wavelength) * slope.exp()


def birth_cloud_depth(wavelength: Tensor, dust1: Tensor) -> Tensor:
    """Optical depth (n, pixels) of birth clouds; ``dust1``: at 5500 A, (n,)."""
    return dust1[:, None] * (wavelength / V_BAND) ** BIRTH_CLOUD_SLOPE


def behind_dust(
    wavelength: Tensor,
    bright: Tensor,
    clouds: Tensor,
    dust2: Tensor,
    dust_index: Tensor,
    dust1_fraction: Tensor,
) -> Tensor:
    """What emerges (n, pixels) of the light of stars outside birth clouds, and in them.

    ``dust1_fraction``: depth of birth clouds over ``dust2``, (n,).
    """
    # depths are proportional to dust2: with its sign changed, no pass over the pixels is lost
    diffuse = torch.exp(diffuse_depth(wavelength, -dust2, dust_index))
    cloud = torch.exp(birth_cloud_depth(wavelength, -dust1_fraction * dust2))
    return (bright + clouds * cloud) * diffuse


def reemitted(wavelength: Tensor, absorbed: Tensor, template: Tensor) -> Tensor:
    """L_nu (n, pixels) of dust that has ``absorbed`` light, L_nu on pixels of the common grid.

    ``template`` (pixels,): L_nu whose integral over frequency is 1.
    """
    energy = (absorbed / wavelength).sum(1, keepdim=True) * LIGHT * LOG_STEP
    return energy * template


def black_body_dust(wavelength: Tensor) -> Tensor:
    """L_nu, 1/Hz, (pixels,), of a modified black body whose integral over frequency is 1."""
    wide = torch.logspace(4, 8, 4001, dtype=torch.float64)  # 1 um to 1 cm

    def shape(lam: Tensor) -> Tensor:
        return (V_BAND / lam) ** (3 + DUST_BETA) / torch.expm1(
            (HC_OVER_K / (lam * DUST_TEMPERATURE)).clamp_max(600)
        )

    frequency = 2.99792458e18 / wide
    total = torch.trapezoid(shape(wide) * frequency, wide.log())
    return shape(wavelength.double()) / total
