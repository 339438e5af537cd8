"""What the columns of BP/RP spectra are called, and what they are counted in."""

import numpy as np
from astropy import units as u

from orrery.physics.gaia_xp import xp
from orrery.tables import Catalogue, open_catalogue
from orrery.tables.vectors import vectors

SAMPLED = "sampled"  # the name of the one band of sampled spectra
COLUMNS = {  # the archive's names
    **{
        f"{band}_{what}": f"{band}_{name}"
        for band in xp.BANDS
        for what, name in (
            ("coefficients", "coefficients"),
            ("errors", "coefficient_errors"),
            ("correlations", "coefficient_correlations"),
        )
    },
    "spectrum": "flux",
    "spectrum_error": "flux_error",
    "source_id": "source_id",
}


def correlations_of_file(path: str) -> dict[str, np.ndarray]:
    """The correlations of real stars, by band, packed, (stars, n (n - 1) / 2); blanks left out."""
    found = {}
    with open_catalogue(path) as catalogue:
        names = [COLUMNS[f"{band}_correlations"] for band in xp.BANDS]
        (chunk,) = catalogue.chunks(names, max(len(catalogue), 1))
    for band, name in zip(xp.BANDS, names, strict=True):
        packed = vectors(chunk[name], name)
        found[band] = packed[np.isfinite(packed).all(1)]
    return found


def wanted_unit(catalogue: Catalogue, column: str, role: str) -> str | None:
    """What a column that says its unit is converted to, or refused for; None where none is known.

    The archive's own spelling, 'electron'.s**-1, is one that no reader knows.
    """
    unit = catalogue.units.get(column)
    if unit is None or isinstance(unit, u.UnrecognizedUnit):
        return None
    if role.startswith("spectrum"):
        return "W m-2 nm-1"
    return "electron / s" if role.endswith(("coefficients", "errors")) else None
