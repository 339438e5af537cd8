"""Data of feniks: training rows, mock surveys of smooth histories, catalogues for EAZY."""

import importlib.util
import warnings
from functools import cache

import numpy as np
import pytest
import torch
from astropy.table import Table
from conftest import ROOT
from omegaconf import OmegaConf

from orrery import load
from orrery.datamodules.feniks import FeniksData
from orrery.datamodules.feniks.defaults import BANDS, DEPTH, PARAMETERS
from orrery.datamodules.feniks.mocks import KINDS, QUANTITIES, draw_mocks
from orrery.datamodules.sed_emulator import SedEmulatorData
from orrery.models.sed_emulator import SedEmulator
from orrery.physics.galaxies.quiescent import REST_BANDS, colours, quiescent
from orrery.physics.sps.cosmology import age_of_universe
from orrery.physics.sps.filters import load_filter

FEW = {"g": "hsc_g", "z": "hsc_z", "J": "ukirt_wfcam_J", "K": "ukirt_wfcam_K",
       "Kb": "tophat:19350:21850"}  # fmt: skip
EAZY = {"f606w": "eazy:4", "Ksf": "eazy:255", "K": "ukirt_wfcam_K"}


@cache
def simulated() -> FeniksData:
    data = FeniksData(bands=FEW, n_train=300, n_test=800)
    data.setup("fit")
    return data


def predicted(table, **settings) -> dict[str, torch.Tensor]:
    data = FeniksData(**{"bands": EAZY, "error_floor": 0.0, "flux_zero_point": 23.9, **settings})
    data.table, data.split = Table(table), "all"
    return next(data.prediction_batches())


# --- training rows ------------------------------------------------------------------------------


def test_training_rows_are_those_of_the_shipped_network_of_spectra():
    batch = simulated().training_batch()
    assert batch["magnitudes"].shape == (270, len(FEW)) and batch["parameters"].shape == (270, 14)
    model = load("sed_emulator_spectra")
    p = batch["parameters"]
    learned = ~model.priors.outside(p)
    flux = model.photometry(p[learned].numpy(), list(FEW.values()))["flux"]
    expected = 23.9 - 2.5 * np.log10(flux)
    bright = expected < 70  # beyond is next to no light
    assert bright.mean() > 0.9
    np.testing.assert_allclose(batch["magnitudes"][learned][bright], expected[bright], atol=2e-3)


def test_rest_magnitudes_are_those_of_the_rest_spectrum():
    batch = simulated().training_batch()
    assert batch["rest_magnitudes"].shape == (270, 6)
    synthesis, p = simulated().synthesis, batch["parameters"]
    layer = synthesis.network.layer([load_filter(text) for text in REST_BANDS.values()])
    light = synthesis.network.light(p)
    spectrum = synthesis.network.common_spectrum(p, light, layer.rest, layer.emits, True)
    mean = layer(spectrum, torch.full((len(p),), 1e-4))  # at rest, where no IGM is
    relative = -2.5 * (mean / mean[:, 1:2]).log10()
    found = batch["rest_magnitudes"] - batch["rest_magnitudes"][:, 1:2]
    assert torch.allclose(found, relative, atol=2e-3)


def test_a_heavier_galaxy_is_brighter_in_all_magnitudes_by_its_mass():
    synthesis, p = simulated().synthesis, simulated().training_batch()["parameters"][:20].clone()
    p[:, 0] = 10.0
    light = synthesis.all_magnitudes(p)
    p[:, 0] = 12.5  # beyond the box of the network, which learns no mass
    for before, after in zip(light, synthesis.all_magnitudes(p), strict=True):
        assert torch.allclose(before - after, torch.full_like(before, 6.25), atol=1e-3)


def test_the_checkpoint_that_galaxies_are_made_by_is_on_record():
    provenance = simulated().provenance()
    assert provenance["population"] == "sed_emulator_spectra"
    assert len(provenance["population_sha256"]) == 64


def test_a_model_without_spectra_and_priors_that_are_not_learned_are_refused():
    with pytest.raises(ValueError, match="population=zephyr: that model has no spectra"):
        _ = FeniksData(bands=FEW, population="zephyr").synthesis
    with pytest.raises(ValueError, match=r"parameters\.logzsol is -2\.4 to 0\.19, and sed_emul"):
        _ = FeniksData(bands=FEW, parameters={"logzsol": ["uniform", -2.4, 0.19]}).synthesis
    with pytest.raises(ValueError, match=r"population=nowhere\.h5: there is no such file"):
        _ = FeniksData(bands=FEW, population="nowhere.h5").synthesis


