"""Predicted columns: latent numbers of a star, its spectrum, and how well the model fits it."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from orrery.models.base import Batch, Output
from orrery.models.scatter_vae.inference import LatentPosterior, gaussian_nll, log_tail
from orrery.models.scatter_vae.spectra import Spectra
from orrery.physics.gaia_xp import xp
from orrery.physics.gaia_xp.xp_mock import G_OF_BP_RP, G_ZERO_POINT

LATENT = {
    "latent_mean": Output("", "posterior mean of the latent numbers z", axes=("latent",)),
    "latent_log_variance": Output("", "ln variance of each latent number", axes=("latent",)),
}
FLAGS = {
    "no_bp": "BP is missing and imputed",
    "misfit": "p_value below 1e-4",
    "rare": "|z| beyond 99.99% of the prior",
}
MISFIT = {
    "chi2": Output("", "chi^2, of errors, correlations and scatter, per degree of freedom"),
    "dof": Output(
        "", "degrees of freedom: coefficients less the effective number of fitted parameters"
    ),
    "p_value": Output(
        "",
        "probability of a larger chi^2 for a star of this model; NaN of sampled spectra, whose "
        "errors are not known well enough",
        unusual="low",
    ),
    "kl": Output("", "KL divergence of the posterior of z from the prior, nats"),
    "outlier_score": Output(
        "",
        "misfit and rarity, -ln p_value - ln P(larger |z|^2): 2 +- 1.4 for a star of the prior",
    ),
    "nll": Output(
        "",
        "-ln p(coefficients / flux | z), plus half a nat for each fitted parameter: without it the "
        "fit of z to the noise would be better than the truth",
    ),
    "within_68": Output(
        "", "fraction of studentised whitened residuals within 1 sigma: 0.683 if calibrated"
    ),
    "within_95": Output("", "the same within 1.96 sigma: 0.95 if calibrated"),
    "flags": Output("", "bits", bits=FLAGS),
}
SAMPLED = "sampled"  # the one band of sampled spectra
LOG_P_FLAGGED = -9.21  # ln 1e-4


COLOUR_RANGE = (340.0, 1010.0)  # nm, that a sampled spectrum covers where it has a BP - RP


def covers_both_bands(wavelengths: np.ndarray | None) -> bool:
    """Whether spectra at ``wavelengths``, nm, have a BP - RP; None: unknown ones."""
    if wavelengths is None:
        return False
    return bool(wavelengths[0] <= COLOUR_RANGE[0] and wavelengths[-1] >= COLOUR_RANGE[1])


def outputs(
    bands: Mapping[str, int], known_instrument: bool, colour: bool = False
) -> dict[str, Output]:
    """The columns in their order; spectra at wavelengths only where the instrument is known.

    ``colour``: whether sampled spectra have a BP - RP, see `covers_both_bands`.
    """
    unit = "electron / s" if known_instrument else ""
    vectors = {
        "reconstruction": Output(
            unit,
            "the spectrum without noise, in the unit of the table's"
            if SAMPLED in bands
            else f"coefficients without noise, of {' and '.join(bands)}",
            axes=("coefficient",),
        ),
        "reconstruction_factor": Output(
            unit,
            "F, (coefficients, latent + 1): the reconstruction has the covariance F F^T",
            axes=("coefficient", "direction"),
        ),
        "scatter": Output(
            unit,
            "intrinsic scatter of each coefficient about the reconstruction",
            axes=("coefficient",),
        ),
    }
    spectrum = {
        "spectrum": Output(
            "W m-2 nm-1",
            "the reconstruction at the wavelengths of the model",
            axes=("wavelength",),
        ),
        "spectrum_error": Output(
            "W m-2 nm-1",
            "its standard deviation, from the uncertainty of z and the scatter",
            axes=("wavelength",),
        ),
        "g_mag": Output("mag", "approximate G of the reconstruction: for figures, not photometry"),
        "bp_rp": Output("mag", "its approximate BP - RP"),
    }
    if not known_instrument:
        spectrum = {"bp_rp": spectrum["bp_rp"]} if colour else {}
    return LATENT | vectors | spectrum | MISFIT


def generated_outputs(known_instrument: bool) -> dict[str, Output]:
    """The columns of `ScatterVAE.generated`, of stars of flux 1."""
    columns = {
        "latent": Output("", "latent numbers z of the star"),
        "coefficients": Output("", "coefficients over the flux, without noise"),
        "scatter": Output("", "intrinsic scatter of each coefficient, over the flux"),
    }
    if known_instrument:
        meaning = (
            "flux density at the wavelengths of the model for coefficients of flux 1 electron/s"
        )
        columns["spectrum"] = Output("W m-2 nm-1", meaning)
    return columns


def predicted_rows(
    posterior: LatentPosterior,
    batch: Batch,
    reconstruction: Tensor,
    factor: Tensor,
    scatter: Tensor,
    observed: Tensor,
    whitened: Tensor,
    in_modes: bool,
    bands: Mapping[str, int],
    latent: int,
    spectra: Spectra | None,
    sampled_at: np.ndarray | None,
) -> dict[str, Tensor]:
    """`outputs` of a batch.

    ``posterior``: of z, (latent,), and an amplitude. ``reconstruction`` and ``scatter`` (batch, n),
    ``factor`` (batch, n, latent + 1), its derivatives; all in units of ``batch["flux"]``.
    ``observed`` (batch, n): mask of the coefficients, ``whitened`` (batch, m) of the whitened
    residuals; ``in_modes``: whether these are of modes of the errors, see `ModeWhitening`.
    """
    flux = batch["flux"][:, None]
    root = torch.linalg.cholesky(posterior.covariance)
    z = posterior.mean[:, :latent]
    rows = {
        "latent_mean": z,
        "latent_log_variance": posterior.covariance.diagonal(dim1=1, dim2=2)[:, :latent].log(),
        "reconstruction": reconstruction * flux,
        "reconstruction_factor": factor @ root * flux[..., None],
        "scatter": scatter * flux,
    }
    if spectra is not None:
        rows["spectrum"] = spectra.flux(rows["reconstruction"])
        rows["spectrum_error"] = spectra.model_error(rows["reconstruction_factor"], rows["scatter"])
        rows["g_mag"], rows["bp_rp"] = _photometry(rows["reconstruction"], bands)
    elif sampled_at is not None and covers_both_bands(sampled_at):
        rows["bp_rp"] = _sampled_colour(rows["reconstruction"] / flux, sampled_at)
    n = whitened.sum(1)
    squares, dof, log_p = misfit(posterior, whitened)
    if SAMPLED in bands:  # their errors are known in pattern, and not in size
        log_p = torch.full_like(log_p, torch.nan)
    log_p_z = log_tail(z.square().sum(1), torch.full_like(dof, float(latent)))
    log_errors = torch.where(observed, (batch["errors"] / flux).log(), 0.0).sum(1) * (not in_modes)
    missing = (batch["observed"] == 0).any(1)
    white = posterior.studentised().abs()
    return rows | {
        "chi2": squares / dof,
        "dof": dof,
        "p_value": log_p.exp(),
        "kl": posterior.divergence(latent),
        "outlier_score": -log_p - log_p_z,
        "nll": gaussian_nll(squares, posterior.log_det, log_errors, n) + 0.5 * posterior.n_fitted(),
        "within_68": ((white < 1) & whitened).sum(1) / n,
        "within_95": ((white < 1.959964) & whitened).sum(1) / n,
        "flags": missing.short()
        + 2 * (log_p < LOG_P_FLAGGED).short()
        + 4 * (log_p_z < LOG_P_FLAGGED).short(),
    }


def misfit(posterior: LatentPosterior, whitened: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """chi^2, its degrees of freedom and ln P(larger chi^2), (batch,).

    ``whitened`` (batch, m): which of the whitened residuals are of data.
    """
    squares = posterior.residual.square().sum(1)
    dof = whitened.sum(1) - posterior.n_fitted()
    return squares, dof, log_tail(squares, dof)


def _photometry(coefficients: Tensor, bands: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """G and BP - RP, mag, from the photons of each band, with the zero points of DR3."""
    parts = dict(zip(bands, coefficients.split(list(bands.values()), 1), strict=True))
    weight = {b: torch.as_tensor(xp.photons(b), dtype=torch.float32) for b in xp.BANDS}
    bp, rp = (parts[b] @ weight[b].to(parts[b]) for b in xp.BANDS)
    bp, rp = (torch.where(x > 0, x, torch.nan) for x in (bp, rp))  # an imputed band may be negative
    g = G_ZERO_POINT - 2.5 * (G_OF_BP_RP * (bp + rp)).log10()
    return g, _colour(bp, rp)


def _sampled_colour(flux: Tensor, wavelength: np.ndarray) -> Tensor:
    """BP - RP, mag, (batch,), of ``flux`` (batch, k), of any unit, at ``wavelength`` (k,), nm.

    Of 1,600 real stars at 336, 338 to 1,020 nm it is 0.011 +- 0.004 mag above the published one.
    """
    step = np.gradient(wavelength)
    photons = [band.photons(wavelength) * step for band in xp.instrument().values()]
    weight = torch.as_tensor(np.stack(photons, 1) / np.max(photons)).to(flux)
    bp, rp = (flux @ weight).T
    positive = (bp > 0) & (rp > 0)
    return torch.where(positive, _colour(bp, rp), torch.nan)


def _colour(bp: Tensor, rp: Tensor) -> Tensor:
    return -2.5 * (bp / rp).log10() + xp.COLOUR_ZERO_POINT
