"""A Gaussian process on HEALPix x log distance by Iterative Charted Refinement (ICR).

Edenhofer et al. (2022), arXiv:2206.10634. A field s on the voxels of a coarse grid is drawn from
its exact covariance and refined grid by grid: every coarse voxel gives way to a block of 8 fine
ones (4 child pixels x 2 shells), whose values follow from those around and from 8 excitations,

    s_f = R s_c + sqrt(D) xi,   R = K_fc K_cc^-1,   D = K_ff - R K_cf.

The map from excitations xi ~ N(0, 1) to s is linear, and s has about the covariance K of the
kernel. In the paper s_c are 3 x 3 pixels x 3 shells: `PLAIN`. What blocks share beyond that is
lost, which is most of the error where voxels are as large as the scale of the kernel. `WIDE` takes
13 pixels x 3 shells and refines in twelve turns, by `healpix.colours`, so that blocks that touch
are drawn one after the other: they also know the 20 nearest fine values of earlier turns. On the
reference sky (Nside 8 x 36) errors between neighbours are a tenth of those of `PLAIN`, for 1.4
times the time (benchmarks/dust_prior). Variances fall short of 1 by .4% on average and 3% at worst
a level above the base, by .5% and 3% three levels above it, while the error of the covariance grows
no further (dust_prior_deep.csv); from an exact base `PLAIN` has 1 after a level, but .76 to 1.07
after two.

The sphere is tiled by classes of 8 pixels that rotations map to one another
(`healpix.rotations`), so that a matrix serves 8 blocks. Inside, samples come last, and the fine
voxels of a level are in the order (turn, block, child, shell, member): a turn is one batched matrix
product over its blocks.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from orrery.physics.gaussian_process.healpix import colours
from orrery.physics.gaussian_process.icr_build import (
    MEMBERS,
    PLAIN,
    WIDE,
    Level,
    Stencil,
    Turn,
    base_root,
    hadamard,
    refinement,
)
from orrery.physics.gaussian_process.icr_grid import Grid, grids
from orrery.physics.gaussian_process.kernel import Kernel, matern
from orrery.physics.gaussian_process.linear_map import GaussianProcess

__all__ = ["ICR", "PLAIN", "WIDE", "Grid", "Stencil", "grids", "matern", "memory"]


CACHE = 2**17  # values of inputs that are looked up at once, of which the cache holds twice as many


def memory(levels: list[Grid], stencil: Stencil = WIDE) -> int:
    """Bytes that the matrices and places of a prior will take, to be known before it is made."""
    pixels, shells = levels[-1].shape
    total = 4 * math.prod(levels[0].shape) ** 2 // 4 + 8 * pixels * shells
    for coarse, fine in pairwise(levels):
        size = stencil if fine is levels[-1] else stencil.wider(coarse.nside)
        blocks = math.prod(fine.shape) // (8 * MEMBERS)
        # in the first turn are those of the first colour, in every second shell
        first = int((colours(coarse.nside) == 0).sum()) // MEMBERS * ((coarse.shells - 1) // 2)
        inputs = blocks * 3 * size.pixels + (blocks - first) * size.refined
        total += 4 * (8 + MEMBERS) * inputs + 4 * 64 * blocks
    return total


class ICR(GaussianProcess):
    """s = A xi for excitations xi ~ N(0, 1), and A^T; float32, built in float64; `to` moves it.

    ``levels`` are those of `icr_grid.grids`. The order of the excitations is that of the inside.
    """

    def __init__(self, levels: list[Grid], kernel: Kernel, stencil: Stencil = WIDE):
        self.grid = levels[-1]
        self.shape = self.grid.shape
        self.base, places = base_root(levels[0], kernel)
        self.levels: list[Level] = []
        for coarse, fine in pairwise(levels):
            size = stencil if fine is self.grid else stencil.wider(coarse.nside)
            level, places = refinement(coarse, fine, places, kernel, size)
            self.levels.append(level)
        self.places = places.flatten().int()  # of the voxels of the map
        self.order = torch.argsort(self.places).int()  # voxel at each place
        self.to(dtype=torch.float32)

    @property
    def n_excitations(self) -> int:
        return self.base[..., 0].numel() + sum(level.n_fine for level in self.levels)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "ICR":
        """Moves it, in place."""

        def moved(value: Tensor) -> Tensor:
            return value.to(device, dtype if value.is_floating_point() else None)

        self.base, self.places, self.order = map(moved, (self.base, self.places, self.order))
        for level in self.levels:
            level.turns[:] = [
                turn._replace(
                    mean=moved(turn.mean), noise=moved(turn.noise), inputs=moved(turn.inputs)
                )
                for turn in level.turns
            ]
        return self

    def _apply(self, xi: Tensor) -> Tensor:
        return _apply(self, xi)

    def _adjoint(self, g: Tensor) -> Tensor:
        return _adjoint(self, g)


def _apply(prior: ICR, xi: Tensor) -> Tensor:
    samples, n_base = len(xi), prior.base[..., 0].numel()
    first = xi[:, :n_base].reshape(samples, 4, -1).transpose(0, 1)
    s = hadamard(first @ prior.base.mT).transpose(1, 2).reshape(-1, samples)
    rest = xi[:, n_base:].T
    for turns, n_coarse, n_fine in prior.levels:
        known = s.new_empty(n_coarse + n_fine, samples)  # the coarse values, then turn after turn
        known[:n_coarse] = s
        excitations, rest = rest[:n_fine], rest[n_fine:]
        for turn in turns:
            fine = known[turn.start : turn.stop].view(len(turn.mean), 8, -1)
            own = excitations[turn.start - n_coarse : turn.stop - n_coarse]
            torch.bmm(turn.noise, own.reshape(fine.shape), out=fine)
            for some, mean, inputs in _in_cache(fine, turn, samples):
                around = _rows(known).index_select(0, inputs.flatten())
                some.baddbmm_(mean, around.view(*mean.shape[::2], -1))
        s = known[n_coarse:]
    return _rows(s).index_select(0, prior.places).view(-1, samples).T.view(samples, *prior.shape)


def _adjoint(prior: ICR, g: Tensor) -> Tensor:
    samples = len(g)
    s = _rows(g.reshape(samples, -1).T.contiguous()).index_select(0, prior.order)
    parts = []  # last excitations first
    for turns, n_coarse, n_fine in reversed(prior.levels):
        total = s.new_zeros(n_coarse + n_fine, samples)
        total[n_coarse:] = s.view(-1, samples)
        for turn in reversed(turns):
            fine = total[turn.start : turn.stop].view(len(turn.mean), 8, -1)
            parts.append(torch.bmm(turn.noise.mT, fine).view(-1, samples))
            for some, mean, inputs in _in_cache(fine, turn, samples):
                _add_back(total, some, mean, inputs)
        s = total[:n_coarse]
    s = hadamard(s.view(4, -1, samples)).transpose(1, 2) @ prior.base
    parts.append(s.transpose(1, 2).reshape(-1, samples))
    return torch.cat(parts[::-1]).T


def _rows(s: Tensor) -> Tensor:
    """One sample as a vector: torch then looks up places four times faster."""
    return s.view(-1) if s.shape[1] == 1 else s


def _add_back(total: Tensor, fine: Tensor, mean: Tensor, inputs: Tensor) -> None:
    """Adds R^T ``fine`` to the places of inputs; int64, with int32 torch takes 20 times as long."""
    if total.shape[1] == 1:  # a product with so few columns is twice as fast from the left
        back = fine.mT @ mean
        places = inputs.mT.to(torch.long, memory_format=torch.contiguous_format).view(-1)
        total.view(-1).scatter_add_(0, places, back.view(-1))
    else:
        back = (mean.mT @ fine).view(-1, total.shape[1])
        total.index_add_(0, inputs.flatten().long(), back)


def _in_cache(fine: Tensor, turn: Turn, samples: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Fine values, R and inputs of as many blocks at a time as the cache holds."""
    some = max(32, CACHE // (turn.inputs[0].numel() * samples))
    return zip(fine.split(some), turn.mean.split(some), turn.inputs.split(some), strict=True)
