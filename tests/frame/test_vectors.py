"""Columns with an array per row: however a file or a program spells them, the numbers come out."""

import gzip
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table
from catalogues import read, run
from conftest import ROOT

from orrery.tables import open_catalogue, read_table
from orrery.tables.vectors import flatten, vectors

pytestmark = pytest.mark.usefixtures("in_tmp")
XP = ROOT.parent / "shared/data/xp"
TRUE = np.array([[1.5, -2e-5, 3.0], [0.1, 7.8568206e-4, 1e20], [4.0, 5.0, 6.0]])


def objects(rows):
    """A column whose cells are Python objects."""
    column = np.empty(len(rows), object)
    column[:] = rows
    return column


def heap_table(path, rows, code="PD()"):
    columns = [fits.Column("id", "K", array=np.arange(len(rows)))]
    columns += [fits.Column(name, code, array=objects(rows)) for name in ("v", "w")]
    fits.BinTableHDU.from_columns(columns).writeto(path, overwrite=True)


@pytest.mark.parametrize(
    "spell",
    [
        lambda row: "(" + ", ".join(map(repr, row.tolist())) + ")",  # DataLink's CSV
        lambda row: "[" + ",".join(map(str, row.tolist())) + "]",  # bulk ECSV
        lambda row: str(row.tolist()),
        lambda row: str(list(row)),  # [np.float64(1.5), ...]
        lambda row: str(row),  # numpy prints with spaces
        lambda row: repr(row).replace(", ", ",\n  "),
        lambda row: f" ({row[0]},\n\t{row[1]:+.17e} ,{row[2]},) ",
        lambda row: row,
        list,
        tuple,
    ],
)
def test_every_spelling_gives_the_numbers(spell):
    cells = [spell(row) for row in TRUE]
    for column in (cells, objects(cells), pd.Series(cells)):
        found = vectors(column, "v")
        assert found.dtype == np.float64 and found.flags.writeable
        np.testing.assert_allclose(found, TRUE, rtol=1e-8)


def test_a_text_is_read_to_the_last_bit():
    rows = np.random.default_rng(0).normal(size=(50, 70)) * 10.0 ** np.arange(-35, 35)
    np.testing.assert_array_equal(vectors([str(row.tolist()) for row in rows], "v"), rows)


def test_blank_rows_are_nan():
    blanks = [
        "",
        " ",
        "null",
        "None",
        "[]",
        "()",
        None,
        np.nan,
        np.array([]),
        "(nan, NaN)",
        "[nan]",
    ]
    found = vectors(["(1,2)", *blanks, "(3,null)"], "v")
    np.testing.assert_array_equal(found[[0, -1]], [[1.0, 2.0], [3.0, np.nan]])
    assert found.shape == (len(blanks) + 2, 2) and np.isnan(found[1:-1]).all()
    masked = np.ma.array(["(1,2)", "?"], mask=[False, True])
    np.testing.assert_array_equal(vectors(masked, "v"), [[1.0, 2.0], [np.nan, np.nan]])
    table = np.ma.array(TRUE, mask=TRUE == 3.0)
    assert np.isnan(vectors(table, "v")[0, 2])
    for nothing in (["", None], np.zeros((2, 0)), np.full((2, 7), np.nan), [[np.nan], [np.nan]]):
        assert np.isnan(vectors(nothing, "v", size=5)).all()
        assert vectors(nothing, "v", size=5).shape == (2, 5)
    assert vectors(["", ""], "v").shape == (2, 0) and vectors([], "v").shape == (0, 0)


def test_what_is_no_vector_is_refused_by_name():
    for column, size, message in (
        (["(1,2)", "", "(1,2,3)"], None, "column 'v', row 2: an array of 3 numbers, where 2"),
        ([[1, 2], [1, 2, 3]], None, "row 1: an array of 3"),
        (["(1,2)"], 3, "row 0: an array of 2 numbers, where 3"),
        (np.zeros((4, 2)), 3, "row 0: an array of 2 numbers, where 3"),
        (["(1,2)", "hello"], None, "row 1: 'hello' is not an array of numbers"),
        (["(1,two)"], None, "'(1,two)' is not an array"),
        (["(1,2 3)"], None, "'(1,2 3)' is not an array"),
        (["[1, 2"], None, "'[1, 2' is not an array"),
        (["1.5"], None, "'1.5' is not an array"),
        ([1.5], None, "'1.5' is not an array"),
        (["[[1,2],[3,4]]"], None, "is not an array"),
        ([str(np.arange(2000.0))], None, "shortened"),
    ):
        with pytest.raises(ValueError) as refused:
            vectors(column, "v", size)
        assert message in str(refused.value)


