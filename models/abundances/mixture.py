"""A mixture of Gaussians over abundances, of stars with noise, missing elements and limits.

Each Gaussian is a factor analyser (Ghahramani & Hinton 1996): abundances of component c are
``mean + factors @ u + e`` with q standard normal factors u and independent e. A star's noise is of
the same form: independent errors, and responses to r common causes, such as its temperature. All
elements are then independent given q + r normal numbers, so that noise, marginals and conditionals
are closed form, at a cost linear in the number of elements.

A limit is the reading of a Gaussian measurement of which only the sign is known. The probability of
one is exact; of several in one star each is taken in turn, after which the factors are replaced
by a Gaussian of the same moments (assumed-density filtering; Minka 2001).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LOG_2PI = float(np.log(2 * np.pi))
UPPER, LOWER, MEASURED = 1, -1, 0  # of `Stars.limit`


class Mixture(NamedTuple):
    """K Gaussians over k elements; covariances are ``factors @ factors.T + diag(variance)``."""

    log_weight: Tensor  # (K,), or (n, K) where each star has its own
    mean: Tensor  # (K, k), [X/H], dex
    factors: Tensor  # (K, k, q), dex
    variance: Tensor  # (K, k), dex^2

    def covariance(self) -> Tensor:
        """(K, k, k), dex^2."""
        return self.factors @ self.factors.mT + torch.diag_embed(self.variance)


class Stars(NamedTuple):
    """Measured abundances of n stars; the noise is ``diag(variance) + responses @ responses.T``.

    A limit is that of a measurement with an error tau: P(limit L | a) = Phi((L - a) / tau).
    """

    value: Tensor  # (n, k), [X/H], dex; a limit's value; NaN: not measured
    variance: Tensor  # (n, k), dex^2; tau^2 of a limit
    responses: Tensor  # (n, k, r), dex, to r causes of one standard deviation each
    limit: Tensor  # (n, k), int: 1 upper, -1 lower limit, 0 measured

    @property
    def n(self) -> int:
        return len(self.value)

    @property
    def measured(self) -> Tensor:
        """(n, k), where there is a value that is no limit."""
        return ~self.value.isnan() & (self.limit == MEASURED)

    @property
    def limited(self) -> Tensor:
        """(n, k), where there is a limit."""
        return ~self.value.isnan() & (self.limit != MEASURED)

    def select(self, rows: Tensor) -> "Stars":
        return Stars(*(part[rows] for part in self))

    def of_type(self, dtype: torch.dtype) -> "Stars":
        """In another precision."""
        value, variance, responses, limit = self
        return Stars(value.to(dtype), variance.to(dtype), responses.to(dtype), limit)

    def without(self, mask: Tensor) -> "Stars":
        """These stars as if what is in ``mask`` (n, k) had not been measured."""
        return self._replace(value=self.value.masked_fill(mask, torch.nan))


class StarPosterior(NamedTuple):
    """What stars say of the Gaussians and of their q + r factors Q, which are Gaussian given c."""

    log_joint: Tensor  # (n, K): ln of weight times density of the data
    mean: Tensor  # (n, K, Q)
    covariance: Tensor  # (n, K, Q, Q)

    @property
    def log_density(self) -> Tensor:
        """(n,), of all that was measured."""
        return self.log_joint.logsumexp(1)

    @property
    def weight(self) -> Tensor:
        """(n, K), probabilities of the components."""
        return self.log_joint.softmax(1)


def log_density(mixture: Mixture, stars: Stars) -> Tensor:
    """(n,), nat: of the measured abundances, times the probability of the limits."""
    return log_joint(mixture, stars).logsumexp(1)


def log_joint(mixture: Mixture, stars: Stars) -> Tensor:
    """(n, K): ln of the weight of each Gaussian times the density of the data under it."""
    if bool(stars.limited.any()):
        return posterior(mixture, stars).log_joint
    log_p, P, b = _of_measurements(mixture, stars)
    factor = torch.linalg.cholesky_ex(P)[0]
    whitened = torch.linalg.solve_triangular(factor, b[..., None], upper=False)[..., 0]
    return mixture.log_weight + log_p + 0.5 * whitened.square().sum(2) - _log_diagonal(factor)


def posterior(mixture: Mixture, stars: Stars) -> StarPosterior:
    """Of components and factors, given all measurements and limits."""
    log_p, P, b = _of_measurements(mixture, stars)
    factor = torch.linalg.cholesky_ex(P)[0]
    covariance = torch.cholesky_inverse(factor)
    mean = (covariance @ b[..., None])[..., 0]
    log_p = log_p + 0.5 * (b * mean).sum(2) - _log_diagonal(factor)
    state = StarPosterior(mixture.log_weight + log_p, mean, covariance)
    limited = stars.limited
    for element in limited.any(0).nonzero()[:, 0].tolist():
        state = _with_limits(state, mixture, stars, element, limited[:, element].nonzero()[:, 0])
    return state


def _of_measurements(mixture: Mixture, stars: Stars) -> tuple[Tensor, Tensor, Tensor]:
    """What measurements say: ln p (n, K) at u = 0, precision (n, K, Q, Q) of u, and its b.

    Given the component, p(measurements, u) is p exp(b u - u P u / 2) up to the norm of u.
    """
    measured = stars.measured
    precision = (stars.variance[:, None] + mixture.variance).reciprocal()  # (n, K, k)
    precision = precision * measured[:, None]
    residual = torch.where(measured, stars.value, 0.0)[:, None] - mixture.mean
    whitened = precision * residual
    log_det = -torch.where(measured[:, None], precision, 1.0).log().sum(2)
    count = measured.sum(1, keepdim=True)
    log_p = -0.5 * ((whitened * residual).sum(2) + log_det + count * LOG_2PI)
    W, R = mixture.factors, stars.responses
    q, r = W.shape[2], R.shape[2]
    squares = (W[..., :, None] * W[..., None, :]).flatten(2)  # (K, k, q q)
    P = torch.einsum("nce,cef->ncf", precision, squares).unflatten(2, (q, q))
    b = torch.einsum("nce,ceq->ncq", whitened, W)
    if r:
        with_R = precision[..., None] * R[:, None]  # (n, K, k, r)
        cross = torch.einsum("ncer,ceq->ncqr", with_R, W)
        own = torch.einsum("ncer,nes->ncrs", with_R, R)
        P = torch.cat([torch.cat([P, cross], 3), torch.cat([cross.mT, own], 3)], 2)
        b = torch.cat([b, torch.einsum("nce,ner->ncr", whitened, R)], 2)
    return log_p, P + torch.eye(q + r, dtype=P.dtype, device=P.device), b


def _log_diagonal(factor: Tensor) -> Tensor:
    """Half the ln of the determinant, of Cholesky factors (..., Q, Q)."""
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def loadings(mixture: Mixture, stars: Stars, element: int) -> Tensor:
    """(n, K, Q): how an element's measurement depends on the factors and causes."""
    own = mixture.factors[:, element].expand(stars.n, -1, -1)
    common = stars.responses[:, None, element].expand(-1, own.shape[1], -1)
    return torch.cat([own, common], 2)


