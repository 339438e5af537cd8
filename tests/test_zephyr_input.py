"""Bad catalogues and good ones in other clothes, through the doors and from Python."""

import json
import os
import resource
import subprocess
import sys
import warnings

import astropy.units as u
import h5py
import numpy as np
import pytest
import torch
from astropy.table import Table
from conftest import ROOT, command

import zoo
from datamodules.zephyr import GREY, ZephyrData
from models.checkpoint import build

BANDS = "ugrizy"


@pytest.fixture(scope="session")
def model(runs):
    return zoo.load(runs("zephyr") / "best.ckpt")


@pytest.fixture
def galaxies():
    """A catalogue of 60 galaxies in AB magnitudes."""
    random = np.random.default_rng(0)
    table = Table({"id": np.arange(60) + 10**15})
    for i, band in enumerate(BANDS):
        table[f"mag_{band}"] = 25.5 - 0.4 * i + random.normal(0, 0.7, 60)
        table[f"mag_err_{band}"] = random.uniform(0.02, 0.2, 60)
    table["redshift"] = random.uniform(0.1, 2, 60)
    return table


def test_magnitudes_and_fluxes_give_the_same_answer(model, galaxies):
    fluxes = Table()
    for band in BANDS:
        flux = 10 ** (-0.4 * (galaxies[f"mag_{band}"] - 23.9)) * u.uJy
        fluxes[f"flux_{band}"] = flux.to(u.nJy)
        fluxes[f"flux_err_{band}"] = flux.to(u.Jy) * galaxies[f"mag_err_{band}"] * np.log(10) / 2.5
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ours, theirs = model.predict(galaxies), model.predict(fluxes)
    np.testing.assert_allclose(ours["z_median"], theirs["z_median"], rtol=1e-4)
    bare = {name: fluxes[name].value for name in fluxes.colnames}
    with pytest.warns(UserWarning, match="flux_u and 11 more name no unit: taken as uJy"):
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
    assert "crps" in theirs.colnames, "the truth is found under its own name"


def test_a_misnamed_band_is_an_error_and_an_absent_one_a_warning(model, galaxies):
    misnamed = galaxies.copy()
    misnamed.rename_columns(["mag_u", "mag_err_u"], ["mag_U_", "mag_err_U_"])
    with pytest.raises(ValueError, match=r"is it 'mag_U_'\? Then say data\.columns\.mag_u=mag_U_"):
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
    with pytest.raises(ValueError, match=f"no column 'nope'; mend data.{setting}"):
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


def test_objects_unlike_the_training_set_are_remarked_on(model, galaxies):
    data = build(model.config["data"])
    usual = model.predict(data.simulate("test"))
    assert model.model.remarks({"flags": np.asarray(usual["flags"])}) == []
    galaxies["mag_g"] -= 8
    rows = model.predict(galaxies)
    rows = {name: np.asarray(rows[name]) for name in rows.colnames}
    (remark,) = model.model.remarks(rows)
    assert remark.startswith("100% of the objects are unlike")
    assert model.model.metrics(rows)["ood_fraction"] == 1


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
        match=r"rows 0 to 59.*'mag_err_i'.*1 such rows, the first is number 7.*set 'mag_i'",
    ):
        model.predict(galaxies)


@pytest.mark.parametrize("bad", [-np.inf, 999.0, -999.0])
def test_a_foreign_sentinel_is_refused(model, galaxies, bad):
    galaxies["mag_i"][7] = bad
    with pytest.raises(
        ValueError, match=r"'mag_i'.*is no magnitude.*NaN or -99 where not observed"
    ):
        model.predict(galaxies)


def test_not_observed_and_not_detected_are_different(model, galaxies):
    answers = {}
    for name, mag, error in (
        ("seen", None, None),
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
    assert np.abs(none["pz"] - answers["seen"]["pz"]).max() > 1e-3


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
    assert model.model.metrics({k: np.asarray(rows[k]) for k in rows.colnames})["n"] == 40
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
    ("column", "value", "said"),
    [("EBV", -99.0, "is no ebv"), ("EBV", np.nan, "is no ebv")],
)
def test_impossible_values_of_other_columns_are_refused(model, galaxies, column, value, said):
    galaxies[column] = 0.1
    galaxies[column][3] = value
    with pytest.raises(ValueError, match=said):
        model.predict(galaxies, columns={"ebv": column})


