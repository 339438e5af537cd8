"""What holds for every component of the zoo; a new one is covered by its YAML alone."""

import copy
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COMPONENTS, command, command_of_two, config, quick_words, train
from omegaconf import OmegaConf

from orrery import pretrained
from orrery.checkpoint import RECORD, build, read_checkpoint, restore
from orrery.command_line import set_precision
from orrery.datamodules.batches import BatchShares, GlobalBatches
from orrery.evaluation.evaluate import compare, generate, infer, refuse_lacking
from orrery.evaluation.predictions import labelled
from orrery.models.base import ComparesGroups, Component, Data, Generates, InfersJointly, Output
from orrery.tables import open_catalogue

DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


def pytest_generate_tests(metafunc):
    if "component" in metafunc.fixturenames:
        metafunc.parametrize("component", COMPONENTS)


@pytest.fixture
def parts(component):
    """A fresh model and its data, which are not to be changed."""
    model, data = _parts(component)
    torch.manual_seed(0)
    return copy.deepcopy(model), data


@cache
def _parts(component):
    plain = OmegaConf.to_container(config(component, Path(".")), resolve=True)
    torch.manual_seed(0)
    data = build(plain["data"])
    data.setup("fit")
    model = build(plain["model"] | data.model_arguments())
    model.prepare(data)
    return model, data


def test_the_data_module_offers_what_every_component_may_ask(component, parts):
    _, data = parts
    assert isinstance(data, Data)
    assert data.rows.keys() >= {"train", "val"}


def test_a_run_leaves_a_checkpoint_a_report_and_metrics(component, runs):
    run = runs(component)
    made = {path.name for path in run.iterdir()}
    assert {"best.ckpt", "last.ckpt", "report.html", "metrics.json"} <= made
    draws_figures = find_spec(f"orrery.figures.{component}") is not None
    assert draws_figures == any(name.endswith(".png") for name in made)
    metrics = json.loads((run / "metrics.json").read_text())
    assert all(np.isfinite(value) for value in metrics.values())
    record = read_checkpoint(run / "best.ckpt")[RECORD]
    assert record["metrics"].keys() <= metrics.keys() | {"val_loss"}
    assert {"config", "data", "versions", "git_commit", "created", "command"} <= record.keys()
    assert str(run) not in str(record), "a published checkpoint holds no local path"


def test_what_is_not_defined_is_said_before_the_fit(component, parts):
    model, _ = parts
    model.refuse_incomplete()
    lacking = type("Lacking", (type(model),), {"evaluate": Component.evaluate})
    with pytest.raises(TypeError, match="Lacking does not define evaluate"):
        lacking.refuse_incomplete()


def test_a_unit_that_nobody_knows_is_refused_before_the_fit(component, parts):
    model, _ = parts
    model.refuse_unknown_units()
    odd = {"mass": Output("Msunn", "a mass")}
    wrong = type("Wrong", (type(model),), {"outputs": property(lambda self: odd)})
    model.__class__ = wrong
    with pytest.raises(ValueError, match="output 'mass' has the unit 'Msunn'"):
        model.refuse_unknown_units()


def test_a_unit_of_training_changes_the_loss(component, tmp_path, runs):
    rows = np.genfromtxt(
        next(runs(component).glob("logs/version_*/metrics.csv")), delimiter=",", names=True
    )
    losses = rows["trainloss_epoch"][np.isfinite(rows["trainloss_epoch"])]
    assert losses[-1] < losses[0]


def test_the_last_epoch_is_saved_even_if_it_is_not_the_best(component, runs):
    last = read_checkpoint(runs(component) / "last.ckpt")
    assert last["epoch"] == last[RECORD]["config"]["trainer"]["max_epochs"] - 1


def test_the_learning_rate_falls_to_nothing(component, runs):
    last = read_checkpoint(runs(component) / "last.ckpt")
    for schedule in last["lr_schedulers"]:
        assert all(
            rate < 1e-2 * base
            for rate, base in zip(schedule["_last_lr"], schedule["base_lrs"], strict=True)
        )


class Interrupted(Exception):
    pass


def interrupt(*_):
    raise Interrupted


def test_same_seed_gives_the_same_weights_with_or_without_an_interruption(
    component, runs, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("orrery.tracking.val_loss", interrupt)  # what follows the fit
        train(component, tmp_path, "trainer.max_epochs=1", evaluated=False)
    train(component, tmp_path, f"checkpoint={tmp_path}/last.ckpt", evaluated=False)
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (read_checkpoint(run / name) for run in (tmp_path, runs(component)))
        for key, values in ours["state_dict"].items():
            assert torch.equal(values, theirs["state_dict"][key]), (name, key)


@cache
def _data_of(run):
    """The data of a run, whose simulations are kept; a test changes a copy."""
    return build(read_checkpoint(run / "best.ckpt")[RECORD]["config"]["data"])


def test_a_saved_model_predicts_the_same(component, runs):
    run = runs(component)
    ours = torch.load(run.parent / f"{component}.predicted.pt")  # by the model that was trained
    batch = next(_data_of(run).prediction_batches())
    checkpoint = read_checkpoint(run / "best.ckpt")
    model = restore(checkpoint)
    set_precision(model, checkpoint[RECORD]["config"]["trainer"]["precision"])
    model.load_state_dict(checkpoint["state_dict"])  # in that precision
    with torch.inference_mode():
        theirs = model.predict_step(batch, 0)
    assert ours and ours.keys() == theirs.keys()
    for name in ours:  # NaN where there is no answer, in both
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0, equal_nan=True)


