"""Local calibration: what the test of the PIT by cells finds, and what it leaves alone."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from orrery.models.layers import grid
from orrery.physics.galaxies.local_calibration import (
    calibration_cells,
    faintest,
    legendre,
    local_pit,
)

KS_1_PERCENT = 1.63  # over the root of the number of values


def galaxies(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(24, 1, n), random.uniform(0, 2, n)


def pits(width: np.ndarray | float, n: int, seed: int) -> np.ndarray:
    """Of normal p(z) whose width is ``width`` times the right one."""
    return norm.cdf(np.random.default_rng(seed).standard_normal(n) / width)


def test_cells_hold_equal_numbers_and_are_ordered():
    mag, z = galaxies(2000, 0)
    cells = calibration_cells(mag, z)
    assert np.bincount(cells).tolist() == [80] * 25
    means = [[f[cells == 5 * i + j].mean() for f in (mag, z)] for i in range(5) for j in range(5)]
    means = np.array(means).reshape(5, 5, 2)
    assert (np.diff(means[..., 0].mean(1)) > 0).all() and (np.diff(means[..., 1]) > 0).all()
    assert mag[faintest(cells)].min() > mag[~faintest(cells)].max() and faintest(cells).sum() == 400
    assert (calibration_cells(mag[:39], z[:39]) == -1).all()
    assert local_pit(z[:39], np.full(39, -1)) == {}


def test_the_p_value_of_calibrated_cells_is_uniform():
    mag, z = galaxies(1000, 0)
    cells = calibration_cells(mag, z)
    p = [local_pit(pits(1.0, 1000, seed), cells)["local_pit_p"] for seed in range(300)]
    assert kstest(p, "uniform").statistic < KS_1_PERCENT / np.sqrt(300)


def test_shifts_that_cancel_in_the_pit_of_all_galaxies_are_found():
    """p(z) too high for the bright half, and as much too low for the faint one."""
    mag, z = galaxies(8000, 1)
    right = pits(1.0, 8000, 2)
    assert local_pit(right, calibration_cells(mag, z))["local_pit_p"] > 1e-3
    wrong = norm.cdf(norm.ppf(right) + np.where(mag > np.median(mag), 0.15, -0.15))
    assert kstest(wrong, "uniform").statistic < KS_1_PERCENT / np.sqrt(8000)
    found = local_pit(wrong, calibration_cells(mag, z))
    assert found["local_pit_p"] < 1e-9 and found["local_pit_rms"] > 0.1


def test_the_rms_is_that_of_the_density_of_the_pit():
    """Everywhere too narrow by a tenth: the integral of (density - 1)^2, of the first orders."""
    mag, z = galaxies(200_000, 3)
    u = (np.arange(100_000) + 0.5) / 100_000
    x = norm.ppf(u) * 0.9  # density of the PIT: N(x; 0, 1) / N(x; 0, 0.9)
    density = norm.pdf(x) / norm.pdf(x, scale=0.9)
    expected = np.sqrt(((legendre(u) * density[:, None]).mean(0) ** 2).sum())
    found = local_pit(pits(0.9, 200_000, 4), calibration_cells(mag, z))["local_pit_rms"]
    assert found == pytest.approx(expected, rel=0.1)
    assert expected == pytest.approx(0.15, abs=0.01), "as the docstring says"


@pytest.mark.parametrize("width, calibrated", [(1.0, True), (0.7, False), (1.4, False)])
def test_tarp_finds_p_of_z_that_is_too_narrow_or_too_wide(width, calibrated):
    random = np.random.default_rng(5)
    mean = random.uniform(0.8, 2.2, 4000)
    edges = torch.linspace(0, 3, 601)
    cdf = norm.cdf((edges.numpy() - mean[:, None]) / (0.1 * width))
    truth = torch.from_numpy(mean + 0.1 * random.standard_normal(4000)).float()
    truth[0] = torch.nan
    values = grid.tarp(torch.from_numpy(cdf).float(), edges, truth, torch.arange(4000)).numpy()
    assert np.isnan(values[0]) and np.isfinite(values[1:]).all()
    distance = kstest(values[1:], "uniform").statistic
    assert (distance < KS_1_PERCENT / np.sqrt(4000)) == calibrated
