"""Extreme deconvolution (Bovy, Hogg & Roweis 2011): Gaussians by expectation maximisation.

The baseline of `abundances`, and where its own fit starts. Full covariances, noise of every star,
missing elements, and limits, whose truncated moments take the place of the measurement's.
"""

import math

import torch
from torch import Tensor

from orrery.models.abundances.mixture import Mixture, Stars, log_density, posterior

SMALLEST_VARIANCE = 1e-4  # dex^2, of any direction of a Gaussian
AT_ONCE = 1000  # stars of a step that are held in memory
TOLERANCE = 1e-4  # nat per star, of the mean likelihood between steps: converged
PRIOR_STARS = (
    5.0  # weight of the shared covariance in each Gaussian's (Bovy et al. 2011, section 3)
)


def double(stars: Stars) -> Stars:
    return stars.of_type(torch.float64)


def fit(stars: Stars, n_components: int, seed: int = 0, steps: int = 200) -> Mixture:
    """The mixture of ``n_components`` Gaussians of maximum likelihood, float64."""
    stars = double(stars)
    mixture = initial(stars, n_components, seed)
    shared = mixture.covariance()[0]
    before = -math.inf
    for _ in range(steps):
        now, mixture = _step(mixture, stars, shared)
        if now - before < TOLERANCE:
            break
        before = now
    return mixture


def initial(stars: Stars, n_components: int, seed: int = 0) -> Mixture:
    """Gaussians about random stars, with the covariance of all."""
    k = stars.value.shape[1]
    known = stars.measured
    count = known.sum(0).clamp(min=1)
    mean = torch.where(known, stars.value, 0.0).sum(0) / count
    residual = torch.where(known, stars.value - mean, 0.0)
    variance = (residual.square().sum(0) / count).clamp(min=0.01)
    one = of_covariances(torch.zeros(1).to(mean), mean[None], torch.diag(variance)[None])
    for _ in range(20):
        one = _step(one, stars, one.covariance()[0])[1]
    if n_components == 1:
        return one
    generator = torch.Generator().manual_seed(seed)
    state = posterior(one, stars)
    x = one.mean[0] + state.mean[:, 0, :k] @ one.factors[0].mT
    chosen = torch.randperm(stars.n, generator=generator)[:n_components]
    spare = n_components - len(chosen)
    means = torch.cat([x[chosen], one.mean.expand(spare, -1)])
    covariance = 0.5 * one.covariance().expand(n_components, -1, -1)
    return of_covariances(
        torch.full((n_components,), -math.log(n_components)).to(x), means, covariance
    )


def of_covariances(log_weight: Tensor, mean: Tensor, covariance: Tensor) -> Mixture:
    """Gaussians of any covariance (K, k, k) as factor analysers of k factors."""
    floor = SMALLEST_VARIANCE * torch.eye(mean.shape[1]).to(mean)
    factors = torch.linalg.cholesky(covariance + floor)
    return Mixture(log_weight, mean, factors, torch.full_like(mean, 1e-8))


def _step(mixture: Mixture, stars: Stars, shared: Tensor) -> tuple[float, Mixture]:
    """(mean log likelihood before, mixture after) a step of expectation maximisation."""
    k = stars.value.shape[1]
    sums: list[Tensor] = []
    for rows in torch.arange(stars.n).split(AT_ONCE):
        state = posterior(mixture, stars.select(rows))
        weight = state.weight  # (n, K)
        u, P = state.mean[..., :k], state.covariance[..., :k, :k]
        part = [
            state.log_density.sum(),
            weight.sum(0),
            torch.einsum("nc,ncq->cq", weight, u),
            torch.einsum("nc,ncqp->cqp", weight, P + u[..., :, None] * u[..., None, :]),
        ]
        sums = [a + b for a, b in zip(sums, part, strict=True)] if sums else part
    log_likelihood, total, first, second = sums
    total = total.clamp(min=1e-10)
    mean_u = first / total[:, None]
    spread = second / total[:, None, None] - mean_u[:, :, None] * mean_u[:, None, :]
    W = mixture.factors
    mean = mixture.mean + torch.einsum("ceq,cq->ce", W, mean_u)
    covariance = W @ spread @ W.mT
    share = (total / (total + PRIOR_STARS))[:, None, None] if len(total) > 1 else 1.0
    covariance = share * covariance + (1 - share) * shared
    log_weight = (total / total.sum()).log()
    return float(log_likelihood) / stars.n, of_covariances(log_weight, mean, covariance)


def best_of(
    stars: Stars,
    validation: Stars,
    n_components: tuple[int, ...],
    seed: int = 0,
    steps: int = 200,
) -> Mixture:
    """Of mixtures of so many Gaussians, the one under which ``validation`` is likeliest."""
    validation = double(validation)
    fits = [fit(stars, n, seed, steps) for n in n_components]
    return max(fits, key=lambda mixture: float(log_density(mixture, validation).mean()))
