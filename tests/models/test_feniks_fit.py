"""The likelihood of spectra, p(z), broad lines and chains of feniks, on galaxies of the network."""

import math

import pytest
import torch

from orrery import load
from orrery.models.feniks.broad_lines import (
    broad_profiles,
    log_evidence,
    probability,
)
from orrery.models.feniks.joint_posterior import joint_target, posterior_spectrum, sample
from orrery.models.feniks.observed_spectrum import Spectrum, rebinned
from orrery.models.feniks.photometric_redshift import photometric_nodes
from orrery.models.feniks.redshift import RedshiftPosterior, flag, secure_threshold
from orrery.models.feniks.rest_spectra import (
    STEP,
    at_own_redshift,
    broadened,
    rest_grid,
    rest_templates,
    shifted,
)
from orrery.models.feniks.spectroscopic_redshift import (
    gaussian_prior,
    joint_draws,
    spectrum_posterior,
)
from orrery.models.feniks.spectrum_fit import DEFAULT, Fit, log_likelihood, prepared
from orrery.models.feniks.templates import joint_library, prior_templates
from orrery.models.sed_emulator import fitting
from orrery.models.sed_emulator.posterior import Photometry, to_flux
from orrery.physics.sps.emission import FWHM, H_BETA, O_III, instrument_sigma, line_shapes

WAVELENGTH = torch.arange(19500, 23800, 16.0).double()
TRUE_Z = 3.55
RESOLUTION = 3600.0
PIXELS = ("wavelength", "flux", "error", "good")
NOT_KNOWN = torch.tensor([torch.nan])


@pytest.fixture(scope="module")
def model():
    return load("sed_emulator_spectra").eval()


@pytest.fixture(scope="module")
def galaxy(model) -> torch.Tensor:
    """Parameters (1, p) of a galaxy that stopped forming stars."""
    values = dict.fromkeys(model.names, 0.0) | {"logmass": 11.0, "dust2": 0.2, "zred": TRUE_Z}
    values |= {"logsfr_ratio_1": -1.0, "logsfr_ratio_2": -1.5, "dust1_fraction": 1.0}
    return torch.tensor([[{**values, "gas_logu": -3.0}[name] for name in model.names]])


def observed(model, galaxy, snr, seed=0, broad=0.0) -> Spectrum:
    """Its spectrum with a broad H beta of an equivalent width, Angstrom."""
    sigma_v = torch.tensor([250.0])
    with torch.no_grad():
        flux = model.network.spectrum(galaxy, WAVELENGTH, sigma_v, RESOLUTION)[0].double()
    log_ratio = torch.tensor([math.log1p(TRUE_Z)])
    line = line_shapes((H_BETA,), WAVELENGTH, log_ratio, 3000 / FWHM, 500.0)[0, :, 0]
    flux = flux + broad * flux.mean() * line
    error = (flux.median() / snr).expand_as(flux)
    generator = torch.Generator().manual_seed(seed)
    flux = flux + error * torch.randn(flux.shape, generator=generator)
    good = torch.ones_like(flux, dtype=torch.bool)
    return Spectrum(WAVELENGTH, flux, error, good, torch.tensor(RESOLUTION))


@pytest.fixture(scope="module")
def library(model):
    z, ends = (3.3, 3.8), (19500.0, 23800.0)
    return prior_templates(model.network, model.priors, z, RESOLUTION, ends, 32)


@pytest.fixture(scope="module")
def spectrum(model, galaxy) -> Spectrum:
    return observed(model, galaxy, 12.0)


# --- the likelihood -----------------------------------------------------------------------------


def correlated(spectrum: Spectrum, rho: float = 0.6) -> Spectrum:
    """With a covariance that falls with the number of pixels between two."""
    place = torch.arange(len(spectrum.flux)).double()
    rho_ij = rho ** (place[:, None] - place).abs()
    error = spectrum.error.double()
    return spectrum._replace(covariance=rho_ij * error[:, None] * error)


