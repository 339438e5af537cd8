"""Bad catalogues and valid ones in other forms, from Python: what is read, and what is refused."""

import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.table import Table
from conftest import BANDS

from orrery import pretrained
from orrery.checkpoint import build, restore
from orrery.datamodules.zephyr import ZephyrData
from orrery.evaluation import flagged
from orrery.models.zephyr import evaluation
from orrery.models.zephyr.photometry import BIT


@pytest.fixture(scope="session")
def model(runs):
    return pretrained.load(runs("zephyr") / "best.ckpt")


def test_magnitudes_and_fluxes_give_the_same_answer(model, galaxies):
    fluxes = Table()
    for band in BANDS:
        flux = 10 ** (-0.4 * (galaxies[f"mag_{band}"] - 23.9)) * u.uJy
        fluxes[f"flux_{band}"] = flux.to(u.nJy)
        fluxes[f"flux_err_{band}"] = flux.to(u.Jy) * galaxies[f"mag_err_{band}"] * np.log(10) / 2.5
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "this catalogue is unlike|.*have the flag")
        ours, theirs = model.predict(galaxies), model.predict(fluxes)
    np.testing.assert_allclose(ours["z_median"], theirs["z_median"], rtol=1e-4)
    bare = {name: fluxes[name].value for name in fluxes.colnames}
    with pytest.warns(UserWarning, match="flux_u and 11 more have no unit: taken as uJy"):
        model.predict(bare)


def test_other_column_names_are_mapped(model, galaxies):
    renamed = galaxies.copy()
    for band in BANDS[1:]:
        renamed.rename_columns([f"mag_{band}", f"mag_err_{band}"], [f"{band}MAG", f"{band}ERR"])
    renamed.rename_columns(["mag_u", "mag_err_u", "redshift"], ["CFHT_U", "CFHT_DU", "ZSPEC"])
    columns = {"mag": "{band}MAG", "mag_err": "{band}ERR", "mag_u": "CFHT_U"}
    columns |= {"mag_err_u": "CFHT_DU", "redshift": "ZSPEC"}
    theirs = model.predict(renamed, columns=columns, keep=["id"])
    ours = model.predict(galaxies)
    np.testing.assert_array_equal(ours["z_median"], theirs["z_median"])
    np.testing.assert_array_equal(theirs["id"], galaxies["id"])
    assert "crps" in theirs.colnames, "the truth is located under its own name"


def test_a_misnamed_band_is_an_error_and_an_absent_one_a_warning(model, galaxies):
    misnamed = galaxies.copy()
    misnamed.rename_columns(["mag_u", "mag_err_u"], ["mag_U_", "mag_err_U_"])
    with pytest.raises(ValueError, match=r"is it 'mag_U_'\? Then set data\.columns\.mag_u=mag_U_"):
        model.predict(misnamed)
    galaxies.remove_columns(["mag_u", "mag_err_u"])
    with pytest.warns(UserWarning, match="no band u"):
        without = model.predict(galaxies)
    assert np.all(without["flags"] & 1)
    assert np.all(np.isfinite(without["z_median"]))


def test_one_of_two_columns_is_an_error_with_near_matches(model, galaxies):
    galaxies.rename_column("mag_err_g", "magerr_g")
    with pytest.raises(ValueError, match="magerr_g"):
        model.predict(galaxies)


def test_a_column_that_serves_another_band_is_not_proposed(model, galaxies):
    galaxies.remove_column("mag_err_g")
    with pytest.raises(ValueError, match=r"data\.columns\.mag_err_g=<column>") as caught:
        model.predict(galaxies)
    assert "near matches" not in str(caught.value)


@pytest.mark.parametrize("setting", ["keep", "group_by"])
def test_a_pass_through_column_that_is_not_there_is_named_with_its_setting(
    model, galaxies, setting
):
    wanted = ["nope"] if setting == "keep" else "nope"
    with pytest.raises(ValueError, match=f"no column 'nope'; correct data.{setting}"):
        model.predict(galaxies, **{setting: wanted})


