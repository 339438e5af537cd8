"""What scatter_vae reads: files, units, what is missing, what is wrong, and shards."""

import gzip
import json

import numpy as np
import pytest
import torch
from astropy.table import Table
from conftest import command, config, refusal, train

from orrery import pretrained
from orrery.checkpoint import RECORD, read_checkpoint
from orrery.datamodules.scatter_vae import ScatterVaeData
from orrery.datamodules.scatter_vae.convert import convert
from orrery.datamodules.scatter_vae.export import as_archived
from orrery.physics.gaia_xp import xp
from orrery.physics.gaia_xp.sampled import error_correlations
from orrery.physics.gaia_xp.xp_noise import pack, unpack
from orrery.tables import Writer, open_catalogue


@pytest.fixture
def few_stars(stars):
    """Twenty stars, to be changed."""
    return {name: np.array(values[:20]) for name, values in stars.items()}


def read(table, training=False, **settings):
    """The batch of a table, as predictions read it."""
    data = ScatterVaeData(**settings)
    data.table, data.split = table, "all"
    with data.open("test") as catalogue:
        roles = data.roles(catalogue, training)
        ((row, columns),) = data._read(catalogue, roles, 0, len(catalogue), None)
    return data._batch(row, columns, roles, training)


# --- data ---------------------------------------------------------------------------------------


def test_the_dimensions_are_those_of_the_file(stars, tmp_path):
    """51 BP coefficients, as DR4 will have, are read, trained on and predicted."""
    table = dict(stars)
    table["bp_coefficients"] = stars["bp_coefficients"][:, :51]
    table["bp_coefficient_errors"] = stars["bp_coefficient_errors"][:, :51]
    matrix = unpack(stars["bp_coefficient_correlations"].astype(float), 55)[:, :51, :51]
    table["bp_coefficient_correlations"] = pack(matrix).astype("f2")
    with Writer(tmp_path / "dr4.hdf5") as writer:
        writer.write(table)
    metrics = train(
        "scatter_vae", tmp_path / "run", f"data.path={tmp_path}/dr4.hdf5", "data.batch_size=64"
    )
    assert np.isfinite(metrics["nll"])
    record = read_checkpoint(tmp_path / "run/best.ckpt")[RECORD]
    assert record["config"]["model"]["bands"] == {"bp": 51, "rp": 55}
    predictor = pretrained.load(tmp_path / "run/best.ckpt")
    with pytest.raises(ValueError, match="55 numbers per star, expected 51"):
        predictor.predict({name: values[:3] for name, values in stars.items()})


def test_sampled_spectra_train_the_same_model(tmp_path):
    random = np.random.default_rng(0)
    shape = 1 + random.normal(size=(300, 2)) @ np.sin(np.outer([1, 2], np.linspace(0, 3, 40))) * 0.1
    error, wavelength = np.full_like(shape, 0.01), np.linspace(400, 900, 40)
    noise = random.multivariate_normal(np.zeros(40), error_correlations(wavelength), len(shape))
    flux = 1e-15 * (shape + error * noise)
    np.savez(tmp_path / "sampled.npz", flux=flux, flux_error=1e-15 * error, wavelength=wavelength)
    metrics = train(
        "scatter_vae",
        tmp_path / "run",
        f"data.path={tmp_path}/sampled.npz",
        "data.format=sampled",
        "model.epochs=20",
        "trainer.max_epochs=20",
        "data.batch_size=64",
    )
    assert 0.8 < metrics["chi2_median"] < 1.3 and metrics["pca6_chi2_median"] < 1.3
    model = pretrained.load(tmp_path / "run/best.ckpt")
    stars = {"flux": flux[:3], "flux_error": 1e-15 * error[:3]}
    with pytest.warns(
        UserWarning, match="taken to be at the model's wavelengths, 400 to 900 nm in 40"
    ):
        right = model.predict(stars)
    grid = np.tile(np.linspace(400, 900, 40), (3, 1))
    said = model.predict(stars | {"wavelength": grid})
    np.testing.assert_array_equal(right["chi2"], said["chi2"])
    with pytest.raises(
        ValueError, match=r"336 to 1020 nm in 40 samples are not.*row 1.*400 to 900"
    ):
        grid[1] = np.linspace(336, 1020, 40)
        model.predict(stars | {"wavelength": grid})