def test_a_mistyped_role_is_named(model, galaxies):
    with pytest.raises(ValueError, match=r"data\.columns has no 'EBV'; near: ebv"):
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


# --- through the doors ------------------------------------------------------------------------


def door(runs, tmp_path, *words, door="evaluate.py", **env):
    start = ["model=zephyr", "experiment=zephyr_quick"]
    if door == "evaluate.py":
        start = [f"checkpoint={runs('zephyr')}/best.ckpt"]
    return command(door, *start, *words, f"hydra.run.dir={tmp_path}/run", **env)


def refusal(done) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_a_truth_column_is_needed_in_training_alone(runs, galaxies, tmp_path):
    galaxies.remove_column("redshift")
    galaxies.write(tmp_path / "cat.fits")
    path = f"data.path={tmp_path}/cat.fits"
    message = refusal(door(runs, tmp_path, path, door="train.py"))
    assert "'redshift'" in message and "data.columns.redshift=" in message
    done = door(runs, tmp_path, path, f"output={tmp_path}/pz.fits", "data.keep=[id]")
    assert done.returncode == 0, done.stderr
    out = Table.read(tmp_path / "pz.fits", hdu=1)
    np.testing.assert_array_equal(out["id"], galaxies["id"])
    assert "ask for predictions: output=" in refusal(door(runs, tmp_path, path))
    galaxies["redshift"] = np.nan
    galaxies.write(tmp_path / "cat.fits", overwrite=True)
    message = refusal(door(runs, tmp_path, path))
    assert "'redshift' holds no redshift" in message and "no truth to score against" in message


@pytest.mark.parametrize("ending", ["fits", "ecsv", "csv", "parquet", "hdf5"])
def test_predictions_in_every_format(runs, galaxies, tmp_path, ending):
    galaxies.write(tmp_path / "cat.ecsv")
    words = [f"data.path={tmp_path}/cat.ecsv", f"output={tmp_path}/pz.{ending}"]
    asked = ["z_std", "flags", "z_median"]
    done = door(runs, tmp_path, *words, f"columns=[{','.join(asked)}]")
    assert done.returncode == 0, done.stderr
    from datamodules.catalogue import open_catalogue

    with open_catalogue(tmp_path / f"pz.{ending}") as catalogue:
        names = catalogue.names  # in the order asked; HDF5 has the order of the alphabet
        assert names == (sorted(asked) if ending == "hdf5" else asked) and len(catalogue) == 60
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["n"] == 60, "a catalogue with redshifts is scored, too"


def test_a_column_that_is_no_output_is_refused(runs, galaxies, tmp_path):
    galaxies.write(tmp_path / "cat.ecsv")
    words = [f"data.path={tmp_path}/cat.ecsv", f"output={tmp_path}/pz.csv", "columns=[zmed]"]
    assert "no output 'zmed'" in refusal(door(runs, tmp_path, *words))


def test_csv_goes_without_vectors_and_says_so(runs, galaxies, tmp_path):
    """One run as a first user makes it: no u band, output to CSV, galaxies unlike any."""
    galaxies.remove_columns(["mag_u", "mag_err_u", "redshift"])
    galaxies["mag_g"] -= 8
    galaxies.write(tmp_path / "cat.ecsv")
    words = [f"data.path={tmp_path}/cat.ecsv", f"output={tmp_path}/five.csv"]
    done = door(runs, tmp_path, *words, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert "not written: pz, a vector per object, which CSV cannot hold; FITS" in done.stdout
    assert "note: 100% of the objects are unlike" in done.stdout
    assert done.stderr.count("no band u") == 1 and "warnings.warn" not in done.stderr
    names = Table.read(tmp_path / "five.csv").colnames
    assert "z_median" in names and "pz" not in names


def test_what_cannot_be_written_is_refused_before_predicting(runs, galaxies, tmp_path):
    from datamodules.predictions import Predictions

    with pytest.raises(ValueError, match=r"cannot write this ending; known: \.fits"):
        Predictions(60, tmp_path / "pz.txt", None, [], {}, {})
    galaxies.write(tmp_path / "cat.ecsv")
    words = [f"data.path={tmp_path}/cat.ecsv", f"output={tmp_path}/pz.csv", "columns=[pz]"]
    assert "pz.csv: pz, a vector per object" in refusal(door(runs, tmp_path, *words))


def test_a_catalogue_without_any_magnitude_is_scored(runs, galaxies, tmp_path):
    for band in BANDS:
        galaxies[f"mag_{band}"][:] = np.nan
    galaxies.write(tmp_path / "cat.ecsv")
    done = door(runs, tmp_path, f"data.path={tmp_path}/cat.ecsv")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/metrics.json").read_text())["n"] == 60
    made = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"report.html", "redshifts.png", "examples.png", "binned.png"} <= made
    assert "responsibilities.png" not in made


