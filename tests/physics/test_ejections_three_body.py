"""Ejections by three-body encounters against closed forms, integrals and plain rejection."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from orrery.physics.clusters.lowered_isothermal import G
from orrery.physics.ejections import three_body
from orrery.physics.ejections.three_body import (
    Encounters,
    draw_ejections,
    draw_encounters,
    draw_masses,
    mean_mass,
    speed_scale,
    survival,
)

CORE = (1e4, 8.0, 30.0)  # rho0, sigma0, v_esc


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def ejected():
    return draw_ejections(40_000, *CORE, generator())


def one(m_s, m_1, m_2, E0):
    return Encounters(*(torch.tensor([x], dtype=torch.float64) for x in (m_s, m_1, m_2, 1, 1, E0)))


def test_survival_is_the_integral_of_equation_7_19():
    m_s, m_b, E0 = 0.3, 1.1, 900.0
    M = m_s + m_b

    def density(v):
        constant = 3.5 * E0**3.5 * m_s * M / m_b
        return constant * v * (E0 + 0.5 * m_s * M / m_b * v**2) ** -4.5

    encounter = one(m_s, 0.5, 0.6, -E0)
    for v in (0.0, 20.0, 60.0, 200.0):
        expected, _ = integrate.quad(density, v, np.inf, epsabs=0, epsrel=1e-10)
        assert float(survival(encounter, v)) == pytest.approx(expected, rel=1e-8)


def test_equation_7_19_is_a_power_law_of_the_binding_energy_that_is_left():
    """f(|E_B|) ~ |E_B|^(-9/2) above |E0|, where |E_B| - |E0| is the kinetic energy of both."""
    m_s, m_b, E0, v = 0.3, 1.1, 900.0, 70.0
    kinetic = 0.5 * m_s * v**2 + 0.5 * m_b * (m_s * v / m_b) ** 2
    expected = ((E0 + kinetic) / E0) ** -3.5
    assert float(survival(one(m_s, 0.5, 0.6, -E0), v)) == pytest.approx(expected, rel=1e-12)


def test_encounters_without_a_bound_system_do_not_eject():
    assert float(survival(one(0.3, 0.5, 0.6, 10.0), 1.0)) == 0.0
    encounters = draw_encounters(100_000, *CORE[:2], generator())
    assert 0.1 < float((encounters.E0 >= 0).double().mean()) < 0.7


def test_masses_follow_the_power_law():
    m = draw_masses((200_000,), generator())

    def cdf(x):
        return (x**-0.35 - 0.1**-0.35) / (1.4**-0.35 - 0.1**-0.35)

    assert stats.kstest(m.numpy(), cdf).pvalue > 1e-3
    expected = integrate.quad(lambda x: x**-0.35, 0.1, 1.4)[0]
    expected /= integrate.quad(lambda x: x**-1.35, 0.1, 1.4)[0]
    assert mean_mass() == pytest.approx(expected, rel=1e-9)


def test_separations_are_flat_in_the_logarithm_between_their_limits():
    encounters = draw_encounters(100_000, *CORE[:2], generator())
    low = 4 * 695_700.0 / 3.0856775814913673e13
    high = 2 * G * mean_mass() / CORE[1] ** 2
    level = (encounters.separation / low).log() / math.log(high / low)
    assert stats.kstest(level.numpy(), "uniform").pvalue > 1e-3


def test_the_energy_is_that_of_the_drawn_binary_and_single_star(monkeypatch):
    """With equal masses, whose roles do not matter; the mean of rdot^2 is 6 sigma0^2."""
    monkeypatch.setattr(
        three_body, "draw_masses", lambda shape, g: torch.full(shape, 0.5, dtype=torch.float64)
    )
    rho0, sigma0 = 1e4, 8.0
    e = draw_encounters(200_000, rho0, sigma0, generator())
    torch.testing.assert_close(e.binding_energy, G * 0.25 / (2 * e.separation))
    r_sep = (3 * mean_mass() / (4 * math.pi * rho0)) ** (1 / 3)
    kinetic = e.E0 + e.binding_energy + G * 0.5 * 1.0 / r_sep  # mu = 1/3
    level = kinetic / (0.5 / 3 * 2 * sigma0**2)  # chi^2 of three components
    assert stats.kstest(level[:20_000].numpy(), stats.chi2(3).cdf).pvalue > 1e-3


def test_the_lightest_escapes_by_the_cube_of_its_mass(monkeypatch):
    masses = torch.tensor([0.2, 0.4, 0.8], dtype=torch.float64)
    monkeypatch.setattr(
        three_body, "draw_masses", lambda shape, g: masses[:, None].expand(shape).contiguous()
    )
    e = draw_encounters(100_000, *CORE[:2], generator())
    rates = masses**-3.0 / (masses**-3.0).sum()
    share = torch.stack([(e.m_escaper == m).double().mean() for m in masses])
    torch.testing.assert_close(share, rates, atol=0.005, rtol=0)
    torch.testing.assert_close(e.m_escaper + e.m_1 + e.m_2, torch.full_like(e.m_1, 1.4))


def test_speeds_of_given_encounters_follow_the_truncated_closed_form(ejected):
    """P(> v) / P(> v_esc) of every star's own encounter is uniform."""
    encounters = Encounters(*ejected[:6])
    level = survival(encounters, ejected.v) / survival(encounters, CORE[2])
    assert stats.kstest(level.numpy(), "uniform").pvalue > 1e-3
    assert (ejected.v > CORE[2]).all() and (ejected.E0 < 0).all()


