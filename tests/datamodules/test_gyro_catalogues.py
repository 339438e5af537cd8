"""Ages of catalogues and of groups of stars by gyro, and what it refuses."""

import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.table import QTable, Table
from astropy.utils.masked import Masked
from conftest import command, refusal

from orrery import pretrained
from orrery.datamodules.gyro import GyroData
from orrery.models.gyro import BIT
from orrery.models.gyro.left_out import AGE_SENSITIVE_COLOURS
from orrery.physics.rotation import colours, gyrochrones
from orrery.tables import open_catalogue

QUANTILES = ("age_q025", "age_q16", "age_q50", "age_q84", "age_q975")


@pytest.fixture(scope="module")
def model(runs):
    return pretrained.load(runs("gyro") / "best.ckpt")


@pytest.fixture
def stars():
    table = gyrochrones.simulate(np.random.default_rng(1), 4, 60)
    return {name: np.array(values) for name, values in table.items()}


def informative(stars):
    """Mask of the stars of a colour at which periods depend on age."""
    bluest, reddest = AGE_SENSITIVE_COLOURS
    return (stars["bp_rp0"] > bluest) & (stars["bp_rp0"] < reddest)


def test_a_star_without_a_period_has_no_age(model, stars):
    stars["prot_d"][3], stars["prot_d"][4], stars["bp_rp0"][5] = np.nan, -2.0, np.nan
    stars["prot_d"][6] = 0.0
    ages = model.predict(stars)
    flagged = np.asarray(ages["flags"]) == 1
    assert flagged.tolist() == [3 <= i <= 6 for i in range(60)]
    for name in (*QUANTILES, "pit", "nll"):
        np.testing.assert_array_equal(np.isnan(ages[name]), flagged)
    ordered = np.stack([np.asarray(ages[name])[~flagged] for name in QUANTILES])
    assert (np.diff(ordered, axis=0) > 0).all()


def test_a_masked_star_has_no_age():
    gyro = pretrained.load("gyro")
    period = Masked([12.0, 25.4] * u.d, mask=[False, True])
    ages = gyro.predict(QTable({"prot_d": period, "bp_rp0": [0.8, 0.82] * u.mag}))
    assert np.isnan(ages["age_q50"]).tolist() == [False, True]


def test_periods_that_are_probably_in_hours_raise_a_warning(model, stars):
    right = model.predict(stars)
    stars["prot_d"] *= 24
    with pytest.warns(UserWarning, match=r"(?s)are they hours\?.*data.units.prot=<unit>"):
        model.predict(stars)
    stated = model.predict(stars, units={"prot": "h"})
    np.testing.assert_allclose(stated["age_q50"], right["age_q50"], rtol=1e-3)
    for units, message in (({"prot": "parsnip"}, "no known unit"), ({"porto": "h"}, "none of")):
        with pytest.raises(ValueError, match=message):
            model.predict(stars, units=units)


@pytest.mark.parametrize("measure", ["teff", "b_v0", "g_rp0"])
def test_another_measure_stands_in_place_of_the_colour(model, measure):
    colour = np.array([0.75, 0.95, 1.19, 1.6])
    points, values = np.array(colours.BP_RP), np.array(colours.MEASURES[measure], float)
    stars = {"prot_d": np.array([9.0, 11.0, 12.0, 14.0]), "bp_rp0": colour}
    stars["measured"] = np.interp(colour, points, values)
    ours = model.predict(stars)
    stars.pop("bp_rp0")
    theirs = model.predict(stars, columns={measure: "measured"})
    np.testing.assert_allclose(np.log10(theirs["age_q50"] / ours["age_q50"]), 0, atol=0.1)
    assert np.all(theirs["age_q84"] / theirs["age_q16"] > 0.95 * ours["age_q84"] / ours["age_q16"])
    with pytest.raises(ValueError, match="name one of them"):
        model.predict(stars, columns={"teff": "measured", "b_v0": "measured"})


@pytest.mark.parametrize("name, role", [("g_rp", "g_rp0"), ("bv", "b_v0"), ("teff_k", "teff")])
def test_a_column_that_is_no_bp_rp_by_its_name_is_refused(model, stars, name, role):
    with pytest.raises(ValueError, match=f"this is no BP - RP; name it data.columns.{role}={name}"):
        model.predict(stars | {name: stars["bp_rp0"]}, columns={"bp_rp0": name})


