"""Tables in and out: what is written is read back in every format, in constant memory."""

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import MaskedColumn, QTable, Table
from astropy.time import Time
from astropy.utils.masked import Masked
from catalogues import ENDINGS, columns, read, run, write

from orrery.tables import convert, open_catalogue, read_table, resolve

pytestmark = pytest.mark.usefixtures("in_tmp")
UNITS = {"z": "mas", "flux": "nJy", "mag": "mag(AB)"}


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read_back(ending):
    table = columns(vectors=ending != ".csv")
    write(f"x{ending}", table, units=UNITS)
    with open_catalogue(f"x{ending}") as catalogue:
        assert catalogue.names == list(table)
        assert len(catalogue) == 1000
        expected = {} if ending == ".csv" else {n: u.Unit(t) for n, t in UNITS.items()}
        assert catalogue.units == expected
    back = read(f"x{ending}")
    for name, values in table.items():
        np.testing.assert_array_equal(back[name].astype(values.dtype), values)
        if ending != ".csv" and name != "name":
            assert back[name].dtype == values.dtype and back[name].dtype.isnative


@pytest.mark.parametrize("ending", ENDINGS)
def test_chunks_of_any_size_make_the_whole(ending):
    table = columns(rows=500, vectors=ending != ".csv")
    write(f"x{ending}", table, step=123)
    with open_catalogue(f"x{ending}") as catalogue:
        for rows in (1, 77, 123, 500, 9999):
            pieces = list(catalogue.chunks(["name", "z"], rows=rows))
            assert [len(p["z"]) for p in pieces[:-1]] == [rows] * (len(pieces) - 1)
            np.testing.assert_array_equal(np.concatenate([p["z"] for p in pieces]), table["z"])
        part = [p["zeta"] for p in catalogue.chunks(["zeta"], rows=50, start=120, stop=377)]
        np.testing.assert_array_equal(np.concatenate(part), table["zeta"][120:377])
        assert list(catalogue.chunks(["z"], start=500)) == []


@pytest.mark.parametrize("ending", [".fits", ".ecsv"])
def test_astropy_reads_what_is_written(ending):
    table = columns()
    write(f"x{ending}", table, units=UNITS, descriptions={"z": "parallax"}, meta={"run": "r1"})
    back = Table.read(f"x{ending}")
    assert back["z"].unit == u.mas
    for name, values in table.items():
        np.testing.assert_array_equal(np.asarray(back[name]).astype(values.dtype), values)
    assert {k.lower(): v for k, v in back.meta.items()}["run"] == "r1"


def test_descriptions_and_provenance_are_stored_in_each_format():
    long = {"checkpoint": "zephyr", "command": "python evaluate.py " + "x" * 200, "run": "a\nb"}
    meaning = "parallax, " + 20 * "as the satellite saw it, "
    about = {"descriptions": {"z": meaning}, "meta": long}
    constants = {"meta/grid": np.array([0.0, 0.5])}
    for ending in ENDINGS:
        write(f"x{ending}", {"z": np.zeros(3)}, constants=constants, **about)
    with fits.open("x.fits") as hdus:
        hdus.verify("exception")
        assert hdus[1].header["TCOMM1"] == meaning.strip()
        assert hdus[1].header["command"] == long["command"]
        assert hdus[1].header["checkpoint"] == "zephyr"
        np.testing.assert_array_equal(hdus[2].data["grid"], [0.0, 0.5])
    ecsv = Table.read("x.ecsv")
    assert ecsv["z"].description == meaning and ecsv.meta["grid"] == "[0.0, 0.5]"
    with h5py.File("x.hdf5") as file:
        assert file["z"].attrs["description"] == meaning
        assert file.attrs["command"] == long["command"]
        np.testing.assert_array_equal(file["meta/grid"], [0.0, 0.5])
    schema = pq.read_schema("x.parquet")
    assert schema.field("z").metadata[b"description"] == meaning.encode()
    assert schema.metadata[b"grid"] == b"[0.0, 0.5]"
    for ending in ENDINGS:  # constants are not taken for columns
        with open_catalogue(f"x{ending}") as catalogue:
            assert catalogue.names == ["z"]


