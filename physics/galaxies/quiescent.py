"""Quiescent galaxies: boxes in rest-frame colours as their authors drew them, and by definition.

Boxes differ between authors, and each was drawn for its redshifts. Colours are AB.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from orrery.physics.sps.cosmology import age_of_universe

# Filters at rest, as of `physics.sps.filters.load_filter`: U and V of Bessell (1990, PASP 102,
# 1181), and J of 2MASS. Colours of U, V and J by EAZY are of the curves of Maiz Apellaniz (2006,
# AJ 131, 1184), eazy:153 and eazy:155, and of 2MASS, eazy:161, whose pivot wavelengths are within
# 0.15% of these. Top hats: synthetic u, g and i of Antwi-Danso et al. (2023, ApJ 943, 166).
REST_BANDS = {
    "U": "bessell_U",
    "V": "bessell_V",
    "J": "twomass_J",
    "us": "tophat:2700:3100",
    "gs": "tophat:4300:4700",
    "is": "tophat:7000:8000",
}
COLOURS = {"u_v": ("U", "V"), "v_j": ("V", "J"), "us_gs": ("us", "gs"), "gs_is": ("gs", "is")}
QUIESCENT_SHARE = 0.2  # of 1 / age of the universe


class Box(NamedTuple):
    """Quiescent: y above ``y_low`` and ``slope`` x + ``level``, x below ``x_high``."""

    x: str  # names of `COLOURS`
    y: str
    slope: float
    level: float
    y_low: float
    x_high: float
    reference: str


BOXES = {
    "williams2009": Box(
        "v_j", "u_v", 0.88, 0.49, 1.3, 1.6, "Williams et al. 2009, ApJ 691, 1879: z 1 to 2"
    ),
    "whitaker2011": Box(
        "v_j", "u_v", 0.88, 0.59, 1.2, 1.4, "Whitaker et al. 2011, ApJ 735, 86, eq. 15: z 2 to 3.5"
    ),
    "muzzin2013": Box(
        "v_j", "u_v", 0.88, 0.59, 1.3, 1.5, "Muzzin et al. 2013, ApJ 777, 18: z 1 to 4"
    ),
    "antwi_danso2023_uvj": Box(
        "v_j", "u_v", 0.98, 0.38, 1.23, 1.67, "Antwi-Danso et al. 2023, ApJ 943, 166"
    ),
    "antwi_danso2023_ugi": Box(
        "gs_is", "us_gs", 0.73, 1.08, 1.5, 1.8, "Antwi-Danso et al. 2023, ApJ 943, 166"
    ),
}  # fmt: skip


def inside(box: Box, x: Tensor, y: Tensor) -> Tensor:
    """Mask (...) of the colours x and y (...), mag (AB), that are of quiescent galaxies."""
    return (y > box.y_low) & (x < box.x_high) & (y > box.slope * x + box.level)


def colours(rest_magnitudes: Tensor) -> dict[str, Tensor]:
    """Colours (...), mag, by the names of `COLOURS`, of magnitudes (..., 6) in `REST_BANDS`."""
    band = dict(zip(REST_BANDS, rest_magnitudes.unbind(-1), strict=True))
    return {name: band[blue] - band[red] for name, (blue, red) in COLOURS.items()}


def quiescent_log_ssfr(zred: Tensor) -> Tensor:
    """log10 of the specific star formation rate, 1/yr, below which a galaxy is quiescent.

    0.2 over the age of the universe (Pacifici et al. 2016, ApJ 832, 79, section 3).
    """
    return torch.log10(QUIESCENT_SHARE / age_of_universe(zred)) - 9


def quiescent(log_ssfr: Tensor, zred: Tensor) -> Tensor:
    """Mask (...) of galaxies that are quiescent by `quiescent_log_ssfr`."""
    return log_ssfr < quiescent_log_ssfr(zred)
