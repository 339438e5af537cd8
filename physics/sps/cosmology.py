"""Age of the universe and luminosity distance, as functions of redshift that can be differentiated.

Flat LambdaCDM, H0 = 70 km/s/Mpc, Omega_m = 0.3, without radiation: as most fitting codes assume.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from orrery.physics.constants import constant_like

H0 = 70.0  # km / s / Mpc
LIGHT_SPEED = 299792.458  # km / s
OMEGA_M = 0.3
HUBBLE_TIME = 977.792221 / H0  # Gyr; 1 / (1 km/s/Mpc) = 977.79 Gyr
Z_MAX = 20.0


def age_of_universe(z: Tensor) -> Tensor:
    """Age of the universe at redshift z, Gyr, shape of ``z``: the closed form without radiation."""
    omega_l = 1 - OMEGA_M
    x = math.sqrt(omega_l / OMEGA_M) * (1 + z) ** -1.5
    return 2 / 3 / math.sqrt(omega_l) * HUBBLE_TIME * torch.asinh(x)


def redshift_of_age(age: Tensor) -> Tensor:
    """The inverse of `age_of_universe`: redshift at which the universe was ``age`` old, Gyr."""
    omega_l = 1 - OMEGA_M
    x = torch.sinh(1.5 * math.sqrt(omega_l) / HUBBLE_TIME * age)
    return (math.sqrt(omega_l / OMEGA_M) / x) ** (2 / 3) - 1


def distance_modulus(z: Tensor) -> Tensor:
    """5 log10(luminosity distance / 10 pc), mag, shape of ``z``, which is above 0 and below 20."""
    table = constant_like(z, _distances)
    place = (torch.log1p(z) / math.log1p(Z_MAX) * (len(table) - 1)).clamp(0.0, len(table) - 1.001)
    i = place.detach().nan_to_num(0.0).long()  # a redshift that is NaN has a distance that is
    comoving = torch.lerp(table[i], table[i + 1], place - i)
    return 5 * torch.log10((1 + z) * comoving) + 25


def distance_modulus_slope(z: Tensor) -> Tensor:
    """d distance modulus / d z, mag."""
    comoving = 10 ** ((distance_modulus(z) - 25) / 5) / (1 + z)  # Mpc
    hubble = H0 * (OMEGA_M * (1 + z) ** 3 + 1 - OMEGA_M).sqrt()
    return 5 / math.log(10) * (1 / (1 + z) + LIGHT_SPEED / hubble / comoving)


@functools.cache
def _distances() -> Tensor:
    """Comoving distances, Mpc, float64, uniform in ln(1 + z) from 0 to `Z_MAX`."""
    from astropy.cosmology import FlatLambdaCDM

    z = np.expm1(np.linspace(0, math.log1p(Z_MAX), 4001))
    cosmology = FlatLambdaCDM(H0=H0, Om0=OMEGA_M, Tcmb0=0)
    return torch.from_numpy(cosmology.comoving_distance(z).value)