def masked_table(rows=200):
    table = Table(columns(rows, vectors=False), masked=True)
    table["count"] = table["count"].astype(np.int32)
    for name in ("z", "count", "name", "good"):
        table[name].mask[150] = True
    return table


@pytest.mark.parametrize("ending", [".fits", ".ecsv", ".csv", ".parquet", ".hdf5", "memory"])
def test_blanks_become_nan_and_other_integers_stay_integers(ending):
    table = masked_table()
    if ending == ".fits":
        table.remove_column("good")  # astropy cannot write a blank boolean
        table["count"].fill_value = -1
    if ending == "memory":
        catalogue = read_table(table)
    else:
        table.write(f"x{ending}", **({"serialize_meta": True} if ending == ".hdf5" else {}))
        catalogue = open_catalogue(f"x{ending}")
    with catalogue:
        assert catalogue.names == table.colnames
        chunks = list(catalogue.chunks(catalogue.names, rows=64))
    for name in ("z", "count"):
        assert {c[name].dtype for c in chunks} == {np.dtype(np.float64)}
        values = np.concatenate([c[name] for c in chunks])
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(values)), [150])
    assert all(c["zeta"].dtype == np.int64 for c in chunks)
    assert np.concatenate([c["zeta"] for c in chunks])[-1] == 2**60 + 199
    assert chunks[2]["name"][150 - 128] in ("", "N/A")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_table_without_rows_is_allowed(ending):
    write(f"x{ending}", {"z": np.zeros(0), "name": np.array([], str)})
    with open_catalogue(f"x{ending}") as catalogue:
        assert len(catalogue) == 0 and catalogue.names == ["z", "name"]
        assert list(catalogue.chunks(["z"])) == []


def test_tables_in_memory_of_every_kind():
    dataframe = pytest.importorskip("pandas").DataFrame
    plain = {"n": np.arange(5), "z": np.linspace(0, 1, 5), "s": np.array(list("abcde"))}
    frame = dataframe({**plain, "k": dataframe({"k": [1, 2, None, 4, 5]}, dtype="Int64")["k"]})
    structured = Table(plain).as_array()
    for table in (plain, Table(plain), frame, pa.table(plain), structured):
        with read_table(table) as catalogue:
            assert len(catalogue) == 5 and catalogue.names[:3] == ["n", "z", "s"]
            chunks = list(catalogue.chunks(catalogue.names, rows=2))
        for name, values in plain.items():
            np.testing.assert_array_equal(np.concatenate([c[name] for c in chunks]), values)
    assert next(read_table(frame).chunks(["k"]))["k"][2:3] != [3]  # NaN
    quantity = read_table(QTable({"p": [1.0, 2.0] * u.mas}))
    assert quantity.units == {"p": u.mas}
    with pytest.raises(ValueError, match=r"unequal lengths: a 1, b 2"):
        read_table({"a": [1], "b": [1, 2]})
    with pytest.raises(TypeError, match="got int"):
        read_table(3)


MASK = [False, True, False]
PERIODS = np.array([25.4, 1e20, 12.0])  # the second is under the mask


@pytest.mark.parametrize(
    "table",
    [
        Table({"p": MaskedColumn(PERIODS, mask=MASK, unit="d")}),
        QTable({"p": Masked(PERIODS * u.d, mask=MASK)}),
        QTable({"p": Masked(PERIODS, mask=MASK)}),
        {"p": np.ma.array(PERIODS, mask=MASK)},
        {"p": np.ma.array(PERIODS, mask=MASK, dtype=object)},
        {"p": [25.4, np.ma.masked, 12.0]},
        {"p": [25.4, None, 12.0]},
        {"p": np.array([25.4, None, 12.0], object)},
        np.ma.array([(x,) for x in PERIODS], [("p", float)], mask=[(m,) for m in MASK]),
        {"p": Masked(np.array([[25.4], [1e20], [12.0]]) * u.d, mask=[[m] for m in MASK])},
    ],
)
def test_no_value_under_a_mask_is_used(table):
    with read_table(table) as catalogue:
        values = next(catalogue.chunks(["p"]))["p"]
    np.testing.assert_array_equal(values.ravel(), [25.4, np.nan, 12.0])