def test_reddening_as_e_bp_rp_and_errors_of_two_sides(model, stars):
    ebv = model.predict(stars | {"r": np.full(60, 0.1)}, columns={"ebv": "r"})
    same = model.predict(stars | {"r": np.full(60, 0.1339)}, columns={"ebpminrp": "r"})
    np.testing.assert_allclose(ebv["age_q50"], same["age_q50"], rtol=1e-4)
    period = stars["prot_d"]
    sides = stars | {"lower": 0.02 * period, "upper": 0.2 * period, "e": 0.142 * period}
    two = model.predict(sides, columns={"e_prot_lower": "lower", "e_prot_upper": "upper"})
    one = model.predict(sides, columns={"e_prot": "e"})
    np.testing.assert_allclose(two["age_q84"], one["age_q84"], rtol=0.02)


def test_ages_of_quantities_and_arrays(model):
    one = model.age(prot=25.4, bp_rp0=0.82)
    assert model.age(prot=609.6 * u.h, bp_rp0=0.82 * u.mag)["age_q50"] == one["age_q50"]
    many = model.age(prot=np.array([[25.4, 12.0]]), bp_rp0=0.82)
    assert many["age_q50"].shape == (1, 2) and many["age_q50"][0, 0] == one["age_q50"]
    assert many["posterior"].shape == (1, 2, len(one["posterior"]))
    with pytest.raises(ValueError, match=r"25\.4 m does not convert to d"):
        model.age(prot=25.4 * u.m, bp_rp0=0.82)


def test_training_ages_in_gyr_are_refused_before_the_fit(tmp_path):
    table = Table(gyrochrones.simulate(np.random.default_rng(0), 5, 200))
    table["age_myr"] = table["age_myr"] / 1e3
    table.write(tmp_path / "stars.csv")
    data = GyroData(path=str(tmp_path / "stars.csv"))
    with pytest.raises(ValueError, match=r"'age_myr' has no unit.*are they Gyr.*data.units.age"):
        data.setup("fit")
    stated = GyroData(path=str(tmp_path / "stars.csv"), units={"age": "Gyr"})
    stated.setup("fit")
    assert max(stated.clusters.values()) > 2


def test_not_one_answer_is_an_error(model, stars, tmp_path, runs):
    Table(stars | {"kelvin": np.full(60, 5700.0)}).write(tmp_path / "stars.fits")
    words = [f"checkpoint={runs('gyro')}/best.ckpt", f"data.path={tmp_path}/stars.fits"]
    words += ["data.columns.bp_rp0=kelvin", f"output={tmp_path}/ages.fits"]
    done = command("evaluate.py", *words, f"hydra.run.dir={tmp_path}/run")
    assert "no row has a prediction" in refusal(done) and "no_age 100%" in done.stderr
    assert not (tmp_path / "ages.fits").exists()
    with pytest.warns(UserWarning, match="no row has a prediction"):
        model.predict(stars | {"kelvin": np.full(60, 5700.0)}, columns={"bp_rp0": "kelvin"})


def test_reddened_colours_are_corrected(stars):
    plain = GyroData(split="all")
    plain.table = stars
    reddened = GyroData(split="all", columns={"a_v": "a_v"})
    reddened.table = {**stars, "a_v": np.full(60, 1.0)}
    ours, theirs = (next(d.prediction_batches())["colour"] for d in (reddened, plain))
    torch.testing.assert_close(ours, theirs - 1.339 / 3.1)


def test_a_group_has_one_age_between_those_of_its_stars(runs, stars, tmp_path):
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
    n_informative = informative(stars).sum()
    assert groups["n_stars"].sum() == n_informative > 10 and len(groups["group"]) == 4
    assert (groups["age_q16"] < groups["age_q50"]).all()
    assert (groups["age_q50"] < groups["age_q84"]).all()


def test_a_period_without_an_error_has_one_of_two_per_cent(model, stars):
    """Missing column, missing value, and an error of zero are the same."""
    given = model.predict(stars | {"e_prot_d": 0.02 * stars["prot_d"]})
    lacking = {k: v for k, v in stars.items() if k != "e_prot_d"}
    for errors in ({}, {"e_prot_d": np.full(60, np.nan)}, {"e_prot_d": np.zeros(60)}):
        ages = model.predict(lacking | errors)
        np.testing.assert_allclose(ages["age_q50"], given["age_q50"], rtol=1e-5)
    wide = model.predict(lacking | {"e_prot_d": 0.3 * stars["prot_d"]})
    width = [np.log10(t["age_q84"] / t["age_q16"]).mean() for t in (wide, given)]
    assert width[0] > width[1]


