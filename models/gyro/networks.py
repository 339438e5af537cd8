"""Densities of the period: of dwarfs, by networks that hold a cluster out each, and of outliers."""

import copy
import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from orrery.models.layers.ensemble import Linear
from orrery.models.layers.flows import SplineFlow
from orrery.physics.rotation import gyrochrones

FLOWS = {"mixture": None, "zuko_nsf": "zuko", "nflows_rqs": "nflows"}
# What inputs and outputs of the networks are standardised by.
LOG_AGE_CENTRE, LOG_AGE_SCALE = 2.5, 0.8  # log10 Myr
COLOUR_CENTRE, COLOUR_SCALE = 1.6, 0.8  # mag
LOG_PERIOD_SCALE = 0.6  # dex, about a gyrochrone
KRAFT_BREAK, KRAFT_BREAK_WIDTH = 0.75, 0.12  # mag: where periods rise steeply with colour
SPIN_DOWN = 0.5  # P ~ age^n of dwarfs: Skumanich (1972, ApJ 171, 565)
MEMBERSHIP_LOGIT_EPS = 0.01  # memberships are clamped to between this and one minus this
MIN_LOG_WIDTH = math.log(0.3)  # of the dex of the periods of outliers


class Rotation(nn.Module):
    """p(log10 P | log10 age, colour) of each member of an ensemble of small, smooth networks.

    In: log10 age, Myr, and (BP-RP)_0, mag. Out: ln p per dex of the period, see `log_prob`.
    """

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

    def subset(self, mask: Tensor) -> "Rotation":
        """An ensemble of the members in ``mask`` (members,), bool."""
        part = copy.deepcopy(self)
        for parameter in part.parameters():
            parameter.data = parameter.data[mask]
        part.members = int(mask.sum())
        return part

    def log_prob(self, log_period: Tensor, log_age: Tensor, colour: Tensor) -> Tensor:
        """ln p per dex of dwarfs of a cluster, (members, ..., batch).

        ``log_age`` (log10 Myr) and ``colour`` (batch,), ``log_period`` (log10 d) (..., batch). The
        networks model the distribution of periods about a gyrochrone, so that they extrapolate
        along it where there is no cluster.
        """
        red = (colour - COLOUR_CENTRE) / COLOUR_SCALE
        hot = torch.tanh((colour - KRAFT_BREAK) / KRAFT_BREAK_WIDTH)
        x = torch.stack([(log_age - LOG_AGE_CENTRE) / LOG_AGE_SCALE, red, hot], -1)
        x = x.expand(self.members, *x.shape)
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        parameters = self.head(x).float()
        y = (log_period - gyrochrone(log_age, colour)) / LOG_PERIOD_SCALE
        if y.ndim > 1:
            parameters = parameters[:, None]
        return self.flow.log_prob(parameters, y) - math.log(LOG_PERIOD_SCALE)


def gyrochrone(log_age: Tensor, colour: Tensor) -> Tensor:
    """log10 of the period of a slow rotator, d, approximately: the networks' starting point.

    ``log_age`` in log10 Myr, ``colour`` in mag. The colour dependence is that of Angus et al.
    (2019) as in `physics.rotation.gyrochrones`, equal to it at 1 Gyr.
    """
    log_colour = colour.clamp(*gyrochrones.COLOUR_LIMITS).log10()
    log_period = torch.zeros_like(log_colour)
    for term in gyrochrones.COLOUR_TERMS:
        log_period = log_period * log_colour + term
    rise = torch.hypot(10**log_age, torch.full_like(log_age, gyrochrones.PLATEAU_MYR)).log10() - 3
    return log_period + 9 * gyrochrones.AGE_POWER + SPIN_DOWN * rise


class Contamination(nn.Module):
    """Probability that a star is a dwarf of its cluster, and the density of periods of all others.

    A catalogue's membership is no such probability: a logistic regression on it, and on the
    distance from the sequence of dwarfs in magnitude, is learned.
    """

    def __init__(self, members: int) -> None:
        super().__init__()
        self.logit_coefficients = nn.Parameter(torch.tensor([0.0, 1, 0, 0, 0]).repeat(members, 1))
        # mean and ln of the width of log10 P
        self.outlier_period = nn.Parameter(torch.tensor([0.5, math.log(0.7)]).repeat(members, 1))

    def log_parts(
        self, log_period: Tensor, mem_prob: Tensor, overluminosity: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ln of the probability of a dwarf of the cluster; ln p, per dex, of an outlier.

        Each (members, batch), from (batch,). The second includes the probability of an outlier,
        whose periods are log-normal at any age. ``mem_prob``: membership in the catalogue;
        ``overluminosity``: mag above the sequence of dwarfs, 0 where unknown.
        """
        binary, evolved = gyrochrones.BINARY_MAG, gyrochrones.EVOLVED_MAG
        steps = [overluminosity - binary, overluminosity - evolved, -overluminosity - binary]
        membership = torch.logit(mem_prob, eps=MEMBERSHIP_LOGIT_EPS)
        ones = torch.ones_like(overluminosity)
        features = [ones, membership, *(-step.clamp_min(0) for step in steps)]
        logit = self.logit_coefficients @ torch.stack(features)
        mean, log_width = self.outlier_period[:, :1], self.outlier_period[:, 1:]
        log_width = log_width.clamp_min(MIN_LOG_WIDTH)
        r = (log_period - mean) / log_width.exp()
        outlier = -0.5 * r.square() - log_width - 0.5 * math.log(2 * math.pi)
        return nn.functional.logsigmoid(logit), nn.functional.logsigmoid(-logit) + outlier

    def added(
        self, log_p: Tensor, batch: Mapping[str, Tensor], members: Tensor | slice = slice(None)
    ) -> Tensor:
        """ln p (batch, ages) of stars; ``log_p`` as if all were dwarfs of their cluster.

        ``members``: those whose mean it is, a mask or a slice.
        """
        parts = self.log_parts(batch["log_period"], batch["mem_prob"], batch["overluminosity"])
        dwarf, outlier = (
            part[members].logsumexp(0) - math.log(len(part[members])) for part in parts
        )
        return torch.logaddexp(dwarf[:, None] + log_p, outlier[:, None])
