"""Networks in place of synthesis: derivatives, errors, and fits against closed forms."""

import copy
import math

import numpy as np
import pytest
import torch
from astropy.table import Table
from conftest import config
from matplotlib.image import imread
from omegaconf import OmegaConf
from small_emulators import train_briefly

from orrery import pretrained
from orrery.checkpoint import new_record, write_checkpoint
from orrery.datamodules.sed_emulator import SedEmulatorData
from orrery.figures import sed_emulator as figures
from orrery.figures import style
from orrery.models.base import PredictedRows
from orrery.models.inference.ensemble import worst_rhat
from orrery.models.sed_emulator import SedEmulator, covariance
from orrery.models.sed_emulator.covariance import ErrorNetwork, Errors, woodbury
from orrery.models.sed_emulator.draws import ensemble_draws, laplace_draws
from orrery.models.sed_emulator.fitting import maximise
from orrery.models.sed_emulator.networks import POGSON, DirectNetwork, HistoryNetwork
from orrery.models.sed_emulator.outputs import BIT, DERIVED_TEXT, QUANTILES
from orrery.models.sed_emulator.posterior import (
    Photometry,
    log_posterior,
    photometry,
    to_parameters,
)
from orrery.physics.galaxies.photometry import AB_ZERO_POINT
from orrery.physics.sps.priors import Prior, Priors
from orrery.physics.sps.star_formation import FIRST_EDGES
from orrery.physics.sps.synthesis import BIRTH_CLOUD_AGE, RATIOS, parameter_names

BANDS = {
    **{band: f"lsst_baseline_{band}" for band in "ugrizy"},
    "H": "vista_vircam_H",
    "irac1": "spitzer_irac_ch1",
}
ROWS = 40


@pytest.fixture(scope="module")
def data() -> SedEmulatorData:
    data = SedEmulatorData(bands=BANDS, n_train=4000, n_test=150, n_exact=1000)
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def model(data) -> SedEmulator:
    """A small network after a few hundred steps: to some hundredths of a magnitude."""
    torch.manual_seed(0)
    model = SedEmulator(**data.model_arguments(), width=48, depth=2)
    train_briefly(model, data, 400, 300)
    return model.eval()


@pytest.fixture(scope="module")
def batch(data) -> dict[str, torch.Tensor]:
    """Mock galaxies: the redshift of every other one is known, of some with an error."""
    batch = {name: values[:ROWS] for name, values in next(data.prediction_batches()).items()}
    known = torch.arange(ROWS) % 2 == 0
    batch["zred"] = torch.where(known, batch["true_parameters"][:, -1], torch.nan)
    batch["zred_error"] = torch.where(torch.arange(ROWS) % 4 == 0, 0.01, 0.0)
    return batch


@pytest.fixture(scope="module")
def rows(model, batch) -> dict[str, torch.Tensor]:
    return model.predict_step(batch)


@pytest.fixture(scope="module")
def predictor(model, data, tmp_path_factory) -> SedEmulator:
    """The model as users load it, with the data's settings."""
    file = tmp_path_factory.mktemp("sed") / "model.ckpt"
    settings = OmegaConf.to_container(config("sed_emulator", file.parent), resolve=True)
    settings["data"] |= {"bands": BANDS, "n_test": 150}
    settings["model"] |= data.model_arguments() | {"width": 48, "depth": 2, "error_rank": 3}
    settings["data"] |= data.inferred_settings()
    record = new_record(settings, data.provenance(), {}, SedEmulator)
    write_checkpoint({"state_dict": model.state_dict(), "orrery": record}, file)
    return pretrained.load(file)


def network_of(kind: str, nebular: bool) -> tuple[torch.nn.Module, torch.Tensor]:
    """A network of random weights in float64, and parameters within its box."""
    torch.manual_seed(1)
    data = SedEmulatorData(bands=BANDS, nebular=nebular)
    priors, names = data.priors, parameter_names(nebular)
    wavelengths = [3700.0, 4800.0, 6200.0, 7500.0, 8700.0, 9700.0, 16400.0, 35600.0]
    network = (
        HistoryNetwork(names, wavelengths, 16, 2)
        if kind == "history"
        else DirectNetwork(names, len(BANDS), 16, 2)
    )
    parameters = priors.draw(6, torch.Generator().manual_seed(2))
    network.prepare(parameters, 25 + torch.randn(6, len(BANDS)), priors.low, priors.high)
    with torch.no_grad():
        for weights in network.parameters():
            weights += 0.1 * torch.randn_like(weights)
    return network.double(), parameters.double()


