"""Checkpoints of older versions of `mass_net` as those of today."""

from typing import Any

import torch
from torch import Tensor


def no_misfit(
    config: dict[str, Any], state: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """To version 2: where the training pairs contradict the network was not computed."""
    return config, {**state, "hr_misfit": torch.zeros_like(state["hr_information"])}
