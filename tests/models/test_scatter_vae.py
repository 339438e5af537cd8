"""What is special to scatter_vae: spectra without BP, its files, its posterior, its scatter."""

import numpy as np
import pytest
import torch
from astropy.table import Table
from conftest import command, train
from scipy.stats import chi2
from torch.distributions import MultivariateNormal

from orrery import pretrained
from orrery.checkpoint import build
from orrery.datamodules.dataset import GenerationRequest
from orrery.evaluation.evaluate import generate
from orrery.models.scatter_vae import evaluation
from orrery.models.scatter_vae.inference import Whitening, log_tail, posterior
from orrery.models.scatter_vae.networks import PaperVAE
from orrery.models.scatter_vae.spectra import Spectra
from orrery.physics.gaia_xp import xp
from orrery.physics.gaia_xp.xp_noise import unpack
from orrery.tables import open_catalogue

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
    assert found.n_fitted()[0] == pytest.approx(
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


def test_errors_of_spectra_are_those_of_the_full_covariance(stars):
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
    network = PaperVAE(110, 6)
    sizes = [
        (m.in_features, m.out_features) for m in network.encoder if isinstance(m, torch.nn.Linear)
    ]
    assert sizes == [(110, 90), (90, 70), (70, 50), (50, 30), (30, 10)]
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in network.encoder) == 5
    up = [
        (m.in_features, m.out_features) for m in network.decoder if isinstance(m, torch.nn.Linear)
    ]
    assert up == [(6, 10), (10, 30), (30, 50), (50, 70), (70, 90), (90, 110)]
    assert 0 < float(network.eval().intrinsic_scatter(torch.zeros(1, 6)).min()) < 1


@pytest.mark.parametrize(
    "overrides",
    [["model.preset=paper"], ["model.covariance=lowrank"], ["model.covariance=diagonal"]],
)
def test_every_covariance_and_preset_trains(overrides, tmp_path):
    metrics = train("scatter_vae", tmp_path, *overrides, "data.n_train=600", "data.n_test=100")
    assert all(np.isfinite(value) for value in metrics.values())


def test_a_star_without_bp_gets_one(runs, stars, tmp_path):
    model = pretrained.load(runs("scatter_vae") / "best.ckpt")
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


def test_an_odd_star_has_a_high_outlier_score(runs, stars):
    model = pretrained.load(runs("scatter_vae") / "best.ckpt")
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
    (sentence,) = evaluation.warnings(rows, 6)
    assert "2 of 6 latent numbers" in sentence and "model.latent=4" in sentence


def test_generated_stars_are_like_those_of_the_training_set(runs):
    model = pretrained.load(runs("scatter_vae") / "best.ckpt")
    made = model.generate(50, seed=1)
    assert made["spectrum"].shape == (50, 343) and (made["coefficients"][:, 55] > 0).all()
    near = made["latent"][0]
    around = model.generate(20, near=near, spread=0.1)["latent"]
    assert np.abs(around - near).max() < np.abs(made["latent"] - near).max()
    assert model.generate(7, near="prior")["latent"].shape == (7, 6)


def test_generated_stars_are_written_in_chunks_with_their_units(tmp_path, monkeypatch):
    monkeypatch.setattr("orrery.models.scatter_vae.generation.GENERATED_PER_CHUNK", 4)
    model = pretrained.load("scatter_vae")
    output = tmp_path / "mock.fits"
    generate(model, GenerationRequest(n=10), "", str(output), ["latent", "spectrum"])
    table = Table.read(output)
    assert table.colnames == ["latent", "spectrum"] and table["spectrum"].unit == "W nm-1 m-2"
    assert table["spectrum"].shape == (10, 343)
    assert len(np.unique(np.array(table["latent"])[:, 0])) > 5, "chunks differ"
    again = np.concatenate([rows["latent"] for rows in model.generated(GenerationRequest(n=10))])
    np.testing.assert_array_equal(table["latent"], again)
    other = next(model.generated(GenerationRequest(n=10, seed=1)))["latent"]
    assert not np.array_equal(other, again[:4])


def test_generated_stars_are_a_command(tmp_path):
    words = ["evaluate.py", "checkpoint=scatter_vae", "data=xp_generated", "data.n=30"]
    run = f"hydra.run.dir={tmp_path}/run"
    done = command(*words, f"output={tmp_path}/mock.hdf5", run)
    assert done.returncode == 0 and "30 generated objects: " in done.stdout, done.stderr
    with open_catalogue(tmp_path / "mock.hdf5") as catalogue:
        assert {"latent", "coefficients", "scatter", "spectrum"} <= set(catalogue.names)
        assert len(catalogue) == 30
    for changed, message in (
        ([], "generated objects need a file: output=<file>"),
        (["columns=[spectra]", f"output={tmp_path}/a.fits"], "no output 'spectra'; there are"),
        ([f"output={tmp_path}/a.csv"], "a vector per object, which CSV cannot hold"),
        (["data.n=0", f"output={tmp_path}/a.fits"], "data.n is 0; expected 1 or more"),
        (["checkpoint=zephyr", f"output={tmp_path}/a.fits"], "zephyr draws no objects"),
    ):
        done = command(*words, *changed, run)
        assert done.returncode == 2 and message in done.stderr, done.stderr


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


def test_figure_data_that_fail_cost_no_metrics(runs, monkeypatch):
    def fails(_):
        raise ValueError("no spectra")

    model = pretrained.load(runs("scatter_vae") / "best.ckpt")
    data = build(model.record["config"]["data"])
    monkeypatch.setattr(model, "generate", fails)
    with (
        torch.inference_mode(),
        pytest.warns(UserWarning, match=r"generated\.png could not be made: .*no spectra"),
    ):
        metrics, figures = evaluation.compare(model, data)
    assert "pca6_nll" in metrics and list(figures) == ["latent", "scatter"]
