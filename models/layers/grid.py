"""One-dimensional posteriors on a grid of cells: summaries, samples and scores.

A distribution is its cumulative values at the n + 1 edges of n equal cells, (batch, n + 1), from
0 to 1; inside a cell the density is constant. Everything here is exact for that density.
"""

import torch
from torch import Tensor


def with_floor(cdf: Tensor, floor: float) -> Tensor:
    """The same distribution plus a share ``floor`` that is uniform, so that no density is zero."""
    uniform = torch.linspace(0, 1, cdf.shape[-1], device=cdf.device, dtype=cdf.dtype)
    return (1 - floor) * cdf + floor * uniform


def density(cdf: Tensor, edges: Tensor) -> Tensor:
    """(batch, n), per unit of ``edges``."""
    return cdf.diff(dim=-1) / (edges[1] - edges[0])


def at(cdf: Tensor, edges: Tensor, x: Tensor) -> Tensor:
    """Cumulative values at ``x`` (k,), (batch, k); 0 before the grid, 1 behind it."""
    position = ((x - edges[0]) / (edges[1] - edges[0])).clamp(0, cdf.shape[-1] - 1)
    low = position.long().clamp(max=cdf.shape[-1] - 2)
    return torch.lerp(cdf[:, low], cdf[:, low + 1], (position - low).to(cdf))


def centres(edges: Tensor) -> Tensor:
    return 0.5 * (edges[1:] + edges[:-1])


def quantile(cdf: Tensor, edges: Tensor, u: Tensor) -> Tensor:
    """Where the distribution reaches ``u`` (batch or 1, k): (batch, k)."""
    u = u.expand(len(cdf), -1).contiguous()
    right = torch.searchsorted(cdf.contiguous(), u).clamp(1, cdf.shape[-1] - 1)
    low, high = cdf.gather(1, right - 1), cdf.gather(1, right)
    inside = ((u - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return edges[right - 1] + inside * (edges[1] - edges[0])


def moments(cdf: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each (batch,)."""
    mass, x, step = cdf.diff(dim=-1), centres(edges), edges[1] - edges[0]
    mean = mass @ x
    variance = (mass * (x - mean[:, None]).square()).sum(-1) + step**2 / 12
    return mean, variance.sqrt()


def mode(cdf: Tensor, edges: Tensor) -> Tensor:
    """The highest peak, refined off the grid by a parabola through the log density, (batch,)."""
    log_mass = cdf.diff(dim=-1).clamp_min(1e-30).log()
    top = log_mass.argmax(-1, keepdim=True)
    inner = top.clamp(1, log_mass.shape[-1] - 2)
    left, mid, right = (log_mass.gather(1, inner + i) for i in (-1, 0, 1))
    bend = (left - 2 * mid + right).clamp_max(-1e-6)
    shift = (0.5 * (left - right) / bend).clamp(-0.5, 0.5)
    shift = torch.where(inner == top, shift, torch.zeros_like(shift))
    return (centres(edges)[top] + shift * (edges[1] - edges[0])).squeeze(1)


def sample(cdf: Tensor, edges: Tensor, row: Tensor, n: int, seed: int = 0) -> Tensor:
    """n independent draws, (batch, n), that depend on ``row`` (batch,) int64 and seed alone.

    A row of a catalogue therefore gets the same draws however the catalogue is cut into chunks
    or shared over processes.
    """
    return quantile(cdf, edges, counter_uniform(row, n, seed))


def tarp(cdf: Tensor, edges: Tensor, truth: Tensor, row: Tensor, seed: int = 2) -> Tensor:
    """Mass of the distribution that is nearer to a random point than ``truth`` is, (batch,).

    Uniform on 0 to 1 if the distributions are right, whatever the points: the coverage test of
    Lemos et al. (2023, arXiv:2302.03026). A point at the end of the axis would give the PIT; here
    it is drawn from the distribution, by ``row`` and ``seed``, so that it is near it and a wrong
    width counts most. NaN where ``truth`` is.
    """
    point = sample(cdf, edges, row, 1, seed)
    reach = (truth[:, None] - point).abs().nan_to_num(0.0)
    ends = torch.cat([point - reach, point + reach], 1)
    position = ((ends - edges[0]) / (edges[1] - edges[0])).clamp(0, cdf.shape[-1] - 1)
    low = position.long().clamp(max=cdf.shape[-1] - 2)
    mass = torch.lerp(cdf.gather(1, low), cdf.gather(1, low + 1), (position - low).to(cdf))
    return torch.where(truth.isfinite(), mass[:, 1] - mass[:, 0], torch.nan)


def counter_uniform(row: Tensor, n: int, seed: int = 0) -> Tensor:
    """Uniform numbers in (0, 1), (batch, n), by hashing (seed, row, column).

    The mixing is that of SplitMix64 (Steele, Lea & Flood 2014) in wrapping 64-bit integers.
    """
    column = torch.arange(n, device=row.device)
    x = (row[:, None] * 1_000_003 + column + seed * 982_451_653) * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        logical = (x >> shift) & ((1 << (64 - shift)) - 1)
        x = (x ^ logical) * factor
    return (((x >> 11) & ((1 << 53) - 1)).double() + 0.5).div(2.0**53).float().clamp(1e-7, 1 - 1e-7)


def scores(cdf: Tensor, edges: Tensor, truth: Tensor, floor: float = 1e-3) -> dict[str, Tensor]:
    """Per object, (batch,): ``pit``, ``crps`` (in units of the edges), ``nll``, ``cde_loss``.

    ``nll`` is of (1 - floor) p + floor uniform. ``cde_loss`` is the integral of p^2 minus twice p
    at the truth (Izbicki & Lee 2017, eq. 5, up to a constant). A truth outside the grid counts as
    its nearest edge for the PIT, and its CRPS holds the way to it. NaN where ``truth`` is.
    """
    known = truth.isfinite()
    truth = torch.where(known, truth, edges[0])
    step, n = edges[1] - edges[0], cdf.shape[-1] - 1
    inside = truth.clamp(edges[0], edges[-1])
    cell = ((inside - edges[0]) / step).long().clamp(0, n - 1)[:, None]
    low, high = cdf.gather(1, cell).squeeze(1), cdf.gather(1, cell + 1).squeeze(1)
    p = (high - low) / step
    share = ((inside - edges[cell.squeeze(1)]) / step).clamp(0, 1)
    pit = low + share * (high - low)

    def integral(a: Tensor, b: Tensor) -> Tensor:
        """Mean over a unit interval of the square of a line from a to b."""
        return (a * a + a * b + b * b) / 3

    # each cell counts F^2 left of the truth and (1 - F)^2 right of it; the truth's own is split
    left, right = cdf[:, :-1], cdf[:, 1:]
    index = torch.arange(n, device=cdf.device)
    parts = torch.where(index < cell, integral(left, right), integral(1 - left, 1 - right))
    parts = parts.scatter(
        1,
        cell,
        (share * integral(low, pit) + (1 - share) * integral(1 - pit, 1 - high))[:, None],
    )
    crps = parts.sum(-1) * step + (truth - inside).abs()
    in_grid = (truth >= edges[0]) & (truth <= edges[-1])
    floored = (1 - floor) * p * in_grid + floor / (edges[-1] - edges[0])
    cde = cdf.diff(dim=-1).square().sum(-1) / step - 2 * p * in_grid
    found = {"pit": pit, "crps": crps, "nll": -floored.log(), "cde_loss": cde}
    return {name: torch.where(known, values, torch.nan) for name, values in found.items()}
