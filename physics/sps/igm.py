"""Absorption by intergalactic hydrogen (Inoue et al. 2014, MNRAS 442, 1805).

Two populations of absorbers, the Lyman-alpha forest (LAF) and damped systems (DLA), absorb in the
Lyman series and in the Lyman continuum. Their mean optical depth depends on the observed wavelength
and on the redshift of the galaxy. It is a mean: single sightlines scatter about it.
"""

import torch
from torch import Tensor

LYMAN_LIMIT = 911.8  # Angstrom, as in that paper
# Table 2 of that paper: coefficients of the Lyman series, n = 2 to 40, of the lowest redshifts.
# Those of higher ones follow: the optical depth is continuous where the power of (1 + z) changes.
FOREST_BREAKS = (2.2, 5.7)  # of observed over rest wavelength: 1 + redshift of the absorber
FOREST_POWERS = (1.2, 3.7, 5.5)
DAMPED_BREAKS = (3.0,)
DAMPED_POWERS = (2.0, 3.0)
FOREST_COEFFICIENTS = (  # times 1e-3
    16.9,
    4.692,
    2.239,
    1.319,
    0.8707,
    0.6178,
    0.4609,
    0.3569,
    0.2843,
    0.2318,
    0.1923,
    0.1622,
    0.1385,
    0.1196,
    0.1043,
    0.09174,
    0.08128,
    0.07251,
    0.06505,
    0.05868,
    0.05319,
    0.04843,
    0.04427,
    0.04063,
    0.03738,
    0.03454,
    0.03199,
    0.02971,
    0.02766,
    0.02582,
    0.02415,
    0.02263,
    0.02126,
    0.02,
    0.01885,
    0.01779,
    0.01682,
    0.01593,
    0.0151,
)
DAMPED_COEFFICIENTS = (  # times 1e-4
    1.617,
    1.545,
    1.498,
    1.46,
    1.429,
    1.402,
    1.377,
    1.355,
    1.335,
    1.316,
    1.298,
    1.281,
    1.265,
    1.25,
    1.236,
    1.222,
    1.209,
    1.197,
    1.185,
    1.173,
    1.162,
    1.151,
    1.14,
    1.13,
    1.12,
    1.11,
    1.101,
    1.091,
    1.082,
    1.073,
    1.065,
    1.056,
    1.048,
    1.04,
    1.032,
    1.024,
    1.017,
    1.009,
    1.002,
)


def transmission(wavelength: Tensor, zred: Tensor) -> Tensor:
    """Mean transmission (n, pixels) at rest wavelengths (pixels,), Angstrom, of redshifts (n,)."""
    ratio = 1 + zred.double()[:, None]
    observed = wavelength.double() * ratio
    depth = _series(observed, ratio) + _forest_continuum(observed, ratio)
    depth = depth + _damped_continuum(observed, ratio)
    return torch.exp(-depth).to(wavelength)


def _series(observed: Tensor, ratio: Tensor) -> Tensor:
    """Optical depth of the Lyman series: eqs. 21 and 22."""
    depth = torch.zeros_like(observed)
    forest_powers = [observed**power for power in FOREST_POWERS]  # slow: once for all lines
    damped_powers = [observed**power for power in DAMPED_POWERS]
    for i, (forest, damped) in enumerate(
        zip(FOREST_COEFFICIENTS, DAMPED_COEFFICIENTS, strict=True)
    ):
        n = i + 2
        line = 0.75 * 1215.67 * n**2 / (n**2 - 1)  # Rydberg's formula
        x = observed / line  # 1 + redshift of the absorber
        here = (x > 1) & (x < ratio)
        each = forest * 1e-3 * _powers(x, line, forest_powers, FOREST_BREAKS, FOREST_POWERS)
        each += damped * 1e-4 * _powers(x, line, damped_powers, DAMPED_BREAKS, DAMPED_POWERS)
        depth = depth + torch.where(here, each, 0.0)
    return depth


def _powers(
    x: Tensor,
    line: float,
    observed_powers: list[Tensor],
    breaks: tuple[float, ...],
    powers: tuple[float, ...],
) -> Tensor:
    """x to the first power, continued at each break by the next power.

    x is the observed wavelength over ``line``; ``observed_powers``: the former to each power.
    """
    value, factor = observed_powers[0] * line ** -powers[0], 1.0
    for i, edge in enumerate(breaks):
        low, high = powers[i : i + 2]
        factor *= edge ** (low - high)
        value = torch.where(x < edge, value, observed_powers[i + 1] * (factor * line**-high))
    return value


def _forest_continuum(observed: Tensor, ratio: Tensor) -> Tensor:
    """Optical depth of the forest in the Lyman continuum: eqs. 25 to 27."""
    x, r = observed / LYMAN_LIMIT, ratio
    low = 0.325 * (x**1.2 - r**-0.9 * x**2.1)
    middle_near = 2.55e-2 * r**1.6 * x**2.1 + 0.325 * x**1.2 - 0.250 * x**2.1
    middle_far = 2.55e-2 * (r**1.6 * x**2.1 - x**3.7)
    high_near = 5.22e-4 * r**3.4 * x**2.1 + 0.325 * x**1.2 - 3.14e-2 * x**2.1
    high_middle = 5.22e-4 * r**3.4 * x**2.1 + 0.218 * x**2.1 - 2.55e-2 * x**3.7
    high_far = 5.22e-4 * (r**3.4 * x**2.1 - x**5.5)
    middle = torch.where(x < 2.2, middle_near, middle_far)
    high = torch.where(x < 2.2, high_near, torch.where(x < 5.7, high_middle, high_far))
    depth = torch.where(r < 2.2, low, torch.where(r < 5.7, middle, high))
    return torch.where((x > 1) & (x < r), depth, 0.0)


def _damped_continuum(observed: Tensor, ratio: Tensor) -> Tensor:
    """Optical depth of damped systems in the Lyman continuum: eqs. 28 and 29."""
    x, r = observed / LYMAN_LIMIT, ratio
    low = 0.211 * r**2 - 7.66e-2 * r**2.3 * x**-0.3 - 0.135 * x**2
    far = 4.70e-2 * r**3 - 1.78e-2 * r**3.3 * x**-0.3 - 2.92e-2 * x**3
    near = 0.634 + 4.70e-2 * r**3 - 1.78e-2 * r**3.3 * x**-0.3 - 0.135 * x**2 - 0.291 * x**-0.3
    depth = torch.where(r < 3, low, torch.where(x < 3, near, far))
    return torch.where((x > 1) & (x < r), depth, 0.0)
