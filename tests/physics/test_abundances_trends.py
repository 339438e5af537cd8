"""Likelihoods of trends, against sums over a grid, and the masses of haloes."""

import math

import pytest
import torch

from orrery.physics.abundances import masses
from orrery.physics.abundances.trends import (
    PIVOT,
    Knee,
    Line,
    Metallicities,
    Points,
    knee_log_likelihood,
    line_log_likelihood,
    points,
)


def number(x):
    return torch.tensor(x, dtype=torch.float64)


SPREAD = Metallicities(number(-1.6), number(0.5))
DATA = Points(
    x=number([-2.4, -1.5, -1.3, -0.9, -1.1]),
    y=number([0.3, 0.4, 0.1, -0.1, 0.2]),
    variance_x=number([0.01, 0.04, 0.02, 0.01, 0.03]),
    variance_y=number([0.02, 0.01, 0.03, 0.01, 0.02]),
    covariance=number([0.005, -0.01, 0.0, 0.004, 0.01]),
    limit=torch.tensor([0, 0, 0, 1, -1]),
)


def by_sums(data, trend, spread):
    """The integral over true x, and over the noise of y beyond a limit, on fine grids."""
    total = 0.0
    x = torch.linspace(-5, 2, 2001).double()
    y = trend.at(x)
    for i in range(len(data.x)):
        prior = torch.distributions.Normal(spread.mean, spread.width).log_prob(x).exp()
        covariance = torch.stack(
            [
                torch.stack([data.variance_x[i], data.covariance[i]]),
                torch.stack([data.covariance[i], data.variance_y[i] + trend.scatter**2]),
            ]
        )
        noise = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance)

        def density(reading, i=i, noise=noise, prior=prior):
            residual = torch.stack([(data.x[i] - x).expand_as(reading - y), reading - y], -1)
            return torch.trapezoid(noise.log_prob(residual).exp() * prior, x)

        if data.limit[i] == 0:
            total += density(data.y[i]).log()
        else:
            beyond = torch.linspace(0, 4, 401).double()
            p = [density(data.y[i] - data.limit[i] * b) for b in beyond]
            total += torch.trapezoid(torch.stack(p), beyond).log()
    return total


def test_the_likelihood_of_a_line_is_the_integral_over_metallicity():
    line = Line(number(0.3), number(-0.4), number(0.1))
    torch.testing.assert_close(
        line_log_likelihood(DATA, line, SPREAD).sum(),
        by_sums(DATA, line, SPREAD),
        atol=1e-3,
        rtol=0,
    )


def test_the_likelihood_of_a_knee_is_the_integral_over_metallicity():
    knee = Knee(number(0.35), number(-1.4), number(0.05), number(-0.7), number(0.1))
    torch.testing.assert_close(
        knee_log_likelihood(DATA, knee, SPREAD).sum(),
        by_sums(DATA, knee, SPREAD),
        atol=0.02,
        rtol=0,
    )


def test_a_knee_of_equal_slopes_is_a_line():
    slope = number([-0.4, 0.2])
    height, scatter = number([0.3, 0.1]), number([0.1, 0.2])
    at_knee = height + slope * (-1.2 - PIVOT)
    knee = Knee(at_knee, number([-1.2, -1.2]), slope, slope, scatter)
    torch.testing.assert_close(
        knee_log_likelihood(DATA, knee, SPREAD),
        line_log_likelihood(DATA, Line(height, slope, scatter), SPREAD),
        atol=1e-6,
        rtol=0,
    )


def test_ratios_share_the_noise_of_iron():
    """[Mg/H] of a measured [Mg/Fe]: the error of iron cancels in the ratio, limits turn round."""
    value = number([[-1.5, -1.2, -0.7], [-1.0, -0.9, -0.2], [math.nan, 0.0, 0.0]])
    variance = number([[0.0, 0.01, 0.02]]).expand(3, 3)
    responses = number([[[0.1], [0.1], [0.0]]]).expand(3, 3, 1)
    limit = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 0]])
    magnesium = points(value, variance, responses, limit, iron=0, element=1, over=0)
    torch.testing.assert_close(magnesium.y, number([0.3, 0.1]))
    torch.testing.assert_close(magnesium.variance_y, number([0.01, 0.01]))
    torch.testing.assert_close(magnesium.covariance, number([0.0, 0.0]))
    torch.testing.assert_close(magnesium.variance_x, number([0.01, 0.01]))
    ratio = points(value, variance, responses, limit, iron=0, element=1, over=2)
    assert ratio.limit.tolist() == [0, -1]
    torch.testing.assert_close(ratio.variance_y, number([0.04, 0.04]))
    torch.testing.assert_close(ratio.covariance, number([0.01, 0.01]))


def test_halo_masses_follow_their_relations():
    one, many = masses.halo_from_clusters(1), masses.halo_from_clusters(1000)
    assert many.value == pytest.approx((3 + 9.58) / 0.99, abs=0.01)
    assert many.error == pytest.approx(0.3, abs=0.01) and one.error > 0.4
    stellar = masses.stellar_from_metallicity(-1.69)
    assert stellar.value == 6 and stellar.error == pytest.approx(0.17 / 0.3)
    halo = masses.halo_of_stellar(stellar)
    assert masses.stellar_of_halo(halo.value) == pytest.approx(6.0, abs=1e-6)
    # Moster et al. 2013: a halo of 1e12 Msun holds about 3e10 Msun of stars
    assert masses.stellar_of_halo(12.0) == pytest.approx(10.5, abs=0.1)


def test_the_two_halo_masses_show_their_disagreement():
    both = masses.halo_masses(clusters=8, fe_h=-2.0)
    assert both.difference == both.from_clusters.value - both.from_metallicity.value > 1
    assert both.tension > 2
    with pytest.raises(ValueError, match="a count from 0 on"):
        masses.halo_masses(clusters=-1, fe_h=-2.0)