def test_stars_that_are_not_dwarfs_are_flagged(model):
    star = {"prot_d": np.full(5, 20.0), "bp_rp0": np.full(5, 0.85), "mem_prob": np.full(5, 0.9)}
    dwarf = float(gyrochrones.dwarf_magnitude(0.85))
    star |= {"g0": dwarf + 5 - np.array([0, 0.5, 1.5, 0, np.nan]), "parallax_mas": np.full(5, 10.0)}
    star |= {"logg": np.array([4.4, 4.4, 4.4, 3.9, np.nan])}
    ages = model.predict(star)
    raised = (np.asarray(ages["flags"]) & BIT["evolved"]) > 0
    assert raised.tolist() == [False, False, True, True, False]
    assert np.isfinite(ages["age_q50"]).all()


def stacked(model, stars, group="cluster"):
    """The table of groups of a star table, as evaluation writes it."""
    data = GyroData(split="all", group_by=group)
    data.table = stars
    stack = model.stack()
    for batch in data.prediction_batches():
        stack.add(batch.carried.group, batch, model.predict_step(batch))
    return {row[0]: row[1:] for row in zip(*stack.table().values(), strict=True)}


def about(groups):
    """Whatever is equal but for rounding."""
    return {name: pytest.approx(row, rel=1e-4, nan_ok=True) for name, row in groups.items()}


def test_only_stars_of_an_age_sensitive_colour_count_in_a_group(model, stars):
    inside = informative(stars)
    names = np.unique(stars["cluster"])
    groups = stacked(model, stars)
    for name in names:
        assert groups[name][0] == (inside & (stars["cluster"] == name)).sum() > 0
    stars["prot_d"][stars["cluster"] == names[0]] = np.nan  # an empty group
    stars["cluster"][stars["cluster"] == names[1]] = ""  # and stars of none
    groups = stacked(model, stars)
    assert set(groups) == {names[0], *names[2:]}
    assert groups[names[0]][0] == 0 and np.isnan(groups[names[0]][1:]).all()


def test_a_star_that_comes_twice_counts_once(model, stars):
    twice = {name: np.concatenate([values, values]) for name, values in stars.items()}
    with pytest.warns(UserWarning, match="duplicate stars, by column 'star_id'"):
        groups = stacked(model, twice)
    once = stacked(model, stars)
    assert groups == about(once)
    data = GyroData(split="all", group_by="cluster")
    data.table = stars
    assert not any(next(data.prediction_batches())["is_duplicate"].any() for _ in range(2))
    twice["star_id"] = np.arange(120)
    for name, row in stacked(model, twice).items():
        assert row[0] == 2 * once[name][0]


def test_stars_without_an_id_are_all_counted(model, stars):
    once = stacked(model, stars)
    for blank in (np.full(60, ""), np.full(60, np.nan)):
        assert stacked(model, stars | {"star_id": blank}) == about(once)


def test_stars_that_are_no_members_do_not_count(model, stars):
    field = {name: values.copy() for name, values in stars.items()}
    field["mem_prob"] = np.zeros(60)
    field["star_id"] = np.arange(60)
    both = {name: np.concatenate([stars[name], field[name]]) for name in stars}
    assert stacked(model, both) == about(stacked(model, stars))


def test_stars_of_two_ages_fall_short_of_the_likelihood_of_those_of_one():
    """Of the shipped model, whose own draws are as likely as it expects."""
    gyro = pretrained.load("gyro")
    draw = torch.Generator().manual_seed(0)
    colour, u = 0.8 + 0.9 * torch.rand(600, generator=draw), torch.rand(600, 1, generator=draw)
    shortfall = {}
    for share in (0.0, 0.33):
        age = torch.where(torch.arange(600) < share * 600, math.log10(3000), math.log10(700))
        period = 10 ** gyro.table.draw(colour, age[:, None], u)[:, 0]
        stars = {"prot_d": period.numpy(), "bp_rp0": colour.numpy(), "cluster": np.full(600, "a")}
        with pytest.warns(UserWarning, match="dwarfs of one age") if share else nullcontext():
            shortfall[share] = stacked(gyro, stars)["a"][-1]
    assert -0.2 < shortfall[0.0] < 0.1  # where all are dwarfs, and the model expects others as well
    assert shortfall[0.33] > 0.8


@pytest.mark.parametrize("columns, message", [
    ({"mem_prob": "nope"}, "no column 'nope'"), ({"parallaxx": "plx"}, "parallaxx is none of"),
    ({"ebv": "ebv", "a_v": "a_v"}, "name one of them"),
])  # fmt: skip
def test_columns_that_are_not_there_are_not_passed_over(model, stars, columns, message):
    with pytest.raises(ValueError, match=message):
        model.predict(stars | {"ebv": np.zeros(60), "a_v": np.zeros(60)}, columns=columns)


