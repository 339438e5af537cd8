"""feniks: quantities and probabilities, rows with and without a spectrum, metrics, figure data."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from astropy.table import Table
from conftest import config
from omegaconf import OmegaConf
from small_emulators import train_briefly

from orrery import pretrained
from orrery.checkpoint import new_record, restore, write_checkpoint
from orrery.datamodules.feniks.spectra import FeniksSpectra
from orrery.figures import feniks as figures
from orrery.models.base import PredictedRows
from orrery.models.feniks import CLASSES, Feniks, evaluation, joint, joint_posterior, larger_errors
from orrery.models.feniks.figure_data import figure_data
from orrery.models.feniks.joint import fit_jointly, spectrum_of
from orrery.models.feniks.joint_posterior import posterior_spectrum
from orrery.models.feniks.larger_errors import added_error
from orrery.models.feniks.outputs import BIT, OF_MOCKS, OF_SPECTRA
from orrery.models.feniks.photometric_redshift import LEAST_ERROR_Z
from orrery.models.feniks.redshift import flag
from orrery.models.inference.threads import one_thread
from orrery.models.sed_emulator import SedEmulator
from orrery.models.sed_emulator.posterior import photometry
from orrery.physics.sps.cosmology import age_of_universe
from orrery.physics.sps.star_formation import bin_edges
from orrery.physics.sps.synthesis import RATIOS

BANDS = {
    "g": "hsc_g",
    "i": "hsc_i",
    "z": "hsc_z",
    "J": "ukirt_wfcam_J",
    "H": "ukirt_wfcam_H",
    "K": "ukirt_wfcam_K",
    "irac1": "spitzer_irac_ch1",
}
PARAMETERS = {"zred": ["uniform", 3.2, 3.8]}
SETTINGS: dict[str, Any] = {
    "bands": BANDS,
    "parameters": PARAMETERS,
    "n_train": 3000,
    "n_test": 24,
    "n_calibration": 150,
    "depth": 26.0,
    "mock_interlopers": 0.0,
    "mock_z_range": [3.25, 3.75],
    "signal_to_noise": 30.0,
    "mock_pixels": [19_500.0, 23_800.0, 20.0],
}
ROWS = 6
OF_MODEL = {
    "width": 32,
    "depth": 2,
    "error_rank": 1,
    "templates": 24,
    "inference": "templates",
}


@pytest.fixture(scope="module")
def data() -> FeniksSpectra:
    data = FeniksSpectra(**SETTINGS)
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def model(data) -> Feniks:
    """A small network after a few hundred steps."""
    torch.manual_seed(0)
    model = Feniks(**data.model_arguments(), **OF_MODEL)
    train_briefly(model, data, 300, 100)
    return model.eval()


@pytest.fixture(scope="module")
def batch(data) -> dict[str, torch.Tensor]:
    """Mock galaxies: of the first two the spectrum is good, of the third it has too few pixels."""
    batch = {name: values[:ROWS] for name, values in next(data.prediction_batches()).items()}
    batch["spectrum_good"] = batch["spectrum_good"].clone()
    batch["spectrum_good"][2, joint.FEWEST_PIXELS - 1 :] = False
    batch["spectrum_good"][3:] = False
    return batch


@pytest.fixture(scope="module")
def rows(model, batch) -> dict[str, torch.Tensor]:
    return model.predict_step(batch)


@pytest.fixture(scope="module")
def checkpoint(model, data, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("feniks")
    settings = OmegaConf.to_container(config("feniks", folder, "data=feniks_spectra"), resolve=True)
    settings["data"] |= SETTINGS
    settings["model"] |= data.model_arguments() | OF_MODEL
    settings["data"] |= data.inferred_settings()
    record = new_record(settings, data.provenance(), {}, Feniks)
    write_checkpoint({"state_dict": model.state_dict(), "orrery": record}, folder / "model.ckpt")
    from orrery.checkpoint import read_checkpoint

    return read_checkpoint(folder / "model.ckpt")


def changed(batch, row: int, **values) -> dict[str, torch.Tensor]:
    """A batch of one of its rows, with other values."""
    one = {name: v[row : row + 1].clone() for name, v in batch.items()}
    one["zred_error"] = torch.zeros(1)
    for name, value in values.items():
        one[name] = torch.full_like(one[name], value)
    return one


def alike(one, other, names=None) -> None:
    for name in names or one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True, msg=name)


# --- quantities -------------------------------------------------------------------------------


def test_times_of_formation_are_those_of_a_known_history(model):
    parameters = model.priors.from_normal(torch.zeros(1, len(model.names)))
    parameters[:, -1] = 3.5
    for name in RATIOS:
        parameters[:, model.names.index(name)] = 0.0  # a constant rate
    age = float(age_of_universe(torch.tensor(3.5)))
    found = {name: float(value) for name, value in model.quantities(parameters).items()}
    assert found["t50"] == pytest.approx(0.5 * age, rel=1e-5)
    assert found["t90"] == pytest.approx(0.1 * age, rel=1e-5)
    formed = float(age_of_universe(torch.tensor(found["z_form"])))
    assert formed == pytest.approx(0.5 * age, rel=1e-3)
    assert found["a_v"] == pytest.approx(1.0857 * found["dust2"], rel=1e-4)
    assert found["log_ssfr"] > -9 - math.log10(age), "some of the mass is lost"


def test_a_history_that_has_ended_is_old_and_quiescent(model):
    parameters = model.priors.from_normal(torch.zeros(2, len(model.names)))
    parameters[:, -1] = 3.5
    parameters[0, model.names.index("logsfr_ratio_2")] = -4.0
    parameters[1, model.names.index("logsfr_ratio_2")] = 1.0
    parameters[:, 0] = 11.5
    found = model.quantities(parameters)
    edges = bin_edges(torch.tensor([3.5]))[0]
    assert float(found["t90"][0]) > float(edges[2]), "before the two youngest bins"
    p = model.probabilities({name: values[:, None] for name, values in found.items()})
    assert p["p_quiescent"].tolist() == p["p_candidate"].tolist() == [1.0, 0.0]


def draws_of(**values) -> dict[str, torch.Tensor]:
    """Quantities of a galaxy that is a candidate by four draws, changed by ``values``."""
    candidate = {"log_ssfr": -11.0, "zred": 3.5, "log_stellar_mass": 11.0, "u_v": 1.6, "v_j": 0.8,
                 "us_gs": 2.2, "gs_is": 0.8}  # fmt: skip
    return {
        name: torch.tensor([values.get(name, [value] * 4)]) for name, value in candidate.items()
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {}),
        ({"zred": [2.9, 3.5, 3.5, 3.5]}, {"p_candidate": 0.75}),
        ({"log_stellar_mass": [10.2, 10.2, 11.0, 11.0]}, {"p_candidate": 0.5}),
        ({"log_ssfr": [-9.0, -11.0, -11.0, -11.0]}, {"p_candidate": 0.75, "p_quiescent": 0.75}),
        # 0.2 over the age of the universe, 1.77 Gyr, at z = 3.5: 10^-9.95 a year
        ({"log_ssfr": [-9.93, -9.93, -9.97, -9.97]}, {"p_candidate": 0.5, "p_quiescent": 0.5}),
        ({"v_j": [1.7, 0.8, 0.8, 0.8], "u_v": [2.5, 1.6, 1.6, 1.6]}, {"p_uvj": 0.75}),
        ({"u_v": [1.2, 1.2, 1.2, 1.6]}, {"p_uvj": 0.25}),
        ({"gs_is": [1.0, 1.0, 0.8, 0.8], "us_gs": [1.7, 1.9, 2.2, 2.2]}, {"p_ugi": 0.75}),
    ],
)
def test_probabilities_are_shares_of_draws(model, change, expected):
    one = dict.fromkeys(("p_candidate", "p_quiescent", "p_uvj", "p_ugi"), 1.0)
    found = model.probabilities(draws_of(**change))
    assert {name: float(p) for name, p in found.items()} == one | expected


def test_the_box_and_the_limits_of_candidates_are_settings(model, checkpoint):
    draws = draws_of(u_v=[1.25] * 4, v_j=[0.8] * 4, zred=[3.5, 3.5, 4.5, 4.5])
    assert float(model.probabilities(draws)["p_uvj"]) == 1
    other = restore(checkpoint, {"uvj": "muzzin2013", "z_min": 4.0, "log_mass_min": 11.1})
    assert float(other.probabilities(draws)["p_uvj"]) == 0, "whose U - V begins at 1.3"
    assert float(other.probabilities(draws)["p_candidate"]) == 0
    assert "z > 4" in other.columns["p_candidate"].text and "11.1" in str(other.columns)
    heavy = draws | {"log_stellar_mass": torch.full((1, 4), 11.2)}
    assert float(other.probabilities(heavy)["p_candidate"]) == 0.5


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"uvj": "williams09"}, r"model\.uvj=williams09; expected one of williams2009"),
        ({"uvj": "antwi_danso2023_ugi"}, "expected one of"),
        ({"secure": 0.5}, r"model\.secure=0\.5; expected a probability"),
        ({"templates": 0}, "model.templates is 0; expected 1 or more"),
        ({"inference": "laplace"}, "model.inference=laplace; expected one of ensemble, templates"),
        ({"width": 64}, r"model\.width=64.*cannot be changed.*log_mass_min, secure, templates"),
    ],
)
def test_impossible_settings_of_predictions_are_refused(checkpoint, settings, match):
    with pytest.raises(ValueError, match=match):
        restore(checkpoint, settings)


def test_the_network_of_colours_learns_them(model, data):
    batch = data.validation_batch()
    from orrery.physics.galaxies.quiescent import colours

    with torch.no_grad():
        found = colours(model.rest_network(batch["parameters"]))
    for name, truth in colours(batch["rest_magnitudes"]).items():
        assert float((found[name] - truth).abs().median()) < 0.05, name
        assert float((truth - truth.mean()).abs().median()) > 0.1, "not the mean alone"


# --- rows -------------------------------------------------------------------------------------


def test_all_columns_are_there_of_the_declared_shapes(model, rows):
    assert set(rows) == set(model.columns)
    assert all(len(values) == ROWS for values in rows.values())


def test_a_spectrum_gives_a_redshift_that_photometry_does_not(rows, batch):
    true = batch["true_parameters"][:2, -1]
    assert float((rows["z_peak"][:2] - true).abs().max()) < 0.01
    assert float((rows["zred"][:2] - true).abs().max()) < 0.01
    assert [CLASSES[i] for i in rows["z_class"][:2].tolist()] == ["secure", "secure"]
    width = rows["zred_q84"] - rows["zred_q16"]
    assert float(width[:2].max()) < 0.02 < float(width[3:].min())
    assert rows["n_pixels"][:2].tolist() == [215.0, 215.0]
    assert bool((rows["error_scale"][:2] < 1.3).all())
    assert bool((rows["p_agn"][:2] < 0.5).all() and rows["broad_fwhm"].isnan().all())


def test_rows_without_a_useful_spectrum_are_those_of_photometry_alone(model, batch, rows):
    alone = {k: v for k, v in batch.items() if not k.startswith("spectrum") and k != "true_broad"}
    expected = model.predict_step(alone)
    alike({k: v[2:] for k, v in expected.items() if k not in OF_MOCKS},
          {k: v[2:] for k, v in rows.items()})  # fmt: skip
    assert rows["z_class"][2:].eq(-1).all(), "which is written as a blank"
    blank = [name for name in OF_SPECTRA if name not in ("z_class", "broad_true")]
    assert all(bool(rows[name][2:].isnan().all()) for name in blank)


def test_rows_do_not_depend_on_their_neighbours(model, batch, rows):
    for chosen in ([1], [4, 1, 2]):
        part = model.predict_step({name: values[chosen] for name, values in batch.items()})
        alike(part, {name: values[chosen] for name, values in rows.items()})


def test_chi2_and_flags_are_those_of_the_redshift_by_the_spectrum(model, batch, rows):
    at = {k: v for k, v in changed(batch, 0).items() if not k.startswith("spectrum")}
    at |= {"zred": rows["z_peak"][:1], "zred_error": torch.zeros(1)}
    expected = model.predict_step(at)
    for name in ("chi2", "chi2_rank", "n_constrained"):
        assert float(rows[name][0]) == pytest.approx(float(expected[name][0]), rel=1e-4)
    assert not int(rows["flags"][0]) & BIT["second_mode"]


@pytest.mark.parametrize(("wrong", "error"), [(0.0, 0.0), (0.012, 0.02)])
def test_a_known_redshift_is_a_measurement_beside_the_spectrum(model, batch, rows, wrong, error):
    known = float(rows["z_peak"][0]) + wrong
    found = model.predict_step(changed(batch, 0, zred=known, zred_error=error))
    assert float(found["z_peak"]) == pytest.approx(float(rows["z_peak"][0]), abs=0.006)
    assert float(found["zred"]) == pytest.approx(float(rows["z_peak"][0]), abs=0.006)
    assert int(found["z_class"]) == (-1 if error == 0 else CLASSES.index("secure"))


def test_without_light_in_the_spectrum_a_known_redshift_is_kept(model, batch):
    for known in (3.31, 3.337, 3.365):  # wherever nodes are
        one = changed(batch, 0, zred=known, zred_error=0.0, spectrum_error=1e4)
        found = model.predict_step(one)
        assert float(found["zred"]) == pytest.approx(known, abs=0.5 * LEAST_ERROR_Z)
        width = float(found["zred_q84"] - found["zred_q16"])
        assert width == pytest.approx(2 * LEAST_ERROR_Z, rel=0.15)


def test_a_spectrum_that_says_nothing_leaves_the_redshift_of_photometry(model, batch):
    found = model.predict_step(changed(batch, 0, spectrum_error=1e4))
    assert CLASSES[int(found["z_class"])] == "none" and float(found["p_peak"]) < 0.5
    free = {k: v for k, v in changed(batch, 0).items() if not k.startswith("spectrum")}
    alone = model.predict_step(free)
    assert float(found["zred"]) == pytest.approx(float(alone["zred"]), abs=0.15)


def test_errors_that_are_too_small_are_said(model, batch):
    one = changed(batch, 0)
    noise = torch.randn(one["spectrum_flux"].shape, generator=torch.Generator().manual_seed(1))
    one["spectrum_flux"] = one["spectrum_flux"] + 2 * noise * one["spectrum_error"]
    found = model.predict_step(one)
    assert 1.7 < float(found["error_scale"]) <= 2.0


def test_a_spectrum_that_no_model_fits_is_said_and_never_secure(model, batch, rows):
    assert not int(rows["flags"][0]) & BIT["poor_spectrum"]
    one = changed(batch, 0)
    one["spectrum_flux"][0, 60] += 80 * one["spectrum_error"][0, 60]  # a cosmic ray
    found = model.predict_step(one)
    assert int(found["flags"]) & BIT["poor_spectrum"]
    assert CLASSES[int(found["z_class"])] != "secure"


def test_errors_are_enlarged_until_chi2_is_as_expected():
    model = torch.linspace(1.0, 40.0, 40).repeat(2, 1)
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0))
    rows = {
        "flux_model": model,
        "flux_observed": model * (1 + torch.tensor([[0.1], [0.0]]) * noise),
        "flux_error": 0.01 * model,
        "n_constrained": torch.zeros(2),
    }
    rows["flux_observed"][:, 7] = torch.nan
    found = added_error(rows)
    assert float(found[0]) == pytest.approx(0.1, rel=0.2) and float(found[1]) < 1e-6


def test_a_galaxy_that_no_model_fits_gets_wider_intervals_and_a_flag(model, batch):
    one = changed(batch, 1)
    zigzag = torch.where(torch.arange(one["flux"].shape[1]) % 2 == 0, 1.3, 1 / 1.3)
    one["flux"] = one["flux"].abs() * zigzag
    one["flux_error"] = 0.02 * one["flux"]
    one["spectrum_good"] = torch.zeros_like(one["spectrum_good"])
    rows = model.predict_step(one)
    assert 0.1 < float(rows["added_error"][0]) <= larger_errors.LARGEST
    assert int(rows["flags"][0]) & BIT["poor_fit"] and float(rows["chi2_rank"][0]) > 0.999
    plain = SedEmulator.predict_step(model, one)
    width = [
        float(r["log_stellar_mass_q84"][0] - r["log_stellar_mass_q16"][0]) for r in (rows, plain)
    ]
    assert width[0] > 1.3 * width[1]
    assert float(rows["flux_error"].nansum()) > float(plain["flux_error"].nansum())


def test_a_known_redshift_outside_the_box_is_blank_with_a_spectrum_too(model, batch):
    found = model.predict_step(changed(batch, 0, zred=8.0, zred_error=0.1))
    assert int(found["flags"]) & BIT["outside_box"]
    for name in ("zred", "log_stellar_mass", "p_candidate", "z_peak", "p_peak", "t50"):
        assert bool(found[name].isnan()), name
    assert int(found["z_class"]) == -1


def test_a_spectrum_without_photometry_is_blank_and_said_so(model, batch):
    one = changed(batch, 0)
    one["observed"] = torch.zeros_like(one["observed"])
    found = model.predict_step(one)
    assert int(found["flags"]) & BIT["no_photometry"] and int(found["flags"]) & BIT["few_bands"]
    assert bool(found["p_candidate"].isnan() and found["z_peak"].isnan())


@pytest.mark.parametrize("row", [0, 4])
def test_fewer_than_five_bands_are_said_for_each_row(model, batch, rows, row):
    assert not int(rows["flags"][row]) & BIT["few_bands"]
    one = changed(batch, row)
    for n, is_few in ((5, False), (4, True)):
        one["observed"][:, n:] = False
        flags = int(model.predict_step(one)["flags"])
        assert bool(flags & BIT["few_bands"]) == is_few
    assert "fewer than 5 bands" in model.columns["flags"].bits["few_bands"]


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.99, "secure"), (0.95, "secure"), (0.949, "tentative"), (0.51, "tentative"),
     (0.5, "none"), (0.0, "none")],
)  # fmt: skip
def test_a_redshift_is_secure_from_the_threshold_on(p, expected):
    assert flag(p, 0.95) == expected


def test_the_threshold_of_secure_redshifts_is_a_setting(checkpoint, batch):
    one = changed(batch, 0)
    one["spectrum_error"] = 10 * one["spectrum_error"]
    for secure, expected in ((0.51, "secure"), (0.9999, "tentative")):
        found = restore(checkpoint, {"secure": secure}).predict_step(one)
        assert 0.51 < float(found["p_peak"]) < 0.9999
        assert CLASSES[int(found["z_class"])] == expected


def test_draws_and_templates_are_settings(checkpoint, batch, rows):
    two = {name: values[[0, 4]] for name, values in batch.items()}
    model = restore(checkpoint, {"draws": 7, "templates": 5})
    found = model.predict_step(two)
    assert found["posterior"].shape == (2, 7, len(model.names))
    for i, row in enumerate((0, 4)):
        z = found["posterior"][i, :, -1]
        assert float(z.min()) <= float(found["zred"][i]) <= float(z.max()), row
    assert float(found["posterior"][0, :, -1].std()) < 0.02
    torch.testing.assert_close(found["chi2"][1], rows["chi2"][4])
    assert set(found) == set(model.columns)


def test_intervals_with_a_spectrum_are_widened_by_mocks_with_spectra(model, checkpoint, data):
    """Fits that are right by a hundredth of their width leave it; others widen it."""
    assert data.spectra_calibration_batch() is None
    other = restore(checkpoint)
    true = torch.linspace(-1, 1, 60)
    asked = []

    def predict(batch):
        asked.append(batch["spectrum_flux"].shape)
        rows = {}
        for name in (*other.names, *other.quantity_texts):
            error = 2.5 * true if name == "t50" else 0.01 * true
            middle = torch.zeros_like(true)
            rows |= {name: middle, f"{name}_q16": middle - 1, f"{name}_q84": middle + 1}
            rows[f"{name}_true"] = error
        return rows

    other.predict_step = predict
    settings = {**SETTINGS, "parameters": {"zred": ["uniform", 2.9, 4.6]}}
    some = FeniksSpectra(**settings, n_calibration_spectra=3)
    some.setup("fit")
    other.calibrate_with_spectra(some)
    factors = dict(
        zip((*other.names, *other.quantity_texts), other.widening_with_spectrum, strict=True)
    )
    assert asked == [(3, 537)]
    assert float(factors["t50"]) == pytest.approx(2.5 * 0.68, rel=0.05)
    assert float(factors["a_v"]) == 1
    torch.testing.assert_close(other.widening, model.widening)


def test_walkers_sample_the_redshift_near_its_peak(checkpoint, batch, monkeypatch):
    for name, value in (("WALKERS", 30), ("BETWEEN", 2), ("STEPS", 12)):
        monkeypatch.setattr(joint_posterior, name, value)
    model = restore(checkpoint, {"inference": "ensemble", "templates": 8, "draws": 8})
    with torch.inference_mode():
        one = {name: values[:1].clone() for name, values in batch.items()}
        found = model.predict_step(one)
    z = found["posterior"][0, :, -1]
    assert found["posterior"].isfinite().all() and len(z.unique()) > 1
    assert float((z - found["z_peak"]).abs().max()) < 0.02


def test_predictions_take_one_thread_and_give_the_others_back(model, batch, monkeypatch):
    inside = []
    monkeypatch.setattr(
        joint,
        "spectrum_posterior",
        lambda *_, **__: inside.append(torch.get_num_threads()) or 1 / 0,
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            model.predict_step(changed(batch, 0))
        assert inside == [1] and torch.get_num_threads() == 2
        with one_thread():
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_model_on_another_device_fits_spectra_on_the_cpu(model, batch, rows, monkeypatch):
    monkeypatch.setattr(Feniks, "device", property(lambda self: torch.device("cuda")))
    copied = model.on_cpu()
    assert copied is not model
    assert torch.equal(copied.network.body[0].weight, model.network.body[0].weight)
    alike(model.predict_step(changed(batch, 0)), {k: v[:1] for k, v in rows.items()})


# --- the joint fit ----------------------------------------------------------------------------


def test_a_spectrum_of_a_row_has_its_own_pixels(batch):
    spectrum = spectrum_of(batch, 0)
    assert spectrum.wavelength.dtype == torch.float64 and bool(spectrum.good.all())
    assert spectrum_of(batch, 2) is None, "one pixel too few"
    one = changed(batch, 2)
    one["spectrum_good"][0, joint.FEWEST_PIXELS - 1] = True
    assert int(spectrum_of(one, 0).good.sum()) == joint.FEWEST_PIXELS


def test_fitted_spectra_follow_the_observed_one(model, batch):
    emulator = model.of_catalogue(batch)
    one = emulator.of(photometry(changed(batch, 1)))
    args = emulator, model.spectra(), emulator.library, one, spectrum_of(batch, 1)
    fit = fit_jointly(*args, n_templates=16, n_draws=20, seed=0)
    spectra = posterior_spectrum(fit.spectrum, fit.draws)
    assert spectra.shape == (3, len(fit.spectrum.flux))
    pull = (spectra[1] - fit.spectrum.flux) / fit.spectrum.error
    assert float(pull.square().mean()) < 3
    assert float(fit.photometry.log_p.exp().sum()) == pytest.approx(1)
    again = fit_jointly(*args, n_templates=16, n_draws=20, seed=0)
    assert torch.equal(fit.draws.parameters, again.draws.parameters)


# --- metrics ----------------------------------------------------------------------------------


def test_purity_is_that_of_the_best_galaxies_down_to_the_completeness():
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    wanted = np.array([True, True, False, True, False, True])
    assert evaluation.purity(score, wanted, 1.0) == pytest.approx(4 / 6)
    assert evaluation.purity(score, wanted, 0.75) == pytest.approx(3 / 4)
    assert evaluation.purity(score, wanted, 0.5) == 1
    assert evaluation.purity(np.where(wanted, 1.0, np.nan), wanted, 1.0) == 1, "blanks come last"


def test_candidates_are_massive_quiescent_and_distant():
    rows = {
        "zred_true": np.array([3.5, 2.9, 3.5, 3.5, np.nan]),
        "log_stellar_mass_true": np.array([10.5, 11.0, 10.2, 11.0, 11.0]),
        "log_ssfr_true": np.array([-10.5, -10.5, -10.5, -9.0, -10.5]),
    }
    assert evaluation.is_candidate(rows, 3.0, 10.3).tolist() == [True, False, False, False, False]
    assert evaluation.is_candidate(rows, 2.5, 10.0).tolist() == [True, True, True, False, False]
    del rows["log_ssfr_true"]
    assert len(evaluation.is_candidate(rows, 3.0, 10.3)) == 0, "the truth is not known"


def constructed(n: int = 100) -> dict[str, np.ndarray]:
    """Galaxies of which the first quarter are candidates; all of them are found but one."""
    is_wanted = np.arange(n) < n // 4
    rows = {
        "zred_true": np.full(n, 3.5),
        "log_stellar_mass_true": np.full(n, 11.0),
        "log_ssfr_true": np.where(is_wanted, -11.0, -8.0),
        "t50_true": np.full(n, 0.5),
        "a_v_true": np.full(n, 0.3),
        "p_candidate": np.where(is_wanted, 0.9, 0.1),
        "p_quiescent": np.where(is_wanted, 0.9, np.where(np.arange(n) == n - 1, 1.0, 0.1)),
        "p_uvj": np.where(np.arange(n) < n // 2, 0.9, 0.1),
        "p_ugi": np.zeros(n),
        "zred": np.full(n, 3.5),
        "log_stellar_mass": np.full(n, 11.1),
        "t50": np.full(n, 0.5 * 10**0.1),
        "a_v": np.full(n, 0.3),
    }
    for name, width in (("t50", 0.2), ("log_stellar_mass", 0.05), ("a_v", 0.1), ("zred", 0.1)):
        rows |= {f"{name}_q16": rows[name] - width, f"{name}_q84": rows[name] + width}
    return rows


def test_metrics_of_candidates_are_those_of_constructed_numbers():
    rows = constructed()
    rows["p_candidate"][0] = np.nan  # a row that is blank
    rows["t50"][0] = rows["t50_q16"][0] = rows["t50_q84"][0] = np.nan
    found = evaluation.candidate_metrics(rows, 3.0, 10.3)
    assert found["n_candidates"] == 25 and found["candidate_purity_90"] == 1
    assert found["quiescent_purity_90"] == pytest.approx(23 / 24), "one is likelier, and is not"
    assert found["candidate_brier"] == pytest.approx(0.01)
    assert found["t50_rms_dex"] == pytest.approx(0.1)
    assert found["candidates_coverage_68_t50"] == 1
    assert found["candidates_coverage_68_log_stellar_mass"] == 0
    assert found["candidates_offset_log_stellar_mass"] == pytest.approx(2)
    assert found["candidates_offset_a_v"] == 0
    assert evaluation.candidate_metrics(rows, 4.0, 10.3) == {}, "there are none"


def test_boxes_are_scored_beside_it():
    found = evaluation.box_selections(constructed(), 3.0, 10.3)
    assert found["UVJ box"]["completeness"] == 1 and found["UVJ box"]["purity"] == 0.5
    assert found["UVJ box"]["quiescent_completeness"] == 1
    assert found["UVJ box"]["quiescent_purity"] == 0.5
    assert found["(ugi)_s box"]["completeness"] == 0


def spectroscopic(n: int = 60) -> dict[str, np.ndarray]:
    """Redshifts by spectra of all but the last ten; one of them is wrong, and not secure."""
    true = np.linspace(3.0, 4.0, n)
    rows = {
        "zred_true": true,
        "z_peak": true + 0.004,
        "p_peak": np.linspace(1, 0.9, n),
        "z_class": np.full(n, CLASSES.index("secure")),
        "z_pit": (np.arange(n) + 0.5) / (n - 10),
        "broad_true": (np.arange(n) % 2).astype(float),
        "ln_bayes_broad": np.where(np.arange(n) % 2 == 1, 10.0, -1.0),
    }
    rows["z_peak"][49] += 0.5
    rows["z_class"][49] = CLASSES.index("tentative")
    for name in ("z_peak", "p_peak", "z_pit"):
        rows[name][50:] = np.nan
    rows["z_class"][50:] = -1
    return rows


def test_metrics_of_redshifts_are_of_galaxies_with_spectra_and_known_truth():
    rows = spectroscopic()
    found = evaluation.redshift_metrics(rows)
    assert found["n_spectra"] == 50 and found["z_within_001"] == pytest.approx(49 / 50)
    assert found["secure"] == pytest.approx(49 / 50) and found["secure_right"] == 1
    assert found["best_secure"] == pytest.approx(49 / 50)
    assert found["pit_ks_p"] > 0.99 and found["broad_line_recall"] == 1
    rows["zred_true"][:25] = np.nan
    known = evaluation.redshift_metrics(rows)
    assert known["z_within_001"] == pytest.approx(24 / 25), "of those with a known redshift"
    rows["z_class"][:] = CLASSES.index("none")
    assert "secure_right" not in evaluation.redshift_metrics(rows)
    del rows["zred_true"], rows["broad_true"]
    assert evaluation.redshift_metrics(rows) == {"n_spectra": 50}


# --- evaluation, figures, Python --------------------------------------------------------------


def predicted(rows: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> PredictedRows:
    arrays = PredictedRows({name: values.numpy() for name, values in rows.items()})
    arrays.examples = batch
    return arrays


def test_an_evaluation_has_metrics_timings_and_figures_of_what_is_known(model, data, rows, batch):
    arrays = predicted(rows, batch)
    found = model.evaluate(arrays, data)
    assert found.metrics["n_spectra"] == 2 and found.metrics["z_within_001"] == 1
    assert "spectra_fitted_per_second" in found.timings
    assert {"colours", "redshifts", "fits", "histories"} <= set(found.figures)
    assert all(np.isfinite(value) for value in found.metrics.values())
    drawn = figures.draw(arrays, found.metrics, found.figures)
    assert {"colours", "redshifts", "fits", "histories"} <= set(drawn)


def test_a_catalogue_without_truth_is_not_scored_or_read_again(model, batch, rows, data):
    class OfUser:
        is_simulation = False

        def prediction_batches(self):
            raise AssertionError("its rows are read once")

    known = {name: values for name, values in rows.items() if not name.endswith("_true")}
    found = evaluation.evaluate(model, predicted(known, batch), OfUser())
    assert not found.timings and found.metrics["n_spectra"] == 2
    assert set(found.figures) == {"colours", "fits", "histories"}


def test_figures_of_mocks_hold_the_candidates_alone(model):
    rows = constructed()
    for name in ("u_v", "v_j", "us_gs", "gs_is"):
        rows |= {f"{name}{end}": np.arange(100.0) for end in ("", "_q16", "_q84")}
    rows |= {"p_quiescent": np.linspace(1, 0, 100), "z_peak": np.full(100, np.nan)}
    arrays = figure_data(model, rows)
    assert set(arrays) == {"colours", "candidates", "selection", "formation"}
    assert arrays["candidates"]["wanted"].sum() == len(arrays["formation"]["t50"]) == 25
    assert arrays["colours"]["u_v"][:25].max() < 25, "the likeliest come first"
    assert arrays["colours"]["uvj_box"].tolist() == [0.98, 0.38, 1.23, 1.67]
    assert "Antwi-Danso" in str(arrays["colours"]["uvj_name"])


def test_a_table_with_arrays_of_spectra_is_fitted_from_python(checkpoint, data, rows, tmp_path):
    write_checkpoint(checkpoint, tmp_path / "model.ckpt")
    predictor = pretrained.load(tmp_path / "model.ckpt")
    table = Table(data.simulate("test"))[:3]
    table["spectrum_good"][1:] = 0
    table["name"] = ["a", "b", "c"]
    found = predictor.predict(table, keep=["name"])
    assert list(found["name"]) == ["a", "b", "c"]
    assert list(found["z_class"]) == ["secure", "", ""]
    assert float(found["z_peak"][0]) == pytest.approx(float(rows["z_peak"][0]), abs=1e-4)
    assert float(found["chi2"][2]) == pytest.approx(float(rows["chi2"][2]), rel=1e-3)
    del table["spectrum_flux"]
    with pytest.raises(ValueError, match="spectrum_flux"):
        predictor.predict(table)
