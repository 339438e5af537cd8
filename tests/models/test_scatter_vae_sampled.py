"""Sampled spectra: the correlations of their errors, and the checkpoint that learned from them."""

import numpy as np
import pytest
import torch
from astropy.table import Table
from conftest import ROOT
from torch.distributions import MultivariateNormal

from orrery import load
from orrery.models.scatter_vae.inference import ModeWhitening, posterior
from orrery.models.scatter_vae.likelihood import mode_nll
from orrery.physics.gaia_xp import xp, xp_noise
from orrery.physics.gaia_xp.sampled import covers, error_correlations, error_modes
from orrery.runs import data_for

REAL = ROOT.parent / "shared/data/xp/xp_sampled_apogee_2000.npz"


@pytest.fixture(scope="module")
def modes():
    return error_modes(xp.SAMPLED)


@pytest.fixture(scope="module")
def model():
    return load("scatter_vae_sampled")


def fitted_noise(n: int, random: np.random.Generator) -> np.ndarray:
    """Noise (n, 343) of spectra whose coefficients are fitted to noisy transits of a G star."""
    wavelength = np.arange(320.0, 1101.0, 2.0)
    flux = wavelength**-5.0 / np.expm1(1.4388e7 / (wavelength * 5800))
    noise = np.zeros((n, len(xp.SAMPLED)))
    for band, instrument in xp.instrument().items():
        functions = instrument.functions
        design = functions @ xp.hermite(functions.shape[1], xp_noise.PIXELS)
        photons = (xp.projection(band, wavelength) @ flux @ design).clip(min=0)
        sigma = np.sqrt(photons / photons.max() + xp_noise.FLOOR)
        pixels = random.normal(size=(n, len(sigma)))
        coefficients = np.linalg.lstsq((design / sigma).T, pixels.T, rcond=None)[0].T
        noise += (coefficients @ xp.sampling(band, xp.SAMPLED)) * xp.overlap(band, xp.SAMPLED)
    return noise / noise.std(0)


def test_errors_of_spectra_fitted_to_transits_are_independent_in_the_modes(modes):
    white = fitted_noise(4000, np.random.default_rng(0)) @ modes.T
    covariance = white.T @ white / len(white)
    assert 60 < len(modes) < 80  # of 343 samples
    np.testing.assert_allclose(np.diag(covariance), 1, atol=0.25)
    off = covariance[np.triu_indices(len(modes), 1)]
    assert np.sqrt(np.mean(off**2)) < 0.03  # of independent draws 0.016
    neighbours = np.diag(error_correlations(xp.SAMPLED), 1)
    assert np.median(neighbours) > 0.8


def test_only_wavelengths_of_the_instrument_are_covered():
    assert covers(xp.SAMPLED) and covers(np.linspace(400, 900, 40))
    assert not covers(np.linspace(300, 900, 40)) and not covers(np.linspace(400, 1500, 40))


def test_the_likelihood_in_modes_is_that_of_the_whitened_numbers(modes):
    generator = torch.Generator().manual_seed(0)
    w = torch.tensor(modes)
    r, t = (torch.randn(3, 343, generator=generator).double() for _ in range(2))
    t = t.square()
    covariance = torch.eye(len(w)).double() + w @ t.diag_embed() @ w.T
    normal = MultivariateNormal(torch.zeros(len(w)).double(), covariance)
    torch.testing.assert_close(mode_nll(r, t, w), -normal.log_prob(r @ w.T))
    white = ModeWhitening(t, w)(r[..., None])[..., 0]
    inverse = torch.linalg.inv(covariance)
    squares = torch.einsum("bi,bij,bj->b", r @ w.T, inverse, r @ w.T)
    torch.testing.assert_close(white.square().sum(1), squares)


def test_a_linear_model_of_correlated_samples_has_calibrated_posteriors(modes):
    random = np.random.default_rng(1)
    matrix = torch.tensor(random.normal(size=(343, 3)) * 0.3).float()
    z = torch.tensor(random.normal(size=(400, 3))).float()
    y = z @ matrix.T + torch.tensor(fitted_noise(400, random)).float()
    t, w = torch.zeros_like(y), torch.tensor(modes).float()
    found = posterior(
        torch.zeros_like(z), lambda z: z @ matrix.T, y, torch.ones_like(y),
        lambda _: ModeWhitening(t, w), steps=3,
    )  # fmt: skip
    pull = (found.mean - z) / found.covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert float(pull.std()) == pytest.approx(1, abs=0.1)
    dof = len(w) - found.n_fitted()
    assert float((found.residual.square().sum(1) / dof).mean()) == pytest.approx(1, abs=0.05)


# --- the checkpoint -----------------------------------------------------------------------------


def spectra_of(model, n: int) -> Table:
    """Stars of the model at 1e-16 W m^-2 nm^-1, whose errors are correlated, 1% of their mean."""
    flux = 1e-16 * model.generate(n, seed=3)["coefficients"]
    error = np.full_like(flux, 1e-18)
    noisy = flux + error * fitted_noise(n, np.random.default_rng(2))
    table = Table({"flux": noisy, "flux_error": error})
    table["wavelength"] = np.tile(xp.SAMPLED, (n, 1))
    for name in ("flux", "flux_error"):
        table[name].unit = "W m-2 nm-1"
    return table


def test_a_spectrum_is_described_in_any_unit(model):
    table = spectra_of(model, 40)
    rows = model.predict(table)
    assert 0.6 < np.median(rows["chi2"]) < 1.1 and np.isnan(rows["p_value"]).all()
    divided = {"flux": table["flux"] / 1e-16, "flux_error": table["flux_error"] / 1e-16}
    divided = {name: np.asarray(values) for name, values in divided.items()}
    again = model.predict(divided | {"wavelength": np.asarray(table["wavelength"])})
    np.testing.assert_allclose(again["latent_mean"], rows["latent_mean"], atol=2e-2)
    np.testing.assert_allclose(
        again["reconstruction"], rows["reconstruction"] / 1e-16, rtol=1e-3, atol=1e-3
    )
    np.testing.assert_array_equal(model.constants["wavelength"].values, xp.SAMPLED)


def test_a_spectrum_at_other_wavelengths_is_refused(model):
    table = spectra_of(model, 3)
    table["wavelength"][1] += 3
    with pytest.raises(ValueError, match=r"339 to 1023 nm.*row 1.*336 to 1020 nm in 343"):
        model.predict(table)


@pytest.mark.skipif(not REAL.exists(), reason="../shared/data is not here")
def test_real_spectra_are_described_by_the_checkpoint_that_learned_from_others(model):
    data = data_for(model.record, {"path": str(REAL), "split": "test"})
    (held_out,) = data.prediction_batches()
    with torch.inference_mode():
        rows = {name: values.numpy() for name, values in model.predict_step(held_out).items()}
    with np.load(REAL) as file:
        published = (file["bp"] - file["rp"])[held_out["row"].numpy()]
    colours = rows["bp_rp"] - published
    assert np.abs(np.median(colours)) < 0.02 and np.std(colours) < 0.01
