"""Structures of a table of abundances: which stars belong to which; the table that is written."""

import json

import numpy as np
import pytest
from astropy.table import Table

from orrery.datamodules.abundances.structures import AbundanceStructures
from orrery.datamodules.dataset import GroupedData
from orrery.evaluation.evaluate import compare
from orrery.models.abundances import Abundances
from orrery.models.base import Comparison, Component, Fit, Output

N = 12


def table(**columns) -> Table:
    random = np.random.default_rng(0)
    found = {"fe_h": random.normal(-2, 0.3, N), "mg_h": random.normal(-1.6, 0.3, N)}
    found |= {f"{name}_error": np.full(N, 0.1) for name in list(found)}
    return Table({**columns, **found})


def written(tmp_path, **columns) -> str:
    path = tmp_path / "stars.csv"
    table(**columns).write(path)
    return str(path)


def groups(data: AbundanceStructures) -> list[str]:
    return [str(name) for _, names in data.grouped_batches() for name in names]


def structures(path: str, **settings) -> AbundanceStructures:
    return AbundanceStructures(
        path=path, elements=["Fe", "Mg"], split="all", solar="asplund2009", **settings
    )


def test_stars_are_grouped_by_the_named_column_and_blanks_by_none(tmp_path):
    host = np.array(["Indus"] * 5 + ["Jhelum"] * 5 + ["", "nan"])
    data = structures(written(tmp_path, host=host), group_by="host")
    assert isinstance(data, GroupedData)
    assert groups(data) == ["Indus"] * 5 + ["Jhelum"] * 5 + ["", ""]


def test_numbers_of_structures_are_names_too(tmp_path):
    data = structures(written(tmp_path, cluster_id=np.arange(N) // 4), group_by="cluster_id")
    assert groups(data) == ["0"] * 4 + ["1"] * 4 + ["2"] * 4


def test_without_the_column_structures_are_those_in_names_of_stars(tmp_path, capsys):
    name = np.array([f"{'Indus' if i < 6 else 'Jhelum_2'}_{i}" for i in range(N)])
    data = structures(written(tmp_path, name=name), group_by="stream")
    assert groups(data) == ["Indus"] * 6 + ["Jhelum"] * 6
    assert "has no column 'stream': structures are those of 'structure'" in capsys.readouterr().out


def test_another_column_of_structures_is_taken_with_a_sentence(tmp_path, capsys):
    data = structures(written(tmp_path, galaxy=np.array(["Draco"] * N)), group_by="stream")
    assert groups(data) == ["Draco"] * N
    assert "structures are those of 'galaxy'" in capsys.readouterr().out


def test_a_table_without_structures_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no column 'stream', nor .* data.group_by=<column>"):
        groups(structures(written(tmp_path, snr=np.arange(N) + 1.0), group_by="stream"))


def test_the_simulation_has_its_galaxies():
    data = AbundanceStructures(elements=["Fe", "Mg"], n_test=50)
    assert {name.split()[0] for name in groups(data)} <= {"dwarf", "stream"}


def test_the_model_compares_them(tmp_path):
    """Untrained: a comparison needs the density's shape alone."""
    host = np.array(["Indus"] * 6 + ["Jhelum"] * 6)
    model = Abundances(["Fe", "Mg"], components=2)
    data = structures(written(tmp_path, host=host), group_by="host", permutations=19)
    found = model.compare(data, 0)
    assert found.rows["structure_b"].tolist() == ["Jhelum"]
    assert 0 < found.rows["p_value"][0] <= 1


class Compares(Component):
    """A toy whose comparison is known."""

    __module__ = "orrery.models.toy"  # where components are

    def __init__(self) -> None:
        super().__init__(Fit())
        self.record = {"versions": {}, "git_commit": "", "config": {}}

    def compare(self, data, seed):
        rows = {"a": np.array(["Indus", "Elqui"]), "shift": np.array([0.1, seed])}
        outputs = {"a": Output("", "first"), "shift": Output("dex", "difference, B - A")}
        return Comparison(rows, outputs, {"pairs": 2.0}, ["few stars"])


@pytest.mark.parametrize("ending", ["ecsv", "csv", "fits", "parquet", "hdf5"])
def test_a_comparison_is_a_table_with_units_and_metrics(tmp_path, ending, capsys):
    data = structures(written(tmp_path, host=np.array(["a"] * N)), group_by="host")
    output = tmp_path / f"pairs.{ending}"
    assert compare(Compares(), data, tmp_path / "run", "toy", 3, str(output)) == {"pairs": 2.0}
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == {"pairs": 2.0}
    assert (tmp_path / "run/report.html").exists()
    assert "few stars" in capsys.readouterr().out
    if ending in ("ecsv", "fits"):
        found = Table.read(output)
        assert [str(name) for name in found["a"]] == ["Indus", "Elqui"]
        assert found["shift"].tolist() == [0.1, 3.0]
        assert str(found["shift"].unit) == "dex"


def test_a_format_that_cannot_be_written_is_refused_before_anything_is_compared(tmp_path):
    data = structures(written(tmp_path, host=np.array(["a"] * N)), group_by="host")
    with pytest.raises(ValueError, match="cannot write this ending"):
        compare(Compares(), data, tmp_path / "run", "toy", 0, str(tmp_path / "pairs.xls"))
    assert not (tmp_path / "run").exists()
