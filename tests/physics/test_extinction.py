"""Paths of light through shells, and the variance that distances bring, against Monte Carlo."""

import math

import pytest
import torch

from orrery.physics.densities import log_normal, log_student
from orrery.physics.dust import dust_sky
from orrery.physics.dust.extinction import (
    distances,
    log_marginal,
    mean_and_variance,
    paths,
)
from orrery.physics.gaussian_process.icr import grids

D = torch.float64
BOUNDARIES = torch.logspace(math.log10(69), math.log10(1250), 37, dtype=D)


def test_a_star_of_known_distance_counts_all_dust_that_is_nearer():
    distance = torch.tensor([50.0, 100.0, 640.0, 2000.0], dtype=D)
    lengths = paths(BOUNDARIES, 1e3 / distance, 0 * distance).lengths
    exact = (distance.clamp(69, 1250) - 69).clamp_min(0)
    torch.testing.assert_close(lengths.sum(1), exact)


@pytest.mark.parametrize(
    "parallax, error", [(8.0, 0.02), (5.0, 0.02), (3.3, 1e-4), (5.0, 0.05), (2.0, 0.3), (0.3, 0.15)]
)
def test_moments_of_an_extinction_are_those_of_its_distances(parallax, error):
    generator = torch.Generator().manual_seed(0)
    rho = torch.rand(36, generator=generator, dtype=D) * 1e-3
    widths = BOUNDARIES.diff()
    true = parallax + error * torch.randn(400_000, generator=generator, dtype=D)
    distance = 1e3 / true[true > 0]
    within = (distance[:, None] - BOUNDARIES[:-1]).clamp_min(0)
    extinction = (torch.minimum(within, widths) * rho).sum(1)
    one = torch.ones(1, dtype=D)
    mean, variance = mean_and_variance(
        rho[None], paths(BOUNDARIES, parallax * one, error * one), widths
    )
    std = float(extinction.std())
    # a sharp end within a shell is a step for the quadrature
    assert float(mean) == pytest.approx(float(extinction.mean()), rel=2e-3)
    assert float(variance.sqrt()) == pytest.approx(std, rel=0.05)


def test_a_synthetic_sky_has_its_nominal_covariance():
    """Pairs of voxels about 150 pc apart, over many skies."""
    grid = grids(4, 8, 200.0, 600.0)[-1]
    place = grid.positions.flatten(0, 1)
    apart = torch.cdist(place, place)
    pairs = torch.nonzero((apart > 140) & (apart < 160))[::50]
    products, squares = [], []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        s = dust_sky.density(grid, -8.0, 1.0, 150.0, 0, generator).log().flatten() + 8.0
        products.append((s[pairs[:, 0]] * s[pairs[:, 1]]).mean())
        squares.append(s.square().mean())
    x = math.sqrt(3.0)
    assert float(torch.stack(squares).mean()) == pytest.approx(1, abs=0.08)
    assert float(torch.stack(products).mean()) == pytest.approx((1 + x) * math.exp(-x), abs=0.08)


def test_stars_scatter_about_the_true_extinction_by_their_errors():
    generator = torch.Generator().manual_seed(1)
    grid = grids(4, 8, 100.0, 1000.0)[-1]
    rho = dust_sky.density(grid, -8.0, 1.0, 150.0, 4, generator)
    stars = dust_sky.stars(grid, rho, 4000, 3.0, 0.03, generator)
    noise = (stars.extinction - stars.true_extinction) / stars.extinction_error
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    pull = (1e3 / stars.distance - stars.parallax) / stars.parallax_error
    assert float(pull.std()) == pytest.approx(1, abs=0.05)
    assert bool((stars.parallax > 3 * stars.parallax_error).all())


def test_students_density_is_one_in_all_and_normal_at_many_degrees_of_freedom():
    x = torch.linspace(-3000, 3000, 600_001, dtype=D)
    mean, variance = torch.tensor(0.3, dtype=D), torch.tensor(0.04, dtype=D)
    whole = torch.trapezoid(log_student(x, mean, variance, 3.0).exp(), x)
    assert float(whole) == pytest.approx(1, abs=1e-4)
    near = torch.linspace(-0.5, 1, 50, dtype=D)
    normal = log_normal(near, mean, variance)
    torch.testing.assert_close(log_student(near, mean, variance, 1e7), normal, rtol=0, atol=1e-4)
    assert log_student(near, mean, variance, None).equal(normal)


@pytest.mark.parametrize("error", [0.0, 0.02, 0.3])
def test_an_extinction_is_as_likely_as_over_all_distances(error):
    """A star of 2 mas, within a cloud: far from normal where its distance is uncertain."""
    rho = torch.full((36,), 1e-4, dtype=D)
    rho[22:25] = 8e-3  # from 406 to 517 pc
    one = torch.ones(1, dtype=D)
    at = distances(BOUNDARIES, 2 * one, error * one)
    generator = torch.Generator().manual_seed(0)
    true = 2 + error * torch.randn(200_000, generator=generator, dtype=D)
    behind = paths(BOUNDARIES, true[true > 0], 0 * true[true > 0])
    extinction = (behind.lengths * rho).sum(1)
    for value in (0.05, 0.4, 0.8):
        found = log_marginal(rho[None], at, BOUNDARIES.diff(), value * one, 0.01 * one)
        exact = log_normal(value * one, extinction, 0.01 * one).exp().mean().log()
        torch.testing.assert_close(found[0], exact, rtol=0.01, atol=0.03)