def test_rows_of_any_length_and_spoilt_ones_can_be_told_apart():
    numbers, lengths = flatten(["(1,2)", "(x)", "", "(3)", "4"], "v", spoilt=True)
    assert numbers.tolist() == [1, 2, 3] and lengths.tolist() == [2, -1, 0, 1, -1]


@pytest.mark.parametrize("code", ["PD()", "QE()", "PJ()", "QI()"])
@pytest.mark.parametrize("ending", [".fits", ".fits.gz"])
def test_fits_arrays_of_variable_length_are_vectors(code, ending):
    rows = [np.arange(4) + 10 * i for i in range(30)]
    heap_table(f"x{ending}", rows, code)
    for chunk in (1, 7, 30):
        back = read(f"x{ending}", rows=chunk, start=3)
        np.testing.assert_array_equal(back["w"], rows[3:])
        np.testing.assert_array_equal(back["id"], np.arange(3, 30))
    assert back["v"].dtype == {"D": "f8", "E": "f4", "J": "i4", "I": "i2"}[code[1]]
    rows[0] = rows[29] = rows[0][:0]
    heap_table(f"x{ending}", rows, code)
    back = read(f"x{ending}", rows=7)["v"]
    assert back.shape == (30, 4) and np.isnan(back[[0, 29]]).all()
    np.testing.assert_array_equal(back[1:29], rows[1:29])
    heap_table(f"x{ending}", [row[:0] for row in rows], code)
    assert read(f"x{ending}")["v"].shape == (30, 0)


def test_fits_arrays_of_two_lengths_or_cut_off_are_refused():
    rows = [np.arange(4.0)] * 5
    heap_table("x.fits", [*rows, np.arange(3.0)])
    with pytest.raises(ValueError, match=r"x\.fits.*'v'.* 4 in row 0 .* 3 in row 5"):
        read("x.fits")
    heap_table("x.fits", [np.arange(900.0)] * 5)
    whole = Path("x.fits").read_bytes()
    Path("cut.fits").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=r"cut\.fits.*truncated"):
        read("cut.fits")
    Path("cut.fits.gz").write_bytes(gzip.compress(whole)[:-300])
    with pytest.raises((OSError, ValueError), match=r"cut\.fits\.gz.*truncated"):
        read("cut.fits.gz")


def test_the_heap_streams_in_constant_memory():
    heap_table("x.fits", list(np.zeros((20_000, 500))))  # 160 MB in two columns
    program = """
import resource
from orrery.tables import open_catalogue
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_catalogue("x.fits") as catalogue:
    for i, chunk in enumerate(catalogue.chunks(["v", "w"], rows=500)):
        before = peak() if i == 1 else before if i else 0
print(peak() - before)
"""
    assert int(run(program)) < 30_000  # kB


def test_columns_of_texts_stay_text_until_asked():
    text = "# %ECSV 1.0\n# ---\n# - {name: v, datatype: string, subtype: 'float64[null]'}\nid,v\n"
    Path("x.csv").write_text(text + '1,"[1.5,2.5]"\n2,null\n3,"[3,4]"\n')
    Path("x.csv.gz").write_bytes(gzip.compress(Path("x.csv").read_bytes()))
    Table({"id": [1, 2, 3], "v": objects([[1.5, 2.5], [], [3, 4.0]])}).write("x.ecsv")
    for name in ("x.csv", "x.csv.gz", "x.ecsv"):
        column = read(name)["v"]
        assert isinstance(column[0], str)
        np.testing.assert_array_equal(vectors(column, "v"), [[1.5, 2.5], [np.nan] * 2, [3, 4]])


def test_an_ecsv_vector_may_be_blank():
    column = MaskedColumn(TRUE, mask=[[True] * 3, [False] * 3, [False] * 3])
    Table({"v": column}).write("x.ecsv")
    np.testing.assert_array_equal(
        read("x.ecsv")["v"], np.vstack([np.full((1, 3), np.nan), TRUE[1:]])
    )


@pytest.mark.parametrize("kind", ["object", "string", "string, subtype: json"])
@pytest.mark.parametrize("blank", ["null", "", "[null, null, null]"])
def test_an_ecsv_of_other_programs_is_read(kind, blank, tmp_path):
    """Java's `long`, and arrays in JSON."""
    path = tmp_path / "x.ecsv"
    path.write_text(
        "# %ECSV 1.0\n# ---\n# delimiter: ','\n# datatype:\n# - {name: id, datatype: long}\n"
        f'# - {{name: v, datatype: {kind}}}\nid,v\n5853498713190525696,"[1.5, null, 3.5]"\n'
        f'5762406957886626816,"{blank}"\n'
    )
    with open_catalogue(path) as catalogue:
        (chunk,) = catalogue.chunks(["id", "v"])
    assert chunk["id"].tolist() == [5853498713190525696, 5762406957886626816]
    values = vectors(chunk["v"], "v")
    np.testing.assert_array_equal(values, [[1.5, np.nan, 3.5], [np.nan] * 3])


