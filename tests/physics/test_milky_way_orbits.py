"""Orbits: conserved quantities, closed forms, and galpy's."""

import numpy as np
import pytest
import torch

from orrery.physics.milky_way import orbits
from orrery.physics.milky_way.axisymmetric import KPC_PER_GYR, Axisymmetric
from orrery.physics.milky_way.orbits import default_step, integrate, snapshots
from orrery.physics.milky_way.potentials import POTENTIALS, milky_way
from orrery.physics.milky_way.radial_tables import RadialTable
from orrery.physics.milky_way.rotating import BAR_SPEED


def clusters(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and velocities like those of globular clusters, R from 2 to 30 kpc."""
    generator = torch.Generator().manual_seed(seed)
    R = torch.exp(torch.empty(n, dtype=torch.float64).uniform_(0.7, 3.4, generator=generator))
    azimuth = torch.empty(n, dtype=torch.float64).uniform_(0, 6.28, generator=generator)
    z = 0.5 * R * torch.randn(n, dtype=torch.float64, generator=generator)
    v = 110 * torch.randn(n, 3, dtype=torch.float64, generator=generator)
    tangential = torch.stack([-azimuth.sin(), azimuth.cos(), 0 * R], -1)
    along = (v * tangential).sum(-1, keepdim=True)
    v = v + tangential * 60 * along.sign()  # no radial orbits
    return torch.stack([R * azimuth.cos(), R * azimuth.sin(), z], -1), v


def energy(x: torch.Tensor, v: torch.Tensor, potential: Axisymmetric) -> torch.Tensor:
    return 0.5 * v.square().sum(-1) + potential.phi(x[..., :2].norm(dim=-1), x[..., 2])


def harmonic(frequency: float) -> Axisymmetric:
    """Potential 1/2 frequency^2 r^2; km/s/kpc."""
    return Axisymmetric(
        spherical=RadialTable.of(lambda y: 0.5 * frequency**2 * y),
        spherical_slope=RadialTable.of(lambda y: torch.full_like(y, 0.5 * frequency**2)),
    )


def test_a_harmonic_orbit_is_the_closed_form():
    x, v = clusters(20)
    frequency, t = 30.0, torch.linspace(-0.1, 0.1, 20, dtype=torch.float64)
    ours = integrate(x, v, harmonic(frequency), 0.0, t, step=2e-4)
    angle = (frequency * KPC_PER_GYR * t)[:, None]
    place = x * angle.cos() + v / frequency * angle.sin()
    torch.testing.assert_close(ours[0], place, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        ours[1], v * angle.cos() - x * frequency * angle.sin(), rtol=0, atol=1e-6
    )


def test_energy_and_angular_momentum_are_conserved_with_the_default_step():
    base = milky_way("mwpotential2014")
    x, v = clusters(100)
    X, V = integrate(x, v, base, 0.0, -0.3)
    error = (energy(X, V, base) / energy(x, v, base) - 1).abs()
    assert float(error.median()) < 1e-9
    assert float(error.quantile(0.9)) < 3e-8
    X, V = integrate(x, v, base, 0.0, -0.3, 0.5 * default_step(x, v, base))
    finer = (energy(X, V, base) / energy(x, v, base) - 1).abs()
    assert float(finer.quantile(0.9)) < 1e-9
    L_z, before = (b[:, 1] * c[:, 0] - b[:, 0] * c[:, 1] for b, c in ((X, V), (x, v)))
    torch.testing.assert_close(L_z, before, rtol=1e-11, atol=1e-9)


def test_the_method_is_of_fourth_order():
    x, v = clusters(20, seed=3)
    frequency, t = 30.0, 0.2
    angle = frequency * KPC_PER_GYR * t
    place = x * np.cos(angle) + v / frequency * np.sin(angle)
    errors = [
        float((integrate(x, v, harmonic(frequency), 0.0, t, step)[0] - place).norm())
        for step in (4e-3, 2e-3)
    ]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.1)


@pytest.mark.parametrize("name", POTENTIALS)
def test_the_way_back_leads_to_the_start(name):
    potential = milky_way(name)
    x, v = clusters(10, seed=1)
    there = integrate(x, v, potential, 0.0, -0.1, step=1e-3)
    back = integrate(*there, potential, -0.1, 0.0, step=1e-3)
    torch.testing.assert_close(back[0], x, rtol=0, atol=1e-8)
    torch.testing.assert_close(back[1], v, rtol=0, atol=1e-6)


def test_the_bar_conserves_jacobis_integral():
    bar = milky_way("bar")
    x, v = clusters(20, seed=2)

    def jacobi(x, v, t):
        L_z = x[:, 1] * v[:, 0] - x[:, 0] * v[:, 1]  # in the sense of the rotation
        phi = bar.phi(*x.unbind(-1), torch.full_like(L_z, t))
        return 0.5 * v.square().sum(-1) + phi - BAR_SPEED * L_z

    later = integrate(x, v, bar, 0.0, 0.1)
    torch.testing.assert_close(jacobi(*later, 0.1), jacobi(x, v, 0.0), rtol=3e-6, atol=0)
    assert (
        float((energy(*later, bar.axisymmetric) / energy(x, v, bar.axisymmetric) - 1).abs().max())
        > 1e-4
    )


def test_snapshots_are_the_states_on_the_way():
    base = milky_way("mwpotential2014")
    x, v = clusters(7)
    X, V = snapshots(x, v, base, 0.0, -0.04, 5, step=1e-3)
    assert X.shape == V.shape == (7, 5, 3)
    assert torch.equal(X[:, 0], x)
    for k in range(1, 5):
        alone = integrate(x, v, base, 0.0, -0.01 * k, step=1e-3)
        torch.testing.assert_close((X[:, k], V[:, k]), alone, rtol=1e-10, atol=1e-8)


def test_a_row_does_not_depend_on_the_others(monkeypatch):
    potential = milky_way("lmc")
    x, v = clusters(40)
    start = torch.linspace(-0.1, -0.01, 40, dtype=torch.float64)
    together = integrate(x, v, potential, start, 0.0)
    monkeypatch.setattr(orbits, "CHUNK", 16)
    monkeypatch.setattr(orbits, "BLOCK", 4)
    apart = integrate(x.flip(0), v.flip(0), potential, start.flip(0), 0.0)
    torch.testing.assert_close(apart[0].flip(0), together[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(apart[1].flip(0), together[1], rtol=1e-12, atol=1e-12)


def test_missing_and_unbound_stars_do_not_stop_the_others():
    base = milky_way("mwpotential2014")
    x, v = clusters(4)
    v[1] = torch.nan
    v[2] *= 50
    X, V = integrate(x, v, base, 0.0, 0.05)
    assert X.isnan().any(-1).tolist() == [False, True, False, False]
    assert float(X[2].norm()) > float(x[2].norm())
    assert bool(V[[0, 2, 3]].isfinite().all())


def test_orbits_are_differentiable():
    base = milky_way("mwpotential2014")
    x, v = (c.requires_grad_() for c in clusters(2, seed=4))

    def end(x, v):
        return torch.cat(integrate(x, v, base, 0.0, 0.02, step=2e-3))

    assert torch.autograd.gradcheck(end, (x, v), eps=1e-5, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        in_place = end(x, v)
    assert torch.equal(in_place, end(x, v))


def test_inputs_are_not_changed():
    x, v = clusters(3)
    copies = x.clone(), v.clone()
    integrate(x, v, milky_way("mwpotential2014"), 0.0, 0.1)
    assert torch.equal(x, copies[0])
    assert torch.equal(v, copies[1])


def test_orbits_are_galpys_within_a_tenth_of_a_parsec():
    galpy = pytest.importorskip("galpy.orbit")
    from galpy.potential import MWPotential2014

    x, v = clusters(30, seed=5)
    base = milky_way("mwpotential2014")
    R = x[:, :2].norm(dim=-1)
    radial = (x * v)[:, :2].sum(-1) / R
    tangential = (x[:, 0] * v[:, 1] - x[:, 1] * v[:, 0]) / R
    azimuth = torch.atan2(x[:, 1], x[:, 0])
    start = [R / 8, radial / 220, tangential / 220, x[:, 2] / 8, v[:, 2] / 220, azimuth]
    orbit = galpy.Orbit(torch.stack(start, 1).numpy())
    end = 0.4 * KPC_PER_GYR * 220 / 8
    orbit.integrate(
        np.linspace(0, end, 3),
        MWPotential2014,
        method="dop853_c",
        rtol=1e-13,
        atol=1e-13,
        progressbar=False,
    )
    theirs = 8 * np.stack([orbit.x(end), orbit.y(end), orbit.z(end)], 1)
    error = np.linalg.norm(integrate(x, v, base, 0.0, 0.4)[0].numpy() - theirs, axis=1)
    assert np.quantile(error, 0.9) < 1e-4
    finer = integrate(x, v, base, 0.0, 0.4, 0.5 * default_step(x, v, base))[0].numpy()
    assert np.linalg.norm(finer - theirs, axis=1).max() < 1e-4
