"""Avro files are read as tables, with their arrays, blanks and records within records."""

import sys
from pathlib import Path

import fastavro
import numpy as np
import pytest
from catalogues import read

from orrery.datamodules.scatter_vae import ScatterVaeData
from orrery.physics.gaia_xp import xp_mock
from orrery.tables import open_catalogue
from orrery.tables.avro import RECORDS_AT_ONCE
from orrery.tables.vectors import vectors

pytestmark = pytest.mark.usefixtures("in_tmp")

ARRAY = {"type": "array", "items": "double"}
SOLUTION = {"type": "record", "name": "solution", "fields": [{"name": "parameters", "type": ARRAY}]}
BAND = {"type": "record", "name": "band", "fields": [{"name": "solution", "type": SOLUTION}]}
FIELDS = {
    "source_id": "long",
    "name": "string",
    "g": ["null", "double"],
    "flux": ["null", ARRAY],
    "bpSpec": ["null", BAND],
}


def save(path, fields, records):
    listed = [{"name": name, "type": kind} for name, kind in fields.items()]
    with open(path, "wb") as file:
        fastavro.writer(file, {"type": "record", "name": "Star", "fields": listed}, records)


def star(i, missing=False):
    band = {"solution": {"parameters": [float(i), 0.5]}}
    known = {"g": i / 8, "flux": [1.0 * i, 2.0 * i, 3.0 * i], "bpSpec": band}
    return {"source_id": 2**60 + i, "name": f"s{i}"} | ({} if missing else known)


def test_records_are_rows_and_those_within_are_columns():
    n = RECORDS_AT_ONCE + 2  # the first part has no arrays at all
    save("x.avro", FIELDS, [star(i, missing=i < RECORDS_AT_ONCE) for i in range(n)])
    with open_catalogue("x.avro") as catalogue:
        assert catalogue.names == ["source_id", "name", "g", "flux", "bpSpec.solution.parameters"]
        assert len(catalogue) == n
    table = read("x.avro", rows=300)
    assert table["source_id"].tolist() == [2**60 + i for i in range(n)]
    assert table["name"][-1] == f"s{n - 1}" and table["g"][-1] == (n - 1) / 8
    assert np.isnan(table["g"]).sum() == RECORDS_AT_ONCE
    np.testing.assert_array_equal(table["flux"][-1], (n - 1) * np.array([1.0, 2.0, 3.0]))
    nested = vectors(table["bpSpec.solution.parameters"], "parameters")
    assert np.isnan(nested[0]).all() and nested[-1].tolist() == [n - 1, 0.5]


def test_a_file_without_records_has_its_columns():
    save("x.avro", {"source_id": "long", "g": "double"}, [])
    with open_catalogue("x.avro") as catalogue:
        assert catalogue.names == ["source_id", "g"] and len(catalogue) == 0


def test_spectra_in_avro_are_those_of_the_table_they_were_written_from():
    """Arrays are arrays, or texts as GaiaXPy writes them."""
    stars = xp_mock.simulate(6, np.random.default_rng(0))
    stars = {name: values for name, values in stars.items() if name.startswith(("bp_", "rp_"))}
    lists = [
        {k: v[i].astype(float).tolist() for k, v in stars.items() if v.ndim > 1} for i in range(6)
    ]
    texts = [{k: str(tuple(v)) for k, v in one.items()} for one in lists]
    save("arrays.avro", dict.fromkeys(lists[0], ARRAY), lists)
    save("texts.avro", dict.fromkeys(lists[0], "string"), texts)

    data = ScatterVaeData(split="all")
    data.table = {name: stars[name] for name in lists[0]}
    (expected,) = data.prediction_batches()
    for path in ("arrays.avro", "texts.avro"):
        (found,) = ScatterVaeData(split="all", path=path).prediction_batches()
        for name in ("coefficients", "errors"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


def test_what_is_no_table_is_refused_by_name(monkeypatch):
    with open("numbers.avro", "wb") as file:
        fastavro.writer(file, "double", [1.0, 2.0])
    with pytest.raises(ValueError, match=r"numbers\.avro: its entries are not records"):
        open_catalogue("numbers.avro")
    save("x.avro", FIELDS, map(star, range(100)))
    Path("cut.avro").write_bytes(Path("x.avro").read_bytes()[:-40])
    with pytest.raises(OSError, match=r"cut\.avro.*truncated"):
        open_catalogue("cut.avro")
    monkeypatch.setitem(sys.modules, "fastavro", None)
    with pytest.raises(ValueError, match=r"x\.avro: reading Avro needs .* pip install fastavro"):
        open_catalogue("x.avro")
