"""The matrices of Iterative Charted Refinement and where their inputs are; see `icr`."""

from typing import NamedTuple

import torch
from torch import Tensor

from orrery.physics.gaussian_process import healpix
from orrery.physics.gaussian_process.icr_grid import Grid
from orrery.physics.gaussian_process.kernel import Kernel

JITTER = 1e-6  # on the diagonal of covariances of unit variance
MEMBERS = 8  # pixels of a class
# places in pc of values that are missing, so far away that they get no weight at all
NOWHERE = 1e7 * torch.arange(1.0, 101.0, dtype=torch.float64)[:, None]
CHUNK = 256  # blocks of which matrices are made at once: 20 MB


class Stencil(NamedTuple):
    """What a block of 8 fine voxels is conditioned on."""

    pixels: int  # of the coarse grid, x 3 shells
    refined: int  # fine values of earlier turns; with 0 there is one turn

    def wider(self, nside: int) -> "Stencil":
        """For the coarser levels, of which each costs an eighth of the next."""
        return Stencil(21 if nside > 2 else 13, 2 * self.refined) if self.refined else self


PLAIN = Stencil(9, 0)
WIDE = Stencil(13, 20)


class Turn(NamedTuple):
    """Blocks that are refined at once. K values are known around each of them."""

    mean: Tensor  # R, (blocks, 8, K)
    noise: Tensor  # sqrt(D), (blocks, 8, 8)
    inputs: Tensor  # (blocks, K, members), int32: places; fine ones come after the coarse ones
    start: int  # place of its first fine value
    stop: int


class Level(NamedTuple):
    """A refinement."""

    turns: list[Turn]
    n_coarse: int  # voxels
    n_fine: int


def hadamard(s: Tensor) -> Tensor:
    """Orthogonal, symmetric: from four members to the characters of their group, and back."""
    a, b, c, d = s.unbind(0)
    return 0.5 * torch.stack([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d])


