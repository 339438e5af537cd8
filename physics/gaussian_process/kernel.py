"""Covariances of isotropic Gaussian processes of unit variance."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Kernel = Callable[[Tensor], Tensor]  # covariance at a distance in pc


def matern(scale: float, nu: float = 1.5) -> Kernel:
    """Matern covariance of unit variance; ``scale`` in pc, ``nu`` is 1/2, 3/2 or 5/2."""
    if nu not in (0.5, 1.5, 2.5):
        raise ValueError(f"nu is {nu}; a Matern kernel is known for 0.5, 1.5 and 2.5")

    def kernel(distance: Tensor) -> Tensor:
        x = math.sqrt(2 * nu) / scale * distance
        decay = torch.exp(-x)
        if nu == 0.5:
            return decay
        return torch.addcmul(decay, decay, x if nu == 1.5 else x + x * x / 3)

    return kernel


def clumpy(scale: float, nu: float, clumps: float) -> Kernel:
    """`matern`, but for the share ``clumps`` of the variance, whose scale is half as long."""
    if not 0 <= clumps < 1:
        raise ValueError(f"clumps is {clumps}; it is a share of the variance: 0 or more, below 1")
    smooth = matern(scale, nu)
    return (lambda d: torch.lerp(smooth(d), smooth(2 * d), clumps)) if clumps else smooth
