"""Have the chains converged, and how much do they say (Vehtari et al. 2021)."""

import math

import torch
from torch import Tensor


def rhat(draws: Tensor) -> Tensor:
    """Rank-normalised split R-hat, the larger of bulk and tail; draws (chains, n, ...) -> (...)."""
    split = _split(draws)
    folded = (split - split.flatten(0, 1).median(0).values).abs()
    return torch.maximum(_plain_rhat(_ranks(split)), _plain_rhat(_ranks(folded)))


def ess(draws: Tensor) -> Tensor:
    """Bulk effective sample size; draws (chains, n, ...) -> (...)."""
    x = _ranks(_split(draws))
    chains, n = x.shape[:2]
    centred = x - x.mean(1, keepdim=True)
    power = torch.fft.rfft(centred, 2 * n, dim=1).abs().square()
    covariance = torch.fft.irfft(power, dim=1)[:, :n].mean(0) / n  # (n, ...), mean of chains
    within = covariance[0] * n / (n - 1)
    total = within * (n - 1) / n + x.mean(1).var(0)
    rho = 1 - (within - covariance) / total
    # Geyer's initial monotone sequence of pairs
    pairs = rho[: n // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    pairs = torch.where((pairs > 0).cumprod(0).bool(), pairs, 0.0).cummin(0).values
    total_draws = chains * n
    # antithetic chains may know more than their number says, but not without end
    return total_draws / (2 * pairs.sum(0) - 1).clamp_min(1 / math.log10(total_draws))


def _split(draws: Tensor) -> Tensor:
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]])


def _ranks(x: Tensor) -> Tensor:
    """Normal scores of the ranks over chains and draws."""
    flat = x.flatten(0, 1)
    rank = flat.argsort(0).argsort(0).double() + 1
    return torch.special.ndtri((rank - 0.375) / (len(flat) + 0.25)).view(x.shape)


def _plain_rhat(x: Tensor) -> Tensor:
    n = x.shape[1]
    within = x.var(1).mean(0)
    return (((n - 1) / n * within + x.mean(1).var(0)) / within).sqrt()
