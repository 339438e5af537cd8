"""Scores of `scatter_vae`: predicted rows, the truth of a simulation, and PCA as a baseline."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from orrery.models.base import Batch, Data, Evaluation, PredictedRows, or_nothing
from orrery.models.scatter_vae.inference import gaussian_nll

if TYPE_CHECKING:
    from orrery.models.scatter_vae import ScatterVAE

# variance over stars of a latent number below which it is collapsed (Burda et al. 2016)
MIN_LATENT_VARIANCE = 0.01
PCA_COMPONENTS = (6, 10, 20)
MAX_COMPARED = 4096  # stars on which PCA and the scatter are compared
LATENT_COLUMNS = ("latent_mean", "bp_rp", "g_mag")  # of the figure of latent space
N_GENERATED = 200  # stars, of a figure

SMALLER_IS_BETTER = frozenset(("nll", "pca6_chi2_median", "pca10_chi2_median"))

Arrays = dict[str, np.ndarray]


@runtime_checkable
class HasTrueSpectra(Protocol):
    def true_spectra(self, row: Tensor) -> tuple[Tensor, Tensor] | None:
        """Coefficients without noise, and their scatter, (rows, n); None for a catalogue."""


def evaluate(model: "ScatterVAE", rows: PredictedRows, data: Data) -> Evaluation:
    """`Evaluation` of a `models.scatter_vae.ScatterVAE`."""
    evaluation = Evaluation(metrics(rows), warnings=warnings(rows, model.latent))
    with torch.inference_mode():
        examples = {k: v.to(model.device) for k, v in rows.examples.items()}
        observed = or_nothing("spectra.png", lambda: _numpy(observed_spectra(model, examples)))
        compared, evaluation.figures = compare(model, data)
    evaluation.metrics |= compared
    if observed:
        evaluation.figures["spectra"] = observed
    if truth := true_rows(model, data):
        evaluation.baselines["true model"] = metrics(truth)
    evaluation.timings = timing_cases(model, next(data.prediction_batches()))
    evaluation.smaller_is_better = SMALLER_IS_BETTER
    return evaluation


def observed_spectra(model: "ScatterVAE", batch: Batch) -> dict[str, Tensor]:
    """Observed spectra (batch, k), their ``error`` and the model's ``scatter``, for figures."""
    scatter = model.predict_step(batch)["scatter"]
    if model.spectra is None:
        return {
            "observed": batch["coefficients"],
            "error": batch["errors"],
            "scatter": scatter,
        }
    packed = {b: batch[f"correlations_{b}"] for b in model.bands if f"correlations_{b}" in batch}
    correlations = packed if len(packed) == len(model.bands) else None
    return {
        "observed": model.spectra.flux(batch["coefficients"]),
        "error": model.spectra.error(batch["errors"], correlations),
        "scatter": model.spectra.error(scatter),
    }


def timing_cases(model: "ScatterVAE", batch: Batch) -> dict[str, Any]:
    """Prediction, and spectra of coefficients with uncorrelated and with correlated errors."""
    n = len(batch["row"])
    cases: dict[str, Any] = {"objects_per_second": (lambda: model.predict_step(batch), n)}
    if model.spectra is None or "correlations_bp" not in batch:
        return cases
    spectra, c, e = model.spectra, batch["coefficients"], batch["errors"]
    packed = {band: batch[f"correlations_{band}"] for band in model.bands}
    cases["spectra_per_second"] = (lambda: (spectra.flux(c), spectra.error(e)), n)
    cases["spectra_correlated_per_second"] = (
        lambda: (spectra.flux(c), spectra.error(e, packed)),
        n,
    )
    return cases


