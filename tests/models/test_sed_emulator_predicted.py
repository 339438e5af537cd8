"""Fluxes that Laplace's approximation predicts."""

import torch

from orrery.models.sed_emulator.covariance import Errors
from orrery.models.sed_emulator.draws import laplace_draws
from orrery.models.sed_emulator.fitting import maximise, predicted_fluxes
from orrery.models.sed_emulator.posterior import Mode, Photometry, pick, to_flux
from orrery.physics.sps.priors import read_priors

N, BANDS = 3, 6
NAMES = ("logmass", "dust2", "zred")


class Linear:
    """Magnitudes linear in the parameters but for ``bend`` times the square of the second."""

    priors = read_priors(
        {
            "logmass": ["uniform", 8.0, 12.0],
            "dust2": ["uniform", 0.0, 4.0],
            "zred": ["uniform", 0.5, 3.0],
        },
        NAMES,
    )

    def __init__(self, bend: float) -> None:
        slope = torch.linspace(0.2, 1.0, BANDS)
        self.slopes = torch.stack([torch.full((BANDS,), -2.5), slope, slope.square()], 1)
        self.bend = bend

    def emulate(self, x: torch.Tensor) -> torch.Tensor:
        bent = self.bend * (x[:, 1:2] - 1.5).square()
        return 48 + x @ self.slopes.T + bent

    def derivatives(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slopes = self.slopes.expand(len(x), -1, -1).clone()
        slopes[:, :, 1] += 2 * self.bend * (x[:, 1:2] - 1.5)
        return self.emulate(x), slopes

    def errors(self, x: torch.Tensor) -> Errors:
        return Errors(torch.full((len(x), BANDS), 1e-6), torch.zeros(len(x), BANDS, 1))


def fitted(bend: float, error: float) -> tuple[Linear, Photometry, Mode]:
    emulator = Linear(bend)
    true = torch.tensor([[10.0, 1.5, 1.7], [9.5, 1.5, 1.5], [10.5, 1.5, 1.9]])
    flux = to_flux(emulator.emulate(true))
    mask = torch.ones(N, BANDS, dtype=torch.bool)
    mask[:, -1] = False  # a band that is predicted without being fitted
    free, exact = torch.full((N,), torch.nan), torch.zeros(N)
    data = Photometry(flux, error * flux, mask, ~mask & mask, free, exact)
    start = emulator.priors.to_normal(true)
    return emulator, data, maximise(emulator, data, start)


def scatter_of_draws(emulator: Linear, mode: Mode) -> torch.Tensor:
    draws = laplace_draws([mode], 4000, 0)
    parameters = emulator.priors.from_normal(draws.flatten(0, 1))
    return to_flux(emulator.emulate(parameters)).reshape(N, 4000, BANDS).std(1)


def test_predicted_errors_are_the_scatter_of_draws_where_the_model_is_linear():
    emulator, data, mode = fitted(bend=0.0, error=0.005)
    flux, error = predicted_fluxes(emulator, data, mode)
    torch.testing.assert_close(flux, data.flux, rtol=0.02, atol=0)
    ratio = scatter_of_draws(emulator, mode) / error
    assert (ratio - 1).abs().max() < 0.08
    relative = error / flux
    assert (relative[:, -1] > relative[:, -2]).all(), "a band that was not fitted is less certain"


def test_predicted_errors_are_no_larger_than_the_data_allow_where_the_model_is_bent():
    emulator, data, mode = fitted(bend=3.0, error=0.02)
    flux, error = predicted_fluxes(emulator, data, mode)
    assert (scatter_of_draws(emulator, mode)[:, 2] > 2 * error[:, 2]).all(), "draws are too wide"
    assert (error[:, :-1] < 0.022 * flux[:, :-1]).all()


def test_the_mode_that_is_picked_is_that_of_each_galaxy():
    modes = [
        Mode(*(torch.full((N, *shape), float(i)) for shape in ((2,), (2, 2), (), (), ())))
        for i in range(2)
    ]
    picked = pick(modes, torch.tensor([0, 1, 0]))
    assert picked.x[:, 0].tolist() == picked.chi2.tolist() == [0, 1, 0]
    assert picked.precision.shape == (N, 2, 2)
