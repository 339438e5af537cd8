"""A checkpoint written as a folder for model hubs: weights, record and card.

``model.safetensors``, ``config.json`` and ``README.md``; `orrery.checkpoint_folder` reads it.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from orrery.checkpoint import name_of
from orrery.checkpoint_folder import file_sha256
from orrery.exported_files import CARD, CONFIG, WEIGHTS
from orrery.model_card import hub_card
from orrery.models.base import RECORD, Component


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
        "weights_sha256": file_sha256(folder / WEIGHTS),
        "checkpoint": {**others, RECORD: {**record, "metrics": metrics}},
    }
    try:
        text = json.dumps(config, indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the record of this checkpoint cannot be written: {error}") from error
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    (folder / CARD).write_text(hub_card(name, model), encoding="utf-8")
