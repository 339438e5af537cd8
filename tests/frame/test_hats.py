"""Catalogues in HATS: read by partition, written into the same, and mapped by lsdb on Dask."""

import contextlib
import hashlib
import re
import shutil
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import COMPONENTS, door, refusal
from hats_catalogues import INDEX, LAT, LON, write_hats

from orrery import load
from orrery.checkpoint import build
from orrery.evaluation.evaluate import evaluate
from orrery.tables import files_of, open_catalogue, open_hats, sha256

# what rests on random numbers that belong to the number of a row, which a partition counts anew
DRAWN = re.compile("period_draws|z_samples|tarp|.*_rel_error|dlogl")
SLOW = {"gc_emulator": 2, "feniks": 2, "sed_emulator": 2}  # rows; of others 24


@pytest.fixture
def survey(tmp_path):
    """(folder, number of each row) of 200 rows in several partitions."""
    columns = {"id": np.arange(200) + 10**15, "x": np.linspace(0, 1, 200)}
    columns |= {"name": np.array([f"a{i}" for i in range(200)]), "pair": np.ones((200, 2))}
    return tmp_path / "survey", write_hats(tmp_path / "survey", columns)


def test_rows_come_in_the_order_of_the_sky_in_chunks_of_any_size(survey):
    folder, number = survey
    with open_catalogue(folder) as catalogue:
        assert len(catalogue) == 200 and len(catalogue.pixels) > 4
        chunks = list(catalogue.chunks(["id", "pair"], rows=33))
        index = np.concatenate([c[INDEX] for c in catalogue.chunks([INDEX])])
        starts = index[[0, *catalogue.ends[:-1]]]
    assert [len(c["id"]) for c in chunks] == [33] * 6 + [2]
    np.testing.assert_array_equal(np.concatenate([c["id"] for c in chunks]), number + 10**15)
    assert chunks[0]["pair"].shape == (33, 2)
    assert (np.diff(starts) > 0).all(), "partitions follow the HEALPix index"


def test_only_the_columns_asked_for_are_read(survey, monkeypatch):
    folder, _ = survey
    asked = set()
    batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, **words: asked.update(words["columns"]) or batches(self, **words),
    )
    with open_catalogue(folder) as catalogue:
        list(catalogue.chunks(["x"]))
    assert asked == {"x"}


def test_a_collection_is_its_main_catalogue(survey, tmp_path):
    _, number = survey
    (tmp_path / "collection.properties").write_text("hats_primary_table_url=survey\n")
    with open_catalogue(tmp_path) as catalogue:
        chunk = next(catalogue.chunks(["id"]))
    np.testing.assert_array_equal(chunk["id"], number + 10**15)


def test_a_partition_may_be_a_folder_and_the_list_of_partitions_may_be_lacking(survey):
    folder, number = survey
    for file in files_of(folder):
        place, table = Path(file.removesuffix(".parquet")), pq.read_table(file)
        Path(file).unlink()
        place.mkdir()
        pq.write_table(table[:1], place / "part0.parquet")
        pq.write_table(table[1:], place / "part1.parquet")
    text = (folder / "hats.properties").read_text()
    (folder / "hats.properties").write_text(text.replace("suffix=.parquet", "suffix=/"))
    (folder / "partition_info.csv").unlink()
    with open_catalogue(folder) as catalogue:
        chunk = next(catalogue.chunks(["id"]))
        assert catalogue.ends[-1] == 200 and len(catalogue.ends) == len(catalogue.pixels)
    np.testing.assert_array_equal(chunk["id"], number + 10**15)


def test_its_hash_is_that_of_its_partitions_hashes(survey):
    folder, _ = survey
    hashes = []
    for file in files_of(folder):
        with open(file, "rb") as opened:
            hashes.append(hashlib.file_digest(opened, "sha256").hexdigest())
    assert sha256(folder) == hashlib.sha256("".join(hashes).encode()).hexdigest()


