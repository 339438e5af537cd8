"""Batches of stars with abundances: noise, limits, solar scales, and tables that are refused."""

import math

import numpy as np
import pytest
import torch
from astropy.table import Table

from orrery.datamodules.abundances import AbundanceData
from orrery.datamodules.abundances.simulation import ELEMENTS
from orrery.physics.abundances.solar import solar

SUN = {"solar": "asplund2009"}


def table(n=6, **columns):
    """[Fe/H] and [Mg/H] of n metal-poor stars."""
    iron = np.linspace(-2.5, -1.5, n)
    stars = {
        "name": [f"star {i}" for i in range(n)],
        "fe_h": iron, "fe_h_error": np.full(n, 0.1),
        "mg_h": iron + 0.3, "mg_h_error": np.full(n, 0.15),
    }  # fmt: skip
    stars |= columns
    return Table({name: values for name, values in stars.items() if values is not None})


def ratios(n=6, **columns):
    """[Fe/H] and [Mg/Fe] of n metal-poor stars."""
    magnesium = {"mg_h": None, "mg_h_error": None}
    magnesium |= {"mg_fe": np.full(n, 0.3), "mg_fe_error": np.full(n, 0.15)}
    return table(n, **(magnesium | columns))


def batch(stars, elements=("Fe", "Mg"), **settings):
    data = AbundanceData(elements=list(elements), **(SUN | settings))
    data.table = stars
    parts = list(data.prediction_batches())
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def covariance(rows, star=0):
    responses = rows["responses"][star]
    return torch.diag(rows["variance"][star]) + responses @ responses.T


# --- noise ------------------------------------------------------------------------------------


def test_ratios_to_iron_become_ratios_to_hydrogen_with_the_error_of_iron_in_common():
    rows = batch(ratios())
    np.testing.assert_allclose(rows["value"][:, 1], np.linspace(-2.5, -1.5, 6) + 0.3, atol=1e-6)
    expected = np.array([[0.1**2, 0.1**2], [0.1**2, 0.1**2 + 0.15**2]])
    np.testing.assert_allclose(covariance(rows), expected, atol=2e-4)
    independent = covariance(batch(table()))
    np.testing.assert_allclose(independent, np.diag([0.1**2, 0.15**2]), atol=1e-6)


def test_the_error_of_iron_counts_where_iron_is_no_element_of_the_model():
    rows = batch(ratios(), elements=["Mg"])
    assert float(covariance(rows)) == pytest.approx(0.1**2 + 0.15**2, rel=1e-3)
    np.testing.assert_allclose(rows["value"][:, 0], np.linspace(-2.5, -1.5, 6) + 0.3, atol=1e-6)
    with pytest.raises(ValueError, match=r"'fe_h_error': -0.1 .*row 2"):
        batch(ratios(fe_h_error=[0.1, 0.1, -0.1, 0.1, 0.1, 0.1]), elements=["Mg"])


def test_ratios_to_iron_without_iron_are_refused():
    with pytest.raises(ValueError, match=r"has \[X/Fe\], and no \[Fe/H\].*data.columns.fe_h="):
        batch(ratios(fe_h=None, fe_h_error=None))
    with pytest.raises(ValueError, match=r"data.columns.fe_h_error=<column>"):
        batch(ratios(fe_h_error=None), elements=["Mg"])


def test_ratios_to_an_iron_that_is_a_limit_are_unknown():
    rows = batch(ratios(fe_limit=[1, 0, 0, 0, 0, 0], fe_significance=[3.0] * 6))
    assert rows["value"][:, 1].isnan().tolist() == [True] + [False] * 5
    assert rows["limit"][0, 0] == 1 and not rows["value"][0, 0].isnan()


def test_responses_are_part_of_the_error_and_not_on_top():
    response = {"mg_dteff": np.full(6, 0.09), "mg_dlogg": np.full(6, 0.0)}
    rows = batch(table(**response, fe_dteff=np.full(6, 0.06)))
    found = covariance(rows)
    np.testing.assert_allclose(found.diagonal(), [0.1**2, 0.15**2], rtol=1e-5)
    assert float(found[0, 1]) == pytest.approx(0.09 * 0.06, rel=1e-5)


