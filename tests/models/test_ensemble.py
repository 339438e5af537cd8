"""Walkers that move along differences: known densities, temperatures, and whether they agree."""

import math

import pytest
import torch

from orrery.models.inference.ensemble import sample, temper, worst_rhat


def normal(mean, root):
    """ln density of the normal with this mean and Cholesky factor of the covariance."""

    def target(x):
        white = torch.linalg.solve_triangular(root, (x - mean)[..., None], upper=False)
        return -0.5 * white.square().sum((-2, -1))

    return target


def begin(groups, walkers, dim, ensembles=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(groups, ensembles, walkers, dim, generator=generator)


def test_scales_that_differ_a_thousandfold_and_are_correlated_are_found():
    root = torch.tensor([[1e3, 0.0, 0.0], [0.95, 0.3, 0.0], [0.0, 0.0, 1e-1]])
    mean = torch.tensor([50.0, -1.0, 2.0])
    start = 0.5 * begin(1, 40, 3) @ root.T + mean + 0.5 * root.diagonal()
    draws = sample(normal(mean, root), start, 1500, 100)
    assert draws.shape == (1, 2, 40, 100, 3)
    assert float(worst_rhat(draws)) < 1.02
    flat = draws.flatten(0, 3)
    covariance = root @ root.T
    sigma = covariance.diagonal().sqrt()
    assert float(((flat.mean(0) - mean) / sigma).abs().max()) < 0.1
    torch.testing.assert_close(flat.std(0), sigma, rtol=0.07, atol=0)
    found = torch.corrcoef(flat.T)[0, 1]
    assert float(found) == pytest.approx(float(covariance[0, 1] / sigma[0] / sigma[1]), abs=0.02)


def test_a_bent_density_keeps_its_quantiles():
    """y is x^2 to 0.3, whose median is that of chi^2 of one degree of freedom."""

    def target(x):
        bend = (x[..., 1] - x[..., 0].square()) / 0.3
        return -0.5 * (x[..., 0].square() + bend.square())

    draws = sample(target, 0.3 * begin(1, 60, 2), 2000, 200).flatten(0, 3)
    true = torch.randn(400_000, generator=torch.Generator().manual_seed(3))
    y = true.square() + 0.3 * torch.randn(len(true), generator=torch.Generator().manual_seed(4))
    for level in (0.16, 0.5, 0.84):
        at = torch.quantile(y[:200_000], level)
        assert float((draws[:, 1] < at).float().mean()) == pytest.approx(level, abs=0.04)


def test_a_galaxy_gives_the_same_draws_beside_any_others():
    means = torch.tensor([[0.0, 0.0], [5.0, -3.0]])

    def target_of(mean):
        return lambda x: -0.5 * (x - mean[:, None]).square().sum(-1)

    start = begin(2, 12, 2)
    both = sample(target_of(means), start, 50, 5)
    alone = sample(target_of(means[1:]), start[1:], 50, 5)
    torch.testing.assert_close(both[1:], alone)


def test_draws_of_a_prior_become_draws_of_the_posterior():
    """A narrow likelihood of a sum, by which both numbers become correlated, 6 sigma away."""

    def prior(x):
        return -0.5 * x.square().sum(-1)

    def posterior(x):
        return prior(x) - 0.5 * ((x.sum(-1) - 6) / 0.1).square()

    draws = temper(prior, posterior, begin(1, 100, 2), 10, 200, 50)
    assert float(worst_rhat(draws)) < 1.03
    x = draws.flatten(0, 3)
    total, difference = x.sum(-1), x[:, 0] - x[:, 1]
    assert float(total.mean()) == pytest.approx(6 / 1.005, abs=0.02)
    assert float(total.std()) == pytest.approx(0.1, rel=0.1)
    assert float(difference.mean()) == pytest.approx(0, abs=0.15)
    assert float(difference.std()) == pytest.approx(math.sqrt(2), rel=0.1)


def test_both_of_two_modes_have_their_share():
    """The target has two modes, 8 sigma apart, one with three times the probability."""

    def first(x):
        return -0.5 * (x / 6).square().sum(-1)

    def target(x):
        each = -0.5 * torch.stack([(x + 4).square().sum(-1), (x - 4).square().sum(-1)])
        return torch.logaddexp(each[0] + math.log(3), each[1])

    draws = temper(first, target, 6 * begin(1, 200, 1), 10, 300, 50).flatten(0, 3)
    assert float((draws < 0).float().mean()) == pytest.approx(0.75, abs=0.06)


def test_walkers_outside_of_the_density_are_lost_and_not_chosen():
    def target(x):
        return torch.where(x[..., 0] > 0, -0.5 * x.square().sum(-1), -torch.inf)

    draws = temper(lambda x: -0.5 * x.square().sum(-1), target, begin(1, 60, 2), 5, 40, 10)
    assert float(draws[..., 0].min()) > 0


def test_ensembles_that_are_elsewhere_are_found_out():
    def target(x):
        near = -0.5 * torch.stack([((x - s) / 0.1).square().sum(-1) for s in (-50.0, 50.0)])
        return near.logsumexp(0)

    start = 0.1 * begin(2, 20, 2)
    start[0, 0] -= 50
    start[0, 1] += 50
    start[1] += 50
    apart, together = worst_rhat(sample(target, start, 200, 20)).tolist()
    assert apart > 1.5
    assert together < 1.1
