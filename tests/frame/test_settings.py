"""Settings stand once: every YAML agrees with the class that it is for."""

import inspect
from pathlib import Path

import pytest
from conftest import ROOT, command
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class
from omegaconf import OmegaConf

from orrery import command_line, pretrained
from orrery.checkpoint import RECORD, build, read_checkpoint, restore
from orrery.datamodules.base import CatalogueData
from orrery.datamodules.dataset import Dataset
from orrery.record import annotations, check_settings

CONFIGS = ROOT / "configs"
EXPERIMENTS = command_line.choices("experiment")


def target(path: Path) -> type:
    """The class of a model's or a data module's YAML, its own or that of the one it inherits."""
    node = OmegaConf.load(path)
    if path.stem == "_catalogue":
        return CatalogueData
    if "_target_" in node:
        return get_class(node._target_)
    return target(path.with_name(f"{node.defaults[0]}.yaml"))


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Of the class and of those that it passes the rest to; its own come first."""
    found = {}
    for base in cls.__mro__:
        found = dict(inspect.signature(base.__init__).parameters) | found
    return found


def plain(value):
    """An empty list, an empty dict and none at all are the same."""
    return None if value in ((), [], {}) else list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    "path", [p for group in ("model", "data") for p in sorted((CONFIGS / group).glob("*.yaml"))],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)  # fmt: skip
def test_settings_and_defaults_are_those_of_the_class(path):
    cls, node = target(path), OmegaConf.to_container(OmegaConf.load(path))
    own, known = inspect.signature(cls.__init__).parameters, parameters(cls)
    for name, value in node.items():
        if name in ("_target_", "defaults"):
            continue
        assert name in known, f"{cls.__name__} has no setting {name}"
        default = own[name].default if name in own else inspect.Parameter.empty
        if "${" in str(value) or default is inspect.Parameter.empty:
            continue
        if path.stem.startswith("gc_") and name == "truth":
            continue
        assert plain(value) == plain(default), f"{name}: {value} here, {default} in {cls.__name__}"


def composed(*words: str):
    """The plain config of train.py; what it asks its user for is "anything"."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", [*words, "run_dir=."])
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "anything")
    return OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_builds_its_own_model_and_data(name):
    component = next(m for m in command_line.choices("model") if name.startswith(m))
    raw = OmegaConf.load(CONFIGS / f"experiment/{name}.yaml")
    config = composed(f"model={component}", f"experiment={name}")
    data = build(config["data"])
    stored = read_checkpoint(ROOT / f"checkpoints/{component}.ckpt")[RECORD]["config"]["model"]
    decided = {k: v for k, v in stored.items() if k not in config["model"]}  # by the data
    assert build(decided | config["model"])
    for part in ("model", "data"):
        cls = get_class(config[part]["_target_"])
        assert set(raw.get(part) or {}) <= set(parameters(cls)), part
    assert isinstance(data, Dataset)


@pytest.mark.parametrize("component", command_line.choices("model"))
def test_every_component_takes_the_settings_of_a_catalogue(component):
    words = ["data.keep=[id]", "data.batch_size=576", "data.skip_bad=true", "data.split=all",
             "data.sentinels=[-99.9,99.99]",
             "+data.cuts.bright='mag < 20'"]  # fmt: skip
    data = build(composed(f"model={component}", *words)["data"])
    assert data.keep == ["id"] and data.batch_size == 576 and data.skip_bad
    assert data.sentinels == (-99.9, 99.99)
    assert data.split == "all" and data.cuts == {"bright": "mag < 20"}


def test_what_is_inherited_is_no_choice():
    done = command("train.py", "--help")
    assert "data: abundance_structures," in done.stdout and "_catalogue" not in done.stdout
    done = command("train.py", "data=_catalog")
    assert done.returncode != 0 and "near: _catalogue" not in done.stderr


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "data").glob("[!_]*.yaml")), ids=lambda p: p.stem
)
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_and_counts_are_positive(path, value):
    cls = target(path)
    may_be_zero = {name for base in cls.__mro__ for name in vars(base).get("may_be_zero", ())}
    for name, kind in annotations(cls).items():
        if kind not in (int, int | None) or (value == 0 and name in may_be_zero):
            continue
        least = 0 if name in may_be_zero else 1
        with pytest.raises(ValueError, match=rf"data\.{name} is {value}; expected {least} or more"):
            check_settings(cls, {name: value})


def test_chains_of_a_trained_model_are_positive():
    checkpoint = read_checkpoint(pretrained.find("gc_emulator"))
    for name in ("chains", "warmup", "draws"):
        with pytest.raises(ValueError, match=rf"model\.{name} is 0; expected 1 or more"):
            restore(checkpoint, {name: 0})


@pytest.mark.parametrize(
    "shares, message",
    [
        ({"val_fraction": -0.1}, "data.val_fraction is -0.1; expected a share"),
        ({"test_fraction": 1.5}, "data.test_fraction is 1.5; expected a share"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "leaves no rows to train on"),
    ],
)
def test_shares_of_rows_leave_some_to_train_on(shares, message):
    with pytest.raises(ValueError, match=message):
        CatalogueData(**shares)


def test_open_sections_of_the_data_can_be_set_when_training():
    text = (ROOT / "train.py").read_text()
    for path in (CONFIGS / "data").glob("*.yaml"):
        for name, value in OmegaConf.to_container(OmegaConf.load(path)).items():
            if value == {}:
                assert f'"data.{name}"' in text, f"{path.stem}: data.{name}.<key>="
