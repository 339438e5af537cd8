"""Runs and their checkpoints: folders, resuming, the data of a checkpoint, rows not to be leaked.

Light to import: `train.py --help` must not wait for torch.
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from orrery.files import is_gone, writer

# Settings of the data on which a checkpoint's split of its training file rests, and those that
# belong to that file alone.
SPLIT = ("seed", "val_fraction", "test_fraction", "train_where", "cuts")
# settings that do not decide what is learned from, and in which order
OF_A_RUN = ("path", "keep", "group_by", "origin", "num_workers", "predict_batch_size")
OF_ONE_FILE = ("group", "units", "keep", "group_by", "train_where", "cuts", "sentinels")


class ChangedSince(ValueError):
    """The training file has changed since the model was trained."""


def resumed(config: DictConfig, overrides: list[str]) -> DictConfig:
    """The config of the run that ``config.checkpoint`` belongs to, to resume in its folder.

    Model, data, trainer and seed are the stored ones, changed by the command line.
    """
    from orrery.checkpoint import RECORD, read_checkpoint
    from orrery.pretrained import find

    path = find(config.checkpoint)
    checkpoint = read_checkpoint(path)
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            f"{path} holds a finished model without its training state; resume from last.ckpt, or "
            f"fine-tune with init_from={path}"
        )
    stored = checkpoint[RECORD]["config"]
    words = [word.lstrip("+") for word in overrides]
    for word in words:
        if word.startswith("model=") and f"models.{word[6:]}." not in stored["model"]["_target_"]:
            raise ValueError(f"{path} is a checkpoint of {stored['model']['_target_']}, not {word}")
    OmegaConf.set_struct(config, False)
    config.model, config.data, config.seed = stored["model"], stored["data"], stored["seed"]
    config.run_dir = str(path.parent)
    if not any(word.startswith("trainer=") for word in words):
        config.trainer = {**stored["trainer"], "max_epochs": config.trainer.max_epochs}
    own = [word for word in words if word.startswith(("model.", "data.", "trainer."))]
    merged: DictConfig = OmegaConf.merge(config, OmegaConf.from_dotlist(own))  # type: ignore[assignment]
    return merged


def claim_run_folder(run_dir: Path) -> None:
    """Mark a folder as that of a new run, so that no other run takes it in the same second."""
    run_dir.mkdir(parents=True, exist_ok=True)
    began, saved = run_dir / ".began", run_dir / "last.ckpt"
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":  # a requeued job
        return
    if began.exists() and not saved.exists() and is_gone(began.read_text()):
        began.unlink(missing_ok=True)  # that run was stopped before it had saved anything
    try:
        with open(began, "x") as file:
            file.write(writer())
    except FileExistsError as error:
        another = f"{run_dir} is the folder of another run: name another by hydra.run.dir=<folder>"
        if saved.exists():
            raise ValueError(f"{another}, or resume that run: checkpoint={saved}") from error
        raise ValueError(
            f"{another}. That run has saved no checkpoint yet; if it has ended, remove {began} to "
            f"start anew in its folder"
        ) from error


def refuse_without_rows(data: Any) -> None:
    """Raise for data that are no catalogue: nothing can be trained on them."""
    from orrery.datamodules.base import CatalogueData
    from orrery.datamodules.dataset import JointData

    if isinstance(data, JointData) or not isinstance(data, CatalogueData):
        raise ValueError(
            f"data={type(data).__name__} has no rows to train on: it is for evaluate.py, with the "
            f"checkpoint of a trained model"
        )


def refuse_other_data(record: Mapping[str, Any], checkpoint: str) -> None:
    """Raise unless a run is resumed with its own data: others hold out rows it was trained on."""
    from orrery.checkpoint import RECORD, read_checkpoint

    before = read_checkpoint(checkpoint)[RECORD]
    earlier, now = ({**one["data"], "path": None, "cuts": None} for one in (before, record))
    if earlier != now:
        raise ValueError(f"{checkpoint} was trained on {before['data']}, now are {record['data']}")
    earlier, now = before["config"]["data"], record["config"]["data"]
    for key in sorted(earlier.keys() | now.keys()):
        if key not in OF_A_RUN and earlier.get(key) != now.get(key):
            raise ValueError(
                f"{checkpoint} was trained with data.{key}={earlier.get(key)}, and it is now "
                f"{now.get(key)}: other rows would be held out, or others trained on"
            )


def refuse_leak(record: Mapping[str, Any], begun: Mapping[str, Any], checkpoint: Path) -> None:
    """Raise if pretrained weights would be tested on rows that they were trained on."""
    if "sha256" not in begun["data"] or begun["data"]["sha256"] != record["data"].get("sha256"):
        return
    earlier, now = begun["config"]["data"], record["config"]["data"]
    for key in SPLIT:
        if (earlier.get(key) or 0) != (now.get(key) or 0):  # nothing, in whatever form
            raise ValueError(
                f"init_from: {checkpoint} was trained on the same file with data.{key}="
                f"{earlier.get(key)}, and it is now {now.get(key)}: rows that it has learned from "
                f"would be held out; set data.{key}={earlier.get(key)}"
            )


def data_for(
    record: Mapping[str, Any], asked: Mapping[str, Any], typed: Collection[str] = ()
) -> Any:
    """The data module to evaluate on: the checkpoint's own, with what the command line asked.

    A named ``data=`` section replaces the checkpoint's, but for defaults of settings that training
    has decided, unless they are ``typed``; ``data.path`` alone means all rows of that file; nothing
    at all means the test split of the data it was trained on.
    """
    from orrery.checkpoint import build, class_of
    from orrery.record import defaults_of, settings_of
    from orrery.tables import files_of

    stored = dict(record["config"]["data"])
    made = class_of(asked if "_target_" in asked else stored)
    known = settings_of(made)
    if "_target_" in asked:
        defaults = defaults_of(made)
        free = {k for k in made.decided_by_training if asked.get(k) == defaults.get(k)}
        asked = {key: value for key, value in asked.items() if key not in free - set(typed)}
    for key in made.decided_by_training & asked.keys() & stored.keys():
        if asked[key] is not None and asked[key] != stored[key]:
            raise ValueError(
                f"data.{key}={asked[key]}: the model was trained with {stored[key]}, which cannot "
                f"be changed afterwards"
            )
    if "_target_" in asked:
        stored = {key: value for key, value in record["found_out"].items() if key in known}
        asked = {k: v for k, v in asked.items() if k not in stored or v is not None}
    if asked.get("split", "") is None:
        asked = {key: value for key, value in asked.items() if key != "split"}
    if asked.get("path"):
        for key in (*OF_ONE_FILE, *made.of_one_file):
            stored.pop(key, None)
        if "split" in known:
            stored["split"] = "all"
    settings: Any = OmegaConf.to_container(OmegaConf.merge(stored, asked))
    data, trained_on = build(settings), record["data"]
    if not data.path:
        return data
    where = f"{trained_on.get('path')} ({trained_on.get('rows', 0):,} rows)"
    if asked.get("path"):
        data.insample = data.split == "all" and data.is_of_record(trained_on)
        return data
    for key in SPLIT:
        if key in asked:
            raise ValueError(
                f"data.{key} decides which rows of {where} were held out of training, and cannot "
                f"be changed afterwards"
            )
    if not files_of(data.path):
        raise FileNotFoundError(
            f"this model was trained on {where}, which is not here, and may not be shipped; "
            f"origin: {data.origin or 'not recorded'}. Name a catalogue: data.path=<file>"
        )
    if data.provenance()["sha256"] != trained_on["sha256"]:
        raise ChangedSince(
            f"this model was trained on {where}, and the file has changed since, so that its "
            f"test rows are no longer known; name a catalogue: data.path=<file>"
        )
    return data


def refuse_overwriting(output: str | None, data: Any) -> None:
    """Refuse to overwrite the catalogue by its predictions."""
    from orrery.tables import files_of

    if output and data.path and Path(output).exists():
        for name in (data.path, *files_of(data.path)):
            if Path(name).exists() and Path(output).samefile(name):
                raise ValueError(f"output={output} is the catalogue itself; name another file")