@pytest.mark.parametrize("line_share", [0.0, 1.0])
@pytest.mark.parametrize("rho", [None, 0.6])
def test_the_likelihood_is_that_of_a_normal_with_the_covariance_of_the_coefficients(
    spectrum, library, line_share, rho
):
    model = DEFAULT._replace(line_share=line_share, jitter=(1.5,))
    every = {name: getattr(spectrum, name)[::4] for name in PIXELS}
    few = spectrum._replace(**every)
    noise = torch.diag(few.error.double() ** 2)
    if rho:
        few = correlated(few, rho)
        noise = few.covariance
    log_ratio = library.log_ratio[2:3]
    found = log_likelihood(few, library.grids[2], library.templates[2], log_ratio, model)[0]
    data = prepared(few, model.order)
    rows = library.templates[2].T
    shapes = at_own_redshift(
        rows, library.grids[2], data.log_wavelength, log_ratio.expand(len(rows))
    )
    fit = Fit.of(data, shapes, log_ratio.expand(len(rows)), model)
    constant = 0.5 * len(noise) * math.log(2 * math.pi) + 0.5 * torch.logdet(noise)
    for t in range(3):
        columns = fit.columns[t]
        covariance = 1.5**2 * noise + columns / fit.precision @ columns.T
        template = shapes[t] * data.mean / ((shapes[t] / few.error**2).sum() * few.error[0] ** 2)
        template = template * len(noise)
        normal = torch.distributions.MultivariateNormal(template.double(), covariance)
        expected = float(normal.log_prob(few.flux.double()) + constant)
        assert float(found[t]) == pytest.approx(expected, abs=0.02)


def test_one_redshift_a_template_gives_the_same(spectrum, library):
    data = prepared(spectrum, DEFAULT.order)
    rows = library.templates[3].T
    log_ratio = library.log_ratio[3].expand(len(rows))
    shapes = at_own_redshift(rows, library.grids[3], data.log_wavelength, log_ratio)
    expected = Fit.of(data, shapes, log_ratio, DEFAULT).log_likelihood()
    found = log_likelihood(spectrum, library.grids[3], library.templates[3], log_ratio[:1])[0]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.02)


def test_a_covariance_without_correlation_is_errors_and_one_with_it_is_averaged_exactly(
    spectrum, library
):
    args = library.grids[3], library.templates[3], library.log_ratio[3:4]
    diagonal = spectrum._replace(covariance=torch.diag(spectrum.error.double() ** 2))
    expected = log_likelihood(spectrum, *args)
    torch.testing.assert_close(log_likelihood(diagonal, *args), expected, rtol=0, atol=0.02)
    pair = spectrum._replace(wavelength=20000 * torch.exp(4e-4 * torch.arange(len(spectrum.flux))))
    mean = rebinned(correlated(pair, 0.6))  # two pixels in a bin
    variance = pair.error[0].double() ** 2
    between = (0.6 + 2 * 0.6**2 + 0.6**3) / 4  # of four pairs, one, two and three pixels apart
    assert mean.error[0] ** 2 == pytest.approx(float(variance * (1 + 0.6) / 2))
    assert mean.covariance[0, 1] == pytest.approx(float(variance * between))
    plain = rebinned(pair)
    torch.testing.assert_close(mean.flux, plain.flux)
    assert (mean.error > plain.error).all()


def test_the_scale_of_templates_does_not_count_and_that_of_the_spectrum_is_free(spectrum, library):
    args = library.grids[3], library.templates[3], library.log_ratio[3:4]
    found = log_likelihood(spectrum, *args)
    scaled = log_likelihood(spectrum, args[0], 1e3 * args[1], args[2])
    torch.testing.assert_close(scaled, found, rtol=0, atol=0.02)
    brighter = spectrum._replace(flux=10 * spectrum.flux, error=10 * spectrum.error)
    torch.testing.assert_close(log_likelihood(brighter, *args), found, rtol=0, atol=0.02)


def test_a_redshift_that_templates_do_not_cover_is_refused(spectrum, library):
    with pytest.raises(ValueError, match="the templates cover"):
        log_likelihood(spectrum, library.grids[0], library.templates[0], library.log_ratio[-1:])