# --- networks -----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("nebular", [False, True])
@pytest.mark.parametrize("kind", ["history", "direct"])
def test_derivatives_are_those_of_differences_in_every_parameter(kind, nebular):
    network, parameters = network_of(kind, nebular)
    magnitudes, slopes = network.derivatives(parameters)
    torch.testing.assert_close(magnitudes, network(parameters), rtol=0, atol=1e-10)
    for i, name in enumerate(network.names):
        step = torch.zeros_like(parameters)
        step[:, i] = 1e-5 * (network.high - network.low)[i]
        change = (network(parameters + step) - network(parameters - step)) / (
            2 * step[:, i : i + 1]
        )
        tolerance = 1e-3 if name == "zred" else 1e-6  # whose bins are derived by a difference
        error = (slopes[..., i] - change).abs().max()
        assert float(error) < tolerance * float(change.abs().max().clamp_min(1)), name


@torch.no_grad()
@pytest.mark.parametrize("kind", ["history", "direct"])
def test_twice_the_mass_is_three_quarters_of_a_magnitude_brighter(kind):
    network, parameters = network_of(kind, False)
    heavier = parameters.clone()
    heavier[:, network.names.index("logmass")] += math.log10(2)
    expected = torch.full_like(network(parameters), -2.5 * math.log10(2))
    torch.testing.assert_close(network(heavier) - network(parameters), expected)


