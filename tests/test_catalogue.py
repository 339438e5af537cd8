"""Tables in and out: every format, blanks, units, broken files, full disks, constant memory."""

import gzip
import os
import subprocess
import sys

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable, Table

from datamodules.catalogue import Writer, convert, open_catalogue, read_table, resolve

ENDINGS = [".fits", ".ecsv", ".csv", ".parquet", ".hdf5"]
UNITS = {"z": "mas", "flux": "nJy", "mag": "mag(AB)"}


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(os.getcwd())
    monkeypatch.chdir(tmp_path)


def columns(rows=1000, vectors=True):
    rng = np.random.default_rng(3)
    table = {
        "zeta": np.arange(rows, dtype=np.int64) + 2**60,  # not in alphabetical order
        "z": rng.normal(size=rows),
        "flux": rng.normal(size=rows).astype(np.float32),
        "mag": rng.normal(size=rows),
        "count": np.arange(rows, dtype=np.uint16) + 40_000,
        "good": np.arange(rows) % 3 == 0,
        "name": np.array([f"star {i}, 'the' \"{i % 7}\"" for i in range(rows)]),
    }
    if vectors:
        table["pz"] = rng.normal(size=(rows, 5))
        table["cov"] = rng.normal(size=(rows, 2, 3))
    return table


def write(path, table, step=300, **about):
    with Writer(path, **about) as out:
        for first in range(0, max(len(next(iter(table.values()))), 1), step):
            out.write({name: values[first : first + step] for name, values in table.items()})


def read(path, names=None, **how):
    group = how.pop("group", None)
    with open_catalogue(path, group) as catalogue:
        names = names or catalogue.names
        pieces = list(catalogue.chunks(names, **how))
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in names}


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


def test_blanks_among_integers_too_large_for_a_float_are_refused():
    pq.write_table(pa.table({"source_id": [2**60 + 1, None]}), "x.parquet")
    with open_catalogue("x.parquet") as catalogue, pytest.raises(ValueError, match="source_id"):
        list(catalogue.chunks(["source_id"]))


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


def test_fits_scaled_and_compressed_columns():
    fits.BinTableHDU(Table({"t": np.array([1, 3, 5], np.int16)}).as_array()).writeto("x.fits")
    fits.setval("x.fits", "TSCAL1", value=0.5, ext=1)
    fits.setval("x.fits", "TZERO1", value=1.0, ext=1)
    with open("x.fits", "rb") as plain, gzip.open("x.fits.gz", "wb") as packed:
        packed.write(plain.read())
    np.testing.assert_array_equal(read("x.fits.gz", rows=2)["t"], [1.5, 2.5, 3.5])
    one, two = (fits.BinTableHDU(Table({n: [1]}).as_array(), name=n) for n in ("one", "two"))
    fits.HDUList([fits.PrimaryHDU(), one, two]).writeto("two.fits")
    assert list(read("two.fits")) == ["one"] and list(read("two.fits", group="two")) == ["two"]
    with pytest.raises(ValueError, match=r"data.group=three.*ONE, TWO"):
        open_catalogue("two.fits", "three")


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89HDF\r\n\x00\x00" * 40, "binary"),
        ("name,z\nBöotes,1\n".encode("latin-1"), "UTF-8"),
        (b"a,b\n1,2\n1,2,3\n", "well-formed"),
        (b"a;b\n1;2\n", "comma"),
        (b"1.0,2.0\n3.0,4.0\n", "column names"),
        (b"a,a\n1,2\n", "twice"),
        (b"# only a comment\n", "column names"),
        (b"", "empty"),
    ],
)
def test_a_bad_csv_is_refused_by_name(content, message):
    with open("bad.csv", "wb") as file:
        file.write(content)
    with pytest.raises(ValueError, match=rf"bad\.csv.*{message}"):
        open_catalogue("bad.csv")


def test_ecsv_entries_must_be_of_the_declared_type():
    Table({"n": [1, 2]}).write("x.ecsv")
    with open("x.ecsv", "a") as file:
        file.write("word\n")
    with pytest.raises(ValueError, match=r"x.ecsv: column 'n' is declared int64"):
        open_catalogue("x.ecsv")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_table_without_rows_is_allowed(ending):
    write(f"x{ending}", {"z": np.zeros(0), "name": np.array([], str)})
    with open_catalogue(f"x{ending}") as catalogue:
        assert len(catalogue) == 0 and catalogue.names == ["z", "name"]
        assert list(catalogue.chunks(["z"])) == []


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


def test_hdf5_tables_of_astropy_and_pandas():
    table = Table(columns(20))
    table["z"].unit = "mas"
    table.write("x.hdf5", path="data", serialize_meta=True)
    with open_catalogue("x.hdf5") as catalogue:
        assert catalogue.names == table.colnames and catalogue.units == {"z": u.mas}
    back = read("x.hdf5", rows=7)
    for name in table.colnames:
        np.testing.assert_array_equal(back[name].astype(table[name].dtype), table[name])
    pytest.importorskip("tables")
    frame = pytest.importorskip("pandas").DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    frame.to_hdf("frame.hdf5", key="t")
    with pytest.raises(ValueError, match="pandas HDF5"):
        open_catalogue("frame.hdf5")
    frame.to_hdf("frame2.hdf5", key="t", format="table", data_columns=True)
    np.testing.assert_array_equal(read("frame2.hdf5", ["a", "b"], group="t/table")["b"], [3, 4])


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


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("old", [None, b"an older file"])
def test_interrupted_writing_leaves_no_trace(ending, old, tmp_path):
    path = tmp_path / f"x{ending}"
    if old:
        path.write_bytes(old)
    with pytest.raises(KeyboardInterrupt), Writer(path) as out:
        out.write({"z": np.zeros(100)})
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ([path.name] if old else [])
    assert not old or path.read_bytes() == old


