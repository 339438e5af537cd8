"""How good the model is: of predicted rows, of the truth that a simulation knows, beside PCA."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orrery.models.base import Evaluation, PredictedRows
from orrery.models.scatter_vae.inference import Whitening, gaussian_nll

COLLAPSED = 0.01  # variance over stars of a latent number below which it says nothing (Burda 2016)
COMPONENTS = (6, 10, 20)  # of the PCA beside it
COMPARED = 4096  # stars on which PCA and the scatter are compared
STARS = ("latent_mean", "bp_rp", "g_mag")  # of many stars, for the figure of latent space
GENERATED = 200  # stars, for a figure
ODD = 0.01  # share of stars with p < 1e-4 that is worth a remark


SMALLER_IS_BETTER = frozenset(("nll", "pca6_chi2_median", "pca10_chi2_median"))


def evaluate(model: Any, rows: PredictedRows, data: Any) -> Evaluation:
    """`Evaluation` of a `models.scatter_vae.ScatterVAE`."""
    evaluation = Evaluation(metrics(rows), warnings=warnings(rows, model.latent))
    compared, arrays = compare(model, data)
    evaluation.metrics |= compared
    with torch.inference_mode():
        examples = {k: v.to(model.device) for k, v in rows.examples.items()}
        observed = {k: v.cpu().numpy() for k, v in model.observed_spectra(examples).items()}
    evaluation.figures = {"spectra": observed, "population": arrays}
    if truth := true_rows(data, model.bands):
        evaluation.baselines["true model"] = metrics(truth)
    evaluation.timings = timing_cases(model, next(data.prediction_batches()))
    evaluation.smaller_is_better = SMALLER_IS_BETTER
    return evaluation


def timing_cases(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Any]:
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
    """Of all rows; chi^2 is per degree of freedom: coefficients less what was fitted to them."""
    n = len(rows["chi2"])
    whole = rows.get("flags", np.zeros(n, int)) & 1 == 0  # as PCA needs them, where there are any
    whole = whole if whole.any() else ~whole
    found = {
        "n": n,
        "nll": float(np.mean(rows["nll"][whole], dtype=float)),
        "chi2_median": float(np.median(rows["chi2"])),
        "coverage_68": float(np.mean(rows["within_68"], dtype=float)),
        "coverage_95": float(np.mean(rows["within_95"], dtype=float)),
    }
    if "latent_mean" in rows or "kl" in rows:
        found["kl"] = float(np.mean(rows["kl"], dtype=float))
        found["odd_fraction"] = float(np.mean(rows["p_value"] < 1e-4))
        found["missing_bp_fraction"] = float(np.mean(rows["flags"] & 1))
    return found


def active(z: np.ndarray) -> int:
    """How many latent numbers differ from star to star."""
    return int((z.var(0) > COLLAPSED).sum())


def warnings(rows: Mapping[str, np.ndarray], latent: int) -> list[str]:
    """Sentences about collapsed latent numbers, misfitted stars, and stars without BP."""
    said = []
    if len(rows.get("latent_mean", ())) > 10 and (left := active(rows["latent_mean"])) < latent:
        said.append(
            f"{latent - left} of {latent} latent numbers are the same for all stars: they have "
            f"collapsed; model.latent={left} would do"
        )
    odd = float(np.mean(rows["p_value"] < 1e-4))
    if odd > ODD:
        said.append(
            f"{odd:.1%} of the stars are misfitted (p_value < 1e-4), of a model's own 0.01% would "
            f"be: they are unlike the training set, or their errors are too small"
        )
    imputed = int(np.sum(rows["flags"] & 1))
    if imputed:
        said.append(f"stars without BP, which is imputed from RP (flags, 1): {imputed:,}")
    return said


def of_reconstruction(
    batch: Mapping[str, Tensor],
    x: Tensor,
    scatter: Tensor,
    bands: Mapping[str, int],
    fitted: int = 0,
) -> dict[str, Tensor]:
    """What `metrics` needs, of any reconstruction ``x`` (batch, n) and its ``scatter``.

    Of stars with all bands; ``fitted``: how many numbers of each star were fitted.
    """
    error, n = batch["errors"], x.shape[1]
    whitening = Whitening((scatter / error).square(), batch, bands)
    white = whitening(((batch["coefficients"] - x) / error)[..., None])[..., 0]
    squares = white.square().sum(1)
    log_errors = (error / batch["flux"][:, None]).log().sum(1)
    studentised = white.abs() * (n / (n - fitted)) ** 0.5
    nll = gaussian_nll(squares, whitening.log_det, log_errors, torch.tensor(float(n)))
    return {
        "chi2": squares / (n - fitted),
        "nll": nll + 0.5 * fitted,
        "within_68": (studentised < 1).float().mean(1),
        "within_95": (studentised < 1.959964).float().mean(1),
    }


def by_components(model: Any, batch: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """The rival: the mean and k principal components, fitted to a star by least squares.

    With its full covariance, and so as well as components can.
    """
    flux = batch["flux"][:, None]
    start = model.center * flux
    along = (model.components[:, :k] * model.scale[:, None]) * flux[..., None]  # (batch, n, k)
    error = batch["errors"]
    whitening = Whitening(torch.zeros_like(error), batch, model.bands)
    j = whitening(along / error[..., None]).double()
    r = whitening(((batch["coefficients"] - start) / error)[..., None]).double()
    found = torch.linalg.solve(j.mT @ j, j.mT @ r).float()
    x = start + (along @ found)[..., 0]
    return of_reconstruction(batch, x, torch.zeros_like(error), model.bands, k)


def true_rows(data: Any, bands: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Rows of the true spectra and scatter of a simulation; empty for a catalogue."""
    parts: dict[str, list[np.ndarray]] = {}
    for batch in data.prediction_batches():
        truth = data.true_spectra(batch["row"])
        if truth is None:
            return {}
        for name, values in of_reconstruction(batch, truth[0], truth[1], bands).items():
            parts.setdefault(name, []).append(values.numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def compare(model: Any, data: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """PCA beside the model, on whole stars, and the scatter beside the true one; some stars."""
    batch = next(data.prediction_batches())
    whole = batch["observed"].bool().all(1)
    batch = {k: v[whole][:COMPARED] for k, v in batch.items()}
    found: dict[str, float] = {}
    shown: dict[str, np.ndarray] = {}
    with torch.inference_mode():
        rows = model.predict_step(batch)
        found["active_latents"] = active(rows["latent_mean"].numpy())
        per_coefficient = rows["chi2"] * rows["dof"] / len(model.center)
        found["chi2_per_coefficient_median"] = float(per_coefficient.median())
        # as PCA is judged, which knows no scatter
        nothing = torch.zeros_like(batch["errors"])
        bare = of_reconstruction(
            batch, rows["reconstruction"], nothing, model.bands, model.latent + 1
        )
        found["chi2_no_scatter_median"] = float(bare["chi2"].median())
        for k in COMPONENTS:
            scored = by_components(model, batch, k)
            found[f"pca{k}_chi2_median"] = float(scored["chi2"].median())
            found[f"pca{k}_nll"] = float(scored["nll"].mean())
        truth = data.true_spectra(batch["row"])
        if truth is not None:
            x, scatter = truth
            flux = batch["flux"][:, None]
            seeded = (scatter > 0).all(0)
            ratio = (rows["scatter"] / scatter)[:, seeded]
            found["scatter_ratio_median"] = float(ratio.median())
            # the largest median scatter that is not there, in units of the least seeded one
            learned, seeds = rows["scatter"] / flux, (scatter / flux)[:, seeded]
            false = learned[:, ~seeded].median(0).values.max()
            found["scatter_false_max"] = float(false / seeds.median(0).values.min())
            shown["scatter_true"] = (scatter / flux).median(0).values.numpy()
            error = rows["reconstruction_factor"].square().sum(2).sqrt()
            pull = (rows["reconstruction"] - x) / error
            found["denoised_coverage_68"] = float((pull.abs() < 1).float().mean())
            noise, left = (
                ((v - x) / batch["errors"]).square().mean().sqrt()
                for v in (batch["coefficients"], rows["reconstruction"])
            )
            found["denoised_error_ratio"] = float(left / noise)
            if len(model.bands) > 1:
                found |= _imputed(model, batch, x)
        shown |= {f"stars_{k}": rows[k].numpy() for k in STARS if k in rows}
        shown |= {f"generated_{k}": v for k, v in model.generate(GENERATED).items()}
        shown["scatter_learned"] = (
            (rows["scatter"] / batch["flux"][:, None]).median(0).values.numpy()
        )
        shown["error_median"] = (batch["errors"] / batch["flux"][:, None]).median(0).values.numpy()
    return found, shown


def _imputed(model: Any, batch: Mapping[str, Tensor], x: Tensor) -> dict[str, float]:
    """How well the first band is told from the others: its coefficients ``x`` are known."""
    n = next(iter(model.bands.values()))
    observed = batch["observed"].clone()
    observed[:, 0] = 0
    rows = model.predict_step({**batch, "observed": observed})
    off = rows["reconstruction"][:, :n] - x[:, :n]
    error = rows["reconstruction_factor"][:, :n].square().sum(2) + rows["scatter"][:, :n].square()
    return {
        "imputed_bp_error_median": float((off.norm(dim=1) / x[:, :n].norm(dim=1)).median()),
        "imputed_bp_coverage_68": float((off.abs() < error.sqrt()).float().mean()),
    }
