"""The extinction of stars whose distances are uncertain, through shells of dust.

A star's parallax and its error, mas, stand for what is known of its distance: the inverse distance
is normal and positive. What lies behind a distance is the dust that the star does not see.
"""

import math

import numpy as np
import torch
from torch import Tensor

NODES = 4  # of the quadrature over a shell


def path_lengths(boundaries: Tensor, parallax: Tensor, error: Tensor) -> Tensor:
    """Mean path of the light of each star through each shell, (stars, shells), pc.

    The integral over the shell of P(star is beyond r); ``boundaries`` (shells + 1,), pc;
    ``parallax`` and ``error`` (stars,), mas. An ``error`` of 0 means a known distance.
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
    found = (beyond * weights * width).sum(-1)
    exact = (1e3 / parallax[:, None].to(r) - boundaries[:-1]).clamp_min(0)
    return torch.where(known[:, None], torch.minimum(exact, width[:, 0]), found)


def mean_and_variance(rho: Tensor, lengths: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
    """Extinction of stars, and its variance over their distances, (..., stars).

    ``rho`` (..., stars, shells): density along each sightline, 1/pc; ``lengths`` of `path_lengths`;
    ``widths`` (shells,), pc. E[A^2] = integral of 2 A(r) rho(r) P(d > r) dr.
    """
    through = rho * lengths
    mean = through.sum(-1)
    column = rho * widths
    middle = column.cumsum(-1) - 0.5 * column
    second = (2 * middle * through).sum(-1)
    return mean, (second - mean.square()).clamp_min(0)


def log_normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((x - mean).square() / variance + variance.log() + math.log(2 * math.pi))


def _ndtr(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


def _legendre() -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return 0.5 + 0.5 * nodes, 0.5 * weights
