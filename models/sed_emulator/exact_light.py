"""The light of galaxies' components, exact: what `SpectrumNetwork` learns from the populations."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from orrery.physics.sps.attenuation import BIRTH_CLOUD_AGE
from orrery.physics.sps.observed import LYMAN_LIMIT
from orrery.physics.sps.population import (
    N_YOUNG,
    Population,
    age_edges,
    fine_wavelengths,
    wavelengths,
)
from orrery.physics.sps.star_formation import bin_edges
from orrery.physics.sps.synthesis import linear_weights, nebular_continuum


class Populations:
    """Light of the components of galaxies, exact: sums of tables of populations.

    ``project`` (..., pixels) -> (..., q): a linear function of spectra, by default themselves.
    """

    def __init__(
        self,
        population: Population,
        nebular: bool,
        project: Callable[[Tensor], Tensor] = lambda light: light,
    ) -> None:
        stars = torch.cat([population.luminosity, population.fine], -1)
        edges = age_edges().float()[: N_YOUNG + 1].clamp_max(BIRTH_CLOUD_AGE)
        share = (edges.diff() / BIRTH_CLOUD_AGE)[:, None]  # of stars in birth clouds, by age
        young = (stars[:, :N_YOUNG] * share).sum(1)
        self.nebular = nebular
        self.metallicity, self.log_u = population.metallicity, population.log_u
        if nebular:  # the gas takes all ionising photons of young stars
            young[..., torch.cat([wavelengths(), fine_wavelengths()]) < LYMAN_LIMIT] = 0
            gas = (nebular_continuum(population) * share).sum(2)
            self.gas = project(gas)
            self.lines = (population.lines * share).sum(2)
        self.stars, self.young = project(stars), project(young)

    def components(self, p: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Light (n, components, q) of 1 Msun formed in each, and lines (n, lines), Lsun."""
        metals = linear_weights(10 ** p["logzsol"], self.metallicity.to(p["logzsol"]))
        by_age = torch.einsum("nm,maq->naq", metals, self.stars)
        light = torch.einsum("nja,naq->njq", _age_shares(p["zred"]), by_age)
        light = torch.cat([(metals @ self.young)[:, None], light], 1)
        if not self.nebular:
            return light, light.new_zeros(len(light), 0)
        metals = linear_weights(10 ** p["gas_logz"], self.metallicity.to(metals))
        ions = linear_weights(p["gas_logu"], self.log_u.to(metals))
        weight = (metals[:, :, None] * ions[:, None]).flatten(1)
        gas = weight @ self.gas.flatten(0, 1)
        return torch.cat([light, gas[:, None]], 1), weight @ self.lines.flatten(0, 1)


def _age_shares(zred: Tensor) -> Tensor:
    """Of the mass of bins of star formation, without birth clouds: shares by age, (n, 7, ages)."""
    edges, ages = bin_edges(zred), age_edges().to(zred)
    low = torch.cat([torch.full_like(edges[:, :1], BIRTH_CLOUD_AGE), edges[:, 1:-1]], 1)[..., None]
    high = edges[:, 1:, None]
    overlap = torch.minimum(high, ages[1:]) - torch.maximum(low, ages[:-1])
    return overlap.clamp_min(0) / (high - low)
