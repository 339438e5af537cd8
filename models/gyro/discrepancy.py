"""The error of a cluster's age besides those of its stars: what no single star tells.

All stars of a cluster share an error of their colours: of the reddening, the zero point, the
metallicity. Where periods rise steeply with colour it looks like an age, the more certain the more
stars there are; it is integrated out. What remains, the discrepancy, is measured by clusters whose
ages are inferred by networks that did not learn them.
"""

from typing import NamedTuple

import torch
from scipy.stats import t as student
from torch import Tensor, nn

from orrery.models.layers import grid

COLOUR_OFFSETS = torch.linspace(-0.12, 0.12, 9)  # mag, that the stars of a cluster may share
# Student's distribution of a cluster's age: degrees of freedom, half of its 68% in scales.
STUDENT_DOF = 3
STUDENT_HALF_68 = float(student.ppf(0.84, STUDENT_DOF))
YOUNGEST_MYR = 100.0  # age below which the discrepancy grows no further
# among which the discrepancy is sought
SCALES = torch.linspace(0.02, 0.16, 29, dtype=torch.float64)  # dex
TURNOVERS = torch.tensor([0.0, 150, 300, 450, 600, 900], dtype=torch.float64)  # Myr
MIN_CLUSTERS = 3
COVERAGE = 0.683


class Discrepancy(NamedTuple):
    """Half of the 68% of the error of a cluster's age; of Student's distribution."""

    scale: Tensor  # dex, of old clusters
    turnover: Tensor  # Myr: below this age it grows, for periods hardly change


NONE = Discrepancy(torch.zeros(()), torch.zeros(()))


def growth(log_age: Tensor, turnover: Tensor) -> Tensor:
    """Factor by which the discrepancy is larger at ``log_age``, log10 Myr, than of old clusters."""
    return (turnover / (10**log_age).clamp_min(YOUNGEST_MYR)).square().add(1).sqrt()


def without_colour_offset(log_p: Tensor, scatter: float) -> Tensor:
    """ln p (..., ages) with the common offset integrated out; ``log_p`` (..., offsets, ages).

    ``scatter``, mag: standard deviation of the offsets, which are those of `COLOUR_OFFSETS`.
    """
    if scatter == 0:
        return log_p[..., len(COLOUR_OFFSETS) // 2, :]
    log_weight = (-0.5 * (COLOUR_OFFSETS / scatter).square()).log_softmax(0).to(log_p)
    return (log_p + log_weight[:, None]).logsumexp(-2)


def widened(log_likelihood: Tensor, discrepancy: Discrepancy, edges: Tensor) -> Tensor:
    """The likelihood (..., ages), in float64, of an age that is off by the discrepancy.

    A cluster of the true age of a row appears at the age of a column: how far off it may be depends
    on its true age, so that an apparent age of 200 Myr is rather that of a younger cluster than of
    an older one.
    """
    mass, ages = log_likelihood.double().softmax(-1), grid.centres(edges).double()
    scale, turnover = (x.double().to(mass.device) for x in discrepancy)
    if scale == 0:
        return mass
    width = (scale / STUDENT_HALF_68 * growth(ages, turnover))[:, None]
    deviation = (ages[:, None] - ages) / width
    kernel = (1 + deviation.square() / STUDENT_DOF) ** (-0.5 * (STUDENT_DOF + 1)) / width
    return mass @ kernel.mT


def joint_cdf(
    log_likelihood: Tensor, prior: Tensor, discrepancy: Discrepancy, edges: Tensor
) -> Tensor:
    """Cumulative posterior (1, ages + 1) of stars of one age, whose ln p are summed: (ages,).

    The discrepancy widens the likelihood; ``prior``, ln of the mass of each cell, is applied
    afterwards, so that it stays sharp.
    """
    mass = widened(log_likelihood, discrepancy, edges) * prior.double().exp()
    return cumulative(mass[None] / mass.sum())


def cumulative(mass: Tensor) -> Tensor:
    """Cumulative sums at the edges, (batch, cells + 1), of the mass in cells, (batch, cells)."""
    return nn.functional.pad(mass.cumsum(1), (1, 0)).clamp(max=1).float()


def fitted_discrepancies(
    log_likelihood: Tensor, log_age: Tensor, prior: Tensor, edges: Tensor
) -> tuple[list[Discrepancy], Discrepancy]:
    """Of each cluster that from all others, and that from all clusters.

    ``log_likelihood`` (clusters, ages), by networks that hold the cluster out, as appears without a
    discrepancy; ``log_age`` (clusters,), log10 Myr, of the literature, whose errors are included.
    Clusters younger than the prior's begin do not count.

    The most likely turnover and scale; then the smallest scale that is no less with which the 68%
    intervals hold 68% of the clusters.
    """
    possible = 10**log_age > 1.2 * 10 ** edges[int(prior.isfinite().nonzero()[0])]
    candidates = [Discrepancy(scale, turnover) for turnover in TURNOVERS for scale in SCALES]
    ages = grid.centres(edges).double()
    cell = (log_age.double()[:, None] - ages).abs().argmin(1)
    log_p, covered = [], []
    for candidate in candidates:
        likelihood = widened(log_likelihood, candidate, edges)
        log_p.append(likelihood.gather(1, cell[:, None])[:, 0].log())
        mass = likelihood * prior.double().exp()
        cdf = cumulative(mass / mass.sum(1, keepdim=True))
        low, high = grid.quantile(cdf, edges, torch.tensor([[0.16, 0.84]])).T
        covered.append((low < log_age) & (log_age < high))
    scores, holds = torch.stack(log_p), torch.stack(covered).double()

    def fit(which: Tensor) -> Discrepancy:
        if int(which.sum()) < MIN_CLUSTERS:
            return NONE
        best = int(scores[:, which].sum(1).argmax())
        while best + 1 < len(candidates) and holds[best, which].mean() < COVERAGE:
            if candidates[best + 1].turnover != candidates[best].turnover:
                break
            best += 1
        return Discrepancy(*(x.float() for x in candidates[best]))

    others = ~torch.eye(len(log_age), dtype=torch.bool) & possible
    return [fit(mask) for mask in others], fit(possible)
