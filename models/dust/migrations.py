"""Checkpoints of older versions of `dust` as those of today."""

from typing import Any

import torch
from torch import Tensor

BUFFERS = {"even": "constant_density", "log_density": "log_mean_density", "chains": "diagnostics"}


def inference_setting(
    config: dict[str, Any], state: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """To version 2: ``guide=curved`` is ``inference=geovi``, and three buffers have clearer names.

    Checkpoints without ``clumps`` were fitted with a plain Matern kernel.
    """
    model = {"clumps": 0.0, **config["model"]}
    inference = model.pop("guide", "curved")
    model["inference"] = "geovi" if inference == "curved" else inference
    return {**config, "model": model}, {BUFFERS.get(k, k): v for k, v in state.items()}


def no_substructure_nearer_dust_or_disc(
    config: dict[str, Any], state: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """To version 3: maps without structure within voxels, dust nearer than the map, or a disc.

    Two latents are added after the others.
    """
    state = {**state, "substructure": torch.tensor(0.0)}
    for name in ("mean", "residuals", "posterior"):
        if name in state:
            state[name] = torch.nn.functional.pad(state[name], (0, 2))
    return {
        **config,
        "model": {**config["model"], "nearer_error": 0.0, "decline_error": 0.0},
    }, state