def test_a_table_to_train_on_needs_the_magnitudes_at_rest():
    table = Table(dict(simulated().simulate("fit")))
    data = FeniksData(bands=FEW)
    data.table = table
    data.setup("fit")
    assert torch.equal(
        data.training_batch()["rest_magnitudes"], simulated().training_batch()["rest_magnitudes"]
    )
    data = FeniksData(bands=FEW)
    data.table = table.copy()
    del data.table["rest_V"]
    with pytest.raises(ValueError, match="rest_V"):
        data.setup("fit")


def test_default_bands_and_priors_fit_each_other():
    assert set(DEPTH) <= set(BANDS)
    data = FeniksData()
    observed = [band for band, depth in zip(data.bands, data.depth, strict=True) if depth > 0]
    assert sorted(observed) == sorted(DEPTH)
    assert list(data.priors.names) == list(PARAMETERS)
    assert not any(text.startswith("eazy:") for text in BANDS.values()), "they need an extra"


def test_bands_of_the_reference_are_those_of_zfourge_and_of_the_default_depth():
    bands = OmegaConf.load(ROOT / "configs/experiment/feniks_reference.yaml").data.bands
    zfourge = (4, 6, 18, 19, 20, 21, 78, 79, 81, 82, 83, 203, 205, 249, 250, 251, *range(253, 260))
    assert {f"eazy:{number}" for number in zfourge} <= set(bands.values())
    assert set(DEPTH) <= set(bands)
    for labels in (bands, BANDS):  # else a column flux_r would be of two bands
        assert len({label.lower() for label in labels}) == len(labels)


# --- mock surveys -------------------------------------------------------------------------------


def test_mock_galaxies_have_true_values_that_agree_with_their_histories():
    data = simulated()
    mocks = data.mocks()
    assert tuple(mocks.truth) == QUANTITIES
    zred = mocks.parameters[:, -1]
    assert all(bool(values.isfinite().all()) for values in mocks.truth.values())
    assert torch.equal(mocks.truth["t50"], mocks.history.lookback(0.5))
    assert bool((mocks.truth["t50"] > mocks.truth["t90"]).all())
    assert bool((mocks.truth["t50"] < age_of_universe(zred)).all())
    assert torch.equal(mocks.truth["quiescent"].bool(), quiescent(mocks.truth["log_ssfr"], zred))
    assert torch.equal(mocks.truth["u_v"], colours(mocks.rest_magnitudes)["u_v"])
    lost = mocks.parameters[:, 0] - mocks.truth["log_stellar_mass"]
    assert bool(((lost > 0) & (lost < 0.6)).all())
    ratios = [n.startswith("logsfr_ratio") for n in data.priors.names]
    assert bool(mocks.parameters[:, ratios].isnan().all()), "it has none"


def test_kinds_of_mock_galaxies_differ_as_they_should():
    mocks = simulated().mocks(3000, seed=5)
    kind, truth = mocks.truth["kind"], mocks.truth
    share, dust, blue = ({} for _ in range(3))
    for i, name in enumerate(KINDS):
        rows = kind == i
        share[name] = float(rows.float().mean())
        dust[name] = float(mocks.parameters[rows, 8].median())
        blue[name] = float(truth["u_v"][rows].median())
        is_quiescent = float(truth["quiescent"][rows].mean())
        assert is_quiescent > 0.9 if name == "quiescent" else is_quiescent < 0.85
    assert share["quiescent"] == pytest.approx(0.25, abs=0.03)
    assert dust["dusty"] > 1.5 > 3 * dust["quiescent"]
    assert blue["star_forming"] < blue["post_starburst"] < blue["quiescent"]


