"""How much wider than a fit its density is, and how heavy its tails, by stars outside the fit.

Gaussians of few stars are too narrow for new ones, and real stars stray farther than Gaussians do:
other surveys measured some of them, in other galaxies. So each Gaussian is widened, and has a
wider copy, which holds a share of its stars (a contaminated normal distribution; Tukey 1960). What
a star's other elements are tells which of the two it is of, so that a straying star has wider
intervals than the rest.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.abundances.mixture import Mixture, Stars, log_density

COMMON = 0.7  # prior: spread of ln of the elements' scatter in the tails about their mean
FEWER, SHARES = -2.0, 1.5  # prior: mean and spread of the logit of the tails' share
STEPS, RATE = 60, 0.1


class Widening(NamedTuple):
    """Of Gaussians, and of their copies: variances (k,), dex^2, and factors (), which add up."""

    variance: Tensor
    factor: Tensor
    tail_variance: Tensor
    tail_factor: Tensor
    tail_share: Tensor  # (1 + types,): of stars of unknown type, and of each


class LeftOut(NamedTuple):
    """Stars that a mixture was not fitted to."""

    mixture: Mixture
    stars: Stars
    group: Tensor  # (n,), place in `Widening.tail_share`
    weight: Tensor  # (n,), stars that each of them stands for


def widened(mixture: Mixture, by: Widening, group: Tensor | None) -> Mixture:
    """K Gaussians, and after them their K copies, if these hold a share. ``group``: each star's."""
    narrow = mixture._replace(
        factors=mixture.factors * by.factor, variance=mixture.variance + by.variance
    )
    if not bool(by.tail_share.any()):
        return narrow
    share = by.tail_share[0] if group is None else by.tail_share[group, None]
    log_weight = torch.cat(
        [mixture.log_weight + torch.log1p(-share), mixture.log_weight + share.log()], -1
    )
    return Mixture(
        log_weight,
        torch.cat([narrow.mean, narrow.mean]),
        torch.cat([narrow.factors, narrow.factors * by.tail_factor]),
        torch.cat([narrow.variance, narrow.variance + by.tail_variance]),
    )


def fit_widening(parts: Sequence[LeftOut], n_groups: int, unit: float) -> Widening:
    """Under which the stars are the likeliest. ``unit``: dex, of scatters."""
    k = parts[0].mixture.mean.shape[1]
    like = parts[0].mixture.mean
    counts = torch.zeros(n_groups).to(like)
    for part in parts:
        counts.index_add_(0, part.group, part.weight)
    start = [torch.full((k + 1,), -3.0), torch.tensor([-0.7]), torch.zeros(k)]
    x = torch.cat([*start, torch.full((n_groups,), -3.0)]).to(like).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=RATE)
    for _ in range(STEPS):
        by, tail, logit = _widening(x, k, unit)
        log_p = sum(
            (p.weight * log_density(widened(p.mixture, by, p.group), p.stars)).sum() for p in parts
        )
        prior = ((tail - tail.mean()) / COMMON).square().sum()
        prior = prior + ((logit - FEWER) / SHARES).square().sum()
        loss = (0.5 * prior - log_p) / counts.sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    by = Widening(*(part.detach() for part in _widening(x, k, unit)[0]))
    return by._replace(tail_share=_of_unknown(by.tail_share, counts))


def _widening(x: Tensor, k: int, unit: float) -> tuple[Widening, Tensor, Tensor]:
    """Of unconstrained numbers; ln of the tails' scatter (k,) and logits of their shares."""
    own, factor, tail_factor, tail, logit = x.split([k, 1, 1, k, len(x) - 2 * k - 2])
    scatter, tail_scatter = (unit**2 * (2 * part).exp() for part in (own, tail))
    by = Widening(
        scatter, 1 + factor[0].exp(), tail_scatter, 1 + tail_factor[0].exp(), logit.sigmoid()
    )
    return by, tail, logit


def _of_unknown(share: Tensor, counts: Tensor) -> Tensor:
    """With the mean over all stars in the place of those of unknown type."""
    mean = (share * counts).sum() / counts.sum()
    return torch.cat([mean[None], share[1:]])