@pytest.mark.parametrize("ending", ["fits", "hdf5"])
def test_a_truncated_file_is_said_to_be(runs, galaxies, tmp_path, ending):
    path = tmp_path / f"cat.{ending}"
    if ending == "fits":
        galaxies.write(path)
    else:
        with h5py.File(path, "w") as file:
            for name in galaxies.colnames:
                file[f"photometry/{name}"] = galaxies[name]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    message = refusal(door(runs, tmp_path, f"data.path={path}", f"output={tmp_path}/pz.csv"))
    assert "truncated" in message and path.name in message


def test_a_full_disk_leaves_no_half_file(runs, galaxies, tmp_path):
    galaxies.write(tmp_path / "cat.ecsv")
    words = ["evaluate.py", f"checkpoint={runs('zephyr')}/best.ckpt"]
    words += [f"data.path={tmp_path}/cat.ecsv", f"output={tmp_path}/out/pz.hdf5"]
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, *words, f"hydra.run.dir={tmp_path}/run"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
        capture_output=True,
        text=True,
    )
    assert "pz.hdf5" in refusal(done)
    assert not list((tmp_path / "out").iterdir())


def test_qp_reads_the_densities(runs, galaxies, tmp_path):
    qp = pytest.importorskip("qp")
    galaxies.write(tmp_path / "cat.ecsv")
    words = [f"data.path={tmp_path}/cat.ecsv", f"output={tmp_path}/pz.hdf5", "data.keep=[id]"]
    done = door(runs, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    ensemble = qp.read(str(tmp_path / "pz.hdf5"))
    assert ensemble.npdf == 60
    np.testing.assert_allclose(np.ravel(ensemble.ppf(0.5)), ensemble.ancil["z_median"], atol=0.02)
    np.testing.assert_array_equal(ensemble.ancil["id"], galaxies["id"])
    grid = np.linspace(0, 3, 3001)
    np.testing.assert_allclose(np.trapezoid(ensemble.pdf(grid), grid, axis=1), 1, atol=0.02)


def test_n_of_z_is_stacked_by_group_with_its_error(runs, galaxies, tmp_path):
    galaxies["bin"] = ["near"] * 20 + ["far"] * 40
    galaxies.write(tmp_path / "cat.ecsv")
    words = [f"data.path={tmp_path}/cat.ecsv", "data.group_by=bin", f"output={tmp_path}/pz.hdf5"]
    done = door(runs, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    stacked = Table.read(tmp_path / "run/stacked.ecsv")
    with h5py.File(tmp_path / "pz.hdf5") as file:
        pz = file["data/yvals"][:]
    for name, rows in (("near", slice(0, 20)), ("far", slice(20, 60))):
        mine = stacked[stacked["group"] == name]
        assert np.all(mine["n_objects"] == len(pz[rows]))
        np.testing.assert_allclose(mine["n_z"], pz[rows].mean(0), rtol=1e-3)
        error = pz[rows].std(0) / np.sqrt(len(pz[rows]))
        wide = error > 0.3 * error.max()
        np.testing.assert_allclose(mine["n_z_std"][wide], error[wide], rtol=0.4)


def test_metrics_of_the_training_file_say_so(runs, galaxies, tmp_path):
    galaxies.write(tmp_path / "cat.ecsv")
    path = f"data.path={tmp_path}/cat.ecsv"
    done = door(runs, tmp_path, path, "model.epochs=1", "data.batch_size=16", door="train.py")
    assert done.returncode == 0, done.stderr
    ours = f"checkpoint={tmp_path}/run/best.ckpt"
    done = command("evaluate.py", ours, path, f"hydra.run.dir={tmp_path}/again")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "again/metrics.json").read_text())
    assert metrics["n_insample"] == 60 and "crps" not in metrics
    for change in ("data.seed=1", "data.test_fraction=0.5"):
        assert "held out of training" in refusal(command("evaluate.py", ours, change))
    galaxies[:50].write(tmp_path / "cat.ecsv", overwrite=True)
    assert "has changed since" in refusal(command("evaluate.py", ours))
    last = f"checkpoint={tmp_path}/run/last.ckpt"
    assert "was trained on" in refusal(command("train.py", last, "model.epochs=2"))
    (tmp_path / "cat.ecsv").unlink()
    assert "may not be shipped" in refusal(command("evaluate.py", ours))


