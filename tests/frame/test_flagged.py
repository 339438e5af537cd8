"""What flags and ranks say of a whole catalogue, and that it is stored with the predictions."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from conftest import command

from orrery.evaluation import flagged
from orrery.models.base import Output
from orrery.tables import Writer, open_catalogue

COLUMNS = {
    "x": Output("", "an answer"),
    "ood": Output("", "a rank", unusual="high"),
    "p_value": Output("", "another", unusual="low"),
    "flags": Output("", "bits", bits={"a": "first", "b": "second"}),
}
USUAL = {"share_ood": 0.1, "share_p_value": 0.1, "share_a": 0.2, "share_b": 0.01}


def rows(n, flags=0, **ranks):
    uniform = (np.arange(n) + 0.5) / n
    return {"x": uniform, "ood": uniform, "p_value": uniform, "flags": np.full(n, flags)} | ranks


def sentences(found, n=1000):
    return flagged.remarks(COLUMNS, found, n, USUAL)


def test_a_usual_catalogue_is_not_remarked_on():
    found = flagged.shares(COLUMNS, rows(1000))
    assert found == {"ood": 0.1, "p_value": 0.1, "a": 0.0, "b": 0.0}
    assert sentences(found) == [] and flagged.summary(COLUMNS, found) == "flags: none"


def test_ranks_at_the_unusual_end_are_remarked_on():
    n = 1000
    high = flagged.shares(COLUMNS, rows(n, ood=np.linspace(0.85, 0.99, n)))
    (sentence,) = sentences(high)
    assert "64% of the 1,000 objects have ood above 0.9, where 10% are usual" in sentence
    low = flagged.shares(COLUMNS, rows(n, p_value=np.linspace(0, 0.09, n)))
    assert "100% of the 1,000 objects have p_value below 0.1" in sentences(low)[0]
    few = flagged.shares(COLUMNS, rows(5, ood=np.array([0.95, 0.95, 0.1, 0.2, 0.3])))
    assert sentences(few, 5) == []  # two of five are no evidence


def test_flags_beyond_the_usual_share_are_remarked_on():
    found = flagged.shares(COLUMNS, rows(1000, flags=3))
    assert flagged.summary(COLUMNS, found) == "flags: a 100%, b 100%"
    first, second = sentences(found)
    assert first.startswith("100% of the 1,000 objects have the flag a: first (of held-out")
    assert "20%" in first and "1%" in second
    usual = rows(1000, flags=np.where(np.arange(1000) % 5 == 0, 1, 0))
    assert sentences(flagged.shares(COLUMNS, usual)) == []
    assert flagged.remarks(COLUMNS, found, 1000, {}) == []  # a new model's own rows


def test_unanswered_rows():
    assert flagged.unanswered(COLUMNS, {"x": np.full(3, np.nan)})
    assert not flagged.unanswered(COLUMNS, {"x": np.array([np.nan, 1.0])})
    assert not flagged.unanswered(COLUMNS, {"x": np.empty(0)})


@pytest.mark.parametrize("ending", ["fits", "ecsv", "hdf5", "parquet"])
@pytest.mark.parametrize("length", [10, 9000])
def test_metadata_that_are_found_while_writing_are_in_the_file(tmp_path, ending, length):
    meta = {"model": "m"}
    path = tmp_path / f"out.{ending}"
    with Writer(path, meta=meta) as writer:
        for start in range(0, 3000, 1000):
            writer.write({"x": np.arange(start, start + 1000), "t": np.full(1000, "abc")})
        meta["remarks"] = "r" * length
    with open_catalogue(path) as catalogue:
        (chunk,) = catalogue.chunks(["x", "t"])
    np.testing.assert_array_equal(chunk["x"], np.arange(3000))
    assert set(chunk["t"]) == {"abc"}
    if ending == "fits":
        header = fits.getheader(path, 1)
        words = [header.get("REMARKS", ""), *header.get("HISTORY", ())]
        assert "".join(map(str, words)).count("r") >= length
    elif ending == "ecsv":
        assert Table.read(path).meta["remarks"] == "r" * length
    elif ending == "hdf5":
        import h5py

        assert h5py.File(path).attrs["remarks"] == "r" * length
    else:
        import pyarrow.parquet as pq

        assert pq.read_metadata(path).metadata[b"remarks"].decode() == "r" * length
    assert list(tmp_path.iterdir()) == [path]


def test_remarks_are_printed_and_stored(runs, tmp_path):
    galaxies = {}
    for i, band in enumerate("ugrizy"):
        galaxies[f"mag_{band}"] = 20.0 + 0.1 * i + np.linspace(0, 0.1, 50)
        galaxies[f"mag_err_{band}"] = np.full(50, 0.001)
    Table(galaxies).write(tmp_path / "bright.fits")
    words = [f"checkpoint={runs('zephyr')}/best.ckpt", f"data.path={tmp_path}/bright.fits"]
    done = command("evaluate.py", *words, f"output={tmp_path}/pz.ecsv", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "flags: " in said and "note: this catalogue is unlike the training set" in said
    meta = Table.read(tmp_path / "pz.ecsv").meta
    assert meta["remarks"].startswith("this catalogue is unlike") and "unusual" in meta["flags"]