def test_what_is_no_table_is_said_to_be(model, galaxies):
    with pytest.raises(TypeError, match=r"a dict of arrays, got str 'std\.fits'.*Table\.read"):
        model.predict("std.fits")
    for one in (galaxies[3], {"mag_u": 25.0, "mag_err_u": 0.1}):
        with pytest.raises(ValueError, match=r"got single numbers.*table\[i : i \+ 1\]"):
            model.predict(one)


def test_an_error_says_how_to_mend_it_from_python(model, galaxies):
    galaxies.rename_column("mag_err_g", "magerr_g")
    with pytest.raises(ValueError, match=r"(?s)data\.columns\.mag_err_g=magerr_g.*columns=\{'a'"):
        model.predict(galaxies)


def test_objects_unlike_the_training_set_raise_a_warning(model, galaxies):
    data = build(model.record["config"]["data"])
    assert model.predict(data.simulate("test")).meta["remarks"] == []
    galaxies["mag_g"] -= 8
    with pytest.warns(UserWarning, match="the flag unusual: unlike 99.9% of the training objects"):
        rows = model.predict(galaxies)
    rows = {name: np.asarray(rows[name]) for name in rows.colnames}
    assert flagged.shares(model.columns, rows)["unusual"] == 1


def test_a_catalogue_in_the_tail_of_the_training_set_is_noticed(model):
    """No object beyond all training objects, but all in their tail: as of another survey."""
    data = build(model.record["config"]["data"])
    rows = data.simulate("test")
    for band in BANDS:
        rows[f"flux_err_{band}"] = rows[f"flux_err_{band}"] / 2.5  # deeper
    with pytest.warns(UserWarning, match="unlike the training set"):
        predicted = model.predict(rows)
    assert np.mean(predicted["flags"] & BIT["unusual"] > 0) < 0.5
    assert any("unlike the training set" in remark for remark in predicted.meta["remarks"])


def test_objects_fainter_than_the_labels_are_flagged(model):
    data = build(model.record["config"]["data"])
    rows = data.simulate("test")
    assert np.mean(model.predict(rows)["flags"] & BIT["faint"] > 0) < 0.05
    for band in BANDS:
        rows[f"flux_{band}"] = rows[f"flux_{band}"] / 100
    with pytest.warns(UserWarning, match="flag faint: fainter than 99%"):
        assert np.mean(model.predict(rows)["flags"] & BIT["faint"] > 0) > 0.9


def test_what_training_decided_cannot_be_changed(model, galaxies):
    for settings in ({"bands": list("grizyu")}, {"bands": list("griz")}, {"z_max": 9.0}):
        with pytest.raises(ValueError, match=f"data.{next(iter(settings))}=.*cannot be changed"):
            model.predict(galaxies, **settings)
    checkpoint = {"orrery": model.record, "state_dict": model.state_dict()}
    with pytest.raises(ValueError, match=r"model\.folds=4: the weights were trained with"):
        restore(checkpoint, {"folds": 4})
    assert restore(checkpoint, {"n_samples": 3}).n_samples == 3


@pytest.mark.parametrize("setting", ["zero_points", "limits", "extinction", "columns"])
def test_a_setting_of_an_unknown_band_is_refused(model, galaxies, setting):
    values = {"mag_U": "mag_u"} if setting == "columns" else {"U": 0.1}
    with pytest.raises(ValueError, match=rf"data\.{setting}\..*there is no band 'U'"):
        model.predict(galaxies, **{setting: values})


def test_a_column_of_another_band_is_not_proposed(model, galaxies):
    galaxies.rename_columns(["mag_u", "mag_err_u"], ["mag_j", "mag_err_j"])
    with pytest.warns(UserWarning, match="no band u .*data.columns.mag_u=none"):
        without = model.predict(galaxies)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "this catalogue is unlike|.*have the flag")
        said = model.predict(galaxies, columns={"mag_u": "none"})
    np.testing.assert_array_equal(without["z_median"], said["z_median"])


