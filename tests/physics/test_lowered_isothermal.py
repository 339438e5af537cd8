"""Lowered isothermal models against LIMEPY at rtol 1e-12, closed forms and conservation laws."""

import numpy as np
import pytest
import torch
from astropy import units as u
from scipy import special, stats

from orrery.physics.clusters import cluster_stars
from orrery.physics.clusters import lowered_isothermal as limepy

D = torch.float64

# W0, g, r_a / r_0: r_t / r_0 and r_h / r_0, or None and r_t / r_h, of astro-limepy 1.3.0
KNOWN = [
    (3.0, 1.0, None, 4.69941, 1.258938),
    (5.0, 2.0, None, 26.93771, 2.028143),
    (7.0, 1.0, None, 33.70857, 3.920863),
    (9.0, 1.0, None, 131.3807, 15.411126),
    (5.0, 1.0, 5.0, None, 6.108563),
    (7.0, 1.5, 10.0, None, 27.4826),
]


def one(value):
    return torch.tensor([value], dtype=D)


def test_lowered_exponential_is_the_incomplete_gamma_function():
    a, x = torch.rand(2, 500, dtype=D, generator=torch.Generator().manual_seed(0))
    a, x = 0.5 + 5 * a, 16 * x
    expected = np.exp(x.numpy()) * special.gammainc(a.numpy(), x.numpy())
    np.testing.assert_allclose(limepy.lowered_exponential(a, x), expected, rtol=1e-13)
    inputs = (a[:5].requires_grad_(), x[:5].requires_grad_())
    assert torch.autograd.gradcheck(limepy.lowered_exponential, inputs)


def test_suppression_is_the_confluent_function():
    z = torch.logspace(-6, 4, 60, dtype=D)
    for b in (2.5, 4.0, 6.5):
        expected = special.hyp1f1(1, b, -z.numpy())
        np.testing.assert_allclose(limepy.suppression(one(b), z), expected, rtol=1e-9)


@pytest.mark.parametrize("W0, g, ra, rt, rh", KNOWN)
def test_radii_are_those_of_limepy(W0, g, ra, rt, rh):
    model = limepy.solve(one(W0), one(g), None if ra is None else one(ra), steps=800)
    if rt is None:
        assert float(model.rt / model.rh) == pytest.approx(rh, rel=2e-6)
    else:
        assert float(model.rt) == pytest.approx(rt, rel=1e-6)
        assert float(model.rh) == pytest.approx(rh, rel=2e-6)


def test_the_solver_is_of_sixth_order():
    W0, g = torch.linspace(2, 13, 12, dtype=D), torch.linspace(0, 1.8, 12, dtype=D)
    exact = limepy.solve(W0, g, steps=1600).rt
    errors = [float((limepy.solve(W0, g, steps=n).rt / exact - 1).abs().max()) for n in (200, 400)]
    assert errors[1] < 2e-8
    assert 40 < errors[0] / errors[1] < 90  # 2^6 = 64


def test_radii_have_gradients():
    def radii(W0, g):
        model = limepy.solve(W0, g, steps=100)
        return torch.stack([model.rt, model.rh, model.mt])

    assert torch.autograd.gradcheck(
        radii, (one(6.0).requires_grad_(), one(1.2).requires_grad_()), rtol=1e-4
    )


def test_mass_is_the_integral_of_density():
    model = limepy.solve(one(6.0), one(1.5), steps=800)
    r = model.rt[:, None] * torch.linspace(1e-6, 1, 20_001, dtype=D)
    phi, _ = limepy.at_radius(model, r)
    mass = torch.trapezoid(9 * limepy.density(model, phi, r) * r * r, r)
    assert float(mass / model.mt) == pytest.approx(1, rel=1e-5)
    assert float(phi[0, -1]) == pytest.approx(0, abs=1e-6)


def test_the_domain_ends_a_quarter_below_g_max():
    W0 = torch.linspace(limepy.W0_MIN, limepy.W0_MAX, 12, dtype=D)
    margin = limepy.g_max(W0) - limepy.g_limit(W0)
    assert float(margin.min()) > 0.2
    assert float(margin.max()) < 0.3


def largest_share(W0, g):
    """r_h / r_a at which r_t diverges, by bisection in r_a; NaN where it always does."""
    limit = 1e4 * limepy.solve(W0, torch.ones_like(W0), steps=100).rh
    unit = limepy.solve(W0, g, steps=100).rh
    low, high = torch.full_like(W0, -5), torch.full_like(W0, 3)
    for _ in range(14):
        middle = 0.5 * (low + high)
        model = limepy.solve(W0, g, unit * torch.exp(-middle), steps=100)
        edge = (model.rt > 0) & (model.rt < limit)
        low, high = torch.where(edge, middle, low), torch.where(edge, high, middle)
    model = limepy.solve(W0, g, unit * torch.exp(-low), steps=100)
    return model.rh / model.ra


def test_the_domain_of_anisotropic_models_ends_a_quarter_below_too():
    W0 = torch.linspace(limepy.W0_MIN, limepy.W0_MAX, 9, dtype=D).repeat(3)
    share = torch.tensor([0.3, 0.7, 1.0], dtype=D).repeat_interleave(9)
    limit = limepy.g_limit(W0, share)
    assert bool((largest_share(W0, limit + 0.19) > share).all())
    assert not bool((largest_share(W0, limit + 0.31) > share).any())
    assert float(limit.min()) > 0.8, "a King model may be nearly as anisotropic as it can"


