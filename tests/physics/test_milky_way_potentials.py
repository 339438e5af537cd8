"""Potentials of the Milky Way: their forces, densities and published values."""

import numpy as np
import pytest
import torch

from orrery.physics.milky_way import magellanic_cloud, rotating
from orrery.physics.milky_way.axisymmetric import Axisymmetric
from orrery.physics.milky_way.potentials import KPC_PER_GYR, POTENTIALS, milky_way
from orrery.physics.milky_way.radial_tables import RadialTable

AXISYMMETRIC = ("mwpotential2014", "heavy_halo", "oblate", "prolate")


def places(n: int, scale: float = 8.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(n, 3, generator=generator, dtype=torch.float64)


def radii(n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Cylindrical radii and heights, from 10 pc to 300 kpc."""
    generator = torch.Generator().manual_seed(1)
    r = 10 ** (4.5 * torch.rand(n, generator=generator, dtype=torch.float64) - 2)
    cos = 2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1
    return r * (1 - cos**2).sqrt(), r * cos


@pytest.mark.parametrize("name", POTENTIALS)
def test_every_potential_attracts_and_has_its_axisymmetric_part(name):
    potential = milky_way(name)
    x = places(50)
    t = torch.linspace(-5, 0, 50, dtype=torch.float64)
    a = torch.stack(potential.accelerations(*x.unbind(-1), t), -1)
    assert bool(((a * x).sum(-1) < 0).all())
    assert isinstance(potential.axisymmetric, Axisymmetric)
    assert potential.static == (name in AXISYMMETRIC)


def test_a_wrong_name_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"'mcmillan'.*mwpotential2014.*prolate"):
        milky_way("mcmillan")


@pytest.mark.parametrize("name", AXISYMMETRIC)
def test_forces_are_the_gradient_of_the_potential_and_the_density_is_positive(name):
    potential = milky_way(name)
    X, Z = (c.square().requires_grad_() for c in radii())
    for k, first in enumerate(torch.autograd.grad(potential.phi_of_squares(X, Z).sum(), (X, Z))):
        torch.testing.assert_close(potential.slopes(X, Z)[k], first, rtol=1e-9, atol=0)
        torch.testing.assert_close(potential.phi_and_slopes(X, Z)[k + 1], first, rtol=1e-9, atol=0)
    derivatives = potential.derivatives(X, Z)
    XX, XZ = torch.autograd.grad(derivatives.X.sum(), (X, Z), retain_graph=True)
    ZZ = torch.autograd.grad(derivatives.Z.sum(), Z)[0]
    torch.testing.assert_close(derivatives[2:], (XX, XZ, ZZ), rtol=1e-6, atol=0)
    assert bool((potential.density(X, Z) > 0).all())


@pytest.mark.parametrize("name", ("bar", "spiral"))
def test_forces_of_the_rotating_ones_are_gradients(name):
    potential = milky_way(name)
    x = places(300).requires_grad_()
    t = torch.linspace(-3, 0, 300, dtype=torch.float64)
    force = -torch.autograd.grad(potential.phi(*x.unbind(-1), t).sum(), x)[0]
    ours = torch.stack(potential.accelerations(*x.unbind(-1), t), -1)
    torch.testing.assert_close(ours, force, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "speed"), (("bar", rotating.BAR_SPEED), ("spiral", rotating.ARM_SPEED))
)
def test_the_patterns_rotate_with_the_disc(name, speed):
    potential = milky_way(name)
    x, y, z = places(20).unbind(-1)
    t = 0.1
    angle = speed * KPC_PER_GYR * t  # the disc turns from -x to +y: clockwise
    turned = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    now, later = (torch.full((20,), time, dtype=torch.float64) for time in (0.0, t))
    torch.testing.assert_close(potential.phi(*turned, z, later), potential.phi(x, y, z, now))


def test_the_base_has_the_published_rotation_curve_and_local_density():
    base = milky_way("mwpotential2014")
    X, Z = torch.tensor([64.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert float((2 * X * base.slopes(X, Z)[0]).sqrt()) == pytest.approx(220, abs=1e-9)
    # Bovy (2015), table 1: 0.10 solar masses per cubic parsec
    density = float(base.density(X, Z)) / (4 * np.pi * magellanic_cloud.G) / 1e9
    assert density == pytest.approx(0.10, abs=0.005)


def test_the_base_is_galpys():
    galpy = pytest.importorskip("galpy.potential")
    R, z = radii(100)
    args = [c.numpy() / 8 for c in (R, z)]
    theirs = galpy.MWPotential2014
    phi = 220**2 * galpy.evaluatePotentials(theirs, *args, use_physical=False)
    ours = milky_way("mwpotential2014").phi(R, z).numpy()
    np.testing.assert_allclose(
        ours - ours[0], phi - phi[0], rtol=1e-11, atol=1e-6
    )  # its zero differs
    X, Z = R.square(), z.square()
    slopes = milky_way("mwpotential2014").slopes(X, Z)
    for force, x, slope in (
        (galpy.evaluateRforces, R, slopes[0]),
        (galpy.evaluatezforces, z, slopes[1]),
    ):
        expected = 220**2 / 8 * force(theirs, *args, use_physical=False)
        np.testing.assert_allclose(-2 * (x * slope).numpy(), expected, rtol=1e-11)


def test_bar_and_arms_are_galpys():
    galpy = pytest.importorskip("galpy.potential")
    bar = galpy.DehnenBarPotential(
        omegab=rotating.BAR_SPEED * 8 / 220,
        rb=0.8 * 220 / rotating.BAR_SPEED / 8,
        Af=0.01 / 3 / (0.8 * 220 / rotating.BAR_SPEED / 8) ** 3,
        barphi=np.radians(25),
        tform=-1e6,
    )
    arms = galpy.SpiralArmsPotential(
        amp=rotating.FOUR_PI_G * rotating.ARM_DENSITY * (8 / 220) ** 2,
        N=2,
        alpha=np.radians(15),
        r_ref=1,
        phi_ref=-np.log(8 / rotating.ARM_RADIUS) / np.tan(np.radians(15)),
        Rs=7 / 8,
        H=0.18 / 8,
        omega=rotating.ARM_SPEED * 8 / 220,
    )
    x, y, z = places(30).unbind(-1)
    R, azimuth = (x * x + y * y).sqrt(), torch.atan2(y, -x)  # galpy counts it from the Sun
    base = milky_way("mwpotential2014").phi(R, z)
    t = torch.full_like(x, -0.3)
    for name, theirs in (("bar", bar), ("spiral", arms)):
        args = [c.numpy() for c in (R / 8, z / 8, azimuth)]
        time = -0.3 * KPC_PER_GYR * 220 / 8
        expected = [
            220**2 * theirs(a, b, phi=c, t=time, use_physical=False)
            for a, b, c in zip(*args, strict=True)
        ]
        ours = milky_way(name).phi(x, y, z, t) - base
        np.testing.assert_allclose(ours.numpy(), np.array(expected, float), rtol=1e-7, atol=1e-6)


def test_flattened_haloes_keep_the_mass_and_are_flattened():
    base = milky_way("mwpotential2014")
    r = torch.tensor([3.0, 16.0, 60.0], dtype=torch.float64)
    zero = torch.zeros_like(r)
    cos = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)[:, None]  # half a sphere
    X, Z = (r * (1 - cos**2).sqrt()) ** 2, (r * cos) ** 2
    for name, sign in (("oblate", 1), ("prolate", -1)):
        other = milky_way(name)
        torch.testing.assert_close(
            other.density(X, Z).mean(0), base.density(X, Z).mean(0), rtol=2e-6, atol=0
        )
        excess = other.density(r * r, zero) - base.density(r * r, zero)
        assert bool((sign * excess > 0).all())


def test_the_cloud_passes_where_it_is_seen_and_pulls_the_galaxy():
    potential = milky_way("lmc")
    today = torch.stack(potential.position(torch.zeros((), dtype=torch.float64)))
    # e.g. Vasiliev (2023, Galaxies 11, 59): (-0.6, -41.3, -27.1) kpc
    assert today.tolist() == pytest.approx([-0.6, -41.3, -27.1], abs=1.0)
    before = torch.stack(potential.position(torch.tensor([-0.3, -0.6], dtype=torch.float64)))
    assert float(before.norm(dim=0)[0]) > float(today.norm())  # it comes from outside
    centre = torch.full((3, 1), 1e-3, dtype=torch.float64)
    free = torch.stack(potential.accelerations(*centre, torch.zeros(1, dtype=torch.float64)))
    own = torch.stack(potential.axisymmetric.accelerations(*centre, torch.zeros(1)))
    assert float((free - own).norm()) < 0.1  # at the centre attraction and reflex cancel


def test_tables_are_exact_to_rounding_and_their_derivatives_nearly():
    table = RadialTable.of(lambda y: 1 / (1 + y))
    y = 10 ** torch.linspace(-10, 10, 5000, dtype=torch.float64)
    torch.testing.assert_close(table(y), 1 / (1 + y), rtol=1e-12, atol=0)
    value, slope = table.with_derivative(y)
    torch.testing.assert_close(value, table(y), rtol=1e-15, atol=0)
    torch.testing.assert_close(slope[y > 0.1], (-1 / (1 + y) ** 2)[y > 0.1], rtol=1e-8, atol=0)
    bad = torch.tensor([torch.nan, 0.0, -1.0, 1e30, torch.inf], dtype=torch.float64)
    assert bool(table(bad)[0].isnan())  # and nothing raises
