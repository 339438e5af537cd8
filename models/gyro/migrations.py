"""Checkpoints of older schema versions as today's."""

from typing import Any

from torch import Tensor

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
