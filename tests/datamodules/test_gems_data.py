"""Stars in phase space as users have them: other names and units, unknown values, other frames."""

import warnings

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.table import Table

from orrery.datamodules.gems import GemsData, MockRequest
from orrery.physics.milky_way.actions import staeckel_actions
from orrery.physics.milky_way.frames import galactocentric
from orrery.physics.milky_way.potentials import milky_way

N = 24
CLUSTERS = ["NGC 104", "NGC 5139", "Pal 5"]
RANDOM = np.random.default_rng(0)
STARS = {
    "ra": RANDOM.uniform(0, 360, N),
    "dec": RANDOM.uniform(-80, 80, N),
    "distance": RANDOM.uniform(2, 20, N),
    "pmra": RANDOM.normal(0, 2, N),
    "pmdec": RANDOM.normal(0, 2, N),
    "radial_velocity": RANDOM.normal(0, 100, N),
}
STARS |= {
    "distance_error": 0.1 * STARS["distance"],
    "pmra_error": np.full(N, 0.05),
    "pmdec_error": np.full(N, 0.06),
    "pmra_pmdec_corr": np.full(N, 0.3),
    "radial_velocity_error": np.full(N, 2.0),
}


def data(table, **settings) -> GemsData:
    module = GemsData(**{"clusters": CLUSTERS, **settings})
    module.table, module.split = Table(table), "all"
    return module


def batch(table, **settings) -> dict[str, torch.Tensor]:
    return next(data(table, **settings).prediction_batches())


def quietly(table, **settings) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings(action="ignore"):
        return batch(table, **settings)


def without(*names: str, **changed) -> dict:
    return {name: values for name, values in STARS.items() if name not in names} | changed


def at(row: int, name: str, value) -> dict:
    """The stars with another value in one row of a column."""
    values = np.array(STARS[name])
    values[row] = value
    return STARS | {name: values}


def refusal(table, **settings) -> str:
    with warnings.catch_warnings(action="ignore"), pytest.raises(ValueError) as refused:
        batch(table, **settings)
    return str(refused.value)


@pytest.mark.filterwarnings("error")
def test_a_complete_catalogue_is_read_without_a_word():
    found = batch(STARS)
    for name in STARS:
        np.testing.assert_array_equal(found[name], STARS[name])
    assert found["parallax"].isnan().all() and "host" not in found


# --- velocities ---------------------------------------------------------------------------------


def test_without_a_column_of_radial_velocities_all_are_thought_possible():
    with pytest.warns(UserWarning) as told:
        found = batch(without("radial_velocity", "radial_velocity_error"))
    (text,) = [str(warning.message) for warning in told]
    assert "no radial velocity, and all are thought possible: hosts are uncertain" in text
    assert found["radial_velocity"].isnan().all()


def test_a_blank_radial_velocity_is_unknown():
    found = quietly(at(5, "radial_velocity", np.nan))
    assert found["radial_velocity"].isnan().nonzero().flatten().tolist() == [5]
    both = at(5, "radial_velocity", np.nan)
    both["radial_velocity_error"] = np.where(np.arange(N) == 5, np.nan, 2.0)
    assert quietly(both)["radial_velocity"].isnan().sum() == 1


def test_a_radial_velocity_whose_error_is_blank_is_refused():
    text = refusal(at(7, "radial_velocity_error", np.nan))
    assert "column 'radial_velocity_error': nan is not a valid error (row 7" in text
    assert "blank where there is no radial velocity" in text


@pytest.mark.parametrize("name", ["pmra", "pmdec", "pmra_error", "ra"])
def test_a_blank_proper_motion_is_refused_with_its_row(name):
    assert f"column '{name}': nan is not a valid" in refusal(at(9, name, np.nan))
    assert "(row 9," in refusal(at(9, name, np.nan))
    with pytest.warns(UserWarning, match="1 rows are left out"):
        parts = list(data(at(9, name, np.nan), skip_bad=True).prediction_batches())
    assert sum(len(part["row"]) for part in parts) == N - 1


def test_proper_motions_in_kilometres_per_second_are_refused_or_are_not_bound():
    table = Table(STARS)
    table["pmra"].unit = u.km / u.s
    assert "'pmra' is in 'km / s', which does not convert to the expected 'mas / yr'" in refusal(
        table
    )
    per_mas = 4.74047 * STARS["distance"]  # km/s
    wrong = STARS | {name: STARS[name] * per_mas for name in ("pmra", "pmdec")}
    found = quietly(wrong)
    x, v = galactocentric(*(found[k] for k in STARS if "error" not in k and "corr" not in k))
    bound = staeckel_actions(x, v, milky_way("mwpotential2014").axisymmetric).bound
    assert bound.double().mean() < 0.3, "flags say so: no answer, rather than a wrong one"