def test_data_frames_of_every_type_have_their_blanks_and_byte_order():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"big": np.array([1.0, np.nan], ">f8"), "int": np.array([1, 2], ">i2")})
    frame["nullable"] = pd.array([1, None], dtype="Int64")
    frame["mixed"] = np.array([1.0, pd.NA], object)
    frame["word"] = np.array(["a", None], object)
    frame["bytes"] = np.array([b"a", None], object)
    catalogue = read_table(frame)
    chunk = next(catalogue.chunks(catalogue.names))
    for name in ("big", "nullable", "mixed"):
        np.testing.assert_array_equal(chunk[name], [1, np.nan])
    assert chunk["int"].tolist() == [1, 2] and chunk["int"].dtype.isnative
    assert chunk["word"].tolist() == chunk["bytes"].tolist() == ["a", ""]
    with pytest.raises(ValueError, match=r"DataFrame.*column names occur twice: 'a'"):
        read_table(pd.DataFrame([[1, 2, 3]], columns=["a", "a", "b"]))


def test_what_is_no_array_of_numbers_is_named():
    table = QTable({"place": SkyCoord([1, 2], [3, 4], unit="deg"), "x": [1.0, 2.0]})
    assert next(read_table(table).chunks(["x"]))["x"].tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"'place' is a SkyCoord.*coordinates\.ra"):
        next(read_table(table).chunks(["place"]))
    with pytest.raises(ValueError, match=r"'t' is a Time"):
        next(read_table({"t": Time([1.0, 2.0], format="mjd")}).chunks(["t"]))


def test_missing_columns_are_named_with_near_matches():
    names = ["ID", "ZSPEC", "mag_g"] + [f"c{i}" for i in range(40)]
    with pytest.raises(ValueError) as caught:
        resolve(names, {"redshift": "zspec", "ra": "alpha_j2000", "id": "ID"}, "cat.fits")
    message = str(caught.value)
    for part in ("cat.fits", "data.columns.redshift=ZSPEC", "'alpha_j2000'", "23 more"):
        assert part in message
    assert "ra: no column" in message and "id: no column" not in message
    with pytest.raises(ValueError, match="zz"):
        read_table({"z": [1.0]}).chunks(["zz"])


def test_units_convert_or_are_refused():
    np.testing.assert_allclose(convert(np.array([1.0]), u.arcsec, "mas", "parallax"), 1000.0)
    assert convert(np.array([1.0]), None, "mas", "parallax") == [1.0]
    assert convert(np.array([20.0]), u.mag, "mag(AB)", "g") == [20.0]
    assert convert(np.array([20.0]), u.ABmag, "mag", "g") == [20.0]
    np.testing.assert_allclose(convert(np.array([31.4]), u.ABmag, "nJy", "g"), 1.0, rtol=1e-3)
    for unit in (u.STmag, u.m, u.Unit("Vega", parse_strict="silent")):
        with pytest.raises(ValueError, match=rf"'g'.*{str(unit)[:3]}.*mag"):
            convert(np.array([20.0]), unit, "mag(AB)", "g")


STREAM = """
import resource, sys
import numpy as np
from orrery.tables import (Writer, open_catalogue)

def copy(rows):
    block = {name: np.random.default_rng(0).normal(size=50_000) for name in "abc"}
    with Writer(sys.argv[1]) as out:
        for _ in range(rows // 50_000):
            out.write(block)
    with open_catalogue(sys.argv[1]) as catalogue:
        assert sum(len(c["a"]) for c in catalogue.chunks(list("abc"))) == rows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

small = copy(200_000)
print(copy(2_000_000) - small)
"""