def test_what_is_wrong_with_a_folder_is_said_of_the_partition_at_fault(survey, tmp_path):
    folder, _ = survey
    with pytest.raises(IsADirectoryError, match=r"is a folder.*HATS catalogue.*hats\.properties"):
        open_catalogue(tmp_path)
    with pytest.raises(ValueError, match=r"data\.group=x is given, but HATS has no groups"):
        open_catalogue(folder, "x")
    first, second = files_of(folder)[:2]
    content = (tmp_path / second).read_bytes()
    (tmp_path / second).write_bytes(content[:100])
    with pytest.raises(OSError, match=f"{second}: looks truncated or damaged"):
        open_catalogue(folder)
    table = pq.read_table(first)
    pq.write_table(table.drop_columns(["x"]), second)
    with pytest.raises(ValueError, match=f"{second}: has no column x, as {first} has"):
        open_catalogue(folder)
    (tmp_path / second).unlink()
    with pytest.raises(FileNotFoundError, match=f"{second}: this partition .* is not there"):
        open_catalogue(folder)
    shutil.rmtree(folder / "dataset")
    (folder / "partition_info.csv").write_text("Norder,Npix\n")
    with pytest.raises(FileNotFoundError, match=r"no partition .* is there"):
        open_catalogue(folder)
    (folder / "partition_info.csv").write_text("Norder,Npix\n1,one\n")
    with pytest.raises(ValueError, match=r"partition_info\.csv: expected whole numbers"):
        open_catalogue(folder)


@pytest.mark.parametrize("component", COMPONENTS)
def test_partitions_have_the_rows_of_a_single_process_on_the_table(component, runs, tmp_path):
    model = load(runs(component) / "best.ckpt")
    settings = model.record["config"]["data"]
    simulated = build(settings).simulate("test")
    table = {name: np.asarray(simulated[name])[: SLOW.get(component, 24)] for name in simulated}
    number = write_hats(tmp_path / "in", table)
    ordered = {name: values[number] for name, values in table.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a few rows; of columns that are not read
        plain = model.predict(ordered)
        _predict(model, settings, tmp_path / "in", tmp_path / "out")
        with open_catalogue(tmp_path / "in") as source, open_catalogue(tmp_path / "out") as out:
            np.testing.assert_array_equal(source.ends, out.ends)
            assert source.pixels == out.pixels
            rows = next(out.chunks(out.names))
            place = next(source.chunks([INDEX, LON, LAT]))
        assert {*rows} & {*model.columns} == {*plain.colnames}
        for name, values in place.items():
            np.testing.assert_array_equal(values, rows[name])
        for name in plain.colnames:
            _equal(np.asarray(plain[name]), rows[name], name)

        frames = [pq.read_table(file).to_pandas() for file in files_of(tmp_path / "in")]
        frames = [frame.set_index(INDEX) for frame in frames]
        parts = [model.predict(frame, keep=[LON, LAT]) for frame in frames]
        empty = model.predict(frames[0][:0], keep=[LON, LAT])
    assert list(empty) == [LON, LAT, *model.columns] and not len(empty)
    assert all((part.dtypes == empty.dtypes).all() for part in parts), "Dask's meta"
    mapped = pd.concat(parts)
    np.testing.assert_array_equal(mapped.index, place[INDEX])
    for name in (name for name in model.columns if not DRAWN.fullmatch(name)):
        values = mapped[name].to_numpy()
        if name not in plain.colnames:
            assert pd.isna(mapped[name]).all() or set(values) <= {0, ""}, "no answer, a blank"
        elif model.columns[name].axes:
            array = np.array([np.vstack(v) if np.ndim(v[0]) else v for v in values], float)
            _equal(np.asarray(plain[name]), array, name)
        else:
            _equal(np.asarray(plain[name]), values, name)


def _predict(model, settings, path, output):
    """What evaluate.py does to predict, without metrics and figures."""
    data = build(settings | {"path": str(path), "split": "all", "columns": None, "units": None})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orrery.evaluation.evaluate._evaluate_rows", lambda *_: {})
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
        )
        evaluate(model, data, trainer, output.parent, "a title", str(output))


def _equal(expected, found, name):
    if expected.dtype.kind in "UO":
        np.testing.assert_array_equal(expected, found.astype(str))
    else:
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3, err_msg=name)


def test_two_processes_write_the_partitions_of_one(runs, galaxies, tmp_path):
    folder = tmp_path / "survey"
    del galaxies["redshift"]  # nothing to score
    write_hats(folder, {name: np.asarray(galaxies[name]) for name in galaxies.colnames})
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    for name, words in {"one": [], "two": ddp}.items():
        done = door(runs, tmp_path / name, f"data.path={folder}", f"output={tmp_path}/{name}_out",
                    "data.keep=[id]", "columns=scalars", *words)  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = (open_hats(tmp_path / f"{name}_out") for name in ("one", "two"))
    assert one.pixels == two.pixels and (one.ends == two.ends).all()
    assert one.names[:4] == [INDEX, LON, LAT, "id"] and "z_median" in one.names
    assert "pz" not in one.names and "flags" in one.names
    a, b = (next(catalogue.chunks(catalogue.names)) for catalogue in (one, two))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=2e-3, atol=2e-3, err_msg=name)
    assert {p.name for p in tmp_path.glob("*")} == {"survey", "one", "two", "one_out", "two_out"}
    assert not list(tmp_path.glob(".*")), "no part is left"


