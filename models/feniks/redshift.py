"""The posterior of a galaxy's redshift on a dense grid: its modes, and how secure it is.

- `RedshiftPosterior`: ``z`` (k,), ``log_p`` (k,) (ln of the probability of each cell), and methods
  ``best(window)``, ``p_within(z, half)``, ``cumulative(z)`` (PIT), ``modes(window)``.
- ``nodes(low, high, step) -> Tensor``: ln(1 + z) at which galaxies are fitted.
- ``secure_threshold(p, right, share) -> float``; ``flag(p, threshold) -> str``.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.feniks.broad_lines import UNKNOWN, Broad

NODE_STEP = 0.02  # of ln(1 + z)
SECURE = 0.99  # of secure redshifts are right
TENTATIVE = 0.5
WINDOW = 0.01  # of redshift: half the width of a mode, and of "right"


class Mode(NamedTuple):
    """A mode of p(z): its redshift, probability, and the ends of the window."""

    z: float
    weight: float
    low: float
    high: float


class RedshiftPosterior(NamedTuple):
    """Probabilities of cells of equal width in ln(1 + z): centres ``z`` (k,), ``log_p`` (k,).

    ``broad``: the evidence of broad lines, over all redshifts.
    """

    z: Tensor
    log_p: Tensor
    broad: Broad = UNKNOWN

    def p_within(self, z: float, half: float = WINDOW) -> float:
        """Probability that the redshift is within ``half`` of z."""
        edges = torch.tensor([z - half, z + half], dtype=torch.float64)
        low, high = self.cumulative(edges).tolist()
        return high - low

    def edges(self) -> Tensor:
        """Of the cells, (k + 1,)."""
        log_ratio = torch.log1p(self.z)
        first = log_ratio[:1] - 0.5 * (log_ratio[1] - log_ratio[0])
        step = log_ratio[1] - log_ratio[0]
        return torch.expm1(torch.cat([first, log_ratio + 0.5 * step]))

    def cumulative(self, z: Tensor) -> Tensor:
        """Probability of a redshift below z (n,), linear within cells."""
        edges = self.edges()
        total = torch.nn.functional.pad(self.log_p.exp().cumsum(0), (1, 0))
        i = torch.searchsorted(edges, z).clamp(1, len(edges) - 1)
        share = (z - edges[i - 1]) / (edges[i] - edges[i - 1])
        return torch.lerp(total[i - 1], total[i], share.clamp(0, 1))

    def density(self, z: Tensor) -> Tensor:
        """p(z) (n,), per z, constant within cells."""
        edges = self.edges()
        i = torch.searchsorted(edges, z).clamp(1, len(edges) - 1) - 1
        inside = (z >= edges[0]) & (z <= edges[-1])
        return torch.where(inside, self.log_p[i].exp() / edges.diff()[i], 0.0)

    def best(self, half: float = WINDOW) -> float:
        """The redshift that has the most probability within ``half``: of that, the median."""
        mass = self.cumulative(self.z + half) - self.cumulative(self.z - half)
        z = self.z[mass.argmax()]
        low, high = self.cumulative(torch.stack([z - half, z + half]))
        return self.quantile(float(0.5 * (low + high)))

    def quantile(self, level: float) -> float:
        edges, total = self.edges(), self.log_p.exp().cumsum(0)
        i = int(torch.searchsorted(total, torch.tensor(level).to(total)).clamp_max(len(total) - 1))
        p = float(self.log_p[i].exp())
        share = (level - (float(total[i]) - p)) / max(p, 1e-300)
        return float(edges[i] + share * (edges[i + 1] - edges[i]))

    def modes(self, n: int = 3, half: float = WINDOW) -> list[Mode]:
        """Windows of ``half`` about redshifts, of the most probability, that do not overlap."""
        log_p, found = self.log_p.clone(), []
        for _ in range(n):
            part = RedshiftPosterior(self.z, log_p)
            z = part.best(half)
            weight = part.p_within(z, half)
            if weight < 1e-3:
                break
            found.append(Mode(z, weight, z - half, z + half))
            log_p = torch.where((self.z - z).abs() < 2 * half, -torch.inf, log_p)
        return found


def nodes(low: float, high: float, step: float = NODE_STEP) -> Tensor:
    """ln(1 + z) in steps of at most ``step``, float64."""
    start, end = math.log1p(low), math.log1p(high)
    n = max(1, math.ceil((end - start) / step))
    return start + (torch.arange(n, dtype=torch.float64) + 0.5) * (end - start) / n


def secure_threshold(p: Tensor, right: Tensor, share: float = SECURE) -> float:
    """The lowest probability of the best window, of those p (n,), above which redshifts are secure.

    Of mocks at or above it a ``share`` is ``right`` (n,). Infinity if there is none such.
    """
    order = p.argsort(descending=True)
    rate = right[order].double().cumsum(0) / torch.arange(1, len(p) + 1)
    fine = (rate >= share).nonzero()[:, 0]
    return float(p[order[fine[-1]]]) if len(fine) else math.inf


def flag(p: float, threshold: float) -> str:
    """ "secure", "tentative" (more likely right than not) or "none" of a window's probability."""
    if p >= threshold:
        return "secure"
    return "tentative" if p > TENTATIVE else "none"
