"""The instrument of Gaia's XP spectra, and simulated stars that it would have seen."""

from itertools import product

import numpy as np
import pytest
import torch

from orrery.physics.gaia_xp import correlations, stellar_spectra, xp, xp_mock, xp_noise

WAVELENGTH = xp_mock.WAVELENGTH
N = 1500  # stars
bands = pytest.mark.parametrize("band", xp.BANDS)


@pytest.fixture(scope="module")
def sky() -> dict[str, np.ndarray]:
    return xp_mock.simulate(N, np.random.default_rng(0))


def planck(teff: float) -> np.ndarray:
    """Flux per nm, (1, k), with nothing that XP would not resolve."""
    return (WAVELENGTH**-5.0 / np.expm1(stellar_spectra.HC_PER_K / (WAVELENGTH * teff)))[None]


def of_kind(wavelength: np.ndarray, *kinds: tuple[float, ...]) -> np.ndarray:
    names = ("teff", "logg", "mh", "alpha", "a_v")
    return stellar_spectra.flux(wavelength, **dict(zip(names, np.array(kinds).T, strict=True)))


def correlation(sky: dict[str, np.ndarray], band: str) -> np.ndarray:
    packed = sky[f"{band}_coefficient_correlations"].astype(float)
    return xp_noise.unpack(packed, sky[f"true_{band}"].shape[1])


def whitened(sky: dict[str, np.ndarray], band: str, scatter: bool = True) -> np.ndarray:
    """Residuals of the truth, (batch, n), by the covariance that is stated."""
    error = sky[f"{band}_coefficient_errors"]
    covariance = error[:, :, None] * correlation(sky, band) * error[:, None, :]
    n = error.shape[1]
    covariance[:, range(n), range(n)] += scatter * sky[f"scatter_{band}"] ** 2
    residual = sky[f"{band}_coefficients"] - sky[f"true_{band}"]
    return np.linalg.solve(np.linalg.cholesky(covariance), residual[..., None])[..., 0]


# --- the instrument -------------------------------------------------------------------------------


def test_hermite_functions_are_orthonormal():
    x, step = np.linspace(-16, 16, 4001, retstep=True)
    phi = xp.hermite(55, x)
    np.testing.assert_allclose(phi @ phi.T * step, np.eye(55), atol=1e-12)


@pytest.mark.parametrize("teff", [4500.0, 5750.0, 10_000.0])
def test_a_smooth_spectrum_comes_back_to_a_percent(teff):
    wavelength = np.arange(420.0, 1001.0, 2.0)
    spectrum = planck(teff)
    back = sum(
        spectrum
        @ xp.projection(band, WAVELENGTH).T
        @ (xp.sampling(band, wavelength) * xp.overlap(band, wavelength))
        for band in xp.BANDS
    )
    error = back[0] / np.interp(wavelength, WAVELENGTH, spectrum[0]) - 1
    assert error.std() < 0.01
    assert np.abs(error).max() < 0.04  # where the bands meet, at the ends of both


@bands
def test_projection_is_linear_in_flux_and_does_not_see_the_grid(band):
    kinds = (4200.0, 2.0, -0.5, 0.2, 0.4), (8000.0, 4.2, 0.0, 0.0, 0.0)
    fine = np.arange(WAVELENGTH[0], WAVELENGTH[-1] + 0.1)
    cool, hot = of_kind(WAVELENGTH, *kinds)
    matrix = xp.projection(band, WAVELENGTH)
    binary = matrix @ (3 * cool + 2 * hot)
    np.testing.assert_allclose(binary, 3 * matrix @ cool + 2 * matrix @ hot, rtol=1e-9)
    finer = xp.projection(band, fine) @ (
        3 * of_kind(fine, *kinds)[0] + 2 * of_kind(fine, *kinds)[1]
    )
    np.testing.assert_allclose(finer, binary, atol=1e-5 * np.abs(binary).max())


