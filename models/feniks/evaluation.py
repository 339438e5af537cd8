"""Metrics of candidates, of redshifts by spectra, and of broad lines, where the truth is known."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import stats

from orrery.models.base import Data, Evaluation, Metrics, PredictedRows, or_nothing
from orrery.models.feniks import figure_data
from orrery.models.feniks.outputs import CLASSES
from orrery.models.feniks.redshift import secure_threshold
from orrery.models.sed_emulator.evaluation import evaluate as evaluate_fits
from orrery.physics.galaxies.quiescent import quiescent

if TYPE_CHECKING:
    from orrery.models.feniks import Feniks

COMPLETENESS = 0.9  # at which purity is stated
FALSE_ALARMS = 0.01  # at which the recall of broad lines is stated
REDSHIFTS = (3.0, 4.5)
NEAR = 0.01  # redshifts that differ by less are the same
FEWEST = 10  # galaxies of a metric
TIMED = 512  # galaxies without a spectrum
TIMED_SPECTRA = 1
GALAXIES = "galaxies_per_second"  # from photometry alone, redshifts free


def evaluate(model: "Feniks", rows: PredictedRows, data: Data) -> Evaluation:
    """`Evaluation` of the fits as in sed_emulator, of the candidates, and of redshifts."""
    evaluation = evaluate_fits(model, rows, data)
    evaluation.metrics |= candidate_metrics(rows, model.z_min, model.log_mass_min)
    if np.isfinite(rows["z_peak"]).any():
        evaluation.metrics |= redshift_metrics(rows)
    boxes = box_selections(rows, model.z_min, model.log_mass_min)
    if boxes:
        wanted = is_candidate(rows, model.z_min, model.log_mass_min)
        share = boxes["UVJ box"]["completeness"]
        evaluation.metrics["candidate_purity_as_uvj"] = purity(rows["p_candidate"], wanted, share)
    evaluation.baselines |= boxes
    evaluation.figures = or_nothing("figures", lambda: figure_data.figure_data(model, rows))
    if not data.is_simulation:  # a user's catalogue is fitted once
        evaluation.timings = {}
    else:
        batch = next(data.prediction_batches())
        first = {name: values[:TIMED].to(model.surviving.device) for name, values in batch.items()}
        photometry = {k: v for k, v in first.items() if not k.startswith("spectrum_")}
        evaluation.timings[GALAXIES] = (
            lambda: model.predict_step(photometry),
            len(photometry["flux"]),
        )
        if "spectrum_flux" in first:
            some = {name: values[:TIMED_SPECTRA] for name, values in first.items()}
            timed = (lambda: model.predict_step(some), len(some["flux"]))
            evaluation.timings["spectra_fitted_per_second"] = timed
    return evaluation


def is_candidate(rows: Mapping[str, np.ndarray], z_min: float, log_mass_min: float) -> np.ndarray:
    """Mask of the mocks that are quiescent, massive and at z > ``z_min``; empty without truth."""
    names = ("zred_true", "log_ssfr_true", "log_stellar_mass_true")
    if any(name not in rows for name in names):
        return np.zeros(0, bool)
    massive = rows["log_stellar_mass_true"] > log_mass_min
    return np.asarray((rows["zred_true"] > z_min) & massive & is_quiescent(rows))


def is_quiescent(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mask of the mocks that are quiescent."""
    ssfr, zred = (rows[name] for name in ("log_ssfr_true", "zred_true"))
    tensors = (torch.from_numpy(np.asarray(x, float)) for x in (ssfr, zred))
    return np.asarray(quiescent(*tensors).numpy())


def candidate_metrics(rows: Mapping[str, np.ndarray], z_min: float, log_mass_min: float) -> Metrics:
    """Purity of the candidates at a completeness of 90%, and their times of formation.

    ``quiescent_purity_90``: of the quiescent among mocks that are at z 3 to 4.5 indeed;
    ``candidate_purity_90``: among all, of which the redshift and the mass have to be found as well.
    """
    wanted = is_candidate(rows, z_min, log_mass_min)
    if wanted.sum() < FEWEST:
        return {}
    metrics = {
        "n_candidates": float(wanted.sum()),
        "candidate_purity_90": purity(rows["p_candidate"], wanted),
        "candidate_brier": float(np.nanmean((rows["p_candidate"] - wanted) ** 2)),
    }
    at_z = _at_redshifts(rows)
    if (quenched := is_quiescent(rows)[at_z]).sum() >= FEWEST:
        metrics["quiescent_purity_90"] = purity(rows["p_quiescent"][at_z], quenched)
    if "t50_true" in rows:
        ratio = np.log10(rows["t50"][wanted] / rows["t50_true"][wanted])
        known = np.isfinite(ratio)
        metrics["t50_rms_dex"] = float(np.sqrt(np.mean(ratio[known] ** 2)))
        for name in ("t50", "log_stellar_mass", "a_v"):
            metrics |= _calibration(rows, name, wanted)
    return metrics


