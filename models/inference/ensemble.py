"""Samplers of many posteriors at once by walkers that move along differences of one another.

A walker steps along the difference of two others, so that steps have the scales and correlations of
the posterior, whatever they are (differential evolution, ter Braak 2006, Stat. Comput. 16, 239).
No derivatives are needed: the target may be a network that is fast, but slow to differentiate.

A group is a posterior, such as that of a galaxy, and has one or more ensembles of walkers, which do
not know of each other: so they tell whether they have converged. Positions are (groups, ensembles,
walkers, dim); a target maps (groups, n, dim) to ln densities (groups, n). All groups have the same
random numbers.

- ``sample(target, start, steps, n, seed) -> Tensor``: draws, of walkers that begin near the answer.
- ``temper(first, target, start, ...) -> Tensor``: the same from draws of another density.
- ``worst_rhat(draws) -> Tensor``: whether ensembles agree.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.models.inference.diagnostics import rhat

Target = Callable[[Tensor], Tensor]

ACCEPTED = 0.25  # share of steps that are taken, to which their length adapts
ADAPTATION = 0.1  # of ln length per step
LENGTHS = 0.5  # scatter of ln length
TO_OTHERS = 0.1  # of steps have the whole length of a difference: from mode to mode
JITTER = 1e-4  # of each coordinate, so that no direction is closed
EFFECTIVE = 0.6  # share of walkers that are effective after each change of temperature
BISECTIONS = 30
MAX_RHAT = 1.1  # above which ensembles disagree


class Walkers(NamedTuple):
    """Positions x, ln densities (groups, ensembles, walkers), ln length of steps (same, 1)."""

    x: Tensor
    log_p: Tensor
    log_length: Tensor


def sample(target: Target, start: Tensor, steps: int, n: int, seed: int = 0) -> Tensor:
    """Draws (groups, ensembles, walkers, n, dim): each walker at n times of the last half of steps.

    ``start`` (groups, ensembles, walkers, dim): near the answer, in any order, and no fewer walkers
    than twice the dimensions. Lengths of steps adapt during the first half.
    """
    generator = torch.Generator().manual_seed(seed)
    start = start[:, :, torch.randperm(start.shape[2], generator=generator)]
    walkers = _begin(start, _at(target, start))
    half = steps // 2
    times = torch.linspace(half, steps - 1, n + 1)[1:].round().long().tolist()
    kept = []
    for step in range(steps):
        walkers = _advance(target, walkers, generator, ADAPTATION if step < half else 0.0)
        kept += [walkers.x] * times.count(step)
    return torch.stack(kept, 3)


def temper(
    first: Target, target: Target, start: Tensor, between: int, steps: int, n: int, seed: int = 0
) -> Tensor:
    """Draws of ``target`` as `sample` makes them, from draws ``start`` of ``first``.

    ln density goes from that of ``first`` to that of ``target`` by as much at a time as leaves a
    share `EFFECTIVE` of the walkers' weights (sequential Monte Carlo, Del Moral et al. 2006).
    Walkers are chosen anew by their weights, and take ``between`` steps; at the end ``steps``.
    """
    generator = torch.Generator().manual_seed(seed)
    log_first, log_target = _at(first, start), _at(target, start)
    share = torch.zeros_like(log_target[..., :1])
    x, log_length = start, _begin(start, log_first).log_length
    while True:
        more = log_target - log_first
        later = _next_share(more, share)
        chosen = _resampled((later - share) * more, generator)
        x, share = x.gather(2, chosen[..., None].expand_as(x)), later
        if bool((share >= 1).all()):
            return sample(target, x, steps, n, seed + 1)

        def mixed(x: Tensor, share: Tensor = share) -> Tensor:
            """ln density between both, of each ensemble's share."""
            each = share.expand(-1, -1, x.shape[1] // share.shape[1]).flatten(1)
            return torch.lerp(first(x), target(x), each)

        walkers = Walkers(x, _at(mixed, x), log_length)
        for _ in range(between):
            walkers = _advance(mixed, walkers, generator, ADAPTATION)
        x, log_length = walkers.x, walkers.log_length
        log_first, log_target = _at(first, x), _at(target, x)


def worst_rhat(draws: Tensor) -> Tensor:
    """R-hat (groups,) of the worst coordinate, of ensembles and of halves of their times.

    ``draws`` (groups, ensembles, walkers, n, dim), n at least 2.
    """
    in_time = draws.transpose(2, 3).flatten(2, 3)
    return torch.stack([rhat(chains).max() for chains in in_time])


def _at(target: Target, x: Tensor) -> Tensor:
    """ln densities (groups, ensembles, walkers) at positions."""
    return target(x.flatten(1, 2)).reshape(x.shape[:3])


def _begin(x: Tensor, log_p: Tensor) -> Walkers:
    length = 2.38 / math.sqrt(2 * x.shape[-1])  # the best of a normal density
    return Walkers(x, log_p, torch.full_like(log_p[..., :1], math.log(length)))


def _advance(target: Target, walkers: Walkers, generator: torch.Generator, rate: float) -> Walkers:
    """A step of each walker: of one half along differences in the other, then of the other."""
    half = walkers.x.shape[2] // 2
    x, log_p, log_length = walkers
    first = Walkers(x[:, :, :half], log_p[:, :, :half], log_length)
    first = _move(target, first, x[:, :, half:], generator, rate)
    second = Walkers(x[:, :, half:], log_p[:, :, half:], first.log_length)
    second = _move(target, second, first.x, generator, rate)
    x, log_p = torch.cat([first.x, second.x], 2), torch.cat([first.log_p, second.log_p], 2)
    return Walkers(x, log_p, second.log_length)


def _move(
    target: Target, moving: Walkers, others: Tensor, generator: torch.Generator, rate: float
) -> Walkers:
    """A step of walkers along differences of ``others`` (groups, ensembles, m, dim)."""
    x, log_p, log_length = moving
    shape, m = x.shape[1:3], others.shape[2]  # ensembles and walkers
    first = torch.randint(m, shape, generator=generator)
    second = (first + 1 + torch.randint(m - 1, shape, generator=generator)) % m
    scatter = LENGTHS * torch.randn(shape, generator=generator)
    is_whole = torch.rand(shape, generator=generator) < TO_OTHERS
    noise = JITTER * torch.randn(x.shape[1:], generator=generator)
    log_u = torch.rand(shape, generator=generator).log()
    scatter, is_whole, noise, log_u = (v.to(x.device) for v in (scatter, is_whole, noise, log_u))

    def chosen(index: Tensor) -> Tensor:
        index = index.to(x.device)
        return others.gather(2, index[None, ..., None].expand(len(x), -1, -1, x.shape[-1]))

    length = torch.where(is_whole, 1.0, (log_length + scatter).exp())
    step = length[..., None] * (chosen(first) - chosen(second))
    trial = x + step.to(x) + noise.to(x)
    log_q = _at(target, trial)
    is_taken = log_u < (log_q - log_p).nan_to_num(-math.inf)
    x = torch.where(is_taken[..., None], trial, x)
    log_p = torch.where(is_taken, log_q, log_p)
    usual = (~is_whole).to(log_p)
    accepted = (is_taken * usual).sum(-1) / usual.sum(-1).clamp_min(1)
    return Walkers(x, log_p, log_length + rate * (accepted[..., None] - ACCEPTED))


def _next_share(more: Tensor, share: Tensor) -> Tensor:
    """The next share of the target; ``more``: its ln density over the first's."""

    def is_fine(step: Tensor) -> Tensor:
        log_w = (step * more).nan_to_num(-math.inf)
        twice = (2 * log_w).logsumexp(-1, keepdim=True)
        effective = torch.exp(2 * log_w.logsumexp(-1, keepdim=True) - twice)
        return effective >= EFFECTIVE * more.shape[-1]

    low, high = torch.zeros_like(share), 1 - share
    is_last = is_fine(high)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        fine = is_fine(middle)
        low, high = torch.where(fine, middle, low), torch.where(fine, high, middle)
    return torch.where(is_last, 1.0, share + low)


def _resampled(log_weight: Tensor, generator: torch.Generator) -> Tensor:
    """Places of walkers (groups, ensembles, walkers) by their weights, in a random order."""
    n = log_weight.shape[-1]
    edges = log_weight.double().nan_to_num(-math.inf).softmax(-1).cumsum(-1)
    place = (torch.arange(n) + torch.rand(1, generator=generator)).to(edges) / n
    chosen = torch.searchsorted(edges, place.expand_as(edges).contiguous()).clamp_max(n - 1)
    return chosen[..., torch.randperm(n, generator=generator).to(chosen.device)]
