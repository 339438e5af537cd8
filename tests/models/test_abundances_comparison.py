"""Comparison of structures: closed forms against integrals, exact p-values, awkward samples."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from orrery.models.abundances import comparison, offsets
from orrery.models.abundances.comparison import (
    compare_pair,
    compare_structures,
    detectable,
    permutation_p_value,
    relabelled,
    statistic,
)
from orrery.models.abundances.mixture import Mixture, Stars
from orrery.models.abundances.offsets import (
    Residuals,
    difference,
    log_bayes_factors,
    measured,
    residuals,
)

ELEMENTS = ["Fe", "Mg", "Ca", "Eu"]
K = len(ELEMENTS)


def background(components: int = 1) -> Mixture:
    """[X/H] that follow [Fe/H], with .1 dex of scatter in each."""
    iron = torch.linspace(-2.5, -1.5, components, dtype=torch.float64)
    mean = iron[:, None] + torch.tensor([0.0, 0.4, 0.3, 0.5], dtype=torch.float64)
    factors = torch.full((components, K, 1), 0.3, dtype=torch.float64)
    log_weight = torch.full((components,), -math.log(components), dtype=torch.float64)
    return Mixture(log_weight, mean, factors, torch.full_like(mean, 0.01))


def drawn(n: int, seed: int, shift=(0.0, 0.0, 0.0, 0.0), missing: float = 0.0) -> Stars:
    g = torch.Generator().manual_seed(seed)
    r = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)  # noqa: E731
    true = background().mean + 0.3 * r(n, 1) + 0.1 * r(n, K) + torch.tensor(shift)
    responses = 0.05 * r(n, K, 2)
    value = true + (responses @ r(n, 2, 1))[..., 0] + 0.1 * r(n, K)
    absent = torch.rand(n, K, generator=g) < missing
    absent[:, 0] = False
    return Stars(
        value.masked_fill(absent, torch.nan),
        torch.full((n, K), 0.01, dtype=torch.float64),
        responses,
        torch.zeros(n, K, dtype=torch.long),
    )


def joined(*several: Stars) -> Stars:
    return Stars(*(torch.cat(parts) for parts in zip(*several, strict=True)))


def of(stars: Stars, components: int = 1) -> Residuals:
    return residuals(background(components), stars, 0)


def plain(value: np.ndarray, variance: float) -> Residuals:
    """Residuals (n, k) of independent errors, at [Fe/H] = 0."""
    n, k = value.shape
    return Residuals(
        torch.from_numpy(np.nan_to_num(value)),
        variance * torch.eye(k, dtype=torch.float64).expand(n, -1, -1),
        torch.zeros(n, k, k, dtype=torch.float64),
        torch.zeros(n, k, dtype=torch.long),
        torch.from_numpy(np.isfinite(value)),
        torch.zeros(n, dtype=torch.float64),
    )


def test_a_residual_is_the_conditional_normal_given_the_measured_iron():
    stars = drawn(5, 0)
    found = of(stars)
    for i in range(stars.n):
        R = stars.responses[i].numpy()
        C = background().covariance()[0].numpy() + 0.01 * np.eye(K) + R @ R.T
        mean = background().mean[0].numpy()
        expected = mean[1:] + C[1:, 0] / C[0, 0] * (float(stars.value[i, 0]) - mean[0])
        np.testing.assert_allclose(found.value[i], stars.value[i, 1:].numpy() - expected)
        total = C[1:, 1:] - np.outer(C[1:, 0], C[1:, 0]) / C[0, 0]
        np.testing.assert_allclose(found.noise[i] + found.scatter[i], total, atol=1e-12)


def test_the_moments_of_several_gaussians_are_those_of_draws():
    mixture = background(3)
    g = torch.Generator().manual_seed(0)
    n, iron = 400_000, -2.1
    component = torch.randint(3, (n,), generator=g)
    r = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)  # noqa: E731
    value = mixture.mean[component] + 0.3 * r(n, 1) + 0.1 * r(n, K) + 0.1 * r(n, K)
    near = (value[:, 0] - iron).abs() < 0.01
    one = torch.full((1, K), iron, dtype=torch.float64)
    noise = torch.full_like(one, 0.01)
    star = Stars(one, noise, torch.zeros(1, K, 0).double(), torch.zeros(1, K).long())
    found = residuals(mixture, star, 0)
    sample = value[near, 1:]
    np.testing.assert_allclose(iron - found.value[0], sample.mean(0), atol=0.01)
    covariance = found.noise[0] + found.scatter[0]
    np.testing.assert_allclose(covariance, np.cov(sample.T.numpy()), atol=0.004)


def test_the_bayes_factor_of_one_element_is_the_ratio_of_integrals(monkeypatch):
    """By quadrature over the common offset and the difference, of unequal errors."""
    monkeypatch.setattr(offsets, "SMALLEST_SCATTER", 0.0)
    value = np.array([[0.1], [0.3], [-0.1], [0.5], [0.45]])
    both, in_b, t = plain(value, 0.02), np.array([0, 0, 0, 1, 1]), offsets.DIFFERENCE
    noise = both.noise * torch.tensor([1, 2, 1, 1, 3.0])[:, None, None]
    both = both._replace(noise=noise)
    sigma = noise[:, 0, 0].sqrt().numpy()
    common, d = np.linspace(-3, 3, 4001)[:, None], np.linspace(-2.5, 2.5, 1501)

    def evidence(d: float) -> float:
        mean = common + d * (in_b - 0.5)
        return norm.pdf(value[:, 0], mean, sigma).prod(1) @ norm.pdf(
            common[:, 0], 0, offsets.COMMON
        )

    two = sum(evidence(x) * norm.pdf(x, 0, t) for x in d) * (d[1] - d[0])
    likelihood = difference(measured(both, (1.0,)), torch.from_numpy(in_b)[None])
    found = log_bayes_factors(likelihood)["one"]
    assert float(found) == pytest.approx(math.log(two / evidence(0.0)), abs=1e-6)


@pytest.mark.parametrize("which", ["one", "two", "all"])
def test_bayes_factors_are_ratios_of_normal_evidences(which):
    """Of all measurements as one normal vector, slopes and offsets marginalised by its covariance;
    stars with different elements and correlated noise."""
    stars = joined(drawn(4, 1, missing=0.3), drawn(3, 2, (0, 0.3, 0, 0.2), missing=0.5))
    both = of(stars)
    k, in_b = K - 1, (np.arange(7) >= 4) - 0.5
    iron = both.iron.numpy() - both.iron.numpy().mean()
    keep = both.known.numpy().reshape(-1)
    y = both.value.numpy().reshape(-1)[keep]

    def evidence(T: np.ndarray) -> float:
        C = np.zeros((7 * k, 7 * k))
        for i, j in itertools.product(range(7), repeat=2):
            block = (offsets.COMMON**2 + offsets.SLOPE**2 * iron[i] * iron[j]) * np.eye(k)
            block += in_b[i] * in_b[j] * T
            if i == j:
                block += both.noise[i].numpy() + 0.4 * both.scatter[i].numpy()
                block += offsets.SMALLEST_SCATTER**2 * np.eye(k)
            C[i * k : i * k + k, j * k : j * k + k] = block
        return multivariate_normal.logpdf(y, np.zeros(len(y)), C[np.ix_(keep, keep)])

    t2 = offsets.DIFFERENCE**2
    priors = {
        "one": [t2 * np.diag(np.eye(k)[i]) for i in range(k)],
        "two": [t2 * np.diag(1 - np.eye(k)[i]) for i in range(k)],  # of three elements
        "all": [0.5 * t2 * (np.eye(k) + 1)],
    }
    ratios = [evidence(T) - evidence(0 * np.eye(k)) for T in priors[which]]
    expected = np.logaddexp.reduce(ratios) - math.log(len(ratios))
    likelihood = difference(measured(both, (0.4,)), torch.from_numpy(in_b > 0)[None])
    assert float(log_bayes_factors(likelihood)[which]) == pytest.approx(expected, abs=1e-6)


def test_a_limit_is_the_measurement_of_the_same_moments():
    """One star, one element: mean and variance of its reading are those of a cut normal."""
    both = plain(np.array([[0.1]]), 0.04)._replace(limit=torch.ones(1, 1, dtype=torch.long))
    V, W = both.noise[0], torch.zeros(1, 1, dtype=torch.float64)
    for sign, cut in ((1, 0.1), (-1, 0.1)):
        limit = torch.tensor([sign])
        reading, width = offsets._limits_as_measurements(
            V, W, torch.tensor([cut], dtype=torch.float64), limit
        )
        x = np.linspace(-2, 2, 200_001)
        p = norm.pdf(x, 0, 0.2) * (sign * x < sign * cut)
        p /= p.sum()
        mean, variance = (p * x).sum(), (p * (x - (p * x).sum()) ** 2).sum()
        gain = 0.04 / (0.04 + float(width))
        assert gain * float(reading) == pytest.approx(mean, abs=1e-4)
        assert 0.04 * (1 - gain) == pytest.approx(variance, abs=1e-5)


def test_a_weak_limit_says_nothing_and_a_strong_one_tells_structures_apart():
    a, b = drawn(8, 3), drawn(7, 4)
    europium = ELEMENTS.index("Eu")

    def with_limit(value: float) -> float:
        limited = b._replace(value=b.value.clone(), limit=b.limit.clone())
        limited.value[:, europium], limited.limit[:, europium] = value, 1
        return compare_pair(of(a), of(limited), 199, 0).log_bayes_factor

    absent = b.without(torch.arange(K).expand(7, -1) == europium)
    none = compare_pair(of(a), of(absent), 199, 0).log_bayes_factor
    assert with_limit(3.0) == pytest.approx(none, abs=0.05)
    assert with_limit(-4.0) > none + 3


def test_all_labels_are_tried_where_there_are_few_and_p_values_are_then_exact():
    """Under equal structures each rank of the observed label is as likely: counted, not sampled."""
    value = np.random.default_rng(0).normal(0, 0.3, (6, 2))
    stars = measured(plain(value, 0.04))
    labels, complete = relabelled(6, 2, 100, 0)
    assert complete
    assert len(labels) == len(torch.unique(labels, dim=0)) == 15
    values = statistic(stars, labels)
    p = permutation_p_value(values, values.expand(15, -1), complete)
    np.testing.assert_allclose(np.sort(p.numpy()), np.arange(1, 16) / 15)


def test_a_random_p_value_counts_the_observed_labels_too():
    labels, complete = relabelled(15, 7, 199, 0)
    assert not complete
    assert labels.shape == (199, 15)
    assert bool((labels.sum(1) == 7).all())
    observed = torch.tensor([5.0])
    assert float(permutation_p_value(observed, torch.zeros(1, 199), False)) == 1 / 200
    assert float(permutation_p_value(observed, torch.full((1, 199), 6.0), False)) == 1.0


def test_p_values_of_equal_structures_are_uniform_at_any_number_of_permutations():
    """19 permutations, 300 pairs: at .05 there are 5%, within four binomial errors."""
    low = []
    for seed in range(300):
        both = plain(np.random.default_rng(seed).normal(0, 0.3, (9, 3)), 0.04)
        stars = measured(both)
        labels, complete = relabelled(9, 4, 19, seed)
        observed = statistic(stars, (torch.arange(9) < 4)[None])[0]
        low.append(float(permutation_p_value(observed, statistic(stars, labels), complete)) <= 0.05)
    assert abs(np.mean(low) - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 300)


def test_a_shift_is_found_measured_and_placed_in_its_element():
    a, b = drawn(12, 5, missing=0.3), drawn(12, 6, (0, 0, 0, 0.6), missing=0.3)
    pair = compare_pair(of(a), of(b), 999, 0)
    assert pair.p_value < 0.01
    assert pair.log_bayes_factor > 3
    assert np.abs(pair.difference / pair.error).argmax() == 2
    assert abs(pair.difference[2] - 0.6) < 3 * pair.error[2]
    assert np.all(np.abs(pair.difference[:2]) < 3 * pair.error[:2])


def test_a_difference_of_metallicity_alone_is_no_chemical_difference():
    a = drawn(12, 7)
    b = drawn(12, 8, (-0.5, -0.5, -0.5, -0.5))
    assert compare_pair(of(a), of(b), 999, 0).p_value > 0.05


def test_differences_have_their_errors(monkeypatch):
    """Of 200 pairs 68% lie within one error, in each element; four binomial errors."""
    monkeypatch.setattr(comparison, "SIMULATED", 10)  # of what is not tested here
    within = []
    for seed in range(200):
        a, b = of(drawn(6, 2 * seed + 100)), of(drawn(5, 2 * seed + 101))
        pair = compare_pair(a, b, 1, 0)
        within.append(np.abs(pair.difference) < pair.error)
    assert np.all(np.abs(np.mean(within, 0) - 0.683) < 4 * math.sqrt(0.683 * 0.317 / 200))


def test_neither_the_order_of_stars_nor_that_of_structures_matters():
    a, b = drawn(7, 9, missing=0.4), drawn(5, 10, (0, 0.3, 0, 0), missing=0.4)
    one = compare_pair(of(a), of(b), 99, 0)
    again = compare_pair(
        of(a.select(torch.randperm(7))), of(b.select(torch.arange(4, -1, -1))), 99, 0
    )
    swapped = compare_pair(of(b), of(a), 99, 0)
    for other, sign in ((again, 1), (swapped, -1)):
        assert other.log_bayes_factor == pytest.approx(one.log_bayes_factor, abs=1e-8)
        assert other.p_value == one.p_value
        assert other.detectable == pytest.approx(one.detectable, rel=0.01)
        np.testing.assert_allclose(other.difference, sign * one.difference, atol=1e-8)
        np.testing.assert_allclose(other.error, one.error, atol=1e-8)


def test_different_elements_are_compared_by_those_in_common():
    a, b = drawn(8, 11), drawn(7, 12, (0, 0.6, 0, 0))
    calcium, europium = (torch.arange(K) == j for j in (2, 3))
    pair = compare_pair(
        of(a.without(calcium.expand(8, -1))), of(b.without(europium.expand(7, -1))), 999, 0
    )
    assert pair.common.tolist() == [True, False, False]
    assert np.isnan(pair.difference[1:]).all()
    assert pair.p_value < 0.05


def test_without_a_common_element_there_is_no_answer():
    a, b = drawn(4, 13), drawn(4, 14)
    a = a.without((torch.arange(K) > 1).expand(4, -1))
    b = b.without((torch.arange(K) == 1).expand(4, -1))
    pair = compare_pair(of(a), of(b), 99, 0)
    assert math.isnan(pair.log_bayes_factor)
    assert math.isnan(pair.p_value)
    found = compare_structures(background(), joined(a, b), ["a"] * 4 + ["b"] * 4, ELEMENTS, 0)
    assert any("cannot be compared" in text and "a and b" in text for text in found.warnings)
    assert found.rows["n_common"].tolist() == [0]


def test_one_element_beside_iron_is_enough():
    alone = (torch.arange(K) != 1) & (torch.arange(K) != 0)
    a, b = (of(s.without(alone.expand(s.n, -1))) for s in (drawn(8, 17), drawn(7, 18)))
    one = compare_pair(Residuals(*a), Residuals(*b), 99, 0)
    narrow = [
        Residuals(s.value[:, :1], s.noise[:, :1, :1], s.scatter[:, :1, :1], s.limit[:, :1],
                  s.known[:, :1], s.iron)
        for s in (a, b)
    ]  # fmt: skip
    assert compare_pair(*narrow, 99, 0).difference == pytest.approx(one.difference[:1])


def test_one_star_has_a_bayes_factor_and_a_p_value_that_cannot_be_small():
    pair = compare_pair(of(drawn(1, 15, (0, 1.5, 0, 0))), of(drawn(7, 16)), 999, 0)
    assert pair.p_value == 1 / 8
    assert pair.log_bayes_factor > 3
    assert math.isnan(pair.detectable.one)


def test_the_detectable_difference_is_found_at_the_stated_rate():
    """Drawn anew with that difference, 80% are found within four binomial errors."""
    stars = measured(plain(np.random.default_rng(1).normal(0, 0.2, (15, 3)), 0.04), (1.0,))
    in_b = torch.arange(15) >= 8
    Q = difference(stars, in_b[None]).Q[:, 0]
    size = detectable(Q, stars.log_weight, torch.ones(3, dtype=torch.bool), 15, 0)
    labels, complete = relabelled(15, 7, 199, 0)
    found = []
    for seed in range(200):
        value = np.random.default_rng(seed + 50).normal(0, 0.2, (15, 3))
        value[8:] += size.every
        both = measured(plain(value, 0.04), (1.0,))
        p = permutation_p_value(statistic(both, in_b[None])[0], statistic(both, labels), complete)
        found.append(float(p) <= 0.05)
    assert abs(np.mean(found) - 0.8) < 4 * math.sqrt(0.8 * 0.2 / 200)
    assert size.every < size.one


# --- the table ------------------------------------------------------------------------------------


def several() -> tuple[Stars, list[str]]:
    stars = joined(drawn(8, 20), drawn(7, 21, (0, 0.5, 0, 0)), drawn(3, 22), drawn(2, 23))
    return stars, ["Indus"] * 8 + ["Jhelum"] * 7 + ["Elqui"] * 3 + ["TLAS", ""]


def test_the_table_has_a_row_per_pair_and_says_what_is_left_out():
    found = compare_structures(background(), *several(), ELEMENTS, 0, permutations=199)
    pairs = list(zip(found.rows["structure_a"], found.rows["structure_b"], strict=True))
    assert pairs == [("Elqui", "Indus"), ("Elqui", "Jhelum"), ("Indus", "Jhelum")]
    assert found.rows["n_a"].tolist() == [3, 3, 8]
    assert list(found.rows) == list(found.outputs)
    assert all(len(column) == 3 for column in found.rows.values())
    assert found.rows["largest"][2] == "Mg"
    assert any("TLAS (1)" in text for text in found.warnings)
    assert found.metrics["pairs"] == 3


def test_pairs_may_be_named_and_a_misspelled_one_is_refused_with_its_near_match():
    stars, group = several()
    compare = lambda pairs: compare_structures(  # noqa: E731
        background(), stars, group, ELEMENTS, 0, permutations=19, pairs=pairs
    )
    assert len(compare([["Jhelum", "TLAS"]]).rows["p_value"]) == 1
    with pytest.raises(ValueError, match=r"structure 'Jelum'; near: Jhelum"):
        compare([["Indus", "Jelum"]])
    with pytest.raises(ValueError, match=r"is no pair"):
        compare([["Indus"]])


def test_one_structure_alone_is_refused():
    with pytest.raises(ValueError, match=r"two structures of data.least_stars=3 .* a 5"):
        compare_structures(background(), drawn(5, 0), ["a"] * 5, ELEMENTS, 0)
