"""Priors of galaxy parameters: densities, draws, and the way to standard normals and back."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from orrery.physics.sps.priors import Prior, Priors, read_priors

EACH = {
    "uniform": Prior("uniform", -2.0, 0.19),
    "normal": Prior("normal", 0.0, 4.0, 0.3, 1.0),
    "student_t": Prior("student_t", -5.0, 5.0, 0.0, 0.3),
}
OF_SCIPY = {
    "uniform": stats.uniform(-2.0, 2.19),
    "normal": stats.norm(0.3, 1.0),
    "student_t": stats.t(2, 0.0, 0.3),
}
PRIORS = Priors(EACH)


def truncated_cdf(name: str, x):
    prior, density = EACH[name], OF_SCIPY[name]
    low, high = density.cdf([prior.low, prior.high])
    return (density.cdf(x) - low) / (high - low)


@pytest.mark.parametrize("name", EACH)
def test_a_density_is_that_of_scipy_truncated_and_integrates_to_one(name):
    prior = EACH[name]
    x = torch.linspace(prior.low, prior.high, 20_001, dtype=torch.float64)
    density = prior.log_prob(x).exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, rel=1e-5)
    share = np.diff(OF_SCIPY[name].cdf([prior.low, prior.high]))
    np.testing.assert_allclose(density, OF_SCIPY[name].pdf(x) / share, rtol=1e-9)
    assert prior.log_prob(torch.tensor([prior.low - 1e-3, prior.high + 1e-3])).tolist() == [
        -math.inf,
        -math.inf,
    ]


@pytest.mark.parametrize("name", EACH)
def test_quantiles_are_those_of_scipy_and_lead_back(name):
    prior = EACH[name]
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    x = prior.from_unit(p)
    np.testing.assert_allclose(truncated_cdf(name, x.numpy()), p, rtol=1e-7)
    np.testing.assert_allclose(prior.to_unit(x), p, rtol=1e-7)
    np.testing.assert_allclose(prior.from_unit(p.float()), x, rtol=1e-3, atol=1e-5)
    ends = prior.from_unit(torch.tensor([0.0, 1.0]))
    assert ends.tolist() == pytest.approx([prior.low, prior.high], abs=1e-2)


def test_standard_normals_lead_to_parameters_and_back():
    normal = torch.linspace(-4, 4, 81, dtype=torch.float64)[:, None].expand(-1, 3)
    parameters = PRIORS.from_normal(normal)
    np.testing.assert_allclose(PRIORS.to_normal(parameters), normal, atol=2e-3)
    single = normal.float()
    np.testing.assert_allclose(PRIORS.to_normal(PRIORS.from_normal(single)), single, atol=0.02)
    assert (parameters.diff(dim=0) > 0).all()
    edges = torch.stack([PRIORS.low, PRIORS.high])
    assert PRIORS.to_normal(edges).isfinite().all()
    far = PRIORS.from_normal(torch.tensor([[-40.0] * 3, [40.0] * 3]))
    assert not PRIORS.outside(far).any()


def test_the_density_of_standard_normals_is_that_of_the_prior():
    """p(theta) dtheta = N(x) dx: HMC over x has the prior of theta."""
    x = torch.tensor([[-1.3, 0.4, 2.0]], dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(PRIORS.from_normal, x)[0, :, 0]
    log_normal = (-0.5 * x.square() - 0.5 * math.log(2 * math.pi)).sum()
    log_prior = PRIORS.log_prob(PRIORS.from_normal(x))
    assert float(log_prior + slope.diagonal().log().sum()) == pytest.approx(float(log_normal))


@pytest.mark.parametrize("how", ["prior", "uniform"])
def test_draws_follow_the_prior_and_are_those_of_the_seed(how):
    draws = PRIORS.draw(20_000, torch.Generator().manual_seed(3), how)
    for name, x in zip(PRIORS.names, draws.T.numpy(), strict=True):
        prior = EACH[name]
        if how == "prior":
            test = stats.kstest(x, lambda v, name=name: truncated_cdf(name, v))
        else:
            test = stats.kstest(x, stats.uniform(prior.low, prior.high - prior.low).cdf)
        assert test.pvalue > 1e-3
    assert not PRIORS.outside(draws).any()
    again = PRIORS.draw(20_000, torch.Generator().manual_seed(3), how)
    assert torch.equal(draws, again)
    assert (np.abs(np.corrcoef(draws.T) - np.eye(3)) < 0.03).all()


def test_a_mixture_has_the_rare_objects_that_the_prior_has_not():
    n = 50_000
    by_prior, mixed = (
        PRIORS.draw(n, torch.Generator().manual_seed(4), how) for how in ("prior", "mixture")
    )
    t = PRIORS.names.index("student_t")
    rare = lambda x: float((x[:, t].abs() > 3).double().mean())  # noqa: E731
    in_prior = 2 * (truncated_cdf("student_t", -3.0))
    assert rare(by_prior) == pytest.approx(in_prior, abs=1.5e-3)
    assert rare(mixed) == pytest.approx(0.8 * in_prior + 0.2 * 0.4, abs=5e-3)
    assert not PRIORS.outside(mixed).any()
    with pytest.raises(ValueError, match="training_set is 'flat'; expected one of prior, uniform"):
        PRIORS.draw(3, torch.Generator(), "flat")


def test_parameters_outside_the_box_are_marked():
    inside = torch.stack([PRIORS.low, PRIORS.high, 0.5 * (PRIORS.low + PRIORS.high)])
    assert PRIORS.outside(inside).tolist() == [False, False, False]
    out = inside.clone()
    out[0, 1] -= 1e-3
    out[1, 2] += 1e-3
    out[2, 0] = math.nan
    assert PRIORS.outside(out).tolist() == [True, True, True]
    assert PRIORS.log_prob(out)[:2].tolist() == [-math.inf, -math.inf]


def test_settings_are_read_in_the_order_of_the_names():
    settings = {"zred": ["uniform", 0.5, 3], "dust2": ["normal", 0, 4, 0.3, 1]}
    priors = read_priors(settings, ("dust2", "zred"))
    assert priors.names == ("dust2", "zred")
    assert priors.each == (Prior("normal", 0, 4, 0.3, 1), Prior("uniform", 0.5, 3))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (["normal", 0, 4], "expected .uniform, low, high., or"),
        (["uniform", 0, 4, 1, 1], "expected .uniform, low, high., or"),
        (["gauss", 0, 4, 1, 1], "expected .uniform, low, high., or"),
        (["uniform", "a", 1], "expected .uniform, low, high., or"),
        ([], "expected .uniform, low, high., or"),
        (0.3, "expected .uniform, low, high., or"),
        ("uniform", "expected .uniform, low, high., or"),
        (["uniform", 4, 0], "low < high"),
        (["uniform", 0, math.inf], "finite"),
        (["normal", 0, 4, math.nan, 1], "finite"),
        (["normal", 0, 4, 0.3, 0], "scale > 0"),
        (["normal", 10, 11, 0, 0.1], "between 10 and 11 there is no probability"),
    ],
)
def test_a_bad_prior_is_refused_with_its_name(values, match):
    with pytest.raises(ValueError, match=rf"data.parameters.dust2 is .*{match}"):
        read_priors({"dust2": values}, ("dust2",))


def test_unknown_and_missing_parameters_are_named():
    with pytest.raises(ValueError, match=r"unknown: dust_2; missing: dust2; .*each of dust2, zred"):
        read_priors({"dust_2": ["uniform", 0, 1], "zred": ["uniform", 0, 1]}, ("dust2", "zred"))
