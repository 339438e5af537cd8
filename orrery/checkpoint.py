"""Checkpoints: written completely or not at all, read without running anything they contain.

A checkpoint of the zoo is Lightning's, with one more entry, the *record*: plain strings, numbers,
lists and dicts which say how to build the model again and where it came from.
"""

import contextlib
import functools
import inspect
import os
import pickle
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule
from lightning.fabric.plugins import TorchCheckpointIO

from orrery.checkpoint_folder import read_folder
from orrery.files import written_atomically
from orrery.models.base import RECORD as RECORD
from orrery.record import (
    LimitedSize,
    check_checkpoint,
    check_complete,
    check_settings,
    check_sizes,
    check_weights,
)

PACKAGES = ("orrery.models.", "orrery.datamodules.")  # whose classes a checkpoint may name
ZIP = b"PK\x03\x04"  # how every file of torch.save begins
LIBRARIES = ("orrery", "torch", "lightning", "zuko", "nflows", "numpy", "astropy", "torchdiffeq")


def new_record(
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    inferred_settings: Mapping[str, Any],
    made: type,
) -> dict[str, Any]:
    """The metadata of a checkpoint.

    ``config`` is the run's plain config (dicts, lists, scalars); ``provenance`` says which data
    were learned from (path, hash and row count, or the simulation's parameters and seed);
    ``inferred_settings``: those of the data module that the training data decided;
    ``made``: the model's class, whose schema version is recorded.
    """
    return {
        "config": dict(config),
        "data": dict(provenance),
        "found_out": dict(inferred_settings),
        "versions": {name: version(name) for name in LIBRARIES},
        "git_commit": _git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *_words_that_matter(sys.argv[1:])]),
        "metrics": {},
        "schema_version": schema_version(made),
    }


def write_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write atomically: ``path`` is always a complete file, the old one or the new one."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(path) as part, open(part, "wb") as file:
        torch.save(dict(checkpoint), file)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint of this zoo; tensors and plain containers only (``weights_only``).

    ``path``: a ``.ckpt``, or a folder of `orrery.checkpoint_folder`. Raises ``FileNotFoundError``,
    or ``ValueError`` for one that is damaged, that asks to run code when unpickled, or that is not
    a checkpoint of this zoo.
    """
    if Path(path).is_dir():
        checkpoint: dict[str, Any] = read_folder(Path(path))
    else:
        checkpoint = read_archive(path)
    if not isinstance(checkpoint, dict) or RECORD not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of this zoo: it has no '{RECORD}' record")
    try:
        check_checkpoint(checkpoint, checkpoint[RECORD])
    except ValueError as error:
        raise ValueError(f"{path} is refused: its '{RECORD}' record is damaged: {error}") from error
    with refused(path):
        checkpoint = migrated(checkpoint)
        for node in (checkpoint[RECORD]["config"][section] for section in ("model", "data")):
            check_settings(class_of(node), {k: v for k, v in node.items() if k != "_target_"})
        check_sizes(checkpoint[RECORD]["config"]["model"])
    return checkpoint


def read_archive(path: str | Path) -> Any:
    """What `torch.save` has written: a complete file of tensors and plain containers."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    with open(path, "rb") as file:
        if file.read(4) != ZIP:
            raise ValueError(f"{path} is refused: it is not a checkpoint of this zoo")
    stat = os.stat(path)
    _verify(str(path), stat.st_size, stat.st_mtime_ns)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # without torch's own words, which advise to load it nevertheless
        raise ValueError(
            f"{path} is refused: it holds more than tensors and plain values, so that loading it "
            f"could run code; it is not a checkpoint of this zoo"
        ) from error
    except Exception as error:
        raise ValueError(f"{path} is truncated or damaged; copy it again") from error


@functools.lru_cache(maxsize=64)  # a quarter of the time to load a small one
def _verify(path: str, size: int, changed: int) -> None:
    """Refuse an archive with a flipped bit, which torch does not notice, or with packed members."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            usual = all(
                member.compress_type == zipfile.ZIP_STORED
                and not member.external_attr & 0x10  # a folder, which torch reads as nothing
                for member in members
            )
            usual = usual and sum(member.file_size for member in members) <= size
            usual = usual and len({member.filename for member in members}) == len(members)
            wrong = archive.testzip() if usual else None
    except Exception as error:  # of many kinds: an archive's directory may hold anything
        raise ValueError(f"{path} is truncated or damaged; copy it again") from error
    if not usual:
        raise ValueError(f"{path} is refused: its archive is not as torch writes it; copy it again")
    if wrong:
        raise ValueError(f"{path} is truncated or damaged, in '{wrong}'; copy it again")


@contextlib.contextmanager
def refused(path: str | Path | None) -> Iterator[None]:
    """Turn whatever a checkpoint's content makes fail into a sentence with the file's name."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        text = f"{kind}{error}".splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path or 'the checkpoint'} is refused: {text}") from error


def full_target(node: Mapping[str, Any]) -> str:
    """The class that a config names; checkpoints of version 0.1 name it without ``orrery.``."""
    target = str(node.get("_target_"))
    return f"orrery.{target}" if target.startswith(("models.", "datamodules.")) else target


def component_name(target: str) -> str:
    """``zephyr`` of ``orrery.models.zephyr.Zephyr``."""
    return target.split(".")[2]


def name_of(model: LightningModule) -> str:
    """``zephyr`` of a `Zephyr`."""
    return component_name(type(model).__module__)


