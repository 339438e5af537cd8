"""Claims about `abundances.widening`: how stars outside a fit widen its density and its tails."""

import numpy as np
import pytest
import torch

from orrery.models.abundances import MOST_LEFT_OUT, N_TYPES, RARE, Abundances
from orrery.models.abundances.mixture import Mixture, Stars, log_density, posterior
from orrery.models.abundances.predictions import predicted_element
from orrery.models.abundances.widening import LeftOut, Widening, fit_widening, widened

K = 6


def gaussian(scatter=0.05):
    """One Gaussian with a factor that all elements share."""
    return Mixture(
        torch.zeros(1), torch.zeros(1, K), 0.3 * torch.ones(1, K, 1), torch.full((1, K), scatter**2)
    )


def drawn(n, scatter, seed=0, error=0.05):
    """Stars (n, K) of `gaussian` with a scatter of their own, () or (n, 1 or K) dex."""
    generator = torch.Generator().manual_seed(seed)
    size = (torch.as_tensor(scatter) ** 2 + error**2).sqrt()
    value = 0.3 * torch.randn(n, 1, generator=generator)
    value = value + size * torch.randn(n, K, generator=generator)
    variance = torch.full((n, K), error**2)
    return Stars(value, variance, torch.zeros(n, K, 1), torch.zeros(n, K, dtype=torch.long))


def fitted(stars, group=None, weight=None, groups=1):
    group = torch.zeros(stars.n, dtype=torch.long) if group is None else group
    weight = torch.ones(stars.n) if weight is None else weight
    return fit_widening([LeftOut(gaussian(), stars, group, weight)], groups, 0.1)


def test_stars_as_the_density_says_hardly_widen_it():
    stars = drawn(1500, 0.05)
    by = fitted(stars)
    apart = log_density(widened(gaussian(), by, None), stars) - log_density(gaussian(), stars)
    assert abs(float(apart.mean())) < 0.02
    assert float(by.tail_share[0]) < 0.05


def test_a_share_of_straying_stars_makes_tails_and_leaves_the_rest_narrow():
    n = 2000
    strays = torch.arange(n) % 10 == 0
    stars = drawn(n, torch.where(strays, 0.3, 0.05)[:, None])
    by = fitted(stars)
    assert 0.06 < float(by.tail_share[0]) < 0.16
    assert torch.allclose(by.tail_variance.sqrt(), torch.tensor(0.3), atol=0.1)
    assert float(by.variance.sqrt().max()) < 0.04
    mixture = widened(gaussian(), by, None)
    state = posterior(mixture, stars)
    std = predicted_element(mixture, stars, state, 0).std
    assert float(std[strays].median()) > 2 * float(std[~strays].median())  # by its other elements


def test_an_element_that_was_fitted_too_narrow_is_widened_alone():
    n = 1500
    scatter = torch.tensor([0.3, 0.05, 0.05, 0.05, 0.05, 0.05])
    by = fitted(drawn(n, scatter[None].expand(n, K)))
    mixture = widened(gaussian(), by, None)
    variance = (mixture.log_weight.exp()[:, None] * mixture.variance).sum(0).sqrt()
    assert float(variance[0]) == pytest.approx(0.3, abs=0.06)
    assert float(variance[1:].max()) < 0.1


def test_tails_have_the_share_of_each_type_and_the_mean_of_those_unknown():
    n = 1500
    group = torch.where(torch.arange(n) < 500, 1, 2)
    stars = drawn(n, torch.where(group == 1, 0.3, 0.05)[:, None])
    share = fitted(stars, group, groups=4).tail_share
    assert float(share[1]) > 0.6
    assert float(share[2]) < 0.05
    assert float(share[0]) == pytest.approx(float(share[1] + 2 * share[2]) / 3, abs=1e-5)
    by = Widening(torch.zeros(K), torch.ones(()), torch.ones(K), torch.ones(()), share)
    weight = widened(gaussian(), by, torch.tensor([0, 1, 2])).log_weight.exp()
    assert torch.allclose(weight.sum(1), torch.ones(3), atol=1e-5)
    assert torch.allclose(weight[:, 1], share[:3], atol=1e-5)


def test_a_star_that_stands_for_several_counts_as_they_do():
    some = drawn(400, 0.05)
    strays = drawn(100, 0.3, seed=1)
    both = Stars(*(torch.cat(parts) for parts in zip(some, strays, strays, strays, strict=True)))
    few = Stars(*(torch.cat(parts) for parts in zip(some, strays, strict=True)))
    weight = torch.cat([torch.ones(400), torch.full((100,), 3.0)])
    one, other = fitted(both), fitted(few, weight=weight)
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, atol=1e-3)


def test_all_stars_with_rare_elements_or_types_calibrate():
    n = MOST_LEFT_OUT + 2000
    model = Abundances(["Fe", "Mg", "Eu"], by_type=True)
    value = torch.zeros(n, 3)
    value[:, 2] = torch.nan
    value[-40:, 2] = 0.0  # at the end, where the first stars are not
    types = torch.zeros(n, dtype=torch.long)
    types[-90:-40] = 2
    batch = {"value": value, "variance": torch.ones(n, 3), "responses": torch.zeros(n, 3, 1)}
    batch |= {"limit": torch.zeros(n, 3, dtype=torch.long), "type": types, "row": torch.arange(n)}
    some, weight = model._some(batch)
    assert len(weight) == MOST_LEFT_OUT
    assert int((~some["value"][:, 2].isnan()).sum()) == 40 < RARE
    assert int((some["type"] == 2).sum()) == 50
    assert float(weight.sum()) == pytest.approx(n)
    assert (weight[:90] == 1).all()


def test_p_values_of_each_type_are_calibrated_by_its_own_stars():
    n = 1600
    model = Abundances(
        [f"{x}" for x in ("Fe", "Mg", "Ca", "Si", "Ti", "Cr")], components=1, ensemble=2,
        factors=1, by_type=True, replicates=100,
    ).eval()  # fmt: skip
    with torch.no_grad():
        model.shared_loadings.fill_(0.3)
        model.shared_log_variance.fill_(2 * np.log(0.05))
    types = torch.where(torch.arange(n) < n // 2, 1, 2)
    stars = drawn(n, torch.where(types == 1, 0.12, 0.05)[:, None])
    batch = stars._asdict() | {"type": types, "row": torch.arange(n)}
    model._calibrate_p_values(batch, torch.ones(n))
    assert (model.p_powers[2] < 0.75).all()  # streams stray farther
    assert torch.allclose(model.p_powers[3], torch.ones(2), atol=0.08)
    assert (model.p_powers[[1, 4]] == 1).all()  # no star of these types
    before = model.p_powers.clone()
    p = model.predict_step(batch)["p_elements"]
    assert float((p[types == 1] < 0.05).float().mean()) < 0.1
    model.p_powers.fill_(1)
    p = model.predict_step(batch)["p_elements"]
    assert float((p[types == 1] < 0.05).float().mean()) > 0.15
    assert len(before) == 1 + N_TYPES
