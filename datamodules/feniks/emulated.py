"""Galaxies by a trained network of spectra, where the populations of stars are not at hand."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orrery.physics.sps.filters import Filter
from orrery.physics.sps.population import LOG_Z, N_PIXELS, N_YOUNG, Population
from orrery.physics.sps.priors import Priors
from orrery.physics.sps.star_formation import StarFormation
from orrery.physics.sps.synthesis import Synthesis

LEARNED = ("logzsol", "gas_logz", "gas_logu", "zred")  # of which the network gives the light


class EmulatedSynthesis(Synthesis):
    """`Synthesis` whose spectra are those of a trained ``model`` of spectra, of sed_emulator.

    Of mass, dust and star formation, which it does not learn, any values do. The light of a
    ``history`` is that of populations to a few per cent: exact are the populations themselves.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        filters: Sequence[Filter],
        z_max: float,
        nebular: bool = False,
        rest_filters: Sequence[Filter] = (),
    ) -> None:
        network = model.network
        metallicity = torch.from_numpy(10**LOG_Z).float()
        nothing = torch.zeros(len(metallicity), N_YOUNG, N_PIXELS)
        no_gas = nothing.new_zeros(1, 1, N_YOUNG, N_PIXELS)
        population = Population(
            name, f"emulated by {name}", float("nan"), metallicity, nothing, model.surviving.cpu(),
            network.ionisations.cpu(), no_gas, network.dust.cpu(),
            line_names=tuple(network.lines), line_wavelength=network.line_wavelength.cpu(),
        )  # fmt: skip
        super().__init__(population, filters, z_max, nebular, rest_filters)
        self.network = network

    def to(self, target: torch.device | torch.dtype) -> "EmulatedSynthesis":
        self.network.to(target)
        super().to(target)
        return self

    def spectrum(self, parameters: Tensor, history: StarFormation | None = None) -> Tensor:
        light = self.network.light(parameters, history)
        return self.network.common_spectrum(
            parameters, light, self._layer.rest, self._layer.emits, True
        )

    def fine_spectrum(
        self, parameters: Tensor, history: StarFormation | None = None
    ) -> tuple[Tensor, Tensor]:
        light = self.network.light(parameters, history)
        rest = self.network.rest_spectrum(parameters, light)
        return rest, self.network.rest_lines(parameters, light)


def refuse_unlearned(priors: Priors, model: Any, population: str) -> None:
    """Raise ``ValueError`` for priors beyond those within which ``model`` has learned spectra."""
    for name in set(LEARNED) & set(priors.names):
        own, learned = (p.each[p.names.index(name)] for p in (priors, model.priors))
        if own.low < learned.low or own.high > learned.high:
            raise ValueError(
                f"data.parameters.{name} is {own.low:g} to {own.high:g}, and {population} has "
                f"learned {learned.low:g} to {learned.high:g}: narrow it, or set "
                f"data.population=bc03_miles, the populations themselves"
            )
