"""Orbits of wide binaries on the sky, and what Gaia sees of them."""

import math

import numpy as np
import pytest
import torch

from orrery.physics.wide_binaries import astrometry, motion, outliers, population, sequences
from orrery.physics.wide_binaries.population import Population

THERMAL = torch.tensor(1.0)


def density(u: torch.Tensor, noise: float, alpha: float) -> torch.Tensor:
    parts = motion.noisy_density(u, torch.full(u.shape[:-1], noise))
    return (parts * motion.alpha_weights(torch.tensor(alpha))).sum(-1)


def test_the_thermal_density_is_normalised_and_has_its_published_moments():
    u = torch.linspace(0, motion.U_MAX, 200_001, dtype=torch.float64)
    p = motion.thermal_density(u)
    assert float(torch.trapezoid(p, u)) == pytest.approx(1, abs=1e-6)
    assert float(torch.trapezoid(p * u**2, u)) == pytest.approx(math.pi / 8, abs=1e-6)
    cumulative = torch.cumulative_trapezoid(p, u)
    assert float(u[torch.searchsorted(cumulative, 0.5)]) == pytest.approx(0.5491, abs=2e-4)


def thermal_sample(n: int, generator: torch.Generator) -> torch.Tensor:
    """Draws of |u| of a thermal distribution of eccentricities, (n,), float64.

    u = sqrt(2 q t), q ~ Beta(1, 3) and t = sqrt(1 - U^2), U uniform.
    """
    first, second = torch.rand(2, n, generator=generator, dtype=torch.float64)
    q = 1 - first ** (1 / 3)
    return (2 * q * (1 - second.square()).sqrt()).sqrt()


def test_orbits_give_the_thermal_density():
    generator = torch.Generator().manual_seed(0)
    drawn = motion.sample_motion(torch.ones(400_000), generator).norm(dim=1)
    exact = thermal_sample(400_000, generator)
    for level in (0.1, 0.5, 0.9, 0.99):
        assert float(drawn.quantile(level)) == pytest.approx(float(exact.quantile(level)), abs=8e-3)
    assert float(drawn.max()) < motion.U_MAX


def test_thermal_orbits_move_in_no_preferred_direction_and_others_do():
    generator = torch.Generator().manual_seed(1)
    for alpha, expected in ((0.0, -1), (1.0, 0), (1.5, 1)):
        u = motion.sample_motion(torch.full((300_000,), alpha), generator)
        along, across = u.square().mean(0)
        assert np.sign(round(float(along - across), 2)) == expected, alpha


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.3])
@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5, 2.0])
def test_the_tabulated_density_is_that_of_orbits_with_noise(alpha, noise):
    generator = torch.Generator().manual_seed(2)
    u = motion.sample_motion(torch.full((200_000,), alpha), generator)
    u = u.float() + noise * torch.randn(u.shape, generator=generator)
    reach = motion.U_MAX + 5 * noise
    x = (torch.arange(500) + 0.5) / 500 * reach
    plane = torch.stack(torch.meshgrid(x, x, indexing="ij"), -1)
    p = 4 * density(plane, noise, alpha) * (reach / 500) ** 2
    assert float(p.sum()) == pytest.approx(1, abs=2e-3)
    for axis in (0, 1):
        expected, error = u[:, axis].square().mean(), u[:, axis].square().std() / len(u) ** 0.5
        second = float((p * plane[..., axis].square()).sum())
        assert second == pytest.approx(float(expected), abs=4 * float(error) + 1e-3)


def test_the_likelihood_of_a_pair_integrates_its_noise():
    w, covariance = torch.tensor([[0.3, 0.5]]), torch.tensor([[[0.04, 0.012], [0.012, 0.01]]])
    table = motion.likelihood(w.double(), covariance.double())[0] @ motion.alpha_weights(THERMAL)
    generator = torch.Generator().manual_seed(3)
    u = motion.sample_motion(torch.ones(1_000_000), generator).float()
    normal = torch.distributions.MultivariateNormal(w[0], covariance[0])
    for i in (10, 20, 30):
        mass = float(motion.log_masses()[i].exp())
        expected = normal.log_prob(u * mass**0.5).exp().mean()
        assert float(table[i]) == pytest.approx(float(expected), rel=0.03)


