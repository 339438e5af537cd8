"""A Gaussian process on HEALPix x log distance by Iterative Charted Refinement (ICR).

Edenhofer et al. (2022), arXiv:2206.10634. A field s on the voxels of a coarse grid is drawn from
its exact covariance and refined grid by grid: every coarse voxel gives way to a block of 8 fine
ones (4 child pixels x 2 shells), whose values follow from those around and from 8 excitations,

    s_f = R s_c + sqrt(D) xi,   R = K_fc K_cc^-1,   D = K_ff - R K_cf.

The map from excitations xi ~ N(0, 1) to s is linear, and s has about the covariance K of the
kernel. In the paper s_c are 3 x 3 pixels x 3 shells: `PLAIN`. What blocks share beyond that is
lost, which is most of the error where voxels are as large as the scale of the kernel. `WIDE` takes
13 pixels x 3 shells and refines in four turns, chessboard by chessboard; blocks then also know the
nearest fine values of earlier turns. That halves the error at twice the cost.

The sphere is tiled by classes of 8 pixels that rotations map to one another
(`healpix.rotations`), so that a matrix serves 8 blocks. Inside, samples come last, and the fine
voxels of a level are in the order (turn, block, child, shell, member): a turn is one batched matrix
product over its blocks.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from physics.icr_build import (
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
from physics.icr_grid import Grid, grids
from physics.kernel import Kernel, matern

__all__ = ["ICR", "PLAIN", "WIDE", "Grid", "Stencil", "grids", "matern"]


class ICR:
    """s = A xi for excitations xi ~ N(0, 1), and A^T; float32, built in float64; `to` moves it.

    ``levels`` are those of `icr_grid.grids`. The order of the excitations is that of the inside.
    """

    def __init__(self, levels: list[Grid], kernel: Kernel, stencil: Stencil = WIDE):
        self.grid = levels[-1]
        self.shape = self.grid.shape
        self.base, places = base_root(levels[0], kernel)
        self.levels: list[Level] = []
        for coarse, fine in pairwise(levels):
            level, places = refinement(coarse, fine, places, kernel, stencil)
            self.levels.append(level)
        self.places = places.flatten()  # of the voxels of the map
        self.order = torch.argsort(self.places)  # voxel at each place
        self.to(dtype=torch.float32)

    @property
    def n_excitations(self) -> int:
        inner = sum(turn.noise[..., 0].numel() for level in self.levels for turn in level.turns)
        return self.base[..., 0].numel() + MEMBERS * inner

    @property
    def nbytes(self) -> int:
        """Memory of the matrices and places."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def _tensors(self) -> list[Tensor]:
        held = [self.base, self.places, self.order]
        for level in self.levels:
            held += [level.uses, level.offsets, *(t for turn in level.turns for t in turn)]
        return held

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "ICR":
        """Moves it, in place."""

        def moved(value: Tensor) -> Tensor:
            return value.to(device, dtype if value.is_floating_point() else None)

        self.base, self.places, self.order = map(moved, (self.base, self.places, self.order))
        self.levels = [
            Level([Turn(*map(moved, turn)) for turn in turns], moved(uses), moved(offsets))
            for turns, uses, offsets in self.levels
        ]
        return self

    def apply(self, xi: Tensor) -> Tensor:
        """The field of excitations (samples, n_excitations): (samples, pixels, shells)."""
        return _Apply.apply(xi, self)  # type: ignore[no-untyped-call,no-any-return]

    def adjoint(self, g: Tensor) -> Tensor:
        """A^T g of (samples, pixels, shells): (samples, n_excitations)."""
        return _Adjoint.apply(g, self)  # type: ignore[no-untyped-call,no-any-return]


class _Apply(torch.autograd.Function):
    """Its derivative is the adjoint, which is much faster than what autograd would do."""

    @staticmethod
    def forward(ctx: Any, xi: Tensor, prior: ICR) -> Tensor:
        ctx.prior = prior
        return _apply(prior, xi)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.prior.adjoint(grad), None


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, prior: ICR) -> Tensor:
        ctx.prior = prior
        return _adjoint(prior, g)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.prior.apply(grad), None


def _apply(prior: ICR, xi: Tensor) -> Tensor:
    samples, n_base = len(xi), prior.base[..., 0].numel()
    first = xi[:, :n_base].reshape(samples, 4, -1).transpose(0, 1)
    s = hadamard(first @ prior.base.mT).transpose(1, 2).reshape(-1, samples)
    rest = xi[:, n_base:].T
    for turns, _, offsets in prior.levels:
        n_coarse = len(offsets)
        n_fine = sum(len(turn.offsets) for turn in turns)
        known = s.new_empty(n_coarse + n_fine, samples)  # the coarse values, then turn after turn
        known[:n_coarse] = s
        excitations, rest = rest[:n_fine], rest[n_fine:]
        at = 0
        for mean, noise, inputs, _, _ in turns:
            blocks, width, _ = inputs.shape
            end = at + blocks * 8 * MEMBERS
            around = known.index_select(0, inputs.flatten()).view(blocks, width, -1)
            fine = known[n_coarse + at : n_coarse + end].view(blocks, 8, -1)
            torch.bmm(noise, excitations[at:end].reshape(fine.shape), out=fine)
            fine.baddbmm_(mean, around)
            at = end
        s = known[n_coarse:]
    return s.index_select(0, prior.places).T.view(samples, *prior.shape)


def _adjoint(prior: ICR, g: Tensor) -> Tensor:
    samples = len(g)
    s = g.reshape(samples, -1).T.index_select(0, prior.order)
    parts = []  # last excitations first
    for turns, uses, offsets in reversed(prior.levels):
        back = s.new_empty(sum(turn.inputs.numel() for turn in turns), samples)
        filled, end = 0, len(s)
        for mean, noise, inputs, later, starts in reversed(turns):
            fine = s[end - len(starts) : end]
            if len(later):
                fine = fine + functional.embedding_bag(later, back[:filled], starts, mode="sum")
            fine = fine.view(len(inputs), 8, -1)
            parts.append(torch.bmm(noise.mT, fine).view(-1, samples))
            rows = back[filled : filled + inputs.numel()]
            torch.bmm(mean.mT, fine, out=rows.view(len(inputs), inputs.shape[1], -1))
            filled, end = filled + inputs.numel(), end - len(starts)
        s = functional.embedding_bag(uses, back, offsets, mode="sum")
    s = hadamard(s.view(4, -1, samples)).transpose(1, 2) @ prior.base
    parts.append(s.transpose(1, 2).reshape(-1, samples))
    return torch.cat(parts[::-1]).T