def test_responses_beyond_the_error_are_made_smaller():
    rows = batch(table(mg_dteff=np.full(6, 0.2), mg_dlogg=np.full(6, -0.1)))
    found = covariance(rows)
    assert float(found[1, 1]) == pytest.approx(0.15**2, rel=1e-4)
    teff, log_g = rows["responses"][0, 1].tolist()
    assert teff == pytest.approx(-2 * log_g, rel=1e-5) and teff > 0


# --- limits -----------------------------------------------------------------------------------


def test_the_width_of_a_limit_follows_from_its_significance():
    limited = {"mg_limit": [1, -1, 0, 0, 0, 0], "mg_h_error": [np.nan, np.nan] + [0.1] * 4}
    rows = batch(table(**limited, mg_significance=[5.0, 3.0] + [np.nan] * 4))
    assert rows["limit"][:3, 1].tolist() == [1, -1, 0]
    width = rows["variance"][:2, 1].sqrt()
    np.testing.assert_allclose(width, [1 / (5 * math.log(10)), 1 / (3 * math.log(10))], rtol=1e-5)
    stated = batch(table(**limited), limit_significance=4)
    np.testing.assert_allclose(stated["variance"][:2, 1].sqrt(), 1 / (4 * math.log(10)), rtol=1e-5)


