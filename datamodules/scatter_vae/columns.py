"""The columns of BP/RP spectra: names, units and values."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from astropy import units as u

from orrery.datamodules.columns import CatalogueColumn, Column, located
from orrery.physics.gaia_xp import xp
from orrery.tables import Catalogue, open_catalogue
from orrery.tables.vectors import vectors

SAMPLED = "sampled"  # the name of the one band of sampled spectra
VALUES = "finite numbers; BP may be blank"
CORRELATIONS = "-1 to 1, positive definite"
COLUMNS = {  # the archive's names
    **{
        f"{band}_{kind}": f"{band}_{name}"
        for band in xp.BANDS
        for kind, name in (
            ("coefficients", "coefficients"),
            ("errors", "coefficient_errors"),
            ("correlations", "coefficient_correlations"),
        )
    },
    "spectrum": "flux",
    "spectrum_error": "flux_error",
    "source_id": "source_id",
    "wavelength": "wavelength",
}
# columns of one number each, bp_coeff_0, bp_coeff_1..., as tables of one row per source have them
OTHER_STEMS = {
    f"{band}_{kind}": f"{prefix}{band}_coeff"
    for band in xp.BANDS
    for kind, prefix in (("coefficients", ""), ("errors", "e_"))
}


def _vector(role: str) -> Column:
    band, _, quantity = role.rpartition("_")
    special = {"errors": "above 0", "error": "above 0", "correlations": CORRELATIONS}
    units = {"coefficients": "electron / s", "errors": "electron / s"}
    unit = "W m-2 nm-1" if role.startswith("spectrum") else units.get(quantity)
    meaning = f"{quantity} of {band.upper()}" if band in xp.BANDS else role.replace("_", " ")
    values = special.get(quantity, VALUES)
    return Column(COLUMNS[role], unit, meaning, kind="vector", training="chosen", special=values)


DECLARED: dict[str, Column] = {
    **{role: _vector(role) for role in COLUMNS if role not in ("source_id", "wavelength")},
    "source_id": Column(
        "source_id", meaning="identifier, by which repeated stars are found", kind="text",
        training="optional",
    ),
    "wavelength": Column(
        "wavelength", "nm", "wavelengths of a sampled spectrum, the same for all stars",
        kind="vector", training="chosen", special="those of the training spectra",
    ),
    "flux": Column(
        "flux", meaning="flux to divide by, in place of that of RP", low=0, ends="()",
        training="named",
    ),
}  # fmt: skip


def correlations_of_file(path: str) -> dict[str, np.ndarray]:
    """Correlations of real stars, by band, packed, (stars, n (n - 1) / 2), without blank rows.

    Raises ``ValueError`` if they are not those of as many coefficients as DR3 has.
    """
    correlations = {}
    with open_catalogue(path) as catalogue:
        names = [COLUMNS[f"{band}_correlations"] for band in xp.BANDS]
        (chunk,) = catalogue.chunks(names, max(len(catalogue), 1))
    for band, name in zip(xp.BANDS, names, strict=True):
        packed = vectors(chunk[name], name)
        n = len(xp.instrument()[band].functions)
        if packed.shape[1] != n * (n - 1) // 2:
            raise ValueError(
                f"data.correlations_of={path}: column '{name}' has {packed.shape[1]} numbers per "
                f"star, expected {n * (n - 1) // 2}, those of {n} coefficients: simulated stars "
                f"have the functions of DR3"
            )
        correlations[band] = packed[np.isfinite(packed).all(1)]
    return correlations


def spectra_column(user: Mapping[str, str], catalogue: Catalogue, role: str) -> CatalogueColumn:
    """The column of ``role``; a unit that astropy cannot read is ignored.

    Such is the archive's own spelling, 'electron'.s**-1.
    """
    column = located(DECLARED, user, catalogue, role)
    return replace(column, unit=None) if isinstance(column.unit, u.UnrecognizedUnit) else column
