"""What is special to gyro: ages, what they do at the edges, and what is refused."""

import math

import numpy as np
import pytest
import torch
from conftest import command

import zoo
from datamodules.catalogue import open_catalogue
from datamodules.gyro import GyroData
from models.blocks import grid
from models.gyro.networks import Rotation, with_outliers
from physics import gyrochrones

GOLDEN = {
    "zuko_nsf": [-1.184364, -1.108459, -1.494148, -1.108479],
    "nflows_rqs": [-1.153514, -1.080553, -1.486663, -1.118149],
    "mixture": [-0.777762, -1.265498, -0.726475, -1.171377],
}
QUANTILES = ("age_q025", "age_q16", "age_q50", "age_q84", "age_q975")


@pytest.fixture(scope="module")
def model(runs):
    return zoo.load(runs("gyro") / "best.ckpt")


@pytest.fixture
def stars():
    table = gyrochrones.simulate(np.random.default_rng(1), 4, 60)
    return {name: np.array(values) for name, values in table.items()}


def test_the_density_of_a_period_integrates_to_one(model):
    rotation = model.model.rotation
    y = torch.linspace(-4, 5, 4000)
    with torch.no_grad():
        parameters = rotation.parameters_of(torch.tensor([2.0]), torch.tensor([1.2]))
        p = rotation.log_prob(parameters, y).exp()
    np.testing.assert_allclose(np.trapezoid(p.numpy(), y.numpy(), axis=1), 1, rtol=2e-3)


def test_membership_mixes_the_flow_and_the_outliers():
    log_p, none = torch.tensor([1.0]), torch.zeros(1)
    sure = with_outliers(log_p, none, torch.ones(1))
    assert float(sure) == pytest.approx(1.0, abs=1e-3)
    doubtful = with_outliers(log_p, none, torch.full((1,), 0.4))
    assert float(doubtful.exp()) == pytest.approx(0.4 * math.e + 0.6 / 3.6, rel=1e-5)


@pytest.mark.parametrize("flow", ["zuko_nsf", "nflows_rqs", "mixture"])
def test_golden_densities(flow):
    """Neither of the libraries may change its spline unseen."""
    torch.manual_seed(0)
    rotation = Rotation(2, flow, 6, 3, 8, 1)
    with torch.no_grad():
        parameters = rotation.parameters_of(torch.tensor([2.0, 3.0]), torch.tensor([0.8, 2.0]))
        found = rotation.log_prob(parameters, torch.tensor([0.7, 1.3])).flatten()
    np.testing.assert_allclose(found, GOLDEN[flow], rtol=1e-4)


def test_the_table_gives_the_ages_of_the_exact_density(model, stars):
    gyro = model.model
    data = GyroData()
    data.table, data.split = stars, "all"
    batch = next(data.prediction_batches())
    batch |= {"colour_error": torch.full((60,), 0.01), "log_period_error": torch.full((60,), 1e-3)}
    ours = gyro.predict_step(batch)["age_q50"]
    columns = []
    with torch.no_grad():
        for age in grid.centres(gyro.edges):
            parameters = gyro.rotation.parameters_of(age.expand(60), batch["colour"])
            log_p = gyro.rotation.log_prob(parameters, batch["log_period"])
            columns.append(log_p.logsumexp(0) - math.log(len(log_p)))
        share = gyro.rotation.log_share()[0].exp().mean().log()
        member = with_outliers(torch.stack(columns, 1), share, batch["mem_prob"][:, None])
    mass = (member + gyro.log_prior()).softmax(1)
    cdf = torch.nn.functional.pad(mass.cumsum(1), (1, 0)).clamp(max=1)
    exact = grid.quantile(cdf, gyro.edges, torch.tensor([[0.5]]))[:, 0] - 3
    inside = (batch["colour"] > 0.3) & (batch["colour"] < 3.6) & (batch["log_period"] > -1.3)
    assert float((ours.log10() - exact)[inside].abs().max()) < 0.005


def test_an_age_does_not_jump_with_the_colour_error(model):
    errors = np.linspace(0.001, 0.3, 60)
    ages = np.array([model.age(20.0, 0.9, 0.2, e)["age_q50"] for e in errors])
    assert np.abs(np.diff(np.log10(ages))).max() < 0.02
    assert int(model.age(20.0, 0.9, 0.2, 0.5)["flags"]) & 8


def test_a_star_without_a_period_has_no_age(model, stars):
    stars["prot_d"][3], stars["prot_d"][4], stars["bp_rp0"][5] = np.nan, -2.0, np.nan
    stars["prot_d"][6] = 0.0
    found = model.predict(stars)
    flagged = np.asarray(found["flags"]) & 1 > 0
    assert flagged.tolist() == [3 <= i <= 6 for i in range(60)]
    for name in QUANTILES:
        np.testing.assert_array_equal(np.isnan(found[name]), flagged)
    ordered = np.stack([np.asarray(found[name])[~flagged] for name in QUANTILES])
    assert (np.diff(ordered, axis=0) > 0).all()


@pytest.mark.parametrize("prot, colour", [(np.nan, 0.8), (-3.0, 0.8), (0.0, 0.8), (5.0, np.nan)])
def test_one_star_without_a_period_or_colour_is_refused(model, prot, colour):
    with pytest.raises(ValueError, match="expected a period in days and a colour"):
        model.age(prot, colour)


def test_a_colour_outside_the_clusters_is_flagged(model):
    assert int(model.age(10.0, 5.0)["flags"]) & 2 and not int(model.age(10.0, 1.0)["flags"]) & 2


def test_periods_in_hours_are_wondered_at(model, stars):
    stars["prot_d"] *= 24
    with pytest.warns(UserWarning, match="in hours"):
        model.predict(stars)


def test_reddened_colours_are_corrected(stars):
    plain = GyroData(split="all")
    plain.table = stars
    reddened = GyroData(split="all", columns={"a_v": "a_v"})
    reddened.table = {**stars, "a_v": np.full(60, 1.0)}
    ours, theirs = (next(d.prediction_batches())["colour"] for d in (reddened, plain))
    torch.testing.assert_close(ours, theirs - 1.339 / 3.1)


def test_a_group_has_one_age_between_those_of_its_stars(runs, stars, tmp_path):
    from astropy.table import Table

    Table(stars).write(tmp_path / "members.fits")
    done = command(
        "evaluate.py",
        f"checkpoint={runs('gyro')}/best.ckpt",
        f"data.path={tmp_path}/members.fits",
        "data.group_by=cluster",
        f"hydra.run.dir={tmp_path}/run",
    )
    assert done.returncode == 0, done.stderr
    with open_catalogue(tmp_path / "run/stacked.ecsv") as catalogue:
        (groups,) = catalogue.chunks(["group", "n_stars", "age_q16", "age_q50", "age_q84"])
    assert groups["n_stars"].sum() == 60 and len(groups["group"]) == 4
    assert (groups["age_q16"] < groups["age_q50"]).all()
    assert (groups["age_q50"] < groups["age_q84"]).all()


@pytest.mark.parametrize("settings, message", [
    ({"flow": "spline"}, "it is one of"), ({"prior": "old"}, "it is one of"),
    ({"oldest": 0.001}, "leaves no ages"), ({"judge": ["Nowhere"]}, "not among the clusters"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings, message):
    from models.gyro import Gyro

    with pytest.raises(ValueError, match=message):
        Gyro(clusters={"A": 2.0, "B": 3.0}, **settings)
