"""Checkpoints are whole, safe to load, and carry their history."""

import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT, command, refusal

from orrery import load
from orrery.checkpoint import (
    RECORD,
    build,
    load_weights,
    read_checkpoint,
    restore,
    write_checkpoint,
)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.fixture
def checkpoint(runs):
    return read_checkpoint(runs("zephyr") / "best.ckpt")


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_that_runs_code_is_refused(how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if how == "pickle":
        (tmp_path / "bad.ckpt").write_bytes(pickle.dumps({RECORD: Bomb()}))
    else:
        torch.save({RECORD: Bomb(), "state_dict": {}}, tmp_path / "bad.ckpt")
    done = command(str(ROOT / "evaluate.py"), "checkpoint=bad.ckpt", cwd=tmp_path)
    assert done.returncode == 2 and "refused" in done.stderr
    assert "Traceback" not in done.stderr
    assert "weights_only" not in done.stderr, "torch's advice would run it"
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "orrery.models.base.os.system",
        "orrery.models.base.torch.hub.load",
        "orrery.checkpoint.AtomicCheckpointIO",
        "orrery.datamodules.base.Writer",
        "models.zephyr.Zephyr.load_from_checkpoint",
        "evil.models.zephyr.Zephyr",
        None,
    ],
)
def test_a_target_that_is_no_component_is_refused(target, checkpoint, tmp_path):
    checkpoint[RECORD]["config"]["model"] = {"_target_": target, "command": "touch exploded"}
    write_checkpoint(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"refused|there is no "):
        build(read_checkpoint(tmp_path / "bad.ckpt")[RECORD]["config"]["model"])


def test_a_refused_target_is_a_message_at_the_door(checkpoint, tmp_path):
    checkpoint[RECORD]["config"]["data"] = {"_target_": "os.system", "command": "touch exploded"}
    write_checkpoint(checkpoint, tmp_path / "bad.ckpt")
    done = command(str(ROOT / "evaluate.py"), "checkpoint=bad.ckpt", cwd=tmp_path)
    assert done.returncode == 2 and "refused to build 'os.system'" in done.stderr
    assert not (tmp_path / "exploded").exists()


