"""The density of a period, by networks that leave a cluster out each, and who is no dwarf of it."""

import copy
import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from orrery.models.layers.ensemble import Linear
from orrery.models.layers.flows import SplineFlow
from orrery.physics.rotation import gyrochrones

FLOWS = {"mixture": None, "zuko_nsf": "zuko", "nflows_rqs": "nflows"}
AGE, AGE_SPREAD = 2.5, 0.8  # log10 Myr: what ages are standardised by
COLOUR, COLOUR_SPREAD = 1.6, 0.8  # mag
BREAK, BREAK_WIDTH = 0.75, 0.12  # mag: of Kraft's break, where periods rise steeply with colour
SPREAD = 0.6  # dex, what periods about a gyrochrone are standardised by
SPIN_DOWN = 0.5  # P ~ age^n of dwarfs: Skumanich (1972, ApJ 171, 565)
BINARY, EVOLVED = 0.3, 0.9  # mag above dwarfs: where binaries begin, and what is more than a binary
DOUBT = 0.01  # of the surest membership
LEAST_LOG_WIDTH = math.log(0.3)  # dex, of the periods of all others


class Rotation(nn.Module):
    """p(log10 P | log10 age, colour) of each member of an ensemble: small, smooth networks."""

    def __init__(
        self, members: int, flow: str, bins: int, components: int, width: int, depth: int
    ) -> None:
        super().__init__()
        backend = FLOWS[flow]
        self.flow = SplineFlow(bins if backend else 0, components, backend=backend or "zuko")
        sizes = [3, *[width] * depth]
        self.hidden = nn.ModuleList(Linear(members, a, b) for a, b in pairwise(sizes))
        self.head = Linear(members, width, self.flow.n_parameters, gain=0.3)
        self.head.bias.data += self.flow.initial_bias()
        self.members = members

    def only(self, chosen: Tensor) -> "Rotation":
        """The members of a mask (members,) alone."""
        part = copy.deepcopy(self)
        for parameter in part.parameters():
            parameter.data = parameter.data[chosen]
        part.members = int(chosen.sum())
        return part

    def log_prob(self, log_period: Tensor, log_age: Tensor, colour: Tensor) -> Tensor:
        """ln p per dex of dwarfs of a cluster, (members, ..., batch).

        ``log_age`` and ``colour`` (batch,), ``log_period`` (..., batch). The networks see an age
        and a colour and tell how periods lie about a gyrochrone, so that where there is no cluster
        they go on from it.
        """
        red, hot = (colour - COLOUR) / COLOUR_SPREAD, torch.tanh((colour - BREAK) / BREAK_WIDTH)
        x = torch.stack([(log_age - AGE) / AGE_SPREAD, red, hot], -1)
        x = x.expand(self.members, *x.shape)
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        parameters = self.head(x).float()
        y = (log_period - gyrochrone(log_age, colour)) / SPREAD
        if y.ndim > 1:
            parameters = parameters[:, None]
        return self.flow.log_prob(parameters, y) - math.log(SPREAD)


def gyrochrone(log_age: Tensor, colour: Tensor) -> Tensor:
    """log10 of the period of a slow rotator, d, roughly: what the networks start from.

    The colours of Angus et al. (2019) as in `physics.rotation.gyrochrones`, equal to it at 1 Gyr.
    """
    log_colour = colour.clamp(*gyrochrones.COLOUR_LIMITS).log10()
    found = torch.zeros_like(log_colour)
    for term in gyrochrones.COLOUR_TERMS:
        found = found * log_colour + term
    rise = torch.hypot(10**log_age, torch.full_like(log_age, gyrochrones.PLATEAU_MYR)).log10() - 3
    return found + 9 * gyrochrones.AGE_POWER + SPIN_DOWN * rise


class Contamination(nn.Module):
    """The probability that a star is a dwarf of its cluster, and the periods of all others.

    Catalogues' memberships are no probabilities of this: what they are worth is learned, and so is
    what it means that a star lies above or below the sequence of dwarfs.
    """

    def __init__(self, members: int) -> None:
        super().__init__()
        self.evidence = nn.Parameter(torch.tensor([0.0, 1, 0, 0, 0]).repeat(members, 1))
        self.others = nn.Parameter(torch.tensor([0.5, math.log(0.7)]).repeat(members, 1))

    def parts(self, log_period: Tensor, mem_prob: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        """ln of the probability of a dwarf of the cluster; ln p, per dex, of anything else.

        Each (members, batch), from (batch,). The second holds the probability of being something
        else, whose periods are normal in log P at any age. ``mem_prob`` as the catalogue has it;
        ``above``, mag above the sequence of dwarfs, 0 where that is not known.
        """
        steps = [above - BINARY, above - EVOLVED, -above - BINARY]
        sure = torch.logit(mem_prob, eps=DOUBT)
        features = [torch.ones_like(above), sure, *(-step.clamp_min(0) for step in steps)]
        logit = self.evidence @ torch.stack(features)
        mean, log_width = self.others[:, :1], self.others[:, 1:].clamp_min(LEAST_LOG_WIDTH)
        r = (log_period - mean) / log_width.exp()
        other = -0.5 * r.square() - log_width - 0.5 * math.log(2 * math.pi)
        return nn.functional.logsigmoid(logit), nn.functional.logsigmoid(-logit) + other
