"""Checkpoints of older versions of `sed_emulator` and `feniks` as those of today."""

from typing import Any

from torch import Tensor


def ensemble_settings(
    config: dict[str, Any], state: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """To version 2: posteriors are sampled by ensembles of walkers in place of HMC."""
    settings = {k: v for k, v in config["model"].items() if k not in ("chains", "warmup")}
    if settings.get("inference") == "hmc":
        settings["inference"] = "ensemble"
    return {**config, "model": settings}, state
