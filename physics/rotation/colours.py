"""(BP - RP)_0 of a dwarf from its temperature, B - V or G - RP.

Table: Pecaut & Mamajek (2013, ApJS 208, 9), version of 2022, F0V to M5.5V; with errors in the
dereddened colours or the temperature.
"""

import numpy as np
from scipy.interpolate import PchipInterpolator

BP_RP = (
    0.377, 0.49, 0.587, 0.694, 0.823, 0.9, 0.95, 1.19, 1.43, 1.7, 1.84, 2.09, 2.23, 2.5, 2.78,
    3.16, 3.71,
)  # fmt: skip
MEASURES = {
    "teff": (
        7220, 6820, 6550, 6180, 5770, 5480, 5380, 4870, 4440, 4090, 3850, 3660, 3560, 3430, 3270,
        3110, 2930,
    ),  # K
    "b_v0": (
        0.295, 0.37, 0.44, 0.53, 0.65, 0.73, 0.775, 0.99, 1.15, 1.34, 1.42, 1.485, 1.505, 1.53, 1.6,
        1.69, 1.94,
    ),  # mag
    "g_rp0": (
        0.23, 0.279, 0.329, 0.385, 0.459, 0.499, 0.524, 0.64, 0.74, 0.86, 0.92, 1.0, 1.06, 1.13,
        1.19, 1.28, 1.38,
    ),  # mag
}  # fmt: skip
# Scatter of BP - RP about the relations, mag, for metallicity above all: ours.
SCATTER = {"teff": 0.05, "b_v0": 0.04, "g_rp0": 0.02}
# E per E(B - V) of a G star: Casagrande & VandenBerg (2018, MNRAS 479, L102), table 2.
REDDENING = {"bp_rp0": 1.339, "g_rp0": 0.705, "b_v0": 1.0, "teff": 0.0}


def bp_rp(measure: str, values: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(BP - RP)_0 and its error, mag, each (n,); NaN beyond the table.

    ``measure``: of `MEASURES`, in its unit, and so are ``errors``; the relation's scatter is added.
    """
    points, colours = np.array(MEASURES[measure], float), np.array(BP_RP)
    order = np.argsort(points)
    relation = PchipInterpolator(points[order], colours[order], extrapolate=False)
    slope = relation.derivative()(values)
    return relation(values), np.hypot(slope * errors, SCATTER[measure])