def test_pixels_are_averaged_with_their_weights_and_bad_ones_do_not_count():
    wavelength = 20000 * torch.exp(2e-4 * torch.arange(400).double())
    flux, error = torch.ones(400), torch.full((400,), 0.1)
    good = torch.ones(400, dtype=torch.bool)
    good[7], flux[7], error[8] = False, torch.nan, 1e3
    flux[8] = 50.0
    found = rebinned(Spectrum(wavelength, flux, error, good, torch.tensor(RESOLUTION)))
    assert 100 <= len(found.flux) <= 101  # 4 pixels of 60 km/s
    torch.testing.assert_close(found.flux, torch.ones_like(found.flux), rtol=0, atol=1e-3)
    assert float(found.error[5]) == pytest.approx(0.05, rel=1e-3)
    assert float(found.resolution) < RESOLUTION


def test_templates_are_broadened_to_the_dispersion_less_the_librarys():
    grid = rest_grid(4500, 5500)
    line = torch.zeros(1, len(grid))
    line[0, len(grid) // 2] = 1
    seen = broadened(line, grid, torch.tensor([300.0]), 1e6)[0].double()
    offset = STEP * (torch.arange(len(grid)) - len(grid) // 2)
    found = float(((seen * offset**2).sum() / seen.sum()).sqrt()) * 299792.458
    own = 2.5 / FWHM / float(grid[len(grid) // 2].exp()) * 299792.458
    assert found == pytest.approx(math.sqrt(300**2 - own**2), rel=0.01)


@torch.no_grad()
def test_templates_are_the_networks_spectra(model, galaxy, library):
    """Spectra of `SpectrumNetwork.spectrum`, which has them at any wavelength."""
    sigma_v, grid = torch.tensor([250.0]), library.grids[3]
    rows = rest_templates(model.network, galaxy, sigma_v, RESOLUTION, grid)
    log_ratio = torch.tensor([math.log1p(TRUE_Z)])
    wavelength = torch.arange(20000, 23000, 10.0).double()
    at = (wavelength.log() - log_ratio - grid[0]) / STEP
    found = rows[at.round().long(), 0]
    expected = model.network.spectrum(galaxy, wavelength, sigma_v, RESOLUTION)[0]
    ratio = found / found.mean() / (expected / expected.mean())
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=0.02)


# --- p(z) ---------------------------------------------------------------------------------------


def peaks(*rows: tuple[float, float, float]) -> RedshiftPosterior:
    """Normals in z: centre, width, weight."""
    z = torch.expm1(torch.linspace(math.log(4), math.log(6), 4001, dtype=torch.float64))
    p = sum(w / s * torch.exp(-0.5 * ((z - m) / s) ** 2) for m, s, w in rows) * (1 + z)
    return RedshiftPosterior(z, (p / p.sum()).log())


def test_probabilities_of_windows_and_ranks_are_those_of_a_normal():
    found = peaks((4.0, 0.01, 1.0))
    assert found.best() == pytest.approx(4.0, abs=3e-4)
    assert found.p_within(4.0, 0.01) == pytest.approx(0.6827, abs=2e-3)
    assert found.quantile(0.16) == pytest.approx(4 - 0.00994, abs=1e-4)
    ranks = found.cumulative(torch.tensor([3.5, 4.0, 4.5]).double())
    torch.testing.assert_close(ranks, torch.tensor([0, 0.5, 1]).double(), rtol=0, atol=2e-3)


def test_the_best_redshift_has_the_most_probability_nearby_not_the_highest_density():
    found = peaks((3.5, 0.0005, 0.2), (4.5, 0.004, 0.8))
    modes = found.modes()
    assert [round(mode.z, 2) for mode in modes] == [4.5, 3.5]
    assert modes[1].weight == pytest.approx(0.2, abs=0.01)
    assert float(found.z[found.log_p.argmax()]) == pytest.approx(3.5, abs=0.001)


def test_a_spectrum_finds_the_redshift_that_photometry_does_not(spectrum, library):
    found = spectrum_posterior(spectrum, library, gaussian_prior(3.6, 0.14))
    assert found.best() == pytest.approx(TRUE_Z, abs=0.01)
    assert found.p_within(TRUE_Z) > 0.9


def test_a_spectrum_without_light_leaves_the_prior(model, galaxy, library):
    noise = observed(model, galaxy, 0.01)
    found = spectrum_posterior(noise, library, gaussian_prior(3.55, 0.05))
    assert found.quantile(0.84) - found.quantile(0.16) == pytest.approx(0.1, rel=0.2)


def test_secure_is_above_the_lowest_probability_at_which_enough_are_right():
    p = torch.tensor([0.99, 0.9, 0.8, 0.7])
    right = torch.tensor([True, True, False, True])
    assert secure_threshold(p, right, 0.9) == pytest.approx(0.9)
    assert secure_threshold(p, right, 0.75) == pytest.approx(0.7)
    assert secure_threshold(p, ~right, 0.9) == math.inf
    assert [flag(x, 0.9) for x in (0.95, 0.6, 0.4)] == ["secure", "tentative", "none"]


# --- broad lines --------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [None, 0.6])
def test_the_evidence_of_broad_lines_is_the_integral_over_their_equivalent_widths(
    model, galaxy, library, rho
):
    every = observed(model, galaxy, 12.0, broad=60.0)
    some = {name: getattr(every, name)[::4] for name in PIXELS}
    few = every._replace(**some)
    few = correlated(few, rho) if rho else few
    only = DEFAULT._replace(jitter=(1.5,))
    data, log_ratio = prepared(few, only.order), library.log_ratio[2:3]
    shapes = shifted(library.templates[2][:, :1], library.grids[2], data.log_wavelength, log_ratio)
    fit = Fit.of(data, shapes.double(), log_ratio, only)
    profiles = broad_profiles(data, float(log_ratio), float(log_ratio))
    gain = (log_evidence(fit, profiles) - fit.log_likelihood()[..., None])[0, 0]
    best = int(gain.argmax())
    sigma = math.hypot(float(profiles.fwhm[best]) / FWHM, instrument_sigma(RESOLUTION))
    at = profiles.log_ratio[best : best + 1]
    lines = line_shapes((H_BETA, O_III), few.wavelength, at, sigma)[0] * data.mean
    noise = few.covariance if rho else torch.diag(few.error.double() ** 2)
    columns = fit.columns[0, 0]
    inverse = torch.linalg.inv(1.5**2 * noise + columns / fit.precision @ columns.T)
    force = lines.T @ inverse @ (few.flux - fit.shapes[0, 0])
    widths = torch.arange(0.25, 160, 0.5).double()  # Angstrom
    width = torch.cartesian_prod(widths, widths)
    log_l = width @ force - 0.5 * ((width @ (lines.T @ inverse @ lines)) * width).sum(1)
    normal = torch.distributions.Normal(0.0, DEFAULT.broad_width)
    log_prior = (math.log(2) + normal.log_prob(width)).sum(1)
    expected = (log_l + log_prior).logsumexp(0) + 2 * math.log(0.5)
    assert float(gain[best]) > 10
    assert float(gain[best]) == pytest.approx(float(expected), abs=0.1)


def test_a_broad_line_is_found_where_it_is_and_none_is_not(model, galaxy, spectrum, library):
    log_bayes = []
    for each in (spectrum, observed(model, galaxy, 12.0, broad=60.0)):
        found = spectrum_posterior(each, library, gaussian_prior(3.6, 0.14))
        assert found.best() == pytest.approx(TRUE_Z, abs=0.01)
        log_bayes.append(found.broad.log_bayes_factor)
    assert log_bayes[0] < 1 and log_bayes[1] > 10
    assert probability(log_bayes[0]) < 0.2 and probability(log_bayes[1]) > 0.99
    assert (probability(-1e4), probability(1e4)) == (0, 1)  # of spectra with little noise
    assert found.broad.shift == pytest.approx(500, abs=400)
    assert found.broad.fwhm == pytest.approx(3000, rel=0.4)
    chi2 = []
    for lines in (None, (found.broad.log_ratio, found.broad.fwhm)):
        fitted = DEFAULT._replace(broad=lines)
        draws = joint_draws(each, library, found, 8, model=fitted)
        middle = posterior_spectrum(each, draws, fitted)[1]
        chi2.append(float(((each.flux - middle) / each.error).square().mean()))
    assert chi2[1] < 1.3 < 1.6 < chi2[0]


def test_broad_lines_beyond_the_spectrum_are_not_known(spectrum, library):
    blue = spectrum._replace(**{name: getattr(spectrum, name)[:120] for name in PIXELS})
    found = spectrum_posterior(blue, library, gaussian_prior(3.7, 0.01))
    assert float(blue.wavelength[-1]) < 4862 * (1 + found.quantile(0.01))
    assert math.isnan(found.broad.log_bayes_factor) and math.isnan(found.broad.shift)


# --- with photometry ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photometry(model, galaxy) -> Photometry:
    with torch.no_grad():
        flux = to_flux(model.emulate(galaxy))
    seen = torch.ones_like(flux, dtype=torch.bool)
    return Photometry(flux, 0.05 * flux + 0.02, seen, ~seen, NOT_KNOWN, torch.zeros(1))


@pytest.fixture(scope="module")
def found(model, photometry):
    start = fitting.library(model, torch.device("cpu"))
    return photometric_nodes(model, photometry, start, (3.2, 3.9), 0.06)


def test_photometry_prefers_the_node_of_the_redshift(found):
    assert len(found.log_ratio) == 3
    assert int(found.log_evidence.argmax()) == 1  # ln(1 + 3.54)
    assert 3.35 < found.posterior().best(0.1) < 3.75


def test_spectrum_and_photometry_together_and_walkers_about_their_mode(
    model, galaxy, photometry, found, spectrum, monkeypatch
):
    monkeypatch.setattr("orrery.models.feniks.templates.STEPS", 6)
    for name, value in (("WALKERS", 30), ("BETWEEN", 2), ("STEPS", 20)):
        monkeypatch.setattr(f"orrery.models.feniks.joint_posterior.{name}", value)
    network, ends = model.network, (19500.0, 23800.0)
    library = joint_library(network, model, photometry, found, RESOLUTION, ends, 30)
    posterior = spectrum_posterior(spectrum, library, found.log_density)
    z = posterior.best()
    assert z == pytest.approx(TRUE_Z, abs=0.01)
    target = joint_target(network, model, photometry, spectrum, z, 0.002)
    node = int((library.log_ratio - math.log1p(z)).abs().argmin())
    sampled = sample(target, library.parameters[node], n=20)
    assert sampled.draws.z.std() < 0.02 and sampled.draws.parameters.shape == (20, 14)
    middle = posterior_spectrum(spectrum, sampled.draws)[1]
    chi2 = ((spectrum.flux - middle) / spectrum.error).square().mean()
    assert float(chi2) < 1.5


def test_the_joint_density_is_that_of_photometry_times_the_likelihood_of_the_spectrum(
    model, galaxy, photometry, spectrum
):
    width = 0.002
    target = joint_target(model.network, model, photometry, spectrum, TRUE_Z, width)
    u = 0.3 * torch.randn(5, len(model.names) + 1, generator=torch.Generator().manual_seed(2))
    log_ratio = math.log1p(TRUE_Z) + width / (1 + TRUE_Z) * u[:, target.z_index].double()
    data = prepared(spectrum, 3)
    likelihood = Fit.of(data, target.shapes(u), log_ratio).log_likelihood()
    prior = model.priors.each[target.z_index].log_prob(torch.expm1(log_ratio)) + log_ratio
    spectral = target(u) - target.of_photometry(u) - 0.5 * u[:, target.z_index].double().square()
    torch.testing.assert_close(spectral, likelihood + prior, rtol=1e-6, atol=1e-3)
    known = photometry._replace(
        zred=torch.tensor([TRUE_Z + 0.01]), zred_error=torch.tensor([0.005])
    )
    pulled = joint_target(model.network, model, known, spectrum, TRUE_Z, width)
    pull = (torch.expm1(log_ratio) - TRUE_Z - 0.01) / 0.005
    torch.testing.assert_close(target(u) - pulled(u), 0.5 * pull.square(), rtol=1e-3, atol=1e-2)