def test_a_pair_of_unknown_direction_is_averaged_over_it():
    w, covariance = torch.tensor([[0.3, 0.5]]).double(), 0.01 * torch.eye(2).double()[None]
    turned = torch.tensor([[math.hypot(0.3, 0.5), 0.0]]).double()
    first, second = (motion.likelihood(x, covariance, directed=False) for x in (w, turned))
    assert torch.allclose(first, second, rtol=0.02, atol=1e-3)
    assert not torch.allclose(
        motion.likelihood(w, covariance), motion.likelihood(turned, covariance), rtol=0.02
    )


def test_outliers_have_the_published_speed():
    u = np.linalg.norm(outliers.sample(200_000, np.random.default_rng(0)), axis=1)
    assert np.mean(u) == pytest.approx(1.04, abs=0.02)
    assert np.std(u) == pytest.approx(0.48, abs=0.02)


# --- astrometry -----------------------------------------------------------------------------------


def pairs_of(columns: dict[str, np.ndarray], **changed: np.ndarray) -> astrometry.Astrometry:
    def both(name: str) -> np.ndarray:
        return np.stack([columns[f"{name}1"], columns[f"{name}2"]], 1)

    fields = {
        name: both(name)
        for name in ("pmra", "pmdec", "pmra_error", "pmdec_error", "parallax", "parallax_error",
                     "ra", "dec")
    }  # fmt: skip
    unknown = np.full_like(fields["ra"], np.nan)
    correlation = both("pmra_pmdec_corr")
    fields |= {"correlation": correlation, "radial_velocity": unknown} | changed
    return astrometry.Astrometry(**fields)


def test_the_velocity_of_a_pair_of_known_orbit():
    """The Sun and another at 100 AU on a circular orbit face on, at 10 pc: v = sqrt(2 G / s)."""
    velocity = 29.784691829677 * math.sqrt(2 / 100)
    motion_mas = velocity / 4.740470464 * 100  # parallax 100 mas
    dec = np.array([[0.0, 10.0 / 3600]])
    zero = np.zeros((1, 2))
    stars = astrometry.Astrometry(
        np.array([[0.0, motion_mas]]), zero, zero + 0.01, zero + 0.01, zero, zero + 100.0,
        zero + 0.01, zero, zero, dec,
    )  # fmt: skip
    separation = astrometry.angular_separation(stars.ra, stars.dec)
    pair = astrometry.relative_motion(stars, separation)
    assert separation == pytest.approx(10)
    assert pair.separation == pytest.approx(100)
    assert np.linalg.norm(pair.motion) == pytest.approx(math.sqrt(2), rel=1e-6)
    assert abs(pair.motion[0, 0]) < 1e-4, "across the separation"
    assert pair.parallax_error == pytest.approx(0.01 / math.sqrt(2))


def test_a_shared_velocity_in_space_is_no_relative_motion():
    random = np.random.default_rng(0)
    n = 500
    ra = random.uniform(0, 360, (n, 1)) + np.array([0, 0.05])
    dec = random.uniform(-80, 80, (n, 1)) + np.array([0, 0.05])
    parallax = np.full((n, 2), 20.0)
    velocity = 30 * random.standard_normal((n, 3))
    moved = astrometry.systemic_motion(velocity, ra, dec, parallax)
    radial = np.einsum("nk,nik->ni", velocity, astrometry._radial(ra, dec))
    zero = np.zeros((n, 2))
    stars = astrometry.Astrometry(
        moved[..., 0], moved[..., 1], zero + 0.02, zero + 0.02, zero, parallax, zero + 0.02,
        radial, ra, dec,
    )  # fmt: skip
    separation = astrometry.angular_separation(ra, dec)
    pair = astrometry.relative_motion(stars, separation)
    naive = np.linalg.norm(np.diff(moved, axis=1)[:, 0], axis=1)
    scale = pair.motion[:, 0] * 0 + 4.740470464 / 20 * np.sqrt(pair.separation) / 29.7847
    assert np.median(np.linalg.norm(pair.motion, axis=1)) < 0.02 * np.median(scale * naive)
    blind = astrometry.relative_motion(
        stars._replace(radial_velocity=np.full((n, 2), np.nan)), separation
    )
    pull = blind.motion[:, 0] / np.sqrt(blind.covariance[:, 0, 0])
    assert 0.5 < np.std(pull) < 1.2, "what perspective feigns is counted as an error"


