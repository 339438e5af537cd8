"""What each format has of its own: FITS scaling, CSV types, groups of HDF5, lists of Parquet."""

import gzip
import re
import warnings
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.io.votable.tree import Resource, TableElement, VOTableFile
from astropy.table import MaskedColumn, QTable, Table
from catalogues import columns, read, write

from orrery.tables import Writer, open_catalogue, read_table

pytestmark = pytest.mark.usefixtures("in_tmp")


def test_fits_scaled_and_compressed_columns():
    fits.BinTableHDU(Table({"t": np.array([1, 3, 5], np.int16)}).as_array()).writeto("x.fits")
    fits.setval("x.fits", "TSCAL1", value=0.5, ext=1)
    fits.setval("x.fits", "TZERO1", value=1.0, ext=1)
    with open("x.fits", "rb") as plain, gzip.open("x.fits.gz", "wb") as packed:
        packed.write(plain.read())
    np.testing.assert_array_equal(read("x.fits.gz", rows=2)["t"], [1.5, 2.5, 3.5])


def several_tables(path, *tables):
    """A FITS file with images among its tables, or a VOTable."""
    if path.endswith(".xml"):
        file = VOTableFile()
        for name, table in tables:
            resource = Resource()
            file.resources.append(resource)
            resource.tables.append(TableElement.from_table(file, Table(table)))
            resource.tables[-1].name = name
        return file.to_xml(path)
    hdus = [fits.PrimaryHDU(np.zeros((3, 3)))]
    for name, table in tables:
        hdus += [fits.BinTableHDU(Table(table), name=name), fits.CompImageHDU(np.zeros((8, 8)))]
    return fits.HDUList(hdus).writeto(path)


@pytest.mark.parametrize(("path", "second"), [("x.fits", 3), ("x.xml", 1)])
def test_tables_of_the_same_columns_are_read_as_one(path, second):
    a, b = {"x": [1.0, 2.0], "y": [3.0, 4.0]}, {"y": [6.0], "x": [5.0]}
    several_tables(path, ("north", a), ("south", b))
    with pytest.warns(UserWarning, match=r"its 2 tables.*read as one, of 3 rows; data\.group="):
        both = read(path)
    assert both["x"].tolist() == [1, 2, 5] and both["y"].tolist() == [3, 4, 6]
    assert read(path, group="South")["x"].tolist() == read(path, group=second)["x"].tolist() == [5]
    with pytest.raises(ValueError, match=rf"(?i){path}: no table data\.group=west; .*south"):
        open_catalogue(path, "west")


@pytest.mark.parametrize("path", ["x.fits", "x.xml"])
def test_tables_of_different_columns_are_listed(path):
    several_tables(path, ("stars", {"x": [1.0]}), ("notes", {"x": [1.0], "w": [2.0]}))
    with pytest.raises(ValueError, match=rf"(?i){path}: holds 2 tables.*stars, 1 rows: x.*notes"):
        open_catalogue(path)
    assert list(read(path, group="notes")) == ["x", "w"]


@pytest.mark.parametrize("path", ["x.fits", "x.xml"])
def test_one_table_with_rows_is_the_table(path):
    several_tables(path, ("empty", {"w": np.zeros(0)}), ("stars", {"x": [1.0]}))
    assert read(path)["x"].tolist() == [1]


def test_constants_beside_a_written_table_are_no_other_table():
    write("x.fits", {"x": np.arange(3.0)}, constants={"meta/grid": np.arange(9.0)})
    assert list(read("x.fits")) == ["x"] and read("x.fits", group="grid")


def test_a_votable_does_not_open_another_file():
    Table({"x": [1.0]}).write("x.xml", format="votable", tabledata_format="binary2")
    text = Path("x.xml").read_text()
    stream = re.sub(r"<STREAM.*</STREAM>", "<STREAM href='file:///etc/passwd'/>", text, flags=re.S)
    Path("x.xml").write_text(stream)
    with pytest.raises(ValueError, match=r"x\.xml: its numbers.*passwd, which is not opened"):
        open_catalogue("x.xml")


