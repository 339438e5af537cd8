"""Photometry as surveys write it, for sed_emulator: units, zero points, limits, what is missing."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.table import Table
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from orrery import command_line
from orrery.checkpoint import build
from orrery.datamodules.sed_emulator import SedEmulatorData
from orrery.datamodules.sed_emulator.defaults import BANDS, PARAMETERS
from orrery.physics.galaxies.photometry import EXTINCTION_LSST
from orrery.physics.sps.synthesis import parameter_names

UGR = {band: f"lsst_baseline_{band}" for band in "ugr"}
PARAMETER_NAMES = parameter_names(nebular=False)
N = 60


def module(table=None, **settings) -> SedEmulatorData:
    data = SedEmulatorData(**{"bands": UGR, "error_floor": 0.0, **settings})
    if table is not None:
        data.table, data.split = Table(table), "all"
    return data


def predicted(table, **settings) -> dict[str, torch.Tensor]:
    return next(module(table, **settings).prediction_batches())


def fluxes(scale: float = 1.0, n: int = N) -> dict[str, np.ndarray]:
    """Fluxes of 1 uJy (23.9 mag) in the median, in units of which 1 uJy is ``scale``."""
    random = np.random.default_rng(1)
    table = {}
    for band in UGR:
        table[f"flux_{band}"] = scale * 10 ** random.normal(0, 0.4, n)
        table[f"flux_err_{band}"] = np.full(n, 0.02 * scale)
    return table


def quietly(table, **settings) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return predicted(table, flux_zero_point=23.9, **settings)


def changed(table, column: str, row: int, value: float) -> dict[str, np.ndarray]:
    table = {name: values.copy() for name, values in table.items()}
    table[column][row] = value
    return table


@cache
def simulated() -> SedEmulatorData:
    data = SedEmulatorData(bands=UGR, n_train=200, n_test=300, n_exact=40)
    data.setup("fit")
    return data


# --- units and zero points ----------------------------------------------------------------------


def test_a_flux_of_1_in_a_catalogue_of_eazy_is_0_3631_microjansky():
    table = {"flux_u": [1.0], "flux_err_u": [0.1]}
    found = predicted(table, flux_zero_point=25)
    assert float(found["flux"][0, 0]) == pytest.approx(0.3631, rel=2e-4)
    assert float(found["flux_error"][0, 0]) == pytest.approx(0.03631, rel=2e-4)
    found = predicted(table, flux_zero_point=23.9)
    assert float(found["flux"][0, 0]) == 1.0


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("mJy", 1e3), ("nJy", 1e-3), ("uJy", 1.0), ("mgy", 3.631e9), ("maggies", 3.631e9),
     ("nanomaggies", 3.631)],
)  # fmt: skip
def test_units_of_the_setting_and_of_the_file_are_the_same(unit, expected):
    table = fluxes(1 / expected)
    truth = torch.from_numpy(np.stack([fluxes()[f"flux_{band}"] for band in UGR], 1)).float()
    stated = predicted(table, units={"flux": unit})
    assert torch.allclose(stated["flux"], truth, rtol=1e-4)
    assert torch.allclose(stated["flux_error"], torch.tensor(0.02), rtol=1e-4)
    of_file = Table(table)
    for name in of_file.colnames:
        of_file[name].unit = unit  # as a file would spell it
    assert torch.allclose(predicted(of_file)["flux"], truth, rtol=1e-4)


def test_an_error_without_a_unit_has_that_of_its_flux():
    table = Table(fluxes(1e-3))
    for band in UGR:
        table[f"flux_{band}"].unit = "mJy"
    assert torch.allclose(predicted(table)["flux_error"], torch.tensor(0.02))
    table["flux_err_u"] = table["flux_err_u"] * 1e3
    table["flux_err_u"].unit = "uJy"
    assert torch.allclose(predicted(table)["flux_error"], torch.tensor(0.02))


@pytest.mark.parametrize(
    ("scale", "what"), [(1e-3, "mJy"), (2.75e-10, "maggies"), (1e12, "none of its own")]
)
def test_fluxes_that_cannot_be_microjansky_are_asked_about(scale, what):
    with pytest.raises(ValueError, match=r"'flux_u' has no unit .*data\.units\.flux=mJy \(or mgy"):
        predicted(fluxes(scale))
    assert "flux" in predicted(fluxes(scale), flux_zero_point=23.9), "unless it is stated"


def test_a_unit_that_is_assumed_is_said_and_a_stated_one_is_not():
    with pytest.warns(UserWarning, match=r"flux_u and 2 more have no unit: taken as uJy.*=25"):
        predicted(fluxes())
    quietly(fluxes())


def test_what_is_printed_of_named_columns_is_no_unit_that_they_do_not_have(capsys):
    predicted({"F1": [3.0], "E1": [0.1]}, columns={"flux_u": "F1", "flux_err_u": "E1"},
              flux_zero_point=25)  # fmt: skip
    assert "uJy" not in capsys.readouterr().out


def test_a_zero_point_and_a_unit_contradict():
    table = Table(fluxes())
    table["flux_g"].unit = u.uJy
    with pytest.raises(ValueError, match=r"'flux_g' has the unit uJy, and data\.flux_zero_point"):
        predicted(table, flux_zero_point=25)
    with pytest.raises(ValueError, match=r"data\.flux_zero_point"):
        predicted(fluxes(), flux_zero_point=25, units={"flux": "uJy"})


def test_magnitudes_and_fluxes_are_the_same_galaxies():
    table = fluxes()
    magnitudes = {}
    for band in UGR:
        magnitudes[f"mag_{band}"] = 23.9 - 2.5 * np.log10(table[f"flux_{band}"])
        error = table[f"flux_err_{band}"] / table[f"flux_{band}"]
        magnitudes[f"mag_err_{band}"] = error * 2.5 / np.log(10)
    ours, theirs = quietly(table), quietly(magnitudes)
    for name in ("flux", "flux_error"):
        assert torch.allclose(ours[name], theirs[name], rtol=1e-5)
    both = quietly(table | {name: values + 1 for name, values in magnitudes.items()})
    assert torch.equal(both["flux"], ours["flux"]), "of both, fluxes, which may be negative"


def test_columns_of_the_other_kind_are_asked_about():
    random = np.random.default_rng(0)
    magnitudes, errors = random.uniform(22, 26, N), np.full(N, 0.05)
    with pytest.raises(ValueError, match=r"'flux_u' .* as AB magnitudes do"):
        predicted({"flux_u": magnitudes, "flux_err_u": errors})
    with pytest.raises(ValueError, match=r"'mag_u' is taken as AB magnitudes.*data\.columns\.flux"):
        predicted({"mag_u": 10 ** random.normal(0, 0.3, N), "mag_err_u": errors})


# --- what is missing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flux", "error"),
    [(np.nan, 0.02), (np.nan, np.nan), (-99.0, -99.0), (-99.0, 0.02), (0.0, 0.0), (-99.9, -99.9)],
)
def test_what_is_missing_is_not_observed(flux, error):
    table = changed(changed(fluxes(), "flux_g", 3, flux), "flux_err_g", 3, error)
    found = quietly(table)
    assert found["observed"][3].tolist() == [True, False, True]
    assert found["observed"].sum() == 3 * N - 1
    assert found["flux"][3, 1] == 0 and found["flux_error"][3, 1] == 1
    assert not found["is_limit"].any()
    assert all(torch.isfinite(found[name]).all() for name in ("flux", "flux_error"))


def test_minus_99_is_missing_in_the_unit_of_the_catalogue():
    table = changed(changed(fluxes(1e-3), "flux_g", 3, -99.0), "flux_err_g", 3, -99.0)
    assert not predicted(table, units={"flux": "mJy"})["observed"][3, 1]
    assert not predicted(table, flux_zero_point=16.4)["observed"][3, 1]


def test_a_value_whose_error_is_unknown_is_not_observed_with_a_warning():
    for unknown in (np.nan, -99.0):
        table = changed(fluxes(100.0), "flux_err_g", 3, unknown)
        with pytest.warns(UserWarning, match="'flux_err_g' is blank where 'flux_g' has a value"):
            assert not predicted(table, flux_zero_point=23.9)["observed"][3, 1]


def test_sentinels_of_the_user_are_missing():
    table = changed(changed(fluxes(), "flux_g", 3, -9e9), "flux_err_g", 3, -9e9)
    assert not quietly(table, sentinels=[-9e9])["observed"][3, 1]


def test_negative_fluxes_are_measurements():
    found = quietly(changed(fluxes(), "flux_g", 3, -0.03))
    assert float(found["flux"][3, 1]) == pytest.approx(-0.03)
    assert found["observed"].all() and not found["is_limit"].any()


@pytest.mark.parametrize("bad", [0.0, np.inf])
def test_an_impossible_error_is_refused_with_its_row(bad):
    with pytest.raises(ValueError, match=r"'flux_err_g': .*\(row 7, counted from 0\)"):
        predicted(changed(fluxes(), "flux_err_g", 7, bad))


def test_missing_errors_are_asked_for_with_near_matches():
    table = fluxes()
    table["fluxerr_g"] = table.pop("flux_err_g")
    with pytest.raises(ValueError, match=r"near matches: fluxerr_g; .*data\.columns\.flux_err_g="):
        predicted(table)
    for band in "ur":
        del table[f"flux_err_{band}"]
    with pytest.raises(ValueError, match=r"column\(s\) not found"):
        predicted(table)


def test_bands_that_a_catalogue_lacks_are_one_warning():
    table = {name: values for name, values in fluxes().items() if name.endswith("_u")}
    with pytest.warns(UserWarning, match=r"lacks the bands g, r .*data\.columns\.flux_g=none"):
        found = predicted(table, flux_zero_point=23.9)
    assert found["observed"].sum(0).tolist() == [N, 0, 0]
    quietly(table, columns={"flux_g": "none", "flux_r": "none"})
    table["flux_gg"], table["flux_err_gg"] = table["flux_u"], table["flux_err_u"]
    with pytest.warns(UserWarning, match="'flux_gg' to 'flux_g'"):
        predicted(table, flux_zero_point=23.9)


def test_no_band_at_all_lists_columns_and_patterns():
    with pytest.raises(
        ValueError, match=r"u, g, r .*'flux_\{band\}'.*RA, DEC.*data\.columns\.flux"
    ):
        predicted({"RA": [1.0], "DEC": [2.0]})


def test_two_bands_cannot_be_one_column():
    bands = {"z": "lsst_baseline_z", "Z": "vista_vircam_Z"}
    with pytest.raises(ValueError, match="bands z and Z would both be column 'flux_z'"):
        predicted({"flux_z": [1.0], "flux_err_z": [0.1]}, bands=bands)


# --- limits -------------------------------------------------------------------------------------


def test_a_negative_error_is_refused_or_a_limit_of_so_many_sigma():
    table = changed(changed(fluxes(), "flux_g", 3, 0.06), "flux_err_g", 3, -0.06)
    with pytest.raises(ValueError, match=r"'flux_err_g': -0.06 is negative, which CIGALE.*row 3"):
        predicted(table)
    found = quietly(table, limit_sigma=3, error_floor=0.5)
    assert found["is_limit"].nonzero().tolist() == [[3, 1]]
    assert found["observed"].all()
    assert float(found["flux"][3, 1]) == pytest.approx(0.06)
    assert float(found["flux_error"][3, 1]) == pytest.approx(0.02), "without the floor"


def test_a_flux_that_equals_its_error_is_a_limit_only_if_limits_are_read():
    table = fluxes()
    table["flux_g"][: N // 2] = table["flux_err_g"][: N // 2]
    with pytest.warns(UserWarning, match=r"'flux_g' equals its error in 50% .*data\.limit_sigma=3"):
        found = predicted(table, flux_zero_point=23.9)
    assert not found["is_limit"].any() and float(found["flux_error"][0, 1]) == pytest.approx(0.02)
    found = quietly(table, limit_sigma=2)
    assert int(found["is_limit"].sum()) == N // 2
    assert float(found["flux_error"][0, 1]) == pytest.approx(0.01)


def test_a_negative_error_of_another_amount_is_sigma_as_in_cigale():
    table = changed(changed(fluxes(), "flux_g", 3, 0.06), "flux_err_g", 3, -0.01)
    found = quietly(table, limit_sigma=3)
    assert float(found["flux"][3, 1]) == pytest.approx(0.06)
    assert float(found["flux_error"][3, 1]) == pytest.approx(0.01)
    found = quietly(changed(table, "flux_g", 3, 0.0), limit_sigma=4)
    assert float(found["flux"][3, 1]) == pytest.approx(0.01), "of a flux that is none, the error's"
    assert float(found["flux_error"][3, 1]) == pytest.approx(0.0025)


def test_magnitudes_that_are_not_detected_are_limits_if_limits_are_read():
    table = {"mag_u": [99.0, 24.0, 25.4], "mag_err_u": [25.4, 0.1, -1.0]}
    columns = {"mag_g": "none", "mag_r": "none"}
    with pytest.raises(ValueError, match=r"'mag_err_u': -1.0 is negative.*row 2"):
        predicted(table, columns=columns)
    found = quietly(table, columns=columns, limit_sigma=5)
    limit = 10 ** (-0.4 * (25.4 - 23.9))
    assert found["is_limit"][:, 0].tolist() == [True, False, True]
    assert found["flux"][[0, 2], 0].tolist() == pytest.approx([limit, limit])
    assert found["flux_error"][[0, 2], 0].tolist() == pytest.approx([limit / 5, limit / 5])
    plain = quietly({"mag_u": [99.0], "mag_err_u": [25.4]}, columns=columns)
    assert plain["flux"][0, 0] == 0 and not plain["is_limit"].any()
    assert float(plain["flux_error"][0, 0]) == pytest.approx(limit)


def test_a_catalogue_in_the_format_of_cosmos(tmp_path):
    """mJy without a unit, dots in names, NaN, limits as negative errors, a known redshift."""
    path = tmp_path / "cosmos.txt"
    path.write_text(
        "# id redshift cfht.megacam.u cfht.megacam.u_err subaru.g subaru.g_err\n"
        "7.0 2.75 0.00020 8e-06 0.00090 1e-05\n"
        "8.0 2.50 nan nan 0.00024 -0.00024\n"
        "9.0 nan 0.00030 8e-06 0.00027 2e-05\n"
    )
    settings = {
        "path": str(path), "split": "all", "bands": {"u": UGR["u"], "subaru.g": UGR["g"]},
        "units": {"flux": "mJy"}, "limit_sigma": 3, "keep": ["id"], "error_floor": 0.0,
        "columns": {"flux": "{band}", "flux_err": "{band}_err", "zred": "redshift",
                    "flux_u": "cfht.megacam.u", "flux_err_u": "cfht.megacam.u_err"},
    }  # fmt: skip
    found = next(SedEmulatorData(**settings).prediction_batches())
    expected = [[0.20, 0.90], [0.0, 0.24], [0.30, 0.27]]
    np.testing.assert_allclose(found["flux"], expected, rtol=1e-5)
    assert found["observed"].tolist() == [[True, True], [False, True], [True, True]]
    assert found["is_limit"].tolist() == [[False, False], [False, True], [False, False]]
    assert float(found["flux_error"][1, 1]) == pytest.approx(0.08, rel=1e-5)
    np.testing.assert_allclose(found["zred"], [2.75, 2.5, np.nan], rtol=1e-6)
    assert found.carried.columns["id"].tolist() == [7, 8, 9]


# --- corrections --------------------------------------------------------------------------------


def test_galactic_extinction_is_taken_away_from_flux_and_error():
    table = fluxes() | {"reddening": np.full(N, 0.1)}
    plain, found = quietly(table), quietly(table, columns={"ebv": "reddening"})
    expected = [10 ** (0.04 * EXTINCTION_LSST[band]) for band in UGR]
    for name in ("flux", "flux_error"):
        np.testing.assert_allclose((found[name] / plain[name]).mean(0), expected, rtol=4e-3)
    stated = quietly(table, columns={"ebv": "reddening"}, extinction={"u": 5.0, "g": 0.0, "r": 1.0})
    assert float((stated["flux"] / plain["flux"])[0, 0]) == pytest.approx(10**0.2, rel=1e-5)
    with pytest.raises(ValueError, match="'reddening': nan is not a valid E"):
        predicted(changed(table, "reddening", 3, np.nan), columns={"ebv": "reddening"})


def test_the_floor_of_errors_is_relative_and_may_be_by_band(capsys):
    plain = quietly(fluxes())
    assert "error_floor" not in capsys.readouterr().out
    found = quietly(fluxes(), error_floor=0.05)
    assert "errors are taken with 0.05 of the flux in quadrature" in capsys.readouterr().out
    torch.testing.assert_close(
        found["flux_error"], torch.hypot(plain["flux_error"], 0.05 * plain["flux"])
    )
    found = quietly(fluxes(), error_floor={"g": 0.05})
    assert torch.equal(found["flux_error"][:, 0], plain["flux_error"][:, 0])
    assert (found["flux_error"][:, 1] > plain["flux_error"][:, 1]).all()


def test_errors_are_multiplied_before_their_floor_is_added():
    plain = quietly(fluxes())
    found = quietly(fluxes(), error_scale={"g": 2.5}, error_floor={"g": 0.05})
    scaled = torch.hypot(2.5 * plain["flux_error"][:, 1], 0.05 * plain["flux"][:, 1])
    torch.testing.assert_close(found["flux_error"][:, 1], scaled)
    assert torch.equal(found["flux_error"][:, 0], plain["flux_error"][:, 0])


def test_zero_points_are_added_to_magnitudes():
    found = quietly(fluxes(), zero_points={"g": -0.1})
    ratio = (found["flux"] / quietly(fluxes())["flux"]).mean(0)
    np.testing.assert_allclose(ratio, [1, 10**0.04, 1], rtol=1e-5)


def test_known_redshifts_may_have_errors_and_be_blank():
    z, error = np.array([1.0, np.nan, -99.0]), np.array([0.1, 0.1, np.nan])
    table = {name: values[:3] for name, values in fluxes().items()} | {"Z": z, "DZ": error}
    found = quietly(table, columns={"zred": "Z", "zred_error": "DZ"})
    assert found["zred"].isnan().tolist() == [False, True, True]
    assert found["zred_error"].tolist() == pytest.approx([0.1, 0.1, 0.0])
    assert quietly(table)["zred"].isnan().all(), "a redshift is known only where it is named"
    with pytest.raises(ValueError, match=r"zred_error is named, and data\.columns\.zred is not"):
        predicted(table, columns={"zred_error": "DZ"})


def test_true_parameters_are_compared_where_they_are_there():
    table = fluxes() | {"Z": np.linspace(0.5, 2, N), "true_logmass": np.full(N, -99.0)}
    found = quietly(table, columns={"true_zred": "Z"})["true_parameters"]
    at = PARAMETER_NAMES.index("zred")
    np.testing.assert_allclose(found[:, at], table["Z"], rtol=1e-6)
    assert found[:, :at].isnan().all()
    assert "true_parameters" not in quietly(fluxes())


# --- settings -----------------------------------------------------------------------------------


def test_an_unknown_filter_has_near_matches_before_the_fit():
    with pytest.raises(ValueError, match=r"'lsst_u' .*lsst_baseline_u"):
        module(bands={"u": "lsst_u"}).setup("fit")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"columns": {"flux_q": "F"}}, r"columns\.flux_q: there is no band 'q'; the bands are u"),
        ({"units": {"flux_q": "mJy"}}, r"units\.flux_q: there is no band 'q'"),
        ({"columns": {"true_mass": "M"}}, r"no parameter 'mass'; the parameters are logmass"),
        ({"error_floor": {"q": 0.1}}, r"error_floor\.q: there is no band"),
        ({"error_scale": {"u": 0.0}}, "expected factors above 0"),
        ({"error_floor": -0.1}, "expected relative errors, 0 or more"),
        ({"limit_sigma": 0.0}, "data.limit_sigma=0.0"),
        ({"depth": {"u": 27.0}}, "data.depth has no value for g, r"),
        ({"extinction": {"u": 27.0}}, "data.extinction has no value for g, r"),
        ({"training_set": "all"}, "data.training_set=all; expected one of prior"),
        ({"parameters": {"mass": ["uniform", 1, 2]}}, "has no mass; it has logmass"),
        ({"parameters": {"zred": ["uniform", 2, 1]}}, "expected low < high"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        module(**settings)


def test_the_configuration_is_what_the_code_takes_by_default():
    plain = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/data/sed_emulator.yaml"))
    assert plain["parameters"] == PARAMETERS
    data = SedEmulatorData(n_train=10)
    assert data.bands == BANDS and len(BANDS) == 20
    assert plain["depth"] == data.depth[0] and plain["error_floor"] == data.error_floor[0]
    assert plain["error_scale"] == data.error_scale[0]


def test_gas_adds_its_parameters():
    assert SedEmulatorData(nebular=True).priors.names == parameter_names(nebular=True)
    assert {"gas_logz", "gas_logu"} & set(SedEmulatorData().priors.names) == set()


# --- synthetic galaxies -------------------------------------------------------------------------


def test_training_rows_are_the_generators():
    data = simulated()
    batch = data.training_batch()
    assert batch["parameters"].shape == (180, 12) and batch["magnitudes"].shape == (180, 3)
    assert {v.dtype for k, v in batch.items() if k != "row"} == {torch.float32}
    again = data.synthesis.magnitudes(batch["parameters"])
    torch.testing.assert_close(again, batch["magnitudes"], rtol=0, atol=1e-3)
    assert not data.priors.outside(batch["parameters"]).any()


def test_mock_galaxies_have_the_noise_that_their_errors_say():
    data = simulated()
    batch = next(data.prediction_batches())
    assert batch["zred"].isnan().all() and batch["observed"].all()
    exact = data.synthesis.magnitudes(batch["true_parameters"])
    flux = 10 ** (-0.4 * (exact - 23.9))
    residual = (batch["flux"] - flux) / batch["flux_error"]
    assert float(residual.std()) == pytest.approx(1, abs=0.06)
    assert abs(float(residual.mean())) < 0.1
    sky = 10 ** (-0.4 * (27.0 - 23.9)) / 5
    faint = flux < 0.1 * sky
    assert faint.any()
    assert batch["flux_error"][faint].median().item() == pytest.approx(sky, rel=0.01)


def test_the_sets_are_independent_and_repeat_with_the_seed():
    data = simulated()
    parameters, magnitudes = data.exact_magnitudes(50, 0)
    assert parameters.shape == (50, 12) and magnitudes.shape == (50, 3)
    torch.testing.assert_close(magnitudes, data.synthesis.magnitudes(parameters))
    assert torch.equal(parameters, data.exact_magnitudes(50)[0])
    assert len(data.exact_magnitudes()[0]) == 40
    fit, test = data.simulate("fit"), data.simulate("test")
    drawn = [fit["logmass"], test["true_logmass"], parameters[:, 0].numpy()]
    assert len(np.unique(np.concatenate(drawn).round(6))) > 0.99 * sum(map(len, drawn))
    np.testing.assert_array_equal(test["flux_u"], data.simulate("test")["flux_u"])


def test_what_was_drawn_is_said():
    said = simulated().provenance()
    assert "demonstrator" in said["population"] and said["n_train"] == 200
    arguments = simulated().model_arguments()
    assert arguments["bands"] == UGR and arguments["population"] == "analytic"
    assert simulated().is_simulation and not simulated().truth()


def test_a_table_of_ones_own_synthesis_is_trained_on_and_made_into_mocks(tmp_path):
    path = str(tmp_path / "seds.fits")
    table = Table(simulated().simulate("fit"))
    table.rename_column("mag_u", "MU")
    table.write(path)
    data = SedEmulatorData(path=path, bands=UGR, columns={"mag_u": "MU"}, error_floor=0.0)
    data.setup("fit")
    batch = data.training_batch()
    assert batch["parameters"].shape == (160, 12)
    torch.testing.assert_close(
        data.synthesis.magnitudes(batch["parameters"]), batch["magnitudes"], rtol=0, atol=1e-3
    )
    assert data.model_arguments()["population"] is None
    assert data.exact_magnitudes(10, 0) is None
    with pytest.warns(UserWarning, match=r"synthetic galaxies, and noise by data\.depth"):
        mocks = next(data.prediction_batches())
    assert len(mocks["row"]) == 20 and torch.isfinite(mocks["true_parameters"]).all()
    flux = 10 ** (-0.4 * (data.synthesis.magnitudes(mocks["true_parameters"]) - 23.9))
    residual = (mocks["flux"] - flux) / mocks["flux_error"]
    assert 0.7 < float(residual.std()) < 1.3
    data.predict_batch_size = 7
    parts = torch.cat([batch["flux"] for batch in data.prediction_batches()])
    assert torch.equal(parts, mocks["flux"]), "noise is that of a row, in whichever chunk it is"


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("logmass", 13.0, r"'logmass': 13.0 .*data\.parameters\.logmass \(row 5.*8 to 12"),
        ("zred", np.nan, r"'zred': nan .*row 5"),
        ("mag_g", np.nan, r"'mag_g': nan is not a valid AB magnitude \(row 5"),
        ("mag_g", -99.0, r"'mag_g': -99.0 is not a valid AB magnitude"),
    ],
)
def test_bad_rows_of_a_table_of_seds_are_refused(column, value, match):
    table = changed(simulated().simulate("fit"), column, 5, value)
    with pytest.raises(ValueError, match=match):
        module(table).setup("fit")


def test_a_table_of_seds_has_all_columns_and_magnitudes():
    table = simulated().simulate("fit")
    lacking = {name: values for name, values in table.items() if name != "dust2"}
    with pytest.raises(ValueError, match=r"no column 'dust2'"):
        module(lacking).setup("fit")
    as_fluxes = {
        name: 10 ** (-0.4 * (values - 23.9)) if name.startswith("mag_") else values
        for name, values in table.items()
    }
    with pytest.raises(ValueError, match="are they fluxes, or absolute magnitudes"):
        module(as_fluxes).setup("fit")


def test_the_data_are_built_from_their_configuration():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(command_line.CONFIGS), version_base="1.3"):
        words = ["model=zephyr", "data=sed_emulator", "run_dir=.", "data.bands={a: sdss_u0}"]
        words += ["data.parameters.zred=[uniform,0.1,6.0]", "data.error_floor={a: 0.05}"]
        plain = OmegaConf.to_container(compose("train", words), resolve=True)
    data = build(plain["data"])
    assert data.bands == {"a": "sdss_u0"}
    assert float(data.priors.high[-1]) == 6.0 and data.error_floor.tolist() == [0.05]


def test_filters_of_a_list_are_labelled_by_their_names(tmp_path):
    path = tmp_path / "narrow.dat"
    path.write_text("5000 0\n5050 1\n5100 1\n5150 0\n")
    data = SedEmulatorData(bands=["hsc_g", str(path)])
    assert data.bands == {"hsc_g": "hsc_g", "narrow": str(path)}
    assert [band.wavelength.size > 1 for band in data.filters] == [True, True]
    with pytest.raises(ValueError, match="two filters of the list would be called the same"):
        SedEmulatorData(bands=["hsc_g", "hsc_g"])
    with pytest.raises(ValueError, match="expected label: filter"):
        SedEmulatorData(bands="hsc_g")
