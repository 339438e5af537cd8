"""By how much two structures differ, of a handful of stars each: likelihoods in closed form.

A structure is taken as the background (the density of stars in general) at the same [Fe/H], with
its expected abundances shifted by an unknown offset per element, its trends with [Fe/H] tilted by
unknown slopes, and its scatter narrowed by an unknown factor. Of every star the residual from the
background's expectation given its [Fe/H] is normal, with a known covariance: noise with its common
causes, missing elements left out, the error of [Fe/H] passed on. Two structures are the same if
they share their offset, whatever it is; they are two if offsets differ, in one element, in two or
in all. Slopes and scatter are those of both. All integrals are closed form.

Differences of the metallicity distributions are no chemical differences here: which stars of a
structure were observed depends on metallicity. They are reported apart.

Approximations: the background's conditional density, a mixture, is replaced by a Gaussian of its
mean and covariance; a limit by the Gaussian measurement with which the posterior has the moments of
the truncated one (assumed-density filtering; Minka 2001), at the two structures' common offset.
Neither touches the permutation test's p-value, which rests on exchangeable stars alone.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.abundances.mixture import LOG_2PI, Mixture, Stars

# dex: standard deviation of an element's difference between structures, where there is one
DIFFERENCE = 0.28
COMMON = 10.0  # dex: of the offset that two structures share, which is left free
SLOPE = 0.3  # dex per dex: standard deviation of d[X/H] / d[Fe/H] from the background's
# Intrinsic covariance of a structure, as fractions of the background's at the same [Fe/H]
SCATTERS = (0.05, 0.15, 0.4, 1.0)
SMALLEST_SCATTER = 0.03  # dex, added in quadrature: that of no structure is smaller
_CHUNK = 2**22  # numbers of a step's largest array


class Residuals(NamedTuple):
    """Stars relative to the background at their [Fe/H]; normal, about their structure's offset."""

    value: Tensor  # (n, k), dex; a limit's: the limit's; 0 where not measured
    noise: Tensor  # (n, k, k), dex^2: covariance of the measurements
    scatter: Tensor  # (n, k, k), dex^2: of the background at this [Fe/H]
    limit: Tensor  # (n, k), int: 1 upper, -1 lower, 0 measured
    known: Tensor  # (n, k): measured, or a limit
    iron: Tensor  # (n,), [Fe/H]; NaN: not measured


