"""Wide tables of abundances, a row per star: names, cells, limits, structures; what is refused."""

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

from orrery.datamodules.abundances.cells import (
    check_stars,
    looks_like_ratio_to_hydrogen,
    looks_like_ratio_to_iron,
    read_cells,
    read_flags,
    significance_in,
)
from orrery.datamodules.abundances.structure_names import structure_type, structures_of
from orrery.datamodules.abundances.tables import (
    canonical_columns,
    must_be_widened,
    open_abundances,
    widened,
)
from orrery.tables import read_table


def stars(**columns):
    """A wide table of three stars."""
    table = {"name": ["a", "b", "c"], "fe_h": [-1.0, -1.5, -2.0], "fe_h_error": [0.1, 0.1, 0.1]}
    return table | columns


# --- columns, limits and streams --------------------------------------------------------------


def test_the_columns_of_surveys_are_found_by_their_names():
    kirby = ["System", "Name", "RAh", "Teff", "FeH", "e_FeH", "MgFe", "e_MgFe", "TiFe", "e_TiFe"]
    assert canonical_columns(kirby) == {
        "name": "Name", "structure": "System", "fe_h": "FeH", "fe_h_error": "e_FeH",
        "mg_fe": "MgFe", "mg_fe_error": "e_MgFe", "ti_fe": "TiFe", "ti_fe_error": "e_TiFe",
    }  # fmt: skip
    apogee = ["APOGEE_ID", "M_H", "FE_H", "FE_H_ERR", "C_FE", "CI_FE", "C_FE_ERR", "CI_FE_ERR"]
    assert canonical_columns(apogee) == {
        "name": "APOGEE_ID", "fe_h": "FE_H", "fe_h_error": "FE_H_ERR", "c_fe": "C_FE",
        "c_fe_error": "C_FE_ERR",
    }  # fmt: skip
    galah = ["sobject_id", "fe_h", "e_fe_h", "flag_fe_h", "Mg_fe", "e_Mg_fe", "flag_Mg_fe"]
    assert canonical_columns(galah) == {
        "name": "sobject_id", "fe_h": "fe_h", "fe_h_error": "e_fe_h", "mg_fe": "Mg_fe",
        "mg_fe_error": "e_Mg_fe",
    }  # fmt: skip


def test_ratios_to_hydrogen_go_before_those_to_iron_and_log_eps_is_kept():
    names = ["mg_fe", "mg_fe_error", "mg_h", "mg_h_error", "A(Mg)", "ca_h", "ca_fe", "ca_fe_error"]
    roles = canonical_columns(names)
    assert {"mg_h", "mg_h_error", "mg_logeps"} <= set(roles)
    assert "mg_fe" not in roles
    assert {"ca_h", "ca_fe", "ca_fe_error"} <= set(roles)  # for [Ca/H] has no error


def test_two_columns_of_one_meaning_are_asked_about_and_a_named_one_settles_it():
    names = ["FE_H", "fe_h", "mg_fe"]
    with pytest.raises(ValueError, match=r"'FE_H', 'fe_h' may all be fe_h; say which: data"):
        canonical_columns(names)
    assert canonical_columns(names, {"fe_h": "FE_H"})["fe_h"] == "FE_H"


def test_limits_in_cells_are_read_with_their_direction(tmp_path):
    path = tmp_path / "wide.csv"
    path.write_text(
        "star,[Fe/H],e_[Fe/H],[Ba/Fe],e_[Ba/Fe],[Mg/Fe],e_[Mg/Fe]\n"
        "a,-2.0,0.1,<-1.2,,0.3,0.1\nb,-2.1,0.1,> 0.3,,...,\nc,-2.2,0.1,0.15:,0.2,0.4,0.1\n"
    )
    catalogue, _ = open_abundances(path, limit_significance=3)
    rows = next(iter(catalogue.chunks(catalogue.names)))
    np.testing.assert_allclose(rows["ba_fe"], [-1.2, 0.3, 0.15])
    np.testing.assert_allclose(rows["ba_limit"], [1, -1, 0])
    np.testing.assert_allclose(rows["mg_fe"], [0.3, np.nan, 0.4])
    with pytest.raises(ValueError, match=r"wide.csv: .*no significance of Ba's limit"):
        open_abundances(path)


