"""Stars of given periods and colours as a batch."""

import math

import numpy as np
import torch
from torch import Tensor

from orrery.physics.rotation.seismic_stars import Star


def stars_batch(
    period: np.ndarray, period_error: np.ndarray, colour: np.ndarray, colour_error: np.ndarray
) -> dict[str, Tensor]:
    """Certain members, not overluminous, as a batch; arguments (n,), d and mag."""
    values = {
        "log_period": np.log10(period),
        "log_period_error": period_error / period / math.log(10),
        "colour": colour,
        "colour_error": colour_error,
        "mem_prob": np.ones(len(period)),
        "overluminosity": np.zeros(len(period)),
    }
    batch = {name: torch.from_numpy(np.asarray(value)).float() for name, value in values.items()}
    n = len(period)
    flags = {"valid": torch.ones(n), "is_evolved": torch.zeros(n), "is_duplicate": torch.zeros(n)}
    batch |= {name: mask.bool() for name, mask in flags.items()}
    return batch | {"row": torch.arange(n)}


def star_batch(star: Star) -> dict[str, Tensor]:
    """A batch of one star."""
    columns = (star.period, star.period_error, star.colour, star.colour_error)
    return stars_batch(*(np.array([value], float) for value in columns))
