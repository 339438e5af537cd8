"""Star formation histories in seven bins of lookback time (Leja et al. 2019, ApJ 876, 3).

Bin 1 is the youngest. Its order is that of Prospector; other codes number from the oldest bin. A
history is given by six ratios, logsfr_ratio_j = log10(SFR_j / SFR_{j+1}), so that a positive first
ratio is a rising star formation rate.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orrery.physics.sps.cosmology import age_of_universe

N_BINS = 7
FIRST_EDGES = (0.03, 0.1)  # Gyr
LAST_BIN = 0.85  # the oldest bin begins at this share of the age of the universe
SFR_TIMESCALE = 0.1  # Gyr: star formation rates are means over this time


class StarFormation(NamedTuple):
    """A history per galaxy of 1 Msun formed, of any number of bins.

    ``edges`` (n, bins + 1), Gyr of lookback time, rising from 0; ``sfr`` (n, bins), Msun / Gyr,
    constant within a bin.
    """

    edges: Tensor
    sfr: Tensor

    def mass_formed(self, low: Tensor, high: Tensor) -> Tensor:
        """Mass, Msun, formed between lookback times ``low`` and ``high`` (k,), Gyr: (n, k)."""
        return self.mass_since(high) - self.mass_since(low)

    def mass_since(self, age: Tensor) -> Tensor:
        """Mass, Msun, (n, k), formed since lookback times, Gyr, (k,), or (n, k) by galaxy."""
        start, end = self.edges[:, :-1, None], self.edges[:, 1:, None]
        covered = torch.minimum(torch.maximum(age.unsqueeze(-2), start), end) - start
        return (covered * self.sfr[:, :, None]).sum(1)

    def lookback(self, share: float) -> Tensor:
        """Lookback time, Gyr, (n,), before which ``share`` of the mass had formed.

        0.5: of half the mass, t50; 0.9: when star formation came to its end, t90.
        """
        mass = self.sfr * self.edges.diff(dim=1)
        since = torch.nn.functional.pad(mass.cumsum(1), (1, 0))  # at the edges
        target = (1 - share) * since[:, -1:]
        i = torch.searchsorted(since, target).clamp(1, mass.shape[1]) - 1
        into = (target - since.gather(1, i)) / mass.gather(1, i).clamp_min(1e-30)
        start, end = self.edges.gather(1, i), self.edges.gather(1, i + 1)
        return torch.lerp(start, end, into.clamp(0, 1))[:, 0]

    def recent_sfr(self) -> Tensor:
        """Mean star formation rate of the last 100 Myr, Msun/yr per Msun formed, (n,)."""
        low, high = self.sfr.new_tensor([0.0]), self.sfr.new_tensor([SFR_TIMESCALE])
        return self.mass_formed(low, high)[:, 0] / SFR_TIMESCALE * 1e-9

    def mean_age(self) -> Tensor:
        """Mass-weighted age, Gyr, (n,)."""
        middle = 0.5 * (self.edges[:, 1:] + self.edges[:, :-1])
        return (self.sfr * self.edges.diff(dim=1) * middle).sum(1)

    def rows(self, index: Tensor | slice) -> "StarFormation":
        """The histories of some galaxies."""
        return StarFormation(self.edges[index], self.sfr[index])

    def to(self, target: Any) -> "StarFormation":
        """On a device, of a dtype, or as a tensor has them."""
        return StarFormation(self.edges.to(target), self.sfr.to(target))


def bin_edges(zred: Tensor) -> Tensor:
    """Edges of the bins at redshift ``zred`` (n,): (n, 8), Gyr of lookback time, rising.

    0, 30 and 100 Myr, four bins of equal width in log time to 0.85 of the age of the universe, and
    what is left.
    """
    age = age_of_universe(zred)[:, None]
    first = torch.stack([torch.zeros_like(zred), torch.full_like(zred, FIRST_EDGES[0])], 1)
    steps = torch.linspace(0, 1, N_BINS - 2, device=zred.device).to(zred)
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