def test_fits_text_may_grow_after_the_first_chunk():
    names = np.array(["a"] * 10 + ["a much longer name " * 3], object)
    write("x.fits", {"name": names, "n": np.arange(11)}, step=4)
    back = read("x.fits")
    assert list(back["name"]) == [n.rstrip() for n in names]
    np.testing.assert_array_equal(back["n"], np.arange(11))
    with pytest.raises(ValueError, match=r"'name'.*ASCII"):
        write("y.fits", {"name": np.array(["Böotes"])})


def test_csv_types_hold_for_the_whole_file():
    with open("x.csv", "w") as file:
        file.write("# made by hand\nid,late,flag,text\n")
        file.writelines(
            f"{i},{i if i < 9000 else i + 0.5}, True,{'NA' if i else 'x'}\n" for i in range(10_000)
        )
    chunks = list(open_catalogue("x.csv").chunks(["id", "late", "flag", "text"], rows=1000))
    assert {c["id"].dtype.kind for c in chunks} == {"i"}
    assert {c["late"].dtype.kind for c in chunks} == {"f"}
    assert {c["flag"].dtype.kind for c in chunks} == {"b"}
    assert list(chunks[0]["text"][:2]) == ["x", "NA"]
    with gzip.open("x.csv.gz", "wb") as file:
        file.write(b'a,b\n1,"two\nlines"\n,x\n')
    back = read("x.csv.gz")
    np.testing.assert_array_equal(back["a"], [1, np.nan])
    assert list(back["b"]) == ["two\nlines", "x"]


@pytest.mark.parametrize("ending", [".parquet", ".csv", "memory"])
def test_a_blank_among_long_identifiers_makes_them_text(ending):
    ids = [2**60 + 1, None, 5]
    if ending == ".csv":
        Path("x.csv").write_text(f"source_id,z\n{ids[0]},1\n,2\n5,3\n")
    else:
        pq.write_table(pa.table({"source_id": ids}), "x.parquet")
    mask = [False, True, False]
    masked = {"source_id": np.ma.array([2**60 + 1, 0, 5], mask=mask)}
    with read_table(masked) if ending == "memory" else open_catalogue(f"x{ending}") as catalogue:
        for rows in (1, 3):
            chunks = catalogue.chunks(["source_id"], rows)
            back = np.concatenate([chunk["source_id"] for chunk in chunks])
            assert back.tolist() == [str(2**60 + 1), "", "5"]
    pq.write_table(pa.table({"source_id": [2**60 + 3]}), "y.parquet")
    if ending == ".parquet":
        assert read("?.parquet")["source_id"].tolist()[1:] == ["", "5", str(2**60 + 3)]


TABLE = "ra dec name\n1.5 -2 a\n3.5 4 b\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.txt", TABLE),
        ("bars.txt", TABLE.replace(" ", "|")),
        ("commas.txt", TABLE.replace(" ", ",")),
        ("comment.dat", "# of 2024, by me\n#\n# " + TABLE),
        ("units.dat", "# " + TABLE.replace("\n", "\n# deg deg -\n", 1)),
        ("spaces.cat", " " + TABLE.replace(" ", "  \t ").replace("\n", " \n# note\n\n")),
        ("windows.dat", "\ufeff# " + TABLE.replace("\n", "\r\n")),
        ("comment.csv", "# made by hand\n# " + TABLE.replace(" ", ",")),
        ("glued.csv", "#" + TABLE.replace(" ", ",")),
        ("semicolons.csv", TABLE.replace(" ", ";")),
        ("windows.csv", "\ufeff" + TABLE.replace(" ", ",").replace("\n", "\r\n")),
        ("tabs.tsv", TABLE.replace(" ", "\t")),
        (
            "sextractor.cat",
            "#   1 ra    Right ascension  [deg]\n#   2 dec   Declination\n#   3 name\n"
            + TABLE.partition("\n")[2],
        ),
    ],
)
def test_text_tables_are_read_by_what_is_in_them(name, text):
    Path(name).write_text(text, newline="")
    back = read(name, rows=1)
    assert list(back) == ["ra", "dec", "name"] and back["dec"].tolist() == [-2, 4]
    assert back["ra"].tolist() == [1.5, 3.5] and back["name"].tolist() == ["a", "b"]


