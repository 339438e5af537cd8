"""What a predicted row holds: a star's place in latent space, its spectrum, and how odd it is."""

from collections.abc import Mapping

import torch
from torch import Tensor

from orrery.models.base import Batch, Output
from orrery.models.scatter_vae.inference import Posterior, gaussian_nll, log_tail
from orrery.models.scatter_vae.spectra import Spectra
from orrery.physics.gaia_xp import xp
from orrery.physics.gaia_xp.xp_mock import G_OF_BP_RP, G_ZERO_POINT

LATENT = {
    "latent_mean": Output("", "z of the star: mean of its posterior"),
    "latent_log_variance": Output("", "ln of the variance of each z"),
}
ODD = {
    "chi2": Output("", "chi^2, of errors, correlations and scatter, per degree of freedom"),
    "dof": Output("", "coefficients less the latent numbers that they decide"),
    "p_value": Output("", "P(chi^2 > this one) of a star of this model"),
    "kl": Output("", "KL divergence of the posterior of z from the prior, nats"),
    "outlier_score": Output(
        "",
        "-ln p_value - ln P(|z|^2 > this one), misfit and rarity: 2 +- 1.4 of a star of the prior",
    ),
    "nll": Output(
        "",
        "-ln p(coefficients / flux | z), plus half a nat for each number fitted: without it z's "
        "fit to the noise would be better than the truth",
    ),
    "within_68": Output(
        "", "share of studentised whitened residuals within 1 sigma: of an honest model 0.683"
    ),
    "within_95": Output("", "the same within 1.96 sigma: 0.95"),
    "flags": Output(
        "",
        "bits: 1 BP is missing and imputed; 2 p_value below 1e-4; 4 |z| beyond 99.99% of the prior",
    ),
}
LEAST = -9.21  # ln 1e-4


def outputs(bands: Mapping[str, int], sampled: bool) -> dict[str, Output]:
    """The columns in their order; those of wavelengths where the instrument is known."""
    unit = "electron / s" if sampled else ""
    vectors = {
        "reconstruction": Output(unit, f"coefficients without noise, of {' and '.join(bands)}"),
        "reconstruction_factor": Output(
            unit, "F, (coefficients, latent + 1): the reconstruction has the covariance F F^T"
        ),
        "scatter": Output(unit, "intrinsic scatter of each coefficient about the reconstruction"),
    }
    spectrum = {
        "spectrum": Output("W m-2 nm-1", "the reconstruction at the wavelengths of the model"),
        "spectrum_error": Output(
            "W m-2 nm-1", "of the star's spectrum about it: what z leaves open, and the scatter"
        ),
        "g_mag": Output("mag", "G of the reconstruction, approximate: for figures, not photometry"),
        "bp_rp": Output("mag", "its colour, approximate too"),
    }
    return LATENT | vectors | (spectrum if sampled else {}) | ODD


def generated_outputs(sampled: bool) -> dict[str, Output]:
    """The columns of `ScatterVAE.generated`, of stars of flux 1."""
    columns = {
        "latent": Output("", "z of the star, which it was drawn with"),
        "coefficients": Output("", "coefficients over the flux, without noise"),
        "scatter": Output("", "intrinsic scatter of each coefficient, over the flux"),
    }
    if sampled:
        meaning = (
            "flux density at the wavelengths of the model for coefficients of flux 1 electron/s"
        )
        columns["spectrum"] = Output("W m-2 nm-1", meaning)
    return columns


def rows_of(
    found: Posterior,
    batch: Batch,
    reconstruction: Tensor,
    factor: Tensor,
    scatter: Tensor,
    seen: Tensor,
    bands: Mapping[str, int],
    latent: int,
    spectra: Spectra | None,
) -> dict[str, Tensor]:
    """`outputs` of a batch.

    ``found``: of z, (latent,), and an amplitude. ``reconstruction`` and ``scatter`` (batch, n),
    ``factor`` (batch, n, latent + 1), its derivatives; all in units of ``batch["flux"]``. ``seen``
    (batch, n): which coefficients were observed.
    """
    flux = batch["flux"][:, None]
    root = torch.linalg.cholesky(found.covariance)
    z = found.mean[:, :latent]
    rows = {
        "latent_mean": z,
        "latent_log_variance": found.covariance.diagonal(dim1=1, dim2=2)[:, :latent].log(),
        "reconstruction": reconstruction * flux,
        "reconstruction_factor": factor @ root * flux[..., None],
        "scatter": scatter * flux,
    }
    if spectra is not None:
        rows["spectrum"] = spectra.flux(rows["reconstruction"])
        rows["spectrum_error"] = spectra.error_of(rows["reconstruction_factor"], rows["scatter"])
        rows["g_mag"], rows["bp_rp"] = _photometry(rows["reconstruction"], bands)
    n = seen.sum(1)
    squares = found.residual.square().sum(1)
    dof = n - found.fitted()
    log_p = log_tail(squares, dof)
    log_rare = log_tail(z.square().sum(1), torch.full_like(dof, float(latent)))
    log_errors = torch.where(seen, (batch["errors"] / flux).log(), 0.0).sum(1)
    missing = (batch["observed"] == 0).any(1)
    white = found.studentised().abs()
    return rows | {
        "chi2": squares / dof,
        "dof": dof,
        "p_value": log_p.exp(),
        "kl": found.divergence(latent),
        "outlier_score": -log_p - log_rare,
        "nll": gaussian_nll(squares, found.log_det, log_errors, n) + 0.5 * found.fitted(),
        "within_68": ((white < 1) & seen).sum(1) / n,
        "within_95": ((white < 1.959964) & seen).sum(1) / n,
        "flags": missing.short() + 2 * (log_p < LEAST).short() + 4 * (log_rare < LEAST).short(),
    }


def _photometry(coefficients: Tensor, bands: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """G and BP - RP, mag, from the photons of each band, with the zero points of DR3."""
    parts = dict(zip(bands, coefficients.split(list(bands.values()), 1), strict=True))
    weight = {b: torch.as_tensor(xp.photons(b), dtype=torch.float32) for b in xp.BANDS}
    bp, rp = (parts[b] @ weight[b].to(parts[b]) for b in xp.BANDS)
    bp, rp = (torch.where(x > 0, x, torch.nan) for x in (bp, rp))  # an imputed band may be anything
    g = G_ZERO_POINT - 2.5 * (G_OF_BP_RP * (bp + rp)).log10()
    return g, -2.5 * (bp / rp).log10() + xp.COLOUR_ZERO_POINT