def test_a_flux_column_changes_the_units_and_not_the_reading(few_stars):
    theirs = read(few_stars)
    ours = read(few_stars, columns={"flux": "phot_g_mean_flux"})
    assert torch.equal(theirs["coefficients"], ours["coefficients"])
    np.testing.assert_allclose(ours["flux"], few_stars["phot_g_mean_flux"], rtol=1e-6)
    rp = few_stars["rp_coefficients"] @ xp.photons("rp")
    np.testing.assert_allclose(theirs["flux"], rp, rtol=1e-6)


def test_arrays_as_text_are_read(few_stars):
    texts = dict(
        as_archived({k: v.astype(float) if v.ndim > 1 else v for k, v in few_stars.items()})
    )
    ours, theirs = read(texts), read(few_stars)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6)


def numbered(table, first, stem="{}"):
    """A column per number, such as of Avro or a database, with the first number in its name."""
    flat = {}
    for name, values in table.items():
        if values.ndim == 1:
            flat[name] = values
            continue
        for i, column in enumerate(values.T):
            flat[f"{stem.format(name)}_{first + i}"] = column
    return flat


@pytest.mark.parametrize("first", [0, 1])
def test_a_column_per_coefficient_is_read(few_stars, first, tmp_path):
    few = {  # of 7 and 9 coefficients: nothing is known of their number
        name: values if values.ndim == 1 else values[:, : {"bp": 7, "rp": 9}[name[:2]]]
        for name, values in few_stars.items()
        if "correlations" not in name
    }
    settings = {"columns": {"flux": "phot_g_mean_flux"}, "correlations": "diagonal"}
    theirs = read(few, True, **settings)
    names = {f"{b}_coefficients": f"{b}_coeff" for b in xp.BANDS}
    flat = {names.get(name, name): values for name, values in few.items()}
    settings["columns"] |= names
    Table(numbered(flat, first)).write(tmp_path / "flat.csv")
    for table in (numbered(flat, first), Table.read(tmp_path / "flat.csv")):
        ours = read(table, True, **settings)
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6)
    table = numbered(flat, first)
    del table["bp_coeff_4"]
    with pytest.raises(ValueError, match=r"bp_coeff_.* are the numbers of an array, and number 4 "):
        read(table, True, **settings)


def test_wavelengths_of_gaiaxpys_own_ecsv_are_read(tmp_path):
    header = "# %ECSV 1.0\n# ---\n# delimiter: ','\n# datatype:\n"
    header += "# - {name: source_id, datatype: int64}\n"
    for name, kind in (("flux", "float64"), ("flux_error", "float32")):
        header += f"# - {{name: {name}, datatype: string, subtype: '{kind}[4]', "
        header += "unit: W.nm**-1.m**-2}\n"
    sampling = [400.0, 500.0, 600.0, 700.0]
    row = '"[1e-16, 2e-16, 2e-16, 2e-16]","[1e-18, 1e-18, 1e-18, 1e-18]"'
    (tmp_path / "xp.ecsv").write_text(
        f"{header}# meta:\n#   sampling: {sampling}\nsource_id,flux,flux_error\n"
        f"5853498713190525696,{row}\n5762406957886626816,{row}\n"
    )
    data = ScatterVaeData(path=str(tmp_path / "xp.ecsv"), format="sampled", split="all")
    (batch,) = data.prediction_batches()
    np.testing.assert_allclose(batch["coefficients"].numpy().ravel()[-1], 2e-16, rtol=1e-6)
    assert data.wavelengths == sampling


def test_simulated_stars_can_have_the_correlations_of_real_ones(few_stars, tmp_path):
    np.savez(tmp_path / "real.npz", **{k: v for k, v in few_stars.items() if "correlations" in k})
    data = ScatterVaeData(n_train=30, n_test=30, correlations_of=str(tmp_path / "real.npz"))
    table = data.simulate("test")
    for band in xp.BANDS:
        name = f"{band}_coefficient_correlations"
        known = {row.tobytes() for row in few_stars[name]}
        assert {row.tobytes() for row in table[name]} <= known


