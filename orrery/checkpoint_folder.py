"""Checkpoints as folders, for model hubs: ``model.safetensors``, ``config.json``, ``README.md``.

Weights are tensors alone, and the record is JSON: reading a folder runs nothing that it contains.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from orrery.checkpoint import name_of
from orrery.model_card import hub_card
from orrery.models.base import RECORD, Component
from orrery.pretrained import CONFIG, WEIGHTS

CARD = "README.md"


def write_folder(checkpoint: Mapping[str, Any], model: Component, name: str, folder: Path) -> None:
    """Write a finished checkpoint into the empty ``folder``. ``model``: what it restores to.

    Raises ``ValueError`` for a setting that JSON has no number for, such as NaN.
    """
    state = {key: values.contiguous() for key, values in checkpoint["state_dict"].items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    record = checkpoint[RECORD]
    metrics = {key: value for key, value in record["metrics"].items() if math.isfinite(value)}
    others = {key: value for key, value in checkpoint.items() if key != "state_dict"}
    config = {
        "library_name": "orrery",
        "model_type": name_of(model),
        "weights_sha256": _sha256(folder / WEIGHTS),
        "checkpoint": {**others, RECORD: {**record, "metrics": metrics}},
    }
    try:
        text = json.dumps(config, indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the record of this checkpoint cannot be written: {error}") from error
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    (folder / CARD).write_text(hub_card(name, model), encoding="utf-8")


def read_folder(folder: Path) -> dict[str, Any]:
    """The checkpoint in a folder of `write_folder`, as it would come from its ``.ckpt``.

    Raises ``FileNotFoundError``, or ``ValueError`` for files that are damaged or do not belong
    together. What the record says is checked by `orrery.checkpoint.read_checkpoint`.
    """
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"there is no checkpoint in the folder {folder}: no {name}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except Exception as error:  # not text, not JSON, nested without end
        raise ValueError(f"{folder / CONFIG} is truncated or damaged; copy it again") from error
    checkpoint = config.get("checkpoint") if isinstance(config, dict) else None
    if not isinstance(checkpoint, dict) or RECORD not in checkpoint:
        raise ValueError(
            f"{folder} is not a checkpoint of this zoo: its {CONFIG} has no '{RECORD}' record"
        )
    if config.get("weights_sha256") != _sha256(folder / WEIGHTS):
        raise ValueError(
            f"{folder / WEIGHTS} is not the file that {CONFIG} was written with: it is truncated, "
            f"damaged or another; copy the folder again"
        )
    try:
        state = load_file(folder / WEIGHTS)
    except Exception as error:
        raise ValueError(f"{folder / WEIGHTS} is truncated or damaged; copy it again") from error
    return {**checkpoint, "state_dict": state}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
