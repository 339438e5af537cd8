"""What is special to scatter_vae: spectra without BP, its files, its posterior, its scatter."""

import gzip
import json

import numpy as np
import pytest
import torch
from astropy.table import Table
from conftest import command, config, refusal, train
from scipy.stats import chi2
from torch.distributions import MultivariateNormal

import zoo
from datamodules.catalogue import Writer, open_catalogue
from datamodules.scatter_vae import ScatterVaeData
from datamodules.xp_convert import convert
from datamodules.xp_export import as_archived
from models.checkpoint import RECORD, read_checkpoint
from models.scatter_vae import scores
from models.scatter_vae.networks import Published
from models.scatter_vae.posterior import Whitening, log_tail, posterior
from models.scatter_vae.spectra import Spectra
from physics import xp, xp_mock
from physics.xp_noise import pack, unpack

COLUMNS = (
    "source_id",
    "phot_g_mean_flux",
    *(f"{b}_coefficient{x}" for b in xp.BANDS for x in ("s", "_errors", "_correlations")),
)


@pytest.fixture(scope="module")
def stars():
    """The archive's columns of 300 simulated stars."""
    table = xp_mock.simulate(300, np.random.default_rng(5))
    return {name: table[name] for name in COLUMNS}


@pytest.fixture
def some(stars):
    """Twenty of them, to be spoilt."""
    return {name: np.array(values[:20]) for name, values in stars.items()}


def read(table, training=False, **settings):
    """The batch of a table, as predictions read it."""
    data = ScatterVaeData(**settings)
    data.table, data.split = table, "all"
    with data.open("test") as catalogue:
        roles = data.roles(catalogue, training)
        ((row, columns),) = data._read(catalogue, roles, 0, len(catalogue), None)
    return data._batch(row, columns, training)


# --- the posterior ------------------------------------------------------------------------------


def test_a_linear_model_has_the_posterior_of_linear_regression():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 3, generator=generator)
    y, error = torch.randn(5, 12, generator=generator), torch.full((5, 12), 0.3)
    batch = {"observed": torch.ones(5, 1)}
    found = posterior(
        torch.zeros(5, 3),
        lambda z: z @ matrix.T,
        y,
        error,
        lambda z: Whitening(torch.full((5, 12), 0.5), batch, {"x": 12}),
        steps=8,
    )
    variance = 0.3**2 * 1.5
    precision = torch.eye(3) + matrix.T @ matrix / variance
    mean = torch.linalg.solve(precision, matrix.T @ y.T / variance).T
    torch.testing.assert_close(found.mean, mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.covariance[0], torch.linalg.inv(precision))
    assert found.fitted()[0] == pytest.approx(
        float(
            torch.trace(
                torch.eye(12)
                - variance * torch.linalg.inv(variance * torch.eye(12) + matrix @ matrix.T)
            )
        ),
        rel=1e-3,
    )
    prior = MultivariateNormal(torch.zeros(3), torch.eye(3))
    theirs = torch.distributions.kl_divergence(
        MultivariateNormal(found.mean[0], found.covariance[0]), prior
    )
    assert float(found.divergence(3)[0]) == pytest.approx(float(theirs), rel=1e-4)


