"""What is seen of a rest spectrum: bands, pixels of a spectrograph, lines, indices."""

import math

import numpy as np
import pytest
import torch
from astropy.cosmology import FlatLambdaCDM

from orrery.physics.sps.filters import load_filter
from orrery.physics.sps.indices import d4000, h_delta
from orrery.physics.sps.libraries import load_population
from orrery.physics.sps.observed import (
    FWHM,
    FilterLayer,
    filter_weights,
    line_profiles,
    magnitudes,
    microjansky,
    sampled,
    sigma_of,
)
from orrery.physics.sps.population import (
    FINE_FWHM,
    L_SUN,
    LIGHT,
    N_FINE,
    N_PIXELS,
    fine_wavelengths,
    in_vacuum,
    wavelengths,
)
from orrery.physics.sps.synthesis import Synthesis, parameter_names

COSMOLOGY = FlatLambdaCDM(70, 0.3, Tcmb0=0)
LAM = fine_wavelengths()
SPEED = 299792.458  # km/s


def moments(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float, float]:
    """Integral, mean and standard deviation of y (pixels,) on a uniform grid x."""
    total = y.sum()
    mean = (x * y).sum() / total
    scatter = ((x - mean).square() * y).sum() / total
    return float(total * (x[1] - x[0])), float(mean), float(scatter.sqrt())


def test_wavelengths_in_vacuum_are_those_of_the_lines():
    """H beta, H alpha and [O III] (NIST); Lyman alpha is given in vacuum."""
    air = torch.tensor([4861.333, 6562.819, 5006.843, 1215.67], dtype=torch.float64)
    vacuum = torch.tensor([4862.691, 6564.632, 5008.240, 1215.67], dtype=torch.float64)
    torch.testing.assert_close(in_vacuum(air), vacuum, rtol=0, atol=0.01)


@pytest.mark.parametrize("z", [0.3, 3.2])
@pytest.mark.parametrize("velocity", [150.0, 400.0])
def test_a_line_is_broadened_to_the_width_that_is_asked_beyond_the_librarys(z, velocity):
    line, own = 5000.0, 4e-4
    fine = torch.exp(-0.5 * ((LAM.log() - math.log(line)) / own).square())[None].float()
    at = torch.exp(
        torch.linspace(math.log(4900 * (1 + z)), math.log(5100 * (1 + z)), 2001)
    ).double()
    sigma = sigma_of(3000.0, torch.tensor([velocity]))
    seen = sampled(fine, lambda: torch.zeros(1, N_PIXELS), at, torch.tensor([z]), sigma)[0].double()
    area, mean, width = moments(at.log(), seen)
    assert area == pytest.approx(own * math.sqrt(2 * math.pi), rel=2e-3)
    assert mean == pytest.approx(math.log(line * (1 + z)), abs=2e-6)
    library = FINE_FWHM / FWHM / line
    instrument = 1 / FWHM / 3000
    added = (velocity / SPEED) ** 2 + instrument**2 - library**2
    assert width == pytest.approx(math.sqrt(own**2 + added), rel=5e-3)


def test_pixels_beyond_the_fine_grid_have_the_light_of_the_common_one():
    common = (wavelengths().float() / 5000)[None]
    at = torch.tensor([2000.0, 2900.0, 8000.0, 20000.0], dtype=torch.float64) * 2
    seen = sampled(
        torch.zeros(1, N_FINE), lambda: common, at, torch.tensor([1.0]), torch.tensor([1e-3])
    )
    torch.testing.assert_close(seen[0].double(), at / 2 / 5000, rtol=1e-5, atol=0)


