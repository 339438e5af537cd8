"""Columns of stars in phase space."""

from dataclasses import replace

import numpy as np

from orrery.datamodules.columns import Column

MOST_RV_ERROR = 500.0  # km/s
RV_ERRORS = f"0 to {MOST_RV_ERROR:g}; blank where there is no radial velocity"


def _optional(name: str, unit: str, meaning: str, low: float, high: float) -> Column:
    """A number that may be blank, or not there at all."""
    return Column(
        name, unit, meaning, low, high, missing=np.nan, blank_only=True, training="optional"
    )


def _error(of: str, unit: str, high: float) -> Column:
    """Of a measurement; an impossible one is refused, and so is a blank one."""
    return Column(f"{of}_error", unit, f"error of {of}", 0, high, unit_of=of, training="optional")


DECLARED = {
    "ra": Column("ra", "deg", "right ascension, ICRS", -360, 360),
    "dec": Column("dec", "deg", "declination, ICRS", -90, 90),
    "distance": replace(
        _optional("distance", "kpc", "distance from the Sun", 0, 1000), ends="(]",
        training="chosen", typical=(0.1, 150), typical_hint="are they pc?",
    ),
    "distance_error": replace(
        _error("distance", "kpc", 1000), training="chosen", missing=np.nan, blank_only=True,
    ),
    "parallax": replace(
        _optional("parallax", "mas", "parallax", -300, 1000), training="chosen"
    ),
    "parallax_error": replace(
        _error("parallax", "mas", 100), ends="(]", training="chosen", missing=np.nan,
        blank_only=True,
    ),
    "pmra": Column("pmra", "mas/yr", "proper motion in RA, with cos(dec)", -1.1e4, 1.1e4),
    "pmra_error": _error("pmra", "mas/yr", 100),
    "pmdec": Column("pmdec", "mas/yr", "proper motion in declination", -1.1e4, 1.1e4),
    "pmdec_error": _error("pmdec", "mas/yr", 100),
    "pmra_pmdec_corr": Column(
        "pmra_pmdec_corr", None, "correlation of both proper motions", -1, 1, missing=0.0,
        blank_only=True, training="optional",
    ),
    "radial_velocity": _optional(
        "radial_velocity", "km/s", "barycentric radial velocity", -2000, 2000
    ),
    "radial_velocity_error": replace(
        _error("radial_velocity", "km/s", MOST_RV_ERROR), special=RV_ERRORS
    ),
    "host": Column(
        "host", None, "true host: a cluster's name, 'field', or blank", kind="text",
        truth=True, training="unused", prediction="optional",
    ),
}  # fmt: skip
