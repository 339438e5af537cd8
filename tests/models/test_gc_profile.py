"""Binned profiles of a cluster: files as GCfit's, the likelihood, a mock with known truth."""

import re

import h5py
import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.table import QTable, Table, vstack
from conftest import ROOT, command
from example_files import add, cluster_file

from orrery import load
from orrery.datamodules.gc_emulator.profile import GCProfile
from orrery.models.gc_emulator.goodness_of_fit import description, goodness_of_fit
from orrery.models.gc_emulator.profiles import ProfilesPosterior
from orrery.physics.clusters import lowered_isothermal as limepy
from orrery.physics.clusters.cluster_profiles import (
    Profile,
    model_profile,
    project_physical,
    projected_radius,
)

D = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:not used of", "ignore:the error of the distance")
TRUTH = {"W0": 7.0, "g": 1.4, "log10_mass": 5.6, "log10_rh": 0.7, "distance": 5.0}
TUC = ROOT.parent / "shared/data/gc/NGC0104.hdf"


@pytest.fixture(scope="module")
def model():
    return load("gc_emulator").requires_grad_(False)


def test_a_file_is_read_in_its_units_and_after_its_background(tmp_path):
    with pytest.warns(UserWarning, match="mass_function, pulsar"):
        data = GCProfile(path=str(cluster_file(tmp_path / "a.hdf")))
        profiles = {profile.name: profile for profile in data.profiles()}
    assert {name: profile.kind for name, profile in profiles.items()} == {
        "number_density": "density",
        "velocity_dispersion_keck": "los",
        "proper_motion_hubble_R": "radial",
        "proper_motion_hubble_T": "tangential",  # and no total: it is not independent
    }
    for profile in profiles.values():
        np.testing.assert_allclose(profile.r, [0.1, 0.5, 2, 8])
    np.testing.assert_allclose(profiles["number_density"].value, [99.5, 79.5, 19.5, 0.5])
    np.testing.assert_allclose(profiles["proper_motion_hubble_R"].value, 0.4)
    np.testing.assert_allclose(profiles["velocity_dispersion_keck"].down, 0.4)
    np.testing.assert_allclose(profiles["velocity_dispersion_keck"].up, 0.5)
    with pytest.warns(UserWarning, match="error of the distance"):
        assert data.distance_prior() == (5.0, pytest.approx(0.1))


@pytest.mark.parametrize("left", ["number_density", "proper_motion", "velocity_dispersion"])
def test_one_group_is_enough(left, tmp_path, model):
    path = cluster_file(tmp_path / "a.hdf")
    with h5py.File(path, "a") as file:
        for name in {"number_density", "proper_motion", "velocity_dispersion"} - {left}:
            del file[name]
        file[left].attrs.pop("background", None)
    data = GCProfile(path=str(path), distance_error=0.1)
    posterior = ProfilesPosterior(model.emulator, data.profiles(), data.distance_prior())
    u = next(posterior.candidates())
    assert ("log10_extra" in posterior.named(u)) == (left == "number_density")
    assert bool(posterior.log_prob(u).isfinite().all())


def test_a_figure_that_fails_costs_no_draws(tmp_path, model, monkeypatch):
    def fails(*_):
        raise ValueError("no band")

    data = GCProfile(path=str(cluster_file(tmp_path / "a.hdf")), distance_error=0.1)
    posterior = ProfilesPosterior(model.emulator, data.profiles(), data.distance_prior())
    monkeypatch.setitem(goodness_of_fit.__globals__, "_figure", fails)
    u = next(posterior.candidates())[:, None, :20]
    with pytest.warns(UserWarning, match=r"profiles\.png could not be made: ValueError: no band"):
        fit = goodness_of_fit(posterior, u, 0)
    assert fit.figure == {} and "chi2" in fit.metrics and fit.groups


@pytest.mark.parametrize("off", [1.0, 1.6])
def test_p_values_say_which_profiles_a_model_does_not_describe(off, model):
    data = GCProfile(truth=TRUTH)
    profiles = [
        p if p.kind == "density" else p._replace(value=off ** (p.r / p.r.max()) * p.value)
        for p in data.profiles()
    ]
    posterior = ProfilesPosterior(model.emulator, profiles, data.distance_prior())
    truth = {name: torch.tensor([[[value]]], dtype=torch.float64) for name, value in TRUTH.items()}
    u = posterior.whitened(truth | {"log10_extra": torch.full((1, 1, 1), -2.0).double()})
    metrics = goodness_of_fit(posterior, u.expand(1, 2, 8, -1), 0).metrics
    text, describes = description(metrics, "profiles")
    assert metrics["p_density"] > 0.001 and describes == (off == 1)
    assert (metrics["p_dispersion"] > 0.001) == (off == 1)
    assert text.startswith("posterior predictive p-value of the number density 0.")


