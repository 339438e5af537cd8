"""A catalogue through `evaluate.py`: what is written, scored and stacked, and what is refused."""

import json
import os
import resource
import subprocess
import sys

import h5py
import numpy as np
import pytest
from astropy.table import Table
from conftest import BANDS, ROOT, door, refusal

from orrery import pretrained
from orrery.evaluation.predictions import Predictions
from orrery.tables import Writer, open_catalogue


@pytest.mark.parametrize("ending", ["fits", "ecsv", "csv", "parquet", "hdf5"])
def test_predictions_in_every_format(runs, galaxies, tmp_path, ending):
    galaxies.write(tmp_path / "cat.ecsv")
    words = [f"data.path={tmp_path}/cat.ecsv", f"output={tmp_path}/pz.{ending}"]
    asked = ["z_std", "flags", "z_median"]
    done = door(runs, tmp_path, *words, f"columns=[{','.join(asked)}]")
    assert done.returncode == 0, done.stderr
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
    assert "note: 100% of the 60 objects have the flag unusual" in done.stdout
    assert done.stderr.count("no band u") == 1 and "warnings.warn" not in done.stderr
    names = Table.read(tmp_path / "five.csv").colnames
    assert "z_median" in names and "pz" not in names


def test_what_cannot_be_written_is_refused_before_predicting(runs, galaxies, tmp_path):
    with pytest.raises(ValueError, match=r"cannot write this ending; known: \.fits"):
        Predictions(60, tmp_path / "pz.txt", None, [], {}, {})
    galaxies.write(tmp_path / "cat.ecsv")
    words = [f"data.path={tmp_path}/cat.ecsv", f"output={tmp_path}/pz.csv", "columns=[pz]"]
    assert "pz.csv: pz, a vector per object" in refusal(door(runs, tmp_path, *words))


def test_a_catalogue_without_any_magnitude_is_scored(runs, galaxies, tmp_path):
    for band in BANDS:
        galaxies[f"mag_{band}"][:] = np.nan
    galaxies.write(tmp_path / "cat.ecsv")
    done = door(runs, tmp_path, f"data.path={tmp_path}/cat.ecsv", report=True)
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
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
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


def test_a_catalogue_does_not_give_way_to_its_predictions(runs, galaxies, tmp_path):
    path = tmp_path / "cat.ecsv"
    galaxies.write(path)
    before = path.read_bytes()
    done = door(
        runs, tmp_path, f"data.path={path}", f"output={tmp_path}/../{tmp_path.name}/cat.ecsv"
    )
    assert "is the catalogue itself" in refusal(done)
    assert path.read_bytes() == before
    galaxies["z_median"] = galaxies["redshift"]
    galaxies.write(path, overwrite=True)
    words = [f"data.path={path}", f"output={tmp_path}/pz.hdf5", "data.keep=z_median"]
    done = door(runs, tmp_path, *words)
    assert "'z_median' has the name of a prediction" in refusal(done)


def test_rows_that_are_left_out_are_not_counted(runs, galaxies, tmp_path):
    galaxies["mag_err_u"][[3, 17]] = -1.0
    galaxies.write(tmp_path / "cat.ecsv")
    words = [f"data.path={tmp_path}/cat.ecsv", f"output={tmp_path}/pz.fits"]
    assert "mag_err_u" in refusal(door(runs, tmp_path, *words))
    done = door(runs, tmp_path, *words, "data.skip_bad=true")
    assert done.returncode == 0, done.stderr
    assert "predictions of 58 objects" in done.stdout and "2 rows are left out" in done.stderr
    assert len(Table.read(tmp_path / "pz.fits")) == 58


def test_parts_of_other_processes_that_are_not_to_be_seen_are_missed(tmp_path):
    """Where each node writes to a folder of its own; what is there stays there."""
    model = pretrained.load("zephyr")
    predictions = Predictions(4, tmp_path / "pz.parquet", ["z_median"], [], {}, {})
    predictions.job, predictions.world = "job", 2
    with Writer(predictions._part(0)) as writer:
        writer.write({"z_median": np.zeros(2, np.float32)})
    failed = predictions._join(model, [2, 2])
    assert isinstance(failed, OSError) and "all nodes share" in str(failed)
    assert "holds 2 of 3 rows" in str(predictions._join(model, [3, 0]))
    assert [path.name for path in tmp_path.iterdir()] == [predictions._part(0).name]
    assert predictions._join(model, [2, 0]) is None
    assert [path.name for path in tmp_path.iterdir()] == ["pz.parquet"]


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


def test_weights_count_in_n_of_z_on_a_grid_of_ones_own(runs, galaxies, tmp_path):
    galaxies["bin"] = ["one"] * 60
    galaxies["w"] = np.arange(60) % 3
    galaxies.write(tmp_path / "cat.ecsv")
    words = [f"data.path={tmp_path}/cat.ecsv", "data.group_by=bin", "data.columns.weight=w"]
    words += ["model.z_grid=[0.2,1.4,0.05]", f"output={tmp_path}/pz.hdf5"]
    done = door(runs, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "pz.hdf5") as file:
        z, pz = file["meta/xvals"][0], file["data/yvals"][:]
    np.testing.assert_allclose(z, 0.2 + 0.05 * np.arange(25), rtol=1e-5)
    stacked = Table.read(tmp_path / "run/stacked.ecsv")
    expected = np.average(pz, axis=0, weights=galaxies["w"])
    expected /= expected.sum() * 0.05
    np.testing.assert_allclose(stacked["n_z"], expected, rtol=1e-3)
    own = pretrained.load(runs("zephyr") / "best.ckpt").predict(galaxies)
    cells = own.meta["z_grid"]
    inside = (cells > 0.175) & (cells < 1.425)  # the same mass, to a cell
    mass = np.asarray(own["pz"])[:, inside].sum(1) * np.diff(cells[:2])
    np.testing.assert_allclose(pz.sum(1) * 0.05, mass, atol=0.1)


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
        group = stacked[stacked["group"] == name]
        assert np.all(group["n_objects"] == len(pz[rows]))
        np.testing.assert_allclose(group["n_z"], pz[rows].mean(0), rtol=1e-3)
        error = pz[rows].std(0) / np.sqrt(len(pz[rows]))
        wide = error > 0.3 * error.max()
        np.testing.assert_allclose(group["n_z_std"][wide], error[wide], rtol=0.4)
