"""Draws of the posterior of galaxies: from normals at its maxima, or by ensembles of walkers."""

import torch
from torch import Tensor

from orrery.models.inference.ensemble import sample
from orrery.models.sed_emulator.covariance import cholesky
from orrery.models.sed_emulator.posterior import (
    LARGEST_X,
    Emulator,
    Mode,
    Photometry,
    log_posterior,
)


def laplace_of(modes: list[Mode], noise: Tensor) -> Tensor:
    """Draws (galaxies, modes, draws, p) of each mode's normal, by standard ``noise`` (draws, p)."""
    every = []
    for mode in modes:
        root = cholesky(mode.precision)
        each = noise.T.to(root).expand(len(root), -1, -1)
        step = torch.linalg.solve_triangular(root.mT, each, upper=True)
        every.append(mode.x[:, None] + step.mT.to(mode.x))
    return torch.stack(every, 1)


def even_noise(n_draws: int, p: int, seed: int) -> Tensor:
    """Standard normal numbers (draws, p) that fill space evenly, each with its opposite.

    Quantiles of so many independent ones would be off by 0.1 of the width.
    """
    sobol = torch.quasirandom.SobolEngine(p, scramble=True, seed=seed)
    half = torch.special.ndtri(sobol.draw(n_draws // 2 + 1).clamp(1e-6, 1 - 1e-6))
    return torch.stack([half, -half], 1).flatten(0, 1)[:n_draws]


def laplace_draws(modes: list[Mode], n_draws: int, seed: int) -> Tensor:
    """Draws of x, (galaxies, draws, p), from the modes' normals, in proportion to evidence."""
    first = modes[0]
    n, p = first.x.shape
    generator = torch.Generator().manual_seed(seed)
    weight = torch.stack([mode.log_evidence() for mode in modes], 1).softmax(1)
    edges = weight.cumsum(1)
    place = torch.rand(n_draws, generator=generator).to(edges) + torch.arange(n_draws).to(edges)
    chosen = torch.searchsorted(edges, (place / n_draws).expand(n, -1).contiguous())
    chosen = chosen.clamp_max(len(modes) - 1)
    noise = even_noise(n_draws, p, seed).to(first.x)
    index = chosen[:, None, :, None].expand(-1, -1, -1, p)
    draws = laplace_of(modes, noise).gather(1, index)[:, 0]
    return draws.clamp(-LARGEST_X, LARGEST_X)


@torch.no_grad()
def ensemble_draws(
    emulator: Emulator,
    data: Photometry,
    modes: list[Mode],
    walkers: int,
    steps: int,
    n: int,
    seed: int,
    ensembles: int = 2,
) -> Tensor:
    """Draws of x, (galaxies, ensembles, walkers, n, p), see `models.inference.ensemble.sample`.

    Walkers begin at draws of Laplace's approximation, in modes in proportion to their evidence.
    """
    galaxies = torch.arange(len(data.flux), device=data.flux.device)

    def target(x: Tensor) -> Tensor:
        rows = data.rows(galaxies.repeat_interleave(x.shape[1]))
        return log_posterior(emulator, rows, x.flatten(0, 1)).reshape(x.shape[:2])

    start = laplace_draws(modes, walkers * ensembles, seed)
    start = start.unflatten(1, (walkers, ensembles)).transpose(1, 2)  # modes in each ensemble
    return sample(target, start, steps, n, seed)