def test_units_of_the_file_are_converted():
    table = Table(STARS)
    table["pmra"], table["pmra_error"] = table["pmra"] / 1000, table["pmra_error"] / 1000
    table["pmra"].unit = table["pmra_error"].unit = u.arcsec / u.yr
    table["radial_velocity"] = table["radial_velocity"] * 1000
    table["radial_velocity"].unit = u.m / u.s
    table["radial_velocity_error"] = table["radial_velocity_error"] * 1000  # in the unit of these
    found = batch(table)
    for name in ("pmra", "pmra_error", "radial_velocity", "radial_velocity_error"):
        np.testing.assert_allclose(found[name], STARS[name], rtol=1e-12)


def test_radial_velocities_of_another_frame_are_refused_by_their_name():
    table = without("radial_velocity", vgsr=STARS["radial_velocity"])
    text = refusal(table, columns={"radial_velocity": "vgsr"})
    assert "column 'vgsr' is relative to the GSR by its name; expected barycentric" in text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pmra_error", "no errors of proper motions in RA, which are taken as exact"),
        ("pmdec_error", "in declination, which are taken as exact; data.columns.pmdec_error="),
        ("radial_velocity_error", "no errors of radial velocities, which are taken as exact"),
    ],
)
def test_velocities_without_errors_are_exact_and_the_user_is_told(name, text):
    with pytest.warns(UserWarning, match=text):
        found = batch(without(name))
    assert (found[name] == 0).all()


def test_a_correlation_above_one_is_refused():
    text = refusal(at(3, "pmra_pmdec_corr", 1.2))
    assert "column 'pmra_pmdec_corr': 1.2 is not a valid" in text
    assert "(row 3," in text and "-1 to 1" in text
    assert quietly(at(3, "pmra_pmdec_corr", np.nan))["pmra_pmdec_corr"][3] == 0
    assert (quietly(without("pmra_pmdec_corr"))["pmra_pmdec_corr"] == 0).all()


# --- distances ----------------------------------------------------------------------------------


def test_a_parallax_does_as_well_as_a_distance_and_may_be_negative():
    parallax = 1 / STARS["distance"] - 0.04
    parallax[2] = -0.3
    table = without("distance", "distance_error", parallax=parallax, parallax_error=np.full(N, 0.1))
    found = batch(table)
    assert found["distance"].isnan().all()
    np.testing.assert_allclose(found["parallax"], parallax + 0.04)
    assert found["parallax"][2] < 0
    none = batch(table, parallax_zero_point=0.0)
    np.testing.assert_array_equal(none["parallax"], parallax)


@pytest.mark.parametrize("of", ["distance", "parallax"])
def test_a_distance_without_a_column_of_errors_is_asked_for_one(of):
    table = without("distance", "distance_error", **{of: STARS["distance"]})
    text = refusal(table)
    assert f"no column '{of}_error'" in text and f"data.columns.{of}_error" in text


def test_a_parallax_without_an_error_is_not_used_beside_a_distance():
    table = STARS | {"parallax": np.full(N, 0.1)}
    with pytest.warns(UserWarning, match="'parallax' has no error, and is not used"):
        assert batch(table)["parallax"].isnan().all()
    text = refusal(table, columns={"parallax": "parallax"})
    assert "no column 'parallax_error'" in text


def test_without_any_distance_both_are_named_with_near_matches():
    text = refusal(without("distance", dist=STARS["distance"]))
    assert "near matches: dist" in text and "data.columns.parallax=<column>" in text


def test_a_distance_or_error_that_is_blank_is_unknown():
    for name in ("distance", "distance_error"):
        found = quietly(at(4, name, np.nan))
        assert found["distance"].isnan().nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("distance", 0.0),
        ("distance", -3.0),
        ("distance_error", -0.1),
        ("pmra_error", -0.1),
        ("radial_velocity_error", -1.0),
        ("radial_velocity", 9999.0),
        ("distance", np.inf),
        ("dec", 120.0),
    ],
)
def test_impossible_values_are_refused_not_taken_as_unknown(name, value):
    text = refusal(at(6, name, value))
    assert f"column '{name}': {value} is not a valid" in text and "(row 6," in text


def test_distances_in_parsec_are_asked_about_or_converted():
    pc, error = STARS["distance"] * 1e3, STARS["distance_error"] * 1e3
    text = refusal(STARS | {"distance": pc, "distance_error": error})
    assert "'distance'" in text and "are they pc?" in text
    near = STARS | {"distance": pc / 20, "distance_error": error / 20}
    with pytest.warns(UserWarning, match=r"are they pc\? State it: data\.units\.distance"):
        batch(near)
    stated = batch(STARS | {"distance": pc, "distance_error": error}, units={"distance": "pc"})
    table = Table(STARS | {"distance": pc, "distance_error": error})
    table["distance"].unit = u.pc
    for found in (stated, batch(table)):
        np.testing.assert_allclose(found["distance"], STARS["distance"], rtol=1e-12)
        np.testing.assert_allclose(found["distance_error"], STARS["distance_error"], rtol=1e-12)