def test_a_missing_band_leaves_the_posterior_of_the_other():
    matrix = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    y = torch.ones(1, 12)
    both = {"a": 7, "b": 5}

    def fit(observed, y, sizes, m):
        batch = {"observed": torch.tensor([observed])}
        t = torch.zeros_like(y)
        return posterior(
            torch.zeros(1, 3),
            lambda z: z @ m.T,
            y,
            torch.ones_like(y),
            lambda z: Whitening(t, batch, sizes),
            steps=6,
        )

    without = fit([0.0, 1.0], torch.where(torch.arange(12) < 7, 0.0, y), both, matrix)
    alone = fit([1.0], y[:, 7:], {"b": 5}, matrix[7:])
    torch.testing.assert_close(without.mean, alone.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(without.covariance, alone.covariance, rtol=1e-4, atol=1e-5)


def test_a_tail_is_right_where_it_underflows():
    dof = torch.tensor([104.0])
    near = log_tail(torch.tensor([300.0]), dof)
    assert float(near) == pytest.approx(float(chi2.logsf(300, 104)), rel=1e-3)
    assert float(log_tail(torch.tensor([900.0]), dof)) == pytest.approx(
        chi2.logsf(900, 104), rel=0.02
    )
    far = [float(log_tail(torch.tensor([x]), dof)) for x in (300.0, 400.0, 600.0, 5000.0)]
    assert np.all(np.diff(far) < 0) and np.isfinite(far).all()


# --- spectra ------------------------------------------------------------------------------------


def test_errors_of_spectra_are_those_of_the_whole_covariance(stars):
    spectra = Spectra(xp.SAMPLED)
    errors = np.concatenate([stars[f"{b}_coefficient_errors"][:6] for b in xp.BANDS], 1)
    packed = {b: torch.from_numpy(stars[f"{b}_coefficient_correlations"][:6]) for b in xp.BANDS}
    ours = spectra.error(torch.from_numpy(errors).float(), packed).numpy()
    variance = 0
    for band, e in zip(xp.BANDS, np.split(errors, 2, 1), strict=True):
        a = xp.sampling(band, xp.SAMPLED) * xp.overlap(band, xp.SAMPLED)
        r = unpack(packed[band].numpy().astype(float), 55)
        variance = variance + np.einsum("nk,bn,bnm,bm,mk->bk", a, e, r, e, a, optimize=True)
    np.testing.assert_allclose(ours, np.sqrt(variance), rtol=1e-3)


def test_wavelengths_outside_the_instrument_are_refused():
    with pytest.raises(ValueError, match="330 to 1020 nm; wavelengths from 300"):
        Spectra([300.0, 400.0])


# --- the model ----------------------------------------------------------------------------------


def test_the_published_network_has_its_published_size():
    network = Published(110, 6)
    sizes = [
        (m.in_features, m.out_features) for m in network.encoder if isinstance(m, torch.nn.Linear)
    ]
    assert sizes == [(110, 90), (90, 70), (70, 50), (50, 30), (30, 10)]
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in network.encoder) == 5
    up = [
        (m.in_features, m.out_features) for m in network.decoder if isinstance(m, torch.nn.Linear)
    ]
    assert up == [(6, 10), (10, 30), (30, 50), (50, 70), (70, 90), (90, 110)]
    assert 0 < float(network.eval().spread(torch.zeros(1, 6)).min()) < 1


@pytest.mark.parametrize(
    "overrides",
    [["model.preset=paper"], ["model.covariance=lowrank"], ["model.covariance=diagonal"]],
)
def test_every_covariance_and_preset_trains(overrides, tmp_path):
    metrics = train("scatter_vae", tmp_path, *overrides, "data.n_train=600", "data.n_test=100")
    assert all(np.isfinite(value) for value in metrics.values())


def test_a_star_without_bp_gets_one(runs, stars, tmp_path):
    model = zoo.load(runs("scatter_vae") / "best.ckpt")
    blind = {name: np.array(values) for name, values in stars.items()}
    for name in ("s", "_errors", "_correlations"):
        blind[f"bp_coefficient{name}"] = blind[f"bp_coefficient{name}"].astype(float)
        blind[f"bp_coefficient{name}"][:] = np.nan
    found = model.predict(blind)
    assert (found["flags"] & 1).all() and np.isfinite(found["spectrum"]).all()
    seen = model.predict(stars)
    assert not (seen["flags"] & 1).any()
    # RP alone leaves z wider
    assert np.median(found["latent_log_variance"] - seen["latent_log_variance"]) > 0.1
    assert (found["dof"] < 55).all() and (seen["dof"] > 100).all()


def test_an_odd_star_is_told_from_the_others(runs, stars):
    model = zoo.load(runs("scatter_vae") / "best.ckpt")
    odd = {name: np.array(values) for name, values in stars.items()}
    odd["bp_coefficients"][:5] = odd["bp_coefficients"][:5, ::-1]  # no star's
    score = np.asarray(model.predict(odd)["outlier_score"])
    assert score[:5].min() > np.median(score[5:])
    assert (np.asarray(model.predict(odd)["p_value"])[:5] < 1e-4).all()