def test_nanomaggies_and_inverse_variances(model, galaxies):
    fluxes = {}
    for band in BANDS:
        flux = 10 ** (-0.4 * (galaxies[f"mag_{band}"] - 22.5))
        error = flux * galaxies[f"mag_err_{band}"] * np.log(10) / 2.5
        fluxes[f"flux_{band}"] = flux * u.Unit("nmgy")
        fluxes[f"flux_ivar_{band}"] = error**-2.0 / u.Unit("nmgy") ** 2
    fluxes["flux_ivar_u"][3] = 0
    ours, theirs = model.predict(galaxies), model.predict(Table(fluxes))
    kept = np.arange(60) != 3
    np.testing.assert_allclose(ours["z_median"][kept], theirs["z_median"][kept], rtol=1e-3)
    assert theirs["flags"][3] & BIT["missing_band"] and not ours["flags"][3] & BIT["missing_band"]
    spelled = Table({name: values.value for name, values in fluxes.items()})
    for band in BANDS:
        spelled[f"flux_{band}"].unit = "nanomaggies"
    again = model.predict(spelled)  # inverse variances have the unit of their flux
    np.testing.assert_allclose(again["z_median"], theirs["z_median"], rtol=1e-5)


def test_band_names_in_capitals_and_limits_of_each_object(model, galaxies):
    capital = galaxies.copy()
    for band in BANDS:
        old, new = ([f"mag_{b}", f"mag_err_{b}"] for b in (band, band.upper()))
        capital.rename_columns(old, new)
    ours, theirs = model.predict(galaxies), model.predict(capital)
    np.testing.assert_array_equal(ours["z_median"], theirs["z_median"])
    galaxies["mag_u"][:5], galaxies["mag_err_u"][:5] = 99.0, 99.0
    galaxies["mag_lim_u"] = np.linspace(25, 28, 60)
    each, one = model.predict(galaxies), model.predict(galaxies, limits={"u": 25.0})
    galaxies.remove_column("mag_lim_u")
    same = model.predict(galaxies, limits={"u": 25.0})
    assert each["pz"][0] == pytest.approx(same["pz"][0])
    np.testing.assert_array_equal(each["pz"], one["pz"])  # of each object before that of all
    assert not np.allclose(each["pz"][4], same["pz"][4])


def test_no_photometry_at_all_says_how_to_name_it(model):
    with pytest.raises(ValueError, match=r"no photometry.*data\.columns\.mag="):
        model.predict({"RA": np.zeros(3), "DEC": np.zeros(3)})


def test_a_wrong_unit_is_named(model, galaxies):
    galaxies["mag_r"].unit = u.km / u.s
    with pytest.raises(ValueError, match=r"mag_r.*km / s.*mag"):
        model.predict(galaxies)


@pytest.mark.parametrize("bad", [0.0, -0.1, np.nan, np.inf])
def test_an_impossible_error_is_refused(model, galaxies, bad):
    galaxies["mag_err_i"][7] = bad
    with pytest.raises(
        ValueError,
        match=r"'mag_err_i'.*row 7, counted from 0\); expected .*set 'mag_i'",
    ):
        model.predict(galaxies)


@pytest.mark.parametrize("bad", [-np.inf, 999.0, -9999.0])
def test_a_foreign_sentinel_is_refused(model, galaxies, bad):
    galaxies["mag_i"][7] = bad
    with pytest.raises(
        ValueError, match=r"'mag_i'.*is not a valid magnitude.*NaN or -99 .*where not observed"
    ):
        model.predict(galaxies)


