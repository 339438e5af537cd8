"""The emulator of some of the bands: a fit takes as long as there are bands."""

from typing import Protocol

import torch
from torch import Tensor

from orrery.models.sed_emulator import fitting
from orrery.models.sed_emulator.covariance import Errors
from orrery.models.sed_emulator.fitting import Library
from orrery.models.sed_emulator.networks import Network
from orrery.models.sed_emulator.posterior import Emulator, Mode, Photometry
from orrery.physics.sps.priors import Priors


class Trained(Emulator, Protocol):
    """An emulator with its network."""

    @property
    def network(self) -> Network:
        """Of all bands."""


class SomeBands:
    """The `posterior.Emulator` of the ``bands`` (m,), places among those of a trained one."""

    priors: Priors

    def __init__(self, trained: Trained, bands: Tensor) -> None:
        self.bands, self.priors = bands, trained.priors
        self.network = trained.network.of_bands(bands)
        self._all_errors = trained.errors
        self.library: Library = fitting.library(self, bands.device)

    def emulate(self, parameters: Tensor) -> Tensor:
        """AB magnitudes (n, m) of parameters (n, p)."""
        magnitudes: Tensor = self.network(parameters)
        return magnitudes

    def derivatives(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes, and their derivatives by parameters, (n, m, p)."""
        return self.network.derivatives(parameters)

    def errors(self, parameters: Tensor) -> Errors:
        """Covariance of the emulator's error."""
        return Errors(*(values[:, self.bands] for values in self._all_errors(parameters)))

    def of(self, data: Photometry) -> Photometry:
        """The bands of photometry in all bands of the trained emulator."""
        return data.of_bands(self.bands)

    def modes(self, data: Photometry) -> list[Mode]:
        """Maxima of the posterior of galaxies, photometry in all bands of the trained emulator.

        More than one where a redshift is free.
        """
        n_modes = fitting.N_MODES if bool(data.zred.isnan().any()) else 1
        own = self.of(data)
        begin = fitting.starts(self, own, self.library, n_modes)
        every = own.rows(torch.arange(len(own.flux)).repeat(n_modes))
        found = fitting.maximise(self, every, begin.flatten(0, 1))
        parts = zip(*(values.chunk(n_modes) for values in found), strict=True)
        return [Mode(*part) for part in parts]