def test_shares_redshifts_and_interlopers_are_settings():
    settings = {"mock_shares": {"dusty": 1.0}, "mock_z_range": [3.0, 4.0]}
    mocks = FeniksData(bands=FEW, mock_interlopers=0.0, **settings).mocks(200)
    assert bool((mocks.truth["kind"] == list(KINDS).index("dusty")).all())
    zred = mocks.parameters[:, -1]
    assert 3.0 <= float(zred.min()) < 3.1 and 3.9 < float(zred.max()) <= 4.0
    near = simulated().mocks(2000).parameters[:, -1]
    assert float((near < 2.5).float().mean()) == pytest.approx(0.25, abs=0.04)
    assert 0.3 <= float(near.min()) < 0.4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mock_shares": {"passive": 1.0}}, "mock_shares.*expected shares.*quiescent"),
        ({"mock_shares": {"dusty": 0.0}}, "mock_shares"),
        ({"mock_z_range": [3.0, 9.0]}, r"mock_z_range=\[3\.0, 9\.0\]; expected.*0\.2 to 6"),
        ({"mock_z_range": [4.0, 3.0]}, "mock_z_range"),
        ({"mock_interlopers": 1.2}, r"mock_interlopers=1\.2; expected a share"),
        ({"parameters": {"zred": ["uniform", 1.0, 6.0]}}, "mock_interlopers=0"),
        ({"depth": {"Kw": 25.0}}, r"data\.depth\.Kw: there is no band 'Kw'"),
    ],
)
def test_impossible_mocks_are_refused_with_the_setting(settings, message):
    with pytest.raises(ValueError, match=message):
        FeniksData(bands=FEW, n_test=10, **settings).simulate("test")


def test_bands_of_which_no_depth_is_known_are_asked_about():
    with pytest.raises(ValueError, match=r"data\.depth=null is of the bands u, g"):
        FeniksData(bands={"F200W": "jwst_f200w"})
    assert FeniksData(bands={"F200W": "jwst_f200w"}, depth=28.0).depth.tolist() == [28.0]


def test_the_test_split_is_the_mocks_observed_to_their_depth():
    data = FeniksData(bands=FEW, n_test=800, error_floor=0.0, depth={"J": 25.0, "K": 24.5})
    batch, mocks = next(data.prediction_batches()), data.mocks()
    assert batch["observed"].float().mean(0).tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]
    true = 10 ** (-0.4 * (mocks.magnitudes[:, 3] - 23.9))
    error = 10 ** (-0.4 * (24.5 - 23.9)) / 5
    assert torch.allclose(batch["flux_error"][:, 3], torch.tensor(error), rtol=1e-5)
    pull = (batch["flux"][:, 3] - true) / error
    assert abs(float(pull.mean())) < 0.15 and float(pull.std()) == pytest.approx(1, abs=0.1)
    for name in QUANTITIES:
        assert torch.allclose(batch[f"true_{name}"], mocks.truth[name]), name
    truth = batch["true_parameters"]
    assert torch.equal(truth.isnan(), mocks.parameters.isnan())
    assert torch.equal(truth.nan_to_num(), mocks.parameters.nan_to_num())


@pytest.mark.skipif(importlib.util.find_spec("bagpipes") is None, reason="needs bagpipes")
def test_emulated_mocks_are_those_of_the_populations_to_a_few_per_cent():
    emulated = simulated().mocks(600, seed=4)
    exact = FeniksData(bands=FEW, population="bc03_miles").mocks(600, seed=4)
    assert torch.equal(emulated.truth["t50"], exact.truth["t50"])
    assert torch.allclose(
        emulated.truth["log_stellar_mass"], exact.truth["log_stellar_mass"], atol=2e-3
    )
    change = (emulated.rest_magnitudes - exact.rest_magnitudes).abs()
    assert float(change.median()) < 0.015 and float(change[:, 1].quantile(0.95)) < 0.06


def test_what_has_no_surviving_mass_is_neither_quiescent_nor_not():
    data = FeniksData(bands=FEW, population="analytic")
    synthesis = data.synthesis
    unknown = torch.full_like(synthesis.population.surviving, torch.nan)
    synthesis.population = synthesis.population._replace(surviving=unknown)
    truth = data.mocks(20).truth
    assert bool(truth["quiescent"].isnan().all() and truth["t50"].isfinite().all())


def test_spectra_are_not_learned_from_a_network_of_spectra():
    data = simulated()
    arguments = {k: v for k, v in data.model_arguments().items() if k != "rest_wavelengths"}
    model = SedEmulator(**arguments, architecture="spectra", n_components=4)
    with pytest.raises(ValueError, match=r"sed_emulator_spectra have no spectra of populations"):
        model.prepare(data)
    bands = SedEmulator(**arguments, width=8, depth=1)
    bands.prepare(data)
    found, truth = bands.quantities(data.training_batch()["parameters"][:50]), data.synthesis
    expected = truth.derived(data.training_batch()["parameters"][:50])
    assert torch.allclose(found["log_ssfr"], expected["log_ssfr"], atol=1e-4)