def metrics(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of all rows; chi^2 is per degree of freedom: coefficients less the numbers fitted to them."""
    n = len(rows["chi2"])
    complete = rows.get("flags", np.zeros(n, int)) & 1 == 0  # as for PCA, if there are any
    complete = complete if complete.any() else ~complete
    metrics = {
        "n": n,
        "nll": float(np.mean(rows["nll"][complete], dtype=float)),
        "chi2_median": float(np.median(rows["chi2"])),
        "coverage_68": float(np.mean(rows["within_68"], dtype=float)),
        "coverage_95": float(np.mean(rows["within_95"], dtype=float)),
    }
    if "latent_mean" in rows or "kl" in rows:
        metrics["kl"] = float(np.mean(rows["kl"], dtype=float))
    return metrics


def active_latents(z: np.ndarray) -> int:
    """How many latent numbers of ``z`` (stars, latent) differ from star to star."""
    return int((z.var(0) > MIN_LATENT_VARIANCE).sum())


def warnings(rows: Mapping[str, np.ndarray], latent: int) -> list[str]:
    """A sentence if latent numbers have collapsed."""
    sentences = []
    z = rows.get("latent_mean", np.empty((0, latent)))
    if len(z) > 10 and (active := active_latents(z)) < latent:
        sentences.append(
            f"{latent - active} of {latent} latent numbers are the same for all stars: they have "
            f"collapsed; model.latent={active} is enough"
        )
    return sentences


def reconstruction_rows(
    model: "ScatterVAE", batch: Batch, x: Tensor, scatter: Tensor, n_fitted: int = 0
) -> dict[str, Tensor]:
    """The columns of `metrics`, (batch,), for any reconstruction ``x`` (batch, n) with ``scatter``.

    Of stars with all bands; ``n_fitted``: how many numbers were fitted to each star.
    """
    error = batch["errors"]
    whitening = model.whitening_of((scatter / error).square(), batch)
    white = whitening(((batch["coefficients"] - x) / error)[..., None])[..., 0]
    n = white.shape[1]
    squares = white.square().sum(1)
    log_errors = (error / batch["flux"][:, None]).log().sum(1) * (not model.in_modes)
    studentised = white.abs() * (n / (n - n_fitted)) ** 0.5
    nll = gaussian_nll(squares, whitening.log_det, log_errors, torch.tensor(float(n)))
    return {
        "chi2": squares / (n - n_fitted),
        "nll": nll + 0.5 * n_fitted,
        "within_68": (studentised < 1).float().mean(1),
        "within_95": (studentised < 1.959964).float().mean(1),
    }


def pca_rows(model: "ScatterVAE", batch: Batch, k: int) -> dict[str, Tensor]:
    """`reconstruction_rows` of the mean and k principal components.

    They are fitted to each star by least squares with its full covariance.
    """
    flux = batch["flux"][:, None]
    mean = model.center * flux
    components = (model.components[:, :k] * model.scale[:, None]) * flux[..., None]  # (batch, n, k)
    error = batch["errors"]
    whitening = model.whitening_of(torch.zeros_like(error), batch)
    j = whitening(components / error[..., None]).double()
    r = whitening(((batch["coefficients"] - mean) / error)[..., None]).double()
    amplitudes = torch.linalg.solve(j.mT @ j, j.mT @ r).float()
    x = mean + (components @ amplitudes)[..., 0]
    return reconstruction_rows(model, batch, x, torch.zeros_like(error), k)


def true_spectra(data: Data, row: Tensor) -> tuple[Tensor, Tensor] | None:
    """Coefficients without noise, and their scatter, (rows, n), of a simulation."""
    return data.true_spectra(row) if isinstance(data, HasTrueSpectra) else None


def true_rows(model: "ScatterVAE", data: Data) -> Arrays:
    """`reconstruction_rows` of the true spectra of a simulation; empty for a catalogue."""
    parts: dict[str, list[np.ndarray]] = {}
    for batch in data.prediction_batches():
        truth = true_spectra(data, batch["row"])
        if truth is None:
            return {}
        for name, values in reconstruction_rows(model, batch, *truth).items():
            parts.setdefault(name, []).append(values.numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def compare(model: "ScatterVAE", data: Data) -> tuple[dict[str, float], dict[str, Arrays]]:
    """Metrics of the model, PCA and the truth on the first stars with all bands; figure data.

    - latent: ``latent_mean`` (stars, latent) and, where known, ``bp_rp`` and ``g_mag`` (stars,).
    - scatter: per coefficient, relative to flux, (n,): median ``learned`` scatter, ``error`` and,
      of a simulation, ``true`` scatter (0: none).
    - generated: `ScatterVAE.generate`.
    """
    batch = next(data.prediction_batches())
    complete = batch["observed"].bool().all(1)
    if not bool(complete.any()):
        return {}, {}
    batch = {k: v[complete][:MAX_COMPARED] for k, v in batch.items()}
    flux = batch["flux"][:, None]
    rows = model.predict_step(batch)
    n = model.whitened_mask(batch["observed"]).sum(1)
    chi2_per_coefficient = rows["chi2"] * rows["dof"] / n
    without_scatter = reconstruction_rows(
        model,
        batch,
        rows["reconstruction"],
        torch.zeros_like(batch["errors"]),
        model.latent + 1,
    )
    metrics: dict[str, float] = {
        "active_latents": active_latents(rows["latent_mean"].numpy()),
        "chi2_per_coefficient_median": float(chi2_per_coefficient.median()),
        "chi2_no_scatter_median": float(without_scatter["chi2"].median()),
    }
    for k in PCA_COMPONENTS:
        pca = pca_rows(model, batch, k)
        metrics[f"pca{k}_chi2_median"] = float(pca["chi2"].median())
        metrics[f"pca{k}_nll"] = float(pca["nll"].mean())
    scatter = {"learned": rows["scatter"], "error": batch["errors"]}
    truth = true_spectra(data, batch["row"])
    if truth is not None:
        metrics |= truth_metrics(rows, batch, *truth)
        scatter["true"] = truth[1]
        if len(model.bands) > 1:
            metrics |= imputation_metrics(model, batch, truth[0])
    latent = {name: rows[name] for name in LATENT_COLUMNS if name in rows}
    made: dict[str, Callable[[], Arrays]] = {
        "latent": lambda: _numpy(latent),
        "scatter": lambda: _numpy({k: (v / flux).median(0).values for k, v in scatter.items()}),
        "generated": lambda: model.generate(N_GENERATED),
    }
    figures = {name: or_nothing(f"{name}.png", arrays) for name, arrays in made.items()}
    return metrics, {name: arrays for name, arrays in figures.items() if arrays}


def _numpy(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: values.cpu().numpy() for name, values in tensors.items()}


def truth_metrics(
    rows: Mapping[str, Tensor], batch: Batch, x: Tensor, scatter: Tensor
) -> dict[str, float]:
    """Of scatter and reconstruction, whose true values are ``scatter`` and ``x``, (batch, n)."""
    flux = batch["flux"][:, None]
    scattered = (scatter > 0).all(0)
    ratio = (rows["scatter"] / scatter)[:, scattered]
    learned, true = rows["scatter"] / flux, (scatter / flux)[:, scattered]
    # the largest median scatter of coefficients without any, in units of the least true one
    false = learned[:, ~scattered].median(0).values.max()
    error = rows["reconstruction_factor"].square().sum(2).sqrt()
    pull = (rows["reconstruction"] - x) / error
    noise, denoised = (
        ((v - x) / batch["errors"]).square().mean().sqrt()
        for v in (batch["coefficients"], rows["reconstruction"])
    )
    return {
        "scatter_ratio_median": float(ratio.median()),
        "scatter_false_max": float(false / true.median(0).values.min()),
        "denoised_coverage_68": float((pull.abs() < 1).float().mean()),
        "denoised_error_ratio": float(denoised / noise),
    }


def imputation_metrics(model: "ScatterVAE", batch: Batch, x: Tensor) -> dict[str, float]:
    """Of the first band, hidden and imputed from the others; ``x`` (batch, n): the truth."""
    n = next(iter(model.bands.values()))
    observed = batch["observed"].clone()
    observed[:, 0] = 0
    rows = model.predict_step({**batch, "observed": observed})
    deviation = rows["reconstruction"][:, :n] - x[:, :n]
    variance = rows["reconstruction_factor"][:, :n].square().sum(2)
    variance = variance + rows["scatter"][:, :n].square()
    return {
        "imputed_bp_error_median": float((deviation.norm(dim=1) / x[:, :n].norm(dim=1)).median()),
        "imputed_bp_coverage_68": float((deviation.abs() < variance.sqrt()).float().mean()),
    }