def class_of(node: Mapping[str, Any]) -> Any:
    """The component or data module that ``node["_target_"]`` names; refuses everything else."""
    target = full_target(node)
    if not re.fullmatch(r"orrery\.(models|datamodules)(\.[a-z]\w*)+\.[A-Z]\w*", target):
        raise ValueError(f"refused to build '{target}': it is not a class of models or datamodules")
    module, _, name = target.rpartition(".")
    try:
        made = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no '{target}' in this version of the zoo: {error}") from error
    ours = inspect.isclass(made) and made.__module__.startswith(PACKAGES)
    if not ours or not issubclass(made, LightningModule | LightningDataModule):
        raise ValueError(f"refused to build '{target}': it is not a component of the zoo")
    return made


def schema_version(made: Any) -> int:
    """Of a component's settings: one more with each migration."""
    return 1 + len(made.migrations)


def migrated(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of an older schema as one of today's: settings and tensors by today's names.

    Each of a component's `migrations` takes the checkpoint of one version, of which it may change
    ``config`` (``model``, ``data``...) and ``state_dict``, and returns that of the next.
    """
    record = checkpoint[RECORD]
    made = class_of(record["config"]["model"])
    version = record.get("schema_version", record.get("format", 1))
    if version > schema_version(made):
        raise ValueError(
            f"it is of schema version {version} of {made.__name__}, and this version of the zoo "
            f"reads {schema_version(made)}: install orrery {record['versions']['orrery']}"
        )
    config, state = dict(record["config"]), dict(checkpoint["state_dict"])
    for migrate in made.migrations[version - 1 :]:
        config, state = migrate(config, state)
    record = {**record, "config": config, "schema_version": schema_version(made)}
    return {**checkpoint, "state_dict": state, RECORD: record}


def build(node: Mapping[str, Any]) -> Any:
    """Make the component or data module that ``node["_target_"]`` names, and nothing else.

    A checkpoint's config is untrusted input: only classes that are defined in ``orrery.models`` or
    ``orrery.datamodules`` and are components or data modules are ever called.
    """
    made = class_of(node)
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    check_settings(made, arguments)
    check_complete(made, arguments)
    return made(**arguments)


def restore(
    checkpoint: Mapping[str, Any],
    changes: Mapping[str, Any] | None = None,
    path: str | Path | None = None,
) -> Any:
    """The trained model of a checkpoint, in evaluation mode.

    ``changes``: settings of the model. ``path``: the file's name, for messages.
    """
    if "optimizer_states" in checkpoint:
        raise ValueError(
            "this checkpoint is of an unfinished run, and its model is not calibrated; resume it "
            "with train.py checkpoint=<path>, which ends in best.ckpt"
        )
    settings, state = checkpoint[RECORD]["config"]["model"], checkpoint["state_dict"]
    if changes:
        refuse_decided(class_of(settings), settings, changes)
        check_settings(class_of(settings), changes)
    with refused(f"{path} with {dict(changes)}" if changes else path):
        with LimitedSize(state):
            model = build({**settings, **(changes or {})})
        check_weights(model, state)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"the weights do not fit the model: {str(error).splitlines()[-1].strip()}"
            ) from error
    model.record = checkpoint[RECORD]
    return model.eval()


def refuse_decided(made: Any, stored: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Raise for a change of a setting of the model on which its weights rest."""
    free = made.prediction_settings
    for key in changes:
        if key in stored and key not in free and changes[key] != stored[key]:
            can = f"; these can: {', '.join(sorted(free))}" if free else ""
            raise ValueError(
                f"model.{key}={changes[key]}: the weights were trained with {stored[key]}, which "
                f"cannot be changed afterwards{can}"
            )


def load_weights(model: Any, path: Path) -> None:
    """Start ``model`` from the weights and scaling of another checkpoint of the same component.

    The component says which tensors are `reinitialised_on_finetune`, such as the head of another
    set of sources.
    """
    checkpoint = read_checkpoint(path)
    settings = checkpoint[RECORD]["config"]["model"]
    theirs, ours = full_target(settings), f"{type(model).__module__}.{type(model).__name__}"
    if theirs != ours:
        raise ValueError(f"init_from: {path} holds {theirs}, and the model is {ours}")
    state: dict[str, Any] = model.state_dict()
    taken: dict[str, Any] = {}
    for name, values in checkpoint["state_dict"].items():
        if model.reinitialised_on_finetune(name, settings) or name not in state:
            continue
        if state[name].shape != values.shape:
            raise ValueError(
                f"init_from: {path} has {name} of shape {tuple(values.shape)}, and the model "
                f"{tuple(state[name].shape)}; give it the settings of that checkpoint"
            )
        taken[name] = values
    with refused(path):
        check_weights(model, taken)
    model.load_state_dict(state | taken)
    fresh = sorted({name.split(".")[0] for name in set(state) - set(taken)})
    print(f"weights of {path}" + (f"; newly initialised: {', '.join(fresh)}" if fresh else ""))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files through `write_checkpoint` and `read_checkpoint`.

    Lightning's own writer goes through a temporary file in the system's temporary folder, which
    on most clusters is another file system, so that a killed job may leave half a file.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        write_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path)


def _words_that_matter(words: list[str]) -> list[str]:
    """The command line without where the run was written and tracked."""
    return [
        word for word in words if not word.startswith(("hydra.", "logger=", "+hydra.", "run_dir="))
    ]


def _git_commit() -> str:
    clone = Path(__file__).resolve().parent.parent
    if not (clone / ".git").exists():  # a wheel, maybe in a repository of the user's own
        return f"v{version('orrery')}"
    command = ["git", "-C", str(clone), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return "unknown"
    return found.stdout.strip() or "unknown"