def test_a_latent_number_that_says_nothing_is_reported():
    rows = {
        "latent_mean": np.random.default_rng(0).normal(size=(50, 6)) * [1, 1, 1, 1, 0.01, 0.01],
        "p_value": np.full(50, 0.5),
        "flags": np.zeros(50, int),
    }
    (said,) = scores.remarks(rows, 6)
    assert "2 of 6 latent numbers" in said and "model.latent=4" in said


def test_generated_stars_are_like_those_of_the_training_set(runs):
    model = zoo.load(runs("scatter_vae") / "best.ckpt")
    made = model.generate(50, seed=1)
    assert made["spectrum"].shape == (50, 343) and (made["coefficients"][:, 55] > 0).all()
    near = made["latent"][0]
    around = model.generate(20, near=near, spread=0.1)["latent"]
    assert np.abs(around - near).max() < np.abs(made["latent"] - near).max()
    assert model.generate(7, near="prior")["latent"].shape == (7, 6)


def test_wavelengths_are_the_users(runs, tmp_path):
    checkpoint = f"checkpoint={runs('scatter_vae')}/best.ckpt"
    done = command(
        "evaluate.py",
        checkpoint,
        f"output={tmp_path}/xp.hdf5",
        "data.n_test=20",
        "model.wavelengths=[400,700,10]",
        f"hydra.run.dir={tmp_path}/run",
    )
    assert done.returncode == 0, done.stderr
    with open_catalogue(tmp_path / "xp.hdf5") as catalogue:
        (chunk,) = catalogue.chunks(["spectrum", "spectrum_error"])
    assert chunk["spectrum"].shape == (20, 31) and (chunk["spectrum_error"] > 0).all()


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
    predictor = zoo.load(tmp_path / "run/best.ckpt")
    with pytest.raises(ValueError, match="55 numbers per star, expected 51"):
        predictor.predict({name: values[:3] for name, values in stars.items()})


def test_sampled_spectra_train_the_same_model(tmp_path):
    random = np.random.default_rng(0)
    shape = 1 + random.normal(size=(300, 2)) @ np.sin(np.outer([1, 2], np.linspace(0, 3, 40))) * 0.1
    error = np.full_like(shape, 0.01)
    flux = 1e-15 * (shape + error * random.normal(size=shape.shape))
    np.savez(
        tmp_path / "sampled.npz",
        flux=flux,
        flux_error=1e-15 * error,
        wavelength=np.linspace(400, 900, 40),
    )
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


def test_a_flux_column_changes_the_units_and_not_the_reading(some):
    theirs = read(some)
    ours = read(some, columns={"flux": "phot_g_mean_flux"})
    assert torch.equal(theirs["coefficients"], ours["coefficients"])
    np.testing.assert_allclose(ours["flux"], some["phot_g_mean_flux"], rtol=1e-6)
    rp = some["rp_coefficients"] @ xp.photons("rp")
    np.testing.assert_allclose(theirs["flux"], rp, rtol=1e-6)


def test_arrays_as_text_are_read(some):
    texts = dict(as_archived({k: v.astype(float) if v.ndim > 1 else v for k, v in some.items()}))
    ours, theirs = read(texts), read(some)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6)


def test_simulated_stars_can_have_the_correlations_of_real_ones(some, tmp_path):
    np.savez(tmp_path / "real.npz", **{k: v for k, v in some.items() if "correlations" in k})
    data = ScatterVaeData(n_train=30, n_test=30, correlations_of=str(tmp_path / "real.npz"))
    table = data.simulate("test")
    for band in xp.BANDS:
        name = f"{band}_coefficient_correlations"
        known = {row.tobytes() for row in some[name]}
        assert {row.tobytes() for row in table[name]} <= known