def test_a_limit_without_a_significance_is_refused():
    limited = table(mg_limit=[0, 1, 0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"limit in 'mg_h'.*row 1\b.*data.limit_significance=3"):
        batch(limited)
    with pytest.raises(ValueError, match=r"data.limit_significance is 0; expected sigma"):
        AbundanceData(limit_significance=0)


@pytest.mark.parametrize(("sign", "limit"), [("<", 1), (">", -1)])
def test_limits_may_be_written_in_the_cells(sign, limit, tmp_path):
    path = tmp_path / "stars.csv"
    path.write_text(
        "Star,[Fe/H],e_[Fe/H],[Eu/Fe],e_[Eu/Fe]\n"
        f"a,-2.0,0.1,{sign}0.5,\nb,-2.2,0.1,0.4,0.1\nc,-2.4,0.1,...,\n"
    )
    data = AbundanceData(path=str(path), elements=["Fe", "Eu"], limit_significance=3, **SUN)
    data.split = "all"
    (rows,) = data.prediction_batches()
    assert rows["limit"][:, 1].tolist() == [limit, 0, 0]
    np.testing.assert_allclose(rows["value"][:2, 1], [-1.5, -1.8], atol=1e-6)
    assert rows["value"][2, 1].isnan()
    assert rows.carried.columns["Star" if "Star" in rows.carried.columns else "name"][0] == "a"


# --- solar scales -----------------------------------------------------------------------------


def test_a_stated_scale_is_converted_to_that_of_the_model():
    same = batch(table(), solar_of_model="asplund2009")
    other = batch(table(), solar="lodders2009", solar_of_model="asplund2009")
    for j, x in enumerate(("Fe", "Mg")):
        change = solar(x, "lodders2009") - solar(x, "asplund2009")
        moved = (other["value"] - same["value"])[:, j]
        np.testing.assert_allclose(moved, change, atol=1e-5)
    assert abs(solar("Mg", "lodders2009") - solar("Mg", "asplund2009")) > 1e-3
    relative = batch(ratios(), solar="lodders2009", solar_of_model="asplund2009")
    np.testing.assert_allclose(relative["value"], other["value"], atol=1e-5)


def test_a_scale_that_is_not_stated_is_asked_for_and_nothing_is_converted():
    with pytest.warns(UserWarning, match=r"solar scale .* is not stated.*data.solar=asplund2009"):
        rows = batch(table(), solar=None, solar_of_model="asplund2009")
    np.testing.assert_allclose(rows["value"], batch(table())["value"], atol=0)


def test_an_unknown_scale_is_refused_with_its_near_match():
    with pytest.raises(ValueError, match=r"'asplund09' is no solar scale; near: asplund2009"):
        AbundanceData(solar="asplund09")


def test_log_eps_needs_a_scale():
    absolute = {"mg_h": None, "mg_h_error": None, "mg_logeps": np.full(6, 5.6)}
    stars = table(**absolute, mg_logeps_error=np.full(6, 0.1))
    with pytest.raises(ValueError, match=r"holds log eps.*data.solar=asplund2009"):
        batch(stars, solar=None)
    rows = batch(stars, solar="asplund2009")
    np.testing.assert_allclose(rows["value"][:, 1], 5.6 - solar("Mg", "asplund2009"), atol=1e-5)


# --- elements ---------------------------------------------------------------------------------


def test_an_unknown_element_is_refused_with_its_near_match():
    with pytest.raises(ValueError, match=r"data.elements: 'Eo' is no element; near"):
        AbundanceData(elements=["Fe", "Eo"])


def test_one_element_is_enough():
    rows = batch(table(mg_h=None, mg_h_error=None), elements=["Fe"])
    assert rows["value"].shape == (6, 1)


def test_elements_that_the_table_lacks_are_missing():
    rows = batch(table(), elements=["Fe", "Eu"])
    assert rows["value"][:, 1].isnan().all() and (rows["variance"] > 0).all()
    with pytest.raises(ValueError, match=r"has abundances of Mg, Fe, and none of the model's: Eu"):
        batch(table(), elements=["Eu"])


def test_a_star_without_any_abundance_is_one_that_says_nothing():
    blank = [np.nan] + [-2.0] * 5
    rows = batch(table(fe_h=blank, mg_h=blank))
    assert rows["value"][0].isnan().all() and not rows["value"][1:].isnan().any()


def test_a_table_of_blanks_is_not_trained_on():
    data = AbundanceData(**SUN)
    data.table = table(30, fe_h=[np.nan] * 30, mg_h=[np.nan] * 30)
    with pytest.raises(ValueError, match=r"no element is measured in data.least_measured=20 stars"):
        data.setup("fit")


def test_elements_are_those_with_enough_measurements(capsys):
    data = AbundanceData(least_measured=10, val_fraction=0.2, **SUN)
    europium = {"eu_h": [-1.5] * 9 + [np.nan] * 21, "eu_h_error": [0.1] * 30}
    data.table = table(30, **europium)
    data.setup("fit")
    assert data.elements == ["Fe", "Mg"]
    assert "not learned, of fewer than data.least_measured=10 measurements: Eu (9)" in (
        capsys.readouterr().out
    )


# --- bad rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0.0, -0.1, np.nan])
@pytest.mark.parametrize("column", ["fe_h_error", "mg_h_error"])
def test_an_error_that_is_zero_negative_or_blank_is_refused(column, bad):
    errors = [0.1] * 6
    errors[4] = bad
    with pytest.raises(ValueError, match=rf"'{column}': {bad} .*row 4\b.*above 0"):
        batch(table(**{column: errors}))


def test_the_error_of_what_is_not_measured_may_be_blank():
    rows = batch(table(mg_h=[np.nan] + [-1.0] * 5, mg_h_error=[np.nan] + [0.1] * 5))
    assert rows["value"][0, 1].isnan() and rows["variance"].isfinite().all()


def test_confused_ratios_are_refused_by_the_column_that_shows_it():
    with pytest.raises(ValueError, match=r"'mg_h' confuses \[X/H\] and \[X/Fe\]"):
        batch(table(20, mg_h=np.full(20, 0.3)))
    with pytest.raises(ValueError, match=r"'mg_fe' confuses \[X/H\] and \[X/Fe\]"):
        batch(ratios(20, mg_fe=np.linspace(-2.3, -1.2, 20)))


def test_a_star_that_is_there_twice_is_kept_twice():
    rows = batch(table(name=["a", "a", "b", "c", "d", "e"]))
    assert len(rows["value"]) == 6


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        {"fe_h": "FE_H", "fe_h_error": "FE_H_ERR", "mg_fe": "MG_FE", "mg_fe_error": "MG_FE_ERR"},
        {"fe_h": "fe_h", "fe_h_error": "e_fe_h", "mg_fe": "Mg_fe", "mg_fe_error": "e_Mg_fe"},
        {"fe_h": "FeH", "fe_h_error": "e_FeH", "mg_fe": "MgFe", "mg_fe_error": "e_MgFe"},
        {"fe_h": "[Fe/H]", "fe_h_error": "e_[Fe/H]", "mg_fe": "[Mg/Fe]",
         "mg_fe_error": "e_[Mg/Fe]"},
    ],
    ids=["APOGEE", "GALAH", "Kirby", "brackets"],
)  # fmt: skip
def test_the_columns_of_surveys_give_the_same_batch(names):
    stars, ours = ratios(), batch(ratios())
    for role, name in names.items():
        stars.rename_column(role, name)
    theirs = batch(stars)
    for name in ("value", "variance", "responses", "limit"):
        torch.testing.assert_close(theirs[name], ours[name], equal_nan=True)


