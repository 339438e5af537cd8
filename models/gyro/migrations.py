"""Checkpoints of older schema versions as today's."""

from typing import Any

import torch
from torch import Tensor

from orrery.physics.rotation.gyrochrones import PLATEAU_MYR

SETTINGS = {"judge": "benchmark_clusters", "field": "field_scatter"}
TENSORS = {
    "left_out": "left_out_scores",
    "colours": "colour_ranges",
    "contamination.evidence": "contamination.logit_coefficients",
    "contamination.others": "contamination.outlier_period",
}


def rename_settings_and_tensors(
    config: dict[str, Any], state_dict: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Version 1 to 2: names of the field for settings of the model and for tensors."""
    model = {SETTINGS.get(name, name): value for name, value in config["model"].items()}
    state_dict = {TENSORS.get(name, name): values for name, values in state_dict.items()}
    return {**config, "model": model}, state_dict


def discrepancy_with_turnover(
    config: dict[str, Any], state_dict: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Version 2 to 3: the discrepancy's turnover was that of the gyrochrone, and is learned."""
    scale = state_dict["discrepancy"]
    state_dict["discrepancy"] = torch.stack([scale, torch.full_like(scale, PLATEAU_MYR)])
    offset, stated, log_density, weight, discrepancy, coverage = state_dict["left_out_scores"].T
    half = torch.hypot(stated, discrepancy)  # without its growth, which young clusters had
    turnover = torch.full_like(offset, PLATEAU_MYR)
    columns = [offset, offset - half, offset + half, log_density, weight, coverage]
    columns += [discrepancy, turnover]
    scores = torch.stack(columns, 1)
    state_dict["left_out_scores"] = torch.where(scores.isnan(), torch.inf, scores)
    return config, state_dict
