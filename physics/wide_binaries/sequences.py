"""Where stars lie in the Hertzsprung-Russell diagram of Gaia, with their masses.

The dwarfs are those of a published table. White dwarfs and giants are schematic: lines of ours
through Gaia's diagram, for simulations only.
"""

from typing import NamedTuple

import numpy as np

# BP - RP, G - RP, M_G, mass (Msun), B9V to M7.5V: Pecaut & Mamajek (2013, ApJS 208, 9), version of
# May 2024
DWARFS = np.array([
    (-0.12, -0.036, 0.515, 2.75), (-0.037, -0.02, 1, 2.33), (0.068, 0.05, 1.345, 2.06),
    (0.194, 0.13, 1.98, 1.86), (0.263, 0.173, 2.19, 1.76), (0.377, 0.23, 2.51, 1.6),
    (0.49, 0.279, 2.89, 1.43), (0.587, 0.329, 3.26, 1.32), (0.64, 0.356, 3.56, 1.25),
    (0.694, 0.385, 3.9, 1.16), (0.784, 0.439, 4.325, 1.07), (0.823, 0.459, 4.635, 1),
    (0.85, 0.473, 4.801, 0.98), (0.9, 0.499, 5.098, 0.93), (0.95, 0.524, 5.34, 0.89),
    (0.983, 0.56, 5.553, 0.86), (1.1, 0.62, 5.83, 0.82), (1.19, 0.64, 6.22, 0.76),
    (1.34, 0.7, 6.59, 0.72), (1.43, 0.74, 6.85, 0.7), (1.53, 0.79, 7.15, 0.67),
    (1.7, 0.86, 7.57, 0.64), (1.84, 0.92, 8.1, 0.585), (1.97, 0.97, 8.45, 0.56),
    (2.09, 1, 8.82, 0.51), (2.23, 1.06, 9.29, 0.45), (2.39, 1.1, 9.67, 0.42),
    (2.5, 1.13, 10.05, 0.36), (2.78, 1.19, 10.82, 0.29), (2.94, 1.24, 11.21, 0.24),
    (3.16, 1.28, 12.04, 0.18), (3.35, 1.33, 12.45, 0.155), (3.71, 1.38, 13.35, 0.122),
    (4.16, 1.43, 14.26, 0.105), (4.65, 1.52, 14.72, 0.09), (4.72, 1.55, 15.2, 0.088),
])  # fmt: skip
# BP - RP, M_G of white dwarfs of .6 Msun; a heavier one is smaller, and fainter
WHITE_DWARFS = np.array([
    (-0.4, 10.4), (-0.2, 11.0), (0.0, 11.7), (0.25, 12.4), (0.5, 13.0), (0.75, 13.6), (1.0, 14.1),
    (1.3, 14.8),
])  # fmt: skip
WHITE_DWARF_MASS, WHITE_DWARF_SPREAD = 0.6, 0.1  # Msun
MAG_PER_WHITE_DWARF_MASS = 2.6  # 1/Msun, of its radius
# BP - RP, M_G from the turn-off up the giant branch
GIANTS = np.array([
    (0.80, 3.7), (0.93, 3.4), (1.05, 2.9), (1.12, 1.9), (1.20, 0.8), (1.35, 0.0), (1.6, -1.0),
])  # fmt: skip
GIANT_MASS, GIANT_SPREAD = 1.2, 0.15  # Msun
LEAST_MASS, LARGEST_MASS = float(DWARFS[-1, 3]), float(DWARFS[0, 3])


class Star(NamedTuple):
    """Photometry of stars, mag, each (n,)."""

    bp_rp: np.ndarray
    g_rp: np.ndarray
    abs_g: np.ndarray


def dwarfs(mass: np.ndarray) -> Star:
    """Dwarfs of ``mass``, Msun, within the table."""
    order = np.argsort(DWARFS[:, 3])
    columns = [
        np.interp(np.log(mass), np.log(DWARFS[order, 3]), DWARFS[order, i]) for i in range(3)
    ]
    return Star(*columns)


def dwarf_mass(abs_g: np.ndarray) -> np.ndarray:
    """Mass of dwarfs, Msun, by M_G; NaN outside the table."""
    log_mass = np.interp(abs_g, DWARFS[:, 2], np.log(DWARFS[:, 3]), left=np.nan, right=np.nan)
    return np.asarray(np.exp(log_mass))


def dwarf_colour(abs_g: np.ndarray) -> np.ndarray:
    """BP - RP of dwarfs by M_G; that of the table's end beyond it."""
    return np.interp(abs_g, DWARFS[:, 2], DWARFS[:, 0])


def unresolved(first: Star, second: Star) -> Star:
    """Two stars seen as one."""

    def sum_of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(-2.5 * np.log10(10 ** (-0.4 * a) + 10 ** (-0.4 * b)))

    g = sum_of(first.abs_g, second.abs_g)
    rp = sum_of(first.abs_g - first.g_rp, second.abs_g - second.g_rp)
    bp = sum_of(first.abs_g - first.g_rp + first.bp_rp, second.abs_g - second.g_rp + second.bp_rp)
    return Star(bp - rp, g - rp, g)


def white_dwarfs(mass: np.ndarray, bp_rp: np.ndarray) -> Star:
    """White dwarfs of ``mass``, Msun, and colour."""
    abs_g = np.interp(bp_rp, *WHITE_DWARFS.T)
    abs_g = abs_g + MAG_PER_WHITE_DWARF_MASS * (mass - WHITE_DWARF_MASS)
    return Star(bp_rp, 0.5 * bp_rp, abs_g)


def giants(place: np.ndarray) -> Star:
    """Giants by their ``place`` from 0, at the turn-off, to 1."""
    nodes = np.linspace(0, 1, len(GIANTS))
    bp_rp = np.interp(place, nodes, GIANTS[:, 0])
    return Star(bp_rp, 0.55 * bp_rp, np.interp(place, nodes, GIANTS[:, 1]))
