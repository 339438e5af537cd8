"""Checkpoints of older schema versions as today's."""

from typing import Any

import torch
from torch import Tensor

from orrery.models.gyro.discrepancy import SCALES, TURNOVERS
from orrery.models.gyro.outputs import N_LEVELS
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
    """Version 2 to 3: the discrepancy was one number, that grew with the gyrochrone's slope."""
    offset, stated, log_density, weight, of_others, coverage = state_dict["left_out_scores"].T
    half = torch.hypot(stated, of_others)
    columns = torch.stack([offset, offset - half, offset + half, log_density, weight, coverage], 1)
    state_dict["left_out_scores"] = torch.where(columns.isnan(), torch.inf, columns)
    of_all = state_dict.pop("discrepancy")
    state_dict["discrepancies"] = torch.stack([_candidate(x) for x in (*of_others, of_all)])
    return config, state_dict


def ranks_unknown(
    config: dict[str, Any], state_dict: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Version 3 to 4: without the densities of training stars, their rank is NaN."""
    return config, {**state_dict, "density_levels": torch.full((N_LEVELS,), torch.inf)}


def _candidate(scale: Tensor) -> Tensor:
    """All weight on the candidate of this scale, dex, and the turnover of the gyrochrone."""
    weights = torch.zeros(len(TURNOVERS), len(SCALES))
    if scale > 0 and scale.isfinite():
        row = int((TURNOVERS - PLATEAU_MYR).abs().argmin())
        weights[row, int((SCALES - scale).abs().argmin())] = 1
    return weights.flatten()