@pytest.mark.parametrize("ending", [".fits", ".parquet", ".hdf5"])
def test_memory_does_not_grow_with_the_catalogue(ending):
    grown = float(run(STREAM, f"x{ending}"))
    assert grown < 25  # MB; the table itself has 48


def test_the_catalogue_does_not_import_torch_or_pandas():
    loaded = run("import sys, orrery.tables; print({'torch', 'pandas'} & set(sys.modules))")
    assert loaded.strip() == "set()"


def test_files_of_a_pattern_in_other_units_are_converted():
    for name, unit, distance in (("a", "pc", 100), ("b", "kpc", 2), ("c", "lyr", 326)):
        table = Table({"d": np.array([distance]), "n": [1]})
        table["d"].unit = unit
        table.write(f"d_{name}.ecsv")
    with open_catalogue("d_*.ecsv") as catalogue:
        (chunk,) = catalogue.chunks(["d"])
        assert catalogue.units == {"d": u.pc}
    np.testing.assert_allclose(chunk["d"], [100, 2000, 99.9518], rtol=1e-5)


@pytest.mark.parametrize(
    "column, message",
    [
        (Table({"d": [1.0]}), r"d_b.ecsv: column 'd' is in 'no unit', and in 'pc' in d_a"),
        (Table({"d": [1.0] * u.K}), "d_b.ecsv: column 'd' is in 'K', which does not convert"),
        (Table({"d": ["near"]}), r"d_b.ecsv: column 'd' is of text, and of float64 in d_a.ecsv"),
        (Table({"d": np.array([2**63], np.uint64)}), "of uint64, and of int64"),
    ],
)
def test_files_of_a_pattern_that_do_not_go_together_are_refused(column, message):
    whole = column["d"].dtype.kind == "u"
    first = Table({"d": np.array([100], int if whole else float)})
    first["d"].unit = "pc"
    first.write("d_a.ecsv")
    if column["d"].dtype.kind in "Uu":
        column["d"].unit = "pc"
    column.write("d_b.ecsv")
    with (
        open_catalogue("d_*.ecsv") as catalogue,
        pytest.raises(ValueError, match=message),
    ):
        list(catalogue.chunks(["d"]))


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".fits"])
def test_files_of_a_pattern_have_one_kind_of_numbers(ending):
    """A column of integers with a blank in the second file alone."""
    blank = np.ma.array([4, 5, 6], mask=[False, True, False])
    for name, values in (("a", [1, 2, 3]), ("b", blank)):
        Table({"n": values, "id": [7, 8, 9]}).write(f"n_{name}{ending}")
    with open_catalogue(f"n_*{ending}") as catalogue:
        chunks = list(catalogue.chunks(["n", "id"], 2))
    assert [len(chunk["n"]) for chunk in chunks] == [2, 2, 2]
    assert {str(chunk["n"].dtype) for chunk in chunks} == {"float64"}
    assert {str(chunk["id"].dtype) for chunk in chunks} == {"int64"}
    np.testing.assert_array_equal(
        np.concatenate([chunk["n"] for chunk in chunks]), [1, 2, 3, 4, np.nan, 6]
    )


def test_identifiers_of_csv_stay_as_they_are_written():
    ids = ["123456789012345678901230", "98765432109876543210"]
    rows = [f"{i},000{k},{2**63 + k},{k}.5,0.{k}" for k, i in enumerate(ids)]
    Path("ids.csv").write_text("\n".join(["long,padded,big,x,y", *rows]) + "\n")
    found = read("ids.csv")
    assert list(found["long"]) == ids
    assert list(found["padded"]) == ["0000", "0001"]
    assert found["big"].dtype == np.uint64 and list(found["big"]) == [2**63, 2**63 + 1]
    assert list(found["x"]) == [0.5, 1.5] and list(found["y"]) == [0.0, 0.1]
