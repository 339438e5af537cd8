"""The density of abundances: noise, missing elements and limits against independent integrals."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from orrery.models.abundances.mixture import (
    LOWER,
    MEASURED,
    UPPER,
    Mixture,
    ReadingsDensity,
    Stars,
    log_density,
    posterior,
)

K, N_ELEMENTS, FACTORS, CAUSES = 3, 5, 2, 2


def mixture(seed: int = 0) -> Mixture:
    g = torch.Generator().manual_seed(seed)
    return Mixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log(),
        torch.randn(K, N_ELEMENTS, generator=g, dtype=torch.float64),
        0.5 * torch.randn(K, N_ELEMENTS, FACTORS, generator=g, dtype=torch.float64),
        0.02 + 0.1 * torch.rand(K, N_ELEMENTS, generator=g, dtype=torch.float64),
    )


def stars(limits: list[tuple[int, int]], n: int = 6, seed: int = 1) -> Stars:
    """``limits``: (element, sign), of every star; the last element of odd stars is missing."""
    g = torch.Generator().manual_seed(seed)
    value = torch.randn(n, N_ELEMENTS, generator=g, dtype=torch.float64)
    value[1::2, -1] = torch.nan
    limit = torch.full((n, N_ELEMENTS), MEASURED)
    for element, sign in limits:
        limit[:, element] = sign
    return Stars(
        value,
        0.01 + 0.05 * torch.rand(n, N_ELEMENTS, generator=g, dtype=torch.float64),
        0.2 * torch.randn(n, N_ELEMENTS, CAUSES, generator=g, dtype=torch.float64),
        limit,
    )


def exact(mixture: Mixture, stars: Stars) -> np.ndarray:
    """Densities of the measurements times probabilities of the limits, by scipy."""
    total = []
    for i in range(stars.n):
        x, limit = stars.value[i].numpy(), stars.limit[i].numpy()
        seen = np.isfinite(x) & (limit == MEASURED)
        limited = np.isfinite(x) & (limit != MEASURED)
        sign = limit[limited].astype(float)
        p = 0.0
        for c in range(K):
            R = stars.responses[i].numpy()
            C = mixture.covariance()[c].numpy() + np.diag(stars.variance[i].numpy()) + R @ R.T
            mu = mixture.mean[c].numpy()
            gain = C[np.ix_(limited, seen)] @ np.linalg.inv(C[np.ix_(seen, seen)])
            one = multivariate_normal.pdf(x[seen], mu[seen], C[np.ix_(seen, seen)])
            if limited.any():
                mean = mu[limited] + gain @ (x - mu)[seen]
                S = C[np.ix_(limited, limited)] - gain @ C[np.ix_(seen, limited)]
                one *= multivariate_normal.cdf(
                    sign * (x[limited] - mean), cov=S * np.outer(sign, sign),
                    abseps=1e-9, releps=1e-9, maxpts=20_000,  # 1e-4, of three limits
                )  # fmt: skip
            p += np.exp(float(mixture.log_weight[c])) * one
        total.append(np.log(p))
    return np.array(total)


@pytest.mark.parametrize("limits", [[], [(2, UPPER)], [(3, LOWER)]], ids=str)
def test_the_density_with_noise_missing_elements_and_a_limit_is_exact(limits):
    found = log_density(mixture(), stars(limits)).numpy()
    np.testing.assert_allclose(found, exact(mixture(), stars(limits)), atol=1e-7)


@pytest.mark.parametrize(
    ("limits", "tolerance"), [([(1, UPPER), (2, UPPER)], 0.02), ([(0, 1), (1, 1), (3, -1)], 0.08)]
)
def test_several_limits_of_likely_stars_are_close_to_the_exact_probability(limits, tolerance):
    """Of stars drawn from the mixture, whose limits are just beyond their abundances."""
    data, g = stars(limits, 60), torch.Generator().manual_seed(2)
    c = torch.multinomial(mixture().log_weight.exp(), 60, replacement=True, generator=g)
    total = mixture().covariance()[c] + torch.diag_embed(data.variance)
    total = total + data.responses @ data.responses.mT
    noise = torch.randn(60, N_ELEMENTS, 1, generator=g, dtype=torch.float64)
    value = mixture().mean[c] + (torch.linalg.cholesky(total) @ noise)[..., 0] + 0.1 * data.limit
    data = data._replace(value=value)
    difference = log_density(mixture(), data).numpy() - exact(mixture(), data)
    assert np.abs(difference).mean() < tolerance
    assert np.abs(difference).max() > 1e-6, "an approximation, of several limits"


def test_a_limit_far_above_says_nothing_and_far_below_is_a_surprise():
    plain = stars([])
    plain.value[:, 2] = torch.nan
    far = stars([(2, UPPER)])
    far.value[:, 2] = 30.0
    torch.testing.assert_close(log_density(mixture(), far), log_density(mixture(), plain))
    far.value[:, 2] = -30.0
    low = log_density(mixture(), far)
    assert (low < log_density(mixture(), plain) - 100).all() and low.isfinite().all()


def test_a_star_without_any_measurement_has_the_density_of_nothing():
    empty = stars([])
    empty.value[:] = torch.nan
    torch.testing.assert_close(log_density(mixture(), empty), torch.zeros(6).double())
    torch.testing.assert_close(posterior(mixture(), empty).weight[0], mixture().log_weight.exp())


def test_gradients_are_those_of_finite_differences():
    data = stars([(1, UPPER), (3, LOWER)])
    parts = [part.clone().requires_grad_() for part in mixture()]
    assert torch.autograd.gradcheck(lambda *p: log_density(Mixture(*p), data), parts)


def test_many_readings_of_a_star_have_the_densities_of_single_stars():
    data = stars([(1, UPPER)])
    data = data.without(data.limited)
    readings = torch.randn(6, N_ELEMENTS, 7, generator=torch.Generator().manual_seed(3)).double()
    found = ReadingsDensity(mixture(), data)(readings)
    for i in range(7):
        value = torch.where(data.value.isnan(), torch.nan, readings[..., i])
        torch.testing.assert_close(found[:, i], log_density(mixture(), data._replace(value=value)))
