"""Claims about magnitudes, luptitudes, survey errors and extinction."""

import numpy as np
import pytest
import torch

from orrery.physics.galaxies import photometry as ph


def test_one_microjansky_is_magnitude_23_9():
    flux, flux_err = ph.mag_to_flux(torch.tensor(23.9).double(), torch.tensor(0.1).double())
    assert flux.item() == pytest.approx(1.0)
    assert flux_err.item() == pytest.approx(0.0921034, rel=1e-5)


def test_flux_and_magnitude_are_inverse():
    mag = torch.linspace(15, 28, 50, dtype=torch.float64)
    err = torch.linspace(0.01, 0.5, 50, dtype=torch.float64)
    flux, flux_err = ph.mag_to_flux(mag, err)
    torch.testing.assert_close(23.9 - 2.5 * flux.log10(), mag)
    torch.testing.assert_close(2.5 / np.log(10) * flux_err / flux, err)


def test_luptitude_is_the_magnitude_of_a_bright_source():
    flux = torch.logspace(0, 4, 40, dtype=torch.float64)  # at least 50 times the softening
    assert (ph.luptitude(flux, 0.02) - (23.9 - 2.5 * flux.log10())).abs().max() < 1e-3


def test_luptitude_is_finite_and_falls_with_flux_through_zero():
    flux = torch.linspace(-1, 1, 401, dtype=torch.float64)
    lup = ph.luptitude(flux, 0.05)
    assert lup.isfinite().all()
    assert (lup.diff() < 0).all()


def test_luptitude_of_zero_flux_is_the_magnitude_of_the_softening():
    zero = torch.zeros((), dtype=torch.float64)
    assert ph.luptitude(zero, 0.01).item() == pytest.approx(23.9 + 5.0)


def test_luptitude_error_is_the_derivative():
    flux = torch.linspace(-0.5, 2.0, 30, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(ph.luptitude(flux, 0.03).sum(), flux)
    err = ph.luptitude_err(flux.detach(), torch.full_like(slope, 0.2), 0.03)
    torch.testing.assert_close(err, 0.2 * slope.abs())


def test_source_at_the_depth_has_a_signal_to_noise_of_five():
    m5, gamma = ph.lsst_depth(10.0), torch.tensor(ph.LSST_GAMMA).double()
    flux5, _ = ph.mag_to_flux(m5, m5)
    torch.testing.assert_close(flux5 / ph.lsst_flux_error(flux5, flux5, gamma, 0.0), 5 + 0 * m5)


def test_ten_year_depth_is_the_published_one():
    # Ivezic et al. 2019, Table 1, "idealized depth of coadded images"
    published = torch.tensor([26.1, 27.4, 27.5, 26.8, 26.1, 24.9]).double()
    torch.testing.assert_close(ph.lsst_depth(10.0), published, atol=0.06, rtol=0)


def test_bright_source_has_the_systematic_error():
    flux, flux5 = torch.tensor(1e4).double(), torch.tensor(0.1).double()
    error = 2.5 / np.log(10) * ph.lsst_flux_error(flux, flux5, 0.039) / flux
    assert error.item() == pytest.approx(0.005, rel=1e-2)


def test_depth_follows_from_flux_and_error():
    flux = torch.tensor([-0.1, 0.0, 0.05, 1.0, 300.0], dtype=torch.float64)
    flux5 = torch.full_like(flux, 0.07)
    err = ph.lsst_flux_error(flux, flux5, 0.039)
    torch.testing.assert_close(ph.five_sigma_flux(flux, err, 0.039), flux5, rtol=1e-7, atol=0)


def test_non_detections_are_flagged():
    flux = torch.tensor([2.0, 0.5, -1.0, torch.nan])
    assert ph.is_detected(flux, torch.ones(4)).tolist() == [True, False, False, False]


def test_dereddening_brightens_by_the_extinction():
    mag = torch.full((3, 6), 22.0, dtype=torch.float64)
    ebv = torch.tensor([0.0, 0.05, 0.3], dtype=torch.float64)
    flux, _ = ph.mag_to_flux(mag, mag)
    bright = ph.deredden_flux(flux, ebv, ph.EXTINCTION_LSST)
    found = 23.9 - 2.5 * bright.log10()
    torch.testing.assert_close(found[0], mag[0])
    assert found[2, 0].item() == pytest.approx(22.0 - 0.3 * 4.145)
    assert found[1, 5].item() == pytest.approx(22.0 - 0.05 * 1.088)


def test_dereddening_names_a_missing_band():
    with pytest.raises(ValueError, match="6 bands but the coefficients name 5"):
        ph.deredden_flux(torch.ones(2, 6), torch.zeros(2), ph.EXTINCTION_SDSS)