def test_weights_agree_with_plain_rejection(ejected):
    """Encounters and speeds drawn without a condition, of which those above v_esc are kept."""
    g = generator(1)
    e = draw_encounters(500_000, *CORE[:2], g)
    u = 1 - torch.rand(len(e.E0), generator=g, dtype=torch.float64)
    v = speed_scale(e) * (u ** (-2 / 7) - 1).sqrt()
    kept = (v > CORE[2]) & (e.E0 < 0)
    assert float(kept.double().mean()) == pytest.approx(float(ejected.probability), rel=0.02)
    for plain, drawn in (
        (v, ejected.v),
        (e.m_escaper, ejected.m_escaper),
        (e.separation, ejected.separation),
        (e.E0, ejected.E0),
    ):
        assert stats.ks_2samp(plain[kept].numpy(), drawn.numpy()).pvalue > 1e-3


def test_momentum_is_balanced_and_energy_is_what_is_left(ejected):
    star = ejected.m_escaper * ejected.v
    torch.testing.assert_close((ejected.m_1 + ejected.m_2) * ejected.v_binary, star)
    left = (ejected.v_inf.square() + CORE[2] ** 2).sqrt()
    torch.testing.assert_close(left, ejected.v)
    escapes = ejected.binary_escapes
    assert 0.0 < float(escapes.double().mean()) < 0.5
    assert torch.equal(escapes, torch.isfinite(ejected.v_inf_binary))
    outside = (ejected.v_inf_binary.square() + CORE[2] ** 2).sqrt()
    torch.testing.assert_close(outside[escapes], ejected.v_binary[escapes])


def test_directions_are_isotropic(ejected):
    d = ejected.direction
    torch.testing.assert_close(d.norm(dim=-1), torch.ones(len(d), dtype=torch.float64))
    for axis in range(3):
        assert stats.kstest(0.5 + 0.5 * d[:, axis].numpy(), "uniform").pvalue > 1e-3
    assert float(torch.corrcoef(torch.stack([d[:, 2], ejected.v_inf]))[0, 1]) < 0.02


def test_many_clusters_are_drawn_at_once_and_again_alike():
    v_esc = torch.tensor([5.0, 60.0])
    first = draw_ejections(3000, 1e4, torch.tensor([2.0, 14.0]), v_esc, generator(3))
    again = draw_ejections(3000, 1e4, torch.tensor([2.0, 14.0]), v_esc, generator(3))
    assert first.v.shape == (3000, 2) and first.direction.shape == (3000, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert float(first.probability[0]) > float(first.probability[1])
    alone = draw_ejections(3000, 1e4, 14.0, 60.0, generator(4))
    assert stats.ks_2samp(first.v[:, 1].numpy(), alone.v.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("core", "message"),
    [
        ((1e4, float("nan"), 30.0), "sigma0 of cluster 0 is nan"),
        ((1e4, 8.0, 0.0), "v_esc of cluster 0 is 0"),
        ((1e4, 8.0, 1e5), "fewer than 1e-05 of the encounters eject"),
        ((1e4, 1e4, 30.0), "leaves no binaries"),
    ],
)
def test_cores_that_eject_nothing_are_refused(core, message):
    with pytest.raises(ValueError, match=message):
        draw_ejections(10, *core, generator())