def test_units_are_read_and_others_refused(few_stars):
    table = Table(few_stars)
    for name in table.colnames:
        if name.endswith(("coefficients", "errors")):
            table[name] = (table[name] / 1000).astype(float)
            table[name].unit = "1000 electron / s"
    torch.testing.assert_close(read(table)["coefficients"], read(few_stars)["coefficients"])
    table["bp_coefficients"].unit = "mJy"
    with pytest.raises(ValueError, match="mJy"):
        read(table)


def test_a_file_of_rp_alone_is_of_stars_without_bp(few_stars):
    table = {name: values for name, values in few_stars.items() if not name.startswith("bp")}
    with pytest.warns(UserWarning, match="no BP"):
        batch = read(table, bands={"bp": 55, "rp": 55})
    assert batch["observed"].tolist() == [[0.0, 1.0]] * 20
    assert batch["coefficients"].shape == (20, 110)


def test_sampled_spectra_are_not_taken_for_coefficients():
    with pytest.raises(ValueError, match="holds sampled spectra"):
        read({"flux": np.ones((3, 343)), "flux_error": np.ones((3, 343))})


def test_a_star_does_not_depend_on_its_neighbours(runs, stars):
    """Those without BP are fitted with more steps than those beside them."""
    model = pretrained.load(runs("scatter_vae") / "best.ckpt")
    mixed = {name: np.array(values[:6], float if "source" not in name else None)
             for name, values in stars.items()}  # fmt: skip
    for name in ("s", "_errors", "_correlations"):
        mixed[f"bp_coefficient{name}"][[1, 4]] = np.nan
    together = model.predict(mixed)
    for i in range(6):
        alone = model.predict({name: values[i : i + 1] for name, values in mixed.items()})
        np.testing.assert_allclose(alone["chi2"][0], together["chi2"][i], rtol=1e-3)


def test_zeros_of_a_truncated_star_are_not_data(few_stars):
    few_stars["rp_coefficients"][4, 20:] = 0
    with pytest.raises(ValueError, match=r"'rp_coefficients': 0.0 is the last.*truncated.*row 4"):
        read(few_stars)