def test_stars_follow_mass_and_dispersion():
    model = limepy.solve(one(5.0), one(2.0), steps=800)
    mass, rh = one(1e5), one(3.0)
    stars = cluster_stars.draw(model, mass, rh, 20_000, torch.Generator().manual_seed(1))[0]
    r = stars[:, :3].norm(dim=1)
    grid = torch.linspace(0.01, 0.99, 99, dtype=D)
    exact = limepy.radius_of_mass(model, grid[None])[0] * (rh / model.rh)
    found = (r[:, None] < exact).double().mean(0)
    assert float((found - grid).abs().max()) < 1.63 / np.sqrt(20_000)
    # each velocity in units of the dispersion at its place
    phi, _ = limepy.at_radius(model, (r / (rh / model.rh))[None])
    s2 = limepy.G * mass / (rh / model.rh) / model.mt
    a = model.g[:, None]
    sigma2 = s2 * limepy.moment(a + 2.5, phi, None) / limepy.moment(a + 1.5, phi, None)
    chi2 = float((stars[:, 3:].square().sum(1) / sigma2[0]).sum())
    assert chi2 / 60_000 == pytest.approx(1, abs=0.02)
    assert bool((0.5 * stars[:, 3:].square().sum(1) < s2 * phi[0]).all()), "all are bound"
    angle = stats.kstest((stars[:, 2] / r).numpy(), "uniform", (-1, 2))
    assert angle.pvalue > 1e-3


def test_velocities_follow_f_where_orbits_are_radial():
    """At a radius: the three moments, and the distribution of the energy across."""
    model = limepy.solve(one(7.0), one(1.5), one(10.0), steps=400)
    mass, rh = one(1e5), one(3.0)
    stars = cluster_stars.draw(model, mass, rh, 40_000, torch.Generator().manual_seed(3))[0]
    r0 = rh / model.rh
    s2 = limepy.G * mass / r0 / model.mt
    r = stars[:, :3].norm(dim=1)
    v2 = stars[:, 3:].square().sum(1) / s2
    along = (stars[:, :3] * stars[:, 3:]).sum(1) / r / s2.sqrt()
    across = (v2 - along.square()).clamp_min(0)
    phi, _ = limepy.at_radius(model, (r / r0)[None])
    p2 = (r / r0 / model.ra)[None] ** 2
    density, radial, tangential = limepy.pressures(model.g[:, None], phi, p2)
    for outer in (r < r.median(), r > r.median()):
        count = int(outer.sum())
        of_radial = (along.square() / (radial / density)[0])[outer].mean()
        of_tangential = (0.5 * across / (tangential / density)[0])[outer].mean()
        assert float(of_radial) == pytest.approx(1, abs=5 * (2 / count) ** 0.5)
        assert float(of_tangential) == pytest.approx(1, abs=5 * (1 / count) ** 0.5)
    # the share of f with less energy across than the star has: uniform
    u = torch.linspace(0, 1, 401, dtype=D)
    some = slice(0, 1000)
    k = phi[0, some, None] * u
    weight = torch.exp(-k * p2[0, some, None]) * limepy.lowered_exponential(
        model.g + 0.5, phi[0, some, None] - k
    )
    below = torch.cumulative_trapezoid(weight, k, dim=1)
    index = (0.5 * across[some] / phi[0, some] * 400).long()
    rank = below.gather(1, index[:, None])[:, 0] / below[:, -1]
    assert stats.kstest(rank.numpy(), "uniform").pvalue > 1e-3
    assert abs(float(along.mean() / along.std())) < 5 / 200, "as many move in as out"


def test_anisotropy_is_solved_for():
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(3, 24, generator=generator, dtype=D)
    W0 = limepy.W0_MIN + (limepy.W0_MAX - limepy.W0_MIN) * u[0]
    share = torch.where(u[1] > 0.8, 1.0, u[1])
    share[0] = 0.0
    g = u[2].sqrt() * limepy.g_limit(W0, share)
    model = limepy.solve_rh_ra(W0, g, share, steps=200)
    torch.testing.assert_close(model.rh / model.ra, share, rtol=1e-7, atol=1e-12)
    isotropic = limepy.solve(W0[:1], g[:1], steps=200)
    torch.testing.assert_close(model.rt[:1], isotropic.rt, rtol=1e-9, atol=0)


def test_pressures_obey_the_equation_of_jeans():
    model = limepy.solve(one(5.0), one(1.0), one(5.0), steps=400)
    r = torch.linspace(0.5, 8.0, 16, dtype=D)[None]
    phi, log_density = limepy.at_radius(model, r)
    density, radial, tangential = limepy.pressures(model.g[:, None], phi, (r / model.ra) ** 2)
    step = 1e-4

    def radial_pressure(r):
        phi, _ = limepy.at_radius(model, r)
        return limepy.pressures(model.g[:, None], phi, (r / model.ra) ** 2)[1]

    slope = (radial_pressure(r + step) - radial_pressure(r - step)) / (2 * step)
    force = density * log_density.exp() * r
    assert float((tangential / radial).min()) < 0.9, "anisotropy matters"
    torch.testing.assert_close(slope + 2 * (radial - tangential) / r, -force, rtol=1e-5, atol=1e-7)


def test_the_sky_and_back():
    sky = torch.tensor([[1.0, 0.7, 4500.0, 5.2, -2.5, -17.0]], dtype=D)
    back = cluster_stars.to_sky(cluster_stars.from_sky(sky))
    torch.testing.assert_close(back, sky, rtol=1e-12, atol=1e-12)
    speed = cluster_stars.from_sky(sky)[0, 3:].norm()
    tangential = (1 * u.au / u.yr).to_value(u.km / u.s) * 4.5 * np.hypot(5.2, 2.5)
    assert float(speed) == pytest.approx(np.hypot(tangential, 17.0), rel=1e-12)
