"""Star formation histories in seven bins of lookback time (Leja et al. 2019, ApJ 876, 3).

Bin 1 is the youngest. Its order is that of Prospector; other codes number from the oldest bin. A
history is given by six ratios, logsfr_ratio_j = log10(SFR_j / SFR_{j+1}), so that a positive first
ratio is a rising star formation rate.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.physics.sps.cosmology import age_of_universe

N_BINS = 7
FIRST_EDGES = (0.03, 0.1)  # Gyr
LAST_BIN = 0.85  # the oldest bin begins at this share of the age of the universe
SFR_TIMESCALE = 0.1  # Gyr: star formation rates are means over this time


class StarFormation(NamedTuple):
    """A history per galaxy of 1 Msun formed: edges (n, 8), Gyr of lookback time, SFR (n, 7)."""

    edges: Tensor
    sfr: Tensor  # Msun / Gyr

    def mass_formed(self, low: Tensor, high: Tensor) -> Tensor:
        """Mass, Msun, formed between lookback times ``low`` and ``high`` (k,), Gyr: (n, k)."""
        return self._cumulative(high) - self._cumulative(low)

    def _cumulative(self, age: Tensor) -> Tensor:
        start, end = self.edges[:, :-1, None], self.edges[:, 1:, None]
        covered = torch.minimum(torch.maximum(age, start), end) - start
        return (covered * self.sfr[:, :, None]).sum(1)

    def recent_sfr(self) -> Tensor:
        """Mean star formation rate of the last 100 Myr, Msun/yr per Msun formed, (n,)."""
        low, high = self.sfr.new_tensor([0.0]), self.sfr.new_tensor([SFR_TIMESCALE])
        return self.mass_formed(low, high)[:, 0] / SFR_TIMESCALE * 1e-9

    def mean_age(self) -> Tensor:
        """Mass-weighted age, Gyr, (n,)."""
        middle = 0.5 * (self.edges[:, 1:] + self.edges[:, :-1])
        return (self.sfr * self.edges.diff(dim=1) * middle).sum(1)


def bin_edges(zred: Tensor) -> Tensor:
    """Edges of the bins at redshift ``zred`` (n,): (n, 8), Gyr of lookback time, rising.

    0, 30 and 100 Myr, four bins of equal width in log time to 0.85 of the age of the universe, and
    what is left.
    """
    age = age_of_universe(zred)[:, None]
    first = torch.tensor([0.0, FIRST_EDGES[0]]).to(zred).expand(len(zred), 2)
    steps = torch.linspace(0, 1, N_BINS - 2).to(zred)
    start = math.log(FIRST_EDGES[1])
    middle = (start + steps * ((LAST_BIN * age).log() - start)).exp()
    return torch.cat([first, middle, age], 1)


def star_formation(ratios: Tensor, zred: Tensor) -> StarFormation:
    """History of 1 Msun formed from the six ``ratios`` (n, 6) at redshift ``zred`` (n,)."""
    edges = bin_edges(zred)
    log_sfr = torch.cat([torch.zeros_like(ratios[:, :1]), -ratios.cumsum(1)], 1)
    log_mass = log_sfr * math.log(10) + edges.diff(dim=1).log()
    log_sfr = log_sfr * math.log(10) - torch.logsumexp(log_mass, 1, keepdim=True)
    return StarFormation(edges, log_sfr.exp())