@torch.no_grad()
def test_a_galaxy_of_one_bin_has_the_light_of_that_bin():
    """Ratios of 1e-12 leave all stars in one bin, of the youngest in the two parts of it."""
    network, parameters = network_of("history", False)
    light, rest = network.log_flux(parameters), network.distance_and_mass(parameters)
    for kept in range(len(RATIOS) + 1):
        alone = parameters.clone()
        for i, name in enumerate(RATIOS):
            alone[:, network.names.index(name)] = 12.0 if i >= kept else -12.0
        share = torch.tensor([BIRTH_CLOUD_AGE / FIRST_EDGES[0]]).double()
        young = torch.logaddexp(light[..., 0] + share.log(), light[..., 1] + (1 - share).log())
        expected = young if kept == 0 else light[..., kept + 1]
        torch.testing.assert_close(network(alone), rest - POGSON * expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_light_of_bins_adds_up():
    """The flux of a galaxy is that of its bins, by their share of the mass."""
    network, parameters = network_of("history", False)
    share = network.log_mass(parameters).exp()
    torch.testing.assert_close(share.sum(1), torch.ones(6).double())
    flux = (share[:, None] * network.log_flux(parameters).exp()).sum(2)
    expected = network.distance_and_mass(parameters) - POGSON * flux.log()
    torch.testing.assert_close(network(parameters), expected)


@torch.no_grad()
def test_dust_makes_fainter_and_bluer_bands_more(model):
    parameters = model.priors.draw(200, torch.Generator().manual_seed(3))
    i = model.names.index("dust2")
    parameters[:, i] = 0.1
    dusty = parameters.clone()
    dusty[:, i] = 1.5
    fainter = model.emulate(dusty) - model.emulate(parameters)
    assert bool((fainter > 0).all())
    mean = fainter.mean(0)
    assert float(mean[0]) > 2 * float(mean[-1])


@torch.no_grad()
def test_the_mean_slope_of_a_prior_is_that_of_differences():
    priors = SedEmulatorData(bands=BANDS).priors
    x = torch.randn(50, len(priors.names), generator=torch.Generator().manual_seed(4)).double()
    found = priors.normal_slope(x, priors.from_normal(x))
    expected = (priors.from_normal(x + 1e-5) - priors.from_normal(x - 1e-5)) / 2e-5
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_the_network_learns_what_the_generator_computes(model, data):
    parameters, magnitudes = data.exact_magnitudes()
    residual = (model.emulate(parameters) - magnitudes).abs().detach()
    assert float(residual.median()) < 0.05


# --- the emulator's error -----------------------------------------------------------------------


def test_a_low_rank_density_is_that_of_a_normal():
    generator = torch.Generator().manual_seed(5)
    variance = torch.rand(4, 6, generator=generator).double() + 0.1
    factor = torch.randn(4, 6, 2, generator=generator).double()
    residual = torch.randn(4, 6, generator=generator).double()
    full = torch.diag_embed(variance) + factor @ factor.mT
    normal = torch.distributions.MultivariateNormal(torch.zeros(6).double(), full)
    torch.testing.assert_close(woodbury(residual, variance, factor), normal.log_prob(residual))


def test_bands_of_infinite_variance_do_not_count():
    generator = torch.Generator().manual_seed(6)
    variance = torch.rand(3, 5, generator=generator) + 0.1
    factor, residual = torch.randn(3, 5, 2, generator=generator), torch.randn(3, 5)
    few = [0, 1, 3]
    expected = woodbury(residual[:, few], variance[:, few], factor[:, few])
    variance[:, [2, 4]] = torch.inf
    torch.testing.assert_close(woodbury(residual, variance, factor), expected)


def test_a_known_covariance_of_errors_is_found_and_whitens_colours(monkeypatch):
    """Scales grow with the first input eightfold; two directions are common to all bands."""
    monkeypatch.setattr(covariance, "STEPS", 500)
    generator = torch.Generator().manual_seed(7)
    inputs = 2 * torch.rand(6000, 3, generator=generator) - 1
    directions = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 0.5, 0.0, -0.5, -1.0]])
    scale = 0.01 * torch.exp(1.04 * inputs[:, :1])
    shared = torch.randn(6000, 2, generator=generator) @ directions
    residual = scale * (shared + 0.4 * torch.randn(6000, 5, generator=generator))
    torch.manual_seed(0)
    network = ErrorNetwork(3, 5, 2)
    network.fit(inputs[:5000], residual[:5000], 0)
    with torch.no_grad():
        errors = network(inputs[5000:])
    found = torch.diag_embed(errors.variance) + errors.factor @ errors.factor.mT
    truth = directions.T @ directions + 0.16 * torch.eye(5)
    truth = scale[5000:, :, None].square() * truth
    difference = (found - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
    assert float(difference.median()) < 0.15
    colour = residual[5000:].diff(dim=1) / errors.colour_variance().sqrt()
    assert float(colour.std()) == pytest.approx(1, abs=0.1)
    whole = residual[5000:] / errors.total().sqrt()
    assert float(whole.std()) == pytest.approx(1, abs=0.1)


def test_the_errors_of_the_emulator_are_those_of_held_out_galaxies(model, data):
    parameters, magnitudes = data.exact_magnitudes()
    residual = model.emulate(parameters) - magnitudes
    inside = (residual.abs() < model.errors(parameters).total().sqrt()).float().mean()
    assert float(inside) == pytest.approx(0.70, abs=0.1)


# --- fits of a linear model, against closed forms -----------------------------------------------


class Toy:
    """Fluxes that are linear in parameters with normal priors: the posterior is a normal."""

    def __init__(self, n_bands: int = 6) -> None:
        self.priors = Priors({
            "logmass": Prior("normal", 0, 20, 10, 0.5),
            "dust2": Prior("normal", -9, 11, 1, 0.3),
            "zred": Prior("normal", -18, 22, 2, 0.4),
        })  # fmt: skip
        generator = torch.Generator().manual_seed(8)
        self.matrix = torch.rand(n_bands, 3, generator=generator) + 0.5 * torch.eye(n_bands, 3)

    def flux(self, parameters: torch.Tensor) -> torch.Tensor:
        return parameters @ self.matrix.T

    def emulate(self, parameters: torch.Tensor) -> torch.Tensor:
        return AB_ZERO_POINT - POGSON * self.flux(parameters).log()

    def derivatives(self, parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slopes = -POGSON * self.matrix / self.flux(parameters)[..., None]
        return self.emulate(parameters), slopes

    def errors(self, parameters: torch.Tensor) -> Errors:
        zero = torch.zeros(len(parameters), len(self.matrix))
        return Errors(zero, zero[..., None])

    def observe(self, n: int, error: float) -> Photometry:
        generator = torch.Generator().manual_seed(9)
        x = torch.randn(n, 3, generator=generator)
        flux = self.flux(self.priors.from_normal(x))
        flux = flux + error * torch.randn(flux.shape, generator=generator)
        yes, unknown = torch.ones_like(flux).bool(), torch.full((n,), torch.nan)
        return Photometry(
            flux, torch.full_like(flux, error), yes, ~yes, unknown, torch.zeros_like(unknown)
        )

    def posterior(self, data: Photometry) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (n, 3) and precision (n, 3, 3) of x."""
        sigma = torch.tensor([prior.sigma for prior in self.priors.each])
        middle = torch.tensor([float(prior.mean) for prior in self.priors.each])
        slopes = (self.matrix * sigma).double()
        weight = torch.where(data.observed, data.error**-2, 0.0).double()
        precision = torch.eye(3).double() + slopes.T @ (weight[..., None] * slopes)
        residual = (data.flux - self.flux(middle[None])).double()
        right = (weight * residual) @ slopes
        return torch.linalg.solve(precision, right), precision


def test_laplace_is_exact_for_a_linear_model():
    toy = Toy()
    data = toy.observe(12, 0.3)
    mode = maximise(toy, data, torch.zeros(12, 3))
    mean, precision = toy.posterior(data)
    torch.testing.assert_close(mode.x.double(), mean, rtol=0, atol=5e-3)
    torch.testing.assert_close(mode.precision.double(), precision, rtol=1e-3, atol=1e-2)
    covariance = torch.linalg.inv(precision)
    determined = 3 - covariance.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(mode.constraint.double(), determined, rtol=1e-3, atol=1e-3)
    # the evidence of a linear model is that of a normal
    sigma = torch.tensor([prior.sigma for prior in toy.priors.each])
    middle = torch.tensor([[float(prior.mean) for prior in toy.priors.each]])
    slopes = (toy.matrix * sigma).double()
    total = slopes @ slopes.T + 0.09 * torch.eye(6).double()
    normal = torch.distributions.MultivariateNormal(toy.flux(middle)[0].double(), total)
    expected = normal.log_prob(data.flux.double())
    torch.testing.assert_close(mode.log_evidence().double(), expected, rtol=0, atol=0.02)
    residual = data.flux - toy.flux(toy.priors.from_normal(mode.x))
    torch.testing.assert_close(mode.chi2, (residual / 0.3).square().sum(1), rtol=1e-4, atol=1e-4)


def test_draws_of_laplace_have_the_moments_of_the_posterior():
    toy = Toy()
    data = toy.observe(5, 0.3)
    mean, precision = toy.posterior(data)
    draws = laplace_draws([maximise(toy, data, torch.zeros(5, 3))], 4000, 0).double()
    sigma = torch.linalg.inv(precision).diagonal(dim1=1, dim2=2).sqrt()
    assert float(((draws.mean(1) - mean) / sigma).abs().max()) < 0.1
    torch.testing.assert_close(draws.std(1), sigma, rtol=0.06, atol=0)


def test_modes_are_drawn_in_proportion_to_their_evidence():
    toy = Toy()
    mode = maximise(toy, toy.observe(3, 0.3), torch.zeros(3, 3))
    other = mode._replace(x=mode.x + 3, log_p=mode.log_p - math.log(3))
    draws = laplace_draws([mode, other], 200, 0)
    near = (draws - mode.x[:, None]).norm(dim=2) < (draws - other.x[:, None]).norm(dim=2)
    np.testing.assert_allclose(near.float().mean(1), 0.75, atol=0.06)


def test_ensembles_agree_with_the_closed_form():
    toy = Toy()
    data = toy.observe(4, 0.3)
    mode = maximise(toy, data, torch.zeros(4, 3))
    found = ensemble_draws(toy, data, [mode], 16, 800, 40, 0)
    mean, precision = toy.posterior(data)
    sigma = torch.linalg.inv(precision).diagonal(dim1=1, dim2=2).sqrt()
    assert found.shape == (4, 2, 16, 40, 3)
    assert float(worst_rhat(found).max()) < 1.05
    x = found.flatten(1, 3)
    assert float(((x.mean(1) - mean) / sigma).abs().max()) < 0.2
    torch.testing.assert_close(x.double().std(1), sigma, rtol=0.15, atol=0)


def test_a_band_that_is_not_observed_is_as_one_that_is_not_there():
    toy = Toy()
    data = toy.observe(6, 0.3)
    part = data.observed.clone()
    part[:, 2] = False
    wild = data.flux.clone()
    wild[:, 2] = 1e4
    mode = maximise(toy, data._replace(observed=part, flux=wild), torch.zeros(6, 3))
    toy.matrix = toy.matrix[[0, 1, 3, 4, 5]]
    few = Photometry(*(v[:, [0, 1, 3, 4, 5]] if v.ndim == 2 else v for v in data))
    expected = maximise(toy, few, torch.zeros(6, 3))
    torch.testing.assert_close(mode.x, expected.x, rtol=0, atol=1e-4)
    torch.testing.assert_close(mode.log_p, expected.log_p, rtol=0, atol=1e-3)


def limited(data: Photometry, band: int, limit: torch.Tensor, error: float) -> Photometry:
    flux, sigma, is_limit = data.flux.clone(), data.error.clone(), data.is_limit.clone()
    flux[:, band], sigma[:, band], is_limit[:, band] = limit, error, True
    return data._replace(flux=flux, error=sigma, is_limit=is_limit)


def test_a_limit_below_the_models_flux_takes_it_down_and_one_far_above_does_nothing():
    toy = Toy()
    data = toy.observe(6, 0.3)
    without = data.observed.clone()
    without[:, 0] = False
    free = maximise(toy, data._replace(observed=without), torch.zeros(6, 3))
    flux = toy.flux(toy.priors.from_normal(free.x))[:, 0]
    above = maximise(toy, limited(data, 0, flux + 3, 0.1), torch.zeros(6, 3))
    torch.testing.assert_close(above.x, free.x, rtol=0, atol=1e-3)
    torch.testing.assert_close(above.precision, free.precision, rtol=0, atol=1e-2)
    below = limited(data, 0, flux - 1, 0.1)
    found = maximise(toy, below, torch.zeros(6, 3))
    pushed = toy.flux(toy.priors.from_normal(found.x))[:, 0]
    assert bool((pushed < flux - 0.1).all())
    # and it is a maximum: the gradient of the exact density is 0 there
    x = found.x.clone().requires_grad_()
    log_posterior(toy, below, x).sum().backward()
    scale = found.precision.diagonal(dim1=1, dim2=2).sqrt()
    assert float((x.grad / scale).abs().max()) < 0.05


def test_a_known_redshift_is_kept_and_one_with_an_error_is_a_measurement():
    toy = Toy()
    data = toy.observe(8, 2.0)  # so noisy that the redshift is free
    mean, precision = toy.posterior(data)
    value = toy.priors.from_normal(mean.float())[:, 2] + 0.5
    exact = maximise(toy, data._replace(zred=value), torch.zeros(8, 3))
    at = to_parameters(toy.priors, exact.x, value)
    assert torch.equal(at[:, 2], value)
    assert torch.allclose(exact.x[:, 2], torch.zeros(8), atol=1e-4)  # the prior alone
    error = torch.full((8,), 0.1)
    found = maximise(toy, data._replace(zred=value, zred_error=error), torch.zeros(8, 3))
    # of a linear model: one more measurement, of x with the error over the prior's scale
    pull = torch.zeros(3, 3).double()
    pull[2, 2] = (0.4 / 0.1) ** 2
    right = (precision @ mean[..., None])[..., 0]
    right[:, 2] += (0.4 / 0.1) ** 2 * ((value - 2) / 0.4)
    expected = torch.linalg.solve(precision + pull, right)
    torch.testing.assert_close(found.x.double(), expected, rtol=0, atol=5e-3)
    torch.testing.assert_close(found.precision.double(), precision + pull, rtol=1e-2, atol=1e-2)


# --- fits of galaxies ---------------------------------------------------------------------------


def test_the_fit_from_the_library_finds_the_maximum_near_the_truth(model, data):
    batch = next(data.prediction_batches())
    galaxies = photometry(batch)._replace(zred=batch["true_parameters"][:, -1])
    (mode,) = model.of_catalogue(batch).modes(galaxies)
    near_truth = maximise(model, galaxies, model.priors.to_normal(batch["true_parameters"]))
    assert float((mode.log_p > near_truth.log_p - 0.5).float().mean()) > 0.85


def test_fits_of_the_bands_that_a_catalogue_has_are_those_of_all_bands(model, data):
    batch = dict(next(data.prediction_batches()))
    has = torch.arange(len(model.bands)) % 3 < 2
    batch["observed"] = batch["observed"] & has
    every, some = (
        model.predict_step({**batch, "in_catalogue": mask.expand(len(batch["flux"]), -1)})
        for mask in (torch.ones_like(has), has)
    )
    for name in ("chi2", "log_stellar_mass", "zred"):  # steps are rounded in another way
        error = (some[name] - every[name]).abs()
        assert float(error.quantile(0.9)) < 0.01, name
    emulator = model.of_catalogue({"in_catalogue": has[None]})
    assert len(emulator.network.mean) == int(has.sum()) < len(model.bands)


def test_posteriors_hold_the_truth_as_often_as_they_say(model, data):
    batch = next(data.prediction_batches())
    rows = model.predict_step({**batch, "zred": batch["true_parameters"][:, -1]})
    inside = [
        (rows[f"{name}_true"] > rows[f"{name}_q16"]) & (rows[f"{name}_true"] < rows[f"{name}_q84"])
        for name in ("log_stellar_mass", "log_sfr", "mass_weighted_age", "dust2", "logzsol")
    ]
    assert 0.55 < float(torch.stack(inside).float().mean()) < 0.8
    error = (rows["log_stellar_mass"] - rows["log_stellar_mass_true"]).abs()
    assert float(error.median()) < 0.15


def test_redshifts_are_as_they_are_known(rows, batch):
    kind = torch.arange(ROWS) % 4
    exact, measured, free = kind == 2, kind == 0, kind % 2 == 1
    for end in QUANTILES:
        assert torch.allclose(rows[f"zred{end}"][exact], batch["zred"][exact])
    width = rows["zred_q84"] - rows["zred_q16"]
    assert bool((width[measured] > 0).all()) and float(width[measured].max()) < 0.03
    assert float(width[free].median()) > float(width[measured].median())
    assert float((rows["zred"][measured] - batch["zred"][measured]).abs().max()) < 0.04


def assert_alike(model, found: dict[str, torch.Tensor], rows: dict[str, torch.Tensor]) -> None:
    """To a hundredth of the posterior's width, and in flags exactly."""
    assert found.keys() == rows.keys()
    assert torch.equal(found["flags"], rows["flags"])
    assert torch.equal(found["n_bands"], rows["n_bands"])
    for name in (*model.names, *DERIVED_TEXT):
        width = (0.5 * (rows[f"{name}_q84"] - rows[f"{name}_q16"])).clamp_min(1e-4)
        for end in QUANTILES:
            error = (found[f"{name}{end}"] - rows[f"{name}{end}"]).abs() / width
            assert float(error.max()) < 0.01, name + end
    error = (found["flux_model"] - rows["flux_model"]).abs() / rows["flux_model_error"]
    assert float(error.max()) < 0.01
    torch.testing.assert_close(found["chi2"], rows["chi2"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sizes", [(13, 27), (1, 39)])
def test_a_row_does_not_depend_on_the_others(model, batch, rows, sizes):
    parts = {name: values.split(list(sizes)) for name, values in batch.items()}
    both = [model.predict_step({name: v[i] for name, v in parts.items()}) for i in range(2)]
    found = {name: torch.cat([part[name] for part in both]) for name in rows}
    assert_alike(model, found, rows)


def test_rows_come_in_the_order_of_the_batch(model, batch, rows):
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(11))
    found = model.predict_step({name: values[order] for name, values in batch.items()})
    assert_alike(model, found, {name: values[order] for name, values in rows.items()})


def test_predictions_repeat_exactly(model, batch, rows):
    again = model.predict_step(batch)
    for name, values in rows.items():
        assert torch.equal(again[name].nan_to_num(-1), values.nan_to_num(-1)), name


def test_a_galaxy_without_photometry_is_blank_and_said_so(model, batch, rows):
    changed = {name: values.clone() for name, values in batch.items()}
    changed["observed"][3] = False
    found = model.predict_step(changed)
    assert int(found["flags"][3]) & BIT["no_photometry"]
    assert bool(found["log_stellar_mass"][3].isnan() and found["flux_model"][3].isnan().all())
    assert int(found["n_bands"][3]) == 0
    others = torch.arange(ROWS) != 3
    assert_alike(model, *({k: v[others] for k, v in each.items()} for each in (found, rows)))


@pytest.mark.parametrize(("value", "error", "flagged"), [
    (7.0, 0.0, True), (0.1, 0.0, True), (7.0, 0.1, True), (3.1, 0.2, False), (2.0, 0.0, False),
])  # fmt: skip
def test_a_known_redshift_outside_the_box_is_blank_and_said_so(model, batch, value, error, flagged):
    one = {name: values[:2].clone() for name, values in batch.items()}
    one["zred"][:], one["zred_error"][:] = value, error
    found = model.predict_step(one)
    assert bool((found["flags"] & BIT["outside_box"] > 0).all()) == flagged
    assert bool(found["log_sfr"].isnan().all()) == flagged
    assert bool(found["flux_observed"].isfinite().any()), "what was observed is kept"


def test_one_noisy_band_leaves_the_prior_and_is_said_so(model, batch, rows):
    changed = {name: values.clone() for name, values in batch.items()}
    changed["observed"][:] = False
    changed["observed"][:, 2] = True
    found = model.predict_step(changed)
    assert bool((found["flags"] & BIT["prior_dominated"] > 0).all())
    assert float(found["n_constrained"].max()) < 3
    known = torch.arange(ROWS) % 2 == 0
    flags = rows["flags"][known & (rows["chi2"] > 0)]
    assert float((flags & BIT["prior_dominated"] > 0).float().mean()) < 0.6


def test_a_galaxy_of_no_kind_is_a_poor_fit(model, batch):
    changed = {name: values.clone() for name, values in batch.items()}
    changed["flux"][:, ::2] *= 10
    found = model.predict_step(changed)
    assert float((found["flags"] & BIT["poor_fit"] > 0).float().mean()) > 0.8


@pytest.mark.parametrize("draws", [20, 150, 300])
def test_draws_are_those_of_the_quantiles(model, batch, rows, draws):
    """As many as asked for, and of all modes."""
    drawing = copy.copy(model)
    drawing.draws = draws
    found = drawing.predict_step(batch)
    assert found["posterior"].shape == (ROWS, draws, len(model.names))
    assert "posterior" in drawing.columns and "parameter" in drawing.constants
    assert not model.priors.outside(found["posterior"]).any()
    middle = found["posterior"].median(1).values
    for name in ("logmass", "zred"):
        i = model.names.index(name)
        width = (rows[f"{name}_q84"] - rows[f"{name}_q16"]).clamp_min(1e-3)
        assert float(((middle[:, i] - rows[name]) / width).abs().median()) < 0.2, name


@pytest.mark.parametrize("which", [slice(0, 1), slice(None)])
def test_fluxes_and_errors_next_to_nothing_give_an_answer_that_is_flagged(model, batch, which):
    tiny = {name: values[:2].clone() for name, values in batch.items()}
    tiny["flux"][0, which], tiny["flux_error"][0, which] = 1e-30, 1e-31
    tiny["zred"][:] = torch.nan
    found = model.predict_step(tiny)
    alone = model.predict_step({name: values[1:] for name, values in tiny.items()})
    assert found["logmass"].isfinite().all()
    assert int(found["flags"][0]) & BIT["poor_fit"]
    torch.testing.assert_close(found["logmass"][1:], alone["logmass"])


def test_an_ensemble_is_close_to_laplace(model, batch, rows):
    """Of a galaxy whose redshift is known, with an error."""
    slow = copy.copy(model)
    slow.inference, slow.walkers, slow.steps = "ensemble", 26, 120
    with torch.inference_mode():  # as predictions are made
        found = slow.predict_step({name: values[:1] for name, values in batch.items()})
    width = rows["logmass_q84"][0] - rows["logmass_q16"][0]
    assert float((found["logmass"][0] - rows["logmass"][0]).abs() / width) < 1.0
    assert 0 < float(found["zred_q84"][0] - found["zred_q16"][0]) < 0.03
    assert float(found["zred"][0]) == pytest.approx(float(batch["zred"][0]), abs=0.04)


def test_metrics_and_figures_are_of_the_emulator_and_of_fits(model, data, tmp_path):
    rows = PredictedRows({
        name: values.numpy()
        for name, values in model.predict_step(next(data.prediction_batches())).items()
    })  # fmt: skip
    evaluation = model.evaluate(rows, data)
    wanted = {"sigma68_mag", "p997_mag", "worst_band_sigma68_mag", "coverage_68"}
    wanted |= {"mean_abs_residual_correlation", "colour_whitened_sigma", "zred_outliers"}
    assert wanted <= evaluation.metrics.keys() and "seds_per_second" in evaluation.timings
    assert all(np.isfinite(value) for value in evaluation.metrics.values())
    parameters, magnitudes = data.exact_magnitudes()
    residual = (model.emulate(parameters) - magnitudes).abs().detach()
    sigma = float(residual.quantile(0.68, 0).median())
    assert evaluation.metrics["sigma68_mag"] == pytest.approx(sigma, rel=0.02)
    drawn = figures.draw(rows, evaluation.metrics, evaluation.figures)
    assert set(drawn) == {"errors", "correlation", "recovered", "seds"}
    for name, make in drawn.items():
        figure = make()
        assert figure.axes[0].get_xlabel() and figure.axes[0].get_ylabel(), name
        titles = " ".join(axis.get_title(loc="right") for axis in figure.axes)
        assert "demonstrator" in titles, name
        assert imread(style.save(figure, tmp_path / f"{name}.png")).std() > 0.05, name


# --- from Python --------------------------------------------------------------------------------


def test_magnitudes_take_arrays_and_names(model, data):
    parameters, _ = data.exact_magnitudes(5)
    found = model.magnitudes(parameters.numpy())
    assert found["magnitude"].shape == found["error"].shape == (5, len(BANDS))
    assert bool((found["error"] > 0).all())
    by_name = dict(zip(model.names, parameters.numpy().T, strict=True))
    np.testing.assert_array_equal(model.magnitudes(by_name)["magnitude"], found["magnitude"])
    by_name["zred"] = 1.0  # one number for all
    assert model.magnitudes(by_name)["magnitude"].shape == (5, len(BANDS))
    one = model.magnitudes(parameters[0].numpy())
    np.testing.assert_allclose(one["magnitude"][0], found["magnitude"][0], rtol=1e-5)


def test_magnitudes_outside_the_box_are_blank(model, data):
    parameters = data.exact_magnitudes(4)[0].numpy()
    parameters[1, model.names.index("zred")] = 5
    parameters[2, model.names.index("dust2")] = np.nan
    found = model.magnitudes(parameters)
    for values in found.values():
        assert np.isnan(values).all(1).tolist() == [False, True, True, False]


def test_wrong_parameters_of_magnitudes_are_named(model):
    with pytest.raises(ValueError, match=r"lack logzsol, .*expected logmass, logzsol"):
        model.magnitudes({"logmass": 10.0})
    with pytest.raises(ValueError, match=r"shape \(1, 3\); expected \(n, 12\): logmass"):
        model.magnitudes([10.0, 0.0, 1.0])


def test_a_table_is_fitted_from_python(predictor, data):
    catalogue = Table(data.simulate("test"))[:7]
    for band in BANDS:
        catalogue.rename_column(f"flux_{band}", f"F_{band}")
        catalogue.rename_column(f"flux_err_{band}", f"E_{band}")
        catalogue[f"F_{band}"].unit = catalogue[f"E_{band}"].unit = "uJy"
    catalogue["ZSPEC"] = catalogue["true_zred"]
    catalogue["id"] = np.arange(7) + 100
    columns = {"flux": "F_{band}", "flux_err": "E_{band}", "zred": "ZSPEC"}
    table = predictor.predict(catalogue, columns=columns, keep=["id"])
    assert table["id"].tolist() == list(range(100, 107))
    np.testing.assert_allclose(table["zred"], catalogue["ZSPEC"], rtol=1e-6)
    assert str(table["log_sfr"].unit) == "dex(solMass / yr)"
    assert table["flux_model"].shape == (7, len(BANDS))
    error = np.abs(table["log_stellar_mass"] - table["log_stellar_mass_true"])
    assert np.median(error) < 0.3


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"architecture": "deep"}, "model.architecture=deep; expected one of history, direct"),
        ({"inference": "mcmc"}, "model.inference=mcmc; expected one of laplace, ensemble"),
    ],
)
def test_an_unknown_choice_is_refused(data, settings, match):
    with pytest.raises(ValueError, match=match):
        SedEmulator(**data.model_arguments(), **settings)


