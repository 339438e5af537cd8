"""The extinction of stars whose distances are uncertain, through shells of dust.

A star's parallax and its error, mas, stand for what is known of its distance: the inverse distance
is normal and positive. What lies behind a distance is the dust that the star does not see.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NODES = 4  # of the quadrature over a shell


class Paths(NamedTuple):
    """Of the light of stars through shells, (stars, shells)."""

    lengths: Tensor  # mean path, pc: the integral over the shell of P(star is beyond r)
    squares: Tensor  # half the mean squared path, pc^2: that of (r - lower boundary) P


def paths(boundaries: Tensor, parallax: Tensor, error: Tensor) -> Paths:
    """``boundaries`` (shells + 1,), pc; ``parallax`` and ``error`` (stars,), mas.

    An ``error`` of 0 means a known distance.
    """
    nodes, weights = (torch.from_numpy(x).to(boundaries) for x in _legendre())
    width = boundaries.diff()[:, None]
    r = boundaries[:-1, None] + width * nodes  # (shells, NODES)
    known = error == 0
    sigma = torch.where(known, 1.0, error)[:, None, None].to(r)
    centre = parallax[:, None, None].to(r)
    # P(d > r) = P(0 < 1/d < 1/r), as tails so that no digits are lost
    behind = _ndtr((centre - 1e3 / r) / sigma)  # P(1/d > 1/r)
    positive = _ndtr(centre / sigma)
    beyond = (1 - behind / positive).clamp(0, 1)
    element = beyond * weights * width
    lengths, squares = element.sum(-1), (element * width * nodes).sum(-1)
    exact = (1e3 / parallax[:, None].to(r) - boundaries[:-1]).clamp_min(0)
    exact = torch.minimum(exact, width[:, 0])
    sure = known[:, None]
    return Paths(
        torch.where(sure, exact, lengths), torch.where(sure, 0.5 * exact.square(), squares)
    )


def mean_and_variance(rho: Tensor, through: Paths, widths: Tensor) -> tuple[Tensor, Tensor]:
    """Extinction of stars, and its variance over their distances, (..., stars).

    ``rho`` (..., stars, shells): density along each sightline, 1/pc; ``widths`` (shells,), pc.
    E[A^2] = integral of 2 A(r) rho(r) P(d > r) dr.
    """
    column = rho * widths
    below = column.cumsum(-1) - column
    part = rho * through.lengths
    mean = part.sum(-1)
    second = 2 * (below * part + rho.square() * through.squares).sum(-1)
    return mean, (second - mean.square()).clamp_min(0)


def log_normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((x - mean).square() / variance + variance.log() + math.log(2 * math.pi))


def log_student(x: Tensor, mean: Tensor, variance: Tensor, dof: float | None) -> Tensor:
    """Of Student's distribution, whose scale is the root of ``variance``; None: of the normal."""
    if dof is None:
        return log_normal(x, mean, variance)
    norm = math.lgamma(0.5 * (dof + 1)) - math.lgamma(0.5 * dof) - 0.5 * math.log(dof * math.pi)
    tail = torch.log1p((x - mean).square() / (dof * variance))
    return norm - 0.5 * variance.log() - 0.5 * (dof + 1) * tail


def _ndtr(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


def _legendre() -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return 0.5 + 0.5 * nodes, 0.5 * weights
