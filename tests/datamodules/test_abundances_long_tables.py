"""Long tables of abundances, with a row per star and species, as canonical columns."""

import math

import numpy as np
import pytest

from orrery.datamodules.abundances.tables import open_abundances, widened

MRT = """Title: Abundances of a stream
Authors: Nobody A.
Table: Stellar abundances
================================================================================
Byte-by-byte Description of file: t1.txt
--------------------------------------------------------------------------------
   Bytes Format Units   Label    Explanations
--------------------------------------------------------------------------------
   1-  8 A8     ---     Star     Identifier
  10- 14 A5     ---     Species  Species identifier
      16 A1     ---     ul       Formal 5{sigma} upper limit flag
  18- 22 F5.2   [-]     logeps   log abundance
  24- 28 F5.2   [-]     [X/H]    log abundance relative to H
  30- 33 F4.2   [-]   e_[X/H]    ? Uncertainty in [X/H]
  35- 39 F5.2   [-]     [X/Fe]   Uncertainty in [X/Fe]
  41- 45 F5.2   [-]     deltaT   ? Response to effective temperature
  47- 51 F5.2   [-]     deltag   ? Response to log surface gravity
--------------------------------------------------------------------------------
Indus_1  Fe I    +5.50 -2.00 0.10 +0.00  0.06 -0.01
Indus_1  Fe II   +5.40 -2.10 0.12 +0.00  0.01  0.05
Indus_1  Ti I    +2.95 -2.00 0.08 +0.00  0.05 -0.01
Indus_1  Ti II   +3.15 -1.80 0.09 +0.30  0.01  0.06
Indus_1  C-N   < +6.00 -1.83      +0.17
Indus_2  Fe I    +5.00 -2.50 0.10 +0.00  0.06 -0.01
Indus_2  Ti I    +2.45 -2.50 0.08 +0.00  0.05 -0.01
Indus_2  Ti II < +2.95 -2.00      +0.50
Indus_2  C-H     +5.43 -3.00 0.20 -0.50  0.08 -0.06
Elqui_3  Fe I    +4.50 -3.00 0.10 +0.00  0.06 -0.01
"""


