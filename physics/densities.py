"""Log densities, nats."""

import math

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def log_standard_normal(x: Tensor) -> Tensor:
    """ln p of the normal distribution of mean 0 and variance 1."""
    return -0.5 * x.square() - HALF_LOG_2PI


def log_normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """ln p of the normal distribution."""
    return -0.5 * ((x - mean).square() / variance + variance.log() + math.log(2 * math.pi))


def log_student(x: Tensor, mean: Tensor, variance: Tensor, dof: float | None) -> Tensor:
    """Of Student's distribution, whose scale is the root of ``variance``; None: of the normal."""
    if dof is None:
        return log_normal(x, mean, variance)
    norm = math.lgamma(0.5 * (dof + 1)) - math.lgamma(0.5 * dof) - 0.5 * math.log(dof * math.pi)
    tail = torch.log1p((x - mean).square() / (dof * variance))
    return norm - 0.5 * variance.log() - 0.5 * (dof + 1) * tail
