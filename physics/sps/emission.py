"""Emission lines of gas as groups of fixed ratios, and their profiles in a spectrum.

Wavelengths are in vacuum, Angstrom (NIST). Strengths are luminosities relative to the first line of
a group: of Balmer lines case B at 10^4 K and 100 cm^-3 (Osterbrock & Ferland 2006, table 4.4); of
[O III] and [N II] by atomic physics, 1:2.98 (Storey & Zeippen 2000, MNRAS 312, 813) and 1:3.05; of
[O II] and [S II] at low density.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.physics.sps.cosmology import LIGHT_SPEED
from orrery.physics.sps.observed import FWHM


class Group(NamedTuple):
    """Lines that are seen together: ``wavelength``, Angstrom in vacuum, and relative strengths."""

    name: str
    wavelength: tuple[float, ...]
    strength: tuple[float, ...]


NARROW = (
    Group("[O II]", (3729.88, 3727.09), (1.0, 0.75)),
    Group("[Ne III]", (3869.86, 3968.59), (1.0, 0.30)),
    Group("H beta", (4862.68, 4341.68, 4102.89, 3971.20), (1.0, 0.469, 0.259, 0.159)),
    Group("[O III]", (5008.24, 4960.30), (1.0, 1 / 2.98)),
    Group("[O I]", (6302.05, 6365.54), (1.0, 0.33)),
    Group("H alpha", (6564.61,), (1.0,)),
    Group("[N II]", (6585.27, 6549.86), (1.0, 1 / 3.05)),
    Group("[S II]", (6718.29, 6732.67), (1.0, 0.75)),
    Group("[S III]", (9533.20, 9071.10), (1.0, 0.40)),
    Group("He I", (10833.3,), (1.0,)),
    Group("Pa beta", (12821.6,), (1.0,)),
    Group("Pa alpha", (18756.1,), (1.0,)),
)
BEYOND = 9.0  # standard deviations, where a Gaussian is below 1e-17 of its peak
H_BETA = Group("H beta", (4862.68,), (1.0,))
O_III = Group("[O III]", (5008.24, 4960.30), (1.0, 1 / 2.98))


def line_shapes(
    groups: Sequence[Group],
    wavelength: Tensor,
    log_ratio: Tensor,
    sigma: Tensor | float,
    shift: Tensor | float = 0.0,
) -> Tensor:
    """f_nu (k, m, groups) of lines over that of the continuum, for an equivalent width of 1 A.

    ``wavelength`` (m,): observed, Angstrom in vacuum, rising; ``log_ratio`` (k,): ln(1 + z);
    ``sigma`` and ``shift`` (k,) or numbers: width and redshift of the lines, km/s. The equivalent
    width is at rest, of the first line of a group, over a continuum that is flat in f_nu.
    """
    log_wavelength, ratio = wavelength.double().log(), log_ratio.double()[:, None]
    width = torch.as_tensor(sigma).to(ratio).expand(len(ratio))[:, None] / LIGHT_SPEED
    moved = ratio + torch.as_tensor(shift).to(ratio).expand(len(ratio))[:, None] / LIGHT_SPEED
    reach = BEYOND * float(width.detach().max())
    ends = moved.detach().aminmax()
    shapes = []
    for group in groups:
        total = log_wavelength.new_zeros(len(ratio), len(log_wavelength))
        first = group.wavelength[0]
        for line, strength in zip(group.wavelength, group.strength, strict=True):
            at = math.log(line)  # and beyond the ends there is nothing
            near = torch.stack([ends.min + at - reach, ends.max + at + reach])
            pixels = slice(*torch.searchsorted(log_wavelength, near).tolist())
            t = (log_wavelength[pixels] - at - moved) / width
            # L_nu at the peak is L lambda / c sigma sqrt(2 pi)
            total[:, pixels] += strength * line / first * torch.exp(-0.5 * t * t)
        shapes.append(total / (first * math.sqrt(2 * math.pi) * width))
    return torch.stack(shapes, -1)


def seen(groups: Sequence[Group], low: float, high: float) -> list[Group]:
    """Groups of which a line lies between two rest wavelengths, Angstrom."""
    return [group for group in groups if any(low < line < high for line in group.wavelength)]


def instrument_sigma(resolution: float) -> float:
    """Velocity dispersion, km/s, of a spectrograph of a resolution: wavelength over FWHM."""
    return LIGHT_SPEED / (FWHM * resolution)
