"""Densities looked up in a table, and what they tell of an age."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from orrery.models.gyro.networks import Rotation
from orrery.models.layers import grid
from orrery.physics.rotation import gyrochrones

COLOURS = torch.linspace(0.3, 3.6, 100)  # mag, 0.033 apart
PERIODS = torch.linspace(-1.3, 2.3, 241)  # log10 d, 0.015 apart
# Errors that the clusters' own periods hold already, beyond which a star's are convolved in.
TYPICAL = {"colour": 0.03, "log_period": 0.01}
# Widths for which the table is convolved beforehand; beyond the last an error is taken as that.
COLOUR_WIDTHS = torch.tensor([0.0, 0.05, 0.1, 0.2])  # mag
PERIOD_WIDTHS = torch.tensor([0.0, 0.03, 0.06, 0.1, 0.15])  # dex
LARGEST = {"colour": float(COLOUR_WIDTHS[-1]), "log_period": float(PERIOD_WIDTHS[-1])}
YOUNG_MYR = 40.0
AT_ONCE = 24  # periods for which the table is filled
LEVELS = 64  # quantiles of the periods that are kept, to draw from
LIFETIME_MYR, LONGER, EDGE = 1e4, 1.1, 0.08  # of the Sun as a dwarf; dex
DOF, REACH_68 = 3, 1.197  # of Student's distribution of a cluster's age; its 68%, in scales
SLOW = 0.84  # quantile of the periods that stands for the slow sequence


class Table(nn.Module):
    """ln p(log10 P | log10 age, colour), the mean over an ensemble, on a grid of all three."""

    def __init__(self, ages: Tensor) -> None:
        super().__init__()
        self.ages: Tensor
        self.values: Tensor
        self.register_buffer("ages", ages, persistent=False)
        shape = (len(COLOURS), len(PERIODS), len(ages))
        self.register_buffer("values", torch.zeros(shape, dtype=torch.float16))
        self._made: dict[str, Tensor] = {}  # what follows from the values, when first asked for

    @torch.no_grad()
    def fill(self, rotation: Rotation) -> None:
        n, device = len(self.ages), self.values.device
        periods = PERIODS.to(device)
        for i, colour in enumerate(COLOURS.to(device)):
            for k in range(0, len(periods), AT_ONCE):  # of memory that is given back and taken anew
                few = slice(k, k + AT_ONCE)
                log_p = rotation.log_prob(periods[few, None], self.ages, colour.expand(n))
                mean = log_p.logsumexp(0) - math.log(len(log_p))
                self.values[i, few] = mean.clamp_min(-60).half()
        self._made.clear()

    def log_likelihood(self, batch: Mapping[str, Tensor], field: float = 0.0) -> Tensor:
        """ln p (batch, ages) of dwarfs, whose errors beyond the typical ones are convolved in.

        ``field``, mag: what a star's colour may differ by from that of a cluster's of its mass.
        Linear between the points of the table and, in the variances, between its widths.
        """
        places = [
            _between(batch["colour"], COLOURS),
            _between(batch["log_period"], PERIODS),
            _between(_excess(batch, "colour") + field**2, COLOUR_WIDTHS.square()),
            _between(_excess(batch, "log_period"), PERIOD_WIDTHS.square()),
        ]
        total = torch.zeros(())
        for corner in range(16):
            weight, index = torch.ones(()), []
            for k, (low, share) in enumerate(places):
                upper = corner >> k & 1
                index.append(low + upper)
                weight = weight * (share if upper else 1 - share)
            if (weight > 0).any():
                i, j, u, v = index
                total = total + self.convolved[u, v, i, j].float() * weight[:, None]
        return total

    def nearest(self, batch: Mapping[str, Tensor]) -> Tensor:
        """`log_likelihood` at all `PERIODS`, by the nearest points: (batch, periods, ages)."""
        excess = {name: _excess(batch, name) for name in TYPICAL}
        found = [
            (x[:, None] - points.to(x)).abs().argmin(1)
            for x, points in (
                (excess["colour"], COLOUR_WIDTHS.square()),
                (excess["log_period"], PERIOD_WIDTHS.square()),
                (batch["colour"], COLOURS),
            )
        ]
        return self.convolved[found[0], found[1], found[2]]

    @property
    def convolved(self) -> Tensor:
        """The table as seen with errors, (colour widths, period widths, colours, periods, ages)."""
        if self._stale("convolved"):
            p = self.values.float().exp()
            wide = torch.stack([(_kernel(COLOURS, w, p) @ p.flatten(1)).view_as(p)
                                for w in COLOUR_WIDTHS])  # fmt: skip
            both = [_kernel(PERIODS, w, p) @ wide for w in PERIOD_WIDTHS]
            self._made["convolved"] = torch.stack(both, 1).log().clamp_min(-60).half()
        return self._made["convolved"]

    @property
    def quantiles(self) -> Tensor:
        """Of log10 P at each colour and age, the centres of ``LEVELS`` equal shares."""
        if self._stale("quantiles"):
            cdf = self.values.float().exp().cumsum(1).mT
            cdf = (cdf / cdf[..., -1:]).contiguous()  # (colours, ages, periods)
            levels = (torch.arange(LEVELS, device=cdf.device) + 0.5) / LEVELS
            found = torch.searchsorted(cdf, levels.expand(*cdf.shape[:2], -1).contiguous())
            self._made["quantiles"] = PERIODS.to(cdf)[found.clamp(max=len(PERIODS) - 1)]
        return self._made["quantiles"]

    def _stale(self, name: str) -> bool:
        made = self._made.get(name)
        return made is None or made.device != self.values.device

    def slow_sequence(self, colour: Tensor, log_age: Tensor) -> Tensor:
        """log10 of the period of stars on the slow sequence, (batch,)."""
        return self.quantiles[self._cells(colour, log_age)][..., int(SLOW * LEVELS)]

    def draw(self, colour: Tensor, log_ages: Tensor, u: Tensor) -> Tensor:
        """log10 P of stars of these colours (batch,) and ages (batch, n), by ``u`` in (0, 1)."""
        i, k = self._cells(colour[:, None].expand_as(log_ages), log_ages)
        return self.quantiles[i, k, (u * LEVELS).long()]

    def _cells(self, colour: Tensor, log_age: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest points of the table."""
        found = []
        for x, points in ((colour, COLOURS), (log_age, self.ages)):
            place = (x - points[0]) / (points[1] - points[0])
            found.append(place.nan_to_num(0).round().clamp(0, len(points) - 1).long())
        return found[0], found[1]


