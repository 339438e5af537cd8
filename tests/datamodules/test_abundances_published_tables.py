"""Tables of globular clusters by many authors, and the published tables in ../shared/data."""

from pathlib import Path

import numpy as np
import pytest

from orrery.datamodules.abundances.tables import canonical_columns, open_abundances

SHARED = Path(__file__).parents[2].parent / "shared/data/abundances"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not here")

CLUSTER = """ Star    Source       Age           [Fe/H]        [Mg/Fe]        [Na/Fe]      Comments
------   ------   ------------   ------------   ------------   ------------   --------
AB05:

M08         RGB       -      -   -0.66   1.00   +0.22      -   +0.09   0.05   -
M11         RGB       -      -       -      -   +0.30   0.20   +0.28   0.00   -

BS09:

-           CMD   12.00      -       -      -       -      -       -      -   -

Br04/Br05:

M08          MS       -      -       -      -       -      -   +0.14      -   +0.02 dex from Br90
                  =====          =====          =====          =====
         Median:  12.25          -0.76           0.45           0.36
          WMean:  12.95          -0.74           0.42           0.39
         WSigma:   0.19           0.08           0.01           0.00
              N:     12              7             41            286
"""


def test_a_table_of_a_cluster_has_a_row_per_star_and_paper(tmp_path):
    path = tmp_path / "NGC0104.tbl"
    path.write_text(CLUSTER)
    catalogue, notes = open_abundances(path)
    rows = next(iter(catalogue.chunks(catalogue.names)))
    assert list(rows["name"]) == ["M08", "M11", "M08"]
    assert list(rows["reference"]) == ["AB05", "AB05", "Br04/Br05"]
    assert set(rows["structure"]) == {"NGC 104"}
    assert set(rows["type"]) == {"cluster"}
    # [Fe/H] is the paper's, else the file's mean; its second number is a weight and no error
    np.testing.assert_allclose(rows["fe_h"], [-0.66, -0.66, -0.74])
    np.testing.assert_allclose(rows["fe_h_error"], 0.08)
    np.testing.assert_allclose(rows["mg_fe"], [0.22, 0.30, np.nan])
    np.testing.assert_allclose(rows["mg_fe_error"], [0.20, 0.20, np.nan])  # median of the stated
    np.testing.assert_allclose(rows["na_fe_error"], [0.05, 0.10, 0.10])  # at least .1
    assert any("1 rows are of the whole cluster" in note for note in notes)
    assert any("3 abundances have no error, or one of 0" in note for note in notes)
    assert any("authors are kept apart" in note for note in notes)


def test_several_clusters_are_read_by_a_pattern(tmp_path):
    for name in ("NGC0104.tbl", "NGC6121.tbl"):
        (tmp_path / name).write_text(CLUSTER)
    catalogue, _ = open_abundances(str(tmp_path / "NGC*.tbl"))
    rows = next(iter(catalogue.chunks(["structure"])))
    assert list(rows["structure"]) == ["NGC 104"] * 3 + ["NGC 6121"] * 3


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("+0.28", "x0.28", r"NGC0104.tbl, line 6: 'x0.28' is no number"),
        ("M11         RGB", "M11", r"NGC0104.tbl, line 6: .* fields; expected"),
        ("WSigma:   0.19           0.08", "", "lack the mean and scatter of"),
    ],
)
def test_a_damaged_table_of_a_cluster_is_refused_with_its_line(tmp_path, old, new, words):
    (tmp_path / "NGC0104.tbl").write_text(CLUSTER.replace(old, new))
    with pytest.raises(ValueError, match=words):
        open_abundances(tmp_path / "NGC0104.tbl")


# --- the published tables ---------------------------------------------------------------------


@needs_shared
def test_the_stars_of_s5():
    catalogue, notes = open_abundances(SHARED / "ajabacb6t6_mrt.txt")
    rows = next(iter(catalogue.chunks(catalogue.names)))
    assert len(catalogue) == 42
    limits = sum(int((rows[name] != 0).sum()) for name in rows if name.endswith("_limit"))
    assert limits == 191 - 10  # of V and Sr the other ion is taken ten times
    star = list(rows["name"]).index("Indus_13")
    # Hansen et al. (2021): [Eu/Mg] of Indus_13
    assert rows["eu_h"][star] - rows["mg_h"][star] == pytest.approx(1.59, abs=0.011)
    assert dict(zip(*np.unique(rows["structure"], return_counts=True), strict=True)) == {
        "ATLAS": 6, "AliqaUma": 5, "Chenab": 3, "Elqui": 4, "Indus": 7, "Jhelum": 8, "Phoenix": 8,
        "TLAS": 1,
    }  # fmt: skip
    assert set(rows["eu_significance"][rows["eu_limit"] != 0]) == {5.0}
    assert any("'TLAS' has one star" in note for note in notes)
    assert any("data.solar=asplund2009" in note for note in notes)
    assert any("[X/H] - [Fe/H] for 100% of the rows" in note for note in notes)


@needs_shared
def test_the_stars_of_kirby_stream_with_their_blanks():
    catalogue, _ = open_abundances(SHARED / "kirby18.txt")
    roles = canonical_columns(catalogue.names)
    rows = next(iter(catalogue.chunks(list(roles.values()))))
    assert len(catalogue) == 4113
    assert len(set(zip(rows["System"], rows["Name"], strict=True))) == 4111
    assert roles["structure"] == "System"
    kinds = dict(zip(*np.unique(rows["type"], return_counts=True), strict=True))
    assert kinds == {"cluster": 2277, "dwarf": 1820, "halo": 16}
    for element in ("Mg", "Si", "Ca", "Ti", "Cr", "Co", "Ni"):
        values, errors = rows[f"{element}Fe"], rows[f"e_{element}Fe"]
        assert (np.isnan(values) == np.isnan(errors)).all()
        assert np.nanmin(errors) > 0
        assert np.nanmax(np.abs(values)) < 2
    assert np.isnan(rows["CoFe"]).sum() > 500


@needs_shared
def test_the_stars_of_ophiuchus_and_of_the_clusters():
    catalogue, _ = open_abundances(SHARED / "apjadc57ct1_mrt.txt")
    assert canonical_columns(catalogue.names) == {
        "name": "Gaia", "fe_h": "[Fe/H]", "fe_h_error": "e_[Fe/H]",
    }  # fmt: skip
    catalogue, _ = open_abundances(str(SHARED / "NGC*.tbl"))
    rows = next(iter(catalogue.chunks(catalogue.names)))
    assert set(rows["structure"]) == {"NGC 104", "NGC 5904", "NGC 6121"}
    measured = np.isfinite(rows["na_fe"])
    assert (rows["na_fe_error"][measured] > 0).all()