def test_a_truncated_gzip_of_csv_is_named():
    rows = "".join(f'{i},"({i * 7919 % 1000}.0, {i * 104729 % 9973}.0)"\n' for i in range(20_000))
    packed = gzip.compress(("id,v\n" + rows).encode())
    for kept in (7, 1000, len(packed) // 2, len(packed) - 1):
        Path("cut.csv.gz").write_bytes(packed[:kept])
        with pytest.raises(OSError, match=r"cut\.csv\.gz.*truncated"):
            open_catalogue("cut.csv.gz")


def test_tables_in_memory_and_other_files_hold_vectors():
    expected = np.array([[1.0, 2.0], [np.nan, np.nan], [3.0, 4.0]])
    cells = objects([np.array([1.0, 2.0]), np.array([]), np.array([3.0, 4.0])])
    tables = [{"v": expected}, {"v": cells}, Table({"v": cells}), Table({"v": expected})]
    for missing in (None, np.nan, []):
        tables.append(pd.DataFrame({"v": [[1.0, 2.0], missing, (3.0, 4.0)]}))
    tables.append(pd.DataFrame({"v": ["(1,2)", None, "[3. 4.]"]}))
    lists = pa.table({"v": pa.array([[1, 2], None, [3, 4]])})
    tables.append(lists)
    for table in tables:
        with read_table(table) as catalogue:
            (chunk,) = catalogue.chunks(["v"])
        np.testing.assert_array_equal(vectors(chunk["v"], "v"), expected)
    pq.write_table(lists, "x.parquet")
    with h5py.File("x.h5", "w") as file:
        column = file.create_dataset("v", (3,), h5py.vlen_dtype("f4"))
        column[0], column[2] = cells[0], cells[2]
    masked = objects([np.ma.array(row, mask=np.zeros(len(row), bool)) for row in cells])
    Table({"v": masked}).write("x.vot", format="votable")
    for name in ("x.parquet", "x.h5", "x.vot"):
        np.testing.assert_array_equal(vectors(read(name)["v"], "v"), expected)
    with pytest.raises(ValueError, match="unequal lengths, 1 and 2"):
        list(read_table(pd.DataFrame({"v": [[1.0], [1.0, 2.0]]})).chunks(["v"]))


def test_a_votable_cut_off_is_named():
    Table({"v": [1, 2, 3]}).write("x.vot", format="votable")
    Path("cut.vot").write_bytes(Path("x.vot").read_bytes()[:-100])
    with pytest.raises(OSError, match=r"cut\.vot.*truncated"):
        open_catalogue("cut.vot")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_leaves_out_what_is_not_one_per_object(save):
    table = {"flux": np.arange(60.0).reshape(20, 3), "id": np.arange(20, dtype=">i8")}
    table |= {"name": np.array([f"s{i}" for i in range(20)]), "f": np.asfortranarray(table["flux"])}
    save("x.npz", grid=np.arange(3), one=np.float64(1), **table)
    with open_catalogue("x.npz") as catalogue:
        assert catalogue.names == list(table) and len(catalogue) == 20
    for how in ({"rows": 6}, {"rows": 100}, {"rows": 4, "start": 5, "stop": 18}):
        back = read("x.npz", **how)
        for name, values in table.items():
            expected = values[how.get("start", 0) : how.get("stop", 20)]
            np.testing.assert_array_equal(back[name], expected)
            assert back[name].dtype.isnative
    Path("cut.npz").write_bytes(Path("x.npz").read_bytes()[:-30])
    with pytest.raises(OSError, match=r"cut\.npz.*truncated"):
        open_catalogue("cut.npz")
    save("x.npz", v=objects([1, None]))
    with pytest.raises(ValueError, match="'v' holds Python objects"):
        open_catalogue("x.npz")


@pytest.mark.skipif(not XP.exists(), reason="the real files are not here")
def test_one_real_star_is_the_same_in_every_format():
    names = [f"{b}_{c}" for b in ("bp", "rp") for c in ("coefficients", "coefficient_correlations")]
    found = {}
    for ending in ("csv", "ecsv", "fits"):
        table = read(str(XP / f"XP_CONTINUOUS_RAW.{ending}"))
        found[ending] = [vectors(table[name], name).astype(np.float32) for name in names]
    assert [column.shape for column in found["fits"]] == [(2, 55), (2, 1485)] * 2
    for ending in ("csv", "ecsv"):
        for one, other in zip(found[ending], found["fits"], strict=True):
            np.testing.assert_array_equal(one, other)
    gap = read(str(XP / "XP_CONTINUOUS_RAW_with_missing_BP.csv"))
    assert np.isnan(vectors(gap["bp_coefficients"], "v")).all(1).tolist() == [False, True, False]