def test_units_are_read_and_others_refused(some):
    table = Table(some)
    for name in table.colnames:
        if name.endswith(("coefficients", "errors")):
            table[name] = (table[name] / 1000).astype(float)
            table[name].unit = "1000 electron / s"
    torch.testing.assert_close(read(table)["coefficients"], read(some)["coefficients"])
    table["bp_coefficients"].unit = "mJy"
    with pytest.raises(ValueError, match="mJy"):
        read(table)


def test_a_file_of_rp_alone_is_of_stars_without_bp(some):
    table = {name: values for name, values in some.items() if not name.startswith("bp")}
    with pytest.warns(UserWarning, match="no BP"):
        batch = read(table, bands={"bp": 55, "rp": 55})
    assert batch["observed"].tolist() == [[0.0, 1.0]] * 20
    assert batch["coefficients"].shape == (20, 110)


def test_sampled_spectra_are_not_taken_for_coefficients():
    with pytest.raises(ValueError, match="holds sampled spectra"):
        read({"flux": np.ones((3, 343)), "flux_error": np.ones((3, 343))})


def test_a_star_does_not_depend_on_its_neighbours(runs, stars):
    """Those without BP are fitted with more steps than those beside them."""
    model = zoo.load(runs("scatter_vae") / "best.ckpt")
    mixed = {name: np.array(values[:6], float if "source" not in name else None)
             for name, values in stars.items()}  # fmt: skip
    for name in ("s", "_errors", "_correlations"):
        mixed[f"bp_coefficient{name}"][[1, 4]] = np.nan
    together = model.predict(mixed)
    for i in range(6):
        alone = model.predict({name: values[i : i + 1] for name, values in mixed.items()})
        np.testing.assert_allclose(alone["chi2"][0], together["chi2"][i], rtol=1e-3)


def test_without_correlations_a_user_is_told(some):
    table = {name: v for name, v in some.items() if not name.endswith("correlations")}
    with pytest.warns(UserWarning, match="taken as uncorrelated"):
        batch = read(table)
    assert "correlations_bp" not in batch


# --- bad input ----------------------------------------------------------------------------------


def spoil(name, rows, value):
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
        (spoil("rp_coefficient_correlations", (2, 7), 1.5), "1.5 is a correlation"),
        (spoil("rp_coefficients", 4, np.nan), "a star without RP"),
        (spoil("bp_coefficients", (4, 6), np.nan), "NaN or inf"),
        (spoil("rp_coefficients", (4, 6), np.inf), "NaN or inf"),
        (spoil("bp_coefficient_errors", (4, 6), 0.0), "0.0 is an error of a star"),
        (spoil("bp_coefficient_errors", (4, 6), np.nan), "is an error of a star"),
        (cut("bp_coefficient_errors", 51), "51 numbers per star, expected 55"),
        (spoil("rp_coefficients", (5, slice(None)), -1e6), "is the flux of a star"),
        (row_major, "ordered by rows"),
    ],
)
def test_bad_rows_are_refused(some, change, message):
    with pytest.raises(ValueError, match=message):
        read(change(some))


@pytest.mark.parametrize("flux", [0.0, -3.0, np.nan])
def test_a_flux_that_divides_nothing_is_refused(some, flux):
    some["phot_g_mean_flux"][2] = flux
    with pytest.raises(ValueError, match="is the flux of a star"):
        read(some, columns={"flux": "phot_g_mean_flux"})


def test_a_star_twice_in_the_training_set_is_refused(some, tmp_path):
    some["source_id"][7] = some["source_id"][3]
    with Writer(tmp_path / "twice.hdf5") as writer:
        writer.write(some)
    data = ScatterVaeData(path=str(tmp_path / "twice.hdf5"))
    with pytest.raises(ValueError, match="source ids occur more than once"):
        data.setup("fit")


def test_a_truncated_bulk_file_is_a_message_at_the_door(runs, some, tmp_path):
    texts = as_archived({k: v.astype(float) if v.ndim > 1 else v for k, v in some.items()})
    Table(texts).write(tmp_path / "xp.csv")
    whole = gzip.compress((tmp_path / "xp.csv").read_bytes())
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
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
    from train import train as run

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
