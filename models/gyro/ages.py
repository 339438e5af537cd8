"""Tabulated densities of the period, and posteriors of the age from them."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from orrery.models.gyro.discrepancy import cumulative
from orrery.models.gyro.networks import Rotation
from orrery.models.layers import grid
from orrery.physics.rotation import gyrochrones
from orrery.progress import counted

COLOUR_GRID = torch.linspace(0.3, 3.6, 100)  # mag, 0.033 apart
LOG_PERIOD_GRID = torch.linspace(-1.3, 2.3, 241)  # log10 d, 0.015 apart
# Typical errors of the clusters' stars, included in the learned density; the excess of a star's
# error over them is convolved in.
TYPICAL_ERRORS = {"colour": 0.03, "log_period": 0.01}  # mag, dex
# Widths for which the table is convolved in advance; larger errors are taken as the last.
COLOUR_WIDTHS = torch.tensor([0.0, 0.05, 0.1, 0.2])  # mag
LOG_PERIOD_WIDTHS = torch.tensor([0.0, 0.03, 0.06, 0.1, 0.15])  # dex
MAX_ERRORS = {"colour": float(COLOUR_WIDTHS[-1]), "log_period": float(LOG_PERIOD_WIDTHS[-1])}
PERIODS_AT_ONCE = 24  # for which the table is filled
AGES_AT_ONCE = 15  # for which errors are convolved in
COLOURS_AT_ONCE = 10  # whose quantiles are computed
N_PERIOD_QUANTILES = 64  # that are kept, to draw from
SLOW_QUANTILE = 0.84  # of the periods: the slow sequence
SUN_LIFETIME_MYR, LIFETIME_MARGIN, LIFETIME_EDGE_DEX = 1e4, 1.1, 0.08  # as a dwarf


class DensityTable(nn.Module):
    """ln p(log10 P | log10 age, colour), the mean over an ensemble, on a grid of all three."""

    def __init__(self, ages: Tensor) -> None:
        super().__init__()
        self.ages: Tensor  # log10 Myr
        self.values: Tensor
        self.register_buffer("ages", ages, persistent=False)
        shape = (len(COLOUR_GRID), len(LOG_PERIOD_GRID), len(ages))
        self.register_buffer("values", torch.zeros(shape, dtype=torch.float16))
        self._cache: dict[str, Tensor] = {}  # derived from the values on first use

    @torch.no_grad()
    def fill(self, rotation: Rotation) -> None:
        """Tabulate the mean density of an ensemble."""
        n, device = len(self.ages), self.values.device
        periods = LOG_PERIOD_GRID.to(device)
        colours = COLOUR_GRID.to(device)
        for i in counted(range(len(colours)), "tabulating densities", "colours"):
            for k in range(0, len(periods), PERIODS_AT_ONCE):  # to bound memory
                part = slice(k, k + PERIODS_AT_ONCE)
                log_p = rotation.log_prob(periods[part, None], self.ages, colours[i].expand(n))
                mean = log_p.logsumexp(0) - math.log(len(log_p))
                self.values[i, part] = mean.clamp_min(-60).half()
        self._cache.clear()

    def log_likelihood(self, batch: Mapping[str, Tensor], colour_scatter: float = 0.0) -> Tensor:
        """ln p (batch, ages) of dwarfs; errors in excess of the typical ones are convolved in.

        ``colour_scatter``, mag: difference between the colour of a field star and that of a cluster
        star of its mass. Linear between the points of the table and, in the variances, between its
        widths.
        """
        axes = [
            interpolation(batch["colour"], COLOUR_GRID),
            interpolation(batch["log_period"], LOG_PERIOD_GRID),
            interpolation(
                _excess_variance(batch, "colour") + colour_scatter**2, COLOUR_WIDTHS.square()
            ),
            interpolation(_excess_variance(batch, "log_period"), LOG_PERIOD_WIDTHS.square()),
        ]
        total = torch.zeros(())
        for corner in range(16):
            weight, index = torch.ones(()), []
            for k, (low, fraction) in enumerate(axes):
                upper = corner >> k & 1
                index.append(low + upper)
                weight = weight * (fraction if upper else 1 - fraction)
            if (weight > 0).any():
                i, j, u, v = index
                known = weight > 0  # the others' tables may be empty: they count zero times
                table = self.convolved(u[known], v[known])
                total = total + table[u, v, i, j].float() * weight[:, None]
        return total

    def nearest(self, batch: Mapping[str, Tensor]) -> Tensor:
        """`log_likelihood` at all of `LOG_PERIOD_GRID`, by the nearest points of the table.

        (batch, periods, ages).
        """
        excess = {name: _excess_variance(batch, name) for name in TYPICAL_ERRORS}
        index = [
            (x[:, None] - points.to(x)).abs().argmin(1)
            for x, points in (
                (excess["colour"], COLOUR_WIDTHS.square()),
                (excess["log_period"], LOG_PERIOD_WIDTHS.square()),
                (batch["colour"], COLOUR_GRID),
            )
        ]
        return self.convolved(index[0], index[1])[index[0], index[1], index[2]]

    @torch.inference_mode(False)  # what is kept is written to again, in whatever mode
    def convolved(self, u: Tensor, v: Tensor) -> Tensor:
        """The table with errors, (colour widths, period widths, colours, periods, ages), half.

        Only that of the widths numbered ``u`` and ``v``, of one shape, is filled; each takes memory
        when it is first asked for.
        """
        if self._is_stale("convolved"):
            shape = (len(COLOUR_WIDTHS), len(LOG_PERIOD_WIDTHS), *self.values.shape)
            # of numpy, whose zeros take no memory before they are written to
            empty = torch.from_numpy(np.zeros(shape, np.float16)).to(self.values.device)
            self._cache["convolved"] = empty
            self._cache["is_filled"] = torch.zeros(shape[:2], dtype=torch.bool).to(empty.device)
        table, is_filled = self._cache["convolved"], self._cache["is_filled"]
        missing = ~is_filled[u, v]
        if missing.any():
            for i, k in torch.stack([u[missing], v[missing]], 1).unique(dim=0).tolist():
                for ages in torch.arange(len(self.ages)).split(AGES_AT_ONCE):  # to bound memory
                    part = slice(int(ages[0]), int(ages[-1]) + 1)
                    p = self.values[..., part].float().exp()
                    of_colour = _gaussian_kernel(COLOUR_GRID, COLOUR_WIDTHS[i], p)
                    of_period = _gaussian_kernel(LOG_PERIOD_GRID, LOG_PERIOD_WIDTHS[k], p)
                    wide = of_period @ (of_colour @ p.flatten(1)).view_as(p)
                    table[i, k, ..., part] = wide.log().clamp_min(-60).half()
                is_filled[i, k] = True
        return table

    @property
    def quantiles(self) -> Tensor:
        """Quantiles of log10 P, (colours, ages, quantiles), at the middles of equal steps."""
        if self._is_stale("quantiles"):
            parts = [self._quantiles(values) for values in self.values.split(COLOURS_AT_ONCE)]
            self._cache["quantiles"] = torch.cat(parts)
        return self._cache["quantiles"]

    def _quantiles(self, values: Tensor) -> Tensor:
        """Of ``values`` (colours, periods, ages)."""
        cdf = values.float().exp().cumsum(1).mT
        cdf = (cdf / cdf[..., -1:]).contiguous()  # (colours, ages, periods)
        steps = torch.arange(N_PERIOD_QUANTILES, device=cdf.device)
        levels = (steps + 0.5) / N_PERIOD_QUANTILES
        index = torch.searchsorted(cdf, levels.expand(*cdf.shape[:2], -1).contiguous())
        periods = LOG_PERIOD_GRID.to(cdf)
        return periods[index.clamp(max=len(periods) - 1)]

    def _is_stale(self, name: str) -> bool:
        cached = self._cache.get(name)
        return cached is None or cached.device != self.values.device

    def slow_sequence(self, colour: Tensor, log_age: Tensor) -> Tensor:
        """log10 of the period of stars on the slow sequence, d, (batch,)."""
        index = int(SLOW_QUANTILE * N_PERIOD_QUANTILES)
        return self.quantiles[self._nearest_points(colour, log_age)][..., index]

    def draw(self, colour: Tensor, log_ages: Tensor, u: Tensor) -> Tensor:
        """log10 P of stars of these colours (batch,) and ages (batch, n), by ``u`` in (0, 1)."""
        i, k = self._nearest_points(colour[:, None].expand_as(log_ages), log_ages)
        return self.quantiles[i, k, (u * N_PERIOD_QUANTILES).long()]

    def _nearest_points(self, colour: Tensor, log_age: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the nearest colour and age of the table."""
        indices = []
        for x, points in ((colour, COLOUR_GRID), (log_age, self.ages)):
            position = (x - points[0]) / (points[1] - points[0])
            indices.append(position.nan_to_num(0).round().clamp(0, len(points) - 1).long())
        return indices[0], indices[1]