FILL = """
import os, resource, sys
import numpy as np
from datamodules.catalogue import Writer
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
for ending in sys.argv[1:]:
    for chunks in (1, 4, 20):  # with 4 the failure may come as late as the last flush
        try:
            with Writer("x" + ending) as out:
                for _ in range(chunks):
                    out.write({"z": np.random.default_rng(chunks).normal(size=10_000)})
            os.unlink("x" + ending)
        except OSError as error:
            print(ending, chunks, error)
"""


def test_a_file_that_cannot_grow_is_an_error_and_not_half_a_file(tmp_path):
    lines = run(FILL, *ENDINGS).splitlines()
    for ending in ENDINGS:
        assert any(
            f"{ending} 20 " in line and f"writing x{ending} failed" in line for line in lines
        )
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_full_disk_is_reported_with_the_path(ending, tmp_path, monkeypatch):
    with pytest.raises(OSError, match=rf"x\{ending}.*No space left"):  # noqa: SIM117
        with Writer(tmp_path / f"x{ending}") as out:
            hidden = out._hidden
            hidden.symlink_to("/dev/full")
            for _ in range(50):
                out.write({"z": np.random.default_rng(0).normal(size=10_000)})
    assert os.listdir(tmp_path) == []


def test_the_writer_refuses_what_it_cannot_write(tmp_path):
    for name, message in (("x.csv.gz", "gzip it"), ("x.txt", "known: "), ("x", "known: ")):
        with pytest.raises(ValueError, match=message):
            Writer(name)
    with pytest.raises(FileNotFoundError, match="folder"):
        Writer("nowhere/x.fits")
    with pytest.raises(ValueError, match="'z': unknown unit 'parsnip'"):
        Writer("x.fits", units={"z": "parsnip"})
    for chunk, message in (
        ({"z": np.zeros(3, np.float32)}, "z: .*float32"),
        ({"y": np.zeros(3)}, "absent"),
        ({"z": np.zeros((3, 2))}, "z: "),
    ):
        with pytest.raises(ValueError, match=message), Writer("x.fits") as out:
            out.write({"z": np.zeros(3)})
            out.write(chunk)
    for bad in ({"z": np.ma.array([1.0], mask=[True])}, {"z": np.array([{}])}, {"z": np.zeros(())}):
        with pytest.raises(ValueError, match="column 'z'"), Writer("x.fits") as out:
            out.write(bad)
    with pytest.raises(ValueError, match=r"'pz'.*\.hdf5"), Writer("x.csv") as out:
        out.write({"pz": np.zeros((3, 2))})
    with pytest.raises(ValueError, match="nothing was written"), Writer("x.fits"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("ending", [".fits", ".hdf5", ".parquet", ".fits.gz", ".csv.gz"])
def test_a_truncated_file_is_named(ending):
    inner = ending.removesuffix(".gz")
    write(f"x{inner}", {"z": np.random.default_rng(0).normal(size=20_000)})
    with open(f"x{inner}", "rb") as file:
        content = file.read()
    content = gzip.compress(content) if ending.endswith(".gz") else content
    for fraction in (0.7, 0.01):
        with open(f"cut{ending}", "wb") as file:
            file.write(content[: int(fraction * len(content))])
        with pytest.raises((OSError, ValueError), match=rf"cut\{ending}.*truncated"):
            read(f"cut{ending}")


def test_a_path_that_is_no_catalogue_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.fits"):
        open_catalogue("no.fits")
    (tmp_path / "dir.fits").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        open_catalogue("dir.fits")
    (tmp_path / "x.xlsx").write_text("x")
    with pytest.raises(ValueError, match=r"x\.xlsx.*\.parquet"):
        open_catalogue("x.xlsx")
    for name in ("x.fits", "x.hdf5", "x.parquet"):
        (tmp_path / name).write_text("not a table at all")
        with pytest.raises(OSError, match=name):
            open_catalogue(name)
    (tmp_path / "x.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match="no groups"):
        open_catalogue("x.csv", "photometry")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_explained(tmp_path):
    (tmp_path / "x.csv").write_text("a\n1\n")
    (tmp_path / "x.csv").chmod(0)
    with pytest.raises(PermissionError, match=r"x\.csv"):
        open_catalogue("x.csv")


STREAM = """
import resource, sys
import numpy as np
from datamodules.catalogue import Writer, open_catalogue

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
    loaded = run("import sys, datamodules.catalogue; print({'torch', 'pandas'} & set(sys.modules))")
    assert loaded.strip() == "set()"


def run(program, *arguments):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
