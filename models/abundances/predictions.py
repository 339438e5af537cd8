"""What the density says of single stars: expected abundances, p-values, joint draws."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.abundances.mixture import (
    LOG_2PI,
    Mixture,
    ReadingsDensity,
    StarPosterior,
    Stars,
    loadings,
    posterior,
)

LEVELS = (0.025, 0.16, 0.84, 0.975)  # of quantiles: the ends of 95% and 68%
GRID = 96  # points on which quantiles are found
HEAVIEST = 32  # components of a star that are used on the grid
POOL = 4096  # draws, of which each star takes its replicates
AT_ONCE = 256  # stars whose replicates are held in memory


class Expected(NamedTuple):
    """Gaussians (n, K) of an element's true [X/H], and those of its reading."""

    log_weight: Tensor
    mean: Tensor
    variance: Tensor
    reading_mean: Tensor
    reading_variance: Tensor


class Element(NamedTuple):
    """What a star's other elements say of one, each (n,); its own limit is used, where it is one.

    ``quantiles`` (n, 4) at `LEVELS`. ``p_value``: of the measurement, two-sided, or of the limit,
    on its side; NaN where there is neither.
    """

    mean: Tensor
    std: Tensor
    quantiles: Tensor
    p_value: Tensor


def expected_from_others(
    mixture: Mixture, stars: Stars, state: StarPosterior, element: int
) -> Expected:
    """Of one element, given the other elements of each star alone."""
    measured = stars.measured[:, element, None]
    if bool((rows := stars.limited[:, element]).any()):  # of limits, from the start
        mask = torch.zeros_like(stars.value[rows], dtype=torch.bool)
        mask[:, element] = True
        without = posterior(_of_rows(mixture, rows), stars.select(rows).without(mask))
        index = rows.nonzero()[:, 0]
        state = StarPosterior(
            *(a.index_copy(0, index, b) for a, b in zip(state, without, strict=True))
        )
    h = loadings(mixture, stars, element)
    q = mixture.factors.shape[2]
    own = torch.cat([h[..., :q], torch.zeros_like(h[..., q:])], 2)  # of the true abundance
    noise = mixture.variance[:, element] + stars.variance[:, element, None]  # (n, K)
    Ph, Pg = (state.covariance @ h[..., None])[..., 0], (state.covariance @ own[..., None])[..., 0]
    hPh, gPh, gPg = (h * Ph).sum(2), (own * Ph).sum(2), (own * Pg).sum(2)
    mean_h, mean_g = (h * state.mean).sum(2), (own * state.mean).sum(2)
    # without a measurement: the update by it undone (Sherman & Morrison 1950)
    left = (noise - hPh).clamp_min(1e-9)
    residual = stars.value[:, element, None] - mixture.mean[:, element] - mean_h
    step = torch.where(measured, residual / left, 0.0)
    gain = torch.where(measured, 1 / left, 0.0)
    mean = mixture.mean[:, element] + mean_g - gPh * step
    variance = gPg + gPh.square() * gain + mixture.variance[:, element]
    reading_mean = mixture.mean[:, element] + mean_h - hPh * step
    reading_variance = hPh + hPh.square() * gain + noise
    own_log_p = -0.5 * (
        (stars.value[:, element, None] - reading_mean).square() / reading_variance
        + reading_variance.log() + LOG_2PI
    )  # fmt: skip
    log_weight = state.log_joint - torch.where(measured, own_log_p, 0.0)
    return Expected(log_weight.log_softmax(1), mean, variance, reading_mean, reading_variance)


def _of_rows(mixture: Mixture, rows: Tensor) -> Mixture:
    per_star = mixture.log_weight.ndim == 2
    return mixture._replace(log_weight=mixture.log_weight[rows]) if per_star else mixture