def test_each_band_sees_its_own_side_of_the_overlap_and_their_shares_are_one():
    wavelength = np.array([336.0, 634.9, 639.0, 643.1, 1020.0])
    bp, rp = (xp.overlap(band, wavelength) for band in xp.BANDS)
    np.testing.assert_allclose(bp, [1, 1, 0.5, 0, 0])
    np.testing.assert_allclose(bp + rp, 1)


def test_wavelengths_that_xp_does_not_reach_are_refused():
    with pytest.raises(ValueError, match="330 to 1020 nm; wavelengths from 300 to 500 were asked"):
        xp.sampling("bp", np.array([300.0, 500.0]))


@bands
def test_photons_of_coefficients_are_those_of_the_spectrum(band):
    teff = np.array([3600.0, 4500.0, 5750.0, 9500.0])
    stars = of_kind(WAVELENGTH, *((t, 4.0, 0.0, 0.0, 0.5) for t in teff))
    counted = stars @ xp.instrument()[band].photons(WAVELENGTH) * (WAVELENGTH[1] - WAVELENGTH[0])
    found = stars @ xp.projection(band, WAVELENGTH).T @ xp.photons(band)
    np.testing.assert_allclose(found, counted, rtol=0.01)


def test_a_simulated_star_is_as_bright_as_its_magnitude_says(sky):
    spectrum = sum(
        sky[f"true_{band}"] @ (xp.sampling(band, xp.SAMPLED) * xp.overlap(band, xp.SAMPLED))
        for band in xp.BANDS
    )
    at_550 = spectrum[:, xp.SAMPLED == 550][:, 0]
    vega = 3.63e-11  # W m^-2 nm^-1, at 550 nm (Bohlin & Gilliland 2004), of G 0.03
    magnitude = xp_mock.G_ZERO_POINT - 2.5 * np.log10(sky["phot_g_mean_flux"])
    like_vega = sky["teff"] > 8500
    difference = -2.5 * np.log10(at_550 / vega) - magnitude
    unreddened = like_vega & (sky["a_v"] < 0.3)
    assert np.median(difference[unreddened]) == pytest.approx(0, abs=0.1)


# --- the noise ------------------------------------------------------------------------------------


def test_correlations_are_packed_as_the_archive_and_the_likelihood_have_them():
    packed = np.random.default_rng(0).uniform(-1, 1, (3, 10))
    matrix = xp_noise.unpack(packed, 5)
    assert (xp_noise.pack(matrix) == packed).all()
    assert matrix[0, :2, 3].tolist() == packed[0, 3:5].tolist()  # (0, 3), (1, 3), ...
    assert (matrix == correlations.unpack(torch.from_numpy(packed), 5).numpy()).all()


@bands
def test_noise_has_the_covariance_that_is_stated(sky, band):
    white = whitened(sky, band)
    n = white.shape[1]
    assert white.var() == pytest.approx(1, abs=4 * np.sqrt(2 / (N * n)))
    covariance = white.T @ white / N
    unit = np.sqrt((1 + np.eye(n)) / N)  # standard deviations of its elements
    assert np.abs((covariance - np.eye(n)) / unit).max() < 5


@bands
def test_only_the_seeded_coefficients_scatter_beyond_their_errors(sky, band):
    # of stars brighter than G 13.2, whose errors do not hide it
    bright = {k: v[sky["phot_g_mean_flux"] > 1e5] for k, v in sky.items()}
    error = bright[f"{band}_coefficient_errors"]
    residual = (bright[f"{band}_coefficients"] - bright[f"true_{band}"]) / error
    stated = 1 + ((bright[f"scatter_{band}"] / error) ** 2).mean(0)
    variance, uncertainty = residual.var(0), np.sqrt(2 / len(residual))
    seeded = list(xp_mock.SCATTERED[band])
    assert (variance[seeded] > 1 + 3.5 * uncertainty).all()
    assert (np.delete(stated, seeded) == 1).all()
    assert np.abs(variance / stated - 1).max() < 5 * uncertainty
    scatter = sky[f"scatter_{band}"] / sky[f"true_{band}"][:, :1]
    np.testing.assert_allclose(scatter[:, seeded], 4e-4)