def _excess_variance(batch: Mapping[str, Tensor], name: str) -> Tensor:
    return (batch[f"{name}_error"].square() - TYPICAL_ERRORS[name] ** 2).clamp_min(0)


def interpolation(x: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the point below, and fraction of the way to the next; clamped to the ends."""
    points = points.to(x)
    low = (torch.searchsorted(points, x, right=True) - 1).clamp(0, len(points) - 2)
    fraction = ((x - points[low]) / (points[low + 1] - points[low])).clamp(0, 1)
    return low, fraction


def _gaussian_kernel(points: Tensor, width: Tensor, like: Tensor) -> Tensor:
    """A normal of this width about each point, (points, points), whose rows sum to one."""
    if width == 0:
        return torch.eye(len(points)).to(like)
    deviation = (points[:, None] - points) / width
    return (-0.5 * deviation.square()).softmax(1).to(like)


def log_prior(edges: Tensor, kind: str, youngest: float, oldest: float) -> Tensor:
    """ln of the mass in each cell of log10 age, flat in it or in age, between two ages in Gyr."""
    inside = edges.clamp(math.log10(1e3 * youngest), math.log10(1e3 * oldest))
    mass = (inside if kind == "log_age" else 10**inside).diff()
    return (mass / mass.sum()).log()


def log_dwarf_weight(colour: Tensor, ages: Tensor) -> Tensor:
    """ln of a weight (batch, ages), unnormalised, that falls beyond the lifetime of dwarfs.

    ``colour`` (batch,), mag; ``ages`` (ages,), log10 Myr. Lifetimes are 10 Gyr (M/Msun)^-2.5,
    masses those of Pecaut & Mamajek (2013). The weight is one up to a tenth beyond the lifetime,
    and its edge is soft, for masses are uncertain and stars differ.
    """
    first, last = gyrochrones.DWARF_COLOUR[0], gyrochrones.DWARF_COLOUR[-1]
    mass = gyrochrones.dwarf_mass(colour.clamp(first, last).cpu().numpy())
    log_mass = torch.from_numpy(mass).to(colour).log10()
    end = math.log10(SUN_LIFETIME_MYR * LIFETIME_MARGIN) - 2.5 * log_mass
    return -(((ages - end[:, None]) / LIFETIME_EDGE_DEX).clamp_min(0).square())


def summaries(
    log_likelihood: Tensor, prior: Tensor, edges: Tensor, quantiles: Mapping[str, float]
) -> dict[str, Tensor]:
    """Quantiles and mean of age, Gyr, the evidence, and the cumulative posterior ``cdf``.

    ``log_likelihood`` and ``prior`` (batch, ages), ln; ``edges`` (ages + 1,), log10 Myr.
    """
    posterior = log_likelihood + prior
    evidence = posterior.logsumexp(1)
    mass = (posterior - evidence[:, None]).exp()
    cdf = cumulative(mass)
    levels = torch.tensor([list(quantiles.values())], device=cdf.device)
    ages = 10 ** (grid.quantile(cdf, edges, levels) - 3)
    columns = dict(zip(quantiles, ages.unbind(1), strict=True))
    cell_ages = 10 ** (grid.centres(edges) - 3)
    return {**columns, "age_mean": mass @ cell_ages, "log_evidence": evidence, "cdf": cdf}