def _excess(batch: Mapping[str, Tensor], name: str) -> Tensor:
    """Variance beyond the typical."""
    return (batch[f"{name}_error"].square() - TYPICAL[name] ** 2).clamp_min(0)


def _between(x: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The point below, and the share of the way to the next; the ends beyond them."""
    points = points.to(x)
    low = (torch.searchsorted(points, x, right=True) - 1).clamp(0, len(points) - 2)
    share = ((x - points[low]) / (points[low + 1] - points[low])).clamp(0, 1)
    return low, share


def _kernel(points: Tensor, width: Tensor, like: Tensor) -> Tensor:
    """A normal of this width about each point, (points, points), of unit sum."""
    if width == 0:
        return torch.eye(len(points)).to(like)
    apart = (points[:, None] - points) / width
    return (-0.5 * apart.square()).softmax(1).to(like)


def log_prior(edges: Tensor, kind: str, youngest: float, oldest: float) -> Tensor:
    """ln of the mass in each cell of log10 age, flat in it or in age, between two ages in Gyr."""
    inside = edges.clamp(math.log10(1e3 * youngest), math.log10(1e3 * oldest))
    mass = (inside if kind == "log_age" else 10**inside).diff()
    return (mass / mass.sum()).log()


def log_alive(colour: Tensor, ages: Tensor) -> Tensor:
    """ln of a weight (batch, ages) that falls off where no dwarf of this colour is left.

    Lifetimes are 10 Gyr (M/Msun)^-2.5, masses those of Pecaut & Mamajek (2013); a tenth beyond is
    free, and the edge soft, for masses are uncertain and stars are not all alike.
    """
    first, last = gyrochrones.DWARF_COLOUR[0], gyrochrones.DWARF_COLOUR[-1]
    mass = gyrochrones.dwarf_mass(colour.clamp(first, last).cpu().numpy())
    log_mass = torch.from_numpy(mass).to(colour).log10()
    end = math.log10(LIFETIME_MYR * LONGER) - 2.5 * log_mass
    return -(((ages - end[:, None]) / EDGE).clamp_min(0).square())


def stretched(log_age: Tensor) -> Tensor:
    """By how much the discrepancy of a cluster's age grows where stars do not yet spin down freely.

    Periods below the plateau of `physics.rotation.gyrochrones` hardly change with age, but shares
    of fast rotators do: the square root of what the gyrochrone's slope alone would give. Clusters
    of 15 to 45 Myr, left out, are off by as much as this gives at ``YOUNG_MYR``, and it grows no
    further.
    """
    age = (10**log_age).clamp_min(YOUNG_MYR)
    return (gyrochrones.PLATEAU_MYR / age).square().add(1).sqrt()


def joint(log_likelihood: Tensor, prior: Tensor, discrepancy: Tensor, edges: Tensor) -> Tensor:
    """Cumulative posterior (1, ages + 1) of stars of one age, whose ln p are added up: (ages,).

    ``discrepancy``, dex: half of the 68% of the model's own error, the same for all stars of a
    cluster, `stretched` at its age, of Student's distribution. It widens the likelihood; the prior
    comes after, and ends where it ends.
    """
    mass, ages = log_likelihood.double().softmax(0), grid.centres(edges).double()
    if discrepancy > 0:
        middle = grid.quantile(cumulative(mass[None]), edges, torch.tensor([[0.5]]))[0]
        scale = (discrepancy / REACH_68 * stretched(middle)).double()
        off = (ages[:, None] - ages) / scale
        kernel = (1 + off.square() / DOF) ** (-0.5 * (DOF + 1))
        mass = kernel @ mass
    mass = mass * prior.double().exp()
    return cumulative(mass[None] / mass.sum())


def cumulative(mass: Tensor) -> Tensor:
    return nn.functional.pad(mass.cumsum(1), (1, 0)).clamp(max=1).float()


def summaries(
    log_likelihood: Tensor, prior: Tensor, edges: Tensor, quantiles: Mapping[str, float]
) -> dict[str, Tensor]:
    """Quantiles and mean of age, Gyr, the evidence, and the cumulative posterior ``cdf``."""
    posterior = log_likelihood + prior
    evidence = posterior.logsumexp(1)
    mass = (posterior - evidence[:, None]).exp()
    cdf = cumulative(mass)
    levels = torch.tensor([list(quantiles.values())], device=cdf.device)
    found = 10 ** (grid.quantile(cdf, edges, levels) - 3)
    ages = 10 ** (grid.centres(edges) - 3)
    rows = dict(zip(quantiles, found.unbind(1), strict=True))
    return {**rows, "age_mean": mass @ ages, "log_evidence": evidence, "cdf": cdf}
