"""A catalogue to train on: what it must hold, which rows are taken, how they are augmented."""

import json
import warnings

import numpy as np
import pytest
import torch
from astropy.table import Table
from conftest import BANDS, command, door, refusal

from orrery.datamodules.zephyr import ZephyrData
from orrery.datamodules.zephyr.augmentation import BRIGHTNESS_SCATTER
from orrery.tables import read_table, where


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


def test_several_sources_need_a_clean_one(tmp_path, galaxies, runs):
    galaxies["survey"] = ["a", "b"] * 30
    galaxies.write(tmp_path / "cat.ecsv")
    words = [f"data.path={tmp_path}/cat.ecsv", "data.columns.source=survey"]
    message = refusal(door(runs, tmp_path, *words, door="train.py"))
    assert "data.clean_source=a" in message


def test_training_takes_the_rows_that_meet_a_condition(galaxies):
    galaxies["survey"] = ["a", "b"] * 30
    mask = where(read_table(galaxies), "survey == a and redshift < 1.0")
    expected = (galaxies["survey"] == "a") & (galaxies["redshift"] < 1)
    np.testing.assert_array_equal(mask, expected)
    for expression, message in (
        ("redshift", "not '<column>"),
        ("zz > 1", "zz"),
        ("redshift > 9", "no row"),
    ):
        with pytest.raises(ValueError, match=message), warnings.catch_warnings():
            where(read_table(galaxies), expression)


def test_training_objects_change_brightness_but_not_colour():
    flux = torch.linspace(0.1, 5, 6).repeat(4000, 1)
    flux[0, 2] = torch.nan  # not observed
    batch = {"flux": flux, "flux_err": 0.1 * flux, "detected": flux.isfinite().float()}
    data = ZephyrData(bands=list(BANDS), noise=0, drop_share=0)
    augmented = data.augment(batch, torch.Generator().manual_seed(0))
    assert torch.equal(augmented["flux"].isnan(), flux.isnan())
    factor = (augmented["flux"] / flux).nan_to_num(0).amax(1, keepdim=True)
    torch.testing.assert_close(augmented["flux"], factor * flux, equal_nan=True)
    assert float(factor.log().std()) == pytest.approx(BRIGHTNESS_SCATTER, rel=0.05)
    error = factor.sqrt() * batch["flux_err"]
    torch.testing.assert_close(augmented["flux_err"], error, equal_nan=True)


def test_training_objects_are_observed_with_the_errors_they_then_claim():
    """The scatter that is added is that by which the errors grow, up to ``noise`` times them."""
    flux = torch.full((4000, 6), 50.0)
    batch = {"flux": flux, "flux_err": torch.ones(4000, 6), "detected": torch.ones(4000, 6)}
    batch["detected"][:, 5] = 0
    for noise in (0.5, 2.0):
        data = ZephyrData(bands=list(BANDS), noise=noise, drop_share=0)
        augmented = data.augment(batch, torch.Generator().manual_seed(0))
        factor = augmented["flux"][:, 5:] / 50  # no noise is added to what is not detected
        added = augmented["flux_err"][:, :5].square() / factor - 1  # in units of the error before
        assert float(added.max().sqrt()) == pytest.approx(noise, rel=0.01)
        scatter = (augmented["flux"][:, :5] - factor * 50).square() / factor
        assert float(scatter.mean()) == pytest.approx(float(added.mean()), rel=0.03)


def test_metrics_of_the_training_file_say_so(runs, galaxies, tmp_path):
    galaxies.write(tmp_path / "cat.ecsv")
    path = f"data.path={tmp_path}/cat.ecsv"
    done = door(runs, tmp_path, path, "model.epochs=1", "data.batch_size=16", door="train.py")
    assert done.returncode == 0, done.stderr
    checkpoint = f"checkpoint={tmp_path}/run/best.ckpt"
    done = command("evaluate.py", checkpoint, path, f"hydra.run.dir={tmp_path}/again")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "again/metrics.json").read_text())
    assert metrics["n_insample"] == 60 and "crps" not in metrics
    for change in ("data.seed=1", "data.test_fraction=0.5"):
        assert "held out of training" in refusal(command("evaluate.py", checkpoint, change))
    galaxies[:50].write(tmp_path / "cat.ecsv", overwrite=True)
    assert "has changed since" in refusal(command("evaluate.py", checkpoint))
    last = f"checkpoint={tmp_path}/run/last.ckpt"
    assert "was trained on" in refusal(command("train.py", last, "model.epochs=2"))
    (tmp_path / "cat.ecsv").unlink()
    assert "may not be shipped" in refusal(command("evaluate.py", checkpoint))


def test_a_survey_of_another_length_is_not_read_to_be_told_from_the_training_file(
    galaxies, tmp_path, monkeypatch
):
    galaxies.write(tmp_path / "cat.ecsv")
    data = ZephyrData(bands=list(BANDS), path=str(tmp_path / "cat.ecsv"))
    record = data.provenance()
    assert data.is_of_record(record) and not data.is_of_record(record | {"sha256": "another"})
    again = ZephyrData(bands=list(BANDS), path=str(tmp_path / "cat.ecsv"))
    monkeypatch.setattr("orrery.datamodules.base.sha256", lambda path: pytest.fail("it was read"))
    assert not again.is_of_record(record | {"rows": 59})


def test_fine_tuning_wants_the_same_bands_in_the_same_order(runs, galaxies, tmp_path):
    galaxies.write(tmp_path / "cat.ecsv")
    words = [f"data.path={tmp_path}/cat.ecsv", "data.batch_size=16", "model.epochs=1"]
    words += [f"init_from={runs('zephyr')}/best.ckpt"]
    message = refusal(door(runs, tmp_path, *words, "data.bands=[y,u,g,r,i,z]", door="train.py"))
    assert "set data.bands=[u,g,r,i,z,y]" in message
    done = door(runs, tmp_path, *words, "data.bands=[u,g,r,i,z,y]", door="train.py")
    assert done.returncode == 0, done.stderr