def _with_limits(
    state: StarPosterior, mixture: Mixture, stars: Stars, element: int, rows: Tensor
) -> StarPosterior:
    """After the limits of one element, which the stars in ``rows`` have."""
    stars = stars.select(rows)
    h = loadings(mixture, stars, element)
    mean, covariance = state.mean[rows], state.covariance[rows]
    Ph = (covariance @ h[..., None])[..., 0]
    variance = mixture.variance[:, element] + stars.variance[:, element, None]
    scale = ((h * Ph).sum(2) + variance).sqrt()  # (rows, K)
    sign = stars.limit[:, element, None].to(scale)
    z = sign * (stars.value[:, element, None] - mixture.mean[:, element] - (h * mean).sum(2))
    z = z / scale
    log_p = torch.special.log_ndtr(z)
    hazard = (-0.5 * (z.square() + LOG_2PI) - log_p).exp()  # mean of the truncated part
    shift = (-sign * hazard / scale)[..., None] * Ph
    shrink = (hazard * (hazard + z)).clamp(0, 1) / scale.square()
    narrower = shrink[..., None, None] * Ph[..., :, None] * Ph[..., None, :]
    return StarPosterior(
        state.log_joint.index_add(0, rows, log_p),
        state.mean.index_add(0, rows, shift),
        state.covariance.index_add(0, rows, -narrower),
    )


class ReadingsDensity:
    """The density of many readings of the same stars, whose errors are factorised once.

    In: a mixture and n stars, of which the errors and the pattern of measured elements are used;
    limits count as not measured.
    """

    def __init__(self, mixture: Mixture, stars: Stars) -> None:
        self.centre = mixture.mean.mean(0)
        self.known = stars.measured
        mean = mixture.mean - self.centre
        zero = torch.where(self.known, self.centre, torch.nan)
        log_p, P, _ = _of_measurements(mixture, stars._replace(value=zero))
        factor = torch.linalg.cholesky_ex(P)[0]
        precision = (stars.variance[:, None] + mixture.variance).reciprocal()
        precision = precision * self.known[:, None]  # (n, K, k)
        n = stars.n
        h = torch.cat(
            [
                mixture.factors.mT.expand(n, -1, -1, -1),
                stars.responses.mT[:, None].expand(-1, len(mean), -1, -1),
            ],
            2,
        )  # (n, K, Q, k)
        whitening = torch.linalg.solve_triangular(factor, h * precision[:, :, None], upper=False)
        self.offset = (whitening @ mean[..., None])[..., 0]  # (n, K, Q)
        self.whitening = whitening.flatten(1, 2)  # (n, K Q, k)
        self.precision = precision
        self.linear = precision * mean
        self.constant = mixture.log_weight + log_p - _log_diagonal(factor)  # with all x zero

    def __call__(self, readings: Tensor) -> Tensor:
        """(n, draws), nat, of readings (n, k, draws); those of unmeasured elements are not used."""
        x = torch.where(self.known[..., None], readings - self.centre[:, None], 0.0)
        quadratic = self.precision @ x.square() - 2 * (self.linear @ x)  # (n, K, draws)
        _, K, Q = self.offset.shape
        w = (self.whitening @ x).unflatten(1, (K, Q)) - self.offset[..., None]
        log_p = self.constant[..., None] + 0.5 * (w.square().sum(2) - quadratic)
        return log_p.logsumexp(1)