def test_sextractors_arrays_take_the_numbers_that_follow():
    text = "# 1 MAG_APER  Magnitudes [mag]\n# 4 FLAGS  Flags\n 20.1 20.2 99.0 0\n 21 21.5 21.6 3\n"
    Path("x.cat").write_text(text)
    with open_catalogue("x.cat") as catalogue:
        assert catalogue.names == ["MAG_APER", "MAG_APER_1", "MAG_APER_2", "FLAGS"]
        assert catalogue.units == dict.fromkeys(catalogue.names[:3], u.mag)


def test_machine_readable_tables_have_their_units_and_blanks():
    table = Table({"ra": MaskedColumn([1.5, 2.5], mask=[False, True], unit="deg"), "n": [1, 2]})
    table.write("x.txt", format="ascii.mrt")
    with open_catalogue("x.txt") as catalogue:
        assert catalogue.units == {"ra": u.deg}
        np.testing.assert_array_equal(next(catalogue.chunks(["ra"]))["ra"], [1.5, np.nan])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.dat", "1 2\n3 4\n", "first line is numbers.*2 column names"),
        ("x.csv", "a;b\n1;2,5\n", "column 'b' has commas in place of decimal points"),
        ("x.dat", "a b\n1 2\n3\n", "Expected 2 columns, got 1"),
    ],
)
def test_text_that_is_no_such_table_is_refused(name, text, message):
    Path(name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
        open_catalogue(name)


def test_parquet_lists_dictionaries_and_astropy_units():
    QTable({"z": [1.0, 2.0] * u.mas}).write("astropy.parquet")
    with open_catalogue("astropy.parquet") as catalogue:
        assert catalogue.units == {"z": u.mas}
    table = pa.table({"v": [[1.0, 2.0], [3.0, None]], "s": ["a", "b"], "bad": [[1], [1, 2]]})
    pq.write_table(table.set_column(1, "s", table["s"].dictionary_encode()), "x.parquet")
    back = read("x.parquet", ["v", "s"])
    np.testing.assert_array_equal(back["v"], [[1.0, 2.0], [3.0, np.nan]])
    assert list(back["s"]) == ["a", "b"]
    with pytest.raises(ValueError, match=r"'bad'.*unequal"):
        read("x.parquet", ["bad"])


def test_hdf5_group_is_found_or_asked_for():
    with h5py.File("rail.hdf5", "w") as file:
        file["photometry/redshift"] = np.arange(4.0)
        file["photometry/redshift"].attrs["units"] = "km / s"
        file["other/x"] = np.arange(7)
    with open_catalogue("rail.hdf5") as catalogue:
        assert catalogue.names == ["redshift"] and catalogue.units["redshift"] == u.km / u.s
    assert list(read("rail.hdf5", group="other")) == ["x"]
    with h5py.File("two.hdf5", "w") as file:
        file["one/x"], file["two/x"] = np.arange(4), np.arange(4)
    with pytest.raises(ValueError, match=r"two.hdf5.*one, two.*data\.group="):
        open_catalogue("two.hdf5")
    with pytest.raises(ValueError, match=r"data\.group=three; groups with columns: one, two"):
        open_catalogue("two.hdf5", "three")
    with h5py.File("uneven.hdf5", "w") as file:
        file["x"], file["y"] = np.arange(4), np.arange(5)
    with pytest.raises(ValueError, match="unequal length"):
        open_catalogue("uneven.hdf5")


def test_netcdf_is_read_by_xarray_and_as_a_table(in_tmp):
    import xarray

    rows = {"id": np.array(["x", "yy"]), "z": np.array([1.0, 2.0]), "draws": np.ones((2, 4, 3))}
    names = {"parameter": np.array(["a", "b", "c"])}
    with Writer(
        "out.nc", {"z": "Mpc"}, locations={"draws": "posterior"}, constants=names
    ) as writer:
        writer.write(rows)
        writer.write(rows)
    with xarray.open_dataset("out.nc", engine="h5netcdf") as found:
        assert found["posterior"].shape == (4, 4, 3) and found["z"].dims == ("rows",)
        assert list(found["parameter"].values) == ["a", "b", "c"]
        assert list(found["id"].values) == ["x", "yy"] * 2
    with open_catalogue("out.nc") as catalogue:
        assert set(catalogue.names) == {"id", "z", "posterior"} and len(catalogue) == 4


def test_hdf5_tables_of_astropy_and_pandas():
    table = Table(columns(20))
    table["z"].unit = "mas"
    table.write("x.hdf5", path="data", serialize_meta=True)
    with open_catalogue("x.hdf5") as catalogue:
        assert catalogue.names == table.colnames and catalogue.units == {"z": u.mas}
    back = read("x.hdf5", rows=7)
    for name in table.colnames:
        np.testing.assert_array_equal(back[name].astype(table[name].dtype), table[name])


def test_data_frames_in_hdf5_are_read():
    pytest.importorskip("tables")
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"id": [7, 8, 9], "z": [0.1, np.nan, 0.3], "w": np.ones(3)})
    frame["good"], frame["small"] = [True, False, True], np.arange(3, dtype=np.uint8)
    frame.to_hdf("fixed.h5", key="t")
    frame["name"] = ["a", None, "c"]
    frame.to_hdf("text.h5", key="t")
    frame.to_hdf("table.h5", key="t", format="table")
    frame.to_hdf("columns.h5", key="t", format="table", data_columns=["z"])
    frame.to_hdf("columns.h5", key="other", format="table", data_columns=True)
    for path, group in (("fixed.h5", None), ("table.h5", None), ("columns.h5", "t")):
        back = read(path, group=group, rows=2)
        for name, values in back.items():
            expected = frame[name].fillna("") if name == "name" else frame[name]
            np.testing.assert_array_equal(values, expected)
            assert name == "name" or values.dtype == frame[name].dtype
        assert set(back) == set(frame) - ({"name"} if path == "fixed.h5" else set())
    assert read("text.h5", ["id"])["id"].tolist() == [7, 8, 9]
    with pytest.raises(ValueError, match=r"text\.h5: column 'name' is text.*to_parquet"):
        read("text.h5", ["name"])
    with pytest.raises(ValueError, match=r"several data frames: other, t; .*data\.group"):
        open_catalogue("columns.h5")
    assert read("columns.h5", ["z"], group="other/table")["z"].tolist()[::2] == [0.1, 0.3]


