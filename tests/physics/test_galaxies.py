"""Claims about the simulated galaxies, their exact posterior and their redshift labels."""

import math

import pytest
import torch

from orrery.physics.galaxies import galaxy_colours as gc
from orrery.physics.galaxies import population as gx
from orrery.physics.galaxies import redshift_labels as rl
from orrery.physics.galaxies.photometry import LSST_BANDS

Z_GRID = torch.linspace(0.0, gc.Z_MAX, 301, dtype=torch.float64)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def colour(blue: str, red: str, z: float, t: float) -> float:
    flux = gc.colours(torch.tensor(z), torch.tensor(t))
    ratio = flux[LSST_BANDS.index(blue)] / flux[LSST_BANDS.index(red)]
    return -2.5 * math.log10(ratio)


def at_truth(density: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Probability integral transform of the true redshifts, (n,)."""
    cdf = torch.cumulative_trapezoid(density, Z_GRID, dim=1)
    cdf = torch.cat([torch.zeros(len(z), 1), cdf], 1)
    right = torch.searchsorted(Z_GRID, z).clamp(1, len(Z_GRID) - 1)
    row, step = torch.arange(len(z)), z - Z_GRID[right - 1]
    slope = (density[row, right] - density[row, right - 1]) / (Z_GRID[right] - Z_GRID[right - 1])
    # The density is linear between nodes. A linear cdf would pull narrow posteriors' PIT to 0.5.
    return cdf[row, right - 1] + density[row, right - 1] * step + 0.5 * slope * step**2


def ks_statistic(pit: torch.Tensor) -> float:
    """sqrt(n) times the Kolmogorov-Smirnov distance from uniform; 1.63 has a p-value of 0.01."""
    ordered, n = pit.sort().values, len(pit)
    rank = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((rank[1:] - ordered).max(), (ordered - rank[:-1]).max())
    return math.sqrt(n) * float(distance)


@pytest.fixture(scope="module")
def catalogue() -> dict[str, torch.Tensor]:
    return gx.simulate(2000, generator(11))


@pytest.fixture(scope="module")
def density(catalogue: dict[str, torch.Tensor]) -> torch.Tensor:
    return gx.posterior(catalogue["flux"], catalogue["flux_err"], Z_GRID)


# Spectra and colours


def test_planck_function_has_the_flux_of_a_black_body():
    # Wien's law in frequency: B_nu peaks at lambda T = 0.50995 cm K
    wavelength = torch.linspace(4000, 20000, 160_001, dtype=torch.float64)
    peak = wavelength[gc.planck(wavelength, 5000.0).argmax()]
    assert peak.item() * 5000.0 == pytest.approx(0.50995e8, rel=1e-4)
    # Stefan-Boltzmann: the integral over frequency goes as T^4 (undo the scaling at 5500 A)
    nu = torch.logspace(-8, -2, 20_001, dtype=torch.float64)  # 1 / Angstrom
    totals = []
    for temperature in (5000.0, 10000.0):
        x_0 = 1.438777e8 / (5500.0 * temperature)
        curve = gc.planck(1 / nu, temperature) / math.expm1(x_0)
        totals.append(torch.trapezoid(curve, nu))
    assert (totals[1] / totals[0]).item() == pytest.approx(16.0, rel=1e-3)


def test_calzetti_law_has_its_published_total_to_selective_ratio():
    assert gc.calzetti(torch.tensor([5500.0]).double()).item() == pytest.approx(4.05, abs=0.05)


def test_igm_is_clear_redward_of_lyman_alpha():
    z = torch.tensor(2.5).double()
    observed = torch.tensor([4300.0, 4200.0, 3000.0]).double()
    clear, forest, continuum = gc.igm_transmission(observed, z)
    assert clear.item() == pytest.approx(1.0, abs=1e-12)
    assert 0.7 < forest < 0.95  # Madau 1995, figure 3
    assert continuum < forest


def test_ellipticals_have_known_colours():
    # Fukugita, Shimasaku & Ichikawa 1995, Table 3: g' - r' = 0.77 at z = 0, 1.7 to 1.8 at z = 0.4
    assert colour("g", "r", 0.0, 0.05) == pytest.approx(0.77, abs=0.1)
    assert colour("g", "r", 0.4, 0.05) == pytest.approx(1.75, abs=0.15)
    assert 1.3 < colour("u", "g", 0.0, 0.05) < 1.9


@pytest.mark.parametrize("z", [0.0, 0.3, 0.6])
def test_galaxies_get_bluer_with_type(z):
    g_minus_r = [colour("g", "r", z, t) for t in (0.05, 0.45, 0.8, 1.0)]
    assert g_minus_r == sorted(g_minus_r, reverse=True)


def test_lyman_break_drops_u_at_redshift_three():
    assert colour("u", "g", 3.0, 0.8) > colour("u", "g", 2.0, 0.8) + 1.0
    assert colour("g", "r", 3.0, 0.8) < 1.2  # and leaves g: the u dropouts of Steidel et al.


def test_interpolated_colours_equal_the_spectrum_at_the_nodes():
    wavelength = torch.arange(2800.0, 11200.0, 10.0, dtype=torch.float64)
    weight = gc.passbands(wavelength) / wavelength
    sed = gc.spectrum(wavelength / 1.5, torch.tensor(0.5).double())
    flux = weight @ (sed * gc.igm_transmission(wavelength, torch.tensor(0.5))) / weight.sum(1)
    interpolated = gc.colours(torch.tensor(0.5), torch.tensor(0.5))
    torch.testing.assert_close(interpolated, flux / flux[LSST_BANDS.index("i")])


def test_colours_are_differentiable_in_redshift_and_type():
    z = torch.tensor([0.123, 0.777, 2.345], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.217, 0.512, 0.873], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gc.colours, (z, t))


# Population


def test_prior_integrates_to_one():
    m = torch.linspace(gx.M_BRIGHT, gx.M_FAINT, 81, dtype=torch.float64)
    z = torch.linspace(0, gc.Z_MAX, 601, dtype=torch.float64)
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    density = torch.stack([gx.prior(m_k, z[:, None], t) for m_k in m])
    total = torch.trapezoid(torch.trapezoid(torch.trapezoid(density, t), z), m)
    assert total.item() == pytest.approx(1.0, abs=2e-3)


def test_redshifts_of_a_population_follow_its_density():
    m = torch.full((50_000,), 24.0, dtype=torch.float64)
    u = torch.rand(50_000, generator=generator(2), dtype=torch.float64)
    for k in range(3):
        z = gx._draw_redshift(m, torch.full((50_000,), k), u)
        fine = torch.linspace(0, gc.Z_MAX, 3001, dtype=torch.float64)
        mean = torch.trapezoid(fine * gx.redshift_density(fine, m[:1])[:, k], fine)
        assert z.mean().item() == pytest.approx(mean.item(), rel=0.01)


def test_same_seed_gives_the_same_catalogue():
    first, again = gx.simulate(50, generator(3)), gx.simulate(50, generator(3))
    other = gx.simulate(50, generator(4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["z"], other["z"])


def test_catalogue_is_complete_to_its_observed_limit(catalogue):
    mag_i = 23.9 - 2.5 * torch.log10(catalogue["flux"][:, LSST_BANDS.index("i")])
    assert mag_i.max() <= 25.0
    assert (catalogue["mag_i"] > 24.0).double().mean() > 0.3
    assert ((catalogue["z"] >= 0) & (catalogue["z"] <= gc.Z_MAX)).all()


def test_scatter_about_the_true_flux_is_the_quoted_error_and_the_intrinsic_scatter():
    galaxies = gx.simulate(5000, generator(5))
    true = 10 ** (-0.4 * (galaxies["mag_i"] - 23.9)).unsqueeze(1)
    true = true * gc.colours(galaxies["z"], galaxies["t"])
    intrinsic = gx.INTRINSIC_SCATTER / 1.0857 * true
    pull = (galaxies["flux"] - true) / torch.sqrt(galaxies["flux_err"] ** 2 + intrinsic**2)
    assert pull.std().item() == pytest.approx(1.0, abs=0.03)


# Posterior


def test_posterior_integrates_to_one(density):
    mass = torch.trapezoid(density, Z_GRID, dim=1)
    torch.testing.assert_close(mass, torch.ones_like(mass))
    assert (density >= 0).all()


def test_posterior_is_calibrated(catalogue, density):
    assert ks_statistic(at_truth(density, catalogue["z"])) < 1.63


def test_posterior_of_bright_galaxies_is_calibrated(catalogue, density):
    # A selection on the observed magnitude leaves p(z | data) as it is.
    bright = catalogue["flux"][:, LSST_BANDS.index("i")] > 10 ** (0.4 * (23.9 - 23.5))
    assert ks_statistic(at_truth(density[bright], catalogue["z"][bright])) < 1.63


def test_posterior_is_calibrated_with_missing_bands(catalogue):
    flux = catalogue["flux"][:300].clone()
    flux[:, 0] = torch.nan
    density = gx.posterior(flux, catalogue["flux_err"][:300], Z_GRID)
    assert ks_statistic(at_truth(density, catalogue["z"][:300])) < 1.63


def test_posterior_is_wider_without_a_band(catalogue, density):
    flux = catalogue["flux"][:200].clone()
    flux[:, 0] = torch.nan
    blind = gx.posterior(flux, catalogue["flux_err"][:200], Z_GRID)

    def entropy(p: torch.Tensor) -> float:
        return float(-torch.trapezoid(torch.xlogy(p, p), Z_GRID, dim=1).mean())

    assert entropy(blind) > entropy(density[:200]) + 0.05


def test_posterior_has_converged(catalogue, density):
    flux, flux_err = catalogue["flux"][:60], catalogue["flux_err"][:60]
    fine = gx.posterior(flux, flux_err, Z_GRID, n_types=321, n_mags=13, drop=22.0)
    difference = 0.5 * torch.trapezoid((fine - density[:60]).abs(), Z_GRID, dim=1)
    assert difference.mean() < 1e-3
    assert difference.max() < 0.02


def test_posterior_agrees_with_a_direct_sum_over_the_population():
    # Weighted draws from the prior, no quadrature and no pruning: a second route to the mean.
    galaxy = gx.simulate(8, generator(8), years=1.0)
    flux, flux_err = galaxy["flux"], galaxy["flux_err"]
    exact = torch.trapezoid(Z_GRID * gx.posterior(flux, flux_err, Z_GRID), Z_GRID, dim=1)
    drawn = gx._draw(300_000, generator(9), years=1.0)
    true = gx._amplitude(drawn["mag_i"]).unsqueeze(1) * gc.colours(drawn["z"], drawn["t"])
    flux5 = gx.five_sigma_flux(flux, flux_err, gx._gamma())
    compared = 0
    for k in range(8):
        variance = gx._variance(true, flux5[k])
        log_weight = -0.5 * ((flux[k] - true) ** 2 / variance + variance.log()).sum(1)
        weight = torch.softmax(log_weight, 0)
        mean = (weight * drawn["z"]).sum()
        error = torch.sqrt((weight**2 * (drawn["z"] - mean) ** 2).sum())
        if 1 / (weight**2).sum() > 30:  # enough draws near this galaxy
            compared += 1
            assert abs(float(mean - exact[k])) < 4.5 * float(error) + 1e-3
    assert compared >= 3


def test_posterior_names_bad_input(catalogue):
    flux, flux_err = catalogue["flux"][:2], catalogue["flux_err"][:2]
    with pytest.raises(ValueError, match=r"\(batch, 6\)"):
        gx.posterior(flux[:, :5], flux_err[:, :5], Z_GRID)
    with pytest.raises(ValueError, match="row 0 has no observed band"):
        gx.posterior(flux * torch.nan, flux_err, Z_GRID)
    with pytest.raises(ValueError, match="must be positive"):
        gx.posterior(flux, -flux_err, Z_GRID)
    with pytest.raises(ValueError, match="z_grid must increase"):
        gx.posterior(flux, flux_err, Z_GRID + 1)


# Labels


@pytest.fixture(scope="module")
def labelled():
    galaxies = gx.simulate(40_000, generator(21))
    labels, truth = rl.label_sources(galaxies, generator(22))
    return galaxies, labels, truth


@pytest.mark.parametrize("k", range(3))
def test_label_noise_is_recovered_by_robust_statistics(labelled, k):
    galaxies, labels, truth = labelled
    sigma, catastrophic = truth[rl.SOURCES[k]]
    chosen = labels["source"] == k
    z = galaxies["z"][chosen]
    error = (labels["label"][chosen] - z) / (1 + z)
    # Of a mixture: the core's median deviation sits at the quantile 0.5 / (1 - catastrophic).
    quantile = torch.tensor(0.5 + 0.25 / (1 - catastrophic), dtype=torch.float64)
    core = error.abs().median() / torch.special.ndtri(quantile)
    assert core.item() == pytest.approx(sigma, rel=0.1)
    far = labels["catastrophic"][chosen].double().mean().item()
    assert far == pytest.approx(catastrophic, abs=4 * math.sqrt(catastrophic / len(z)))


def test_sources_are_few_and_bright_or_many_and_faint(labelled):
    galaxies, labels, _ = labelled
    spec, grism, many = (labels["source"] == k for k in range(3))
    assert 300 < spec.sum() < grism.sum() < many.sum()
    assert galaxies["mag_i"][spec].median() < 22 < 23.5 < galaxies["mag_i"][many].median()
    assert galaxies["t"][grism].median() > galaxies["t"][many].median()


def test_unlabelled_galaxies_have_no_label(labelled):
    _, labels, _ = labelled
    assert torch.equal(labels["label"].isnan(), labels["source"] == -1)
    assert (labels["label"][labels["source"] >= 0] >= 0).all()