def test_a_flag_column_marks_limits_with_the_significance_of_its_description():
    table = Table(stars(**{"[Eu/Fe]": [0.5, 1.0, 0.7], "e_[Eu/Fe]": [0.1, np.nan, 0.1]}))
    table["l_[Eu/Fe]"] = MaskedColumn(["", "<", ""], description="Limit flag (3 sigma)")
    columns = widened(table).columns
    np.testing.assert_allclose(columns["eu_limit"], [0, 1, 0])
    np.testing.assert_allclose(columns["eu_significance"], [np.nan, 3, np.nan])


def test_the_other_ion_of_a_wide_table_fills_what_is_missing_or_only_a_limit():
    made = widened(
        stars(
            **{
                "[TiII/H]": ["-0.8", "...", "<-1.0"],
                "e_[TiII/H]": [0.1, np.nan, np.nan],
                "[TiI/H]": [-0.9, -1.3, -1.7],
                "e_[TiI/H]": [0.2, 0.2, 0.2],
            }
        ),
        limit_significance=3,
    )
    np.testing.assert_allclose(made.columns["ti_h"], [-0.8, -1.3, -1.7])
    np.testing.assert_allclose(made.columns["ti_h_error"], [0.1, 0.2, 0.2])
    np.testing.assert_allclose(made.columns["ti_limit"], [0, 0, 0])
    assert any("'[TiII/H]' is '[TiI/H]' for 2 stars" in note for note in made.notes)


def test_a_table_is_held_in_memory_only_where_it_must_be():
    plain = stars(mg_fe=[0.1, 0.2, 0.3], mg_fe_error=[0.1] * 3)
    assert not must_be_widened(read_table(plain))
    assert must_be_widened(read_table(stars(mg_fe=["0.1", "<0.2", "0.3"], mg_fe_error=[0.1] * 3)))
    species = {"star": ["a", "a"], "species": ["Fe I", "Mg I"], "[X/H]": [-1.0, -0.7]}
    assert must_be_widened(read_table(species))
    assert must_be_widened(read_table(plain | {"name": ["Indus_1", "Indus_2", "Jhelum_1"]}))
    named = plain | {"name": ["Indus_1", "Indus_2", "Jhelum_1"], "stream": ["I", "I", "J"]}
    assert not must_be_widened(read_table(named))


def test_a_wide_table_with_usual_names_streams_from_its_file(tmp_path):
    path = tmp_path / "survey.csv"
    path.write_text("APOGEE_ID,FE_H,FE_H_ERR,MG_FE,MG_FE_ERR\nx,-1.0,0.1,0.2,0.1\n")
    catalogue, notes = open_abundances(path)
    assert catalogue.names == ["APOGEE_ID", "FE_H", "FE_H_ERR", "MG_FE", "MG_FE_ERR"]
    assert notes == []


def test_other_columns_of_a_widened_table_go_on_streaming(tmp_path):
    path = tmp_path / "wide.csv"
    rows = "".join(f"{i},s{i},-1.{i},0.1,<0.{i},\n" for i in range(7))
    path.write_text("source,star,FE_H,FE_H_ERR,BA_FE,BA_FE_ERR\n" + rows)
    catalogue, _ = open_abundances(path, limit_significance=3)
    parts = list(catalogue.chunks(["source", "ba_fe", "name"], rows=3, start=1, stop=6))
    assert [len(part["source"]) for part in parts] == [3, 2]
    assert list(np.concatenate([part["source"] for part in parts])) == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(parts[1]["ba_fe"], [0.4, 0.5])
    assert list(parts[1]["name"]) == ["s4", "s5"]
    assert "BA_FE" not in catalogue.names
    with pytest.raises(ValueError, match="BA_FE"):
        next(catalogue.chunks(["BA_FE"]))


def test_types_of_a_streamed_table_follow_from_its_structures(tmp_path):
    path = tmp_path / "survey.csv"
    path.write_text("System,FeH,e_FeH\nLeo I,-1.0,0.1\nNGC 288,-1.2,0.1\n")
    catalogue, _ = open_abundances(path)
    rows = next(iter(catalogue.chunks(["type", "FeH"])))
    assert list(rows) == ["type", "FeH"]
    assert list(rows["type"]) == ["dwarf", "cluster"]


def test_the_solar_scale_is_suggested_where_log_eps_and_ratios_tell_it(tmp_path):
    path = tmp_path / "survey.csv"
    sun = {"Fe": 7.50, "Mg": 7.60, "Si": 7.51, "Ca": 6.34}  # Asplund et al. (2009)
    head = [f"{x.lower()}_h,{x.lower()}_h_error,{x.lower()}_logeps" for x in sun]
    cells = [f"-1.0,0.1,{logeps - 1:.2f}" for logeps in sun.values()]
    path.write_text(f"{','.join(head)}\n{','.join(cells)}\n")
    notes = open_abundances(path)[1]
    assert notes == ["by log eps - [X/H] the solar scale is asplund2009: data.solar=asplund2009"]
    path.write_text(f"{','.join(head[:2])}\n{','.join(cells[:2])}\n")
    assert open_abundances(path)[1] == []  # two elements may agree by chance
    path.write_text(f"{','.join(head)}\n{','.join(cells).replace('6.50', '6.90')}\n")
    assert open_abundances(path)[1] == []