def test_the_shipped_emulator_is_within_two_hundredths_of_bagpipes():
    """A galaxy of 10^10 Msun formed, by Bagpipes 1.3.6 at a resolution of 1000."""
    galaxy = {"logmass": 10.0, "zred": 0.666945, "logzsol": -0.733617, "dust2": 1.179807}
    galaxy |= {"dust_index": -0.617950, "dust1_fraction": 0.0}
    ratios = (-0.885291, 0.038745, -0.312263, -0.080432, -0.017164, 0.714916)
    galaxy |= {f"logsfr_ratio_{i}": ratio for i, ratio in enumerate(ratios, 1)}
    expected = {
        "u": 29.255, "g": 27.585, "i": 24.370, "vista_Y": 23.292, "vista_Ks": 22.145,
        "irac2": 22.504, "f150w": 22.475, "f444w": 22.478,
    }  # fmt: skip
    model = pretrained.load("sed_emulator")
    found = dict(zip(model.bands, model.magnitudes(galaxy)["magnitude"][0], strict=True))
    for band, magnitude in expected.items():
        assert found[band] == pytest.approx(magnitude, abs=0.02), band


def test_a_catalogue_is_fitted_and_scored_without_the_populations(
    model, batch, monkeypatch, tmp_path
):
    """Their package is for training; whoever fits galaxies need not have it."""

    def refuse(name: str) -> None:
        raise AssertionError(f"populations {name} were asked for")

    monkeypatch.setattr("orrery.datamodules.sed_emulator.load_population", refuse)
    arrays = {name: batch[name].numpy() for name in ("flux", "flux_error", "true_parameters")}
    columns = {f"flux_{band}": arrays["flux"][:, i] for i, band in enumerate(BANDS)}
    columns |= {f"flux_err_{band}": arrays["flux_error"][:, i] for i, band in enumerate(BANDS)}
    truth = zip(model.names, arrays["true_parameters"].T, strict=True)
    columns |= {f"true_{name}": column for name, column in truth}
    Table(columns).write(tmp_path / "galaxies.fits")
    catalogue = SedEmulatorData(
        bands=BANDS, population="bc03_miles", path=str(tmp_path / "galaxies.fits"), split="all"
    )
    rows = model.predict_step(next(catalogue.prediction_batches()))
    predicted = PredictedRows({name: values.numpy() for name, values in rows.items()})
    metrics = model.evaluate(predicted, catalogue).metrics
    assert metrics["n"] == ROWS and "sigma68_mag" not in metrics
