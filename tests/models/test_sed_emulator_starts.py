"""Where fits of free redshifts begin, and which redshift they find."""

import pytest
import torch

from orrery import load
from orrery.models.sed_emulator.fitting import MODE_DISTANCE, N_MODES, starts
from orrery.models.sed_emulator.posterior import Photometry, pick, to_flux, to_parameters
from orrery.models.sed_emulator.some_bands import SomeBands

N = 96
BANDS = ("u", "g", "r", "i", "z", "y", "vista_J", "vista_H", "vista_Ks", "irac1", "irac2", "ia484")
ERROR, SKY = 0.02, 0.01  # of the flux, and uJy


@pytest.fixture(scope="module")
def model():
    return load("feniks").eval()


@pytest.fixture(scope="module")
def emulator(model) -> SomeBands:
    return SomeBands(model, torch.tensor([model.bands.index(band) for band in BANDS]))


@pytest.fixture(scope="module")
def true(model) -> torch.Tensor:
    """Parameters (n, p) of galaxies of the prior, all of the same mass."""
    parameters = model.priors.draw(N, torch.Generator().manual_seed(3))
    parameters[:, model.names.index("logmass")] = 10.5
    return parameters


@pytest.fixture(scope="module")
def data(model, true) -> Photometry:
    """Photometry in all bands of the model."""
    with torch.no_grad():
        flux = to_flux(model.emulate(true))
    noise = torch.randn(flux.shape, generator=torch.Generator().manual_seed(4))
    seen = torch.ones_like(flux, dtype=torch.bool)
    free = torch.full((N,), torch.nan)
    error = torch.hypot(ERROR * flux, torch.tensor(SKY))
    return Photometry(flux + error * noise, error, seen, ~seen, free, torch.zeros(N))


def test_fits_begin_at_the_redshifts_of_the_library(model, emulator, data):
    few = emulator.of(data).rows(torch.arange(8))
    begin = starts(emulator, few, emulator.library, N_MODES)
    z = model.priors.from_normal(begin.flatten(0, 1))[:, model.names.index("zred")]
    gap = (torch.log1p(z)[:, None] - emulator.library.log_ratio).abs().amin(1)
    assert gap.max() < 1e-4
    apart = torch.log1p(z).reshape(N_MODES, -1)
    gaps = (apart[:, None] - apart)[~torch.eye(N_MODES, dtype=torch.bool)].abs()
    assert gaps.min() > MODE_DISTANCE - 1e-4


def test_free_redshifts_of_well_observed_galaxies_are_found(model, emulator, data, true):
    with torch.no_grad():
        modes = emulator.modes(data)
    best = torch.stack([mode.log_evidence() for mode in modes], 1).argmax(1)
    found = to_parameters(model.priors, pick(modes, best).x, data.zred)
    i = model.names.index("zred")
    error = (found[:, i] - true[:, i]).abs() / (1 + true[:, i])
    assert (error > 0.15).float().mean() < 0.05
