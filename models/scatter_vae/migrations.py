"""Checkpoints of older versions of `scatter_vae` as those of today."""

from typing import Any

from torch import Tensor


def em_rounds_setting(
    config: dict[str, Any], state: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """To version 2: ``polish`` is ``em_rounds``, and the buffer ``spread`` ``component_std``."""
    settings = {"em_rounds" if k == "polish" else k: v for k, v in config["model"].items()}
    tensors = {"component_std" if k == "spread" else k: v for k, v in state.items()}
    return {**config, "model": settings}, tensors
