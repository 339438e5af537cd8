"""A single star as a batch."""

import math

import torch
from torch import Tensor

from orrery.physics.rotation.seismic_stars import Star


def star_batch(star: Star) -> dict[str, Tensor]:
    """A batch of one star, a certain member of its cluster and not overluminous."""
    values = {
        "log_period": math.log10(star.period),
        "log_period_error": star.period_error / star.period / math.log(10),
        "colour": star.colour,
        "colour_error": star.colour_error,
        "mem_prob": 1.0,
        "overluminosity": 0.0,
    }
    batch = {name: torch.tensor([value]).float() for name, value in values.items()}
    others = {"valid": True, "is_evolved": False, "is_duplicate": False, "row": 0}
    return batch | {name: torch.tensor([value]) for name, value in others.items()}