def test_every_predicted_column_is_declared(component, runs):
    model = restore(read_checkpoint(runs(component) / "best.ckpt"))
    rows = model.predict_step(next(_data_of(runs(component)).prediction_batches()), 0)
    assert set(rows) == set(model.columns)
    for name, output in model.columns.items():
        assert rows[name].ndim == 1 + len(output.axes), f"{name}: a name for each dimension"
        kind = "int64" if output.labels else "int32" if output.bits else output.dtype
        assert np.can_cast(rows[name].detach().numpy().dtype, kind, "same_kind"), name
    assert all(output.description for output in model.columns.values())


def test_two_processes_give_the_gradient_of_one(component, parts):
    model, data = parts
    request = next(iter(GlobalBatches(200, 64, seed=0)))

    def gradient(*shares):
        model.zero_grad()
        for rank, world in shares:
            (model.loss(BatchShares(data, rank, world)[request]) / len(shares)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    one, two = gradient((0, 1)), gradient((0, 2), (1, 2))
    assert float(one.norm()) > 0
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


def test_chunks_equal_the_whole(component, runs):
    model = restore(read_checkpoint(runs(component) / "best.ckpt"))
    data = copy.copy(_data_of(runs(component)))

    def predictions(chunk):
        data.predict_batch_size = chunk
        with torch.inference_mode():
            batches = enumerate(data.prediction_batches())
            rows = [model.predict_step(batch, i) for i, batch in batches]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    whole, parts = predictions(10_000), predictions(37)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=2e-3, atol=2e-3, equal_nan=True)


def test_two_cpu_processes_train_as_one(component, runs, tmp_path):
    words = [f"model={component}", *quick_words(component), *DDP]
    for done in command_of_two("train.py", *words, f"hydra.run.dir={tmp_path}/run"):
        assert done.returncode == 0, done.stderr
    ours = read_checkpoint(tmp_path / "run/best.ckpt")[RECORD]["metrics"]
    theirs = read_checkpoint(runs(component) / "best.ckpt")[RECORD]["metrics"]
    assert ours["n"] == theirs["n"]
    assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-3)
    two, one = (read_checkpoint(run / "last.ckpt") for run in (tmp_path / "run", runs(component)))
    for key, values in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][key], values, rtol=1e-2, atol=3e-3)


@pytest.mark.parametrize("name", ["zephyr", "gems", "scatter_vae"])  # numbers, labels, arrays
def test_two_cpu_processes_predict_in_row_order(name, runs, tmp_path):
    checkpoint, file = runs(name) / "best.ckpt", tmp_path / "two.parquet"
    words = ["evaluate.py", f"checkpoint={checkpoint}", f"output={file}", *DDP,
             f"hydra.run.dir={tmp_path}/two"]  # fmt: skip
    # the second one is started by the first, or both by a launcher
    for done in [command(*words)] if name == "zephyr" else command_of_two(*words):
        assert done.returncode == 0, done.stderr
    two, one = _read(open_catalogue(file)), _predicted(checkpoint)
    assert one.keys() >= two.keys() and two
    assert {key for key in one if one[key].ndim == 1} <= two.keys()
    for column in two:
        if one[column].dtype.kind == "U":  # names in place of numbers
            np.testing.assert_array_equal(one[column], two[column])
        else:
            np.testing.assert_allclose(one[column], two[column], rtol=2e-3, atol=2e-3)
    assert not list(tmp_path.glob(".*")), "part files are removed"


def test_a_model_predicts_from_python(component, runs):
    predictor = pretrained.load(runs(component) / "best.ckpt")
    data = _data_of(runs(component))
    n = data.n_predicted()
    table = predictor.predict(dict(data._simulated["test"]))
    assert len(table) == n
    assert set(table.colnames) == set(predictor.columns)


def test_group_by_is_refused_where_nothing_can_be_stacked(component, runs, tmp_path):
    model = pretrained.load(runs(component) / "best.ckpt")
    data = build({**model.record["config"]["data"], "group_by": "row"})
    if model.stack() is None:
        with pytest.raises(ValueError, match=rf"{component} has nothing to add up by group"):
            refuse_lacking(model, data)
    else:
        refuse_lacking(model, data)


def test_a_capability_that_is_lacking_is_refused_by_a_sentence(component, runs, tmp_path):
    model = pretrained.load(runs(component) / "best.ckpt")
    data = build(model.record["config"]["data"])
    if not isinstance(model, InfersJointly):
        with pytest.raises(ValueError, match=f"{component} predicts row by row"):
            infer(model, data, tmp_path, "", 0)
    if not isinstance(model, ComparesGroups):
        with pytest.raises(ValueError, match=f"{component} does not compare groups of rows"):
            compare(model, data, tmp_path, "", 0)
    if not isinstance(model, Generates):
        with pytest.raises(ValueError, match=f"{component} draws no objects"):
            generate(model, data, "", "mock.fits", None)


def test_bf16_runs_where_the_component_allows_it(component, parts, tmp_path):
    if "bf16-mixed" not in parts[0].fit.precisions:
        pytest.skip("this component needs more than bfloat16")
    metrics = train(component, tmp_path, "trainer.precision=bf16-mixed")
    assert all(np.isfinite(value) for value in metrics.values())


def _predicted(checkpoint):
    """Predictions of this process, by column: of the rows in order."""
    checkpoint = read_checkpoint(checkpoint)
    model, data = restore(checkpoint), build(checkpoint[RECORD]["config"]["data"])
    with torch.inference_mode():
        batches = [model.predict_step(b, i) for i, b in enumerate(data.prediction_batches())]
    rows = {name: torch.cat([b[name] for b in batches]).numpy() for name in batches[0]}
    return labelled(rows, model.columns)


def _read(catalogue):
    with catalogue:
        chunks = list(catalogue.chunks(catalogue.names))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in catalogue.names}
