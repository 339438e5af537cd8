"""Stars of any age from a network of spectra that knows the light of bins of star formation.

The light of a bin follows from its edges, and these from the redshift alone. At the network's
highest redshift the bins are narrow, and the oldest bin is so at any redshift: by these the light
of stars of one age is known at many ages, between which it is interpolated.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.physics.sps.cosmology import age_of_universe
from orrery.physics.sps.star_formation import FIRST_EDGES, LAST_BIN, StarFormation, bin_edges

# Gyr: components of a network of these ages are the same at every redshift
YOUNG_EDGES = (0.0, 0.01, *FIRST_EDGES)
OLDEST = 14.0
N_STEPS = 100  # in ln age, from 100 Myr, of which each is as stars of one age
AGE_STEP = 1.15  # ratio of the ages of one oldest bin and the next
FADING = 0.8  # light of stars fades about as age^-0.8


class Node(NamedTuple):
    """A component of a network at a redshift, as the light of stars of an ``age``, Gyr."""

    age: float
    zred: float
    component: int


@functools.lru_cache(maxsize=8)
def nodes(z_low: float, z_high: float) -> tuple[Node, ...]:
    """Of a network of redshifts ``z_low`` to ``z_high``: of rising ages, above 100 Myr."""
    edges = bin_edges(torch.tensor([z_high], dtype=torch.float64))[0, len(FIRST_EDGES) :]
    pairs = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    found = [
        Node(_typical(*pair), z_high, len(YOUNG_EDGES) - 1 + i) for i, pair in enumerate(pairs)
    ]
    z = torch.linspace(z_high, z_low, 4001, dtype=torch.float64)
    ages = age_of_universe(z)
    n = int(math.log(float(ages[-1] / ages[0])) / math.log(AGE_STEP))
    wanted = ages[0] * AGE_STEP ** torch.arange(1, n + 1)
    for place in torch.searchsorted(ages, wanted).clamp_max(len(z) - 1).tolist():
        age = float(ages[place])
        found.append(Node(_typical(LAST_BIN * age, age), float(z[place]), found[-1].component))
    return tuple(found)


def _typical(low: float, high: float) -> float:
    """The age of stars that are as bright as those of ages between ``low`` and ``high``, Gyr."""
    power = 1 - FADING
    return float(((high**power - low**power) / power / (high - low)) ** (-1 / FADING))


def mass_at_nodes(history: StarFormation, age: Tensor) -> Tensor:
    """Mass (n, nodes), of 1 Msun formed, by ``age`` (nodes,), of stars older than 100 Myr.

    Two nodes share the mass between them, linearly in age^-0.8, so that their light is that of the
    stars; beyond all nodes mass is at the nearest.
    """
    steps = torch.linspace(math.log(YOUNG_EDGES[-1]), math.log(OLDEST), N_STEPS + 1)
    edges = steps.exp().to(age)
    mass = history.mass_since(edges).diff(dim=1)
    middle = 0.5 * (edges[1:] + edges[:-1])
    i = torch.searchsorted(age, middle).clamp(1, len(age) - 1) - 1
    low, high = (age**-FADING)[i], (age**-FADING)[i + 1]
    share = ((middle**-FADING - low) / (high - low)).clamp(0, 1)
    weight = torch.zeros(len(mass), len(age)).to(mass)
    weight = weight.index_add(1, i, mass * (1 - share))
    return weight.index_add(1, i + 1, mass * share)