def predicted_element(
    mixture: Mixture, stars: Stars, state: StarPosterior, element: int
) -> Element:
    """The predictive distribution of one element, and how unusual its reading is."""
    others = expected_from_others(mixture, stars, state, element)
    weight = others.log_weight.exp()
    sign = stars.limit[:, element].to(weight)[:, None]
    reading = stars.value[:, element, None]
    z = (reading - others.reading_mean) / others.reading_variance.sqrt()
    below = (weight * torch.special.ndtr(z)).sum(1)
    two_sided = 2 * torch.minimum(below, 1 - below)
    one_sided = torch.where(sign[:, 0] > 0, below, 1 - below)
    p_value = torch.where(sign[:, 0] == 0, two_sided, one_sided)
    # a limit: each Gaussian times the probability of the limit, whose own noise is the rest
    rest = (others.reading_variance - others.variance).clamp_min(1e-8).sqrt()
    limited = stars.limited[:, element, None]
    log_limit = torch.where(limited, torch.special.log_ndtr(sign * z), 0.0)
    log_weight = (others.log_weight + log_limit).log_softmax(1)
    chosen = log_weight.topk(min(HEAVIEST, log_weight.shape[1]), 1).indices
    mean, variance = others.mean.gather(1, chosen), others.variance.gather(1, chosen)
    spread = variance.sqrt()
    low, high = (mean - 5 * spread).amin(1), (mean + 5 * spread).amax(1)
    x = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, GRID).to(low)  # (n, GRID)
    log_p = others.log_weight.gather(1, chosen)[:, None] - 0.5 * (
        (x[..., None] - mean[:, None]).square() / variance[:, None] + variance.log()[:, None]
    )  # (n, GRID, components)
    density = log_p.logsumexp(2)
    # of a limit L, the reading of a true abundance x lies on the limit's side
    side = sign * (reading - x) / rest.gather(1, chosen[:, :1])
    density = density + torch.where(limited, torch.special.log_ndtr(side), 0.0)
    share = (density - density.amax(1, keepdim=True)).exp()
    share = share / share.sum(1, keepdim=True)
    centre = (share * x).sum(1)
    std = (share * (x - centre[:, None]).square()).sum(1).sqrt()
    return Element(centre, std, _quantiles(x, share), p_value)


def _quantiles(x: Tensor, share: Tensor) -> Tensor:
    """(n, levels) of histograms ``share`` (n, GRID) about points x."""
    step = x[:, 1:2] - x[:, :1]
    below = share.cumsum(1)  # at the upper edge of each bin
    levels = torch.tensor(LEVELS).to(x).expand(len(x), -1).contiguous()
    i = torch.searchsorted(below, levels).clamp(max=x.shape[1] - 1)
    start = below.gather(1, i) - share.gather(1, i)
    part = ((levels - start) / share.gather(1, i).clamp_min(1e-30)).clamp(0, 1)
    return x.gather(1, i) + step * (part - 0.5)


def smallest_p_value(elements: Sequence[Element]) -> tuple[Tensor, Tensor]:
    """(n,): the smallest p-value of a star's elements, corrected for their number, and whose it is.

    By Sidak's (1967) formula; NaN and -1 of stars without any measurement or limit.
    """
    p = torch.stack([element.p_value for element in elements], 1)
    n = (~p.isnan()).sum(1)
    smallest, which = p.nan_to_num(2.0).min(1)
    corrected = -torch.expm1(n * torch.log1p(-smallest.clamp(1e-30, 1 - 1e-6)))
    nothing = n == 0
    return corrected.masked_fill(nothing, torch.nan), which.masked_fill(nothing, -1)


class Random:
    """Numbers shared by all stars, so that a star's row does not depend on its neighbours'."""

    def __init__(self, seed: int, like: Tensor) -> None:
        self.generator, self.like = torch.Generator().manual_seed(seed), like

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.like)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator).to(self.like)