def test_the_same_seed_draws_the_same_mocks_and_another_one_others():
    first, again, other = (simulated().mocks(50, seed) for seed in (1, 1, 2))
    assert torch.equal(first.magnitudes, again.magnitudes)
    assert not torch.equal(first.magnitudes, other.magnitudes)


def test_mocks_are_made_by_any_synthesis_of_the_same_parameters():
    data = simulated()
    exact = FeniksData(bands=FEW, population="analytic").synthesis
    mocks = draw_mocks(20, 3, exact, data.priors)
    assert mocks.magnitudes.shape == (20, len(FEW)) and mocks.rest_magnitudes.shape == (20, 6)
    assert torch.equal(mocks.history.sfr, data.mocks(20, 3).history.sfr), "but for their stars"


# --- catalogues ---------------------------------------------------------------------------------


def test_columns_of_eazy_are_bands_by_the_numbers_of_their_filters(capsys):
    table = {"id": [1], "F4": [0.01], "E4": [0.02], "F255": [3.85], "E255": [0.1], "F9": [1.0],
             "E9": [0.1]}  # fmt: skip
    with pytest.warns(UserWarning, match="lacks the bands K "):
        found = predicted(table)
    assert torch.allclose(found["flux"], torch.tensor([[0.01, 3.85, 0.0]]))
    assert torch.allclose(found["flux_error"], torch.tensor([[0.02, 0.1, 1.0]]))
    assert "such as F4 as f606w" in capsys.readouterr().out


def test_a_column_of_the_bands_own_name_comes_before_that_of_eazy():
    table = {"F4": [0.01], "E4": [0.02], "flux_f606w": [5.0], "flux_err_f606w": [0.5]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert predicted(table)["flux"][0].tolist() == [5.0, 0.0, 0.0]
        named = {"flux_f606w": "mine", "flux_err_f606w": "error"}
        table |= {"mine": [7.0], "error": [0.7]}
        assert predicted(table, columns=named)["flux"][0].tolist() == [7.0, 0.0, 0.0]
        nothing = {"flux_f606w": "none"}
        table = {"F4": [0.01], "E4": [0.02], "F255": [3.85], "E255": [0.1]}
        assert not predicted(table, columns=nothing)["observed"][0, 0]
        with pytest.raises(ValueError, match="no photometry"):
            predicted({"F4": [0.01], "F255": [3.85]})  # without errors


def test_sed_emulator_reads_columns_of_eazy_too():
    data = SedEmulatorData(bands=EAZY, flux_zero_point=25.0, error_floor=0.0)
    data.table, data.split = Table({"F255": [1.0], "E255": [0.1]}), "all"
    with pytest.warns(UserWarning, match="lacks the bands f606w, K"):
        assert float(next(data.prediction_batches())["flux"][0, 1]) == pytest.approx(
            0.3631, rel=1e-3
        )


def test_a_file_as_fast_writes_it_is_read(tmp_path):
    path = tmp_path / "photometry.cat"
    path.write_text(
        "#  id     F4   F255      E4   E255  z_spec\n#\n"
        "    1  0.0113    -99  0.0129    -99  3.7145\n"
    )
    data = FeniksData(path=str(path), split="all", bands=EAZY, columns={"zred": "z_spec"},
                      flux_zero_point=23.9)  # fmt: skip
    with pytest.warns(UserWarning, match="lacks the bands K"):
        batch = next(data.prediction_batches())
    assert batch["observed"].tolist() == [[True, False, False]]
    assert float(batch["zred"]) == pytest.approx(3.7145)
    assert "true_t50" not in batch


def test_a_catalogue_may_have_some_true_values_and_not_others():
    table = {"F4": [0.01], "E4": [0.02], "true_t50": [0.8], "true_zred": [3.7]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = predicted(table)
        assert found["true_t50"].tolist() == [pytest.approx(0.8)]
        assert "true_t90" not in found
        assert float(found["true_parameters"][0, -1]) == pytest.approx(3.7)
        named = predicted(table | {"half": [0.5]}, columns={"true_t50": "half"})
        assert named["true_t50"].tolist() == [0.5]
    with pytest.raises(ValueError, match="there is no parameter 't51'"):
        FeniksData(bands=EAZY, columns={"true_t51": "half"})