def mrt(tmp_path, text=MRT, name="t1.txt"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def long(**columns):
    """A long table of two stars with iron and magnesium each."""
    table = {
        "star": ["a", "a", "b", "b"],
        "species": ["Fe I", "Mg I", "Fe I", "Mg I"],
        "[X/H]": [-1.0, -0.7, -2.0, -1.6],
        "e_[X/H]": [0.1, 0.1, 0.1, 0.2],
    }
    return table | columns


def test_a_long_machine_readable_table_becomes_a_row_per_star(tmp_path):
    catalogue, notes = open_abundances(mrt(tmp_path))
    rows = next(iter(catalogue.chunks(catalogue.names)))
    assert list(rows["name"]) == ["Indus_1", "Indus_2", "Elqui_3"]
    np.testing.assert_allclose(rows["fe_h"], [-2.0, -2.5, -3.0])
    np.testing.assert_allclose(rows["fe_h_error"], 0.1)
    np.testing.assert_allclose(rows["fe_dteff"], 0.06)
    np.testing.assert_allclose(rows["ti_dlogg"], [0.06, -0.01, np.nan])
    assert list(rows["structure"]) == ["Indus", "Indus", "Elqui"]
    assert rows["type"][0] == "stream"
    assert any("the structure is taken from the names of stars" in note for note in notes)


def test_the_preferred_ion_is_taken_unless_it_is_a_limit_and_the_other_is_not(tmp_path):
    catalogue, notes = open_abundances(mrt(tmp_path))
    rows = next(iter(catalogue.chunks(catalogue.names)))
    # star 1: Ti II is measured; star 2: Ti II is a limit, Ti I is not; star 3 has neither
    np.testing.assert_allclose(rows["ti_h"], [-1.8, -2.5, np.nan])
    assert "ti_limit" not in rows
    assert any("Ti II of 1 and Ti I of 1" in note for note in notes)


def test_limits_have_the_significance_that_the_flags_description_states(tmp_path):
    catalogue, _ = open_abundances(mrt(tmp_path))
    rows = next(iter(catalogue.chunks(catalogue.names)))
    np.testing.assert_allclose(rows["n_limit"], [1, 0, 0])
    np.testing.assert_allclose(rows["n_significance"], [5, np.nan, np.nan])
    np.testing.assert_allclose(rows["n_h"], [-1.83, np.nan, np.nan])
    assert np.isnan(rows["n_h_error"]).all()


def test_a_misdescribed_column_is_reported_and_not_believed(tmp_path):
    _, notes = open_abundances(mrt(tmp_path))
    note = next(note for note in notes if "[X/Fe]" in note)
    assert "described as 'Uncertainty in [X/Fe]', but is negative in 1 rows" in note
    assert "[X/H] - [Fe/H] for 100% of the rows" in note


def test_responses_that_exceed_the_error_are_reported():
    table = long(deltaT=[0.08, 0.01, 0.08, 0.01], deltag=[0.09, 0.01, 0.01, 0.01])
    notes = widened(table).notes
    assert any("more than the error for 1 of 4 abundances" in note for note in notes)
    assert not any("responses" in note for note in widened(long(deltaT=[0.01] * 4)).notes)


def test_rows_that_are_repeated_count_once():
    table = long()
    doubled = {name: [*values, values[1]] for name, values in table.items()}
    made = widened(doubled)
    np.testing.assert_allclose(made.columns["mg_h"], [-0.7, -1.6])
    np.testing.assert_allclose(made.columns["mg_h_error"], [0.1, 0.2])
    assert any("1 rows are another's repetition" in note for note in made.notes)


def test_a_species_that_a_star_has_twice_is_the_weighted_mean_with_its_scatter_in_the_error():
    table = {name: [*v] for name, v in long().items()}
    for name, value in {"star": "a", "species": "Mg I", "[X/H]": -0.1, "e_[X/H]": 0.2}.items():
        table[name].append(value)
    made = widened(table)
    weights = np.array([100.0, 25.0])
    mean = np.sum(weights * [-0.7, -0.1]) / weights.sum()
    chi2 = np.sum(weights * (np.array([-0.7, -0.1]) - mean) ** 2)
    assert made.columns["mg_h"][0] == pytest.approx(mean)
    assert made.columns["mg_h_error"][0] == pytest.approx(math.sqrt(chi2 / weights.sum()))
    worst = 0.6 / math.hypot(0.1, 0.2)
    assert any(f"{worst:.1f} sigma" in note and "a, Mg I" in note for note in made.notes)


def test_of_repeated_limits_the_tightest_counts_and_a_measurement_goes_before_them():
    flags = ["", "<", "", "<"]
    table = {n: [*v] for n, v in long(ul=flags, significance=[np.nan, 3, np.nan, 3]).items()}
    table["e_[X/H]"] = [0.1, np.nan, 0.1, np.nan]
    extra = {"star": ["a", "b"], "species": ["Mg I", "Mg I"], "[X/H]": [-0.9, -1.7]}
    extra |= {"e_[X/H]": [np.nan, 0.15], "ul": ["<", ""], "significance": [4, np.nan]}
    made = widened({name: table[name] + extra[name] for name in table})
    np.testing.assert_allclose(made.columns["mg_h"], [-0.9, -1.7])
    np.testing.assert_allclose(made.columns["mg_limit"], [1, 0])
    assert made.columns["mg_significance"][0] == 4
    assert made.columns["mg_h_error"][1] == 0.15


def test_authors_of_a_long_table_are_kept_apart():
    made = widened(long(star=["a", "a", "a", "a"], reference=["X05", "X05", "Y09", "Y09"]))
    assert list(made.columns["name"]) == ["a", "a"]
    assert list(made.columns["reference"]) == ["X05", "Y09"]
    np.testing.assert_allclose(made.columns["mg_h"], [-0.7, -1.6])


def test_log_eps_alone_keeps_its_name_for_a_solar_scale_to_convert():
    table = long(logeps=[6.5, 6.9, 5.5, 6.0])
    del table["[X/H]"]
    columns = widened(table).columns
    np.testing.assert_allclose(columns["mg_logeps"], [6.9, 6.0])
    np.testing.assert_allclose(columns["mg_logeps_error"], [0.1, 0.2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"species": ["Fe I", "Mq I", "Fe I", "Mg I"]}, r"'Mq I' is no element.*near: Mg.*row 1"),
        ({"e_[X/H]": [0.1, 0.0, 0.1, 0.2]}, r"'e_\[X/H\]': 0.0 \(row 1, .*a, Mg I\) is no error"),
        ({"e_[X/H]": [0.1, -0.1, 0.1, 0.2]}, r"-0.1 \(row 1.* is no error of a measurement"),
        ({"e_[X/H]": [0.1, np.nan, -1, 0.2]}, r"a blank \(row 1.*; 1 more like it"),
        ({"star": ["a", "a", "", "b"]}, r"column 'star': a blank \(row 2"),
        ({"ul": ["", "<", "", ""]}, r"no significance of Mg's limit.*data.limit_significance"),
        ({"ul": ["", "?", "", ""]}, r"column 'ul': '\?' \(row 1.*no flag of a limit"),
        ({"[X/H]": [-1.0, -77.0, -2.0, -1.6]}, r"'\[X/H\]': -77.0 .*is no abundance in dex"),
        ({"[X/H]": [np.nan] * 4}, r"no star has any abundance|no column of abundances"),
    ],
)
def test_bad_rows_of_a_long_table_are_refused_with_column_and_row(change, words):
    with pytest.raises(ValueError, match=words):
        widened(long(**change))


def test_a_long_table_whose_iron_is_zero_everywhere_holds_ratios_to_iron():
    n = 6
    table = {
        "star": [f"s{i // 2}" for i in range(2 * n)],
        "species": ["Fe I", "Mg I"] * n,
        "[X/H]": [0.0, 0.4] * n,
        "e_[X/H]": [0.1] * (2 * n),
    }
    with pytest.raises(ValueError, match=r"is 0 for iron in all 6 rows.*holds \[X/Fe\]"):
        widened(table)
    table["[X/Fe]"], table["e_[X/Fe]"] = table.pop("[X/H]"), table.pop("e_[X/H]")
    with pytest.raises(ValueError, match=r"holds \[X/Fe\] alone"):
        widened(table)
    table["[X/Fe]"] = [-2.0, -1.6] * n
    with pytest.raises(ValueError, match=r"is -2.00 for iron.*holds \[X/H\]"):
        widened(table)