def test_not_observed_and_not_detected_are_different(model, galaxies):
    answers = {}
    for name, mag, error in (
        ("observed", None, None),
        ("not observed", np.nan, 0.1),
        ("not observed, -99", -99.0, -99.0),
        ("not observed, 99 without limit", 99.0, 99.0),
        ("not detected", 99.0, 27.5),
        ("not detected, inf", np.inf, 27.5),
    ):
        table = galaxies.copy()
        if mag is not None:
            table["mag_u"][:], table["mag_err_u"][:] = mag, error
        answers[name] = model.predict(table)
        assert all(np.isfinite(answers[name][c]).all() for c in ("z_median", "pz", "ood"))
    none = answers["not observed"]
    assert np.all(none["flags"] & 1) and not np.any(answers["not detected"]["flags"] & 1)
    np.testing.assert_array_equal(none["pz"], answers["not observed, -99"]["pz"])
    np.testing.assert_array_equal(none["pz"], answers["not observed, 99 without limit"]["pz"])
    np.testing.assert_array_equal(answers["not detected"]["pz"], answers["not detected, inf"]["pz"])
    assert np.abs(none["pz"] - answers["not detected"]["pz"]).max() > 1e-3
    assert np.abs(none["pz"] - answers["observed"]["pz"]).max() > 1e-3


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_sentinels_of_surveys_are_those_of_bpz(model, galaxies, kind):
    for name in galaxies.colnames:
        if name.startswith("mag_"):
            galaxies[name] = galaxies[name].astype(kind)
    answers = {}
    for sentinel in (-99.0, -99.9, -99.99, -999.0, 99.0, 99.9, 99.99):
        galaxies["mag_u"][:], galaxies["mag_err_u"][:] = sentinel, 27.5
        answers[sentinel] = np.asarray(model.predict(galaxies)["pz"])
    for sentinel, pz in answers.items():
        np.testing.assert_array_equal(pz, answers[np.copysign(99.0, sentinel)])


def test_a_foreign_sentinel_is_proposed_as_a_setting_and_read_by_it(model, galaxies):
    galaxies["mag_i"][[3, 7, 9]] = np.float32(-9999)
    with pytest.raises(ValueError, match=r"'mag_i': -9999.*set data\.sentinels=\[-9999\]"):
        model.predict(galaxies)
    unknown = galaxies.copy()
    unknown["mag_i"][[3, 7, 9]] = np.nan
    read = model.predict(galaxies, sentinels=[-9999])
    np.testing.assert_array_equal(read["pz"], model.predict(unknown)["pz"])


def test_a_limit_from_the_config_serves_non_detections(model, galaxies):
    galaxies["mag_u"][:], galaxies["mag_err_u"][:] = 99.0, 99.0
    ours = model.predict(galaxies, limits={"u": 27.5})
    galaxies["mag_err_u"][:] = 27.5
    np.testing.assert_array_equal(ours["pz"], model.predict(galaxies)["pz"])


def test_nothing_observed_still_gets_the_population(model, galaxies):
    for band in BANDS:
        galaxies[f"mag_{band}"][:] = np.nan
    rows = model.predict(galaxies)
    assert np.isfinite(rows["z_std"]).all() and np.all(rows["pz"] > 0)


def test_zero_points_and_galactic_extinction_shift_magnitudes(model, galaxies):
    ours = model.predict(galaxies)
    galaxies["mag_u"] -= 0.3
    np.testing.assert_allclose(
        ours["z_mean"], model.predict(galaxies, zero_points={"u": 0.3})["z_mean"], rtol=1e-4
    )
    galaxies["mag_u"] += 0.3
    galaxies["EBV"] = 0.2
    r = {"u": 4.145, "g": 3.237, "r": 2.273, "i": 1.684, "z": 1.323, "y": 1.088}
    for band in BANDS:
        galaxies[f"mag_{band}"] += 0.2 * r[band]
    columns = {"ebv": "EBV"}
    np.testing.assert_allclose(
        ours["z_mean"], model.predict(galaxies, columns=columns)["z_mean"], rtol=1e-3
    )


