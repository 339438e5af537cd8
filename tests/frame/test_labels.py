"""Outputs with labels: whole numbers inside, names in every file and table that a user sees."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from catalogues import read

from orrery.datamodules.dataset import GenerationRequest
from orrery.evaluation.evaluate import generate
from orrery.evaluation.predictions import Predictions, labelled, table_writer
from orrery.models.base import Component, Fit, Output

pytestmark = pytest.mark.usefixtures("in_tmp")
LABELS = ("NGC 104", "a much longer name of a cluster", "field")
COLUMNS = {
    "host": Output("", "where it comes from", labels=LABELS),
    "p": Output("", "its probability"),
}
ROWS = {
    "host": np.array([0, 2, -1, 1], np.int32),
    "p": np.array([0.5, 0.9, np.nan, 0.1]),
}
NAMES = ["NGC 104", "field", "", "a much longer name of a cluster"]
ENDINGS = ["fits", "csv", "parquet", "hdf5", "ecsv"]


def test_numbers_become_names_and_minus_one_nothing():
    found = labelled(ROWS, COLUMNS)
    assert found["host"].tolist() == NAMES
    assert found["p"] is ROWS["p"]
    assert labelled({"host": ROWS["host"][:1]}, COLUMNS)["host"].dtype == found["host"].dtype


@pytest.mark.parametrize("ending", ENDINGS)
def test_names_are_in_files_whatever_the_first_chunk_holds(ending):
    path = f"x.{ending}"
    with table_writer(path, COLUMNS, {}) as writer:
        for i in range(4):
            chunk = {name: values[i : i + 1] for name, values in ROWS.items()}
            writer.write(labelled(chunk, COLUMNS))
    found = read(path)
    assert np.ma.filled(found["host"], "").tolist() == NAMES
    np.testing.assert_allclose(found["p"], ROWS["p"])


@pytest.mark.parametrize("ending", ENDINGS)
def test_names_survive_the_joining_of_parts_of_several_processes(ending, tmp_path):
    model = SimpleNamespace(outputs=COLUMNS)
    predictions = Predictions(4, tmp_path / f"x.{ending}", None, [], {}, {})
    predictions.job = "job"
    for rank, part in enumerate((slice(0, 2), slice(2, 4))):
        rows = {name: values[part] for name, values in ROWS.items()}
        with predictions._new_writer(predictions._part(rank), model) as writer:
            writer.write(labelled(rows, COLUMNS))
    assert predictions._join(model, [2, 2]) is None
    found = read(str(tmp_path / f"x.{ending}"))
    assert np.ma.filled(found["host"], "").tolist() == NAMES
    assert len(list(tmp_path.iterdir())) == 1


class Draws(Component):
    """A toy that draws hosts."""

    def __init__(self) -> None:
        super().__init__(Fit())
        self.record = {"versions": {}, "git_commit": ""}

    def generated_columns(self, request):
        return COLUMNS

    def generated(self, request):
        yield ROWS


@pytest.mark.parametrize("ending", ENDINGS)
def test_generated_objects_have_names(ending):
    generate(Draws(), GenerationRequest(4), "toy", f"x.{ending}")
    found = read(f"x.{ending}")
    assert np.ma.filled(found["host"], "").tolist() == NAMES


def test_a_table_predicted_from_python_has_names(runs):
    from orrery import load
    from orrery.checkpoint import build

    model = load(runs("gems") / "best.ckpt")
    data = build(model.record["config"]["data"] | {"predict_batch_size": 50})
    stars = data.simulate("test")
    table = model.predict(stars, predict_batch_size=50)
    assert set(table["host"]) <= set(model.clusters)
    assert set(table["host_true"]) == {*model.clusters, "field"}
    assert table["host_true"].tolist() == stars["host"].tolist()
    with torch.inference_mode():
        rows = torch.cat([model.predict_step(b)["host"] for b in data.prediction_batches()])
    assert table["host"].tolist() == [model.clusters[i] for i in rows.tolist()]