def test_a_catalogue_without_any_bp_is_predicted_and_scored(runs, few_stars, tmp_path):
    for name in few_stars:
        if name.startswith("bp_"):
            few_stars[name][:] = np.nan
    Table(few_stars).write(tmp_path / "rp.fits")
    words = [f"checkpoint={runs('scatter_vae')}/best.ckpt", f"data.path={tmp_path}/rp.fits"]
    done = command(
        "evaluate.py", *words, f"output={tmp_path}/out.fits", f"hydra.run.dir={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    assert "no_bp 100%" in done.stdout and (tmp_path / "report.html").exists()


def test_without_correlations_there_is_a_warning(few_stars):
    table = {name: v for name, v in few_stars.items() if not name.endswith("correlations")}
    with pytest.warns(UserWarning, match="taken as uncorrelated"):
        batch = read(table)
    assert "correlations_bp" not in batch


# --- bad input ----------------------------------------------------------------------------------


def set_value(name, rows, value):
    def change(table):
        table[name] = table[name].astype(float)
        table[name][rows] = value
        return table

    return change


def cut(name, size):
    def change(table):
        table[name] = table[name][:, :size]
        return table

    return change


def not_positive_definite(table):
    packed = table["rp_coefficient_correlations"].astype(float)
    packed[3, :3] = 0.9, 0.9, -0.9
    table["rp_coefficient_correlations"] = packed
    return table


def row_major(table):
    matrix = unpack(table["bp_coefficient_correlations"].astype(float), 55)
    rows, columns = np.triu_indices(55, 1)
    table["bp_coefficient_correlations"] = matrix[:, rows, columns]
    return table


@pytest.mark.parametrize(
    "change, message",
    [
        (cut("bp_coefficient_correlations", 1400), "1400 numbers per star, expected 1485"),
        (not_positive_definite, r"rp_coefficient_correlations.*not positive definite: rows 3"),
        (set_value("rp_coefficient_correlations", (2, 7), 1.5), "1.5 is not a valid correlation"),
        (set_value("rp_coefficients", 4, np.nan), "a star without RP"),
        (set_value("bp_coefficients", (4, 6), np.nan), "NaN or impossible"),
        (set_value("rp_coefficients", (4, 6), np.inf), "NaN or impossible"),
        (set_value("bp_coefficient_errors", (4, 6), 0.0), "0.0 is not a valid error"),
        (set_value("bp_coefficient_errors", (4, 6), np.nan), "is not a valid error"),
        (cut("bp_coefficient_errors", 51), "51 numbers per star, expected 55"),
        (set_value("rp_coefficients", (5, slice(None)), -1e6), "is not a valid flux of a star"),
        (row_major, "ordered by rows"),
    ],
)
def test_bad_rows_are_refused(few_stars, change, message):
    with pytest.raises(ValueError, match=message):
        read(change(few_stars))


@pytest.mark.parametrize("flux", [0.0, -3.0, np.nan])
def test_a_flux_that_divides_nothing_is_refused(few_stars, flux):
    few_stars["phot_g_mean_flux"][2] = flux
    with pytest.raises(ValueError, match="is not a valid flux to divide by"):
        read(few_stars, columns={"flux": "phot_g_mean_flux"})


def test_a_star_twice_in_the_training_set_is_refused(few_stars, tmp_path):
    few_stars["source_id"][7] = few_stars["source_id"][3]
    with Writer(tmp_path / "twice.hdf5") as writer:
        writer.write(few_stars)
    data = ScatterVaeData(path=str(tmp_path / "twice.hdf5"))
    with pytest.raises(ValueError, match="source ids occur more than once"):
        data.setup("fit")


def test_a_truncated_bulk_file_is_refused_with_a_message(runs, few_stars, tmp_path):
    texts = as_archived({k: v.astype(float) if v.ndim > 1 else v for k, v in few_stars.items()})
    Table(texts).write(tmp_path / "xp.csv")
    compressed = gzip.compress((tmp_path / "xp.csv").read_bytes())
    (tmp_path / "cut.csv.gz").write_bytes(compressed[: len(compressed) // 2])
    done = command(
        "evaluate.py",
        f"checkpoint={runs('scatter_vae')}/best.ckpt",
        f"data.path={tmp_path}/cut.csv.gz",
        f"output={tmp_path}/out.hdf5",
    )
    assert "truncated" in refusal(done)


@pytest.mark.parametrize(
    "setting", ["model.preset=papers", "model.covariance=fulll", "data.format=spectra"]
)
def test_a_setting_that_is_not_known_names_those_that_are(setting, tmp_path):
    plain = config("scatter_vae", tmp_path, setting)
    from orrery.train import train as run

    with pytest.raises(ValueError, match="it is one of"):
        run(plain, [])


# --- shards -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(stars, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for i in range(2):
        part = {name: values[i::2] for name, values in stars.items()}
        part["source_id"] = np.arange(150) * 2**40 + i * 2**50 + 1
        with Writer(folder / f"bulk{i}.hdf5") as writer:
            writer.write(part)
    convert(sorted(folder.glob("bulk*")), folder / "xp")
    return folder / "xp"


def test_training_streams_shards_and_resumes_bit_for_bit(shards, tmp_path):
    path = [f"data.path={shards}/*.h5", "data.batch_size=32"]
    train("scatter_vae", tmp_path / "one", *path)
    train("scatter_vae", tmp_path / "two", *path, "trainer.max_epochs=1")
    train("scatter_vae", tmp_path / "two", f"checkpoint={tmp_path}/two/last.ckpt")
    one, two = (read_checkpoint(tmp_path / run / "last.ckpt") for run in ("one", "two"))
    for name, values in one["state_dict"].items():
        assert torch.equal(values, two["state_dict"][name]), name
    record = one[RECORD]["data"]
    assert record["shards"] == 2 and record["rows"] == 300


def test_a_pattern_of_shards_is_predicted_in_row_order(shards, runs, tmp_path):
    done = command(
        "evaluate.py",
        f"checkpoint={runs('scatter_vae')}/best.ckpt",
        f"data.path={shards}/*.h5",
        f"output={tmp_path}/xp.hdf5",
        "data.keep=[source_id]",
        f"hydra.run.dir={tmp_path}/run",
    )
    assert done.returncode == 0, done.stderr
    with open_catalogue(tmp_path / "xp.hdf5") as catalogue:
        (chunk,) = catalogue.chunks(["source_id", "chi2"])
    assert len(chunk["chi2"]) == 300 and (np.diff(chunk["source_id"]) > 0).all()
    assert json.loads((tmp_path / "run/metrics.json").read_text())["n"] == 300