def test_a_truncated_checkpoint_is_said_to_be(runs, tmp_path):
    whole = (runs("zephyr") / "best.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_checkpoint(tmp_path / "cut.ckpt")


def test_a_foreign_checkpoint_is_said_to_be(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    (tmp_path / "cat.fits").write_bytes(b"SIMPLE  =                    T")
    for name in ("foreign.ckpt", "cat.fits"):
        with pytest.raises(ValueError, match="not a checkpoint of this zoo"):
            read_checkpoint(tmp_path / name)


def test_weights_of_another_component_are_refused(checkpoint):
    model = build(checkpoint[RECORD]["config"]["model"])
    with pytest.raises(ValueError, match=r"holds orrery\.models\.gyro\.Gyro"):
        load_weights(model, ROOT / "checkpoints/gyro.ckpt")


def test_a_failed_write_leaves_the_old_checkpoint(checkpoint, tmp_path):
    path = tmp_path / "model.ckpt"
    write_checkpoint(checkpoint, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"pickle"):
        write_checkpoint({"bad": lambda: None}, path)
    assert path.read_bytes() == before


def test_kill_loses_at_most_the_epoch_and_the_run_goes_on(tmp_path):
    """kill -9 in the middle of training; resumed, it ends where the uninterrupted run ends."""
    words = [
        sys.executable,
        "train.py",
        "model=zephyr",
        "experiment=zephyr_quick",
        "model.epochs=12",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [*words, f"hydra.run.dir={tmp_path}/killed"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    last = tmp_path / "killed/last.ckpt"
    while not last.exists() and run.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert run.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    for name in ("last.ckpt", "best.ckpt"):
        read_checkpoint(tmp_path / "killed" / name)
    done = command("train.py", "model=zephyr", f"checkpoint={last}")
    assert done.returncode == 0, done.stderr
    done = command(*words[1:], f"hydra.run.dir={tmp_path}/whole")
    assert done.returncode == 0, done.stderr
    ours, theirs = (read_checkpoint(tmp_path / r / "best.ckpt") for r in ("killed", "whole"))
    for key, values in ours["state_dict"].items():
        assert torch.equal(values, theirs["state_dict"][key]), key


def test_a_finished_model_does_not_resume_but_fine_tunes(runs, tmp_path):
    best = runs("zephyr") / "best.ckpt"
    done = command("train.py", "model=zephyr", f"checkpoint={best}")
    assert done.returncode == 2 and f"init_from={best}" in done.stderr
    quick = ["experiment=zephyr_quick", "model.epochs=1", "model.lr=0", "data.n_train=400"]
    done = command("train.py", *quick, f"init_from={best}", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    ours, theirs = (read_checkpoint(p)["state_dict"] for p in (tmp_path / "best.ckpt", best))
    assert torch.equal(ours["head.weight"], theirs["head.weight"])
    assert torch.equal(ours["photometry.mean"], theirs["photometry.mean"]), (
        "the scaling comes along"
    )


def test_a_run_that_has_not_ended_is_no_model_and_goes_on_with_its_own_data(runs, tmp_path):
    last = runs("zephyr") / "last.ckpt"
    done = command("evaluate.py", f"checkpoint={last}", f"hydra.run.dir={tmp_path}")
    assert "of an unfinished run" in refusal(done)
    done = command("train.py", "model=zephyr", f"hydra.run.dir={last.parent}")
    assert f"resume that run: checkpoint={last}" in refusal(done)
    done = command("train.py", "model=zephyr", f"checkpoint={last}", "data.noise=1.0")
    assert "was trained with data.noise=2.0, and it is now 1.0" in refusal(done)


@pytest.mark.parametrize("record", [{}, {"config": {}}, {"config": {"model": 3}}, "text", None])
def test_a_damaged_record_is_refused_with_the_name_of_the_file(record, checkpoint, tmp_path):
    write_checkpoint({**checkpoint, RECORD: record}, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=r"odd\.ckpt is refused: its 'orrery' record is damaged"):
        read_checkpoint(tmp_path / "odd.ckpt")


def altered(record, *keys_and_value):
    """A copy of nested dicts with one entry replaced."""
    key, *rest = keys_and_value
    return {**record, key: altered(record[key], *rest) if len(rest) > 1 else rest[0]}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (("config", None), "its 'config' is None; expected a dict"),
        (("data", []), r"its 'data' is \[\]; expected a dict"),
        (("metrics", {"crps": "x"}), "'metrics.crps' is 'x'; expected a number"),
        (("versions", {}), "it has no 'versions.orrery'"),
        (("schema_version", "2"), "its schema_version is '2'"),
        (("config", "data", "path", "${oc.env:HOME}"), "holds an interpolation"),
        (("config", "trainer", "_target_", "os.system"), "a trainer that is not lightning.Trainer"),
        (("config", "model", "width", "wide"), "model.width is 'wide'; expected a whole number"),
        (("config", "model", "bands", 7), "model.bands is 7; expected a list of text"),
        (("config", "data", "n_train", 0.5), "data.n_train is 0.5; expected a whole number"),
        (("config", "model", "depht", 2), "has no setting 'depht'; near: depth"),
        (("config", "model", "depth", 10**8), "a model that is much larger than its weights"),
        (("config", "model", "members", 10**7), "a model that is much larger than its weights"),
        (("config", "model", "width", 10**30), "at most 100,000,000 is possible"),
        (("config", "model", "bands", ["u"] * 10**5), "has 100,000 entries"),
        (("config", "model", "width", -1), "model.width is -1; expected 1 or more"),
    ],
)
def test_a_record_of_odd_values_is_refused_by_the_name_of_the_file(
    entry, said, checkpoint, tmp_path
):
    write_checkpoint({**checkpoint, RECORD: altered(checkpoint[RECORD], *entry)}, tmp_path / "odd")
    with pytest.raises(ValueError, match=rf"odd is refused: .*{said}"):
        load(tmp_path / "odd")


def test_weights_that_are_not_finite_are_refused(checkpoint, tmp_path):
    for name, value in (("head.weight", torch.inf), ("photometry.mean", torch.nan)):
        weights = checkpoint["state_dict"][name].clone()
        weights.view(-1)[0] = value
        state = checkpoint["state_dict"] | {name: weights}
        write_checkpoint({**checkpoint, "state_dict": state}, tmp_path / "bad.ckpt")
        with pytest.raises(
            ValueError, match=rf"bad\.ckpt is refused: its weights '{name}' are not"
        ):
            load(tmp_path / "bad.ckpt")


def test_a_flipped_bit_or_a_lost_end_is_a_sentence_or_changes_nothing(tmp_path):
    original = ROOT / "tests/frame/data/scatter_vae_0.1.ckpt"
    raw, weights, refused = original.read_bytes(), load(original).state_dict(), 0
    random = np.random.default_rng(0)
    directory = zipfile.ZipFile(original).start_dir
    for first in [0, directory] * 40:
        broken = bytearray(raw)
        broken[random.integers(first, len(raw))] ^= 1 << random.integers(8)
        (tmp_path / "broken.ckpt").write_bytes(broken)
        (tmp_path / "cut.ckpt").write_bytes(raw[: random.integers(first, len(raw))])
        with pytest.raises(ValueError, match=r"cut\.ckpt is "):
            load(tmp_path / "cut.ckpt")
        try:
            loaded = load(tmp_path / "broken.ckpt").state_dict()
        except ValueError as error:
            assert "broken.ckpt is " in str(error)
            refused += 1
        else:
            assert all(torch.equal(values, loaded[name]) for name, values in weights.items())
    assert refused > 40


def test_an_archive_that_is_not_as_torch_writes_it_is_refused(tmp_path):
    original = zipfile.ZipFile(ROOT / "tests/frame/data/scatter_vae_0.1.ckpt")
    members = original.infolist()
    for fault in ("packed", "twice", "folder"):
        with zipfile.ZipFile(tmp_path / "odd.ckpt", "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the name that is there twice
            for member in members:
                copy = zipfile.ZipInfo(member.filename)
                if fault == "packed":  # 3 MB may become 3 GB
                    copy.compress_type = zipfile.ZIP_DEFLATED
                if fault == "folder":  # which torch reads as nothing
                    copy.external_attr = 0x10
                archive.writestr(copy, original.read(member))
            if fault == "twice":
                archive.writestr(members[0].filename, b"")
        with pytest.raises(ValueError, match=r"odd\.ckpt is refused: its archive is not as torch"):
            load(tmp_path / "odd.ckpt")


def test_a_checkpoint_of_a_newer_schema_is_refused(checkpoint, tmp_path):
    other = {**checkpoint, RECORD: {**checkpoint[RECORD], "schema_version": 99}}
    write_checkpoint(other, tmp_path / "newer.ckpt")
    message = (
        r"newer\.ckpt is refused: .* of schema version 99 of Zephyr, and this version of the zoo"
    )
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "newer.ckpt")
    assert restore(checkpoint).record["schema_version"] == 1


def test_weights_are_not_tested_on_what_they_learned_from(galaxies, tmp_path):
    galaxies.write(tmp_path / "cat.ecsv")
    quick = ["model=zephyr", "experiment=zephyr_quick", f"data.path={tmp_path}/cat.ecsv"]
    done = command("train.py", *quick, f"hydra.run.dir={tmp_path}/one")
    assert done.returncode == 0, done.stderr
    begun = [f"init_from={tmp_path}/one/best.ckpt", f"hydra.run.dir={tmp_path}/two"]
    done = command("train.py", *quick, *begun, "data.test_fraction=0.3")
    assert "rows that it has learned from would be held out" in refusal(done)


def test_the_record_says_where_the_model_comes_from(checkpoint):
    record = checkpoint[RECORD]
    assert record["data"] == {
        "simulation": "ZephyrData",
        "seed": 0,
        "n_train": 1500,
        "n_test": 300,
    }
    assert record["versions"]["torch"] == torch.__version__
    assert record["metrics"]["crps"] > 0
    assert record["config"]["model"]["bands"] == ["u", "g", "r", "i", "z", "y"]