def test_a_seen_spectrum_can_be_differentiated_by_redshift_and_dispersion():
    generator = torch.Generator().manual_seed(0)
    fine = torch.rand(2, N_FINE, generator=generator).double()
    at = torch.linspace(20000, 20500, 40).double()
    z = torch.tensor([3.0, 3.1]).double()
    sigma = torch.tensor([6e-4, 9e-4]).double()

    def seen(z: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return sampled(fine, lambda: torch.zeros(2, N_PIXELS).double(), at, z, sigma)

    assert torch.autograd.gradcheck(
        seen, (z.requires_grad_(), sigma.requires_grad_()), eps=1e-8, atol=1e-2, rtol=1e-2
    )


def test_a_line_has_its_luminosity_and_its_width():
    at = torch.linspace(19000, 21500, 4001).double()
    strength, place = torch.tensor([[3.0, 7.0]]), torch.tensor([4862.69, 5008.24]).double()
    z, sigma = torch.tensor([3.0]), torch.tensor([1e-3])
    seen = line_profiles(strength, place, at, z, sigma)[0].double()
    frequency = LIGHT / (at / 4)  # at rest
    for line, luminosity in zip(place, strength[0], strict=True):
        near = (at / 4 - line).abs() < 6e-3 * line
        energy = -torch.trapezoid(seen[near], frequency[near])
        assert float(energy) == pytest.approx(float(luminosity), rel=2e-3)
    assert float(seen[(at / 4 - 4900).abs() < 2].max()) < 1e-3 * float(seen.max())


def test_fluxes_are_those_of_magnitudes_and_of_the_distance():
    mean, z, logmass = torch.tensor([[2e-15]]), torch.tensor([1.3]), torch.tensor([10.4])
    flux = float(microjansky(mean, z, logmass))
    distance = COSMOLOGY.luminosity_distance(1.3).to_value("cm")
    expected = 2.3 * 10**10.4 * 2e-15 * L_SUN / (4 * math.pi * distance**2) / 1e-29
    assert flux == pytest.approx(expected, rel=1e-3)
    assert 23.9 - 2.5 * math.log10(flux) == pytest.approx(
        float(magnitudes(mean, z, logmass)), abs=1e-3
    )


@pytest.mark.parametrize("nebular", [False, True])
def test_the_fine_spectrum_is_the_common_one_seen_more_closely(nebular):
    bands = [load_filter("lsst_baseline_g"), load_filter("lsst_baseline_y")]
    s = Synthesis(load_population("analytic"), bands, 2.0, nebular)
    names = parameter_names(nebular)
    values = {"logmass": 10.0, "dust2": 0.5, "dust1_fraction": 1.0, "gas_logu": -2.0, "zred": 1.0}
    parameters = torch.tensor([[values.get(name, 0.0) for name in names]])
    fine, lines = s.fine_spectrum(parameters)
    assert lines.shape == (1, len(s.population.line_names) if nebular else 0)
    common = np.interp(LAM, s.wavelength, s.spectrum(parameters)[0])
    ratio = fine[0].numpy() / common
    assert np.median(np.abs(ratio - 1)) < 1e-3
    if nebular:  # lines are in the common spectrum alone
        dip = ratio[np.abs(LAM.numpy() - 6564.6) < 10]
        assert dip.min() < 0.9
        own = s.population.line_names.index("H 1 6562.80A")
        alone = s.spectrum(parameters)[0] - torch.from_numpy(
            np.interp(s.wavelength, LAM, fine[0].numpy())
        )
        near = (s.wavelength - 6564.6).abs() < 40
        energy = (alone * LIGHT / s.wavelength)[near].sum() * 0.0025
        assert float(energy) == pytest.approx(float(lines[0, own]), rel=0.02)


def test_a_layer_of_filters_does_not_depend_on_the_other_filters():
    spectrum = (wavelengths().float() / 5000).sqrt().expand(3, -1)
    z = torch.tensor([0.5, 2.0, 5.0])
    names = ("lsst_baseline_i", "spitzer_irac_ch2", "tophat:20000:20500")
    together = FilterLayer(filter_weights([load_filter(name) for name in names]), 6.0)
    seen = together(spectrum[:, together.rest], z)
    for i, name in enumerate(names):
        alone = FilterLayer(filter_weights([load_filter(name)]), 6.0)
        torch.testing.assert_close(alone(spectrum[:, alone.rest], z)[:, 0], seen[:, i])


def test_the_break_and_the_line_of_h_delta_are_measured():
    step = torch.where(LAM < 3980, 1.0, 1.7).double()
    assert float(d4000(LAM, step[None])) == pytest.approx(1.7, rel=1e-6)
    absorbed = torch.where((LAM > 4095) & (LAM < 4105), 0.4, 1.0).double()
    flux = absorbed * LAM.square()  # constant by wavelength, but for 0.6 of 10 Angstrom
    assert float(h_delta(LAM, flux[None])) == pytest.approx(6.0, abs=0.3)
    assert float(h_delta(LAM, (3.0 * LAM**3)[None])) == pytest.approx(0.0, abs=1e-3)
