"""The doors as a person meets them: what they print, when they refuse, and how they say so."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import COMPONENTS, ROOT, command, fresh_python, refusal
from hydra.utils import instantiate
from omegaconf import OmegaConf

from orrery import tracking
from orrery.command_line import _name_near_settings
from orrery.runs import claim_run_folder

QUICK = ["model=zephyr", "experiment=zephyr_quick"]


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"]])
@pytest.mark.parametrize("door", ["train.py", "evaluate.py"])
def test_help_does_not_wait_for_torch(door, words):
    program = (
        f"import runpy, sys; sys.argv = {[door, *words]!r}\n"
        f"try: runpy.run_path({door!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('heavy', {'torch', 'lightning', 'astropy', 'numpy'} & set(sys.modules))"
    )
    done = fresh_python("-c", program)
    assert done.stdout.strip().endswith("heavy set()"), done.stdout[-300:]


def refused(*words: str) -> str:
    done = command(*words)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_an_unknown_model_lists_the_zoo():
    for word in ("zephir", "nothing_like_it"):
        message = refused("train.py", f"model={word}")
        assert all(name in message for name in COMPONENTS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train.py model=zephir", "no model=zephir; near: zephyr;"),
        ("train.py -m model=zephyr,gc_emulater", "no model=gc_emulater; near: gc_emulator"),
        ("train.py experiment=zephyr_quik", "no experiment=zephyr_quik; near: zephyr_quick"),
        ("train.py experiment=foo", "Could not find 'experiment/foo'"),
        ("evaluate.py checkpoint=zephyr data=gc_stras", "no data=gc_stras; near: gc_stars"),
        ("evaluate.py checkpoint=zephyr data=foo", "Could not find 'data/foo'"),
    ],
)
def test_a_mistyped_choice_is_refused_with_the_near_ones(words, said):
    assert said in refused(*words.split())


def test_a_condition_on_rows_needs_no_quotes_of_its_own():
    conditions = {"train_where": "redshift > 0", "cuts.bright": "mag_i<22.5|name == 'NGC 1'",
                  "cuts.secure": "secure == 1 or z != 2"}  # fmt: skip
    words = [f"data.{name}={text}" for name, text in conditions.items()]
    printed = command("train.py", "model=zephyr", *words, "--cfg", "job")
    assert printed.returncode == 0, printed.stderr
    data = yaml.safe_load(printed.stdout)["data"]
    assert data["train_where"] == conditions["train_where"]
    assert data["cuts"] == {n[5:]: text for n, text in conditions.items() if n[:5] == "cuts."}
    within = command("train.py", "model=zephyr", "data.train_where='z > 0'", "--cfg", "job")
    assert yaml.safe_load(within.stdout)["data"]["train_where"] == "z > 0"


def test_an_unknown_checkpoint_lists_the_pretrained():
    message = refused("evaluate.py", "checkpoint=zefyr")
    assert "there is no checkpoint 'zefyr' (near: zephyr; pretrained models:" in message
    assert "no checkpoint is given" in refused("evaluate.py")


def test_a_mistyped_setting_is_named(runs):
    best = runs("zephyr") / "best.ckpt"
    message = refused("evaluate.py", f"checkpoint={best}", "data.pth=x.fits")
    assert "no setting 'pth'; near: path" in message
    message = refused("train.py", "model.lerning_rate=1", "hydra.run.dir=nowhere")
    assert "lerning_rate" in message and "no setting 'hydra.run.dir'" not in message


def test_no_setting_is_doubted_where_a_run_of_known_ones_ended_in_an_error(monkeypatch, capsys):
    words = ["train.py", "model=gyro", "++data.batch_size=10"]
    monkeypatch.setattr(sys, "argv", words)
    _name_near_settings()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "argv", [*words, "data.batch_sizes=10"])
    _name_near_settings()
    assert "no setting 'data.batch_sizes'; near: data.batch_size" in capsys.readouterr().err


def test_a_checkpoint_without_held_out_rows_asks_for_a_catalogue(tmp_path):
    (tmp_path / "stars.csv").write_text("prot_d,bp_rp0\n25.4,0.82\n8.0,0.9\n")
    own = [f"data.path={tmp_path}/stars.csv", "data.split=test", "data.test_fraction=0"]
    message = refused("evaluate.py", "checkpoint=gyro", *own, f"hydra.run.dir={tmp_path}/run")
    assert "no rows are held out (data.test_fraction=0); evaluate another catalogue" in message


def test_a_machine_without_gpu_is_told():
    assert "gpu" in refused("train.py", *QUICK, "trainer=gpu").lower()


def test_an_unreadable_path_is_named():
    for words in (("train.py",), ("evaluate.py", "checkpoint=zephyr")):
        done = command(*words, "data.path=nowhere.fits")
        assert "nowhere.fits: there is no such file" in done.stderr
        assert "starting PyTorch" not in done.stdout, "which takes seconds"
    message = refused("evaluate.py", "checkpoint=zephyr", "data.path=figures")
    assert "figures is a folder; data.path must name a catalogue file" in message


def test_a_shipped_table_is_found_from_anywhere(tmp_path):
    words = ("checkpoint=zephyr_cosmos", "data.path=physics/galaxies/cosmos_galaxies.ecsv")
    said = command(str(ROOT / "evaluate.py"), *words, cwd=tmp_path).stderr
    hint = re.search(r"one of this name is shipped: data.path=(.*)", said).group(1)
    assert Path(hint).is_file()


def test_a_sweep_of_ddp_runs_is_refused():
    message = refused("train.py", "-m", *QUICK, "trainer=ddp", "seed=0,1")
    assert "would start the whole sweep once per process" in message


def test_a_sweep_goes_on_after_a_run_that_cannot_be(tmp_path):
    done = command(
        "train.py", "-m", *QUICK, "model.epochs=1", "model.flow=nothing,zuko",
        f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode != 0 and "nothing" in done.stderr
    assert not (tmp_path / "0/best.ckpt").exists() and (tmp_path / "1/best.ckpt").exists()


def test_data_of_the_checkpoint_can_be_replaced_or_changed(runs, tmp_path):
    best = runs("zephyr") / "best.ckpt"
    run = f"hydra.run.dir={tmp_path}"
    done = command("evaluate.py", f"checkpoint={best}", "data.n_test=50", run)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "metrics.json").read_text())["n"] == 50
    # data=<name> brings that section whole, without what the checkpoint said
    message = refused(
        "evaluate.py", f"checkpoint={best}", "data=zephyr", "data.path=gone.fits", run
    )
    assert "gone.fits" in message


def test_data_of_another_size_follow_the_model(runs, tmp_path):
    """The section of the synthetic sky takes its grid from the model."""
    best = runs("dust") / "best.ckpt"
    done = command("evaluate.py", f"checkpoint={best}", "data=dust", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr


def test_metrics_stand_beside_those_of_the_true_model(runs):
    metrics = json.loads((runs("zephyr") / "metrics.json").read_text())
    keys = """n bias nmad outlier_fraction crps nll cde_loss pit_ks coverage_68 coverage_95
    objects_per_second matmul_1024_ms label_sigma_manyband label_sigma_manyband_true
    label_catastrophic_grism label_catastrophic_grism_true crps_true_model"""
    assert set(keys.split()) <= metrics.keys()
    assert metrics["crps_true_model"] < metrics["crps"], "nothing beats the true model"


def test_an_offline_wandb_run_holds_config_metrics_figures_and_model(tmp_path):
    done = command(
        "train.py",
        *QUICK,
        "logger=wandb",
        f"hydra.run.dir={tmp_path}",
        report=True,
        WANDB_API_KEY="",
    )
    assert done.returncode == 0, done.stderr
    assert "epoch 2 of 2: train/loss" in done.stdout, "a log file shows how far the run is"
    stored = read_wandb(next(tmp_path.glob("wandb/offline-run-*/run-*.wandb")))
    assert json.loads(stored["config"]["model"])["members"] == 2
    assert {"train/loss_step", "train/loss_epoch", "val/loss", "redshifts"} <= stored["history"]
    assert 0 < json.loads(stored["summary"]["test/crps"]) < 1
    (artifact,) = stored["artifacts"]
    assert artifact.name == "zephyr" and "versions" in json.loads(artifact.metadata)
    assert "best.ckpt" in {entry.path for entry in artifact.manifest.contents}


def test_tensorboard_and_mlflow_hold_metrics_figures_card_and_model(runs, tmp_path, monkeypatch):
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    loggers = []
    for name in ("tensorboard", "mlflow"):
        node = OmegaConf.load(ROOT / "configs" / "logger" / f"{name}.yaml")
        changed = {"save_dir": str(tmp_path)} if name == "tensorboard" else {"run_name": "zephyr"}
        loggers.append(instantiate(OmegaConf.merge(node, changed)))
    metrics = json.loads((runs("zephyr") / "metrics.json").read_text())
    trainer = SimpleNamespace(loggers=loggers, global_step=7)
    record = {"metrics": {"crps": metrics["crps"], "worst": math.nan}}
    tracking.track(trainer, runs("zephyr"), "zephyr", record)

    events = EventAccumulator(loggers[0].log_dir)
    events.Reload()
    (scalar,) = events.Scalars("test/crps")
    assert (scalar.step, scalar.value) == (7, pytest.approx(metrics["crps"]))
    assert "redshifts" in events.Tags()["images"]
    assert "model_card/text_summary" in events.Tags()["tensors"]
    client = MlflowClient(uri)
    (run,) = client.search_runs([loggers[1].experiment_id])
    assert run.data.metrics == {"test/crps": metrics["crps"]} and run.info.run_name == "zephyr"
    stored = {
        f.path
        for each in ("zephyr", "figures")
        for f in client.list_artifacts(run.info.run_id, each)
    }
    assert {"zephyr/best.ckpt", "zephyr/model_card.md", "figures/redshifts.png"} <= stored


def read_wandb(path):
    """What a .wandb file holds: a log of protobuf records in the framing of LevelDB."""
    from wandb.proto import wandb_internal_pb2

    found = {"config": {}, "summary": {}, "history": set(), "artifacts": []}
    for data in log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        for item in (*record.run.config.update, *record.config.update):
            found["config"][item.key] = item.value_json
        for item in record.summary.update:
            found["summary"][item.key or "/".join(item.nested_key)] = item.value_json
        for item in record.history.item:
            found["history"].add(item.key or item.nested_key[0])
        for artifact in (record.artifact, record.request.log_artifact.artifact):
            if artifact.name:
                found["artifacts"].append(artifact)
    return found


def log_records(data, block=32_768, header=7):
    """Blocks of 32 kB; a record is cut into fragments: crc (4), length (2), kind (1), bytes."""
    whole, last, at = 1, 4, header  # the file begins with seven bytes of its own
    parts = b""
    while at + header <= len(data):
        if block - at % block < header:
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + header : at + header + length]
        at += header + length
        if kind in (whole, last):
            yield parts
            parts = b""


def test_a_sweep_runs_on_a_local_submitit_executor(tmp_path):
    done = command(
        "train.py",
        "-m",
        *QUICK,
        "hydra/launcher=submitit_local",
        "model.epochs=1",
        "model.width=16,32",
        "hydra.launcher.timeout_min=5",
        f"hydra.sweep.dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    for job in "01":
        assert (tmp_path / job / "metrics.json").exists()


def test_every_yaml_of_the_zoo_composes(tmp_path):
    from conftest import config

    for folder, words in {
        "trainer": "trainer={}",
        "logger": "logger={}",
        "experiment": "experiment={}",
    }.items():
        for path in sorted((ROOT / "configs" / folder).glob("*.yaml")):
            assert config("zephyr", tmp_path, words.format(path.stem))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_says_what_is_saved_and_how_to_go_on(number, code, tmp_path):
    words = ["train.py", "model=zephyr", "experiment=zephyr_quick", "model.epochs=500"]
    run = subprocess.Popen(
        [sys.executable, *words, f"hydra.run.dir={tmp_path}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # tests that run in the background ignore Ctrl-C, and so would their children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    last = tmp_path / "last.ckpt"
    while not last.exists() and run.poll() is None:
        time.sleep(0.02)
    run.send_signal(number)
    _, said = run.communicate()
    assert run.returncode == code, said
    assert f"stopped by {number.name}: {last} holds the last complete epoch" in said
    assert f"train.py model=zephyr checkpoint={last}" in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob(".*.part")) and not (tmp_path / "metrics.json").exists()


def test_the_folder_of_a_run_that_died_with_nothing_saved_is_taken_over(tmp_path, monkeypatch):
    dead = subprocess.run(
        [sys.executable, "-c", "from orrery.files import writer; print(writer(), end='')"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    (tmp_path / ".began").write_text(dead.stdout)
    claim_run_folder(tmp_path)
    with pytest.raises(ValueError, match=r"has saved no checkpoint yet; if it has ended, remove"):
        claim_run_folder(tmp_path)  # this process has not ended
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(ValueError, match=r"resume that run: checkpoint=.*last\.ckpt"):
        claim_run_folder(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    claim_run_folder(tmp_path)


def test_the_default_run_folder_is_named_without_a_warning(tmp_path):
    done = command(str(ROOT / "evaluate.py"), "checkpoint=gyro", "output=a.txt", cwd=tmp_path)
    assert "Warning" not in done.stderr and "Callback" not in done.stderr
    (folder,) = tmp_path.glob("outputs/*/*")
    assert folder.is_dir()


@pytest.mark.parametrize("entry_point", ["train.py", "evaluate.py"])
def test_a_run_folder_that_cannot_be_written_to_is_refused_by_a_sentence(entry_point, tmp_path):
    (tmp_path / "file").touch()
    done = command(entry_point, f"hydra.run.dir={tmp_path}/file/run")
    assert "nothing can be written to the run folder" in refusal(done)
