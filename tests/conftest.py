"""What tests share: quick runs of every component, the doors, a catalogue, a folder."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Table
from commands import Done, run, run_together, save_time
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

ROOT = Path(__file__).parent.parent
COMPONENTS = sorted(path.stem for path in (ROOT / "configs/model").glob("*.yaml"))
BANDS = "ugrizy"


def quick_words(component: str) -> list[str]:
    """The experiment that makes runs of ``component`` quick, if it has one."""
    quick = ROOT / f"configs/experiment/{component}_quick.yaml"
    return [f"experiment={component}_quick"] if quick.exists() else []


def config(component: str, run_dir: Path, *overrides: str) -> DictConfig:
    """The composed config of a quick run of ``component``."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(
            "train",
            [f"model={component}", *quick_words(component), f"run_dir={run_dir}", *overrides],
        )


def train(
    component: str,
    run_dir: Path,
    *overrides: str,
    evaluated: bool = True,
    report: bool = False,
) -> dict[str, float]:
    """Train in this process; returns the metrics, or without evaluation the val_loss alone."""
    from orrery.train import train

    with pytest.MonkeyPatch.context() as patch:
        save_time(report, patch.setattr)
        if not evaluated:  # for tests of weights: figures and metrics cost more than the fit
            patch.setattr("orrery.evaluation.evaluate.evaluate", lambda *_: {})
        return train(config(component, run_dir, *overrides), list(overrides))


def command(*words: str, cwd: Path | None = None, report: bool = False, **env: str) -> Done:
    """Run ``python <words>`` as a user would, in the repository.

    ``report``: with the figures and the speeds of an evaluation.
    """
    return run(words, cwd or ROOT, {**os.environ, **env}, report)


def command_of_two(*words: str, **env: str) -> list[Done]:
    """The same in two processes, as a launcher such as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [{**os.environ, **env, **address, "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    return run_together([words, (*words, "hydra.output_subdir=null")], ROOT, ranks)


def fresh_python(*words: str, cwd: Path | None = None, **env: str) -> Done:
    """The same in an interpreter that has imported nothing yet: for another copy of the code."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd or ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )


def door(runs: Any, tmp_path: Path, *words: str, door: str = "evaluate.py", **env: Any) -> Done:
    """A quick zephyr through a door: evaluated, or trained by ``door="train.py"``."""
    start = ["model=zephyr", "experiment=zephyr_quick"]
    if door == "evaluate.py":
        start = [f"checkpoint={runs('zephyr')}/best.ckpt"]
    return command(door, *start, *words, f"hydra.run.dir={tmp_path}/run", **env)


def refusal(done: Done) -> str:
    """What is said to the user where a door refuses."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


def keep_predictions(patch: pytest.MonkeyPatch, path: Path) -> None:
    """Write what the trained model predicts of a batch, before it is read from its file."""
    import torch

    from orrery.evaluation import evaluate

    real = evaluate.evaluate

    def evaluated(model: Any, data: Any, *rest: Any) -> dict[str, float]:
        metrics = real(model, data, *rest)
        with torch.inference_mode():
            torch.save(model.predict_step(next(data.prediction_batches()), 0), path)
        return metrics

    patch.setattr(evaluate, "evaluate", evaluated)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Any:
    """``runs(component)``: the folder of a quick run, made once for all workers; not to change."""
    own = tmp_path_factory.getbasetemp()
    shared = (own if worker_id == "master" else own.parent) / "runs"
    shared.mkdir(exist_ok=True)

    def run(component: str) -> Path:
        folder, made = shared / component, shared / f"{component}.made"
        with FileLock(shared / f"{component}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a training that failed
                with pytest.MonkeyPatch.context() as patch:
                    keep_predictions(patch, shared / f"{component}.predicted.pt")
                    train(component, folder, report=True)
                made.touch()
        return folder

    return run


@pytest.fixture
def galaxies() -> Table:
    """A catalogue of 60 galaxies in AB magnitudes."""
    random = np.random.default_rng(0)
    table = Table({"id": np.arange(60) + 10**15})
    for i, band in enumerate(BANDS):
        table[f"mag_{band}"] = 25.5 - 0.4 * i + random.normal(0, 0.7, 60)
        table[f"mag_err_{band}"] = random.uniform(0.02, 0.2, 60)
    table["redshift"] = random.uniform(0.1, 2, 60)
    return table


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs in a folder of its own, and still finds the zoo."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def stars() -> dict[str, np.ndarray]:
    """The archive's columns of the BP/RP spectra of 300 simulated stars."""
    from orrery.physics.gaia_xp import xp, xp_mock

    table = xp_mock.simulate(300, np.random.default_rng(5))
    parts = ("coefficients", "coefficient_errors", "coefficient_correlations")
    names = [f"{band}_{part}" for band in xp.BANDS for part in parts]
    return {name: table[name] for name in ("source_id", "phot_g_mean_flux", *names)}
