"""Runs of every component, small enough for a test."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

ROOT = Path(__file__).parent.parent
COMPONENTS = sorted(path.stem for path in (ROOT / "configs/model").glob("*.yaml"))


def config(component: str, run_dir: Path, *overrides: str) -> DictConfig:
    """The composed config of a quick run of ``component``."""
    GlobalHydra.instance().clear()
    quick = ROOT / f"configs/experiment/{component}_quick.yaml"
    experiment = [f"experiment={component}_quick"] if quick.exists() else []
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(
            "train", [f"model={component}", *experiment, f"run_dir={run_dir}", *overrides]
        )


def train(component: str, run_dir: Path, *overrides: str) -> dict[str, float]:
    """Train in this process; returns the metrics."""
    from train import train

    return train(config(component, run_dir, *overrides), list(overrides))


def command(*words: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``python <words>`` as a user would, in the repository."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd or ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``runs(component)``: the folder of a quick run, made once."""
    made: dict[str, Path] = {}

    def run(component: str) -> Path:
        if component not in made:
            made[component] = tmp_path_factory.mktemp(component)
            train(component, made[component])
        return made[component]

    return run


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs in a folder of its own, and still finds the zoo."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