def test_a_folder_that_cannot_be_written_is_refused_before_predicting(runs, galaxies, tmp_path):
    folder, table = tmp_path / "survey", tmp_path / "survey.parquet"
    write_hats(folder, {name: np.asarray(galaxies[name]) for name in galaxies.colnames})
    pq.write_table(pa.table({n: np.asarray(galaxies[n]) for n in galaxies.colnames}), table)
    for path, output, message in (
        (folder, f"{folder}/", "is the catalogue itself; name another file"),
        (folder, tmp_path / "survey/dataset", "is there already, and not empty"),
        (folder, tmp_path / "no/such", "its folder does not exist"),
        (table, tmp_path / "out", "a folder is written of a catalogue in HATS"),
    ):
        said = refusal(door(runs, tmp_path, f"data.path={path}", f"output={output}"))
        assert message in " ".join(said.split())
    said = refusal(door(runs, tmp_path, f"data.path={folder}", f"output={tmp_path}/out",
                        "data.columns.mag='m_{band}'"))  # fmt: skip
    assert "m_" in said and "survey" in said
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_a_failure_leaves_no_folder(survey, tmp_path, monkeypatch):
    from orrery.tables.hats import ROW, HatsWriter

    folder, _ = survey
    source = open_hats(folder)
    with contextlib.suppress(KeyError), HatsWriter(tmp_path / "out", source) as writer:
        writer.write({ROW: np.arange(150), "x": np.zeros(150)})
        raise KeyError
    with (
        pytest.raises(ValueError, match="rows come in the order of the catalogue"),
        HatsWriter(tmp_path / "out", source) as writer,
    ):
        writer.write({ROW: np.arange(150, 200), "x": np.zeros(50)})
        writer.write({ROW: np.arange(50), "x": np.zeros(50)})
    assert {p.name for p in tmp_path.iterdir()} == {"survey"}
    with HatsWriter(tmp_path / "out", source, units={"x": "mag"}, meta={"model": "m"}) as writer:
        writer.write({ROW: np.arange(0, 200, 9), "x": np.zeros(23)})
    with open_catalogue(tmp_path / "out") as out:
        assert len(out) == 23 and str(out.units["x"]) == "mag"


def test_lsdb_maps_a_model_over_spawned_workers_and_matches_what_was_written(tmp_path):
    import lsdb
    from dask.distributed import Client, LocalCluster

    random, folder = np.random.default_rng(0), tmp_path / "survey"
    stars = {"id": np.arange(40), "prot_d": 10 ** random.uniform(0.5, 1.3, 40)}
    stars["bp_rp0"] = random.uniform(0.7, 1.2, 40)
    write_hats(folder, stars)
    model = load("gyro")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(model, "predict_step", None)  # the types are found without the model
        survey = lsdb.open_catalog(folder, columns="all")
        meta = survey.map_partitions(model.predict, keep=["id", LON, LAT]).meta
    assert meta["age_q50"].dtype == np.float32 and meta["flags"].dtype == np.int32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ages = survey.map_partitions(model.predict, keep=["id", LON, LAT])
        with (
            LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster),
        ):
            found = ages.compute(progress_bar=False)
        plain = model.predict(stars)
        _predict(model, model.record["config"]["data"], folder, tmp_path / "out")
        matched = lsdb.open_catalog(tmp_path / "out").crossmatch(
            survey, radius_arcsec=0.1, suffixes=("", "_s"), suffix_method="all_columns"
        )
        matched = matched.compute(progress_bar=False)
    found = found.sort_values("id")
    np.testing.assert_allclose(found["age_q50"], plain["age_q50"], rtol=1e-4)
    assert len(matched) == 40
    expected = np.asarray(plain["age_q50"])[matched["id_s"].to_numpy()]
    np.testing.assert_allclose(matched["age_q50"].to_numpy(), expected, rtol=1e-4)
