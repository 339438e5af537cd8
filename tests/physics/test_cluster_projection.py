"""What is seen of a cluster: conservation laws, integrals over velocities, and LIMEPY."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import integrate, special

from orrery.physics.clusters import lowered_isothermal as limepy
from orrery.physics.clusters.cluster_projection import project

D = torch.float64
MODELS = [(3.0, 0.0, None), (7.0, 1.3, None), (13.0, 1.8, None), (5.0, 1.0, 5.0), (9.0, 1.0, 20.0)]


def solved(W0, g, ra, steps=400):
    W0, g = (torch.tensor([v], dtype=D) for v in (W0, g))
    return limepy.solve(W0, g, None if ra is None else torch.tensor([ra], dtype=D), steps)


def test_pressures_are_integrals_over_velocity():
    """Of f = e^(-k p2) E_gamma(g, phi - k - h), k and h the energies across and along."""
    g, phi, p2 = 0.7, 2.0, 3.0

    def f(h, k):  # d^3v = 2 pi d(k) d(h) / sqrt(2 h), both signs of v_r
        e = phi - k - h
        lowered = math.exp(e) * special.gammainc(g, e) if e > 0 else 0.0
        return 4 * math.pi / math.sqrt(2 * h) * lowered * math.exp(-k * p2)

    def integral(weight):
        def inner(k):  # h = (phi - k) x^2 takes the singularity away
            top = phi - k
            return integrate.quad(
                lambda x: 2 * top * x * f(top * x * x, k) * weight(top * x * x, k), 0, 1
            )[0]

        return integrate.quad(inner, 0, phi, epsrel=1e-9)[0] / (2 * math.pi) ** 1.5

    found = limepy.pressures(*(torch.tensor([v], dtype=D) for v in (g, phi, p2)))
    for value, weight in zip(
        found, (lambda h, k: 1.0, lambda h, k: 2 * h, lambda h, k: k), strict=True
    ):
        assert float(value) == pytest.approx(integral(weight), rel=1e-6)


@pytest.mark.parametrize("W0, g, ra", MODELS)
def test_the_sky_holds_the_mass_and_a_third_of_the_energy_in_each_direction(W0, g, ra):
    model = solved(W0, g, ra)
    span = torch.log1p(model.rt**2)[:, None]
    nodes, weights = np.polynomial.legendre.leggauss(200)
    x = torch.from_numpy(0.5 + 0.5 * nodes)
    area = span * torch.exp(span * x) * torch.from_numpy(0.5 * weights)  # d(R^2)
    seen = project(model, torch.expm1(span * x).sqrt())
    share = math.pi * area * seen.surface_density
    assert float(share.sum()) == pytest.approx(1, rel=1e-7)
    # virial theorem: <v^2> is the mean of m / r
    u = torch.from_numpy(0.5 + 0.5 * nodes)
    r = limepy.radius_of_mass(model, u[None])
    mean = (u * model.mt[:, None] / r * torch.from_numpy(0.5 * weights)).sum()
    on_sky = seen.v2_radial + seen.v2_tangential
    assert float((share * seen.v2_los).sum()) == pytest.approx(float(mean) / 3, rel=2e-5)
    assert float((share * on_sky).sum()) == pytest.approx(2 * float(mean) / 3, rel=2e-5)


def test_profiles_are_those_of_limepy():
    """Whose own projection is a spline's integral, good to some 1e-4 within r_t / 2."""
    peer = pytest.importorskip("limepy")
    for W0, g, ra in MODELS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            more = {} if ra is None else {"ra": ra}
            k = peer.limepy(W0, g, project=True, ode_rtol=1e-12, ode_atol=1e-12, **more)
        inner = np.arange(1, len(k.R), 10)
        inner = inner[k.R[inner] < 0.5 * k.rt]
        model = solved(W0, g, ra)
        seen = project(model, torch.from_numpy(k.R[inner] / k.r0)[None])
        np.testing.assert_allclose(
            seen.surface_density[0], k.Sigma[inner] * k.r0**2 / k.M, rtol=1e-3
        )
        for ours, theirs in zip(seen[1:], (k.v2p, k.v2R, k.v2T), strict=True):
            np.testing.assert_allclose(ours[0], theirs[inner] / k.s2, rtol=1e-3)


def test_isotropic_models_look_the_same_in_all_directions_and_anisotropic_do_not():
    radius = torch.tensor([[0.0, 1.0, 20.0]], dtype=D)
    seen = project(solved(7.0, 1.3, None), radius)
    torch.testing.assert_close(seen.v2_radial, seen.v2_los, rtol=1e-12, atol=0)
    torch.testing.assert_close(seen.v2_tangential, seen.v2_los, rtol=1e-12, atol=0)
    seen = project(solved(7.0, 1.3, 10.0), radius)
    assert float(seen.v2_radial[0, 0]) == pytest.approx(float(seen.v2_tangential[0, 0]), rel=1e-9)
    assert float(seen.v2_radial[0, 2]) > 1.5 * float(seen.v2_tangential[0, 2])


def test_nothing_is_seen_beyond_the_edge():
    model = solved(5.0, 1.0, None)
    seen = project(model, model.rt[:, None] * torch.tensor([1.001, 3.0], dtype=D))
    assert all(bool((profile == 0).all()) for profile in seen)
