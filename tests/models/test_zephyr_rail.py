"""zephyr as stages of RAIL: what they train, estimate and write is what the zoo itself does."""

import os
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import BANDS, ROOT

from orrery import load
from orrery.checkpoint import read_checkpoint, restore

pytest.importorskip("rail.core")
from rail.core.data import TableHandle
from rail.core.stage import RailPipeline
from rail.evaluation.dist_to_point_evaluator import DistToPointEvaluator
from rail.utils.path_utils import RAILDIR

from orrery.models.zephyr.rail import ZephyrEstimator, ZephyrInformer

DC2 = Path(RAILDIR, "rail/examples_data/testdata")
QUICK = ["experiment=zephyr_quick", "model.epochs=1"]
COLUMNS = {f"mag_{band}": f"mag_{band}_lsst" for band in BANDS}
COLUMNS |= {f"mag_err_{band}": f"mag_err_{band}_lsst" for band in BANDS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RAIL's own DC2 galaxies, the first 1,200 to train on and 300 others: train and test.hdf5."""
    folder = tmp_path_factory.mktemp("rail")
    for name, of, rows in (("train", "training", 1200), ("test", "validation", 300)):
        with h5py.File(DC2 / f"test_dc2_{of}_9816.hdf5") as file:
            table = {column: values[:rows] for column, values in file["photometry"].items()}
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            for column, values in table.items():
                file[f"photometry/{column}"] = values
    return folder


@pytest.fixture(scope="module")
def informed(folder: Path) -> Path:
    """The model file of an informer."""
    path = folder / "model.ckpt"
    stage = ZephyrInformer.make_stage(name="informed", settings=QUICK, model=str(path))
    stage.inform(TableHandle("train", path=str(folder / "train.hdf5")))
    return path


def table_of(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {column: values[:] for column, values in file["photometry"].items()}


def estimated(model: object, table: object, **settings: object):
    """The ensemble of an estimator, of a table in memory or a path."""
    settings = {"output_mode": "return", "model": model, "name": "estimated", **settings}
    stage = ZephyrEstimator.make_stage(**settings)
    if isinstance(table, Path):
        table = TableHandle("test", path=str(table))
    return stage.estimate(table).data


def test_the_estimates_of_rail_are_those_of_predict(folder, informed):
    """In chunks and in one piece, to the last bit of single precision."""
    ensemble = estimated(informed, folder / "test.hdf5", chunk_size=128, zmax=2.0, nzbins=101)
    model = load(informed)
    expected = model.predict(table_of(folder / "test.hdf5"))
    assert ensemble.npdf == 300
    for ours, rail in (("z_mode", "zmode"), ("z_mean", "zmean"), ("z_median", "zmedian")):
        np.testing.assert_array_equal(np.ravel(ensemble.ancil[rail]), expected[ours])
        np.testing.assert_array_equal(np.ravel(ensemble.ancil[ours]), expected[ours])
    np.testing.assert_array_equal(np.ravel(ensemble.ancil["flags"]), expected["flags"])
    assert not {"pit", "z_true", "crps"} & ensemble.ancil.keys()
    on_grid = restore(read_checkpoint(informed), {"z_grid": [0, 2, 0.02]})
    predicted = on_grid.predict(table_of(folder / "test.hdf5"))
    z, density = predicted.meta["z_grid"], np.asarray(predicted["pz"])
    np.testing.assert_allclose(z, np.linspace(0, 2, 101), atol=1e-6)
    density = density / np.trapezoid(density, z, axis=1)[:, None]
    np.testing.assert_allclose(ensemble.pdf(z), density, rtol=1e-4, atol=1e-5)


def test_a_table_in_memory_trains_the_same_model(folder, informed):
    stage = ZephyrInformer.make_stage(name="memory", settings=QUICK, output_mode="return")
    handle = stage.inform({"photometry": table_of(folder / "train.hdf5")})
    theirs, ours = handle.data["state_dict"], load(informed).state_dict()
    for name, values in theirs.items():
        np.testing.assert_array_equal(values, ours.get(name, values), err_msg=name)
    record = handle.data["orrery"]
    assert "table in memory" in record["config"]["data"]["origin"]
    assert record["command"] == "train.py model=zephyr experiment=zephyr_quick model.epochs=1"


def test_a_shipped_model_estimates_by_name_what_rail_calls_missing(folder):
    """99 is fainter than RAIL's limit, NaN is not observed; neither is a bright galaxy."""
    table = {name: values[:3] for name, values in table_of(folder / "test.hdf5").items()}
    table["mag_u_lsst"], table["mag_err_u_lsst"] = np.array([99.0, np.nan, 26.0]), np.full(3, 0.1)
    ensemble = estimated("zephyr", {"photometry": table})
    limits = {"u": 27.79}
    expected = load("zephyr").predict(
        {k: v for k, v in table.items() if k != "redshift"}, columns=COLUMNS, limits=limits
    )
    np.testing.assert_array_equal(ensemble.ancil["zmedian"], expected["z_median"])
    assert [bool(flag & 1) for flag in ensemble.ancil["flags"]] == [False, True, False]


def test_impossible_and_missing_photometry_is_refused_by_its_rows(folder):
    table = {name: values[:3] for name, values in table_of(folder / "test.hdf5").items()}
    wrong = {**table, "mag_err_g_lsst": np.array([0.1, -1.0, 0.1])}
    with pytest.raises(ValueError, match=r"rows 0 to 3 of the input: .*mag_err_g_lsst"):
        estimated("zephyr", {"photometry": wrong})
    del wrong["mag_g_lsst"]
    with pytest.raises(KeyError, match="mag_g_lsst"):
        estimated("zephyr", {"photometry": wrong})
    with pytest.raises(ValueError, match=r"band_names 2 names \(g, r\); expected one of each"):
        estimated("zephyr", {"photometry": table}, band_names=["g", "r"])
    with pytest.raises(FileNotFoundError, match="there is no checkpoint 'zefir'"):
        estimated("zefir", {"photometry": table})


def test_a_grid_that_cuts_p_of_z_off_says_so(folder, informed):
    table = {name: values[:50] for name, values in table_of(folder / "test.hdf5").items()}
    with pytest.warns(UserWarning, match=r"of 50 objects have more than 1% of p\(z\) outside"):
        estimated(informed, {"photometry": table}, zmax=0.3, nzbins=31)


@pytest.mark.slow
def test_a_pipeline_of_rail_informs_estimates_and_evaluates(folder, monkeypatch):
    """As ceci runs it: each stage in a process of its own, by files alone."""
    from ceci import Pipeline

    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pipeline = RailPipeline()
    pipeline.inform = inform = ZephyrInformer.build(settings=QUICK, aliases={"input": "train"})
    pipeline.estimate = estimate = ZephyrEstimator.build(
        connections={"model": inform.io.model}, aliases={"input": "test"}, chunk_size=128
    )
    pipeline.evaluate = DistToPointEvaluator.build(
        connections={"input": estimate.io.output}, aliases={"truth": "test"}, metrics=["cdeloss"],
        x_grid=np.linspace(0, 3, 301).tolist(),
    )  # fmt: skip
    inputs = {"train": str(folder / "train.hdf5"), "test": str(folder / "test.hdf5")}
    pipeline.initialize(inputs, {"output_dir": ".", "log_dir": ".", "resume": False}, None)
    pipeline.save("pipeline.yml")
    assert Pipeline.read("pipeline.yml").run() == 0, Path("inform.out").read_text()[-2000:]
    expected = load(folder / "model_inform.ckpt").predict(table_of(folder / "test.hdf5"))
    with h5py.File("output_estimate.hdf5") as file:
        np.testing.assert_array_equal(np.ravel(file["ancil/zmedian"]), expected["z_median"])
    with h5py.File("summary_evaluate.hdf5") as file:
        assert np.isfinite(file["cdeloss"][:]).all()