def base_root(grid: Grid, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """sqrt(K_0) in four blocks (4, n / 4, n / 4), and the places (pixels, shells) of the voxels.

    Half turns about the three axes leave K_0 as it is, so that the four sums and differences of
    voxels that they map to one another are independent: a root of K_0 is found 16 times faster.
    The order of the places is (member, pixel, shell).
    """
    turns = healpix.rotations(grid.nside)[[0, 2, 4, 6]]
    pixels = turns[:, turns.amin(0).unique()]  # (4, pixels / 4)
    position = grid.positions[pixels].flatten(1, 2)
    shares = [kernel(_distances(position[0], member)) for member in position]  # (n / 4, n / 4)
    places = torch.empty(grid.shape, dtype=torch.long)
    places[pixels.flatten()] = torch.arange(places.numel()).view(-1, grid.shells)
    roots = []  # one after the other, in float32 as they are kept: they decide a small map's memory
    for signs in 2 * hadamard(torch.eye(4)):
        covariance = torch.zeros_like(shares[0])
        for sign, share in zip(signs.tolist(), shares, strict=True):
            covariance.add_(share, alpha=sign)
        roots.append(_root(covariance).float())
    return torch.stack(roots), places


def refinement(
    coarse: Grid, fine: Grid, places: Tensor, kernel: Kernel, stencil: Stencil
) -> tuple[Level, Tensor]:
    """The level from ``coarse``, whose values are at ``places``, and the places of ``fine``."""
    shells = coarse.shells - 2
    turning = healpix.rotations(coarse.nside)
    first = turning.amin(0).unique()  # a pixel of each class
    # blocks that touch are in different turns, nearly everywhere
    colour, odd = healpix.colours(coarse.nside)[:, None], torch.arange(shells) % 2
    colour = 2 * colour + (odd ^ (colour & 1)) if stencil.refined else 0 * (colour + odd)
    chosen = [torch.nonzero(colour[first] == k) for k in range(int(colour.max()) + 1)]

    # children of the members, in the order of turns
    turning_fine = healpix.rotations(fine.nside)
    fine_places, filled = torch.empty(fine.shape, dtype=torch.long), places.numel()
    for index, shell in (some.unbind(1) for some in chosen):
        pixels = turning_fine[:, 4 * first[index, None] + torch.arange(4)].permute(1, 2, 0)
        halves = 2 * shell[:, None] + torch.arange(2)
        inner = filled + torch.arange(len(index) * 8 * MEMBERS)
        fine_places[pixels[:, :, None], halves[:, None, :, None]] = inner.view(-1, 4, 2, MEMBERS)
        filled += len(inner)

    wide = healpix.neighbourhood(coarse.nside, first, stencil.pixels)
    turns, start = [], places.numel()
    for turn, some in enumerate(chosen):
        parts = []
        for index, shell in (part.unbind(1) for part in some.split(CHUNK)):
            pixel = wide[index, :, None].expand(-1, -1, 3)
            window = (shell[:, None] + torch.arange(3))[:, None].expand(pixel.shape)
            near = coarse.at(pixel, window).flatten(1, 2)
            inputs = places[turning[:, pixel], window].flatten(2)
            new = children(fine, first[index], shell)
            if turn:
                pixel, window, there = nearest_refined(
                    colour, turn, fine, first[index], shell, stencil.refined
                )
                place = torch.where(
                    there[..., None], fine.at(pixel, window), NOWHERE[: stencil.refined]
                )
                near = torch.cat([near, place], 1)
                # those that are missing weigh 0, but 0 times what is not yet written may be nan
                found = fine_places[turning_fine[:, pixel], window].where(there, 0)
                inputs = torch.cat([inputs, found], 2)
            mean, noise = conditional(near, new, kernel)
            # as they are kept: a level in float64 would take most of the memory
            parts.append((mean.float(), noise.float(), inputs.permute(1, 2, 0).int()))
        mean, noise, inputs = (torch.cat(part) for part in zip(*parts, strict=True))
        stop = start + noise[..., 0].numel() * MEMBERS
        turns.append(Turn(mean, noise, inputs.contiguous(), start, stop))
        start = stop
    level = Level(turns, places.numel(), fine_places.numel())
    return level, fine_places - places.numel()


def children(fine: Grid, pixel: Tensor, shell: Tensor) -> Tensor:
    """Positions of the 8 fine voxels of coarse ``pixel`` (...) and ``shell`` (...), (..., 8, 3)."""
    pixels = 4 * pixel[..., None, None] + torch.arange(4)[:, None]
    shells = 2 * shell[..., None, None] + torch.arange(2)
    return fine.at(*torch.broadcast_tensors(pixels, shells)).flatten(-3, -2)


def nearest_refined(
    colour: Tensor, turn: int, fine: Grid, pixel: Tensor, shell: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``size`` fine voxels nearest to blocks among those of earlier turns in the blocks around.

    ``colour`` is the turn of each block, (coarse pixels, shells); ``pixel`` and ``shell`` (blocks,)
    are those of ``turn``. Fine pixel, fine shell and whether there is one, (blocks, size).
    """
    shells = colour.shape[1]
    around = healpix.neighbourhood(fine.nside // 2, pixel)[:, :, None].expand(-1, -1, 3)
    window = (shell[:, None] + torch.arange(-1, 2))[:, None].expand(around.shape)
    inside = window.clamp(0, shells - 1)
    known = (window == inside) & (colour[around, inside] < turn)
    place = children(fine, around, inside)  # (blocks, 9, 3, 8, 3)
    middle = children(fine, pixel, shell).mean(1)[:, None, None, None]
    distance = (place - middle).norm(dim=-1).masked_fill(~known[..., None], torch.inf)
    distance, best = distance.flatten(1).topk(size, largest=False)
    block, child = best // 8, best % 8
    pixels = 4 * around.flatten(1).gather(1, block) + child // 2
    return pixels, 2 * inside.flatten(1).gather(1, block) + child % 2, distance < torch.inf


def conditional(near: Tensor, new: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """R and sqrt(D) of values at ``new`` (batch, f, 3) given ``near`` (batch, c, 3), pc."""
    across = kernel(_distances(near, new))
    mean = torch.cholesky_solve(across, _root(kernel(_distances(near, near)))).mT
    return mean, _root(kernel(_distances(new, new)).baddbmm_(mean, across, alpha=-1))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # without matrix products, that lose the digits of near points
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _root(covariance: Tensor) -> Tensor:
    """Lower triangular root, (..., n, n); changes ``covariance``."""
    covariance.diagonal(dim1=-2, dim2=-1).add_(JITTER)
    return torch.linalg.cholesky(covariance)
