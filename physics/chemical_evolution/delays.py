"""Delay-time distributions: when the events of a population of one age happen."""

import torch
from torch import Tensor

HUBBLE_TIME = 13.7  # Gyr, to which delays are normalised


def log_power_law(delay: Tensor, slope: Tensor, minimum: Tensor, maximum: Tensor) -> Tensor:
    """Log density (1/Gyr) of delays t^-slope between ``minimum`` and ``maximum`` (Gyr).

    It is normalised and smooth in ``slope``, 1 included; the delay is taken to be in range. All
    broadcast.
    """
    span = (maximum / minimum).log()
    return -slope * (delay / minimum).log() - minimum.log() - log_mean_exp((1 - slope) * span, span)


def log_mean_exp(x: Tensor, factor: Tensor) -> Tensor:
    """log(factor (e^x - 1) / x), with its limit at x = 0."""
    near = x.abs() < 1e-3
    safe = torch.where(near, torch.ones_like(x), x)
    ratio = torch.where(near, 1 + x / 2 + x * x / 6, torch.expm1(safe) / safe)
    return (factor * ratio).log()