def _at_redshifts(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mask of the mocks at redshifts for which selections by colours are published."""
    return np.asarray((rows["zred_true"] > REDSHIFTS[0]) & (rows["zred_true"] < REDSHIFTS[1]))


def _calibration(rows: Mapping[str, np.ndarray], name: str, chosen: np.ndarray) -> Metrics:
    """Coverage of the 68% interval, and the median offset in its half width, of the candidates."""
    middle, true, low, high = (
        rows[f"{name}{end}"][chosen].astype(float) for end in ("", "_true", "_q16", "_q84")
    )
    known = np.isfinite(middle) & np.isfinite(true)
    middle, true, low, high = (values[known] for values in (middle, true, low, high))
    return {
        f"candidates_coverage_68_{name}": float(np.mean((true > low) & (true < high))),
        f"candidates_offset_{name}": float(np.median((middle - true) / (0.5 * (high - low)))),
    }


def purity(score: np.ndarray, wanted: np.ndarray, completeness: float = COMPLETENESS) -> float:
    """Share of the wanted among the galaxies above the score that ``completeness`` needs."""
    ranked = wanted[np.argsort(-score, kind="stable")]
    needed = int(np.ceil(completeness * wanted.sum()))
    chosen = int(np.searchsorted(np.cumsum(ranked), needed)) + 1
    return float(needed / chosen)


def box_selections(
    rows: Mapping[str, np.ndarray], z_min: float, log_mass_min: float
) -> dict[str, Metrics]:
    """Completeness and purity of the usual selections: best redshift and mass, and a box.

    ``quiescent_``: of those that are quiescent among mocks at z 3 to 4.5, by the box alone.
    """
    wanted = is_candidate(rows, z_min, log_mass_min)
    if wanted.sum() < FEWEST:
        return {}
    found = {}
    at_z, quenched = _at_redshifts(rows), is_quiescent(rows)
    for title, name in (("UVJ box", "p_uvj"), ("(ugi)_s box", "p_ugi")):
        chosen = (rows[name] > 0.5) & (rows["zred"] > z_min)
        chosen &= rows["log_stellar_mass"] > log_mass_min
        boxed = (rows[name] > 0.5) & at_z
        found[title] = {
            "quiescent_completeness": float(np.mean(boxed[quenched & at_z])),
            "quiescent_purity": float(np.mean(quenched[boxed])) if boxed.any() else np.nan,
            "completeness": float(np.mean(chosen[wanted])),
            "purity": float(np.mean(wanted[chosen])) if chosen.any() else np.nan,
        }
    return found


def redshift_metrics(rows: Mapping[str, np.ndarray]) -> Metrics:
    """Of galaxies with a spectrum: redshifts, the class of their security, and broad lines."""
    has = np.isfinite(rows["z_peak"])
    metrics: Metrics = {"n_spectra": float(has.sum())}
    true = rows.get("zred_true", np.full(len(has), np.nan))
    if (known := has & np.isfinite(true)).any():
        right = np.abs(rows["z_peak"] - true)[known] < NEAR
        p_peak = torch.from_numpy(rows["p_peak"][known])
        secure = rows["z_class"][known] == CLASSES.index("secure")
        metrics |= {
            "z_within_001": float(right.mean()),
            "secure": float(secure.mean()),
            "best_secure": float(
                (p_peak >= secure_threshold(p_peak, torch.from_numpy(right))).double().mean()
            ),
            "pit_ks_p": float(stats.kstest(rows["z_pit"][known], "uniform").pvalue),
        }
        if secure.any():
            metrics["secure_right"] = float(right[secure].mean())
    broad = rows.get("broad_true", np.full(len(has), np.nan))[has]
    factor = rows["ln_bayes_broad"][has]
    factor = np.where(np.isnan(factor), -np.inf, factor)  # no line in the spectrum: no alarm
    with_line, without = (factor[broad == x] for x in (1, 0))
    if min(len(with_line), len(without)) >= FEWEST:
        limit = np.quantile(without, 1 - FALSE_ALARMS, method="higher")
        metrics["broad_line_recall"] = float(np.mean(with_line > limit))
    return metrics
