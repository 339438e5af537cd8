"""Columns of synthetic galaxies, and of photometry to fit."""

import numpy as np

from orrery.datamodules.columns import Column

MAGNITUDE_VALUES = (
    "AB magnitude; NaN or -99 (-99.9, -99.99, -999): not observed; 99 (99.9, 99.99) or inf: not "
    "detected"
)
FLUX_VALUES = (
    "any finite number, also below 0; NaN, -99 (-99.9, -99.99, -999), or 0 with an error of 0: not "
    "observed"
)
ERROR_VALUES = "above 0 where the band is observed; below 0 for limits, with data.limit_sigma"


def _band_column(kind: str, unit: str, meaning: str, values: str) -> Column:
    return Column(f"{kind}_{{band}}", unit, meaning, training="chosen", special=values)


DECLARED = {
    "parameter_{parameter}": Column(
        "{parameter}", None, "a parameter of a synthetic galaxy, such as logmass",
        training="chosen",
    ),
    "true_{parameter}": Column(
        "true_{parameter}", None, "its true value, to compare with", truth=True,
        training="chosen", prediction="chosen",
    ),
    "zred": Column(
        "zred", None, "known redshift; blank where it is not: it is fitted", 0, 20,
        missing=np.nan, training="unused", prediction="named",
    ),
    "zred_error": Column(
        "zred_error", None, "error of the known redshift; blank: it is exact", 0, 20,
        missing=np.nan, training="unused", prediction="named",
    ),
    "ebv": Column(
        "ebv", "mag", "E(B - V), which corrects for Galactic extinction", 0, 20, "[)",
        training="unused", prediction="named",
    ),
    "flux_{band}": _band_column(
        "flux", "uJy", "flux; the role flux is the pattern of all bands", FLUX_VALUES
    ),
    "flux_err_{band}": _band_column("flux_err", "uJy", "its error", ERROR_VALUES),
    "flux_ivar_{band}": _band_column(
        "flux_ivar", "1 / uJy2", "its inverse variance, in place of the error",
        "0 where the band is not observed, or above",
    ),
    "mag_{band}": _band_column(
        "mag", "mag", "magnitude, in place of a flux; of synthetic galaxies in training",
        MAGNITUDE_VALUES,
    ),
    "mag_err_{band}": _band_column(
        "mag_err", "mag", "its error; of a non-detection the limiting magnitude", ERROR_VALUES
    ),
    "mag_lim_{band}": _band_column(
        "mag_lim", "mag", "limiting magnitude of a non-detection; optional",
        "any; used between 10 and 90",
    ),
}  # fmt: skip