def test_fine_tuning_wants_the_same_bands_in_the_same_order(runs, galaxies, tmp_path):
    galaxies.write(tmp_path / "cat.ecsv")
    words = [f"data.path={tmp_path}/cat.ecsv", "data.batch_size=16", "model.epochs=1"]
    words += [f"init_from={runs('zephyr')}/best.ckpt"]
    message = refusal(door(runs, tmp_path, *words, "data.bands=[y,u,g,r,i,z]", door="train.py"))
    assert "say data.bands=[u,g,r,i,z,y]" in message
    done = door(runs, tmp_path, *words, "data.bands=[u,g,r,i,z,y]", door="train.py")
    assert done.returncode == 0, done.stderr


def test_training_objects_change_brightness_but_not_colour():
    flux = torch.linspace(0.1, 5, 6).repeat(4000, 1)
    flux[0, 2] = torch.nan  # not observed
    batch = {"flux": flux, "flux_err": 0.1 * flux, "detected": flux.isfinite().float()}
    data = ZephyrData(bands=list(BANDS), noise=0, drop_share=0)
    again = data.augment(batch, torch.Generator().manual_seed(0))
    assert torch.equal(again["flux"].isnan(), flux.isnan())
    brighter = (again["flux"] / flux).nan_to_num(0).amax(1, keepdim=True)
    torch.testing.assert_close(again["flux"], brighter * flux, equal_nan=True)
    assert float(brighter.log().std()) == pytest.approx(GREY, rel=0.05)
    error = brighter.sqrt() * batch["flux_err"]
    torch.testing.assert_close(again["flux_err"], error, equal_nan=True)


def test_training_objects_are_observed_with_the_errors_they_then_claim():
    """The scatter that is added is that by which the errors grow, up to ``noise`` times them."""
    flux = torch.full((4000, 6), 50.0)
    batch = {"flux": flux, "flux_err": torch.ones(4000, 6), "detected": torch.ones(4000, 6)}
    batch["detected"][:, 5] = 0
    for noise in (0.5, 2.0):
        data = ZephyrData(bands=list(BANDS), noise=noise, drop_share=0)
        again = data.augment(batch, torch.Generator().manual_seed(0))
        brighter = again["flux"][:, 5:] / 50  # no noise is added to what is not detected
        added = again["flux_err"][:, :5].square() / brighter - 1  # in units of the error before
        assert float(added.max().sqrt()) == pytest.approx(noise, rel=0.01)
        scatter = (again["flux"][:, :5] - brighter * 50).square() / brighter
        assert float(scatter.mean()) == pytest.approx(float(added.mean()), rel=0.03)


def test_several_sources_need_a_clean_one(tmp_path, galaxies, runs):
    galaxies["survey"] = ["a", "b"] * 30
    galaxies.write(tmp_path / "cat.ecsv")
    words = [f"data.path={tmp_path}/cat.ecsv", "data.columns.source=survey"]
    message = refusal(door(runs, tmp_path, *words, door="train.py"))
    assert "data.clean_source=a" in message


def test_training_takes_the_rows_that_meet_a_condition(runs, galaxies, tmp_path):
    from datamodules.base import where
    from datamodules.catalogue import read_table

    galaxies["survey"] = ["a", "b"] * 30
    mask = where(read_table(galaxies), "survey == a and redshift < 1.0")
    expected = (galaxies["survey"] == "a") & (galaxies["redshift"] < 1)
    np.testing.assert_array_equal(mask, expected)
    for wrong, said in (
        ("redshift", "not '<column>"),
        ("zz > 1", "zz"),
        ("redshift > 9", "no row"),
    ):
        with pytest.raises(ValueError, match=said), warnings.catch_warnings():
            where(read_table(galaxies), wrong)
