"""Broken files, full disks, wrong paths: an error that names the file, and never half a file."""

import gzip
import os
import re
import warnings
import zipfile
from pathlib import Path

import fastavro
import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from catalogues import ENDINGS, read, run, write

from orrery.tables import Writer, open_catalogue

pytestmark = pytest.mark.usefixtures("in_tmp")


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89HDF\r\n\x00\x00" * 40, "binary"),
        ("name,z\nBöotes,1\n".encode("latin-1"), "UTF-8"),
        (b"a,b\n1,2\n1,2,3\n", "well-formed"),
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
from orrery.tables import Writer
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


def damaged(content, random):
    """A file's bytes with some flipped, zeroed, overwritten or cut off, often near its ends."""
    data = bytearray(content)
    place = int(random.choice([random.integers(len(data)), random.integers(min(len(data), 3000))]))
    kind, length = random.integers(4), int(random.integers(1, 100))
    if kind == 0:
        data[place] ^= 1 << int(random.integers(8))
    elif kind == 1:
        data = data[:place]
    else:
        piece = data[place : place + length]
        data[place : place + length] = bytes(len(piece)) if kind == 2 else b"9" * len(piece)
    return bytes(data)


@pytest.mark.parametrize(
    "ending",
    [".fits", ".fits.gz", ".ecsv", ".csv", ".csv.gz", ".parquet", ".hdf5", ".npz", ".vot", ".avro"],
)
def test_a_damaged_file_is_read_or_refused_by_name(ending):
    random = np.random.default_rng(len(ending))
    table = {"id": np.arange(60), "z": random.normal(size=60), "n": np.array(["star"] * 60, "S4")}
    inner = ending.removesuffix(".gz")
    if (
        ending == ".hdf5"
    ):  # without text of variable length: HDF5 itself hangs where that is damaged
        with h5py.File("x.hdf5", "w") as file:
            file.update(table)
    elif ending == ".npz":
        np.savez("x.npz", **table)
    elif ending == ".avro":
        fields = [{"name": "id", "type": "long"}, {"name": "z", "type": ["null", "double"]}]
        records = [{"id": i, "z": z} for i, z in zip(range(60), table["z"].tolist(), strict=True)]
        with open("x.avro", "wb") as file:
            fastavro.writer(file, {"type": "record", "name": "x", "fields": fields}, records)
    else:
        Table(table).write(f"x{inner}", **({"format": "votable"} if ending == ".vot" else {}))
    content = Path(f"x{inner}").read_bytes()
    for _ in range(20):
        bad = damaged(content, random)
        Path(f"bad{ending}").write_bytes(gzip.compress(bad) if ending != inner else bad)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(f"bad{ending}")
        except (OSError, ValueError) as error:
            assert f"bad{ending}" in str(error) and len(str(error)) < 1500


def test_a_promise_of_more_rows_than_the_file_holds_is_refused():
    Table({"z": np.zeros(10)}).write("x.fits")
    fits.setval("x.fits", "NAXIS2", value=10**12, ext=1)
    Path("x.fits.gz").write_bytes(gzip.compress(Path("x.fits").read_bytes()))
    with h5py.File("x.hdf5", "w") as file:
        file.create_dataset("z", (10**12,), float, chunks=(1000,))
    with zipfile.ZipFile("x.npz", "w") as archive, archive.open("z.npy", "w") as member:
        head = {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
        np.lib.format.write_array_header_1_0(member, head)
    Table({"z": np.zeros(10)}).write("x.vot", format="votable")
    text = re.sub(r"<TABLE[^D>]*>", '<TABLE nrows="1000000000000">', Path("x.vot").read_text())
    Path("x.vot").write_text(text)
    for name in ("x.fits", "x.fits.gz", "x.hdf5", "x.npz", "x.vot"):
        with pytest.raises(OSError, match=rf"{name}: .*(truncated|damaged)"):
            open_catalogue(name)


def test_hdf5_columns_in_other_files_are_refused():
    with h5py.File("other.h5", "w") as file:
        file["z"] = np.arange(3.0)
    layout = h5py.VirtualLayout((3,), float)
    layout[:] = h5py.VirtualSource("other.h5", "z", (3,))
    for name, add in (
        ("link", lambda file: file.update({"z": h5py.ExternalLink("other.h5", "z")})),
        ("soft", lambda file: file.update({"a/b": h5py.ExternalLink("other.h5", "/"),
                                           "z": h5py.SoftLink("/a/b/z")})),
        ("raw", lambda file: file.create_dataset("z", (3,), "i1", external="other.h5")),
        ("virtual", lambda file: file.create_virtual_dataset("z", layout)),
    ):  # fmt: skip
        with h5py.File(f"{name}.h5", "w") as file:
            add(file)
        with pytest.raises(ValueError, match=rf"{name}\.h5: .* in other\.h5, which is not opened"):
            open_catalogue(f"{name}.h5")
    with h5py.File("inside.h5", "w") as file:
        file["z"], file["same"] = np.arange(3.0), h5py.SoftLink("/z")
    assert read("inside.h5")["same"].tolist() == [0, 1, 2]
