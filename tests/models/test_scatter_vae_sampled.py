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
