"""Staeckel actions: closed forms, conservation, derivatives, galpy's."""

import numpy as np
import pytest
import torch

from orrery.physics.milky_way import actions
from orrery.physics.milky_way.actions import EXACT, FAST, focal_length, staeckel_actions
from orrery.physics.milky_way.axisymmetric import Axisymmetric
from orrery.physics.milky_way.orbits import snapshots
from orrery.physics.milky_way.potentials import milky_way
from orrery.physics.milky_way.radial_tables import RadialTable

BASE = milky_way("mwpotential2014")


def clusters(n: int, seed: int = 0, dispersion: float = 110.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and velocities like those of globular clusters, R from 2 to 30 kpc."""
    generator = torch.Generator().manual_seed(seed)
    R = torch.exp(torch.empty(n, dtype=torch.float64).uniform_(0.7, 3.4, generator=generator))
    azimuth = torch.empty(n, dtype=torch.float64).uniform_(0, 6.28, generator=generator)
    z = 0.5 * R * torch.randn(n, dtype=torch.float64, generator=generator)
    x = torch.stack([R * azimuth.cos(), R * azimuth.sin(), z], -1)
    return x, dispersion * torch.randn(n, 3, dtype=torch.float64, generator=generator)


def disc(n: int, height: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    x, v = clusters(n)
    x[:, 2] *= height / 8
    circular = (2 * x.square().sum(-1) * BASE.spherical_slope(x.square().sum(-1))).sqrt() + 60
    unit = x[:, :2] / x[:, :2].norm(dim=-1, keepdim=True)
    v = v * 0.2
    v[:, 0] += circular * unit[:, 1]
    v[:, 1] -= circular * unit[:, 0]
    return x, v


def spherical(phi, slope) -> Axisymmetric:
    return Axisymmetric(RadialTable.of(phi), RadialTable.of(slope))


GM, SCALE = 4e5, 3.0


def isochrone() -> Axisymmetric:
    return spherical(
        lambda y: -GM / (SCALE + (SCALE**2 + y).sqrt()),
        lambda y: 0.5 * GM / ((SCALE**2 + y).sqrt() * (SCALE + (SCALE**2 + y).sqrt()) ** 2),
    )


def scale(result: actions.Actions) -> torch.Tensor:
    return result.J_R + result.J_z + result.L_z.abs()


@pytest.mark.parametrize("dispersion", (110.0, 20.0))
def test_actions_in_the_isochrone_are_the_closed_form(dispersion):
    x, v = clusters(500, dispersion=dispersion)
    result = staeckel_actions(x, v, isochrone())
    r, L = x.norm(dim=-1), torch.linalg.cross(x, v).norm(dim=-1)
    energy = 0.5 * v.square().sum(-1) - GM / (SCALE + (SCALE**2 + r * r).sqrt())
    # Binney & Tremaine (2008), eq. 3.225
    J_r = GM / (-2 * energy).sqrt() - 0.5 * (L + (L * L + 4 * GM * SCALE).sqrt())
    bound = result.bound
    assert torch.equal(bound, energy < 0)
    assert float(bound.double().mean()) > 0.7
    close = dict(rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(result.J_R[bound], J_r[bound], **close)
    torch.testing.assert_close((result.J_z + result.L_z.abs())[bound], L[bound], **close)
    torch.testing.assert_close(result.energy, energy)
    assert bool(result.J_R[~bound].isnan().all())
    assert bool(result.J_z[~bound].isnan().all())


def test_the_disc_has_positive_angular_momentum():
    x = torch.tensor([[-8.0, 0.0, 0.0]], dtype=torch.float64)
    result = staeckel_actions(x, torch.tensor([[5.0, 230.0, 5.0]], dtype=torch.float64), BASE)
    assert float(result.L_z) == pytest.approx(8 * 230)


class KuzminKutuzov:
    """The Staeckel potential of Dejonghe & de Zeeuw (1988, ApJ 333, 90): its actions are exact.

    -GM / (sqrt(lambda) + sqrt(nu)), lambda + nu = R^2 + z^2 + a^2 + c^2 and
    lambda nu = R^2 c^2 + z^2 a^2 + a^2 c^2 are positive; the focal length is sqrt(a^2 - c^2).
    """

    def __init__(self, a: float, c: float):
        self.a, self.c, self.disc_height = a, c, c
        self.plane = RadialTable.of(lambda X: self.phi_of_squares(X, torch.zeros_like(X)))

    def phi_of_squares(self, X, Z):
        a, c = self.a, self.c
        product = X * c * c + Z * a * a + a * a * c * c
        return -GM * (X + Z + a * a + c * c + 2 * product.sqrt()).rsqrt()

    def phi_and_slopes(self, X, Z):
        a, c = self.a, self.c
        root = (X * c * c + Z * a * a + a * a * c * c).sqrt()
        phi = self.phi_of_squares(X, Z)
        common = -0.5 * phi**3 / GM**2
        return phi, common * (1 + c * c / root), common * (1 + a * a / root)

    def accelerations(self, x, y, z, t):
        _, s_X, s_Z = self.phi_and_slopes(x * x + y * y, z * z)
        return -2 * x * s_X, -2 * y * s_X, -2 * z * s_Z

    static = True


def test_actions_of_a_staeckel_potential_are_conserved_along_orbits():
    potential = KuzminKutuzov(3.0, 1.0)
    x, v = clusters(60, dispersion=70.0)
    X, V = snapshots(x, v, potential, 0.0, 0.3, 7, step=2e-4)
    result = staeckel_actions(X, V, potential, delta=8**0.5)
    bound = result.bound.all(-1)
    assert int(bound.sum()) > 40
    for action in (result.J_R, result.J_z, result.L_z):
        change = (action - action[:, :1]).abs().amax(-1) / scale(result)[:, 0]
        assert float(change[bound].max()) < 1e-6


def test_actions_are_nearly_conserved_in_the_milky_way():
    x, v = disc(50)
    X, V = snapshots(x, v, BASE, 0.0, 0.5, 20, step=1e-3)
    result = staeckel_actions(X, V, BASE)
    for action in (result.J_R, result.J_z):
        assert float((action.std(-1) / scale(result)[:, 0]).median()) < 3e-3


@pytest.mark.parametrize("kind", ("clusters", "disc", "radial"))
def test_actions_are_galpys(kind):
    galpy = pytest.importorskip("galpy.actionAngle")
    from galpy.potential import MWPotential2014

    x, v = disc(200) if kind == "disc" else clusters(200, seed=1)
    R = x[:, :2].norm(dim=-1)
    if kind == "radial":  # L_z is a hundredth
        unit = torch.stack([-x[:, 1] / R, x[:, 0] / R, 0 * R], -1)
        v = v - 0.99 * (v * unit).sum(-1, keepdim=True) * unit
    delta = focal_length(x, BASE)
    estimate = galpy.estimateDeltaStaeckel(
        MWPotential2014, R.numpy() / 8, x[:, 2].numpy() / 8, no_median=True
    )
    np.testing.assert_allclose(delta.numpy(), 8 * np.asarray(estimate), rtol=1e-8)
    v_R = (x * v)[:, :2].sum(-1) / R
    v_T = (x[:, 1] * v[:, 0] - x[:, 0] * v[:, 1]) / R
    arguments = [c.numpy() for c in (R / 8, v_R / 220, v_T / 220, x[:, 2] / 8, v[:, 2] / 220)]
    method = galpy.actionAngleStaeckel(
        pot=MWPotential2014, delta=delta.numpy() / 8, c=True, order=40
    )
    theirs = 8 * 220 * np.stack(method(*arguments))
    for precision, error in ((EXACT, 1e-6), (FAST, 1e-3 if kind == "radial" else 1e-4)):
        result = staeckel_actions(x, v, BASE, precision=precision)
        # galpy fails for orbits that reach beyond some 100 kpc; the deepest are compared
        rows = (result.bound & (result.energy < -3e4)).numpy()
        assert rows.mean() > 0.95
        total = np.abs(theirs).sum(0)
        ours = (result.J_R, result.L_z, result.J_z)
        for a, b in zip(ours, theirs, strict=True):
            difference = np.abs(a.numpy() - b)[rows] / total[rows]
            assert np.quantile(difference, 0.99) < error
            assert difference.max() < 30 * error


def test_fast_actions_are_near_the_exact_ones():
    x, v = clusters(5000, seed=2)
    exact, fast = (staeckel_actions(x, v, BASE, precision=p) for p in (EXACT, FAST))
    assert float((exact.bound & ~fast.bound).double().mean()) < 2e-3
    for name in ("J_R", "J_z"):
        error = (getattr(fast, name) - getattr(exact, name)).abs() / scale(exact)
        assert float(error.nanquantile(0.99)) < 1e-4


def test_a_row_does_not_depend_on_the_others():
    x, v = clusters(100)
    together = staeckel_actions(x, v, BASE)
    for k in (0, 57):
        alone = staeckel_actions(x[k], v[k], BASE)
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a, b[k], rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("make", (clusters, disc))
@pytest.mark.parametrize("given", (True, False))
def test_derivatives_are_those_of_finite_differences(make, given):
    x, v = make(60)
    delta = focal_length(x, BASE) if given else None

    def both(x, v):
        result = staeckel_actions(x, v, BASE, delta)
        return torch.stack([result.J_R, result.J_z])

    good = staeckel_actions(x, v, BASE).bound & (x[:, 2].abs() > 0.01)
    for row in range(2):
        for variable in range(2):
            inputs = [c.clone().requires_grad_() for c in (x, v)]
            gradient = torch.autograd.grad(both(*inputs)[row].nansum(), inputs)[variable]
            for axis in range(3):
                h = torch.zeros(3, dtype=torch.float64)
                h[axis] = (2e-4, 2e-3)[variable]
                ends = [
                    both(*(c + s * h if k == variable else c for k, c in enumerate((x, v))))[row]
                    for s in (-2, -1, 1, 2)
                ]
                numeric = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h[axis])
                size = gradient.norm(dim=-1)
                error = ((gradient[:, axis] - numeric).abs() / size)[good]
                assert float(error.quantile(0.95)) < 1e-4


def test_circular_and_planar_orbits_have_no_actions_and_near_ones_small_ones():
    R = torch.linspace(1, 30, 60, dtype=torch.float64)
    speed = (2 * R * R * BASE.slopes(R * R, 0 * R)[0]).sqrt()
    x = torch.stack([-R, 0 * R, 0 * R], -1)
    for small in (0.0, 1e-6, 1e-3, 1.0):
        v = torch.stack([0 * R + small, speed, 0 * R + small], -1)
        result = staeckel_actions(x, v, BASE, delta=2.0)
        L = R * speed
        assert bool(result.bound.all())
        # epicycles: J = v^2 / (2 frequency), frequencies of the order of the circular one
        for action in (result.J_R, result.J_z):
            expected = small**2 * R / speed
            assert bool((action >= 0).all())
            assert bool((action < 1.0 * expected + 1e-9 * L).all())
            assert bool((action > 0.02 * expected - 1e-9 * L).all())


def test_polar_and_radial_orbits_are_right_or_masked():
    x, v = clusters(300, seed=5, dispersion=80.0)
    unit = torch.stack([-x[:, 1], x[:, 0], 0 * x[:, 0]], -1) / x[:, :2].norm(dim=-1, keepdim=True)
    planar = v - (v * unit).sum(-1, keepdim=True) * unit
    limit = staeckel_actions(x, planar + 1e-3 * unit, BASE)
    for speed in (1e-5, 0.0):
        result = staeckel_actions(x, planar + speed * unit, BASE)
        both = result.bound & limit.bound
        assert float(both.double().mean()) > 0.95
        for name in ("J_R", "J_z"):
            change = (getattr(result, name) - getattr(limit, name)).abs() / scale(limit)
            assert float(change[both].max()) < 5e-3
        assert bool(result.J_R[~result.bound].isnan().all())


def test_missing_values_are_masked_and_nothing_raises():
    x, v = clusters(6)
    x[0], v[1], v[2] = torch.nan, torch.nan, torch.inf
    v[3] = 1e4
    x[4] = 0.0
    result = staeckel_actions(x, v, BASE)
    assert result.bound.tolist()[:4] == [False] * 4
    assert bool(result.bound[5])
    assert bool(result.J_R[~result.bound].isnan().all())


def test_shapes_are_those_of_the_stars():
    x, v = (c.reshape(2, 3, 3) for c in clusters(6))
    assert staeckel_actions(x, v, BASE).J_R.shape == (2, 3)
    assert staeckel_actions(x[0, 0], v[0, 0], BASE, delta=2.0).J_z.shape == ()
