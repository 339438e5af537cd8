"""The error of a cluster's age besides those of its stars: what no single star tells.

All stars of a cluster share an error of their colours: of the reddening, the zero point, the
metallicity. Where periods rise steeply with colour it looks like an age, the more certain the more
stars there are; it is integrated out. What remains, the discrepancy, is measured by clusters whose
ages are inferred by networks that did not learn them.
"""

import torch
from scipy.stats import t as student
from torch import Tensor, nn

from orrery.models.layers import grid

COLOUR_OFFSETS = torch.linspace(-0.12, 0.12, 9)  # mag, that the stars of a cluster may share
# Student's distribution of a cluster's age: degrees of freedom, half of its 68% in scales.
STUDENT_DOF = 3
STUDENT_HALF_68 = float(student.ppf(0.84, STUDENT_DOF))
YOUNGEST_MYR = 100.0  # age below which the discrepancy grows no further
# Candidates: half of the 68% of the error of an old cluster's age, dex, and the age below which it
# grows, Myr, for periods of young stars hardly change.
SCALES = torch.linspace(0.02, 0.16, 29, dtype=torch.float64)
TURNOVERS = torch.tensor([0.0, 150, 300, 450, 600, 900], dtype=torch.float64)
N_CANDIDATES = len(SCALES) * len(TURNOVERS)
NONE = torch.zeros(N_CANDIDATES)  # no discrepancy; else a discrepancy is a weight per candidate
MIN_CLUSTERS = 3
COVERAGE = 0.683


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


def kernels(edges: Tensor) -> Tensor:
    """Of each candidate, (turnovers, scales, true ages, apparent ages), Student's densities.

    How far off an age may be depends on the true one: an apparent age of 200 Myr is rather that of
    a younger cluster than of an older one.
    """
    ages = grid.centres(edges).double()
    slope = growth(ages, TURNOVERS.to(ages)[:, None]) / STUDENT_HALF_68
    width = (SCALES.to(ages)[:, None] * slope[:, None])[..., None]
    deviation = (ages[:, None] - ages) / width
    return (1 + deviation.square() / STUDENT_DOF) ** (-0.5 * (STUDENT_DOF + 1)) / width


def widened(log_likelihood: Tensor, weights: Tensor, kernels: Tensor) -> Tensor:
    """The likelihood (..., ages), in float64, of an age that is off by the discrepancy."""
    mass = log_likelihood.double().softmax(-1)
    if not bool(weights.any()):
        return mass
    kernel = torch.tensordot(weights.double().view(kernels.shape[:2]), kernels, 2)
    return mass @ kernel.mT


def joint_cdf(log_likelihood: Tensor, prior: Tensor, weights: Tensor, edges: Tensor) -> Tensor:
    """Cumulative posterior (1, ages + 1) of stars of one age, whose ln p are summed: (ages,).

    The discrepancy, ``weights`` (candidates,), widens the likelihood; ``prior``, ln of the mass of
    each cell, is applied afterwards, so that it stays sharp.
    """
    mass = widened(log_likelihood, weights, kernels(edges)) * prior.double().exp()
    return cumulative(mass[None] / mass.sum())


def cumulative(mass: Tensor) -> Tensor:
    """Cumulative sums at the edges, (batch, cells + 1), of the mass in cells, (batch, cells)."""
    return nn.functional.pad(mass.cumsum(1), (1, 0)).clamp(max=1).float()


def fitted_discrepancies(
    log_likelihood: Tensor, log_age: Tensor, prior: Tensor, edges: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights of the candidates: of each cluster from all others, (clusters, candidates), and from
    all clusters, (candidates,).

    ``log_likelihood`` (clusters, ages), by networks that hold the cluster out; ``log_age``
    (clusters,), log10 Myr, of the literature, whose errors are included. Clusters younger than the
    prior's begin do not count.

    The posterior of the candidates, flat before; where the 68% intervals then hold less than 68% of
    the clusters, with larger scales until they do.
    """
    possible = 10**log_age > 1.2 * 10 ** edges[int(prior.isfinite().nonzero()[0])]
    cell = (log_age.double()[:, None] - grid.centres(edges).double()).abs().argmin(1)
    table = kernels(edges)
    # likelihood of each cluster (turnovers, scales, clusters, ages) with each candidate alone
    likelihood = log_likelihood.double().softmax(-1) @ table.mT
    at_age = likelihood[:, :, torch.arange(len(log_age)), cell].log()

    def holds(weights: Tensor) -> Tensor:
        mass = torch.tensordot(weights, likelihood, 2) * prior.double().exp()
        cdf = cumulative(mass / mass.sum(1, keepdim=True))
        low, high = grid.quantile(cdf, edges, torch.tensor([[0.16, 0.84]])).T
        return (low < log_age) & (log_age < high)

    def fit(which: Tensor) -> Tensor:
        if int(which.sum()) < MIN_CLUSTERS:
            return NONE
        weights = at_age[:, :, which].sum(2).flatten().softmax(0).view(table.shape[:2])
        for _ in SCALES:
            if holds(weights)[which].double().mean() >= COVERAGE:
                break
            last = weights[:, -2:].sum(1, keepdim=True)  # a step up, at the end none
            weights = torch.cat([torch.zeros_like(last), weights[:, :-2], last], 1)
        return weights.flatten().float()

    others = ~torch.eye(len(log_age), dtype=torch.bool) & possible
    return torch.stack([fit(mask) for mask in others]), fit(possible)


def mean_scale_and_turnover(weights: Tensor) -> tuple[float, float]:
    """Of a discrepancy: dex, and Myr."""
    by_candidate = weights.double().cpu().view(len(TURNOVERS), len(SCALES))
    scale, turnover = by_candidate.sum(0) @ SCALES, by_candidate.sum(1) @ TURNOVERS
    return float(scale), float(turnover)