def test_columns_of_any_name_are_named_by_the_user():
    stars = table()
    stars.rename_column("mg_h", "magnesium")
    stars.rename_column("mg_h_error", "sigma")
    columns = {"mg_h": "magnesium", "mg_h_error": "sigma"}
    theirs = batch(stars, columns=columns)
    torch.testing.assert_close(theirs["value"], batch(table())["value"])
    with pytest.raises(ValueError, match=r"data.columns.mg_h_error=<column>"):
        batch(stars, columns={"mg_h": "magnesium"})
    with pytest.raises(ValueError, match=r"no column 'magnesum'; near matches: magnesium"):
        batch(stars, columns=columns | {"mg_h": "magnesum"})


def test_the_type_of_a_structure_is_its_place_and_an_odd_one_is_said():
    kinds = ["dwarf", "stream", "cluster", "halo", "", "disc"]
    with pytest.warns(UserWarning, match=r"type 'disc' is none of dwarf, stream, cluster, halo"):
        rows = batch(table(type=kinds))
    assert rows["type"].tolist() == [0, 1, 2, 3, -1, -1]


# --- the simulation ---------------------------------------------------------------------------


def test_the_simulation_has_the_shares_that_are_asked_for():
    data = AbundanceData(n_test=3000, missing=0.4, limited=0.15, elements=list(ELEMENTS))
    (rows,) = data.prediction_batches()
    unknown = rows["value"].isnan()
    assert float(unknown.double().mean()) == pytest.approx(0.4, abs=0.01)
    limited = (rows["limit"] != 0) & ~unknown
    assert float(limited.double().mean()) == pytest.approx(0.15, abs=0.03)
    assert not rows["true"].isnan().any()
    known = ~unknown & ~limited
    unlimited = [data.elements.index(x) for x in ("Fe", "Mg", "Ca", "Ti", "Ni")]
    pull = (rows["value"] - rows["true"]) / (
        rows["variance"] + rows["responses"].square().sum(2)
    ).sqrt()
    pull = pull[:, unlimited][known[:, unlimited]]
    assert float(pull.std()) == pytest.approx(1, abs=0.03)
    assert float(pull.mean()) == pytest.approx(0, abs=0.03)


def test_the_true_stars_are_those_of_the_true_density():
    data = AbundanceData(n_test=4000, elements=list(ELEMENTS))
    (rows,) = data.prediction_batches()
    weights, mean, factors, variance = data.true_density()
    centre = weights.exp() @ mean
    spread = rows["true"].std(0)
    assert ((rows["true"].mean(0) - centre).abs() < 5 * spread / 4000**0.5).all()
    second = factors.square().sum(2) + variance + (mean - centre).square()
    np.testing.assert_allclose(spread, (weights.exp() @ second).sqrt(), rtol=0.05)