def test_no_code_in_a_pickle_of_pandas_is_run():
    with h5py.File("x.h5", "w") as file:
        file["t/table"] = np.zeros(3, [("index", "i8"), ("values_block_0", "f8", (1,))])
        file["t"].attrs["pandas_type"] = np.bytes_(b"frame_table")
        evil = b"cos\nsystem\n(S'touch evil'\ntR."
        file["t/table"].attrs["values_block_0_kind"] = np.bytes_(evil)
    with pytest.raises(OSError, match=r"x\.h5.*a pickle of os\.system"):
        open_catalogue("x.h5")
    assert not Path("evil").exists()


def test_qp_reads_an_output_file_and_so_do_we():
    qp = pytest.importorskip("qp")
    grid = np.linspace(0, 3, 31)
    pz = np.exp(-((grid - np.linspace(0.5, 2.5, 9)[:, None]) ** 2) / 0.02)
    write(
        "pz.hdf5",
        {"pz": pz, "object_id": np.arange(9), "name": np.array([f"g{i}" for i in range(9)])},
        step=4,
        locations={"pz": "data/yvals", "object_id": "ancil/object_id", "name": "ancil/name"},
        constants={
            "meta/pdf_name": np.array([b"interp"]),
            "meta/pdf_version": np.array([0]),
            "meta/xvals": grid[None],
        },
    )
    ensemble = qp.read("pz.hdf5")
    assert ensemble.npdf == 9
    np.testing.assert_array_equal(ensemble.ancil["object_id"], np.arange(9))
    np.testing.assert_allclose(ensemble.mode(grid).ravel(), np.linspace(0.5, 2.5, 9), atol=0.06)
    np.testing.assert_array_equal(read("pz.hdf5", ["object_id"])["object_id"], np.arange(9))
    np.testing.assert_array_equal(read("pz.hdf5", ["yvals"])["yvals"], pz)


def test_units_in_fits_are_spelled_as_its_standard_spells_them(tmp_path):
    path = tmp_path / "masses.fits"
    with Writer(path, units={"mass": "Msun", "age": "Gyr", "log_sfr": "dex(Msun/yr)"}) as out:
        out.write({name: np.array([1.0]) for name in ("mass", "age", "log_sfr")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = Table.read(path)
    assert str(table["mass"].unit) == "solMass" and str(table["age"].unit) == "Gyr"
    assert table["log_sfr"].unit is None  # the standard has no dex
