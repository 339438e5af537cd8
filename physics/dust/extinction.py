"""The extinction of stars whose distances are uncertain, through shells of dust.

A star's parallax and its error, mas, are the posterior of its inverse distance, normal and
positive; of a parallax that tells little, the distance rests on a prior. Dust behind a distance
does not count for a star at that distance.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.physics.densities import log_student

NODES = 6  # of the quadrature over the part of a shell that a star may be in
PARALLAX_RANGE = 4.0  # errors of the parallax within which a star is
# Below so many errors a parallax does not make a distance. Then distances have the prior
# d^2 exp(-d / L) of Bailer-Jones (2015, PASP 127, 994). L is a third of the map's radius, so that
# its mean is the edge of the map: half of the stars are within, at any distance.
POOR_PARALLAX, PRIOR_LENGTH = 3.0, 1 / 3  # errors; of the map's radius
PRIOR_DISTANCES = torch.logspace(-3, 1.2, 400, dtype=torch.float64)  # of its quadrature
WIDENING = 1.6  # of the distribution of distances for quantiles: 32 of them reach 3.4 errors


class Paths(NamedTuple):
    """Paths of the light of stars through shells, (stars, shells)."""

    lengths: Tensor  # mean path, pc: the integral over the shell of P(star is beyond r)
    squares: Tensor  # half the mean squared path, pc^2: that of (r - lower boundary) P


def paths(boundaries: Tensor, parallax: Tensor, error: Tensor) -> Paths:
    """``boundaries`` (shells + 1,), pc; ``parallax`` and ``error`` (stars,), mas.

    An ``error`` of 0 means a known distance.
    """
    nodes, weights = (torch.from_numpy(x).to(boundaries) for x in _legendre())
    centre, sigma = parallax[:, None].to(boundaries), error[:, None].to(boundaries)
    near, far = boundaries[:-1], boundaries[1:]
    # the boundary of the part of a shell that a star is certainly beyond, and of where it may be
    low, high = (
        1e3 / (centre + x * sigma).clamp_min(1e-6) for x in (PARALLAX_RANGE, -PARALLAX_RANGE)
    )
    low = torch.minimum(torch.maximum(low, near), far)
    high = torch.minimum(torch.maximum(high, near), far)
    r = low[..., None] + (high - low)[..., None] * nodes  # (stars, shells, NODES)
    centre, sigma = centre[..., None], sigma[..., None].clamp_min(1e-9)
    # P(d > r) = P(0 < 1/d < 1/r), from tails to keep the digits
    behind = _ndtr((centre - 1e3 / r) / sigma)  # P(1/d > 1/r)
    positive = _ndtr(centre / sigma)
    beyond = (1 - behind / positive).clamp(0, 1)
    element = beyond * weights * (high - low)[..., None]
    certain = low - near
    lengths = certain + element.sum(-1)
    squares = 0.5 * certain.square() + (element * (r - near[:, None])).sum(-1)
    return Paths(lengths, squares)


def open_shells(boundaries: Tensor, parallax: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """First and last + 1 of the shells that a star may be in, (stars,) each; see `paths`.

    Its light crosses the shells before them wholly, and none after them.
    """
    low, high = (
        1e3 / (parallax + x * error).clamp_min(1e-6) for x in (PARALLAX_RANGE, -PARALLAX_RANGE)
    )
    n = len(boundaries) - 1
    first = torch.searchsorted(boundaries, low.to(boundaries), right=True) - 1
    last = torch.searchsorted(boundaries, high.to(boundaries))
    first = first.clamp(0, n)
    return first, torch.maximum(last.clamp_max(n), first)


def is_poor(parallax: Tensor, error: Tensor) -> Tensor:
    """Mask of the parallaxes that do not make a distance."""
    return parallax < POOR_PARALLAX * error


def paths_by_prior(boundaries: Tensor, parallax: Tensor, error: Tensor) -> Paths:
    """`paths` of stars whose distance is that of a poor parallax and of the prior together."""
    radius = boundaries[-1]
    d = PRIOR_DISTANCES.to(boundaries) * radius
    deviation = (1e3 / d - parallax[:, None].to(d)) / error[:, None].to(d)
    # of equal steps in ln d
    weight = (-0.5 * deviation.square() + 3 * d.log() - d / (PRIOR_LENGTH * radius)).softmax(1)
    near, far = boundaries[:-1], boundaries[1:]
    path = torch.minimum(d[:, None], far) - near  # (distances, shells)
    path = path.clamp_min(0)
    return Paths(weight @ path, weight @ (0.5 * path.square()))


def mean_and_variance(rho: Tensor, paths: Paths, widths: Tensor) -> tuple[Tensor, Tensor]:
    """Extinction of stars, and its variance over their distances, (..., stars).

    ``rho`` (..., stars, shells): density along each sightline, 1/pc; ``widths`` (shells,), pc.
    E[A^2] = integral of 2 A(r) rho(r) P(d > r) dr.
    """
    column = rho * widths
    below = column.cumsum(-1) - column
    through = rho * paths.lengths
    mean = through.sum(-1)
    second = 2 * (below * through + rho.square() * paths.squares).sum(-1)
    return mean, (second - mean.square()).clamp_min(0)


def voxel_squares(rho: Tensor, paths: Paths) -> Tensor:
    """Squares of the extinctions of the voxels along each sightline, summed, (..., stars).

    The extinction of a star scatters by a share of the root of it about that of the voxels' means,
    if each voxel has structure of its own.
    """
    return torch.linalg.vector_norm(rho * paths.lengths, dim=-1).square()


class Distances(NamedTuple):
    """Quadrature over the possible distances of stars, (stars, n)."""

    shell: Tensor  # of each distance; beyond the map the last one
    part: Tensor  # of the path through it, pc
    log_weight: Tensor  # of their probabilities, which sum to 1


def distances(boundaries: Tensor, parallax: Tensor, error: Tensor, n: int = 32) -> Distances:
    """``n`` quantiles of a wider distribution, so that tails are among them; see `paths`."""
    share = (torch.arange(n).to(boundaries) + 0.5) / n
    x = WIDENING * torch.special.ndtri(share)
    inverse = parallax[:, None] + error[:, None] * x
    log_weight = -0.5 * x.square() * (1 - WIDENING**-2)
    log_weight = torch.where(inverse > 0, log_weight, -torch.inf).log_softmax(1)
    r = 1e3 / inverse.clamp_min(1e-3)
    shell = (torch.searchsorted(boundaries, r) - 1).clamp(0, len(boundaries) - 2)
    part = (r - boundaries[shell]).clamp_min(0)
    return Distances(shell, torch.minimum(part, boundaries.diff()[shell]), log_weight)


def log_marginal(
    rho: Tensor,
    at: Distances,
    widths: Tensor,
    extinction: Tensor,
    variance: Tensor,
    dof: float | None = None,
) -> Tensor:
    """Log density of a measured ``extinction`` (stars,), over all distances: (..., stars).

    ``rho`` (..., stars, shells): density along each sightline; ``variance`` (..., stars) and
    ``dof`` are those of the measurement, see `log_student`. `mean_and_variance` gives its normal
    approximation.
    """
    column = rho * widths
    below = column.cumsum(-1) - column
    shell = at.shell.expand(*rho.shape[:-1], -1)
    to_distance = below.gather(-1, shell) + rho.gather(-1, shell) * at.part
    log_p = log_student(extinction[:, None], to_distance, variance[..., None], dof)
    return (log_p + at.log_weight).logsumexp(-1)


def _ndtr(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


def _legendre() -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return 0.5 + 0.5 * nodes, 0.5 * weights