def test_a_large_table_says_which_species_it_is_read_for(tmp_path, monkeypatch):
    monkeypatch.setattr("orrery.datamodules.abundances.tables.MOST_ROWS", 0)
    path = tmp_path / "survey.csv"
    path.write_text("C_FE,C_FE_ERR,CI_FE,CI_FE_ERR\n0.1,0.1,0.2,0.1\n")
    assert open_abundances(path)[1] == ["c_fe is 'C_FE' alone of C_FE, CI_FE"]


def test_a_star_with_several_rows_is_kept_apart_and_reported():
    made = widened(stars(name=["a", "b", "a"]))
    assert list(made.columns["name"]) == ["a", "b", "a"]
    assert "1 star has several rows, such as a" in made.notes[0]
    apart = widened(stars(name=["1", "2", "1"], System=["Leo I", "Leo I", "Draco"]))
    assert apart.notes == []  # stars of two galaxies


def test_one_element_alone_is_fine():
    made = widened(stars())
    np.testing.assert_allclose(made.columns["fe_h"], [-1.0, -1.5, -2.0])
    assert made.notes == []


def test_stars_without_any_abundance_are_counted():
    notes = widened(stars(fe_h=[-1.0, np.nan, np.nan], fe_h_error=[0.1, np.nan, np.nan])).notes
    assert notes == ["2 stars have no abundance at all, and say nothing"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fe_h_error": [0.1, 0.0, 0.1]}, r"'fe_h_error': 0.0 \(row 1.*star b\).*positive number"),
        ({"fe_h_error": [0.1, 0.1, -9.0]}, r"'fe_h_error': -9.0 \(row 2.*star c\)"),
        ({"fe_h_error": [np.nan, 0.1, 0.1]}, r"'fe_h_error': a blank \(row 0"),
        ({"fe_h": [np.nan] * 3}, "no star has any abundance"),
        ({"fe_h": [-1, -99.99, -2]}, r"'fe_h': -99.99 \(row 1.*data.sentinels"),
        ({"fe_limit": [0, 1, 0]}, r"no significance of Fe's limit"),
        ({"fe_limit": [0, 2, 0]}, r"'2' \(row 1.*no flag of a limit"),
        ({"fe_limit": [0, 1, 0], "fe_significance": [np.nan, 0, np.nan]}, r": 0.0 \(row 1"),
        ({"[Mq/Fe]": [0, 0, 0]}, r"'Mq' is no element; near: Mg"),
        ({"mg_fe": [0.1, 0.2, 0.3]}, r"'mg_fe' has no column of errors"),
        ({"mg_fe": ["a", "b", "c"], "mg_fe_error": [1, 1, 1]}, r"'a' \(row 0.*is no abundance"),
    ],
)
def test_bad_values_of_a_wide_table_are_refused_with_column_and_row(change, words):
    with pytest.raises(ValueError, match=words):
        widened(stars(**change))


def test_a_chunk_of_a_stream_counts_its_rows_from_the_file():
    columns = {"fe_h": np.array([-1.0, -2.0]), "fe_h_error": np.array([0.1, 0.0])}
    with pytest.raises(ValueError, match=r"column 'E_FE': 0.0 \(row 1,000,001"):
        check_stars(columns, {"fe_h_error": "E_FE"}, first_row=1_000_000)


def test_a_lower_limit_and_an_upper_one_need_no_error():
    columns = {
        "ba_h": np.array([-3.0, -1.0]), "ba_h_error": np.array([np.nan, np.nan]),
        "ba_limit": np.array([1.0, -1.0]),
    }  # fmt: skip
    assert check_stars(columns, limit_significance=5) == []


# --- [X/H] or [X/Fe] --------------------------------------------------------------------------


def test_ratios_to_iron_under_the_name_of_ratios_to_hydrogen_are_recognised():
    rng = np.random.default_rng(1)
    fe_h = rng.normal(-2, 0.4, 40)
    mg_fe = rng.normal(0.35, 0.1, 40)
    assert "labelled [X/H] but lie within" in looks_like_ratio_to_iron(mg_fe, fe_h)
    assert looks_like_ratio_to_iron(fe_h + mg_fe, fe_h) == ""
    assert "labelled [X/Fe] but lie within" in looks_like_ratio_to_hydrogen(fe_h + mg_fe, fe_h)
    assert looks_like_ratio_to_hydrogen(mg_fe, fe_h) == ""