def residuals(mixture: Mixture, stars: Stars, iron: int | None) -> Residuals:
    """Of all elements but iron, the element number ``iron``, float64.

    Where iron is not measured (or only a limit), or there is none, the background is that of all
    [Fe/H]. ``mixture``: with one set of weights for all stars.
    """
    mixture = Mixture(*(part.double() for part in mixture))
    size = max(1, _CHUNK // mixture.mean.numel())
    rows = torch.arange(stars.n).split(size)
    parts = [_residuals(mixture, stars.select(chunk), iron) for chunk in rows]
    return Residuals(*(torch.cat(field) for field in zip(*parts, strict=True)))


def _residuals(mixture: Mixture, stars: Stars, iron: int | None) -> Residuals:
    k = stars.value.shape[1]
    others = [j for j in range(k) if j != iron]
    value, variance, responses = (part.double() for part in stars[:3])
    R = responses[:, others]
    noise = torch.diag_embed(variance[:, others]) + R @ R.mT
    covariance = mixture.covariance()
    between = covariance[:, others][:, :, others]  # (K, j, j)
    mean = mixture.mean[:, others].expand(stars.n, -1, -1)  # (n, K, j)
    log_weight = mixture.log_weight.expand(stars.n, -1)
    gain, D = torch.zeros_like(mean), torch.zeros_like(log_weight)
    passed_on = torch.zeros_like(noise)
    if iron is not None:
        measured = stars.measured[:, iron]
        with_iron = (R @ responses[:, iron, :, None])[..., 0]  # (n, j), of the noise
        own = variance[:, iron] + responses[:, iron].square().sum(1)
        D = covariance[:, iron, iron] + own[:, None]
        from_mean = torch.where(measured, value[:, iron], 0.0)[:, None] - mixture.mean[:, iron]
        log_p = -0.5 * (from_mean.square() / D + D.log() + LOG_2PI)
        log_weight = log_weight + log_p * measured[:, None]
        gain = (covariance[:, iron, others] + with_iron[:, None]) / D[..., None]
        gain = gain * measured[:, None, None]
        mean = mean + gain * from_mean[..., None]
        passed_on = torch.einsum("ni,nj->nij", with_iron, with_iron / own[:, None])
        passed_on = passed_on * measured[:, None, None]
    weight = log_weight.softmax(1)
    expected = torch.einsum("nc,ncj->nj", weight, mean)
    about = mean - expected[:, None]
    total = torch.einsum("nc,cij->nij", weight, between) + noise
    total = total + torch.einsum("nc,nci,ncj->nij", weight, about, about)
    total = total - torch.einsum("nc,nci,ncj->nij", weight * D, gain, gain)
    noise = noise - passed_on
    known = ~value[:, others].isnan()
    nothing = value[:, 0] * torch.nan
    fe = nothing if iron is None else torch.where(stars.measured[:, iron], value[:, iron], nothing)
    residual = torch.where(known, value[:, others] - expected, 0.0)
    return Residuals(residual, noise, total - noise, stars.limit[:, others] * known, known, fe)


class Measured(NamedTuple):
    """Residuals as Gaussian measurements of their structure's offset, for S scatters.

    Any dimensions stand in front of the (S, n, k) of these.
    """

    log_weight: Tensor  # (..., S): ln of the probability of each scatter
    precision: Tensor  # (..., S, n, k, k): zero where not measured
    value: Tensor  # (..., S, n, k), from what is in common
    iron: Tensor  # (..., 1, n), [Fe/H] from the mean of the stars, dex
    covariance: Tensor  # (..., S, 2 k, 2 k), of the offset and slopes in common


def measured(residuals: Residuals, scatters: tuple[float, ...] = SCATTERS) -> Measured:
    """Of the stars of both structures together, whose labels do not enter.

    ``residuals`` may have dimensions in front. The probabilities of the scatters are those of the
    measurements, without the limits, with equal ones before.
    """
    scatter = torch.tensor(scatters).to(residuals.value)
    noise = residuals.noise + SMALLEST_SCATTER**2 * torch.eye(residuals.value.shape[-1]).to(scatter)
    V = noise.unsqueeze(-4) + scatter[:, None, None, None] * residuals.scatter.unsqueeze(-4)
    value, limit, known = (
        part.unsqueeze(-3).expand(V.shape[:-1])
        for part in (residuals.value, residuals.limit, residuals.known)
    )
    iron = residuals.iron - residuals.iron.nanmean(-1, keepdim=True)
    iron = iron.nan_to_num(0.0).unsqueeze(-2)
    read = known & (limit == 0)
    W, log_det = _masked_inverse(V, read)
    common, covariance, log_p = _in_common(W, value, iron, log_det)
    log_weight = log_p.log_softmax(-1)
    if (known & ~read).any():
        for _ in range(2):  # limits about what is in common, which follows from them too
            reading, width = _limits_as_measurements(V, W, value - common, limit)
            reading = torch.where(read, value, reading + common)
            W_all, _ = _masked_inverse(V + torch.diag_embed(width), known)
            common, covariance, _ = _in_common(W_all, reading, iron, log_det)
        W, value = W_all, reading
    return Measured(log_weight, W, value - common, iron, covariance)


def _masked_inverse(V: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of the part of V (..., k, k) in ``mask`` (..., k), zero elsewhere; ln determinant."""
    both = mask[..., :, None] & mask[..., None, :]
    filled = torch.where(both, V, 0.0) + torch.diag_embed((~mask).to(V))
    factor = torch.linalg.cholesky(filled)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.where(both, torch.cholesky_inverse(factor), 0.0), log_det


def _in_common(
    W: Tensor, value: Tensor, iron: Tensor, log_det: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What offset and slopes of all stars predict for each (..., n, k), the covariance (2 k, 2 k)
    of them; ln evidence (...) up to a constant.
    """
    k = W.shape[-1]
    score = torch.einsum("...nij,...nj->...ni", W, value)
    tilted = W * iron[..., None, None]
    P, cross, square = W.sum(-3), tilted.sum(-3), (tilted * iron[..., None, None]).sum(-3)
    precision = torch.cat([torch.cat([P, cross], -1), torch.cat([cross, square], -1)], -2)
    prior = torch.tensor([COMMON, SLOPE]).to(W).repeat_interleave(k) ** -2
    factor = torch.linalg.cholesky(precision + torch.diag(prior))
    covariance = torch.cholesky_inverse(factor)
    b = torch.cat([score.sum(-2), (score * iron[..., None]).sum(-2)], -1)
    mean = (covariance @ b[..., None])[..., 0]
    log_det_precision = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    quadratic = (score * value).sum((-2, -1)) - (b * mean).sum(-1)
    log_p = -0.5 * (quadratic + log_det.sum(-1) + log_det_precision)
    predicted = mean[..., None, :k] + iron[..., None] * mean[..., None, k:]
    return predicted, covariance, log_p


def _limits_as_measurements(
    V: Tensor, W: Tensor, value: Tensor, limit: Tensor
) -> tuple[Tensor, Tensor]:
    """(readings, their variances), (..., k), that stand for the limits; 0, 0 for measurements.

    ``V`` (..., k, k): covariance of the readings, ``W``: inverse of that of the measured ones,
    ``value`` (..., k): measurements and limits, from the expectation.
    """
    read = limit == 0
    seen = torch.where(read, value, 0.0)
    gain = V @ W
    mean = (gain @ seen[..., None])[..., 0]
    covariance = V - gain @ V
    reading, width = torch.zeros_like(value), torch.zeros_like(value)
    for j in range(value.shape[-1]):
        limited = ~read[..., j]
        if not limited.any():
            continue
        sign = limit[..., j].to(value)
        scale = covariance[..., j, j].clamp(min=1e-12).sqrt()
        z = sign * (value[..., j] - mean[..., j]) / scale
        hazard = (-0.5 * (z.square() + LOG_2PI) - torch.special.log_ndtr(z)).exp()
        share = (hazard * (hazard + z)).clamp(1e-8, 1 - 1e-6)  # of the variance that is lost
        column = covariance[..., j] / scale[..., None]
        shift = torch.where(limited, -sign * hazard, 0.0)
        lost = torch.where(limited, share, 0.0)
        new = mean[..., j] - sign * hazard * scale / share
        reading[..., j] = torch.where(limited, new, 0.0)
        width[..., j] = torch.where(limited, scale.square() * (1 / share - 1), 0.0)
        mean = mean + shift[..., None] * column
        covariance = covariance - lost[..., None, None] * column[..., None] * column[..., None, :]
    return reading, width


class Difference(NamedTuple):
    """Likelihood of the difference d of two structures' offsets: -d Q d / 2 + h d, in nat."""

    h: Tensor  # (..., k), 1 / dex
    Q: Tensor  # (..., k, k), 1 / dex^2


def difference(measured: Measured, in_b: Tensor) -> Difference:
    """For labels ``in_b`` (L, n), 1 of stars in B and 0 in A: (..., S, L, k).

    Offsets are common - d / 2 in A and common + d / 2 in B; the common one, and slopes, are
    integrated over.
    """
    half = in_b.to(measured.value) - 0.5
    k = measured.value.shape[-1]
    h = half @ torch.einsum("...nij,...nj->...ni", measured.precision, measured.value)
    W = measured.precision.flatten(-2)  # (..., S, n, k k)
    D = torch.cat(
        [
            (half @ W).unflatten(-1, (k, k)),
            ((half * measured.iron[..., None, :]) @ W).unflatten(-1, (k, k)),
        ],
        -1,
    )  # (..., S, L, k, 2 k)
    own = 0.25 * measured.precision.sum(-3).unsqueeze(-3)
    return Difference(h, own - D @ measured.covariance.unsqueeze(-3) @ D.mT)


def log_bayes_factors(d: Difference, t: float = DIFFERENCE) -> dict[str, Tensor]:
    """ln Bayes factors (...) of two structures against one, by how many elements differ.

    "one", "two": any one or two, each as likely, independently N(0, t^2); "all": each N(0, t^2),
    half of the variance in common.
    """
    k = d.h.shape[-1]
    a = d.Q.diagonal(dim1=-2, dim2=-1) + t**-2
    single = 0.5 * (d.h.square() / a - (t**2 * a).log())
    found = {"one": single.logsumexp(-1) - math.log(k)}
    if k > 1:
        i, j = torch.triu_indices(k, k, 1)
        c, hi, hj, ai, aj = d.Q[..., i, j], d.h[..., i], d.h[..., j], a[..., i], a[..., j]
        det = ai * aj - c.square()
        quadratic = (aj * hi.square() - 2 * c * hi * hj + ai * hj.square()) / det
        pair = 0.5 * (quadratic - (t**4 * det).log())
        found["two"] = pair.logsumexp(-1) - math.log(len(i))
        T = 0.5 * t**2 * (torch.eye(k).to(d.Q) + 1)
        factor = torch.linalg.cholesky(d.Q + torch.linalg.inv(T))
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + torch.logdet(T)
        half = torch.linalg.solve_triangular(factor, d.h[..., None], upper=False)[..., 0]
        found["all"] = 0.5 * (half.square().sum(-1) - log_det)
    return found


def log_bayes_factor(d: Difference, log_weight: Tensor, t: float = DIFFERENCE) -> Tensor:
    """ln Bayes factor (..., L) of `Difference` (..., S, L, k): over numbers and scatters."""
    by_number = torch.stack(list(log_bayes_factors(d, t).values()))
    log_bf = by_number.logsumexp(0) - math.log(len(by_number))
    return (log_bf + log_weight[..., None]).logsumexp(-2)