def density_p_values(mixture: Mixture, stars: Stars, replicates: int, random: Random) -> Tensor:
    """(n,): share of stars like it, drawn from the model, whose measurements are as unlikely.

    Draws have each star's own elements and errors; limits are left out here.
    """
    k, q = mixture.factors.shape[1:]
    pool = max(POOL, replicates)
    c_numbers, u = random.uniform(pool), random.normal(pool, q)
    causes, own = random.normal(pool, stars.responses.shape[2]), random.normal(pool, k)
    parts = []
    for rows in torch.arange(stars.n, device=stars.value.device).split(AT_ONCE):
        part = stars.select(rows)
        one = _of_rows(mixture, rows)
        at = (_first_draw(part)[:, None] + torch.arange(replicates).to(rows)) % pool  # (n, draws)
        c = _components(one.log_weight.exp().expand(part.n, -1), c_numbers[at])
        x = mixture.mean[c] + torch.einsum("ndkq,ndq->ndk", mixture.factors[c], u[at])
        scale = (mixture.variance[c] + part.variance[:, None]).sqrt()
        x = x + causes[at] @ part.responses.mT + scale * own[at]
        density = ReadingsDensity(one, part)
        observed = density(part.value[..., None])
        parts.append(1 + (density(x.mT.contiguous()) <= observed).sum(1))
    return torch.cat(parts).to(stars.value) / (replicates + 1)


def _first_draw(stars: Stars) -> Tensor:
    """(n,), of each star's among the draws that all share: by its measurements alone.

    Were all draws shared, p-values of a catalogue would be too low or too high together.
    """
    digits = (1e4 * stars.value.nan_to_num(0.0)).round().long()
    return (digits * (2 * torch.arange(digits.shape[1]).to(digits) + 7919)).sum(1).abs()


def _components(weight: Tensor, uniform: Tensor) -> Tensor:
    """(n, draws) components by their probabilities (n, K), of numbers (n, draws) or (draws,)."""
    below = weight.cumsum(1)
    u = uniform.expand(len(weight), -1).contiguous() * below[:, -1:]
    return torch.searchsorted(below, u).clamp(max=weight.shape[1] - 1)


def draw_abundances(
    mixture: Mixture, stars: Stars, state: StarPosterior, draws: int, random: Random
) -> Tensor:
    """(n, draws, k) joint draws of all true [X/H] of each star, given all that was measured."""
    k, q = mixture.factors.shape[1:]
    c = _components(state.weight, random.uniform(draws))  # (n, draws)
    factor = torch.linalg.cholesky_ex(state.covariance)[0]
    Q = factor.shape[-1]
    at = c[..., None]
    mean = state.mean.gather(1, at.expand(-1, -1, Q))
    factor = factor.gather(1, at[..., None].expand(-1, -1, Q, Q))
    u = mean + torch.einsum("ndpq,dq->ndp", factor, random.normal(draws, Q))
    smooth = mixture.mean[c] + torch.einsum("ndeq,ndq->nde", mixture.factors[c], u[..., :q])
    own, error = mixture.variance[c], stars.variance[:, None]
    residual = stars.value[:, None] - smooth
    residual = residual - torch.einsum("ner,ndr->nde", stars.responses, u[..., q:])
    limited, known = stars.limited[:, None], ~stars.value.isnan()[:, None]
    uniform = random.uniform(draws, k)  # whether or not this batch has limits
    if bool(limited.any()):  # the reading is somewhere on the limit's side
        scale, sign = (own + error).sqrt(), stars.limit[:, None].to(own)
        beyond = torch.special.ndtr(sign * residual / scale)
        uniform = (uniform * beyond).clamp(1e-7, 1 - 1e-7)
        residual = torch.where(limited, sign * scale * torch.special.ndtri(uniform), residual)
    share = torch.where(known, own / (own + error), 0.0)
    x = smooth + share * torch.where(known, residual, 0.0)
    return x + (own * (1 - share)).sqrt() * random.normal(draws, k)