def test_stars_like_the_sun_and_few_stars_do_not_tell():
    rng = np.random.default_rng(2)
    assert looks_like_ratio_to_iron(rng.normal(0.1, 0.1, 50), rng.normal(-0.1, 0.2, 50)) == ""
    assert looks_like_ratio_to_iron(np.array([0.3, 0.4]), np.array([-2.0, -2.0])) == ""


def test_a_confused_table_is_refused_by_the_column_that_shows_it():
    rng = np.random.default_rng(3)
    fe_h = rng.normal(-2, 0.4, 40)
    table = {"fe_h": fe_h, "fe_h_error": np.full(40, 0.1), "Mg_H": rng.normal(0.35, 0.1, 40)}
    table["Mg_H_err"] = np.full(40, 0.1)
    with pytest.raises(ValueError, match=r"'Mg_H' confuses .*data.columns.mg_fe=Mg_H"):
        widened(table)


def test_a_barium_poor_dwarf_is_not_taken_for_a_confused_table():
    """In ultra-faint dwarfs [Ba/Fe] = -2 at [Fe/H] = -2.5, as [Ba/H] of others would be."""
    fe_h = np.random.default_rng(4).normal(-2.4, 0.3, 30)
    error = np.full(30, 0.1)
    table = {"fe_h": fe_h, "fe_h_error": error, "ba_fe": fe_h + 0.1, "ba_fe_error": error}
    widened(table)


# --- structures -------------------------------------------------------------------------------


def test_structures_are_found_in_the_names_of_stars():
    names = ["Indus_13", "Indus_2", "Jhelum_2_10", "Jhelum_1_5", "AliqaUma_0"]
    assert list(structures_of(names)) == ["Indus", "Indus", "Jhelum", "Jhelum", "AliqaUma"]
    assert structures_of(["4349192941740794624", "4349552211464342784"]) is None
    assert structures_of(["2M00000+1", "HD_122563"]) is None
    assert structures_of(["a_1", "b_2"]) is None  # no two share a word


def test_a_structure_of_one_star_with_nearly_anothers_name_is_pointed_at():
    names = ["ATLAS_0", "ATLAS_1", "TLAS_1"]
    made = widened(stars(name=names))
    assert any("'TLAS' has one star, and 'ATLAS' 2" in note for note in made.notes)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NGC 288", "cluster"), ("Palomar 13", "cluster"), ("M 92", "cluster"),
        ("Leo I", "dwarf"), ("Canes Venatici II", "dwarf"), ("Scl", "dwarf"),
        ("Indus", "stream"), ("LMS-1", "stream"), ("AliqaUma", "stream"), ("Phoenix", "stream"),
        ("Milky Way halo", "halo"), ("my structure", ""),
    ],
)  # fmt: skip
def test_the_type_of_a_structure_follows_from_its_name(name, kind):
    assert structure_type(name) == kind


def test_the_type_is_added_beside_a_column_of_structures():
    columns = widened(stars(System=["NGC 288", "Leo I", "Milky Way halo"])).columns
    assert list(columns["type"]) == ["cluster", "dwarf", "halo"]


# --- cells ------------------------------------------------------------------------------------


def test_cells_and_flags_are_read():
    cells = np.array(["<-1.2", "≥0.3", " 0.5: ", "--", "", "−1.5", "1e-1"])
    values, flags = read_cells(cells, "x")
    np.testing.assert_allclose(values, [-1.2, 0.3, 0.5, np.nan, np.nan, -1.5, 0.1])
    assert list(flags) == [1, -1, 0, 0, 0, 0, 0]
    assert list(read_flags(np.array(["<", ">", "", "0", "1", "-1"]), "l")) == [1, -1, 0, 0, 1, -1]
    assert list(read_flags(np.array([True, False]), "l")) == [1, 0]
    assert list(read_flags(np.array([1.0, np.nan, -1.0]), "l")) == [1, 0, -1]


def test_a_significance_is_read_only_where_it_is_stated():
    assert significance_in("Formal 5{sigma} upper limit flag") == 5
    assert significance_in("3-sigma limit") == 3
    assert significance_in("2.5σ limits") == 2.5
    assert significance_in("Limit flag on [Eu/Fe]") is None
