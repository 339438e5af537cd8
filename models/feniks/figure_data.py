"""Arrays that the figures of `feniks` draw."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from orrery.models.base import PredictedRows
from orrery.models.feniks.joint import JointFit
from orrery.models.feniks.joint_posterior import posterior_spectrum
from orrery.physics.galaxies.quiescent import BOXES, COLOURS
from orrery.physics.sps.cosmology import age_of_universe
from orrery.physics.sps.star_formation import star_formation
from orrery.physics.sps.synthesis import RATIOS

if TYPE_CHECKING:
    from orrery.models.feniks import Feniks

MAX_POINTS = 2000
FEWEST_SELECTED = 20  # candidates, of whose share by mass and redshift there is a figure
ENDS = ("", "_q16", "_q84")
N_SPECTRA = 3  # galaxies of which spectra are drawn
N_TIMES = 200
LEVELS = (0.16, 0.5, 0.84)
FIT = ("wavelength", "flux", "error", "model", "z_grid", "pz", "pz_photometry")


def figure_data(model: "Feniks", rows: PredictedRows) -> dict[str, dict[str, np.ndarray]]:
    """``colours`` of galaxies; of mocks also ``candidates``, ``selection`` and ``formation``."""
    from orrery.models.feniks.evaluation import box_selections, is_candidate

    figures = {"colours": _colours(model, rows)}
    wanted = is_candidate(rows, model.z_min, model.log_mass_min)
    if wanted.any():
        boxes = box_selections(rows, model.z_min, model.log_mass_min)
        figures["candidates"] = {
            "score": rows["p_candidate"],
            "wanted": wanted,
            "boxes": np.array(list(boxes)),
            "completeness": np.array([box["completeness"] for box in boxes.values()]),
            "purity": np.array([box["purity"] for box in boxes.values()]),
        }
    if wanted.sum() >= FEWEST_SELECTED:
        names = ["zred_true", "log_stellar_mass_true", "zred", "log_stellar_mass", "p_candidate"]
        figures["selection"] = {"wanted": wanted, **{name: rows[name] for name in names}}
    if wanted.any() and "t50_true" in rows:
        names = [
            f"{q}{end}" for q in ("t50", "log_stellar_mass", "a_v") for end in (*ENDS, "_true")
        ]
        figures["formation"] = {name: rows[name][wanted][:MAX_POINTS] for name in names}
    if np.isfinite(rows["z_peak"]).any():
        figures |= _of_spectra(model, rows)
    if "zred_true" in rows and np.isfinite(rows["z_peak"]).any():
        names = ["zred_true", "z_peak", "p_peak", "z_class"]
        figures["redshifts"] = {name: rows[name] for name in names}
    return figures


def _colours(model: "Feniks", rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Colours at rest, with their errors, of the galaxies likeliest to be candidates, and boxes."""
    order = np.argsort(-rows["p_candidate"], kind="stable")[:MAX_POINTS]
    arrays = {f"{name}{end}": rows[f"{name}{end}"][order] for name in COLOURS for end in ENDS}
    for title, name in (("uvj", model.uvj), ("ugi", "antwi_danso2023_ugi")):
        box = BOXES[name]
        arrays[f"{title}_box"] = np.array([box.slope, box.level, box.y_low, box.x_high])
        arrays[f"{title}_name"] = np.array(box.reference.split(",")[0])
    return arrays | {"p_quiescent": rows["p_quiescent"][order]}


def _of_spectra(model: "Feniks", rows: PredictedRows) -> dict[str, dict[str, np.ndarray]]:
    """``fits`` and ``histories`` of the first galaxies with a spectrum."""
    chosen = [i for i in range(len(rows["flux_model"])) if np.isfinite(rows["z_peak"][i])]
    fitted = [(i, model.predicted_fit(rows.examples, i)) for i in chosen[:N_SPECTRA]]
    found = [(i, fit) for i, fit in fitted if fit is not None]
    if not found:
        return {}
    index = [i for i, _ in found]
    each = [_of_fit(model, fit) for _, fit in found]
    shared = {name: rows[name][index] for name in ("z_peak", "z_class")}
    fluxes = ("flux_model", "flux_model_error", "flux_observed", "flux_error")
    fits = {name: _padded([one[name] for one in each]) for name in FIT}
    fits |= {name: rows[name][index] for name in fluxes}
    fits["band_wavelength"] = np.array(model.wavelengths)
    histories = {name: np.stack([one[name] for one in each]) for name in ("time", "sfr", "age")}
    return {"fits": fits | shared, "histories": histories | shared}


def _of_fit(model: "Feniks", fit: JointFit) -> dict[str, np.ndarray]:
    """Arrays of one galaxy: spectrum with its model, p(z), and star formation with time."""
    spectrum, levels = fit.spectrum, torch.tensor(LEVELS, dtype=torch.float64)
    arrays = {
        "wavelength": spectrum.wavelength,
        "flux": spectrum.flux,
        "error": spectrum.error,
        "model": posterior_spectrum(spectrum, fit.draws, fit.model),
        "z_grid": fit.posterior.z,
        "pz": fit.posterior.density(fit.posterior.z),
        "pz_photometry": fit.photometry.density(fit.posterior.z),
    }
    z = float(fit.draws.z.median())
    age = float(age_of_universe(torch.tensor(z, dtype=torch.float64)))
    lookback = torch.linspace(0, 1, N_TIMES) * age * 0.999
    parameters = fit.draws.parameters
    history = star_formation(
        torch.stack([parameters[:, model.names.index(name)] for name in RATIOS], 1),
        torch.full((len(parameters),), z),
    )
    bins = (lookback[None, :, None] >= history.edges[:, None, 1:-1]).sum(2)
    rate = history.sfr.gather(1, bins) * 1e-9  # Msun/yr per Msun formed
    rate = rate * 10 ** parameters[:, [model.names.index("logmass")]]
    arrays |= {
        "time": age - lookback,
        "sfr": rate.double().quantile(levels, 0),
        "age": torch.tensor(age),
    }
    return {name: values.cpu().numpy() for name, values in arrays.items()}


def _padded(arrays: list[np.ndarray]) -> np.ndarray:
    """Arrays (..., n) of different lengths n, NaN beyond their ends."""
    length = max(array.shape[-1] for array in arrays)
    return np.stack(
        [
            np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, length - a.shape[-1])], constant_values=np.nan)
            for a in arrays
        ]
    )