def test_a_data_set_left_out_may_be_bad(tmp_path):
    path = cluster_file(tmp_path / "a.hdf")
    with h5py.File(path, "a") as file:
        file["velocity_dispersion/keck/σ"][1] = np.nan
    data = GCProfile(path=str(path), exclude=["velocity_dispersion/keck"])
    assert len(data.profiles()) == 3
    with pytest.raises(ValueError, match="no data set 'keck'"):
        GCProfile(path=str(path), exclude=["keck"]).profiles()


def keck(name, change):
    def of(file):
        change(file["velocity_dispersion/keck"], name)

    return of


@pytest.mark.parametrize(
    "change, message",
    [
        (
            keck("σ", lambda g, n: g[n].__setitem__(1, np.nan)),
            "keck/σ': nan is not a finite number",
        ),
        (keck("Δσ,up", lambda g, n: g[n].__setitem__(1, -1)), "keck/Δσ,up': -1.0 is negative"),
        (keck("Δσ,up", lambda g, n: g[n].__setitem__(1, 0)), "would have infinite weight"),
        (keck("Δσ,up", lambda g, n: g.__delitem__(n)), "keck has no errors of σ: expected 'Δσ'"),
        (keck("r", lambda g, n: g.__delitem__(n)), "keck has no 'r'"),
        (keck("r", lambda g, n: g[n].__setitem__(0, -1)), "keck/r': -1.0 is negative"),
        (keck("σ", lambda g, n: g.__delitem__(n)), "expected σ: leave it out by data.exclude"),
        (keck("σ", lambda g, n: g[n].attrs.clear()), "keck/σ has no attribute 'unit'"),
        (keck("σ", lambda g, n: add(g, n, g[n][()], "mas/yr")), "keck/σ is in 'mas/yr'"),
        (keck("σ", lambda g, n: add(g, n, g[n][()], "furlong")), "keck/σ is in 'furlong'"),
        (keck("r", lambda g, n: add(g, n, g[n][()], "pc")), "keck/r is in 'pc'"),
        (keck("σ", lambda g, n: add(g, n, g[n][:2], "km/s")), r"keck/σ is of shape \(2,\)"),
        (lambda f: f["number_density"].attrs.modify("background", np.nan), "background is nan"),
        (lambda f: f["initials"].attrs.modify("d", -3.0), "is -3.0; expected kpc"),
        (
            lambda f: [f.__delitem__(k) for k in list(f) if k not in ("pulsar", "initials")],
            "has no profiles to fit; expected one of the groups number_density",
        ),
    ],
)
def test_bad_files_are_refused(change, message, tmp_path):
    path = cluster_file(tmp_path / "a.hdf")
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(ValueError, match=message):
        GCProfile(path=str(path)).profiles()


SPEEDS = {  # those of `cluster_file`
    "r": [0.1, 0.5, 2, 8], "los": [9.0, 9, 8, 6], "los_error_up": np.full(4, 0.5),
    "los_error_down": np.full(4, 0.4),
}  # fmt: skip
MINE = {"r": "R", "los": "sigma", "los_error_up": "e_up", "los_error_down": "e_down"}