@bands
def test_correlations_are_positive_definite_and_every_star_has_its_own(sky, band):
    assert np.linalg.eigvalsh(correlation(sky, band)).min() > 0.01
    packed = sky[f"{band}_coefficient_correlations"].astype(float)
    from_star_to_star, common = packed.std(0).mean(), packed.mean(0).std()
    assert 0.03 < common < 0.15
    assert 0.5 < from_star_to_star / common < 3


def test_errors_are_those_of_real_stars_of_that_magnitude(sky):
    magnitude = xp_mock.G_ZERO_POINT - 2.5 * np.log10(sky["phot_g_mean_flux"])
    assert magnitude.min() > 11.5 and magnitude.max() < 17.5
    ratio = sky["bp_coefficient_errors"][:, 0] / np.abs(sky["true_bp"][:, 0])
    for g, expected in ((13.1, 4.5e-4), (15.3, 1.4e-3)):
        near = np.abs(magnitude - g) < 0.3
        assert np.median(ratio[near]) == pytest.approx(expected, rel=0.2)
    falls = sky["bp_coefficient_errors"][:, 54] / sky["bp_coefficient_errors"][:, 0]
    assert 0.01 < np.median(falls) < 0.1


def test_a_seed_gives_the_same_stars_again():
    first, again = (xp_mock.simulate(5, np.random.default_rng(3)) for _ in range(2))
    assert all((first[name] == again[name]).all() for name in first)


# --- the stars ------------------------------------------------------------------------------------


def test_extinction_is_one_at_v_and_that_of_cardelli_at_b():
    at_b, at_v, red = stellar_spectra.extinction_law(np.array([440.0, 549.5, 1000.0]))
    assert at_v == pytest.approx(1, abs=1e-3)
    assert at_b - at_v == pytest.approx(1 / 3.1, abs=0.02)  # E(B - V) = A_V / R_V
    assert red == pytest.approx(0.574 - 0.527 / 3.1)
    star = of_kind(WAVELENGTH, (5750.0, 4.4, 0.0, 0.0, 0.0), (5750.0, 4.4, 0.0, 0.0, 1.0))
    dimmed = -2.5 * np.log10(np.interp(549.5, WAVELENGTH, star[1] / star[0]))
    assert dimmed == pytest.approx(1, abs=2e-3)


def test_spectra_are_positive_and_finite_for_every_star_that_may_be_drawn():
    edges = [stellar_spectra.RANGES[name] for name in ("teff", "logg", "mh", "alpha")]
    stars = of_kind(WAVELENGTH, *product(*edges, (0.0, 4.0)))
    assert np.isfinite(stars).all() and (stars > 0).all()
    drawn = stellar_spectra.draw(2000, np.random.default_rng(0))
    for name, (low, high) in stellar_spectra.RANGES.items():
        assert low - 1e-9 <= drawn[name].min() and drawn[name].max() <= high + 1e-9
    assert drawn["a_v"].min() >= 0 and drawn["a_v"].max() <= 4


def test_hot_stars_are_blue_and_have_balmer_lines_and_cool_ones_titanium_oxide():
    hot, cool = of_kind(WAVELENGTH, (9000.0, 4.0, 0.0, 0.0, 0.0), (3600.0, 4.8, 0.0, 0.0, 0.0))

    def depth(star: np.ndarray, centre: float, side: float) -> float:
        line, *sides = np.interp([centre, centre - side, centre + side], WAVELENGTH, star)
        return 1 - line / np.mean(sides)

    assert hot[WAVELENGTH == 400] / hot[WAVELENGTH == 700] > 2
    assert cool[WAVELENGTH == 400] / cool[WAVELENGTH == 700] < 0.2
    assert depth(hot, 486.1, 14) > 0.1 > depth(cool, 486.1, 14)
    assert depth(cool, 713, 24) > 0.1 > depth(hot, 713, 24)