def test_perspective_is_an_error_where_the_direction_is_unknown():
    zero = np.zeros((1, 2))
    stars = astrometry.Astrometry(
        zero, zero, zero + 1e-6, zero + 1e-6, zero, zero + 100, zero + 1e-6, zero * np.nan
    )
    pair = astrometry.relative_motion(stars, np.array([30.0]))
    feigned = 40 * math.radians(30 / 3600) * math.sqrt(300) / 29.784691829677
    assert np.trace(pair.covariance[0]) == pytest.approx(feigned**2, rel=1e-3)


def test_errors_are_inflated_as_published():
    wide, close = (
        astrometry.error_inflation(np.array([[13.0, 18.0]]), np.array([angle])) for angle in (9, 3)
    )
    assert wide[0] == pytest.approx([1.2687, 1.0121], abs=1e-4)
    assert close == pytest.approx(1.4 * wide)


# --- the sky --------------------------------------------------------------------------------------


def test_dwarfs_are_those_of_the_table():
    sun = sequences.dwarfs(np.array([1.0]))
    assert sun.bp_rp == pytest.approx(0.823)
    assert sun.abs_g == pytest.approx(4.635)
    assert sequences.dwarf_mass(np.array([4.635, -3.0]))[0] == pytest.approx(1)
    assert np.isnan(sequences.dwarf_mass(np.array([-3.0])))
    twins = sequences.unresolved(sun, sun)
    assert twins.abs_g == pytest.approx(sun.abs_g - 0.7526, abs=1e-3)
    assert twins.bp_rp == pytest.approx(sun.bp_rp)


def test_simulated_pairs_move_as_their_masses_say():
    clean = Population(
        distance=50, white_dwarfs=0, giants=0, companions=0, chance_alignments=0, alpha=(1.0, 1.0)
    )
    columns = population.simulate(20_000, clean, 0)
    ra, dec = (np.stack([columns[f"{name}{i}"] for i in "12"], 1) for name in ("ra", "dec"))
    separation = astrometry.angular_separation(ra, dec)
    pair = astrometry.relative_motion(pairs_of(columns), separation)
    total = columns["mass1"] + columns["mass2"]
    noise = np.trace(pair.covariance, axis1=1, axis2=2)
    squared = (np.sum(pair.motion**2, 1) - noise) / total
    assert np.mean(squared) == pytest.approx(math.pi / 8, abs=4 * np.std(squared) / 141)
    assert (columns["phot_g_mean_mag1"] <= columns["phot_g_mean_mag2"]).all()
    assert pair.separation.min() * 1.2 >= 100
    assert np.median(pair.separation) == pytest.approx(10**2.75, rel=0.05)


def test_the_same_seed_gives_the_same_sky():
    first, second = (population.simulate(1500, Population(), 3) for _ in range(2))
    other = population.simulate(1500, Population(), 4)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["ra1"], other["ra1"])
    assert len(first["ra1"]) == 1500


def test_a_poor_parallax_does_not_speed_pairs_up():
    """To second order of its error, of which the power -3/2 is a curved function."""
    random = np.random.default_rng(2)
    n, zero = 200_000, np.zeros((200_000, 2))
    parallax = 5 + 0.5 * np.sqrt(2) * random.standard_normal((n, 2))
    still = zero + np.array([0.0, 0.4])
    error = zero + 0.5 * np.sqrt(2)
    stars = astrometry.Astrometry(
        still, zero, zero + 1e-3, zero + 1e-3, zero, parallax, error, zero
    )  # fmt: skip
    separation = np.full(n, 2.0)
    found = astrometry.relative_motion(stars, separation)
    exact = astrometry.relative_motion(
        stars._replace(parallax=zero + 5, parallax_error=zero + 1e-9), separation
    )
    ratio = found.motion[:, 0] / exact.motion[:, 0]
    assert np.mean(ratio) == pytest.approx(1, abs=0.005)
    assert np.std(ratio) == pytest.approx(0.15, abs=0.01)