def test_sentinels_are_proposed_and_taken_as_unknown():
    values = np.where(np.arange(N) < 4, -999.0, STARS["distance"])
    text = refusal(STARS | {"distance": values})
    assert "set data.sentinels=[-999]" in text
    found = batch(STARS | {"distance": values}, sentinels=[-999])
    assert found["distance"].isnan().nonzero().flatten().tolist() == [0, 1, 2, 3]
    rv = np.where(np.arange(N) < 4, -9999.0, STARS["radial_velocity"])
    error = np.where(np.arange(N) < 4, -9999.0, 2.0)
    table = STARS | {"radial_velocity": rv, "radial_velocity_error": error}
    assert batch(table, sentinels=-9999)["radial_velocity"].isnan().sum() == 4
    pm = np.where(np.arange(N) == 4, -9999.0, STARS["pmra"])
    text = refusal(STARS | {"pmra": pm}, sentinels=-9999)
    assert "'pmra': -9999.0 is unknown, by data.sentinels, which this column must not be" in text


# --- names and frames ---------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [("l", "b"), ("glon", "glat"), ("GLON", "GLAT")])
def test_galactic_coordinates_alone_are_refused_with_how_to_convert_them(pair):
    places = dict(zip(pair, (STARS["ra"], STARS["dec"]), strict=True))
    text = refusal(without("ra", "dec", **places))
    assert "needed in ICRS" in text and "pm_l_cosb=" in text
    assert set(quietly(STARS | places)) >= {"ra", "dec"}, "beside ra and dec they do no harm"


def test_columns_have_the_names_of_gaia():
    gaia = without("distance", "distance_error", parallax=0.1 / STARS["distance"])
    gaia |= {"source_id": np.arange(N), "parallax_error": np.full(N, 0.02)}
    gaia |= {"parallax_over_error": np.full(N, 6.0), "phot_g_mean_mag": np.full(N, 15.0)}
    module = data(gaia, keep=["source_id"])
    found = next(module.prediction_batches())
    np.testing.assert_array_equal(found["pmdec"], STARS["pmdec"])
    np.testing.assert_array_equal(found.carried.columns["source_id"], np.arange(N))


def test_other_names_are_proposed_by_near_matches_and_can_be_mapped():
    upper = {name.upper(): values for name, values in STARS.items()}
    text = refusal(upper)
    assert "data.columns.ra=RA" in text and "data.columns.pmra=PMRA" in text
    found = batch(upper, columns={name: name.upper() for name in STARS})
    np.testing.assert_array_equal(found["radial_velocity"], STARS["radial_velocity"])
    other = without("radial_velocity", dr2_radial_velocity=STARS["radial_velocity"])
    with pytest.warns(UserWarning, match=r"data\.columns\.radial_velocity=<column>"):
        batch(other)
    named = batch(other, columns={"radial_velocity": "dr2_radial_velocity"})
    np.testing.assert_array_equal(named["radial_velocity"], STARS["radial_velocity"])


# --- clusters and hosts -------------------------------------------------------------------------


def test_a_cluster_that_does_not_exist_is_refused_with_near_matches():
    with pytest.raises(ValueError, match=r"data\.clusters: No cluster is named 'NGC 5193'.*"
                       r"Near matches:.*NGC 5139"):  # fmt: skip
        GemsData(clusters=["NGC 104", "NGC 5193"])
    with pytest.raises(ValueError, match=r"own is a file \.ecsv"):
        MockRequest(clusters="my.csv")
    with pytest.raises(ValueError, match="names no cluster"):
        GemsData(clusters=[])
    with pytest.raises(ValueError, match="NGC 104 is named twice"):
        GemsData(clusters=["NGC 104", "47 Tuc"])
    with pytest.raises(ValueError, match=r"data\.clusters: Ko 1 cannot be a host: it has no"):
        GemsData(clusters=["Ko 1"])


def test_a_table_of_clusters_is_read_when_it_is_needed(tmp_path):
    missing = data(STARS, clusters=str(tmp_path / "my.ecsv"))
    assert len(next(missing.prediction_batches())["row"]) == N
    with pytest.raises(ValueError, match=r"my\.ecsv cannot be read"):
        missing.model_arguments()


def test_true_hosts_are_numbers_of_clusters_by_any_of_their_names():
    host = ["NGC 104", "47 Tuc", "ngc5139", "Pal 5", "field", "", *[""] * (N - 6)]
    found = batch(STARS | {"host": host})["host"]
    assert found[:6].tolist() == [0, 0, 1, 2, 3, -1]
    masked = np.ma.array(host, mask=np.arange(N) == 0)
    assert batch(STARS | {"host": masked})["host"][:2].tolist() == [-1, 0]
    blanks = np.array([None, np.nan, *host[2:]], object)
    assert batch(STARS | {"host": blanks})["host"][:3].tolist() == [-1, -1, 1]


