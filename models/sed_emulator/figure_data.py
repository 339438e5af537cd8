"""Arrays that the figures of `sed_emulator` draw."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from orrery.models.sed_emulator import SedEmulator

LEVELS = (0.68, 0.95, 0.997)
N_EXAMPLES = 4
RECOVERED = ("zred", "log_stellar_mass", "log_sfr", "mass_weighted_age", "logzsol", "dust2")
MAX_POINTS = 2000


def figure_data(
    model: "SedEmulator", rows: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """``errors`` and ``correlation`` of the emulator, ``recovered`` and ``seds`` of galaxies."""
    figures: dict[str, dict[str, np.ndarray]] = {}
    population = np.array(str(model.population))
    bands = np.array(model.bands)
    wavelength = np.array(model.wavelengths)
    if "residual" in arrays:
        from orrery.models.sed_emulator.evaluation import residual_correlation

        residual = arrays["residual"]
        figures["errors"] = {
            "bands": bands,
            "levels": np.array(LEVELS),
            "error": np.quantile(np.abs(residual), LEVELS, axis=0),
            "population": population,
        }
        figures["correlation"] = {
            "bands": bands,
            "correlation": residual_correlation(residual),
            "population": population,
        }
    recovered = {
        f"{name}{end}": rows[f"{name}{end}"][:MAX_POINTS]
        for name in RECOVERED
        if np.isfinite(rows.get(f"{name}_true", np.nan)).any()
        and np.any(rows[f"{name}_q84"] > rows[f"{name}_q16"])
        for end in ("", "_q16", "_q84", "_true")
    }
    if recovered:
        figures["recovered"] = recovered | {"population": population}
    names = ("flux_model", "flux_model_error", "flux_observed", "flux_error")
    if all(name in rows for name in names) and len(rows["flux_model"]):
        chosen = slice(0, N_EXAMPLES)
        figures["seds"] = {
            "wavelength": wavelength,
            "zred": rows["zred"][chosen],
            **{name: rows[name][chosen] for name in names},
            "population": population,
        }
    return figures