def test_values_that_cannot_be_right_are_unknown(model, stars):
    n = {"g0": np.full(60, 14.0), "parallax_mas": np.full(60, 2.0), "logg": np.full(60, 4.5)}
    plain = model.predict(
        stars | dict.fromkeys(("g0", "parallax_mas", "logg"), np.full(60, np.nan))
    )
    for name, sentinel in (("logg", -9999), ("g0", 99), ("g0", -999), ("parallax_mas", -1)):
        table = stars | dict.fromkeys(n, np.full(60, np.nan)) | {name: np.full(60, sentinel)}
        ages = model.predict(table)
        np.testing.assert_allclose(ages["age_q50"], plain["age_q50"])
        np.testing.assert_array_equal(ages["flags"], plain["flags"])
    with pytest.raises(ValueError, match="are they per cent"):
        model.predict(stars | {"mem_prob": np.full(60, 95.0)})
    with pytest.raises(ValueError, match=r"column 'prot_d' holds what is no number"):
        model.predict(stars | {"prot_d": np.full(60, "fast")})
    unknown = stars | {"a_v": np.full(60, -999.0)}
    assert (np.asarray(model.predict(unknown, columns={"a_v": "a_v"})["flags"]) == 1).all()


def zoo_table(model, path):
    """Predictions for a file, by the frame's reader."""
    data = GyroData(path=path, split="all")
    rows = [model.predict_step(batch) for batch in data.prediction_batches()]
    return {name: np.concatenate([row[name].numpy() for row in rows]) for name in rows[0]}


def test_errors_have_the_unit_of_what_they_are_of(model, stars, tmp_path):

    stars["e_prot_d"] = 0.1 * stars["prot_d"]
    hours = Table(stars | {"prot_d": 24 * stars["prot_d"], "e_prot_d": 24 * stars["e_prot_d"]})
    hours["prot_d"].unit = u.h
    ours, theirs = model.predict(hours), model.predict(stars)
    np.testing.assert_allclose(ours["age_q16"], theirs["age_q16"], rtol=1e-4)
    path = str(tmp_path / "hours.fits")
    hours.write(path)
    with pytest.warns(UserWarning, match="left out of training"):
        data = GyroData(path=path, val_fraction=0.0)
        data.setup("fit")
    hours["prot_d"].unit = None
    path = str(tmp_path / "hours.ecsv")
    hours.write(path)
    text = Path(path).read_text().replace("name: prot_d,", "name: prot_d, unit: hours,")
    Path(path).write_text(text)
    spelled = zoo_table(model, path)
    np.testing.assert_allclose(spelled["age_q16"], theirs["age_q16"], rtol=1e-4)
    lasting = sum(len(data.rows[name]["colour"]) for name in ("train", "test"))
    assert lasting == (stars["good"] == 1).sum()


@pytest.mark.parametrize("names", [["A"] * 60, ["A", "B"] * 30, ["A", "B", "C", ""] * 15])
def test_too_few_or_nameless_clusters_are_refused(stars, tmp_path, names):
    path = str(tmp_path / "stars.ecsv")
    Table(stars | {"cluster": np.array(names)}).write(path)
    with pytest.raises(ValueError, match="each network leaves one out"):
        GyroData(path=path).setup("fit")


def test_a_column_to_group_by_that_is_not_there(model, stars):
    data = GyroData(split="all", group_by="clusterr")
    data.table = stars
    with pytest.raises(ValueError, match="no column 'clusterr'"):
        next(data.prediction_batches())


def test_a_cluster_is_left_out_of_training(stars, tmp_path):
    path = str(tmp_path / "stars.fits")
    Table(stars).write(path)
    data = GyroData(path=path, leave_out="SIM02", test_fraction=0.1, val_fraction=0.0)
    data.setup("fit")
    left_out = stars["cluster"] == "SIM02"
    good = stars["good"] == 1
    assert (
        sum(len(rows["colour"]) for rows in (data.rows["train"], data.rows["test"]))
        == (good & ~left_out).sum()
    )
    assert list(data.clusters) == ["SIM01", "SIM03", "SIM04"]
    assert data.n_predicted() == (left_out & good).sum()
    with pytest.raises(ValueError, match=r"no cluster 'Nowhere'.*SIM01"):
        GyroData(path=path, leave_out="Nowhere").setup("fit")