@pytest.mark.filterwarnings("ignore:.*columns without a unit")
def test_tables_give_the_profiles_of_the_hdf_file(tmp_path):
    hdf = GCProfile(path=str(cluster_file(tmp_path / "a.hdf")))
    theirs = {profile.kind: profile for profile in hdf.profiles()}
    counts = theirs["density"]
    Table(SPEEDS).write(tmp_path / "speeds.csv")
    mine = {MINE[name]: values for name, values in SPEEDS.items()}
    Table(mine | {"R": 60 * np.array(SPEEDS["r"])}).write(tmp_path / "mine.csv")
    both = QTable(SPEEDS | {"r": 60 * np.array(SPEEDS["r"]) * u.arcsec})
    both["los"], both["density"] = both["los"] * u.km / u.s, counts.value.numpy() * u.arcmin**-2
    both["density_error"] = [5.0, 4, 1, 0.1] * u.arcmin**-2
    more = QTable({"r": [3.0] * u.arcmin, "density": [9.0] * u.arcmin**-2})
    more["density_error"] = [1.0] * u.arcmin**-2
    vstack([both, more]).write(tmp_path / "both.ecsv")  # no velocity there: blank
    settings = {"mine.csv": {"columns": MINE, "units": {"r": "arcsec"}}}
    for name in ("speeds.csv", "mine.csv", "both.ecsv"):
        data = GCProfile(path=str(tmp_path / name), distance=5.0, **settings.get(name, {}))
        ours = {profile.kind: profile for profile in data.profiles()}
        for a, b in zip(ours["los"][2:], theirs["los"][2:], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    assert len(ours["density"].r) == 5
    np.testing.assert_allclose(ours["density"].value[:4], counts.value)
    assert data.distance_prior() == (5.0, pytest.approx(0.1)) and data.provenance()["rows"] == 9
    (tmp_path / "mine.csv").unlink()
    data = GCProfile(path=str(tmp_path / "*.csv"), distance=5.0)
    assert [profile.name for profile in data.profiles()] == ["speeds_los"]


@pytest.mark.filterwarnings("ignore:.*columns without a unit")
@pytest.mark.parametrize(
    "change, settings, message",
    [
        ({"los": [9.0, -9, 8, 6]}, {}, r"'los': -9.0 is not a valid velocity disp.*\(row 1,"),
        ({"los": [9.0, np.inf, 8, 6]}, {}, r"'los': inf is not a valid"),
        ({"los_error_up": [0.5, 0.5, 0, 1]}, {}, r"'los_error_up': 0.0 is not a valid.*\(row 2,"),
        ({"los_error_up": [0.5, np.nan, 1, 1]}, {}, r"'los_error_up': nan is no error of a value"),
        ({"r": [-1.0, 1, 2, 3]}, {}, r"'r': -1.0 is not a valid radius"),
        ({"los_error_up": None}, {}, "no column 'los_error_up'"),
        ({"los_error_up": None, "los_error_down": None}, {}, "no column 'los_error'"),
        ({"los": None}, {}, "has no profile; expected a column density"),
        ({"los": [np.nan] * 4}, {}, "'los' is blank in all rows"),
        ({}, {"columns": {"loss": "sigma"}}, "data.columns.loss is none of the roles"),
        ({}, {"columns": {"los": "sigma"}}, "no column 'sigma'"),
        ({}, {"units": {"los": "mas/yr"}}, "'los' is in 'mas / yr'"),
        ({}, {"exclude": ["los"]}, "data.exclude is for HDF5 files"),
    ],
)
def test_bad_tables_are_refused(change, settings, message, tmp_path):
    table = {name: values for name, values in (SPEEDS | change).items() if values is not None}
    Table(table).write(tmp_path / "speeds.csv")
    with pytest.raises(ValueError, match=message):
        GCProfile(path=str(tmp_path / "speeds.csv"), distance=5.0, **settings).profiles()


def test_no_hdf_file_or_half_of_one_is_refused(tmp_path):
    whole = cluster_file(tmp_path / "a.hdf").read_bytes()
    for content in (b"r sigma\n1 2\n", whole[: len(whole) // 2], b""):
        (tmp_path / "b.hdf").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.hdf is not an HDF5 file that can be read, or is"):
            GCProfile(path=str(tmp_path / "b.hdf")).profiles()
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        GCProfile(path=str(tmp_path / "c.hdf")).profiles()


def test_a_missing_distance_is_asked_for(tmp_path):
    path = str(cluster_file(tmp_path / "a.hdf", distance=None))
    with pytest.raises(ValueError, match=r"no distance.*data\.distance=<kpc>"):
        GCProfile(path=path).distance_prior()
    assert GCProfile(path=path, distance=4.0, distance_error=0.2).distance_prior() == (4.0, 0.2)
    with pytest.raises(ValueError, match=r"data\.distance_error is -1"):
        GCProfile(path=path, distance=4.0, distance_error=-1)


def test_projected_profiles_are_those_of_limepy():
    peer = pytest.importorskip("limepy")
    mass, rh = 8e5, 6.0
    tight = {"ode_rtol": 1e-10, "ode_atol": 1e-10}
    with np.errstate(all="ignore"):
        k = peer.limepy(7.5, 1.6, M=mass, rh=rh, G=limepy.G, project=True, **tight)
    use = (k.r > 0) & (k.r < 0.3 * k.rt)
    solved = limepy.solve(torch.tensor([7.5]), torch.tensor([1.6]))
    R = torch.from_numpy(k.r[use])[None]
    model = project_physical(solved, torch.tensor([mass]).to(D), torch.tensor([rh]).to(D), R)
    np.testing.assert_allclose(model.surface_density[0], k.Sigma[use], rtol=5e-3)
    np.testing.assert_allclose(model.v2_los[0], k.v2p[use], rtol=5e-3)


def log_likelihood(profile: Profile, model, extra):
    """The likelihood of a profile in numpy, its amplitude marginalised by summing over a grid."""
    value, down, up = (x.numpy() for x in (profile.value, profile.down, profile.up))
    if profile.kind == "density":
        error2 = down**2 + extra**2
        guess = np.sum(value * model / error2) / np.sum(model**2 / error2)
        log_k = np.log(guess) + np.linspace(-0.3, 0.3, 4001)
        chi2 = np.sum((value - np.exp(log_k)[:, None] * model) ** 2 / error2, 1)
        inner = np.sum(np.exp(-0.5 * (chi2 - chi2.min()))) * (log_k[1] - log_k[0])
        marginal = np.log(inner / np.sqrt(2 * np.pi)) - 0.5 * chi2.min()
        return marginal - 0.5 * np.sum(np.log(error2))
    error = np.where(model > value, up, down)
    return np.sum(-0.5 * ((value - model) / error) ** 2 - np.log(0.5 * (up + down)))


def test_likelihood_is_that_of_a_plain_rewriting(model):
    data = GCProfile(truth=TRUTH, seed=3)
    lopsided = [p._replace(up=1.5 * p.up) if p.kind == "los" else p for p in data.profiles()]
    posterior = ProfilesPosterior(model.emulator, lopsided, (5.0, 0.1))
    u = torch.tensor([[[-0.1, 0.6, -0.4, 0.1, 0.5, -1.0]]], dtype=D)
    named = {name: value.flatten() for name, value in posterior.named(u).items()}
    solved, distance = limepy.solve(named["W0"], named["g"]), named["distance"][:, None]
    expected = -0.5 * float(u.square().sum())
    for profile in lopsided:
        R = projected_radius(profile.r, distance)
        projected = project_physical(solved, 10 ** named["log10_mass"], 10 ** named["log10_rh"], R)
        exact = model_profile(profile.kind, projected, distance)[0].numpy()
        expected += log_likelihood(profile, exact, 10 ** float(named["log10_extra"]))
    assert float(posterior.log_prob(u)) == pytest.approx(expected, abs=1e-3)


def test_gradient_is_that_of_finite_differences(model):
    data = GCProfile(truth=TRUTH, seed=3)
    posterior = ProfilesPosterior(model.emulator, data.profiles(), data.distance_prior())
    u = torch.tensor([[[0.1, 0.2, -0.3, 0.1, 0.5, -1.0]]], dtype=D, requires_grad=True)
    (gradient,) = torch.autograd.grad(posterior.log_prob(u).sum(), u)
    for i in range(6):
        step = torch.zeros_like(u)
        step[..., i] = 1e-5
        with torch.no_grad():
            slope = (posterior.log_prob(u + step) - posterior.log_prob(u - step)) / 2e-5
        assert float(gradient[..., i]) == pytest.approx(float(slope), rel=1e-4, abs=1e-3)


@pytest.fixture(scope="module")
def mock(model, tmp_path_factory):
    model.chains, model.warmup, model.draws = 4, 120, 200
    data = GCProfile(truth=TRUTH, seed=1)
    return model.infer(data, tmp_path_factory.mktemp("mock"), seed=0)


def test_a_mock_gives_back_its_truth(mock):
    metrics = mock.metrics
    assert all(abs(metrics[f"{name}_z"]) < 4 for name in TRUTH)
    assert metrics["divergences"] == 0
    assert metrics["rhat_max"] < 1.05
    assert metrics["chi2_reduced"] < 1.5
    assert not mock.warnings


def test_replicated_data_scatter_about_the_data_as_their_errors_say(mock):
    for name, values in mock.groups["observed_data"].items():
        copies = mock.groups["posterior_predictive"][name]
        assert copies.shape[2:] == values.shape
        score = (values - copies.mean((0, 1))) / copies.std((0, 1))
        assert 0.5 < score.std() < 1.5, name


@pytest.mark.skipif(not TUC.exists(), reason="../shared/data is not here")
def test_47_tuc_gives_a_posterior_its_figure_and_a_warning_of_its_misfit(tmp_path):
    xarray = pytest.importorskip("xarray")
    done = command(
        "evaluate.py", "checkpoint=gc_emulator", "data=gc_profile", f"data.path={TUC}",
        f"output={tmp_path}/posterior.nc", "model.chains=2", "model.warmup=30", "model.draws=20",
        f"hydra.run.dir={tmp_path}/run", report=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "note: the model does not fit proper_motion_GEDR3_R" in done.stdout
    assert re.search(
        r"p-value of the number density 0\.\d+, of the velocity dispersion .*: the model does not "
        r"describe these profiles", " ".join(done.stdout.split()),
    )  # fmt: skip
    assert "not used of" in done.stderr and "mass_function" in done.stderr
    assert (tmp_path / "run/profiles.png").exists()
    output = tmp_path / "posterior.nc"
    posterior = xarray.open_dataset(output, group="posterior")
    assert posterior["distance"].dims == ("chain", "draw")
    assert posterior["distance"].attrs["units"] == "kpc"
    predictive = xarray.open_dataset(output, group="posterior_predictive")
    observed_data = xarray.open_dataset(output, group="observed_data")
    name = "velocity_dispersion_baumgardt"
    assert predictive[name].dims == ("chain", "draw", f"{name}_dim_0")
    assert observed_data[name].dims == (f"{name}_dim_0",)
