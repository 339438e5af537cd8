"""Trends of an abundance ratio y with metallicity x = [Fe/H]: a line, or two that meet at a knee.

Errors of both axes, correlated, an intrinsic scatter of y, and limits of y. The true x of a star is
marginalised over a normal distribution of x, whose mean and width are parameters too: without it
slopes are biased towards zero (Kelly 2007, whose model this is). Parameters broadcast, (...).
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
PIVOT = -1.5  # [Fe/H] at which a line has its `height`
NODES = 24  # of the integral over the true x of a star


class Points(NamedTuple):
    """Measurements (..., n) of x and y, dex; of a limit of y, its value and the error tau."""

    x: Tensor
    y: Tensor
    variance_x: Tensor
    variance_y: Tensor
    covariance: Tensor
    limit: Tensor  # of y: 1 upper, -1 lower, 0 measured


class Line(NamedTuple):
    height: Tensor  # y at PIVOT, dex
    slope: Tensor
    scatter: Tensor  # standard deviation of y, dex

    def at(self, x: Tensor) -> Tensor:
        """y at x (..., points)."""
        return self.height[..., None] + self.slope[..., None] * (x - PIVOT)


class Knee(NamedTuple):
    height: Tensor  # y at the knee, dex
    knee: Tensor  # x at which the slopes meet
    slope_below: Tensor  # at smaller x
    slope_above: Tensor
    scatter: Tensor

    def at(self, x: Tensor) -> Tensor:
        """y at x (..., points)."""
        x = x - self.knee[..., None]
        slope = torch.where(x < 0, self.slope_below[..., None], self.slope_above[..., None])
        return self.height[..., None] + slope * x


class Metallicities(NamedTuple):
    """Normal distribution of the true x."""

    mean: Tensor
    width: Tensor


def points(
    value: Tensor,
    variance: Tensor,
    responses: Tensor,
    limit: Tensor,
    iron: int,
    element: int,
    over: int,
) -> Points:
    """[element/over] against [Fe/H] of stars, whose abundances [X/H] (n, k) are as in `Stars`.

    A limit of ``over`` is one of the ratio the other way round. Stars without one of the three,
    with limits of both, or with [Fe/H] a limit, are left out.
    """
    weights = torch.zeros(2, value.shape[1]).to(value)
    weights[0, iron] = 1
    weights[1, element] += 1
    weights[1, over] -= 1
    used = torch.tensor([iron, element, over])
    flag = limit[:, element] - limit[:, over]
    both = (limit[:, element] != 0) & (limit[:, over] != 0)
    good = ~value[:, used].isnan().any(1) & ~both & (limit[:, iron] == 0)
    value, variance, responses = value[good], variance[good], responses[good]
    xy = value.nan_to_num(0.0) @ weights.mT
    known = torch.where(value.isnan(), 0.0, variance)
    common = torch.where(value.isnan()[..., None], 0.0, responses).mT @ weights.mT  # (n, r, 2)
    noise = (weights * known[:, None]) @ weights.mT + common.mT @ common
    return Points(
        xy[:, 0], xy[:, 1], noise[:, 0, 0], noise[:, 1, 1], noise[:, 0, 1], flag[good].sign()
    )


def line_log_likelihood(data: Points, line: Line, spread: Metallicities) -> Tensor:
    """(..., n), nat: of x and y of each point, in closed form."""
    slope, mean, width2 = (a[..., None] for a in (line.slope, spread.mean, spread.width**2))
    scatter2 = line.scatter[..., None].square()
    variance_x = width2 + data.variance_x
    variance_y = slope**2 * width2 + scatter2 + data.variance_y
    covariance = slope * width2 + data.covariance
    log_x = _log_normal(data.x - mean, variance_x)
    gain = covariance / variance_x
    residual = data.y - line.at(spread.mean[..., None]) - gain * (data.x - mean)
    log_y = _log_chance(residual, variance_y - gain * covariance, data.limit)
    return log_x + log_y


def knee_log_likelihood(data: Points, knee: Knee, spread: Metallicities) -> Tensor:
    """(..., n), nat: of x and y of each point; the true x by Gauss-Hermite quadrature."""
    node, weight = (
        torch.from_numpy(a).to(data.x) for a in np.polynomial.hermite_e.hermegauss(NODES)
    )
    mean, width2 = spread.mean[..., None], spread.width[..., None].square()
    variance_x = width2 + data.variance_x
    log_x = _log_normal(data.x - mean, variance_x)
    # the true x given the measured one
    gain = width2 / variance_x
    centre, sd = mean + gain * (data.x - mean), (gain * data.variance_x).sqrt()
    x = centre[..., None] + sd[..., None] * node  # (..., n, nodes)
    shape = x.shape
    y = knee.at(x.flatten(-2)).unflatten(-1, shape[-2:])
    # the errors of y that go with those of x
    lean = data.covariance / data.variance_x.clamp_min(1e-12)
    residual = data.y[..., None] - y - lean[..., None] * (data.x[..., None] - x)
    rest = data.variance_y - lean * data.covariance + knee.scatter[..., None].square()
    log_y = _log_chance(residual, rest[..., None], data.limit[..., None])
    log_weight = (weight / math.sqrt(2 * math.pi)).log()
    return log_x + (log_y + log_weight).logsumexp(-1)


def _log_normal(residual: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * (residual.square() / variance + variance.log() + LOG_2PI)


def _log_chance(residual: Tensor, variance: Tensor, limit: Tensor) -> Tensor:
    """Log density of a measurement, or log probability of a limit, ``residual`` off the model."""
    limited = limit != 0
    chance = torch.special.log_ndtr(limit * residual / variance.sqrt())
    return torch.where(limited, chance, _log_normal(residual, variance))