def test_a_true_host_that_is_no_cluster_is_refused_with_row_and_near_matches():
    host = np.array(["field"] * N, "U12")
    host[11] = "NGC 5193"
    text = refusal(STARS | {"host": host})
    assert "column 'host': 'NGC 5193' is no host (row 11," in text
    assert "Near matches: NGC 5139" in text
    mine = refusal(STARS | {"my_host": host}, columns={"host": "my_host"})
    assert "column 'my_host': 'NGC 5193'" in mine


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"potential": "mwpotential2022"}, "mwpotential2022 is none of .*near: mwpotential2014"),
        ({"duration": 0}, "duration=0; expected Gyr"),
        ({"duration": 50}, "duration=50; expected Gyr, above 0 and up to 14"),
        ({"errors": {"parallax": 0.1}}, "data.errors.parallax is none of distance, pm, rv"),
        ({"errors": {"rv": -1}}, "data.errors.rv=-1; expected an error, 0 or more"),
        ({"kick": {"median": 30}}, r"data\.kick=.*expected \{median: km/s, sigma"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        GemsData(**settings)
    if settings.keys() <= {"potential", "duration"}:
        with pytest.raises(ValueError, match=message):
            MockRequest(**settings)


# --- training -----------------------------------------------------------------------------------


SMALL = {"n_per_cluster": 40, "n_field": 200, "duration": 0.05, "n_test_per_cluster": 5}


def test_training_rows_are_actions_with_numbers_of_hosts():
    module = GemsData(clusters=CLUSTERS, **SMALL)
    module.setup("fit")
    rows = module.training_batch()
    assert rows["J"].isfinite().all() and rows["J"].shape == (len(rows["host"]), 3)
    assert set(rows["host"].tolist()) == {0, 1, 2, 3}
    assert (rows["J"][:, [0, 2]] >= 0).all()
    n = sum(len(module.rows[part]["row"]) for part in ("train", "val"))
    assert 0.8 * 320 < n <= 320, "stars that are not bound are left out"


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """A catalogue of the field."""
    module = GemsData(clusters=CLUSTERS, field_ratio=40.0, **SMALL)
    table = Table(module.simulate("test"))
    table = table[table["host"] == "field"]
    del table["host"]
    table["id"] = np.arange(len(table))
    table["pmra"].unit = u.mas / u.yr
    path = tmp_path_factory.mktemp("field") / "stars.fits"
    table.rename_column("radial_velocity", "RV")
    table.write(path)
    return path


def test_the_field_is_that_of_a_catalogue_and_is_tested_among_ejections(field, capsys):
    settings = {"path": str(field), "columns": {"radial_velocity": "RV"}, "keep": ["id"]}
    module = GemsData(clusters=CLUSTERS, **SMALL, **settings)
    module.setup("fit")
    n = len(Table.read(field))
    learned = sum((module.rows[part]["host"] == 3).sum() for part in ("train", "val"))
    assert 0.8 * n < learned <= 0.9 * n, "a tenth is held out"
    assert f"the field is learned from {learned:,} of its stars" in capsys.readouterr().out
    parts = list(module.prediction_batches())
    host = torch.cat([part["host"] for part in parts])
    held_out = host == 3
    assert held_out.sum() == round(0.1 * n) and set(host.tolist()) == {0, 1, 2, 3}
    assert len(host) == module.n_predicted()
    ids = np.concatenate([np.ma.filled(p.carried.columns["id"], -1) for p in parts]).astype(float)
    distance = torch.cat([part["distance"] for part in parts])
    table = Table.read(field)
    kept = ids[held_out.numpy()].astype(int)
    np.testing.assert_array_equal(distance[held_out], table["distance"][kept])
    assert distance.isfinite().all()


def test_a_catalogue_without_velocities_teaches_no_field(field):
    module = GemsData(clusters=CLUSTERS, path=str(field), **SMALL)
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(ValueError, match=r"0 of .* stars have a distance and a velocity"),
    ):
        module.setup("fit")


def test_simulated_test_stars_are_as_many_as_asked_for():
    module = GemsData(clusters=CLUSTERS, field_ratio=3.0, errors={"distance": 0.0}, **SMALL)
    table = module.simulate("test")
    ejected = table["host"] != "field"
    assert 0.8 * 15 <= ejected.sum() <= 15 and (~ejected).sum() == 3 * ejected.sum()
    assert (table["distance_error"] == 0).all()
    assert np.all((table["radial_velocity_error"] == 2.0) & (table["pmra_error"] == 0.05))