def test_unknown_and_noisy_redshifts_are_not_scored(model, galaxies):
    galaxies["redshift"][:20] = [np.nan, -99.0] * 10
    rows = model.predict(galaxies)
    assert np.isnan(rows["crps"][:20]).all() and np.isfinite(rows["crps"][20:]).all()
    assert evaluation.metrics({k: np.asarray(rows[k]) for k in rows.colnames})["n"] == 40
    galaxies["source"] = ["spec"] * 30 + ["manyband"] * 30
    rows = model.predict(galaxies)
    assert np.isfinite(rows["z_true"][20:30]).all() and np.isnan(rows["z_true"][30:]).all()


def test_a_truth_column_without_a_truth_is_said_and_left_out(model, galaxies):
    galaxies["redshift"][:] = [np.nan, -99.0] * 30
    with pytest.warns(UserWarning, match="column 'redshift' holds no redshift of 0 to 20: nothing"):
        rows = model.predict(galaxies)
    assert "z_median" in rows.colnames and "crps" not in rows.colnames
    galaxies["redshift"][59] = 0.5
    galaxies["source"] = "manyband"
    with pytest.warns(UserWarning, match="no redshift of 0 to 20 of the source spec"):
        model.predict(galaxies)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("EBV", -99.0, r"'EBV': -99.0 is not a valid E\(B - V\)"),
        ("EBV", np.nan, r"'EBV': nan is not a valid E\(B - V\)"),
    ],
)
def test_impossible_values_of_other_columns_are_refused(model, galaxies, column, value, message):
    galaxies[column] = 0.1
    galaxies[column][3] = value
    with pytest.raises(ValueError, match=message):
        model.predict(galaxies, columns={"ebv": column})


def test_a_mistyped_role_is_named(model, galaxies):
    with pytest.raises(ValueError, match=r"data\.columns\.EBV is none of the roles .*near: ebv"):
        model.predict(galaxies, columns={"EBV": "EBV"})


def test_the_kind_of_photometry_that_covers_more_bands_is_taken(model, galaxies):
    fluxes = Table()
    for band in BANDS:
        flux = 10 ** (-0.4 * (galaxies[f"mag_{band}"] - 23.9))
        fluxes[f"flux_{band}"] = flux
        fluxes[f"flux_err_{band}"] = flux * galaxies[f"mag_err_{band}"] * np.log(10) / 2.5
    alone = model.predict(fluxes)
    fluxes["mag_i"], fluxes["mag_err_i"] = galaxies["mag_i"] + 1, galaxies["mag_err_i"]
    np.testing.assert_array_equal(model.predict(fluxes)["pz"], alone["pz"])


def test_a_column_map_adds_to_that_of_the_checkpoint(model, galaxies):
    galaxies.rename_column("redshift", "ZSPEC")
    rows = model.predict(galaxies, columns={"redshift": "ZSPEC"})
    assert "crps" in rows.colnames


def test_one_row_and_no_row(model, galaxies):
    assert len(model.predict(galaxies[:1])) == 1
    with pytest.raises(ValueError, match="has no rows"):
        model.predict(galaxies[:0])


def test_rows_that_would_be_refused_can_be_left_out_with_a_warning(galaxies):
    galaxies["mag_err_u"][[3, 17, 18]] = -1.0
    galaxies["id"] = np.arange(len(galaxies))
    data = ZephyrData(bands=BANDS, keep=["id"])
    data.table = galaxies
    with pytest.raises(ValueError, match="row 3, counted from 0"):
        next(data.prediction_batches())
    data.skip_bad = True
    with pytest.warns(UserWarning, match=r"3 rows are left out: .*row"):
        batches = list(data.prediction_batches())
    rows = np.concatenate([batch["row"].numpy() for batch in batches])
    assert rows.tolist() == [i for i in range(60) if i not in (3, 17, 18)]
    kept = np.concatenate([batch.carried.columns["id"] for batch in batches])
    np.testing.assert_array_equal(kept, rows)
    assert sum(len(batch["flux"]) for batch in batches) == 57
