"""Checkpoints as folders: ``model.safetensors`` and ``config.json``, see `orrery.hub_folder`.

Weights are tensors alone, and the record is JSON: reading a folder runs nothing that it contains.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from orrery.exported_files import CONFIG, WEIGHTS
from orrery.models.base import RECORD


def read_folder(folder: Path) -> dict[str, Any]:
    """The checkpoint in a folder of `orrery.hub_folder`, as it would come from its ``.ckpt``.

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
    if config.get("weights_sha256") != file_sha256(folder / WEIGHTS):
        raise ValueError(
            f"{folder / WEIGHTS} is not the file that {CONFIG} was written with: it is truncated, "
            f"damaged or another; copy the folder again"
        )
    try:
        state = load_file(folder / WEIGHTS)
    except Exception as error:
        raise ValueError(f"{folder / WEIGHTS} is truncated or damaged; copy it again") from error
    return {**checkpoint, "state_dict": state}


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
