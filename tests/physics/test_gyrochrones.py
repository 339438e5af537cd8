"""Claims about the gyrochrones, the density of rotation periods and its simulation."""

import numpy as np
import pytest

from orrery.physics.rotation import gyrochrones as gy

SUN = (np.log10(4600.0), 0.82)  # age in log10 Myr, BP-RP


@pytest.fixture(scope="module")
def stars():
    return gy.simulate(np.random.default_rng(1), stars=6000)


def as_inputs(stars, rows):
    inputs = (
        np.log10(stars["prot_d"]),
        np.log10(stars["true_age_myr"]),
        stars["bp_rp0"],
        gy.period_error(stars["prot_d"], stars["e_prot_d"]),
        stars["e_bp_rp0"],
        stars["mem_prob"],
    )
    return dict(zip(gy.INPUT_NAMES, (x[rows] for x in inputs), strict=True))


def cumulative(inputs):
    """P(< observed period) under the stated density, summed in log P."""
    grid = np.linspace(-2.2, 3.0, 521)
    below, mass = [], []
    for x, *others in zip(*inputs.values(), strict=True):
        density = np.exp(gy.log_density(grid, *others))
        cdf = np.cumsum(density) * (grid[1] - grid[0])
        below.append(np.interp(x - 0.5 * (grid[1] - grid[0]), grid, cdf))
        mass.append(cdf[-1])
    return np.array(below), np.array(mass)


def test_relation_gives_the_sun_26_days():
    assert 10 ** gy.slow_sequence(*SUN) == pytest.approx(26.15, abs=0.05)


def test_relation_gives_praesepe_its_periods():
    # Angus et al. (2019), Table 1 at log10 A = log10 650 Myr; the plateau adds 2.5 per cent
    published = 10 ** (np.polyval(gy.COLOUR_TERMS, 0.0) + gy.AGE_POWER * np.log10(650e6))
    assert published == pytest.approx(9.68, abs=0.01)
    assert 10 ** gy.slow_sequence(np.log10(650), 1.0) == pytest.approx(published, rel=0.03)


def test_older_stars_turn_slower():
    age = np.linspace(1, 3.7, 60)[:, None]
    period = gy.slow_sequence(age, np.linspace(0.5, 3.0, 40))
    assert (np.diff(period, axis=0) > 0).all()


def test_slow_sequence_stays_above_the_fastest_rotators():
    period = gy.slow_sequence(-2.0, np.linspace(0.3, 3.5, 200))
    assert (period > np.log10(gy.FASTEST_DAYS) + 0.5).all()


def test_fast_share_falls_with_age_and_mass():
    share = gy.fast_share(np.linspace(1, 3.7, 30)[:, None], np.linspace(0.5, 3.0, 20))
    assert (np.diff(share, axis=0) < 0).all()
    assert (np.diff(share, axis=1) > 0).all()
    assert gy.fast_share(*SUN) < 1e-30
    assert gy.fast_share(np.log10(700), 2.7) > 0.5  # Douglas et al. (2016): fast below 0.3 Msun


@pytest.mark.parametrize("errors", [(0.0, 0.0), (0.05, 0.0), (0.01, 0.15)])
@pytest.mark.parametrize("mem_prob", [1.0, 0.6])
def test_density_integrates_to_one(errors, mem_prob):
    grid = np.linspace(-3, 4, 7001)
    age, colour = np.meshgrid([1.0, 2.0, 2.8, 3.6], [0.5, 0.82, 1.5, 2.9])
    at = (age.ravel()[:, None], colour.ravel()[:, None], *errors, mem_prob)
    mass = np.trapezoid(np.exp(gy.log_density(grid, *at)), grid, axis=1)
    np.testing.assert_allclose(mass, 1, atol=1e-5)


def test_colour_error_is_convolved_as_by_brute_force():
    grid, draws = np.linspace(0.5, 1.5, 11), np.random.default_rng(2).normal(0.9, 0.1, 200_000)
    brute = np.exp(gy.log_density(grid[:, None], 2.9, draws[None]))
    error = brute.std(1) / np.sqrt(brute.shape[1])
    convolved = np.exp(gy.log_density(grid, 2.9, 0.9, 0.0, 0.1))
    assert (np.abs(convolved - brute.mean(1)) < 4 * error + 1e-4).all()


def test_colour_quadrature_has_converged_on_the_stars(stars):
    inputs = as_inputs(stars, slice(0, 500))
    fine = gy.log_density(**inputs, nodes=1001)
    assert np.abs(gy.log_density(**inputs) - fine).max() < 0.01


def test_members_follow_the_stated_density(stars):
    members = as_inputs(stars, np.flatnonzero(~stars["is_outlier"])[:800])
    members["mem_prob"] = np.ones(len(members["mem_prob"]))
    check_uniform(members)


def test_all_stars_follow_the_density_with_outliers(stars):
    check_uniform(as_inputs(stars, slice(2500, 3300)))
    check_uniform(as_inputs(stars, np.flatnonzero(stars["mem_prob"] < 0.6)[:400]))


def check_uniform(inputs):
    """Kolmogorov-Smirnov at one in a thousand, sqrt(n) D < 1.95."""
    below, mass = cumulative(inputs)
    np.testing.assert_allclose(mass, 1, atol=1e-3)
    n = len(below)
    distance = np.abs(np.sort(below) - (np.arange(n) + 0.5) / n).max()
    assert np.sqrt(n) * distance < 1.95


def test_true_model_scores_best_at_the_true_age(stars):
    inputs = as_inputs(stars, ~stars["is_outlier"])
    truth = gy.log_density(**inputs).mean()
    for shift in (-0.1, 0.1):
        moved = inputs | {"log10_age_myr": inputs["log10_age_myr"] + shift}
        assert gy.log_density(**moved).mean() < truth


def test_outliers_have_low_membership(stars):
    outlier, p = stars["is_outlier"], stars["mem_prob"]
    assert p[outlier].mean() < p[~outlier].mean() - 0.2
    error = np.sqrt((p * (1 - p)).sum()) / len(p)
    assert abs(outlier.mean() - (1 - p).mean()) < 4 * error


def test_table_looks_like_the_real_one(stars):
    assert len(np.unique(stars["star_id"])) == 6000
    assert stars["star_id"].dtype == np.int64
    assert len(np.unique(stars["cluster"])) == 24
    assert 10 <= stars["true_age_myr"].min() < 20
    assert 2500 < stars["true_age_myr"].max() <= 4000
    assert np.isnan(stars["e_prot_d"]).mean() == pytest.approx(0.5, abs=0.03)
    assert stars["bp_rp0"].min() >= 0.5
    assert stars["bp_rp0"].max() <= 3.0
    each = np.unique(stars["cluster"], return_index=True)[1]
    error = np.log10(stars["age_myr"] / stars["true_age_myr"])[each]
    assert error.std() == pytest.approx(0.05, abs=0.025)


def test_one_seed_gives_one_table(stars):
    again = gy.simulate(np.random.default_rng(1), stars=6000)
    for key, value in stars.items():
        np.testing.assert_array_equal(again[key], value)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="bp_rp0 is not finite"):
        gy.log_density(1.0, 3.0, np.nan)
    with pytest.raises(ValueError, match="must not be negative"):
        gy.log_density(1.0, 3.0, 1.0, -0.1)
    with pytest.raises(ValueError, match="5 stars a cluster"):
        gy.simulate(np.random.default_rng(0), n_clusters=10, stars=20)
